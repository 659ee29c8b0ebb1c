//! What AWS KMS answers.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use envelope::DataKey;
use reqsign_core::time::Timestamp;
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;
use ureq::http::HeaderMap;
use ureq::http::header::DATE;
use zeroize::Zeroizing;

use super::{MAX_WRAPPED_LEN, reference_of};
use crate::http::Response;
use crate::provider::{self, WrappedKey};

/// An answer to an action. The body may have a key in it: it is wiped, and `Debug` is not
/// implemented.
pub(super) struct Answer {
    status: u16,
    headers: HeaderMap,
    body: Zeroizing<Vec<u8>>,
}

/// What kind of refusal an error is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// The credentials are good, and no policy allows the action.
    Denied,
    /// The key is in a state that allows no use of it.
    Disabled,
    /// There is no such key.
    KeyMissing,
    /// The key does something else than wrapping.
    KeyUnfit,
    /// The parameters are malformed.
    Malformed,
    /// What is to be unwrapped is not what the key wrapped with this encryption context.
    WrappedKey,
    /// The credentials or the signature are not accepted.
    Credentials,
    /// There are too many requests.
    Throttled,
    /// A later request may succeed.
    Unavailable,
    /// An error that none of our requests should have.
    Unknown,
}

/// The errors of our actions, and those of all actions ("Common Errors"), in the "AWS Key Management
/// Service API Reference".
const ERRORS: [(&str, Refusal); 43] = [
    ("AccessDeniedException", Refusal::Denied),
    ("NotAuthorized", Refusal::Denied),
    ("OptInRequired", Refusal::Denied),
    ("DisabledException", Refusal::Disabled),
    ("KMSInvalidStateException", Refusal::Disabled),
    ("NotFoundException", Refusal::KeyMissing),
    ("InvalidKeyUsageException", Refusal::KeyUnfit),
    ("UnsupportedOperationException", Refusal::KeyUnfit),
    ("InvalidAliasNameException", Refusal::Malformed),
    ("InvalidArnException", Refusal::Malformed),
    ("ValidationError", Refusal::Malformed),
    ("ValidationException", Refusal::Malformed),
    ("IncorrectKeyException", Refusal::WrappedKey),
    ("InvalidCiphertextException", Refusal::WrappedKey),
    ("ExpiredToken", Refusal::Credentials),
    ("ExpiredTokenException", Refusal::Credentials),
    ("IncompleteSignature", Refusal::Credentials),
    ("IncompleteSignatureException", Refusal::Credentials),
    ("InvalidClientTokenId", Refusal::Credentials),
    ("InvalidSignatureException", Refusal::Credentials),
    ("InvalidToken", Refusal::Credentials),
    ("MissingAuthenticationToken", Refusal::Credentials),
    ("MissingAuthenticationTokenException", Refusal::Credentials),
    ("RequestExpired", Refusal::Credentials),
    ("RequestTimeTooSkewed", Refusal::Credentials),
    ("SignatureDoesNotMatch", Refusal::Credentials),
    ("TokenRefreshRequired", Refusal::Credentials),
    ("UnrecognizedClientException", Refusal::Credentials),
    ("LimitExceededException", Refusal::Throttled),
    ("RequestLimitExceeded", Refusal::Throttled),
    ("Throttling", Refusal::Throttled),
    ("ThrottlingException", Refusal::Throttled),
    ("TooManyRequestsException", Refusal::Throttled),
    ("DependencyTimeoutException", Refusal::Unavailable),
    ("InternalError", Refusal::Unavailable),
    ("InternalFailure", Refusal::Unavailable),
    ("KMSInternalException", Refusal::Unavailable),
    ("KeyUnavailableException", Refusal::Unavailable),
    ("RequestAbortedException", Refusal::Unavailable),
    ("RequestTimeout", Refusal::Unavailable),
    ("RequestTimeoutException", Refusal::Unavailable),
    ("ServiceUnavailable", Refusal::Unavailable),
    ("ServiceUnavailableException", Refusal::Unavailable),
];

/// What `DescribeKey` tells about a key.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Metadata {
    pub(super) arn: String,
    pub(super) state: KeyState,
    /// Whether it is for encrypting and decrypting.
    pub(super) encrypts: bool,
    pub(super) is_symmetric: bool,
    pub(super) is_multi_region: bool,
    /// Whether AWS made it for a service of its own.
    pub(super) is_of_aws: bool,
}

/// The states of a key ("Key states of AWS KMS keys"), as far as they differ for us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum KeyState {
    Enabled,
    /// Soon to be enabled.
    Changing,
    Disabled,
}

impl Answer {
    pub(super) fn new(response: Response) -> Self {
        let Response { status, headers, body } = response;
        Self { status, headers, body }
    }

    /// Why the action was not done, with the name of the error; `None` if it was.
    pub(super) fn refusal(&self) -> Option<(&'static str, Refusal)> {
        let known =
            self.error_code().and_then(|code| ERRORS.into_iter().find(|(name, _)| *name == code));
        match (self.status, known) {
            (200, _) => None,
            (_, Some(refusal)) => Some(refusal),
            (429, None) => Some(("status 429", Refusal::Throttled)),
            (500.., None) => Some(("an internal error", Refusal::Unavailable)),
            _ => Some(("with an error that none of our requests should have", Refusal::Unknown)),
        }
    }

    pub(super) fn refuses_credentials(&self) -> bool {
        matches!(self.refusal(), Some((_, Refusal::Credentials)))
    }

    /// The name of the error: in the body as `com.amazonaws.kms#Name` or `Name`, or in the header as
    /// `Name` or `Name:address`.
    fn error_code(&self) -> Option<String> {
        #[derive(Deserialize)]
        struct Body {
            #[serde(rename = "__type")]
            code: String,
        }
        let in_header = self.headers.get("x-amzn-errortype").and_then(|value| value.to_str().ok());
        let code = match serde_json::from_slice::<Body>(&self.body) {
            Ok(body) => body.code,
            Err(_) => in_header?.to_owned(),
        };
        let code = code.split(':').next()?;
        Some(code.rsplit('#').next()?.to_owned())
    }

    /// How many seconds this machine's clock is ahead of the server's, if that tells its time.
    pub(super) fn clock_difference(&self) -> Option<i64> {
        let theirs = Timestamp::parse_rfc2822(self.headers.get(DATE)?.to_str().ok()?).ok()?;
        Timestamp::now().as_second().checked_sub(theirs.as_second())
    }

    /// The end of the ARN of the key that was used.
    pub(super) fn reference(&self) -> Option<String> {
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Body {
            key_id: String,
        }
        let body: Body = serde_json::from_slice(&self.body).ok()?;
        reference_of(&body.key_id).map(str::to_owned)
    }

    /// The key that `GenerateDataKey` or `Encrypt` wrapped.
    pub(super) fn wrapped_key(&self) -> Option<WrappedKey> {
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Body {
            ciphertext_blob: String,
        }
        let body: Body = serde_json::from_slice(&self.body).ok()?;
        let wrapped = STANDARD.decode(body.ciphertext_blob).ok()?;
        matches!(wrapped.len(), 1..=MAX_WRAPPED_LEN)
            .then_some(WrappedKey { reference: self.reference()?, wrapped })
    }

    /// The key that `GenerateDataKey` made or `Decrypt` unwrapped.
    pub(super) fn plaintext(&self) -> Option<DataKey> {
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Body<'a> {
            #[serde(borrow)]
            plaintext: &'a RawValue,
        }
        let body: Body<'_> = serde_json::from_slice(&self.body).ok()?;
        let text = serde_json::from_str(body.plaintext.get()).map(Zeroizing::new);
        provider::key_from_base64(text.as_ref().map(|text: &Zeroizing<String>| text).ok()?).ok()
    }

    /// The answer to `DescribeKey`.
    pub(super) fn metadata(&self) -> Option<Metadata> {
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Body {
            key_metadata: Fields,
        }
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Fields {
            arn: String,
            key_state: KeyState,
            key_usage: String,
            #[serde(default)]
            key_spec: Option<String>,
            #[serde(default)]
            multi_region: Option<bool>,
            #[serde(default)]
            key_manager: Option<String>,
        }
        let Body { key_metadata: fields } = serde_json::from_slice(&self.body).ok()?;
        reference_of(&fields.arn)?;
        Some(Metadata {
            arn: fields.arn,
            state: fields.key_state,
            encrypts: fields.key_usage == "ENCRYPT_DECRYPT",
            is_symmetric: fields.key_spec.is_none_or(|spec| spec == "SYMMETRIC_DEFAULT"),
            is_multi_region: fields.multi_region == Some(true),
            is_of_aws: fields.key_manager.as_deref() == Some("AWS"),
        })
    }
}

impl<'de> Deserialize<'de> for KeyState {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(match String::deserialize(deserializer)?.as_str() {
            "Enabled" => Self::Enabled,
            "Creating" | "Updating" => Self::Changing,
            // Disabled, PendingDeletion, PendingReplicaDeletion, PendingImport, Unavailable.
            _ => Self::Disabled,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: u16, body: &str) -> Answer {
        let body = Zeroizing::new(body.as_bytes().to_vec());
        Answer { status, headers: HeaderMap::new(), body }
    }

    #[test]
    fn errors_are_told_apart_by_their_names() {
        let refusal = |status, body: &str| answer(status, body).refusal().map(|(_, kind)| kind);
        assert_eq!(refusal(200, "{}"), None);
        for (status, body, expected) in [
            (400, r#"{"__type":"NotFoundException","message":"x"}"#, Refusal::KeyMissing),
            (400, r#"{"__type":"com.amazonaws.kms#DisabledException"}"#, Refusal::Disabled),
            (400, r#"{"__type":"ThrottlingException"}"#, Refusal::Throttled),
            (500, r#"{"__type":"KeyUnavailableException"}"#, Refusal::Unavailable),
            (403, r#"{"__type":"ExpiredTokenException"}"#, Refusal::Credentials),
            (400, r#"{"__type":"NoSuchException"}"#, Refusal::Unknown),
            (400, "<html>", Refusal::Unknown),
            (403, "", Refusal::Unknown),
            (204, "", Refusal::Unknown),
            (302, "", Refusal::Unknown),
            (429, "", Refusal::Throttled),
            (503, "<html>", Refusal::Unavailable),
        ] {
            assert_eq!(refusal(status, body), Some(expected), "{status} {body}");
        }
        let mut in_header = answer(400, "");
        let code = "DisabledException:http://internal.amazon.com/";
        in_header.headers.insert("x-amzn-errortype", code.parse().unwrap());
        assert_eq!(in_header.refusal(), Some(("DisabledException", Refusal::Disabled)));
        assert!(ERRORS.iter().all(|(name, _)| name.bytes().all(|b| b.is_ascii_alphanumeric())));
    }

    const ARN: &str = "arn:aws:kms:eu-central-1:123456789012:key/1234-ab";
    const KEY: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";

    #[test]
    fn keys_are_taken_from_answers() {
        let body = format!(r#"{{"KeyId":"{ARN}","CiphertextBlob":"AQID","Plaintext":"{KEY}"}}"#);
        let made = answer(200, &body);
        let reference = "123456789012:key/1234-ab".to_owned();
        assert_eq!(made.wrapped_key(), Some(WrappedKey { reference, wrapped: vec![1, 2, 3] }));
        assert_eq!(made.plaintext().unwrap().expose()[31], 31);
        assert!(answer(200, &body.replace('/', r"\/")).plaintext().is_some());

        for body in [
            "",
            "null",
            "[]",
            "{}",
            r#"{"KeyId":null,"CiphertextBlob":null,"Plaintext":null}"#,
            r#"{"KeyId":"alias/a","CiphertextBlob":"","Plaintext":""}"#,
            r#"{"KeyId":"1234","CiphertextBlob":"AQID","Plaintext":"AQID"}"#,
            &format!(r#"{{"KeyId":"{ARN}","CiphertextBlob":"!","Plaintext":"!"}}"#),
            &format!(r#"{{"KeyId":"{ARN}","CiphertextBlob":"{}"}}"#, "AAAA".repeat(2049)),
        ] {
            assert!(answer(200, body).wrapped_key().is_none(), "{body}");
            assert!(answer(200, body).plaintext().is_none(), "{body}");
        }
    }

    #[test]
    fn a_key_is_described() {
        let describe = |fields: &str| {
            answer(200, &format!(r#"{{"KeyMetadata":{{"Arn":"{ARN}",{fields}}}}}"#)).metadata()
        };
        let metadata = describe(
            r#""KeyState":"Enabled","KeyUsage":"ENCRYPT_DECRYPT","KeySpec":"SYMMETRIC_DEFAULT",
               "MultiRegion":true,"KeyManager":"CUSTOMER""#,
        )
        .unwrap();
        assert!(metadata.encrypts && metadata.is_symmetric && metadata.is_multi_region);
        assert_eq!((metadata.state, metadata.is_of_aws), (KeyState::Enabled, false));
        let signs = describe(
            r#""KeyState":"PendingDeletion","KeyUsage":"SIGN_VERIFY","KeySpec":"RSA_2048",
               "KeyManager":"AWS""#,
        )
        .unwrap();
        assert!(!signs.encrypts && !signs.is_symmetric && !signs.is_multi_region);
        assert_eq!((signs.state, signs.is_of_aws), (KeyState::Disabled, true));
        assert_eq!(describe(r#""KeyState":"Enabled""#), None);
    }

    #[test]
    fn the_server_tells_its_time() {
        let mut told = answer(200, "");
        assert_eq!(told.clock_difference(), None);
        let then = Timestamp::from_second(Timestamp::now().as_second() - 100).unwrap();
        told.headers.insert(DATE, then.format_http_date().parse().unwrap());
        assert!(matches!(told.clock_difference(), Some(100..=105)));
        told.headers.insert(DATE, "yesterday".parse().unwrap());
        assert_eq!(told.clock_difference(), None);
    }
}
