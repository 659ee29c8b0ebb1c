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
use cluster_tests::process_memory::{mappings, search};
use cluster_tests::replication::{catch_up, replace_by_base_backup, wait_for};
use cluster_tests::{DATABASE, Session, builder, connect, create_extension, expect_error};
use harness::cluster::{Builder, Cluster, SUPERUSER, Shutdown, backend_pid};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use postgres::Client;

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

    /// The store's key: so many times the byte.
    fn put(&self, key: &str, version: u32, byte: u8) {
        fs::write(self.file(&format!("key.{key}.{version}")), STANDARD.encode([byte; 32])).unwrap();
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
        let _ = expect_error(&reading.join().unwrap().unwrap_err(), "KE016");
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
    let log = standby.log();
    assert!(!log.contains("FATAL") && !log.contains("PANIC"), "{log}");
    store.revive();

    // Not if it is unwanted.
    store.cluster.configure("encryption_ext.warm_up", "off");
    store.restart();
    thread::sleep(Duration::from_secs(3));
    assert_eq!(store.calls(), BTreeMap::new());
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
    there.fails("SELECT v FROM t WHERE id = 2", "KE017");
    assert_eq!(statistic(&mut here, "entries"), 4);
    // A flush is the database's.
    there.run("SELECT enc_flush_cache()");
    assert_eq!(statistic(&mut here, "entries"), 2);
    drop(there);
    here.run("DROP DATABASE other");

    // A version that is rolled back, and made again with other bytes.
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

/// All processes of the server, the postmaster first.
fn processes(cluster: &Cluster) -> Vec<i32> {
    let postmaster = cluster.postmaster_pid().cast_signed();
    let mut processes = vec![postmaster];
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<i32>() else { continue };
        let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        let parent = stat.rsplit(") ").next().and_then(|rest| rest.split(' ').nth(1));
        if parent.and_then(|parent| parent.parse().ok()) == Some(postmaster) {
            processes.push(pid);
        }
    }
    processes
}

/// In which processes' memory the key is, and whether everywhere in memory that is left out of core dumps.
fn holders(cluster: &Cluster, key: [u8; 32]) -> Vec<(i32, bool)> {
    let mut holders = Vec::new();
    for pid in processes(cluster) {
        let Ok(found) = search(pid, &[key.to_vec()]) else { continue };
        if !found.is_empty() {
            holders.push((pid, found.iter().all(|(_, is_secret)| *is_secret)));
        }
    }
    holders
}

#[test]
fn keys_are_in_memory_that_is_locked_and_not_dumped_until_they_are_wiped() {
    let test = "keys_are_in_memory_that_is_locked_and_not_dumped_until_they_are_wiped";
    let Some(store) =
        Store::start(test, |builder| builder.setting("encryption_ext.cache_ttl", "3600"))
    else {
        return;
    };
    let cluster = &store.cluster;
    store.put("k", 2, 3);
    let mut admin = store.connect();
    let postmaster = cluster.postmaster_pid().cast_signed();
    let one = [2; 32];
    if let Err(error) = search(postmaster, &[one.to_vec()]) {
        return harness::skip(test, &format!("the postmaster's memory can't be read: {error}"));
    }
    // The round keys of a cipher begin with the key, so sessions have it in their own memory; what shows is
    // that of a process that has no key of its own.
    assert_eq!(holders(cluster, one), []);
    store.connect().run(READ);
    let found = holders(cluster, one);
    assert!(found.contains(&(postmaster, true)), "{found:?}");
    assert!(found.iter().all(|(_, is_secret)| *is_secret), "{found:?}");
    let secret = mappings(postmaster).unwrap();
    let secret: Vec<_> = secret.iter().filter(|m| m.has("dd") && m.has("sh")).collect();
    let size = |flag| secret.iter().filter(|m| m.has(flag)).map(|m| m.end - m.start).sum::<u64>();
    assert_eq!(i64::try_from(size("lo")).unwrap(), statistic(&mut admin, "locked_bytes"));
    assert!(size("lo") > 0, "nothing could be locked");
    assert_eq!(
        i64::try_from(size("dd")).unwrap(),
        statistic(&mut admin, "locked_bytes + unlocked_bytes")
    );

    // Disabled, in a session that has no key.
    admin.run("SELECT enc_rotate_key('k')");
    admin.run("BEGIN; SELECT enc_disable_key_version('k', 1); ROLLBACK");
    assert_eq!(
        holders(cluster, one),
        [found[0]]
            .map(|_| (postmaster, true))
            .to_vec()
            .into_iter()
            .chain(holders(cluster, one).into_iter().skip(1))
            .collect::<Vec<_>>()
    );
    admin.run("SELECT enc_disable_key_version('k', 1)");
    assert_eq!(holders(cluster, one), []);
    admin.run("SELECT enc_enable_key_version('k', 1)");
    store.connect().run(READ);
    assert!(!holders(cluster, one).is_empty());
    // Flushed.
    admin.run("SELECT enc_flush_cache()");
    assert_eq!(holders(cluster, one), []);
    store.connect().run(READ);

    // One process is killed, and PostgreSQL begins anew.
    assert!(!holders(cluster, one).is_empty());
    store.kill();
    kill(Pid::from_raw(backend_pid(&mut store.connect())), Signal::SIGKILL).unwrap();
    let started = Instant::now();
    let mut session = loop {
        match cluster.try_connect(SUPERUSER, DATABASE) {
            Ok(session) if started.elapsed() > Duration::from_millis(500) => break session,
            _ => thread::sleep(Duration::from_millis(50)),
        }
        assert!(started.elapsed() < Duration::from_secs(30));
    };
    assert_eq!(holders(cluster, one), []);
    assert_eq!(statistic(&mut session, "entries + hits"), 0);
    session.fails(READ, "KE062");
    store.revive();
    assert_eq!(store.connect().text(READ), "first");
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
    for n in 2..6 {
        store.put("k", n, u8::try_from(n).unwrap() + 50);
    }
    let mut admin = store.connect();
    admin.run(
        "SELECT enc_rotate_key('k'); INSERT INTO t (v) VALUES ('2');
         SELECT enc_rotate_key('k'); INSERT INTO t (v) VALUES ('3');
         SELECT enc_rotate_key('k'); INSERT INTO t (v) VALUES ('4')",
    );
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

/// With a key server 20 ms away, as a new connection's first value is to take at most a millisecond more than
/// in a connection that has the key.
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
    // What a connection's first statement takes without a key: PostgreSQL's own caches are empty.
    let mut first: Vec<_> = (0..50).map(|_| timed(&mut store.connect())).collect();
    first.sort_unstable();
    let mut others: Vec<_> = (0..50)
        .map(|_| {
            let mut session = store.connect();
            session.run(READ);
            timed(&mut session)
        })
        .collect();
    others.sort_unstable();
    println!("first value of a connection: {:?} (median), another: {:?}", first[25], others[25]);
    assert_eq!(store.calls(), calls);
    assert!(first[25] < Duration::from_millis(20));
}
