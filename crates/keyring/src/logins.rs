//! How often this thread has logged in at a provider, or had a login renewed: for whoever asked for it to say
//! so. What has no login that ends (a PIN, a certificate, the credentials of AWS) isn't counted.

use std::cell::Cell;

thread_local! {
    static COUNT: Cell<u32> = const { Cell::new(0) };
}

/// Takes notice of a login.
pub(crate) fn note() {
    COUNT.set(COUNT.get().saturating_add(1));
}

/// How many there were since this was asked last.
#[must_use]
pub fn take() -> u32 {
    COUNT.replace(0)
}
