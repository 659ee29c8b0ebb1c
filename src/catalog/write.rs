//! Changing the extension's tables: with the rights of their owner, by SQL, so that their
//! constraints and triggers apply.

use std::ffi::CStr;

use envelope::{KeyName, KeyVersion};
use keyring::provider::WrappedKey;
use keyring::version::{CheckValue, Keyspace};
use pgrx::datum::DatumWithOid;
use pgrx::spi::{Spi, SpiClient, SpiResult, SpiTupleTable};
use pgrx::{FromDatum, IntoDatum, pg_sys};

use super::scan::table_oid;
use super::sql::SqlRow;
use super::{DATABASE_KEY, Privilege, State};
use crate::errors::Error;
use crate::pg;
use crate::rights::RightsOf;
use crate::shared::entries;

/// A version that is to be written to the catalog.
pub(crate) struct NewVersion {
    pub(crate) number: KeyVersion,
    pub(crate) provider: String,
    pub(crate) reference: String,
    pub(crate) wrapped: Option<Vec<u8>>,
    pub(crate) check_value: CheckValue,
    pub(crate) keyspace: Keyspace,
}

/// A connection to the server's SQL with the rights of the tables' owner, on behalf of a caller.
pub(crate) struct Writer<'a, 'conn> {
    client: &'a mut SpiClient<'conn>,
    pub(super) caller: pg_sys::Oid,
}

impl Writer<'_, '_> {
    /// Makes those who change keys wait for each other, until the transaction ends.
    pub(crate) fn lock(&mut self) -> Result<(), Error> {
        self.run("LOCK TABLE encryption.key IN SHARE ROW EXCLUSIVE MODE", &[])?;
        Ok(())
    }

    /// A key, owned by the caller; the database key, which everyone uses, by the tables' owner.
    pub(crate) fn insert_key(&mut self, name: &KeyName) -> Result<(), Error> {
        let owner = match name.as_str() {
            DATABASE_KEY => pg::current_user(),
            _ => self.caller,
        };
        self.run(
            "INSERT INTO encryption.key (key_id, name, owner) VALUES ($1, $2, $3)",
            &[id(name), name.as_str().into(), role(owner)],
        )?;
        Ok(())
    }

    /// A version of a key, made by the caller.
    pub(crate) fn insert_version(
        &mut self,
        name: &KeyName,
        version: &NewVersion,
        state: State,
    ) -> Result<(), Error> {
        let NewVersion { number, provider, reference, wrapped, check_value, keyspace } = version;
        let caller = self.caller;
        self.run(
            "INSERT INTO encryption.key_version
                (key_id, version, state, provider, reference, wrapped, check_value, keyspace,
                 created_by, activated_at)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9,
                     CASE WHEN $3 <> 'pending' THEN now() END)",
            &[
                id(name),
                number_of(*number),
                state.name().into(),
                provider.as_str().into(),
                reference.as_str().into(),
                wrapped.clone().into(),
                check_value.as_bytes().to_vec().into(),
                pgrx::Uuid::from_bytes(keyspace.0).into(),
                role(caller),
            ],
        )?;
        Ok(())
    }

    /// Has digests made with this version of the database key from now on, unless they are made
    /// with one already: rotating the key leaves the digests in indexes as they are.
    pub(crate) fn pin_digest_version(&mut self, version: KeyVersion) -> Result<(), Error> {
        self.run(
            "UPDATE encryption.keyspace SET digest_version = $1 WHERE digest_version IS NULL",
            &[number_of(version)],
        )?;
        Ok(())
    }

    /// Makes a version the active one; the one that was, deprecated.
    pub(crate) fn activate(&mut self, name: &KeyName, version: KeyVersion) -> Result<(), Error> {
        self.run(
            "UPDATE encryption.key_version SET state = 'deprecated', deprecated_at = now()
              WHERE key_id = $1 AND state = 'active'",
            &[id(name)],
        )?;
        self.update_version(
            "UPDATE encryption.key_version
                SET state = 'active', activated_at = now(), deprecated_at = NULL
              WHERE key_id = $1 AND version = $2",
            name,
            version,
        )
    }

    /// Lets a disabled version do again what it did last, encrypting excepted.
    pub(crate) fn enable(&mut self, name: &KeyName, version: KeyVersion) -> Result<(), Error> {
        self.update_version(
            "UPDATE encryption.key_version
                SET state = CASE WHEN activated_at IS NULL THEN 'pending' ELSE 'deprecated' END
              WHERE key_id = $1 AND version = $2",
            name,
            version,
        )
    }

    /// Lets a version do nothing until it is enabled.
    pub(crate) fn disable(&mut self, name: &KeyName, version: KeyVersion) -> Result<(), Error> {
        entries::forget_at_commit(name.id(), version);
        self.update_version(
            "UPDATE encryption.key_version
                SET state = 'disabled',
                    deprecated_at = CASE WHEN activated_at IS NOT NULL
                                         THEN coalesce(deprecated_at, now()) END
              WHERE key_id = $1 AND version = $2",
            name,
            version,
        )
    }

    /// Takes from the catalog what it has of a version's key, for good. The row stays, and tells that
    /// there was one.
    pub(crate) fn destroy(&mut self, name: &KeyName, version: KeyVersion) -> Result<(), Error> {
        entries::forget_at_commit(name.id(), version);
        self.update_version(
            "UPDATE encryption.key_version SET state = 'destroyed', wrapped = NULL
              WHERE key_id = $1 AND version = $2",
            name,
            version,
        )
    }

    /// Replaces a version's wrapped key, and the reference to what it is wrapped under.
    pub(crate) fn rewrap(
        &mut self,
        name: &KeyName,
        version: KeyVersion,
        wrapped: WrappedKey,
    ) -> Result<(), Error> {
        let WrappedKey { reference, wrapped } = wrapped;
        let changed = self.run(
            "UPDATE encryption.key_version SET reference = $3, wrapped = $4
              WHERE key_id = $1 AND version = $2",
            &[id(name), number_of(version), reference.into(), wrapped.into()],
        )?;
        match changed {
            1 => Ok(()),
            _ => Err(Error::KeyChangedMeanwhile { key: name.clone() }),
        }
    }

    /// Notes that the keys are those that their providers have, on this server.
    pub(crate) fn set_reconciled(&mut self) -> Result<(), Error> {
        self.run(
            "UPDATE encryption.keyspace k
                SET system_identifier = here.system_identifier, timeline = here.timeline,
                    base_backup = here.base_backup, reconciled_at = pg_catalog.now()
               FROM encryption.this_server() here",
            &[],
        )?;
        Ok(())
    }

    fn update_version(
        &mut self,
        sql: &str,
        name: &KeyName,
        version: KeyVersion,
    ) -> Result<(), Error> {
        // A REPEATABLE READ transaction may not see what the catalog's readers see.
        match self.run(sql, &[id(name), number_of(version)])? {
            1 => Ok(()),
            _ => Err(Error::KeyChangedMeanwhile { key: name.clone() }),
        }
    }

    /// Sets what is shown of a key's values to roles with the privilege `mask`; `None`: the default.
    pub(crate) fn set_mask(&mut self, name: &KeyName, mask: Option<&str>) -> Result<(), Error> {
        self.run(
            "UPDATE encryption.key SET mask = $2 WHERE key_id = $1",
            &[id(name), mask.into()],
        )?;
        Ok(())
    }

    /// Gives a role (`InvalidOid`: PUBLIC) a privilege on a key, if it hasn't got it.
    pub(crate) fn insert_grant(
        &mut self,
        name: &KeyName,
        grantee: pg_sys::Oid,
        privilege: Privilege,
    ) -> Result<(), Error> {
        let caller = self.caller;
        self.run(
            "INSERT INTO encryption.key_grant (key_id, grantee, privilege, granted_by)
             VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING",
            &[id(name), role(grantee), privilege.name().into(), role(caller)],
        )?;
        Ok(())
    }

    /// Takes a privilege on a key from a role, if it has it.
    pub(crate) fn delete_grant(
        &mut self,
        name: &KeyName,
        grantee: pg_sys::Oid,
        privilege: Privilege,
    ) -> Result<(), Error> {
        self.run(
            "DELETE FROM encryption.key_grant
              WHERE key_id = $1 AND grantee = $2::pg_catalog.oid AND privilege = $3",
            &[id(name), role(grantee), privilege.name().into()],
        )?;
        Ok(())
    }

    /// Takes the privileges on a key from roles that were dropped: another role may get their
    /// object ids.
    pub(crate) fn delete_grants_of_dropped_roles(&mut self, name: &KeyName) -> Result<(), Error> {
        self.run(
            "DELETE FROM encryption.key_grant
              WHERE key_id = $1 AND grantee::pg_catalog.oid <> 0
                AND NOT EXISTS (SELECT FROM pg_catalog.pg_authid WHERE oid = grantee)",
            &[id(name)],
        )?;
        Ok(())
    }

    /// The role on whose behalf the catalog is written.
    pub(crate) fn caller(&self) -> pg_sys::Oid {
        self.caller
    }

    /// Runs a statement that names everything with its schema; returns the number of rows.
    pub(crate) fn run(
        &mut self,
        sql: &str,
        arguments: &[DatumWithOid<'_>],
    ) -> Result<usize, Error> {
        self.client.update(sql, None, arguments).map_err(|_| FAILED)?;
        // SAFETY: SPI has just executed a statement and set its number of rows.
        Ok(usize::try_from(unsafe { pg_sys::SPI_processed }).unwrap_or(usize::MAX))
    }

    /// The rows of a query that changes nothing, which a standby runs too.
    pub(super) fn select<T>(
        &mut self,
        sql: &str,
        arguments: &[DatumWithOid<'_>],
        each: impl FnMut(&SqlRow<'_>) -> Result<T, Error>,
    ) -> Result<Vec<T>, Error> {
        rows_of(self.client.select(sql, None, arguments), each)
    }

    /// The rows that a statement returns which changes something.
    pub(super) fn update_returning<T>(
        &mut self,
        sql: &str,
        arguments: &[DatumWithOid<'_>],
        each: impl FnMut(&SqlRow<'_>) -> Result<T, Error>,
    ) -> Result<Vec<T>, Error> {
        rows_of(self.client.update(sql, None, arguments), each)
    }

    /// What `of` makes of the first row that a statement returns, if any.
    pub(crate) fn row<T>(
        &mut self,
        sql: &str,
        arguments: &[DatumWithOid<'_>],
        of: impl FnMut(&SqlRow<'_>) -> Result<T, Error>,
    ) -> Result<Option<T>, Error> {
        Ok(self.update_returning(sql, arguments, of)?.into_iter().next())
    }

    /// The first column of the first row that a statement returns; `None` if it is null, or there is no
    /// row.
    pub(crate) fn value<T: FromDatum + IntoDatum>(
        &mut self,
        sql: &str,
        arguments: &[DatumWithOid<'_>],
    ) -> Result<Option<T>, Error> {
        Ok(self.row(sql, arguments, |row| row.nullable(1))?.flatten())
    }
}

const FAILED: Error = Error::Internal { what: "a statement on the catalog failed" };

fn rows_of<T>(
    result: SpiResult<SpiTupleTable<'_>>,
    mut each: impl FnMut(&SqlRow<'_>) -> Result<T, Error>,
) -> Result<Vec<T>, Error> {
    result.map_err(|_| FAILED)?.map(|row| each(&SqlRow(row))).collect()
}

pub(super) fn id(name: &KeyName) -> DatumWithOid<'static> {
    (name.id().get() as i32).into()
}

/// A role as an argument. (pgrx passes an `Oid` of 0, which is PUBLIC, as null.)
pub(super) fn role(role: pg_sys::Oid) -> DatumWithOid<'static> {
    i64::from(role.to_u32()).into()
}

pub(super) fn number_of(version: KeyVersion) -> DatumWithOid<'static> {
    (version.get() as i32).into()
}

/// Calls `body` with the rights of the owner of the extension's tables. The caller has checked
/// what the current user may do.
///
/// # Errors
///
/// What `body` returns.
pub(crate) fn as_owner<T>(
    body: impl FnOnce(&mut Writer<'_, '_>) -> Result<T, Error>,
) -> Result<T, Error> {
    let caller = pg::current_user();
    let _rights = RightsOf::role(owner_of_tables()?);
    Spi::connect_mut(|client| body(&mut Writer { client, caller }))
}

/// Whether a statement that changes the catalog is allowed now; asked before a provider is, so that
/// no key is made there in vain.
pub(crate) fn refuse_if_read_only(command: &'static CStr) {
    // SAFETY: the command's name is a constant; raises an error on a standby, in a read-only
    // transaction and in a parallel operation.
    unsafe {
        pg_sys::PreventCommandIfReadOnly(command.as_ptr());
        pg_sys::PreventCommandIfParallelMode(command.as_ptr());
    }
}

fn owner_of_tables() -> Result<pg_sys::Oid, Error> {
    let table = table_oid(c"key")?;
    let lock = pg_sys::AccessShareLock as pg_sys::LOCKMODE;
    // SAFETY: the table exists; the relation is closed again.
    unsafe {
        let relation = pg_sys::table_open(table, lock);
        let owner = (*(*relation).rd_rel).relowner;
        pg_sys::table_close(relation, lock);
        Ok(owner)
    }
}
