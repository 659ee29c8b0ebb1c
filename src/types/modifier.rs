//! The type modifier, as in `encrypted_text('user_pii')`: the key's id.
//!
//! The id depends on the key's name alone, so a table definition means the same in every database,
//! and a dump can be restored whether its keys or its tables come first.

use std::ffi::{CStr, c_char};

use envelope::{KeyId, KeyName};
use pgrx::pg_sys;

use crate::catalog::DATABASE_KEY;
use crate::errors::Error;
use crate::fmgr::sql_function;
use crate::varlena::palloc_cstring;
use crate::{keys, session};

sql_function! {
    /// `encrypted_typmod_in(cstring[]) RETURNS integer`, for both types.
    fn encrypted_typmod_in(call) {
        let array = call.varlena(0).datum().cast_mut_ptr::<pg_sys::ArrayType>();
        // SAFETY: SQL declares the argument cstring[].
        let key_id = unsafe { key_of_modifier_list(array) }?;
        Ok(pg_sys::Datum::from(key_id.get() as i32))
    }
}

sql_function! {
    /// `encrypted_typmod_out(integer) RETURNS cstring`, for both types.
    fn encrypted_typmod_out(call) {
        let Some(id) = u32::try_from(call.int4(0)).ok().and_then(KeyId::new) else {
            return Ok(pg_sys::Datum::from(palloc_cstring("")));
        };
        // No catalog look-up while changes are being decoded, nor in their subscriber; an unknown key, as after a dump was
        // restored without the extension's tables, is printed so that typmod-in takes it back.
        let replicates = session::is_decoding() || session::is_logical_worker();
        let key = if replicates { None } else { keys::find(id)? };
        let text = match key {
            Some(key) => format!("('{}')", key.name),
            None => format!("('{id}')"),
        };
        Ok(pg_sys::Datum::from(palloc_cstring(&text)))
    }
}

/// The id of the one key that a modifier list names.
///
/// # Safety
///
/// `array` is a `cstring[]`.
unsafe fn key_of_modifier_list(array: *mut pg_sys::ArrayType) -> Result<KeyId, Error> {
    let mut elements = std::ptr::null_mut();
    let mut nulls = std::ptr::null_mut();
    let mut count = 0;
    // SAFETY: the caller's promise; cstring has length -2 and char alignment (pg_type.dat).
    let text = unsafe {
        pg_sys::deconstruct_array(
            array,
            pg_sys::CSTRINGOID,
            -2,
            false,
            b'c' as c_char,
            &raw mut elements,
            &raw mut nulls,
            &raw mut count,
        );
        if count != 1 {
            return Err(Error::ModifierInvalid { why: "it must name exactly one key" });
        }
        if *nulls {
            return Err(Error::ModifierInvalid { why: "it must not be null" });
        }
        CStr::from_ptr((*elements).cast_mut_ptr()).to_string_lossy()
    };
    parse(&text)
}

/// A key's name, or `#id` as typmod-out prints it for a key that the catalog doesn't have.
fn parse(text: &str) -> Result<KeyId, Error> {
    match text.strip_prefix('#') {
        Some(number) => parse_id(number),
        None => parse_name(text),
    }
}

fn parse_id(number: &str) -> Result<KeyId, Error> {
    let id =
        number.parse().ok().and_then(KeyId::new).ok_or(Error::ModifierInvalid {
            why: "what follows \"#\" must be a number below 2^31",
        })?;
    // A dump's tables may come before its keys.
    if !session::is_restoring() {
        let key = keys::find(id)?.ok_or_else(|| Error::unknown_id(id))?;
        refuse_database_key(&key.name)?;
    }
    Ok(id)
}

fn parse_name(text: &str) -> Result<KeyId, Error> {
    let name =
        KeyName::parse(text).map_err(|why| Error::KeyNameInvalid { name: text.to_owned(), why })?;
    refuse_database_key(&name)?;
    if !session::is_restoring() {
        keys::named(&name)?;
    }
    Ok(name.id())
}

fn refuse_database_key(name: &KeyName) -> Result<(), Error> {
    if name.as_str() == DATABASE_KEY {
        return Err(Error::KeyNameReserved { name: name.clone() });
    }
    Ok(())
}
