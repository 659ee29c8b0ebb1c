//! Whether this server can open the versions of keys: asked on every node before a version that was
//! made is made active.

use std::collections::{BTreeSet, HashMap};
use std::rc::Rc;
use std::time::Instant;

use pgrx::{IntoDatum, pg_sys};

use super::key_name;
use super::providers::{all_keys, usable, verify};
use super::retention;
use super::rows::{Row, return_rows};
use crate::catalog::{Key, Version};
use crate::errors::Error;
use crate::fmgr::sql_function;
use crate::providers::{Separate, interrupt_pending};
use crate::varlena::text_datum;
use crate::{access, keys};

sql_function! {
    /// `enc_check_key(name text) RETURNS SETOF record`: a row for each version that isn't destroyed.
    fn enc_check_key(call) {
        let keys = match call.optional_text(0)? {
            Some(name) => {
                let key = keys::named(&key_name(&name)?)?;
                access::check_may_inspect(&key)?;
                vec![key]
            }
            None => all_keys()?
                .into_iter()
                .filter(|key| access::check_may_inspect(key).is_ok())
                .collect::<Vec<Rc<Key>>>(),
        };
        let mut opener = Opener::default();
        let mut rows = Vec::new();
        for key in &keys {
            for version in usable(key) {
                let started = Instant::now();
                let result = opener.open(key, version);
                rows.push(row(key, version, started, result)?);
            }
            opener.look_at_retention(key);
        }
        opener.close();
        return_rows(call, &rows)
    }
}

/// Providers of this check's own: what this session remembers of failures is left aside, and one that
/// is out of reach is asked once.
#[derive(Default)]
pub(super) struct Opener(HashMap<String, Result<Separate, Failure>>);

/// What is said of the other versions of a provider that failed.
#[derive(Clone)]
pub(super) struct Failure {
    pub(super) message: String,
    pub(super) hint: Option<String>,
    /// Whether the provider returned another key than the version's.
    pub(super) is_wrong_key: bool,
}

impl From<&Error> for Failure {
    fn from(error: &Error) -> Self {
        let is_wrong_key = matches!(error, Error::KeyCheckValueWrong { .. });
        Self { message: error.message(), hint: error.hint(), is_wrong_key }
    }
}

impl Opener {
    /// Whether a version can be had, and is the right key.
    pub(super) fn open(&mut self, key: &Key, version: &Version) -> Result<(), Failure> {
        let name = &version.provider;
        let provider = self.0.entry(name.clone()).or_insert_with(|| {
            keys::with_providers(|providers| providers.separate(name, Box::new(interrupt_pending)))
                .map_err(|error| Failure::from(&error))
        });
        let result = match provider {
            Ok(provider) => verify(provider, key, version),
            Err(failure) => return Err(failure.clone()),
        };
        let Err(error) = result else { return Ok(()) };
        let failure = Failure::from(&error);
        if error.is_outage() {
            // The others would fail in the same way, each after its time-out.
            *provider = Err(failure.clone());
        }
        Err(failure)
    }

    /// Takes notice of how many of a key's versions its providers keep, those that have answered.
    fn look_at_retention(&mut self, key: &Key) {
        let of_key: BTreeSet<_> = usable(key).map(|version| &version.provider).collect();
        for name in of_key {
            if let Some(Ok(provider)) = self.0.get_mut(name) {
                retention::look(provider, key);
            }
        }
    }

    pub(super) fn close(&mut self) {
        self.0.values_mut().flatten().for_each(Separate::close_connections);
    }
}

fn row(
    key: &Key,
    version: &Version,
    started: Instant,
    result: Result<(), Failure>,
) -> Result<Row, Error> {
    let milliseconds = started.elapsed().as_secs_f64() * 1000.0;
    let text = |text: &str| text_datum(text.as_bytes()).map(Some);
    let (ok, detail, hint) = match &result {
        Ok(()) => (true, "it is the right key", None),
        Err(failure) => (false, failure.message.as_str(), failure.hint.as_deref()),
    };
    Ok(vec![
        text(key.name.as_str())?,
        Some(pg_sys::Datum::from(version.number.get() as i32)),
        text(version.state.name())?,
        text(&version.provider)?,
        Some(pg_sys::Datum::from(ok)),
        text(detail)?,
        hint.map(text).transpose()?.flatten(),
        milliseconds.into_datum(),
    ])
}
