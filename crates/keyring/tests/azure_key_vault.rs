//! The provider `azure_key_vault`, against the fake of Azure Key Vault that Microsoft's own clients
//! take for the service.

#![expect(clippy::unwrap_used, reason = "a test fails by a panic")]

mod contract;

use std::env;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use contract::{Subject, id, keeps_the_contract, name};
use harness::fakes::{Fake, Service};
use keyring::azure_key_vault::{AzureKeyVaultOptions, AzureKeyVaultProvider};
use keyring::call::RequestLimits;
use keyring::provider::{
    Finding, Interrupt, MadeVersion, Provider, ProviderError, ProviderErrorKind, WrappedKey,
};
use serde_json::{Value, json};
use tempfile::TempDir;

const TENANT: &str = "11111111-2222-3333-4444-555555555555";
const CLIENT: &str = "aaaaaaaa-0000-0000-0000-000000000000";
/// The fake's virtual machine and app have this identity.
const MANAGED_IDENTITY: &str = "99999999-0000-0000-0000-000000000000";

/// What a fault's answer says, for a look whether any of it gets into an error.
const LEAK: &str = "hunter2";

macro_rules! setup {
    () => {
        match Setup::new() {
            Some(setup) => setup,
            None => {
                let test = std::thread::current();
                let test = test.name().unwrap_or("azure_key_vault");
                harness::skip(test, "build/python/fakes is missing");
                return;
            }
        }
    };
}

/// A fake with a key, and a provider's settings with an application that may use it.
struct Setup {
    fake: Fake,
    folder: TempDir,
    options: AzureKeyVaultOptions,
    limits: RequestLimits,
}

impl Setup {
    fn new() -> Option<Self> {
        let fake = Fake::start(Service::AzureKeyVault)?;
        let folder = tempfile::tempdir().unwrap();
        let options = AzureKeyVaultOptions {
            address: fake.address(),
            key: "postgresql".to_owned(),
            tenant_id: TENANT.to_owned(),
            client_id: CLIENT.to_owned(),
            client_secret_file: text(folder.path().join("secret")),
            authority: fake.address(),
            ca_file: text(fake.ca_file()),
            ..AzureKeyVaultOptions::default()
        };
        let setup = Self { fake, folder, options, limits: RequestLimits::default() };
        setup.new_secret();
        setup.create_key("postgresql", json!({ "kty": "RSA", "key_size": 2048 }));
        Some(setup)
    }

    fn new_secret(&self) {
        let secret = self.fake.control("client", &json!({ "id": CLIENT }));
        fs::write(&self.options.client_secret_file, secret["secret"].as_str().unwrap()).unwrap();
    }

    /// Makes a key, or a version of it, and tells its version.
    fn create_key(&self, name: &str, parameters: Value) -> String {
        let path = format!("/keys/{name}/create?api-version=7.4");
        version(&self.fake.administer("POST", &path, &parameters))
    }

    /// Changes a version of the key.
    fn update(&self, version: &str, change: Value) {
        let path = format!("/keys/postgresql/{version}?api-version=7.4");
        self.fake.administer("PATCH", &path, &change);
    }

    fn permit(&self, permissions: &[&str]) {
        self.fake.control("permissions", &json!({ "of": CLIENT, "are": permissions }));
    }

    fn fault(&self, path: &str, times: u32, fault: Value) {
        let mut fault = fault;
        fault["path"] = path.into();
        fault["times"] = times.into();
        self.fake.control("fault", &fault);
    }

    /// The requests since the last call of this whose path has `part` in it.
    fn requests(&self, part: &str) -> usize {
        let requests = self.fake.control("requests", &json!({}));
        let requests = requests.as_array().unwrap().iter().map(|each| each.as_str().unwrap());
        requests.filter(|request| request.contains(part)).count()
    }

    fn provider(&self) -> AzureKeyVaultProvider {
        self.interruptible_provider(Box::new(|| false))
    }

    fn interruptible_provider(&self, interrupt: Box<dyn Interrupt>) -> AzureKeyVaultProvider {
        AzureKeyVaultProvider::new(&self.options, self.limits, interrupt).unwrap()
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

fn version(bundle: &Value) -> String {
    bundle["key"]["kid"].as_str().unwrap().rsplit('/').next().unwrap().to_owned()
}

fn text(path: PathBuf) -> String {
    path.into_os_string().into_string().unwrap()
}

fn make(provider: &mut dyn Provider) -> Result<MadeVersion, ProviderError> {
    provider.make(&id(&name("user_pii"), 1))
}

/// Opens a version, and compares it with what was made.
fn open(provider: &mut dyn Provider, made: &MadeVersion) -> Result<(), ProviderError> {
    let key = provider.open(&id(&name("user_pii"), 1), &made.reference, made.wrapped.as_deref())?;
    assert_eq!(key.expose(), made.key.expose());
    Ok(())
}

fn rewrap(provider: &mut dyn Provider, made: &MadeVersion) -> Result<WrappedKey, ProviderError> {
    let key = name("user_pii");
    let again = provider.rewrap(&id(&key, 1), &made.reference, made.wrapped.as_deref())?.unwrap();
    let opened = provider.open(&id(&key, 1), &again.reference, Some(&again.wrapped))?;
    assert_eq!(opened.expose(), made.key.expose());
    Ok(again)
}

fn check(provider: &mut dyn Provider) -> Result<Vec<Finding>, ProviderError> {
    provider.check(&id(&name("probe"), 1))
}

#[track_caller]
fn fails<T>(result: Result<T, ProviderError>, kind: ProviderErrorKind) -> String {
    let error = result.err().expect("an error");
    let text = format!("{error} / {}", error.hint.as_deref().unwrap_or_default());
    assert_eq!(error.kind, kind, "{text}");
    for secret in [LEAK, "eyJ", "Bearer"] {
        assert!(!format!("{error:?}").contains(secret), "{error:?}");
    }
    text
}

#[test]
fn it_keeps_the_contract() {
    let mut setup = setup!();
    setup.create_key("symmetric", json!({ "kty": "oct-HSM", "key_size": 256 }));
    for (key, algorithm) in [("postgresql", ""), ("symmetric", "A256KW")] {
        setup.options.key = key.to_owned();
        setup.options.algorithm = algorithm.to_owned();
        keeps_the_contract(&Subject {
            provider: &|interrupt| Box::new(setup.interruptible_provider(interrupt)),
            is_envelope: true,
            binds_version: false,
        });
    }
    let mut provider = setup.provider();
    provider.make(&id(&name("k"), 1)).unwrap();
    contract::tells_when_certificates_end(&provider, false);
}

#[test]
fn a_key_is_wrapped_again_by_the_newest_version() {
    let mut setup = setup!();
    let mut provider = setup.provider();
    let made = make(&mut provider).unwrap();
    let first = made.reference.split(['/', '?']).nth(1).unwrap().to_owned();
    assert_eq!(made.reference, format!("postgresql/{first}?alg=RSA-OAEP-256"));
    let rotate = "/keys/postgresql/rotate?api-version=7.4";
    let second = version(&setup.fake.administer("POST", rotate, &json!({})));
    open(&mut provider, &made).unwrap();
    let again = rewrap(&mut provider, &made).unwrap();
    assert_eq!(again.reference, format!("postgresql/{second}?alg=RSA-OAEP-256"));

    // The settings may name a version, which then stays.
    setup.options.key = format!("postgresql/{first}");
    let mut pinned = setup.provider();
    setup.requests("");
    assert!(make(&mut pinned).unwrap().reference.contains(&first));
    assert_eq!(setup.requests("GET"), 0);
    check(&mut pinned).unwrap();

    setup.update(&first, json!({ "attributes": { "enabled": false } }));
    let text = fails(open(&mut provider, &made), ProviderErrorKind::Denied);
    assert!(text.contains("is disabled"), "{text}");
    fails(make(&mut pinned), ProviderErrorKind::Denied);
    fails(check(&mut pinned), ProviderErrorKind::Denied);
    make(&mut provider).unwrap();
    setup.update(&first, json!({ "attributes": { "enabled": true } }));
    open(&mut provider, &made).unwrap();
}

#[test]
fn another_key_and_another_algorithm_take_over() {
    let mut setup = setup!();
    let made = make(&mut setup.provider()).unwrap();
    setup.create_key("successor", json!({ "kty": "oct-HSM" }));
    setup.options.key = "successor".to_owned();
    setup.options.algorithm = "A256KW".to_owned();
    let mut provider = setup.provider();
    open(&mut provider, &made).unwrap();
    let again = rewrap(&mut provider, &made).unwrap();
    assert!(again.reference.starts_with("successor/"), "{}", again.reference);
    // What the one wrapped, the other doesn't open.
    let key = name("user_pii");
    let error = provider.open(&id(&key, 1), &again.reference, made.wrapped.as_deref());
    fails(error, ProviderErrorKind::WrappedKeyInvalid);
    // Nor does another version of the same key.
    let newer = setup.create_key("successor", json!({ "kty": "oct-HSM" }));
    let reference = format!("successor/{newer}?alg=A256KW");
    let error = provider.open(&id(&key, 1), &reference, Some(&again.wrapped));
    fails(error, ProviderErrorKind::WrappedKeyInvalid);
}

#[test]
fn the_check_tells_what_is_there() {
    let mut setup = setup!();
    let findings = check(&mut setup.provider()).unwrap();
    let [login, key, round_trip] = &findings[..] else { panic!("{findings:?}") };
    assert_eq!(
        login.detail,
        format!(
            "the client secret of application {CLIENT} gave an access token, which is accepted"
        )
    );
    let version = make(&mut setup.provider()).unwrap().reference;
    let version = version.split('?').next().unwrap();
    assert_eq!(key.detail, format!("\"{version}\" is enabled, of type RSA, for RSA-OAEP-256"));
    assert_eq!(round_trip.detail, "a new key was wrapped and unwrapped");
    assert!(findings.iter().all(|finding| finding.hint.is_none()));

    let soon = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() + 10 * 86_400 + 60;
    let attributes = json!({ "exp": soon });
    setup.create_key("postgresql", json!({ "kty": "RSA", "attributes": attributes }));
    let findings = check(&mut setup.provider()).unwrap();
    assert!(findings[1].detail.contains("expires in 10 days"), "{findings:?}");
    assert!(findings[1].hint.is_some());

    setup.options.algorithm = "A256KW".to_owned();
    let text = fails(check(&mut setup.provider()), ProviderErrorKind::Configuration);
    assert!(text.contains("algorithm"), "{text}");
    fails(make(&mut setup.provider()), ProviderErrorKind::Configuration);
}

#[test]
fn keys_that_can_not_be_used_are_told() {
    let mut setup = setup!();
    let mut provider = setup.provider();
    let made = make(&mut provider).unwrap();
    let reference = made.reference.split('?').next().unwrap().to_owned();
    let version = reference.split('/').nth(1).unwrap();
    let wrap_only = json!({ "key_ops": ["wrapKey"] });
    setup.update(version, wrap_only);
    let text = fails(open(&mut provider, &made), ProviderErrorKind::Denied);
    assert!(text.contains("not for wrapping"), "{text}");
    fails(check(&mut provider), ProviderErrorKind::Denied);
    setup.update(version, json!({ "key_ops": ["wrapKey", "unwrapKey"] }));

    // An expired key wraps nothing more, and unwraps.
    setup.update(version, json!({ "attributes": { "exp": 1_000_000_000 } }));
    open(&mut provider, &made).unwrap();
    let text = fails(make(&mut provider), ProviderErrorKind::Denied);
    assert!(text.contains("has expired"), "{text}");

    setup.options.key = "missing".to_owned();
    let text = fails(make(&mut setup.provider()), ProviderErrorKind::KeyMissing);
    assert!(text.contains("\"missing\""), "{text}");
    let gone = format!("postgresql/{}?alg=RSA-OAEP-256", "0".repeat(32));
    let key = name("user_pii");
    let error = provider.open(&id(&key, 1), &gone, made.wrapped.as_deref());
    fails(error, ProviderErrorKind::KeyMissing);
}

#[test]
fn what_the_login_may_not_do_is_told() {
    let setup = setup!();
    let mut provider = setup.provider();
    // The least rights.
    setup.permit(&["get", "wrapKey", "unwrapKey"]);
    let made = make(&mut provider).unwrap();
    open(&mut provider, &made).unwrap();
    rewrap(&mut provider, &made).unwrap();
    check(&mut provider).unwrap();

    setup.permit(&["get", "unwrapKey"]);
    open(&mut provider, &made).unwrap();
    let text = fails(make(&mut provider), ProviderErrorKind::WriteDenied);
    assert!(text.contains("operation wrapKey"), "{text}");
    setup.permit(&["get", "wrapKey"]);
    let text = fails(open(&mut provider, &made), ProviderErrorKind::Denied);
    assert!(text.contains("Key Vault Crypto Service Encryption User"), "{text}");
    setup.permit(&["wrapKey", "unwrapKey"]);
    let text = fails(make(&mut provider), ProviderErrorKind::Denied);
    assert!(text.contains("operation get"), "{text}");

    let firewall = json!({ "error": {
        "code": "Forbidden",
        "message": LEAK,
        "innererror": { "code": "ForbiddenByFirewall" },
    } });
    setup.fault("/unwrapkey$", 1, json!({ "status": 403, "body": firewall.to_string() }));
    let text = fails(open(&mut provider, &made), ProviderErrorKind::Denied);
    assert!(text.contains("firewall"), "{text}");
}

#[test]
fn a_token_is_kept_until_it_ends_or_is_refused() {
    let setup = setup!();
    setup.fake.control("settings", &json!({ "token_lifetime": 2 }));
    let mut provider = setup.provider();
    let made = make(&mut provider).unwrap();
    for _ in 0..3 {
        open(&mut provider, &made).unwrap();
    }
    assert_eq!(setup.requests("/token"), 1);
    std::thread::sleep(Duration::from_millis(1900));
    open(&mut provider, &made).unwrap();
    assert_eq!(setup.requests("/token"), 1);

    setup.fake.control("settings", &json!({ "token_lifetime": 3600 }));
    let mut provider = setup.provider();
    open(&mut provider, &made).unwrap();
    setup.fake.control("revoke", &json!({}));
    setup.requests("");
    open(&mut provider, &made).unwrap();
    assert_eq!(setup.requests("POST"), 3);
    // Tokens for another service are of no use.
    setup.fake.control("resource", &json!({ "is": "https://managedhsm.azure.net" }));
    let text = fails(open(&mut provider, &made), ProviderErrorKind::LoginFailed);
    assert!(text.contains("does not accept the access token"), "{text}");
    assert_eq!(setup.requests("/unwrapkey"), 2);
}

#[test]
fn a_client_secret_that_is_refused_is_an_outage() {
    let mut setup = setup!();
    let made = make(&mut setup.provider()).unwrap();
    let good = fs::read_to_string(&setup.options.client_secret_file).unwrap();
    fs::write(&setup.options.client_secret_file, LEAK).unwrap();
    let text = fails(open(&mut setup.provider(), &made), ProviderErrorKind::LoginFailed);
    assert!(text.contains("invalid_client, AADSTS7000215"), "{text}");
    for contents in ["", "two\nlines", "\u{e4}"] {
        fs::write(&setup.options.client_secret_file, contents).unwrap();
        fails(open(&mut setup.provider(), &made), ProviderErrorKind::LoginFailed);
    }
    fs::remove_file(&setup.options.client_secret_file).unwrap();
    fails(open(&mut setup.provider(), &made), ProviderErrorKind::LoginFailed);
    fs::write(&setup.options.client_secret_file, format!("{good}\n")).unwrap();
    open(&mut setup.provider(), &made).unwrap();

    for (fault, kind, tries) in [
        (json!({ "status": 400, "body": LEAK }), ProviderErrorKind::LoginFailed, 1),
        (json!({ "status": 200, "body": LEAK }), ProviderErrorKind::LoginFailed, 1),
        (json!({ "merge": { "access_token": "" } }), ProviderErrorKind::LoginFailed, 1),
        (json!({ "status": 503, "body": LEAK }), ProviderErrorKind::Unreachable, 4),
        (json!({ "status": 429, "body": LEAK }), ProviderErrorKind::Throttled, 4),
    ] {
        setup.fault("/oauth2/v2.0/token$", tries, fault);
        fails(open(&mut setup.provider(), &made), kind);
        open(&mut setup.provider(), &made).unwrap();
    }
    setup.options.tenant_id = "contoso.example".to_owned();
    let text = fails(open(&mut setup.provider(), &made), ProviderErrorKind::LoginFailed);
    assert!(text.contains("AADSTS90002"), "{text}");
}

#[test]
fn a_workload_logs_in_with_the_token_of_its_platform() {
    let mut setup = setup!();
    let made = make(&mut setup.provider()).unwrap();
    let workload = json!({ "id": CLIENT, "subject": "system:serviceaccount:db:postgresql" });
    let token = setup.fake.control("workload", &workload)["token"].as_str().unwrap().to_owned();
    setup.options.client_secret_file = String::new();
    setup.options.federated_token_file = text(setup.file("token"));
    fs::write(setup.file("token"), format!("{token}\n")).unwrap();
    let mut provider = setup.provider();
    open(&mut provider, &made).unwrap();

    let forged = format!("{}AAAAAAAA", &token[..token.len() - 8]);
    fs::write(setup.file("token"), &forged).unwrap();
    open(&mut provider, &made).unwrap();
    let text = fails(open(&mut setup.provider(), &made), ProviderErrorKind::LoginFailed);
    assert!(text.contains("AADSTS700027") && !text.contains(&forged[..8]), "{text}");
    // It is read anew for each login.
    fs::write(setup.file("token"), &token).unwrap();
    setup.fake.control("revoke", &json!({}));
    open(&mut provider, &made).unwrap();
}

/// What a provider comes to in an environment of its own, which is [`CREDENTIALS_TEST`] run again: "ok",
/// or the error's kind and text.
fn outcome(options: &Value, environment: &[(&str, &str)]) -> String {
    const NAMES: [&str; 7] = [
        "AZURE_AUTHORITY_HOST",
        "AZURE_CLIENT_ID",
        "AZURE_FEDERATED_TOKEN_FILE",
        "AZURE_POD_IDENTITY_AUTHORITY_HOST",
        "AZURE_TENANT_ID",
        "IDENTITY_ENDPOINT",
        "IDENTITY_HEADER",
    ];
    let mut command = Command::new(env::current_exe().unwrap());
    command.args(["--exact", CREDENTIALS_TEST, "--nocapture"]);
    for name in NAMES {
        command.env_remove(name);
    }
    let output = command
        .env(ELSEWHERE, options.to_string())
        .envs(environment.iter().copied())
        .output()
        .unwrap();
    let output = String::from_utf8(output.stdout).unwrap();
    let outcome = output.split("outcome: ").nth(1).expect("the test ran");
    outcome.lines().next().unwrap().to_owned()
}

/// The variable with the options of a provider, in the process that [`outcome`] starts.
const ELSEWHERE: &str = "AZURE_KEY_VAULT_TEST_OPTIONS";

/// What a provider with these options comes to here.
fn outcome_here(options: &str) -> String {
    let options: AzureKeyVaultOptions = serde_json::from_str(options).unwrap();
    let limits = RequestLimits::default();
    let provider = AzureKeyVaultProvider::new(&options, limits, Box::new(|| false));
    let result = provider.and_then(|mut provider| {
        let made = make(&mut provider)?;
        open(&mut provider, &made)
    });
    match result {
        Ok(()) => "ok".to_owned(),
        Err(error) => format!("{:?} {error} / {:?}", error.kind, error.hint),
    }
}

const CREDENTIALS_TEST: &str = "the_environment_tells_where_credentials_are";

#[test]
fn the_environment_tells_where_credentials_are() {
    if let Ok(options) = env::var(ELSEWHERE) {
        return println!("outcome: {}", outcome_here(&options));
    }
    let setup = setup!();
    let AzureKeyVaultOptions { address, key, ca_file, .. } = &setup.options;
    let options = json!({ "address": address, "key": key, "ca_file": ca_file });
    let workload = json!({ "id": CLIENT, "subject": "system:serviceaccount:db:postgresql" });
    let token = setup.fake.control("workload", &workload);
    let token_file = text(setup.file("token"));
    fs::write(&token_file, token["token"].as_str().unwrap()).unwrap();

    // As the webhook of Microsoft Entra Workload ID sets it in a pod.
    let workload = [
        ("AZURE_TENANT_ID", TENANT),
        ("AZURE_CLIENT_ID", CLIENT),
        ("AZURE_FEDERATED_TOKEN_FILE", token_file.as_str()),
        ("AZURE_AUTHORITY_HOST", address.as_str()),
    ];
    assert_eq!(outcome(&options, &workload), "ok");
    let text = outcome(&options, &workload[1..]);
    assert!(text.starts_with("Configuration") && text.contains("\"tenant_id\""), "{text}");

    let machine = setup.fake.machine_address();
    let metadata = [("AZURE_POD_IDENTITY_AUTHORITY_HOST", machine.as_str())];
    setup.requests("");
    assert_eq!(outcome(&options, &metadata), "ok");
    assert_eq!(setup.requests("/metadata/identity/oauth2/token"), 1);
    setup.fake.control("identity", &json!({ "header": LEAK }));
    let endpoint = format!("{machine}/msi/token");
    let app = [("IDENTITY_ENDPOINT", endpoint.as_str()), ("IDENTITY_HEADER", LEAK)];
    assert_eq!(outcome(&options, &app), "ok");
    assert_eq!(setup.requests("/msi/token"), 1);

    // The identity may be one of several.
    let mut with_client = options.clone();
    for (client, is_good) in [(MANAGED_IDENTITY, true), (CLIENT, false)] {
        with_client["client_id"] = client.into();
        for environment in [&metadata[..], &app[..]] {
            let text = outcome(&with_client, environment);
            assert_eq!(text == "ok", is_good, "{text}");
            assert!(is_good || text.contains("client id"), "{text}");
        }
    }

    // No endpoint, or not one to send a header to.
    let nowhere = "http://127.0.0.1:9";
    let text = outcome(&options, &[("AZURE_POD_IDENTITY_AUTHORITY_HOST", nowhere)]);
    assert!(text.starts_with("Unreachable") && text.contains("client secret"), "{text}");
    let elsewhere = [("IDENTITY_ENDPOINT", "http://10.0.0.1/msi"), ("IDENTITY_HEADER", LEAK)];
    let text = outcome(&options, &elsewhere);
    assert!(text.starts_with("LoginFailed") && text.contains("IDENTITY_ENDPOINT"), "{text}");
    assert!(!text.contains(LEAK), "{text}");
    setup.fake.control("identity", &json!({ "missing": true }));
    let text = outcome(&options, &metadata);
    assert!(text.starts_with("LoginFailed") && text.contains("Assign an identity"), "{text}");
    // While the service is updated it says so.
    setup.fake.control("identity", &json!({ "missing": false }));
    for status in [404, 410, 500] {
        setup.fault("/metadata/", 2, json!({ "status": status, "body": LEAK }));
        assert_eq!(outcome(&options, &metadata), "ok");
    }
}

#[test]
fn answers_that_make_no_sense_are_not_used() {
    let setup = setup!();
    let mut provider = setup.provider();
    let made = make(&mut provider).unwrap();
    let kid = format!("{}/keys/postgresql/{}", setup.fake.address(), "0".repeat(32));
    for (path, fault) in [
        ("/wrapkey$", json!({ "kid": kid })),
        ("/wrapkey$", json!({ "kid": "postgresql" })),
        ("/wrapkey$", json!({ "kid": null })),
        ("/wrapkey$", json!({ "value": "!" })),
        ("/wrapkey$", json!({ "value": "" })),
        ("/keys/postgresql$", json!({ "key": {} })),
        (
            "/keys/postgresql$",
            json!({ "key": { "kid": kid.replace("postgresql", "x"), "kty": "RSA" } }),
        ),
        ("/unwrapkey$", json!({ "value": null })),
        ("/unwrapkey$", json!({ "value": "a=" })),
    ] {
        setup.fault(path, 1, json!({ "merge": fault }));
        match path {
            "/unwrapkey$" => fails(open(&mut provider, &made), ProviderErrorKind::AnswerInvalid),
            _ => fails(make(&mut provider), ProviderErrorKind::AnswerInvalid),
        };
    }
    setup.fault("/unwrapkey$", 1, json!({ "merge": { "value": "AAAA" } }));
    fails(open(&mut provider, &made), ProviderErrorKind::KeyLengthWrong);
}

#[test]
fn what_is_worth_sending_again_is_sent_again() {
    let setup = setup!();
    let mut provider = setup.provider();
    let made = make(&mut provider).unwrap();
    let throttled = json!({ "status": 429, "headers": { "Retry-After": "1" }, "body": LEAK });
    for (fault, kind, tries) in [
        (throttled, ProviderErrorKind::Throttled, 4),
        (json!({ "status": 500, "body": LEAK }), ProviderErrorKind::Unreachable, 4),
        (json!({ "status": 503, "body": LEAK }), ProviderErrorKind::Unreachable, 4),
        (json!({ "cut": 40 }), ProviderErrorKind::Unreachable, 4),
        (json!({ "status": 200, "body": LEAK }), ProviderErrorKind::AnswerInvalid, 1),
        (
            json!({ "status": 307, "headers": { "Location": "/x" } }),
            ProviderErrorKind::AnswerInvalid,
            1,
        ),
        (json!({ "status": 400, "body": LEAK }), ProviderErrorKind::AnswerInvalid, 1),
        (json!({ "status": 403, "body": LEAK }), ProviderErrorKind::AnswerInvalid, 1),
        (json!({ "status": 404, "body": LEAK }), ProviderErrorKind::AnswerInvalid, 1),
    ] {
        setup.requests("");
        setup.fault("/unwrapkey$", tries, fault.clone());
        let started = Instant::now();
        fails(open(&mut provider, &made), kind);
        println!("{fault}: {kind:?} after {:?}", started.elapsed());
        assert_eq!(setup.requests("/unwrapkey"), tries as usize, "{fault}");
        if tries > 1 {
            setup.fault("/unwrapkey$", 2, fault);
            open(&mut provider, &made).unwrap();
        }
    }
}

#[test]
fn a_service_that_is_gone_fails_in_time() {
    let mut setup = setup!();
    setup.limits.total = Duration::from_secs(2);
    let mut provider = setup.provider();
    let made = make(&mut provider).unwrap();
    let timed = |provider: &mut AzureKeyVaultProvider| {
        let started = Instant::now();
        (open(provider, &made), started.elapsed())
    };
    setup.fault("/unwrapkey$", 1, json!({ "delay": 4 }));
    let (slow, took) = timed(&mut provider);
    println!("an answer that takes too long: {took:?}");
    fails(slow, ProviderErrorKind::TimedOut);
    assert!((1900..2200).contains(&took.as_millis()), "{took:?}");

    // While it waits for a token.
    setup.fault("/token$", 1, json!({ "delay": 4 }));
    let cancel_at = Instant::now() + Duration::from_millis(300);
    let mut cancelled = setup.interruptible_provider(Box::new(move || Instant::now() >= cancel_at));
    let (result, took) = timed(&mut cancelled);
    println!("cancelled 300 ms after the beginning: {took:?}");
    fails(result, ProviderErrorKind::Interrupted);
    assert!((250..400).contains(&took.as_millis()), "{took:?}");

    setup.fake.process().stop();
    let (stopped, took) = timed(&mut provider);
    println!("stopped: {took:?}");
    fails(stopped, ProviderErrorKind::Unreachable);
    assert!(took < Duration::from_secs(2), "{took:?}");
}

#[test]
fn the_services_certificate_is_checked() {
    let mut setup = setup!();
    let made = make(&mut setup.provider()).unwrap();
    let good = setup.options.ca_file.clone();
    setup.options.ca_file = text(setup.file("ca.pem"));
    fs::write(&setup.options.ca_file, harness::openbao::unrelated_authority()).unwrap();
    let text = fails(open(&mut setup.provider(), &made), ProviderErrorKind::Unreachable);
    // It is not about who logs in.
    assert!(!text.contains("client id"), "{text}");
    setup.options.ca_file = String::new();
    fails(open(&mut setup.provider(), &made), ProviderErrorKind::Unreachable);
    setup.options.ca_file = good;
    open(&mut setup.provider(), &made).unwrap();
}

#[test]
fn settings_are_checked() {
    let good = AzureKeyVaultOptions {
        address: "https://example.vault.azure.net".to_owned(),
        key: "postgresql".to_owned(),
        ..AzureKeyVaultOptions::default()
    };
    let new = |options: &AzureKeyVaultOptions| {
        AzureKeyVaultProvider::new(options, RequestLimits::default(), Box::new(|| false)).map(drop)
    };
    new(&good).unwrap();
    let with = |change: fn(&mut AzureKeyVaultOptions)| {
        let mut options = good.clone();
        change(&mut options);
        fails(new(&options), ProviderErrorKind::Configuration)
    };
    for (message, field) in [
        (with(|options| options.address.clear()), "address"),
        (with(|options| options.address = "http://example.com".to_owned()), "address"),
        (with(|options| options.key.clear()), "key"),
        (with(|options| options.key = "keys/postgresql".to_owned()), "key"),
        (with(|options| options.algorithm = "RSA1_5".to_owned()), "algorithm"),
        (with(|options| options.ca_file = "ca.pem".to_owned()), "ca_file"),
    ] {
        assert!(message.contains(&format!("\"{field}\"")), "{message}");
    }
}
