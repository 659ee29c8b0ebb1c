//! What sessions show and take: plaintext, and ciphertext as text (armor) in dumps and where it is asked
//! for.

use std::io::{Read, Write};
use std::thread;
use std::time::{Duration, Instant};

use cluster_tests::{
    Binary, DATABASE, Session, builder, connect, contains, create_extension, expect_error, seal,
    start,
};
use envelope::{PlaintextKind, armor};
use harness::cluster::{Cluster, SUPERUSER};
use postgres::Client;

/// A dump: its file, what is in pg_dump's environment, and its arguments.
type Dump<'a> = (&'a str, &'a [(&'a str, &'a str)], &'a [&'a str]);

/// A table with values under two versions of its key, and roles that may do different things.
const SETUP: &str = r"
    SELECT enc_create_key('k'), enc_create_key('other');
    CREATE TABLE t (
        id integer PRIMARY KEY,
        v  encrypted_text('k') DEFAULT 'a secret default',
        b  encrypted_bytea('k'),
        l  encrypted_text('k')[]
    );
    INSERT INTO t VALUES (1, 'a secret of old', '\x736563726574', '{a secret,another secret}');
    SELECT enc_rotate_key('k');
    INSERT INTO t VALUES (2, 'a new secret', NULL, NULL), (3, DEFAULT, '', '{}');
    CREATE VIEW newest AS SELECT id FROM t WHERE v = 'a new secret';
    CREATE ROLE reader LOGIN;
    CREATE ROLE writer LOGIN;
    CREATE ROLE backup LOGIN IN ROLE pg_read_all_data;
    ALTER ROLE backup SET encryption_ext.on_denied = armor;
    SELECT enc_grant('k', 'reader', 'encrypt, decrypt'), enc_grant('k', 'writer', 'encrypt');
    GRANT SELECT, INSERT, UPDATE, DELETE ON t TO reader, writer;";

fn cluster(test: &str) -> Option<Cluster> {
    let cluster = start(test)?;
    connect(&cluster).run(SETUP);
    Some(cluster)
}

/// The armor of a stored value.
fn armor_of(session: &mut Client, value: &str) -> String {
    let stored: Vec<u8> = session.value(value);
    armor::encode(&stored)
}

fn run(cluster: &Cluster, program: &str, environment: &[(&str, &str)], arguments: &[&str]) {
    let mut command = cluster.command(program);
    let output = command
        .envs(environment.iter().copied())
        .args(arguments)
        .output()
        .expect("it is installed");
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
}

/// What is in the table, as ciphertext.
fn ciphertexts(session: &mut Client) -> Vec<Option<String>> {
    session.texts(
        "SELECT concat_ws(' ', id, v::bytea, b::encrypted_text::bytea,
                          l[1]::bytea, l[2]::bytea) FROM t ORDER BY id",
    )
}

#[test]
fn a_session_shows_armor_when_it_is_asked_for_or_is_a_dump() {
    let Some(cluster) = cluster("a_session_shows_armor_when_it_is_asked_for_or_is_a_dump") else {
        return;
    };
    let mut session = connect(&cluster);
    let v = armor_of(&mut session, "SELECT v::bytea FROM t WHERE id = 1");
    let b = armor_of(&mut session, "SELECT b::encrypted_text::bytea FROM t WHERE id = 1");
    let select = session.prepare("SELECT v, b FROM public.t WHERE id = 1").unwrap();
    // In text, in binary, by COPY, within arrays and JSON.
    let mut shown = |settings: &str| {
        session.run(&format!("BEGIN; {settings}"));
        let row = session.query_one(&select, &[]).unwrap();
        let mut copied = Vec::new();
        session
            .copy_out("COPY (SELECT v, b FROM public.t WHERE id = 1) TO STDOUT")
            .unwrap()
            .read_to_end(&mut copied)
            .unwrap();
        let texts = [
            session.text("SELECT v FROM public.t WHERE id = 1"),
            String::from_utf8(row.get::<_, Binary>(0).0).unwrap(),
            session.text("SELECT to_jsonb(t) ->> 'v' FROM public.t WHERE id = 1"),
            session.text("SELECT b FROM public.t WHERE id = 1"),
            String::from_utf8(row.get::<_, Binary>(1).0).unwrap(),
            String::from_utf8(copied).unwrap(),
        ];
        session.run("ROLLBACK");
        texts
    };
    let plain = [
        "a secret of old",
        "a secret of old",
        "a secret of old",
        "\\x736563726574",
        "secret",
        "a secret of old\t\\\\x736563726574\n",
    ];
    let copied = format!("{v}\t{b}\n");
    let armored = [&v[..], &v, &v, &b, &b, &copied];
    const EMPTY_PATH: &str = "SELECT set_config('search_path', '', true)";
    const NO_SYNCHRONIZATION: &str = "SET LOCAL synchronize_seqscans = off";
    let dump = format!("{EMPTY_PATH}; {NO_SYNCHRONIZATION}");
    for (settings, expected) in [
        (String::new(), plain),
        ("SET LOCAL encryption_ext.output = armor".to_owned(), armored),
        ("SET LOCAL application_name = 'pg_dump'".to_owned(), armored),
        ("SET LOCAL application_name = 'pg_dumpall'".to_owned(), armored),
        ("SET LOCAL application_name = 'my pg_dump'".to_owned(), plain),
        ("SET LOCAL application_name = 'pg_dum'".to_owned(), plain),
        (format!("{dump}; SET LOCAL row_security = off"), armored),
        (format!("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY; {dump}"), armored),
        // What of it other sessions may have.
        (format!("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ; {dump}"), plain),
        (format!("SET TRANSACTION READ ONLY; {dump}"), plain),
        (format!("{EMPTY_PATH}; SET LOCAL row_security = off"), plain),
        (
            format!(
                "SET LOCAL search_path = ''; {NO_SYNCHRONIZATION}; SET LOCAL row_security = off"
            ),
            plain,
        ),
        (format!("{NO_SYNCHRONIZATION}; SET LOCAL row_security = off"), plain),
    ] {
        assert_eq!(shown(&settings), expected, "{settings}");
    }
    session.fails("SET encryption_ext.output = ciphertext", "22023");
    // Everything but output means what it always does.
    session.run("SET encryption_ext.output = armor");
    let row =
        session.text("SELECT concat(v::text, ' ', v = 'a secret of old') FROM t WHERE id = 1");
    assert_eq!(row, "a secret of old t");
    // A replication connection can run queries too.
    let mut replication = cluster.command("psql");
    let output = replication
        .args(["--no-psqlrc", "-At", "-c", "SELECT v FROM t WHERE id = 1"])
        .args(["-d", "replication=database dbname=postgres"])
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), v);
}

#[test]
fn a_function_with_its_owner_s_rights_sees_what_its_owner_expects() {
    let Some(cluster) = cluster("a_function_with_its_owner_s_rights_sees_what_its_owner_expects")
    else {
        return;
    };
    let mut session = connect(&cluster);
    let armored = armor_of(&mut session, "SELECT v::bytea FROM t WHERE id = 2");
    session.run(
        "CREATE FUNCTION is_new(wanted integer) RETURNS boolean LANGUAGE sql SECURITY DEFINER
             AS $$ SELECT to_jsonb(t) ->> 'v' = 'a new secret' FROM t WHERE id = wanted $$;
         CREATE FUNCTION add(number integer, plain text) RETURNS void LANGUAGE plpgsql SECURITY DEFINER
             AS $$ BEGIN EXECUTE format('INSERT INTO t (id, v) VALUES (%s, %L)', number, plain); END $$;
         REVOKE ALL ON t FROM writer;",
    );
    let mut writer = cluster.connect("writer", DATABASE);
    for settings in [
        "SET application_name = 'pg_dump'",
        "SET encryption_ext.output = armor",
        "SET synchronize_seqscans = off; SET row_security = off",
    ] {
        writer.run(settings);
        assert_eq!(writer.text("SELECT is_new(2)"), "t", "{settings}");
    }
    // Its owner is a superuser, from whom armor is taken: not if somebody else has chosen the settings.
    for settings in ["SET check_function_bodies = off", "SET encryption_ext.input = auto"] {
        writer.run(settings);
        writer.fails(&format!("SELECT add(9, '{armored}')"), "KE033");
    }
    writer.run("SELECT add(9, 'a plaintext')");
    // The same settings do it where the superuser has chosen them.
    session.run(&format!(
        "SET encryption_ext.input = auto; INSERT INTO t (id, v) VALUES (10, '{armored}')"
    ));
    assert_eq!(session.text("SELECT v FROM t WHERE id = 10"), "a new secret");
}

#[test]
fn a_role_that_may_not_decrypt_is_shown_armor_if_it_asks_for_that() {
    let Some(cluster) = cluster("a_role_that_may_not_decrypt_is_shown_armor_if_it_asks_for_that")
    else {
        return;
    };
    let armored = armor_of(&mut connect(&cluster), "SELECT v::bytea FROM t WHERE id = 1");
    let mut backup = cluster.connect("backup", DATABASE);
    assert_eq!(backup.text("SELECT v FROM t WHERE id = 1"), armored);
    // Only what is shown: not what gives a plaintext.
    backup.fails("SELECT v::text FROM t", "KE020");
    backup.fails("SELECT id FROM t ORDER BY v", "KE020");
    backup.fails("SELECT id FROM t WHERE v = 'a new secret'", "KE020");
    backup.run("SET encryption_ext.on_denied = error");
    backup.fails("SELECT v FROM t", "KE020");
    // Who may decrypt isn't denied.
    let mut reader = cluster.connect("reader", DATABASE);
    reader.run("SET encryption_ext.on_denied = armor");
    assert_eq!(reader.text("SELECT v FROM t WHERE id = 1"), "a secret of old");
    connect(&cluster).run("SELECT enc_revoke('k', 'reader', 'decrypt')");
    assert_eq!(reader.text("SELECT v FROM t WHERE id = 1"), armored);
}

#[test]
fn armor_is_taken_from_those_who_may_decrypt_it() {
    let Some(cluster) = cluster("armor_is_taken_from_those_who_may_decrypt_it") else { return };
    let mut session = connect(&cluster);
    let new = armor_of(&mut session, "SELECT v::bytea FROM t WHERE id = 2");
    let old = armor_of(&mut session, "SELECT v::bytea FROM t WHERE id = 1");
    let bytes = armor_of(&mut session, "SELECT b::encrypted_text::bytea FROM t WHERE id = 1");
    let mut altered: Vec<u8> = session.value("SELECT v::bytea FROM t WHERE id = 2");
    *altered.last_mut().unwrap() ^= 1;
    let altered = armor::encode(&altered);
    session.run("CREATE TABLE u (v encrypted_text('other')); GRANT INSERT, SELECT ON u TO reader");

    let mut reader = cluster.connect("reader", DATABASE);
    let mut writer = cluster.connect("writer", DATABASE);
    for settings in
        ["SET encryption_ext.input = auto", "RESET ALL; SET check_function_bodies = off"]
    {
        for session in [&mut session, &mut reader] {
            session.run(settings);
            // As literal, parameter and by COPY; a value of an old version gets under the active one.
            session.run(&format!("INSERT INTO t (id, v, b) VALUES (4, '{new}', '{bytes}')"));
            let insert = session.prepare("INSERT INTO t (id, v, b) VALUES (5, $1, $2)").unwrap();
            let parameters = (Binary(old.clone().into_bytes()), Binary(bytes.clone().into_bytes()));
            session.execute(&insert, &[&parameters.0, &parameters.1]).unwrap();
            let mut copy = session.copy_in("COPY t (id, v, b, l) FROM STDIN").unwrap();
            copy.write_all(format!("6\t{old}\t{bytes}\t{{{new},{old}}}\n").as_bytes()).unwrap();
            copy.finish().unwrap();
            let rows = session.texts(
                "SELECT concat_ws(' ', v::text, enc_key_version(v), b::bytea, enc_key_version(b),
                                  l[2]::text, enc_key_version(l[2]))
                   FROM t WHERE id > 3 ORDER BY id",
            );
            let expected = [
                "a new secret 2 \\x736563726574 2",
                "a secret of old 2 \\x736563726574 2",
                "a secret of old 2 \\x736563726574 2 a secret of old 2",
            ];
            assert_eq!(rows, expected.map(|row| Some(row.to_owned())));
            session.run("DELETE FROM t WHERE id > 3");
            // A plaintext stays one.
            session.run("INSERT INTO t (id, v) VALUES (4, 'enc:1:AAAA')");
            assert_eq!(session.text("DELETE FROM t WHERE id = 4 RETURNING v"), "enc:1:AAAA");

            // What isn't authentic, or of the other type.
            let insert = |value: &str| format!("INSERT INTO t (id, v) VALUES (4, '{value}')");
            session.fails(&insert(&altered), "KE045");
            session.fails(&insert(&bytes), "KE043");
            // Casts from base types take plaintexts alone.
            session.fails(&format!("INSERT INTO t (id, v) VALUES (4, text '{new}')"), "KE033");
        }
        // Into a column of another key it is encrypted again, by those who may.
        let other = format!("INSERT INTO u VALUES ('{new}')");
        session.run(&other);
        assert_eq!(
            session.text("DELETE FROM u RETURNING concat(v, ' ', enc_key_name(v))"),
            "a new secret other"
        );
        reader.fails(&other, "KE020");
        let mut copy = reader.copy_in("COPY u FROM STDIN").unwrap();
        copy.write_all(format!("{new}\n").as_bytes()).unwrap();
        let _ = expect_error(&copy.finish().unwrap_err(), "KE020");

        // Who may not decrypt could plant what somebody else then reads to him.
        writer.run(settings);
        let error = writer.fails(&format!("INSERT INTO t (id, v) VALUES (4, '{new}')"), "KE033");
        assert!(error.hint().is_some_and(|hint| hint.contains("enc_grant")), "{error:?}");
        let mut copy = writer.copy_in("COPY t (id, v) FROM STDIN").unwrap();
        copy.write_all(format!("4\t{new}\n").as_bytes()).unwrap();
        let _ = expect_error(&copy.finish().unwrap_err(), "KE033");
        writer.run("INSERT INTO t (id, v) VALUES (4, 'a plaintext'); DELETE FROM t WHERE id = 4");
    }
    // Of a key that nobody has here only a superuser restores values, and only from a dump.
    let foreign = seal([7; 32], "foreign", 1, PlaintextKind::Text, b"secret");
    let insert = format!("INSERT INTO t (id, v) VALUES (4, '{}')", armor::encode(&foreign));
    reader.fails(&insert, "KE033");
    session.fails(&insert, "KE003");
    session.run("RESET ALL; SET encryption_ext.input = auto");
    session.fails(&insert, "KE003");
    session.run("RESET ALL");
    session.fails(&insert, "KE033");
}

#[test]
fn a_dump_carries_ciphertext_and_needs_no_key_to_be_restored() {
    let test = "a_dump_carries_ciphertext_and_needs_no_key_to_be_restored";
    let Some(cluster) = cluster(test) else { return };
    let Some(target) = start(test) else { return };
    let expected = ciphertexts(&mut connect(&cluster));
    connect(&target).run("CREATE ROLE reader; CREATE ROLE writer; CREATE ROLE backup");

    // Both clusters have the same operating-system user.
    let path = |name: &str| cluster.directory().join(name).to_string_lossy().into_owned();
    let anonymous = &[("PGAPPNAME", "x")][..];
    let dumps: [Dump<'_>; 6] = [
        ("plain.sql", &[], &[]),
        ("inserts.sql", &[], &["--inserts", "--rows-per-insert=2"]),
        ("custom", &[], &["--format=custom", "--compress=0"]),
        ("anonymous.sql", anonymous, &[]),
        ("anonymous_rls.sql", anonymous, &["--enable-row-security"]),
        ("backup.sql", anonymous, &["--username=backup"]),
    ];
    for (n, (name, environment, arguments)) in dumps.into_iter().enumerate() {
        let arguments = [&["--file", name], arguments].concat();
        run(&cluster, "pg_dump", environment, &arguments);
        let dump = std::fs::read(path(name)).unwrap();
        assert!(contains(&dump, b"enc:1:"), "{name}");
        assert!(!contains(&dump, b"secret") && !contains(&dump, b"736563726574"), "{name}");

        let database = format!("restored{n}");
        run(&target, "createdb", &[], &["--template=template0", &database]);
        let file = path(name);
        match name {
            "custom" => run(&target, "pg_restore", &[], &["-e", "-d", &database, &file]),
            _ => run(
                &target,
                "psql",
                &[],
                &["-X", "-v", "ON_ERROR_STOP=1", "-d", &database, "-f", &file],
            ),
        };
        let mut restored = target.connect(SUPERUSER, &database);
        assert_eq!(ciphertexts(&mut restored), expected, "{name}");
        // There is no key here yet.
        restored.fails("SELECT v FROM t", "KE074");
    }

    // Nothing was lost: with the keys all of it can be read, the view's condition and the default too.
    let keyring = cluster_tests::keyring_file(&cluster).to_string_lossy().into_owned();
    target.configure("encryption_ext.keyring_file", &keyring);
    target.reload();
    for n in 0..dumps.len() {
        let mut restored = target.connect(SUPERUSER, &format!("restored{n}"));
        restored.run("INSERT INTO t (id) VALUES (4)");
        let rows = restored.texts("SELECT concat_ws(' ', v, l) FROM t ORDER BY id");
        let expected = [
            "a secret of old {\"a secret\",\"another secret\"}",
            "a new secret",
            "a secret default {}",
            "a secret default",
        ];
        assert_eq!(rows, expected.map(|row| Some(row.to_owned())));
        assert_eq!(restored.text("SELECT id FROM newest"), "2");
    }
}

#[test]
fn a_subscriber_takes_ciphertext_and_needs_no_key() {
    let test = "a_subscriber_takes_ciphertext_and_needs_no_key";
    let Some(publisher) = builder(test) else { return };
    let publisher = publisher.setting("wal_level", "logical").start();
    create_extension(&publisher, DATABASE);
    let mut source = connect(&publisher);
    source.run(SETUP);
    source.run("CREATE PUBLICATION everything FOR TABLE t");
    for binary in [false, true] {
        let Some(subscriber) = start(test) else { return };
        let mut target = connect(&subscriber);
        // The table is somebody's who has no privilege on the key. There is no key here, either.
        target.run(
            "CREATE ROLE owner; SET check_function_bodies = off;
             CREATE TABLE t (id integer PRIMARY KEY, v encrypted_text('k'), b encrypted_bytea('k'),
                             l encrypted_text('k')[]);
             ALTER TABLE t OWNER TO owner; RESET check_function_bodies;",
        );
        let (socket, port) = (publisher.socket_directory().display(), publisher.port());
        target.run(&format!(
            "CREATE SUBSCRIPTION s{binary} CONNECTION 'host={socket} port={port} user=postgres dbname=postgres'
                 PUBLICATION everything WITH (binary = {binary})"
        ));
        wait_for(&mut target, &ciphertexts(&mut source));
        // Changes, of which one has an old version's value in it.
        source.run(
            "BEGIN; INSERT INTO t (id, v) VALUES (7, 'a new secret');
             UPDATE t SET id = 8 WHERE id = 1; DELETE FROM t WHERE id = 7;
             INSERT INTO t (id, b) VALUES (9, '\\x736563726574'); COMMIT",
        );
        wait_for(&mut target, &ciphertexts(&mut source));
        source.run("UPDATE t SET id = 1 WHERE id = 8; DELETE FROM t WHERE id = 9");
        wait_for(&mut target, &ciphertexts(&mut source));
        // An ordinary session takes no armor all the same.
        let armored = armor_of(&mut source, "SELECT v::bytea FROM t WHERE id = 2");
        target.fails(&format!("INSERT INTO t (id, v) VALUES (20, '{armored}')"), "KE033");

        // With the keys here, what was stored can be read, and what isn't authentic is refused.
        let document: String = source.text("SELECT enc_export_keys()");
        target.run("CREATE ROLE reader; CREATE ROLE writer");
        target.run(&format!("SELECT enc_import_keys('{document}')"));
        let keyring = cluster_tests::keyring_file(&publisher).to_string_lossy().into_owned();
        subscriber.configure("encryption_ext.keyring_file", &keyring);
        subscriber.reload();
        let mut reader = connect(&subscriber);
        let rows = "SELECT concat_ws(' ', v, b, l) FROM t ORDER BY id";
        assert_eq!(reader.texts(rows), source.texts(rows));
        target.run(&format!("DROP SUBSCRIPTION s{binary}"));
    }
}

/// Waits until the subscriber's table has these ciphertexts.
fn wait_for(target: &mut Client, expected: &[Option<String>]) {
    let started = Instant::now();
    while ciphertexts(target) != expected {
        assert!(started.elapsed() < Duration::from_secs(60), "the subscriber doesn't follow");
        thread::sleep(Duration::from_millis(50));
    }
}
