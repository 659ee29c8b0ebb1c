//! A value's way from plaintext to ciphertext and back, for both types.

use envelope::{Header, OVERHEAD, PlaintextKind, Sealed};

use crate::catalog::Privilege;
use crate::errors::Error;
use crate::varlena::{Buffer, Shape};
use crate::{events, keys};

/// Encrypts `plaintext` under the active version of the key with this id. The current user needs
/// `encrypt` on it, except for the database key.
///
/// # Errors
///
/// If the key can't be used, the value would be too long, or it is the mask that the user is shown of
/// others.
pub(crate) fn seal(
    key_id: envelope::KeyId,
    kind: PlaintextKind,
    plaintext: &[u8],
) -> Result<Buffer, Error> {
    keys::encrypting(key_id, plaintext.len(), |key| {
        if let Some(mask) = key.mask
            && mask.may_be(plaintext)
        {
            return Err(Error::MaskWrittenBack { key: key.name.clone() });
        }
        let header = Header { kind, key_id, key_version: key.version, nonce: key.nonce };
        let mut sealed = Buffer::new(Shape::Varlena, plaintext.len() + OVERHEAD)?;
        key.cipher
            .seal(header, key.name, plaintext, sealed.bytes_mut())
            .map_err(|_| Error::ValueTooLong)?;
        Ok(sealed)
    })
}

/// Decrypts `value` into a new buffer of the given shape. The current user needs `privilege`, if
/// any, on its key, unless that is the database key.
///
/// # Errors
///
/// If it is not a value, is not authentic, or its key can't be used.
pub(crate) fn open(
    value: &Sealed<'_>,
    privilege: Option<Privilege>,
    shape: Shape,
) -> Result<Buffer, Error> {
    let header = value.header();
    keys::decrypting(
        header.key_id,
        header.key_version,
        header.nonce.salt(),
        privilege,
        |name, cipher| {
            let mut plaintext = Buffer::new(shape, value.plaintext_len())?;
            match cipher.open(value, name, plaintext.bytes_mut()) {
                Ok(()) => Ok(plaintext),
                Err(_) => {
                    plaintext.free();
                    events::value_not_authentic(name, value);
                    Err(Error::ValueNotAuthentic { key: name.clone(), version: header.key_version })
                }
            }
        },
    )
}
