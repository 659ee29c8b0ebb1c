//! The keys that the processes of a server share, and who fetches which one.
//!
//! An entry is one version's key, or the fetch of one that is under way (a *flight*), or both, when a key is
//! fetched again before its time is over. Of those that want a key that isn't here, one fetches it, and the
//! others wait for what comes of it. A process that ends, or whose statement is cancelled, gives the
//! flight up, and one of those that wait takes over.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use envelope::{DataKey, KeyId, KeyVersion};
use keyring::configured::Fingerprint;
use keyring::provider::{ProviderError, ProviderErrorKind};
use pgrx::pg_sys;
use zeroize::Zeroizing;

use super::clock::Moment;
use super::failures::Why;
use super::memory::{self, Contents};
use crate::catalog::{Key, Version};
use crate::session;

/// Their length in bytes.
pub(super) const KEY_LEN: usize = DataKey::LEN;

/// How often those who wait look whether the process that fetches still exists.
const LOOK: Duration = Duration::from_secs(1);

/// What names a version in all databases of the server, and is another one for a version that was rolled
/// back and made again, or that comes from a restored catalog.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct EntryId {
    database: u32,
    key: u32,
    version: u32,
    keyspace: [u8; 16],
    check_value: [u8; 16],
}

/// What is known of a version's key. Its bytes are in the pages, at the same place.
#[derive(Default)]
pub(super) struct Entry {
    id: EntryId,
    pub(super) is_filled: bool,
    fetched_at: Moment,
    /// When a fetch ahead of time may be tried again.
    retry_at: Moment,
    /// Whether a session has taken it since it was fetched.
    is_used: AtomicBool,
    used_at: AtomicU64,
    /// The fetch that is under way; 0 if there is none.
    flight: u64,
    fetcher: i32,
    /// Whether what it brings is not to be kept, as the key was wiped meanwhile.
    is_discarded: bool,
}

/// A key that was here.
pub(crate) struct SharedKey {
    pub(crate) key: DataKey,
    /// When it was fetched.
    pub(crate) at: Instant,
    /// How long ago that was.
    pub(crate) age: Duration,
}

/// How long keys may be used since they were fetched: usually, and while the provider is out of reach.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Times {
    pub(crate) time_to_live: Duration,
    pub(crate) longest_use: Duration,
}

impl Times {
    /// What both allow.
    pub(crate) fn min(self, other: Self) -> Self {
        Self {
            time_to_live: self.time_to_live.min(other.time_to_live),
            longest_use: self.longest_use.min(other.longest_use),
        }
    }
}

/// How long keys that are shared may be used, by the settings of the server as they are now; `None` if there
/// are none. A session with stricter ones goes by these.
pub(crate) fn times_of_server() -> Option<Times> {
    memory::header().map(memory::Header::times)
}

/// What is known of a version's key, for monitoring.
#[derive(Default)]
pub(crate) struct State {
    /// If it is here: how long ago it was fetched.
    pub(crate) age: Option<Duration>,
    /// Whether what its provider returned last was the right key.
    pub(crate) is_right: Option<bool>,
}

/// What there is to do for a key.
pub(crate) enum Next {
    /// It is here.
    Here(SharedKey),
    /// It was asked for, in vain.
    Failed(Why),
    /// It is to be fetched; who waits for it is told what comes of it.
    Fetch(Flight),
    /// It is to be fetched for this process alone, as all places are taken by fetches.
    FetchAlone,
}

/// A fetch that others may wait for. Dropped, it is given up, and somebody else may begin one.
pub(crate) struct Flight {
    entry: usize,
    number: u64,
    id: EntryId,
    fingerprint: Fingerprint,
}

impl EntryId {
    /// What names a version of a key of this database.
    pub(crate) fn of(key: &Key, version: &Version) -> Self {
        Self {
            database: this_database(),
            key: key.name.id().get(),
            version: version.number.get(),
            keyspace: version.keyspace.0,
            check_value: *version.check_value.as_bytes(),
        }
    }

    /// A number that is hardly the same for two: a check value is as good as random. Never 0.
    fn tag(&self) -> u64 {
        let (first, _) = self.check_value.split_at(8);
        let number = first.iter().fold(0, |number, byte| (number << 8) | u64::from(*byte));
        (number ^ u64::from(self.database)) | 1
    }
}

impl Entry {
    fn is_fresh(&self, now: Moment, limit: Duration) -> bool {
        self.is_filled && self.fetched_at.age(now) < limit
    }
}

impl Entry {
    /// When a fetch ahead of the key's expiry is due, if one is: at half of its time, unless nobody has taken
    /// it since it was fetched.
    fn due(&self, times: Times, also_unused: bool) -> Option<Moment> {
        let is_wanted = also_unused || self.is_used.load(Ordering::Relaxed);
        let at = self.fetched_at.after(times.time_to_live / 2).max(self.retry_at);
        (self.is_filled && self.flight == 0 && is_wanted && at != Moment::END).then_some(at)
    }

    /// When it is of no use any more, whatever happens to the provider.
    fn end(&self, times: Times) -> Moment {
        self.fetched_at.after(times.longest_use)
    }
}

impl Contents<'_> {
    fn find(&self, id: &EntryId) -> Option<usize> {
        let tag = id.tag();
        let mut tags = self.tags.iter().enumerate();
        tags.find(|(n, found)| **found == tag && self.entries[*n].id == *id).map(|(n, _)| n)
    }

    /// The key of an entry that is filled.
    fn key(&self, n: usize) -> Option<SharedKey> {
        let entry = &self.entries[n];
        let now = Moment::now();
        // What this process's clock doesn't reach back to has to be fetched again.
        let at = entry.fetched_at.instant()?;
        let mut bytes = Zeroizing::new([0; KEY_LEN]);
        // SAFETY: the lock is held, and who writes keys holds it exclusively.
        unsafe { self.keys.read(n * KEY_LEN, &mut *bytes) };
        entry.used_at.store(now.get(), Ordering::Relaxed);
        Some(SharedKey { key: DataKey::new(*bytes), at, age: entry.fetched_at.age(now) })
    }

    /// A place for another entry: a free one, or that of the key that was used longest ago. None if all are
    /// being fetched.
    fn make_room(&mut self) -> Option<usize> {
        if let Some(free) = self.tags.iter().position(|tag| *tag == 0) {
            return Some(free);
        }
        let idle = self.entries.iter().enumerate().filter(|(_, entry)| entry.flight == 0);
        let oldest = idle.min_by_key(|(_, entry)| entry.used_at.load(Ordering::Relaxed))?.0;
        self.header.counts.evictions.fetch_add(1, Ordering::Relaxed);
        self.free(oldest);
        Some(oldest)
    }

    /// Wipes a key, and leaves a fetch of it that is under way.
    fn wipe(&mut self, n: usize) {
        // SAFETY: the lock is held exclusively.
        unsafe { self.keys.wipe(n * KEY_LEN, KEY_LEN) };
        self.entries[n].is_filled = false;
        if self.entries[n].flight == 0 {
            self.free(n);
        }
    }

    fn free(&mut self, n: usize) {
        // SAFETY: the lock is held exclusively.
        unsafe { self.keys.wipe(n * KEY_LEN, KEY_LEN) };
        self.entries[n] = Entry::default();
        self.tags[n] = 0;
    }

    /// Wipes the entries that `is_unwanted` says.
    fn wipe_all(&mut self, is_unwanted: impl Fn(&Entry) -> bool) {
        for n in 0..self.entries.len() {
            if self.tags[n] != 0 && is_unwanted(&self.entries[n]) {
                self.wipe(n);
            }
        }
    }

    /// The same, and sees to it that none of them comes back from a fetch that is under way.
    fn wipe_and_discard(&mut self, is_unwanted: impl Fn(&Entry) -> bool) {
        for entry in self.entries.iter_mut().filter(|entry| entry.flight != 0) {
            entry.is_discarded |= is_unwanted(entry);
        }
        self.wipe_all(is_unwanted);
    }

    /// Ends a fetch. An entry that has no key then is free.
    fn land(&mut self, n: usize) {
        self.entries[n].flight = 0;
        self.entries[n].fetcher = 0;
        self.entries[n].is_discarded = false;
        if !self.entries[n].is_filled {
            self.free(n);
        }
    }

    fn is_flying(&self, n: usize, number: u64) -> bool {
        number != 0 && self.entries[n].flight == number
    }
}

/// The key of a version, if it is here and was fetched less than `limit` ago.
pub(crate) fn get(id: &EntryId, limit: Duration) -> Option<SharedKey> {
    let found = memory::shared(|contents| {
        let n = contents.find(id)?;
        let entry = &contents.entries[n];
        if !entry.is_fresh(Moment::now(), limit) {
            return None;
        }
        entry.is_used.store(true, Ordering::Relaxed);
        contents.key(n)
    })
    .flatten();
    if found.is_some()
        && let Some(header) = memory::header()
    {
        header.counts.hits.fetch_add(1, Ordering::Relaxed);
    }
    found
}

/// The key of a version, or what there is to do for it. Waits for who fetches it already, at most for
/// `patience`, and can be cancelled meanwhile.
pub(crate) fn get_or_fetch(
    id: &EntryId,
    fingerprint: Fingerprint,
    time_to_live: Duration,
    patience: Duration,
) -> Next {
    let until = Instant::now() + patience;
    let mut waited_for = 0;
    loop {
        let step =
            memory::exclusive(|contents| step(contents, id, fingerprint, time_to_live, waited_for));
        match step {
            None => return Next::FetchAlone,
            Some(Step::Done(next)) => return next,
            Some(Step::Wait { entry, flight }) => {
                if waited_for == 0
                    && let Some(header) = memory::header()
                {
                    header.counts.waits.fetch_add(1, Ordering::Relaxed);
                }
                waited_for = flight;
                if !wait(entry, flight, until) {
                    return Next::Failed(Why::Provider(
                        ProviderError::new(
                            ProviderErrorKind::TimedOut,
                            "another session's request to the key provider did not end in time",
                        )
                        .with_hint("See encryption_ext.provider_timeout."),
                    ));
                }
            }
        }
    }
}

/// What is known of a version's key, without using it.
pub(crate) fn state(id: &EntryId) -> State {
    let state = memory::shared(|contents| {
        let entry = contents.find(id).map(|n| &contents.entries[n]).filter(|e| e.is_filled);
        let age = entry.map(|entry| entry.fetched_at.age(Moment::now()));
        let is_right = match (entry, contents.wrong_key_seen(id)) {
            (Some(entry), Some(wrong)) => Some(entry.fetched_at > wrong),
            (Some(_), None) => Some(true),
            (None, Some(_)) => Some(false),
            (None, None) => None,
        };
        State { age, is_right }
    });
    state.unwrap_or_default()
}

/// Begins a fetch that nobody has asked for yet, unless one is under way, or no place is free.
pub(super) fn fetch_ahead(id: &EntryId, fingerprint: Fingerprint) -> Option<Flight> {
    memory::exclusive(|contents| {
        let found = contents.find(id);
        let may_begin = match found {
            Some(n) => contents.entries[n].flight == 0,
            // No key that somebody uses goes for one that nobody has used.
            None => contents.tags.contains(&0),
        };
        if may_begin { take_off(contents, found, id, fingerprint) } else { None }
    })
    .flatten()
}

/// Whether a version is to be fetched ahead now: it is due, or `if_missing` and not here.
pub(super) fn is_wanted(id: &EntryId, if_missing: bool) -> bool {
    let now = Moment::now();
    let wanted = memory::shared(|contents| match contents.find(id) {
        Some(n) => {
            let due = contents.entries[n].due(contents.header.times(), if_missing);
            due.is_some_and(|at| at <= now)
        }
        None => if_missing,
    });
    wanted.unwrap_or(false)
}

/// The database of the key that is due next for a fetch ahead of its expiry, and when that is.
pub(super) fn next_due(also_unused: bool) -> Option<(u32, Moment)> {
    memory::shared(|contents| {
        let times = contents.header.times();
        let entries = contents.entries.iter();
        let due = entries.filter_map(|e| e.due(times, also_unused).map(|at| (e.id.database, at)));
        due.min_by_key(|(_, at)| *at)
    })
    .flatten()
}

/// Has no fetch ahead of expiry be due in a database before `until`.
pub(super) fn postpone(database: u32, until: Moment) {
    memory::exclusive(|contents| {
        for entry in contents.entries.iter_mut().filter(|entry| entry.id.database == database) {
            entry.retry_at = entry.retry_at.max(until);
        }
    });
}

/// The same for one version.
pub(super) fn postpone_one(id: &EntryId, until: Moment) {
    memory::exclusive(|contents| {
        if let Some(n) = contents.find(id) {
            contents.entries[n].retry_at = until;
        }
    });
}

enum Step {
    Done(Next),
    Wait { entry: usize, flight: u64 },
}

fn step(
    contents: &mut Contents<'_>,
    id: &EntryId,
    fingerprint: Fingerprint,
    time_to_live: Duration,
    waited_for: u64,
) -> Step {
    let found = contents.find(id);
    if let Some(n) = found
        && contents.entries[n].is_fresh(Moment::now(), time_to_live)
        && let Some(key) = contents.key(n)
    {
        contents.entries[n].is_used.store(true, Ordering::Relaxed);
        return Step::Done(Next::Here(key));
    }
    if waited_for != 0
        && let Some(why) = contents.failure_of(waited_for, fingerprint)
    {
        return Step::Done(Next::Failed(why));
    }
    if let Some(n) = found
        && contents.entries[n].flight != 0
    {
        return Step::Wait { entry: n, flight: contents.entries[n].flight };
    }
    if let Some(why) = contents.missing(id, fingerprint) {
        return Step::Done(Next::Failed(why));
    }
    contents.header.counts.misses.fetch_add(1, Ordering::Relaxed);
    match take_off(contents, found, id, fingerprint) {
        Some(flight) => Step::Done(Next::Fetch(flight)),
        None => Step::Done(Next::FetchAlone),
    }
}

/// Begins a fetch, in an entry that there is or in a new one.
fn take_off(
    contents: &mut Contents<'_>,
    found: Option<usize>,
    id: &EntryId,
    fingerprint: Fingerprint,
) -> Option<Flight> {
    let n = match found {
        Some(n) => n,
        None => {
            let n = contents.make_room()?;
            contents.entries[n].id = *id;
            contents.tags[n] = id.tag();
            n
        }
    };
    let header = contents.header;
    header.counts.fetches.fetch_add(1, Ordering::Relaxed);
    let number = header.flights.fetch_add(1, Ordering::Relaxed) + 1;
    let entry = &mut contents.entries[n];
    entry.flight = number;
    entry.fetcher = session::process_id().cast_signed();
    // Known before anything can end this process.
    UNDER_WAY_ENTRY.store(n, Ordering::Relaxed);
    UNDER_WAY.store(number, Ordering::Relaxed);
    Some(Flight { entry: n, number, id: *id, fingerprint })
}

/// Waits until a fetch by another process has ended, or until `until`, and tells which.
fn wait(entry: usize, flight: u64, until: Instant) -> bool {
    let Some(condition) = memory::condition(entry) else { return true };
    // SAFETY: the condition is in shared memory, and initialized. Preparing comes before the look, so that
    // an end between the look and the sleep is seen; an error that interrupts the sleep passes over this
    // frame, which holds nothing, and the end of the transaction takes this process off the list.
    unsafe { pg_sys::ConditionVariablePrepareToSleep(condition) };
    let landed = loop {
        match memory::shared(|c| c.is_flying(entry, flight).then_some(c.entries[entry].fetcher)) {
            Some(Some(fetcher)) if is_gone(fetcher) => give_up(entry, flight),
            Some(Some(_)) => {}
            Some(None) | None => break true,
        }
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            break false;
        }
        let milliseconds = left.min(LOOK).as_millis().max(1);
        // SAFETY: as above.
        unsafe {
            pg_sys::ConditionVariableTimedSleep(
                condition,
                std::ffi::c_long::try_from(milliseconds).unwrap_or(1000),
                pg_sys::PG_WAIT_EXTENSION,
            );
        }
    };
    // SAFETY: as above.
    unsafe { pg_sys::ConditionVariableCancelSleep() };
    landed
}

/// Whether there is no such process of the server's any more.
fn is_gone(process: i32) -> bool {
    // SAFETY: looks into shared memory, which is attached.
    unsafe { pg_sys::BackendPidGetProc(process).is_null() }
}

/// The entry, and the number, of the fetch that this process has under way; 0 if none.
static UNDER_WAY_ENTRY: AtomicUsize = AtomicUsize::new(0);
static UNDER_WAY: AtomicU64 = AtomicU64::new(0);

/// The process that has registered [`process_ends`].
static REGISTERED: AtomicU32 = AtomicU32::new(0);

/// Has a fetch given up when this process ends in the middle of it. To be called before one begins.
pub(crate) fn register_for_exit() {
    let process = session::process_id();
    if REGISTERED.swap(process, Ordering::Relaxed) != process {
        UNDER_WAY.store(0, Ordering::Relaxed);
        // SAFETY: the callback never unwinds, and stays valid as a library is never unloaded. (Not
        // before_shmem_exit: what PostgreSQL registers there for a while must be the latest when it takes
        // it back, and this may come in between.)
        unsafe {
            pg_sys::on_shmem_exit(Some(process_ends), pg_sys::Datum::from(0usize));
        }
    }
}

unsafe extern "C-unwind" fn process_ends(_code: i32, _argument: pg_sys::Datum) {
    let number = UNDER_WAY.swap(0, Ordering::Relaxed);
    if number != 0 {
        give_up(UNDER_WAY_ENTRY.load(Ordering::Relaxed), number);
    }
}

/// Ends a fetch without a key and without a reason: one of those who wait takes over.
fn give_up(entry: usize, number: u64) {
    end(entry, number, |_| ());
}

/// Ends a fetch, if it is still under way, after `body`; and tells those who wait.
fn end(entry: usize, number: u64, body: impl FnOnce(&mut Contents<'_>)) {
    memory::exclusive(|contents| {
        if contents.is_flying(entry, number) {
            body(contents);
            contents.land(entry);
        }
    });
    if let Some(condition) = memory::condition(entry) {
        // SAFETY: the condition is in shared memory, and initialized.
        unsafe { pg_sys::ConditionVariableBroadcast(condition) };
    }
}

impl Flight {
    /// Shares what the provider has answered. `is_used` tells whether somebody waited for it.
    pub(crate) fn succeed(self, key: &DataKey, is_used: bool) {
        let Self { entry, number, .. } = self;
        end(entry, number, |contents| {
            if contents.entries[entry].is_discarded {
                return;
            }
            // SAFETY: the lock is held exclusively.
            unsafe { contents.keys.write(entry * KEY_LEN, key.expose()) };
            let now = Moment::now();
            let entry = &mut contents.entries[entry];
            entry.is_filled = true;
            entry.fetched_at = now;
            entry.retry_at = Moment::NEVER;
            *entry.is_used.get_mut() = is_used;
            if is_used || *entry.used_at.get_mut() == 0 {
                *entry.used_at.get_mut() = now.get();
            }
        });
        if let Some(times) = times_of_server() {
            memory::wake_before(Moment::now().after(times.time_to_live / 2));
        }
    }

    /// Tells those who wait why there is no key. `retry_at` is when a fetch ahead of time may be tried
    /// again.
    pub(crate) fn fail(self, why: &Why, retry_at: Moment) {
        let Self { entry, number, id, fingerprint, .. } = self;
        end(entry, number, |contents| {
            let times = contents.header.times();
            let former = &mut contents.entries[entry];
            former.retry_at = retry_at;
            // A refusal ends the use of what is past its time, also if the provider can't be asked again.
            let is_over = !former.is_fresh(Moment::now(), times.time_to_live);
            if is_over && former.is_filled && why.is_refusal() {
                contents.wipe(entry);
            }
            contents.keep_failure(number, id, fingerprint, why);
        });
    }
}

impl Drop for Flight {
    /// What has ended already isn't under way any more.
    fn drop(&mut self) {
        UNDER_WAY.store(0, Ordering::Relaxed);
        give_up(self.entry, self.number);
    }
}

/// Wipes every key of this database, and forgets the failures and the logins of all: what a superuser asks
/// for.
pub(crate) fn flush() {
    let database = this_database();
    memory::exclusive(|contents| {
        contents.wipe_and_discard(|entry| entry.id.database == database);
        contents.forget_failures();
        contents.forget_logins();
    });
}

/// Wipes keys that nobody can use any more.
pub(super) fn wipe_old() {
    let Some(times) = times_of_server() else { return };
    let now = Moment::now();
    wipe_if_any(|entry| entry.is_filled && entry.end(times) <= now);
}

/// Wipes the keys of databases that don't exist any more.
pub(super) fn wipe_other_databases(databases: &[u32]) {
    wipe_if_any(|entry| entry.is_filled && !databases.contains(&entry.id.database));
}

/// Wipes the keys of this database that are not among these.
pub(super) fn wipe_others(readable: &BTreeSet<EntryId>) {
    let database = this_database();
    wipe_if_any(|entry| {
        entry.is_filled && entry.id.database == database && !readable.contains(&entry.id)
    });
}

/// Wipes a version that may not be used any more, whichever key it was.
pub(crate) fn forget(key: KeyId, version: KeyVersion) {
    let unwanted = (this_database(), key.get(), version.get());
    let is_unwanted =
        |entry: &Entry| (entry.id.database, entry.id.key, entry.id.version) == unwanted;
    if is_any(is_unwanted) {
        memory::exclusive(|contents| contents.wipe_and_discard(is_unwanted));
    }
}

/// Wipes entries.
fn wipe_if_any(is_unwanted: impl Fn(&Entry) -> bool) {
    if is_any(&is_unwanted) {
        memory::exclusive(|contents| contents.wipe_all(is_unwanted));
    }
}

/// Whether there is such an entry. Most of the time there is none to be wiped, and then nobody needs to be kept
/// out.
fn is_any(is: impl Fn(&Entry) -> bool) -> bool {
    memory::shared(|contents| contents.entries.iter().any(is)) == Some(true)
}

fn this_database() -> u32 {
    // SAFETY: set when a process has connected to a database.
    unsafe { pg_sys::MyDatabaseId }.to_u32()
}

thread_local! {
    /// The versions that this transaction has made unusable.
    static UNUSABLE: RefCell<Vec<(KeyId, KeyVersion)>> = const { RefCell::new(Vec::new()) };
}

/// Wipes a version when this transaction commits.
pub(crate) fn forget_at_commit(key: KeyId, version: KeyVersion) {
    if memory::is_there() {
        UNUSABLE.with_borrow_mut(|unusable| unusable.push((key, version)));
    }
}

/// Called at the end of each transaction.
pub(super) unsafe extern "C-unwind" fn transaction_event(
    event: pg_sys::XactEvent::Type,
    _argument: *mut std::ffi::c_void,
) {
    use pg_sys::XactEvent as Event;

    match event {
        // A prepared transaction commits in another session, which doesn't know: wiped too early, a key is
        // fetched again.
        Event::XACT_EVENT_COMMIT | Event::XACT_EVENT_PREPARE => {
            for (key, version) in UNUSABLE.take() {
                forget(key, version);
            }
        }
        Event::XACT_EVENT_ABORT => drop(UNUSABLE.take()),
        _ => {}
    }
}
