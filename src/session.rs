//! What this backend is, and where it is in its work: facts of PostgreSQL's that decide what the
//! extension may do now.

use std::sync::atomic::{AtomicBool, Ordering};

use pgrx::pg_sys;

use crate::pg;

/// Whether a transaction has ended since the last call of [`is_new_transaction`], or there was none.
static TRANSACTION_ENDED: AtomicBool = AtomicBool::new(true);

/// This process's id.
pub(crate) fn process_id() -> u32 {
    // SAFETY: PostgreSQL sets it at the start of each process, after fork.
    unsafe { pg_sys::MyProcPid }.cast_unsigned()
}

/// Whether the catalog may be read and a provider may be called now. Not while PostgreSQL holds
/// interrupts, as it does with a buffer lock and in a critical section; not outside a transaction,
/// as when an error of an aborted one is reported; and not while changes are decoded.
pub(crate) fn may_wait() -> bool {
    // SAFETY: counters and flags of this backend's.
    let (holds, in_transaction) = unsafe {
        let holds = pg_sys::InterruptHoldoffCount != 0 || pg_sys::CritSectionCount != 0;
        (holds, pg_sys::IsTransactionState())
    };
    in_transaction && !holds && !is_decoding()
}

/// Whether values leave as ciphertext because logical decoding is reading them: of a historic
/// snapshot no key may be looked up, and a change stream must not carry plaintext. SQL-level
/// decoding has the snapshot without being a walsender.
pub(crate) fn is_decoding() -> bool {
    // SAFETY: a flag of this backend's.
    unsafe { pg_sys::am_walsender || pg::is_historic_snapshot_active() }
}

/// Whether a dump is being restored: pg_dump's scripts and pg_restore set `check_function_bodies`
/// off so that what is created may name what does not exist yet.
pub(crate) fn is_restoring() -> bool {
    // SAFETY: a setting of this backend's.
    unsafe { !pg_sys::check_function_bodies }
}

/// Whether this is the first call in a transaction.
pub(crate) fn is_new_transaction() -> bool {
    // A load is cheaper than a swap, and this is asked for every value.
    TRANSACTION_ENDED.load(Ordering::Relaxed) && TRANSACTION_ENDED.swap(false, Ordering::Relaxed)
}

/// Registers for the end of transactions. Called once, when the library is loaded.
pub(crate) fn register() {
    // SAFETY: the callback never unwinds and stays valid, as a library is never unloaded.
    unsafe { pg_sys::RegisterXactCallback(Some(transaction_event), std::ptr::null_mut()) };
}

unsafe extern "C-unwind" fn transaction_event(
    event: pg_sys::XactEvent::Type,
    _argument: *mut std::ffi::c_void,
) {
    use pg_sys::XactEvent as Event;

    if matches!(
        event,
        Event::XACT_EVENT_COMMIT | Event::XACT_EVENT_ABORT | Event::XACT_EVENT_PREPARE
    ) {
        TRANSACTION_ENDED.store(true, Ordering::Relaxed);
    }
}
