//! Requests with a login: what all engines of a server have in common.

use std::time::{Duration, Instant};

use zeroize::Zeroizing;

use super::answer::Answer;
use super::http::{Http, Method, Request};
use super::login::{Login, Step};
use super::settings::Server;
use crate::call;
use crate::provider::{Interrupt, ProviderError, ProviderErrorKind};

/// While a cluster changes its leader, which takes up to two seconds, it answers 400 or 5xx and then
/// 404 for what exists. A 404 so soon after an error is not believed at once.
const AFTER_ERROR: Duration = Duration::from_secs(3);

/// How long to wait before such a request is sent again.
const BEFORE_ASKING_AGAIN: Duration = Duration::from_millis(500);

pub(super) struct Client {
    server: Server,
    interrupt: Box<dyn Interrupt>,
    http: Http,
    login: Login,
    last_error: Option<Instant>,
}

/// Why a request has no answer to look at.
pub(super) enum Refusal {
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
    pub(super) fn new(server: Server, interrupt: Box<dyn Interrupt>) -> Self {
        let login = Login::new(server.auth.clone());
        Self { server, interrupt, http: Http::new(), login, last_error: None }
    }

    /// Closes the connections that are open.
    pub(super) fn close_connections(&mut self) {
        self.http.close_connections();
    }

    /// The time at which an operation that begins now must end.
    pub(super) fn deadline(&self) -> Instant {
        Instant::now() + self.server.limits.total
    }

    /// Sends a request, logging in as necessary. The answer has status 200, 204, 400 or 404: what
    /// the last two mean depends on the request.
    pub(super) fn request(
        &mut self,
        method: Method,
        path: &str,
        body: Option<Zeroizing<Vec<u8>>>,
        deadline: Instant,
    ) -> Result<Answer, Refusal> {
        let answer = self.request_once(method, path, body.clone(), deadline)?;
        let recent = self.last_error.is_some_and(|at| at.elapsed() < AFTER_ERROR);
        let answer = match answer.status {
            404 if recent => {
                call::pause(BEFORE_ASKING_AGAIN, deadline, &*self.interrupt)?;
                self.request_once(method, path, body, deadline)?
            }
            _ => answer,
        };
        self.last_error = (answer.status == 400).then(Instant::now);
        Ok(answer)
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
            200 | 204 | 400 | 404 => Ok(answer),
            403 if self.is_logged_in(deadline)? => {
                Err(Refusal::Denied(format!("Vault does not allow access to \"{path}\"")))
            }
            403 => Err(ProviderError::new(
                ProviderErrorKind::LoginFailed,
                "Vault does not accept the token",
            )
            .with_hint("The token has expired or was revoked. Put a new one into the token file.")
            .into()),
            _ => Err(self.unexpected(&answer).into()),
        }
    }

    /// A token, and whether it comes from a login just made.
    fn token(&mut self, deadline: Instant) -> Result<(Zeroizing<String>, bool), ProviderError> {
        let request = match self.login.begin()? {
            Step::Use(token) => return Ok((token, false)),
            Step::Send(request) => request,
        };
        let answer = self.send(request, deadline)?;
        match answer.status {
            200 => {
                let token = self.login.finish(&answer);
                token.map(|token| (token, true)).ok_or_else(|| self.invalid("what is not a login"))
            }
            status @ (400 | 401 | 403 | 404) => Err(ProviderError::new(
                ProviderErrorKind::LoginFailed,
                format!("Vault refused the login (status {status})"),
            )
            .with_hint(
                "Check the role id, whether the secret id has expired or is used up, and the \
                 settings of the login's mount and the namespace.",
            )),
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
        let path = "auth/token/lookup-self".to_owned();
        let request = Request { method: Method::Get, path, token: Some(token), body: None };
        Ok(self.send(request, deadline)?.status == 200)
    }

    fn send(&mut self, request: Request, deadline: Instant) -> Result<Answer, ProviderError> {
        let answer = self.http.send(&self.server, request, deadline, &*self.interrupt);
        let failed = answer.as_ref().map_or_else(|e| e.kind.is_outage(), |a| a.status >= 429);
        if failed {
            self.last_error = Some(Instant::now());
        }
        answer
    }

    /// The error for a status that no request of ours can be answered with.
    pub(super) fn unexpected(&self, answer: &Answer) -> ProviderError {
        let status = answer.status;
        let address = &self.server.address.base;
        match status {
            429 => ProviderError::new(
                ProviderErrorKind::Throttled,
                format!("Vault at \"{address}\" refuses requests because there are too many"),
            )
            .with_hint("Raise the quota, or the time that keys are cached."),
            503 if answer.is_sealed() => ProviderError::new(
                ProviderErrorKind::Sealed,
                format!("Vault at \"{address}\" is sealed"),
            )
            .with_hint("A Vault administrator must unseal it."),
            // 472 and 473 are standbys that forward nothing.
            472 | 473 | 500.. => ProviderError::new(
                ProviderErrorKind::Unreachable,
                format!("Vault at \"{address}\" can't serve now (status {status})"),
            ),
            200..=299 => self.invalid("what was not asked for"),
            _ => self.invalid(&format!("with status {status}")),
        }
    }

    /// The error for an answer that is not what Vault's interface specifies.
    pub(super) fn invalid(&self, what: &str) -> ProviderError {
        ProviderError::new(
            ProviderErrorKind::AnswerInvalid,
            format!("Vault at \"{}\" answered {what}", self.server.address.base),
        )
        .with_hint("Check that the address is Vault's and the mount is a KV engine of version 2.")
    }
}
