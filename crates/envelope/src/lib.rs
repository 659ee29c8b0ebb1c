//! The value format of `encryption_ext` and the cipher that fills it.
//!
//! Everything that must agree between two servers, between two versions of the extension, and
//! between the extension and a reader written in another language is in this crate, and nothing
//! else is: it does no I/O beyond asking the operating system for random bytes, and it knows
//! neither PostgreSQL nor where keys come from. `docs/format.md` is its specification.
#![forbid(unsafe_code)]

mod key;

pub use key::{DataKey, KeyId, KeyName, KeyNameError, KeyVersion};
