//! A value's way from plaintext to ciphertext and back, for both types.

use envelope::{Header, KeyName, OVERHEAD, PlaintextKind, Sealed, ValueCipher};

use pgrx::pg_sys;

use crate::catalog::Privilege;
use crate::errors::Error;
use crate::varlena::{Buffer, Shape, Varlena};
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
) -> Result<Buffer, Box<Error>> {
    keys::encrypting(key_id, plaintext.len(), |key| {
        if let Some(mask) = key.mask
            && mask.may_be(plaintext)
        {
            return Err(Error::MaskWrittenBack { key: key.name.clone() }.into());
        }
        let header = Header { kind, key_id, key_version: key.version, nonce: key.nonce };
        let mut sealed = Buffer::new(Shape::Varlena, plaintext.len() + OVERHEAD)?;
        key.cipher
            .seal(header, key.name, plaintext, sealed.bytes_mut())
            .map_err(|_| Error::ValueTooLong)?;
        Ok(sealed)
    })
}

/// Calls `body` with the plaintext of `value`, which is gone when it returns: a short one is never in memory
/// of PostgreSQL's.
///
/// # Errors
///
/// As for [`open`].
pub(crate) fn with_plaintext<T>(
    value: &Sealed<'_>,
    privilege: Option<Privilege>,
    body: impl FnOnce(&[u8]) -> T,
) -> Result<T, Box<Error>> {
    const SHORT: usize = 256;
    let mut short = [0; SHORT];
    match short.get_mut(..value.plaintext_len()) {
        Some(plaintext) => {
            decrypting(value, privilege, |name, cipher| {
                cipher.open(value, name, plaintext).map_err(|_| not_authentic(name, value))
            })?;
            Ok(body(plaintext))
        }
        None => {
            let plaintext = open(value, privilege, Shape::Varlena)?;
            let result = body(plaintext.bytes());
            plaintext.free();
            Ok(result)
        }
    }
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
) -> Result<Buffer, Box<Error>> {
    decrypting(value, privilege, |name, cipher| {
        let mut plaintext = Buffer::new(shape, value.plaintext_len())?;
        match cipher.open(value, name, plaintext.bytes_mut()) {
            Ok(()) => Ok(plaintext),
            Err(_) => {
                plaintext.free();
                Err(not_authentic(name, value))
            }
        }
    })
}

/// The same for the argument `datum` of a function, which `value` was parsed from after it was detoasted to
/// `stored`. If that made a copy, the plaintext takes its place, and `value` is gone unless the error is one of
/// permissions.
///
/// # Errors
///
/// As for [`open`].
pub(crate) fn open_argument(
    value: &Sealed<'_>,
    (stored, datum): (Varlena, pg_sys::Datum),
    privilege: Option<Privilege>,
    shape: Shape,
) -> Result<Buffer, Box<Error>> {
    if !stored.is_copy_of(datum) {
        return open(value, privilege, shape);
    }
    let len = value.plaintext_len();
    decrypting(value, privilege, |name, cipher| {
        // SAFETY: the copy was made for this call, and neither the callers nor this function look at `value`
        // from here on.
        let (memory, start) = unsafe { stored.memory_for(shape) };
        match cipher.open_in_place(name, memory, start) {
            Ok(()) => Ok(Buffer::in_place_of(stored, shape, len)),
            Err(_) => {
                // SAFETY: the datum was a value a moment ago.
                let again = unsafe { Varlena::detoast(datum) };
                let value = Sealed::parse(again.bytes());
                Err(value.map_or_else(|why| Box::new(why.into()), |v| not_authentic(name, &v)))
            }
        }
    })
}

#[inline]
fn decrypting<T>(
    value: &Sealed<'_>,
    privilege: Option<Privilege>,
    body: impl FnOnce(&KeyName, &ValueCipher) -> Result<T, Box<Error>>,
) -> Result<T, Box<Error>> {
    keys::decrypting(value.key_id(), value.key_version(), value.salt(), privilege, body)
}

#[cold]
fn not_authentic(name: &KeyName, value: &Sealed<'_>) -> Box<Error> {
    events::value_not_authentic(name, value);
    Box::new(Error::ValueNotAuthentic { key: name.clone(), version: value.key_version() })
}
