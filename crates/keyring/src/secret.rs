//! Memory for secrets.
//!
//! A [`Secret`] owns its value in pages that hold secrets and nothing else. The pages are
//!
//! * locked into memory (`mlock`), so that they are not written to swap, as far as the process's
//!   limit (`RLIMIT_MEMLOCK`, `LimitMEMLOCK=` of a systemd unit) allows; past it they are used
//!   unlocked, and [`statistics`] says how much that is,
//! * left out of core dumps (`MADV_DONTDUMP`),
//! * zeroes in a forked child (`MADV_WIPEONFORK`).
//!
//! A value's slot is overwritten with zeroes when the value is dropped, after the value's own
//! `Drop`. So a type that keeps all its bytes in itself, such as a cipher with its round keys,
//! needs no `ZeroizeOnDrop` of its own. What it keeps elsewhere (a `Box`, a `Vec`) lies in ordinary
//! memory, and wiping that is up to the type.
//!
//! What this does not cover: registers, and stack frames that the value passed through before
//! [`Secret::new`] took it. `Secret::new` wipes the frame that it got it in.
//!
//! # After a fork
//!
//! A child sees zeroes where its parent has secrets, or on a kernel without `MADV_WIPEONFORK` a
//! copy. Reading a secret costs nothing beyond reading the memory, so it does not check that:
//! **whoever holds secrets across a fork must throw them away in the child before using them**, by
//! comparing process ids at the beginning of each use or by [`owned_by_this_process`]. Dropping a
//! secret in a child does nothing: neither the value's `Drop` runs (it would see zeroes where it
//! left pointers) nor is the parent's bookkeeping touched.
#![allow(unsafe_code)]

use std::collections::BTreeMap;
use std::fmt;
use std::mem::{ManuallyDrop, MaybeUninit};
use std::ops::{Deref, DerefMut};
use std::process;
use std::ptr::{self, NonNull};
use std::slice;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use zeroize::Zeroize;

use crate::sys::{self, Mapping};

/// A value in memory for secrets. `Debug` does not show it.
///
/// It may be handed to another thread, but not be shared with one.
pub struct Secret<T> {
    slot: NonNull<T>,
}

// SAFETY: a secret is the only one to point to its slot, which lies in memory of the process and not
// of a thread; the arena that it came from and goes back to is behind a mutex.
unsafe impl<T: Send> Send for Secret<T> {}

impl<T> Secret<T> {
    /// Moves `value` into memory for secrets and wipes where it was.
    ///
    /// # Panics
    ///
    /// If the operating system has no page of memory left.
    #[must_use]
    pub fn new(value: T) -> Self {
        const { assert!(align_of::<T>() <= UNIT, "the type needs a larger alignment than slots have") };
        let mut value = ManuallyDrop::new(value);
        let slot = arena()
            .allocate(size_of::<T>())
            .expect("the operating system has a page of memory")
            .cast::<T>();
        // SAFETY: the slot is ours, at least as large as `T`, aligned to `UNIT` and so for `T`, and
        // does not overlap `value`. The value is moved: `ManuallyDrop` keeps it from being dropped
        // where it was, and nothing reads it there again.
        unsafe { ptr::copy_nonoverlapping(&raw const *value, slot.as_ptr(), 1) };
        // SAFETY: `value` is this function's own and has `size_of::<T>()` bytes; what is in them
        // is not used again.
        unsafe { wipe((&raw mut value).cast(), size_of::<T>()) };
        Self { slot }
    }

    /// Whether the operating system keeps the secret out of swap space.
    #[must_use]
    pub fn is_locked(this: &Self) -> bool {
        let arena = arena();
        arena.chunks.get(&arena.chunk_of(this.slot.cast())).is_some_and(|c| c.mapping.is_locked())
    }
}

impl<T> Deref for Secret<T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: the slot holds a valid `T` from `new` to `drop`, and only this `Secret` has it.
        // (In a forked child it may hold zeroes: the module's documentation says who must not get
        // here.)
        unsafe { self.slot.as_ref() }
    }
}

impl<T> DerefMut for Secret<T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as in `deref`; `&mut self` makes the reference the only one.
        unsafe { self.slot.as_mut() }
    }
}

impl<T> Drop for Secret<T> {
    fn drop(&mut self) {
        let slot = self.slot.cast::<u8>();
        // A child must not take the lock either: a thread of its parent may have held it.
        if !owned_by_this_process() || !arena().has(slot) {
            return;
        }
        // SAFETY: the slot holds the `T` that `new` put there, in this very process, and it is not
        // used after this.
        unsafe { ptr::drop_in_place(self.slot.as_ptr()) };
        arena().free(slot, size_of::<T>());
    }
}

impl<T> fmt::Debug for Secret<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// Pages for secrets that a process shares with those that it forks afterwards: locked into memory, as
/// far as the limit allows, and left out of core dumps in all of them. They are zeroes at first.
///
/// The pages know nothing of who uses them when: that is for a lock of the processes' to decide.
#[derive(Debug)]
pub struct SharedPages {
    mapping: Mapping,
}

// SAFETY: a mapping is an address range that stays mapped, as nothing unmaps it; who touches its bytes
// promises in each call that nobody else does.
unsafe impl Sync for SharedPages {}

impl SharedPages {
    /// Maps pages for at least `len` bytes. They stay mapped until the process ends.
    ///
    /// # Errors
    ///
    /// If the operating system has no memory to map.
    pub fn new(len: usize) -> std::io::Result<Self> {
        let len = len.max(1).next_multiple_of(sys::page_size());
        Mapping::for_shared_secrets(len).map(|mapping| Self { mapping })
    }

    /// Their length in bytes.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "they have at least one page")]
    pub fn len(&self) -> usize {
        self.mapping.len()
    }

    /// Whether the operating system keeps them out of swap space.
    #[must_use]
    pub fn is_locked(&self) -> bool {
        self.mapping.is_locked()
    }

    /// Copies the bytes from `offset` on into `to`.
    ///
    /// # Safety
    ///
    /// No process writes these bytes meanwhile.
    ///
    /// # Panics
    ///
    /// If they are not all in the pages.
    pub unsafe fn read(&self, offset: usize, to: &mut [u8]) {
        let from = self.at(offset, to.len());
        // SAFETY: the range lies in the mapping, and the caller promises that nobody writes it.
        unsafe { ptr::copy_nonoverlapping(from.as_ptr(), to.as_mut_ptr(), to.len()) };
    }

    /// Writes `from` at `offset`.
    ///
    /// # Safety
    ///
    /// No process reads or writes these bytes meanwhile.
    ///
    /// # Panics
    ///
    /// If they are not all in the pages.
    pub unsafe fn write(&self, offset: usize, from: &[u8]) {
        let to = self.at(offset, from.len());
        // SAFETY: the range lies in the mapping, and the caller promises that nobody else uses it.
        unsafe { ptr::copy_nonoverlapping(from.as_ptr(), to.as_ptr(), from.len()) };
    }

    /// Overwrites `len` bytes from `offset` on with zeroes.
    ///
    /// # Safety
    ///
    /// No process reads or writes these bytes meanwhile.
    ///
    /// # Panics
    ///
    /// If they are not all in the pages.
    pub unsafe fn wipe(&self, offset: usize, len: usize) {
        // SAFETY: the range lies in the mapping, and the caller promises that nobody else uses it.
        unsafe { wipe(self.at(offset, len).as_ptr(), len) };
    }

    fn at(&self, offset: usize, len: usize) -> NonNull<u8> {
        let end = offset.checked_add(len).expect("a range of memory has an end");
        assert!(end <= self.mapping.len(), "the range is in the pages");
        // SAFETY: the range lies in the mapping, as was just seen.
        unsafe { self.mapping.start().add(offset) }
    }
}

/// What the memory for secrets holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Bytes of pages that are locked into memory.
    pub locked_bytes: usize,
    /// Bytes of pages that are not, because the limit on locked memory was reached.
    pub unlocked_bytes: usize,
    /// Secrets that exist.
    pub slots_in_use: usize,
}

/// What the memory for secrets of this process holds.
#[must_use]
pub fn statistics() -> Statistics {
    if !owned_by_this_process() {
        return Statistics::default();
    }
    arena().chunks.values().fold(Statistics::default(), |sum, chunk| {
        let (locked, unlocked) = match chunk.mapping.is_locked() {
            true => (chunk.mapping.len(), 0),
            false => (0, chunk.mapping.len()),
        };
        Statistics {
            locked_bytes: sum.locked_bytes + locked,
            unlocked_bytes: sum.unlocked_bytes + unlocked,
            slots_in_use: sum.slots_in_use + chunk.in_use,
        }
    })
}

/// Whether the secrets that exist were made by this process, and not by one that it was forked
/// from. True when there are none. One system call (`getpid`).
#[must_use]
pub fn owned_by_this_process() -> bool {
    let owner = OWNER.load(Ordering::Relaxed);
    owner == NO_OWNER || owner == process::id()
}

/// The process that made the arena's pages.
static OWNER: AtomicU32 = AtomicU32::new(NO_OWNER);
const NO_OWNER: u32 = 0;

static ARENA: Mutex<Arena> = Mutex::new(Arena { chunks: BTreeMap::new() });

/// The arena of this process. In a forked child the first use starts an empty one; what the parent
/// had is left mapped, because secrets that point there may still exist.
fn arena() -> MutexGuard<'static, Arena> {
    // No code that holds the lock can leave the arena half changed by panicking.
    let mut arena = ARENA.lock().unwrap_or_else(PoisonError::into_inner);
    let process = process::id();
    if OWNER.swap(process, Ordering::Relaxed) != process {
        arena.chunks.clear();
    }
    arena
}

/// Slots are multiples of this many bytes, and aligned to it: a cache line.
const UNIT: usize = 64;

/// All pages for secrets, by address.
struct Arena {
    chunks: BTreeMap<usize, Chunk>,
}

/// Some pages, cut into slots of one size: one page if at least two slots fit, otherwise as many
/// as one slot needs.
struct Chunk {
    mapping: Mapping,
    slot_size: usize,
    in_use: usize,
    free: Vec<usize>,
}

impl Arena {
    /// A slot of at least `size` bytes, all zero.
    fn allocate(&mut self, size: usize) -> std::io::Result<NonNull<u8>> {
        let slot_size = slot_size(size);
        let roomy =
            self.chunks.values_mut().find(|c| c.slot_size == slot_size && !c.free.is_empty());
        if let Some(chunk) = roomy {
            return Ok(chunk.take());
        }
        let mut chunk = Chunk::new(slot_size)?;
        let slot = chunk.take();
        self.chunks.insert(chunk.mapping.start().addr().get(), chunk);
        Ok(slot)
    }

    /// Wipes a slot that `allocate` gave for `size` bytes and takes it back. Pages that are empty
    /// then are unmapped, except the last of their slot size.
    fn free(&mut self, slot: NonNull<u8>, size: usize) {
        let address = self.chunk_of(slot);
        let slot_size = slot_size(size);
        let Some(chunk) = self.chunks.get_mut(&address) else { return };
        // SAFETY: the slot lies in a chunk that is mapped and has `slot_size` bytes; its value has
        // been dropped.
        unsafe { wipe(slot.as_ptr(), slot_size) };
        chunk.give_back(slot);
        let empty = chunk.in_use == 0;
        if empty && self.chunks.values().filter(|c| c.slot_size == slot_size).count() > 1 {
            let chunk = self.chunks.remove(&address).expect("the chunk was found above");
            // SAFETY: none of its slots is in use.
            unsafe { chunk.mapping.unmap() };
        }
    }

    /// Whether `slot` lies in pages of this arena.
    fn has(&self, slot: NonNull<u8>) -> bool {
        self.chunks.contains_key(&self.chunk_of(slot))
    }

    /// The address of the chunk that `slot` lies in: slots never begin in a chunk's second page.
    fn chunk_of(&self, slot: NonNull<u8>) -> usize {
        slot.addr().get() & !(sys::page_size() - 1)
    }
}

impl Chunk {
    fn new(slot_size: usize) -> std::io::Result<Self> {
        let page = sys::page_size();
        let slots = (page / slot_size).max(1);
        let mapping = Mapping::for_secrets((slots * slot_size).next_multiple_of(page))?;
        // The lowest slot is taken first.
        Ok(Self { mapping, slot_size, in_use: 0, free: (0..slots).rev().collect() })
    }

    fn take(&mut self) -> NonNull<u8> {
        let index = self.free.pop().expect("the chunk has a free slot");
        self.in_use += 1;
        // SAFETY: `index` is below the number of slots, which all lie in the mapping.
        unsafe { self.mapping.start().add(index * self.slot_size) }
    }

    fn give_back(&mut self, slot: NonNull<u8>) {
        let offset = slot.addr().get() - self.mapping.start().addr().get();
        self.free.push(offset / self.slot_size);
        self.in_use -= 1;
    }
}

fn slot_size(size: usize) -> usize {
    size.max(1).next_multiple_of(UNIT)
}

/// Overwrites memory with zeroes in a way that the compiler keeps.
///
/// # Safety
///
/// `start` must point to `len` bytes that may be written and that hold nothing in use.
unsafe fn wipe(start: *mut u8, len: usize) {
    // SAFETY: the caller's promise; `MaybeUninit` says nothing about what the bytes are (padding
    // among them).
    unsafe { slice::from_raw_parts_mut(start.cast::<MaybeUninit<u8>>(), len) }.zeroize();
}
