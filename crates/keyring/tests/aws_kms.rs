//! The provider `aws_kms`, against two simulations of AWS: moto, whose ciphertexts are authenticated,
//! and MiniStack, which checks signatures, clocks, policies and the states of keys. microburst, between
//! the provider and moto, fails in the forms that AWS's models of its services say.

#![expect(clippy::unwrap_used, reason = "a test fails by a panic")]

mod contract;

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use contract::{KEYSPACE, Subject, id, keeps_the_contract, name};
use envelope::DataKey;
use harness::microburst::Microburst;
use harness::ministack::{ACCOUNT, AccessKey, MiniStack, Session};
use harness::moto::Moto;
use keyring::aws_kms::{AwsKmsOptions, AwsKmsProvider};
use keyring::call::RequestLimits;
use keyring::provider::{
    Finding, Interrupt, MadeVersion, Provider, ProviderError, ProviderErrorKind,
};
use keyring::version::{Keyspace, VersionId};
use serde_json::{Value, json};
use tempfile::TempDir;

const REGION: &str = "eu-central-1";

/// Whom the role of [`create_role`] trusts.
const SUBJECT: &str = "system:serviceaccount:db:postgres";

/// The least that a database needs.
fn least_policy() -> Value {
    json!({ "Version": "2012-10-17", "Statement": [
        { "Effect": "Allow", "Action": ["kms:GenerateDataKey", "kms:Decrypt"], "Resource": "*" },
        { "Effect": "Allow", "Action": "kms:DescribeKey", "Resource": "*" },
    ] })
}

/// Makes a role that a web identity may assume.
fn create_role(ministack: &MiniStack) -> String {
    let trust = json!({ "Version": "2012-10-17", "Statement": {
        "Effect": "Allow",
        "Principal": { "Federated": format!("arn:aws:iam::{ACCOUNT}:oidc-provider/oidc.example") },
        "Action": "sts:AssumeRoleWithWebIdentity",
        "Condition": { "StringEquals": { "oidc.example:sub": SUBJECT } },
    } });
    ministack.create_role("database", &trust, &least_policy())
}

macro_rules! component {
    ($start:expr, $name:literal) => {
        match $start {
            Some(component) => component,
            None => {
                let test = thread::current();
                harness::skip(test.name().unwrap(), concat!($name, " could not be had"));
                return;
            }
        }
    };
}

/// Options, and the folder with the files that they name.
struct Setup {
    folder: TempDir,
    options: AwsKmsOptions,
}

impl Setup {
    /// With an access key in a file.
    fn new(address: &str, key_id: &str, access_key: &AccessKey) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let options = AwsKmsOptions {
            key_id: key_id.to_owned(),
            region: REGION.to_owned(),
            endpoint: address.to_owned(),
            credentials_file: text(&folder.path().join("credentials")),
            ..AwsKmsOptions::default()
        };
        let setup = Self { folder, options };
        setup.write_access_key("default", access_key);
        setup
    }

    fn for_moto(address: &str, key_id: &str) -> Self {
        Self::new(address, key_id, &any_access_key())
    }

    fn write_access_key(&self, profile: &str, access_key: &AccessKey) {
        let AccessKey { id, secret } = access_key;
        fs::write(
            self.folder.path().join("credentials"),
            format!("[{profile}]\naws_access_key_id = {id}\naws_secret_access_key = {secret}\n"),
        )
        .unwrap();
    }

    fn provider(&self) -> AwsKmsProvider {
        self.provider_within(RequestLimits::default())
    }

    fn provider_within(&self, limits: RequestLimits) -> AwsKmsProvider {
        AwsKmsProvider::new(&self.options, limits, Box::new(|| false)).unwrap()
    }
}

/// An access key for a simulation that takes any.
fn any_access_key() -> AccessKey {
    AccessKey { id: "AKIAIOSFODNN7EXAMPLE".to_owned(), secret: "hunter2/hunter2".to_owned() }
}

fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

fn make(provider: &mut AwsKmsProvider) -> Result<MadeVersion, ProviderError> {
    provider.make(&id(&name("user_pii"), 1))
}

fn open(provider: &mut AwsKmsProvider, made: &MadeVersion) -> Result<DataKey, ProviderError> {
    provider.open(&id(&name("user_pii"), 1), &made.reference, made.wrapped.as_deref())
}

fn check(provider: &mut AwsKmsProvider) -> Result<Vec<Finding>, ProviderError> {
    provider.check(&id(&name("probe"), 1))
}

/// What the findings say, for each that was found.
fn told(findings: &[Finding]) -> BTreeMap<&str, String> {
    let told = |f: &Finding| format!("{} / {}", f.detail, f.hint.as_deref().unwrap_or_default());
    findings.iter().map(|finding| (finding.what, told(finding))).collect()
}

/// The text of the error, which must be of this kind and have no secret in it.
#[track_caller]
fn fails<T>(result: Result<T, ProviderError>, kind: ProviderErrorKind) -> String {
    let error = result.err().expect("an error");
    let text = format!("{error} / {}", error.hint.as_deref().unwrap_or_default());
    assert_eq!(error.kind, kind, "{text}");
    for secret in ["hunter2", "Signature=", "AWS4-HMAC", "Bearer", "eyJ"] {
        assert!(!text.contains(secret), "{text}");
    }
    text
}

// The contract, and keys

#[test]
fn moto_keeps_the_contract() {
    let moto = component!(Moto::start(), "moto");
    let arn = moto.create_key(REGION, false);
    let key = arn.rsplit('/').next().unwrap();
    let target = json!({ "AliasName": "alias/postgresql", "TargetKeyId": key });
    moto.kms(REGION, "CreateAlias", &target);
    for key_id in [&arn, key, "alias/postgresql"] {
        let setup = Setup::for_moto(&moto.address(), key_id);
        let provider = |interrupt: Box<dyn Interrupt>| -> Box<dyn Provider> {
            let limits = RequestLimits::default();
            Box::new(AwsKmsProvider::new(&setup.options, limits, interrupt).unwrap())
        };
        keeps_the_contract(&Subject {
            provider: &provider,
            is_envelope: true,
            binds_version: true,
        });
        let made = make(&mut setup.provider()).unwrap();
        assert_eq!(made.reference, format!("123456789012:key/{key}"));
    }
}

#[test]
fn a_wrapped_key_of_another_key_is_refused() {
    let moto = component!(Moto::start(), "moto");
    let setup = || Setup::for_moto(&moto.address(), &moto.create_key(REGION, false));
    let (one, other) = (setup(), setup());
    let mut provider = one.provider();
    let made = make(&mut provider).unwrap();
    let of_other = make(&mut other.provider()).unwrap();
    // The reference of one key with what another wrapped.
    let mixed = MadeVersion { wrapped: of_other.wrapped.clone(), ..made };
    assert!(!open(&mut provider, &mixed).unwrap_err().kind.is_outage());
    // A version of the other key opens all the same: the reference decides, not the settings.
    assert_eq!(open(&mut provider, &of_other).unwrap().expose(), of_other.key.expose());
}

#[test]
fn a_rewrap_moves_a_version_to_the_key_that_an_alias_names_now() {
    let ministack = component!(MiniStack::start(), "MiniStack");
    let (old, new) = (ministack.create_key(REGION, false), ministack.create_key(REGION, false));
    let alias = |action, key: &str| {
        let target = json!({ "AliasName": "alias/postgresql", "TargetKeyId": key });
        ministack.kms(REGION, action, &target);
    };
    alias("CreateAlias", &old);
    let user = ministack.create_user(
        "database",
        &json!({ "Statement": { "Effect": "Allow", "Action": "kms:*", "Resource": "*" } }),
    );
    let setup = Setup::new(&ministack.address(), "alias/postgresql", &user);
    let mut provider = setup.provider();
    let made = make(&mut provider).unwrap();
    assert!(old.ends_with(&made.reference), "{}", made.reference);

    alias("UpdateAlias", &new);
    assert_eq!(open(&mut provider, &made).unwrap().expose(), made.key.expose());
    let version = name("user_pii");
    let again = provider
        .rewrap(&id(&version, 1), &made.reference, made.wrapped.as_deref())
        .unwrap()
        .unwrap();
    assert!(new.ends_with(&again.reference), "{}", again.reference);
    assert_ne!(Some(&again.wrapped), made.wrapped.as_ref());
    // The old key is not needed any more.
    ministack.kms(REGION, "DisableKey", &json!({ "KeyId": old }));
    let opened = provider.open(&id(&version, 1), &again.reference, Some(&again.wrapped)).unwrap();
    assert_eq!(opened.expose(), made.key.expose());
    fails(open(&mut provider, &made), ProviderErrorKind::Denied);
}

#[test]
fn a_server_in_another_region_uses_its_own_replica() {
    let ministack = component!(MiniStack::start(), "MiniStack");
    let primary = ministack.create_key(REGION, true);
    let replicate = json!({ "KeyId": primary, "ReplicaRegion": "us-west-2" });
    ministack.kms(REGION, "ReplicateKey", &replicate);
    let replica = primary.replace(REGION, "us-west-2");
    let user = ministack.create_user("database", &least_policy());
    let here = Setup::new(&ministack.address(), &primary, &user);
    let mut there = Setup::new(&ministack.address(), &replica, &user);
    there.options.region = "us-west-2".to_owned();

    let made = make(&mut here.provider()).unwrap();
    assert!(made.reference.starts_with(&format!("{ACCOUNT}:key/mrk-")), "{}", made.reference);
    assert_eq!(open(&mut there.provider(), &made).unwrap().expose(), made.key.expose());
    let made = make(&mut there.provider()).unwrap();
    assert_eq!(open(&mut here.provider(), &made).unwrap().expose(), made.key.expose());
    let findings = check(&mut there.provider()).unwrap();
    assert!(told(&findings)["key encryption key"].contains("multi-Region"), "{findings:?}");

    // Without a replica there is no such key.
    let mut elsewhere = Setup::new(&ministack.address(), "alias/none", &user);
    elsewhere.options.region = "eu-west-1".to_owned();
    let text = fails(open(&mut elsewhere.provider(), &made), ProviderErrorKind::KeyMissing);
    assert!(text.contains("replicate"), "{text}");
}

#[test]
fn a_version_is_bound_to_its_name_number_and_database() {
    let ministack = component!(MiniStack::start(), "MiniStack");
    let user = ministack.create_user("database", &least_policy());
    let setup = Setup::new(&ministack.address(), &ministack.create_key(REGION, false), &user);
    let mut provider = setup.provider();
    let made = make(&mut provider).unwrap();
    let (right, other) = (name("user_pii"), name("other"));
    for wrong in
        [id(&right, 2), id(&other, 1), VersionId { keyspace: Keyspace([8; 16]), ..id(&right, 1) }]
    {
        let opened = provider.open(&wrong, &made.reference, made.wrapped.as_deref());
        fails(opened, ProviderErrorKind::WrappedKeyInvalid);
    }
    assert_eq!(open(&mut provider, &made).unwrap().expose(), made.key.expose());
}

#[test]
fn the_state_of_the_key_decides() {
    let ministack = component!(MiniStack::start(), "MiniStack");
    let key = ministack.create_key(REGION, false);
    let user = ministack.create_user("database", &least_policy());
    let setup = Setup::new(&ministack.address(), &key, &user);
    let mut provider = setup.provider();
    let made = make(&mut provider).unwrap();
    let change = |action, body: Value| ministack.kms(REGION, action, &body);

    change("DisableKey", json!({ "KeyId": key }));
    let text = fails(open(&mut provider, &made), ProviderErrorKind::Denied);
    assert!(text.contains("is disabled") && text.contains("aws kms enable-key"), "{text}");
    fails(make(&mut provider), ProviderErrorKind::Denied);
    fails(check(&mut provider), ProviderErrorKind::Denied);
    change("EnableKey", json!({ "KeyId": key }));
    assert_eq!(open(&mut provider, &made).unwrap().expose(), made.key.expose());

    change("ScheduleKeyDeletion", json!({ "KeyId": key, "PendingWindowInDays": 7 }));
    let text = fails(open(&mut provider, &made), ProviderErrorKind::Denied);
    assert!(text.contains("cancel-key-deletion"), "{text}");
    fails(check(&mut provider), ProviderErrorKind::Denied);
    change("CancelKeyDeletion", json!({ "KeyId": key }));
    change("EnableKey", json!({ "KeyId": key }));
    open(&mut provider, &made).unwrap();
}

#[test]
fn a_key_that_is_none_is_told() {
    let ministack = component!(MiniStack::start(), "MiniStack");
    let user = ministack.create_user("database", &least_policy());
    for key_id in ["alias/none", "11111111-2222-3333-4444-555555555555"] {
        let setup = Setup::new(&ministack.address(), key_id, &user);
        let text = fails(make(&mut setup.provider()), ProviderErrorKind::KeyMissing);
        assert!(text.contains(key_id), "{text}");
        fails(check(&mut setup.provider()), ProviderErrorKind::KeyMissing);
    }
    for spec in ["RSA_2048", "HMAC_256"] {
        let usage = if spec == "RSA_2048" { "ENCRYPT_DECRYPT" } else { "GENERATE_VERIFY_MAC" };
        let answer =
            ministack.kms(REGION, "CreateKey", &json!({ "KeySpec": spec, "KeyUsage": usage }));
        let key = answer["KeyMetadata"]["KeyId"].as_str().unwrap();
        let setup = Setup::new(&ministack.address(), key, &user);
        let text = fails(make(&mut setup.provider()), ProviderErrorKind::Configuration);
        assert!(text.contains("SYMMETRIC_DEFAULT"), "{text}");
        fails(check(&mut setup.provider()), ProviderErrorKind::Configuration);
    }
}

// Policies

#[test]
fn the_least_policy_is_enough_and_the_check_tells_what_it_lacks() {
    let ministack = component!(MiniStack::start(), "MiniStack");
    let key = ministack.create_key(REGION, false);
    let user = ministack.create_user("database", &least_policy());
    let setup = Setup::new(&ministack.address(), &key, &user);
    let mut provider = setup.provider();
    let made = make(&mut provider).unwrap();
    assert_eq!(open(&mut provider, &made).unwrap().expose(), made.key.expose());

    let findings = check(&mut provider).unwrap();
    let found = told(&findings);
    assert!(found["login"].contains(&setup.options.credentials_file), "{findings:?}");
    assert!(found["key encryption key"].contains(&key), "{findings:?}");
    assert!(found.contains_key("round trip"), "{findings:?}");
    assert!(found["wrapping again"].contains("kms:Encrypt"), "{findings:?}");
    let version = name("user_pii");
    let again = provider.rewrap(&id(&version, 1), &made.reference, made.wrapped.as_deref());
    let text = fails(again, ProviderErrorKind::Denied);
    assert!(text.contains("kms:Encrypt"), "{text}");

    let policy = |actions: &[&str]| {
        let policy =
            json!({ "Statement": { "Effect": "Allow", "Action": actions, "Resource": key } });
        ministack.put_user_policy("database", &policy);
    };
    policy(&["kms:Encrypt", "kms:Decrypt", "kms:GenerateDataKey", "kms:DescribeKey"]);
    let findings = check(&mut provider).unwrap();
    assert!(findings.iter().all(|finding| finding.hint.is_none()), "{findings:?}");
    provider.rewrap(&id(&version, 1), &made.reference, made.wrapped.as_deref()).unwrap().unwrap();

    // Without a look at the key.
    policy(&["kms:Decrypt", "kms:GenerateDataKey"]);
    let findings = check(&mut provider).unwrap();
    assert!(told(&findings)["key encryption key"].contains("kms:DescribeKey"), "{findings:?}");
    // Reading only.
    policy(&["kms:Decrypt"]);
    open(&mut provider, &made).unwrap();
    let text = fails(make(&mut provider), ProviderErrorKind::WriteDenied);
    assert!(text.contains("kms:GenerateDataKey") && text.contains(&key), "{text}");
    fails(check(&mut provider), ProviderErrorKind::WriteDenied);
    // Nothing.
    policy(&["kms:ListKeys"]);
    let text = fails(open(&mut provider, &made), ProviderErrorKind::Denied);
    assert!(text.contains("kms:Decrypt"), "{text}");
}

// Signatures and credentials

#[test]
fn credentials_that_are_refused_are_a_failed_login() {
    let ministack = component!(MiniStack::start(), "MiniStack");
    let key = ministack.create_key(REGION, false);
    let user = ministack.create_user("database", &least_policy());
    let setup = Setup::new(&ministack.address(), &key, &user);
    let mut provider = setup.provider();
    let made = make(&mut provider).unwrap();

    let wrong_secret = AccessKey { secret: "hunter2/hunter2/hunter2".to_owned(), ..user.clone() };
    setup.write_access_key("default", &wrong_secret);
    let text = fails(open(&mut provider, &made), ProviderErrorKind::LoginFailed);
    assert!(text.contains(&setup.options.credentials_file) && !text.contains(&user.id), "{text}");
    setup.write_access_key("default", &any_access_key());
    fails(open(&mut provider, &made), ProviderErrorKind::LoginFailed);
    let unsendable = AccessKey { id: "AKIA\u{1}\u{2}".to_owned(), ..user.clone() };
    setup.write_access_key("default", &unsendable);
    fails(open(&mut provider, &made), ProviderErrorKind::LoginFailed);

    // A key that was made inactive, as one does to rotate it, and then the new one.
    setup.write_access_key("default", &user);
    open(&mut provider, &made).unwrap();
    let status = [("UserName", "database"), ("AccessKeyId", &user.id), ("Status", "Inactive")];
    ministack.iam("UpdateAccessKey", &status);
    fails(open(&mut provider, &made), ProviderErrorKind::LoginFailed);
    setup.write_access_key("default", &ministack.create_access_key("database"));
    assert_eq!(open(&mut provider, &made).unwrap().expose(), made.key.expose());
}

#[test]
fn files_with_credentials_are_read_in_both_forms() {
    let ministack = component!(MiniStack::start(), "MiniStack");
    let key = ministack.create_key(REGION, false);
    let user = ministack.create_user("database", &least_policy());
    let mut setup = Setup::new(&ministack.address(), &key, &user);
    setup.options.profile = "production".to_owned();
    let text = fails(make(&mut setup.provider()), ProviderErrorKind::LoginFailed);
    assert!(text.contains("\"production\""), "{text}");
    for section in ["production", "profile production"] {
        setup.write_access_key(section, &user);
        make(&mut setup.provider()).unwrap();
    }
    for contents in ["", "[production]\naws_access_key_id = hunter2\n", "[", "\u{0}\u{ff}"] {
        fs::write(&setup.options.credentials_file, contents).unwrap();
        fails(make(&mut setup.provider()), ProviderErrorKind::LoginFailed);
    }
    fs::remove_file(&setup.options.credentials_file).unwrap();
    let text = fails(make(&mut setup.provider()), ProviderErrorKind::LoginFailed);
    assert!(text.contains(&setup.options.credentials_file), "{text}");
}

#[test]
fn credentials_come_from_the_environment() {
    if is_elsewhere() {
        return;
    }
    let ministack = component!(MiniStack::start(), "MiniStack");
    let user = ministack.create_user("database", &least_policy());
    let options = elsewhere_options(&ministack);
    let variables = |id: &str| {
        [
            ("AWS_ACCESS_KEY_ID", id.to_owned()),
            ("AWS_SECRET_ACCESS_KEY", user.secret.clone()),
            ("AWS_REGION", REGION.to_owned()),
        ]
    };
    let mut without_region = options.clone();
    without_region.region.clear();
    let outcome = elsewhere(&without_region, &variables(&user.id), &[]);
    assert!(outcome.contains("login: by the credentials of the environment"), "{outcome}");

    // When they are refused, no other source is tried; the settings come first.
    let outcome = elsewhere(&options, &variables("AKIANONE"), &[]);
    assert!(outcome.starts_with("LoginFailed") && outcome.contains("the environment"), "{outcome}");
    let setup = Setup::new(&ministack.address(), &options.key_id, &user);
    let outcome = elsewhere(&setup.options, &variables("AKIANONE"), &[]);
    assert!(outcome.contains(&setup.options.credentials_file), "{outcome}");
    assert!(outcome.contains("round trip"), "{outcome}");
}

#[test]
fn credentials_come_from_the_files_of_the_aws_cli() {
    if is_elsewhere() {
        return;
    }
    let ministack = component!(MiniStack::start(), "MiniStack");
    let user = ministack.create_user("database", &least_policy());
    let mut options = elsewhere_options(&ministack);
    let home = tempfile::tempdir().unwrap();
    fs::create_dir(home.path().join(".aws")).unwrap();
    let home_variable = ("HOME", text(home.path()));

    let outcome = elsewhere(&options, std::slice::from_ref(&home_variable), &[]);
    assert!(outcome.starts_with("LoginFailed"), "{outcome}");
    assert!(outcome.contains("there are no AWS credentials"), "{outcome}");

    let AccessKey { id, secret } = &user;
    let keys = format!("aws_access_key_id={id}\naws_secret_access_key={secret}\n");
    fs::write(home.path().join(".aws/credentials"), format!("[default]\n{keys}")).unwrap();
    fs::write(home.path().join(".aws/config"), format!("[profile other]\n{keys}")).unwrap();
    let outcome = elsewhere(&options, std::slice::from_ref(&home_variable), &[]);
    assert!(outcome.contains("the default profile"), "{outcome}");
    options.profile = "other".to_owned();
    let outcome = elsewhere(&options, &[home_variable], &[]);
    assert!(outcome.contains("profile \"other\" in the AWS CLI's files"), "{outcome}");
    let elsewhere_file = text(&home.path().join(".aws/config"));
    let outcome = elsewhere(&options, &[("AWS_CONFIG_FILE", elsewhere_file)], &[]);
    assert!(outcome.contains("profile \"other\""), "{outcome}");
}

#[test]
fn credentials_come_from_a_web_identity() {
    if is_elsewhere() {
        return;
    }
    let ministack = component!(MiniStack::start(), "MiniStack");
    let role_arn = create_role(&ministack);
    let folder = tempfile::tempdir().unwrap();
    let token_file = text(&folder.path().join("token"));
    let write_token = |subject: &str| fs::write(&token_file, jwt(subject)).unwrap();
    let sts = ("AWS_ENDPOINT_URL_STS", ministack.address());

    write_token(SUBJECT);
    let mut options = elsewhere_options(&ministack);
    let by_environment = [
        sts.clone(),
        ("AWS_ROLE_ARN", role_arn.clone()),
        ("AWS_WEB_IDENTITY_TOKEN_FILE", token_file.clone()),
    ];
    let outcome = elsewhere(&options, &by_environment, &[]);
    assert!(outcome.contains(&format!("role \"{role_arn}\" by a web identity")), "{outcome}");
    assert!(outcome.contains("round trip"), "{outcome}");

    options.role_arn = role_arn.clone();
    options.web_identity_token_file = token_file.clone();
    let by_settings = [
        sts.clone(),
        ("AWS_ROLE_ARN", "arn:aws:iam::000000000000:role/none".to_owned()),
        ("AWS_ACCESS_KEY_ID", "AKIANONE".to_owned()),
        ("AWS_SECRET_ACCESS_KEY", "hunter2".to_owned()),
    ];
    let outcome = elsewhere(&options, &by_settings, &[]);
    assert!(outcome.contains("round trip"), "{outcome}");

    // A token that the role does not trust, and none.
    write_token("system:serviceaccount:db:other");
    let outcome = elsewhere(&options, &by_settings, &[]);
    assert!(outcome.starts_with("LoginFailed") && outcome.contains("AccessDenied"), "{outcome}");
    assert!(outcome.contains("trust policy") && !outcome.contains("eyJ"), "{outcome}");
    fs::remove_file(&token_file).unwrap();
    let outcome = elsewhere(&options, &by_settings, &[]);
    assert!(outcome.starts_with("LoginFailed") && outcome.contains(&token_file), "{outcome}");
    // Tokens go nowhere but over TLS or to this machine.
    let plain = [("AWS_ENDPOINT_URL_STS", "http://sts.example".to_owned())];
    let outcome = elsewhere(&options, &plain, &[]);
    assert!(outcome.starts_with("Configuration"), "{outcome}");
}

#[test]
fn credentials_come_from_an_instance_or_a_container() {
    if is_elsewhere() {
        return;
    }
    let ministack = component!(MiniStack::start_with_metadata(), "MiniStack");
    let mut options = elsewhere_options(&ministack);
    let metadata = ("AWS_EC2_METADATA_SERVICE_ENDPOINT", ministack.address());
    let on = ("AWS_EC2_METADATA_DISABLED", "false".to_owned());
    let outcome = elsewhere(&options, &[metadata, on.clone()], &[]);
    assert!(outcome.contains("the instance metadata service"), "{outcome}");
    assert!(outcome.contains("round trip"), "{outcome}");

    let uri = format!("{}/v2/credentials/1234", ministack.address());
    let outcome = elsewhere(&options, &[("AWS_CONTAINER_CREDENTIALS_FULL_URI", uri)], &[]);
    assert!(outcome.contains("the container's credentials endpoint"), "{outcome}");
    assert!(outcome.contains("round trip"), "{outcome}");

    // Nobody there, an address that others could listen to, and something else there.
    let gone = ("AWS_EC2_METADATA_SERVICE_ENDPOINT", format!("http://127.0.0.1:{}", unused_port()));
    let outcome = elsewhere(&options, &[gone, on.clone()], &[]);
    assert!(
        outcome.starts_with("Unreachable") && outcome.contains("instance profile"),
        "{outcome}"
    );
    let plain = ("AWS_CONTAINER_CREDENTIALS_FULL_URI", "http://container.invalid/role".to_owned());
    let outcome = elsewhere(&options, &[plain], &[]);
    assert!(outcome.starts_with("LoginFailed") && outcome.contains("https address"), "{outcome}");
    options.region = REGION.to_owned();
    let html = Listener::start(|_, _| Reply::ok("<html>hunter2</html>"));
    let elsewhere_uri = ("AWS_CONTAINER_CREDENTIALS_FULL_URI", html.address());
    let outcome = elsewhere(&options, &[elsewhere_uri], &[]);
    assert!(outcome.starts_with("LoginFailed") && !outcome.contains("hunter2"), "{outcome}");
    for (status, kind) in [(404, "LoginFailed"), (429, "Throttled"), (500, "Unreachable")] {
        let failing = Listener::start(move |_, _| Reply::status(status, "hunter2"));
        let uri = ("AWS_CONTAINER_CREDENTIALS_FULL_URI", failing.address());
        let outcome = elsewhere(&options, &[uri], &[]);
        assert!(outcome.starts_with(kind) && !outcome.contains("hunter2"), "{outcome}");
    }
}

/// EKS Pod Identity: the token is in a file that the platform replaces.
#[test]
fn a_pod_shows_the_token_in_its_file() {
    if is_elsewhere() {
        return;
    }
    let ministack = component!(MiniStack::start(), "MiniStack");
    let options = elsewhere_options(&ministack);
    let role_arn = create_role(&ministack);
    let session = ministack.assume_role(&role_arn, &jwt(SUBJECT), Duration::from_secs(3600));
    let agent = Listener::start(move |head, _| {
        match head.to_ascii_lowercase().contains("\r\nauthorization: hunter2-token\r\n") {
            true => Reply::ok(&session_json(&session, Duration::from_secs(3600))),
            false => Reply::status(401, "hunter2"),
        }
    });
    let folder = tempfile::tempdir().unwrap();
    let token_file = folder.path().join("token");
    let variables = [
        ("AWS_CONTAINER_CREDENTIALS_FULL_URI", format!("{}/v1/credentials", agent.address())),
        ("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", text(&token_file)),
    ];
    let outcome = elsewhere(&options, &variables, &[]);
    assert!(outcome.starts_with("LoginFailed") && outcome.contains("token"), "{outcome}");
    fs::write(&token_file, "other\n").unwrap();
    let outcome = elsewhere(&options, &variables, &[]);
    assert!(outcome.starts_with("LoginFailed") && outcome.contains("status 401"), "{outcome}");
    fs::write(&token_file, "hunter2-token\n").unwrap();
    let outcome = elsewhere(&options, &variables, &[]);
    assert!(outcome.contains("round trip"), "{outcome}");
}

/// Sessions that end: the metadata service gives real ones of MiniStack's, and says of them what it is
/// told to.
#[test]
fn credentials_are_renewed_before_they_end_and_when_they_are_refused() {
    if is_elsewhere() {
        return;
    }
    let ministack = component!(MiniStack::start(), "MiniStack");
    let role_arn = create_role(&ministack);
    let options = elsewhere_options(&ministack);
    let hour = Duration::from_secs(3600);
    let two_minutes = Duration::from_secs(119);
    let brief = Duration::from_secs(1);
    let instance = |sessions: Vec<(Session, Duration)>| {
        let sessions = Mutex::new(sessions);
        Listener::start(move |head, _| {
            let path = head.split(' ').nth(1).unwrap().to_owned();
            match path.as_str() {
                "/latest/api/token" => Reply::ok("hunter2-imds"),
                "/latest/meta-data/iam/security-credentials/" => Reply::ok("database"),
                "/latest/meta-data/iam/security-credentials/database" => {
                    let mut sessions = sessions.lock().unwrap();
                    match sessions.is_empty() {
                        true => Reply::status(500, "hunter2"),
                        false => {
                            let (session, left) = sessions.remove(0);
                            Reply::ok(&session_json(&session, left))
                        }
                    }
                }
                _ => Reply::status(404, "hunter2"),
            }
        })
    };
    let variables = |instance: &Listener| {
        [
            ("AWS_EC2_METADATA_SERVICE_ENDPOINT", instance.address()),
            ("AWS_EC2_METADATA_DISABLED", "false".to_owned()),
        ]
    };
    let session = |lifetime| ministack.assume_role(&role_arn, &jwt(SUBJECT), lifetime);
    let fetched = |instance: &Listener| {
        instance.heads().iter().filter(|head| head.contains("credentials/database ")).count()
    };

    // For an hour: one login for all that a check does (five requests to KMS).
    let steady = instance(vec![(session(hour), hour)]);
    let outcome = elsewhere(&options, &variables(&steady), &[]);
    assert!(outcome.contains("round trip"), "{outcome}");
    assert_eq!(fetched(&steady), 1);
    for head in &steady.heads()[1..] {
        assert!(head.contains("x-aws-ec2-metadata-token: hunter2-imds"), "{head}");
    }

    // Less than two minutes left: asked for new ones, which are used.
    let ending = instance(vec![(session(hour), two_minutes), (session(hour), hour)]);
    let outcome = elsewhere(&options, &variables(&ending), &[]);
    assert!(outcome.contains("round trip"), "{outcome}");
    assert_eq!(fetched(&ending), 2);

    // The same, and there are no new ones: the old ones still work.
    let failing = instance(vec![(session(hour), two_minutes)]);
    let outcome = elsewhere(&options, &variables(&failing), &[]);
    assert!(outcome.contains("round trip"), "{outcome}");
    assert!(fetched(&failing) > 1);

    // They have ended, whatever was said: a new login, once.
    let ended = session(brief);
    thread::sleep(Duration::from_millis(1500));
    let lying = instance(vec![(ended.clone(), hour), (session(hour), hour)]);
    let outcome = elsewhere(&options, &variables(&lying), &[]);
    assert!(outcome.contains("round trip"), "{outcome}");
    assert_eq!(fetched(&lying), 2);
    // The new login gives the same.
    let stuck = instance(vec![(ended.clone(), hour), (ended.clone(), hour)]);
    let outcome = elsewhere(&options, &variables(&stuck), &[]);
    assert!(outcome.starts_with("LoginFailed"), "{outcome}");
    assert!(outcome.contains("refuses the credentials of the instance metadata"), "{outcome}");
    assert_eq!(fetched(&stuck), 2);
}

#[test]
fn a_clock_that_is_off_is_told() {
    if is_elsewhere() {
        return;
    }
    let faketime = ["-f".to_owned(), "+10m".to_owned()];
    if Command::new("faketime").arg("--version").output().is_err() {
        harness::skip("a_clock_that_is_off_is_told", "faketime could not be had");
        return;
    }
    let ministack = component!(MiniStack::start(), "MiniStack");
    let user = ministack.create_user("database", &least_policy());
    let setup = Setup::new(&ministack.address(), &elsewhere_options(&ministack).key_id, &user);
    // The clock that waits go by stays as it is.
    let variables = [("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned())];
    let outcome = elsewhere(&setup.options, &variables, &faketime);
    assert!(outcome.starts_with("LoginFailed"), "{outcome}");
    assert!(outcome.contains("s ahead of AWS's") && outcome.contains("Synchronize"), "{outcome}");

    let behind = ["-f".to_owned(), "-2m".to_owned()];
    let outcome = elsewhere(&setup.options, &variables, &behind);
    assert!(outcome.contains("round trip"), "{outcome}");
    assert!(outcome.contains("clock: this server's clock is 12"), "{outcome}");
}

// Failures

#[test]
fn what_passes_is_tried_again_and_what_does_not_is_not() {
    let moto = component!(Moto::start(), "moto");
    let proxy = component!(Microburst::start(&moto.address()), "microburst");
    let key = moto.create_key(REGION, false);
    let setup = Setup::for_moto(&proxy.address(), &key);
    let mut provider = setup.provider();
    let made = make(&mut provider).unwrap();
    let fail = |times: u32, fault: Value| {
        let mut rule = json!({ "service": "kms", "operation": "Decrypt", "times": times });
        rule.as_object_mut().unwrap().extend(fault.as_object().unwrap().clone());
        proxy.fail(&rule);
    };
    let error = |code: &str| json!({ "error": { "code": code } });
    let cut = json!({ "response": { "abort_frac": 0.3 } });

    let passing = [
        error("ThrottlingException"),
        error("LimitExceededException"),
        error("KMSInternalException"),
        error("DependencyTimeoutException"),
        error("KeyUnavailableException"),
        json!({ "error": { "code": "ServiceUnavailableException", "status": 503 } }),
        json!({ "reset": true }),
        cut.clone(),
    ];
    for fault in passing {
        fail(2, fault.clone());
        let start = Instant::now();
        let opened = open(&mut provider, &made);
        let took = start.elapsed();
        println!("{fault}: twice, and recovered in {took:.0?}");
        assert_eq!(opened.unwrap().expose(), made.key.expose(), "{fault}");
        assert_eq!(proxy.failures(), 2, "{fault}");
        assert!(took < Duration::from_secs(2), "{fault}: {took:?}");
    }
    for (fault, kind) in [
        (error("ThrottlingException"), ProviderErrorKind::Throttled),
        (error("KMSInternalException"), ProviderErrorKind::Unreachable),
        (cut, ProviderErrorKind::Unreachable),
    ] {
        fail(1000, fault.clone());
        let start = Instant::now();
        let text = fails(open(&mut provider, &made), kind);
        println!("{fault}: always, and gave up in {:.0?}: {text}", start.elapsed());
        assert_eq!(proxy.failures(), 4, "{fault}");
    }

    for (code, kind) in [
        ("AccessDeniedException", ProviderErrorKind::Denied),
        ("NotFoundException", ProviderErrorKind::KeyMissing),
        ("DisabledException", ProviderErrorKind::Denied),
        ("KMSInvalidStateException", ProviderErrorKind::Denied),
        ("InvalidCiphertextException", ProviderErrorKind::WrappedKeyInvalid),
        ("IncorrectKeyException", ProviderErrorKind::WrappedKeyInvalid),
        ("InvalidKeyUsageException", ProviderErrorKind::Configuration),
        ("ExpiredTokenException", ProviderErrorKind::LoginFailed),
        ("UnrecognizedClientException", ProviderErrorKind::LoginFailed),
        ("InvalidSignatureException", ProviderErrorKind::LoginFailed),
        ("HunterTwoException", ProviderErrorKind::AnswerInvalid),
    ] {
        fail(1000, json!({ "error": { "code": code, "status": 400, "message": "hunter2" } }));
        let text = fails(open(&mut provider, &made), kind);
        assert!(!text.contains("HunterTwo"), "{text}");
        assert_eq!(proxy.failures(), 1, "{code}");
    }
    fail(0, json!({ "latency": 1 }));
    assert_eq!(open(&mut provider, &made).unwrap().expose(), made.key.expose());
}

#[test]
fn damaged_answers_are_never_a_key() {
    let moto = component!(Moto::start(), "moto");
    let proxy = component!(Microburst::start(&moto.address()), "microburst");
    let setup = Setup::for_moto(&proxy.address(), &moto.create_key(REGION, false));
    let mut provider = setup.provider();
    let made = make(&mut provider).unwrap();
    let all = |fault: Value| {
        proxy.fail(&json!({ "service": "kms", "response": fault }));
    };
    for fault in [
        json!({ "truncate_frac": 0.5 }),
        json!({ "truncate_bytes": 10 }),
        json!({ "truncate_bytes": 0 }),
    ] {
        all(fault.clone());
        assert!(open(&mut provider, &made).is_err(), "{fault}");
        assert!(make(&mut provider).is_err(), "{fault}");
    }
    // One changed character of the base64 is another key: the check value is there for that.
    all(json!({ "corrupt_bytes": 64 }));
    for _ in 0..10 {
        if let Ok(opened) = open(&mut provider, &made) {
            assert_ne!(opened.expose(), made.key.expose());
        }
    }
}

#[test]
fn a_server_that_is_gone_or_stands_still_costs_no_more_than_its_time() {
    let mut moto = component!(Moto::start(), "moto");
    let setup = Setup::for_moto(&moto.address(), &moto.create_key(REGION, false));
    let limits = RequestLimits { total: Duration::from_millis(1500), ..RequestLimits::default() };
    let mut provider = setup.provider_within(limits);
    let made = make(&mut provider).unwrap();

    moto.process().pause();
    let start = Instant::now();
    fails(open(&mut provider, &made), ProviderErrorKind::TimedOut);
    let took = start.elapsed();
    assert!((1400..2000).contains(&took.as_millis()), "{took:?}");
    moto.process().resume();
    assert_eq!(open(&mut provider, &made).unwrap().expose(), made.key.expose());

    moto.process().stop();
    let start = Instant::now();
    let text = fails(open(&mut provider, &made), ProviderErrorKind::Unreachable);
    assert!(text.contains("refused") && start.elapsed() < Duration::from_millis(1600), "{text}");
}

#[test]
fn what_is_not_kms_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("credentials");
    let keys = "[default]\naws_access_key_id=AKIA\naws_secret_access_key=hunter2\n";
    fs::write(&file, keys).unwrap();
    let open_at = |address: String| {
        let options = AwsKmsOptions {
            key_id: "alias/a".to_owned(),
            region: REGION.to_owned(),
            endpoint: address,
            credentials_file: text(&file),
            ..AwsKmsOptions::default()
        };
        let limits = RequestLimits { total: Duration::from_secs(2), ..RequestLimits::default() };
        let mut provider = AwsKmsProvider::new(&options, limits, Box::new(|| false)).unwrap();
        let reference = "123456789012:key/1234";
        let version = name("user_pii");
        let opened = provider.open(&id(&version, 1), reference, Some(&[1, 2, 3]));
        assert!(provider.make(&id(&version, 1)).is_err());
        opened
    };
    let arn = format!("arn:aws:kms:{REGION}:123456789012:key/1234");
    let key = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=";
    let answer = |body: String| Listener::start(move |_, _| Reply::ok(&body));
    let good = answer(format!(r#"{{"KeyId":"{arn}","Plaintext":"{key}"}}"#));
    assert_eq!(open_at(good.address()).unwrap().expose(), &[1; 32]);
    // What went out.
    let head = good.heads()[0].to_ascii_lowercase();
    assert!(head.starts_with("post / http/1.1\r\n"), "{head}");
    assert!(head.contains("\r\nx-amz-target: trentservice.decrypt\r\n"), "{head}");
    assert!(head.contains("\r\ncontent-type: application/x-amz-json-1.1\r\n"), "{head}");
    assert!(!head.contains("hunter2"), "{head}");
    // The body is signed, too.
    let hash = <sha2::Sha256 as sha2::Digest>::digest(&good.bodies()[0]);
    let hash: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
    assert!(head.contains(&format!("\r\nx-amz-content-sha256: {hash}\r\n")), "{head}");
    let signed = "signedheaders=content-type;host;x-amz-content-sha256;x-amz-date;x-amz-target,";
    assert!(head.contains(signed), "{head}");
    let request: Value = serde_json::from_str(&good.bodies()[0]).unwrap();
    let context = json!({ "keyspace": KEYSPACE.to_string(), "key": "user_pii", "version": "1" });
    assert_eq!(
        request,
        json!({ "KeyId": arn, "CiphertextBlob": "AQID", "EncryptionContext": context })
    );

    for body in [
        String::new(),
        "<html>hunter2</html>".to_owned(),
        r#"{"hunter2":"hunter2"}"#.to_owned(),
        format!(r#"{{"KeyId":"{arn}","Plaintext":"hunter2"}}"#),
        format!(r#"{{"KeyId":"{arn}","Plaintext":"AQEB"}}"#),
        format!(r#"{{"KeyId":"{arn}5","Plaintext":"{key}"}}"#),
        format!(r#"{{"KeyId":"alias/a","Plaintext":"{key}"}}"#),
        format!(r#"{{"Plaintext":"{key}"}}"#),
    ] {
        let text = fails(open_at(answer(body).address()), ProviderErrorKind::AnswerInvalid);
        assert!(!text.contains("AQEB"), "{text}");
    }
    let flood = Listener::start(|_, _| Reply::flood(100 << 20));
    let start = Instant::now();
    fails(open_at(flood.address()), ProviderErrorKind::AnswerInvalid);
    assert!(start.elapsed() < Duration::from_secs(2));
    let redirect = Listener::start(|_, _| Reply::status(307, ""));
    fails(open_at(redirect.address()), ProviderErrorKind::AnswerInvalid);
    let not_http = Listener::start(|_, _| Reply(b"SSH-2.0-OpenSSH\r\n".to_vec(), 0));
    fails(open_at(not_http.address()), ProviderErrorKind::AnswerInvalid);
}

#[test]
fn the_certificate_must_be_right() {
    let moto = component!(Moto::start_with_tls(), "moto");
    let mut setup = Setup::for_moto(&moto.address(), &moto.create_key(REGION, false));
    setup.options.ca_file = text(&moto.ca_file());
    let mut kms = setup.provider();
    make(&mut kms).unwrap();
    contract::tells_when_certificates_end(&kms, false);

    let other = setup.folder.path().join("other.pem");
    fs::write(&other, harness::openbao::unrelated_authority()).unwrap();
    for ca_file in [text(&other), String::new()] {
        setup.options.ca_file = ca_file;
        let error = make(&mut setup.provider()).unwrap_err();
        assert!(error.kind.is_outage() && !error.is_transient, "{error:?}");
        assert!(error.message.contains("certificate"), "{error:?}");
    }
}

// A process of its own, for its environment

const ELSEWHERE: &str = "AWS_KMS_TEST_OPTIONS";

/// Options without credentials, for a new key.
fn elsewhere_options(ministack: &MiniStack) -> AwsKmsOptions {
    AwsKmsOptions {
        key_id: ministack.create_key(REGION, false),
        region: REGION.to_owned(),
        endpoint: ministack.address(),
        ..AwsKmsOptions::default()
    }
}

/// Runs the check of a provider with these options in a process of its own, which is this test again:
/// with these environment variables and no others that name credentials, by `wrapper` if that names a
/// program's arguments. What it found, or the error's kind and text.
fn elsewhere(options: &AwsKmsOptions, variables: &[(&str, String)], wrapper: &[String]) -> String {
    let folder = tempfile::tempdir().unwrap();
    let outcome = folder.path().join("outcome");
    let test = thread::current().name().unwrap().to_owned();
    let this = env::current_exe().unwrap();
    let mut command = match wrapper {
        [] => Command::new(this),
        arguments => {
            let mut command = Command::new("faketime");
            command.args(arguments).arg(this);
            command
        }
    };
    command.args(["--exact", &test]);
    for (variable, _) in env::vars().filter(|(name, _)| name.starts_with("AWS_")) {
        command.env_remove(variable);
    }
    let options = json!({
        "key_id": options.key_id,
        "region": options.region,
        "endpoint": options.endpoint,
        "profile": options.profile,
        "credentials_file": options.credentials_file,
        "role_arn": options.role_arn,
        "web_identity_token_file": options.web_identity_token_file,
    });
    let output = command
        .env(ELSEWHERE, json!({ "options": options, "outcome": outcome }).to_string())
        .env("HOME", folder.path())
        .env("AWS_EC2_METADATA_DISABLED", "true")
        .envs(variables.iter().map(|(name, value)| (name, value)))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    let outcome = fs::read_to_string(outcome).unwrap();
    assert!(!outcome.contains("hunter2"), "{outcome}");
    outcome
}

/// Whether this is such a process; it has then done what it is for.
fn is_elsewhere() -> bool {
    let Ok(task) = env::var(ELSEWHERE) else { return false };
    let task: Value = serde_json::from_str(&task).unwrap();
    let options: AwsKmsOptions = serde_json::from_value(task["options"].clone()).unwrap();
    let result = AwsKmsProvider::new(&options, RequestLimits::default(), Box::new(|| false))
        .and_then(|mut provider| check(&mut provider));
    let outcome = match result {
        Ok(findings) => findings
            .iter()
            .map(|f| format!("{}: {} / {:?}\n", f.what, f.detail, f.hint))
            .collect::<String>(),
        Err(error) => format!("{:?}: {error} / {:?}", error.kind, error.hint),
    };
    fs::write(PathBuf::from(task["outcome"].as_str().unwrap()), outcome).unwrap();
    true
}

// Listeners that say what a test wants

/// Answers every request, and closes the connection.
struct Listener {
    port: u16,
    requests: Arc<Mutex<Vec<(String, String)>>>,
}

/// What is sent, and how many zeros after it.
struct Reply(Vec<u8>, usize);

impl Reply {
    fn ok(body: &str) -> Self {
        Self::status(200, body)
    }

    fn status(status: u16, body: &str) -> Self {
        let len = body.len();
        Self(
            format!(
                "HTTP/1.1 {status} Status\r\nContent-Length: {len}\r\nConnection: close\r\n\r\n{body}"
            )
            .into_bytes(),
            0,
        )
    }

    fn flood(len: usize) -> Self {
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {len}\r\n\r\n");
        Self(head.into_bytes(), len)
    }
}

impl Listener {
    /// `reply` gets the head and the body of each request.
    fn start(reply: impl Fn(&str, &str) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&requests);
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let (head, body) = read_request(&mut stream);
                let Reply(answer, zeros) = reply(&head, &body);
                log.lock().unwrap().push((head, body));
                // The client may have had enough.
                let _ = stream.write_all(&answer);
                let block = vec![b'0'; 1 << 16];
                for _ in 0..zeros / block.len() {
                    if stream.write_all(&block).is_err() {
                        break;
                    }
                }
            }
        });
        Self { port, requests }
    }

    fn address(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    fn heads(&self) -> Vec<String> {
        self.requests.lock().unwrap().iter().map(|(head, _)| head.clone()).collect()
    }

    fn bodies(&self) -> Vec<String> {
        self.requests.lock().unwrap().iter().map(|(_, body)| body.clone()).collect()
    }
}

fn read_request(stream: &mut TcpStream) -> (String, String) {
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).unwrap_or(0) == 1 {
        head.push(byte[0]);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let len = head.to_ascii_lowercase();
    let len = len.split("content-length: ").nth(1).and_then(|rest| rest.split("\r\n").next());
    let mut body = vec![0; len.map_or(0, |len| len.parse().unwrap())];
    stream.read_exact(&mut body).unwrap();
    (head, String::from_utf8(body).unwrap())
}

fn unused_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Credentials as the instance metadata service and the endpoints of containers give them.
fn session_json(session: &Session, left: Duration) -> String {
    let Session { key: AccessKey { id, secret }, token } = session;
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    json!({
        "Code": "Success",
        "AccessKeyId": id,
        "SecretAccessKey": secret,
        "Token": token,
        "Expiration": rfc3339((now + left).as_secs()),
    })
    .to_string()
}

/// Seconds since 1970 as a time in UTC.
fn rfc3339(seconds: u64) -> String {
    let output = Command::new("date")
        .args(["-u", "-d", &format!("@{seconds}"), "+%Y-%m-%dT%H:%M:%SZ"])
        .output()
        .unwrap();
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// A token of this subject, which nobody signed: MiniStack looks at what it says alone.
fn jwt(subject: &str) -> String {
    let part = |value: Value| {
        use base64::Engine;
        base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(value.to_string())
    };
    let claims =
        json!({ "iss": "https://oidc.example", "aud": "sts.amazonaws.com", "sub": subject });
    format!("{}.{}.c2ln", part(json!({ "alg": "RS256" })), part(claims))
}
