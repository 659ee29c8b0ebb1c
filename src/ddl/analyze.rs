//! What ANALYZE stores of values that hold encrypted ones: as much as of the encrypted types
//! themselves. PostgreSQL's own functions would store the most common elements of an array, and
//! composite values and ranges as they are; so the types' rows in `pg_type` name this extension's.
//!
//! `CREATE TYPE` can't say that, and a dump doesn't either; this is done whenever such a type is made or
//! changed, and to all of them when the extension itself is altered, which is what `pg_upgrade` does
//! last of all.

use pgrx::pg_sys;

use super::contents::{Contents, Extension};
use super::queries;
use super::system_catalogs::{TypeForm, type_form};
use crate::errors::Error;

/// Sets the function for each type that was looked at: this extension's for what holds encrypted values,
/// PostgreSQL's where that no longer does.
pub(super) fn settle(contents: &Contents) {
    let own = contents.extension;
    for (type_oid, holds) in contents.looked_at() {
        // The encrypted types, and domains over them, have functions of their own.
        if contents.is_encrypted(type_oid) {
            continue;
        }
        let Some(form) = type_form(type_oid) else { continue };
        if holds {
            set_typanalyze(&form, own.typanalyze);
            forget_function(&form, &own);
        } else if form.typanalyze == own.typanalyze {
            set_typanalyze(&form, default_typanalyze(&form, &own));
        }
    }
}

/// Does it for all types of the database.
///
/// # Errors
///
/// If the catalogs can't be read.
pub(super) fn settle_all(contents: &mut Contents) -> Result<(), Error> {
    for type_oid in queries::container_types()? {
        contents.holds(type_oid);
    }
    settle(contents);
    Ok(())
}

/// Does it for the types that have this extension's function: what was inside of them may have been
/// dropped.
///
/// # Errors
///
/// If the catalogs can't be read.
pub(super) fn settle_marked(contents: &mut Contents) -> Result<(), Error> {
    for type_oid in queries::types_with_typanalyze(contents.extension.typanalyze)? {
        contents.holds(type_oid);
    }
    settle(contents);
    Ok(())
}

/// Sets PostgreSQL's own functions everywhere, since this extension's is about to be dropped, and
/// composite types may outlive their encrypted attributes: ANALYZE would look for it in vain. Without a
/// dependency in the catalogs, which would drop these types, and the tables that have row types.
///
/// # Errors
///
/// If the catalogs can't be read.
pub(super) fn unset_all(own: &Extension) -> Result<(), Error> {
    for type_oid in queries::types_with_typanalyze(own.typanalyze)? {
        if let Some(form) = type_form(type_oid) {
            set_typanalyze(&form, default_typanalyze(&form, own));
        }
    }
    Ok(())
}

/// What PostgreSQL gives a type of this kind when it is created.
fn default_typanalyze(form: &TypeForm, own: &Extension) -> pg_sys::Oid {
    match form.typtype.cast_unsigned() {
        b'c' => pg_sys::InvalidOid,
        b'r' => pg_sys::F_RANGE_TYPANALYZE.into(),
        b'm' => pg_sys::F_MULTIRANGE_TYPANALYZE.into(),
        b'd' => match type_form(form.typbasetype) {
            Some(base) if base.typanalyze == own.typanalyze => default_typanalyze(&base, own),
            Some(base) => base.typanalyze,
            None => pg_sys::InvalidOid,
        },
        _ if form.typelem != pg_sys::InvalidOid => pg_sys::F_ARRAY_TYPANALYZE.into(),
        // An encrypted type.
        _ => form.typanalyze,
    }
}

/// A domain is created with its base type's function, and depends on it then: dropping the extension
/// would drop a domain over a composite type, and columns with it, for one attribute. (What is made of
/// an encrypted type itself depends on that anyway.)
fn forget_function(form: &TypeForm, own: &Extension) {
    if form.typtype.cast_unsigned() != b'd' {
        return;
    }
    // SAFETY: deletes rows of pg_depend, if there are such.
    unsafe {
        pg_sys::deleteDependencyRecordsForSpecific(
            pg_sys::TypeRelationId,
            form.oid,
            pg_sys::DependencyType::DEPENDENCY_NORMAL as std::ffi::c_char,
            pg_sys::ProcedureRelationId,
            own.typanalyze,
        );
    }
}

/// Writes a type's row with the rights of the library: the types are of the user's, the function is not.
fn set_typanalyze(form: &TypeForm, function: pg_sys::Oid) {
    if form.typanalyze == function {
        return;
    }
    let lock = pg_sys::RowExclusiveLock as pg_sys::LOCKMODE;
    let cache = pg_sys::SysCacheIdentifier::TYPEOID as i32;
    // SAFETY: the copy of a row of pg_type begins with its fixed part; it is found again because
    // the command that this runs for holds a lock that keeps it from being dropped, or else is null.
    // What is opened is closed, by PostgreSQL's resource owner if an error passes over this frame.
    unsafe {
        let catalog = pg_sys::table_open(pg_sys::TypeRelationId, lock);
        let tuple =
            pg_sys::SearchSysCacheCopy(cache, form.oid.into(), 0.into(), 0.into(), 0.into());
        if !tuple.is_null() {
            (*pg_sys::GETSTRUCT(tuple).cast::<TypeForm>()).typanalyze = function;
            pg_sys::CatalogTupleUpdate(catalog, &raw mut (*tuple).t_self, tuple);
            pg_sys::heap_freetuple(tuple);
        }
        pg_sys::table_close(catalog, lock);
        // What comes next sees it, and may write the same row again.
        pg_sys::CommandCounterIncrement();
    }
}
