//! Tokens, and how to get one.
//!
//! A token that a login gave lives for a time, its *lease*. When most of that is over, the next
//! request has it renewed first, as long as Vault allows that (`token_max_ttl`); then a new login
//! takes its place. Nothing happens in between: a token that no request needs is left to end.
//!
//! A token in a file is renewed by whatever writes the file. When it ends is looked up, for those who watch
//! over it; nothing here goes by it, since only the file says which token is to be used.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::answer::{Answer, LoggedIn, TokenState};
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
    /// What is known of the token in the file.
    known: Known,
    /// When it was looked up last by this process, whatever came of it.
    looked_up: Option<Instant>,
}

/// What was found out of the token in a file, here or by another process.
#[derive(Clone, Default)]
struct Known(Arc<Mutex<Option<InFile>>>);

struct InFile {
    /// Of the token, which is in the file for everybody.
    digest: Zeroizing<String>,
    /// When it was looked up.
    at: Instant,
    /// How long it was good from then on; `None` is for ever, or that it may not be looked up.
    left: Option<Duration>,
    /// How long it was made, or renewed, for.
    whole: Option<Duration>,
}

impl Known {
    /// Nothing panics with the lock held; if it did, what is in it would still be whole.
    fn lock(&self) -> MutexGuard<'_, Option<InFile>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets what is known of any other token than this one.
    fn forget_others(&self, token: &str) {
        let mut known = self.lock();
        *known = known.take().filter(|known| known.digest == digest(token));
    }
}

impl InFile {
    /// Whether the token is so near to its end that it must have been renewed by now, if it ever is. What
    /// renews tokens does so when two thirds of their time are over (`LifetimeWatcher` of Vault's Go library).
    fn is_near_its_end(&self, now: Instant) -> bool {
        let since = now.saturating_duration_since(self.at);
        let left = self.left.map(|left| left.saturating_sub(since));
        left.zip(self.whole).is_some_and(|(left, whole)| left < whole / 3)
    }

    /// How long it is not looked up again: for less where a token lives for minutes.
    fn pause(&self) -> Duration {
        self.whole.map_or(BETWEEN_LOOK_UPS, |whole| BETWEEN_LOOK_UPS.min(whole / 6))
    }
}

/// A look-up of the token in the file that is to be made.
pub(super) struct LookUp {
    token: Zeroizing<String>,
    at: Instant,
    known: Known,
}

impl LookUp {
    pub(super) fn token(&self) -> Zeroizing<String> {
        self.token.clone()
    }

    /// Takes notice of the answer. A denial stays until there is another token; any other failure tells
    /// nothing.
    pub(super) fn answered(self, answer: &Answer) {
        let Self { token, at, known } = self;
        let seconds = |seconds| (seconds != 0).then(|| Duration::from_secs(seconds));
        let digest = digest(&token);
        let mut known = known.lock();
        let former = known.as_ref().filter(|former| former.digest == digest);
        let (left, whole) = match (answer.status, answer.token_state()) {
            (403, _) => (None, None),
            (_, Some(TokenState { ttl_seconds, creation_ttl_seconds, policies: _ })) => {
                let whole = seconds(creation_ttl_seconds.max(ttl_seconds));
                // One that has an end has less than a second until then.
                let left = whole.map(|_| Duration::from_secs(ttl_seconds));
                (left, whole.max(former.and_then(|former| former.whole)))
            }
            (_, None) => return,
        };
        *known = Some(InFile { digest, at, left, whole });
    }
}

/// What tells a token from others and lets nobody in.
fn digest(token: &str) -> Zeroizing<String> {
    Zeroizing::new(STANDARD.encode(Sha256::digest(token)))
}

/// How long a look-up is not made again, whatever came of it.
const BETWEEN_LOOK_UPS: Duration = Duration::from_secs(60);

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
        let (requested, known) = (Instant::now(), Known::default());
        Self { auth, current: None, requested, known, looked_up: None }
    }

    /// The token that there is, or the way to one.
    pub(super) fn begin(&mut self) -> Result<Step, ProviderError> {
        self.requested = Instant::now();
        match (&self.auth, &self.current) {
            (Auth::TokenFile(path), Some(Current { token, origin: Origin::File(stamp) }))
                if watched::stamp(path) == Some(*stamp) =>
            {
                self.known.forget_others(token);
                Ok(Step::Use(token.clone()))
            }
            (Auth::TokenFile(path), former) => {
                let (token, stamp) = read_line(path, "token")?;
                self.known.forget_others(&token);
                if former.as_ref().is_none_or(|former| former.token != token) {
                    self.looked_up = None;
                }
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

    /// The token that a login gave, and its lease; or what is known of the one in the file.
    pub(super) fn shared(&self) -> Option<SharedLogin> {
        if self.is_token_file() {
            let known = self.known.lock();
            let InFile { digest, at, left, whole } = known.as_ref()?;
            let (token, began, length, whole) = (digest.clone(), *at, *left, *whole);
            return Some(SharedLogin { token, began, length, whole, is_renewable: false });
        }
        let Some(Current { token, origin: Origin::Lease(lease) }) = &self.current else {
            return None;
        };
        let Lease { began, length, may_be_renewed: is_renewable } = *lease;
        Some(SharedLogin { token: token.clone(), began, length, whole: length, is_renewable })
    }

    /// Takes a token that a login of another process gave, or what that has found out of the one in the file.
    pub(super) fn take(&mut self, login: SharedLogin) {
        let SharedLogin { token, began, length, whole, is_renewable } = login;
        if self.is_token_file() {
            let in_file = InFile { digest: token, at: began, left: length, whole };
            *self.known.lock() = Some(in_file);
        } else {
            let lease = Lease { began, length, may_be_renewed: is_renewable };
            self.current = Some(Current { token, origin: Origin::Lease(lease) });
        }
    }

    /// The look-up that is due of the token in the file: a first one, or another one as the token is about to
    /// end and may have been renewed.
    pub(super) fn look_up(&mut self, now: Instant) -> Option<LookUp> {
        let Some(Current { token, origin: Origin::File(_) }) = &self.current else { return None };
        let (is_due, pause, last) = match &*self.known.lock() {
            None => (true, BETWEEN_LOOK_UPS, self.looked_up),
            Some(known) => {
                (known.is_near_its_end(now), known.pause(), self.looked_up.max(Some(known.at)))
            }
        };
        if !is_due || last.is_some_and(|last| now.saturating_duration_since(last) < pause) {
            return None;
        }
        self.looked_up = Some(now);
        Some(LookUp { token: token.clone(), at: now, known: self.known.clone() })
    }

    /// Takes notice that the token in the file was refused.
    pub(super) fn refused(&mut self) {
        *self.known.lock() = None;
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
    fn a_token_in_a_file_is_looked_up_once_and_again_before_it_ends() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("token");
        let options = VaultOptions {
            token_file: file.to_str().unwrap().to_owned(),
            ..VaultOptions::default()
        };
        let mut login = Login::new(Auth::parse(&options, false).unwrap());
        let put = |login: &mut Login, token: &str| {
            std::fs::write(&file, token).unwrap();
            assert!(login.begin().is_ok());
        };
        let answered = |login: &mut Login, now, status, ttl: u64, creation_ttl: u64| {
            let body = format!(
                r#"{{"data":{{"ttl":{ttl},"creation_ttl":{creation_ttl},"policies":[]}}}}"#
            );
            let body = Zeroizing::new(body.into_bytes());
            login.look_up(now).unwrap().answered(&Answer { status, body });
        };
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        // Nothing was asked with it.
        assert!(login.look_up(start).is_none());
        put(&mut login, "one");
        answered(&mut login, start, 200, 3000, 3600);
        let known = login.shared().unwrap();
        assert!(!known.token.contains("one"));
        let seconds = |login: &Login| {
            let SharedLogin { length, whole, .. } = login.shared().unwrap();
            (length.map(|length| length.as_secs()), whole.map(|whole| whole.as_secs()))
        };
        assert_eq!(seconds(&login), (Some(3000), Some(3600)));
        // A third of the time is not left.
        assert!(login.look_up(after(1799)).is_none());
        // An outage tells nothing, and is not met again at once.
        answered(&mut login, after(1801), 503, 0, 0);
        assert_eq!(seconds(&login), (Some(3000), Some(3600)));
        assert!(login.look_up(after(1860)).is_none());
        answered(&mut login, after(1861), 200, 7200, 3600);
        assert_eq!(seconds(&login), (Some(7200), Some(7200)));
        assert!(login.look_up(after(1861 + 4799)).is_none());
        // It was renewed for less.
        answered(&mut login, after(1861 + 4801), 200, 3600, 3600);
        assert_eq!(seconds(&login), (Some(3600), Some(7200)));

        // Another process knows the same, and looks up another token.
        let mut other = Login::new(Auth::parse(&options, false).unwrap());
        other.take(login.shared().unwrap());
        assert!(other.begin().is_ok());
        assert!(other.look_up(after(7000)).is_none());
        assert_eq!(other.shared(), login.shared());
        put(&mut other, "another");
        assert!(other.shared().is_none());
        // Without an end, or not to be looked up; refused.
        answered(&mut other, after(7000), 200, 0, 0);
        assert_eq!(seconds(&other), (None, None));
        assert!(other.look_up(after(1_000_000)).is_none());
        put(&mut other, "third");
        answered(&mut other, after(7000), 403, 60, 60);
        assert_eq!(seconds(&other), (None, None));
        assert!(other.look_up(after(1_000_000)).is_none());
        other.refused();
        assert!(other.shared().is_none());
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
