//! `encryption_ext`: encrypted column types for PostgreSQL.
//!
//! This crate is what must be linked to the server. ARCHITECTURE.md draws a value's way through
//! it; the value format and the cipher are in the crate `envelope`, keys in memory and the
//! providers that they come from in the crate `keyring`.

mod access;
mod audit;
mod background_worker;
mod catalog;
mod ddl;
mod edges;
mod errors;
mod events;
mod fmgr;
mod functions;
mod jobs;
mod keys;
mod log_redaction;
mod mask;
mod migration;
mod operators;
mod pg;
mod providers;
mod restored;
mod rights;
mod rotation;
mod session;
mod settings;
mod shared;
mod shared_memory;
mod statement;
mod statistics;
mod types;
mod value;
mod varlena;

pgrx::pg_module_magic!(name, version);

/// Memory that this library frees is overwritten, whoever allocated it: the libraries for HTTP, TLS
/// and JSON have held keys and tokens in theirs. (Values are in PostgreSQL's memory.)
#[global_allocator]
static ALLOCATOR: zeroizing_alloc::ZeroAlloc<std::alloc::System> =
    zeroizing_alloc::ZeroAlloc(std::alloc::System);

/// Called by PostgreSQL when it loads the library: in the postmaster if it is preloaded, or in the
/// first session that needs it. No key is touched here.
#[unsafe(no_mangle)]
extern "C-unwind" fn _PG_init() {
    // SAFETY: PostgreSQL calls, and this frame holds nothing with a destructor.
    unsafe {
        fmgr::run_callback(|| {
            settings::define()?;
            catalog::invalidation::register();
            catalog::log::register();
            session::register();
            ddl::register();
            audit::register();
            log_redaction::register();
            statement::register();
            operators::register();
            if session::is_preloading() {
                shared_memory::register();
                shared::register();
            }
            Ok(())
        });
    }
}
