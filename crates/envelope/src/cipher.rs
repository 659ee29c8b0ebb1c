//! Seals plaintexts into values and opens values again.

use std::fmt;

use zeroize::{ZeroizeOnDrop, zeroize_stack};

use crate::format::{HEADER_LEN, Header, OVERHEAD, PREFIX_LEN, SALT_LEN, Sealed, TAG_LEN};
use crate::gcm::Aes256Gcm;
use crate::key::{DataKey, KeyName};
use crate::xaes::Xaes256Gcm;

/// How much of the stack is overwritten after a cipher was set up, in bytes.
///
/// Setting one up leaves keys in dead stack frames, where they would outlive the cipher until
/// something else happens to use as much stack: `tests/wiping.rs` finds them there when this is
/// missing. It takes less than 2 KiB; the rest is for other compilers and processors.
///
/// Sealing and opening may also spill round keys to the stack, which is not overwritten for every
/// value: it would cost as much as a short value does, and the next value would leave them again.
const SET_UP_STACK: usize = 8192;

/// What derives the ciphers of a data encryption key: its AES schedule and CMAC subkey.
///
/// It is as secret as the key. It is wiped when dropped, but a move leaves a copy behind, as with
/// any Rust value: an owner puts it where it is to stay, in a function that isn't inlined, and then
/// overwrites the stack with [`zeroize_stack`].
#[derive(ZeroizeOnDrop)]
pub struct KeyCipher(Xaes256Gcm);

impl KeyCipher {
    /// Sets up the derivation from `key`.
    #[must_use]
    pub fn new(key: &DataKey) -> Self {
        let cipher = Self::set_up(key);
        zeroize_stack::<SET_UP_STACK>();
        cipher
    }

    /// Derives the cipher for all values whose nonce begins with `salt`.
    ///
    /// This costs more than sealing a short value: keep the result, see
    /// [`DerivedCiphers`](crate::DerivedCiphers).
    #[must_use]
    pub fn derive(&self, salt: &[u8; SALT_LEN]) -> ValueCipher {
        let cipher = self.set_up_derived(salt);
        zeroize_stack::<SET_UP_STACK>();
        cipher
    }

    // Never inlined, so that what they leave on the stack is below the frame of their callers,
    // which is where `zeroize_stack` overwrites it.

    #[inline(never)]
    fn set_up(key: &DataKey) -> Self {
        Self(Xaes256Gcm::new(key.expose()))
    }

    #[inline(never)]
    fn set_up_derived(&self, salt: &[u8; SALT_LEN]) -> ValueCipher {
        ValueCipher(self.0.derive(salt))
    }
}

impl fmt::Debug for KeyCipher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyCipher(..)")
    }
}

/// The cipher for the values of one key version that share a salt.
///
/// It is wiped when dropped, and moved with the same care as a [`KeyCipher`]. It doesn't know which
/// key and salt it is for: with another's, `open` fails and `seal` makes a value that can't be opened.
pub struct ValueCipher(Aes256Gcm);

impl ZeroizeOnDrop for ValueCipher {}

impl ValueCipher {
    /// Seals `plaintext` into `out`, which becomes a complete value: header, ciphertext, tag.
    ///
    /// `header` says which key, version and salt this cipher is for, and its nonce is used up.
    /// `name` is that key's name. Nothing is read from `out` that was there before.
    ///
    /// # Errors
    ///
    /// If the plaintext is longer than AES-GCM can encrypt.
    ///
    /// # Panics
    ///
    /// If `out` is not [`OVERHEAD`] bytes longer than `plaintext`.
    #[inline]
    pub fn seal(
        &self,
        header: Header,
        name: &KeyName,
        plaintext: &[u8],
        out: &mut [u8],
    ) -> Result<(), SealError> {
        assert_eq!(out.len(), plaintext.len() + OVERHEAD, "the value has its plaintext's length");
        debug_assert_eq!(header.key_id, name.id(), "the header has the id of the key's name");

        let (head, rest) = out.split_first_chunk_mut::<HEADER_LEN>().expect("checked above");
        let (ciphertext, tag_out) = rest.split_last_chunk_mut::<TAG_LEN>().expect("checked above");
        header.write(head);
        let prefix = head.first_chunk().expect("the header begins with the prefix");
        *tag_out = with_additional_data(prefix, name, |additional_data| {
            self.0.seal(header.nonce.counter(), additional_data, plaintext, ciphertext)
        })
        .map_err(|_| SealError)?;
        Ok(())
    }

    /// Opens `sealed` into `out`, if it was sealed under this key and `name` as it is now.
    ///
    /// # Errors
    ///
    /// If the value is not authentic. `out` is then all zeroes.
    ///
    /// # Panics
    ///
    /// If `out` is not as long as the plaintext.
    #[inline]
    pub fn open(
        &self,
        sealed: &Sealed<'_>,
        name: &KeyName,
        out: &mut [u8],
    ) -> Result<(), OpenError> {
        assert_eq!(out.len(), sealed.plaintext_len(), "the output has the plaintext's length");

        with_additional_data(sealed.prefix(), name, |additional_data| {
            self.0.open(sealed.counter(), additional_data, sealed.ciphertext(), sealed.tag(), out)
        })
        .map_err(|_| OpenError)
    }

    /// Opens the value that begins at `start` of `memory` and ends with it, as [`ValueCipher::open`] does. Its
    /// plaintext begins where `memory` does: a long value needs no other memory. What follows the plaintext is
    /// what is left of the value.
    ///
    /// # Errors
    ///
    /// If there is no value, or it is not authentic. `memory` is then all zeroes.
    pub fn open_in_place(
        &self,
        name: &KeyName,
        memory: &mut [u8],
        start: usize,
    ) -> Result<(), OpenError> {
        let Some(sealed) = memory.get(start..).and_then(|value| Sealed::parse(value).ok()) else {
            memory.fill(0);
            return Err(OpenError);
        };
        let (prefix, counter, tag) = (*sealed.prefix(), *sealed.counter(), *sealed.tag());
        let (before_tag, rest) = memory.split_at_mut(memory.len() - TAG_LEN);
        let opened = with_additional_data(&prefix, name, |additional_data| {
            self.0.open_in_place(&counter, additional_data, &tag, before_tag, start + HEADER_LEN)
        });
        opened.map_err(|_| {
            rest.fill(0);
            OpenError
        })
    }
}

impl fmt::Debug for ValueCipher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ValueCipher(..)")
    }
}

/// Calls `body` with the additional authenticated data: the bytes before the nonce, then the key's name.
///
/// So a value can't be relabelled to another key, version or kind, nor be opened through a name
/// that happens to have the same id. The first part has a fixed length: nothing else reads the same.
#[inline]
fn with_additional_data<T>(
    prefix: &[u8; PREFIX_LEN],
    name: &KeyName,
    body: impl FnOnce(&[u8]) -> T,
) -> T {
    let name = name.as_str().as_bytes();
    let len = PREFIX_LEN + name.len();
    let mut bytes = [0; PREFIX_LEN + KeyName::MAX_LEN];
    bytes[..PREFIX_LEN].copy_from_slice(prefix);
    bytes[PREFIX_LEN..len].copy_from_slice(name);
    body(&bytes[..len])
}

/// A plaintext is longer than AES-GCM can encrypt: 2^36 - 32 bytes, SP 800-38D, section 5.2.1.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SealError;

impl fmt::Display for SealError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("plaintext is too long to be encrypted")
    }
}

impl std::error::Error for SealError {}

/// A value is not authentic: it was altered, or sealed under another key or another key's name.
///
/// Which of these it is can't be known, and what can be known is not told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenError;

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("encrypted value was altered or does not belong to this key")
    }
}

impl std::error::Error for OpenError {}
