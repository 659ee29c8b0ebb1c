//! Between the encoding of the database and the UTF-8 that is encrypted.
//!
//! A ciphertext isn't converted when it moves to a database with another encoding, so what is
//! encrypted doesn't depend on it: text is UTF-8 inside every value. Where the database's encoding
//! has no conversion to UTF-8 (SQL_ASCII, MULE_INTERNAL) or a text wouldn't survive the round trip,
//! its bytes are encrypted as they are, and the value says so.

use std::borrow::Cow;
use std::ffi::{CStr, c_int};

use envelope::PlaintextKind;
use pgrx::pg_sys;

use crate::errors::Error;
use crate::pg::database_encoding;
use crate::varlena::{Buffer, Shape};

const UTF8: c_int = pg_sys::pg_enc::PG_UTF8 as c_int;
const SQL_ASCII: c_int = pg_sys::pg_enc::PG_SQL_ASCII as c_int;
const MULE_INTERNAL: c_int = pg_sys::pg_enc::PG_MULE_INTERNAL as c_int;

/// `MAX_CONVERSION_GROWTH` of `src/include/mb/pg_wchar.h`: how many bytes one can become.
const MAX_GROWTH: usize = 4;

/// What is encrypted for a text in the database's encoding.
pub(crate) fn to_plaintext(text: &[u8]) -> (PlaintextKind, Cow<'_, [u8]>) {
    let encoding = database_encoding();
    // Every server encoding has ASCII as a subset (pg_wchar.h, "PG_ENCODING_BE_LAST").
    if encoding == UTF8 || text.is_ascii() {
        return (PlaintextKind::Text, Cow::Borrowed(text));
    }
    let utf8 = convert(text, encoding, UTF8)
        .filter(|utf8| convert(utf8, UTF8, encoding).as_deref() == Some(text));
    match utf8 {
        Some(utf8) => (PlaintextKind::Text, Cow::Owned(utf8)),
        None => (PlaintextKind::TextInDatabaseEncoding, Cow::Borrowed(text)),
    }
}

/// The text in the database's encoding that a decrypted plaintext stands for: `plaintext` itself
/// where nothing needs to be converted.
///
/// # Errors
///
/// If it isn't text, or the database's encoding hasn't got its characters.
pub(crate) fn from_plaintext(
    kind: PlaintextKind,
    plaintext: Buffer,
    shape: Shape,
) -> Result<Buffer, Box<Error>> {
    let encoding = database_encoding();
    let bytes = plaintext.bytes();
    match kind {
        PlaintextKind::Text => {
            check_utf8(bytes)?;
            if encoding == UTF8 || encoding == SQL_ASCII || bytes.is_ascii() {
                return Ok(plaintext);
            }
            let converted = convert(bytes, UTF8, encoding)
                .ok_or_else(|| Error::TextNotInEncoding { encoding: database_encoding_name() })?;
            let converted = Buffer::copy_of(shape, &converted)?;
            plaintext.free();
            Ok(converted)
        }
        PlaintextKind::TextInDatabaseEncoding => {
            if has_nul(bytes) {
                Err(Error::TextInvalid.into())
            } else if is_valid(bytes, encoding) {
                Ok(plaintext)
            } else {
                Err(Error::TextNotInEncoding { encoding: database_encoding_name() }.into())
            }
        }
        PlaintextKind::Bytea => Err(Error::ValueOfOtherType { expected: "encrypted_text" }.into()),
    }
}

/// Whether the database's encoding is that of the texts that are encrypted.
pub(crate) fn is_utf8() -> bool {
    database_encoding() == UTF8
}

/// Whether the client takes texts in the database's encoding.
pub(crate) fn is_that_of_client() -> bool {
    // SAFETY: reads a setting of this backend's.
    unsafe { pg_sys::pg_get_client_encoding() == database_encoding() }
}

/// What was decrypted, as the text in UTF-8 that it is said to be.
///
/// # Errors
///
/// If it isn't one, or isn't one of PostgreSQL's: it has a NUL in it.
#[inline]
pub(crate) fn check_utf8(plaintext: &[u8]) -> Result<(), Box<Error>> {
    match is_ascii_without_nul(plaintext) || is_utf8_without_nul(plaintext) {
        true => Ok(()),
        false => Err(Error::TextInvalid.into()),
    }
}

/// Looks at all bytes, several at a time: most texts are short, and nothing else.
#[inline]
fn is_ascii_without_nul(text: &[u8]) -> bool {
    text.iter().fold(true, |so_far, &byte| so_far & (byte.cast_signed() > 0))
}

fn is_utf8_without_nul(text: &[u8]) -> bool {
    std::str::from_utf8(text).is_ok() && !has_nul(text)
}

/// Looks at all bytes, several at a time: most texts are short, and none has one.
fn has_nul(text: &[u8]) -> bool {
    text.iter().fold(false, |found, &byte| found | (byte == 0))
}

/// Whether `text`, in the client's encoding, is valid.
///
/// # Errors
///
/// If not. The bytes are not shown, as PostgreSQL's own error would.
pub(crate) fn check_client_text(text: &[u8]) -> Result<(), Error> {
    // SAFETY: reads a setting of this backend's.
    let encoding = unsafe { pg_sys::pg_get_client_encoding() };
    if is_valid(text, encoding) && !text.contains(&0) {
        return Ok(());
    }
    Err(Error::InputNotInEncoding { encoding: client_encoding_name() })
}

/// A text in the database's encoding as a Rust string, for names and other short arguments. What a
/// database that knows no encoding has is taken for UTF-8.
///
/// # Errors
///
/// If it has no UTF-8 form.
pub(crate) fn utf8_string(text: &[u8]) -> Result<String, Error> {
    let encoding = database_encoding();
    let utf8 = if encoding == UTF8 || encoding == SQL_ASCII || text.is_ascii() {
        Some(text.to_vec())
    } else {
        convert(text, encoding, UTF8)
    };
    utf8.and_then(|utf8| String::from_utf8(utf8).ok())
        .ok_or_else(|| Error::InputNotInEncoding { encoding: database_encoding_name() })
}

/// A name in the database's encoding, for a message: what has no UTF-8 form is replaced.
pub(crate) fn utf8_lossy(name: &CStr) -> String {
    utf8_string(name.to_bytes()).unwrap_or_else(|_| name.to_string_lossy().into_owned())
}

fn database_encoding_name() -> String {
    // SAFETY: returns a pointer to a constant.
    unsafe { CStr::from_ptr(pg_sys::GetDatabaseEncodingName()) }.to_string_lossy().into_owned()
}

fn client_encoding_name() -> String {
    // SAFETY: returns a pointer to a constant.
    unsafe { CStr::from_ptr(pg_sys::pg_get_client_encoding_name()) }.to_string_lossy().into_owned()
}

fn is_valid(text: &[u8], encoding: c_int) -> bool {
    let Ok(len) = c_int::try_from(text.len()) else { return false };
    // SAFETY: `text` has `len` bytes; noError makes it return instead of raising an error.
    unsafe { pg_sys::pg_verify_mbstr(encoding, text.as_ptr().cast(), len, true) }
}

/// `text` in another encoding, or `None` if there is no conversion or it hasn't got a character.
fn convert(text: &[u8], from: c_int, to: c_int) -> Option<Vec<u8>> {
    // PostgreSQL has none for these, and one that a user made must not decide what is encrypted.
    if [from, to].iter().any(|encoding| [SQL_ASCII, MULE_INTERNAL].contains(encoding)) {
        return None;
    }
    // SAFETY: a look-up in a system cache; a type's function is called inside a transaction.
    let conversion = unsafe { pg_sys::FindDefaultConversionProc(from, to) };
    if conversion == pg_sys::InvalidOid {
        return None;
    }
    // The conversion functions want a NUL after their input, write one after their output, and
    // stop when the output buffer could be too small: the loop goes on from there.
    let mut input = text.to_vec();
    input.push(0);
    let mut output = Vec::with_capacity(text.len() + text.len() / 2);
    let mut done = 0;
    while done < text.len() {
        let left = text.len() - done;
        let chunk = left.min(CONVERSION_CHUNK);
        let mut buffer = vec![0_u8; chunk * MAX_GROWTH + 1];
        // SAFETY: the input has `left` bytes and a NUL after them; the buffer has the length that
        // is given; noError makes it stop at a character it can't convert.
        let converted = unsafe {
            pg_sys::pg_do_encoding_conversion_buf(
                conversion,
                from,
                to,
                input.as_mut_ptr().add(done),
                c_int::try_from(left).ok()?,
                buffer.as_mut_ptr(),
                c_int::try_from(buffer.len()).ok()?,
                true,
            )
        };
        let converted = usize::try_from(converted).ok().filter(|&converted| converted > 0)?;
        let written = buffer.iter().position(|&byte| byte == 0)?;
        output.extend_from_slice(&buffer[..written]);
        done += converted;
    }
    Some(output)
}

/// How many bytes of input are converted at a time, at the least.
const CONVERSION_CHUNK: usize = 64 * 1024;
