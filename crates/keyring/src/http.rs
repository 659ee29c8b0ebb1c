//! Requests over HTTP, for all providers that speak it.
//!
//! * Certificates are checked as [`crate::tls`] says.
//! * Proxies that the environment names are not used: the environment of a database server is not
//!   where somebody decides who sees its keys.
//! * A server that is a standby may redirect a request to the active one. The redirect is followed
//!   only where [`Server::follows_redirects`] says so, if it changes nothing but the host and the port
//!   (so it can't choose what is read), at most twice, and never from https to http. The headers go
//!   along: the new server has shown a certificate that the same authorities signed.
//! * What is worth sending again is sent again, after a growing pause with jitter, within the one
//!   deadline that the caller has.
//!
//! What is wiped: the bodies of requests and answers. What is not: the buffers inside the HTTP and
//! TLS libraries.

mod connector;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ureq::Agent;
use ureq::config::Config;
use ureq::http::header::{HeaderMap, HeaderValue, LOCATION};
use ureq::http::uri::{Authority, Scheme};
use ureq::http::{self, Uri};
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::time::Duration as AgentDuration;
use ureq::unversioned::transport::{Connector, NextTimeout, TcpConnector};
use zeroize::Zeroizing;

use crate::address;
use crate::call::{self, RequestLimits};
use crate::provider::{Certificates, Interrupt, ProviderError, ProviderErrorKind};
use crate::tls::{self, Files, Identity, Seen, Stamps};
use crate::watched;
use connector::TlsConnector;

/// A request. Headers with secrets in them are marked as sensitive.
pub(crate) type Request = http::Request<Zeroizing<Vec<u8>>>;

/// The largest answer that is read, in bytes. Those that are meant for us have a few hundred.
pub(crate) const MAX_ANSWER_LEN: u64 = 1 << 20;

const MAX_REDIRECTS: usize = 2;

/// How long a connection is kept for the next request: for those of one statement, not longer, since
/// every session of the database would hold one.
pub(crate) const MAX_IDLE: Duration = Duration::from_secs(1);

/// A service that is reached by HTTP.
#[derive(Clone, Debug)]
pub(crate) struct Server {
    /// What messages call it, such as "Vault".
    pub(crate) service: &'static str,
    /// Whether plain http is refused whatever a request says. Requests for credentials go to
    /// addresses of the machine's own platform by plain http.
    pub(crate) https_only: bool,
    /// The certificates (PEM) of the authorities that may sign the server's; the system's if there
    /// is none.
    pub(crate) ca_file: Option<PathBuf>,
    /// The certificate to show.
    pub(crate) identity: Option<Identity>,
    /// Whether standbys of the service redirect to the active server.
    pub(crate) follows_redirects: bool,
    /// The host and the port of the service itself, if requests go to others as well, such as those that
    /// give out credentials.
    pub(crate) authority: Option<Authority>,
    /// How long requests may take.
    pub(crate) limits: RequestLimits,
}

/// An answer. The body may have keys and tokens in it: it is wiped, and `Debug` is not implemented.
pub(crate) struct Response {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Zeroizing<Vec<u8>>,
}

/// Sends requests to one service.
pub(crate) struct Http {
    server: Server,
    agent: Option<(Agent, Stamps)>,
    seen: Seen,
}

impl Http {
    pub(crate) fn new(server: Server) -> Self {
        Self { server, agent: None, seen: Seen::default() }
    }

    /// Until when the certificates are good that were used last.
    pub(crate) fn certificates(&self) -> Certificates {
        self.seen.certificates()
    }

    /// The time at which an operation that begins now must end.
    pub(crate) fn deadline(&self) -> Instant {
        Instant::now() + self.server.limits.total
    }

    /// Runs `work` on a thread of its own until `deadline`, and again as long as it fails with an
    /// error that is transient.
    pub(crate) fn call<T: Send + 'static>(
        &mut self,
        deadline: Instant,
        interrupt: &dyn Interrupt,
        work: impl Fn(&Transport) -> Result<T, ProviderError> + Send + Sync + 'static,
    ) -> Result<T, ProviderError> {
        let work = Arc::new(work);
        call::with_retries(deadline, interrupt, || {
            self.call_once(deadline, interrupt, Arc::clone(&work))
        })
    }

    fn call_once<T: Send + 'static>(
        &mut self,
        deadline: Instant,
        interrupt: &dyn Interrupt,
        work: Arc<impl Fn(&Transport) -> Result<T, ProviderError> + Send + Sync + 'static>,
    ) -> Result<T, ProviderError> {
        let agent = self.agent()?;
        let Server { service, follows_redirects, .. } = self.server;
        let transport = Transport { agent: agent.clone(), service, follows_redirects };
        let result = call::call(deadline, interrupt, move || work(&transport)).flatten();
        if result.is_err() {
            // Whatever state its connections are in: the thread, if it still runs, gets an error
            // from them and ends.
            agent.shutdown();
            self.agent = None;
        }
        result
    }

    /// Runs `work` once on a thread of its own, with the connections that are open, and doesn't wait for it.
    pub(crate) fn call_in_background(&mut self, work: impl FnOnce(&Transport) + Send + 'static) {
        let Server { service, follows_redirects, .. } = self.server;
        if let Ok(agent) = self.agent() {
            let transport = Transport { agent, service, follows_redirects };
            call::in_background(move || work(&transport));
        }
    }

    /// Closes the connections that are open.
    pub(crate) fn close_connections(&mut self) {
        self.agent = None;
    }

    /// The agent that has the connections, a new one if a file was replaced.
    fn agent(&mut self) -> Result<Agent, ProviderError> {
        let stamps = self.server.files().stamps();
        match &self.agent {
            Some((agent, made_with)) if *made_with == stamps => Ok(agent.clone()),
            _ => {
                let agent = self.server.agent(&self.seen)?;
                self.agent = Some((agent.clone(), stamps));
                Ok(agent)
            }
        }
    }
}

impl Server {
    fn files(&self) -> Files<'_> {
        Files { ca_file: self.ca_file.as_deref(), identity: self.identity.as_ref() }
    }

    fn agent(&self, seen: &Seen) -> Result<Agent, ProviderError> {
        let loaded = self.files().load(seen)?;
        let connector = TlsConnector::new(loaded, seen.clone(), self.authority.clone());
        let config = Config::builder()
            .https_only(self.https_only)
            .proxy(None)
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .user_agent(concat!("encryption_ext/", env!("CARGO_PKG_VERSION")))
            .timeout_connect(Some(self.limits.connect))
            .timeout_global(Some(self.limits.total))
            .max_idle_connections(1)
            .max_idle_age(MAX_IDLE)
            .build();
        let connector = ().chain(TcpConnector::default()).chain(connector);
        Ok(Agent::with_parts(config, connector, InThread::default()))
    }
}

/// Resolves names in the thread of the request. The library would start one more thread for it,
/// which nobody counts.
#[derive(Debug, Default)]
struct InThread(DefaultResolver);

impl Resolver for InThread {
    fn resolve(
        &self,
        uri: &Uri,
        config: &Config,
        timeout: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, ureq::Error> {
        self.0.resolve(uri, config, NextTimeout { after: AgentDuration::NotHappening, ..timeout })
    }
}

/// What sends requests from the thread of a call.
#[derive(Clone, Debug)]
pub(crate) struct Transport {
    agent: Agent,
    service: &'static str,
    follows_redirects: bool,
}

impl Transport {
    /// Sends a request, again where redirects lead, and reads the answer, whatever its status.
    pub(crate) fn send(&self, request: &Request) -> Result<Response, ProviderError> {
        let mut uri = request.uri().clone();
        for _ in 0..=MAX_REDIRECTS {
            let failed = |failure: Failure| failure.into_error(self.service, &uri);
            let mut response = self.send_to(&uri, request).map_err(failed)?;
            let status = response.status().as_u16();
            if self.follows_redirects && matches!(status, 307 | 308) {
                uri = redirected(&uri, response.headers().get(LOCATION))
                    .ok_or_else(|| failed(Failure::Redirect))?;
                continue;
            }
            let expected = response.body().content_length().unwrap_or(4096);
            let mut reader = response.body_mut().as_reader();
            let body = watched::read_at_most(&mut reader, expected, MAX_ANSWER_LEN)
                .map_err(|error| failed(Failure::Library(ureq::Error::from(error))))?
                .ok_or_else(|| failed(Failure::TooLarge))?;
            return Ok(Response { status, headers: response.headers().clone(), body });
        }
        Err(Failure::Redirect.into_error(self.service, &uri))
    }

    fn send_to(&self, uri: &Uri, request: &Request) -> Result<http::Response<ureq::Body>, Failure> {
        let mut builder = http::Request::builder().method(request.method()).uri(uri);
        if let Some(headers) = builder.headers_mut() {
            headers.clone_from(request.headers());
        }
        match request.body().as_slice() {
            [] if request.method() == http::Method::GET => {
                self.agent.run(builder.body(()).map_err(|_| Failure::Request)?)
            }
            body => self.agent.run(builder.body(body).map_err(|_| Failure::Request)?),
        }
        .map_err(Failure::Library)
    }
}

/// A header's value that is kept out of every log.
pub(crate) fn sensitive(value: &str) -> Result<HeaderValue, ProviderError> {
    let mut value = HeaderValue::from_str(value).map_err(|_| {
        ProviderError::new(
            ProviderErrorKind::LoginFailed,
            "a token has characters that can't be in a header",
        )
    })?;
    value.set_sensitive(true);
    Ok(value)
}

/// Where a redirect leads, if it may be followed.
fn redirected(from: &Uri, location: Option<&HeaderValue>) -> Option<Uri> {
    let to: Uri = location?.to_str().ok()?.parse().ok()?;
    let authority = to.authority()?;
    let is_safe = *to.scheme()? == Scheme::HTTPS
        || (from.scheme() == Some(&Scheme::HTTP)
            && *to.scheme()? == Scheme::HTTP
            && address::is_loopback(authority.host()));
    let is_same = to.path_and_query() == from.path_and_query();
    (is_safe && is_same && !authority.as_str().contains('@')).then_some(to)
}

/// Why there is no answer.
enum Failure {
    Library(ureq::Error),
    /// The request can't be written as HTTP.
    Request,
    Redirect,
    TooLarge,
}

impl Failure {
    fn into_error(self, service: &str, uri: &Uri) -> ProviderError {
        use ProviderErrorKind::{AnswerInvalid, Configuration, TimedOut, Unreachable};

        let address = origin(uri);
        let error = match self {
            Self::Library(error) => error,
            Self::Request => {
                return ProviderError::new(
                    Configuration,
                    format!("could not form a request to {service}"),
                );
            }
            Self::Redirect => {
                return ProviderError::new(
                    AnswerInvalid,
                    format!(
                        "{service} at \"{address}\" redirects to where a request may not follow"
                    ),
                )
                .with_hint(
                    "The address in the setting should be that of the active server or of a load \
                     balancer. Only redirects to the same path by https are followed.",
                );
            }
            Self::TooLarge => {
                return ProviderError::new(
                    AnswerInvalid,
                    format!("{service} at \"{address}\" answered with more than 1 MiB"),
                );
            }
        };
        match &error {
            ureq::Error::Timeout(ureq::Timeout::Connect) => ProviderError::new(
                TimedOut,
                format!("could not connect to {service} at \"{address}\" in time"),
            ),
            ureq::Error::Timeout(_) => ProviderError::new(
                TimedOut,
                format!("{service} at \"{address}\" did not answer in time"),
            ),
            ureq::Error::Protocol(_) | ureq::Error::LargeResponseHeader(..) => ProviderError::new(
                AnswerInvalid,
                format!("what answers at \"{address}\" does not speak HTTP"),
            )
            .with_hint("Check the address, and whether it needs https."),
            ureq::Error::Rustls(error) => tls::error(error, service, &address),
            ureq::Error::Io(error) => match error.get_ref().and_then(|e| e.downcast_ref()) {
                Some(error) => tls::error(error, service, &address),
                None => {
                    let unreachable = ProviderError::new(
                        Unreachable,
                        format!("could not reach {service} at \"{address}\": {error}"),
                    );
                    match is_of_a_moment(error.kind()) {
                        true => unreachable.transient(),
                        false => unreachable,
                    }
                }
            },
            ureq::Error::ConnectionFailed => ProviderError::new(
                Unreachable,
                format!("could not reach {service} at \"{address}\""),
            )
            .transient(),
            ureq::Error::HostNotFound => ProviderError::new(
                Unreachable,
                format!("could not find the host of {service} at \"{address}\""),
            ),
            _ => ProviderError::new(
                Unreachable,
                format!("could not reach {service} at \"{address}\""),
            ),
        }
    }
}

/// Whether it is what the clients of a server see that restarts or is overloaded. (That a name can't
/// be resolved has no kind of its own, and takes its time to find out.)
pub(crate) fn is_of_a_moment(kind: io::ErrorKind) -> bool {
    matches!(
        kind,
        io::ErrorKind::ConnectionRefused
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::NotConnected
            | io::ErrorKind::BrokenPipe
            | io::ErrorKind::UnexpectedEof
    )
}

/// The scheme, the host and the port of an address.
fn origin(uri: &Uri) -> String {
    let scheme = uri.scheme_str().unwrap_or_default();
    let authority = uri.authority().map_or("", |authority| authority.as_str());
    format!("{scheme}://{authority}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_change_the_host_alone() {
        let follow = |from: &str, location: &str| {
            let location = HeaderValue::from_str(location).unwrap();
            redirected(&from.parse().unwrap(), Some(&location)).map(|uri| uri.to_string())
        };
        let from = "https://a:8200/v1/secret/data/keys/k?version=1";
        let to = "https://b:8200/v1/secret/data/keys/k?version=1";
        assert_eq!(follow(from, to).as_deref(), Some(to));
        for location in [
            "",
            "/v1/secret/data/keys/k?version=1",
            "//b/v1/secret/data/keys/k?version=1",
            "http://b:8200/v1/secret/data/keys/k?version=1",
            "http://127.0.0.1/v1/secret/data/keys/k?version=1",
            "https://b:8200/v1/secret/data/keys/k?version=2",
            "https://b:8200/v1/secret/data/keys/k",
            "https://b:8200/v1/secret/data/keys/other?version=1",
            "https://u@b:8200/v1/secret/data/keys/k?version=1",
            "file:///v1/secret/data/keys/k?version=1",
        ] {
            assert_eq!(follow(from, location), None, "{location}");
        }
        let plain = "http://127.0.0.1:8200/v1/x";
        assert!(follow(plain, "http://127.0.0.1:8202/v1/x").is_some());
        assert!(follow(plain, "https://vault.example/v1/x").is_some());
        assert!(follow(plain, "http://vault.example/v1/x").is_none());
        assert!(redirected(&plain.parse().unwrap(), None).is_none());
    }
}
