//! The credentials that requests are signed with: where they come from, and until when they are used.
//!
//! Where the settings name no source, it is the first one that is configured of those that the AWS
//! SDKs know: the environment, a web identity, the shared files, a container's endpoint, the instance
//! metadata service. When that one fails, no other is tried: it would be another identity.
//!
//! The library that speaks to the sources has no transport of its own. Its requests go through ours,
//! and what is wrong with an answer is told in our words, since its messages quote answers.

use std::collections::HashMap;
use std::env;
use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use reqsign_aws_v4::{
    AssumeRoleWithWebIdentityCredentialProvider, Credential, ECSCredentialProvider,
    EnvCredentialProvider, IMDSv2CredentialProvider, ProfileCredentialProvider,
};
use reqsign_core::time::Timestamp;
use reqsign_core::{Context, Env, FileRead, HttpSend, ProvideCredential, SigningCredential};
use ureq::http;
use ureq::http::Uri;
use zeroize::{Zeroize, Zeroizing};

use super::settings::Connection;
use crate::address;
use crate::http::Transport;
use crate::provider::{ProviderError, ProviderErrorKind};
use crate::watched::{self, Stamp};

/// With less left until they end, credentials are of no more use: a request takes a while, and clocks
/// differ.
const MIN_LEFT: Duration = Duration::from_secs(10);

/// What the sessions of an assumed role are called, unless the environment says so.
const SESSION_NAME: &str = "encryption_ext";

/// Where credentials come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// An access key in the environment.
    Environment,
    /// An access key in a file: in the profile, or the one that the environment names, or else
    /// `default`; in the file, or else in the AWS CLI's.
    Profile { profile: Option<String>, file: Option<PathBuf> },
    /// A role that trusts the token in the file.
    WebIdentity { role_arn: String, token_file: PathBuf },
    /// The role of an ECS task, or of an EKS pod by its Pod Identity.
    Container,
    /// The role of an EC2 instance.
    InstanceMetadata,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Environment => f.write_str("the environment"),
            Self::Profile { profile, file } => {
                match profile {
                    Some(profile) => write!(f, "profile \"{profile}\"")?,
                    None => f.write_str("the default profile")?,
                }
                match file {
                    Some(file) => write!(f, " in \"{}\"", file.display()),
                    None => f.write_str(" in the AWS CLI's files"),
                }
            }
            Self::WebIdentity { role_arn, .. } => {
                write!(f, "role \"{role_arn}\" by a web identity token")
            }
            Self::Container => f.write_str("the container's credentials endpoint"),
            Self::InstanceMetadata => f.write_str("the instance metadata service"),
        }
    }
}

/// The credentials of one provider.
pub(super) struct Credentials {
    source: Option<Source>,
    region: String,
    sts_endpoint: Option<String>,
    environment: Environment,
    kept: Mutex<Option<Arc<Login>>>,
}

/// Credentials, and where they came from.
pub(super) struct Login {
    pub(super) credential: Credential,
    pub(super) source: Source,
    /// The files that they were read from.
    files: Vec<(PathBuf, Option<Stamp>)>,
}

impl Credentials {
    pub(super) fn new(connection: &Connection) -> Self {
        Self {
            source: connection.source.clone(),
            region: connection.region.clone(),
            sts_endpoint: connection.sts_endpoint.as_ref().map(|address| address.base.clone()),
            environment: connection.environment.clone(),
            kept: Mutex::new(None),
        }
    }

    /// The credentials to use now: those that there are, until shortly before they end or their file
    /// changes, and then new ones. If there are no new ones, the old ones are used to their end.
    pub(super) fn current(&self, transport: &Transport) -> Result<Arc<Login>, ProviderError> {
        let kept = self.kept();
        match &kept {
            Some(login) if login.is_fresh() => Ok(Arc::clone(login)),
            _ => self
                .log_in(transport)
                .or_else(|error| kept.filter(|l| l.still_works()).ok_or(error)),
        }
    }

    /// Other credentials than those that were refused, if the source has any.
    pub(super) fn replace(
        &self,
        transport: &Transport,
        refused: &Login,
    ) -> Result<Option<Arc<Login>>, ProviderError> {
        *lock(&self.kept) = None;
        let login = self.log_in(transport)?;
        Ok(Some(login).filter(|login| !login.has_same_credential(refused)))
    }

    /// The credentials that were used last, if any were.
    pub(super) fn kept(&self) -> Option<Arc<Login>> {
        lock(&self.kept).clone()
    }

    // The lock is never held while a request is under way: a call that was given up may still run.
    fn log_in(&self, transport: &Transport) -> Result<Arc<Login>, ProviderError> {
        for source in self.sources() {
            if let Some(login) = self.log_in_by(source, transport)? {
                let login = Arc::new(login);
                *lock(&self.kept) = Some(Arc::clone(&login));
                return Ok(login);
            }
        }
        Err(ProviderError::new(ProviderErrorKind::LoginFailed, "there are no AWS credentials")
            .with_hint(SOURCES_HINT))
    }

    /// The sources to look at, in this order. Only the shared files may then turn out to have nothing.
    fn sources(&self) -> Vec<Source> {
        if let Some(source) = &self.source {
            return vec![source.clone()];
        }
        let is_set = |name: &str| self.environment.get(name).is_some();
        let mut sources = Vec::new();
        if is_set("AWS_ACCESS_KEY_ID") && is_set("AWS_SECRET_ACCESS_KEY") {
            sources.push(Source::Environment);
        }
        if let Some(role_arn) = self.environment.get("AWS_ROLE_ARN")
            && let Some(token_file) = self.environment.get("AWS_WEB_IDENTITY_TOKEN_FILE")
        {
            let (role_arn, token_file) = (role_arn.to_owned(), token_file.into());
            sources.push(Source::WebIdentity { role_arn, token_file });
        }
        sources.push(Source::Profile { profile: None, file: None });
        if is_set("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI")
            || is_set("AWS_CONTAINER_CREDENTIALS_FULL_URI")
        {
            sources.push(Source::Container);
        }
        if self.environment.get("AWS_EC2_METADATA_DISABLED") != Some("true") {
            sources.push(Source::InstanceMetadata);
        }
        sources
    }

    /// Gets credentials from a source; `None` if the shared files have none.
    fn log_in_by(
        &self,
        source: Source,
        transport: &Transport,
    ) -> Result<Option<Login>, ProviderError> {
        let platform = Platform(Arc::new(PlatformState {
            transport: transport.clone(),
            sts_endpoint: self.sts_endpoint.clone(),
            files: Mutex::new(Vec::new()),
            failure: Mutex::new(None),
        }));
        let context = Context::new()
            .with_env(self.environment.clone())
            .with_file_read(platform.clone())
            .with_http_send(platform.clone());
        match pollster::block_on(self.provide(&source, &context)) {
            Ok(Some(credential)) => {
                let files = lock(&platform.0.files).clone();
                Ok(Some(Login { credential, source, files }))
            }
            Ok(None) if self.source.is_none() => Ok(None),
            Ok(None) => Err(failed(&source, lock(&platform.0.failure).take(), &[])),
            Err(error) => Err(failed(&source, lock(&platform.0.failure).take(), error.context())),
        }
    }

    async fn provide(
        &self,
        source: &Source,
        context: &Context,
    ) -> reqsign_core::Result<Option<Credential>> {
        match source {
            Source::Environment => EnvCredentialProvider::new().provide_credential(context).await,
            Source::Profile { profile, file } => {
                let mut provider = ProfileCredentialProvider::new();
                if let Some(profile) = profile {
                    provider = provider.with_profile(profile);
                }
                if let Some(file) = file {
                    // In either form, and without a look at any other file.
                    let file = file.to_string_lossy();
                    provider = provider.with_credentials_file(&*file).with_config_file(&*file);
                }
                provider.provide_credential(context).await
            }
            Source::WebIdentity { role_arn, token_file } => {
                let session_name =
                    self.environment.get("AWS_ROLE_SESSION_NAME").unwrap_or(SESSION_NAME);
                AssumeRoleWithWebIdentityCredentialProvider::with_config(
                    role_arn.clone(),
                    token_file.clone(),
                )
                .with_role_session_name(session_name.to_owned())
                .with_region(self.region.clone())
                .with_regional_sts_endpoint()
                .provide_credential(context)
                .await
            }
            Source::Container => ECSCredentialProvider::new().provide_credential(context).await,
            Source::InstanceMetadata => {
                IMDSv2CredentialProvider::new().provide_credential(context).await
            }
        }
    }
}

impl Login {
    /// Whether they need not be renewed yet.
    fn is_fresh(&self) -> bool {
        self.credential.is_valid()
            && self.files.iter().all(|(path, stamp)| watched::stamp(path) == *stamp)
    }

    fn still_works(&self) -> bool {
        self.credential.is_valid_at(Timestamp::now() + MIN_LEFT)
    }

    fn has_same_credential(&self, other: &Self) -> bool {
        let (one, other) = (&self.credential, &other.credential);
        one.access_key_id == other.access_key_id
            && one.secret_access_key == other.secret_access_key
            && one.session_token == other.session_token
    }
}

impl Drop for Login {
    fn drop(&mut self) {
        self.credential.access_key_id.zeroize();
        self.credential.secret_access_key.zeroize();
        self.credential.session_token.zeroize();
    }
}

/// Why a source gave no credentials.
enum Failure {
    /// A file could not be read, or there was no answer.
    NotReached(ProviderError),
    /// The answer had another status than 200.
    Status(u16),
}

/// The error for a source that gave no credentials. `context` is what the library says besides, of
/// which nothing is shown but error codes that we know.
fn failed(source: &Source, failure: Option<Failure>, context: &[String]) -> ProviderError {
    use ProviderErrorKind::{LoginFailed, Throttled, Unreachable};

    let message = |why: &str| format!("could not get AWS credentials from {source}: {why}");
    // The AWS CLI's files need not all be there.
    let needs_no_file = matches!(source, Source::Profile { file: None, .. });
    let error = match failure.filter(|_| !needs_no_file) {
        Some(Failure::NotReached(error)) => {
            let kind = if error.kind.is_outage() { error.kind } else { LoginFailed };
            ProviderError { kind, message: message(&error.message), ..error }
        }
        Some(Failure::Status(status)) => {
            let code = STS_ERRORS.iter().find(|code| {
                context.iter().any(|line| line.strip_prefix("error_code: ") == Some(code))
            });
            let why = match code {
                Some(code) => format!("status {status}, {code}"),
                None => format!("status {status}"),
            };
            match status {
                429 => ProviderError::new(Throttled, message(&why)).transient(),
                500.. => ProviderError::new(Unreachable, message(&why)).transient(),
                _ => ProviderError::new(LoginFailed, message(&why)),
            }
        }
        None => {
            let why = match source {
                Source::Environment | Source::Profile { .. } => "there is no usable access key",
                _ => "what it answered are no credentials",
            };
            ProviderError::new(LoginFailed, message(why))
        }
    };
    error.with_hint(source.hint())
}

/// The errors of the action AssumeRoleWithWebIdentity, and those of all actions ("AWS Security Token
/// Service API Reference", "Common Errors"), that are about the login.
const STS_ERRORS: [&str; 8] = [
    "AccessDenied",
    "ExpiredTokenException",
    "ExpiredToken",
    "IDPCommunicationError",
    "IDPRejectedClaim",
    "InvalidIdentityToken",
    "RegionDisabledException",
    "ValidationError",
];

impl Source {
    fn hint(&self) -> &'static str {
        match self {
            Self::Environment => {
                "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY are read when the server starts."
            }
            Self::Profile { .. } => {
                "The file must have the profile, with aws_access_key_id and aws_secret_access_key, \
                 and the server's operating-system user must be able to read it."
            }
            Self::WebIdentity { .. } => {
                "The role's trust policy must name the token's issuer, audience and subject, and the \
                 token in the file must be current."
            }
            Self::Container => {
                "The task must have a task role, or the pod's service account a Pod Identity \
                 association."
            }
            Self::InstanceMetadata => {
                "The instance must have an instance profile with a role. Where there is no such \
                 service, name other credentials: with the settings of the profile, the credentials \
                 file, or the role and its web identity token file, or in the server's environment."
            }
        }
    }
}

const SOURCES_HINT: &str = "Name them with the settings of the profile, the credentials file, or the \
     role and its web identity token file, or in the server's environment.";

/// Files and servers, for the library.
#[derive(Clone)]
struct Platform(Arc<PlatformState>);

struct PlatformState {
    transport: Transport,
    sts_endpoint: Option<String>,
    files: Mutex<Vec<(PathBuf, Option<Stamp>)>>,
    /// The last one.
    failure: Mutex<Option<Failure>>,
}

impl Platform {
    fn fail(&self, failure: Failure) {
        *lock(&self.0.failure) = Some(failure);
    }

    fn read(&self, path: &Path) -> Result<Vec<u8>, ProviderError> {
        let read = watched::read(path, "credentials");
        let stamp = read.as_ref().ok().map(|(_, stamp)| *stamp);
        lock(&self.0.files).push((path.to_owned(), stamp));
        let (contents, _) = read?;
        Ok(contents.to_vec())
    }

    fn send(&self, request: http::Request<Bytes>) -> Result<http::Response<Bytes>, ProviderError> {
        let (mut parts, body) = request.into_parts();
        if let Some(sts) = &self.0.sts_endpoint
            && parts.uri.host().is_some_and(|host| host.starts_with("sts."))
        {
            parts.uri = format!("{sts}/").parse().map_err(|_| refused_address())?;
        }
        if !may_send_credentials(&parts.uri) {
            return Err(refused_address());
        }
        let body = Zeroizing::new(body.to_vec());
        let answer = self.0.transport.send(&http::Request::from_parts(parts, body))?;
        if answer.status != 200 {
            self.fail(Failure::Status(answer.status));
        }
        let mut response = http::Response::new(Bytes::copy_from_slice(&answer.body));
        *response.status_mut() =
            http::StatusCode::from_u16(answer.status).unwrap_or(http::StatusCode::BAD_GATEWAY);
        Ok(response)
    }
}

impl FileRead for Platform {
    async fn file_read(&self, path: &str) -> reqsign_core::Result<Vec<u8>> {
        self.read(Path::new(path)).map_err(|error| {
            self.fail(Failure::NotReached(error));
            reqsign_core::Error::unexpected("a file could not be read")
        })
    }
}

impl HttpSend for Platform {
    async fn http_send(
        &self,
        request: http::Request<Bytes>,
    ) -> reqsign_core::Result<http::Response<Bytes>> {
        self.send(request).map_err(|error| {
            self.fail(Failure::NotReached(error));
            reqsign_core::Error::unexpected("a request could not be sent")
        })
    }
}

impl fmt::Debug for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Platform")
    }
}

/// Whether credentials may go over this connection: over TLS, or not beyond the machine and its own
/// platform (the addresses that "Container credential provider" and "IMDS credential provider" in the
/// "AWS SDKs and Tools Reference Guide" have).
fn may_send_credentials(uri: &Uri) -> bool {
    let Some(host) = uri.host() else { return false };
    let is_of_platform = || {
        let host = host.trim_start_matches('[').trim_end_matches(']');
        host.parse::<Ipv4Addr>().is_ok_and(|ip| ip.is_link_local())
            || host.parse::<Ipv6Addr>().is_ok_and(|ip| ip.segments()[..2] == [0xfd00, 0xec2])
    };
    uri.scheme_str() == Some("https") || address::is_loopback(host) || is_of_platform()
}

fn refused_address() -> ProviderError {
    ProviderError::new(
        ProviderErrorKind::LoginFailed,
        "its address in the environment is neither an https address nor one of the platform",
    )
}

/// What the environment of the process says about AWS.
#[derive(Clone)]
pub(super) struct Environment {
    variables: HashMap<String, String>,
    home: Option<PathBuf>,
}

impl Environment {
    pub(super) fn of_process() -> Self {
        let variables = env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .filter(|(name, _)| name.starts_with("AWS_"))
            .collect();
        Self { variables, home: env::home_dir() }
    }

    #[cfg(test)]
    pub(super) fn of(variables: &[(&str, &str)]) -> Self {
        let own = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        Self { variables: variables.iter().map(own).collect(), home: None }
    }

    /// The variable, if it is set and not empty.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.variables.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }
}

impl Env for Environment {
    fn var(&self, name: &str) -> Option<String> {
        self.get(name).map(str::to_owned)
    }

    fn vars(&self) -> HashMap<String, String> {
        self.variables.clone()
    }

    fn home_dir(&self) -> Option<PathBuf> {
        self.home.clone()
    }
}

impl fmt::Debug for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The values may be secrets.
        f.debug_list().entries(self.variables.keys()).finish()
    }
}

/// Takes the lock. What it guards is replaced as a whole, so a panic elsewhere leaves it usable.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sources(variables: &[(&str, &str)]) -> Vec<Source> {
        let credentials = Credentials {
            source: None,
            region: "eu-central-1".to_owned(),
            sts_endpoint: None,
            environment: Environment::of(variables),
            kept: Mutex::new(None),
        };
        credentials.sources()
    }

    #[test]
    fn the_environment_says_which_sources_there_are() {
        let files = Source::Profile { profile: None, file: None };
        assert_eq!(sources(&[]), [files.clone(), Source::InstanceMetadata]);
        assert_eq!(sources(&[("AWS_EC2_METADATA_DISABLED", "true")]), std::slice::from_ref(&files));
        let half = [("AWS_ACCESS_KEY_ID", "AKIA"), ("AWS_SECRET_ACCESS_KEY", "")];
        assert_eq!(sources(&half), [files.clone(), Source::InstanceMetadata]);
        let all = [
            ("AWS_ACCESS_KEY_ID", "AKIA"),
            ("AWS_SECRET_ACCESS_KEY", "hunter2"),
            ("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/r"),
            ("AWS_WEB_IDENTITY_TOKEN_FILE", "/t"),
            ("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "/v2/credentials/1"),
        ];
        let role_arn = "arn:aws:iam::123456789012:role/r".to_owned();
        assert_eq!(
            sources(&all),
            [
                Source::Environment,
                Source::WebIdentity { role_arn, token_file: "/t".into() },
                files,
                Source::Container,
                Source::InstanceMetadata,
            ]
        );
        assert!(!format!("{:?}", Environment::of(&all)).contains("hunter2"));
    }

    #[test]
    fn credentials_leave_the_machine_by_tls_alone() {
        let allowed = |uri: &str| may_send_credentials(&uri.parse().unwrap());
        for uri in [
            "https://sts.eu-central-1.amazonaws.com/",
            "http://169.254.169.254/latest/api/token",
            "http://169.254.170.2/v2/credentials/1",
            "http://169.254.170.23/v1/credentials",
            "http://[fd00:ec2::254]/latest/api/token",
            "http://127.0.0.1:8080/role",
            "http://localhost:8080/role",
        ] {
            assert!(allowed(uri), "{uri}");
        }
        for uri in [
            "http://sts.eu-central-1.amazonaws.com/",
            "http://10.0.0.1/role",
            "http://169.254.169.254.example/role",
            "http://[fd00::254]/role",
            "/role",
        ] {
            assert!(!allowed(uri), "{uri}");
        }
    }
}
