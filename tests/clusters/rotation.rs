//! Rotation of whole columns: while others write, when it is stopped in every way, and what is
//! refused; the proof that a version is unused, and its end.

#![expect(clippy::unwrap_used, reason = "a test fails by a panic")]

use std::fs;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use cluster_tests::key_server::{ONE, READ_ONLY, Setup, THREE};
use cluster_tests::replication::replace_by_base_backup;
use cluster_tests::{
    DATABASE, MAJOR, Session, builder, connect, create_extension, start, texts_of,
};
use harness::cluster::Cluster;
use harness::openbao::OpenBao;
use postgres::Client;
use postgres::error::DbError;

/// A table with an encrypted column beside the same in plain text, and a key that has been rotated
/// since.
fn prepare(session: &mut Client, rows: u32) {
    session.run(&format!(
        "SELECT enc_create_key('k');
         CREATE TABLE t (id integer PRIMARY KEY, v encrypted_text('k'), plain text, n integer DEFAULT 0);
         INSERT INTO t SELECT i, 'value ' || i, 'value ' || i FROM generate_series(1, {rows}) i;
         CREATE INDEX ON t USING hash (v);
         ANALYZE t;
         SELECT enc_rotate_key('k')"
    ));
}

/// Every row is there, can be read, equals its plain is found by the index, and is under the
/// active version.
#[track_caller]
fn assert_rotated(session: &mut Client, rows: i64) {
    let all: i64 = session.value(
        "SELECT count(*) FROM t WHERE v = plain
            AND enc_key_version(v) = (SELECT active_version FROM enc_keys WHERE name = 'k')",
    );
    assert_eq!(all, rows);
    assert_eq!(session.value::<i64>("SELECT count(*) FROM t"), rows);
    session.run("SET enable_seqscan = off");
    let found = "SELECT count(*) FROM (SELECT plain FROM t ORDER BY random() LIMIT 1000) sample
                  WHERE EXISTS (SELECT FROM t WHERE v = sample.plain)";
    assert_eq!(session.value::<i64>(found), rows.min(1000));
    session.run("RESET enable_seqscan");
}

fn outdated(session: &mut Client) -> i64 {
    session.value("SELECT count(*) FROM t WHERE encryption.is_outdated(v)")
}

/// Executes statements one by one: a procedure that commits can't be in a transaction with others.
#[track_caller]
fn each(session: &mut Client, statements: &[&str]) {
    for statement in statements {
        session.run(statement);
    }
}

/// A statement that another session executes meanwhile, and its error.
fn meanwhile(cluster: &Cluster, sql: &str) -> JoinHandle<Option<DbError>> {
    let (mut session, sql) = (connect(cluster), sql.to_owned());
    thread::spawn(move || {
        let error = session.batch_execute(&sql).err()?;
        Some(error.as_db_error().expect("the server raised it").clone())
    })
}

#[track_caller]
fn succeeds(call: JoinHandle<Option<DbError>>) {
    if let Some(error) = call.join().unwrap() {
        unreachable!("{error:?}");
    }
}

#[track_caller]
fn error_of(call: JoinHandle<Option<DbError>>) -> DbError {
    call.join().unwrap().expect("the statement fails")
}

#[track_caller]
fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let started = Instant::now();
    while !is_so() {
        assert!(started.elapsed() < Duration::from_secs(60), "{what}: not within a minute");
        thread::sleep(Duration::from_millis(5));
    }
}

fn state(session: &mut Client) -> String {
    session.text("SELECT state FROM enc_stat_progress_rotate ORDER BY job DESC LIMIT 1")
}

/// Rows done of the newest job.
fn done(session: &mut Client) -> i64 {
    session
        .value("SELECT rows_done::bigint FROM enc_stat_progress_rotate ORDER BY job DESC LIMIT 1")
}

/// Waits until a rotation has begun to change rows.
#[track_caller]
fn wait_for_progress(session: &mut Client) {
    wait_until("rows are rotated", || {
        session
            .query(
                "SELECT FROM enc_stat_progress_rotate WHERE state = 'running' AND rows_done > 0",
                &[],
            )
            .is_ok_and(|rows| !rows.is_empty())
    });
}

/// So slow that a test can do something in between.
const SLOWLY: &str = "CALL enc_rotate_column('t', 'v', batch_size => 100, max_rate => 2000)";

#[test]
fn every_kind_of_column_is_rotated() {
    let Some(cluster) = start("every_kind_of_column_is_rotated") else { return };
    let mut session = connect(&cluster);
    session.run(
        "SELECT enc_create_key('k');
         CREATE DOMAIN d AS encrypted_text('k') CHECK (length(VALUE) > 0);
         CREATE TYPE c AS (a integer, b encrypted_text('k'), c encrypted_bytea('k')[]);
         CREATE TABLE n (id integer, t encrypted_text('k'), b encrypted_bytea('k'), a encrypted_text('k')[],
                         d d, c c, cs c[]) PARTITION BY HASH (id);
         CREATE TABLE n1 PARTITION OF n FOR VALUES WITH (MODULUS 2, REMAINDER 0);
         CREATE TABLE n2 PARTITION OF n FOR VALUES WITH (MODULUS 2, REMAINDER 1);
         CREATE TABLE parent (v encrypted_text('k'));
         CREATE TABLE child (w integer) INHERITS (parent);
         CREATE TABLE unpartitioned (id integer, v encrypted_text('k')) PARTITION BY RANGE (id);
         INSERT INTO child VALUES ('inherited', 1);
         INSERT INTO n SELECT i, 't' || i, decode(md5(i::text), 'hex'),
             ARRAY[['x' || i, NULL], ['', repeat('long', 2000)]], 'd' || i,
             ROW(i, 'b' || i, ARRAY['\\x01', '\\x02']::bytea[]::encrypted_bytea[])::c, ARRAY[ROW(1, 'z', NULL)::c, NULL]
             FROM generate_series(1, 100) i;
         INSERT INTO n (id) VALUES (0);
         CREATE TABLE before AS SELECT n::text AS row FROM n;
         SELECT enc_rotate_key('k')",
    );
    session.run("CALL enc_rotate_all('k')");
    let usage = session
        .texts("SELECT concat(version, ' ', count(*)) FROM enc_key_usage('k') GROUP BY version");
    assert_eq!(usage, [Some("2 13".to_owned())], "six of each partition, and of the child");
    let same = "SELECT count(*) FROM before JOIN (SELECT n::text AS row FROM n) now USING (row)";
    assert_eq!(session.value::<i64>(same), 101);
    assert_eq!(session.text("SELECT v FROM parent"), "inherited");
}

#[test]
fn constants_in_the_catalogs_are_rotated() {
    let Some(cluster) = start("constants_in_the_catalogs_are_rotated") else { return };
    let mut session = connect(&cluster);
    session.run(
        "SELECT enc_create_key('k');
         CREATE TABLE t (id integer);
         INSERT INTO t SELECT generate_series(1, 1000);
         ALTER TABLE t ADD COLUMN v encrypted_text('k') DEFAULT 'absent';
         CREATE VIEW of_seven AS SELECT * FROM t WHERE v = 'seven' OR v = ANY ('{a,b}'::encrypted_text[]);
         ALTER TABLE t ADD CONSTRAINT not_bad CHECK (v <> 'bad');
         CREATE POLICY p ON t USING (v <> 'hidden');
         CREATE FUNCTION is_x(w encrypted_text DEFAULT 'x') RETURNS boolean LANGUAGE sql
            BEGIN ATOMIC SELECT w = 'x'::encrypted_text; END;
         CREATE FUNCTION noted() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN new; END';
         CREATE TRIGGER noted BEFORE UPDATE ON t FOR EACH ROW WHEN (new.v = 'watched') EXECUTE FUNCTION noted();
         CREATE INDEX only_seven ON t (id) WHERE v = 'seven';
         CREATE DOMAIN d AS encrypted_text('k') DEFAULT 'x' CHECK (VALUE <> 'y');
         INSERT INTO t VALUES (7, 'seven');",
    );
    let of_database = "SELECT string_agg(DISTINCT concat(version, ' ', substring(object, '[(](pg_[a-z_.]+)[)]$')), ', ') FROM enc_key_usage('database')";
    let places = session.text(of_database);
    for place in [
        "pg_attrdef.adbin",
        "pg_rewrite.ev_action",
        "pg_constraint.conbin",
        "pg_policy.polqual",
        "pg_proc.proargdefaults",
        "pg_proc.prosqlbody",
        "pg_trigger.tgqual",
        "pg_index.indpred",
        "pg_type.typdefaultbin",
    ] {
        assert!(places.contains(&format!("1 {place}")), "{place}: {places}");
    }
    each(
        &mut session,
        &[
            "SELECT enc_rotate_key('database'), enc_rotate_key('k')",
            "CALL enc_rotate_all('database')",
            "CALL enc_rotate_all('k')",
        ],
    );
    let rotated = session.text(of_database);
    assert_eq!(rotated, places.replace("1 pg_", "2 pg_"));
    // Rows that are older than the column were rotated with the one value in pg_attribute.
    let usage = session
        .texts("SELECT concat(version, ' ', number_of_rows) FROM enc_key_usage('k') ORDER BY 1");
    assert_eq!(usage, [Some("2 1".to_owned()), Some("2 1001".to_owned())]);
    assert!(done(&mut session) < 2, "the rows were not written");

    // The old versions are not needed any more, by a new session that has nothing in its caches.
    session.run("SELECT enc_rotate_digest()");
    session.run("SELECT enc_disable_key_version('database', 1), enc_disable_key_version('k', 1)");
    let mut session = connect(&cluster);
    assert_eq!(session.text("SELECT v FROM of_seven"), "seven");
    assert_eq!(session.value::<i64>("SELECT count(*) FROM t WHERE v = 'absent'"), 1000);
    session.run("INSERT INTO t VALUES (2000); UPDATE t SET v = 'watched' WHERE id = 2000");
    let _ = session.fails("INSERT INTO t VALUES (2001, 'bad')", "23514");
    assert_eq!(session.text("SELECT is_x()"), "t");
    assert_eq!(
        session
            .text("SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE conname = 'not_bad'"),
        "CHECK ((v <> 'bad'::encrypted_text))"
    );
    session.run("CREATE TABLE of_d (v d); INSERT INTO of_d VALUES (DEFAULT)");
}

#[test]
fn sessions_share_a_job() {
    let Some(cluster) = start("sessions_share_a_job") else { return };
    let mut session = connect(&cluster);
    prepare(&mut session, 60_000);
    let call = "CALL enc_rotate_column('t', 'v', batch_size => 500, max_rate => 8000)";
    let calls: Vec<_> = (0..4).map(|_| meanwhile(&cluster, call)).collect();
    wait_until("all take part", || {
        session
            .query_one("SELECT coalesce(max(workers), 0) FROM enc_stat_progress_rotate", &[])
            .is_ok_and(|row| row.get::<_, i64>(0) == 4)
    });
    for call in calls {
        succeeds(call);
    }
    assert_rotated(&mut session, 60_000);
    // Each row once, by one job.
    let jobs = session.texts("SELECT concat(state, ' ', rows_done) FROM enc_stat_progress_rotate");
    assert_eq!(jobs, [Some("completed 60000".to_owned())]);
}

#[test]
fn batches_are_as_large_as_was_asked_for() {
    let Some(builder) = builder("batches_are_as_large_as_was_asked_for") else { return };
    let cluster = builder.start();
    create_extension(&cluster, DATABASE);
    let mut session = connect(&cluster);
    // Four rows a block, and so a thousand in each of the eight ranges.
    session.run(
        "SELECT enc_create_key('k');
         CREATE TABLE t (id integer, v encrypted_text('k'), filler text DEFAULT repeat('x', 1800));
         INSERT INTO t SELECT i, 'value ' || i FROM generate_series(1, 8000) i;
         ANALYZE t;
         SELECT enc_rotate_key('k')",
    );
    session.run("CALL enc_rotate_column('t', 'v', batch_size => 1000)");
    assert_eq!(outdated(&mut session), 0);
    let batches = "FROM (SELECT count(*) AS rows FROM t GROUP BY xmin::text) batches";
    let largest = session.value::<i64>(&format!("SELECT max(rows) {batches}"));
    assert!((900..=1100).contains(&largest), "{largest}");
    // The first ones are small.
    let number = session.value::<i64>(&format!("SELECT count(*) {batches}"));
    assert!((8..=12).contains(&number), "{number}");
}

#[test]
fn a_canceled_job_goes_on() {
    let Some(cluster) = start("a_canceled_job_goes_on") else { return };
    let mut session = connect(&cluster);
    prepare(&mut session, 20_000);
    // By its function.
    let call = meanwhile(&cluster, SLOWLY);
    wait_for_progress(&mut session);
    session.run("SELECT enc_rotation_cancel(job) FROM enc_stat_progress_rotate");
    succeeds(call);
    assert_eq!(state(&mut session), "canceled");
    let first = done(&mut session);
    assert!(first > 0 && outdated(&mut session) == 20_000 - first);
    // By PostgreSQL's.
    let call = meanwhile(&cluster, SLOWLY);
    wait_until("it goes on", || done(&mut session) > first);
    session.run(
        "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE query LIKE 'CALL enc_rotate%'",
    );
    assert_eq!(error_of(call).code().code(), "57014");
    let second = done(&mut session);
    assert!(second > first && outdated(&mut session) == 20_000 - second);
    session.run("CALL enc_rotate_column('t', 'v')");
    assert_rotated(&mut session, 20_000);
    let jobs = session
        .texts("SELECT concat(state, ' ', pass, ' ', rows_done) FROM enc_stat_progress_rotate");
    assert_eq!(jobs, [Some("completed 1 20000".to_owned())]);
}

#[test]
fn others_write_meanwhile() {
    let Some(cluster) = start("others_write_meanwhile") else { return };
    let mut session = connect(&cluster);
    prepare(&mut session, 50_000);
    // Changes the row without the value, the value, both; deletes and inserts; more than one row.
    let script = cluster.directory().join("writes.sql");
    fs::write(
        &script,
        "\\set id random(1, 50000)
         \\set other random(1, 50000)
         \\set new random(1, 1000000000)
         BEGIN;
         UPDATE t SET n = n + 1 WHERE id = :id;
         UPDATE t SET v = 'new ' || :new, plain = 'new ' || :new WHERE id = :id;
         END;
         UPDATE t SET n = n + 1 WHERE id = :other;
         WITH gone AS (DELETE FROM t WHERE id = :other RETURNING *)
             INSERT INTO t SELECT id + 100000, v, plain, n FROM gone;
         UPDATE t SET id = :other WHERE id = :other + 100000;
         SELECT count(*) FROM t WHERE id = :id AND v <> plain;\n",
    )
    .unwrap();
    let mut pgbench = cluster.command("pgbench");
    pgbench
        .args(["--no-vacuum", "--client=4", "--time=12", "--max-tries=1", "--file"])
        .arg(&script);
    let pgbench = thread::spawn(move || pgbench.output().unwrap());
    let began = Instant::now();
    let mut rotations = 0;
    while began.elapsed() < Duration::from_secs(10) {
        session.run("CALL enc_rotate_column('t', 'v', batch_size => 1000)");
        assert_eq!(outdated(&mut session), 0);
        session.run("SELECT enc_rotate_key('k')");
        rotations += 1;
    }
    let output = pgbench.join().unwrap();
    let said = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(output.status.success() && !said.contains("ERROR"), "{said}");
    assert!(said.contains("number of failed transactions: 0 (0.000%)"), "{said}");
    session.run("CALL enc_rotate_column('t', 'v')");
    assert_rotated(&mut session, 50_000);
    println!("{rotations} rotations; {said}");
}

/// How long the server is killed again and again by default; ROTATION_KILLS says how often instead.
const KILLING: Duration = Duration::from_secs(40);

#[test]
fn the_server_is_killed() {
    let Some(mut cluster) = start("the_server_is_killed") else { return };
    const ROWS: i64 = 30_000;
    let kills_wanted: Option<u32> =
        std::env::var("ROTATION_KILLS").ok().map(|kills| kills.parse().unwrap());
    prepare(&mut connect(&cluster), ROWS as u32);
    let began = Instant::now();
    let (mut kills, mut completed, mut in_the_middle) = (0, 0, 0);
    let mut random = 0x9e37_79b9_u64;
    while kills_wanted.map_or(began.elapsed() < KILLING, |wanted| kills < wanted) {
        let mut session = connect(&cluster);
        if outdated(&mut session) == 0 {
            // So that each rotation has a job of its own, whose count can be told.
            session.run("CALL enc_rotate_column('t', 'v')");
            assert_rotated(&mut session, ROWS);
            session.run("SELECT enc_rotate_key('k')");
            completed += 1;
        }
        drop(session);
        let calls: Vec<_> = (0..2)
            .map(|_| {
                let mut session = connect(&cluster);
                thread::spawn(move || {
                    session.batch_execute("CALL enc_rotate_column('t', 'v', batch_size => 500)")
                })
            })
            .collect();
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        thread::sleep(Duration::from_millis(random >> 33 & 0x1ff));
        cluster.crash();
        for call in calls {
            let _ = call.join().unwrap();
        }
        kills += 1;
        cluster.start();
        let mut session = connect(&cluster);
        let left = outdated(&mut session);
        in_the_middle += u32::from(left > 0 && left < ROWS);
        // What was committed is counted, and nothing else.
        let counted: i64 = session.value(
            "SELECT coalesce(sum(rows_done), 0)::bigint FROM enc_stat_progress_rotate
              WHERE to_version = (SELECT active_version FROM enc_keys WHERE name = 'k')",
        );
        assert_eq!(counted, ROWS - left, "kill {kills}");
        let readable: i64 = session.value("SELECT count(*) FROM t WHERE v = plain");
        assert_eq!(readable, ROWS, "kill {kills}");
    }
    let mut session = connect(&cluster);
    session.run("CALL enc_rotate_column('t', 'v')");
    assert_rotated(&mut session, ROWS);
    println!(
        "{kills} kills, {in_the_middle} of them in the middle; {completed} rotations completed"
    );
    assert!(in_the_middle > 0);
}

#[test]
fn a_locked_row_is_come_back_to() {
    let Some(cluster) = start("a_locked_row_is_come_back_to") else { return };
    let mut session = connect(&cluster);
    prepare(&mut session, 5000);
    let mut other = connect(&cluster);
    other.run("BEGIN; UPDATE t SET n = 1 WHERE id IN (10, 3000)");
    let call = meanwhile(&cluster, "CALL enc_rotate_column('t', 'v', batch_size => 500)");
    wait_until("all but the locked rows are rotated", || outdated(&mut session) == 2);
    assert!(!call.is_finished());
    other.run("COMMIT");
    succeeds(call);
    assert_rotated(&mut session, 5000);

    // Nor does it keep others waiting for the table.
    session.run("SELECT enc_rotate_key('k')");
    other.run("BEGIN; LOCK TABLE t IN ACCESS EXCLUSIVE MODE");
    let call = meanwhile(&cluster, "CALL enc_rotate_column('t', 'v')");
    thread::sleep(Duration::from_millis(500));
    other.run("COMMIT");
    succeeds(call);
    assert_rotated(&mut session, 5000);
}

#[test]
fn triggers_rules_and_foreign_keys() {
    let Some(cluster) = start("triggers_rules_and_foreign_keys") else { return };
    let mut session = connect(&cluster);
    prepare(&mut session, 100);
    session.run(
        "CREATE TABLE seen (id integer);
         CREATE FUNCTION see() RETURNS trigger LANGUAGE plpgsql AS
            'BEGIN INSERT INTO public.seen VALUES (new.id); RETURN new; END';
         CREATE TRIGGER see BEFORE UPDATE ON t FOR EACH ROW EXECUTE FUNCTION see();
         CREATE TABLE detail (t integer REFERENCES t ON UPDATE CASCADE ON DELETE CASCADE);
         INSERT INTO detail SELECT id FROM t",
    );
    session.run("CALL enc_rotate_column('t', 'v')");
    assert_rotated(&mut session, 100);
    assert_eq!(session.value::<i64>("SELECT count(*) FROM seen"), 0);
    assert_eq!(session.value::<i64>("SELECT count(*) FROM detail"), 100);
    session.run("SELECT enc_rotate_key('k')");
    session.run("CALL enc_rotate_column('t', 'v', fire_triggers => true)");
    assert_eq!(session.value::<i64>("SELECT count(*) FROM seen"), 100);
    assert_rotated(&mut session, 100);

    // Who may not turn them off is told.
    session.run(
        "SELECT enc_rotate_key('k');
         CREATE ROLE keeper LOGIN;
         ALTER TABLE t OWNER TO keeper;
         GRANT INSERT ON seen TO keeper;
         SELECT enc_grant('k', 'keeper', 'encrypt, decrypt')",
    );
    let mut keeper = cluster.connect("keeper", "postgres");
    let _ = keeper.fails("CALL enc_rotate_column('t', 'v')", "KE104");
    keeper.run("CALL enc_rotate_column('t', 'v', fire_triggers => true)");
    assert_rotated(&mut session, 100);

    // A trigger that keeps rows from being changed can't keep the job from ending.
    session.run(
        "SELECT enc_rotate_key('k');
         CREATE OR REPLACE FUNCTION see() RETURNS trigger LANGUAGE plpgsql AS
            'BEGIN RETURN CASE WHEN new.id > 1 THEN new END; END'",
    );
    session.run("CALL enc_rotate_column('t', 'v', fire_triggers => true)");
    assert_eq!((state(&mut session).as_str(), outdated(&mut session)), ("incomplete", 1));
}

#[test]
fn what_cannot_be_rotated_is_refused() {
    let Some(cluster) = start("what_cannot_be_rotated_is_refused") else { return };
    let mut session = connect(&cluster);
    prepare(&mut session, 10);
    session.run(
        "CREATE VIEW w AS SELECT * FROM t;
         CREATE MATERIALIZED VIEW m AS SELECT * FROM t;
         CREATE EXTENSION file_fdw;
         CREATE SERVER files FOREIGN DATA WRAPPER file_fdw;
         CREATE FOREIGN TABLE f (v encrypted_text('k')) SERVER files OPTIONS (filename '/dev/null');
         CREATE TABLE g (v encrypted_text('k'), w encrypted_text('k') GENERATED ALWAYS AS (v) STORED);
         CREATE ROLE stranger LOGIN",
    );
    let mut other = connect(&cluster);
    other.run("CREATE TEMPORARY TABLE s (v encrypted_text('k')); INSERT INTO s VALUES ('x')");
    let temporary = session
        .text("SELECT table_name FROM encryption.encrypted_column WHERE is_temporary_elsewhere");
    for (table, column, sqlstate) in [
        ("t", "plain", "KE102"),
        ("t", "missing", "42703"),
        ("w", "v", "KE102"),
        ("m", "v", "KE102"),
        ("f", "v", "KE102"),
        ("g", "w", "KE102"),
        (temporary.as_str(), "v", "KE102"),
        ("t_pkey", "id", "KE102"),
        ("nowhere", "v", "42P01"),
    ] {
        let _ = session.fails(&format!("CALL enc_rotate_column('{table}', '{column}')"), sqlstate);
    }
    for arguments in ["batch_size => 0", "lock_timeout => '0'", "sleep => '-1 s'", "max_rate => 0"]
    {
        let _ = session.fails(&format!("CALL enc_rotate_column('t', 'v', {arguments})"), "22023");
    }
    let _ = session.fails("CALL enc_rotate_column('t', 'v', batch_size => NULL)", "22004");
    // A procedure that commits is no part of a transaction.
    let _ = session.fails("BEGIN; CALL enc_rotate_column('t', 'v')", "2D000");
    session.run("ROLLBACK");

    let mut stranger = cluster.connect("stranger", "postgres");
    let _ = stranger.fails("CALL enc_rotate_column('t', 'v')", "42501");
    let _ = stranger.fails(
        "SELECT * FROM encryption.begin_job('rotate', 't'::regclass, 'v', 'k', '{}')",
        "42501",
    );
    let _ = stranger.fails("SELECT * FROM enc_verify_version_unused('k', 1)", "KE021");
    let _ = stranger.fails("SELECT enc_destroy_key_version('k', 1, true)", "KE021");
    let _ = stranger.fails("SELECT encryption.rotate_catalogs('k')", "KE021");
    let _ = stranger.fails("SELECT encryption.rotate_catalog_rows(1)", "42501");
    // An owner of the table without rights on the key.
    session.run("ALTER TABLE t OWNER TO stranger");
    let _ = stranger.fails("CALL enc_rotate_column('t', 'v')", "KE020");
    assert_eq!(state(&mut session), "failed");
    let job: i64 = session.value("SELECT max(job) FROM enc_stat_progress_rotate");
    session.run("CREATE ROLE another LOGIN");
    let mut another = cluster.connect("another", "postgres");
    let _ = another.fails(&format!("SELECT enc_rotation_cancel({job})"), "42501");
    let _ = session.fails("SELECT enc_rotation_cancel(1000)", "KE100");

    // Everything else under the key is, and it is said what is not.
    session.run("CALL enc_rotate_all('k')");
    assert_rotated(&mut session, 10);
}

#[test]
fn a_job_outlives_what_happens_to_it() {
    let Some(cluster) = start("a_job_outlives_what_happens_to_it") else { return };
    let mut session = connect(&cluster);
    prepare(&mut session, 10_000);

    // The old version is disabled halfway.
    let call = meanwhile(&cluster, SLOWLY);
    wait_for_progress(&mut session);
    session.run("SELECT enc_disable_key_version('k', 1)");
    assert_eq!(error_of(call).code().code(), "KE008");
    assert_eq!(state(&mut session), "failed");
    let last = session.text("SELECT last_error FROM enc_stat_progress_rotate");
    assert_eq!(last, "version 1 of key \"k\" is disabled");
    session.run("SELECT enc_enable_key_version('k', 1)");

    // The key is rotated halfway, the table rewritten, the column renamed.
    let call = meanwhile(&cluster, SLOWLY);
    wait_for_progress(&mut session);
    session.run("SELECT enc_rotate_key('k')");
    session.run("ALTER TABLE t RENAME COLUMN v TO x; ALTER TABLE t RENAME TO u");
    session.run("VACUUM FULL u");
    succeeds(call);
    session.run("ALTER TABLE u RENAME TO t; ALTER TABLE t RENAME COLUMN x TO v");
    assert_rotated(&mut session, 10_000);
    let jobs = session.texts("SELECT concat(state, ' ', to_version) FROM enc_stat_progress_rotate");
    assert_eq!(jobs, [Some("completed 3".to_owned())]);

    // The column is dropped halfway, and a table.
    session.run("SELECT enc_rotate_key('k'); ALTER TABLE t ADD w encrypted_text('k'); UPDATE t SET w = 'x'; SELECT enc_rotate_key('k')");
    for (column, end) in [("w", "ALTER TABLE t DROP COLUMN w"), ("v", "DROP TABLE t")] {
        let call = meanwhile(&cluster, &SLOWLY.replace("'v'", &format!("'{column}'")));
        wait_for_progress(&mut session);
        session.run(end);
        let error = error_of(call);
        assert!(["42703", "42P01"].contains(&error.code().code()), "{error:?}");
        assert_eq!(state(&mut session), "failed");
    }
}

#[test]
fn a_damaged_value_is_reported_with_its_place() {
    let Some(cluster) = start("a_damaged_value_is_reported_with_its_place") else { return };
    let mut session = connect(&cluster);
    prepare(&mut session, 5000);
    // A tag that is wrong, and a header that can't be read. Without its modifier the column takes
    // what is written to it as it is.
    session.run(
        "DROP INDEX t_v_idx;
         UPDATE pg_attribute SET atttypmod = -1 WHERE attrelid = 't'::regclass AND attname = 'v';
         UPDATE t SET v = set_byte(v::bytea, 40, get_byte(v::bytea, 40) # 1)::encrypted_text WHERE id = 2500;
         UPDATE t SET v = '\\x01'::bytea::encrypted_text WHERE id = 4000;
         UPDATE pg_attribute SET atttypmod = (SELECT key_id FROM enc_keys WHERE name = 'k')
          WHERE attrelid = 't'::regclass AND attname = 'v'",
    );
    let places = session.texts("SELECT ctid FROM t WHERE id IN (2500, 4000) ORDER BY id");
    let [Some(tampered), Some(truncated)] = places.as_slice() else { unreachable!() };
    let error = match session.batch_execute("CALL enc_rotate_column('t', 'v', batch_size => 1000)")
    {
        Ok(()) => unreachable!("the values can't be rotated"),
        Err(error) => error.as_db_error().cloned().unwrap(),
    };
    assert!(["KE040", "KE045"].contains(&error.code().code()), "{error:?}");
    assert!(
        [tampered, truncated].iter().any(|place| error.message().contains(*place)),
        "{error:?}"
    );
    assert!(!texts_of(&error).contains("value 2500"), "{error:?}");
    assert_eq!(state(&mut session), "failed");

    session.run("CALL enc_rotate_column('t', 'v', batch_size => 1000, skip_damaged => true)");
    assert_eq!(state(&mut session), "incomplete");
    let row =
        session.text("SELECT concat(rows_done, ' ', rows_damaged) FROM enc_stat_progress_rotate");
    assert_eq!(row, "4998 2");
    let left = session
        .texts("SELECT id FROM t WHERE id NOT IN (2500, 4000) AND encryption.is_outdated(v)");
    assert!(left.is_empty(), "{left:?}");
    // The same call, when they have been restored.
    session
        .run("UPDATE t SET v = plain WHERE id IN (2500, 4000); CREATE INDEX ON t USING hash (v)");
    session.run("CALL enc_rotate_column('t', 'v')");
    assert_rotated(&mut session, 5000);
    assert_eq!(state(&mut session), "completed");
}

#[test]
fn a_provider_is_lost_halfway() {
    let test = "a_provider_is_lost_halfway";
    let Some(setup) = Setup::with_key(test, OpenBao::start_with_tls, READ_ONLY) else { return };
    setup.server.kv_put("keys/k", THREE);
    let mut session = setup.connect();
    session.run(
        "INSERT INTO t (v) SELECT 'value ' || i FROM generate_series(1, 7999) i;
         SELECT enc_rotate_key('k')",
    );
    // The key's time to live ends in the call.
    let mut rotating = setup.connect();
    rotating.run("SET encryption_ext.cache_ttl = 1; SET encryption_ext.cache_stale_grace = 0");
    let rotating = thread::spawn(move || rotating.batch_execute(SLOWLY));
    wait_for_progress(&mut session);
    setup.server.seal();
    wait_until("the job pauses", || state(&mut session) == "paused");
    let error = session.text("SELECT last_error FROM enc_stat_progress_rotate");
    assert!(error.starts_with("provider \"vault\""), "{error}");
    let paused_at = done(&mut session);
    assert!(paused_at < 8000, "{paused_at}");
    setup.server.unseal();
    if let Err(error) = rotating.join().unwrap() {
        unreachable!("{error:?}");
    }
    assert_eq!((state(&mut session).as_str(), done(&mut session)), ("completed", 8000));
    assert_eq!(outdated(&mut session), 0);

    // Who doesn't want to wait gets the error, and resumes.
    setup.server.kv_put("keys/k", ONE);
    session.run("SELECT enc_rotate_key('k')");
    setup.server.seal();
    let mut session = setup.connect();
    let call = "CALL enc_rotate_column('t', 'v', outage_timeout => '0')";
    let _ = session.fails(call, "KE064");
    assert_eq!(state(&mut session), "paused");
    setup.server.unseal();
    wait_until("the breaker lets it through", || session.batch_execute(call).is_ok());
    assert_eq!((state(&mut session).as_str(), done(&mut session)), ("completed", 8000));
}

#[test]
fn a_standby_that_lags_slows_the_rotation() {
    let test = "a_standby_that_lags_slows_the_rotation";
    let Some(builder) = builder(test) else { return };
    let cluster = builder.start();
    create_extension(&cluster, DATABASE);
    let mut session = connect(&cluster);
    prepare(&mut session, 10_000);
    let mut standby = Cluster::builder(MAJOR).port(5433).create();
    replace_by_base_backup(&standby, &cluster, &["--write-recovery-conf"]);
    standby.start();
    let mut there = connect(&standby);
    there.run("SELECT pg_wal_replay_pause()");

    let call = "CALL enc_rotate_column('t', 'v', batch_size => 100, max_replica_lag => '256kB')";
    let call = meanwhile(&cluster, call);
    wait_for_progress(&mut session);
    let mut before = -1;
    wait_until("it waits for the standby", || {
        thread::sleep(Duration::from_secs(1));
        std::mem::replace(&mut before, done(&mut session)) == done(&mut session)
    });
    assert!(before > 0 && before < 10_000, "{before}");
    there.run("SELECT pg_wal_replay_resume()");
    succeeds(call);
    assert_rotated(&mut session, 10_000);
}

#[test]
fn a_version_ends_when_it_is_proved_to_be_unused() {
    let Some(cluster) = start("a_version_ends_when_it_is_proved_to_be_unused") else { return };
    let mut session = connect(&cluster);
    prepare(&mut session, 2000);
    let _ = session.fails("SELECT * FROM enc_verify_version_unused('k', 2)", "KE011");
    let _ = session.fails("SELECT * FROM enc_verify_version_unused('k', 7)", "KE006");
    let verify = "SELECT concat(finding, ': ', object, ' ', number_of_rows)
                    FROM enc_verify_version_unused('k', 1, '1 second') WHERE finding <> 'not covered'";
    assert_eq!(
        session.texts(verify),
        [
            Some("used: public.t.v 2000".to_owned()),
            Some("not proved: version 1 of key \"k\" ".to_owned())
        ]
    );
    let _ = session.fails("SELECT enc_destroy_key_version('k', 1)", "KE105");
    session.run("CALL enc_rotate_all('k')");

    // A transaction that is older, and may still write.
    let mut old = connect(&cluster);
    old.run("BEGIN; SELECT 1");
    let found = session.texts(verify);
    assert!(
        found[0].as_ref().unwrap().starts_with("unproved: transaction of process"),
        "{found:?}"
    );
    let _ = session.fails("SELECT enc_destroy_key_version('k', 1, grace_period => '0')", "KE105");
    old.run("COMMIT");
    assert_eq!(session.texts(verify), [Some("proved unused: version 1 of key \"k\" ".to_owned())]);
    let _ = session.fails(
        "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT * FROM enc_verify_version_unused('k', 1)",
        "25001",
    );
    session.run("ROLLBACK");

    // Every exception from the proof: the grace period, a use after it, the active version.
    let _ = session.fails("SELECT enc_destroy_key_version('k', 1)", "KE106");
    let _ = session.fails("SELECT enc_destroy_key_version('k', 2)", "KE011");
    session.run("SELECT enc_activate_key_version('k', 1), enc_activate_key_version('k', 2)");
    let _ = session.fails("SELECT enc_destroy_key_version('k', 1, grace_period => '0')", "KE105");
    let _ = session.texts(verify);
    session.run("SELECT enc_destroy_key_version('k', 1, grace_period => '0')");
    session.run("SELECT enc_destroy_key_version('k', 1)");
    assert_eq!(
        session.text("SELECT state FROM enc_key_versions WHERE name = 'k' AND version = 1"),
        "destroyed"
    );
    let _ = session.fails("SELECT enc_enable_key_version('k', 1)", "KE009");
    assert_rotated(&mut session, 2000);
    session.run("SELECT enc_rotate_key('k'); SELECT enc_destroy_key_version('k', 2, accept_data_loss => true)");
    let _ = session.fails("SELECT v FROM t LIMIT 1", "KE009");
}

#[test]
fn a_prepared_transaction_is_not_proved_to_hold_nothing() {
    const TEST: &str = "a_prepared_transaction_is_not_proved_to_hold_nothing";
    let Some(builder) = builder(TEST) else { return };
    let cluster = builder.setting("max_prepared_transactions", "5").start();
    create_extension(&cluster, DATABASE);
    let mut session = connect(&cluster);
    prepare(&mut session, 100);
    session.run("SELECT enc_activate_key_version('k', 1)");
    session.run(
        "BEGIN; INSERT INTO t VALUES (101, 'value 101', 'value 101'); PREPARE TRANSACTION 'old'",
    );
    session.run("SELECT enc_activate_key_version('k', 2)");
    session.run("CALL enc_rotate_all('k')");

    let verify = "SELECT concat(finding, ': ', object, ' ', number_of_rows)
                    FROM enc_verify_version_unused('k', 1, '1 second') WHERE finding <> 'not covered'";
    let destroy = "SELECT enc_destroy_key_version('k', 1, grace_period => '0')";
    let found = |found: &str| Some(found.to_owned());
    let not_proved = found("not proved: version 1 of key \"k\" ");
    assert_eq!(
        session.texts(verify),
        [found("unproved: prepared transaction 'old' "), not_proved.clone()]
    );
    let _ = session.fails(destroy, "KE105");
    session.run("COMMIT PREPARED 'old'");
    assert_eq!(session.texts(verify), [found("used: public.t.v 1"), not_proved]);
    let _ = session.fails(destroy, "KE105");
    session.run("CALL enc_rotate_all('k')");
    assert_eq!(session.texts(verify), [found("proved unused: version 1 of key \"k\" ")]);
    session.run(destroy);
    assert_rotated(&mut session, 101);
}

#[test]
fn what_a_dump_brings_after_the_proof_is_found() {
    let Some(cluster) = start("what_a_dump_brings_after_the_proof_is_found") else { return };
    let mut session = connect(&cluster);
    prepare(&mut session, 100);
    session.run("SET encryption_ext.output = armor");
    let old = session.text("SELECT v FROM t WHERE id = 1");
    session.run("RESET encryption_ext.output");
    session.run("CALL enc_rotate_all('k')");
    assert_eq!(
        session.text(
            "SELECT finding FROM enc_verify_version_unused('k', 1) WHERE finding <> 'not covered'"
        ),
        "proved unused"
    );
    // Restored where the key can't be had, a value stays under its version.
    session.run("CREATE TABLE restored (v encrypted_text('k'))");
    session.run("SELECT enc_disable_key_version('k', 1)");
    session.run(&format!(
        "SET check_function_bodies = off;
         INSERT INTO restored VALUES ('{old}');
         RESET check_function_bodies"
    ));
    session.run("SELECT enc_enable_key_version('k', 1)");
    let destroy = "SELECT enc_destroy_key_version('k', 1, grace_period => '0')";
    let error = session.fails(destroy, "KE105");
    assert!(texts_of(&error).contains("public.restored.v"), "{error:?}");
    session.run("CALL enc_rotate_all('k')");
    session.run(destroy);
    assert_eq!(session.text("SELECT v FROM restored"), "value 1");
    assert_rotated(&mut session, 100);
}

#[test]
fn an_estimate_has_its_margin() {
    let Some(cluster) = start("an_estimate_has_its_margin") else { return };
    let mut session = connect(&cluster);
    prepare(&mut session, 30_000);
    session.run("UPDATE t SET v = enc_rotate(v) WHERE id % 3 = 0");
    session.run("VACUUM t");
    let exact = session
        .texts("SELECT concat(version, ' ', number_of_rows, ' ', margin) FROM enc_key_usage('k')");
    assert_eq!(exact, [Some("1 20000 0".to_owned()), Some("2 10000 0".to_owned())]);
    // Of 20 samples with a margin of 95 %, some may be outside of it, but not by far.
    let outside: i64 = session.value(
        "SELECT count(*) FROM generate_series(1, 20) i, LATERAL (SELECT u.*, i FROM enc_key_usage('k', false, 50) u) u
          WHERE abs(number_of_rows - CASE version WHEN 1 THEN 20000 ELSE 10000 END) > 2 * margin",
    );
    assert!(outside <= 4, "{outside}");
}

#[test]
fn an_emergency_rotation_disables_the_old_versions() {
    let Some(cluster) = start("an_emergency_rotation_disables_the_old_versions") else { return };
    let mut session = connect(&cluster);
    prepare(&mut session, 20_000);
    session.run(
        "CREATE TABLE u (v encrypted_text('k')[]); INSERT INTO u VALUES ('{a,b}');
         CREATE MATERIALIZED VIEW m AS SELECT * FROM t LIMIT 5",
    );
    // While something still may use them, they stay.
    let mut old = connect(&cluster);
    old.run("BEGIN; SELECT 1");
    let error = session.fails("CALL enc_emergency_rotate('k', workers => 2, wait => '0')", "KE107");
    assert!(error.detail().unwrap().contains("transaction of process"), "{error:?}");
    assert_rotated(&mut session, 20_000);
    let states = "SELECT string_agg(concat(version, ' ', state), ', ' ORDER BY version) FROM enc_key_versions WHERE name = 'k'";
    assert_eq!(session.text(states), "1 deprecated, 2 deprecated, 3 active");
    old.run("COMMIT");
    session.run("CALL enc_emergency_rotate('k', new_version => false)");
    assert_eq!(session.text(states), "1 disabled, 2 disabled, 3 active");
    assert_rotated(&mut session, 20_000);
    assert_eq!(session.text("SELECT v[2] FROM u"), "b");
    assert_eq!(session.value::<i64>("SELECT count(*) FROM m WHERE v = plain"), 5);
}
