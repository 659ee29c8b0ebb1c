//! The clients that applications use, each through its own kinds of parameters and results. The
//! programs in `tests/clients` say what they have seen; `docs/clients.md` tells what it takes.

#![expect(clippy::unwrap_used, reason = "tests panic")]

use std::error::Error;
use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use bytes::BytesMut;
use cluster_tests::{DATABASE, Session, builder, connect, expect_error};
use harness::cluster::Cluster;
use harness::{free_port, python, skip};
use postgres::Client;
use postgres::binary_copy::{BinaryCopyInWriter, BinaryCopyOutIter};
use postgres::fallible_iterator::FallibleIterator;
use postgres::types::{FromSql, IsNull, ToSql, Type, to_sql_checked};

/// What every client does. A program says each of them once, when it has seen it.
const BY_ALL: [&str; 6] =
    ["insert and select", "lookup", "lookup without case", "IN", "upsert on a column", "KE020"];

/// What the drivers do in addition.
const BY_DRIVERS: [&str; 4] =
    ["unregistered types", "types of the base types", "= ANY", "upsert on an expression"];

#[test]
fn psycopg3() {
    let more = [&BY_DRIVERS[..], &["prepared statement", "binary format", "COPY"]].concat();
    python_client("psycopg3", &more);
}

#[test]
fn psycopg2() {
    python_client("psycopg2", &[&BY_DRIVERS[..], &["COPY"]].concat());
}

#[test]
fn asyncpg() {
    let more = [&BY_DRIVERS[..], &["prepared statement", "binary format", "COPY"]].concat();
    python_client("asyncpg", &more);
}

#[test]
fn sqlalchemy() {
    python_client("sqlalchemy", &["= ANY", "upsert on an expression", "migration"]);
}

#[test]
fn django() {
    python_client("django", &["migration", "validation"]);
}

#[test]
fn node_postgres() {
    let modules = [root().join("build/node/node_modules"), PathBuf::from("/usr/share/nodejs")];
    let node = || {
        let mut node = Command::new("node");
        node.env("NODE_PATH", std::env::join_paths(&modules).unwrap());
        node
    };
    if !succeeds(node().args(["-e", "require('pg')"])) {
        skip("node_postgres", "Node.js with node-postgres could not be had");
        return;
    }
    let mut program = node();
    program.arg("node_postgres.js");
    run("node_postgres", program, &[&BY_DRIVERS[..], &["prepared statement"]].concat());
}

#[test]
fn jdbc() {
    // Debian's libpostgresql-jdbc-java.
    let driver = Path::new("/usr/share/java/postgresql.jar");
    let modules = Command::new("java").arg("--list-modules").stdin(Stdio::null()).output();
    let has_compiler = modules
        .is_ok_and(|modules| String::from_utf8_lossy(&modules.stdout).contains("jdk.compiler@"));
    if !has_compiler || !driver.exists() {
        skip("jdbc", "a JDK and pgjdbc could not be had");
        return;
    }
    let mut java = Command::new("java");
    java.arg("-classpath").arg(driver).arg("Jdbc.java");
    let more = ["unregistered types", "= ANY", "upsert on an expression", "prepared statement"];
    run("jdbc", java, &[&more[..], &["COPY", "parameters without a type"]].concat());
}

#[test]
fn active_record() {
    if !succeeds(Command::new("ruby").args(["-e", "require 'pg'; require 'active_record'"])) {
        skip("active_record", "Ruby with Active Record and pg could not be had");
        return;
    }
    let mut ruby = Command::new("ruby");
    ruby.arg("active_record.rb");
    run("active_record", ruby, &["upsert on an expression", "prepared statement", "migration"]);
}

/// Runs `NAME_client.py`.
fn python_client(name: &str, more: &[&str]) {
    let Some(python) = python::interpreter("clients") else {
        skip(name, "the clients in Python could not be had");
        return;
    };
    let mut program = Command::new(python);
    program.arg("-B").arg(format!("{name}_client.py"));
    run(name, program, more);
}

/// Runs a program on a cluster with `schema.sql`: it must end well, and say that it has seen what
/// all clients do, and what it does more.
#[track_caller]
fn run(test: &str, mut program: Command, more: &[&str]) {
    let Some(cluster) = start(test) else { return };
    let output = program
        .current_dir(root().join("tests/clients"))
        .env("HOME", cluster.directory())
        .env("LANG", "C.UTF-8")
        .env("PGHOST", "127.0.0.1")
        .env("PGPORT", cluster.port().to_string())
        .env("PGDATABASE", DATABASE)
        .env("PGUSER", "app")
        .env("PGPASSWORD", "app")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let Output { status, stdout, stderr } = output;
    let said = String::from_utf8_lossy(&stdout);
    let complaint = String::from_utf8_lossy(&stderr);
    assert!(status.success(), "{status}\n{said}{complaint}{}", cluster.log());

    let mut seen: Vec<_> = said.lines().filter_map(|line| line.strip_prefix("ok ")).collect();
    let mut expected = [&BY_ALL, more].concat();
    seen.sort_unstable();
    expected.sort_unstable();
    assert_eq!(seen, expected, "{said}{complaint}");
}

/// A cluster that listens on TCP, since JDBC has nothing else, and wants passwords there.
fn start(test: &str) -> Option<Cluster> {
    let cluster = builder(test)?
        .initdb_option("--auth-host=scram-sha-256")
        .setting("listen_addresses", "127.0.0.1")
        .port(free_port())
        .start();
    let schema = fs::read_to_string(root().join("tests/clients/schema.sql")).unwrap();
    connect(&cluster).run(&schema);
    Some(cluster)
}

fn succeeds(command: &mut Command) -> bool {
    let output = command.stdin(Stdio::null()).output();
    output.is_ok_and(|output| output.status.success())
}

fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

// rust-postgres, which is tokio-postgres

/// A value of `encrypted_text`: `String` takes and gives only types that it knows by name.
#[derive(Clone, Debug, PartialEq)]
struct EncryptedText(String);

impl<'a> FromSql<'a> for EncryptedText {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn Error + Sync + Send>> {
        Ok(Self(String::from_sql(&Type::TEXT, raw)?))
    }

    fn accepts(ty: &Type) -> bool {
        ty.name() == "encrypted_text"
    }
}

impl ToSql for EncryptedText {
    fn to_sql(&self, _: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn Error + Sync + Send>> {
        self.0.to_sql(&Type::TEXT, out)
    }

    fn accepts(ty: &Type) -> bool {
        ty.name() == "encrypted_text"
    }

    to_sql_checked!();
}

const UNICODE: &str = "ünïcödé 🔑 日本@example.com";
const SEVEN: &[u8] = &[0, 0, 0, 7];

#[test]
fn tokio_postgres_refuses_to_guess() {
    let Some(cluster) = start("tokio_postgres_refuses_to_guess") else { return };
    let mut session = cluster.connect("app", DATABASE);
    let by_email = "SELECT id FROM person WHERE email = $1";
    let error = session.query(by_email, &[&"person7@example.com"]).unwrap_err();
    assert!(error.to_string().starts_with("error serializing parameter 0"), "{error}");
    let row = session.query_one("SELECT email, photo FROM person WHERE id = 7", &[]).unwrap();
    row.try_get::<_, String>(0).unwrap_err();
    row.try_get::<_, Vec<u8>>(1).unwrap_err();
}

#[test]
fn tokio_postgres_with_the_base_types() {
    let Some(cluster) = start("tokio_postgres_with_the_base_types") else { return };
    let mut session = cluster.connect("app", DATABASE);
    session
        .execute(
            "INSERT INTO person (id, email, photo)
             VALUES (3001, $1::text, $2::bytea), (3002, NULL, NULL)",
            &[&UNICODE, &SEVEN],
        )
        .unwrap();
    let rows = session
        .query("SELECT email::text, photo::bytea FROM person WHERE id > 3000 ORDER BY id", &[])
        .unwrap();
    assert_eq!(rows[0].get::<_, &str>(0), UNICODE);
    assert_eq!(rows[0].get::<_, &[u8]>(1), SEVEN);
    assert_eq!(rows[1].get::<_, Option<&str>>(0), None);
    session.execute("DELETE FROM person WHERE id > 3000", &[]).unwrap();

    look_up(&mut session, "person_email_digest", "email = $1::text", &[&"person7@example.com"]);
    look_up(&mut session, "person_phone_hash", "phone = $1::varchar", &[&"+497"]);
    look_up(&mut session, "person_photo_hash", "photo = $1::bytea", &[&SEVEN]);
    look_up(
        &mut session,
        "person_phone_hash",
        "phone = ANY ($1::text[])",
        &[&vec!["+497", "+4901"]],
    );
    look_up(&mut session, "person_phone_hash", "phone IN ($1::text, $2::text)", &[&"+497", &"+4"]);
    look_up(
        &mut session,
        "person_email_folded",
        "enc_digest(email, 'nfkc_casefold') = enc_digest($1, 'nfkc_casefold')",
        &[&"PERSON7@Example.com"],
    );

    // The types may be told apart from the statement's text, too.
    let by_email = "SELECT id FROM person WHERE email = $1";
    let row = session.query_typed(by_email, &[(&"person7@example.com", Type::TEXT)]).unwrap();
    assert_eq!(row[0].get::<_, i64>(0), 7);
    // The server takes a generic plan from the sixth execution on.
    let statement = session.prepare_typed(by_email, &[Type::TEXT]).unwrap();
    for n in 1..12 {
        let row = session.query_one(&statement, &[&format!("person{n}@example.com")]).unwrap();
        assert_eq!(row.get::<_, i64>(0), n);
    }
    let generic: i64 = session.value(
        "SELECT sum(generic_plans)::bigint FROM pg_prepared_statements
          WHERE statement LIKE '%email = $1' AND parameter_types = '{text}'",
    );
    assert!(generic > 0);

    let upsert = "
        INSERT INTO person (email, note) VALUES ($1::text, $2)
        ON CONFLICT (enc_digest(email)) DO UPDATE SET note = excluded.note RETURNING id";
    let row = session.query_one(upsert, &[&"person8@example.com", &"seen"]).unwrap();
    assert_eq!(row.get::<_, i64>(0), 8);
    let upsert = "
        INSERT INTO account (login) VALUES ($1::text)
        ON CONFLICT (login_digest) DO UPDATE SET visits = account.visits + 1
        RETURNING login::text, visits";
    session.query_one(upsert, &[&"Alice"]).unwrap();
    let row = session.query_one(upsert, &[&"ALICE"]).unwrap();
    assert_eq!((row.get::<_, &str>(0), row.get::<_, i32>(1)), ("Alice", 2));

    let mut stranger = cluster.connect("stranger", DATABASE);
    let error = stranger.query("SELECT email::text FROM person", &[]).unwrap_err();
    assert!(expect_error(&error, "KE020").message().contains("user_pii"));
}

#[test]
fn tokio_postgres_with_a_type_of_its_own() {
    let Some(cluster) = start("tokio_postgres_with_a_type_of_its_own") else { return };
    let mut session = cluster.connect("app", DATABASE);
    let unicode = EncryptedText(UNICODE.to_owned());
    session.execute("INSERT INTO person (id, email) VALUES (3001, $1)", &[&unicode]).unwrap();
    let row = session
        .query_one("SELECT email, phone, ARRAY[email] FROM person WHERE id = 3001", &[])
        .unwrap();
    assert_eq!(row.get::<_, EncryptedText>(0), unicode);
    assert_eq!(row.get::<_, Option<EncryptedText>>(1), None);
    assert_eq!(row.get::<_, Vec<EncryptedText>>(2), [unicode]);

    let email = EncryptedText("person7@example.com".to_owned());
    look_up(&mut session, "person_email_digest", "email = $1", &[&email]);
    let phones = vec![EncryptedText("+497".to_owned()), EncryptedText("+4901".to_owned())];
    look_up(&mut session, "person_phone_hash", "phone = ANY ($1)", &[&phones]);
}

#[test]
fn tokio_postgres_copies_in_text_and_binary() {
    let Some(cluster) = start("tokio_postgres_copies_in_text_and_binary") else { return };
    let mut session = cluster.connect("app", DATABASE);
    let rows = "3001\tcopied\t\\\\x00000007\n3002\t\\N\t\\N\n";
    let mut writer = session.copy_in("COPY person (id, email, photo) FROM STDIN").unwrap();
    writer.write_all(rows.as_bytes()).unwrap();
    assert_eq!(writer.finish().unwrap(), 2);
    let copied = "COPY (SELECT id, email, photo FROM person WHERE id > 3000 ORDER BY id) TO STDOUT";
    let mut found = String::new();
    session.copy_out(copied).unwrap().read_to_string(&mut found).unwrap();
    assert_eq!(found, rows);

    let types = [Type::INT8, Type::TEXT, Type::BYTEA];
    let into = "COPY person (id, email, photo) FROM STDIN (FORMAT binary)";
    let mut writer = BinaryCopyInWriter::new(session.copy_in(into).unwrap(), &types);
    writer.write(&[&3003_i64, &UNICODE, &SEVEN]).unwrap();
    assert_eq!(writer.finish().unwrap(), 1);
    let out =
        "COPY (SELECT id, email, photo FROM person WHERE id = 3003) TO STDOUT (FORMAT binary)";
    let mut rows = BinaryCopyOutIter::new(session.copy_out(out).unwrap(), &types);
    let row = rows.next().unwrap().unwrap();
    assert_eq!((row.get::<&str>(1), row.get::<&[u8]>(2)), (UNICODE, SEVEN));
}

/// Finds the person 7, by the index.
#[track_caller]
fn look_up(session: &mut Client, index: &str, condition: &str, parameters: &[&(dyn ToSql + Sync)]) {
    let query = format!("SELECT id FROM person WHERE {condition}");
    let plan = session.query(&format!("EXPLAIN (COSTS OFF) {query}"), parameters).unwrap();
    let plan: Vec<String> = plan.iter().map(|row| row.get(0)).collect();
    assert!(plan.iter().any(|line| line.contains(index)), "{condition}: {plan:?}");
    let rows = session.query(&query, parameters).unwrap();
    assert_eq!(rows.iter().map(|row| row.get(0)).collect::<Vec<i64>>(), [7], "{condition}");
}

// The document

/// The versions that the document names are those that are tried.
#[test]
fn the_document_names_the_pinned_versions() {
    let document = fs::read_to_string(root().join("docs/clients.md")).unwrap();
    let pins = fs::read_to_string(root().join("scripts/python/clients.txt")).unwrap();
    let names = ["psycopg", "psycopg2-binary", "asyncpg", "SQLAlchemy", "alembic", "Django"];
    let mut versions: Vec<_> = names
        .iter()
        .map(|name| {
            let pin = pins.lines().find_map(|line| line.strip_prefix(&format!("{name}==")));
            pin.unwrap_or_else(|| panic!("{name} is not pinned"))
                .split(' ')
                .next()
                .unwrap()
                .to_owned()
        })
        .collect();
    let lock = fs::read_to_string(root().join("tests/clients/node/package-lock.json")).unwrap();
    let lock: serde_json::Value = serde_json::from_str(&lock).unwrap();
    versions.push(lock["packages"]["node_modules/pg"]["version"].as_str().unwrap().to_owned());
    let lock = fs::read_to_string(root().join("Cargo.lock")).unwrap();
    let driver = lock.split_once("name = \"tokio-postgres\"\nversion = \"").unwrap().1;
    versions.push(driver.split('"').next().unwrap().to_owned());
    let missing: Vec<_> =
        versions.iter().filter(|version| !document.contains(&format!(" {version}"))).collect();
    assert!(missing.is_empty(), "docs/clients.md doesn't name {missing:?}");
}
