//! The memory that the processes of a server share, and the lock on it.
//!
//! What is no secret (which keys there are, since when, who fetches one) lies in PostgreSQL's own shared
//! memory. The bytes of keys and the tokens of logins lie in pages of their own, which the postmaster maps
//! before it forks: locked, left out of core dumps, and wiped when the server stops. When a process has
//! crashed, PostgreSQL throws its shared memory away and begins anew; the pages stay, and are wiped.

use std::marker::PhantomData;
use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use keyring::secret::SharedPages;
use pgrx::pg_sys;

use super::clock::Moment;
use super::entries::{Entry, KEY_LEN, Times};
use super::failures::{BREAKERS, BreakerSlot, FAILURES, FailureSlot};
use super::logins::{LOGINS, LoginSlot, TOKEN_LEN};
use super::visit::Outcome;
use crate::settings;
use crate::shared_memory::Part;

/// The name of the lock, and of the memory.
const NAME: &std::ffi::CStr = c"encryption_ext";

/// Counts of all processes since the server was started.
#[derive(Default)]
pub(crate) struct Counts {
    pub(crate) hits: AtomicU64,
    pub(crate) misses: AtomicU64,
    pub(crate) fetches: AtomicU64,
    pub(crate) waits: AtomicU64,
    pub(crate) evictions: AtomicU64,
}

/// What lies at the beginning.
#[derive(Default)]
pub(super) struct Header {
    pub(super) counts: Counts,
    /// The last number given to a fetch.
    pub(super) flights: AtomicU64,
    /// The last number given to a login.
    pub(super) logins: AtomicU64,
    /// For how many seconds keys may be used, by the settings of the server: the time to live, and in the lower
    /// half the grace. Both change at once.
    times: AtomicU64,
    /// The latch of the process that has keys fetched ahead of their expiry, and until when it sleeps.
    launcher: AtomicPtr<pg_sys::Latch>,
    sleeps_until: AtomicU64,
    /// The database that was visited last, and what came of it.
    visited: AtomicU32,
    outcome: AtomicU32,
    /// When the log was last told of something; see [`Told`].
    told: [AtomicU64; 2],
}

/// Where everything is: made by the postmaster, and the same in all processes that it forks.
struct Memory {
    lock: *mut pg_sys::LWLock,
    header: *mut Header,
    failures: *mut FailureSlot,
    breakers: *mut BreakerSlot,
    logins: *mut LoginSlot,
    conditions: *mut pg_sys::ConditionVariable,
    tags: *mut u64,
    entries: *mut Entry,
    capacity: usize,
    keys: &'static SharedPages,
    tokens: &'static SharedPages,
}

static ATTACHED: AtomicPtr<Memory> = AtomicPtr::new(ptr::null_mut());

/// The pages for keys and for the tokens of logins, which outlive a crash.
static KEYS: AtomicPtr<SharedPages> = AtomicPtr::new(ptr::null_mut());
static TOKENS: AtomicPtr<SharedPages> = AtomicPtr::new(ptr::null_mut());

/// What is shared, as whoever holds the lock sees it.
pub(super) struct Contents<'a> {
    pub(super) header: &'a Header,
    pub(super) failures: &'a mut [FailureSlot],
    pub(super) breakers: &'a mut [BreakerSlot],
    pub(super) logins: &'a mut [LoginSlot],
    /// What tells entries apart at a glance; 0 for one that is free.
    pub(super) tags: &'a mut [u64],
    pub(super) entries: &'a mut [Entry],
    pub(super) keys: &'a SharedPages,
    pub(super) tokens: &'a SharedPages,
}

/// What is there, for monitoring.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Statistics {
    pub(crate) entries: usize,
    pub(crate) capacity: usize,
    pub(crate) hits: u64,
    pub(crate) misses: u64,
    pub(crate) fetches: u64,
    pub(crate) waits: u64,
    pub(crate) evictions: u64,
    pub(crate) locked_bytes: usize,
    pub(crate) unlocked_bytes: usize,
}

/// Whether processes share keys.
pub(crate) fn is_there() -> bool {
    !ATTACHED.load(Ordering::Relaxed).is_null()
}

/// What is there, and how it did since the server was started; `None` if processes share nothing.
pub(crate) fn statistics() -> Option<Statistics> {
    let memory = memory()?;
    let entries = shared(|contents| contents.entries.iter().filter(|e| e.is_filled).count())?;
    let counts = &header()?.counts;
    let count = |count: &AtomicU64| count.load(Ordering::Relaxed);
    let (mut locked_bytes, mut unlocked_bytes) = (0, 0);
    for pages in [memory.keys, memory.tokens] {
        match pages.is_locked() {
            true => locked_bytes += pages.len(),
            false => unlocked_bytes += pages.len(),
        }
    }
    Some(Statistics {
        entries,
        capacity: memory.capacity,
        hits: count(&counts.hits),
        misses: count(&counts.misses),
        fetches: count(&counts.fetches),
        waits: count(&counts.waits),
        evictions: count(&counts.evictions),
        locked_bytes,
        unlocked_bytes,
    })
}

/// Calls `body` with what is shared, while nobody else sees it. `None` if there is nothing.
///
/// `body` must be short, and call nothing of PostgreSQL's that can raise an error.
pub(super) fn exclusive<T>(body: impl FnOnce(&mut Contents<'_>) -> T) -> Option<T> {
    let memory = memory()?;
    let _lock = Lock::acquire(memory, pg_sys::LWLockMode::LW_EXCLUSIVE);
    // SAFETY: the lock is held, exclusively.
    Some(body(&mut unsafe { memory.contents() }))
}

/// Calls `body` with what is shared, while others may look at it too. `None` if there is nothing.
pub(super) fn shared<T>(body: impl FnOnce(&Contents<'_>) -> T) -> Option<T> {
    let memory = memory()?;
    let _lock = Lock::acquire(memory, pg_sys::LWLockMode::LW_SHARED);
    // SAFETY: the lock is held. `body` gets a shared reference and others have no more, so nothing is
    // changed meanwhile but atomic numbers.
    Some(body(&unsafe { memory.contents() }))
}

/// Has the keys that are shared go by this process's settings, which are the server's.
pub(super) fn set_times(header: &Header) {
    let seconds = |period: Duration| period.as_secs().min(u32::MAX.into());
    let (time_to_live, grace) = (settings::cache_ttl(), settings::cache_stale_grace());
    header.times.store(seconds(time_to_live) << 32 | seconds(grace), Ordering::Relaxed);
}

impl Header {
    /// For how long keys may be used, by the settings of the server as they are now.
    pub(super) fn times(&self) -> Times {
        let times = self.times.load(Ordering::Relaxed);
        let time_to_live = Duration::from_secs(times >> 32);
        let grace = Duration::from_secs(times & u64::from(u32::MAX));
        Times { time_to_live, longest_use: time_to_live + grace }
    }
}

/// What is counted, without the lock.
pub(super) fn header() -> Option<&'static Header> {
    // SAFETY: initialized when the memory was attached; it stays for as long as the process, and all
    // of it is atomic.
    memory().map(|memory| unsafe { &*memory.header })
}

/// Takes notice that this process, which has keys fetched ahead of their expiry, will sleep until then.
pub(super) fn sleep_until(moment: Moment) {
    if let Some(header) = header() {
        // SAFETY: set at the start of each process; the latch is in shared memory.
        header.launcher.store(unsafe { pg_sys::MyLatch }, Ordering::Relaxed);
        header.sleeps_until.store(moment.get(), Ordering::Relaxed);
    }
}

/// Wakes that process if it would sleep for longer than until then.
pub(super) fn wake_before(moment: Moment) {
    let Some(header) = header() else { return };
    let launcher = header.launcher.load(Ordering::Relaxed);
    if !launcher.is_null() && header.sleeps_until.load(Ordering::Relaxed) > moment.get() {
        // SAFETY: the latch of a process is in shared memory, and may be set whether it is in use or not.
        unsafe { pg_sys::SetLatch(launcher) };
    }
}

/// Takes notice of what came of a visit, before the process that made it ends.
pub(super) fn visit_ends(database: u32, outcome: Outcome) {
    if let Some(header) = header() {
        header.visited.store(database, Ordering::Release);
        header.outcome.store(outcome as u32, Ordering::Release);
    }
}

/// What came of the visit of a database that has ended; `None` if the process failed. One visit takes place
/// at a time.
pub(super) fn visit_outcome(database: u32) -> Option<Outcome> {
    let header = header()?;
    let visited = header.visited.swap(0, Ordering::AcqRel);
    let outcome = header.outcome.swap(0, Ordering::AcqRel);
    Outcome::from_number(outcome).filter(|_| visited == database)
}

/// What the log is told of once a minute, whichever process has something to tell.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Told {
    /// A key could not be fetched ahead of its expiry.
    NotFetchedAhead,
    /// A key is used past its time.
    PastTime,
}

/// Whether it is to be told now. Always, where processes share nothing.
pub(crate) fn is_time_to_tell(what: Told) -> bool {
    let Some(header) = header() else { return true };
    let told = &header.told[what as usize];
    let (now, last) = (Moment::now(), told.load(Ordering::Relaxed));
    let is_due = last == 0 || Moment::from_number(last).age(now) >= Duration::from_secs(60);
    // Of those that come at once, one tells.
    is_due && told.compare_exchange(last, now.get(), Ordering::Relaxed, Ordering::Relaxed).is_ok()
}

/// What those wait at who want the key of an entry that somebody else fetches.
pub(super) fn condition(entry: usize) -> Option<*mut pg_sys::ConditionVariable> {
    // SAFETY: there is one for each entry.
    memory()
        .filter(|memory| entry < memory.capacity)
        .map(|memory| unsafe { memory.conditions.add(entry) })
}

fn memory() -> Option<&'static Memory> {
    // SAFETY: null, or what `attach` has leaked.
    unsafe { ATTACHED.load(Ordering::Relaxed).as_ref() }
}

/// The lock, held. PostgreSQL holds interrupts as long.
struct Lock(*mut pg_sys::LWLock, PhantomData<*mut ()>);

impl Lock {
    fn acquire(memory: &Memory, mode: pg_sys::LWLockMode::Type) -> Self {
        // SAFETY: the lock is PostgreSQL's, and this process doesn't hold it: nothing that is called with it
        // comes back here.
        unsafe { pg_sys::LWLockAcquire(memory.lock, mode) };
        Self(memory.lock, PhantomData)
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // SAFETY: acquired by `acquire`.
        unsafe { pg_sys::LWLockRelease(self.0) };
    }
}

impl Memory {
    /// # Safety
    ///
    /// The lock is held for as long as what is returned exists, and what is returned is changed only if
    /// it is held exclusively.
    unsafe fn contents(&self) -> Contents<'_> {
        use std::slice::from_raw_parts_mut;

        // SAFETY: each part was laid out with room for so many, and initialized. Of this process nobody else
        // has references into them, as references exist with the lock only; what other processes do to
        // them is the caller's promise.
        unsafe {
            Contents {
                header: &*self.header,
                failures: from_raw_parts_mut(self.failures, FAILURES),
                breakers: from_raw_parts_mut(self.breakers, BREAKERS),
                logins: from_raw_parts_mut(self.logins, LOGINS),
                tags: from_raw_parts_mut(self.tags, self.capacity),
                entries: from_raw_parts_mut(self.entries, self.capacity),
                keys: self.keys,
                tokens: self.tokens,
            }
        }
    }
}

/// What lies in PostgreSQL's shared memory.
pub(crate) const MEMORY: Part = Part { request, attach };

/// # Safety
///
/// At the time at which libraries may ask for shared memory.
unsafe fn request() {
    // SAFETY: the caller's promise; the name is NUL-terminated, and copied.
    unsafe {
        pg_sys::RequestAddinShmemSpace(Layout::of(settings::shared_cache_size()).len);
        pg_sys::RequestNamedLWLockTranche(NAME.as_ptr(), 1);
    }
}

/// Where the parts are, in bytes from the beginning.
struct Layout {
    failures: usize,
    breakers: usize,
    logins: usize,
    conditions: usize,
    tags: usize,
    entries: usize,
    len: usize,
}

impl Layout {
    fn of(capacity: usize) -> Self {
        let mut len = size_of::<Header>();
        let mut part = |size: usize, count: usize| {
            // A cache line, which is enough for the alignment of all of them.
            let start = len.next_multiple_of(64);
            len = start + size * count;
            start
        };
        Self {
            failures: part(size_of::<FailureSlot>(), FAILURES),
            breakers: part(size_of::<BreakerSlot>(), BREAKERS),
            logins: part(size_of::<LoginSlot>(), LOGINS),
            conditions: part(size_of::<pg_sys::ConditionVariable>(), capacity),
            tags: part(size_of::<u64>(), capacity),
            entries: part(size_of::<Entry>(), capacity),
            len: len.next_multiple_of(64),
        }
    }
}

fn attach() {
    let capacity = settings::shared_cache_size();
    if capacity == 0 {
        return;
    }
    let mapped = pages(&KEYS, capacity * KEY_LEN)
        .and_then(|keys| Ok((keys, pages(&TOKENS, LOGINS * TOKEN_LEN)?)));
    let (keys, tokens) = match mapped {
        Ok(mapped) => mapped,
        Err(error) => {
            pgrx::warning!("could not map memory for keys that sessions share: {error}");
            return;
        }
    };
    let layout = Layout::of(capacity);
    let mut found = false;
    // SAFETY: so much was requested; what is returned has that length and the alignment of a cache line.
    // Every part is initialized before anybody sees it.
    let memory = unsafe {
        let start = pg_sys::ShmemInitStruct(NAME.as_ptr(), layout.len, &raw mut found).cast::<u8>();
        let memory = Memory {
            lock: &raw mut (*pg_sys::GetNamedLWLockTranche(NAME.as_ptr())).lock,
            header: start.cast(),
            failures: start.add(layout.failures).cast(),
            breakers: start.add(layout.breakers).cast(),
            logins: start.add(layout.logins).cast(),
            conditions: start.add(layout.conditions).cast(),
            tags: start.add(layout.tags).cast(),
            entries: start.add(layout.entries).cast(),
            capacity,
            keys,
            tokens,
        };
        memory.header.write(Header::default());
        set_times(&*memory.header);
        fill(memory.failures, FAILURES);
        fill(memory.breakers, BREAKERS);
        fill(memory.logins, LOGINS);
        fill(memory.tags, capacity);
        fill(memory.entries, capacity);
        for n in 0..capacity {
            pg_sys::ConditionVariableInit(memory.conditions.add(n));
        }
        memory
    };
    let is_first = ATTACHED.swap(Box::into_raw(Box::new(memory)), Ordering::Relaxed).is_null();
    if is_first {
        // SAFETY: the callback never unwinds, and stays valid as a library is never unloaded.
        unsafe { pg_sys::on_proc_exit(Some(server_ends), pg_sys::Datum::from(0usize)) };
    }
}

/// # Safety
///
/// There is room for `count` of them.
unsafe fn fill<T: Default>(start: *mut T, count: usize) {
    for n in 0..count {
        // SAFETY: the caller's promise.
        unsafe { start.add(n).write(T::default()) };
    }
}

/// The pages that were mapped before, wiped, or new ones.
fn pages(mapped: &AtomicPtr<SharedPages>, len: usize) -> std::io::Result<&'static SharedPages> {
    // SAFETY: null, or what was leaked below.
    if let Some(pages) = unsafe { mapped.load(Ordering::Relaxed).as_ref() } {
        // SAFETY: all processes that used them have ended.
        unsafe { pages.wipe(0, pages.len()) };
        return Ok(pages);
    }
    let pages: &'static SharedPages = Box::leak(Box::new(SharedPages::new(len)?));
    mapped.store(ptr::from_ref(pages).cast_mut(), Ordering::Relaxed);
    Ok(pages)
}

/// In the postmaster, when it ends. (Its children have forgotten that this was registered.)
unsafe extern "C-unwind" fn server_ends(_code: i32, _argument: pg_sys::Datum) {
    for mapped in [&KEYS, &TOKENS] {
        // SAFETY: null, or what `pages` has leaked. The processes that used them have ended, or are about
        // to, as the server does not go on.
        unsafe {
            if let Some(pages) = mapped.load(Ordering::Relaxed).as_ref() {
                pages.wipe(0, pages.len());
            }
        }
    }
}
