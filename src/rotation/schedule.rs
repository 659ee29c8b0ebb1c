//! Rotations that happen when a key's rotation period is over.
//!
//! Whoever calls `enc_run_due_rotations`, and however often: a key is due because of what the catalog says
//! of its active version, and its rotation changes that in the same transaction. The row of the schedule is
//! locked meanwhile, so that two callers don't both ask the provider. A rotation has the rights of the role
//! that scheduled it, and is refused when that role has lost them.

use std::time::Duration;

use envelope::{KeyId, KeyVersion};
use pgrx::datum::{DatumWithOid, TimestampWithTimeZone};
use pgrx::{IntoDatum, pg_sys};

use super::worker;
use crate::access;
use crate::catalog::Key;
use crate::catalog::key_info::KeyInfo;
use crate::catalog::log::Event;
use crate::catalog::write::{Writer, as_owner, refuse_if_read_only};
use crate::errors::Error;
use crate::fmgr::{Call, sql_function};
use crate::functions::lifecycle::{owned_key, refuse_if_changed, rotate};
use crate::rights::RightsOf;
use crate::{keys, pg};

/// What the log says why a key was rotated.
const REASON: &str = "scheduled rotation";

/// How long a re-encryption that has ended without an end of its work is left alone.
const PAUSE: Duration = Duration::from_secs(600);

sql_function! {
    /// `enc_schedule_rotation(name text, period interval, auto_reencrypt boolean, reason text) RETURNS
    /// timestamptz`: when the key is due.
    fn enc_schedule_rotation(call) {
        refuse_if_read_only(c"enc_schedule_rotation()");
        call.refuse_nulls_in_first(1)?;
        let info = KeyInfo::of_rotation_period(call.nullable(1))?;
        let auto_reencrypt = call.nullable(2).is_some_and(|datum| datum.value() & 0xff != 0);
        let reason = call.optional_text(3)?;
        let key = owned_key(call)?;
        let mut detail = info.describe();
        if auto_reencrypt {
            detail += if detail.is_empty() { "re-encryption" } else { "; re-encryption" };
        }
        let due = as_owner(|catalog| {
            catalog.lock()?;
            refuse_if_changed(&key)?;
            catalog.set_key_info(&key.name, &info)?;
            catalog.schedule(&key, auto_reencrypt)?;
            let event = Event::new("schedule-rotation").key(&key.name).reason(reason.as_deref());
            catalog.log(&if detail.is_empty() { event } else { event.detail(&detail) })?;
            catalog.due(key.name.id())
        })?;
        match due {
            Some((at, _)) => Ok(pg_sys::Datum::from(at)),
            None => Err(Error::RotationPeriodMissing { key: key.name.clone() }),
        }
    }
}

sql_function! {
    /// `enc_unschedule_rotation(name text, reason text) RETURNS boolean`: whether it was scheduled.
    fn enc_unschedule_rotation(call) {
        refuse_if_read_only(c"enc_unschedule_rotation()");
        call.refuse_nulls_in_first(1)?;
        let reason = call.optional_text(1)?;
        let key = owned_key(call)?;
        let was_scheduled = as_owner(|catalog| {
            catalog.lock()?;
            refuse_if_changed(&key)?;
            let deleted = catalog.run(
                "DELETE FROM encryption.rotation_schedule WHERE key_id = $1",
                &[of_id(key.name.id())],
            )?;
            if deleted > 0 {
                let event = Event::new("unschedule-rotation").key(&key.name);
                catalog.log(&event.reason(reason.as_deref()))?;
            }
            Ok(deleted > 0)
        })?;
        Ok(pg_sys::Datum::from(was_scheduled))
    }
}

sql_function! {
    /// `encryption.rotate_if_due(key_id integer) RETURNS integer`: the new version; null if the key is not
    /// due, or another session is about to rotate it.
    fn encryption_rotate_if_due(call) {
        refuse_if_read_only(c"enc_run_due_rotations()");
        call.refuse_nulls()?;
        let id = key_id(call)?;
        let scheduled_by = as_owner(|catalog| {
            let Some(schedule) = catalog.lock_schedule(id)? else { return Ok(None) };
            // Asked by a statement of its own: what another session has committed before the lock could
            // be had is seen by it.
            let is_due = catalog.due(id)?.is_some_and(|(_, is_due)| is_due);
            Ok(is_due.then_some(schedule.user))
        })?;
        let Some(scheduled_by) = scheduled_by else { return Ok(call.null()) };
        let version = {
            let _rights = RightsOf::role(scheduled_by);
            let key = keys::find(id)?.ok_or_else(|| Error::unknown_id(id))?;
            access::check_owner(&key)?;
            rotate(&key, true, Some(REASON))?
        };
        as_owner(|catalog| catalog.note_rotation(id, version))?;
        Ok(pg_sys::Datum::from(version.get() as i32))
    }
}

sql_function! {
    /// `encryption.note_rotation_error(key_id integer, error text) RETURNS void`
    fn encryption_note_rotation_error(call) {
        refuse_if_read_only(c"enc_run_due_rotations()");
        call.refuse_nulls()?;
        let (id, error) = (key_id(call)?, call.text(1)?);
        as_owner(|catalog| catalog.note_error(id, &error))?;
        Ok(pg_sys::Datum::from(0usize))
    }
}

sql_function! {
    /// `encryption.start_reencryption(key_id integer) RETURNS boolean`: whether a worker was started, which
    /// encrypts again what is under older versions, as the role that scheduled it would.
    fn encryption_start_reencryption(call) {
        refuse_if_read_only(c"enc_run_due_rotations()");
        call.refuse_nulls()?;
        let id = key_id(call)?;
        let is_started = as_owner(|catalog| {
            let Some(schedule) = catalog.lock_schedule(id)? else { return Ok(false) };
            if !catalog.is_reencryption_due(id)? {
                return Ok(false);
            }
            let key = keys::find(id)?.ok_or_else(|| Error::unknown_id(id))?;
            if !catalog.may_log_in(schedule.session_user)? {
                let role = access::role_name(schedule.session_user);
                catalog.note_error(id, &format!("role \"{role}\", whose session scheduled it, may not log in"))?;
                return Ok(false);
            }
            if !worker::start_scheduled(&key.name, schedule.session_user, schedule.user) {
                catalog.note_error(id, "no background worker could be started for the re-encryption: \
                    raise max_worker_processes")?;
                return Ok(false);
            }
            catalog.run(
                "UPDATE encryption.rotation_schedule
                    SET worker_started_at = pg_catalog.clock_timestamp() WHERE key_id = $1",
                &[of_id(id)],
            )?;
            Ok(true)
        })?;
        Ok(pg_sys::Datum::from(is_started))
    }
}

sql_function! {
    /// `encryption.end_reencryption(name text, version integer) RETURNS void`: nothing is left under
    /// versions older than this one.
    fn encryption_end_reencryption(call) {
        refuse_if_read_only(c"encryption.end_reencryption()");
        call.refuse_nulls()?;
        let key = owned_key(call)?;
        let version = call.int4(1);
        as_owner(|catalog| {
            catalog.run(
                "UPDATE encryption.rotation_schedule
                    SET reencrypt_to = NULL, worker_started_at = NULL, last_error = NULL, last_error_at = NULL
                  WHERE key_id = $1 AND reencrypt_to = $2",
                &[of_id(key.name.id()), version.into()],
            )
        })?;
        Ok(pg_sys::Datum::from(0usize))
    }
}

/// Whose rights a scheduled rotation has.
struct Schedule {
    user: pg_sys::Oid,
    session_user: pg_sys::Oid,
}

impl Writer<'_, '_> {
    /// Notes that a key is to be rotated when it is due, on behalf of the caller.
    fn schedule(&mut self, key: &Key, auto_reencrypt: bool) -> Result<(), Error> {
        let id = || of_id(key.name.id());
        let (user, session_user) = (of_role(self.caller()), of_role(pg::session_user()));
        // The trigger that a dump's rows meet skips one that is there.
        self.run(
            "INSERT INTO encryption.rotation_schedule (key_id, auto_reencrypt, scheduled_by, session_role)
             VALUES ($1, $2, $3::pg_catalog.oid, $4::pg_catalog.oid)",
            &[id(), auto_reencrypt.into(), user, session_user],
        )?;
        let (user, session_user) = (of_role(self.caller()), of_role(pg::session_user()));
        self.run(
            "UPDATE encryption.rotation_schedule
                SET auto_reencrypt = $2, scheduled_by = $3::pg_catalog.oid, session_role = $4::pg_catalog.oid,
                    scheduled_at = pg_catalog.clock_timestamp(), is_enabled = true,
                    reencrypt_to = CASE WHEN $2 THEN reencrypt_to END, last_error = NULL, last_error_at = NULL
              WHERE key_id = $1",
            &[id(), auto_reencrypt.into(), user, session_user],
        )?;
        Ok(())
    }

    /// Locks the row of a schedule until the transaction ends, if it is enabled and nobody has it locked.
    fn lock_schedule(&mut self, id: KeyId) -> Result<Option<Schedule>, Error> {
        self.row(
            "SELECT scheduled_by::pg_catalog.oid, session_role::pg_catalog.oid FROM encryption.rotation_schedule
              WHERE key_id = $1 AND is_enabled FOR UPDATE SKIP LOCKED",
            &[of_id(id)],
            |row| Ok(Schedule { user: row.required(1)?, session_user: row.required(2)? }),
        )
    }

    /// When the active version of a key is due to be replaced, and whether it is.
    fn due(&mut self, id: KeyId) -> Result<Option<(i64, bool)>, Error> {
        let due = self.row(
            "SELECT v.activated_at + k.rotation_period,
                    v.activated_at + k.rotation_period <= pg_catalog.clock_timestamp()
               FROM encryption.key k
               JOIN encryption.key_version v ON v.key_id = k.key_id AND v.state = 'active'
              WHERE k.key_id = $1 AND k.rotation_period IS NOT NULL",
            &[of_id(id)],
            |row| {
                let at: TimestampWithTimeZone = row.required(1)?;
                let at = at.into_datum().map_or(0, |at| at.value() as i64);
                Ok((at, row.required(2)?))
            },
        )?;
        Ok(due)
    }

    fn note_rotation(&mut self, id: KeyId, version: KeyVersion) -> Result<(), Error> {
        self.run(
            "UPDATE encryption.rotation_schedule
                SET rotated_at = pg_catalog.clock_timestamp(), last_error = NULL, last_error_at = NULL,
                    reencrypt_to = CASE WHEN auto_reencrypt THEN $2 END, worker_started_at = NULL
              WHERE key_id = $1",
            &[of_id(id), (version.get() as i32).into()],
        )?;
        Ok(())
    }

    fn note_error(&mut self, id: KeyId, error: &str) -> Result<(), Error> {
        self.run(
            "UPDATE encryption.rotation_schedule
                SET last_error = pg_catalog.convert_from($2, 'UTF8'),
                    last_error_at = pg_catalog.clock_timestamp()
              WHERE key_id = $1",
            &[of_id(id), error.as_bytes().to_vec().into()],
        )?;
        Ok(())
    }

    fn may_log_in(&mut self, role: pg_sys::Oid) -> Result<bool, Error> {
        let may = self.value(
            "SELECT rolcanlogin FROM pg_catalog.pg_authid WHERE oid = $1::pg_catalog.oid",
            &[of_role(role)],
        )?;
        Ok(may.unwrap_or(false))
    }

    /// Whether values are to be encrypted again, nobody is at it, and it was not tried lately since the
    /// server has started.
    fn is_reencryption_due(&mut self, id: KeyId) -> Result<bool, Error> {
        let is_due = self.value(
            "SELECT is_to_be_reencrypted AND NOT is_being_reencrypted
                    AND (worker_started_at IS NULL
                         OR worker_started_at < pg_catalog.pg_postmaster_start_time()
                         OR worker_started_at < pg_catalog.clock_timestamp() - pg_catalog.make_interval(secs => $2))
               FROM encryption.scheduled_work WHERE key_id = $1",
            &[of_id(id), PAUSE.as_secs_f64().into()],
        )?;
        Ok(is_due.unwrap_or(false))
    }
}

fn key_id(call: &Call) -> Result<KeyId, Error> {
    let number = call.int4(0);
    let id = u32::try_from(number).ok().and_then(KeyId::new);
    id.ok_or_else(|| Error::KeyUnknown { key: format!("#{number}") })
}

fn of_id(id: KeyId) -> DatumWithOid<'static> {
    (id.get() as i32).into()
}

fn of_role(role: pg_sys::Oid) -> DatumWithOid<'static> {
    i64::from(role.to_u32()).into()
}
