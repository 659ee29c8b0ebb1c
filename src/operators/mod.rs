//! Operators, operator classes and digests: what values mean to queries.
//!
//! | file | what it has |
//! | --- | --- |
//! | `comparison.rs` | the comparison operators |
//! | `hash.rs` | the functions of the hash operator classes |
//! | `sort.rs` | sort support: plaintexts are decrypted once a sort |
//! | `ordered_index.rs` | the refusal of ordered indexes |
//! | `digest.rs`, `normal_form.rs` | `enc_digest` |
//! | `digest_index.rs` | `column = value` as a condition on an index on digests |
//! | `index_access.rs` | the privilege that scanning an index needs |
//! | `analyze.rs` | statistics, which keep no values |
//! | `side.rs`, `plaintexts.rs`, `last_hashed.rs` | the arguments of an operator, those that stay the same, and the one that was hashed last |

mod analyze;
mod comparison;
mod digest;
mod digest_index;
mod hash;
mod index_access;
mod last_hashed;
mod normal_form;
mod ordered_index;
mod plaintexts;
mod side;
mod sort;

use std::borrow::Cow;
use std::cmp::Ordering;
use std::ffi::{c_int, c_void};

use envelope::Sealed;
use keyring::digest::{Class, Digest, DigestInput, Form};
use pgrx::pg_sys;

use crate::errors::Error;
use crate::fmgr::call2;
use crate::types::{EncryptedBytea, EncryptedText, EncryptedType, encoding};
use crate::varlena::Varlena;
use crate::{keys, pg};

/// Installs the hook that checks the use of indexes, and registers for the end of transactions. Called once, when
/// the library is loaded.
pub(crate) fn register() {
    index_access::register();
    last_hashed::register();
}

/// Takes notice that a statement of the client's has ended.
pub(crate) fn statement_ends() {
    last_hashed::forget();
}

/// What `fn_extra` points to once a function was called that keeps nothing for its next call, or not yet: a look-up
/// by an index makes one or two.
fn nothing_kept() -> *mut c_void {
    static NOTHING: u8 = 0;
    (&raw const NOTHING).cast_mut().cast()
}

/// What the base type of an encrypted type says of its values: which are equal, and in which order
/// they are.
pub(crate) trait Comparable: EncryptedType {
    /// Whether two values of the base type are equal under a collation.
    fn equal(left: Varlena, right: Varlena, collation: pg_sys::Oid) -> bool;

    /// Whether values of the base type are equal only if their bytes are.
    fn is_equality_of_bytes(collation: pg_sys::Oid) -> bool;

    /// Their order.
    fn order(left: Varlena, right: Varlena, collation: pg_sys::Oid) -> Ordering;

    /// Prepares a sort of values of the base type, in which `sort` names the collation and the context.
    fn sort_base(sort: &mut pg_sys::SortSupportData);

    /// The class that the bytes of a value of this type are digested in, where these are its plaintext as it
    /// is and decide alone whether it is equal to another.
    fn class_of(value: &Sealed<'_>, collation: pg_sys::Oid) -> Option<Class>;

    /// The digest that all values have that are equal to this one.
    ///
    /// # Errors
    ///
    /// If the key of digests can't be had, or the collation is unknown.
    fn equality_digest(base: Varlena, collation: pg_sys::Oid) -> Result<Digest, Box<Error>>;
}

impl Comparable for EncryptedText {
    fn equal(left: Varlena, right: Varlena, collation: pg_sys::Oid) -> bool {
        if is_deterministic(collation) {
            return left.bytes() == right.bytes();
        }
        // SAFETY: texteq takes two texts, uses the collation alone of the call, and returns no null.
        let result = unsafe { call2(pg_sys::texteq, collation, [left.datum(), right.datum()]) };
        result.value() & 0xff != 0
    }

    fn is_equality_of_bytes(collation: pg_sys::Oid) -> bool {
        is_deterministic(collation)
    }

    fn order(left: Varlena, right: Varlena, collation: pg_sys::Oid) -> Ordering {
        let (left, right) = (left.bytes(), right.bytes());
        if collation == C_COLLATION {
            return left.cmp(right);
        }
        let len = |bytes: &[u8]| c_int::try_from(bytes.len()).unwrap_or(c_int::MAX);
        // SAFETY: the pointers are to that many bytes; varstr_cmp only reads them.
        let order = unsafe {
            pg_sys::varstr_cmp(
                left.as_ptr().cast(),
                len(left),
                right.as_ptr().cast(),
                len(right),
                collation,
            )
        };
        order.cmp(&0)
    }

    fn sort_base(sort: &mut pg_sys::SortSupportData) {
        // SAFETY: the sort is as sortsupport.h asks for; text is one of the types that the function is for.
        unsafe { pg_sys::varstr_sortsupport(sort, pg_sys::TEXTOID, sort.ssup_collation) };
    }

    fn class_of(value: &Sealed<'_>, collation: pg_sys::Oid) -> Option<Class> {
        (Self::is_stored_as_base(value) && is_deterministic(collation)).then_some(Class::Text)
    }

    fn equality_digest(base: Varlena, collation: pg_sys::Oid) -> Result<Digest, Box<Error>> {
        if collation == pg_sys::InvalidOid {
            return Err(Error::CollationUnknown.into());
        }
        if is_deterministic(collation) {
            let (class, bytes) = canonical_text(base.bytes());
            return digest(class, &bytes);
        }
        // Texts that the collation says are equal have the same hash, whatever their bytes.
        // SAFETY: hashtextextended takes a text and an int8, uses the collation alone of the call,
        // and returns no null.
        let hash = unsafe {
            let arguments = [base.datum(), pg_sys::Datum::from(0_i64)];
            call2(pg_sys::hashtextextended, collation, arguments)
        };
        digest(Class::CollationHash, &hash.value().to_be_bytes())
    }
}

impl Comparable for EncryptedBytea {
    fn equal(left: Varlena, right: Varlena, _: pg_sys::Oid) -> bool {
        left.bytes() == right.bytes()
    }

    fn is_equality_of_bytes(_: pg_sys::Oid) -> bool {
        true
    }

    fn order(left: Varlena, right: Varlena, _: pg_sys::Oid) -> Ordering {
        left.bytes().cmp(right.bytes())
    }

    fn sort_base(sort: &mut pg_sys::SortSupportData) {
        // SAFETY: as for text; `bytea_sortsupport` of src/backend/utils/adt/varlena.c does the same.
        unsafe { pg_sys::varstr_sortsupport(sort, pg_sys::BYTEAOID, C_COLLATION) };
    }

    fn class_of(value: &Sealed<'_>, _: pg_sys::Oid) -> Option<Class> {
        Self::is_stored_as_base(value).then_some(Class::Bytea)
    }

    fn equality_digest(base: Varlena, _: pg_sys::Oid) -> Result<Digest, Box<Error>> {
        digest(Class::Bytea, base.bytes())
    }
}

/// A text in the database's encoding as it is digested: in UTF-8 where it has such a form, so that
/// digests are the same in databases with other encodings.
fn canonical_text(text: &[u8]) -> (Class, Cow<'_, [u8]>) {
    let (kind, plaintext) = encoding::to_plaintext(text);
    let class = match kind {
        envelope::PlaintextKind::TextInDatabaseEncoding => Class::TextInDatabaseEncoding,
        envelope::PlaintextKind::Text | envelope::PlaintextKind::Bytea => Class::Text,
    };
    (class, plaintext)
}

fn digest(class: Class, bytes: &[u8]) -> Result<Digest, Box<Error>> {
    let input = DigestInput { class, form: Form::AsIs, domain: b"", bytes };
    keys::digesting(|key| key.digest(&input))
}

/// `C_COLLATION_OID` of `src/include/catalog/pg_collation.dat`.
const C_COLLATION: pg_sys::Oid = pg_sys::Oid::from_u32(950);
const DEFAULT_COLLATION: pg_sys::Oid = pg_sys::Oid::from_u32(100);

/// Whether texts are equal under a collation only if their bytes are. `false` if it is unknown:
/// PostgreSQL's own functions then raise the error.
#[inline]
fn is_deterministic(collation: pg_sys::Oid) -> bool {
    match collation {
        // A database's own collation is always deterministic.
        DEFAULT_COLLATION | C_COLLATION => true,
        pg_sys::InvalidOid => false,
        // SAFETY: a look-up in a system cache; the expression that uses the collation depends on it.
        _ => unsafe { pg_sys::get_collation_isdeterministic(collation) },
    }
}

/// `hash_any` of a digest, as `integer`: what a hash index holds.
fn hash_of(digest: &Digest) -> pg_sys::Datum {
    pg_sys::Datum::from(pg::hash_bytes(digest))
}

/// `hash_any_extended` of a digest, as `bigint`: the same in its low 32 bits if the seed is 0.
fn extended_hash_of(digest: &Digest, seed: u64) -> pg_sys::Datum {
    pg_sys::Datum::from(pg::hash_bytes_extended(digest, seed))
}
