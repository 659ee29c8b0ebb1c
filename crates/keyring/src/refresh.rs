//! Fetches keys again before their time to live is over, while the process does something else.
//!
//! A thread sleeps until half of a key's time to live is over and then asks the key's provider for it,
//! by a provider of its own. What came of it waits in memory for secrets until the process takes it. A key
//! that nobody used since it was fetched is left to expire: an idle session bothers no provider for
//! long.
//!
//! While the provider is out of reach the thread keeps asking, for as long as the key may be used. So
//! the process knows of the outage, and nobody in it has to wait to find out.
//!
//! The thread knows nothing of the process it is in, and runs with all signals blocked.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use envelope::{KeyName, KeyVersion};

use crate::call::{self, RequestLimits};
use crate::configured::Configured;
use crate::material::KeyMaterial;
use crate::provider::{Certificates, Provider, ProviderError, ProviderErrorKind};
use crate::version::{CheckValue, Keyspace, VersionId};

/// How long to wait until a provider that is out of reach is asked again: less than a breaker stays
/// open, so that it is this thread that finds out when the provider is back.
const WHILE_OUT_OF_REACH: Duration = Duration::from_secs(8);

/// A version that is to be fetched again.
#[derive(Clone)]
pub struct Planned {
    /// When.
    pub due: Instant,
    /// Until when to go on asking a provider that is out of reach.
    pub until: Instant,
    /// Whether somebody has used the key since it was fetched; if not, it isn't fetched.
    pub used: Arc<AtomicBool>,
    /// The provider's name.
    pub provider: String,
    /// Its settings.
    pub configured: Configured,
    /// Its time limits.
    pub limits: RequestLimits,
    /// The version.
    pub keyspace: Keyspace,
    /// Its key's name.
    pub name: KeyName,
    /// Its number.
    pub version: KeyVersion,
    /// Where it is, as the provider said.
    pub reference: String,
    /// The wrapped key of an envelope provider.
    pub wrapped: Option<Vec<u8>>,
    /// What tells whether it is the right one.
    pub check_value: CheckValue,
    /// Whether it is the database key, which has subkeys.
    pub is_database_key: bool,
}

impl Planned {
    fn id(&self) -> VersionId<'_> {
        VersionId { keyspace: self.keyspace, name: &self.name, version: self.version }
    }
}

/// What came of fetching a version again: the provider's answer, which may be a refusal.
pub struct Refreshed {
    /// The version.
    pub planned: Planned,
    /// What is made of its bytes, which are the right ones; or why there is nothing.
    pub result: Result<KeyMaterial, ProviderError>,
    /// When the provider answered.
    pub at: Instant,
}

/// How often a provider was out of reach since the last [`Refresher::take`].
#[derive(Clone, Debug)]
pub struct Outages {
    /// The provider's name.
    pub provider: String,
    /// How often.
    pub count: u32,
    /// The last time.
    pub at: Instant,
    /// What happened then.
    pub error: ProviderError,
}

/// Is told of each request: the provider's name, how long it took, the kind of its error, and the certificates
/// that the provider has used. Called in the thread.
pub type Observer = fn(&str, Duration, Option<ProviderErrorKind>, Certificates);

/// The thread, and what it shares with the process.
pub struct Refresher {
    shared: Arc<Shared>,
    is_started: bool,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    /// Whether something waits to be taken: so that looking costs no lock.
    has_results: AtomicBool,
    is_closed: AtomicBool,
    observer: Option<Observer>,
}

#[derive(Default)]
struct State {
    planned: BTreeMap<(KeyName, KeyVersion), Planned>,
    results: Vec<Refreshed>,
    outages: BTreeMap<String, Outages>,
}

impl Refresher {
    /// One without a thread, which starts with the first plan.
    #[must_use]
    pub fn new() -> Self {
        Self { shared: Arc::default(), is_started: false }
    }

    /// The same, which tells `observer` of each request.
    #[must_use]
    pub fn observed_by(observer: Observer) -> Self {
        let shared = Shared { observer: Some(observer), ..Shared::default() };
        Self { shared: Arc::new(shared), is_started: false }
    }

    /// Has a version fetched again when it is due, in place of an earlier plan for it. If there can be
    /// no thread, the version expires as if there were no refresher.
    pub fn plan(&mut self, planned: Planned) {
        self.shared.lock().planned.insert((planned.name.clone(), planned.version), planned);
        if !self.is_started {
            let shared = Arc::clone(&self.shared);
            self.is_started = call::start(move || shared.run()).is_ok();
        }
        self.shared.changed.notify_one();
    }

    /// What providers have answered since the last call, and which were out of reach.
    #[inline]
    pub fn take(&self) -> (Vec<Refreshed>, Vec<Outages>) {
        if !self.shared.has_results.load(Ordering::Acquire) {
            return (Vec::new(), Vec::new());
        }
        let mut state = self.shared.lock();
        self.shared.has_results.store(false, Ordering::Release);
        let outages = std::mem::take(&mut state.outages);
        (std::mem::take(&mut state.results), outages.into_values().collect())
    }
}

impl Default for Refresher {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Refresher {
    /// The thread ends by itself; a request under way is given up.
    fn drop(&mut self) {
        self.shared.is_closed.store(true, Ordering::Release);
        self.shared.lock().planned.clear();
        self.shared.changed.notify_one();
    }
}

impl Shared {
    /// Nothing panics with the lock held; if it did, what is in it would still be whole.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(self: Arc<Self>) {
        while let Some(due) = self.wait() {
            self.fetch(due);
            call::wipe_stack();
        }
    }

    /// Waits until versions are due, and takes them off the plan; `None` when the process wants no
    /// more.
    fn wait(&self) -> Option<Vec<Planned>> {
        let mut state = self.lock();
        loop {
            if self.is_closed.load(Ordering::Acquire) {
                return None;
            }
            let now = Instant::now();
            let due: Vec<_> = state
                .planned
                .extract_if(.., |_, planned| planned.due <= now)
                .map(|e| e.1)
                .collect();
            if !due.is_empty() {
                return Some(due);
            }
            let next = state.planned.values().map(|planned| planned.due).min();
            state = match next {
                Some(next) => {
                    let left = next.saturating_duration_since(now);
                    let waited = self.changed.wait_timeout(state, left);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
                None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }

    /// Fetches versions, those of one provider after each other by one login.
    fn fetch(self: &Arc<Self>, due: Vec<Planned>) {
        let mut providers: BTreeMap<String, (Configured, Box<dyn Provider>)> = BTreeMap::new();
        let mut out_of_reach: Vec<String> = Vec::new();
        for planned in due.into_iter().filter(|planned| planned.used.load(Ordering::Relaxed)) {
            if out_of_reach.contains(&planned.provider) {
                self.plan_again(planned);
                continue;
            }
            let made = match providers.remove(&planned.provider) {
                Some(made) if made.0 == planned.configured => Ok(made),
                _ => {
                    let provider = self.provider(&planned);
                    provider.map(|provider| (planned.configured.clone(), provider))
                }
            };
            let result = made.and_then(|(configured, mut provider)| {
                let started = Instant::now();
                let result = open(&mut *provider, &planned);
                if let Some(observer) = self.observer {
                    let error = result.as_ref().err().map(|error| error.kind);
                    let certificates = provider.certificates();
                    observer(&planned.provider, started.elapsed(), error, certificates);
                }
                providers.insert(planned.provider.clone(), (configured, provider));
                result
            });
            if self.is_closed.load(Ordering::Acquire) {
                return;
            }
            match result {
                Err(error) if error.kind.is_outage() => {
                    out_of_reach.push(planned.provider.clone());
                    self.report_outage(planned.provider.clone(), error);
                    self.plan_again(planned);
                }
                result => self.report(Refreshed { planned, result, at: Instant::now() }),
            }
        }
    }

    fn plan_again(&self, planned: Planned) {
        let due = Instant::now() + WHILE_OUT_OF_REACH;
        if due < planned.until {
            let id = (planned.name.clone(), planned.version);
            // What the process has planned meanwhile is newer.
            self.lock().planned.entry(id).or_insert(Planned { due, ..planned });
        }
    }

    fn report(&self, refreshed: Refreshed) {
        let mut state = self.lock();
        state.outages.remove(&refreshed.planned.provider);
        state.results.push(refreshed);
        self.has_results.store(true, Ordering::Release);
    }

    fn report_outage(&self, provider: String, error: ProviderError) {
        let mut state = self.lock();
        let count = state.outages.get(&provider).map_or(0, |outages| outages.count) + 1;
        let outages = Outages { provider: provider.clone(), count, at: Instant::now(), error };
        state.outages.insert(provider, outages);
        self.has_results.store(true, Ordering::Release);
    }

    fn provider(self: &Arc<Self>, planned: &Planned) -> Result<Box<dyn Provider>, ProviderError> {
        let shared = Arc::clone(self);
        let is_closed = move || shared.is_closed.load(Ordering::Acquire);
        planned.configured.provider(planned.limits, Box::new(is_closed))
    }
}

fn open(provider: &mut dyn Provider, planned: &Planned) -> Result<KeyMaterial, ProviderError> {
    let Planned { reference, wrapped, check_value, .. } = planned;
    let key = provider.open(&planned.id(), reference, wrapped.as_deref())?;
    if !check_value.matches(&key, &planned.id()) {
        return Err(ProviderError::new(
            ProviderErrorKind::AnswerInvalid,
            "the provider returned another key than the one the version was made with",
        ));
    }
    Ok(match planned.is_database_key {
        true => KeyMaterial::of_database_key(&key),
        false => KeyMaterial::of_column_key(&key),
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::thread;

    use envelope::DataKey;

    use super::*;
    use crate::configured::ProviderKind;
    use crate::file::{FileOptions, FileProvider};

    const KEYSPACE: Keyspace = Keyspace([7; 16]);

    struct Fixture {
        folder: tempfile::TempDir,
        name: KeyName,
        key: DataKey,
    }

    impl Fixture {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let name = KeyName::parse("k").unwrap();
            let options = FileOptions {
                path: folder.path().join("keyring").to_str().unwrap().to_owned(),
                may_create: "yes".to_owned(),
            };
            let mut provider =
                FileProvider::new(&options, RequestLimits::default(), Box::new(|| false)).unwrap();
            let id = VersionId { keyspace: KEYSPACE, name: &name, version: KeyVersion::FIRST };
            let key = provider.make(&id).unwrap().key;
            Self { folder, name, key }
        }

        fn planned(&self, due: Duration, used: bool) -> Planned {
            let path = self.folder.path().join("keyring").to_str().unwrap().to_owned();
            let id = VersionId { keyspace: KEYSPACE, name: &self.name, version: KeyVersion::FIRST };
            Planned {
                due: Instant::now() + due,
                until: Instant::now() + Duration::from_secs(3600),
                used: Arc::new(AtomicBool::new(used)),
                provider: "file".to_owned(),
                configured: Configured {
                    kind: ProviderKind::File,
                    settings: BTreeMap::from([("path".to_owned(), path)]),
                },
                limits: RequestLimits::default(),
                keyspace: KEYSPACE,
                name: self.name.clone(),
                version: KeyVersion::FIRST,
                reference: "k:1".to_owned(),
                wrapped: None,
                check_value: CheckValue::of(&self.key, &id),
                is_database_key: false,
            }
        }
    }

    fn results(refresher: &Refresher) -> Vec<Refreshed> {
        for _ in 0..200 {
            let (results, outages) = refresher.take();
            assert!(outages.is_empty());
            if !results.is_empty() {
                return results;
            }
            thread::sleep(Duration::from_millis(10));
        }
        Vec::new()
    }

    #[test]
    fn a_key_in_use_is_fetched_when_it_is_due() {
        let fixture = Fixture::new();
        let mut refresher = Refresher::new();
        let planned = fixture.planned(Duration::from_millis(100), true);
        let due = planned.due;
        refresher.plan(planned);
        assert!(refresher.take().0.is_empty());
        let results = results(&refresher);
        assert_eq!(results.len(), 1);
        assert!(results[0].result.is_ok() && results[0].at >= due);
        assert!(refresher.take().0.is_empty());
    }

    #[test]
    fn a_key_that_nobody_used_is_left_alone() {
        let fixture = Fixture::new();
        let mut refresher = Refresher::new();
        refresher.plan(fixture.planned(Duration::ZERO, false));
        thread::sleep(Duration::from_millis(200));
        assert!(refresher.take().0.is_empty());
        // The thread lives on for the next one.
        refresher.plan(fixture.planned(Duration::ZERO, true));
        assert_eq!(results(&refresher).len(), 1);
    }

    #[test]
    fn another_key_is_not_taken_for_the_right_one() {
        let fixture = Fixture::new();
        let mut refresher = Refresher::new();
        let mut planned = fixture.planned(Duration::ZERO, true);
        planned.check_value = CheckValue::from_bytes([0; 16]);
        refresher.plan(planned);
        let error = results(&refresher).remove(0).result.unwrap_err();
        assert_eq!(error.kind, ProviderErrorKind::AnswerInvalid);
        fs_remove(&fixture);
        refresher.plan(fixture.planned(Duration::ZERO, true));
        let error = results(&refresher).remove(0).result.unwrap_err();
        assert_eq!(error.kind, ProviderErrorKind::KeyringMissing);
    }

    #[test]
    fn a_provider_out_of_reach_is_told_and_asked_again() {
        let fixture = Fixture::new();
        let mut refresher = Refresher::new();
        let token_file = fixture.folder.path().join("token");
        std::fs::write(&token_file, "t").unwrap();
        let mut planned = fixture.planned(Duration::ZERO, true);
        planned.configured = Configured {
            kind: ProviderKind::Vault,
            settings: BTreeMap::from([
                // Nobody listens there: the port is for TCP multiplexers of former times.
                ("address".to_owned(), "http://127.0.0.1:1".to_owned()),
                ("token_file".to_owned(), token_file.to_str().unwrap().to_owned()),
            ]),
        };
        planned.reference = "k?version=1".to_owned();
        refresher.plan(planned);
        for _ in 0..500 {
            let (results, outages) = refresher.take();
            assert!(results.is_empty());
            if let [outage] = outages.as_slice() {
                assert_eq!((outage.provider.as_str(), outage.count), ("file", 1));
                assert_eq!(outage.error.kind, ProviderErrorKind::Unreachable);
                let state = refresher.shared.lock();
                let again = state.planned.values().next().unwrap().due;
                assert!(again > outage.at && again <= outage.at + Duration::from_secs(9));
                return;
            }
            thread::sleep(Duration::from_millis(10));
        }
        panic!("no outage was told");
    }

    #[test]
    fn an_observer_is_told_of_each_request() {
        static SEEN: Mutex<Vec<(String, Option<ProviderErrorKind>)>> = Mutex::new(Vec::new());

        fn observe(
            provider: &str,
            took: Duration,
            error: Option<ProviderErrorKind>,
            certificates: Certificates,
        ) {
            assert!(took < Duration::from_secs(60));
            assert_eq!(certificates, Certificates::default());
            SEEN.lock().unwrap().push((provider.to_owned(), error));
        }

        let fixture = Fixture::new();
        let mut refresher = Refresher::observed_by(observe);
        refresher.plan(fixture.planned(Duration::ZERO, true));
        assert!(results(&refresher).remove(0).result.is_ok());
        fs_remove(&fixture);
        refresher.plan(fixture.planned(Duration::ZERO, true));
        assert!(results(&refresher).remove(0).result.is_err());
        let provider = || "file".to_owned();
        let expected = [(provider(), None), (provider(), Some(ProviderErrorKind::KeyringMissing))];
        assert_eq!(*SEEN.lock().unwrap(), expected);
    }

    fn fs_remove(fixture: &Fixture) {
        std::fs::remove_file(fixture.folder.path().join("keyring")).unwrap();
    }

    #[test]
    fn a_refresher_that_is_dropped_ends_its_thread() {
        let fixture = Fixture::new();
        let mut refresher = Refresher::new();
        refresher.plan(fixture.planned(Duration::from_secs(3600), true));
        let shared = Arc::downgrade(&refresher.shared);
        drop(refresher);
        for _ in 0..200 {
            if shared.strong_count() == 0 {
                return;
            }
            thread::sleep(Duration::from_millis(10));
        }
        panic!("the thread still runs");
    }
}
