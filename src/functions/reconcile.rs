//! After a restore: the catalog compared with the providers, which were not restored with it.

use std::rc::Rc;

use envelope::KeyVersion;
use pgrx::pg_sys;

use super::check_key::Opener;
use super::key_name;
use super::lifecycle::{configured_provider, discover, refuse_if_changed};
use super::providers::{all_keys, usable};
use super::rows::{Row, return_rows};
use crate::catalog::log::Event;
use crate::catalog::write::{NewVersion, as_owner, refuse_if_read_only};
use crate::catalog::{self, Key, State, Version};
use crate::errors::Error;
use crate::fmgr::sql_function;
use crate::varlena::text_datum;
use crate::{access, keys};

sql_function! {
    /// `enc_reconcile(name text, adopt boolean, reason text) RETURNS SETOF record`: a row for each
    /// thing that was found.
    fn enc_reconcile(call) {
        refuse_if_read_only(c"enc_reconcile()");
        let name = call.optional_text(0)?;
        let adopts = call.nullable(1).is_some() && call.boolean(1);
        let reason = call.optional_text(2)?;
        let keys = match &name {
            Some(name) => vec![keys::named(&key_name(name)?)?],
            None => all_keys()?,
        };
        keys.iter().try_for_each(|key| access::check_owner(key))?;
        keys::omit_restored_warning()?;

        let mut compared = Compared { opener: Opener::default(), findings: Vec::new() };
        for key in &keys {
            compared.key(key, adopts, reason.as_deref())?;
        }
        let Compared { mut opener, findings } = compared;
        opener.close();
        conclude(name.as_deref(), &keys, &findings, reason.as_deref())?;
        let rows = findings.iter().map(Finding::row).collect::<Result<Vec<_>, _>>()?;
        return_rows(call, &rows)
    }
}

/// Notes that the catalog was compared, unless a provider kept part of it from being.
fn conclude(
    name: Option<&str>,
    keys: &[Rc<Key>],
    findings: &[Finding],
    reason: Option<&str>,
) -> Result<(), Error> {
    let unanswered = findings.iter().any(|finding| finding.what == What::Unavailable);
    if unanswered {
        pgrx::warning!("not everything could be compared: repeat this when the providers answer");
    }
    let differences = findings.iter().filter(|finding| finding.what.is_difference()).count();
    let detail = format!("{} keys compared, {differences} differences", keys.len());
    as_owner(|catalog| {
        catalog.lock()?;
        if name.is_none() && !unanswered {
            catalog.set_reconciled()?;
        }
        let event = Event::new("reconcile").detail(&detail).reason(reason);
        match (name, keys) {
            (Some(_), [key]) => catalog.log(&event.key(&key.name)),
            _ => catalog.log(&event),
        }
    })
}

/// What can be found.
#[derive(Clone, Copy, PartialEq, Eq)]
enum What {
    Agrees,
    NewerAtProvider,
    Adopted,
    Unavailable,
    WrongKey,
    NotNewestActive,
    NewerUnknowable,
    GrantsUnknowable,
}

impl What {
    /// As the rows have it.
    fn name(self) -> &'static str {
        match self {
            Self::Agrees => "agrees",
            Self::NewerAtProvider => "newer at provider",
            Self::Adopted => "adopted",
            Self::Unavailable => "unavailable",
            Self::WrongKey => "wrong key",
            Self::NotNewestActive => "not the newest",
            Self::NewerUnknowable => "newer versions unknown",
            Self::GrantsUnknowable => "revocations unknown",
        }
    }

    fn is_difference(self) -> bool {
        matches!(self, Self::NewerAtProvider | Self::Adopted | Self::Unavailable | Self::WrongKey)
    }
}

struct Finding {
    key: String,
    version: Option<KeyVersion>,
    what: What,
    detail: String,
    hint: Option<String>,
}

impl Finding {
    fn row(&self) -> Result<Row, Error> {
        let text = |text: &str| text_datum(text.as_bytes()).map(Some);
        Ok(vec![
            text(&self.key)?,
            self.version.map(|version| pg_sys::Datum::from(version.get() as i32)),
            text(self.what.name())?,
            text(&self.detail)?,
            self.hint.as_deref().map(text).transpose()?.flatten(),
        ])
    }
}

/// A comparison that is under way.
struct Compared {
    opener: Opener,
    findings: Vec<Finding>,
}

impl Compared {
    fn add(
        &mut self,
        key: &Key,
        version: Option<KeyVersion>,
        what: What,
        detail: impl Into<String>,
        hint: Option<&str>,
    ) {
        let (key, hint) = (key.name.to_string(), hint.map(str::to_owned));
        self.findings.push(Finding { key, version, what, detail: detail.into(), hint });
    }

    fn key(&mut self, key: &Key, adopts: bool, reason: Option<&str>) -> Result<(), Error> {
        let former = self.findings.len();
        self.known_versions(key);
        self.newer_versions(key, adopts, reason)?;
        if !self.findings[former..].iter().any(|finding| finding.what.is_difference()) {
            let detail =
                "every version in the catalog can be had, and the provider has no newer one";
            let wrapped = "every version in the catalog can be had";
            let detail = if is_wrapped(key) { wrapped } else { detail };
            self.add(key, None, What::Agrees, detail, None);
        }
        self.active_version(key);
        self.what_cannot_be_known(key);
        Ok(())
    }

    /// Whether each version that the catalog has can be had, and is the right key.
    fn known_versions(&mut self, key: &Key) {
        for version in usable(key) {
            let Err(failure) = self.opener.open(key, version) else { continue };
            let what = if failure.is_wrong_key { What::WrongKey } else { What::Unavailable };
            let (message, hint) = (failure.message, failure.hint);
            self.add(key, Some(version.number), what, message, hint.as_deref());
        }
    }

    /// What the provider has beyond that: the provider of the newest version, or the one that is
    /// configured, if keys have moved to it since.
    fn newer_versions(
        &mut self,
        key: &Key,
        adopts: bool,
        reason: Option<&str>,
    ) -> Result<(), Error> {
        let mut providers: Vec<String> =
            key.versions.last().map(|version| version.provider.clone()).into_iter().collect();
        if let Ok(configured) = configured_provider()
            && !providers.contains(&configured)
        {
            providers.push(configured);
        }
        let keyspace = catalog::read_keyspace()?;
        for provider in providers {
            let newer = match discover(&provider, &key.name, keyspace, Some(key)) {
                Ok(discovered) => discovered.versions,
                Err(error) => {
                    let (message, hint) = (error.message(), error.hint());
                    self.add(key, None, What::Unavailable, message, hint.as_deref());
                    continue;
                }
            };
            if newer.is_empty() {
                continue;
            }
            if adopts {
                adopt(key, &newer, reason)?;
            }
            for version in &newer {
                let detail = format!("provider {provider:?} has it as {:?}", version.reference);
                let (what, hint) = match adopts {
                    true => (What::Adopted, None),
                    false => (
                        What::NewerAtProvider,
                        Some(
                            "Call enc_reconcile(name, adopt => true) to adopt it and to encrypt \
                              under the newest, as the database did that was backed up.",
                        ),
                    ),
                };
                self.add(key, Some(version.number), what, detail, hint);
            }
            return Ok(());
        }
        Ok(())
    }

    fn active_version(&mut self, key: &Key) {
        let newer = |version: &&Version| version.state != State::Destroyed;
        let newest = key.versions.iter().rev().find(newer);
        match (key.active_version(), newest) {
            (Some(active), Some(newest)) if active.number < newest.number => {
                let detail = format!("version {} is {}", newest.number, newest.state.name());
                self.add(
                    key,
                    Some(active.number),
                    What::NotNewestActive,
                    detail,
                    Some(
                        "If it was active before the restore, make it so again with \
                     enc_activate_key_version(name, version).",
                    ),
                );
            }
            (None, _) => {
                self.add(
                    key,
                    None,
                    What::NotNewestActive,
                    "no version is active",
                    Some("Activate one with enc_activate_key_version(name, version)."),
                );
            }
            _ => (),
        }
    }

    fn what_cannot_be_known(&mut self, key: &Key) {
        if is_wrapped(key) {
            self.add(
                key,
                None,
                What::NewerUnknowable,
                "the provider keeps no versions: those made after the backup are in newer catalogs only",
                Some("Bring them in from a newer database or backup, with enc_export_keys() there \
                      and enc_import_keys() here."),
            );
        }
        if !key.grants.is_empty() {
            let count = key.grants.len();
            self.add(
                key,
                None,
                What::GrantsUnknowable,
                format!("{count} grants are in force: those revoked after the backup are back"),
                Some("Compare enc_key_grants with the server log, or with an exported lifecycle log, \
                      and revoke them again."),
            );
        }
    }
}

/// Whether the provider of the key's newest version keeps no keys, but wraps them for the catalog.
fn is_wrapped(key: &Key) -> bool {
    key.versions.last().is_some_and(|version| version.wrapped.is_some())
}

/// Makes versions known that the provider has, and the newest of them active: the catalog is told what
/// it had been told before.
fn adopt(key: &Key, newer: &[NewVersion], reason: Option<&str>) -> Result<(), Error> {
    let Some(newest) = newer.last().map(|version| version.number) else { return Ok(()) };
    as_owner(|catalog| {
        catalog.lock()?;
        refuse_if_changed(key)?;
        for version in newer {
            let state = if version.number == newest { State::Pending } else { State::Deprecated };
            catalog.insert_version(&key.name, version, state)?;
        }
        let former = key.active_version().map(|version| version.number);
        let event = Event::new("adopt").key(&key.name).versions(former, Some(newest));
        catalog.log(&event.reason(reason))?;
        catalog.activate(&key.name, newest)
    })
}
