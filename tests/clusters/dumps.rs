//! pg_dump writes ciphertext, whatever it is told, and what it wrote is restored without a key.

#![expect(clippy::unwrap_used, reason = "a test fails by a panic")]

use std::fs;
use std::path::{Path, PathBuf};

use cluster_tests::places::{self, ROWS, SECRETS};
use cluster_tests::secrets::Secrets;
use cluster_tests::{Session, builder_on, connect, share_keys, start_with};
use harness::cluster::{Cluster, SUPERUSER};

/// A cluster with the database of [`places`], and the plaintexts that are in it.
struct Original {
    cluster: Cluster,
    secrets: Secrets,
}

impl Original {
    /// What can be restored without a key.
    fn start(test: &str, major: u16) -> Option<Self> {
        let cluster = start_with(builder_on(major, test)?, test)?;
        let secrets = Secrets::new(SECRETS, 11);
        places::make(&mut connect(&cluster), &secrets);
        Some(Self { cluster, secrets })
    }

    fn add_computed(&self) {
        places::add_computed(&mut connect(&self.cluster), &self.secrets);
    }

    /// Makes a dump as a role and with these options, and looks through it.
    #[track_caller]
    fn dump(&self, role: &str, name: &str, options: &[&str]) -> PathBuf {
        let target = self.cluster.directory().join(name);
        let output = self
            .cluster
            .command("pg_dump")
            .args(["--username", role, "--compress=0", "--file"])
            .arg(&target)
            .args(options)
            .output()
            .unwrap();
        assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
        self.search(name, &target);
        target
    }

    /// Expects none of the plaintexts, and finds those of an unencrypted column.
    #[track_caller]
    fn search(&self, name: &str, target: &Path) {
        let bytes = contents(target);
        self.secrets.expect_none_in(name, &bytes);
        assert!(places::controls().count_in(&bytes) >= 1, "{name}: the search finds nothing");
    }
}

/// The contents of a file, or of all files in a folder.
fn contents(path: &Path) -> Vec<u8> {
    if !path.is_dir() {
        return fs::read(path).unwrap();
    }
    let files = fs::read_dir(path).unwrap();
    files.flat_map(|file| fs::read(file.unwrap().path()).unwrap()).collect()
}

/// Runs one of PostgreSQL's programs, which must succeed. It may warn of values that it could not open.
#[track_caller]
fn run(cluster: &Cluster, program: &str, arguments: &[&str]) {
    let output = cluster.command(program).args(arguments).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && !said.contains("ERROR"), "{program} {arguments:?}: {said}");
}

/// Restores a dump into a new database.
#[track_caller]
fn restore(cluster: &Cluster, database: &str, dump: &Path) {
    run(cluster, "createdb", &["--template=template0", database]);
    let dump = dump.to_str().unwrap();
    let is_script = fs::read(dump).is_ok_and(|bytes| bytes.starts_with(b"--"));
    if is_script {
        let options = ["--no-psqlrc", "--quiet", "--output=/dev/null", "--set=ON_ERROR_STOP=1"];
        run(cluster, "psql", &[&options[..], &["--dbname", database, "--file", dump]].concat());
    } else {
        let jobs = if dump.ends_with("tar") { "--jobs=1" } else { "--jobs=4" };
        run(cluster, "pg_restore", &["--exit-on-error", jobs, "--dbname", database, dump]);
    }
}

/// Restores a dump into a new database, with keys: the catalog first, since rows that are computed with may
/// come at the same time.
#[track_caller]
fn restore_with_keys(cluster: &Cluster, database: &str, dump: &Path) {
    let text = dump.to_str().unwrap();
    run(cluster, "createdb", &["--template=template0", database]);
    for options in [
        &["--section=pre-data"][..],
        &["--data-only", "--schema=encryption"],
        &["--section=data", "--exclude-schema=encryption", "--jobs=4"],
        &["--section=post-data", "--jobs=4"],
    ] {
        let arguments = [&["--exit-on-error", "--dbname", database], options, &[text]].concat();
        run(cluster, "pg_restore", &arguments);
    }
}

/// An empty cluster without a provider.
fn keyless(major: u16) -> Cluster {
    Cluster::builder(major).port(5433).start()
}

fn every_format(test: &str, major: u16) {
    let Some(original) = Original::start(test, major) else { return };
    let formats: &[(&str, &[&str])] = &[
        ("plain", &[]),
        ("custom", &["--format=custom"]),
        ("directory", &["--format=directory", "--jobs=4"]),
        ("tar", &["--format=tar"]),
        ("inserts", &["--inserts"]),
        ("column_inserts", &["--column-inserts", "--rows-per-insert=100"]),
    ];
    let other = keyless(major);
    for (name, options) in formats {
        let dump = original.dump(SUPERUSER, name, options);
        restore(&other, name, &dump);
    }
    let mut session = connect(&original.cluster);
    let (stored, readable) = (places::stored(&mut session), places::readable(&mut session));
    // The very same ciphertexts, where no key can be had.
    for (name, _) in formats {
        let mut restored = other.connect(SUPERUSER, name);
        places::expect_same(name, &places::stored(&mut restored), &stored);
        restored.fails("SELECT mail FROM person", "KE074");
    }
    share_keys(&other, &original.cluster);
    for (name, _) in formats {
        let mut restored = other.connect(SUPERUSER, name);
        places::expect_same(name, &places::readable(&mut restored), &readable);
        let mut named = other.connect(SUPERUSER, name);
        named.run("INSERT INTO person (id, mail) VALUES (-2, 'new')");
    }
    // Dumped again, it is the same script but for what differs in every script.
    let script = |path: &Path| {
        let text = fs::read_to_string(path).unwrap();
        let lines = text
            .lines()
            .filter(|line| !line.starts_with("\\restrict") && !line.starts_with("\\unrestrict"));
        lines.map(str::to_owned).collect::<Vec<_>>()
    };
    let first = original.dump(SUPERUSER, "first", &["--exclude-schema=encryption"]);
    let again = original.cluster.directory().join("again");
    other.connect(SUPERUSER, "plain").run("DELETE FROM person WHERE id = -2");
    let output = other
        .command("pg_dump")
        .args(["--exclude-schema=encryption", "--dbname=plain"])
        .stdout(fs::File::create(&again).unwrap())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(script(&first) == script(&again), "the dump of the restored database differs");
}

#[test]
fn every_format_has_ciphertext_and_is_restored_without_a_key() {
    every_format("every_format_has_ciphertext_and_is_restored_without_a_key", 15);
}

#[test]
fn every_format_has_ciphertext_and_is_restored_without_a_key_18() {
    every_format("every_format_has_ciphertext_and_is_restored_without_a_key_18", 18);
}

fn computed(test: &str, major: u16) {
    let Some(original) = Original::start(test, major) else { return };
    original.add_computed();
    let mut session = connect(&original.cluster);
    let readable = places::readable(&mut session);
    let other = keyless(major);
    share_keys(&other, &original.cluster);
    for (name, options) in [("plain", &[][..]), ("custom", &["--format=custom"])] {
        let dump = original.dump(SUPERUSER, name, options);
        // And in another database of the same server.
        for cluster in [&other, &original.cluster] {
            match name {
                "plain" => restore(cluster, name, &dump),
                _ => restore_with_keys(cluster, name, &dump),
            }
        }
        for cluster in [&other, &original.cluster] {
            let mut restored = cluster.connect(SUPERUSER, name);
            places::expect_same(name, &places::readable(&mut restored), &readable);
            restored.run("SET enable_seqscan = off");
            let find =
                format!("SELECT id FROM ONLY person WHERE mail = '{}'", original.secrets.get(123));
            assert_eq!(restored.text(&find), "123");
            let plan = restored.texts(&format!("EXPLAIN {find}"));
            assert!(plan.into_iter().flatten().any(|line| line.contains("person_mail")));
            restored.fails("INSERT INTO login (mail) VALUES ('nobody')", "23503");
        }
    }
}

/// Indexes, constraints and generated columns are computed when they are restored, with keys.
#[test]
fn what_is_computed_is_computed_again() {
    computed("what_is_computed_is_computed_again", 15);
}

#[test]
fn what_is_computed_is_computed_again_18() {
    computed("what_is_computed_is_computed_again_18", 18);
}

/// The order in which a dump is restored whose parts need keys: docs/operations/dumps-and-restore.md.
#[test]
fn a_dump_is_restored_in_sections() {
    let test = "a_dump_is_restored_in_sections";
    let Some(original) = Original::start(test, 15) else { return };
    original.add_computed();
    let mut session = connect(&original.cluster);
    // Tables in a schema whose name comes before "encryption" are restored before the catalog of keys.
    session.run(
        "CREATE SCHEMA a; CREATE TABLE a.early (id integer, v encrypted_text('user_pii'),
             d bytea GENERATED ALWAYS AS (enc_digest(v)) STORED, CHECK (v <> 'nobody'));
         INSERT INTO a.early VALUES (1, 'early')",
    );
    let readable = places::readable(&mut session);
    let dump = original.dump(SUPERUSER, "custom", &["--format=custom"]);
    let dump = dump.to_str().unwrap();
    let other = keyless(15);
    let restore = |options: &[&str]| {
        run(&other, "pg_restore", &[&["--exit-on-error", "--dbname=db"], options, &[dump]].concat())
    };
    run(&other, "createdb", &["--template=template0", "db"]);
    // Definitions and the catalog need no key.
    restore(&["--section=pre-data"]);
    restore(&["--data-only", "--schema=encryption"]);
    let output = other
        .command("pg_restore")
        .args(["--exit-on-error", "--dbname=db", "--section=data", "--schema=a", dump])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("keyring file"), "{said}");
    share_keys(&other, &original.cluster);
    restore(&["--section=data", "--exclude-schema=encryption", "--jobs=2"]);
    restore(&["--section=post-data", "--jobs=2"]);
    let mut restored = other.connect(SUPERUSER, "db");
    places::expect_same("readable", &places::readable(&mut restored), &readable);
    assert_eq!(restored.text("SELECT v FROM a.early WHERE d = enc_digest('early')"), "early");
}

#[test]
fn a_dump_is_restored_twice() {
    let test = "a_dump_is_restored_twice";
    let Some(original) = Original::start(test, 15) else { return };
    original.add_computed();
    let mut session = connect(&original.cluster);
    let readable = places::readable(&mut session);
    let dump = original.dump(SUPERUSER, "custom", &["--format=custom"]);
    let dump = dump.to_str().unwrap();
    run(&original.cluster, "createdb", &["--template=template0", "db"]);
    let clean = ["--exit-on-error", "--clean", "--if-exists", "--dbname=db", dump];
    for _ in 0..2 {
        run(&original.cluster, "pg_restore", &clean);
        let mut restored = original.cluster.connect(SUPERUSER, "db");
        places::expect_same("readable", &places::readable(&mut restored), &readable);
    }
    // Only the catalog, into a database that has it already, and has gone on.
    let mut restored = original.cluster.connect(SUPERUSER, "db");
    restored.run("SELECT enc_rotate_key('user_pii')");
    let catalog = ["--exit-on-error", "--data-only", "--schema=encryption", "--dbname=db", dump];
    run(&original.cluster, "pg_restore", &catalog);
    let active = "SELECT active_version FROM enc_keys WHERE name = 'user_pii'";
    assert_eq!(restored.text(active), "2");
}

/// A table goes to a database that knows nothing of its keys; they follow, or don't.
#[test]
fn a_table_is_restored_elsewhere() {
    let test = "a_table_is_restored_elsewhere";
    let Some(original) = Original::start(test, 15) else { return };
    let mut session = connect(&original.cluster);
    session.run(
        "CREATE TABLE single (id integer, mail encrypted_text('user_pii'), photo encrypted_bytea('medical'));
         INSERT INTO single SELECT id, mail, photo FROM ONLY person",
    );
    let keys = session.text("SELECT enc_export_keys()");
    const ROWS_AS_STORED: &str = "SELECT concat_ws(' ', id, mail::bytea, photo::encrypted_text::bytea) FROM single ORDER BY id";
    let ciphertexts = |session: &mut postgres::Client| {
        session.run(&format!("BEGIN; {}", cluster_tests::RAW_CASTS));
        let rows = session.texts(ROWS_AS_STORED);
        session.run("ROLLBACK");
        rows
    };
    let expected = ciphertexts(&mut session);
    let plaintexts = session.texts("SELECT s::text FROM single s ORDER BY id");
    for (name, options) in [("single_copy", &[][..]), ("single_inserts", &["--inserts"])] {
        let target = original.cluster.directory().join(name);
        let output = original
            .cluster
            .command("pg_dump")
            .args(["--table=single", "--file"])
            .arg(&target)
            .args(options)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        original.secrets.expect_none_in(name, &contents(&target));
        run(&original.cluster, "createdb", &["--template=template0", name]);
        let mut elsewhere = original.cluster.connect(SUPERUSER, name);
        elsewhere.run("CREATE EXTENSION encryption_ext");
        let script = target.to_str().unwrap();
        run(
            &original.cluster,
            "psql",
            &[
                "--quiet",
                "--output=/dev/null",
                "--set=ON_ERROR_STOP=1",
                "--dbname",
                name,
                "--file",
                script,
            ],
        );
        assert_eq!(ciphertexts(&mut elsewhere), expected, "{name}");
        elsewhere.fails("SELECT mail FROM single", "KE003");
        let modifier =
            "SELECT format_type(atttypid, atttypmod) LIKE 'encrypted_text(''#%' FROM pg_attribute
                         WHERE attrelid = 'single'::regclass AND attname = 'mail'";
        assert_eq!(elsewhere.text(modifier), "t");
        elsewhere.execute("SELECT enc_import_keys($1::text::jsonb)", &[&keys]).unwrap();
        assert_eq!(elsewhere.texts("SELECT s::text FROM single s ORDER BY id"), plaintexts);
    }
}

/// A role that makes backups reads everything and can decrypt nothing.
#[test]
fn a_backup_role_dumps_without_a_right_on_keys() {
    let test = "a_backup_role_dumps_without_a_right_on_keys";
    let Some(original) = Original::start(test, 15) else { return };
    original.add_computed();
    let mut session = connect(&original.cluster);
    session.run(
        "CREATE ROLE backup LOGIN BYPASSRLS IN ROLE pg_read_all_data;
         ALTER ROLE backup SET encryption_ext.on_denied = 'armor'",
    );
    let readable = places::readable(&mut session);
    // Neither the name of the program nor its settings matter to it.
    let dump = original.dump("backup", "custom", &["--format=custom"]);
    restore_with_keys(&original.cluster, "by_backup", &dump);
    let mut restored = original.cluster.connect(SUPERUSER, "by_backup");
    places::expect_same("readable", &places::readable(&mut restored), &readable);
    let by_psql = original.cluster.psql(
        "backup",
        "postgres",
        &["--command=COPY person (mail, list, contact, plain) TO STDOUT"],
    );
    assert!(by_psql.status.success(), "{}", String::from_utf8_lossy(&by_psql.stderr));
    original.secrets.expect_none_in("COPY", &by_psql.stdout);
    assert_eq!(places::controls().count_in(&by_psql.stdout), ROWS);
    // Plaintexts of constants in definitions are under the database key, which everyone may use: it
    // protects them on disk and in dumps, and from nobody who has a session.
    let shown = original.cluster.psql(
        "backup",
        "postgres",
        &["--command=SELECT definition FROM pg_views WHERE viewname = 'vip'"],
    );
    assert!(original.secrets.count_in(&shown.stdout) > 0);
}

/// Whatever else pg_dump is called, as pgBackRest and others do.
#[test]
fn a_dump_under_another_name_has_ciphertext() {
    let test = "a_dump_under_another_name_has_ciphertext";
    let Some(original) = Original::start(test, 15) else { return };
    for name in ["nightly backup", ""] {
        let output = original.cluster.command("pg_dump").env("PGAPPNAME", name).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        original.secrets.expect_none_in(name, &output.stdout);
        assert_eq!(places::controls().count_in(&output.stdout), ROWS);
    }
}

fn whole_cluster(test: &str, major: u16) {
    let Some(original) = Original::start(test, major) else { return };
    let mut session = connect(&original.cluster);
    session.run("CREATE ROLE clerk LOGIN; GRANT SELECT ON person TO clerk; SELECT enc_grant('user_pii', 'clerk', 'decrypt')");
    let (stored, readable) = (places::stored(&mut session), places::readable(&mut session));
    let script = original.cluster.directory().join("everything");
    let output =
        original.cluster.command("pg_dumpall").arg("--file").arg(&script).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    original.search("pg_dumpall", &script);

    let other = keyless(major);
    let script = script.to_str().unwrap();
    let output =
        other.psql(SUPERUSER, "postgres", &["--quiet", "--output=/dev/null", "--file", script]);
    let said = String::from_utf8_lossy(&output.stderr);
    let errors: Vec<_> = said.lines().filter(|line| line.contains("ERROR")).collect();
    assert_eq!(errors.len(), 1, "{said}");
    assert!(errors[0].contains("role \"postgres\" already exists"), "{said}");
    places::expect_same("stored", &places::stored(&mut connect(&other)), &stored);
    share_keys(&other, &original.cluster);
    places::expect_same("readable", &places::readable(&mut connect(&other)), &readable);
    let mut clerk = other.connect("clerk", "postgres");
    assert_eq!(clerk.text("SELECT mail FROM ONLY person WHERE id = 7"), original.secrets.get(7));
    clerk.fails("SELECT photo FROM person", "KE020");
}

#[test]
fn a_whole_cluster_is_dumped_and_restored() {
    whole_cluster("a_whole_cluster_is_dumped_and_restored", 15);
}

#[test]
fn a_whole_cluster_is_dumped_and_restored_18() {
    whole_cluster("a_whole_cluster_is_dumped_and_restored_18", 18);
}
