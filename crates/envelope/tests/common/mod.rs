//! Values for tests.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]
#![allow(dead_code, reason = "not every test needs every helper")]

use envelope::{
    DataKey, Header, KeyCipher, KeyName, KeyVersion, NonceSource, OVERHEAD, OpenError,
    PlaintextKind, Sealed,
};

/// A key that isn't worth keeping secret.
pub const KEY: [u8; 32] = *b"a key for the tests, of 32 bytes";

pub fn key() -> KeyCipher {
    KeyCipher::new(&DataKey::new(KEY))
}

pub fn name(name: &str) -> KeyName {
    KeyName::parse(name).unwrap()
}

/// Seals `plaintext` as version 1 of the key [`KEY`], under `name` and with a new nonce.
pub fn seal(kind: PlaintextKind, name: &KeyName, plaintext: &[u8]) -> Vec<u8> {
    let nonce = NonceSource::new().next(1, plaintext.len()).unwrap();
    let cipher = key().derive(nonce.salt());
    let header = Header { kind, key_id: name.id(), key_version: KeyVersion::FIRST, nonce };
    let mut value = vec![0; plaintext.len() + OVERHEAD];
    cipher.seal(header, name, plaintext, &mut value).unwrap();
    value
}

pub fn open(key: &KeyCipher, name: &KeyName, value: &[u8]) -> Result<Vec<u8>, OpenError> {
    let sealed = Sealed::parse(value).unwrap();
    let mut plaintext = vec![0; sealed.plaintext_len()];
    key.derive(sealed.salt()).open(&sealed, name, &mut plaintext)?;
    Ok(plaintext)
}
