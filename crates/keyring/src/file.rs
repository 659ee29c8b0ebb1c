//! Keys in a file: for trying out and for tests.
//!
//! The *keyring* is JSON (RFC 8259), readable and writable by its owner alone:
//!
//! ```json
//! {
//!   "encryption_ext_keyring": 1,
//!   "keys": {
//!     "user_pii": { "1": "<32 bytes in base64>", "2": "<32 bytes in base64>" }
//!   }
//! }
//! ```
//!
//! It is replaced as a whole: written beside the old one, synchronized to disk, renamed over it, and
//! the folder synchronized. Whatever happens in between, the file at its path is the old keyring or
//! the new one. Writers take turns by a lock on `<path>.lock`, and read the keyring again once they
//! have it. A writer that died may leave `<path>.new` behind, which the next one removes; the lock
//! file stays.

mod contents;

use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use envelope::{DataKey, KeyName, KeyVersion};

use serde::Deserialize;

use crate::call::{self, RequestLimits};
use crate::options::{self, configuration};
use crate::provider::{
    self, Finding, FoundVersion, Interrupt, MadeVersion, Provider, ProviderError,
    ProviderErrorKind, WrappedKey,
};
use crate::sys;
use crate::version::VersionId;
use crate::watched;

use contents::Keyring;

/// The largest keyring that is read, in bytes: some 200,000 keys.
const MAX_LEN: u64 = 16 << 20;

/// The permission bits that nobody but the owner may have.
const OTHERS: u32 = 0o077;

/// The settings of provider `file`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, default)]
pub struct FileOptions {
    /// The absolute path of the keyring.
    pub path: String,
    /// `yes` if the first [`Provider::make`] makes the keyring where it is missing; `no` unless set.
    pub may_create: String,
}

/// A provider that keeps keys in a file. It is a direct provider; its references are
/// `<name>:<version>`.
pub struct FileProvider {
    path: PathBuf,
    may_create: bool,
    limits: RequestLimits,
    interrupt: Box<dyn Interrupt>,
}

impl FileProvider {
    /// A provider for a keyring. `limits.total` bounds the wait for other writers.
    ///
    /// # Errors
    ///
    /// [`ProviderErrorKind::Configuration`] if the path is not an absolute one to a file, or another
    /// setting is wrong. The file is not looked at.
    pub fn new(
        options: &FileOptions,
        limits: RequestLimits,
        interrupt: Box<dyn Interrupt>,
    ) -> Result<Self, ProviderError> {
        let path = options::required_file(options.path.clone(), "path")?;
        if path.file_name().is_none() {
            return Err(configuration("setting \"path\" is not the path of a file"));
        }
        let may_create = match options.may_create.as_str() {
            "yes" => true,
            "no" | "" => false,
            _ => return Err(configuration("setting \"may_create\" is neither yes nor no")),
        };
        Ok(Self { path, may_create, limits, interrupt })
    }

    /// The names of the keys that the keyring has.
    ///
    /// # Errors
    ///
    /// If the keyring can't be read.
    pub fn names(&self) -> Result<Vec<KeyName>, ProviderError> {
        Ok(self.read()?.names().cloned().collect())
    }

    /// Reads the keyring, after a check that nobody else can.
    fn read(&self) -> Result<Keyring, ProviderError> {
        // Nothing here takes long: whoever wants to give up is asked once.
        call::pause(Duration::ZERO, Instant::now(), &*self.interrupt)?;
        // The checks are made on what was opened, so nothing can be exchanged in between. A symbolic
        // link is refused because a writer would replace the link and leave its target as it was;
        // O_NONBLOCK keeps a named pipe from blocking.
        let mut file = File::options()
            .read(true)
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
            .open(&self.path)
            .map_err(|error| self.not_opened(&error))?;
        let metadata = file.metadata().map_err(|error| self.unreadable(&error.to_string()))?;
        self.check(&metadata)?;
        let contents = watched::read_at_most(&mut file, metadata.len(), MAX_LEN)
            .map_err(|error| self.unreadable(&error.to_string()))?
            .ok_or_else(|| self.unreadable("it is larger than 16 MiB"))?;
        Keyring::parse(&contents).map_err(|why| {
            ProviderError::new(
                ProviderErrorKind::KeyringMalformed,
                format!("keyring file \"{}\" is malformed: {why}", self.path.display()),
            )
            .with_hint(
                "Restore the file from a backup. Keys that are only in it can't be had otherwise.",
            )
        })
    }

    fn check(&self, metadata: &fs::Metadata) -> Result<(), ProviderError> {
        let path = self.path.display();
        if !metadata.is_file() {
            return Err(self.unreadable("it is not a regular file"));
        }
        let (owner, user) = (metadata.uid(), sys::effective_user());
        if owner != user && owner != 0 {
            return Err(insecure(format!("keyring file \"{path}\" belongs to another user"))
                .with_hint(format!("It must belong to the user with the id {user} or to root.")));
        }
        if metadata.mode() & OTHERS != 0 {
            return Err(insecure(format!(
                "keyring file \"{path}\" has group or world access (mode {:04o})",
                metadata.mode() & 0o7777
            ))
            .with_hint(format!("Run: chmod 600 '{path}'. Others may have read its keys.")));
        }
        Ok(())
    }

    /// Reads the keyring, or begins one if there is none and that is allowed.
    fn read_or_begin(&self) -> Result<Keyring, ProviderError> {
        match self.read() {
            Err(error) if error.kind == ProviderErrorKind::KeyringMissing && self.may_create => {
                Ok(Keyring::default())
            }
            result => result,
        }
    }

    /// Waits for the other writers. The lock ends with the value, also if the process dies.
    fn lock(&self) -> Result<File, ProviderError> {
        let path = self.beside(".lock");
        let file = File::options()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
            .open(&path)
            .map_err(|error| unwritable(&path, &error.to_string()))?;
        let deadline = Instant::now() + self.limits.total;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(file),
                Err(TryLockError::Error(error)) => {
                    return Err(unwritable(&path, &error.to_string()));
                }
                Err(TryLockError::WouldBlock) if Instant::now() >= deadline => {
                    return Err(ProviderError::new(
                        ProviderErrorKind::TimedOut,
                        format!("keyring file \"{}\" is being written", self.path.display()),
                    )
                    .with_hint(format!(
                        "Another process holds the lock on \"{}\".",
                        path.display()
                    )));
                }
                Err(TryLockError::WouldBlock) => {
                    call::pause(Duration::from_millis(5), deadline, &*self.interrupt)?;
                }
            }
        }
    }

    /// Replaces the file. The caller holds the lock.
    fn write(&self, keyring: &Keyring) -> Result<(), ProviderError> {
        let new = self.beside(".new");
        self.replace(&new, &keyring.to_json()).map_err(|error| {
            // Nothing more can be done about the remains; the next writer tries again.
            let _ = fs::remove_file(&new);
            unwritable(&self.path, &error.to_string())
        })
    }

    fn replace(&self, new: &Path, contents: &[u8]) -> io::Result<()> {
        match fs::remove_file(new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = File::options().write(true).create_new(true).mode(0o600).open(new)?;
        file.write_all(contents)?;
        file.sync_all()?;
        fs::rename(new, &self.path)?;
        // The rename is on disk only when the folder is.
        let folder = self.path.parent().expect("an absolute path to a file has a parent");
        File::open(folder)?.sync_all()
    }

    /// A path in the same folder, so that renaming stays in one file system.
    fn beside(&self, suffix: &str) -> PathBuf {
        let mut path = self.path.clone().into_os_string();
        path.push(suffix);
        path.into()
    }

    fn not_opened(&self, error: &io::Error) -> ProviderError {
        let path = self.path.display();
        match (error.kind(), error.raw_os_error()) {
            (io::ErrorKind::NotFound, _) => ProviderError::new(
                ProviderErrorKind::KeyringMissing,
                format!("keyring file \"{path}\" does not exist"),
            )
            .with_hint("Restore it from a backup, or correct the setting that names it."),
            (_, Some(libc::ELOOP)) => {
                insecure(format!("keyring file \"{path}\" is a symbolic link"))
                    .with_hint("The setting must name the file itself.")
            }
            _ => self.unreadable(&error.to_string()),
        }
    }

    fn unreadable(&self, why: &str) -> ProviderError {
        ProviderError::new(
            ProviderErrorKind::KeyringUnreadable,
            format!("could not read keyring file \"{}\": {why}", self.path.display()),
        )
        .with_hint("The server's operating-system user must be able to read it.")
    }
}

impl Provider for FileProvider {
    fn discover(
        &mut self,
        name: &KeyName,
        known: &[&str],
    ) -> Result<Vec<FoundVersion>, ProviderError> {
        let keyring = match self.read() {
            Err(error) if error.kind == ProviderErrorKind::KeyringMissing && self.may_create => {
                return Ok(Vec::new());
            }
            result => result?,
        };
        let found = keyring.versions(name).map(|(number, key)| FoundVersion {
            number,
            reference: reference(name, number),
            key: key.clone(),
        });
        Ok(found.filter(|v| !known.contains(&v.reference.as_str())).collect())
    }

    /// Makes the version after the newest in the file. Another writer's version is never replaced:
    /// the newest is looked up under the lock, so there is no conflict either.
    fn make(&mut self, id: &VersionId<'_>) -> Result<MadeVersion, ProviderError> {
        // Without this, a lock file would be left where there must be no keyring.
        self.read_or_begin()?;
        let _lock = self.lock()?;
        let mut keyring = self.read_or_begin()?;
        let newest = keyring.versions(id.name).map(|(number, _)| number).last();
        let number = newest.map_or(Some(KeyVersion::FIRST), KeyVersion::next).ok_or_else(|| {
            unwritable(&self.path, "the key has as many versions as there are numbers")
        })?;
        let key = provider::generate_key()?;
        keyring.insert(id.name, number, key.clone());
        self.write(&keyring)?;
        Ok(MadeVersion {
            reference: reference(id.name, number),
            wrapped: None,
            key,
            number: Some(number),
        })
    }

    fn open(
        &mut self,
        _id: &VersionId<'_>,
        reference: &str,
        _wrapped: Option<&[u8]>,
    ) -> Result<DataKey, ProviderError> {
        let (name, number) = parse_reference(reference)?;
        let keyring = self.read()?;
        let path = self.path.display();
        if keyring.versions(&name).next().is_none() {
            return Err(ProviderError::new(
                ProviderErrorKind::KeyMissing,
                format!("keyring file \"{path}\" has no key \"{name}\""),
            )
            .with_hint("Restore the file from a backup that has the key."));
        }
        let found = keyring.versions(&name).find(|(n, _)| *n == number);
        found.map(|(_, key)| key.clone()).ok_or_else(|| {
            ProviderError::new(
                ProviderErrorKind::VersionMissing,
                format!("keyring file \"{path}\" has no version {number} of key \"{name}\""),
            )
            .with_hint("Restore the file from a backup that has the version.")
        })
    }

    fn rewrap(
        &mut self,
        _id: &VersionId<'_>,
        _reference: &str,
        _wrapped: Option<&[u8]>,
    ) -> Result<Option<WrappedKey>, ProviderError> {
        Ok(None)
    }

    fn check(&mut self, probe: &VersionId<'_>) -> Result<Vec<Finding>, ProviderError> {
        let path = self.path.display().to_string();
        let reading = match self.read() {
            Err(error) if error.kind == ProviderErrorKind::KeyringMissing && self.may_create => {
                format!("there is no \"{path}\" yet: the first enc_create_key makes it")
            }
            Err(error) => return Err(error),
            Ok(keyring) => {
                let count = keyring.versions(probe.name).count();
                format!("\"{path}\" is a keyring, with {count} version(s) of \"{}\"", probe.name)
            }
        };
        let folder = self.path.parent().unwrap_or(Path::new("/"));
        sys::check_writable(folder).map_err(|error| {
            unwritable(&self.path, &format!("its folder can't be written: {error}"))
        })?;
        Ok(vec![
            Finding::good("reading", reading),
            Finding::good("writing", "allowed"),
            Finding::warning(
                "protection",
                "whoever can read the server's files has the keys",
                "Provider \"file\" is for trying out.",
            ),
        ])
    }
}

/// `<name>:<version>`.
fn reference(name: &KeyName, number: KeyVersion) -> String {
    format!("{name}:{number}")
}

fn parse_reference(reference: &str) -> Result<(KeyName, KeyVersion), ProviderError> {
    reference
        .split_once(':')
        .and_then(|(name, number)| Some((KeyName::parse(name).ok()?, contents::number(number)?)))
        .ok_or_else(|| {
            ProviderError::new(
                ProviderErrorKind::Configuration,
                format!("\"{reference}\" is not a reference to a key in a keyring file"),
            )
        })
}

fn insecure(message: String) -> ProviderError {
    ProviderError::new(ProviderErrorKind::KeyringInsecure, message)
}

fn unwritable(path: &Path, why: &str) -> ProviderError {
    ProviderError::new(
        ProviderErrorKind::KeyringUnwritable,
        format!("could not write keyring file \"{}\": {why}", path.display()),
    )
    .with_hint("The server's operating-system user must be able to create files in its folder.")
}
