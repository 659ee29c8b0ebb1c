//! Sort support (`src/include/utils/sortsupport.h`): what makes a sort decrypt each value once, and
//! not at every comparison.
//!
//! A sort asks once a value for an *abbreviated key* and compares these, and then, where they are
//! equal, the values. Here the abbreviated key is the whole plaintext: a pointer to it. Plaintexts are
//! kept for as long as `work_mem` has room for them; values for which there was none, and those that
//! are read back from a temporary file, are decrypted when they are compared, and kept as long as
//! there is room.

use std::cmp::Ordering;
use std::ffi::c_int;

use pgrx::pg_sys;

use super::Comparable;
use super::plaintexts::{Plaintexts, decrypt};
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

/// What a sort keeps. Plain data, in the sort's memory context.
#[repr(C)]
struct Kept {
    /// The plaintexts that abbreviated keys point to live here.
    context: pg_sys::MemoryContext,
    used_bytes: usize,
    limit_bytes: usize,
    /// Those of values that are compared without.
    others: *mut Plaintexts,
}

/// The least that a value and its plaintext take, in bytes.
const SMALLEST: usize = 128;

fn set_up<T: Comparable>(sort: pg_sys::SortSupport) {
    // SAFETY: PostgreSQL passes the sort that it is about to begin, whose context lives as long. The
    // callbacks have the signatures that it calls them with.
    unsafe {
        let limit_bytes = usize::try_from(pg_sys::work_mem).unwrap_or(64) * 1024;
        let slots = (limit_bytes / SMALLEST).next_power_of_two();
        let context = pg_sys::AllocSetContextCreateInternal(
            (*sort).ssup_cxt,
            c"encryption_ext sort".as_ptr(),
            pg_sys::ALLOCSET_DEFAULT_MINSIZE as pg_sys::Size,
            pg_sys::ALLOCSET_DEFAULT_INITSIZE as pg_sys::Size,
            pg_sys::ALLOCSET_DEFAULT_MAXSIZE as pg_sys::Size,
        );
        let others = Plaintexts::new(
            (*sort).ssup_cxt,
            slots.clamp(Plaintexts::FIRST_SLOTS, 1 << 20),
            limit_bytes,
        );
        let kept = pg_sys::MemoryContextAlloc((*sort).ssup_cxt, size_of::<Kept>()).cast::<Kept>();
        kept.write(Kept { context, used_bytes: 0, limit_bytes, others });
        (*sort).ssup_extra = kept.cast();
        (*sort).comparator = Some(compare::<T>);
        if (*sort).abbreviate {
            (*sort).abbrev_full_comparator = Some(compare::<T>);
            (*sort).comparator = Some(compare_abbreviated::<T>);
            (*sort).abbrev_converter = Some(abbreviate::<T>);
            (*sort).abbrev_abort = Some(never_abort);
        }
    }
}

/// The abbreviated key of a value: where its plaintext is, or 0 if there was no room for it.
unsafe extern "C-unwind" fn abbreviate<T: Comparable>(
    value: pg_sys::Datum,
    sort: pg_sys::SortSupport,
) -> pg_sys::Datum {
    // SAFETY: PostgreSQL calls, and this frame holds nothing with a destructor. The datum is a value of
    // the type that is sorted; `set_up` has made what is kept.
    unsafe {
        run_callback(|| {
            let kept = &mut *(*sort).ssup_extra.cast::<Kept>();
            let size = pg_sys::toast_raw_datum_size(value);
            if kept.used_bytes + size > kept.limit_bytes {
                return Ok(pg_sys::Datum::from(0usize));
            }
            kept.used_bytes += size;
            let stored = Varlena::detoast(value);
            let former = pg_sys::MemoryContextSwitchTo(kept.context);
            let plaintext = decrypt::<T>(stored, Privilege::Decrypt);
            pg_sys::MemoryContextSwitchTo(former);
            stored.free_if_copy(value);
            Ok(plaintext?.base.datum())
        })
    }
}

/// Compares abbreviated keys. Equal means that the values are to be compared.
unsafe extern "C-unwind" fn compare_abbreviated<T: Comparable>(
    left: pg_sys::Datum,
    right: pg_sys::Datum,
    sort: pg_sys::SortSupport,
) -> c_int {
    if left.value() == 0 || right.value() == 0 {
        return Ordering::Equal as c_int;
    }
    // SAFETY: as in `abbreviate`, which returned the datums: plaintexts that live as long as the sort.
    unsafe {
        run_callback(|| {
            let (left, right) = (Varlena::detoast(left), Varlena::detoast(right));
            Ok(T::order(left, right, (*sort).ssup_collation) as c_int)
        })
    }
}

/// Compares values.
unsafe extern "C-unwind" fn compare<T: Comparable>(
    left: pg_sys::Datum,
    right: pg_sys::Datum,
    sort: pg_sys::SortSupport,
) -> c_int {
    // SAFETY: as in `abbreviate`.
    unsafe {
        run_callback(|| {
            let kept = &mut *(*sort).ssup_extra.cast::<Kept>();
            let values = [Varlena::detoast(left), Varlena::detoast(right)];
            let (l, r) = (*kept.others).find_or_decrypt_both::<T>(
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

/// The values are to be decrypted in any case, so abbreviated keys are never a loss.
unsafe extern "C-unwind" fn never_abort(_: c_int, _: pg_sys::SortSupport) -> bool {
    false
}
