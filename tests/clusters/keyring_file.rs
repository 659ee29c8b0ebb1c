//! Provider `file`, and the cache of the keys that come from it.

#![expect(clippy::unwrap_used, reason = "a test fails by a panic")]

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::thread;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use cluster_tests::{
    DATABASE, Session, builder, connect, create_extension, keyring_file, start, texts_of,
};
use harness::cluster::Cluster;
use postgres::Client;

const READ: &str = "SELECT v FROM t";

/// A cluster with a key `k` and a table with one row under it.
fn cluster(test: &str) -> Option<Cluster> {
    let cluster = start(test)?;
    connect(&cluster).run(
        "SELECT enc_create_key('k');
         CREATE TABLE t (v encrypted_text('k')); INSERT INTO t VALUES ('first')",
    );
    Some(cluster)
}

#[test]
fn the_first_key_makes_the_file_for_its_owner_alone() {
    let test = "the_first_key_makes_the_file_for_its_owner_alone";
    let Some(cluster) = start(test) else { return };
    let keyring = keyring_file(&cluster);
    let mut session = connect(&cluster);
    assert!(!keyring.exists());
    session.fails("SELECT enc_create_key('../k')", "KE001");
    session.fails("SELECT enc_create_key('database')", "KE002");
    session.fails("CREATE TABLE t (v encrypted_text('k'))", "KE003");
    assert!(!keyring.exists());

    assert_eq!(session.value::<i32>("SELECT enc_create_key('k')"), 1);
    assert!(cluster.log().contains("WARNING:  provider \"file\" is for trying out"));
    let metadata = fs::metadata(&keyring).unwrap();
    assert_eq!(metadata.mode() & 0o7777, 0o600);
    let server = fs::metadata(cluster.data_directory()).unwrap();
    assert_eq!((metadata.uid(), metadata.gid()), (server.uid(), server.gid()));
    let text = fs::read_to_string(&keyring).unwrap();
    let contents: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(contents["encryption_ext_keyring"], 1);
    let names: Vec<_> = contents["keys"].as_object().unwrap().keys().collect();
    assert_eq!(names, ["database", "k"]);
    assert!(!keyring.with_extension("json.new").exists());

    // What exists is told, adopted, or added to; never made anew.
    session.fails("SELECT enc_create_key('k')", "KE004");
    assert_eq!(session.value::<i32>("SELECT enc_create_key('k', true)"), 1);
    session.run("SELECT enc_rotate_key('k')");
    let rotated: serde_json::Value = serde_json::from_slice(&fs::read(&keyring).unwrap()).unwrap();
    assert_eq!(rotated["keys"]["k"]["1"], contents["keys"]["k"]["1"]);
    assert_ne!(rotated["keys"]["k"]["2"], contents["keys"]["k"]["1"]);

    // A second database of the cluster has keys of its own names and shares those that exist.
    cluster.createdb("other", "UTF8");
    create_extension(&cluster, "other");
    let mut other = cluster.connect("postgres", "other");
    assert_eq!(other.value::<i32>("SELECT enc_create_key('k')"), 2);
    assert_eq!(other.value::<i64>("SELECT count(*) FROM enc_key_versions WHERE name = 'k'"), 2);
    assert_ne!(
        other.value::<String>("SELECT string_agg(check_value, ' ') FROM enc_key_versions"),
        session.value::<String>("SELECT string_agg(check_value, ' ') FROM enc_key_versions"),
    );
}

#[test]
fn a_bad_file_is_an_error_of_its_own_and_loses_nothing() {
    let test = "a_bad_file_is_an_error_of_its_own_and_loses_nothing";
    let Some(cluster) = cluster(test) else { return };
    let keyring = keyring_file(&cluster);
    let good = fs::read(&keyring).unwrap();
    let text = String::from_utf8(good.clone()).unwrap();
    let mode = |path: &Path, mode| fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    let write = |contents: &[u8]| fs::write(&keyring, contents).unwrap();
    // Reading, writing, and whatever would change keys fail alike; afterwards all is as before.
    let check = |what: &str, sqlstate: &str| {
        let mut session = connect(&cluster);
        for sql in [
            READ,
            "INSERT INTO t VALUES ('lost?')",
            "SELECT enc_create_key('new')",
            "SELECT enc_rotate_key('k')",
        ] {
            let error = session.fails(sql, sqlstate);
            let texts = texts_of(&error);
            let told = texts.contains("encryption_ext_keyring.json") || sqlstate == "KE012";
            assert!(told, "{what}: {texts}");
            assert!(!session.is_closed(), "{what}");
        }
    };
    let check_repaired = |what: &str| {
        let mut session = connect(&cluster);
        assert_eq!(session.texts(READ), [Some("first".to_owned())], "{what}");
        assert_eq!(session.value::<i64>("SELECT count(*) FROM enc_keys"), 2, "{what}");
        assert_eq!(fs::read(&keyring).unwrap(), good, "{what}");
        let leftovers = fs::read_dir(cluster.data_directory()).unwrap();
        assert!(
            !leftovers
                .map(|e| e.unwrap().file_name().into_string().unwrap())
                .any(|n| n.ends_with(".new")),
            "{what}"
        );
    };

    let aside = keyring.with_extension("aside");
    fs::rename(&keyring, &aside).unwrap();
    check("missing", "KE074");
    assert!(!keyring.exists(), "a missing keyring was replaced by a new one");
    fs::create_dir(&keyring).unwrap();
    check("a directory", "KE075");
    fs::remove_dir(&keyring).unwrap();
    std::os::unix::fs::symlink(&aside, &keyring).unwrap();
    check("a link", "KE077");
    fs::remove_file(&keyring).unwrap();
    fs::rename(&aside, &keyring).unwrap();
    check_repaired("missing");

    mode(&keyring, 0o000);
    check("unreadable", "KE075");
    for others in [0o644, 0o640, 0o620, 0o604, 0o601] {
        mode(&keyring, others);
        check("readable by others", "KE077");
    }
    mode(&keyring, 0o600);
    check_repaired("modes");

    for (what, contents) in [
        ("empty", Vec::new()),
        ("truncated", good[..good.len() / 2].to_vec()),
        ("garbage", vec![0xa5; 500]),
        (
            "of another format",
            text.replace("\"encryption_ext_keyring\": 1", "\"encryption_ext_keyring\": 2")
                .into_bytes(),
        ),
        ("something else", b"{}".to_vec()),
        ("with a key too short", replace_key(&text, "k", &STANDARD.encode([7; 31])).into_bytes()),
        ("with a key too long", replace_key(&text, "k", &STANDARD.encode([7; 33])).into_bytes()),
        ("with a key not in base64", replace_key(&text, "k", &"!".repeat(44)).into_bytes()),
    ] {
        write(&contents);
        check(what, "KE076");
        write(&good);
        check_repaired(what);
    }
}

/// The keyring with another text for the first version of a key.
fn replace_key(keyring: &str, name: &str, key: &str) -> String {
    let mut keyring: serde_json::Value = serde_json::from_str(keyring).unwrap();
    keyring["keys"][name]["1"] = key.into();
    keyring.to_string()
}

#[test]
fn another_keyring_is_recognized() {
    let Some(cluster) = cluster("another_keyring_is_recognized") else { return };
    let keyring = keyring_file(&cluster);
    let good = fs::read_to_string(&keyring).unwrap();
    let mut warm = connect(&cluster);
    warm.run(READ);

    // Other bytes for the key.
    fs::write(&keyring, replace_key(&good, "k", &STANDARD.encode([7; 32]))).unwrap();
    for sql in [READ, "INSERT INTO t VALUES ('under another key')"] {
        let error = connect(&cluster).fails(sql, "KE012");
        assert!(error.message().contains("\"k\"") && error.message().contains("file"));
    }
    connect(&cluster).fails("SELECT enc_disable_key_version('k', 1)", "KE011");
    warm.run("INSERT INTO t VALUES ('by a session that has the key')");
    warm.run("SELECT enc_flush_cache()");
    warm.fails(READ, "KE012");
    // Other bytes for the database key: literals fail.
    fs::write(&keyring, replace_key(&good, "database", &STANDARD.encode([7; 32]))).unwrap();
    connect(&cluster).fails("INSERT INTO t VALUES ('literal')", "KE012");
    connect(&cluster).run("INSERT INTO t VALUES (text 'not a literal of the type')");
    // A version that the file hasn't got, and a key.
    let mut without: serde_json::Value = serde_json::from_str(&good).unwrap();
    without["keys"]["k"]
        .as_object_mut()
        .unwrap()
        .insert("2".into(), STANDARD.encode([8; 32]).into());
    without["keys"]["k"].as_object_mut().unwrap().remove("1");
    fs::write(&keyring, without.to_string()).unwrap();
    connect(&cluster).fails(READ, "KE069");
    without["keys"].as_object_mut().unwrap().remove("k");
    fs::write(&keyring, without.to_string()).unwrap();
    connect(&cluster).fails(READ, "KE068");

    fs::write(&keyring, &good).unwrap();
    assert_eq!(connect(&cluster).texts(READ).len(), 3);
}

#[test]
fn a_folder_that_cannot_be_written_stops_new_versions_only() {
    let test = "a_folder_that_cannot_be_written_stops_new_versions_only";
    let Some(builder) = builder(test) else { return };
    let mut cluster = builder.create();
    let folder = cluster.directory().join("keys");
    let server = fs::metadata(cluster.directory()).unwrap();
    fs::create_dir(&folder).unwrap();
    std::os::unix::fs::chown(&folder, Some(server.uid()), Some(server.gid())).unwrap();
    let keyring = folder.join("keyring.json");
    cluster.configure("encryption_ext.keyring_file", keyring.to_str().unwrap());
    cluster.start();
    create_extension(&cluster, DATABASE);
    let mode = |mode| fs::set_permissions(&folder, Permissions::from_mode(mode)).unwrap();

    let mut session = connect(&cluster);
    mode(0o500);
    session.fails("SELECT enc_create_key('k')", "KE078");
    assert_eq!(session.value::<i64>("SELECT count(*) FROM enc_keys"), 0);
    mode(0o700);
    session.run("SELECT enc_create_key('k'); CREATE TABLE t (v encrypted_text('k'))");
    fs::remove_file(folder.join("keyring.json.lock")).unwrap();
    mode(0o500);
    session.fails("SELECT enc_rotate_key('k')", "KE078");
    session.fails("SELECT enc_create_key('other')", "KE078");
    let mut fresh = connect(&cluster);
    fresh.run("INSERT INTO t VALUES ('still written')");
    assert_eq!(fresh.texts(READ).len(), 1);
    mode(0o700);
    assert_eq!(session.value::<i32>("SELECT enc_rotate_key('k')"), 2);
    fs::remove_dir_all(&folder).unwrap();
    session.run("SELECT enc_flush_cache()");
    session.fails(READ, "KE074");
}

/// What `enc_stat_cache` says: entries, misses, expirations, evictions.
fn statistics(session: &mut Client) -> [i64; 4] {
    let row = session
        .query_one("SELECT entries, misses, expirations, evictions FROM enc_stat_cache", &[])
        .unwrap();
    std::array::from_fn(|column| row.get(column))
}

#[test]
fn a_cached_key_outlives_its_file_until_it_is_flushed_or_expires() {
    let test = "a_cached_key_outlives_its_file_until_it_is_flushed_or_expires";
    let Some(cluster) = cluster(test) else { return };
    let keyring = keyring_file(&cluster);
    let aside = keyring.with_extension("aside");
    let hide = || fs::rename(&keyring, &aside).unwrap();
    let show = || fs::rename(&aside, &keyring).unwrap();
    let mut warm = connect(&cluster);
    assert_eq!(statistics(&mut warm), [0, 0, 0, 0]);
    warm.run("INSERT INTO t VALUES ('second')");
    let [entries, misses, ..] = statistics(&mut warm);
    assert_eq!((entries, misses), (2, 2));
    let held = "SELECT string_agg(key_name || key_version || locked, ' ') FROM enc_stat_cache_keys";
    assert_eq!(warm.text(held), "database1true k1true");

    hide();
    for _ in 0..100 {
        warm.run("INSERT INTO t VALUES ('warm'); SELECT v FROM t");
    }
    assert_eq!(statistics(&mut warm)[1], misses, "a warm session went to the file");
    warm.run("SELECT enc_flush_cache()");
    assert_eq!(statistics(&mut warm)[0], 0);
    warm.fails(READ, "KE074");
    show();
    warm.run(READ);

    // The time to live ends between statements, and not in one.
    warm.run("SET encryption_ext.cache_ttl = 1; SELECT enc_flush_cache(); SELECT v FROM t LIMIT 1");
    hide();
    thread::sleep(Duration::from_millis(1200));
    warm.fails("SELECT v FROM t LIMIT 1", "KE074");
    show();
    warm.run("SELECT v FROM t LIMIT 1");
    let (reader, hider) = (
        thread::spawn(move || {
            let before_and_after = "WITH before AS MATERIALIZED (SELECT v::text FROM t LIMIT 1),
                                         pause AS MATERIALIZED (SELECT pg_sleep(2) FROM before)
                                    SELECT (SELECT v::text FROM t LIMIT 1) || count(*) FROM pause";
            let text = warm.text(before_and_after);
            (warm, text)
        }),
        thread::spawn({
            let (keyring, aside) = (keyring.clone(), aside.clone());
            move || {
                thread::sleep(Duration::from_millis(700));
                fs::rename(keyring, aside).unwrap();
            }
        }),
    );
    hider.join().unwrap();
    let (mut warm, text) = reader.join().unwrap();
    assert_eq!(text, "first1");
    assert!(!keyring.exists());
    warm.fails("SELECT v FROM t LIMIT 1", "KE074");
    show();
    warm.run("SELECT v FROM t LIMIT 1");
    assert!(statistics(&mut warm)[2] >= 2);

    // A limit that is lowered counts at once, and a statement that needs more has them until it ends.
    warm.run(
        "SELECT enc_create_key('k2'), enc_create_key('k3');
         CREATE TABLE three (a encrypted_text('k'), b encrypted_text('k2'), c encrypted_text('k3'));
         INSERT INTO three VALUES (text 'a', text 'b', text 'c')",
    );
    warm.run("SET encryption_ext.cache_ttl = 3600; SET encryption_ext.cache_capacity = 2");
    let evicted = statistics(&mut warm)[3];
    for _ in 0..3 {
        assert_eq!(warm.text("SELECT a::text || b::text || c::text FROM three"), "abc");
    }
    let [entries, _, _, evictions] = statistics(&mut warm);
    assert_eq!(entries, 3);
    assert!(evictions >= evicted + 3, "{evictions} after {evicted}");
    assert_eq!(warm.text("SELECT a::text FROM three"), "a");
    assert_eq!(statistics(&mut warm)[0], 2);
    assert_eq!(warm.text("SELECT capacity FROM enc_stat_cache"), "2");
    warm.fails("SET encryption_ext.cache_capacity = 0", "22023");
    warm.fails("SET encryption_ext.cache_ttl = 0", "22023");
}
