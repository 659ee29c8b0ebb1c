//! Which types are ours, which key a column's type names, and where our functions are.

use std::cell::RefCell;
use std::collections::HashMap;

use envelope::KeyId;
use pgrx::pg_sys;

use crate::catalog::invalidation;

/// Whether a type is `encrypted_text` or `encrypted_bytea`: one whose input function is this
/// library's.
pub(crate) fn is_encrypted(type_id: pg_sys::Oid) -> bool {
    KNOWN.with_borrow_mut(|known| {
        // What a type is never changes, but after it was dropped another may get its object id.
        let generation = invalidation::relation_generation();
        if known.generation != generation {
            known.is_encrypted.clear();
            known.generation = generation;
        }
        // SAFETY: the type exists, as it is that of a column or of an expression.
        *known.is_encrypted.entry(type_id).or_insert_with(|| unsafe { has_our_input(type_id) })
    })
}

/// The schema that a type is in.
pub(crate) fn schema_of(type_id: pg_sys::Oid) -> pg_sys::Oid {
    let mut input = pg_sys::InvalidOid;
    let mut element = pg_sys::InvalidOid;
    // SAFETY: look-ups in system caches. The extension's objects are in one schema.
    unsafe {
        pg_sys::getTypeInputInfo(type_id, &raw mut input, &raw mut element);
        pg_sys::get_func_namespace(input)
    }
}

/// The function of this name in a schema that takes arguments of these types; `InvalidOid` if there is
/// none.
pub(crate) fn function_named(
    name: &std::ffi::CStr,
    arguments: &[pg_sys::Oid],
    schema: pg_sys::Oid,
) -> pg_sys::Oid {
    // SAFETY: the name is NUL-terminated; the vector is made of as many types as the slice has.
    unsafe {
        pg_sys::GetSysCacheOid(
            pg_sys::SysCacheIdentifier::PROCNAMEARGSNSP as i32,
            pg_sys::Anum_pg_proc_oid as pg_sys::AttrNumber,
            pg_sys::Datum::from(name.as_ptr()),
            pg_sys::Datum::from(pg_sys::buildoidvector(
                arguments.as_ptr(),
                arguments.len() as std::ffi::c_int,
            )),
            pg_sys::Datum::from(schema),
            pg_sys::Datum::from(0usize),
        )
    }
}

/// The key that a column of this type and modifier is encrypted under, if the type is one of ours,
/// an array of it, or a domain over any of them.
pub(crate) fn key_of_type(type_id: pg_sys::Oid, modifier: i32) -> Option<KeyId> {
    let (mut base, mut modifier) = (type_id, modifier);
    loop {
        // SAFETY: look-ups in system caches.
        let element = unsafe {
            base = pg_sys::getBaseTypeAndTypmod(base, &raw mut modifier);
            pg_sys::get_element_type(base)
        };
        if element == pg_sys::InvalidOid {
            break;
        }
        base = element;
    }
    if !is_encrypted(base) {
        return None;
    }
    u32::try_from(modifier).ok().and_then(KeyId::new)
}

/// The types that were asked about.
struct Known {
    generation: u64,
    is_encrypted: HashMap<pg_sys::Oid, bool>,
}

thread_local! {
    static KNOWN: RefCell<Known> =
        RefCell::new(Known { generation: 0, is_encrypted: HashMap::new() });
}

unsafe fn has_our_input(type_id: pg_sys::Oid) -> bool {
    /// `FirstNormalObjectId` of `src/include/access/transam.h`.
    const FIRST_NORMAL: u32 = 16384;
    if type_id.to_u32() < FIRST_NORMAL {
        return false;
    }
    // Declared as PostgreSQL sees them: what is compared is where a function is.
    unsafe extern "C-unwind" {
        fn encrypted_text_in(call: pg_sys::FunctionCallInfo) -> pg_sys::Datum;
        fn encrypted_bytea_in(call: pg_sys::FunctionCallInfo) -> pg_sys::Datum;
    }
    let ours = [encrypted_text_in as *const (), encrypted_bytea_in as *const ()];
    let mut input = pg_sys::InvalidOid;
    let mut element = pg_sys::InvalidOid;
    let mut function = pg_sys::FmgrInfo::default();
    // SAFETY: look-ups in system caches; the description is made in the current memory context, and
    // compared only.
    unsafe {
        pg_sys::getTypeInputInfo(type_id, &raw mut input, &raw mut element);
        pg_sys::fmgr_info(input, &raw mut function);
    }
    function.fn_addr.is_some_and(|address| ours.contains(&(address as *const ())))
}
