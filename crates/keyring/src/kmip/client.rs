//! Requests to a KMIP server, over mutual TLS (OASIS, "Key Management Interoperability Protocol Profiles
//! Version 1.2", section 3.1: TLS 1.2, here or 1.3).
//!
//! What is wiped: the messages. What is not: the buffers inside the TLS library.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream, ToSocketAddrs};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustls::pki_types::ServerName;
use rustls::{AlertDescription, ClientConfig, ClientConnection, StreamOwned};
use zeroize::Zeroizing;

use super::message::{self, Operation, Outcome, Payload, ResultReason};
use super::ttlv::{self, Malformed};
use crate::call::{self, RequestLimits};
use crate::http;
use crate::provider::{Certificates, Interrupt, ProviderError, ProviderErrorKind};
use crate::tls::{self, Files, Identity, Seen, Stamps};

/// What messages call it.
pub(super) const SERVICE: &str = "the KMIP server";

/// Where the server is and how to get in.
#[derive(Clone, Debug)]
pub(super) struct Server {
    pub(super) host: String,
    pub(super) port: u16,
    /// The host, as the server's certificate must have it.
    pub(super) name: ServerName<'static>,
    /// The certificates (PEM) of the authorities that may sign the server's; the system's if there is
    /// none.
    pub(super) ca_file: Option<PathBuf>,
    pub(super) identity: Identity,
    pub(super) limits: RequestLimits,
}

/// Keeps a connection to the server between the calls that follow one another.
pub(super) struct Client {
    server: Arc<Server>,
    interrupt: Box<dyn Interrupt>,
    config: Option<(Arc<ClientConfig>, Stamps)>,
    kept: Option<Kept>,
    seen: Seen,
}

/// A connection, and when it was used last.
struct Kept {
    stream: Stream,
    used: Instant,
}

type Stream = StreamOwned<ClientConnection, Timed>;

impl Client {
    pub(super) fn new(server: Server, interrupt: Box<dyn Interrupt>) -> Self {
        let seen = Seen::default();
        Self { server: Arc::new(server), interrupt, config: None, kept: None, seen }
    }

    /// Until when the certificates are good that were used last.
    pub(super) fn certificates(&self) -> Certificates {
        self.seen.certificates()
    }

    /// The time at which an operation that begins now must end.
    pub(super) fn deadline(&self) -> Instant {
        Instant::now() + self.server.limits.total
    }

    /// Runs `work` on a thread of its own until `deadline`, and again as long as it fails with an
    /// error that is transient.
    pub(super) fn call<T: Send + 'static>(
        &mut self,
        deadline: Instant,
        work: impl Fn(&mut Session) -> Result<T, ProviderError> + Send + Sync + 'static,
    ) -> Result<T, ProviderError> {
        let work = Arc::new(work);
        let Self { server, interrupt, config, kept, seen } = self;
        call::with_retries(deadline, &**interrupt, || {
            let config = current(config, server, kept, seen)?;
            let tls = Tls { config, seen: seen.clone() };
            call_once(server, tls, kept, deadline, &**interrupt, Arc::clone(&work))
        })
    }

    /// Closes the connection, if one is open.
    pub(super) fn close_connections(&mut self) {
        self.kept = None;
    }
}

/// The configuration of TLS, a new one if a file was replaced; then the connection is not used again.
fn current(
    config: &mut Option<(Arc<ClientConfig>, Stamps)>,
    server: &Server,
    kept: &mut Option<Kept>,
    seen: &Seen,
) -> Result<Arc<ClientConfig>, ProviderError> {
    let files = server.files();
    let stamps = files.stamps();
    match config {
        Some((config, made_with)) if *made_with == stamps => Ok(Arc::clone(config)),
        _ => {
            *kept = None;
            let made = files.load(seen)?.config().map_err(|_| {
                let why = "the system has no certificates of authorities";
                ProviderError::new(ProviderErrorKind::Configuration, why)
            })?;
            let made = Arc::new(made);
            *config = Some((Arc::clone(&made), stamps));
            Ok(made)
        }
    }
}

fn call_once<T: Send + 'static>(
    server: &Arc<Server>,
    tls: Tls,
    kept: &mut Option<Kept>,
    deadline: Instant,
    interrupt: &dyn Interrupt,
    work: Arc<impl Fn(&mut Session) -> Result<T, ProviderError> + Send + Sync + 'static>,
) -> Result<T, ProviderError> {
    let plug = Arc::new(Mutex::new(Plug::default()));
    let stream =
        kept.take().filter(|kept| kept.used.elapsed() < http::MAX_IDLE).map(|kept| kept.stream);
    let server = Arc::clone(server);
    let mut session = Session { server, tls, stream: None, deadline, plug: Arc::clone(&plug) };
    let done = call::call(deadline, interrupt, move || {
        if let Some(stream) = stream {
            session.reuse(stream)?;
        }
        let result = work(&mut session)?;
        Ok((result, session.stream))
    });
    match done.flatten() {
        Ok((result, stream)) => {
            *kept = stream.map(|stream| Kept { stream, used: Instant::now() });
            Ok(result)
        }
        Err(error) => {
            // Whatever state its connection is in: the thread, if it still runs, gets an error from
            // it and ends.
            lock(&plug).pull();
            Err(error)
        }
    }
}

/// How the calling thread ends the connection of one that it gave up.
#[derive(Default)]
struct Plug {
    socket: Option<TcpStream>,
    is_pulled: bool,
}

impl Plug {
    fn pull(&mut self) {
        self.is_pulled = true;
        if let Some(socket) = &self.socket {
            // An error means that it is closed already.
            let _ = socket.shutdown(Shutdown::Both);
        }
    }
}

fn lock(plug: &Mutex<Plug>) -> MutexGuard<'_, Plug> {
    plug.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Server {
    fn files(&self) -> Files<'_> {
        Files { ca_file: self.ca_file.as_deref(), identity: Some(&self.identity) }
    }

    /// The host and the port.
    pub(super) fn address(&self) -> String {
        match self.host.contains(':') {
            true => format!("[{}]:{}", self.host, self.port),
            false => format!("{}:{}", self.host, self.port),
        }
    }

    /// What the server answered is not what the specification has.
    pub(super) fn invalid(&self, what: &str) -> ProviderError {
        ProviderError::new(
            ProviderErrorKind::AnswerInvalid,
            format!("{SERVICE} at \"{}\" {what}", self.address()),
        )
    }

    fn malformed(&self) -> ProviderError {
        self.invalid("answered with what is not KMIP 1.2")
            .with_hint("Check the address, and which versions of KMIP the server speaks.")
    }

    /// Why a connection can't be used, or the next answer can't be had.
    fn failed(&self, error: &io::Error, phase: Phase) -> ProviderError {
        let address = self.address();
        if let Some(error) = error.get_ref().and_then(|e| e.downcast_ref::<rustls::Error>()) {
            return match error {
                rustls::Error::AlertReceived(alert) if is_about_our_certificate(*alert) => {
                    ProviderError::new(
                        ProviderErrorKind::LoginFailed,
                        format!(
                            "{SERVICE} at \"{address}\" does not accept the client certificate"
                        ),
                    )
                    .with_hint(
                        "The client certificate must not have expired, and must be signed by an \
                         authority that the server trusts for clients.",
                    )
                }
                error => tls::error(error, SERVICE, &address),
            };
        }
        match error.kind() {
            io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => ProviderError::new(
                ProviderErrorKind::TimedOut,
                match phase {
                    Phase::Connecting => {
                        format!("could not connect to {SERVICE} at \"{address}\" in time")
                    }
                    Phase::Asking => format!("{SERVICE} at \"{address}\" did not answer in time"),
                },
            ),
            kind => {
                let unreachable = ProviderError::new(
                    ProviderErrorKind::Unreachable,
                    format!("could not reach {SERVICE} at \"{address}\": {error}"),
                );
                match http::is_of_a_moment(kind) {
                    true => unreachable.transient(),
                    false => unreachable,
                }
            }
        }
    }
}

/// What was being done when a connection failed.
#[derive(Clone, Copy)]
enum Phase {
    Connecting,
    Asking,
}

/// Whether a server says by this that it does not accept a client's certificate (RFC 5246, section
/// 7.2.2; RFC 8446, section 6.2). `decrypt_error` is about a signature, in our certificate for one.
/// Servers of TLS 1.2 say `handshake_failure` when they miss a certificate, and also when they have no
/// cipher suite in common.
fn is_about_our_certificate(alert: AlertDescription) -> bool {
    matches!(
        alert,
        AlertDescription::NoCertificate
            | AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnknownCA
            | AlertDescription::AccessDenied
            | AlertDescription::CertificateRequired
            | AlertDescription::DecryptError
    )
}

/// Why an operation was not done.
pub(super) enum Refusal {
    /// The server says no.
    Reason(ResultReason),
    /// Anything else.
    Failed(ProviderError),
}

impl From<ProviderError> for Refusal {
    fn from(error: ProviderError) -> Self {
        Self::Failed(error)
    }
}

/// What a connection is made with, and what is noted of it.
struct Tls {
    config: Arc<ClientConfig>,
    seen: Seen,
}

/// What sends requests from the thread of a call.
pub(super) struct Session {
    server: Arc<Server>,
    tls: Tls,
    stream: Option<Stream>,
    deadline: Instant,
    plug: Arc<Mutex<Plug>>,
}

impl Session {
    pub(super) fn server(&self) -> &Server {
        &self.server
    }

    /// Sends a request with `operation`, and takes from the answer what is of use.
    pub(super) fn ask<T>(
        &mut self,
        operation: Operation,
        request: &[u8],
        take: impl FnOnce(&Payload<'_>) -> Result<T, Malformed>,
    ) -> Result<T, Refusal> {
        let answer = self.exchange(request)?;
        let malformed = |_| self.server.malformed();
        match message::outcome(&answer, operation).map_err(malformed)? {
            Outcome::Success(payload) => Ok(take(&payload).map_err(malformed)?),
            Outcome::Failure(reason) => Err(Refusal::Reason(reason)),
        }
    }

    fn exchange(&mut self, request: &[u8]) -> Result<Zeroizing<Vec<u8>>, ProviderError> {
        let stream = match &mut self.stream {
            Some(stream) => stream,
            empty => {
                let stream = connect(&self.server, &self.tls, self.deadline, &self.plug)?;
                empty.insert(stream)
            }
        };
        let failed = |error: io::Error| self.server.failed(&error, Phase::Asking);
        stream.write_all(request).and_then(|()| stream.flush()).map_err(failed)?;
        let mut header = [0; ttlv::HEADER_LEN];
        stream.read_exact(&mut header).map_err(failed)?;
        let len = ttlv::message_len(header, message::RESPONSE_MESSAGE)
            .map_err(|Malformed| self.server.malformed())?;
        if u64::try_from(len).is_ok_and(|len| len > http::MAX_ANSWER_LEN) {
            return Err(self.server.invalid("answered with more than 1 MiB"));
        }
        let mut answer = Zeroizing::new(vec![0; header.len() + len]);
        let (start, rest) = answer.split_at_mut(header.len());
        start.copy_from_slice(&header);
        stream.read_exact(rest).map_err(failed)?;
        Ok(answer)
    }

    /// Goes on with a connection of an earlier call.
    fn reuse(&mut self, mut stream: Stream) -> Result<(), ProviderError> {
        stream.sock.deadline = self.deadline;
        register(&self.plug, &stream.sock.socket)
            .map_err(|error| self.server.failed(&error, Phase::Asking))?;
        self.stream = Some(stream);
        Ok(())
    }
}

/// Connects and completes the handshake, as far as the time to connect allows.
fn connect(
    server: &Server,
    tls: &Tls,
    deadline: Instant,
    plug: &Mutex<Plug>,
) -> Result<Stream, ProviderError> {
    let by = deadline.min(Instant::now() + server.limits.connect);
    let failed = |error: io::Error| server.failed(&error, Phase::Connecting);
    let socket = connect_socket(server, by)?;
    register(plug, &socket).map_err(failed)?;
    let mut connection = ClientConnection::new(Arc::clone(&tls.config), server.name.clone())
        .map_err(|error| tls::error(&error, SERVICE, &server.address()))?;
    let mut socket = Timed { socket, deadline: by };
    connection.complete_io(&mut socket).map_err(|error| {
        tls.seen.note_failure(&error);
        failed(error)
    })?;
    tls.seen.note_handshake(&connection);
    socket.deadline = deadline;
    Ok(StreamOwned::new(connection, socket))
}

/// Connects to the first of the host's addresses that answers.
fn connect_socket(server: &Server, by: Instant) -> Result<TcpStream, ProviderError> {
    let addresses = (server.host.as_str(), server.port).to_socket_addrs().map_err(|_| {
        ProviderError::new(
            ProviderErrorKind::Unreachable,
            format!("could not find the host of {SERVICE} at \"{}\"", server.address()),
        )
    })?;
    let mut failure = io::Error::from(io::ErrorKind::AddrNotAvailable);
    for address in addresses {
        let connected = left(by)
            .and_then(|left| TcpStream::connect_timeout(&address, left))
            .and_then(|socket| {
                socket.set_nodelay(true)?;
                Ok(socket)
            });
        match connected {
            Ok(socket) => return Ok(socket),
            Err(error) => failure = error,
        }
    }
    Err(server.failed(&failure, Phase::Connecting))
}

/// Lets the calling thread end the connection.
fn register(plug: &Mutex<Plug>, socket: &TcpStream) -> io::Result<()> {
    let mut plug = lock(plug);
    if plug.is_pulled {
        return Err(io::ErrorKind::TimedOut.into());
    }
    plug.socket = Some(socket.try_clone()?);
    Ok(())
}

/// The time until `deadline`, which is not over.
fn left(deadline: Instant) -> io::Result<Duration> {
    match deadline.saturating_duration_since(Instant::now()) {
        Duration::ZERO => Err(io::ErrorKind::TimedOut.into()),
        left => Ok(left),
    }
}

/// A socket whose every wait ends at the deadline.
struct Timed {
    socket: TcpStream,
    deadline: Instant,
}

impl Read for Timed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.socket.set_read_timeout(Some(left(self.deadline)?))?;
        self.socket.read(buffer).map_err(timed_out)
    }
}

impl Write for Timed {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.socket.set_write_timeout(Some(left(self.deadline)?))?;
        self.socket.write(buffer).map_err(timed_out)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.socket.flush()
    }
}

/// The error of a wait that ended at its time-out, by its usual name.
fn timed_out(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::WouldBlock => io::ErrorKind::TimedOut.into(),
        _ => error,
    }
}
