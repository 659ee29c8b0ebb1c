//! The provider `vault`, against an OpenBao server.

#![expect(clippy::unwrap_used, reason = "a test fails by a panic")]

mod contract;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use envelope::{DataKey, KeyName, KeyVersion};
use harness::kubernetes::TokenReviewer;
use harness::openbao::{self, ClientAuthority, JwtIssuer, OpenBao};
use keyring::call::RequestLimits;
use keyring::provider::{Certificates, MadeVersion, Provider, ProviderError, ProviderErrorKind};
use keyring::vault::{VaultOptions, VaultProvider};
use keyring::version::{Keyspace, VersionId};
use serde_json::{Value, json};
use tempfile::TempDir;

/// 32 times 1, and 32 times 2.
const ONE: &str = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=";
const TWO: &str = "AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI=";

const READ_ONLY: &str = r#"path "secret/data/keys/*" { capabilities = ["read"] }"#;

macro_rules! server {
    ($start:ident) => {
        match OpenBao::$start() {
            Some(server) => server,
            None => {
                let test = std::thread::current();
                harness::skip(test.name().unwrap_or("vault"), "there is no bao to run");
                return;
            }
        }
    };
}

/// A provider's settings, and the folder with the files that they name.
struct Setup {
    folder: TempDir,
    options: VaultOptions,
    limits: RequestLimits,
}

impl Setup {
    fn with_token(server: &OpenBao, token: &str) -> Self {
        let mut setup = Self::new(server);
        setup.options.token_file = setup.write("token", &format!("{token}\n"));
        setup
    }

    fn with_approle(server: &OpenBao, (role_id, secret_id): &(String, String)) -> Self {
        let mut setup = Self::new(server);
        setup.options.auth = "approle".to_owned();
        setup.options.role_id_file = setup.write("role_id", role_id);
        setup.options.secret_id_file = setup.write("secret_id", secret_id);
        setup
    }

    fn new(server: &OpenBao) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let address = server.address();
        let ca_file = match address.starts_with("https") {
            true => path_text(&server.ca_file()),
            false => String::new(),
        };
        let options = VaultOptions { address, ca_file, ..VaultOptions::default() };
        Self { folder, options, limits: RequestLimits::default() }
    }

    fn provider(&self) -> VaultProvider {
        self.interruptible_provider(|| false)
    }

    fn interruptible_provider(
        &self,
        interrupt: impl Fn() -> bool + Send + 'static,
    ) -> VaultProvider {
        VaultProvider::new(&self.options, self.limits, Box::new(interrupt)).unwrap()
    }

    /// Writes a file as Vault Agent does it, which replaces it as a whole, and tells its path.
    fn write(&self, name: &str, contents: &str) -> String {
        fs::write(self.file("new"), contents).unwrap();
        fs::rename(self.file("new"), self.file(name)).unwrap();
        path_text(&self.file(name))
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

fn path_text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

fn name(name: &str) -> KeyName {
    KeyName::parse(name).unwrap()
}

fn discover(
    provider: &mut VaultProvider,
    key: &str,
    known: &[&str],
) -> Result<Vec<(u32, String, u8)>, ProviderError> {
    let found = provider.discover(&name(key), known)?;
    Ok(found.into_iter().map(|v| (v.number.get(), v.reference, v.key.expose()[0])).collect())
}

fn open(provider: &mut VaultProvider, reference: &str) -> Result<DataKey, ProviderError> {
    let name = name("database");
    let version = KeyVersion::new(99).unwrap();
    // What the database calls it does not matter: the reference decides.
    provider.open(&VersionId { keyspace: Keyspace([7; 16]), name: &name, version }, reference, None)
}

fn make(provider: &mut VaultProvider, key: &str) -> Result<MadeVersion, ProviderError> {
    let (name, version) = (name(key), KeyVersion::FIRST);
    provider.make(&VersionId { keyspace: Keyspace([7; 16]), name: &name, version })
}

#[track_caller]
fn fails<T>(result: Result<T, ProviderError>, kind: ProviderErrorKind) -> String {
    let error = result.err().expect("an error");
    let text = format!("{error} / {}", error.hint.as_deref().unwrap_or_default());
    assert_eq!(error.kind, kind, "{text}");
    for secret in [ONE, TWO, "AQEB", "AgIC"] {
        assert!(!text.contains(secret), "{text}");
    }
    // OpenBao's tokens.
    assert!(!text.split([' ', '"']).any(|word| word.starts_with("s.")), "{text}");
    text
}

fn found(versions: &[(u32, u8)]) -> Vec<(u32, String, u8)> {
    versions.iter().map(|(n, byte)| (*n, format!("user_pii?version={n}"), *byte)).collect()
}

/// The time that is left to a token, and that it was given, as it was looked up: in seconds, six of which may
/// have passed.
fn token_end(vault: &VaultProvider) -> Option<(Option<u64>, Option<u64>)> {
    let login = vault.login()?;
    let seconds = |time: Option<Duration>| time.map(|time| time.as_secs().next_multiple_of(6));
    Some((seconds(login.length), seconds(login.whole)))
}

#[test]
fn the_end_of_a_token_in_a_file_is_looked_up() {
    let server = server!(start_with_tls);
    server.policy("read-keys", READ_ONLY);
    server.kv_put("keys/user_pii", ONE);
    let setup = Setup::with_token(&server, &server.token(&["read-keys"], "1h"));
    let open_once = |vault: &mut VaultProvider| {
        assert!(open(vault, "user_pii?version=1").is_ok());
    };
    let look_up = |token: &str, waits: bool| {
        setup.write("token", token);
        let mut vault = setup.provider();
        assert_eq!(token_end(&vault), None);
        // Before a request there is no token that could be looked up.
        vault.look_up_login(true);
        assert_eq!(token_end(&vault), None);
        open_once(&mut vault);
        assert_eq!(token_end(&vault), None);
        vault.look_up_login(waits);
        vault.close_connections();
        let started = Instant::now();
        while token_end(&vault).is_none() {
            assert!(!waits && started.elapsed() < Duration::from_secs(10));
            std::thread::sleep(Duration::from_millis(10));
        }
        open_once(&mut vault);
        token_end(&vault).unwrap()
    };
    let hour = (Some(3600), Some(3600));
    let minute = (Some(60), Some(60));
    assert_eq!(look_up(&server.token(&["read-keys"], "1h"), true), hour);
    assert_eq!(look_up(&server.token(&["read-keys"], "1h"), false), hour);
    assert_eq!(look_up(server.root_token(), true), (None, None));
    let batch = json!({ "policies": ["read-keys"], "ttl": "60s", "type": "batch" });
    assert_eq!(look_up(&server.token_with(None, batch), true), minute);
    // One that may not look at itself.
    let blind = json!({ "policies": ["read-keys"], "ttl": "60s", "no_default_policy": true });
    assert_eq!(look_up(&server.token_with(None, blind), true), (None, None));

    // Once for each token: this one serves for three requests for a key, and one look-up.
    let few = json!({ "policies": ["read-keys"], "ttl": "1h", "num_uses": 4 });
    setup.write("token", &server.token_with(None, few));
    let mut vault = setup.provider();
    for _ in 0..3 {
        open_once(&mut vault);
        vault.look_up_login(true);
    }
    assert_eq!(token_end(&vault), Some(hour));
    fails(open(&mut vault, "user_pii?version=1"), ProviderErrorKind::LoginFailed);
    // What is refused is not known any more.
    assert_eq!(token_end(&vault), None);

    // Another one, in the same file.
    setup.write("token", &server.token(&["read-keys"], "60s"));
    open_once(&mut vault);
    vault.look_up_login(true);
    assert_eq!(token_end(&vault), Some(minute));

    // Renewed by somebody else, which is seen when a third of its time would be left.
    let token = json!({ "policies": ["read-keys"], "ttl": "12s" });
    let token = server.token_with(None, token);
    setup.write("token", &token);
    open_once(&mut vault);
    vault.look_up_login(true);
    assert_eq!(token_end(&vault), Some((Some(12), Some(12))));
    let renewal = json!({ "token": token, "increment": "1h" });
    assert_eq!(server.request("POST", "auth/token/renew", renewal).0, 200);
    vault.look_up_login(true);
    assert_eq!(token_end(&vault), Some((Some(12), Some(12))));
    std::thread::sleep(Duration::from_millis(8500));
    open_once(&mut vault);
    vault.look_up_login(true);
    assert!(token_end(&vault).is_some_and(|(left, whole)| left > Some(3500) && left == whole));

    // A server that is gone in between costs no more than a moment, and no failure.
    setup.write("token", &server.token(&["read-keys"], "60s"));
    open_once(&mut vault);
    server.pause();
    let started = Instant::now();
    vault.look_up_login(true);
    assert!(started.elapsed() < Duration::from_millis(1500), "{:?}", started.elapsed());
    server.resume();
    assert_eq!(token_end(&vault), None);
    open_once(&mut vault);
}

#[test]
fn what_an_administrator_wrote_is_found_and_opened() {
    let server = server!(start_with_tls);
    server.policy("read-keys", READ_ONLY);
    let setup = Setup::with_token(&server, &server.token(&["read-keys"], "1h"));
    let mut vault = setup.provider();

    // Not there yet, and this policy cannot make it: the error says what to write.
    assert_eq!(discover(&mut vault, "user_pii", &[]).unwrap(), []);
    let text = fails(make(&mut vault, "user_pii"), ProviderErrorKind::WriteDenied);
    let command = "vault kv put secret/keys/user_pii key=$(openssl rand -base64 32)";
    assert!(text.contains(command), "{text}");
    let missing = fails(open(&mut vault, "user_pii?version=1"), ProviderErrorKind::KeyMissing);
    assert!(missing.contains("secret/keys/user_pii"), "{missing}");

    assert_eq!(server.kv_put("keys/user_pii", ONE), 1);
    // Without padding, and with the line end that a file leaves.
    assert_eq!(server.kv_put("keys/user_pii", &format!("{}\n", TWO.trim_end_matches('='))), 2);
    assert_eq!(discover(&mut vault, "user_pii", &[]).unwrap(), found(&[(1, 1), (2, 2)]));
    let known = ["user_pii?version=1"];
    assert_eq!(discover(&mut vault, "user_pii", &known).unwrap(), found(&[(2, 2)]));
    let known = ["user_pii?version=2"];
    assert_eq!(discover(&mut vault, "user_pii", &known).unwrap(), found(&[(1, 1)]));
    let known = ["user_pii?version=2", "user_pii?version=1"];
    assert_eq!(discover(&mut vault, "user_pii", &known).unwrap(), []);
    assert_eq!(open(&mut vault, "user_pii?version=1").unwrap().expose(), &[1; 32]);
    assert_eq!(open(&mut vault, "user_pii?version=2").unwrap().expose(), &[2; 32]);
    fails(open(&mut vault, "user_pii?version=3"), ProviderErrorKind::VersionMissing);
    fails(open(&mut vault, "user_pii?version=3&x"), ProviderErrorKind::Configuration);

    // Another folder is not within the policy.
    let mut setup = setup;
    setup.options.path_prefix = Some("others".to_owned());
    let mut other = setup.provider();
    let text = fails(discover(&mut other, "user_pii", &[]), ProviderErrorKind::Denied);
    assert!(text.contains(r#"path "secret/data/others/*" { capabilities = ["read"] }"#), "{text}");
}

#[test]
fn a_policy_that_can_write_makes_versions() {
    let server = server!(start);
    let setup = Setup::with_token(&server, server.root_token());
    let mut vault = setup.provider();
    let first = make(&mut vault, "user_pii").unwrap();
    assert_eq!(first.reference, "user_pii?version=1");
    assert_eq!(first.number, Some(KeyVersion::FIRST));
    let retention = |vault: &mut VaultProvider| {
        vault.retention(&name("user_pii")).unwrap().expect("Vault drops versions")
    };
    let seen = retention(&mut vault);
    assert_eq!((seen.oldest, seen.newest, seen.versions, seen.max_versions), (1, 1, 1, 10));
    let warning = seen.warning.unwrap();
    assert!(warning.contains("10 versions") && !seen.is_assumed, "{warning}");
    let opened = open(&mut setup.provider(), &first.reference).unwrap();
    assert_eq!(opened.expose(), first.key.expose());

    // With the limit raised there is nothing to warn of.
    let raised = json!({ "max_versions": 1000 });
    assert_eq!(server.request("POST", "secret/metadata/keys/user_pii", raised).0, 204);
    let second = make(&mut vault, "user_pii").unwrap();
    assert_eq!(second.reference, "user_pii?version=2");
    let seen = retention(&mut vault);
    assert_eq!((seen.versions, seen.max_versions, seen.warning), (2, 1000, None));
    assert_ne!(second.key.expose(), first.key.expose());
    let expiring = json!({ "delete_version_after": "720h" });
    assert_eq!(server.request("POST", "secret/config", expiring).0, 204);
    make(&mut vault, "user_pii").unwrap();
    let warning = retention(&mut vault).warning.unwrap();
    assert!(warning.contains("delete_version_after"), "{warning}");

    // The least that making needs, without a look at the metadata.
    server.policy(
        "make-keys",
        r#"path "secret/data/keys/*" { capabilities = ["read", "create", "update"] }"#,
    );
    let setup = Setup::with_token(&server, &server.token(&["make-keys"], "1h"));
    let mut vault = setup.provider();
    assert_eq!(make(&mut vault, "user_pii").unwrap().reference, "user_pii?version=4");
    let assumed = retention(&mut vault);
    assert_eq!((assumed.newest, assumed.max_versions, &assumed.warning), (4, 10, &None));
    assert!(
        assumed.is_assumed && assumed.hint.contains("\"secret/metadata/keys/*\""),
        "{assumed:?}"
    );
}

#[test]
fn versions_are_dropped_as_it_tells() {
    let server = server!(start);
    let setup = Setup::with_token(&server, server.root_token());
    let mut vault = setup.provider();
    let set = |path: &str, max_versions: u32| {
        let body = json!({ "max_versions": max_versions });
        assert_eq!(server.request("POST", path, body).0, 204);
    };
    let key = name("user_pii");
    // The larger of the secret's limit and the mount's counts.
    for (of_secret, of_mount, expected) in [(0, 0, 10), (3, 0, 3), (0, 4, 4), (3, 4, 4), (5, 4, 5)]
    {
        set("secret/metadata/keys/user_pii", of_secret);
        set("secret/config", of_mount);
        assert_eq!(vault.retention(&key).unwrap().unwrap().max_versions, expected);
    }
    set("secret/metadata/keys/user_pii", 3);
    for of_mount in [0, 4] {
        set("secret/config", of_mount);
        for _ in 0..7 {
            // Of each version that is there, what happens to it with the next one.
            let before = vault.retention(&key).unwrap().unwrap();
            let made = make(&mut vault, "user_pii").unwrap().number.unwrap().get();
            for number in before.oldest.max(1)..made {
                let is_gone = open(&mut vault, &format!("user_pii?version={number}")).is_err();
                assert_eq!(is_gone, before.would_drop(number), "{before:?}, {number}");
            }
            let after = vault.retention(&key).unwrap().unwrap();
            assert_eq!(before.after(made), after);
        }
    }
}

#[test]
fn a_version_that_somebody_else_made_is_not_replaced() {
    let server = server!(start);
    let setup = Setup::with_token(&server, server.root_token());
    let (mut one, mut other) = (setup.provider(), setup.provider());
    assert_eq!(discover(&mut one, "user_pii", &[]).unwrap(), []);
    make(&mut other, "user_pii").unwrap();
    fails(make(&mut one, "user_pii"), ProviderErrorKind::Conflict);
    assert_eq!(discover(&mut one, "user_pii", &[]).unwrap().len(), 1);
    assert_eq!(make(&mut one, "user_pii").unwrap().reference, "user_pii?version=2");
}

#[test]
fn deleted_and_dropped_versions_are_passed_over() {
    let server = server!(start);
    let setup = Setup::with_token(&server, server.root_token());
    let mut vault = setup.provider();
    for version in 1..=5 {
        let key = if version % 2 == 1 { ONE } else { TWO };
        assert_eq!(server.kv_put("keys/user_pii", key), version);
    }
    let versions = |list: &[u32]| json!({ "versions": list });
    assert_eq!(server.request("POST", "secret/delete/keys/user_pii", versions(&[2])).0, 204);
    assert_eq!(server.request("PUT", "secret/destroy/keys/user_pii", versions(&[3])).0, 204);
    assert_eq!(discover(&mut vault, "user_pii", &[]).unwrap(), found(&[(1, 1), (4, 2), (5, 1)]));
    let text = fails(open(&mut vault, "user_pii?version=2"), ProviderErrorKind::VersionMissing);
    assert!(text.contains("vault kv undelete -versions=2 secret/keys/user_pii"), "{text}");
    fails(open(&mut vault, "user_pii?version=3"), ProviderErrorKind::VersionMissing);

    // The newest one is deleted: the older ones are still found, and the next is after it.
    assert_eq!(server.request("DELETE", "secret/data/keys/user_pii", Value::Null).0, 204);
    assert_eq!(discover(&mut vault, "user_pii", &[]).unwrap(), found(&[(1, 1), (4, 2)]));
    assert_eq!(make(&mut vault, "user_pii").unwrap().reference, "user_pii?version=6");

    for _ in 0..8 {
        server.kv_put("keys/user_pii", ONE);
    }
    // Ten are kept: 5 to 14, and 5 is deleted.
    let left: Vec<_> =
        discover(&mut vault, "user_pii", &[]).unwrap().into_iter().map(|v| v.0).collect();
    assert_eq!(left, [6, 7, 8, 9, 10, 11, 12, 13, 14]);
    fails(open(&mut vault, "user_pii?version=1"), ProviderErrorKind::VersionMissing);
}

#[test]
fn what_is_not_a_key_is_told() {
    let server = server!(start);
    let setup = Setup::with_token(&server, server.root_token());
    let mut vault = setup.provider();
    for (fields, kind, what) in [
        (json!({ "key": "AQEB" }), ProviderErrorKind::KeyLengthWrong, "3 bytes"),
        (json!({ "key": "" }), ProviderErrorKind::KeyLengthWrong, "0 bytes"),
        (json!({ "key": format!("AQEB{ONE}") }), ProviderErrorKind::KeyLengthWrong, "35 bytes"),
        (json!({ "key": "not base64!" }), ProviderErrorKind::AnswerInvalid, "not base64"),
        (json!({ "key": [1, 2] }), ProviderErrorKind::AnswerInvalid, "not a string"),
        (json!({ "value": ONE }), ProviderErrorKind::AnswerInvalid, "no field \"key\""),
        (json!({}), ProviderErrorKind::AnswerInvalid, "no field \"key\""),
    ] {
        let version = server.kv_put_in(None, "keys/user_pii", fields);
        let text = fails(discover(&mut vault, "user_pii", &[]), kind);
        assert!(text.contains(what), "{text}");
        assert!(text.contains(&format!("version {version}")), "{text}");
        assert!(text.contains("vault kv put secret/keys/user_pii"), "{text}");
        fails(open(&mut vault, &format!("user_pii?version={version}")), kind);
    }
    // A good one after it, and the bad ones no longer matter.
    server.kv_put("keys/user_pii", ONE);
    assert_eq!(discover(&mut vault, "user_pii", &[]).unwrap(), found(&[(8, 1)]));
}

#[test]
fn namespaces_mounts_and_prefixes_are_kept_apart() {
    let server = server!(start);
    assert_eq!(server.request("POST", "sys/namespaces/team", json!({})).0, 200);
    server.mount_kv("secret", Some("team"));
    server.mount_kv("kv/for/keys", None);
    server.kv_put("keys/user_pii", ONE);
    server.kv_put_in(Some("team"), "keys/user_pii", json!({ "key": TWO }));
    let mut setup = Setup::with_token(&server, server.root_token());
    assert_eq!(discover(&mut setup.provider(), "user_pii", &[]).unwrap(), found(&[(1, 1)]));
    setup.options.namespace = "team/".to_owned();
    assert_eq!(discover(&mut setup.provider(), "user_pii", &[]).unwrap(), found(&[(1, 2)]));
    setup.options.namespace = String::new();

    setup.options.mount = "kv/for/keys".to_owned();
    setup.options.path_prefix = Some("a/b".to_owned());
    let mut vault = setup.provider();
    assert_eq!(discover(&mut vault, "user_pii", &[]).unwrap(), []);
    make(&mut vault, "user_pii").unwrap();
    let path = "kv/for/keys/data/a/b/user_pii";
    assert_eq!(server.request("GET", path, Value::Null).0, 200);
    setup.options.path_prefix = Some(String::new());
    make(&mut setup.provider(), "user_pii").unwrap();
    assert_eq!(server.request("GET", "kv/for/keys/data/user_pii", Value::Null).0, 200);

    setup.options.mount = "no/such/mount".to_owned();
    let text =
        fails(discover(&mut setup.provider(), "user_pii", &[]), ProviderErrorKind::Configuration);
    assert!(text.contains("no/such/mount"), "{text}");
}

#[test]
fn an_approle_logs_in_again_when_its_token_ends() {
    let server = server!(start_with_tls);
    server.policy("read-keys", READ_ONLY);
    server.kv_put("keys/user_pii", ONE);
    let ids = server.approle("db", &["read-keys"], "2s");
    let setup = Setup::with_approle(&server, &ids);
    let mut vault = setup.provider();
    assert_eq!(open(&mut vault, "user_pii?version=1").unwrap().expose(), &[1; 32]);
    // Past its lease.
    std::thread::sleep(Duration::from_millis(2500));
    assert_eq!(open(&mut vault, "user_pii?version=1").unwrap().expose(), &[1; 32]);

    // Revoked in the middle of it.
    let ids = server.approle("long", &["read-keys"], "1h");
    let setup = Setup::with_approle(&server, &ids);
    let mut vault = setup.provider();
    assert!(open(&mut vault, "user_pii?version=1").is_ok());
    let revoked = server.request("PUT", "sys/leases/revoke-prefix/auth/approle", Value::Null).0;
    assert_eq!(revoked, 204);
    assert!(open(&mut vault, "user_pii?version=1").is_ok());

    // The login works, and what it asks for is not allowed: no outage.
    let ids = server.approle("other", &["default"], "1h");
    let mut denied = Setup::with_approle(&server, &ids).provider_and_folder();
    fails(open(&mut denied.0, "user_pii?version=1"), ProviderErrorKind::Denied);

    // The login no longer works.
    fs::write(setup.file("secret_id"), "00000000-0000-0000-0000-000000000000").unwrap();
    server.request("PUT", "sys/leases/revoke-prefix/auth/approle", Value::Null);
    let text = fails(open(&mut vault, "user_pii?version=1"), ProviderErrorKind::LoginFailed);
    assert!(!text.contains("00000000"), "{text}");
    fs::remove_file(setup.file("secret_id")).unwrap();
    fails(open(&mut vault, "user_pii?version=1"), ProviderErrorKind::LoginFailed);
    fs::write(setup.file("secret_id"), &ids.1).unwrap();
    fs::write(setup.file("role_id"), &ids.0).unwrap();
    fails(open(&mut vault, "user_pii?version=1"), ProviderErrorKind::Denied);
}

impl Setup {
    /// A provider, and what must live as long as it.
    fn provider_and_folder(self) -> (VaultProvider, Self) {
        (self.provider(), self)
    }
}

/// The accessors of the tokens that a login has given and that still live, the oldest first.
fn accessors(server: &OpenBao, mount: &str) -> Vec<String> {
    let tokens = server.tokens_of(mount);
    tokens.iter().map(|token| token["accessor"].as_str().unwrap().to_owned()).collect()
}

fn revoke_tokens_of(server: &OpenBao, mount: &str) {
    let path = format!("sys/leases/revoke-prefix/auth/{mount}");
    server.expect(None, "PUT", &path, Value::Null);
    assert_eq!(accessors(server, mount), [""; 0]);
}

#[test]
fn a_token_is_renewed_before_it_ends() {
    let server = server!(start);
    server.policy("read-keys", READ_ONLY);
    server.kv_put("keys/user_pii", ONE);
    let role = json!({ "token_policies": ["read-keys"], "token_ttl": "3s", "token_max_ttl": "1h" });
    let setup = Setup::with_approle(&server, &server.approle_with(None, "db", role));
    let mut vault = setup.provider();
    open(&mut vault, "user_pii?version=1").unwrap();
    let first = accessors(&server, "approle");
    assert_eq!(first.len(), 1);
    assert_eq!(server.tokens_of("approle")[0]["last_renewal_time"], Value::Null);

    // Three times past two thirds of its time, and in the end long past all of it.
    for _ in 0..3 {
        open(&mut vault, "user_pii?version=1").unwrap();
        std::thread::sleep(Duration::from_millis(2200));
        open(&mut vault, "user_pii?version=1").unwrap();
        assert_eq!(accessors(&server, "approle"), first);
    }
    assert!(server.tokens_of("approle")[0]["last_renewal_time"].is_u64());

    // Nobody renews what nobody uses; then there is a new login.
    std::thread::sleep(Duration::from_millis(3200));
    open(&mut vault, "user_pii?version=1").unwrap();
    let second = accessors(&server, "approle");
    assert_eq!(second.len(), 1);
    assert_ne!(second, first);
}

#[test]
fn a_token_that_cannot_be_renewed_is_replaced() {
    let server = server!(start);
    server.policy("read-keys", READ_ONLY);
    server.policy("no-renewal", r#"path "auth/token/renew-self" { capabilities = ["deny"] }"#);
    server.kv_put("keys/user_pii", ONE);
    let setup_with = |name: &str, role: Value| {
        Setup::with_approle(&server, &server.approle_with(None, name, role))
    };
    let seconds = |seconds: f32| std::thread::sleep(Duration::from_secs_f32(seconds));

    // The renewal after 2.2 seconds can't give it three more: the fourth second is its last.
    let role = json!({ "token_policies": ["read-keys"], "token_ttl": "3s", "token_max_ttl": "4s" });
    let setup = setup_with("max", role);
    let mut vault = setup.provider();
    open(&mut vault, "user_pii?version=1").unwrap();
    let first = accessors(&server, "approle");
    seconds(2.2);
    open(&mut vault, "user_pii?version=1").unwrap();
    assert_eq!(accessors(&server, "approle"), first);
    seconds(2.2);
    open(&mut vault, "user_pii?version=1").unwrap();
    let second = accessors(&server, "approle");
    assert!(!second.is_empty() && second.last() != first.last(), "{first:?} {second:?}");
    revoke_tokens_of(&server, "approle");

    // The renewal is refused.
    let role = json!({ "token_policies": ["read-keys", "no-renewal"], "token_ttl": "3s" });
    let setup = setup_with("refused", role);
    let mut vault = setup.provider();
    open(&mut vault, "user_pii?version=1").unwrap();
    let first = accessors(&server, "approle");
    seconds(2.2);
    open(&mut vault, "user_pii?version=1").unwrap();
    let second = accessors(&server, "approle");
    assert_eq!((first.len(), second.len()), (1, 2));
    assert_eq!(first[0], second[0]);
    revoke_tokens_of(&server, "approle");

    // A batch token is not renewed, and ends.
    let role = json!({
        "token_policies": ["read-keys"],
        "token_ttl": "2s",
        "token_type": "batch",
    });
    let setup = setup_with("batch", role);
    let mut vault = setup.provider();
    for pause in [0.0, 1.5, 1.0, 3.0] {
        seconds(pause);
        open(&mut vault, "user_pii?version=1").unwrap();
    }
    // The server keeps none of them.
    assert_eq!(accessors(&server, "approle"), [""; 0]);
}

#[test]
fn a_service_account_of_kubernetes_logs_in() {
    let server = server!(start);
    server.policy("read-keys", READ_ONLY);
    server.kv_put("keys/user_pii", ONE);
    let reviewer = TokenReviewer::start();
    server.enable_auth("kubernetes", "kubernetes", None);
    server.expect(None, "POST", "auth/kubernetes/config", reviewer.config());
    let role = reviewer.role("postgres", &["read-keys"]);
    server.expect(None, "POST", "auth/kubernetes/role/db", role);

    let mut setup = Setup::new(&server);
    setup.options.auth = "kubernetes".to_owned();
    setup.options.role = "db".to_owned();
    let first = reviewer.issue("postgres");
    setup.options.jwt_file = setup.write("jwt", &first);
    let mut vault = setup.provider();
    assert_eq!(open(&mut vault, "user_pii?version=1").unwrap().expose(), &[1; 32]);

    // The platform replaces the token by and by: each login reads it again.
    reviewer.revoke_all();
    setup.write("jwt", &format!("{}\n", reviewer.issue("postgres")));
    revoke_tokens_of(&server, "kubernetes");
    assert_eq!(open(&mut vault, "user_pii?version=1").unwrap().expose(), &[1; 32]);

    revoke_tokens_of(&server, "kubernetes");
    let not_taken = [first, reviewer.issue("somebody"), "not.a.token".to_owned(), String::new()];
    for token in not_taken {
        setup.write("jwt", &token);
        let text = fails(open(&mut vault, "user_pii?version=1"), ProviderErrorKind::LoginFailed);
        assert!(token.is_empty() || !text.contains(&token), "{text}");
    }
    fs::remove_file(setup.file("jwt")).unwrap();
    fails(open(&mut vault, "user_pii?version=1"), ProviderErrorKind::LoginFailed);
    setup.write("jwt", &reviewer.issue("postgres"));
    open(&mut vault, "user_pii?version=1").unwrap();

    // No such role.
    setup.options.role = "other".to_owned();
    fails(open(&mut setup.provider(), "user_pii?version=1"), ProviderErrorKind::LoginFailed);
}

#[test]
fn a_token_of_a_platform_logs_in() {
    let server = server!(start);
    server.policy("read-keys", READ_ONLY);
    server.kv_put("keys/user_pii", ONE);
    let issuer = JwtIssuer::new();
    server.enable_auth("jwt", "platform", None);
    let config = json!({ "jwt_validation_pubkeys": [issuer.public_key()] });
    server.expect(None, "POST", "auth/platform/config", config);
    let role = json!({
        "role_type": "jwt",
        "user_claim": "sub",
        "bound_audiences": ["vault"],
        "bound_subject": "postgres",
        "token_policies": ["read-keys"],
    });
    server.expect(None, "POST", "auth/platform/role/db", role);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let issue = |subject: &str, audience: &str, expires: u64| {
        issuer.sign(&json!({ "sub": subject, "aud": audience, "iat": now - 3600, "exp": expires }))
    };

    let mut setup = Setup::new(&server);
    setup.options.auth = "jwt".to_owned();
    setup.options.auth_mount = "platform".to_owned();
    setup.options.role = "db".to_owned();
    setup.options.jwt_file = setup.write("jwt", &issue("postgres", "vault", now + 600));
    let mut vault = setup.provider();
    assert_eq!(open(&mut vault, "user_pii?version=1").unwrap().expose(), &[1; 32]);
    revoke_tokens_of(&server, "platform");
    for token in [
        issue("postgres", "vault", now - 1000),
        issue("postgres", "other", now + 600),
        issue("other", "vault", now + 600),
        JwtIssuer::new().sign(&json!({ "sub": "postgres", "aud": "vault", "exp": now + 600 })),
    ] {
        setup.write("jwt", &token);
        let text = fails(open(&mut vault, "user_pii?version=1"), ProviderErrorKind::LoginFailed);
        assert!(text.contains("subject and audience") && !text.contains(&token), "{text}");
    }
    setup.write("jwt", &issue("postgres", "vault", now + 600));
    open(&mut vault, "user_pii?version=1").unwrap();

    // Mounted elsewhere.
    setup.options.auth_mount = String::new();
    fails(open(&mut setup.provider(), "user_pii?version=1"), ProviderErrorKind::LoginFailed);
}

#[test]
fn a_client_certificate_logs_in() {
    let server = server!(start_with_tls);
    server.policy("read-keys", READ_ONLY);
    server.kv_put("keys/user_pii", ONE);
    let authority = ClientAuthority::new();
    server.enable_auth("cert", "cert", None);
    let role = json!({
        "certificate": authority.certificate(),
        "allowed_common_names": ["db1", "db2"],
        "token_policies": ["read-keys"],
    });
    server.expect(None, "POST", "auth/cert/certs/db", role);
    let name_of_newest = || server.tokens_of("cert").pop().unwrap()["meta"]["common_name"].clone();

    let mut setup = Setup::new(&server);
    setup.options.auth = "cert".to_owned();
    let (certificate, key) = authority.sign("db1");
    setup.options.client_certificate_file = setup.write("client.pem", &certificate);
    setup.options.client_key_file = setup.write("client.key", &key);
    let mut vault = setup.provider();
    assert_eq!(open(&mut vault, "user_pii?version=1").unwrap().expose(), &[1; 32]);
    assert_eq!(name_of_newest(), "db1");
    contract::tells_when_certificates_end(&vault, true);

    // Replaced on disk: the next login shows the new one, in a new connection.
    let (certificate, key) = authority.sign("db2");
    setup.write("client.pem", &certificate);
    setup.write("client.key", &key);
    open(&mut vault, "user_pii?version=1").unwrap();
    assert_eq!(name_of_newest(), "db1");
    revoke_tokens_of(&server, "cert");
    open(&mut vault, "user_pii?version=1").unwrap();
    assert_eq!(name_of_newest(), "db2");

    // The role that is named decides.
    for (role, may_log_in) in [("db", true), ("other", false)] {
        setup.options.role = role.to_owned();
        let result = open(&mut setup.provider(), "user_pii?version=1");
        match may_log_in {
            true => assert!(result.is_ok()),
            false => drop(fails(result, ProviderErrorKind::LoginFailed)),
        }
    }
    setup.options.role = String::new();

    // Another name, another authority.
    for (certificate, key) in [authority.sign("db3"), ClientAuthority::new().sign("db1")] {
        setup.write("client.pem", &certificate);
        setup.write("client.key", &key);
        revoke_tokens_of(&server, "cert");
        let text = fails(open(&mut vault, "user_pii?version=1"), ProviderErrorKind::LoginFailed);
        assert!(text.contains("client certificate"), "{text}");
    }

    // Only one of the two is replaced so far; the other follows within the tries.
    let (certificate, key) = authority.sign("db1");
    setup.write("client.pem", &certificate);
    let start = Instant::now();
    let text = fails(open(&mut vault, "user_pii?version=1"), ProviderErrorKind::LoginFailed);
    assert!(text.contains("is not that of the certificate"), "{text}");
    assert!((700..1800).contains(&start.elapsed().as_millis()), "{:?}", start.elapsed());
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(200));
            setup.write("client.key", &key);
        });
        open(&mut vault, "user_pii?version=1").unwrap();
    });
    assert_eq!(name_of_newest(), "db1");

    for (name, contents) in
        [("client.key", ""), ("client.key", "no key"), ("client.pem", "no certificate")]
    {
        let whole = fs::read_to_string(setup.file(name)).unwrap();
        setup.write(name, contents);
        fails(open(&mut vault, "user_pii?version=1"), ProviderErrorKind::LoginFailed);
        setup.write(name, &whole);
        open(&mut vault, "user_pii?version=1").unwrap();
    }
}

#[test]
fn a_login_may_be_in_a_namespace() {
    let server = server!(start);
    server.expect(None, "POST", "sys/namespaces/team", json!({}));
    server.mount_kv("secret", Some("team"));
    server.kv_put_in(Some("team"), "keys/user_pii", json!({ "key": TWO }));
    let policy = json!({ "policy": READ_ONLY });
    server.expect(Some("team"), "POST", "sys/policies/acl/read-keys", policy);
    let role = json!({ "token_policies": ["read-keys"], "token_ttl": "3s" });
    let ids = server.approle_with(Some("team"), "db", role);
    let mut setup = Setup::with_approle(&server, &ids);
    fails(open(&mut setup.provider(), "user_pii?version=1"), ProviderErrorKind::LoginFailed);
    setup.options.namespace = "team".to_owned();
    let mut vault = setup.provider();
    assert_eq!(open(&mut vault, "user_pii?version=1").unwrap().expose(), &[2; 32]);
    // The renewal is in the namespace too.
    std::thread::sleep(Duration::from_millis(2200));
    assert_eq!(open(&mut vault, "user_pii?version=1").unwrap().expose(), &[2; 32]);
}

#[test]
fn a_token_file_is_read_again_when_it_changes() {
    let server = server!(start);
    server.policy("read-keys", READ_ONLY);
    server.kv_put("keys/user_pii", ONE);
    let (first, second) = (server.token(&["read-keys"], "1h"), server.token(&["read-keys"], "1h"));
    let setup = Setup::with_token(&server, &first);
    let mut vault = setup.provider();
    assert!(open(&mut vault, "user_pii?version=1").is_ok());
    server.revoke(&first);
    let text = fails(open(&mut vault, "user_pii?version=1"), ProviderErrorKind::LoginFailed);
    assert!(!text.contains(&first), "{text}");

    // Replaced as Vault Agent does it.
    fs::write(setup.file("new"), &second).unwrap();
    fs::rename(setup.file("new"), setup.file("token")).unwrap();
    assert!(open(&mut vault, "user_pii?version=1").is_ok());

    // The file looks as before (same length, same time), and has another token.
    let third = server.token(&["read-keys"], "1h");
    let modified = fs::metadata(setup.file("token")).unwrap().modified().unwrap();
    fs::write(setup.file("token"), &third).unwrap();
    fs::File::options()
        .write(true)
        .open(setup.file("token"))
        .unwrap()
        .set_modified(modified)
        .unwrap();
    server.revoke(&second);
    assert!(open(&mut vault, "user_pii?version=1").is_ok());

    // A good token that may not read.
    let powerless = server.token(&["default"], "1h");
    fs::write(setup.file("token"), &powerless).unwrap();
    let text = fails(open(&mut vault, "user_pii?version=1"), ProviderErrorKind::Denied);
    assert!(!text.contains(&powerless), "{text}");

    for contents in ["", "\n", "two\nlines", "a\0b", "ä"] {
        fs::write(setup.file("token"), contents).unwrap();
        fails(open(&mut vault, "user_pii?version=1"), ProviderErrorKind::LoginFailed);
    }
    fs::remove_file(setup.file("token")).unwrap();
    fails(open(&mut vault, "user_pii?version=1"), ProviderErrorKind::LoginFailed);
}

#[test]
fn a_server_that_fails_fails_in_time() {
    let mut server = server!(start_with_tls);
    server.kv_put("keys/user_pii", ONE);
    let mut setup = Setup::with_token(&server, server.root_token());
    setup.limits.total = Duration::from_secs(2);
    let mut vault = setup.provider();
    let reference = "user_pii?version=1";
    let timed = |vault: &mut VaultProvider| {
        let start = Instant::now();
        (open(vault, reference), start.elapsed())
    };
    let (opened, took) = timed(&mut vault);
    println!("first open, TLS handshake included: {took:?}");
    opened.unwrap();
    let (opened, took) = timed(&mut vault);
    println!("second open: {took:?}");
    opened.unwrap();

    server.seal();
    let (sealed, took) = timed(&mut vault);
    println!("sealed: {took:?}");
    fails(sealed, ProviderErrorKind::Sealed);
    server.unseal();
    open(&mut vault, reference).unwrap();

    server.pause();
    let (paused, took) = timed(&mut vault);
    println!("paused, with a connection: {took:?}");
    fails(paused, ProviderErrorKind::TimedOut);
    assert!((1900..2200).contains(&took.as_millis()), "{took:?}");
    // Without one, the handshake waits: the shorter time to connect decides.
    let (paused, took) = timed(&mut vault);
    println!("paused, without a connection: {took:?}");
    fails(paused, ProviderErrorKind::TimedOut);
    assert!((900..1200).contains(&took.as_millis()), "{took:?}");

    let cancel_at = Instant::now() + Duration::from_millis(300);
    let mut cancelled = setup.interruptible_provider(move || Instant::now() >= cancel_at);
    let (result, took) = timed(&mut cancelled);
    println!("cancelled 300 ms after the beginning: {took:?}");
    fails(result, ProviderErrorKind::Interrupted);
    assert!((250..400).contains(&took.as_millis()), "{took:?}");
    server.resume();
    open(&mut vault, reference).unwrap();

    server.stop();
    let (stopped, took) = timed(&mut vault);
    println!("stopped: {took:?}");
    fails(stopped, ProviderErrorKind::Unreachable);
    // Refused at once, and tried again three times, with pauses of at least 0.7 seconds in all.
    assert!((700..1900).contains(&took.as_millis()), "{took:?}");
    server.restart();
    open(&mut vault, reference).unwrap();
}

#[test]
fn the_servers_certificate_is_checked() {
    let server = server!(start_with_tls);
    server.kv_put("keys/user_pii", ONE);
    let mut setup = Setup::with_token(&server, server.root_token());
    let mut vault = setup.provider();
    let reference = "user_pii?version=1";
    open(&mut vault, reference).unwrap();

    let ca_file = setup.file("ca.pem");
    fs::write(&ca_file, openbao::unrelated_authority()).unwrap();
    setup.options.ca_file = path_text(&ca_file);
    let mut vault = setup.provider();
    let text = fails(open(&mut vault, reference), ProviderErrorKind::Unreachable);
    assert!(text.contains("certificate") && text.contains("CA file"), "{text}");
    // Several authorities; the file is read again when it changes.
    let good = fs::read_to_string(server.ca_file()).unwrap();
    fs::write(&ca_file, openbao::unrelated_authority() + &good).unwrap();
    open(&mut vault, reference).unwrap();

    // The system's authorities did not sign it.
    setup.options.ca_file = String::new();
    fails(open(&mut setup.provider(), reference), ProviderErrorKind::Unreachable);
    // The name is not the certificate's.
    setup.options.ca_file = path_text(&server.ca_file());
    setup.options.address = server.address().replace("127.0.0.1", "127.0.0.2");
    fails(open(&mut setup.provider(), reference), ProviderErrorKind::Unreachable);
    // Plain HTTP to a server that speaks TLS.
    setup.options.address = server.address().replace("https", "http");
    let result = open(&mut setup.provider(), reference);
    assert!(result.is_err());

    setup.options.address = server.address();
    for contents in ["", "not a certificate", "-----BEGIN CERTIFICATE-----\nAAAA"] {
        fs::write(&ca_file, contents).unwrap();
        setup.options.ca_file = path_text(&ca_file);
        fails(open(&mut setup.provider(), reference), ProviderErrorKind::Configuration);
    }
    setup.options.ca_file = path_text(&setup.file("missing.pem"));
    fails(open(&mut setup.provider(), reference), ProviderErrorKind::Configuration);
}

#[test]
fn a_quota_is_waited_for_or_told() {
    let server = server!(start);
    server.kv_put("keys/user_pii", ONE);
    let setup = Setup::with_token(&server, server.root_token());
    let mut vault = setup.provider();
    let path = "sys/quotas/rate-limit/keys";
    let quota = json!({ "path": "secret/", "rate": 1.0, "interval": "60s" });
    server.expect(None, "POST", path, quota);
    open(&mut vault, "user_pii?version=1").unwrap();
    // No pause is long enough.
    fails(open(&mut vault, "user_pii?version=1"), ProviderErrorKind::Throttled);

    // It ends while the request is tried again.
    let start = Instant::now();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(250));
            server.expect(None, "DELETE", path, Value::Null);
        });
        open(&mut vault, "user_pii?version=1").unwrap();
    });
    let took = start.elapsed();
    println!("throttled for 250 ms: {took:?}");
    assert!((250..1500).contains(&took.as_millis()), "{took:?}");
}

#[test]
fn settings_that_cannot_be_used_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| path_text(&folder.path().join(name));
    let good = || VaultOptions {
        address: "https://vault.example".to_owned(),
        token_file: file("token"),
        ..VaultOptions::default()
    };
    let new = |options: &VaultOptions| {
        VaultProvider::new(options, RequestLimits::default(), Box::new(|| false))
    };
    assert!(new(&good()).is_ok());
    let auth = |auth: &str| VaultOptions { auth: auth.to_owned(), ..good() };
    let with_certificate = |options: VaultOptions| VaultOptions {
        client_certificate_file: file("client.pem"),
        client_key_file: file("client.key"),
        ..options
    };
    assert!(new(&with_certificate(auth("cert"))).is_ok());
    let loopback = "http://127.0.0.1:8200".to_owned();
    for (options, complaint) in [
        (VaultOptions { address: String::new(), ..good() }, "\"address\""),
        (VaultOptions { address: "http://vault.example".to_owned(), ..good() }, "https"),
        (VaultOptions { token_file: String::new(), ..good() }, "\"token_file\""),
        (VaultOptions { token_file: "token".to_owned(), ..good() }, "\"token_file\""),
        (VaultOptions { namespace: "../x".to_owned(), ..good() }, "\"namespace\""),
        (VaultOptions { mount: "a//b".to_owned(), ..good() }, "\"mount\""),
        (VaultOptions { path_prefix: Some("a?b".to_owned()), ..good() }, "\"path_prefix\""),
        (VaultOptions { key: "k".to_owned(), ..good() }, "vault_transit"),
        (auth("jwt"), "\"role\""),
        (
            VaultOptions { auth_mount: "/x".to_owned(), role: "r".to_owned(), ..auth("jwt") },
            "\"auth_mount\"",
        ),
        (
            VaultOptions { role: "r".to_owned(), jwt_file: "x".to_owned(), ..auth("jwt") },
            "jwt_file",
        ),
        (auth("kubernetes"), "\"role\""),
        (auth("approle"), "\"role_id_file\""),
        (VaultOptions { role_id_file: file("r"), ..auth("approle") }, "\"secret_id_file\""),
        (auth("ldap"), "\"auth\""),
        (auth("cert"), "client_certificate_file"),
        (with_certificate(VaultOptions { address: loopback, ..auth("cert") }), "https"),
        (VaultOptions { client_key_file: file("k"), ..good() }, "belong together"),
    ] {
        let error = new(&options).err().unwrap();
        assert_eq!(error.kind, ProviderErrorKind::Configuration, "{error}");
        assert!(error.message.contains(complaint), "{error}");
    }
}

#[test]
fn a_check_tells_what_can_be_done() {
    let server = server!(start);
    let name = name("user_pii");
    let id = VersionId { keyspace: Keyspace([7; 16]), name: &name, version: KeyVersion::FIRST };
    let check = |setup: &Setup| -> Vec<String> {
        let findings = setup.provider().check(&id).unwrap();
        findings.iter().map(|f| format!("{}: {} / {:?}", f.what, f.detail, f.hint)).collect()
    };
    // With the right to do everything, and nothing there yet.
    let root = Setup::with_token(&server, server.root_token());
    let found = check(&root);
    assert!(found[0].starts_with("login: its token is good without end"), "{found:?}");
    assert!(found[0].contains("root") && found[0].contains("least rights"), "{found:?}");
    assert!(found[1].contains("there is no \"secret/keys/user_pii\""), "{found:?}");
    assert!(found[2].starts_with("writing: allowed"), "{found:?}");
    assert_eq!(found.len(), 3);

    server.kv_put("keys/user_pii", ONE);
    let found = check(&root);
    assert!(found[3].starts_with("retention: Vault keeps the newest 10"), "{found:?}");
    server.policy("read-keys", READ_ONLY);
    let reader = Setup::with_token(&server, &server.token(&["read-keys"], "1h"));
    let found = check(&reader);
    assert!(found[0].contains("for another 3") && found[0].contains("read-keys"), "{found:?}");
    assert!(found[1].contains("\"secret/keys/user_pii\" has a key"), "{found:?}");
    assert!(found[2].contains("not allowed") && found[2].contains("vault kv put"), "{found:?}");
    assert_eq!(found.len(), 3);

    // Without the policy that every token has unless it says otherwise.
    let parameters = json!({ "policies": ["read-keys"], "no_default_policy": true });
    let bare = Setup::with_token(&server, &server.token_with(None, parameters));
    let error = bare.provider().check(&id).unwrap_err();
    assert_eq!(error.kind, ProviderErrorKind::LoginFailed, "{error}");

    server.kv_put("keys/user_pii", "too short");
    assert!(root.provider().check(&id).is_err());
    let none = Setup::with_token(&server, &server.token(&["default"], "1h"));
    fails(none.provider().check(&id), ProviderErrorKind::Denied);
    let revoked = Setup::with_token(&server, "s.000000000000000000000000");
    fails(revoked.provider().check(&id), ProviderErrorKind::LoginFailed);
}

#[test]
fn it_keeps_the_contract() {
    let server = server!(start);
    let setup = Setup::with_token(&server, server.root_token());
    contract::keeps_the_contract(&contract::Subject {
        provider: &|interrupt| {
            Box::new(VaultProvider::new(&setup.options, setup.limits, interrupt).unwrap())
        },
        is_envelope: false,
        binds_version: false,
    });
    // Without TLS there are no certificates.
    let mut vault = setup.provider();
    make(&mut vault, "without_tls").unwrap();
    assert_eq!(vault.certificates(), Certificates::default());
}
