//! From a value's header to the cipher that opens it: names of keys, the catalog, keyrings and
//! providers.

use std::collections::{BTreeSet, HashMap};
use std::path::PathBuf;
use std::time::Duration;

use envelope::{DataKey, KeyCipher, KeyId, KeyName, KeyVersion};
use keyring::call::RequestLimits;
use keyring::file::{FileOptions, FileProvider};
use keyring::material::KeyMaterial;
use keyring::provider::{Provider, ProviderError, ProviderErrorKind};
use keyring::secret::Secret;
use keyring::version::VersionId;

use crate::catalog::{Catalog, Version};
use crate::error::Error;
use crate::settings::Providers;

/// The name of the key of literals that have no column.
const DATABASE: &str = "database";

/// Where keys come from.
pub struct Keys {
    /// What `--keys` gave.
    given: Catalog,
    /// The catalog of each database in the input, in order, as far as it is known.
    catalogs: Vec<Catalog>,
    database: usize,
    /// Names that keys may have, besides those in the catalog.
    names: BTreeSet<KeyName>,
    keyring: Option<FileProvider>,
    /// The provider of all versions, whatever the catalog says.
    provider: Option<String>,
    providers: Providers,
    /// Whether the catalog may come later than what needs it.
    catalog_follows: bool,
    /// What providers have of keys that no catalog tells of.
    discovered: HashMap<KeyName, HashMap<KeyVersion, DataKey>>,
}

/// A version's cipher.
pub struct OpenKey {
    /// The key's name.
    pub name: KeyName,
    /// The cipher of its values.
    pub cipher: Secret<KeyCipher>,
    /// Whether it is known to be the key that the version was made with.
    pub is_checked: bool,
}

impl Keys {
    /// Keys that come from these places. The keyring, if there is one, is read.
    pub fn new(
        keyring: Option<PathBuf>,
        provider: Option<String>,
        providers: Providers,
        names: impl IntoIterator<Item = KeyName>,
        given: Catalog,
    ) -> Result<Self, Error> {
        let mut names: BTreeSet<_> = names.into_iter().collect();
        names.extend(KeyName::parse(DATABASE).ok());
        let keyring = keyring.map(open_keyring).transpose()?;
        if let Some(keyring) = &keyring {
            names.extend(keyring.names()?);
        }
        Ok(Self {
            catalogs: vec![given.clone()],
            given,
            database: 0,
            names,
            keyring,
            provider,
            providers,
            catalog_follows: false,
            discovered: HashMap::new(),
        })
    }

    /// The catalog of the database that the input is in now.
    pub fn catalog(&mut self) -> &mut Catalog {
        &mut self.catalogs[self.database]
    }

    /// Goes on to the next database of the input.
    pub fn next_database(&mut self) {
        self.database += 1;
        if self.database == self.catalogs.len() {
            self.catalogs.push(self.given.clone());
        }
        self.discovered.clear();
    }

    /// Goes back to the first database.
    pub fn rewind(&mut self) {
        self.database = 0;
    }

    /// The input is a pipe, in which the catalog may come later than what needs it.
    pub fn catalog_follows(&mut self) {
        self.catalog_follows = true;
    }

    /// A name that a key may have.
    pub fn add_name(&mut self, name: KeyName) {
        self.names.insert(name);
    }

    /// Fetches a version: of several keys, if names are known that have the same id, and no catalog
    /// says which it is.
    pub fn fetch(&mut self, id: KeyId, number: KeyVersion) -> Result<Vec<OpenKey>, Error> {
        let names = match self.catalogs[self.database].name(id) {
            Some(name) => vec![name.clone()],
            None => self.names.iter().filter(|name| name.id() == id).cloned().collect(),
        };
        let mut keys = Vec::new();
        let mut failure = Error::new(format!("it is under a key with the id {id}, whose name is not known"))
            .with_hint(
                "Give --keys with what enc_export_keys() returned or a dump of the schema \"encryption\", or \
                 --key NAME for each key.",
            );
        for name in names {
            match self.fetch_named(name, number) {
                Ok(key) => keys.push(key),
                Err(error) => failure = error,
            }
        }
        match keys.is_empty() {
            true if self.catalog_follows => Err(failure.and_hint(
                "The dump comes through a pipe, in which its catalog of keys may follow only later: give it \
                 as a file, or the catalog with --keys.",
            )),
            true => Err(failure),
            false => Ok(keys),
        }
    }

    fn fetch_named(&mut self, name: KeyName, number: KeyVersion) -> Result<OpenKey, Error> {
        let version = self.catalogs[self.database].version(name.id(), number).cloned();
        let (key, is_checked) = match &version {
            Some(version) => (self.known(&name, number, version)?, true),
            None => (self.discover(&name, number)?, false),
        };
        Ok(OpenKey { cipher: cipher(&name, &key), name, is_checked })
    }

    /// A version that the catalog knows.
    fn known(
        &mut self,
        name: &KeyName,
        number: KeyVersion,
        version: &Version,
    ) -> Result<DataKey, Error> {
        let what = || format!("version {number} of key \"{name}\"");
        if version.is_destroyed {
            return Err(Error::new(format!("{} was destroyed", what())).with_hint(
                "Nothing can open its values, unless a backup of the key server has it.",
            ));
        }
        let id = VersionId { keyspace: version.keyspace, name, version: number };
        let mut result = None;
        if let Some(keyring) = &mut self.keyring {
            // The server's own keyring numbers versions by itself, once a key has moved.
            let is_own = self.provider.is_none()
                && self.providers.kind(&version.provider)?
                    == Some(keyring::configured::ProviderKind::File);
            let reference = match is_own {
                true => version.reference.clone(),
                false => format!("{name}:{number}"),
            };
            result = Some(keyring.open(&id, &reference, None));
        }
        let provider = self.provider.clone().unwrap_or_else(|| version.provider.clone());
        let is_elsewhere = provider != "file";
        let key = match result {
            Some(Ok(key)) => key,
            // What a keyring doesn't have may be where the catalog says.
            Some(Err(error)) if !(is_missing(&error) && is_elsewhere) => {
                return Err(Error::from(error).at(what()));
            }
            _ if !is_elsewhere => {
                return Err(Error::new(format!("{} is in the server's keyring file", what()))
                    .with_hint("Give --keyring with that file."));
            }
            missing => {
                let opened = self.providers.provider(&provider).map_err(|error| match missing {
                    Some(Err(in_keyring)) => Error::from(in_keyring).with_hint(format!(
                        "The catalog says that it comes from provider \"{provider}\". Give that \
                         provider's settings, or a keyring that has it."
                    )),
                    _ => error,
                })?;
                opened.open(&id, &version.reference, version.wrapped.as_deref()).map_err(
                    |error| {
                        Error::from(error).at(format!("{}, from provider \"{provider}\"", what()))
                    },
                )?
            }
        };
        match version.check_value.matches(&key, &id) {
            true => Ok(key),
            false => Err(Error::new(format!(
                "{} is another key there than the one that it was made with",
                what()
            ))
            .with_hint(
                "Its check value differs: the keyring or the key server is another database's, or was \
                 set up anew. Restore the one that belongs to the backup.",
            )),
        }
    }

    /// A version that no catalog tells of, from a provider that keeps keys itself.
    fn discover(&mut self, name: &KeyName, number: KeyVersion) -> Result<DataKey, Error> {
        if !self.discovered.contains_key(name) {
            let found = self.discover_all(name)?;
            self.discovered.insert(name.clone(), found);
        }
        let found = self.discovered.get(name).and_then(|versions| versions.get(&number));
        found.cloned().ok_or_else(|| {
            Error::new(format!(
                "there is no version {number} of key \"{name}\" where keys come from"
            ))
            .with_hint(
                "Give --keys with what enc_export_keys() returned: the database may have numbered \
                     its versions in another way than the provider.",
            )
        })
    }

    fn discover_all(&mut self, name: &KeyName) -> Result<HashMap<KeyVersion, DataKey>, Error> {
        let mut all = HashMap::new();
        if let Some(keyring) = &mut self.keyring {
            let found = keyring.discover(name, &[])?;
            all.extend(found.into_iter().map(|version| (version.number, version.key)));
        }
        let provider = self.provider.clone();
        match provider {
            Some(provider) if all.is_empty() && provider != "file" => {
                if self
                    .providers
                    .kind(&provider)?
                    .is_some_and(keyring::configured::ProviderKind::is_envelope)
                {
                    return Err(Error::new(format!(
                        "provider \"{provider}\" unwraps keys, and there is no wrapped key \"{name}\""
                    ))
                    .with_hint(
                        "The wrapped keys are in the database's catalog, and so in every dump of it. Give \
                         --keys with what enc_export_keys() returned, or with a plain dump of the schema \
                         \"encryption\" (pg_restore --data-only --schema=encryption -f keys.sql db.dump).",
                    ));
                }
                let found =
                    self.providers.provider(&provider)?.discover(name, &[]).map_err(|error| {
                        Error::from(error)
                            .at(format!("key \"{name}\", from provider \"{provider}\""))
                    })?;
                all.extend(found.into_iter().map(|version| (version.number, version.key)));
            }
            Some(_) => {}
            None if self.keyring.is_none() => {
                return Err(Error::new(format!("nothing says where key \"{name}\" comes from"))
                    .with_hint(
                        "Give --keyring FILE; or --provider with its settings; or --keys FILE, which names the \
                         provider of each version.",
                    ));
            }
            None => {}
        }
        Ok(all)
    }
}

fn open_keyring(path: PathBuf) -> Result<FileProvider, Error> {
    let absolute = std::path::absolute(&path).map_err(|error| Error::opening(&path, &error))?;
    let options =
        FileOptions { path: absolute.to_string_lossy().into_owned(), ..FileOptions::default() };
    let limits = RequestLimits { total: Duration::from_secs(5), ..RequestLimits::default() };
    Ok(FileProvider::new(&options, limits, Box::new(|| false))?)
}

/// Values of the key `database` are under a subkey.
fn cipher(name: &KeyName, key: &DataKey) -> Secret<KeyCipher> {
    match name.as_str() {
        DATABASE => KeyMaterial::of_database_key(key).values,
        _ => KeyMaterial::of_column_key(key).values,
    }
}

fn is_missing(error: &ProviderError) -> bool {
    matches!(error.kind, ProviderErrorKind::KeyMissing | ProviderErrorKind::VersionMissing)
}
