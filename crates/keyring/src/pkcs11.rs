//! Keys wrapped in a token of a hardware security module, by PKCS #11.
//!
//! It is an envelope provider. Data encryption keys are drawn here and wrapped by a key encryption key
//! that never leaves the token.
//!
//! | mechanism | the token's key | how a key is wrapped | bound to its version |
//! | --- | --- | --- | --- |
//! | `aes-gcm` | AES | `C_Encrypt` with `CKM_AES_GCM` | yes, as additional authenticated data |
//! | `aes-key-wrap` | AES | `C_WrapKey` with `CKM_AES_KEY_WRAP`, or `_PAD` where that is missing | no |
//! | `rsa-oaep` | RSA | `C_Encrypt` with `CKM_RSA_PKCS_OAEP`, SHA-256 or else SHA-1 | no |
//!
//! A reference is the mechanism and the key's label (`aes-gcm:postgresql`), in the token that the
//! settings name: what was wrapped can be opened after the settings name another key or mechanism. The
//! [`mechanism`] module has the format of what is wrapped.
//!
//! # Processes, threads and sessions
//!
//! `C_Initialize` is called once per process and module, and again in a forked child: nothing of a
//! module outlives a fork. It all happens on the threads of [`call`], so a module that hangs holds
//! nobody up past the deadline.
//!
//! A session is kept from one call to the next, and with it the login, until
//! [`Provider::close_connections`]. A session that turns out to be lost is replaced, once per call. If
//! this process has no other session then, the module is finalized and initialized anew, since some find
//! a token that went away and came back in no other way.
//!
//! Specified by OASIS, "PKCS #11 Specification Version 3.1".

mod errors;
mod mechanism;
mod module;
mod pin;
mod token;

use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use envelope::{DataKey, KeyName};
use serde::Deserialize;

use crate::call::{self, RequestLimits};
use crate::options::{self, configuration};
use crate::provider::{
    self, Finding, FoundVersion, Interrupt, MadeVersion, Provider, ProviderError, WrappedKey,
};
use crate::version::VersionId;

use mechanism::{Kek, Mechanism};
use token::{Place, TokenSession};

/// How long the closing of a session is waited for. A module that takes longer does it alone.
const CLOSING: Duration = Duration::from_millis(100);

/// The settings as an administrator wrote them.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, default)]
pub struct Pkcs11Options {
    /// The absolute path of the module: the shared library of the hardware security module.
    pub module: String,
    /// The token's label.
    pub token_label: String,
    /// The file with the user PIN. Without one there is no login.
    pub pin_file: String,
    /// The label of the key encryption key for new wrappings.
    pub key_label: String,
    /// `aes-gcm` (the default), `aes-key-wrap` or `rsa-oaep`.
    pub mechanism: String,
}

/// A provider that has a PKCS #11 token wrap keys.
pub struct Pkcs11Provider {
    place: Arc<Place>,
    /// The key for new wrappings.
    kek: Kek,
    limits: RequestLimits,
    interrupt: Box<dyn Interrupt>,
    session: Kept,
}

/// A session between calls. A call takes it out on its own thread and puts it back there, so that no
/// other thread comes to close it, which can take long.
type Kept = Arc<Mutex<Option<TokenSession>>>;

impl Pkcs11Provider {
    /// A provider with these settings. The module is not loaded yet.
    ///
    /// # Errors
    ///
    /// [`ProviderErrorKind::Configuration`](provider::ProviderErrorKind::Configuration), with the
    /// setting that is wrong.
    pub fn new(
        options: &Pkcs11Options,
        limits: RequestLimits,
        interrupt: Box<dyn Interrupt>,
    ) -> Result<Self, ProviderError> {
        let Pkcs11Options { module, token_label, pin_file, key_label, mechanism } = options.clone();
        let place = Place {
            module: options::required_file(module, "module")?,
            token_label: parse_token_label(token_label)?,
            pin_file: options::optional_file(pin_file, "pin_file")?,
        };
        let label = options::required(key_label, "key_label")?;
        if label.contains('\0') {
            return Err(configuration("setting \"key_label\" has a zero byte"));
        }
        let mechanism = parse_mechanism(&mechanism)?;
        let kek = Kek { mechanism, label };
        Ok(Self { place: Arc::new(place), kek, limits, interrupt, session: Kept::default() })
    }

    /// Runs `work` with a session that is logged in, on a thread of its own; once more with another
    /// session if the first one turns out to be lost.
    fn with_session<T: Send + 'static>(
        &self,
        work: impl Fn(&TokenSession) -> Result<T, ProviderError> + Send + 'static,
    ) -> Result<T, ProviderError> {
        let deadline = Instant::now() + self.limits.total;
        let (place, kept) = (Arc::clone(&self.place), Arc::clone(&self.session));
        call::call(deadline, &*self.interrupt, move || {
            let session = lock(&kept).take().filter(TokenSession::is_of_this_process);
            let (session, result) = match attempt(&place, session, &work) {
                (session, Err(error)) if error.is_transient => {
                    place.recover();
                    attempt(&place, session, &work)
                }
                done => done,
            };
            // Another call may have put one back since this one was given up.
            let another = mem::replace(&mut *lock(&kept), session);
            drop(another);
            result.map_err(|error| ProviderError { is_transient: false, ..error })
        })?
    }

    fn close_session(&self) {
        if lock(&self.session).is_some() {
            let kept = Arc::clone(&self.session);
            let deadline = Instant::now() + CLOSING;
            let _ = call::call(deadline, &|| false, move || {
                let session = lock(&kept).take();
                drop(session);
            });
        }
    }
}

impl Drop for Pkcs11Provider {
    fn drop(&mut self) {
        self.close_session();
        // One that no thread could be had for ends with the process.
        mem::forget(lock(&self.session).take());
    }
}

impl Provider for Pkcs11Provider {
    fn discover(
        &mut self,
        _name: &KeyName,
        _known: &[&str],
    ) -> Result<Vec<FoundVersion>, ProviderError> {
        Ok(Vec::new())
    }

    fn make(&mut self, id: &VersionId<'_>) -> Result<MadeVersion, ProviderError> {
        let key = Arc::new(provider::generate_key()?);
        let (kek, additional_data) = (self.kek.clone(), id.additional_data());
        let wrapped = self.with_session({
            let key = Arc::clone(&key);
            move |session| kek.wrap(session, &additional_data, &key)
        })?;
        let key = DataKey::new(*key.expose());
        let reference = self.kek.reference();
        Ok(MadeVersion { reference, wrapped: Some(wrapped), key, number: None })
    }

    fn open(
        &mut self,
        id: &VersionId<'_>,
        reference: &str,
        wrapped: Option<&[u8]>,
    ) -> Result<DataKey, ProviderError> {
        let kek = Kek::parse(reference)?;
        let wrapped = kek.mechanism.parse_wrapped(wrapped)?;
        let additional_data = id.additional_data();
        self.with_session(move |session| kek.unwrap(session, &additional_data, &wrapped))
    }

    fn rewrap(
        &mut self,
        id: &VersionId<'_>,
        reference: &str,
        wrapped: Option<&[u8]>,
    ) -> Result<Option<WrappedKey>, ProviderError> {
        let old = Kek::parse(reference)?;
        let wrapped = old.mechanism.parse_wrapped(wrapped)?;
        let (new, additional_data) = (self.kek.clone(), id.additional_data());
        let wrapped = self.with_session(move |session| {
            let key = old.unwrap(session, &additional_data, &wrapped)?;
            new.wrap(session, &additional_data, &key)
        })?;
        Ok(Some(WrappedKey { reference: self.kek.reference(), wrapped }))
    }

    fn check(&mut self, probe: &VersionId<'_>) -> Result<Vec<Finding>, ProviderError> {
        let kek = self.kek.clone();
        let mut findings = self.with_session(move |session| {
            let mut findings = session.findings()?;
            findings.extend(kek.findings(session)?);
            Ok(findings)
        })?;
        findings.extend(self.place.file_findings());
        let is_bound = self.kek.mechanism.binds_version();
        findings.push(provider::check_round_trip(self, probe, is_bound)?);
        Ok(findings)
    }

    /// Closes the session, which logs out. What a module keeps in its buffers is its own.
    fn close_connections(&mut self) {
        self.close_session();
    }
}

/// Runs `work` with the session that is there or with a new one. The session comes back unless it is
/// lost.
fn attempt<T>(
    place: &Arc<Place>,
    kept: Option<TokenSession>,
    work: &dyn Fn(&TokenSession) -> Result<T, ProviderError>,
) -> (Option<TokenSession>, Result<T, ProviderError>) {
    let session = match kept.map_or_else(|| TokenSession::open(place), Ok) {
        Ok(session) => session,
        Err(error) => return (None, Err(error)),
    };
    match work(&session) {
        Err(error) if error.is_transient => {
            drop(session);
            (None, Err(error))
        }
        result => (Some(session), result),
    }
}

fn lock(kept: &Mutex<Option<TokenSession>>) -> MutexGuard<'_, Option<TokenSession>> {
    kept.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A token has 32 bytes for its label.
fn parse_token_label(label: String) -> Result<String, ProviderError> {
    let label = options::required(label, "token_label")?;
    match label.len() {
        1..=32 => Ok(label),
        len => Err(configuration(format!(
            "setting \"token_label\" has {len} bytes, and labels of tokens have at most 32"
        ))),
    }
}

fn parse_mechanism(text: &str) -> Result<Mechanism, ProviderError> {
    match text {
        "" => Ok(Mechanism::AesGcm),
        text => Mechanism::parse(text).ok_or_else(|| {
            configuration(format!("setting \"mechanism\" is {text:?}")).with_hint(format!(
                "It is one of {}.",
                Mechanism::ALL.map(Mechanism::name).join(", ")
            ))
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::provider::ProviderErrorKind;

    #[test]
    fn settings_are_checked_by_name() {
        let good = Pkcs11Options {
            module: "/usr/lib/softhsm/libsofthsm2.so".to_owned(),
            token_label: "token".to_owned(),
            pin_file: "/pin".to_owned(),
            key_label: "key".to_owned(),
            mechanism: String::new(),
        };
        let new = |options: &Pkcs11Options| {
            Pkcs11Provider::new(options, RequestLimits::default(), Box::new(|| false))
        };
        assert_eq!(new(&good).unwrap().kek.reference(), "aes-gcm:key");
        assert!(new(&Pkcs11Options { pin_file: String::new(), ..good.clone() }).is_ok());
        for mechanism in Mechanism::ALL {
            let options = Pkcs11Options { mechanism: mechanism.name().to_owned(), ..good.clone() };
            assert_eq!(new(&options).unwrap().kek.mechanism, mechanism);
        }

        let empty = String::new;
        let wrong = |text: &str| text.to_owned();
        for (options, field) in [
            (Pkcs11Options { module: empty(), ..good.clone() }, "module"),
            (Pkcs11Options { module: wrong("libsofthsm2.so"), ..good.clone() }, "module"),
            (Pkcs11Options { token_label: empty(), ..good.clone() }, "token_label"),
            (Pkcs11Options { token_label: "t".repeat(33), ..good.clone() }, "token_label"),
            (Pkcs11Options { pin_file: wrong("1234"), ..good.clone() }, "pin_file"),
            (Pkcs11Options { key_label: empty(), ..good.clone() }, "key_label"),
            (Pkcs11Options { key_label: wrong("a\0"), ..good.clone() }, "key_label"),
            (Pkcs11Options { mechanism: wrong("aes-cbc"), ..good.clone() }, "mechanism"),
        ] {
            let error = new(&options).err().expect(field);
            assert_eq!(error.kind, ProviderErrorKind::Configuration);
            assert!(error.message.contains(&format!("\"{field}\"")), "{error}");
        }
    }
}
