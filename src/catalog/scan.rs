//! Scans of the extension's tables with the catalog snapshot (`src/backend/access/index/genam.c`).
//!
//! Not SPI: input, output and type modifier functions run with the rights, the search path and the
//! snapshot of whoever calls them, and a REPEATABLE READ snapshot would keep showing an old row.
//! The catalog snapshot is taken anew for each scan of a table that has no syscache.

use std::ffi::{CStr, CString};

use envelope::KeyId;
use pgrx::pg_sys;

use super::{SCHEMA, damaged, invalidation};
use crate::errors::Error;
use crate::varlena::Varlena;

/// Which rows are read.
#[derive(Clone, Copy)]
pub(super) enum Rows {
    All,
    /// Those whose first column is the id, which this index begins with.
    Of(KeyId, &'static CStr),
}

/// A table whose changes send an invalidation.
pub(super) struct Table {
    pub(super) name: &'static CStr,
    /// Its columns, up to the last that is read here.
    #[cfg_attr(feature = "pg14", expect(dead_code, reason = "tables are opened there"))]
    pub(super) columns: &'static [Type],
}

/// The type of a column, as far as it says how its values are stored.
#[derive(Clone, Copy)]
pub(super) enum Type {
    Bool,
    Int4,
    Int8,
    Oid,
    Timestamp,
    Uuid,
    /// Of variable length: `text`, `bytea`.
    Variable,
}

/// Up to how many pages a table is read as a whole. It takes less time than opening an index does that the
/// session has not used yet, and the table itself: for a new connection's first value, that would be most of
/// all that there is to do.
pub(super) const FEW_PAGES: u32 = 8;

/// Calls `each` with rows of `table`, in no order. What is kept of them is good until [`invalidation::catalog_generation`] grows.
///
/// # Errors
///
/// If the table is missing, or what `each` returns.
pub(super) fn scan(
    table: &Table,
    rows: Rows,
    each: impl FnMut(&Row) -> Result<(), Error>,
) -> Result<(), Error> {
    let oid = table_oid(table.name)?;
    invalidation::watch(oid);
    #[cfg(not(feature = "pg14"))]
    let mut each = each;
    #[cfg(not(feature = "pg14"))]
    if super::pages::read(table, oid, rows, &mut each)? {
        return Ok(());
    }
    scan_table(oid, rows, each)
}

/// The same of a table whose changes send no invalidation.
pub(super) fn scan_unwatched(
    table: &CStr,
    rows: Rows,
    each: impl FnMut(&Row) -> Result<(), Error>,
) -> Result<(), Error> {
    scan_table(table_oid(table)?, rows, each)
}

fn scan_table(
    table: pg_sys::Oid,
    rows: Rows,
    mut each: impl FnMut(&Row) -> Result<(), Error>,
) -> Result<(), Error> {
    let mut scan_key = pg_sys::ScanKeyData::default();
    let mut scan_key_count = 0;
    if let Rows::Of(id, _) = rows {
        let id = pg_sys::Datum::from(id.get() as i32);
        // SAFETY: the first column of the tables that are scanned by key id is an integer.
        unsafe {
            pg_sys::ScanKeyInit(
                &raw mut scan_key,
                1,
                pg_sys::BTEqualStrategyNumber as pg_sys::StrategyNumber,
                pg_sys::F_INT4EQ.into(),
                id,
            );
        }
        scan_key_count = 1;
    }

    // SAFETY: the table exists (an error is raised otherwise), and the index, if it is not InvalidOid; a null
    // snapshot asks for the catalog snapshot; what is opened is closed, by PostgreSQL's resource owner if an
    // error passes over this frame.
    unsafe {
        let relation = pg_sys::table_open(table, pg_sys::AccessShareLock as pg_sys::LOCKMODE);
        let pages =
            pg_sys::RelationGetNumberOfBlocksInFork(relation, pg_sys::ForkNumber::MAIN_FORKNUM);
        // Without its index, too, the whole table is read.
        let index_oid = match rows {
            Rows::Of(_, index) if pages > FEW_PAGES => relation_oid(index),
            Rows::Of(..) | Rows::All => pg_sys::InvalidOid,
        };
        let scan = pg_sys::systable_beginscan(
            relation,
            index_oid,
            index_oid != pg_sys::InvalidOid,
            std::ptr::null_mut(),
            scan_key_count,
            &raw mut scan_key,
        );
        let result = loop {
            let tuple = pg_sys::systable_getnext(scan);
            if tuple.is_null() {
                break Ok(());
            }
            if let Err(error) = each(&Row::deform(tuple, (*relation).rd_att)) {
                break Err(error);
            }
        };
        pg_sys::systable_endscan(scan);
        pg_sys::table_close(relation, pg_sys::AccessShareLock as pg_sys::LOCKMODE);
        result
    }
}

/// The object id of a table of the extension's.
pub(super) fn table_oid(table: &CStr) -> Result<pg_sys::Oid, Error> {
    match relation_oid(table) {
        pg_sys::InvalidOid => {
            let table = table.to_string_lossy();
            Err(damaged(format!("table encryption.{table} does not exist")))
        }
        oid => Ok(oid),
    }
}

/// The object id of a relation in the extension's schema; `InvalidOid` if there is none.
fn relation_oid(name: &CStr) -> pg_sys::Oid {
    class_row(name).map_or(pg_sys::InvalidOid, |row| row.oid)
}

/// The row of `pg_class` of a relation in the extension's schema.
pub(super) fn class_row(name: &CStr) -> Option<pg_sys::FormData_pg_class> {
    // SAFETY: the names are NUL-terminated; look-ups in system caches. No relation is in a schema
    // that doesn't exist. A row that is found has the form of its catalog, and is copied before it is released.
    unsafe {
        let schema = pg_sys::get_namespace_oid(SCHEMA.as_ptr(), true);
        let tuple = pg_sys::SearchSysCache2(
            pg_sys::SysCacheIdentifier::RELNAMENSP as i32,
            pg_sys::Datum::from(name.as_ptr()),
            schema.into(),
        );
        if tuple.is_null() {
            return None;
        }
        let row = pg_sys::GETSTRUCT(tuple).cast::<pg_sys::FormData_pg_class>().read_unaligned();
        pg_sys::ReleaseSysCache(tuple);
        Some(row)
    }
}

/// The column values of a row, valid until the scan's next step.
pub(super) struct Row {
    values: Vec<pg_sys::Datum>,
    nulls: Vec<bool>,
}

impl Row {
    /// # Safety
    ///
    /// `tuple` is a row of the table that `description` describes, and outlives what is returned.
    pub(super) unsafe fn deform(tuple: pg_sys::HeapTuple, description: pg_sys::TupleDesc) -> Self {
        // SAFETY: the caller's promise; the arrays have room for every attribute.
        unsafe {
            let columns = usize::try_from((*description).natts).unwrap_or(0);
            let mut values = vec![pg_sys::Datum::from(0usize); columns];
            let mut nulls = vec![true; columns];
            pg_sys::heap_deform_tuple(tuple, description, values.as_mut_ptr(), nulls.as_mut_ptr());
            Self { values, nulls }
        }
    }

    /// The value of column `number`, counted from 1, if it isn't null.
    fn nullable(&self, number: usize) -> Result<Option<pg_sys::Datum>, Error> {
        let value = *self
            .values
            .get(number - 1)
            .ok_or_else(|| damaged("a table has fewer columns than this library expects"))?;
        Ok((!self.nulls[number - 1]).then_some(value))
    }

    fn datum(&self, number: usize) -> Result<pg_sys::Datum, Error> {
        self.nullable(number)?.ok_or_else(|| damaged(format!("column {number} is null")))
    }

    pub(super) fn int4(&self, number: usize) -> Result<i32, Error> {
        Ok(self.datum(number)?.value() as i32)
    }

    pub(super) fn optional_int8(&self, number: usize) -> Result<Option<i64>, Error> {
        Ok(self.nullable(number)?.map(|datum| datum.value() as i64))
    }

    pub(super) fn nullable_int4(&self, number: usize) -> Result<Option<i32>, Error> {
        Ok(self.nullable(number)?.map(|datum| datum.value() as i32))
    }

    pub(super) fn oid(&self, number: usize) -> Result<pg_sys::Oid, Error> {
        Ok(pg_sys::Oid::from(self.datum(number)?.value() as u32))
    }

    pub(super) fn bytes(&self, number: usize) -> Result<Option<&[u8]>, Error> {
        // SAFETY: the columns read so are of variable-length types.
        Ok(self.nullable(number)?.map(|datum| unsafe { Varlena::detoast(datum) }.bytes()))
    }

    pub(super) fn text(&self, number: usize) -> Result<String, Error> {
        let bytes =
            self.bytes(number)?.ok_or_else(|| damaged(format!("column {number} is null")))?;
        Ok(String::from_utf8_lossy(bytes).into_owned())
    }

    pub(super) fn name(&self, number: usize) -> Result<CString, Error> {
        let name = self.datum(number)?.cast_mut_ptr::<pg_sys::NameData>();
        // SAFETY: the columns read so are of type name: NUL-terminated, passed by reference.
        Ok(unsafe { CStr::from_ptr((*name).data.as_ptr()) }.to_owned())
    }

    pub(super) fn uuid(&self, number: usize) -> Result<[u8; 16], Error> {
        let datum = self.datum(number)?;
        // SAFETY: the columns read so are of type uuid, which is 16 bytes passed by reference.
        Ok(unsafe { datum.cast_mut_ptr::<[u8; 16]>().read() })
    }
}
