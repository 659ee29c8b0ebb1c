//! What the processes of a server share, when the library is in `shared_preload_libraries`: the keys that
//! one of them has fetched, its logins at key servers, and what is known of providers that fail.
//!
//! | file | what it has |
//! | --- | --- |
//! | `memory` | the memory and its lock: requested, laid out, wiped |
//! | `entries` | the keys, and who fetches which one |
//! | `failures` | why keys could not be fetched, for those who waited, and breakers |
//! | `logins` | tokens of key servers |
//! | `fetch` | a key from here, or else from its provider |
//! | `launcher`, `visit` | background workers that fetch keys before anybody waits for them |
//!
//! Without the preload there is none of that ([`is_there`]), and each session fetches for itself.
//!
//! The lock is held for a look or a copy, never over a call of a provider, a read of the catalog or
//! anything else that can fail. What a session takes from here it compares with the catalog's check value,
//! as it does with what a provider answers; and whether the user may have the key was decided before.

pub(crate) mod clock;
pub(crate) mod entries;
pub(crate) mod failures;
pub(crate) mod fetch;
mod launcher;
pub(crate) mod logins;
mod memory;
mod visit;

use pgrx::pg_sys;

use crate::{session, settings};

pub(crate) use memory::{MEMORY, Statistics, Told, is_there, is_time_to_tell, statistics};

/// Registers the launcher and for the end of transactions. Called once, when the library is loaded, which must be
/// while the server starts.
pub(crate) fn register() {
    if settings::shared_cache_size() > 0 && !session::is_upgrading() {
        launcher::register();
    }
    // SAFETY: the callback never unwinds, and stays valid as a library is never unloaded.
    unsafe {
        pg_sys::RegisterXactCallback(Some(entries::transaction_event), std::ptr::null_mut());
    }
}
