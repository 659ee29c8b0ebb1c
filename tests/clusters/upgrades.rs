//! `pg_upgrade`: values, indexes, definitions and keys are in the new cluster as they were, although no key
//! can be had while it works.

#![expect(clippy::unwrap_used, reason = "a test fails by a panic")]

use cluster_tests::places::{self, SECRETS};
use cluster_tests::secrets::Secrets;
use cluster_tests::{Session, builder_on, connect, share_keys, start_with};
use harness::cluster::{Builder, Cluster, SUPERUSER, Shutdown};

/// Clusters can be upgraded into one another if both have checksums, or neither: 18 has them by default.
fn with_checksums(builder: Builder) -> Builder {
    builder.initdb_option("--data-checksums")
}

fn upgrade(test: &str, old_major: u16, new_major: u16, options: &[&str]) {
    let Some(described) = builder_on(old_major, test) else { return };
    let Some(mut old) = start_with(with_checksums(described), test) else { return };
    // The new one is tried before, in a database that is made for that.
    let Some(described) = builder_on(new_major, test) else { return };
    if start_with(described, test).is_none() {
        return;
    }
    let secrets = Secrets::new(SECRETS, 7);
    let mut session = connect(&old);
    // Some builds of PostgreSQL keep attributes' versions in options that others don't know. Then no table
    // at all can be upgraded from the one to the other.
    const OWN_OPTIONS: &str =
        "SELECT count(*) > 0 FROM pg_attribute WHERE attoptions::text LIKE '%pg_attver%'";
    if new_major != old_major && session.text(OWN_OPTIONS) == "t" {
        return harness::skip(
            test,
            &format!(
                "this PostgreSQL {old_major} marks attributes in a way that {new_major} doesn't know"
            ),
        );
    }
    places::make(&mut session, &secrets);
    places::add_computed(&mut session, &secrets);
    session.run(
        "CREATE ROLE clerk LOGIN; GRANT SELECT ON person TO clerk; SELECT enc_grant('user_pii', 'clerk', 'decrypt');
         SELECT enc_disable_key_version('medical', 1), enc_record_backup('b', 'infinity')",
    );
    session.run("ANALYZE");
    session.run("SELECT enc_enable_key_version('medical', 1)");
    let (stored, readable) = (places::stored(&mut session), places::readable(&mut session));
    let digests = "SELECT string_agg(enc_digest(mail)::text, ' ' ORDER BY id) FROM person";
    let digests_before = session.text(digests);
    drop(session);
    old.stop(Shutdown::Fast);

    let mut new = with_checksums(builder_on(new_major, test).unwrap()).create();
    let output = new
        .command("pg_upgrade")
        .args(["--old-datadir", &old.data_directory().to_string_lossy()])
        .args(["--new-datadir", &new.data_directory().to_string_lossy()])
        .args(["--old-bindir", &old.binaries().to_string_lossy()])
        .args(["--new-bindir", &new.binaries().to_string_lossy()])
        .args(["--username", SUPERUSER, "--socketdir", &new.directory().to_string_lossy()])
        .args(options)
        .env_remove("PGHOST")
        .output()
        .unwrap();
    let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(
        output.status.success(),
        "{}{}{}",
        said(&output.stdout),
        said(&output.stderr),
        logs(&new)
    );

    // The keys come with the configuration, not with the data.
    new.start();
    share_keys(&new, &old);
    let mut session = connect(&new);
    places::expect_same("stored", &places::stored(&mut session), &stored);
    places::expect_same("readable", &places::readable(&mut session), &readable);
    assert_eq!(session.text(digests), digests_before);
    session.run("VACUUM ANALYZE");
    for name in 0..20 {
        let secret = secrets.get(name * 10);
        for setting in ["enable_seqscan", "enable_indexscan"] {
            session.run(&format!("SET {setting} = off"));
            let found =
                session.text(&format!("SELECT id FROM ONLY person WHERE mail = '{secret}'"));
            assert_eq!(found, (name * 10).to_string());
            session.run("RESET ALL");
        }
    }
    let versions = "SELECT string_agg(DISTINCT enc_key_version(photo)::text, ' ') FROM person";
    assert_eq!(session.text(versions), "1 2");
    // The types of ANALYZE's function, the event triggers, the grants and the log.
    let not_settled = "SELECT string_agg(typname, ' ') FROM pg_type
                        WHERE typname IN ('_encrypted_text', '_encrypted_bytea', 'contact', '_contact', 'person')
                          AND typanalyze::text NOT LIKE '%encrypted_typanalyze'";
    assert_eq!(session.texts(not_settled), [None]);
    session.fails("CREATE TABLE bare (v encrypted_text)", "KE031");
    session.fails("CREATE INDEX ON person (mail)", "KE032");
    session.fails("CREATE STATISTICS guesses ON id, (lower(mail)) FROM person", "KE035");
    let mut clerk = new.connect("clerk", "postgres");
    assert_eq!(clerk.text("SELECT mail FROM ONLY person WHERE id = 1"), secrets.get(1));
    clerk.fails("SELECT photo FROM person", "KE020");
    assert_eq!(session.text("SELECT bool_and(ok) FROM enc_verify_log()"), "t");
    assert_eq!(session.text("SELECT count(*) FROM enc_backups"), "3");
    // What the extension does goes on.
    session.run("CALL enc_rotate_all('medical')");
    assert_eq!(session.text(versions), "2");
    session.run("SELECT enc_rotate_key('user_pii'); UPDATE person SET mail = enc_rotate(mail)");
    assert_eq!(places::readable(&mut session)[..1000], readable[..1000]);
}

/// What pg_upgrade's programs wrote, for a test that fails.
fn logs(new: &Cluster) -> String {
    let folder = new.data_directory().join("pg_upgrade_output.d");
    let mut folders = vec![folder, new.directory().to_owned()];
    let mut logs = String::new();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() && !path.ends_with("data") {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "log" || e == "txt") {
                let text = std::fs::read_to_string(&path).unwrap_or_default();
                let is_told = |line: &&str| {
                    ["error", "ERROR", "FATAL", "HINT"].iter().any(|word| line.contains(word))
                };
                let told: Vec<_> = text.lines().filter(is_told).collect();
                let tail = told.join("\n");
                logs += &format!("{}:\n{tail}\n", path.display());
            }
        }
    }
    logs
}

#[test]
fn from_15_to_18() {
    upgrade("from_15_to_18", 15, 18, &[]);
}

#[test]
fn from_15_to_18_by_links() {
    upgrade("from_15_to_18_by_links", 15, 18, &["--link"]);
}

/// Where 14 has the extension installed.
#[test]
fn from_14_to_18() {
    upgrade("from_14_to_18", 14, 18, &[]);
}

#[test]
fn from_14_to_18_by_links() {
    upgrade("from_14_to_18_by_links", 14, 18, &["--link"]);
}

#[test]
fn to_the_same_version() {
    upgrade("to_the_same_version", 15, 15, &[]);
}
