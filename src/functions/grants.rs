//! Granting and revoking privileges on keys.

use std::ffi::{CStr, CString};

use pgrx::pg_sys;

use super::key_name;
use crate::catalog::Privilege;
use crate::catalog::log::Event;
use crate::catalog::write::{Writer, as_owner, refuse_if_read_only};
use crate::errors::Error;
use crate::fmgr::{Call, sql_function};
use crate::mask::Mask;
use crate::{access, keys};

sql_function! {
    /// `enc_grant(name text, grantee name, privileges text, reason text) RETURNS void`
    fn enc_grant(call) {
        refuse_if_read_only(c"enc_grant()");
        call.refuse_nulls_in_first(3)?;
        change_grants(call, "grant", |catalog, change, privilege| {
            catalog.insert_grant(&change.key, change.grantee, privilege)
        })
    }
}

sql_function! {
    /// `enc_revoke(name text, grantee name, privileges text, reason text) RETURNS void`
    fn enc_revoke(call) {
        refuse_if_read_only(c"enc_revoke()");
        call.refuse_nulls_in_first(3)?;
        change_grants(call, "revoke", |catalog, change, privilege| {
            catalog.delete_grant(&change.key, change.grantee, privilege)
        })
    }
}

sql_function! {
    /// `enc_set_mask(name text, mask text, reason text) RETURNS void`
    fn enc_set_mask(call) {
        refuse_if_read_only(c"enc_set_mask()");
        call.refuse_nulls_in_first(1)?;
        let key = keys::named(&key_name(&call.text(0)?)?)?;
        access::check_owner(&key)?;
        let mask = call.optional_text(1)?;
        let reason = call.optional_text(2)?;
        mask.as_deref().map(Mask::parse).transpose()?;
        as_owner(|catalog| {
            catalog.lock()?;
            catalog.set_mask(&key.name, mask.as_deref())?;
            let event = Event::new("set mask").key(&key.name);
            let event = match &mask {
                Some(mask) => event.detail(mask),
                None => event,
            };
            catalog.log(&event.reason(reason.as_deref()))
        })?;
        Ok(pg_sys::Datum::from(0usize))
    }
}

/// What is granted or revoked, on which key, to or from whom.
struct Change {
    key: envelope::KeyName,
    grantee: pg_sys::Oid,
    grantee_name: CString,
    privileges: Vec<Privilege>,
}

fn change_grants(
    call: &Call,
    action: &str,
    write: impl Fn(&mut Writer<'_, '_>, &Change, Privilege) -> Result<(), Error>,
) -> Result<pg_sys::Datum, Error> {
    let key = keys::named(&key_name(&call.text(0)?)?)?;
    access::check_owner(&key)?;
    let reason = call.optional_text(3)?;
    let grantee_name = call.cstring(1).to_owned();
    let change = Change {
        key: key.name.clone(),
        grantee: role(&grantee_name),
        grantee_name,
        privileges: privileges(&call.text(2)?)?,
    };
    as_owner(|catalog| {
        catalog.lock()?;
        catalog.delete_grants_of_dropped_roles(&change.key)?;
        for &privilege in &change.privileges {
            write(catalog, &change, privilege)?;
        }
        let names: Vec<_> = change.privileges.iter().map(|privilege| privilege.name()).collect();
        let detail = format!("{} {:?}", names.join(", "), change.grantee_name);
        let event = Event::new(action).key(&change.key).detail(&detail);
        catalog.log(&event.reason(reason.as_deref()))
    })?;
    Ok(pg_sys::Datum::from(0usize))
}

/// A role's object id; `public` is every role. PostgreSQL raises the error if there is no such
/// role.
fn role(name: &CStr) -> pg_sys::Oid {
    // SAFETY: the name is NUL-terminated.
    unsafe { pg_sys::get_role_oid_or_public(name.as_ptr()) }
}

/// Privileges as in `'encrypt, decrypt'`.
fn privileges(list: &str) -> Result<Vec<Privilege>, Error> {
    list.split(',').map(|name| Privilege::parse(&name.trim().to_ascii_lowercase())).collect()
}
