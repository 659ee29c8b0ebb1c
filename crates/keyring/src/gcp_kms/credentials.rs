//! Access tokens of Google Cloud, in the order of its "Application Default Credentials": from the
//! file in the settings, or else the one that `GOOGLE_APPLICATION_CREDENTIALS` names, or else the
//! metadata server.
//!
//! | file | how a token is had |
//! | --- | --- |
//! | `service_account` | a signed assertion (RFC 7523; "Using OAuth 2.0 for Server to Server Applications") |
//! | `external_account` | workload identity federation: a token of another identity provider, from a file or an address, is exchanged (RFC 8693; "Security Token Service API"), and the result for one of a service account if the file says so ("IAM Service Account Credentials API", `generateAccessToken`) |

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rustls::SignatureScheme;
use rustls::crypto::ring::sign::RsaSigningKey;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;
use rustls::sign::SigningKey;
use serde::{Deserialize, Serialize};
use ureq::http::Request as HttpRequest;
use ureq::http::Uri;
use zeroize::Zeroizing;

use crate::http::{self, Request, Response, Transport};
use crate::oauth::{self, AccessToken, TokenSource, login_failed};
use crate::provider::ProviderError;
use crate::watched;

/// What tokens are for ("OAuth 2.0 Scopes for Google APIs"): Cloud KMS alone.
const SCOPE: &str = "https://www.googleapis.com/auth/cloudkms";

/// For the token that is exchanged for one of a service account.
const SCOPE_TO_IMPERSONATE: &str = "https://www.googleapis.com/auth/cloud-platform";

/// How long an assertion and an impersonated login last, in seconds: the longest that Google
/// allows.
const LIFETIME: u64 = 3600;

const GOOGLE_TOKEN_URI: &str = "https://oauth2.googleapis.com/token";

const METADATA_HOST: &str = "metadata.google.internal";

/// Where tokens come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// A credentials file. It is read for each token, so a new one needs no restart.
    File(PathBuf),
    /// The metadata server at this host, with a port if need be.
    Metadata(String),
}

impl Source {
    /// The file in the settings, or what the environment has.
    pub(super) fn choose(
        file: Option<PathBuf>,
        environment: impl Fn(&str) -> Option<String>,
    ) -> Self {
        let in_environment = |name| environment(name).filter(|value| !value.is_empty());
        file.or_else(|| in_environment("GOOGLE_APPLICATION_CREDENTIALS").map(PathBuf::from))
            .map(Self::File)
            .unwrap_or_else(|| {
                let host = in_environment("GCE_METADATA_HOST");
                Self::Metadata(host.unwrap_or_else(|| METADATA_HOST.to_owned()))
            })
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "credentials file \"{}\"", path.display()),
            Self::Metadata(_) => f.write_str("the metadata server"),
        }
    }
}

impl TokenSource for Source {
    fn fetch(&self, transport: &Transport) -> Result<AccessToken, ProviderError> {
        match self {
            Self::File(path) => from_file(path, transport),
            Self::Metadata(host) => from_metadata_server(host, transport),
        }
    }

    fn describe(&self) -> String {
        self.to_string()
    }
}

/// "About VM metadata", "Authenticate workloads to Google Cloud APIs using service accounts".
fn from_metadata_server(host: &str, transport: &Transport) -> Result<AccessToken, ProviderError> {
    let uri = format!("http://{host}/computeMetadata/v1/instance/service-accounts/default/token");
    let uri = oauth::machine_endpoint(&uri, "the address in GCE_METADATA_HOST")?;
    let request = HttpRequest::get(uri)
        .header("Metadata-Flavor", "Google")
        .body(Zeroizing::default())
        .map_err(|_| login_failed("could not form a request to the metadata server"))?;
    let response = transport.send(&request).map_err(|error| {
        let kind = error.kind;
        let message = format!("{error} (the metadata server, for an access token)");
        ProviderError { kind, message, ..error }.with_hint(
            "Outside of Google Cloud, the setting of the credentials file or \
             GOOGLE_APPLICATION_CREDENTIALS in the server's environment must name a credentials file.",
        )
    })?;
    // Whatever else answers at that address doesn't say this.
    let flavor = response.headers.get("Metadata-Flavor");
    if response.status == 200 && flavor.is_none_or(|flavor| flavor != "Google") {
        return Err(login_failed("what answers at the metadata server's address isn't one"));
    }
    oauth::read_token(&response, "the metadata server gives out no access token")
        .map_err(|error| error.with_hint("The virtual machine or the pod needs a service account."))
}

fn from_file(path: &Path, transport: &Transport) -> Result<AccessToken, ProviderError> {
    let file = CredentialsFile { path };
    let (contents, _) = watched::read(path, "credentials").map_err(as_login_failed)?;
    let Kind { kind } = file.parse(&contents)?;
    match kind.as_str() {
        "service_account" => file.parse::<ServiceAccount>(&contents)?.fetch(&file, transport),
        "external_account" => file.parse::<ExternalAccount>(&contents)?.fetch(&file, transport),
        _ => Err(file.unusable("its type is neither service_account nor external_account")),
    }
}

/// What writes a file may just not have done so yet: it isn't a setting that is wrong.
fn as_login_failed(error: ProviderError) -> ProviderError {
    ProviderError { kind: crate::provider::ProviderErrorKind::LoginFailed, ..error }
}

struct CredentialsFile<'a> {
    path: &'a Path,
}

#[derive(Deserialize)]
struct Kind {
    #[serde(rename = "type")]
    kind: String,
}

impl CredentialsFile<'_> {
    fn parse<T: for<'de> Deserialize<'de>>(&self, contents: &[u8]) -> Result<T, ProviderError> {
        serde_json::from_slice(contents).map_err(|error| {
            // The library's message may quote the file.
            let (line, column) = (error.line(), error.column());
            self.unusable(&format!("it is not one, at line {line}, column {column}"))
        })
    }

    fn unusable(&self, why: &str) -> ProviderError {
        let path = self.path.display();
        login_failed(format!("could not use credentials file \"{path}\": {why}")).with_hint(
            "It must be the key file of a service account, or a credential configuration file of \
             workload identity federation with a file or a URL as its source.",
        )
    }
}

/// The key file of a service account.
#[derive(Deserialize)]
struct ServiceAccount {
    client_email: String,
    private_key: Zeroizing<String>,
    private_key_id: Option<String>,
    token_uri: Option<String>,
}

impl ServiceAccount {
    fn fetch(
        &self,
        file: &CredentialsFile<'_>,
        transport: &Transport,
    ) -> Result<AccessToken, ProviderError> {
        let uri = self.token_uri.as_deref().unwrap_or(GOOGLE_TOKEN_URI);
        let endpoint = oauth::token_endpoint(uri, "\"token_uri\" in the credentials file")?;
        let assertion = self
            .assertion(uri, oauth::seconds_since_1970())
            .ok_or_else(|| file.unusable("its \"private_key\" is not an RSA key in PEM"))?;
        let request = oauth::form_request(
            &endpoint,
            &[
                ("grant_type", "urn:ietf:params:oauth:grant-type:jwt-bearer"),
                ("assertion", &assertion),
            ],
        )?;
        let response = transport.send(&request)?;
        oauth::read_token(&response, "Google refused the login of the service account").map_err(
            |error| {
                error.with_hint(format!(
                    "Check that service account \"{}\" and its key in file \"{}\" exist and are \
                     enabled, and the clock of this machine.",
                    self.client_email,
                    file.path.display()
                ))
            },
        )
    }

    /// A JSON Web Token (RFC 7519, RFC 7515) with RS256 (RFC 7518), by the TLS library's signer.
    /// `None` if the key isn't RSA's.
    fn assertion(&self, audience: &str, now: u64) -> Option<Zeroizing<String>> {
        #[derive(Serialize)]
        struct Header<'a> {
            alg: &'static str,
            typ: &'static str,
            #[serde(skip_serializing_if = "Option::is_none")]
            kid: Option<&'a str>,
        }
        #[derive(Serialize)]
        struct Claims<'a> {
            iss: &'a str,
            scope: &'static str,
            aud: &'a str,
            iat: u64,
            exp: u64,
        }
        let header = Header { alg: "RS256", typ: "JWT", kid: self.private_key_id.as_deref() };
        let claims = Claims {
            iss: &self.client_email,
            scope: SCOPE,
            aud: audience,
            iat: now,
            exp: now + LIFETIME,
        };
        let key = PrivateKeyDer::from_pem_slice(self.private_key.as_bytes()).ok()?;
        let key = RsaSigningKey::new(&key).ok()?;
        let signer = key.choose_scheme(&[SignatureScheme::RSA_PKCS1_SHA256])?;
        let encode = |part: Vec<u8>| URL_SAFE_NO_PAD.encode(part);
        let header = encode(serde_json::to_vec(&header).ok()?);
        let claims = encode(serde_json::to_vec(&claims).ok()?);
        let signed = format!("{header}.{claims}");
        let signature = encode(signer.sign(signed.as_bytes()).ok()?);
        Some(Zeroizing::new(format!("{signed}.{signature}")))
    }
}

/// The configuration file of workload identity federation (AIP-4117, "External Account
/// Credentials").
#[derive(Deserialize)]
struct ExternalAccount {
    audience: String,
    subject_token_type: String,
    token_url: String,
    credential_source: SubjectSource,
    service_account_impersonation_url: Option<String>,
}

#[derive(Deserialize)]
struct SubjectSource {
    file: Option<String>,
    url: Option<String>,
    #[serde(default)]
    headers: BTreeMap<String, Zeroizing<String>>,
    #[serde(default)]
    format: SubjectFormat,
}

#[derive(Deserialize)]
struct SubjectFormat {
    #[serde(rename = "type")]
    kind: String,
    subject_token_field_name: Option<String>,
}

impl Default for SubjectFormat {
    fn default() -> Self {
        Self { kind: "text".to_owned(), subject_token_field_name: None }
    }
}

impl ExternalAccount {
    fn fetch(
        &self,
        file: &CredentialsFile<'_>,
        transport: &Transport,
    ) -> Result<AccessToken, ProviderError> {
        let endpoint =
            oauth::token_endpoint(&self.token_url, "\"token_url\" in the credentials file")?;
        let subject_token = self.credential_source.read(file, transport)?;
        let scope = match self.service_account_impersonation_url {
            Some(_) => SCOPE_TO_IMPERSONATE,
            None => SCOPE,
        };
        let request = oauth::form_request(
            &endpoint,
            &[
                ("grant_type", "urn:ietf:params:oauth:grant-type:token-exchange"),
                ("audience", &self.audience),
                ("scope", scope),
                ("requested_token_type", "urn:ietf:params:oauth:token-type:access_token"),
                ("subject_token_type", &self.subject_token_type),
                ("subject_token", &subject_token),
            ],
        )?;
        let response = transport.send(&request)?;
        let token = oauth::read_token(&response, "Google refused the token of the workload")
            .map_err(|error| {
                error.with_hint(
                    "Check the audience in the credentials file, the workload identity pool's \
                     provider and its conditions, and whether the workload's token has expired.",
                )
            })?;
        match &self.service_account_impersonation_url {
            Some(url) => impersonate(url, &token, transport),
            None => Ok(token),
        }
    }
}

impl SubjectSource {
    /// The token of the other identity provider.
    fn read(
        &self,
        file: &CredentialsFile<'_>,
        transport: &Transport,
    ) -> Result<Zeroizing<String>, ProviderError> {
        let contents = match (&self.file, &self.url) {
            (Some(path), None) => {
                watched::read(Path::new(path), "workload token").map_err(as_login_failed)?.0
            }
            (None, Some(url)) => self.ask(url, transport)?,
            _ => return Err(file.unusable("its \"credential_source\" has no \"file\" or \"url\"")),
        };
        let token = match (self.format.kind.as_str(), &self.format.subject_token_field_name) {
            ("text", _) => std::str::from_utf8(contents.trim_ascii())
                .ok()
                .map(|text| Zeroizing::new(text.to_owned())),
            ("json", Some(field)) => {
                serde_json::from_slice::<BTreeMap<String, serde_json::Value>>(&contents)
                    .ok()
                    .and_then(|fields| {
                        Some(Zeroizing::new(fields.get(field)?.as_str()?.to_owned()))
                    })
            }
            _ => return Err(file.unusable("its \"format\" is neither text nor json with a field")),
        };
        token
            .filter(|token| !token.is_empty())
            .ok_or_else(|| login_failed("the source of the workload's token has no token in it"))
    }

    fn ask(&self, url: &str, transport: &Transport) -> Result<Zeroizing<Vec<u8>>, ProviderError> {
        let uri = oauth::machine_endpoint(url, "\"url\" of \"credential_source\"")?;
        let mut builder = HttpRequest::get(uri);
        for (name, value) in &self.headers {
            builder = builder.header(name, http::sensitive(value)?);
        }
        let request = builder
            .body(Zeroizing::default())
            .map_err(|_| login_failed("could not form a request for the workload's token"))?;
        let response = transport.send(&request)?;
        match response.status {
            200 => Ok(response.body),
            _ => Err(oauth::refusal(&response, "the source of the workload's token has none")),
        }
    }
}

/// Has a federated login act as a service account.
fn impersonate(
    url: &str,
    token: &AccessToken,
    transport: &Transport,
) -> Result<AccessToken, ProviderError> {
    let what = "\"service_account_impersonation_url\" in the credentials file";
    let request = impersonation_request(oauth::token_endpoint(url, what)?, token)?;
    let response = transport.send(&request)?;
    let whose = "Google refused to let the workload act as the service account";
    if response.status != 200 {
        return Err(oauth::refusal(&response, whose).with_hint(
            "The workload's principal needs the role \"Workload Identity User\" \
             (roles/iam.workloadIdentityUser) on the service account.",
        ));
    }
    impersonated(&response).ok_or_else(|| login_failed(format!("{whose}: the answer has no token")))
}

fn impersonation_request(uri: Uri, token: &AccessToken) -> Result<Request, ProviderError> {
    let authorization = Zeroizing::new(format!("Bearer {}", token.text()));
    HttpRequest::post(uri)
        .header("Authorization", http::sensitive(&authorization)?)
        .header("Content-Type", "application/json")
        .body(Zeroizing::new(
            format!(r#"{{"scope":["{SCOPE}"],"lifetime":"{LIFETIME}s"}}"#).into_bytes(),
        ))
        .map_err(|_| login_failed("could not form a request to act as a service account"))
}

fn impersonated(response: &Response) -> Option<AccessToken> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Answer {
        access_token: Zeroizing<String>,
    }
    let answer: Answer = serde_json::from_slice(&response.body).ok()?;
    // It lives as long as was asked for, or the request had been refused.
    AccessToken::new(answer.access_token, Some(LIFETIME))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_source_is_the_first_that_is_configured() {
        let choose = |file: Option<&str>, environment: &[(&str, &str)]| {
            let environment = environment.to_vec();
            Source::choose(file.map(PathBuf::from), move |name| {
                let found = environment.iter().find(|(key, _)| *key == name);
                found.map(|(_, value)| (*value).to_owned())
            })
        };
        let named =
            [("GOOGLE_APPLICATION_CREDENTIALS", "/b"), ("GCE_METADATA_HOST", "127.0.0.1:1")];
        let file = |path: &str| Source::File(path.into());
        assert_eq!(choose(Some("/a"), &named), file("/a"));
        assert_eq!(choose(None, &named), file("/b"));
        assert_eq!(choose(None, &named[1..]), Source::Metadata("127.0.0.1:1".to_owned()));
        let metadata = Source::Metadata("metadata.google.internal".to_owned());
        assert_eq!(choose(None, &[]), metadata);
        assert_eq!(choose(None, &[("GOOGLE_APPLICATION_CREDENTIALS", "")]), metadata);
    }

    #[test]
    fn a_file_that_is_no_credentials_file_is_told_without_what_is_in_it() {
        let file = CredentialsFile { path: Path::new("/f") };
        let fails = |contents: &str| {
            let result = file.parse::<ServiceAccount>(contents.as_bytes());
            let error = result.err().unwrap();
            assert!(!format!("{error:?}").contains("hunter2"), "{error:?}");
        };
        fails("hunter2");
        fails(r#"{"hunter2":1}"#);
        fails(r#"{"client_email":"a","private_key":hunter2}"#);
        fails(r#"{"client_email":"a","private_key":["hunter2"]}"#);
    }

    #[test]
    fn an_assertion_needs_an_rsa_key() {
        for private_key in
            ["", "hunter2", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"]
        {
            let account = ServiceAccount {
                client_email: "a".to_owned(),
                private_key: Zeroizing::new(private_key.to_owned()),
                private_key_id: None,
                token_uri: None,
            };
            assert!(account.assertion("b", 0).is_none(), "{private_key}");
        }
    }
}
