//! The cache of keys that the sessions of a server share when the library is preloaded.

#![expect(clippy::unwrap_used, reason = "a test fails by a panic")]

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::PathBuf;
use std::sync::Barrier;
use std::thread;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use cluster_tests::{DATABASE, Session, builder, connect, create_extension};
use harness::cluster::{Builder, Cluster};
use postgres::Client;

/// What reads the row that [`Store::start`] wrote.
const READ: &str = "SELECT v FROM t WHERE id = 1";

/// A cluster with the library preloaded, whose keys come from a program that notes each time it is run.
struct Store {
    cluster: Cluster,
}

impl Store {
    /// Keys `database` and `k`, a version each, and a table with a row. Whatever was fetched until then is
    /// forgotten, and not counted.
    fn start(test: &str, describe: impl FnOnce(Builder) -> Builder) -> Option<Self> {
        let builder = builder(test)?
            .setting("shared_preload_libraries", "encryption_ext")
            .setting("max_connections", "220");
        let mut store = Self { cluster: describe(builder).create() };
        let folder = store.cluster.directory().to_owned();
        // A program that others than root could write is refused.
        let program = folder.join("key");
        let script = format!(
            "#!/bin/sh\ncd '{}'\necho \"$1 $2\" >> calls\nread seconds < delay && sleep \"$seconds\"\n\
             test -e dead && exit 1\ntest -e \"key.$1.$2\" || exit 3\ncat \"key.$1.$2\"\n",
            folder.display()
        );
        fs::write(&program, script).unwrap();
        fs::set_permissions(&program, Permissions::from_mode(0o755)).unwrap();
        if nix::unistd::geteuid().is_root() {
            chown(&program, Some(0), Some(0)).unwrap();
        }
        store.delay(0.0);
        store.put("database", 1, 1);
        store.put("k", 1, 2);
        store.cluster.configure("encryption_ext.provider", "command");
        let command = format!("{} %n %v", program.display());
        store.cluster.configure("encryption_ext.command", &command);
        store.cluster.start();
        create_extension(&store.cluster, DATABASE);
        let mut session = store.connect();
        session.run(
            "SELECT enc_create_key('k');
             CREATE TABLE t (id bigint GENERATED ALWAYS AS IDENTITY, v encrypted_text('k'));
             INSERT INTO t (v) VALUES ('first')",
        );
        store.flush(&mut session);
        Some(store)
    }

    fn connect(&self) -> Client {
        connect(&self.cluster)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.cluster.directory().join(name)
    }

    /// The store's key: so many times the byte.
    fn put(&self, key: &str, version: u32, byte: u8) {
        fs::write(self.file(&format!("key.{key}.{version}")), STANDARD.encode([byte; 32])).unwrap();
    }

    /// How long each run of the program takes.
    fn delay(&self, seconds: f32) {
        fs::write(self.file("delay"), format!("{seconds}\n")).unwrap();
    }

    fn kill(&self) {
        fs::write(self.file("dead"), "").unwrap();
    }

    fn revive(&self) {
        fs::remove_file(self.file("dead")).unwrap();
    }

    fn flush(&self, session: &mut Client) {
        session.run("SELECT enc_flush_cache()");
        let _ = fs::remove_file(self.file("calls"));
    }

    /// How often the program was run for each version since the last flush.
    fn calls(&self) -> BTreeMap<String, usize> {
        let mut calls = BTreeMap::new();
        for call in fs::read_to_string(self.file("calls")).unwrap_or_default().lines() {
            *calls.entry(call.to_owned()).or_default() += 1;
        }
        calls
    }
}

fn statistic(session: &mut Client, column: &str) -> i64 {
    session.value(&format!("SELECT {column} FROM enc_stat_shared_cache"))
}

#[test]
fn two_hundred_connections_at_once_ask_once_for_each_key() {
    let test = "two_hundred_connections_at_once_ask_once_for_each_key";
    let Some(store) = Store::start(test, |builder| builder) else { return };
    store.delay(0.5);
    let start = Barrier::new(200);
    thread::scope(|scope| {
        for _ in 0..200 {
            scope.spawn(|| {
                let mut session = store.connect();
                start.wait();
                assert_eq!(session.text(READ), "first");
                session.run("INSERT INTO t (v) VALUES ('a literal')");
            });
        }
    });
    let once = BTreeMap::from([("database 1".to_owned(), 1), ("k 1".to_owned(), 1)]);
    assert_eq!(store.calls(), once);
    let mut session = store.connect();
    assert!(statistic(&mut session, "waits") >= 199);
    assert_eq!(statistic(&mut session, "entries"), 2);
    assert_eq!(session.text("SELECT count(v::text) FROM t"), "201");
}

#[test]
fn a_new_connection_has_its_keys_though_the_provider_is_gone() {
    let test = "a_new_connection_has_its_keys_though_the_provider_is_gone";
    let Some(store) = Store::start(test, |builder| builder) else { return };
    store.connect().run(&format!("{READ}; INSERT INTO t (v) VALUES ('x')"));
    let calls = store.calls();
    store.kill();
    let mut session = store.connect();
    assert_eq!(session.text(READ), "first");
    session.run("INSERT INTO t (v) VALUES ('without a provider')");
    assert_eq!(store.calls(), calls);

    // A superuser's flush is everybody's, and everybody else's their own.
    session
        .run("CREATE ROLE app; GRANT SELECT ON t TO app; SELECT enc_grant('k', 'app', 'decrypt')");
    session.run("SET ROLE app; SELECT enc_flush_cache()");
    assert_eq!(session.text(READ), "first");
    session.run("RESET ROLE; SELECT enc_flush_cache()");
    session.fails(READ, "KE062");
    store.connect().fails(READ, "KE062");
    store.revive();
    assert_eq!(store.connect().text(READ), "first");
}
