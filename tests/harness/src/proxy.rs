//! A proxy in front of a server: it does to the answers of one that speaks plain HTTP what networks and
//! overloaded servers do, or keeps what passes.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::PrivatePkcs8KeyDer;

use crate::openbao::authority;

/// What the proxy does with a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing: it passes both directions on.
    None,
    /// It answers a request with this status and a JSON body without content.
    Status(u16),
    /// It sends a part of an answer, and closes the connection.
    Cut,
    /// It closes the connection without an answer.
    Close,
    /// It answers with this many bytes, without saying so in advance.
    Flood(u64),
    /// It answers with bytes that are not HTTP.
    Garbage,
    /// It answers with HTTP whose body is not JSON.
    Html,
    /// It never answers.
    Silence,
}

/// A running proxy. It stops to accept connections when it is dropped.
pub struct Proxy {
    port: u16,
    shared: Arc<Shared>,
}

struct Shared {
    target: u16,
    /// What happens to the next connections: as often as the number says, or always.
    fault: Mutex<(Fault, Option<u64>)>,
    connections: AtomicU64,
    /// What has passed in both directions, if it is to be kept.
    passed: Option<Mutex<Vec<u8>>>,
}

impl Proxy {
    /// Starts one in front of a port of 127.0.0.1.
    ///
    /// # Panics
    ///
    /// If there is no free loopback port.
    #[must_use]
    pub fn start(target: u16) -> Self {
        Self::start_with(target, None)
    }

    /// As [`Proxy::start`], and keeps what passes.
    ///
    /// # Panics
    ///
    /// If there is no free loopback port.
    #[must_use]
    pub fn start_recording(target: u16) -> Self {
        Self::start_with(target, Some(Mutex::default()))
    }

    fn start_with(target: u16, passed: Option<Mutex<Vec<u8>>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a loopback port is free");
        let port = listener.local_addr().expect("a bound socket has an address").port();
        let fault = Mutex::new((Fault::None, None));
        let connections = AtomicU64::new(0);
        let shared = Arc::new(Shared { target, fault, connections, passed });
        let weak = Arc::downgrade(&shared);
        thread::spawn(move || {
            for client in listener.incoming() {
                let (Some(shared), Ok(client)) = (weak.upgrade(), client) else { return };
                shared.connections.fetch_add(1, Ordering::Relaxed);
                let fault = shared.next_fault();
                // A peer that is gone has had what it wanted.
                thread::spawn(move || serve(client, &shared, &fault));
            }
        });
        Self { port, shared }
    }

    /// The address of the proxy.
    #[must_use]
    pub fn address(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// From now on does this to every new connection.
    pub fn always(&self, fault: Fault) {
        *self.shared.fault() = (fault, None);
    }

    /// Does this to so many new connections, and nothing to those after them.
    pub fn times(&self, count: u64, fault: Fault) {
        *self.shared.fault() = (fault, Some(count));
    }

    /// The port of the proxy, on 127.0.0.1.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// What has passed so far, and is kept no longer. The two directions of each connection are parts that
    /// lie between one another; each begins where a message may.
    #[must_use]
    pub fn take_passed(&self) -> Vec<u8> {
        let passed = self.shared.passed.as_ref();
        passed.map_or_else(Vec::new, |passed| {
            std::mem::take(&mut *passed.lock().unwrap_or_else(PoisonError::into_inner))
        })
    }

    /// How many connections there were.
    #[must_use]
    pub fn connections(&self) -> u64 {
        self.shared.connections.load(Ordering::Relaxed)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // The listener's thread sees that nobody is left when it gets a connection.
        let shared = Arc::new(Shared {
            target: 0,
            fault: Mutex::new((Fault::None, None)),
            connections: AtomicU64::new(0),
            passed: None,
        });
        drop(std::mem::replace(&mut self.shared, shared));
        drop(TcpStream::connect(("127.0.0.1", self.port)));
    }
}

impl Shared {
    fn fault(&self) -> MutexGuard<'_, (Fault, Option<u64>)> {
        self.fault.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn next_fault(&self) -> Fault {
        let mut fault = self.fault();
        match &mut fault.1 {
            None => fault.0.clone(),
            Some(0) => Fault::None,
            Some(left) => {
                *left -= 1;
                fault.0.clone()
            }
        }
    }
}

fn serve(mut client: TcpStream, shared: &Arc<Shared>, fault: &Fault) -> io::Result<()> {
    match fault {
        Fault::None => return pass(client, shared),
        Fault::Silence => {
            thread::sleep(Duration::from_secs(60));
            return Ok(());
        }
        _ => {}
    }
    // The whole request, so that closing the connection is no reset.
    let mut request = [0; 16 << 10];
    let _ = client.read(&mut request)?;
    match fault {
        Fault::Status(status) => write!(
            client,
            "HTTP/1.1 {status} Fault\r\nContent-Type: application/json\r\nContent-Length: 13\r\n\
             Connection: close\r\n\r\n{{\"errors\":[]}}"
        ),
        Fault::Cut => client
            .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{\"data\":{\"data\":{"),
        Fault::Flood(bytes) => {
            client.write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")?;
            io::copy(&mut io::repeat(b' ').take(*bytes), &mut client).map(drop)
        }
        Fault::Garbage => client.write_all(&[0xf7; 500]),
        Fault::Html => client.write_all(
            b"HTTP/1.1 200 OK\r\nContent-Length: 13\r\nConnection: close\r\n\r\n<html></html>",
        ),
        Fault::None | Fault::Close | Fault::Silence => Ok(()),
    }
}

fn pass(client: TcpStream, shared: &Arc<Shared>) -> io::Result<()> {
    let server = TcpStream::connect(("127.0.0.1", shared.target))?;
    let (from_client, to_server) = (client.try_clone()?, server.try_clone()?);
    let there = Arc::clone(shared);
    thread::spawn(move || pass_one_way(from_client, to_server, &there));
    pass_one_way(server, client, shared)
}

/// Passes on what comes until it ends. What is kept is whole before it is passed: who has received it finds
/// it there.
fn pass_one_way(mut from: TcpStream, mut to: TcpStream, shared: &Shared) -> io::Result<()> {
    let mut buffer = vec![0; 64 << 10];
    loop {
        let read = from.read(&mut buffer)?;
        if read == 0 {
            return to.shutdown(Shutdown::Write);
        }
        if let Some(passed) = &shared.passed {
            let mut passed = passed.lock().unwrap_or_else(PoisonError::into_inner);
            passed.extend_from_slice(&buffer[..read]);
        }
        to.write_all(&buffer[..read])?;
    }
}

/// A server whose certificate has expired: its address, and the certificate (PEM) of the authority
/// that signed it.
///
/// # Panics
///
/// If the certificate can't be made.
#[must_use]
pub fn expired_certificate() -> (String, String) {
    let (issuer, authority) = authority();
    let mut params =
        CertificateParams::new(vec!["127.0.0.1".to_owned()]).expect("the name is valid");
    params.not_before = rcgen::date_time_ymd(2020, 1, 1);
    params.not_after = rcgen::date_time_ymd(2021, 1, 1);
    let key = KeyPair::generate().expect("the system has random bytes");
    let certificate = params.signed_by(&key, &issuer).expect("a certificate can be signed");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("the provider has the default versions")
        .with_no_client_auth()
        .with_single_cert(
            vec![certificate.der().clone()],
            PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
        )
        .expect("the key is the certificate's");
    let config = Arc::new(config);
    let listener = TcpListener::bind("127.0.0.1:0").expect("a loopback port is free");
    let port = listener.local_addr().expect("a bound socket has an address").port();
    thread::spawn(move || {
        for client in listener.incoming() {
            let Ok(client) = client else { return };
            let Ok(session) = rustls::ServerConnection::new(Arc::clone(&config)) else { return };
            // The client is expected to leave in the handshake.
            let _ = rustls::StreamOwned::new(session, client).read(&mut [0; 1]);
        }
    });
    (format!("https://127.0.0.1:{port}"), authority)
}
