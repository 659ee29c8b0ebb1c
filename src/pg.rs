//! Functions of PostgreSQL's without the guard that pgrx puts around each call (a `sigsetjmp`): those
//! that are called for every value, only read this backend's state and raise no error, for which
//! it would cost more than they do; and those whose errors shall pass over the caller.

use std::ffi::{c_char, c_int, c_void};

use pgrx::pg_sys;

mod raw {
    use super::{PlanWalker, c_char, c_int, c_void, pg_sys};

    unsafe extern "C-unwind" {
        pub(super) fn GetCurrentStatementStartTimestamp() -> pg_sys::TimestampTz;
        pub(super) fn GetCurrentTransactionStartTimestamp() -> pg_sys::TimestampTz;
        pub(super) fn GetDatabaseEncoding() -> c_int;
        pub(super) fn GetSessionUserId() -> pg_sys::Oid;
        pub(super) fn GetUserId() -> pg_sys::Oid;
        pub(super) fn GetUserIdAndSecContext(user: *mut pg_sys::Oid, context: *mut c_int);
        pub(super) fn HistoricSnapshotActive() -> bool;
        pub(super) fn IsLogicalWorker() -> bool;
        pub(super) fn IsTransactionState() -> bool;
        pub(super) fn get_fn_expr_arg_stable(function: *mut pg_sys::FmgrInfo, n: c_int) -> bool;
        pub(super) fn standard_ExecutorStart(query: *mut pg_sys::QueryDesc, flags: c_int);
        #[cfg(not(feature = "pg18"))]
        pub(super) fn standard_ExecutorRun(
            query: *mut pg_sys::QueryDesc,
            direction: pg_sys::ScanDirection::Type,
            count: pg_sys::uint64,
            execute_once: bool,
        );
        #[cfg(feature = "pg18")]
        pub(super) fn standard_ExecutorRun(
            query: *mut pg_sys::QueryDesc,
            direction: pg_sys::ScanDirection::Type,
            count: pg_sys::uint64,
        );
        pub(super) fn standard_ExecutorFinish(query: *mut pg_sys::QueryDesc);
        pub(super) fn standard_ExecutorEnd(query: *mut pg_sys::QueryDesc);
        pub(super) fn standard_ProcessUtility(
            statement: *mut pg_sys::PlannedStmt,
            text: *const c_char,
            is_read_only: bool,
            context: pg_sys::ProcessUtilityContext::Type,
            parameters: pg_sys::ParamListInfo,
            environment: *mut pg_sys::QueryEnvironment,
            destination: *mut pg_sys::DestReceiver,
            completion: *mut pg_sys::QueryCompletion,
        );
        pub(super) fn UtilityReturnsTuples(command: *mut pg_sys::Node) -> bool;
        #[cfg(not(feature = "pg18"))]
        pub(super) fn pgstat_get_my_query_id() -> u64;
        #[cfg(feature = "pg18")]
        pub(super) fn pgstat_get_my_query_id() -> i64;
        #[cfg_attr(
            any(feature = "pg16", feature = "pg17", feature = "pg18"),
            link_name = "planstate_tree_walker_impl"
        )]
        pub(super) fn planstate_tree_walker(
            state: *mut pg_sys::PlanState,
            walker: PlanWalker,
            context: *mut c_void,
        ) -> bool;
        pub(super) fn GetCurrentTransactionNestLevel() -> c_int;
        pub(super) fn MemoryContextAllocExtended(
            context: pg_sys::MemoryContext,
            size: pg_sys::Size,
            flags: c_int,
        ) -> *mut c_void;
        pub(super) fn pfree(chunk: *mut c_void);
        pub(super) fn SignalHandlerForConfigReload(signal: c_int);
        pub(super) fn SignalHandlerForShutdownRequest(signal: c_int);
        pub(super) fn die(signal: c_int);
        pub(super) fn hash_bytes(bytes: *const u8, len: c_int) -> u32;
        pub(super) fn hash_bytes_extended(bytes: *const u8, len: c_int, seed: u64) -> u64;
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

/// What a background worker does when it is signalled.
#[derive(Clone, Copy, Debug)]
pub(crate) enum OnSignal {
    /// Sets `ConfigReloadPending`.
    Reload,
    /// Sets `ShutdownRequestPending`.
    ShutDown,
    /// Ends at the next check for interrupts.
    Die,
}

/// Has a signal handled by one of PostgreSQL's handlers.
pub(crate) fn handle_signal(signal: c_int, what: OnSignal) {
    let handler: unsafe extern "C-unwind" fn(c_int) = match what {
        OnSignal::Reload => raw::SignalHandlerForConfigReload,
        OnSignal::ShutDown => raw::SignalHandlerForShutdownRequest,
        OnSignal::Die => raw::die,
    };
    // SAFETY: PostgreSQL's own handlers set flags and the latch of this process.
    unsafe {
        #[cfg(not(feature = "pg18"))]
        pg_sys::pqsignal(signal, Some(handler));
        #[cfg(feature = "pg18")]
        pg_sys::pqsignal_be(signal, Some(handler));
    }
}

/// When the client's message was received that is worked on.
pub(crate) fn message_received() -> pg_sys::TimestampTz {
    // SAFETY: returns a static variable (src/backend/access/transam/xact.c).
    unsafe { raw::GetCurrentStatementStartTimestamp() }
}

/// The id of the client's query, as `pg_stat_statements` has it; `None` where none is computed.
pub(crate) fn query_id() -> Option<i64> {
    // SAFETY: reads this backend's own entry (src/backend/utils/activity/backend_status.c).
    let id = unsafe { raw::pgstat_get_my_query_id() };
    #[cfg(not(feature = "pg18"))]
    let id = id.cast_signed();
    (id != 0).then_some(id)
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

/// The role that the session has logged in as, or that a superuser has changed it to since.
pub(crate) fn session_user() -> pg_sys::Oid {
    // SAFETY: returns a static variable (src/backend/utils/init/miscinit.c).
    unsafe { raw::GetSessionUserId() }
}

/// Whether a transaction is in progress, in which system catalogs can be read.
pub(crate) fn is_transaction_in_progress() -> bool {
    // SAFETY: compares a static variable (src/backend/access/transam/xact.c).
    unsafe { raw::IsTransactionState() }
}

/// In which ways the current user is another than the one that the session chose: flags of
/// `src/include/miscadmin.h`.
pub(crate) fn security_context() -> c_int {
    let mut user = pg_sys::InvalidOid;
    let mut context = 0;
    // SAFETY: copies static variables (src/backend/utils/init/miscinit.c).
    unsafe { raw::GetUserIdAndSecContext(&raw mut user, &raw mut context) };
    context
}

/// Whether this process is a worker of logical replication.
pub(crate) fn is_logical_worker() -> bool {
    // SAFETY: compares a static variable (src/backend/replication/logical/worker.c).
    unsafe { raw::IsLogicalWorker() }
}

/// Whether the snapshot is one of logical decoding.
pub(crate) fn is_historic_snapshot_active() -> bool {
    // SAFETY: compares a static variable (src/backend/utils/time/snapmgr.c).
    unsafe { raw::HistoricSnapshotActive() }
}

/// `size` bytes in the current memory context, at most `MaxAllocSize`. If there is no more memory,
/// PostgreSQL's error says so.
pub(crate) fn allocate(size: usize) -> *mut u8 {
    // SAFETY: PostgreSQL always has a current memory context.
    unsafe { allocate_in(pg_sys::CurrentMemoryContext, size) }
}

/// The same in another one.
///
/// # Safety
///
/// `context` is a live memory context.
pub(crate) unsafe fn allocate_in(context: pg_sys::MemoryContext, size: usize) -> *mut u8 {
    // SAFETY: the caller's promise. With this flag no error is raised (src/backend/utils/mmgr/mcxt.c): a null
    // pointer says that there is no memory. The second call raises one, which the guard around it takes up.
    unsafe {
        let chunk =
            raw::MemoryContextAllocExtended(context, size, pg_sys::MCXT_ALLOC_NO_OOM as c_int);
        match chunk.is_null() {
            false => chunk.cast(),
            true => pg_sys::MemoryContextAlloc(context, size).cast(),
        }
    }
}

/// Gives memory back before its context is emptied.
///
/// # Safety
///
/// `chunk` is from `palloc` or the like, and nothing refers to it. (Only of another pointer would `pfree` raise
/// an error.)
pub(crate) unsafe fn free(chunk: *mut u8) {
    // SAFETY: the caller's promise.
    unsafe { raw::pfree(chunk.cast()) }
}

/// PostgreSQL's hash of bytes.
pub(crate) fn hash_any(bytes: &[u8]) -> u32 {
    // SAFETY: reads the bytes (src/common/hashfn.c).
    unsafe { raw::hash_bytes(bytes.as_ptr(), c_int::try_from(bytes.len()).unwrap_or(c_int::MAX)) }
}

/// PostgreSQL's hash of 16 bytes, as hash indexes have it: the same in every version.
pub(crate) fn hash_bytes(bytes: &[u8; 16]) -> u32 {
    // SAFETY: reads the bytes (src/common/hashfn.c).
    unsafe { raw::hash_bytes(bytes.as_ptr(), 16) }
}

/// The same in 64 bits, with a seed.
pub(crate) fn hash_bytes_extended(bytes: &[u8; 16], seed: u64) -> u64 {
    // SAFETY: as above.
    unsafe { raw::hash_bytes_extended(bytes.as_ptr(), 16, seed) }
}

/// Whether argument `n` of a call is a constant or a parameter of the query: the same in each call.
///
/// # Safety
///
/// `function` is what PostgreSQL calls with, or null.
pub(crate) unsafe fn is_argument_stable(function: *mut pg_sys::FmgrInfo, n: usize) -> bool {
    // SAFETY: the caller's promise. It looks at the node of the call's expression
    // (src/backend/utils/fmgr/fmgr.c).
    unsafe { raw::get_fn_expr_arg_stable(function, n as c_int) }
}

/// What `planstate_tree_walker` calls with each node below another.
pub(crate) type PlanWalker =
    unsafe extern "C-unwind" fn(state: *mut pg_sys::PlanState, context: *mut c_void) -> bool;

/// Calls `walker` with the nodes directly below `state`, as long as it returns `false`.
///
/// # Safety
///
/// `state` is the state of a plan's node. An error (the stack may be too deep) passes over the
/// caller's frame.
pub(crate) unsafe fn planstate_tree_walker(
    state: *mut pg_sys::PlanState,
    walker: PlanWalker,
    context: *mut c_void,
) -> bool {
    // SAFETY: the caller's promise.
    unsafe { raw::planstate_tree_walker(state, walker, context) }
}

/// What PostgreSQL does at a query's start without a hook.
///
/// # Safety
///
/// As PostgreSQL calls the hook. An error passes over the caller's frame.
pub(crate) unsafe fn standard_executor_start(query: *mut pg_sys::QueryDesc, flags: c_int) {
    // SAFETY: the caller's promise.
    unsafe { raw::standard_ExecutorStart(query, flags) }
}

/// How deep the present subtransaction is; 1 in a transaction that has none.
pub(crate) fn subtransaction_depth() -> c_int {
    // SAFETY: reads a static variable (src/backend/access/transam/xact.c).
    unsafe { raw::GetCurrentTransactionNestLevel() }
}

/// What PostgreSQL does to run a query without a hook.
///
/// # Safety
///
/// As PostgreSQL calls the hook. An error passes over the caller's frame.
#[cfg(not(feature = "pg18"))]
pub(crate) unsafe fn standard_executor_run(
    query: *mut pg_sys::QueryDesc,
    direction: pg_sys::ScanDirection::Type,
    count: pg_sys::uint64,
    execute_once: bool,
) {
    // SAFETY: the caller's promise.
    unsafe { raw::standard_ExecutorRun(query, direction, count, execute_once) }
}

/// What PostgreSQL does to run a query without a hook.
///
/// # Safety
///
/// As PostgreSQL calls the hook. An error passes over the caller's frame.
#[cfg(feature = "pg18")]
pub(crate) unsafe fn standard_executor_run(
    query: *mut pg_sys::QueryDesc,
    direction: pg_sys::ScanDirection::Type,
    count: pg_sys::uint64,
) {
    // SAFETY: the caller's promise.
    unsafe { raw::standard_ExecutorRun(query, direction, count) }
}

/// What PostgreSQL does after a query's last row without a hook.
///
/// # Safety
///
/// As PostgreSQL calls the hook. An error passes over the caller's frame.
pub(crate) unsafe fn standard_executor_finish(query: *mut pg_sys::QueryDesc) {
    // SAFETY: the caller's promise.
    unsafe { raw::standard_ExecutorFinish(query) }
}

/// What PostgreSQL does at a query's end without a hook.
///
/// # Safety
///
/// As PostgreSQL calls the hook. An error passes over the caller's frame.
pub(crate) unsafe fn standard_executor_end(query: *mut pg_sys::QueryDesc) {
    // SAFETY: the caller's promise.
    unsafe { raw::standard_ExecutorEnd(query) }
}

/// What PostgreSQL does to execute a command without a hook.
///
/// # Safety
///
/// As PostgreSQL calls the hook. An error passes over the caller's frame.
pub(crate) unsafe extern "C-unwind" fn standard_process_utility(
    statement: *mut pg_sys::PlannedStmt,
    text: *const c_char,
    is_read_only: bool,
    context: pg_sys::ProcessUtilityContext::Type,
    parameters: pg_sys::ParamListInfo,
    environment: *mut pg_sys::QueryEnvironment,
    destination: *mut pg_sys::DestReceiver,
    completion: *mut pg_sys::QueryCompletion,
) {
    // SAFETY: the caller's promise.
    unsafe {
        raw::standard_ProcessUtility(
            statement,
            text,
            is_read_only,
            context,
            parameters,
            environment,
            destination,
            completion,
        );
    }
}

/// Whether a command returns rows.
///
/// # Safety
///
/// `command` is the parse tree of a command. An error passes over the caller's frame.
pub(crate) unsafe fn utility_returns_tuples(command: *mut pg_sys::Node) -> bool {
    // SAFETY: the caller's promise.
    unsafe { raw::UtilityReturnsTuples(command) }
}
