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
use keyring::vault::{VaultAuth, VaultOptions, VaultProvider, VaultSettings};
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

    fn provider(&self) -> (VaultProvider, TempDir) {
        provider(format!("http://127.0.0.1:{}", self.port))
    }

    fn open(&self) -> Result<DataKey, ProviderError> {
        let (mut provider, _folder) = self.provider();
        open(&mut provider)
    }
}

fn provider(address: String) -> (VaultProvider, TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("token");
    fs::write(&file, TOKEN).unwrap();
    let options = VaultOptions {
        address,
        namespace: Some("team".to_owned()),
        mount: "secret".to_owned(),
        path_prefix: "keys".to_owned(),
        ca_file: None,
        auth: VaultAuth::TokenFile(file),
        limits: RequestLimits { total: Duration::from_secs(1), ..RequestLimits::default() },
    };
    let settings = VaultSettings::parse(options).unwrap();
    (VaultProvider::new(settings, Box::new(|| false)), folder)
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
        println!("{:.60?}: {kind:?}", nonsense);
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
    for (status, body, kind) in [
        ("429 Too Many", "hunter2", ProviderErrorKind::Throttled),
        ("472 Standby", "", ProviderErrorKind::Unreachable),
        ("473 Standby", "", ProviderErrorKind::Unreachable),
        ("500 Error", r#"{"errors":["hunter2"]}"#, ProviderErrorKind::Unreachable),
        ("502 Bad Gateway", "<html>", ProviderErrorKind::Unreachable),
        ("503 Unavailable", "", ProviderErrorKind::Unreachable),
        ("503 Unavailable", r#"{"errors":["Vault is sealed"]}"#, ProviderErrorKind::Sealed),
        ("403 Forbidden", "", ProviderErrorKind::LoginFailed),
    ] {
        fails(Server::saying(answer(status, body)).open(), kind);
        assert!(kind.is_outage());
    }
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
    let (mut provider, _folder) = provider("https://vault.invalid:8200".to_owned());
    let start = Instant::now();
    let error = open(&mut provider).unwrap_err();
    println!("{error} after {:?}", start.elapsed());
    assert!(error.kind.is_outage(), "{error:?}");
    assert!(start.elapsed() < Duration::from_millis(1200));
}

/// A cluster that changes its leader says 500, then 404 for what exists, then answers.
#[test]
fn a_404_after_an_error_is_asked_again() {
    let server = Server::start(|stream, n| {
        let answer = match n {
            0 => answer("500 Internal Server Error", r#"{"errors":["no leader"]}"#),
            1 => answer("404 Not Found", r#"{"errors":[]}"#),
            _ => secret(1),
        };
        let _ = stream.write_all(answer.as_bytes());
    });
    let (mut provider, _folder) = server.provider();
    fails(open(&mut provider), ProviderErrorKind::Unreachable);
    let start = Instant::now();
    assert_eq!(open(&mut provider).unwrap().expose(), &[1; 32]);
    let took = start.elapsed();
    assert!((450..900).contains(&took.as_millis()), "{took:?}");
    assert_eq!(server.requests().len(), 3);

    // Without an error before it, it is believed at once (after a look whether the key is there).
    let server = Server::saying(answer("404 Not Found", r#"{"errors":[]}"#));
    let start = Instant::now();
    fails(server.open(), ProviderErrorKind::KeyMissing);
    assert!(start.elapsed() < Duration::from_millis(450));
    assert_eq!(server.requests().len(), 2);
}
