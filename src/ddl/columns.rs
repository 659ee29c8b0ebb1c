//! Columns, domains and ranges that name no key.

use pgrx::pg_sys;
use pgrx::spi::Spi;

use super::contents::Contents;
use super::refuse;
use super::system_catalogs::{self, Column, relation_name, sql_type_name, type_form, type_name};
use crate::errors::Error;
use crate::{keys, settings};

/// Gives the columns of a relation that name no key the default key, if one is set and they can take
/// it.
///
/// # Errors
///
/// For the first column that is left without.
pub(super) fn check_relation(relation: pg_sys::Oid, contents: &mut Contents) -> Result<(), Error> {
    let Some(form) = system_catalogs::relation(relation) else { return Ok(()) };
    let kind = form.relkind.cast_unsigned();
    // A view stores nothing.
    if !matches!(kind, b'r' | b'p' | b'f' | b'm' | b'c') {
        return Ok(());
    }
    for column in system_catalogs::columns(relation) {
        let Some(encrypted) = contents.without_key(column.type_oid, column.modifier) else {
            continue;
        };
        if matches!(kind, b'r' | b'p')
            && takes_modifier(column.type_oid, encrypted)
            && let Some(key) = settings::default_key()?
        {
            keys::named(&key)?;
            set_modifier(relation, &column, key.as_str())?;
            continue;
        }
        refuse(Error::WithoutKey {
            object: format!("column \"{}\" of \"{}\"", column.name, relation_name(relation)),
            type_name: type_name(encrypted),
        })?;
    }
    Ok(())
}

/// # Errors
///
/// If a domain or a range names no key.
pub(super) fn check_type(type_oid: pg_sys::Oid, contents: &mut Contents) -> Result<(), Error> {
    match contents.without_key(type_oid, -1) {
        None => Ok(()),
        Some(encrypted) => refuse(Error::WithoutKey {
            object: format!("type \"{}\"", type_name(type_oid)),
            type_name: type_name(encrypted),
        }),
    }
}

/// Whether a column of this type can have the key in its own modifier: the encrypted type itself, or
/// an array of it.
fn takes_modifier(type_oid: pg_sys::Oid, encrypted: pg_sys::Oid) -> bool {
    type_oid == encrypted || type_form(type_oid).is_some_and(|form| form.typelem == encrypted)
}

/// `ALTER COLUMN ... TYPE`: values that are there already, as after CREATE TABLE AS, are encrypted
/// again under the key.
fn set_modifier(relation: pg_sys::Oid, column: &Column, key: &str) -> Result<(), Error> {
    let table = system_catalogs::qualified_name(relation);
    let name = pgrx::spi::quote_identifier(&column.name);
    let column_type = sql_type_name(column.type_oid);
    let (base, dimensions) = match column_type.strip_suffix("[]") {
        Some(base) => (base, "[]"),
        None => (column_type.as_str(), ""),
    };
    let key = pgrx::spi::quote_literal(key);
    Spi::run(&format!("ALTER TABLE {table} ALTER COLUMN {name} TYPE {base}({key}){dimensions}"))
        .map_err(|_| Error::Internal { what: "a column's type can't be changed" })
}
