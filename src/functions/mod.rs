//! SQL functions: the life of keys, who may use them, and what can be asked of values and of this
//! session.

mod backups;
mod check_key;
mod grants;
mod health;
pub(crate) mod lifecycle;
mod log;
mod providers;
mod reconcile;
mod retention;
pub(crate) mod rows;
mod security_check;
mod statistics;
mod values;

use envelope::KeyName;

use crate::errors::Error;

/// A key's name as a function's caller wrote it.
///
/// # Errors
///
/// If it is none.
pub(crate) fn key_name(text: &str) -> Result<KeyName, Error> {
    KeyName::parse(text).map_err(|why| Error::KeyNameInvalid { name: text.to_owned(), why })
}
