//! Tokens, and how to get one.

use std::path::Path;
use std::time::{Duration, Instant};

use serde::Serialize;
use zeroize::Zeroizing;

use super::answer::{Answer, LoggedIn};
use super::http::{Method, Request};
use super::settings::VaultAuth;
use crate::provider::{ProviderError, ProviderErrorKind};
use crate::watched::{self, Stamp};

/// A login, and the token that it gave last.
pub(super) struct Login {
    auth: VaultAuth,
    current: Option<Current>,
}

struct Current {
    token: Zeroizing<String>,
    origin: Origin,
}

enum Origin {
    /// Read from a file in this state.
    File(Stamp),
    /// Given for a time, after most of which a new one is due.
    Lease { due: Option<Instant> },
}

/// What to do for a token.
pub(super) enum Step {
    /// Use this one.
    Use(Zeroizing<String>),
    /// Send this request, and give its answer to [`Login::finish`].
    Send(Request),
}

impl Login {
    pub(super) fn new(auth: VaultAuth) -> Self {
        Self { auth, current: None }
    }

    /// The token that there is, or the way to one.
    pub(super) fn begin(&mut self) -> Result<Step, ProviderError> {
        match (&self.auth, &self.current) {
            (VaultAuth::TokenFile(path), Some(Current { token, origin: Origin::File(stamp) }))
                if watched::stamp(path) == Some(*stamp) =>
            {
                Ok(Step::Use(token.clone()))
            }
            (VaultAuth::TokenFile(path), _) => {
                let (token, stamp) = read_line(path, "token")?;
                self.current = Some(Current { token: token.clone(), origin: Origin::File(stamp) });
                Ok(Step::Use(token))
            }
            (_, Some(Current { token, origin: Origin::Lease { due } }))
                if due.is_none_or(|due| Instant::now() < due) =>
            {
                Ok(Step::Use(token.clone()))
            }
            (VaultAuth::AppRole { mount, role_id_file, secret_id_file }, _) => {
                let (role_id, _) = read_line(role_id_file, "role id")?;
                let (secret_id, _) = read_line(secret_id_file, "secret id")?;
                Ok(Step::Send(Request {
                    method: Method::Post,
                    path: format!("auth/{mount}/login"),
                    token: None,
                    body: Some(approle_request(&role_id, &secret_id)),
                }))
            }
        }
    }

    /// Takes the token from the answer to a login; `None` if it has none.
    pub(super) fn finish(&mut self, answer: &Answer) -> Option<Zeroizing<String>> {
        let LoggedIn { token, lease_seconds } = answer.logged_in()?;
        // A tenth earlier than it ends, so that no request goes out with a token that ends on the
        // way. Zero is for ever.
        let lease = Duration::from_secs(lease_seconds).mul_f32(0.9);
        let due = Instant::now().checked_add(lease).filter(|_| lease_seconds != 0);
        self.current = Some(Current { token: token.clone(), origin: Origin::Lease { due } });
        Some(token)
    }

    /// Forgets the token, which was refused, and tells whether there may be another.
    pub(super) fn forget(&mut self) -> bool {
        match (&self.auth, self.current.take()) {
            (VaultAuth::AppRole { .. }, _) => true,
            (VaultAuth::TokenFile(path), Some(refused)) => {
                // Also when the file looks the same: its contents decide.
                let now = read_line(path, "token");
                now.is_ok_and(|(token, _)| *token != *refused.token)
            }
            (VaultAuth::TokenFile(_), None) => false,
        }
    }

    /// Whether a refused token is a question of the file that it comes from.
    pub(super) fn is_token_file(&self) -> bool {
        matches!(self.auth, VaultAuth::TokenFile(_))
    }
}

/// A file that can't be read is a login that fails, not a setting that is wrong: what writes the
/// file (Vault Agent) may just not have done so yet.
fn read_line(path: &Path, what: &str) -> Result<(Zeroizing<String>, Stamp), ProviderError> {
    watched::read_line(path, what)
        .map_err(|error| ProviderError { kind: ProviderErrorKind::LoginFailed, ..error })
}

fn approle_request(role_id: &str, secret_id: &str) -> Zeroizing<Vec<u8>> {
    #[derive(Serialize)]
    struct Body<'a> {
        role_id: &'a str,
        secret_id: &'a str,
    }
    // Enough also if every character is escaped, so that the vector never moves.
    let mut body = Zeroizing::new(Vec::with_capacity(64 + 6 * (role_id.len() + secret_id.len())));
    serde_json::to_writer(&mut *body, &Body { role_id, secret_id })
        .expect("two strings can be written to memory");
    body
}
