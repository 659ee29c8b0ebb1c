//! Values that can't be opened: they are found, named by row and reason, and got rid of; and nothing
//! else is disturbed by them.

use std::fs;
use std::time::Duration;

use cluster_tests::{DATABASE, Session, connect, keyring_file, start};
use harness::cluster::backend_pid;
use postgres::Client;

const ROWS: &str = "SELECT concat_ws(' ', table_name, column_name, ctid, sqlstate) FROM ";

/// What a function finds, a line for each.
fn found(session: &mut Client, call: &str) -> Vec<String> {
    session.texts(&format!("{ROWS}{call}")).into_iter().flatten().collect()
}

fn ctid(session: &mut Client, table: &str, id: i32) -> String {
    session.text(&format!("SELECT ctid FROM {table} WHERE id = {id}"))
}

const DAMAGED: &str = "set_byte(v::bytea, 40, get_byte(v::bytea, 40) # 1)::encrypted_text";

#[test]
fn damaged_values_are_found_wherever_they_are() {
    let Some(cluster) = start("damaged_values_are_found_wherever_they_are") else { return };
    let mut session = connect(&cluster);
    session.run(
        "SELECT enc_create_key('k'), enc_create_key('gone'), enc_create_key('off');
         CREATE DOMAIN address AS encrypted_text('k');
         CREATE TYPE pair AS (a encrypted_text('k'), b text);
         CREATE TABLE t (id integer, v encrypted_text('k'), list encrypted_text('k')[], p pair, d address,
                         b encrypted_bytea('k'), plain text) PARTITION BY RANGE (id);
         CREATE TABLE low PARTITION OF t FOR VALUES FROM (0) TO (50);
         CREATE TABLE high PARTITION OF t FOR VALUES FROM (50) TO (1000);
         INSERT INTO t SELECT n, 'v' || n, ARRAY['a' || n, NULL, 'c'], ROW('d' || n, 'e')::pair, 'f' || n,
                              convert_to('g' || n, 'UTF8') FROM generate_series(1, 99) n;
         CREATE TABLE other (id integer, v encrypted_text('gone'), w encrypted_text('off'));
         INSERT INTO other VALUES (1, 'x', 'y'); SELECT enc_rotate_key('gone'), enc_rotate_key('off');
         INSERT INTO other VALUES (2, 'x', 'y')",
    );
    assert_eq!(found(&mut session, "enc_verify('t')"), Vec::<String>::new());
    let flip = |value: &str| {
        format!("set_byte({value}::bytea, 40, get_byte({value}::bytea, 40) # 1)::encrypted_text")
    };
    session.run(&format!(
        "UPDATE t SET v = {DAMAGED} WHERE id IN (7, 77);
         UPDATE t SET list = ARRAY[{}, NULL, {}] WHERE id = 8;
         UPDATE t SET p.a = {} WHERE id = 78;
         UPDATE t SET d = {}::address WHERE id = 9;
         UPDATE t SET b = v::bytea::encrypted_text::encrypted_bytea WHERE id = 10;
         SELECT enc_destroy_key_version('gone', 1, accept_data_loss => true),
                enc_disable_key_version('off', 1)",
        flip("list[1]"),
        flip("list[3]"),
        flip("(p).a"),
        flip("d::encrypted_text"),
    ));
    let at = |session: &mut Client, table: &str, id| ctid(session, table, id);
    let expected = [
        format!("low v {} KE045", at(&mut session, "low", 7)),
        format!("low list {} KE045", at(&mut session, "low", 8)),
        format!("low list {} KE045", at(&mut session, "low", 8)),
        format!("low d {} KE045", at(&mut session, "low", 9)),
        format!("low b {} KE043", at(&mut session, "low", 10)),
        format!("high v {} KE045", at(&mut session, "high", 77)),
        format!("high p {} KE045", at(&mut session, "high", 78)),
    ];
    assert_eq!(found(&mut session, "enc_verify('t')"), expected);
    assert_eq!(found(&mut session, "enc_verify('high', 'v')"), expected[5..6]);
    let (first, ctid) = ("other v (0,1) KE009", "other w (0,1) KE008");
    assert_eq!(found(&mut session, "enc_verify('other')"), [first, ctid]);
    // A header that nobody can read would not have got past the column's type modifier.
    session.run(
        "CREATE TABLE odd (id integer, v encrypted_text('k')); INSERT INTO odd VALUES (1, 'x'), (2, 'y'), (3, 'z');
         UPDATE pg_attribute SET atttypmod = -1 WHERE attrelid = 'odd'::regclass AND attname = 'v'",
    );
    session.run(
        "UPDATE odd SET v = CASE id WHEN 1 THEN '\\x01' WHEN 2 THEN set_byte(v::bytea, 0, 9) END::encrypted_text
          WHERE id < 3",
    );
    let odd = [
        format!("odd v {} KE040", at(&mut session, "odd", 1)),
        format!("odd v {} KE041", at(&mut session, "odd", 2)),
    ];
    assert_eq!(found(&mut session, "enc_verify('odd')"), odd);
    assert_eq!(session.text("SELECT string_agg(enc_try_decrypt(v), ' ') FROM odd"), "z");
    let reasons = session.texts(
        "SELECT reason FROM enc_verify('t') UNION ALL SELECT reason FROM enc_verify('other')",
    );
    for reason in reasons.iter().flatten() {
        assert!(reason.len() > 20 && !reason.contains("v7"), "{reason}");
    }
    session.run(
        "CREATE TABLE clean (id integer, v encrypted_text('k')); INSERT INTO clean VALUES (1, 'x')",
    );
    assert_eq!(found(&mut session, "enc_verify('clean')"), Vec::<String>::new());
    session.fails("SELECT enc_verify('t', 'plain')", "KE130");
    session.fails("SELECT enc_verify('pg_class')", "KE130");

    // Null for what nothing will open; what may be better another time is an error.
    let tried = "SELECT count(*) || ' ' || count(enc_try_decrypt(v)) || ' ' || count(enc_try_decrypt(b)) FROM t";
    assert_eq!(session.text(tried), "99 97 98");
    assert_eq!(session.text("SELECT string_agg(enc_try_decrypt(v), ' ') FROM other"), "x");
    session.fails("SELECT enc_try_decrypt(w) FROM other", "KE008");
    session.run("SELECT enc_enable_key_version('off', 1)");
    assert_eq!(found(&mut session, "enc_verify('other', 'w')"), Vec::<String>::new());

    // Neither is for who may not decrypt, and no provider that is gone makes a value a bad one.
    session.run(
        "CREATE ROLE reader; GRANT SELECT ON t, clean TO reader; SELECT enc_grant('k', 'reader', 'compare');
         SET ROLE reader",
    );
    session.fails("SELECT enc_try_decrypt(v) FROM t", "KE020");
    session.fails("SELECT * FROM enc_verify('clean')", "KE020");
    session.fails("SELECT * FROM enc_verify('other')", "42501");
    session.run("RESET ROLE");
    let keyring = keyring_file(&cluster);
    let kept = fs::read(&keyring).unwrap();
    fs::remove_file(&keyring).unwrap();
    let mut fresh = connect(&cluster);
    fresh.fails("SELECT enc_try_decrypt(v) FROM t", "KE074");
    fresh.fails("SELECT * FROM enc_verify('t')", "KE074");
    fs::write(&keyring, kept).unwrap();
}

#[test]
fn rows_with_damaged_values_are_updated_deleted_and_vacuumed() {
    let test = "rows_with_damaged_values_are_updated_deleted_and_vacuumed";
    let Some(builder) = cluster_tests::builder(test) else { return };
    let cluster = builder.setting("autovacuum_naptime", "1s").start();
    cluster_tests::create_extension(&cluster, DATABASE);
    let mut session = connect(&cluster);
    session.run(&format!(
        "SELECT enc_create_key('k');
         CREATE TABLE t (id integer, v encrypted_text('k'), n integer DEFAULT 0) WITH (
             autovacuum_analyze_threshold = 0, autovacuum_analyze_scale_factor = 0, autovacuum_vacuum_threshold = 0,
             autovacuum_vacuum_scale_factor = 0);
         INSERT INTO t SELECT n, 'v' || n FROM generate_series(1, 200) n;
         UPDATE t SET v = {DAMAGED} WHERE id % 50 = 0"
    ));
    session.fails("SELECT v FROM t", "KE045");
    assert_eq!(found(&mut session, "enc_verify('t')").len(), 4);
    // As each is found.
    session.run("UPDATE t SET n = 1 FROM enc_verify('t') AS bad WHERE t.ctid = bad.ctid");
    assert_eq!(found(&mut session, "enc_verify('t')").len(), 4);
    for command in ["VACUUM (FULL, ANALYZE) t", "VACUUM (FREEZE, ANALYZE) t", "ANALYZE t"] {
        session.run(command);
    }
    assert_eq!(session.text("SELECT count(*) FROM t WHERE n = 1"), "4");
    session.run("UPDATE t SET v = 'again' FROM enc_verify('t') AS bad WHERE t.ctid = bad.ctid AND id <= 100");
    session.run("DELETE FROM t USING enc_verify('t') AS bad WHERE t.ctid = bad.ctid");
    assert_eq!(found(&mut session, "enc_verify('t')"), Vec::<String>::new());
    assert_eq!(session.text("SELECT count(*) || ' ' || count(v::text) FROM t"), "198 198");

    // Autovacuum and autoanalyze, which have no error to show but in the log.
    session.run(&format!("UPDATE t SET v = {DAMAGED} WHERE id % 7 = 0"));
    let done = "SELECT count(*) FROM pg_stat_all_tables WHERE relname = 't'
                 AND last_autovacuum > now() - interval '20 s' AND last_autoanalyze > now() - interval '20 s'
                 AND n_mod_since_analyze = 0";
    let mut waited = 0;
    while session.text(done) != "1" {
        waited += 1;
        assert!(waited < 300, "autovacuum doesn't come:\n{}", cluster.log());
        std::thread::sleep(Duration::from_millis(100));
    }
    let log = cluster.log();
    let of_autovacuum =
        log.lines().filter(|line| line.contains("automatic") || line.contains("PANIC"));
    assert_eq!(of_autovacuum.count(), 0, "{log}");
    assert!(
        log.lines().filter(|line| line.contains("ERROR:")).all(|line| line.contains("postgres@")),
        "{log}"
    );
}

/// A value whose TOAST is damaged stops every scan; the verification goes on behind it.
#[test]
fn damage_of_the_table_itself_is_reported_too() {
    let Some(cluster) = start("damage_of_the_table_itself_is_reported_too") else { return };
    let mut session = connect(&cluster);
    session.run(&format!(
        "SELECT enc_create_key('k'); CREATE TABLE t (id integer, v encrypted_text('k'));
         INSERT INTO t SELECT n, repeat('long', 1000) FROM generate_series(1, 20) n;
         INSERT INTO t VALUES (21, 'short'); UPDATE t SET v = {DAMAGED} WHERE id = 21;
         SET allow_system_table_mods = on"
    ));
    let toast = session.text("SELECT reltoastrelid::regclass FROM pg_class WHERE relname = 't'");
    session.run(&format!(
        "DO $$BEGIN EXECUTE (SELECT 'SELECT 1'); END$$;
         CREATE TEMPORARY TABLE chunk AS SELECT min(chunk_id) AS id FROM {toast}"
    ));
    let deleted = session
        .simple_query(&format!("DELETE FROM {toast} WHERE chunk_id = (SELECT id FROM chunk)"));
    if deleted.is_err() {
        return harness::skip(
            "damage_of_the_table_itself_is_reported_too",
            "PostgreSQL keeps its TOAST tables from DELETE",
        );
    }
    let rows = found(&mut session, "enc_verify('t')");
    let [toasted, damaged] = &rows[..] else { panic!("{rows:?}") };
    assert_eq!(*toasted, "t v (0,1) XX001".to_owned());
    assert_eq!(*damaged, format!("t v {} KE045", ctid(&mut session, "t", 21)));
}

#[test]
fn a_verification_can_be_cancelled() {
    let Some(cluster) = start("a_verification_can_be_cancelled") else { return };
    let mut session = connect(&cluster);
    session.run(
        "SELECT enc_create_key('k'); CREATE TABLE t (v encrypted_text('k'));
         INSERT INTO t SELECT 'x' FROM generate_series(1, 200000)",
    );
    let pid = backend_pid(&mut session);
    let mut other = connect(&cluster);
    let canceller = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(50));
        other.run(&format!("SELECT pg_cancel_backend({pid})"));
    });
    session.fails("SELECT enc_verify('t') FROM generate_series(1, 100)", "57014");
    canceller.join().unwrap();
}
