//! The server log's copy of the lifecycle log: each entry and its digest, written when the transaction
//! that made it has committed. It is out of reach of who only has the database, and so shows what an
//! older state of the tables, put back as a whole, would hide.

use std::cell::RefCell;
use std::fmt::Write as _;

use keyring::log::Digest;
use pgrx::{Uuid, pg_sys};

use super::Event;
use crate::events;
use crate::fmgr::server_log;

thread_local! {
    /// What this transaction will have done when it commits, with the subtransactions that did it.
    static LINES: RefCell<Vec<(pg_sys::SubTransactionId, Line)>> =
        const { RefCell::new(Vec::new()) };
}

/// What the server log is told.
pub(super) struct Line {
    /// Whether it is an entry of the log, and not a line of the audit.
    pub(super) is_entry: bool,
    pub(super) if_committed: String,
    /// Whether it will be committed is another session's to say.
    pub(super) if_prepared: String,
}

impl Line {
    fn write(&self, text: &str) {
        match self.is_entry {
            true => events::tell(&events::Event::KeyChanged { entry: text }),
            false => server_log(text),
        }
    }
}

/// What the server log says about an entry. The reason is left out: it is anybody's text.
pub(super) fn line(chain: Uuid, sequence: i64, digest: Option<&Digest>, event: &Event<'_>) -> Line {
    let mut line = format!("chain {chain}, entry {sequence}, ");
    // Writing to a String can't fail.
    let _ = match digest {
        Some(digest) => write!(line, "digest {digest}: {}", event.action),
        None => write!(line, "no digest yet: {}", event.action),
    };
    if let Some(key) = event.key {
        let _ = write!(line, " of key \"{key}\"");
    }
    for (label, version) in [("old", event.old_version), ("new", event.new_version)] {
        if let Some(version) = version {
            let _ = write!(line, ", {label} version {version}");
        }
    }
    Line { is_entry: true, if_prepared: format!("{line} (prepared)"), if_committed: line }
}

/// Has the server log say so when the transaction commits.
pub(super) fn write_at_commit(line: Line) {
    // SAFETY: a transaction is in progress, since the entry has just been written.
    let subtransaction = unsafe { pg_sys::GetCurrentSubTransactionId() };
    LINES.with_borrow_mut(|lines| lines.push((subtransaction, line)));
}

/// Registers for the end of transactions. Called once, when the library is loaded.
pub(crate) fn register() {
    // SAFETY: the callbacks stay valid, as a library is never unloaded.
    unsafe {
        pg_sys::RegisterXactCallback(Some(transaction_event), std::ptr::null_mut());
        pg_sys::RegisterSubXactCallback(Some(subtransaction_event), std::ptr::null_mut());
    }
}

unsafe extern "C-unwind" fn transaction_event(
    event: pg_sys::XactEvent::Type,
    _argument: *mut std::ffi::c_void,
) {
    use pg_sys::XactEvent as Event;

    match event {
        Event::XACT_EVENT_COMMIT => {
            LINES.take().iter().for_each(|(_, line)| line.write(&line.if_committed));
        }
        Event::XACT_EVENT_PREPARE => {
            LINES.take().iter().for_each(|(_, line)| line.write(&line.if_prepared));
        }
        Event::XACT_EVENT_ABORT => LINES.with_borrow_mut(Vec::clear),
        _ => (),
    }
}

unsafe extern "C-unwind" fn subtransaction_event(
    event: pg_sys::SubXactEvent::Type,
    subtransaction: pg_sys::SubTransactionId,
    _parent: pg_sys::SubTransactionId,
    _argument: *mut std::ffi::c_void,
) {
    if event == pg_sys::SubXactEvent::SUBXACT_EVENT_ABORT_SUB {
        // Their numbers grow, so those from this one on are its own and its children's.
        LINES.with_borrow_mut(|lines| lines.retain(|(by, _)| *by < subtransaction));
    }
}
