//! The provider `command`, with programs of all sorts.

#![expect(clippy::unwrap_used, reason = "a test fails by a panic")]

mod contract;

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use envelope::{DataKey, KeyName};
use keyring::call::RequestLimits;
use keyring::command::{CommandOptions, CommandProvider};
use keyring::provider::{
    Finding, FoundVersion, Interrupt, MadeVersion, Provider, ProviderError, ProviderErrorKind,
    WrappedKey,
};
use keyring::version::VersionId;
use tempfile::TempDir;

use contract::{Subject, id, name};

/// 32 times 1, and 32 times 2.
const ONE: &str = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=";
const TWO: &str = "AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI=";

/// A store of keys: a file for each version, which a script prints.
struct Store(TempDir);

impl Store {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn put(&self, key: &str, version: u32, text: &str) {
        fs::write(self.path().join(format!("{key}.{version}")), text).unwrap();
    }

    /// Run by `sh`, so that nothing that is being written is executed.
    fn command(&self) -> String {
        let script = self.path().join("print");
        fs::write(&script, "[ -e \"$1/$2.$3\" ] || exit 3\nexec cat \"$1/$2.$3\"\n").unwrap();
        format!("/bin/sh {} {} %n %v", script.display(), self.path().display())
    }
}

/// The command `sh -c SCRIPT` with the key's name as `$1` and the version as `$2`.
fn sh(script: &str) -> String {
    format!("/bin/sh -c '{script}' sh %n %v")
}

fn provider(command: &str) -> CommandProvider {
    limited(command, RequestLimits::default().total, || false)
}

fn limited(command: &str, total: Duration, interrupt: impl Interrupt + 'static) -> CommandProvider {
    let options = CommandOptions { command: command.to_owned() };
    let limits = RequestLimits { total, ..RequestLimits::default() };
    CommandProvider::new(&options, limits, Box::new(interrupt)).unwrap()
}

fn open(provider: &mut CommandProvider, reference: &str) -> Result<DataKey, ProviderError> {
    let name = name("database");
    // What the database calls it does not matter: the reference decides.
    provider.open(&id(&name, 99), reference, None)
}

#[track_caller]
fn fails<T>(result: Result<T, ProviderError>, kind: ProviderErrorKind) -> String {
    let error = result.err().expect("an error");
    let text = format!("{error} / {}", error.hint.as_deref().unwrap_or_default());
    assert_eq!(error.kind, kind, "{text}");
    assert!(!error.is_transient, "{text}");
    for secret in [ONE, TWO, "AQEB", "AgIC", "0101", "0202"] {
        assert!(!text.contains(secret), "{text}");
    }
    text
}

/// Makes versions as whoever runs the store does, for the parts of the contract that need some.
struct Filled {
    provider: CommandProvider,
    folder: Arc<PathBuf>,
}

impl Provider for Filled {
    fn make(&mut self, id: &VersionId<'_>) -> Result<MadeVersion, ProviderError> {
        use base64::Engine;
        use base64::engine::general_purpose::STANDARD;

        static NEXT: AtomicU8 = AtomicU8::new(1);

        let before = self.provider.discover(id.name, &[])?;
        let text = fails(self.provider.make(id), ProviderErrorKind::WriteDenied);
        assert!(text.contains("openssl rand"), "{text}");
        assert_eq!(self.provider.discover(id.name, &[])?.len(), before.len());

        let number = before.len() + 1;
        let key = STANDARD.encode([NEXT.fetch_add(1, Ordering::Relaxed); 32]);
        fs::write(self.folder.join(format!("{}.{number}", id.name)), key).unwrap();
        let FoundVersion { number, reference, key } =
            self.provider.discover(id.name, &[])?.pop().unwrap();
        Ok(MadeVersion { reference, wrapped: None, key, number: Some(number) })
    }

    fn discover(
        &mut self,
        name: &KeyName,
        known: &[&str],
    ) -> Result<Vec<FoundVersion>, ProviderError> {
        self.provider.discover(name, known)
    }

    fn open(
        &mut self,
        id: &VersionId<'_>,
        reference: &str,
        wrapped: Option<&[u8]>,
    ) -> Result<DataKey, ProviderError> {
        self.provider.open(id, reference, wrapped)
    }

    fn rewrap(
        &mut self,
        id: &VersionId<'_>,
        reference: &str,
        wrapped: Option<&[u8]>,
    ) -> Result<Option<WrappedKey>, ProviderError> {
        self.provider.rewrap(id, reference, wrapped)
    }

    fn check(&mut self, probe: &VersionId<'_>) -> Result<Vec<Finding>, ProviderError> {
        self.provider.check(probe)
    }
}

#[test]
fn it_keeps_the_contract() {
    let store = Store::new();
    let command = store.command();
    let folder = Arc::new(store.path().to_owned());
    contract::keeps_the_contract(&Subject {
        provider: &|interrupt| {
            let options = CommandOptions { command: command.clone() };
            let provider =
                CommandProvider::new(&options, RequestLimits::default(), interrupt).unwrap();
            Box::new(Filled { provider, folder: Arc::clone(&folder) })
        },
        is_envelope: false,
        binds_version: false,
    });
}

#[test]
fn versions_are_found_upwards() {
    let store = Store::new();
    let mut provider = provider(&store.command());
    let mut found = |key: &str, known: &[&str]| {
        let found = provider.discover(&name(key), known).unwrap();
        let describe = |v: FoundVersion| (v.number.get(), v.reference, v.key.expose()[0]);
        found.into_iter().map(describe).collect::<Vec<_>>()
    };
    assert_eq!(found("user_pii", &[]), []);
    store.put("user_pii", 1, ONE);
    store.put("user_pii", 2, &format!("{}\n", "02".repeat(32)));
    // Nobody finds this one while there is no third.
    store.put("user_pii", 4, &"04".repeat(32));
    store.put("user_pij", 1, &"AA".repeat(32));
    let version = |n: u8| (u32::from(n), format!("user_pii:{n}"), n);
    assert_eq!(found("user_pii", &[]), [version(1), version(2)]);
    assert_eq!(found("user_pii", &["user_pii:1"]), [version(2)]);
    assert_eq!(found("user_pii", &["user_pii:2"]), [version(1)]);
    assert_eq!(found("user_pii", &["user_pij:2", "user_pii:1", "user_pii:2"]), []);
    assert_eq!(found("user_pii", &["user_pii:3"]), [version(1), version(2), version(4)]);
    // A gap that the store has below what is known is no end.
    fs::remove_file(store.path().join("user_pii.1")).unwrap();
    assert_eq!(found("user_pii", &["user_pii:3"]), [version(2), version(4)]);
    assert_eq!(found("user_pii", &[]), []);

    // One that doesn't look at the number would have endlessly many.
    let mut same = crate::provider(&sh(&format!("echo {ONE} %n %v | cut -d\" \" -f1")));
    let text = fails(same.discover(&name("user_pii"), &[]), ProviderErrorKind::AnswerInvalid);
    assert!(text.contains("printed the key of version 1 for version 2"), "{text}");
    assert!(text.contains("status 3"), "{text}");
}

#[test]
fn a_key_is_base64_or_base16() {
    let store = Store::new();
    let mut provider = provider(&store.command());
    for text in [ONE.to_owned(), format!("\r\n {ONE}\n\n"), "01".repeat(32), "01".repeat(32) + "\n"]
    {
        store.put("k", 1, &text);
        assert_eq!(open(&mut provider, "k:1").unwrap().expose(), &[1; 32]);
    }
    let both = "aBcDeF0123456789".repeat(4);
    store.put("k", 1, &both);
    assert_eq!(open(&mut provider, "k:1").unwrap().expose()[..4], [0xab, 0xcd, 0xef, 0x01]);

    use ProviderErrorKind::{AnswerInvalid, KeyLengthWrong};
    for (text, kind, complaint) in [
        ("", AnswerInvalid, "nothing"),
        (" \n", AnswerInvalid, "nothing"),
        ("AAAA", KeyLengthWrong, "3 bytes"),
        (&"01".repeat(31), AnswerInvalid, "neither"),
        (&"01".repeat(16), KeyLengthWrong, "24 bytes"),
        (&"0g".repeat(32), KeyLengthWrong, "48 bytes"),
        (&format!("{ONE}\n{TWO}"), AnswerInvalid, "neither"),
        (&format!("key: {ONE}"), AnswerInvalid, "neither"),
        (&format!("{{\"key\": \"{ONE}\"}}"), AnswerInvalid, "neither"),
        ("\u{1}".repeat(32).as_str(), AnswerInvalid, "neither"),
        (&"A".repeat(64 * 1024), KeyLengthWrong, "49152 bytes"),
        (&"A".repeat(64 * 1024 + 1), AnswerInvalid, "more than 64 KiB"),
    ] {
        store.put("k", 1, text);
        let message = fails(open(&mut provider, "k:1"), kind);
        assert!(message.contains(complaint), "{message}");
        assert!(message.contains("version 1 of key \"k\""), "{message}");
    }
    fs::write(store.path().join("k.1"), [0xff; 32]).unwrap();
    assert!(fails(open(&mut provider, "k:1"), AnswerInvalid).contains("not text"));
}

#[test]
fn exit_statuses_say_what_is_wrong() {
    use ProviderErrorKind::{Unreachable, VersionMissing};
    let missing = fails(open(&mut provider(&sh("exit 3")), "k:2"), VersionMissing);
    assert!(missing.contains("has no key for version 2 of key \"k\""), "{missing}");
    // A key on standard output counts for nothing then.
    let text = fails(open(&mut provider(&sh(&format!("echo {ONE}; exit 1"))), "k:2"), Unreachable);
    assert!(text.contains("\"/bin/sh\" failed with exit status 1 for version 2"), "{text}");
    let text = fails(open(&mut provider(&sh("kill -9 $$")), "k:2"), Unreachable);
    assert!(text.contains("signal 9"), "{text}");
    let script = format!("echo store is locked >&2; echo bad key {ONE} >&2; exit 7");
    let text = fails(open(&mut provider(&sh(&script)), "k:2"), Unreachable);
    assert!(text.contains("key \"k\": store is locked bad key [removed] /"), "{text}");
    let text = fails(provider(&sh("exit 4")).discover(&name("k"), &[]), Unreachable);
    assert!(text.contains("status 3"), "{text}");
}

/// Only the end of the complaint is kept. A secret that was cut is not shown either.
#[test]
fn a_long_complaint_is_cut() {
    let script = "head -c 100000 /dev/zero | tr \"\\0\" A >&2; echo \" the end\" >&2; exit 1";
    let text = fails(open(&mut provider(&sh(script)), "k:1"), ProviderErrorKind::Unreachable);
    assert!(text.contains("key \"k\": the end /"), "{text}");
    let script = "head -c 100000 /dev/zero | tr \"\\0\" A >&2; exit 1";
    let text = fails(open(&mut provider(&sh(script)), "k:1"), ProviderErrorKind::Unreachable);
    assert!(text.contains("key \"k\" /"), "{text}");
}

#[test]
fn the_command_is_words_without_a_shell() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let script = format!("printf \"<%s>\" \"$@\" > {}; exit 3", out.display()).replace('%', "%%");
    let command = format!("/bin/sh -c '{script}' sh %n%v '%%%%n $HOME' a\\ b \"%v.%n\" '' *");
    fails(open(&mut provider(&command), "user_pii:12"), ProviderErrorKind::VersionMissing);
    assert_eq!(fs::read_to_string(out).unwrap(), "<user_pii12><%%n $HOME><a b><12.user_pii><><*>");

    for (command, complaint) in [
        ("", "is not set"),
        ("  ", "no program"),
        ("cat %n %v", "absolute path"),
        ("./cat %n %v", "absolute path"),
        ("/opt/%n %n %v", "absolute path"),
        ("/bin/cat '%n %v", "quote"),
        ("/bin/cat %n %v\\", "quote"),
        ("/bin/cat %n", "no %v"),
        ("/bin/cat %v", "no %n"),
        ("/bin/cat %n %%v", "no %v"),
        ("/bin/cat %n %v %s", "percent sign"),
        ("/bin/cat %n %v %", "percent sign"),
        ("/bin/cat %n %v %ä", "percent sign"),
        ("/bin/cat %n %v a\0b", "NUL"),
    ] {
        let options = CommandOptions { command: command.to_owned() };
        let result = CommandProvider::new(&options, RequestLimits::default(), Box::new(|| false));
        let text = fails(result.map(drop), ProviderErrorKind::Configuration);
        assert!(text.contains("\"command\"") && text.contains(complaint), "{text}");
    }
}

#[test]
fn a_program_that_cannot_be_run_is_a_wrong_setting() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "echo").unwrap();
    let not_executable = file.display().to_string();
    let mut programs = vec!["/nonexistent/program", "/etc", "/bin/sh/x"];
    // Not even root may execute what nobody may.
    programs.push(&not_executable);
    for program in programs {
        let mut provider = provider(&format!("{program} %n %v"));
        let text = fails(open(&mut provider, "k:1"), ProviderErrorKind::Configuration);
        assert!(text.contains(program), "{text}");
    }
}

/// The server's environment may have secrets, its files are not the program's, and PostgreSQL's
/// backends have signals blocked.
#[test]
fn the_program_gets_nothing_that_it_does_not_need() {
    use std::io::{Seek, Write};
    use std::os::fd::AsRawFd;

    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    // A file that is left open across exec, as PostgreSQL 15 does.
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(b"x").unwrap();
    file.rewind().unwrap();
    let inherited = nix::unistd::dup(&file).unwrap();
    let leaked = inherited.as_raw_fd();
    assert!(leaked > 2);
    let flags = nix::fcntl::fcntl(&inherited, nix::fcntl::FcntlArg::F_GETFD).unwrap();
    assert_eq!(flags, 0, "the descriptor would be closed anyway");

    let script = format!(
        "exec >{}; env; pwd; ls /proc/self/fd | tr \"\\n\" \" \"; echo; \
         grep -E \"Sig(Blk|Ign)\" /proc/self/status; cat; \
         cut -d\" \" -f5-8 /proc/$$/stat; echo $$; exit 3",
        out.display()
    );
    fails(open(&mut provider(&sh(&script)), "k:1"), ProviderErrorKind::VersionMissing);
    let out = fs::read_to_string(out).unwrap();
    let lines: Vec<&str> = out.lines().collect();
    let (environment, rest) =
        lines.split_at(lines.iter().position(|line| *line == "/").expect("the folder is /"));
    for line in environment {
        let name = line.split_once('=').unwrap().0;
        // PWD and the like are the shell's own.
        let allowed = ["PATH", "HOME", "LANG", "PWD", "OLDPWD", "SHLVL", "_"];
        assert!(allowed.contains(&name), "{line}");
    }
    let path = format!("PATH={}", std::env::var("PATH").unwrap());
    assert!(environment.contains(&path.as_str()), "{environment:?}");
    // 3 is the folder that `ls` lists.
    assert_eq!(rest[1].trim(), "0 1 2 3", "{leaked} is leaked");
    // Of the 31 that POSIX knows. What comes after is the C library's.
    let signals = |line: &str| {
        u64::from_str_radix(line.split_once(":\t").unwrap().1, 16).unwrap() & 0x7fff_ffff
    };
    assert_eq!(signals(rest[2]), 0, "blocked");
    assert_eq!(signals(rest[3]), 0, "ignored");
    // Its own process group and session, and no terminal.
    let pid = rest[5];
    assert_eq!(rest[4], format!("{pid} {pid} 0 -1"));
}

/// The process ids that a script wrote into a file.
fn pids(file: &Path, count: usize) -> Vec<u32> {
    let read = || -> Vec<u32> {
        let text = fs::read_to_string(file).unwrap_or_default();
        text.lines().filter_map(|line| line.parse().ok()).collect()
    };
    wait_until(|| read().len() >= count);
    read()
}

fn is_there(pid: &u32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

/// A process whose parent is gone is init's to reap, and here init may be slow.
fn runs(pid: &u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    status.lines().any(|line| line.starts_with("State:") && !line.contains('Z'))
}

#[track_caller]
fn wait_until(is_done: impl Fn() -> bool) {
    let start = Instant::now();
    while !is_done() {
        assert!(start.elapsed() < Duration::from_secs(5), "not in 5 s");
        thread::sleep(Duration::from_millis(2));
    }
}

/// Each of these would run for a minute: none ends by itself, most have a second process.
fn endless(pids: &Path) -> Vec<(&'static str, String)> {
    let pids = pids.display();
    vec![
        ("sleeps", format!("echo $$ >{pids}; sleep 60")),
        ("ignores SIGTERM", format!("trap \"\" TERM INT HUP; echo $$ >{pids}; sleep 60; sleep 60")),
        (
            "has a child that holds the pipes",
            format!("sleep 60 & echo $$ >{pids}; echo $! >>{pids}; wait"),
        ),
        ("closes its output and sleeps", format!("exec >&- 2>&-; echo $$ >{pids}; sleep 60")),
        ("prints errors for ever", format!("echo $$ >{pids}; while :; do echo bad >&2; done")),
        ("stops itself", format!("echo $$ >{pids}; kill -STOP $$")),
    ]
}

#[test]
fn a_program_that_does_not_end_is_killed_at_the_deadline() {
    for (what, script) in endless(Path::new("FILE")) {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("pids");
        let script = script.replace("FILE", &file.display().to_string());
        let start = Instant::now();
        let mut provider = limited(&sh(&script), Duration::from_millis(300), || false);
        let text = fails(open(&mut provider, "k:1"), ProviderErrorKind::TimedOut);
        let took = start.elapsed();
        assert!(text.contains("\"/bin/sh\" did not end in time for version 1"), "{text}");
        println!("{what}: {took:?}");
        assert!((300..400).contains(&took.as_millis()), "{what}: {took:?}");
        let pids = pids(&file, 1);
        wait_until(|| !pids.iter().any(runs));
        // No zombie of ours is left.
        wait_until(|| !is_there(&pids[0]));
    }
}

#[test]
fn a_cancel_kills_the_program() {
    for (what, script) in endless(Path::new("FILE")) {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("pids");
        let script = script.replace("FILE", &file.display().to_string());
        let begun = file.clone();
        let cancelled = Arc::new(std::sync::Mutex::new(None));
        let at = Arc::clone(&cancelled);
        let interrupt = move || {
            let is_begun = fs::read_to_string(&begun).is_ok_and(|text| text.ends_with('\n'));
            if is_begun {
                at.lock().unwrap().get_or_insert_with(Instant::now);
            }
            is_begun
        };
        let mut provider = limited(&sh(&script), Duration::from_secs(5), interrupt);
        fails(open(&mut provider, "k:1"), ProviderErrorKind::Interrupted);
        let took = cancelled.lock().unwrap().unwrap().elapsed();
        assert!(took < Duration::from_millis(50), "{what}: {took:?}");
        let pids = pids(&file, 1);
        wait_until(|| !pids.iter().any(runs));
        wait_until(|| !is_there(&pids[0]));
        let took = cancelled.lock().unwrap().unwrap().elapsed();
        println!("{what}: gone {took:?} after the cancel");
        assert!(took < Duration::from_millis(100), "{what}: {took:?}");
    }
}

#[test]
fn output_without_end_is_cut_off() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("pids");
    let script = format!("echo $$ >{}; while :; do echo {ONE}; done", file.display());
    let start = Instant::now();
    let text = fails(open(&mut provider(&sh(&script)), "k:1"), ProviderErrorKind::AnswerInvalid);
    assert!(text.contains("more than 64 KiB"), "{text}");
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    assert!(!is_there(&pids(&file, 1)[0]));
}

/// The program has ended and has printed its key: what it left behind is neither waited for nor
/// left.
#[test]
fn what_a_program_leaves_behind_is_not_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("pids");
    let script = format!("sleep 60 & echo $! >{}; echo {ONE}", file.display());
    let start = Instant::now();
    assert_eq!(open(&mut provider(&sh(&script)), "k:1").unwrap().expose(), &[1; 32]);
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    let left = pids(&file, 1);
    wait_until(|| !left.iter().any(runs));

    // One that made a session of its own gets away, and holds the pipes; it is not waited for.
    let file = folder.path().join("got_away");
    let script = format!(
        "setsid sh -c \"echo \\$\\$ >{}; exec sleep 60\" & \
         while [ ! -s {0} ]; do :; done; echo {ONE}",
        file.display()
    );
    let start = Instant::now();
    assert_eq!(open(&mut provider(&sh(&script)), "k:1").unwrap().expose(), &[1; 32]);
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    let got_away = pids(&file, 1)[0];
    let pid = nix::unistd::Pid::from_raw(i32::try_from(got_away).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
}

#[test]
fn a_check_runs_the_command() {
    let store = Store::new();
    let program = store.path().join("print");
    let mut provider = provider(&store.command());
    let probe = name("user_pii");
    let describe = |findings: Vec<Finding>| {
        findings.iter().map(|f| format!("{}: {}", f.what, f.detail)).collect::<Vec<_>>()
    };
    let findings = describe(provider.check(&id(&probe, 1)).unwrap());
    assert_eq!(findings[0], "reading: there is no key \"user_pii\" yet");
    store.put("user_pii", 1, ONE);
    let findings = describe(provider.check(&id(&probe, 1)).unwrap());
    assert_eq!(findings[0], "reading: there is a version 1 of key \"user_pii\"");
    assert_eq!(findings.len(), 2, "{findings:?}");

    // It must say of what there is not that there is not.
    let all = crate::provider(&sh(&format!("[ $1$2 != x ] && echo {ONE}"))).check(&id(&probe, 1));
    let text = fails(all, ProviderErrorKind::AnswerInvalid);
    assert!(text.contains("version 2147483647") && text.contains("status 3"), "{text}");
    let script = format!("[ $2 = 1 ] && echo {ONE}");
    let none = crate::provider(&sh(&script)).check(&id(&probe, 1));
    assert!(fails(none, ProviderErrorKind::Unreachable).contains("status 3"));

    // The program that anybody may replace. (The file is executed itself: nobody writes it now.)
    let text = format!("#!/bin/sh\n[ \"$2\" = 1 ] || exit 3\necho {ONE}\n");
    fs::write(&program, text).unwrap();
    for (mode, warnings) in [(0o755, 0), (0o775, 1), (0o757, 1)] {
        fs::set_permissions(&program, Permissions::from_mode(mode)).unwrap();
        let mut provider = crate::provider(&format!("{} %n %v", program.display()));
        let findings = retried(|| provider.check(&id(&probe, 1))).unwrap();
        let warned = findings.iter().filter(|f| f.hint.is_some()).count();
        assert_eq!(warned, warnings, "{mode:o}");
    }
}

/// A test that starts a program at the same time has the file that was just written open for a
/// moment: between its fork and its exec.
fn retried<T>(mut run: impl FnMut() -> Result<T, ProviderError>) -> Result<T, ProviderError> {
    loop {
        match run() {
            Err(error) if error.message.contains("Text file busy") => {
                thread::sleep(Duration::from_millis(5));
            }
            result => return result,
        }
    }
}

/// A backend that is killed, not ended, leaves no program running. (A program's parent is the thread
/// that runs it; here another process stands for the backend.)
#[test]
fn a_killed_process_takes_its_program_along() {
    const FILE: &str = "COMMAND_TEST_PIDS";
    if let Some(file) = std::env::var_os(FILE) {
        let script = format!("echo $$ >{}; exec sleep 60", Path::new(&file).display());
        let mut provider = limited(&sh(&script), Duration::from_secs(60), || false);
        let _ = open(&mut provider, "k:1");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("pids");
    let mut process = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_killed_process_takes_its_program_along"])
        .env(FILE, &file)
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let program = pids(&file, 1);
    assert!(runs(&program[0]));
    process.kill().unwrap();
    process.wait().unwrap();
    wait_until(|| !runs(&program[0]));
}
