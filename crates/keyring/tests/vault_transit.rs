//! The provider `vault_transit`, against an OpenBao server.

#![expect(clippy::unwrap_used, reason = "a test fails by a panic")]

mod contract;

use std::fs;
use std::time::{Duration, Instant};

use contract::{Subject, id, keeps_the_contract, name};
use harness::openbao::OpenBao;
use keyring::call::RequestLimits;
use keyring::provider::{Interrupt, Provider, ProviderError, ProviderErrorKind};
use keyring::vault::VaultOptions;
use keyring::vault_transit::VaultTransitProvider;
use serde_json::{Value, json};
use tempfile::TempDir;

macro_rules! server {
    () => {
        match OpenBao::start() {
            Some(server) => server,
            None => {
                let test = std::thread::current();
                harness::skip(test.name().unwrap_or("vault_transit"), "there is no bao to run");
                return;
            }
        }
    };
}

/// A key encryption key, and the settings that lead to it.
struct Setup {
    server: OpenBao,
    folder: TempDir,
    options: VaultOptions,
}

impl Setup {
    fn new(server: OpenBao, key: Value) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let token_file = folder.path().join("token");
        fs::write(&token_file, server.root_token()).unwrap();
        let options = VaultOptions {
            address: server.address(),
            key: "kek".to_owned(),
            token_file: token_file.to_str().unwrap().to_owned(),
            ..VaultOptions::default()
        };
        let setup = Self { server, folder, options };
        setup.ask("POST", "sys/mounts/transit", json!({ "type": "transit" }));
        setup.ask("POST", "transit/keys/kek", key);
        setup
    }

    fn ask(&self, method: &str, path: &str, body: Value) {
        let (status, answer) = self.server.request(method, path, body);
        assert!(matches!(status, 200 | 204), "{method} {path}: {status} {answer}");
    }

    fn log_in_with(&self, policy: &str) {
        self.server.policy("transit", policy);
        let token = self.server.token(&["transit"], "1h");
        fs::write(self.folder.path().join("token"), token).unwrap();
    }

    fn provider(&self) -> VaultTransitProvider {
        let limits = RequestLimits::default();
        VaultTransitProvider::new(&self.options, limits, Box::new(|| false)).unwrap()
    }
}

#[track_caller]
fn fails<T>(result: Result<T, ProviderError>, kind: ProviderErrorKind) -> String {
    let error = result.err().expect("an error");
    assert_eq!(error.kind, kind, "{error:?}");
    format!("{error} / {}", error.hint.as_deref().unwrap_or_default())
}

/// A Transit key binds the version only if it is derived.
fn keeps_the_contract_with(key: Value, binds_version: bool) {
    let setup = Setup::new(server!(), key);
    let provider = |interrupt: Box<dyn Interrupt>| -> Box<dyn Provider> {
        let limits = RequestLimits::default();
        Box::new(VaultTransitProvider::new(&setup.options, limits, interrupt).unwrap())
    };
    keeps_the_contract(&Subject { provider: &provider, is_envelope: true, binds_version });
}

#[test]
fn it_keeps_the_contract() {
    keeps_the_contract_with(json!({ "type": "aes256-gcm96" }), false);
}

#[test]
fn it_keeps_the_contract_with_a_derived_key() {
    keeps_the_contract_with(json!({ "type": "aes256-gcm96", "derived": true }), true);
}

#[test]
fn what_was_wrapped_again_outlives_the_retirement_of_the_old_key() {
    let setup = Setup::new(server!(), json!({ "type": "aes256-gcm96" }));
    let mut provider = setup.provider();
    let key = name("user_pii");
    let made = provider.make(&id(&key, 1)).unwrap();
    setup.ask("POST", "transit/keys/kek/rotate", json!({}));
    let wrapped = made.wrapped.as_deref();
    let again = provider.rewrap(&id(&key, 1), &made.reference, wrapped).unwrap().unwrap();
    for (reference, wrapped) in
        [(&made.reference, wrapped), (&again.reference, Some(&*again.wrapped))]
    {
        let opened = provider.open(&id(&key, 1), reference, wrapped).unwrap();
        assert_eq!(opened.expose(), made.key.expose());
    }
    setup.ask("POST", "transit/keys/kek/config", json!({ "min_decryption_version": 2 }));
    let error = provider.open(&id(&key, 1), &made.reference, wrapped).unwrap_err();
    assert!(!error.kind.is_outage(), "{error:?}");
    println!("{error:?}");
    let opened = provider.open(&id(&key, 1), &again.reference, Some(&again.wrapped)).unwrap();
    assert_eq!(opened.expose(), made.key.expose());
}

#[test]
fn a_policy_that_lacks_something_is_told() {
    let setup = Setup::new(server!(), json!({ "type": "aes256-gcm96" }));
    let key = name("user_pii");
    let made = setup.provider().make(&id(&key, 1)).unwrap();
    let open = |provider: &mut VaultTransitProvider| {
        provider.open(&id(&key, 1), &made.reference, made.wrapped.as_deref())
    };
    // A standby only opens.
    setup.log_in_with(r#"path "transit/decrypt/kek" { capabilities = ["update"] }"#);
    assert_eq!(open(&mut setup.provider()).unwrap().expose(), made.key.expose());
    let error = setup.provider().make(&id(&key, 2)).unwrap_err();
    assert!(
        matches!(error.kind, ProviderErrorKind::Denied | ProviderErrorKind::WriteDenied),
        "{error:?}"
    );
    setup.log_in_with(r#"path "transit/decrypt/other" { capabilities = ["update"] }"#);
    let text = fails(open(&mut setup.provider()), ProviderErrorKind::Denied);
    assert!(text.contains("transit/decrypt/kek"), "{text}");
}

#[test]
fn a_key_encryption_key_that_is_missing_is_told() {
    let mut setup = Setup::new(server!(), json!({ "type": "aes256-gcm96" }));
    let key = name("user_pii");
    setup.options.key = "nonesuch".to_owned();
    let error = setup.provider().check(&id(&key, 1)).unwrap_err();
    assert_eq!(error.kind, ProviderErrorKind::KeyMissing, "{error:?}");
    setup.options.key = String::new();
    let limits = RequestLimits::default();
    let provider = VaultTransitProvider::new(&setup.options, limits, Box::new(|| false));
    fails(provider, ProviderErrorKind::Configuration);
}

#[test]
fn a_sealed_and_a_paused_server_are_outages() {
    let setup = Setup::new(server!(), json!({ "type": "aes256-gcm96" }));
    let key = name("user_pii");
    setup.server.seal();
    fails(setup.provider().make(&id(&key, 1)), ProviderErrorKind::Sealed);
    setup.server.unseal();
    setup.server.pause();
    let limits =
        RequestLimits { connect: Duration::from_millis(300), total: Duration::from_millis(500) };
    let mut provider =
        VaultTransitProvider::new(&setup.options, limits, Box::new(|| false)).unwrap();
    let start = Instant::now();
    fails(provider.make(&id(&key, 1)), ProviderErrorKind::TimedOut);
    assert!(start.elapsed() < Duration::from_millis(1500), "{:?}", start.elapsed());
    setup.server.resume();
    setup.provider().make(&id(&key, 1)).unwrap();
}
