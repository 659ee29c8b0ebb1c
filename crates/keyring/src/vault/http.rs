//! Requests over HTTP.
//!
//! * Certificates are checked against the authorities in the CA file, or the system's if there is
//!   none. Nothing switches that off.
//! * Proxies that the environment names are not used: the environment of a database server is not
//!   where somebody decides who sees its keys.
//! * A server that is a standby may redirect a request to the active one. The redirect is followed
//!   if it changes nothing but the host and the port (so it can't choose what is read), at most
//!   twice, and never from https to http. The token goes along: the new server has shown a
//!   certificate that the same authorities signed.
//!
//! What is wiped: the bodies of requests and answers. What is not: the buffers inside the HTTP and
//! TLS libraries.

use std::sync::Arc;
use std::time::Instant;

use ureq::Agent;
use ureq::config::Config;
use ureq::http::header::{HeaderName, HeaderValue, LOCATION};
use ureq::http::uri::Scheme;
use ureq::http::{self, Uri};
use ureq::tls::{PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::time::Duration as AgentDuration;
use ureq::unversioned::transport::{DefaultConnector, NextTimeout};
use zeroize::Zeroizing;

use super::answer::Answer;
use super::settings::{self, Server};
use crate::call;
use crate::provider::{Interrupt, ProviderError, ProviderErrorKind};
use crate::watched::{self, Stamp};

/// The largest answer that is read, in bytes. Those that are meant for us have a few hundred.
const MAX_ANSWER_LEN: u64 = 1 << 20;

const MAX_REDIRECTS: usize = 2;

/// How long a connection is kept for the next request: for those of one statement, not longer, since
/// every session of the database would hold one.
const MAX_IDLE: std::time::Duration = std::time::Duration::from_secs(1);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Method {
    Get,
    Post,
}

/// A request to a server.
pub(super) struct Request {
    pub(super) method: Method,
    /// The path and query after `/v1/`.
    pub(super) path: String,
    pub(super) token: Option<Zeroizing<String>>,
    pub(super) body: Option<Zeroizing<Vec<u8>>>,
}

/// Sends requests to one server.
pub(super) struct Http {
    agent: Option<(Agent, Option<Stamp>)>,
}

impl Http {
    pub(super) fn new() -> Self {
        Self { agent: None }
    }

    /// Sends a request and waits for the answer until `deadline`.
    pub(super) fn send(
        &mut self,
        server: &Server,
        request: Request,
        deadline: Instant,
        interrupt: &dyn Interrupt,
    ) -> Result<Answer, ProviderError> {
        let agent = self.agent(server)?;
        let base = server.address.base.clone();
        let may_leave_https = !server.address.is_https;
        let namespace = server.namespace.clone();
        let work = {
            let agent = agent.clone();
            move || exchange(&agent, &base, may_leave_https, namespace.as_deref(), request)
        };
        let answer = call::call(deadline, interrupt, work)
            .and_then(|result| result.map_err(|failure| failure.into_error(&server.address.base)));
        if answer.is_err() {
            // Whatever state its connections are in: the thread, if it still runs, gets an error
            // from them and ends.
            agent.shutdown();
            self.agent = None;
        }
        answer
    }

    /// Closes the connections that are open.
    pub(super) fn close_connections(&mut self) {
        self.agent = None;
    }

    /// The agent that has the connections, a new one if the CA file was replaced.
    fn agent(&mut self, server: &Server) -> Result<Agent, ProviderError> {
        let stamp = server.ca_file.as_deref().and_then(watched::stamp);
        match &self.agent {
            Some((agent, made_with)) if *made_with == stamp => Ok(agent.clone()),
            _ => {
                let (agent, stamp) = new_agent(server)?;
                self.agent = Some((agent.clone(), stamp));
                Ok(agent)
            }
        }
    }
}

fn new_agent(server: &Server) -> Result<(Agent, Option<Stamp>), ProviderError> {
    let (roots, stamp) = match &server.ca_file {
        None => (RootCerts::PlatformVerifier, None),
        Some(path) => {
            let (contents, stamp) = watched::read(path, "CA")?;
            let certificates = parse_pem(&contents)
                .filter_map(|item| match item {
                    Ok(PemItem::Certificate(certificate)) => Some(Ok(certificate)),
                    Ok(_) => None,
                    Err(_) => Some(Err(())),
                })
                .collect::<Result<Vec<_>, ()>>()
                .ok()
                .filter(|certificates| !certificates.is_empty())
                .ok_or_else(|| {
                    ProviderError::new(
                        ProviderErrorKind::Configuration,
                        format!("CA file \"{}\" has no certificates in PEM", path.display()),
                    )
                })?;
            (RootCerts::from(certificates), Some(stamp))
        }
    };
    let tls = TlsConfig::builder()
        .root_certs(roots)
        .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .build();
    let config = Config::builder()
        .tls_config(tls)
        .https_only(server.address.is_https)
        .proxy(None)
        .http_status_as_error(false)
        .max_redirects(0)
        .max_redirects_will_error(false)
        .user_agent(concat!("encryption_ext/", env!("CARGO_PKG_VERSION")))
        .timeout_connect(Some(server.limits.connect))
        .timeout_global(Some(server.limits.total))
        .max_idle_connections(1)
        .max_idle_age(MAX_IDLE)
        .build();
    Ok((Agent::with_parts(config, DefaultConnector::default(), InThread::default()), stamp))
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

/// Sends a request, again where redirects lead, and reads the answer. Runs on the call's thread.
fn exchange(
    agent: &Agent,
    base: &str,
    may_leave_https: bool,
    namespace: Option<&str>,
    request: Request,
) -> Result<Answer, Failure> {
    let mut uri: Uri =
        format!("{base}/v1/{}", request.path).parse().map_err(|_| Failure::Request)?;
    for _ in 0..=MAX_REDIRECTS {
        let mut response = send_once(agent, &uri, namespace, &request)?;
        let status = response.status().as_u16();
        if matches!(status, 307 | 308) {
            uri = redirected(&uri, response.headers().get(LOCATION), may_leave_https)
                .ok_or(Failure::Redirect)?;
            continue;
        }
        let expected = response.body().content_length().unwrap_or(4096);
        let mut reader = response.body_mut().as_reader();
        let body = watched::read_at_most(&mut reader, expected, MAX_ANSWER_LEN)
            .map_err(|error| Failure::Library(ureq::Error::from(error)))?
            .ok_or(Failure::TooLarge)?;
        return Ok(Answer { status, body });
    }
    Err(Failure::Redirect)
}

fn send_once(
    agent: &Agent,
    uri: &Uri,
    namespace: Option<&str>,
    request: &Request,
) -> Result<http::Response<ureq::Body>, Failure> {
    let method = match request.method {
        Method::Get => http::Method::GET,
        Method::Post => http::Method::POST,
    };
    let mut builder = http::Request::builder().method(method).uri(uri);
    // Keeps an agent or a proxy of Vault from being tricked into forwarding a browser's request.
    builder = builder.header("X-Vault-Request", "true");
    if let Some(namespace) = namespace {
        builder = builder.header("X-Vault-Namespace", namespace);
    }
    if let Some(token) = &request.token {
        let mut value = HeaderValue::from_str(token).map_err(|_| Failure::Request)?;
        value.set_sensitive(true);
        builder = builder.header(HeaderName::from_static("x-vault-token"), value);
    }
    match &request.body {
        None => agent.run(builder.body(()).map_err(|_| Failure::Request)?),
        Some(body) => {
            let builder = builder.header("Content-Type", "application/json");
            agent.run(builder.body(body.as_slice()).map_err(|_| Failure::Request)?)
        }
    }
    .map_err(Failure::Library)
}

/// Where a redirect leads, if it may be followed.
fn redirected(from: &Uri, location: Option<&HeaderValue>, may_leave_https: bool) -> Option<Uri> {
    let to: Uri = location?.to_str().ok()?.parse().ok()?;
    let authority = to.authority()?;
    let is_safe = *to.scheme()? == Scheme::HTTPS
        || (may_leave_https
            && *to.scheme()? == Scheme::HTTP
            && settings::is_loopback(authority.host()));
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
    fn into_error(self, address: &str) -> ProviderError {
        use ProviderErrorKind::{AnswerInvalid, Configuration, TimedOut, Unreachable};

        let error = match self {
            Self::Library(error) => error,
            Self::Request => {
                return ProviderError::new(Configuration, "could not form a request to Vault");
            }
            Self::Redirect => {
                return ProviderError::new(
                    AnswerInvalid,
                    format!("Vault at \"{address}\" redirects to where a request may not follow"),
                )
                .with_hint(
                    "The address in the setting should be that of the active server or of a load \
                     balancer. Only redirects to the same path by https are followed.",
                );
            }
            Self::TooLarge => {
                return ProviderError::new(
                    AnswerInvalid,
                    format!("Vault at \"{address}\" answered with more than 1 MiB"),
                );
            }
        };
        match &error {
            ureq::Error::Timeout(ureq::Timeout::Connect) => ProviderError::new(
                TimedOut,
                format!("could not connect to Vault at \"{address}\" in time"),
            ),
            ureq::Error::Timeout(_) => ProviderError::new(
                TimedOut,
                format!("Vault at \"{address}\" did not answer in time"),
            ),
            ureq::Error::Protocol(_) | ureq::Error::LargeResponseHeader(..) => ProviderError::new(
                AnswerInvalid,
                format!("what answers at \"{address}\" does not speak HTTP"),
            )
            .with_hint("Check the address, and whether it needs https."),
            ureq::Error::Rustls(error) => tls_error(error, address),
            ureq::Error::Io(error) => match error.get_ref().and_then(|e| e.downcast_ref()) {
                Some(error) => tls_error(error, address),
                None => ProviderError::new(
                    Unreachable,
                    format!("could not reach Vault at \"{address}\": {error}"),
                ),
            },
            ureq::Error::HostNotFound => ProviderError::new(
                Unreachable,
                format!("could not find the host of Vault at \"{address}\""),
            ),
            _ => ProviderError::new(Unreachable, format!("could not reach Vault at \"{address}\"")),
        }
    }
}

fn tls_error(error: &rustls::Error, address: &str) -> ProviderError {
    let unreachable = |message| ProviderError::new(ProviderErrorKind::Unreachable, message);
    match error {
        rustls::Error::InvalidCertificate(why) => {
            unreachable(format!("the certificate of Vault at \"{address}\" is not valid: {why}"))
                .with_hint(
                    "The CA file must have the certificate of the authority that signed the \
                     server's, and the address the name that the server's is for.",
                )
        }
        // Other variants may quote what the peer sent.
        _ => unreachable(format!("could not make a TLS connection to Vault at \"{address}\""))
            .with_hint("Check the address, and whether the server speaks TLS 1.2 or 1.3 there."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_change_the_host_alone() {
        let follow = |from: &str, location: &str, may_leave_https| {
            let location = HeaderValue::from_str(location).unwrap();
            redirected(&from.parse().unwrap(), Some(&location), may_leave_https)
                .map(|uri| uri.to_string())
        };
        let from = "https://a:8200/v1/secret/data/keys/k?version=1";
        let to = "https://b:8200/v1/secret/data/keys/k?version=1";
        assert_eq!(follow(from, to, false).as_deref(), Some(to));
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
            assert_eq!(follow(from, location, false), None, "{location}");
        }
        let plain = "http://127.0.0.1:8200/v1/x";
        assert!(follow(plain, "http://127.0.0.1:8202/v1/x", true).is_some());
        assert!(follow(plain, "https://vault.example/v1/x", true).is_some());
        assert!(follow(plain, "http://vault.example/v1/x", true).is_none());
        assert!(redirected(&plain.parse().unwrap(), None, true).is_none());
    }
}
