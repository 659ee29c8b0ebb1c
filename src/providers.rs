//! The providers that this backend has used, made from the settings.

use std::collections::HashMap;
use std::path::PathBuf;

use envelope::{DataKey, KeyName};
use keyring::file::FileProvider;
use keyring::provider::{Provider, ProviderError, ProviderErrorKind};
use keyring::vault::{VaultOptions, VaultProvider, VaultSettings};
use keyring::version::VersionId;
use pgrx::pg_sys;

use crate::catalog::{self, Key, Version};
use crate::errors::Error;
use crate::settings;

/// The name of the provider that keeps keys in a file.
pub(crate) const FILE: &str = "file";
/// The name of the provider that reads keys from Vault's KV version 2 secrets engine.
pub(crate) const VAULT: &str = "vault";

/// This backend's providers, each with the settings it was made with. A provider keeps what it has
/// learned, such as a login, until its settings change.
#[derive(Default)]
pub(crate) struct Providers {
    made: HashMap<String, (Settings, Box<dyn Provider>)>,
}

/// The settings that a provider is made from.
#[derive(PartialEq)]
enum Settings {
    File { path: PathBuf, may_create: bool },
    Vault(VaultOptions),
}

impl Settings {
    /// What the settings say now about the provider with this name.
    fn current(name: &str) -> Result<Self, Error> {
        match name {
            // Where versions are said to be in the file, a missing file is not to be replaced by
            // a new one.
            FILE => Ok(Self::File {
                path: settings::keyring_file(),
                may_create: !catalog::uses_provider(FILE)?,
            }),
            VAULT => Ok(Self::Vault(settings::vault()?)),
            _ => Err(Error::SettingInvalid {
                setting: "encryption_ext.provider",
                why: format!("there is no provider {name:?}"),
            }),
        }
    }

    fn provider(&self) -> Result<Box<dyn Provider>, ProviderError> {
        let interrupt = Box::new(interrupt_pending);
        Ok(match self {
            Self::File { path, may_create } => Box::new(FileProvider::new(
                path.clone(),
                *may_create,
                settings::request_limits(),
                interrupt,
            )?),
            Self::Vault(options) => {
                let settings = VaultSettings::parse(options.clone())?;
                Box::new(VaultProvider::new(settings, interrupt))
            }
        })
    }
}

impl Providers {
    /// The bytes of a version, from the provider that it came from.
    ///
    /// # Errors
    ///
    /// If the provider can't be had or hasn't got them.
    pub(crate) fn open(&mut self, key: &Key, version: &Version) -> Result<DataKey, Error> {
        let id = VersionId { keyspace: version.keyspace, name: &key.name, version: version.number };
        self.call(&version.provider, &key.name, |provider| {
            provider.open(&id, &version.reference, version.wrapped.as_deref())
        })
    }

    /// Calls the provider with this name about a key.
    ///
    /// # Errors
    ///
    /// If there is no such provider, its settings are wrong, or what `call` returns.
    pub(crate) fn call<T>(
        &mut self,
        name: &str,
        key: &KeyName,
        call: impl FnOnce(&mut dyn Provider) -> Result<T, ProviderError>,
    ) -> Result<T, Error> {
        let failed =
            |error| Error::Provider { provider: name.to_owned(), key: Some(key.clone()), error };
        call(self.provider(name, failed)?).map_err(|error| {
            if error.kind == ProviderErrorKind::Interrupted {
                // Raises PostgreSQL's own error, which says who or what ended the statement.
                pgrx::check_for_interrupts!();
            }
            failed(error)
        })
    }

    /// Closes what connections are open: no call follows soon.
    pub(crate) fn close_connections(&mut self) {
        for (_, provider) in self.made.values_mut() {
            provider.close_connections();
        }
    }

    fn provider(
        &mut self,
        name: &str,
        failed: impl Fn(ProviderError) -> Error,
    ) -> Result<&mut dyn Provider, Error> {
        let settings = Settings::current(name)?;
        if self.made.get(name).is_none_or(|(made_with, _)| *made_with != settings) {
            let provider = settings.provider().map_err(failed)?;
            self.made.insert(name.to_owned(), (settings, provider));
        }
        match self.made.get_mut(name) {
            Some((_, provider)) => Ok(provider.as_mut()),
            None => Err(Error::Internal { what: "a provider that was made is gone" }),
        }
    }
}

/// Whether a cancel, a time-out or a termination wants this backend's statement to end.
fn interrupt_pending() -> bool {
    // SAFETY: flags of this backend's that its signal handlers set.
    unsafe { pg_sys::QueryCancelPending != 0 || pg_sys::ProcDiePending != 0 }
}
