//! Commands that read again what they have written as text.
//!
//! ALTER TABLE makes constraints, indexes and statistics anew from what ruleutils.c prints, which goes
//! through the types' output functions (`ATPostAlterTypeParse` of `src/backend/commands/tablecmds.c`), and
//! compares the constraints of a table and its partition by their texts (`constraints_equivalent`). A
//! mask that is shown there would become the constraint. So nothing is shown in place of a value
//! while such a command runs, and none is begun by a role that is shown masks of the table's columns.

use std::cell::RefCell;
use std::ffi::{c_char, c_void};

use envelope::KeyId;
use pgrx::pg_sys;

use super::system_catalogs::columns;
use crate::errors::Error;
use crate::types::key_of_type;
use crate::{edges, keys, pg};

thread_local! {
    /// At which depth of subtransactions the commands run that alter definitions, the outermost first.
    static RUNNING: RefCell<Vec<i32>> = const { RefCell::new(Vec::new()) };
}

/// Installs the hook. Called once, when the library is loaded.
pub(crate) fn register() {
    // SAFETY: libraries are loaded one after the other, by the backend's only thread; the callbacks
    // neither unwind nor go away.
    unsafe {
        PREVIOUS = pg_sys::ProcessUtility_hook;
        pg_sys::ProcessUtility_hook = Some(process_utility);
        pg_sys::RegisterXactCallback(Some(transaction_event), std::ptr::null_mut());
        pg_sys::RegisterSubXactCallback(Some(subtransaction_event), std::ptr::null_mut());
    }
}

/// Refuses what would be shown in place of a value to a command that stores it.
///
/// # Errors
///
/// If such a command runs.
pub(crate) fn refuse_substitute(key_id: KeyId) -> Result<(), Error> {
    if is_altering() { Err(substitute_in(key_id)) } else { Ok(()) }
}

/// Whether such a command runs.
pub(crate) fn is_altering() -> bool {
    RUNNING.with_borrow(|running| !running.is_empty())
}

/// Refuses to alter a relation whose values the current user is shown masks of, or armor in their
/// place: what is not changed by this command itself may be by what is made of its text.
///
/// # Errors
///
/// If so.
pub(super) fn check_relation(relation: pg_sys::Oid) -> Result<(), Error> {
    for column in columns(relation) {
        let Some(key_id) = key_of_type(column.type_oid, column.modifier) else { continue };
        match keys::check(key_id, crate::catalog::Privilege::Decrypt) {
            Err(Error::PermissionDenied { .. }) if edges::substitute(key_id)?.is_some() => {
                return Err(substitute_in(key_id));
            }
            // A key that this database doesn't have, or of which nothing is shown.
            _ => (),
        }
    }
    Ok(())
}

fn substitute_in(key_id: KeyId) -> Error {
    let key = match keys::find(key_id) {
        Ok(Some(key)) => key.name.to_string(),
        _ => key_id.to_string(),
    };
    Error::SubstituteInDefinition { key }
}

static mut PREVIOUS: pg_sys::ProcessUtility_hook_type = None;

unsafe extern "C-unwind" fn process_utility(
    statement: *mut pg_sys::PlannedStmt,
    text: *const c_char,
    read_only_tree: bool,
    context: pg_sys::ProcessUtilityContext::Type,
    parameters: pg_sys::ParamListInfo,
    environment: *mut pg_sys::QueryEnvironment,
    destination: *mut pg_sys::DestReceiver,
    completion: *mut pg_sys::QueryCompletion,
) {
    // SAFETY: PostgreSQL calls with a utility statement, and what its own function takes. An error
    // passes over this frame, which holds nothing with a destructor; the callbacks below clear up.
    unsafe {
        let alters = alters_definitions((*statement).utilityStmt);
        if alters {
            let depth = pg::subtransaction_depth();
            RUNNING.with_borrow_mut(|running| running.push(depth));
        }
        let process = PREVIOUS.unwrap_or(pg::standard_process_utility);
        process(
            statement,
            text,
            read_only_tree,
            context,
            parameters,
            environment,
            destination,
            completion,
        );
        if alters {
            RUNNING.with_borrow_mut(|running| running.pop());
        }
    }
}

/// # Safety
///
/// `command` is the parse tree of a utility statement.
unsafe fn alters_definitions(command: *mut pg_sys::Node) -> bool {
    use pg_sys::NodeTag as Tag;

    // SAFETY: the caller's promise.
    let tag = unsafe { (*command).type_ };
    matches!(tag, Tag::T_AlterTableStmt | Tag::T_AlterDomainStmt)
}

unsafe extern "C-unwind" fn transaction_event(
    _event: pg_sys::XactEvent::Type,
    _argument: *mut c_void,
) {
    // A command that alters definitions ends no transaction, but by its error.
    RUNNING.with_borrow_mut(Vec::clear);
}

unsafe extern "C-unwind" fn subtransaction_event(
    event: pg_sys::SubXactEvent::Type,
    _subtransaction: pg_sys::SubTransactionId,
    _parent: pg_sys::SubTransactionId,
    _argument: *mut c_void,
) {
    if event == pg_sys::SubXactEvent::SUBXACT_EVENT_ABORT_SUB {
        let depth = pg::subtransaction_depth();
        RUNNING.with_borrow_mut(|running| running.retain(|&began_at| began_at < depth));
    }
}
