//! The provider `file`, on real files.

#![expect(clippy::unwrap_used, reason = "a test fails by a panic")]

mod contract;

use std::env;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use envelope::{KeyName, KeyVersion};
use keyring::call::RequestLimits;
use keyring::file::{FileOptions, FileProvider};
use keyring::provider::{Finding, Provider, ProviderError, ProviderErrorKind};
use keyring::version::{Keyspace, VersionId};
use tempfile::TempDir;

const KEYSPACE: Keyspace = Keyspace([7; 16]);
const LIMITS: RequestLimits =
    RequestLimits { connect: Duration::from_secs(1), total: Duration::from_secs(20) };

fn folder() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("keyring");
    (folder, path)
}

fn provider(path: &Path) -> FileProvider {
    FileProvider::new(&options(path, "yes"), LIMITS, Box::new(|| false)).unwrap()
}

fn options(path: &Path, may_create: &str) -> FileOptions {
    FileOptions { path: path.to_str().unwrap().to_owned(), may_create: may_create.to_owned() }
}

fn name(name: &str) -> KeyName {
    KeyName::parse(name).unwrap()
}

fn id(name: &KeyName) -> VersionId<'_> {
    VersionId { keyspace: KEYSPACE, name, version: KeyVersion::FIRST }
}

fn make(path: &Path, key: &str) -> Result<String, ProviderError> {
    provider(path).make(&id(&name(key))).map(|made| made.reference)
}

fn discover(path: &Path, key: &str, known: &[&str]) -> Result<Vec<String>, ProviderError> {
    let found = provider(path).discover(&name(key), known)?;
    Ok(found.into_iter().map(|version| version.reference).collect())
}

#[track_caller]
fn fails<T: std::fmt::Debug>(result: Result<T, ProviderError>, kind: ProviderErrorKind) -> String {
    let error = result.unwrap_err();
    assert_eq!(error.kind, kind, "{error:?}");
    format!("{error} / {}", error.hint.as_deref().unwrap_or_default())
}

#[test]
fn a_key_that_was_made_is_opened_and_found() {
    let (_folder, path) = folder();
    let user_pii = name("user_pii");
    let mut file = provider(&path);
    assert!(file.discover(&user_pii, &[]).unwrap().is_empty());
    assert!(!path.exists());

    let first = file.make(&id(&user_pii)).unwrap();
    assert_eq!((first.reference.as_str(), first.number), ("user_pii:1", Some(KeyVersion::FIRST)));
    assert!(first.wrapped.is_none());
    let second = file.make(&id(&user_pii)).unwrap();
    assert_eq!(second.reference, "user_pii:2");
    assert_ne!(first.key.expose(), second.key.expose());
    assert_eq!(make(&path, "other").unwrap(), "other:1");

    for made in [&first, &second] {
        let opened = provider(&path).open(&id(&user_pii), &made.reference, None).unwrap();
        assert_eq!(opened.expose(), made.key.expose());
    }
    let found = provider(&path).discover(&user_pii, &[]).unwrap();
    assert_eq!(found.iter().map(|v| v.number.get()).collect::<Vec<_>>(), [1, 2]);
    assert_eq!(found[1].key.expose(), second.key.expose());
    assert_eq!(discover(&path, "user_pii", &["user_pii:1"]).unwrap(), ["user_pii:2"]);
    assert!(discover(&path, "user_pii", &["user_pii:1", "user_pii:2"]).unwrap().is_empty());
}

#[test]
fn what_is_made_is_for_its_owner_alone() {
    let (folder, path) = folder();
    make(&path, "a").unwrap();
    make(&path, "a").unwrap();
    let mut names = Vec::new();
    for entry in fs::read_dir(folder.path()).unwrap() {
        let entry = entry.unwrap();
        assert_eq!(entry.metadata().unwrap().mode() & 0o7777, 0o600, "{entry:?}");
        names.push(entry.file_name().into_string().unwrap());
    }
    names.sort();
    assert_eq!(names, ["keyring", "keyring.lock"]);
}

#[test]
fn a_missing_keyring_is_made_only_if_allowed() {
    let (folder, path) = folder();
    let mut file = FileProvider::new(&options(&path, "no"), LIMITS, Box::new(|| false)).unwrap();
    let a = name("a");
    fails(file.make(&id(&a)), ProviderErrorKind::KeyringMissing);
    fails(file.discover(&a, &[]), ProviderErrorKind::KeyringMissing);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    fails(provider(&path).open(&id(&a), "a:1", None), ProviderErrorKind::KeyringMissing);
    make(&path, "a").unwrap();
    assert_eq!(file.make(&id(&a)).unwrap().reference, "a:2");
}

#[test]
fn missing_keys_and_versions_are_told_apart() {
    let (_folder, path) = folder();
    make(&path, "a").unwrap();
    let a = name("a");
    let open = |reference| provider(&path).open(&id(&a), reference, None);
    assert!(fails(open("b:1"), ProviderErrorKind::KeyMissing).contains("\"b\""));
    assert!(fails(open("a:2"), ProviderErrorKind::VersionMissing).contains("version 2"));
    for reference in ["", "a", "a:", "a:0", "a:01", "a:-1", "a:x", "../a:1", "a:1:1", "a?version=1"]
    {
        fails(open(reference), ProviderErrorKind::Configuration);
    }
}

#[test]
fn a_keyring_that_others_can_reach_is_refused() {
    let (_folder, path) = folder();
    make(&path, "a").unwrap();
    for mode in [0o640, 0o604, 0o620, 0o602, 0o610, 0o644, 0o666, 0o777] {
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        let message = fails(discover(&path, "a", &[]), ProviderErrorKind::KeyringInsecure);
        assert!(message.contains("chmod 600"), "{message}");
        assert!(message.contains(&format!("{mode:04o}")), "{message}");
        fails(make(&path, "a"), ProviderErrorKind::KeyringInsecure);
    }
    for mode in [0o600, 0o400] {
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        assert_eq!(discover(&path, "a", &[]).unwrap(), ["a:1"]);
    }
}

#[test]
fn a_keyring_of_another_user_is_refused() {
    const TEST: &str = "a_keyring_of_another_user_is_refused";
    let (_folder, path) = folder();
    make(&path, "a").unwrap();
    if std::os::unix::fs::chown(&path, Some(12_345), None).is_err() {
        harness::skip(TEST, "only root can give a file to another user");
        return;
    }
    fails(discover(&path, "a", &[]), ProviderErrorKind::KeyringInsecure);
}

#[test]
fn only_a_regular_file_is_a_keyring() {
    let (folder, path) = folder();
    fs::create_dir(&path).unwrap();
    fails(discover(&path, "a", &[]), ProviderErrorKind::KeyringUnreadable);
    fails(make(&path, "a"), ProviderErrorKind::KeyringUnreadable);
    fs::remove_dir(&path).unwrap();

    let target = folder.path().join("target");
    make(&target, "a").unwrap();
    symlink(&target, &path).unwrap();
    fails(discover(&path, "a", &[]), ProviderErrorKind::KeyringInsecure);
    fails(make(&path, "a"), ProviderErrorKind::KeyringInsecure);
    assert_eq!(discover(&target, "a", &[]).unwrap(), ["a:1"]);
    fs::remove_file(&path).unwrap();

    // A dangling link does not count as a missing keyring.
    symlink(folder.path().join("nowhere"), &path).unwrap();
    fails(make(&path, "a"), ProviderErrorKind::KeyringInsecure);
    fs::remove_file(&path).unwrap();

    let fifo = Command::new("mkfifo").arg("-m").arg("600").arg(&path).status().unwrap();
    assert!(fifo.success());
    let start = Instant::now();
    fails(discover(&path, "a", &[]), ProviderErrorKind::KeyringUnreadable);
    assert!(start.elapsed() < Duration::from_secs(1));
}

#[test]
fn what_is_not_a_keyring_is_refused_and_kept() {
    let (_folder, path) = folder();
    make(&path, "a").unwrap();
    let whole = fs::read(&path).unwrap();
    let secret = String::from_utf8(whole.clone()).unwrap();
    let secret = secret.split('"').find(|s| s.len() == 44).unwrap().to_owned();
    let text = String::from_utf8(whole.clone()).unwrap();
    for contents in [
        String::new(),
        text[..text.len() / 2].to_owned(),
        text.replace(&secret, &secret[4..]),
        text.replace("\"1\"", "\"one\""),
        text.replace("\"encryption_ext_keyring\": 1", "\"encryption_ext_keyring\": 2"),
        format!("{secret} is not JSON"),
    ] {
        File::options()
            .write(true)
            .truncate(true)
            .open(&path)
            .unwrap()
            .write_all(contents.as_bytes())
            .unwrap();
        for message in [
            fails(discover(&path, "a", &[]), ProviderErrorKind::KeyringMalformed),
            fails(make(&path, "a"), ProviderErrorKind::KeyringMalformed),
        ] {
            assert!(!message.contains(&secret[4..20]), "{message}");
        }
        assert_eq!(fs::read_to_string(&path).unwrap(), contents);
    }
}

#[test]
fn a_folder_that_cannot_be_written_is_told() {
    let (folder, path) = folder();
    fails(make(&folder.path().join("no/such/keyring"), "a"), ProviderErrorKind::KeyringUnwritable);
    make(&path, "a").unwrap();
    // Also root, who may write anywhere, can't replace a folder by a file.
    fs::create_dir(folder.path().join("keyring.new")).unwrap();
    fails(make(&path, "a"), ProviderErrorKind::KeyringUnwritable);
    assert_eq!(discover(&path, "a", &[]).unwrap(), ["a:1"]);
    fs::remove_dir(folder.path().join("keyring.new")).unwrap();
    assert_eq!(make(&path, "a").unwrap(), "a:2");

    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o500)).unwrap();
    if File::create(folder.path().join("probe")).is_ok() {
        harness::skip("a read-only folder", "root may write anywhere");
        return;
    }
    fails(make(&path, "a"), ProviderErrorKind::KeyringUnwritable);
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o700)).unwrap();
}

#[test]
fn settings_that_cannot_be_used_are_refused() {
    for (path, may_create) in [
        ("", "yes"),
        ("keyring", "yes"),
        ("./keyring", "yes"),
        ("/", "yes"),
        ("/a/..", "yes"),
        ("/a", "on"),
    ] {
        let options = options(Path::new(path), may_create);
        let result = FileProvider::new(&options, LIMITS, Box::new(|| false));
        let kind = result.err().unwrap().kind;
        assert_eq!(kind, ProviderErrorKind::Configuration, "{path} {may_create}");
    }
}

#[test]
fn it_keeps_the_contract() {
    let (_folder, path) = folder();
    contract::keeps_the_contract(&contract::Subject {
        provider: &|interrupt| {
            Box::new(FileProvider::new(&options(&path, "yes"), LIMITS, interrupt).unwrap())
        },
        is_envelope: false,
        binds_version: false,
    });
}

#[test]
fn a_check_tells_what_can_be_done() {
    let (folder, path) = folder();
    let a = name("a");
    let texts = |findings: Vec<Finding>| {
        findings.into_iter().map(|f| format!("{}: {}", f.what, f.detail)).collect::<Vec<_>>()
    };
    let found = texts(provider(&path).check(&id(&a)).unwrap());
    assert!(found[0].contains("there is no") && found[0].contains("enc_create_key"), "{found:?}");
    let mut no = FileProvider::new(&options(&path, "no"), LIMITS, Box::new(|| false)).unwrap();
    fails(no.check(&id(&a)), ProviderErrorKind::KeyringMissing);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);

    make(&path, "a").unwrap();
    make(&path, "a").unwrap();
    let found = texts(provider(&path).check(&id(&a)).unwrap());
    assert!(found[0].contains("2 version(s) of \"a\""), "{found:?}");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    fails(provider(&path).check(&id(&a)), ProviderErrorKind::KeyringInsecure);
}

#[test]
fn a_writer_waits_for_the_others_but_not_for_ever() {
    let (_folder, path) = folder();
    make(&path, "a").unwrap();
    let lock = File::open(path.with_extension("lock")).unwrap();
    lock.lock().unwrap();
    let limits = RequestLimits { total: Duration::from_millis(100), ..LIMITS };
    let start = Instant::now();
    let mut file = FileProvider::new(&options(&path, "yes"), limits, Box::new(|| false)).unwrap();
    fails(file.make(&id(&name("a"))), ProviderErrorKind::TimedOut);
    assert!((100..300).contains(&start.elapsed().as_millis()), "{:?}", start.elapsed());

    let cancel_at = Instant::now() + Duration::from_millis(50);
    let interrupt = Box::new(move || Instant::now() >= cancel_at);
    let mut file = FileProvider::new(&options(&path, "yes"), LIMITS, interrupt).unwrap();
    let start = Instant::now();
    fails(file.make(&id(&name("a"))), ProviderErrorKind::Interrupted);
    assert!(start.elapsed() < Duration::from_millis(150), "{:?}", start.elapsed());

    // A reader does not wait.
    assert_eq!(discover(&path, "a", &[]).unwrap(), ["a:1"]);
    drop(lock);
    assert_eq!(make(&path, "a").unwrap(), "a:2");
}

#[test]
fn concurrent_writers_lose_nothing() {
    let (_folder, path) = folder();
    let start = Instant::now();
    thread::scope(|scope| {
        for writer in 0..4 {
            let path = &path;
            scope.spawn(move || {
                for i in 0..50 {
                    // One key that all write, and one of each writer's own.
                    let own = format!("own{writer}");
                    make(path, if i % 5 == 0 { &own } else { "shared" }).unwrap();
                }
            });
        }
    });
    println!("200 versions by 4 writers in {:?}", start.elapsed());
    let shared: Vec<_> = (1..=160).map(|n| format!("shared:{n}")).collect();
    assert_eq!(discover(&path, "shared", &[]).unwrap(), shared);
    for writer in 0..4 {
        assert_eq!(discover(&path, &format!("own{writer}"), &[]).unwrap().len(), 10);
    }
}

#[test]
fn what_a_dead_writer_left_is_removed() {
    let (folder, path) = folder();
    make(&path, "a").unwrap();
    // A writer that died before its rename, with half of the file written.
    fs::write(folder.path().join("keyring.new"), &fs::read(&path).unwrap()[..40]).unwrap();
    assert_eq!(discover(&path, "a", &[]).unwrap(), ["a:1"]);
    assert_eq!(make(&path, "a").unwrap(), "a:2");
    assert!(!folder.path().join("keyring.new").exists());
}

/// Kills writers, which are processes of their own, in the middle of their work, and checks that the
/// keyring has every version that a writer was told was made.
#[test]
fn a_writer_that_is_killed_leaves_a_whole_keyring() {
    const WRITER: &str = "KEYRING_TEST_WRITER";
    if let Some(path) = env::var_os(WRITER) {
        loop {
            make(Path::new(&path), "a").unwrap();
        }
    }
    let (_folder, path) = folder();
    make(&path, "a").unwrap();
    let mut last = 1;
    for round in 0..15_u64 {
        let mut writers: Vec<_> = (0..2)
            .map(|_| {
                Command::new(env::current_exe().unwrap())
                    .args(["--exact", "a_writer_that_is_killed_leaves_a_whole_keyring"])
                    .env(WRITER, &path)
                    .stdout(Stdio::null())
                    .stderr(Stdio::null())
                    .spawn()
                    .unwrap()
            })
            .collect();
        thread::sleep(Duration::from_millis(30 + round * 7));
        for writer in &mut writers {
            writer.kill().unwrap();
            writer.wait().unwrap();
        }
        let found = discover(&path, "a", &[]).unwrap();
        let whole: Vec<_> = (1..=found.len()).map(|n| format!("a:{n}")).collect();
        assert_eq!(found, whole);
        assert!(found.len() >= last);
        last = found.len();
    }
    assert!(last > 15, "the writers made {last} versions: they were killed too early to tell");
}
