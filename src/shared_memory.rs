//! The parts of PostgreSQL's shared memory that are this library's: asked for when the server loads it as it
//! starts, and made by the postmaster.

use pgrx::pg_sys;

use crate::{fmgr, shared, statistics};

/// A part of it.
pub(crate) struct Part {
    /// Asks PostgreSQL for what it needs.
    ///
    /// # Safety
    ///
    /// At the time at which libraries may ask for shared memory.
    pub(crate) request: unsafe fn(),
    /// In the postmaster, when it has made its shared memory: at the start, and again after a crash. (No process
    /// but the postmaster is there, and those that it forks inherit what is made here.)
    pub(crate) attach: fn(),
}

const PARTS: [Part; 2] = [shared::MEMORY, statistics::MEMORY];

static mut FORMER_STARTUP_HOOK: pg_sys::shmem_startup_hook_type = None;
#[cfg(not(feature = "pg14"))]
static mut FORMER_REQUEST_HOOK: pg_sys::shmem_request_hook_type = None;

/// Asks PostgreSQL for the memory. Called once, when the library is loaded, which must be while the server
/// starts.
pub(crate) fn register() {
    // SAFETY: the postmaster loads libraries, and has no thread but this one.
    unsafe {
        #[cfg(feature = "pg14")]
        request();
        #[cfg(not(feature = "pg14"))]
        {
            FORMER_REQUEST_HOOK = pg_sys::shmem_request_hook;
            pg_sys::shmem_request_hook = Some(request_hook);
        }
        FORMER_STARTUP_HOOK = pg_sys::shmem_startup_hook;
        pg_sys::shmem_startup_hook = Some(startup_hook);
    }
}

#[cfg(not(feature = "pg14"))]
unsafe extern "C-unwind" fn request_hook() {
    // SAFETY: PostgreSQL calls; set by `register`, as is the former hook.
    unsafe {
        if let Some(former) = FORMER_REQUEST_HOOK {
            former();
        }
        request();
    }
}

/// # Safety
///
/// At the time at which libraries may ask for shared memory.
unsafe fn request() {
    for part in &PARTS {
        // SAFETY: the caller's promise.
        unsafe { (part.request)() };
    }
}

unsafe extern "C-unwind" fn startup_hook() {
    // SAFETY: PostgreSQL calls, and this frame holds nothing with a destructor.
    unsafe {
        if let Some(former) = FORMER_STARTUP_HOOK {
            former();
        }
        fmgr::run_callback(|| {
            PARTS.iter().for_each(|part| (part.attach)());
            Ok(())
        });
    }
}
