//! What was counted, and what this session holds of keys. No key bytes.

use std::time::{Duration, Instant};

use keyring::secret;
use pgrx::{IntoDatum, pg_sys};

use super::health::scope;
use super::rows::{Row, return_rows};
use crate::errors::Error;
use crate::fmgr::sql_function;
use crate::types::armored;
use crate::varlena::text_datum;
use crate::{keys, shared, statistics};

sql_function! {
    /// `encryption.value_statistics() RETURNS SETOF record`: a row of the view `enc_stat` for each database.
    fn encryption_value_statistics(call) {
        let row = |counted: statistics::DatabaseStatistics| -> Result<Row, Error> {
            let statistics::Values { encrypted, decrypted, compared, served_past_expiry, denials } =
                counted.values;
            Ok(vec![
                Some(pg_sys::Datum::from(counted.database)),
                scope(statistics::is_shared())?,
                count(encrypted),
                count(decrypted),
                count(compared),
                count(counted.decrypt_failures),
                count(denials),
                count(served_past_expiry),
                (counted.decrypt_nanoseconds as f64 / 1e9).into_datum(),
                bounds(&statistics::DECRYPT_BOUNDS),
                counts(&counted.decrypt_buckets),
                Some(pg_sys::Datum::from(counted.reset_at)),
            ])
        };
        let rows = statistics::databases().into_iter().map(row).collect::<Result<Vec<_>, _>>()?;
        return_rows(call, &rows)
    }
}

sql_function! {
    /// `enc_stat_reset() RETURNS void`
    fn enc_stat_reset(_call) {
        statistics::reset();
        Ok(pg_sys::Datum::from(0usize))
    }
}

sql_function! {
    /// `encryption.cache_statistics() RETURNS SETOF record`: the row of the view `enc_stat_cache`.
    fn encryption_cache_statistics(call) {
        let row = keys::with_cache(|cache| {
            let statistics = cache.statistics();
            let memory = secret::statistics();
            Ok(vec![
                count(statistics.entries),
                count(statistics.capacity),
                count(statistics.hits),
                count(statistics.misses),
                count(statistics.expirations),
                count(statistics.evictions),
                count(memory.locked_bytes),
                count(memory.unlocked_bytes),
            ])
        })?;
        return_rows(call, &[row])
    }
}

sql_function! {
    /// `encryption.cached_keys() RETURNS SETOF record`: the rows of the view `enc_stat_cache_keys`.
    fn encryption_cached_keys(call) {
        let rows = keys::with_cache(|cache| {
            let now = Instant::now();
            let row = |entry| -> Result<Row, Error> {
                let entry: &keyring::cache::CachedKey<_> = entry;
                Ok(vec![
                    Some(text_datum(entry.name.as_str().as_bytes())?),
                    Some(pg_sys::Datum::from(entry.version.get() as i32)),
                    entry.age(now).as_secs_f64().into_datum(),
                    cache.expires_in(entry, now).as_secs_f64().into_datum(),
                    count(entry.hits()),
                    Some(pg_sys::Datum::from(entry.locked)),
                ])
            };
            cache.entries().map(row).collect::<Result<Vec<_>, _>>()
        })?;
        return_rows(call, &rows)
    }
}

sql_function! {
    /// `encryption.shared_cache_statistics() RETURNS SETOF record`: the row of the view
    /// `enc_stat_shared_cache`.
    fn encryption_shared_cache_statistics(call) {
        let is_there = shared::is_there();
        let shared::Statistics {
            entries,
            capacity,
            hits,
            misses,
            fetches,
            waits,
            evictions,
            locked_bytes,
            unlocked_bytes,
        } = shared::statistics().unwrap_or_default();
        let row = vec![
            Some(pg_sys::Datum::from(is_there)),
            count(entries),
            count(capacity),
            count(hits),
            count(misses),
            count(fetches),
            count(waits),
            count(evictions),
            count(locked_bytes),
            count(unlocked_bytes),
        ];
        return_rows(call, &[row])
    }
}

/// The upper bounds of a histogram's buckets in seconds, with infinity, as a `double precision[]`.
pub(super) fn bounds(bounds: &[Duration]) -> Option<pg_sys::Datum> {
    let bounds = bounds.iter().map(Duration::as_secs_f64).chain([f64::INFINITY]);
    bounds.collect::<Vec<_>>().into_datum()
}

/// Counts as a `bigint[]`.
pub(super) fn counts(counts: &[u64]) -> Option<pg_sys::Datum> {
    let counts = counts.iter().map(|count| i64::try_from(*count).unwrap_or(i64::MAX));
    counts.collect::<Vec<_>>().into_datum()
}

pub(super) fn count(number: impl TryInto<i64>) -> Option<pg_sys::Datum> {
    number.try_into().unwrap_or(i64::MAX).into_datum()
}

sql_function! {
    /// `enc_flush_cache() RETURNS void`: this session forgets every key and what it read of the
    /// catalog; and if it is a superuser's, so do all sessions of the database, as far as they share keys.
    fn enc_flush_cache(_call) {
        // SAFETY: a look-up in a system cache.
        if unsafe { pg_sys::superuser() } {
            shared::entries::flush();
        }
        keys::flush();
        armored::flush();
        Ok(pg_sys::Datum::from(0usize))
    }
}
