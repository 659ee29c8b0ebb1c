//! What is counted, over all sessions of a server whose library is preloaded, and without that.

use std::thread;
use std::time::{Duration, Instant};

use cluster_tests::key_server::{READ, READ_ONLY, Setup};
use cluster_tests::replication::{catch_up, replace_by_base_backup};
use cluster_tests::{DATABASE, Session, builder, connect, create_extension, keyring_file};
use harness::cluster::{Cluster, SUPERUSER};
use harness::openbao::OpenBao;
use postgres::Client;

/// A value of which a byte was changed.
const DAMAGED: &str = "SELECT set_byte(v::bytea, 40, 255 - get_byte(v::bytea, 40))::encrypted_text
                         FROM t WHERE id = 1";

/// With a key and a table of 1000 rows under it.
fn start(test: &str, preloaded: bool) -> Option<Cluster> {
    let libraries = if preloaded { "encryption_ext" } else { "" };
    let described = builder(test)?
        .setting("shared_preload_libraries", libraries)
        .setting("wal_keep_size", "64MB")
        // ANALYZE compares values.
        .setting("autovacuum", "off");
    let cluster = described.start();
    create_extension(&cluster, DATABASE);
    let mut session = connect(&cluster);
    session.run(
        "SELECT enc_create_key('k');
         CREATE TABLE t (id integer, v encrypted_text('k'));
         INSERT INTO t SELECT n, 's' || n FROM generate_series(1, 1000) n;
         CREATE ROLE monitor LOGIN IN ROLE pg_monitor; CREATE ROLE nobody LOGIN; GRANT SELECT ON t TO nobody",
    );
    Some(cluster)
}

/// Encrypted, decrypted, compared, failures, denials, served past expiry in this database.
fn counted(session: &mut Client) -> [i64; 6] {
    let columns =
        ["encrypted", "decrypted", "compared", "decrypt_failures", "denials", "served_past_expiry"];
    columns.map(|column| {
        session.value(&format!("SELECT {column} FROM enc_stat WHERE datname = current_database()"))
    })
}

/// Waits until it is so: a session that ends does so after its client.
fn expect_counted(session: &mut Client, expected: [i64; 6]) {
    let started = Instant::now();
    while counted(session) != expected && started.elapsed() < Duration::from_secs(10) {
        thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(counted(session), expected);
}

#[test]
fn one_decryption_in_1024_is_timed() {
    for preloaded in [true, false] {
        let Some(cluster) = start("one_decryption_in_1024_is_timed", preloaded) else { return };
        let mut session = connect(&cluster);
        assert_eq!(
            session.value::<i64>("SELECT count(v::text) FROM t, generate_series(1, 1024)"),
            1_024_000
        );
        let timed =
            "SELECT concat_ws(' ', decrypt_time_samples, decrypt_time_seconds > 1000 * 20e-9,
                                      decrypt_time_seconds < 60)
                       FROM enc_stat WHERE datname = current_database()";
        assert_eq!(session.text(timed), "1000 t t");
        let histogram = "SELECT concat_ws(' ', count(*), min(le) = 250e-9, max(le) = 'Infinity', max(count),
                                          bool_and(count >= before), max(count) FILTER (WHERE le = 0.01) > 500)
                           FROM (SELECT *, lag(count, 1, 0) OVER (ORDER BY le) AS before
                                   FROM enc_stat_decrypt_time WHERE datname = current_database()) t";
        assert_eq!(session.text(histogram), "14 t t 1000 t t");

        session.run("SELECT enc_stat_reset()");
        assert_eq!(session.text(timed), "0 f t");
        assert_eq!(session.text(histogram), "14 t t 0 t f");
    }
}

#[test]
fn all_sessions_and_workers_are_counted_exactly() {
    let Some(mut cluster) = start("all_sessions_and_workers_are_counted_exactly", true) else {
        return;
    };
    let mut monitor = cluster.connect("monitor", DATABASE);
    assert_eq!(monitor.text("SELECT scope FROM enc_stat WHERE datname = 'postgres'"), "server");
    assert_eq!(counted(&mut monitor), [1000, 0, 0, 0, 0, 0]);

    // Two sessions, at the same time.
    let readers = [connect(&cluster), connect(&cluster)].map(|mut session| {
        thread::spawn(move || {
            for _ in 0..50 {
                session.run("SELECT v::text FROM t WHERE id BETWEEN 1 AND 100; INSERT INTO t VALUES (0, 'x')");
            }
        })
    });
    for reader in readers {
        reader.join().unwrap();
    }
    assert_eq!(counted(&mut monitor), [1100, 10_000, 0, 0, 0, 0]);

    // A query in parallel; a transaction that is rolled back, as what it did was done.
    let mut session = connect(&cluster);
    session.run(
        "DELETE FROM t WHERE id = 0; SET min_parallel_table_scan_size = 0; SET parallel_setup_cost = 0;
         SET parallel_tuple_cost = 0; SET max_parallel_workers_per_gather = 2; SET parallel_leader_participation = off",
    );
    let query = "SELECT count(lower(v)) FROM t";
    let plan = session.texts(&format!("EXPLAIN {query}"));
    assert!(format!("{plan:?}").contains("Workers Planned: 2"), "{plan:?}");
    assert_eq!(session.value::<i64>(query), 1000);
    session.run("BEGIN; INSERT INTO t VALUES (0, 'x'); ROLLBACK");
    assert_eq!(counted(&mut monitor), [1101, 11_000, 0, 0, 0, 0]);

    // A session that is ended in the middle of a statement.
    let mut ended = connect(&cluster);
    let pid: i32 = ended.value("SELECT pg_backend_pid()");
    let reading = thread::spawn(move || {
        let both = "SELECT count(v::text), pg_sleep(60) FROM t WHERE id <= 10";
        ended.simple_query(both).unwrap_err();
    });
    let waits = format!("SELECT wait_event = 'PgSleep' FROM pg_stat_activity WHERE pid = {pid}");
    while monitor.text(&format!("SELECT coalesce(({waits}), false)")) != "t" {
        thread::sleep(Duration::from_millis(20));
    }
    session.run(&format!("SELECT pg_terminate_backend({pid})"));
    reading.join().unwrap();
    expect_counted(&mut monitor, [1101, 11_010, 0, 0, 0, 0]);

    // Comparisons, failures, denials.
    session.run("SET max_parallel_workers_per_gather = 0");
    assert_eq!(session.value::<i64>("SELECT count(*) FROM t WHERE v = 's5'"), 1);
    session.fails(DAMAGED, "KE045");
    cluster.connect("nobody", DATABASE).fails("SELECT v FROM t", "KE020");
    let now = counted(&mut monitor);
    assert_eq!(now, [1101, 11_010, 1000, 1, 1, 0]);

    // By version, in any session.
    let encryptions = "SELECT encryptions FROM enc_stat_key WHERE name = 'k'";
    assert_eq!(monitor.value::<i64>(encryptions), 1101);
    session.run("SELECT enc_rotate_key('k'); INSERT INTO t VALUES (0, 'x'), (0, 'y')");
    assert_eq!(monitor.value::<i64>(encryptions), 2);
    let state = "SELECT concat_ws(' ', scope, check_value_ok, encryptions_since >= active_since,
                                  cached_until > now(), usable_until > cached_until)
                   FROM enc_stat_key WHERE name = 'k'";
    assert_eq!(monitor.text(state), "server t t t t");

    // Each database has its own row.
    session.run("CREATE DATABASE other");
    create_extension(&cluster, "other");
    let mut other = cluster.connect(SUPERUSER, "other");
    other.run("SELECT enc_create_key('k'); CREATE TABLE t (v encrypted_text('k')); INSERT INTO t VALUES ('x')");
    assert_eq!(counted(&mut other), [1, 0, 0, 0, 0, 0]);
    assert_eq!(counted(&mut monitor)[0], 1103);

    // Who may reset: as of PostgreSQL's own.
    monitor.fails("SELECT enc_stat_reset()", "42501");
    let before: String =
        monitor.text("SELECT stats_reset FROM enc_stat WHERE datname = 'postgres'");
    assert!(monitor.value::<i64>("SELECT requests FROM enc_stat_provider") > 0);
    session.run("SELECT enc_stat_reset()");
    assert_eq!(counted(&mut monitor), [0; 6]);
    assert_eq!(monitor.value::<i64>("SELECT requests FROM enc_stat_provider"), 0);
    let later = format!("SELECT stats_reset > '{before}' FROM enc_stat WHERE datname = 'postgres'");
    assert_eq!(monitor.text(&later), "t");
    assert_eq!(monitor.value::<i64>(encryptions), 2, "they tell of the key");
    assert_eq!(counted(&mut other), [1, 0, 0, 0, 0, 0]);

    // What is counted of providers is for who watches the server.
    let mut nobody = cluster.connect("nobody", DATABASE);
    assert_eq!(counted(&mut nobody), [0; 6]);
    nobody.fails("SELECT * FROM enc_stat_provider", "42501");
    nobody.fails("SELECT * FROM enc_stat_provider_request_time", "42501");

    // After a crash it begins anew.
    session.run("SELECT count(v::text) FROM t");
    assert_eq!(counted(&mut monitor)[1], 1002);
    let pid: i32 = session.value("SELECT pg_backend_pid()");
    let began: String = monitor.text("SELECT clock_timestamp()");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL)
        .unwrap();
    let started = Instant::now();
    let mut monitor = loop {
        thread::sleep(Duration::from_millis(100));
        if let Ok(mut session) = cluster.try_connect("monitor", DATABASE)
            && session.simple_query("SELECT 1").is_ok()
            && monitor.is_closed()
        {
            break session;
        }
        drop(monitor.simple_query("SELECT 1"));
        assert!(started.elapsed() < Duration::from_secs(30), "the server doesn't come back");
    };
    assert_eq!(counted(&mut monitor), [0; 6]);
    assert_eq!(monitor.value::<i64>(encryptions), 0);
    let later = format!("SELECT stats_reset > '{began}' FROM enc_stat WHERE datname = 'postgres'");
    assert_eq!(monitor.text(&later), "t");
    cluster.restart();
}

#[test]
fn without_preload_a_session_counts_for_itself() {
    let Some(cluster) = start("without_preload_a_session_counts_for_itself", false) else { return };
    let mut session = connect(&cluster);
    session.run("SELECT v::text FROM t WHERE id <= 10; INSERT INTO t VALUES (0, 'x')");
    session.fails(DAMAGED, "KE045");
    assert_eq!(counted(&mut session), [1, 10, 0, 1, 0, 0]);
    assert_eq!(session.text("SELECT scope FROM enc_stat"), "backend");
    let key = "SELECT concat_ws(' ', scope, encryptions, check_value_ok) FROM enc_stat_key WHERE name = 'k'";
    assert_eq!(session.text(key), "backend 1 t");
    let provider = "SELECT concat_ws(' ', provider, scope, reachable, breaker, requests, errors) FROM enc_stat_provider";
    assert_eq!(session.text(provider), "file backend t closed 2 0");

    let mut other = connect(&cluster);
    assert_eq!(counted(&mut other), [0; 6]);
    assert_eq!(other.text(key), "backend 0");
    assert_eq!(other.text(provider), "file backend closed 0 0");
    session.run("SELECT enc_stat_reset()");
    assert_eq!(counted(&mut session), [0; 6]);
}

#[test]
fn requests_to_providers_are_counted_and_timed() {
    let test = "requests_to_providers_are_counted_and_timed";
    let Some(mut setup) = Setup::with_key(test, OpenBao::start_with_tls, READ_ONLY) else { return };
    let (role, secret) = setup.server.approle("postgresql", &["keys"], "1h");
    setup.configure_file("vault_role_id_file", &setup.write("role-id", &role));
    setup.configure_file("vault_secret_id_file", &setup.write("secret-id", &secret));
    setup.is_secret(&secret);
    setup.cluster.configure("encryption_ext.vault_auth", "approle");
    setup.cluster.configure("shared_preload_libraries", "encryption_ext");
    setup.cluster.configure("encryption_ext.cache_ttl", "1");
    setup.cluster.configure("encryption_ext.cache_stale_grace", "600");
    setup.cluster.restart();
    connect(&setup.cluster).run("CREATE ROLE monitor LOGIN IN ROLE pg_monitor");
    let mut monitor = setup.cluster.connect("monitor", DATABASE);

    let mut session = setup.connect();
    assert_eq!(session.text(READ), "first");
    let state = "SELECT concat_ws(' ', scope, reachable, breaker, errors, requests >= 1, request_seconds > 0,
                                  last_success > now() - interval '1 minute', last_failure IS NULL)
                   FROM enc_stat_provider WHERE provider = 'vault'";
    assert_eq!(monitor.text(state), "server t closed 0 t t t t");
    // The token has an hour.
    let token = "SELECT token_expires - now() BETWEEN interval '55 min' AND interval '1 hour' FROM enc_stat_provider";
    assert_eq!(monitor.text(token), "t");
    let buckets = "SELECT count(*) = 12 AND max(count) FILTER (WHERE le = 'Infinity') = max(p.requests)
                          AND bool_and(b.count <= p.requests)
                     FROM enc_stat_provider p JOIN enc_stat_provider_request_time b USING (provider)";
    assert_eq!(monitor.text(buckets), "t");
    let grows =
        "SELECT bool_and(is_more) FROM (SELECT count >= lag(count, 1, 0::bigint) OVER (ORDER BY le)
                   AS is_more FROM enc_stat_provider_request_time) steps";
    assert_eq!(monitor.text(grows), "t");
    assert_eq!(counted(&mut monitor)[5], 0);

    // An outage, through which keys serve past their time.
    setup.server.stop();
    thread::sleep(Duration::from_millis(1500));
    let decrypted = counted(&mut monitor)[1];
    for _ in 0..7 {
        assert_eq!(session.text(READ), "first");
    }
    assert_eq!(setup.connect().text(READ), "first");
    let now = counted(&mut monitor);
    assert_eq!((now[1] - decrypted, now[5]), (8, 8));
    let state = "SELECT concat_ws(' ', reachable, errors >= 1, errors = errors_unreachable,
                                  last_failure > last_success) FROM enc_stat_provider";
    assert_eq!(monitor.text(state), "f t t t");
    assert_eq!(monitor.text(buckets), "t");
    // Whoever asks without a key that helps opens the breaker.
    for _ in 0..5 {
        drop(session.simple_query("SELECT enc_create_key('made_in_vain')"));
    }
    let breaker = "SELECT breaker FROM enc_stat_provider";
    assert_eq!(monitor.text(breaker), "open");

    // And back: half-open after ten seconds, until somebody has asked.
    setup.server.restart();
    let started = Instant::now();
    while monitor.text("SELECT reachable AND breaker = 'closed' FROM enc_stat_provider") != "t" {
        assert!(started.elapsed() < Duration::from_secs(40), "{}", monitor.text(breaker));
        drop(setup.connect().simple_query(READ));
        thread::sleep(Duration::from_millis(200));
    }
}

#[test]
fn what_checks_ask_is_counted() {
    let test = "what_checks_ask_is_counted";
    let Some(mut setup) = Setup::with_key(test, OpenBao::start_with_tls, READ_ONLY) else { return };
    setup.cluster.configure("shared_preload_libraries", "encryption_ext");
    setup.cluster.configure("encryption_ext.warm_up", "off");
    setup.cluster.restart();
    let mut session = setup.connect();
    // How many requests and errors it adds.
    let mut adds = |what: &str| {
        const COUNTS: &str = "SELECT ARRAY[requests, errors, errors_unreachable, errors_not_found] FROM enc_stat_provider";
        let before: Vec<i64> = session.value(COUNTS);
        session.run(what);
        let after: Vec<i64> = session.value(COUNTS);
        let bucket = "SELECT count FROM enc_stat_provider_request_time WHERE le = 'Infinity'";
        assert_eq!(session.value::<i64>(bucket), after[0]);
        after.iter().zip(&before).map(|(after, before)| after - before).collect::<Vec<_>>()
    };
    // The check itself; of each of two keys a version, and how many are kept.
    assert_eq!(adds("SELECT enc_check_provider()"), [5, 0, 0, 0]);
    assert_eq!(adds("SELECT enc_check_key('k')"), [2, 0, 0, 0]);
    // Beside the versions of both keys, which are compared, the ones that there are to adopt are looked for;
    // and the log has an entry, for which the database key is fetched.
    assert_eq!(adds("SELECT enc_reconcile()"), [5, 0, 0, 0]);
    let versions = serde_json::json!({ "versions": [1] });
    assert_eq!(setup.server.request("PUT", "secret/destroy/keys/k", versions).0, 204);
    assert_eq!(adds("SELECT enc_check_key('k')"), [2, 1, 0, 1]);
    setup.server.stop();
    // One that is out of reach is asked once.
    assert_eq!(adds("SELECT enc_check_provider()"), [2, 2, 2, 0]);
    assert_eq!(adds("SELECT enc_check_key()"), [1, 1, 1, 0]);
    let last =
        "SELECT concat_ws(' ', reachable, last_failure > last_success) FROM enc_stat_provider";
    assert_eq!(session.text(last), "f t");
}

#[test]
fn a_standby_counts_for_itself() {
    let Some(primary) = start("a_standby_counts_for_itself", true) else { return };
    let mut standby = Cluster::builder(cluster_tests::MAJOR).port(5433).create();
    replace_by_base_backup(&standby, &primary, &["--write-recovery-conf"]);
    standby.configure("encryption_ext.keyring_file", keyring_file(&primary).to_str().unwrap());
    standby.start();
    catch_up(&mut connect(&primary), &mut connect(&standby));
    connect(&standby).run("SELECT v::text FROM t WHERE id <= 10");
    let mut monitor = standby.connect("monitor", DATABASE);
    assert_eq!(monitor.text("SELECT pg_is_in_recovery()"), "t");
    assert_eq!(counted(&mut monitor), [0, 10, 0, 0, 0, 0]);
    let rows = "SELECT count(*) FROM enc_stat_provider, enc_stat_provider_request_time, enc_stat_key, enc_stat_cache, enc_stat_shared_cache";
    assert_eq!(monitor.value::<i64>(rows), 12 * 2);
    connect(&standby).run("SELECT enc_stat_reset()");
    assert_eq!(counted(&mut monitor), [0; 6]);
    assert_eq!(counted(&mut connect(&primary))[0], 1000);
}
