//! AES-256-GCM of NIST SP 800-38D with a nonce of 96 bits and a tag of 128. Nothing else here knows which
//! library does it.
//!
//! It is `ring`'s, which measures a third less than the `aes-gcm` crate for values of 32 bytes and less than
//! half for long ones (`benches/run cipher`), and which is here anyway, for TLS.

use std::fmt;
use std::hint::black_box;

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use zeroize::ZeroizeOnDrop;

use crate::format::TAG_LEN;

pub(crate) const KEY_LEN: usize = 32;
pub(crate) const NONCE_LEN: usize = 12;

/// A key, as its round keys and its table for GHASH.
pub(crate) struct Aes256Gcm(LessSafeKey);

/// A message is longer than the standard allows, or not authentic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Failed;

impl Aes256Gcm {
    /// Sets up `key`. The caller overwrites the stack below it.
    pub(crate) fn new(key: &[u8; KEY_LEN]) -> Self {
        Self(set_up(key))
    }

    /// Encrypts `plaintext` into `ciphertext`, which is as long, and returns the tag.
    ///
    /// # Errors
    ///
    /// If the plaintext is longer than 2^36 - 32 bytes (SP 800-38D, section 5.2.1.1).
    #[inline]
    pub(crate) fn seal(
        &self,
        nonce: &[u8; NONCE_LEN],
        additional_data: &[u8],
        plaintext: &[u8],
        ciphertext: &mut [u8],
    ) -> Result<[u8; TAG_LEN], Failed> {
        ciphertext.copy_from_slice(plaintext);
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let tag = self
            .0
            .seal_in_place_separate_tag(nonce, Aad::from(additional_data), ciphertext)
            .map_err(|_| Failed)?;
        Ok(tag.as_ref().try_into().expect("the tag has 16 bytes"))
    }

    /// Decrypts `ciphertext` into `plaintext`, which is as long.
    ///
    /// # Errors
    ///
    /// As for [`Aes256Gcm::open_in_place`]. `plaintext` is then all zeroes.
    #[inline]
    pub(crate) fn open(
        &self,
        nonce: &[u8; NONCE_LEN],
        additional_data: &[u8],
        ciphertext: &[u8],
        tag: &[u8; TAG_LEN],
        plaintext: &mut [u8],
    ) -> Result<(), Failed> {
        plaintext.copy_from_slice(ciphertext);
        self.open_in_place(nonce, additional_data, tag, plaintext, 0)
    }

    /// Decrypts the ciphertext that begins at `start` of `memory` and ends with it; the plaintext begins where
    /// `memory` does.
    ///
    /// # Errors
    ///
    /// If it doesn't belong to this key, nonce, tag and additional data. `memory` is then all zeroes.
    #[inline]
    pub(crate) fn open_in_place(
        &self,
        nonce: &[u8; NONCE_LEN],
        additional_data: &[u8],
        tag: &[u8; TAG_LEN],
        memory: &mut [u8],
        start: usize,
    ) -> Result<(), Failed> {
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let aad = Aad::from(additional_data);
        let opened =
            self.0.open_in_place_separate_tag(nonce, aad, (*tag).into(), memory, start..).is_ok();
        if !opened {
            // The library decrypts before it knows.
            memory.fill(0);
            return Err(Failed);
        }
        Ok(())
    }
}

fn set_up(key: &[u8; KEY_LEN]) -> LessSafeKey {
    LessSafeKey::new(
        UnboundKey::new(&AES_256_GCM, key).expect("the key has the algorithm's length"),
    )
}

/// The library doesn't wipe its keys, which have all their bytes in themselves. They are overwritten by
/// another one, in a way that the compiler takes to be seen by somebody.
impl Drop for Aes256Gcm {
    fn drop(&mut self) {
        self.0 = set_up(&[0; KEY_LEN]);
        black_box(&self.0);
    }
}

impl ZeroizeOnDrop for Aes256Gcm {}

impl fmt::Debug for Aes256Gcm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Aes256Gcm(..)")
    }
}
