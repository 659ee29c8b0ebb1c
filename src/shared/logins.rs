//! Logins at key servers that sessions share: a new connection that has to ask a provider need not log in
//! first. A login is that of a provider's settings, and goes to nobody with others: not to another
//! address, for example.
//!
//! The token itself is in the pages. A login that the server has revoked is found out by its refusal; who is
//! refused logs in again, as without sharing, and shares the new login.
//!
//! Of a token that is in a file a digest is here instead, with what was looked up of it: when it ends.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use keyring::configured::Fingerprint;
use keyring::provider::Login;
use zeroize::Zeroizing;

use super::clock::Moment;
use super::memory::{self, Contents};

/// How many logins have room: those of so many different settings.
pub(super) const LOGINS: usize = 16;

/// The longest token that is shared, in bytes. Microsoft's have some 2000.
pub(super) const TOKEN_LEN: usize = 4096;

/// What is known of a login. Its token is in the pages, at the same place.
#[derive(Default)]
pub(super) struct LoginSlot {
    fingerprint: [u8; 32],
    /// The number of the login, which no other has; 0 if there is none.
    number: u64,
    began: Moment,
    length: Option<Duration>,
    whole: Option<Duration>,
    is_renewable: bool,
    token_len: usize,
}

impl Contents<'_> {
    fn login_of(&self, fingerprint: Fingerprint) -> Option<usize> {
        self.logins.iter().position(|slot| slot.number != 0 && slot.fingerprint == fingerprint.0)
    }

    fn wipe_login(&mut self, n: usize) {
        // SAFETY: the lock is held exclusively.
        unsafe { self.tokens.wipe(n * TOKEN_LEN, TOKEN_LEN) };
        self.logins[n] = LoginSlot::default();
    }

    /// Forgets all logins.
    pub(super) fn forget_logins(&mut self) {
        for n in 0..self.logins.len() {
            self.wipe_login(n);
        }
    }
}

/// The login of these settings and its number, unless it is the one with the number that is `known`.
pub(crate) fn get(fingerprint: Fingerprint, known: u64) -> Option<(u64, Login)> {
    memory::shared(|contents| {
        let n = contents.login_of(fingerprint)?;
        let slot = &contents.logins[n];
        if slot.number == known {
            return None;
        }
        let mut token = Zeroizing::new(vec![0; slot.token_len]);
        // SAFETY: the lock is held, and who writes tokens holds it exclusively.
        unsafe { contents.tokens.read(n * TOKEN_LEN, &mut token) };
        let token = Zeroizing::new(std::str::from_utf8(&token).ok()?.to_owned());
        let LoginSlot { length, whole, is_renewable, .. } = *slot;
        let began = slot.began.instant()?;
        Some((slot.number, Login { token, began, length, whole, is_renewable }))
    })
    .flatten()
}

/// When the login of these settings ends; `None` if there is none, or none that ends.
pub(crate) fn end(fingerprint: Fingerprint) -> Option<LoginEnd> {
    memory::shared(|contents| {
        let slot = &contents.logins[contents.login_of(fingerprint)?];
        LoginEnd::of(slot.began.instant()?, slot.length?, slot.whole)
    })
    .flatten()
}

/// When a login ends.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LoginEnd {
    pub(crate) at: Instant,
    /// When that was learned.
    pub(crate) known_since: Instant,
    /// The time that it was given in all.
    pub(crate) whole: Duration,
}

impl LoginEnd {
    pub(crate) fn of(began: Instant, length: Duration, whole: Option<Duration>) -> Option<Self> {
        let at = began.checked_add(length)?;
        Some(Self { at, known_since: began, whole: whole.unwrap_or(length) })
    }
}

/// Shares a login in place of a former one, and tells its number; 0 if there is no room for its token.
pub(crate) fn put(fingerprint: Fingerprint, login: &Login) -> u64 {
    if login.token.len() > TOKEN_LEN {
        return 0;
    }
    let number = memory::exclusive(|contents| {
        let oldest = || {
            let slots = contents.logins.iter().enumerate();
            slots.min_by_key(|(_, slot)| slot.number).map(|(n, _)| n)
        };
        let n = contents.login_of(fingerprint).or_else(oldest)?;
        contents.wipe_login(n);
        let number = contents.header.logins.fetch_add(1, Ordering::Relaxed) + 1;
        // SAFETY: the lock is held exclusively.
        unsafe { contents.tokens.write(n * TOKEN_LEN, login.token.as_bytes()) };
        contents.logins[n] = LoginSlot {
            fingerprint: fingerprint.0,
            number,
            began: Moment::of(login.began),
            length: login.length,
            whole: login.whole,
            is_renewable: login.is_renewable,
            token_len: login.token.len(),
        };
        Some(number)
    });
    number.flatten().unwrap_or(0)
}

/// Forgets the login with this number, which was refused, unless another one has taken its place.
pub(crate) fn forget(fingerprint: Fingerprint, number: u64) {
    memory::exclusive(|contents| {
        if let Some(n) = contents.login_of(fingerprint)
            && contents.logins[n].number == number
        {
            contents.wipe_login(n);
        }
    });
}
