//! The types `encrypted_text` and `encrypted_bytea`: what goes in, what comes out.

pub(crate) mod armored;
mod bytea;
pub(crate) mod encoding;
pub(crate) mod identity;
mod modifier;
mod text;

use envelope::{FormatError, KeyId, KeyName, PlaintextKind, Sealed};
use pgrx::pg_sys;

use crate::catalog::{DATABASE_KEY, Privilege};
use crate::errors::Error;
use crate::varlena::{Buffer, Varlena};
use crate::{events, keys, value};

pub(crate) use bytea::EncryptedBytea;
pub(crate) use identity::{function_named, is_encrypted, key_of_type, schema_of};
pub(crate) use text::{EncryptedText, without_padding};

/// What the two types have of their own: how a value of the base type becomes a plaintext, and a
/// plaintext a value of the base type.
pub(crate) trait EncryptedType {
    /// The type's name.
    const NAME: &'static str;

    /// Whether its values have plaintexts of this kind.
    fn holds(kind: PlaintextKind) -> bool;

    /// Encrypts a value of the base type, given as the bytes of its varlena.
    ///
    /// # Errors
    ///
    /// As for [`value::seal`], and if the bytes are armor.
    fn encrypt(key_id: KeyId, base: &[u8]) -> Result<Buffer, Box<Error>>;

    /// Decrypts to a varlena of the base type.
    ///
    /// # Errors
    ///
    /// As for [`value::open`], and if what was decrypted is not a value of the base type.
    fn decrypt(value: &Sealed<'_>, privilege: Option<Privilege>) -> Result<Buffer, Box<Error>>;

    /// Whether the value of the base type has the bytes of the plaintext.
    fn is_stored_as_base(value: &Sealed<'_>) -> bool;

    /// Whether a plaintext that has the bytes of a value of the base type is one.
    ///
    /// # Errors
    ///
    /// If not.
    fn check_base(plaintext: &[u8]) -> Result<(), Box<Error>>;

    /// Calls `body` with the bytes that the varlena of the base type would have.
    ///
    /// # Errors
    ///
    /// As for [`EncryptedType::decrypt`].
    fn with_base<R>(
        value: &Sealed<'_>,
        privilege: Option<Privilege>,
        body: impl FnOnce(&[u8]) -> R,
    ) -> Result<R, Box<Error>> {
        if Self::is_stored_as_base(value) {
            return value::with_plaintext(value, privilege, |plaintext| {
                Self::check_base(plaintext)?;
                Ok(body(plaintext))
            })?;
        }
        let base = Self::decrypt(value, privilege)?;
        let result = body(base.bytes());
        base.free();
        Ok(result)
    }
}

/// The key that a value is encrypted under: that of the type modifier, or the database key where
/// there is none. PostgreSQL gives the input function none for a literal or a parameter, and applies
/// the length-coercion cast afterwards.
pub(crate) fn key_of_modifier(modifier: i32) -> Result<KeyId, Box<Error>> {
    match u32::try_from(modifier) {
        Ok(id) => {
            Ok(KeyId::new(id).ok_or(Error::Internal { what: "a key id has its top bit set" })?)
        }
        Err(_) => Ok(database_key_id()?),
    }
}

/// The id of the database key.
///
/// # Errors
///
/// None, as long as its name is a key's name.
pub(crate) fn database_key_id() -> Result<KeyId, Error> {
    thread_local! {
        static ID: Option<KeyId> = KeyName::parse(DATABASE_KEY).ok().map(|name| name.id());
    }
    ID.with(|id| *id).ok_or(Error::Internal { what: "the database key's name is invalid" })
}

/// The value under the key of `modifier` and its active version: the length-coercion cast. A value
/// that already is, is returned as it is; any other is decrypted and encrypted again, for which the
/// current user needs `decrypt` on its key and `encrypt` on the new one.
pub(crate) fn coerce<T: EncryptedType>(
    datum: pg_sys::Datum,
    modifier: i32,
) -> Result<pg_sys::Datum, Error> {
    if modifier < 0 {
        return Ok(datum);
    }
    // SAFETY: SQL declares the cast's first argument with an encrypted type.
    let stored = unsafe { Varlena::detoast(datum) };
    let key_id = key_of_modifier(modifier)?;
    let coerced = match parse(stored)?.key_id() == key_id {
        true => armored::coerced(stored, || reencrypt::<T>(stored, key_id)),
        false => reencrypt::<T>(stored, key_id),
    };
    coerced.map(Varlena::datum)
}

/// The value under the active version of its own key.
pub(crate) fn rotate<T: EncryptedType>(stored: Varlena) -> Result<pg_sys::Datum, Error> {
    reencrypt::<T>(stored, parse(stored)?.key_id()).map(Varlena::datum)
}

/// The value under the active version of the key with this id: itself if it is that already.
fn reencrypt<T: EncryptedType>(stored: Varlena, key_id: KeyId) -> Result<Varlena, Error> {
    let sealed = parse(stored)?;
    let active = keys::active_version(key_id)?;
    if sealed.key_id() == key_id && active == Some(sealed.key_version()) {
        return Ok(stored);
    }
    let plaintext = T::decrypt(&sealed, Some(Privilege::Decrypt))?;
    let value = T::encrypt(key_id, plaintext.bytes())?;
    plaintext.free();
    Ok(value.varlena())
}

/// A value of an encrypted type, parsed.
#[inline]
pub(crate) fn parse(value: Varlena) -> Result<Sealed<'static>, Box<Error>> {
    Sealed::parse(value.bytes()).map_err(|why| not_a_value(value, why))
}

#[cold]
fn not_a_value(value: Varlena, why: FormatError) -> Box<Error> {
    events::not_a_value(value.bytes(), why);
    Box::new(why.into())
}

/// `value::seal` for plaintexts that may not be armor.
fn seal_input(key_id: KeyId, kind: PlaintextKind, plaintext: &[u8]) -> Result<Buffer, Box<Error>> {
    armored::refuse(plaintext)?;
    value::seal(key_id, kind, plaintext)
}
