//! Everything that can happen to a key server, and how long a statement takes to fail or succeed
//! meanwhile: of a session that has no keys, and of one whose keys have expired and are in their grace.

#![expect(clippy::unwrap_used, reason = "a test fails by a panic")]

use std::fmt::Write as _;
use std::io::Write as _;
use std::thread;
use std::time::{Duration, Instant};

use cluster_tests::Session;
use cluster_tests::key_server::{READ, READ_ONLY, Setup, fails};
use harness::openbao::{OpenBao, unrelated_authority};
use harness::proxy::{Fault, Proxy, expired_certificate};
use postgres::Client;

/// `encryption_ext.provider_timeout` here.
const TIMEOUT: Duration = Duration::from_secs(2);

/// What the machine may add, having two cores and other tests to run.
const SLACK: Duration = Duration::from_millis(700);

/// The pauses between four tries, when each takes the longest.
const RETRIES: Duration = Duration::from_millis(1400);

/// What is expected of a session without keys.
enum Expected {
    /// The statement succeeds, within this time.
    Succeeds(Duration),
    /// It fails with this SQLSTATE, within this time.
    Fails(&'static str, Duration),
}

use Expected::{Fails, Succeeds};

struct Table {
    rows: String,
}

impl Table {
    /// A session with `settings` reads a row. Then so does a session whose key has expired, if the
    /// fault is an outage.
    fn row(&mut self, setup: &Setup, fault: &str, settings: &str, expected: &Expected) {
        let mut session = setup.connect();
        session.run(settings);
        let started = Instant::now();
        let outcome = match expected {
            Succeeds(_) => {
                assert_eq!(session.text(READ), "first", "{fault}");
                "succeeds".to_owned()
            }
            Fails(sqlstate, _) => {
                let text = fails(&mut session, READ, sqlstate);
                format!("{sqlstate} {}", text.lines().next().unwrap_or_default())
            }
        };
        let took = started.elapsed();
        let (Succeeds(limit) | Fails(_, limit)) = expected;
        assert!(took < *limit + SLACK, "{fault}: {took:?}");
        writeln!(self.rows, "{fault:<44} {:>7.0} ms  {outcome}", took.as_secs_f64() * 1e3).unwrap();
    }

    /// Sessions that had read a row before: their keys expire, and are used all the same.
    fn within_the_grace(&mut self, fault: &str, mut session: Client) {
        let started = Instant::now();
        assert_eq!(session.text(READ), "first", "{fault}");
        let first = started.elapsed();
        let started = Instant::now();
        for _ in 0..100 {
            assert_eq!(session.text(READ), "first", "{fault}");
        }
        let others = started.elapsed() / 100;
        assert!(first < TIMEOUT + SLACK && others < Duration::from_millis(20), "{fault}");
        writeln!(
            self.rows,
            "{:<44} {:>7.0} ms  succeeds with an expired key; {:.1} ms each of 100 more",
            format!("  {fault}, within the grace"),
            first.as_secs_f64() * 1e3,
            others.as_secs_f64() * 1e3
        )
        .unwrap();
    }
}

/// A session with `settings` whose keys have just expired.
fn expired(setup: &Setup, settings: &str) -> Client {
    let mut session = setup.connect();
    session.run(settings);
    // Too short for the thread that fetches ahead: the fault comes within it.
    session.run("SET encryption_ext.cache_ttl = 1");
    assert_eq!(session.text(READ), "first");
    session
}

fn wait_until_expired() {
    thread::sleep(Duration::from_millis(1200));
}

#[test]
fn statements_end_in_time_whatever_the_key_server_does() {
    let test = "statements_end_in_time_whatever_the_key_server_does";
    let Some(mut setup) = Setup::with_key(test, OpenBao::start_with_tls, READ_ONLY) else { return };
    let Some(plain) = Setup::with_key(test, OpenBao::start, READ_ONLY) else { return };
    let mut table = Table { rows: String::new() };
    let limits = format!(
        "SET encryption_ext.provider_timeout = {}; SET encryption_ext.provider_connect_timeout = 500;",
        TIMEOUT.as_millis()
    );

    // What happens to the server itself.
    let quick = Duration::from_millis(300);
    table.row(&setup, "nothing", &limits, &Succeeds(quick));

    let session = expired(&setup, &limits);
    setup.server.pause();
    table.row(&setup, "server paused (SIGSTOP)", &limits, &Fails("KE063", TIMEOUT));
    wait_until_expired();
    table.within_the_grace("server paused", session);
    setup.server.resume();
    table.row(&setup, "server resumed", &limits, &Succeeds(quick));

    let session = expired(&setup, &limits);
    setup.server.seal();
    table.row(&setup, "server sealed", &limits, &Fails("KE064", quick));
    wait_until_expired();
    table.within_the_grace("server sealed", session);
    setup.server.unseal();

    let session = expired(&setup, &limits);
    setup.server.stop();
    table.row(&setup, "server killed", &limits, &Fails("KE062", RETRIES));
    wait_until_expired();
    table.within_the_grace("server killed", session);
    setup.server.restart();
    table.row(&setup, "server restarted", &limits, &Succeeds(quick));

    let session = expired(&setup, &limits);
    setup.server.revoke(std::fs::read_to_string(setup.file("token")).unwrap().trim());
    table.row(&setup, "token revoked", &limits, &Fails("KE066", quick));
    wait_until_expired();
    table.within_the_grace("token revoked", session);
    setup.put_token(&setup.server.token(&["keys"], "1h"));
    table.row(&setup, "token replaced", &limits, &Succeeds(quick));

    // Who it is.
    let other = setup.write("other_ca.pem", &unrelated_authority());
    let settings = format!("{limits} SET encryption_ext.vault_ca_file = '{}'", other.display());
    table.row(&setup, "certificate of another authority", &settings, &Fails("KE062", quick));
    let (address, authority) = expired_certificate();
    let authority = setup.write("expired_ca.pem", &authority);
    let settings = format!(
        "{limits} SET encryption_ext.vault_address = '{address}';
         SET encryption_ext.vault_ca_file = '{}'",
        authority.display()
    );
    table.row(&setup, "certificate expired", &settings, &Fails("KE062", quick));
    let settings =
        format!("{limits} SET encryption_ext.vault_address = 'https://no-such-host.invalid:8200'");
    table.row(&setup, "host name not known", &settings, &Fails("KE062", TIMEOUT));

    // What comes of its answers.
    let proxy = Proxy::start(plain.server.port());
    let limits = format!("{limits} SET encryption_ext.vault_address = '{}'", proxy.address());
    for (fault, count, name) in [
        (Fault::Status(429), 3, "429, three times"),
        (Fault::Status(503), 3, "503, three times"),
        (Fault::Status(473), 1, "473 (standby), once"),
        (Fault::Cut, 2, "cut in the middle of an answer, twice"),
        (Fault::Close, 1, "closed without an answer, once"),
    ] {
        proxy.times(count, fault);
        table.row(&plain, name, &limits, &Succeeds(RETRIES));
    }
    for (fault, name, expected) in [
        (Fault::Status(429), "429, always", Fails("KE065", RETRIES)),
        (Fault::Status(503), "503, always", Fails("KE062", RETRIES)),
        (Fault::Cut, "cut in the middle of an answer, always", Fails("KE062", RETRIES)),
        (Fault::Silence, "no answer", Fails("KE063", TIMEOUT)),
        (Fault::Flood(100 << 20), "an answer of 100 MiB", Fails("KE071", TIMEOUT)),
        (Fault::Garbage, "an answer that is not HTTP", Fails("KE071", quick)),
        (Fault::Html, "an answer that is not JSON", Fails("KE071", quick)),
    ] {
        proxy.always(Fault::None);
        let session = expired(&plain, &limits);
        proxy.always(fault.clone());
        table.row(&plain, name, &limits, &expected);
        if matches!(expected, Fails("KE062" | "KE063" | "KE065", _)) {
            wait_until_expired();
            table.within_the_grace(name, session);
        }
    }

    // Not by print!, which the test harness keeps to itself when all is well.
    let mut out = std::io::stdout().lock();
    writeln!(out, "\nprovider_timeout = {TIMEOUT:?}\n{}", table.rows).unwrap();
    for log in [setup.cluster.log(), plain.cluster.log()] {
        assert!(!log.contains("was terminated by signal"), "a backend crashed");
    }
}
