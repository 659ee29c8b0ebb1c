//! Encrypted constants that PostgreSQL keeps in its catalogs: of defaults, views, rules, policies,
//! constraints, triggers, indexes, functions and partition bounds as node trees, and of columns that
//! were added with a default as arrays (`pg_attribute.attmissingval`).
//!
//! A node tree's text has each constant's type and bytes, in the form of `outDatum`
//! (`src/backend/nodes/outfuncs.c`), which is the same in every version so far:
//!
//! ```text
//! {CONST :consttype 16384 ... :constvalue 59 [ -20 0 0 0 1 ... ]}
//! ```
//!
//! What is in a name or a string can't be mistaken for it, because spaces are escaped there.

use pgrx::pg_sys;

use super::nested::{Base, Shape};
use super::values::{is_outdated, rotated, version_under};
use crate::catalog::write::{as_owner, refuse_if_read_only};
use crate::errors::Error;
use crate::fmgr::{Call, sql_function};
use crate::functions::lifecycle::owned_key;
use crate::varlena::text_datum;

sql_function! {
    /// `encryption.constant_versions(pg_node_tree, integer) RETURNS integer[]`: the versions of the key
    /// with this id that constants need.
    fn encryption_constant_versions(call) {
        let key_id = call.int4(1);
        let mut versions = Vec::new();
        for constant in constants(call.varlena(0).bytes())? {
            visit(&constant, &mut |_, value| {
                versions.extend(version_under(value, key_id));
                Ok(())
            })?;
        }
        as_array(versions)
    }
}

sql_function! {
    /// `encryption.rotate_constants(pg_node_tree) RETURNS pg_node_tree`: with every constant that is
    /// outdated under the active version of its key; null if none is.
    fn encryption_rotate_constants(call) {
        let tree = call.varlena(0).bytes();
        let mut changed = Vec::with_capacity(tree.len());
        let mut copied = 0;
        for constant in constants(tree)? {
            let mut outdated = false;
            visit(&constant, &mut |_, value| {
                outdated = outdated || is_outdated(value)?;
                Ok(())
            })?;
            if outdated {
                // SAFETY: the bytes are a value of the constant's type, whose shape this is.
                let value = unsafe { constant.shape.map(constant.datum, &mut rotated) }?;
                changed.extend_from_slice(&tree[copied..constant.start]);
                changed.extend_from_slice(printed(value).as_bytes());
                copied = constant.end;
            }
        }
        if copied == 0 {
            return Ok(call.null());
        }
        changed.extend_from_slice(&tree[copied..]);
        // A pg_node_tree is stored as text is.
        text_datum(&changed)
    }
}

sql_function! {
    /// `encryption.missing_versions(anyarray, integer) RETURNS integer[]`: the same of the value that
    /// rows have that are older than their column.
    fn encryption_missing_versions(call) {
        let key_id = call.int4(1);
        let mut versions = Vec::new();
        // SAFETY: the argument is an array with the elements that its header names.
        unsafe {
            shape_of_array(call)?.visit(call.datum(0), &mut |_, value| {
                versions.extend(version_under(value, key_id));
                Ok(())
            })?;
        }
        as_array(versions)
    }
}

sql_function! {
    /// `encryption.rotate_missing(anyarray) RETURNS anyarray`: null if nothing in it is outdated.
    fn encryption_rotate_missing(call) {
        let shape = shape_of_array(call)?;
        let mut outdated = false;
        // SAFETY: as in `encryption_missing_versions`.
        unsafe {
            shape.visit(call.datum(0), &mut |_, value| {
                outdated = outdated || is_outdated(value)?;
                Ok(())
            })?;
            if !outdated {
                return Ok(call.null());
            }
            shape.map(call.datum(0), &mut rotated)
        }
    }
}

sql_function! {
    /// `encryption.forget_relations() RETURNS void`: every session reads the definitions of its tables
    /// again. (A change of a default, a policy or a rule by itself says nothing of its table.)
    fn encryption_forget_relations(_call) {
        // SAFETY: queues a message that is sent at commit.
        unsafe { pg_sys::CacheInvalidateRelcacheAll() };
        Ok(pg_sys::Datum::from(0usize))
    }
}

sql_function! {
    /// `encryption.rotate_catalogs(name text) RETURNS bigint`: with the rights of the catalog's owner,
    /// since the system catalogs are a superuser's. It changes no plaintext, and the caller owns the key.
    fn encryption_rotate_catalogs(call) {
        const ROTATE: &str = "SELECT encryption.rotate_catalog_rows($1)";
        refuse_if_read_only(c"enc_rotate_all()");
        call.refuse_nulls()?;
        let key = owned_key(call)?;
        let id = key.name.id().get() as i32;
        let rows = as_owner(|catalog| catalog.value::<i64>(ROTATE, &[id.into()]))?;
        Ok(pg_sys::Datum::from(rows.unwrap_or(0)))
    }
}

fn as_array(mut versions: Vec<i32>) -> Result<pg_sys::Datum, Error> {
    versions.sort_unstable();
    versions.dedup();
    pgrx::IntoDatum::into_datum(versions)
        .ok_or(Error::Internal { what: "an array of versions is null" })
}

/// The shape of an `anyarray` column's value, whose header alone says which elements it has: a column that is
/// an array itself has one element that is an array.
fn shape_of_array(call: &Call) -> Result<Shape, Error> {
    // SAFETY: SQL declares the argument an array.
    unsafe {
        let array = pg_sys::pg_detoast_datum(call.datum(0).cast_mut_ptr());
        Shape::of_array_of((*array.cast::<pg_sys::ArrayType>()).elemtype)
    }
}

/// A constant of a node tree that holds encrypted values.
struct Constant {
    /// Where the text of its bytes begins and ends.
    start: usize,
    end: usize,
    shape: std::rc::Rc<Shape>,
    datum: pg_sys::Datum,
}

fn visit(
    constant: &Constant,
    each: &mut dyn FnMut(Base, pg_sys::Datum) -> Result<(), Error>,
) -> Result<(), Error> {
    // SAFETY: the bytes are a value of the constant's type, whose shape this is.
    unsafe { constant.shape.visit(constant.datum, each) }
}

/// The constants of a node tree that hold encrypted values.
fn constants(tree: &[u8]) -> Result<Vec<Constant>, Error> {
    const CONSTANT: &[u8] = b"{CONST :consttype ";
    const VALUE: &[u8] = b":constvalue ";
    let mut found = Vec::new();
    let mut at = 0;
    while let Some(offset) = find(&tree[at..], CONSTANT) {
        at += offset + CONSTANT.len();
        let Some(type_id) = number(&tree[at..]) else { continue };
        let type_id = pg_sys::Oid::from(u32::try_from(type_id).unwrap_or(0));
        // The built-in types hold none of ours, and are most.
        if type_id.to_u32() < FIRST_NORMAL_OBJECT_ID || !exists(type_id) {
            continue;
        }
        let shape = Shape::of(type_id)?;
        if matches!(*shape, Shape::Plain) {
            continue;
        }
        let Some(offset) = find(&tree[at..], VALUE) else { continue };
        let start = at + offset + VALUE.len();
        // A null is "<>".
        let Some((bytes, len)) = parsed(&tree[start..]) else { continue };
        let end = start + len;
        // SAFETY: palloc returns as many bytes as are copied; they hold a varlena, as all types that
        // hold encrypted values are.
        let datum = unsafe {
            let copy = pg_sys::palloc(bytes.len()).cast::<u8>();
            copy.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len());
            pg_sys::Datum::from(copy)
        };
        found.push(Constant { start, end, shape, datum });
        at = end;
    }
    Ok(found)
}

/// `FirstNormalObjectId` of `src/include/access/transam.h`.
const FIRST_NORMAL_OBJECT_ID: u32 = 16384;

fn exists(type_id: pg_sys::Oid) -> bool {
    // SAFETY: a look-up in a system cache.
    unsafe { pg_sys::get_typtype(type_id) != 0 }
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}

/// The number that a text begins with.
fn number(text: &[u8]) -> Option<i64> {
    let len = text.iter().take_while(|byte| byte.is_ascii_digit() || **byte == b'-').count();
    std::str::from_utf8(&text[..len]).ok()?.parse().ok()
}

/// The bytes of a varlena in the form of `outDatum`, and how long that is.
fn parsed(text: &[u8]) -> Option<(Vec<u8>, usize)> {
    let end = text.iter().position(|&byte| byte == b']')? + 1;
    let mut words = text[..end].split(|&byte| byte == b' ').filter(|word| !word.is_empty());
    let len = usize::try_from(number(words.next()?)?).ok()?;
    if words.next()? != b"[" {
        return None;
    }
    let mut bytes = Vec::with_capacity(len);
    for word in words.take_while(|word| *word != b"]") {
        // As a signed char prints.
        bytes.push(i8::try_from(number(word)?).ok()?.cast_unsigned());
    }
    (bytes.len() == len && len >= pg_sys::VARHDRSZ).then_some((bytes, end))
}

/// A varlena in the form of `outDatum`.
fn printed(value: pg_sys::Datum) -> String {
    // SAFETY: the value is a varlena that was just made, so not stored elsewhere.
    let bytes = unsafe {
        let start = value.cast_mut_ptr::<u8>();
        std::slice::from_raw_parts(start, pgrx::varlena::varsize_any(start.cast()))
    };
    let mut text = format!("{} [ ", bytes.len());
    for byte in bytes {
        text += &byte.cast_signed().to_string();
        text.push(' ');
    }
    text.push(']');
    text
}
