//! Masks: what a role that has the privilege `mask`, and not `decrypt`, is shown of a key's values.

use envelope::PlaintextKind;

use crate::errors::Error;

/// What stands for what isn't shown, and for values of keys that no mask was set for.
const STARS: &str = "****";

/// The most characters of a text that are shown.
const MAX_SHOWN: usize = 64;

/// The longest mask, in bytes of UTF-8.
const MAX_LEN: usize = 256;

/// What is shown of a key's values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Mask {
    /// Always the same text.
    Fixed(String),
    /// The last characters of a text, so many.
    Partial(usize),
}

impl Default for Mask {
    fn default() -> Self {
        Self::Fixed(STARS.to_owned())
    }
}

impl Mask {
    /// A mask as `enc_set_mask` takes it and the catalog has it: a text, or `partial(n)`.
    ///
    /// # Errors
    ///
    /// If it is none.
    pub(crate) fn parse(text: &str) -> Result<Self, Error> {
        if let Some(rest) = text.strip_prefix("partial(") {
            let shown = rest.strip_suffix(')').and_then(|number| number.trim().parse().ok());
            return match shown {
                Some(shown @ 1..=MAX_SHOWN) => Ok(Self::Partial(shown)),
                _ => Err(Error::MaskInvalid { why: "partial(n) takes a number from 1 to 64" }),
            };
        }
        if text.len() > MAX_LEN {
            return Err(Error::MaskInvalid { why: "it is longer than 256 bytes" });
        }
        if text.contains('\0') || text.starts_with("enc:") {
            return Err(Error::MaskInvalid { why: "it would be taken for ciphertext" });
        }
        Ok(Self::Fixed(text.to_owned()))
    }

    /// Whether a plaintext is needed to show this mask of a value of this kind. Of bytes nothing is
    /// shown: which of them tell how much isn't known.
    pub(crate) fn needs_plaintext(&self, kind: PlaintextKind) -> bool {
        matches!(self, Self::Partial(_)) && kind == PlaintextKind::Text
    }

    /// What is shown, in UTF-8, of a plaintext, or of a value that needs none. A text that is not at
    /// least twice as long as what would be shown of it is not shown at all.
    pub(crate) fn apply(&self, plaintext: Option<&str>) -> String {
        match (self, plaintext) {
            (Self::Fixed(text), _) => text.clone(),
            (Self::Partial(_), None) => STARS.to_owned(),
            (Self::Partial(shown), Some(text)) => {
                let hidden = text.chars().count().saturating_sub(*shown);
                let tail: String = match hidden >= *shown {
                    true => text.chars().skip(hidden).collect(),
                    false => String::new(),
                };
                format!("{STARS}{tail}")
            }
        }
    }

    /// Whether this mask could have been shown as `text`: then somebody writes back what they saw.
    pub(crate) fn may_be(&self, text: &[u8]) -> bool {
        match self {
            Self::Fixed(mask) => text == mask.as_bytes(),
            Self::Partial(shown) => text.strip_prefix(STARS.as_bytes()).is_some_and(|tail| {
                tail.is_empty()
                    || std::str::from_utf8(tail).is_ok_and(|tail| tail.chars().count() == *shown)
            }),
        }
    }
}
