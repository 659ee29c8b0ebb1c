//! The lines of the server log that docs/operations/log-events.md lists: each of them is provoked.

use std::thread;
use std::time::{Duration, Instant};

use cluster_tests::key_server::{ONE, READ, Setup, THREE, TWO, WRITING, fails};
use cluster_tests::{DATABASE, Session, builder, connect, create_extension};
use harness::cluster::Cluster;
use harness::openbao::OpenBao;
use postgres::Client;

/// How many lines have this SQLSTATE, which the prefix ends with, and this text after it.
fn count(log: &str, sqlstate: &str, level: &str, text: &str) -> usize {
    let begin = format!("<{sqlstate}>{level}:  {text}");
    log.lines().filter(|line| line.contains(&begin)).count()
}

#[track_caller]
fn expect(cluster: &Cluster, sqlstate: &str, level: &str, text: &str) {
    let log = cluster.log();
    let of_kind: Vec<_> = log.lines().filter(|line| line.contains(sqlstate)).collect();
    assert_eq!(count(&log, sqlstate, level, text), 1, "{sqlstate} {text}\n{of_kind:#?}");
}

fn prefixed(setup: &Setup) -> Client {
    setup.cluster.configure("log_line_prefix", "%m [%p] <%e>");
    setup.cluster.reload();
    let mut session = setup.connect();
    while session.text("SHOW log_line_prefix") != "%m [%p] <%e>" {
        thread::sleep(Duration::from_millis(10));
    }
    session
}

#[test]
fn outages_and_their_end() {
    let Some(mut setup) =
        Setup::with_key("outages_and_their_end", OpenBao::start_with_tls, WRITING)
    else {
        return;
    };
    let mut session = prefixed(&setup);
    session.run("SET encryption_ext.cache_ttl = 1; SET encryption_ext.cache_stale_grace = 3");
    assert_eq!(session.text(READ), "first");
    let fetched = Instant::now();
    setup.server.stop();
    thread::sleep(Duration::from_millis(1200));
    for _ in 0..100 {
        assert_eq!(session.text(READ), "first");
    }
    let past_time = "using version 1 of key \"k\" past its time to live, for ";
    expect(&setup.cluster, "KE300", "WARNING", past_time);
    expect(
        &setup.cluster,
        "KE305",
        "LOG",
        "could not fetch keys ahead of their expiry: provider \"vault\": ",
    );
    thread::sleep(Duration::from_millis(4200).saturating_sub(fetched.elapsed()));
    for _ in 0..8 {
        drop(session.simple_query(READ).unwrap_err());
    }
    let left_alone = "provider \"vault\" is left alone after 5 failures in a row, the last of which was: could not reach Vault";
    expect(&setup.cluster, "KE301", "LOG", left_alone);
    setup.server.restart();
    let back = Instant::now();
    while session.simple_query(READ).is_err() {
        assert!(back.elapsed() < Duration::from_secs(30), "the breaker doesn't close");
        thread::sleep(Duration::from_millis(100));
    }
    expect(&setup.cluster, "KE302", "LOG", "provider \"vault\" answers again");

    // The token is revoked: the login fails, once a minute.
    let token = std::fs::read_to_string(setup.file("token")).unwrap();
    let mut login = setup.connect();
    login.run("SET encryption_ext.cache_ttl = 1; SET encryption_ext.cache_stale_grace = 0");
    assert_eq!(login.text(READ), "first");
    setup.server.revoke(token.trim());
    thread::sleep(Duration::from_millis(1200));
    for _ in 0..3 {
        fails(&mut login, READ, "KE066");
    }
    expect(
        &setup.cluster,
        "KE303",
        "LOG",
        "login at provider \"vault\" failed: Vault does not accept the token",
    );
}

#[test]
fn logins_that_are_renewed_and_keys_that_are_replaced() {
    let test = "logins_that_are_renewed_and_keys_that_are_replaced";
    let Some(setup) = Setup::with_key(test, OpenBao::start, WRITING) else { return };
    let (role, secret) = setup.server.approle("postgresql", &["keys"], "1h");
    setup.is_secret(&secret);
    setup.configure_file("vault_role_id_file", &setup.write("role", &role));
    setup.configure_file("vault_secret_id_file", &setup.write("secret", &secret));
    setup.cluster.configure("encryption_ext.vault_auth", "approle");
    let mut session = prefixed(&setup);
    assert_eq!(session.text(READ), "first");
    expect(&setup.cluster, "KE304", "LOG", "login at provider \"vault\" was renewed");

    // Somebody writes over the version: its history goes, and another key is its first version.
    let mut fetching = setup.connect();
    fetching.run("SET encryption_ext.cache_ttl = 1; SET encryption_ext.cache_stale_grace = 0");
    assert_eq!(fetching.text(READ), "first");
    assert_eq!(
        setup.server.request("DELETE", "secret/metadata/keys/k", serde_json::Value::Null).0,
        204
    );
    setup.server.kv_put("keys/k", THREE);
    for _ in 0..3 {
        let mut session = setup.connect();
        session.fails(READ, "KE012");
        session.fails(READ, "KE012");
    }
    let replaced = "provider \"vault\" has another key in place of version 1 of key \"k\"";
    let log = setup.cluster.log();
    assert_eq!(count(&log, "KE310", "LOG", replaced), 3, "once a minute for each session");

    // The key is back and goes again; what is fetched ahead is refused.
    assert_eq!(
        setup.server.request("DELETE", "secret/metadata/keys/k", serde_json::Value::Null).0,
        204
    );
    setup.server.kv_put("keys/k", TWO);
    let mut ahead = setup.connect();
    ahead.run("SET encryption_ext.cache_ttl = 2");
    assert_eq!(ahead.text(READ), "first");
    assert_eq!(
        setup.server.request("DELETE", "secret/metadata/keys/k", serde_json::Value::Null).0,
        204
    );
    let started = Instant::now();
    while count(
        &setup.cluster.log(),
        "KE306",
        "LOG",
        "could not fetch version 1 again: provider \"vault\", key \"k\": ",
    ) == 0
    {
        assert!(started.elapsed() < Duration::from_secs(10), "nothing is said of it");
        thread::sleep(Duration::from_millis(200));
        // (Answers are taken at the next use of a key.)
        drop(ahead.simple_query(READ));
    }
    // The database key goes: entries of the log are not sealed.
    assert_eq!(
        setup.server.request("DELETE", "secret/metadata/keys/database", serde_json::Value::Null).0,
        204
    );
    setup.connect().run("SELECT enc_set_key_info('k', purpose => 'x')");
    expect(
        &setup.cluster,
        "KE312",
        "WARNING",
        "entry of the lifecycle log has no digest until another is made: ",
    );
    setup.server.kv_put("keys/database", ONE);
}

#[test]
fn changes_denials_and_damage() {
    let Some(described) = builder("changes_denials_and_damage") else { return };
    let cluster = described.setting("log_line_prefix", "%m [%p] <%e>").start();
    create_extension(&cluster, DATABASE);
    let mut session = connect(&cluster);
    session.run(
        "SELECT enc_create_key('k');
         CREATE ROLE clerk LOGIN;
         CREATE TABLE \"a table\" (id bigint PRIMARY KEY, \"a column\" encrypted_text('k'), other encrypted_text('k'));
         GRANT SELECT ON \"a table\" TO clerk;
         INSERT INTO \"a table\" SELECT n, 'value ' || n, 'other ' || n FROM generate_series(1, 500) n",
    );
    // A byte of one value is altered, while its version is active: so that it is taken as it is.
    session.run(
        "UPDATE \"a table\" SET \"a column\" = set_byte(\"a column\"::bytea, 40, 255 - get_byte(\"a column\"::bytea, 40))::encrypted_text
          WHERE id = 321",
    );
    session.run("SELECT enc_rotate_key('k')");
    let entries = count(&cluster.log(), "KE307", "LOG", "lifecycle log of keys: chain ");
    assert_eq!(entries, 3);
    assert!(cluster.log().contains(": rotate of key \"k\", old version 1, new version 2\n"));

    let mut clerk = cluster.connect("clerk", DATABASE);
    for _ in 0..5 {
        clerk.fails("SELECT * FROM \"a table\"", "KE020");
    }
    expect(
        &cluster,
        "KE308",
        "LOG",
        "denied: role \"clerk\" has no privilege \"decrypt\" on key \"k\" (SQLSTATE KE020)",
    );

    let ctid = session.text("SELECT ctid FROM \"a table\" WHERE id = 321");
    let place = format!(", in column \"a column\" of table \"public\".\"a table\" at {ctid}");
    let not_authentic =
        "encrypted value cannot be opened: it fails authentication under version 1 of key \"k\"";
    // However the row is come by.
    for (n, query) in [
        "SELECT * FROM \"a table\"",
        "SELECT id FROM \"a table\" WHERE lower(\"a column\") = 'x'",
        "SET enable_seqscan = off; SELECT * FROM \"a table\" WHERE id = 321",
        "SELECT b.* FROM \"a table\" a JOIN \"a table\" b USING (id) WHERE a.id = 321",
        "UPDATE \"a table\" SET \"a column\" = \"a column\" || '!' WHERE id = 321",
    ]
    .into_iter()
    .enumerate()
    {
        let mut session = connect(&cluster);
        session.fails(query, "KE045");
        let log = cluster.log();
        let found = count(&log, "KE309", "LOG", &format!("{not_authentic}{place}"));
        assert_eq!(found, n + 1, "{query}\n{}", &log[log.len() - 2000..]);
        // Not more than once a minute.
        session.fails(query, "KE045");
        assert_eq!(count(&cluster.log(), "KE309", "LOG", not_authentic), n + 1, "{query}");
    }
    // Where it can't be known it isn't said: of a value that a function has made, of a sort's rows.
    let mut session = connect(&cluster);
    let made = "SELECT set_byte(other::bytea, 40, 255 - get_byte(other::bytea, 40))::encrypted_text FROM \"a table\" WHERE id = 1";
    session.fails(made, "KE045");
    assert_eq!(count(&cluster.log(), "KE309", "LOG", not_authentic), 6);
    assert_eq!(count(&cluster.log(), "KE309", "LOG", &format!("{not_authentic}{place}")), 5);
    // It is too short to be a value.
    session.run(
        "UPDATE pg_attribute SET atttypmod = -1 WHERE attname = 'other';
         UPDATE \"a table\" SET other = substring(other::bytea FOR 20)::encrypted_text WHERE id = 7;
         UPDATE pg_attribute SET atttypmod = (SELECT key_id FROM enc_keys WHERE name = 'k') WHERE attname = 'other'",
    );
    let ctid = session.text("SELECT ctid FROM \"a table\" WHERE id = 7");
    session.fails("SELECT other FROM \"a table\" WHERE id = 7", "KE040");
    let log = cluster.log();
    let truncated: Vec<_> = log.lines().filter(|line| line.contains("<KE309>")).collect();
    assert!(
        truncated
            .last()
            .unwrap()
            .ends_with(&format!(", in column \"other\" of table \"public\".\"a table\" at {ctid}")),
        "{truncated:#?}"
    );
    // None of it shows a value, or the statement.
    assert!(
        log.lines().filter(|line| line.contains("<KE30")).all(|line| !line.contains("value 3"))
    );

    // A dump is restored.
    session.run("UPDATE encryption.keyspace SET system_identifier = NULL");
    connect(&cluster).run("SELECT other FROM \"a table\" WHERE id = 8");
    expect(
        &cluster,
        "KE311",
        "WARNING",
        "the catalog of keys may be older than the keys: it was restored from a dump; SELECT * FROM enc_reconcile() compares them",
    );
}
