//! What is known, without asking a provider, of the keys and providers that `enc_stat_key`, `enc_stat_provider`
//! and `enc_health` show.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use envelope::{KeyName, KeyVersion};
use keyring::breaker::Breaker;
use keyring::configured::ProviderKind;
use keyring::provider::ProviderErrorKind;
use pgrx::{IntoDatum, pg_sys};

use super::providers::{all_keys, providers_in_use};
use super::retention;
use super::rows::return_rows;
use crate::catalog::{Key, Version};
use crate::errors::Error;
use crate::fmgr::sql_function;
use crate::shared::entries::{self, EntryId, Times};
use crate::shared::fetch;
use crate::statistics::VersionId;
use crate::varlena::text_datum;
use crate::{events, keys, shared, statistics};

/// Where something is known: in all processes of the server, or in this one alone.
pub(super) fn scope(is_shared: bool) -> Result<Option<pg_sys::Datum>, Error> {
    text(Some(if is_shared { "server" } else { "backend" }))
}

sql_function! {
    /// `encryption.key_states() RETURNS SETOF record`
    fn encryption_key_states(call) {
        let clock = Clock::now();
        let own = OwnCache::read()?;
        let kinds = kinds_of_providers();
        let counted_since = statistics::began();
        let mut rows = Vec::new();
        for key in all_keys()? {
            for version in &key.versions {
                let known = Known::of(&key, version, &own);
                let until = |period: fn(&Times) -> Duration| {
                    let held = known.held.as_ref();
                    held.map(|(age, times)| pg_sys::Datum::from(clock.ago(*age, period(times))))
                };
                let id = VersionId::new(key.name.id(), version.number, &version.check_value);
                let kept = Kept::of(&key, version, &kinds);
                let integer = |number: Option<u32>| {
                    number.map(|n| pg_sys::Datum::from(i32::try_from(n).unwrap_or(i32::MAX)))
                };
                rows.push(vec![
                    text(Some(key.name.as_str()))?,
                    Some(pg_sys::Datum::from(version.number.get() as i32)),
                    scope(shared::is_there())?,
                    until(|times| times.time_to_live),
                    until(|times| times.longest_use),
                    known.is_right.map(pg_sys::Datum::from),
                    statistics::encryptions(id).and_then(super::statistics::count),
                    Some(pg_sys::Datum::from(counted_since)),
                    integer(kept.versions),
                    integer(kept.max_versions),
                    integer(kept.newer_versions),
                    Some(pg_sys::Datum::from(kept.is_missing || statistics::is_missing(id))),
                ]);
            }
        }
        return_rows(call, &rows)
    }
}

/// What is known of how many versions a version's provider keeps; nothing of one that drops none.
#[derive(Default)]
struct Kept {
    versions: Option<u32>,
    max_versions: Option<u32>,
    /// How many newer ones the provider has: it drops those that have as many as it keeps.
    newer_versions: Option<u32>,
    /// Whether it has dropped it.
    is_missing: bool,
}

impl Kept {
    fn of(key: &Key, version: &Version, kinds: &BTreeMap<String, ProviderKind>) -> Self {
        let number_of = |version: &Version| {
            kinds.get(&version.provider)?.number_in(&version.reference, &key.name)
        };
        let seen = statistics::retention(&version.provider, key.name.id());
        let (Some(seen), Some(number)) = (seen, number_of(version)) else {
            return Self::default();
        };
        // Another server may have made one since.
        let of_provider = key.versions.iter().filter(|other| other.provider == version.provider);
        let newest = of_provider.filter_map(number_of).max().unwrap_or(0).max(seen.newest);
        Self {
            versions: Some(seen.versions),
            max_versions: Some(seen.max_versions),
            newer_versions: Some(newest.saturating_sub(number)),
            is_missing: number < seen.oldest,
        }
    }
}

/// The kinds of the providers in use whose settings are here.
fn kinds_of_providers() -> BTreeMap<String, ProviderKind> {
    let names = providers_in_use().unwrap_or_default().into_iter();
    names.filter_map(|name| retention::kind_of(&name).ok().map(|kind| (name, kind))).collect()
}

/// What is known of a version's key: of that which sessions share, or else of this session's own.
struct Known {
    /// How long ago it was fetched, and how long it may be used since then.
    held: Option<(Duration, Times)>,
    is_right: Option<bool>,
}

impl Known {
    fn of(key: &Key, version: &Version, own: &OwnCache) -> Self {
        let shared = entries::state(&EntryId::of(key, version));
        if let Some(age) = shared.age {
            return Self { held: Some((age, fetch::times())), is_right: shared.is_right };
        }
        let name = (key.name.clone(), version.number);
        let fetched_at = own.fetched_at.get(&name);
        let held = fetched_at.map(|at| (at.elapsed(), fetch::own_times()));
        let own_is_right = match own.wrong.contains(&name) {
            true => Some(false),
            false => held.is_some().then_some(true),
        };
        Self { held, is_right: shared.is_right.or(own_is_right) }
    }
}

/// What this session has fetched.
struct OwnCache {
    fetched_at: BTreeMap<(KeyName, KeyVersion), Instant>,
    wrong: Vec<(KeyName, KeyVersion)>,
}

impl OwnCache {
    fn read() -> Result<Self, Error> {
        let fetched_at = keys::with_cache(|cache| {
            let entries = cache.entries();
            Ok(entries.map(|e| ((e.name.clone(), e.version), e.fetched_at)).collect())
        })?;
        Ok(Self { fetched_at, wrong: events::wrong_check_values() })
    }
}

sql_function! {
    /// `encryption.provider_statistics() RETURNS SETOF record`
    fn encryption_provider_statistics(call) {
        let clock = Clock::now();
        let mut rows = Vec::new();
        for name in providers_in_use().unwrap_or_default() {
            rows.push(keys::with_providers(|providers| {
                let failed = |error| Error::Provider { provider: name.clone(), key: None, error };
                let configured = providers.configured(&name, failed).ok();
                let breaker = providers.breaker(&name, configured.as_ref());
                let login_end =
                    configured.and_then(|configured| providers.login_end(&name, &configured));
                let counted = statistics::provider(&name);
                let is_counted = counted.is_some();
                let counted = counted.unwrap_or_default();
                let number = |number: u64| {
                    is_counted.then(|| super::statistics::count(number)).flatten()
                };
                let mut row = vec![
                    text(Some(&name))?,
                    scope(statistics::is_shared())?,
                    counted.is_reachable.map(pg_sys::Datum::from),
                    text(Some(breaker_state(breaker.as_ref())))?,
                    number(counted.requests()),
                    number(counted.errors.iter().sum()),
                ];
                row.extend(counted.errors.map(number));
                row.extend([
                    (counted.microseconds as f64 / 1e6).into_datum().filter(|_| is_counted),
                    super::statistics::bounds(&statistics::BOUNDS),
                    is_counted.then(|| super::statistics::counts(&counted.buckets)).flatten(),
                    counted.last_success.map(pg_sys::Datum::from),
                    counted.last_failure.map(pg_sys::Datum::from),
                    login_end.map(|end| pg_sys::Datum::from(clock.of(end.at))),
                    counted.certificate_expires.map(pg_sys::Datum::from),
                    counted.client_certificate_expires.map(pg_sys::Datum::from),
                    is_counted.then(|| pg_sys::Datum::from(counted.reset_at)),
                ]);
                Ok(row)
            })?);
        }
        return_rows(call, &rows)
    }
}

fn breaker_state(breaker: Option<&Breaker>) -> &'static str {
    let now = Instant::now();
    match breaker {
        Some(breaker) if breaker.is_open(now) => "open",
        Some(breaker) if breaker.is_on_trial(now) => "half-open",
        _ => "closed",
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
                let with_token_file = configured.as_ref().ok().filter(|c| c.has_token_file());
                let token = with_token_file.and_then(|c| providers.login_end(&name, c));
                Ok(vec![
                    text(Some(&name))?,
                    scope(shared::is_there())?,
                    text(kind)?,
                    text(problem.map(Error::message).as_deref())?,
                    text(problem.and_then(Error::hint).as_deref())?,
                    breaker.as_ref().map_or(0, |breaker| i64::from(breaker.failures())).into_datum(),
                    Some(pg_sys::Datum::from(
                        breaker.as_ref().is_some_and(|breaker| breaker.is_open(Instant::now())),
                    )),
                    Some(pg_sys::Datum::from(login_failed)),
                    text(failure.map(|(_, error)| error.message.as_str()))?,
                    failure.map(|(at, _)| pg_sys::Datum::from(clock.of(*at))),
                    Some(pg_sys::Datum::from(with_token_file.is_some())),
                    token.map(|end| pg_sys::Datum::from(clock.of(end.at))),
                    token.map(|end| pg_sys::Datum::from(clock.of(end.known_since))),
                    token.and_then(|end| end.whole.as_secs_f64().into_datum()),
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

    /// The time of a moment that is over, or to come.
    fn of(&self, moment: Instant) -> pg_sys::TimestampTz {
        let ago = self.instant.saturating_duration_since(moment);
        self.ago(ago, moment.saturating_duration_since(self.instant))
    }

    /// The time so long ago, and a period later.
    fn ago(&self, ago: Duration, later: Duration) -> pg_sys::TimestampTz {
        let microseconds =
            |period: Duration| i64::try_from(period.as_micros()).unwrap_or(i64::MAX / 4);
        self.time - microseconds(ago) + microseconds(later)
    }
}
