//! Keys in the KV secrets engine, version 2, of HashiCorp Vault and OpenBao.
//!
//! A key is the secret `<mount>/data/<prefix>/<name>`, and a version of the secret is a version of
//! the key: 32 bytes in base64 in the field `key`. It is a direct provider; its references are
//! `<name>?version=<number>`.
//!
//! A policy that allows `read` on `<mount>/data/<prefix>/*` is enough for keys that an administrator
//! writes; to make versions takes `create` and `update` as well.

pub(crate) mod answer;
pub(crate) mod client;
mod login;
pub(crate) mod settings;

use std::time::Instant;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use envelope::{DataKey, KeyName, KeyVersion};
use zeroize::Zeroizing;

use crate::address;
use crate::call::RequestLimits;
use crate::options::configuration;
use crate::provider::{
    self, Certificates, Finding, FoundVersion, Interrupt, KeyTextError, Login, MadeVersion,
    Provider, ProviderError, ProviderErrorKind, Retention, WrappedKey,
};
use crate::version::VersionId;

use answer::{Limits, Secret, SecretState, Written};
use client::{Client, Method, Refusal};
use settings::Vault;
pub use settings::VaultOptions;

/// The number of versions that the engine keeps unless it is configured otherwise.
const DEFAULT_MAX_VERSIONS: u32 = 10;

/// With fewer versions to go until the engine drops the oldest, making one comes with a warning.
const MIN_SPARE_VERSIONS: u32 = 20;

/// A provider that keeps keys in Vault's KV engine.
pub struct VaultProvider {
    client: Client,
    mount: String,
    prefix: String,
    /// The newest version that the last `discover` saw, for the `make` that follows it.
    discovered: Option<(KeyName, u32)>,
}

impl VaultProvider {
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
        if !options.key.is_empty() {
            return Err(configuration("setting \"key\" is for provider \"vault_transit\" alone"));
        }
        let prefix = match options.path_prefix.as_deref() {
            None => VaultOptions::DEFAULT_PATH_PREFIX.to_owned(),
            Some("") => String::new(),
            Some(prefix) => address::parse_path(prefix, "path_prefix")?,
        };
        let mount = settings::mount(options, VaultOptions::DEFAULT_KV_MOUNT)?;
        let client = Client::new(Vault::parse(options, limits)?, interrupt);
        Ok(Self { client, mount, prefix, discovered: None })
    }

    /// Reads a version of a secret, or the newest.
    fn read(
        &mut self,
        name: &KeyName,
        version: Option<u32>,
        deadline: Instant,
    ) -> Result<Secret, ProviderError> {
        let mut path = self.path("data", name);
        if let Some(version) = version {
            path.push_str(&format!("?version={version}"));
        }
        let answer =
            self.client.request(Method::Get, &path, None, deadline).map_err(|refusal| {
                refusal.or_denied(|message| {
                    ProviderError::new(ProviderErrorKind::Denied, message).with_hint(format!(
                    "The policy of the login needs: path \"{}\" {{ capabilities = [\"read\"] }}.",
                    self.path_of("data", "*")
                ))
                })
            })?;
        if answer.is_no_mount() {
            return Err(ProviderError::new(
                ProviderErrorKind::Configuration,
                format!("Vault has no secrets engine mounted at \"{}\"", self.mount),
            )
            .with_hint("Correct the setting of the mount, or of the namespace that it is in."));
        }
        answer.secret().ok_or_else(|| self.client.invalid("what is not a secret of KV version 2"))
    }

    /// The key that a secret has.
    fn key(&self, name: &KeyName, secret: &Secret) -> Result<DataKey, ProviderError> {
        let place = format!("version {} of \"{}\"", secret.version, self.secret_name(name));
        let invalid = |kind, what: &str| {
            ProviderError::new(kind, format!("{place} in Vault {what}")).with_hint(format!(
                "A Vault administrator must write a key: {}",
                self.command(name)
            ))
        };
        let field = secret
            .key
            .as_ref()
            .map_err(|why| invalid(ProviderErrorKind::AnswerInvalid, why.describe()))?;
        provider::key_from_base64(field).map_err(|why| match why {
            KeyTextError::NotBase64 => {
                invalid(ProviderErrorKind::AnswerInvalid, "has a field \"key\" that is not base64")
            }
            KeyTextError::Length { bytes } => invalid(
                ProviderErrorKind::KeyLengthWrong,
                &format!("has a key of {bytes} bytes instead of 32"),
            ),
        })
    }

    /// Why there is nothing to open: the version is gone, or the whole secret.
    fn missing(
        &mut self,
        name: &KeyName,
        number: KeyVersion,
        deadline: Instant,
    ) -> Result<ProviderError, ProviderError> {
        let secret_name = self.secret_name(name);
        Ok(match self.read(name, None, deadline)?.state {
            SecretState::Missing => ProviderError::new(
                ProviderErrorKind::KeyMissing,
                format!("there is no \"{secret_name}\" in Vault"),
            )
            .with_hint(
                "Restore the secret, or correct the settings of the mount and the path prefix. \
                 A new one would be another key.",
            ),
            SecretState::Live | SecretState::Deleted => ProviderError::new(
                ProviderErrorKind::VersionMissing,
                format!("there is no version {number} of \"{secret_name}\" in Vault"),
            )
            .with_hint(
                "Vault has dropped it (it keeps max_versions of a secret), or this is not the Vault \
                 that it was written to. Restore it from a backup of Vault.",
            ),
        })
    }

    /// What is to be said of the versions that there will be with the next one.
    fn warning(&self, name: &KeyName, limits: &[Limits], max: u32, next: u32) -> Option<String> {
        let secret_name = self.secret_name(name);
        if limits.iter().any(|limits| limits.expires) {
            return Some(format!(
                "Vault deletes versions of \"{secret_name}\" after a time (delete_version_after), \
                 and with them the values that they encrypt"
            ));
        }
        (max.saturating_sub(next) < MIN_SPARE_VERSIONS).then(|| {
            format!(
                "Vault keeps the newest {max} versions of \"{secret_name}\" and drops older ones, \
                 and with them the values that they encrypt; to keep more: vault kv metadata put \
                 -max-versions=1000 {secret_name}"
            )
        })
    }

    /// What the policy says of making versions, without making one.
    fn check_writing(
        &mut self,
        name: &KeyName,
        deadline: Instant,
    ) -> Result<Finding, ProviderError> {
        let path = self.path("data", name);
        let capabilities = match self.client.capabilities(&path, deadline) {
            Ok(capabilities) => capabilities,
            Err(Refusal::Denied(_)) => {
                return Ok(Finding::good(
                    "writing",
                    "the policy does not let us see whether it may",
                ));
            }
            Err(Refusal::Failed(error)) => return Err(error),
        };
        let may = |what: &str| capabilities.iter().any(|each| each == what || each == "root");
        Ok(Finding::good(
            "writing",
            match may("create") && may("update") {
                true => "allowed: keys and versions are made here".to_owned(),
                false => format!(
                    "not allowed: an administrator writes keys, as in {}",
                    self.command(name)
                ),
            },
        ))
    }

    /// What is set at a path; `None` if the policy does not let us see.
    fn limits(&mut self, path: &str, deadline: Instant) -> Result<Option<Limits>, ProviderError> {
        Ok(match self.client.read_if_allowed(path, deadline)? {
            None => None,
            // A secret that is not there yet.
            Some(answer) if answer.is_nothing_there() => Some(Limits::default()),
            Some(answer) => answer.limits(),
        })
    }

    fn path(&self, kind: &str, name: &KeyName) -> String {
        self.path_of(kind, name.as_str())
    }

    fn path_of(&self, kind: &str, name: &str) -> String {
        let Self { mount, prefix, .. } = self;
        match prefix.is_empty() {
            true => format!("{mount}/{kind}/{name}"),
            false => format!("{mount}/{kind}/{prefix}/{name}"),
        }
    }

    /// The secret as the `vault kv` commands name it.
    fn secret_name(&self, name: &KeyName) -> String {
        let Self { mount, prefix, .. } = self;
        match prefix.is_empty() {
            true => format!("{mount}/{name}"),
            false => format!("{mount}/{prefix}/{name}"),
        }
    }

    /// What an administrator runs to write a new version.
    fn command(&self, name: &KeyName) -> String {
        format!("vault kv put {} key=$(openssl rand -base64 32)", self.secret_name(name))
    }
}

impl Provider for VaultProvider {
    fn discover(
        &mut self,
        name: &KeyName,
        known: &[&str],
    ) -> Result<Vec<FoundVersion>, ProviderError> {
        self.discovered = None;
        let deadline = self.client.deadline();
        let newest = self.read(name, None, deadline)?;
        let newest_number = newest.version;
        let mut found = Vec::new();
        let mut secret = newest;
        // From the newest down to the first that Vault has dropped: the ones before it are dropped
        // too, however many there were.
        loop {
            if let (SecretState::Live, Some(number)) =
                (secret.state, KeyVersion::new(secret.version))
            {
                match self.key(name, &secret) {
                    Ok(key) => {
                        found.push(FoundVersion {
                            number,
                            reference: reference(name, number),
                            key,
                        });
                    }
                    Err(error) if secret.version == newest_number => return Err(error),
                    // Not a key, and so not in use: an attempt that the newest version corrected.
                    Err(_) => {}
                }
            }
            let is_known = |number: &u32| {
                KeyVersion::new(*number)
                    .is_some_and(|n| known.contains(&reference(name, n).as_str()))
            };
            let Some(next) = (1..secret.version).rev().find(|number| !is_known(number)) else {
                break;
            };
            secret = self.read(name, Some(next), deadline)?;
            if secret.state == SecretState::Missing {
                break;
            }
            if secret.version != next {
                return Err(self.client.invalid("another version than it was asked for"));
            }
        }
        found.retain(|version| !known.contains(&version.reference.as_str()));
        found.reverse();
        self.discovered = Some((name.clone(), newest_number));
        Ok(found)
    }

    fn make(&mut self, id: &VersionId<'_>) -> Result<MadeVersion, ProviderError> {
        let deadline = self.client.deadline();
        let newest = match self.discovered.take() {
            Some((name, newest)) if name == *id.name => newest,
            _ => self.read(id.name, None, deadline)?.version,
        };
        let key = provider::generate_key()?;
        let path = self.path("data", id.name);
        let body = write_request(&key, newest);
        let answer =
            self.client.request(Method::Post, &path, Some(body), deadline).map_err(|refusal| {
                refusal.or_denied(|message| {
                    ProviderError::new(ProviderErrorKind::WriteDenied, message).with_hint(format!(
                        "A Vault administrator must write the key, for it to be adopted: {}",
                        self.command(id.name)
                    ))
                })
            })?;
        let number = match answer.written() {
            Written::Version(number) => number,
            Written::Conflict => {
                return Err(ProviderError::new(
                    ProviderErrorKind::Conflict,
                    format!(
                        "somebody else has written a version of \"{}\" in Vault meanwhile",
                        self.secret_name(id.name)
                    ),
                )
                .with_hint("Run the command again: it will find that version."));
            }
            Written::Unknown => return Err(self.client.unexpected(&answer)),
        };
        Ok(MadeVersion {
            reference: reference(id.name, number),
            wrapped: None,
            key,
            number: Some(number),
        })
    }

    fn retention(&mut self, name: &KeyName) -> Result<Option<Retention>, ProviderError> {
        let deadline = self.client.deadline();
        // What says less than was seen a moment ago is not believed.
        let seen = self.discovered.as_ref().filter(|(found, _)| found == name);
        let seen = seen.map_or(0, |(_, newest)| *newest);
        let of_secret = self.limits(&self.path("metadata", name), deadline)?;
        let of_secret = of_secret.filter(|limits| limits.newest >= seen);
        let of_mount = self.limits(&format!("{}/config", self.mount), deadline)?;
        // The larger of both counts ("KeyMetadata.AddVersion" in vault-plugin-secrets-kv's path_data.go).
        let limits: Vec<_> = of_secret.iter().chain(&of_mount).copied().collect();
        let set = limits.iter().map(|limits| limits.max_versions).max().filter(|max| *max != 0);
        let is_assumed = of_secret.is_none() || (set.is_none() && of_mount.is_none());
        let max_versions = set.unwrap_or(DEFAULT_MAX_VERSIONS);
        let Limits { oldest, newest, versions, .. } = match of_secret {
            Some(of_secret) => of_secret,
            None if seen != 0 => Limits { newest: seen, ..Limits::default() },
            None => {
                let newest = self.read(name, None, deadline)?.version;
                Limits { newest, ..Limits::default() }
            }
        };
        let secret_name = self.secret_name(name);
        Ok(Some(Retention {
            oldest,
            newest,
            versions,
            max_versions,
            is_assumed,
            warning: match of_secret {
                Some(_) => self.warning(name, &limits, max_versions, newest.saturating_add(1)),
                None => None,
            },
            hint: match is_assumed {
                true => format!(
                    "The policy of the login doesn't let us see how many versions Vault keeps, and \
                     it keeps {DEFAULT_MAX_VERSIONS} unless it is told otherwise. Allow \"read\" on \
                     \"{}\" and \"{}/config\".",
                    self.path_of("metadata", "*"),
                    self.mount
                ),
                false => format!(
                    "A Vault administrator can have it keep more: vault kv metadata put \
                     -max-versions=1000 {secret_name} (or bao kv metadata put)."
                ),
            },
        }))
    }

    fn open(
        &mut self,
        _id: &VersionId<'_>,
        reference: &str,
        _wrapped: Option<&[u8]>,
    ) -> Result<DataKey, ProviderError> {
        let (name, number) = parse_reference(reference)?;
        let deadline = self.client.deadline();
        let secret = self.read(&name, Some(number.get()), deadline)?;
        match secret.state {
            SecretState::Missing => Err(self.missing(&name, number, deadline)?),
            SecretState::Deleted => Err(ProviderError::new(
                ProviderErrorKind::VersionMissing,
                format!("version {number} of \"{}\" in Vault is deleted", self.secret_name(&name)),
            )
            .with_hint(format!(
                "Unless it was destroyed, a Vault administrator can bring it back: \
                 vault kv undelete -versions={number} {}",
                self.secret_name(&name)
            ))),
            SecretState::Live if secret.version != number.get() => {
                Err(self.client.invalid("another version than it was asked for"))
            }
            SecretState::Live => self.key(&name, &secret),
        }
    }

    fn rewrap(
        &mut self,
        _id: &VersionId<'_>,
        _reference: &str,
        _wrapped: Option<&[u8]>,
    ) -> Result<Option<WrappedKey>, ProviderError> {
        Ok(None)
    }

    fn check(&mut self, probe: &VersionId<'_>) -> Result<Vec<Finding>, ProviderError> {
        let deadline = self.client.deadline();
        let mut findings = vec![self.client.check_login(deadline)?];
        let newest = self.read(probe.name, None, deadline)?;
        let place = self.secret_name(probe.name);
        findings.push(match newest.state {
            SecretState::Live => {
                self.key(probe.name, &newest)?;
                Finding::good("reading", format!("\"{place}\" has a key"))
            }
            SecretState::Deleted => Finding::warning(
                "reading",
                format!("the newest version of \"{place}\" is deleted"),
                "Write a new version, or undelete this one.",
            ),
            SecretState::Missing => {
                Finding::good("reading", format!("allowed, and there is no \"{place}\" yet"))
            }
        });
        findings.push(self.check_writing(probe.name, deadline)?);
        let retention = self.retention(probe.name)?.filter(|retention| retention.newest != 0);
        findings.extend(retention.and_then(|retention| retention.warning).map(|warning| {
            Finding::warning("retention", warning, "Raise the limit before it is reached.")
        }));
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

/// The body of a request to write `key` as the version after `newest`, and only as that one.
fn write_request(key: &DataKey, newest: u32) -> Zeroizing<Vec<u8>> {
    // Enough for all of it, so that the vector never moves and leaves the key behind.
    let mut body = Zeroizing::new(Vec::with_capacity(128));
    body.extend_from_slice(
        format!(r#"{{"options":{{"cas":{newest}}},"data":{{"key":""#).as_bytes(),
    );
    let mut text = Zeroizing::new([0; 44]);
    let len = STANDARD
        .encode_slice(key.expose(), &mut *text)
        .expect("32 bytes are 44 characters of base64");
    body.extend_from_slice(&text[..len]);
    body.extend_from_slice(br#""}}"#);
    body
}

/// `<name>?version=<number>`.
fn reference(name: &KeyName, number: KeyVersion) -> String {
    format!("{name}?version={number}")
}

/// The number in a reference to a version of this key.
pub(crate) fn number_in(text: &str, key: &KeyName) -> Option<u32> {
    let (name, number) = parse_reference(text).ok()?;
    (name == *key).then_some(number.get())
}

fn parse_reference(text: &str) -> Result<(KeyName, KeyVersion), ProviderError> {
    let parse = || {
        let (name, number) = text.split_once("?version=")?;
        let (name, number) = (KeyName::parse(name).ok()?, KeyVersion::new(number.parse().ok()?)?);
        (reference(&name, number) == text).then_some((name, number))
    };
    parse().ok_or_else(|| {
        ProviderError::new(
            ProviderErrorKind::Configuration,
            format!("\"{text}\" is not a reference to a key in Vault"),
        )
    })
}

impl Refusal {
    /// The error, with what `denied` makes of a denial's message.
    fn or_denied(self, denied: impl FnOnce(String) -> ProviderError) -> ProviderError {
        match self {
            Self::Denied(message) => denied(message),
            Self::Failed(error) => error,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_read_as_they_are_written() {
        let name = KeyName::parse("user_pii").unwrap();
        let number = KeyVersion::new(3).unwrap();
        assert_eq!(reference(&name, number), "user_pii?version=3");
        assert_eq!(parse_reference("user_pii?version=3").unwrap(), (name, number));
        for text in
            ["", "user_pii", "user_pii?version=0", "user_pii?version=03", "../x?version=1", "a:1"]
        {
            let error = parse_reference(text).unwrap_err();
            assert_eq!(error.kind, ProviderErrorKind::Configuration, "{text}");
        }
    }

    #[test]
    fn a_write_request_does_not_outgrow_its_buffer() {
        let body = write_request(&DataKey::new([255; 32]), u32::MAX);
        assert_eq!(body.capacity(), 128);
        assert_eq!(
            String::from_utf8_lossy(&body),
            concat!(
                r#"{"options":{"cas":4294967295},"#,
                r#""data":{"key":"//////////////////////////////////////////8="}}"#
            )
        );
    }
}
