//! What happens to keys and providers that an operator is told of: lines of the server log whose wording
//! stays, each with an SQLSTATE of its own, which `%e` in `log_line_prefix`, `csvlog` and `jsonlog` show.
//! `docs/operations/log-events.md` lists them, and a test compares the two.
//!
//! What may happen with every statement is said once a minute for each thing that it happens to, by each
//! session.

mod place;

use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

use envelope::{FormatError, KeyName, KeyVersion, Sealed};
use keyring::breaker::Breaker;
use keyring::provider::{ProviderError, ProviderErrorKind};
use pgrx::pg_sys;

use crate::catalog::{Key, Version};
use crate::errors::encode_sqlstate;
use crate::{fmgr, statistics};

/// What has happened.
pub(crate) enum Event<'a> {
    UsedPastTime {
        key: &'a KeyName,
        version: KeyVersion,
        provider: &'a str,
        left: Duration,
        why: &'a str,
    },
    ProviderLeftAlone {
        provider: &'a str,
        failures: u32,
        error: &'a str,
    },
    ProviderAnswers {
        provider: &'a str,
    },
    LoginFailed {
        provider: &'a str,
        error: &'a str,
    },
    LoginRenewed {
        provider: &'a str,
    },
    NotFetchedAhead {
        provider: &'a str,
        error: &'a str,
    },
    NotFetchedAgain {
        key: &'a KeyName,
        version: KeyVersion,
        error: &'a str,
    },
    KeyChanged {
        entry: &'a str,
    },
    Denied {
        denial: &'a str,
    },
    ValueDamaged {
        what: &'a str,
        place: &'a str,
    },
    KeyReplaced {
        key: &'a KeyName,
        version: KeyVersion,
        provider: &'a str,
    },
    CatalogRestored {
        why: &'a str,
    },
    EntryUnsealed {
        error: &'a str,
    },
}

/// Whom a line is for.
#[derive(Clone, Copy)]
enum Level {
    /// The server log alone.
    Log,
    /// The client, too.
    Warning,
}

impl Event<'_> {
    /// SQLSTATE, level and line.
    fn describe(&self) -> (&'static str, Level, String) {
        match self {
            Self::UsedPastTime { key, version, left, why, .. } => {
                let seconds = left.as_secs();
                let line = format!(
                    "using version {version} of key \"{key}\" past its time to live, for {seconds} s more at most: {why}"
                );
                ("KE300", Level::Warning, line)
            }
            Self::ProviderLeftAlone { provider, failures, error } => {
                let line = format!(
                    "provider \"{provider}\" is left alone after {failures} failures in a row, the last of which was: {error}"
                );
                ("KE301", Level::Log, line)
            }
            Self::ProviderAnswers { provider } => {
                ("KE302", Level::Log, format!("provider \"{provider}\" answers again"))
            }
            Self::LoginFailed { provider, error } => {
                ("KE303", Level::Log, format!("login at provider \"{provider}\" failed: {error}"))
            }
            Self::LoginRenewed { provider } => {
                ("KE304", Level::Log, format!("login at provider \"{provider}\" was renewed"))
            }
            Self::NotFetchedAhead { error, .. } => {
                let line = format!("could not fetch keys ahead of their expiry: {error}");
                ("KE305", Level::Log, line)
            }
            Self::NotFetchedAgain { version, error, .. } => {
                ("KE306", Level::Log, format!("could not fetch version {version} again: {error}"))
            }
            Self::KeyChanged { entry } => {
                ("KE307", Level::Log, format!("lifecycle log of keys: {entry}"))
            }
            Self::Denied { denial } => ("KE308", Level::Log, format!("denied: {denial}")),
            Self::ValueDamaged { what, place } => {
                ("KE309", Level::Log, format!("encrypted value cannot be opened: {what}{place}"))
            }
            Self::KeyReplaced { key, version, provider } => {
                let line = format!(
                    "provider \"{provider}\" has another key in place of version {version} of key \"{key}\""
                );
                ("KE310", Level::Log, line)
            }
            Self::CatalogRestored { why } => {
                let line = format!(
                    "the catalog of keys may be older than the keys: {why}; SELECT * FROM enc_reconcile() compares them"
                );
                ("KE311", Level::Warning, line)
            }
            Self::EntryUnsealed { error } => {
                let line = format!(
                    "entry of the lifecycle log has no digest until another is made: {error}"
                );
                ("KE312", Level::Warning, line)
            }
        }
    }

    /// What it happens to, if that may be often; one line a minute is written of it.
    fn subject(&self) -> Option<String> {
        match self {
            Self::UsedPastTime { provider, .. }
            | Self::ProviderLeftAlone { provider, .. }
            | Self::ProviderAnswers { provider }
            | Self::LoginFailed { provider, .. }
            | Self::LoginRenewed { provider }
            | Self::NotFetchedAhead { provider, .. } => Some((*provider).to_owned()),
            Self::NotFetchedAgain { key, .. } => Some(key.to_string()),
            Self::ValueDamaged { what, .. } => Some((*what).to_owned()),
            Self::KeyReplaced { key, version, .. } => Some(format!("{key}:{version}")),
            // Once a session, or limited by who tells of it, or each of them counts.
            Self::KeyChanged { .. }
            | Self::Denied { .. }
            | Self::CatalogRestored { .. }
            | Self::EntryUnsealed { .. } => None,
        }
    }
}

/// How long nothing more is said of the same.
const QUIET: Duration = Duration::from_secs(60);

/// Of how many things it is remembered when something was said.
const REMEMBERED: usize = 1000;

#[derive(Default)]
struct Told(HashMap<(&'static str, String), Instant>);

thread_local! {
    static TOLD: RefCell<Told> = RefCell::default();

    /// The versions in whose place a provider had another key when it was asked last.
    static WRONG: RefCell<BTreeSet<(KeyName, KeyVersion)>> = const { RefCell::new(BTreeSet::new()) };
}

impl Told {
    fn is_due(&mut self, sqlstate: &'static str, subject: String, now: Instant) -> bool {
        let is_over = |at: &Instant| now.saturating_duration_since(*at) >= QUIET;
        if self.0.len() >= REMEMBERED {
            self.0.retain(|_, at| !is_over(at));
        }
        let key = (sqlstate, subject);
        let is_due = self.0.get(&key).is_none_or(is_over) && self.0.len() < REMEMBERED;
        if is_due {
            self.0.insert(key, now);
        }
        is_due
    }
}

/// Has it written, unless the same was said lately.
pub(crate) fn tell(event: &Event<'_>) {
    let (sqlstate, level, line) = event.describe();
    if let Some(subject) = event.subject()
        && !TOLD.with_borrow_mut(|told| told.is_due(sqlstate, subject, Instant::now()))
    {
        return;
    }
    let level = match level {
        Level::Log => pg_sys::LOG_SERVER_ONLY,
        Level::Warning => pg_sys::WARNING,
    };
    fmgr::report(level, encode_sqlstate(sqlstate), &line);
}

/// Tells of what a request, or an answer that somebody else has had, has changed about a provider.
pub(crate) fn asked(provider: &str, before: &Breaker, after: &Breaker) {
    let was_left_alone = before.failures() >= Breaker::FAILURES;
    match after.last_failure() {
        None if was_left_alone => tell(&Event::ProviderAnswers { provider }),
        None => (),
        Some((_, error)) => {
            let ProviderError { kind, message, .. } = error;
            if *kind == ProviderErrorKind::LoginFailed && after.failures() > before.failures() {
                tell(&Event::LoginFailed { provider, error: message });
            }
            if !was_left_alone && after.failures() >= Breaker::FAILURES {
                let failures = after.failures();
                tell(&Event::ProviderLeftAlone { provider, failures, error: message });
            }
        }
    }
}

/// Takes notice of whether a provider had the right key for a version.
pub(crate) fn check_value_seen(key: &Key, version: &Version, is_right: bool) {
    let (name, number) = (&key.name, version.number);
    WRONG.with_borrow_mut(|wrong| {
        if !is_right {
            wrong.insert((name.clone(), number));
        } else if !wrong.is_empty() {
            wrong.remove(&(name.clone(), number));
        }
    });
    if !is_right {
        let provider = &version.provider;
        tell(&Event::KeyReplaced { key: name, version: number, provider });
    }
}

/// The versions in whose place a provider had another key when this process asked last.
pub(crate) fn wrong_check_values() -> Vec<(KeyName, KeyVersion)> {
    WRONG.with_borrow(|wrong| wrong.iter().cloned().collect())
}

/// Tells of a value that was altered since it was encrypted, and where it is, if that can be known.
pub(crate) fn value_not_authentic(key: &KeyName, value: &Sealed<'_>) {
    statistics::decrypt_failed();
    let what =
        format!("it fails authentication under version {} of key \"{key}\"", value.key_version());
    let is_it = |stored: &[u8]| Sealed::parse(stored).is_ok_and(|stored| stored == *value);
    tell(&Event::ValueDamaged { what: &what, place: &place::of(is_it) });
}

/// Tells of bytes in place of a value, and where they are, if that can be known.
pub(crate) fn not_a_value(bytes: &[u8], error: FormatError) {
    statistics::decrypt_failed();
    let place = place::of(|stored| stored == bytes);
    tell(&Event::ValueDamaged { what: &error.to_string(), place: &place });
}
