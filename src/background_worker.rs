//! Background workers of this library's, as PostgreSQL wants them described.

use std::ffi::c_char;

use pgrx::pg_sys;

/// One that can connect to a database, begins in a function of the library's, and isn't started again.
pub(crate) fn describe(
    name: &str,
    function: &str,
    start: pg_sys::BgWorkerStartTime::Type,
) -> pg_sys::BackgroundWorker {
    let mut worker = pg_sys::BackgroundWorker {
        bgw_flags: (pg_sys::BGWORKER_SHMEM_ACCESS | pg_sys::BGWORKER_BACKEND_DATABASE_CONNECTION)
            as i32,
        bgw_start_time: start,
        bgw_restart_time: pg_sys::BGW_NEVER_RESTART,
        ..Default::default()
    };
    set(&mut worker.bgw_name, name);
    set(&mut worker.bgw_type, name);
    set(&mut worker.bgw_library_name, "encryption_ext");
    set(&mut worker.bgw_function_name, function);
    worker
}

/// Writes a text into a field that has room for it and is zero.
fn set(field: &mut [c_char], text: &str) {
    for (to, from) in field.iter_mut().zip(text.bytes()) {
        *to = from as c_char;
    }
}
