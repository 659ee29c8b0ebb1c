//! The value format of `encryption_ext` and the cipher that fills it.
//!
//! Everything that must agree between two servers, between two versions of the extension, and
//! between the extension and a reader written in another language is in this crate, and nothing
//! else is: it does no I/O beyond asking the operating system for random bytes, and it knows
//! neither PostgreSQL nor where keys come from. `docs/format.md` is its specification.
//!
//! | what | where |
//! | --- | --- |
//! | a key, its name, id and versions | [`DataKey`], [`KeyName`], [`KeyId`], [`KeyVersion`] |
//! | the layout of a value | [`Header`], [`Sealed`], [`PlaintextKind`] |
//! | sealing and opening | [`KeyCipher`], which derives a [`ValueCipher`] from a nonce's salt |
//! | the nonces of new values | [`NonceSource`], one in each process |
//! | ciphers that are derived already | [`DerivedCiphers`] |
//! | values as text | [`armor`] |
//!
//! ```
//! use envelope::{DataKey, Header, KeyCipher, KeyName, KeyVersion, NonceSource, PlaintextKind};
//! use envelope::{OVERHEAD, Sealed};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let name = KeyName::parse("user_pii")?;
//! let key = KeyCipher::new(&DataKey::generate()?);
//! let plaintext = b"alice@example.com";
//!
//! let nonce = NonceSource::new().next(std::process::id(), plaintext.len())?;
//! let cipher = key.derive(nonce.salt());
//! let header = Header {
//!     kind: PlaintextKind::Text,
//!     key_id: name.id(),
//!     key_version: KeyVersion::FIRST,
//!     nonce,
//! };
//! let mut value = vec![0; plaintext.len() + OVERHEAD];
//! cipher.seal(header, &name, plaintext, &mut value)?;
//!
//! let sealed = Sealed::parse(&value)?;
//! let cipher = key.derive(sealed.salt());
//! let mut opened = vec![0; sealed.plaintext_len()];
//! cipher.open(&sealed, &name, &mut opened)?;
//! assert_eq!(opened, plaintext);
//! # Ok(())
//! # }
//! ```
#![forbid(unsafe_code)]

pub mod armor;
mod cipher;
mod derived;
mod format;
mod gcm;
mod key;
mod nonce;
mod xaes;

pub use armor::ArmorError;
pub use cipher::{KeyCipher, OpenError, SealError, ValueCipher};
pub use derived::DerivedCiphers;
pub use format::{
    FORMAT, FormatError, HEADER_LEN, Header, NONCE_LEN, OVERHEAD, PlaintextKind, SALT_LEN, Sealed,
    TAG_LEN,
};
pub use key::{DataKey, KeyId, KeyName, KeyNameError, KeyVersion};
pub use nonce::{Nonce, NonceSource};
