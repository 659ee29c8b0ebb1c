//! The arguments of an operator: values of an encrypted type or of its base type, as plaintexts.

use std::marker::PhantomData;

use envelope::Sealed;
use keyring::digest::Digest;
use pgrx::pg_sys;

use super::plaintexts::{Plaintext, Plaintexts, decrypt};
use super::{Comparable, digest, last_hashed};
use crate::catalog::Privilege;
use crate::errors::Error;
use crate::fmgr::Call;
use crate::types::{EncryptedType, parse};
use crate::varlena::Varlena;

/// What the SQL type of an argument is: how a plaintext is had from it.
pub(super) trait Side: Sized {
    /// Whether its values are encrypted.
    const IS_ENCRYPTED: bool;

    /// An argument that was looked at.
    type Argument: Copy;

    /// Argument `n`.
    ///
    /// # Errors
    ///
    /// If it isn't a value.
    fn argument(call: &Call, n: usize) -> Result<Self::Argument, Box<Error>>;

    /// The plaintext of an argument, as a value of the base type.
    ///
    /// # Errors
    ///
    /// If it can't be decrypted, or the current user hasn't got `privilege` on its key.
    fn plaintext(
        argument: Self::Argument,
        privilege: Privilege,
        kept: Option<&mut Plaintexts>,
    ) -> Result<Plaintext, Box<Error>>;

    /// Calls `body` with the bytes of that.
    ///
    /// # Errors
    ///
    /// As for [`Side::plaintext`].
    fn with_bytes<R>(
        argument: Self::Argument,
        privilege: Privilege,
        kept: Option<&mut Plaintexts>,
        body: impl FnOnce(&[u8]) -> R,
    ) -> Result<R, Box<Error>> {
        let plaintext = Self::plaintext(argument, privilege, kept)?;
        let result = body(plaintext.base.bytes());
        plaintext.free();
        Ok(result)
    }

    /// The digest that all values have that are equal to an argument under a collation.
    ///
    /// # Errors
    ///
    /// As for [`Side::plaintext`], and if the key of digests can't be had.
    fn digest<C: Comparable>(
        argument: Self::Argument,
        privilege: Privilege,
        collation: pg_sys::Oid,
    ) -> Result<Digest, Box<Error>> {
        digest_of_plaintext::<C>(Self::plaintext(argument, privilege, None)?, collation)
    }

    /// Frees what looking at an argument has made, if that is anything.
    fn free(argument: Self::Argument);
}

fn digest_of_plaintext<C: Comparable>(
    plaintext: Plaintext,
    collation: pg_sys::Oid,
) -> Result<Digest, Box<Error>> {
    let digest = C::equality_digest(plaintext.base, collation)?;
    plaintext.free();
    Ok(digest)
}

/// A value of the encrypted type `T`.
pub(super) struct Encrypted<T>(PhantomData<T>);

/// A value that was parsed, and what PostgreSQL passed.
#[derive(Clone, Copy)]
pub(super) struct EncryptedArgument {
    datum: pg_sys::Datum,
    stored: Varlena,
    sealed: Sealed<'static>,
}

impl<T: EncryptedType> Side for Encrypted<T> {
    const IS_ENCRYPTED: bool = true;

    type Argument = EncryptedArgument;

    #[inline]
    fn argument(call: &Call, n: usize) -> Result<EncryptedArgument, Box<Error>> {
        let stored = call.varlena(n);
        Ok(EncryptedArgument { datum: call.datum(n), stored, sealed: parse(stored)? })
    }

    fn plaintext(
        argument: EncryptedArgument,
        privilege: Privilege,
        kept: Option<&mut Plaintexts>,
    ) -> Result<Plaintext, Box<Error>> {
        match kept {
            None => decrypt::<T>(argument.stored, privilege),
            Some(kept) => kept.find_or_decrypt::<T>(argument.stored, privilege),
        }
    }

    #[inline]
    fn with_bytes<R>(
        argument: EncryptedArgument,
        privilege: Privilege,
        kept: Option<&mut Plaintexts>,
        body: impl FnOnce(&[u8]) -> R,
    ) -> Result<R, Box<Error>> {
        let Some(kept) = kept else {
            // What was hashed was decrypted with `compare`.
            let may_be_last =
                privilege == Privilege::Compare && T::is_stored_as_base(&argument.sealed);
            let found = match may_be_last {
                true => last_hashed::with(argument.stored.bytes(), body),
                false => Err(body),
            };
            return found.or_else(|body| T::with_base(&argument.sealed, Some(privilege), body));
        };
        let plaintext = kept.find_or_decrypt::<T>(argument.stored, privilege)?;
        let result = body(plaintext.base.bytes());
        plaintext.free();
        Ok(result)
    }

    fn digest<C: Comparable>(
        argument: EncryptedArgument,
        privilege: Privilege,
        collation: pg_sys::Oid,
    ) -> Result<Digest, Box<Error>> {
        if let Some(class) = C::class_of(&argument.sealed, collation) {
            return C::with_base(&argument.sealed, Some(privilege), |bytes| {
                last_hashed::remember(argument.stored.bytes(), bytes);
                digest(class, bytes)
            })?;
        }
        digest_of_plaintext::<C>(Self::plaintext(argument, privilege, None)?, collation)
    }

    #[inline]
    fn free(argument: EncryptedArgument) {
        argument.stored.free_if_copy(argument.datum);
    }
}

/// A value of the base type, `text` or `bytea`.
pub(super) struct Base;

/// What PostgreSQL passed, and the value.
#[derive(Clone, Copy)]
pub(super) struct BaseArgument {
    datum: pg_sys::Datum,
    pub(super) base: Varlena,
}

impl Side for Base {
    const IS_ENCRYPTED: bool = false;

    type Argument = BaseArgument;

    #[inline]
    fn argument(call: &Call, n: usize) -> Result<BaseArgument, Box<Error>> {
        Ok(BaseArgument { datum: call.datum(n), base: call.varlena(n) })
    }

    fn plaintext(
        argument: BaseArgument,
        _: Privilege,
        _: Option<&mut Plaintexts>,
    ) -> Result<Plaintext, Box<Error>> {
        Ok(Plaintext { base: argument.base, is_own: false })
    }

    #[inline]
    fn free(argument: BaseArgument) {
        argument.base.free_if_copy(argument.datum);
    }
}

/// A `name`, which is compared as text.
pub(super) struct Name;

impl Side for Name {
    const IS_ENCRYPTED: bool = false;

    type Argument = BaseArgument;

    fn argument(call: &Call, n: usize) -> Result<BaseArgument, Box<Error>> {
        // SAFETY: name_text takes one name, which SQL declares the argument, and looks at nothing
        // else of the call; its result is a text.
        let base = unsafe {
            let text = pgrx::fcinfo::direct_function_call_as_datum(
                pg_sys::name_text,
                &[Some(call.datum(n))],
            );
            Varlena::detoast(text.ok_or(Error::Internal { what: "name_text returned null" })?)
        };
        Ok(BaseArgument { datum: call.datum(n), base })
    }

    fn plaintext(
        argument: BaseArgument,
        privilege: Privilege,
        kept: Option<&mut Plaintexts>,
    ) -> Result<Plaintext, Box<Error>> {
        Base::plaintext(argument, privilege, kept)
    }

    fn free(argument: BaseArgument) {
        Base::free(argument);
    }
}
