//! Where a value comes from that is being looked at: the row that a scan of the present query is at, if it
//! has the value. PostgreSQL tells a function of a value's type nothing of it.

use std::ffi::CStr;

use pgrx::pg_sys;

use crate::types::encoding::utf8_lossy;
use crate::{pg, session, statement};

/// `, in column "c" of table "s"."t" at (0,1)`, of the first value for which `is_it`; empty if none is found.
/// Only rows of tables that the innermost query is scanning are seen, not those of COPY from a table or of a
/// sort; and only values that are stored in the row itself, as a column's value.
pub(super) fn of(is_it: impl Fn(&[u8]) -> bool) -> String {
    if !session::may_wait() {
        return String::new();
    }
    let mut scans: Vec<*mut pg_sys::ScanState> = Vec::new();
    // SAFETY: a query that is being executed has a plan that was started, and so has that of an active portal,
    // if it has one. The walker raises no error but that
    // the stack is too deep, which the guard turns into a panic.
    unsafe {
        // The statement that has loaded the library was begun without its hooks.
        let of_portal =
            || pg_sys::ActivePortal.as_ref().and_then(|portal| portal.queryDesc.as_ref());
        let Some(query) = statement::running_query().as_ref().or_else(of_portal) else {
            return String::new();
        };
        if query.planstate.is_null() {
            return String::new();
        }
        pg_sys::submodules::ffi::pg_guard_ffi_boundary(|| {
            collect(query.planstate, (&raw mut scans).cast())
        });
    }
    // SAFETY: scans of a plan that is being executed.
    scans.into_iter().find_map(|scan| unsafe { find(scan, &is_it) }).unwrap_or_default()
}

/// Adds the scans of tables among a node and those below it to the `Vec` that `scans` points to.
unsafe extern "C-unwind" fn collect(
    state: *mut pg_sys::PlanState,
    scans: *mut std::ffi::c_void,
) -> bool {
    use pg_sys::NodeTag as Tag;

    if state.is_null() {
        return false;
    }
    // SAFETY: each node's state has a tag; those of the scans begin with a ScanState. (An index-only scan's
    // row is one of the index.) `scans` is what `of` passed.
    unsafe {
        if matches!(
            (*state).type_,
            Tag::T_SeqScanState
                | Tag::T_SampleScanState
                | Tag::T_IndexScanState
                | Tag::T_BitmapHeapScanState
                | Tag::T_TidScanState
                | Tag::T_TidRangeScanState
        ) {
            (*scans.cast::<Vec<*mut pg_sys::ScanState>>()).push(state.cast());
        }
        pg::planstate_tree_walker(state, collect, scans)
    }
}

/// The place of the value in the row that a scan is at.
///
/// # Safety
///
/// The scan's plan is being executed.
unsafe fn find(scan: *mut pg_sys::ScanState, is_it: impl Fn(&[u8]) -> bool) -> Option<String> {
    // SAFETY: a scan of a table has the table open; the first `tts_nvalid` columns of its row's slot have
    // been read, and stay valid while the slot is not empty.
    unsafe {
        let relation = (*scan).ss_currentRelation.as_ref()?;
        let slot = (*scan).ss_ScanTupleSlot.as_ref()?;
        if u32::from(slot.tts_flags) & pg_sys::TTS_FLAG_EMPTY != 0 || slot.tts_tid.ip_posid == 0 {
            return None;
        }
        let table = relation.rd_id;
        for number in 1..=slot.tts_nvalid {
            let at = usize::try_from(number - 1).ok()?;
            if slot.tts_isnull.add(at).read() {
                continue;
            }
            // A column that isn't of variable length has no pointer to look at.
            if pg_sys::get_typlen(pg_sys::get_atttype(table, number)) != -1 {
                continue;
            }
            let value = slot.tts_values.add(at).read().cast_mut_ptr::<pg_sys::varlena>();
            if pgrx::varatt_is_1b_e(value) || pgrx::varatt_is_4b_c(value) {
                continue;
            }
            let bytes = std::slice::from_raw_parts(
                pgrx::vardata_any(value).cast::<u8>(),
                pgrx::varsize_any_exhdr(value),
            );
            if is_it(bytes) {
                let pg_sys::BlockIdData { bi_hi, bi_lo } = slot.tts_tid.ip_blkid;
                let block = u32::from(bi_hi) << 16 | u32::from(bi_lo);
                let column = text(pg_sys::get_attname(table, number, true));
                let schema = text(pg_sys::get_namespace_name((*relation.rd_rel).relnamespace));
                let name = text((&raw const (*relation.rd_rel).relname.data).cast());
                return Some(format!(
                    ", in column \"{column}\" of table \"{schema}\".\"{name}\" at ({block},{})",
                    slot.tts_tid.ip_posid
                ));
            }
        }
        None
    }
}

/// # Safety
///
/// A NUL-terminated string, or a null pointer.
unsafe fn text(name: *const std::ffi::c_char) -> String {
    if name.is_null() {
        return String::new();
    }
    // SAFETY: the caller's promise.
    utf8_lossy(unsafe { CStr::from_ptr(name) })
}
