//! The one text of an expression that PostgreSQL stores: `pg_type.typdefault`, of a domain's default. It
//! is made by the types' output functions (`DefineDomain` and `AlterDomainDefault` of
//! `src/backend/commands/typecmds.c`), and would be a plaintext on disk; so these show ciphertext while
//! such a command runs. Nothing reads the text as long as the expression is there, but for people.
//!
//! `pg_upgrade` makes domains before the extension's casts are there. Their defaults then lack the
//! length-coercion cast: their constants would get into columns under the database key.

use std::cell::Cell;

use pgrx::pg_sys;
use pgrx::spi::Spi;

use super::contents::Contents;
use super::queries;
use crate::errors::Error;
use crate::pg;

thread_local! {
    static WRITTEN_BY: Cell<Option<Command>> = const { Cell::new(None) };
}

/// Which command runs. One that fails never gets to its end; whatever runs next is part of another
/// statement or, where the failure was caught, of another subtransaction.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Command {
    statement: i64,
    subtransaction: pg_sys::SubTransactionId,
}

impl Command {
    fn now() -> Self {
        // SAFETY: reads a variable of this backend's.
        let subtransaction = unsafe { pg_sys::GetCurrentSubTransactionId() };
        Self { statement: pg::statement_start(), subtransaction }
    }
}

/// Before a command that may give a domain a default.
///
/// # Safety
///
/// `command` is the parse tree of a CREATE DOMAIN or ALTER DOMAIN.
pub(super) unsafe fn begin(command: *mut pg_sys::Node) {
    // SAFETY: a node is what its tag says. Subtypes are those of `AlterDomainStmt` in
    // `src/include/nodes/parsenodes.h`.
    let writes = unsafe {
        (*command).type_ != pg_sys::NodeTag::T_AlterDomainStmt
            || (*command.cast::<pg_sys::AlterDomainStmt>()).subtype.cast_unsigned() == b'T'
    };
    WRITTEN_BY.set(writes.then(Command::now));
}

/// After it.
pub(super) fn end() {
    WRITTEN_BY.set(None);
}

/// Gives every domain its default again, when all that `pg_upgrade` brings is there.
///
/// # Errors
///
/// If the catalogs can't be read.
pub(super) fn set_again(contents: &mut Contents) -> Result<(), Error> {
    for domain in queries::domains_with_default()? {
        if !contents.holds(domain) {
            continue;
        }
        // The event trigger that this command fires ends it.
        WRITTEN_BY.set(Some(Command::now()));
        Spi::run(&format!(
            "DO $$ BEGIN
                 EXECUTE (SELECT pg_catalog.format('ALTER DOMAIN %s SET DEFAULT %s', oid::pg_catalog.regtype,
                                                   pg_catalog.pg_get_expr(typdefaultbin, 0))
                            FROM pg_catalog.pg_type WHERE oid = {});
             END $$",
            domain.to_u32()
        ))
        .map_err(|_| Error::Internal { what: "a domain's default could not be set" })?;
    }
    end();
    Ok(())
}

/// Whether such a command runs.
pub(crate) fn is_written() -> bool {
    WRITTEN_BY.get().is_some_and(|command| command == Command::now())
}
