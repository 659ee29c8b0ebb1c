//! Known answers for AES-256-GCM and XAES-256-GCM, from those who specified them.

use shake::Shake128;
use shake::digest::{ExtendableOutput, Update, XofReader};

use super::Xaes256Gcm;
use crate::gcm::{Aes256Gcm, Failed};

#[path = "../../tests/vectors/mod.rs"]
mod vectors;

const GCM_ENCRYPT: &str = include_str!("../../tests/vectors/nist_gcm_encrypt_256.rsp");
const GCM_DECRYPT: &str = include_str!("../../tests/vectors/nist_gcm_decrypt_256.rsp");

#[test]
fn nist_gcm_encrypt() {
    let vectors = vectors::read(GCM_ENCRYPT);
    assert_eq!(vectors.len(), 50);
    for v in vectors {
        let cipher = Aes256Gcm::new(&v.array("Key"));
        let (ciphertext, tag) = seal(&cipher, &v.array("IV"), &v.bytes("AAD"), &v.bytes("PT"));
        assert_eq!(ciphertext, v.bytes("CT"), "{}", v.text("Key"));
        assert_eq!(tag, v.array("Tag"), "{}", v.text("Key"));
    }
}

#[test]
fn nist_gcm_decrypt() {
    let vectors = vectors::read(GCM_DECRYPT);
    assert_eq!(vectors.len(), 50);
    assert_eq!(vectors.iter().filter(|v| v.has("FAIL")).count(), 25);
    for v in vectors {
        let cipher = Aes256Gcm::new(&v.array("Key"));
        let opened =
            open(&cipher, &v.array("IV"), &v.bytes("AAD"), &v.bytes("CT"), &v.array("Tag"));
        let expected = if v.has("FAIL") { Err(Failed) } else { Ok(v.bytes("PT")) };
        assert_eq!(opened, expected, "{}", v.text("Key"));
    }
}

/// The two vectors of <https://c2sp.org/XAES-256-GCM>: the most significant bit of L is clear in
/// the first and set in the second.
#[test]
fn c2sp_vectors() {
    const NONCE: &[u8; 24] = b"ABCDEFGHIJKLMNOPQRSTUVWX";
    struct Vector {
        key: [u8; 32],
        k1: u128,
        additional_data: &'static [u8],
        ciphertext: [u8; 12],
        tag: u128,
    }
    let vectors = [
        Vector {
            key: [0x01; 32],
            k1: 0xe531954aca063d5b8d9c47a47d4cc6f0,
            additional_data: b"",
            ciphertext: *b"\xce\x54\x6e\xf6\x3c\x9c\xc6\x07\x65\x92\x36\x09",
            tag: 0xb33a9a1974e96e52daf2fcf7075e2271,
        },
        Vector {
            key: [0x03; 32],
            k1: 0x23810ec50edb99f374409466ed1f4b7b,
            additional_data: b"c2sp.org/XAES-256-GCM",
            ciphertext: *b"\x98\x6e\xc1\x83\x25\x93\xdf\x54\x43\xa1\x79\x43",
            tag: 0x7fd083bf3fdb41abd740a21f71eb769d,
        },
    ];
    for v in vectors {
        let xaes = Xaes256Gcm::new(&v.key);
        assert_eq!(u128::from_be_bytes(xaes.k1), v.k1);
        let (cipher, counter) = derive(&xaes, NONCE);
        let (ciphertext, tag) = seal(&cipher, &counter, v.additional_data, b"XAES-256-GCM");
        assert_eq!(ciphertext, v.ciphertext);
        assert_eq!(u128::from_be_bytes(tag), v.tag);
    }
}

#[test]
fn c2sp_accumulated_10_000() {
    assert_eq!(
        accumulated(10_000),
        "e6b9edf2df6cec60c8cbd864e2211b597fb69a529160cd040d56c0c210081939"
    );
}

#[test]
fn c2sp_accumulated_1_000_000() {
    assert_eq!(
        accumulated(1_000_000),
        "2163ae1445985a30b60585ee67daa55674df06901b890593e824b8a7c885ab15"
    );
}

/// "Accumulated randomized tests" of <https://c2sp.org/XAES-256-GCM>: inputs are read from one
/// SHAKE128, the ciphertexts are hashed with another.
fn accumulated(iterations: u32) -> String {
    let mut random = Shake128::default().finalize_xof();
    let mut hash = Shake128::default();
    for _ in 0..iterations {
        let key = read_array(&mut random);
        let nonce = read_array(&mut random);
        let plaintext = read_opaque(&mut random);
        let additional_data = read_opaque(&mut random);

        let (cipher, counter) = derive(&Xaes256Gcm::new(&key), &nonce);
        let (ciphertext, tag) = seal(&cipher, &counter, &additional_data, &plaintext);
        let opened = open(&cipher, &counter, &additional_data, &ciphertext, &tag);
        assert_eq!(opened, Ok(plaintext));

        hash.update(&ciphertext);
        hash.update(&tag);
    }
    base16ct::lower::encode_string(&read_array::<32>(&mut hash.finalize_xof()))
}

fn read_array<const N: usize>(random: &mut impl XofReader) -> [u8; N] {
    let mut bytes = [0; N];
    random.read(&mut bytes);
    bytes
}

/// `opaque<0..255>` in the notation of RFC 8446, section 3: a byte of length, then the bytes.
fn read_opaque(random: &mut impl XofReader) -> Vec<u8> {
    let [len] = read_array(random);
    let mut bytes = vec![0; len.into()];
    random.read(&mut bytes);
    bytes
}

fn derive(xaes: &Xaes256Gcm, nonce: &[u8; 24]) -> (Aes256Gcm, [u8; 12]) {
    let (salt, counter) = nonce.split_at(12);
    (xaes.derive(salt.try_into().unwrap()), counter.try_into().unwrap())
}

fn seal(
    cipher: &Aes256Gcm,
    nonce: &[u8; 12],
    additional_data: &[u8],
    plaintext: &[u8],
) -> (Vec<u8>, [u8; 16]) {
    let mut ciphertext = vec![1; plaintext.len()];
    let tag = cipher.seal(nonce, additional_data, plaintext, &mut ciphertext).unwrap();
    (ciphertext, tag)
}

fn open(
    cipher: &Aes256Gcm,
    nonce: &[u8; 12],
    additional_data: &[u8],
    ciphertext: &[u8],
    tag: &[u8; 16],
) -> Result<Vec<u8>, Failed> {
    let mut plaintext = vec![1; ciphertext.len()];
    let opened = cipher.open(nonce, additional_data, ciphertext, tag, &mut plaintext);
    if opened.is_err() {
        assert_eq!(plaintext, vec![0; ciphertext.len()]);
    }
    opened.map(|()| plaintext)
}
