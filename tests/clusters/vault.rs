//! Provider `vault`, with a real OpenBao server.

#![expect(clippy::unwrap_used, reason = "a test fails by a panic")]

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::thread;
use std::time::{Duration, Instant};

use cluster_tests::key_server::{ONE, READ, READ_ONLY, Setup, THREE, TWO, WRITING, fails};
use cluster_tests::{AT_ONCE, DATABASE, Session, at_once, bytea, expect_error, seal};
use envelope::PlaintextKind;
use harness::cluster::backend_pid;
use harness::openbao::{OpenBao, unrelated_authority};
use postgres::Client;
use serde_json::{Value, json};

#[test]
fn a_read_only_policy_adopts_what_an_administrator_wrote() {
    let test = "a_read_only_policy_adopts_what_an_administrator_wrote";
    let Some(setup) = Setup::new(test, OpenBao::start_with_tls, READ_ONLY) else { return };
    let mut session = setup.connect();
    let command =
        |name: &str| format!("vault kv put secret/keys/{name} key=$(openssl rand -base64 32)");

    // Nothing is there: what the administrator must write is told, key by key.
    let text = fails(&mut session, "SELECT enc_create_key('k')", "KE070");
    assert!(text.contains(&command("database")), "{text}");
    assert_eq!(setup.server.kv_put("keys/database", ONE), 1);
    let text = fails(&mut session, "SELECT enc_create_key('k')", "KE070");
    assert!(text.contains(&command("k")), "{text}");
    assert_eq!(session.value::<i64>("SELECT count(*) FROM enc_keys"), 0);

    assert_eq!(setup.server.kv_put("keys/k", TWO), 1);
    assert_eq!(session.value::<i32>("SELECT enc_create_key('k')"), 1);
    session.run(
        "CREATE TABLE t (id bigint GENERATED ALWAYS AS IDENTITY, v encrypted_text('k'));
         INSERT INTO t (v) VALUES ('first')",
    );
    let text = fails(&mut session, "SELECT enc_rotate_key('k')", "KE070");
    assert!(text.contains(&command("k")), "{text}");
    assert_eq!(setup.server.kv_put("keys/k", THREE), 2);
    assert_eq!(session.value::<i32>("SELECT enc_rotate_key('k')"), 2);
    session.run("INSERT INTO t (v) VALUES ('second')");

    // The key is the very bytes that were written: what was sealed elsewhere is read here.
    for (version, byte) in [(1, 2), (2, 3)] {
        let value = seal([byte; 32], "k", version, PlaintextKind::Text, b"elsewhere");
        let sql = format!("SELECT {}::encrypted_text", bytea(&value));
        assert_eq!(setup.connect().text(&sql), "elsewhere");
    }
    let versions = "SELECT string_agg(enc_key_version(v) || v::text, ' ' ORDER BY id) FROM t";
    assert_eq!(setup.connect().text(versions), "1first 2second");

    // A key that has several versions is adopted with all of them.
    for key in [ONE, TWO, THREE] {
        setup.server.kv_put("keys/old", key);
    }
    assert_eq!(session.value::<i32>("SELECT enc_create_key('old')"), 3);
    let states = "SELECT string_agg(version || state || reference, ' ' ORDER BY version)
                  FROM enc_key_versions WHERE name = 'old'";
    assert_eq!(
        session.text(states),
        "1deprecatedold?version=1 2deprecatedold?version=2 3activeold?version=3"
    );

    // What the policy doesn't allow, and what isn't there.
    let mut elsewhere = setup.connect();
    elsewhere.run("SET encryption_ext.vault_path_prefix = 'others'");
    let text = fails(&mut elsewhere, READ, "KE067");
    assert!(text.contains(r#"path "secret/data/others/*" { capabilities = ["read"] }"#), "{text}");
    setup.put_token(setup.server.root_token());
    let text = fails(&mut elsewhere, READ, "KE068");
    assert!(text.contains("secret/others/k"), "{text}");
    elsewhere.run("SET encryption_ext.vault_mount = 'nowhere'");
    fails(&mut elsewhere, READ, "KE061");
    elsewhere.run("RESET encryption_ext.vault_mount; RESET encryption_ext.vault_path_prefix");
    assert_eq!(elsewhere.text(READ), "first");
}

#[test]
fn a_writing_policy_makes_keys_and_versions() {
    let test = "a_writing_policy_makes_keys_and_versions";
    let Some(setup) = Setup::new(test, OpenBao::start, WRITING) else { return };
    let mut session = setup.connect();
    assert_eq!(session.value::<i32>("SELECT enc_create_key('k')"), 1);
    assert_eq!(session.value::<i32>("SELECT enc_rotate_key('k')"), 2);
    for name in ["database", "k"] {
        let (status, answer) =
            setup.server.request("GET", &format!("secret/data/keys/{name}?version=1"), Value::Null);
        assert_eq!(status, 200);
        let key = answer["data"]["data"]["key"].as_str().unwrap();
        assert_eq!(key.len(), 44);
        assert!(!setup.cluster.log().contains(key));
    }
    // That Vault will drop old versions is told while there is time.
    assert!(setup.cluster.log().contains("max-versions"), "{}", setup.cluster.log());

    // What a rolled-back rotation left at the server is found, and not made again.
    session.run("BEGIN; SELECT enc_rotate_key('k'); ROLLBACK");
    assert_eq!(session.value::<i32>("SELECT enc_rotate_key('k')"), 3);
    let (_, answer) = setup.server.request("GET", "secret/data/keys/k", Value::Null);
    assert_eq!(answer["data"]["metadata"]["version"], 3);
}

#[test]
fn keys_made_by_many_sessions_at_once_are_made_once() {
    let test = "keys_made_by_many_sessions_at_once_are_made_once";
    let Some(setup) = Setup::new(test, OpenBao::start, WRITING) else { return };
    let made = at_once(&setup.cluster, &|_| "SELECT enc_create_key('k', true)".to_owned());
    assert_eq!(made, vec![Ok(1); AT_ONCE]);
    let made = at_once(&setup.cluster, &|n| format!("SELECT enc_create_key('k_{n}')"));
    assert_eq!(made, vec![Ok(1); AT_ONCE]);
    for name in ["database", "k", "k_0"] {
        let (_, answer) =
            setup.server.request("GET", &format!("secret/metadata/keys/{name}"), Value::Null);
        assert_eq!(answer["data"]["current_version"], 1);
    }
}

#[test]
fn a_token_that_is_replaced_is_used_and_one_that_ends_is_told() {
    let test = "a_token_that_is_replaced_is_used_and_one_that_ends_is_told";
    let Some(setup) = Setup::with_key(test, OpenBao::start, READ_ONLY) else { return };
    let first = fs::read_to_string(setup.file("token")).unwrap();

    // The file is replaced, and the old token revoked.
    let mut session = setup.expired();
    setup.put_token(&setup.server.token(&["keys"], "1h"));
    setup.server.revoke(first.trim());
    assert_eq!(session.text(READ), "first");

    // Revoked without a replacement, then replaced.
    let mut session = setup.expired();
    let second = fs::read_to_string(setup.file("token")).unwrap();
    setup.server.revoke(second.trim());
    let text = fails(&mut session, READ, "KE066");
    assert!(text.contains("token file") && !text.contains(second.trim()), "{text}");
    setup.put_token(&setup.server.token(&["keys"], "1h"));
    assert_eq!(session.text(READ), "first");

    // Expired.
    setup.put_token(&setup.server.token(&["keys"], "1s"));
    let mut session = setup.connect();
    thread::sleep(Duration::from_millis(1500));
    fails(&mut session, READ, "KE066");
    // Without a policy, which is another error.
    setup.put_token(&setup.server.token(&["default"], "1h"));
    let text = fails(&mut session, READ, "KE067");
    assert!(text.contains("capabilities = [\"read\"]"), "{text}");
    for contents in ["", "two\nlines\n", "not-a-token"] {
        setup.write("token", contents);
        fails(&mut session, READ, "KE066");
    }
    fs::remove_file(setup.file("token")).unwrap();
    fails(&mut session, READ, "KE066");
    setup.put_token(&setup.server.token(&["keys"], "1h"));
    assert_eq!(session.text(READ), "first");
    session.run("SET encryption_ext.vault_token_file = ''; SELECT enc_flush_cache()");
    fails(&mut session, READ, "KE061");
}

/// What `enc_stat_provider` says of the token, and the row of `enc_health`, without times.
fn token_state(session: &mut Client) -> (String, String) {
    let left = session.text(
        "SELECT coalesce(round(extract(epoch FROM token_expires - clock_timestamp()) / 60)::text, 'unknown')
           FROM enc_stat_provider WHERE provider = 'vault'",
    );
    let row = session.text(
        "SELECT concat_ws('|', status, regexp_replace(detail, '[-0-9]+ [:0-9]+ UTC', '<time>', 'g'),
                          remedy IS NOT NULL)
           FROM enc_health() WHERE check_name = 'token' AND subject = 'vault'",
    );
    (left, row)
}

/// Tokens of all sorts, in the file one after the other, as two sessions see them: one whose requests need
/// them, and one that asks for nothing.
fn the_end_of_a_token_in_a_file(test: &str, is_preloaded: bool) {
    let Some(mut setup) = Setup::with_key(test, OpenBao::start_with_tls, READ_ONLY) else { return };
    setup.cluster.configure("timezone", "UTC");
    setup.cluster.configure("encryption_ext.warm_up", "off");
    if is_preloaded {
        setup.cluster.configure("shared_preload_libraries", "encryption_ext");
    }
    setup.cluster.restart();
    let mut monitor = monitor_of(&setup);
    let knows = if is_preloaded { "server" } else { "session" };
    let none = ("unknown".to_owned(), format!("ok|no end of it is known to this {knows}|f"));
    let known = |minutes: &str, status: &str, warned: &str| {
        (minutes.to_owned(), format!("{status}|the token in the file ends at <time>|{warned}"))
    };
    // Nobody has asked.
    assert_eq!(token_state(&mut monitor), none);
    let mut session = setup.connect();
    let mut read = |setup: &Setup, token: &str| {
        setup.put_token(token);
        session.run("SELECT enc_flush_cache()");
        assert_eq!(session.text(READ), "first");
        if !is_preloaded {
            // Nobody waits for it.
            thread::sleep(Duration::from_millis(500));
        }
        let seen = token_state(&mut session);
        let told = token_state(&mut monitor);
        assert_eq!(told, if is_preloaded { seen.clone() } else { none.clone() });
        seen
    };
    let server = &setup.server;
    assert_eq!(read(&setup, &server.token(&["keys"], "1h")), known("60", "ok", "f"));
    assert_eq!(read(&setup, server.root_token()), none);
    let batch = json!({ "policies": ["keys"], "ttl": "2h", "type": "batch" });
    assert_eq!(read(&setup, &server.token_with(None, batch)), known("120", "ok", "f"));
    let blind = json!({ "policies": ["keys"], "ttl": "1h", "no_default_policy": true });
    assert_eq!(read(&setup, &server.token_with(None, blind)), none);
    // One of 30 days, of which three are left; and renewed.
    let month = server.token_with(None, json!({ "policies": ["keys"], "ttl": "720h" }));
    assert_eq!(read(&setup, &month), known("43200", "ok", "f"));
    let renew = |increment: &str| {
        let renewal = json!({ "token": month, "increment": increment });
        assert_eq!(server.request("POST", "auth/token/renew", renewal).0, 200);
    };
    renew("72h");
    assert_eq!(read(&setup, &month), known("4320", "warning", "t"));
    renew("720h");
    assert_eq!(read(&setup, &month), known("43200", "ok", "f"));
    // Of an hour, of which a third is left, and a sixth.
    let hour = server.token_with(None, json!({ "policies": ["keys"], "ttl": "1h" }));
    for (increment, minutes, status, warned) in
        [("20m", "20", "ok", "f"), ("10m", "10", "warning", "t")]
    {
        let renewal = json!({ "token": hour, "increment": increment });
        assert_eq!(server.request("POST", "auth/token/renew", renewal).0, 200);
        assert_eq!(read(&setup, &hour), known(minutes, status, warned));
    }
    // One that is refused isn't known any more, and neither is it the provider's failure but a login's.
    server.revoke(&hour);
    session.run("SELECT enc_flush_cache()");
    fails(&mut session, READ, "KE066");
    assert_eq!(token_state(&mut session), none);
    // What none of it may do: log in again, or count as a failure.
    let log = setup.cluster.log();
    assert!(!log.contains("was renewed") && !log.contains("is left alone"), "{log}");
}

#[test]
fn the_end_of_a_token_in_a_file_is_known_to_the_server() {
    the_end_of_a_token_in_a_file("the_end_of_a_token_in_a_file_is_known_to_the_server", true);
}

#[test]
fn the_end_of_a_token_in_a_file_is_known_to_the_session_that_uses_it() {
    let test = "the_end_of_a_token_in_a_file_is_known_to_the_session_that_uses_it";
    the_end_of_a_token_in_a_file(test, false);
}

#[test]
fn a_worker_learns_the_end_of_a_token_and_that_it_was_renewed() {
    let test = "a_worker_learns_the_end_of_a_token_and_that_it_was_renewed";
    let Some(mut setup) = Setup::with_key(test, OpenBao::start_with_tls, READ_ONLY) else { return };
    let token = setup.server.token_with(None, json!({ "policies": ["keys"], "ttl": "15s" }));
    setup.put_token(&token);
    setup.cluster.configure("encryption_ext.cache_ttl", "2");
    setup.cluster.configure("shared_preload_libraries", "encryption_ext");
    setup.cluster.restart();
    let started = Instant::now();
    let mut monitor = monitor_of(&setup);
    let mut wait_for = |left: &str| {
        let state = format!(
            "SELECT coalesce(extract(epoch FROM token_expires - clock_timestamp()) BETWEEN {left}, false)
               FROM enc_stat_provider"
        );
        while monitor.text(&state) != "t" {
            assert!(started.elapsed() < Duration::from_secs(30), "{:?}", token_state(&mut monitor));
            thread::sleep(Duration::from_millis(50));
        }
    };
    // No session has asked for a key.
    wait_for("1 AND 15");
    let renewal = json!({ "token": token, "increment": "1h" });
    assert_eq!(setup.server.request("POST", "auth/token/renew", renewal).0, 200);
    wait_for("3500 AND 3600");
    assert!(started.elapsed() > Duration::from_secs(7), "it was looked up too often");
}

#[test]
fn approle_logs_in_again_when_its_token_ends() {
    let test = "approle_logs_in_again_when_its_token_ends";
    let Some(setup) = Setup::with_key(test, OpenBao::start, READ_ONLY) else { return };
    fs::remove_file(setup.file("token")).unwrap();
    let (role_id, secret_id) = setup.server.approle("database", &["keys"], "2s");
    let role_id_file = setup.write("role_id", &role_id);
    let secret_id_file = setup.write("secret_id", &format!("{secret_id}\n"));
    setup.is_secret(&role_id);
    setup.is_secret(&secret_id);
    let mut session = setup.connect();
    session.run(&format!(
        "SET encryption_ext.vault_auth = 'approle';
         SET encryption_ext.vault_role_id_file = '{}';
         SET encryption_ext.vault_secret_id_file = '{}';
         SET encryption_ext.cache_ttl = 1",
        role_id_file.display(),
        secret_id_file.display()
    ));
    assert_eq!(session.text(READ), "first");

    // Its lease has ended.
    thread::sleep(Duration::from_millis(2500));
    assert_eq!(session.text(READ), "first");
    // The server has revoked it early, which the next request is told.
    thread::sleep(Duration::from_millis(1100));
    let revoke = "sys/leases/revoke-prefix/auth/approle/login";
    let (status, answer) = setup.server.request("PUT", revoke, json!({ "sync": true }));
    assert!(matches!(status, 200 | 202 | 204), "{status} {answer}");
    assert_eq!(session.text(READ), "first");

    setup.write("secret_id", "00000000-0000-0000-0000-000000000000");
    session.run("SELECT enc_flush_cache()");
    let text = fails(&mut session, READ, "KE066");
    assert!(text.contains("secret id") && !text.contains(&secret_id), "{text}");
    fs::remove_file(secret_id_file).unwrap();
    fails(&mut session, READ, "KE066");
    session.run("SET encryption_ext.vault_auth = 'magic'");
    fails(&mut session, READ, "KE061");
}

#[test]
fn a_server_that_does_not_serve_is_told() {
    let test = "a_server_that_does_not_serve_is_told";
    let Some(mut setup) = Setup::with_key(test, OpenBao::start_with_tls, READ_ONLY) else { return };

    setup.server.seal();
    setup.reading_fails("KE064");
    setup.server.unseal();
    assert_eq!(setup.connect().text(READ), "first");

    let mut session = setup.connect();
    session.run(&format!(
        "SET encryption_ext.vault_ca_file = '{}'",
        setup.write("other_ca.pem", &unrelated_authority()).display()
    ));
    fails(&mut session, READ, "KE062");
    session.run(&format!(
        "SET encryption_ext.vault_ca_file = '{}'",
        setup.write("no_ca.pem", "not a certificate").display()
    ));
    fails(&mut session, READ, "KE061");
    session.run("SET encryption_ext.vault_address = 'http://192.0.2.1:8200'");
    fails(&mut session, READ, "KE061");
    session.run("SET encryption_ext.vault_address = 'vault'");
    fails(&mut session, READ, "KE061");
    session.run("SET encryption_ext.vault_address = ''");
    fails(&mut session, READ, "KE061");

    // Something else listens there.
    let answers = [
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}",
        "HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 418 I'm a teapot\r\nContent-Length: 0\r\n\r\n",
    ];
    for answer in answers {
        let mut session = setup.connect();
        session.run(&format!("SET encryption_ext.vault_address = '{}'", answering(answer)));
        fails(&mut session, READ, "KE071");
    }
    let mut session = setup.connect();
    session.run(&format!("SET encryption_ext.vault_address = '{}'", answering("nonsense\r\n\r\n")));
    let error = session.simple_query(READ).unwrap_err();
    let code = error.as_db_error().unwrap().code().code().to_owned();
    assert!(["KE062", "KE071"].contains(&code.as_str()), "{error:?}");
    let _ = expect_error(&error, &code);

    setup.server.pause();
    for limit in [300, 1000] {
        let mut session = setup.connect();
        session.run(&format!(
            "SET encryption_ext.provider_timeout = {limit};
             SET encryption_ext.provider_connect_timeout = {limit}"
        ));
        let started = Instant::now();
        fails(&mut session, READ, "KE063");
        let took = started.elapsed();
        println!("provider_timeout = {limit}: {took:?}");
        assert!(took < Duration::from_millis(limit + 300), "{took:?}");
    }
    setup.server.resume();
    assert_eq!(setup.connect().text(READ), "first");

    let mut warm = setup.connect();
    warm.run("INSERT INTO t (v) VALUES ('warm'); SELECT v FROM t");
    setup.server.stop();
    setup.reading_fails("KE062");
    // A session that has its keys needs no server.
    for _ in 0..5000 {
        warm.run("INSERT INTO t (v) VALUES ('without a server')");
        warm.run(READ);
    }
    assert_eq!(warm.text("SELECT count(v::text) FROM t"), "5002");
    fails(&mut warm, "SELECT enc_rotate_key('k')", "KE062");
    assert_eq!(warm.text(READ), "first");
    setup.server.restart();
    assert_eq!(setup.connect().text(READ), "first");
}

/// The address of a server that gives everyone the same answer.
fn answering(answer: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            // A client that is gone has had what it wanted.
            let _ = stream.read(&mut [0; 4096]);
            let _ = stream.write_all(answer.as_bytes());
        }
    });
    address
}

#[test]
fn what_is_not_the_key_is_told() {
    let test = "what_is_not_the_key_is_told";
    let Some(setup) = Setup::with_key(test, OpenBao::start, WRITING) else { return };
    let mut session = setup.connect();
    let server = &setup.server;

    for (key, sqlstate) in [
        ("AQEB", "KE072"),
        ("", "KE072"),
        (&"A".repeat(44), "KE072"),
        ("?", "KE071"),
        ("_-_-", "KE071"),
    ] {
        server.kv_put("keys/bad", key);
        fails(&mut session, "SELECT enc_create_key('bad')", sqlstate);
    }
    for fields in [json!({ "other": ONE }), json!({ "key": 1 }), json!({ "key": null })] {
        server.kv_put_in(None, "keys/bad", fields);
        let text = fails(&mut session, "SELECT enc_create_key('bad')", "KE071");
        assert!(text.contains("key=$("), "{text}");
    }
    assert_eq!(session.value::<i64>("SELECT count(*) FROM enc_keys WHERE name = 'bad'"), 0);
    // The newest version counts, and one that is no key was in no use.
    server.kv_put("keys/bad", THREE);
    session.run("SELECT enc_create_key('bad')");

    // Deleted, and brought back; destroyed with all that is under the name; written anew.
    session.run("SELECT enc_rotate_key('k')");
    let versions = json!({ "versions": [1] });
    assert_eq!(server.request("POST", "secret/delete/keys/k", versions.clone()).0, 204);
    let text = setup.reading_fails("KE069");
    assert!(text.contains("vault kv undelete -versions=1 secret/keys/k"), "{text}");
    setup.connect().run("INSERT INTO t (v) VALUES ('under the second version')");
    assert_eq!(server.request("POST", "secret/undelete/keys/k", versions.clone()).0, 204);
    assert_eq!(setup.connect().text(READ), "first");
    assert_eq!(server.request("PUT", "secret/destroy/keys/k", versions).0, 204);
    setup.reading_fails("KE069");
    assert_eq!(server.request("DELETE", "secret/metadata/keys/k", Value::Null).0, 204);
    setup.reading_fails("KE068");
    assert_eq!(server.kv_put("keys/k", THREE), 1);
    let text = setup.reading_fails("KE012");
    assert!(text.contains("key check value"), "{text}");
    let insert = "INSERT INTO t (v) VALUES (text 'under which key?')";
    fails(&mut setup.connect(), insert, "KE069");
    assert_eq!(server.kv_put("keys/k", THREE), 2);
    fails(&mut setup.connect(), insert, "KE012");
    // Restored from a backup of Vault.
    assert_eq!(server.request("DELETE", "secret/metadata/keys/k", Value::Null).0, 204);
    server.kv_put("keys/k", TWO);
    assert_eq!(setup.connect().text(READ), "first");
}

#[test]
fn a_session_that_waits_for_the_server_can_be_ended() {
    let test = "a_session_that_waits_for_the_server_can_be_ended";
    let Some(setup) = Setup::with_key(test, OpenBao::start, READ_ONLY) else { return };
    const AT_MOST: Duration = Duration::from_millis(300);
    let mut admin = setup.connect();
    let mut session = setup.connect();
    let pid = backend_pid(&mut session);
    session.run("SET encryption_ext.provider_timeout = 60000");
    setup.server.pause();

    let limit = Duration::from_millis(200);
    session.run("SET statement_timeout = 200");
    let started = Instant::now();
    fails(&mut session, READ, "57014");
    let took = started.elapsed().saturating_sub(limit);
    println!("statement_timeout: {took:?} late");
    assert!(took < AT_MOST, "{took:?}");
    session.run("SET statement_timeout = 0");

    let end = |admin: &mut Client, mut session: Client, by: &str| {
        let waiting = thread::spawn(move || {
            let error = session.simple_query(READ).unwrap_err();
            (Instant::now(), session, error)
        });
        thread::sleep(Duration::from_millis(500));
        assert!(!waiting.is_finished(), "the session doesn't wait for the server");
        let called = Instant::now();
        admin.run(&format!("SELECT {by}({pid})"));
        let (ended, session, error) = waiting.join().unwrap();
        let took = ended.saturating_duration_since(called);
        println!("{by}: {took:?}");
        assert!(took < AT_MOST, "{took:?}");
        (session, error)
    };
    let (mut session, error) = end(&mut admin, session, "pg_cancel_backend");
    let _ = expect_error(&error, "57014");

    // The session is none the worse for it.
    setup.server.resume();
    assert_eq!(session.text(READ), "first");
    session.run("SELECT enc_flush_cache()");
    setup.server.pause();
    let (mut session, error) = end(&mut admin, session, "pg_terminate_backend");
    // The message may be lost with the connection.
    if error.as_db_error().is_some() {
        let _ = expect_error(&error, "57P01");
    }
    assert!(session.simple_query("SELECT 1").is_err());
    setup.server.resume();
    assert_eq!(setup.connect().text(READ), "first");
    assert!(!setup.cluster.log().contains("was terminated by signal"), "a backend crashed");
}

#[test]
fn versions_of_two_providers_serve_one_column() {
    let test = "versions_of_two_providers_serve_one_column";
    let Some(setup) = Setup::new(test, OpenBao::start, WRITING) else { return };
    let mut session = setup.connect();
    let summary = "SELECT string_agg(version || provider || state, ' ' ORDER BY version)
                   FROM enc_key_versions WHERE name = 'k'";
    let rows = "SELECT string_agg(enc_key_version(v) || v::text, ' ' ORDER BY id) FROM t";

    switch_provider(&mut session, "file");
    session.run(
        "SELECT enc_create_key('k');
         CREATE TABLE t (id bigint GENERATED ALWAYS AS IDENTITY, v encrypted_text('k'));
         INSERT INTO t (v) VALUES ('a')",
    );
    switch_provider(&mut session, "vault");
    assert_eq!(session.value::<i32>("SELECT enc_rotate_key('k')"), 2);
    session.run("INSERT INTO t (v) VALUES ('b')");
    assert_eq!(session.text(summary), "1filedeprecated 2vaultactive");
    assert_eq!(setup.connect().text(rows), "1a 2b");

    // Re-encrypted, the file is no longer needed for the column (but the database key is in it).
    session.run("UPDATE t SET v = enc_rotate(v) WHERE enc_key_version(v) < 2");
    assert_eq!(setup.connect().text(rows), "2a 2b");
    session.run("SELECT enc_disable_key_version('k', 1)");
    assert_eq!(setup.connect().text(rows), "2a 2b");
    session.run("SELECT enc_enable_key_version('k', 1)");

    // Back again, and forth.
    switch_provider(&mut session, "file");
    assert_eq!(session.value::<i32>("SELECT enc_rotate_key('k')"), 3);
    session.run("INSERT INTO t (v) VALUES ('c')");
    assert_eq!(setup.connect().text(rows), "2a 2b 3c");
    switch_provider(&mut session, "vault");
    assert_eq!(session.value::<i32>("SELECT enc_rotate_key('k')"), 4);
    session.run("UPDATE t SET v = enc_rotate(v)");
    assert_eq!(setup.connect().text(rows), "4a 4b 4c");
    assert_eq!(
        session.text(summary),
        "1filedeprecated 2vaultdeprecated 3filedeprecated 4vaultactive"
    );

    switch_provider(&mut session, "");
    session.fails("SELECT enc_rotate_key('k')", "KE060");
    session.fails("SELECT enc_create_key('another')", "KE060");
    assert_eq!(setup.connect().text(rows), "4a 4b 4c");
    session.run("SET encryption_ext.provider = 'cloud'");
    session.fails("SELECT enc_rotate_key('k')", "KE061");
}

/// Makes `name` the provider of new versions, as an administrator does, and waits until the session
/// has read the configuration.
fn switch_provider(session: &mut Client, name: &str) {
    session.run(&format!("ALTER SYSTEM SET encryption_ext.provider = '{name}'"));
    session.run("SELECT pg_reload_conf()");
    while session.text("SHOW encryption_ext.provider") != name {
        thread::sleep(Duration::from_millis(5));
    }
}

/// The number that a version has at its provider may be taken in the database.
#[test]
fn a_version_that_is_adopted_gets_the_next_number() {
    let test = "a_version_that_is_adopted_gets_the_next_number";
    let Some(setup) = Setup::new(test, OpenBao::start, READ_ONLY) else { return };
    let mut session = setup.connect();
    switch_provider(&mut session, "file");
    session.run(
        "SELECT enc_create_key('k'); CREATE TABLE t (v encrypted_text('k'));
         INSERT INTO t VALUES ('a')",
    );
    setup.server.kv_put("keys/k", TWO);
    switch_provider(&mut session, "vault");
    assert_eq!(session.value::<i32>("SELECT enc_rotate_key('k')"), 2);
    session.run("INSERT INTO t VALUES ('b')");
    setup.server.kv_put("keys/k", THREE);
    assert_eq!(session.value::<i32>("SELECT enc_rotate_key('k')"), 3);
    session.run("INSERT INTO t VALUES ('c')");
    let rows = "SELECT string_agg(enc_key_version(v) || v::text, ' ' ORDER BY v::text) FROM t";
    assert_eq!(setup.connect().text(rows), "1a 2b 3c");
    let references = "SELECT string_agg(reference, ' ' ORDER BY version) FROM enc_key_versions
                      WHERE name = 'k'";
    assert_eq!(session.text(references), "k:1 k?version=1 k?version=2");
}

#[test]
fn settings_are_the_administrators() {
    let test = "settings_are_the_administrators";
    let Some(setup) = Setup::with_key(test, OpenBao::start, READ_ONLY) else { return };
    let mut admin = setup.connect();
    admin.run(
        "CREATE ROLE bob LOGIN; GRANT SELECT ON t TO bob; SELECT enc_grant('k', 'bob', 'decrypt')",
    );
    let bob = || setup.cluster.connect("bob", DATABASE);
    let names = admin.texts("SELECT name FROM pg_settings WHERE name LIKE 'encryption_ext.%'");
    let names: Vec<String> = names.into_iter().flatten().collect();
    assert_eq!(names.len(), 63, "{names:?}");
    // What everybody may change: see `penetration`.
    let free = ["encryption_ext.input", "encryption_ext.on_denied", "encryption_ext.output"];
    let open = [
        "encryption_ext.audit",
        "encryption_ext.cache_capacity",
        "encryption_ext.cache_stale_grace",
        "encryption_ext.cache_ttl",
        "encryption_ext.default_key",
        "encryption_ext.provider",
        "encryption_ext.provider_connect_timeout",
        "encryption_ext.provider_timeout",
        "encryption_ext.shared_cache_size",
        "encryption_ext.warm_up",
    ];
    // What nobody may change in a session: it is the server's.
    let configured = ["encryption_ext.shared_cache_size", "encryption_ext.warm_up"];

    let mut session = bob();
    assert_eq!(session.text(READ), "first");
    for name in &names {
        if free.contains(&name.as_str()) {
            continue;
        }
        let sqlstate = if configured.contains(&name.as_str()) { "55P02" } else { "42501" };
        session.fails(&format!("SET {name} = 1"), sqlstate);
        if open.contains(&name.as_str()) {
            session.run(&format!("SHOW {name}"));
        } else {
            session.fails(&format!("SHOW {name}"), "42501");
            session.fails(&format!("SELECT current_setting('{name}')"), "42501");
        }
    }
    let visible = "SELECT name FROM pg_settings WHERE name LIKE 'encryption_ext.%' ORDER BY 1";
    let visible = session.texts(visible).into_iter().flatten();
    let visible: Vec<_> = visible.filter(|name| !free.contains(&name.as_str())).collect();
    assert_eq!(visible, open);
    session.fails("ALTER ROLE bob SET encryption_ext.provider = 'file'", "42501");
    session.fails("SET encryption_ext.misspelt = 1", "42602");

    // Before the library is loaded PostgreSQL takes any value for a setting that it doesn't know;
    // what a role may not set is dropped when it is loaded.
    let mut session = bob();
    for name in &names {
        session.run(&format!("SET {name} = 1"));
    }
    assert_eq!(session.text(READ), "first");
    assert_eq!(session.text("SHOW encryption_ext.provider"), "vault");
    assert_eq!(session.text("SHOW encryption_ext.cache_ttl"), "1h");
}

/// A session of a role that monitors.
fn monitor_of(setup: &Setup) -> Client {
    setup.connect().run("CREATE ROLE monitor LOGIN IN ROLE pg_monitor");
    setup.cluster.connect("monitor", DATABASE)
}

/// What `enc_health` says of the versions of `k` at the provider.
fn retention(monitor: &mut Client) -> String {
    monitor.text(
        "SELECT concat_ws(': ', status, detail) FROM enc_health() WHERE check_name = 'retention' AND subject = 'k'",
    )
}

#[test]
fn a_version_at_the_cost_of_one_that_is_needed_is_refused() {
    let test = "a_version_at_the_cost_of_one_that_is_needed_is_refused";
    let Some(mut setup) = Setup::new(test, OpenBao::start_with_tls, WRITING) else { return };
    setup.cluster.configure("shared_preload_libraries", "encryption_ext");
    setup.cluster.restart();
    let mut monitor = monitor_of(&setup);
    let limit = |max_versions: u32| {
        let body = json!({ "max_versions": max_versions });
        assert_eq!(setup.server.request("POST", "secret/metadata/keys/k", body).0, 204);
    };
    let at_vault = || {
        let answer = setup.server.request("GET", "secret/metadata/keys/k", Value::Null).1;
        let versions = answer["data"]["versions"].as_object().unwrap().keys().cloned();
        versions.collect::<Vec<_>>().join(" ")
    };
    let kept = "SELECT concat_ws(' of ', provider_versions, provider_max_versions) FROM enc_stat_key WHERE name = 'k'";

    // Before anybody has asked; of a new key, whose limit the mount or the default has; and of a lower one.
    let mut session = setup.connect();
    limit(3);
    session.run("SELECT enc_create_key('k')");
    assert_eq!(monitor.text(kept), "1 of 3");
    session.run(
        "CREATE TABLE t (id bigint GENERATED ALWAYS AS IDENTITY, v encrypted_text('k'));
         INSERT INTO t (v) VALUES ('first'); SELECT enc_rotate_key('k');
         INSERT INTO t (v) VALUES ('second'); SELECT enc_rotate_key('k');
         INSERT INTO t (v) VALUES ('third')",
    );
    assert_eq!(monitor.text(kept), "3 of 3");
    let full = "warning: the provider keeps 3 versions: 0 more can be made until it drops version 1, which is not destroyed";
    assert_eq!(retention(&mut monitor), full);

    // A fourth would drop the first. Nothing is written there, and nothing here.
    for rotate in ["SELECT enc_rotate_key('k')", "SELECT enc_rotate_key('k', activate => false)"] {
        let text = fails(&mut session, rotate, "KE019");
        let expected = "provider \"vault\" would drop version 1, which is not destroyed";
        assert!(text.contains(expected), "{text}");
        assert!(text.contains("vault kv metadata put -max-versions=1000 secret/keys/k"), "{text}");
    }
    assert_eq!(at_vault(), "1 2 3");
    let values = "SELECT string_agg(enc_key_version(v) || v::text, ' ' ORDER BY id) FROM t";
    assert_eq!(setup.connect().text(values), "1first 2second 3third");

    // One that is destroyed needn't be kept: the next one takes its place.
    session.run("CALL enc_rotate_all('k')");
    session.run("SELECT enc_verify_version_unused('k', 1, '1 second')");
    session.run("SELECT enc_destroy_key_version('k', 1, grace_period => '0')");
    assert_eq!(session.value::<i32>("SELECT enc_rotate_key('k')"), 4);
    assert_eq!(at_vault(), "2 3 4");
    assert_eq!(monitor.text(kept), "3 of 3");
    assert_eq!(retention(&mut monitor), full.replace("version 1,", "version 2,"));
    fails(&mut session, "SELECT enc_rotate_key('k')", "KE019");
    assert_eq!(setup.connect().text(values), "3first 3second 3third");

    // A raised limit is seen when the key is checked.
    limit(20);
    session.run("SELECT enc_check_key('k')");
    assert_eq!(monitor.text(kept), "3 of 20");
    let more = "ok: 17 more versions can be made until the provider drops version 2";
    assert_eq!(retention(&mut monitor), more);
    assert_eq!(session.value::<i32>("SELECT enc_rotate_key('k')"), 5);

    // An administrator who writes versions may have old ones dropped: it is told, and statements fail.
    limit(2);
    for key in [ONE, TWO] {
        setup.server.kv_put("keys/k", key);
    }
    assert_eq!(at_vault(), "6 7");
    assert_eq!(monitor.text("SELECT enc_ready()"), "t");
    assert_eq!(session.value::<i32>("SELECT enc_rotate_key('k')"), 7);
    let gone =
        "critical: the provider does not have version(s) 2, 3, 4, 5, which are not destroyed";
    assert_eq!(retention(&mut monitor), gone);
    let error = monitor.fails("SELECT enc_ready()", "KE141");
    assert!(error.detail().unwrap().contains("retention of k: the provider does not have"));
    let log = setup.cluster.log();
    let warning = "WARNING:  provider \"vault\" has dropped version 3 of key \"k\", which is not destroyed here";
    assert!(log.contains(warning));
}

#[test]
fn a_version_that_is_deleted_at_vault_is_told_when_somebody_has_asked() {
    let test = "a_version_that_is_deleted_at_vault_is_told_when_somebody_has_asked";
    let Some(setup) = Setup::with_key(test, OpenBao::start, READ_ONLY) else { return };
    setup.server.kv_put("keys/k", THREE);
    let mut session = setup.connect();
    session.run("SELECT enc_rotate_key('k')");
    assert_eq!(retention(&mut session), "ok: no limit is known to this session");
    let versions = json!({ "versions": [1] });
    assert_eq!(setup.server.request("POST", "secret/delete/keys/k", versions.clone()).0, 204);
    session.run("SELECT enc_flush_cache()");
    fails(&mut session, READ, "KE069");
    let gone = "critical: the provider does not have version(s) 1, which are not destroyed";
    assert_eq!(retention(&mut session), gone);
    // A version that is disabled stops nobody, for now.
    session.run("SELECT enc_disable_key_version('k', 1)");
    assert_eq!(retention(&mut session), gone.replace("critical", "warning"));
    assert_eq!(setup.server.request("POST", "secret/undelete/keys/k", versions).0, 204);
    session.run("SELECT enc_check_key('k')");
    assert_eq!(retention(&mut session), "ok: no limit is known to this session");
}

#[test]
fn where_the_limit_cannot_be_seen_the_default_is_assumed() {
    let test = "where_the_limit_cannot_be_seen_the_default_is_assumed";
    let policy = r#"path "secret/data/keys/*" { capabilities = ["read", "create", "update"] }"#;
    let Some(setup) = Setup::new(test, OpenBao::start, policy) else { return };
    let mut session = setup.connect();
    session.run("SELECT enc_create_key('k')");
    for _ in 0..9 {
        session.run("SELECT enc_rotate_key('k')");
    }
    let text = fails(&mut session, "SELECT enc_rotate_key('k')", "KE019");
    assert!(text.contains("may keep the newest 10 versions"), "{text}");
    assert!(
        text.contains("\"read\" on \"secret/metadata/keys/*\" and \"secret/config\""),
        "{text}"
    );
    let known = "SELECT num_nulls(provider_versions, provider_max_versions) FROM enc_stat_key WHERE name = 'k'";
    assert_eq!(session.value::<i32>(known), 2);
    // When it can be seen, nothing is assumed.
    setup.server.policy("keys", WRITING);
    let raised = json!({ "max_versions": 11 });
    assert_eq!(setup.server.request("POST", "secret/metadata/keys/k", raised).0, 204);
    assert_eq!(session.value::<i32>("SELECT enc_rotate_key('k')"), 11);
    fails(&mut session, "SELECT enc_rotate_key('k')", "KE019");
}
