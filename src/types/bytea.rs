//! Input, output and casts of `encrypted_bytea`.

use envelope::{KeyId, PlaintextKind, Sealed};
use pgrx::fcinfo::direct_function_call_as_datum;
use pgrx::pg_sys;

use super::armored::{self, Shown};
use super::{EncryptedType, coerce, key_of_modifier, parse, rotate, seal_input};
use crate::catalog::Privilege;
use crate::errors::Error;
use crate::fmgr::{Call, sql_function};
use crate::value;
use crate::varlena::{Buffer, Shape, Varlena};

/// `encrypted_bytea`, whose base type is `bytea`.
pub(crate) struct EncryptedBytea;

impl EncryptedType for EncryptedBytea {
    const NAME: &'static str = "encrypted_bytea";

    fn holds(kind: PlaintextKind) -> bool {
        kind == PlaintextKind::Bytea
    }

    fn encrypt(key_id: KeyId, bytes: &[u8]) -> Result<Buffer, Box<Error>> {
        seal_input(key_id, PlaintextKind::Bytea, bytes)
    }

    fn decrypt(value: &Sealed<'_>, privilege: Option<Privilege>) -> Result<Buffer, Box<Error>> {
        if !Self::holds(value.kind()) {
            return Err(Error::ValueOfOtherType { expected: Self::NAME }.into());
        }
        value::open(value, privilege, Shape::Varlena)
    }

    #[inline]
    fn is_stored_as_base(value: &Sealed<'_>) -> bool {
        Self::holds(value.kind())
    }

    #[inline]
    fn check_base(_: &[u8]) -> Result<(), Box<Error>> {
        Ok(())
    }
}

sql_function! {
    /// `encrypted_bytea_in(cstring, oid, integer) RETURNS encrypted_bytea`
    fn encrypted_bytea_in(call) {
        let modifier = call.int4(2);
        // As text, which no bytea begins like.
        if let Some(value) =
            armored::take::<EncryptedBytea>(call.cstring(0).to_bytes(), modifier)?
        {
            return Ok(value.datum());
        }
        // SAFETY: byteain takes one cstring argument, which this is, and looks at nothing else of
        // the call.
        let bytes = unsafe {
            let bytes = direct_function_call_as_datum(pg_sys::byteain, &[Some(call.datum(0))])
                .ok_or(Error::Internal { what: "byteain returned null" })?;
            Varlena::detoast(bytes)
        };
        Ok(EncryptedBytea::encrypt(key_of_modifier(modifier)?, bytes.bytes())?.datum())
    }
}

sql_function! {
    /// `encrypted_bytea_out(encrypted_bytea) RETURNS cstring`
    fn encrypted_bytea_out(call) {
        let bytes = match shown(call, Shape::CString)? {
            Shown::Text(text) => return Ok(text.datum()),
            Shown::Plaintext(bytes) => bytes,
        };
        // SAFETY: byteaout takes one bytea argument, which this is, and looks at nothing else of
        // the call.
        let text =
            unsafe { direct_function_call_as_datum(pg_sys::byteaout, &[Some(bytes.datum())]) };
        text.ok_or(Error::Internal { what: "byteaout returned null" })
    }
}

/// The bytes that the session is shown of a value, or a text in the given shape in their place.
fn shown(call: &Call, text: Shape) -> Result<Shown, Box<Error>> {
    let argument = (call.varlena(0), call.datum(0));
    let decrypt = |value: &Sealed<'_>| decrypt_argument(value, argument);
    // As bytes, so that whoever reads the text takes it for a bytea.
    let mask = |mask: &str| Buffer::copy_of(Shape::Varlena, mask.as_bytes()).map(Shown::Plaintext);
    armored::shown(argument.0, text, decrypt, mask)
}

sql_function! {
    /// `encrypted_bytea_recv(internal, oid, integer) RETURNS encrypted_bytea`
    fn encrypted_bytea_recv(call) {
        let modifier = call.int4(2);
        let message = call.datum(0).cast_mut_ptr::<pg_sys::StringInfoData>();
        // SAFETY: PostgreSQL passes the message with the value's bytes, from `cursor` to `len`.
        let bytes = unsafe {
            let len = (*message).len - (*message).cursor;
            let start = pg_sys::pq_getmsgbytes(message, len).cast::<u8>();
            std::slice::from_raw_parts(start, usize::try_from(len).unwrap_or(0))
        };
        if let Some(value) = armored::take::<EncryptedBytea>(bytes, modifier)? {
            return Ok(value.datum());
        }
        Ok(EncryptedBytea::encrypt(key_of_modifier(modifier)?, bytes)?.datum())
    }
}

sql_function! {
    /// `encrypted_bytea_send(encrypted_bytea) RETURNS bytea`
    fn encrypted_bytea_send(call) {
        match shown(call, Shape::Varlena)? {
            Shown::Plaintext(bytes) | Shown::Text(bytes) => Ok(bytes.datum()),
        }
    }
}

sql_function! {
    /// `encrypted_bytea(encrypted_bytea, integer, boolean)`: the length-coercion cast.
    fn encrypted_bytea_coerce(call) {
        coerce::<EncryptedBytea>(call.datum(0), call.int4(1))
    }
}

sql_function! {
    /// `encrypted_bytea(bytea, integer, boolean)`
    fn encrypted_bytea_from_bytea(call) {
        let key_id = key_of_modifier(call.int4(1))?;
        Ok(EncryptedBytea::encrypt(key_id, call.varlena(0).bytes())?.datum())
    }
}

sql_function! {
    /// `bytea(encrypted_bytea) RETURNS bytea`
    fn encrypted_bytea_to_bytea(call) {
        let argument = (call.varlena(0), call.datum(0));
        Ok(decrypt_argument(&parse(argument.0)?, argument)?.datum())
    }
}

/// The bytes of a function's argument, which the current user needs `decrypt` for.
fn decrypt_argument(
    value: &Sealed<'_>,
    argument: (Varlena, pg_sys::Datum),
) -> Result<Buffer, Box<Error>> {
    if !EncryptedBytea::holds(value.kind()) {
        return Err(Error::ValueOfOtherType { expected: EncryptedBytea::NAME }.into());
    }
    value::open_argument(value, argument, Some(Privilege::Decrypt), Shape::Varlena)
}

sql_function! {
    /// `enc_rotate(encrypted_bytea) RETURNS encrypted_bytea`
    fn encrypted_bytea_rotate(call) {
        rotate::<EncryptedBytea>(call.varlena(0))
    }
}
