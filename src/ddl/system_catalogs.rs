//! Rows of PostgreSQL's catalogs, by its caches and with the catalog snapshot: the state that the
//! command left, whatever the transaction's own snapshot is.

use std::ffi::CStr;

use pgrx::pg_sys;

/// The fixed part of a row of `pg_class`.
pub(super) type ClassForm = pg_sys::FormData_pg_class;
/// The fixed part of a row of `pg_type`.
pub(super) type TypeForm = pg_sys::FormData_pg_type;

/// A column of a relation, or an attribute of a composite type.
pub(super) struct Column {
    pub(super) name: String,
    pub(super) type_oid: pg_sys::Oid,
    pub(super) modifier: i32,
}

/// A relation's row, if there is such a relation.
pub(super) fn relation(oid: pg_sys::Oid) -> Option<ClassForm> {
    // SAFETY: the rows that this cache has begin with the fixed part of pg_class.
    unsafe { form(pg_sys::SysCacheIdentifier::RELOID, oid) }
}

/// A type's row, if there is such a type.
pub(super) fn type_form(oid: pg_sys::Oid) -> Option<TypeForm> {
    // SAFETY: the rows that this cache has begin with the fixed part of pg_type.
    unsafe { form(pg_sys::SysCacheIdentifier::TYPEOID, oid) }
}

/// # Safety
///
/// Rows of the catalog that `cache` is for begin with a `T`.
unsafe fn form<T: Copy>(cache: pg_sys::SysCacheIdentifier::Type, oid: pg_sys::Oid) -> Option<T> {
    // SAFETY: the caller's promise; the row is copied before it is released.
    unsafe {
        let tuple = pg_sys::SearchSysCache1(cache as i32, oid.into());
        if tuple.is_null() {
            return None;
        }
        let form = pg_sys::GETSTRUCT(tuple).cast::<T>().read_unaligned();
        pg_sys::ReleaseSysCache(tuple);
        Some(form)
    }
}

/// A relation's name, for a message.
pub(super) fn relation_name(oid: pg_sys::Oid) -> String {
    relation(oid).map_or_else(|| oid.to_string(), |form| name(form.relname))
}

/// A relation's name with its schema, as SQL has it.
pub(super) fn qualified_name(oid: pg_sys::Oid) -> String {
    let schema = relation(oid).map_or(pg_sys::InvalidOid, |form| form.relnamespace);
    // SAFETY: returns a NUL-terminated string, or null if there is no such schema.
    let schema = unsafe { pg_sys::get_namespace_name(schema) };
    let schema = if schema.is_null() { c"".as_ptr() } else { schema.cast_const() };
    // SAFETY: as above.
    let schema = unsafe { CStr::from_ptr(schema) }.to_string_lossy().into_owned();
    pgrx::spi::quote_qualified_identifier(schema, relation_name(oid))
}

/// A type's own name, for a message.
pub(super) fn type_name(oid: pg_sys::Oid) -> String {
    type_form(oid).map_or_else(|| oid.to_string(), |form| name(form.typname))
}

/// The same, of an array as `name[]`.
pub(super) fn type_or_array_name(oid: pg_sys::Oid) -> String {
    match type_form(oid) {
        Some(form) if form.typelem != pg_sys::InvalidOid => {
            format!("{}[]", type_name(form.typelem))
        }
        _ => type_name(oid),
    }
}

/// A type's name as SQL has it: with its schema if need be, and as an array if it is one.
pub(super) fn sql_type_name(oid: pg_sys::Oid) -> String {
    // SAFETY: returns a NUL-terminated string, for any object id.
    unsafe { CStr::from_ptr(pg_sys::format_type_be(oid)) }.to_string_lossy().into_owned()
}

/// The object id of a type; `InvalidOid` if the schema has none of this name.
pub(super) fn type_named(name: &CStr, schema: pg_sys::Oid) -> pg_sys::Oid {
    // SAFETY: the name is NUL-terminated; the first column of pg_type is its object id.
    unsafe {
        pg_sys::GetSysCacheOid(
            pg_sys::SysCacheIdentifier::TYPENAMENSP as i32,
            1,
            name.as_ptr().into(),
            schema.into(),
            pg_sys::Datum::from(0usize),
            pg_sys::Datum::from(0usize),
        )
    }
}

/// The row of `pg_extension`, which has no cache, of this extension.
pub(super) fn extension(name: &CStr) -> Option<pg_sys::FormData_pg_extension> {
    let mut found = None;
    // SAFETY: column 1 of the index is the name; the rows begin with the fixed part of pg_extension.
    unsafe {
        let oid = pg_sys::get_extension_oid(name.as_ptr(), true);
        scan(
            pg_sys::ExtensionRelationId,
            pg_sys::ExtensionOidIndexId,
            oid,
            |form: *const pg_sys::FormData_pg_extension| found = Some(form.read_unaligned()),
        );
    }
    found
}

/// The columns of a relation that haven't been dropped.
pub(super) fn columns(relation: pg_sys::Oid) -> Vec<Column> {
    let mut columns = Vec::new();
    // SAFETY: column 1 of the index is attrelid; the rows begin with the fixed part of pg_attribute.
    unsafe {
        scan(
            pg_sys::AttributeRelationId,
            pg_sys::AttributeRelidNumIndexId,
            relation,
            |form: *const pg_sys::FormData_pg_attribute| {
                if (*form).attnum > 0 && !(*form).attisdropped {
                    columns.push(Column {
                        name: name((*form).attname),
                        type_oid: (*form).atttypid,
                        modifier: (*form).atttypmod,
                    });
                }
            },
        );
    }
    columns
}

/// Calls `each` with the rows of a catalog whose first column is `key`.
///
/// # Safety
///
/// The index is one of the catalog's and begins with its first column, an object id; the catalog's
/// rows begin with a `T`.
unsafe fn scan<T>(
    catalog: pg_sys::Oid,
    index: u32,
    key: pg_sys::Oid,
    mut each: impl FnMut(*const T),
) {
    let lock = pg_sys::AccessShareLock as pg_sys::LOCKMODE;
    let mut scan_key = pg_sys::ScanKeyData::default();
    // SAFETY: the caller's promise; a null snapshot asks for the catalog snapshot. What is opened
    // is closed, by PostgreSQL's resource owner if an error passes over this frame.
    unsafe {
        pg_sys::ScanKeyInit(
            &raw mut scan_key,
            1,
            pg_sys::BTEqualStrategyNumber as pg_sys::StrategyNumber,
            pg_sys::F_OIDEQ.into(),
            key.into(),
        );
        let catalog = pg_sys::table_open(catalog, lock);
        let scan = pg_sys::systable_beginscan(
            catalog,
            index.into(),
            true,
            std::ptr::null_mut(),
            1,
            &raw mut scan_key,
        );
        loop {
            let tuple = pg_sys::systable_getnext(scan);
            if tuple.is_null() {
                break;
            }
            each(pg_sys::GETSTRUCT(tuple).cast());
        }
        pg_sys::systable_endscan(scan);
        pg_sys::table_close(catalog, lock);
    }
}

/// A name in the catalogs as text for a message.
pub(super) fn name(name: pg_sys::NameData) -> String {
    // SAFETY: a NameData is NUL-terminated.
    unsafe { CStr::from_ptr(name.data.as_ptr()) }.to_string_lossy().into_owned()
}
