//! Any bytes can be parsed, and a value that was parsed is put together again as it was.
#![no_main]

use envelope::{HEADER_LEN, Header, OVERHEAD, Sealed};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let header = Header::parse(bytes);
    let Ok(sealed) = Sealed::parse(bytes) else { return };
    let header = header.expect("what begins a value is a header");
    assert_eq!(
        (sealed.kind(), sealed.key_id(), sealed.key_version(), sealed.salt()),
        (header.kind, header.key_id, header.key_version, header.nonce.salt())
    );

    let mut written = [0; HEADER_LEN];
    header.write(&mut written);
    assert_eq!(written, bytes[..HEADER_LEN]);
    assert_eq!(sealed.plaintext_len(), bytes.len() - OVERHEAD);
    assert_eq!(sealed.ciphertext(), &bytes[HEADER_LEN..][..sealed.plaintext_len()]);
});
