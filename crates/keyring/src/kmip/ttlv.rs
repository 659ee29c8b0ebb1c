//! TTLV, the encoding of KMIP's messages (OASIS, "Key Management Interoperability Protocol
//! Specification Version 1.2", section 9.1): items of a tag, a type, a length and a value that is
//! padded to a multiple of eight bytes. Only what the provider's requests and their answers need.
//!
//! Answers are not decoded into a tree: a structure's items are looked at one after the other, where
//! they are. So nothing of a key is copied, and nothing an answer says makes us allocate.

use zeroize::Zeroizing;

/// What an item is (section 9.1.3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tag(pub(super) u32);

/// The types of values (section 9.1.1.2) that are used.
const STRUCTURE: u8 = 0x01;
const INTEGER: u8 = 0x02;
const ENUMERATION: u8 = 0x05;
const TEXT: u8 = 0x07;
const BYTES: u8 = 0x08;

/// The length of a tag, a type and a length.
pub(super) const HEADER_LEN: usize = 8;

/// Writes a message into memory that is wiped.
pub(super) struct Writer(Zeroizing<Vec<u8>>);

impl Writer {
    /// With room for so many bytes. A message that needs more would be moved, which leaves a copy.
    pub(super) fn with_capacity(capacity: usize) -> Self {
        Self(Zeroizing::new(Vec::with_capacity(capacity)))
    }

    pub(super) fn into_bytes(self) -> Zeroizing<Vec<u8>> {
        self.0
    }

    /// A structure with the items that `content` writes.
    pub(super) fn structure(&mut self, tag: Tag, content: impl FnOnce(&mut Self)) {
        self.header(tag, STRUCTURE, 0);
        let start = self.0.len();
        content(self);
        let len = encoded_len(self.0.len() - start);
        self.0[start - 4..start].copy_from_slice(&len);
    }

    pub(super) fn integer(&mut self, tag: Tag, value: i32) {
        self.item(tag, INTEGER, &value.to_be_bytes());
    }

    pub(super) fn enumeration(&mut self, tag: Tag, value: u32) {
        self.item(tag, ENUMERATION, &value.to_be_bytes());
    }

    pub(super) fn text(&mut self, tag: Tag, value: &str) {
        self.item(tag, TEXT, value.as_bytes());
    }

    pub(super) fn bytes(&mut self, tag: Tag, value: &[u8]) {
        self.item(tag, BYTES, value);
    }

    fn item(&mut self, tag: Tag, kind: u8, value: &[u8]) {
        self.header(tag, kind, value.len());
        self.0.extend_from_slice(value);
        let padding = padded_len(value.len()) - value.len();
        self.0.extend_from_slice(&[0; 7][..padding]);
    }

    fn header(&mut self, Tag(tag): Tag, kind: u8, len: usize) {
        self.0.extend_from_slice(&tag.to_be_bytes()[1..]);
        self.0.push(kind);
        self.0.extend_from_slice(&encoded_len(len));
    }
}

fn encoded_len(len: usize) -> [u8; 4] {
    u32::try_from(len).expect("requests are short").to_be_bytes()
}

fn padded_len(len: usize) -> usize {
    len.next_multiple_of(8)
}

/// What was received is not TTLV, or not the item that is expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Malformed;

/// An item of a message that was received.
#[derive(Clone, Copy)]
pub(super) struct Item<'a> {
    tag: Tag,
    kind: u8,
    value: &'a [u8],
}

impl<'a> Item<'a> {
    /// The structure `tag` that a whole message is.
    pub(super) fn message(bytes: &'a [u8], tag: Tag) -> Result<Items<'a>, Malformed> {
        let (item, rest) = Self::split(bytes)?;
        match rest.is_empty() && item.tag == tag {
            true => item.items(),
            false => Err(Malformed),
        }
    }

    /// The items of a structure.
    pub(super) fn items(self) -> Result<Items<'a>, Malformed> {
        self.value_of(STRUCTURE).map(Items)
    }

    pub(super) fn integer(self) -> Result<i32, Malformed> {
        self.value_of(INTEGER)?.try_into().map(i32::from_be_bytes).map_err(|_| Malformed)
    }

    pub(super) fn enumeration(self) -> Result<u32, Malformed> {
        self.value_of(ENUMERATION)?.try_into().map(u32::from_be_bytes).map_err(|_| Malformed)
    }

    pub(super) fn text(self) -> Result<&'a str, Malformed> {
        std::str::from_utf8(self.value_of(TEXT)?).map_err(|_| Malformed)
    }

    pub(super) fn bytes(self) -> Result<&'a [u8], Malformed> {
        self.value_of(BYTES)
    }

    pub(super) fn is_structure(self) -> bool {
        self.kind == STRUCTURE
    }

    fn value_of(self, kind: u8) -> Result<&'a [u8], Malformed> {
        if self.kind == kind { Ok(self.value) } else { Err(Malformed) }
    }

    /// The item that `bytes` begin with, and what comes after it.
    fn split(bytes: &'a [u8]) -> Result<(Self, &'a [u8]), Malformed> {
        let (header, rest) = bytes.split_first_chunk::<HEADER_LEN>().ok_or(Malformed)?;
        let [a, b, c, kind, len @ ..] = *header;
        let len = usize::try_from(u32::from_be_bytes(len)).map_err(|_| Malformed)?;
        let padded = len.checked_next_multiple_of(8).ok_or(Malformed)?;
        let (value, rest) = rest.split_at_checked(padded).ok_or(Malformed)?;
        let tag = Tag(u32::from_be_bytes([0, a, b, c]));
        Ok((Self { tag, kind, value: &value[..len] }, rest))
    }
}

/// The items of a structure.
#[derive(Clone, Copy)]
pub(super) struct Items<'a>(&'a [u8]);

impl<'a> Items<'a> {
    /// All with this tag.
    pub(super) fn all(self, tag: Tag) -> Result<Vec<Item<'a>>, Malformed> {
        let (mut found, mut rest) = (Vec::new(), self.0);
        while !rest.is_empty() {
            let (item, after) = Item::split(rest)?;
            if item.tag == tag {
                found.push(item);
            }
            rest = after;
        }
        Ok(found)
    }

    /// The one with this tag, if there is one.
    pub(super) fn optional(self, tag: Tag) -> Result<Option<Item<'a>>, Malformed> {
        match *self.all(tag)? {
            [] => Ok(None),
            [item] => Ok(Some(item)),
            _ => Err(Malformed),
        }
    }

    /// The one with this tag.
    pub(super) fn one(self, tag: Tag) -> Result<Item<'a>, Malformed> {
        self.optional(tag)?.ok_or(Malformed)
    }
}

/// The length of the rest of a message that begins with `header`, if it is the structure `tag`.
pub(super) fn message_len(header: [u8; HEADER_LEN], tag: Tag) -> Result<usize, Malformed> {
    let [a, b, c, kind, len @ ..] = header;
    match Tag(u32::from_be_bytes([0, a, b, c])) == tag && kind == STRUCTURE {
        true => usize::try_from(u32::from_be_bytes(len)).map_err(|_| Malformed),
        false => Err(Malformed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TAG: Tag = Tag(0x42_0020);

    /// The examples of section 9.1.2.
    #[test]
    fn items_are_encoded_as_the_specification_shows() {
        let written = |write: &dyn Fn(&mut Writer)| {
            let mut writer = Writer::with_capacity(64);
            write(&mut writer);
            writer.into_bytes().iter().map(|byte| format!("{byte:02X}")).collect::<String>()
        };
        assert_eq!(written(&|w| w.integer(TAG, 8)), "42002002000000040000000800000000");
        assert_eq!(written(&|w| w.enumeration(TAG, 255)), "4200200500000004000000FF00000000");
        assert_eq!(
            written(&|w| w.text(TAG, "Hello World")),
            "420020070000000B48656C6C6F20576F726C640000000000"
        );
        assert_eq!(written(&|w| w.bytes(TAG, &[1, 2, 3])), "42002008000000030102030000000000");
        assert_eq!(
            written(&|w| w.structure(TAG, |w| {
                w.enumeration(Tag(0x42_0004), 254);
                w.integer(Tag(0x42_0005), 255);
            })),
            "42002001000000204200040500000004000000FE000000004200050200000004000000FF00000000"
        );
    }

    fn message() -> Zeroizing<Vec<u8>> {
        let mut writer = Writer::with_capacity(256);
        writer.structure(TAG, |w| {
            w.integer(Tag(1), -2);
            w.text(Tag(2), "text");
            w.structure(Tag(3), |w| w.bytes(Tag(4), &[7; 32]));
            w.enumeration(Tag(5), 1);
            w.enumeration(Tag(5), 2);
            w.structure(Tag(6), |_| {});
        });
        writer.into_bytes()
    }

    #[test]
    fn what_was_written_is_read() {
        let bytes = message();
        let items = Item::message(&bytes, TAG).unwrap();
        assert_eq!(items.one(Tag(1)).unwrap().integer(), Ok(-2));
        assert_eq!(items.one(Tag(2)).unwrap().text(), Ok("text"));
        let inner = items.one(Tag(3)).unwrap().items().unwrap();
        assert_eq!(inner.one(Tag(4)).unwrap().bytes(), Ok([7; 32].as_slice()));
        let all = items.all(Tag(5)).unwrap();
        assert_eq!(all.iter().map(|item| item.enumeration().unwrap()).collect::<Vec<_>>(), [1, 2]);
        assert!(items.optional(Tag(9)).unwrap().is_none());
        assert!(items.one(Tag(6)).unwrap().items().unwrap().all(Tag(1)).unwrap().is_empty());
        // Of another type, or more than one where one is expected.
        assert_eq!(items.one(Tag(1)).unwrap().enumeration(), Err(Malformed));
        assert!(items.one(Tag(5)).is_err() && items.one(Tag(9)).is_err());
        assert!(Item::message(&bytes, Tag(1)).is_err());

        let header = bytes[..HEADER_LEN].try_into().unwrap();
        assert_eq!(message_len(header, TAG), Ok(bytes.len() - HEADER_LEN));
        assert_eq!(message_len(header, Tag(1)), Err(Malformed));
    }

    /// Whatever a byte is changed to, and wherever the message ends, reading it does not fail otherwise
    /// than by `Malformed`.
    #[test]
    fn damaged_messages_are_read_to_an_end() {
        fn walk(items: Items<'_>, depth: usize) {
            for tag in 0..8 {
                for item in items.all(Tag(tag)).unwrap_or_default() {
                    let _ = (item.integer(), item.enumeration(), item.text(), item.bytes());
                    if let (Ok(items), 0..3) = (item.items(), depth) {
                        walk(items, depth + 1);
                    }
                }
            }
        }
        let bytes = message();
        for end in 0..bytes.len() {
            assert!(Item::message(&bytes[..end], TAG).is_err());
        }
        for at in 0..bytes.len() {
            for value in [0, 1, 2, 5, 7, 8, 0x42, 0x7f, 0x80, 0xff] {
                let mut damaged = bytes.to_vec();
                damaged[at] = value;
                if let Ok(items) = Item::message(&damaged, TAG) {
                    walk(items, 0);
                }
            }
        }
    }
}
