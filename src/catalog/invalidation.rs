//! How a session learns that keys, versions, grants or roles have changed.
//!
//! Statement triggers on the extension's tables (`sql/`) send a relation cache invalidation for
//! the table that was changed, in the transaction that changes it; PostgreSQL delivers it to every
//! session of the database when that commits, and to standbys with the commit record. The callback
//! here only counts: it may be called at any lock acquisition, in the middle of anything.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use pgrx::pg_sys;

use crate::errors::Error;
use crate::fmgr::sql_function;

/// The tables whose changes count: keys, versions, grants, keyspace.
static WATCHED: [AtomicU32; 4] = [const { AtomicU32::new(0) }; 4];

static CATALOG_GENERATION: AtomicU64 = AtomicU64::new(0);
static ROLE_GENERATION: AtomicU64 = AtomicU64::new(0);
static RELATION_GENERATION: AtomicU64 = AtomicU64::new(0);

/// Registers the callbacks. Called once, when the library is loaded.
pub(crate) fn register() {
    let none = pg_sys::Datum::from(0usize);
    // SAFETY: the callbacks have the signatures that PostgreSQL calls them with, never unwind,
    // and stay valid because a library is never unloaded.
    unsafe {
        pg_sys::CacheRegisterRelcacheCallback(Some(relation_changed), none);
        // Membership of roles and their attributes (superuser) decide what a grant means.
        for cache in
            [pg_sys::SysCacheIdentifier::AUTHMEMROLEMEM, pg_sys::SysCacheIdentifier::AUTHOID]
        {
            pg_sys::CacheRegisterSyscacheCallback(cache as i32, Some(role_changed), none);
        }
    }
}

unsafe extern "C-unwind" fn relation_changed(_: pg_sys::Datum, relation: pg_sys::Oid) {
    RELATION_GENERATION.fetch_add(1, Ordering::Relaxed);
    let relation = relation.to_u32();
    // InvalidOid says that anything may have changed.
    if relation == 0 || WATCHED.iter().any(|table| table.load(Ordering::Relaxed) == relation) {
        CATALOG_GENERATION.fetch_add(1, Ordering::Relaxed);
    }
}

unsafe extern "C-unwind" fn role_changed(_: pg_sys::Datum, _cache: i32, _hash: u32) {
    ROLE_GENERATION.fetch_add(1, Ordering::Relaxed);
}

/// Counts changes of `table` from now on.
pub(super) fn watch(table: pg_sys::Oid) {
    let table = table.to_u32();
    for slot in &WATCHED {
        let watched = slot.load(Ordering::Relaxed);
        if watched == table {
            return;
        }
        if watched == 0 {
            return slot.store(table, Ordering::Relaxed);
        }
    }
    // The tables have been dropped and created again: begin anew, and drop what was read.
    for slot in &WATCHED[1..] {
        slot.store(0, Ordering::Relaxed);
    }
    WATCHED[0].store(table, Ordering::Relaxed);
    CATALOG_GENERATION.fetch_add(1, Ordering::Relaxed);
}

/// Grows whenever keys, versions or grants may have changed.
pub(crate) fn catalog_generation() -> u64 {
    CATALOG_GENERATION.load(Ordering::Relaxed)
}

/// Grows whenever roles or their memberships may have changed.
pub(crate) fn role_generation() -> u64 {
    ROLE_GENERATION.load(Ordering::Relaxed)
}

/// Grows whenever any table or index may have changed.
pub(crate) fn relation_generation() -> u64 {
    RELATION_GENERATION.load(Ordering::Relaxed)
}

sql_function! {
    /// `encryption.send_invalidation() RETURNS trigger`: tells every session, at commit, that the
    /// table that the trigger is on has changed.
    fn encryption_send_invalidation(call) {
        // SAFETY: the context of a trigger call is a TriggerData (checked by its node tag).
        unsafe {
            let context = (*call.fcinfo()).context;
            if context.is_null() || (*context).type_ != pg_sys::NodeTag::T_TriggerData {
                return Err(Error::Internal { what: "send_invalidation is not called as a trigger" });
            }
            let trigger = context.cast::<pg_sys::TriggerData>();
            pg_sys::CacheInvalidateRelcache((*trigger).tg_relation);
        }
        // A statement trigger's result is ignored, but must not be null by way of the null flag
        // (ExecCallTriggerFunc).
        Ok(pg_sys::Datum::from(0usize))
    }
}

sql_function! {
    /// `encryption.invalidate_plans(oid) RETURNS void`: has every session plan anew, from commit on,
    /// what it has planned for a table. A plan may hold digests of its constants.
    fn encryption_invalidate_plans(call) {
        // SAFETY: SQL calls with a table that it has locked.
        unsafe { pg_sys::CacheInvalidateRelcacheByRelid(pg_sys::Oid::from(call.int4(0) as u32)) };
        Ok(pg_sys::Datum::from(0usize))
    }
}
