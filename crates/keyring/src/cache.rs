//! The keys that a process has fetched.
//!
//! The cache is bounded: past its capacity the entry that was used longest ago goes. An entry
//! expires when its time to live is over. Neither happens under a statement that has begun to use
//! it: one statement sees one key from beginning to end, and one that needs more keys than the cache
//! may hold has them all until it ends. Entries are handed out as `Rc`, so one that is
//! evicted or flushed lives on until whoever holds it is done.
//!
//! The cache knows neither the catalog nor providers. What to do about an expired entry (fetch it
//! again, or go on with it while the provider is down) is the caller's to decide.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use envelope::{KeyId, KeyName, KeyVersion};
use rustc_hash::FxHashMap;

use crate::material::KeyMaterial;

/// A number that is different for every statement of the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StatementId(pub u64);

/// The keys that a process has fetched, by id and version. `V` is what it made of their bytes.
pub struct KeyCache<V = KeyMaterial> {
    entries: FxHashMap<(KeyId, KeyVersion), Entry<V>>,
    /// The entry that was used last: most values in a row have one key.
    last: Option<Rc<CachedKey<V>>>,
    capacity: usize,
    time_to_live: Duration,
    /// Counts insertions and statements' first uses; see [`CachedKey::used`].
    clock: u64,
    counts: Counts,
}

/// A key in the cache.
#[derive(Debug)]
pub struct CachedKey<V = KeyMaterial> {
    /// The key's name.
    pub name: KeyName,
    /// Its version.
    pub version: KeyVersion,
    /// What was made of its bytes.
    pub value: V,
    /// When it was fetched.
    pub fetched_at: Instant,
    /// Whether its memory can't be swapped out.
    pub locked: bool,
    id: KeyId,
    hits: Cell<u64>,
    /// The cache's clock at the first use by the statement that used it last.
    used: Cell<u64>,
    statement: Cell<Option<StatementId>>,
    /// Whether a statement has used it, for whoever decides whether to fetch it again.
    pub is_used: Arc<AtomicBool>,
}

type Entry<V> = Rc<CachedKey<V>>;

impl<V> CachedKey<V> {
    /// How often it was found in the cache.
    #[must_use]
    pub fn hits(&self) -> u64 {
        self.hits.get()
    }

    /// How long ago it was fetched.
    #[must_use]
    pub fn age(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.fetched_at)
    }

    fn is(&self, id: KeyId, version: KeyVersion) -> bool {
        self.id == id && self.version == version
    }
}

/// What the cache has for a version.
#[derive(Debug)]
pub enum Lookup<V = KeyMaterial> {
    /// A key to use.
    Hit(Rc<CachedKey<V>>),
    /// A key whose time to live is over. To use it in spite of that,
    /// [`KeyCache::keep_for_statement`].
    Expired(Rc<CachedKey<V>>),
    /// Nothing.
    Miss,
}

/// What the cache holds and how it did since the process began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Keys in it.
    pub entries: usize,
    /// Keys that it may hold.
    pub capacity: usize,
    /// Lookups that found a key to use.
    pub hits: u64,
    /// Lookups that found nothing.
    pub misses: u64,
    /// Keys that went to make room.
    pub evictions: u64,
    /// Lookups that found a key whose time to live was over.
    pub expirations: u64,
}

#[derive(Default)]
struct Counts {
    hits: u64,
    misses: u64,
    evictions: u64,
    expirations: u64,
}

impl<V> KeyCache<V> {
    /// The capacity unless set otherwise.
    pub const DEFAULT_CAPACITY: usize = 1000;

    /// The time to live unless set otherwise.
    pub const DEFAULT_TIME_TO_LIVE: Duration = Duration::from_secs(3600);

    /// An empty cache for `capacity` keys (at least one), which expire after `time_to_live`.
    #[must_use]
    pub fn new(capacity: usize, time_to_live: Duration) -> Self {
        Self {
            entries: FxHashMap::default(),
            last: None,
            capacity: capacity.max(1),
            time_to_live,
            clock: 0,
            counts: Counts::default(),
        }
    }

    /// Changes the limits. What is too much for a smaller capacity goes at once.
    pub fn set_limits(&mut self, capacity: usize, time_to_live: Duration) {
        self.capacity = capacity.max(1);
        self.time_to_live = time_to_live;
        while self.entries.len() > self.capacity && self.evict(None) {}
    }

    /// Looks for a version on behalf of `statement`. An entry that the same statement has used
    /// before is a hit whatever its age. `now` is asked only at a statement's first use of a key.
    #[inline]
    pub fn lookup(
        &mut self,
        id: KeyId,
        version: KeyVersion,
        statement: StatementId,
        now: impl FnOnce() -> Instant,
    ) -> Lookup<V> {
        if let Some(last) = &self.last
            && last.is(id, version)
            && last.statement.get() == Some(statement)
        {
            let last = Rc::clone(last);
            self.count_hit(&last);
            return Lookup::Hit(last);
        }
        self.lookup_in_all(id, version, statement, now)
    }

    fn lookup_in_all(
        &mut self,
        id: KeyId,
        version: KeyVersion,
        statement: StatementId,
        now: impl FnOnce() -> Instant,
    ) -> Lookup<V> {
        let Some(entry) = self.entries.get(&(id, version)).map(Rc::clone) else {
            self.counts.misses += 1;
            return Lookup::Miss;
        };
        if entry.statement.get() != Some(statement) && entry.age(now()) >= self.time_to_live {
            self.counts.expirations += 1;
            return Lookup::Expired(entry);
        }
        self.count_hit(&entry);
        self.touch(&entry, statement);
        Lookup::Hit(entry)
    }

    /// Counts a use of an entry that the statement has looked up before and kept.
    #[inline]
    pub fn count_hit(&mut self, entry: &CachedKey<V>) {
        entry.hits.set(entry.hits.get() + 1);
        self.counts.hits += 1;
    }

    /// Lets `statement` go on with an entry that it got as expired: its further lookups hit.
    pub fn keep_for_statement(&mut self, entry: &Rc<CachedKey<V>>, statement: StatementId) {
        if self.entries.get(&(entry.id, entry.version)).is_some_and(|e| Rc::ptr_eq(e, entry)) {
            self.touch(&Rc::clone(entry), statement);
        }
    }

    /// Puts a version in that `statement` fetched at `now`, in place of an older entry of it.
    /// Without a statement, it is as much in use as the older entry was.
    pub fn insert(
        &mut self,
        name: KeyName,
        version: KeyVersion,
        value: V,
        locked: bool,
        statement: Option<StatementId>,
        now: Instant,
    ) -> Rc<CachedKey<V>> {
        let id = name.id();
        let former = self.entries.get(&(id, version)).map(|entry| entry.used.get());
        self.forget(id, version);
        while self.entries.len() >= self.capacity && self.evict(statement) {}
        let entry = Rc::new(CachedKey {
            name,
            version,
            value,
            fetched_at: now,
            locked,
            id,
            hits: Cell::new(0),
            used: Cell::new(former.unwrap_or(0)),
            statement: Cell::new(None),
            is_used: Arc::default(),
        });
        self.entries.insert((id, version), Rc::clone(&entry));
        if let Some(statement) = statement {
            self.touch(&entry, statement);
        }
        entry
    }

    /// Drops a version, and tells whether it was there.
    pub fn forget(&mut self, id: KeyId, version: KeyVersion) -> bool {
        self.last = self.last.take().filter(|last| !last.is(id, version));
        self.entries.remove(&(id, version)).is_some()
    }

    /// Drops everything, and tells how many versions that were. The counts go on.
    pub fn clear(&mut self) -> usize {
        self.last = None;
        let count = self.entries.len();
        self.entries.clear();
        count
    }

    /// What the cache holds and how it did.
    #[must_use]
    pub fn statistics(&self) -> Statistics {
        let Counts { hits, misses, evictions, expirations } = self.counts;
        Statistics {
            entries: self.entries.len(),
            capacity: self.capacity,
            hits,
            misses,
            evictions,
            expirations,
        }
    }

    /// The entries, in no order.
    pub fn entries(&self) -> impl Iterator<Item = &CachedKey<V>> {
        self.entries.values().map(|entry| &**entry)
    }

    /// How long until `entry` expires; zero if it has.
    #[must_use]
    pub fn expires_in(&self, entry: &CachedKey<V>, now: Instant) -> Duration {
        self.time_to_live.saturating_sub(entry.age(now))
    }

    fn touch(&mut self, entry: &Rc<CachedKey<V>>, statement: StatementId) {
        self.clock += 1;
        entry.used.set(self.clock);
        entry.statement.set(Some(statement));
        entry.is_used.store(true, Ordering::Relaxed);
        self.last = Some(Rc::clone(entry));
    }

    /// Drops the entry that was used longest ago, but none that `statement` uses, and tells whether
    /// there was one. Looking at all of them takes a microsecond for a thousand, a thousandth of the
    /// fetch that made it necessary.
    fn evict(&mut self, statement: Option<StatementId>) -> bool {
        let idle = self
            .entries
            .values()
            .filter(|entry| statement.is_none() || entry.statement.get() != statement);
        let Some(oldest) = idle.min_by_key(|entry| entry.used.get()).map(Rc::clone) else {
            return false;
        };
        self.counts.evictions += 1;
        self.forget(oldest.id, oldest.version)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: StatementId = StatementId(1);
    const SECOND: StatementId = StatementId(2);
    const HOUR: Duration = Duration::from_secs(3600);

    fn name(n: usize) -> KeyName {
        KeyName::parse(&format!("key{n}")).unwrap()
    }

    fn insert(cache: &mut KeyCache<usize>, n: usize, statement: StatementId, now: Instant) {
        cache.insert(name(n), KeyVersion::FIRST, n, true, Some(statement), now);
    }

    fn lookup(
        cache: &mut KeyCache<usize>,
        n: usize,
        statement: StatementId,
        now: Instant,
    ) -> Lookup<usize> {
        cache.lookup(name(n).id(), KeyVersion::FIRST, statement, || now)
    }

    #[test]
    fn a_key_expires_between_statements_but_not_in_one() {
        let start = Instant::now();
        let mut cache = KeyCache::new(10, HOUR);
        assert!(matches!(lookup(&mut cache, 0, FIRST, start), Lookup::Miss));
        insert(&mut cache, 0, FIRST, start);
        insert(&mut cache, 1, FIRST, start);
        let late = start + HOUR;
        for n in [0, 1, 0] {
            assert!(matches!(lookup(&mut cache, n, FIRST, late), Lookup::Hit(e) if e.value == n));
        }
        assert!(matches!(lookup(&mut cache, 0, SECOND, start + HOUR / 2), Lookup::Hit(_)));
        assert!(matches!(lookup(&mut cache, 0, SECOND, late), Lookup::Hit(_)));
        assert!(matches!(lookup(&mut cache, 1, SECOND, late), Lookup::Expired(e) if e.value == 1));
        let third = StatementId(3);
        assert!(matches!(lookup(&mut cache, 0, third, late), Lookup::Expired(_)));
        let stats = cache.statistics();
        assert_eq!((stats.hits, stats.misses, stats.expirations), (5, 1, 2));
    }

    #[test]
    fn a_statement_may_go_on_with_an_expired_key() {
        let start = Instant::now();
        let mut cache = KeyCache::new(10, HOUR);
        insert(&mut cache, 0, FIRST, start);
        let late = start + 2 * HOUR;
        let Lookup::Expired(entry) = lookup(&mut cache, 0, SECOND, late) else {
            panic!("not expired")
        };
        cache.keep_for_statement(&entry, SECOND);
        assert!(matches!(lookup(&mut cache, 0, SECOND, late), Lookup::Hit(_)));
        assert!(matches!(lookup(&mut cache, 0, StatementId(3), late), Lookup::Expired(_)));
        // An entry that was replaced meanwhile does not come back.
        insert(&mut cache, 0, SECOND, late);
        cache.keep_for_statement(&entry, SECOND);
        assert!(
            matches!(lookup(&mut cache, 0, SECOND, late), Lookup::Hit(e) if !Rc::ptr_eq(&e, &entry))
        );
    }

    #[test]
    fn the_entry_used_longest_ago_makes_room() {
        let now = Instant::now();
        let mut cache = KeyCache::new(3, HOUR);
        for n in 0..3 {
            insert(&mut cache, n, FIRST, now);
        }
        assert!(matches!(lookup(&mut cache, 0, SECOND, now), Lookup::Hit(_)));
        insert(&mut cache, 3, SECOND, now);
        let mut left: Vec<_> = cache.entries().map(|e| e.value).collect();
        left.sort_unstable();
        assert_eq!(left, [0, 2, 3]);
        assert_eq!(cache.statistics().evictions, 1);
        cache.set_limits(1, HOUR);
        assert_eq!(cache.entries().map(|e| e.value).collect::<Vec<_>>(), [3]);
        assert_eq!(cache.statistics().evictions, 3);
        // To put a key in again takes no room.
        insert(&mut cache, 3, SECOND, now);
        assert_eq!(cache.statistics().evictions, 3);
    }

    #[test]
    fn a_statement_loses_no_key_to_another_that_it_uses() {
        let now = Instant::now();
        let mut cache = KeyCache::new(2, HOUR);
        for n in 0..4 {
            insert(&mut cache, n, FIRST, now);
        }
        for n in 0..4 {
            assert!(matches!(lookup(&mut cache, n, FIRST, now), Lookup::Hit(_)));
        }
        insert(&mut cache, 4, SECOND, now);
        assert_eq!(cache.entries().map(|e| e.value).filter(|n| *n >= 3).count(), 2);
        assert_eq!(cache.statistics().entries, 2);
    }

    #[test]
    fn a_key_that_was_fetched_again_is_not_in_use_by_that() {
        let now = Instant::now();
        let mut cache = KeyCache::new(3, HOUR);
        for n in 0..3 {
            insert(&mut cache, n, FIRST, now);
        }
        let is_used = |entry: &CachedKey<usize>| entry.is_used.load(Ordering::Relaxed);
        assert!(cache.entries().all(is_used));
        let again = cache.insert(name(0), KeyVersion::FIRST, 10, true, None, now + HOUR);
        assert!(!is_used(&again));
        // It is still the one that was used longest ago.
        insert(&mut cache, 3, SECOND, now);
        assert!(matches!(lookup(&mut cache, 0, SECOND, now), Lookup::Miss));
        let again = cache.insert(name(1), KeyVersion::FIRST, 11, true, None, now + HOUR);
        assert!(
            matches!(lookup(&mut cache, 1, SECOND, now + HOUR), Lookup::Hit(e) if e.value == 11)
        );
        assert!(is_used(&again));
    }

    #[test]
    fn what_is_in_use_outlives_its_entry() {
        let now = Instant::now();
        let mut cache = KeyCache::new(1, HOUR);
        let held = cache.insert(name(0), KeyVersion::FIRST, 0, true, Some(FIRST), now);
        insert(&mut cache, 1, SECOND, now);
        assert!(matches!(lookup(&mut cache, 0, FIRST, now), Lookup::Miss));
        assert_eq!((held.value, Rc::strong_count(&held)), (0, 1));
    }

    #[test]
    fn what_was_forgotten_is_gone_also_as_the_last_one() {
        let now = Instant::now();
        let mut cache = KeyCache::new(10, HOUR);
        insert(&mut cache, 0, FIRST, now);
        assert!(matches!(lookup(&mut cache, 0, FIRST, now), Lookup::Hit(_)));
        assert!(cache.forget(name(0).id(), KeyVersion::FIRST));
        assert!(!cache.forget(name(0).id(), KeyVersion::FIRST));
        assert!(matches!(lookup(&mut cache, 0, FIRST, now), Lookup::Miss));
        insert(&mut cache, 0, FIRST, now);
        insert(&mut cache, 1, FIRST, now);
        assert_eq!(cache.clear(), 2);
        assert!(matches!(lookup(&mut cache, 1, FIRST, now), Lookup::Miss));
        let stats = cache.statistics();
        assert_eq!((stats.entries, stats.hits, stats.misses), (0, 1, 2));
    }

    #[test]
    fn an_entry_tells_its_age() {
        let now = Instant::now();
        let mut cache = KeyCache::new(10, HOUR);
        insert(&mut cache, 0, FIRST, now);
        let entry = cache.entries().next().unwrap();
        let later = now + HOUR / 4;
        assert_eq!(entry.age(later), HOUR / 4);
        assert_eq!(cache.expires_in(entry, later), HOUR * 3 / 4);
        assert_eq!(cache.expires_in(entry, now + 2 * HOUR), Duration::ZERO);
        assert_eq!((entry.hits(), entry.name.as_str(), entry.locked), (0, "key0", true));
    }
}
