//! The value that was hashed last, and its plaintext. A hash join hashes a value and then compares it with those
//! that have the same hash; so does a hash table of groups. The value is decrypted once for both.
//!
//! It is found by its whole ciphertext, under the authority that it was decrypted under, and wiped when the
//! client's statement ends.

use std::cell::RefCell;

use envelope::OVERHEAD;
use pgrx::pg_sys;
use zeroize::Zeroize;

use crate::access::Authority;

/// The longest plaintext that is kept, in bytes.
const LONGEST: usize = 256;

struct LastHashed {
    /// `None` if there is nothing here.
    authority: Option<Authority>,
    value: [u8; LONGEST + OVERHEAD],
    plaintext: [u8; LONGEST],
    plaintext_len: usize,
}

thread_local! {
    static LAST: RefCell<LastHashed> = const {
        RefCell::new(LastHashed {
            authority: None,
            value: [0; LONGEST + OVERHEAD],
            plaintext: [0; LONGEST],
            plaintext_len: 0,
        })
    };
}

/// Registers for the end of transactions. Called once, when the library is loaded.
pub(super) fn register() {
    // SAFETY: the callback never unwinds and stays valid, as a library is never unloaded.
    unsafe { pg_sys::RegisterXactCallback(Some(transaction_event), std::ptr::null_mut()) };
}

unsafe extern "C-unwind" fn transaction_event(
    _event: pg_sys::XactEvent::Type,
    _argument: *mut std::ffi::c_void,
) {
    forget();
}

/// Keeps a value that the current user has `compare` for, unless it is long.
#[inline]
pub(super) fn remember(value: &[u8], plaintext: &[u8]) {
    if plaintext.len() > LONGEST {
        return;
    }
    LAST.with_borrow_mut(|last| {
        last.authority = Some(Authority::now());
        last.value[..value.len()].copy_from_slice(value);
        last.plaintext[..plaintext.len()].copy_from_slice(plaintext);
        last.plaintext_len = plaintext.len();
    });
}

/// Calls `body` with the plaintext of `value`, if it is here; else gives it back.
#[inline]
pub(super) fn with<R, F: FnOnce(&[u8]) -> R>(value: &[u8], body: F) -> Result<R, F> {
    LAST.with_borrow(|last| match last.is(value) {
        true => Ok(body(&last.plaintext[..last.plaintext_len])),
        false => Err(body),
    })
}

/// Wipes it. (At the end of a transaction nobody looks at it; if somebody did, a panic would do harm there.)
pub(super) fn forget() {
    LAST.with(|last| {
        if let Ok(mut last) = last.try_borrow_mut()
            && last.authority.take().is_some()
        {
            last.plaintext.zeroize();
        }
    });
}

impl LastHashed {
    #[inline]
    fn is(&self, value: &[u8]) -> bool {
        self.authority == Some(Authority::now())
            && self.value.get(..self.plaintext_len + OVERHEAD) == Some(value)
    }
}
