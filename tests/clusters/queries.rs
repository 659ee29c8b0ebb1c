//! Indexes and plans on real clusters: maintenance beside writers, servers without keys, parallel
//! workers, what index files hold, prepared statements, and a million rows.

#![expect(clippy::unwrap_used, reason = "a test fails by a panic")]

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use cluster_tests::{
    DATABASE, Session, builder, connect, contains, contains_any, create_extension, expect_error,
    keyring_file, start,
};
use harness::cluster::{Cluster, SUPERUSER};
use postgres::Client;

/// Text like people's addresses, from a number `n`.
const ADDRESS: &str =
    "(ARRAY['anna', 'bob', 'chloé', 'dmitri', 'elif', 'fatima', 'gerd', 'hana'])[1 + n % 8]
     || '.' || (ARRAY['müller', 'smith', 'ivanova', 'o''hara', 'nguyen', 'garcía', 'rossi'])[1 + n % 7]
     || n || '@' || (ARRAY['example.com', 'example.org', 'mail.example.net'])[1 + n % 3]";

/// A plan, a line each.
fn plan(session: &mut Client, query: &str) -> String {
    let lines = session.texts(&format!("EXPLAIN (COSTS OFF) {query}"));
    lines.into_iter().flatten().collect::<Vec<_>>().join("\n")
}

#[track_caller]
fn assert_plan(session: &mut Client, query: &str, parts: &[&str]) {
    let plan = plan(session, query);
    for part in parts {
        assert!(plan.contains(part), "{query}: no {part} in\n{plan}");
    }
}

#[test]
fn indexes_are_rebuilt_beside_writers() {
    const ROWS: i32 = 2000;
    let Some(cluster) = start("indexes_are_rebuilt_beside_writers") else { return };
    let mut session = connect(&cluster);
    session.run(&format!(
        "SELECT enc_create_key('k');
         CREATE EXTENSION amcheck;
         CREATE TABLE t (id integer PRIMARY KEY, v encrypted_text('k'), plain text);
         INSERT INTO t SELECT n, n || ' first', n || ' first' FROM generate_series(1, {ROWS}) AS n;
         CREATE INDEX t_hash ON t USING hash (v);
         CREATE UNIQUE INDEX t_digest ON t (enc_digest(v))"
    ));

    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let writers: Vec<_> = (0..2)
            .map(|writer| {
                let (cluster, done) = (&cluster, &done);
                scope.spawn(move || {
                    let mut session = connect(cluster);
                    let mut statements = 0;
                    while !done.load(Ordering::Relaxed) {
                        let id = 1 + (statements * 37 + writer) % ROWS;
                        let text = format!("{id} of {writer} at {statements}");
                        session.run(&match statements % 3 {
                            0 => format!("DELETE FROM t WHERE id = {id}"),
                            1 => format!(
                                "INSERT INTO t VALUES ({id}, '{text}', '{text}')
                                 ON CONFLICT (id) DO NOTHING"
                            ),
                            _ => format!(
                                "UPDATE t SET v = '{text}', plain = '{text}' WHERE id = {id}"
                            ),
                        });
                        statements += 1;
                    }
                    statements
                })
            })
            .collect();
        for maintenance in [
            "REINDEX INDEX CONCURRENTLY t_hash",
            "REINDEX INDEX CONCURRENTLY t_digest",
            "CLUSTER t USING t_digest",
            "SELECT enc_rotate_key('k')",
            "VACUUM (FULL, FREEZE, ANALYZE) t",
            "UPDATE t SET v = enc_rotate(v) WHERE id % 3 = 0",
            "REINDEX TABLE CONCURRENTLY t",
            "DROP INDEX CONCURRENTLY t_hash",
            "CREATE INDEX CONCURRENTLY t_hash ON t USING hash (v)",
            "CLUSTER",
            "VACUUM (FREEZE) t",
        ] {
            session.run(maintenance);
        }
        done.store(true, Ordering::Relaxed);
        for writer in writers {
            assert!(writer.join().unwrap() > 10, "a writer hardly wrote");
        }
    });

    let check = cluster
        .command("pg_amcheck")
        .args(["--heapallindexed", "--parent-check", "--rootdescend", DATABASE])
        .output()
        .unwrap();
    assert!(check.status.success(), "{}", String::from_utf8_lossy(&check.stdout));
    // Each row is found by its value through each index.
    let rows = session.text("SELECT count(*) FROM t");
    session.run(
        "SET enable_seqscan = off; SET enable_hashjoin = off; SET enable_mergejoin = off;
         SET enable_memoize = off",
    );
    let found = "SELECT count(*) FROM t s JOIN t ON t.v = s.plain AND t.id = s.id";
    for (index, other) in [("t_hash", "t_digest"), ("t_digest", "t_hash")] {
        session.run(&format!("BEGIN; DROP INDEX {other}"));
        session.run("SET LOCAL enable_indexscan = on; ALTER TABLE t DROP CONSTRAINT t_pkey");
        assert_plan(&mut session, found, &[index]);
        assert_eq!(session.text(found), rows, "{index}");
        session.run("ROLLBACK");
    }
    let invalid = "SELECT count(*) FROM pg_index WHERE indrelid = 't'::regclass AND NOT indisvalid";
    assert_eq!(session.text(invalid), "0");
}

#[test]
fn vacuum_and_analyze_need_no_key() {
    let Some(builder) = builder("vacuum_and_analyze_need_no_key") else { return };
    let mut cluster = builder
        .setting("autovacuum", "off")
        .setting("autovacuum_naptime", "1s")
        .setting("log_autovacuum_min_duration", "0")
        .start();
    create_extension(&cluster, DATABASE);
    connect(&cluster).run(
        "SELECT enc_create_key('k');
         CREATE TABLE t (id integer, v encrypted_text('k'), b encrypted_bytea('k'),
                         l encrypted_text('k')[],
                         v_id bytea GENERATED ALWAYS AS (enc_digest(v)) STORED);
         CREATE INDEX t_hash ON t USING hash (v);
         CREATE INDEX t_digest ON t (enc_digest(v));
         CREATE INDEX t_lower ON t (enc_digest(v, 'lower')) WHERE v IS NOT NULL;
         CREATE INDEX t_coalesce ON t USING hash (coalesce(v, 'none'));
         CREATE INDEX t_bytes ON t (enc_digest(b, 'none', 'bytes'));
         INSERT INTO t SELECT n, n::text, n::text::bytea, ARRAY[n::text, 'x']
           FROM generate_series(1, 3000) AS n;
         CREATE TABLE p (id integer, v encrypted_text('k')) PARTITION BY RANGE (id);
         CREATE TABLE p_1 PARTITION OF p FOR VALUES FROM (0) TO (5000);
         CREATE INDEX ON p (enc_digest(v));
         INSERT INTO p SELECT id, v FROM t;
         CREATE MATERIALIZED VIEW m AS SELECT id, v FROM t;
         CREATE INDEX ON m (enc_digest(v));
         CREATE MATERIALIZED VIEW untouched AS SELECT id, v FROM t",
    );

    // The server starts again without its keys.
    let keyring = keyring_file(&cluster);
    cluster.stop(harness::cluster::Shutdown::Fast);
    let hidden = keyring.with_extension("hidden");
    fs::rename(&keyring, &hidden).unwrap();
    cluster.configure("autovacuum", "on");
    let log_before = cluster.log().len();
    cluster.start();
    let mut session = connect(&cluster);
    let no_key = session.fails("SELECT v FROM t LIMIT 1", "KE074");
    assert!(!no_key.message().is_empty());
    // Rows can be deleted, which makes work for the workers.
    session.run("DELETE FROM t WHERE id % 2 = 0; DELETE FROM p WHERE id % 2 = 0");

    let started = Instant::now();
    let done = "SELECT count(*) FROM pg_stat_user_tables
                WHERE relname IN ('t', 'p_1') AND autovacuum_count > 0 AND autoanalyze_count > 0";
    while session.text(done) != "2" {
        assert!(started.elapsed() < Duration::from_secs(60), "{}", cluster.log());
        thread::sleep(Duration::from_millis(200));
    }
    for by_hand in [
        "VACUUM t",
        "VACUUM (FREEZE, ANALYZE) t",
        "VACUUM (FREEZE, ANALYZE)",
        "ANALYZE t, p, m, untouched",
        "ANALYZE",
    ] {
        // In a session of its own: it has fetched no key.
        connect(&cluster).run(by_hand);
    }
    let log = cluster.log()[log_before..].to_owned();
    let errors: Vec<_> = log
        .lines()
        .filter(|line| line.contains("ERROR") || line.contains("FATAL") || line.contains("PANIC"))
        .collect();
    assert_eq!(errors.len(), 1, "only this test's own query fails: {errors:?}");
    assert!(log.contains("automatic analyze of table \"postgres.public.t\""), "{log}");
    assert!(log.contains("automatic vacuum of table \"postgres.public.t\""), "{log}");
    // What rebuilds an index needs the key of digests; nothing is lost when it fails.
    session.fails("VACUUM FULL t", "KE074");
    session.fails("REINDEX TABLE t", "KE074");

    fs::rename(&hidden, &keyring).unwrap();
    let mut session = connect(&cluster);
    assert_eq!(session.text("SELECT count(*), count(v) FROM t"), "1500");
    session.run("SET enable_seqscan = off");
    assert_eq!(session.text("SELECT id FROM t WHERE v = '77'"), "77");
    session.run("VACUUM (FULL, FREEZE, ANALYZE)");
    assert_eq!(session.text("SELECT id FROM t WHERE v = '77'"), "77");
    // No statistics hold a value.
    let values = "SELECT count(*) FROM pg_stats WHERE tablename IN ('t', 'p', 'p_1', 'm')
                   AND attname IN ('v', 'b', 'l', 'coalesce')
                   AND (most_common_vals IS NOT NULL OR histogram_bounds IS NOT NULL
                        OR most_common_elems IS NOT NULL)";
    assert_eq!(session.text(values), "0");
}

#[test]
fn parallel_plans_answer_the_same() {
    let Some(builder) = builder("parallel_plans_answer_the_same") else { return };
    let cluster = builder.setting("shared_buffers", "128MB").start();
    create_extension(&cluster, DATABASE);
    let mut session = connect(&cluster);
    session.run(&format!(
        "SELECT enc_create_key('k'), enc_create_key('other');
         CREATE TABLE t (id integer, v encrypted_text('k'), s encrypted_text('other'));
         INSERT INTO t SELECT n, {ADDRESS}, 'group ' || n % 100 FROM generate_series(1, 30000) AS n;
         CREATE TABLE u (id integer, v encrypted_text('other'), p text);
         INSERT INTO u SELECT n, {ADDRESS}, {ADDRESS} FROM generate_series(29000, 40000) AS n;
         ANALYZE t, u"
    ));
    let queries = [
        ("SELECT count(*) FROM t WHERE v = 'anna.smith8@example.org'", "Parallel Seq Scan"),
        ("SELECT count(*) FROM t WHERE v LIKE 'anna.%'", "Parallel Seq Scan"),
        ("SELECT count(*) FROM t JOIN u ON t.v = u.v", "Parallel Hash Join"),
        ("SELECT count(*) FROM t JOIN u ON t.v = u.p", "Parallel Hash Join"),
        ("SELECT count(*) FROM t WHERE v NOT IN (SELECT p FROM u)", "Parallel Seq Scan"),
        ("SELECT count(*) FROM t WHERE EXISTS (SELECT FROM u WHERE u.v = t.v)", "Parallel Hash"),
        (
            "SELECT string_agg(s || n, ',' ORDER BY s) FROM
            (SELECT s, count(*) AS n FROM t GROUP BY s) g",
            "Partial HashAggregate",
        ),
        ("SELECT max(v), min(v), count(*) FROM t", "Partial Aggregate"),
    ];
    let serial: Vec<_> = queries.iter().map(|(query, _)| session.text(query)).collect();
    assert_eq!(serial[2], "1001");
    session.run(
        "SET parallel_setup_cost = 0; SET parallel_tuple_cost = 0;
         SET min_parallel_table_scan_size = 0; SET max_parallel_workers_per_gather = 2;
         SET enable_mergejoin = off; SET enable_nestloop = off",
    );
    for ((query, node), serial) in queries.iter().zip(&serial) {
        assert_plan(&mut session, query, &["Gather", node]);
        assert_eq!(session.text(query), *serial, "{query}");
    }
    // Sorted by workers, merged by the leader.
    session.run("SET enable_hashagg = off");
    let sorted = "SELECT s, count(*) FROM t GROUP BY s";
    assert_plan(&mut session, sorted, &["Gather Merge", "Sort"]);
    assert_eq!(session.texts(sorted).len(), 100);

    // An index built by workers finds what one built alone does.
    session.run("SET max_parallel_maintenance_workers = 2; SET client_min_messages = debug1");
    session.run("CREATE INDEX t_digest ON t (enc_digest(v))");
    session.run("RESET client_min_messages; ANALYZE t");
    let lookup = "SELECT id FROM t WHERE v = 'anna.smith8@mail.example.net'";
    session.run("SET max_parallel_workers_per_gather = 0");
    assert_plan(&mut session, lookup, &["t_digest"]);
    assert_eq!(session.text(lookup), "8");
}

#[test]
fn sorts_larger_than_work_mem_decrypt_few_values_twice() {
    const ROWS: i64 = 50_000;
    let Some(cluster) = start("sorts_larger_than_work_mem_decrypt_few_values_twice") else {
        return;
    };
    let mut session = connect(&cluster);
    session.run(&format!(
        "SELECT enc_create_key('k');
         CREATE TABLE t (g integer, v encrypted_text('k'), plain text);
         INSERT INTO t SELECT n % 3, {ADDRESS}, {ADDRESS} FROM
             (SELECT i * 7919 % 40000 AS n FROM generate_series(1, {ROWS}) AS i) AS numbers;
         CREATE INDEX t_g ON t (g);
         ANALYZE t;
         SET work_mem = '2MB'; SET max_parallel_workers_per_gather = 0"
    ));
    // Once when it is sorted in memory, once when it is merged with others from files. After the first group of an
    // incremental sort that doesn't fit, PostgreSQL asks for no abbreviated keys any more.
    for (order, node, most) in [
        ("v", "Sort", ROWS * 21 / 10),
        ("v DESC", "Sort", ROWS * 21 / 10),
        ("g, v", "Incremental Sort", ROWS * 27 / 10),
    ] {
        // Of the other ways to an order of groups none is to be taken.
        session.run(&format!("SET enable_sort = {}", node == "Sort"));
        let sorted = format!("SELECT v FROM t ORDER BY {order}");
        assert_plan(&mut session, &sorted, &[node]);
        let expected = format!("SELECT plain FROM t ORDER BY {}", order.replace('v', "plain"));
        assert!(session.texts(&sorted) == session.texts(&expected), "{sorted} is in another order");

        let decrypted = "SELECT decrypted FROM enc_stat WHERE scope = 'backend'";
        let earlier: i64 = session.value(decrypted);
        // Sorted, and not shown.
        assert!(session.texts(&format!("{sorted} OFFSET {ROWS}")).is_empty());
        let decryptions = session.value::<i64>(decrypted) - earlier;
        assert!((ROWS..most).contains(&decryptions), "{sorted}: {decryptions} decryptions");
    }
}

/// The bytes of a relation's files, of all forks and segments.
fn files(cluster: &Cluster, relation: &str) -> Vec<u8> {
    let path = connect(cluster).text(&format!("SELECT pg_relation_filepath('{relation}')"));
    let path: PathBuf = cluster.data_directory().join(path);
    let name = path.file_name().unwrap().to_str().unwrap().to_owned();
    let mut bytes = Vec::new();
    for entry in fs::read_dir(path.parent().unwrap()).unwrap() {
        let entry = entry.unwrap().path();
        let file = entry.file_name().unwrap().to_str().unwrap();
        if file == name
            || file.starts_with(&format!("{name}_"))
            || file.starts_with(&format!("{name}."))
        {
            bytes.extend(fs::read(&entry).unwrap());
        }
    }
    assert!(!bytes.is_empty(), "{relation} has no file");
    bytes
}

#[test]
fn index_files_hold_no_value() {
    let Some(cluster) = start("index_files_hold_no_value") else { return };
    let mut session = connect(&cluster);
    session.run(
        "SELECT enc_create_key('k');
         CREATE TABLE t (id integer, v encrypted_text('k'), b encrypted_bytea('k'), plain text,
                         v_id bytea GENERATED ALWAYS AS (enc_digest(v)) STORED UNIQUE,
                         CONSTRAINT t_excluded EXCLUDE USING hash (v WITH =));
         CREATE INDEX t_hash ON t USING hash (v);
         CREATE INDEX t_bytes_hash ON t USING hash (b);
         CREATE UNIQUE INDEX t_digest ON t (enc_digest(v));
         CREATE INDEX t_lower ON t (enc_digest(v, 'lower'));
         CREATE INDEX t_bytes_digest ON t (enc_digest(b), id);
         CREATE INDEX t_coalesce ON t USING hash (coalesce(v, 'planted default'));
         CREATE INDEX t_plain ON t (plain);
         CREATE INDEX t_plain_hash ON t USING hash (plain);
         INSERT INTO t SELECT n, 'planted plaintext ' || n, convert_to('planted bytes ' || n, 'UTF8'),
                              'planted control ' || n FROM generate_series(1, 500) AS n;
         SELECT enc_rotate_key('k');
         UPDATE t SET v = enc_rotate(v), b = enc_rotate(b) WHERE id % 2 = 0;
         REINDEX INDEX t_lower;
         CHECKPOINT",
    );
    // What any part of a ciphertext would show by: the nonce, what follows it, and the tag.
    let rows = session.query("SELECT v::bytea, b::encrypted_text::bytea FROM t", &[]).unwrap();
    let mut ciphertexts: Vec<Vec<u8>> = Vec::new();
    for row in &rows {
        for column in 0..2 {
            let stored: Vec<u8> = row.get(column);
            ciphertexts.extend([
                stored[10..34].to_vec(),
                stored[22..34].to_vec(),
                stored[34..46].to_vec(),
                stored[stored.len() - 16..].to_vec(),
            ]);
        }
    }
    // They are found where they are: in the heap; and a plaintext in an index on plain text.
    let heap = files(&cluster, "t");
    assert!(ciphertexts.iter().step_by(41).all(|part| contains(&heap, part)));
    assert!(contains(&files(&cluster, "t_plain"), b"planted control 77"));

    let plaintexts = ["planted", "plaintext", "bytes 1"].map(|text| text.as_bytes().to_vec());
    for index in [
        "t_hash",
        "t_bytes_hash",
        "t_digest",
        "t_lower",
        "t_bytes_digest",
        "t_coalesce",
        "t_v_id_key",
        "t_excluded",
    ] {
        let bytes = files(&cluster, index);
        assert!(bytes.len() > 8192, "{index} is empty");
        assert!(!contains_any(&bytes, &plaintexts), "{index} holds a plaintext");
        assert!(!contains_any(&bytes, &ciphertexts), "{index} holds a ciphertext");
    }
    // Nor the hash that anybody could compute of a guess.
    let hashes = session.query(
        "SELECT int4send(hashtext(v::text)), substr(sha256(convert_to(v::text, 'UTF8')), 1, 8) FROM t
          WHERE id <= 100", &[]).unwrap();
    let (hash_index, digest_index) = (files(&cluster, "t_hash"), files(&cluster, "t_digest"));
    let control = files(&cluster, "t_plain_hash");
    let mut in_hash_index = 0;
    for row in &hashes {
        let mut hash: Vec<u8> = row.get(0);
        hash.reverse(); // as it is in memory
        in_hash_index += usize::from(contains(&hash_index, &hash));
        assert!(!contains(&digest_index, row.get::<_, &[u8]>(1)), "an unkeyed digest");
    }
    assert!(in_hash_index < 3, "{in_hash_index} of 100 unkeyed hashes are in the hash index");
    let control_hash = session.query_one("SELECT int4send(hashtext('planted control 77'))", &[]);
    let mut control_hash: Vec<u8> = control_hash.unwrap().get(0);
    control_hash.reverse();
    assert!(contains(&control, &control_hash));
}

/// Look-ups through each kind of index, by a statement that was prepared once.
#[test]
fn prepared_statements_outlive_rotations_and_follow_roles() {
    let test = "prepared_statements_outlive_rotations_and_follow_roles";
    let Some(cluster) = start(test) else { return };
    let mut admin = connect(&cluster);
    admin.run(
        "SELECT enc_create_key('k');
         CREATE ROLE matcher; CREATE ROLE nobody;
         SELECT enc_grant('k', 'matcher', 'compare');
         CREATE TABLE by_hash (id integer, v encrypted_text('k'));
         CREATE INDEX ON by_hash USING hash (v);
         CREATE TABLE by_digest (id integer, v encrypted_text('k'));
         CREATE INDEX ON by_digest (enc_digest(v));
         GRANT ALL ON by_hash, by_digest TO matcher, nobody;
         INSERT INTO by_hash SELECT n, 'v' || n FROM generate_series(1, 1000) AS n;
         INSERT INTO by_digest SELECT id, v FROM by_hash;
         ANALYZE",
    );
    for table in ["by_hash", "by_digest"] {
        let mut session = connect(&cluster);
        session.run("SET plan_cache_mode = force_generic_plan");
        session.run(&format!(
            "PREPARE by_parameter(text) AS SELECT id FROM {table} WHERE v = $1 ORDER BY id;
             PREPARE by_literal AS SELECT id FROM {table} WHERE v = 'v7' ORDER BY id;
             PREPARE by_list(text[]) AS SELECT id FROM {table} WHERE v = ANY ($1) ORDER BY id"
        ));
        let statements =
            ["EXECUTE by_parameter('v7')", "EXECUTE by_literal", "EXECUTE by_list('{v7,v0}')"];
        let ids = |session: &mut Client, statement| -> Vec<String> {
            session.texts(statement).into_iter().flatten().collect()
        };
        for statement in &statements[..2] {
            assert_plan(&mut session, statement, &["Index", table]);
        }
        for statement in statements {
            assert_eq!(ids(&mut session, statement), ["7"], "{table} {statement}");
        }

        // Rows of another version of the key, and rows that were encrypted again.
        admin.run(&format!(
            "SELECT enc_rotate_key('k');
             INSERT INTO {table} VALUES (1007, 'v7');
             UPDATE {table} SET v = enc_rotate(v) WHERE id % 2 = 0"
        ));
        for statement in statements {
            assert_eq!(ids(&mut session, statement), ["7", "1007"], "{table} {statement}");
        }
        // The database key's, under which literals are.
        admin.run("SELECT enc_rotate_key('database')");
        for statement in statements {
            assert_eq!(ids(&mut session, statement), ["7", "1007"], "{table} {statement}");
        }

        // The same plan, with the rights of whoever executes it.
        session.run("SET ROLE matcher");
        for statement in statements {
            assert_eq!(ids(&mut session, statement), ["7", "1007"], "{table} {statement}");
        }
        session.run("SET ROLE nobody");
        for statement in statements {
            let _ = session.fails(statement, "KE020");
        }
        // Also for what is in no row.
        let _ = session.fails("EXECUTE by_parameter('nowhere')", "KE020");
        session.run("RESET ROLE; SET ROLE matcher");
        for statement in statements {
            assert_eq!(ids(&mut session, statement), ["7", "1007"], "{table} {statement}");
        }
        admin.run("SELECT enc_revoke('k', 'matcher')");
        for statement in statements {
            let _ = session.fails(statement, "KE020");
        }
        admin.run("SELECT enc_grant('k', 'matcher', 'compare')");
        for statement in statements {
            assert_eq!(ids(&mut session, statement), ["7", "1007"], "{table} {statement}");
        }
    }
}

#[test]
fn plans_stay_sane_on_a_million_rows() {
    let Some(builder) = builder("plans_stay_sane_on_a_million_rows") else { return };
    let cluster = builder
        .setting("shared_buffers", "512MB")
        .setting("maintenance_work_mem", "256MB")
        .setting("work_mem", "64MB")
        .setting("max_wal_size", "4GB")
        .setting("max_parallel_workers_per_gather", "0")
        .start();
    create_extension(&cluster, DATABASE);
    let mut session = connect(&cluster);
    session.run(&format!(
        "SELECT enc_create_key('k'), enc_create_key('other');
         CREATE UNLOGGED TABLE people (id integer, email encrypted_text('k'), town encrypted_text('other'));
         INSERT INTO people SELECT n, {ADDRESS}, 'town ' || n % 1000 FROM generate_series(1, 1000000) AS n;
         CREATE UNLOGGED TABLE letters (id integer, receiver text, sender encrypted_text('other'));
         INSERT INTO letters SELECT n, {ADDRESS}, {ADDRESS} FROM generate_series(1, 100000) AS n;
         CREATE INDEX people_town ON people USING hash (town);"
    ));
    for index in ["USING hash (email)", "(enc_digest(email))"] {
        session
            .run(&format!("CREATE INDEX people_email ON people {index}; ANALYZE people, letters"));
        let address = session.text("SELECT receiver FROM letters WHERE id = 7");
        for constant in [format!("'{address}'"), format!("'{address}'::text")] {
            let lookup = format!("SELECT id FROM people WHERE email = {constant}");
            assert_plan(&mut session, &lookup, &["people_email"]);
            assert_rows(&mut session, &lookup, 1.0, 2.0);
            let started = Instant::now();
            assert_eq!(session.text(&lookup), "7");
            assert!(started.elapsed() < Duration::from_secs(1), "{lookup} took that long");
        }
        // A few rows to look up: the index. Many: hashed.
        let few = "SELECT count(*) FROM letters JOIN people ON email = {} WHERE letters.id < 10";
        let many = "SELECT count(*) FROM letters JOIN people ON email = {}";
        for column in ["receiver", "sender"] {
            session.run("CREATE INDEX IF NOT EXISTS letters_id ON letters (id)");
            let few = few.replace("{}", column);
            assert_plan(&mut session, &few, &["Nested Loop", "people_email", "letters_id"]);
            assert_eq!(session.text(&few), "9");
            let many = many.replace("{}", column);
            assert_plan(&mut session, &many, &["Hash Join"]);
            assert_rows(&mut session, &many.replace("count(*)", "*"), 30_000.0, 300_000.0);
            assert_eq!(session.text(&many), "100000");
        }
        session.run("DROP INDEX people_email");
    }
    // Of a thousand towns each has a thousand people.
    let town = "SELECT id FROM people WHERE town = 'town 77'";
    assert_plan(&mut session, town, &["people_town"]);
    assert_rows(&mut session, town, 300.0, 3000.0);
    assert_eq!(session.texts(town).len(), 1000);
    assert_rows(&mut session, "SELECT town FROM people GROUP BY town", 500.0, 2000.0);
    assert_plan(
        &mut session,
        "SELECT town, count(*) FROM people GROUP BY town",
        &["HashAggregate"],
    );
    assert_eq!(session.text("SELECT count(DISTINCT town) FROM people"), "1000");
}

/// How many rows the planner expects.
#[track_caller]
fn assert_rows(session: &mut Client, query: &str, least: f64, most: f64) {
    let plan = session.text(&format!("EXPLAIN (FORMAT json) {query}"));
    let plan: serde_json::Value = serde_json::from_str(&plan).unwrap();
    let rows = plan[0]["Plan"]["Plan Rows"].as_f64().unwrap();
    assert!((least..=most).contains(&rows), "{query}: {rows} rows are expected: {plan}");
}

#[test]
fn merge_works_on_encrypted_columns() {
    let Some(cluster) = start("merge_works_on_encrypted_columns") else { return };
    let mut session = connect(&cluster);
    session.run(
        "SELECT enc_create_key('k'), enc_create_key('other');
         CREATE TABLE t (v encrypted_text('k'), n integer);
         CREATE UNIQUE INDEX ON t (enc_digest(v));
         INSERT INTO t VALUES ('a', 1), ('b', 1), ('c', 1);
         CREATE TABLE changes (v encrypted_text('other'), what text);
         INSERT INTO changes VALUES ('a', 'delete'), ('b', 'count'), ('d', 'count');
         MERGE INTO t USING changes c ON t.v = c.v
          WHEN MATCHED AND c.what = 'delete' THEN DELETE
          WHEN MATCHED THEN UPDATE SET n = t.n + 1
          WHEN NOT MATCHED THEN INSERT VALUES (c.v, 10)",
    );
    let rows = "SELECT string_agg(v || n || enc_key_name(v), ' ' ORDER BY v) FROM t";
    assert_eq!(session.text(rows), "b2k c1k d10k");
    let mut other = cluster.connect(SUPERUSER, DATABASE);
    let error = other
        .simple_query(
            "MERGE INTO t USING (VALUES ('c', 'b')) s (v, w) ON t.v = s.v
                        WHEN MATCHED THEN UPDATE SET v = s.w",
        )
        .unwrap_err();
    let _ = expect_error(&error, "23505");
}
