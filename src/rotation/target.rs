//! Which columns can be rotated.

use pgrx::pg_sys;

use super::nested::Shape;
use crate::access;
use crate::catalog::write::as_owner;
use crate::errors::Error;
use crate::fmgr::sql_function;
use crate::jobs::table_name;
use crate::pg;

sql_function! {
    /// `encryption.rotatable_column(table_id oid, column_number smallint) RETURNS name`: asked before
    /// each batch, since the table may be dropped or altered between two.
    fn encryption_rotatable_column(call) {
        let table_id = call.oid(0);
        let number = call.int2(1);
        let table = table_name(table_id)?;
        if !access::is_table_owner(pg::current_user(), table_id) {
            return Err(Error::NotTableOwner { table });
        }
        // SAFETY: look-ups in system caches; the table exists, and so does what it is made of.
        unsafe {
            let name = pg_sys::get_attname(table_id, number, true);
            // A dropped column keeps a row in pg_attribute, without a type.
            let has_type = pg_sys::get_atttype(table_id, number) != pg_sys::InvalidOid;
            if name.is_null() || !has_type {
                return Err(Error::ColumnDropped { table });
            }
            let column = std::ffi::CStr::from_ptr(name).to_string_lossy().into_owned();
            if let Some(why) = obstacle(table_id, number)? {
                return Err(Error::NotRotatable { table, column, why });
            }
            let padded = pg_sys::palloc0(pg_sys::NAMEDATALEN as usize).cast::<pg_sys::NameData>();
            pg_sys::namestrcpy(padded, name);
            Ok(pg_sys::Datum::from(padded))
        }
    }
}

/// Why the column can't be rotated, if it can't.
///
/// # Safety
///
/// The table and the column exist.
unsafe fn obstacle(table: pg_sys::Oid, number: i16) -> Result<Option<&'static str>, Error> {
    // SAFETY: the caller's promise; look-ups in system caches.
    unsafe {
        let kind = pg_sys::get_rel_relkind(table).cast_unsigned();
        let of_table = match kind {
            pg_sys::RELKIND_RELATION | pg_sys::RELKIND_PARTITIONED_TABLE => None,
            pg_sys::RELKIND_VIEW => Some("it is of a view: rotate the columns of its tables"),
            pg_sys::RELKIND_MATVIEW => Some(
                "it is of a materialized view: rotate the columns of its tables, and refresh it",
            ),
            pg_sys::RELKIND_FOREIGN_TABLE => {
                Some("it is of a foreign table: rotate it where it is")
            }
            _ => Some("it is not of a table"),
        };
        if of_table.is_some() {
            return Ok(of_table);
        }
        if pg_sys::isOtherTempNamespace(pg_sys::get_rel_namespace(table)) {
            return Ok(Some("it is of another session's temporary table"));
        }
        if pg_sys::get_attgenerated(table, number) != 0 {
            return Ok(Some("it is generated: rotate the columns that it is computed from"));
        }
        let type_id = pg_sys::get_atttype(table, number);
        Ok(match *Shape::of(type_id)? {
            Shape::Plain => Some("its type holds no encrypted values"),
            _ => None,
        })
    }
}

sql_function! {
    /// `encryption.replica_lag() RETURNS bigint`: read with the rights of the catalog's owner, since
    /// others are shown nothing. By the function that is behind `pg_stat_replication`: to expand the view
    /// takes a millisecond, and each batch asks.
    fn encryption_replica_lag(call) {
        const LAG: &str = "
            SELECT pg_catalog.max(pg_catalog.pg_wal_lsn_diff(
                       pg_catalog.pg_current_wal_insert_lsn(), replay_lsn))::bigint
              FROM pg_catalog.pg_stat_get_wal_senders()";
        let lag = as_owner(|catalog| catalog.value::<i64>(LAG, &[]))?;
        Ok(match lag {
            Some(lag) => pg_sys::Datum::from(lag),
            None => call.null(),
        })
    }
}
