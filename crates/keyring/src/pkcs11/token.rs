//! A session with a token, logged in.

use std::fs;
use std::mem;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process;
use std::sync::Arc;

use cryptoki::context::Pkcs11;
use cryptoki::error::Error;
use cryptoki::object::{Attribute, ObjectClass, ObjectHandle};
use cryptoki::session::{Session, SessionState};
use cryptoki::slot::{Slot, TokenInfo};

use super::module::{Module, Use};
use super::{errors, pin};
use crate::options::configuration;
use crate::provider::{Finding, ProviderError, ProviderErrorKind};
use crate::sys;

/// Where the token is, and how to get in.
pub(super) struct Place {
    pub(super) module: PathBuf,
    pub(super) token_label: String,
    pub(super) pin_file: Option<PathBuf>,
}

impl Place {
    /// After a session was lost: has the next one begin with a module that was initialized anew.
    pub(super) fn recover(&self) {
        Module::at(&self.module).reset();
    }

    /// Who can read the PIN and replace the module.
    pub(super) fn file_findings(&self) -> Vec<Finding> {
        let mut findings = Vec::new();
        if let Some(file) = &self.pin_file
            && fs::metadata(file).is_ok_and(|file| file.mode() & 0o077 != 0)
        {
            findings.push(Finding::warning(
                "PIN file",
                format!("\"{}\" gives others than its owner access", file.display()),
                "It must belong to the user that runs PostgreSQL and have mode 0600 or 0400.",
            ));
        }
        if matches!(sys::others_may_write(&self.module), Ok(true)) {
            findings.push(Finding::warning(
                "module",
                format!("\"{}\" can be written by others than its owner", self.module.display()),
                "What is in it runs in the server. It must belong to root, with mode 0755 or less.",
            ));
        }
        findings
    }
}

/// A session. It is closed when it is dropped, which can take as long as any call.
pub(super) struct TokenSession {
    place: Arc<Place>,
    /// `None` only while it is dropped. Before `usage`, to be closed before the module is let go.
    session: Option<Session>,
    slot: Slot,
    usage: Use,
    process: u32,
}

impl TokenSession {
    /// Opens one, and logs in unless this process is logged in to the token.
    pub(super) fn open(place: &Arc<Place>) -> Result<Self, ProviderError> {
        let usage = Module::at(&place.module).enter()?;
        let failed = |error| errors::failed(&place.token_label, &error);
        let (slot, token) = find_token(place, &usage.library)?;
        let session = usage.library.open_ro_session(slot).map_err(failed)?;
        let session = Some(session);
        let opened =
            Self { place: Arc::clone(place), session, slot, usage, process: process::id() };
        opened.log_in(&token)?;
        Ok(opened)
    }

    fn log_in(&self, token: &TokenInfo) -> Result<(), ProviderError> {
        let _turn = self.usage.module.login_turn();
        let info = self.session().get_session_info().map_err(|error| self.failed(&error))?;
        if matches!(info.session_state(), SessionState::RoUser | SessionState::RwUser) {
            return Ok(());
        }
        match &self.place.pin_file {
            Some(file) => pin::log_in(&self.place, file, token, self.session()),
            None if token.login_required() => {
                Err(configuration(format!("token {:?} wants a login", self.place.token_label))
                    .with_hint("Set pin_file to the file that has the user PIN."))
            }
            None => Ok(()),
        }
    }

    /// False after a fork.
    pub(super) fn is_of_this_process(&self) -> bool {
        self.process == process::id()
    }

    /// The session itself.
    pub(super) fn session(&self) -> &Session {
        self.session.as_ref().expect("it is taken out only when this is dropped")
    }

    /// The error of a call.
    pub(super) fn failed(&self, error: &Error) -> ProviderError {
        errors::failed(&self.place.token_label, error)
    }

    /// The one key of this class with this label.
    pub(super) fn find_key(
        &self,
        class: ObjectClass,
        label: &str,
    ) -> Result<ObjectHandle, ProviderError> {
        let template = [
            Attribute::Token(true),
            Attribute::Class(class),
            Attribute::Label(label.as_bytes().to_vec()),
        ];
        let keys = self.session().find_objects(&template).map_err(|error| self.failed(&error))?;
        let (kind, token) = (class_name(class), &self.place.token_label);
        match keys.as_slice() {
            [key] => Ok(*key),
            [] => Err(ProviderError::new(
                ProviderErrorKind::KeyMissing,
                format!("token {token:?} has no {kind} with label {label:?}"),
            )
            // Some modules see what is new only in a new session, and nothing of a token that is gone.
            .transient()
            .with_hint(
                "Correct the setting of the key's label; or make the key, if there has never been \
                 one. Private keys and secret keys are seen by those alone who are logged in.",
            )),
            keys => Err(configuration(format!(
                "token {token:?} has {} objects of the class {kind} with label {label:?}",
                keys.len()
            ))
            .with_hint("Which one wrapped a key can't be told. Give the others another label.")),
        }
    }

    /// What there is to say of the module and the token.
    pub(super) fn findings(&self) -> Result<Vec<Finding>, ProviderError> {
        let failed = |error| self.failed(&error);
        let library = self.usage.library.get_library_info().map_err(failed)?;
        let token = self.usage.library.get_token_info(self.slot).map_err(failed)?;
        let mut findings = vec![
            Finding::good(
                "module",
                format!(
                    "{} of {}, version {}, PKCS #11 {}",
                    library.library_description(),
                    library.manufacturer_id(),
                    library.library_version(),
                    library.cryptoki_version()
                ),
            ),
            Finding::good(
                "token",
                format!(
                    "{:?}, a {} of {}, serial number {}",
                    token.label(),
                    token.model(),
                    token.manufacturer_id(),
                    token.serial_number()
                ),
            ),
        ];
        findings.push(match &self.place.pin_file {
            Some(_) => Finding::good("login", "logged in as the token's user"),
            None => Finding::good("login", "there is no PIN file, and the token wants no login"),
        });
        Ok(findings)
    }
}

impl Drop for TokenSession {
    /// Closes the session, which logs out if it is the last one of this process. One of the process
    /// that this one was forked from is left alone.
    fn drop(&mut self) {
        if !self.is_of_this_process() {
            mem::forget(self.session.take());
        }
    }
}

/// The token with the label of the settings. That there is none is an outage: a hardware security
/// module that can't be reached has no tokens.
fn find_token(place: &Place, library: &Pkcs11) -> Result<(Slot, TokenInfo), ProviderError> {
    let label = &place.token_label;
    let slots = library.get_slots_with_token().map_err(|error| errors::failed(label, &error))?;
    // A slot whose token can't be asked has another one, or one that is gone.
    let mut tokens = slots
        .into_iter()
        .filter_map(|slot| Some((slot, library.get_token_info(slot).ok()?)))
        .filter(|(_, token)| token.token_initialized())
        .collect::<Vec<_>>();
    let labels = tokens.iter().map(|(_, token)| format!("{:?}", token.label()));
    let labels = labels.collect::<Vec<_>>().join(", ");
    tokens.retain(|(_, token)| token.label() == label);
    match tokens.len() {
        1 => Ok(tokens.remove(0)),
        0 => Err(ProviderError::new(
            ProviderErrorKind::Unreachable,
            format!("module \"{}\" has no token with label {label:?}", place.module.display()),
        )
        .transient()
        .with_hint(match labels.is_empty() {
            true => {
                "It has no token at all: the hardware security module can't be reached, or the \
                     module's own configuration is not the one that it should be."
                    .to_owned()
            }
            false => format!(
                "It has {labels}. Correct the setting, or plug the hardware security module in."
            ),
        })),
        count => Err(configuration(format!(
            "module \"{}\" has {count} tokens with label {label:?}",
            place.module.display()
        ))
        .with_hint("Give the others another label.")),
    }
}

fn class_name(class: ObjectClass) -> &'static str {
    match class {
        ObjectClass::PUBLIC_KEY => "public key",
        ObjectClass::PRIVATE_KEY => "private key",
        _ => "secret key",
    }
}
