//! What is counted: values, requests to providers, encryptions under each version of a key. By all
//! processes of the server when the library is preloaded, or else by this one alone.
//!
//! A value costs nothing here: what the audit has counted of a statement (`audit.rs`) is added when it is
//! written, at the statement's end. There is no lock: all that is there are atomic numbers, places are
//! taken by compare-and-swap, and so the thread that fetches keys ahead of their expiry may count too.

mod memory;

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use envelope::{KeyId, KeyVersion};
use keyring::provider::{Certificates, ProviderErrorKind, Retention};
use keyring::version::CheckValue;
use pgrx::pg_sys;

pub(crate) use memory::MEMORY;
use memory::{BUCKETS, DECRYPT_BUCKETS, Database, ERRORS, Provider};

/// Whether all processes of the server count in one place.
pub(crate) fn is_shared() -> bool {
    memory::is_shared()
}

/// What values were used for.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Values {
    pub(crate) encrypted: u64,
    pub(crate) decrypted: u64,
    pub(crate) compared: u64,
    /// Of those, the ones under a key past its time.
    pub(crate) served_past_expiry: u64,
    pub(crate) denials: u64,
}

/// Adds what a statement has counted.
pub(crate) fn add(values: Values) {
    let database = memory::area().database(this_database());
    let Values { encrypted, decrypted, compared, served_past_expiry, denials } = values;
    for (counter, count) in [
        (&database.encrypted, encrypted),
        (&database.decrypted, decrypted),
        (&database.compared, compared),
        (&database.served_past_expiry, served_past_expiry),
        (&database.denials, denials),
    ] {
        if count > 0 {
            counter.fetch_add(count, Ordering::Relaxed);
        }
    }
}

/// Counts a value that could not be opened because it was altered, or is none.
pub(crate) fn decrypt_failed() {
    let database = memory::area().database(this_database());
    database.decrypt_failures.fetch_add(1, Ordering::Relaxed);
}

/// Which decryptions are timed: one in so many, so that the clock costs a value nothing.
pub(crate) const TIMED_ONE_IN: u32 = 1024;

/// Adds how long a decryption took that was timed.
pub(crate) fn add_decrypt_time(took: Duration) {
    let database = memory::area().database(this_database());
    let nanoseconds = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
    let bucket = DECRYPT_BOUNDS.iter().position(|bound| took <= *bound);
    database.decrypt_buckets[bucket.unwrap_or(DECRYPT_BOUNDS.len())]
        .fetch_add(1, Ordering::Relaxed);
    database.decrypt_nanoseconds.fetch_add(nanoseconds, Ordering::Relaxed);
}

/// The upper bounds of the buckets of decryptions' times, but for the last one, which has none.
pub(crate) const DECRYPT_BOUNDS: [Duration; DECRYPT_BUCKETS - 1] = [
    Duration::from_nanos(250),
    Duration::from_nanos(500),
    Duration::from_micros(1),
    Duration::from_nanos(2500),
    Duration::from_micros(5),
    Duration::from_micros(10),
    Duration::from_micros(25),
    Duration::from_micros(50),
    Duration::from_micros(100),
    Duration::from_micros(250),
    Duration::from_millis(1),
    Duration::from_millis(10),
    Duration::from_millis(100),
];

/// Adds encryptions under a version.
pub(crate) fn add_encryptions(id: VersionId, count: u64) {
    if count > 0
        && let Some(version) = memory::area().version(id.0)
    {
        version.encryptions.fetch_add(count, Ordering::Relaxed);
    }
}

/// Encryptions under a version that were counted; `None` if there is no place for them.
pub(crate) fn encryptions(id: VersionId) -> Option<u64> {
    memory::area().encryptions(id.0)
}

/// Takes notice of whether a provider that was asked for a version has it.
pub(crate) fn version_asked(id: VersionId, error: Option<ProviderErrorKind>) {
    use ProviderErrorKind::{KeyMissing, VersionMissing};

    match error {
        None => {
            if let Some(version) = memory::area().known_version(id.0) {
                version.is_missing.store(0, Ordering::Relaxed);
            }
        }
        Some(KeyMissing | VersionMissing) => {
            if let Some(version) = memory::area().version(id.0) {
                version.is_missing.store(1, Ordering::Relaxed);
            }
        }
        // Nothing that tells.
        Some(_) => {}
    }
}

/// Whether the provider of a version has said, when it was asked last, that it hasn't got it.
pub(crate) fn is_missing(id: VersionId) -> bool {
    let version = memory::area().known_version(id.0);
    version.is_some_and(|version| version.is_missing.load(Ordering::Relaxed) != 0)
}

/// How many versions of a key a provider keeps, as far as it was seen.
#[derive(Clone, Copy)]
pub(crate) struct SeenRetention {
    /// The provider's own numbers.
    pub(crate) oldest: u32,
    pub(crate) newest: u32,
    pub(crate) versions: u32,
    pub(crate) max_versions: u32,
}

/// Takes notice of how many versions of a key a provider keeps; of what is only assumed as of what is not known.
pub(crate) fn retention_seen(provider: &str, key: KeyId, retention: &Retention) {
    let &Retention { oldest, newest, versions, max_versions, is_assumed, .. } = retention;
    if let Some(place) = memory::area().retention(retention_of(provider, key)) {
        let both = |high: u32, low: u32| u64::from(high) << 32 | u64::from(low);
        let newest_and_max = if is_assumed { 0 } else { both(newest, max_versions) };
        place.oldest_and_versions.store(both(oldest, versions), Ordering::Relaxed);
        place.newest_and_max.store(newest_and_max, Ordering::Release);
    }
}

/// How many versions of a key a provider keeps, if that was seen.
pub(crate) fn retention(provider: &str, key: KeyId) -> Option<SeenRetention> {
    let place = memory::area().known_retention(retention_of(provider, key))?;
    let newest_and_max = place.newest_and_max.load(Ordering::Acquire);
    let oldest_and_versions = place.oldest_and_versions.load(Ordering::Relaxed);
    let (high, low) = (|both: u64| (both >> 32) as u32, |both: u64| both as u32);
    let max_versions = Some(low(newest_and_max)).filter(|max| *max != 0)?;
    Some(SeenRetention {
        oldest: high(oldest_and_versions),
        newest: high(newest_and_max),
        versions: low(oldest_and_versions),
        max_versions,
    })
}

fn retention_of(provider: &str, key: KeyId) -> u64 {
    number_of((this_database(), provider, key.get()))
}

/// What names a version in all databases of the server, and is another one for a version that was rolled
/// back and made again.
#[derive(Clone, Copy)]
pub(crate) struct VersionId(u64);

impl VersionId {
    /// What names a version of a key of this database.
    pub(crate) fn new(key: KeyId, version: KeyVersion, check_value: &CheckValue) -> Self {
        let check_value: &[u8; CheckValue::LEN] = check_value.as_bytes();
        Self(number_of((this_database(), key.get(), version.get(), check_value)))
    }
}

/// Counts a request to a provider: how long it took, and of what kind its error was; and takes notice of the
/// certificates that it has used. Calls nothing of PostgreSQL's, as a thread calls it too.
pub(crate) fn asked(
    provider: &str,
    took: Duration,
    error: Option<ProviderErrorKind>,
    certificates: Certificates,
) {
    let database = this_database();
    let Some(counts) = memory::area().provider(database, number_of((database, provider))) else {
        return;
    };
    let microseconds = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
    let bucket = BOUNDS.iter().position(|bound| took <= *bound).unwrap_or(BOUNDS.len());
    counts.buckets[bucket].fetch_add(1, Ordering::Relaxed);
    counts.microseconds.fetch_add(microseconds, Ordering::Relaxed);
    match error {
        None => counts.last_success.store(now(), Ordering::Relaxed),
        Some(kind) => {
            counts.errors[ErrorClass::of(kind) as usize].fetch_add(1, Ordering::Relaxed);
            counts.last_failure.store(now(), Ordering::Relaxed);
        }
    }
    let Certificates { server_expires, client_expires } = certificates;
    for (place, expires) in [
        (&counts.certificate_expires, server_expires),
        (&counts.client_certificate_expires, client_expires),
    ] {
        // A request that failed may have come to no handshake: what was known before stays.
        if error.is_none() || expires.is_some() {
            place.store(expires.map_or(0, time_of), Ordering::Relaxed);
        }
    }
    // A refusal is an answer; a request that was given up says nothing.
    if error != Some(ProviderErrorKind::Interrupted) {
        let is_reachable = !error.is_some_and(ProviderErrorKind::is_outage);
        let reach = if is_reachable { memory::REACHABLE } else { memory::OUT_OF_REACH };
        counts.reach.store(reach, Ordering::Relaxed);
    }
}

/// The upper bounds of the buckets of request times, but for the last one, which has none.
pub(crate) const BOUNDS: [Duration; BUCKETS - 1] = [
    Duration::from_millis(5),
    Duration::from_millis(10),
    Duration::from_millis(25),
    Duration::from_millis(50),
    Duration::from_millis(100),
    Duration::from_millis(250),
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_millis(2500),
    Duration::from_secs(5),
    Duration::from_secs(10),
];

/// Errors of providers, by what an operator does about them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ErrorClass {
    Unreachable,
    TimedOut,
    Throttled,
    Login,
    Denied,
    NotFound,
    Invalid,
    Other,
}

const _: () = assert!(ErrorClass::Other as usize + 1 == ERRORS, "a counter for each class");

impl ErrorClass {
    fn of(kind: ProviderErrorKind) -> Self {
        use ProviderErrorKind as Kind;

        match kind {
            Kind::Unreachable | Kind::Sealed => Self::Unreachable,
            Kind::TimedOut => Self::TimedOut,
            Kind::Throttled => Self::Throttled,
            Kind::LoginFailed => Self::Login,
            Kind::Denied | Kind::WriteDenied => Self::Denied,
            Kind::KeyMissing | Kind::VersionMissing | Kind::KeyringMissing => Self::NotFound,
            Kind::AnswerInvalid
            | Kind::KeyLengthWrong
            | Kind::WrappedKeyInvalid
            | Kind::KeyringMalformed => Self::Invalid,
            Kind::Configuration
            | Kind::KeyringUnreadable
            | Kind::KeyringInsecure
            | Kind::KeyringUnwritable
            | Kind::Conflict
            | Kind::RandomUnavailable
            | Kind::NotAsked
            | Kind::Interrupted => Self::Other,
        }
    }
}

/// What was counted in a database.
pub(crate) struct DatabaseStatistics {
    /// 0 for those databases that have no place of their own.
    pub(crate) database: u32,
    pub(crate) values: Values,
    pub(crate) decrypt_failures: u64,
    /// The numbers of timed decryptions that took no longer than each of [`DECRYPT_BOUNDS`], and of all.
    pub(crate) decrypt_buckets: [u64; DECRYPT_BUCKETS],
    pub(crate) decrypt_nanoseconds: u64,
    pub(crate) reset_at: pg_sys::TimestampTz,
}

/// What was counted in each database, this one among them.
pub(crate) fn databases() -> Vec<DatabaseStatistics> {
    let area = memory::area();
    area.database(this_database());
    area.databases().map(|(id, counts)| DatabaseStatistics::read(id, counts)).collect()
}

impl DatabaseStatistics {
    fn read(database: u32, counts: &Database) -> Self {
        Self {
            database,
            values: Values {
                encrypted: get(&counts.encrypted),
                decrypted: get(&counts.decrypted),
                compared: get(&counts.compared),
                served_past_expiry: get(&counts.served_past_expiry),
                denials: get(&counts.denials),
            },
            decrypt_failures: get(&counts.decrypt_failures),
            decrypt_buckets: cumulative(&counts.decrypt_buckets),
            decrypt_nanoseconds: get(&counts.decrypt_nanoseconds),
            reset_at: counts.reset_at.load(Ordering::Relaxed).max(began()),
        }
    }
}

/// What was counted of a provider in this database.
#[derive(Default)]
pub(crate) struct ProviderStatistics {
    pub(crate) is_reachable: Option<bool>,
    /// The numbers of requests that took no longer than each of [`BOUNDS`], and of all.
    pub(crate) buckets: [u64; BUCKETS],
    pub(crate) microseconds: u64,
    /// By class, in the order of the columns of `enc_stat_provider`.
    pub(crate) errors: [u64; ERRORS],
    pub(crate) last_success: Option<pg_sys::TimestampTz>,
    pub(crate) last_failure: Option<pg_sys::TimestampTz>,
    pub(crate) certificate_expires: Option<pg_sys::TimestampTz>,
    pub(crate) client_certificate_expires: Option<pg_sys::TimestampTz>,
    pub(crate) reset_at: pg_sys::TimestampTz,
}

/// What was counted of the provider with this name in this database; `None` if there is no place for it.
pub(crate) fn provider(name: &str) -> Option<ProviderStatistics> {
    let database = this_database();
    memory::area().provider(database, number_of((database, name))).map(ProviderStatistics::read)
}

impl ProviderStatistics {
    fn read(counts: &Provider) -> Self {
        let at = |time: &std::sync::atomic::AtomicI64| {
            Some(time.load(Ordering::Relaxed)).filter(|time| *time != 0)
        };
        Self {
            is_reachable: match counts.reach.load(Ordering::Relaxed) {
                memory::REACHABLE => Some(true),
                memory::OUT_OF_REACH => Some(false),
                _ => None,
            },
            buckets: cumulative(&counts.buckets),
            microseconds: get(&counts.microseconds),
            errors: counts.errors.each_ref().map(get),
            last_success: at(&counts.last_success),
            last_failure: at(&counts.last_failure),
            certificate_expires: at(&counts.certificate_expires),
            client_certificate_expires: at(&counts.client_certificate_expires),
            reset_at: counts.reset_at.load(Ordering::Relaxed).max(began()),
        }
    }

    /// All requests.
    pub(crate) fn requests(&self) -> u64 {
        self.buckets[BUCKETS - 1]
    }
}

/// When counting began: with the server, or with this process.
pub(crate) fn began() -> pg_sys::TimestampTz {
    memory::area().began()
}

/// Counts what concerns this database anew, but for the encryptions under its keys, which tell of the keys and
/// not of a time.
pub(crate) fn reset() {
    memory::area().reset(this_database(), now());
}

/// Each bucket with those before it.
fn cumulative<const N: usize>(buckets: &[AtomicU64; N]) -> [u64; N] {
    let mut sum = 0;
    buckets.each_ref().map(|bucket| {
        sum += get(bucket);
        sum
    })
}

fn get(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

/// The present time, as PostgreSQL stores it, without asking PostgreSQL.
fn now() -> pg_sys::TimestampTz {
    time_of(SystemTime::now())
}

/// A time, as PostgreSQL stores it.
fn time_of(time: SystemTime) -> pg_sys::TimestampTz {
    /// From 1970 to 2000, in microseconds (`src/include/datatype/timestamp.h`).
    const EPOCH: i64 = 946_684_800_000_000;
    let since_1970 = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since_1970.as_micros()).unwrap_or(i64::MAX).saturating_sub(EPOCH)
}

/// A number that is hardly the same for two; never 0. It is the same in all processes, as they run the same
/// library.
fn number_of(name: impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    name.hash(&mut hasher);
    hasher.finish().max(1)
}

fn this_database() -> u32 {
    // SAFETY: set when a process has connected to a database, before it has a key or a thread, and never again.
    unsafe { pg_sys::MyDatabaseId }.to_u32()
}
