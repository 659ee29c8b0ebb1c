//! Why keys could not be fetched, as all processes see it.
//!
//! A few failures are kept so that those who waited for a fetch get what came of it, and so that a key
//! that a provider does not have is not asked for again and again. And the state of each provider's circuit
//! breaker, so that one process finds out about an outage for all.

use std::time::{Duration, Instant};

use keyring::breaker::Breaker;
use keyring::configured::Fingerprint;
use keyring::provider::{ProviderError, ProviderErrorKind};

use super::clock::Moment;
use super::entries::EntryId;
use super::memory::{self, Contents};

/// How many failures are kept: those of so many keys at once.
pub(super) const FAILURES: usize = 64;

/// How many providers' breakers are kept. Only a provider that fails has one.
pub(super) const BREAKERS: usize = 32;

/// How long it is remembered that a provider has no such key or version.
pub(crate) const MISSING: Duration = Duration::from_secs(3);

/// How long one request may find out whether a provider is back, before another one may.
const TRIAL: Duration = Duration::from_secs(5);

/// Why a fetch has no key to show.
#[derive(Clone, Debug)]
pub(crate) enum Why {
    /// The provider, or the way to it.
    Provider(ProviderError),
    /// The provider returned another key.
    CheckValueWrong,
}

impl Why {
    /// Whether a provider that could be asked has said that there is no such key for this server, rather than
    /// that something is set wrong.
    pub(super) fn is_refusal(&self) -> bool {
        use ProviderErrorKind as Kind;

        match self {
            Self::CheckValueWrong => true,
            Self::Provider(error) => matches!(
                error.kind,
                Kind::Denied
                    | Kind::KeyMissing
                    | Kind::VersionMissing
                    | Kind::KeyLengthWrong
                    | Kind::WrappedKeyInvalid
            ),
        }
    }
}

/// A failure that is kept.
#[derive(Default)]
pub(super) struct FailureSlot {
    /// The number of the fetch; 0 if there is none.
    flight: u64,
    id: EntryId,
    fingerprint: [u8; 32],
    at: Moment,
    error: Stored,
}

/// A breaker that is kept.
#[derive(Default)]
pub(super) struct BreakerSlot {
    fingerprint: [u8; 32],
    failures: u32,
    /// [`Moment::NEVER`] if there is nothing here.
    last_failure: Moment,
    /// When a request was let through to find out whether the provider is back.
    trial: Moment,
    error: Stored,
}

/// An error without memory of its own.
#[derive(Default)]
struct Stored {
    /// `None` is a wrong check value.
    kind: Option<ProviderErrorKind>,
    is_transient: bool,
    has_hint: bool,
    message: Text,
    hint: Text,
}

/// A text that is cut where it is too long.
struct Text {
    len: u16,
    bytes: [u8; Self::MAX],
}

impl Text {
    const MAX: usize = 510;

    fn set(&mut self, text: &str) {
        let len = text.floor_char_boundary(Self::MAX);
        self.bytes[..len].copy_from_slice(&text.as_bytes()[..len]);
        self.len = u16::try_from(len).unwrap_or(0);
    }

    fn get(&self) -> String {
        let text = self.bytes.get(..usize::from(self.len)).unwrap_or_default();
        String::from_utf8_lossy(text).into_owned()
    }
}

impl Default for Text {
    fn default() -> Self {
        Self { len: 0, bytes: [0; Self::MAX] }
    }
}

impl Stored {
    fn set(&mut self, why: &Why) {
        let (kind, error) = match why {
            Why::Provider(error) => (Some(error.kind), Some(error)),
            Why::CheckValueWrong => (None, None),
        };
        self.kind = kind;
        self.is_transient = error.is_some_and(|error| error.is_transient);
        self.message.set(error.map_or("", |error| &error.message));
        let hint = error.and_then(|error| error.hint.as_deref());
        self.has_hint = hint.is_some();
        self.hint.set(hint.unwrap_or_default());
    }

    fn get(&self) -> Why {
        let Some(kind) = self.kind else { return Why::CheckValueWrong };
        Why::Provider(ProviderError {
            kind,
            message: self.message.get(),
            hint: self.has_hint.then(|| self.hint.get()),
            is_transient: self.is_transient,
        })
    }
}

impl Contents<'_> {
    /// Keeps why a fetch failed, in place of what failed longest ago.
    pub(super) fn keep_failure(
        &mut self,
        flight: u64,
        id: EntryId,
        fingerprint: Fingerprint,
        why: &Why,
    ) {
        if let Some(slot) = self.failures.iter_mut().min_by_key(|slot| slot.at) {
            slot.flight = flight;
            slot.id = id;
            slot.fingerprint = fingerprint.0;
            slot.at = Moment::now();
            slot.error.set(why);
        }
    }

    /// Why the fetch with this number failed, if it did with the same settings, and it is still known.
    pub(super) fn failure_of(&self, flight: u64, fingerprint: Fingerprint) -> Option<Why> {
        let mut slots = self.failures.iter();
        let slot = slots.find(|s| s.flight == flight && s.fingerprint == fingerprint.0)?;
        Some(slot.error.get())
    }

    /// Why there is no such key at the provider, if it said so a moment ago.
    pub(super) fn missing(&self, id: &EntryId, fingerprint: Fingerprint) -> Option<Why> {
        let now = Moment::now();
        let mut slots = self.failures.iter();
        let slot = slots.find(|slot| {
            slot.flight != 0
                && slot.id == *id
                && slot.fingerprint == fingerprint.0
                && slot.at.age(now) < MISSING
                && matches!(
                    slot.error.kind,
                    Some(ProviderErrorKind::KeyMissing | ProviderErrorKind::VersionMissing)
                )
        })?;
        Some(slot.error.get())
    }

    /// When a provider had another key in place of a version last, as far as that is still known.
    pub(super) fn wrong_key_seen(&self, id: &EntryId) -> Option<Moment> {
        let of_it =
            |slot: &&FailureSlot| slot.flight != 0 && slot.id == *id && slot.error.kind.is_none();
        self.failures.iter().filter(of_it).map(|slot| slot.at).max()
    }

    /// Forgets all failures and breakers.
    pub(super) fn forget_failures(&mut self) {
        self.failures.fill_with(FailureSlot::default);
        self.breakers.fill_with(BreakerSlot::default);
    }
}

/// Whether the provider with these settings may be asked now, by its breaker. Of those that ask when it
/// was open long enough, one may.
///
/// # Errors
///
/// [`ProviderErrorKind::NotAsked`], with the last failure.
pub(crate) fn admit(fingerprint: Fingerprint) -> Result<(), ProviderError> {
    let admitted = memory::exclusive(|contents| {
        let Some(slot) = contents.breakers.iter_mut().find(|slot| slot.is(fingerprint)) else {
            return Ok(());
        };
        let (breaker, now) = (slot.breaker(), Moment::now());
        if breaker.is_on_trial(Instant::now()) {
            if slot.trial != Moment::NEVER && slot.trial.age(now) < TRIAL {
                let error = ProviderError::new(
                    ProviderErrorKind::NotAsked,
                    format!(
                        "another session is finding out whether it is back after {} failures in a row, \
                         the last of which was: {}",
                        slot.failures,
                        slot.error.message.get()
                    ),
                );
                return Err(error.with_hint(
                    "Try again in some seconds. Repair what the last failure tells of.",
                ));
            }
            slot.trial = now;
        }
        breaker.admit(Instant::now())
    });
    admitted.unwrap_or(Ok(()))
}

/// Takes notice of how a request went.
pub(crate) fn record<T>(fingerprint: Fingerprint, result: &Result<T, ProviderError>) {
    change(fingerprint, |breaker| breaker.record(result, Instant::now()));
}

/// Whether the provider should be asked for what can wait: it did not fail lately.
pub(crate) fn is_calm(fingerprint: Fingerprint) -> bool {
    let calm = memory::shared(|contents| {
        let slot = contents.breakers.iter().find(|slot| slot.is(fingerprint));
        slot.is_none_or(|slot| slot.breaker().is_calm(Instant::now()))
    });
    calm.unwrap_or(true)
}

/// What is known of the provider's failures.
pub(crate) fn breaker(fingerprint: Fingerprint) -> Breaker {
    let known = memory::shared(|contents| {
        let slot = contents.breakers.iter().find(|slot| slot.is(fingerprint));
        slot.map_or_else(Breaker::default, BreakerSlot::breaker)
    });
    known.unwrap_or_default()
}

fn change(fingerprint: Fingerprint, change: impl FnOnce(&mut Breaker)) {
    memory::exclusive(|contents| {
        let found = contents.breakers.iter().position(|slot| slot.is(fingerprint));
        let mut breaker =
            found.map_or_else(Breaker::default, |found| contents.breakers[found].breaker());
        change(&mut breaker);
        let (failures, last_failure) = breaker.into_parts();
        // A provider that hasn't failed needs no place.
        let slot = match (found, &last_failure) {
            (None, None) => return,
            (Some(found), _) => contents.breakers.get_mut(found),
            (None, Some(_)) => contents.breakers.iter_mut().min_by_key(|slot| slot.last_failure),
        };
        let Some(slot) = slot else { return };
        *slot = BreakerSlot::default();
        if let Some((at, error)) = last_failure {
            slot.fingerprint = fingerprint.0;
            slot.failures = failures;
            slot.last_failure = Moment::of(at);
            slot.error.set(&Why::Provider(error));
        }
    });
}

impl BreakerSlot {
    fn is(&self, fingerprint: Fingerprint) -> bool {
        self.last_failure != Moment::NEVER && self.fingerprint == fingerprint.0
    }

    fn breaker(&self) -> Breaker {
        let Why::Provider(error) = self.error.get() else { return Breaker::default() };
        let last_failure = self.last_failure.instant().map(|at| (at, error));
        Breaker::from_parts(self.failures, last_failure)
    }
}
