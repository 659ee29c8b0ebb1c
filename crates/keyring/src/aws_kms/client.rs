//! Signed requests to AWS KMS.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use envelope::DataKey;
use reqsign_aws_v4::RequestSigner;
use reqsign_core::hash::hex_sha256;
use reqsign_core::{Context, SignRequest};
use serde::Serialize;
use ureq::http;
use zeroize::Zeroizing;

use super::answer::{Answer, Refusal};
use super::credentials::{Credentials, Login};
use super::settings::Connection;
use crate::call::RequestLimits;
use crate::http::{Http, Request, Server, Transport};
use crate::options::configuration;
use crate::provider::{Certificates, Finding, Interrupt, ProviderError, ProviderErrorKind};
use crate::version::VersionId;

/// AWS accepts a signature for five minutes before and after its own time. A clock that is off by
/// more than this, in seconds, is worth a word.
const MAX_CLOCK_DIFFERENCE: i64 = 60;

pub(super) const KEY_HINT: &str = "Name a symmetric key: one of the key spec SYMMETRIC_DEFAULT and \
     the key usage ENCRYPT_DECRYPT.";

/// What KMS is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    GenerateDataKey,
    Encrypt,
    Decrypt,
    DescribeKey,
}

impl Action {
    fn name(self) -> &'static str {
        match self {
            Self::GenerateDataKey => "GenerateDataKey",
            Self::Encrypt => "Encrypt",
            Self::Decrypt => "Decrypt",
            Self::DescribeKey => "DescribeKey",
        }
    }
}

/// The parameters of an action, for a key.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Parameters<'a> {
    key_id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    encryption_context: Option<BTreeMap<&'static str, String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key_spec: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    plaintext: Option<Zeroizing<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ciphertext_blob: Option<String>,
}

impl<'a> Parameters<'a> {
    pub(super) fn of_key(key_id: &'a str) -> Self {
        Self {
            key_id,
            encryption_context: None,
            key_spec: None,
            plaintext: None,
            ciphertext_blob: None,
        }
    }

    pub(super) fn of_version(key_id: &'a str, id: &VersionId<'_>) -> Self {
        let encryption_context = Some(BTreeMap::from(id.encryption_context()));
        Self { encryption_context, ..Self::of_key(key_id) }
    }

    pub(super) fn with_key_spec(self, key_spec: &'static str) -> Self {
        Self { key_spec: Some(key_spec), ..self }
    }

    pub(super) fn with_plaintext(self, key: &DataKey) -> Self {
        // Enough for all of it, so that the text never moves and leaves the key behind.
        let mut text = Zeroizing::new(String::with_capacity(64));
        STANDARD.encode_string(key.expose(), &mut text);
        Self { plaintext: Some(text), ..self }
    }

    pub(super) fn with_ciphertext(self, ciphertext: &[u8]) -> Self {
        Self { ciphertext_blob: Some(STANDARD.encode(ciphertext)), ..self }
    }

    fn to_json(&self) -> Zeroizing<Vec<u8>> {
        let ciphertext_len = self.ciphertext_blob.as_ref().map_or(0, String::len);
        // Enough for all of it: nothing in it needs escaping, and the context has less than 200 bytes.
        let mut json =
            Zeroizing::new(Vec::with_capacity(1024 + self.key_id.len() + ciphertext_len));
        serde_json::to_writer(&mut *json, self).expect("texts can be written to memory");
        json
    }
}

/// Sends requests to KMS.
pub(super) struct Client {
    session: Arc<Session>,
    http: Http,
    interrupt: Box<dyn Interrupt>,
}

impl Client {
    pub(super) fn new(
        connection: Connection,
        limits: RequestLimits,
        interrupt: Box<dyn Interrupt>,
    ) -> Self {
        let endpoint = connection.endpoint.base.parse::<http::Uri>().ok();
        let session = Session {
            credentials: Credentials::new(&connection),
            signer: RequestSigner::new("kms", &connection.region),
            address: connection.endpoint.base,
            clock_difference: Mutex::new(None),
        };
        let http = Http::new(Server {
            service: "AWS",
            // Credentials are had from the platform by plain http. The address of KMS itself was
            // checked when the settings were.
            https_only: false,
            ca_file: connection.ca_file,
            identity: None,
            follows_redirects: false,
            authority: endpoint.and_then(|uri| uri.authority().cloned()),
            limits,
        });
        Self { session: Arc::new(session), http, interrupt }
    }

    /// The time at which an operation that begins now must end.
    pub(super) fn deadline(&self) -> Instant {
        self.http.deadline()
    }

    /// Has an action done. The answer has status 200.
    pub(super) fn call(
        &mut self,
        action: Action,
        parameters: Parameters<'_>,
        deadline: Instant,
    ) -> Result<Answer, ProviderError> {
        let body = parameters.to_json();
        let key_id = parameters.key_id.to_owned();
        let session = Arc::clone(&self.session);
        self.http.call(deadline, &*self.interrupt, move |transport| {
            session.request(transport, action, &key_id, &body)
        })
    }

    /// Until when the certificate is good that KMS has shown last.
    pub(super) fn certificates(&self) -> Certificates {
        self.http.certificates()
    }

    /// What came of the login that the last request was signed with.
    pub(super) fn login_findings(&self) -> Vec<Finding> {
        let mut findings = Vec::new();
        if let Some(login) = self.session.credentials.kept() {
            findings
                .push(Finding::good("login", format!("by the credentials of {}", login.source)));
        }
        if let Some(seconds) = self.session.clock_difference()
            && seconds.abs() > MAX_CLOCK_DIFFERENCE
        {
            findings.push(Finding::warning("clock", clock_message(seconds), CLOCK_HINT));
        }
        findings
    }

    /// The error for an answer that is not what the interface specifies.
    pub(super) fn invalid(&self) -> ProviderError {
        self.session.invalid("what was not asked for")
    }

    /// Closes the connections that are open.
    pub(super) fn close_connections(&mut self) {
        self.http.close_connections();
    }
}

/// What the threads of calls share.
struct Session {
    address: String,
    signer: RequestSigner,
    credentials: Credentials,
    /// How many seconds this machine's clock is ahead of AWS's.
    clock_difference: Mutex<Option<i64>>,
}

impl Session {
    /// Has an action done, once more with other credentials if these are refused and there are others.
    fn request(
        &self,
        transport: &Transport,
        action: Action,
        key_id: &str,
        body: &Zeroizing<Vec<u8>>,
    ) -> Result<Answer, ProviderError> {
        let mut login = self.credentials.current(transport)?;
        let mut answer = self.send(transport, action, body, &login)?;
        if answer.refuses_credentials()
            && let Some(other) = self.credentials.replace(transport, &login)?
        {
            login = other;
            answer = self.send(transport, action, body, &login)?;
        }
        match answer.refusal() {
            None => Ok(answer),
            Some((code, refusal)) => Err(self.refused(action, key_id, &login, code, refusal)),
        }
    }

    fn send(
        &self,
        transport: &Transport,
        action: Action,
        body: &Zeroizing<Vec<u8>>,
        login: &Login,
    ) -> Result<Answer, ProviderError> {
        let request = self.signed(action, body, login)?;
        let answer = Answer::new(transport.send(&request)?);
        *self.clock_difference.lock().unwrap_or_else(PoisonError::into_inner) =
            answer.clock_difference();
        Ok(answer)
    }

    fn signed(
        &self,
        action: Action,
        body: &Zeroizing<Vec<u8>>,
        login: &Login,
    ) -> Result<Request, ProviderError> {
        let (mut head, ()) = http::Request::post(format!("{}/", self.address))
            .header("content-type", "application/x-amz-json-1.1")
            .header("x-amz-target", format!("TrentService.{}", action.name()))
            // The hash of the body is part of what is signed.
            .header("x-amz-content-sha256", hex_sha256(body))
            .body(())
            .map_err(|_| configuration("could not form a request to AWS KMS"))?
            .into_parts();
        let context = Context::new();
        let signing = self.signer.sign_request(&context, &mut head, Some(&login.credential), None);
        pollster::block_on(signing).map_err(|_| {
            ProviderError::new(
                ProviderErrorKind::LoginFailed,
                format!("could not sign a request with the credentials of {}", login.source),
            )
            .with_hint("They have ended, or have characters that can't be in a header.")
        })?;
        Ok(http::Request::from_parts(head, body.clone()))
    }

    fn refused(
        &self,
        action: Action,
        key_id: &str,
        login: &Login,
        code: &'static str,
        refusal: Refusal,
    ) -> ProviderError {
        use ProviderErrorKind::{
            Denied, KeyMissing, LoginFailed, Throttled, Unreachable, WrappedKeyInvalid, WriteDenied,
        };

        let address = &self.address;
        let action_name = action.name();
        match refusal {
            Refusal::Denied => {
                let kind = if action == Action::GenerateDataKey { WriteDenied } else { Denied };
                ProviderError::new(
                    kind,
                    format!(
                        "AWS KMS at \"{address}\" does not allow kms:{action_name} with the \
                         credentials of {}",
                        login.source
                    ),
                )
                .with_hint(format!(
                    "Allow kms:{action_name} on key \"{key_id}\" in the key policy, or in an IAM \
                     policy of the identity. A condition on the encryption context must fit the \
                     database's keyspace."
                ))
            }
            Refusal::Disabled => disabled(key_id),
            Refusal::KeyMissing => ProviderError::new(
                KeyMissing,
                format!("there is no key \"{key_id}\" in AWS KMS at \"{address}\""),
            )
            .with_hint(
                "Correct the settings of the key and the region, or replicate the multi-Region key \
                 to this region. A key that was deleted is gone, with all that it wrapped.",
            ),
            Refusal::KeyUnfit => {
                configuration(format!("key \"{key_id}\" of AWS KMS does not wrap keys"))
                    .with_hint(KEY_HINT)
            }
            Refusal::Malformed => configuration(format!(
                "AWS KMS at \"{address}\" does not take \"{key_id}\" as a key ({code})"
            ))
            .with_hint("Correct the settings of the key and the region."),
            Refusal::WrappedKey => ProviderError::new(
                WrappedKeyInvalid,
                format!(
                    "AWS KMS refuses the wrapped key ({code}): it is not what key \"{key_id}\" \
                     wrapped for this version"
                ),
            )
            .with_hint(
                "The row of the version in the catalog was changed or belongs to another database, \
                 or the settings are those of another account.",
            ),
            Refusal::Credentials => {
                let error = ProviderError::new(
                    LoginFailed,
                    format!(
                        "AWS KMS at \"{address}\" refuses the credentials of {} ({code})",
                        login.source
                    ),
                );
                match self.clock_difference() {
                    Some(seconds) if seconds.abs() > MAX_CLOCK_DIFFERENCE => ProviderError {
                        message: format!("{}, and {}", error.message, clock_message(seconds)),
                        ..error.with_hint(CLOCK_HINT)
                    },
                    _ => error.with_hint(
                        "They have ended or were revoked, or the secret does not belong to the \
                         access key, or the region is another one than the server's.",
                    ),
                }
            }
            Refusal::Throttled => ProviderError::new(
                Throttled,
                format!("AWS KMS at \"{address}\" refuses requests because there are too many"),
            )
            .with_hint("Raise the quota of the account, or the time that keys are cached.")
            .transient(),
            Refusal::Unavailable => ProviderError::new(
                Unreachable,
                format!("AWS KMS at \"{address}\" can't serve now ({code})"),
            )
            .with_hint("Cached keys stay in use meanwhile. AWS Health tells of longer outages.")
            .transient(),
            Refusal::Unknown => self.invalid(code),
        }
    }

    fn invalid(&self, what: &str) -> ProviderError {
        ProviderError::new(
            ProviderErrorKind::AnswerInvalid,
            format!("AWS KMS at \"{}\" answered {what}", self.address),
        )
    }

    fn clock_difference(&self) -> Option<i64> {
        *self.clock_difference.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The error for a key that exists and may not be used at the moment.
pub(super) fn disabled(key_id: &str) -> ProviderError {
    ProviderError::new(
        ProviderErrorKind::Denied,
        format!("key \"{key_id}\" of AWS KMS is disabled, or about to be deleted"),
    )
    .with_hint(
        "Whoever administers the key can enable it (aws kms enable-key), after the deletion was \
         cancelled if there is one scheduled (aws kms cancel-key-deletion).",
    )
}

fn clock_message(seconds: i64) -> String {
    let (seconds, direction) =
        (seconds.unsigned_abs(), if seconds < 0 { "behind" } else { "ahead" });
    format!("this server's clock is {seconds} s {direction} of AWS's")
}

const CLOCK_HINT: &str =
    "Synchronize the server's clock: AWS refuses signatures that are five minutes off.";
