//! A cluster whose keys come from a real OpenBao server.

use std::cell::RefCell;
use std::fs;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use harness::cluster::Cluster;
use harness::openbao::OpenBao;
use postgres::Client;

use crate::{DATABASE, Session, connect, create_extension, texts_of};

/// 32 times 1.
pub const ONE: &str = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=";
/// 32 times 2.
pub const TWO: &str = "AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI=";
/// 32 times 3.
pub const THREE: &str = "AwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwM=";

/// A policy that allows reading keys.
pub const READ_ONLY: &str = r#"path "secret/data/keys/*" { capabilities = ["read"] }"#;
/// A policy that allows making keys.
pub const WRITING: &str = r#"
    path "secret/data/keys/*" { capabilities = ["read", "create", "update"] }
    path "secret/metadata/keys/*" { capabilities = ["read"] }"#;

/// What reads the row that [`Setup::with_key`] wrote.
pub const READ: &str = "SELECT v FROM t WHERE id = 1";

/// A key server, and a cluster whose keys come from it.
pub struct Setup {
    /// The key server.
    pub server: OpenBao,
    /// The cluster. It logs all that it can.
    pub cluster: Cluster,
    /// What must not be in its log.
    secrets: RefCell<Vec<String>>,
}

impl Setup {
    /// With a token that the policy applies to.
    pub fn new(test: &str, start: fn() -> Option<OpenBao>, policy: &str) -> Option<Self> {
        let builder = crate::builder(test)?;
        let Some(server) = start() else {
            harness::skip(test, "there is no bao to run");
            return None;
        };
        let cluster = builder.log_level("debug5").create();
        let secrets = [ONE, TWO, THREE, "01010101", "02020202", "03030303", server.root_token()];
        let secrets = RefCell::new(secrets.map(str::to_owned).to_vec());
        let mut setup = Self { server, cluster, secrets };
        setup.server.policy("keys", policy);
        setup.put_token(&setup.server.token(&["keys"], "1h"));
        setup.cluster.configure("encryption_ext.provider", "vault");
        setup.cluster.configure("encryption_ext.vault_address", &setup.server.address());
        setup.configure_file("vault_token_file", &setup.file("token"));
        if setup.server.address().starts_with("https") {
            // Where the server's user can read it.
            let certificate = fs::read_to_string(setup.server.ca_file()).unwrap();
            setup.configure_file("vault_ca_file", &setup.write("ca.pem", &certificate));
        }
        setup.cluster.start();
        create_extension(&setup.cluster, DATABASE);
        Some(setup)
    }

    /// With a key `k` and a table whose first row is `first`, too.
    pub fn with_key(test: &str, start: fn() -> Option<OpenBao>, policy: &str) -> Option<Self> {
        let setup = Self::new(test, start, policy)?;
        setup.server.kv_put("keys/database", ONE);
        setup.server.kv_put("keys/k", TWO);
        connect(&setup.cluster).run(
            "SELECT enc_create_key('k');
             CREATE TABLE t (id bigint GENERATED ALWAYS AS IDENTITY, v encrypted_text('k'));
             INSERT INTO t (v) VALUES ('first')",
        );
        Some(setup)
    }

    /// A file that the cluster's user can read.
    pub fn file(&self, name: &str) -> PathBuf {
        self.cluster.directory().join(name)
    }

    /// Replaces such a file.
    pub fn write(&self, name: &str, contents: &str) -> PathBuf {
        // Replaced, as Vault Agent does it, and not written over.
        let (new, file) = (self.file("new"), self.file(name));
        fs::write(&new, contents).unwrap();
        fs::rename(&new, &file).unwrap();
        file
    }

    /// Replaces the token.
    pub fn put_token(&self, token: &str) {
        self.is_secret(token);
        self.write("token", &format!("{token}\n"));
    }

    /// The text must not be in the server's log when the test ends.
    pub fn is_secret(&self, text: &str) {
        self.secrets.borrow_mut().push(text.trim().to_owned());
    }

    /// Sets a setting to the path of a file.
    pub fn configure_file(&self, setting: &str, file: &std::path::Path) {
        self.cluster.configure(&format!("encryption_ext.{setting}"), file.to_str().unwrap());
    }

    /// A session that has no key yet.
    pub fn connect(&self) -> Client {
        connect(&self.cluster)
    }

    /// A session that has read a row and must fetch the key again at its next statement, by the
    /// same provider with the same login.
    pub fn expired(&self) -> Client {
        let mut session = self.connect();
        session.run("SET encryption_ext.cache_ttl = 1; SET encryption_ext.cache_stale_grace = 0");
        assert_eq!(session.text(READ), "first");
        // Fetched again at half of the time, and not once more, as nobody uses it.
        thread::sleep(Duration::from_millis(1700));
        session
    }

    /// A new session's reading fails, with a message that names the provider and shows no secret.
    #[track_caller]
    pub fn reading_fails(&self, sqlstate: &str) -> String {
        fails(&mut self.connect(), READ, sqlstate)
    }
}

impl Drop for Setup {
    fn drop(&mut self) {
        if thread::panicking() {
            return;
        }
        let log = self.cluster.log();
        for secret in self.secrets.borrow().iter().filter(|secret| secret.len() >= 8) {
            assert!(!log.contains(secret), "the server's log has the secret {secret}");
        }
        assert!(!log.contains("was terminated by signal"), "a backend crashed");
    }
}

/// Statements fail, with a message that names the provider and shows no secret.
#[track_caller]
pub fn fails(session: &mut Client, sql: &str, sqlstate: &str) -> String {
    let text = texts_of(&session.fails(sql, sqlstate));
    for secret in [ONE, TWO, THREE, "AQEB", "AgIC", "AwMD", "01010101", "02020202"] {
        assert!(!text.contains(secret), "{text}");
    }
    // OpenBao's tokens.
    assert!(!text.split([' ', '"']).any(|word| word.starts_with("s.")), "{text}");
    if sqlstate != "57014" {
        assert!(text.contains("provider \"vault") || sqlstate == "KE061", "{text}");
    }
    text
}
