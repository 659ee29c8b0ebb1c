//! Joins the catalog, the grants, the providers and the cache: from a key's id to a cipher that
//! the current user may use.
//!
//! All of it is this backend's own. [`encrypting`] and [`decrypting`] are what values come through;
//! the steps are: has another session changed anything (once a statement), what does the catalog
//! say (kept until it changes), may the user (kept until roles change), are the key's bytes here
//! (kept until their time to live ends), and is the cipher for the value's salt derived (kept).

use std::cell::RefCell;
use std::convert::Infallible;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use envelope::{
    DataKey, DerivedCiphers, KeyId, KeyName, KeyVersion, Nonce, NonceSource, ValueCipher,
};
use keyring::breaker::Breaker;
use keyring::cache::{CachedKey, KeyCache, Lookup, StatementId};
use keyring::digest::DigestKey;
use keyring::material::KeyMaterial;
use keyring::refresh::{Outages, Planned, Refreshed, Refresher};
use keyring::secret::Secret;
use keyring::version::CheckValue;
use pgrx::pg_sys;
use rustc_hash::FxHashMap;

use crate::access::{self, Authority, Held};
use crate::audit::{Purpose, Usage};
use crate::catalog::{self, DATABASE_KEY, Key, Privilege, Version, invalidation};
use crate::errors::Error;
use crate::events::Event;
use crate::mask::Mask;
use crate::providers::{Providers, version_id};
use crate::shared::Told;
use crate::shared::fetch::{self, Fetched};
use crate::{events, log_redaction, pg, restored, session, settings, shared, statistics, types};

/// How many derived ciphers a backend keeps: one for each session that wrote the values it reads,
/// at some 400 bytes each.
const DERIVED_CIPHERS: usize = 1024;

/// What this backend knows of keys.
struct Backend {
    process_id: u32,
    statement: i64,
    catalog_generation: u64,
    catalog: FxHashMap<KeyId, Rc<Key>>,
    access: access::Decisions,
    last: Option<Authorized>,
    in_use: InUse,
    digests: Option<Digests>,
    cache: KeyCache<Opened>,
    derived: DerivedCiphers<Secret<ValueCipher>>,
    nonces: NonceSource,
    providers: Providers,
    refresher: Refresher,
    usage: Usage,
    timing: Timing,
    /// Whether it was seen that the catalog is not that of a restored backup, or the user told.
    knows_if_restored: bool,
}

/// How long a provider that is out of reach is asked on when keys may no longer be used: so that the
/// first statements after that fail at once.
const ASKED_FOR_LONGER: Duration = Duration::from_secs(60);

/// The key that was used last, and what decides whether it is to be looked up again. Most values in
/// a row have one key and one user.
#[derive(Clone)]
struct Authorized {
    key: Rc<Key>,
    held: Held,
    authority: Authority,
}

/// The versions that the present statement has used last, each with what was found out about it. The
/// steps of [`Backend::authorized`] and [`Backend::opened`] are not repeated for a value as long as all
/// that they depend on stays the same.
#[derive(Default)]
struct InUse {
    statement: i64,
    authority: Option<Authority>,
    versions: Vec<VersionInUse>,
    /// The one that was used last. Most values in a row are of one key, or of as many as there are columns.
    last: usize,
}

struct VersionInUse {
    key_id: KeyId,
    version: KeyVersion,
    key: Rc<Key>,
    held: Held,
    cached: Rc<CachedKey<Opened>>,
}

impl InUse {
    /// How many there are at most: more than a table has columns under different keys.
    const MOST: usize = 16;

    /// The number of a version, unless it is not here, or not for this statement and authority.
    #[inline]
    fn find(
        &mut self,
        statement: i64,
        authority: Authority,
        is_it: impl Fn(&VersionInUse) -> bool,
    ) -> Option<usize> {
        if self.statement != statement || self.authority != Some(authority) {
            return None;
        }
        if !self.versions.get(self.last).is_some_and(&is_it) {
            self.last = self.versions.iter().position(is_it)?;
        }
        Some(self.last)
    }

    /// Puts a version in, and returns its number.
    fn put(&mut self, statement: i64, authority: Authority, version: VersionInUse) -> usize {
        if self.statement != statement
            || self.authority != Some(authority)
            || self.versions.len() == Self::MOST
        {
            self.versions.clear();
            (self.statement, self.authority) = (statement, Some(authority));
        }
        self.versions.push(version);
        self.last = self.versions.len() - 1;
        self.last
    }

    fn clear(&mut self) {
        self.authority = None;
        self.versions.clear();
    }
}

/// Which decryptions are timed. Sessions begin to count at different numbers: those that decrypt few values are
/// timed as often as others, and not always at the first.
struct Timing {
    /// How many are not, before the next that is.
    left: u32,
}

impl Timing {
    /// The time, if what begins now is to be timed.
    #[inline]
    fn starts(&mut self) -> Option<Instant> {
        if let Some(left) = self.left.checked_sub(1) {
            self.left = left;
            return None;
        }
        self.left = statistics::TIMED_ONE_IN - 1;
        Some(Instant::now())
    }
}

/// The key of digests as it was looked up last, and what decides whether that is to be done again.
struct Digests {
    cached: Rc<CachedKey<Opened>>,
    statement: i64,
    generation: u64,
}

impl Authorized {
    fn is(&self, key_id: KeyId, authority: Authority) -> bool {
        self.key.name.id() == key_id && self.authority == authority
    }
}

/// A version's key in the cache, and the check value that tells which key it is.
pub(crate) struct Opened {
    material: KeyMaterial,
    check_value: CheckValue,
}

thread_local! {
    static BACKEND: RefCell<Option<Backend>> = const { RefCell::new(None) };
}

/// Calls `body` with this backend's state, which a process that was forked from another begins
/// anew: memory of secrets is wiped on fork, and two processes must never count from one nonce.
fn with_backend<T, E>(body: impl FnOnce(&mut Backend) -> Result<T, E>) -> Result<T, E> {
    BACKEND.with_borrow_mut(|backend| {
        let process_id = session::process_id();
        if backend.as_ref().is_none_or(|backend| backend.process_id != process_id) {
            begin(backend, process_id);
        }
        body(backend.as_mut().expect("it was begun"))
    })
}

#[inline(never)]
fn begin(backend: &mut Option<Backend>, process_id: u32) {
    *backend = None;
    *backend = Some(Backend::new(process_id));
}

/// The cipher for one new value, and what goes into its header.
pub(crate) struct Encrypting<'a> {
    pub(crate) name: &'a KeyName,
    pub(crate) version: KeyVersion,
    pub(crate) nonce: Nonce,
    /// What the current user is shown of the key's values, if that is a mask.
    pub(crate) mask: Option<&'a Mask>,
    pub(crate) cipher: &'a ValueCipher,
}

/// Calls `body` with the cipher for a new value of `plaintext_len` bytes under the active version
/// of a key. The current user needs `encrypt` on it, except for the database key.
///
/// # Errors
///
/// If there is no such key, it has no active version, the user may not, or it can't be had.
pub(crate) fn encrypting<T>(
    key_id: KeyId,
    plaintext_len: usize,
    body: impl FnOnce(Encrypting<'_>) -> Result<T, Box<Error>>,
) -> Result<T, Box<Error>> {
    with_backend(|backend| {
        let n = backend.use_active(key_id)?;
        if session::is_new_transaction() {
            backend.nonces.transaction_start(Instant::now());
        }
        let nonce = backend
            .nonces
            .next(backend.process_id, plaintext_len)
            .map_err(|_| Error::RandomUnavailable)?;
        let VersionInUse { version, key, held, cached, .. } = &backend.in_use.versions[n];
        let cipher = cipher(&mut backend.derived, cached, nonce.salt());
        let mask = held.is_masked().then_some(&key.mask);
        let encrypting = Encrypting { name: &cached.name, version: *version, nonce, mask, cipher };
        let result = body(encrypting)?;
        backend.usage.count(*version, key, Purpose::Encrypted);
        Ok(result)
    })
}

/// Calls `body` with the cipher and the key's name for a value with this key id, version and salt.
/// The current user needs `privilege`, if any, on the key, except for the database key.
///
/// # Errors
///
/// If there is no such key or version, the version may not be used, the user may not, or it can't
/// be had.
pub(crate) fn decrypting<T>(
    key_id: KeyId,
    version: KeyVersion,
    salt: &[u8; envelope::SALT_LEN],
    privilege: Option<Privilege>,
    body: impl FnOnce(&KeyName, &ValueCipher) -> Result<T, Box<Error>>,
) -> Result<T, Box<Error>> {
    with_backend(|backend| {
        let n = backend.use_version(key_id, version, privilege)?;
        let VersionInUse { key, cached, .. } = &backend.in_use.versions[n];
        let started = backend.timing.starts();
        let result = body(&cached.name, cipher(&mut backend.derived, cached, salt))?;
        if let Some(started) = started {
            statistics::add_decrypt_time(started.elapsed());
        }
        backend.usage.count(version, key, Purpose::of(privilege));
        Ok(result)
    })
}

/// Whether the current user has `privilege` on the key with this id, for what needs no key.
///
/// # Errors
///
/// If not, or if there is no such key.
pub(crate) fn check(key_id: KeyId, privilege: Privilege) -> Result<(), Error> {
    with_backend(|backend| backend.authorized(key_id, Some(privilege)).map(drop))
}

/// The key with this id, if the current user is shown its mask: has `mask` on it, and not `decrypt`.
///
/// # Errors
///
/// If there is no such key.
pub(crate) fn masked(key_id: KeyId) -> Result<Option<Rc<Key>>, Error> {
    with_backend(|backend| {
        let Authorized { key, held, .. } = backend.authorized(key_id, None)?;
        Ok(held.is_masked().then_some(key))
    })
}

/// Calls `body` with the key of the digests in indexes, which everyone may use: what a digest is made
/// of has been decrypted with a privilege, or is the caller's own.
///
/// # Errors
///
/// If the database has no key yet, or the version of it that digests are made with can't be had.
pub(crate) fn digesting<T>(body: impl FnOnce(&DigestKey) -> T) -> Result<T, Box<Error>> {
    with_backend(|backend| {
        let cached = backend.digest_key()?;
        let key = cached.value.material.digest.as_ref();
        Ok(body(key.ok_or(Error::Internal { what: "the database key has no subkey for digests" })?))
    })
}

/// Whether the digests in indexes are made with this version of `key`.
///
/// # Errors
///
/// If the catalog can't be read.
pub(crate) fn makes_digests(key: &Key, version: KeyVersion) -> Result<bool, Error> {
    Ok(key.is_database_key() && catalog::read_digest_version()? == Some(version))
}

/// The key with this id as the catalog has it, or `None`.
///
/// # Errors
///
/// If the catalog can't be read.
pub(crate) fn find(key_id: KeyId) -> Result<Option<Rc<Key>>, Error> {
    with_backend(|backend| {
        backend.begin_statement();
        backend.find(key_id)
    })
}

/// The number of the active version of the key with this id, if it has one.
///
/// # Errors
///
/// If there is no such key, or the catalog can't be read.
pub(crate) fn active_version(key_id: KeyId) -> Result<Option<KeyVersion>, Error> {
    let key = find(key_id)?.ok_or_else(|| Error::unknown_id(key_id))?;
    Ok(key.active_version().map(|version| version.number))
}

/// The key with this name as the catalog has it.
///
/// # Errors
///
/// If there is none.
pub(crate) fn named(name: &KeyName) -> Result<Rc<Key>, Error> {
    match find(name.id())? {
        Some(key) if key.name == *name => Ok(key),
        _ => Err(Error::KeyUnknown { key: name.to_string() }),
    }
}

/// Fetches a version from its provider, whatever its state and whether it is cached or not, to see
/// that it can be had and is the right one.
///
/// # Errors
///
/// If not.
pub(crate) fn verify(key: &Key, version: &Version) -> Result<(), Error> {
    with_providers(|providers| {
        let data_key = providers.open(key, version)?;
        verify_check_value(key, version, &data_key)
    })
}

/// Calls `body` with the key of the lifecycle log under a version of the database key: the active
/// one, if none is named. It needs no privilege: whose entry it is was decided before.
///
/// # Errors
///
/// If there is no such version, or it can't be had.
pub(crate) fn with_log_key<T>(
    version: Option<KeyVersion>,
    body: impl FnOnce(KeyVersion, &DataKey) -> T,
) -> Result<T, Error> {
    let name = KeyName::parse(DATABASE_KEY).expect("the database key's name is a key name");
    with_backend(|backend| {
        backend.begin_statement();
        let key =
            backend.find(name.id())?.ok_or_else(|| Error::KeyUnknown { key: name.to_string() })?;
        let version = match version {
            Some(version) => version,
            None => {
                key.active_version()
                    .ok_or_else(|| Error::KeyWithoutActiveVersion { key: name.clone() })?
                    .number
            }
        };
        let cached = backend.opened(&key, version)?;
        let log_key = cached.value.material.log.as_ref();
        let log_key = log_key.ok_or(Error::Internal { what: "a database key without subkeys" })?;
        Ok(body(version, log_key))
    })
}

/// Calls `body` with this backend's providers.
///
/// # Errors
///
/// What `body` returns.
pub(crate) fn with_providers<T>(
    body: impl FnOnce(&mut Providers) -> Result<T, Error>,
) -> Result<T, Error> {
    with_backend(|backend| {
        let result = body(&mut backend.providers);
        backend.providers.close_connections();
        result
    })
}

/// Spares this session the warning that the catalog may be that of a restored backup: it is about to
/// find out.
///
/// # Errors
///
/// None; as all that use this backend's state.
pub(crate) fn omit_restored_warning() -> Result<(), Error> {
    with_backend(|backend| {
        backend.knows_if_restored = true;
        Ok(())
    })
}

/// Calls `body` with this backend's cache of keys.
pub(crate) fn with_cache<T>(
    body: impl FnOnce(&mut KeyCache<Opened>) -> Result<T, Error>,
) -> Result<T, Error> {
    with_backend(|backend| body(&mut backend.cache))
}

/// Calls `body` with what the audit has counted, unless this process has counted nothing yet.
pub(crate) fn with_usage(body: impl FnOnce(&mut Usage)) {
    BACKEND.with(|backend| {
        if let Ok(mut backend) = backend.try_borrow_mut()
            && let Some(backend) = backend.as_mut()
            && backend.process_id == session::process_id()
        {
            body(&mut backend.usage);
        }
    });
}

/// Drops every key and everything derived from keys, and has the next use read the catalog and
/// ask the providers again.
pub(crate) fn flush() {
    BACKEND.with_borrow_mut(|backend| {
        if let Some(backend) = backend {
            backend.cache.clear();
            backend.derived.clear();
            backend.catalog.clear();
            backend.last = None;
            backend.in_use.clear();
            backend.digests = None;
            backend.providers = Providers::default();
            backend.refresher = Refresher::observed_by(statistics::asked);
        }
    });
}

impl Backend {
    fn new(process_id: u32) -> Self {
        session::register_for_exit();
        Self {
            process_id,
            statement: 0,
            catalog_generation: 0,
            catalog: FxHashMap::default(),
            access: access::Decisions::default(),
            last: None,
            in_use: InUse::default(),
            digests: None,
            cache: KeyCache::new(settings::cache_capacity(), settings::cache_ttl()),
            derived: DerivedCiphers::new(DERIVED_CIPHERS),
            nonces: NonceSource::new(),
            providers: Providers::default(),
            refresher: Refresher::observed_by(statistics::asked),
            usage: Usage::default(),
            timing: Timing { left: process_id % statistics::TIMED_ONE_IN },
            knows_if_restored: false,
        }
    }

    /// At the first use of a key in a statement, takes notice of what other sessions have
    /// committed. PostgreSQL itself does so only at the start of a transaction and when it
    /// acquires a lock that the transaction doesn't have yet.
    fn begin_statement(&mut self) {
        let statement = pg::statement_start();
        if statement != self.statement && session::may_wait() {
            // SAFETY: a transaction is in progress, as a type's function is being called, and no
            // lock of PostgreSQL's is held that forbids it.
            unsafe { pg_sys::AcceptInvalidationMessages() };
            self.statement = statement;
            self.in_use.clear();
            self.cache.set_limits(settings::cache_capacity(), settings::cache_ttl());
            let (refreshed, outages) = self.refresher.take();
            for refreshed in refreshed {
                self.take_refreshed(refreshed);
            }
            for outages in outages {
                self.providers.record_outages(&outages);
                let Outages { provider, error, .. } = outages;
                let error = Error::Provider { provider: provider.clone(), key: None, error };
                let error = &error.message();
                events::tell(&Event::NotFetchedAhead { provider: &provider, error });
            }
        }
    }

    /// Takes notice of a value that is about to be encrypted or decrypted; returns the present statement.
    fn value_is_used(&mut self) -> i64 {
        let statement = pg::statement_start();
        if statement != self.usage.statement() {
            self.usage.begin(statement);
        }
        log_redaction::value_used(statement);
        statement
    }

    /// The number in `in_use` of a key's active version, if the current user may encrypt with it.
    #[inline]
    fn use_active(&mut self, key_id: KeyId) -> Result<usize, Box<Error>> {
        let statement = self.value_is_used();
        let is_active = |used: &VersionInUse| {
            used.key_id == key_id
                && used.key.active_version().is_some_and(|active| active.number == used.version)
        };
        let found = self.in_use.find(statement, Authority::now(), is_active);
        match found.filter(|&n| self.in_use.versions[n].held.has(Privilege::Encrypt)) {
            Some(n) => Ok(self.hit(n)),
            None => self.look_up_active(key_id),
        }
    }

    #[inline(never)]
    fn look_up_active(&mut self, key_id: KeyId) -> Result<usize, Box<Error>> {
        let Authorized { key, held, authority } =
            self.authorized(key_id, Some(Privilege::Encrypt))?;
        let active = key.active_version();
        let version =
            active.ok_or_else(|| Error::KeyWithoutActiveVersion { key: key.name.clone() })?.number;
        self.open_for_use(key, held, authority, version)
    }

    /// The number in `in_use` of a version that may decrypt, if the current user has `privilege`, if any,
    /// on its key.
    #[inline]
    fn use_version(
        &mut self,
        key_id: KeyId,
        version: KeyVersion,
        privilege: Option<Privilege>,
    ) -> Result<usize, Box<Error>> {
        let statement = self.value_is_used();
        let is_it = |used: &VersionInUse| (used.key_id, used.version) == (key_id, version);
        let found = self.in_use.find(statement, Authority::now(), is_it);
        let may = |n: &usize| {
            privilege.is_none_or(|privilege| self.in_use.versions[*n].held.has(privilege))
        };
        match found.filter(may) {
            Some(n) => Ok(self.hit(n)),
            None => self.look_up_version(key_id, version, privilege),
        }
    }

    #[inline(never)]
    fn look_up_version(
        &mut self,
        key_id: KeyId,
        version: KeyVersion,
        privilege: Option<Privilege>,
    ) -> Result<usize, Box<Error>> {
        let Authorized { key, held, authority } = self.authorized(key_id, privilege)?;
        self.open_for_use(key, held, authority, version)
    }

    fn hit(&mut self, n: usize) -> usize {
        self.cache.count_hit(&self.in_use.versions[n].cached);
        n
    }

    #[inline(never)]
    fn open_for_use(
        &mut self,
        key: Rc<Key>,
        held: Held,
        authority: Authority,
        version: KeyVersion,
    ) -> Result<usize, Box<Error>> {
        let cached = self.opened(&key, version)?;
        let key_id = key.name.id();
        let used = VersionInUse { key_id, version, key, held, cached };
        // Of the statement that has taken notice of changes: while that may not be done, the present one has
        // not, and each of its values comes here. And under the authority from before the key was looked up,
        // which is not the present one if something has changed meanwhile.
        Ok(self.in_use.put(self.statement, authority, used))
    }

    /// The key with this id and what the current user holds on it, if `privilege`, if any, is among that.
    fn authorized(
        &mut self,
        key_id: KeyId,
        privilege: Option<Privilege>,
    ) -> Result<Authorized, Error> {
        self.begin_statement();
        let authority = Authority::now();
        let authorized = match self.last.as_ref().filter(|last| last.is(key_id, authority)) {
            Some(last) => last.clone(),
            None => {
                let key = self.find(key_id)?.ok_or_else(|| Error::unknown_id(key_id))?;
                let held = self.access.held(pg::current_user(), &key);
                self.last.insert(Authorized { key, held, authority }).clone()
            }
        };
        if let Some(privilege) = privilege
            && let Err(error) = authorized.held.check(&authorized.key, privilege)
        {
            self.usage.denied(&authorized.key, privilege, error.sqlstate());
            return Err(error);
        }
        Ok(authorized)
    }

    /// The version of the database key that digests are made with. It stays what it is within a
    /// statement, and is looked up again when anything in the catalog has changed.
    fn digest_key(&mut self) -> Result<Rc<CachedKey<Opened>>, Error> {
        self.begin_statement();
        let (statement, generation) = (self.statement, invalidation::catalog_generation());
        if let Some(digests) = &self.digests
            && (digests.statement, digests.generation) == (statement, generation)
        {
            return Ok(Rc::clone(&digests.cached));
        }
        let key_id = types::database_key_id()?;
        let key = self.find(key_id)?.ok_or_else(|| Error::unknown_id(key_id))?;
        let version = match &self.digests {
            Some(digests) if digests.generation == generation => digests.cached.version,
            _ if !session::may_wait() => {
                return Err(Error::KeyUnavailableHere { key: key.name.to_string() });
            }
            _ => catalog::read_digest_version()?.ok_or(Error::DigestVersionUnset)?,
        };
        let cached = self.opened(&key, version)?;
        self.digests = Some(Digests { cached: Rc::clone(&cached), statement, generation });
        Ok(cached)
    }

    fn find(&mut self, key_id: KeyId) -> Result<Option<Rc<Key>>, Error> {
        // Taken before the catalog is read: a change that arrives while it is counts as unseen.
        let generation = invalidation::catalog_generation();
        if self.catalog_generation != generation {
            self.catalog.clear();
            self.access.clear();
            self.in_use.clear();
            self.catalog_generation = generation;
        }
        if let Some(key) = self.catalog.get(&key_id) {
            return Ok(Some(Rc::clone(key)));
        }
        if !session::may_wait() {
            return Err(Error::KeyUnavailableHere { key: key_id.to_string() });
        }
        let Some(key) = catalog::read_key(key_id)? else { return Ok(None) };
        let key = Rc::new(key);
        self.forget_unusable(key_id, &key);
        self.catalog.insert(key_id, Rc::clone(&key));
        Ok(Some(key))
    }

    /// Wipes the versions of a key that the catalog says may no longer be used.
    fn forget_unusable(&mut self, key_id: KeyId, key: &Key) {
        for version in key.versions.iter().filter(|version| !version.state.decrypts()) {
            self.cache.forget(key_id, version.number);
            self.derived.forget(key_id, version.number);
            shared::entries::forget(key_id, version.number);
        }
        self.in_use.clear();
    }

    /// The bytes of a version that may decrypt: from the cache, or from its provider.
    fn opened(&mut self, key: &Key, number: KeyVersion) -> Result<Rc<CachedKey<Opened>>, Error> {
        let key_id = key.name.id();
        let version = usable(key, number)?;
        let lookup = self.cache.lookup(key_id, number, self.statement_id(), Instant::now);
        // A version that was rolled back, and then made again, is another key.
        let is_version =
            |cached: &CachedKey<Opened>| cached.value.check_value == version.check_value;
        match lookup {
            Lookup::Hit(cached) if is_version(&cached) => Ok(cached),
            _ if !session::may_wait() => {
                Err(Error::KeyUnavailableHere { key: key.name.to_string() })
            }
            Lookup::Expired(cached) if is_version(&cached) => {
                let renewed = self.renewed(key, version, cached);
                self.providers.close_connections();
                renewed
            }
            Lookup::Hit(_) | Lookup::Expired(_) | Lookup::Miss => {
                let opened = self.fetch(key, version);
                if opened.is_ok() {
                    self.fetch_others(key, number);
                }
                self.providers.close_connections();
                opened
            }
        }
    }

    /// The version again from its provider, as its time to live is over; or what is in the cache, for
    /// as long as the provider is out of reach and the grace lasts. A provider that says no ends the
    /// use of the key.
    fn renewed(
        &mut self,
        key: &Key,
        version: &Version,
        cached: Rc<CachedKey<Opened>>,
    ) -> Result<Rc<CachedKey<Opened>>, Error> {
        if let Some(fetched) = fetch::fresh(key, version) {
            return Ok(self.keep(key, version, fetched));
        }
        let left = longest_use().saturating_sub(cached.age(Instant::now()));
        // One that has just failed is not asked again by every statement that can do without.
        if left.is_zero() || self.providers.is_calm(&version.provider) {
            match self.fetch(key, version) {
                Err(error) if error.is_outage() && !left.is_zero() => {
                    self.plan_refresh(key, version, &cached, Instant::now() + Breaker::OPEN / 2);
                    self.warn_of_use_past_time(key, version, left, &error.message());
                }
                result => return result,
            }
        } else {
            let why = format!("provider \"{}\" is out of reach", version.provider);
            self.warn_of_use_past_time(key, version, left, &why);
        }
        self.cache.keep_for_statement(&cached, self.statement_id());
        Ok(cached)
    }

    fn warn_of_use_past_time(&mut self, key: &Key, version: &Version, left: Duration, why: &str) {
        self.usage.used_past_time(key.name.id(), version.number);
        if !shared::is_time_to_tell(Told::PastTime) {
            return;
        }
        events::tell(&Event::UsedPastTime {
            key: &key.name,
            version: version.number,
            provider: &version.provider,
            left,
            why,
        });
    }

    /// The key's other readable versions are fetched with the first, so that a statement that
    /// meets them later doesn't wait again. One that fails is tried again when a value needs it.
    fn fetch_others(&mut self, key: &Key, but: KeyVersion) {
        let others = key.versions.iter().filter(|version| {
            version.state.decrypts() && version.number != but && !self.holds(key, version)
        });
        for version in others.collect::<Vec<_>>() {
            if self.fetch(key, version).is_err() {
                break;
            }
        }
    }

    /// Gets a version's bytes, which were verified, from its provider or from those that sessions share,
    /// and keeps them.
    fn fetch(&mut self, key: &Key, version: &Version) -> Result<Rc<CachedKey<Opened>>, Error> {
        self.warn_if_restored();
        let fetched = fetch::fetch(&mut self.providers, key, version)?;
        if let Some((left, why)) = &fetched.past_time {
            self.warn_of_use_past_time(key, version, *left, why);
        }
        Ok(self.keep(key, version, fetched))
    }

    fn keep(&mut self, key: &Key, version: &Version, fetched: Fetched) -> Rc<CachedKey<Opened>> {
        let material = match key.is_database_key() {
            true => KeyMaterial::of_database_key(&fetched.key),
            false => KeyMaterial::of_column_key(&fetched.key),
        };
        // What was derived from the version's former bytes is not used with the new.
        self.derived.forget(key.name.id(), version.number);
        let locked = material.is_locked();
        let opened = Opened { material, check_value: version.check_value };
        let (name, number) = (key.name.clone(), version.number);
        let statement = Some(self.statement_id());
        let cached = self.cache.insert(name, number, opened, locked, statement, fetched.at);
        let half = settings::cache_ttl() / 2;
        self.plan_refresh(key, version, &cached, cached.fetched_at + half);
        cached
    }

    /// Once a session, before its first key: says so if the catalog may be older than the keys.
    fn warn_if_restored(&mut self) {
        if self.knows_if_restored || !session::is_client() {
            return;
        }
        self.knows_if_restored = true;
        match restored::why() {
            Ok(None) => (),
            Ok(Some(why)) => events::tell(&Event::CatalogRestored { why: &why }),
            Err(error) => pgrx::warning!("{}", error.message()),
        }
    }

    /// Has a version fetched again at a time when nobody waits for it.
    fn plan_refresh(
        &mut self,
        key: &Key,
        version: &Version,
        cached: &CachedKey<Opened>,
        due: Instant,
    ) {
        // Where sessions share keys, a background worker fetches them again.
        if !session::is_client() || shared::is_there() {
            return;
        }
        let failed = |error| Error::Provider {
            provider: version.provider.clone(),
            key: Some(key.name.clone()),
            error,
        };
        let Ok(configured) = self.providers.configured(&version.provider, failed) else { return };
        self.refresher.plan(Planned {
            due,
            until: cached.fetched_at + longest_use() + ASKED_FOR_LONGER,
            used: Arc::clone(&cached.is_used),
            provider: version.provider.clone(),
            configured,
            limits: settings::request_limits(),
            keyspace: version.keyspace,
            name: key.name.clone(),
            version: version.number,
            reference: version.reference.clone(),
            wrapped: version.wrapped.clone(),
            check_value: version.check_value,
            is_database_key: key.is_database_key(),
        });
    }

    /// Keeps what was fetched ahead of its expiry, if the cache still has the version.
    fn take_refreshed(&mut self, refreshed: Refreshed) {
        let Refreshed { planned, result, at } = refreshed;
        let is_kept = self.cache.entries().any(|entry| {
            entry.name == planned.name
                && entry.version == planned.version
                && entry.value.check_value == planned.check_value
        });
        if !is_kept {
            return;
        }
        let id = planned.name.id();
        let id = statistics::VersionId::new(id, planned.version, &planned.check_value);
        statistics::version_asked(id, result.as_ref().err().map(|error| error.kind));
        match result {
            Ok(material) => {
                self.providers.record_answer(&planned.provider);
                let locked = material.is_locked();
                let opened = Opened { material, check_value: planned.check_value };
                let (name, number) = (planned.name.clone(), planned.version);
                let cached = self.cache.insert(name, number, opened, locked, None, at);
                self.refresher.plan(Planned {
                    due: at + settings::cache_ttl() / 2,
                    until: at + longest_use() + ASKED_FOR_LONGER,
                    used: Arc::clone(&cached.is_used),
                    ..planned
                });
            }
            Err(error) => {
                // A refusal, which ends the use of the key at the end of its time.
                let (name, number) = (planned.name, planned.version);
                let key = name.clone();
                let error = Error::Provider { provider: planned.provider, key: Some(name), error };
                let error = &error.message();
                events::tell(&Event::NotFetchedAgain { key: &key, version: number, error });
            }
        }
    }

    fn holds(&self, key: &Key, version: &Version) -> bool {
        self.cache.entries().any(|entry| {
            entry.name == key.name
                && entry.version == version.number
                && entry.value.check_value == version.check_value
        })
    }

    fn statement_id(&self) -> StatementId {
        StatementId(self.statement.cast_unsigned())
    }
}

/// The cipher for values with this salt under a version that is here.
#[inline]
fn cipher<'a>(
    derived: &'a mut DerivedCiphers<Secret<ValueCipher>>,
    cached: &CachedKey<Opened>,
    salt: &[u8; envelope::SALT_LEN],
) -> &'a ValueCipher {
    let derive = || Ok::<_, Infallible>(derive(cached, salt));
    match derived.get_or_derive(cached.name.id(), cached.version, salt, derive) {
        Ok(cipher) => cipher,
        Err(never) => match never {},
    }
}

#[inline(never)]
fn derive(cached: &CachedKey<Opened>, salt: &[u8; envelope::SALT_LEN]) -> Secret<ValueCipher> {
    Secret::new(cached.value.material.values.derive(salt))
}

/// How long a key may be used while its provider is out of reach.
pub(crate) fn longest_use() -> Duration {
    settings::cache_ttl() + settings::cache_stale_grace()
}

/// The version of `key` with this number, if it may decrypt.
fn usable(key: &Key, number: KeyVersion) -> Result<&Version, Error> {
    use catalog::State;

    let Some(version) = key.version(number) else {
        return Err(Error::KeyVersionUnknown {
            key: key.name.to_string(),
            version: number.get().into(),
        });
    };
    let name = || key.name.clone();
    match version.state {
        State::Active | State::Deprecated => Ok(version),
        State::Pending => Err(Error::KeyVersionPending { key: name(), version: number }),
        State::Disabled => Err(Error::KeyVersionDisabled { key: name(), version: number }),
        State::Destroyed => Err(Error::KeyVersionDestroyed { key: name(), version: number }),
    }
}

/// Whether the provider returned the key that the version was made with.
///
/// # Errors
///
/// If not.
pub(crate) fn verify_check_value(
    key: &Key,
    version: &Version,
    data_key: &DataKey,
) -> Result<(), Error> {
    let is_right = version.check_value.matches(data_key, &version_id(key, version));
    events::check_value_seen(key, version, is_right);
    if is_right {
        return Ok(());
    }
    Err(Error::KeyCheckValueWrong {
        key: key.name.clone(),
        version: version.number,
        provider: version.provider.clone(),
    })
}
