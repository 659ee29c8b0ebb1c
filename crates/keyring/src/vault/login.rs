//! Tokens, and how to get one.
//!
//! A token that a login gave lives for a time, its *lease*. When most of that is over, the next
//! request has it renewed first, as long as Vault allows that (`token_max_ttl`); then a new login
//! takes its place. Nothing happens in between: a token that no request needs is left to end.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use zeroize::Zeroizing;

use super::answer::{Answer, LoggedIn};
use super::client::{Method, Request, json_object};
use super::settings::VaultOptions;
use crate::address;
use crate::options::{self, configuration};
use crate::provider::{Login as SharedLogin, ProviderError, ProviderErrorKind};
use crate::watched::{self, Stamp};

/// How to log in to Vault.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Auth {
    /// By a token in a file, which something else (Vault Agent) renews and replaces.
    TokenFile(PathBuf),
    /// By a role id and a secret id, each in a file.
    AppRole { mount: String, role_id_file: PathBuf, secret_id_file: PathBuf },
    /// By a token (RFC 7519) in a file, which a platform issues: the methods `jwt` and `kubernetes`,
    /// whose requests are the same.
    Jwt { mount: String, role: String, jwt_file: PathBuf },
    /// By the client certificate of the TLS connection, for one role of the mount or for any.
    Certificate { mount: String, role: Option<String> },
}

impl Auth {
    /// Takes the way to log in from the settings. `shows_certificate` tells whether there is a client
    /// certificate, and a TLS connection to show it in.
    pub(super) fn parse(
        options: &VaultOptions,
        shows_certificate: bool,
    ) -> Result<Self, ProviderError> {
        let mount = || match options.auth_mount.as_str() {
            "" => Ok(options.auth.clone()),
            mount => address::parse_path(mount, "auth_mount"),
        };
        match options.auth.as_str() {
            "" | "token" => options::required_file(options.token_file.clone(), "token_file")
                .map(Self::TokenFile),
            "approle" => Ok(Self::AppRole {
                mount: mount()?,
                role_id_file: options::required_file(options.role_id_file.clone(), "role_id_file")?,
                secret_id_file: options::required_file(
                    options.secret_id_file.clone(),
                    "secret_id_file",
                )?,
            }),
            "kubernetes" | "jwt" => Ok(Self::Jwt {
                mount: mount()?,
                role: options::required(options.role.clone(), "role")?,
                jwt_file: options::optional_file(options.jwt_file.clone(), "jwt_file")?
                    .unwrap_or_else(|| VaultOptions::DEFAULT_JWT_FILE.into()),
            }),
            "cert" if !shows_certificate => Err(configuration(
                "login \"cert\" needs an https address and the settings \
                 \"client_certificate_file\" and \"client_key_file\"",
            )),
            "cert" => Ok(Self::Certificate {
                mount: mount()?,
                role: options::optional(options.role.clone()),
            }),
            other => Err(configuration(format!(
                "setting \"auth\" is {other:?}, which is not a way to log in"
            ))
            .with_hint("The ways are token, approle, kubernetes, jwt and cert.")),
        }
    }

    /// What to look at when the login is refused.
    pub(super) fn hint(&self) -> &'static str {
        match self {
            Self::TokenFile(_) => {
                "The token has expired or was revoked. Put a new one into the token file."
            }
            Self::AppRole { .. } => {
                "Check the role id, whether the secret id has expired or is used up, and the \
                 settings of the login's mount and the namespace."
            }
            Self::Jwt { .. } => {
                "Check whether the token in the file has expired, whether the role exists and takes \
                 its subject and audience, and the settings of the login's mount and the namespace."
            }
            Self::Certificate { .. } => {
                "Check whether the client certificate has expired, whether a role of the login \
                 takes it, and the settings of the login's mount and the namespace."
            }
        }
    }

    /// The request that logs in.
    fn request(&self) -> Result<Request, ProviderError> {
        let (mount, body) = match self {
            Self::TokenFile(_) => {
                return Err(configuration("a token in a file takes no login"));
            }
            Self::AppRole { mount, role_id_file, secret_id_file } => {
                let (role_id, _) = read_line(role_id_file, "role id")?;
                let (secret_id, _) = read_line(secret_id_file, "secret id")?;
                (mount, json_object(&[("role_id", &role_id), ("secret_id", &secret_id)]))
            }
            Self::Jwt { mount, role, jwt_file } => {
                let (jwt, _) = read_line(jwt_file, "JWT")?;
                (mount, json_object(&[("role", role), ("jwt", &jwt)]))
            }
            Self::Certificate { mount, role } => {
                let role = role.as_ref().map(|role| ("name", role.as_str()));
                (mount, json_object(role.as_slice()))
            }
        };
        Ok(Request {
            method: Method::Post,
            path: format!("auth/{mount}/login"),
            token: None,
            body: Some(body),
        })
    }
}

/// A login, and the token that it gave last.
pub(super) struct Login {
    auth: Auth,
    current: Option<Current>,
    /// When the request was made that [`Login::finish`] or [`Login::renewed`] has the answer to.
    /// The lease began after that.
    requested: Instant,
}

struct Current {
    token: Zeroizing<String>,
    origin: Origin,
}

enum Origin {
    /// Read from a file in this state.
    File(Stamp),
    Lease(Lease),
}

/// The time that a token was given for.
#[derive(Clone, Copy)]
struct Lease {
    /// No later than its real beginning.
    began: Instant,
    /// Its length; `None` is for ever.
    length: Option<Duration>,
    may_be_renewed: bool,
}

/// What a token is good for at a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Good,
    /// Good, and it is time to renew it.
    RenewalDue,
    /// So near to its end that it might come while a request is on its way.
    Over,
}

impl Lease {
    fn phase(&self, now: Instant) -> Phase {
        let Some(length) = self.length else { return Phase::Good };
        let age = now.saturating_duration_since(self.began);
        match () {
            () if age < length.mul_f32(2.0 / 3.0) => Phase::Good,
            () if age >= length.mul_f32(0.9) => Phase::Over,
            () if self.may_be_renewed => Phase::RenewalDue,
            () => Phase::Good,
        }
    }
}

/// What to do for a token.
pub(super) enum Step {
    /// Use this one.
    Use(Zeroizing<String>),
    /// Send this request, which renews the token, and give its answer to [`Login::renewed`].
    Renew(Request),
    /// Send this request, which logs in, and give its answer to [`Login::finish`].
    LogIn(Request),
}

impl Login {
    pub(super) fn new(auth: Auth) -> Self {
        Self { auth, current: None, requested: Instant::now() }
    }

    /// The token that there is, or the way to one.
    pub(super) fn begin(&mut self) -> Result<Step, ProviderError> {
        self.requested = Instant::now();
        match (&self.auth, &self.current) {
            (Auth::TokenFile(path), Some(Current { token, origin: Origin::File(stamp) }))
                if watched::stamp(path) == Some(*stamp) =>
            {
                Ok(Step::Use(token.clone()))
            }
            (Auth::TokenFile(path), _) => {
                let (token, stamp) = read_line(path, "token")?;
                self.current = Some(Current { token: token.clone(), origin: Origin::File(stamp) });
                Ok(Step::Use(token))
            }
            (auth, Some(Current { token, origin: Origin::Lease(lease) })) => {
                match lease.phase(self.requested) {
                    Phase::Good => Ok(Step::Use(token.clone())),
                    Phase::RenewalDue => Ok(Step::Renew(renewal(token.clone()))),
                    Phase::Over => auth.request().map(Step::LogIn),
                }
            }
            (auth, _) => auth.request().map(Step::LogIn),
        }
    }

    /// Takes the token from the answer to a login; `None` if it has none.
    pub(super) fn finish(&mut self, answer: &Answer) -> Option<Zeroizing<String>> {
        let LoggedIn { token, lease_seconds, is_renewable } = answer.logged_in()?;
        let lease = Lease {
            began: self.requested,
            length: (lease_seconds != 0).then(|| Duration::from_secs(lease_seconds)),
            may_be_renewed: is_renewable,
        };
        self.current = Some(Current { token: token.clone(), origin: Origin::Lease(lease) });
        Some(token)
    }

    /// Takes the new time of the token from the answer to its renewal. `None` if there is none, and a
    /// new login is due.
    pub(super) fn renewed(&mut self, answer: &Answer) -> Option<Zeroizing<String>> {
        let renewed = answer.logged_in()?;
        let Some(Current { token, origin: Origin::Lease(lease) }) = &mut self.current else {
            return None;
        };
        let length = Duration::from_secs(renewed.lease_seconds);
        if *token != renewed.token || length.is_zero() {
            return None;
        }
        *lease = Lease {
            began: self.requested,
            length: Some(length),
            // Less than before: the most that Vault allows the token is reached. What is left is
            // used, and then a login is due.
            may_be_renewed: renewed.is_renewable && lease.length.is_some_and(|old| length >= old),
        };
        Some(token.clone())
    }

    /// Forgets the token, which was refused, and tells whether there may be another.
    pub(super) fn forget(&mut self) -> bool {
        match (&self.auth, self.current.take()) {
            (Auth::TokenFile(path), Some(refused)) => {
                // Also when the file looks the same: its contents decide.
                let now = read_line(path, "token");
                now.is_ok_and(|(token, _)| *token != *refused.token)
            }
            (Auth::TokenFile(_), None) => false,
            (_, _) => true,
        }
    }

    /// The token that a login gave, and its lease. (One from a file is there for everybody.)
    pub(super) fn shared(&self) -> Option<SharedLogin> {
        let Some(Current { token, origin: Origin::Lease(lease) }) = &self.current else {
            return None;
        };
        let Lease { began, length, may_be_renewed } = *lease;
        Some(SharedLogin { token: token.clone(), began, length, is_renewable: may_be_renewed })
    }

    /// Takes a token that a login of another process gave.
    pub(super) fn take(&mut self, login: SharedLogin) {
        let SharedLogin { token, began, length, is_renewable } = login;
        if !self.is_token_file() {
            let lease = Lease { began, length, may_be_renewed: is_renewable };
            self.current = Some(Current { token, origin: Origin::Lease(lease) });
        }
    }

    /// Whether a refused token is a question of the file that it comes from.
    pub(super) fn is_token_file(&self) -> bool {
        matches!(self.auth, Auth::TokenFile(_))
    }

    /// What to look at when the login is refused.
    pub(super) fn hint(&self) -> &'static str {
        self.auth.hint()
    }
}

/// Asks for as much time as the token had at first ("Renew a token (self)" of Vault's API).
fn renewal(token: Zeroizing<String>) -> Request {
    Request {
        method: Method::Post,
        path: "auth/token/renew-self".to_owned(),
        token: Some(token),
        body: Some(json_object(&[])),
    }
}

/// A file that can't be read is a login that fails, not a setting that is wrong: what writes the
/// file (Vault Agent) may just not have done so yet.
fn read_line(path: &Path, what: &str) -> Result<(Zeroizing<String>, Stamp), ProviderError> {
    watched::read_line(path, what)
        .map_err(|error| ProviderError { kind: ProviderErrorKind::LoginFailed, ..error })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_login_is_taken_by_another_process() {
        let options = VaultOptions {
            auth: "jwt".to_owned(),
            role: "database".to_owned(),
            ..VaultOptions::default()
        };
        let auth = Auth::parse(&options, false).unwrap();
        let mut one = Login::new(auth.clone());
        assert!(one.shared().is_none());
        let lease = Lease { began: Instant::now(), length: None, may_be_renewed: true };
        let token = Zeroizing::new("t".to_owned());
        one.current = Some(Current { token, origin: Origin::Lease(lease) });
        let mut other = Login::new(auth);
        other.take(one.shared().unwrap());
        assert!(matches!(other.begin(), Ok(Step::Use(token)) if *token == "t"));
        assert_eq!(other.shared(), one.shared());
    }

    #[test]
    fn a_lease_has_phases() {
        let began = Instant::now();
        let phases = |length, may_be_renewed| {
            let lease = Lease { began, length, may_be_renewed };
            [0, 60, 67, 89, 91, 200].map(|age| lease.phase(began + Duration::from_secs(age)))
        };
        use Phase::{Good, Over, RenewalDue};
        assert_eq!(phases(None, true), [Good; 6]);
        let hundred = Some(Duration::from_secs(100));
        assert_eq!(phases(hundred, true), [Good, Good, RenewalDue, RenewalDue, Over, Over]);
        assert_eq!(phases(hundred, false), [Good, Good, Good, Good, Over, Over]);
    }
}
