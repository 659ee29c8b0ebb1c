//! The provider `vault` against servers that are not Vault: they cut off, flood, redirect, stall and
//! talk nonsense. What they say is written here, and nothing else in these tests is made up.

#![expect(clippy::unwrap_used, reason = "a test fails by a panic")]

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use envelope::{DataKey, KeyName, KeyVersion};
use keyring::call::RequestLimits;
use keyring::provider::{Provider, ProviderError, ProviderErrorKind};
use keyring::vault::{VaultOptions, VaultProvider};
use keyring::version::{Keyspace, VersionId};
use tempfile::TempDir;

const TOKEN: &str = "hostile-test-token";
const KEY: &str = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=";

/// A server that does the same to every connection; its requests, as far as they were read.
struct Server {
    port: u16,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Server {
    /// `behave` gets the connection after a request's head was read, and the number of the request.
    fn start(behave: impl Fn(&mut TcpStream, usize) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&requests);
        let (behave, count) = (Arc::new(behave), Arc::new(AtomicUsize::new(0)));
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (log, behave, count) =
                    (Arc::clone(&log), Arc::clone(&behave), Arc::clone(&count));
                thread::spawn(move || {
                    let mut stream = stream.unwrap();
                    let mut head = Vec::new();
                    let mut byte = [0];
                    while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).unwrap_or(0) == 1 {
                        head.push(byte[0]);
                    }
                    log.lock().unwrap().push(String::from_utf8_lossy(&head).into_owned());
                    behave(&mut stream, count.fetch_add(1, Ordering::SeqCst));
                });
            }
        });
        Self { port, requests }
    }

    fn saying(answer: impl Into<Vec<u8>>) -> Self {
        let answer = answer.into();
        Self::start(move |stream, _| {
            let _ = stream.write_all(&answer);
        })
    }

    fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }

    /// Answers the first requests as they are listed, and the others as the last.
    fn saying_in_turn(answers: Vec<String>) -> Self {
        Self::start(move |stream, n| {
            let _ = stream.write_all(answers[n.min(answers.len() - 1)].as_bytes());
        })
    }

    fn provider(&self) -> (VaultProvider, TempDir) {
        provider(format!("http://127.0.0.1:{}", self.port), Duration::from_secs(1))
    }

    /// Opens with the time that is the default, in which all tries have room.
    fn open_patiently(&self) -> (Result<DataKey, ProviderError>, Duration) {
        let address = format!("http://127.0.0.1:{}", self.port);
        let (mut provider, _folder) = provider(address, RequestLimits::default().total);
        let start = Instant::now();
        (open(&mut provider), start.elapsed())
    }

    fn open(&self) -> Result<DataKey, ProviderError> {
        let (mut provider, _folder) = self.provider();
        open(&mut provider)
    }
}

fn provider(address: String, total: Duration) -> (VaultProvider, TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("token");
    fs::write(&file, TOKEN).unwrap();
    let options = VaultOptions {
        address,
        namespace: "team".to_owned(),
        token_file: file.to_str().unwrap().to_owned(),
        ..VaultOptions::default()
    };
    let limits = RequestLimits { total, ..RequestLimits::default() };
    (VaultProvider::new(&options, limits, Box::new(|| false)).unwrap(), folder)
}

fn open(provider: &mut VaultProvider) -> Result<DataKey, ProviderError> {
    let name = KeyName::parse("user_pii").unwrap();
    let id = VersionId { keyspace: Keyspace([7; 16]), name: &name, version: KeyVersion::FIRST };
    provider.open(&id, "user_pii?version=1", None)
}

fn answer(status: &str, body: &str) -> String {
    let len = body.len();
    format!("HTTP/1.1 {status}\r\nContent-Length: {len}\r\nConnection: close\r\n\r\n{body}")
}

fn secret(version: u32) -> String {
    answer(
        "200 OK",
        &format!(r#"{{"data":{{"data":{{"key":"{KEY}"}},"metadata":{{"version":{version}}}}}}}"#),
    )
}

#[track_caller]
fn fails(result: Result<DataKey, ProviderError>, kind: ProviderErrorKind) -> String {
    let error = result.unwrap_err();
    let text = format!("{error} / {}", error.hint.as_deref().unwrap_or_default());
    assert_eq!(error.kind, kind, "{text}");
    for secret in [TOKEN, KEY, "AQEB", "hunter2"] {
        assert!(!text.contains(secret), "{text}");
    }
    text
}

#[test]
fn a_request_is_what_vault_expects() {
    let server = Server::saying(secret(1));
    assert_eq!(server.open().unwrap().expose(), &[1; 32]);
    let request = server.requests().remove(0);
    assert!(request.starts_with("GET /v1/secret/data/keys/user_pii?version=1 HTTP/1.1\r\n"));
    let has = |header: &str| request.to_lowercase().contains(&format!("\r\n{header}\r\n"));
    assert!(has(&format!("x-vault-token: {TOKEN}")), "{request}");
    assert!(has("x-vault-namespace: team"), "{request}");
    assert!(has(&format!("user-agent: encryption_ext/{}", env!("CARGO_PKG_VERSION"))), "{request}");
}

#[test]
fn nonsense_is_refused_and_not_shown() {
    for nonsense in [
        answer("200 OK", ""),
        answer("200 OK", "hunter2"),
        answer("200 OK", r#"{"hunter2":"#),
        answer("200 OK", "{}"),
        answer("200 OK", r#"{"data":{"key":"hunter2"}}"#),
        answer("200 OK", r#"{"data":{"data":{"key":"hunter2"},"metadata":{"version":"hunter2"}}}"#),
        answer("204 No Content", ""),
        answer("404 Not Found", "<html>hunter2</html>"),
        answer("400 Bad Request", r#"{"errors":["hunter2"]}"#),
        answer("418 hunter2", "hunter2"),
        answer("302 Found\r\nLocation: https://hunter2.example/", ""),
        "hunter2 hunter2\r\n\r\n".to_owned(),
        "HTTP/1.1 hunter2\r\n\r\n".to_owned(),
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nhunter2\r\n".to_owned(),
        format!("HTTP/1.1 200 OK\r\nX: {}\r\n\r\n", "hunter2".repeat(100_000)),
    ] {
        let start = Instant::now();
        let server = Server::saying(nonsense.clone());
        let result = server.open();
        let kind = result.as_ref().err().map(|e| e.kind);
        println!("{:?}: {kind:?}", &nonsense[..nonsense.len().min(60)]);
        fails(result, ProviderErrorKind::AnswerInvalid);
        assert!(start.elapsed() < Duration::from_millis(1500));
    }
    let mut bytes = vec![0_u8; 100_000];
    let mut state = 1_u32;
    for byte in &mut bytes {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        *byte = state.to_be_bytes()[0];
    }
    fails(Server::saying(bytes).open(), ProviderErrorKind::AnswerInvalid);
    // Another version than it was asked for.
    fails(Server::saying(secret(2)).open(), ProviderErrorKind::AnswerInvalid);
}

#[test]
fn statuses_say_whether_it_is_an_outage() {
    for (status, body, kind, is_tried_again) in [
        ("429 Too Many", "hunter2", ProviderErrorKind::Throttled, true),
        ("472 Standby", "", ProviderErrorKind::Unreachable, true),
        ("473 Standby", "", ProviderErrorKind::Unreachable, true),
        ("500 Error", r#"{"errors":["hunter2"]}"#, ProviderErrorKind::Unreachable, true),
        ("502 Bad Gateway", "<html>", ProviderErrorKind::Unreachable, true),
        ("503 Unavailable", "", ProviderErrorKind::Unreachable, true),
        ("503 Unavailable", r#"{"errors":["Vault is sealed"]}"#, ProviderErrorKind::Sealed, false),
        ("403 Forbidden", "", ProviderErrorKind::LoginFailed, false),
    ] {
        let server = Server::saying(answer(status, body));
        let (result, took) = server.open_patiently();
        println!("{status}: {took:?}");
        fails(result, kind);
        assert!(kind.is_outage());
        match is_tried_again {
            // Pauses of 0.1 to 0.2, 0.2 to 0.4 and 0.4 to 0.8 seconds.
            true => {
                assert_eq!(server.requests().len(), 4, "{status}");
                assert!((700..1800).contains(&took.as_millis()), "{status}: {took:?}");
            }
            // After a denial, a look at the token.
            false => {
                assert_eq!(server.requests().len(), if status.starts_with("403") { 2 } else { 1 });
                assert!(took < Duration::from_millis(100), "{status}: {took:?}");
            }
        }
    }
}

#[test]
fn tries_end_before_the_deadline() {
    let server = Server::saying(answer("503 Unavailable", ""));
    let start = Instant::now();
    fails(server.open(), ProviderErrorKind::Unreachable);
    let took = start.elapsed();
    // The third pause, of 0.4 to 0.8 seconds after 0.3 to 0.6, may not fit into the one second.
    assert!((300..1050).contains(&took.as_millis()), "{took:?}");
    assert!((3..=4).contains(&server.requests().len()));
}

#[test]
fn a_burst_of_errors_passes_unseen() {
    for status in ["429 Too Many", "472 Standby", "500 Error", "503 Unavailable"] {
        let server = Server::saying_in_turn(vec![
            answer(status, ""),
            answer(status, ""),
            answer(status, ""),
            secret(1),
        ]);
        let (result, took) = server.open_patiently();
        assert_eq!(result.unwrap().expose(), &[1; 32]);
        assert_eq!(server.requests().len(), 4);
        println!("three times {status}: {took:?}");
        assert!((700..1800).contains(&took.as_millis()), "{took:?}");
    }
    // Cut, and closed without an answer.
    let server = Server::saying_in_turn(vec![secret(1)[..40].to_owned(), String::new(), secret(1)]);
    let (result, took) = server.open_patiently();
    assert_eq!(result.unwrap().expose(), &[1; 32]);
    assert!((300..800).contains(&took.as_millis()), "{took:?}");
}

#[test]
fn a_server_that_starts_meanwhile_is_waited_for() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let (mut provider, _folder) =
        provider(format!("http://127.0.0.1:{port}"), Duration::from_secs(5));
    let server = thread::spawn(move || {
        thread::sleep(Duration::from_millis(250));
        let listener = TcpListener::bind(("127.0.0.1", port)).unwrap();
        let (mut stream, _) = listener.accept().unwrap();
        let _ = stream.read(&mut [0; 4096]).unwrap();
        stream.write_all(secret(1).as_bytes()).unwrap();
    });
    let start = Instant::now();
    assert_eq!(open(&mut provider).unwrap().expose(), &[1; 32]);
    println!("refused for 250 ms: {:?}", start.elapsed());
    assert!((250..1000).contains(&start.elapsed().as_millis()));
    server.join().unwrap();
}

/// A pause between two tries is a wait like any other.
#[test]
fn a_cancel_ends_a_pause_between_tries() {
    let server = Server::saying(answer("503 Unavailable", ""));
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("token");
    fs::write(&file, TOKEN).unwrap();
    let options = VaultOptions {
        address: format!("http://127.0.0.1:{}", server.port),
        token_file: file.to_str().unwrap().to_owned(),
        ..VaultOptions::default()
    };
    let start = Instant::now();
    let cancel_at = start + Duration::from_millis(450);
    let interrupt = Box::new(move || Instant::now() >= cancel_at);
    let mut vault = VaultProvider::new(&options, RequestLimits::default(), interrupt).unwrap();
    fails(open(&mut vault), ProviderErrorKind::Interrupted);
    assert!((450..550).contains(&start.elapsed().as_millis()), "{:?}", start.elapsed());
}

#[test]
fn a_flood_is_cut_off() {
    const FLOOD: usize = 100 << 20;
    for head in [
        format!("HTTP/1.1 200 OK\r\nContent-Length: {FLOOD}\r\n\r\n"),
        "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n".to_owned(),
    ] {
        let sent = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&sent);
        let server = Server::start(move |stream, _| {
            let _ = stream.write_all(head.as_bytes());
            let chunk = vec![b' '; 1 << 16];
            while count.load(Ordering::SeqCst) < FLOOD && stream.write_all(&chunk).is_ok() {
                count.fetch_add(chunk.len(), Ordering::SeqCst);
            }
        });
        let start = Instant::now();
        let text = fails(server.open(), ProviderErrorKind::AnswerInvalid);
        println!("100 MB: {:?} after {} bytes", start.elapsed(), sent.load(Ordering::SeqCst));
        assert!(text.contains("1 MiB"), "{text}");
        assert!(start.elapsed() < Duration::from_secs(1));
        assert!(sent.load(Ordering::SeqCst) < FLOOD / 4);
    }
}

#[test]
fn half_an_answer_is_none() {
    let whole = secret(1);
    for len in [0, 1, 10, whole.len() / 2, whole.len() - 1] {
        let result = Server::saying(&whole.as_bytes()[..len]).open();
        println!("{len} bytes: {:?}", result.as_ref().err().map(|e| e.kind));
        fails(result, ProviderErrorKind::Unreachable);
    }
}

#[test]
fn an_answer_that_never_ends_ends_at_the_deadline() {
    for pause in [None, Some(Duration::from_millis(100))] {
        let server = Server::start(move |stream, _| {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{");
            // Silence, or one byte now and then.
            loop {
                thread::sleep(pause.unwrap_or(Duration::from_secs(30)));
                if stream.write_all(b" ").is_err() {
                    return;
                }
            }
        });
        let start = Instant::now();
        fails(server.open(), ProviderErrorKind::TimedOut);
        let took = start.elapsed();
        assert!((900..1200).contains(&took.as_millis()), "{took:?}");
    }
}

#[test]
fn redirects_are_followed_to_the_same_path_alone() {
    let target = Server::saying(secret(1));
    let redirect = |location: String| {
        Server::saying(answer(&format!("307 Temporary Redirect\r\nLocation: {location}"), ""))
    };
    let path = "/v1/secret/data/keys/user_pii?version=1";
    let good = redirect(format!("http://127.0.0.1:{}{path}", target.port));
    assert_eq!(good.open().unwrap().expose(), &[1; 32]);
    assert!(target.requests()[0].contains(TOKEN));

    for location in [
        format!("http://127.0.0.1:{}/v1/secret/data/keys/other", target.port),
        format!("http://x@127.0.0.1:{}{path}", target.port),
        format!("http://0.0.0.0:{}{path}", target.port),
        path.to_owned(),
    ] {
        fails(redirect(location).open(), ProviderErrorKind::AnswerInvalid);
    }
    assert_eq!(target.requests().len(), 1);

    // A server that redirects to itself for ever.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let circle = redirect(format!("http://127.0.0.1:{port}{path}"));
    fails(circle.open(), ProviderErrorKind::Unreachable);
    let own = Arc::new(AtomicUsize::new(0));
    let known = Arc::clone(&own);
    let circle = Server::start(move |stream, _| {
        let location = format!("http://127.0.0.1:{}{path}", known.load(Ordering::SeqCst));
        let answer = answer(&format!("307 Temporary Redirect\r\nLocation: {location}"), "");
        let _ = stream.write_all(answer.as_bytes());
    });
    own.store(usize::from(circle.port), Ordering::SeqCst);
    fails(circle.open(), ProviderErrorKind::AnswerInvalid);
    assert_eq!(circle.requests().len(), 3);
}

#[test]
fn a_name_that_does_not_resolve_is_an_outage() {
    let (mut provider, _folder) =
        provider("https://vault.invalid:8200".to_owned(), Duration::from_secs(1));
    let start = Instant::now();
    let error = open(&mut provider).unwrap_err();
    println!("{error} after {:?}", start.elapsed());
    assert!(error.kind.is_outage(), "{error:?}");
    assert!(start.elapsed() < Duration::from_millis(1200));
}

/// A cluster that changes its leader says 500 or 400, then 404 for what exists, then answers.
#[test]
fn a_404_after_an_error_is_asked_again() {
    let missing = || answer("404 Not Found", r#"{"errors":[]}"#);
    let no_leader = || answer("500 Internal Server Error", r#"{"errors":["no leader"]}"#);
    let setting_up = || {
        let why = "Upgrading from non-versioned to versioned data. This backend will be unavailable \
                   for a brief period and will resume service shortly.";
        answer("400 Bad Request", &format!(r#"{{"errors":["{why}"]}}"#))
    };
    for error in [no_leader(), setting_up()] {
        let server = Server::saying_in_turn(vec![error, missing(), missing(), secret(1)]);
        let (result, took) = server.open_patiently();
        assert_eq!(result.unwrap().expose(), &[1; 32]);
        // 0.1 to 0.2 seconds after the error, and half a second after each 404.
        assert!((1100..1500).contains(&took.as_millis()), "{took:?}");
        assert_eq!(server.requests().len(), 4);
    }

    // It is believed when the error is three seconds old.
    let server = Server::saying_in_turn(vec![no_leader(), missing()]);
    let (result, took) = server.open_patiently();
    println!("a 404 after an error is believed after {took:?}");
    fails(result, ProviderErrorKind::KeyMissing);
    assert!((3000..4000).contains(&took.as_millis()), "{took:?}");
    // With less time than that, it is not.
    let server = Server::saying_in_turn(vec![no_leader(), missing()]);
    let start = Instant::now();
    fails(server.open(), ProviderErrorKind::TimedOut);
    assert!((900..1200).contains(&start.elapsed().as_millis()), "{:?}", start.elapsed());

    // The error was in an earlier call.
    let server = Server::saying_in_turn(vec![
        no_leader(),
        no_leader(),
        no_leader(),
        no_leader(),
        missing(),
        secret(1),
    ]);
    let (mut provider, _folder) =
        provider(format!("http://127.0.0.1:{}", server.port), Duration::from_secs(5));
    fails(open(&mut provider), ProviderErrorKind::Unreachable);
    let start = Instant::now();
    assert_eq!(open(&mut provider).unwrap().expose(), &[1; 32]);
    let took = start.elapsed();
    assert!((450..900).contains(&took.as_millis()), "{took:?}");
    assert_eq!(server.requests().len(), 6);

    // Without an error before it, it is believed at once (after a look whether the key is there).
    let server = Server::saying(missing());
    let start = Instant::now();
    fails(server.open(), ProviderErrorKind::KeyMissing);
    assert!(start.elapsed() < Duration::from_millis(450));
    assert_eq!(server.requests().len(), 2);
}
