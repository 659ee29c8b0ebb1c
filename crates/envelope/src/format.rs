//! The layout of a stored value: what its bytes are, before any key is involved.

use std::fmt;

use crate::key::{KeyId, KeyVersion};
use crate::nonce::Nonce;

/// The format that this crate writes, and the only one that it reads: a value's first byte.
pub const FORMAT: u8 = 1;

/// Length in bytes of the salt: the nonce's first part, from which the value's key is derived.
pub const SALT_LEN: usize = 12;

/// Length in bytes of an XAES-256-GCM nonce.
pub const NONCE_LEN: usize = 24;

/// Length in bytes of what precedes the ciphertext: format, kind, key id, key version and nonce.
pub const HEADER_LEN: usize = PREFIX_LEN + NONCE_LEN;

/// Length in bytes of the authentication tag, which follows the ciphertext.
pub const TAG_LEN: usize = 16;

/// How many bytes longer a value is than its plaintext.
pub const OVERHEAD: usize = HEADER_LEN + TAG_LEN;

/// Length in bytes of what precedes the nonce: the part of the header that is authenticated as
/// additional data. (The nonce needs no such mention, being an input of the cipher.)
pub(crate) const PREFIX_LEN: usize = 10;

/// The least that follows it: a nonce and a tag.
const REST_LEN: usize = OVERHEAD - PREFIX_LEN;

const _: () = assert!(HEADER_LEN == 34 && OVERHEAD == 50);

/// What the bytes of a plaintext are: the low six bits of a value's second byte.
///
/// The two high bits are flags. 0x80 is reserved for a compressed plaintext, 0x40 is unassigned;
/// a value that has either is refused for now, as is an unknown kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum PlaintextKind {
    /// Text in UTF-8, whatever the encoding of the database that it was stored in.
    Text = 1,
    /// Bytes (PostgreSQL's `bytea`).
    Bytea = 2,
    /// Text as the database held it, because its encoding has no faithful conversion to UTF-8:
    /// SQL_ASCII, MULE_INTERNAL, or a byte sequence that does not survive the round trip.
    TextInDatabaseEncoding = 3,
}

impl PlaintextKind {
    /// Takes the second byte of a value; a flag makes it a byte that is no kind.
    #[inline]
    fn from_byte(byte: u8) -> Result<Self, FormatError> {
        match byte {
            1 => Ok(Self::Text),
            2 => Ok(Self::Bytea),
            3 => Ok(Self::TextInDatabaseEncoding),
            _ => Err(FormatError::UnsupportedKind(byte)),
        }
    }
}

/// What precedes the ciphertext of a value.
///
/// It is neither `Clone` nor `Copy` because of its nonce, which must not seal a second value:
/// [`ValueCipher::seal`](crate::ValueCipher::seal) takes the header for good.
#[derive(Debug, PartialEq, Eq)]
pub struct Header {
    /// What the plaintext's bytes are.
    pub kind: PlaintextKind,
    /// The id of the key that the value is sealed under.
    pub key_id: KeyId,
    /// The version of that key.
    pub key_version: KeyVersion,
    /// The nonce, of which the first [`SALT_LEN`] bytes are the salt.
    pub nonce: Nonce,
}

impl Header {
    /// Reads the header of the value that begins with `prefix`.
    ///
    /// It looks at no more than the first [`HEADER_LEN`] bytes, so that a slice of a TOASTed value
    /// is enough to know its key. Only [`Sealed::parse`] also says that the value is complete.
    ///
    /// # Errors
    ///
    /// The first field that can't be that of a value in a format that this crate reads.
    pub fn parse(prefix: &[u8]) -> Result<Self, FormatError> {
        Self::read(&mut Reader(prefix))
    }

    /// Writes the header's bytes, those that [`Header::parse`] reads.
    pub fn write(&self, out: &mut [u8; HEADER_LEN]) {
        let Self { kind, key_id, key_version, nonce } = self;
        out[0] = FORMAT;
        out[1] = *kind as u8;
        out[2..6].copy_from_slice(&key_id.get().to_be_bytes());
        out[6..PREFIX_LEN].copy_from_slice(&key_version.get().to_be_bytes());
        out[PREFIX_LEN..].copy_from_slice(nonce.as_bytes());
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, FormatError> {
        let (kind, key_id, key_version) = read_prefix(reader)?;
        let nonce = Nonce::from_bytes(*reader.take()?);
        Ok(Self { kind, key_id, key_version, nonce })
    }
}

/// Reads what precedes the nonce.
#[inline]
fn read_prefix(reader: &mut Reader<'_>) -> Result<(PlaintextKind, KeyId, KeyVersion), FormatError> {
    // The format comes first: what it is decides whether the rest means anything.
    let [format] = *reader.take()?;
    if format != FORMAT {
        return Err(FormatError::UnsupportedFormat(format));
    }
    let [kind] = *reader.take()?;
    let kind = PlaintextKind::from_byte(kind)?;
    let key_id = u32::from_be_bytes(*reader.take()?);
    let key_id = KeyId::new(key_id).ok_or(FormatError::InvalidKeyId)?;
    let key_version = u32::from_be_bytes(*reader.take()?);
    let key_version = KeyVersion::new(key_version).ok_or(FormatError::InvalidKeyVersion)?;
    Ok((kind, key_id, key_version))
}

/// A value taken apart: well-formed, but not yet known to be authentic.
///
/// It is no more than the value's bytes: this is passed around for each value that is read, and a header beside
/// them would be copied as often.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sealed<'a> {
    /// What [`Sealed::parse`] has checked: a header, and as much as a tag after it.
    value: &'a [u8],
}

impl<'a> Sealed<'a> {
    /// Takes a value's bytes apart: header, ciphertext, tag.
    ///
    /// # Errors
    ///
    /// The first field that can't be that of a value in a format that this crate reads, or that
    /// the value ends before its tag.
    #[inline]
    pub fn parse(value: &'a [u8]) -> Result<Self, FormatError> {
        let mut reader = Reader(value);
        read_prefix(&mut reader)?;
        match reader.0.len() {
            ..REST_LEN => Err(FormatError::Truncated),
            _ => Ok(Self { value }),
        }
    }

    /// What the plaintext's bytes are.
    #[inline]
    #[must_use]
    pub fn kind(&self) -> PlaintextKind {
        PlaintextKind::from_byte(self.value[1]).expect("the kind was checked")
    }

    /// The id of the key that the value is sealed under.
    #[inline]
    #[must_use]
    pub fn key_id(&self) -> KeyId {
        KeyId::new(u32::from_be_bytes(*self.field(2))).expect("the key id was checked")
    }

    /// The version of that key.
    #[inline]
    #[must_use]
    pub fn key_version(&self) -> KeyVersion {
        KeyVersion::new(u32::from_be_bytes(*self.field(6))).expect("the key version was checked")
    }

    /// The first half of the nonce, from which the value's cipher is derived.
    #[inline]
    #[must_use]
    pub fn salt(&self) -> &'a [u8; SALT_LEN] {
        self.field(PREFIX_LEN)
    }

    /// The encrypted bytes, without header and tag.
    #[inline]
    #[must_use]
    pub fn ciphertext(&self) -> &'a [u8] {
        &self.value[HEADER_LEN..self.value.len() - TAG_LEN]
    }

    /// The length in bytes of the plaintext, which is also that of the ciphertext.
    #[inline]
    #[must_use]
    pub fn plaintext_len(&self) -> usize {
        self.value.len() - OVERHEAD
    }

    /// The second half of the nonce, which is that of AES-256-GCM.
    #[inline]
    pub(crate) fn counter(&self) -> &'a [u8; NONCE_LEN - SALT_LEN] {
        self.field(PREFIX_LEN + SALT_LEN)
    }

    /// The value's first bytes, which are authenticated as additional data.
    #[inline]
    pub(crate) fn prefix(&self) -> &'a [u8; PREFIX_LEN] {
        self.field(0)
    }

    #[inline]
    pub(crate) fn tag(&self) -> &'a [u8; TAG_LEN] {
        self.field(self.value.len() - TAG_LEN)
    }

    /// The `N` bytes from `start`.
    #[inline]
    fn field<const N: usize>(&self, start: usize) -> &'a [u8; N] {
        self.value[start..].first_chunk().expect("a value is as long as it was when checked")
    }
}

/// The bytes of a value that have not been read yet: the one place that knows where they end.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    #[inline]
    fn take<const N: usize>(&mut self) -> Result<&'a [u8; N], FormatError> {
        let (taken, rest) = self.0.split_first_chunk().ok_or(FormatError::Truncated)?;
        self.0 = rest;
        Ok(taken)
    }
}

/// Why bytes are not a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FormatError {
    /// They end too early: a value has at least [`OVERHEAD`] bytes, its header [`HEADER_LEN`].
    Truncated,
    /// The first byte names a format that this version does not know.
    UnsupportedFormat(u8),
    /// The second byte has a flag or names a kind of plaintext that this version does not know.
    UnsupportedKind(u8),
    /// The key id is not one: its top bit is set.
    InvalidKeyId,
    /// The key version is not one: it is zero or above 2^31 - 1.
    InvalidKeyVersion,
}

impl fmt::Display for FormatError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Truncated => f.write_str("encrypted value is truncated"),
            Self::UnsupportedFormat(format) => {
                write!(f, "encrypted value has unsupported format {format}")
            }
            Self::UnsupportedKind(kind) => {
                write!(f, "encrypted value has unsupported plaintext kind or flags 0x{kind:02x}")
            }
            Self::InvalidKeyId => f.write_str("encrypted value has an invalid key id"),
            Self::InvalidKeyVersion => f.write_str("encrypted value has an invalid key version"),
        }
    }
}

impl std::error::Error for FormatError {}
