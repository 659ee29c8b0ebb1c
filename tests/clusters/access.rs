//! Who may do what: the table of docs/access.md, cell by cell, and what its text says besides.

use std::fs;
use std::io::Read;

use cluster_tests::{DATABASE, Session, builder, connect, create_extension};
use envelope::armor;
use harness::cluster::{Cluster, SUPERUSER};
use postgres::error::DbError;
use postgres::{Client, SimpleQueryMessage};

/// The value that the statements are about, and what is shown in its place.
const PLAINTEXT: &str = "alice@example.com";
const MASK: &str = "<masked>";

const SETUP: &str = "
    SELECT enc_create_key('k'), enc_create_key('other'), enc_set_mask('k', '<masked>');
    CREATE ROLE owner LOGIN;
    CREATE ROLE nobody LOGIN;
    CREATE ROLE writer LOGIN;
    CREATE ROLE matcher LOGIN;
    CREATE ROLE masked LOGIN;
    CREATE ROLE reader LOGIN;
    CREATE ROLE app LOGIN;
    CREATE ROLE backup LOGIN IN ROLE pg_read_all_data;
    ALTER ROLE backup SET encryption_ext.on_denied = armor;
    CREATE ROLE dumper LOGIN IN ROLE pg_read_all_data;
    CREATE ROLE replicator LOGIN REPLICATION;
    SELECT enc_grant('k', 'writer', 'encrypt'), enc_grant('k', 'matcher', 'compare'),
           enc_grant('k', 'masked', 'mask'), enc_grant('k', 'reader', 'decrypt'),
           enc_grant('k', 'app', 'encrypt, decrypt'), enc_grant('k', 'dumper', 'decrypt');
    GRANT CREATE ON SCHEMA public TO owner;
    CREATE TABLE t (id integer PRIMARY KEY CHECK (id > 0), v encrypted_text('k'), o encrypted_text('other'));
    CREATE TABLE u (id integer, v encrypted_text('k'), EXCLUDE USING hash (v WITH =));
    INSERT INTO t VALUES (2, 'alice@example.com');
    SELECT enc_rotate_key('k');
    INSERT INTO t VALUES (1, 'alice@example.com');
    INSERT INTO u VALUES (1, 'alice@example.com');
    ALTER TABLE t OWNER TO owner;
    ALTER TABLE u OWNER TO owner;
    GRANT SELECT, INSERT, UPDATE, DELETE ON t, u
        TO nobody, writer, matcher, masked, reader, app;
    CREATE TABLE armored (armor text);
    GRANT SELECT ON armored TO PUBLIC;";

#[test]
fn the_table_of_the_document_is_true() {
    let Some(cluster) = cluster("the_table_of_the_document_is_true") else { return };
    let document = include_str!("../../docs/access.md");
    let mut lines = document.lines().skip_while(|line| !line.starts_with("| statement |"));
    let cells = |line: &str| -> Vec<String> {
        line.trim_matches('|').split(" | ").map(|cell| cell.trim().replace('`', "")).collect()
    };
    let roles = cells(lines.next().expect("docs/access.md has the table"));
    let rows: Vec<_> = lines.skip(1).take_while(|line| line.starts_with('|')).map(cells).collect();
    assert!(rows.len() > 25 && roles.len() == 12, "{roles:?}");

    let mut sessions: Vec<_> = roles[1..].iter().map(|role| Role::new(&cluster, role)).collect();
    let mut wrong = String::new();
    for row in &rows {
        let (statement, expected) = row.split_first().expect("a row has cells");
        assert_eq!(expected.len(), sessions.len(), "{statement}");
        let actual: Vec<_> =
            sessions.iter_mut().map(|role| role.outcome(&cluster, statement)).collect();
        if expected != actual {
            wrong += &format!("| `{statement}` | {} |\n", actual.join(" | "));
        }
    }
    assert!(wrong.is_empty(), "these rows are not as documented, but:\n{wrong}");
}

fn cluster(test: &str) -> Option<Cluster> {
    let cluster = builder(test)?.setting("wal_level", "logical").start();
    create_extension(&cluster, DATABASE);
    let mut session = connect(&cluster);
    session.run(SETUP);
    session.run("SELECT pg_create_logical_replication_slot('slot', 'test_decoding')");
    session.run("UPDATE t SET v = 'alice@example.com' WHERE id = 1");
    let stored: Vec<u8> = session.value("SELECT v::bytea FROM t WHERE id = 1");
    session.run(&format!("INSERT INTO armored VALUES ('{}')", armor::encode(&stored)));
    Some(cluster)
}

/// A role and its session.
struct Role {
    name: String,
    session: Client,
    armor: String,
}

impl Role {
    fn new(cluster: &Cluster, name: &str) -> Self {
        let name = if name == "superuser" { SUPERUSER } else { name };
        let mut session = cluster.connect(name, DATABASE);
        let armor = session.text("SELECT armor FROM armored");
        Self { name: name.to_owned(), session, armor }
    }

    /// What the role gets of a statement, of which nothing stays: `plaintext`, `mask`, `armor`, by what its
    /// result or its message shows; else `yes`, or the SQLSTATE.
    fn outcome(&mut self, cluster: &Cluster, statement: &str) -> String {
        if statement.contains("pg_dump") {
            return dumped(cluster, &self.name, statement);
        }
        let statement = statement.replace("<armor>", &self.armor);
        // So that a small table's index is used.
        self.session.run("RESET ALL; SET enable_seqscan = off; BEGIN");
        let result = match statement.starts_with("COPY") {
            true => copied(&mut self.session, &statement),
            false => last_column(&mut self.session, &statement),
        };
        self.session.run("ROLLBACK");
        match result {
            Ok(text) => shown(&text).unwrap_or("yes").to_owned(),
            Err(error) => {
                let error = error.as_db_error().expect("the server raised it");
                let form = shown(&texts(error));
                form.unwrap_or_else(|| error.code().code()).to_owned()
            }
        }
    }
}

fn last_column(session: &mut Client, statement: &str) -> Result<String, postgres::Error> {
    let mut column = String::new();
    for message in session.simple_query(statement)? {
        if let SimpleQueryMessage::Row(row) = message {
            column += row.get(row.len() - 1).unwrap_or_default();
        }
    }
    Ok(column)
}

fn texts(error: &DbError) -> String {
    format!("{} {}", error.message(), error.detail().unwrap_or_default())
}

fn copied(session: &mut Client, statement: &str) -> Result<String, postgres::Error> {
    let mut copied = String::new();
    session.copy_out(statement)?.read_to_string(&mut copied).map_err(|error| {
        // The server's error comes while its answer is read.
        *error
            .into_inner()
            .and_then(|inner| inner.downcast().ok())
            .expect("an error of the server's")
    })?;
    Ok(copied)
}

fn dumped(cluster: &Cluster, role: &str, statement: &str) -> String {
    let mut command = cluster.command("pg_dump");
    if statement.starts_with("PGAPPNAME=x") {
        command.env("PGAPPNAME", "x");
    }
    let arguments = statement.split("pg_dump ").nth(1).unwrap_or_default().split(' ');
    let output =
        command.args(arguments).args(["--username", role]).output().expect("it is installed");
    if !output.status.success() {
        let message = String::from_utf8_lossy(&output.stderr);
        assert!(message.contains("permission denied"), "{message}");
        return "42501".to_owned();
    }
    shown(&String::from_utf8_lossy(&output.stdout)).unwrap_or("yes").to_owned()
}

/// In which form the value is in a text, if it is.
fn shown(text: &str) -> Option<&'static str> {
    let forms = [(PLAINTEXT, "plaintext"), (MASK, "mask"), ("enc:1:A", "armor")];
    let found: Vec<_> = forms.iter().filter(|(value, _)| text.contains(value)).collect();
    assert!(found.len() < 2, "{text}");
    found.first().map(|(_, form)| *form)
}

/// Every function of the library that SQL can call is in the document's list, with what it checks.
#[test]
fn every_function_is_in_the_review() {
    let document = include_str!("../../docs/access.md");
    let review = document.split("## Every function").nth(1).expect("the document has the list");
    let sql = fs::read_to_string(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../sql/encryption_ext--0.1.0.sql"
    ))
    .expect("it is there");
    let listed: Vec<_> = review.split('`').skip(1).step_by(2).collect();
    let mut missing = Vec::new();
    for statement in sql.split("\nCREATE FUNCTION ").skip(1) {
        let statement = statement.split(';').next().unwrap_or_default();
        let name = statement.split('(').next().unwrap_or_default().trim();
        if statement.contains("LANGUAGE c ") && !listed.contains(&name) && !missing.contains(&name)
        {
            missing.push(name);
        }
    }
    assert!(missing.is_empty(), "{missing:?}");
    let unknown = listed.iter().filter(|name| name.contains('_') && !name.contains("::"));
    let unknown: Vec<_> = unknown
        .filter(|name| !name.ends_with(".rs") && !sql.contains(&format!("CREATE FUNCTION {name}(")))
        .filter(|name| **name != "pg_monitor")
        .collect();
    assert!(unknown.is_empty(), "{unknown:?}");
}
