//! The provider `pkcs11`, against SoftHSM. Each test is a process of its own, with its own tokens.

#![expect(clippy::unwrap_used, reason = "a test fails by a panic")]

mod contract;

use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant, SystemTime};

use contract::{Subject, id, keeps_the_contract, name};
use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::mechanism::Mechanism;
use cryptoki::object::{Attribute, KeyType, ObjectClass};
use cryptoki::session::{Session, SessionState, UserType};
use cryptoki::types::{AuthPin, Ulong};
use harness::softhsm::{SoftHsm, in_own_process};
use keyring::call::RequestLimits;
use keyring::pkcs11::{Pkcs11Options, Pkcs11Provider};
use keyring::provider::{
    Interrupt, MadeVersion, Provider, ProviderError, ProviderErrorKind, WrappedKey,
};

const TOKEN: &str = "database server";
const KEY: &str = "postgresql";

fn arguments() -> CInitializeArgs {
    CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK)
}

/// A token with an AES key, and the settings for it.
fn set_up(softhsm: &SoftHsm) -> Pkcs11Options {
    softhsm.make_token(TOKEN);
    softhsm.import_aes_key(TOKEN, KEY, "01", &[1; 32]);
    options(softhsm)
}

fn options(softhsm: &SoftHsm) -> Pkcs11Options {
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    Pkcs11Options {
        module: text(softhsm.module()),
        token_label: TOKEN.to_owned(),
        pin_file: text(&softhsm.pin_file()),
        key_label: KEY.to_owned(),
        mechanism: String::new(),
    }
}

fn provider(options: &Pkcs11Options) -> Pkcs11Provider {
    provider_with(options, Box::new(|| false))
}

fn provider_with(options: &Pkcs11Options, interrupt: Box<dyn Interrupt>) -> Pkcs11Provider {
    let limits = RequestLimits { total: Duration::from_secs(30), ..RequestLimits::default() };
    Pkcs11Provider::new(options, limits, interrupt).unwrap()
}

fn with_mechanism(options: &Pkcs11Options, mechanism: &str) -> Pkcs11Options {
    Pkcs11Options { mechanism: mechanism.to_owned(), ..options.clone() }
}

fn with_key(options: &Pkcs11Options, label: &str) -> Pkcs11Options {
    Pkcs11Options { key_label: label.to_owned(), ..options.clone() }
}

fn make(provider: &mut Pkcs11Provider) -> Result<MadeVersion, ProviderError> {
    provider.make(&id(&name("user_pii"), 1))
}

/// The first 4 bytes of a key, to be compared.
fn open(provider: &mut Pkcs11Provider, made: &MadeVersion) -> Result<[u8; 4], ProviderError> {
    open_wrapped(provider, &made.reference, made.wrapped.as_deref().unwrap())
}

fn open_wrapped(
    provider: &mut Pkcs11Provider,
    reference: &str,
    wrapped: &[u8],
) -> Result<[u8; 4], ProviderError> {
    let key = provider.open(&id(&name("user_pii"), 1), reference, Some(wrapped))?;
    Ok(start(key.expose()))
}

fn start(key: &[u8; 32]) -> [u8; 4] {
    key[..4].try_into().unwrap()
}

#[track_caller]
fn fails<T>(result: Result<T, ProviderError>, kind: ProviderErrorKind) -> String {
    let error = result.err().expect("an error");
    let text = format!("{error} / {}", error.hint.as_deref().unwrap_or_default());
    assert_eq!(error.kind, kind, "{text}");
    assert!(!text.contains(SoftHsm::PIN) && !text.contains("31415926"), "{text}");
    text
}

/// Makes objects in the token, and leaves the module as it was.
fn in_token(softhsm: &SoftHsm, work: impl FnOnce(&Session)) {
    let module = Pkcs11::new(softhsm.module()).unwrap();
    let is_first = module.initialize(arguments()).is_ok();
    let slots = module.get_slots_with_initialized_token().unwrap();
    let is_ours = |slot: &_| module.get_token_info(*slot).unwrap().label() == TOKEN;
    let slot = slots.into_iter().find(is_ours).unwrap();
    let session = module.open_rw_session(slot).unwrap();
    session.login(UserType::User, Some(&AuthPin::new(SoftHsm::PIN.into()))).unwrap();
    work(&session);
    session.close().unwrap();
    if is_first {
        module.finalize().unwrap();
    }
}

fn make_rsa_key(session: &Session, label: &str, bits: u32) {
    let public = [
        Attribute::Token(true),
        Attribute::Label(label.into()),
        Attribute::ModulusBits(Ulong::new(bits.into())),
        Attribute::PublicExponent(vec![1, 0, 1]),
        Attribute::Encrypt(true),
    ];
    let private = [
        Attribute::Token(true),
        Attribute::Label(label.into()),
        Attribute::Sensitive(true),
        Attribute::Extractable(false),
        Attribute::Decrypt(true),
    ];
    session.generate_key_pair(&Mechanism::RsaPkcsKeyPairGen, &public, &private).unwrap();
}

fn make_aes_key(session: &Session, label: &str, bytes: u32, more: &[Attribute]) {
    let mut template = vec![
        Attribute::Token(true),
        Attribute::Label(label.into()),
        Attribute::ValueLen(Ulong::new(bytes.into())),
    ];
    template.extend_from_slice(more);
    session.generate_key(&Mechanism::AesKeyGen, &template).unwrap();
}

fn keeps_the_contract_with(options: &Pkcs11Options, binds_version: bool) {
    keeps_the_contract(&Subject {
        provider: &|interrupt| Box::new(provider_with(options, interrupt)),
        is_envelope: true,
        binds_version,
    });
}

#[test]
fn aes_gcm_keeps_the_contract() {
    in_own_process("aes_gcm_keeps_the_contract", |softhsm| {
        let options = set_up(softhsm);
        keeps_the_contract_with(&options, true);
        let made = make(&mut provider(&options)).unwrap();
        assert_eq!(made.reference, "aes-gcm:postgresql");
        let wrapped = made.wrapped.unwrap();
        assert_eq!((wrapped[0], wrapped.len()), (1, 61));
    });
}

#[test]
fn aes_key_wrap_keeps_the_contract() {
    in_own_process("aes_key_wrap_keeps_the_contract", |softhsm| {
        let options = with_mechanism(&set_up(softhsm), "aes-key-wrap");
        keeps_the_contract_with(&options, false);
        let made = make(&mut provider(&options)).unwrap();
        assert_eq!(made.reference, "aes-key-wrap:postgresql");
        let wrapped = made.wrapped.unwrap();
        assert_eq!((wrapped[0], wrapped.len()), (2, 41));
    });
}

#[test]
fn rsa_oaep_keeps_the_contract() {
    in_own_process("rsa_oaep_keeps_the_contract", |softhsm| {
        let options = with_mechanism(&set_up(softhsm), "rsa-oaep");
        in_token(softhsm, |session| make_rsa_key(session, KEY, 2048));
        keeps_the_contract_with(&options, false);
        let made = make(&mut provider(&options)).unwrap();
        assert_eq!(made.reference, "rsa-oaep:postgresql");
        let wrapped = made.wrapped.unwrap();
        // SoftHSM has SHA-1 alone.
        assert_eq!((wrapped[0], wrapped.len()), (5, 257));
    });
}

/// What is stored is what the specifications say: NIST SP 800-38D, RFC 3394 and RFC 5649 as another
/// implementation has them.
#[test]
fn wrapped_keys_are_those_of_another_implementation() {
    in_own_process("wrapped_keys_are_those_of_another_implementation", |softhsm| {
        if python("import cryptography", &[]).is_none() {
            harness::skip(
                "wrapped_keys_are_those_of_another_implementation",
                "no Python's cryptography",
            );
            return;
        }
        let options = set_up(softhsm);
        let mut gcm = provider(&options);
        let made = make(&mut gcm).unwrap();
        let data = id(&name("user_pii"), 1).additional_data();
        let opened = python(
            "from cryptography.hazmat.primitives.ciphers.aead import AESGCM\n\
             wrapped, data = arguments\n\
             print(AESGCM(bytes([1] * 32)).decrypt(wrapped[1:13], wrapped[13:], data).hex())\n",
            &[made.wrapped.as_deref().unwrap(), &data],
        );
        assert_eq!(opened.unwrap(), hex(made.key.expose()));

        let wrapped = python(
            "from cryptography.hazmat.primitives.keywrap import *\n\
             print(aes_key_wrap(bytes([1] * 32), arguments[0]).hex())\n\
             print(aes_key_wrap_with_padding(bytes([1] * 32), arguments[0]).hex())\n",
            &[made.key.expose()],
        );
        for (format, wrapped) in [2, 3].into_iter().zip(wrapped.unwrap().lines()) {
            let wrapped = [vec![format], from_hex(wrapped)].concat();
            let opened = open_wrapped(&mut gcm, "aes-key-wrap:postgresql", &wrapped).unwrap();
            assert_eq!(opened, start(made.key.expose()));
        }
    });
}

/// What a Python program prints, with its `arguments`; nothing if it fails.
fn python(program: &str, arguments: &[&[u8]]) -> Option<String> {
    let begin = "import sys\narguments = [bytes.fromhex(text) for text in sys.argv[1:]]\n";
    let output = Command::new("python3")
        .args(["-c", &format!("{begin}{program}")])
        .args(arguments.iter().map(|argument| hex(argument)))
        .output()
        .ok()?;
    output.status.success().then(|| String::from_utf8(output.stdout).unwrap().trim().to_owned())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn from_hex(text: &str) -> Vec<u8> {
    (0..text.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap())
        .collect()
}

#[test]
fn a_hash_that_the_token_has_not_got_is_no_fault_of_the_wrapped_key() {
    let test = "a_hash_that_the_token_has_not_got_is_no_fault_of_the_wrapped_key";
    in_own_process(test, |softhsm| {
        let options = with_mechanism(&set_up(softhsm), "rsa-oaep");
        in_token(softhsm, |session| make_rsa_key(session, KEY, 2048));
        let wrapped = [vec![4], vec![1; 256]].concat();
        let opened = open_wrapped(&mut provider(&options), "rsa-oaep:postgresql", &wrapped);
        let text = fails(opened, ProviderErrorKind::Configuration);
        assert!(text.contains("C_DecryptInit"), "{text}");
    });
}

/// A configuration that is a named pipe holds `C_Initialize` up until somebody writes into it.
#[test]
fn a_module_that_hangs_holds_nobody_up() {
    in_own_process("a_module_that_hangs_holds_nobody_up", |softhsm| {
        let options = set_up(softhsm);
        let (_, path) = softhsm.variable();
        let configuration = fs::read(&path).unwrap();
        fs::remove_file(&path).unwrap();
        assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());

        let begin = Instant::now();
        let limits =
            RequestLimits { total: Duration::from_millis(300), ..RequestLimits::default() };
        let mut hasty = Pkcs11Provider::new(&options, limits, Box::new(|| false)).unwrap();
        fails(make(&mut hasty), ProviderErrorKind::TimedOut);
        assert!((300..600).contains(&begin.elapsed().as_millis()), "{:?}", begin.elapsed());
        drop(hasty);

        let begin = Instant::now();
        let cancelled = Box::new(move || begin.elapsed() > Duration::from_millis(100));
        let mut patient = provider_with(&options, cancelled);
        fails(make(&mut patient), ProviderErrorKind::Interrupted);
        drop(patient);
        assert!((100..400).contains(&begin.elapsed().as_millis()), "{:?}", begin.elapsed());
        assert_eq!(keyring::call::running(), 2);

        // It goes on: what was given up ends, and leaves a module that can be used.
        fs::write(&path, configuration).unwrap();
        let begin = Instant::now();
        while keyring::call::running() != 0 {
            assert!(begin.elapsed() < Duration::from_secs(20));
            std::thread::sleep(Duration::from_millis(10));
        }
        let mut provider = provider(&options);
        let made = make(&mut provider).unwrap();
        assert_eq!(open(&mut provider, &made).unwrap(), start(made.key.expose()));
    });
}

#[test]
fn a_wrong_pin_is_tried_once() {
    in_own_process("a_wrong_pin_is_tried_once", |softhsm| {
        let options = set_up(softhsm);
        fs::write(&options.pin_file, "31415926\n").unwrap();
        let text = fails(make(&mut provider(&options)), ProviderErrorKind::LoginFailed);
        assert!(text.contains("CKR_PIN_INCORRECT"), "{text}");
        // From now on the token is not even asked, by any instance in the process.
        let mut other = provider(&options);
        for _ in 0..20 {
            let text = fails(make(&mut other), ProviderErrorKind::LoginFailed);
            assert!(text.contains("has refused the PIN") && text.contains("touch it"), "{text}");
        }
        fails(other.check(&id(&name("probe"), 1)), ProviderErrorKind::LoginFailed);

        // Nor when the file is replaced by another one with a wrong PIN, after one try.
        fs::write(&options.pin_file, "314159265\n").unwrap();
        let text = fails(make(&mut other), ProviderErrorKind::LoginFailed);
        assert!(text.contains("CKR_PIN_INCORRECT"), "{text}");

        // The right PIN works at once, for the instance that failed and for others.
        fs::write(&options.pin_file, SoftHsm::PIN).unwrap();
        let made = make(&mut other).unwrap();
        assert_eq!(open(&mut provider(&options), &made).unwrap(), start(made.key.expose()));
    });
}

#[test]
fn a_pin_that_was_right_after_all_is_tried_when_the_file_is_touched() {
    let test = "a_pin_that_was_right_after_all_is_tried_when_the_file_is_touched";
    in_own_process(test, |softhsm| {
        let options = set_up(softhsm);
        fs::write(&options.pin_file, "31415926").unwrap();
        fails(make(&mut provider(&options)), ProviderErrorKind::LoginFailed);
        in_token(softhsm, |session| {
            let (old, new) = (SoftHsm::PIN.into(), "31415926".into());
            session.set_pin(&AuthPin::new(old), &AuthPin::new(new)).unwrap();
        });
        fails(make(&mut provider(&options)), ProviderErrorKind::LoginFailed);
        let file = File::options().write(true).open(&options.pin_file).unwrap();
        file.set_modified(SystemTime::now() + Duration::from_secs(1)).unwrap();
        make(&mut provider(&options)).unwrap();
    });
}

#[test]
fn pin_files_that_can_not_be_used_are_told() {
    in_own_process("pin_files_that_can_not_be_used_are_told", |softhsm| {
        let options = set_up(softhsm);
        fs::write(&options.pin_file, "\n").unwrap();
        let text = fails(make(&mut provider(&options)), ProviderErrorKind::Configuration);
        assert!(text.contains("PIN file") && text.contains("empty"), "{text}");
        fs::remove_file(&options.pin_file).unwrap();
        fails(make(&mut provider(&options)), ProviderErrorKind::Configuration);
        // A token that wants a login, and no PIN file.
        let none = Pkcs11Options { pin_file: String::new(), ..options.clone() };
        let text = fails(make(&mut provider(&none)), ProviderErrorKind::Configuration);
        assert!(text.contains("wants a login") && text.contains("pin_file"), "{text}");
    });
}

#[test]
fn what_is_missing_is_told() {
    in_own_process("what_is_missing_is_told", |softhsm| {
        let options = set_up(softhsm);
        let made = make(&mut provider(&options)).unwrap();

        let text =
            fails(make(&mut provider(&with_key(&options, "other"))), ProviderErrorKind::KeyMissing);
        assert!(text.contains("\"other\"") && text.contains("secret key"), "{text}");
        let wrapped = made.wrapped.as_deref().unwrap();
        let mut same = provider(&options);
        let missing = open_wrapped(&mut same, "aes-gcm:deleted", wrapped);
        fails(missing, ProviderErrorKind::KeyMissing);
        let rsa = with_mechanism(&options, "rsa-oaep");
        let text = fails(make(&mut provider(&rsa)), ProviderErrorKind::KeyMissing);
        assert!(text.contains("public key"), "{text}");

        let no_token = Pkcs11Options { token_label: "other".to_owned(), ..options.clone() };
        let text = fails(make(&mut provider(&no_token)), ProviderErrorKind::Unreachable);
        assert!(
            text.contains("\"other\"") && text.contains("It has \"database server\""),
            "{text}"
        );

        let module = |path: &str| Pkcs11Options { module: path.to_owned(), ..options.clone() };
        let missing = module("/nowhere/libpkcs11.so");
        let text = fails(make(&mut provider(&missing)), ProviderErrorKind::Configuration);
        assert!(text.contains("/nowhere/libpkcs11.so"), "{text}");
        let text_file = module(&options.pin_file);
        fails(make(&mut provider(&text_file)), ProviderErrorKind::Configuration);
        for folder in ["/lib/x86_64-linux-gnu", "/lib/aarch64-linux-gnu", "/lib64"] {
            let library = format!("{folder}/libm.so.6");
            if Path::new(&library).exists() {
                let text =
                    fails(make(&mut provider(&module(&library))), ProviderErrorKind::Configuration);
                assert!(text.contains("not a PKCS #11 module"), "{text}");
            }
        }
        // None of it has put off the one that works.
        assert_eq!(open(&mut same, &made).unwrap(), start(made.key.expose()));
    });
}

#[test]
fn what_is_there_twice_is_refused() {
    in_own_process("what_is_there_twice_is_refused", |softhsm| {
        let options = set_up(softhsm);
        let made = make(&mut provider(&options)).unwrap();
        softhsm.import_aes_key(TOKEN, KEY, "02", &[2; 32]);
        let text = fails(open(&mut provider(&options), &made), ProviderErrorKind::Configuration);
        assert!(text.contains("2 objects") && text.contains("another label"), "{text}");

        softhsm.make_token(TOKEN);
        let other = Pkcs11Options { token_label: "none".to_owned(), ..options.clone() };
        // Has the module look again.
        fails(make(&mut provider(&other)), ProviderErrorKind::Unreachable);
        let text = fails(make(&mut provider(&options)), ProviderErrorKind::Configuration);
        assert!(text.contains("has 2 tokens"), "{text}");
    });
}

#[test]
fn keys_that_may_not_wrap_are_told() {
    in_own_process("keys_that_may_not_wrap_are_told", |softhsm| {
        let options = set_up(softhsm);
        in_token(softhsm, |session| {
            let decrypts = [Attribute::Encrypt(false), Attribute::Decrypt(true)];
            make_aes_key(session, "no encrypt", 32, &decrypts);
            make_aes_key(session, "no wrap", 32, &[Attribute::Wrap(false)]);
            let generic = [
                Attribute::Class(ObjectClass::SECRET_KEY),
                Attribute::KeyType(KeyType::GENERIC_SECRET),
                Attribute::Token(true),
                Attribute::Label("no AES".into()),
                Attribute::Value(vec![3; 32]),
                Attribute::Encrypt(true),
            ];
            session.create_object(&generic).unwrap();
        });
        let refused = |label: &str, mechanism: &str| {
            let options = with_mechanism(&with_key(&options, label), mechanism);
            fails(make(&mut provider(&options)), ProviderErrorKind::Configuration)
        };
        let text = refused("no encrypt", "aes-gcm");
        assert!(text.contains("CKR_KEY_FUNCTION_NOT_PERMITTED"), "{text}");
        refused("no wrap", "aes-key-wrap");
        refused("no AES", "aes-gcm");
        let mut other = provider(&with_key(&options, "no AES"));
        let text = fails(other.check(&id(&name("p"), 1)), ProviderErrorKind::Configuration);
        assert!(text.contains("not of the type"), "{text}");
    });
}

#[test]
fn rewrapping_goes_to_the_key_and_the_mechanism_of_the_settings() {
    let test = "rewrapping_goes_to_the_key_and_the_mechanism_of_the_settings";
    in_own_process(test, |softhsm| {
        let options = set_up(softhsm);
        softhsm.import_aes_key(TOKEN, "postgresql 2", "02", &[2; 32]);
        in_token(softhsm, |session| make_rsa_key(session, "rsa", 2048));
        let made = make(&mut provider(&options)).unwrap();
        let key = name("user_pii");
        let id = id(&key, 1);
        let mut old = WrappedKey {
            reference: made.reference.clone(),
            wrapped: made.wrapped.clone().unwrap(),
        };
        for (label, mechanism) in [
            ("postgresql 2", "aes-gcm"),
            ("postgresql 2", "aes-key-wrap"),
            ("rsa", "rsa-oaep"),
            (KEY, "aes-gcm"),
        ] {
            let mut now = provider(&with_mechanism(&with_key(&options, label), mechanism));
            // Before it is wrapped again it can be opened by the new settings.
            let opened = open_wrapped(&mut now, &old.reference, &old.wrapped).unwrap();
            assert_eq!(opened, start(made.key.expose()));
            let new = now.rewrap(&id, &old.reference, Some(&old.wrapped)).unwrap().unwrap();
            assert_eq!(new.reference, format!("{mechanism}:{label}"));
            let opened = open_wrapped(&mut provider(&options), &new.reference, &new.wrapped);
            assert_eq!(opened.unwrap(), start(made.key.expose()));
            // The references are not interchangeable.
            let mixed = open_wrapped(&mut now, &old.reference, &new.wrapped);
            fails(mixed, ProviderErrorKind::WrappedKeyInvalid);
            old = new;
        }
        // A key that was made anew under its old label unwraps nothing, and that is no outage.
        in_token(softhsm, |session| {
            let label = Attribute::Label(KEY.into());
            let objects = session.find_objects(&[label]).unwrap();
            objects.into_iter().for_each(|object| session.destroy_object(object).unwrap());
            make_aes_key(session, KEY, 32, &[Attribute::Encrypt(true), Attribute::Decrypt(true)]);
        });
        let text =
            fails(open(&mut provider(&options), &made), ProviderErrorKind::WrappedKeyInvalid);
        assert!(text.contains("made anew under its old label"), "{text}");
    });
}

#[test]
fn a_token_that_goes_away_is_an_outage_until_it_is_back() {
    in_own_process("a_token_that_goes_away_is_an_outage_until_it_is_back", |softhsm| {
        let options = set_up(softhsm);
        let mut kept = provider(&options);
        let made = make(&mut kept).unwrap();
        assert_eq!(open(&mut kept, &made).unwrap(), start(made.key.expose()));

        let tokens = softhsm.folder().join("tokens");
        let away = softhsm.folder().join("away");
        fs::rename(&tokens, &away).unwrap();
        fs::create_dir(&tokens).unwrap();
        let error = open(&mut kept, &made).unwrap_err();
        assert!(error.kind.is_outage(), "{error:?}");
        let error = open(&mut provider(&options), &made).unwrap_err();
        assert!(error.kind.is_outage(), "{error:?}");

        fs::remove_dir_all(&tokens).unwrap();
        fs::rename(&away, &tokens).unwrap();
        assert_eq!(open(&mut kept, &made).unwrap(), start(made.key.expose()));
        assert_eq!(open(&mut provider(&options), &made).unwrap(), start(made.key.expose()));

        // Deleted for good, while a session is open.
        softhsm.delete_token(TOKEN);
        let error = open(&mut kept, &made).unwrap_err();
        assert!(error.kind.is_outage(), "{error:?}");
    });
}

#[test]
fn a_session_that_is_lost_is_opened_again() {
    in_own_process("a_session_that_is_lost_is_opened_again", |softhsm| {
        let options = set_up(softhsm);
        let mut provider = provider(&options);
        let made = make(&mut provider).unwrap();
        // Others in the process log out, finalize the module, and initialize it again.
        let module = Pkcs11::new(softhsm.module()).unwrap();
        let slot = module.get_slots_with_initialized_token().unwrap()[0];
        let disturbances: [&dyn Fn(); 3] = [
            &|| module.open_ro_session(slot).unwrap().logout().unwrap(),
            &|| module.clone().finalize().unwrap(),
            &|| {
                module.clone().finalize().unwrap();
                module.initialize(arguments()).unwrap();
            },
        ];
        for disturb in disturbances {
            disturb();
            assert_eq!(open(&mut provider, &made).unwrap(), start(made.key.expose()));
        }
    });
}

#[test]
fn a_module_that_another_part_of_the_process_uses_is_shared() {
    in_own_process("a_module_that_another_part_of_the_process_uses_is_shared", |softhsm| {
        let options = set_up(softhsm);
        let module = Pkcs11::new(softhsm.module()).unwrap();
        module.initialize(arguments()).unwrap();
        let slot = module.get_slots_with_initialized_token().unwrap()[0];
        let theirs = module.open_ro_session(slot).unwrap();
        let mut ours = provider(&options);
        let made = make(&mut ours).unwrap();
        drop(ours);
        // Neither their session nor their module is gone.
        assert_eq!(theirs.get_session_info().unwrap().session_state(), SessionState::RoUser);
        // A token has one login for a process. The last session that is closed ends it.
        assert_eq!(open(&mut provider(&options), &made).unwrap(), start(made.key.expose()));
        let missing = Pkcs11Options { token_label: "none".to_owned(), ..options };
        fails(make(&mut provider(&missing)), ProviderErrorKind::Unreachable);
        theirs.get_session_info().unwrap();
    });
}

#[test]
fn connections_are_sessions() {
    in_own_process("connections_are_sessions", |softhsm| {
        let options = set_up(softhsm);
        let mut provider = provider(&options);
        let made = make(&mut provider).unwrap();
        open(&mut provider, &made).unwrap();
        let module = Pkcs11::new(softhsm.module()).unwrap();
        let slot = module.get_slots_with_initialized_token().unwrap()[0];
        let is_logged_in = || {
            let session = module.open_ro_session(slot).unwrap();
            let state = session.get_session_info().unwrap().session_state();
            state == SessionState::RoUser
        };
        assert!(is_logged_in());
        provider.close_connections();
        assert!(!is_logged_in());
        open(&mut provider, &made).unwrap();
        assert!(is_logged_in());
        drop(provider);
        assert!(!is_logged_in());
    });
}

#[test]
fn a_forked_child_initializes_anew() {
    in_own_process("a_forked_child_initializes_anew", |softhsm| {
        let options = set_up(softhsm);
        let mut provider = provider(&options);
        let made = make(&mut provider).unwrap();
        // SAFETY: no other thread of this process allocates or holds a lock while it forks: the
        // others are the test program's, which wait. The child ends by `_exit`.
        let child = unsafe { libc::fork() };
        if child == 0 {
            // The parent's login is none of the child's: it needs the PIN.
            let away = Path::new(&options.pin_file).with_extension("away");
            let is_away = fs::rename(&options.pin_file, &away).is_ok();
            let without_pin = open(&mut provider, &made).is_err();
            let is_back = fs::rename(&away, &options.pin_file).is_ok();
            let ours = open(&mut provider, &made).ok();
            drop(provider);
            let mut another = self::provider(&options);
            let others = open(&mut another, &made).ok();
            drop(another);
            let is_right = [ours, others] == [Some(start(made.key.expose())); 2];
            let is_good = is_away && without_pin && is_back && is_right;
            // SAFETY: ends the process, and touches no memory.
            unsafe { libc::_exit(if is_good { 0 } else { 1 }) };
        }
        let mut status = -1;
        // SAFETY: the status is this function's own.
        unsafe { libc::waitpid(child, &raw mut status, 0) };
        assert_eq!(status, 0);
        // The parent's session has not been closed by the child.
        assert_eq!(open(&mut provider, &made).unwrap(), start(made.key.expose()));
    });
}

#[test]
fn threads_share_a_login() {
    in_own_process("threads_share_a_login", |softhsm| {
        let options = set_up(softhsm);
        let made = make(&mut provider(&options)).unwrap();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..25 {
                        let mut provider = provider(&options);
                        let opened = open(&mut provider, &made).unwrap();
                        assert_eq!(opened, start(made.key.expose()));
                    }
                });
            }
        });
    });
}

#[test]
fn a_check_tells_what_it_finds() {
    in_own_process("a_check_tells_what_it_finds", |softhsm| {
        let options = set_up(softhsm);
        in_token(softhsm, |session| {
            let weak = [
                Attribute::Extractable(true),
                Attribute::Sensitive(false),
                Attribute::Encrypt(true),
                Attribute::Decrypt(true),
            ];
            make_aes_key(session, "weak", 16, &weak);
            make_rsa_key(session, "rsa", 2048);
            let good = [
                Attribute::Extractable(false),
                Attribute::Sensitive(true),
                Attribute::Encrypt(true),
                Attribute::Decrypt(true),
            ];
            make_aes_key(session, "good", 32, &good);
        });
        let findings = |label: &str, mechanism: &str| {
            let options = with_mechanism(&with_key(&options, label), mechanism);
            provider(&options).check(&id(&name("probe"), 1)).unwrap()
        };
        let warnings = |label: &str, mechanism: &str| {
            findings(label, mechanism)
                .into_iter()
                .filter(|finding| finding.hint.is_some())
                .map(|finding| finding.detail)
                .collect::<Vec<_>>()
        };

        let found = findings("good", "aes-gcm");
        let whats = found.iter().map(|finding| finding.what).collect::<Vec<_>>();
        assert_eq!(whats, ["module", "token", "login", "key encryption key", "round trip"]);
        assert!(found[0].detail.contains("SoftHSM"), "{found:?}");
        assert!(found[1].detail.contains(TOKEN), "{found:?}");
        assert!(found[3].detail.contains("AES key of 256 bits"), "{found:?}");
        assert_eq!(warnings("good", "aes-gcm"), Vec::<String>::new());
        assert_eq!(warnings("rsa", "rsa-oaep"), Vec::<String>::new());
        assert!(findings("rsa", "rsa-oaep")[3].detail.contains("RSA key of 2048 bits"));

        let weak = warnings("weak", "aes-gcm").join("\n");
        for complaint in ["less than 256 bits", "CKA_EXTRACTABLE", "CKA_SENSITIVE"] {
            assert!(weak.contains(complaint), "{weak}");
        }
        fs::set_permissions(&options.pin_file, Permissions::from_mode(0o640)).unwrap();
        let file = warnings("good", "aes-gcm").join("\n");
        assert!(file.contains(&options.pin_file) && file.contains("others"), "{file}");
    });
}

/// How long things take, for the document.
#[test]
fn a_key_is_opened_in_milliseconds() {
    in_own_process("a_key_is_opened_in_milliseconds", |softhsm| {
        let options = set_up(softhsm);
        let mut provider = provider(&options);
        let made = make(&mut provider).unwrap();
        let begin = Instant::now();
        for _ in 0..20 {
            open(&mut provider, &made).unwrap();
        }
        let kept = begin.elapsed() / 20;
        let begin = Instant::now();
        for _ in 0..20 {
            provider.close_connections();
            open(&mut provider, &made).unwrap();
        }
        eprintln!("in a session {kept:?}, with a session and a login {:?}", begin.elapsed() / 20);
        assert!(kept < Duration::from_secs(1));
    });
}
