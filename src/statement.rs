//! Where a client's statement begins and ends: hooks around what PostgreSQL executes, of which the
//! outermost is the statement itself, and the others are what its functions and commands execute.

use std::cell::RefCell;
use std::ffi::c_char;
use std::hint::black_box;
use std::sync::atomic::{AtomicPtr, Ordering};

use pgrx::pg_sys;

use crate::fmgr::run_callback;
use crate::{audit, log_redaction, operators, pg};

/// Installs the hooks. Called once, when the library is loaded.
pub(crate) fn register() {
    // SAFETY: libraries are loaded one after the other, by the backend's only thread.
    unsafe {
        PREVIOUS_RUN = pg_sys::ExecutorRun_hook;
        pg_sys::ExecutorRun_hook = Some(executor_run);
        PREVIOUS_FINISH = pg_sys::ExecutorFinish_hook;
        pg_sys::ExecutorFinish_hook = Some(executor_finish);
        PREVIOUS_END = pg_sys::ExecutorEnd_hook;
        pg_sys::ExecutorEnd_hook = Some(executor_end);
        PREVIOUS_UTILITY = pg_sys::ProcessUtility_hook;
        pg_sys::ProcessUtility_hook = Some(process_utility);
        pg_sys::RegisterXactCallback(Some(transaction_event), std::ptr::null_mut());
        pg_sys::RegisterSubXactCallback(Some(subtransaction_event), std::ptr::null_mut());
        // A statement that has begun without these hooks goes on.
        if pg::is_transaction_in_progress() {
            FRAMES.with_borrow_mut(|frames| {
                frames.message = pg::message_received();
                frames.addresses.push(usize::MAX);
            });
        }
    }
}

static mut PREVIOUS_RUN: pg_sys::ExecutorRun_hook_type = None;
static mut PREVIOUS_FINISH: pg_sys::ExecutorFinish_hook_type = None;
static mut PREVIOUS_END: pg_sys::ExecutorEnd_hook_type = None;
static mut PREVIOUS_UTILITY: pg_sys::ProcessUtility_hook_type = None;

/// The hooks that are being executed.
///
/// An error leaves a hook by `longjmp`, past whatever would count it out. (A guard as pgrx has it
/// would do so, but raises another error, without the names of table and constraint.) So each is known by
/// where its frame is on the stack, which grows downwards: when a hook is entered, those whose frames
/// would be at or below its own are gone.
struct Frames {
    /// When the client's message was received that they belong to.
    message: i64,
    addresses: Vec<usize>,
}

thread_local! {
    static FRAMES: RefCell<Frames> =
        const { RefCell::new(Frames { message: 0, addresses: Vec::new() }) };
}

impl Frames {
    fn forget_gone(&mut self, address: usize) {
        let message = pg::message_received();
        if self.message != message {
            self.message = message;
            self.addresses.clear();
        }
        while self.addresses.last().is_some_and(|&last| last <= address) {
            self.addresses.pop();
        }
    }
}

fn client_statement_ends() {
    audit::statement_ends();
    operators::statement_ends();
}

/// Notes that the hook with this address in its frame is entered.
fn enter(address: usize) {
    let is_outermost = FRAMES.with_borrow_mut(|frames| {
        frames.forget_gone(address);
        frames.addresses.push(address);
        frames.addresses.len() == 1
    });
    if is_outermost {
        audit::statement_begins();
    }
}

/// Notes that it is left; whether nothing else is executed now.
fn leave(address: usize) -> bool {
    FRAMES.with_borrow_mut(|frames| {
        frames.forget_gone(address);
        frames.addresses.is_empty()
    })
}

/// Whether something is being executed, or was when an error was raised. Not at the end of a transaction,
/// when deferred constraints are checked.
pub(crate) fn is_executing() -> bool {
    FRAMES.with(|frames| {
        frames.try_borrow().is_ok_and(|frames| {
            frames.message == pg::message_received() && !frames.addresses.is_empty()
        })
    })
}

/// The query that is being executed, the innermost one, or null.
static RUNNING: AtomicPtr<pg_sys::QueryDesc> = AtomicPtr::new(std::ptr::null_mut());

/// The query that is being executed, the innermost one, or null if that isn't known: once an error was
/// caught in it.
pub(crate) fn running_query() -> *mut pg_sys::QueryDesc {
    RUNNING.load(Ordering::Relaxed)
}

unsafe extern "C-unwind" fn transaction_event(
    event: pg_sys::XactEvent::Type,
    _argument: *mut std::ffi::c_void,
) {
    use pg_sys::XactEvent as Event;

    if matches!(event, Event::XACT_EVENT_ABORT | Event::XACT_EVENT_PARALLEL_ABORT) {
        RUNNING.store(std::ptr::null_mut(), Ordering::Relaxed);
    }
}

/// An error has passed over the frames of queries, whose memory is about to go.
unsafe extern "C-unwind" fn subtransaction_event(
    event: pg_sys::SubXactEvent::Type,
    _subtransaction: pg_sys::SubTransactionId,
    _parent: pg_sys::SubTransactionId,
    _argument: *mut std::ffi::c_void,
) {
    if event == pg_sys::SubXactEvent::SUBXACT_EVENT_ABORT_SUB {
        RUNNING.store(std::ptr::null_mut(), Ordering::Relaxed);
    }
}

/// An address in the frame that `local` is a variable of.
fn address_of(local: &u8) -> usize {
    std::ptr::from_ref(black_box(local)).addr()
}

#[cfg(not(feature = "pg18"))]
unsafe extern "C-unwind" fn executor_run(
    query: *mut pg_sys::QueryDesc,
    direction: pg_sys::ScanDirection::Type,
    count: pg_sys::uint64,
    execute_once: bool,
) {
    let local = 0;
    let frame = address_of(&local);
    enter(frame);
    // SAFETY: PostgreSQL calls with a query that was started. An error passes over this frame, which
    // holds nothing with a destructor.
    unsafe {
        log_redaction::query_begins(query);
        let outer = RUNNING.swap(query, Ordering::Relaxed);
        match PREVIOUS_RUN {
            Some(previous) => previous(query, direction, count, execute_once),
            None => pg::standard_executor_run(query, direction, count, execute_once),
        }
        RUNNING.store(outer, Ordering::Relaxed);
    }
    leave(frame);
}

#[cfg(feature = "pg18")]
unsafe extern "C-unwind" fn executor_run(
    query: *mut pg_sys::QueryDesc,
    direction: pg_sys::ScanDirection::Type,
    count: pg_sys::uint64,
) {
    let local = 0;
    let frame = address_of(&local);
    enter(frame);
    // SAFETY: as for other versions.
    unsafe {
        log_redaction::query_begins(query);
        let outer = RUNNING.swap(query, Ordering::Relaxed);
        match PREVIOUS_RUN {
            Some(previous) => previous(query, direction, count),
            None => pg::standard_executor_run(query, direction, count),
        }
        RUNNING.store(outer, Ordering::Relaxed);
    }
    leave(frame);
}

/// Where AFTER triggers are executed.
unsafe extern "C-unwind" fn executor_finish(query: *mut pg_sys::QueryDesc) {
    let local = 0;
    let frame = address_of(&local);
    enter(frame);
    // SAFETY: as in `executor_run`.
    unsafe {
        match PREVIOUS_FINISH {
            Some(previous) => previous(query),
            None => pg::standard_executor_finish(query),
        }
    }
    leave(frame);
}

unsafe extern "C-unwind" fn executor_end(query: *mut pg_sys::QueryDesc) {
    let local = 0;
    // SAFETY: as in `executor_run`; the plan outlives its execution.
    unsafe {
        // What a RETURNING returns is sent to the client afterwards.
        let plan = (*query).plannedstmt;
        let is_over = !(*plan).hasReturning && !(*plan).hasModifyingCTE;
        match PREVIOUS_END {
            Some(previous) => previous(query),
            None => pg::standard_executor_end(query),
        }
        if leave(address_of(&local)) && is_over {
            client_statement_ends();
        }
    }
}

unsafe extern "C-unwind" fn process_utility(
    statement: *mut pg_sys::PlannedStmt,
    text: *const c_char,
    is_read_only: bool,
    context: pg_sys::ProcessUtilityContext::Type,
    parameters: pg_sys::ParamListInfo,
    environment: *mut pg_sys::QueryEnvironment,
    destination: *mut pg_sys::DestReceiver,
    completion: *mut pg_sys::QueryCompletion,
) {
    let local = 0;
    let frame = address_of(&local);
    // SAFETY: PostgreSQL calls with a command, which may be gone when it was executed. An error passes
    // over this frame, which holds nothing with a destructor.
    unsafe {
        let command = (*statement).utilityStmt;
        // What FETCH and EXECUTE return is sent to the client afterwards.
        let is_over = !pg::utility_returns_tuples(command);
        match (*command).type_ {
            // What they check at the end of a transaction is of all of its statements.
            pg_sys::NodeTag::T_TransactionStmt | pg_sys::NodeTag::T_ConstraintsSetStmt => {
                leave(frame);
                audit::statement_begins();
            }
            pg_sys::NodeTag::T_CopyStmt => {
                enter(frame);
                run_callback(|| log_redaction::copy_begins(&*command.cast()));
            }
            _ => enter(frame),
        }
        match PREVIOUS_UTILITY {
            Some(previous) => previous(
                statement,
                text,
                is_read_only,
                context,
                parameters,
                environment,
                destination,
                completion,
            ),
            None => pg::standard_process_utility(
                statement,
                text,
                is_read_only,
                context,
                parameters,
                environment,
                destination,
                completion,
            ),
        }
        if leave(frame) && is_over {
            client_statement_ends();
        }
    }
}
