//! ANALYZE of encrypted columns: how many values are null, how wide they are and how many of them are
//! distinct. No value, no digest and no frequency is kept of them.

use std::collections::HashMap;
use std::ffi::c_int;

use keyring::digest::Digest;
use pgrx::pg_sys;

use super::Comparable;
use crate::errors::Error;
use crate::fmgr::{Call, run_callback, sql_function};
use crate::types::{EncryptedBytea, EncryptedText, parse};
use crate::varlena::Varlena;

sql_function! {
    /// `encrypted_text_typanalyze(internal) RETURNS boolean`: the typanalyze function of
    /// `encrypted_text` (`src/include/commands/vacuum.h`).
    fn encrypted_text_typanalyze(call) {
        set_up(call, compute_with_distinct::<EncryptedText>)
    }
}

sql_function! {
    /// `encrypted_bytea_typanalyze(internal) RETURNS boolean`: that of `encrypted_bytea`.
    fn encrypted_bytea_typanalyze(call) {
        set_up(call, compute_with_distinct::<EncryptedBytea>)
    }
}

sql_function! {
    /// `encrypted_typanalyze(internal) RETURNS boolean`: that of arrays and composites that have them
    /// inside.
    fn encrypted_typanalyze(call) {
        set_up(call, compute_trivial)
    }
}

/// What PostgreSQL calls with the sample of a column's values.
type Compute =
    unsafe extern "C-unwind" fn(pg_sys::VacAttrStatsP, pg_sys::AnalyzeAttrFetchFunc, c_int, f64);

fn set_up(call: &Call, compute: Compute) -> Result<pg_sys::Datum, Error> {
    let stats = call.datum(0).cast_mut_ptr::<pg_sys::VacAttrStats>();
    // SAFETY: ANALYZE passes the statistics of the column that it is about to sample.
    unsafe {
        (*stats).compute_stats = Some(compute);
        // As std_typanalyze does: rows enough for a good estimate.
        (*stats).minrows = 300 * statistics_target(stats);
    }
    Ok(pg_sys::Datum::from(true))
}

/// The column's statistics target: how detailed ANALYZE's sample is to be.
unsafe fn statistics_target(stats: *mut pg_sys::VacAttrStats) -> i32 {
    // SAFETY: the caller passes the statistics of a column, whose attribute is set.
    #[cfg(any(feature = "pg14", feature = "pg15", feature = "pg16"))]
    let target = unsafe { (*(*stats).attr).attstattarget };
    // SAFETY: as above.
    #[cfg(any(feature = "pg17", feature = "pg18"))]
    let target = unsafe { (*stats).attstattarget };

    // 16 bits wide in PostgreSQL 16.
    #[allow(clippy::useless_conversion)]
    match i32::from(target) {
        // SAFETY: a setting of this backend's.
        target if target < 0 => unsafe { pg_sys::default_statistics_target },
        target => target,
    }
}

/// `compute_trivial_stats` of `src/backend/commands/analyze.c`.
unsafe extern "C-unwind" fn compute_trivial(
    stats: pg_sys::VacAttrStatsP,
    fetch: pg_sys::AnalyzeAttrFetchFunc,
    sample_rows: c_int,
    _total_rows: f64,
) {
    // SAFETY: ANALYZE calls, and this frame holds nothing with a destructor.
    unsafe {
        run_callback(|| {
            Sample::read(stats, fetch, sample_rows, |_| ())?.write(stats, UNKNOWN);
            Ok(())
        });
    }
}

/// The same, and an estimate of the number of distinct values, for which they are decrypted and
/// digested. Where that isn't possible, because a key can't be had or a value is damaged, the last
/// estimate stays: ANALYZE, which autovacuum runs, fails for neither.
unsafe extern "C-unwind" fn compute_with_distinct<T: Comparable>(
    stats: pg_sys::VacAttrStatsP,
    fetch: pg_sys::AnalyzeAttrFetchFunc,
    sample_rows: c_int,
    total_rows: f64,
) {
    // SAFETY: as above.
    unsafe {
        run_callback(|| {
            let collation = (*stats).attrcollid;
            let mut distinct = Ok(Distinct::default());
            let sample = Sample::read(stats, fetch, sample_rows, |value| {
                if let Ok(counted) = &mut distinct
                    && let Err(error) = counted.count::<T>(value, collation)
                {
                    distinct = Err(error);
                }
            })?;
            let estimate = match distinct {
                Ok(distinct) => distinct.estimate(&sample, total_rows),
                Err(error) if error.is_interrupt() => return Err(error),
                Err(_) => last_estimate(stats),
            };
            sample.write(stats, estimate);
            Ok(())
        });
    }
}

/// `stadistinct` when nothing is known.
const UNKNOWN: f64 = 0.0;

/// What ANALYZE's sample says without any value being opened.
struct Sample {
    rows: f64,
    nulls: f64,
    total_width: f64,
}

impl Sample {
    /// Reads the sample, and calls `each` with every value of it that isn't null.
    fn read(
        stats: pg_sys::VacAttrStatsP,
        fetch: pg_sys::AnalyzeAttrFetchFunc,
        rows: c_int,
        mut each: impl FnMut(pg_sys::Datum),
    ) -> Result<Self, Error> {
        let fetch = fetch.ok_or(Error::Internal { what: "ANALYZE passes no sample" })?;
        let mut sample = Self { rows: f64::from(rows), nulls: 0.0, total_width: 0.0 };
        for row in 0..rows {
            pgrx::check_for_interrupts!();
            let mut is_null = false;
            // SAFETY: ANALYZE's own function, for a row of its sample.
            let value = unsafe { fetch(stats, row, &raw mut is_null) };
            if is_null {
                sample.nulls += 1.0;
                continue;
            }
            // SAFETY: the value is of a variable-length type. Its size is that which is stored: one
            // that is out of line is not fetched.
            sample.total_width += unsafe { pg_sys::toast_datum_size(value) } as f64;
            each(value);
        }
        Ok(sample)
    }

    fn values(&self) -> f64 {
        self.rows - self.nulls
    }

    fn write(&self, stats: pg_sys::VacAttrStatsP, distinct: f64) {
        if self.rows <= 0.0 {
            return;
        }
        let width = if self.values() > 0.0 { self.total_width / self.values() } else { 0.0 };
        // SAFETY: ANALYZE's statistics of the column.
        unsafe {
            (*stats).stats_valid = true;
            (*stats).stanullfrac = (self.nulls / self.rows) as f32;
            (*stats).stawidth = width as i32;
            (*stats).stadistinct = distinct as f32;
        }
    }
}

/// How often each plaintext is in the sample, by its digest.
#[derive(Default)]
struct Distinct {
    counts: HashMap<Digest, u32>,
    /// Values too long to be looked at: taken for distinct.
    too_wide: f64,
}

/// `WIDTH_THRESHOLD` of `src/backend/commands/analyze.c`, in bytes.
const TOO_WIDE: usize = 1024;

impl Distinct {
    /// Counts a value. No grant is needed: ANALYZE runs as the table's owner, and nobody learns more
    /// than how many values are different.
    fn count<T: Comparable>(
        &mut self,
        value: pg_sys::Datum,
        collation: pg_sys::Oid,
    ) -> Result<(), Error> {
        // SAFETY: the value is of type T, which is of variable length.
        let stored = unsafe {
            if pg_sys::toast_raw_datum_size(value) > TOO_WIDE {
                self.too_wide += 1.0;
                return Ok(());
            }
            Varlena::detoast(value)
        };
        let plaintext = T::decrypt(&parse(stored)?, None)?;
        let digest = T::equality_digest(plaintext.varlena(), collation)?;
        plaintext.free();
        stored.free_if_copy(value);
        *self.counts.entry(digest).or_insert(0) += 1;
        Ok(())
    }

    /// `stadistinct`, estimated from the sample as `compute_distinct_stats` of
    /// `src/backend/commands/analyze.c` does (Haas and Stokes, "Duj1").
    fn estimate(&self, sample: &Sample, total_rows: f64) -> f64 {
        let distinct = self.counts.len() as f64 + self.too_wide;
        let multiple = self.counts.values().filter(|&&count| count > 1).count() as f64;
        let null_fraction = sample.nulls / sample.rows.max(1.0);
        if sample.values() <= 0.0 {
            return UNKNOWN;
        }
        if multiple == 0.0 {
            // All different: a unique column, whose number of values grows with the table.
            return null_fraction - 1.0;
        }
        let estimate = if self.too_wide == 0.0 && multiple == distinct {
            // All were seen more than once: there are no others.
            distinct
        } else {
            let once = distinct - multiple;
            let seen = sample.values();
            let total = total_rows * (1.0 - null_fraction);
            let estimate = seen * distinct / ((seen - once) + once * seen / total.max(1.0));
            (estimate.clamp(distinct, total.max(distinct)) + 0.5).floor()
        };
        if estimate > 0.1 * total_rows { -(estimate / total_rows) } else { estimate }
    }
}

/// The number of distinct values that the last ANALYZE has left; of an index's expression it is
/// unknown.
fn last_estimate(stats: pg_sys::VacAttrStatsP) -> f64 {
    // SAFETY: ANALYZE's statistics of a column; the tuple is released after it was read.
    unsafe {
        let Some((relation, number)) = column_of(stats) else { return UNKNOWN };
        for with_children in [false, true] {
            let tuple = pg_sys::SearchSysCache3(
                pg_sys::SysCacheIdentifier::STATRELATTINH as i32,
                pg_sys::Datum::from(relation),
                pg_sys::Datum::from(number),
                pg_sys::Datum::from(with_children),
            );
            if !tuple.is_null() {
                let row = pg_sys::GETSTRUCT(tuple).cast::<pg_sys::FormData_pg_statistic>();
                let distinct = f64::from((*row).stadistinct);
                pg_sys::ReleaseSysCache(tuple);
                return distinct;
            }
        }
    }
    UNKNOWN
}

/// The table and the number of the column that is analyzed. `attr` went in PostgreSQL 17.
///
/// # Safety
///
/// `stats` are ANALYZE's, which is computing them.
unsafe fn column_of(stats: pg_sys::VacAttrStatsP) -> Option<(pg_sys::Oid, pg_sys::AttrNumber)> {
    // SAFETY: the caller's promise: the table's description is there, unless the values are those of
    // an index's expression, and it has the column.
    unsafe {
        let description = (*stats).tupDesc;
        if description.is_null() {
            return None;
        }
        let at = (*stats).tupattnum - 1;
        #[cfg(feature = "pg18")]
        let attribute = pg_sys::TupleDescAttr(description, at);
        #[cfg(not(feature = "pg18"))]
        let attribute = (*description).attrs.as_ptr().add(usize::try_from(at).ok()?);
        Some(((*attribute).attrelid, (*attribute).attnum))
    }
}
