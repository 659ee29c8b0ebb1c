//! What is done to keys, grants and roles is seen by other open sessions at their next statement.

#![expect(clippy::unwrap_used, reason = "a test fails by a panic")]

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::{MetadataExt, chown};
use std::thread;

use cluster_tests::replication::{catch_up, replace_by_base_backup, wait_for};
use cluster_tests::{
    AT_ONCE, Binary, DATABASE, MAJOR, Session, at_once, connect, expect_error, header, start,
};
use harness::cluster::{Cluster, SUPERUSER};
use postgres::{Client, Statement};

/// Sessions in the states that PostgreSQL treats differently, each of which has used the table and
/// the key before.
struct Sessions {
    autocommit: Client,
    read_committed: Client,
    repeatable_read: Client,
    prepared: Client,
    insert: Statement,
    select: Statement,
}

impl Sessions {
    fn open(cluster: &Cluster, user: &str) -> Self {
        let connect = |begin: &str| {
            let mut session = cluster.connect(user, DATABASE);
            session.run(begin);
            session.run("INSERT INTO t (v) VALUES ('before')");
            session.run("SELECT v FROM t");
            session
        };
        let mut prepared = connect("SET plan_cache_mode = force_generic_plan");
        let insert =
            prepared.prepare("INSERT INTO t (v) VALUES ($1) RETURNING enc_key_version(v)").unwrap();
        let select = prepared.prepare("SELECT v::text FROM t WHERE id = 1").unwrap();
        let mut sessions = Self {
            autocommit: connect(""),
            read_committed: connect("BEGIN"),
            repeatable_read: connect("BEGIN ISOLATION LEVEL REPEATABLE READ"),
            prepared,
            insert,
            select,
        };
        // Once before what is to be seen, so that the plans exist.
        assert_eq!(sessions.read_all(), ["first"; 4]);
        sessions.versions_written();
        sessions
    }

    /// The version under which each session writes.
    fn versions_written(&mut self) -> [i32; 4] {
        const INSERT: &str = "INSERT INTO t (v) VALUES ('written') RETURNING enc_key_version(v)";
        let value = Binary(b"written".to_vec());
        [
            self.autocommit.value(INSERT),
            self.read_committed.value(INSERT),
            self.repeatable_read.value(INSERT),
            self.prepared.query_one(&self.insert, &[&value]).unwrap().get(0),
        ]
    }

    /// The plaintext of the first row, as each session reads it.
    fn read_all(&mut self) -> [String; 4] {
        const SELECT: &str = "SELECT v FROM t WHERE id = 1";
        [
            self.autocommit.text(SELECT),
            self.read_committed.text(SELECT),
            self.repeatable_read.text(SELECT),
            self.prepared.query_one(&self.select, &[]).unwrap().get(0),
        ]
    }

    /// Each session reads the first row, which must fail; the blocks go on from a savepoint.
    #[track_caller]
    fn reading_fails(&mut self, sqlstate: &str) {
        const SELECT: &str = "SELECT v FROM t WHERE id = 1";
        self.autocommit.fails(SELECT, sqlstate);
        for block in [&mut self.read_committed, &mut self.repeatable_read] {
            block.run("SAVEPOINT s");
            block.fails(SELECT, sqlstate);
            block.run("ROLLBACK TO s");
        }
        let error = self.prepared.query_one(&self.select, &[]).unwrap_err();
        let _ = expect_error(&error, sqlstate);
    }
}

/// A cluster with a key `k` and a table whose first row is `first`.
fn cluster(test: &str) -> Option<Cluster> {
    let cluster = start(test)?;
    connect(&cluster).run(
        "SELECT enc_create_key('k');
         CREATE TABLE t (id bigint GENERATED ALWAYS AS IDENTITY, v encrypted_text('k'));
         INSERT INTO t (v) VALUES ('first')",
    );
    Some(cluster)
}

#[test]
fn rotation_and_version_states_are_seen_at_once() {
    let Some(cluster) = cluster("rotation_and_version_states_are_seen_at_once") else { return };
    let mut admin = connect(&cluster);
    let mut sessions = Sessions::open(&cluster, SUPERUSER);
    assert_eq!(sessions.versions_written(), [1; 4]);

    assert_eq!(admin.value::<i32>("SELECT enc_rotate_key('k')"), 2);
    assert_eq!(sessions.versions_written(), [2; 4]);
    assert_eq!(sessions.read_all(), ["first"; 4]);

    // A version that is made and not activated changes nothing, until it is.
    assert_eq!(admin.value::<i32>("SELECT enc_rotate_key('k', activate => false)"), 3);
    assert_eq!(sessions.versions_written(), [2; 4]);
    admin.run("SELECT enc_activate_key_version('k', 3)");
    assert_eq!(sessions.versions_written(), [3; 4]);
    admin.run("SELECT enc_activate_key_version('k', 1)");
    assert_eq!(sessions.versions_written(), [1; 4]);
    admin.run("SELECT enc_activate_key_version('k', 2)");

    admin.fails("SELECT enc_disable_key_version('k', 2)", "KE011");
    admin.run("SELECT enc_disable_key_version('k', 1)");
    sessions.reading_fails("KE008");
    admin.fails("SELECT enc_activate_key_version('k', 1)", "KE008");
    assert_eq!(sessions.versions_written(), [2; 4]);
    admin.run("SELECT enc_enable_key_version('k', 1)");
    assert_eq!(sessions.read_all(), ["first"; 4]);

    admin.run("SELECT enc_disable_key_version('k', 2, force => true)");
    sessions.autocommit.fails("INSERT INTO t (v) VALUES ('x')", "KE010");
    sessions.read_committed.fails("INSERT INTO t (v) VALUES ('x')", "KE010");
    sessions.repeatable_read.fails("INSERT INTO t (v) VALUES ('x')", "KE010");
    admin.run("SELECT enc_enable_key_version('k', 2), enc_activate_key_version('k', 2)");
    assert_eq!(
        sessions
            .autocommit
            .value::<i32>("INSERT INTO t (v) VALUES ('x') RETURNING enc_key_version(v)"),
        2
    );
}

#[test]
fn grants_and_revocations_are_seen_at_once() {
    let Some(cluster) = cluster("grants_and_revocations_are_seen_at_once") else { return };
    let mut admin = connect(&cluster);
    admin.run("CREATE ROLE alice LOGIN; GRANT ALL ON t TO alice");
    let mut alice = cluster.connect("alice", DATABASE);
    alice.fails("SELECT v FROM t", "KE020");
    alice.fails("INSERT INTO t (v) VALUES ('x')", "KE020");

    admin.run("SELECT enc_grant('k', 'alice', 'encrypt, decrypt')");
    let mut sessions = Sessions::open(&cluster, "alice");
    assert_eq!(sessions.read_all(), ["first"; 4]);
    admin.run("SELECT enc_revoke('k', 'alice', 'decrypt')");
    sessions.reading_fails("KE020");
    assert_eq!(sessions.versions_written(), [1; 4]);
    admin.run("SELECT enc_grant('k', 'alice', 'decrypt')");
    assert_eq!(sessions.read_all(), ["first"; 4]);
    admin.run("SELECT enc_revoke('k', 'alice')");
    sessions.reading_fails("KE020");

    // An uncommitted grant or revocation is nobody else's business.
    admin.run("BEGIN; SELECT enc_grant('k', 'alice', 'decrypt')");
    sessions.reading_fails("KE020");
    admin.run("ROLLBACK");
    sessions.reading_fails("KE020");
    admin.run("SELECT enc_grant('k', 'public', 'decrypt')");
    assert_eq!(sessions.read_all(), ["first"; 4]);
    admin.run("SELECT enc_revoke('k', 'public')");
    sessions.reading_fails("KE020");

    // A superuser's rights come and go with the attribute.
    admin.run("ALTER ROLE alice SUPERUSER");
    assert_eq!(sessions.read_all(), ["first"; 4]);
    admin.run("ALTER ROLE alice NOSUPERUSER");
    sessions.reading_fails("KE020");

    admin.fails("SELECT enc_grant('k', 'alice', 'read')", "KE022");
    admin.fails("SELECT enc_grant('k', 'nobody', 'decrypt')", "42704");
    alice.fails("SELECT enc_grant('k', 'alice', 'decrypt')", "KE021");
    alice.fails("SELECT enc_rotate_key('k')", "KE021");
    alice.fails("SELECT enc_disable_key_version('k', 1, true)", "KE021");
    alice.fails("SELECT enc_create_key('mine')", "42501");
}

#[test]
fn each_privilege_allows_what_it_says() {
    let Some(cluster) = cluster("each_privilege_allows_what_it_says") else { return };
    let mut admin = connect(&cluster);
    admin.run(
        "CREATE ROLE writer LOGIN; CREATE ROLE matcher LOGIN; CREATE ROLE reader LOGIN;
         GRANT ALL ON t TO writer, matcher, reader;
         SELECT enc_grant('k', 'writer', 'encrypt');
         SELECT enc_grant('k', 'matcher', 'compare');
         SELECT enc_grant('k', 'reader', 'decrypt')",
    );
    const OUTPUT: &str = "SELECT v FROM t WHERE id = 1";
    const CAST: &str = "SELECT length(v) FROM t WHERE id = 1";
    const ORDER: &str = "SELECT v < v FROM t WHERE id = 1";
    const SORT: &str = "SELECT count(*) FROM (SELECT v FROM t ORDER BY v) AS sorted";
    const EQUAL: &str = "SELECT v = v FROM t WHERE id = 1";
    const ROTATE: &str = "SELECT enc_key_version(enc_rotate(v)) FROM t WHERE id = 1";
    const WRITE: &str = "INSERT INTO t (v) VALUES ('second')";
    const HEADER: &str = "SELECT enc_key_version(v) || enc_key_name(v) FROM t WHERE id = 1";
    admin.run("INSERT INTO t (v) VALUES ('sorts'); SELECT enc_rotate_key('k')");

    let cases: [(&str, &[&str], &[&str]); 3] = [
        ("writer", &[WRITE, HEADER], &[OUTPUT, CAST, ORDER, SORT, EQUAL, ROTATE]),
        ("matcher", &[EQUAL, HEADER], &[OUTPUT, CAST, ORDER, SORT, ROTATE, WRITE]),
        ("reader", &[OUTPUT, CAST, ORDER, SORT, EQUAL, HEADER], &[ROTATE, WRITE]),
    ];
    for (user, allowed, refused) in cases {
        let mut session = cluster.connect(user, DATABASE);
        for sql in allowed {
            session.run(sql);
        }
        for sql in refused {
            let error = session.fails(sql, "KE020");
            assert!(error.message().contains("\"k\""), "{error:?}");
        }
    }
}

#[test]
fn privileges_follow_the_current_user() {
    let Some(cluster) = cluster("privileges_follow_the_current_user") else { return };
    let mut admin = connect(&cluster);
    admin.run(
        "CREATE ROLE staff; CREATE ROLE bob LOGIN; CREATE ROLE owner LOGIN;
         GRANT ALL ON t TO staff, bob, owner; GRANT CREATE ON SCHEMA public TO owner;
         SELECT enc_grant('k', 'staff', 'decrypt'); SELECT enc_grant('k', 'owner', 'decrypt')",
    );
    const READ: &str = "SELECT v FROM t WHERE id = 1";
    let mut bob = cluster.connect("bob", DATABASE);
    bob.run("BEGIN; SAVEPOINT s");
    bob.fails(READ, "KE020");
    bob.run("ROLLBACK TO s");

    // Membership, given and taken while the session is open.
    admin.run("GRANT staff TO bob");
    assert_eq!(bob.text(READ), "first");
    admin.run("REVOKE staff FROM bob");
    bob.fails(READ, "KE020");
    bob.run("ROLLBACK");

    // A role that doesn't inherit has its membership's privileges after SET ROLE.
    admin.run("ALTER ROLE bob NOINHERIT; GRANT staff TO bob");
    bob.fails(READ, "KE020");
    bob.run("SET ROLE staff");
    assert_eq!(bob.text(READ), "first");
    bob.run("RESET ROLE");
    bob.fails(READ, "KE020");
    admin.run("REVOKE staff FROM bob; ALTER ROLE bob INHERIT");

    // And a superuser who becomes bob has his.
    admin.run("SET ROLE bob");
    admin.fails(READ, "KE020");
    admin.run("RESET ROLE");
    assert_eq!(admin.text(READ), "first");

    // Inside a SECURITY DEFINER function its owner counts; after it the caller again. In a view,
    // whoever asks counts, whatever the rights on the table.
    cluster.connect("owner", DATABASE).run(
        "CREATE FUNCTION definer() RETURNS text LANGUAGE sql SECURITY DEFINER
             AS 'SELECT v::text FROM public.t WHERE id = 1';
         CREATE FUNCTION invoker() RETURNS text LANGUAGE sql
             AS 'SELECT v::text FROM public.t WHERE id = 1';
         CREATE VIEW by_owner AS SELECT v FROM t WHERE id = 1;
         CREATE VIEW by_invoker WITH (security_invoker) AS SELECT v FROM t WHERE id = 1;
         GRANT SELECT ON by_owner, by_invoker TO bob",
    );
    assert_eq!(bob.text("SELECT definer()"), "first");
    for sql in ["SELECT invoker()", "SELECT v FROM by_owner", "SELECT v FROM by_invoker", READ] {
        bob.fails(sql, "KE020");
    }
    bob.fails("SELECT definer(), invoker()", "KE020");
    admin.run("SELECT enc_revoke('k', 'owner')");
    bob.fails("SELECT definer()", "KE020");

    // Whoever was given enc_create_key owns the keys that he makes, and his members do.
    admin.run("GRANT EXECUTE ON FUNCTION enc_create_key TO bob");
    bob.run("SELECT enc_create_key('of_bob'); CREATE TEMP TABLE mine (v encrypted_text('of_bob'))");
    bob.run("INSERT INTO mine VALUES ('x'); SELECT v FROM mine; SELECT enc_rotate_key('of_bob')");
    let mut owner = cluster.connect("owner", DATABASE);
    owner.fails("SELECT enc_rotate_key('of_bob')", "KE021");
    admin.run("GRANT bob TO owner");
    assert_eq!(owner.value::<i32>("SELECT enc_rotate_key('of_bob')"), 3);
}

#[test]
fn an_uncommitted_rotation_is_invisible_and_can_be_undone() {
    let Some(cluster) = cluster("an_uncommitted_rotation_is_invisible_and_can_be_undone") else {
        return;
    };
    const INSERT: &str = "INSERT INTO t (v) VALUES ('x') RETURNING enc_key_version(v)";
    let (mut one, mut other) = (connect(&cluster), connect(&cluster));
    one.run(INSERT);
    other.run(INSERT);

    one.run("BEGIN; SELECT enc_rotate_key('k')");
    assert_eq!(one.value::<i32>(INSERT), 2);
    assert_eq!(other.value::<i32>(INSERT), 1);
    one.run("ROLLBACK");
    assert_eq!(one.value::<i32>(INSERT), 1);

    one.run("BEGIN; SAVEPOINT s; SELECT enc_rotate_key('k')");
    assert_eq!(one.value::<i32>(INSERT), 2);
    one.run("ROLLBACK TO s");
    assert_eq!(one.value::<i32>(INSERT), 1);
    one.run("COMMIT");
    assert_eq!((one.value::<i32>(INSERT), other.value::<i32>(INSERT)), (1, 1));

    // What the rollbacks left at the provider is found, and nothing that was stored is lost.
    one.run("SELECT enc_rotate_key('k')");
    let version: i32 = one.value("SELECT active_version FROM enc_keys WHERE name = 'k'");
    assert_eq!((one.value::<i32>(INSERT), other.value::<i32>(INSERT)), (version, version));
    let rows: i64 = one.value("SELECT count(v::text) FROM t");
    assert_eq!(other.value::<i64>("SELECT count(v::text) FROM t"), rows);
}

/// What is seen belongs to the statement, and not to the snapshot or the plan: an open cursor
/// fetches no more than its user may decrypt now, and a rotation isn't based on what was before.
#[test]
fn cursors_and_old_snapshots_see_the_present() {
    let Some(cluster) = cluster("cursors_and_old_snapshots_see_the_present") else { return };
    let mut admin = connect(&cluster);
    admin.run(
        "INSERT INTO t (v) SELECT n::text FROM generate_series(2, 1000) AS n;
         CREATE ROLE alice LOGIN; GRANT SELECT ON t TO alice;
         SELECT enc_grant('k', 'alice', 'decrypt')",
    );
    let mut alice = cluster.connect("alice", DATABASE);
    alice.run("BEGIN; DECLARE c CURSOR FOR SELECT v FROM t ORDER BY id");
    assert_eq!(alice.text("FETCH c"), "first");
    admin.run("SELECT enc_revoke('k', 'alice')");
    alice.fails("FETCH c", "KE020");
    alice.run("ROLLBACK");

    // The catalog is as the other session has left it, whatever this snapshot shows.
    let mut old = connect(&cluster);
    old.run("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT v FROM t");
    assert_eq!(admin.value::<i32>("SELECT enc_rotate_key('k')"), 2);
    let error = old.simple_query("SELECT enc_rotate_key('k')").err();
    let code = error.map(|error| error.as_db_error().unwrap().code().code().to_owned());
    match code.as_deref() {
        // Either it adds a version to the two that there are, or it says that it can't.
        None => old.run("COMMIT"),
        Some("KE014" | "40001") => old.run("ROLLBACK"),
        Some(code) => assert!(code.is_empty(), "{code}"),
    }
    let summary = "SELECT count(*) FILTER (WHERE state = 'active') || ' ' || (max(version) =
                   max(version) FILTER (WHERE state = 'active')) FROM enc_key_versions
                   WHERE name = 'k'";
    assert_eq!(admin.text(summary), "1 true");
    admin.run("INSERT INTO t (v) VALUES ('last')");
    assert_eq!(connect(&cluster).value::<i64>("SELECT count(v::text) FROM t"), 1001);
}

/// A version of a rolled-back rotation must not stay in the cache of the session that made it: the
/// next version of that number may be another key.
#[test]
fn a_version_that_was_rolled_back_is_forgotten() {
    let Some(cluster) = cluster("a_version_that_was_rolled_back_is_forgotten") else { return };
    const INSERT: &str = "INSERT INTO t (v) VALUES ('x') RETURNING enc_key_version(v)";
    let keyring = cluster_tests::keyring_file(&cluster);
    let before = fs::read(&keyring).unwrap();
    let (mut one, mut other) = (connect(&cluster), connect(&cluster));
    one.run("BEGIN; SELECT enc_rotate_key('k')");
    assert_eq!(one.value::<i32>(INSERT), 2);
    one.run("ROLLBACK");

    // The keyring as it was, such as from a backup: the second version is made anew.
    fs::write(&keyring, before).unwrap();
    assert_eq!(other.value::<i32>("SELECT enc_rotate_key('k')"), 2);
    assert_eq!(one.value::<i32>(INSERT), 2);
    other.run("SELECT v FROM t");
    assert_eq!(other.value::<i32>(INSERT), 2);
    one.run("SELECT v FROM t");
}

/// With `if_not_exists`, that the key is there is a success, whoever made it.
#[test]
fn a_key_that_many_sessions_make_if_it_does_not_exist_is_no_error() {
    let test = "a_key_that_many_sessions_make_if_it_does_not_exist_is_no_error";
    let Some(cluster) = start(test) else { return };
    for n in 0..3 {
        let made = at_once(&cluster, &|_| format!("SELECT enc_create_key('key_{n}', true)"));
        assert_eq!(made, vec![Ok(1); AT_ONCE]);
    }
}

#[test]
fn keys_made_and_rotated_by_many_sessions_at_once_stay_consistent() {
    let test = "keys_made_and_rotated_by_many_sessions_at_once_stay_consistent";
    let Some(cluster) = start(test) else { return };
    // Different first keys: all are made, and the database key with them, once.
    let made = at_once(&cluster, &|n| format!("SELECT enc_create_key('first_{n}')"));
    assert_eq!(made, vec![Ok(1); AT_ONCE]);
    let mut admin = connect(&cluster);
    assert_eq!(admin.value::<i64>("SELECT count(*) FROM enc_keys"), 1 + AT_ONCE as i64);

    // The same key: one makes it, the others are told.
    let made = at_once(&cluster, &|_| "SELECT enc_create_key('same')".to_owned());
    assert_eq!(made.iter().filter(|made| made.is_ok()).count(), 1, "{made:?}");
    let told = |made: &Result<i32, String>| {
        made.as_ref().is_err_and(|code| code == "KE004" || code == "KE014")
    };
    assert_eq!(made.iter().filter(|made| told(made)).count(), AT_ONCE - 1, "{made:?}");
    // Each rotation succeeds or says that another one was faster; none is lost.
    let mut rotations = 0;
    for _ in 0..3 {
        let rotated = at_once(&cluster, &|_| "SELECT enc_rotate_key('same')".to_owned());
        let numbers: Vec<i32> = rotated.iter().filter_map(|r| r.as_ref().ok().copied()).collect();
        assert!(!numbers.is_empty(), "{rotated:?}");
        let distinct: HashSet<_> = numbers.iter().collect();
        assert_eq!(distinct.len(), numbers.len(), "{rotated:?}");
        let refused = |r: &Result<i32, String>| r.as_ref().is_err_and(|code| code == "KE014");
        assert!(rotated.iter().all(|r| r.is_ok() || refused(r)), "{rotated:?}");
        rotations += numbers.len() as i64;
        for number in numbers {
            let known = format!(
                "SELECT count(*) FROM enc_key_versions WHERE name = 'same' AND version = {number}"
            );
            assert_eq!(admin.value::<i64>(&known), 1, "{rotated:?}");
        }
    }
    let versions: i64 = admin.value("SELECT count(*) FROM enc_key_versions WHERE name = 'same'");
    assert!(versions > rotations, "{versions} versions after {rotations} rotations");
    let active = "SELECT count(*) FILTER (WHERE state = 'active') || ' ' ||
                  (max(version) = max(version) FILTER (WHERE state = 'active'))
                  FROM enc_key_versions WHERE name = 'same'";
    assert_eq!(admin.text(active), "1 true");
    let states = "SELECT string_agg(DISTINCT state, ' ' ORDER BY state)
                  FROM enc_key_versions WHERE name = 'same'";
    assert_eq!(admin.text(states), "active deprecated");

    // Each version can be had: activating one asks the provider for it.
    let numbers =
        admin.texts("SELECT version FROM enc_key_versions WHERE name = 'same' ORDER BY version");
    admin.run("CREATE TABLE t (v encrypted_text('same'))");
    for number in numbers.iter().flatten() {
        admin.run(&format!("SELECT enc_activate_key_version('same', {number})"));
        admin.run("INSERT INTO t VALUES ('x')");
    }
    let written: i64 =
        connect(&cluster).value("SELECT count(DISTINCT enc_key_version(v)) FROM t WHERE v = 'x'");
    assert_eq!(written, versions);
}

/// The tables that keys are read from.
const TABLES: [&str; 4] = ["keyspace", "key", "key_version", "key_grant"];

/// Sessions that are new, or have read keys before, of roles that may see plaintexts, masks, and nothing: what they
/// get of a table whose two values are under two versions.
struct Readers<'a> {
    cluster: &'a Cluster,
    open: Client,
    digests: Vec<Option<String>>,
}

impl<'a> Readers<'a> {
    const READ: &'static str = "SELECT v FROM t ORDER BY id";
    const DIGESTS: &'static str = "SELECT enc_digest(v) FROM t ORDER BY id";

    fn new(cluster: &'a Cluster) -> Self {
        connect(cluster).run(
            "SELECT enc_rotate_key('k'); INSERT INTO t (v) VALUES ('second');
             CREATE ROLE reader LOGIN; CREATE ROLE support LOGIN; CREATE ROLE other LOGIN;
             GRANT SELECT ON t TO reader, support, other;
             SELECT enc_grant('k', 'reader', 'decrypt'), enc_grant('k', 'support', 'mask')",
        );
        let mut open = cluster.connect("reader", DATABASE);
        let digests = open.texts(Self::DIGESTS);
        Self { cluster, open, digests }
    }

    #[track_caller]
    fn get_what_is_theirs(&mut self, mask: &str, change: &str) {
        for session in [&mut self.open, &mut self.cluster.connect("reader", DATABASE)] {
            let values = session.texts(Self::READ);
            assert_eq!(values, ["first", "second"].map(|v| Some(v.to_owned())), "{change}");
            assert_eq!(session.texts(Self::DIGESTS), self.digests, "{change}");
        }
        let masks = self.cluster.connect("support", DATABASE).texts(Self::READ);
        assert_eq!(masks, [mask; 2].map(|v| Some(v.to_owned())), "{change}");
        let _ = self.cluster.connect("other", DATABASE).fails(Self::READ, "KE020");
    }
}

#[test]
fn keys_are_read_however_their_tables_are_stored() {
    let Some(cluster) = cluster("keys_are_read_however_their_tables_are_stored") else { return };
    let mut admin = connect(&cluster);
    let mut readers = Readers::new(&cluster);
    readers.get_what_is_theirs("****", "");

    let folder = cluster.directory().join("elsewhere");
    fs::create_dir(&folder).unwrap();
    if nix::unistd::geteuid().is_root() {
        let owner = fs::metadata(cluster.data_directory()).unwrap();
        chown(&folder, Some(owner.uid()), Some(owner.gid())).unwrap();
    }
    admin.run(&format!("CREATE TABLESPACE elsewhere LOCATION '{}'", folder.display()));
    for change in [
        "VACUUM FULL encryption.{}",
        "ALTER TABLE encryption.{} SET TABLESPACE elsewhere",
        "ALTER TABLE encryption.{} ADD COLUMN added text DEFAULT 'added'",
        "ALTER TABLE encryption.{} SET UNLOGGED",
        "ALTER TABLE encryption.{} SET LOGGED",
    ] {
        for table in TABLES {
            // Proofs, which are logged, refer to versions.
            if table != "key_version" || !change.ends_with("LOGGED") {
                admin.run(&change.replace("{}", table));
            }
        }
        readers.get_what_is_theirs("****", change);
    }

    // A mask that is stored outside of its row, which the labels make long enough for that.
    let mask = admin.text("SELECT string_agg(md5(n::text), '') FROM generate_series(1, 8) n");
    let stored =
        "ALTER TABLE encryption.key ALTER mask SET STORAGE EXTERNAL, ALTER labels SET STORAGE MAIN,
                      SET (toast_tuple_target = 128)";
    admin.run(&format!(
        "{stored};
         UPDATE encryption.key
            SET labels = (SELECT array_agg(left(md5(n::text) || md5((-n)::text), 63)) FROM generate_series(1, 32) n)
          WHERE name = 'k';
         SELECT enc_set_mask('k', '{mask}')"
    ));
    let is_outside = "SELECT pg_relation_size(reltoastrelid) > 0 FROM pg_class
                       WHERE oid = 'encryption.key'::regclass";
    assert!(admin.value::<bool>(is_outside));
    readers.get_what_is_theirs(&mask, stored);

    // What was said before stays in the pages, which are soon more than are read as a whole.
    let pages = "SELECT min(pg_relation_size(oid)) / 8192 FROM pg_class
                  WHERE oid IN ('encryption.key'::regclass, 'encryption.key_version'::regclass,
                                'encryption.key_grant'::regclass)";
    for n in 0..4 {
        admin.run(
            "BEGIN;
             SELECT enc_revoke('k', 'reader'), enc_revoke('k', 'support'), enc_grant('k', 'other', 'decrypt');
             SELECT enc_set_mask('k', 'former'), enc_disable_key_version('k', 1);
             DO $$BEGIN
                 FOR n IN 1..300 LOOP
                     UPDATE encryption.key SET purpose = 'former';
                     UPDATE encryption.key_version SET activated_at = now();
                     UPDATE encryption.key_grant SET granted_at = now();
                 END LOOP;
             END$$",
        );
        readers.get_what_is_theirs(&mask, "what isn't committed");
        admin.run(&format!(
            "SELECT enc_enable_key_version('k', 1), enc_set_mask('k', '{mask}');
             SELECT enc_revoke('k', 'other'), enc_grant('k', 'reader', 'decrypt'), enc_grant('k', 'support', 'mask');
             COMMIT"
        ));
        readers.get_what_is_theirs(&mask, "what is no more");
        let pages: i64 = admin.value(pages);
        assert!(pages > if n == 3 { 8 } else { 0 }, "{pages} pages");
    }
}

#[test]
fn keys_are_read_when_a_rewrite_of_their_tables_is_over() {
    let test = "keys_are_read_when_a_rewrite_of_their_tables_is_over";
    let Some(cluster) = cluster(test) else { return };
    let mut readers = Readers::new(&cluster);
    let (mut admin, mut observer) = (connect(&cluster), connect(&cluster));
    for table in TABLES {
        // Its rows are in another file then, and the one in which they were is empty.
        admin.run(&format!("BEGIN; CLUSTER encryption.{table} USING {table}_pkey"));
        let waits = format!(
            "SELECT count(*) > 0 FROM pg_locks
              WHERE NOT granted AND relation = 'encryption.{table}'::regclass"
        );
        thread::scope(|scope| {
            let reader = scope.spawn(|| readers.get_what_is_theirs("****", table));
            wait_for(&mut observer, &waits);
            admin.run("COMMIT");
            reader.join().unwrap();
        });
    }
}

#[test]
fn no_two_rows_have_one_ciphertext() {
    let Some(cluster) = cluster("no_two_rows_have_one_ciphertext") else { return };
    let mut session = connect(&cluster);
    session.run("TRUNCATE t");
    let stored = |session: &mut Client, version: i32| {
        let rows = session
            .query("SELECT v::bytea, v::text FROM t WHERE enc_key_version(v) = $1", &[&version])
            .unwrap();
        let values: HashSet<Vec<u8>> = rows.iter().map(|row| row.get(0)).collect();
        assert_eq!(values.len(), rows.len(), "two rows have one ciphertext");
        let ciphertexts: HashSet<&[u8]> = values.iter().map(|value| &value[34..]).collect();
        assert_eq!(ciphertexts.len(), rows.len());
        for value in &values {
            assert_eq!(header(value).key_version.get(), version.unsigned_abs());
            assert_eq!(value.len(), "the same".len() + 50);
        }
        assert!(rows.iter().all(|row| row.get::<_, &str>(1) == "the same"));
        rows.len()
    };

    session.run("INSERT INTO t (v) SELECT 'the same' FROM generate_series(1, 1000)");
    session.run(
        "INSERT INTO t (v) SELECT 'the same'::encrypted_text('k') FROM generate_series(1, 1000)",
    );
    session.run("INSERT INTO t (v) SELECT text 'the same' FROM generate_series(1, 1000)");
    assert_eq!(stored(&mut session, 1), 3000);

    // Prepared statements of both protocols, with a parameter and with a literal, across a rotation
    // by another session.
    session.run("TRUNCATE t; SET plan_cache_mode = force_generic_plan");
    session.run("PREPARE literal AS INSERT INTO t (v) VALUES ('the same')");
    let as_value = session.prepare("INSERT INTO t (v) VALUES ($1)").unwrap();
    let as_text = session.prepare("INSERT INTO t (v) VALUES ($1::text)").unwrap();
    let mut admin = connect(&cluster);
    let value = Binary(b"the same".to_vec());
    for n in 0..1000 {
        if n == 500 {
            admin.run("SELECT enc_rotate_key('k')");
        }
        session.run("EXECUTE literal");
        session.execute(&as_value, &[&value]).unwrap();
        session.execute(&as_text, &[&"the same"]).unwrap();
    }
    assert_eq!(stored(&mut session, 1), 1500);
    assert_eq!(stored(&mut session, 2), 1500);

    // A default, too, is encrypted again for each row, under the version of that moment.
    session.run("TRUNCATE t; ALTER TABLE t ALTER v SET DEFAULT 'the same'");
    session.run("INSERT INTO t DEFAULT VALUES; SELECT enc_rotate_key('k')");
    // A value that moves between columns of one key stays as it is, and is no new encryption;
    // through text it becomes one.
    session.run("INSERT INTO t (v) SELECT v::text FROM t");
    session.run("INSERT INTO t DEFAULT VALUES; INSERT INTO t DEFAULT VALUES");
    assert_eq!(stored(&mut session, 2), 1);
    assert_eq!(stored(&mut session, 3), 3);
}

#[test]
fn a_standby_sees_changes_at_once_and_makes_none() {
    let test = "a_standby_sees_changes_at_once_and_makes_none";
    let Some(builder) = cluster_tests::builder(test) else { return };
    let primary = builder.create();
    // Where both servers can read it.
    let keyring = primary.directory().join("keyring.json");
    primary.configure("encryption_ext.keyring_file", keyring.to_str().unwrap());
    let mut primary = primary;
    primary.start();
    cluster_tests::create_extension(&primary, DATABASE);
    let mut admin = connect(&primary);
    admin.run(
        "CREATE ROLE alice LOGIN;
         SELECT enc_create_key('k'), enc_grant('k', 'alice', 'decrypt');
         CREATE TABLE t (id integer, v encrypted_text('k'));
         GRANT SELECT ON t TO alice;
         INSERT INTO t VALUES (1, 'first')",
    );
    let mut standby = Cluster::builder(MAJOR).port(5433).create();
    replace_by_base_backup(&standby, &primary, &["--write-recovery-conf"]);
    standby.start();

    const READ: &str = "SELECT v FROM t WHERE id = 1";
    let mut alice = standby.connect("alice", DATABASE);
    let mut block = standby.connect("alice", DATABASE);
    let mut admin_there = connect(&standby);
    assert_eq!(admin_there.text("SELECT pg_is_in_recovery()"), "t");
    block.run("BEGIN ISOLATION LEVEL REPEATABLE READ");
    for session in [&mut alice, &mut block] {
        assert_eq!(session.text(READ), "first");
        assert_eq!(session.text("SELECT v = 'first' FROM t WHERE id = 1"), "t");
    }

    // What is written under a new version is read there.
    admin.run("SELECT enc_rotate_key('k'); INSERT INTO t VALUES (2, 'second')");
    catch_up(&mut admin, &mut admin_there);
    assert_eq!(alice.text("SELECT v FROM t WHERE id = 2"), "second");

    admin.run("SELECT enc_disable_key_version('k', 1)");
    catch_up(&mut admin, &mut admin_there);
    alice.fails(READ, "KE008");
    block.run("SAVEPOINT s");
    block.fails(READ, "KE008");
    block.run("ROLLBACK TO s");
    admin.run("SELECT enc_enable_key_version('k', 1)");
    catch_up(&mut admin, &mut admin_there);
    assert_eq!(alice.text(READ), "first");
    assert_eq!(block.text(READ), "first");
    admin.run("SELECT enc_revoke('k', 'alice')");
    catch_up(&mut admin, &mut admin_there);
    alice.fails(READ, "KE020");
    block.fails(READ, "KE020");

    // Nothing is changed there, at the provider neither.
    let before = fs::read(&keyring).unwrap();
    for sql in [
        "SELECT enc_rotate_key('k')",
        "SELECT enc_create_key('other')",
        "SELECT enc_activate_key_version('k', 1)",
        "SELECT enc_disable_key_version('k', 1)",
        "SELECT enc_enable_key_version('k', 1)",
        "SELECT enc_grant('k', 'alice', 'decrypt')",
        "SELECT enc_revoke('k', 'alice')",
    ] {
        admin_there.fails(sql, "25006");
    }
    admin.fails("BEGIN READ ONLY; SELECT enc_rotate_key('k')", "25006");
    admin.run("ROLLBACK");
    assert_eq!(fs::read(&keyring).unwrap(), before);
}
