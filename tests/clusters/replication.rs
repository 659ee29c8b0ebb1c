//! Clusters whose data come from another.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use harness::cluster::{Builder, Cluster, SUPERUSER};
use harness::free_port;
use postgres::Client;

use crate::{DATABASE, Session};

/// Replaces a stopped cluster's data by a base backup of another, which pg_basebackup makes with these
/// further options: with `--write-recovery-conf` the copy follows as a standby.
///
/// # Panics
///
/// If that fails.
#[track_caller]
pub fn replace_by_base_backup(cluster: &Cluster, original: &Cluster, options: &[&str]) {
    let data = cluster.data_directory();
    fs::remove_dir_all(&data).unwrap();
    let target = cluster.directory().join("base_backup");
    // pg_basebackup runs as the original's user, to whom the copy's folder belongs as well.
    let output = original
        .command("pg_basebackup")
        .args(["--checkpoint=fast", "--no-sync"])
        .args(options)
        .arg("--pgdata")
        .arg(&target)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    fs::rename(&target, &data).unwrap();
}

/// Waits until a standby has replayed what its primary has written.
///
/// # Panics
///
/// If it doesn't within a minute.
#[track_caller]
pub fn catch_up(primary: &mut Client, standby: &mut Client) {
    let written = primary.text("SELECT pg_current_wal_flush_lsn()");
    let replayed = format!("SELECT pg_last_wal_replay_lsn() >= '{written}'");
    let started = Instant::now();
    while standby.text(&replayed) != "t" {
        assert!(started.elapsed() < Duration::from_secs(60), "the standby doesn't follow");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Describes a cluster that others can subscribe to, at [`Cluster::port`] of 127.0.0.1, and that can
/// subscribe to others.
pub fn networked(builder: Builder) -> Builder {
    builder
        .port(free_port())
        .setting("listen_addresses", "127.0.0.1")
        .setting("wal_level", "logical")
        .setting("wal_receiver_status_interval", "1s")
        .setting("wal_retrieve_retry_interval", "500ms")
}

/// Subscribes to a publication at a port, with the subscription's name as that of the slot.
#[track_caller]
pub fn subscribe(session: &mut Client, name: &str, port: u16, publication: &str, options: &str) {
    session.run(&format!(
        "CREATE SUBSCRIPTION {name} CONNECTION 'host=127.0.0.1 port={port} user={SUPERUSER} dbname={DATABASE}'
             PUBLICATION {publication} WITH ({})",
        if options.is_empty() { "enabled = true" } else { options }
    ));
}

/// Waits until a condition holds, which a query says.
///
/// # Panics
///
/// If it doesn't within a minute.
#[track_caller]
pub fn wait_for(session: &mut Client, condition: &str) {
    let started = Instant::now();
    while session.texts(condition) != [Some("t".to_owned())] {
        assert!(started.elapsed() < Duration::from_secs(60), "never true: {condition}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// Waits until all tables of a session's subscriptions have been copied.
#[track_caller]
pub fn wait_for_copies(subscriber: &mut Client) {
    wait_for(
        subscriber,
        "SELECT count(*) > 0 AND bool_and(srsubstate = 'r') FROM pg_subscription_rel",
    );
}

/// Waits until a subscription has applied what its publisher has written.
#[track_caller]
pub fn wait_for_changes(publisher: &mut Client, name: &str) {
    let written = publisher.text("SELECT pg_current_wal_insert_lsn()");
    let applied = format!(
        "SELECT confirmed_flush_lsn >= '{written}' FROM pg_replication_slots WHERE slot_name = '{name}'"
    );
    wait_for(publisher, &applied);
}

/// Gives a database the definitions of another one's tables, and the extension, and no key.
///
/// # Panics
///
/// If that fails.
#[track_caller]
pub fn copy_definitions(from: &Cluster, to: &Cluster) {
    let dump = from
        .command("pg_dump")
        .args(["--schema-only", "--no-publications", "--no-subscriptions"])
        .output()
        .unwrap();
    assert!(dump.status.success(), "{}", String::from_utf8_lossy(&dump.stderr));
    let script = to.directory().join("definitions.sql");
    fs::write(&script, dump.stdout).unwrap();
    let options = ["--quiet", "--set=ON_ERROR_STOP=1", "--output=/dev/null", "--file"];
    let output =
        to.psql(SUPERUSER, DATABASE, &[&options[..], &[script.to_str().unwrap()]].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
