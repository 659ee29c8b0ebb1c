//! The ledger of backups: which versions of keys they need, and for how long.

use envelope::{KeyName, KeyVersion};
use pgrx::datum::DatumWithOid;

use super::log::Event;
use super::write::{Writer, id, number_of};
use crate::errors::Error;

/// A backup that is to be recorded.
pub(crate) struct Backup<'a> {
    pub(crate) label: &'a str,
    /// A `timestamptz`.
    pub(crate) retained_until: DatumWithOid<'a>,
    /// Whether WAL that is archived after it may be replayed on it.
    pub(crate) with_wal: bool,
}

impl Writer<'_, '_> {
    /// Notes that a backup needs every version that isn't destroyed; returns their number. One that is
    /// recorded again is retained for the longer time.
    pub(crate) fn record_backup(
        &mut self,
        backup: Backup<'_>,
        reason: Option<&str>,
    ) -> Result<i32, Error> {
        let Backup { label, retained_until, with_wal } = backup;
        let utf8 = || label.as_bytes().to_vec();
        let caller = super::write::role(self.caller);
        // So that the versions that exist now are those that the next rotation finds listed.
        self.lock()?;
        self.run(
            "INSERT INTO encryption.backup (label, recorded_by, retained_until, with_wal)
             VALUES (pg_catalog.convert_from($1, 'UTF8'),
                     pg_catalog.pg_get_userbyid($2::pg_catalog.oid), $3, $4)",
            &[utf8().into(), caller, retained_until, with_wal.into()],
        )?;
        self.run(
            "INSERT INTO encryption.backup_version (label, key_id, version)
             SELECT pg_catalog.convert_from($1, 'UTF8'), key_id, version
               FROM encryption.key_version WHERE state <> 'destroyed'",
            &[utf8().into()],
        )?;
        let versions = self.select(
            "SELECT count(*)::integer FROM encryption.backup_version
              WHERE label = pg_catalog.convert_from($1, 'UTF8')",
            &[utf8().into()],
            |row| row.required(1),
        )?;
        let detail = format!("backup {label:?}");
        self.log(&Event::new("record-backup").detail(&detail).reason(reason))?;
        versions.first().copied().ok_or(Error::Internal { what: "a count without a row" })
    }

    /// Notes that a backup won't be restored any more.
    pub(crate) fn forget_backup(&mut self, label: &str, reason: Option<&str>) -> Result<(), Error> {
        self.lock()?;
        let deleted = self.run(
            "DELETE FROM encryption.backup WHERE label = pg_catalog.convert_from($1, 'UTF8')",
            &[label.as_bytes().to_vec().into()],
        )?;
        if deleted == 0 {
            return Err(Error::BackupUnknown { label: label.to_owned() });
        }
        self.run(
            "DELETE FROM encryption.backup_version WHERE label = pg_catalog.convert_from($1, 'UTF8')",
            &[label.as_bytes().to_vec().into()],
        )?;
        let detail = format!("backup {label:?}");
        self.log(&Event::new("forget-backup").detail(&detail).reason(reason))
    }

    /// Refuses what would make a backup unreadable that is still retained. For who destroys a version,
    /// with the lock held.
    ///
    /// # Errors
    ///
    /// If there is such a backup.
    pub(crate) fn refuse_if_retained(
        &mut self,
        name: &KeyName,
        version: KeyVersion,
    ) -> Result<(), Error> {
        let backups = self.select(
            "SELECT encryption.retained_by_backup($1, $2)",
            &[id(name), number_of(version)],
            |row| row.nullable::<String>(1),
        )?;
        match backups.into_iter().flatten().next() {
            None => Ok(()),
            Some(backup) => Err(Error::KeyVersionRetained { key: name.clone(), version, backup }),
        }
    }
}
