//! A circuit breaker: a provider that keeps failing is left alone for a while, so that not every
//! statement waits for its time-outs.
//!
//! After [`Breaker::FAILURES`] failures in a row it opens: for [`Breaker::OPEN`] nothing is asked, and
//! then one request is let through. If that fails, the breaker stays open for as long again.

use std::time::{Duration, Instant};

use crate::provider::{ProviderError, ProviderErrorKind};

/// The state of one provider.
#[derive(Clone, Debug, Default)]
pub struct Breaker {
    /// Failures since the last answer.
    failures: u32,
    last_failure: Option<(Instant, ProviderError)>,
}

impl Breaker {
    /// How many failures in a row open it.
    pub const FAILURES: u32 = 5;

    /// How long it stays open after the last failure.
    pub const OPEN: Duration = Duration::from_secs(10);

    /// One that was kept as its parts.
    #[must_use]
    pub fn from_parts(failures: u32, last_failure: Option<(Instant, ProviderError)>) -> Self {
        Self { failures, last_failure }
    }

    /// Its parts: the failures since the last answer, and the last of them.
    #[must_use]
    pub fn into_parts(self) -> (u32, Option<(Instant, ProviderError)>) {
        (self.failures, self.last_failure)
    }

    /// Whether it was open, and one request may now find out whether the provider is back.
    #[must_use]
    pub fn is_on_trial(&self, now: Instant) -> bool {
        self.failures >= Self::FAILURES && self.is_calm(now)
    }

    /// Whether the provider may be asked now.
    ///
    /// # Errors
    ///
    /// [`ProviderErrorKind::NotAsked`], with the last failure, while the breaker is open.
    pub fn admit(&self, now: Instant) -> Result<(), ProviderError> {
        let Some((at, error)) = self.last_failure.as_ref().filter(|_| self.is_open(now)) else {
            return Ok(());
        };
        let left = Self::OPEN.saturating_sub(now.saturating_duration_since(*at));
        let error = ProviderError::new(
            ProviderErrorKind::NotAsked,
            format!(
                "not asked again for {} s after {} failures in a row, the last of which was: {}",
                left.as_secs() + 1,
                self.failures,
                error.message
            ),
        );
        Err(error.with_hint(
            "The next statement after that time tries again. Repair what the last failure tells of; \
             enc_flush_cache() forgets the failures (where sessions share keys, a superuser's does).",
        ))
    }

    /// Whether the provider should be asked for what can wait: it didn't fail lately.
    #[must_use]
    pub fn is_calm(&self, now: Instant) -> bool {
        self.last_failure
            .as_ref()
            .is_none_or(|(at, _)| now.saturating_duration_since(*at) >= Self::OPEN)
    }

    /// Takes notice of failures that somebody else saw, the last of them `at` that time.
    pub fn record_outages(&mut self, count: u32, error: &ProviderError, at: Instant) {
        self.failures = self.failures.saturating_add(count);
        self.last_failure = Some((at, error.clone()));
    }

    /// Takes notice of how a request went. Only an outage is a failure; a refusal is an answer.
    pub fn record<T>(&mut self, result: &Result<T, ProviderError>, now: Instant) {
        match result {
            Err(error) if error.kind == ProviderErrorKind::Interrupted => {}
            Err(error) if error.kind.is_outage() => {
                self.record_outages(1, error, now);
            }
            Ok(_) | Err(_) => *self = Self::default(),
        }
    }

    /// Failures since the last answer.
    #[must_use]
    pub fn failures(&self) -> u32 {
        self.failures
    }

    /// The last failure since the last answer, and when it was.
    #[must_use]
    pub fn last_failure(&self) -> Option<&(Instant, ProviderError)> {
        self.last_failure.as_ref()
    }

    /// Whether nothing is asked now.
    #[must_use]
    pub fn is_open(&self, now: Instant) -> bool {
        self.failures >= Self::FAILURES && !self.is_calm(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed(kind: ProviderErrorKind) -> Result<(), ProviderError> {
        Err(ProviderError::new(kind, "the server is down"))
    }

    #[test]
    fn five_failures_in_a_row_open_it_for_ten_seconds() {
        let start = Instant::now();
        let mut breaker = Breaker::default();
        for _ in 0..4 {
            breaker.record(&failed(ProviderErrorKind::Unreachable), start);
            assert!(breaker.admit(start).is_ok());
        }
        assert!(!breaker.is_calm(start));
        breaker.record(&failed(ProviderErrorKind::TimedOut), start);
        let error = breaker.admit(start + Duration::from_secs(4)).unwrap_err();
        assert_eq!(error.kind, ProviderErrorKind::NotAsked);
        assert!(error.message.contains("for 7 s") && error.message.contains("the server is down"));
        assert!(error.kind.is_outage());

        // One trial, and open again for as long if it fails.
        let trial = start + Breaker::OPEN;
        assert!(breaker.admit(trial).is_ok());
        breaker.record(&failed(ProviderErrorKind::Sealed), trial);
        assert!(breaker.admit(trial + Duration::from_secs(9)).is_err());
        let trial = trial + Breaker::OPEN;
        breaker.record(&Ok(()), trial);
        assert!(breaker.admit(trial).is_ok() && breaker.is_calm(trial));
    }

    #[test]
    fn an_answer_that_is_no_closes_it_and_a_cancel_says_nothing() {
        let now = Instant::now();
        let mut breaker = Breaker::default();
        for _ in 0..4 {
            breaker.record(&failed(ProviderErrorKind::Unreachable), now);
        }
        breaker.record(&failed(ProviderErrorKind::Interrupted), now);
        assert!(!breaker.is_open(now));
        breaker.record(&failed(ProviderErrorKind::Denied), now);
        breaker.record(&failed(ProviderErrorKind::Unreachable), now);
        assert!(!breaker.is_open(now));
    }
}
