//! What a provider is for, from the first key to the end of its server.

use std::collections::BTreeMap;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use cluster_tests::{DATABASE, Session, create_extension, hex, texts_of};
use envelope::{DataKey, KeyName, KeyVersion};
use harness::cluster::{Cluster, SUPERUSER, backend_pid};
use keyring::call::RequestLimits;
use keyring::configured::{Configured, ProviderKind};
use keyring::version::{CheckValue, Keyspace, VersionId};
use postgres::Client;

/// `encryption_ext.provider_timeout` here.
const TIMEOUT: Duration = Duration::from_secs(1);

/// What the machine may add, having two cores and other tests to run.
const SLACK: Duration = Duration::from_millis(700);

/// The time to live of keys in a session whose keys are to expire, and a pause after which they have,
/// also if they were fetched again at half of the time.
const TIME_TO_LIVE: &str = "SET encryption_ext.cache_ttl = 1";
const EXPIRED: Duration = Duration::from_millis(2200);

pub(crate) const READ: &str =
    "SELECT string_agg(enc_key_version(v) || v::text, ' ' ORDER BY id) FROM t";

/// A provider that is set up as docs/providers.md says.
pub(crate) struct Subject<'a> {
    pub(crate) kind: ProviderKind,
    /// Its settings, by their names in the provider file.
    pub(crate) settings: BTreeMap<&'static str, String>,
    /// What must be in no error and not in the log: credentials, and what begins them.
    pub(crate) secrets: Vec<String>,
    pub(crate) server: Box<dyn KeyServer + 'a>,
    /// The SQLSTATEs of a statement without keys when the server refuses, and when it is gone.
    pub(crate) refused: &'static str,
    pub(crate) gone: &'static str,
}

/// What its administrator does, and what happens to it.
pub(crate) trait KeyServer {
    /// Makes a version of a key, unless it is the provider that does.
    fn make_version(&mut self, _key: &str, _version: u32) -> bool {
        false
    }

    /// Makes another key encryption key, if it has any, and gives the setting that names it.
    fn make_other_kek(&mut self) -> Option<(&'static str, String)> {
        None
    }

    /// Sees to it that the first key encryption key opens nothing any more, if it can.
    fn retire_first_kek(&mut self) {}

    /// From now on it answers nobody. False if it can't be made to.
    fn hang(&mut self) -> bool {
        false
    }

    fn go_on(&mut self) {}

    /// From now on it works, and does not give this database its keys.
    fn refuse(&mut self);

    fn allow(&mut self);

    /// From now on it isn't there.
    fn go_away(&mut self);
}

/// A cluster with a provider, and what its users were told.
pub(crate) struct Story<'a> {
    pub(crate) cluster: Cluster,
    subject: Subject<'a>,
    told: String,
}

/// All that a provider is for, from the first key to the end of its server.
pub(crate) fn tell<'a>(
    test: &str,
    missing: &str,
    set_up: impl FnOnce(&Path) -> Option<Subject<'a>>,
) {
    let Some(mut story) = Story::begin(test, missing, set_up) else { return };
    story.keys_are_made_and_rotated();
    story.keys_are_wrapped_again();
    let keys = story.keys();
    story.the_server_hangs();
    story.the_server_refuses();
    story.the_server_goes_away();
    story.no_secret_was_told(&keys);
}

impl<'a> Story<'a> {
    pub(crate) fn begin(
        test: &str,
        missing: &str,
        set_up: impl FnOnce(&Path) -> Option<Subject<'a>>,
    ) -> Option<Self> {
        let mut cluster = cluster_tests::builder(test)?.log_level("debug5").create();
        let Some(subject) = set_up(cluster.directory()) else {
            harness::skip(test, missing);
            return None;
        };
        cluster.configure("encryption_ext.provider", subject.kind.name());
        for (name, value) in &subject.settings {
            cluster.configure(&setting(subject.kind, name), value);
        }
        let timeout = TIMEOUT.as_millis().to_string();
        cluster.configure("encryption_ext.provider_timeout", &timeout);
        cluster.start();
        create_extension(&cluster, DATABASE);
        Some(Self { cluster, subject, told: String::new() })
    }

    pub(crate) fn keys_are_made_and_rotated(&mut self) {
        let mut session = self.connect();
        self.check_is_good(&[]);
        for key in ["database", "k"] {
            if self.subject.server.make_version(key, 1) {
                self.check_is_good(&["key \"database\""]);
            }
        }
        session.run(
            "SELECT enc_create_key('k');
             CREATE TABLE t (id bigint GENERATED ALWAYS AS IDENTITY, v encrypted_text('k'));
             INSERT INTO t (v) VALUES ('first')",
        );
        assert_eq!(self.connect().text(READ), "1first");

        self.subject.server.make_version("k", 2);
        assert_eq!(session.value::<i32>("SELECT enc_rotate_key('k')"), 2);
        session.run("INSERT INTO t (v) VALUES ('second')");
        assert_eq!(session.text(READ), "1first 2second");
        assert_eq!(self.connect().text(READ), "1first 2second");
        drop(session);
        self.cluster.restart();
        assert_eq!(self.connect().text(READ), "1first 2second");
        self.check_is_good(&["version 1 of key \"k\"", "version 2 of key \"k\""]);
    }

    fn keys_are_wrapped_again(&mut self) {
        let mut session = self.connect();
        if !self.subject.kind.is_envelope() {
            assert_eq!(session.value::<i32>("SELECT enc_rewrap_key('k')"), 0);
            return;
        }
        let references = "SELECT string_agg(DISTINCT reference, ' ') FROM enc_key_versions";
        let stored = "SELECT string_agg(v::bytea::text, ' ' ORDER BY id) FROM t";
        let (first, before) = (session.text(references), session.text(stored));
        let (name, value) = self.subject.server.make_other_kek().expect("it wraps by one");
        self.configure(name, &value);
        let mut session = self.connect();
        assert_eq!(session.value::<i32>("SELECT enc_rewrap_key('k')"), 2);
        assert_eq!(session.value::<i32>("SELECT enc_rewrap_key('database')"), 1);
        self.subject.server.retire_first_kek();
        assert_eq!(self.connect().text(READ), "1first 2second");
        // All of them have another place than any of them had.
        let second = session.text(references);
        assert!(!first.contains(' ') && !second.contains(' ') && first != second, "{second}");
        assert_eq!(session.text(stored), before);
        self.check_is_good(&["round trip", "version 2 of key \"k\""]);
    }

    /// The keys that the catalog has, as a program other than the server has them from the provider.
    fn keys(&self) -> Vec<DataKey> {
        let settings = self.subject.settings.iter();
        let settings = settings.map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
        let configured = Configured { kind: self.subject.kind, settings };
        let mut provider =
            configured.provider(RequestLimits::default(), Box::new(|| false)).unwrap();
        let mut session = self.connect();
        let rows = session
            .query(
                "SELECT decode(replace(v.keyspace::text, '-', ''), 'hex'), k.name::text, v.version,
                        v.reference, v.wrapped, v.check_value
                   FROM encryption.key_version v JOIN encryption.key k USING (key_id)",
                &[],
            )
            .unwrap();
        assert_eq!(rows.len(), 3);
        let keys = rows.iter().map(|row| {
            let id = VersionId {
                keyspace: Keyspace(row.get::<_, Vec<u8>>(0).try_into().unwrap()),
                name: &KeyName::parse(row.get(1)).unwrap(),
                version: KeyVersion::new(row.get::<_, i32>(2).cast_unsigned()).unwrap(),
            };
            let wrapped: Option<Vec<u8>> = row.get(4);
            let key = provider.open(&id, row.get(3), wrapped.as_deref()).unwrap();
            let check_value = row.get::<_, Vec<u8>>(5).try_into().unwrap();
            assert!(CheckValue::from_bytes(check_value).matches(&key, &id));
            key
        });
        keys.collect()
    }

    fn the_server_hangs(&mut self) {
        let mut expired = self.session_whose_keys_expire();
        if !self.subject.server.hang() {
            return;
        }
        self.fails_within(TIMEOUT, "KE063");
        let mut limited = self.connect();
        limited.run("SET statement_timeout = 200");
        let (took, _) = timed(|| limited.fails(READ, "57014"));
        assert!(took < Duration::from_millis(400), "{took:?}");
        self.a_session_is_terminated();
        self.check_is_bad("KE063");
        thread::sleep(EXPIRED);
        assert_eq!(expired.text(READ), "1first 2second");
        self.subject.server.go_on();
        assert_eq!(self.connect().text(READ), "1first 2second");
    }

    /// One that waits for the server ends at once.
    pub(crate) fn a_session_is_terminated(&self) {
        let mut session = self.connect();
        session.run("SET encryption_ext.provider_timeout = 60000");
        let pid = backend_pid(&mut session);
        let waiting = thread::spawn(move || {
            let result = session.simple_query(READ);
            (Instant::now(), result.map(drop))
        });
        thread::sleep(Duration::from_millis(300));
        assert!(!waiting.is_finished(), "the session doesn't wait for the server");
        let called = Instant::now();
        self.connect().run(&format!("SELECT pg_terminate_backend({pid})"));
        let (ended, result) = waiting.join().unwrap();
        let took = ended.saturating_duration_since(called);
        assert!(result.is_err() && took < Duration::from_millis(250), "{took:?}");
    }

    fn the_server_refuses(&mut self) {
        let mut expired = self.session_whose_keys_expire();
        self.subject.server.refuse();
        let refused = self.subject.refused;
        self.fails_within(TIMEOUT, refused);
        self.check_is_bad(refused);
        // It takes effect when the time is over, the grace notwithstanding.
        thread::sleep(EXPIRED);
        self.fails(&mut expired, refused);
        self.subject.server.allow();
        assert_eq!(self.connect().text(READ), "1first 2second");
    }

    fn the_server_goes_away(&mut self) {
        let mut expired = self.session_whose_keys_expire();
        self.subject.server.go_away();
        let gone = self.subject.gone;
        self.fails_within(TIMEOUT, gone);
        self.check_is_bad(gone);
        thread::sleep(EXPIRED);
        assert_eq!(expired.text(READ), "1first 2second");
        let past_time = "past its time to live";
        assert!(self.cluster.log().contains(past_time), "{}", self.cluster.log());
        // What the extension does without keys goes on.
        expired.run("SELECT enc_key_version(v) FROM t; SELECT * FROM enc_key_versions");
    }

    fn no_secret_was_told(&self, keys: &[DataKey]) {
        use base64::Engine;
        use base64::engine::general_purpose::{STANDARD, URL_SAFE};

        let log = self.cluster.log();
        assert!(!log.contains("was terminated by signal"), "a backend crashed");
        let mut secrets = self.subject.secrets.clone();
        for key in keys {
            secrets.push(hex(&key.expose()[..8]));
            secrets.push(hex(&key.expose()[..8]).to_uppercase());
            // Whole groups of three bytes.
            secrets.push(STANDARD.encode(&key.expose()[..9]));
            secrets.push(URL_SAFE.encode(&key.expose()[..9]));
        }
        for secret in &secrets {
            assert!(secret.len() >= 3, "{secret:?} could be anywhere");
            for (what, text) in [("log", &log), ("an error", &self.told)] {
                assert!(!text.contains(secret), "{what} has the secret {secret}");
            }
        }
    }

    pub(crate) fn connect(&self) -> Client {
        self.cluster.connect(SUPERUSER, DATABASE)
    }

    fn session_whose_keys_expire(&self) -> Client {
        let mut session = self.connect();
        session.run(TIME_TO_LIVE);
        assert_eq!(session.text(READ), "1first 2second");
        session
    }

    /// A new session's reading fails.
    #[track_caller]
    fn fails_within(&mut self, limit: Duration, sqlstate: &str) {
        let mut session = self.connect();
        let (took, ()) = timed(|| self.fails(&mut session, sqlstate));
        assert!(took < limit + SLACK, "{took:?}");
    }

    #[track_caller]
    pub(crate) fn fails(&mut self, session: &mut Client, sqlstate: &str) {
        let text = texts_of(&session.fails(READ, sqlstate));
        let provider = format!("provider \"{}\"", self.subject.kind.name());
        assert!(text.contains(&provider), "{text}");
        self.told.push_str(&text);
    }

    /// The check finds all well, these things among what it looked at.
    #[track_caller]
    fn check_is_good(&mut self, things: &[&str]) {
        let report = self.check();
        for (what, ok, detail, hint) in &report {
            assert!(ok, "{what}: {detail} {hint}");
        }
        for thing in things {
            assert!(report.iter().any(|(what, ..)| what == thing), "{thing}: {report:?}");
        }
    }

    /// The check says in words what is wrong, and what to do.
    #[track_caller]
    fn check_is_bad(&mut self, sqlstate: &str) {
        let report = self.check();
        let wrong: Vec<_> = report.iter().filter(|(_, ok, ..)| !ok).collect();
        assert!(!wrong.is_empty(), "{sqlstate}: {report:?}");
        for (what, _, detail, hint) in wrong {
            assert!(!detail.is_empty() && !hint.is_empty(), "{what}");
        }
    }

    fn check(&mut self) -> Vec<(String, bool, String, String)> {
        let sql = "SELECT what, ok, detail, coalesce(hint, '') FROM enc_check_provider()";
        let rows = self.connect().query(sql, &[]).unwrap();
        let rows = rows.iter().map(|row| (row.get(0), row.get(1), row.get(2), row.get(3)));
        let rows: Vec<(String, bool, String, String)> = rows.collect();
        for (what, _, detail, hint) in &rows {
            self.told.push_str(&format!("{what}\n{detail}\n{hint}\n"));
        }
        rows
    }

    /// Changes a setting of the provider's, and waits until new sessions have it.
    fn configure(&mut self, name: &'static str, value: &str) {
        let setting = setting(self.subject.kind, name);
        self.cluster.configure(&setting, value);
        self.cluster.reload();
        let mut session = self.connect();
        session.run("LOAD 'encryption_ext'");
        while session.text(&format!("SHOW {setting}")) != value {
            thread::sleep(Duration::from_millis(5));
        }
        self.subject.settings.insert(name, value.to_owned());
    }
}

/// The name in `postgresql.conf` of what the provider file calls `name`.
fn setting(kind: ProviderKind, name: &str) -> String {
    match kind {
        ProviderKind::Command => "encryption_ext.command".to_owned(),
        ProviderKind::VaultTransit if name != "key" => format!("encryption_ext.vault_{name}"),
        kind => format!("encryption_ext.{}_{name}", kind.name()),
    }
}

fn timed<T>(work: impl FnOnce() -> T) -> (Duration, T) {
    let started = Instant::now();
    let result = work();
    (started.elapsed(), result)
}
