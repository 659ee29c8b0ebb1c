//! What a module's return values mean to a caller.

use cryptoki::context::Function;
use cryptoki::error::{Error, RvError};

use crate::options::configuration;
use crate::provider::{ProviderError, ProviderErrorKind};

const DEVICE_HINT: &str = "Check the hardware security module, the way to it, and the log of its \
     client software on this server.";

/// The error of a call that is not about data or a PIN. It is transient if a new session, or a module
/// that was initialized anew, may help.
pub(super) fn failed(token: &str, error: &Error) -> ProviderError {
    let what = describe(error);
    let new = |kind| ProviderError::new(kind, format!("token {token:?}: {what}"));
    let Error::Pkcs11(value, _) = error else {
        return new(ProviderErrorKind::AnswerInvalid)
            .with_hint("The module does not keep to the PKCS #11 specification.");
    };
    match value {
        _ if is_refusal_of_login(value) => new(ProviderErrorKind::LoginFailed)
            .with_hint("Correct the user PIN in the file, or have the security officer set it."),
        RvError::UserNotLoggedIn => new(ProviderErrorKind::LoginFailed)
            .transient()
            .with_hint("The token wants a login: set pin_file to the file that has the user PIN."),
        RvError::SessionCount => new(ProviderErrorKind::Throttled).with_hint(
            "The token has no more sessions: close those of other programs, or raise its limit. \
             Each PostgreSQL session uses one while it fetches keys.",
        ),
        _ if is_about_set_up(value) => new(ProviderErrorKind::Configuration).with_hint(
            "The token or its key does not allow this mechanism: look at the token's mechanisms \
             and at the attributes of the key (pkcs11-tool --list-mechanisms, --list-objects).",
        ),
        _ if is_lost(value) => {
            new(ProviderErrorKind::Unreachable).transient().with_hint(DEVICE_HINT)
        }
        _ => new(ProviderErrorKind::Unreachable).with_hint(DEVICE_HINT),
    }
}

/// An error about the file of the module.
pub(super) fn not_loaded(module: &str, error: &Error) -> ProviderError {
    let error = match error {
        Error::LibraryLoading(why) => configuration(format!("could not load the module: {why}")),
        Error::MissingSymbol(_) => {
            configuration(format!("{module:?} is a library, but not a PKCS #11 module"))
        }
        other => configuration(format!("could not use the module {module:?}: {}", describe(other))),
    };
    error.with_hint(
        "The setting must name the PKCS #11 library of the hardware security module, which the \
         server's operating-system user can read.",
    )
}

/// The function and its return value, by the names of the specification.
pub(super) fn describe(error: &Error) -> String {
    match error {
        Error::Pkcs11(value, function) => format!("C_{function:?} failed with {}", name(value)),
        Error::NullFunctionPointer => "the module lacks a function".to_owned(),
        // None of these has data of ours in it.
        _ => "the module answered with what the specification doesn't allow".to_owned(),
    }
}

/// `PinIncorrect` is `CKR_PIN_INCORRECT`.
fn name(value: &RvError) -> String {
    match value {
        RvError::VendorDefined(code) | RvError::UnknownErrorCode(code) => format!("{code:#x}"),
        value => {
            let mut name = "CKR".to_owned();
            for letter in format!("{value:?}").chars() {
                if letter.is_ascii_uppercase() {
                    name.push('_');
                }
                name.push(letter.to_ascii_uppercase());
            }
            name
        }
    }
}

/// The return value of the call that failed.
pub(super) fn value(error: &Error) -> Option<RvError> {
    match error {
        Error::Pkcs11(value, _) => Some(*value),
        _ => None,
    }
}

/// The same, if the call had data to decrypt or to unwrap.
pub(super) fn value_with_data(error: &Error) -> Option<RvError> {
    match error {
        Error::Pkcs11(value, Function::Decrypt | Function::UnwrapKey) => Some(*value),
        _ => None,
    }
}

/// `CKR_AEAD_DECRYPT_FAILED` of version 3.0, which the crate has no name for.
const AEAD_DECRYPT_FAILED: RvError = RvError::UnknownErrorCode(0x35);

/// Whether a decryption failed because of what was to be decrypted.
pub(super) fn is_about_data(value: &RvError) -> bool {
    *value == AEAD_DECRYPT_FAILED
        || matches!(
            value,
            RvError::EncryptedDataInvalid
                | RvError::EncryptedDataLenRange
                | RvError::WrappedKeyInvalid
                | RvError::WrappedKeyLenRange
                | RvError::DataInvalid
                | RvError::DataLenRange
                | RvError::SignatureInvalid
        )
}

/// Whether a decryption may have failed because of what was to be decrypted, or because of the device:
/// some modules have one value for both.
pub(super) fn may_be_about_data(value: &RvError) -> bool {
    matches!(
        value,
        RvError::GeneralError
            | RvError::FunctionFailed
            | RvError::ArgumentsBad
            | RvError::VendorDefined(_)
            | RvError::UnknownErrorCode(_)
    )
}

/// Whether a mechanism's parameters are what the token has not got.
pub(super) fn is_about_parameters(value: &RvError) -> bool {
    matches!(
        value,
        RvError::MechanismParamInvalid | RvError::MechanismInvalid | RvError::ArgumentsBad
    )
}

/// Whether the token has looked at a PIN and refused it, or refuses all.
pub(super) fn is_refusal_of_login(value: &RvError) -> bool {
    matches!(
        value,
        RvError::PinIncorrect
            | RvError::PinInvalid
            | RvError::PinLenRange
            | RvError::PinExpired
            | RvError::PinLocked
            | RvError::UserPinNotInitialized
            | RvError::UserTypeInvalid
            | RvError::UserAnotherAlreadyLoggedIn
            | RvError::UserTooManyTypes
    )
}

/// Whether a new session may do what the old one couldn't.
pub(super) fn is_lost(value: &RvError) -> bool {
    matches!(
        value,
        RvError::SessionHandleInvalid
            | RvError::SessionClosed
            | RvError::DeviceError
            | RvError::DeviceRemoved
            | RvError::TokenNotPresent
            | RvError::TokenNotRecognized
            | RvError::SlotIdInvalid
            | RvError::UserNotLoggedIn
            | RvError::CryptokiNotInitialized
            | RvError::ObjectHandleInvalid
            | RvError::KeyHandleInvalid
            | RvError::WrappingKeyHandleInvalid
            | RvError::UnwrappingKeyHandleInvalid
            | RvError::OperationActive
    )
}

fn is_about_set_up(value: &RvError) -> bool {
    matches!(
        value,
        RvError::MechanismInvalid
            | RvError::MechanismParamInvalid
            | RvError::KeyFunctionNotPermitted
            | RvError::KeyTypeInconsistent
            | RvError::KeySizeRange
            | RvError::KeyNotWrappable
            | RvError::KeyUnextractable
            | RvError::WrappingKeySizeRange
            | RvError::WrappingKeyTypeInconsistent
            | RvError::UnwrappingKeySizeRange
            | RvError::UnwrappingKeyTypeInconsistent
            | RvError::FunctionNotSupported
            | RvError::FunctionRejected
            | RvError::ActionProhibited
            | RvError::ArgumentsBad
            | RvError::AttributeReadOnly
            | RvError::AttributeSensitive
            | RvError::AttributeTypeInvalid
            | RvError::AttributeValueInvalid
            | RvError::TemplateIncomplete
            | RvError::TemplateInconsistent
            | RvError::SessionReadOnly
            | RvError::TokenWriteProtected
            | RvError::CantLock
            | RvError::NeedToCreateThreads
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn return_values_have_kinds() {
        use ProviderErrorKind::{Configuration, LoginFailed, Throttled, Unreachable};

        for (value, kind, is_transient) in [
            (RvError::PinIncorrect, LoginFailed, false),
            (RvError::PinLocked, LoginFailed, false),
            (RvError::PinExpired, LoginFailed, false),
            (RvError::UserNotLoggedIn, LoginFailed, true),
            (RvError::SessionHandleInvalid, Unreachable, true),
            (RvError::DeviceRemoved, Unreachable, true),
            (RvError::TokenNotPresent, Unreachable, true),
            (RvError::DeviceError, Unreachable, true),
            (RvError::GeneralError, Unreachable, false),
            (RvError::HostMemory, Unreachable, false),
            (RvError::VendorDefined(0x8000_0001), Unreachable, false),
            (RvError::SessionCount, Throttled, false),
            (RvError::MechanismInvalid, Configuration, false),
            (RvError::KeyFunctionNotPermitted, Configuration, false),
        ] {
            let error = failed("t", &Error::Pkcs11(value, Function::Decrypt));
            assert_eq!((error.kind, error.is_transient), (kind, is_transient), "{value:?}");
            assert!(error.hint.is_some());
        }
    }

    #[test]
    fn return_values_have_the_names_of_the_specification() {
        let described = |value| describe(&Error::Pkcs11(value, Function::Login));
        assert_eq!(described(RvError::PinIncorrect), "C_Login failed with CKR_PIN_INCORRECT");
        assert_eq!(
            described(RvError::VendorDefined(0x8000_0001)),
            "C_Login failed with 0x80000001"
        );
    }
}
