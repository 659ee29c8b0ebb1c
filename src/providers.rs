//! The providers that this backend has used, made from the settings or the provider file, and what
//! is known of their failures.

use std::collections::HashMap;
use std::time::Instant;

use envelope::{DataKey, KeyName};
use keyring::breaker::Breaker;
use keyring::call::RequestLimits;
use keyring::configured::{Configured, Fingerprint, ProviderFile, ProviderKind};
use keyring::provider::{Interrupt, Provider, ProviderError, ProviderErrorKind};
use keyring::refresh::Outages;
use keyring::version::VersionId;
use pgrx::pg_sys;

use crate::catalog::{self, Key, Version};
use crate::errors::Error;
use crate::events::{self, Event};
use crate::shared::failures::{self, MISSING};
use crate::shared::logins::{self, LoginEnd};
use crate::{settings, shared, statistics};

/// This backend's providers, by name.
#[derive(Default)]
pub(crate) struct Providers {
    file: ProviderFile,
    made: HashMap<String, Made>,
}

/// A provider, and the settings it was made with. It keeps what it has learned, such as a login, until
/// they change.
struct Made {
    name: String,
    configured: Configured,
    limits: RequestLimits,
    provider: Box<dyn Provider>,
    /// What tells the settings from others, in memory that sessions share.
    fingerprint: Fingerprint,
    /// The number of the login that it has, where sessions share them.
    login: u64,
    /// Whether a request has succeeded since its connections were closed last.
    has_answered: bool,
    /// This session's own breaker, where sessions share none.
    breaker: Breaker,
    /// What it did not have, by reference.
    missing: HashMap<String, (Instant, ProviderError)>,
}

impl Providers {
    /// The bytes of a version, from the provider that it came from.
    ///
    /// # Errors
    ///
    /// If the provider can't be had or hasn't got them.
    pub(crate) fn open(&mut self, key: &Key, version: &Version) -> Result<DataKey, Error> {
        self.prepare(key, version)?;
        self.open_prepared(key, version)
    }

    /// The same, where [`Providers::prepare`] has made the provider: neither settings nor catalog are read
    /// again.
    ///
    /// # Errors
    ///
    /// If the provider hasn't got them.
    pub(crate) fn open_prepared(&mut self, key: &Key, version: &Version) -> Result<DataKey, Error> {
        let made = self.made.get_mut(&version.provider);
        let made = made.ok_or(Error::Internal { what: "a provider that was prepared is gone" })?;
        made.open(key, version).map_err(|error| {
            raise_if_interrupted(&error);
            Error::Provider {
                provider: version.provider.clone(),
                key: Some(key.name.clone()),
                error,
            }
        })
    }

    /// Makes the provider of a version, so that nothing but calls of it remains to be done to open the
    /// version; and tells what its settings are known by.
    ///
    /// # Errors
    ///
    /// If there is no such provider or its settings are wrong.
    pub(crate) fn prepare(&mut self, key: &Key, version: &Version) -> Result<Fingerprint, Error> {
        let name = &version.provider;
        let failed =
            |error| Error::Provider { provider: name.clone(), key: Some(key.name.clone()), error };
        Ok(self.made(name, failed)?.fingerprint)
    }

    /// Calls the provider with this name about a key, unless it has failed so often lately that it
    /// is left alone.
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
        self.made(name, failed)?.call(call).map_err(|error| {
            raise_if_interrupted(&error);
            failed(error)
        })
    }

    /// Whether the provider should be asked for what can wait: it did not fail lately.
    pub(crate) fn is_calm(&self, name: &str) -> bool {
        self.made.get(name).is_none_or(Made::is_calm)
    }

    /// What is known of the failures of the provider with this name and settings; `None` if it wasn't asked.
    pub(crate) fn breaker(&self, name: &str, configured: Option<&Configured>) -> Option<Breaker> {
        match configured {
            Some(configured) if shared::is_there() => {
                Some(failures::breaker(configured.fingerprint()))
            }
            _ => self.made.get(name).map(Made::breaker),
        }
    }

    /// When the login that is known at the provider with this name and settings ends; `None` if there is
    /// none, or none that ends.
    pub(crate) fn login_end(&self, name: &str, configured: &Configured) -> Option<LoginEnd> {
        if shared::is_there() {
            return logins::end(configured.fingerprint());
        }
        let made = self.made.get(name).filter(|made| made.configured == *configured)?;
        let login = made.provider.login()?;
        LoginEnd::of(login.began, login.length?, login.whole)
    }

    /// Takes notice of outages that were seen while keys were fetched ahead of their expiry.
    pub(crate) fn record_outages(&mut self, outages: &Outages) {
        if let Some(made) = self.made.get_mut(&outages.provider) {
            let before = made.breaker.clone();
            made.breaker.record_outages(outages.count, &outages.error, outages.at);
            events::asked(&outages.provider, &before, &made.breaker);
        }
    }

    /// Takes notice that the provider has answered.
    pub(crate) fn record_answer(&mut self, name: &str) {
        if let Some(made) = self.made.get_mut(name) {
            let before = std::mem::take(&mut made.breaker);
            events::asked(name, &before, &made.breaker);
        }
    }

    /// A provider of its own for one purpose, which neither knows of former failures nor keeps a
    /// login.
    ///
    /// # Errors
    ///
    /// If there is no such provider or its settings are wrong.
    pub(crate) fn separate(
        &mut self,
        name: &str,
        interrupt: Box<dyn Interrupt>,
    ) -> Result<Separate, Error> {
        let failed = |error| Error::Provider { provider: name.to_owned(), key: None, error };
        let configured = self.configured(name, failed)?;
        let provider =
            configured.provider(settings::request_limits(), interrupt).map_err(failed)?;
        Ok(Separate { name: name.to_owned(), kind: configured.kind, provider })
    }

    /// What the settings or the provider file say now about the provider with this name.
    ///
    /// # Errors
    ///
    /// If they don't, or if the provider file can't be used.
    pub(crate) fn configured(
        &mut self,
        name: &str,
        failed: impl Fn(ProviderError) -> Error,
    ) -> Result<Configured, Error> {
        let mut configured = match (ProviderKind::parse(name), settings::provider_file()) {
            (Some(kind), _) => settings::configured(kind),
            (None, Some(file)) => self
                .file
                .find(&file, name)
                .map_err(failed)?
                .ok_or_else(|| Error::ProviderUnknown { name: name.to_owned() })?,
            (None, None) => return Err(Error::ProviderUnknown { name: name.to_owned() }),
        };
        if configured.kind == ProviderKind::File {
            complete_file(name, &mut configured)?;
        }
        Ok(configured)
    }

    /// Closes what connections are open: no call follows soon. What is to be found out of logins is asked for
    /// by these before.
    pub(crate) fn close_connections(&mut self) {
        for made in self.made.values_mut() {
            made.look_up_login();
            made.provider.close_connections();
        }
    }

    fn made(
        &mut self,
        name: &str,
        failed: impl Fn(ProviderError) -> Error,
    ) -> Result<&mut Made, Error> {
        let configured = self.configured(name, &failed)?;
        let limits = settings::request_limits();
        let is_current = |made: &Made| made.configured == configured && made.limits == limits;
        if !self.made.get(name).is_some_and(is_current) {
            let provider =
                configured.provider(limits, Box::new(interrupt_pending)).map_err(&failed)?;
            let made = Made {
                name: name.to_owned(),
                fingerprint: configured.fingerprint(),
                login: 0,
                has_answered: false,
                configured,
                limits,
                provider,
                breaker: Breaker::default(),
                missing: HashMap::new(),
            };
            self.made.insert(name.to_owned(), made);
        }
        self.made.get_mut(name).ok_or(Error::Internal { what: "a provider that was made is gone" })
    }
}

impl Made {
    fn open(&mut self, key: &Key, version: &Version) -> Result<DataKey, ProviderError> {
        let now = Instant::now();
        self.missing.retain(|_, (since, _)| now.saturating_duration_since(*since) < MISSING);
        if let Some((_, error)) = self.missing.get(&version.reference) {
            return Err(error.clone());
        }
        let id = version_id(key, version);
        let result = self
            .call(|provider| provider.open(&id, &version.reference, version.wrapped.as_deref()));
        note_answer(key, version, result.as_ref().err());
        if let Err(error) = &result
            && matches!(
                error.kind,
                ProviderErrorKind::KeyMissing | ProviderErrorKind::VersionMissing
            )
        {
            self.missing.insert(version.reference.clone(), (Instant::now(), error.clone()));
        }
        result
    }

    /// Calls the provider, unless its breaker is open.
    fn call<T>(
        &mut self,
        call: impl FnOnce(&mut dyn Provider) -> Result<T, ProviderError>,
    ) -> Result<T, ProviderError> {
        self.admit()?;
        let before = self.breaker();
        let name = self.name.clone();
        let result = self.with_shared_login(|provider| counted(&name, provider, call));
        self.has_answered |= result.is_ok();
        self.record(&result);
        events::asked(&self.name, &before, &self.breaker());
        if keyring::logins::take() > 0 {
            events::tell(&Event::LoginRenewed { provider: &self.name });
        }
        result
    }

    /// By the breaker of all sessions, where they share one.
    fn admit(&self) -> Result<(), ProviderError> {
        match shared::is_there() {
            true => failures::admit(self.fingerprint),
            false => self.breaker.admit(Instant::now()),
        }
    }

    /// Calls the provider with the login that sessions share, if they do and there is one, and shares the one
    /// that it has afterwards.
    fn with_shared_login<T>(&mut self, call: impl FnOnce(&mut dyn Provider) -> T) -> T {
        if !shared::is_there() {
            return call(self.provider.as_mut());
        }
        let before = match logins::get(self.fingerprint, self.login) {
            Some((number, login)) => {
                self.login = number;
                self.provider.take_login(login.clone());
                Some(login)
            }
            None => self.provider.login(),
        };
        let result = call(self.provider.as_mut());
        match self.provider.login() {
            Some(after) if Some(&after) != before.as_ref() => {
                self.login = logins::put(self.fingerprint, &after);
            }
            None if before.is_some() => logins::forget(self.fingerprint, self.login),
            _ => {}
        }
        result
    }

    /// Finds out when the login ends that the last request was made with, if there is something to be found out.
    /// Where sessions share that, one of them waits for it, once for each token, by a connection that is open and
    /// when those have their key who wait for it; a session that knows it for itself alone doesn't wait.
    fn look_up_login(&mut self) {
        if std::mem::take(&mut self.has_answered) {
            self.with_shared_login(|provider| provider.look_up_login(shared::is_there()));
        }
    }

    fn record<T>(&mut self, result: &Result<T, ProviderError>) {
        match shared::is_there() {
            true => failures::record(self.fingerprint, result),
            false => self.breaker.record(result, Instant::now()),
        }
    }

    fn breaker(&self) -> Breaker {
        match shared::is_there() {
            true => failures::breaker(self.fingerprint),
            false => self.breaker.clone(),
        }
    }

    fn is_calm(&self) -> bool {
        match shared::is_there() {
            true => failures::is_calm(self.fingerprint),
            false => self.breaker.is_calm(Instant::now()),
        }
    }
}

/// A provider that one function has for itself.
pub(crate) struct Separate {
    pub(crate) name: String,
    pub(crate) kind: ProviderKind,
    provider: Box<dyn Provider>,
}

impl Separate {
    /// Calls the provider about a key, if it is about one.
    ///
    /// # Errors
    ///
    /// What `call` returns; of a wait that was interrupted PostgreSQL's own error is raised.
    pub(crate) fn call<T>(
        &mut self,
        key: Option<&KeyName>,
        call: impl FnOnce(&mut dyn Provider) -> Result<T, ProviderError>,
    ) -> Result<T, Error> {
        let result = counted(&self.name, self.provider.as_mut(), call);
        // The logins of one that keeps none are not told of, also not with those of another.
        let _ = keyring::logins::take();
        result.map_err(|error| {
            raise_if_interrupted(&error);
            Error::Provider { provider: self.name.clone(), key: key.cloned(), error }
        })
    }

    /// Closes the connections that are open.
    pub(crate) fn close_connections(&mut self) {
        self.provider.close_connections();
    }
}

/// Calls a provider, and counts the request.
fn counted<T>(
    name: &str,
    provider: &mut dyn Provider,
    call: impl FnOnce(&mut dyn Provider) -> Result<T, ProviderError>,
) -> Result<T, ProviderError> {
    let started = Instant::now();
    let result = call(provider);
    let failure = result.as_ref().err().map(|error| error.kind);
    statistics::asked(name, started.elapsed(), failure, provider.certificates());
    result
}

/// What a keyring file's settings leave to the server: where the data directory is, and whether there
/// must be a file already.
fn complete_file(name: &str, configured: &mut Configured) -> Result<(), Error> {
    if let Some(path) = configured.settings.get_mut("path") {
        *path = settings::in_data_directory(path);
    }
    // Where versions are said to be in the file, a missing file is not to be replaced by a new one.
    let may_create = if catalog::uses_provider(name)? { "no" } else { "yes" };
    configured.settings.insert("may_create".to_owned(), may_create.to_owned());
    Ok(())
}

/// Takes notice of whether a provider has a version that it was asked for.
pub(crate) fn note_answer(key: &Key, version: &Version, error: Option<&ProviderError>) {
    let id = statistics::VersionId::new(key.name.id(), version.number, &version.check_value);
    statistics::version_asked(id, error.map(|error| error.kind));
}

/// Raises PostgreSQL's own error, which says who or what ended the statement, if that is why a provider's
/// call has no result.
fn raise_if_interrupted(error: &ProviderError) {
    if error.kind == ProviderErrorKind::Interrupted {
        pgrx::check_for_interrupts!();
    }
}

/// What names a version in full.
pub(crate) fn version_id<'a>(key: &'a Key, version: &Version) -> VersionId<'a> {
    VersionId { keyspace: version.keyspace, name: &key.name, version: version.number }
}

/// Whether a cancel, a time-out or a termination wants this backend's statement to end.
pub(crate) fn interrupt_pending() -> bool {
    // SAFETY: flags of this backend's that its signal handlers set.
    unsafe { pg_sys::QueryCancelPending != 0 || pg_sys::ProcDiePending != 0 }
}
