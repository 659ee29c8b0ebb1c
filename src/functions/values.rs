//! What a value's header says, without opening the value; and values that perhaps can't be opened.

use envelope::{HEADER_LEN, Header};
use pgrx::pg_sys;

use crate::catalog::Privilege;
use crate::errors::Error;
use crate::fmgr::{Call, sql_function};
use crate::keys;
use crate::types::{EncryptedBytea, EncryptedText, EncryptedType, parse};
use crate::varlena::{Varlena, text_datum};

sql_function! {
    /// `enc_key_version(encrypted_text) RETURNS integer`, and the same of `encrypted_bytea`.
    fn encrypted_key_version(call) {
        Ok(pg_sys::Datum::from(header(call)?.key_version.get() as i32))
    }
}

sql_function! {
    /// `enc_key_name(encrypted_text) RETURNS text`, and the same of `encrypted_bytea`: null if the
    /// catalog has no key with the value's id.
    fn encrypted_key_name(call) {
        match keys::find(header(call)?.key_id)? {
            Some(key) => text_datum(key.name.as_str().as_bytes()),
            None => Ok(call.null()),
        }
    }
}

sql_function! {
    /// `enc_try_decrypt(encrypted_text) RETURNS text`
    fn encrypted_text_try_decrypt(call) {
        try_decrypt::<EncryptedText>(call)
    }
}

sql_function! {
    /// `enc_try_decrypt(encrypted_bytea) RETURNS bytea`
    fn encrypted_bytea_try_decrypt(call) {
        try_decrypt::<EncryptedBytea>(call)
    }
}

/// The plaintext of a function's first argument; null if the fault is in the value, so that nothing will
/// open it the next time either.
fn try_decrypt<T: EncryptedType>(call: &mut Call) -> Result<pg_sys::Datum, Error> {
    let decrypted =
        parse(call.varlena(0)).and_then(|sealed| T::decrypt(&sealed, Some(Privilege::Decrypt)));
    match decrypted {
        Ok(plaintext) => Ok(plaintext.datum()),
        Err(error) if error.is_of_value() => Ok(call.null()),
        Err(error) => Err(*error),
    }
}

/// The header of a function's first argument. Of a value stored out of line the first chunk alone
/// is fetched.
fn header(call: &Call) -> Result<Header, Error> {
    // SAFETY: SQL declares the argument with an encrypted type.
    let prefix = unsafe { Varlena::detoast_prefix(call.datum(0), HEADER_LEN) };
    Ok(Header::parse(prefix.bytes())?)
}
