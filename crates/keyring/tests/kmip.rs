//! The provider `kmip`, against PyKMIP, and against a server that answers what no good one does.

#![expect(clippy::unwrap_used, reason = "a test fails by a panic")]

mod contract;

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use contract::{Subject, id, name};
use envelope::DataKey;
use harness::openbao;
use harness::pykmip::{self, ClientCertificate, FakeKmip, PyKmip, Reply};
use keyring::call::RequestLimits;
use keyring::kmip::{KmipOptions, KmipProvider};
use keyring::provider::{Interrupt, Provider, ProviderError, ProviderErrorKind};
use tempfile::TempDir;

/// The common name of the client that the tests are, for the most part.
const CLIENT: &str = "postgresql";

macro_rules! server {
    () => {
        match PyKmip::start() {
            Some(server) => server,
            None => {
                let test = std::thread::current();
                harness::skip(test.name().unwrap_or("kmip"), "there is no PyKMIP to run");
                return;
            }
        }
    };
}

fn options(address: String, ca_file: PathBuf, client: ClientCertificate) -> KmipOptions {
    let text = |path: PathBuf| path.into_os_string().into_string().unwrap();
    KmipOptions {
        address,
        ca_file: text(ca_file),
        client_certificate_file: text(client.certificate_file),
        client_key_file: text(client.key_file),
        name_prefix: "test/".to_owned(),
    }
}

fn options_of(server: &PyKmip) -> KmipOptions {
    options(server.address(), server.ca_file(), server.client(CLIENT))
}

fn provider(options: &KmipOptions) -> KmipProvider {
    KmipProvider::new(options, RequestLimits::default(), Box::new(|| false)).unwrap()
}

fn open(provider: &mut KmipProvider, reference: &str) -> Result<DataKey, ProviderError> {
    // What the database calls it does not matter: the reference decides.
    provider.open(&id(&name("database"), 99), reference, None)
}

#[track_caller]
fn fails<T>(result: Result<T, ProviderError>, kind: ProviderErrorKind) -> String {
    let error = result.err().expect("an error");
    let text = format!("{error} / {}", error.hint.as_deref().unwrap_or_default());
    assert_eq!(error.kind, kind, "{text}");
    text
}

/// The script that registers a key of `len` bytes, and prints its unique identifier.
fn registration(name: &str, byte: u8, len: usize) -> String {
    format!(
        "print(client.register(objects.SymmetricKey(enums.CryptographicAlgorithm.AES, {}, \
         bytes([{byte}] * {len}), name='{name}')))",
        len * 8
    )
}

#[test]
fn keeps_the_contract() {
    let server = server!();
    let options = options_of(&server);
    contract::keeps_the_contract(&Subject {
        provider: &|interrupt: Box<dyn Interrupt>| {
            Box::new(KmipProvider::new(&options, RequestLimits::default(), interrupt).unwrap())
        },
        is_envelope: false,
        binds_version: false,
    });
    let mut provider =
        KmipProvider::new(&options, RequestLimits::default(), Box::new(|| false)).unwrap();
    provider.discover(&name("contract"), &[]).unwrap();
    contract::tells_when_certificates_end(&provider, true);
}

#[test]
fn keys_have_the_names_that_are_documented() {
    let server = server!();
    let mut provider = provider(&options_of(&server));
    let key = name("user_pii");
    let made = provider.make(&id(&key, 1)).unwrap();
    assert_eq!(made.reference, "user_pii?version=1");
    let script = "\
from kmip.core.factories.attributes import AttributeFactory
name = AttributeFactory().create_attribute(enums.AttributeType.NAME, 'test/user_pii.1')
[uid] = client.locate(attributes=[name])
key = client.get(uid)
print(key.value.hex(), key.cryptographic_length, key.cryptographic_algorithm.name, key.key_format_type.name)
_, attributes = client.get_attributes(uid, ['Cryptographic Usage Mask'])
print(attributes[0].attribute_value.value)";
    let base16: String = made.key.expose().iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(server.script(CLIENT, script), format!("{base16} 256 AES RAW\n12"));
}

#[test]
fn keys_that_an_administrator_registered_are_adopted() {
    let server = server!();
    for (number, byte) in [(1, 1), (2, 2)] {
        server.script(CLIENT, &registration(&format!("test/user_pii.{number}"), byte, 32));
    }
    let mut provider = provider(&options_of(&server));
    let found = provider.discover(&name("user_pii"), &[]).unwrap();
    let found: Vec<_> = found
        .iter()
        .map(|found| (found.number.get(), found.reference.as_str(), found.key.expose()[31]))
        .collect();
    assert_eq!(found, [(1, "user_pii?version=1", 1), (2, "user_pii?version=2", 2)]);
    let findings = provider.check(&id(&name("user_pii"), 1)).unwrap();
    assert!(findings.iter().all(|finding| finding.hint.is_none()), "{findings:?}");

    // Somebody is faster.
    server.script(CLIENT, &registration("test/user_pii.3", 3, 32));
    let text = fails(provider.make(&id(&name("user_pii"), 3)), ProviderErrorKind::Conflict);
    assert!(text.contains("\"test/user_pii.3\""), "{text}");
    let newer = provider
        .discover(&name("user_pii"), &["user_pii?version=1", "user_pii?version=2"])
        .unwrap();
    assert_eq!(newer.iter().map(|found| found.number.get()).collect::<Vec<_>>(), [3]);
    assert_eq!(provider.make(&id(&name("user_pii"), 4)).unwrap().number.unwrap().get(), 4);
}

#[test]
fn what_is_missing_or_destroyed_is_told() {
    let server = server!();
    let mut provider = provider(&options_of(&server));
    let text = fails(open(&mut provider, "user_pii?version=1"), ProviderErrorKind::KeyMissing);
    assert!(text.contains("\"test/user_pii.1\""), "{text}");

    for number in 1..=3 {
        provider.make(&id(&name("user_pii"), number)).unwrap();
    }
    fails(open(&mut provider, "user_pii?version=4"), ProviderErrorKind::VersionMissing);
    server.script(CLIENT, "client.destroy('2')");
    fails(open(&mut provider, "user_pii?version=2"), ProviderErrorKind::VersionMissing);
    open(&mut provider, "user_pii?version=3").unwrap();

    // One that the database knows and that is gone does not hide the ones after it.
    let known = ["user_pii?version=1", "user_pii?version=3"];
    server.script(CLIENT, &registration("test/user_pii.4", 4, 32));
    let found = provider.discover(&name("user_pii"), &known).unwrap();
    assert_eq!(found.iter().map(|found| found.number.get()).collect::<Vec<_>>(), [4]);
}

#[test]
fn a_key_that_is_deactivated_or_compromised_is_not_used() {
    let server = server!();
    let mut provider = provider(&options_of(&server));
    for number in 1..=3 {
        provider.make(&id(&name("user_pii"), number)).unwrap();
    }
    server.script(
        CLIENT,
        "client.activate('1')\n\
         client.activate('2')\n\
         client.revoke(enums.RevocationReasonCode.CESSATION_OF_OPERATION, '2')\n\
         client.revoke(enums.RevocationReasonCode.KEY_COMPROMISE, '3')",
    );
    open(&mut provider, "user_pii?version=1").unwrap();
    for (reference, state) in
        [("user_pii?version=2", "deactivated"), ("user_pii?version=3", "compromised")]
    {
        let text = fails(open(&mut provider, reference), ProviderErrorKind::Denied);
        assert!(text.contains(state), "{text}");
    }
    let found = provider.discover(&name("user_pii"), &[]).unwrap();
    assert_eq!(found.iter().map(|found| found.number.get()).collect::<Vec<_>>(), [1]);
    // Their names are taken all the same.
    assert_eq!(provider.make(&id(&name("user_pii"), 4)).unwrap().number.unwrap().get(), 4);
}

#[test]
fn what_is_not_a_key_of_ours_is_refused() {
    let server = server!();
    server.script(CLIENT, &registration("test/short.1", 7, 16));
    server.script(
        CLIENT,
        "client.register(objects.SecretData(bytes(32), enums.SecretDataType.PASSWORD, \
         name='test/secret.1'))\n\
         client.register(objects.SymmetricKey(enums.CryptographicAlgorithm.CAMELLIA, 256, \
         bytes([7] * 32), name='test/camellia.1'))",
    );
    let mut provider = provider(&options_of(&server));
    for (key, kind, complaint) in [
        ("short", ProviderErrorKind::KeyLengthWrong, "16 bytes"),
        ("secret", ProviderErrorKind::AnswerInvalid, "format Raw"),
        ("camellia", ProviderErrorKind::AnswerInvalid, "not a key for AES"),
    ] {
        let text = fails(open(&mut provider, &format!("{key}?version=1")), kind);
        assert!(text.contains(complaint), "{text}");
        fails(provider.discover(&name(key), &[]), kind);
        fails(provider.check(&id(&name(key), 1)), kind);
    }
}

#[test]
fn two_objects_with_one_name_are_an_error() {
    let server = server!();
    for byte in [1, 2] {
        server.script(CLIENT, &registration("test/user_pii.1", byte, 32));
    }
    let mut provider = provider(&options_of(&server));
    let complaint = "more than one object with the name \"test/user_pii.1\"";
    let invalid = ProviderErrorKind::AnswerInvalid;
    assert!(fails(open(&mut provider, "user_pii?version=1"), invalid).contains(complaint));
    assert!(fails(provider.discover(&name("user_pii"), &[]), invalid).contains(complaint));
    assert!(fails(provider.make(&id(&name("user_pii"), 1)), invalid).contains(complaint));
}

#[test]
fn a_client_sees_what_it_may() {
    let server = server!();
    let mut owner = provider(&options_of(&server));
    owner.make(&id(&name("user_pii"), 1)).unwrap();
    // Servers leave out of a Locate what belongs to others.
    let other = options(server.address(), server.ca_file(), server.client("somebody_else"));
    let text =
        fails(open(&mut provider(&other), "user_pii?version=1"), ProviderErrorKind::KeyMissing);
    assert!(text.contains("belongs to another client"), "{text}");

    server.wait_for_policies();
    server.script(
        CLIENT,
        "key = objects.SymmetricKey(enums.CryptographicAlgorithm.AES, 256, bytes([7] * 32), \
         name='test/locked.1')\n\
         key.operation_policy_name = 'unreadable'\n\
         client.register(key)",
    );
    let text = fails(open(&mut owner, "locked?version=1"), ProviderErrorKind::Denied);
    assert!(text.contains("does not allow Get for \"test/locked.1\""), "{text}");
}

#[test]
fn a_client_certificate_that_is_not_accepted_is_a_login_that_fails() {
    let server = server!();
    let with = |client| options(server.address(), server.ca_file(), client);
    let failed = ProviderErrorKind::LoginFailed;

    let folder = tempfile::tempdir().unwrap();
    for strange in [server.strange_client(CLIENT), pykmip::unknown_client(folder.path())] {
        let strange = with(strange);
        let text = fails(open(&mut provider(&strange), "user_pii?version=1"), failed);
        assert!(text.contains("does not accept the client certificate"), "{text}");
        fails(provider(&strange).check(&id(&name("user_pii"), 1)), failed);
    }

    // The handshake succeeds, and the server says no to the first request.
    let purposeless = with(server.client_without_purpose(CLIENT));
    let text = fails(open(&mut provider(&purposeless), "user_pii?version=1"), failed);
    assert!(text.contains("as a login"), "{text}");

    // The files of two certificates.
    let (one, other) = (server.client("one"), server.client("other"));
    let mixed = with(ClientCertificate { key_file: other.key_file, ..one });
    let text = fails(open(&mut provider(&mixed), "user_pii?version=1"), failed);
    assert!(text.contains("is not that of the certificate"), "{text}");
    let missing = with(ClientCertificate {
        certificate_file: "/nonexistent/certificate.pem".into(),
        ..server.client("one")
    });
    fails(open(&mut provider(&missing), "user_pii?version=1"), failed);
}

#[test]
fn a_certificate_that_is_replaced_is_used() {
    let server = server!();
    let options = options_of(&server);
    let mut provider = provider(&options);
    provider.make(&id(&name("user_pii"), 1)).unwrap();
    let other = server.client("somebody_else");
    fs::copy(other.certificate_file, &options.client_certificate_file).unwrap();
    fs::copy(other.key_file, &options.client_key_file).unwrap();
    fails(open(&mut provider, "user_pii?version=1"), ProviderErrorKind::KeyMissing);
}

#[test]
fn a_server_of_an_unknown_authority_is_not_trusted() {
    let server = server!();
    let folder = tempfile::tempdir().unwrap();
    let ca_file = folder.path().join("ca.pem");
    fs::write(&ca_file, openbao::unrelated_authority()).unwrap();
    let ca_file = ca_file.into_os_string().into_string().unwrap();
    for ca_file in [ca_file, String::new()] {
        let options = KmipOptions { ca_file, ..options_of(&server) };
        let text = fails(
            open(&mut provider(&options), "user_pii?version=1"),
            ProviderErrorKind::Unreachable,
        );
        assert!(text.contains("certificate of the KMIP server"), "{text}");
    }
    // By another name than that in its certificate.
    let address = server.address().replace("127.0.0.1", "127.0.0.2");
    let options = KmipOptions { address, ..options_of(&server) };
    fails(open(&mut provider(&options), "user_pii?version=1"), ProviderErrorKind::Unreachable);
}

#[test]
fn a_server_that_hangs_is_left_in_time_and_at_a_cancel() {
    let server = server!();
    let options = options_of(&server);
    let mut patient = provider(&options);
    patient.make(&id(&name("user_pii"), 1)).unwrap();
    server.pause();

    // On the connection that is open, and on a new one.
    for limit in [2000, 1000] {
        let limits = RequestLimits {
            connect: Duration::from_millis(500),
            total: Duration::from_millis(limit),
        };
        let mut provider = KmipProvider::new(&options, limits, Box::new(|| false)).unwrap();
        let start = Instant::now();
        fails(open(&mut provider, "user_pii?version=1"), ProviderErrorKind::TimedOut);
        assert!(start.elapsed() < Duration::from_millis(limit + 300), "{:?}", start.elapsed());
    }
    let start = Instant::now();
    fails(open(&mut patient, "user_pii?version=1"), ProviderErrorKind::TimedOut);
    assert!(start.elapsed() < Duration::from_millis(5300), "{:?}", start.elapsed());

    let cancelled = Arc::new(AtomicBool::new(false));
    let asked = Arc::clone(&cancelled);
    let interrupt = Box::new(move || asked.load(Ordering::Relaxed));
    let mut impatient = KmipProvider::new(&options, RequestLimits::default(), interrupt).unwrap();
    let waiting = thread::spawn(move || {
        let result = open(&mut impatient, "user_pii?version=1");
        (result, Instant::now())
    });
    thread::sleep(Duration::from_millis(300));
    let start = Instant::now();
    cancelled.store(true, Ordering::Relaxed);
    let (result, end) = waiting.join().unwrap();
    fails(result, ProviderErrorKind::Interrupted);
    assert!(end - start < Duration::from_millis(200), "{:?}", end - start);

    server.resume();
    open(&mut patient, "user_pii?version=1").unwrap();
}

#[test]
fn a_server_that_is_gone_is_told_and_found_again() {
    let mut server = server!();
    let mut provider = provider(&options_of(&server));
    let made = provider.make(&id(&name("user_pii"), 1)).unwrap();
    server.stop();
    let start = Instant::now();
    fails(open(&mut provider, &made.reference), ProviderErrorKind::Unreachable);
    // It has tried three times again, after 0.1, 0.2 and 0.4 seconds at least.
    assert!(start.elapsed() >= Duration::from_millis(700), "{:?}", start.elapsed());
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
    server.restart();
    assert_eq!(open(&mut provider, &made.reference).unwrap().expose(), made.key.expose());
}

#[test]
fn a_connection_that_the_server_has_closed_is_replaced() {
    let mut server = server!();
    let mut provider = provider(&options_of(&server));
    let made = provider.make(&id(&name("user_pii"), 1)).unwrap();
    server.restart();
    assert_eq!(open(&mut provider, &made.reference).unwrap().expose(), made.key.expose());
}

#[test]
fn settings_that_can_not_be_used_are_told() {
    let good = KmipOptions {
        address: "kmip.example".to_owned(),
        ca_file: String::new(),
        client_certificate_file: "/etc/kmip/client.pem".to_owned(),
        client_key_file: "/etc/kmip/client.key".to_owned(),
        name_prefix: String::new(),
    };
    let new = |options: &KmipOptions| {
        KmipProvider::new(options, RequestLimits::default(), Box::new(|| false)).map(drop)
    };
    for address in ["kmip.example", "kmip.example:1", "10.0.0.1:5696", "[2001:db8::1]", "[::1]:9"] {
        new(&KmipOptions { address: address.to_owned(), ..good.clone() }).unwrap();
    }
    let refused = |options: &KmipOptions, field: &str| {
        let text = fails(new(options), ProviderErrorKind::Configuration);
        assert!(text.contains(&format!("\"{field}\"")) && !text.contains("hunter2"), "{text}");
    };
    for address in [
        "",
        "https://kmip.example",
        "user:hunter2@kmip.example",
        "kmip.example:",
        "kmip.example:0",
        "kmip.example:65536",
        "kmip.example:+1",
        "kmip example",
        ":5696",
        "2001:db8::1",
        "a/hunter2",
    ] {
        refused(&KmipOptions { address: address.to_owned(), ..good.clone() }, "address");
    }
    for name_prefix in ["a b", "ä", "a\n", &"a".repeat(129)] {
        let name_prefix = name_prefix.to_owned();
        refused(&KmipOptions { name_prefix, ..good.clone() }, "name_prefix");
    }
    refused(&KmipOptions { ca_file: "ca.pem".to_owned(), ..good.clone() }, "ca_file");
    refused(
        &KmipOptions { client_certificate_file: String::new(), ..good.clone() },
        "client_certificate_file",
    );
    refused(&KmipOptions { client_key_file: "key".to_owned(), ..good.clone() }, "client_key_file");
}

// What no good server does.

/// A fake server, and the settings for it, with the folder of a client's certificate.
struct Fake {
    server: FakeKmip,
    options: KmipOptions,
    _folder: TempDir,
}

impl Fake {
    fn start(reply: impl Fn(&[u8], u64) -> Reply + Send + Sync + 'static) -> Self {
        let server = FakeKmip::start(reply);
        let folder = tempfile::tempdir().unwrap();
        let certificate = pykmip::unknown_client(folder.path());
        let options = options(server.address(), server.ca_file(), certificate);
        Self { server, options, _folder: folder }
    }

    fn open(&self) -> Result<DataKey, ProviderError> {
        open(&mut provider(&self.options), "user_pii?version=1")
    }
}

fn item(tag: u32, kind: u8, value: &[u8]) -> Vec<u8> {
    let mut item = (0x42_0000 | tag).to_be_bytes()[1..].to_vec();
    item.push(kind);
    item.extend(u32::try_from(value.len()).unwrap().to_be_bytes());
    item.extend(value);
    item.resize(item.len().next_multiple_of(8), 0);
    item
}

fn structure(tag: u32, items: &[Vec<u8>]) -> Vec<u8> {
    item(tag, 1, &items.concat())
}

fn integer(tag: u32, value: u32) -> Vec<u8> {
    item(tag, 2, &value.to_be_bytes())
}

fn enumeration(tag: u32, value: u32) -> Vec<u8> {
    item(tag, 5, &value.to_be_bytes())
}

fn text(tag: u32, value: &str) -> Vec<u8> {
    item(tag, 7, value.as_bytes())
}

fn answer(items: &[Vec<u8>]) -> Vec<u8> {
    let version = structure(0x69, &[integer(0x6A, 1), integer(0x6B, 2)]);
    let header = structure(0x7A, &[version, item(0x92, 9, &[0; 8]), integer(0x0D, 1)]);
    structure(0x7B, &[header, structure(0x0F, items)])
}

fn success(operation: u32, payload: &[Vec<u8>]) -> Vec<u8> {
    answer(&[enumeration(0x5C, operation), enumeration(0x7F, 0), structure(0x7C, payload)])
}

fn failure(operation: u32, reason: u32) -> Vec<u8> {
    answer(&[
        enumeration(0x5C, operation),
        enumeration(0x7F, 1),
        enumeration(0x7E, reason),
        text(0x7D, "hunter2 and what the server says besides"),
    ])
}

const REGISTER: u32 = 0x03;
const LOCATE: u32 = 0x08;
const GET: u32 = 0x0A;
const GET_ATTRIBUTES: u32 = 0x0B;

fn operation_of(request: &[u8]) -> u32 {
    let tag = [0x42, 0x00, 0x5C, 5, 0, 0, 0, 4];
    let at = request.windows(8).position(|window| window == tag).unwrap();
    u32::from_be_bytes(request[at + 8..at + 12].try_into().unwrap())
}

fn asks_for(request: &[u8], name: &str) -> bool {
    request.windows(name.len()).any(|window| window == name.as_bytes())
}

/// A Get's answer with a key block.
fn key_answer(block: &[Vec<u8>]) -> Vec<u8> {
    let key = structure(0x8F, &[structure(0x40, block)]);
    success(GET, &[enumeration(0x57, 2), text(0x94, "uid"), key])
}

fn key_value() -> Vec<u8> {
    structure(0x45, &[item(0x43, 8, &[7; 32])])
}

/// What a good server with one object says to anything but Register.
fn good(request: &[u8]) -> Vec<u8> {
    match operation_of(request) {
        LOCATE => success(LOCATE, &[text(0x94, "uid")]),
        GET_ATTRIBUTES => success(GET_ATTRIBUTES, &[text(0x94, "uid"), state(2)]),
        GET => key_answer(&[
            enumeration(0x42, 1),
            key_value(),
            enumeration(0x28, 3),
            integer(0x2A, 256),
        ]),
        other => failure(other, 0x05),
    }
}

fn state(state: u32) -> Vec<u8> {
    structure(0x08, &[text(0x0A, "State"), enumeration(0x0B, state)])
}

/// A server that answers `instead` to one operation.
fn with_answer(operation: u32, instead: Vec<u8>) -> Fake {
    Fake::start(move |request, _| {
        Reply::Send(match operation_of(request) == operation {
            true => instead.clone(),
            false => good(request),
        })
    })
}

#[test]
fn the_fake_server_is_good_but_for_what_a_test_changes() {
    let fake = Fake::start(|request, _| Reply::Send(good(request)));
    assert_eq!(fake.open().unwrap().expose(), &[7; 32]);
}

#[test]
fn garbage_is_refused() {
    let mut long_text = text(0x94, "uid");
    long_text[7] = 200;
    let wrong_version = {
        let mut answer = success(LOCATE, &[text(0x94, "uid")]);
        let at = answer.windows(3).position(|tag| tag == [0x42, 0x00, 0x6A]).unwrap();
        answer[at + 11] = 9;
        answer
    };
    for garbage in [
        vec![0xF7; 500],
        b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec(),
        structure(0x7B, &[]),
        structure(0x7B, &[vec![0xFF; 16]]),
        answer(&[]),
        wrong_version,
        success(GET, &[text(0x94, "uid")]),
        success(LOCATE, &[integer(0x94, 1)]),
        success(LOCATE, &[long_text]),
        answer(&[enumeration(0x5C, LOCATE), enumeration(0x7F, 2)]),
        answer(&[enumeration(0x5C, LOCATE), enumeration(0x7F, 1)]),
    ] {
        let fake = Fake::start(move |_, _| Reply::Last(garbage.clone()));
        let text = fails(fake.open(), ProviderErrorKind::AnswerInvalid);
        assert!(text.contains("not KMIP 1.2"), "{text}");
        assert_eq!(fake.server.connections(), 1);
    }
}

#[test]
fn an_answer_that_is_too_large_is_not_read() {
    let mut huge = structure(0x7B, &[]);
    huge[4..8].copy_from_slice(&0x7FFF_FFFF_u32.to_be_bytes());
    huge.resize(4 << 20, 0);
    let fake = Fake::start(move |_, _| Reply::Send(huge.clone()));
    let text = fails(fake.open(), ProviderErrorKind::AnswerInvalid);
    assert!(text.contains("more than 1 MiB"), "{text}");
}

#[test]
fn an_answer_that_never_ends_is_left_in_time() {
    let fake = Fake::start(|_, _| Reply::Drip);
    let limits = RequestLimits { total: Duration::from_millis(1500), ..RequestLimits::default() };
    let mut provider = KmipProvider::new(&fake.options, limits, Box::new(|| false)).unwrap();
    let start = Instant::now();
    fails(open(&mut provider, "user_pii?version=1"), ProviderErrorKind::TimedOut);
    assert!(start.elapsed() < Duration::from_millis(1800), "{:?}", start.elapsed());
}

#[test]
fn an_answer_that_is_cut_is_asked_for_again() {
    let cut = {
        let answer = success(LOCATE, &[text(0x94, "uid")]);
        answer[..answer.len() - 8].to_vec()
    };
    let always_cut = Fake::start({
        let cut = cut.clone();
        move |_, _| Reply::Last(cut.clone())
    });
    fails(always_cut.open(), ProviderErrorKind::Unreachable);
    assert_eq!(always_cut.server.connections(), 4);

    let was_cut = AtomicBool::new(false);
    let once_cut = Fake::start(move |request, _| match was_cut.swap(true, Ordering::Relaxed) {
        false => Reply::Last(cut.clone()),
        true => Reply::Send(good(request)),
    });
    assert_eq!(once_cut.open().unwrap().expose(), &[7; 32]);
    assert_eq!(once_cut.server.connections(), 2);
}

#[test]
fn what_servers_refuse_is_told_by_its_kind() {
    use ProviderErrorKind::{
        AnswerInvalid, Denied, KeyMissing, LoginFailed, Unreachable, VersionMissing,
    };

    for (operation, reason, kind) in [
        (LOCATE, 0x01, KeyMissing),
        (LOCATE, 0x03, LoginFailed),
        (LOCATE, 0x05, AnswerInvalid),
        (LOCATE, 0x0C, Denied),
        (LOCATE, 0x100, Unreachable),
        (GET_ATTRIBUTES, 0x01, VersionMissing),
        (GET_ATTRIBUTES, 0x0C, Denied),
        (GET, 0x01, VersionMissing),
        (GET, 0x0C, Denied),
        (GET, 0x0D, Denied),
        (GET, 0x10, AnswerInvalid),
        (GET, 0x13, VersionMissing),
        (GET, 0x16, Denied),
        (GET, 0x17, Denied),
        (GET, 0x2B, AnswerInvalid),
        (GET, 0x8000_0001, AnswerInvalid),
    ] {
        let text = fails(with_answer(operation, failure(operation, reason)).open(), kind);
        assert!(!text.contains("hunter2"), "{text}");
    }
    for (number, kind) in [(3, Denied), (4, Denied), (5, VersionMissing), (6, VersionMissing)] {
        let answer = success(GET_ATTRIBUTES, &[text(0x94, "uid"), state(number)]);
        fails(with_answer(GET_ATTRIBUTES, answer).open(), kind);
    }
}

#[test]
fn key_blocks_that_are_not_a_raw_key_are_refused() {
    let aes = || [enumeration(0x28, 3), integer(0x2A, 256)].concat();
    let raw = || enumeration(0x42, 1);
    for (block, complaint) in [
        (vec![raw(), key_value(), aes(), structure(0x46, &[])], "wrapped"),
        (vec![enumeration(0x42, 7), key_value(), aes()], "format Raw"),
        (vec![raw(), enumeration(0x41, 1), key_value(), aes()], "format Raw"),
        (vec![raw(), structure(0x45, &[structure(0x43, &[])]), aes()], "not KMIP"),
        (vec![raw(), key_value()], "not KMIP"),
        (vec![raw(), aes()], "not KMIP"),
        (vec![raw(), key_value(), key_value(), aes()], "not KMIP"),
    ] {
        let text =
            fails(with_answer(GET, key_answer(&block)).open(), ProviderErrorKind::AnswerInvalid);
        assert!(text.contains(complaint), "{text}");
    }
    let secret = success(GET, &[enumeration(0x57, 7), text(0x94, "uid")]);
    let text_of = fails(with_answer(GET, secret).open(), ProviderErrorKind::AnswerInvalid);
    assert!(text_of.contains("not a symmetric key"), "{text_of}");
    // The answer to another request.
    let other = success(GET, &[enumeration(0x57, 2), text(0x94, "other")]);
    fails(with_answer(GET, other).open(), ProviderErrorKind::AnswerInvalid);
}

/// A server without objects that answers `to_register`, and has the objects with `after` afterwards.
fn registrar(to_register: Vec<u8>, after: &'static [&'static str]) -> Fake {
    let registered = AtomicBool::new(false);
    Fake::start(move |request, _| {
        Reply::Send(match operation_of(request) {
            REGISTER => {
                registered.store(true, Ordering::Relaxed);
                to_register.clone()
            }
            LOCATE if registered.load(Ordering::Relaxed) => {
                success(LOCATE, &after.iter().map(|uid| text(0x94, uid)).collect::<Vec<_>>())
            }
            LOCATE => success(LOCATE, &[]),
            _ => good(request),
        })
    })
}

#[test]
fn registering_that_is_not_allowed_or_in_vain_is_told() {
    use ProviderErrorKind::{Conflict, LoginFailed, WriteDenied};

    let make = |fake: &Fake| provider(&fake.options).make(&id(&name("user_pii"), 1));
    for (reason, kind) in
        [(0x0C, WriteDenied), (0x05, WriteDenied), (0x03, LoginFailed), (0x18, Conflict)]
    {
        let text = fails(make(&registrar(failure(REGISTER, reason), &[])), kind);
        assert!(kind == LoginFailed || text.contains("\"test/user_pii.1\""), "{text}");
    }
    let registered = || success(REGISTER, &[text(0x94, "ours")]);
    make(&registrar(registered(), &["ours"])).unwrap();
    // Somebody else has registered one at the same time.
    let text = fails(make(&registrar(registered(), &["theirs", "ours"])), Conflict);
    assert!(text.contains("\"ours\""), "{text}");
}

#[test]
fn an_answer_to_a_registration_that_is_lost_does_not_make_two() {
    let fake = Fake::start({
        let registered = AtomicBool::new(false);
        move |request, _| match operation_of(request) {
            REGISTER => {
                assert!(!registered.swap(true, Ordering::Relaxed), "registered twice");
                Reply::Last(Vec::new())
            }
            LOCATE if registered.load(Ordering::Relaxed) && asks_for(request, "user_pii.1") => {
                Reply::Send(good(request))
            }
            LOCATE => Reply::Send(success(LOCATE, &[])),
            _ => Reply::Send(good(request)),
        }
    });
    let mut provider = provider(&fake.options);
    let text = fails(provider.make(&id(&name("user_pii"), 1)), ProviderErrorKind::Conflict);
    assert!(text.contains("Run the command again"), "{text}");
}
