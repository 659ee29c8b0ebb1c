//! A version's key: from what sessions share, or from its provider, which one of them asks for all.

use std::time::{Duration, Instant};

use envelope::DataKey;
use keyring::provider::{ProviderError, ProviderErrorKind};

use super::clock::Moment;
use super::entries::{self, EntryId, Flight, Next, SharedKey, Times};
use super::failures::Why;
use super::is_there;
use super::visit::WHILE_OUT_OF_REACH;
use crate::catalog::{Key, Version};
use crate::errors::Error;
use crate::keys::verify_check_value;
use crate::providers::Providers;
use crate::settings;

/// How much longer than for a request of its own a session waits for that of another one.
const MARGIN: Duration = Duration::from_secs(1);

/// A key that may be used.
pub(crate) struct Fetched {
    pub(crate) key: DataKey,
    /// When a provider gave it.
    pub(crate) at: Instant,
    /// If it is past its time: for how much longer, and why it is used all the same.
    pub(crate) past_time: Option<(Duration, String)>,
}

/// How long this session may use a key that it has fetched for itself.
pub(crate) fn own_times() -> Times {
    let time_to_live = settings::cache_ttl();
    Times { time_to_live, longest_use: time_to_live + settings::cache_stale_grace() }
}

/// How long this session may use a key that is shared: by its own settings where they are stricter than the
/// server's, and never for longer than by these, so that what is of no use any more can be wiped.
pub(crate) fn times() -> Times {
    let own = own_times();
    entries::times_of_server().map_or(own, |times| times.min(own))
}

/// A version's key that is shared and within its time.
pub(crate) fn fresh(key: &Key, version: &Version) -> Option<Fetched> {
    let limit = times().time_to_live;
    take(key, version, entries::get(&EntryId::of(key, version), limit)?)
}

/// A version's key, verified: one that is shared; or from its provider, unless another session asks it
/// already, whose answer is then waited for; or, while the provider is out of reach, one that is shared and
/// past its time.
///
/// # Errors
///
/// If there is none of these.
pub(crate) fn fetch(
    providers: &mut Providers,
    key: &Key,
    version: &Version,
) -> Result<Fetched, Error> {
    if !is_there() {
        let data_key = providers.open(key, version)?;
        verify_check_value(key, version, &data_key)?;
        return Ok(Fetched { key: data_key, at: Instant::now(), past_time: None });
    }
    if let Some(fresh) = fresh(key, version) {
        return Ok(fresh);
    }
    // All that reads the catalog comes before others may wait for this session.
    let fingerprint = providers.prepare(key, version)?;
    if !providers.is_calm(&version.provider)
        && let Some(stale) =
            stale(key, version, || format!("provider \"{}\" is out of reach", version.provider))
    {
        return Ok(stale);
    }
    entries::register_for_exit();
    let id = EntryId::of(key, version);
    let patience = settings::request_limits().total + MARGIN;
    let next = entries::get_or_fetch(&id, fingerprint, times().time_to_live, patience);
    let result = match next {
        Next::Here(shared) => take(key, version, shared).ok_or(wrong(key, version)),
        Next::Failed(why) => Err(error(key, version, why)),
        Next::Fetch(flight) => ask(providers, key, version, Some(flight), true),
        Next::FetchAlone => ask(providers, key, version, None, true),
    };
    match result {
        Err(error) if error.is_outage() => stale(key, version, || error.message()).ok_or(error),
        result => result,
    }
}

/// Asks the provider, which is prepared, for others too if there is a `flight`.
pub(super) fn ask(
    providers: &mut Providers,
    key: &Key,
    version: &Version,
    flight: Option<Flight>,
    is_used: bool,
) -> Result<Fetched, Error> {
    // A panic, which is how PostgreSQL's errors pass, drops the flight, and with that gives it up.
    let opened = providers.open_prepared(key, version);
    let result = opened.and_then(|data_key| {
        verify_check_value(key, version, &data_key)?;
        Ok(data_key)
    });
    match (&result, flight) {
        (_, None) => {}
        (Ok(data_key), Some(flight)) => flight.succeed(data_key, is_used),
        (Err(error), Some(flight)) => {
            if let Some(why) = why(error) {
                flight.fail(&why, retry_at(error));
            }
        }
    }
    result.map(|key| Fetched { key, at: Instant::now(), past_time: None })
}

/// When a version that could not be fetched is asked for again ahead of its expiry: after a refusal not
/// before a session needs it.
fn retry_at(error: &Error) -> Moment {
    match error.is_outage() {
        true => Moment::now().after(WHILE_OUT_OF_REACH),
        false => Moment::END,
    }
}

/// A key that is shared, past its time, and may be used while the provider is out of reach.
fn stale(key: &Key, version: &Version, why: impl FnOnce() -> String) -> Option<Fetched> {
    let Times { time_to_live, longest_use } = times();
    let shared = entries::get(&EntryId::of(key, version), longest_use)?;
    let past_time =
        (shared.age >= time_to_live).then(|| (longest_use.saturating_sub(shared.age), why()));
    let taken = take(key, version, shared)?;
    Some(Fetched { past_time, ..taken })
}

/// Takes a key that is shared. That it isn't the catalog's can't be, and is looked at all the same.
fn take(key: &Key, version: &Version, shared: SharedKey) -> Option<Fetched> {
    let SharedKey { key: data_key, at, age: _ } = shared;
    verify_check_value(key, version, &data_key).ok()?;
    Some(Fetched { key: data_key, at, past_time: None })
}

/// What others may be told of a failure. Not of a cancel, which is this session's alone.
fn why(error: &Error) -> Option<Why> {
    match error {
        Error::Provider { error, .. } if error.kind == ProviderErrorKind::Interrupted => None,
        Error::Provider { error, .. } => Some(Why::Provider(error.clone())),
        Error::KeyCheckValueWrong { .. } => Some(Why::CheckValueWrong),
        _ => None,
    }
}

fn error(key: &Key, version: &Version, why: Why) -> Error {
    match why {
        Why::Provider(error) => provider_error(key, version, error),
        Why::CheckValueWrong => wrong(key, version),
    }
}

fn provider_error(key: &Key, version: &Version, error: ProviderError) -> Error {
    Error::Provider { provider: version.provider.clone(), key: Some(key.name.clone()), error }
}

fn wrong(key: &Key, version: &Version) -> Error {
    Error::KeyCheckValueWrong {
        key: key.name.clone(),
        version: version.number,
        provider: version.provider.clone(),
    }
}
