//! The comparison operators: values compare as their plaintexts do, with one another and with values
//! of the base type.
//!
//! Both sides are decrypted and compared as PostgreSQL compares the base type, so that collations,
//! the nondeterministic ones included, mean what they mean for `text`.

use std::cmp::Ordering;
use std::ffi::c_void;

use pgrx::pg_sys;

use super::plaintexts::Plaintexts;
use super::side::{Base, Encrypted, Name, Side};
use super::{Comparable, nothing_kept};
use crate::catalog::Privilege;
use crate::errors::Error;
use crate::fmgr::{Call, sql_function};
use crate::types::{EncryptedBytea, EncryptedText, parse};
use crate::varlena::Varlena;
use crate::{keys, pg, session};

/// Whether the arguments have equal plaintexts. The current user needs `compare` on their keys.
fn equal<T: Comparable, L: Side, R: Side>(call: &Call) -> Result<bool, Box<Error>> {
    let collation = call.collation();
    if T::is_equality_of_bytes(collation) {
        return equal_bytes::<L, R>(call);
    }
    compare::<L, R, _>(call, Privilege::Compare, true, |left, right| {
        T::equal(left, right, collation)
    })
}

/// Whether the arguments have plaintexts of the same bytes. Those of different lengths are decrypted as well: a
/// value that was altered is never unequal, but an error.
fn equal_bytes<L: Side, R: Side>(call: &Call) -> Result<bool, Box<Error>> {
    const PRIVILEGE: Privilege = Privilege::Compare;
    if may_be_identical::<L, R>(call) && are_identical(call, PRIVILEGE)? {
        return Ok(true);
    }
    let (left, right) = (L::argument(call, 0)?, R::argument(call, 1)?);
    let equal = L::with_bytes(left, PRIVILEGE, kept::<L, R>(call, 0), |left| {
        R::with_bytes(right, PRIVILEGE, kept::<L, R>(call, 1), |right| left == right)
    })??;
    L::free(left);
    R::free(right);
    Ok(equal)
}

/// The order of the arguments' plaintexts. The current user needs `decrypt` on their keys: whoever
/// can compare for order finds a plaintext by bisection.
fn order<T: Comparable>(call: &Call) -> Result<Ordering, Box<Error>> {
    let collation = call.collation();
    let compared = |left, right| T::order(left, right, collation);
    compare::<Encrypted<T>, Encrypted<T>, _>(call, Privilege::Decrypt, Ordering::Equal, compared)
}

/// Decrypts both arguments and calls `body` with them; for identical ciphertexts, which no key is
/// needed for, the result is `same`.
fn compare<L: Side, R: Side, O>(
    call: &Call,
    privilege: Privilege,
    same: O,
    body: impl FnOnce(Varlena, Varlena) -> O,
) -> Result<O, Box<Error>> {
    if may_be_identical::<L, R>(call) && are_identical(call, privilege)? {
        return Ok(same);
    }
    let (left, right) = (L::argument(call, 0)?, R::argument(call, 1)?);
    let left_plaintext = L::plaintext(left, privilege, kept::<L, R>(call, 0))?;
    let right_plaintext = R::plaintext(right, privilege, kept::<L, R>(call, 1))?;
    let result = body(left_plaintext.base, right_plaintext.base);
    left_plaintext.free();
    right_plaintext.free();
    L::free(left);
    R::free(right);
    Ok(result)
}

/// Whether it is worth a look. A constant was encrypted for itself, and no value in a table is the same; but
/// parameters may be the fields of a row before and after an update.
#[inline]
fn may_be_identical<L: Side, R: Side>(call: &Call) -> bool {
    let has_constant =
        || arguments::<L, R>(call).is_some_and(|arguments| arguments.is_one_constant);
    L::IS_ENCRYPTED && R::IS_ENCRYPTED && !has_constant()
}

/// Whether the arguments are the same ciphertext, of a key that the current user has `privilege` on. A worker
/// that applies a subscription's changes may lack it, and the key: by this it finds the rows of REPLICA
/// IDENTITY FULL (`tuples_equal` of `src/backend/executor/execReplication.c`), and tells nobody.
fn are_identical(call: &Call, privilege: Privilege) -> Result<bool, Box<Error>> {
    let applies = session::is_logical_worker();
    let (left_datum, right_datum) = (call.datum(0), call.datum(1));
    // Values out of line are not fetched for this: if they are the same, they are decrypted.
    if !applies && (Varlena::is_toasted(left_datum) || Varlena::is_toasted(right_datum)) {
        return Ok(false);
    }
    let (left, right) = (call.varlena(0), call.varlena(1));
    let identical = left.bytes() == right.bytes();
    if identical && !applies {
        keys::check(parse(left)?.key_id(), privilege)?;
    }
    left.free_if_copy(left_datum);
    right.free_if_copy(right_datum);
    Ok(identical)
}

/// How many plaintexts are kept of an argument: a constant is one, an array's elements are several.
const KEPT: usize = Plaintexts::FIRST_SLOTS;

/// How many bytes of them.
const KEPT_BYTES: usize = 1 << 20;

/// The plaintexts that are kept of argument `n`, if it is encrypted and stays the same from row to row: a
/// constant, a parameter, or both arguments of a comparison with an array's elements, in which one value is
/// compared with many and many rows with the same ones.
#[inline]
fn kept<L: Side, R: Side>(call: &Call, n: usize) -> Option<&'static mut Plaintexts> {
    let arguments = arguments::<L, R>(call)?;
    if !arguments.is_kept[n] {
        return None;
    }
    let plaintexts = &mut arguments.plaintexts[n];
    // SAFETY: the function's context lives as long as its fn_extra, where the arguments are.
    unsafe {
        if plaintexts.is_null() {
            *plaintexts = Plaintexts::new((*(*call.fcinfo()).flinfo).fn_mcxt, KEPT, KEPT_BYTES);
        }
        Some(&mut **plaintexts)
    }
}

/// What the function keeps of its arguments, if anything is kept of one of them.
#[inline]
fn arguments<L: Side, R: Side>(call: &Call) -> Option<&'static mut Arguments> {
    // SAFETY: what PostgreSQL passes is valid during the call; fn_extra is this function's own, lives
    // as long as the context fn_mcxt, and is null at first.
    unsafe {
        let flinfo = (*call.fcinfo()).flinfo;
        if flinfo.is_null() {
            return None;
        }
        if (*flinfo).fn_extra.is_null() {
            (*flinfo).fn_extra = Arguments::to_keep([L::IS_ENCRYPTED, R::IS_ENCRYPTED], flinfo);
        }
        match (*flinfo).fn_extra {
            extra if extra == nothing_kept() => None,
            extra => Some(&mut *extra.cast::<Arguments>()),
        }
    }
}

/// What a comparison keeps between its calls. Plain data, in PostgreSQL's memory.
#[repr(C)]
struct Arguments {
    /// Whether one of them is written in the query.
    is_one_constant: bool,
    is_kept: [bool; 2],
    plaintexts: [*mut Plaintexts; 2],
}

impl Arguments {
    /// What `fn_extra` is to point to from the first call on.
    ///
    /// # Safety
    ///
    /// `flinfo` is what PostgreSQL calls with.
    #[inline(never)]
    unsafe fn to_keep(is_encrypted: [bool; 2], flinfo: *mut pg_sys::FmgrInfo) -> *mut c_void {
        // SAFETY: the caller's promise; the expression of a call is a node, or null. The memory has room for
        // what is written to it.
        unsafe {
            let expression = (*flinfo).fn_expr;
            let is_array = !expression.is_null()
                && (*expression).type_ == pg_sys::NodeTag::T_ScalarArrayOpExpr;
            let is_kept =
                [0, 1].map(|n| is_encrypted[n] && (is_array || pg::is_argument_stable(flinfo, n)));
            if is_kept == [false; 2] {
                return nothing_kept();
            }
            let memory = pg_sys::MemoryContextAlloc((*flinfo).fn_mcxt, size_of::<Self>());
            memory.cast::<Self>().write(Self {
                is_one_constant: has_constant(expression),
                is_kept,
                plaintexts: [std::ptr::null_mut(); 2],
            });
            memory
        }
    }
}

/// Whether an argument of an operator is a constant.
///
/// # Safety
///
/// `expression` is a node, or null.
unsafe fn has_constant(expression: *const pg_sys::Node) -> bool {
    // SAFETY: the caller's promise; an operator has two arguments.
    unsafe {
        if expression.is_null() || (*expression).type_ != pg_sys::NodeTag::T_OpExpr {
            return false;
        }
        let arguments = (*expression.cast::<pg_sys::OpExpr>()).args;
        [0, 1].into_iter().any(|n| {
            let argument = pg_sys::list_nth(arguments, n).cast::<pg_sys::Node>();
            (*argument).type_ == pg_sys::NodeTag::T_Const
        })
    }
}

/// Declares functions of operators for equality and inequality.
macro_rules! equality {
    ($($equal:ident, $unequal:ident: $type:ty, $left:ty, $right:ty;)*) => {
        $(
            sql_function! {
                fn $equal(call) {
                    Ok(pg_sys::Datum::from(equal::<$type, $left, $right>(call)?))
                }
            }
            sql_function! {
                fn $unequal(call) {
                    Ok(pg_sys::Datum::from(!equal::<$type, $left, $right>(call)?))
                }
            }
        )*
    };
}

equality! {
    encrypted_text_eq, encrypted_text_ne: EncryptedText, Encrypted<EncryptedText>, Encrypted<EncryptedText>;
    encrypted_text_eq_text, encrypted_text_ne_text: EncryptedText, Encrypted<EncryptedText>, Base;
    text_eq_encrypted_text, text_ne_encrypted_text: EncryptedText, Base, Encrypted<EncryptedText>;
    encrypted_text_eq_name, encrypted_text_ne_name: EncryptedText, Encrypted<EncryptedText>, Name;
    name_eq_encrypted_text, name_ne_encrypted_text: EncryptedText, Name, Encrypted<EncryptedText>;
    encrypted_bytea_eq, encrypted_bytea_ne: EncryptedBytea, Encrypted<EncryptedBytea>, Encrypted<EncryptedBytea>;
    encrypted_bytea_eq_bytea, encrypted_bytea_ne_bytea: EncryptedBytea, Encrypted<EncryptedBytea>, Base;
    bytea_eq_encrypted_bytea, bytea_ne_encrypted_bytea: EncryptedBytea, Base, Encrypted<EncryptedBytea>;
}

/// Declares functions of operators for order.
macro_rules! ordering {
    ($($name:ident: $type:ty, $holds:expr;)*) => {
        $(sql_function! {
            fn $name(call) {
                let holds: fn(Ordering) -> bool = $holds;
                Ok(pg_sys::Datum::from(holds(order::<$type>(call)?)))
            }
        })*
    };
}

ordering! {
    encrypted_text_lt: EncryptedText, Ordering::is_lt;
    encrypted_text_le: EncryptedText, Ordering::is_le;
    encrypted_text_ge: EncryptedText, Ordering::is_ge;
    encrypted_text_gt: EncryptedText, Ordering::is_gt;
    encrypted_bytea_lt: EncryptedBytea, Ordering::is_lt;
    encrypted_bytea_le: EncryptedBytea, Ordering::is_le;
    encrypted_bytea_ge: EncryptedBytea, Ordering::is_ge;
    encrypted_bytea_gt: EncryptedBytea, Ordering::is_gt;
}

sql_function! {
    /// `encrypted_text_cmp(encrypted_text, encrypted_text) RETURNS integer`
    fn encrypted_text_cmp(call) {
        Ok(pg_sys::Datum::from(order::<EncryptedText>(call)? as i32))
    }
}

sql_function! {
    /// `encrypted_bytea_cmp(encrypted_bytea, encrypted_bytea) RETURNS integer`
    fn encrypted_bytea_cmp(call) {
        Ok(pg_sys::Datum::from(order::<EncryptedBytea>(call)? as i32))
    }
}
