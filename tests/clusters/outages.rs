//! What sessions do while a provider of keys is out of reach, and the providers that a file names.

use std::thread;
use std::time::{Duration, Instant};

use cluster_tests::Session;
use cluster_tests::key_server::{ONE, READ, READ_ONLY, Setup, THREE, TWO, WRITING, fails};
use harness::openbao::OpenBao;
use harness::proxy::{Fault, Proxy};
use postgres::Client;
use serde_json::json;

/// The warning that a key is used past its time.
const PAST_TIME: &str = "past its time to live";

fn took<T>(work: impl FnOnce() -> T) -> (Duration, T) {
    let started = Instant::now();
    let result = work();
    (started.elapsed(), result)
}

fn count_in_log(setup: &Setup, text: &str) -> usize {
    setup.cluster.log().matches(text).count()
}

/// A session whose keys expire after `time_to_live` seconds and are then used for `grace` more if
/// need be, and which has read a row.
fn session(setup: &Setup, time_to_live: u32, grace: u32) -> Client {
    let mut session = setup.connect();
    session.run(&format!(
        "SET encryption_ext.cache_ttl = {time_to_live};
         SET encryption_ext.cache_stale_grace = {grace}"
    ));
    assert_eq!(session.text(READ), "first");
    session
}

#[test]
fn ten_thousand_statements_outlive_the_server_within_the_grace() {
    let test = "ten_thousand_statements_outlive_the_server_within_the_grace";
    let Some(mut setup) = Setup::with_key(test, OpenBao::start_with_tls, READ_ONLY) else { return };
    let mut warm = session(&setup, 1, 30);
    let fetched = Instant::now();
    warm.run("INSERT INTO t (v) VALUES ('warm')");
    setup.server.stop();
    thread::sleep(Duration::from_millis(1500));

    let mut slowest = Duration::ZERO;
    for n in 0..5000 {
        let (insert, _) = took(|| warm.run("INSERT INTO t (v) VALUES ('without a server')"));
        let (read, _) = took(|| warm.run(READ));
        if n > 0 {
            slowest = slowest.max(insert).max(read);
        }
    }
    let done = fetched.elapsed();
    println!("10,000 statements until {done:?}, the slowest but the first {slowest:?}");
    assert!(done < Duration::from_secs(30), "the grace was over: the machine is too slow");
    assert_eq!(warm.text("SELECT count(v::text) FROM t"), "5002");
    assert_eq!(count_in_log(&setup, PAST_TIME), 1, "{}", setup.cluster.log());

    // After the grace the breaker is open, and the session is told at once.
    thread::sleep(
        (fetched + Duration::from_millis(31_500)).saturating_duration_since(Instant::now()),
    );
    for _ in 0..3 {
        let (time, text) = took(|| fails(&mut warm, READ, "KE080"));
        println!("after the grace: {time:?}: {text}");
        assert!(time < Duration::from_millis(10), "{time:?}");
        assert!(text.contains("could not reach Vault"), "{text}");
    }
    // The server is back: the thread that fetches keys notices, or the next trial does.
    setup.server.restart();
    let back = Instant::now();
    while warm.simple_query(READ).is_err() {
        assert!(back.elapsed() < Duration::from_secs(15), "the breaker doesn't close");
        thread::sleep(Duration::from_millis(100));
    }
    println!("closed after {:?}", back.elapsed());
}

#[test]
fn a_refusal_takes_effect_when_the_time_is_over() {
    let test = "a_refusal_takes_effect_when_the_time_is_over";
    let Some(setup) = Setup::with_key(test, OpenBao::start, READ_ONLY) else { return };

    // The policy is withdrawn, for a login that works.
    let mut denied = session(&setup, 2, 3600);
    setup.server.policy("keys", r#"path "secret/data/other" { capabilities = ["read"] }"#);
    assert_eq!(denied.text(READ), "first");
    thread::sleep(Duration::from_millis(2100));
    fails(&mut denied, READ, "KE067");
    setup.server.policy("keys", READ_ONLY);
    assert_eq!(denied.text(READ), "first");

    // The key is disabled at the provider.
    let mut gone = session(&setup, 2, 3600);
    assert_eq!(
        setup.server.request("POST", "secret/delete/keys/k", json!({ "versions": [1] })).0,
        204
    );
    assert_eq!(gone.text(READ), "first");
    thread::sleep(Duration::from_millis(2100));
    fails(&mut gone, READ, "KE069");

    // The answer is remembered for a few seconds.
    assert_eq!(
        setup.server.request("POST", "secret/undelete/keys/k", json!({ "versions": [1] })).0,
        204
    );
    fails(&mut gone, READ, "KE069");
    thread::sleep(Duration::from_millis(3100));
    assert_eq!(gone.text(READ), "first");

    // A token that was revoked is an outage, since it says nothing of the key.
    let mut revoked = session(&setup, 2, 3600);
    setup.server.revoke(std::fs::read_to_string(setup.file("token")).unwrap().trim());
    thread::sleep(Duration::from_millis(2100));
    assert_eq!(revoked.text(READ), "first");
    assert_eq!(count_in_log(&setup, PAST_TIME), 1);

    // So is one that is disabled here, and that at once.
    let mut disabled = setup.connect();
    setup.put_token(&setup.server.token(&["keys"], "1h"));
    assert_eq!(disabled.text(READ), "first");
    setup.connect().run("SELECT enc_disable_key_version('k', 1, force => true)");
    disabled.fails(READ, "KE008");
    revoked.fails(READ, "KE008");
}

#[test]
fn keys_in_use_are_fetched_again_while_the_session_is_idle() {
    let test = "keys_in_use_are_fetched_again_while_the_session_is_idle";
    let Some(setup) = Setup::with_key(test, OpenBao::start, READ_ONLY) else { return };
    let proxy = Proxy::start(setup.server.port());
    setup.cluster.configure("encryption_ext.vault_address", &proxy.address());
    setup.cluster.reload();
    let mut idle = setup.connect();
    while idle.text("SHOW encryption_ext.vault_address") != proxy.address() {
        thread::sleep(Duration::from_millis(5));
    }
    idle.run("SET encryption_ext.cache_ttl = 4");
    assert_eq!(idle.text(READ), "first");
    let fetched = Instant::now();
    let requests = proxy.connections();
    thread::sleep(Duration::from_millis(1000));
    assert_eq!(proxy.connections(), requests, "fetched before half of the time");
    thread::sleep(Duration::from_millis(2000));
    assert!(proxy.connections() > requests, "not fetched at half of the time");

    // The server stops answering; the key from half of the time outlives the first one's time.
    proxy.always(Fault::Silence);
    thread::sleep(
        (fetched + Duration::from_millis(4300)).saturating_duration_since(Instant::now()),
    );
    let (time, text) = took(|| idle.text(READ));
    println!("a statement after the time to live: {time:?}");
    assert_eq!(text, "first");
    assert!(time < Duration::from_millis(100), "{time:?}");
    assert_eq!(count_in_log(&setup, PAST_TIME), 0);

    // A session that does nothing bothers nobody for long.
    proxy.always(Fault::None);
    let mut forgotten = setup.connect();
    forgotten.run("SET encryption_ext.cache_ttl = 1");
    assert_eq!(forgotten.text(READ), "first");
    drop(idle);
    thread::sleep(Duration::from_secs(2));
    let requests = proxy.connections();
    thread::sleep(Duration::from_secs(3));
    assert_eq!(proxy.connections(), requests);
    assert_eq!(forgotten.text(READ), "first");
}

#[test]
fn a_provider_that_keeps_failing_is_left_alone() {
    let test = "a_provider_that_keeps_failing_is_left_alone";
    let Some(setup) = Setup::with_key(test, OpenBao::start, READ_ONLY) else { return };
    let proxy = Proxy::start(setup.server.port());
    proxy.always(Fault::Silence);
    let mut session = setup.connect();
    session.run(&format!(
        "SET encryption_ext.vault_address = '{}';
         SET encryption_ext.provider_timeout = 200",
        proxy.address()
    ));
    for _ in 0..5 {
        fails(&mut session, READ, "KE063");
    }
    let opened = Instant::now();
    let requests = proxy.connections();
    let mut times = Vec::new();
    for _ in 0..100 {
        let (time, text) = took(|| fails(&mut session, READ, "KE080"));
        times.push(time);
        assert!(text.contains("after 5 failures in a row"), "{text}");
    }
    assert_eq!(proxy.connections(), requests);
    // A busy machine may keep one of them waiting.
    times.sort();
    assert!(times[50] < Duration::from_millis(10), "{times:?}");

    // One trial after ten seconds, which fails; then one that succeeds.
    let wait_until = |at: Instant| thread::sleep(at.saturating_duration_since(Instant::now()));
    wait_until(opened + Duration::from_millis(10_100));
    fails(&mut session, READ, "KE063");
    let opened = Instant::now();
    fails(&mut session, READ, "KE080");
    proxy.always(Fault::None);
    fails(&mut session, READ, "KE080");
    wait_until(opened + Duration::from_millis(10_100));
    assert_eq!(session.text(READ), "first");
    // Or the administrator says so.
    proxy.always(Fault::Silence);
    session.run("SELECT enc_flush_cache()");
    for _ in 0..5 {
        fails(&mut session, READ, "KE063");
    }
    proxy.always(Fault::None);
    fails(&mut session, READ, "KE080");
    session.run("SELECT enc_flush_cache()");
    assert_eq!(session.text(READ), "first");
}

/// Two regions: the same keys, reached by each server through its own addresses.
#[test]
fn a_provider_file_names_providers_of_this_server() {
    let test = "a_provider_file_names_providers_of_this_server";
    let Some(setup) = Setup::new(test, OpenBao::start, WRITING) else { return };
    let Some(other) = OpenBao::start() else { return };
    other.policy("keys", READ_ONLY);
    let other_token = setup.write("other_token", &other.token(&["keys"], "1h"));
    let describe = |vault_eu: &OpenBao, token: &std::path::Path| {
        json!({
            "vault_eu": { "type": "vault", "address": vault_eu.address(), "token_file": token },
            "spare": { "type": "file", "path": "spare.json" },
        })
        .to_string()
    };
    let file = setup.write("providers.json", &describe(&setup.server, &setup.file("token")));
    let mut session = setup.connect();
    session.run("LOAD 'encryption_ext'");
    session.run(&format!("ALTER SYSTEM SET encryption_ext.provider_file = '{}'", file.display()));
    session.run("ALTER SYSTEM SET encryption_ext.provider = 'vault_eu'");
    session.run("SELECT pg_reload_conf()");
    while session.text("SHOW encryption_ext.provider") != "vault_eu" {
        thread::sleep(Duration::from_millis(5));
    }
    setup.server.kv_put("keys/database", ONE);
    setup.server.kv_put("keys/k", TWO);
    session.run(
        "SELECT enc_create_key('k');
         CREATE TABLE t (id bigint GENERATED ALWAYS AS IDENTITY, v encrypted_text('k'));
         INSERT INTO t (v) VALUES ('first')",
    );
    let versions = "SELECT string_agg(name || version || provider || reference, ' ' ORDER BY name)
                    FROM enc_key_versions";
    assert_eq!(session.text(versions), "database1vault_eudatabase?version=1 k1vault_euk?version=1");

    // The other region's server has the same keys.
    other.kv_put("keys/database", ONE);
    other.kv_put("keys/k", TWO);
    setup.write("providers.json", &describe(&other, &other_token));
    setup.server.seal();
    assert_eq!(setup.connect().text(READ), "first");
    // It has another key there: the check value decides.
    other.kv_put("keys/k", THREE);
    assert_eq!(other.request("DELETE", "secret/metadata/keys/k", json!(null)).0, 204);
    other.kv_put("keys/k", THREE);
    fails_with(&mut setup.connect(), "KE012", "vault_eu");
    setup.server.unseal();
    setup.write("providers.json", &describe(&setup.server, &setup.file("token")));
    assert_eq!(setup.connect().text(READ), "first");

    // On to another one in the file, and all that can be wrong with it.
    session.run("SET encryption_ext.provider = 'spare'");
    assert_eq!(session.value::<i32>("SELECT enc_rotate_key('k')"), 2);
    session.run("UPDATE t SET v = enc_rotate(v)");
    assert!(setup.cluster.data_directory().join("spare.json").exists());
    assert_eq!(setup.connect().text("SELECT enc_key_version(v) || v::text FROM t"), "2first");
    let good = std::fs::read_to_string(&file).unwrap();
    for (contents, complaint) in [
        ("{", "is not a JSON object"),
        ("{}", "is not configured here"),
        (r#"{"spare": {"type": "file", "pth": "spare.json"}}"#, "unknown field `pth`"),
        (r#"{"spare": {"type": "magic"}}"#, "whose type is none of"),
        (r#"{"vault": {"type": "vault"}, "spare": {"type": "file"}}"#, "the server's settings"),
    ] {
        setup.write("providers.json", contents);
        let text = fails_with(&mut setup.connect(), "KE061", "spare");
        assert!(text.contains(complaint), "{text}");
    }
    std::fs::remove_file(&file).unwrap();
    fails_with(&mut setup.connect(), "KE061", "spare");
    setup.write("providers.json", &good);
    assert_eq!(setup.connect().text(READ), "first");
}

#[track_caller]
fn fails_with(session: &mut Client, sqlstate: &str, provider: &str) -> String {
    let text = cluster_tests::texts_of(&session.fails(READ, sqlstate));
    assert!(text.contains(&format!("provider \"{provider}\"")), "{text}");
    text
}

#[test]
fn a_check_says_what_is_wrong() {
    let test = "a_check_says_what_is_wrong";
    let Some(setup) = Setup::with_key(test, OpenBao::start, READ_ONLY) else { return };
    let mut session = setup.connect();
    let report = |session: &mut Client| {
        let sql = "SELECT concat_ws(': ', what, ok, detail, hint) FROM enc_check_provider()";
        session.texts(sql).into_iter().flatten().collect::<Vec<_>>().join("\n")
    };
    let good = report(&mut session);
    println!("{good}");
    for line in
        ["login: t", "writing: t: not allowed", "version 1 of key \"k\": t: it is the right key"]
    {
        assert!(good.contains(line), "{good}");
    }
    assert!(!good.contains(": f: "), "{good}");
    for secret in [ONE, TWO, std::fs::read_to_string(setup.file("token")).unwrap().trim()] {
        assert!(!good.contains(secret));
    }

    setup.server.policy("keys", r#"path "secret/data/keys/database" { capabilities = ["read"] }"#);
    let denied = report(&mut session);
    assert!(
        denied.contains("version 1 of key \"k\": f: ") && denied.contains("capabilities"),
        "{denied}"
    );
    assert!(denied.contains("version 1 of key \"database\": t"), "{denied}");
    setup.server.seal();
    let sealed = report(&mut session);
    assert!(sealed.contains(": f: ") && sealed.contains("is sealed"), "{sealed}");
    setup.server.unseal();
    setup.server.policy("keys", READ_ONLY);
    assert!(!report(&mut session).contains(": f: "));

    // It is not for everyone.
    session.run("CREATE ROLE bob LOGIN");
    setup
        .cluster
        .connect("bob", cluster_tests::DATABASE)
        .fails("SELECT * FROM enc_check_provider()", "42501");
    session.run("GRANT EXECUTE ON FUNCTION enc_check_provider TO bob");
    setup.cluster.connect("bob", cluster_tests::DATABASE).run("SELECT * FROM enc_check_provider()");
}
