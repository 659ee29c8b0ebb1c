//! ANALYZE of encrypted columns: how many are null and how wide they are, and nothing of their
//! contents. It opens no value, so it needs no key and fails on none.

use pgrx::pg_sys;

use crate::fmgr::{run_callback, sql_function};

sql_function! {
    /// `encrypted_typanalyze(internal) RETURNS boolean`: the typanalyze function of both types and
    /// of arrays of them (`src/include/commands/vacuum.h`).
    fn encrypted_typanalyze(call) {
        let stats = call.datum(0).cast_mut_ptr::<pg_sys::VacAttrStats>();
        // SAFETY: ANALYZE passes the statistics of the column that it is about to sample.
        unsafe {
            (*stats).compute_stats = Some(compute_statistics);
            // As std_typanalyze does: rows enough for a good estimate.
            (*stats).minrows = 300 * statistics_target(stats);
        }
        Ok(pg_sys::Datum::from(true))
    }
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
unsafe extern "C-unwind" fn compute_statistics(
    stats: pg_sys::VacAttrStatsP,
    fetch: pg_sys::AnalyzeAttrFetchFunc,
    sample_rows: std::ffi::c_int,
    _total_rows: f64,
) {
    // SAFETY: ANALYZE calls, and this frame holds nothing with a destructor.
    unsafe {
        run_callback(|| {
            let Some(fetch) = fetch else { return Ok(()) };
            let mut nulls = 0_u32;
            let mut width = 0_f64;
            for row in 0..sample_rows {
                pgrx::check_for_interrupts!();
                let mut is_null = false;
                let value = fetch(stats, row, &raw mut is_null);
                if is_null {
                    nulls += 1;
                } else {
                    // The size as stored: a toasted value is not fetched.
                    width += pg_sys::toast_datum_size(value) as f64;
                }
            }
            let rows = f64::from(sample_rows);
            let values = rows - f64::from(nulls);
            if rows > 0.0 {
                (*stats).stats_valid = true;
                (*stats).stanullfrac = (f64::from(nulls) / rows) as f32;
                (*stats).stawidth = if values > 0.0 { (width / values) as i32 } else { 0 };
                // Unknown: counting them needs their plaintexts.
                (*stats).stadistinct = 0.0;
            }
            Ok(())
        });
    }
}
