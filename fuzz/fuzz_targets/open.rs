//! No bytes that weren't sealed open, and none of their plaintext is released.
#![no_main]

use std::sync::LazyLock;

use envelope::{DataKey, KeyCipher, KeyName, Sealed};
use libfuzzer_sys::fuzz_target;

static KEY: LazyLock<KeyCipher> =
    LazyLock::new(|| KeyCipher::new(&DataKey::generate().expect("the system has random bytes")));
static NAME: LazyLock<KeyName> =
    LazyLock::new(|| KeyName::parse("user_pii").expect("it is a key's name"));

fuzz_target!(|bytes: &[u8]| {
    let Ok(sealed) = Sealed::parse(bytes) else { return };
    let mut out = vec![0x5a; sealed.plaintext_len()];
    let cipher = KEY.derive(sealed.salt());
    assert!(cipher.open(&sealed, &NAME, &mut out).is_err());
    assert!(out.iter().all(|byte| *byte == 0x5a));
});
