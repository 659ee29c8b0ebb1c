//! Any text can be tried as armor, and bytes have one armor only.
#![no_main]

use envelope::{Sealed, armor};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|base64: &[u8]| {
    let text = [b"enc:1:", base64].concat();
    let decoded = armor::decode(&text);
    let is_value = decoded.as_ref().is_ok_and(|payload| Sealed::parse(payload).is_ok());
    assert_eq!(armor::looks_like_armor(&text), is_value);
    if let Ok(payload) = decoded {
        assert_eq!(armor::encode(&payload).as_bytes(), text);
    }
});
