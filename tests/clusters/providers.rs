//! Columns whose keys come from several providers, one after the other, and keys that are wrapped
//! again.

use std::thread;
use std::time::Duration;

use cluster_tests::Session;
use cluster_tests::key_server::{Setup, WRITING, fails};
use harness::moto::Moto;
use harness::openbao::OpenBao;
use postgres::Client;
use serde_json::{Value, json};

const REGION: &str = "eu-central-1";

/// Makes `name` the provider of new versions, as an administrator does.
fn switch_provider(setup: &Setup, session: &mut Client, name: &str) {
    setup.cluster.configure("encryption_ext.provider", name);
    setup.cluster.reload();
    while session.text("SHOW encryption_ext.provider") != name {
        thread::sleep(Duration::from_millis(5));
    }
    let wrong = "SELECT count(*) FROM enc_check_provider() WHERE NOT ok";
    assert_eq!(session.text(wrong), "0");
}

/// Each row's version and plaintext, as a session sees them that has no key yet.
fn rows(setup: &Setup) -> String {
    setup.connect().text("SELECT string_agg(enc_key_version(v) || v::text, ' ' ORDER BY id) FROM t")
}

fn providers(session: &mut Client) -> String {
    session.text(
        "SELECT string_agg(version || provider || ' ' || state, ', ' ORDER BY version)
           FROM enc_key_versions WHERE name = 'k'",
    )
}

fn reencrypt(session: &mut Client) {
    session.run("UPDATE t SET v = enc_rotate(v)");
}

#[test]
fn a_column_moves_from_a_file_to_vault_to_aws_kms_and_back() {
    let test = "a_column_moves_from_a_file_to_vault_to_aws_kms_and_back";
    let Some(moto) = Moto::start() else {
        harness::skip(test, "moto could not be had");
        return;
    };
    let Some(setup) = Setup::new(test, OpenBao::start, WRITING) else { return };
    let credentials = "[default]\naws_access_key_id = AKIAIOSFODNN7EXAMPLE\n\
                       aws_secret_access_key = hunter2/hunter2\n";
    setup.is_secret("hunter2/hunter2");
    setup.configure_file("aws_kms_credentials_file", &setup.write("credentials", credentials));
    setup.cluster.configure("encryption_ext.aws_kms_endpoint", &moto.address());
    setup.cluster.configure("encryption_ext.aws_kms_region", REGION);
    setup.cluster.configure("encryption_ext.aws_kms_key_id", &moto.create_key(REGION, false));

    let mut session = setup.connect();
    switch_provider(&setup, &mut session, "file");
    session.run(
        "SELECT enc_create_key('k');
         CREATE TABLE t (id bigint GENERATED ALWAYS AS IDENTITY, v encrypted_text('k'));
         INSERT INTO t (v) VALUES ('a')",
    );
    let mut number = 1;
    for (provider, value) in [("vault", "b"), ("aws_kms", "c"), ("vault", "d"), ("file", "e")] {
        switch_provider(&setup, &mut session, provider);
        number += 1;
        for key in ["k", "database"] {
            let rotated: i32 = session.value(&format!("SELECT enc_rotate_key('{key}')"));
            assert_eq!(rotated, number);
        }
        session.run(&format!("INSERT INTO t (v) VALUES ('{value}')"));
        if number == 3 {
            // All three are read side by side.
            assert_eq!(rows(&setup), "1a 2b 3c");
            assert_eq!(
                providers(&mut session),
                "1file deprecated, 2vault deprecated, 3aws_kms active"
            );
        }
    }
    assert_eq!(rows(&setup), "1a 2b 3c 4d 5e");

    // Re-encrypted, nothing needs the old ones.
    reencrypt(&mut session);
    for version in 1..5 {
        session.run(&format!("SELECT enc_disable_key_version('k', {version})"));
    }
    assert_eq!(rows(&setup), "5a 5b 5c 5d 5e");
    assert_eq!(
        providers(&mut session),
        "1file disabled, 2vault disabled, 3aws_kms disabled, 4vault disabled, 5file active"
    );
    // And back, as long as they are there.
    session.run("SELECT enc_enable_key_version('k', 3), enc_activate_key_version('k', 3)");
    reencrypt(&mut session);
    assert_eq!(rows(&setup), "3a 3b 3c 3d 3e");
}

#[test]
fn keys_are_wrapped_again_without_touching_a_value() {
    let test = "keys_are_wrapped_again_without_touching_a_value";
    let policy = r#"
        path "transit/datakey/plaintext/+" { capabilities = ["update"] }
        path "transit/encrypt/+" { capabilities = ["update"] }
        path "transit/decrypt/+" { capabilities = ["update"] }
        path "transit/rewrap/+" { capabilities = ["update"] }
        path "transit/keys/+" { capabilities = ["read"] }"#;
    let Some(setup) = Setup::new(test, OpenBao::start, policy) else { return };
    let ask = |method: &str, path: &str, body: Value| {
        let (status, answer) = setup.server.request(method, path, body);
        assert!(matches!(status, 200 | 204), "{method} {path}: {status} {answer}");
    };
    ask("POST", "sys/mounts/transit", json!({ "type": "transit" }));
    for key in ["first", "second"] {
        ask("POST", &format!("transit/keys/{key}"), json!({ "type": "aes256-gcm96" }));
    }
    setup.cluster.configure("encryption_ext.vault_transit_key", "first");
    let mut session = setup.connect();
    switch_provider(&setup, &mut session, "vault_transit");
    session.run(
        "SELECT enc_create_key('k');
         CREATE TABLE t (id bigint GENERATED ALWAYS AS IDENTITY, v encrypted_text('k'));
         INSERT INTO t (v) VALUES ('a'); SELECT enc_rotate_key('k');
         INSERT INTO t (v) VALUES ('b')",
    );
    assert_eq!(rows(&setup), "1a 2b");
    let files = "SELECT pg_relation_filenode('t') || ' ' || md5(string_agg(v::bytea::text, ' ' ORDER BY id))
                 FROM t";
    let before = session.text(files);

    // The key encryption key is rotated, and its old version retired.
    ask("POST", "transit/keys/first/rotate", json!({}));
    assert_eq!(session.value::<i32>("SELECT enc_rewrap_key('k')"), 2);
    assert_eq!(session.value::<i32>("SELECT enc_rewrap_key('database')"), 1);
    ask("POST", "transit/keys/first/config", json!({ "min_decryption_version": 2 }));
    assert_eq!(rows(&setup), "1a 2b");
    let (wrapped, events) = (
        "SELECT string_agg(DISTINCT split_part(convert_from(wrapped, 'UTF8'), ':', 2), ' ')
           FROM encryption.key_version",
        "SELECT count(*) FROM encryption.key_event WHERE action = 'rewrap'",
    );
    assert_eq!(session.text(wrapped), "v2");
    assert_eq!(session.text(events), "3");

    // One that was not wrapped again in time is told, and its old wrapping is kept.
    session.run("SELECT enc_rotate_key('k')");
    ask("POST", "transit/keys/first/rotate", json!({}));
    session.run("BEGIN; SELECT enc_rewrap_key('k'); ROLLBACK");
    assert_eq!(session.text(wrapped), "v2");
    ask("POST", "transit/keys/first/config", json!({ "min_decryption_version": 3 }));
    let error = setup.connect().simple_query("SELECT v FROM t").unwrap_err();
    let code = error.as_db_error().unwrap().code().code().to_owned();
    assert!(["KE067", "KE069"].contains(&code.as_str()), "{error:?}");
    fails(&mut session, "SELECT enc_rewrap_key('k')", &code);
    ask("POST", "transit/keys/first/config", json!({ "min_decryption_version": 2 }));
    assert_eq!(rows(&setup), "1a 2b");

    // Another key encryption key.
    setup.cluster.configure("encryption_ext.vault_transit_key", "second");
    setup.cluster.reload();
    while session.text("SHOW encryption_ext.vault_transit_key") != "second" {
        thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(rows(&setup), "1a 2b");
    assert_eq!(session.value::<i32>("SELECT enc_rewrap_key('k')"), 3);
    assert_eq!(session.value::<i32>("SELECT enc_rewrap_key('database')"), 1);
    ask("POST", "transit/keys/first/config", json!({ "deletion_allowed": true }));
    ask("DELETE", "transit/keys/first", Value::Null);
    assert_eq!(rows(&setup), "1a 2b");
    assert_eq!(session.text(files), before);

    // It is for the key's owner.
    session.run("CREATE ROLE bob LOGIN");
    let mut bob = setup.cluster.connect("bob", cluster_tests::DATABASE);
    bob.fails("SELECT enc_rewrap_key('k')", "KE021");
    session.fails("SELECT enc_rewrap_key('nonesuch')", "KE003");
}
