//! Input, output and casts of `encrypted_bytea`.

use envelope::{KeyId, PlaintextKind, Sealed};
use pgrx::fcinfo::direct_function_call_as_datum;
use pgrx::pg_sys;

use super::{
    EncryptedType, armored, coerce, key_of_modifier, parse, refuse_armor, rotate, seal_input,
};
use crate::catalog::Privilege;
use crate::errors::Error;
use crate::fmgr::{Call, sql_function};
use crate::varlena::{Buffer, Shape, Varlena, palloc_cstring};
use crate::{session, value};

/// `encrypted_bytea`, whose base type is `bytea`.
pub(crate) struct EncryptedBytea;

impl EncryptedType for EncryptedBytea {
    const NAME: &'static str = "encrypted_bytea";

    fn encrypt(key_id: KeyId, bytes: &[u8]) -> Result<Buffer, Error> {
        seal_input(key_id, PlaintextKind::Bytea, bytes)
    }

    fn decrypt(value: &Sealed<'_>, privilege: Option<Privilege>) -> Result<Buffer, Error> {
        if value.header().kind != PlaintextKind::Bytea {
            return Err(Error::ValueOfOtherType { expected: Self::NAME });
        }
        value::open(value, privilege, Shape::Varlena)
    }
}

sql_function! {
    /// `encrypted_bytea_in(cstring, oid, integer) RETURNS encrypted_bytea`
    fn encrypted_bytea_in(call) {
        let key_id = key_of_modifier(call.int4(2))?;
        refuse_armor(call.cstring(0).to_bytes())?;
        // SAFETY: byteain takes one cstring argument, which this is, and looks at nothing else of
        // the call.
        let bytes = unsafe {
            let bytes = direct_function_call_as_datum(pg_sys::byteain, &[Some(call.datum(0))])
                .ok_or(Error::Internal { what: "byteain returned null" })?;
            Varlena::detoast(bytes)
        };
        Ok(EncryptedBytea::encrypt(key_id, bytes.bytes())?.datum())
    }
}

sql_function! {
    /// `encrypted_bytea_out(encrypted_bytea) RETURNS cstring`
    fn encrypted_bytea_out(call) {
        if session::is_decoding() {
            return Ok(pg_sys::Datum::from(palloc_cstring(&armored(call.varlena(0))?)));
        }
        let bytes = decrypt_argument(call)?;
        // SAFETY: byteaout takes one bytea argument, which this is, and looks at nothing else of
        // the call.
        let text =
            unsafe { direct_function_call_as_datum(pg_sys::byteaout, &[Some(bytes.datum())]) };
        text.ok_or(Error::Internal { what: "byteaout returned null" })
    }
}

sql_function! {
    /// `encrypted_bytea_recv(internal, oid, integer) RETURNS encrypted_bytea`
    fn encrypted_bytea_recv(call) {
        let key_id = key_of_modifier(call.int4(2))?;
        let message = call.datum(0).cast_mut_ptr::<pg_sys::StringInfoData>();
        // SAFETY: PostgreSQL passes the message with the value's bytes, from `cursor` to `len`.
        let bytes = unsafe {
            let len = (*message).len - (*message).cursor;
            let start = pg_sys::pq_getmsgbytes(message, len).cast::<u8>();
            std::slice::from_raw_parts(start, usize::try_from(len).unwrap_or(0))
        };
        Ok(EncryptedBytea::encrypt(key_id, bytes)?.datum())
    }
}

sql_function! {
    /// `encrypted_bytea_send(encrypted_bytea) RETURNS bytea`
    fn encrypted_bytea_send(call) {
        if session::is_decoding() {
            let armor = armored(call.varlena(0))?;
            return Ok(Buffer::copy_of(Shape::Varlena, armor.as_bytes())?.datum());
        }
        Ok(decrypt_argument(call)?.datum())
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
        Ok(decrypt_argument(call)?.datum())
    }
}

fn decrypt_argument(call: &Call) -> Result<Buffer, Error> {
    EncryptedBytea::decrypt(&parse(call.varlena(0))?, Some(Privilege::Decrypt))
}

sql_function! {
    /// `enc_rotate(encrypted_bytea) RETURNS encrypted_bytea`
    fn encrypted_bytea_rotate(call) {
        rotate::<EncryptedBytea>(call.varlena(0))
    }
}
