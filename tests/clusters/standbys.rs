//! Copies of a cluster's files: standbys, base backups, archived WAL. They have ciphertext only, and whoever
//! has the keys goes on with them where the original was.

#![expect(clippy::unwrap_used, reason = "a test fails by a panic")]

use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use cluster_tests::places::{self, ROWS, SECRETS};
use cluster_tests::replication::{catch_up, replace_by_base_backup, wait_for};
use cluster_tests::secrets::Secrets;
use cluster_tests::{Session, builder_on, connect, keyring_file, start_with};
use harness::cluster::{Cluster, Shutdown};
use postgres::Client;

const READABLE: &str = "SELECT p::text FROM person p ORDER BY tableoid::regclass::text, id";

fn made(cluster: &Cluster) -> Secrets {
    let secrets = Secrets::new(SECRETS, 31);
    let mut session = connect(cluster);
    places::make(&mut session, &secrets);
    places::add_computed(&mut session, &secrets);
    secrets
}

/// Rows are found by each of the indexes.
#[track_caller]
fn expect_indexes_to_work(session: &mut Client, secrets: &Secrets) {
    session.run("SET enable_seqscan = off");
    for n in (0..ROWS).step_by(97) {
        let secret = secrets.get(n);
        let queries = [
            format!("SELECT id FROM ONLY person WHERE mail = '{secret}'"),
            format!("SELECT id FROM ONLY person WHERE mail_digest = enc_digest('{secret}')"),
            format!(
                "SELECT id FROM ONLY person WHERE enc_digest(photo, domain => 'photo') = enc_digest('{secret}'::bytea, domain => 'photo')"
            ),
        ];
        for query in queries {
            assert_eq!(session.text(&query), n.to_string(), "{query}");
        }
    }
    session.run("RESET enable_seqscan");
}

fn failover(test: &str, major: u16) {
    let Some(described) = builder_on(major, test) else { return };
    let described = described.initdb_option("--data-checksums").setting("wal_keep_size", "256MB");
    let Some(mut primary) = start_with(described, test) else { return };
    let secrets = made(&primary);
    let mut admin = connect(&primary);
    let mut standby = Cluster::builder(major).port(5433).create();
    replace_by_base_backup(&standby, &primary, &["--write-recovery-conf"]);
    secrets.expect_none_in("a standby's files", &files(&standby.data_directory().join("base")));
    // All servers have the same keys.
    let keyring = keyring_file(&primary);
    let shared = primary.directory().join("keys.json");
    fs::rename(&keyring, &shared).unwrap();
    for cluster in [&primary, &standby] {
        cluster.configure("encryption_ext.keyring_file", shared.to_str().unwrap());
    }
    primary.reload();
    standby.start();
    let mut there = connect(&standby);
    catch_up(&mut admin, &mut there);
    assert_eq!(there.texts(READABLE), admin.texts(READABLE));
    expect_indexes_to_work(&mut there, &secrets);

    // A rotation on the primary, while a session of the standby reads.
    let rotating = thread::scope(|scope| {
        let rotating = scope.spawn(|| {
            let mut session = connect(&primary);
            session.run("SELECT enc_rotate_key('user_pii')");
            session.run("CALL enc_rotate_all('user_pii', batch_size => 100)");
            catch_up(&mut session, &mut connect(&standby));
        });
        while !rotating.is_finished() {
            assert_eq!(there.text("SELECT count(mail::text) FROM ONLY person"), ROWS.to_string());
        }
        rotating.join()
    });
    rotating.unwrap();
    assert_eq!(there.texts(READABLE), admin.texts(READABLE));
    let expected = admin.texts(READABLE);
    drop(admin);

    // The primary is lost, and the standby goes on: it rotates, and encrypts again.
    primary.stop(Shutdown::Fast);
    there.run("SELECT pg_promote()");
    let mut session = connect(&standby);
    assert_eq!(session.texts(READABLE), expected);
    session.run("SELECT enc_rotate_key('user_pii', reason => 'after the failover')");
    session.run("CALL enc_rotate_all('user_pii')");
    let versions = "SELECT string_agg(DISTINCT enc_key_version(mail)::text, ' ') FROM person";
    assert_eq!(session.text(versions), "3");
    assert_eq!(session.texts(READABLE), expected);
    session.run("INSERT INTO person (id, mail) VALUES (-1, 'new')");
    expect_indexes_to_work(&mut session, &secrets);
    assert_eq!(session.text("SELECT bool_and(ok) FROM enc_verify_log()"), "t");

    // The former primary comes back as its standby.
    session.run("CHECKPOINT");
    let source = format!(
        "host={} port=5433 user=postgres dbname=postgres",
        standby.socket_directory().display()
    );
    let output = primary
        .command("pg_rewind")
        .arg("--target-pgdata")
        .arg(primary.data_directory())
        .args(["--write-recovery-conf", "--source-server", &source])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    primary.start();
    let mut back = connect(&primary);
    catch_up(&mut session, &mut back);
    assert_eq!(back.text("SELECT pg_is_in_recovery()"), "t");
    assert_eq!(back.texts(READABLE), session.texts(READABLE));
    assert_eq!(back.text("SELECT bool_and(ok) FROM enc_check_key()"), "t");
}

#[test]
fn a_standby_that_is_promoted_rotates() {
    failover("a_standby_that_is_promoted_rotates", 15);
}

#[test]
fn a_standby_that_is_promoted_rotates_18() {
    failover("a_standby_that_is_promoted_rotates_18", 18);
}

/// A base backup from before a rotation, and the WAL since, are ciphertext; recovery goes through the rotation,
/// to a moment in the middle of encrypting again, or to its end. (To one before it: `lifecycle`.)
#[test]
fn recovery_goes_through_a_rotation() {
    let test = "recovery_goes_through_a_rotation";
    let Some(described) = builder_on(15, test) else { return };
    let mut original = described.setting("archive_mode", "on").create();
    let archive = original.directory().join("archive");
    fs::create_dir(&archive).unwrap();
    let permissions = std::os::unix::fs::PermissionsExt::from_mode(0o777);
    fs::set_permissions(&archive, permissions).unwrap();
    original.configure("archive_command", &format!("cp %p {}/%f", archive.display()));
    original.start();
    cluster_tests::create_extension(&original, "postgres");
    let secrets = made(&original);
    let mut session = connect(&original);
    let mut restored = Cluster::builder(15).port(5433).create();
    replace_by_base_backup(&restored, &original, &[]);
    let pristine = original.directory().join("pristine");
    copy_folder(&restored.data_directory(), &pristine);
    secrets.expect_none_in("a base backup", &files(&pristine));

    for statement in [
        "SELECT enc_rotate_key('user_pii')",
        "UPDATE person SET mail = enc_rotate(mail) WHERE id < 500",
        "SELECT pg_create_restore_point('in_the_middle')",
        "CALL enc_rotate_all('user_pii')",
        "SELECT pg_create_restore_point('at_the_end'), pg_switch_wal()",
    ] {
        session.run(statement);
    }
    let readable = session.texts(READABLE);
    wait_for(
        &mut session,
        "SELECT last_archived_wal >= pg_walfile_name(pg_current_wal_lsn() - 1) FROM pg_stat_archiver",
    );
    secrets.expect_none_in("archived WAL", &files(&archive));
    const VERSIONS: &str =
        "SELECT string_agg(DISTINCT enc_key_version(mail)::text, ' ') FROM person";
    for (target, versions) in [("in_the_middle", "1 2"), ("at_the_end", "2")] {
        let data = restored.data_directory();
        fs::remove_dir_all(&data).unwrap();
        copy_folder(&pristine, &data);
        for (name, value) in [
            ("encryption_ext.keyring_file", keyring_file(&original).to_str().unwrap()),
            ("restore_command", &format!("cp {}/%f %p", archive.display())),
            ("recovery_target_name", target),
            ("recovery_target_action", "promote"),
            ("archive_mode", "off"),
        ] {
            restored.configure(name, value);
        }
        fs::write(data.join("recovery.signal"), "").unwrap();
        restored.start();
        let started = Instant::now();
        while connect(&restored).text("SELECT pg_is_in_recovery()") == "t" {
            assert!(started.elapsed() < Duration::from_secs(60), "recovery doesn't end");
            thread::sleep(Duration::from_millis(50));
        }
        let mut there = connect(&restored);
        assert_eq!(there.texts(READABLE), readable, "{target}");
        assert_eq!(there.text(VERSIONS), versions, "{target}");
        expect_indexes_to_work(&mut there, &secrets);
        let findings = "SELECT string_agg(DISTINCT finding, ', ') FROM enc_reconcile()";
        assert_eq!(there.text(findings), "agrees", "{target}");
        there.run("CALL enc_rotate_all('user_pii')");
        assert_eq!(there.text(VERSIONS), "2", "{target}");
        restored.stop(Shutdown::Fast);
    }
}

/// All files below a folder, one after another.
fn files(folder: &Path) -> Vec<u8> {
    let mut bytes = Vec::new();
    for entry in fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            bytes.extend(files(&path));
        } else if path.is_file() && !path.ends_with("encryption_ext_keyring.json") {
            bytes.extend(fs::read(&path).unwrap());
        }
    }
    bytes
}

/// A copy that belongs to the same user.
fn copy_folder(from: &Path, to: &Path) {
    let output = std::process::Command::new("cp").arg("-a").arg(from).arg(to).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
