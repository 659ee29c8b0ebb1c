//! What a provider of keys does, and how it fails.
//!
//! There are two kinds behind one trait. A *direct* provider keeps the data encryption keys itself
//! and hands them over by name and version: a file, a KV secrets engine. An *envelope* provider
//! keeps a key encryption key that never leaves it, and wraps and unwraps data encryption keys that
//! the extension stores wrapped in its catalog.

use std::fmt;
use std::time::{Duration, Instant, SystemTime};

use envelope::{DataKey, KeyName, KeyVersion};
use zeroize::Zeroizing;

use crate::version::VersionId;

/// A provider of keys, set up from its settings. One instance serves one process and one thread;
/// it may keep a login and a connection between calls.
///
/// # The contract
///
/// * A provider answers what the bytes of a version are. Which keys and versions exist, and which
///   one is in use, is the catalog's to say.
/// * A *reference* says where a version's bytes are, relative to the place that the settings name
///   (a mount and a prefix, a file, a key encryption key), so that another server can reach the
///   same version by other settings. It is text without secrets, and the provider takes it back
///   for as long as the version exists. The number in it is the provider's own, which may differ
///   from the database's once a key has moved between providers.
/// * Every call ends within the deadline of the settings, and at once when its
///   [`Interrupt`] says so.
/// * What is worth trying again is tried again within that deadline; a caller need not.
/// * Nothing of a key, a token, a secret id or an answer's body is in any error.
/// * A caller compares what `open` returns with the version's check value: the provider need not
///   know it.
pub trait Provider: Send {
    /// The versions of `name` that exist at a direct provider and can be read, without those whose
    /// references are in `known`, in ascending order. None if there is no such key. An envelope
    /// provider has none.
    ///
    /// # Errors
    ///
    /// If the provider can't say, or one of the versions is not a key.
    fn discover(
        &mut self,
        name: &KeyName,
        known: &[&str],
    ) -> Result<Vec<FoundVersion>, ProviderError>;

    /// Makes a new version. A direct provider keeps it as the newest of the key, and fails with
    /// [`ProviderErrorKind::Conflict`] rather than replace one that somebody else made since
    /// [`Provider::discover`].
    ///
    /// When the call fails after the request was sent, the version may exist all the same; a later
    /// `discover` finds it.
    ///
    /// # Errors
    ///
    /// If it can't be made; [`ProviderErrorKind::WriteDenied`] if the policy allows reading only.
    fn make(&mut self, id: &VersionId<'_>) -> Result<MadeVersion, ProviderError>;

    /// The bytes of version `id`, from the `reference` and the `wrapped` key that `discover` or
    /// `make` gave.
    ///
    /// # Errors
    ///
    /// If they can't be had, or are not 32 bytes.
    fn open(
        &mut self,
        id: &VersionId<'_>,
        reference: &str,
        wrapped: Option<&[u8]>,
    ) -> Result<DataKey, ProviderError>;

    /// Wraps the key of version `id` under the key encryption key that the settings and the
    /// provider name now, for its newest version, without any change of the key itself. `None`
    /// from a direct provider, which wraps nothing.
    ///
    /// The caller compares the key that the result opens to with the check value before it lets
    /// go of what it had.
    ///
    /// # Errors
    ///
    /// If the old wrapping can't be opened, or the new one can't be made.
    fn rewrap(
        &mut self,
        id: &VersionId<'_>,
        reference: &str,
        wrapped: Option<&[u8]>,
    ) -> Result<Option<WrappedKey>, ProviderError>;

    /// Tries what the provider is needed for, and tells what was found, for an administrator to
    /// read. An envelope provider wraps a random key as version `probe` and unwraps it again; a
    /// direct provider leaves nothing behind either.
    ///
    /// # Errors
    ///
    /// The first thing that is wrong.
    fn check(&mut self, probe: &VersionId<'_>) -> Result<Vec<Finding>, ProviderError>;

    /// Closes the connections that are kept for a next call, because none follows soon: their
    /// buffers may hold what went through them last. A login is kept.
    fn close_connections(&mut self) {}

    /// The login that the provider has, for another process with the same settings. None if it has none, or
    /// none that is a token for a time. Of a token that is in a file, which is there for everybody, it is what
    /// [`Provider::look_up_login`] has found out.
    fn login(&self) -> Option<Login> {
        None
    }

    /// Takes a login that another process with the same settings has made.
    fn take_login(&mut self, _login: Login) {}

    /// Finds out until when a login is good that came without its end: that of a token in a file. To be called
    /// when a request has succeeded; it asks once for each token, and again when that is about to end. If it
    /// can't be found out, it isn't known. Either it waits for the answer, a second at most, or
    /// [`Provider::login`] has it later.
    fn look_up_login(&mut self, _waits: bool) {}

    /// How many versions of `name` there are, and how many are kept; `None` from a provider that drops none.
    ///
    /// # Errors
    ///
    /// If the provider can't be reached. Not if it doesn't let us see.
    fn retention(&mut self, _name: &KeyName) -> Result<Option<Retention>, ProviderError> {
        Ok(None)
    }

    /// Until when the certificates of TLS are good that were used last. Nothing is sent for that.
    fn certificates(&self) -> Certificates {
        Certificates::default()
    }
}

/// How many versions of a key are kept by a provider that drops the oldest when there are too many.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retention {
    /// The provider's own number of the oldest version that it has; 0 if there is none yet.
    pub oldest: u32,
    /// And that of the newest.
    pub newest: u32,
    /// How many there are.
    pub versions: u32,
    /// How many are kept at most.
    pub max_versions: u32,
    /// Whether that could not be seen, and is what the provider does if it isn't told otherwise. Then `oldest`
    /// and `versions` are not known either.
    pub is_assumed: bool,
    /// What the administrator should know, such as that few versions can be made until old ones are dropped.
    pub warning: Option<String>,
    /// How to have more of them kept, in full sentences.
    pub hint: String,
}

impl Retention {
    /// Whether the version with this number is there, and is dropped when the next one is made.
    #[must_use]
    pub fn would_drop(&self, number: u32) -> bool {
        number >= self.oldest
            && self.newest.saturating_sub(number) >= self.max_versions.saturating_sub(1)
    }

    /// The same when a version was made, with this number.
    #[must_use]
    pub fn after(self, newest: u32) -> Self {
        let oldest =
            self.oldest.max(newest.saturating_add(1).saturating_sub(self.max_versions)).max(1);
        let versions = self.versions.saturating_add(1).min(self.max_versions);
        Self { oldest, newest, versions, ..self }
    }
}

/// Until when the certificates of TLS are good that a provider has used last; `None` where it has used none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Certificates {
    /// The one that its server has shown.
    pub server_expires: Option<SystemTime>,
    /// The one that it shows to the server.
    pub client_expires: Option<SystemTime>,
}

/// What a login gave.
#[derive(Clone, PartialEq, Eq)]
pub struct Login {
    /// What lets its bearer in; a digest of it, if that is in a file.
    pub token: Zeroizing<String>,
    /// When it was asked for: no later than its time began. If it is in a file: when it was looked up.
    pub began: Instant,
    /// How long it lets in since then; `None` is for ever, or that nobody may know.
    pub length: Option<Duration>,
    /// The time that it was given in all, of which `length` may be what is left.
    pub whole: Option<Duration>,
    /// Whether the server prolongs it when it is asked to.
    pub is_renewable: bool,
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Login").field("length", &self.length).finish_non_exhaustive()
    }
}

/// A data encryption key that an envelope provider has wrapped, for the catalog.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WrappedKey {
    /// What the provider needs to know besides, such as the name of the key encryption key.
    pub reference: String,
    /// The key, encrypted.
    pub wrapped: Vec<u8>,
}

/// Something that [`Provider::check`] found out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What was tried, in a few words: "login", "key encryption key", "round trip".
    pub what: &'static str,
    /// What came of it, in a clause.
    pub detail: String,
    /// What to do about it; a finding without is as it should be.
    pub hint: Option<String>,
}

impl Finding {
    /// Something that is as it should be.
    pub fn good(what: &'static str, detail: impl Into<String>) -> Self {
        Self { what, detail: detail.into(), hint: None }
    }

    /// Something that works and yet needs attention.
    pub fn warning(what: &'static str, detail: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { what, detail: detail.into(), hint: Some(hint.into()) }
    }
}

/// The last part of an envelope provider's [`Provider::check`]: makes a version, and opens it. That
/// it can't be opened as another version is checked too, where the provider binds the name of the
/// version to what it wraps.
pub(crate) fn check_round_trip(
    provider: &mut dyn Provider,
    probe: &VersionId<'_>,
    is_bound: bool,
) -> Result<Finding, ProviderError> {
    let invalid = |what| ProviderError::new(ProviderErrorKind::AnswerInvalid, what);
    let made = provider.make(probe)?;
    let opened = provider.open(probe, &made.reference, made.wrapped.as_deref())?;
    if opened.expose() != made.key.expose() {
        return Err(invalid("a key that was wrapped came back as another key"));
    }
    if is_bound {
        let other = probe.version.next().unwrap_or(KeyVersion::FIRST);
        let other = VersionId { version: other, ..*probe };
        match provider.open(&other, &made.reference, made.wrapped.as_deref()) {
            Err(error) if error.kind == ProviderErrorKind::WrappedKeyInvalid => {}
            Err(error) => return Err(error),
            Ok(_) => return Err(invalid("a wrapped key could be opened as another version")),
        }
    }
    Ok(Finding::good("round trip", "a new key was wrapped and unwrapped"))
}

/// A version that exists at a direct provider.
#[derive(Debug)]
pub struct FoundVersion {
    /// The provider's own number of it.
    pub number: KeyVersion,
    /// Where it is.
    pub reference: String,
    /// Its bytes.
    pub key: DataKey,
}

/// A version that a provider has just made.
#[derive(Debug)]
pub struct MadeVersion {
    /// Where it is.
    pub reference: String,
    /// The key as an envelope provider wrapped it, for the catalog; `None` from a direct one.
    pub wrapped: Option<Vec<u8>>,
    /// Its bytes.
    pub key: DataKey,
    /// A direct provider's own number of it.
    pub number: Option<KeyVersion>,
}

/// Whether the caller wants to give up: a statement was cancelled, a session ended.
///
/// Asked at least every 10 ms while a provider waits, on the thread that called the provider. It
/// must return at once.
pub trait Interrupt: Send {
    /// True to give up: the provider's call fails with [`ProviderErrorKind::Interrupted`].
    fn pending(&self) -> bool;
}

impl<F: Fn() -> bool + Send> Interrupt for F {
    fn pending(&self) -> bool {
        self()
    }
}

/// Why a provider could not do what it was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProviderError {
    /// The kind, from which the caller picks an SQLSTATE.
    pub kind: ProviderErrorKind,
    /// What happened, in PostgreSQL's style: lower case, no period, no secret.
    pub message: String,
    /// What to do about it, in full sentences.
    pub hint: Option<String>,
    /// Whether the same request may well succeed in a moment.
    pub is_transient: bool,
}

impl ProviderError {
    /// An error without a hint.
    pub fn new(kind: ProviderErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), hint: None, is_transient: false }
    }

    /// The same error with a hint.
    #[must_use]
    pub fn with_hint(self, hint: impl Into<String>) -> Self {
        Self { hint: Some(hint.into()), ..self }
    }

    /// The same error, of a request that is worth sending again.
    #[must_use]
    pub fn transient(self) -> Self {
        Self { is_transient: true, ..self }
    }
}

impl fmt::Display for ProviderError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for ProviderError {}

/// What kind of failure it is; each has an SQLSTATE of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ProviderErrorKind {
    /// The settings can't be used: one is missing or malformed, or a file that they name is.
    Configuration,
    /// No connection, or the server says that it can't serve now.
    Unreachable,
    /// No answer in time.
    TimedOut,
    /// The server runs but is sealed.
    Sealed,
    /// The server asks for fewer requests.
    Throttled,
    /// The login is not accepted, or its token has expired and there is no new one.
    LoginFailed,
    /// The login is good, and its policy does not allow the reading.
    Denied,
    /// There is no such key.
    KeyMissing,
    /// There is such a key, without that version.
    VersionMissing,
    /// The policy does not allow making a version.
    WriteDenied,
    /// The answer is not what the provider's interface specifies.
    AnswerInvalid,
    /// What is stored as a key does not have 256 bits.
    KeyLengthWrong,
    /// What an envelope provider was given to unwrap is not what it wrapped for this version.
    WrappedKeyInvalid,
    /// There is no keyring file.
    KeyringMissing,
    /// The keyring file can't be read.
    KeyringUnreadable,
    /// The keyring file is not a keyring.
    KeyringMalformed,
    /// Others could read or replace the keyring file.
    KeyringInsecure,
    /// The keyring file can't be written.
    KeyringUnwritable,
    /// Somebody else made a version meanwhile.
    Conflict,
    /// The operating system has no random bytes.
    RandomUnavailable,
    /// The provider was not asked, because it has failed so often lately.
    NotAsked,
    /// The caller's [`Interrupt`] asked to give up.
    Interrupted,
}

impl ProviderErrorKind {
    /// Whether the provider is out of reach, rather than having said no: a key that is cached may
    /// then be used for a while past its time. A login that fails is an outage, since it says
    /// nothing about the key; a denial for a login that works is not.
    #[must_use]
    pub fn is_outage(self) -> bool {
        match self {
            Self::Unreachable
            | Self::TimedOut
            | Self::Sealed
            | Self::Throttled
            | Self::LoginFailed
            | Self::NotAsked => true,
            Self::Configuration
            | Self::Denied
            | Self::KeyMissing
            | Self::VersionMissing
            | Self::WriteDenied
            | Self::AnswerInvalid
            | Self::KeyLengthWrong
            | Self::WrappedKeyInvalid
            | Self::KeyringMissing
            | Self::KeyringUnreadable
            | Self::KeyringMalformed
            | Self::KeyringInsecure
            | Self::KeyringUnwritable
            | Self::Conflict
            | Self::RandomUnavailable
            | Self::Interrupted => false,
        }
    }
}

/// A new data encryption key from the operating system's random number generator.
pub(crate) fn generate_key() -> Result<DataKey, ProviderError> {
    DataKey::generate().map_err(|_| {
        ProviderError::new(
            ProviderErrorKind::RandomUnavailable,
            "the operating system has no random bytes to make a key from",
        )
    })
}

/// The key that `text` says in base64 (RFC 4648, the standard alphabet, padding optional,
/// surrounding white space ignored), or what is wrong with it.
pub(crate) fn key_from_base64(text: &str) -> Result<DataKey, KeyTextError> {
    use base64::Engine;
    use base64::alphabet::STANDARD;
    use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};

    const LENIENT_ABOUT_PADDING: GeneralPurpose = GeneralPurpose::new(
        &STANDARD,
        GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
    );
    let text = text.trim_ascii();
    let mut bytes = Zeroizing::new(vec![0; text.len() / 4 * 3 + 3]);
    let len = LENIENT_ABOUT_PADDING
        .decode_slice(text, &mut bytes)
        .map_err(|_| KeyTextError::NotBase64)?;
    let key = <&[u8; DataKey::LEN]>::try_from(&bytes[..len])
        .map_err(|_| KeyTextError::Length { bytes: len })?;
    Ok(DataKey::new(*key))
}

/// Why a text is not a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum KeyTextError {
    NotBase64,
    Length { bytes: usize },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_version_drops_those_that_are_too_old() {
        let of = |oldest, newest, max_versions| Retention {
            oldest,
            newest,
            versions: newest - oldest + 1,
            max_versions,
            is_assumed: false,
            warning: None,
            hint: String::new(),
        };
        // Three of three: the next one, 4, leaves 2, 3 and 4.
        let full = of(1, 3, 3);
        assert_eq!([1, 2, 3].map(|number| full.would_drop(number)), [true, false, false]);
        let after = full.after(4);
        assert_eq!((after.oldest, after.newest, after.versions), (2, 4, 3));
        assert_eq!([1, 2, 3].map(|number| after.would_drop(number)), [false, true, false]);
        assert!(!of(1, 2, 3).would_drop(1));
        let first = of(1, 1, 3).after(2);
        assert_eq!((first.oldest, first.newest, first.versions), (1, 2, 2));
        // The limit was lowered: more than one goes at once.
        let lowered = of(1, 9, 3);
        assert_eq!([1, 7, 8].map(|number| lowered.would_drop(number)), [true, true, false]);
        assert!(of(5, 5, 1).would_drop(5));
    }

    #[test]
    fn keys_are_read_from_base64() {
        let padded = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
        let expected: [u8; 32] = std::array::from_fn(|i| u8::try_from(i).unwrap());
        for text in [padded, padded.trim_end_matches('='), &format!(" \n{padded}\r\n\t")] {
            assert_eq!(key_from_base64(text).unwrap().expose(), &expected);
        }
        let refused = |text: &str| key_from_base64(text).unwrap_err();
        assert_eq!(refused(""), KeyTextError::Length { bytes: 0 });
        assert_eq!(refused("AAAA"), KeyTextError::Length { bytes: 3 });
        assert_eq!(refused(&"A".repeat(44)), KeyTextError::Length { bytes: 33 });
        assert_eq!(
            refused("AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh!="),
            KeyTextError::NotBase64
        );
        // The last digit must not have bits that say nothing.
        assert_eq!(
            refused("AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh9="),
            KeyTextError::NotBase64
        );
        // The URL-safe alphabet is another one.
        assert_eq!(refused(&"_".repeat(43)), KeyTextError::NotBase64);
    }

    #[test]
    fn only_what_says_nothing_about_the_key_is_an_outage() {
        assert!(ProviderErrorKind::LoginFailed.is_outage());
        assert!(ProviderErrorKind::Sealed.is_outage());
        assert!(!ProviderErrorKind::Denied.is_outage());
        assert!(!ProviderErrorKind::VersionMissing.is_outage());
        assert!(!ProviderErrorKind::AnswerInvalid.is_outage());
        assert!(!ProviderErrorKind::Interrupted.is_outage());
    }
}
