//! What administrators do with the lifecycle log: have it verified, and add to it.

use envelope::KeyVersion;
use pgrx::{IntoDatum, pg_sys};

use super::key_name;
use super::rows::{Row, return_rows};
use crate::catalog::log::{self, Event, Verified, log_event};
use crate::catalog::write::refuse_if_read_only;
use crate::errors::Error;
use crate::fmgr::{Call, sql_function};
use crate::varlena::text_datum;

sql_function! {
    /// `enc_verify_log() RETURNS SETOF record`: a row for each chain.
    fn enc_verify_log(call) {
        let rows = log::verify()?.into_iter().map(row).collect::<Result<Vec<_>, _>>()?;
        return_rows(call, &rows)
    }
}

fn row(verified: Verified) -> Result<Row, Error> {
    let Verified { chain, is_restored, entries, unsealed, wrong } = verified;
    let problem = wrong.as_ref().map(|wrong| text_datum(wrong.problem.as_bytes())).transpose()?;
    Ok(vec![
        chain.into_datum(),
        Some(pg_sys::Datum::from(is_restored)),
        entries.into_datum(),
        unsealed.into_datum(),
        Some(pg_sys::Datum::from(wrong.is_none())),
        wrong.and_then(|wrong| wrong.sequence).into_datum(),
        problem,
    ])
}

sql_function! {
    /// `encryption.log_event(action text, key_name text, old_version integer, new_version integer,
    /// row_count bigint, reason text, detail text) RETURNS void`
    fn encryption_log_event(call) {
        refuse_if_read_only(c"encryption.log_event()");
        call.refuse_nulls_in_first(1)?;
        let action = call.text(0)?;
        let key = call.optional_text(1)?.map(|name| key_name(&name)).transpose()?;
        let (reason, detail) = (call.optional_text(5)?, call.optional_text(6)?);
        let mut event = Event::new(&action)
            .versions(version(call, 2), version(call, 3))
            .reason(reason.as_deref());
        if let Some(key) = &key {
            event = event.key(key);
        }
        if let Some(count) = call.nullable(4) {
            event = event.rows(count.value() as i64);
        }
        if let Some(detail) = &detail {
            event = event.detail(detail);
        }
        log_event(&event)?;
        Ok(pg_sys::Datum::from(0usize))
    }
}

fn version(call: &Call, n: usize) -> Option<KeyVersion> {
    let number = call.nullable(n)?.value() as i32;
    u32::try_from(number).ok().and_then(KeyVersion::new)
}
