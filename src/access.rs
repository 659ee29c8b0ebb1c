//! Who may do what with a key: PostgreSQL's rules of role membership, applied to the grants of
//! the catalog.

use envelope::KeyId;
use pgrx::pg_sys;
use rustc_hash::FxHashMap;

use crate::catalog::{Key, Privilege, invalidation};
use crate::errors::Error;
use crate::pg;

/// What was decided for users and keys, until grants or roles change.
#[derive(Default)]
pub(crate) struct Decisions {
    role_generation: u64,
    held: FxHashMap<(pg_sys::Oid, KeyId), Held>,
}

/// The privileges that a user holds on a key.
#[derive(Clone, Copy)]
pub(crate) struct Held([bool; Privilege::ALL.len()]);

/// Under which a decision was made: the current user, and what the catalog and the roles were. What
/// was decided holds as long as this stays the same.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Authority {
    user: pg_sys::Oid,
    catalog_generation: u64,
    role_generation: u64,
}

impl Authority {
    /// The current one.
    pub(crate) fn now() -> Self {
        Self {
            user: pg::current_user(),
            catalog_generation: invalidation::catalog_generation(),
            role_generation: invalidation::role_generation(),
        }
    }
}

impl Decisions {
    /// Forgets what was decided.
    pub(crate) fn clear(&mut self) {
        self.held.clear();
    }

    /// The privileges that `user` holds on `key`.
    pub(crate) fn held(&mut self, user: pg_sys::Oid, key: &Key) -> Held {
        let generation = invalidation::role_generation();
        if self.role_generation != generation {
            self.clear();
            self.role_generation = generation;
        }
        *self.held.entry((user, key.name.id())).or_insert_with(|| Held::of(user, key))
    }
}

impl Held {
    fn of(user: pg_sys::Oid, key: &Key) -> Self {
        // Everyone uses the database key; it protects no column.
        if key.is_database_key() || is_owner(user, key) {
            return Self([true; Privilege::ALL.len()]);
        }
        // PostgreSQL remembers by itself which roles the user is a member of.
        let applies = |grantee: pg_sys::Oid| {
            grantee == pg_sys::InvalidOid || has_privileges_of(user, grantee)
        };
        Self(Privilege::ALL.map(|wanted| {
            key.grants
                .iter()
                .any(|grant| grant.privilege.includes(wanted) && applies(grant.grantee))
        }))
    }

    /// Whether `privilege` is among them.
    pub(crate) fn has(self, privilege: Privilege) -> bool {
        self.0[privilege as usize]
    }

    /// Whether they show masks of values, and no plaintexts.
    pub(crate) fn is_masked(self) -> bool {
        self.has(Privilege::Mask) && !self.has(Privilege::Decrypt)
    }

    /// Whether `privilege` is among them.
    ///
    /// # Errors
    ///
    /// If not.
    pub(crate) fn check(self, key: &Key, privilege: Privilege) -> Result<(), Error> {
        if self.has(privilege) {
            return Ok(());
        }
        Err(Error::PermissionDenied { key: key.name.clone(), privilege: privilege.name() })
    }
}

/// Whether the current user may change the key: its owner, a member of its owner, a superuser.
///
/// # Errors
///
/// If not.
pub(crate) fn check_owner(key: &Key) -> Result<(), Error> {
    if is_owner(pg::current_user(), key) {
        return Ok(());
    }
    Err(Error::NotKeyOwner { key: key.name.clone() })
}

/// Whether the current user may see how this server gets the key: its owner, monitoring roles.
///
/// # Errors
///
/// If not.
pub(crate) fn check_may_inspect(key: &Key) -> Result<(), Error> {
    if has_privileges_of(pg::current_user(), pg_sys::ROLE_PG_MONITOR.into()) {
        return Ok(());
    }
    check_owner(key)
}

fn is_owner(user: pg_sys::Oid, key: &Key) -> bool {
    // has_privs_of_role is true for superusers.
    has_privileges_of(user, key.owner)
}

/// Whether `user` may do with the table what its owner may. False if there is no such table, unless
/// the user is a superuser.
pub(crate) fn is_table_owner(user: pg_sys::Oid, table: pg_sys::Oid) -> bool {
    // SAFETY: look-ups in system caches; a table that doesn't exist has no owner to be looked for.
    unsafe {
        match pg_sys::get_rel_name(table).is_null() {
            true => pg_sys::superuser_arg(user),
            #[cfg(any(feature = "pg14", feature = "pg15"))]
            false => pg_sys::pg_class_ownercheck(table, user),
            #[cfg(not(any(feature = "pg14", feature = "pg15")))]
            false => pg_sys::object_ownercheck(pg_sys::RelationRelationId, table, user),
        }
    }
}

/// The owner of a table, if there is such a table.
pub(crate) fn owner_of_table(table: pg_sys::Oid) -> Option<pg_sys::Oid> {
    // SAFETY: the lock keeps the table while it is opened; a null pointer says that there is none.
    unsafe {
        let lock = pg_sys::AccessShareLock as pg_sys::LOCKMODE;
        let relation = pg_sys::try_relation_open(table, lock);
        if relation.is_null() {
            return None;
        }
        let owner = (*(*relation).rd_rel).relowner;
        pg_sys::relation_close(relation, lock);
        Some(owner)
    }
}

/// Whether `user` is a superuser, who passes every check.
pub(crate) fn is_superuser(user: pg_sys::Oid) -> bool {
    // SAFETY: a look-up in a system cache.
    unsafe { pg_sys::superuser_arg(user) }
}

/// Whether `user` holds `privilege` on `key`.
pub(crate) fn may(user: pg_sys::Oid, key: &Key, privilege: Privilege) -> bool {
    Held::of(user, key).check(key, privilege).is_ok()
}

/// The role with this name, to which the current user may give what is its own, by the rules of `ALTER …
/// OWNER TO`. PostgreSQL raises the error if there is no such role, or the user may not become it.
pub(crate) fn role_to_give_to(name: &std::ffi::CStr) -> pg_sys::Oid {
    // SAFETY: the name is NUL-terminated; look-ups in system caches.
    unsafe {
        let role = pg_sys::get_role_oid(name.as_ptr(), false);
        #[cfg(any(feature = "pg14", feature = "pg15"))]
        pg_sys::check_is_member_of_role(pg::current_user(), role);
        #[cfg(not(any(feature = "pg14", feature = "pg15")))]
        pg_sys::check_can_set_role(pg::current_user(), role);
        role
    }
}

/// A role's name, for a message.
pub(crate) fn role_name(role: pg_sys::Oid) -> String {
    // SAFETY: a look-up in a system cache; the name is NUL-terminated, or a null pointer.
    unsafe {
        let name = pg_sys::GetUserNameFromId(role, true);
        match name.is_null() {
            true => role.to_u32().to_string(),
            false => crate::types::encoding::utf8_lossy(std::ffi::CStr::from_ptr(name)),
        }
    }
}

fn has_privileges_of(user: pg_sys::Oid, role: pg_sys::Oid) -> bool {
    // SAFETY: look-ups in system caches; unknown roles have no members but superusers.
    unsafe { pg_sys::has_privs_of_role(user, role) }
}
