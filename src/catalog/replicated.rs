//! What logical replication brings of the extension's own tables, as a publication of all tables sends them.

use pgrx::pg_sys;

use crate::errors::Error;
use crate::fmgr::sql_function;
use crate::session;

sql_function! {
    /// `encryption.leave_out_replicated() RETURNS trigger`, before each row that is changed where
    /// `session_replication_role` is `replica`: in a subscription's worker the change is left out. (In the
    /// session of somebody who restores a dump in this way it is not.)
    fn encryption_leave_out_replicated(call) {
        const MISUSED: Error = Error::Internal {
            what: "leave_out_replicated is not called as a trigger before a row's change",
        };
        // SAFETY: the context of the call, if any, is a node; of a trigger's, the tuples are set that its
        // event has.
        unsafe {
            let data = (*call.fcinfo()).context.cast::<pg_sys::TriggerData>();
            if data.is_null() || (*data).type_ != pg_sys::NodeTag::T_TriggerData {
                return Err(MISUSED);
            }
            // A null pointer, not a null, says that nothing is to be done with the row (`ExecBRInsertTriggers`
            // of src/backend/commands/trigger.c).
            if session::is_logical_worker() {
                return Ok(pg_sys::Datum::from(0usize));
            }
            let is_update = (*data).tg_event & pg_sys::TRIGGER_EVENT_OPMASK == pg_sys::TRIGGER_EVENT_UPDATE;
            Ok(pg_sys::Datum::from(if is_update { (*data).tg_newtuple } else { (*data).tg_trigtuple }))
        }
    }
}
