//! Encrypted column types for PostgreSQL.
pgrx::pg_module_magic!();
