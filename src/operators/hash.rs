//! The functions of the hash operator classes: hashes of keyed digests of plaintexts. Hash indexes
//! hold them, hash joins and hash tables use them.
//!
//! Equal plaintexts have equal hashes, whichever keys their values are under, and whether they are
//! encrypted or not. The current user needs `compare` on a value's key: whoever can have values
//! looked up by their digests can try guesses.

use keyring::digest::Digest;
use pgrx::pg_sys;

use super::side::{Base, Encrypted, Name, Side};
use super::{Comparable, extended_hash_of, hash_of};
use crate::catalog::Privilege;
use crate::errors::Error;
use crate::fmgr::{Call, sql_function};
use crate::types::{EncryptedBytea, EncryptedText};

/// The digest of the call's first argument.
fn digest<T: Comparable, S: Side>(call: &Call) -> Result<Digest, Box<Error>> {
    let argument = S::argument(call, 0)?;
    let digest = S::digest::<T>(argument, Privilege::Compare, call.collation())?;
    S::free(argument);
    Ok(digest)
}

/// Declares the standard and the extended hash function of a type.
macro_rules! hashes {
    ($($hash:ident, $extended:ident: $type:ty, $side:ty;)*) => {
        $(
            sql_function! {
                fn $hash(call) {
                    Ok(hash_of(&digest::<$type, $side>(call)?))
                }
            }
            sql_function! {
                fn $extended(call) {
                    let seed = call.datum(1).value() as u64;
                    Ok(extended_hash_of(&digest::<$type, $side>(call)?, seed))
                }
            }
        )*
    };
}

hashes! {
    encrypted_text_hash, encrypted_text_hash_extended: EncryptedText, Encrypted<EncryptedText>;
    encrypted_text_hash_text, encrypted_text_hash_text_extended: EncryptedText, Base;
    encrypted_text_hash_name, encrypted_text_hash_name_extended: EncryptedText, Name;
    encrypted_bytea_hash, encrypted_bytea_hash_extended: EncryptedBytea, Encrypted<EncryptedBytea>;
    encrypted_bytea_hash_bytea, encrypted_bytea_hash_bytea_extended: EncryptedBytea, Base;
}

/// Declares equality of values of base types with one another, under the rules by which an encrypted
/// type compares with them: the members of its hash operator family that the planner looks for when
/// it removes duplicates from the plain side of a join.
macro_rules! base_equality {
    ($($name:ident: $type:ty, $left:ty, $right:ty;)*) => {
        $(sql_function! {
            fn $name(call) {
                let (left, right) = (<$left>::argument(call, 0)?, <$right>::argument(call, 1)?);
                let equal = <$type>::equal(left.base, right.base, call.collation());
                <$left>::free(left);
                <$right>::free(right);
                Ok(pg_sys::Datum::from(equal))
            }
        })*
    };
}

base_equality! {
    encrypted_text_base_eq_text_text: EncryptedText, Base, Base;
    encrypted_text_base_eq_text_name: EncryptedText, Base, Name;
    encrypted_text_base_eq_name_text: EncryptedText, Name, Base;
    encrypted_text_base_eq_name_name: EncryptedText, Name, Name;
    encrypted_bytea_base_eq: EncryptedBytea, Base, Base;
}
