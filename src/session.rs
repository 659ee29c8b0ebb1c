//! What this backend is, and where it is in its work: facts of PostgreSQL's that decide what the
//! extension may do now.

use std::ffi::CStr;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};

use pgrx::pg_sys;

use crate::pg;
use crate::types::encoding;

/// Whether a transaction has ended since the last call of [`is_new_transaction`], or there was none.
static TRANSACTION_ENDED: AtomicBool = AtomicBool::new(true);

/// This process's id.
pub(crate) fn process_id() -> u32 {
    // SAFETY: PostgreSQL sets it at the start of each process, after fork.
    unsafe { pg_sys::MyProcPid }.cast_unsigned()
}

/// The process id of the session whose parallel worker this is, if it is one.
pub(crate) fn leader_process_id() -> Option<i32> {
    // SAFETY: this backend's own entry, which has been there since its start, and its leader's, which
    // outlives its workers.
    unsafe {
        let own = pg_sys::MyProc.as_ref()?;
        let leader = own.lockGroupLeader.as_ref()?;
        (leader.pid != own.pid).then_some(leader.pid)
    }
}

/// The name that the client has given itself, in ASCII.
pub(crate) fn application_name() -> String {
    // SAFETY: a setting, which is a NUL-terminated string or null.
    unsafe {
        match pg_sys::application_name.is_null() {
            true => String::new(),
            false => CStr::from_ptr(pg_sys::application_name).to_string_lossy().into_owned(),
        }
    }
}

/// The name of this database.
pub(crate) fn database_name() -> String {
    // SAFETY: a look-up in a system cache; the name is NUL-terminated, or a null pointer.
    unsafe {
        let name = pg_sys::get_database_name(pg_sys::MyDatabaseId);
        match name.is_null() {
            true => pg_sys::MyDatabaseId.to_u32().to_string(),
            false => encoding::utf8_lossy(CStr::from_ptr(name)),
        }
    }
}

/// The client's address; none if it is on this machine, or there is no client.
pub(crate) fn client_address() -> Option<String> {
    use pgrx::fcinfo::direct_function_call_as_datum;

    // SAFETY: inet_client_addr takes no argument and looks at nothing else of the call; inet_out takes
    // what it returns, and returns a NUL-terminated string.
    unsafe {
        let address = direct_function_call_as_datum(pg_sys::inet_client_addr, &[])?;
        let text = direct_function_call_as_datum(pg_sys::inet_out, &[Some(address)])?;
        Some(CStr::from_ptr(text.cast_mut_ptr()).to_string_lossy().into_owned())
    }
}

/// Whether this process serves a client, and not PostgreSQL itself: it lives long enough for keys to
/// expire.
pub(crate) fn is_client() -> bool {
    // SAFETY: set at the start of each process.
    unsafe { pg_sys::MyBackendType == pg_sys::BackendType::B_BACKEND }
}

/// Whether the catalog may be read and a provider may be called now. Not while PostgreSQL holds
/// interrupts, as it does with a buffer lock and in a critical section; not outside a transaction,
/// as when an error of an aborted one is reported; and not while changes are decoded.
pub(crate) fn may_wait() -> bool {
    // SAFETY: counters of this backend's.
    let holds = unsafe { pg_sys::InterruptHoldoffCount != 0 || pg_sys::CritSectionCount != 0 };
    pg::is_transaction_in_progress() && !holds && !is_decoding()
}

/// Whether values leave as ciphertext because logical decoding is reading them: of a historic
/// snapshot no key may be looked up, and a change stream must not carry plaintext. SQL-level
/// decoding has the snapshot without being a walsender.
pub(crate) fn is_decoding() -> bool {
    // SAFETY: a flag of this backend's.
    unsafe { pg_sys::am_walsender || pg::is_historic_snapshot_active() }
}

/// Whether this process applies changes of a subscription, or copies its tables for a start.
pub(crate) fn is_logical_worker() -> bool {
    pg::is_logical_worker()
}

/// Whether what runs now has other rights than those that the session chose: it is a SECURITY DEFINER
/// function, or maintenance that PostgreSQL does with the rights of a table's owner.
pub(crate) fn has_lent_rights() -> bool {
    pg::security_context() != 0
}

/// Whether what runs now is a SECURITY DEFINER function, or what it calls.
pub(crate) fn is_definer() -> bool {
    pg::security_context() & pg_sys::SECURITY_LOCAL_USERID_CHANGE as i32 != 0
}

/// Whether the session calls itself pg_dump, as pg_dump and pg_dumpall do by default.
pub(crate) fn is_named_pg_dump() -> bool {
    const NAME: &[u8] = b"pg_dump";
    // SAFETY: a setting of this backend's, a NUL-terminated string if it is not a null pointer; its bytes
    // are read up to the first that is another one. (This is asked for every value.)
    unsafe {
        let name = pg_sys::application_name.cast::<u8>();
        !name.is_null() && (0..NAME.len()).all(|n| *name.add(n) == NAME[n])
    }
}

/// Whether the session has made the settings that every pg_dump makes, under whatever name
/// (`setup_connection` of `src/bin/pg_dump/pg_dump.c`). With `--enable-row-security` it leaves
/// `row_security` on; its transaction is then recognized.
pub(crate) fn is_like_pg_dump() -> bool {
    // SAFETY: settings of this backend's, the search path a NUL-terminated string if it is not a null
    // pointer.
    unsafe {
        let path = pg_sys::namespace_search_path;
        !pg_sys::synchronize_seqscans
            && !path.is_null()
            && *path == 0
            && (!pg_sys::row_security
                || (pg_sys::XactReadOnly
                    && pg_sys::XactIsoLevel >= pg_sys::XACT_REPEATABLE_READ as i32))
    }
}

/// Whether ANALYZE is running: it says so in the statistics of its progress, if `track_activities` is
/// on, which is the default.
pub(crate) fn is_analyzing() -> bool {
    // SAFETY: this backend's own entry, which nobody else writes.
    unsafe {
        let entry = pg_sys::MyBEEntry;
        !entry.is_null()
            && (*entry).st_progress_command == pg_sys::ProgressCommandType::PROGRESS_COMMAND_ANALYZE
    }
}

/// Whether a dump is being restored: pg_dump's scripts and pg_restore set `check_function_bodies`
/// off so that what is created may name what does not exist yet.
pub(crate) fn is_restoring() -> bool {
    // SAFETY: a setting of this backend's.
    unsafe { !pg_sys::check_function_bodies }
}

/// Whether the server runs for `pg_upgrade` alone: nobody reads values but its pg_dump and its pg_restore,
/// which makes definitions before there is a catalog of keys.
pub(crate) fn is_upgrading() -> bool {
    // SAFETY: set when the postmaster starts (`postgres -b`).
    unsafe { pg_sys::IsBinaryUpgrade }
}

/// Whether the postmaster is loading the libraries in `shared_preload_libraries`.
pub(crate) fn is_preloading() -> bool {
    // SAFETY: a flag of this process's.
    unsafe { pg_sys::process_shared_preload_libraries_in_progress }
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

/// Registers for the end of this process. Called once in each that uses keys: what the postmaster
/// registers, its children forget.
pub(crate) fn register_for_exit() {
    // SAFETY: the callback never unwinds and stays valid, as a library is never unloaded.
    unsafe { pg_sys::on_proc_exit(Some(process_ends), pg_sys::Datum::from(0usize)) };
}

/// What PostgreSQL will give to `exit`.
static EXIT_CODE: AtomicI32 = AtomicI32::new(0);

unsafe extern "C-unwind" fn process_ends(code: i32, _argument: pg_sys::Datum) {
    EXIT_CODE.store(code, Ordering::Relaxed);
    if keyring::call::running() != 0 {
        // SAFETY: the handler stays valid, neither unwinds nor allocates, and ends the process.
        unsafe { libc::atexit(end_without_cleanup) };
    }
}

/// Runs first of the handlers of `exit`, since it was registered last, when a request to a provider was
/// given up and its thread still runs. The handlers and destructors of other libraries (a PKCS#11
/// module, OpenSSL) would take apart what the thread is using, and a backend that crashes while it
/// ends has PostgreSQL restart all the others. PostgreSQL's own clean-up is done by now.
extern "C" fn end_without_cleanup() {
    // SAFETY: ends the process, and touches no memory.
    unsafe { libc::_exit(EXIT_CODE.load(Ordering::Relaxed)) };
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
