//! What this process knows, without asking a provider, of the keys and providers that `enc_stat_key` and
//! `enc_health` show.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use envelope::{KeyName, KeyVersion};
use keyring::breaker::Breaker;
use keyring::provider::ProviderErrorKind;
use pgrx::{IntoDatum, pg_sys};

use super::providers::providers_in_use;
use super::rows::{Row, return_rows};
use crate::errors::Error;
use crate::fmgr::sql_function;
use crate::varlena::text_datum;
use crate::{events, keys, settings};

/// Where this is known: in this process alone.
const SCOPE: &str = "backend";

/// What is known of a version.
#[derive(Default)]
struct Known {
    /// How long it may be used without its provider, and while that is out of reach.
    cached: Option<(pg_sys::TimestampTz, pg_sys::TimestampTz)>,
    is_right: bool,
}

sql_function! {
    /// `encryption.key_states() RETURNS SETOF record`
    fn encryption_key_states(call) {
        let clock = Clock::now();
        let mut known: BTreeMap<(KeyName, KeyVersion), Known> = BTreeMap::new();
        keys::with_cache(|cache| {
            for entry in cache.entries() {
                let until = |period| clock.at(entry.fetched_at, period);
                let cached = (until(settings::cache_ttl()), until(keys::longest_use()));
                let known = known.entry((entry.name.clone(), entry.version)).or_default();
                *known = Known { cached: Some(cached), is_right: true };
            }
            Ok(())
        })?;
        for version in events::wrong_check_values() {
            known.entry(version).or_default().is_right = false;
        }
        let row = |((name, version), known): ((KeyName, KeyVersion), Known)| -> Result<Row, Error> {
            Ok(vec![
                Some(text_datum(name.as_str().as_bytes())?),
                Some(pg_sys::Datum::from(version.get() as i32)),
                Some(text_datum(SCOPE.as_bytes())?),
                known.cached.map(|(cached, _)| pg_sys::Datum::from(cached)),
                known.cached.map(|(_, usable)| pg_sys::Datum::from(usable)),
                Some(pg_sys::Datum::from(known.is_right)),
                // Nobody counts them yet.
                None,
            ])
        };
        let rows = known.into_iter().map(row).collect::<Result<Vec<_>, _>>()?;
        return_rows(call, &rows)
    }
}

sql_function! {
    /// `encryption.provider_states() RETURNS SETOF record`
    fn encryption_provider_states(call) {
        let clock = Clock::now();
        let mut rows = Vec::new();
        // Without a provider there is nothing to be known of one.
        for name in providers_in_use().unwrap_or_default() {
            rows.push(keys::with_providers(|providers| {
                let failed = |error| Error::Provider { provider: name.clone(), key: None, error };
                let configured = providers.configured(&name, failed);
                let breaker = providers.breaker(&name, configured.as_ref().ok());
                let failure = breaker.as_ref().and_then(Breaker::last_failure);
                let login_failed =
                    failure.is_some_and(|(_, error)| error.kind == ProviderErrorKind::LoginFailed);
                let kind = configured.as_ref().ok().map(|configured| configured.kind.name());
                let problem = configured.as_ref().err();
                Ok(vec![
                    text(Some(&name))?,
                    text(kind)?,
                    text(problem.map(Error::message).as_deref())?,
                    text(problem.and_then(Error::hint).as_deref())?,
                    breaker.as_ref().map_or(0, |breaker| i64::from(breaker.failures())).into_datum(),
                    Some(pg_sys::Datum::from(
                        breaker.as_ref().is_some_and(|breaker| breaker.is_open(Instant::now())),
                    )),
                    Some(pg_sys::Datum::from(login_failed)),
                    text(failure.map(|(_, error)| error.message.as_str()))?,
                    failure.map(|(at, _)| pg_sys::Datum::from(clock.at(*at, Duration::ZERO))),
                ])
            })?);
        }
        return_rows(call, &rows)
    }
}

fn text(text: Option<&str>) -> Result<Option<pg_sys::Datum>, Error> {
    text.map(|text| text_datum(text.as_bytes())).transpose()
}

/// The same moment by the clock that measures periods and by the one that tells the time.
struct Clock {
    instant: Instant,
    time: pg_sys::TimestampTz,
}

impl Clock {
    fn now() -> Self {
        // SAFETY: asks the operating system.
        Self { instant: Instant::now(), time: unsafe { pg_sys::GetCurrentTimestamp() } }
    }

    /// The time of a moment that is over, and a period later.
    fn at(&self, moment: Instant, later: Duration) -> pg_sys::TimestampTz {
        let microseconds =
            |period: Duration| i64::try_from(period.as_micros()).unwrap_or(i64::MAX / 4);
        let ago = self.instant.saturating_duration_since(moment);
        self.time - microseconds(ago) + microseconds(later)
    }
}
