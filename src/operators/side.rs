//! The arguments of an operator: values of an encrypted type or of its base type, as plaintexts.

use std::marker::PhantomData;

use pgrx::pg_sys;

use super::plaintexts::{Plaintext, Plaintexts, decrypt};
use crate::catalog::Privilege;
use crate::errors::Error;
use crate::fmgr::Call;
use crate::types::EncryptedType;
use crate::varlena::Varlena;

/// What the SQL type of an argument is: how a plaintext is had from it.
pub(super) trait Side {
    /// Whether its values are encrypted.
    const IS_ENCRYPTED: bool;

    /// The plaintext of argument `n`, as a value of the base type.
    ///
    /// # Errors
    ///
    /// If it can't be decrypted, or the current user hasn't got `privilege` on its key.
    fn plaintext(
        call: &Call,
        n: usize,
        privilege: Privilege,
        kept: Option<&mut Plaintexts>,
    ) -> Result<Plaintext, Error>;
}

/// A value of the encrypted type `T`.
pub(super) struct Encrypted<T>(PhantomData<T>);

impl<T: EncryptedType> Side for Encrypted<T> {
    const IS_ENCRYPTED: bool = true;

    fn plaintext(
        call: &Call,
        n: usize,
        privilege: Privilege,
        kept: Option<&mut Plaintexts>,
    ) -> Result<Plaintext, Error> {
        let value = call.varlena(n);
        let plaintext = match kept {
            None => decrypt::<T>(value, privilege)?,
            Some(kept) => kept.find_or_decrypt::<T>(value, privilege)?,
        };
        value.free_if_copy(call.datum(n));
        Ok(plaintext)
    }
}

/// A value of the base type, `text` or `bytea`.
pub(super) struct Base;

impl Side for Base {
    const IS_ENCRYPTED: bool = false;

    fn plaintext(
        call: &Call,
        n: usize,
        _: Privilege,
        _: Option<&mut Plaintexts>,
    ) -> Result<Plaintext, Error> {
        let base = call.varlena(n);
        Ok(Plaintext { base, is_own: base.is_copy_of(call.datum(n)) })
    }
}

/// A `name`, which is compared as text.
pub(super) struct Name;

impl Side for Name {
    const IS_ENCRYPTED: bool = false;

    fn plaintext(
        call: &Call,
        n: usize,
        _: Privilege,
        _: Option<&mut Plaintexts>,
    ) -> Result<Plaintext, Error> {
        // SAFETY: name_text takes one name, which SQL declares the argument, and looks at nothing
        // else of the call; its result is a text.
        let base = unsafe {
            let text = pgrx::fcinfo::direct_function_call_as_datum(
                pg_sys::name_text,
                &[Some(call.datum(n))],
            );
            Varlena::detoast(text.ok_or(Error::Internal { what: "name_text returned null" })?)
        };
        Ok(Plaintext { base, is_own: true })
    }
}
