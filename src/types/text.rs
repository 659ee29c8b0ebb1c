//! Input, output and casts of `encrypted_text`.

use envelope::{KeyId, PlaintextKind, Sealed};
use pgrx::pg_sys;

use super::armored::{self, Shown};
use super::encoding;
use super::{EncryptedType, coerce, key_of_modifier, parse, rotate, seal_input};
use crate::catalog::Privilege;
use crate::errors::Error;
use crate::fmgr::{Call, sql_function};
use crate::value;
use crate::varlena::{Buffer, Shape, Varlena};

/// `encrypted_text`, whose base type is `text`.
pub(crate) struct EncryptedText;

impl EncryptedType for EncryptedText {
    const NAME: &'static str = "encrypted_text";

    fn holds(kind: PlaintextKind) -> bool {
        kind != PlaintextKind::Bytea
    }

    fn encrypt(key_id: KeyId, text: &[u8]) -> Result<Buffer, Box<Error>> {
        let (kind, plaintext) = encoding::to_plaintext(text);
        seal_input(key_id, kind, &plaintext)
    }

    fn decrypt(value: &Sealed<'_>, privilege: Option<Privilege>) -> Result<Buffer, Box<Error>> {
        decrypt(value, privilege, Shape::Varlena)
    }

    #[inline]
    fn is_stored_as_base(value: &Sealed<'_>) -> bool {
        value.kind() == PlaintextKind::Text && encoding::is_utf8()
    }

    #[inline]
    fn check_base(plaintext: &[u8]) -> Result<(), Box<Error>> {
        encoding::check_utf8(plaintext)
    }
}

fn decrypt(
    value: &Sealed<'_>,
    privilege: Option<Privilege>,
    shape: Shape,
) -> Result<Buffer, Box<Error>> {
    decrypt_by(value, shape, || value::open(value, privilege, shape))
}

/// The text that `open` opens `value` to.
fn decrypt_by(
    value: &Sealed<'_>,
    shape: Shape,
    open: impl FnOnce() -> Result<Buffer, Box<Error>>,
) -> Result<Buffer, Box<Error>> {
    let kind = value.kind();
    if !EncryptedText::holds(kind) {
        return Err(Error::ValueOfOtherType { expected: EncryptedText::NAME }.into());
    }
    encoding::from_plaintext(kind, open()?, shape)
}

/// The same for a function's argument, which the current user needs `decrypt` for.
fn decrypt_argument(
    value: &Sealed<'_>,
    argument: (Varlena, pg_sys::Datum),
    shape: Shape,
) -> Result<Buffer, Box<Error>> {
    let privilege = Some(Privilege::Decrypt);
    decrypt_by(value, shape, || value::open_argument(value, argument, privilege, shape))
}

sql_function! {
    /// `encrypted_text_in(cstring, oid, integer) RETURNS encrypted_text`
    fn encrypted_text_in(call) {
        Ok(input(call.cstring(0).to_bytes(), call.int4(2))?)
    }
}

sql_function! {
    /// `encrypted_text_out(encrypted_text) RETURNS cstring`
    fn encrypted_text_out(call) {
        Ok(shown(call, Shape::CString)?.datum())
    }
}

sql_function! {
    /// `encrypted_text_recv(internal, oid, integer) RETURNS encrypted_text`
    fn encrypted_text_recv(call) {
        let message = call.datum(0).cast_mut_ptr::<pg_sys::StringInfoData>();
        // SAFETY: PostgreSQL passes the message with the value's bytes, from `cursor` to `len`;
        // pq_getmsgtext converts them from the client's encoding and consumes them.
        let text = unsafe {
            let len = (*message).len - (*message).cursor;
            let bytes = usize::try_from(len).unwrap_or(0);
            let start = (*message).data.offset((*message).cursor as isize).cast::<u8>();
            encoding::check_client_text(std::slice::from_raw_parts(start, bytes))?;
            let mut text_len = 0;
            let text = pg_sys::pq_getmsgtext(message, len, &raw mut text_len);
            std::slice::from_raw_parts(text.cast::<u8>(), usize::try_from(text_len).unwrap_or(0))
        };
        Ok(input(text, call.int4(2))?)
    }
}

/// The value of a text in the database's encoding.
fn input(text: &[u8], modifier: i32) -> Result<pg_sys::Datum, Box<Error>> {
    if let Some(value) = armored::take::<EncryptedText>(text, modifier)? {
        return Ok(value.datum());
    }
    Ok(EncryptedText::encrypt(key_of_modifier(modifier)?, text)?.datum())
}

sql_function! {
    /// `encrypted_text_send(encrypted_text) RETURNS bytea`
    fn encrypted_text_send(call) {
        let text = shown(call, Shape::Varlena)?;
        // A bytea with the same bytes is what textsend would make of it.
        if encoding::is_that_of_client() {
            return Ok(text.datum());
        }
        let sent = send(text.bytes())?;
        text.free();
        Ok(sent)
    }
}

/// The text that the session is shown of a value.
fn shown(call: &Call, shape: Shape) -> Result<Buffer, Box<Error>> {
    let argument = (call.varlena(0), call.datum(0));
    let decrypt = |value: &Sealed<'_>| decrypt_argument(value, argument, shape);
    let mask = |mask: &str| {
        let text = Buffer::copy_of(shape, mask.as_bytes())?;
        encoding::from_plaintext(PlaintextKind::Text, text, shape).map(Shown::Text)
    };
    match armored::shown(argument.0, shape, decrypt, mask)? {
        Shown::Plaintext(text) | Shown::Text(text) => Ok(text),
    }
}

/// What `textsend` sends for a text in the database's encoding.
fn send(text: &[u8]) -> Result<pg_sys::Datum, Box<Error>> {
    let len = i32::try_from(text.len()).map_err(|_| Error::ValueTooLong)?;
    let mut message = pg_sys::StringInfoData::default();
    // SAFETY: the message is initialized by pq_begintypsend and given up by pq_endtypsend, whose
    // result lives in the current memory context; `text` has `len` bytes.
    unsafe {
        pg_sys::pq_begintypsend(&raw mut message);
        pg_sys::pq_sendtext(&raw mut message, text.as_ptr().cast(), len);
        Ok(pg_sys::Datum::from(pg_sys::pq_endtypsend(&raw mut message)))
    }
}

sql_function! {
    /// `encrypted_text(encrypted_text, integer, boolean)`: the length-coercion cast.
    fn encrypted_text_coerce(call) {
        coerce::<EncryptedText>(call.datum(0), call.int4(1))
    }
}

sql_function! {
    /// `encrypted_text(text, integer, boolean)`, and the same from `varchar`.
    fn encrypted_text_from_text(call) {
        let key_id = key_of_modifier(call.int4(1))?;
        Ok(EncryptedText::encrypt(key_id, call.varlena(0).bytes())?.datum())
    }
}

sql_function! {
    /// `encrypted_text(character, integer, boolean)`: without the padding, as in the cast to text.
    fn encrypted_text_from_bpchar(call) {
        let key_id = key_of_modifier(call.int4(1))?;
        let padded = call.varlena(0).bytes();
        Ok(EncryptedText::encrypt(key_id, without_padding(padded))?.datum())
    }
}

sql_function! {
    /// `encrypted_text(name, integer, boolean)`
    fn encrypted_text_from_name(call) {
        let key_id = key_of_modifier(call.int4(1))?;
        // A name is NUL-padded, so up to its first NUL it is a C string.
        Ok(EncryptedText::encrypt(key_id, call.cstring(0).to_bytes())?.datum())
    }
}

sql_function! {
    /// `text(encrypted_text) RETURNS text`, and the same to `varchar`.
    fn encrypted_text_to_text(call) {
        Ok(cast(call)?.datum())
    }
}

sql_function! {
    /// `bpchar(encrypted_text) RETURNS character`: as `text_to_bpchar`, the bytes are the same.
    fn encrypted_text_to_bpchar(call) {
        Ok(cast(call)?.datum())
    }
}

sql_function! {
    /// `name(encrypted_text) RETURNS name`: cut to 63 bytes at a character's end, as from text.
    fn encrypted_text_to_name(call) {
        let text = cast(call)?;
        // SAFETY: text_name takes one text argument, which this is, and looks at nothing else of
        // the call.
        let name = unsafe {
            pgrx::fcinfo::direct_function_call_as_datum(
                pg_sys::text_name,
                &[Some(text.datum())],
            )
        };
        name.ok_or(Error::Internal { what: "text_name returned null" })
    }
}

/// The text of a cast's argument.
fn cast(call: &Call) -> Result<Buffer, Box<Error>> {
    let argument = (call.varlena(0), call.datum(0));
    decrypt_argument(&parse(argument.0)?, argument, Shape::Varlena)
}

/// `bpchartruelen` of `src/backend/utils/adt/varchar.c`.
pub(crate) fn without_padding(padded: &[u8]) -> &[u8] {
    let len = padded.iter().rposition(|&byte| byte != b' ').map_or(0, |last| last + 1);
    &padded[..len]
}

sql_function! {
    /// `enc_rotate(encrypted_text) RETURNS encrypted_text`
    fn encrypted_text_rotate(call) {
        rotate::<EncryptedText>(call.varlena(0))
    }
}
