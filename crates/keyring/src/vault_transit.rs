//! Keys wrapped by the Transit engine of HashiCorp Vault and OpenBao.
//!
//! It is an envelope provider. The key encryption key is a key of the engine and never leaves it. A
//! version's key is made by the engine (`datakey/plaintext`), which gives it in plaintext and as the
//! ciphertext `vault:v<n>:<base64>` for the catalog, and is had again by `decrypt`. A reference is the
//! name of the Transit key. Old ciphertexts are brought to the key's newest version by `rewrap`, which
//! shows the plaintext to nobody.
//!
//! # What a ciphertext is bound to
//!
//! Each request sends [`VersionId::additional_data`] as the *context*. If the Transit key is derived
//! (`derived=true`), the ciphertext is encrypted under a key of its own for that context, so that it
//! opens as the version that it was made for and as no other. Other Transit keys ignore the context;
//! that a ciphertext was exchanged for another is then found by the version's check value alone,
//! after Vault has opened it.
//!
//! The engine's other way to bind, `associated_data`, can't be used: `rewrap` doesn't take it, neither
//! Vault's nor OpenBao's (tried on 2.7), and a ciphertext that has it can't be rewrapped; Vault's
//! `datakey` ignores it.
//!
//! # Rights
//!
//! | path | capability | for |
//! | --- | --- | --- |
//! | `<mount>/decrypt/<key>` | `update` | reading: all that a standby needs |
//! | `<mount>/datakey/plaintext/<key>` | `update` | new versions |
//! | `<mount>/rewrap/<key>` | `update` | the key's newest version for what is wrapped already |
//! | `<mount>/encrypt/<key>` | `update` | the same from another Transit key, which needs `decrypt` |
//! | `<mount>/keys/<key>` | `read` | what a check tells of the key |
//!
//! Requests and answers are those of "Transit secrets engine (API)" in Vault's documentation.

use std::time::Instant;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use envelope::{DataKey, KeyName};
use zeroize::Zeroizing;

use crate::address;
use crate::call::RequestLimits;
use crate::options::{self, configuration};
use crate::provider::{
    self, Certificates, Finding, FoundVersion, Interrupt, Login, MadeVersion, Provider,
    ProviderError, ProviderErrorKind, WrappedKey,
};
use crate::vault::VaultOptions;
use crate::vault::answer::{Answer, TransitKey, TransitRefusal};
use crate::vault::client::{Client, Method, Refusal, json_object};
use crate::vault::settings::{self, Vault};
use crate::version::VersionId;

/// A provider that has keys wrapped by Vault's Transit engine.
pub struct VaultTransitProvider {
    client: Client,
    mount: String,
    /// The Transit key for what is wrapped from now on.
    key: String,
}

impl VaultTransitProvider {
    /// A provider with these settings. Nothing is sent yet, and no file is looked at.
    ///
    /// # Errors
    ///
    /// [`ProviderErrorKind::Configuration`], with the setting that is wrong and what it must be.
    pub fn new(
        options: &VaultOptions,
        limits: RequestLimits,
        interrupt: Box<dyn Interrupt>,
    ) -> Result<Self, ProviderError> {
        if options.path_prefix.is_some() {
            return Err(configuration("setting \"path_prefix\" is for provider \"vault\" alone"));
        }
        let key = options::required(options.key.clone(), "key")?;
        if !is_key_name(&key) {
            return Err(configuration("setting \"key\" is not the name of a Transit key")
                .with_hint(
                    "Such a name has characters of A-Z, a-z, 0-9, \"_\", \".\" and \"-\" only.",
                ));
        }
        let mount = settings::mount(options, VaultOptions::DEFAULT_TRANSIT_MOUNT)?;
        let client = Client::new(Vault::parse(options, limits)?, interrupt);
        Ok(Self { client, mount, key })
    }

    /// Has the engine do something with one of its keys.
    fn ask(
        &mut self,
        operation: &str,
        key: &str,
        body: Zeroizing<Vec<u8>>,
        denied: ProviderErrorKind,
        deadline: Instant,
    ) -> Result<Answer, ProviderError> {
        let path = format!("{}/{operation}/{key}", self.mount);
        let answer = match self.client.request(Method::Post, &path, Some(body), deadline) {
            Ok(answer) => answer,
            Err(Refusal::Failed(error)) => return Err(error),
            Err(Refusal::Denied(message)) => {
                return Err(ProviderError::new(denied, message).with_hint(format!(
                    "The policy of the login needs: path \"{path}\" {{ capabilities = \
                     [\"update\"] }}."
                )));
            }
        };
        match answer.transit_refusal() {
            Some(refusal) => Err(self.refused(key, refusal)),
            None if answer.status == 200 => Ok(answer),
            None if answer.is_no_mount() => Err(self.no_mount()),
            None => Err(self.client.unexpected(&answer)),
        }
    }

    /// A new key, in plaintext and wrapped.
    fn generate(
        &mut self,
        id: &VersionId<'_>,
        deadline: Instant,
    ) -> Result<(DataKey, String), ProviderError> {
        let body = format!(r#"{{"bits":256,"context":"{}"}}"#, context(id));
        let body = Zeroizing::new(body.into_bytes());
        let key = self.key.clone();
        let denied = ProviderErrorKind::WriteDenied;
        let answer = self.ask("datakey/plaintext", &key, body, denied, deadline)?;
        let generated =
            answer.generated_key().ok_or_else(|| self.client.invalid("what is not a data key"))?;
        let plaintext = self.parse_key(&generated.plaintext)?;
        self.check_ciphertext(&generated.ciphertext)?;
        Ok((plaintext, generated.ciphertext))
    }

    fn decrypt(
        &mut self,
        id: &VersionId<'_>,
        key: &str,
        ciphertext: &str,
        deadline: Instant,
    ) -> Result<DataKey, ProviderError> {
        let body = json_object(&[("ciphertext", ciphertext), ("context", &context(id))]);
        let answer = self.ask("decrypt", key, body, ProviderErrorKind::Denied, deadline)?;
        let plaintext =
            answer.plaintext().ok_or_else(|| self.client.invalid("what is not a plaintext"))?;
        self.parse_key(&plaintext)
    }

    /// Wraps under the Transit key of the settings what another one wrapped.
    fn take_over(
        &mut self,
        id: &VersionId<'_>,
        from: &str,
        ciphertext: &str,
        deadline: Instant,
    ) -> Result<String, ProviderError> {
        let plaintext = self.decrypt(id, from, ciphertext, deadline)?;
        // `encrypt` makes a key that doesn't exist, if the policy lets it; this doesn't.
        self.generate(id, deadline)?;
        let mut text = Zeroizing::new([0; 44]);
        STANDARD
            .encode_slice(plaintext.expose(), &mut *text)
            .expect("32 bytes are 44 characters of base64");
        let text = str::from_utf8(&*text).expect("base64 is ASCII");
        let body = json_object(&[("plaintext", text), ("context", &context(id))]);
        let key = self.key.clone();
        let answer = self.ask("encrypt", &key, body, ProviderErrorKind::WriteDenied, deadline)?;
        self.ciphertext(&answer)
    }

    /// Has the engine re-encrypt what it encrypted with an older version of its key.
    fn renew_wrapping(
        &mut self,
        id: &VersionId<'_>,
        ciphertext: &str,
        deadline: Instant,
    ) -> Result<String, ProviderError> {
        let body = json_object(&[("ciphertext", ciphertext), ("context", &context(id))]);
        let key = self.key.clone();
        let answer = self.ask("rewrap", &key, body, ProviderErrorKind::WriteDenied, deadline)?;
        self.ciphertext(&answer)
    }

    fn ciphertext(&self, answer: &Answer) -> Result<String, ProviderError> {
        let ciphertext =
            answer.ciphertext().ok_or_else(|| self.client.invalid("what is not a ciphertext"))?;
        self.check_ciphertext(&ciphertext)?;
        Ok(ciphertext)
    }

    fn check_ciphertext(&self, ciphertext: &str) -> Result<(), ProviderError> {
        match is_ciphertext(ciphertext) {
            true => Ok(()),
            false => Err(self.client.invalid("what is not a ciphertext")),
        }
    }

    fn parse_key(&self, base64: &str) -> Result<DataKey, ProviderError> {
        provider::key_from_base64(base64)
            .map_err(|_| self.client.invalid("a plaintext that is not a key of 256 bits"))
    }

    /// What the engine tells of its key; `None` if the policy doesn't let us see it.
    fn look_at_key(&mut self, deadline: Instant) -> Result<Option<TransitKey>, ProviderError> {
        let path = format!("{}/keys/{}", self.mount, self.key);
        let answer = match self.client.request(Method::Get, &path, None, deadline) {
            Ok(answer) => answer,
            Err(Refusal::Denied(_)) => return Ok(None),
            Err(Refusal::Failed(error)) => return Err(error),
        };
        match answer.status {
            200 => match answer.transit_key() {
                Some(key) => Ok(Some(key)),
                None => Err(self.client.invalid("what is not a Transit key")),
            },
            _ if answer.is_no_mount() => Err(self.no_mount()),
            404 => Err(self.refused(&self.key, TransitRefusal::KeyMissing)),
            _ => Err(self.client.unexpected(&answer)),
        }
    }

    fn refused(&self, key: &str, refusal: TransitRefusal) -> ProviderError {
        let place = format!("\"{}/keys/{key}\"", self.mount);
        let error = |kind, message: String| ProviderError::new(kind, message);
        match refusal {
            TransitRefusal::KeyMissing => error(
                ProviderErrorKind::KeyMissing,
                format!("there is no Transit key {place} in Vault"),
            )
            .with_hint(format!(
                "Correct the settings of the key, the mount and the namespace. If there has never \
                 been one: vault write -f {}/keys/{key} derived=true",
                self.mount
            )),
            TransitRefusal::KindUnfit => error(
                ProviderErrorKind::Configuration,
                format!("the Transit key {place} is not of a type that encrypts"),
            )
            .with_hint("Use a key of the type aes256-gcm96."),
            TransitRefusal::Deleted => {
                error(ProviderErrorKind::Denied, format!("the Transit key {place} is deleted"))
                    .with_hint(
                        "A Vault administrator can bring it back as long as it is in this state.",
                    )
            }
            TransitRefusal::TooOld => error(
                ProviderErrorKind::Denied,
                format!(
                    "the version of the Transit key {place} that wrapped this may no longer decrypt"
                ),
            )
            .with_hint(format!(
                "A Vault administrator must lower min_decryption_version (vault write \
                 {}/keys/{key}/config min_decryption_version=1) until enc_rewrap_key has wrapped \
                 the keys again.",
                self.mount
            )),
            TransitRefusal::TooNew => error(
                ProviderErrorKind::WrappedKeyInvalid,
                format!("the Transit key {place} has not got the version that wrapped this"),
            )
            .with_hint(
                "This is not the Vault that wrapped it, or one that was restored from an older \
                 backup.",
            ),
            TransitRefusal::NotAuthentic => error(
                ProviderErrorKind::WrappedKeyInvalid,
                format!("the Transit key {place} did not wrap this for this version of the key"),
            )
            .with_hint(
                "The row in the catalog was changed, or the Transit key was made anew under its \
                 old name, or this is not the Vault that wrapped the key.",
            ),
        }
    }

    fn no_mount(&self) -> ProviderError {
        configuration(format!("Vault has no secrets engine mounted at \"{}\"", self.mount))
            .with_hint("Correct the setting of the mount, or of the namespace that it is in.")
    }
}

impl Provider for VaultTransitProvider {
    fn discover(
        &mut self,
        _name: &KeyName,
        _known: &[&str],
    ) -> Result<Vec<FoundVersion>, ProviderError> {
        Ok(Vec::new())
    }

    fn make(&mut self, id: &VersionId<'_>) -> Result<MadeVersion, ProviderError> {
        let deadline = self.client.deadline();
        let (key, ciphertext) = self.generate(id, deadline)?;
        Ok(MadeVersion {
            reference: self.key.clone(),
            wrapped: Some(ciphertext.into_bytes()),
            key,
            number: None,
        })
    }

    fn open(
        &mut self,
        id: &VersionId<'_>,
        reference: &str,
        wrapped: Option<&[u8]>,
    ) -> Result<DataKey, ProviderError> {
        let deadline = self.client.deadline();
        let key = parse_reference(reference)?;
        self.decrypt(id, key, parse_wrapped(wrapped)?, deadline)
    }

    fn rewrap(
        &mut self,
        id: &VersionId<'_>,
        reference: &str,
        wrapped: Option<&[u8]>,
    ) -> Result<Option<WrappedKey>, ProviderError> {
        let deadline = self.client.deadline();
        let key = parse_reference(reference)?;
        let ciphertext = parse_wrapped(wrapped)?;
        let ciphertext = match key == self.key {
            true => self.renew_wrapping(id, ciphertext, deadline)?,
            false => self.take_over(id, key, ciphertext, deadline)?,
        };
        Ok(Some(WrappedKey { reference: self.key.clone(), wrapped: ciphertext.into_bytes() }))
    }

    fn check(&mut self, probe: &VersionId<'_>) -> Result<Vec<Finding>, ProviderError> {
        let deadline = self.client.deadline();
        let mut findings = vec![self.client.check_login(deadline)?];
        let key = self.look_at_key(deadline)?;
        match &key {
            None => findings.push(Finding::good(
                "key encryption key",
                format!(
                    "the policy does not let \"{}/keys/{}\" be looked at",
                    self.mount, self.key
                ),
            )),
            Some(key) if key.is_soft_deleted => {
                return Err(self.refused(&self.key, TransitRefusal::Deleted));
            }
            Some(key) if !key.can_encrypt => {
                return Err(self.refused(&self.key, TransitRefusal::KindUnfit));
            }
            Some(key) => findings.extend(self.findings_about(key)),
        }
        let is_bound = key.is_some_and(|key| key.is_derived);
        match provider::check_round_trip(self, probe, is_bound) {
            Ok(finding) => {
                findings.push(finding);
                findings.push(self.check_rewrapping(probe)?);
            }
            Err(error) if error.kind == ProviderErrorKind::WriteDenied => {
                findings.push(self.check_reading_alone(error, deadline)?);
            }
            Err(error) => return Err(error),
        }
        Ok(findings)
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

    fn look_up_login(&mut self, waits: bool) {
        self.client.look_up_login(waits);
    }
}

impl VaultTransitProvider {
    fn findings_about(&self, key: &TransitKey) -> Vec<Finding> {
        const KEY: &str = "key encryption key";
        let Self { mount, key: name, .. } = self;
        let TransitKey { kind, latest_version, .. } = key;
        let derivation = if key.is_derived { "derived" } else { "not derived" };
        let mut findings = vec![Finding::good(
            KEY,
            format!(
                "\"{mount}/keys/{name}\" is a key of type {kind}, {derivation}, at version {latest_version}"
            ),
        )];
        let mut warn = |applies: bool, detail: &str, hint: &str| {
            if applies {
                findings.push(Finding::warning(KEY, detail, hint));
            }
        };
        warn(
            !key.is_derived,
            "what it wraps is not bound to the version of a key",
            "A wrapped key that was exchanged for another is found by its check value only. Make \
             Transit keys with derived=true.",
        );
        warn(
            key.is_exportable || key.allow_plaintext_backup,
            "it can be read in plaintext (exportable or allow_plaintext_backup)",
            "That can't be undone: make another Transit key and have keys wrapped under it.",
        );
        warn(
            key.may_be_deleted,
            "it may be deleted, and with it all that it wraps",
            "A Vault administrator should set deletion_allowed=false.",
        );
        findings
    }

    /// What there is to say where nothing can be wrapped: on a standby, say. `denied` is the error of
    /// the attempt.
    fn check_reading_alone(
        &mut self,
        denied: ProviderError,
        deadline: Instant,
    ) -> Result<Finding, ProviderError> {
        let path = format!("{}/decrypt/{}", self.mount, self.key);
        let reading = match self.client.capabilities(&path, deadline) {
            Ok(capabilities)
                if capabilities.iter().any(|each| each == "update" || each == "root") =>
            {
                "reading is allowed"
            }
            Ok(_) => return Err(denied),
            Err(Refusal::Denied(_)) => "the policy does not let us see whether reading is allowed",
            Err(Refusal::Failed(error)) => return Err(error),
        };
        Ok(Finding::warning(
            "round trip",
            format!("not tried, since new keys are not allowed; {reading}"),
            format!("Enough for a standby. To make keys: {}", denied.hint.unwrap_or_default()),
        ))
    }

    /// Rewraps a key that is thrown away.
    fn check_rewrapping(&mut self, probe: &VersionId<'_>) -> Result<Finding, ProviderError> {
        let made = self.make(probe)?;
        match self.rewrap(probe, &made.reference, made.wrapped.as_deref()) {
            Ok(_) => Ok(Finding::good("rewrapping", "allowed")),
            Err(error) if error.kind == ProviderErrorKind::WriteDenied => {
                Ok(Finding::good("rewrapping", "not allowed: enc_rewrap_key can't be used"))
            }
            Err(error) => Err(error),
        }
    }
}

/// The context of a request, in base64.
fn context(id: &VersionId<'_>) -> String {
    STANDARD.encode(id.additional_data())
}

/// The name of a Transit key.
fn parse_reference(reference: &str) -> Result<&str, ProviderError> {
    match is_key_name(reference) {
        true => Ok(reference),
        false => Err(configuration(format!("{reference:?} is not a reference to a Transit key"))),
    }
}

fn is_key_name(text: &str) -> bool {
    !text.contains('/') && address::parse_path(text, "key").is_ok()
}

/// The ciphertext, for which there is no need to ask Vault whether it is one.
fn parse_wrapped(wrapped: Option<&[u8]>) -> Result<&str, ProviderError> {
    wrapped
        .and_then(|bytes| str::from_utf8(bytes).ok())
        .filter(|text| is_ciphertext(text))
        .ok_or_else(|| {
            ProviderError::new(
                ProviderErrorKind::WrappedKeyInvalid,
                "the wrapped key in the catalog is not one of the Transit engine",
            )
            .with_hint("Restore the row in the catalog from a backup.")
        })
}

/// `vault:v<number>:<base64>`. A key may have a template of its own for what comes before the base64.
fn is_ciphertext(text: &str) -> bool {
    matches!(text.len(), 1..=4096)
        && text.bytes().all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'"' | b'\\'))
}
