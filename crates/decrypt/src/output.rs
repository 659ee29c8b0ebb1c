//! The output: standard output, or a file that has its name only once it is complete.

use std::fs;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use tempfile::NamedTempFile;

use crate::error::Error;

/// How much is written at once.
const BLOCK: usize = 1 << 18;

/// The file that is to go if the work is interrupted.
static UNFINISHED: Mutex<Option<PathBuf>> = Mutex::new(None);

/// Where plaintext goes.
pub enum Output {
    /// Nowhere: it is only looked whether values open.
    Nothing,
    /// Standard output.
    Stdout(BufWriter<io::Stdout>),
    /// A file beside the one that it will be, readable by its owner alone.
    File {
        /// What is written.
        file: Box<BufWriter<NamedTempFile>>,
        /// Its name in the end.
        path: PathBuf,
        /// Whether it may replace another.
        force: bool,
    },
}

impl Output {
    /// Standard output.
    pub fn stdout() -> Self {
        Self::Stdout(BufWriter::with_capacity(BLOCK, io::stdout()))
    }

    /// A file, which must not exist unless `force` is set.
    pub fn file(path: &Path, force: bool) -> Result<Self, Error> {
        if !force && fs::symlink_metadata(path).is_ok() {
            return Err(exists(path));
        }
        let folder = match path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        // Made with mode 0600.
        let file = tempfile::Builder::new()
            .prefix(".encryption_ext-decrypt-")
            .tempfile_in(folder)
            .map_err(|error| {
                Error::new(format!("could not write into \"{}\": {error}", folder.display()))
            })?;
        *unfinished() = Some(file.path().to_owned());
        let file = Box::new(BufWriter::with_capacity(BLOCK, file));
        Ok(Self::File { file, path: path.to_owned(), force })
    }

    /// Writes all of it.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        match self {
            Self::Nothing => Ok(()),
            Self::Stdout(out) => {
                out.write_all(bytes).map_err(|error| Error::writing("standard output", &error))
            }
            Self::File { file, path, .. } => file
                .write_all(bytes)
                .map_err(|error| Error::writing(&format!("\"{}\"", path.display()), &error)),
        }
    }

    /// Writes what is left, and gives the file its name.
    pub fn finish(self) -> Result<(), Error> {
        match self {
            Self::Nothing => Ok(()),
            Self::Stdout(mut out) => {
                out.flush().map_err(|error| Error::writing("standard output", &error))
            }
            Self::File { file, path, force } => {
                let failed =
                    |error: &io::Error| Error::writing(&format!("\"{}\"", path.display()), error);
                let file = file.into_inner().map_err(|error| failed(error.error()))?;
                file.as_file().sync_all().map_err(|error| failed(&error))?;
                let persisted = match force {
                    true => file.persist(&path),
                    false => file.persist_noclobber(&path),
                };
                persisted.map_err(|error| match error.error.kind() {
                    io::ErrorKind::AlreadyExists => exists(&path),
                    _ => failed(&error.error),
                })?;
                *unfinished() = None;
                Ok(())
            }
        }
    }
}

/// Removes what was written of a file that is not complete.
pub fn remove_unfinished() {
    if let Some(path) = unfinished().take() {
        // It may have its name by now.
        let _ = fs::remove_file(path);
    }
}

fn unfinished() -> std::sync::MutexGuard<'static, Option<PathBuf>> {
    UNFINISHED.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn exists(path: &Path) -> Error {
    Error::new(format!("\"{}\" exists", path.display()))
        .with_hint("Give another name, or --force to replace it.")
}
