//! What a value's header says, without opening the value.

use envelope::{HEADER_LEN, Header};
use pgrx::pg_sys;

use crate::errors::Error;
use crate::fmgr::{Call, sql_function};
use crate::keys;
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

/// The header of a function's first argument. Of a value stored out of line the first chunk alone
/// is fetched.
fn header(call: &Call) -> Result<Header, Error> {
    // SAFETY: SQL declares the argument with an encrypted type.
    let prefix = unsafe { Varlena::detoast_prefix(call.datum(0), HEADER_LEN) };
    Ok(Header::parse(prefix.bytes())?)
}
