//! The user PIN, and the PINs that were refused.
//!
//! A token locks itself after a few wrong PINs, for all who use it. So a PIN that was refused is not
//! tried again by this process until its file changes, and a PIN is not tried when one more failure
//! would lock the token.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use cryptoki::error::{Error, RvError};
use cryptoki::session::{Session, UserType};
use cryptoki::slot::TokenInfo;
use cryptoki::types::AuthPin;

use super::errors;
use super::token::Place;
use crate::provider::{ProviderError, ProviderErrorKind};
use crate::watched::{self, Stamp};

/// The states of PIN files whose PIN was refused: by module, token and file.
static REFUSED: Mutex<BTreeMap<(PathBuf, String, PathBuf), Stamp>> = Mutex::new(BTreeMap::new());

/// Logs in with the PIN in `file`. The caller keeps other threads of the process from doing so at the
/// same time.
pub(super) fn log_in(
    place: &Place,
    file: &Path,
    token: &TokenInfo,
    session: &Session,
) -> Result<(), ProviderError> {
    let id = (place.module.clone(), place.token_label.clone(), file.to_owned());
    let (pin, stamp) = watched::read_line(file, "PIN")?;
    let mut refused = REFUSED.lock().unwrap_or_else(PoisonError::into_inner);
    if refused.get(&id) == Some(&stamp) {
        return Err(login_failed(
            place,
            format!("it has refused the PIN in file \"{}\" before", file.display()),
            "The PIN is not tried again until the file changes, since a token locks itself after a \
             few wrong PINs. Correct the file; or touch it, if it was the token that changed.",
        ));
    }
    refused.remove(&id);
    drop(refused);
    refuse_dangerous_try(place, token.user_pin_locked(), token.user_pin_final_try())?;

    // A copy of exactly the length, so that taking it leaves no other behind.
    let pin = AuthPin::new(Box::from(pin.as_str()));
    match session.login(UserType::User, Some(&pin)) {
        Ok(()) => Ok(()),
        Err(Error::Pkcs11(RvError::UserAlreadyLoggedIn, _)) => Ok(()),
        Err(error) => {
            if errors::value(&error).is_some_and(|value| !errors::is_lost(&value)) {
                REFUSED.lock().unwrap_or_else(PoisonError::into_inner).insert(id, stamp);
            }
            Err(errors::failed(&place.token_label, &error))
        }
    }
}

/// Leaves the last try to a human, who knows whether the PIN is right.
fn refuse_dangerous_try(
    place: &Place,
    is_locked: bool,
    is_final_try: bool,
) -> Result<(), ProviderError> {
    match (is_locked, is_final_try) {
        (true, _) => Err(login_failed(
            place,
            "its user PIN is locked".to_owned(),
            "The token's security officer can set a new one.",
        )),
        (false, true) => Err(login_failed(
            place,
            "one more wrong PIN would lock it, so none is tried".to_owned(),
            "Log in by hand with the right PIN (pkcs11-tool --login --list-objects), which has the \
             token forget the wrong ones.",
        )),
        (false, false) => Ok(()),
    }
}

fn login_failed(place: &Place, why: String, hint: &str) -> ProviderError {
    ProviderError::new(
        ProviderErrorKind::LoginFailed,
        format!("could not log in to token {:?}: {why}", place.token_label),
    )
    .with_hint(hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_try_is_left_to_a_human() {
        let place = Place {
            module: "/module".into(),
            token_label: "token".to_owned(),
            pin_file: Some("/pin".into()),
        };
        assert_eq!(refuse_dangerous_try(&place, false, false), Ok(()));
        for (is_locked, is_final_try) in [(false, true), (true, false), (true, true)] {
            let error = refuse_dangerous_try(&place, is_locked, is_final_try).unwrap_err();
            assert_eq!(error.kind, ProviderErrorKind::LoginFailed);
            assert_eq!(error.message.contains("is locked"), is_locked, "{error}");
        }
    }
}
