//! The cache of keys that the sessions of a server share when the library is preloaded.

#![expect(clippy::unwrap_used, reason = "a test fails by a panic")]

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::PathBuf;
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use cluster_tests::key_server::{ONE, READ_ONLY, Setup};
use cluster_tests::process_memory::{Mapping, mappings, search, search_in};
use cluster_tests::replication::{catch_up, replace_by_base_backup, wait_for};
use cluster_tests::{DATABASE, Session, builder, connect, create_extension, expect_error};
use harness::cluster::{Builder, Cluster, SUPERUSER, Shutdown, backend_pid};
use harness::openbao::OpenBao;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use postgres::Client;
use serde_json::json;

/// What reads the row that [`Store::start`] wrote.
const READ: &str = "SELECT v FROM t WHERE id = 1";

/// A cluster with the library preloaded, whose keys come from a program that notes each time it is run.
struct Store {
    cluster: Cluster,
}

impl Store {
    /// Keys `database` and `k`, a version each, and a table with a row. Whatever was fetched until then is
    /// forgotten, and not counted.
    fn start(test: &str, describe: impl FnOnce(Builder) -> Builder) -> Option<Self> {
        let builder = builder(test)?
            .setting("shared_preload_libraries", "encryption_ext")
            .setting("max_connections", "220");
        let mut store = Self { cluster: describe(builder).create() };
        let folder = store.cluster.directory().to_owned();
        // A program that others than root could write is refused.
        let program = folder.join("key");
        let script = format!(
            "#!/bin/sh\ncd '{}'\necho \"$1 $2\" >> calls\nread seconds < delay && sleep \"$seconds\"\n\
             test -e dead && exit 1\ntest -e \"key.$1.$2\" || exit 3\ncat \"key.$1.$2\"\n",
            folder.display()
        );
        fs::write(&program, script).unwrap();
        fs::set_permissions(&program, Permissions::from_mode(0o755)).unwrap();
        if nix::unistd::geteuid().is_root() {
            chown(&program, Some(0), Some(0)).unwrap();
        }
        store.delay(0.0);
        store.put("database", 1, 1);
        store.put("k", 1, 2);
        store.cluster.configure("encryption_ext.provider", "command");
        let command = format!("{} %n %v", program.display());
        store.cluster.configure("encryption_ext.command", &command);
        store.cluster.start();
        create_extension(&store.cluster, DATABASE);
        let mut session = store.connect();
        session.run(
            "SELECT enc_create_key('k');
             CREATE TABLE t (id bigint GENERATED ALWAYS AS IDENTITY, v encrypted_text('k'));
             INSERT INTO t (v) VALUES ('first')",
        );
        store.flush(&mut session);
        Some(store)
    }

    fn connect(&self) -> Client {
        connect(&self.cluster)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.cluster.directory().join(name)
    }

    /// Puts a key into the store, which the number tells from others.
    fn put(&self, key: &str, version: u32, number: u8) {
        let key_file = self.file(&format!("key.{key}.{version}"));
        fs::write(key_file, STANDARD.encode(key_bytes(number))).unwrap();
    }

    /// How long each run of the program takes.
    fn delay(&self, seconds: f32) {
        fs::write(self.file("delay"), format!("{seconds}\n")).unwrap();
    }

    fn kill(&self) {
        fs::write(self.file("dead"), "").unwrap();
    }

    fn revive(&self) {
        fs::remove_file(self.file("dead")).unwrap();
    }

    /// Waits until the program has been run so often for a version.
    #[track_caller]
    fn wait_for_calls(&self, version: &str, count: usize) {
        let started = Instant::now();
        while self.calls().get(version).copied().unwrap_or(0) < count {
            assert!(started.elapsed() < Duration::from_secs(30), "{:?}", self.calls());
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Stops the server and starts it again, with nothing in the store's list of calls.
    fn restart(&mut self) {
        self.cluster.stop(Shutdown::Fast);
        let _ = fs::remove_file(self.file("calls"));
        self.cluster.start();
    }

    fn flush(&self, session: &mut Client) {
        session.run("SELECT enc_flush_cache()");
        let _ = fs::remove_file(self.file("calls"));
    }

    /// How often the program was run for each version since the last flush.
    fn calls(&self) -> BTreeMap<String, usize> {
        let mut calls = BTreeMap::new();
        for call in fs::read_to_string(self.file("calls")).unwrap_or_default().lines() {
            *calls.entry(call.to_owned()).or_default() += 1;
        }
        calls
    }
}

/// A session's reading in a thread of its own, as it is under way when this returns; what came of it, and the
/// process that serves it.
fn reading(store: &Store) -> (thread::JoinHandle<Result<String, postgres::Error>>, i32) {
    let mut session = store.connect();
    let pid = backend_pid(&mut session);
    let reading = thread::spawn(move || {
        session.query_one("SELECT v::text FROM t WHERE id = 1", &[]).map(|row| row.get(0))
    });
    (reading, pid)
}

/// A key whose bytes occur nowhere else.
fn key_bytes(number: u8) -> [u8; 32] {
    std::array::from_fn(|n| number.wrapping_mul(151) ^ u8::try_from(n).unwrap().wrapping_mul(89))
}

fn statistic(session: &mut Client, column: &str) -> i64 {
    session.value(&format!("SELECT {column} FROM enc_stat_shared_cache"))
}

#[test]
fn two_hundred_connections_at_once_ask_once_for_each_key() {
    let test = "two_hundred_connections_at_once_ask_once_for_each_key";
    let Some(store) = Store::start(test, |builder| builder) else { return };
    store.delay(0.5);
    let start = Barrier::new(200);
    thread::scope(|scope| {
        for _ in 0..200 {
            scope.spawn(|| {
                let mut session = store.connect();
                start.wait();
                assert_eq!(session.text(READ), "first");
                session.run("INSERT INTO t (v) VALUES ('a literal')");
            });
        }
    });
    let once = BTreeMap::from([("database 1".to_owned(), 1), ("k 1".to_owned(), 1)]);
    assert_eq!(store.calls(), once);
    let mut session = store.connect();
    assert!(statistic(&mut session, "waits") >= 199);
    assert_eq!(statistic(&mut session, "entries"), 2);
    assert_eq!(session.text("SELECT count(v::text) FROM t"), "201");
}

#[test]
fn a_new_connection_has_its_keys_though_the_provider_is_gone() {
    let test = "a_new_connection_has_its_keys_though_the_provider_is_gone";
    let Some(store) = Store::start(test, |builder| builder) else { return };
    store.connect().run(&format!("{READ}; INSERT INTO t (v) VALUES ('x')"));
    let calls = store.calls();
    store.kill();
    let mut session = store.connect();
    assert_eq!(session.text(READ), "first");
    session.run("INSERT INTO t (v) VALUES ('without a provider')");
    assert_eq!(store.calls(), calls);

    // A superuser's flush is everybody's, and everybody else's their own.
    session
        .run("CREATE ROLE app; GRANT SELECT ON t TO app; SELECT enc_grant('k', 'app', 'decrypt')");
    session.run("SET ROLE app; SELECT enc_flush_cache()");
    assert_eq!(session.text(READ), "first");
    session.run("RESET ROLE; SELECT enc_flush_cache()");
    session.fails(READ, "KE062");
    store.connect().fails(READ, "KE062");
    store.revive();
    assert_eq!(store.connect().text(READ), "first");
}

/// Somebody fetches, and others wait: what becomes of them when that ends in another way than by a key.
#[test]
fn who_waits_is_told_of_a_failure_and_takes_over_from_who_gives_up() {
    let test = "who_waits_is_told_of_a_failure_and_takes_over_from_who_gives_up";
    let Some(store) = Store::start(test, |builder| builder) else { return };
    let mut admin = store.connect();
    let waiting = |count: i64| {
        format!(
            "SELECT count(*) = {count} FROM pg_stat_activity WHERE query LIKE 'SELECT v::text%' \
                AND wait_event_type = 'Extension'"
        )
    };

    // A failure is everybody's, and one that comes later asks anew.
    store.kill();
    store.delay(1.0);
    let (first, _) = reading(&store);
    store.wait_for_calls("k 1", 1);
    let others: Vec<_> = (0..5).map(|_| reading(&store).0).collect();
    wait_for(&mut admin, &waiting(5));
    for reading in others.into_iter().chain([first]) {
        let error = expect_error(&reading.join().unwrap().unwrap_err(), "KE062");
        assert!(error.message().contains("provider \"command\""), "{error:?}");
    }
    assert_eq!(store.calls(), BTreeMap::from([("k 1".to_owned(), 1)]));
    store.revive();

    // The one that fetches is terminated; one that waits is cancelled; another one takes over.
    store.flush(&mut admin);
    let (first, fetches) = reading(&store);
    store.wait_for_calls("k 1", 1);
    let (second, waits) = reading(&store);
    let others: Vec<_> = (0..3).map(|_| reading(&store).0).collect();
    wait_for(&mut admin, &waiting(4));
    admin.run(&format!("SELECT pg_cancel_backend({waits})"));
    let _ = expect_error(&second.join().unwrap().unwrap_err(), "57014");
    admin.run(&format!("SELECT pg_terminate_backend({fetches})"));
    let _ = expect_error(&first.join().unwrap().unwrap_err(), "57P01");
    for reading in others {
        assert_eq!(reading.join().unwrap().unwrap(), "first");
    }
    assert_eq!(store.calls()["k 1"], 2);

    // The one that fetches is cancelled, in a block that catches it and goes on.
    store.flush(&mut admin);
    let mut session = store.connect();
    let fetches = backend_pid(&mut session);
    let first = thread::spawn(move || {
        session.batch_execute(
            "DO $$ BEGIN PERFORM v::text FROM t; EXCEPTION WHEN query_canceled THEN PERFORM pg_sleep(60); END $$",
        )
    });
    store.wait_for_calls("k 1", 1);
    let (other, _) = reading(&store);
    wait_for(&mut admin, &waiting(1));
    admin.run(&format!("SELECT pg_cancel_backend({fetches})"));
    assert_eq!(other.join().unwrap().unwrap(), "first");
    admin.run(&format!("SELECT pg_terminate_backend({fetches})"));
    let _ = expect_error(&first.join().unwrap().unwrap_err(), "57P01");
    assert_eq!(store.calls()["k 1"], 2);

    // That there is no such key is remembered for a moment.
    store.delay(0.0);
    fs::rename(store.file("key.k.1"), store.file("elsewhere")).unwrap();
    store.flush(&mut admin);
    for _ in 0..5 {
        store.connect().fails(READ, "KE069");
    }
    assert_eq!(store.calls()["k 1"], 1);
    fs::rename(store.file("elsewhere"), store.file("key.k.1")).unwrap();
    thread::sleep(Duration::from_millis(3100));
    assert_eq!(store.connect().text(READ), "first");

    // Another key than the one that the version was made with.
    store.put("k", 1, 9);
    store.flush(&mut admin);
    store.delay(0.5);
    let readings: Vec<_> = (0..5).map(|_| reading(&store).0).collect();
    for reading in readings {
        let _ = expect_error(&reading.join().unwrap().unwrap_err(), "KE012");
    }
    assert_eq!(statistic(&mut admin, "entries"), 0);
}

#[test]
fn a_worker_fetches_keys_that_are_in_use_before_they_expire() {
    let test = "a_worker_fetches_keys_that_are_in_use_before_they_expire";
    let Some(store) = Store::start(test, |builder| {
        builder.setting("encryption_ext.cache_ttl", "3").setting("encryption_ext.warm_up", "off")
    }) else {
        return;
    };
    let mut session = store.connect();
    assert_eq!(session.text(READ), "first");
    // At half of its time, and not once more, as nobody has taken it since.
    store.wait_for_calls("k 1", 2);
    thread::sleep(Duration::from_secs(4));
    assert_eq!(store.calls()["k 1"], 2);
    assert_eq!(session.text(READ), "first");
    store.wait_for_calls("k 1", 3);

    // While the provider is out of reach, it is asked again and again, and the key serves on: in new
    // connections, too.
    assert_eq!(session.text(READ), "first");
    store.kill();
    thread::sleep(Duration::from_secs(5));
    let asked = store.calls()["k 1"];
    for _ in 0..10 {
        assert_eq!(store.connect().text(READ), "first");
        assert_eq!(session.text(READ), "first");
    }
    assert_eq!(store.calls()["k 1"], asked, "sessions asked, though a worker does");
    assert!(store.cluster.log().contains("past its time to live"));
    store.wait_for_calls("k 1", asked + 1);
    // That call has noted itself, and is about to see that the store is dead.
    thread::sleep(Duration::from_millis(500));
    store.revive();
    // The worker finds out that it is back.
    let asked = store.calls()["k 1"];
    store.wait_for_calls("k 1", asked + 1);
    thread::sleep(Duration::from_millis(200));
    let tried = store.calls()["k 1"];
    assert_eq!(store.connect().text(READ), "first");
    assert_eq!(store.calls()["k 1"], tried);
    assert!(!store.cluster.log().contains("was terminated by signal"));
}

/// Keys that are shared go by the settings as they are now, and not by those of who has fetched them.
#[test]
fn times_that_are_changed_during_an_outage_hold_for_the_keys_that_there_are() {
    let test = "times_that_are_changed_during_an_outage_hold_for_the_keys_that_there_are";
    let Some(mut setup) = Setup::with_key(test, OpenBao::start_with_tls, READ_ONLY) else { return };
    setup.cluster.configure("shared_preload_libraries", "encryption_ext");
    setup.cluster.configure("encryption_ext.warm_up", "off");
    setup.cluster.configure("encryption_ext.cache_ttl", "1");
    setup.cluster.configure("encryption_ext.cache_stale_grace", "6");
    setup.cluster.restart();
    let mut admin = setup.connect();
    let set = |admin: &mut Client, name: &str, value: &str| {
        admin.run(&format!("ALTER SYSTEM SET encryption_ext.{name} = '{value}'"));
        admin.run("SELECT pg_reload_conf()");
        wait_for(admin, &format!("SELECT current_setting('encryption_ext.{name}') = '{value}'"));
    };
    let reads = |setup: &Setup, settings: &str| {
        let mut session = setup.connect();
        session.run(settings);
        session.simple_query(READ).is_ok()
    };
    const STRICT: &str = "SET encryption_ext.cache_stale_grace = 0";
    const LAX: &str =
        "SET encryption_ext.cache_ttl = '1h'; SET encryption_ext.cache_stale_grace = '1h'";
    let left = "SELECT extract(epoch FROM usable_until - clock_timestamp())::float8 FROM enc_stat_key WHERE name = 'k'";

    // Fetched by a session that allows itself less than others, which is its own affair.
    assert!(reads(&setup, STRICT));
    setup.server.stop();
    let stopped = Instant::now();
    let until = |seconds: f64| {
        thread::sleep(Duration::from_secs_f64(seconds).saturating_sub(stopped.elapsed()));
    };
    until(2.0);
    assert!(reads(&setup, ""));
    assert!(!reads(&setup, STRICT));
    let before: f64 = admin.value(left);
    assert!((3.0..6.0).contains(&before), "{before}");

    // More of it, while there is some left: past the former end, in sessions old and new.
    set(&mut admin, "cache_stale_grace", "10min");
    wait_for(&mut admin, &format!("SELECT ({left}) BETWEEN 580 AND 600"));
    until(9.0);
    assert!(reads(&setup, ""));
    assert!(!reads(&setup, STRICT));
    assert_eq!(admin.text(READ), "first");
    assert_eq!(statistic(&mut admin, "entries"), 1);

    // And of the time in which nobody asks.
    set(&mut admin, "cache_ttl", "5min");
    wait_for(&mut admin, &format!("SELECT ({left}) BETWEEN 880 AND 900"));
    let asked = "SELECT requests FROM enc_stat_provider";
    let requests: i64 = admin.value(asked);
    assert!(reads(&setup, STRICT));
    assert_eq!(admin.value::<i64>(asked), requests);

    // Less: at once, also for who would allow itself more; and what has ended is wiped, and stays so.
    set(&mut admin, "cache_ttl", "1s");
    set(&mut admin, "cache_stale_grace", "2s");
    assert!(!reads(&setup, ""));
    wait_for(&mut admin, "SELECT entries = 0 FROM enc_stat_shared_cache");
    assert!(!reads(&setup, LAX));
    set(&mut admin, "cache_stale_grace", "10min");
    assert!(!reads(&setup, ""));
    assert_eq!(setup.connect().value::<Option<f64>>(left), None);

    setup.server.restart();
    let back = Instant::now();
    while !reads(&setup, "") {
        assert!(back.elapsed() < Duration::from_secs(30), "the breaker doesn't close");
        thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn a_server_is_warm_when_it_has_started() {
    let test = "a_server_is_warm_when_it_has_started";
    let Some(mut store) = Store::start(test, |builder| {
        builder.setting("wal_keep_size", "64MB").setting("encryption_ext.cache_ttl", "4")
    }) else {
        return;
    };
    store.put("k", 2, 3);
    store.connect().run("SELECT enc_rotate_key('k')");
    let all = ["database 1", "k 1", "k 2"];
    store.restart();
    for version in all {
        // And it stays warm, though nobody uses any key.
        store.wait_for_calls(version, 2);
    }
    store.kill();
    let mut admin = store.connect();
    assert_eq!(statistic(&mut admin, "entries"), 3);
    assert_eq!(admin.text(READ), "first");
    admin.run("INSERT INTO t (v) VALUES ('a literal')");
    store.revive();

    // A standby.
    let mut standby = Cluster::builder(cluster_tests::MAJOR).port(5433).create();
    replace_by_base_backup(&standby, &store.cluster, &["--write-recovery-conf"]);
    standby.start();
    let mut there = connect(&standby);
    wait_for(&mut there, "SELECT entries = 3 FROM enc_stat_shared_cache");
    // What is new on the primary comes to the standby without anybody who uses it there.
    store.put("k", 3, 4);
    admin.run("SELECT enc_rotate_key('k')");
    catch_up(&mut admin, &mut there);
    wait_for(&mut there, "SELECT entries = 4 FROM enc_stat_shared_cache");
    store.kill();
    assert_eq!(connect(&standby).text(READ), "first");
    standby.stop(Shutdown::Fast);
    for line in standby.log().lines().filter(|line| line.contains("encryption_ext key")) {
        assert!(!line.contains("FATAL") && !line.contains("signal"), "{line}");
    }
    store.revive();

    // Not if it is unwanted.
    store.cluster.configure("encryption_ext.warm_up", "off");
    store.restart();
    thread::sleep(Duration::from_secs(3));
    assert_eq!(store.calls(), BTreeMap::new());
}

#[test]
fn without_a_place_for_workers_sessions_fetch_keys() {
    let test = "without_a_place_for_workers_sessions_fetch_keys";
    let describe = |builder: Builder| {
        // The launcher has one, and that of logical replication the other.
        builder.setting("max_worker_processes", "2").setting("encryption_ext.cache_ttl", "1")
    };
    let Some(store) = Store::start(test, describe) else { return };
    for _ in 0..3 {
        assert_eq!(store.connect().text(READ), "first");
        thread::sleep(Duration::from_millis(1100));
    }
    assert_eq!(store.calls()["k 1"], 3);
    assert_eq!(store.cluster.log().matches("max_worker_processes are running").count(), 1);
}

#[test]
fn the_breaker_is_shared() {
    let test = "the_breaker_is_shared";
    let Some(store) = Store::start(test, |builder| builder) else { return };
    store.kill();
    for _ in 0..5 {
        store.connect().fails(READ, "KE062");
    }
    let calls = store.calls();
    // The failures of others spare these.
    for _ in 0..5 {
        store.connect().fails(READ, "KE080");
    }
    assert_eq!(store.calls(), calls);
    // Another provider's isn't concerned, which other settings make it.
    let mut other = store.connect();
    let command = store.file("key");
    other.run(&format!("SET encryption_ext.command = '{} %n %v other'", command.display()));
    other.fails(READ, "KE062");
    // One of those that come when it was open for long enough finds out.
    thread::sleep(Duration::from_secs(10));
    let calls = store.calls()["k 1"];
    store.delay(1.0);
    let readings: Vec<_> = (0..5).map(|_| reading(&store).0).collect();
    for reading in readings {
        assert!(reading.join().unwrap().is_err());
    }
    assert_eq!(store.calls()["k 1"], calls + 1);
    store.revive();
    store.delay(0.0);
    store.connect().run("SELECT enc_flush_cache()");
    assert_eq!(store.connect().text(READ), "first");
}

#[test]
fn databases_and_versions_are_kept_apart() {
    let test = "databases_and_versions_are_kept_apart";
    let Some(store) = Store::start(test, |builder| builder) else { return };
    let mut here = store.connect();
    assert_eq!(here.text(READ), "first");
    store.cluster.createdb("other", "UTF8");
    create_extension(&store.cluster, "other");
    // The same names, and other keys.
    store.put("database", 1, 11);
    store.put("k", 1, 12);
    let mut there = store.cluster.connect(SUPERUSER, "other");
    there.run(
        "SELECT enc_create_key('k'); CREATE TABLE t (id integer, v encrypted_text('k'));
         INSERT INTO t VALUES (1, 'another')",
    );
    for _ in 0..2 {
        assert_eq!(store.cluster.connect(SUPERUSER, "other").text(READ), "another");
        assert_eq!(store.connect().text(READ), "first");
    }
    let stored = "SELECT encode(v::bytea, 'hex') FROM t WHERE id = 1";
    let ciphertext = here.text(stored);
    there.run(&format!("INSERT INTO t VALUES (2, decode('{ciphertext}', 'hex')::encrypted_text)"));
    there.fails("SELECT v FROM t WHERE id = 2", "KE045");
    assert_eq!(statistic(&mut here, "entries"), 3);
    // A flush is the database's.
    there.run("SELECT enc_flush_cache()");
    assert_eq!(statistic(&mut here, "entries"), 1);
    drop(there);
    here.run("DROP DATABASE other");

    // A version that is rolled back, and made again with other bytes.
    store.put("database", 1, 1);
    store.put("k", 1, 2);
    store.put("k", 2, 21);
    here.run("BEGIN; SELECT enc_rotate_key('k'); INSERT INTO t (v) VALUES ('undone'); ROLLBACK");
    store.put("k", 2, 22);
    here.run("SELECT enc_rotate_key('k'); INSERT INTO t (v) VALUES ('second')");
    assert_eq!(store.connect().text("SELECT v FROM t WHERE v = 'second'"), "second");

    // A role without a grant gets no key, wherever it is.
    here.run("CREATE ROLE app; GRANT SELECT ON t TO app");
    let mut app = store.connect();
    app.run("SET ROLE app");
    app.fails(READ, "KE020");
}

/// Whether the memory that processes share has a key, as the postmaster sees it.
fn shares(cluster: &Cluster, key: [u8; 32]) -> bool {
    let postmaster = cluster.postmaster_pid().cast_signed();
    let is_shared = |mapping: &Mapping| mapping.has("dd") && mapping.has("sh");
    !search_in(postmaster, &[key.to_vec()], is_shared).unwrap().is_empty()
}

#[test]
fn keys_are_in_memory_that_is_locked_and_not_dumped_until_they_are_wiped() {
    let test = "keys_are_in_memory_that_is_locked_and_not_dumped_until_they_are_wiped";
    let Some(store) =
        Store::start(test, |builder| builder.setting("encryption_ext.warm_up", "off"))
    else {
        return;
    };
    let cluster = &store.cluster;
    store.put("k", 2, 3);
    let mut admin = store.connect();
    let postmaster = cluster.postmaster_pid().cast_signed();
    let one = key_bytes(2);
    if let Err(error) = mappings(postmaster) {
        return harness::skip(test, &format!("the postmaster's memory can't be read: {error}"));
    }
    assert!(!shares(cluster, one));
    let mut session = store.connect();
    session.run(READ);
    assert!(shares(cluster, one));
    // And nowhere else but in a session's own memory for secrets, of a cipher that begins with it.
    for pid in [postmaster, backend_pid(&mut session), backend_pid(&mut admin)] {
        let found = search(pid, &[one.to_vec()]).unwrap();
        assert!(!found.is_empty() && found.iter().all(|(_, is_secret)| *is_secret), "{found:?}");
    }
    let secret = mappings(postmaster).unwrap();
    let secret: Vec<_> = secret.iter().filter(|m| m.has("dd") && m.has("sh")).collect();
    let size = |flag| secret.iter().filter(|m| m.has(flag)).map(|m| m.end - m.start).sum::<u64>();
    assert_eq!(i64::try_from(size("lo")).unwrap(), statistic(&mut admin, "locked_bytes"));
    assert!(size("lo") > 0, "nothing could be locked");
    let all = statistic(&mut admin, "locked_bytes + unlocked_bytes");
    assert_eq!(i64::try_from(size("dd")).unwrap(), all);

    // Disabled.
    admin.run("SELECT enc_rotate_key('k')");
    admin.run("BEGIN; SELECT enc_disable_key_version('k', 1); ROLLBACK");
    assert!(shares(cluster, one));
    admin.run("SELECT enc_disable_key_version('k', 1)");
    assert!(!shares(cluster, one));
    session.fails(READ, "KE008");
    assert!(!shares(cluster, one));
    admin.run("SELECT enc_enable_key_version('k', 1)");
    store.connect().run(READ);
    assert!(shares(cluster, one));
    // Flushed.
    admin.run("SELECT enc_flush_cache()");
    assert!(!shares(cluster, one));
    store.connect().run(READ);
    assert!(shares(cluster, one));

    // One process is killed, and PostgreSQL begins anew.
    store.kill();
    kill(Pid::from_raw(backend_pid(&mut store.connect())), Signal::SIGKILL).unwrap();
    // The session sees its end when PostgreSQL has ended it.
    let started = Instant::now();
    while session.simple_query("SELECT 1").is_ok() {
        assert!(started.elapsed() < Duration::from_secs(30));
    }
    let mut session = loop {
        if let Ok(session) = cluster.try_connect(SUPERUSER, DATABASE) {
            break session;
        }
        assert!(started.elapsed() < Duration::from_secs(30));
        thread::sleep(Duration::from_millis(50));
    };
    assert!(!shares(cluster, one));
    assert_eq!(statistic(&mut session, "entries + hits"), 0);
    session.fails(READ, "KE062");
    store.revive();
    assert_eq!(store.connect().text(READ), "first");
}

/// A login by a secret id that serves once: who needs another login can't have one.
#[test]
fn connections_share_a_login() {
    let test = "connections_share_a_login";
    let Some(builder) = builder(test) else { return };
    let Some(server) = OpenBao::start() else {
        return harness::skip(test, "there is no bao to run");
    };
    server.policy("keys", READ_ONLY);
    let role = json!({ "token_policies": ["keys"], "token_ttl": "1h", "secret_id_num_uses": 1 });
    let (role_id, secret_id) = server.approle_with(None, "database", role.clone());
    let mut cluster = builder
        .setting("shared_preload_libraries", "encryption_ext")
        .setting("encryption_ext.provider", "vault")
        .setting("encryption_ext.vault_address", &server.address())
        .setting("encryption_ext.vault_auth", "approle")
        .setting("encryption_ext.cache_stale_grace", "0")
        .create();
    let write = |cluster: &Cluster, name: &str, contents: &str| {
        let file = cluster.directory().join(name);
        fs::write(&file, contents).unwrap();
        cluster.configure(&format!("encryption_ext.vault_{name}_file"), file.to_str().unwrap());
    };
    write(&cluster, "role_id", &role_id);
    write(&cluster, "secret_id", &secret_id);
    cluster.start();
    create_extension(&cluster, DATABASE);
    for name in ["database", "k", "k2", "k3", "k4", "k5"] {
        server.kv_put(&format!("keys/{name}"), ONE);
    }
    for name in ["k", "k2", "k3"] {
        connect(&cluster).run(&format!("SELECT enc_create_key('{name}')"));
    }
    let token_is_shared = |token: &str| {
        let is_shared = |mapping: &Mapping| mapping.has("dd") && mapping.has("sh");
        let pid = cluster.postmaster_pid().cast_signed();
        !search_in(pid, &[token.as_bytes().to_vec()], is_shared).unwrap().is_empty()
    };
    assert!(token_is_shared("s."));

    // The server revokes it. Who is told so logs in again, which takes another secret id.
    let revoke = "sys/leases/revoke-prefix/auth/approle/login";
    let (status, answer) = server.request("PUT", revoke, json!({ "sync": true }));
    assert!(matches!(status, 200 | 202 | 204), "{status} {answer}");
    let mut session = connect(&cluster);
    session.fails("SELECT enc_create_key('k4')", "KE066");
    assert!(!token_is_shared("s."));
    let (_, secret_id) = server.approle_with(None, "database", role);
    write(&cluster, "secret_id", &secret_id);
    for name in ["k4", "k5"] {
        connect(&cluster).run(&format!("SELECT enc_create_key('{name}')"));
    }
    // Other settings have no part in it.
    let mut other = connect(&cluster);
    other.run(&format!(
        "SET encryption_ext.vault_address = '{}'",
        server.address().replace("127.0.0.1", "localhost")
    ));
    other.fails("SELECT enc_create_key('k6')", "KE066");
    // A superuser's flush has everybody log in anew.
    session.run("SELECT enc_flush_cache()");
    assert!(!token_is_shared("s."));
    session.fails("SELECT enc_rotate_key('k')", "KE066");
}

#[test]
fn one_that_fetches_is_killed() {
    let test = "one_that_fetches_is_killed";
    let Some(store) =
        Store::start(test, |builder| builder.setting("encryption_ext.warm_up", "off"))
    else {
        return;
    };
    store.delay(2.0);
    let (first, fetches) = reading(&store);
    store.wait_for_calls("k 1", 1);
    let (second, _) = reading(&store);
    thread::sleep(Duration::from_millis(200));
    kill(Pid::from_raw(fetches), Signal::SIGKILL).unwrap();
    assert!(first.join().unwrap().is_err());
    // PostgreSQL ends all sessions.
    assert!(second.join().unwrap().is_err());
    store.delay(0.0);
    let started = Instant::now();
    loop {
        if let Ok(mut session) = store.cluster.try_connect(SUPERUSER, DATABASE)
            && session.simple_query(READ).is_ok()
        {
            break;
        }
        assert!(started.elapsed() < Duration::from_secs(30));
        thread::sleep(Duration::from_millis(50));
    }
    let calls = store.calls()["k 1"];
    assert_eq!(store.connect().text(READ), "first");
    assert_eq!(store.calls()["k 1"], calls);
}

#[test]
fn parallel_workers_have_keys_from_there() {
    let test = "parallel_workers_have_keys_from_there";
    let Some(store) = Store::start(test, |builder| builder) else { return };
    let mut session = store.connect();
    session.run(
        "INSERT INTO t (v) SELECT 'v' || n FROM generate_series(1, 20000) AS n; ANALYZE t;
         ALTER TABLE t SET (parallel_workers = 3);
         SET max_parallel_workers_per_gather = 3; SET parallel_setup_cost = 0;
         SET parallel_tuple_cost = 0; SET min_parallel_table_scan_size = 0;
         SET parallel_leader_participation = off",
    );
    const COUNT: &str = "SELECT count(*) FROM t WHERE v::text LIKE 'v%9'";
    let plan = session.texts(&format!("EXPLAIN (ANALYZE, COSTS OFF) {COUNT}"));
    let plan: Vec<_> = plan.into_iter().flatten().collect();
    let launched = plan.iter().any(|line| line.contains("Workers Launched: 3"));
    assert!(launched, "{plan:#?}");
    let calls = store.calls();
    store.kill();
    assert_eq!(session.text(COUNT), "2000");
    assert_eq!(store.calls(), calls);
    assert_eq!(calls["k 1"], 1);
}

#[test]
fn keys_go_for_want_of_room_and_without_a_shared_cache_all_is_as_before() {
    let test = "keys_go_for_want_of_room_and_without_a_shared_cache_all_is_as_before";
    let Some(mut store) =
        Store::start(test, |builder| builder.setting("encryption_ext.shared_cache_size", "2"))
    else {
        return;
    };
    let mut admin = store.connect();
    for n in 2..5 {
        store.put("k", n, u8::try_from(n).unwrap() + 50);
        admin.run(&format!("SELECT enc_rotate_key('k'); INSERT INTO t (v) VALUES ('{n}')"));
    }
    for _ in 0..3 {
        assert_eq!(
            store.connect().text("SELECT string_agg(v::text, '' ORDER BY id) FROM t"),
            "first234"
        );
    }
    assert_eq!(statistic(&mut admin, "entries"), 2);
    assert!(statistic(&mut admin, "evictions") > 0);

    store.cluster.configure("encryption_ext.shared_cache_size", "0");
    store.restart();
    let mut admin = store.connect();
    assert_eq!(admin.text("SELECT is_there FROM enc_stat_shared_cache"), "f");
    for n in 1..3 {
        assert_eq!(store.connect().text(READ), "first");
        assert_eq!(store.calls()["k 1"], n);
    }
}

/// With a key server 20 ms away, a new connection's first value takes about what the next one does.
#[test]
fn the_first_value_of_a_connection_waits_for_no_provider() {
    let test = "the_first_value_of_a_connection_waits_for_no_provider";
    let Some(store) = Store::start(test, |builder| builder) else { return };
    store.delay(0.02);
    store.connect().run(READ);
    let calls = store.calls();
    let timed = |session: &mut Client| {
        let started = Instant::now();
        session.batch_execute(READ).unwrap();
        started.elapsed()
    };
    // What PostgreSQL itself reads at a connection's first look at a table is not counted: the value is read
    // as it is stored, and then by the same statement twice.
    let (mut first, mut second): (Vec<_>, Vec<_>) = (0..50)
        .map(|_| {
            let mut session = store.connect();
            session.run("SELECT v::bytea, 1::text FROM t WHERE id = 1");
            (timed(&mut session), timed(&mut session))
        })
        .unzip();
    first.sort_unstable();
    second.sort_unstable();
    println!(
        "first value of a connection: {:?} (median; the least {:?}), the second: {:?} ({:?})",
        first[25], first[0], second[25], second[0]
    );
    assert_eq!(store.calls(), calls);
    assert!(first[25] < Duration::from_millis(20));
}
