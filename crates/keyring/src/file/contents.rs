//! What is in a keyring file.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use envelope::{DataKey, KeyName, KeyVersion};
use serde::Deserialize;
use serde::de::{Deserializer, Error, MapAccess, Visitor};
use zeroize::Zeroizing;

use crate::provider::{self, KeyTextError};

/// The number that a keyring file of this format begins with.
const FORMAT: u32 = 1;

/// The keys of a keyring file, by name and version.
#[derive(Default)]
pub(super) struct Keyring(BTreeMap<KeyName, BTreeMap<KeyVersion, DataKey>>);

impl Keyring {
    /// Takes the contents of a keyring file. No error shows any of it but names and numbers.
    pub(super) fn parse(contents: &[u8]) -> Result<Self, Malformed> {
        // Of the messages of serde_json only the place is used: they quote what they met.
        let document: Document<'_> = serde_json::from_slice(contents)
            .map_err(|error| Malformed::Json { line: error.line(), column: error.column() })?;
        if document.encryption_ext_keyring != FORMAT {
            return Err(Malformed::Format(document.encryption_ext_keyring));
        }
        let mut keyring = Self::default();
        for (name, versions) in document.keys.0 {
            let name = KeyName::parse(name).map_err(|_| Malformed::Name)?;
            for (number, key) in versions.0 {
                let number = self::number(number).ok_or_else(|| Malformed::Number(name.clone()))?;
                let key = provider::key_from_base64(key).map_err(|why| Malformed::Key {
                    name: name.clone(),
                    number,
                    why,
                })?;
                keyring.insert(&name, number, key);
            }
        }
        Ok(keyring)
    }

    /// The contents of a keyring file with these keys.
    pub(super) fn to_json(&self) -> Zeroizing<Vec<u8>> {
        // Enough for all of it, so that the vector never moves and leaves keys behind.
        let size = |(name, versions): (&KeyName, &BTreeMap<_, _>)| {
            name.as_str().len() + 32 + versions.len() * 80
        };
        let mut json =
            Zeroizing::new(Vec::with_capacity(64 + self.0.iter().map(size).sum::<usize>()));
        json.extend_from_slice(b"{\n  \"encryption_ext_keyring\": 1,\n  \"keys\": {");
        for (i, (name, versions)) in self.0.iter().enumerate() {
            json.extend_from_slice(if i == 0 { b"\n" } else { b",\n" });
            json.extend_from_slice(format!("    \"{name}\": {{").as_bytes());
            for (i, (number, key)) in versions.iter().enumerate() {
                json.extend_from_slice(if i == 0 { b"\n" } else { b",\n" });
                json.extend_from_slice(format!("      \"{number}\": \"").as_bytes());
                let mut text = Zeroizing::new([0; 44]);
                let len = STANDARD
                    .encode_slice(key.expose(), &mut *text)
                    .expect("32 bytes are 44 characters of base64");
                json.extend_from_slice(&text[..len]);
                json.push(b'"');
            }
            json.extend_from_slice(b"\n    }");
        }
        json.extend_from_slice(b"\n  }\n}\n");
        json
    }

    /// The names of the keys, in order.
    pub(super) fn names(&self) -> impl Iterator<Item = &KeyName> {
        self.0.keys()
    }

    /// The versions of a key, in ascending order.
    pub(super) fn versions(&self, name: &KeyName) -> impl Iterator<Item = (KeyVersion, &DataKey)> {
        self.0.get(name).into_iter().flatten().map(|(number, key)| (*number, key))
    }

    /// Adds a version.
    pub(super) fn insert(&mut self, name: &KeyName, number: KeyVersion, key: DataKey) {
        self.0.entry(name.clone()).or_default().insert(number, key);
    }
}

/// The number of a version, in the one way of writing it.
pub(super) fn number(text: &str) -> Option<KeyVersion> {
    let number = KeyVersion::new(text.parse().ok()?)?;
    (number.to_string() == text).then_some(number)
}

/// Why the contents of a file are not a keyring.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Malformed {
    Json { line: usize, column: usize },
    Format(u32),
    Name,
    Number(KeyName),
    Key { name: KeyName, number: KeyVersion, why: KeyTextError },
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Json { line, column } => {
                write!(f, "it is not the JSON of a keyring at line {line}, column {column}")
            }
            Self::Format(format) => write!(f, "its format {format} is not known"),
            Self::Name => f.write_str("it has a key with a name that no key can have"),
            Self::Number(name) => {
                write!(f, "key \"{name}\" has a version that is not a number from 1 to 2147483647")
            }
            Self::Key { name, number, why: KeyTextError::NotBase64 } => {
                write!(f, "version {number} of key \"{name}\" is not base64")
            }
            Self::Key { name, number, why: KeyTextError::Length { bytes } } => {
                write!(f, "version {number} of key \"{name}\" has {bytes} bytes instead of 32")
            }
        }
    }
}

/// The file as JSON. Strings are borrowed from it, so that no copy of a key has to be wiped; JSON's
/// escapes, which would need one, are not taken.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document<'a> {
    encryption_ext_keyring: u32,
    #[serde(borrow)]
    keys: Members<'a, Members<'a, &'a str>>,
}

/// A JSON object in which no name comes twice: of two keys with one name, one would be lost.
struct Members<'a, T>(BTreeMap<&'a str, T>);

impl<'de: 'a, 'a, T: Deserialize<'de>> Deserialize<'de> for Members<'a, T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(MembersVisitor(PhantomData))
    }
}

struct MembersVisitor<'a, T>(PhantomData<(&'a str, T)>);

impl<'de: 'a, 'a, T: Deserialize<'de>> Visitor<'de> for MembersVisitor<'a, T> {
    type Value = Members<'a, T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut members = BTreeMap::new();
        while let Some((name, value)) = map.next_entry::<&'de str, T>()? {
            if members.insert(name, value).is_some() {
                return Err(A::Error::custom("a name that comes twice"));
            }
        }
        Ok(Members(members))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";

    fn refused(contents: &str) -> Malformed {
        Keyring::parse(contents.as_bytes()).err().unwrap()
    }

    #[test]
    fn what_is_written_is_read() {
        let mut keyring = Keyring::default();
        assert!(Keyring::parse(&keyring.to_json()).unwrap().0.is_empty());
        let names = ["a", "user_pii", &"z".repeat(63)].map(|n| KeyName::parse(n).unwrap());
        for (n, name) in names.iter().enumerate() {
            for number in [1, 2, 10, 2_147_483_647] {
                let key = DataKey::new([u8::try_from(n).unwrap(); 32]);
                keyring.insert(name, KeyVersion::new(number).unwrap(), key);
            }
        }
        let json = keyring.to_json();
        let read = Keyring::parse(&json).unwrap();
        for (n, name) in names.iter().enumerate() {
            let versions: Vec<_> = read.versions(name).map(|(number, _)| number.get()).collect();
            assert_eq!(versions, [1, 2, 10, 2_147_483_647]);
            let byte = u8::try_from(n).unwrap();
            assert!(read.versions(name).all(|(_, key)| key.expose() == &[byte; 32]));
        }
    }

    #[test]
    fn the_vector_never_moves() {
        let mut keyring = Keyring::default();
        for i in 0..50 {
            let name = KeyName::parse(&format!("k{i}{}", "x".repeat(60))).unwrap();
            for number in 2_147_483_600..2_147_483_647 {
                keyring.insert(&name, KeyVersion::new(number).unwrap(), DataKey::new([1; 32]));
            }
        }
        let json = keyring.to_json();
        let empty = Keyring::default().to_json();
        let size = |k: &Keyring| -> usize {
            64 + k.0.iter().map(|(n, v)| n.as_str().len() + 32 + v.len() * 80).sum::<usize>()
        };
        assert_eq!(json.capacity(), size(&keyring));
        assert_eq!(empty.capacity(), size(&Keyring::default()));
    }

    #[test]
    fn what_is_not_a_keyring_is_refused() {
        let whole = format!(r#"{{"encryption_ext_keyring":1,"keys":{{"a":{{"1":"{KEY}"}}}}}}"#);
        assert!(Keyring::parse(whole.as_bytes()).is_ok());
        for len in 0..whole.len() {
            assert!(matches!(refused(&whole[..len]), Malformed::Json { .. }), "{len} bytes");
        }
        for contents in [
            "[]",
            "null",
            "{}",
            r#"{"encryption_ext_keyring":1}"#,
            r#"{"keys":{}}"#,
            r#"{"encryption_ext_keyring":"1","keys":{}}"#,
            r#"{"encryption_ext_keyring":1,"keys":[]}"#,
            r#"{"encryption_ext_keyring":1,"keys":{},"more":1}"#,
            r#"{"encryption_ext_keyring":1,"keys":{},"keys":{}}"#,
            r#"{"encryption_ext_keyring":1,"keys":{"a":{},"a":{}}}"#,
            r#"{"encryption_ext_keyring":1,"keys":{"a":{"1":1}}}"#,
            r#"{"encryption_ext_keyring":1,"keys":{}} x"#,
        ] {
            assert!(matches!(refused(contents), Malformed::Json { .. }), "{contents}");
        }
        let twice =
            format!(r#"{{"encryption_ext_keyring":1,"keys":{{"a":{{"1":"{KEY}","1":"{KEY}"}}}}}}"#);
        assert!(matches!(refused(&twice), Malformed::Json { .. }));
        assert_eq!(refused(r#"{"encryption_ext_keyring":2,"keys":{}}"#), Malformed::Format(2));
        for name in ["", "A", "../a", "-a", "a b"] {
            assert_eq!(refused(&whole.replace("\"a\"", &format!("\"{name}\""))), Malformed::Name);
        }
        for number in ["", "0", "01", "+1", "-1", "1.0", "2147483648", "4294967297", " 1"] {
            let contents = whole.replace("\"1\"", &format!("\"{number}\""));
            assert!(matches!(refused(&contents), Malformed::Number(_)), "{number}");
        }
        for (key, why) in [
            ("", KeyTextError::Length { bytes: 0 }),
            ("AAAA", KeyTextError::Length { bytes: 3 }),
            ("!!!!", KeyTextError::NotBase64),
        ] {
            let contents = whole.replace(KEY, key);
            assert!(matches!(refused(&contents), Malformed::Key { why: w, .. } if w == why));
        }
    }

    #[test]
    fn errors_do_not_show_contents() {
        let contents = format!(r#"{{"encryption_ext_keyring":1,"keys":{{"a":"{KEY}"}}}}"#);
        let message = refused(&contents).to_string();
        assert!(!message.contains("AAEC"), "{message}");
    }
}
