//! Migration of columns between plaintext and encrypted: applications write meanwhile, servers crash
//! at any moment, and what depends on the column comes along or is refused.

#![expect(clippy::panic, clippy::unwrap_used, reason = "tests panic")]

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use cluster_tests::key_server::{READ_ONLY, Setup};
use cluster_tests::{DATABASE, Session, builder, connect, create_extension, start_on, texts_of};
use harness::cluster::{Cluster, SUPERUSER};
use harness::openbao::OpenBao;
use postgres::types::Type;
use postgres::{Client, NoTls, Statement};

/// What a row of `t` must be: the same as that of `copy`, which has its columns in plaintext.
const DIFFERENT: &str = "
    SELECT count(*)::text FROM t FULL JOIN copy USING (id)
     WHERE t.email::text IS DISTINCT FROM copy.email OR t.body::bytea IS DISTINCT FROM copy.body";

/// A cluster with the extension and the key `k`.
fn start(test: &str) -> Option<Cluster> {
    let cluster = builder(test)?.setting("max_connections", "40").start();
    create_extension(&cluster, DATABASE);
    connect(&cluster).run("SELECT enc_create_key('k')");
    Some(cluster)
}

fn encrypt(column: &str, action: &str) -> String {
    format!("CALL enc_encrypt_column('t', '{column}', 'k', '{action}')")
}

fn decrypt(column: &str, action: &str) -> String {
    format!("CALL enc_decrypt_column('t', '{column}', '{action}')")
}

/// The types of a column and of what stands beside it during a migration, `-` if it isn't there.
fn types(session: &mut Client, column: &str) -> String {
    session.text(&format!(
        "SELECT string_agg(coalesce((SELECT split_part(format_type(atttypid, atttypmod), '(', 1)
                  FROM pg_attribute
                 WHERE attrelid = 't'::regclass AND attname = '{column}' || suffix AND NOT attisdropped), '-'),
                ' ' ORDER BY n)
           FROM unnest(ARRAY['', '_encrypted', '_plaintext']) WITH ORDINALITY s (suffix, n)"
    ))
}

fn phase(session: &mut Client, column: &str) -> String {
    session.text(&format!(
        "SELECT phase FROM enc_stat_progress_encrypt WHERE table_name = 't' AND column_name = '{column}'
          ORDER BY job_id DESC LIMIT 1"
    ))
}

// Applications

#[test]
fn applications_write_meanwhile() {
    let Some(cluster) = start("applications_write_meanwhile") else { return };
    println!("{}", migrate_there_and_back(&cluster, 4, 30_000));
}

#[test]
fn applications_write_meanwhile_on_every_version() {
    for major in [14, 16, 17, 18] {
        let test = format!("applications_write_meanwhile_on_every_version: {major}");
        let Some(cluster) = start_on(major, &test) else { continue };
        connect(&cluster).run("SELECT enc_create_key('k')");
        println!("PostgreSQL {major}: {}", migrate_there_and_back(&cluster, 2, 2000));
    }
}

/// Migrates two columns of a table with so many rows, and back, while sessions write to them. Returns how
/// they fared.
fn migrate_there_and_back(cluster: &Cluster, writers: u64, rows: i64) -> String {
    let mut session = connect(cluster);
    session.run(&format!(
        "CREATE ROLE app LOGIN;
         SELECT enc_grant('k', 'app', 'encrypt, decrypt');
         CREATE TABLE t (id bigint PRIMARY KEY, email varchar(200) NOT NULL, body bytea, n integer DEFAULT 0);
         CREATE TABLE copy (id bigint PRIMARY KEY, email text, body bytea);
         CREATE UNIQUE INDEX t_email ON t (email);
         INSERT INTO t (id, email, body) SELECT -g, 'old' || g || '@example.com', sha256(g::text::bytea)
           FROM generate_series(1, {rows}) g;
         INSERT INTO copy SELECT id, email, body FROM t;
         -- A function with plans of its own of expressions of the column.
         CREATE FUNCTION tidy() RETURNS trigger LANGUAGE plpgsql AS
             $$ BEGIN new.email := lower(new.email); RETURN new; END $$;
         CREATE TRIGGER tidy BEFORE INSERT OR UPDATE ON t FOR EACH ROW EXECUTE FUNCTION tidy();
         GRANT ALL ON t, copy TO app",
    ));
    let stop = AtomicBool::new(false);
    let written = AtomicU64::new(0);
    let slowest = AtomicU64::new(0);
    thread::scope(|scope| {
        for writer in 0..writers {
            let (stop, written, slowest) = (&stop, &written, &slowest);
            scope.spawn(move || {
                let mut client = cluster.connect("app", DATABASE);
                let prepared = Prepared::new(&mut client);
                let mut n = 0;
                while !stop.load(Ordering::Relaxed) {
                    n += 1;
                    let started = Instant::now();
                    write(&mut client, &prepared, writer, n, rows);
                    slowest.fetch_max(started.elapsed().as_millis() as u64, Ordering::Relaxed);
                    written.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let call = |session: &mut Client, call: &str| {
                session.run(call);
                assert_eq!(session.text(DIFFERENT), "0", "after {call}");
            };
            // Back before the names are exchanged: there is nothing that builds the index.
            let waiting = format!(
                "{}, indexes => 'concurrently')",
                encrypt("email", "execute").trim_end_matches(')')
            );
            call(&mut session, &waiting);
            assert_eq!(phase(&mut session, "email"), "verified");
            call(&mut session, &encrypt("email", "rollback"));
            assert_eq!(types(&mut session, "email"), "character varying - -");
            // Back after they are.
            call(&mut session, &encrypt("email", "execute"));
            thread::sleep(Duration::from_millis(300));
            assert_eq!(types(&mut session, "email"), "encrypted_text - character varying");
            call(&mut session, &encrypt("email", "rollback"));
            thread::sleep(Duration::from_millis(300));
            // And all the way, of two columns at once.
            thread::scope(|scope| {
                scope.spawn(|| connect(cluster).run(&encrypt("body", "execute")));
                call(&mut session, &encrypt("email", "execute"));
            });
            call(&mut session, &encrypt("email", "finish"));
            call(&mut session, &encrypt("body", "finish"));
            thread::sleep(Duration::from_millis(300));
            assert_eq!(types(&mut session, "email"), "encrypted_text - -");
            call(&mut session, &decrypt("email", "execute"));
            call(&mut session, &decrypt("email", "finish"));
            assert_eq!(types(&mut session, "email"), "text - -");
        }));
        stop.store(true, Ordering::Relaxed);
        if let Err(panic) = result {
            std::panic::resume_unwind(panic);
        }
    });
    assert_eq!(session.text(DIFFERENT), "0");
    let old: i64 = session.value("SELECT count(*) FROM t WHERE id < 0");
    assert_eq!(old, rows);
    let (written, slowest) = (written.into_inner(), slowest.into_inner());
    format!("{written} transactions of {writers} writers, the slowest took {slowest} ms")
}

/// Statements that were prepared before the migration, with parameters of type `text`, as drivers do.
struct Prepared {
    update: Statement,
    insert: Statement,
    read: Statement,
}

impl Prepared {
    fn new(client: &mut Client) -> Self {
        let mut prepare =
            |sql| client.prepare_typed(sql, &[Type::INT8, Type::TEXT, Type::BYTEA]).unwrap();
        Self {
            update: prepare("UPDATE t SET email = $2 WHERE id = $1 AND $3 IS NULL"),
            insert: prepare("INSERT INTO t (id, email, body) VALUES ($1, $2, $3)"),
            read: prepare("SELECT email::text FROM t WHERE id = $1 AND $2 IS NULL AND $3 IS NULL"),
        }
    }
}

/// A transaction that writes the same to `t` and to `copy`, by a prepared statement or a simple one.
/// None may fail.
fn write(client: &mut Client, prepared: &Prepared, writer: u64, n: u64, rows: i64) {
    const NO_BYTES: Option<&[u8]> = None;
    const NO_TEXT: Option<&str> = None;
    let id = (writer * 1_000_000 + n) as i64;
    let email = format!("new{id}@example.com");
    let body = email.as_bytes();
    let mut transaction = client.transaction().unwrap();
    match n % 5 {
        0 => {
            let old = -((n * 7919 + writer) as i64 % rows) - 1;
            // Writers take rows in one order, so that they don't deadlock each other.
            let changed = format!("changed{id}@example.com");
            transaction.execute("SELECT FROM copy WHERE id = $1 FOR UPDATE", &[&old]).unwrap();
            transaction.execute(&prepared.update, &[&old, &changed, &NO_BYTES]).unwrap();
            transaction
                .execute("UPDATE copy SET email = $2 WHERE id = $1", &[&old, &changed])
                .unwrap();
        }
        1 => {
            let old = -((n * 104_729 + writer) as i64 % rows) - 1;
            transaction.execute("UPDATE t SET n = n + 1 WHERE id = $1", &[&old]).unwrap();
        }
        2 => {
            let sql = format!(
                "INSERT INTO t (id, email, body) VALUES ({id}, upper('{email}'), NULL);
                 INSERT INTO copy VALUES ({id}, '{email}', NULL)"
            );
            transaction.batch_execute(&sql).unwrap();
        }
        3 => {
            transaction.execute(&prepared.insert, &[&id, &email, &body]).unwrap();
            transaction
                .execute("INSERT INTO copy VALUES ($1, $2, $3)", &[&id, &email, &body])
                .unwrap();
        }
        _ => {
            let gone = id - 2;
            transaction.execute("DELETE FROM t WHERE id = $1", &[&gone]).unwrap();
            transaction.execute("DELETE FROM copy WHERE id = $1", &[&gone]).unwrap();
            transaction.query(&prepared.read, &[&(id - 1), &NO_TEXT, &NO_BYTES]).unwrap();
        }
    }
    transaction.commit().unwrap();
}

// Crashes

#[test]
fn crashes_at_any_moment() {
    let kills: u32 =
        std::env::var("MIGRATION_KILLS").ok().and_then(|kills| kills.parse().ok()).unwrap_or(8);
    let Some(mut cluster) = start("crashes_at_any_moment") else { return };
    connect(&cluster).run(
        "CREATE TABLE t (id bigint PRIMARY KEY, email text NOT NULL DEFAULT 'none', body bytea);
         CREATE TABLE copy (id bigint PRIMARY KEY, email text, body bytea);
         CREATE INDEX t_email ON t (email);
         CREATE VIEW emails AS SELECT id, email FROM t;
         INSERT INTO t SELECT g, 'old' || g || '@example.com', sha256(g::text::bytea) FROM generate_series(1, 20000) g;
         INSERT INTO copy SELECT * FROM t",
    );
    let actions = [
        encrypt("email", "execute"),
        encrypt("email", "rollback"),
        encrypt("email", "execute"),
        encrypt("email", "finish"),
        decrypt("email", "execute"),
        decrypt("email", "finish"),
    ];
    let mut action = 0;
    let mut completed = 0;
    let mut random = Random(std::process::id().into());
    for kill in 0..kills {
        let moment = Duration::from_micros(random.below(1_500_000));
        let until = Instant::now() + moment;
        let config = cluster.config(SUPERUSER, DATABASE);
        let worker = {
            let call = actions[action].replace("'execute')", "'execute', batch_size => 500)");
            thread::spawn(move || {
                config.connect(NoTls).is_ok_and(|mut session| session.batch_execute(&call).is_ok())
            })
        };
        let mut session = connect(&cluster);
        let mut n = 0;
        while Instant::now() < until {
            n += 1;
            let id = i64::from(kill) * 1_000_000 + 100_000 + n;
            session.run(&format!(
                "BEGIN;
                 INSERT INTO t (id, email) VALUES ({id}, 'new'); INSERT INTO copy VALUES ({id}, 'new');
                 UPDATE t SET email = 'u{id}' WHERE id = {n};
                 UPDATE copy SET email = 'u{id}' WHERE id = {n};
                 COMMIT"
            ));
            thread::sleep(Duration::from_millis(2));
        }
        cluster.crash();
        let done = worker.join().unwrap();
        cluster.start();
        state_is_true(&mut connect(&cluster), &actions[action]);
        if done {
            completed += 1;
            action = (action + 1) % actions.len();
        } else if was_done(&mut connect(&cluster), &actions[action]) {
            // It committed its last transaction, and the crash kept it from saying so.
            action = (action + 1) % actions.len();
        }
    }
    // The same calls go on to the end of the round, also of one whose first call was killed.
    if action != 0 || types(&mut connect(&cluster), "email") != "text - -" {
        for call in &actions[action..] {
            connect(&cluster).run(call);
            state_is_true(&mut connect(&cluster), call);
        }
    }
    println!("{kills} crashes, {completed} calls ended before theirs");
    let mut session = connect(&cluster);
    assert_eq!(types(&mut session, "email"), "text - -");
    assert_eq!(
        session.text("SELECT count(*)::text FROM pg_trigger WHERE tgrelid = 't'::regclass"),
        "0"
    );
    assert_eq!(
        session.text("SELECT count(*)::text FROM pg_index WHERE indrelid = 't'::regclass"),
        "2"
    );
}

fn was_done(session: &mut Client, call: &str) -> bool {
    let rows =
        session.texts("SELECT phase FROM enc_stat_progress_encrypt ORDER BY job_id DESC LIMIT 1");
    let Some(Some(phase)) = rows.first() else { return false };
    match phase.as_str() {
        "rolled back" => call.contains("rollback"),
        "finished" => call.contains("finish"),
        _ => false,
    }
}

/// What the state says of the columns is what they are, every row has its value, and none is
/// encrypted twice.
#[track_caller]
fn state_is_true(session: &mut Client, call: &str) {
    assert_eq!(session.text(DIFFERENT), "0", "{call}");
    let states = session.texts(
        "SELECT concat_ws('|', direction, phase, plaintext) FROM enc_stat_progress_encrypt ORDER BY job_id DESC LIMIT 1",
    );
    let state =
        states.first().cloned().flatten().unwrap_or_else(|| "encrypt|rolled back|".to_owned());
    let parts: Vec<_> = state.splitn(3, '|').collect();
    let expected = match (parts[0], parts[1]) {
        ("encrypt", "backfilling" | "verifying" | "verified") => "text encrypted_text -",
        ("encrypt", "swapped") => "encrypted_text - text",
        ("encrypt", "finished") | ("decrypt", "rolled back") => "encrypted_text - -",
        ("decrypt", "backfilling" | "verifying" | "verified") => "encrypted_text - text",
        ("decrypt", "swapped") => "text encrypted_text -",
        ("encrypt", "rolled back") | ("decrypt", "finished") => "text - -",
        other => panic!("{call}: unexpected state {other:?}"),
    };
    assert_eq!(types(session, "email"), expected, "{call}: {state}");
    if parts[2].starts_with("in no column") {
        assert!(!expected.split(' ').any(|column| column == "text"), "{call}: {state}");
    }
    // A column that is said to be gone is not in the view either.
    assert_eq!(session.text("SELECT count(*)::text FROM emails e JOIN copy c USING (id) WHERE e.email::text <> c.email"), "0");
}

/// Where in time servers crash: xorshift64, which needs no crate.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

// What stops a migration

#[test]
fn bad_input_is_refused() {
    let Some(cluster) = start("bad_input_is_refused") else { return };
    let mut session = connect(&cluster);
    session.run(
        "SELECT enc_create_key('other');
         CREATE TABLE t (id bigint PRIMARY KEY, email text, mail encrypted_text('k'), n integer,
                         upper_email text GENERATED ALWAYS AS (upper(email)) STORED, alone text);
         CREATE VIEW v AS SELECT alone FROM t;
         CREATE MATERIALIZED VIEW m AS SELECT id FROM t;
         CREATE FOREIGN DATA WRAPPER nowhere; CREATE SERVER s FOREIGN DATA WRAPPER nowhere;
         CREATE FOREIGN TABLE f (email text) SERVER s;
         CREATE TEMPORARY TABLE temp (email text);
         CREATE TABLE p (email text, n integer) PARTITION BY LIST (email);
         CREATE TABLE q (email text, n integer) PARTITION BY LIST (n);
         CREATE TABLE q1 PARTITION OF q FOR VALUES IN (1);
         CREATE FOREIGN TABLE q2 PARTITION OF q FOR VALUES IN (2) SERVER s;
         CREATE TYPE row_type AS (email text); CREATE TABLE typed OF row_type;
         CREATE TABLE parent (email text); CREATE TABLE child () INHERITS (parent);
         CREATE TABLE local (email text) INHERITS (parent);
         CREATE TABLE taken (email text, email_encrypted text);
         CREATE TABLE referred (email text UNIQUE); CREATE TABLE referring (email text REFERENCES referred (email));
         CREATE TABLE keyed (email text PRIMARY KEY);
         CREATE TABLE seen (email text); CREATE MATERIALIZED VIEW seeing AS SELECT email FROM seen;
         CREATE TABLE ruled (email text); CREATE RULE r AS ON UPDATE TO ruled WHERE new.email = 'x' DO INSTEAD NOTHING;
         CREATE TABLE published (email text); CREATE PUBLICATION pub FOR TABLE published;
         CREATE TABLE late (email text); CREATE FUNCTION noop() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN new; END';
         CREATE TRIGGER \"~~\" BEFORE INSERT ON late FOR EACH ROW EXECUTE FUNCTION noop();
         CREATE ROLE owner LOGIN; CREATE ROLE other LOGIN;
         CREATE TABLE owned (id integer, email text); ALTER TABLE owned OWNER TO owner;
         CREATE TRIGGER t BEFORE UPDATE ON owned FOR EACH ROW EXECUTE FUNCTION noop();
         CREATE TABLE forced (email text); ALTER TABLE forced OWNER TO owner;
         ALTER TABLE forced ENABLE ROW LEVEL SECURITY; ALTER TABLE forced FORCE ROW LEVEL SECURITY;",
    );
    let call = |table: &str, column: &str, rest: &str| {
        format!("CALL enc_encrypt_column('{table}', '{column}', 'k', {rest})")
    };
    for (table, column, sqlstate, said) in [
        ("v", "alone", "KE200", "view"),
        ("m", "id", "KE200", "materialized view"),
        ("f", "email", "KE200", "foreign table"),
        ("temp", "email", "KE200", "temporary"),
        ("p", "email", "KE200", "partitioned by it"),
        ("q1", "email", "KE200", "is a partition"),
        ("q", "email", "KE200", "q2\" is a foreign table"),
        ("typed", "email", "KE200", "composite type"),
        ("child", "email", "KE200", "inherited"),
        ("parent", "email", "KE200", "on its own account"),
        ("pg_catalog.pg_class", "relname", "KE200", "system"),
        ("encryption.key", "name", "KE200", "system"),
        ("t", "n", "KE200", "integer"),
        ("t", "mail", "KE200", "encrypted already"),
        ("t", "upper_email", "KE200", "generated"),
        ("t", "nothing", "42703", "does not exist"),
        ("t", "ctid", "42703", "does not exist"),
        ("nothing", "email", "42P01", "does not exist"),
        ("taken", "email", "42701", "email_encrypted"),
        ("t", "email", "KE201", "computed from the old column"),
        ("referred", "email", "KE201", "can't refer to each other"),
        ("referring", "email", "KE201", "can't refer to each other"),
        ("keyed", "email", "KE201", "primary key"),
        ("seen", "email", "KE201", "materialized view"),
        ("ruled", "email", "KE201", "rule"),
        ("published", "email", "KE201", "accept => 'published'"),
        ("late", "email", "KE201", "Rename it"),
    ] {
        let error = session.fails(&call(table, column, "'execute'"), sqlstate);
        assert!(texts_of(&error).contains(said), "{table}.{column}: {error:?}");
        session.run("ROLLBACK");
    }
    for (rest, said) in [
        ("'delete'", "action"),
        ("NULL", "action"),
        ("'execute', accept => 'everything'", "accept"),
        ("'execute', batch_size => 0", "batch_size"),
        ("'execute', batch_size => NULL", "batch_size"),
        ("'execute', pause => '-1 s'", "pause"),
        ("'execute', lock_timeout => '0'", "lock_timeout"),
        ("'execute', lock_tries => 0", "lock_tries"),
        ("'execute', indexes => 'never'", "indexes"),
    ] {
        let error = session.fails(&call("t", "alone", rest), "KE207");
        assert!(error.message().contains(said), "{rest}: {error:?}");
    }
    session.fails("CALL enc_encrypt_column('t', 'alone', 'no_such_key', 'execute')", "KE003");
    session.fails(&call("t", "alone", "'rollback'"), "KE202");
    session.fails(&call("t", "alone", "'finish'"), "KE202");
    session.fails(&call("t", "alone", "'status'"), "KE202");
    session.fails("CALL enc_decrypt_column('t', 'alone', 'execute')", "KE200");
    session.fails("CALL enc_decrypt_column('t', 'mail', 'execute', 'integer')", "KE200");
    // A procedure that commits can't be part of a transaction; nothing is left of it.
    session.fails(&format!("BEGIN; {}", call("t", "alone", "'execute'")), "2D000");
    session.run("ROLLBACK");
    assert_eq!(types(&mut session, "alone"), "text - -");

    // Rights: the table's owner, with the key.
    let mut owner = cluster.connect("owner", DATABASE);
    let mut other = cluster.connect("other", DATABASE);
    other.fails(&call("owned", "email", "'execute'"), "42501");
    other.fails(&call("owned", "email", "'rollback'"), "42501");
    owner.fails(&call("owned", "email", "'execute'"), "KE208");
    session.fails(&call("owned", "email", "'execute'"), "KE208");
    session.run("SELECT enc_grant('k', 'owner', 'encrypt, decrypt')");
    owner.fails(&call("forced", "email", "'execute'"), "KE200");
    owner.fails(&call("owned", "email", "'execute'"), "KE201");
    owner.run(&call("owned", "email", "'execute', accept => 'fire_triggers'"));
    // Nobody else can look at it, or tell of progress that there isn't.
    assert_eq!(other.text("SELECT count(*)::text FROM encryption.migration"), "0");
    assert_eq!(owner.text("SELECT count(*)::text FROM encryption.migration"), "1");
    let forged = "INSERT INTO encryption.migration SELECT * FROM encryption.migration";
    other.run(forged);
    owner.fails("UPDATE encryption.migration SET table_id = 't'::regclass::oid", "42501");
    other.fails("SELECT * FROM encryption.job", "42501");
    // An operation that isn't the one that goes on.
    session.fails("CALL enc_encrypt_column('owned', 'email', 'other', 'execute')", "KE203");
    session.fails("CALL enc_decrypt_column('owned', 'email', 'execute')", "KE203");
    session.fails(&call("owned", "email", "'dry_run'"), "KE203");
    // Altered halfway: refused, or found out.
    session.fails("ALTER TABLE owned RENAME COLUMN email TO mail", "KE204");
    session.fails("ALTER TABLE owned DROP COLUMN email_plaintext", "KE204");
    session.fails("ALTER TABLE owned ALTER COLUMN email TYPE text", "KE204");
    session.fails("ALTER TABLE owned DISABLE TRIGGER ALL", "KE204");
    session.run("ALTER TABLE owned ADD COLUMN more text; ALTER TABLE owned DROP COLUMN more");
    let trigger =
        session.text("SELECT tgname FROM pg_trigger WHERE tgname LIKE '~encryption_ext%'");
    session.run(&format!("DROP TRIGGER \"{trigger}\" ON owned"));
    session.fails(&call("owned", "email", "'finish'"), "KE204");
    session.fails(&call("owned", "email", "'rollback'"), "KE204");
    // Dropped halfway: the state says so.
    session.run("DROP TABLE owned");
    let gone = "SELECT plaintext FROM enc_stat_progress_encrypt WHERE table_name LIKE '%owned'";
    assert_eq!(session.text(gone), "the table is dropped");
}

#[test]
fn locks_are_waited_for_in_short_turns() {
    let Some(cluster) = start("locks_are_waited_for_in_short_turns") else { return };
    let mut session = connect(&cluster);
    session.run(
        "CREATE TABLE t (id bigint PRIMARY KEY, email text);
         INSERT INTO t SELECT g, 'e' || g FROM generate_series(1, 3000) g",
    );
    // A long transaction that has read the table.
    let mut reader = connect(&cluster);
    reader.run("BEGIN; SELECT count(*) FROM t");
    let call = "CALL enc_encrypt_column('t', 'email', 'k', 'execute', lock_timeout => '20 ms', lock_tries => 3)";
    let error = session.fails(call, "KE206");
    assert!(texts_of(&error).contains("3 times"), "{error:?}");
    assert_eq!(types(&mut session, "email"), "text - -");
    reader.run("COMMIT");

    // Rows that somebody keeps locked are come back to.
    let mut locker = connect(&cluster);
    thread::scope(|scope| {
        let slow = scope.spawn(|| {
            connect(&cluster).batch_execute(
                "CALL enc_encrypt_column('t', 'email', 'k', 'execute', batch_size => 100, pause => '20 ms')",
            )
        });
        while session.text("SELECT count(*)::text FROM pg_attribute WHERE attrelid = 't'::regclass AND attname = 'email_encrypted' AND NOT attisdropped") == "0" {
            thread::sleep(Duration::from_millis(2));
        }
        locker.run("BEGIN; SELECT FROM t WHERE id = 2999 FOR UPDATE");
        thread::sleep(Duration::from_millis(1500));
        assert_eq!(types(&mut session, "email"), "text encrypted_text -");
        locker.run("UPDATE t SET email = 'late' WHERE id = 2998; COMMIT");
        slow.join().unwrap().unwrap();
    });
    assert_eq!(types(&mut session, "email"), "encrypted_text - text");
    assert_eq!(
        session.text(
            "SELECT count(*)::text FROM t WHERE email::text IS DISTINCT FROM email_plaintext"
        ),
        "0"
    );
}

#[test]
fn callers_share_the_work() {
    let Some(cluster) = start("callers_share_the_work") else { return };
    let mut session = connect(&cluster);
    session.run(
        "CREATE TABLE t (id bigint PRIMARY KEY, email text);
         INSERT INTO t SELECT g, repeat('e', 100) || g FROM generate_series(1, 60000) g",
    );
    thread::scope(|scope| {
        let callers: Vec<_> = (0..3)
            .map(|_| {
                scope.spawn(|| {
                    connect(&cluster).batch_execute(
                        "CALL enc_encrypt_column('t', 'email', 'k', 'execute', batch_size => 1000)",
                    )
                })
            })
            .collect();
        for caller in callers {
            caller.join().unwrap().unwrap();
        }
    });
    assert_eq!(types(&mut session, "email"), "encrypted_text - text");
    assert_eq!(session.text("SELECT count(*)::text FROM encryption.job"), "1");
    let workers = "SELECT (count(DISTINCT worker) > 1)::text FROM encryption.job_range";
    assert_eq!(session.text(workers), "true");
    assert_eq!(
        session.text(
            "SELECT count(*)::text FROM t WHERE email::text IS DISTINCT FROM email_plaintext"
        ),
        "0"
    );
}

#[test]
fn a_lost_provider_pauses_it() {
    let test = "a_lost_provider_pauses_it";
    let Some(mut setup) = Setup::with_key(test, OpenBao::start_with_tls, READ_ONLY) else { return };
    let mut session = setup.connect();
    session.run("CREATE TABLE u (id integer, email text); INSERT INTO u SELECT g, 'e' || g FROM generate_series(1, 2000) g");
    let call = "CALL enc_encrypt_column('u', 'email', 'k', 'execute', batch_size => 10, pause => '100 ms')";
    thread::scope(|scope| {
        let mut worker = setup.connect();
        let worker = scope.spawn(move || worker.batch_execute(call));
        let phases = "SELECT coalesce(max(phase), '') FROM enc_stat_progress_encrypt";
        while session.text(phases) != "backfilling" {
            thread::sleep(Duration::from_millis(5));
        }
        thread::sleep(Duration::from_millis(200));
        session.run("SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE query LIKE 'CALL enc_encrypt%'");
        let error = worker.join().unwrap().unwrap_err();
        assert_eq!(error.code().unwrap().code(), "57014");
    });
    setup.server.stop();
    setup.connect().fails(call, "KE062");
    let mut cold = setup.connect();
    let state = "SELECT concat_ws(' ', phase, job_state, left(last_error, 5)) FROM enc_stat_progress_encrypt";
    assert_eq!(cold.text(state), "backfilling paused KE062");
    assert_eq!(cold.text("SELECT count(email)::text FROM u"), "2000");
    setup.server.restart();
    setup.connect().run("CALL enc_encrypt_column('u', 'email', 'k', 'execute')");
    assert_eq!(
        cold.text("SELECT concat_ws(' ', phase, job_state) FROM enc_stat_progress_encrypt"),
        "swapped running"
    );
    assert_eq!(cold.text("SELECT count(*)::text FROM u WHERE email::text = 'e' || id"), "2000");
}

#[test]
fn a_damaged_value_is_found() {
    let Some(cluster) = start("a_damaged_value_is_found") else { return };
    let mut session = connect(&cluster);
    session.run(
        "CREATE TABLE t (id bigint PRIMARY KEY, email text);
         INSERT INTO t SELECT g, 'e' || g FROM generate_series(1, 100) g;
         CREATE INDEX t_email ON t (email)",
    );
    session.run("CALL enc_encrypt_column('t', 'email', 'k', 'execute', indexes => 'concurrently')");
    // Verified; then somebody writes past the trigger, and the call begins anew.
    session.run(
        "ALTER EVENT TRIGGER encryption_ext_check_migrations DISABLE;
         ALTER TABLE t DISABLE TRIGGER ALL; UPDATE t SET email = 'changed' WHERE id = 7; ALTER TABLE t ENABLE ALWAYS TRIGGER \"~encryption_ext_1\";
         UPDATE encryption.migration SET phase = 'verifying';
         UPDATE encryption.job_range SET next_block = first_block",
    );
    let error = session.fails(&encrypt("email", "execute"), "KE205");
    let place = session.text("SELECT ctid::text FROM t WHERE id = 7");
    assert!(texts_of(&error).contains(&place), "{error:?}");
    assert_eq!(
        session.text("SELECT job_state FROM enc_stat_progress_encrypt"),
        "failed",
        "the state tells of it"
    );
    session.run("UPDATE t SET email_encrypted = NULL WHERE id = 7");
    session.run(&encrypt("email", "execute"));
    assert_eq!(session.text("SELECT email::text FROM t WHERE id = 7"), "changed");
}

// What comes along

#[test]
fn dependents_come_along_there_and_back() {
    let Some(cluster) = start("dependents_come_along_there_and_back") else { return };
    let mut session = connect(&cluster);
    session.run(
        "CREATE ROLE app;
         CREATE TABLE t (id bigint PRIMARY KEY, email text NOT NULL DEFAULT 'none' COLLATE \"C\");
         INSERT INTO t SELECT g, 'user' || g || '@example.com' FROM generate_series(1, 500) g;
         COMMENT ON COLUMN t.email IS 'the address';
         ALTER TABLE t ALTER COLUMN email SET STATISTICS 7, ALTER COLUMN email SET (n_distinct = -0.5);
         GRANT SELECT (email), UPDATE (email) ON t TO app;
         ALTER TABLE t ADD CONSTRAINT has_at CHECK (email LIKE '%@%' OR email = 'none');
         CREATE VIEW inner_view WITH (security_barrier) AS SELECT id, email FROM t;
         CREATE VIEW outer_view AS SELECT count(*) AS n FROM inner_view WHERE email LIKE 'user1%';
         CREATE VIEW same_types AS SELECT id FROM t WHERE email = 'user7@example.com';
         GRANT SELECT ON inner_view TO app; GRANT SELECT (n) ON outer_view TO app;
         COMMENT ON VIEW inner_view IS 'for the app';
         CREATE FUNCTION noop() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN new; END';
         CREATE TRIGGER of_email BEFORE UPDATE OF email ON t FOR EACH ROW EXECUTE FUNCTION noop();
         CREATE TRIGGER on_email BEFORE UPDATE ON t FOR EACH ROW WHEN (old.email <> new.email) EXECUTE FUNCTION noop();
         ALTER TABLE t DISABLE TRIGGER on_email;
         ALTER TABLE t ENABLE ROW LEVEL SECURITY;
         CREATE POLICY others ON t USING (email <> 'secret') WITH CHECK (email <> 'no');
         CREATE FUNCTION address(bigint) RETURNS text BEGIN ATOMIC SELECT email FROM t WHERE id = $1; END;
         CREATE INDEX t_email ON t (email); CREATE UNIQUE INDEX t_lower ON t (lower(email)) WHERE email IS NOT NULL;
         CREATE STATISTICS t_stats ON id, email FROM t",
    );
    let described = "
        SELECT string_agg(line, E'\\n' ORDER BY line) FROM (
            SELECT concat_ws(' ', attname, attnotnull, attacl, attoptions::text ~ 'n_distinct=-0.5', attstattarget,
                             col_description(attrelid, attnum)) FROM pg_attribute
             WHERE attrelid = 't'::regclass AND attname = 'email'
          UNION ALL SELECT concat_ws(' ', relname, relacl, reloptions, obj_description(oid, 'pg_class'))
              FROM pg_class WHERE relname IN ('inner_view', 'outer_view', 'same_types')
          UNION ALL SELECT concat_ws(' ', attrelid::regclass, attname, attacl) FROM pg_attribute
             WHERE attrelid IN ('inner_view'::regclass, 'outer_view'::regclass) AND attnum > 0
          UNION ALL SELECT concat_ws(' ', conname, convalidated) FROM pg_constraint
             WHERE conrelid = 't'::regclass AND conname = 'has_at'
          UNION ALL SELECT concat_ws(' ', tgname, tgenabled, tgtype) FROM pg_trigger
             WHERE tgrelid = 't'::regclass AND tgname LIKE '%_email'
          UNION ALL SELECT pg_get_expr(adbin, adrelid) FROM pg_attrdef WHERE adrelid = 't'::regclass
          UNION ALL SELECT indexrelid::regclass::text FROM pg_index WHERE indrelid = 't'::regclass
             AND indexrelid::regclass::text NOT LIKE '%_plaintext' AND indexrelid::regclass::text NOT LIKE '%_encrypted'
          UNION ALL SELECT concat(address(3), (SELECT n FROM outer_view), (SELECT id FROM same_types))
        ) lines (line)";
    let definitions = "
        SELECT string_agg(line, E'\\n' ORDER BY line) FROM (
            SELECT pg_get_viewdef(oid) FROM pg_class WHERE relname IN ('inner_view', 'outer_view', 'same_types')
          UNION ALL SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE conname = 'has_at'
          UNION ALL SELECT pg_get_triggerdef(oid) FROM pg_trigger WHERE tgname LIKE '%_email'
          UNION ALL SELECT concat(qual, with_check) FROM pg_policies
          UNION ALL SELECT indexdef FROM pg_indexes WHERE tablename = 't'
        ) lines (line)";
    let (before, defined) = (session.text(described), session.text(definitions));

    session.run(&encrypt("email", "dry_run"));
    assert_eq!(session.text(described), before, "after the dry run");
    session.run(&encrypt("email", "execute"));
    assert_eq!(session.text(described), before, "after the exchange of names");
    assert_eq!(types(&mut session, "email"), "encrypted_text - text");
    assert_eq!(session.text("SELECT format_type(atttypid, NULL) FROM pg_attribute WHERE attrelid = 'inner_view'::regclass AND attname = 'email'"), "encrypted_text");
    let definition = session.text(definitions);
    assert!(definition.contains("enc_digest(email, 'lower'"), "{definition}");
    // The constraint, the policy's condition and the default are in force.
    session.fails("UPDATE t SET email = 'nowhere' WHERE id = 1", "23514");
    session.fails("INSERT INTO t (id, email) VALUES (-1, NULL)", "23502");
    session.run("INSERT INTO t VALUES (-1)");
    session.fails("INSERT INTO t (id, email) VALUES (-2, 'USER7@EXAMPLE.COM')", "23505");
    session.run("UPDATE t SET email = 'later@example.com' WHERE id = 2");

    session.run(&encrypt("email", "rollback"));
    assert_eq!(session.text("SELECT email FROM t WHERE id = 2"), "later@example.com");
    assert_eq!(session.text("SELECT email FROM t WHERE id = -1"), "none");
    assert_eq!(session.text(described), before, "after the rollback");
    assert_eq!(session.text(definitions), defined, "after the rollback");

    session.run(&encrypt("email", "execute"));
    session.run(&encrypt("email", "finish"));
    assert_eq!(session.text(described), before, "after the end");
    assert_eq!(types(&mut session, "email"), "encrypted_text - -");
    let plaintext = "SELECT plaintext FROM enc_stat_progress_encrypt ORDER BY job_id DESC LIMIT 1";
    assert!(session.text(plaintext).contains("in the table's files"));
    session.run("VACUUM FULL t");
    assert!(!session.text(plaintext).contains("in the table's files"));

    session.run(&decrypt("email", "execute"));
    session.run(&decrypt("email", "finish"));
    assert_eq!(session.text(described), before, "decrypted");
    assert_eq!(session.text(definitions), defined, "decrypted");
}

#[test]
fn partitions_and_heirs_come_along() {
    let Some(cluster) = start("partitions_and_heirs_come_along") else { return };
    let mut session = connect(&cluster);
    session.run(
        "CREATE TABLE t (id integer, k integer, email text, PRIMARY KEY (id, k)) PARTITION BY RANGE (k);
         CREATE TABLE t1 PARTITION OF t FOR VALUES FROM (0) TO (10);
         -- Its columns have other numbers.
         CREATE TABLE t2 (k integer NOT NULL, dropped integer, email text, id integer NOT NULL);
         ALTER TABLE t2 DROP COLUMN dropped; ALTER TABLE t ATTACH PARTITION t2 FOR VALUES FROM (10) TO (20);
         CREATE UNIQUE INDEX t_email ON t (k, email);
         INSERT INTO t SELECT g, g % 20, 'p' || g FROM generate_series(1, 4000) g",
    );
    session.run("CALL enc_encrypt_column('t', 'email', 'k', 'execute', indexes => 'concurrently')");
    assert_eq!(phase(&mut session, "email"), "verified");
    // One that is attached halfway is filled in, too.
    session.run(
        "CREATE TABLE t3 (id integer NOT NULL, k integer NOT NULL, email text, email_encrypted encrypted_text('k'));
         INSERT INTO t3 SELECT g, 25, 'p' || g FROM generate_series(5001, 5100) g;
         ALTER TABLE t ATTACH PARTITION t3 FOR VALUES FROM (20) TO (30)",
    );
    session.run("CALL enc_encrypt_column('t', 'email', 'k', 'execute')");
    assert_eq!(phase(&mut session, "email"), "swapped");
    session.run(
        "CREATE TABLE t4 PARTITION OF t FOR VALUES FROM (30) TO (40);
         INSERT INTO t (id, k, email) VALUES (1, 35, 'new'); UPDATE t SET k = 36 WHERE id = 5",
    );
    let rows =
        "SELECT concat(count(*), ' ', count(email), ' ', count(DISTINCT email::text)) FROM t";
    assert_eq!(session.text(rows), "4101 4101 4101");
    session.fails("INSERT INTO t (id, k, email) VALUES (9, 35, 'new')", "23505");
    session.run("CALL enc_encrypt_column('t', 'email', 'k', 'finish')");
    assert_eq!(session.text(rows), "4101 4101 4101");
    session.fails("INSERT INTO t (id, k, email) VALUES (9, 35, 'new')", "23505");
    let plaintext = "SELECT count(*)::text FROM pg_attribute a JOIN pg_class c ON c.oid = attrelid
         WHERE relname IN ('t', 't1', 't2', 't3', 't4') AND attname LIKE 'email\\_%' AND NOT attisdropped";
    assert_eq!(session.text(plaintext), "0");

    session.run(
        "CREATE TABLE parent (id integer, email text DEFAULT 'p'); CREATE TABLE heir (x integer) INHERITS (parent);
         ALTER TABLE heir ALTER email SET DEFAULT 'h', ALTER email SET NOT NULL; CREATE INDEX heir_email ON heir (email);
         INSERT INTO parent SELECT g, 'e' || g FROM generate_series(1, 500) g;
         INSERT INTO heir SELECT g, 'e' || g FROM generate_series(1, 500) g",
    );
    session.run("CALL enc_encrypt_column('parent', 'email', 'k', 'execute')");
    session.run("INSERT INTO parent (id) VALUES (0); INSERT INTO heir (id) VALUES (0)");
    let defaults = "SELECT string_agg(email::text || email_plaintext, ' ' ORDER BY email::text) FROM parent WHERE id = 0";
    assert_eq!(session.text(defaults), "hh pp");
    session.fails("INSERT INTO heir (email) VALUES (NULL)", "23502");
    session.run("CALL enc_encrypt_column('parent', 'email', 'k', 'finish')");
    assert_eq!(session.text("SELECT count(email::text)::text FROM parent"), "1002");
    assert_eq!(session.text("SELECT amname FROM pg_class c JOIN pg_am a ON a.oid = relam WHERE relname = 'heir_email'"), "hash");
}

#[test]
fn the_direct_way_works_too() {
    let Some(cluster) = start("the_direct_way_works_too") else { return };
    let mut session = connect(&cluster);
    session.run(
        "CREATE TABLE t (id integer, email varchar(50) NOT NULL, body bytea);
         INSERT INTO t SELECT g, 'e' || g, sha256(g::text::bytea) FROM generate_series(1, 300) g;
         CREATE TABLE copy AS SELECT * FROM t;
         ALTER TABLE t ALTER COLUMN email TYPE encrypted_text('k') USING email::encrypted_text('k'),
                       ALTER COLUMN body TYPE encrypted_bytea('k')",
    );
    assert_eq!(session.text(DIFFERENT), "0");
    assert_eq!(types(&mut session, "email"), "encrypted_text - -");
    session.run(
        "ALTER TABLE t ALTER COLUMN email TYPE varchar(50) USING email::varchar, ALTER COLUMN body TYPE bytea",
    );
    assert_eq!(session.text(DIFFERENT), "0");
    assert_eq!(types(&mut session, "email"), "character varying - -");
    assert_eq!(types(&mut session, "body"), "bytea - -");
}

// Subscribers

/// A subscriber has the new column first, and exchanges the names when the publisher has. Its
/// subscription stops in between, and nothing is stored in a column of the other kind.
#[test]
fn a_subscriber_follows() {
    let Some(builder) = builder("a_subscriber_follows") else { return };
    let cluster = builder.setting("wal_level", "logical").start();
    create_extension(&cluster, DATABASE);
    let mut publisher = connect(&cluster);
    publisher.run(
        "SELECT enc_create_key('k');
         CREATE TABLE t (id bigint PRIMARY KEY, email text NOT NULL);
         INSERT INTO t SELECT g, 'old' || g FROM generate_series(1, 500) g;
         CREATE PUBLICATION everything FOR TABLE t",
    );
    let keys = publisher.text("SELECT enc_export_keys()");
    cluster.createdb("subscriber", "UTF8");
    create_extension(&cluster, "subscriber");
    let mut subscriber = cluster.connect(SUPERUSER, "subscriber");
    subscriber.execute("SELECT enc_import_keys($1::text::jsonb)", &[&keys]).unwrap();
    subscriber.run("CREATE TABLE t (id bigint PRIMARY KEY, email text NOT NULL, email_encrypted encrypted_text('k'))");
    // Within one cluster the slot must be there before.
    publisher.run("SELECT pg_create_logical_replication_slot('s', 'pgoutput')");
    let connection = format!(
        "host={} port={} user={SUPERUSER} dbname={DATABASE}",
        cluster.socket_directory().display(),
        cluster.port()
    );
    subscriber.run(&format!(
        "CREATE SUBSCRIPTION s CONNECTION '{connection}' PUBLICATION everything WITH (create_slot = false)"
    ));
    let all = |column: &str| format!("SELECT count(*)::text FROM t WHERE {column} IS NOT NULL");
    eventually(&mut subscriber, &all("email"), "500");

    let execute = "CALL enc_encrypt_column('t', 'email', 'k', 'execute', accept => 'published', \
                   indexes => 'concurrently')";
    publisher.run("CREATE INDEX t_email ON t (email)");
    publisher.run(execute);
    assert_eq!(phase(&mut publisher, "email"), "verified");
    publisher.run("INSERT INTO t VALUES (501, 'during')");
    // The rows that were filled in came as changes.
    eventually(&mut subscriber, &all("email_encrypted"), "501");
    assert_eq!(
        subscriber.text("SELECT count(*)::text FROM t WHERE email_encrypted = email"),
        "501"
    );

    publisher.run(&execute.replace("concurrently", "inline"));
    assert_eq!(types(&mut publisher, "email"), "encrypted_text - text");
    publisher.run("INSERT INTO t (id, email) VALUES (502, 'after'); UPDATE t SET email = 'changed' WHERE id = 1");
    let stopped = "missing replicated column: \"email_plaintext\"";
    let started = Instant::now();
    while !cluster.log().contains(stopped) {
        assert!(started.elapsed() < Duration::from_secs(60), "the subscription goes on");
        thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(subscriber.text("SELECT count(*)::text FROM t WHERE email LIKE 'enc:%'"), "0");
    subscriber.run(
        "BEGIN;
         ALTER TABLE t RENAME email TO email_plaintext;
         ALTER TABLE t RENAME email_encrypted TO email;
         COMMIT",
    );
    let both = "SELECT string_agg(email::text || ' ' || email_plaintext, ', ' ORDER BY id) FROM t
                 WHERE id IN (1, 501, 502)";
    eventually(&mut subscriber, both, "changed changed, during during, after after");

    publisher.run(&encrypt("email", "finish"));
    publisher.run("INSERT INTO t (id, email) VALUES (503, 'at last')");
    // A column that comes no more is left to its default, and may be dropped.
    subscriber.run("ALTER TABLE t DROP email_plaintext");
    eventually(&mut subscriber, "SELECT email::text FROM t WHERE id = 503", "at last");
    assert_eq!(subscriber.text(&all("email")), "503");
    subscriber.run("ALTER SUBSCRIPTION s DISABLE; ALTER SUBSCRIPTION s SET (slot_name = NONE); DROP SUBSCRIPTION s");
}

/// Waits until a query gives this answer.
#[track_caller]
fn eventually(session: &mut Client, query: &str, answer: &str) {
    let started = Instant::now();
    loop {
        let found = session.texts(query);
        if found == [Some(answer.to_owned())] {
            return;
        }
        assert!(started.elapsed() < Duration::from_secs(60), "{query}: {found:?}");
        thread::sleep(Duration::from_millis(50));
    }
}
