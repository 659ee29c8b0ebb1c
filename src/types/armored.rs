//! Values as text: what the session is shown in place of plaintexts, and what it takes back.

use std::cell::RefCell;
use std::collections::HashMap;
use std::time::{Duration, Instant};

use envelope::{KeyId, KeyVersion, OVERHEAD, Sealed, armor};

use super::{EncryptedType, key_of_modifier, parse};
use crate::catalog::{Privilege, invalidation};
use crate::ddl;
use crate::edges::{self, Intake, Substitute};
use crate::errors::Error;
use crate::mask::Mask;
use crate::varlena::{Buffer, Shape, Varlena};
use crate::{keys, value};

/// What the session is shown of a value.
pub(super) enum Shown {
    /// The plaintext, as a value of the base type.
    Plaintext(Buffer),
    /// A text in its place, in ASCII.
    Text(Buffer),
}

/// What the session is shown of a value: what `decrypt` makes of it; or armor, in the given shape; or
/// what `mask` makes of the text, in UTF-8, that the value's mask is.
pub(super) fn shown(
    stored: Varlena,
    shape: Shape,
    decrypt: impl FnOnce(&Sealed<'_>) -> Result<Buffer, Box<Error>>,
    mask: impl FnOnce(&str) -> Result<Shown, Box<Error>>,
) -> Result<Shown, Box<Error>> {
    // Whatever is shown as a value is one.
    let sealed = parse(stored)?;
    if edges::shows_stand_ins() {
        return Ok(Shown::Text(Buffer::copy_of(shape, stand_in(stored.bytes()).as_bytes())?));
    }
    if edges::shows_armor() {
        return armored(stored, shape);
    }
    let denied = match decrypt(&sealed) {
        Err(denied) if matches!(*denied, Error::PermissionDenied { .. }) => denied,
        decrypted => return decrypted.map(Shown::Plaintext),
    };
    // A backup has ciphertext in it, and no masks, whatever its role is granted.
    let substitute = edges::substitute(sealed.key_id())?;
    if substitute.is_some() {
        ddl::refuse_substitute(sealed.key_id())?;
    }
    match substitute {
        Some(Substitute::Armor) => armored(stored, shape),
        Some(Substitute::Mask(key)) => mask(&masked(&sealed, &key.mask)?),
        None => Err(denied),
    }
}

/// The text that stands for a value.
fn masked(sealed: &Sealed<'_>, mask: &Mask) -> Result<String, Box<Error>> {
    if !mask.needs_plaintext(sealed.kind()) {
        return Ok(mask.apply(None));
    }
    let plaintext = value::open(sealed, Some(Privilege::Mask), Shape::Varlena)?;
    let masked = match std::str::from_utf8(plaintext.bytes()) {
        Ok(text) => mask.apply(Some(text)),
        Err(_) => mask.apply(None),
    };
    plaintext.free();
    Ok(masked)
}

fn armored(stored: Varlena, shape: Shape) -> Result<Shown, Box<Error>> {
    Ok(Shown::Text(Buffer::copy_of(shape, armor::encode(stored.bytes()).as_bytes())?))
}

/// Armor that says no more of a value than its kind and its key: it is of version 1, and everything else is
/// zero. No input takes it, as it is not authentic.
fn stand_in(value: &[u8]) -> String {
    const KIND_AND_KEY: usize = 6;
    const VERSION: usize = 10;
    let mut nothing = [0; OVERHEAD];
    nothing[..KIND_AND_KEY].copy_from_slice(&value[..KIND_AND_KEY]);
    nothing[VERSION - 1] = 1;
    armor::encode(&nothing)
}

/// Armor in a plaintext's place is an application writing back what it was shown: encrypted once more
/// it would look right and be lost.
///
/// # Errors
///
/// If the bytes are armor.
pub(super) fn refuse(input: &[u8]) -> Result<(), Box<Error>> {
    if armor::looks_like_armor(input) { Err(Error::ArmorRefused.into()) } else { Ok(()) }
}

/// The value that `input` is the armor of, under the key of the modifier if there is one; `None` if
/// it isn't armor. (It takes a comparison of six bytes to say so of an ordinary text.)
///
/// # Errors
///
/// If the session doesn't take armor, the current user may not bring this, or it isn't authentic.
pub(super) fn take<T: EncryptedType>(
    input: &[u8],
    modifier: i32,
) -> Result<Option<Varlena>, Box<Error>> {
    let Ok(payload) = armor::decode(input) else { return Ok(None) };
    let Ok(sealed) = Sealed::parse(&payload) else { return Ok(None) };
    let target = match modifier {
        ..0 => None,
        _ => Some(key_of_modifier(modifier)?),
    };
    let intake = Intake::now();
    intake.check_may_bring(sealed.key_id(), target)?;
    if !T::holds(sealed.kind()) {
        return Err(Error::ValueOfOtherType { expected: T::NAME }.into());
    }
    let stored = Buffer::copy_of(Shape::Varlena, &payload)?.varlena();
    match target {
        // The length-coercion cast sees to it that it gets under the column's key.
        None => unless_unavailable(stored, intake, || verified(stored)),
        Some(key_id) if key_id != sealed.key_id() => under_active_version(stored, key_id),
        Some(key_id) => unless_unavailable(stored, intake, || under_active_version(stored, key_id)),
    }
    .map(Some)
    .map_err(Box::new)
}

/// What the length-coercion cast makes of a value of the right key and an old version, by
/// `reencrypt`. In a dump that is restored as INSERT statements it came from [`take`] and may stay as
/// it is.
pub(super) fn coerced(
    stored: Varlena,
    reencrypt: impl FnOnce() -> Result<Varlena, Error>,
) -> Result<Varlena, Error> {
    match Intake::now() {
        Intake::Restored => unless_unavailable(stored, Intake::Restored, reencrypt),
        _ => reencrypt(),
    }
}

/// The value itself, if it opens. Whether the user may bring it was decided.
fn verified(stored: Varlena) -> Result<Varlena, Error> {
    value::open(&parse(stored)?, None, Shape::Varlena)?.free();
    Ok(stored)
}

/// The value under the active version of the key with this id: itself, if it is that and opens. To
/// encrypt it again the current user needs `decrypt` on its key and `encrypt` on the new one. The
/// plaintext stays what it is, whatever this database's encoding.
fn under_active_version(stored: Varlena, key_id: KeyId) -> Result<Varlena, Error> {
    let sealed = parse(stored)?;
    let active = keys::active_version(key_id)?;
    if sealed.key_id() == key_id && active == Some(sealed.key_version()) {
        return verified(stored);
    }
    let plaintext = value::open(&sealed, Some(Privilege::Decrypt), Shape::Varlena)?;
    let value = value::seal(key_id, sealed.kind(), plaintext.bytes())?;
    plaintext.free();
    Ok(value.varlena())
}

/// What `attempt` makes of a value; the value itself, if it needs a key that can't be had and `intake`
/// allows for that.
fn unless_unavailable(
    stored: Varlena,
    intake: Intake,
    attempt: impl FnOnce() -> Result<Varlena, Error>,
) -> Result<Varlena, Error> {
    if !intake.keeps_unopened() {
        return attempt();
    }
    if intake.opens_nothing() {
        return Ok(stored);
    }
    let sealed = parse(stored)?;
    let (key_id, version) = (sealed.key_id(), sealed.key_version());
    if Unavailable::is_known(key_id, version) {
        return Ok(stored);
    }
    match attempt() {
        Err(error) if keeps_in_spite_of(&error, intake) => {
            if Unavailable::note(key_id, version) {
                pgrx::warning!(
                    "storing values under version {version} of key \"{}\" without having opened them: {}",
                    key_name(key_id),
                    error.message()
                );
            }
            Ok(stored)
        }
        made => made,
    }
}

fn keeps_in_spite_of(error: &Error, intake: Intake) -> bool {
    // The owner of a subscriber's table may have no privilege on its key.
    error.is_of_unavailable_key()
        || (intake == Intake::Replicated && matches!(error, Error::PermissionDenied { .. }))
}

fn key_name(key_id: KeyId) -> String {
    match keys::find(key_id) {
        Ok(Some(key)) => key.name.to_string(),
        _ => key_id.to_string(),
    }
}

/// The versions that could not be had a moment ago: a provider that is out of reach isn't asked for
/// each of a million values, nor the client told of it as often.
#[derive(Default)]
struct Unavailable {
    generation: u64,
    since: HashMap<(KeyId, KeyVersion), Instant>,
}

thread_local! {
    static UNAVAILABLE: RefCell<Unavailable> = RefCell::default();
}

impl Unavailable {
    /// How long a version isn't tried again, unless the catalog changes.
    const PAUSE: Duration = Duration::from_secs(60);

    fn is_known(key_id: KeyId, version: KeyVersion) -> bool {
        UNAVAILABLE.with_borrow_mut(|unavailable| {
            let generation = invalidation::catalog_generation();
            if unavailable.generation != generation {
                unavailable.since.clear();
                unavailable.generation = generation;
            }
            let since = unavailable.since.get(&(key_id, version));
            since.is_some_and(|since| since.elapsed() < Self::PAUSE)
        })
    }

    /// Notes it; returns whether it is news.
    fn note(key_id: KeyId, version: KeyVersion) -> bool {
        UNAVAILABLE.with_borrow_mut(|unavailable| {
            unavailable.since.insert((key_id, version), Instant::now()).is_none()
        })
    }
}

/// Forgets which versions could not be had.
pub(crate) fn flush() {
    UNAVAILABLE.with_borrow_mut(|unavailable| unavailable.since.clear());
}
