//! The privilege that scanning an index on digests needs.
//!
//! A scan of such an index calls no function of a row that it doesn't find, and one that is served
//! from the index alone calls none at all. So whoever may read the table could try guesses, and learn
//! by an error, or its absence, that one is right. Therefore the use of the index itself needs
//! `compare` on the column's key: checked when a query begins, for each scan in its plan, whoever
//! made the plan.

use std::cell::RefCell;
use std::ffi::c_int;

use envelope::KeyId;
use pgrx::pg_sys;
use rustc_hash::{FxBuildHasher, FxHashMap};

use super::digest_index;
use crate::catalog::{Privilege, invalidation};
use crate::errors::Error;
use crate::fmgr::run_callback;
use crate::{keys, pg};

/// Installs the hook. Called once, when the library is loaded.
pub(super) fn register() {
    // SAFETY: libraries are loaded one after the other, by the backend's only thread.
    unsafe {
        PREVIOUS = pg_sys::ExecutorStart_hook;
        pg_sys::ExecutorStart_hook = Some(executor_start);
    }
}

static mut PREVIOUS: pg_sys::ExecutorStart_hook_type = None;

unsafe extern "C-unwind" fn executor_start(query: *mut pg_sys::QueryDesc, flags: c_int) {
    // SAFETY: PostgreSQL calls with a query whose plan is complete. An error of the functions called
    // here passes over this frame, which holds nothing with a destructor.
    unsafe {
        match PREVIOUS {
            Some(previous) => previous(query, flags),
            None => pg::standard_executor_start(query, flags),
        }
        // A parallel worker does what its leader was allowed to.
        let is_executed = flags as u32 & pg_sys::EXEC_FLAG_EXPLAIN_ONLY == 0;
        if is_executed
            && pg_sys::ParallelWorkerNumber < 0
            && needs_check((*query).planstate, std::ptr::null_mut())
        {
            run_callback(|| check((*query).planstate));
        }
    }
}

/// Whether a node of a plan, or one below it, scans an index that isn't known to hold no digests. This is asked
/// at the start of every query, and of most the answer is no.
///
/// # Safety
///
/// `state` is the state of a node that was started, or null. An error (the stack may be too deep) passes over
/// this frame and the caller's.
unsafe extern "C-unwind" fn needs_check(
    state: *mut pg_sys::PlanState,
    context: *mut std::ffi::c_void,
) -> bool {
    if state.is_null() {
        return false;
    }
    // SAFETY: the caller's promise.
    unsafe {
        scanned_index(state).is_some_and(|index| !holds_no_digests(index))
            || pg::planstate_tree_walker(state, needs_check, context)
    }
}

/// Whether it is known already that an index holds no digests.
fn holds_no_digests(index: pg_sys::Oid) -> bool {
    KEYS.with_borrow(|known| {
        known.generation == invalidation::relation_generation()
            && known.of_index.get(&index).is_some_and(Vec::is_empty)
    })
}

/// Whether the current user may scan the indexes that a plan scans.
///
/// # Safety
///
/// `plan` is the state of a plan that was started, or null.
unsafe fn check(plan: *mut pg_sys::PlanState) -> Result<(), Error> {
    let mut indexes = Vec::new();
    // SAFETY: the caller's promise; nothing else refers to `indexes` meanwhile.
    unsafe {
        if !plan.is_null() {
            pg_sys::submodules::ffi::pg_guard_ffi_boundary(|| {
                collect(plan, (&raw mut indexes).cast())
            });
        }
    }
    indexes.into_iter().try_for_each(check_index)
}

/// Adds the index that a node of a plan scans, and those that the nodes below it do, to the
/// `Vec<Oid>` that `indexes` points to. It raises no error.
unsafe extern "C-unwind" fn collect(
    state: *mut pg_sys::PlanState,
    indexes: *mut std::ffi::c_void,
) -> bool {
    if state.is_null() {
        return false;
    }
    // SAFETY: the state of a node of the plan; `indexes` is what `check` passed.
    unsafe {
        (*indexes.cast::<Vec<pg_sys::Oid>>()).extend(scanned_index(state));
        pg::planstate_tree_walker(state, collect, indexes)
    }
}

/// The index that a node of a plan scans, if it does.
///
/// # Safety
///
/// `state` is the state of a node that was started.
unsafe fn scanned_index(state: *const pg_sys::PlanState) -> Option<pg_sys::Oid> {
    use pg_sys::NodeTag as Tag;

    // SAFETY: the caller's promise: it has its plan, of the type that the plan's tag says.
    unsafe {
        let plan = (*state).plan;
        match (*plan).type_ {
            Tag::T_IndexScan => Some((*plan.cast::<pg_sys::IndexScan>()).indexid),
            Tag::T_IndexOnlyScan => Some((*plan.cast::<pg_sys::IndexOnlyScan>()).indexid),
            Tag::T_BitmapIndexScan => Some((*plan.cast::<pg_sys::BitmapIndexScan>()).indexid),
            _ => None,
        }
    }
}

/// Whether the current user may use the index: has `compare` on the keys of the columns whose digests
/// it holds.
fn check_index(index: pg_sys::Oid) -> Result<(), Error> {
    KEYS.with_borrow_mut(|known| {
        let generation = invalidation::relation_generation();
        if known.generation != generation {
            known.of_index.clear();
            known.generation = generation;
        }
        let keys = known.of_index.entry(index).or_insert_with(|| {
            // SAFETY: the executor has opened and locked the index.
            unsafe { digest_index::keys_of_index(index) }
        });
        keys.iter().try_for_each(|&key| keys::check(key, Privilege::Compare))
    })
}

/// The keys of the columns whose digests an index holds, for the indexes that were used: none, for
/// most.
struct Known {
    generation: u64,
    of_index: FxHashMap<pg_sys::Oid, Vec<KeyId>>,
}

thread_local! {
    static KEYS: RefCell<Known> = const {
        RefCell::new(Known { generation: 0, of_index: FxHashMap::with_hasher(FxBuildHasher) })
    };
}
