//! XAES-256-GCM: AES-256-GCM with a nonce of 192 bits, <https://c2sp.org/XAES-256-GCM>.
//!
//! The first half of the nonce (the salt) and the key give a derived key, by the counter-mode KDF
//! of NIST SP 800-108r1 with AES-256-CMAC; the derived key and the second half of the nonce then
//! encrypt one message with AES-256-GCM of NIST SP 800-38D. The derivation is here, rather than a
//! crate's, because what it derives must be kept: it costs more than sealing a short value does.
//!
//! The numbered steps are those of the specification's "Detailed key derivation algorithm".

#[cfg(test)]
mod known_answers;

use aes::Aes256Enc;
use aes::cipher::{BlockCipherEncrypt, KeyInit};
use zeroize::{ZeroizeOnDrop, Zeroizing};

use crate::format::SALT_LEN;
use crate::gcm::{Aes256Gcm, KEY_LEN};

const BLOCK_LEN: usize = 16;

/// What depends on the key alone: its AES schedule and the CMAC subkey K1.
#[derive(ZeroizeOnDrop)]
pub(crate) struct Xaes256Gcm {
    aes: Aes256Enc,
    k1: [u8; BLOCK_LEN],
}

impl Xaes256Gcm {
    /// Steps 1 and 2. The caller overwrites the stack below it.
    pub(crate) fn new(key: &[u8; KEY_LEN]) -> Self {
        let aes = Aes256Enc::new(key.into());
        let mut l = Zeroizing::new([0; BLOCK_LEN]);
        aes.encrypt_block((&mut *l).into());
        Self { aes, k1: double(&l) }
    }

    /// Steps 3 to 5: the cipher for every nonce that begins with `salt`; its own nonce is the rest
    /// of that one (step 6). The caller overwrites the stack below it.
    pub(crate) fn derive(&self, salt: &[u8; SALT_LEN]) -> Aes256Gcm {
        let mut key = Zeroizing::new([0; KEY_LEN]);
        let (blocks, _) = key.as_chunks_mut::<BLOCK_LEN>();
        for (counter, block) in (1..).zip(blocks) {
            block[..4].copy_from_slice(&[0, counter, b'X', 0]);
            block[4..].copy_from_slice(salt);
            block.iter_mut().zip(&self.k1).for_each(|(byte, k1)| *byte ^= k1);
            self.aes.encrypt_block(block.into());
        }
        Aes256Gcm::new(&key)
    }
}

/// Multiplies by x in GF(2^128), as SP 800-38B, section 6.1, makes K1 from L; in constant time.
fn double(l: &[u8; BLOCK_LEN]) -> [u8; BLOCK_LEN] {
    let l = u128::from_be_bytes(*l);
    let carry = l >> 127;
    ((l << 1) ^ (carry * 0b1000_0111)).to_be_bytes()
}
