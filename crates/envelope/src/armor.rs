//! Values as text: `enc:1:`, then the value in base64url without padding (RFC 4648, section 5).

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::format::Sealed;

const PREFIX: &str = "enc:1:";

/// Writes the bytes of a value as armor.
#[must_use]
pub fn encode(payload: &[u8]) -> String {
    let base64_len = payload.len().div_ceil(3) * 4;
    let mut armor = String::with_capacity(PREFIX.len() + base64_len);
    armor.push_str(PREFIX);
    URL_SAFE_NO_PAD.encode_string(payload, &mut armor);
    armor
}

/// Reads the bytes of a value from its armor.
///
/// Bytes have one armor only: padding, white space, other characters and set trailing bits are
/// refused. Whether the bytes are a value is for [`Sealed::parse`] to say.
///
/// # Errors
///
/// What is wrong with the armor.
pub fn decode(armor: &[u8]) -> Result<Vec<u8>, ArmorError> {
    let base64 = armor.strip_prefix(PREFIX.as_bytes()).ok_or(ArmorError::Prefix)?;
    URL_SAFE_NO_PAD.decode(base64).map_err(|_| ArmorError::Base64)
}

/// Whether `text` is armor of a well-formed value.
///
/// For ordinary text this is a comparison of its first six bytes.
#[must_use]
pub fn looks_like_armor(text: &[u8]) -> bool {
    decode(text).is_ok_and(|payload| Sealed::parse(&payload).is_ok())
}

/// Why text is not armor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ArmorError {
    /// It does not begin with `enc:1:`.
    Prefix,
    /// What follows is not base64url without padding.
    Base64,
}

impl fmt::Display for ArmorError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Prefix => "ciphertext in text form does not begin with \"enc:1:\"",
            Self::Base64 => "ciphertext in text form is not base64url without padding",
        })
    }
}

impl std::error::Error for ArmorError {}
