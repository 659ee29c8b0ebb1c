//! The offline reader on real dumps, with the server stopped: what it writes, restored into a server
//! without the extension, is what was there.

#![expect(clippy::unwrap_used, reason = "a test fails by a panic")]

use std::fs::{self, Permissions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;

use cluster_tests::key_server::{ONE, READ_ONLY, Setup, TWO};
use cluster_tests::{DATABASE, MAJOR, Session, connect, keyring_file, start};
use harness::cluster::{Cluster, SUPERUSER, Shutdown};
use harness::openbao::OpenBao;
use postgres::Client;
use serde_json::json;

/// Tables of all shapes. (The key `k` exists.)
const TABLES: &str = r"
    CREATE TYPE person AS (name encrypted_text('k'), photo encrypted_bytea('k'), n integer);
    CREATE TYPE team AS (members encrypted_text('k')[], lead person);
    CREATE DOMAIN mail AS encrypted_text('k');
    CREATE TABLE shapes (
        id integer PRIMARY KEY,
        t encrypted_text('k') DEFAULT 'it''s a \default'
            CONSTRAINT t_is_allowed CHECK (t <> 'never'),
        b encrypted_bytea('k'),
        a encrypted_text('k')[],
        ba encrypted_bytea('k')[],
        p person,
        ps person[],
        g team,
        m mail,
        plain text);
    CREATE INDEX shapes_t ON shapes USING hash (t);
    CREATE UNIQUE INDEX shapes_digest ON shapes (enc_digest(t), id);
    CREATE VIEW seen AS SELECT id, t FROM shapes WHERE t = 'plain';
    CREATE TABLE digests (
        v encrypted_text('k'),
        d bytea GENERATED ALWAYS AS (enc_digest(v)) STORED NOT NULL);
    INSERT INTO digests VALUES ('one'), ('two');
    CREATE FUNCTION is_short(v encrypted_text) RETURNS boolean LANGUAGE sql
        BEGIN ATOMIC SELECT length(v) < 5; END;
    GRANT EXECUTE ON FUNCTION enc_create_key TO PUBLIC;";

/// Texts with all that an escape is made of.
const TEXTS: [&str; 18] = [
    "plain",
    "",
    " ",
    "NULL",
    "\\N",
    "\\.",
    "a\tb\nc\rd",
    "it's",
    "''",
    "\"q\"",
    "back\\slash",
    "\\\\",
    "{a,b}",
    "(a,b)",
    "[a,b)",
    "Zürich 漢字 🐘",
    "\u{b}\u{c}\u{8}\u{1}",
    "; -- $$ E'\\''",
];

/// What the tables of a database have, as text.
const CONTENTS: [&str; 3] = [
    "SELECT s::text FROM shapes s ORDER BY id",
    "SELECT id || t::text FROM seen",
    "SELECT v::text FROM digests ORDER BY 1",
];

#[test]
fn a_dump_with_a_keyring_file() {
    let Some(mut cluster) = start("a_dump_with_a_keyring_file") else { return };
    let mut session = connect(&cluster);
    session.run("SELECT enc_create_key('k')");
    let contents = fill(&mut session);
    let exported = session.text("SELECT enc_export_keys()");
    let dumps = [armored_dump(&cluster, &[]), armored_dump(&cluster, &["--inserts"])];
    drop(session);
    let folder = Folder::new();
    let keyring = folder.file("keyring.json", &fs::read(keyring_file(&cluster)).unwrap());
    cluster.stop(Shutdown::Fast);

    for dump in &dumps {
        let dump = folder.file("dump.sql", dump.as_bytes());
        let plain = folder.path("plain.sql");
        let options = ["--keyring", &keyring, "--without-extension", "--force", "--output", &plain];
        let output = read(&[&["dump", &dump][..], &options].concat(), "");
        let told = succeeded(&output);
        assert!(told.contains("left out: CREATE UNIQUE INDEX shapes_digest"), "{told}");
        assert!(told.contains("left out: CREATE CAST"), "{told}");
        assert!(!told.contains("check value") && !told.contains("error"), "{told}");
        assert_eq!(fs::metadata(&plain).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(restored(&fs::read_to_string(&plain).unwrap()), contents);

        let output = read(&["dump", &dump, "--keyring", &keyring, "--check"], "");
        succeeded(&output);
        let table = String::from_utf8(output.stdout).unwrap();
        assert!(
            table.lines().any(|line| line.starts_with("k ") && line.ends_with("verified")),
            "{table}"
        );
        assert!(!table.contains("enc:1:"));
    }

    // Through a pipe, where the catalog comes after what needs it, and with its export.
    let export = folder.file("keys.json", exported.as_bytes());
    let output =
        read(&["dump", "--keyring", &keyring, "--keys", &export, "--without-extension"], &dumps[0]);
    assert!(!succeeded(&output).contains("check value"));
    assert_eq!(restored(&String::from_utf8(output.stdout).unwrap()), contents);

    // A keyring of another database.
    let version = json!({ "1": ONE });
    let keys = json!({ "database": version, "k": version });
    let other = json!({ "encryption_ext_keyring": 1, "keys": keys }).to_string();
    let other = folder.file("other.json", other.as_bytes());
    let dump = folder.file("dump.sql", dumps[0].as_bytes());
    let plain = folder.path("wrong.sql");
    let output = read(&["dump", &dump, "--keyring", &other, "--output", &plain], "");
    assert_eq!(output.status.code(), Some(1));
    let told = told(&output);
    assert!(told.contains("is another key") && told.contains("line "), "{told}");
    assert!(!Path::new(&plain).exists());
    assert_eq!(fs::read_dir(folder.0.path()).unwrap().count(), 5, "nothing half is left");
}

#[test]
fn a_dump_with_keys_from_vault() {
    let test = "a_dump_with_keys_from_vault";
    let Some(setup) = Setup::new(test, OpenBao::start, READ_ONLY) else { return };
    setup.server.kv_put("keys/database", ONE);
    setup.server.kv_put("keys/k", TWO);
    dump_with_keys_from_a_server(setup, &[], "vault");
}

#[test]
fn a_dump_with_keys_wrapped_by_vault() {
    let test = "a_dump_with_keys_wrapped_by_vault";
    let policy = r#"
        path "transit/decrypt/first" { capabilities = ["update"] }
        path "transit/datakey/plaintext/first" { capabilities = ["update"] }
        path "transit/keys/first" { capabilities = ["read"] }"#;
    let Some(setup) = Setup::new(test, OpenBao::start, policy) else { return };
    setup.server.mount_transit("transit", None);
    setup.server.transit_key("first", json!({ "derived": true }));
    setup.cluster.configure("encryption_ext.provider", "vault_transit");
    setup.cluster.configure("encryption_ext.vault_transit_key", "first");
    setup.cluster.reload();
    dump_with_keys_from_a_server(setup, &["vault_transit_key=first"], "vault_transit");
}

fn dump_with_keys_from_a_server(mut setup: Setup, settings: &[&str], provider: &str) {
    let mut session = setup.connect();
    session.run("SELECT enc_create_key('k')");
    let contents = fill(&mut session);
    drop(session);
    let dump = armored_dump(&setup.cluster, &[]);
    let conf = fs::read(setup.cluster.data_directory().join("postgresql.conf")).unwrap();
    setup.cluster.stop(Shutdown::Fast);

    let folder = Folder::new();
    let dump_file = folder.file("dump.sql", dump.as_bytes());
    let address = format!("vault_address={}", setup.server.address());
    let token = format!("vault_token_file={}", setup.file("token").display());
    let mut options =
        vec!["dump", &dump_file, "--without-extension", "--set", &address, "--set", &token];
    for setting in settings {
        options.extend(["--set", setting]);
    }
    let output = read(&options, "");
    let told_then = succeeded(&output);
    assert!(!told_then.contains("check value"), "{told_then}");
    assert_eq!(restored(&String::from_utf8(output.stdout).unwrap()), contents);

    // With the server's own settings.
    let conf = folder.file("postgresql.conf", &conf);
    let output = read(&["dump", &dump_file, "--settings", &conf, "--check"], "");
    succeeded(&output);

    // Without its catalog, there is no wrapped key; a provider that keeps keys itself has them all.
    let armor = dump.split(['\t', '\n']).find(|field| field.starts_with("enc:1:")).unwrap();
    let key = ["values", armor, "--provider", provider, "--key", "k", "--settings", &conf];
    let output = read(&key, "");
    match provider {
        "vault" => {
            assert!(succeeded(&output).contains("not compared with a check value"));
            assert_eq!(String::from_utf8(output.stdout).unwrap(), "one\n");
        }
        _ => {
            assert_eq!(output.status.code(), Some(1));
            assert!(told(&output).contains("--keys"), "{}", told(&output));
        }
    }

    // The key server is gone, too.
    setup.server.stop();
    let output = read(&["dump", &dump_file, "--settings", &conf, "--check"], "");
    assert_eq!(output.status.code(), Some(2));
    let told = told(&output);
    assert!(told.contains(&format!("from provider \"{provider}\"")), "{told}");
}

/// Fills the tables, and gives what they have.
fn fill(session: &mut Client) -> Vec<Vec<Option<String>>> {
    session.run(TABLES);
    session.run(
        "INSERT INTO shapes (id, plain) VALUES (0, 'all else is null'); UPDATE shapes SET t = NULL",
    );
    for (id, text) in TEXTS.iter().enumerate() {
        let id = i32::try_from(id).unwrap() + 1;
        session
            .execute(
                "INSERT INTO shapes VALUES ($1, $2::text, convert_to($2::text, 'UTF8'),
                     ARRAY[$2::text, NULL, 'x']::encrypted_text('k')[],
                     ARRAY[[convert_to($2::text, 'UTF8')], ['\\x']]::bytea[]::encrypted_bytea('k')[],
                     ROW($2::text, convert_to($2::text, 'UTF8'), $1),
                     ARRAY[ROW($2::text, NULL, 1), ROW(NULL, '\\x00ff5c27'::bytea, NULL)]::person[],
                     ROW(ARRAY[$2::text]::encrypted_text('k')[], ROW($2::text, NULL, 5)::person),
                     $2::text, $2::text)",
                &[&id, text],
            )
            .unwrap();
    }
    contents(session)
}

fn contents(session: &mut Client) -> Vec<Vec<Option<String>>> {
    CONTENTS.iter().map(|sql| session.texts(sql)).collect()
}

/// The dump of a database, with ciphertext.
fn armored_dump(cluster: &Cluster, options: &[&str]) -> String {
    let output = cluster.command("pg_dump").args(options).arg(DATABASE).output().unwrap();
    assert!(output.status.success(), "{}", told(&output));
    let dump = String::from_utf8(output.stdout).unwrap();
    assert!(dump.contains("enc:1:") && !dump.contains("Zürich 漢字 🐘',"), "it has ciphertext");
    dump
}

/// Restores a plaintext dump into a server without the extension, without an error, and gives what is
/// there.
fn restored(dump: &str) -> Vec<Vec<Option<String>>> {
    let cluster = Cluster::builder(MAJOR).start();
    let mut psql = cluster
        .command("psql")
        .args(["--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=1", "--username", SUPERUSER])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // What psql has to say shows better than a broken pipe.
    let _ = psql.stdin.take().unwrap().write_all(dump.as_bytes());
    let output = psql.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", told(&output));
    let mut session = connect(&cluster);
    let traces = session.texts(
        "SELECT 'extension' FROM pg_extension WHERE extname = 'encryption_ext'
         UNION ALL SELECT 'type' FROM pg_type WHERE typname LIKE '%encrypted%'
         UNION ALL SELECT 'schema' FROM pg_namespace WHERE nspname = 'encryption'",
    );
    assert_eq!(traces, []);
    let is_kept = "SELECT count(*)::text FROM pg_class WHERE relname = 'shapes_t'";
    assert_eq!(session.text(is_kept), "1");
    session.run("INSERT INTO shapes (id) VALUES (-1)");
    assert_eq!(session.text("SELECT t FROM shapes WHERE id = -1"), "it's a \\default");
    session.run("DELETE FROM shapes WHERE id = -1");
    session.fails("INSERT INTO shapes (id, t) VALUES (-1, 'never')", "23514");
    assert_eq!(session.text("SELECT is_short('abc')::text"), "true");
    contents(&mut session)
}

/// Runs the reader.
fn read(arguments: &[&str], input: &str) -> Output {
    let mut reader = Command::new(program())
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = reader.stdin.take().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            // It may end before it has read all.
            let _ = stdin.write_all(input.as_bytes());
        });
        reader.wait_with_output().unwrap()
    })
}

/// The reader, built as the tests are.
fn program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args(["build", "--locked", "--quiet", "--package", "encryption_ext-decrypt"]);
        assert!(cargo.current_dir(env!("CARGO_MANIFEST_DIR")).status().unwrap().success());
        // This program is in the folder `deps` beside it.
        let folder = std::env::current_exe().unwrap();
        folder.ancestors().nth(2).unwrap().join("encryption_ext-decrypt")
    })
}

/// What it said, having succeeded.
#[track_caller]
fn succeeded(output: &Output) -> String {
    assert!(output.status.success(), "{}", told(output));
    told(output)
}

fn told(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A folder for the reader's user, with files that nobody else can read.
struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> String {
        self.0.path().join(name).to_str().unwrap().to_owned()
    }

    fn file(&self, name: &str, contents: &[u8]) -> String {
        let path = self.path(name);
        fs::write(&path, contents).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        path
    }
}
