//! What the tests on real clusters share: clusters with the extension, statements that are expected
//! to fail, and values and keys as bytes.

#![expect(
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test learns by a panic what it expected in vain"
)]

pub mod key_server;
pub mod places;
pub mod process_memory;
pub mod replication;
pub mod secrets;

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Barrier;
use std::thread;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::BytesMut;
use envelope::{
    DataKey, Header, KeyCipher, KeyName, KeyVersion, NonceSource, OVERHEAD, PlaintextKind,
};
use harness::cluster::{Builder, Cluster, SUPERUSER};
use postgres::error::DbError;
use postgres::types::{FromSql, IsNull, ToSql, Type, to_sql_checked};
use postgres::{Client, SimpleQueryMessage};

/// The major version of PostgreSQL that these tests run on, unless they ask for others.
pub const MAJOR: u16 = 15;

/// The database in which [`start`] makes the extension.
pub const DATABASE: &str = "postgres";

/// Casts between an encrypted type and the bytes that are stored. Only a superuser can make them;
/// they are how tests look at ciphertext and plant it.
pub const RAW_CASTS: &str = "
    CREATE CAST (encrypted_text AS bytea) WITHOUT FUNCTION;
    CREATE CAST (bytea AS encrypted_text) WITHOUT FUNCTION;
    CREATE CAST (encrypted_bytea AS encrypted_text) WITHOUT FUNCTION;
    CREATE CAST (encrypted_text AS encrypted_bytea) WITHOUT FUNCTION;";

/// Takes [`RAW_CASTS`] away, which a dump would have.
pub const NO_RAW_CASTS: &str = "
    DROP CAST (encrypted_text AS bytea);
    DROP CAST (bytea AS encrypted_text);
    DROP CAST (encrypted_bytea AS encrypted_text);
    DROP CAST (encrypted_text AS encrypted_bytea);";

/// Begins to describe a cluster whose keys come from a file; `None`, which is then recorded, where
/// PostgreSQL can't be had.
#[must_use]
pub fn builder(test: &str) -> Option<Builder> {
    builder_on(MAJOR, test)
}

/// As [`builder`], with another major version of PostgreSQL.
#[must_use]
pub fn builder_on(major: u16, test: &str) -> Option<Builder> {
    match Cluster::missing(major) {
        None => {
            let builder = Cluster::builder(major).setting("encryption_ext.provider", "file");
            // The same tests, with keys that sessions share.
            let preloads = std::env::var_os("ENCRYPTION_EXT_PRELOAD").is_some();
            Some(match preloads {
                true => builder.setting("shared_preload_libraries", "encryption_ext"),
                false => builder,
            })
        }
        Some(why) => {
            harness::skip(test, &why);
            None
        }
    }
}

/// A started cluster as [`builder`] describes it, with the extension and without a key.
#[must_use]
pub fn start(test: &str) -> Option<Cluster> {
    let cluster = builder(test)?.start();
    create_extension(&cluster, DATABASE);
    Some(cluster)
}

/// As [`start`], with another major version of PostgreSQL. `None`, which is then recorded, also
/// where the extension isn't installed in it, or not as it is now: `make install-for-tests` installs
/// for one version only.
#[must_use]
pub fn start_on(major: u16, test: &str) -> Option<Cluster> {
    start_with(builder_on(major, test)?, test)
}

/// As [`start_on`], a cluster that is described.
#[must_use]
pub fn start_with(builder: Builder, test: &str) -> Option<Cluster> {
    let cluster = builder.start();
    let installed = connect(&cluster).texts(
        "SELECT pg_read_file(setting || '/extension/encryption_ext--0.1.0.sql', 0, 10000000, true)
           FROM pg_config() WHERE name = 'SHAREDIR'",
    );
    let current = include_str!("../../sql/encryption_ext--0.1.0.sql");
    if installed != [Some(current.to_owned())] {
        let version = connect(&cluster).text("SHOW server_version");
        harness::skip(
            test,
            &format!("this extension isn't installed in PostgreSQL {version}: make install"),
        );
        return None;
    }
    create_extension(&cluster, DATABASE);
    Some(cluster)
}

/// Makes the extension in a database, and the casts between an encrypted type and what is stored:
/// `email::bytea`, `payload::encrypted_text::bytea`.
pub fn create_extension(cluster: &Cluster, database: &str) {
    let mut session = cluster.connect(SUPERUSER, database);
    session.run("CREATE EXTENSION encryption_ext");
    session.run(RAW_CASTS);
}

/// A superuser's session in [`DATABASE`].
#[must_use]
pub fn connect(cluster: &Cluster) -> Client {
    cluster.connect(SUPERUSER, DATABASE)
}

/// A session, and what tests ask of it.
pub trait Session {
    /// Executes statements that must succeed.
    fn run(&mut self, sql: &str);

    /// The first column of the only row.
    fn value<T: for<'a> FromSql<'a>>(&mut self, sql: &str) -> T;

    /// The first column of every row in text form, as psql gets it.
    fn texts(&mut self, sql: &str) -> Vec<Option<String>>;

    /// The first column of the only row in text form.
    fn text(&mut self, sql: &str) -> String;

    /// Executes statements, the last of which must fail with this SQLSTATE, and with a hint if the
    /// SQLSTATE is of the extension's own class.
    fn fails(&mut self, sql: &str, sqlstate: &str) -> DbError;
}

impl Session for Client {
    #[track_caller]
    fn run(&mut self, sql: &str) {
        if let Err(error) = self.batch_execute(sql) {
            panic!("{sql}: {error:?}");
        }
    }

    #[track_caller]
    fn value<T: for<'a> FromSql<'a>>(&mut self, sql: &str) -> T {
        match self.query_one(sql, &[]) {
            Ok(row) => row.get(0),
            Err(error) => panic!("{sql}: {error:?}"),
        }
    }

    #[track_caller]
    fn texts(&mut self, sql: &str) -> Vec<Option<String>> {
        let messages = match self.simple_query(sql) {
            Ok(messages) => messages,
            Err(error) => panic!("{sql}: {error:?}"),
        };
        let rows = messages.into_iter().filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => Some(row.get(0).map(str::to_owned)),
            _ => None,
        });
        rows.collect()
    }

    #[track_caller]
    fn text(&mut self, sql: &str) -> String {
        match self.texts(sql).as_mut_slice() {
            [Some(text)] => std::mem::take(text),
            rows => panic!("{sql}: {} rows, or a null", rows.len()),
        }
    }

    #[track_caller]
    fn fails(&mut self, sql: &str, sqlstate: &str) -> DbError {
        match self.simple_query(sql) {
            Ok(_) => panic!("{sql}: succeeded instead of failing with {sqlstate}"),
            Err(error) => expect_error(&error, sqlstate),
        }
    }
}

/// The server's error, which must have this SQLSTATE, and a hint if it is of the extension's class.
#[track_caller]
#[must_use]
pub fn expect_error(error: &postgres::Error, sqlstate: &str) -> DbError {
    let Some(error) = error.as_db_error() else {
        panic!("{error:?} does not come from the server")
    };
    assert_eq!(error.code().code(), sqlstate, "{error:?}");
    if sqlstate.starts_with("KE") {
        // A sentence, or one that ends with a command to be copied.
        let hint = error.hint().unwrap_or_default();
        assert!(hint.ends_with('.') || hint.contains(": vault kv "), "{error:?}");
    }
    error.clone()
}

/// All texts of an error, to be searched for what must or must not be said.
#[must_use]
pub fn texts_of(error: &DbError) -> String {
    let parts =
        [Some(error.message()), error.detail(), error.hint(), error.where_(), error.table()];
    parts.into_iter().flatten().collect::<Vec<_>>().join("\n")
}

/// A value of any type in binary form: the bytes that `send` gives and `recv` takes.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Binary(pub Vec<u8>);

impl<'a> FromSql<'a> for Binary {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn Error + Sync + Send>> {
        Ok(Self(raw.to_vec()))
    }

    fn accepts(_: &Type) -> bool {
        true
    }
}

impl ToSql for Binary {
    fn to_sql(&self, _: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn Error + Sync + Send>> {
        out.extend_from_slice(&self.0);
        Ok(IsNull::No)
    }

    fn accepts(_: &Type) -> bool {
        true
    }

    to_sql_checked!();
}

/// The header of a stored value.
#[track_caller]
#[must_use]
pub fn header(stored: &[u8]) -> Header {
    match Header::parse(stored) {
        Ok(header) => header,
        Err(error) => panic!("{error}"),
    }
}

/// The keyring file of a cluster that has not been told another place.
#[must_use]
pub fn keyring_file(cluster: &Cluster) -> PathBuf {
    cluster.data_directory().join("encryption_ext_keyring.json")
}

/// Has a cluster use the keyring file of another, from its next session on.
///
/// # Panics
///
/// If it doesn't run.
pub fn share_keys(cluster: &Cluster, original: &Cluster) {
    let keyring = keyring_file(original);
    cluster.configure("encryption_ext.keyring_file", keyring.to_str().expect("a path in UTF-8"));
    cluster.configure("encryption_ext.provider", "file");
    cluster.reload();
    // The postmaster reads the configuration in its own time.
    const PROVIDER: &str = "SELECT coalesce(current_setting('encryption_ext.provider', true), '')";
    while connect(cluster).text(PROVIDER) != "file" {
        thread::sleep(std::time::Duration::from_millis(5));
    }
}

/// A version's bytes, from the keyring file.
///
/// # Panics
///
/// If they aren't there.
#[must_use]
pub fn data_key(cluster: &Cluster, name: &str, version: u32) -> [u8; 32] {
    let keyring = fs::read(keyring_file(cluster)).expect("the keyring file exists");
    let keyring: serde_json::Value = serde_json::from_slice(&keyring).expect("it is JSON");
    let key = keyring["keys"][name][version.to_string()].as_str().expect("it has the version");
    let key = STANDARD.decode(key).expect("a key is in base64");
    key.try_into().expect("a key has 32 bytes")
}

/// Seals a plaintext as the extension does, under a name and a version that it may not have.
///
/// # Panics
///
/// If name or version are none, or there are no random bytes.
#[must_use]
pub fn seal(
    key: [u8; 32],
    name: &str,
    version: u32,
    kind: PlaintextKind,
    plaintext: &[u8],
) -> Vec<u8> {
    let name = KeyName::parse(name).expect("a test's key name is valid");
    let nonce = NonceSource::new()
        .next(std::process::id(), plaintext.len())
        .expect("the operating system has random bytes");
    let cipher = KeyCipher::new(&DataKey::new(key)).derive(nonce.salt());
    let key_version = KeyVersion::new(version).expect("a test's version is valid");
    let header = Header { kind, key_id: name.id(), key_version, nonce };
    let mut value = vec![0; plaintext.len() + OVERHEAD];
    cipher.seal(header, &name, plaintext, &mut value).expect("a test's plaintext is short");
    value
}

/// Bytes as an SQL literal of type `bytea`.
#[must_use]
pub fn bytea(bytes: &[u8]) -> String {
    format!("'\\x{}'::bytea", hex(bytes))
}

/// Bytes in base16.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Every file below a folder, sockets left out.
///
/// # Panics
///
/// If the folder can't be read.
#[must_use]
pub fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap().flatten() {
        match entry.file_type().unwrap() {
            kind if kind.is_dir() => found.extend(files(&entry.path())),
            kind if kind.is_file() => found.push(entry.path()),
            _ => {}
        }
    }
    found
}

/// Whether `needle` occurs in `haystack`.
#[must_use]
pub fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    contains_any(haystack, &[needle.to_vec()])
}

/// Whether any of the needles occurs in `haystack`.
#[must_use]
pub fn contains_any(haystack: &[u8], needles: &[Vec<u8>]) -> bool {
    !find_all(haystack, needles).is_empty()
}

/// Where any of the needles, of at least two bytes each, begins in `haystack`. One pass, however
/// many there are: it looks closer only where two bytes are a needle's first.
#[must_use]
pub fn find_all(haystack: &[u8], needles: &[Vec<u8>]) -> Vec<usize> {
    let mut begins = vec![false; 1 << 16];
    for needle in needles {
        begins[usize::from(u16::from_be_bytes([needle[0], needle[1]]))] = true;
    }
    let mut found = Vec::new();
    let mut pair = 0;
    for (at, &byte) in haystack.iter().enumerate() {
        pair = (pair << 8 | usize::from(byte)) & 0xffff;
        if begins[pair] && at > 0 {
            let here = &haystack[at - 1..];
            if needles.iter().any(|needle| here.starts_with(needle)) {
                found.push(at - 1);
            }
        }
    }
    found
}

/// How many sessions [`at_once`] has.
pub const AT_ONCE: usize = 8;

/// What each of some sessions that begin at the same time gets from its statement, which returns an
/// `integer`: that, or an SQLSTATE.
///
/// # Panics
///
/// If an error has no hint.
pub fn at_once(
    cluster: &Cluster,
    sql: &(dyn Fn(usize) -> String + Sync),
) -> Vec<Result<i32, String>> {
    let begin = Barrier::new(AT_ONCE);
    let run = &|n| {
        let mut session = connect(cluster);
        begin.wait();
        let row = session.query_one(&sql(n), &[]);
        row.map(|row| row.get(0)).map_err(|error| {
            let error = error.as_db_error().expect("the server raised it");
            assert!(error.hint().is_some(), "{error:?}");
            error.code().code().to_owned()
        })
    };
    thread::scope(|scope| {
        let sessions: Vec<_> = (0..AT_ONCE).map(|n| scope.spawn(move || run(n))).collect();
        sessions
            .into_iter()
            .map(|session| session.join().expect("the session's thread ends"))
            .collect()
    })
}
