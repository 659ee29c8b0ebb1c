//! The proof that a version is no longer used, and what it allows: destroying the version.
//!
//! A version that is no longer active may still be written by statements that began before the other
//! sessions were told, and what they wrote is seen only when their transactions have ended. So a
//! proof begins by noting a moment, the *horizon*, at which everybody had been told; waits until every
//! transaction of before has ended; and only then looks. The SQL of `enc_verify_version_unused` does
//! so, with what is here.

use pgrx::{IntoDatum, pg_sys};

use crate::catalog::log::Event;
use crate::catalog::write::{Writer, as_owner, refuse_if_read_only};
use crate::catalog::{Key, State, Version};
use crate::errors::Error;
use crate::fmgr::{Call, sql_function};
use crate::functions::lifecycle::{owned_key, refuse_if_changed, version_of};
use crate::functions::rows::return_rows;
use crate::jobs::jsonb;
use crate::keys;

sql_function! {
    /// `encryption.begin_proof(name text, version integer) RETURNS SETOF record`: the key's id and the
    /// horizon.
    fn encryption_begin_proof(call) {
        refuse_if_read_only(c"enc_verify_version_unused()");
        call.refuse_nulls()?;
        let key = owned_key(call)?;
        let version = version_of(&key, call.int4(1))?;
        if version.state == State::Active {
            return Err(Error::KeyVersionActive { key: key.name.clone(), version: version.number });
        }
        // SAFETY: both read variables of this backend's.
        let (isolation, has_changed) = unsafe {
            (pg_sys::XactIsoLevel, pg_sys::GetTopTransactionIdIfAny() != pg_sys::InvalidTransactionId)
        };
        if isolation >= pg_sys::XACT_REPEATABLE_READ as i32 || has_changed {
            return Err(Error::ProofNeedsOwnTransaction);
        }
        let horizon = horizon()?;
        let key_id = (key.name.id().get() as i32).into_datum();
        return_rows(call, &[vec![key_id, Some(pg_sys::Datum::from(horizon))]])
    }
}

/// A moment at which every session had been told of what the catalog says now. Who changes keys holds
/// a lock until that has been sent, which is later than the change can be seen
/// (`CommitTransaction` of `src/backend/access/transam/xact.c`).
fn horizon() -> Result<pg_sys::TimestampTz, Error> {
    let table = crate::catalog::key_table()?;
    let lock = pg_sys::ShareRowExclusiveLock as pg_sys::LOCKMODE;
    // SAFETY: the table exists. The lock is given back at once: nobody is to wait until the proof is
    // complete.
    unsafe {
        pg_sys::LockRelationOid(table, lock);
        pg_sys::UnlockRelationOid(table, lock);
        Ok(pg_sys::GetCurrentTimestamp())
    }
}

sql_function! {
    /// `encryption.record_proof(name text, version integer, horizon timestamptz, is_unused boolean,
    /// findings jsonb) RETURNS void`
    fn encryption_record_proof(call) {
        const INSERT: &str = "
            INSERT INTO encryption.version_proof
                (key_id, version, horizon, is_unused, findings, verified_by)
            SELECT key_id, $2, pg_catalog.to_timestamp($3), $4, $5, pg_catalog.pg_get_userbyid($6::oid)
              FROM encryption.key WHERE name = $1";
        refuse_if_read_only(c"enc_verify_version_unused()");
        call.refuse_nulls()?;
        let key = owned_key(call)?;
        as_owner(|catalog| {
            let caller = i64::from(catalog.caller().to_u32());
            let arguments = [
                key.name.as_str().into(),
                call.int4(1).into(),
                seconds(call, 2).into(),
                call.boolean(3).into(),
                jsonb(call, 4),
                caller.into(),
            ];
            catalog.run(INSERT, &arguments)
        })?;
        Ok(pg_sys::Datum::from(0usize))
    }
}

/// Argument `n`, a `timestamptz`, as `to_timestamp` takes it.
fn seconds(call: &Call, n: usize) -> f64 {
    /// From 1970 to 2000.
    const EPOCH: f64 = 946_684_800.0;
    call.int8(n) as f64 / 1e6 + EPOCH
}

sql_function! {
    /// `enc_destroy_key_version(name text, version integer, accept_data_loss boolean, grace_period
    /// interval, reason text) RETURNS void`
    fn enc_destroy_key_version(call) {
        refuse_if_read_only(c"enc_destroy_key_version()");
        call.refuse_nulls_in_first(4)?;
        let reason = call.optional_text(4)?;
        let key = owned_key(call)?;
        let version = version_of(&key, call.int4(1))?;
        match version.state {
            State::Destroyed => return Ok(pg_sys::Datum::from(0usize)),
            State::Active => {
                return Err(Error::KeyVersionActive {
                    key: key.name.clone(),
                    version: version.number,
                });
            }
            State::Pending | State::Deprecated | State::Disabled => (),
        }
        let accept_data_loss = call.boolean(2);
        // SAFETY: SQL declares the argument an interval.
        let grace =
            || unsafe { pgrx::datum::DatumWithOid::new(call.datum(3), pg_sys::INTERVALOID) };
        as_owner(|catalog| {
            if !accept_data_loss {
                refuse_if_used(catalog, &key, version, grace())?;
                // Without the lock, as it may take long.
                refuse_if_used_again(catalog, &key, version)?;
            }
            catalog.lock()?;
            refuse_if_changed(&key)?;
            if keys::makes_digests(&key, version.number)? {
                return Err(Error::DigestVersionInUse { version: version.number });
            }
            catalog.refuse_if_retained(&key.name, version.number)?;
            if !accept_data_loss {
                refuse_if_used(catalog, &key, version, grace())?;
            }
            catalog.destroy(&key.name, version.number)?;
            let event = Event::new("destroy").key(&key.name).versions(Some(version.number), None);
            let event = event.reason(reason.as_deref());
            match accept_data_loss {
                true => catalog.log(&event.detail("without a proof that it is unused")),
                false => catalog.log(&event),
            }
        })?;
        pgrx::notice!(
            "version {} of key \"{}\" is destroyed here; provider \"{}\" still has what it holds of it",
            version.number,
            key.name,
            version.provider
        );
        Ok(pg_sys::Datum::from(0usize))
    }
}

/// A version that was used needs a proof that is newer than its last possible use, and to have been
/// out of use for the grace period.
fn refuse_if_used(
    catalog: &mut Writer<'_, '_>,
    key: &Key,
    version: &Version,
    grace: pgrx::datum::DatumWithOid<'_>,
) -> Result<(), Error> {
    const USE: &str = "
        SELECT v.activated_at IS NULL AND v.state = 'pending',
               (retired.at + $3)::text,
               retired.at + $3 <= pg_catalog.now(),
               EXISTS (SELECT FROM encryption.version_proof p
                        WHERE p.key_id = v.key_id AND p.version = v.version AND p.is_unused
                          AND p.horizon > retired.at
                          -- The last word counts.
                          AND NOT EXISTS (SELECT FROM encryption.version_proof later
                                           WHERE later.key_id = p.key_id AND later.version = p.version
                                             AND later.verified_at > p.verified_at AND NOT later.is_unused))
          FROM encryption.key_version v,
               -- One that was adopted as deprecated never was active here.
               LATERAL (SELECT coalesce(v.deprecated_at, v.created_at) AS at) retired
         WHERE v.key_id = $1 AND v.version = $2";
    let arguments =
        [(key.name.id().get() as i32).into(), (version.number.get() as i32).into(), grace];
    let name = || key.name.clone();
    let row = catalog.row(USE, &arguments, |row| {
        Ok((row.required(1)?, row.required(2)?, row.required(3)?, row.required(4)?))
    })?;
    let (never_used, until, grace_is_over, is_proved): (bool, String, bool, bool) =
        row.ok_or_else(|| Error::KeyChangedMeanwhile { key: name() })?;
    if never_used {
        return Ok(());
    }
    if !is_proved {
        return Err(Error::KeyVersionMayBeUsed { key: name(), version: version.number });
    }
    match grace_is_over {
        true => Ok(()),
        false => Err(Error::KeyVersionInGrace { key: name(), version: version.number, until }),
    }
}

/// No session encrypts under a version that is proved to be unused. But where its key could not be had, a
/// restored dump or a subscription brought values as they were (`types/armored.rs`): so all is looked
/// through once more, at the last moment.
fn refuse_if_used_again(
    catalog: &mut Writer<'_, '_>,
    key: &Key,
    version: &Version,
) -> Result<(), Error> {
    const OBJECT: &str = "SELECT object FROM encryption.uses_of($1, $2) LIMIT 1";
    let arguments = [(key.name.id().get() as i32).into(), (version.number.get() as i32).into()];
    match catalog.value(OBJECT, &arguments)? {
        None => Ok(()),
        Some(object) => Err(Error::KeyVersionUsedAgain {
            key: key.name.clone(),
            version: version.number,
            object,
        }),
    }
}
