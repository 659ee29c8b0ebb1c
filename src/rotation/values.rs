//! What rotation asks of a value of any type that holds encrypted ones: is it outdated, what is it
//! under the active versions, which versions does it need, can it be opened at all.

use std::rc::Rc;

use envelope::{HEADER_LEN, Header};
use pgrx::pg_sys;

use super::nested::{Base, Shape};
use crate::catalog::Privilege;
use crate::errors::Error;
use crate::fmgr::{Call, sql_function};
use crate::keys;
use crate::types::{EncryptedBytea, EncryptedText, EncryptedType, parse, rotate};
use crate::varlena::{Varlena, text_datum};

sql_function! {
    /// `encryption.is_outdated(encrypted_text) RETURNS boolean`, and the same of `encrypted_bytea`:
    /// whether a version other than the active one of its key encrypted the value.
    fn encryption_is_outdated(call) {
        Ok(pg_sys::Datum::from(is_outdated(call.datum(0))?))
    }
}

sql_function! {
    /// `encryption.holds_outdated("any") RETURNS boolean`: whether that is true of any encrypted value
    /// inside.
    fn encryption_holds_outdated(call) {
        let mut outdated = false;
        visit(call, &mut |_, value| {
            outdated = outdated || is_outdated(value)?;
            Ok(())
        })?;
        Ok(pg_sys::Datum::from(outdated))
    }
}

pub(super) fn is_outdated(value: pg_sys::Datum) -> Result<bool, Error> {
    let header = header(value)?;
    Ok(keys::active_version(header.key_id)? != Some(header.key_version))
}

sql_function! {
    /// `encryption.rotate_within(anyelement) RETURNS anyelement`: every encrypted value inside under
    /// the active version of its key.
    fn encryption_rotate_within(call) {
        let datum = call.datum(0);
        // SAFETY: the argument is of its type, and rotation returns a value of the type it is given.
        unsafe { shape_of_argument(call)?.map(datum, &mut rotated) }
    }
}

/// An encrypted value under the active version of its key.
pub(super) fn rotated(base: Base, value: pg_sys::Datum) -> Result<pg_sys::Datum, Error> {
    // SAFETY: the value is of an encrypted type.
    let stored = unsafe { Varlena::detoast(value) };
    match base {
        Base::Text => rotate::<EncryptedText>(stored),
        Base::Bytea => rotate::<EncryptedBytea>(stored),
    }
}

sql_function! {
    /// `encryption.version_under(encrypted_text, integer) RETURNS integer`, and the same of
    /// `encrypted_bytea`: the version of the key with this id that encrypted the value; null if it is
    /// under another key, 0 if it has no header that can be read.
    fn encryption_version_under(call) {
        match version_under(call.datum(0), call.int4(1)) {
            Some(version) => Ok(pg_sys::Datum::from(version)),
            None => Ok(call.null()),
        }
    }
}

sql_function! {
    /// `encryption.versions_within("any", integer) RETURNS integer[]`: the same of every encrypted
    /// value inside, each version once.
    fn encryption_versions_within(call) {
        let key_id = call.int4(1);
        let mut versions = Vec::new();
        visit(call, &mut |_, value| {
            versions.extend(version_under(value, key_id));
            Ok(())
        })?;
        versions.sort_unstable();
        versions.dedup();
        pgrx::IntoDatum::into_datum(versions)
            .ok_or(Error::Internal { what: "an array of versions is null" })
    }
}

pub(super) fn version_under(value: pg_sys::Datum, key_id: i32) -> Option<i32> {
    match header(value) {
        Ok(header) if header.key_id.get() as i32 == key_id => Some(header.key_version.get() as i32),
        Ok(_) => None,
        Err(_) => Some(0),
    }
}

sql_function! {
    /// `encryption.damage("any") RETURNS text`: what is wrong with an encrypted value inside that
    /// can't be rotated for a reason of its own; null if there is none. What may be better the next
    /// time, such as a provider that is out of reach, is an error.
    fn encryption_damage(call) {
        let mut damage = None;
        visit(call, &mut |base, value| {
            // SAFETY: the value is of an encrypted type.
            let stored = unsafe { Varlena::detoast(value) };
            match open(base, stored) {
                Err(error) if error.is_of_value() => {
                    damage.get_or_insert_with(|| error.message());
                    Ok(())
                }
                result => result,
            }
        })?;
        match damage {
            Some(damage) => text_datum(damage.as_bytes()),
            None => Ok(call.null()),
        }
    }
}

/// Decrypts a value that is outdated, and frees what it is.
fn open(base: Base, stored: Varlena) -> Result<(), Error> {
    if !is_outdated(stored.datum())? {
        return Ok(());
    }
    let sealed = parse(stored)?;
    let plaintext = match base {
        Base::Text => EncryptedText::decrypt(&sealed, Some(Privilege::Decrypt))?,
        Base::Bytea => EncryptedBytea::decrypt(&sealed, Some(Privilege::Decrypt))?,
    };
    plaintext.free();
    Ok(())
}

/// The header of an encrypted value. Of one stored out of line the first chunk alone is fetched.
fn header(value: pg_sys::Datum) -> Result<Header, Error> {
    // SAFETY: the value is of an encrypted type.
    let prefix = unsafe { Varlena::detoast_prefix(value, HEADER_LEN) };
    Ok(Header::parse(prefix.bytes())?)
}

/// Calls `each` with every encrypted value inside of a function's first argument.
pub(super) fn visit(
    call: &Call,
    each: &mut dyn FnMut(Base, pg_sys::Datum) -> Result<(), Error>,
) -> Result<(), Error> {
    let shape = shape_of_argument(call)?;
    // SAFETY: the argument is of its type.
    unsafe { shape.visit(call.datum(0), each) }
}

/// The shape of a function's first argument, of whatever type the caller gave it.
fn shape_of_argument(call: &Call) -> Result<Rc<Shape>, Error> {
    // SAFETY: the call is valid, and has an argument.
    let type_id = unsafe { pg_sys::get_fn_expr_argtype((*call.fcinfo()).flinfo, 0) };
    match type_id {
        pg_sys::InvalidOid => Err(Error::Internal { what: "an argument's type is unknown" }),
        type_id => Shape::of(type_id),
    }
}
