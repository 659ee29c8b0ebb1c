//! Who may do what with a key: PostgreSQL's rules of role membership, applied to the grants of
//! the catalog.

use std::cell::RefCell;
use std::collections::HashMap;

use envelope::KeyId;
use pgrx::pg_sys;

use crate::catalog::{Key, Privilege, invalidation};
use crate::errors::Error;

/// What was decided for users and keys, until grants or roles change.
#[derive(Default)]
pub(crate) struct Decisions {
    role_generation: u64,
    held: HashMap<(pg_sys::Oid, KeyId), Held>,
}

/// The privileges that a user holds on a key.
#[derive(Clone, Copy)]
struct Held([bool; Privilege::ALL.len()]);

impl Decisions {
    /// Forgets what was decided.
    pub(crate) fn clear(&mut self) {
        self.held.clear();
    }

    /// Whether the current user has `privilege` on `key`.
    ///
    /// # Errors
    ///
    /// If not.
    pub(crate) fn check(&mut self, key: &Key, privilege: Privilege) -> Result<(), Error> {
        let generation = invalidation::role_generation();
        if self.role_generation != generation {
            self.clear();
            self.role_generation = generation;
        }
        let user = current_user();
        let held = *self.held.entry((user, key.name.id())).or_insert_with(|| Held::of(user, key));
        if held.includes(privilege) {
            return Ok(());
        }
        Err(Error::PermissionDenied { key: key.name.clone(), privilege: privilege.name() })
    }
}

impl Held {
    fn of(user: pg_sys::Oid, key: &Key) -> Self {
        if is_owner(user, key) {
            return Self([true; Privilege::ALL.len()]);
        }
        // A role often has several grants: ask once whether the user is a member.
        let memberships = RefCell::new(HashMap::new());
        let applies = |grantee: pg_sys::Oid| {
            grantee == pg_sys::InvalidOid
                || *memberships
                    .borrow_mut()
                    .entry(grantee)
                    .or_insert_with(|| has_privileges_of(user, grantee))
        };
        Self(Privilege::ALL.map(|wanted| {
            key.grants
                .iter()
                .any(|grant| grant.privilege.includes(wanted) && applies(grant.grantee))
        }))
    }

    fn includes(self, privilege: Privilege) -> bool {
        Privilege::ALL.into_iter().zip(self.0).any(|(each, held)| held && each == privilege)
    }
}

/// The role whose rights apply now: that of a SECURITY DEFINER function inside of it, that of
/// SET ROLE, or else that of the session.
pub(crate) fn current_user() -> pg_sys::Oid {
    // SAFETY: reads this backend's current user id.
    unsafe { pg_sys::GetUserId() }
}

/// Whether the current user may change the key: its owner, a member of its owner, a superuser.
///
/// # Errors
///
/// If not.
pub(crate) fn check_owner(key: &Key) -> Result<(), Error> {
    if is_owner(current_user(), key) {
        return Ok(());
    }
    Err(Error::NotKeyOwner { key: key.name.clone() })
}

fn is_owner(user: pg_sys::Oid, key: &Key) -> bool {
    // has_privs_of_role is true for superusers.
    has_privileges_of(user, key.owner)
}

fn has_privileges_of(user: pg_sys::Oid, role: pg_sys::Oid) -> bool {
    // SAFETY: look-ups in system caches; unknown roles have no members but superusers.
    unsafe { pg_sys::has_privs_of_role(user, role) }
}
