//! Keys wrapped by Azure Key Vault, or by a managed HSM of Azure.
//!
//! A data encryption key is wrapped under the newest version of a key, or under the one that the
//! settings name ("Key Vault REST API", keys: `wrapKey`, `unwrapKey`, `Get Key`).
//!
//! A reference is `<key>/<version>?alg=<algorithm>`, relative to the vault's address, so that
//! another vault that has the key (restored from a backup, or a replica of an HSM) can open what it
//! wrapped.
//!
//! What is wrapped is the data encryption key alone: neither RSA-OAEP nor AES key wrap (RFC 3394)
//! takes additional authenticated data here. So the vault unwraps it as any version of any key; that
//! it is the right one is shown by the check value in the catalog, which binds keyspace, name and
//! version. It also shows a wrapped key that was replaced by another: with the public half of an RSA
//! key anybody can wrap one of their own. Who can write the catalog can forge both.

mod credentials;

use std::env;
use std::time::Instant;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use envelope::{DataKey, KeyName};
use serde::{Deserialize, Serialize};
use ureq::http::{Method, Uri};
use zeroize::Zeroizing;

use crate::address::{self, Address};
use crate::call::RequestLimits;
use crate::http::{Response, Server};
use crate::oauth::{self, Client, Unauthorized};
use crate::options::{self, configuration};
use crate::provider::{
    self, Certificates, Finding, FoundVersion, Interrupt, Login, MadeVersion, Provider,
    ProviderError, ProviderErrorKind, WrappedKey,
};
use crate::version::VersionId;
use credentials::Source;

const SERVICE: &str = "Azure Key Vault";

/// Of the REST interface; every vault and managed HSM knows it.
const API_VERSION: &str = "7.4";

/// With fewer days to go until a version of the key expires, the check says so.
const DAYS_TO_WARN: u64 = 30;

/// The settings of a provider `azure_key_vault`, as an administrator wrote them.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, default)]
pub struct AzureKeyVaultOptions {
    /// The vault (`https://NAME.vault.azure.net`) or managed HSM
    /// (`https://NAME.managedhsm.azure.net`).
    pub address: String,
    /// The key that wraps new data encryption keys, by its newest version: `NAME`; or by one
    /// version: `NAME/VERSION`.
    pub key: String,
    /// How it wraps: `RSA-OAEP-256` (unless it is set) by an RSA key, `A256KW` by a symmetric key
    /// of a managed HSM.
    pub algorithm: String,
    /// The tenant of the application that logs in; `AZURE_TENANT_ID` from the environment unless it
    /// is set.
    pub tenant_id: String,
    /// The id of the application that logs in, or of a managed identity that the machine's owner
    /// assigned; `AZURE_CLIENT_ID` from the environment unless it is set.
    pub client_id: String,
    /// A file with the application's secret.
    pub client_secret_file: String,
    /// A file with a token that the application trusts, of Kubernetes for example;
    /// `AZURE_FEDERATED_TOKEN_FILE` from the environment unless it is set. With neither file, a
    /// managed identity logs in.
    pub federated_token_file: String,
    /// The address of the identity platform; `AZURE_AUTHORITY_HOST` from the environment unless it
    /// is set, or else `https://login.microsoftonline.com`.
    pub authority: String,
    /// The certificates (PEM) of the authorities that may sign those of the vault and of the
    /// identity platform; the system's if there is none.
    pub ca_file: String,
}

/// A provider that wraps keys by Azure Key Vault.
pub struct AzureKeyVaultProvider {
    client: Client,
    address: Address,
    key: String,
    /// The version to wrap with; the newest unless it is set.
    version: Option<String>,
    algorithm: Algorithm,
}

/// A way to wrap keys ("JsonWebKeyEncryptionAlgorithm").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Algorithm {
    /// RFC 8017 with SHA-256 and MGF1 with SHA-256.
    RsaOaep256,
    /// RFC 3394 with a key of 256 bits.
    A256Kw,
}

/// The version of a key encryption key that wrapped a key, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Wrapper {
    key: String,
    version: String,
    algorithm: Algorithm,
}

impl AzureKeyVaultProvider {
    /// A provider with these settings. Nothing is sent yet, and no file is looked at.
    ///
    /// # Errors
    ///
    /// [`ProviderErrorKind::Configuration`], with the setting that is wrong and what it must be.
    pub fn new(
        options: &AzureKeyVaultOptions,
        limits: RequestLimits,
        interrupt: Box<dyn Interrupt>,
    ) -> Result<Self, ProviderError> {
        let address = options::required(options.address.clone(), "address")?;
        let address = address::parse(&address, "address")?;
        let key = options::required(options.key.clone(), "key")?;
        let (key, version) = parse_key(&key).ok_or_else(|| {
            configuration("setting \"key\" is malformed").with_hint(
                "It has the form NAME, or NAME/VERSION to wrap with that version and no newer one.",
            )
        })?;
        let algorithm = match options.algorithm.as_str() {
            "" => Algorithm::RsaOaep256,
            name => Algorithm::parse(name).ok_or_else(|| {
                configuration("setting \"algorithm\" is not an algorithm that can be used")
                    .with_hint("It is RSA-OAEP-256 for an RSA key, or A256KW for a symmetric one.")
            })?,
        };
        let source = Source::choose(options, resource(&address), |name| env::var(name).ok())?;
        let server = Server {
            service: SERVICE,
            https_only: address.is_https,
            ca_file: options::optional_file(options.ca_file.clone(), "ca_file")?,
            identity: None,
            follows_redirects: false,
            authority: None,
            limits,
        };
        let client = Client::new(server, source, interrupt);
        Ok(Self { client, address, key, version, algorithm })
    }

    /// Wraps a key under the version of the settings, or else the newest.
    fn wrap(&mut self, key: &DataKey, deadline: Instant) -> Result<WrappedKey, ProviderError> {
        let version = match &self.version {
            Some(version) => version.clone(),
            // `wrapKey` is documented with a version in its path.
            None => self.look_at_key(deadline)?.version,
        };
        let wrapper = Wrapper { key: self.key.clone(), version, algorithm: self.algorithm };
        let request = self.operation(&wrapper, "wrapkey", key.expose());
        self.client.request(&request, deadline, move |response| read_wrapped(&wrapper, response))
    }

    /// Unwraps what the key and version in `reference` wrapped.
    fn unwrap(
        &mut self,
        reference: &str,
        wrapped: Option<&[u8]>,
        deadline: Instant,
    ) -> Result<DataKey, ProviderError> {
        let wrapper = Wrapper::parse(reference)?;
        let wrapped = wrapped
            .filter(|wrapped| !wrapped.is_empty())
            .ok_or_else(|| not_wrapped(&wrapper.key, "there is no wrapped key to open"))?;
        let request = self.operation(&wrapper, "unwrapkey", wrapped);
        self.client.request(&request, deadline, move |response| read_unwrapped(&wrapper, response))
    }

    /// The version of the key that wraps.
    fn look_at_key(&mut self, deadline: Instant) -> Result<KeyState, ProviderError> {
        let key = self.key.clone();
        let path = match &self.version {
            Some(version) => format!("{key}/{version}"),
            None => key.clone(),
        };
        let uri = self.uri(&path);
        let request = Unauthorized { method: Method::GET, uri, body: Zeroizing::default() };
        self.client.request(&request, deadline, move |response| KeyState::read(&key, response))
    }

    fn operation(&self, wrapper: &Wrapper, operation: &str, value: &[u8]) -> Unauthorized {
        let Wrapper { key, version, algorithm } = wrapper;
        let uri = self.uri(&format!("{key}/{version}/{operation}"));
        Unauthorized { method: Method::POST, uri, body: operation_request(*algorithm, value) }
    }

    fn uri(&self, path: &str) -> String {
        format!("{}/keys/{path}?api-version={API_VERSION}", self.address.base)
    }
}

impl Provider for AzureKeyVaultProvider {
    fn discover(
        &mut self,
        _name: &KeyName,
        _known: &[&str],
    ) -> Result<Vec<FoundVersion>, ProviderError> {
        Ok(Vec::new())
    }

    fn make(&mut self, _id: &VersionId<'_>) -> Result<MadeVersion, ProviderError> {
        let deadline = self.client.deadline();
        let key = provider::generate_key()?;
        let WrappedKey { reference, wrapped } = self.wrap(&key, deadline)?;
        Ok(MadeVersion { reference, wrapped: Some(wrapped), key, number: None })
    }

    fn open(
        &mut self,
        _id: &VersionId<'_>,
        reference: &str,
        wrapped: Option<&[u8]>,
    ) -> Result<DataKey, ProviderError> {
        let deadline = self.client.deadline();
        self.unwrap(reference, wrapped, deadline)
    }

    fn rewrap(
        &mut self,
        _id: &VersionId<'_>,
        reference: &str,
        wrapped: Option<&[u8]>,
    ) -> Result<Option<WrappedKey>, ProviderError> {
        let deadline = self.client.deadline();
        let key = self.unwrap(reference, wrapped, deadline)?;
        self.wrap(&key, deadline).map(Some)
    }

    fn check(&mut self, probe: &VersionId<'_>) -> Result<Vec<Finding>, ProviderError> {
        let deadline = self.client.deadline();
        let key = self.look_at_key(deadline)?;
        let login =
            format!("{} gave an access token, which is accepted", self.client.describe_source());
        let finding = key.judge(&self.key, self.algorithm)?;
        let round_trip = provider::check_round_trip(self, probe, false)?;
        Ok(vec![Finding::good("login", login), finding, round_trip])
    }

    fn close_connections(&mut self) {
        self.client.close_connections();
    }

    fn certificates(&self) -> Certificates {
        self.client.certificates()
    }

    fn login(&self) -> Option<Login> {
        self.client.login()
    }

    fn take_login(&mut self, login: Login) {
        self.client.take_login(login);
    }
}

impl Algorithm {
    const ALL: [Self; 2] = [Self::RsaOaep256, Self::A256Kw];

    fn name(self) -> &'static str {
        match self {
            Self::RsaOaep256 => "RSA-OAEP-256",
            Self::A256Kw => "A256KW",
        }
    }

    fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|algorithm| algorithm.name() == name)
    }

    /// The types of keys that it goes with ("JsonWebKeyType").
    fn key_types(self) -> [&'static str; 2] {
        match self {
            Self::RsaOaep256 => ["RSA", "RSA-HSM"],
            Self::A256Kw => ["oct", "oct-HSM"],
        }
    }
}

impl Wrapper {
    fn reference(&self) -> String {
        let Self { key, version, algorithm } = self;
        format!("{key}/{version}?alg={}", algorithm.name())
    }

    fn parse(reference: &str) -> Result<Self, ProviderError> {
        let parse = || {
            let (path, algorithm) = reference.split_once("?alg=")?;
            let (key, version) = path.split_once('/')?;
            (is_name(key) && is_version(version)).then_some(())?;
            let algorithm = Algorithm::parse(algorithm)?;
            Some(Self { key: key.to_owned(), version: version.to_owned(), algorithm })
        };
        parse().ok_or_else(|| {
            configuration(format!("{reference:?} is not a reference to a key in {SERVICE}"))
        })
    }
}

/// Takes `NAME` or `NAME/VERSION`.
fn parse_key(text: &str) -> Option<(String, Option<String>)> {
    match text.split_once('/') {
        None => is_name(text).then(|| (text.to_owned(), None)),
        Some((name, version)) => (is_name(name) && is_version(version))
            .then(|| (name.to_owned(), Some(version.to_owned()))),
    }
}

fn is_name(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    matches!(text.len(), 1..=127) && text.bytes().all(allowed)
}

fn is_version(text: &str) -> bool {
    text.len() == 32
        && text.bytes().all(|byte| byte.is_ascii_digit() || matches!(byte, b'a'..=b'f'))
}

/// What a key identifier (`kid`: `https://…/keys/NAME/VERSION`) says of the key `key`: its version.
fn version_of(kid: &str, key: &str) -> Option<String> {
    let uri: Uri = kid.parse().ok()?;
    let (name, version) = uri.path().strip_prefix("/keys/")?.split_once('/')?;
    // Names have no case of their own: the vault tells the one that the key was made with.
    (name.eq_ignore_ascii_case(key) && is_version(version)).then(|| version.to_owned())
}

/// What access tokens for an address are for: the service's name in the cloud that the address is
/// in.
fn resource(address: &Address) -> &'static str {
    const RESOURCES: [&str; 6] = [
        "https://vault.azure.net",
        "https://managedhsm.azure.net",
        "https://vault.azure.cn",
        "https://managedhsm.azure.cn",
        "https://vault.usgovcloudapi.net",
        "https://managedhsm.usgovcloudapi.net",
    ];
    let host =
        address.base.parse::<Uri>().ok().and_then(|uri| Some(uri.host()?.to_ascii_lowercase()));
    let is_in = |resource: &str| {
        let domain = resource.trim_start_matches("https://");
        host.as_ref().is_some_and(|host| host.ends_with(&format!(".{domain}")))
    };
    RESOURCES.into_iter().find(|resource| is_in(resource)).unwrap_or(RESOURCES[0])
}

/// The body of `wrapKey` and `unwrapKey`, in memory that never moves.
fn operation_request(algorithm: Algorithm, value: &[u8]) -> Zeroizing<Vec<u8>> {
    #[derive(Serialize)]
    struct Body<'a> {
        alg: &'static str,
        value: &'a str,
    }
    let mut encoded = Zeroizing::new(String::with_capacity(value.len() * 4 / 3 + 4));
    URL_SAFE_NO_PAD.encode_string(value, &mut encoded);
    let mut body = Zeroizing::new(Vec::with_capacity(64 + encoded.len()));
    serde_json::to_writer(&mut *body, &Body { alg: algorithm.name(), value: &encoded })
        .expect("two strings can be written to memory");
    body
}

/// The answer to `wrapKey` and `unwrapKey` ("KeyOperationResult").
#[derive(Deserialize)]
struct Operated {
    kid: String,
    value: Zeroizing<String>,
}

fn read_wrapped(wrapper: &Wrapper, response: &Response) -> Result<WrappedKey, ProviderError> {
    if response.status != 200 {
        return Err(refusal(&wrapper.key, response, Action::Wrap));
    }
    let answer: Operated = serde_json::from_slice(&response.body).map_err(|_| not_azure())?;
    let wrapped = URL_SAFE_NO_PAD.decode(&*answer.value).map_err(|_| not_azure())?;
    match version_of(&answer.kid, &wrapper.key) {
        Some(version) if version == wrapper.version && !wrapped.is_empty() => {
            Ok(WrappedKey { reference: wrapper.reference(), wrapped })
        }
        _ => Err(not_azure()),
    }
}

fn read_unwrapped(wrapper: &Wrapper, response: &Response) -> Result<DataKey, ProviderError> {
    if response.status != 200 {
        return Err(refusal(&wrapper.key, response, Action::Unwrap));
    }
    let answer: Operated = serde_json::from_slice(&response.body).map_err(|_| not_azure())?;
    let mut bytes = Zeroizing::new(vec![0; answer.value.len()]);
    let len = URL_SAFE_NO_PAD.decode_slice(&*answer.value, &mut bytes).map_err(|_| not_azure())?;
    let key = <&[u8; DataKey::LEN]>::try_from(&bytes[..len]).map_err(|_| {
        ProviderError::new(
            ProviderErrorKind::KeyLengthWrong,
            format!("what \"{}\" in {SERVICE} wrapped has {len} bytes instead of 32", wrapper.key),
        )
    })?;
    Ok(DataKey::new(*key))
}

/// What a version of a key is ("KeyBundle").
struct KeyState {
    version: String,
    key_type: String,
    operations: Vec<String>,
    is_enabled: bool,
    /// In seconds since 1970.
    expires: Option<u64>,
}

impl KeyState {
    fn read(key: &str, response: &Response) -> Result<Self, ProviderError> {
        #[derive(Deserialize)]
        struct Answer {
            key: Key,
            #[serde(default)]
            attributes: Attributes,
        }
        #[derive(Deserialize)]
        struct Key {
            kid: String,
            kty: String,
            #[serde(default)]
            key_ops: Vec<String>,
        }
        #[derive(Default, Deserialize)]
        struct Attributes {
            enabled: Option<bool>,
            exp: Option<u64>,
        }
        if response.status != 200 {
            return Err(refusal(key, response, Action::Get));
        }
        let answer: Answer = serde_json::from_slice(&response.body).map_err(|_| not_azure())?;
        Ok(Self {
            version: version_of(&answer.key.kid, key).ok_or_else(not_azure)?,
            key_type: answer.key.kty,
            operations: answer.key.key_ops,
            is_enabled: answer.attributes.enabled.unwrap_or(true),
            expires: answer.attributes.exp,
        })
    }

    /// Whether it can wrap.
    fn judge(&self, key: &str, algorithm: Algorithm) -> Result<Finding, ProviderError> {
        let Self { version, key_type, .. } = self;
        let name = algorithm.name();
        let Some(key_type) = algorithm.key_types().into_iter().find(|fit| fit == key_type) else {
            return Err(wrong_algorithm(key));
        };
        let may = |operation: &str| self.operations.iter().any(|each| each == operation);
        if !self.is_enabled || !may("wrapKey") || !may("unwrapKey") {
            return Err(unusable(key, "is disabled, or not for wrapping and unwrapping"));
        }
        let detail = format!("\"{key}/{version}\" is enabled, of type {key_type}, for {name}");
        let days_left = self
            .expires
            .map(|end| end.saturating_sub(oauth::seconds_since_1970()) / (24 * 60 * 60))
            .filter(|days| *days < DAYS_TO_WARN);
        Ok(match days_left {
            None => Finding::good("key encryption key", detail),
            Some(days) => Finding::warning(
                "key encryption key",
                format!("{detail}; it expires in {days} days"),
                "No key can be wrapped by it then. Make a new version of it in the vault.",
            ),
        })
    }
}

/// What a request was for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    Wrap,
    Unwrap,
    Get,
}

/// The error for an answer that isn't a success ("Common parameters and headers", error responses).
fn refusal(key: &str, response: &Response, action: Action) -> ProviderError {
    #[derive(Deserialize)]
    struct Body {
        error: Error,
    }
    #[derive(Deserialize)]
    struct Error {
        code: String,
        innererror: Option<InnerError>,
    }
    #[derive(Deserialize)]
    struct InnerError {
        #[serde(default)]
        code: String,
    }
    match response.status {
        429 => {
            return ProviderError::new(
                ProviderErrorKind::Throttled,
                format!("{SERVICE} refuses requests because there are too many"),
            )
            .with_hint("A vault serves some hundred requests a second. Raise the time that keys are cached.")
            .transient();
        }
        status @ 500.. => {
            return ProviderError::new(
                ProviderErrorKind::Unreachable,
                format!("{SERVICE} can't serve now (status {status})"),
            )
            .transient();
        }
        _ => {}
    }
    let error = serde_json::from_slice::<Body>(&response.body).ok().map(|body| body.error);
    let inner = error.as_ref().and_then(|error| error.innererror.as_ref());
    let inner = inner.map_or("", |inner| inner.code.as_str());
    match (response.status, error.as_ref().map(|error| error.code.as_str()), action) {
        (400, Some(_), Action::Unwrap) => {
            not_wrapped(key, "what is stored as a wrapped key can't be opened")
        }
        (400, Some(_), Action::Wrap) => wrong_algorithm(key),
        (403, Some(_), _) => forbidden(key, inner, action),
        (404, Some(_), _) => ProviderError::new(
            ProviderErrorKind::KeyMissing,
            format!("there is no key \"{key}\", or not this version of it, in {SERVICE}"),
        )
        .with_hint(
            "Recover it if it was deleted, or correct the settings of the address and the key. A new \
             key could not open what another wrapped.",
        ),
        (status, ..) => ProviderError::new(
            ProviderErrorKind::AnswerInvalid,
            format!("{SERVICE} answered with status {status}"),
        )
        .with_hint("Check that the address is that of a vault or a managed HSM."),
    }
}

fn forbidden(key: &str, inner: &str, action: Action) -> ProviderError {
    let (kind, permission) = match action {
        Action::Wrap => (ProviderErrorKind::WriteDenied, "wrapKey"),
        Action::Unwrap => (ProviderErrorKind::Denied, "unwrapKey"),
        Action::Get => (ProviderErrorKind::Denied, "get"),
    };
    match inner {
        "KeyDisabled" => unusable(key, "is disabled"),
        "KeyExpired" => unusable(key, "has expired"),
        "KeyNotYetValid" => unusable(key, "is not yet valid"),
        "KeyOperationForbidden" => unusable(key, "is not for wrapping and unwrapping"),
        "ForbiddenByFirewall" | "ForbiddenByConnection" => ProviderError::new(
            kind,
            format!("the network settings of {SERVICE} do not allow requests from here"),
        )
        .with_hint("Add this server's network to the vault's firewall, or a private endpoint."),
        _ => ProviderError::new(
            kind,
            format!("{SERVICE} does not allow operation {permission} with key \"{key}\""),
        )
        .with_hint(
            "The login needs the role \"Key Vault Crypto Service Encryption User\" on the key or the \
             vault (of a managed HSM: \"Managed HSM Crypto Service Encryption User\"), or an access \
             policy with the key permissions get, wrapKey and unwrapKey.",
        ),
    }
}

fn unusable(key: &str, state: &str) -> ProviderError {
    ProviderError::new(ProviderErrorKind::Denied, format!("key \"{key}\" in {SERVICE} {state}"))
        .with_hint(
            "The version that is used must be enabled and valid, with the operations wrapKey and \
             unwrapKey.",
        )
}

fn wrong_algorithm(key: &str) -> ProviderError {
    configuration(format!(
        "key \"{key}\" in {SERVICE} does not go with the algorithm of the settings"
    ))
    .with_hint(
        "An RSA key needs the algorithm RSA-OAEP-256, a symmetric one of 256 bits in a managed \
             HSM needs A256KW, and keys of other kinds can't wrap.",
    )
}

fn not_wrapped(key: &str, what: &str) -> ProviderError {
    ProviderError::new(
        ProviderErrorKind::WrappedKeyInvalid,
        format!("{what} by \"{key}\" in {SERVICE}"),
    )
    .with_hint("It was wrapped by another key or another version of it, or it was changed.")
}

fn not_azure() -> ProviderError {
    ProviderError::new(
        ProviderErrorKind::AnswerInvalid,
        format!("what answers for {SERVICE} doesn't answer as it does"),
    )
    .with_hint("Check the setting of the address.")
}

#[cfg(test)]
mod tests {
    use super::*;

    const VERSION: &str = "0123456789abcdef0123456789abcdef";

    #[test]
    fn keys_are_names_with_or_without_a_version() {
        assert_eq!(parse_key("postgresql-1"), Some(("postgresql-1".to_owned(), None)));
        let (name, version) = parse_key(&format!("k/{VERSION}")).unwrap();
        assert_eq!((name.as_str(), version.as_deref()), ("k", Some(VERSION)));
        for text in
            ["", "a_b", "a b", "a/", "/a", "a/b", "a/b/c", "..", &format!("k/{VERSION}/x"), "k?x"]
        {
            assert_eq!(parse_key(text), None, "{text}");
        }
    }

    #[test]
    fn references_are_read_as_they_are_written() {
        let wrapper = Wrapper {
            key: "k".to_owned(),
            version: VERSION.to_owned(),
            algorithm: Algorithm::RsaOaep256,
        };
        assert_eq!(wrapper.reference(), format!("k/{VERSION}?alg=RSA-OAEP-256"));
        assert_eq!(Wrapper::parse(&wrapper.reference()).unwrap(), wrapper);
        for text in [
            "",
            "k",
            &format!("k/{VERSION}"),
            &format!("k/{VERSION}?alg=RSA1_5"),
            &format!("../k/{VERSION}?alg=A256KW"),
            &format!("k/{VERSION}/x?alg=A256KW"),
            &format!("k/{}?alg=A256KW", VERSION.to_uppercase()),
        ] {
            assert!(Wrapper::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn versions_are_read_from_key_identifiers() {
        let version = |kid: &str| version_of(kid, "k");
        let kid = format!("https://v.vault.azure.net/keys/K/{VERSION}");
        assert_eq!(version(&kid).as_deref(), Some(VERSION));
        for kid in [
            "",
            VERSION,
            &kid.replace("/K/", "/other/"),
            &kid.replace("/keys/", "/secrets/"),
            &format!("{kid}/x"),
            &kid[..kid.len() - 1],
        ] {
            assert_eq!(version(kid), None, "{kid}");
        }
    }

    #[test]
    fn tokens_are_for_the_cloud_that_the_vault_is_in() {
        let resource = |address: &str| resource(&address::parse(address, "address").unwrap());
        assert_eq!(resource("https://v.vault.azure.net"), "https://vault.azure.net");
        assert_eq!(resource("https://h.managedhsm.azure.net:443"), "https://managedhsm.azure.net");
        assert_eq!(
            resource("https://V.Vault.USGovCloudAPI.net"),
            "https://vault.usgovcloudapi.net"
        );
        assert_eq!(resource("https://127.0.0.1:1"), "https://vault.azure.net");
        assert_eq!(resource("https://evilvault.azure.cn"), "https://vault.azure.net");
    }

    #[test]
    fn a_request_does_not_outgrow_its_buffer() {
        for len in [32, 512] {
            let body = operation_request(Algorithm::RsaOaep256, &vec![255; len]);
            assert_eq!(body.capacity(), 64 + (len * 4).div_ceil(3));
        }
    }
}
