//! The provider `gcp_kms`, against the fake of Google Cloud KMS that Google's own client takes for
//! the service.

#![expect(clippy::unwrap_used, reason = "a test fails by a panic")]

mod contract;

use std::env;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use contract::{Subject, id, keeps_the_contract, name};
use harness::fakes::{Fake, Service};
use keyring::call::RequestLimits;
use keyring::gcp_kms::{GcpKmsOptions, GcpKmsProvider};
use keyring::provider::{Interrupt, MadeVersion, Provider, ProviderError, ProviderErrorKind};
use serde_json::{Value, json};
use tempfile::TempDir;

const RING: &str = "projects/example/locations/europe-west3/keyRings/ring";
const EMAIL: &str = "postgresql@example.iam.gserviceaccount.com";

/// What a fault's answer says, for a look whether any of it gets into an error.
const LEAK: &str = "hunter2";

macro_rules! setup {
    () => {
        match Setup::new() {
            Some(setup) => setup,
            None => {
                let test = std::thread::current();
                harness::skip(test.name().unwrap_or("gcp_kms"), "build/python/fakes is missing");
                return;
            }
        }
    };
}

/// A fake with a key, and a provider's settings with a service account that may use it.
struct Setup {
    fake: Fake,
    folder: TempDir,
    options: GcpKmsOptions,
    limits: RequestLimits,
}

impl Setup {
    fn new() -> Option<Self> {
        let fake = Fake::start(Service::GcpKms)?;
        let folder = tempfile::tempdir().unwrap();
        let options = GcpKmsOptions {
            key: format!("{RING}/cryptoKeys/postgresql"),
            endpoint: fake.address(),
            ca_file: text(fake.ca_file()),
            credentials_file: text(folder.path().join("credentials.json")),
        };
        let setup = Self { fake, folder, options, limits: RequestLimits::default() };
        setup.log_in_with_service_account();
        let parent = RING.trim_end_matches("/keyRings/ring");
        setup.fake.administer("POST", &format!("/v1/{parent}/keyRings?keyRingId=ring"), &json!({}));
        setup.create_key("postgresql", "ENCRYPT_DECRYPT");
        Some(setup)
    }

    fn log_in_with_service_account(&self) {
        let file = self.fake.control("service_account", &json!({ "email": EMAIL }));
        self.write_credentials(&file);
    }

    /// The configuration of workload identity federation, with a source for the workload's token.
    fn workload(&self, impersonate: bool) -> (Value, String) {
        let mut workload = json!({ "subject": "pod" });
        if impersonate {
            workload["impersonate"] = EMAIL.into();
        }
        let made = self.fake.control("workload", &workload);
        (made["file"].clone(), made["token"].as_str().unwrap().to_owned())
    }

    fn write_credentials(&self, contents: &Value) {
        fs::write(&self.options.credentials_file, contents.to_string()).unwrap();
    }

    fn create_key(&self, name: &str, purpose: &str) {
        let path = format!("/v1/{RING}/cryptoKeys?cryptoKeyId={name}");
        self.fake.administer("POST", &path, &json!({ "purpose": purpose }));
    }

    /// Makes a new version and has it wrap from now on.
    fn rotate_key(&self, number: u32) {
        let key = format!("/v1/{RING}/cryptoKeys/postgresql");
        self.fake.administer("POST", &format!("{key}/cryptoKeyVersions"), &json!({}));
        let primary = json!({ "cryptoKeyVersionId": number.to_string() });
        self.fake.administer("POST", &format!("{key}:updatePrimaryVersion"), &primary);
    }

    fn set_state(&self, number: u32, state: &str) {
        let version = format!("/v1/{RING}/cryptoKeys/postgresql/cryptoKeyVersions/{number}");
        let path = format!("{version}?updateMask=state");
        self.fake.administer("PATCH", &path, &json!({ "state": state }));
    }

    fn permit(&self, permissions: &[&str]) {
        self.fake.control("permissions", &json!({ "of": EMAIL, "are": permissions }));
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

    fn provider(&self) -> GcpKmsProvider {
        self.interruptible_provider(Box::new(|| false))
    }

    fn interruptible_provider(&self, interrupt: Box<dyn Interrupt>) -> GcpKmsProvider {
        GcpKmsProvider::new(&self.options, self.limits, interrupt).unwrap()
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
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

#[track_caller]
fn fails<T>(result: Result<T, ProviderError>, kind: ProviderErrorKind) -> String {
    let error = result.err().expect("an error");
    let text = format!("{error} / {}", error.hint.as_deref().unwrap_or_default());
    assert_eq!(error.kind, kind, "{text}");
    for secret in [LEAK, "ya29.", "eyJ", "PRIVATE KEY", "Bearer"] {
        assert!(!format!("{error:?}").contains(secret), "{error:?}");
    }
    text
}

#[test]
fn it_keeps_the_contract() {
    let setup = setup!();
    keeps_the_contract(&Subject {
        provider: &|interrupt| Box::new(setup.interruptible_provider(interrupt)),
        is_envelope: true,
        binds_version: true,
    });
    let mut provider = setup.provider();
    provider.make(&id(&name("k"), 1)).unwrap();
    contract::tells_when_certificates_end(&provider, false);
}

#[test]
fn a_key_is_wrapped_again_by_the_newest_version() {
    let setup = setup!();
    let mut provider = setup.provider();
    let made = make(&mut provider).unwrap();
    assert_eq!(made.reference, "cryptoKeys/postgresql/cryptoKeyVersions/1");
    setup.rotate_key(2);
    open(&mut provider, &made).unwrap();

    let (key, wrapped) = (name("user_pii"), made.wrapped.as_deref());
    let again = provider.rewrap(&id(&key, 1), &made.reference, wrapped).unwrap().unwrap();
    assert_eq!(again.reference, "cryptoKeys/postgresql/cryptoKeyVersions/2");
    setup.set_state(1, "DISABLED");
    let text = fails(open(&mut provider, &made), ProviderErrorKind::Denied);
    assert!(text.contains("gcloud kms keys versions list"), "{text}");
    let opened = provider.open(&id(&key, 1), &again.reference, Some(&again.wrapped)).unwrap();
    assert_eq!(opened.expose(), made.key.expose());
    setup.set_state(1, "ENABLED");
    open(&mut provider, &made).unwrap();

    setup.set_state(2, "DISABLED");
    fails(make(&mut provider), ProviderErrorKind::Denied);
    fails(provider.check(&id(&key, 1)), ProviderErrorKind::Denied);
}

#[test]
fn another_key_of_the_ring_takes_over() {
    let mut setup = setup!();
    let made = make(&mut setup.provider()).unwrap();
    setup.create_key("successor", "ENCRYPT_DECRYPT");
    setup.options.key = format!("{RING}/cryptoKeys/successor");
    let mut provider = setup.provider();
    open(&mut provider, &made).unwrap();
    let key = name("user_pii");
    let again = provider.rewrap(&id(&key, 1), &made.reference, made.wrapped.as_deref()).unwrap();
    let again = again.unwrap();
    assert_eq!(again.reference, "cryptoKeys/successor/cryptoKeyVersions/1");
    let opened = provider.open(&id(&key, 1), &again.reference, Some(&again.wrapped)).unwrap();
    assert_eq!(opened.expose(), made.key.expose());
    // What the one wrapped, the other doesn't open.
    let error = provider.open(&id(&key, 1), &again.reference, made.wrapped.as_deref());
    fails(error, ProviderErrorKind::WrappedKeyInvalid);
}

#[test]
fn the_check_tells_what_is_there() {
    let mut setup = setup!();
    let probe = name("probe");
    let findings = setup.provider().check(&id(&probe, 1)).unwrap();
    let findings: Vec<_> = findings.iter().map(|f| (f.what, f.detail.as_str())).collect();
    let file = &setup.options.credentials_file;
    assert_eq!(
        findings,
        [
            (
                "login",
                &*format!("credentials file \"{file}\" gave an access token, which is accepted")
            ),
            (
                "key encryption key",
                "\"cryptoKeys/postgresql/cryptoKeyVersions/1\" is the primary version, enabled, in \
                 software"
            ),
            ("round trip", "a new key was wrapped and unwrapped"),
        ]
    );

    // The least rights: not even a look at the key.
    let least =
        ["cloudkms.cryptoKeyVersions.useToEncrypt", "cloudkms.cryptoKeyVersions.useToDecrypt"];
    setup.permit(&least);
    let findings = setup.provider().check(&id(&probe, 1)).unwrap();
    assert!(findings[1].detail.contains("may not look"), "{findings:?}");

    setup.permit(&["*"]);
    setup.create_key("signing", "ASYMMETRIC_SIGN");
    setup.options.key = format!("{RING}/cryptoKeys/signing");
    let text = fails(setup.provider().check(&id(&probe, 1)), ProviderErrorKind::Configuration);
    assert!(text.contains("ENCRYPT_DECRYPT"), "{text}");
    fails(make(&mut setup.provider()), ProviderErrorKind::Denied);
}

#[test]
fn what_the_login_may_not_do_is_told() {
    let mut setup = setup!();
    let mut provider = setup.provider();
    let made = make(&mut provider).unwrap();
    setup.permit(&["cloudkms.cryptoKeyVersions.useToDecrypt"]);
    open(&mut provider, &made).unwrap();
    let text = fails(make(&mut provider), ProviderErrorKind::WriteDenied);
    assert!(text.contains("cloudkms.cryptoKeyVersions.useToEncrypt"), "{text}");
    setup.permit(&["cloudkms.cryptoKeyVersions.useToEncrypt"]);
    let text = fails(open(&mut provider, &made), ProviderErrorKind::Denied);
    assert!(text.contains("roles/cloudkms.cryptoKeyEncrypterDecrypter"), "{text}");

    setup.permit(&["*"]);
    setup.options.key = format!("{RING}/cryptoKeys/missing");
    let text = fails(make(&mut setup.provider()), ProviderErrorKind::KeyMissing);
    assert!(text.contains("\"missing\""), "{text}");
}

#[test]
fn a_token_is_kept_until_it_ends() {
    let setup = setup!();
    setup.fake.control("settings", &json!({ "token_lifetime": 2 }));
    let mut provider = setup.provider();
    let made = make(&mut provider).unwrap();
    for _ in 0..3 {
        open(&mut provider, &made).unwrap();
    }
    assert_eq!(setup.requests("POST /token"), 1);
    std::thread::sleep(Duration::from_millis(1900));
    open(&mut provider, &made).unwrap();
    assert_eq!(setup.requests("POST /token"), 1);

    // The old one is used to its end when there is no new one, and not longer.
    setup.fake.control("settings", &json!({ "token_lifetime": 10 }));
    std::thread::sleep(Duration::from_millis(1900));
    open(&mut provider, &made).unwrap();
    fs::rename(&setup.options.credentials_file, setup.file("elsewhere")).unwrap();
    std::thread::sleep(Duration::from_millis(9200));
    open(&mut provider, &made).unwrap();
    std::thread::sleep(Duration::from_millis(900));
    fails(open(&mut provider, &made), ProviderErrorKind::LoginFailed);
    fs::rename(setup.file("elsewhere"), &setup.options.credentials_file).unwrap();
    open(&mut provider, &made).unwrap();
}

#[test]
fn a_token_that_is_refused_is_replaced_once() {
    let setup = setup!();
    let mut provider = setup.provider();
    let made = make(&mut provider).unwrap();
    setup.fake.control("revoke", &json!({}));
    setup.requests("");
    open(&mut provider, &made).unwrap();
    assert_eq!(setup.requests("POST"), 3);

    let unauthorized = json!({ "status": 401, "body": LEAK });
    setup.fault(":decrypt$", 9, unauthorized);
    let text = fails(open(&mut provider, &made), ProviderErrorKind::LoginFailed);
    assert!(text.contains("does not accept the access token"), "{text}");
    assert_eq!(setup.requests(":decrypt"), 2);
}

#[test]
fn a_service_account_that_is_refused_is_an_outage() {
    let setup = setup!();
    let made = make(&mut setup.provider()).unwrap();
    let opens = || open(&mut setup.provider(), &made);
    // A key of the account that has been replaced since.
    setup.fake.control("service_account", &json!({ "email": EMAIL }));
    let text = fails(opens(), ProviderErrorKind::LoginFailed);
    assert!(text.contains("invalid_grant") && text.contains(EMAIL), "{text}");

    let good = setup.fake.control("service_account", &json!({ "email": EMAIL }));
    let with = |field: &str, value: Value| {
        let mut file = good.clone();
        file[field] = value;
        setup.write_credentials(&file);
        fails(opens(), ProviderErrorKind::LoginFailed)
    };
    assert!(with("type", "authorized_user".into()).contains("external_account"));
    assert!(with("type", Value::Null).contains("line 1"));
    assert!(with("private_key", LEAK.into()).contains("private_key"));
    assert!(with("private_key", Value::Null).contains("line 1"));
    assert!(with("token_uri", "http://example.com/token".into()).contains("token_uri"));
    assert!(with("private_key_id", "other".into()).contains("invalid_grant"));
    for contents in ["", LEAK, "[]", "{}"] {
        fs::write(&setup.options.credentials_file, contents).unwrap();
        fails(opens(), ProviderErrorKind::LoginFailed);
    }
    fs::remove_file(&setup.options.credentials_file).unwrap();
    fails(opens(), ProviderErrorKind::LoginFailed);

    setup.write_credentials(&good);
    opens().unwrap();
    for (fault, kind, tries) in [
        (json!({ "status": 403, "body": LEAK }), ProviderErrorKind::LoginFailed, 1),
        (json!({ "status": 200, "body": LEAK }), ProviderErrorKind::LoginFailed, 1),
        (json!({ "merge": { "access_token": "a\nb" } }), ProviderErrorKind::LoginFailed, 1),
        (json!({ "status": 503, "body": LEAK }), ProviderErrorKind::Unreachable, 4),
        (json!({ "status": 429, "body": LEAK }), ProviderErrorKind::Throttled, 4),
    ] {
        setup.fault("^/token$", tries, fault);
        fails(opens(), kind);
        opens().unwrap();
    }
}

#[test]
fn a_workload_logs_in_with_the_token_of_its_platform() {
    let setup = setup!();
    let made = make(&mut setup.provider()).unwrap();
    let opens = || open(&mut setup.provider(), &made);
    for impersonate in [false, true] {
        let (mut file, token) = setup.workload(impersonate);
        let token_file = setup.file("token");
        file["credential_source"] = json!({ "file": token_file });
        setup.write_credentials(&file);
        fs::write(&token_file, format!("{token}\n")).unwrap();
        setup.requests("");
        opens().unwrap();
        assert_eq!(setup.requests("generateAccessToken"), usize::from(impersonate));

        fs::write(&token_file, json!({ "token": token }).to_string()).unwrap();
        fails(opens(), ProviderErrorKind::LoginFailed);
        let format = json!({ "type": "json", "subject_token_field_name": "token" });
        file["credential_source"]["format"] = format.clone();
        setup.write_credentials(&file);
        opens().unwrap();

        // From an address of the machine, as the clouds' metadata services are.
        let machine = setup.fake.machine_address();
        let url = format!("{machine}/token");
        file["credential_source"] =
            json!({ "url": url, "headers": { "Metadata": "True" }, "format": format });
        setup.write_credentials(&file);
        setup.fault(
            "^/token$",
            1,
            json!({ "status": 200, "body": json!({ "token": token }).to_string() }),
        );
        opens().unwrap();
        setup.fault("^/token$", 1, json!({ "status": 200, "body": LEAK }));
        fails(opens(), ProviderErrorKind::LoginFailed);
        setup.fault("^/token$", 1, json!({ "status": 404, "body": LEAK }));
        fails(opens(), ProviderErrorKind::LoginFailed);
        file["credential_source"]["url"] = "http://example.com/token".into();
        setup.write_credentials(&file);
        assert!(fails(opens(), ProviderErrorKind::LoginFailed).contains("\"url\""));
        file["credential_source"] = json!({ "executable": { "command": "/bin/true" } });
        setup.write_credentials(&file);
        fails(opens(), ProviderErrorKind::LoginFailed);
    }

    // The workload may not act as the service account.
    let (mut file, token) = setup.workload(true);
    fs::write(setup.file("token"), token).unwrap();
    file["credential_source"] = json!({ "file": setup.file("token") });
    setup.write_credentials(&file);
    setup.fake.control("permissions", &json!({ "of": "pod", "are": [] }));
    let text = fails(opens(), ProviderErrorKind::LoginFailed);
    assert!(text.contains("roles/iam.workloadIdentityUser"), "{text}");
}

/// What a provider comes to in an environment of its own, which is [`CREDENTIALS_TEST`] run again: "ok",
/// or the error's kind and text.
fn outcome(options: &Value, environment: &[(&str, &str)]) -> String {
    let output = Command::new(env::current_exe().unwrap())
        .args(["--exact", CREDENTIALS_TEST, "--nocapture"])
        .env_remove("GOOGLE_APPLICATION_CREDENTIALS")
        .env_remove("GCE_METADATA_HOST")
        .env(ELSEWHERE, options.to_string())
        .envs(environment.iter().copied())
        .output()
        .unwrap();
    let output = String::from_utf8(output.stdout).unwrap();
    let outcome = output.split("outcome: ").nth(1).expect("the test ran");
    outcome.lines().next().unwrap().to_owned()
}

/// The variable with the options of a provider, in the process that [`outcome`] starts.
const ELSEWHERE: &str = "GCP_KMS_TEST_OPTIONS";

/// What a provider with these options comes to here.
fn outcome_here(options: &str) -> String {
    let options: GcpKmsOptions = serde_json::from_str(options).unwrap();
    let mut provider =
        GcpKmsProvider::new(&options, RequestLimits::default(), Box::new(|| false)).unwrap();
    match make(&mut provider).and_then(|made| open(&mut provider, &made)) {
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
    let GcpKmsOptions { key, endpoint, ca_file, credentials_file } = &setup.options;
    let options = json!({ "key": key, "endpoint": endpoint, "ca_file": ca_file });
    let machine = setup.fake.machine_address();
    let metadata = [("GCE_METADATA_HOST", machine.trim_start_matches("http://"))];
    let file = [("GOOGLE_APPLICATION_CREDENTIALS", credentials_file.as_str()), metadata[0]];
    assert_eq!(outcome(&options, &metadata), "ok");
    assert_eq!(setup.requests("/computeMetadata/"), 1);
    assert_eq!(outcome(&options, &file), "ok");
    let requests = setup.fake.control("requests", &json!({})).to_string();
    assert!(
        requests.contains("POST /token") && !requests.contains("computeMetadata"),
        "{requests}"
    );

    let scopes = ["https://www.googleapis.com/auth/devstorage.read_only"];
    setup.fake.control("scopes", &json!({ "are": scopes }));
    let text = outcome(&options, &metadata);
    assert!(text.starts_with("WriteDenied") && text.contains("access scope"), "{text}");
    // No metadata server, or something else in its place.
    let text = outcome(&options, &[("GCE_METADATA_HOST", "127.0.0.1:9")]);
    assert!(text.starts_with("Unreachable") && text.contains("credentials file"), "{text}");
    let text = outcome(&options, &[("GCE_METADATA_HOST", "10.0.0.1")]);
    assert!(text.starts_with("LoginFailed") && text.contains("GCE_METADATA_HOST"), "{text}");
    let token = json!({ "access_token": "x", "expires_in": 60 }).to_string();
    setup.fault("/computeMetadata/", 1, json!({ "status": 200, "body": token }));
    let text = outcome(&options, &metadata);
    assert!(text.starts_with("LoginFailed") && text.contains("isn't one"), "{text}");
    setup.fault("/computeMetadata/", 1, json!({ "status": 404, "body": LEAK }));
    let text = outcome(&options, &metadata);
    assert!(text.starts_with("LoginFailed") && text.contains("service account"), "{text}");
    assert!(!text.contains(LEAK), "{text}");
}

#[test]
fn what_was_changed_on_the_way_is_not_used() {
    let setup = setup!();
    let mut provider = setup.provider();
    let made = make(&mut provider).unwrap();
    for fault in [
        json!({ "ciphertextCrc32c": "1" }),
        json!({ "verifiedPlaintextCrc32c": null }),
        json!({ "verifiedAdditionalAuthenticatedDataCrc32c": false }),
        json!({ "ciphertext": "AAAA" }),
    ] {
        setup.requests("");
        setup.fault(":encrypt$", 4, json!({ "merge": fault }));
        fails(make(&mut provider), ProviderErrorKind::AnswerInvalid);
        assert_eq!(setup.requests(":encrypt"), 4, "{fault}");
        // Once is forgiven.
        setup.fault(":encrypt$", 1, json!({ "merge": fault }));
        make(&mut provider).unwrap();
    }
    let other = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
    for fault in [json!({ "plaintextCrc32c": "1" }), json!({ "plaintext": other })] {
        setup.fault(":decrypt$", 4, json!({ "merge": fault }));
        fails(open(&mut provider, &made), ProviderErrorKind::AnswerInvalid);
        setup.fault(":decrypt$", 1, json!({ "merge": fault }));
        open(&mut provider, &made).unwrap();
    }

    for (path, fault) in [
        (":encrypt$", json!({ "ciphertextCrc32c": null })),
        (":encrypt$", json!({ "ciphertext": "!" })),
        (":encrypt$", json!({ "name": format!("{RING}/cryptoKeys/other/cryptoKeyVersions/1") })),
        (":encrypt$", json!({ "name": "" })),
        (":decrypt$", json!({ "plaintext": "!" })),
        (":decrypt$", json!({ "plaintext": null })),
        (":decrypt$", json!({ "plaintextCrc32c": null })),
    ] {
        setup.fault(path, 1, json!({ "merge": fault }));
        match path {
            ":encrypt$" => fails(make(&mut provider), ProviderErrorKind::AnswerInvalid),
            _ => fails(open(&mut provider, &made), ProviderErrorKind::AnswerInvalid),
        };
    }
    setup.fault(":decrypt$", 1, json!({ "merge": { "plaintext": "AAAA" } }));
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
            json!({ "status": 302, "headers": { "Location": "/x" } }),
            ProviderErrorKind::AnswerInvalid,
            1,
        ),
        (json!({ "status": 400, "body": LEAK }), ProviderErrorKind::AnswerInvalid, 1),
        (json!({ "status": 403, "body": LEAK }), ProviderErrorKind::AnswerInvalid, 1),
        (json!({ "status": 404, "body": LEAK }), ProviderErrorKind::AnswerInvalid, 1),
    ] {
        setup.requests("");
        setup.fault(":decrypt$", tries, fault.clone());
        let started = Instant::now();
        fails(open(&mut provider, &made), kind);
        println!("{fault}: {kind:?} after {:?}", started.elapsed());
        assert_eq!(setup.requests(":decrypt"), tries as usize, "{fault}");
        if tries > 1 {
            setup.fault(":decrypt$", 2, fault);
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
    let timed = |provider: &mut GcpKmsProvider| {
        let started = Instant::now();
        (open(provider, &made), started.elapsed())
    };
    setup.fault(":decrypt$", 1, json!({ "delay": 4 }));
    let (slow, took) = timed(&mut provider);
    println!("an answer that takes too long: {took:?}");
    fails(slow, ProviderErrorKind::TimedOut);
    assert!((1900..2200).contains(&took.as_millis()), "{took:?}");

    // While it waits for a token.
    setup.fault("^/token$", 1, json!({ "delay": 4 }));
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
    fails(open(&mut setup.provider(), &made), ProviderErrorKind::Unreachable);
    setup.options.ca_file = String::new();
    fails(open(&mut setup.provider(), &made), ProviderErrorKind::Unreachable);
    setup.options.ca_file = good;
    open(&mut setup.provider(), &made).unwrap();
}

#[test]
fn settings_are_checked() {
    let good =
        GcpKmsOptions { key: format!("{RING}/cryptoKeys/postgresql"), ..GcpKmsOptions::default() };
    let new = |options: &GcpKmsOptions| {
        GcpKmsProvider::new(options, RequestLimits::default(), Box::new(|| false)).map(drop)
    };
    new(&good).unwrap();
    let with = |change: fn(&mut GcpKmsOptions)| {
        let mut options = good.clone();
        change(&mut options);
        fails(new(&options), ProviderErrorKind::Configuration)
    };
    for (message, field) in [
        (with(|options| options.key.clear()), "key"),
        (with(|options| options.key = "postgresql".to_owned()), "key"),
        (with(|options| options.key.push_str("/cryptoKeyVersions/1")), "key"),
        (with(|options| options.endpoint = "http://example.com".to_owned()), "endpoint"),
        (with(|options| options.ca_file = "ca.pem".to_owned()), "ca_file"),
        (with(|options| options.credentials_file = "key.json".to_owned()), "credentials_file"),
    ] {
        assert!(message.contains(&format!("\"{field}\"")), "{message}");
    }
}
