//! A background worker's visit of a database: it fetches the keys whose time is half over, and those that
//! are not there yet, and wipes those that may not be used any more; and it rotates the keys whose scheduled
//! rotation is due.
//!
//! It is the place for whatever else is to be done in each database from time to time.

use std::collections::BTreeSet;
use std::ffi::CString;
use std::time::Duration;

use keyring::configured::Fingerprint;
use pgrx::pg_sys;
use pgrx::spi::{Spi, SpiError};

use super::clock::Moment;
use super::entries::{self, EntryId};
use super::fetch;
use super::memory::{self, Told};
use crate::catalog::{self, Key, Version};
use crate::errors::Error;
use crate::events::{self, Event};
use crate::fmgr::run_callback;
use crate::pg::{self, OnSignal};
use crate::providers::Providers;
use crate::rotation::worker::execute;
use crate::{background_worker, keys, settings};

/// How long to wait until a provider that is out of reach is asked again: less than a breaker stays open,
/// so that it is a visit that finds out when the provider is back.
pub(super) const WHILE_OUT_OF_REACH: Duration = Duration::from_secs(8);

/// What came of a visit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Outcome {
    /// The database has no keys.
    Nothing = 1,
    /// All was done.
    Done = 2,
    /// A provider was out of reach.
    OutOfReach = 3,
}

impl Outcome {
    pub(super) fn from_number(number: u32) -> Option<Self> {
        [Self::Nothing, Self::Done, Self::OutOfReach].into_iter().find(|o| *o as u32 == number)
    }
}

/// A background worker that is started as soon as there are consistent data, on a standby too.
pub(super) fn background_worker(name: &str, function: &str) -> pg_sys::BackgroundWorker {
    let start = pg_sys::BgWorkerStartTime::BgWorkerStart_ConsistentState;
    background_worker::describe(name, function, start)
}

/// Has a worker visit a database; `None` if `max_worker_processes` are running.
pub(super) fn start(database: u32) -> Option<*mut pg_sys::BackgroundWorkerHandle> {
    let mut worker = background_worker("encryption_ext key worker", "encryption_key_worker");
    worker.bgw_main_arg = pg_sys::Datum::from(database);
    // SAFETY: a variable of this process's. What is allocated shall outlive this transaction's memory.
    unsafe {
        worker.bgw_notify_pid = pg_sys::MyProcPid;
        let former = pg_sys::MemoryContextSwitchTo(pg_sys::TopMemoryContext);
        let mut handle = std::ptr::null_mut();
        let is_started = pg_sys::RegisterDynamicBackgroundWorker(&raw mut worker, &raw mut handle);
        pg_sys::MemoryContextSwitchTo(former);
        is_started.then_some(handle)
    }
}

/// Where PostgreSQL starts its process.
#[unsafe(no_mangle)]
extern "C-unwind" fn encryption_key_worker(argument: pg_sys::Datum) {
    // SAFETY: PostgreSQL calls, and this frame holds nothing with a destructor.
    unsafe { run_callback(|| visit(argument.value() as u32)) }
}

fn visit(database: u32) -> Result<(), Error> {
    // SAFETY: the calls that a worker makes, in their order (src/test/modules/worker_spi). It connects as the
    // first superuser.
    let outcome = unsafe {
        pg::handle_signal(libc::SIGTERM, OnSignal::Die);
        pg_sys::BackgroundWorkerUnblockSignals();
        pg_sys::BackgroundWorkerInitializeConnectionByOid(
            pg_sys::Oid::from(database),
            pg_sys::InvalidOid,
            0,
        );
        pg_sys::StartTransactionCommand();
        let outcome = look_after_keys();
        pg_sys::CommitTransactionCommand();
        outcome?
    };
    memory::visit_ends(database, outcome);
    if outcome == Outcome::Nothing {
        return Ok(());
    }
    // SAFETY: outside of a transaction, in a worker that is connected.
    unsafe {
        if let Some(call) = call_for_due_rotations()? {
            execute(&call);
        }
    }
    Ok(())
}

/// The call that rotates the keys whose scheduled rotation is due, if there are any.
///
/// # Safety
///
/// Outside of a transaction, in a worker that is connected.
unsafe fn call_for_due_rotations() -> Result<Option<CString>, Error> {
    const CALL: &str = "
        SELECT pg_catalog.format('CALL %I.enc_run_due_rotations()', n.nspname)
          FROM pg_catalog.pg_namespace n JOIN pg_catalog.pg_extension e ON e.extnamespace OPERATOR(pg_catalog.=) n.oid
         WHERE e.extname OPERATOR(pg_catalog.=) 'encryption_ext'
           AND NOT pg_catalog.pg_is_in_recovery()
           AND EXISTS (SELECT FROM encryption.scheduled_work
                        WHERE is_due OR (is_to_be_reencrypted AND NOT is_being_reencrypted))";
    // SAFETY: the caller's promise; a transaction with a snapshot is what a query needs.
    let call = unsafe {
        pg_sys::StartTransactionCommand();
        pg_sys::PushActiveSnapshot(pg_sys::GetTransactionSnapshot());
        let call = Spi::get_one::<String>(CALL);
        pg_sys::PopActiveSnapshot();
        pg_sys::CommitTransactionCommand();
        call
    };
    match call {
        Ok(call) => Ok(call.and_then(|call| CString::new(call).ok())),
        Err(SpiError::InvalidPosition) => Ok(None),
        Err(_) => Err(Error::Internal { what: "a key worker can't read the schedules" }),
    }
}

fn look_after_keys() -> Result<Outcome, Error> {
    if !catalog::is_there() {
        return Ok(Outcome::Nothing);
    }
    let mut found = Vec::new();
    for id in catalog::read_key_ids()? {
        found.extend(catalog::read_key(id)?);
    }
    // SAFETY: nothing reads by it. A call of a provider may take long, and VACUUM shall not wait for it.
    unsafe { pg_sys::InvalidateCatalogSnapshot() };
    let readable = || {
        found.iter().flat_map(|key| {
            let versions = key.versions.iter().filter(|version| version.state.decrypts());
            versions.map(move |version| (key, version))
        })
    };
    let ids: BTreeSet<EntryId> =
        readable().map(|(key, version)| EntryId::of(key, version)).collect();
    entries::wipe_others(&ids);
    if found.is_empty() {
        return Ok(Outcome::Nothing);
    }
    let warms = settings::warms_up();
    let mut out_of_reach: Vec<&str> = Vec::new();
    for (key, version) in readable() {
        let id = EntryId::of(key, version);
        if !entries::is_wanted(&id, warms) {
            continue;
        }
        if out_of_reach.contains(&version.provider.as_str()) {
            entries::postpone_one(&id, Moment::now().after(WHILE_OUT_OF_REACH));
            continue;
        }
        let result = keys::with_providers(|providers| ask(providers, key, version, &id));
        if let Err(error) = result {
            if error.is_outage() {
                out_of_reach.push(&version.provider);
            }
            if memory::is_time_to_tell(Told::NotFetchedAhead) {
                events::tell(&Event::NotFetchedAhead {
                    provider: &version.provider,
                    error: &error.message(),
                });
            }
        }
    }
    Ok(if out_of_reach.is_empty() { Outcome::Done } else { Outcome::OutOfReach })
}

/// Asks the provider, unless a session does so at the moment or there is no room.
fn ask(providers: &mut Providers, key: &Key, version: &Version, id: &EntryId) -> Result<(), Error> {
    let fingerprint: Fingerprint = match providers.prepare(key, version) {
        Ok(fingerprint) => fingerprint,
        Err(error) => {
            entries::postpone_one(id, Moment::END);
            return Err(error);
        }
    };
    entries::register_for_exit();
    match entries::fetch_ahead(id, fingerprint) {
        None => Ok(()),
        Some(flight) => fetch::ask(providers, key, version, Some(flight), false).map(drop),
    }
}
