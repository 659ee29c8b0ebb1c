//! What a process makes of a version's bytes, once: ciphers and subkeys, in memory for secrets.

use envelope::{DataKey, KeyCipher};

use crate::digest::DigestKey;
use crate::secret::Secret;
use crate::version::Subkey;

/// What is kept of a version in place of its bytes.
#[derive(Debug)]
pub struct KeyMaterial {
    /// The cipher of its values.
    pub values: Secret<KeyCipher>,
    /// The key of the digests in indexes; only the database key has one.
    pub digest: Option<Secret<DigestKey>>,
    /// The key of the lifecycle log; only the database key has one.
    pub log: Option<Secret<DataKey>>,
}

impl KeyMaterial {
    /// What a column's key is for: its values.
    #[must_use]
    pub fn of_column_key(key: &DataKey) -> Self {
        Self { values: Secret::new(KeyCipher::new(key)), digest: None, log: None }
    }

    /// What the database key is for: a subkey for each purpose, and nothing under itself.
    #[must_use]
    pub fn of_database_key(key: &DataKey) -> Self {
        Self {
            values: Secret::new(KeyCipher::new(&Subkey::Transit.derive(key))),
            digest: Some(Secret::new(DigestKey::new(&Subkey::Digest.derive(key)))),
            log: Some(Secret::new(Subkey::Log.derive(key))),
        }
    }

    /// Whether all of it is kept out of swap space.
    #[must_use]
    pub fn is_locked(&self) -> bool {
        let Self { values, digest, log } = self;
        Secret::is_locked(values)
            && digest.as_ref().is_none_or(Secret::is_locked)
            && log.as_ref().is_none_or(Secret::is_locked)
    }
}

#[cfg(test)]
mod tests {
    use envelope::{Header, KeyName, KeyVersion, NonceSource, OVERHEAD, PlaintextKind, Sealed};

    use super::*;
    use crate::digest::{Class, DigestInput, Form};

    /// What one cipher seals another opens only if they are of the same key.
    fn opens(one: &KeyCipher, other: &KeyCipher) -> bool {
        let name = KeyName::parse("user_pii").unwrap();
        let nonce = NonceSource::new().next(std::process::id(), 5).unwrap();
        let salt = *nonce.salt();
        let header = Header {
            kind: PlaintextKind::Text,
            key_id: name.id(),
            key_version: KeyVersion::FIRST,
            nonce,
        };
        let mut value = vec![0; 5 + OVERHEAD];
        one.derive(&salt).seal(header, &name, b"hello", &mut value).unwrap();
        let sealed = Sealed::parse(&value).unwrap();
        let mut opened = vec![0; 5];
        other.derive(&salt).open(&sealed, &name, &mut opened).is_ok()
    }

    #[test]
    fn the_database_key_encrypts_under_its_transit_subkey() {
        let key = DataKey::new([7; 32]);
        let database = KeyMaterial::of_database_key(&key);
        assert!(opens(&database.values, &KeyCipher::new(&Subkey::Transit.derive(&key))));
        assert!(!opens(&database.values, &KeyCipher::new(&key)));
        let input =
            DigestInput { class: Class::Text, form: Form::AsIs, domain: b"", bytes: b"hello" };
        let digest = database.digest.as_ref().unwrap();
        let expected = DigestKey::new(&Subkey::Digest.derive(&key));
        assert_eq!(digest.digest(&input), expected.digest(&input));
        let log = database.log.as_ref().unwrap();
        assert_eq!(log.expose(), Subkey::Log.derive(&key).expose());

        let column = KeyMaterial::of_column_key(&key);
        assert!(opens(&column.values, &KeyCipher::new(&key)));
        assert!(column.digest.is_none() && column.log.is_none());
        assert!(column.is_locked());
        assert!(!format!("{column:?}").contains('7'));
    }

    /// A thousand keys in the cache fit into a mebibyte.
    #[test]
    fn the_cipher_is_small() {
        assert!(size_of::<KeyCipher>() <= 960, "{} bytes", size_of::<KeyCipher>());
        println!("KeyCipher: {} bytes", size_of::<KeyCipher>());
    }
}
