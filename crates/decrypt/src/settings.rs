//! The settings of providers, by the names that the extension has for them, and the providers that they
//! and a provider file make.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::time::Duration;

use keyring::call::RequestLimits;
use keyring::configured::{Configured, ProviderFile, ProviderKind};
use keyring::provider::{Provider, ProviderError};

use crate::error::Error;

/// What the extension's settings begin with.
const PREFIX: &str = "encryption_ext.";

/// Longer than the extension waits: no statement does here.
const LIMITS: RequestLimits =
    RequestLimits { connect: Duration::from_secs(5), total: Duration::from_secs(30) };

/// Settings of providers, and the providers that were made of them.
#[derive(Default)]
pub struct Providers {
    settings: BTreeMap<ProviderKind, BTreeMap<String, String>>,
    provider_file: Option<PathBuf>,
    file: ProviderFile,
    made: HashMap<String, Box<dyn Provider>>,
}

impl Providers {
    /// Sets what the extension calls `encryption_ext.<name>`.
    pub fn set(&mut self, name: &str, value: &str) -> Result<(), Error> {
        let name = name.strip_prefix(PREFIX).unwrap_or(name);
        if name == "provider_file" {
            self.provider_file = Some(value.into());
            return Ok(());
        }
        let places = places(name);
        if places.is_empty() {
            return Err(Error::new(format!("there is no setting \"{name}\" of a provider"))
                .with_hint("docs/providers.md lists the settings of each provider."));
        }
        for (kind, field) in places {
            self.settings.entry(kind).or_default().insert(field.to_owned(), value.to_owned());
        }
        Ok(())
    }

    /// Takes the settings that a `postgresql.conf` or `postgresql.auto.conf` has.
    pub fn set_from_conf(&mut self, contents: &str) -> Result<(), Error> {
        for (number, line) in contents.lines().enumerate() {
            let Some((name, value)) = conf_line(line) else { continue };
            // The other settings of the extension's are not about reading a key.
            if name == "provider_file" || !places(&name).is_empty() {
                self.set(&name, &value)
                    .map_err(|error| error.at(format!("line {}", number + 1)))?;
            }
        }
        Ok(())
    }

    /// The file of named providers.
    pub fn set_provider_file(&mut self, path: &Path) {
        self.provider_file = Some(path.to_owned());
    }

    /// The keyring file that the settings name.
    pub fn keyring_file(&self) -> Option<PathBuf> {
        self.settings.get(&ProviderKind::File)?.get("path").map(PathBuf::from)
    }

    /// The kind of the provider with this name; `None` if there is no such provider.
    pub fn kind(&mut self, name: &str) -> Result<Option<ProviderKind>, Error> {
        Ok(self.configured(name)?.map(|configured| configured.kind))
    }

    /// The provider with this name, logged in as far as it was used before.
    pub fn provider(&mut self, name: &str) -> Result<&mut dyn Provider, Error> {
        if !self.made.contains_key(name) {
            let configured = self.configured(name)?.ok_or_else(|| unknown(name))?;
            let provider = configured
                .provider(LIMITS, Box::new(|| false))
                .map_err(|error| not_set_up(name, error))?;
            self.made.insert(name.to_owned(), provider);
        }
        match self.made.get_mut(name) {
            Some(provider) => Ok(provider.as_mut()),
            None => Err(unknown(name)),
        }
    }

    fn configured(&mut self, name: &str) -> Result<Option<Configured>, Error> {
        if let Some(kind) = ProviderKind::parse(name) {
            let settings = self.settings.get(&kind).cloned().unwrap_or_default();
            return Ok(Some(Configured { kind, settings }));
        }
        match &self.provider_file {
            Some(path) => Ok(self.file.find(path, name)?),
            None => Ok(None),
        }
    }
}

/// The kinds that a setting is for, and what they call it: `vault_address` is the address of the server
/// for two kinds. None if there is no such setting.
fn places(name: &str) -> Vec<(ProviderKind, &str)> {
    use ProviderKind::{Command, File, Vault, VaultTransit};
    match name {
        "keyring_file" => return vec![(File, "path")],
        "command" => return vec![(Command, "command")],
        _ => {}
    }
    // The longest first: "vault_transit_mount" is no setting of "vault".
    let mut kinds: Vec<_> =
        ProviderKind::ALL.into_iter().filter(|kind| !matches!(kind, File | Command)).collect();
    kinds.sort_by_key(|kind| std::cmp::Reverse(kind.name().len()));
    let found = kinds.into_iter().find_map(|kind| {
        let field = name.strip_prefix(kind.name())?.strip_prefix('_')?;
        Some((kind, field))
    });
    match found {
        None => Vec::new(),
        Some((Vault, field @ ("mount" | "path_prefix"))) => vec![(Vault, field)],
        Some((Vault, field)) => vec![(Vault, field), (VaultTransit, field)],
        Some(place) => vec![place],
    }
}

/// A setting of the extension's in a line of `postgresql.conf` (PostgreSQL's documentation, section
/// "Parameter Interaction via the Configuration File").
fn conf_line(line: &str) -> Option<(String, String)> {
    let rest = line.trim_start().strip_prefix(PREFIX)?;
    let end = rest.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))?;
    let (name, rest) = rest.split_at(end);
    let rest = rest.trim_start();
    let rest = rest.strip_prefix('=').unwrap_or(rest).trim_start();
    let value = match rest.strip_prefix('\'') {
        Some(quoted) => {
            let mut value = String::new();
            let mut chars = quoted.chars().peekable();
            loop {
                match chars.next()? {
                    '\'' if chars.peek() == Some(&'\'') => value.extend(chars.next()),
                    '\'' => break value,
                    '\\' => value.extend(chars.next()),
                    other => value.push(other),
                }
            }
        }
        None => rest.split(['#', ' ', '\t']).next().unwrap_or_default().to_owned(),
    };
    Some((name.to_ascii_lowercase(), value))
}

fn unknown(name: &str) -> Error {
    Error::new(format!("nothing says what the provider \"{name}\" is"))
        .with_hint("Give --provider-file with the server's file of named providers, which has it.")
}

fn not_set_up(name: &str, error: ProviderError) -> Error {
    let hint = error.hint.unwrap_or_else(|| {
        format!(
            "Give the settings of provider \"{name}\" as the server has them: --set NAME=VALUE for each, \
             --settings with its postgresql.conf, or --provider-file. docs/providers.md lists them."
        )
    });
    Error::new(format!("provider \"{name}\": {}", error.message)).with_hint(hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each setting of the extension's is for the kinds, and has the field, that it has there.
    #[test]
    fn settings_are_those_of_the_extension() {
        let source = include_str!("../../../src/settings.rs");
        let mut count = 0;
        for setting in source.split("ProviderSetting::new(\n").skip(1) {
            let mut lines = setting.lines().map(|line| line.trim().trim_end_matches(','));
            let kinds = lines.next().unwrap();
            let field = lines.next().unwrap().trim_matches('"');
            let name = lines.next().unwrap().trim_start_matches("c\"encryption_ext.");
            let name = name.trim_end_matches('"');
            let mut places: Vec<_> = places(name)
                .into_iter()
                .map(|(kind, field)| (format!("{kind:?}"), field))
                .collect();
            places.sort();
            let mut expected: Vec<_> = kinds
                .replace("SERVER", "&[Vault, VaultTransit]")
                .trim_matches(['&', '[', ']'])
                .split(", ")
                .map(|kind| (kind.to_owned(), field))
                .collect();
            expected.sort();
            assert_eq!(places, expected, "{name}");
            count += 1;
        }
        assert_eq!(count, 49);
    }

    #[test]
    fn lines_of_postgresql_conf_are_read() {
        for (line, expected) in [
            (
                "encryption_ext.vault_address = 'https://v:8200'  # c",
                Some(("vault_address", "https://v:8200")),
            ),
            (
                "  encryption_ext.pkcs11_pin_file='/a b/it''s'",
                Some(("pkcs11_pin_file", "/a b/it's")),
            ),
            ("encryption_ext.vault_auth approle#c", Some(("vault_auth", "approle"))),
            ("#encryption_ext.vault_auth = 'approle'", None),
            ("shared_buffers = '1GB'", None),
            ("encryption_ext.vault_auth = 'approle", None),
        ] {
            let expected = expected.map(|(name, value)| (name.to_owned(), value.to_owned()));
            assert_eq!(conf_line(line), expected, "{line}");
        }
        let mut providers = Providers::default();
        providers
            .set_from_conf("encryption_ext.cache_ttl = 5\nencryption_ext.keyring_file = '/k'\nencryption_ext.provider_file = '/p'\n")
            .unwrap();
        assert_eq!(providers.keyring_file(), Some("/k".into()));
        assert_eq!(providers.provider_file, Some("/p".into()));
    }

    #[test]
    fn what_is_missing_is_told() {
        let mut providers = Providers::default();
        assert!(providers.set("valt_address", "x").is_err());
        providers.set("encryption_ext.vault_adress", "x").unwrap();
        for (name, text) in
            [("vault", "adress"), ("vault_transit", "adress"), ("vault_eu", "nothing says")]
        {
            let Err(error) = providers.provider(name) else { panic!("{name} was made") };
            let error = error.to_string();
            assert!(error.contains(text) && error.contains("hint: "), "{error}");
        }
        assert!(providers.kind("vault_eu").unwrap().is_none());
    }
}
