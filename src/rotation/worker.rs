//! Background workers that take part in a rotation.

use std::ffi::{CStr, CString};

use envelope::KeyName;
use pgrx::pg_sys;
use pgrx::spi::Spi;

use crate::catalog::write::refuse_if_read_only;
use crate::errors::Error;
use crate::fmgr::{run_callback, sql_function};
use crate::functions::lifecycle::owned_key;
use crate::{background_worker, pg};

/// What a worker is told, in the 128 bytes that PostgreSQL has for it.
#[derive(Clone, Copy)]
#[repr(C)]
struct Order {
    database: pg_sys::Oid,
    session_user: pg_sys::Oid,
    user: pg_sys::Oid,
    batch_size: i32,
    /// `integer` that is 0 for no limit.
    max_rate: i32,
    fire_triggers: bool,
    skip_damaged: bool,
    /// Whether it is the re-encryption that follows a scheduled rotation.
    is_scheduled: bool,
    /// NUL-terminated.
    key: [u8; 64],
}

const EXTRA_LEN: usize = 128;
const _: () = assert!(size_of::<Order>() <= EXTRA_LEN);

sql_function! {
    /// `encryption.start_workers(name text, workers integer, batch_size integer, max_rate integer,
    /// fire_triggers boolean, skip_damaged boolean) RETURNS integer`: how many could be started.
    fn encryption_start_workers(call) {
        refuse_if_read_only(c"encryption.start_workers()");
        let key = owned_key(call)?;
        let order = Order {
            // SAFETY: returns a static variable.
            session_user: unsafe { pg_sys::GetSessionUserId() },
            user: pg::current_user(),
            batch_size: call.int4(2),
            max_rate: call.nullable(3).map_or(0, |_| call.int4(3)),
            fire_triggers: call.boolean(4),
            skip_damaged: call.boolean(5),
            ..Order::about(&key.name)
        };
        let started = (0..call.int4(1)).take_while(|_| start(order)).count();
        Ok(pg_sys::Datum::from(i32::try_from(started).unwrap_or(i32::MAX)))
    }
}

/// Starts a worker for the re-encryption that follows a scheduled rotation, with the rights of who scheduled
/// it; false if max_worker_processes are running.
pub(super) fn start_scheduled(
    name: &KeyName,
    session_user: pg_sys::Oid,
    user: pg_sys::Oid,
) -> bool {
    start(Order { session_user, user, is_scheduled: true, ..Order::about(name) })
}

impl Order {
    /// Work on what is under a key of this database, by nobody yet.
    fn about(name: &KeyName) -> Self {
        let mut key = [0; 64];
        // A key's name has at most 63 bytes.
        let name = name.as_str().as_bytes();
        key[..name.len()].copy_from_slice(name);
        Self {
            // SAFETY: set when a backend has connected.
            database: unsafe { pg_sys::MyDatabaseId },
            session_user: pg_sys::InvalidOid,
            user: pg_sys::InvalidOid,
            batch_size: 0,
            max_rate: 0,
            fire_triggers: false,
            skip_damaged: false,
            is_scheduled: false,
            key,
        }
    }
}

/// Registers a worker; false if max_worker_processes are running.
fn start(order: Order) -> bool {
    let mut worker = background_worker::describe(
        "encryption_ext rotation worker",
        "encryption_rotation_worker",
        pg_sys::BgWorkerStartTime::BgWorkerStart_RecoveryFinished,
    );
    // SAFETY: `bgw_extra` has room for an order, at whatever alignment.
    unsafe { worker.bgw_extra.as_mut_ptr().cast::<Order>().write_unaligned(order) };
    // SAFETY: the worker is described in full; PostgreSQL copies it.
    unsafe { pg_sys::RegisterDynamicBackgroundWorker(&raw mut worker, std::ptr::null_mut()) }
}

/// Where PostgreSQL starts a worker's process.
#[unsafe(no_mangle)]
extern "C-unwind" fn encryption_rotation_worker(_argument: pg_sys::Datum) {
    // SAFETY: PostgreSQL calls, and this frame holds nothing with a destructor.
    unsafe { run_callback(take_part) }
}

fn take_part() -> Result<(), Error> {
    // SAFETY: the entry is that of this worker, as `start` filled it. The calls are those that a
    // worker makes, in their order (src/test/modules/worker_spi).
    unsafe {
        let extra = (&raw const (*pg_sys::MyBgworkerEntry).bgw_extra).cast::<Order>();
        let order = extra.read_unaligned();
        pg_sys::BackgroundWorkerUnblockSignals();
        pg_sys::BackgroundWorkerInitializeConnectionByOid(order.database, order.session_user, 0);

        pg_sys::StartTransactionCommand();
        pg_sys::PushActiveSnapshot(pg_sys::GetTransactionSnapshot());
        let statements = statements(&order);
        pg_sys::PopActiveSnapshot();
        pg_sys::CommitTransactionCommand();
        for statement in statements? {
            execute(&statement);
        }
    }
    Ok(())
}

/// What the worker does, in SQL: take the role of who ordered it, and what everybody would call.
fn statements(order: &Order) -> Result<Vec<CString>, Error> {
    const STATEMENTS: &str = "
        SELECT pg_catalog.format('SET ROLE %I', pg_catalog.pg_get_userbyid($1::oid)),
               CASE WHEN $7 THEN pg_catalog.format('CALL encryption.reencrypt_scheduled(%L)', $2)
                    ELSE pg_catalog.format(
                   'CALL %I.enc_rotate_all(%L, batch_size => %s, max_rate => nullif(%s, 0), '
                   'fire_triggers => %L, skip_damaged => %L)',
                   (SELECT nspname FROM pg_catalog.pg_namespace n
                      JOIN pg_catalog.pg_extension e ON e.extnamespace = n.oid
                     WHERE e.extname = 'encryption_ext'), $2, $3, $4, $5, $6) END";
    const FAILED: Error = Error::Internal { what: "a rotation worker can't read the catalogs" };
    let key = CStr::from_bytes_until_nul(&order.key).map_err(|_| FAILED)?;
    let (role, call) = Spi::get_two_with_args::<String, String>(
        STATEMENTS,
        &[
            i64::from(order.user.to_u32()).into(),
            key.to_string_lossy().into_owned().into(),
            order.batch_size.into(),
            order.max_rate.into(),
            order.fire_triggers.into(),
            order.skip_damaged.into(),
            order.is_scheduled.into(),
        ],
    )
    .map_err(|_| FAILED)?;
    let mut statements = Vec::new();
    if order.user != order.session_user {
        statements.extend(role.and_then(|role| CString::new(role).ok()));
    }
    statements.extend(call.and_then(|call| CString::new(call).ok()));
    Ok(statements)
}

/// Executes a statement as one that a client has sent, in a portal of its own: a procedure that
/// commits can't be called in another way.
///
/// # Safety
///
/// In a worker that has connected to a database, outside of a transaction.
pub(crate) unsafe fn execute(statement: &CStr) {
    // SAFETY: as exec_simple_query of src/backend/tcop/postgres.c does it. The portal's memory is
    // its own; the lists live in the message context as long as it.
    unsafe {
        let sql = statement.as_ptr();
        pg_sys::SetCurrentStatementStartTimestamp();
        pg_sys::debug_query_string = sql;
        pg_sys::pgstat_report_activity(pg_sys::BackendState::STATE_RUNNING, sql);
        pg_sys::StartTransactionCommand();

        let context = pg_sys::AllocSetContextCreateExtended(
            pg_sys::TopMemoryContext,
            c"rotation worker".as_ptr(),
            pg_sys::ALLOCSET_DEFAULT_MINSIZE as usize,
            pg_sys::ALLOCSET_DEFAULT_INITSIZE as usize,
            pg_sys::ALLOCSET_DEFAULT_MAXSIZE as usize,
        );
        let former = pg_sys::MemoryContextSwitchTo(context);
        let raw = pg_sys::list_nth(pg_sys::pg_parse_query(sql), 0).cast::<pg_sys::RawStmt>();
        let tag = pg_sys::CreateCommandTag((*raw).stmt);
        pg_sys::PushActiveSnapshot(pg_sys::GetTransactionSnapshot());
        #[cfg(feature = "pg14")]
        let queries =
            pg_sys::pg_analyze_and_rewrite(raw, sql, std::ptr::null_mut(), 0, std::ptr::null_mut());
        #[cfg(not(feature = "pg14"))]
        let queries = pg_sys::pg_analyze_and_rewrite_fixedparams(
            raw,
            sql,
            std::ptr::null(),
            0,
            std::ptr::null_mut(),
        );
        let plans = pg_sys::pg_plan_queries(queries, sql, 0, std::ptr::null_mut());
        pg_sys::PopActiveSnapshot();

        let portal = pg_sys::CreatePortal(c"".as_ptr(), true, true);
        (*portal).visible = false;
        pg_sys::PortalDefineQuery(portal, std::ptr::null(), sql, tag, plans, std::ptr::null_mut());
        pg_sys::PortalStart(portal, std::ptr::null_mut(), 0, std::ptr::null_mut());
        let receiver = pg_sys::CreateDestReceiver(pg_sys::CommandDest::DestNone);
        pg_sys::MemoryContextSwitchTo(former);
        pg_sys::PortalRun(
            portal,
            std::ffi::c_long::MAX,
            true,
            #[cfg(not(feature = "pg18"))]
            true,
            receiver,
            receiver,
            std::ptr::null_mut(),
        );
        pg_sys::PortalDrop(portal, false);
        pg_sys::CommitTransactionCommand();
        pg_sys::MemoryContextDelete(context);
        pg_sys::debug_query_string = std::ptr::null();
        pg_sys::pgstat_report_activity(pg_sys::BackendState::STATE_IDLE, std::ptr::null());
    }
}
