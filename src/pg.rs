//! Functions of PostgreSQL's that are called for every value, only read this backend's state, and
//! raise no error: declared here without the guard that pgrx puts around each call (a `sigsetjmp`),
//! which would cost more than they do.

use std::ffi::c_int;

use pgrx::pg_sys;

mod raw {
    use super::{c_int, pg_sys};

    unsafe extern "C-unwind" {
        pub(super) fn GetCurrentStatementStartTimestamp() -> pg_sys::TimestampTz;
        pub(super) fn GetCurrentTransactionStartTimestamp() -> pg_sys::TimestampTz;
        pub(super) fn GetDatabaseEncoding() -> c_int;
        pub(super) fn GetUserId() -> pg_sys::Oid;
        pub(super) fn HistoricSnapshotActive() -> bool;
    }
}

/// When the statement that runs now was received from the client: what tells statements apart. In a
/// procedure that commits, when its present transaction began: it may run for days, and each of its
/// transactions is to notice what a statement would.
pub(crate) fn statement_start() -> pg_sys::TimestampTz {
    // SAFETY: both return static variables (src/backend/access/transam/xact.c). A transaction that
    // isn't begun by a procedure began no later than its present statement.
    unsafe {
        raw::GetCurrentStatementStartTimestamp().max(raw::GetCurrentTransactionStartTimestamp())
    }
}

/// The encoding of the database.
pub(crate) fn database_encoding() -> c_int {
    // SAFETY: returns a static variable (src/backend/utils/mb/mbutils.c).
    unsafe { raw::GetDatabaseEncoding() }
}

/// The role whose rights apply now: that of a SECURITY DEFINER function inside of it, that of
/// SET ROLE, or else that of the session.
pub(crate) fn current_user() -> pg_sys::Oid {
    // SAFETY: returns a static variable (src/backend/utils/init/miscinit.c).
    unsafe { raw::GetUserId() }
}

/// Whether the snapshot is one of logical decoding.
pub(crate) fn is_historic_snapshot_active() -> bool {
    // SAFETY: compares a static variable (src/backend/utils/time/snapmgr.c).
    unsafe { raw::HistoricSnapshotActive() }
}
