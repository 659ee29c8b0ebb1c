//! The catalog's rows of keys and their versions: from a dump, or from what `enc_export_keys()` returned.

use std::collections::HashMap;

use envelope::{KeyId, KeyName, KeyVersion};
use keyring::version::{CheckValue, Keyspace};
use serde::Deserialize;

use crate::error::Error;

/// The keys of a database and their versions.
#[derive(Clone, Default)]
pub struct Catalog {
    names: HashMap<KeyId, KeyName>,
    versions: HashMap<(KeyId, KeyVersion), Version>,
}

/// A version of a key: where its bytes are, and how they are recognized.
#[derive(Clone)]
pub struct Version {
    /// The provider's name.
    pub provider: String,
    /// Where the provider has it.
    pub reference: String,
    /// What the provider wrapped.
    pub wrapped: Option<Vec<u8>>,
    /// Whether what comes back is the key.
    pub check_value: CheckValue,
    /// The database that it was made in.
    pub keyspace: Keyspace,
    /// Whether it was destroyed.
    pub is_destroyed: bool,
}

/// The tables of the catalog that say what keys there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Table {
    /// `encryption.key`
    Key,
    /// `encryption.key_version`
    KeyVersion,
}

impl Table {
    /// The table with this name in the schema `encryption`.
    pub fn parse(name: &[u8]) -> Option<Self> {
        match name {
            b"key" => Some(Self::Key),
            b"key_version" => Some(Self::KeyVersion),
            _ => None,
        }
    }

    /// Its columns in order, for a row of so many values that doesn't name them. Those that a version of the
    /// extension adds come last, and aren't needed here.
    pub fn columns(self, values: usize) -> Vec<Vec<u8>> {
        let columns: &[&str] = match self {
            Self::Key => &["key_id", "name", "owner", "created_at"],
            Self::KeyVersion => &[
                "key_id",
                "version",
                "state",
                "provider",
                "reference",
                "wrapped",
                "check_value",
                "keyspace",
                "created_at",
                "created_by",
                "activated_at",
                "deprecated_at",
            ],
        };
        let added = std::iter::repeat_n(&"", values.saturating_sub(columns.len()));
        columns.iter().chain(added).map(|column| column.as_bytes().to_vec()).collect()
    }
}

impl Catalog {
    /// The name of the key with this id.
    pub fn name(&self, id: KeyId) -> Option<&KeyName> {
        self.names.get(&id)
    }

    /// What there is about a version.
    pub fn version(&self, id: KeyId, version: KeyVersion) -> Option<&Version> {
        self.versions.get(&(id, version))
    }

    /// Whether it has no key.
    pub fn is_empty(&self) -> bool {
        self.names.is_empty() && self.versions.is_empty()
    }

    /// Takes a row of a dump. Values are in their text forms; null is `None`.
    pub fn add_row(
        &mut self,
        table: Table,
        columns: &[Vec<u8>],
        values: &[Option<Vec<u8>>],
    ) -> Result<(), Error> {
        if columns.len() != values.len() {
            return Err(malformed("a row has another number of values than of columns"));
        }
        let row = Row { columns, values };
        let id = KeyId::new(row.number("key_id")?).ok_or_else(|| malformed("key_id"))?;
        match table {
            Table::Key => self.add_name(id, row.text("name")?),
            Table::KeyVersion => {
                let number = KeyVersion::new(row.number("version")?);
                let number = number.ok_or_else(|| malformed("version"))?;
                let wrapped = row.optional("wrapped").map(bytea).transpose()?;
                let version = Version {
                    provider: row.text("provider")?.to_owned(),
                    reference: row.text("reference")?.to_owned(),
                    wrapped,
                    check_value: check_value(&bytea(row.text("check_value")?)?)?,
                    keyspace: keyspace(row.text("keyspace")?)?,
                    is_destroyed: row.text("state")? == "destroyed",
                };
                self.add_version(id, number, version)
            }
        }
    }

    /// Takes what `enc_export_keys()` returned.
    pub fn add_export(&mut self, document: &[u8]) -> Result<(), Error> {
        let export: Export = serde_json::from_slice(document).map_err(|error| {
            Error::new(format!(
                "it is not what enc_export_keys() returned, at line {}, column {}",
                error.line(),
                error.column()
            ))
        })?;
        if export.format != 1 {
            return Err(Error::new(format!("its format {} is not known", export.format)));
        }
        for key in export.keys {
            let name = KeyName::parse(&key.name).map_err(|_| malformed("name"))?;
            self.add_name(name.id(), name.as_str())?;
            for exported in key.versions.unwrap_or_default() {
                let number =
                    KeyVersion::new(exported.version).ok_or_else(|| malformed("version"))?;
                let version = Version {
                    provider: exported.provider,
                    reference: exported.reference,
                    wrapped: exported.wrapped.as_deref().map(hex).transpose()?,
                    check_value: check_value(&hex(&exported.check_value)?)?,
                    keyspace: keyspace(&exported.keyspace)?,
                    is_destroyed: exported.state == "destroyed",
                };
                self.add_version(name.id(), number, version)?;
            }
        }
        Ok(())
    }

    fn add_name(&mut self, id: KeyId, name: &str) -> Result<(), Error> {
        let name = KeyName::parse(name)
            .ok()
            .filter(|name| name.id() == id)
            .ok_or_else(|| malformed("name"))?;
        self.names.insert(id, name);
        Ok(())
    }

    /// What is there already stays: it is newer, or says the same.
    fn add_version(
        &mut self,
        id: KeyId,
        number: KeyVersion,
        version: Version,
    ) -> Result<(), Error> {
        match self.versions.get(&(id, number)) {
            Some(present) if present.check_value != version.check_value => {
                let name = self.names.get(&id).map_or_else(|| id.to_string(), ToString::to_string);
                Err(Error::new(format!(
                    "the catalogs of keys of two databases don't go together: version {number} of key \
                     \"{name}\" is another key in each"
                ))
                .with_hint(
                    "Give --keys with the catalog of the database that the input is from, and of no other. A \
                     dump that is given as a file needs no --keys.",
                ))
            }
            Some(_) => Ok(()),
            None => {
                self.versions.insert((id, number), version);
                Ok(())
            }
        }
    }
}

/// A row as texts.
struct Row<'a> {
    columns: &'a [Vec<u8>],
    values: &'a [Option<Vec<u8>>],
}

impl<'a> Row<'a> {
    fn optional(&self, column: &str) -> Option<&'a str> {
        let at = self.columns.iter().position(|name| name == column.as_bytes())?;
        std::str::from_utf8(self.values[at].as_deref()?).ok()
    }

    fn text(&self, column: &str) -> Result<&'a str, Error> {
        self.optional(column).ok_or_else(|| malformed(column))
    }

    fn number(&self, column: &str) -> Result<u32, Error> {
        self.text(column)?.parse().map_err(|_| malformed(column))
    }
}

#[derive(Deserialize)]
struct Export {
    format: u32,
    keys: Vec<ExportedKey>,
}

#[derive(Deserialize)]
struct ExportedKey {
    name: String,
    versions: Option<Vec<ExportedVersion>>,
}

#[derive(Deserialize)]
struct ExportedVersion {
    version: u32,
    state: String,
    provider: String,
    reference: String,
    wrapped: Option<String>,
    check_value: String,
    keyspace: String,
}

/// The text form of a `bytea`, as it is with bytea_output = hex.
fn bytea(text: &str) -> Result<Vec<u8>, Error> {
    hex(text.strip_prefix("\\x").ok_or_else(|| malformed("a value of type bytea"))?)
}

fn hex(text: &str) -> Result<Vec<u8>, Error> {
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    let bytes = pairs.iter().map(|[high, low]| Some(digit(*high)? << 4 | digit(*low)?));
    match rest {
        [] => bytes.collect::<Option<_>>().ok_or_else(|| malformed("a value in base16")),
        _ => Err(malformed("a value in base16")),
    }
}

fn check_value(bytes: &[u8]) -> Result<CheckValue, Error> {
    bytes.try_into().map(CheckValue::from_bytes).map_err(|_| malformed("check_value"))
}

fn keyspace(uuid: &str) -> Result<Keyspace, Error> {
    let bytes = hex(&uuid.replace('-', ""))?;
    bytes.try_into().map(Keyspace).map_err(|_| malformed("keyspace"))
}

fn malformed(what: &str) -> Error {
    Error::new(format!("the catalog of keys has a row that can't be used: {what}"))
        .with_hint("Use the dump, or what enc_export_keys() returned, as it was written.")
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXPORT: &str = r#"{"format": 1, "exported_at": "2026-11-22", "keyspace": {"id": "7bc218cc-c607-49ea-a318-f92ec762b73e"},
        "keys": [{"name": "user_pii", "owner": "postgres", "grants": [], "versions": [
            {"version": 1, "state": "active", "provider": "vault", "reference": "user_pii?version=1",
             "wrapped": null, "check_value": "90438f6b6519c431824241d3b05fa468",
             "keyspace": "7bc218cc-c607-49ea-a318-f92ec762b73e", "created_by": "postgres"}]}]}"#;

    fn row(values: &[&str]) -> Vec<Option<Vec<u8>>> {
        values.iter().map(|v| (*v != "\\N").then(|| v.as_bytes().to_vec())).collect()
    }

    fn version_row(check_value: &str) -> Vec<Option<Vec<u8>>> {
        row(&[
            "1951019969",
            "1",
            "active",
            "vault",
            "user_pii?version=1",
            "\\N",
            check_value,
            "7bc218cc-c607-49ea-a318-f92ec762b73e",
            "",
            "",
            "",
            "\\N",
        ])
    }

    #[test]
    fn an_export_and_a_dump_say_the_same() {
        let name = KeyName::parse("user_pii").unwrap();
        let mut catalog = Catalog::default();
        assert!(catalog.is_empty());
        catalog.add_export(EXPORT.as_bytes()).unwrap();
        let keys = Table::Key;
        let values = row(&["1951019969", "user_pii", "", "", "of a later version"]);
        catalog.add_row(keys, &keys.columns(values.len()), &values).unwrap();
        let versions = Table::KeyVersion;
        let same = version_row("\\x90438f6b6519c431824241d3b05fa468");
        catalog.add_row(versions, &versions.columns(12), &same).unwrap();
        assert_eq!(catalog.name(name.id()), Some(&name));
        let version = catalog.version(name.id(), KeyVersion::FIRST).unwrap();
        assert_eq!((version.provider.as_str(), version.wrapped.as_deref()), ("vault", None));
        assert_eq!(version.keyspace.to_string(), "7bc218cc-c607-49ea-a318-f92ec762b73e");

        let other = version_row("\\x00438f6b6519c431824241d3b05fa468");
        let error = catalog.add_row(versions, &versions.columns(12), &other).unwrap_err();
        assert!(error.to_string().contains("is another key"), "{error}");
    }

    #[test]
    fn what_is_no_catalog_is_refused() {
        let mut catalog = Catalog::default();
        for export in [
            "",
            "[]",
            "{}",
            r#"{"format": 2, "keys": []}"#,
            r#"{"format": 1, "keys": [{"name": "A"}]}"#,
        ] {
            assert!(catalog.add_export(export.as_bytes()).is_err(), "{export}");
        }
        let keys = Table::Key;
        // A name that has another id.
        for values in [&["1951019969", "user_pij", "", ""][..], &["1951019969", "user_pii"]] {
            assert!(catalog.add_row(keys, &keys.columns(values.len()), &row(values)).is_err());
        }
        for check_value in ["90438f6b6519c431824241d3b05fa468", "\\x90", "\\x9", "\\xg0"] {
            let columns = Table::KeyVersion.columns(12);
            let values = version_row(check_value);
            assert!(catalog.add_row(Table::KeyVersion, &columns, &values).is_err());
        }
    }
}
