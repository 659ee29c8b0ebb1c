//! Scheduled rotations: once, whoever calls and wherever a server stops; with the rights of who scheduled
//! them; and not in copies of the database.

use std::thread;
use std::time::{Duration, Instant};

use cluster_tests::key_server::{READ, Setup, WRITING};
use cluster_tests::replication::{catch_up, replace_by_base_backup};
use cluster_tests::{
    AT_ONCE, DATABASE, Session, builder, connect, create_extension, keyring_file, start,
};
use harness::cluster::{Cluster, SUPERUSER};
use harness::openbao::OpenBao;
use postgres::Client;

const RUN: &str = "CALL enc_run_due_rotations()";
const VERSION: &str = "SELECT active_version FROM enc_keys WHERE name = 'k'";
const VERSIONS: &str = "SELECT count(*)::integer FROM enc_key_versions WHERE name = 'k'";
const IN_TABLE: &str = "SELECT string_agg(DISTINCT enc_key_version(v)::text, ' ' ORDER BY enc_key_version(v)::text) FROM t";

/// As if a day had passed since the active version was made.
const A_DAY_LATER: &str = "UPDATE encryption.key_version SET activated_at = activated_at - interval '1 day' WHERE state = 'active'";

#[track_caller]
fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let started = Instant::now();
    while !is_so() {
        assert!(started.elapsed() < Duration::from_secs(60), "in vain: {what}");
        thread::sleep(Duration::from_millis(20));
    }
}

fn health(session: &mut Client) -> String {
    session.text("SELECT concat_ws(': ', status, detail) FROM enc_health() WHERE check_name = 'schedule' AND subject = 'k'")
}

#[test]
fn sessions_that_call_at_once_rotate_once() {
    let Some(cluster) = start("sessions_that_call_at_once_rotate_once") else { return };
    let mut session = connect(&cluster);
    session.run("SELECT enc_create_key('k'), enc_schedule_rotation('k', '12 hours')");
    for round in 1..=5 {
        session.run(A_DAY_LATER);
        let calling = || {
            let mut session = connect(&cluster);
            move || (0..3).for_each(|_| session.run(RUN))
        };
        let calls: Vec<_> = (0..AT_ONCE).map(|_| calling()).collect();
        thread::scope(|scope| {
            for call in calls {
                scope.spawn(call);
            }
        });
        assert_eq!(session.value::<i32>(VERSION), 1 + round);
        assert_eq!(session.value::<i32>(VERSIONS), 1 + round);
    }
    let log = "SELECT count(*)::integer FROM encryption.key_event WHERE action = 'rotate' AND reason = 'scheduled rotation'";
    assert_eq!(session.value::<i32>(log), 5);
    assert_eq!(session.text("SELECT bool_and(ok) FROM enc_verify_log()"), "t");
}

/// With the library preloaded nobody has to call.
#[test]
fn a_preloaded_library_rotates_by_itself() {
    let Some(builder) = builder("a_preloaded_library_rotates_by_itself") else { return };
    let cluster = builder
        .setting("shared_preload_libraries", "encryption_ext")
        .setting("encryption_ext.cache_ttl", "2s")
        .start();
    create_extension(&cluster, DATABASE);
    let mut session = connect(&cluster);
    session.run(
        "SELECT enc_create_key('k'), enc_schedule_rotation('k', '12 hours', auto_reencrypt => true);
         CREATE TABLE t (v encrypted_text('k'));
         INSERT INTO t VALUES ('first')",
    );
    session.run(A_DAY_LATER);
    wait_until("the key is rotated", || session.value::<i32>(VERSION) == 2);
    wait_until("all is under the new version", || session.text(IN_TABLE) == "2");
    thread::sleep(Duration::from_secs(3));
    assert_eq!((session.value::<i32>(VERSION), session.value::<i32>(VERSIONS)), (2, 2));
    let log = "SELECT count(*)::integer FROM encryption.key_event WHERE action = 'rotate' AND reason = 'scheduled rotation'";
    assert_eq!(session.value::<i32>(log), 1);
}

/// The provider has made the version, and the server stops before the catalog has it.
#[test]
fn a_server_that_is_killed_in_the_middle_rotates_once() {
    let test = "a_server_that_is_killed_in_the_middle_rotates_once";
    let Some(mut setup) = Setup::with_key(test, OpenBao::start_with_tls, WRITING) else { return };
    setup.connect().run("SELECT enc_schedule_rotation('k', '12 hours', auto_reencrypt => true)");
    setup.connect().run(A_DAY_LATER);
    // Who holds the lock of those who change keys keeps the rotation waiting between the two.
    let mut blocker = setup.connect();
    blocker.run("BEGIN; LOCK TABLE encryption.key IN SHARE MODE");
    let mut calling = setup.connect();
    let calling = thread::spawn(move || calling.batch_execute(RUN).is_err());
    let mut watching = setup.connect();
    wait_until("the rotation waits for the lock", || {
        let waiting = "SELECT count(*)::integer FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE 'CALL%'";
        watching.value::<i32>(waiting) == 1
    });
    let (status, metadata) =
        setup.server.request("GET", "secret/metadata/keys/k", serde_json::Value::Null);
    assert_eq!((status, &metadata["data"]["current_version"]), (200, &serde_json::json!(2)));
    setup.cluster.crash();
    assert!(calling.join().unwrap(), "the call has succeeded");
    setup.cluster.start();

    let mut session = setup.connect();
    assert_eq!(session.value::<i32>(VERSION), 1);
    session.run(RUN);
    session.run(RUN);
    assert_eq!((session.value::<i32>(VERSION), session.value::<i32>(VERSIONS)), (2, 2));
    let (_, metadata) =
        setup.server.request("GET", "secret/metadata/keys/k", serde_json::Value::Null);
    assert_eq!(metadata["data"]["current_version"], serde_json::json!(2));
    // The re-encryption goes on by itself.
    wait_until("all is under the new version", || session.text(IN_TABLE) == "2");
    assert_eq!(session.text(READ), "first");
}

#[test]
fn a_reencryption_outlives_a_crash() {
    let Some(mut cluster) = start("a_reencryption_outlives_a_crash") else { return };
    let mut session = connect(&cluster);
    session.run(
        "CREATE ROLE owner LOGIN;
         GRANT CREATE ON SCHEMA public TO owner;
         SELECT enc_create_key('k', owner => 'owner')",
    );
    let mut owner = cluster.connect("owner", DATABASE);
    owner.run(
        "CREATE TABLE t (id bigint, v encrypted_text('k'));
         INSERT INTO t SELECT n, 'value ' || n FROM generate_series(1, 60000) n;
         SELECT enc_schedule_rotation('k', '12 hours', auto_reencrypt => true)",
    );
    session.run(A_DAY_LATER);
    session.run(RUN);
    const WORKER: &str = "SELECT count(*)::integer FROM pg_stat_activity WHERE backend_type = 'encryption_ext rotation worker'";
    wait_until("the worker has begun", || {
        let done = "SELECT coalesce(max(rows_done), 0)::integer FROM enc_stat_progress_rotate";
        session.value::<i32>(done) > 0
    });
    assert_eq!(session.value::<i32>(WORKER), 1);
    // It is the owner's.
    let whose = "SELECT DISTINCT usename::text FROM pg_stat_activity WHERE backend_type = 'encryption_ext rotation worker'";
    assert_eq!(session.text(whose), "owner");
    assert!(health(&mut session).contains("being encrypted again"), "{}", health(&mut session));
    // Another call starts no second one.
    session.run(RUN);
    assert_eq!(session.value::<i32>(WORKER), 1);
    cluster.crash();
    cluster.start();

    let mut session = connect(&cluster);
    assert_ne!(session.text(IN_TABLE), "2", "it was done before the crash");
    assert_eq!(session.text("SELECT reencrypt_to FROM enc_scheduled_rotations"), "2");
    session.run(RUN);
    wait_until("all is under the new version", || session.text(IN_TABLE) == "2");
    wait_until("it is noted", || {
        session.texts("SELECT reencrypt_to FROM enc_scheduled_rotations") == [None]
    });
    assert!(health(&mut session).starts_with("ok: it is due at "), "{}", health(&mut session));
    let jobs = "SELECT string_agg(state, ' ') FROM enc_stat_progress_rotate";
    assert_eq!(session.text(jobs), "completed");
}

/// Each of these shows in enc_health, and nothing is done with other rights.
#[test]
fn rights_that_were_lost_are_not_used() {
    let Some(cluster) = start("rights_that_were_lost_are_not_used") else { return };
    let mut session = connect(&cluster);
    session.run(
        "CREATE ROLE keys NOLOGIN;
         CREATE ROLE alice LOGIN IN ROLE keys;
         SELECT enc_create_key('k', owner => 'keys');
         CREATE TABLE t (v encrypted_text('k'));
         INSERT INTO t VALUES ('x')",
    );
    let mut alice = cluster.connect("alice", DATABASE);
    alice.run("SELECT enc_schedule_rotation('k', '12 hours', auto_reencrypt => true)");
    session.run(A_DAY_LATER);
    session.run("REVOKE keys FROM alice");
    session.fails(RUN, "KE143");
    assert_eq!(session.value::<i32>(VERSION), 1);
    assert!(
        health(&mut session).starts_with("warning: role \"alice\""),
        "{}",
        health(&mut session)
    );
    session.run("GRANT keys TO alice");
    session.run(RUN);
    assert_eq!(session.value::<i32>(VERSION), 2);
    // The table is a superuser's: alice's worker may not change it.
    wait_until("the worker has failed", || cluster.log().contains("must be owner of table"));
    assert_eq!(session.text(IN_TABLE), "1");
    // A role that may no longer log in starts no worker.
    session.run("ALTER ROLE alice NOLOGIN; UPDATE encryption.rotation_schedule SET worker_started_at = NULL");
    session.run(RUN);
    assert!(health(&mut session).contains("may not log in"), "{}", health(&mut session));
    session.run("ALTER ROLE alice LOGIN; ALTER TABLE t OWNER TO alice");
    session.run(RUN);
    wait_until("all is under the new version", || session.text(IN_TABLE) == "2");
    wait_until("it is noted", || {
        session.texts("SELECT reencrypt_to FROM enc_scheduled_rotations") == [None]
    });

    // A role that is gone.
    session.run(A_DAY_LATER);
    session.run("ALTER TABLE t OWNER TO postgres; DROP ROLE alice");
    session.fails(RUN, "KE143");
    assert_eq!(session.value::<i32>(VERSION), 2);
    assert!(
        health(&mut session).contains("is not an owner of the key"),
        "{}",
        health(&mut session)
    );
}

#[test]
fn standbys_and_copies_do_nothing_by_themselves() {
    let test = "standbys_and_copies_do_nothing_by_themselves";
    let Some(described) = builder(test) else { return };
    let primary = described.setting("wal_keep_size", "64MB").start();
    create_extension(&primary, DATABASE);
    let mut admin = connect(&primary);
    admin.run("SELECT enc_create_key('k'), enc_schedule_rotation('k', '12 hours')");
    let mut standby = Cluster::builder(cluster_tests::MAJOR).port(5433).create();
    replace_by_base_backup(&standby, &primary, &["--write-recovery-conf"]);
    standby.configure("encryption_ext.provider", "file");
    standby.configure("encryption_ext.keyring_file", keyring_file(&primary).to_str().unwrap());
    standby.start();
    admin.run(A_DAY_LATER);
    catch_up(&mut admin, &mut connect(&standby));
    let mut there = connect(&standby);
    there.run(RUN);
    assert_eq!(there.value::<i32>(VERSION), 1);
    assert_eq!(there.text("SELECT is_due FROM encryption.scheduled_work"), "t");

    // A dump of it, restored beside it.
    admin.run(cluster_tests::NO_RAW_CASTS);
    let run = |program: &str, arguments: &[&str]| {
        let output = primary.command(program).args(arguments).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    run("pg_dump", &["--format=custom", "--file=db.dump"]);
    admin.run("CREATE DATABASE copy");
    run("pg_restore", &["--dbname=copy", "db.dump"]);
    let mut copy = primary.connect(SUPERUSER, "copy");
    copy.run(RUN);
    assert_eq!(copy.value::<i32>(VERSION), 1);
    assert!(
        health(&mut copy).contains("waits until somebody confirms it"),
        "{}",
        health(&mut copy)
    );
    // It is confirmed, and waits on until the catalog is compared with the keys.
    copy.run("SELECT enc_schedule_rotation('k')");
    copy.run(RUN);
    assert_eq!(copy.value::<i32>(VERSION), 1);
    copy.run("SELECT enc_reconcile()");
    copy.run(RUN);
    assert_eq!(copy.value::<i32>(VERSION), 2);
    assert_eq!(admin.value::<i32>(VERSION), 1);

    // A standby that is promoted after a failover goes on.
    drop(admin);
    drop(copy);
    there.run("SELECT pg_promote()");
    let mut promoted = connect(&standby);
    promoted.run(RUN);
    assert!(promoted.value::<i32>(VERSION) > 1);
}
