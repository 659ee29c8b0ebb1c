//! What administrators do with providers: see whether one works, and have it wrap keys again.

use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Instant;

use envelope::KeyVersion;
use keyring::provider::{Finding, ProviderError, ProviderErrorKind};
use keyring::version::VersionId;
use pgrx::{IntoDatum, pg_sys};

use super::lifecycle::{configured_provider, owned_key, refuse_if_changed};
use super::retention;
use super::rows::{Row, return_rows};
use crate::catalog::log::Event;
use crate::catalog::write::{as_owner, refuse_if_read_only};
use crate::catalog::{self, DATABASE_KEY, Key, State, Version};
use crate::errors::Error;
use crate::fmgr::sql_function;
use crate::keys;
use crate::providers::{Separate, interrupt_pending, note_answer, version_id};
use crate::varlena::text_datum;

/// The key that a provider's check names: no key has the name, so nothing is at stake.
const PROBE: &str = "encryption_ext.check";

sql_function! {
    /// `enc_check_provider(provider text) RETURNS TABLE (provider text, what text, ok boolean,
    /// detail text, hint text, milliseconds double precision)`
    fn enc_check_provider(call) {
        let names = match call.nullable(0) {
            Some(_) => BTreeSet::from([call.text(0)?]),
            None => providers_in_use()?,
        };
        let mut rows = Vec::new();
        for name in &names {
            for report in check(name)? {
                rows.push(report.row(name)?);
            }
        }
        return_rows(call, &rows)
    }
}

/// The provider of new versions, and those of the versions that there are.
pub(super) fn providers_in_use() -> Result<BTreeSet<String>, Error> {
    let mut names = BTreeSet::new();
    for key in all_keys()? {
        names.extend(usable(&key).map(|version| version.provider.clone()));
    }
    match configured_provider() {
        Ok(name) => drop(names.insert(name)),
        Err(error) if names.is_empty() => return Err(error),
        Err(_) => {}
    }
    Ok(names)
}

pub(super) fn all_keys() -> Result<Vec<Rc<Key>>, Error> {
    let ids = catalog::read_key_ids()?;
    let keys = ids.into_iter().map(keys::find).collect::<Result<Vec<_>, _>>()?;
    Ok(keys.into_iter().flatten().collect())
}

pub(super) fn usable(key: &Key) -> impl Iterator<Item = &Version> {
    key.versions.iter().filter(|version| version.state != State::Destroyed)
}

/// One thing that was tried.
struct Report {
    what: String,
    result: Result<Finding, Error>,
    milliseconds: f64,
}

impl Report {
    fn row(self, provider: &str) -> Result<Row, Error> {
        let text = |text: &str| text_datum(text.as_bytes()).map(Some);
        let (ok, detail, hint) = match &self.result {
            Ok(finding) => (true, finding.detail.clone(), finding.hint.clone()),
            Err(error) => (false, error.message(), error.hint()),
        };
        Ok(vec![
            text(provider)?,
            text(&self.what)?,
            Some(pg_sys::Datum::from(ok)),
            text(&detail)?,
            hint.as_deref().map(text).transpose()?.flatten(),
            self.milliseconds.into_datum(),
        ])
    }
}

/// Tries everything that a provider is needed for: its settings, what it checks of itself, and every
/// version that came from it, or else what it has of the first key that will. Former failures are forgotten for that, and none of it is remembered.
fn check(name: &str) -> Result<Vec<Report>, Error> {
    let mut reports = Vec::new();
    let started = Instant::now();
    let separate =
        keys::with_providers(|providers| providers.separate(name, Box::new(interrupt_pending)));
    let mut provider = match separate {
        Ok(provider) => {
            let good = Finding::good("settings", "they can be used");
            reports.push(report("settings", started, Ok(good)));
            provider
        }
        Err(error) => {
            reports.push(report("settings", started, Err(error)));
            return Ok(reports);
        }
    };

    let probe = super::key_name(PROBE)?;
    let probe =
        VersionId { keyspace: catalog::read_keyspace()?, name: &probe, version: KeyVersion::FIRST };
    let started = Instant::now();
    match provider.call(None, |provider| provider.check(&probe)) {
        Ok(findings) => {
            let count = findings.len().max(1);
            for finding in findings {
                let mut report = report(finding.what, started, Ok(finding));
                // They were tried in one go.
                report.milliseconds /= count as f64;
                reports.push(report);
            }
        }
        Err(error) => reports.push(report("round trip", started, Err(error))),
    }
    let keys = all_keys()?;
    let of_provider = |version: &&Version| version.provider == name;
    if !keys.iter().flat_map(|key| usable(key)).any(|version| of_provider(&version)) {
        reports.extend(try_database_key(&mut provider)?);
    }
    for key in keys {
        for version in usable(&key).filter(of_provider) {
            let started = Instant::now();
            let what = format!("version {} of key \"{}\"", version.number, key.name);
            let result = verify(&mut provider, &key, version).map(|()| {
                let detail = format!("it is the right key ({})", version.state.name());
                Finding::good("version", detail)
            });
            let is_outage = result.as_ref().is_err_and(Error::is_outage);
            reports.push(report(what, started, result));
            if is_outage {
                // The others would fail in the same way, each after its time-out.
                provider.close_connections();
                return Ok(reports);
            }
        }
        if usable(&key).any(|version| of_provider(&version)) {
            retention::look(&mut provider, &key);
        }
    }
    provider.close_connections();
    Ok(reports)
}

/// Reads the versions of the database key that there are to be adopted, before any version of any key
/// came from the provider. Of one that wraps keys there are none.
fn try_database_key(provider: &mut Separate) -> Result<Option<Report>, Error> {
    let key = super::key_name(DATABASE_KEY)?;
    let started = Instant::now();
    let result = match provider.call(Some(&key), |provider| provider.discover(&key, &[])) {
        Ok(found) if found.is_empty() => return Ok(None),
        Ok(found) => {
            let numbers: Vec<_> = found.iter().map(|version| version.number.to_string()).collect();
            let detail = format!("it can be read, in version {}", numbers.join(", "));
            Ok(Finding::good("database key", detail))
        }
        Err(error) => Err(error),
    };
    Ok(Some(report(format!("key \"{key}\""), started, result)))
}

/// Has a provider open a version, and sees that it is the right key.
pub(super) fn verify(provider: &mut Separate, key: &Key, version: &Version) -> Result<(), Error> {
    let data_key = provider.call(Some(&key.name), |provider| {
        let id = version_id(key, version);
        let result = provider.open(&id, &version.reference, version.wrapped.as_deref());
        note_answer(key, version, result.as_ref().err());
        result
    })?;
    keys::verify_check_value(key, version, &data_key)
}

fn report(what: impl Into<String>, started: Instant, result: Result<Finding, Error>) -> Report {
    let milliseconds = started.elapsed().as_secs_f64() * 1000.0;
    Report { what: what.into(), result, milliseconds }
}

sql_function! {
    /// `enc_rewrap_key(name text, reason text) RETURNS integer`: the number of versions that were wrapped again.
    fn enc_rewrap_key(call) {
        refuse_if_read_only(c"enc_rewrap_key()");
        call.refuse_nulls_in_first(1)?;
        let reason = call.optional_text(1)?;
        let key = owned_key(call)?;
        let mut wrapped = Vec::new();
        for version in usable(&key).filter(|version| version.wrapped.is_some()) {
            wrapped.push((version.number, wrap_again(&key, version)?));
        }
        let count = i32::try_from(wrapped.len()).unwrap_or(i32::MAX);
        if count == 0 {
            pgrx::notice!("key \"{}\" has no version that a provider has wrapped", key.name);
            return Ok(pg_sys::Datum::from(0usize));
        }
        as_owner(|catalog| {
            catalog.lock()?;
            refuse_if_changed(&key)?;
            for (number, wrapped) in wrapped {
                catalog.rewrap(&key.name, number, wrapped)?;
                let event = Event::new("rewrap").key(&key.name).versions(Some(number), Some(number));
                catalog.log(&event.reason(reason.as_deref()))?;
            }
            Ok(())
        })?;
        Ok(pg_sys::Datum::from(count))
    }
}

/// The version's key, wrapped under what its provider's settings name now. It is opened and compared
/// before the catalog lets go of the old.
fn wrap_again(key: &Key, version: &Version) -> Result<keyring::provider::WrappedKey, Error> {
    let id = version_id(key, version);
    let (again, opened) = keys::with_providers(|providers| {
        providers.call(&version.provider, &key.name, |provider| {
            let again = provider
                .rewrap(&id, &version.reference, version.wrapped.as_deref())?
                .ok_or_else(|| {
                    ProviderError::new(
                        ProviderErrorKind::AnswerInvalid,
                        "the provider wraps no keys, and the catalog has a wrapped one",
                    )
                })?;
            let opened = provider.open(&id, &again.reference, Some(&again.wrapped))?;
            Ok((again, opened))
        })
    })?;
    keys::verify_check_value(key, version, &opened)?;
    Ok(again)
}
