//! The lifecycle log with several sessions, in dumps and without its key; versions that not every
//! server has yet; and what a restored database says about its keys.

#![expect(clippy::unwrap_used, reason = "a test fails by a panic")]

use std::fs;
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use cluster_tests::key_server::{READ_ONLY, Setup};
use cluster_tests::replication::{catch_up, replace_by_base_backup};
use cluster_tests::{
    AT_ONCE, DATABASE, MAJOR, Session, at_once, builder, connect, create_extension, data_key,
    keyring_file, start,
};
use harness::cluster::{Cluster, SUPERUSER};
use harness::openbao::OpenBao;
use postgres::{Client, NoTls};

/// What a session is told whose catalog may be older than the keys.
const MAY_BE_OLDER: &str = "the catalog of keys may be older than the keys";

/// A cluster with a key `k` and a table whose first row is `first`.
fn cluster(test: &str) -> Option<Cluster> {
    let cluster = start(test)?;
    make_key(&mut connect(&cluster));
    Some(cluster)
}

fn make_key(session: &mut Client) {
    session.run(
        "SELECT enc_create_key('k');
         CREATE TABLE t (id bigint GENERATED ALWAYS AS IDENTITY, v encrypted_text('k'));
         INSERT INTO t (v) VALUES ('first')",
    );
}

/// What is wrong with the log, chain by chain: nothing, if the texts are empty.
#[track_caller]
fn problems(session: &mut Client) -> Vec<String> {
    let problems = session.texts(
        "SELECT concat_ws(', ', CASE WHEN NOT ok THEN 'wrong' END, problem,
                          CASE WHEN restored THEN 'restored' END, nullif(unsealed, 0))
           FROM enc_verify_log()",
    );
    problems.into_iter().map(Option::unwrap).collect()
}

/// The entries that the server log tells of, without their digests.
fn logged(cluster: &Cluster) -> Vec<String> {
    let log = cluster.log();
    let entries = log.lines().filter_map(|line| line.split_once("lifecycle log of keys: chain "));
    entries.map(|(_, entry)| entry.split_once(", ").unwrap().1.to_owned()).collect()
}

#[test]
fn the_server_log_has_the_heads_of_what_was_committed() {
    let Some(builder) = builder("the_server_log_has_the_heads_of_what_was_committed") else {
        return;
    };
    let cluster = builder.setting("max_prepared_transactions", "2").start();
    create_extension(&cluster, DATABASE);
    let mut session = connect(&cluster);
    make_key(&mut session);
    session.run(
        "BEGIN; SELECT enc_rotate_key('k'); ROLLBACK;
         BEGIN;
         SAVEPOINT a; SELECT enc_grant('k', 'public', 'encrypt');
         SAVEPOINT b; SELECT enc_grant('k', 'public', 'compare'); RELEASE b;
         ROLLBACK TO a;
         SELECT enc_grant('k', 'public', 'decrypt');
         COMMIT;
         BEGIN; SELECT enc_rotate_key('k'); PREPARE TRANSACTION 'p'",
    );
    session.run("COMMIT PREPARED 'p'");
    // In one message with a plaintext, which the log must not have.
    session
        .run("INSERT INTO t (v) VALUES ('plaintext-of-the-row'); SELECT enc_revoke('k', 'public')");

    let stored = session.texts(
        "SELECT format('entry %s, digest %s: %s of key \"%s\"', sequence, encode(digest, 'hex'), action, key_name)
                || coalesce(', old version ' || old_version, '')
                || coalesce(', new version ' || new_version, '')
                || CASE sequence WHEN 4 THEN ' (prepared)' ELSE '' END
           FROM encryption.key_event ORDER BY sequence",
    );
    assert_eq!(logged(&cluster), stored.into_iter().map(Option::unwrap).collect::<Vec<_>>());
    assert_eq!(problems(&mut session), [""]);
    assert!(!cluster.log().contains("plaintext-of-the-row"), "{}", cluster.log());
}

#[test]
fn entries_are_chained_in_the_order_of_commits() {
    let Some(cluster) = cluster("entries_are_chained_in_the_order_of_commits") else { return };
    let mut session = connect(&cluster);
    let results = at_once(&cluster, &|n| {
        let privilege = ["encrypt", "compare", "decrypt"][n % 3];
        format!("SELECT count(enc_grant('k', 'public', '{privilege}', 'session {n}'))::integer")
    });
    assert_eq!(results, vec![Ok(1); AT_ONCE]);
    assert_eq!(problems(&mut session), [""]);
    let entries = "SELECT count(DISTINCT reason) FROM encryption.key_event WHERE action = 'grant'";
    assert_eq!(session.value::<i64>(entries), i64::try_from(AT_ONCE).unwrap());

    // Who can't see the last entry can't follow it, and says so as for any row.
    let mut late = connect(&cluster);
    late.run("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM t");
    session.run("SELECT enc_grant('k', 'public', 'encrypt')");
    late.fails("SELECT enc_grant('k', 'public', 'compare')", "40001");
    late.run("ROLLBACK");

    // Who waits for another's entry follows it.
    session.run("BEGIN; SELECT enc_rotate_key('k')");
    let waiting = thread::scope(|scope| {
        let waiting = scope.spawn(|| {
            let mut waiting = connect(&cluster);
            waiting.run("SELECT enc_record_backup('b', 'infinity')");
        });
        let started = Instant::now();
        while connect(&cluster).text("SELECT count(*) FROM pg_locks WHERE NOT granted") == "0" {
            assert!(started.elapsed() < Duration::from_secs(30), "nobody waits");
        }
        session.run("COMMIT");
        waiting.join()
    });
    waiting.unwrap();
    assert_eq!(problems(&mut session), [""]);
    // What it waited for is among what the backup needs.
    assert_eq!(session.text("SELECT versions FROM enc_backups WHERE key_name = 'k'"), "{1,2}");
}

#[test]
fn a_key_server_that_is_gone_stops_no_revocation() {
    let test = "a_key_server_that_is_gone_stops_no_revocation";
    let Some(mut setup) = Setup::with_key(test, OpenBao::start_with_tls, READ_ONLY) else { return };
    setup.connect().run("CREATE ROLE clerk; SELECT enc_grant('k', 'clerk', 'decrypt')");
    setup.server.stop();
    let (mut session, warnings) = with_warnings(&setup.cluster);
    session.run("SELECT enc_revoke('k', 'clerk', reason => 'while nobody answers')");
    let warned = warned(&warnings);
    assert!(warned.iter().any(|warning| warning.contains("has no digest until")), "{warned:?}");
    assert_eq!(session.text("SELECT count(*) FROM encryption.key_grant"), "0");
    assert!(logged(&setup.cluster).last().unwrap().contains("no digest yet: revoke of key \"k\""));
    // What can't be verified is not said to be right.
    let said = problems(&mut session);
    assert!(said[0].starts_with("wrong, the entry cannot be verified: "), "{said:?}");

    setup.server.restart();
    let mut later = setup.connect();
    assert_eq!(problems(&mut later), ["1"]);
    later.run("SELECT enc_grant('k', 'clerk', 'encrypt')");
    assert_eq!(problems(&mut later), [""]);
    let late = "SELECT string_agg(action, ' ' ORDER BY sequence) FROM encryption.key_event
                 WHERE sealed_at > occurred_at + interval '100 ms'";
    assert_eq!(later.text(late), "revoke");
}

#[test]
fn a_log_is_verified_in_another_encoding() {
    let Some(cluster) = start("a_log_is_verified_in_another_encoding") else { return };
    for encoding in ["LATIN1", "SQL_ASCII"] {
        cluster.createdb(encoding, encoding);
        let mut session = cluster.connect(SUPERUSER, encoding);
        session.run("CREATE EXTENSION encryption_ext; SELECT enc_create_key('k', reason => 'Schlüssel für Zoë')");
        session
            .run("SET client_encoding = UTF8; SELECT enc_grant('k', 'public', 'decrypt', 'müßig')");
        assert_eq!(problems(&mut session), [""], "{encoding}");
        assert_eq!(
            session.text("SELECT reason FROM encryption.key_event WHERE action = 'grant'"),
            "müßig"
        );
        let dump = cluster.directory().join(encoding);
        run(&cluster, "pg_dump", &["--file", dump.to_str().unwrap(), encoding]);
        let restored = format!("from_{}", encoding.to_lowercase());
        cluster.createdb(&restored, "UTF8");
        run(
            &cluster,
            "psql",
            &[
                "--quiet",
                "--set=ON_ERROR_STOP=1",
                "--dbname",
                &restored,
                "--file",
                dump.to_str().unwrap(),
            ],
        );
        let mut session = cluster.connect(SUPERUSER, &restored);
        assert_eq!(problems(&mut session), ["restored"], "{encoding}");
    }
}

#[test]
fn a_version_waits_for_a_standby_that_does_not_have_it() {
    let test = "a_version_waits_for_a_standby_that_does_not_have_it";
    let Some(primary) = cluster(test) else { return };
    let mut admin = connect(&primary);
    let mut standby = Cluster::builder(MAJOR).port(5433).create();
    replace_by_base_backup(&standby, &primary, &["--write-recovery-conf"]);
    standby.start();
    let mut there = connect(&standby);
    catch_up(&mut admin, &mut there);
    const CHECKS: &str = "SELECT format('%s %s %s %s', in_recovery, version, state, ok)
                            FROM enc_key_checks WHERE name = 'k' ORDER BY version";
    assert_eq!(all(&mut there, CHECKS), ["t 1 active t"]);
    assert_eq!(there.text("SELECT v FROM t WHERE id = 1"), "first");

    // Each server has a keyring of its own, as two regions have key servers of their own.
    assert_eq!(admin.value::<i32>("SELECT enc_rotate_key('k', activate => false)"), 2);
    catch_up(&mut admin, &mut there);
    assert_eq!(all(&mut admin, CHECKS), ["f 1 active t", "f 2 pending t"]);
    assert_eq!(all(&mut there, CHECKS), ["t 1 active t", "t 2 pending f"]);
    let detail = there.text("SELECT detail FROM enc_check_key('k') WHERE version = 2");
    assert!(detail.contains("no version 2 of key \"k\""), "{detail}");

    // Who activates it all the same has values that the standby can't read, and goes back.
    admin.run("SELECT enc_activate_key_version('k', 2); INSERT INTO t (v) VALUES ('too early')");
    catch_up(&mut admin, &mut there);
    there.fails("SELECT v FROM t WHERE id = 2", "KE069");
    admin.run("SELECT enc_activate_key_version('k', 1); UPDATE t SET v = enc_rotate(v)");
    catch_up(&mut admin, &mut there);
    assert_eq!(all(&mut there, "SELECT v FROM t ORDER BY id"), ["first", "too early"]);

    // The key arrives, and the standby says so.
    copy_keyring(&primary, &standby);
    assert_eq!(all(&mut there, CHECKS), ["t 1 active t", "t 2 deprecated t"]);
    admin.run("SELECT enc_activate_key_version('k', 2); INSERT INTO t (v) VALUES ('in time')");
    catch_up(&mut admin, &mut there);
    let mut reader = connect(&standby);
    assert_eq!(reader.text("SELECT v FROM t WHERE id = 3"), "in time");

    // It verifies the log, and changes nothing.
    assert_eq!(problems(&mut there), [""]);
    there.fails("SELECT enc_reconcile()", "25006");
    there.fails("SELECT enc_record_backup('b', 'infinity')", "25006");
    there.fails("SELECT enc_forget_backup('b')", "25006");
    there.fails("SELECT enc_import_keys(enc_export_keys())", "25006");

    // Once promoted it goes on with what it was sent, and nobody is warned.
    drop(admin);
    drop(primary);
    there.run("SELECT pg_promote()");
    let (mut session, warnings) = with_warnings(&standby);
    assert_eq!(session.text("SELECT v FROM t WHERE id = 3"), "in time");
    session.run("SELECT enc_grant('k', 'public', 'encrypt')");
    assert_eq!(warned(&warnings), Vec::<String>::new());
    assert_eq!(problems(&mut session), [""]);
    let further = "SELECT here.timeline - known.timeline
                     FROM encryption.this_server() here, encryption.keyspace known";
    assert_eq!(session.text(further), "1");
}

#[test]
fn a_database_that_was_recovered_to_a_moment_before_a_rotation_says_so() {
    let test = "a_database_that_was_recovered_to_a_moment_before_a_rotation_says_so";
    let Some(builder) = builder(test) else { return };
    let mut original = builder.setting("archive_mode", "on").create();
    let archive = original.directory().join("archive");
    let archive = archive.to_str().unwrap();
    original.configure("archive_command", &format!("mkdir -p {archive} && cp %p {archive}/%f"));
    original.start();
    create_extension(&original, DATABASE);
    let mut session = connect(&original);
    make_key(&mut session);
    session.run("CREATE ROLE clerk; SELECT enc_grant('k', 'clerk', 'decrypt')");

    let mut restored = Cluster::builder(MAJOR).port(5433).create();
    replace_by_base_backup(&restored, &original, &[]);
    session.run("SELECT pg_create_restore_point('before')");
    session.run(
        "SELECT enc_revoke('k', 'clerk'), enc_rotate_key('k');
         INSERT INTO t (v) VALUES ('second');
         SELECT pg_switch_wal(); CHECKPOINT",
    );
    // Keys aren't restored with the database.
    copy_keyring(&original, &restored);
    restored.configure("restore_command", &format!("cp {archive}/%f %p"));
    restored.configure("recovery_target_name", "before");
    restored.configure("recovery_target_action", "promote");
    restored.configure("archive_mode", "off");
    let signal = restored.data_directory().join("recovery.signal");
    fs::write(signal, "").unwrap();
    restored.start();

    let wait = Instant::now();
    while connect(&restored).text("SELECT pg_is_in_recovery()") == "t" {
        assert!(wait.elapsed() < Duration::from_secs(60), "recovery doesn't end");
        thread::sleep(Duration::from_millis(50));
    }
    // Each session is told, once, and works.
    for _ in 0..2 {
        let (mut session, warnings) = with_warnings(&restored);
        assert_eq!(all(&mut session, "SELECT v FROM t"), ["first"]);
        session.run("INSERT INTO t (v) VALUES ('again')");
        let warned = warned(&warnings);
        assert_eq!(warned.len(), 1, "{warned:?}");
        assert!(warned[0].starts_with(MAY_BE_OLDER), "{warned:?}");
        assert!(warned[0].contains("(at restore point \"before\")"), "{warned:?}");
        session.run("DELETE FROM t WHERE v = 'again'");
    }
    // Comparing one key isn't comparing all; what differs is named.
    let (mut session, warnings) = with_warnings(&restored);
    const FINDINGS: &str = "SELECT concat_ws(' ', name, version, finding) FROM enc_reconcile(";
    assert_eq!(
        all(&mut session, &format!("{FINDINGS}'k')")),
        ["k 2 newer at provider", "k revocations unknown"]
    );
    assert_eq!(warned(&warnings), Vec::<String>::new());
    assert_eq!(first_warnings(&restored).len(), 1);
    assert_eq!(
        all(&mut session, &format!("{FINDINGS}adopt => true)")),
        ["database agrees", "k 2 adopted", "k revocations unknown"]
    );
    assert_eq!(first_warnings(&restored), Vec::<String>::new());
    session.run("INSERT INTO t (v) VALUES ('under the version that was lost')");
    assert_eq!(
        all(&mut session, "SELECT enc_key_version(v) || ' ' || v FROM t ORDER BY id"),
        ["1 first", "2 under the version that was lost"]
    );
    assert_eq!(problems(&mut session), [""]);
    // The clerk is back, as was said.
    assert_eq!(session.text("SELECT grantee FROM enc_key_grants"), "clerk");
}

#[test]
fn a_base_backup_that_is_started_by_itself_says_so() {
    let test = "a_base_backup_that_is_started_by_itself_says_so";
    let Some(original) = cluster(test) else { return };
    let mut copy = Cluster::builder(MAJOR).port(5433).create();
    replace_by_base_backup(&copy, &original, &[]);
    connect(&original).run("SELECT enc_rotate_key('k')");
    copy.configure("encryption_ext.provider", "file");
    copy.start();
    let warned = first_warnings(&copy);
    assert_eq!(warned.len(), 1, "{warned:?}");
    assert!(warned[0].contains("started from a base backup ("), "{warned:?}");
    connect(&copy).run("SELECT enc_reconcile()");
    assert_eq!(first_warnings(&copy), Vec::<String>::new());
    // Also after the next start, and recovery.
    copy.crash();
    copy.start();
    assert_eq!(first_warnings(&copy), Vec::<String>::new());
    assert_eq!(first_warnings(&original), Vec::<String>::new());
}

#[test]
fn a_dump_that_was_restored_in_another_cluster_says_so() {
    let test = "a_dump_that_was_restored_in_another_cluster_says_so";
    let Some(original) = cluster(test) else { return };
    let mut session = connect(&original);
    session.run("SELECT enc_record_backup('nightly', '2100-01-01')");
    let dump = original.directory().join("dump");
    let dump = dump.to_str().unwrap();
    // The casts are the tests' own.
    session.run(
        "DROP CAST (encrypted_text AS bytea); DROP CAST (bytea AS encrypted_text);
                 DROP CAST (encrypted_bytea AS encrypted_text);
                 DROP CAST (encrypted_text AS encrypted_bytea)",
    );
    run(&original, "pg_dump", &["--file", dump]);
    session.run("SELECT enc_rotate_key('k')");

    let keyring = keyring_file(&original);
    let other = Cluster::builder(MAJOR)
        .port(5433)
        .setting("encryption_ext.provider", "file")
        .setting("encryption_ext.keyring_file", keyring.to_str().unwrap())
        .start();
    // Twice, as who isn't sure does: what is there already is skipped.
    run(&other, "psql", &["--quiet", "--set=ON_ERROR_STOP=1", "--file", dump]);
    let warned = first_warnings(&other);
    assert_eq!(warned.len(), 1, "{warned:?}");
    assert!(warned[0].contains("it was restored from a dump"), "{warned:?}");
    let mut there = connect(&other);
    assert_eq!(problems(&mut there), ["restored"]);
    assert_eq!(there.text("SELECT label FROM enc_backups WHERE key_name = 'k'"), "nightly");

    there.run("SELECT enc_reconcile(adopt => true)");
    assert_eq!(first_warnings(&other), Vec::<String>::new());
    assert_eq!(problems(&mut there), ["restored", ""]);
    let entries = "SELECT string_agg(action, ' ' ORDER BY c.restored_at NULLS LAST, sequence)
                     FROM encryption.key_event JOIN encryption.event_chain c USING (chain)";
    assert_eq!(there.text(entries), "create create record-backup adopt reconcile");
    // A later dump of the same database adds what has been done since.
    run(
        &original,
        "pg_dump",
        &[
            "--data-only",
            "--table=encryption.event_chain",
            "--table=encryption.key_event",
            "--file",
            dump,
        ],
    );
    run(&other, "psql", &["--quiet", "--set=ON_ERROR_STOP=1", "--file", dump]);
    assert_eq!(there.text(entries), "create create record-backup rotate adopt reconcile");
    assert_eq!(problems(&mut there), ["restored", ""]);
    // And one of this database itself changes nothing.
    let own = other.directory().join("own");
    let own = own.to_str().unwrap();
    run(&other, "pg_dump", &["--data-only", "--table=encryption.*", "--file", own]);
    run(&other, "psql", &["--quiet", "--set=ON_ERROR_STOP=1", "--file", own]);
    assert_eq!(there.text(entries), "create create record-backup rotate adopt reconcile");
    assert_eq!(problems(&mut there), ["restored", ""]);
}

#[test]
fn keys_move_to_another_database_as_a_document() {
    let Some(cluster) = cluster("keys_move_to_another_database_as_a_document") else { return };
    let mut session = connect(&cluster);
    session.run("SELECT enc_rotate_key('k'); INSERT INTO t (v) VALUES ('second')");
    let document = session.text("SELECT enc_export_keys()");
    for version in [1, 2] {
        let key = base64_of(&data_key(&cluster, "k", version));
        assert!(!document.contains(&key), "the document has a key");
    }
    let stored = all(&mut session, "SELECT v::bytea FROM t ORDER BY id");

    cluster.createdb("other", "UTF8");
    create_extension(&cluster, "other");
    let mut other = cluster.connect(SUPERUSER, "other");
    let imported =
        other.query_one("SELECT enc_import_keys($1::text::jsonb)", &[&document]).unwrap();
    assert_eq!(imported.get::<_, i32>(0), 3);
    other.run("CREATE TABLE t (v encrypted_text('k'))");
    for value in stored {
        other.run(&format!("INSERT INTO t VALUES ('{value}'::bytea::encrypted_text)"));
    }
    assert_eq!(all(&mut other, "SELECT v FROM t ORDER BY 1"), ["first", "second"]);
    assert_eq!(problems(&mut other), [""]);
}

/// The first column of every row.
#[track_caller]
fn all(session: &mut Client, sql: &str) -> Vec<String> {
    session.texts(sql).into_iter().map(Option::unwrap).collect()
}

/// A session, and what it is warned of.
fn with_warnings(cluster: &Cluster) -> (Client, Receiver<String>) {
    let (sender, receiver) = channel();
    let mut config = cluster.config(SUPERUSER, DATABASE);
    config.notice_callback(move |notice| {
        if notice.severity() == "WARNING" {
            // The receiver may be gone before the session is.
            let _ = sender.send(notice.message().to_owned());
        }
    });
    (config.connect(NoTls).unwrap(), receiver)
}

/// What there was to be warned of so far.
fn warned(warnings: &Receiver<String>) -> Vec<String> {
    warnings.try_iter().collect()
}

/// What a new session is warned of at its first use of a key.
#[track_caller]
fn first_warnings(cluster: &Cluster) -> Vec<String> {
    let (mut session, warnings) = with_warnings(cluster);
    assert_eq!(session.text("SELECT v FROM t WHERE id = 1"), "first");
    warned(&warnings)
}

/// Gives a server the keys that another has. The file keeps its owner.
fn copy_keyring(from: &Cluster, to: &Cluster) {
    fs::write(keyring_file(to), fs::read(keyring_file(from)).unwrap()).unwrap();
}

/// Runs one of PostgreSQL's programs, which must succeed.
#[track_caller]
fn run(cluster: &Cluster, program: &str, arguments: &[&str]) {
    let output = cluster.command(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn base64_of(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}
