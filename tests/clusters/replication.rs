//! Clusters whose data come from another.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use harness::cluster::Cluster;
use postgres::Client;

use crate::Session;

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
