//! Plaintexts and keys are nowhere but where they are meant to be: on disk, in logs, in memory.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use cluster_tests::process_memory::{Mapping, mappings, search};
use cluster_tests::{
    Binary, DATABASE, Session, builder, connect, contains_any, create_extension, data_key, files,
    hex, keyring_file, texts_of,
};
use harness::cluster::{Cluster, backend_pid};
use harness::openbao::OpenBao;
use postgres::Client;
use serde_json::Value;

/// What all planted plaintexts begin with, and what those of an unprotected column begin with: the
/// search must find the latter.
const SECRET: &str = "nEEdle/7Q:";
const CONTROL: &str = "cOntrol/4X:";

/// The files below a folder in which any of the needles occurs.
fn files_with(folder: &Path, needles: &[Vec<u8>]) -> Vec<PathBuf> {
    // A file may vanish meanwhile.
    let has = |file: &PathBuf| fs::read(file).is_ok_and(|bytes| contains_any(&bytes, needles));
    files(folder).into_iter().filter(has).collect()
}

#[test]
fn plaintexts_are_neither_in_tables_nor_logs_nor_temporary_files() {
    let test = "plaintexts_are_neither_in_tables_nor_logs_nor_temporary_files";
    let Some(builder) = builder(test) else { return };
    let cluster = builder.log_level("debug5").setting("wal_level", "logical").start();
    create_extension(&cluster, DATABASE);
    let mut session = connect(&cluster);
    session.run(
        "SELECT enc_create_key('k'), enc_create_key('k2');
         CREATE TYPE pair AS (a encrypted_text('k'), b encrypted_text('k2'));
         CREATE TABLE t (id integer PRIMARY KEY, v encrypted_text('k'), b encrypted_bytea('k2'),
                         list encrypted_text('k')[], two pair, plain text) WITH (fillfactor = 50);
         ALTER TABLE t REPLICA IDENTITY FULL;
         ALTER TABLE t ADD def encrypted_text('k') DEFAULT 'nEEdle/7Q:default'",
    );
    let secret = |n: u32| format!("{SECRET}{n:03}-{:x}", n.wrapping_mul(0x9e37_79b1));
    let insert = session
        .prepare("INSERT INTO t (id, v, b, list, plain) VALUES ($1, $2, $3, ARRAY[$4::text], $5)")
        .unwrap();
    for n in 0..200_u32 {
        let (text, id) = (secret(n), i32::try_from(n).unwrap());
        // Every other one is large enough to be stored out of line.
        let text = if n % 2 == 0 { text } else { format!("{text}{}", "-".repeat(8000)) };
        let bytes = Binary(text.clone().into_bytes());
        let control = format!("{CONTROL}{n}");
        match n % 4 {
            0 => session.run(&format!("INSERT INTO t VALUES ({n}, '{text}', '{text}', '{{\"{text}\"}}', ROW('{text}', '{text}'), '{control}')")),
            1 => drop(session.execute(&insert, &[&id, &bytes, &bytes, &text, &control]).unwrap()),
            2 => {
                let mut copy = session.copy_in("COPY t (id, v, b, plain) FROM STDIN").unwrap();
                copy.write_all(format!("{n}\t{text}\t{text}\t{control}\n").as_bytes()).unwrap();
                copy.finish().unwrap();
            }
            _ => session.run(&format!(
                "INSERT INTO t (id, v) VALUES ({n}, 'x'); UPDATE t SET v = '{text}', plain = '{control}' WHERE id = {n}"
            )),
        }
    }
    session.run("SELECT enc_rotate_key('k'); UPDATE t SET v = enc_rotate(v)");
    session.run("CREATE MATERIALIZED VIEW seen AS SELECT v, list FROM t");
    session.fails("CREATE STATISTICS together (mcv) ON id, v FROM t", "KE035");
    session.run("CREATE INDEX ON t USING hash (v); CREATE INDEX ON t (enc_digest(v)); ANALYZE");
    assert_eq!(session.text(&format!("SELECT count(*) FROM t WHERE v LIKE '{SECRET}%'")), "200");

    // A sort that goes to disk stays there while its cursor is open.
    session.run(
        "SET work_mem = '64kB'; BEGIN;
         DECLARE sorted CURSOR FOR
             SELECT v, list, plain FROM t, generate_series(1, 50) ORDER BY v;
         FETCH 1 FROM sorted;
         CHECKPOINT",
    );
    let data = cluster.data_directory();
    let temporary = files(&data.join("base/pgsql_tmp"));
    assert!(!temporary.is_empty(), "the sort didn't go to disk");
    assert_eq!(files_with(&data, &[SECRET.into()]), Vec::<PathBuf>::new());
    for folder in ["base", "pg_wal", "base/pgsql_tmp"] {
        let found = files_with(&data.join(folder), &[CONTROL.into()]);
        assert!(!found.is_empty(), "the search doesn't find what is in {folder}");
    }
    let log = cluster.log();
    assert!(log.contains("DEBUG:"));
    assert!(!log.contains(SECRET), "a plaintext is in the log");
}

/// Statistics say how many values there are and how wide. A list of the most common ones would tell
/// which are equal, and a histogram their order, to everyone who can read the files.
#[test]
fn statistics_tell_nothing_of_values() {
    let test = "statistics_tell_nothing_of_values";
    let Some(builder) = builder(test) else { return };
    let cluster = builder.start();
    create_extension(&cluster, DATABASE);
    let mut session = connect(&cluster);
    session.run(
        "SELECT enc_create_key('k'); CREATE DOMAIN address AS encrypted_text('k');
         CREATE TABLE t (id integer, v encrypted_text('k'), b encrypted_bytea('k'),
                         list encrypted_text('k')[], d address, plain text);
         INSERT INTO t SELECT n, s, convert_to(s, 'UTF8'), ARRAY[s], s, s
             FROM generate_series(1, 500) AS n, LATERAL (SELECT (n % 50)::text AS s) AS same;
         CREATE MATERIALIZED VIEW seen AS SELECT * FROM t;
         ANALYZE",
    );
    let described = "SELECT string_agg(DISTINCT attname, ' ') FROM pg_stats
                     WHERE tablename IN ('t', 'seen') AND (most_common_vals IS NOT NULL
                         OR histogram_bounds IS NOT NULL OR most_common_elems IS NOT NULL)";
    assert_eq!(session.text(described), "id plain");
    let width = "SELECT avg_width > 50 FROM pg_stats WHERE tablename = 't' AND attname = 'v'";
    assert_eq!(session.text(width), "t");
}

/// The ways in which a key's bytes may be written.
fn forms(key: &[u8; 32]) -> Vec<Vec<u8>> {
    vec![
        key.to_vec(),
        STANDARD_NO_PAD.encode(key).into_bytes(),
        URL_SAFE_NO_PAD.encode(key).into_bytes(),
        hex(key).into_bytes(),
        hex(key).to_uppercase().into_bytes(),
    ]
}

/// A cluster with a key `k` of two versions, and a table that has values of both.
fn cluster_with_keys(test: &str) -> Option<Cluster> {
    let cluster = builder(test)?.log_level("debug5").start();
    create_extension(&cluster, DATABASE);
    connect(&cluster).run(
        "SELECT enc_create_key('k'); CREATE TABLE t (v encrypted_text('k'));
         INSERT INTO t VALUES ('one'); SELECT enc_rotate_key('k'); INSERT INTO t VALUES ('two')",
    );
    Some(cluster)
}

fn keys(cluster: &Cluster) -> Vec<[u8; 32]> {
    [("k", 1), ("k", 2), ("database", 1)].map(|(name, n)| data_key(cluster, name, n)).to_vec()
}

#[test]
fn keys_are_neither_in_logs_nor_settings_nor_errors_nor_files() {
    let test = "keys_are_neither_in_logs_nor_settings_nor_errors_nor_files";
    let Some(cluster) = cluster_with_keys(test) else { return };
    let keyring = keyring_file(&cluster);
    let good = fs::read_to_string(&keyring).unwrap();
    let keys = keys(&cluster);
    let forms: Vec<Vec<u8>> = keys.iter().flat_map(forms).collect();
    let shows = |text: &str| contains_any(text.as_bytes(), &forms);
    assert!(shows(&good));

    let mut session = connect(&cluster);
    session.run("SELECT v FROM t; SELECT * FROM enc_keys, enc_key_versions, enc_stat_cache_keys");
    let everything = "SELECT string_agg(s::text, ' ') FROM pg_settings AS s";
    assert!(!shows(&session.text(everything)));
    for view in [
        "enc_keys",
        "enc_key_versions",
        "enc_stat_cache",
        "enc_stat_cache_keys",
        "encryption.key_version",
        "encryption.key_event",
    ] {
        assert!(!shows(
            &session.text(&format!("SELECT string_agg(x::text, ' ') FROM {view} AS x"))
        ));
    }

    // Keyrings that are broken in the middle of keys.
    let mut errors = Vec::new();
    let at = good.find("\"k\"").unwrap();
    for len in (at..good.len()).step_by(7) {
        fs::write(&keyring, &good[..len]).unwrap();
        errors.push(texts_of(&connect(&cluster).fails("SELECT v FROM t", "KE076")));
    }
    let swapped = good.replace("\"1\":", "\"9\":");
    fs::write(&keyring, swapped).unwrap();
    errors.push(texts_of(&connect(&cluster).fails("SELECT v FROM t", "KE069")));
    fs::write(&keyring, good.replace("=\"", "\"").replace("\"k\"", "\"K\"")).unwrap();
    errors.push(texts_of(&connect(&cluster).fails("SELECT v FROM t", "KE076")));
    fs::write(&keyring, &good).unwrap();
    for error in &errors {
        assert!(!shows(error), "{error}");
        // Neither a part of one.
        for key in &keys {
            assert!(!error.contains(&STANDARD_NO_PAD.encode(key)[..8]), "{error}");
        }
    }

    session.run("CHECKPOINT");
    assert!(!shows(&cluster.log()), "a key is in the log");
    assert_eq!(files_with(&cluster.data_directory(), &forms), [keyring]);
}

#[test]
fn keys_are_in_memory_that_is_locked_and_not_dumped_and_nowhere_when_flushed() {
    let test = "keys_are_in_memory_that_is_locked_and_not_dumped_and_nowhere_when_flushed";
    let Some(cluster) = cluster_with_keys(test) else { return };
    let needles: Vec<Vec<u8>> = keys(&cluster).iter().flat_map(forms).collect();
    let mut session = connect(&cluster);
    let pid = backend_pid(&mut session);
    session.run("SET application_name = 'mArker/9K'");
    let marker = [b"mArker/9K".to_vec()];
    match search(pid, &marker) {
        Ok(found) => assert!(!found.is_empty(), "the search doesn't find what is in memory"),
        Err(error) => {
            return harness::skip(test, &format!("a backend's memory can't be read: {error}"));
        }
    }
    assert_eq!(search(pid, &needles).unwrap(), []);

    let use_keys = |session: &mut Client| {
        for _ in 0..3 {
            session
                .run("SELECT v FROM t; INSERT INTO t VALUES ('a literal'); SELECT v = 'x' FROM t");
        }
    };
    use_keys(&mut session);
    let secret = |mapping: &Mapping| mapping.has("dd") && mapping.has("wf");
    let mappings = mappings(pid).unwrap();
    let secrets: Vec<&Mapping> = mappings.iter().filter(|mapping| secret(mapping)).collect();
    assert!(!secrets.is_empty(), "no memory is left out of core dumps and wiped on fork");
    let locked: i64 = session.value("SELECT locked_bytes FROM enc_stat_cache");
    let unlocked: i64 = session.value("SELECT unlocked_bytes FROM enc_stat_cache");
    let size =
        |mappings: &[&Mapping]| mappings.iter().map(|m| (m.end - m.start) as i64).sum::<i64>();
    assert_eq!(size(&secrets), locked + unlocked);
    let lo: Vec<&Mapping> = secrets.iter().filter(|m| m.has("lo")).copied().collect();
    assert_eq!(size(&lo), locked);
    assert!(locked > 0, "nothing could be locked");
    assert_eq!(
        session.value::<bool>("SELECT bool_and(locked) FROM enc_stat_cache_keys"),
        unlocked == 0
    );

    let found = search(pid, &needles).unwrap();
    println!("{} key bytes in use: {found:?}", found.len());
    let exposed: Vec<_> = found.iter().filter(|(_, is_secret)| !is_secret).collect();
    assert!(exposed.is_empty(), "key bytes outside of memory for secrets: {exposed:?}");
    // With the processor's AES instructions a key is the beginning of its round keys.
    if fs::read_to_string("/proc/cpuinfo").unwrap_or_default().contains(" aes ") {
        assert!(!found.is_empty(), "the search doesn't find the keys that are in use");
    }

    session.run("SELECT enc_flush_cache()");
    assert_eq!(search(pid, &needles).unwrap(), []);
    // To make and to rotate keys leaves nothing either, nor do errors.
    session.run("SELECT enc_rotate_key('k'), enc_create_key('another')");
    session.fails("SELECT enc_create_key('another')", "KE004");
    let made = [data_key(&cluster, "k", 3), data_key(&cluster, "another", 1)];
    let needles: Vec<Vec<u8>> = made.iter().chain(&keys(&cluster)).flat_map(forms).collect();
    let exposed: Vec<_> =
        search(pid, &needles).unwrap().into_iter().filter(|(_, is_secret)| !is_secret).collect();
    assert!(exposed.is_empty(), "key bytes outside of memory for secrets: {exposed:?}");
    use_keys(&mut session);
    session.run("SELECT enc_flush_cache()");
    assert_eq!(search(pid, &needles).unwrap(), []);
}

#[test]
fn keys_and_tokens_of_a_key_server_are_nowhere_when_flushed() {
    let test = "keys_and_tokens_of_a_key_server_are_nowhere_when_flushed";
    let Some(builder) = builder(test) else { return };
    let Some(server) = OpenBao::start_with_tls() else {
        return harness::skip(test, "there is no bao to run");
    };
    let cluster = builder.log_level("debug5").start();
    create_extension(&cluster, DATABASE);
    let write = |name: &str, contents: &str| {
        let file = cluster.directory().join(name);
        fs::write(&file, contents).unwrap();
        file
    };
    let certificate = fs::read_to_string(server.ca_file()).unwrap();
    let mut session = connect(&cluster);
    session.run(&format!(
        "SET encryption_ext.provider = 'vault'; SET encryption_ext.vault_address = '{}';
         SET encryption_ext.vault_ca_file = '{}'; SET encryption_ext.vault_token_file = '{}'",
        server.address(),
        write("ca.pem", &certificate).display(),
        write("token", server.root_token()).display(),
    ));
    session.run(
        "SELECT enc_create_key('k'); CREATE TABLE t (v encrypted_text('k'));
         INSERT INTO t VALUES ('a literal'); SELECT v FROM t",
    );
    let mut needles = vec![server.root_token().as_bytes().to_vec()];
    for name in ["database", "k"] {
        let (_, answer) = server.request("GET", &format!("secret/data/keys/{name}"), Value::Null);
        let text = answer["data"]["data"]["key"].as_str().unwrap();
        let key: [u8; 32] = STANDARD.decode(text).unwrap().try_into().unwrap();
        needles.extend(forms(&key));
    }
    assert!(!contains_any(cluster.log().as_bytes(), &needles), "a secret is in the log");

    let pid = backend_pid(&mut session);
    if let Err(error) = search(pid, &needles) {
        return harness::skip(test, &format!("a backend's memory can't be read: {error}"));
    }
    // The login's token (the first needle) is kept for the next request. Of keys there is no copy.
    let check = |when: &str| {
        let found = search(pid, &needles).unwrap().into_iter();
        let exposed: Vec<_> = found
            .filter(|(place, is_secret)| !is_secret && !place.starts_with("needle 0 "))
            .collect();
        assert!(exposed.is_empty(), "{when}: keys outside of memory for secrets: {exposed:?}");
    };
    check("after the first use");
    session.run("SET encryption_ext.cache_ttl = 2; SELECT enc_flush_cache(); SELECT v FROM t");
    thread::sleep(Duration::from_millis(1400));
    check("fetched again, and not taken yet");
    session.run("SELECT v FROM t");
    check("fetched again");
    session.run("SELECT enc_flush_cache()");
    // The thread that fetches keys ends by itself.
    thread::sleep(Duration::from_millis(200));
    assert_eq!(search(pid, &needles).unwrap(), []);
}
