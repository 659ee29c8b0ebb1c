//! How a key encryption key wraps, and what a wrapped key looks like.
//!
//! ```text
//! 0x01 || nonce (12 bytes) || ciphertext (32 bytes) || tag (16 bytes)    CKM_AES_GCM
//! 0x02 || wrapped key (40 bytes)                                         CKM_AES_KEY_WRAP
//! 0x03 || wrapped key (40 bytes)                                         CKM_AES_KEY_WRAP_PAD
//! 0x04 || ciphertext (as long as the modulus)                            CKM_RSA_PKCS_OAEP, SHA-256
//! 0x05 || ciphertext (as long as the modulus)                            CKM_RSA_PKCS_OAEP, SHA-1
//! ```
//!
//! * AES-GCM is that of NIST SP 800-38D, with a random nonce of 96 bits and
//!   [`VersionId::additional_data`](crate::version::VersionId::additional_data). The nonce that is
//!   stored is the one that the module leaves in its parameter, as some make their own.
//! * The key wraps are those of RFC 3394 and RFC 5649. They go by a session object with the key, which
//!   is destroyed at once.
//! * RSAES-OAEP is that of RFC 8017, with the mask generation function MGF1 over the same hash and an
//!   empty label. SHA-1 is for tokens that have nothing else; OAEP does not need a hash without
//!   collisions.

use cryptoki::context::Function;
use cryptoki::error::{Error, RvError};
use cryptoki::mechanism::aead::GcmParams;
use cryptoki::mechanism::rsa::{PkcsMgfType, PkcsOaepParams, PkcsOaepSource};
use cryptoki::mechanism::{Mechanism as TokenMechanism, MechanismType};
use cryptoki::object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle};
use cryptoki::types::Ulong;
use envelope::DataKey;
use zeroize::{Zeroize, Zeroizing};

use super::errors;
use super::token::TokenSession;
use crate::options::configuration;
use crate::provider::{self, Finding, ProviderError, ProviderErrorKind};

/// How keys are wrapped, by the setting's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mechanism {
    AesGcm,
    AesKeyWrap,
    RsaOaep,
}

impl Mechanism {
    pub(super) const ALL: [Self; 3] = [Self::AesGcm, Self::AesKeyWrap, Self::RsaOaep];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::AesGcm => "aes-gcm",
            Self::AesKeyWrap => "aes-key-wrap",
            Self::RsaOaep => "rsa-oaep",
        }
    }

    pub(super) fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|mechanism| mechanism.name() == name)
    }

    /// Whether what is wrapped for one version can't be unwrapped as another.
    pub(super) fn binds_version(self) -> bool {
        self == Self::AesGcm
    }

    /// A wrapped key of the catalog, for which the token need not be asked whether it is one.
    pub(super) fn parse_wrapped(self, wrapped: Option<&[u8]>) -> Result<Wrapped, ProviderError> {
        wrapped
            .and_then(|bytes| bytes.split_first())
            .and_then(|(&format, body)| {
                let format = Format::parse(format)?;
                (format.mechanism() == self && format.fits(body.len()))
                    .then(|| Wrapped { format, body: body.to_vec() })
            })
            .ok_or_else(|| {
                invalid(format!("the wrapped key in the catalog is not one of {}", self.name()))
            })
    }
}

/// A wrapped key.
pub(super) struct Wrapped {
    format: Format,
    body: Vec<u8>,
}

/// The first byte of a wrapped key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    AesGcm = 1,
    AesKeyWrap = 2,
    AesKeyWrapPad = 3,
    RsaOaepSha256 = 4,
    RsaOaepSha1 = 5,
}

impl Format {
    fn parse(byte: u8) -> Option<Self> {
        [
            Self::AesGcm,
            Self::AesKeyWrap,
            Self::AesKeyWrapPad,
            Self::RsaOaepSha256,
            Self::RsaOaepSha1,
        ]
        .into_iter()
        .find(|format| *format as u8 == byte)
    }

    fn mechanism(self) -> Mechanism {
        match self {
            Self::AesGcm => Mechanism::AesGcm,
            Self::AesKeyWrap | Self::AesKeyWrapPad => Mechanism::AesKeyWrap,
            Self::RsaOaepSha256 | Self::RsaOaepSha1 => Mechanism::RsaOaep,
        }
    }

    /// Whether what comes after the first byte can have this length.
    fn fits(self, len: usize) -> bool {
        match self {
            Self::AesGcm => len == NONCE_LEN + DataKey::LEN + TAG_LEN,
            Self::AesKeyWrap | Self::AesKeyWrapPad => len == DataKey::LEN + 8,
            // Keys of 1024 to 16384 bits.
            Self::RsaOaepSha256 | Self::RsaOaepSha1 => matches!(len, 128..=2048),
        }
    }
}

const NONCE_LEN: usize = 12;
const TAG_LEN: usize = 16;

/// A key encryption key of the token: which one, and how it wraps.
#[derive(Clone, Debug)]
pub(super) struct Kek {
    pub(super) mechanism: Mechanism,
    pub(super) label: String,
}

impl Kek {
    /// The reference of what it wraps.
    pub(super) fn reference(&self) -> String {
        format!("{}:{}", self.mechanism.name(), self.label)
    }

    /// The key of a reference.
    pub(super) fn parse(reference: &str) -> Result<Self, ProviderError> {
        reference
            .split_once(':')
            .and_then(|(mechanism, label)| {
                let mechanism = Mechanism::parse(mechanism)?;
                let is_label = !label.is_empty() && !label.contains('\0');
                is_label.then(|| Self { mechanism, label: label.to_owned() })
            })
            .ok_or_else(|| {
                configuration(format!("{reference:?} is not a reference to a key of a token"))
            })
    }

    /// Wraps `key`. Bound to `additional_data` if the mechanism binds.
    pub(super) fn wrap(
        &self,
        session: &TokenSession,
        additional_data: &[u8],
        key: &DataKey,
    ) -> Result<Vec<u8>, ProviderError> {
        let kek = self.find(session, Role::Wraps)?;
        let (format, body) = match self.mechanism {
            Mechanism::AesGcm => {
                (Format::AesGcm, encrypt_by_gcm(session, kek, additional_data, key)?)
            }
            Mechanism::AesKeyWrap => wrap_by_key_wrap(session, kek, key)?,
            Mechanism::RsaOaep => encrypt_by_oaep(session, kek, key)?,
        };
        if !format.fits(body.len()) {
            return Err(ProviderError::new(
                ProviderErrorKind::AnswerInvalid,
                format!("the token has wrapped a key into {} bytes", body.len()),
            )
            .with_hint(
                "The module does not wrap as the specification says. Another mechanism may work.",
            ));
        }
        Ok([&[format as u8], body.as_slice()].concat())
    }

    /// Unwraps what [`Kek::wrap`] gave.
    pub(super) fn unwrap(
        &self,
        session: &TokenSession,
        additional_data: &[u8],
        wrapped: &Wrapped,
    ) -> Result<DataKey, ProviderError> {
        let kek = self.find(session, Role::Unwraps)?;
        let key = match self.try_unwrap(session, kek, additional_data, wrapped) {
            Ok(key) => key,
            Err(error) => return Err(self.not_unwrapped(session, additional_data, &error)),
        };
        let bytes = <&[u8; DataKey::LEN]>::try_from(key.as_slice()).map_err(|_| {
            invalid(format!("what key {:?} of the token has unwrapped is not a key", self.label))
        })?;
        Ok(DataKey::new(*bytes))
    }

    fn try_unwrap(
        &self,
        session: &TokenSession,
        kek: ObjectHandle,
        additional_data: &[u8],
        wrapped: &Wrapped,
    ) -> Result<Zeroizing<Vec<u8>>, Error> {
        match wrapped.format {
            Format::AesGcm => decrypt_by_gcm(session, kek, additional_data, &wrapped.body),
            Format::AesKeyWrap => {
                unwrap_by_key_wrap(session, &TokenMechanism::AesKeyWrap, kek, &wrapped.body)
            }
            Format::AesKeyWrapPad => {
                unwrap_by_key_wrap(session, &TokenMechanism::AesKeyWrapPad, kek, &wrapped.body)
            }
            Format::RsaOaepSha256 | Format::RsaOaepSha1 => session
                .session()
                .decrypt(&oaep(wrapped.format), kek, &wrapped.body)
                .map(Zeroizing::new),
        }
    }

    /// Why an unwrapping failed. Where the return value could mean the data or the device, the key
    /// wraps and unwraps something else: if it can, it was the data.
    fn not_unwrapped(
        &self,
        session: &TokenSession,
        additional_data: &[u8],
        error: &Error,
    ) -> ProviderError {
        let is_about_data = errors::value_with_data(error).is_some_and(|value| {
            errors::is_about_data(&value)
                || errors::may_be_about_data(&value) && self.works(session, additional_data)
        });
        match is_about_data {
            true => invalid(format!(
                "key {:?} of the token did not wrap this for this version of the key",
                self.label
            )),
            false => session.failed(error),
        }
    }

    fn works(&self, session: &TokenSession, additional_data: &[u8]) -> bool {
        let attempt = || {
            let key = provider::generate_key()?;
            let wrapped = self.wrap(session, additional_data, &key)?;
            let wrapped = self.mechanism.parse_wrapped(Some(&wrapped))?;
            let kek = self.find(session, Role::Unwraps)?;
            let unwrapped = self
                .try_unwrap(session, kek, additional_data, &wrapped)
                .map_err(|error| session.failed(&error))?;
            Ok::<_, ProviderError>(unwrapped.as_slice() == key.expose())
        };
        attempt().unwrap_or(false)
    }

    fn find(&self, session: &TokenSession, role: Role) -> Result<ObjectHandle, ProviderError> {
        let class = match (self.mechanism, role) {
            (Mechanism::AesGcm | Mechanism::AesKeyWrap, _) => ObjectClass::SECRET_KEY,
            (Mechanism::RsaOaep, Role::Wraps) => ObjectClass::PUBLIC_KEY,
            (Mechanism::RsaOaep, Role::Unwraps) => ObjectClass::PRIVATE_KEY,
        };
        session.find_key(class, &self.label)
    }

    /// What there is to say of the key.
    pub(super) fn findings(&self, session: &TokenSession) -> Result<Vec<Finding>, ProviderError> {
        const KEY: &str = "key encryption key";
        let attributes = Attributes::read(session, self.find(session, Role::Unwraps)?)?;
        let (expected, strong) = match self.mechanism {
            Mechanism::AesGcm | Mechanism::AesKeyWrap => (KeyType::AES, 256),
            Mechanism::RsaOaep => (KeyType::RSA, 2048),
        };
        let Self { mechanism, label } = self;
        if attributes.key_type.is_some_and(|key_type| key_type != expected) {
            return Err(configuration(format!(
                "key {label:?} of the token is not of the type that {} needs",
                mechanism.name()
            ))
            .with_hint("It needs an AES key, or an RSA key for rsa-oaep."));
        }
        let kind = if expected == KeyType::AES { "AES" } else { "RSA" };
        let size = attributes.bits.map_or_else(String::new, |bits| format!(" of {bits} bits"));
        let mut findings = vec![Finding::good(
            KEY,
            format!("{label:?}, an {kind} key{size}, wraps by {}", mechanism.name()),
        )];
        let mut warn = |applies: bool, detail: &str, hint: &str| {
            if applies {
                findings.push(Finding::warning(KEY, detail, hint));
            }
        };
        const MAKE_ANOTHER: &str = "Make another key in the token that never leaves it, name it in \
             the settings, and wrap the keys again with enc_rewrap_key.";
        warn(
            attributes.bits.is_some_and(|bits| bits < strong),
            &format!("it has less than {strong} bits"),
            MAKE_ANOTHER,
        );
        warn(
            attributes.is_extractable == Some(true),
            "it can be taken out of the token (CKA_EXTRACTABLE)",
            MAKE_ANOTHER,
        );
        warn(
            attributes.is_sensitive == Some(false),
            "it can be read in plaintext (CKA_SENSITIVE is not set)",
            MAKE_ANOTHER,
        );
        warn(
            attributes.has_been_extractable == Some(true)
                && attributes.is_extractable != Some(true),
            "it could once be taken out of the token, or was made outside (CKA_NEVER_EXTRACTABLE \
             is not set)",
            "There may be copies of it.",
        );
        if !mechanism.binds_version() {
            findings.push(Finding::good(
                KEY,
                format!(
                    "{} does not bind what it wraps to the version of a key; the check value in \
                     the catalog finds an exchange",
                    mechanism.name()
                ),
            ));
        }
        Ok(findings)
    }
}

/// What a key is looked for for: an RSA key has a half for each.
#[derive(Clone, Copy)]
enum Role {
    Wraps,
    Unwraps,
}

/// What a token tells of a key. It need not tell anything.
#[derive(Default)]
struct Attributes {
    key_type: Option<KeyType>,
    bits: Option<usize>,
    is_extractable: Option<bool>,
    is_sensitive: Option<bool>,
    has_been_extractable: Option<bool>,
}

impl Attributes {
    fn read(session: &TokenSession, key: ObjectHandle) -> Result<Self, ProviderError> {
        let wanted = [
            AttributeType::KeyType,
            AttributeType::ValueLen,
            AttributeType::Modulus,
            AttributeType::Extractable,
            AttributeType::Sensitive,
            AttributeType::NeverExtractable,
        ];
        let attributes = session
            .session()
            .get_attributes(key, &wanted)
            .map_err(|error| session.failed(&error))?;
        let mut read = Self::default();
        for attribute in attributes {
            match attribute {
                Attribute::KeyType(key_type) => read.key_type = Some(key_type),
                Attribute::ValueLen(bytes) => read.bits = Some(usize::from(bytes) * 8),
                Attribute::Modulus(modulus) => {
                    let zeroes = modulus.iter().take_while(|byte| **byte == 0).count();
                    read.bits = Some((modulus.len() - zeroes) * 8);
                }
                Attribute::Extractable(is_set) => read.is_extractable = Some(is_set),
                Attribute::Sensitive(is_set) => read.is_sensitive = Some(is_set),
                Attribute::NeverExtractable(is_set) => read.has_been_extractable = Some(!is_set),
                _ => {}
            }
        }
        Ok(read)
    }
}

fn encrypt_by_gcm(
    session: &TokenSession,
    kek: ObjectHandle,
    additional_data: &[u8],
    key: &DataKey,
) -> Result<Vec<u8>, ProviderError> {
    // A key is 32 bytes of the operating system's random number generator.
    let mut nonce = [0; NONCE_LEN];
    nonce.copy_from_slice(&provider::generate_key()?.expose()[..NONCE_LEN]);
    let ciphertext = gcm(&mut nonce, additional_data)
        .and_then(|mechanism| session.session().encrypt(&mechanism, kek, key.expose()))
        .map_err(|error| session.failed(&error))?;
    Ok([nonce.as_slice(), ciphertext.as_slice()].concat())
}

fn decrypt_by_gcm(
    session: &TokenSession,
    kek: ObjectHandle,
    additional_data: &[u8],
    body: &[u8],
) -> Result<Zeroizing<Vec<u8>>, Error> {
    let (nonce, ciphertext) = body.split_at(NONCE_LEN);
    let mut nonce = <[u8; NONCE_LEN]>::try_from(nonce)?;
    let mechanism = gcm(&mut nonce, additional_data)?;
    session.session().decrypt(&mechanism, kek, ciphertext).map(Zeroizing::new)
}

fn gcm<'a>(
    nonce: &'a mut [u8; NONCE_LEN],
    additional_data: &'a [u8],
) -> Result<TokenMechanism<'a>, Error> {
    let tag_bits = Ulong::try_from(TAG_LEN * 8)?;
    Ok(TokenMechanism::AesGcm(GcmParams::new(nonce, additional_data, tag_bits)?))
}

fn wrap_by_key_wrap(
    session: &TokenSession,
    kek: ObjectHandle,
    key: &DataKey,
) -> Result<(Format, Vec<u8>), ProviderError> {
    let mut template = object_template();
    template.push(Attribute::Value(key.expose().to_vec()));
    let created = session.session().create_object(&template);
    for attribute in &mut template {
        if let Attribute::Value(value) = attribute {
            value.zeroize();
        }
    }
    let wrapped = created.and_then(|object| {
        let wrap = |mechanism| session.session().wrap_key(mechanism, kek, object);
        let wrapped = match wrap(&TokenMechanism::AesKeyWrap) {
            Err(error) if is_about_parameters(&error) => {
                wrap(&TokenMechanism::AesKeyWrapPad).map(|body| (Format::AesKeyWrapPad, body))
            }
            wrapped => wrapped.map(|body| (Format::AesKeyWrap, body)),
        };
        // An object that can't be destroyed ends with the session.
        let _ = session.session().destroy_object(object);
        wrapped
    });
    wrapped.map_err(|error| session.failed(&error))
}

fn unwrap_by_key_wrap(
    session: &TokenSession,
    mechanism: &TokenMechanism<'_>,
    kek: ObjectHandle,
    body: &[u8],
) -> Result<Zeroizing<Vec<u8>>, Error> {
    let session = session.session();
    let object = session.unwrap_key(mechanism, kek, body, &object_template())?;
    let attributes = session.get_attributes(object, &[AttributeType::Value]);
    let _ = session.destroy_object(object);
    attributes?
        .into_iter()
        .find_map(|attribute| match attribute {
            Attribute::Value(value) => Some(Zeroizing::new(value)),
            _ => None,
        })
        // The token has made it sensitive nevertheless.
        .ok_or(Error::Pkcs11(RvError::AttributeSensitive, Function::GetAttributeValue))
}

/// The session object that has the key while it is wrapped or unwrapped.
fn object_template() -> Vec<Attribute> {
    vec![
        Attribute::Class(ObjectClass::SECRET_KEY),
        Attribute::KeyType(KeyType::AES),
        Attribute::Token(false),
        Attribute::Sensitive(false),
        Attribute::Extractable(true),
    ]
}

fn encrypt_by_oaep(
    session: &TokenSession,
    kek: ObjectHandle,
    key: &DataKey,
) -> Result<(Format, Vec<u8>), ProviderError> {
    let encrypt = |format| {
        let encrypted = session.session().encrypt(&oaep(format), kek, key.expose());
        encrypted.map(|body| (format, body))
    };
    match encrypt(Format::RsaOaepSha256) {
        Err(error) if is_about_parameters(&error) => encrypt(Format::RsaOaepSha1),
        encrypted => encrypted,
    }
    .map_err(|error| session.failed(&error))
}

fn oaep(format: Format) -> TokenMechanism<'static> {
    let (hash, mask) = match format {
        Format::RsaOaepSha1 => (MechanismType::SHA1, PkcsMgfType::MGF1_SHA1),
        _ => (MechanismType::SHA256, PkcsMgfType::MGF1_SHA256),
    };
    TokenMechanism::RsaPkcsOaep(PkcsOaepParams::new(hash, mask, PkcsOaepSource::empty()))
}

fn is_about_parameters(error: &Error) -> bool {
    errors::value(error).is_some_and(|value| errors::is_about_parameters(&value))
}

fn invalid(message: String) -> ProviderError {
    ProviderError::new(ProviderErrorKind::WrappedKeyInvalid, message).with_hint(
        "The row in the catalog was changed, or the key in the token was made anew under its old \
         label, or this is not the token that wrapped the key.",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reference_is_a_mechanism_and_a_label() {
        for (reference, mechanism, label) in [
            ("aes-gcm:postgresql", Mechanism::AesGcm, "postgresql"),
            ("aes-key-wrap:a b:c", Mechanism::AesKeyWrap, "a b:c"),
            ("rsa-oaep:Schlüssel", Mechanism::RsaOaep, "Schlüssel"),
        ] {
            let kek = Kek::parse(reference).unwrap();
            assert_eq!((kek.mechanism, kek.label.as_str()), (mechanism, label));
            assert_eq!(kek.reference(), reference);
        }
        for reference in ["", "aes-gcm", "aes-gcm:", "aes-cbc:a", "AES-GCM:a", "aes-gcm:a\0"] {
            let error = Kek::parse(reference).unwrap_err();
            assert_eq!(error.kind, ProviderErrorKind::Configuration, "{reference:?}");
        }
    }

    #[test]
    fn what_can_not_be_a_wrapped_key_does_not_go_to_the_token() {
        use Mechanism::{AesGcm, AesKeyWrap, RsaOaep};

        let bytes = |format: u8, len: usize| [vec![format], vec![7; len]].concat();
        for (mechanism, format, len) in [
            (AesGcm, 1, 60),
            (AesKeyWrap, 2, 40),
            (AesKeyWrap, 3, 40),
            (RsaOaep, 4, 256),
            (RsaOaep, 5, 512),
        ] {
            let wrapped = mechanism.parse_wrapped(Some(&bytes(format, len))).unwrap();
            assert_eq!((wrapped.format as u8, wrapped.body.len()), (format, len));
            let other = if mechanism == RsaOaep { AesGcm } else { RsaOaep };
            assert!(other.parse_wrapped(Some(&bytes(format, len))).is_err());
        }
        for (mechanism, wrapped) in [
            (AesGcm, Some(bytes(1, 59))),
            (AesGcm, Some(bytes(1, 61))),
            (AesGcm, Some(bytes(0, 60))),
            (AesKeyWrap, Some(bytes(2, 32))),
            (AesKeyWrap, Some(bytes(1, 40))),
            (RsaOaep, Some(bytes(4, 127))),
            (RsaOaep, Some(bytes(4, 2049))),
            (RsaOaep, Some(vec![4])),
            (RsaOaep, Some(Vec::new())),
            (RsaOaep, None),
        ] {
            let error = mechanism.parse_wrapped(wrapped.as_deref()).err().unwrap();
            assert_eq!(error.kind, ProviderErrorKind::WrappedKeyInvalid, "{wrapped:?}");
        }
    }
}
