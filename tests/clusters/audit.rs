//! The audit: every value that a statement decrypts or encrypts is counted, once, for the key and the
//! role.

#![expect(clippy::unwrap_used, reason = "a test fails by a panic")]

use std::io::{Read, Write};

use cluster_tests::{Binary, DATABASE, Session, builder, connect, create_extension};
use harness::cluster::{Cluster, backend_pid};
use postgres::Client;
use serde_json::Value;

const PREFIX: &str = "encryption_ext audit: ";

/// The log's lines of the audit, from where it was read last.
struct Audit<'a> {
    cluster: &'a Cluster,
    read: usize,
}

impl<'a> Audit<'a> {
    fn new(cluster: &'a Cluster) -> Self {
        Self { cluster, read: cluster.log().len() }
    }

    fn lines(&mut self) -> Vec<Value> {
        let log = self.cluster.log();
        let new = &log[self.read..];
        let lines = new.lines().filter_map(|line| Some(line.split_once(PREFIX)?.1));
        let lines = lines.map(|line| serde_json::from_str(line).unwrap()).collect();
        self.read = log.len();
        lines
    }

    /// How many values were decrypted, compared and encrypted under a key, by all lines.
    fn sums(&mut self, key: &str) -> [u64; 3] {
        let mut sums = [0; 3];
        for line in self.lines().iter().filter(|line| line["key"] == key) {
            for (sum, what) in sums.iter_mut().zip(["decrypted", "compared", "encrypted"]) {
                *sum += line[what].as_u64().unwrap();
            }
        }
        sums
    }
}

fn start(test: &str, level: &str) -> Option<Cluster> {
    let cluster = builder(test)?
        .setting("encryption_ext.audit", level)
        .setting("compute_query_id", "on")
        .start();
    create_extension(&cluster, DATABASE);
    connect(&cluster).run(
        "SELECT enc_create_key('k'), enc_create_key('other');
         CREATE TABLE t (id integer, v encrypted_text('k'), b encrypted_bytea('other'));
         INSERT INTO t SELECT n, 's' || n, convert_to('b' || n, 'UTF8') FROM generate_series(1, 1000) n;
         CREATE INDEX ON t (enc_digest(v)); CREATE TABLE copied (v encrypted_text('k'))",
    );
    Some(cluster)
}

#[test]
fn each_value_is_counted_once() {
    let Some(cluster) = start("each_value_is_counted_once", "access") else { return };
    let mut session = connect(&cluster);
    let mut audit = Audit::new(&cluster);
    let check = |session: &mut Client, audit: &mut Audit<'_>, sql: &str, expected: [u64; 3]| {
        if session.simple_query(sql).is_err() {
            // The client has the error before the transaction has ended.
            session.run("");
        }
        assert_eq!(audit.sums("k"), expected, "{sql}");
    };

    check(&mut session, &mut audit, "SELECT v FROM t", [1000, 0, 0]);
    check(&mut session, &mut audit, "SELECT v FROM t WHERE id <= 7", [7, 0, 0]);
    check(&mut session, &mut audit, "SELECT count(*) FROM t", [0, 0, 0]);
    check(&mut session, &mut audit, "SELECT v, v::text, length(v) FROM t", [3000, 0, 0]);
    check(&mut session, &mut audit, "SELECT FROM t WHERE b = '\\x00'", [0, 0, 0]);
    // A constant is the client's own, under the database key, and is not counted.
    check(
        &mut session,
        &mut audit,
        "SET enable_indexscan = off; SET enable_bitmapscan = off",
        [0; 3],
    );
    check(&mut session, &mut audit, "SELECT FROM t WHERE v = 's500'", [0, 1001, 0]);
    session.run("RESET enable_indexscan; RESET enable_bitmapscan; SET enable_seqscan = off");
    check(&mut session, &mut audit, "SELECT v FROM t WHERE v = 's500'", [1, 1, 0]);
    check(&mut session, &mut audit, "SELECT v FROM t WHERE v = 'none'", [0, 0, 0]);
    session.run("RESET enable_seqscan");

    // Written, and what indexes on digests need.
    check(
        &mut session,
        &mut audit,
        "INSERT INTO copied SELECT 'x' FROM generate_series(1, 300)",
        [0, 0, 300],
    );
    check(&mut session, &mut audit, "UPDATE copied SET v = 'y'", [0, 0, 300]);
    check(&mut session, &mut audit, "UPDATE copied SET v = v || '!'", [300, 0, 300]);
    check(&mut session, &mut audit, "UPDATE copied SET v = 'z' RETURNING v", [300, 0, 300]);
    check(&mut session, &mut audit, "INSERT INTO copied SELECT v FROM t", [0, 0, 0]);
    check(&mut session, &mut audit, "DELETE FROM copied", [0, 0, 0]);
    check(&mut session, &mut audit, "CREATE TABLE again AS SELECT v::text FROM t", [1000, 0, 0]);
    check(&mut session, &mut audit, "SELECT v FROM t ORDER BY v", [2000, 0, 0]);

    let mut out = String::new();
    session.copy_out("COPY t (v) TO STDOUT").unwrap().read_to_string(&mut out).unwrap();
    assert_eq!((out.lines().count(), audit.sums("k")), (1000, [1000, 0, 0]));
    let mut copy = session.copy_in("COPY copied FROM STDIN").unwrap();
    copy.write_all(out.as_bytes()).unwrap();
    copy.finish().unwrap();
    assert_eq!(audit.sums("k"), [0, 0, 1000]);

    // An error in the middle, and one in a block that goes on.
    check(&mut session, &mut audit, "SELECT v, 1 / (500 - id) FROM t WHERE id <= 500", [499, 0, 0]);
    check(
        &mut session,
        &mut audit,
        "SELECT v FROM t WHERE length(v) < 100 / (id - 11)",
        [11, 0, 0],
    );
    check(
        &mut session,
        &mut audit,
        "DO $$BEGIN
             PERFORM v::text, 1 / (11 - id) FROM t;
         EXCEPTION WHEN division_by_zero THEN PERFORM v::text FROM t; END$$",
        [1011, 0, 0],
    );
    check(&mut session, &mut audit, "BEGIN; SELECT v FROM t; ROLLBACK", [1000, 0, 0]);

    // A cursor: what was fetched, when it was.
    session.run("BEGIN; DECLARE c CURSOR FOR SELECT v FROM t");
    assert_eq!(audit.sums("k"), [0, 0, 0]);
    session.run("FETCH 10 FROM c; SELECT 1");
    assert_eq!(audit.sums("k"), [10, 0, 0]);
    session.run("FETCH 20 FROM c; MOVE 100 FROM c; FETCH 5 FROM c; COMMIT");
    assert_eq!(audit.sums("k"), [25, 0, 0]);
    let mut transaction = session.transaction().unwrap();
    let portal = transaction.bind("SELECT v::text FROM t", &[]).unwrap();
    assert_eq!(transaction.query_portal(&portal, 30).unwrap().len(), 30);
    assert_eq!(transaction.query_portal(&portal, 30).unwrap().len(), 30);
    transaction.commit().unwrap();
    assert_eq!(audit.sums("k"), [60, 0, 0]);

    // As the extended protocol has it.
    let insert = session.prepare("INSERT INTO copied VALUES ($1)").unwrap();
    session.execute(&insert, &[&Binary(b"parameter".to_vec())]).unwrap();
    assert_eq!(audit.sums("k"), [0, 0, 1]);
    let rows =
        session.query("SELECT v::text FROM t WHERE v = $1", &[&Binary(b"s7".to_vec())]).unwrap();
    assert_eq!((rows.len(), audit.sums("k")), (1, [1, 1, 0]));
}

#[test]
fn parallel_workers_count_too() {
    let Some(cluster) = start("parallel_workers_count_too", "access") else { return };
    let mut session = connect(&cluster);
    session.run(
        "ANALYZE t; SET min_parallel_table_scan_size = 0; SET parallel_setup_cost = 0;
         SET parallel_tuple_cost = 0; SET max_parallel_workers_per_gather = 2;
         SET parallel_leader_participation = off",
    );
    let mut audit = Audit::new(&cluster);
    assert_eq!(session.text("SELECT count(v::text) FROM t"), "1000");
    let leader = backend_pid(&mut session);
    let lines = audit.lines();
    let decrypted = |line: &Value| line["decrypted"].as_u64().unwrap();
    assert_eq!(lines.iter().map(decrypted).sum::<u64>(), 1000, "{lines:#?}");
    assert!(!lines.is_empty());
    for line in &lines {
        assert_eq!(line["leader_pid"], leader, "{line}");
        assert_ne!(line["pid"], leader, "{line}");
    }
    let ids: Vec<_> = lines.iter().map(|line| line["query_id"].as_i64()).collect();
    assert!(ids.iter().all(|id| id.is_some() && *id == ids[0]), "{lines:#?}");
}

#[test]
fn a_line_says_who_and_what() {
    let Some(cluster) = start("a_line_says_who_and_what", "access") else { return };
    let mut session = connect(&cluster);
    session.run(
        r#"CREATE ROLE app LOGIN; CREATE ROLE "Säge\ "" '" LOGIN; GRANT app TO "Säge\ "" '";
           GRANT SELECT ON t TO app, "Säge\ "" '"; SELECT enc_grant('k', 'app', 'decrypt');
           SELECT enc_grant('k', E'Säge\\ " ''', 'decrypt');
           CREATE FUNCTION seen(n integer) RETURNS text LANGUAGE sql SECURITY DEFINER AS
               'SELECT min(v::text) FROM t WHERE id <= n';
           SELECT enc_rotate_key('k'); UPDATE t SET v = enc_rotate(v) WHERE id <= 10"#,
    );
    let mut audit = Audit::new(&cluster);
    let mut client = cluster.connect("Säge\\ \" '", DATABASE);
    client.run("SET application_name = 'billing'; SET ROLE app");
    assert_eq!(audit.lines(), Vec::<Value>::new());
    client.run("SELECT seen(5), v FROM t WHERE id BETWEEN 9 AND 12");

    // A function with another's rights counts for its owner, in the same statement.
    let lines = audit.lines();
    let [definer, own] = &lines[..] else { panic!("{lines:#?}") };
    for (line, role) in [(definer, "postgres"), (own, "app")] {
        assert_eq!(line["event"], "access");
        assert_eq!(line["role"], role, "{line}");
        assert_eq!(line["session_role"], "Säge\\ \" '");
        assert_eq!(line["database"], DATABASE);
        assert_eq!(line["application"], "billing");
        assert_eq!(line["pid"], backend_pid(&mut client));
        assert_eq!(line["client"], Value::Null);
        assert_eq!(line["key"], "k");
        assert_eq!(line["query_id"], definer["query_id"]);
        assert!(line["time"].as_str().unwrap().ends_with('Z'));
    }
    assert!(definer["query_id"].as_i64().is_some());
    assert_eq!((&definer["decrypted"], &definer["versions"]), (&20.into(), &vec![2].into()));
    assert_eq!((&own["decrypted"], &own["versions"]), (&4.into(), &vec![1, 2].into()));
    // Nobody but a superuser turns it off.
    client.fails("SET encryption_ext.audit = off", "42501");
    let log = cluster.log();
    let mut audited = log.lines().filter_map(|line| Some(line.split_once(PREFIX)?.1));
    assert!(audited.all(|line| line.is_ascii() && !line.contains("\"s9\"")));
    assert!(!log.contains("STATEMENT:  SELECT seen"));
}

#[test]
fn each_level_has_its_events() {
    let Some(cluster) = start("each_level_has_its_events", "off") else { return };
    let mut session = connect(&cluster);
    session.run("CREATE ROLE clerk LOGIN; GRANT SELECT ON t TO clerk");
    let mut audit = Audit::new(&cluster);
    let mut events = |level: &str| -> Vec<String> {
        session.run(&format!("ALTER ROLE clerk SET encryption_ext.audit = {level}; SET encryption_ext.audit = {level}"));
        session.run("SELECT enc_grant('k', 'clerk', 'compare')");
        session.run("BEGIN; SELECT enc_revoke('k', 'clerk'); ROLLBACK");
        session.run("BEGIN; SAVEPOINT s; SELECT enc_rotate_key('k'); ROLLBACK TO s; SELECT enc_rotate_key('other'); COMMIT");
        session.run("SELECT v FROM t WHERE id = 1");
        let mut clerk = cluster.connect("clerk", DATABASE);
        clerk.fails("SELECT v FROM t", "KE020");
        clerk.run("DO $$BEGIN FOR n IN 1..3 LOOP BEGIN PERFORM v::text FROM t; EXCEPTION WHEN OTHERS THEN END; END LOOP; END$$");
        clerk.run("SELECT FROM t WHERE v = 'none'; SELECT FROM t WHERE v = 's1'");
        let text = |line: &Value| {
            let fields = ["event", "action", "key", "role", "privilege", "attempts", "compared"];
            fields
                .iter()
                .filter_map(|field| line.get(*field))
                .map(|field| match field.as_str() {
                    Some(text) => text.to_owned(),
                    None => field.to_string(),
                })
                .collect::<Vec<_>>()
                .join(" ")
        };
        audit.lines().iter().map(text).collect()
    };
    assert_eq!(events("off"), Vec::<String>::new());
    let changes = ["change grant k postgres", "change rotate other postgres"];
    assert_eq!(events("keys"), changes);
    let denials = ["denied k clerk decrypt 1", "denied k clerk decrypt 3"];
    assert_eq!(events("denied"), [changes, denials].concat());
    let seen = events("access");
    assert_eq!(seen[..2], changes);
    assert_eq!(seen[2], "access k postgres 0");
    assert_eq!(seen[3..5], denials);
    // Of a look-up that finds nothing there is nothing to tell.
    assert_eq!(seen[5..], ["access k clerk 1"]);
}
