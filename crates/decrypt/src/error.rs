//! What can go wrong, in words for who reads them in a hurry.

use std::fmt;
use std::io;
use std::path::Path;

use keyring::provider::ProviderError;

/// Why the work ends.
#[derive(Clone, Debug)]
pub enum Error {
    /// Something failed.
    Failed {
        /// What, in PostgreSQL's style: lower case, no period, no secret.
        message: String,
        /// What to do about it, in full sentences.
        hint: Option<String>,
    },
    /// Whoever read the output reads no more.
    ReaderGone,
}

impl Error {
    /// An error without a hint.
    pub fn new(message: impl Into<String>) -> Self {
        Self::Failed { message: message.into(), hint: None }
    }

    /// The same error with a hint.
    pub fn with_hint(self, hint: impl Into<String>) -> Self {
        match self {
            Self::Failed { message, .. } => Self::Failed { message, hint: Some(hint.into()) },
            Self::ReaderGone => self,
        }
    }

    /// The same error with one more hint.
    pub fn and_hint(self, more: &str) -> Self {
        match self {
            Self::Failed { message, hint: Some(hint) } => {
                Self::Failed { message, hint: Some(format!("{hint} {more}")) }
            }
            other => other.with_hint(more),
        }
    }

    /// The same error, with the place where it happened in front.
    pub fn at(self, place: impl fmt::Display) -> Self {
        match self {
            Self::Failed { message, hint } => {
                Self::Failed { message: format!("{place}: {message}"), hint }
            }
            Self::ReaderGone => self,
        }
    }

    /// A file can't be read.
    pub fn reading(what: &str, error: &io::Error) -> Self {
        Self::new(format!("could not read {what}: {error}"))
    }

    /// A file can't be opened.
    pub fn opening(path: &Path, error: &io::Error) -> Self {
        Self::new(format!("could not open \"{}\": {error}", path.display()))
    }

    /// The output can't be written.
    pub fn writing(what: &str, error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::ReaderGone,
            _ => Self::new(format!("could not write {what}: {error}")),
        }
    }
}

impl From<ProviderError> for Error {
    fn from(error: ProviderError) -> Self {
        Self::Failed { message: error.message, hint: error.hint }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failed { message, hint: None } => write!(f, "error: {message}"),
            Self::Failed { message, hint: Some(hint) } => {
                write!(f, "error: {message}\nhint: {hint}")
            }
            Self::ReaderGone => f.write_str("error: the output is not read any more"),
        }
    }
}

impl std::error::Error for Error {}
