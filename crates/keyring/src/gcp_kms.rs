//! Keys wrapped by Google Cloud KMS.
//!
//! A data encryption key is encrypted under the primary version of a symmetric key ("Cloud Key
//! Management Service (KMS) API", v1, methods `encrypt` and `decrypt` of `cryptoKeys`), with
//! [`VersionId::additional_data`] as additional authenticated data. Checksums (CRC-32C) go with
//! what is sent, and come with what is received ("Verifying end-to-end data integrity"): both sides
//! check them.
//!
//! A reference is `cryptoKeys/<key>/cryptoKeyVersions/<number>`, relative to the key ring that the
//! settings name: after a change to another key of the ring, what the former one wrapped can still
//! be opened. The number tells administrators what must not be destroyed; a ciphertext says it to
//! Cloud KMS itself.

mod credentials;

use std::env;
use std::time::Instant;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use envelope::{DataKey, KeyName};
use serde::{Deserialize, Serialize};
use ureq::http::Method;
use zeroize::Zeroizing;

use crate::address::{self, Address};
use crate::call::RequestLimits;
use crate::http::{Response, Server};
use crate::oauth::{Client, Unauthorized};
use crate::options::{self, configuration};
use crate::provider::{
    self, Certificates, Finding, FoundVersion, Interrupt, KeyTextError, Login, MadeVersion,
    Provider, ProviderError, ProviderErrorKind, WrappedKey,
};
use crate::version::VersionId;
use credentials::Source;

const SERVICE: &str = "Google Cloud KMS";

/// The settings of a provider `gcp_kms`, as an administrator wrote them.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, default)]
pub struct GcpKmsOptions {
    /// The symmetric key that wraps new data encryption keys:
    /// `projects/…/locations/…/keyRings/…/cryptoKeys/…`.
    pub key: String,
    /// The address of Cloud KMS; [`GcpKmsOptions::DEFAULT_ENDPOINT`] unless it is set.
    pub endpoint: String,
    /// The certificates (PEM) of the authorities that may sign those of Cloud KMS and of what gives
    /// out access tokens; the system's if there is none.
    pub ca_file: String,
    /// The key file of a service account, or the configuration file of workload identity
    /// federation. The file that `GOOGLE_APPLICATION_CREDENTIALS` names unless it is set, or else
    /// the metadata server is asked.
    pub credentials_file: String,
}

impl GcpKmsOptions {
    /// Where Cloud KMS is unless set otherwise.
    pub const DEFAULT_ENDPOINT: &'static str = "https://cloudkms.googleapis.com";
}

/// A provider that wraps keys by Google Cloud KMS.
pub struct GcpKmsProvider {
    client: Client,
    endpoint: Address,
    key: CryptoKey,
}

/// A key encryption key.
#[derive(Clone, Debug, PartialEq, Eq)]
struct CryptoKey {
    /// `projects/…/locations/…/keyRings/…`
    ring: String,
    name: String,
}

impl GcpKmsProvider {
    /// A provider with these settings. Nothing is sent yet, and no file is looked at.
    ///
    /// # Errors
    ///
    /// [`ProviderErrorKind::Configuration`], with the setting that is wrong and what it must be.
    pub fn new(
        options: &GcpKmsOptions,
        limits: RequestLimits,
        interrupt: Box<dyn Interrupt>,
    ) -> Result<Self, ProviderError> {
        let key = options::required(options.key.clone(), "key")?;
        let key = CryptoKey::parse(&key).ok_or_else(|| {
            configuration("setting \"key\" is malformed").with_hint(
                "It has the form projects/PROJECT/locations/LOCATION/keyRings/RING/cryptoKeys/KEY.",
            )
        })?;
        let endpoint = options::optional(options.endpoint.clone());
        let endpoint = address::parse(
            endpoint.as_deref().unwrap_or(GcpKmsOptions::DEFAULT_ENDPOINT),
            "endpoint",
        )?;
        let file = options::optional_file(options.credentials_file.clone(), "credentials_file")?;
        let source = Source::choose(file, |name| env::var(name).ok());
        let server = Server {
            service: SERVICE,
            https_only: endpoint.is_https,
            ca_file: options::optional_file(options.ca_file.clone(), "ca_file")?,
            identity: None,
            follows_redirects: false,
            authority: None,
            limits,
        };
        Ok(Self { client: Client::new(server, source, interrupt), endpoint, key })
    }

    /// Wraps a key under the primary version of the key of the settings.
    fn encrypt(
        &mut self,
        id: &VersionId<'_>,
        key: &DataKey,
        deadline: Instant,
    ) -> Result<WrappedKey, ProviderError> {
        let crypto_key = self.key.clone();
        let body = encrypt_request(key, &id.additional_data());
        let request = self.request(&crypto_key, Method::POST, ":encrypt", body);
        self.client
            .request(&request, deadline, move |response| read_encrypted(&crypto_key, response))
    }

    /// Unwraps what a key of the ring wrapped for version `id`.
    fn decrypt(
        &mut self,
        id: &VersionId<'_>,
        reference: &str,
        wrapped: Option<&[u8]>,
        deadline: Instant,
    ) -> Result<DataKey, ProviderError> {
        let crypto_key = self.key.of_reference(reference)?;
        let wrapped = wrapped
            .filter(|wrapped| !wrapped.is_empty())
            .ok_or_else(|| not_wrapped(&crypto_key, "there is no wrapped key to open"))?;
        let body = decrypt_request(wrapped, &id.additional_data());
        let request = self.request(&crypto_key, Method::POST, ":decrypt", body);
        self.client
            .request(&request, deadline, move |response| read_decrypted(&crypto_key, response))
    }

    /// What the key of the settings is, as far as the login may see it.
    fn look_at_key(&mut self, deadline: Instant) -> Result<Finding, ProviderError> {
        let crypto_key = self.key.clone();
        let request = self.request(&crypto_key, Method::GET, "", Zeroizing::default());
        self.client.request(&request, deadline, move |response| read_key(&crypto_key, response))
    }

    fn request(
        &self,
        key: &CryptoKey,
        method: Method,
        action: &str,
        body: Zeroizing<Vec<u8>>,
    ) -> Unauthorized {
        let CryptoKey { ring, name } = key;
        let uri = format!("{}/v1/{ring}/cryptoKeys/{name}{action}", self.endpoint.base);
        Unauthorized { method, uri, body }
    }
}

impl Provider for GcpKmsProvider {
    fn discover(
        &mut self,
        _name: &KeyName,
        _known: &[&str],
    ) -> Result<Vec<FoundVersion>, ProviderError> {
        Ok(Vec::new())
    }

    fn make(&mut self, id: &VersionId<'_>) -> Result<MadeVersion, ProviderError> {
        let deadline = self.client.deadline();
        let key = provider::generate_key()?;
        let WrappedKey { reference, wrapped } = self.encrypt(id, &key, deadline)?;
        Ok(MadeVersion { reference, wrapped: Some(wrapped), key, number: None })
    }

    fn open(
        &mut self,
        id: &VersionId<'_>,
        reference: &str,
        wrapped: Option<&[u8]>,
    ) -> Result<DataKey, ProviderError> {
        let deadline = self.client.deadline();
        self.decrypt(id, reference, wrapped, deadline)
    }

    fn rewrap(
        &mut self,
        id: &VersionId<'_>,
        reference: &str,
        wrapped: Option<&[u8]>,
    ) -> Result<Option<WrappedKey>, ProviderError> {
        let deadline = self.client.deadline();
        let key = self.decrypt(id, reference, wrapped, deadline)?;
        self.encrypt(id, &key, deadline).map(Some)
    }

    fn check(&mut self, probe: &VersionId<'_>) -> Result<Vec<Finding>, ProviderError> {
        let deadline = self.client.deadline();
        let key = self.look_at_key(deadline)?;
        let login =
            format!("{} gave an access token, which is accepted", self.client.describe_source());
        let round_trip = provider::check_round_trip(self, probe, true)?;
        Ok(vec![Finding::good("login", login), key, round_trip])
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

impl CryptoKey {
    /// Takes a resource name ("Getting a Cloud KMS resource ID"). It needs no escaping in a URL.
    fn parse(text: &str) -> Option<Self> {
        let parts = text.split('/').collect::<Vec<_>>();
        let ["projects", project, "locations", location, "keyRings", ring, "cryptoKeys", key] =
            parts[..]
        else {
            return None;
        };
        // The project of an organization may be `example.com:name`.
        let is_project = is_id(&project.replace(['.', ':'], "-"));
        let is_valid = is_project && is_id(location) && is_id(ring) && is_id(key);
        let ring = text.strip_suffix(key)?.strip_suffix("/cryptoKeys/")?.to_owned();
        is_valid.then(|| Self { ring, name: key.to_owned() })
    }

    /// The key that a reference names, in the same ring.
    fn of_reference(&self, reference: &str) -> Result<Self, ProviderError> {
        let parts = reference.split('/').collect::<Vec<_>>();
        match parts[..] {
            ["cryptoKeys", name, "cryptoKeyVersions", number]
                if is_id(name) && is_number(number) =>
            {
                Ok(Self { ring: self.ring.clone(), name: name.to_owned() })
            }
            _ => Err(configuration(format!(
                "{reference:?} is not a reference to a key in Google Cloud KMS"
            ))),
        }
    }

    /// What a version that `encrypt` names is called in a reference: the end of its resource name.
    fn reference(&self, version: &str) -> Option<String> {
        let Self { ring, name } = self;
        let relative = version.strip_prefix(ring.as_str())?.strip_prefix('/')?;
        let number = relative.strip_prefix(&format!("cryptoKeys/{name}/cryptoKeyVersions/"))?;
        is_number(number).then(|| relative.to_owned())
    }
}

fn is_id(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_-".contains(&byte);
    matches!(text.len(), 1..=63) && text.bytes().all(allowed)
}

fn is_number(text: &str) -> bool {
    text.parse::<u32>().is_ok_and(|number| number > 0 && number.to_string() == text)
}

/// The body of `encrypt`.
fn encrypt_request(key: &DataKey, additional_data: &[u8]) -> Zeroizing<Vec<u8>> {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Body<'a> {
        plaintext: &'a str,
        plaintext_crc32c: String,
        additional_authenticated_data: String,
        additional_authenticated_data_crc32c: String,
    }
    let mut plaintext = Zeroizing::new([0; 44]);
    STANDARD
        .encode_slice(key.expose(), &mut *plaintext)
        .expect("32 bytes are 44 characters of base64");
    json(
        &Body {
            plaintext: std::str::from_utf8(&*plaintext).expect("base64 is ASCII"),
            plaintext_crc32c: checksum(key.expose()),
            additional_authenticated_data: STANDARD.encode(additional_data),
            additional_authenticated_data_crc32c: checksum(additional_data),
        },
        plaintext.len() + 2 * additional_data.len(),
    )
}

/// The body of `decrypt`.
fn decrypt_request(wrapped: &[u8], additional_data: &[u8]) -> Zeroizing<Vec<u8>> {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Body {
        ciphertext: String,
        ciphertext_crc32c: String,
        additional_authenticated_data: String,
        additional_authenticated_data_crc32c: String,
    }
    json(
        &Body {
            ciphertext: STANDARD.encode(wrapped),
            ciphertext_crc32c: checksum(wrapped),
            additional_authenticated_data: STANDARD.encode(additional_data),
            additional_authenticated_data_crc32c: checksum(additional_data),
        },
        2 * (wrapped.len() + additional_data.len()),
    )
}

/// Writes JSON into memory that never moves: what isn't of `variable_len` is less than 512 bytes
/// long.
fn json(body: &impl Serialize, variable_len: usize) -> Zeroizing<Vec<u8>> {
    let mut json = Zeroizing::new(Vec::with_capacity(512 + variable_len));
    serde_json::to_writer(&mut *json, body).expect("strings can be written to memory");
    json
}

/// A checksum as JSON of protocol buffers has numbers of 64 bits: as text.
fn checksum(data: &[u8]) -> String {
    crc32c::crc32c(data).to_string()
}

fn read_encrypted(key: &CryptoKey, response: &Response) -> Result<WrappedKey, ProviderError> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Answer {
        name: String,
        ciphertext: String,
        ciphertext_crc32c: String,
        // JSON of protocol buffers leaves out what is false.
        #[serde(default)]
        verified_plaintext_crc32c: bool,
        #[serde(default)]
        verified_additional_authenticated_data_crc32c: bool,
    }
    if response.status != 200 {
        return Err(refusal(key, response, Action::Encrypt));
    }
    let answer: Answer = serde_json::from_slice(&response.body).map_err(|_| not_google())?;
    let wrapped = STANDARD.decode(&answer.ciphertext).map_err(|_| not_google())?;
    let is_intact = answer.verified_plaintext_crc32c
        && answer.verified_additional_authenticated_data_crc32c
        && answer.ciphertext_crc32c == checksum(&wrapped);
    if !is_intact {
        return Err(corrupted());
    }
    let reference = key.reference(&answer.name).ok_or_else(not_google)?;
    Ok(WrappedKey { reference, wrapped })
}

fn read_decrypted(key: &CryptoKey, response: &Response) -> Result<DataKey, ProviderError> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Answer {
        plaintext: Zeroizing<String>,
        plaintext_crc32c: String,
    }
    if response.status != 200 {
        return Err(refusal(key, response, Action::Decrypt));
    }
    let answer: Answer = serde_json::from_slice(&response.body).map_err(|_| not_google())?;
    let data_key = provider::key_from_base64(&answer.plaintext).map_err(|why| match why {
        KeyTextError::NotBase64 => not_google(),
        KeyTextError::Length { bytes } => ProviderError::new(
            ProviderErrorKind::KeyLengthWrong,
            format!("what \"{}\" in {SERVICE} wrapped has {bytes} bytes instead of 32", key.name),
        ),
    })?;
    match answer.plaintext_crc32c == checksum(data_key.expose()) {
        true => Ok(data_key),
        false => Err(corrupted()),
    }
}

/// The answer to `get`. Not to be allowed to look is fine: wrapping and unwrapping don't need it.
fn read_key(key: &CryptoKey, response: &Response) -> Result<Finding, ProviderError> {
    #[derive(Deserialize)]
    struct Answer {
        purpose: String,
        primary: Option<Version>,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Version {
        name: String,
        state: String,
        protection_level: String,
    }
    let what = "key encryption key";
    let CryptoKey { name, .. } = key;
    if response.status == 403 && Refusal::of(response).is_missing_permission() {
        return Ok(Finding::good(
            what,
            format!("\"{name}\": the login may not look at its state (cloudkms.cryptoKeys.get)"),
        ));
    }
    if response.status != 200 {
        return Err(refusal(key, response, Action::Get));
    }
    let answer: Answer = serde_json::from_slice(&response.body).map_err(|_| not_google())?;
    if answer.purpose != "ENCRYPT_DECRYPT" {
        return Err(configuration(format!("\"{name}\" in {SERVICE} is not for encryption"))
            .with_hint("It needs the purpose \"Symmetric encrypt/decrypt\" (ENCRYPT_DECRYPT)."));
    }
    let Some(primary) = answer.primary.filter(|primary| primary.state == "ENABLED") else {
        return Err(unusable_version(key));
    };
    let reference = key.reference(&primary.name).ok_or_else(not_google)?;
    let level = match primary.protection_level.as_str() {
        "SOFTWARE" => "software",
        "HSM" | "HSM_SINGLE_TENANT" => "an HSM",
        _ => "an external key manager",
    };
    Ok(Finding::good(what, format!("\"{reference}\" is the primary version, enabled, in {level}")))
}

/// What a request was for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    Encrypt,
    Decrypt,
    Get,
}

impl Action {
    fn permission(self) -> &'static str {
        match self {
            Self::Encrypt => "cloudkms.cryptoKeyVersions.useToEncrypt",
            Self::Decrypt => "cloudkms.cryptoKeyVersions.useToDecrypt",
            Self::Get => "cloudkms.cryptoKeys.get",
        }
    }
}

/// An error of Google's services ("Errors", AIP-193): the code's name, and the reason where there
/// is one.
#[derive(Default)]
struct Refusal {
    status: String,
    reason: String,
}

impl Refusal {
    fn of(response: &Response) -> Self {
        #[derive(Deserialize)]
        struct Body {
            error: Error,
        }
        #[derive(Deserialize)]
        struct Error {
            status: String,
            #[serde(default)]
            details: Vec<Detail>,
        }
        #[derive(Deserialize)]
        struct Detail {
            #[serde(default)]
            reason: String,
        }
        let Ok(Body { error }) = serde_json::from_slice(&response.body) else {
            return Self::default();
        };
        let reason = error.details.into_iter().map(|detail| detail.reason).find(|r| !r.is_empty());
        Self { status: error.status, reason: reason.unwrap_or_default() }
    }

    /// Whether the login is one for this service, and lacks a permission for the key.
    fn is_missing_permission(&self) -> bool {
        self.status == "PERMISSION_DENIED"
            && !matches!(
                self.reason.as_str(),
                "ACCESS_TOKEN_SCOPE_INSUFFICIENT" | "SERVICE_DISABLED"
            )
    }
}

fn refusal(key: &CryptoKey, response: &Response, action: Action) -> ProviderError {
    let CryptoKey { ring, name } = key;
    let refusal = Refusal::of(response);
    match (response.status, refusal.status.as_str()) {
        (429, _) => ProviderError::new(
            ProviderErrorKind::Throttled,
            format!("{SERVICE} refuses requests because there are too many"),
        )
        .with_hint("Raise the project's quota, or the time that keys are cached.")
        .transient(),
        (status @ 500.., _) => ProviderError::new(
            ProviderErrorKind::Unreachable,
            format!("{SERVICE} can't serve now (status {status})"),
        )
        .transient(),
        (400, "FAILED_PRECONDITION") => unusable_version(key),
        (400, "INVALID_ARGUMENT") if action == Action::Decrypt => {
            not_wrapped(key, "what is stored as a wrapped key can't be opened")
        }
        (403, "PERMISSION_DENIED") if !refusal.is_missing_permission() => {
            let (message, hint) = match refusal.reason.as_str() {
                "SERVICE_DISABLED" => (
                    format!("{SERVICE} is not enabled in the project of the login"),
                    "Enable the API: gcloud services enable cloudkms.googleapis.com",
                ),
                _ => (
                    format!("the access token is not for {SERVICE}"),
                    "The virtual machine needs the access scope \"cloud-platform\" or \"cloudkms\".",
                ),
            };
            ProviderError::new(denied(action), message).with_hint(hint)
        }
        (403, "PERMISSION_DENIED") => ProviderError::new(
            denied(action),
            format!("{SERVICE} does not allow the use of key \"{name}\", or there is no such key"),
        )
        .with_hint(format!(
            "The login needs the permission {} on {ring}/cryptoKeys/{name}, which \
             roles/cloudkms.cryptoKeyEncrypterDecrypter has.",
            action.permission()
        )),
        (404, "NOT_FOUND") => ProviderError::new(
            ProviderErrorKind::KeyMissing,
            format!("there is no key \"{name}\" in {ring}"),
        )
        .with_hint(
            "Correct the setting of the key. A new key could not open what another wrapped.",
        ),
        (status, _) => ProviderError::new(
            ProviderErrorKind::AnswerInvalid,
            format!("{SERVICE} answered with status {status}"),
        )
        .with_hint("Check that the endpoint is that of Cloud KMS, and the form of the key's name."),
    }
}

fn denied(action: Action) -> ProviderErrorKind {
    match action {
        Action::Encrypt => ProviderErrorKind::WriteDenied,
        Action::Decrypt | Action::Get => ProviderErrorKind::Denied,
    }
}

fn unusable_version(key: &CryptoKey) -> ProviderError {
    let CryptoKey { ring, name } = key;
    ProviderError::new(
        ProviderErrorKind::Denied,
        format!("key \"{name}\" in {SERVICE} can't be used in the state that it is in"),
    )
    .with_hint(format!(
        "Its version must be enabled, and its purpose must be encryption. To see the states: gcloud kms \
         keys versions list --key {ring}/cryptoKeys/{name}"
    ))
}

fn not_wrapped(key: &CryptoKey, what: &str) -> ProviderError {
    ProviderError::new(
        ProviderErrorKind::WrappedKeyInvalid,
        format!("{what} by \"{}\" in {SERVICE}", key.name),
    )
    .with_hint(
        "It was wrapped by another key, or for another key version or database, or it was changed.",
    )
}

/// A checksum doesn't match: "discard the response and retry, a limited number of times".
fn corrupted() -> ProviderError {
    ProviderError::new(
        ProviderErrorKind::AnswerInvalid,
        format!("what was sent to {SERVICE} or what it answered was changed on the way"),
    )
    .with_hint("Its checksum does not match. Run the command again.")
    .transient()
}

fn not_google() -> ProviderError {
    ProviderError::new(
        ProviderErrorKind::AnswerInvalid,
        format!("what answers for {SERVICE} doesn't answer as it does"),
    )
    .with_hint("Check the setting of the endpoint.")
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "projects/example.com:p-1/locations/europe-west3/keyRings/r_1/cryptoKeys/k";

    #[test]
    fn keys_are_resource_names() {
        let key = CryptoKey::parse(KEY).unwrap();
        assert_eq!(key.ring, "projects/example.com:p-1/locations/europe-west3/keyRings/r_1");
        assert_eq!(key.name, "k");
        for text in [
            "",
            "k",
            &KEY[1..],
            &format!("{KEY}/cryptoKeyVersions/1"),
            &format!("{KEY}:encrypt"),
            &format!("{KEY}?x"),
            &KEY.replace("r_1", ".."),
            &KEY.replace("r_1", ""),
            &KEY.replace("europe-west3", "a b"),
            &KEY.replace("keyRings", "keyrings"),
        ] {
            assert_eq!(CryptoKey::parse(text), None, "{text}");
        }
    }

    #[test]
    fn references_are_relative_to_the_ring() {
        let key = CryptoKey::parse(KEY).unwrap();
        let reference = key.reference(&format!("{KEY}/cryptoKeyVersions/12")).unwrap();
        assert_eq!(reference, "cryptoKeys/k/cryptoKeyVersions/12");
        let other = CryptoKey { name: "former".to_owned(), ..key.clone() };
        assert_eq!(other.of_reference(&reference).unwrap(), key);
        for version in ["0", "01", "-1", "1/x", "", "99999999999"] {
            assert_eq!(key.reference(&format!("{KEY}/cryptoKeyVersions/{version}")), None);
            let reference = format!("cryptoKeys/k/cryptoKeyVersions/{version}");
            assert!(key.of_reference(&reference).is_err(), "{reference}");
        }
        assert_eq!(other.reference(&format!("{KEY}/cryptoKeyVersions/1")), None);
    }

    #[test]
    fn a_request_does_not_outgrow_its_buffer() {
        let data = [255; 200];
        let body = encrypt_request(&DataKey::new([255; 32]), &data);
        assert_eq!(body.capacity(), 512 + 44 + 400);
        let body = decrypt_request(&[255; 5000], &data);
        assert_eq!(body.capacity(), 512 + 10_400);
    }

    /// RFC 3720, appendix B.4, as JSON of protocol buffers has it.
    #[test]
    fn checksums_are_castagnolis() {
        assert_eq!(checksum(&[0; 32]), "2324772522");
        assert_eq!(checksum(&[0xff; 32]), "1655221059");
    }
}
