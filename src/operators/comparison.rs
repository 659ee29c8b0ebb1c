//! Comparison of values: that of their plaintexts, as the base type compares them.
//!
//! Both sides are decrypted and handed to PostgreSQL's own function for the base type, so that
//! collations, the nondeterministic ones included, mean what they mean for `text`.

use pgrx::pg_sys;

use crate::catalog::Privilege;
use crate::errors::Error;
use crate::fmgr::{Call, call2, sql_function};
use crate::types::{EncryptedBytea, EncryptedText, EncryptedType, parse};

/// A comparison function of PostgreSQL's for a base type.
type Comparison = unsafe fn(pg_sys::FunctionCallInfo) -> pg_sys::Datum;

/// Compares the arguments as values of the base type. The current user needs `privilege` on the
/// keys of both.
fn compare<T: EncryptedType>(
    call: &Call,
    comparison: Comparison,
    privilege: Privilege,
) -> Result<pg_sys::Datum, Error> {
    let values = [call.varlena(0), call.varlena(1)];
    let left = T::decrypt(&parse(values[0])?, privilege)?;
    let right = T::decrypt(&parse(values[1])?, privilege)?;
    let arguments = [&left, &right].map(|side| pg_sys::Datum::from(side.varlena_pointer()));
    // SAFETY: `comparison` is one of the functions named below, which take two values of T's base
    // type, use the collation alone of the call, and return no null.
    let result = unsafe { call2(comparison, call.collation(), arguments) };
    // A sort calls this millions of times in one memory context.
    left.free();
    right.free();
    for (n, value) in values.into_iter().enumerate() {
        value.free_if_copy(call.datum(n));
    }
    Ok(result)
}

/// Declares the comparison functions of a type. Equality needs `compare`; order needs `decrypt`,
/// since with it a plaintext is found by bisection.
macro_rules! comparisons {
    ($type:ty, $($name:ident = $comparison:path, $privilege:ident;)*) => {
        $(sql_function! {
            fn $name(call) {
                compare::<$type>(call, $comparison, Privilege::$privilege)
            }
        })*
    };
}

comparisons! { EncryptedText,
    encrypted_text_eq = pg_sys::texteq, Compare;
    encrypted_text_ne = pg_sys::textne, Compare;
    encrypted_text_lt = pg_sys::text_lt, Decrypt;
    encrypted_text_le = pg_sys::text_le, Decrypt;
    encrypted_text_ge = pg_sys::text_ge, Decrypt;
    encrypted_text_gt = pg_sys::text_gt, Decrypt;
    encrypted_text_cmp = pg_sys::bttextcmp, Decrypt;
}

comparisons! { EncryptedBytea,
    encrypted_bytea_eq = pg_sys::byteaeq, Compare;
    encrypted_bytea_ne = pg_sys::byteane, Compare;
    encrypted_bytea_lt = pg_sys::bytealt, Decrypt;
    encrypted_bytea_le = pg_sys::byteale, Decrypt;
    encrypted_bytea_ge = pg_sys::byteage, Decrypt;
    encrypted_bytea_gt = pg_sys::byteagt, Decrypt;
    encrypted_bytea_cmp = pg_sys::byteacmp, Decrypt;
}
