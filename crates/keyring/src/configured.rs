//! Providers as they are configured: the kinds that there are, the settings of one, and the file that
//! configures several.

use std::collections::BTreeMap;
use std::path::Path;

use envelope::KeyName;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use crate::aws_kms::AwsKmsProvider;
use crate::azure_key_vault::AzureKeyVaultProvider;
use crate::call::RequestLimits;
use crate::command::CommandProvider;
use crate::file::FileProvider;
use crate::gcp_kms::GcpKmsProvider;
use crate::kmip::KmipProvider;
use crate::options::configuration;
use crate::pkcs11::Pkcs11Provider;
use crate::provider::{Interrupt, Provider, ProviderError};
use crate::sys;
use crate::vault::{self, VaultProvider};
use crate::vault_transit::VaultTransitProvider;
use crate::watched::{self, Stamp};

/// The kinds of providers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ProviderKind {
    /// Keys in a file.
    File,
    /// Keys in Vault's KV engine.
    Vault,
    /// Keys wrapped by Vault's Transit engine.
    VaultTransit,
    /// Keys wrapped by AWS KMS.
    AwsKms,
    /// Keys wrapped by Google Cloud KMS.
    GcpKms,
    /// Keys wrapped by Azure Key Vault.
    AzureKeyVault,
    /// Keys wrapped in a PKCS#11 token.
    Pkcs11,
    /// Keys in a KMIP server.
    Kmip,
    /// Keys that a program prints.
    Command,
}

impl ProviderKind {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::File,
        Self::Vault,
        Self::VaultTransit,
        Self::AwsKms,
        Self::GcpKms,
        Self::AzureKeyVault,
        Self::Pkcs11,
        Self::Kmip,
        Self::Command,
    ];

    /// The kind's name in settings.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Vault => "vault",
            Self::VaultTransit => "vault_transit",
            Self::AwsKms => "aws_kms",
            Self::GcpKms => "gcp_kms",
            Self::AzureKeyVault => "azure_key_vault",
            Self::Pkcs11 => "pkcs11",
            Self::Kmip => "kmip",
            Self::Command => "command",
        }
    }

    /// The kind with this name.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// Whether the provider drops the oldest versions of a key when there are too many, as
    /// [`Retention`](crate::provider::Retention) has it.
    #[must_use]
    pub fn drops_versions(self) -> bool {
        self == Self::Vault
    }

    /// The number that such a provider gave the version of a key with this reference.
    #[must_use]
    pub fn number_in(self, reference: &str, key: &KeyName) -> Option<u32> {
        if self.drops_versions() { vault::number_in(reference, key) } else { None }
    }

    /// Whether the provider wraps keys that are kept elsewhere, rather than keep them itself.
    #[must_use]
    pub fn is_envelope(self) -> bool {
        match self {
            Self::VaultTransit
            | Self::AwsKms
            | Self::GcpKms
            | Self::AzureKeyVault
            | Self::Pkcs11 => true,
            Self::File | Self::Vault | Self::Kmip | Self::Command => false,
        }
    }
}

/// A provider's kind and settings, not checked yet.
#[derive(Clone, Debug, PartialEq)]
pub struct Configured {
    /// The kind.
    pub kind: ProviderKind,
    /// The settings, all texts.
    pub settings: BTreeMap<String, String>,
}

impl Configured {
    /// A provider with these settings. Nothing is sent yet.
    ///
    /// # Errors
    ///
    /// [`ProviderErrorKind::Configuration`](crate::provider::ProviderErrorKind::Configuration), with
    /// the setting that is wrong.
    pub fn provider(
        &self,
        limits: RequestLimits,
        interrupt: Box<dyn Interrupt>,
    ) -> Result<Box<dyn Provider>, ProviderError> {
        Ok(match self.kind {
            ProviderKind::File => Box::new(FileProvider::new(&self.options()?, limits, interrupt)?),
            ProviderKind::Vault => {
                Box::new(VaultProvider::new(&self.options()?, limits, interrupt)?)
            }
            ProviderKind::VaultTransit => {
                Box::new(VaultTransitProvider::new(&self.options()?, limits, interrupt)?)
            }
            ProviderKind::AwsKms => {
                Box::new(AwsKmsProvider::new(&self.options()?, limits, interrupt)?)
            }
            ProviderKind::GcpKms => {
                Box::new(GcpKmsProvider::new(&self.options()?, limits, interrupt)?)
            }
            ProviderKind::AzureKeyVault => {
                Box::new(AzureKeyVaultProvider::new(&self.options()?, limits, interrupt)?)
            }
            ProviderKind::Pkcs11 => {
                Box::new(Pkcs11Provider::new(&self.options()?, limits, interrupt)?)
            }
            ProviderKind::Kmip => Box::new(KmipProvider::new(&self.options()?, limits, interrupt)?),
            ProviderKind::Command => {
                Box::new(CommandProvider::new(&self.options()?, limits, interrupt)?)
            }
        })
    }

    /// What tells these settings from all others: SHA-256 over the kind and every setting. They hold no
    /// secret, and neither does this.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        let mut hash = Sha256::new_with_prefix(self.kind.name());
        for text in self.settings.iter().flat_map(|(name, value)| [name, value]) {
            // With its length, so that no two lists of texts are the same bytes.
            hash.update(text.len().to_be_bytes());
            hash.update(text);
        }
        Fingerprint(hash.finalize().into())
    }

    /// Whether the login is a token in a file.
    #[must_use]
    pub fn has_token_file(&self) -> bool {
        let auth = self.settings.get("auth").map_or("", String::as_str);
        matches!(self.kind, ProviderKind::Vault | ProviderKind::VaultTransit)
            && matches!(auth, "" | "token")
    }

    fn options<T: DeserializeOwned>(&self) -> Result<T, ProviderError> {
        let settings = self.settings.iter().map(|(k, v)| (k.clone(), Value::from(v.clone())));
        // All values are texts, so what can be wrong is a name.
        serde_json::from_value(Value::Object(settings.collect())).map_err(|error| {
            configuration(format!(
                "settings of a provider of type \"{}\": {error}",
                self.kind.name()
            ))
        })
    }
}

/// What tells a provider's settings from all others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fingerprint(pub [u8; 32]);

/// The provider file: JSON (RFC 8259), an object with a provider under each name.
///
/// ```json
/// {
///   "vault_eu": { "type": "vault", "address": "https://vault.eu.example.com:8200", "auth": "cert" },
///   "old_kms": { "type": "aws_kms", "key_id": "alias/postgresql", "region": "eu-central-1" }
/// }
/// ```
///
/// It has no secrets, but who can write it can have keys read from elsewhere: nobody but its owner may.
#[derive(Default)]
pub struct ProviderFile {
    read: Option<(Stamp, BTreeMap<String, Configured>)>,
}

impl ProviderFile {
    /// The provider with this name, from the file as it is now.
    ///
    /// # Errors
    ///
    /// If the file can't be read, isn't to be trusted, or isn't a provider file. Not if it has no
    /// provider with this name.
    pub fn find(&mut self, path: &Path, name: &str) -> Result<Option<Configured>, ProviderError> {
        Ok(self.all(path)?.get(name).cloned())
    }

    /// The names of the providers in the file as it is now.
    ///
    /// # Errors
    ///
    /// As [`ProviderFile::find`].
    pub fn names(&mut self, path: &Path) -> Result<Vec<String>, ProviderError> {
        Ok(self.all(path)?.keys().cloned().collect())
    }

    fn all(&mut self, path: &Path) -> Result<&BTreeMap<String, Configured>, ProviderError> {
        let now = watched::stamp(path);
        if self.read.as_ref().map(|(stamp, _)| *stamp) != now || now.is_none() {
            self.read = None;
            let (contents, stamp) = watched::read(path, "provider")?;
            refuse_writable_by_others(path)?;
            let providers = parse(&contents).map_err(|why| {
                configuration(format!("provider file \"{}\" {why}", path.display()))
                    .with_hint("See docs/providers.md for its form.")
            })?;
            self.read = Some((stamp, providers));
        }
        match &self.read {
            Some((_, providers)) => Ok(providers),
            None => Err(configuration("the provider file is gone")),
        }
    }
}

fn refuse_writable_by_others(path: &Path) -> Result<(), ProviderError> {
    match sys::others_may_write(path) {
        Ok(false) => Ok(()),
        Ok(true) => Err(configuration(format!(
            "provider file \"{}\" can be written by others than its owner",
            path.display()
        ))
        .with_hint(
            "It must belong to root or to the user that runs PostgreSQL, and have mode 0644 or less.",
        )),
        Err(error) => {
            Err(configuration(format!("could not use provider file \"{}\": {error}", path.display())))
        }
    }
}

/// Takes the contents of a provider file. What is wrong is said without any value in it, which may
/// be a secret in the wrong place.
fn parse(contents: &[u8]) -> Result<BTreeMap<String, Configured>, String> {
    let providers: Map<String, Value> = serde_json::from_slice(contents).map_err(|error| {
        format!("is not a JSON object (line {}, column {})", error.line(), error.column())
    })?;
    providers
        .into_iter()
        .map(|(name, provider)| {
            let configured =
                parse_one(&name, provider).map_err(|why| format!("has {name:?}, {why}"))?;
            Ok((name, configured))
        })
        .collect()
}

fn parse_one(name: &str, provider: Value) -> Result<Configured, String> {
    if !is_name(name) {
        return Err(
            "which is not a name of 1 to 63 characters of a-z, 0-9, \"_\", \".\" and \"-\""
                .to_owned(),
        );
    }
    if ProviderKind::parse(name).is_some() {
        return Err(
            "which is the name of the provider that the server's settings describe".to_owned()
        );
    }
    let Value::Object(fields) = provider else {
        return Err("which is not an object".to_owned());
    };
    let mut settings = fields
        .into_iter()
        .map(|(field, value)| match value {
            Value::String(text) => Ok((field, text)),
            _ => Err(format!("whose field {field:?} is not a string")),
        })
        .collect::<Result<BTreeMap<_, _>, _>>()?;
    let kind = settings.remove("type").ok_or("which has no field \"type\"")?;
    let kind = ProviderKind::parse(&kind).ok_or_else(|| {
        let kinds = ProviderKind::ALL.map(ProviderKind::name).join(", ");
        format!("whose type is none of {kinds}")
    })?;
    Ok(Configured { kind, settings })
}

fn is_name(name: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"_.-".contains(&b);
    matches!(name.len(), 1..=63)
        && name.bytes().all(allowed)
        && name.as_bytes()[0].is_ascii_alphanumeric()
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::provider::ProviderErrorKind;

    #[test]
    fn a_provider_file_is_read_again_when_it_changes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("providers.json");
        let mut file = ProviderFile::default();
        assert!(file.find(&path, "a").is_err());

        fs::write(&path, r#"{"a": {"type": "vault", "address": "https://a"}}"#).unwrap();
        let found = file.find(&path, "a").unwrap().unwrap();
        assert_eq!(found.kind, ProviderKind::Vault);
        assert_eq!(found.settings["address"], "https://a");
        assert_eq!(file.find(&path, "b").unwrap(), None);

        fs::write(&path, r#"{"b": {"type": "file", "path": "/k"}, "c": {"type": "command"}}"#)
            .unwrap();
        assert_eq!(file.names(&path).unwrap(), ["b", "c"]);
        fs::remove_file(&path).unwrap();
        assert!(file.names(&path).is_err());
    }

    #[test]
    fn a_provider_file_that_others_may_write_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("providers.json");
        fs::write(&path, "{}").unwrap();
        for (mode, accepted) in [(0o600, true), (0o644, true), (0o664, false), (0o646, false)] {
            fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            assert_eq!(ProviderFile::default().names(&path).is_ok(), accepted, "{mode:o}");
        }
    }

    #[test]
    fn what_is_wrong_is_said_without_the_values() {
        for (contents, complaint) in [
            ("", "line 1, column 0"),
            ("[]", "not a JSON object"),
            (r#"{"Vault": {"type": "vault"}}"#, "not a name"),
            (r#"{"vault": {"type": "vault"}}"#, "the server's settings describe"),
            (r#"{"a": "hunter2"}"#, "not an object"),
            (r#"{"a": {"address": "hunter2"}}"#, "no field \"type\""),
            (r#"{"a": {"type": "hunter2"}}"#, "none of file, vault"),
            (r#"{"a": {"type": "pkcs11", "pin_file": 1234}}"#, "\"pin_file\" is not a string"),
        ] {
            let why = parse(contents.as_bytes()).unwrap_err();
            assert!(why.contains(complaint), "{why}");
            assert!(!why.contains("hunter2") && !why.contains("1234"), "{why}");
        }
    }

    #[test]
    fn a_misspelt_setting_is_told() {
        let settings = BTreeMap::from([("adress".to_owned(), "hunter2".to_owned())]);
        let configured = Configured { kind: ProviderKind::Vault, settings };
        let error =
            configured.provider(RequestLimits::default(), Box::new(|| false)).err().unwrap();
        assert_eq!(error.kind, ProviderErrorKind::Configuration);
        assert!(error.message.contains("`adress`") && !error.message.contains("hunter2"));
    }

    #[test]
    fn a_fingerprint_is_that_of_all_settings() {
        let of = |kind, settings: &[(&str, &str)]| {
            let settings = settings.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned()));
            Configured { kind, settings: settings.collect() }.fingerprint()
        };
        let one = of(ProviderKind::Vault, &[("address", "https://a"), ("mount", "b")]);
        assert_eq!(one, of(ProviderKind::Vault, &[("mount", "b"), ("address", "https://a")]));
        for (kind, settings) in [
            (ProviderKind::VaultTransit, [("address", "https://a"), ("mount", "b")].as_slice()),
            (ProviderKind::Vault, &[("address", "https://a"), ("mount", "c")]),
            (ProviderKind::Vault, &[("address", "https://a")]),
            (ProviderKind::Vault, &[("address", "https://amount"), ("", "b")]),
        ] {
            assert_ne!(one, of(kind, settings));
        }
    }

    #[test]
    fn every_kind_has_a_name() {
        for kind in ProviderKind::ALL {
            assert_eq!(ProviderKind::parse(kind.name()), Some(kind));
        }
        assert_eq!(ProviderKind::parse("Vault"), None);
    }
}
