//! Reading a small table by its pages, without opening it.
//!
//! When a session opens a table for the first time, PostgreSQL reads from the system catalogs all that anybody
//! could do with it: columns, defaults, checks, triggers, and what these are made of. For four tables that is
//! most of what the first value of a connection costs, and none of it is needed to read rows. `CREATE DATABASE`
//! reads `pg_class` of another database in the same way (`ScanSourceDatabasePgClass` of
//! `src/backend/commands/dbcommands.c`).
//!
//! What is read is what a scan would read (`heapgetpage` of `src/backend/access/heap/heapam.c`): under the same
//! lock, with the same snapshot, the same pages. Only a serializable transaction's predicate locks are not taken:
//! what the catalog says has no part in it, as it has none once it is kept.
//!
//! Columns are taken for what `sql/` declares. (So they are where tables are opened: a superuser who changes their
//! types breaks the library either way.) A row that was written before one of them was added is an error: only who
//! opens the table knows what such rows have in that column, so the script that adds it must write all rows anew.

use std::ffi::CStr;

use pgrx::pg_sys;

use super::scan::{FEW_PAGES, Row, Rows, Table, Type, class_row};
use crate::errors::Error;

#[cfg(not(feature = "pg15"))]
use pg_sys::RelFileLocator as File;
#[cfg(feature = "pg15")]
use pg_sys::RelFileNode as File;

/// Of a file that isn't one process's alone.
#[cfg(any(feature = "pg15", feature = "pg16"))]
const NO_PROCESS: i32 = pg_sys::InvalidBackendId;
#[cfg(not(any(feature = "pg15", feature = "pg16")))]
const NO_PROCESS: i32 = pg_sys::INVALID_PROC_NUMBER;

const MAIN: pg_sys::ForkNumber::Type = pg_sys::ForkNumber::MAIN_FORKNUM;

/// Calls `each` with rows of `table`, whose object id is `oid`, in no order. `false`, and no row, if the table
/// has to be opened: it is large, or not stored as the extension's tables are.
///
/// # Errors
///
/// What `each` returns.
pub(super) fn read(
    table: &Table,
    oid: pg_sys::Oid,
    rows: Rows,
    each: impl FnMut(&Row) -> Result<(), Error>,
) -> Result<bool, Error> {
    let lock = pg_sys::AccessShareLock as pg_sys::LOCKMODE;
    // SAFETY: the lock is acquired before anything is looked up, as it has this session take notice of what
    // has become of the table, and is held for as long as its pages are read. PostgreSQL gives it back if an
    // error passes over this frame.
    unsafe {
        pg_sys::LockRelationOid(oid, lock);
        let result = match file_of(table.name, table.columns.len(), oid) {
            Some(file) => read_file(file, table.columns, oid, rows, each),
            None => Ok(false),
        };
        pg_sys::UnlockRelationOid(oid, lock);
        result
    }
}

/// Where the rows of the table with this name are, if it is still the one with this object id, and an ordinary
/// table with so many columns or more.
fn file_of(name: &CStr, columns: usize, oid: pg_sys::Oid) -> Option<File> {
    let row = class_row(name)?;
    let is_ordinary = row.oid == oid
        && row.relkind as u8 == pg_sys::RELKIND_RELATION
        && row.relam == pg_sys::HEAP_TABLE_AM_OID
        && row.relpersistence as u8 == pg_sys::RELPERSISTENCE_PERMANENT
        && row.relfilenode != pg_sys::InvalidOid
        && !row.relisshared
        && usize::try_from(row.relnatts).is_ok_and(|present| present >= columns);
    is_ordinary.then(|| {
        // SAFETY: set at the start of each process that is connected to a database.
        let (default_tablespace, database) =
            unsafe { (pg_sys::MyDatabaseTableSpace, pg_sys::MyDatabaseId) };
        let tablespace = match row.reltablespace {
            pg_sys::InvalidOid => default_tablespace,
            tablespace => tablespace,
        };
        #[cfg(feature = "pg15")]
        return File { spcNode: tablespace, dbNode: database, relNode: row.relfilenode };
        #[cfg(not(feature = "pg15"))]
        File { spcOid: tablespace, dbOid: database, relNumber: row.relfilenode }
    })
}

/// # Safety
///
/// The file is that of the table with this object id, on which a lock is held, and whose rows have `columns`.
unsafe fn read_file(
    file: File,
    columns: &[Type],
    oid: pg_sys::Oid,
    rows: Rows,
    mut each: impl FnMut(&Row) -> Result<(), Error>,
) -> Result<bool, Error> {
    // SAFETY: the caller's promise. The pages are counted with the snapshot in hand: what comes onto others
    // later is not visible to it. Rows are looked at while their page is pinned, which keeps them in place
    // (src/backend/storage/buffer/README). What is opened is closed, by PostgreSQL's resource owner if an error
    // passes over this frame.
    unsafe {
        let snapshot = pg_sys::RegisterSnapshot(pg_sys::GetCatalogSnapshot(oid));
        let pages = pg_sys::smgrnblocks(pg_sys::smgropen(file, NO_PROCESS), MAIN);
        let is_small = pages <= FEW_PAGES;
        let description = describe(columns);
        // None of a large table.
        let mut pages = 0..if is_small { pages } else { 0 };
        let read = pages.try_for_each(|page| {
            let buffer = pg_sys::ReadBufferWithoutRelcache(
                file,
                MAIN,
                page,
                pg_sys::ReadBufferMode::RBM_NORMAL,
                std::ptr::null_mut(),
                true,
            );
            let read = visible(buffer, oid, snapshot)
                .iter_mut()
                .try_for_each(|tuple| read_row(tuple, description, rows, &mut each));
            pg_sys::ReleaseBuffer(buffer);
            read
        });
        pg_sys::FreeTupleDesc(description);
        pg_sys::UnregisterSnapshot(snapshot);
        read.map(|()| is_small)
    }
}

/// # Safety
///
/// `tuple` is a row of the table, and its page is pinned; `description` describes its first columns.
unsafe fn read_row(
    tuple: &mut pg_sys::HeapTupleData,
    description: pg_sys::TupleDesc,
    rows: Rows,
    each: &mut impl FnMut(&Row) -> Result<(), Error>,
) -> Result<(), Error> {
    // SAFETY: the caller's promise.
    let row = unsafe {
        if i32::from(pg_sys::HeapTupleHeaderGetNatts(tuple.t_data)) < (*description).natts {
            return Err(Error::Internal { what: "a row of the catalog lacks columns" });
        }
        Row::deform(tuple, description)
    };
    match rows {
        Rows::Of(id, _) if row.int4(1)? != id.get() as i32 => Ok(()),
        Rows::Of(..) | Rows::All => each(&row),
    }
}

/// The rows of a page that are visible to a snapshot.
///
/// # Safety
///
/// `buffer` holds a page of the table, and is pinned, and not locked by this process. What is returned is used
/// while it is pinned.
unsafe fn visible(
    buffer: pg_sys::Buffer,
    table: pg_sys::Oid,
    snapshot: pg_sys::Snapshot,
) -> Vec<pg_sys::HeapTupleData> {
    let mut tuples = Vec::new();
    // SAFETY: the caller's promise; what line pointers say may be relied on while the page is locked. Of an
    // empty or new page there are none.
    unsafe {
        pg_sys::LockBuffer(buffer, pg_sys::BUFFER_LOCK_SHARE as i32);
        let page = pg_sys::BufferGetPage(buffer);
        for number in 1..=pg_sys::PageGetMaxOffsetNumber(page) {
            let item = pg_sys::PageGetItemId(page, number);
            if (*item).lp_flags() != pg_sys::LP_NORMAL {
                continue;
            }
            let mut tuple = pg_sys::HeapTupleData {
                t_len: (*item).lp_len(),
                t_tableOid: table,
                t_data: pg_sys::PageGetItem(page, item).cast(),
                ..Default::default()
            };
            if pg_sys::HeapTupleSatisfiesVisibility(&raw mut tuple, snapshot, buffer) {
                tuples.push(tuple);
            }
        }
        pg_sys::LockBuffer(buffer, pg_sys::BUFFER_LOCK_UNLOCK as i32);
    }
    tuples
}

/// What PostgreSQL takes rows with these columns apart by.
fn describe(columns: &[Type]) -> pg_sys::TupleDesc {
    // SAFETY: a description has room for as many attributes as it is made for, which are not initialized.
    unsafe {
        let description = pg_sys::CreateTemplateTupleDesc(columns.len() as i32);
        for (index, column) in (0..).zip(columns) {
            let (len, is_by_value, align) = column.layout();
            let attribute = pg_sys::FormData_pg_attribute {
                attnum: index as i16 + 1,
                attlen: len,
                attbyval: is_by_value,
                attalign: align as std::ffi::c_char,
                #[cfg(not(feature = "pg18"))]
                attcacheoff: -1,
                ..Default::default()
            };
            attribute_of(description, index).write(attribute);
            #[cfg(feature = "pg18")]
            pg_sys::populate_compact_attribute(description, index);
        }
        description
    }
}

impl Type {
    /// `typlen`, `typbyval` and `typalign` of `pg_type`.
    fn layout(self) -> (i16, bool, u8) {
        match self {
            Self::Bool => (1, true, pg_sys::TYPALIGN_CHAR),
            Self::Int4 | Self::Oid => (4, true, pg_sys::TYPALIGN_INT),
            Self::Int8 | Self::Timestamp => (8, true, pg_sys::TYPALIGN_DOUBLE),
            Self::Uuid => (16, false, pg_sys::TYPALIGN_CHAR),
            Self::Variable => (-1, false, pg_sys::TYPALIGN_INT),
        }
    }
}

/// `TupleDescAttr` of `src/include/access/tupdesc.h`.
///
/// # Safety
///
/// The description has an attribute at `index`, counted from 0.
unsafe fn attribute_of(
    description: pg_sys::TupleDesc,
    index: i32,
) -> *mut pg_sys::FormData_pg_attribute {
    // SAFETY: the caller's promise.
    #[cfg(feature = "pg18")]
    unsafe {
        pg_sys::TupleDescAttr(description, index)
    }
    // SAFETY: the caller's promise.
    #[cfg(not(feature = "pg18"))]
    unsafe {
        (*description).attrs.as_mut_ptr().add(usize::try_from(index).unwrap_or(0))
    }
}
