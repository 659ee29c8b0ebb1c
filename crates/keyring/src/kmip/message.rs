//! The requests that the provider sends, and what it takes from the answers (OASIS, "Key Management
//! Interoperability Protocol Specification Version 1.2"; the numbers are those of section 9.1.3).
//!
//! A message has one operation. Fields of an answer that are not needed are passed over.

use envelope::DataKey;
use zeroize::Zeroizing;

use super::ttlv::{Item, Items, Malformed, Tag, Writer};

/// The version of the protocol that requests are in: major, minor. Later ones of the same major version
/// answer in it.
const VERSION: (i32, i32) = (1, 2);

/// Enough for every request, so that the buffer of one with a key never moves.
const REQUEST_CAPACITY: usize = 1024;

/// How many objects with one name are asked for: more than one is one too many.
const MAX_ITEMS: i32 = 2;

/// Encrypt and Decrypt (section 9.1.3.3.1).
const USAGE_MASK: i32 = 0x04 | 0x08;

const AES: u32 = 3;
const KEY_BITS: i32 = 256;
const RAW: u32 = 1;
const SYMMETRIC_KEY_TYPE: u32 = 2;
const UNINTERPRETED_TEXT: u32 = 1;
const QUERY_OPERATIONS: u32 = 1;

const STATE_ATTRIBUTE: &str = "State";

const ATTRIBUTE: Tag = Tag(0x42_0008);
const ATTRIBUTE_NAME: Tag = Tag(0x42_000A);
const ATTRIBUTE_VALUE: Tag = Tag(0x42_000B);
const BATCH_COUNT: Tag = Tag(0x42_000D);
const BATCH_ITEM: Tag = Tag(0x42_000F);
const CRYPTOGRAPHIC_ALGORITHM: Tag = Tag(0x42_0028);
const CRYPTOGRAPHIC_LENGTH: Tag = Tag(0x42_002A);
const KEY_BLOCK: Tag = Tag(0x42_0040);
const KEY_COMPRESSION_TYPE: Tag = Tag(0x42_0041);
const KEY_FORMAT_TYPE: Tag = Tag(0x42_0042);
const KEY_MATERIAL: Tag = Tag(0x42_0043);
const KEY_VALUE: Tag = Tag(0x42_0045);
const KEY_WRAPPING_DATA: Tag = Tag(0x42_0046);
const MAXIMUM_ITEMS: Tag = Tag(0x42_004F);
const NAME_TYPE: Tag = Tag(0x42_0054);
const NAME_VALUE: Tag = Tag(0x42_0055);
const OBJECT_TYPE: Tag = Tag(0x42_0057);
const OPERATION: Tag = Tag(0x42_005C);
const PROTOCOL_VERSION: Tag = Tag(0x42_0069);
const PROTOCOL_VERSION_MAJOR: Tag = Tag(0x42_006A);
const PROTOCOL_VERSION_MINOR: Tag = Tag(0x42_006B);
const QUERY_FUNCTION: Tag = Tag(0x42_0074);
const REQUEST_HEADER: Tag = Tag(0x42_0077);
const REQUEST_MESSAGE: Tag = Tag(0x42_0078);
const REQUEST_PAYLOAD: Tag = Tag(0x42_0079);
const RESPONSE_HEADER: Tag = Tag(0x42_007A);
/// What every answer is.
pub(super) const RESPONSE_MESSAGE: Tag = Tag(0x42_007B);
const RESPONSE_PAYLOAD: Tag = Tag(0x42_007C);
const RESULT_REASON: Tag = Tag(0x42_007E);
const RESULT_STATUS: Tag = Tag(0x42_007F);
const SYMMETRIC_KEY: Tag = Tag(0x42_008F);
const TEMPLATE_ATTRIBUTE: Tag = Tag(0x42_0091);
const UNIQUE_IDENTIFIER: Tag = Tag(0x42_0094);

/// The operations that are used (section 9.1.3.2.27).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Operation {
    /// Section 4.3.
    Register = 0x03,
    /// Section 4.9.
    Locate = 0x08,
    /// Section 4.11.
    Get = 0x0A,
    /// Section 4.12.
    GetAttributes = 0x0B,
    /// Section 4.25.
    Query = 0x18,
}

impl Operation {
    /// Its name in the specification.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Register => "Register",
            Self::Locate => "Locate",
            Self::Get => "Get",
            Self::GetAttributes => "Get Attributes",
            Self::Query => "Query",
        }
    }
}

/// Why an operation failed (section 9.1.3.2.29; the last three are of version 1.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ResultReason(pub(super) u32);

impl ResultReason {
    pub(super) const ITEM_NOT_FOUND: Self = Self(0x01);
    pub(super) const AUTHENTICATION_NOT_SUCCESSFUL: Self = Self(0x03);
    pub(super) const OPERATION_NOT_SUPPORTED: Self = Self(0x05);
    pub(super) const PERMISSION_DENIED: Self = Self(0x0C);
    pub(super) const OBJECT_ARCHIVED: Self = Self(0x0D);
    pub(super) const KEY_FORMAT_TYPE_NOT_SUPPORTED: Self = Self(0x10);
    pub(super) const KEY_VALUE_NOT_PRESENT: Self = Self(0x13);
    pub(super) const GENERAL_FAILURE: Self = Self(0x100);
    pub(super) const SENSITIVE: Self = Self(0x16);
    pub(super) const NOT_EXTRACTABLE: Self = Self(0x17);
    pub(super) const OBJECT_ALREADY_EXISTS: Self = Self(0x18);
}

/// The states of an object (sections 3.22 and 9.1.3.2.18).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Pre-active or active.
    Usable,
    Deactivated,
    Compromised,
    /// Destroyed, compromised before or not.
    Destroyed,
}

/// What an answer to a Get has.
#[derive(Debug)]
pub(super) enum Object {
    Key(DataKey),
    /// A 256-bit key would have 32 bytes.
    KeyLength(usize),
    /// Something else; what, in a clause.
    Other(&'static str),
}

/// Asks which operations the server has.
pub(super) fn query() -> Zeroizing<Vec<u8>> {
    request(Operation::Query, |w| w.enumeration(QUERY_FUNCTION, QUERY_OPERATIONS))
}

/// Asks for the objects with a name.
pub(super) fn locate(name: &str) -> Zeroizing<Vec<u8>> {
    request(Operation::Locate, |w| {
        w.integer(MAXIMUM_ITEMS, MAX_ITEMS);
        name_attribute(w, name);
    })
}

/// Asks for a key.
pub(super) fn get(unique_identifier: &str) -> Zeroizing<Vec<u8>> {
    request(Operation::Get, |w| {
        w.text(UNIQUE_IDENTIFIER, unique_identifier);
        w.enumeration(KEY_FORMAT_TYPE, RAW);
    })
}

/// Asks for the state of an object.
pub(super) fn get_state(unique_identifier: &str) -> Zeroizing<Vec<u8>> {
    request(Operation::GetAttributes, |w| {
        w.text(UNIQUE_IDENTIFIER, unique_identifier);
        w.text(ATTRIBUTE_NAME, STATE_ATTRIBUTE);
    })
}

/// Hands over a key under a name.
pub(super) fn register(name: &str, key: &DataKey) -> Zeroizing<Vec<u8>> {
    request(Operation::Register, |w| {
        w.enumeration(OBJECT_TYPE, SYMMETRIC_KEY_TYPE);
        w.structure(TEMPLATE_ATTRIBUTE, |w| {
            name_attribute(w, name);
            attribute(w, "Cryptographic Usage Mask", |w| w.integer(ATTRIBUTE_VALUE, USAGE_MASK));
        });
        w.structure(SYMMETRIC_KEY, |w| {
            w.structure(KEY_BLOCK, |w| {
                w.enumeration(KEY_FORMAT_TYPE, RAW);
                w.structure(KEY_VALUE, |w| w.bytes(KEY_MATERIAL, key.expose()));
                w.enumeration(CRYPTOGRAPHIC_ALGORITHM, AES);
                w.integer(CRYPTOGRAPHIC_LENGTH, KEY_BITS);
            });
        });
    })
}

/// A Request Message (section 7.1) with one operation.
fn request(operation: Operation, payload: impl FnOnce(&mut Writer)) -> Zeroizing<Vec<u8>> {
    let mut writer = Writer::with_capacity(REQUEST_CAPACITY);
    writer.structure(REQUEST_MESSAGE, |w| {
        w.structure(REQUEST_HEADER, |w| {
            w.structure(PROTOCOL_VERSION, |w| {
                w.integer(PROTOCOL_VERSION_MAJOR, VERSION.0);
                w.integer(PROTOCOL_VERSION_MINOR, VERSION.1);
            });
            w.integer(BATCH_COUNT, 1);
        });
        w.structure(BATCH_ITEM, |w| {
            w.enumeration(OPERATION, operation as u32);
            w.structure(REQUEST_PAYLOAD, payload);
        });
    });
    writer.into_bytes()
}

fn name_attribute(w: &mut Writer, name: &str) {
    attribute(w, "Name", |w| {
        w.structure(ATTRIBUTE_VALUE, |w| {
            w.text(NAME_VALUE, name);
            w.enumeration(NAME_TYPE, UNINTERPRETED_TEXT);
        });
    });
}

fn attribute(w: &mut Writer, name: &str, value: impl FnOnce(&mut Writer)) {
    w.structure(ATTRIBUTE, |w| {
        w.text(ATTRIBUTE_NAME, name);
        value(w);
    });
}

/// What an answer is for the operation that was asked for.
pub(super) enum Outcome<'a> {
    Success(Payload<'a>),
    Failure(ResultReason),
}

/// Takes apart a Response Message (section 7.1) to a request with `operation`.
pub(super) fn outcome(bytes: &[u8], operation: Operation) -> Result<Outcome<'_>, Malformed> {
    const SUCCESS: u32 = 0;
    const OPERATION_FAILED: u32 = 1;

    let message = Item::message(bytes, RESPONSE_MESSAGE)?;
    let version = message.one(RESPONSE_HEADER)?.items()?.one(PROTOCOL_VERSION)?.items()?;
    if version.one(PROTOCOL_VERSION_MAJOR)?.integer()? != VERSION.0 {
        return Err(Malformed);
    }
    let item = message.one(BATCH_ITEM)?.items()?;
    match item.one(RESULT_STATUS)?.enumeration()? {
        SUCCESS if item.one(OPERATION)?.enumeration()? == operation as u32 => {
            Ok(Outcome::Success(Payload(item.one(RESPONSE_PAYLOAD)?.items()?)))
        }
        OPERATION_FAILED => {
            Ok(Outcome::Failure(ResultReason(item.one(RESULT_REASON)?.enumeration()?)))
        }
        _ => Err(Malformed),
    }
}

/// The payload of an answer.
pub(super) struct Payload<'a>(Items<'a>);

impl Payload<'_> {
    /// To a Query: whether the server has the operations.
    pub(super) fn has(&self, operations: &[Operation]) -> Result<bool, Malformed> {
        let all = self.0.all(OPERATION)?;
        let all = all.into_iter().map(Item::enumeration).collect::<Result<Vec<_>, _>>()?;
        Ok(operations.iter().all(|operation| all.contains(&(*operation as u32))))
    }

    /// To a Locate: the unique identifiers of the objects.
    pub(super) fn unique_identifiers(&self) -> Result<Vec<String>, Malformed> {
        let all = self.0.all(UNIQUE_IDENTIFIER)?;
        all.into_iter().map(|item| item.text().map(str::to_owned)).collect()
    }

    /// To a Register: the unique identifier of the new object.
    pub(super) fn unique_identifier(&self) -> Result<String, Malformed> {
        Ok(self.0.one(UNIQUE_IDENTIFIER)?.text()?.to_owned())
    }

    /// To a request for the state of an object.
    pub(super) fn state(&self, unique_identifier: &str) -> Result<State, Malformed> {
        self.is_of(unique_identifier)?;
        let attribute = self.0.one(ATTRIBUTE)?.items()?;
        if attribute.one(ATTRIBUTE_NAME)?.text()? != STATE_ATTRIBUTE {
            return Err(Malformed);
        }
        match attribute.one(ATTRIBUTE_VALUE)?.enumeration()? {
            1 | 2 => Ok(State::Usable),
            3 => Ok(State::Deactivated),
            4 => Ok(State::Compromised),
            5 | 6 => Ok(State::Destroyed),
            _ => Err(Malformed),
        }
    }

    /// To a Get.
    pub(super) fn object(&self, unique_identifier: &str) -> Result<Object, Malformed> {
        self.is_of(unique_identifier)?;
        if self.0.one(OBJECT_TYPE)?.enumeration()? != SYMMETRIC_KEY_TYPE {
            return Ok(Object::Other("is not a symmetric key"));
        }
        let block = self.0.one(SYMMETRIC_KEY)?.items()?.one(KEY_BLOCK)?.items()?;
        if block.optional(KEY_WRAPPING_DATA)?.is_some() {
            return Ok(Object::Other("is wrapped by another key"));
        }
        if block.one(KEY_FORMAT_TYPE)?.enumeration()? != RAW
            || block.optional(KEY_COMPRESSION_TYPE)?.is_some()
        {
            return Ok(Object::Other("is not in the format Raw"));
        }
        if block.one(CRYPTOGRAPHIC_ALGORITHM)?.enumeration()? != AES {
            return Ok(Object::Other("is not a key for AES"));
        }
        let material = block.one(KEY_VALUE)?.items()?.one(KEY_MATERIAL)?;
        if material.is_structure() {
            return Err(Malformed);
        }
        let material = material.bytes()?;
        Ok(match <&[u8; DataKey::LEN]>::try_from(material) {
            Ok(key) => Object::Key(DataKey::new(*key)),
            Err(_) => Object::KeyLength(material.len()),
        })
    }

    fn is_of(&self, unique_identifier: &str) -> Result<(), Malformed> {
        match self.0.one(UNIQUE_IDENTIFIER)?.text()? == unique_identifier {
            true => Ok(()),
            false => Err(Malformed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_with_a_key_does_not_outgrow_its_buffer() {
        // As long as a prefix, a key's name, a full stop and a version get.
        let name = "n".repeat(super::super::MAX_PREFIX_LEN + 63 + 1 + 10);
        let request = register(&name, &DataKey::new([7; 32]));
        assert_eq!(request.capacity(), REQUEST_CAPACITY);
        assert!(request.windows(32).any(|window| window == [7; 32]));
    }

    #[test]
    fn the_key_in_an_answer_is_not_shown() {
        let shown = format!("{:?}", Object::Key(DataKey::new([0xAB; 32])));
        assert!(!shown.contains("171") && !shown.to_lowercase().contains("abab"), "{shown}");
    }
}
