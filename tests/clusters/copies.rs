//! Data that SQL copies: into new tables, through COPY in binary form, and to other servers by foreign
//! tables.

#![expect(clippy::unwrap_used, reason = "a test fails by a panic")]

use std::fs;
use std::io::{Read, Write};

use cluster_tests::secrets::Secrets;
use cluster_tests::{
    Session, builder_on, connect, create_extension, expect_error, start, start_with,
};
use harness::cluster::{Cluster, SUPERUSER};
use harness::free_port;
use harness::proxy::Proxy;
use postgres::Client;

const ROWS: usize = 50;

/// A table `person` with planted plaintexts under a key `k`, one of whose versions isn't active any more.
fn make_persons(session: &mut Client, secrets: &Secrets) {
    session.run(
        "SELECT enc_create_key('k'), enc_create_key('l');
         CREATE TABLE person (id integer PRIMARY KEY, mail encrypted_text('k'),
                              photo encrypted_bytea('k'), list encrypted_text('k')[])",
    );
    let mut lines = String::new();
    for n in 0..ROWS {
        let secret = secrets.get(n);
        lines += &format!("{n}\t{secret}\t{secret}\t{{{secret},{secret}}}\n");
    }
    let mut copy = session.copy_in("COPY person FROM STDIN").unwrap();
    copy.write_all(lines.as_bytes()).unwrap();
    copy.finish().unwrap();
    session
        .run("SELECT enc_rotate_key('k'); UPDATE person SET mail = enc_rotate(mail) WHERE id < 9");
}

/// A table that is made of a query has the ciphertexts of the other, as they are: no key is asked for.
/// What the query computes from plaintexts is plaintext.
#[test]
fn tables_made_of_queries_have_the_same_ciphertexts() {
    let test = "tables_made_of_queries_have_the_same_ciphertexts";
    let Some(cluster) = start(test) else { return };
    let mut session = connect(&cluster);
    let secrets = Secrets::new(ROWS, 1);
    make_persons(&mut session, &secrets);
    session.run("CREATE ROLE clerk LOGIN; GRANT CREATE ON SCHEMA public TO clerk; GRANT SELECT ON person TO clerk");

    // Without any right on the key, and without the key itself.
    let keyring = cluster_tests::keyring_file(&cluster);
    let keys = fs::read(&keyring).unwrap();
    fs::remove_file(&keyring).unwrap();
    let mut clerk = cluster.connect("clerk", "postgres");
    clerk.run("CREATE TABLE made AS SELECT * FROM person WHERE id < 40");
    clerk.run("SELECT id, mail, list INTO taken FROM person");
    clerk.run("CREATE MATERIALIZED VIEW seen AS SELECT mail, ARRAY[mail] AS two FROM person");
    clerk.run("INSERT INTO made (id, photo) SELECT id, photo FROM person WHERE id >= 40");
    clerk.run("BEGIN; DECLARE c CURSOR WITH HOLD FOR SELECT mail FROM person; COMMIT");
    // Into a column of another key a value is encrypted again.
    clerk.run("CREATE TABLE other (mail encrypted_text('l'))");
    clerk.fails("INSERT INTO other SELECT mail FROM person", "KE020");
    clerk.fails("CREATE TABLE bare AS SELECT id, CASE id WHEN 1 THEN mail ELSE mail::encrypted_text END AS m FROM person", "KE031");
    fs::write(&keyring, keys).unwrap();

    for table in ["made", "taken"] {
        let same = format!(
            "SELECT count(*) FROM {table} JOIN person USING (id)
              WHERE {table}.mail::bytea = person.mail::bytea AND {table}.list::text = person.list::text"
        );
        let rows = session.text(&format!("SELECT count(*) FROM {table} WHERE mail IS NOT NULL"));
        assert_eq!(session.text(&same), rows, "{table}");
    }
    assert_eq!(
        session.text(
            "SELECT string_agg(format_type(atttypid, atttypmod), ' ' ORDER BY attnum)
               FROM pg_attribute WHERE attrelid = 'made'::regclass AND attnum > 0"
        ),
        "integer encrypted_text('k') encrypted_bytea('k') encrypted_text('k')[]"
    );
    session.run(
        "CREATE TABLE computed AS SELECT lower(mail) AS l, mail || '' AS m FROM person; CHECKPOINT",
    );
    let files = |table: &str| {
        let file = session_file(&mut connect(&cluster), table);
        fs::read(cluster.data_directory().join(file)).unwrap()
    };
    for table in ["made", "taken", "seen"] {
        secrets.expect_none_in(table, &files(table));
    }
    assert!(secrets.count_in(&files("computed")) >= ROWS);
}

fn session_file(session: &mut Client, table: &str) -> String {
    session.text(&format!("SELECT pg_relation_filepath('{table}')"))
}

/// What COPY writes in binary form is what the role sees in text form, and it is taken back.
#[test]
fn binary_copies_carry_what_the_role_may_see() {
    let test = "binary_copies_carry_what_the_role_may_see";
    let Some(cluster) = start(test) else { return };
    let mut session = connect(&cluster);
    let secrets = Secrets::new(ROWS, 2);
    make_persons(&mut session, &secrets);
    session.run("CREATE ROLE clerk LOGIN; GRANT SELECT ON person TO clerk; CREATE TABLE again (LIKE person)");

    let plain = copied_out(&mut session, "COPY person TO STDOUT (FORMAT binary)");
    assert_eq!(secrets.count_in(&plain), 4 * ROWS);
    let mut copy = session.copy_in("COPY again FROM STDIN (FORMAT binary)").unwrap();
    copy.write_all(&plain).unwrap();
    assert_eq!(copy.finish().unwrap(), ROWS as u64);
    const ALL: &str = "SELECT p::text FROM (TABLE person ORDER BY id) p";
    assert_eq!(session.texts(&ALL.replace("person", "again")), session.texts(ALL));
    let versions = "SELECT string_agg(DISTINCT enc_key_version(mail)::text, ' ') FROM again";
    assert_eq!(session.text(versions), "2");

    let mut clerk = cluster.connect("clerk", "postgres");
    for copy in [
        "COPY person TO STDOUT (FORMAT binary)",
        "COPY person (list) TO STDOUT (FORMAT binary)",
        "COPY person (photo) TO STDOUT",
    ] {
        let error = clerk.copy_out(copy).and_then(|mut rows| {
            rows.read_to_end(&mut Vec::new())
                .map_err(|e| *e.into_inner().unwrap().downcast().unwrap())
        });
        let _ = expect_error(&error.unwrap_err(), "KE020");
    }
}

fn copied_out(session: &mut Client, sql: &str) -> Vec<u8> {
    let mut out = Vec::new();
    session.copy_out(sql).unwrap().read_to_end(&mut out).unwrap();
    out
}

/// Two databases, each with a key `k` of its own, and in the first a foreign table `person` of the second.
struct Two {
    cluster: Cluster,
    wire: Proxy,
    secrets: Secrets,
}

impl Two {
    fn start(test: &str, major: u16) -> Option<Self> {
        let port = free_port();
        let described =
            builder_on(major, test)?.port(port).setting("listen_addresses", "127.0.0.1");
        let cluster = start_with(described, test)?;
        if !cluster.has_extension("postgres_fdw") {
            harness::skip(test, "postgres_fdw is not installed");
            return None;
        }
        cluster.createdb("far", "UTF8");
        create_extension(&cluster, "far");
        let wire = Proxy::start_recording(port);
        let secrets = Secrets::new(ROWS, 3);
        let mut near = connect(&cluster);
        let mut far = cluster.connect(SUPERUSER, "far");
        make_persons(&mut far, &secrets);
        near.run("SELECT enc_create_key('near'), enc_create_key('k')");
        near.run(&format!(
            "CREATE EXTENSION postgres_fdw;
             CREATE SERVER far FOREIGN DATA WRAPPER postgres_fdw
                 OPTIONS (host '127.0.0.1', port '{}', dbname 'far');
             CREATE USER MAPPING FOR PUBLIC SERVER far OPTIONS (user '{SUPERUSER}');
             CREATE FOREIGN TABLE person (id integer, mail encrypted_text('near'),
                 photo encrypted_bytea('near'), list encrypted_text('near')[]) SERVER far",
            wire.port()
        ));
        // In both: what is joined with it.
        let guesses = format!(
            "CREATE TABLE guess (t text, e encrypted_text('k'));
             INSERT INTO guess VALUES ('{0}', '{0}'), ('{1}', '{1}'), ('nobody', 'nobody'); ANALYZE guess",
            secrets.get(3),
            secrets.get(30)
        );
        near.run(&guesses);
        far.run(&guesses);
        Some(Self { cluster, wire, secrets })
    }

    fn near(&self) -> Client {
        connect(&self.cluster)
    }

    fn far(&self) -> Client {
        self.cluster.connect(SUPERUSER, "far")
    }
}

/// Conditions and orders mean the same on a foreign table as on the table that it stands for, whether they
/// are sent to the other server or not.
fn conditions_mean_the_same(test: &str, major: u16) {
    let Some(two) = Two::start(test, major) else { return };
    let (mut near, mut far) = (two.near(), two.far());
    let (a, b) = (two.secrets.get(3), two.secrets.get(30));
    let queries = [
        "SELECT p::text FROM person p ORDER BY id".to_owned(),
        format!("SELECT id FROM person WHERE mail = '{a}'"),
        format!("SELECT id FROM person WHERE mail = '{a}'::text"),
        format!("SELECT id FROM person WHERE '{a}'::varchar = mail"),
        format!("SELECT id FROM person WHERE mail <> '{a}' ORDER BY id"),
        format!("SELECT id FROM person WHERE mail IN ('{a}', '{b}') ORDER BY id"),
        format!("SELECT id FROM person WHERE mail = ANY (ARRAY['{a}', '{b}']) ORDER BY id"),
        format!("SELECT id FROM person WHERE photo = convert_to('{b}', 'UTF8')"),
        format!("SELECT id FROM person WHERE mail < '{b}' ORDER BY id"),
        format!("SELECT id FROM person WHERE lower(mail) = lower('{b}')"),
        format!("SELECT id FROM person WHERE mail LIKE '{}%'", &a[..5]),
        format!("SELECT id FROM person WHERE enc_digest(mail) = enc_digest('{a}')"),
        format!("SELECT id FROM person WHERE list[2] = '{a}'"),
        "SELECT id FROM person WHERE mail = 'nobody'".to_owned(),
        "SELECT id FROM person ORDER BY mail".to_owned(),
        "SELECT id FROM person ORDER BY mail DESC LIMIT 3".to_owned(),
        "SELECT min(mail::text) FROM person".to_owned(),
        "SELECT count(DISTINCT mail) FROM person".to_owned(),
        "SELECT p.id FROM person p JOIN guess ON p.mail = guess.e ORDER BY p.id".to_owned(),
        "SELECT p.id FROM person p JOIN guess ON p.mail = guess.t ORDER BY p.id".to_owned(),
        "SELECT p.id FROM person p JOIN person q USING (mail) ORDER BY p.id".to_owned(),
        "SELECT count(*) FROM guess WHERE t NOT IN (SELECT mail FROM person)".to_owned(),
    ];
    let remote = |near: &mut Client, query: &str| {
        let plan = near.texts(&format!("EXPLAIN (VERBOSE, COSTS OFF) {query}"));
        let sent = plan.into_iter().flatten().filter(|line| line.contains("Remote SQL"));
        sent.collect::<Vec<_>>().join("; ")
    };
    for sends_conditions in [false, true] {
        if sends_conditions {
            near.run("ALTER SERVER far OPTIONS (ADD extensions 'encryption_ext')");
        }
        for query in &queries {
            let expected = far.texts(query);
            assert_eq!(near.texts(query), expected, "{query} ({sends_conditions})");
            near.run("SET plan_cache_mode = force_generic_plan; SET enable_hashjoin = off; SET enable_mergejoin = off");
            assert_eq!(near.texts(query), expected, "{query} ({sends_conditions}, nested loops)");
            near.run("RESET ALL");
        }
        let prepared = near.prepare("SELECT id FROM person WHERE mail = $1::text").unwrap();
        near.run("SET plan_cache_mode = force_generic_plan");
        assert_eq!(near.query_one(&prepared, &[&b]).unwrap().get::<_, i32>(0), 30);
        near.run("RESET ALL");
        assert_eq!(remote(&mut near, &queries[1]).contains("WHERE"), sends_conditions);
        assert_eq!(remote(&mut near, &queries[14]).contains("ORDER BY"), sends_conditions);
    }

    // Changes find their rows, and what is written is under the other side's key.
    near.run(&format!("UPDATE person SET photo = 'new' WHERE mail = '{a}'"));
    near.run(&format!("DELETE FROM person WHERE mail = '{b}'"));
    near.run("INSERT INTO person VALUES (100, 'hundred', 'photo', '{one,two}') RETURNING mail");
    near.run("UPDATE person SET mail = upper(mail) WHERE id = 100");
    let changed = far.texts(
        "SELECT format('%s %s %s %s', id, mail, convert_from(photo, 'UTF8'), list)
                               FROM person WHERE photo = 'new' OR id IN (30, 100) ORDER BY id",
    );
    let expected = [format!("3 {a} new {{{a},{a}}}"), "100 HUNDRED photo {one,two}".to_owned()];
    assert_eq!(changed, expected.map(Some));
    let keys =
        "SELECT string_agg(DISTINCT enc_key_name(mail) || enc_key_version(mail), ' ') FROM person";
    assert_eq!(far.text(&format!("{keys} WHERE id IN (3, 100)")), "k2");
    // On this side a row is under this side's key as soon as it arrives.
    assert_eq!(near.text(keys), "near1");
    near.run("CREATE TABLE copied AS TABLE person");
    assert_eq!(near.text("SELECT DISTINCT enc_key_name(list[1]) FROM copied"), "near");
    // Definitions can be taken over, if the key is there by that name.
    near.run("CREATE SCHEMA imported; IMPORT FOREIGN SCHEMA public LIMIT TO (person) FROM SERVER far INTO imported");
    assert_eq!(near.text("SELECT mail FROM imported.person WHERE id = 100"), "HUNDRED");
}

#[test]
fn conditions_mean_the_same_on_foreign_tables() {
    conditions_mean_the_same("conditions_mean_the_same_on_foreign_tables", 15);
}

#[test]
fn conditions_mean_the_same_on_foreign_tables_18() {
    conditions_mean_the_same("conditions_mean_the_same_on_foreign_tables_18", 18);
}

/// Between the servers goes what both sides' sessions show and take, which by default is plaintext.
#[test]
fn foreign_tables_carry_ciphertext_where_both_sides_are_set_so() {
    let test = "foreign_tables_carry_ciphertext_where_both_sides_are_set_so";
    let Some(two) = Two::start(test, 15) else { return };
    let read = |session: &mut Client| session.texts("SELECT p::text FROM person p ORDER BY id");
    assert_eq!(read(&mut two.near()), read(&mut two.far()));
    let passed = two.secrets.count_in(&two.wire.take_passed());
    assert!(passed >= ROWS, "the search finds nothing");

    // A database that has the other's keys.
    two.cluster.createdb("same", "UTF8");
    create_extension(&two.cluster, "same");
    let mut same = two.cluster.connect(SUPERUSER, "same");
    let keys = two.far().text("SELECT enc_export_keys()");
    same.execute("SELECT enc_import_keys($1::text::jsonb)", &[&keys]).unwrap();
    same.run(&format!(
        "CREATE EXTENSION postgres_fdw;
         CREATE SERVER far FOREIGN DATA WRAPPER postgres_fdw
             OPTIONS (host '127.0.0.1', port '{}', dbname 'far',
                      options '-c encryption_ext.output=armor -c encryption_ext.input=auto');
         CREATE USER MAPPING FOR PUBLIC SERVER far OPTIONS (user '{SUPERUSER}');
         CREATE FOREIGN TABLE person (id integer, mail encrypted_text('k'),
             photo encrypted_bytea('k'), list encrypted_text('k')[]) SERVER far",
        two.wire.port()
    ));
    same.fails("SELECT mail FROM person", "KE033");
    same.run("SET encryption_ext.input = auto");
    assert_eq!(read(&mut same), read(&mut two.far()));
    let find = format!("SELECT id FROM person WHERE mail = '{}'", two.secrets.get(7));
    assert_eq!(same.text(&find), "7");
    same.run("CREATE TABLE here AS SELECT * FROM person");
    same.run("SET encryption_ext.output = armor; UPDATE here SET id = id + 100; INSERT INTO person SELECT * FROM here");
    let again = "SELECT count(*) FROM person a JOIN person b ON b.id = a.id + 100 AND a.mail = b.mail AND a.photo = b.photo";
    assert_eq!(two.far().text(again), ROWS.to_string());
    two.secrets.expect_none_in("the wire", &two.wire.take_passed());
}
