//! What roles with the privilege `mask` are shown, and what they can't do with it.

use cluster_tests::{Binary, DATABASE, Session, connect, start};
use envelope::armor;
use harness::cluster::Cluster;
use postgres::Client;

const SETUP: &str = r"
    SELECT enc_create_key('k'), enc_create_key('other');
    CREATE ROLE support LOGIN;
    CREATE ROLE clerk LOGIN;
    SELECT enc_grant('k', 'support', 'mask'), enc_grant('k', 'clerk', 'encrypt, mask, compare');
    CREATE TABLE t (
        id integer PRIMARY KEY,
        v  encrypted_text('k'),
        b  encrypted_bytea('k'),
        l  encrypted_text('k')[]
    );
    INSERT INTO t VALUES (1, '4111111111111234', '\x0102030405', '{first value,second value}'),
                         (2, 'short', '\x', NULL), (3, '', NULL, NULL), (4, 'ééééÜÜÜÜ', NULL, NULL);
    GRANT SELECT ON t TO support;
    GRANT SELECT, INSERT, UPDATE, DELETE ON t TO clerk;";

fn cluster(test: &str) -> Option<Cluster> {
    let cluster = start(test)?;
    connect(&cluster).run(SETUP);
    Some(cluster)
}

#[test]
fn a_role_with_mask_sees_masks_and_nothing_else() {
    let Some(cluster) = cluster("a_role_with_mask_sees_masks_and_nothing_else") else { return };
    let mut session = connect(&cluster);
    let mut support = cluster.connect("support", DATABASE);
    const V: &str = "SELECT v FROM t ORDER BY id";
    let texts = |texts: [&str; 4]| texts.map(|text| Some(text.to_owned())).to_vec();
    assert_eq!(support.texts(V), texts(["****"; 4]));

    session.run("SELECT enc_set_mask('k', '<hidden €>', reason => 'a test')");
    assert_eq!(support.texts(V), texts(["<hidden €>"; 4]));
    // The last characters, of a text that has as many again.
    session.run("SELECT enc_set_mask('k', 'partial(4)')");
    assert_eq!(support.texts(V), texts(["****1234", "****", "****", "****ÜÜÜÜ"]));
    // In binary, arrays and JSON; of bytes, none.
    let row = support.query_one("SELECT v, b, l FROM t WHERE id = 1", &[]).unwrap();
    assert_eq!(row.get::<_, Binary>(0).0, b"****1234");
    assert_eq!(row.get::<_, Binary>(1).0, b"****");
    assert_eq!(support.text("SELECT b FROM t WHERE id = 1"), "\\x2a2a2a2a");
    assert_eq!(support.text("SELECT l FROM t WHERE id = 1"), "{****alue,****alue}");
    assert_eq!(support.text("SELECT to_jsonb(t) ->> 'v' FROM t WHERE id = 1"), "****1234");
    session.run("SELECT enc_set_mask('k', NULL)");
    assert_eq!(support.texts(V), texts(["****"; 4]));

    // Nothing that gives a plaintext, or lets it be found.
    for sql in [
        "SELECT v::text FROM t",
        "SELECT b::bytea FROM t",
        "SELECT lower(v) FROM t",
        "SELECT v || '' FROM t",
        "SELECT max(v) FROM t",
        "SELECT id FROM t WHERE v = 'short'",
        "SELECT id FROM t WHERE v > 'a'",
        "SELECT id FROM t ORDER BY v",
        "SELECT count(DISTINCT v) FROM t",
        "SELECT enc_digest(v) FROM t",
        "SELECT v::encrypted_text('other') FROM t",
        "SELECT 'x'::encrypted_text('k')",
        "SELECT enc_set_mask('k', '')",
    ] {
        let expected = if sql.contains("enc_set_mask") { "KE021" } else { "KE020" };
        support.fails(sql, expected);
    }
    // Ciphertext, if asked for; and a backup never has masks in it.
    let stored: Vec<u8> = session.value("SELECT v::bytea FROM t WHERE id = 1");
    let armored = armor::encode(&stored);
    for settings in [
        "SET encryption_ext.output = armor",
        "RESET ALL; SET encryption_ext.on_denied = armor",
        "RESET ALL; SET application_name = 'pg_dump'",
    ] {
        support.run(settings);
        assert_eq!(support.text("SELECT v FROM t WHERE id = 1"), armored, "{settings}");
    }
    support.run("RESET ALL");
    // Privileges come and go at the next statement; decrypt is more.
    session.run("SELECT enc_grant('k', 'support', 'decrypt')");
    assert_eq!(support.text("SELECT v FROM t WHERE id = 2"), "short");
    session.run("SELECT enc_revoke('k', 'support', 'decrypt')");
    assert_eq!(support.text("SELECT v FROM t WHERE id = 2"), "****");
    session.run("SELECT enc_revoke('k', 'support')");
    support.fails(V, "KE020");
    session.run("SELECT enc_grant('k', 'support', 'mask'); SELECT enc_set_mask('k', 'partial(4)')");

    // A masked value that is not authentic is an error as any other, where it must be opened.
    session.run(
        "UPDATE t SET v = overlay(v::bytea PLACING '\\x00000000' FROM 40)::encrypted_text WHERE id = 1",
    );
    support.fails(V, "KE045");

    // What is written down about it.
    assert_eq!(session.text("SELECT mask FROM enc_keys WHERE name = 'k'"), "partial(4)");
    let log =
        "SELECT string_agg(concat_ws(' ', action, key_name, detail, reason), ';' ORDER BY sequence)
                 FROM encryption.key_event WHERE action = 'set mask'";
    let expected =
        "set mask k <hidden €> a test;set mask k partial(4);set mask k;set mask k partial(4)";
    assert_eq!(session.text(log), expected);
    for mask in
        ["partial(0)", "partial(65)", "partial(-1)", "partial(4", "enc:1:AAAA", &"x".repeat(257)]
    {
        session.fails(&format!("SELECT enc_set_mask('k', '{mask}')"), "KE110");
    }
    session.fails("SELECT enc_set_mask(NULL, '')", "22004");
    session.fails("SELECT enc_set_mask('unknown', '')", "KE003");
    // It is part of the export.
    assert_eq!(
        session.text("SELECT key ->> 'mask' FROM jsonb_path_query(enc_export_keys(), '$.keys[*] ? (@.name == \"k\")') key"),
        "partial(4)"
    );
}

#[test]
fn a_mask_is_not_written_back() {
    let Some(cluster) = cluster("a_mask_is_not_written_back") else { return };
    let mut session = connect(&cluster);
    let mut clerk = cluster.connect("clerk", DATABASE);
    let shown = clerk.text("SELECT v FROM t WHERE id = 1");
    clerk.fails(&format!("UPDATE t SET v = '{shown}' WHERE id = 1"), "KE039");
    clerk.fails(&format!("UPDATE t SET v = text '{shown}' WHERE id = 1"), "KE039");
    clerk.fails("UPDATE t SET b = '\\x2a2a2a2a' WHERE id = 1", "KE039");
    clerk.fails(&format!("UPDATE t SET l = ARRAY['{shown}'] WHERE id = 1"), "KE039");
    session.run("SELECT enc_set_mask('k', 'partial(4)')");
    let shown = clerk.text("SELECT v FROM t WHERE id = 1");
    assert_eq!(shown, "****1234");
    clerk.fails(&format!("INSERT INTO t (id, v) VALUES (9, '{shown}')"), "KE039");
    clerk.fails("INSERT INTO t (id, v) VALUES (9, '****')", "KE039");
    clerk.run("INSERT INTO t (id, v) VALUES (9, '****12345'), (10, '*')");
    // Nobody else has seen it.
    session.run(&format!("INSERT INTO t (id, v) VALUES (11, '{shown}')"));
}

#[test]
fn a_mask_never_becomes_part_of_a_definition() {
    let Some(cluster) = cluster("a_mask_never_becomes_part_of_a_definition") else { return };
    let mut session = connect(&cluster);
    let stored: Vec<u8> = session.value("SELECT 'forbidden'::encrypted_text('k')::bytea");
    let constant = armor::encode(&stored);
    // Constants are under the database key, which everyone uses, unless somebody takes pains: then those
    // of a table whose columns the owner may decrypt can be under a key that he may not.
    session.run(&format!(
        "SELECT enc_grant('other', 'clerk', 'encrypt, decrypt');
         SET encryption_ext.input = auto;
         CREATE TABLE masked (id integer CHECK (id > 0), v encrypted_text('k') DEFAULT 'absent',
             CONSTRAINT usual CHECK (id > 0 AND v <> 'usual'));
         CREATE TABLE mixed (id integer, v encrypted_text('other'),
             CONSTRAINT planted CHECK (id > 0 AND v <> '{constant}'::encrypted_text));
         CREATE TABLE child (id integer, v encrypted_text('other'),
             CONSTRAINT planted CHECK (id > 0 AND v <> 'something else'::encrypted_text('k')));
         CREATE TABLE parts (id integer, v encrypted_text('other'),
             CONSTRAINT planted CHECK (id > 0 AND v <> '{constant}'::encrypted_text)) PARTITION BY LIST (id);
         ALTER TABLE masked OWNER TO clerk; ALTER TABLE mixed OWNER TO clerk;
         ALTER TABLE child OWNER TO clerk; ALTER TABLE parts OWNER TO clerk;
         GRANT CREATE ON SCHEMA public TO clerk;
         RESET encryption_ext.input;"
    ));
    let definitions = |session: &mut Client| {
        session.texts(
            "SELECT concat_ws(' ', conrelid::regclass, pg_get_constraintdef(oid)) FROM pg_constraint
              WHERE conname IN ('planted', 'usual') AND conrelid::regclass::text IN ('masked', 'mixed', 'parts', 'child')
              ORDER BY 1",
        )
    };
    let before = definitions(&mut session);
    assert!(before.iter().flatten().any(|text| text.contains("forbidden")), "{before:?}");

    let mut clerk = cluster.connect("clerk", DATABASE);
    const PRINTED: &str =
        "SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE conname = 'planted'
                            AND conrelid = 'mixed'::regclass";
    assert!(clerk.text(PRINTED).contains("'****'"));
    for alter in ["SET encryption_ext.on_denied = error", "SET encryption_ext.on_denied = armor"] {
        clerk.run(alter);
        for sql in [
            // Whatever of it: by what its columns are.
            "ALTER TABLE masked ALTER id TYPE bigint",
            "ALTER TABLE masked ALTER v TYPE encrypted_text('k')",
            "ALTER TABLE masked ADD CHECK (v <> 'more')",
            "ALTER TABLE masked ADD more integer",
            // By what would be printed.
            "ALTER TABLE mixed ALTER id TYPE bigint",
            "ALTER TABLE mixed ALTER v TYPE encrypted_text('other')",
            "DO $$ BEGIN ALTER TABLE mixed ALTER id TYPE bigint; END $$",
            "ALTER TABLE child INHERIT mixed",
            "ALTER TABLE parts ATTACH PARTITION child FOR VALUES IN (1)",
            "ALTER TABLE parts ALTER v TYPE encrypted_text('other')",
        ] {
            clerk.fails(sql, "KE038");
        }
        // After an error, and in a subtransaction, masks are shown again.
        clerk.run("BEGIN; SAVEPOINT s");
        clerk.fails("ALTER TABLE mixed ALTER id TYPE bigint", "KE038");
        clerk.run("ROLLBACK TO s");
        assert!(clerk.text(PRINTED).contains("'"));
        clerk.run("COMMIT");
        assert_eq!(definitions(&mut session), before);
    }
    // What copies trees and no texts may go on, and copies them as they are.
    clerk.run(
        "RESET encryption_ext.on_denied;
         CREATE TABLE copied (LIKE mixed INCLUDING ALL);
         CREATE TABLE heir () INHERITS (mixed);
         CREATE TABLE part PARTITION OF parts FOR VALUES IN (2);",
    );
    let forbidden = session.text(
        "SELECT count(*) FROM pg_constraint WHERE conname = 'planted'
            AND conrelid::regclass::text IN ('copied', 'heir', 'part')
            AND pg_get_constraintdef(oid) LIKE '%''forbidden''%'",
    );
    assert_eq!(forbidden, "3");
    // What doesn't print anything may be done to a table of columns that he sees.
    clerk.run("ALTER TABLE mixed ADD more integer");
    // A dump has ciphertext in place of what he isn't shown.
    let pg_dump = cluster
        .command("pg_dump")
        .args(["--username=clerk", "-s", "-t", "mixed"])
        .output()
        .unwrap();
    let dumped = String::from_utf8_lossy(&pg_dump.stdout).into_owned();
    assert!(dumped.contains(&constant) && !dumped.contains("****"), "{dumped}");
    // Who may decrypt and asks for armor gets the constraints as they were.
    session.run(
        "SET encryption_ext.output = armor;
         ALTER TABLE mixed ALTER id TYPE bigint; ALTER TABLE masked ALTER id TYPE bigint;
         RESET encryption_ext.output",
    );
    let altered = definitions(&mut session);
    assert_eq!(altered, before);
}
