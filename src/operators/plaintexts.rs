//! Plaintexts of values that are met again: a constant in a condition, the elements of an array that
//! each row is compared with, the values in a sort.
//!
//! They are found by the bytes of the whole ciphertext, never by an address, so a plaintext is
//! always that of the value which is asked for.

use pgrx::pg_sys;

use crate::access::Authority;
use crate::catalog::Privilege;
use crate::errors::Error;
use crate::types::{EncryptedType, parse};
use crate::varlena::Varlena;

/// A bounded table of plaintexts. It lives in PostgreSQL's memory, and is plain data: nothing is
/// left undone when an error passes over it, or its memory context goes.
///
/// Each value has one slot that it can be in, which the end of its nonce chooses: nonces of one
/// session count up, and such numbers fall into different ones.
#[repr(C)]
pub(super) struct Plaintexts {
    /// What is in `slots` lives here.
    context: pg_sys::MemoryContext,
    /// Where the slots are.
    parent: pg_sys::MemoryContext,
    slots: *mut Slot,
    /// The number of slots, a power of two, less one.
    mask: usize,
    max_slots: usize,
    full_slots: usize,
    used_bytes: usize,
    limit_bytes: usize,
    /// How often all was dropped to make room.
    clearings: u64,
    /// Who may have what is here, and until when.
    authority: Authority,
}

/// A value and its plaintext, in one piece of memory; null if there is none.
#[repr(C)]
#[derive(Clone, Copy)]
struct Slot {
    /// The value's bytes.
    value: *mut u8,
    value_len: usize,
    plaintext: *mut u8,
    total_len: usize,
}

/// A plaintext as a value of the base type.
pub(super) struct Plaintext {
    pub(super) base: Varlena,
    /// Whether it was made for the caller, and is not in a table or an argument.
    pub(super) is_own: bool,
}

impl Plaintext {
    /// Frees it before its memory context does: a sort or a join calls millions of times in one.
    pub(super) fn free(self) {
        if self.is_own {
            self.base.free();
        }
    }
}

/// Decrypts a value for the caller.
pub(super) fn decrypt<T: EncryptedType>(
    value: Varlena,
    privilege: Privilege,
) -> Result<Plaintext, Box<Error>> {
    let base = T::decrypt(&parse(value)?, Some(privilege))?.varlena();
    Ok(Plaintext { base, is_own: true })
}

/// # Safety
///
/// `context` is a live memory context.
unsafe fn empty_slots(context: pg_sys::MemoryContext, len: usize) -> *mut Slot {
    // SAFETY: the caller's promise; the memory has room for `len` slots, all of which are written.
    unsafe {
        let slots = pg_sys::MemoryContextAlloc(context, len * size_of::<Slot>()).cast::<Slot>();
        (0..len).for_each(|n| slots.add(n).write(EMPTY));
        slots
    }
}

const EMPTY: Slot = Slot {
    value: std::ptr::null_mut(),
    value_len: 0,
    plaintext: std::ptr::null_mut(),
    total_len: 0,
};

impl Plaintexts {
    /// An empty table for at most `limit_bytes`, in a new memory context below `parent`. It has
    /// [`Self::FIRST_SLOTS`] slots at first, and at most `max_slots` (a power of two).
    pub(super) fn new(
        parent: pg_sys::MemoryContext,
        max_slots: usize,
        limit_bytes: usize,
    ) -> *mut Self {
        debug_assert!(max_slots.is_power_of_two());
        let slots = Self::FIRST_SLOTS.min(max_slots);
        // SAFETY: `parent` is a live memory context. The table and the slots are in it, their
        // contents in a child that can be emptied.
        unsafe {
            let context = pg_sys::AllocSetContextCreateInternal(
                parent,
                c"encryption_ext plaintexts".as_ptr(),
                pg_sys::ALLOCSET_DEFAULT_MINSIZE as pg_sys::Size,
                pg_sys::ALLOCSET_DEFAULT_INITSIZE as pg_sys::Size,
                pg_sys::ALLOCSET_DEFAULT_MAXSIZE as pg_sys::Size,
            );
            let this: *mut Self = pg_sys::MemoryContextAlloc(parent, size_of::<Self>()).cast();
            this.write(Self {
                context,
                parent,
                slots: empty_slots(parent, slots),
                mask: slots - 1,
                max_slots,
                full_slots: 0,
                used_bytes: 0,
                limit_bytes,
                clearings: 0,
                authority: Authority::now(),
            });
            this
        }
    }

    /// How many slots there are at first.
    pub(super) const FIRST_SLOTS: usize = 16;

    /// The plaintexts of two values.
    ///
    /// # Errors
    ///
    /// As for [`Plaintexts::find_or_decrypt`].
    pub(super) fn find_or_decrypt_both<T: EncryptedType>(
        &mut self,
        left: Varlena,
        right: Varlena,
        privilege: Privilege,
    ) -> Result<(Plaintext, Plaintext), Box<Error>> {
        if self.slot_of(left.bytes()) == self.slot_of(right.bytes()) {
            let left = decrypt::<T>(left, privilege)?;
            return Ok((left, self.find_or_decrypt::<T>(right, privilege)?));
        }
        let found = self.find_or_decrypt::<T>(left, privilege)?;
        let clearings = self.clearings;
        let right = self.find_or_decrypt::<T>(right, privilege)?;
        if found.is_own || self.clearings == clearings {
            return Ok((found, right));
        }
        // Making room for the right one has dropped the left one. There is room now for both.
        Ok((self.find_or_decrypt::<T>(left, privilege)?, right))
    }

    /// The plaintext of `value`: kept in this table, until its next call, unless it is very long.
    ///
    /// # Errors
    ///
    /// If it isn't here and can't be decrypted, or the current user hasn't got `privilege`.
    pub(super) fn find_or_decrypt<T: EncryptedType>(
        &mut self,
        value: Varlena,
        privilege: Privilege,
    ) -> Result<Plaintext, Box<Error>> {
        let authority = Authority::now();
        if self.authority != authority {
            self.clear();
            self.authority = authority;
        }
        if self.full_slots > self.mask / 2 && self.mask + 1 < self.max_slots {
            self.grow();
        }
        let bytes = value.bytes();
        let slot = self.slot_of(bytes);
        // SAFETY: `slot` is below the number of slots, all of which are initialized; what a full
        // slot points to lives in this table's context.
        unsafe {
            let found = *self.slots.add(slot);
            if !found.value.is_null()
                && std::slice::from_raw_parts(found.value, found.value_len) == bytes
            {
                return Ok(Plaintext { base: Varlena::at(found.plaintext), is_own: false });
            }
        }
        let plaintext = decrypt::<T>(value, privilege)?;
        // Two of the longest that are kept fit together.
        if plaintext.base.with_header().len() + bytes.len() > self.limit_bytes / 2 {
            return Ok(plaintext);
        }
        let base = self.insert(slot, bytes, plaintext.base);
        plaintext.free();
        Ok(Plaintext { base, is_own: false })
    }

    /// By the end of the nonce, multiplied as in Fibonacci hashing (Knuth, The Art of Computer Programming, 6.4):
    /// the first bits of the product are the slot. What is too short to be a value has any slot: its bytes are
    /// compared.
    #[inline]
    fn slot_of(&self, value: &[u8]) -> usize {
        const END: usize = envelope::HEADER_LEN;
        const GOLDEN_RATIO: u32 = 0x9e37_79b1;
        let tail = value.get(END - 4..END).and_then(|tail| tail.try_into().ok());
        let product = u32::from_be_bytes(tail.unwrap_or_default()).wrapping_mul(GOLDEN_RATIO);
        ((u64::from(product) * (self.mask as u64 + 1)) >> u32::BITS) as usize
    }

    fn insert(&mut self, slot: usize, value: &[u8], plaintext: Varlena) -> Varlena {
        let plaintext = plaintext.with_header();
        // The plaintext comes first, since its length word is aligned.
        let total_len = plaintext.len() + value.len();
        self.remove(slot);
        if self.used_bytes + total_len > self.limit_bytes {
            self.clear();
        }
        // SAFETY: the context is live; the memory has room for both, and what is copied lies
        // elsewhere.
        unsafe {
            let memory = pg_sys::MemoryContextAlloc(self.context, total_len).cast::<u8>();
            memory.copy_from_nonoverlapping(plaintext.as_ptr(), plaintext.len());
            let copy = memory.add(plaintext.len());
            copy.copy_from_nonoverlapping(value.as_ptr(), value.len());
            *self.slots.add(slot) =
                Slot { value: copy, value_len: value.len(), plaintext: memory, total_len };
            self.used_bytes += total_len;
            self.full_slots += 1;
            Varlena::at(memory)
        }
    }

    /// Four times the slots: what shares one gets a slot of its own.
    fn grow(&mut self) {
        let former_len = self.mask + 1;
        let len = (former_len * 4).min(self.max_slots);
        // SAFETY: the slots are `former_len` in number, and freed when they have been read; each full
        // one's value is `value_len` bytes.
        unsafe {
            let former = std::mem::replace(&mut self.slots, empty_slots(self.parent, len));
            self.mask = len - 1;
            for slot in std::slice::from_raw_parts(former, former_len) {
                if !slot.value.is_null() {
                    // No two of them meet: a slot's number only gets more bits.
                    let place =
                        self.slot_of(std::slice::from_raw_parts(slot.value, slot.value_len));
                    *self.slots.add(place) = *slot;
                }
            }
            pg_sys::pfree(former.cast());
        }
    }

    fn remove(&mut self, slot: usize) {
        // SAFETY: as in `find_or_decrypt`; what is freed is forgotten.
        unsafe {
            let former = std::mem::replace(&mut *self.slots.add(slot), EMPTY);
            if !former.plaintext.is_null() {
                pg_sys::pfree(former.plaintext.cast());
                self.used_bytes -= former.total_len;
                self.full_slots -= 1;
            }
        }
    }

    fn clear(&mut self) {
        // SAFETY: nothing outside of the slots, which are emptied, points into the context.
        unsafe {
            std::slice::from_raw_parts_mut(self.slots, self.mask + 1).fill(EMPTY);
            pg_sys::MemoryContextReset(self.context);
        }
        self.used_bytes = 0;
        self.full_slots = 0;
        self.clearings += 1;
    }
}
