//! Access tokens (OAuth 2.0, RFC 6749 and RFC 6750): fetched, kept until shortly before they
//! expire, and sent with each request to a cloud's service.
//!
//! The clouds' own libraries were looked at. Google's and Microsoft's for Rust need an asynchronous
//! runtime or bring some eighty crates; `reqsign-google` brings an RSA implementation whose
//! private-key operations leak their time (RUSTSEC-2023-0071), and asks one fixed address. What is
//! needed of them is three forms and two small JSON answers.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::Deserialize;
use ureq::http::header::AUTHORIZATION;
use ureq::http::uri::Scheme;
use ureq::http::{Method, Request as HttpRequest, Uri};
use zeroize::Zeroizing;

use crate::address;
use crate::http::{self, Http, Request, Response, Transport};
use crate::logins;
use crate::provider::{Certificates, Interrupt, Login, ProviderError, ProviderErrorKind};

/// A token that lets its bearer in.
#[derive(Clone)]
pub(crate) struct AccessToken {
    text: Zeroizing<String>,
    expires: Option<Expiry>,
}

#[derive(Clone, Copy)]
struct Expiry {
    /// When it was issued.
    began: Instant,
    length: Duration,
}

impl Expiry {
    /// When a new token is due: a tenth of the time before the end, so that no request goes out
    /// with a token that ends on the way.
    fn due(self) -> Instant {
        self.began + self.length.mul_f32(0.9)
    }

    fn end(self) -> Instant {
        self.began + self.length
    }
}

/// Where tokens come from.
pub(crate) trait TokenSource: Send + Sync + 'static {
    /// Fetches a token, on the thread of a call.
    fn fetch(&self, transport: &Transport) -> Result<AccessToken, ProviderError>;

    /// What tokens come from, for people: "the metadata server".
    fn describe(&self) -> String;
}

/// Sends requests with access tokens to a service.
pub(crate) struct Client {
    service: &'static str,
    http: Http,
    /// Reaches what gives out tokens.
    token_http: Http,
    source: Arc<dyn TokenSource>,
    token: Option<AccessToken>,
    interrupt: Box<dyn Interrupt>,
}

/// A request without its token.
#[derive(Clone)]
pub(crate) struct Unauthorized {
    pub(crate) method: Method,
    pub(crate) uri: String,
    /// JSON; empty for GET.
    pub(crate) body: Zeroizing<Vec<u8>>,
}

impl Client {
    /// A client of the service that `server` describes. Nothing is sent yet.
    pub(crate) fn new(
        server: http::Server,
        source: impl TokenSource,
        interrupt: Box<dyn Interrupt>,
    ) -> Self {
        let service = server.service;
        // A machine's metadata server speaks plain http. `token_endpoint` and its like check each
        // address.
        let token_server = http::Server {
            service: "the service that gives out access tokens",
            https_only: false,
            ..server.clone()
        };
        Self {
            service,
            http: Http::new(server),
            token_http: Http::new(token_server),
            source: Arc::new(source),
            token: None,
            interrupt,
        }
    }

    /// The time at which an operation that begins now must end.
    pub(crate) fn deadline(&self) -> Instant {
        self.http.deadline()
    }

    /// Closes the connections that are open.
    pub(crate) fn close_connections(&mut self) {
        self.http.close_connections();
        self.token_http.close_connections();
    }

    /// Until when the certificate is good that the service has shown last.
    pub(crate) fn certificates(&self) -> Certificates {
        self.http.certificates()
    }

    /// The token that there is, for other processes; none without an end, which nobody would replace.
    pub(crate) fn login(&self) -> Option<Login> {
        let AccessToken { text, expires } = self.token.as_ref()?;
        let Expiry { began, length } = (*expires)?;
        let (length, whole) = (Some(length), Some(length));
        Some(Login { token: text.clone(), began, length, whole, is_renewable: false })
    }

    /// Takes a token of another process's.
    pub(crate) fn take_login(&mut self, login: Login) {
        let Login { token, began, length, whole: _, is_renewable: _ } = login;
        let expires = length.map(|length| Expiry { began, length });
        self.token = Some(AccessToken { text: token, expires });
    }

    /// What tokens come from.
    pub(crate) fn describe_source(&self) -> String {
        self.source.describe()
    }

    /// Sends a request with a token, with a new one if the service refuses the one that was kept.
    /// `read` makes of the answer what the caller needs, on the thread of the call; what fails
    /// there with a transient error is sent again.
    pub(crate) fn request<T: Send + 'static>(
        &mut self,
        request: &Unauthorized,
        deadline: Instant,
        read: impl Fn(&Response) -> Result<T, ProviderError> + Send + Sync + Clone + 'static,
    ) -> Result<T, ProviderError> {
        loop {
            let (token, is_new) = self.token(deadline)?;
            let request = request.with(&token)?;
            let read = read.clone();
            let result = self.http.call(deadline, &*self.interrupt, move |transport| {
                let response = transport.send(&request)?;
                match response.status {
                    401 => Ok(None),
                    _ => read(&response).map(Some),
                }
            })?;
            match result {
                Some(result) => return Ok(result),
                None if is_new => {
                    let service = self.service;
                    return Err(login_failed(format!(
                        "{service} does not accept the access token"
                    ))
                    .with_hint(
                        "The token was issued a moment ago. Check that the login is for this \
                             service and this tenant or project, and the clock of this machine.",
                    ));
                }
                None => self.token = None,
            }
        }
    }

    /// A token, and whether it was fetched just now.
    fn token(&mut self, deadline: Instant) -> Result<(AccessToken, bool), ProviderError> {
        let now = Instant::now();
        let kept = self.token.take().filter(|token| token.is_alive(now));
        if let Some(token) = kept.as_ref().filter(|token| !token.is_due(now)) {
            self.token = Some(token.clone());
            return Ok((token.clone(), false));
        }
        // Where the old token is good for a while yet, a source that doesn't answer must leave time
        // for the request.
        let until = if kept.is_some() { now + (deadline - now) / 2 } else { deadline };
        let source = Arc::clone(&self.source);
        let fetched =
            self.token_http.call(until, &*self.interrupt, move |transport| source.fetch(transport));
        match (fetched, kept) {
            (Ok(token), _) => {
                logins::note();
                self.token = Some(token.clone());
                Ok((token, true))
            }
            (Err(error), Some(token)) if error.kind != ProviderErrorKind::Interrupted => {
                self.token = Some(token.clone());
                Ok((token, false))
            }
            (Err(error), _) => Err(error),
        }
    }
}

impl Unauthorized {
    fn with(&self, token: &AccessToken) -> Result<Request, ProviderError> {
        let authorization = Zeroizing::new(format!("Bearer {}", *token.text));
        let mut builder = HttpRequest::builder()
            .method(self.method.clone())
            .uri(&self.uri)
            .header(AUTHORIZATION, http::sensitive(&authorization)?);
        if !self.body.is_empty() {
            builder = builder.header("Content-Type", "application/json");
        }
        builder.body(self.body.clone()).map_err(|_| unformed())
    }
}

impl AccessToken {
    /// A token that a service has issued just now, for so many seconds if it says so. `None` if it
    /// can't be sent in a header.
    pub(crate) fn new(text: Zeroizing<String>, seconds: Option<u64>) -> Option<Self> {
        if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return None;
        }
        let now = Instant::now();
        let expires = seconds.map(|seconds| {
            // Longer is as good as for ever.
            let length = Duration::from_secs(seconds.min(30 * 24 * 3600));
            Expiry { began: now, length }
        });
        Some(Self { text, expires })
    }

    /// The token that an answer has ("Successful Response", RFC 6749 section 5.1). Microsoft's
    /// endpoints for managed identities say numbers as texts, and some of them the time of the end
    /// (`expires_on`, in seconds since 1970) rather than the time until then.
    pub(crate) fn from_answer(body: &[u8]) -> Option<Self> {
        #[derive(Deserialize)]
        struct Answer {
            access_token: Zeroizing<String>,
            #[serde(default)]
            expires_in: Option<Seconds>,
            #[serde(default)]
            expires_on: Option<Seconds>,
        }
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Seconds {
            Number(u64),
            Text(String),
        }
        impl Seconds {
            fn get(&self) -> Option<u64> {
                match self {
                    Self::Number(number) => Some(*number),
                    Self::Text(text) => text.parse().ok(),
                }
            }
        }
        let Answer { access_token, expires_in, expires_on } = serde_json::from_slice(body).ok()?;
        let left = |end: u64| end.saturating_sub(seconds_since_1970());
        let seconds = match (expires_in, expires_on) {
            (Some(seconds), _) => Some(seconds.get()?),
            (None, Some(end)) => Some(left(end.get()?)),
            (None, None) => None,
        };
        Self::new(access_token, seconds)
    }

    /// The token, for a header.
    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    fn is_alive(&self, now: Instant) -> bool {
        self.expires.is_none_or(|expires| now < expires.end())
    }

    fn is_due(&self, now: Instant) -> bool {
        self.expires.is_some_and(|expires| now >= expires.due())
    }
}

/// A request for a token with a form (`application/x-www-form-urlencoded`).
pub(crate) fn form_request(uri: &Uri, fields: &[(&str, &str)]) -> Result<Request, ProviderError> {
    HttpRequest::post(uri.clone())
        .header("Content-Type", "application/x-www-form-urlencoded")
        .body(encode_form(fields))
        .map_err(|_| unformed())
}

/// Reads the answer to a request for a token. `whose` says what was sent to whom, for the error:
/// "Google's token endpoint refused the service account".
pub(crate) fn read_token(response: &Response, whose: &str) -> Result<AccessToken, ProviderError> {
    if response.status == 200 {
        return AccessToken::from_answer(&response.body)
            .ok_or_else(|| login_failed(format!("{whose}: the answer has no access token in it")));
    }
    Err(refusal(response, whose))
}

/// Why there is no token.
pub(crate) fn refusal(response: &Response, whose: &str) -> ProviderError {
    match response.status {
        429 => ProviderError::new(
            ProviderErrorKind::Throttled,
            format!("{whose}: there are too many requests"),
        )
        .transient(),
        status @ 500.. => ProviderError::new(
            ProviderErrorKind::Unreachable,
            format!("{whose}: it can't serve now (status {status})"),
        )
        .transient(),
        status => login_failed(format!("{whose} (status {status}{})", error_codes(&response.body))),
    }
}

/// The codes of an error ("Error Response", RFC 6749 section 5.2; the identity platform of
/// Microsoft has numbers besides, AADSTS…). Only codes that are known are repeated: what else the
/// answer says may quote the request.
fn error_codes(body: &[u8]) -> String {
    const KNOWN: [&str; 8] = [
        "access_denied",
        "invalid_client",
        "invalid_grant",
        "invalid_request",
        "invalid_scope",
        "invalid_target",
        "unauthorized_client",
        "unsupported_grant_type",
    ];
    #[derive(Deserialize)]
    struct Answer {
        error: String,
        #[serde(default)]
        error_codes: Vec<u32>,
    }
    let Ok(answer) = serde_json::from_slice::<Answer>(body) else { return String::new() };
    let code = KNOWN.into_iter().find(|code| *code == answer.error);
    let numbers = answer.error_codes.iter().take(1).map(|number| format!("AADSTS{number}"));
    code.map(str::to_owned).into_iter().chain(numbers).map(|code| format!(", {code}")).collect()
}

/// An address to send credentials to: by https, or to this machine. `what` names it in the error,
/// which doesn't repeat it.
pub(crate) fn token_endpoint(text: &str, what: &str) -> Result<Uri, ProviderError> {
    endpoint(text, what, address::is_loopback)
}

/// An address of the machine's own platform, such as a metadata server, which may also be
/// link-local (RFC 3927) by plain http: such packets leave the machine no further than its host.
pub(crate) fn machine_endpoint(text: &str, what: &str) -> Result<Uri, ProviderError> {
    let is_link_local = |host: &str| {
        host.parse::<std::net::Ipv4Addr>().is_ok_and(|address| address.is_link_local())
            || host == "metadata.google.internal"
    };
    endpoint(text, what, |host| address::is_loopback(host) || is_link_local(host))
}

fn endpoint(
    text: &str,
    what: &str,
    may_be_plain: impl Fn(&str) -> bool,
) -> Result<Uri, ProviderError> {
    let uri = text.parse::<Uri>().ok().filter(|uri| {
        let is_safe = uri.authority().is_some_and(|authority| {
            !authority.as_str().contains('@')
                && !authority.host().is_empty()
                && (uri.scheme() == Some(&Scheme::HTTPS)
                    || (uri.scheme() == Some(&Scheme::HTTP) && may_be_plain(authority.host())))
        });
        is_safe && !text.contains('#')
    });
    uri.ok_or_else(|| {
        ProviderError::new(
            ProviderErrorKind::LoginFailed,
            format!("{what} is not an https address that credentials may be sent to"),
        )
    })
}

/// A login that fails: an outage, since it says nothing about the key.
pub(crate) fn login_failed(message: impl Into<String>) -> ProviderError {
    ProviderError::new(ProviderErrorKind::LoginFailed, message)
}

/// The system's time (RFC 7519: NumericDate), 0 if its clock is before 1970.
pub(crate) fn seconds_since_1970() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |duration| duration.as_secs())
}

/// Writes `application/x-www-form-urlencoded`, into memory that is enough at once.
fn encode_form(fields: &[(&str, &str)]) -> Zeroizing<Vec<u8>> {
    let len = fields.iter().map(|(name, value)| 2 + 3 * (name.len() + value.len())).sum();
    let mut form = Zeroizing::new(Vec::with_capacity(len));
    for (name, value) in fields {
        if !form.is_empty() {
            form.push(b'&');
        }
        percent_encode(name, &mut form);
        form.push(b'=');
        percent_encode(value, &mut form);
    }
    form
}

/// Percent-encodes all but the unreserved characters (RFC 3986 section 2.3), which is right in
/// forms and in queries.
pub(crate) fn percent_encode(text: &str, out: &mut Vec<u8>) {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(byte),
            _ => {
                out.extend([b'%', DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 0xf)]])
            }
        }
    }
}

fn unformed() -> ProviderError {
    ProviderError::new(ProviderErrorKind::Configuration, "could not form a request")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_read_in_every_form_that_is_in_use() {
        let seconds = |body: &str| {
            let token = AccessToken::from_answer(body.as_bytes())?;
            assert_eq!(token.text(), "t.1");
            let left = |expiry: Expiry| (expiry.end() - Instant::now()).as_secs_f32().round();
            Some(token.expires.map(left))
        };
        assert_eq!(seconds(r#"{"access_token":"t.1","expires_in":3600}"#), Some(Some(3600.0)));
        assert_eq!(seconds(r#"{"access_token":"t.1","expires_in":"60","x":[]}"#), Some(Some(60.0)));
        let end = seconds_since_1970() + 100;
        let left = seconds(&format!(r#"{{"access_token":"t.1","expires_on":"{end}"}}"#));
        assert!((98.0..=100.0).contains(&left.unwrap().unwrap()), "{left:?}");
        assert_eq!(seconds(r#"{"access_token":"t.1"}"#), Some(None));
        for body in [
            "",
            "{}",
            "[]",
            r#"{"access_token":""}"#,
            r#"{"access_token":"a b"}"#,
            r#"{"access_token":"a\nb"}"#,
            r#"{"access_token":1}"#,
            r#"{"access_token":"t.1","expires_in":"soon"}"#,
            r#"{"access_token":"t.1","expires_in":-1}"#,
        ] {
            assert_eq!(seconds(body), None, "{body}");
        }
    }

    #[test]
    fn a_token_is_due_before_it_ends() {
        let token = AccessToken::new(Zeroizing::new("t".to_owned()), Some(1000)).unwrap();
        let after = |seconds| Instant::now() + Duration::from_secs(seconds);
        for (seconds, is_due, is_alive) in
            [(890, false, true), (910, true, true), (1001, true, false)]
        {
            assert_eq!(token.is_due(after(seconds)), is_due, "{seconds}");
            assert_eq!(token.is_alive(after(seconds)), is_alive, "{seconds}");
        }
    }

    #[test]
    fn forms_are_encoded_in_memory_that_does_not_move() {
        let form = encode_form(&[("a", "b c+d&e=f/\u{e4}~"), ("scope", "x")]);
        assert_eq!(String::from_utf8_lossy(&form), "a=b%20c%2Bd%26e%3Df%2F%C3%A4~&scope=x");
        let worst = encode_form(&[("\u{e4}", "+++"), ("++", "\u{20ac}")]);
        assert!(worst.len() <= worst.capacity() && worst.capacity() < 40);
    }

    #[test]
    fn credentials_go_by_https_or_stay_on_the_machine() {
        for text in ["https://sts.googleapis.com/v1/token", "http://127.0.0.1:1/x?y=z"] {
            assert_eq!(token_endpoint(text, "it").unwrap(), text);
        }
        let metadata = "http://169.254.169.254/metadata/identity/oauth2/token?resource=x";
        assert_eq!(machine_endpoint(metadata, "it").unwrap(), metadata);
        assert!(machine_endpoint("http://metadata.google.internal/x", "it").is_ok());
        for text in [
            metadata,
            "http://example.com/",
            "https://user@example.com/",
            "ftp://127.0.0.1/",
            "/token",
            "",
            "https:///token",
            "https://example.com/#x",
        ] {
            let error = token_endpoint(text, "it").unwrap_err();
            assert_eq!(error.kind, ProviderErrorKind::LoginFailed);
            assert!(!error.message.contains("example"), "{error}");
        }
        assert!(machine_endpoint("http://10.0.0.1/", "it").is_err());
    }

    #[test]
    fn only_known_codes_of_an_error_are_repeated() {
        let text = |body: &str| error_codes(body.as_bytes());
        assert_eq!(text(r#"{"error":"invalid_grant","error_description":"x"}"#), ", invalid_grant");
        assert_eq!(
            text(r#"{"error":"invalid_client","error_codes":[7000215,1]}"#),
            ", invalid_client, AADSTS7000215"
        );
        for body in [r#"{"error":"hunter2"}"#, r#"{"error":{"code":403}}"#, "hunter2", ""] {
            assert_eq!(text(body), "");
        }
    }
}
