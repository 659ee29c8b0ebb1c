//! No nonce is used twice: not by one backend, not by two, not by those of a library that was
//! loaded before they were forked.

#![expect(clippy::unwrap_used, reason = "a test fails by a panic")]

use std::collections::{HashMap, HashSet};
use std::io::Read;
use std::thread;

use cluster_tests::{DATABASE, Session, builder, connect, create_extension, start};
use harness::cluster::{Cluster, SUPERUSER};
use postgres::Client;

const NONCE_LEN: usize = 24;
const SALT_LEN: usize = 12;
type Salt = [u8; SALT_LEN];

/// The nonces of `encrypted` in a table, by the backend that wrote them: the salt, and the counters
/// in the order of the rows.
fn nonces(session: &mut Client, table: &str) -> HashMap<i32, Vec<(Salt, u128)>> {
    // The header: format, kind, key id, key version (10 bytes), then the nonce.
    let copy = format!(
        "COPY (SELECT backend, substr(encrypted::bytea, 11, {NONCE_LEN}) FROM {table} ORDER BY id)
         TO STDOUT (FORMAT binary)"
    );
    let mut copied = Vec::new();
    session.copy_out(&copy).unwrap().read_to_end(&mut copied).unwrap();
    // The signature, flags and the length of an extension that there is none of; at the end, -1.
    let tuples = &copied[19..copied.len() - 2];
    let mut nonces: HashMap<_, Vec<_>> = HashMap::new();
    // Two fields, each with its length: 4 bytes, and the nonce.
    for tuple in tuples.chunks_exact(2 + 4 + 4 + 4 + NONCE_LEN) {
        let backend = i32::from_be_bytes(tuple[6..10].try_into().unwrap());
        let (salt, counter) = tuple[14..].split_at(SALT_LEN);
        let mut wide = [0; 16];
        wide[4..].copy_from_slice(counter);
        let salt: Salt = salt.try_into().unwrap();
        nonces.entry(backend).or_default().push((salt, u128::from_be_bytes(wide)));
    }
    assert_eq!(tuples.len() % (14 + NONCE_LEN), 0);
    nonces
}

/// Each backend has a salt of its own and counts up by one for each value.
#[track_caller]
fn assert_one_sequence_each(nonces: &HashMap<i32, Vec<(Salt, u128)>>) {
    let salts: HashSet<Salt> = nonces.values().flatten().map(|(salt, _)| *salt).collect();
    assert_eq!(salts.len(), nonces.len(), "two backends share a salt, or one has two");
    for (backend, nonces) in nonces {
        for pair in nonces.windows(2) {
            let next = pair[0].1.wrapping_add(1) & (u128::MAX >> 32);
            assert_eq!(pair[1], (pair[0].0, next), "backend {backend}");
        }
    }
}

#[test]
fn a_million_values_of_fifty_backends_have_a_million_nonces() {
    const BACKENDS: usize = 50;
    const STATEMENTS: usize = 10;
    const ROWS: usize = 2000;
    let test = "a_million_values_of_fifty_backends_have_a_million_nonces";
    let Some(builder) = builder(test) else { return };
    let cluster = builder.setting("max_connections", "60").start();
    create_extension(&cluster, DATABASE);
    let mut admin = connect(&cluster);
    admin.run(
        "SELECT enc_create_key('k');
         CREATE UNLOGGED TABLE t (id bigserial, backend integer, encrypted encrypted_text('k'))",
    );
    thread::scope(|scope| {
        for _ in 0..BACKENDS {
            scope.spawn(|| {
                let mut session = connect(&cluster);
                for _ in 0..STATEMENTS {
                    session.run(&format!(
                        "INSERT INTO t (backend, encrypted)
                         SELECT pg_backend_pid(), n::text FROM generate_series(1, {ROWS}) AS n"
                    ));
                }
            });
        }
    });
    let nonces = nonces(&mut admin, "t");
    assert_eq!(nonces.len(), BACKENDS);
    let distinct: HashSet<_> = nonces.values().flatten().collect();
    assert_eq!(distinct.len(), BACKENDS * STATEMENTS * ROWS);
    assert_one_sequence_each(&nonces);

    // Parallel workers read what all of them wrote.
    let sum = "SELECT sum(encrypted::text::bigint) FROM t";
    admin.run("SET max_parallel_workers_per_gather = 4; SET parallel_setup_cost = 0");
    admin.run("SET parallel_tuple_cost = 0; SET min_parallel_table_scan_size = 0");
    let plan = admin.texts(&format!("EXPLAIN {sum}")).into_iter().flatten().collect::<String>();
    assert!(plan.contains("Parallel Seq Scan"), "{plan}");
    let expected = BACKENDS * STATEMENTS * ROWS * (ROWS + 1) / 2;
    assert_eq!(admin.text(sum), expected.to_string());
}

#[test]
fn a_connection_has_a_salt_of_its_own() {
    let Some(cluster) = start("a_connection_has_a_salt_of_its_own") else { return };
    check_salts_of_connections(&cluster);
}

/// The library is loaded, and its state exists, before the backends are forked.
#[test]
fn backends_of_a_preloaded_library_have_salts_of_their_own() {
    let Some(builder) = builder("backends_of_a_preloaded_library_have_salts_of_their_own") else {
        return;
    };
    let cluster = builder.setting("shared_preload_libraries", "encryption_ext").start();
    create_extension(&cluster, DATABASE);
    check_salts_of_connections(&cluster);
    let salts: HashSet<Vec<u8>> = (0..20)
        .map(|_| connect(&cluster).value("SELECT substr('x'::encrypted_text::bytea, 11, 12)"))
        .collect();
    assert_eq!(salts.len(), 20);
    // They have the keys from memory that they share, and nothing else of what they encrypt with.
    let hits: i64 = connect(&cluster).value("SELECT hits FROM enc_stat_shared_cache");
    assert!(hits >= 20, "{hits}");
}

/// Some sessions at once and one after the other, with literals, which take nonces as well, and in
/// transactions that are rolled back.
fn check_salts_of_connections(cluster: &Cluster) {
    let mut admin = connect(cluster);
    admin.run(
        "SELECT enc_create_key('k');
         CREATE TABLE t (id bigserial, backend integer, encrypted encrypted_text('k'))",
    );
    let mut sessions: Vec<_> = (0..4).map(|_| connect(cluster)).collect();
    for _ in 0..10 {
        for session in &mut sessions {
            session.run("INSERT INTO t (backend, encrypted) VALUES (pg_backend_pid(), 'literal')");
            session.run("BEGIN; INSERT INTO t (encrypted) VALUES ('undone'); ROLLBACK");
        }
    }
    for _ in 0..4 {
        let mut session = cluster.connect(SUPERUSER, DATABASE);
        session.run("INSERT INTO t (backend, encrypted) VALUES (pg_backend_pid(), 'again')");
        sessions.push(session);
    }
    let nonces = nonces(&mut admin, "t");
    assert_eq!(nonces.len(), 8);
    let salts: HashSet<Salt> = nonces.values().flatten().map(|(salt, _)| *salt).collect();
    assert_eq!(salts.len(), 8);
    let all: HashSet<_> = nonces.values().flatten().collect();
    assert_eq!(all.len(), 44);
    // Literals and what was rolled back have used nonces in between.
    for nonces in nonces.values() {
        assert!(nonces.windows(2).all(|pair| pair[0].1 < pair[1].1), "a counter went back");
    }
}

/// A parallel worker is a process of its own, and a projection below a Gather encrypts in it.
#[test]
fn parallel_workers_that_encrypt_have_salts_of_their_own() {
    let Some(cluster) = start("parallel_workers_that_encrypt_have_salts_of_their_own") else {
        return;
    };
    let mut session = connect(&cluster);
    session.run(
        "SELECT enc_create_key('k');
         CREATE TABLE plain AS SELECT n AS id, n::text AS v FROM generate_series(1, 100000) AS n;
         ALTER TABLE plain SET (parallel_workers = 3); ANALYZE plain;
         SET max_parallel_workers_per_gather = 4; SET parallel_setup_cost = 0;
         SET parallel_tuple_cost = 0; SET min_parallel_table_scan_size = 0;
         SET parallel_leader_participation = off",
    );
    const SELECT: &str = "SELECT id, 0 AS backend, v::encrypted_text('k') AS encrypted FROM plain";
    let plan = session.texts(&format!("EXPLAIN (VERBOSE, COSTS OFF) {SELECT}"));
    let plan: Vec<String> = plan.into_iter().flatten().collect();
    let scan = plan.iter().position(|line| line.contains("Parallel Seq Scan")).unwrap();
    assert!(plan[scan + 1].contains("::encrypted_text"), "the leader encrypts: {plan:#?}");

    session.run(&format!("CREATE TABLE t AS {SELECT}"));
    let nonces = nonces(&mut session, "t");
    let all: HashSet<_> = nonces.values().flatten().collect();
    assert_eq!(all.len(), 100_000);
    let mut counters: HashMap<Salt, Vec<u128>> = HashMap::new();
    for (salt, counter) in all {
        counters.entry(*salt).or_default().push(*counter);
    }
    assert!((2..=3).contains(&counters.len()), "{} processes encrypted", counters.len());
    for counters in counters.values_mut() {
        counters.sort_unstable();
        assert!(counters.windows(2).all(|pair| pair[1] == pair[0] + 1), "a nonce was left out");
    }
    let equal = "SELECT count(*) FROM t JOIN plain USING (id) WHERE encrypted::text = v";
    assert_eq!(session.value::<i64>(equal), 100_000);
}
