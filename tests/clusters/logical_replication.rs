//! Logical replication carries ciphertext and needs no key, on either side.

#![expect(clippy::unwrap_used, reason = "a test fails by a panic")]

use std::fmt::Write;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use cluster_tests::replication::{
    copy_definitions, networked, subscribe, wait_for, wait_for_changes, wait_for_copies,
};
use cluster_tests::secrets::Secrets;
use cluster_tests::{
    NO_RAW_CASTS, RAW_CASTS, Session, builder_on, connect, keyring_file, start_with,
};
use harness::cluster::Cluster;
use harness::proxy::Proxy;
use postgres::Client;

const ROWS: usize = 1000;

/// Definitions for publisher and subscribers.
const TABLES: &str = "
    CREATE TYPE contact AS (name text, mail encrypted_text('k'));
    CREATE DOMAIN address AS encrypted_text('k');
    CREATE TABLE person (id integer PRIMARY KEY, mail encrypted_text('k'), photo encrypted_bytea('k'),
                         list encrypted_text('k')[], contact contact, home address, plain text);";

/// A publisher, what passes between it and its subscribers, and the plaintexts that it has.
struct Publisher {
    cluster: Cluster,
    wire: Proxy,
    secrets: Secrets,
    controls: Secrets,
}

impl Publisher {
    /// With a key `k`, the tables, and the first half of the rows.
    fn start(test: &str, major: u16) -> Option<Self> {
        let cluster = start_with(networked(builder_on(major, test)?), test)?;
        let mut session = connect(&cluster);
        session.run(NO_RAW_CASTS);
        session.run("SELECT enc_create_key('k')");
        session.run(TABLES);
        let wire = Proxy::start_recording(cluster.port());
        let (secrets, controls) = (Secrets::new(ROWS, 21), Secrets::new(ROWS, 22));
        let publisher = Self { cluster, wire, secrets, controls };
        publisher.insert(0..ROWS / 2);
        session.run("CREATE PUBLICATION person FOR TABLE person");
        Some(publisher)
    }

    fn connect(&self) -> Client {
        connect(&self.cluster)
    }

    /// Inserts rows, every tenth of which is stored out of line.
    fn insert(&self, rows: std::ops::Range<usize>) {
        let mut session = self.connect();
        let mut lines = String::new();
        for n in rows {
            let (secret, control) = (self.secrets.get(n), self.controls.get(n));
            let long = if n % 10 == 0 {
                format!("{secret}{}", "-".repeat(9000))
            } else {
                secret.to_owned()
            };
            writeln!(
                lines,
                "{n}\t{long}\t{secret}\t{{{secret},NULL}}\t(name,{secret})\t{secret}\t{control}"
            )
            .unwrap();
        }
        let mut copy = session.copy_in("COPY person FROM STDIN").unwrap();
        copy.write_all(lines.as_bytes()).unwrap();
        copy.finish().unwrap();
    }

    /// Inserts the second half of the rows, and updates and deletes some, large ones among them.
    fn change(&self) {
        self.insert(ROWS / 2..ROWS);
        self.connect().run(
            "UPDATE person SET plain = plain || '!' WHERE id % 3 = 0;
             UPDATE person SET mail = upper(mail), list = list || mail WHERE id % 7 = 0;
             UPDATE person SET id = id + 10000 WHERE id % 100 = 1;
             DELETE FROM person WHERE id % 11 = 0;
             BEGIN; DELETE FROM person; ROLLBACK",
        );
    }

    /// A subscriber with the tables and without keys.
    fn subscriber(&self, test: &str, major: u16, provider: &str) -> Cluster {
        let keyring = keyring_file(&self.cluster);
        let described = networked(builder_on(major, test).unwrap())
            .setting("encryption_ext.provider", provider)
            .setting("encryption_ext.keyring_file", keyring.to_str().unwrap());
        let cluster = described.start();
        copy_definitions(&self.cluster, &cluster);
        cluster
    }

    /// Gives a subscriber the catalog of keys.
    fn give_keys(&self, subscriber: &Cluster) {
        let document = self.connect().text("SELECT enc_export_keys()");
        let import = "SELECT enc_import_keys($1::text::jsonb)";
        connect(subscriber).execute(import, &[&document]).unwrap();
    }

    /// Expects no plaintext in what has passed and in the servers' logs, and finds those of an
    /// unencrypted column in the former.
    #[track_caller]
    fn expect_ciphertext(&self, subscribers: &[&Cluster]) {
        let passed = self.wire.take_passed();
        self.secrets.expect_none_in("the wire", &passed);
        assert!(self.controls.count_in(&passed) > 0, "the search finds nothing");
        for cluster in subscribers {
            self.secrets.expect_none_in("a log", cluster.log().as_bytes());
        }
    }
}

const READABLE: &str = "SELECT p::text FROM person p ORDER BY id";

/// What is stored, without a key.
#[track_caller]
fn stored(session: &mut Client) -> Vec<Option<String>> {
    session.run(&format!("BEGIN; {RAW_CASTS}"));
    let rows = session.texts(
        "SELECT concat_ws(' ', id, mail::bytea, photo::encrypted_text::bytea, list[1]::bytea,
                          (contact).mail::bytea, home::encrypted_text::bytea, plain) FROM person ORDER BY id",
    );
    session.run("ROLLBACK");
    rows
}

fn changes_travel(test: &str, major: u16, options: &str) {
    let Some(publisher) = Publisher::start(test, major) else { return };
    let reader = publisher.subscriber(test, major, "file");
    publisher.give_keys(&reader);
    let mut there = connect(&reader);
    subscribe(&mut there, "reader", publisher.wire.port(), "person", options);
    wait_for_copies(&mut there);
    let mut session = publisher.connect();
    publisher.change();
    wait_for_changes(&mut session, "reader");
    assert_eq!(there.texts(READABLE), session.texts(READABLE));
    assert_eq!(stored(&mut there), stored(&mut session));
    let find = format!("SELECT id FROM person WHERE mail = '{}'", publisher.secrets.get(555));
    assert_eq!(there.text(&find), "555");
    publisher.expect_ciphertext(&[&publisher.cluster, &reader]);
    // Truncation, and a transaction that is streamed before it ends.
    session.run("TRUNCATE person");
    publisher.insert(0..ROWS);
    wait_for_changes(&mut session, "reader");
    assert_eq!(there.texts(READABLE), session.texts(READABLE));
    publisher.expect_ciphertext(&[]);
}

#[test]
fn changes_travel_as_ciphertext() {
    changes_travel("changes_travel_as_ciphertext", 15, "binary = false, streaming = true");
}

#[test]
fn changes_travel_as_ciphertext_in_binary_form() {
    changes_travel("changes_travel_as_ciphertext_in_binary_form", 15, "binary = true");
}

#[test]
fn changes_travel_as_ciphertext_18() {
    changes_travel("changes_travel_as_ciphertext_18", 18, "binary = false, streaming = parallel");
}

#[test]
fn changes_travel_as_ciphertext_in_binary_form_18() {
    let test = "changes_travel_as_ciphertext_in_binary_form_18";
    changes_travel(test, 18, "binary = true, run_as_owner = true");
}

fn cascade(test: &str, major: u16) {
    let Some(publisher) = Publisher::start(test, major) else { return };
    // The one in the middle has neither the catalog's keys nor a provider.
    let middle = publisher.subscriber(test, major, "");
    let mut passing_on = connect(&middle);
    subscribe(&mut passing_on, "middle", publisher.wire.port(), "person", "");
    wait_for_copies(&mut passing_on);
    passing_on.run("CREATE PUBLICATION person FOR TABLE person");
    let wire = Proxy::start_recording(middle.port());
    let reader = publisher.subscriber(test, major, "file");
    publisher.give_keys(&reader);
    let mut there = connect(&reader);
    subscribe(&mut there, "reader", wire.port(), "person", "");
    wait_for_copies(&mut there);

    let mut session = publisher.connect();
    publisher.change();
    wait_for_changes(&mut session, "middle");
    wait_for_changes(&mut passing_on, "reader");
    passing_on.fails("SELECT mail FROM person", "KE003");
    assert_eq!(stored(&mut passing_on), stored(&mut session));
    assert_eq!(stored(&mut there), stored(&mut session));
    assert_eq!(there.texts(READABLE), session.texts(READABLE));
    publisher.expect_ciphertext(&[&publisher.cluster, &middle, &reader]);
    publisher.secrets.expect_none_in("the second wire", &wire.take_passed());

    // Once it has the keys, it reads what it has stored.
    middle.configure("encryption_ext.provider", "file");
    middle.reload();
    publisher.give_keys(&middle);
    assert_eq!(connect(&middle).texts(READABLE), session.texts(READABLE));
}

#[test]
fn a_subscriber_without_keys_stores_and_passes_on() {
    cascade("a_subscriber_without_keys_stores_and_passes_on", 15);
}

#[test]
fn a_subscriber_without_keys_stores_and_passes_on_18() {
    cascade("a_subscriber_without_keys_stores_and_passes_on_18", 18);
}

/// With REPLICA IDENTITY FULL the subscriber looks for a row by the equality of all columns, in their
/// order. Identical ciphertexts are equal without a key; for others the plaintexts are needed.
#[test]
fn replica_identity_full_needs_keys_where_rows_differ_in_encrypted_columns() {
    let test = "replica_identity_full_needs_keys_where_rows_differ_in_encrypted_columns";
    let Some(publisher) = Publisher::start(test, 15) else { return };
    let mut session = publisher.connect();
    session.run(
        "CREATE TABLE by_id (id integer, mail encrypted_text('k'));
         CREATE TABLE by_mail (mail encrypted_text('k'), n integer);
         ALTER TABLE by_id REPLICA IDENTITY FULL;
         ALTER TABLE by_mail REPLICA IDENTITY FULL;
         INSERT INTO by_id SELECT id, mail FROM person WHERE id < 20;
         INSERT INTO by_mail SELECT mail, id FROM person WHERE id < 20;
         CREATE PUBLICATION without_key FOR TABLE by_id, by_mail",
    );
    let keyless = publisher.subscriber(test, 15, "");
    let mut there = connect(&keyless);
    subscribe(&mut there, "keyless", publisher.wire.port(), "without_key", "");
    wait_for_copies(&mut there);
    let reader = publisher.subscriber(test, 15, "file");
    publisher.give_keys(&reader);
    let mut reading = connect(&reader);
    subscribe(&mut reading, "reader", publisher.wire.port(), "without_key", "");
    wait_for_copies(&mut reading);

    session.run("UPDATE by_id SET mail = 'changed' WHERE id = 10; DELETE FROM by_id WHERE id > 15");
    for name in ["keyless", "reader"] {
        wait_for_changes(&mut session, name);
    }
    const BY_ID: &str = "SELECT string_agg(id::text, ' ' ORDER BY id) FROM by_id";
    assert_eq!(there.text(BY_ID), session.text(BY_ID));
    assert_eq!(reading.text("SELECT mail FROM by_id WHERE id = 10"), "changed");

    session.run("UPDATE by_mail SET n = -10 WHERE n = 10");
    wait_for_changes(&mut session, "reader");
    assert_eq!(
        reading.text("SELECT mail FROM by_mail WHERE n = -10"),
        publisher.secrets.get(10).to_owned() + &"-".repeat(9000)
    );
    // The other stops there, until it has the keys, or an index that identifies the rows.
    wait_for(&mut there, "SELECT apply_error_count > 0 FROM pg_stat_subscription_stats");
    assert!(keyless.log().contains("ERROR:  key \"#"), "{}", keyless.log());
    publisher.give_keys(&keyless);
    keyless.configure("encryption_ext.provider", "file");
    keyless.reload();
    wait_for_changes(&mut session, "keyless");
    assert_eq!(connect(&keyless).text("SELECT count(*) FROM by_mail WHERE n = -10"), "1");
    publisher.secrets.expect_none_in("the wire", &publisher.wire.take_passed());
    for cluster in [&publisher.cluster, &keyless, &reader] {
        publisher.secrets.expect_none_in("a log", cluster.log().as_bytes());
    }
}

/// PostgreSQL allows no types of others in row filters. Lists of columns work.
#[test]
fn row_filters_are_refused_and_column_lists_work() {
    let test = "row_filters_are_refused_and_column_lists_work";
    let Some(publisher) = Publisher::start(test, 15) else { return };
    let mut session = publisher.connect();
    for filter in
        ["mail = 'x'", "mail IS NOT NULL", "mail::text = 'x'", "enc_key_version(mail) = 1"]
    {
        session.fails(&format!("CREATE PUBLICATION f FOR TABLE person WHERE ({filter})"), "0A000");
    }
    session.run(
        "CREATE PUBLICATION mails FOR TABLE person (id, mail);
         CREATE PUBLICATION others FOR TABLE person (id, plain)",
    );
    let subscriber = publisher.subscriber(test, 15, "file");
    publisher.give_keys(&subscriber);
    let mut there = connect(&subscriber);
    for publication in ["mails", "others"] {
        there.run("TRUNCATE person");
        subscribe(&mut there, publication, publisher.wire.port(), publication, "");
        wait_for_copies(&mut there);
        session.run("UPDATE person SET mail = 'changed by ' || id WHERE id < 10");
        wait_for_changes(&mut session, publication);
        there.run(&format!("DROP SUBSCRIPTION {publication}"));
        let mails = "SELECT count(mail) FROM person";
        let expected = if publication == "mails" { session.text(mails) } else { "0".to_owned() };
        assert_eq!(there.text(mails), expected);
        assert_eq!(there.text("SELECT count(photo) FROM person"), "0");
    }
}

/// What the server decodes for SQL, and for programs that read changes, is ciphertext.
#[test]
fn decoding_shows_ciphertext() {
    let test = "decoding_shows_ciphertext";
    let Some(publisher) = Publisher::start(test, 15) else { return };
    let mut session = publisher.connect();
    for statement in [
        "ALTER TABLE person REPLICA IDENTITY FULL",
        "SELECT pg_create_logical_replication_slot('d', 'test_decoding')",
        "SELECT pg_create_logical_replication_slot('p', 'pgoutput')",
    ] {
        session.run(statement);
    }
    publisher.change();
    const OPTIONS: &str = "'proto_version', '2', 'publication_names', 'person'";
    for query in [
        "SELECT string_agg(convert_to(data, 'UTF8'), '') FROM pg_logical_slot_peek_changes('d', NULL, NULL)".to_owned(),
        "SELECT string_agg(data, '') FROM pg_logical_slot_peek_binary_changes('d', NULL, NULL)".to_owned(),
        format!("SELECT string_agg(data, '') FROM pg_logical_slot_peek_binary_changes('p', NULL, NULL, {OPTIONS})"),
        format!("SELECT string_agg(data, '') FROM pg_logical_slot_peek_binary_changes('p', NULL, NULL, {OPTIONS}, 'binary', 'true')"),
    ] {
        let decoded: Vec<u8> = session.value(&query);
        publisher.secrets.expect_none_in(&query, &decoded);
        let controls = publisher.controls.count_in(&decoded);
        assert!(controls >= ROWS / 2, "{controls} in {query}");
    }
    // The session itself goes on reading.
    assert_eq!(session.text("SELECT home FROM person WHERE id = 2"), publisher.secrets.get(2));
    let written = session.text("SELECT pg_current_wal_flush_lsn()");
    let received = publisher.cluster.directory().join("received");
    let output = publisher
        .cluster
        .command("pg_recvlogical")
        .args([
            "--dbname=postgres",
            "--slot=d",
            "--start",
            "--no-loop",
            "--endpos",
            &written,
            "--file",
        ])
        .arg(&received)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let received = fs::read(&received).unwrap();
    publisher.secrets.expect_none_in("pg_recvlogical", &received);
    assert!(publisher.controls.count_in(&received) >= ROWS / 2);
}

/// A program that prints keys, notes who called it, and hangs when it is told to.
fn make_command(folder: &Path) -> String {
    let program = folder.join("print_key");
    let key = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=";
    let script = format!(
        "#!/bin/sh\ncd {} || exit 1\necho $PPID $1 >> calls\n[ -e hang ] && exec sleep 600\n\
         [ $2 = 1 ] || exit 3\necho {key}\n",
        folder.display()
    );
    fs::write(&program, script).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    format!("{} %n %v", program.display())
}

/// A process that decodes asks no provider and reads no catalog of the extension's: it works where a provider
/// hangs, and the catalog is out of reach.
#[test]
fn decoding_asks_nobody() {
    let test = "decoding_asks_nobody";
    let Some(builder) = builder_on(15, test) else { return };
    let described = networked(builder).setting("encryption_ext.provider", "command");
    let mut cluster = described.create();
    let folder = cluster.directory().to_owned();
    cluster.configure("encryption_ext.command", &make_command(&folder));
    cluster.start();
    let mut session = connect(&cluster);
    session.run("CREATE EXTENSION encryption_ext; SELECT enc_create_key('k')");
    session.run(TABLES);
    session.run(
        "INSERT INTO person (id, mail) SELECT n, 'mail of ' || n FROM generate_series(1, 100) n;
         CREATE PUBLICATION person FOR TABLE person",
    );
    let calls = || fs::read_to_string(folder.join("calls")).unwrap();
    let so_far = calls();
    assert!(!so_far.is_empty());
    fs::write(folder.join("hang"), "").unwrap();

    let receiver = networked(builder_on(15, test).unwrap()).start();
    copy_definitions(&cluster, &receiver);
    let mut there = connect(&receiver);
    subscribe(&mut there, "receiver", cluster.port(), "person", "");
    wait_for_copies(&mut there);
    session.run("SELECT pg_create_logical_replication_slot('d', 'test_decoding')");
    // The catalog is locked for whoever wants to read it.
    let mut administrator = connect(&cluster);
    administrator.run("BEGIN; LOCK encryption.key, encryption.key_version, encryption.key_grant, encryption.keyspace");
    session.run("UPDATE person SET mail = mail WHERE id <= 50; INSERT INTO person (id, mail) SELECT 200, mail FROM person WHERE id = 1");
    wait_for_changes(&mut session, "receiver");
    session.run("UPDATE person SET mail = mail WHERE id <= 50");
    assert_eq!(
        session.text("SELECT count(*) FROM pg_logical_slot_peek_changes('d', NULL, NULL)"),
        "105"
    );
    administrator.run("ROLLBACK");
    assert_eq!(there.text("SELECT count(*) FROM person"), "101");
    assert_eq!(calls(), so_far, "somebody asked the provider");
}

/// A new version reaches a subscriber before it is used: docs/operations/replication.md.
#[test]
fn a_rotation_goes_through_replication() {
    let test = "a_rotation_goes_through_replication";
    let Some(publisher) = Publisher::start(test, 15) else { return };
    let reader = publisher.subscriber(test, 15, "file");
    publisher.give_keys(&reader);
    let mut there = connect(&reader);
    subscribe(&mut there, "reader", publisher.wire.port(), "person", "");
    wait_for_copies(&mut there);
    let mut session = publisher.connect();

    // As it should be: pending, known there, seen to be right there, active.
    session.run("SELECT enc_rotate_key('k', activate => false)");
    publisher.give_keys(&reader);
    let checks = "SELECT string_agg(format('%s %s %s', version, state, ok), ', ' ORDER BY version) FROM enc_check_key('k')";
    assert_eq!(there.text(checks), "1 active t, 2 pending t");
    there.run("SELECT enc_activate_key_version('k', 2)");
    session.run("SELECT enc_activate_key_version('k', 2); UPDATE person SET mail = enc_rotate(mail), home = enc_rotate(home)");
    publisher.change();
    wait_for_changes(&mut session, "reader");
    let versions = "SELECT string_agg(DISTINCT enc_key_version(mail)::text, ' ') FROM person";
    assert_eq!(there.text(versions), "2");
    assert_eq!(there.texts(READABLE), session.texts(READABLE));

    // Too early: what arrives is stored, can't be read, and is read once the version is known.
    session
        .run("SELECT enc_rotate_key('k'); INSERT INTO person (id, mail) VALUES (-1, 'too early')");
    wait_for_changes(&mut session, "reader");
    there.fails("SELECT mail FROM person WHERE id = -1", "KE006");
    assert_eq!(there.text("SELECT enc_key_version(mail) FROM person WHERE id = -1"), "3");
    assert_eq!(
        there.text("SELECT finding FROM enc_reconcile('k') WHERE version = 3"),
        "newer at provider"
    );
    publisher.give_keys(&reader);
    assert_eq!(there.text("SELECT mail FROM person WHERE id = -1"), "too early");
    // The whole column, in batches. What arrives gets under the version that is active here.
    there.run("SELECT enc_activate_key_version('k', 3)");
    session.run("CALL enc_rotate_all('k')");
    wait_for_changes(&mut session, "reader");
    assert_eq!(there.text(versions), "3");
    assert_eq!(there.texts(READABLE), session.texts(READABLE));
    publisher.expect_ciphertext(&[&publisher.cluster, &reader]);
}

fn conflicts(test: &str, major: u16) {
    let Some(publisher) = Publisher::start(test, major) else { return };
    let reader = publisher.subscriber(test, major, "file");
    publisher.give_keys(&reader);
    let mut there = connect(&reader);
    subscribe(&mut there, "reader", publisher.wire.port(), "person", "");
    wait_for_copies(&mut there);
    let mut session = publisher.connect();
    // The subscriber has a row of its own with the same number, and with the same plaintext.
    there.run(&format!(
        "ALTER TABLE person ADD CHECK (mail <> '{0}');
         CREATE UNIQUE INDEX person_mail ON person (enc_digest(mail));
         INSERT INTO person (id, mail, home) VALUES (900, '{1}', '{1}'), (-1, '{2}', '{1}')",
        publisher.secrets.get(904),
        publisher.secrets.get(901),
        publisher.secrets.get(902),
    ));
    for (n, resolution) in [
        (900, "DELETE FROM person WHERE id = 900"),
        (902, "DELETE FROM person WHERE id = -1"),
        (904, "ALTER TABLE person DROP CONSTRAINT person_mail_check"),
    ] {
        let errors: i64 = there.value("SELECT apply_error_count FROM pg_stat_subscription_stats");
        let secret = publisher.secrets.get(n);
        let control = publisher.controls.get(n);
        session.run(&format!(
            "INSERT INTO person VALUES ({n}, '{secret}', '{secret}', '{{\"{secret}\"}}', NULL, '{secret}', '{control}')"
        ));
        wait_for(
            &mut there,
            &format!("SELECT apply_error_count > {errors} FROM pg_stat_subscription_stats"),
        );
        publisher.secrets.expect_none_in("the subscriber's log", reader.log().as_bytes());
        there.run(resolution);
        wait_for_changes(&mut session, "reader");
        assert_eq!(there.text(&format!("SELECT mail FROM person WHERE id = {n}")), secret);
    }
    // Rows that aren't there any more.
    there.run("DELETE FROM person WHERE id < 10");
    session.run("UPDATE person SET mail = 'x' WHERE id = 5; DELETE FROM person WHERE id = 6");
    wait_for_changes(&mut session, "reader");
    publisher.secrets.expect_none_in("the subscriber's log", reader.log().as_bytes());
}

/// What the subscriber's log tells of rows that it can't apply is ciphertext.
#[test]
fn conflicts_are_told_without_plaintexts() {
    conflicts("conflicts_are_told_without_plaintexts", 15);
}

#[test]
fn conflicts_are_told_without_plaintexts_18() {
    conflicts("conflicts_are_told_without_plaintexts_18", 18);
}

/// A publication of all tables has the extension's own in it. They are each database's own business.
fn all_tables(test: &str, major: u16, copy_data: bool) {
    let Some(publisher) = Publisher::start(test, major) else { return };
    let mut session = publisher.connect();
    session.run(
        "CREATE PUBLICATION everything FOR ALL TABLES;
         SELECT enc_grant('k', 'public', 'compare')",
    );
    // A subscriber that has keys of its own, a database key of the same name among them.
    let subscriber = networked(builder_on(major, test).unwrap()).start();
    copy_definitions(&publisher.cluster, &subscriber);
    let mut there = connect(&subscriber);
    there.run(
        "SELECT enc_create_key('own'), enc_grant('own', 'public', 'decrypt'),
                enc_record_backup('own', 'infinity')",
    );
    let catalog = |session: &mut Client| {
        let tables = [
            "keyspace",
            "key",
            "key_version",
            "key_grant",
            "backup",
            "backup_version",
            "event_chain",
            "key_event",
            "job",
            "job_range",
            "version_proof",
        ];
        let rows = tables.map(|table| {
            session.texts(&format!("SELECT t::text FROM encryption.{table} t ORDER BY 1"))
        });
        rows.concat()
    };
    let before = catalog(&mut there);
    subscribe(
        &mut there,
        "all_of_it",
        publisher.wire.port(),
        "everything",
        &format!("copy_data = {copy_data}"),
    );
    wait_for_copies(&mut there);
    for statement in [
        "SELECT enc_rotate_key('k'), enc_create_key('further'), enc_revoke('k', 'public')",
        "SELECT enc_record_backup('b', 'infinity')",
        "CALL enc_rotate_all('k')",
        "SELECT count(*) FROM enc_verify_version_unused('k', 1)",
        "SELECT enc_disable_key_version('k', 1)",
    ] {
        session.run(statement);
    }
    publisher.insert(ROWS / 2..ROWS);
    wait_for_changes(&mut session, "all_of_it");
    assert_eq!(catalog(&mut there), before);
    assert_eq!(there.text("SELECT count(*) FROM person WHERE id >= 500"), "500");
    there.fails("SELECT mail FROM person WHERE id = 999", "KE003");
    there.run("CREATE TABLE own (v encrypted_text('own')); INSERT INTO own VALUES ('own')");
    assert_eq!(there.text("SELECT v FROM own"), "own");
    publisher.expect_ciphertext(&[&publisher.cluster, &subscriber]);
}

#[test]
fn a_publication_of_all_tables_leaves_the_catalog_alone() {
    all_tables("a_publication_of_all_tables_leaves_the_catalog_alone", 15, true);
}

#[test]
fn a_publication_of_all_tables_leaves_the_catalog_alone_without_a_copy() {
    all_tables("a_publication_of_all_tables_leaves_the_catalog_alone_without_a_copy", 15, false);
}

#[test]
fn a_publication_of_all_tables_leaves_the_catalog_alone_18() {
    all_tables("a_publication_of_all_tables_leaves_the_catalog_alone_18", 18, true);
}

/// A column may be encrypted on one side only: armor is a text, and a plaintext is encrypted as it arrives.
#[test]
fn one_side_may_have_other_types() {
    let test = "one_side_may_have_other_types";
    let Some(publisher) = Publisher::start(test, 15) else { return };
    let mut session = publisher.connect();
    session.run(
        "CREATE TABLE plain (id integer PRIMARY KEY, mail text, photo bytea);
         INSERT INTO plain SELECT id, mail, photo FROM person;
         CREATE PUBLICATION plain FOR TABLE plain;
         CREATE TABLE secret (id integer PRIMARY KEY, mail encrypted_text('k'), photo encrypted_bytea('k'));
         INSERT INTO secret SELECT id, mail, photo FROM person;
         CREATE PUBLICATION secret FOR TABLE secret",
    );
    let subscriber = networked(builder_on(15, test).unwrap()).start();
    let mut there = connect(&subscriber);
    there.run(
        "CREATE EXTENSION encryption_ext; SELECT enc_create_key('own');
         CREATE TABLE plain (id integer PRIMARY KEY, mail encrypted_text('own'), photo encrypted_bytea('own'));
         CREATE TABLE secret (id integer PRIMARY KEY, mail text, photo text)",
    );
    for publication in ["plain", "secret"] {
        subscribe(&mut there, publication, publisher.wire.port(), publication, "");
    }
    wait_for_copies(&mut there);
    session.run("INSERT INTO plain VALUES (-1, 'new', '\\x01'); INSERT INTO secret VALUES (-1, 'new', '\\x01')");
    for publication in ["plain", "secret"] {
        wait_for_changes(&mut session, publication);
    }
    const PLAIN: &str = "SELECT p::text FROM plain p ORDER BY id";
    assert_eq!(there.texts(PLAIN), session.texts(PLAIN));
    assert_eq!(
        there.text("SELECT DISTINCT enc_key_name(mail) || enc_key_name(photo) FROM plain"),
        "ownown"
    );
    let armor = "SELECT bool_and(mail LIKE 'enc:1:%' AND photo LIKE 'enc:1:%') FROM secret";
    assert_eq!(there.text(armor), "t");
}
