//! Normal forms of texts: what `enc_digest` takes for the same.

use icu_casemap::CaseMapper;
use icu_normalizer::ComposingNormalizerBorrowed;
use icu_properties::CodePointSetData;
use icu_properties::props::DefaultIgnorableCodePoint;
use pgrx::pg_sys;

use crate::errors::Error;
use crate::fmgr::call1;
use crate::varlena::Varlena;

/// PostgreSQL's `lower`, by the rules of a collation, of a text in the database's encoding.
///
/// # Errors
///
/// If it can't be had.
pub(super) fn lower(text: Varlena, collation: pg_sys::Oid) -> Result<Varlena, Error> {
    // SAFETY: lower takes one text, uses the collation alone of the call, and returns a text.
    unsafe { Ok(Varlena::detoast(call1(pg_sys::lower, collation, text.datum()))) }
}

/// The ASCII digits of a text.
pub(super) fn digits(text: &[u8]) -> Vec<u8> {
    text.iter().copied().filter(u8::is_ascii_digit).collect()
}

/// toNFKC_Casefold of the Unicode Standard (section 3.13, R5): each character is mapped to its
/// NFKC_Casefold, and the result is normalized to NFC.
pub(super) fn nfkc_casefold(text: &str) -> String {
    if text.is_ascii() {
        return text.to_ascii_lowercase();
    }
    let mut buffer = [0; 4];
    let mapped = text.chars().map(|c| mapped(c.encode_utf8(&mut buffer))).collect::<String>();
    ComposingNormalizerBorrowed::new_nfc().normalize(&mapped).into_owned()
}

/// The NFKC_Casefold of one character (UAX #44, NFKC_Casefold): case folding, NFKC and removal of
/// the default ignorable code points, again until nothing changes.
fn mapped(character: &str) -> String {
    let mut last = character.to_owned();
    loop {
        let folded = CaseMapper::new().fold_string(&last);
        let normalized = ComposingNormalizerBorrowed::new_nfkc().normalize(&folded);
        let ignorable = CodePointSetData::new::<DefaultIgnorableCodePoint>();
        let next: String = normalized.chars().filter(|&c| !ignorable.contains(c)).collect();
        if next == last {
            return next;
        }
        last = next;
    }
}
