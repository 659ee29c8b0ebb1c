//! The contract that every provider keeps, as `keyring::provider::Provider` states it.

#![allow(dead_code, reason = "each provider's tests use what they need")]
#![allow(clippy::panic, clippy::unwrap_used, reason = "a test fails by a panic")]

use std::time::{Duration, UNIX_EPOCH};

use envelope::{DataKey, KeyName, KeyVersion};
use keyring::provider::{
    Certificates, Interrupt, MadeVersion, Provider, ProviderError, ProviderErrorKind,
};
use keyring::version::{Keyspace, VersionId};

/// What is tested: a provider by settings that work, on a server that runs.
pub struct Subject<'a> {
    /// Another instance of the provider, with nothing kept from the others.
    pub provider: &'a dyn Fn(Box<dyn Interrupt>) -> Box<dyn Provider>,
    /// Whether it wraps keys; else it keeps them.
    pub is_envelope: bool,
    /// Whether what it wrapped for one version can't be opened as another.
    pub binds_version: bool,
}

pub const KEYSPACE: Keyspace = Keyspace([7; 16]);

/// Runs all of it. The key names `contract`, `contract_other` and `contract_probe` must be free.
///
/// # Panics
///
/// If the provider breaks the contract.
pub fn keeps_the_contract(subject: &Subject<'_>) {
    makes_and_opens(subject);
    if subject.is_envelope {
        refuses_what_it_did_not_wrap(subject);
        rewraps(subject);
    } else {
        discovers(subject);
    }
    refuses_unusable_references(subject);
    checks_itself(subject);
    ends_when_it_is_told_to(subject);
}

impl Subject<'_> {
    pub fn new_provider(&self) -> Box<dyn Provider> {
        (self.provider)(Box::new(|| false))
    }
}

pub fn name(name: &str) -> KeyName {
    KeyName::parse(name).unwrap()
}

pub fn id(name: &KeyName, version: u32) -> VersionId<'_> {
    VersionId { keyspace: KEYSPACE, name, version: KeyVersion::new(version).unwrap() }
}

fn open(
    provider: &mut dyn Provider,
    id: &VersionId<'_>,
    made: &MadeVersion,
) -> Result<DataKey, ProviderError> {
    provider.open(id, &made.reference, made.wrapped.as_deref())
}

fn makes_and_opens(subject: &Subject<'_>) {
    let mut provider = subject.new_provider();
    // Nothing was sent yet.
    assert_eq!(provider.certificates(), Certificates::default());
    let name = name("contract");
    assert!(provider.discover(&name, &[]).unwrap().is_empty());

    let first = provider.make(&id(&name, 1)).unwrap();
    let second = provider.make(&id(&name, 2)).unwrap();
    assert_ne!(first.key.expose(), second.key.expose());
    for (made, number) in [(&first, 1), (&second, 2)] {
        assert_ne!(made.key.expose(), &[0; 32]);
        assert_eq!(made.wrapped.is_some(), subject.is_envelope);
        assert_eq!(made.number.map(KeyVersion::get), (!subject.is_envelope).then_some(number));
        shows_no_key(&made.reference, &made.key);
        if let Some(wrapped) = &made.wrapped {
            assert!(!wrapped.windows(8).any(|bytes| bytes == &made.key.expose()[..8]));
        }
        // By this instance, after its connections were closed, and by one that knows nothing.
        provider.close_connections();
        for provider in [&mut provider, &mut subject.new_provider()] {
            for _ in 0..2 {
                let opened = open(&mut **provider, &id(&name, number), made).unwrap();
                assert_eq!(opened.expose(), made.key.expose());
            }
        }
    }
}

fn discovers(subject: &Subject<'_>) {
    let mut provider = subject.new_provider();
    let key = name("contract");
    let all = provider.discover(&key, &[]).unwrap();
    assert_eq!(all.iter().map(|found| found.number.get()).collect::<Vec<_>>(), [1, 2]);
    for found in &all {
        let opened = provider.open(&id(&key, found.number.get()), &found.reference, None).unwrap();
        assert_eq!(opened.expose(), found.key.expose());
    }
    let newer = provider.discover(&key, &[&all[0].reference]).unwrap();
    assert_eq!(newer.iter().map(|found| found.number.get()).collect::<Vec<_>>(), [2]);
    assert!(provider.discover(&key, &[&all[0].reference, &all[1].reference]).unwrap().is_empty());
    assert!(provider.discover(&name("contract_other"), &[]).unwrap().is_empty());
    assert_eq!(provider.rewrap(&id(&key, 1), &all[0].reference, None).unwrap(), None);
}

fn refuses_what_it_did_not_wrap(subject: &Subject<'_>) {
    let mut provider = subject.new_provider();
    let (key, other) = (name("contract"), name("contract_other"));
    let right = id(&key, 1);
    let made = provider.make(&right).unwrap();
    assert!(provider.discover(&key, &[]).unwrap().is_empty());

    for wrong in [id(&key, 2), id(&other, 1), VersionId { keyspace: Keyspace([8; 16]), ..right }] {
        match open(&mut *provider, &wrong, &made) {
            Err(error) if subject.binds_version => {
                assert_eq!(error.kind, ProviderErrorKind::WrappedKeyInvalid, "{error}");
                shows_no_key(&format!("{error:?}"), &made.key);
            }
            Ok(opened) if !subject.binds_version => {
                assert_eq!(opened.expose(), made.key.expose());
            }
            Err(error) => panic!("{error:?}"),
            Ok(_) => panic!("opened as {wrong:?}"),
        }
    }

    let wrapped = made.wrapped.as_deref().unwrap();
    let mut damaged =
        vec![Vec::new(), wrapped[..wrapped.len() - 1].to_vec(), vec![0; wrapped.len()]];
    for at in [wrapped.len() / 2, wrapped.len() * 3 / 4, wrapped.len() - 1] {
        let mut flipped = wrapped.to_vec();
        // Stays a character where the wrapped key is text.
        flipped[at] = if flipped[at] == b'A' { b'B' } else { b'A' };
        damaged.push(flipped);
    }
    for wrapped in &damaged {
        let error = provider.open(&right, &made.reference, Some(wrapped)).unwrap_err();
        assert!(!error.kind.is_outage(), "{error:?}");
        shows_no_key(&format!("{error:?}"), &made.key);
    }
    provider.open(&right, &made.reference, None).unwrap_err();
    // It is not put off by any of it.
    assert_eq!(open(&mut *provider, &right, &made).unwrap().expose(), made.key.expose());
}

fn rewraps(subject: &Subject<'_>) {
    let mut provider = subject.new_provider();
    let key = name("contract");
    let made = provider.make(&id(&key, 1)).unwrap();
    let again = provider
        .rewrap(&id(&key, 1), &made.reference, made.wrapped.as_deref())
        .unwrap()
        .expect("an envelope provider wraps again");
    let opened =
        subject.new_provider().open(&id(&key, 1), &again.reference, Some(&again.wrapped)).unwrap();
    assert_eq!(opened.expose(), made.key.expose());
    provider.rewrap(&id(&key, 1), &made.reference, Some(b"damaged")).unwrap_err();
    // The old wrapping stays good: the catalog may not have let go of it yet.
    assert_eq!(open(&mut *provider, &id(&key, 1), &made).unwrap().expose(), made.key.expose());
}

fn refuses_unusable_references(subject: &Subject<'_>) {
    let mut provider = subject.new_provider();
    let key = name("contract");
    let made = provider.make(&id(&key, 3)).unwrap();
    for reference in ["", "../x", "\u{0}", "contract?version=99&x=1", "nonsense nonsense"] {
        let error = provider.open(&id(&key, 3), reference, made.wrapped.as_deref()).unwrap_err();
        assert!(!error.kind.is_outage(), "{reference:?}: {error:?}");
    }
}

fn checks_itself(subject: &Subject<'_>) {
    let mut provider = subject.new_provider();
    let probe = name("contract_probe");
    let findings = provider.check(&id(&probe, 1)).unwrap();
    assert!(!findings.is_empty());
    for finding in &findings {
        assert!(!finding.what.is_empty() && !finding.detail.is_empty());
    }
    assert!(provider.discover(&probe, &[]).unwrap().is_empty(), "the check left something");
}

fn ends_when_it_is_told_to(subject: &Subject<'_>) {
    let key = name("contract");
    let made = subject.new_provider().make(&id(&key, 4)).unwrap();
    let mut provider = (subject.provider)(Box::new(|| true));
    let kind = |result: Result<(), ProviderError>| result.map_err(|error| error.kind);
    let interrupted = Err(ProviderErrorKind::Interrupted);
    assert_eq!(kind(open(&mut *provider, &id(&key, 4), &made).map(drop)), interrupted);
    assert_eq!(kind(provider.make(&id(&key, 5)).map(drop)), interrupted);
    if !subject.is_envelope {
        assert_eq!(kind(provider.discover(&key, &[]).map(drop)), interrupted);
    }
}

/// The provider tells when the certificates end that the harness has made, the client's too if it shows one.
#[track_caller]
pub fn tells_when_certificates_end(provider: &dyn Provider, shows_one: bool) {
    // 4096-01-01 00:00 UTC, the end that rcgen sets.
    let end = UNIX_EPOCH + Duration::from_secs(67_090_118_400);
    let client_expires = shows_one.then_some(end);
    let expected = Certificates { server_expires: Some(end), client_expires };
    assert_eq!(provider.certificates(), expected);
}

/// A text has none of the key's bytes, in base16 or base64.
fn shows_no_key(text: &str, key: &DataKey) {
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;

    let base16: String = key.expose().iter().map(|byte| format!("{byte:02x}")).collect();
    let base64 = STANDARD.encode(key.expose());
    assert!(!text.to_lowercase().contains(&base16[..8]), "{text}");
    assert!(!text.contains(&base64[..6]), "{text}");
}
