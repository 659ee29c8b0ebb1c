//! Which types hold encrypted values: the encrypted types themselves, and arrays, domains, composite
//! types, ranges and multiranges of what does, at any depth.

use std::collections::HashMap;

use pgrx::pg_sys;

use super::system_catalogs::{self, TypeForm, columns, type_form};
use crate::errors::Error;
use crate::types::function_named;

/// The extension's name, and those of its types.
const EXTENSION: &std::ffi::CStr = c"encryption_ext";
const TYPANALYZE: &std::ffi::CStr = c"encrypted_typanalyze";
const TYPE_NAMES: [&std::ffi::CStr; 2] = [c"encrypted_text", c"encrypted_bytea"];

/// The extension's own objects.
#[derive(Clone, Copy)]
pub(super) struct Extension {
    pub(super) oid: pg_sys::Oid,
    pub(super) owner: pg_sys::Oid,
    /// The schema that it was created in.
    pub(super) schema: pg_sys::Oid,
    pub(super) types: [pg_sys::Oid; TYPE_NAMES.len()],
    /// The function that ANALYZE is to call for all that holds encrypted values and isn't one.
    pub(super) typanalyze: pg_sys::Oid,
}

impl Extension {
    /// # Errors
    ///
    /// If this database doesn't have the extension, or not the types.
    pub(super) fn find() -> Result<Self, Error> {
        let missing =
            Error::Internal { what: "the extension, or a type or function of it, is missing" };
        let Some(form) = system_catalogs::extension(EXTENSION) else { return Err(missing) };
        let types = TYPE_NAMES.map(|name| system_catalogs::type_named(name, form.extnamespace));
        let typanalyze = function_named(TYPANALYZE, &[pg_sys::INTERNALOID], form.extnamespace);
        if types.contains(&pg_sys::InvalidOid) || typanalyze == pg_sys::InvalidOid {
            return Err(missing);
        }
        Ok(Self {
            oid: form.oid,
            owner: form.extowner,
            schema: form.extnamespace,
            types,
            typanalyze,
        })
    }

    /// Whether dropping the extension of this name drops this one: itself, and what it requires
    /// (`encryption_ext.control`).
    pub(super) fn goes_with(name: &std::ffi::CStr) -> bool {
        name == EXTENSION || name == c"plpgsql"
    }
}

/// What is known of types, while one command is looked at.
pub(super) struct Contents {
    pub(super) extension: Extension,
    /// Whether they hold encrypted values, of the types that were asked for and those inside of them.
    known: HashMap<pg_sys::Oid, bool>,
}

impl Contents {
    pub(super) fn new(extension: Extension) -> Self {
        Self { extension, known: extension.types.map(|own| (own, true)).into() }
    }

    /// Whether values of a type hold encrypted ones.
    pub(super) fn holds(&mut self, type_oid: pg_sys::Oid) -> bool {
        if let Some(&known) = self.known.get(&type_oid) {
            return known;
        }
        // No type contains itself (CheckAttributeType of src/backend/catalog/heap.c), so this answer
        // for the time being is never used but by a damaged catalog, which it keeps from looping.
        self.known.insert(type_oid, false);
        let holds = match type_form(type_oid) {
            Some(form) => match inside(&form) {
                Inside::Nothing => false,
                Inside::Type(inner) => self.holds(inner),
                Inside::Columns(relation) => self.relation_holds(relation),
            },
            None => false,
        };
        self.known.insert(type_oid, holds);
        holds
    }

    /// Whether values of a type are encrypted ones: it is an encrypted type, or a domain over one.
    pub(super) fn is_encrypted(&self, type_oid: pg_sys::Oid) -> bool {
        // SAFETY: a look-up in the system cache.
        self.extension.types.contains(&unsafe { pg_sys::getBaseType(type_oid) })
    }

    /// Whether a column of a relation holds encrypted values.
    pub(super) fn relation_holds(&mut self, relation: pg_sys::Oid) -> bool {
        // Each column, so that what is inside of all of them is known.
        columns(relation).iter().filter(|column| self.holds(column.type_oid)).count() > 0
    }

    /// The type inside of a value of this one that names no key: the encrypted type itself, where
    /// neither the modifier nor a domain's on the way to it does. A range's bounds can't have one.
    pub(super) fn without_key(
        &mut self,
        type_oid: pg_sys::Oid,
        modifier: i32,
    ) -> Option<pg_sys::Oid> {
        if modifier >= 0 || !self.holds(type_oid) {
            return None;
        }
        if self.extension.types.contains(&type_oid) {
            return Some(type_oid);
        }
        let form = type_form(type_oid)?;
        match inside(&form) {
            Inside::Nothing => None,
            Inside::Type(inner) => self.without_key(inner, form.typtypmod),
            Inside::Columns(relation) => columns(relation)
                .iter()
                .find_map(|column| self.without_key(column.type_oid, column.modifier)),
        }
    }

    /// Whether ANALYZE calls this extension's function for a type.
    pub(super) fn is_marked(&self, type_oid: pg_sys::Oid) -> bool {
        type_form(type_oid).is_some_and(|form| form.typanalyze == self.extension.typanalyze)
    }

    /// The types that were looked at, and whether they hold encrypted values.
    pub(super) fn looked_at(&self) -> impl Iterator<Item = (pg_sys::Oid, bool)> {
        self.known.iter().map(|(&type_oid, &holds)| (type_oid, holds))
    }
}

/// Whether a type is a range or a multirange type.
pub(super) fn is_range(type_oid: pg_sys::Oid) -> bool {
    type_form(type_oid).is_some_and(|form| matches!(form.typtype.cast_unsigned(), b'r' | b'm'))
}

/// What a type is made of.
pub(super) enum Inside {
    Nothing,
    Type(pg_sys::Oid),
    /// The columns of a composite type's relation.
    Columns(pg_sys::Oid),
}

/// What is inside of a type.
pub(super) fn inside(form: &TypeForm) -> Inside {
    match form.typtype.cast_unsigned() {
        b'd' => Inside::Type(form.typbasetype),
        // SAFETY: a look-up in a system cache; InvalidOid if it isn't there.
        b'r' => Inside::Type(unsafe { pg_sys::get_range_subtype(form.oid) }),
        // SAFETY: as above.
        b'm' => Inside::Type(unsafe { pg_sys::get_multirange_range(form.oid) }),
        b'c' => Inside::Columns(form.typrelid),
        // Arrays, and what is subscripted as they are (name, point), which holds nothing of ours.
        _ if form.typelem != pg_sys::InvalidOid => Inside::Type(form.typelem),
        _ => Inside::Nothing,
    }
}
