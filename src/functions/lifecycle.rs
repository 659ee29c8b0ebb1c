//! The life of a key: made or adopted, rotated, activated, disabled, enabled.
//!
//! Each function asks the provider first, without a lock, and then takes the lock on
//! `encryption.key` that makes those who change keys wait for each other, looks whether the key is
//! still as it was, and writes.

use std::rc::Rc;

use envelope::{KeyName, KeyVersion};
use keyring::configured::ProviderKind;
use keyring::provider::{FoundVersion, Retention};
use keyring::version::{CheckValue, Keyspace, VersionId};
use pgrx::pg_sys;

use super::{key_name, retention};
use crate::catalog::key_info::KeyInfo;
use crate::catalog::log::Event;
use crate::catalog::write::{NewVersion, Writer, as_owner, refuse_if_read_only};
use crate::catalog::{self, DATABASE_KEY, Key, State, Version};
use crate::errors::Error;
use crate::fmgr::{Call, sql_function};
use crate::{access, keys, settings, statistics};

sql_function! {
    /// `enc_create_key(name text, if_not_exists boolean, reason text, purpose text, labels text[],
    /// rotation_period interval, owner name) RETURNS integer`
    fn enc_create_key(call) {
        refuse_if_read_only(c"enc_create_key()");
        call.refuse_nulls_in_first(2)?;
        let reason = call.optional_text(2)?;
        let name = key_name(&call.text(0)?)?;
        if name.as_str() == DATABASE_KEY {
            return Err(Error::KeyNameReserved { name });
        }
        let info = KeyInfo::of_arguments(call, 3)?;
        if let Some(key) = keys::find(name.id())? {
            return existing(&name, &key, call.boolean(1));
        }
        ensure_database_key()?;
        let version = match create(&name, &info, reason.as_deref()) {
            // Another session makes it at the same moment, and was faster.
            Err(Error::KeyChangedMeanwhile { .. }) if call.boolean(1) => {
                return existing(&name, &*keys::named(&name)?, true);
            }
            result => result?,
        };
        if settings::provider().is_some_and(|provider| provider == ProviderKind::File.name()) {
            pgrx::warning!(
                "provider \"file\" is for trying out: whoever can read the server's files has the keys"
            );
        }
        Ok(integer(version))
    }
}

pub(super) fn configured_provider() -> Result<String, Error> {
    settings::provider().ok_or(Error::ProviderNotConfigured)
}

fn existing(name: &KeyName, key: &Key, if_not_exists: bool) -> Result<pg_sys::Datum, Error> {
    if key.name != *name {
        return Err(Error::KeyIdCollision { name: name.clone(), other: key.name.to_string() });
    }
    if !if_not_exists {
        return Err(Error::KeyExists { name: name.clone() });
    }
    pgrx::notice!("key \"{name}\" already exists, skipping");
    key.active_version()
        .map(|version| integer(version.number))
        .ok_or_else(|| Error::KeyWithoutActiveVersion { key: name.clone() })
}

/// The database key is made together with the first key.
fn ensure_database_key() -> Result<(), Error> {
    let name = key_name(DATABASE_KEY)?;
    if keys::find(name.id())?.is_some() {
        return Ok(());
    }
    match create(&name, &KeyInfo::default(), None) {
        // Another session makes its first key at the same moment, and was faster.
        Err(Error::KeyChangedMeanwhile { .. }) => Ok(()),
        result => result.map(|_| ()),
    }
}

/// Makes a key, or adopts all versions of it that a direct provider has; the newest is active.
fn create(name: &KeyName, info: &KeyInfo, reason: Option<&str>) -> Result<KeyVersion, Error> {
    let provider = configured_provider()?;
    let keyspace = catalog::read_keyspace()?;
    let Discovered { mut versions, retention } = discover(&provider, name, keyspace, None)?;
    if versions.is_empty() {
        match make(&provider, name, keyspace, KeyVersion::FIRST, retention) {
            Ok(version) => versions.push(version),
            // Somebody else made it there meanwhile: so it is to be adopted.
            Err(error) if error.is_conflict() => {
                versions = discover(&provider, name, keyspace, None)?.versions;
                if versions.is_empty() {
                    return Err(error);
                }
            }
            Err(error) => return Err(error),
        }
    } else {
        let count = versions.len();
        pgrx::notice!("adopted {count} version(s) of key \"{name}\" from provider \"{provider}\"");
    }
    let newest = versions.last().map_or(KeyVersion::FIRST, |version| version.number);

    as_owner(|catalog| {
        catalog.lock()?;
        if let Some(key) = keys::find(name.id())? {
            // Two names with one id can't both exist; the same name was faster.
            return Err(match key.name == *name {
                true => Error::KeyChangedMeanwhile { key: name.clone() },
                false => Error::KeyIdCollision { name: name.clone(), other: key.name.to_string() },
            });
        }
        catalog.insert_key(name)?;
        catalog.set_key_info(name, info)?;
        for version in &versions {
            let state = if version.number == newest { State::Active } else { State::Deprecated };
            catalog.insert_version(name, version, state)?;
        }
        if name.as_str() == DATABASE_KEY {
            catalog.pin_digest_version(newest)?;
        }
        let event = Event::new("create").key(name).versions(None, Some(newest)).reason(reason);
        let detail = info.describe();
        catalog.log(&if detail.is_empty() { event } else { event.detail(&detail) })
    })?;
    Ok(newest)
}

sql_function! {
    /// `enc_set_key_info(name text, purpose text, labels text[], rotation_period interval, owner name,
    /// reason text) RETURNS void`
    fn enc_set_key_info(call) {
        refuse_if_read_only(c"enc_set_key_info()");
        call.refuse_nulls_in_first(1)?;
        let reason = call.optional_text(5)?;
        let key = owned_key(call)?;
        let info = KeyInfo::of_arguments(call, 1)?;
        let detail = info.describe();
        if detail.is_empty() {
            return Ok(void());
        }
        let event = Event::new("set-key-info").detail(&detail);
        change(&key, event.reason(reason.as_deref()), |catalog| {
            catalog.set_key_info(&key.name, &info)
        })
    }
}

sql_function! {
    /// `enc_rotate_key(name text, activate boolean, reason text) RETURNS integer`
    fn enc_rotate_key(call) {
        refuse_if_read_only(c"enc_rotate_key()");
        call.refuse_nulls_in_first(2)?;
        let key = owned_key(call)?;
        Ok(integer(rotate(&key, call.boolean(1), call.optional_text(2)?.as_deref())?))
    }
}

/// Adopts the versions that a direct provider has beyond those that the catalog knows, or makes
/// one, unless the provider would drop an old one for it.
pub(crate) fn rotate(key: &Key, activate: bool, reason: Option<&str>) -> Result<KeyVersion, Error> {
    let provider = configured_provider()?;
    let keyspace = catalog::read_keyspace()?;
    let discovered = discover(&provider, &key.name, keyspace, Some(key))?;
    let Discovered { mut versions, retention } = discovered;
    if let Some(retention) = &retention {
        retention::warn_of_dropped(key, &provider, retention)?;
    }
    if versions.is_empty() {
        if let Some(retention) = &retention {
            retention::refuse_loss(key, &provider, retention)?;
        }
        let next = next_number(key)?;
        versions.push(make(&provider, &key.name, keyspace, next, retention)?);
    }
    let newest = versions
        .last()
        .map(|version| version.number)
        .ok_or(Error::Internal { what: "a rotation without a new version" })?;

    as_owner(|catalog| {
        catalog.lock()?;
        refuse_if_changed(key)?;
        for version in &versions {
            // Those between were made at the provider and may have been used by others.
            let state = if version.number == newest { State::Pending } else { State::Deprecated };
            catalog.insert_version(&key.name, version, state)?;
        }
        let former = key.active_version().map(|version| version.number);
        let rotate = Event::new("rotate").key(&key.name).reason(reason);
        if activate {
            catalog.log(&rotate.versions(former, Some(newest)))?;
            catalog.activate(&key.name, newest)
        } else {
            catalog.log(&rotate.versions(former, Some(newest)).detail("not yet active"))
        }
    })?;
    Ok(newest)
}

/// What a provider has of a key.
pub(super) struct Discovered {
    pub(super) versions: Vec<NewVersion>,
    /// How many versions of it the provider keeps.
    retention: Option<Retention>,
}

/// The versions of a key that a direct provider has and the catalog doesn't: all, if the key is
/// new; otherwise those beyond the ones that are known.
pub(super) fn discover(
    provider: &str,
    name: &KeyName,
    keyspace: Keyspace,
    known: Option<&Key>,
) -> Result<Discovered, Error> {
    let (found, retention) = keys::with_providers(|providers| {
        providers.call(provider, name, |provider| {
            Ok((provider.discover(name, &[])?, provider.retention(name)?))
        })
    })?;
    if let Some(retention) = &retention {
        statistics::retention_seen(provider, name.id(), retention);
    }
    let is_known = |reference: &str| {
        known.is_some_and(|key| {
            key.versions
                .iter()
                .any(|version| version.provider == provider && version.reference == reference)
        })
    };
    let newer =
        found.iter().rposition(|version| is_known(&version.reference)).map_or(0, |at| at + 1);
    let mut found: Vec<_> = found.into_iter().skip(newer).collect();

    // They keep the numbers that they have at the provider, which others who read the same keys
    // give them too, unless these numbers are taken here: as when the key came from another
    // provider. Then the newest alone gets the next number.
    let next = known.map_or(Ok(KeyVersion::FIRST), next_number)?;
    if found.first().is_some_and(|version| version.number < next) {
        found.drain(..found.len() - 1);
        found.iter_mut().for_each(|version| version.number = next);
    }
    let adopted = |FoundVersion { number, reference, key }| NewVersion {
        number,
        provider: provider.to_owned(),
        reference,
        wrapped: None,
        check_value: CheckValue::of(&key, &VersionId { keyspace, name, version: number }),
        keyspace,
    };
    Ok(Discovered { versions: found.into_iter().map(adopted).collect(), retention })
}

/// Has the provider make a version, under the number that it has there unless that was used.
fn make(
    provider: &str,
    name: &KeyName,
    keyspace: Keyspace,
    next: KeyVersion,
    retention: Option<Retention>,
) -> Result<NewVersion, Error> {
    let id = VersionId { keyspace, name, version: next };
    let made = keys::with_providers(|providers| {
        providers.call(provider, name, |provider| provider.make(&id))
    })?;
    if let (Some(retention), Some(number)) = (retention, made.number) {
        if let Some(warning) = &retention.warning {
            pgrx::warning!("provider \"{provider}\", key \"{name}\": {warning}");
        }
        statistics::retention_seen(provider, name.id(), &retention.after(number.get()));
    }
    let number = made.number.map_or(next, |number| number.max(next));
    Ok(NewVersion {
        number,
        provider: provider.to_owned(),
        reference: made.reference,
        wrapped: made.wrapped,
        check_value: CheckValue::of(&made.key, &VersionId { version: number, ..id }),
        keyspace,
    })
}

fn next_number(key: &Key) -> Result<KeyVersion, Error> {
    match key.newest_number() {
        None => Ok(KeyVersion::FIRST),
        Some(newest) => {
            newest.next().ok_or_else(|| Error::KeyVersionsExhausted { key: key.name.clone() })
        }
    }
}

sql_function! {
    /// `enc_activate_key_version(name text, version integer, reason text) RETURNS void`
    fn enc_activate_key_version(call) {
        refuse_if_read_only(c"enc_activate_key_version()");
        call.refuse_nulls_in_first(2)?;
        let reason = call.optional_text(2)?;
        let key = owned_key(call)?;
        let version = version_of(&key, call.int4(1))?;
        match version.state {
            State::Active => return Ok(void()),
            State::Pending | State::Deprecated => (),
            State::Disabled => return Err(disabled(&key, version)),
            State::Destroyed => return Err(destroyed(&key, version)),
        }
        // Who activates a version that can't be had here stops every writer.
        keys::verify(&key, version)?;
        let former = key.active_version().map(|version| version.number);
        let event = Event::new("activate").versions(former, Some(version.number));
        change(&key, event.reason(reason.as_deref()), |catalog| {
            catalog.activate(&key.name, version.number)
        })
    }
}

sql_function! {
    /// `enc_disable_key_version(name text, version integer, force boolean, reason text) RETURNS void`
    fn enc_disable_key_version(call) {
        refuse_if_read_only(c"enc_disable_key_version()");
        call.refuse_nulls_in_first(3)?;
        let reason = call.optional_text(3)?;
        let key = owned_key(call)?;
        let version = version_of(&key, call.int4(1))?;
        match version.state {
            State::Disabled => return Ok(void()),
            State::Destroyed => return Err(destroyed(&key, version)),
            State::Active if !call.boolean(2) => {
                return Err(Error::KeyVersionActive {
                    key: key.name.clone(),
                    version: version.number,
                });
            }
            State::Active | State::Pending | State::Deprecated => (),
        }
        if !call.boolean(2) && keys::makes_digests(&key, version.number)? {
            return Err(Error::DigestVersionInUse { version: version.number });
        }
        let event = Event::new("disable").versions(Some(version.number), None);
        change(&key, event.reason(reason.as_deref()), |catalog| {
            catalog.disable(&key.name, version.number)
        })
    }
}

sql_function! {
    /// `enc_enable_key_version(name text, version integer, reason text) RETURNS void`
    fn enc_enable_key_version(call) {
        refuse_if_read_only(c"enc_enable_key_version()");
        call.refuse_nulls_in_first(2)?;
        let reason = call.optional_text(2)?;
        let key = owned_key(call)?;
        let version = version_of(&key, call.int4(1))?;
        match version.state {
            State::Active | State::Pending | State::Deprecated => return Ok(void()),
            State::Destroyed => return Err(destroyed(&key, version)),
            State::Disabled => (),
        }
        keys::verify(&key, version)?;
        let event = Event::new("enable").versions(None, Some(version.number));
        change(&key, event.reason(reason.as_deref()), |catalog| {
            catalog.enable(&key.name, version.number)
        })
    }
}

/// Writes a change of one version of a key, and its entry in the log.
fn change(
    key: &Key,
    event: Event<'_>,
    write: impl FnOnce(&mut Writer<'_, '_>) -> Result<(), Error>,
) -> Result<pg_sys::Datum, Error> {
    as_owner(|catalog| {
        catalog.lock()?;
        refuse_if_changed(key)?;
        write(catalog)?;
        catalog.log(&event.key(&key.name))
    })?;
    Ok(void())
}

/// Another session may have changed the key while the provider was being asked. With the lock on
/// the catalog held, what is read now stays true until this transaction ends.
pub(crate) fn refuse_if_changed(key: &Key) -> Result<(), Error> {
    let states = |key: &Key| {
        key.versions.iter().map(|version| (version.number, version.state)).collect::<Vec<_>>()
    };
    let now = keys::named(&key.name)?;
    access::check_owner(&now)?;
    if states(&now) == states(key) {
        return Ok(());
    }
    Err(Error::KeyChangedMeanwhile { key: key.name.clone() })
}

/// The key that a function's first argument names, if the current user owns it.
pub(crate) fn owned_key(call: &Call) -> Result<Rc<Key>, Error> {
    let key = keys::named(&key_name(&call.text(0)?)?)?;
    access::check_owner(&key)?;
    Ok(key)
}

pub(crate) fn version_of(key: &Key, number: i32) -> Result<&Version, Error> {
    u32::try_from(number)
        .ok()
        .and_then(KeyVersion::new)
        .and_then(|number| key.version(number))
        .ok_or_else(|| Error::KeyVersionUnknown {
            key: key.name.to_string(),
            version: number.into(),
        })
}

fn disabled(key: &Key, version: &Version) -> Error {
    Error::KeyVersionDisabled { key: key.name.clone(), version: version.number }
}

fn destroyed(key: &Key, version: &Version) -> Error {
    Error::KeyVersionDestroyed { key: key.name.clone(), version: version.number }
}

fn integer(version: KeyVersion) -> pg_sys::Datum {
    pg_sys::Datum::from(version.get() as i32)
}

fn void() -> pg_sys::Datum {
    pg_sys::Datum::from(0usize)
}
