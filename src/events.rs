//! What happens to keys and providers that an operator is told of.

use std::cell::RefCell;
use std::collections::BTreeSet;

use envelope::{KeyName, KeyVersion};

use crate::catalog::{Key, Version};

thread_local! {
    /// The versions in whose place a provider had another key when it was asked last.
    static WRONG: RefCell<BTreeSet<(KeyName, KeyVersion)>> = const { RefCell::new(BTreeSet::new()) };
}

/// Takes notice of whether a provider had the right key for a version.
pub(crate) fn check_value_seen(key: &Key, version: &Version, is_right: bool) {
    WRONG.with_borrow_mut(|wrong| {
        if !is_right {
            wrong.insert((key.name.clone(), version.number));
        } else if !wrong.is_empty() {
            wrong.remove(&(key.name.clone(), version.number));
        }
    });
}

/// The versions in whose place a provider had another key when this process asked last.
pub(crate) fn wrong_check_values() -> Vec<(KeyName, KeyVersion)> {
    WRONG.with_borrow(|wrong| wrong.iter().cloned().collect())
}
