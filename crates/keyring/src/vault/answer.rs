//! What Vault answers.

use std::collections::BTreeMap;

use envelope::KeyVersion;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;
use zeroize::Zeroizing;

/// An answer to a request. The body may have keys and tokens in it: it is wiped, and `Debug` is not
/// implemented.
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: Zeroizing<Vec<u8>>,
}

/// A version of a secret.
pub(super) struct Secret {
    pub(super) state: SecretState,
    /// Its number; 0 if there is no such secret.
    pub(super) version: u32,
    /// The field `key`.
    pub(super) key: Result<Zeroizing<String>, NoKey>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SecretState {
    /// It can be read.
    Live,
    /// Its contents are deleted or destroyed.
    Deleted,
    /// There is no such version, or no such secret.
    Missing,
}

/// Why a secret has no key.
pub(super) enum NoKey {
    NoField,
    NotText,
}

impl NoKey {
    pub(super) fn describe(&self) -> &'static str {
        match self {
            Self::NoField => "has no field \"key\"",
            Self::NotText => "has a field \"key\" that is not a string",
        }
    }
}

/// The result of writing a secret.
pub(super) enum Written {
    Version(KeyVersion),
    /// The newest version was not the one that the request named.
    Conflict,
    Unknown,
}

/// A login.
pub(super) struct LoggedIn {
    pub(super) token: Zeroizing<String>,
    /// How long the token lives, in seconds; 0 for ever.
    pub(super) lease_seconds: u64,
    /// Whether that time can be renewed: not if it is a batch token.
    pub(super) is_renewable: bool,
}

/// What a token is.
pub(super) struct TokenState {
    /// How long it lives from now, in seconds; 0 for ever.
    pub(super) ttl_seconds: u64,
    /// How long it was made for, in seconds, whatever it was renewed for since; 0 for ever.
    pub(super) creation_ttl_seconds: u64,
    pub(super) policies: Vec<String>,
}

/// A key that the Transit engine has generated.
pub(crate) struct GeneratedKey {
    /// In base64.
    pub(crate) plaintext: Zeroizing<String>,
    pub(crate) ciphertext: String,
}

/// A key of the Transit engine.
#[derive(Deserialize)]
pub(crate) struct TransitKey {
    /// Its algorithm.
    #[serde(rename = "type")]
    pub(crate) kind: String,
    pub(crate) latest_version: u32,
    /// Whether each context has a key of its own that is derived from this one.
    #[serde(default, rename = "derived")]
    pub(crate) is_derived: bool,
    #[serde(default, rename = "exportable")]
    pub(crate) is_exportable: bool,
    #[serde(default)]
    pub(crate) allow_plaintext_backup: bool,
    #[serde(default, rename = "deletion_allowed")]
    pub(crate) may_be_deleted: bool,
    #[serde(default, rename = "soft_deleted")]
    pub(crate) is_soft_deleted: bool,
    #[serde(rename = "supports_encryption")]
    pub(crate) can_encrypt: bool,
}

/// Why the Transit engine did not do what it was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TransitRefusal {
    /// There is no such key.
    KeyMissing,
    /// The key can't encrypt.
    KindUnfit,
    /// The key was deleted, and can be restored.
    Deleted,
    /// The version of the key that encrypted this is older than those that may still decrypt.
    TooOld,
    /// The key has not got the version that encrypted this.
    TooNew,
    /// This was not encrypted by the key, or not with this context.
    NotAuthentic,
}

/// How many versions the engine keeps, and how long; and which there are, of a secret.
#[derive(Clone, Copy, Default)]
pub(super) struct Limits {
    /// 0 if that isn't set here.
    pub(super) max_versions: u32,
    pub(super) expires: bool,
    /// The oldest version, deleted ones included; 0 if there is none.
    pub(super) oldest: u32,
    pub(super) newest: u32,
    pub(super) versions: u32,
}

impl Answer {
    /// Whether the body says `text` as an error. Vault has no error codes.
    fn has_error(&self, text: &str) -> bool {
        #[derive(Deserialize)]
        struct Body {
            #[serde(default)]
            errors: Vec<String>,
        }
        serde_json::from_slice::<Body>(&self.body)
            .is_ok_and(|body| body.errors.iter().any(|e| e.to_ascii_lowercase().contains(text)))
    }

    /// Whether the server is sealed.
    pub(super) fn is_sealed(&self) -> bool {
        self.status == 503 && self.has_error("sealed")
    }

    /// Whether the engine was mounted or upgraded a moment ago.
    pub(super) fn is_setting_up(&self) -> bool {
        self.status == 400 && self.has_error("unavailable for a brief period")
    }

    /// Whether there is nothing that the request is about.
    pub(super) fn is_nothing_there(&self) -> bool {
        self.status == 404 || self.transit_refusal() == Some(TransitRefusal::KeyMissing)
    }

    /// Whether nothing is mounted where the request went.
    pub(crate) fn is_no_mount(&self) -> bool {
        self.status == 404 && self.has_error("no handler for route")
    }

    /// The answer to reading `<mount>/data/<path>`, if it is one.
    pub(super) fn secret(&self) -> Option<Secret> {
        #[derive(Deserialize)]
        struct Body<'a> {
            #[serde(borrow, default)]
            data: Option<Data<'a>>,
            #[serde(default)]
            errors: Option<Vec<String>>,
        }
        #[derive(Deserialize)]
        struct Data<'a> {
            #[serde(borrow)]
            data: Option<Fields<'a>>,
            metadata: Metadata,
        }
        #[derive(Deserialize)]
        struct Fields<'a> {
            #[serde(borrow, default)]
            key: Option<&'a RawValue>,
        }
        #[derive(Deserialize)]
        struct Metadata {
            version: u32,
        }
        let body: Body<'_> = serde_json::from_slice(&self.body).ok()?;
        let (state, version, fields) = match (self.status, body.data, body.errors) {
            (200, Some(Data { data: Some(fields), metadata }), _) => {
                (SecretState::Live, metadata.version, Some(fields))
            }
            (404, Some(Data { data: None, metadata }), _) => {
                (SecretState::Deleted, metadata.version, None)
            }
            (404, None, Some(_)) => (SecretState::Missing, 0, None),
            _ => return None,
        };
        let key = match fields.and_then(|f| f.key) {
            None => Err(NoKey::NoField),
            Some(raw) => {
                serde_json::from_str(raw.get()).map(Zeroizing::new).map_err(|_| NoKey::NotText)
            }
        };
        Some(Secret { state, version, key })
    }

    /// The answer to writing `<mount>/data/<path>`.
    pub(super) fn written(&self) -> Written {
        #[derive(Deserialize)]
        struct Data {
            version: u32,
        }
        if self.status == 400 && self.has_error("check-and-set parameter did not match") {
            return Written::Conflict;
        }
        match self.data().and_then(|Data { version }| KeyVersion::new(version)) {
            Some(version) => Written::Version(version),
            None => Written::Unknown,
        }
    }

    /// The answer to `sys/capabilities-self` for one path.
    pub(super) fn capabilities(&self) -> Option<Vec<String>> {
        #[derive(Deserialize)]
        struct Data {
            capabilities: Vec<String>,
        }
        self.data().map(|Data { capabilities }| capabilities)
    }

    /// The answer to `auth/token/lookup-self`, if it is one.
    pub(super) fn token_state(&self) -> Option<TokenState> {
        #[derive(Deserialize)]
        struct Data {
            ttl: u64,
            #[serde(default)]
            creation_ttl: u64,
            policies: Vec<String>,
        }
        let Data { ttl, creation_ttl, policies } = self.data()?;
        Some(TokenState { ttl_seconds: ttl, creation_ttl_seconds: creation_ttl, policies })
    }

    /// The answer to `<mount>/datakey/plaintext/<key>`, if it is one.
    pub(crate) fn generated_key(&self) -> Option<GeneratedKey> {
        #[derive(Deserialize)]
        struct Data<'a> {
            plaintext: &'a str,
            ciphertext: String,
        }
        let Data { plaintext, ciphertext } = self.data()?;
        let plaintext = Zeroizing::new(plaintext.to_owned());
        Some(GeneratedKey { plaintext, ciphertext })
    }

    /// The answer to `<mount>/decrypt/<key>`, in base64, if it is one.
    pub(crate) fn plaintext(&self) -> Option<Zeroizing<String>> {
        #[derive(Deserialize)]
        struct Data<'a> {
            plaintext: &'a str,
        }
        self.data().map(|Data { plaintext }| Zeroizing::new(plaintext.to_owned()))
    }

    /// The answer to `<mount>/encrypt/<key>` or `<mount>/rewrap/<key>`, if it is one.
    pub(crate) fn ciphertext(&self) -> Option<String> {
        #[derive(Deserialize)]
        struct Data {
            ciphertext: String,
        }
        self.data().map(|Data { ciphertext }| ciphertext)
    }

    /// The answer to reading `<mount>/keys/<key>`, if it is one.
    pub(crate) fn transit_key(&self) -> Option<TransitKey> {
        self.data()
    }

    /// Why the Transit engine refused, if it did and said so in a way that is known.
    pub(crate) fn transit_refusal(&self) -> Option<TransitRefusal> {
        // From `keysutil/policy.go` of both Vault and OpenBao, and from the Go library's ciphers.
        const TEXTS: [(u16, &str, TransitRefusal); 10] = [
            (400, "encryption key not found", TransitRefusal::KeyMissing),
            (400, "encryption not supported for key type", TransitRefusal::KindUnfit),
            (400, "decryption not supported for key type", TransitRefusal::KindUnfit),
            (400, "soft-deleted key", TransitRefusal::Deleted),
            (400, "disallowed by policy (too old)", TransitRefusal::TooOld),
            (400, "version is too new", TransitRefusal::TooNew),
            (400, "message authentication failed", TransitRefusal::NotAuthentic),
            (400, "invalid ciphertext", TransitRefusal::NotAuthentic),
            (400, "missing ciphertext", TransitRefusal::NotAuthentic),
            (500, "failed to rsa decrypt", TransitRefusal::NotAuthentic),
        ];
        let (_, _, refusal) = TEXTS
            .iter()
            .find(|(status, text, _)| self.status == *status && self.has_error(text))?;
        Some(*refusal)
    }

    /// The field `data` of an answer with status 200, if it has this form.
    fn data<'a, T: Deserialize<'a>>(&'a self) -> Option<T> {
        #[derive(Deserialize)]
        struct Body<T> {
            data: T,
        }
        let body = serde_json::from_slice::<Body<T>>(&self.body).ok()?;
        Some(body.data).filter(|_| self.status == 200)
    }

    /// The answer to a login, if it succeeded.
    pub(super) fn logged_in(&self) -> Option<LoggedIn> {
        #[derive(Deserialize)]
        struct Body<'a> {
            #[serde(borrow)]
            auth: Auth<'a>,
        }
        #[derive(Deserialize)]
        struct Auth<'a> {
            client_token: &'a str,
            lease_duration: u64,
            #[serde(default)]
            renewable: bool,
        }
        let body: Body<'_> =
            serde_json::from_slice(&self.body).ok().filter(|_| self.status == 200)?;
        let Auth { client_token, lease_duration, renewable } = body.auth;
        let usable = !client_token.is_empty() && client_token.bytes().all(|b| b.is_ascii_graphic());
        usable.then(|| LoggedIn {
            token: Zeroizing::new(client_token.to_owned()),
            lease_seconds: lease_duration,
            is_renewable: renewable,
        })
    }

    /// The answer to reading `<mount>/metadata/<path>` or `<mount>/config`, if it is one.
    pub(super) fn limits(&self) -> Option<Limits> {
        #[derive(Deserialize)]
        struct Data {
            max_versions: u32,
            #[serde(default)]
            delete_version_after: String,
            #[serde(default)]
            current_version: u32,
            #[serde(default)]
            versions: BTreeMap<u32, IgnoredAny>,
        }
        let Data { max_versions, delete_version_after, current_version, versions } = self.data()?;
        Some(Limits {
            max_versions,
            expires: !matches!(delete_version_after.as_str(), "" | "0s" | "0"),
            oldest: versions.keys().next().copied().unwrap_or_default(),
            newest: current_version,
            versions: u32::try_from(versions.len()).unwrap_or(u32::MAX),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: u16, body: &str) -> Answer {
        Answer { status, body: Zeroizing::new(body.as_bytes().to_vec()) }
    }

    fn secret(status: u16, body: &str) -> Option<(SecretState, u32, Option<String>)> {
        let Secret { state, version, key } = answer(status, body).secret()?;
        Some((state, version, key.ok().map(|key| key.to_string())))
    }

    #[test]
    fn secrets_are_told_apart() {
        let live =
            r#"{"data":{"data":{"key":"AA\n","x":{}},"metadata":{"version":3,"destroyed":false}}}"#;
        assert_eq!(secret(200, live), Some((SecretState::Live, 3, Some("AA\n".to_owned()))));
        let deleted = r#"{"data":{"data":null,"metadata":{"version":2}}}"#;
        assert_eq!(secret(404, deleted), Some((SecretState::Deleted, 2, None)));
        assert_eq!(secret(404, r#"{"errors":[]}"#), Some((SecretState::Missing, 0, None)));
        for (status, body) in [
            (200, ""),
            (200, "[]"),
            (200, r#"{"data":null}"#),
            (200, deleted),
            (200, r#"{"data":{"key":"AAAA"}}"#),
            (200, r#"{"data":{"data":{},"metadata":{}}}"#),
            (200, r#"{"data":{"data":{},"metadata":{"version":-1}}}"#),
            (404, "not found"),
            (404, "{}"),
            (404, "[]"),
            (204, live),
        ] {
            assert_eq!(secret(status, body), None, "{status} {body}");
        }
    }

    #[test]
    fn a_key_must_be_text() {
        for value in ["1", "null", "{}", "[\"AA\"]"] {
            let body =
                format!(r#"{{"data":{{"data":{{"key":{value}}},"metadata":{{"version":1}}}}}}"#);
            let key = answer(200, &body).secret().unwrap().key;
            assert!(key.is_err(), "{value}");
        }
    }

    #[test]
    fn a_token_must_fit_into_a_header() {
        let login = |token: &str| {
            let body = format!(r#"{{"auth":{{"client_token":"{token}","lease_duration":60}}}}"#);
            answer(200, &body).logged_in().map(|login| login.token.to_string())
        };
        assert_eq!(login("s.abc").as_deref(), Some("s.abc"));
        assert_eq!(login(""), None);
        assert_eq!(login("a b"), None);
        assert_eq!(login(r"a\nb"), None);
    }

    #[test]
    fn errors_are_read_from_the_body() {
        assert!(answer(503, r#"{"errors":["Vault is sealed"]}"#).is_sealed());
        assert!(!answer(503, r#"{"errors":["busy"]}"#).is_sealed());
        assert!(!answer(503, "sealed").is_sealed());
        assert!(!answer(200, r#"{"errors":["Vault is sealed"]}"#).is_sealed());
    }
}
