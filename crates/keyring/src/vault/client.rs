//! Requests with a login: what all engines of a server have in common.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde::Serialize;
use ureq::http;
use zeroize::Zeroizing;

use super::answer::{Answer, TokenState};
use super::login::{Login, Step};
use super::settings::Vault;
use crate::call;
use crate::http::{self as transport, Http};
use crate::logins;
use crate::provider::{
    Certificates, Finding, Interrupt, Login as SharedLogin, ProviderError, ProviderErrorKind,
};

/// While a cluster changes its leader, which takes up to two seconds, it answers 400 or 5xx and then
/// 404 for what exists. A 404 so soon after an error is not believed at once.
const AFTER_ERROR: Duration = Duration::from_secs(3);

/// How long to wait before such a request is sent again.
const BEFORE_ASKING_AGAIN: Duration = Duration::from_millis(500);

/// What tells a token about itself: "Lookup a token (self)" of Vault's API.
const LOOK_UP: &str = "auth/token/lookup-self";

/// How long to wait for what it says, where nobody needs that.
const LOOK_UP_PATIENCE: Duration = Duration::from_secs(1);

pub(crate) struct Client {
    vault: Vault,
    interrupt: Box<dyn Interrupt>,
    http: Http,
    login: Login,
    last_error: Option<Instant>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Method {
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

/// Why a request has no answer to look at.
pub(crate) enum Refusal {
    /// The login is good, and its policy does not allow the request. The caller knows what for.
    Denied(String),
    Failed(ProviderError),
}

impl From<ProviderError> for Refusal {
    fn from(error: ProviderError) -> Self {
        Self::Failed(error)
    }
}

impl Client {
    pub(crate) fn new(vault: Vault, interrupt: Box<dyn Interrupt>) -> Self {
        let login = Login::new(vault.auth.clone());
        let http = Http::new(vault.http.clone());
        Self { vault, interrupt, http, login, last_error: None }
    }

    /// Closes the connections that are open.
    pub(crate) fn close_connections(&mut self) {
        self.http.close_connections();
    }

    /// Until when the certificates are good that were used last.
    pub(crate) fn certificates(&self) -> Certificates {
        self.http.certificates()
    }

    /// The login that there is, for other processes.
    pub(crate) fn login(&self) -> Option<SharedLogin> {
        self.login.shared()
    }

    /// Takes a login of another process's.
    pub(crate) fn take_login(&mut self, login: SharedLogin) {
        self.login.take(login);
    }

    /// Finds out when the token in the file ends, if that isn't known. What comes of it is no reason to log in
    /// again, and no failure of the provider's.
    pub(crate) fn look_up_login(&mut self, waits: bool) {
        let Some(look_up) = self.login.look_up(Instant::now()) else { return };
        let request = Request {
            method: Method::Get,
            path: LOOK_UP.to_owned(),
            token: Some(look_up.token()),
            body: None,
        };
        if waits {
            let deadline = self.deadline().min(Instant::now() + LOOK_UP_PATIENCE);
            if let Ok(answer) = self.send(request, deadline) {
                look_up.answered(&answer);
            }
        } else if let Ok(request) = self.vault.request(request) {
            self.http.call_in_background(move |transport| {
                if let Ok(response) = transport.send(&request) {
                    let transport::Response { status, headers: _, body } = response;
                    look_up.answered(&Answer { status, body });
                }
            });
        }
    }

    /// The time at which an operation that begins now must end.
    pub(crate) fn deadline(&self) -> Instant {
        self.http.deadline()
    }

    /// Sends a request, logging in as necessary. The answer has status 200, 204, 400 or 404: what
    /// the last two mean depends on the request.
    pub(crate) fn request(
        &mut self,
        method: Method,
        path: &str,
        body: Option<Zeroizing<Vec<u8>>>,
        deadline: Instant,
    ) -> Result<Answer, Refusal> {
        let mut answer = self.request_once(method, path, body.clone(), deadline)?;
        while answer.is_nothing_there() && self.is_just_after_error() {
            call::pause(BEFORE_ASKING_AGAIN, deadline, &*self.interrupt)?;
            answer = self.request_once(method, path, body.clone(), deadline)?;
        }
        self.last_error =
            (answer.status == 400 && answer.transit_refusal().is_none()).then(Instant::now);
        Ok(answer)
    }

    /// Reads what the policies of the login may well not allow; `None` if they don't. Such a denial is no
    /// reason to log in again, as it is in [`Client::request`]: this follows a request that was allowed.
    pub(crate) fn read_if_allowed(
        &mut self,
        path: &str,
        deadline: Instant,
    ) -> Result<Option<Answer>, ProviderError> {
        loop {
            let (token, _) = self.token(deadline)?;
            let path = path.to_owned();
            let request = Request { method: Method::Get, path, token: Some(token), body: None };
            let answer = self.send(request, deadline)?;
            match answer.status {
                404 if self.is_just_after_error() => {
                    call::pause(BEFORE_ASKING_AGAIN, deadline, &*self.interrupt)?;
                }
                200 | 404 => return Ok(Some(answer)),
                403 => return Ok(None),
                _ => return Err(self.unexpected(&answer)),
            }
        }
    }

    /// Whether a server that has changed its leader may not know yet what it has.
    fn is_just_after_error(&self) -> bool {
        self.last_error.is_some_and(|at| at.elapsed() < AFTER_ERROR)
    }

    /// What the policies of the login allow on a path ("read", "create", "root").
    pub(crate) fn capabilities(
        &mut self,
        path: &str,
        deadline: Instant,
    ) -> Result<Vec<String>, Refusal> {
        let body = Zeroizing::new(format!(r#"{{"paths":["{path}"]}}"#).into_bytes());
        let answer = self.request(Method::Post, "sys/capabilities-self", Some(body), deadline)?;
        answer.capabilities().ok_or_else(|| self.invalid("what are not capabilities").into())
    }

    /// What the login is, as far as its policies let it look at itself.
    pub(crate) fn check_login(&mut self, deadline: Instant) -> Result<Finding, ProviderError> {
        let answer = match self.request(Method::Get, LOOK_UP, None, deadline) {
            Ok(answer) => answer,
            Err(Refusal::Denied(_)) => {
                return Ok(Finding::good(
                    "login",
                    "Vault accepts it and does not let it be looked at",
                ));
            }
            Err(Refusal::Failed(error)) => return Err(error),
        };
        let TokenState { ttl_seconds, creation_ttl_seconds: _, policies } =
            answer.token_state().ok_or_else(|| self.invalid("what is not a token's state"))?;
        let time = match ttl_seconds {
            0 => "without end".to_owned(),
            seconds => format!("for another {seconds} s"),
        };
        let detail = format!("its token is good {time}, with the policies {}", policies.join(", "));
        Ok(match policies.iter().any(|policy| policy == "root") {
            true => Finding::warning(
                "login",
                detail,
                "A root token may do everything. Make a policy with the least rights, and a login \
                 that has it.",
            ),
            false => Finding::good("login", detail),
        })
    }

    fn request_once(
        &mut self,
        method: Method,
        path: &str,
        body: Option<Zeroizing<Vec<u8>>>,
        deadline: Instant,
    ) -> Result<Answer, Refusal> {
        let request = |token| Request { method, path: path.to_owned(), token: Some(token), body };
        let (token, is_new) = self.token(deadline)?;
        let mut answer = self.send(request.clone()(token), deadline)?;
        if answer.status == 403 && !is_new && self.login.forget() {
            let (token, _) = self.token(deadline)?;
            answer = self.send(request(token), deadline)?;
        }
        match answer.status {
            // A 500 gets here only if it is about the request, see `served`.
            200 | 204 | 400 | 404 | 500 => Ok(answer),
            403 if self.is_logged_in(deadline)? => {
                Err(Refusal::Denied(format!("Vault does not allow access to \"{path}\"")))
            }
            403 => Err(ProviderError::new(
                ProviderErrorKind::LoginFailed,
                "Vault does not accept the token",
            )
            .with_hint(self.login.hint())
            .into()),
            _ => Err(self.unexpected(&answer).into()),
        }
    }

    /// A token, and whether it comes from a login just made.
    fn token(&mut self, deadline: Instant) -> Result<(Zeroizing<String>, bool), ProviderError> {
        match self.login.begin()? {
            Step::Use(token) => Ok((token, false)),
            Step::LogIn(request) => self.log_in(request, deadline),
            Step::Renew(request) => {
                let answer = self.send(request, deadline)?;
                match self.login.renewed(&answer) {
                    Some(token) => {
                        logins::note();
                        Ok((token, false))
                    }
                    None => {
                        self.login.forget();
                        self.token(deadline)
                    }
                }
            }
        }
    }

    fn log_in(
        &mut self,
        request: Request,
        deadline: Instant,
    ) -> Result<(Zeroizing<String>, bool), ProviderError> {
        let answer = self.send(request, deadline)?;
        match answer.status {
            200 => {
                let token = self.login.finish(&answer);
                token.iter().for_each(|_| logins::note());
                token.map(|token| (token, true)).ok_or_else(|| self.invalid("what is not a login"))
            }
            status @ (400 | 401 | 403 | 404) => Err(ProviderError::new(
                ProviderErrorKind::LoginFailed,
                format!("Vault refused the login (status {status})"),
            )
            .with_hint(self.login.hint())),
            _ => Err(self.unexpected(&answer)),
        }
    }

    /// Whether a denial is about the policy, and not about the token.
    fn is_logged_in(&mut self, deadline: Instant) -> Result<bool, ProviderError> {
        if !self.login.is_token_file() {
            // The token came from a login that succeeded a moment ago.
            return Ok(true);
        }
        let (token, _) = self.token(deadline)?;
        let path = LOOK_UP.to_owned();
        let request = Request { method: Method::Get, path, token: Some(token), body: None };
        let is_logged_in = self.send(request, deadline)?.status == 200;
        if !is_logged_in {
            self.login.refused();
        }
        Ok(is_logged_in)
    }

    fn send(&mut self, request: Request, deadline: Instant) -> Result<Answer, ProviderError> {
        let request = self.vault.request(request)?;
        let base = self.vault.address.base.clone();
        let had_error = Arc::new(AtomicBool::new(false));
        let result = self.http.call(deadline, &*self.interrupt, {
            let had_error = Arc::clone(&had_error);
            move |transport| {
                let answer = transport.send(&request).and_then(|response| {
                    let transport::Response { status, headers: _, body } = response;
                    served(&base, Answer { status, body })
                });
                had_error.fetch_or(is_outage(&answer), Ordering::Relaxed);
                answer
            }
        });
        if had_error.load(Ordering::Relaxed) || is_outage(&result) {
            self.last_error = Some(Instant::now());
        }
        result
    }

    /// The error for a status that no request of ours can be answered with.
    pub(crate) fn unexpected(&self, answer: &Answer) -> ProviderError {
        unexpected(&self.vault.address.base, answer)
    }

    /// The error for an answer that is not what Vault's interface specifies.
    pub(crate) fn invalid(&self, what: &str) -> ProviderError {
        invalid(&self.vault.address.base, what)
    }
}

impl Vault {
    fn request(&self, request: Request) -> Result<transport::Request, ProviderError> {
        let Request { method, path, token, body } = request;
        let method = match method {
            Method::Get => http::Method::GET,
            Method::Post => http::Method::POST,
        };
        let mut builder = http::Request::builder()
            .method(method)
            .uri(format!("{}/v1/{path}", self.address.base))
            // Keeps an agent or a proxy of Vault from being tricked into forwarding a browser's
            // request.
            .header("X-Vault-Request", "true");
        if let Some(namespace) = &self.namespace {
            builder = builder.header("X-Vault-Namespace", namespace);
        }
        if let Some(token) = &token {
            builder = builder.header("X-Vault-Token", transport::sensitive(token)?);
        }
        if body.is_some() {
            builder = builder.header("Content-Type", "application/json");
        }
        builder.body(body.unwrap_or_default()).map_err(|_| {
            ProviderError::new(
                ProviderErrorKind::Configuration,
                "could not form a request to Vault",
            )
        })
    }
}

fn is_outage(result: &Result<Answer, ProviderError>) -> bool {
    result.as_ref().is_err_and(|error| error.kind.is_outage())
}

/// The answer, unless it says that the server can't serve now.
fn served(address: &str, answer: Answer) -> Result<Answer, ProviderError> {
    match answer.status {
        400 if answer.is_setting_up() => Err(ProviderError::new(
            ProviderErrorKind::Unreachable,
            format!("Vault at \"{address}\" is setting the secrets engine up"),
        )
        .transient()),
        429 | 472 | 473 => Err(unexpected(address, &answer)),
        500 if answer.transit_refusal().is_some() => Ok(answer),
        500.. => Err(unexpected(address, &answer)),
        _ => Ok(answer),
    }
}

fn unexpected(address: &str, answer: &Answer) -> ProviderError {
    let status = answer.status;
    match status {
        429 => ProviderError::new(
            ProviderErrorKind::Throttled,
            format!("Vault at \"{address}\" refuses requests because there are too many"),
        )
        .with_hint("Raise the quota, or the time that keys are cached.")
        .transient(),
        // Not worth a retry: unsealing takes people.
        503 if answer.is_sealed() => ProviderError::new(
            ProviderErrorKind::Sealed,
            format!("Vault at \"{address}\" is sealed"),
        )
        .with_hint("A Vault administrator must unseal it."),
        // 472 and 473 are standbys that forward nothing.
        472 | 473 | 500.. => ProviderError::new(
            ProviderErrorKind::Unreachable,
            format!("Vault at \"{address}\" can't serve now (status {status})"),
        )
        .transient(),
        200..=299 => invalid(address, "what was not asked for"),
        _ => invalid(address, &format!("with status {status}")),
    }
}

fn invalid(address: &str, what: &str) -> ProviderError {
    ProviderError::new(
        ProviderErrorKind::AnswerInvalid,
        format!("Vault at \"{address}\" answered {what}"),
    )
    .with_hint("Check that the address is Vault's and the mount is that of the right engine.")
}

/// A JSON object with these fields.
pub(crate) fn json_object(fields: &[(&str, &str)]) -> Zeroizing<Vec<u8>> {
    // Enough also if every character is escaped, so that the vector never moves.
    let len = fields.iter().map(|(name, value)| name.len() + 6 * value.len() + 8).sum::<usize>();
    let mut body = Zeroizing::new(Vec::with_capacity(len + 2));
    body.push(b'{');
    for (i, (name, value)) in fields.iter().enumerate() {
        if i != 0 {
            body.push(b',');
        }
        write_text(&mut body, name);
        body.push(b':');
        write_text(&mut body, value);
    }
    body.push(b'}');
    body
}

fn write_text(body: &mut Vec<u8>, text: &str) {
    text.serialize(&mut serde_json::Serializer::new(body))
        .expect("a string can be written to memory");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_does_not_outgrow_its_buffer() {
        let quotes = "\"\u{1}".repeat(100);
        let body = json_object(&[("role_id", &quotes), ("secret_id", "a")]);
        let value: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(value["role_id"], quotes);
        assert_eq!(value["secret_id"], "a");
        assert_eq!(body.capacity(), 2 + 7 + 1200 + 8 + 9 + 6 + 8);
        assert_eq!(json_object(&[]).as_slice(), b"{}");
    }
}
