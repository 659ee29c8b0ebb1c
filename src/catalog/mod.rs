//! The extension's tables in schema `encryption`: what keys and versions exist, and who may use
//! them.
//!
//! They are read here, by system-table scans, and written by the functions in `functions/`, by
//! SQL. A change reaches every session through `invalidation`.

pub(crate) mod backups;
pub(crate) mod invalidation;
pub(crate) mod key_info;
pub(crate) mod log;
#[cfg(not(feature = "pg14"))]
mod pages;
mod replicated;
mod scan;
mod sql;
pub(crate) mod write;

use std::ffi::CString;

use envelope::{KeyId, KeyName, KeyVersion};
use keyring::version::{CheckValue, Keyspace};
use pgrx::pg_sys;

use crate::errors::Error;
use crate::mask::Mask;
use crate::types::encoding::utf8_string;
use scan::{Row, Rows, Table, Type, scan, scan_unwatched};

/// The schema of the extension's tables.
pub(crate) const SCHEMA: &std::ffi::CStr = c"encryption";

/// The name of the database key.
pub(crate) const DATABASE_KEY: &str = "database";

/// A key as the catalog has it.
#[derive(Debug)]
pub(crate) struct Key {
    pub(crate) name: KeyName,
    pub(crate) owner: pg_sys::Oid,
    /// What is shown of its values to those who may see nothing else of them.
    pub(crate) mask: Mask,
    /// In ascending order of their numbers.
    pub(crate) versions: Vec<Version>,
    pub(crate) grants: Vec<Grant>,
}

/// A version of a key as the catalog has it.
#[derive(Debug)]
pub(crate) struct Version {
    pub(crate) number: KeyVersion,
    pub(crate) state: State,
    pub(crate) provider: String,
    pub(crate) reference: String,
    pub(crate) wrapped: Option<Vec<u8>>,
    pub(crate) check_value: CheckValue,
    pub(crate) keyspace: Keyspace,
}

/// What a version may be used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// Nothing yet: it is made first and reaches every node before it is used.
    Pending,
    /// Encrypting and decrypting. At most one version of a key is.
    Active,
    /// Decrypting.
    Deprecated,
    /// Nothing, until it is enabled again.
    Disabled,
    /// Nothing, for good.
    Destroyed,
}

/// A server, as far as it tells whether data were restored (`restored.rs`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Server {
    pub(crate) system_identifier: i64,
    pub(crate) timeline: i32,
    pub(crate) base_backup: Option<String>,
}

/// A role's privilege on a key.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Grant {
    /// `InvalidOid` is PUBLIC.
    pub(crate) grantee: pg_sys::Oid,
    pub(crate) privilege: Privilege,
}

/// What a role may do with a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Privilege {
    /// Turn plaintexts into values.
    Encrypt,
    /// Learn whether two values have equal plaintexts.
    Compare,
    /// See values masked.
    Mask,
    /// Turn values into plaintexts. Includes `Compare` and `Mask`.
    Decrypt,
}

impl Key {
    /// The version with this number.
    pub(crate) fn version(&self, number: KeyVersion) -> Option<&Version> {
        self.versions.iter().find(|version| version.number == number)
    }

    /// The version that encrypts.
    pub(crate) fn active_version(&self) -> Option<&Version> {
        self.versions.iter().find(|version| version.state == State::Active)
    }

    /// The greatest version number there ever was.
    pub(crate) fn newest_number(&self) -> Option<KeyVersion> {
        self.versions.last().map(|version| version.number)
    }

    /// Whether it is the database key.
    pub(crate) fn is_database_key(&self) -> bool {
        self.name.as_str() == DATABASE_KEY
    }
}

impl State {
    fn parse(state: &str) -> Result<Self, Error> {
        [Self::Pending, Self::Active, Self::Deprecated, Self::Disabled, Self::Destroyed]
            .into_iter()
            .find(|each| each.name() == state)
            .ok_or_else(|| damaged(format!("unknown version state {state:?}")))
    }

    /// The state's name in the catalog.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Active => "active",
            Self::Deprecated => "deprecated",
            Self::Disabled => "disabled",
            Self::Destroyed => "destroyed",
        }
    }

    /// Whether values under the version may be decrypted.
    pub(crate) fn decrypts(self) -> bool {
        matches!(self, Self::Active | Self::Deprecated)
    }
}

impl Privilege {
    /// Every privilege, each at its own number.
    pub(crate) const ALL: [Self; 4] = [Self::Encrypt, Self::Compare, Self::Mask, Self::Decrypt];

    /// The privilege's name in `enc_grant` and in the catalog.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Encrypt => "encrypt",
            Self::Compare => "compare",
            Self::Mask => "mask",
            Self::Decrypt => "decrypt",
        }
    }

    /// The privilege with this name.
    ///
    /// # Errors
    ///
    /// If there is none.
    pub(crate) fn parse(name: &str) -> Result<Self, Error> {
        Self::ALL
            .into_iter()
            .find(|privilege| privilege.name() == name)
            .ok_or_else(|| Error::PrivilegeUnknown { privilege: name.to_owned() })
    }

    /// Whether who has this privilege also has `other`.
    pub(crate) fn includes(self, other: Self) -> bool {
        self == other || (self == Self::Decrypt && matches!(other, Self::Compare | Self::Mask))
    }
}

/// Whether this database has the tables.
pub(crate) fn is_there() -> bool {
    scan::table_oid(c"key").is_ok()
}

/// Reads the key with this id, or `None` if there is none.
///
/// # Errors
///
/// If the catalog is missing or damaged.
pub(crate) fn read_key(id: KeyId) -> Result<Option<Key>, Error> {
    let mut key = None;
    scan(&KEY_TABLE, Rows::Of(id, c"key_pkey"), |row| {
        let name = row.text(KEY_NAME)?;
        let name = KeyName::parse(&name)
            .map_err(|why| damaged(format!("key name {name:?} is invalid because {why}")))?;
        if name.id() != id {
            return Err(damaged(format!("key \"{name}\" does not have the id of its name")));
        }
        let mask = match row.bytes(KEY_MASK)? {
            None => Mask::default(),
            Some(mask) => Mask::parse(&utf8_string(mask)?)?,
        };
        key = Some((name, row.oid(KEY_OWNER)?, mask));
        Ok(())
    })?;
    let Some((name, owner, mask)) = key else { return Ok(None) };
    Ok(Some(Key { versions: read_versions(id)?, grants: read_grants(id)?, name, owner, mask }))
}

/// The ids of all keys.
///
/// # Errors
///
/// If the table can't be read.
pub(crate) fn read_key_ids() -> Result<Vec<KeyId>, Error> {
    let mut ids = Vec::new();
    scan(&KEY_TABLE, Rows::All, |row| {
        let name = row.text(KEY_NAME)?;
        let name = KeyName::parse(&name)
            .map_err(|why| damaged(format!("key name {name:?} is invalid because {why}")))?;
        ids.push(name.id());
        Ok(())
    })?;
    Ok(ids)
}

// The columns of the tables in sql/ up to the last that is read, and their numbers, counted from 1.
const KEY_TABLE: Table = Table {
    name: c"key",
    columns: &[Type::Int4, Type::Variable, Type::Oid, Type::Timestamp, Type::Variable],
};
const KEY_NAME: usize = 2;
const KEY_OWNER: usize = 3;
const KEY_MASK: usize = 5;

const KEY_VERSION_TABLE: Table = Table {
    name: c"key_version",
    columns: &[
        Type::Int4,
        Type::Int4,
        Type::Variable,
        Type::Variable,
        Type::Variable,
        Type::Variable,
        Type::Variable,
        Type::Uuid,
    ],
};
const VERSION_NUMBER: usize = 2;
const VERSION_STATE: usize = 3;
const VERSION_PROVIDER: usize = 4;
const VERSION_REFERENCE: usize = 5;
const VERSION_WRAPPED: usize = 6;
const VERSION_CHECK_VALUE: usize = 7;
const VERSION_KEYSPACE: usize = 8;

const KEY_GRANT_TABLE: Table =
    Table { name: c"key_grant", columns: &[Type::Int4, Type::Oid, Type::Variable] };
const GRANT_GRANTEE: usize = 2;
const GRANT_PRIVILEGE: usize = 3;

const KEYSPACE_TABLE: Table = Table {
    name: c"keyspace",
    columns: &[
        Type::Bool,
        Type::Uuid,
        Type::Timestamp,
        Type::Int4,
        Type::Int8,
        Type::Int4,
        Type::Variable,
    ],
};
const KEYSPACE_ID: usize = 2;
const KEYSPACE_DIGEST_VERSION: usize = 4;
const KEYSPACE_SYSTEM_IDENTIFIER: usize = 5;
const KEYSPACE_TIMELINE: usize = 6;
const KEYSPACE_BASE_BACKUP: usize = 7;

const MIGRATION_PHASE: usize = 3;
const MIGRATION_TABLE: usize = 4;
const MIGRATION_COLUMN: usize = 5;
const MIGRATION_TARGET: usize = 6;
const MIGRATION_SOURCE: usize = 7;

fn read_versions(id: KeyId) -> Result<Vec<Version>, Error> {
    let mut versions = Vec::new();
    scan(&KEY_VERSION_TABLE, Rows::Of(id, c"key_version_pkey"), |row| {
        versions.push(read_version(row)?);
        Ok(())
    })?;
    versions.sort_by_key(|version| version.number);
    Ok(versions)
}

fn read_version(row: &Row) -> Result<Version, Error> {
    let number = u32::try_from(row.int4(VERSION_NUMBER)?)
        .ok()
        .and_then(KeyVersion::new)
        .ok_or_else(|| damaged("a version's number is not positive"))?;
    let check_value = row
        .bytes(VERSION_CHECK_VALUE)?
        .and_then(|bytes| bytes.try_into().ok())
        .ok_or_else(|| damaged("a key check value does not have 16 bytes"))?;
    Ok(Version {
        number,
        state: State::parse(&row.text(VERSION_STATE)?)?,
        provider: row.text(VERSION_PROVIDER)?,
        reference: row.text(VERSION_REFERENCE)?,
        wrapped: row.bytes(VERSION_WRAPPED)?.map(<[u8]>::to_vec),
        check_value: CheckValue::from_bytes(check_value),
        keyspace: Keyspace(row.uuid(VERSION_KEYSPACE)?),
    })
}

fn read_grants(id: KeyId) -> Result<Vec<Grant>, Error> {
    let mut grants = Vec::new();
    scan(&KEY_GRANT_TABLE, Rows::Of(id, c"key_grant_pkey"), |row| {
        let privilege = row.text(GRANT_PRIVILEGE)?;
        grants.push(Grant {
            grantee: row.oid(GRANT_GRANTEE)?,
            privilege: Privilege::parse(&privilege)
                .map_err(|_| damaged(format!("unknown privilege {privilege:?}")))?,
        });
        Ok(())
    })?;
    Ok(grants)
}

/// Reads the keyspace of this database.
///
/// # Errors
///
/// If the catalog is missing or damaged.
pub(crate) fn read_keyspace() -> Result<Keyspace, Error> {
    let mut keyspace = None;
    scan(&KEYSPACE_TABLE, Rows::All, |row| {
        keyspace = Some(Keyspace(row.uuid(KEYSPACE_ID)?));
        Ok(())
    })?;
    keyspace.ok_or_else(|| damaged("table encryption.keyspace is empty"))
}

/// Reads the server on which the keys were last compared with their providers, or made; `None` since a
/// dump was restored.
///
/// # Errors
///
/// If the catalog is missing or damaged.
pub(crate) fn read_server() -> Result<Option<Server>, Error> {
    let mut server = None;
    scan(&KEYSPACE_TABLE, Rows::All, |row| {
        let Some(system_identifier) = row.optional_int8(KEYSPACE_SYSTEM_IDENTIFIER)? else {
            return Ok(());
        };
        server = Some(Server {
            system_identifier,
            timeline: row.int4(KEYSPACE_TIMELINE)?,
            base_backup: row
                .bytes(KEYSPACE_BASE_BACKUP)?
                .map(|bytes| String::from_utf8_lossy(bytes).into_owned()),
        });
        Ok(())
    })?;
    Ok(server)
}

/// The version of the database key that digests are made with; `None` before there is a key.
///
/// # Errors
///
/// If the catalog is missing or damaged.
pub(crate) fn read_digest_version() -> Result<Option<KeyVersion>, Error> {
    let mut version = None;
    scan(&KEYSPACE_TABLE, Rows::All, |row| {
        let number = row.nullable_int4(KEYSPACE_DIGEST_VERSION)?;
        version = number.and_then(|number| u32::try_from(number).ok()).and_then(KeyVersion::new);
        Ok(())
    })?;
    Ok(version)
}

/// A migration that is under way, as far as its trigger asks for it. Who writes one owns the table.
pub(crate) struct Migration {
    pub(crate) table: pg_sys::Oid,
    /// The column that applications use, which the other one follows.
    pub(crate) leader: CString,
    /// What the other column is called, before the exchange of names and after it.
    pub(crate) followers: [CString; 2],
}

/// Reads the migrations that are not over.
///
/// # Errors
///
/// If the catalog is missing or damaged.
pub(crate) fn read_migrations() -> Result<Vec<Migration>, Error> {
    let mut migrations = Vec::new();
    scan_unwatched(c"migration", Rows::All, |row| {
        if !matches!(row.text(MIGRATION_PHASE)?.as_str(), "finished" | "rolled back") {
            migrations.push(Migration {
                table: row.oid(MIGRATION_TABLE)?,
                leader: row.name(MIGRATION_COLUMN)?,
                followers: [row.name(MIGRATION_TARGET)?, row.name(MIGRATION_SOURCE)?],
            });
        }
        Ok(())
    })?;
    Ok(migrations)
}

/// The object id of the table of keys, whose lock those hold who change keys.
///
/// # Errors
///
/// If the catalog is missing.
pub(crate) fn key_table() -> Result<pg_sys::Oid, Error> {
    scan::table_oid(c"key")
}

/// Whether any version that isn't destroyed comes from the provider with this name.
///
/// # Errors
///
/// If the catalog is missing or damaged.
pub(crate) fn uses_provider(provider: &str) -> Result<bool, Error> {
    let mut uses = false;
    scan(&KEY_VERSION_TABLE, Rows::All, |row| {
        uses |= row.text(VERSION_PROVIDER)? == provider
            && State::parse(&row.text(VERSION_STATE)?)? != State::Destroyed;
        Ok(())
    })?;
    Ok(uses)
}

fn damaged(what: impl Into<String>) -> Error {
    Error::CatalogDamaged { what: what.into() }
}
