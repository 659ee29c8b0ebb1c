//! What names a key's version in full, how its bytes are recognized, and the database key's
//! subkeys.

use std::fmt;

use envelope::{DataKey, KeyName, KeyVersion};
use hkdf::Hkdf;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use zeroize::Zeroizing;

/// The random id of a database, made with the extension and kept through dumps: what tells apart
/// keys of the same name in two databases.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Keyspace(pub [u8; 16]);

/// What names a version everywhere: the *encryption context* of its check value, and of its
/// wrapping at a provider that wraps keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VersionId<'a> {
    /// The database.
    pub keyspace: Keyspace,
    /// The key.
    pub name: &'a KeyName,
    /// Its version, by the numbering of the database.
    pub version: KeyVersion,
}

impl VersionId<'_> {
    /// The encryption context that a provider binds to a wrapped key, as names and values.
    #[must_use]
    pub fn encryption_context(&self) -> [(&'static str, String); 3] {
        [
            ("keyspace", self.keyspace.to_string()),
            ("key", self.name.to_string()),
            ("version", self.version.to_string()),
        ]
    }

    /// The same as additional authenticated data, for providers that bind bytes:
    ///
    /// ```text
    /// "encryption_ext:1:wrapped key" || 0x00 || keyspace (16 bytes) || name (UTF-8) || 0x00
    ///     || version (32 bits, big-endian)
    /// ```
    #[must_use]
    pub fn additional_data(&self) -> Vec<u8> {
        let mut data = Vec::new();
        self.write_labelled(b"encryption_ext:1:wrapped key", &mut |bytes| {
            data.extend_from_slice(bytes);
        });
        data
    }

    /// Gives `write` the label and what names the version, so that no two have the same bytes: a
    /// label and a name have no 0x00 in them.
    fn write_labelled(&self, label: &[u8], write: &mut dyn FnMut(&[u8])) {
        write(label);
        write(&[0]);
        write(&self.keyspace.0);
        write(self.name.as_str().as_bytes());
        write(&[0]);
        write(&self.version.get().to_be_bytes());
    }
}

impl fmt::Display for Keyspace {
    /// As PostgreSQL shows a uuid.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, byte) in self.0.iter().enumerate() {
            if matches!(i, 4 | 6 | 8 | 10) {
                f.write_str("-")?;
            }
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

/// A *key check value*: tells whether a provider's answer is the key that the version had when it
/// was made, without telling the key.
///
/// It is the first 16 bytes of HMAC-SHA-256 (FIPS 198-1) under the data encryption key of
///
/// ```text
/// "encryption_ext:1:key check value" || 0x00 || keyspace (16 bytes) || name (UTF-8) || 0x00
///     || version (32 bits, big-endian)
/// ```
///
/// A name has no 0x00 in it, so no two versions have the same input.
#[derive(Clone, Copy)]
pub struct CheckValue([u8; Self::LEN]);

impl CheckValue {
    /// Its length in bytes.
    pub const LEN: usize = 16;

    const LABEL: &'static [u8] = b"encryption_ext:1:key check value";

    /// The check value of `key` as version `id`.
    #[must_use]
    pub fn of(key: &DataKey, id: &VersionId<'_>) -> Self {
        let mut value = [0; Self::LEN];
        let code = Zeroizing::new(<[u8; 32]>::from(Self::code(key, id).finalize().into_bytes()));
        value.copy_from_slice(&code[..Self::LEN]);
        Self(value)
    }

    /// A check value that was stored.
    #[must_use]
    pub fn from_bytes(bytes: [u8; Self::LEN]) -> Self {
        Self(bytes)
    }

    /// The value, to be stored.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; Self::LEN] {
        &self.0
    }

    /// Whether `key` is the key of version `id` that this value was made for. Takes the same time
    /// whatever the answer.
    #[must_use]
    pub fn matches(&self, key: &DataKey, id: &VersionId<'_>) -> bool {
        Self::code(key, id).verify_truncated_left(&self.0).is_ok()
    }

    fn code(key: &DataKey, id: &VersionId<'_>) -> Hmac<Sha256> {
        let mut code = <Hmac<Sha256> as KeyInit>::new_from_slice(key.expose())
            .expect("HMAC takes a key of any length");
        id.write_labelled(Self::LABEL, &mut |bytes| code.update(bytes));
        code
    }
}

impl PartialEq for CheckValue {
    /// Takes the same time whatever the answer.
    fn eq(&self, other: &Self) -> bool {
        self.0.iter().zip(&other.0).fold(0, |differences, (a, b)| differences | (a ^ b)) == 0
    }
}

impl Eq for CheckValue {}

impl fmt::Display for CheckValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for CheckValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CheckValue({self})")
    }
}

/// The purposes that the database key has a subkey for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Subkey {
    /// Values that have no key yet: literals and parameters before their coercion to a column.
    Transit,
    /// The keyed digests of indexes.
    Digest,
    /// The lifecycle log.
    Log,
}

impl Subkey {
    /// Derives this subkey from the database key: HKDF-SHA-256 (RFC 5869) with no salt, and the
    /// purpose as the info.
    #[must_use]
    pub fn derive(self, database_key: &DataKey) -> DataKey {
        let mut subkey = Zeroizing::new([0; DataKey::LEN]);
        Hkdf::<Sha256>::new(None, database_key.expose())
            .expand(self.info(), &mut *subkey)
            .expect("HKDF-SHA-256 gives up to 8160 bytes");
        DataKey::new(*subkey)
    }

    fn info(self) -> &'static [u8] {
        match self {
            Self::Transit => b"encryption_ext:1:transit",
            Self::Digest => b"encryption_ext:1:digest",
            Self::Log => b"encryption_ext:1:log",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> DataKey {
        DataKey::new(std::array::from_fn(|i| u8::try_from(i).unwrap()))
    }

    const KEYSPACE: Keyspace = Keyspace([
        0xa0, 0xa1, 0xa2, 0xa3, 0xa4, 0xa5, 0xa6, 0xa7, 0xa8, 0xa9, 0xaa, 0xab, 0xac, 0xad, 0xae,
        0xaf,
    ]);

    #[test]
    fn a_version_is_named_for_providers() {
        let name = KeyName::parse("user_pii").unwrap();
        let id = VersionId { keyspace: KEYSPACE, name: &name, version: KeyVersion::FIRST };
        assert_eq!(
            id.encryption_context().map(|(name, value)| format!("{name}={value}")),
            ["keyspace=a0a1a2a3-a4a5-a6a7-a8a9-aaabacadaeaf", "key=user_pii", "version=1"]
        );
        let mut data = b"encryption_ext:1:wrapped key\0".to_vec();
        data.extend_from_slice(&KEYSPACE.0);
        data.extend_from_slice(b"user_pii\0\0\0\0\x01");
        assert_eq!(id.additional_data(), data);
    }

    fn check_value(name: &str, version: u32) -> String {
        let name = KeyName::parse(name).unwrap();
        let version = KeyVersion::new(version).unwrap();
        CheckValue::of(&key(), &VersionId { keyspace: KEYSPACE, name: &name, version }).to_string()
    }

    /// Computed with Python's `hmac` and `hashlib`.
    #[test]
    fn check_values_are_known() {
        assert_eq!(check_value("user_pii", 1), "1584769b3c42c22f60d314d7e5584050");
        assert_eq!(check_value("user_pii", 2), "a29b128025d66d04081cc2e84ddaefd0");
        assert_eq!(check_value("a", 0x7fff_ffff), "b7b52a8bbb1324334125b5bdc8189ff8");
    }

    #[test]
    fn a_check_value_matches_its_key_and_version_alone() {
        let name = KeyName::parse("user_pii").unwrap();
        let other_name = KeyName::parse("user_pij").unwrap();
        let id = VersionId { keyspace: KEYSPACE, name: &name, version: KeyVersion::FIRST };
        let value = CheckValue::from_bytes(*CheckValue::of(&key(), &id).as_bytes());
        assert!(value.matches(&key(), &id));
        assert_eq!(value, CheckValue::of(&key(), &id));

        let mut other_key = *key().expose();
        other_key[31] ^= 1;
        assert!(!value.matches(&DataKey::new(other_key), &id));
        assert!(!value.matches(&key(), &VersionId { name: &other_name, ..id }));
        assert!(!value.matches(&key(), &VersionId { keyspace: Keyspace([0; 16]), ..id }));
        let second = KeyVersion::FIRST.next().unwrap();
        assert!(!value.matches(&key(), &VersionId { version: second, ..id }));
        assert_ne!(value, CheckValue::from_bytes([0; 16]));
    }

    /// Computed with Python's `hmac` and `hashlib` from RFC 5869.
    #[test]
    fn subkeys_are_known() {
        let hex = |subkey: Subkey| -> String {
            subkey.derive(&key()).expose().iter().map(|b| format!("{b:02x}")).collect()
        };
        assert_eq!(
            hex(Subkey::Transit),
            "9cc9737fab3bf51c46502b60e3f13b03f80d41f2362f07613724403105070130"
        );
        assert_eq!(
            hex(Subkey::Digest),
            "21abb01d57478228aac7bbd158aff05b75853689714996029011f85b3c0b95c2"
        );
        assert_eq!(
            hex(Subkey::Log),
            "1156bd1074c571039e114a0d5332f96c55b06d7698d9019589d327444a2fe199"
        );
    }
}
