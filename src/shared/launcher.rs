//! The background worker that sees to it that keys are fetched before anybody has to wait for them.
//!
//! It is connected to no database, and can read no catalog of keys. It looks at the keys that are shared and
//! at the clock, and has a worker visit each database in which there is something to do
//! (`visit`), one at a time, as the launcher of autovacuum does.
//!
//! With `encryption_ext.warm_up` every database is visited when the server starts, a standby too, and again
//! at half of each time to live: so versions are there that nobody has used yet. Otherwise only those
//! databases are whose sessions use keys.

use std::collections::BTreeMap;
use std::time::Duration;

use pgrx::pg_sys;

use super::clock::Moment;
use super::{entries, memory, visit};
use crate::errors::Error;
use crate::fmgr::run_callback;
use crate::pg::{self, OnSignal};
use crate::settings;

/// How long to wait until a database is visited again where a visit was cut short.
const AFTER_FAILURE: Duration = Duration::from_secs(10);

/// The longest that it sleeps: times to live may be changed.
const LONGEST_SLEEP: Duration = Duration::from_secs(60);

/// The shortest, so that it never spins.
const SHORTEST_SLEEP: Duration = Duration::from_millis(100);

/// The next restart, in seconds, if it has failed.
const RESTART: i32 = 10;

/// Has the postmaster start it.
pub(super) fn register() {
    let mut worker =
        visit::background_worker("encryption_ext key launcher", "encryption_key_launcher");
    worker.bgw_restart_time = RESTART;
    // SAFETY: the worker is described in full, and the postmaster is loading libraries.
    unsafe { pg_sys::RegisterBackgroundWorker(&raw mut worker) };
}

/// Where PostgreSQL starts its process.
#[unsafe(no_mangle)]
extern "C-unwind" fn encryption_key_launcher(_argument: pg_sys::Datum) {
    // SAFETY: PostgreSQL calls, and this frame holds nothing with a destructor.
    unsafe { run_callback(run) }
}

fn run() -> Result<(), Error> {
    // SAFETY: the calls that a worker makes, in their order (src/backend/postmaster/bgworker.c). Without a
    // database it can read the catalogs that all databases share.
    unsafe {
        pg::handle_signal(libc::SIGHUP, OnSignal::Reload);
        pg::handle_signal(libc::SIGTERM, OnSignal::ShutDown);
        pg_sys::BackgroundWorkerUnblockSignals();
        pg_sys::BackgroundWorkerInitializeConnection(std::ptr::null(), std::ptr::null(), 0);
    }
    if !memory::is_there() {
        // There was no memory to be had. Having ended so, it isn't started again.
        return Ok(());
    }
    let mut launcher = Launcher::default();
    go_by_settings();
    loop {
        // SAFETY: flags that this process's signal handlers set.
        unsafe {
            if pg_sys::ShutdownRequestPending != 0 {
                pg_sys::proc_exit(1);
            }
            if pg_sys::ConfigReloadPending != 0 {
                pg_sys::ConfigReloadPending = 0;
                pg_sys::ProcessConfigFile(pg_sys::GucContext::PGC_SIGHUP);
                go_by_settings();
            }
        }
        pgrx::check_for_interrupts!();
        let sleep = launcher.work()?;
        memory::sleep_until(Moment::now().after(sleep));
        // SAFETY: this process's own latch.
        unsafe {
            pg_sys::WaitLatch(
                pg_sys::MyLatch,
                (pg_sys::WL_LATCH_SET | pg_sys::WL_TIMEOUT | pg_sys::WL_EXIT_ON_PM_DEATH) as i32,
                std::ffi::c_long::try_from(sleep.as_millis()).unwrap_or(1000),
                pg_sys::PG_WAIT_EXTENSION,
            );
            pg_sys::ResetLatch(pg_sys::MyLatch);
        }
    }
}

/// Has all keys that are shared go by the settings as they are now, those that were fetched before included: a
/// time that is prolonged during an outage is so for the keys that there are.
fn go_by_settings() {
    if let Some(header) = memory::header() {
        memory::set_times(header);
    }
}

#[derive(Default)]
struct Launcher {
    databases: BTreeMap<u32, Database>,
    /// When the databases were listed last.
    listed: Moment,
    visit: Option<Visit>,
    /// Whether the log was told that no worker could be started, since one could.
    told_of_want: bool,
}

/// What is known of a database.
#[derive(Default)]
struct Database {
    /// When it is to be visited whether a key is due or not; [`Moment::NEVER`] if it was not yet.
    next: Moment,
    /// Whether the last visit found that there are no keys.
    has_none: bool,
}

/// A visit under way.
struct Visit {
    database: u32,
    handle: *mut pg_sys::BackgroundWorkerHandle,
}

impl Launcher {
    /// Does what is to be done now, and tells how long nothing will be.
    fn work(&mut self) -> Result<Duration, Error> {
        let now = Moment::now();
        entries::wipe_old();
        if self.listed == Moment::NEVER || self.listed.age(now) >= interval() {
            self.list(now);
        }
        if let Some(visit) = &self.visit {
            if visit.is_under_way() {
                return Ok(LONGEST_SLEEP);
            }
            self.visit_ended(now);
        }
        let warms = settings::warms_up();
        let due = entries::next_due(warms);
        let planned = self.databases.iter().map(|(oid, database)| (*oid, database.next));
        let planned = planned.filter(|_| warms).min_by_key(|(_, next)| *next);
        let Some((database, at)) = due.into_iter().chain(planned).min_by_key(|(_, at)| *at) else {
            return Ok(pause());
        };
        if at > now {
            return Ok(at.left(now).clamp(SHORTEST_SLEEP, pause()));
        }
        self.begin_visit(database, now);
        Ok(pause())
    }

    fn begin_visit(&mut self, database: u32, now: Moment) {
        match visit::start(database) {
            Some(handle) => {
                self.visit = Some(Visit { database, handle });
                self.told_of_want = false;
            }
            None => {
                entries::postpone(database, now.after(AFTER_FAILURE));
                self.databases.entry(database).or_default().next = now.after(AFTER_FAILURE);
                if !self.told_of_want {
                    self.told_of_want = true;
                    pgrx::log!(
                        "no background worker could be started to fetch keys ahead of their expiry, and \
                         sessions fetch them when they need them: max_worker_processes are running"
                    );
                }
            }
        }
    }

    fn visit_ended(&mut self, now: Moment) {
        let Some(visit) = self.visit.take() else { return };
        // SAFETY: RegisterDynamicBackgroundWorker has allocated it, and nobody else knows it.
        unsafe { pg_sys::pfree(visit.handle.cast()) };
        let database = self.databases.entry(visit.database).or_default();
        let next = match memory::visit_outcome(visit.database) {
            Some(visit::Outcome::Nothing) => {
                database.has_none = true;
                interval()
            }
            Some(visit::Outcome::Done) => {
                database.has_none = false;
                interval()
            }
            // What was due must not be tried again at once, whatever it is that fails.
            Some(visit::Outcome::OutOfReach) | None => {
                entries::postpone(visit.database, now.after(visit::WHILE_OUT_OF_REACH));
                AFTER_FAILURE
            }
        };
        database.next = now.after(next);
    }

    /// Takes up databases that are new, and forgets those that are gone.
    fn list(&mut self, now: Moment) {
        self.listed = now;
        let listed = databases();
        self.databases.retain(|oid, _| listed.contains(oid));
        for oid in &listed {
            self.databases.entry(*oid).or_default();
        }
        entries::wipe_other_databases(&listed);
    }
}

impl Visit {
    fn is_under_way(&self) -> bool {
        let mut pid = 0;
        // SAFETY: the handle is of a worker that this process has registered.
        let status = unsafe { pg_sys::GetBackgroundWorkerPid(self.handle, &raw mut pid) };
        matches!(
            status,
            pg_sys::BgwHandleStatus::BGWH_STARTED | pg_sys::BgwHandleStatus::BGWH_NOT_YET_STARTED
        )
    }
}

/// How long keys rest.
fn interval() -> Duration {
    (settings::cache_ttl() / 2).max(SHORTEST_SLEEP)
}

/// How long it sleeps when nothing is due that it knows of.
fn pause() -> Duration {
    (settings::cache_ttl() / 4).clamp(SHORTEST_SLEEP, LONGEST_SLEEP)
}

/// The databases that can be connected to, as `get_database_list` of
/// `src/backend/postmaster/autovacuum.c` reads them.
fn databases() -> Vec<u32> {
    let mut databases = Vec::new();
    // SAFETY: pg_database is shared by all databases. The scan is closed again, or by PostgreSQL's resource
    // owner if an error passes over this frame.
    unsafe {
        pg_sys::StartTransactionCommand();
        pg_sys::GetTransactionSnapshot();
        let lock = pg_sys::AccessShareLock as pg_sys::LOCKMODE;
        let relation = pg_sys::table_open(pg_sys::DatabaseRelationId, lock);
        let scan = pg_sys::systable_beginscan(
            relation,
            pg_sys::InvalidOid,
            false,
            std::ptr::null_mut(),
            0,
            std::ptr::null_mut(),
        );
        loop {
            let tuple = pg_sys::systable_getnext(scan);
            if tuple.is_null() {
                break;
            }
            let database = pg_sys::GETSTRUCT(tuple).cast::<pg_sys::FormData_pg_database>();
            // One whose DROP DATABASE was interrupted has the limit -2.
            if (*database).datallowconn && (*database).datconnlimit != -2 {
                databases.push((*database).oid.to_u32());
            }
        }
        pg_sys::systable_endscan(scan);
        pg_sys::table_close(relation, lock);
        pg_sys::CommitTransactionCommand();
    }
    databases
}
