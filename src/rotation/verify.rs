//! Which encrypted values can't be opened, and why: for the function `enc_verify` of `sql/`.

use pgrx::{IntoDatum, pg_sys};

use super::nested::Base;
use super::values::visit;
use crate::catalog::Privilege;
use crate::errors::Error;
use crate::fmgr::sql_function;
use crate::types::{EncryptedBytea, EncryptedText, EncryptedType, parse};
use crate::varlena::Varlena;

sql_function! {
    /// `encryption.unreadable("any") RETURNS text[]`: for each encrypted value inside that can't be opened,
    /// the SQLSTATE and, after a space, the reason; null if there is none. A privilege that is missing,
    /// or a provider that is out of reach, is an error: it says nothing about the value.
    fn encryption_unreadable(call) {
        let mut reasons = Vec::new();
        visit(call, &mut |base, value| {
            match open(base, value) {
                Err(error) if error.is_of_value() || error.is_of_version() => {
                    reasons.push(format!("{} {}", error.sqlstate(), error.message()));
                    Ok(())
                }
                result => result,
            }
        })?;
        match reasons.is_empty() {
            true => Ok(call.null()),
            false => reasons
                .into_datum()
                .ok_or(Error::Internal { what: "an array of reasons is null" }),
        }
    }
}

/// Decrypts a value, and frees what it is.
fn open(base: Base, value: pg_sys::Datum) -> Result<(), Error> {
    // SAFETY: the value is of an encrypted type.
    let stored = unsafe { Varlena::detoast(value) };
    let sealed = parse(stored)?;
    let plaintext = match base {
        Base::Text => EncryptedText::decrypt(&sealed, Some(Privilege::Decrypt))?,
        Base::Bytea => EncryptedBytea::decrypt(&sealed, Some(Privilege::Decrypt))?,
    };
    plaintext.free();
    stored.free_if_copy(value);
    Ok(())
}

sql_function! {
    /// `encryption.refuse_verification(relation text, column_name text) RETURNS void`: raises the error
    /// that there is nothing to be verified.
    fn encryption_refuse_verification(call) {
        Err(Error::NothingToVerify { table: call.text(0)?, column: call.optional_text(1)? })
    }
}
