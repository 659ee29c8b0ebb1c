//! The settings of providers as an administrator wrote them: what all kinds check in the same way.
//!
//! Each provider has a struct of options, all text, with the same names as the settings
//! `encryption_ext.<provider>_<name>` and the fields in the provider file. An empty text is a setting
//! that is not set.

use std::path::PathBuf;

use crate::provider::{ProviderError, ProviderErrorKind};

/// The setting with the name `field`, which must be set.
pub(crate) fn required(text: String, field: &str) -> Result<String, ProviderError> {
    match text.is_empty() {
        true => Err(configuration(format!("setting \"{field}\" is not set"))),
        false => Ok(text),
    }
}

/// The setting, if it is set.
pub(crate) fn optional(text: String) -> Option<String> {
    Some(text).filter(|text| !text.is_empty())
}

/// The absolute path of a file, which must be set. The file is not looked at.
pub(crate) fn required_file(text: String, field: &str) -> Result<PathBuf, ProviderError> {
    let path = PathBuf::from(required(text, field)?);
    match path.is_absolute() {
        true => Ok(path),
        false => Err(configuration(format!(
            "setting \"{field}\" is not an absolute path: \"{}\"",
            path.display()
        ))),
    }
}

/// The absolute path of a file, if it is set.
pub(crate) fn optional_file(text: String, field: &str) -> Result<Option<PathBuf>, ProviderError> {
    optional(text).map(|text| required_file(text, field)).transpose()
}

/// An error about the settings, found before anything is sent.
pub(crate) fn configuration(message: impl Into<String>) -> ProviderError {
    ProviderError::new(ProviderErrorKind::Configuration, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_absolute() {
        assert_eq!(optional_file(String::new(), "ca_file").unwrap(), None);
        assert_eq!(optional_file("/a".to_owned(), "ca_file").unwrap(), Some("/a".into()));
        for (text, complaint) in [("", "is not set"), ("ca.pem", "not an absolute path")] {
            let error = required_file(text.to_owned(), "ca_file").unwrap_err();
            assert_eq!(error.kind, ProviderErrorKind::Configuration);
            assert!(error.message.contains("\"ca_file\"") && error.message.contains(complaint));
        }
    }
}
