//! Sort support (`src/include/utils/sortsupport.h`): what makes a sort decrypt each value once, and
//! not at every comparison.
//!
//! A sort asks once a value for an *abbreviated key* and compares these, and then, where they are
//! equal, the values. Here the abbreviated key is the whole plaintext: a pointer to it, the same one for
//! equal plaintexts, since PostgreSQL takes values with different abbreviated keys for different.
//! Plaintexts are kept for as long as the values that they belong to are in memory, and there is room in another
//! `work_mem`; values for which there was none, and those that are read back from a temporary file, are decrypted
//! when they are compared, and kept as long as there is room.

use std::cmp::Ordering;
use std::ffi::{CStr, c_int, c_void};

use pgrx::{pg_sys, varlena};

use super::Comparable;
use super::plaintexts::Plaintexts;
use crate::catalog::Privilege;
use crate::fmgr::{run_callback, sql_function};
use crate::pg;
use crate::types::{EncryptedBytea, EncryptedText, parse};
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
    /// What abbreviated keys point to.
    abbreviated: Interned,
    /// Whether the values that have these keys are gone from memory.
    are_values_gone: bool,
    /// Those of values that are compared without.
    others: *mut Plaintexts,
    /// How PostgreSQL sorts values of the base type.
    base: pg_sys::SortSupportData,
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
        let abbreviated = Interned::new(context, limit_bytes);
        let mut base = pg_sys::SortSupportData {
            ssup_cxt: (*sort).ssup_cxt,
            ssup_collation: (*sort).ssup_collation,
            ..Default::default()
        };
        T::sort_base(&mut base);
        kept.write(Kept { abbreviated, are_values_gone: false, others, base });
        (*sort).ssup_extra = kept.cast();
        (*sort).comparator = Some(compare::<T>);
        // Under another collation equal values have different plaintexts.
        if (*sort).abbreviate && T::is_equality_of_bytes((*sort).ssup_collation) {
            (*sort).abbrev_full_comparator = Some(compare::<T>);
            (*sort).comparator = Some(compare_abbreviated);
            (*sort).abbrev_converter = Some(abbreviate::<T>);
            (*sort).abbrev_abort = Some(never_abort);
            watch_values(sort, &raw mut (*kept).are_values_gone);
        }
    }
}

/// Has `are_gone` set when the values that a sort has in memory are freed. A sort that is too large for it sorts
/// as many values as there is room for, writes them to a file, frees them all and goes on
/// (`src/backend/utils/sort/tuplesort.c`, `dumptuples`): it compares their abbreviated keys no more.
///
/// The values are in a memory context of their own. If it is not where it is looked for, `are_gone` is never set.
///
/// # Safety
///
/// `sort` is one that PostgreSQL is about to begin or has begun, and `are_gone` lives as long as its context.
unsafe fn watch_values(sort: pg_sys::SortSupport, are_gone: *mut bool) {
    // SAFETY: the caller's promise. A context is deleted after those below it, whose callbacks are called: the flag
    // is still there. The callback's record lives in the context that it is registered for.
    unsafe {
        let values = child_named((*sort).ssup_cxt, c"TupleSort sort")
            .and_then(|sorting| child_named(sorting, c"Caller tuples"));
        if let Some(values) = values {
            let size = size_of::<pg_sys::MemoryContextCallback>();
            let callback =
                pg_sys::MemoryContextAlloc(values, size).cast::<pg_sys::MemoryContextCallback>();
            callback.write(pg_sys::MemoryContextCallback {
                func: Some(values_are_gone),
                arg: are_gone.cast(),
                next: std::ptr::null_mut(),
            });
            pg_sys::MemoryContextRegisterResetCallback(values, callback);
        }
    }
}

unsafe extern "C-unwind" fn values_are_gone(are_gone: *mut c_void) {
    // SAFETY: what `watch_values` was given. Nothing else is touched: the other contexts of the sort may be gone.
    unsafe { are_gone.cast::<bool>().write(true) };
}

/// # Safety
///
/// `context` is a live memory context.
unsafe fn child_named(
    context: pg_sys::MemoryContext,
    name: &CStr,
) -> Option<pg_sys::MemoryContext> {
    // SAFETY: the caller's promise; a context's children are a list, and have names.
    unsafe {
        let mut child = (*context).firstchild;
        while !child.is_null() {
            if CStr::from_ptr((*child).name) == name {
                return Some(child);
            }
            child = (*child).nextchild;
        }
        None
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
            if kept.are_values_gone {
                kept.abbreviated.clear();
                kept.are_values_gone = false;
                watch_values(sort, &raw mut kept.are_values_gone);
            }
            let stored = Varlena::detoast(value);
            let interned = T::with_base(&parse(stored)?, Some(Privilege::Decrypt), |bytes| {
                kept.abbreviated.intern(bytes)
            })?;
            stored.free_if_copy(value);
            Ok(pg_sys::Datum::from(interned))
        })
    }
}

/// Compares abbreviated keys. Equal means that the values are to be compared.
///
/// An error of PostgreSQL's passes over this frame, which holds nothing with a destructor: a guard would cost
/// as much as the comparison.
unsafe extern "C-unwind" fn compare_abbreviated(
    left: pg_sys::Datum,
    right: pg_sys::Datum,
    sort: pg_sys::SortSupport,
) -> c_int {
    if left.value() == 0 || right.value() == 0 {
        return Ordering::Equal as c_int;
    }
    // SAFETY: `set_up` has made what is kept, and prepared the sort of the base type; `abbreviate` returned the
    // datums, which are values of that type and live as long as the sort.
    unsafe {
        let base = &raw mut (*(*sort).ssup_extra.cast::<Kept>()).base;
        match (*base).comparator {
            Some(compare) => compare(left, right, base),
            None => Ordering::Equal as c_int,
        }
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

/// Copies of byte strings, each once: equal ones have one address. An open-addressing hash table of
/// plain data.
#[repr(C)]
struct Interned {
    context: pg_sys::MemoryContext,
    /// Where copies are, or null.
    slots: *mut *mut u8,
    /// The number of slots, a power of two, less one.
    mask: usize,
    count: usize,
    used_bytes: usize,
    limit_bytes: usize,
}

impl Interned {
    const FIRST_SLOTS: usize = 256;

    /// An empty table for at most `limit_bytes`, in a live memory context.
    unsafe fn new(context: pg_sys::MemoryContext, limit_bytes: usize) -> Self {
        Self {
            context,
            // SAFETY: the caller's promise.
            slots: unsafe { empty_slots(context, Self::FIRST_SLOTS) },
            mask: Self::FIRST_SLOTS - 1,
            count: 0,
            used_bytes: 0,
            limit_bytes,
        }
    }

    /// A value of the base type with these bytes, or null if it has none and there is no room: the same for
    /// equal values, until all are dropped.
    fn intern(&mut self, value: &[u8]) -> *mut u8 {
        let slot = self.find(value);
        // SAFETY: `find` returns the number of a slot.
        let found = unsafe { *self.slots.add(slot) };
        // Full once, full until then: a value that found no room finds none later.
        if !found.is_null() || self.used_bytes >= self.limit_bytes {
            return found;
        }
        let total = pg_sys::VARHDRSZ + value.len();
        self.used_bytes += total + size_of::<*mut u8>();
        // SAFETY: the context is live; the memory has room for the length word and the value, which lies
        // elsewhere and is shorter than 1 GB, as it was one.
        let copy = unsafe {
            let copy = pg::allocate_in(self.context, total);
            varlena::set_varsize_4b(copy.cast(), total as i32);
            copy.add(pg_sys::VARHDRSZ).copy_from_nonoverlapping(value.as_ptr(), value.len());
            *self.slots.add(slot) = copy;
            copy
        };
        self.count += 1;
        if self.count > self.mask / 2 {
            self.grow();
        }
        copy
    }

    /// Drops all copies.
    fn clear(&mut self) {
        // SAFETY: the caller says that nothing refers to the copies; the slots are in the same context, and made
        // anew.
        unsafe {
            pg_sys::MemoryContextReset(self.context);
            self.slots = empty_slots(self.context, self.mask + 1);
        }
        self.count = 0;
        self.used_bytes = 0;
    }

    /// The slot that a value is in, or would be.
    fn find(&self, value: &[u8]) -> usize {
        let mut slot = pg::hash_any(value) as usize & self.mask;
        loop {
            // SAFETY: `slot` is below the number of slots; what one points to is a copy of a value. There
            // is an empty slot, since no more than half are full.
            unsafe {
                let copy = *self.slots.add(slot);
                if copy.is_null() || Varlena::at(copy).bytes() == value {
                    return slot;
                }
            }
            slot = (slot + 1) & self.mask;
        }
    }

    fn grow(&mut self) {
        let former_len = self.mask + 1;
        // SAFETY: the slots are `former_len` in number, and freed when they have been read.
        unsafe {
            let former =
                std::mem::replace(&mut self.slots, empty_slots(self.context, former_len * 2));
            self.mask = former_len * 2 - 1;
            for &copy in std::slice::from_raw_parts(former, former_len) {
                if !copy.is_null() {
                    let slot = self.find(Varlena::at(copy).bytes());
                    *self.slots.add(slot) = copy;
                }
            }
            pg_sys::pfree(former.cast());
        }
    }
}

/// # Safety
///
/// `context` is a live memory context.
unsafe fn empty_slots(context: pg_sys::MemoryContext, len: usize) -> *mut *mut u8 {
    // SAFETY: the caller's promise; null pointers are zeroes.
    unsafe {
        let bytes = len * size_of::<*mut u8>();
        let slots = pg_sys::MemoryContextAllocHuge(context, bytes).cast::<*mut u8>();
        slots.write_bytes(0, len);
        slots
    }
}
