//! At the edges of the server: whether a session shows and takes plaintext, or ciphertext as text
//! (armor).
//!
//! Plaintext, unless it is certain that nobody reads it here: a dump and a change stream carry
//! ciphertext without a setting, and are taken back without one.

use std::rc::Rc;

use envelope::KeyId;

use crate::catalog::{Key, Privilege};
use crate::ddl::{self, default_text};
use crate::errors::Error;
use crate::settings::{Denied, Form, Input};
use crate::{access, keys, pg, session, settings};

/// Whether values leave as armor, by whatever way. This is asked for every value; it compares no text
/// unless something else says that this may be pg_dump.
pub(crate) fn shows_armor() -> bool {
    session::is_decoding()
        || session::is_logical_worker()
        || session::is_upgrading()
        || default_text::is_written()
        || (is_asked_for_armor() && !session::has_lent_rights() && !ddl::is_altering())
}

/// Whether values are shown as if they were all the same. In the new cluster of `pg_upgrade` the only
/// reader is PostgreSQL, which compares a child table's CHECK constraints with its parent's by their texts
/// (`MergeConstraintsIntoExisting` of `src/backend/commands/tablecmds.c`). A constant in them has a ciphertext
/// of its own in each table, and there are no keys to compare plaintexts; but the old cluster had compared
/// them.
pub(crate) fn shows_stand_ins() -> bool {
    session::is_upgrading() && session::is_restoring() && !default_text::is_written()
}

/// Anyone may set these. So they count only where the code that runs is the session's own: a SECURITY
/// DEFINER function that looks at a value shall see what its owner expects. Nor where PostgreSQL reads
/// again what it prints.
fn is_asked_for_armor() -> bool {
    settings::output() == Form::Armor || session::is_named_pg_dump() || session::is_like_pg_dump()
}

/// What the current user, who may not decrypt, is shown in place of values of the key with this id; `None`:
/// nothing, but an error.
///
/// # Errors
///
/// If the catalog can't be read.
pub(crate) fn substitute(key_id: KeyId) -> Result<Option<Substitute>, Error> {
    if settings::on_denied() == Denied::Armor && !session::has_lent_rights() {
        return Ok(Some(Substitute::Armor));
    }
    Ok(keys::masked(key_id)?.map(Substitute::Mask))
}

/// What is shown in place of a value.
pub(crate) enum Substitute {
    Armor,
    /// The mask of this key.
    Mask(Rc<Key>),
}

/// As what a session takes well-formed armor.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Intake {
    /// As a mistake: an application wrote back what it was shown.
    Mistake,
    /// As a value, which must open.
    Value,
    /// As a value of a dump that is restored. One that can't be opened, since its key can't be had
    /// here, is stored as it is: it was ciphertext, and is so still.
    Restored,
    /// As a value of a change stream, likewise.
    Replicated,
}

impl Intake {
    /// That of the session.
    pub(crate) fn now() -> Self {
        if session::is_logical_worker() {
            // PostgreSQL lends a worker the rights of the table's owner (run_as_owner = false). A
            // function of somebody's own that runs there is no change stream.
            return if session::is_definer() { Self::Mistake } else { Self::Replicated };
        }
        // Anyone may set these as well.
        if session::has_lent_rights() {
            Self::Mistake
        } else if session::is_restoring() {
            Self::Restored
        } else if settings::input() == Input::Auto {
            Self::Value
        } else {
            Self::Mistake
        }
    }

    /// Whether a value is stored without a try to open it: what `pg_upgrade` brings has been stored in the
    /// old cluster, and the catalog of keys comes after it.
    pub(crate) fn opens_nothing(self) -> bool {
        self == Self::Restored && session::is_upgrading()
    }

    /// Whether a value is stored although its key can't be had.
    pub(crate) fn keeps_unopened(self) -> bool {
        matches!(self, Self::Restored | Self::Replicated)
    }

    /// Whether the current user may bring ciphertext under the key with this id to a place whose values
    /// are under the key `target`, or that doesn't name one. To plant somebody else's ciphertext must give
    /// nothing that the user couldn't read anyway.
    ///
    /// # Errors
    ///
    /// If not.
    pub(crate) fn check_may_bring(self, key_id: KeyId, target: Option<KeyId>) -> Result<(), Error> {
        match self {
            Self::Mistake => return Err(Error::ArmorRefused),
            // What a publisher sends to a column is no choice of the table's owner.
            Self::Replicated if target == Some(key_id) => return Ok(()),
            Self::Value | Self::Restored | Self::Replicated => (),
        }
        if access::is_superuser(pg::current_user()) {
            return Ok(());
        }
        match keys::check(key_id, Privilege::Decrypt) {
            Err(Error::PermissionDenied { .. } | Error::KeyUnknown { .. }) => {
                Err(Error::ArmorNotPermitted { key_id })
            }
            checked => checked,
        }
    }
}
