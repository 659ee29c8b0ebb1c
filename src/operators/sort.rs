//! Sort support (`src/include/utils/sortsupport.h`): what makes a sort decrypt each value once, and
//! not at every comparison.
//!
//! Plaintexts are kept for as long as `work_mem` has room for them, which it also is for the values
//! that PostgreSQL sorts at a time. Where the order is that of the bytes, the first eight of them are
//! what is compared first (an *abbreviated key*).

use std::ffi::c_int;

use pgrx::pg_sys;

use super::Comparable;
use super::plaintexts::Plaintexts;
use crate::catalog::Privilege;
use crate::fmgr::{run_callback, sql_function};
use crate::types::{EncryptedBytea, EncryptedText};
use crate::varlena::Varlena;

sql_function! {
    /// `encrypted_text_sortsupport(internal) RETURNS void`: procedure 2 of the btree operator class.
    fn encrypted_text_sortsupport(call) {
        set_up::<EncryptedText>(call.datum(0).cast_mut_ptr());
        Ok(pg_sys::Datum::from(0usize))
    }
}

sql_function! {
    /// `encrypted_bytea_sortsupport(internal) RETURNS void`
    fn encrypted_bytea_sortsupport(call) {
        set_up::<EncryptedBytea>(call.datum(0).cast_mut_ptr());
        Ok(pg_sys::Datum::from(0usize))
    }
}

/// The least that a value and its plaintext take, in bytes: how many fit.
const SMALLEST: usize = 128;

fn set_up<T: Comparable>(sort: pg_sys::SortSupport) {
    // SAFETY: PostgreSQL passes the sort that it is about to begin, whose context lives as long. The
    // callbacks have the signatures that it calls them with.
    unsafe {
        let bytes = usize::try_from(pg_sys::work_mem).unwrap_or(64) * 1024;
        let slots = (bytes / SMALLEST).next_power_of_two().clamp(1 << 10, 1 << 20);
        (*sort).ssup_extra = Plaintexts::new((*sort).ssup_cxt, slots, bytes).cast();
        (*sort).comparator = Some(compare::<T>);
        if (*sort).abbreviate && T::sorts_by_bytes((*sort).ssup_collation) {
            (*sort).abbrev_full_comparator = Some(compare::<T>);
            (*sort).comparator = Some(compare_abbreviated);
            (*sort).abbrev_converter = Some(abbreviate::<T>);
            (*sort).abbrev_abort = Some(never_abort);
        }
    }
}

unsafe extern "C-unwind" fn compare<T: Comparable>(
    left: pg_sys::Datum,
    right: pg_sys::Datum,
    sort: pg_sys::SortSupport,
) -> c_int {
    // SAFETY: PostgreSQL calls, and this frame holds nothing with a destructor. The datums are values
    // of the type that is sorted.
    unsafe {
        run_callback(|| {
            let values = [Varlena::detoast(left), Varlena::detoast(right)];
            let (l, r) = plaintexts(sort).find_or_decrypt_both::<T>(
                values[0],
                values[1],
                Privilege::Decrypt,
            )?;
            let order = T::order(l.base, r.base, (*sort).ssup_collation);
            l.free();
            r.free();
            values[0].free_if_copy(left);
            values[1].free_if_copy(right);
            Ok(order as c_int)
        })
    }
}

/// The first eight bytes of the plaintext, filled up with zeroes, as a number: the order of two such
/// numbers is that of the plaintexts unless they are equal.
unsafe extern "C-unwind" fn abbreviate<T: Comparable>(
    value: pg_sys::Datum,
    sort: pg_sys::SortSupport,
) -> pg_sys::Datum {
    // SAFETY: as in `compare`.
    unsafe {
        run_callback(|| {
            let detoasted = Varlena::detoast(value);
            let plaintext = plaintexts(sort).find_or_decrypt::<T>(detoasted, Privilege::Decrypt)?;
            let mut start = [0; 8];
            let bytes = plaintext.base.bytes();
            let len = bytes.len().min(start.len());
            start[..len].copy_from_slice(&bytes[..len]);
            plaintext.free();
            detoasted.free_if_copy(value);
            Ok(pg_sys::Datum::from(u64::from_be_bytes(start)))
        })
    }
}

unsafe extern "C-unwind" fn compare_abbreviated(
    left: pg_sys::Datum,
    right: pg_sys::Datum,
    _: pg_sys::SortSupport,
) -> c_int {
    left.value().cmp(&right.value()) as c_int
}

/// The values are decrypted in any case, so abbreviated keys are never a loss.
unsafe extern "C-unwind" fn never_abort(_: c_int, _: pg_sys::SortSupport) -> bool {
    false
}

/// # Safety
///
/// `set_up` was called for the sort, and the caller has no other reference to the table.
unsafe fn plaintexts<'a>(sort: pg_sys::SortSupport) -> &'a mut Plaintexts {
    // SAFETY: the caller's promise.
    unsafe { &mut *(*sort).ssup_extra.cast::<Plaintexts>() }
}
