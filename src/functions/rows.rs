//! Functions that return rows.

use pgrx::pg_sys;

use crate::errors::Error;
use crate::fmgr::Call;

/// One row: a datum or null for each of the function's OUT parameters.
pub(crate) type Row = Vec<Option<pg_sys::Datum>>;

/// Returns `rows` from a function that SQL declares to return a set of records, in PostgreSQL's
/// materialize mode (`src/backend/utils/fmgr/README`).
pub(crate) fn return_rows(call: &mut Call, rows: &[Row]) -> Result<pg_sys::Datum, Error> {
    const UNEXPECTED: Error = Error::Internal { what: "a set of rows is not accepted here" };
    // SAFETY: the call is valid; what resultinfo points to is checked by its node tag; tuplestore
    // and descriptor are made in the memory context that lives as long as the query.
    unsafe {
        let result = (*call.fcinfo()).resultinfo.cast::<pg_sys::ReturnSetInfo>();
        if result.is_null() || (*result).type_ != pg_sys::NodeTag::T_ReturnSetInfo {
            return Err(UNEXPECTED);
        }
        let materialize = pg_sys::SetFunctionReturnMode::SFRM_Materialize;
        if (*result).allowedModes as u32 & materialize == 0 {
            return Err(UNEXPECTED);
        }
        let query = (*(*result).econtext).ecxt_per_query_memory;
        let former = pg_sys::MemoryContextSwitchTo(query);
        let mut description = std::ptr::null_mut();
        pg_sys::get_call_result_type(call.fcinfo(), std::ptr::null_mut(), &raw mut description);
        let random_access = pg_sys::SetFunctionReturnMode::SFRM_Materialize_Random;
        let store = pg_sys::tuplestore_begin_heap(
            (*result).allowedModes as u32 & random_access != 0,
            false,
            pg_sys::work_mem,
        );
        pg_sys::MemoryContextSwitchTo(former);
        for row in rows {
            debug_assert!(row.len() == usize::try_from((*description).natts).unwrap_or(0));
            let mut values: Vec<_> =
                row.iter().map(|value| value.unwrap_or(pg_sys::Datum::from(0usize))).collect();
            let mut nulls: Vec<_> = row.iter().map(Option::is_none).collect();
            pg_sys::tuplestore_putvalues(
                store,
                description,
                values.as_mut_ptr(),
                nulls.as_mut_ptr(),
            );
        }
        (*result).returnMode = materialize;
        (*result).setResult = store;
        (*result).setDesc = description;
    }
    Ok(call.null())
}
