//! PostgreSQL's own messages on their way to the server log: what may be the plaintext of an encrypted
//! value is left out.
//!
//! PostgreSQL quotes values: in the DETAIL of a constraint violation ("Failing row contains (…)"), in
//! the CONTEXT of COPY, and in the message when a text is no date. The client has a right to them: what
//! it is shown has gone through the output function, with the role's rights, or is its own input. The
//! server log is others' to read.
//!
//! The hook is called when a message is about to be written. In the middle of an error no catalog can
//! be asked whether a table has encrypted columns. But a plaintext gets into a message only by way of
//! this library, which was called to encrypt it or to decrypt it: so it is noted, with the statement, when
//! that was. (Lines of COPY that have not got so far are the exception: [`copy_begins`].)
//!
//! Hooks may keep a message from the log, and may not change it: the client gets the same. So the original is
//! kept from the log, and another written to the log alone, with the same severity, SQLSTATE and statement.

use std::ffi::{CStr, c_char, c_int};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicPtr, Ordering};

use pgrx::pg_sys;

use crate::errors::{Error, OWN_CLASS, is_of_class};
use crate::{ddl, fmgr, pg, statement};

/// The statement in which a value was last encrypted or decrypted, by its start.
static STATEMENT: AtomicI64 = AtomicI64::new(i64::MIN);

/// Whether that was in the present transaction.
static IN_TRANSACTION: AtomicBool = AtomicBool::new(false);

/// The message in whose place another is being written.
static ORIGINAL: AtomicPtr<pg_sys::ErrorData> = AtomicPtr::new(std::ptr::null_mut());

static mut PREVIOUS: pg_sys::emit_log_hook_type = None;

/// Installs the hook. Called once, when the library is loaded.
pub(crate) fn register() {
    // SAFETY: libraries are loaded one after the other, by the backend's only thread.
    unsafe {
        PREVIOUS = pg_sys::emit_log_hook;
        pg_sys::emit_log_hook = Some(emit_log);
        pg_sys::RegisterXactCallback(Some(transaction_event), std::ptr::null_mut());
        // A COPY may have loaded the library that has begun already.
        if pg::is_transaction_in_progress() {
            value_used(pg::statement_start());
        }
    }
}

/// Notes that a value is being encrypted or decrypted in the statement that began then.
pub(crate) fn value_used(statement: i64) {
    STATEMENT.store(statement, Ordering::Relaxed);
    IN_TRANSACTION.store(true, Ordering::Relaxed);
}

/// Takes notice of a query that is about to run. What its parallel workers decrypt is in errors that they
/// hand to this process.
///
/// # Safety
///
/// `query` was started.
pub(crate) unsafe fn query_begins(query: *const pg_sys::QueryDesc) {
    // SAFETY: the caller's promise.
    if unsafe { (*(*query).plannedstmt).parallelModeNeeded } {
        value_used(pg::statement_start());
    }
}

/// Takes notice of a COPY that is about to run. One that finds a line too short or too long quotes it as a
/// whole, before any value was taken from it.
///
/// # Errors
///
/// If the table can't be looked up.
pub(crate) fn copy_begins(command: &pg_sys::CopyStmt) -> Result<(), Error> {
    if command.is_from && ddl::holds_encrypted(command.relation)? {
        value_used(pg::statement_start());
    }
    Ok(())
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
        IN_TRANSACTION.store(false, Ordering::Relaxed);
    }
}

/// Called for each message that is about to be written to the server log. It allocates nothing but a
/// few hundred bytes in the context that PostgreSQL keeps for errors, and neither looks anything up nor
/// holds anything with a destructor.
unsafe extern "C-unwind" fn emit_log(message: *mut pg_sys::ErrorData) {
    // SAFETY: PostgreSQL calls with a message; the original, if any, stays on its stack of messages until
    // the other is written.
    unsafe {
        let original = ORIGINAL.load(Ordering::Relaxed);
        // PostgreSQL's stack of messages is an array (`errordata` of src/backend/utils/error/elog.c), in
        // which the other one comes right behind the original. One that is left from an error in an
        // error has nothing to do with this message.
        if !original.is_null() && message == original.add(1) {
            complete(&mut *message, &*original);
        } else {
            redact(&mut *message);
        }
        if let Some(previous) = PREVIOUS
            && (*message).output_to_server
        {
            previous(message);
        }
    }
}

/// Which parts of a message may have a value in them.
struct Suspect {
    text: bool,
    detail: bool,
    context: bool,
}

impl Suspect {
    fn of(message: &pg_sys::ErrorData) -> Self {
        let in_transaction = IN_TRANSACTION.load(Ordering::Relaxed);
        let in_statement =
            in_transaction && STATEMENT.load(Ordering::Relaxed) == pg::statement_start();
        // A deferred constraint quotes what an earlier statement has written.
        let concerns = in_statement || (in_transaction && !statement::is_executing());
        let is_own = is_of_class(message.sqlerrcode, OWN_CLASS);
        // Those of statements that are logged as such have their parameters: who sets log_statement
        // wants them. They have no SQLSTATE.
        let is_about_data = message.sqlerrcode != 0 && !is_own;
        let has_detail = !message.detail.is_null() || !message.detail_log.is_null();
        Self {
            text: concerns && is_about_data && quotes_data(message),
            detail: concerns && is_about_data && has_detail,
            context: in_transaction && !message.context.is_null(),
        }
    }

    fn is_none(&self) -> bool {
        !(self.text || self.detail || self.context)
    }
}

/// Whether PostgreSQL's own message itself quotes data: those about data do (class 22), and those about what
/// a function has put together and executed (class 42).
fn quotes_data(message: &pg_sys::ErrorData) -> bool {
    let is_of = |class| is_of_class(message.sqlerrcode, class);
    is_of("22") || (is_of("42") && !message.internalquery.is_null())
}

/// Writes another message to the log in place of this one, if it may have a value in it.
///
/// # Safety
///
/// `message` is about to be written.
unsafe fn redact(message: &mut pg_sys::ErrorData) {
    let suspect = Suspect::of(message);
    if suspect.is_none() {
        return;
    }
    // A message without an SQLSTATE, of LOG or DEBUG, has nothing but its context to be left out; and a
    // FATAL one is not about data.
    let is_replaced = message.sqlerrcode != 0 && message.elevel < pg_sys::FATAL as c_int;
    message.hide_ctx |= suspect.context && !is_replaced;
    if is_replaced {
        // Should the log take no such message, it gets none.
        // SAFETY: the caller's promise; what the other message is made of lives as long as this one.
        unsafe { write_instead(message, &suspect) };
        message.output_to_server = false;
    }
}

const DETAIL_NOT_LOGGED: &CStr =
    c"Not logged, since it may have the value of an encrypted column in it.";
const TEXT_NOT_LOGGED: &CStr =
    c"message is not logged, since it may have the value of an encrypted column in it";

/// # Safety
///
/// As for [`redact`].
unsafe fn write_instead(original: &mut pg_sys::ErrorData, suspect: &Suspect) {
    let mut kept = [0; KEPT_LEN];
    let context = match suspect.context {
        true => keep_context(original.context, &mut kept),
        false => original.context,
    };
    let text = match suspect.text {
        false => original.message.cast_const(),
        true => format_of(original),
    };
    let detail = match (suspect.detail, original.detail_log.is_null()) {
        // Of a deadlock the client is not told the statements of others.
        (true, false) if is_deadlock(original) => original.detail,
        (true, _) => DETAIL_NOT_LOGGED.as_ptr().cast_mut(),
        (false, false) => original.detail_log,
        (false, true) => original.detail,
    };
    let replacement = fmgr::LogMessage {
        sqlstate: original.sqlerrcode,
        text,
        detail,
        hint: original.hint,
        context,
    };
    ORIGINAL.store(original, Ordering::Relaxed);
    // SAFETY: the strings are NUL-terminated and outlive the call. The functions that say where an error
    // was raised have done so for the original. Without interrupts nothing but a want of memory, in
    // which PostgreSQL starts its error stack anew, leaves this function but by its end.
    unsafe {
        let callbacks = pg_sys::error_context_stack;
        pg_sys::error_context_stack = std::ptr::null_mut();
        pg_sys::InterruptHoldoffCount += 1;
        fmgr::raw_server_log(&replacement);
        pg_sys::InterruptHoldoffCount -= 1;
        pg_sys::error_context_stack = callbacks;
    }
    ORIGINAL.store(std::ptr::null_mut(), Ordering::Relaxed);
}

/// The format that a message was made of, with placeholders for what it quotes; a text in its place, if the
/// message is not known to have been made so, as that of a parallel worker, or it is all there is.
fn format_of(message: &pg_sys::ErrorData) -> *const c_char {
    if message.message_id.is_null() {
        return TEXT_NOT_LOGGED.as_ptr();
    }
    // SAFETY: a NUL-terminated string.
    match unsafe { CStr::from_ptr(message.message_id) }.to_bytes() {
        b"%s" => TEXT_NOT_LOGGED.as_ptr(),
        _ => message.message_id,
    }
}

/// Gives the other message what is no text of the original: its severity, its place, whether the
/// statement is shown.
fn complete(message: &mut pg_sys::ErrorData, original: &pg_sys::ErrorData) {
    message.elevel = original.elevel;
    message.hide_stmt = original.hide_stmt;
    message.hide_ctx = original.hide_ctx;
    message.filename = original.filename;
    message.lineno = original.lineno;
    message.funcname = original.funcname;
    message.cursorpos = original.cursorpos;
}

fn is_deadlock(message: &pg_sys::ErrorData) -> bool {
    message.sqlerrcode == pg_sys::errcodes::PgSqlErrorCode::ERRCODE_T_R_DEADLOCK_DETECTED as c_int
}

/// How many bytes of a context are kept, with a NUL.
const KEPT_LEN: usize = 512;

/// The lines with which a context begins and which have no value in them, as a C string in `kept`; null
/// if there are none. After the first that is unknown a value may go on that has lines of its own.
fn keep_context(context: *const c_char, kept: &mut [u8; KEPT_LEN]) -> *mut c_char {
    if context.is_null() {
        return std::ptr::null_mut();
    }
    // SAFETY: a NUL-terminated string.
    let context = unsafe { CStr::from_ptr(context) }.to_bytes();
    let mut len = 0;
    for line in context.split(|&byte| byte == b'\n') {
        let safe = safe_part(line);
        if safe.is_empty() || len + safe.len() + 2 > KEPT_LEN {
            break;
        }
        if len > 0 {
            kept[len] = b'\n';
            len += 1;
        }
        kept[len..len + safe.len()].copy_from_slice(safe);
        len += safe.len();
        if safe.len() < line.len() {
            break;
        }
    }
    kept[len] = 0;
    match len {
        0 => std::ptr::null_mut(),
        _ => kept.as_mut_ptr().cast(),
    }
}

/// The beginning of a line of a context that says where it was, and no value: `COPY t, line 3, column
/// email` (`CopyFromErrorCallback` of `src/backend/commands/copyfrom.c`), `PL/pgSQL function f() line 3 at
/// RETURN` (`plpgsql_exec_error_callback` of `src/pl/plpgsql/src/pl_exec.c`). Empty if there is none, as
/// in another language.
fn safe_part(line: &[u8]) -> &[u8] {
    if line.starts_with(b"PL/pgSQL function ") || line == b"parallel worker" {
        return line;
    }
    if !line.starts_with(b"COPY ") {
        return &[];
    }
    let Some(at) = find(line, b", line ") else { return &[] };
    let digits = line[at + 7..].iter().take_while(|byte| byte.is_ascii_digit()).count();
    let mut end = at + 7 + digits;
    if line[end..].starts_with(b", column ") {
        end += find(&line[end..], b": ").unwrap_or(line.len() - end);
    }
    &line[..end]
}

fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes.windows(wanted.len()).position(|window| window == wanted)
}
