//! Where it is counted: in PostgreSQL's shared memory, or in that of this process. It has no secrets.
//!
//! All of it are atomic numbers, whose places are taken and never given back. After a crash PostgreSQL makes
//! its shared memory anew, and counting begins again.

use std::alloc::{GlobalAlloc, Layout, System, handle_alloc_error};
use std::ptr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicI64, AtomicPtr, AtomicU32, AtomicU64, Ordering};

use pgrx::pg_sys;

use crate::shared_memory::Part;

/// The name of the memory.
const NAME: &std::ffi::CStr = c"encryption_ext statistics";

/// How many databases have counts of their own. Those of others are summed.
const DATABASES: usize = 128;

/// How many providers have counts, each in each database that uses it.
const PROVIDERS: usize = 256;

/// How many versions have counts: those under which something was encrypted.
const VERSIONS: usize = 8192;

/// How many keys have what is known of how many versions their providers keep.
const RETENTIONS: usize = 1024;

/// How many places are looked at for a provider, a version or a key.
const PROBES: usize = 64;

/// Buckets of request times.
pub(super) const BUCKETS: usize = 12;

/// Buckets of the times of decryptions.
pub(super) const DECRYPT_BUCKETS: usize = 14;

/// Classes of errors.
pub(super) const ERRORS: usize = 8;

/// Values of [`Provider::reach`]; it is 0 before the first answer.
pub(super) const REACHABLE: u32 = 1;
pub(super) const OUT_OF_REACH: u32 = 2;

/// All of it. Zero bytes are a value of it, in which nothing is counted yet.
#[repr(C)]
pub(super) struct Area {
    began: AtomicI64,
    databases: [Database; DATABASES],
    other_databases: Database,
    providers: [Provider; PROVIDERS],
    versions: [Version; VERSIONS],
    retentions: [Retention; RETENTIONS],
}

/// What is counted in a database, which no other shares a cache line with.
#[repr(C, align(64))]
pub(super) struct Database {
    /// Its object id; 0 for a place that is free.
    id: AtomicU32,
    pub(super) encrypted: AtomicU64,
    pub(super) decrypted: AtomicU64,
    pub(super) compared: AtomicU64,
    pub(super) decrypt_failures: AtomicU64,
    pub(super) denials: AtomicU64,
    pub(super) served_past_expiry: AtomicU64,
    /// Of those decryptions that were timed.
    pub(super) decrypt_buckets: [AtomicU64; DECRYPT_BUCKETS],
    pub(super) decrypt_nanoseconds: AtomicU64,
    /// 0 if never.
    pub(super) reset_at: AtomicI64,
}

/// What is counted of a provider in a database.
#[repr(C, align(64))]
pub(super) struct Provider {
    /// What tells it from others; 0 for a place that is free.
    number: AtomicU64,
    database: AtomicU32,
    pub(super) reach: AtomicU32,
    pub(super) buckets: [AtomicU64; BUCKETS],
    pub(super) microseconds: AtomicU64,
    pub(super) errors: [AtomicU64; ERRORS],
    /// 0 if never.
    pub(super) last_success: AtomicI64,
    pub(super) last_failure: AtomicI64,
    pub(super) certificate_expires: AtomicI64,
    pub(super) client_certificate_expires: AtomicI64,
    pub(super) reset_at: AtomicI64,
}

/// What is counted of a version.
#[repr(C)]
pub(super) struct Version {
    /// What tells it from others; 0 for a place that is free.
    number: AtomicU64,
    pub(super) encryptions: AtomicU64,
    /// 1 if its provider has said last that it is not there.
    pub(super) is_missing: AtomicU32,
}

/// What is known of how many versions of a key a provider keeps. What belongs together is in one number.
#[repr(C)]
pub(super) struct Retention {
    /// What tells it from others; 0 for a place that is free.
    number: AtomicU64,
    /// The number of the newest version, and how many are kept at most; 0 if that is not known.
    pub(super) newest_and_max: AtomicU64,
    /// The number of the oldest version, and how many there are.
    pub(super) oldest_and_versions: AtomicU64,
}

impl Area {
    pub(super) fn began(&self) -> i64 {
        self.began.load(Ordering::Relaxed)
    }

    /// Where it is counted for a database.
    pub(super) fn database(&self, id: u32) -> &Database {
        let mut databases = self.databases.iter().filter(|_| id != 0);
        databases.find(|database| take(&database.id, id)).unwrap_or(&self.other_databases)
    }

    /// The databases that were counted for; with the id 0 those that have no place, if there are any.
    pub(super) fn databases(&self) -> impl Iterator<Item = (u32, &Database)> {
        let databases = self.databases.iter().map(|d| (d.id.load(Ordering::Relaxed), d));
        let is_full = self.databases.iter().all(|d| d.id.load(Ordering::Relaxed) != 0);
        let others = is_full.then_some((0, &self.other_databases));
        databases.filter(|(id, _)| *id != 0).chain(others)
    }

    /// Where it is counted for a provider; `None` if all places that it may have are taken.
    pub(super) fn provider(&self, database: u32, number: u64) -> Option<&Provider> {
        let provider =
            places(&self.providers, number).find(|place| take_number(&place.number, number))?;
        provider.database.store(database, Ordering::Relaxed);
        Some(provider)
    }

    /// Where it is counted for a version; `None` if all places that it may have are taken.
    pub(super) fn version(&self, number: u64) -> Option<&Version> {
        places(&self.versions, number).find(|place| take_number(&place.number, number))
    }

    /// What is counted of a version, which is given no place for that.
    pub(super) fn encryptions(&self, number: u64) -> Option<u64> {
        places(&self.versions, number).find_map(|place| {
            match place.number.load(Ordering::Relaxed) {
                0 => Some(0),
                found if found == number => Some(place.encryptions.load(Ordering::Relaxed)),
                _ => None,
            }
        })
    }

    /// Where a version is that has a place.
    pub(super) fn known_version(&self, number: u64) -> Option<&Version> {
        places(&self.versions, number).find(|place| place.number.load(Ordering::Relaxed) == number)
    }

    /// Where it is noted how many versions of a key are kept; `None` if all places that it may have are taken.
    pub(super) fn retention(&self, number: u64) -> Option<&Retention> {
        places(&self.retentions, number).find(|place| take_number(&place.number, number))
    }

    /// The same, if something was noted.
    pub(super) fn known_retention(&self, number: u64) -> Option<&Retention> {
        places(&self.retentions, number)
            .find(|place| place.number.load(Ordering::Relaxed) == number)
    }

    /// Counts anew for a database and the providers in it.
    pub(super) fn reset(&self, id: u32, now: i64) {
        let database = self.database(id);
        let counters = [
            &database.encrypted,
            &database.decrypted,
            &database.compared,
            &database.decrypt_failures,
            &database.denials,
            &database.served_past_expiry,
            &database.decrypt_nanoseconds,
        ];
        for counter in counters.into_iter().chain(&database.decrypt_buckets) {
            counter.store(0, Ordering::Relaxed);
        }
        database.reset_at.store(now, Ordering::Relaxed);
        for provider in &self.providers {
            if provider.database.load(Ordering::Relaxed) == id {
                provider.reset(now);
            }
        }
    }
}

impl Provider {
    fn reset(&self, now: i64) {
        for counter in self.buckets.iter().chain(&self.errors).chain([&self.microseconds]) {
            counter.store(0, Ordering::Relaxed);
        }
        self.reset_at.store(now, Ordering::Relaxed);
    }
}

/// The places that something with this number may have, the most likely first.
fn places<T>(all: &[T], number: u64) -> impl Iterator<Item = &T> {
    let start = usize::try_from(number % all.len() as u64).unwrap_or(0);
    let (before, from) = all.split_at(start);
    from.iter().chain(before).take(PROBES)
}

/// Whether a place is that of `id`, which takes it if it is free.
fn take(place: &AtomicU32, id: u32) -> bool {
    let found = place.load(Ordering::Relaxed);
    found == id
        || found == 0
            && match place.compare_exchange(0, id, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => true,
                Err(found) => found == id,
            }
}

/// The same for a number.
fn take_number(place: &AtomicU64, number: u64) -> bool {
    let found = place.load(Ordering::Relaxed);
    found == number
        || found == 0
            && match place.compare_exchange(0, number, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => true,
                Err(found) => found == number,
            }
}

/// What is shared: set by the postmaster, and the same in all processes that it forks.
static SHARED: AtomicPtr<Area> = AtomicPtr::new(ptr::null_mut());

/// What is this process's own.
static OWN: OnceLock<&'static Area> = OnceLock::new();

/// Whether it is shared.
pub(super) fn is_shared() -> bool {
    !SHARED.load(Ordering::Relaxed).is_null()
}

/// Where this process counts.
pub(super) fn area() -> &'static Area {
    // SAFETY: null, or what `attach` has initialized, which stays for as long as the process.
    match unsafe { SHARED.load(Ordering::Relaxed).as_ref() } {
        Some(shared) => shared,
        None => OWN.get_or_init(|| {
            let area = own_area();
            area.began.store(super::now(), Ordering::Relaxed);
            area
        }),
    }
}

/// Memory that stays for as long as the process. It comes from the operating system, which gives pages of zeroes
/// when they are first used: few of them are. (The library's own allocator would write them all, and so would the
/// system's if it were asked for this alignment.)
fn own_area() -> &'static Area {
    let wanted = Layout::new::<Area>();
    let layout = Layout::array::<u64>((wanted.size() + wanted.align()) / size_of::<u64>())
        .expect("a few hundred kilobytes are a layout");
    // SAFETY: the layout has a size. From the first aligned address on there is room for an `Area`; zero bytes are a
    // value of it, and nobody else knows it.
    unsafe {
        let memory = System.alloc_zeroed(layout);
        if memory.is_null() {
            handle_alloc_error(layout);
        }
        &*memory.add(memory.align_offset(wanted.align())).cast::<Area>()
    }
}

/// What lies in PostgreSQL's shared memory.
pub(crate) const MEMORY: Part = Part { request, attach };

/// # Safety
///
/// At the time at which libraries may ask for shared memory.
unsafe fn request() {
    // SAFETY: the caller's promise.
    unsafe { pg_sys::RequestAddinShmemSpace(size_of::<Area>()) };
}

fn attach() {
    let mut found = false;
    // SAFETY: so much was requested; what is returned has that length and the alignment of a cache line.
    // Zero bytes are a value of it, and nobody sees it before it has them.
    unsafe {
        let area = pg_sys::ShmemInitStruct(NAME.as_ptr(), size_of::<Area>(), &raw mut found);
        let area = area.cast::<Area>();
        ptr::write_bytes(area, 0, 1);
        (*area).began.store(super::now(), Ordering::Relaxed);
        SHARED.store(area, Ordering::Relaxed);
    }
}
