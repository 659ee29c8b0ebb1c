//! Keyed digests of plaintexts: what indexes hold in place of values.
//!
//! Who has the digests and not the key learns which plaintexts are equal, and nothing else of them.

use std::fmt;

use envelope::DataKey;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use zeroize::Zeroizing;

/// The key of digests: HMAC-SHA-256 (FIPS 198-1) with the key already taken in, so that a short
/// plaintext costs two blocks of SHA-256.
///
/// All of it is inside of the value, so that memory which wipes itself wipes it.
#[derive(Clone)]
pub struct DigestKey(Hmac<Sha256>);

/// A digest: the first 16 bytes of the code.
pub type Digest = [u8; DIGEST_LEN];

/// Length in bytes of a digest.
pub const DIGEST_LEN: usize = 16;

/// What is digested of a plaintext.
///
/// The code is computed over
///
/// ```text
/// 0x01 || class || form || length of domain (1 byte) || domain || bytes
/// ```
///
/// in which the length of the domain keeps the parts apart; so no two inputs have the same bytes. The
/// key is the database key's subkey for digests, which has no other use.
#[derive(Clone, Copy, Debug)]
pub struct DigestInput<'a> {
    /// What the bytes are.
    pub class: Class,
    /// What was done to the plaintext before.
    pub form: Form,
    /// What keeps the digests of one column apart from those of another; mostly empty. At most
    /// [`MAX_DOMAIN_LEN`] bytes.
    pub domain: &'a [u8],
    /// The plaintext, in its form.
    pub bytes: &'a [u8],
}

/// Length in bytes of the longest domain.
pub const MAX_DOMAIN_LEN: usize = 255;

/// The first byte of what is digested.
const VERSION: u8 = 1;

/// What the bytes that are digested are. Values that can be equal have the same class.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Class {
    /// Text in UTF-8.
    Text = 1,
    /// Bytes (PostgreSQL's `bytea`).
    Bytea = 2,
    /// Text as the database holds it, where that has no faithful conversion to UTF-8.
    TextInDatabaseEncoding = 3,
    /// A text's 64-bit hash by the rules of a nondeterministic collation, under which texts with
    /// other bytes are equal.
    CollationHash = 4,
}

/// What is done to a plaintext before it is digested. See the documentation of `enc_digest`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Form {
    /// Nothing.
    AsIs = 0,
    /// Lower case, by PostgreSQL's `lower`.
    Lower = 1,
    /// Unicode's NFKC_Casefold.
    NfkcCasefold = 2,
    /// The ASCII digits alone.
    Digits = 3,
}

impl DigestKey {
    /// Takes the database key's subkey for digests.
    #[must_use]
    pub fn new(subkey: &DataKey) -> Self {
        let code = <Hmac<Sha256> as KeyInit>::new_from_slice(subkey.expose());
        Self(code.expect("HMAC takes a key of any length"))
    }

    /// The digest of `input`.
    ///
    /// # Panics
    ///
    /// If its domain is longer than [`MAX_DOMAIN_LEN`].
    #[must_use]
    pub fn digest(&self, input: &DigestInput<'_>) -> Digest {
        let DigestInput { class, form, domain, bytes } = *input;
        let domain_len = u8::try_from(domain.len()).expect("a domain has at most 255 bytes");
        let mut code = self.0.clone();
        code.update(&[VERSION, class as u8, form as u8, domain_len]);
        code.update(domain);
        code.update(bytes);
        let code = Zeroizing::new(<[u8; 32]>::from(code.finalize().into_bytes()));
        let mut digest = [0; DIGEST_LEN];
        digest.copy_from_slice(&code[..DIGEST_LEN]);
        digest
    }
}

impl fmt::Debug for DigestKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DigestKey(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(class: Class, form: Form, domain: &[u8], bytes: &[u8]) -> String {
        let key = DigestKey::new(&DataKey::new(std::array::from_fn(|i| u8::try_from(i).unwrap())));
        let digest = key.digest(&DigestInput { class, form, domain, bytes });
        digest.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Computed with Python's `hmac`, as in
    /// `hmac.digest(bytes(range(32)), bytes([1, 1, 0, 0]) + b"alice", "sha256")[:16].hex()`.
    #[test]
    fn digests_are_known() {
        for (class, form, domain, bytes, expected) in [
            (Class::Text, Form::AsIs, "", "", "c32b023aeb03b832d01a7e2cb990729a"),
            (Class::Text, Form::AsIs, "", "alice", "f25e0c010ece498ae076eb83c73fb187"),
            (Class::Bytea, Form::AsIs, "", "alice", "9caa0d97f15058fc5f2f88c7b7676158"),
            (Class::Text, Form::Lower, "users", "alice", "0914371a2a5fa2ca1c3f0c5737e01c0d"),
            (
                Class::TextInDatabaseEncoding,
                Form::Digits,
                "d",
                "12",
                "ddfa227749357bb96852e2e28ee60d3f",
            ),
            (
                Class::CollationHash,
                Form::NfkcCasefold,
                "",
                "12345678",
                "bc48c63d51b3e8ca28194f730d9a91a2",
            ),
        ] {
            assert_eq!(digest(class, form, domain.as_bytes(), bytes.as_bytes()), expected);
        }
        let long = "x".repeat(1000);
        assert_eq!(
            digest(Class::Text, Form::AsIs, b"", long.as_bytes()),
            "6c1d6eb474cf92f79bbe2bd7fb9cb8a8"
        );
    }

    #[test]
    fn no_two_inputs_have_the_same_bytes() {
        let digest = |domain: &[u8], bytes: &[u8]| digest(Class::Text, Form::AsIs, domain, bytes);
        assert_ne!(digest(b"a", b"bc"), digest(b"ab", b"c"));
        assert_ne!(digest(b"", b"abc"), digest(b"abc", b""));
    }
}
