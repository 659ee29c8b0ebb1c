//! The clusters themselves: what every other test takes for granted.

use std::path::PathBuf;

use harness::cluster::{Cluster, SUPERUSER, Shutdown, backend_pid};
use harness::skip;

const MAJOR: u16 = 15;

/// A started cluster, or `None` where PostgreSQL can't be had, which is then recorded.
fn cluster(test: &str) -> Option<Cluster> {
    match Cluster::missing(MAJOR) {
        None => Some(Cluster::builder(MAJOR).start()),
        Some(why) => {
            skip(test, &why);
            None
        }
    }
}

fn count(cluster: &Cluster, table: &str) -> i64 {
    let mut client = cluster.connect(SUPERUSER, "postgres");
    let count = client.query_one(&format!("SELECT count(*) FROM {table}"), &[]);
    count.expect("the table exists").get(0)
}

#[test]
fn answers_queries_and_psql() {
    let Some(cluster) = cluster("answers_queries_and_psql") else { return };
    let mut client = cluster.connect(SUPERUSER, "postgres");
    let version: String = client.query_one("SHOW server_version_num", &[]).unwrap().get(0);
    assert!(version.starts_with(&MAJOR.to_string()), "{version}");

    let output = cluster.psql(SUPERUSER, "postgres", &["-At", "-c", "SELECT 6 * 7"]);
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "42\n");
    assert!(output.status.success());

    let output = cluster.psql(SUPERUSER, "postgres", &["-c", "SELECT no_such_column"]);
    assert!(String::from_utf8(output.stderr).unwrap().contains("no_such_column"));
    assert!(!output.status.success());
}

#[test]
fn keeps_committed_rows_through_a_restart_and_a_crash() {
    let Some(mut cluster) = cluster("keeps_committed_rows_through_a_restart_and_a_crash") else {
        return;
    };
    let mut client = cluster.connect(SUPERUSER, "postgres");
    client.batch_execute("CREATE TABLE kept AS SELECT generate_series(1, 3)").unwrap();
    drop(client);

    cluster.restart();
    assert_eq!(count(&cluster, "kept"), 3);

    let mut client = cluster.connect(SUPERUSER, "postgres");
    client.batch_execute("INSERT INTO kept VALUES (4)").unwrap();
    cluster.crash();
    assert!(client.is_closed() || client.batch_execute("SELECT 1").is_err());
    cluster.start();
    assert_eq!(count(&cluster, "kept"), 4);
    assert!(cluster.log().contains("automatic recovery in progress"), "{}", cluster.log());

    cluster.stop(Shutdown::Immediate);
    assert!(cluster.try_connect(SUPERUSER, "postgres").is_err());
    cluster.start();
    assert_eq!(count(&cluster, "kept"), 4);
}

#[test]
fn takes_settings_and_encodings() {
    if let Some(why) = Cluster::missing(MAJOR) {
        return skip("takes_settings_and_encodings", &why);
    }
    let cluster = Cluster::builder(MAJOR)
        .encoding("LATIN1", "C")
        .setting("search_path", "it's, public")
        .log_level("debug2")
        .start();
    let mut client = cluster.connect(SUPERUSER, "postgres");
    let encoding: String = client.query_one("SHOW server_encoding", &[]).unwrap().get(0);
    assert_eq!(encoding, "LATIN1");
    let search_path: String = client.query_one("SHOW search_path", &[]).unwrap().get(0);
    assert_eq!(search_path, "it's, public");
    assert!(cluster.log().contains("DEBUG:"));

    cluster.createdb("other", "EUC_JP");
    let mut client = cluster.connect(SUPERUSER, "other");
    let encoding: String = client.query_one("SHOW server_encoding", &[]).unwrap().get(0);
    assert_eq!(encoding, "EUC_JP");
}

#[test]
fn says_why_a_server_does_not_start() {
    if let Some(why) = Cluster::missing(MAJOR) {
        return skip("says_why_a_server_does_not_start", &why);
    }
    let mut cluster =
        Cluster::builder(MAJOR).setting("shared_preload_libraries", "no_such").create();
    let why = cluster.try_start().unwrap_err();
    assert!(why.contains("no_such"), "{why}");
}

#[test]
fn a_backend_that_is_killed_takes_its_session_along() {
    let Some(cluster) = cluster("a_backend_that_is_killed_takes_its_session_along") else { return };
    let mut client = cluster.connect(SUPERUSER, "postgres");
    let pid = backend_pid(&mut client);
    let mut other = cluster.connect(SUPERUSER, "postgres");
    assert_ne!(pid, backend_pid(&mut other));
    other.execute("SELECT pg_terminate_backend($1, 5000)", &[&pid]).unwrap();
    assert!(client.batch_execute("SELECT 1").is_err());
}

#[test]
fn leaves_nothing_behind_even_when_a_test_panics() {
    if let Some(why) = Cluster::missing(MAJOR) {
        return skip("leaves_nothing_behind_even_when_a_test_panics", &why);
    }
    let (sender, receiver) = std::sync::mpsc::channel::<(PathBuf, u32)>();
    let test = std::thread::spawn(move || {
        let cluster = Cluster::builder(MAJOR).start();
        sender.send((cluster.directory().to_owned(), cluster.postmaster_pid())).unwrap();
        panic!("as a failing test does");
    });
    assert!(test.join().is_err());
    let (directory, postmaster) = receiver.recv().unwrap();
    assert!(!directory.exists());
    assert!(!PathBuf::from(format!("/proc/{postmaster}")).exists());
}
