//! The ledger of backups.

use pgrx::datum::DatumWithOid;
use pgrx::pg_sys;

use crate::catalog::backups::Backup;
use crate::catalog::write::{as_owner, refuse_if_read_only};
use crate::fmgr::sql_function;

sql_function! {
    /// `enc_record_backup(label text, retained_until timestamptz, with_wal boolean, reason text)
    /// RETURNS integer`
    fn enc_record_backup(call) {
        refuse_if_read_only(c"enc_record_backup()");
        call.refuse_nulls_in_first(3)?;
        let (label, reason) = (call.text(0)?, call.optional_text(3)?);
        // SAFETY: SQL declares the argument timestamptz.
        let retained_until = unsafe { DatumWithOid::new(call.datum(1), pg_sys::TIMESTAMPTZOID) };
        let backup = Backup { label: &label, retained_until, with_wal: call.boolean(2) };
        let versions = as_owner(|catalog| catalog.record_backup(backup, reason.as_deref()))?;
        Ok(pg_sys::Datum::from(versions))
    }
}

sql_function! {
    /// `enc_forget_backup(label text, reason text) RETURNS void`
    fn enc_forget_backup(call) {
        refuse_if_read_only(c"enc_forget_backup()");
        call.refuse_nulls_in_first(1)?;
        let (label, reason) = (call.text(0)?, call.optional_text(1)?);
        as_owner(|catalog| catalog.forget_backup(&label, reason.as_deref()))?;
        Ok(pg_sys::Datum::from(0usize))
    }
}
