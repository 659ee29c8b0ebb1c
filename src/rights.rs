//! The rights of another role for a while.

use pgrx::pg_sys;

/// Makes a role the current user until it is dropped, as a SECURITY DEFINER function does its owner;
/// PostgreSQL itself undoes it when it aborts the transaction or the subtransaction.
pub(crate) struct RightsOf {
    user: pg_sys::Oid,
    context: i32,
}

impl RightsOf {
    pub(crate) fn role(role: pg_sys::Oid) -> Self {
        let mut user = pg_sys::InvalidOid;
        let mut context = 0;
        // SAFETY: reads and sets the current user as fmgr_security_definer does for a function
        // that is SECURITY DEFINER.
        unsafe {
            pg_sys::GetUserIdAndSecContext(&raw mut user, &raw mut context);
            let local = pg_sys::SECURITY_LOCAL_USERID_CHANGE as i32;
            pg_sys::SetUserIdAndSecContext(role, context | local);
        }
        Self { user, context }
    }
}

impl Drop for RightsOf {
    fn drop(&mut self) {
        // SAFETY: what was the current user before. Where an error unwinds through here this only
        // comes a little before PostgreSQL's own reset.
        unsafe { pg_sys::SetUserIdAndSecContext(self.user, self.context) }
    }
}
