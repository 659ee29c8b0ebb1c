//! What names a key, and the key itself.

use std::fmt;
use std::num::NonZeroU32;

use sha2::{Digest, Sha256};
use zeroize::{Zeroize, ZeroizeOnDrop};

/// The name of a key, such as `user_pii`: `[a-z0-9][a-z0-9_.-]{0,62}`.
///
/// The characters are those that mean nothing special in a URL path, a file name, a shell or an
/// IAM policy, because the name is used in all of them.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeyName {
    name: Box<str>,
    /// Derived from the name once: it is asked for with every value.
    id: KeyId,
}

impl KeyName {
    /// The longest name, in bytes: as long as a PostgreSQL identifier.
    pub const MAX_LEN: usize = 63;

    /// Takes `name` as a key's name.
    ///
    /// # Errors
    ///
    /// Which rule it breaks.
    pub fn parse(name: &str) -> Result<Self, KeyNameError> {
        let first = *name.as_bytes().first().ok_or(KeyNameError::Empty)?;
        if name.len() > Self::MAX_LEN {
            return Err(KeyNameError::TooLong);
        }
        if !(first.is_ascii_lowercase() || first.is_ascii_digit()) {
            return Err(KeyNameError::FirstCharacter);
        }
        let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"_.-".contains(&b);
        if !name.bytes().all(allowed) {
            return Err(KeyNameError::Character);
        }
        Ok(Self { name: name.into(), id: KeyId::of(name) })
    }

    /// The name as it was written.
    #[inline]
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.name
    }

    /// The key's id, which depends on the name alone.
    #[inline]
    #[must_use]
    pub fn id(&self) -> KeyId {
        self.id
    }
}

impl fmt::Display for KeyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

/// Why a string is not a key's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyNameError {
    /// It has no characters.
    Empty,
    /// It is longer than [`KeyName::MAX_LEN`] bytes.
    TooLong,
    /// It does not begin with a lower-case ASCII letter or a digit.
    FirstCharacter,
    /// It has a character other than lower-case ASCII letters, digits, `_`, `.` and `-`.
    Character,
}

impl fmt::Display for KeyNameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Empty => "it is empty",
            Self::TooLong => "it is longer than 63 bytes",
            Self::FirstCharacter => "it does not begin with a lower-case letter or a digit",
            Self::Character => "it has a character other than a-z, 0-9, \"_\", \".\" and \"-\"",
        })
    }
}

impl std::error::Error for KeyNameError {}

/// A key's id: the first four bytes of SHA-256(name), with the top bit cleared so that it is a
/// type modifier that PostgreSQL takes (a negative one means "none").
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeyId(u32);

impl KeyId {
    const MASK: u32 = 0x7fff_ffff;

    fn of(name: &str) -> Self {
        let digest = Sha256::digest(name.as_bytes());
        Self(u32::from_be_bytes([digest[0], digest[1], digest[2], digest[3]]) & Self::MASK)
    }

    /// The id with this number, if its top bit is clear.
    #[inline]
    #[must_use]
    pub fn new(id: u32) -> Option<Self> {
        (id & !Self::MASK == 0).then_some(Self(id))
    }

    /// The id as a number below 2^31.
    #[inline]
    #[must_use]
    pub fn get(self) -> u32 {
        self.0
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{}", self.0)
    }
}

/// The number of a key's version: 1, 2, … up to 2^31 - 1 (PostgreSQL's `integer`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeyVersion(NonZeroU32);

impl KeyVersion {
    /// The first version of every key.
    pub const FIRST: Self = Self(NonZeroU32::MIN);

    const MAX: u32 = i32::MAX as u32;

    /// The version with this number, if it is one.
    #[inline]
    #[must_use]
    pub fn new(version: u32) -> Option<Self> {
        NonZeroU32::new(version).filter(|v| v.get() <= Self::MAX).map(Self)
    }

    /// The version as a number from 1 to 2^31 - 1.
    #[inline]
    #[must_use]
    pub fn get(self) -> u32 {
        self.0.get()
    }

    /// The version after this one, or `None` after the last.
    #[must_use]
    pub fn next(self) -> Option<Self> {
        Self::new(self.get().checked_add(1)?)
    }
}

impl fmt::Display for KeyVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A 256-bit data encryption key. Wiped when dropped; never shown by `Debug`.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct DataKey([u8; Self::LEN]);

impl DataKey {
    /// Its length in bytes.
    pub const LEN: usize = 32;

    /// Takes `bytes` as a key; the caller wipes what it copied them from.
    #[must_use]
    pub fn new(bytes: [u8; Self::LEN]) -> Self {
        Self(bytes)
    }

    /// Draws a new key from the operating system's random number generator.
    ///
    /// # Errors
    ///
    /// If the operating system has no random bytes to give.
    pub fn generate() -> Result<Self, getrandom::Error> {
        let mut key = Self([0; Self::LEN]);
        getrandom::fill(&mut key.0)?;
        Ok(key)
    }

    /// The key's bytes, for the cipher and for the provider that keeps them.
    #[must_use]
    pub fn expose(&self) -> &[u8; Self::LEN] {
        &self.0
    }
}

impl fmt::Debug for DataKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DataKey(..)")
    }
}
