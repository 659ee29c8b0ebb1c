//! `enc_digest`: a keyed digest of a plaintext, for unique indexes, generated columns and look-ups.

use keyring::digest::{Class, Digest, DigestInput, Form, MAX_DOMAIN_LEN};
use pgrx::pg_sys;

use super::side::{Base, Encrypted, Side};
use super::{canonical_text, normal_form, nothing_kept};
use crate::access::Authority;
use crate::catalog::Privilege;
use crate::errors::Error;
use crate::fmgr::{Call, sql_function};
use crate::types::{EncryptedBytea, EncryptedText};
use crate::varlena::{Buffer, Shape, Varlena};
use crate::{keys, pg, session};

/// Declares `enc_digest(value, normal_form text, domain text) RETURNS bytea` for a type.
macro_rules! digests {
    ($($name:ident: $side:ty, $digest:ident;)*) => {
        $(sql_function! {
            fn $name(call) {
                let digest = match once_if_constant(call, digest_of::<$side>, $digest) {
                    Ok(digest) => digest,
                    // ANALYZE computes the expressions of indexes for their statistics alone; it
                    // must not fail for want of a key, or on a value that is damaged.
                    Err(error) if session::is_analyzing() && !error.is_interrupt() => {
                        return Ok(call.null());
                    }
                    Err(error) => return Err(error),
                };
                Ok(Buffer::copy_of(Shape::Varlena, &digest)?.datum())
            }
        })*
    };
}

digests! {
    encrypted_text_digest: Encrypted<EncryptedText>, text_digest;
    encrypted_text_digest_of_text: Base, text_digest;
    encrypted_bytea_digest: Encrypted<EncryptedBytea>, bytea_digest;
    encrypted_bytea_digest_of_bytea: Base, bytea_digest;
}

/// How the digest of a value of a base type is made.
type DigestOf = fn(Varlena, Form, &[u8], pg_sys::Oid) -> Result<Digest, Error>;

fn digest_of<S: Side>(call: &Call, digest: DigestOf) -> Result<Digest, Error> {
    let form = form(call.varlena(1).bytes())?;
    let domain = call.varlena(2).bytes();
    if domain.len() > MAX_DOMAIN_LEN {
        return Err(Error::DigestDomainTooLong);
    }
    let argument = S::argument(call, 0)?;
    let plaintext = S::plaintext(argument, Privilege::Compare, None)?;
    let result = digest(plaintext.base, form, domain, call.collation());
    plaintext.free();
    S::free(argument);
    result
}

fn form(name: &[u8]) -> Result<Form, Error> {
    match name {
        b"none" => Ok(Form::AsIs),
        b"lower" => Ok(Form::Lower),
        b"nfkc_casefold" => Ok(Form::NfkcCasefold),
        b"digits" => Ok(Form::Digits),
        _ => {
            let name = crate::types::encoding::utf8_string(name)?;
            Err(Error::NormalFormUnknown { name })
        }
    }
}

fn text_digest(
    text: Varlena,
    form: Form,
    domain: &[u8],
    collation: pg_sys::Oid,
) -> Result<Digest, Error> {
    let lower = match form {
        Form::Lower => Some(normal_form::lower(text, collation)?),
        Form::AsIs | Form::NfkcCasefold | Form::Digits => None,
    };
    let (class, text) = canonical_text(lower.unwrap_or(text).bytes());
    let made = |bytes: &[u8]| {
        let input = DigestInput { class, form, domain, bytes };
        Ok(keys::digesting(|key| key.digest(&input))?)
    };
    match (form, class) {
        (Form::AsIs | Form::Lower, _) => made(&text),
        (Form::Digits, _) => made(&normal_form::digits(&text)),
        (Form::NfkcCasefold, Class::Text) => {
            let text = std::str::from_utf8(&text).map_err(|_| Error::TextInvalid)?;
            made(normal_form::nfkc_casefold(text).as_bytes())
        }
        (Form::NfkcCasefold, _) => Err(Error::NormalFormUnavailable { name: "nfkc_casefold" }),
    }
}

fn bytea_digest(
    bytes: Varlena,
    form: Form,
    domain: &[u8],
    _: pg_sys::Oid,
) -> Result<Digest, Error> {
    match form {
        Form::AsIs => {
            let input = DigestInput { class: Class::Bytea, form, domain, bytes: bytes.bytes() };
            Ok(keys::digesting(|key| key.digest(&input))?)
        }
        Form::Lower => Err(Error::NormalFormUnavailable { name: "lower" }),
        Form::NfkcCasefold => Err(Error::NormalFormUnavailable { name: "nfkc_casefold" }),
        Form::Digits => Err(Error::NormalFormUnavailable { name: "digits" }),
    }
}

/// The digest of the arguments that stayed the same since the last call, as those of
/// `enc_digest($1)` do from row to row.
#[repr(C)]
struct Kept {
    authority: Authority,
    /// The arguments' bytes, each with its length word.
    arguments: [*mut u8; 3],
    digest: Digest,
}

impl Kept {
    fn arguments(&self) -> [&[u8]; 3] {
        // SAFETY: copies of the arguments, which live as long as this does.
        self.arguments.map(|copy| unsafe { Varlena::at(copy) }.with_header())
    }
}

/// `make`, or its result of the last call if the arguments are constants and parameters, and the
/// same as then. Nothing is kept of a first call: a look-up by an index makes no other.
fn once_if_constant(
    call: &Call,
    make: fn(&Call, DigestOf) -> Result<Digest, Error>,
    digest: DigestOf,
) -> Result<Digest, Error> {
    // SAFETY: what PostgreSQL passes is valid during the call.
    let flinfo = unsafe { (*call.fcinfo()).flinfo };
    // SAFETY: as above; without an expression PostgreSQL says that an argument isn't stable.
    let is_constant = !flinfo.is_null()
        && (0..3).all(|n| unsafe { pg::is_argument_stable(flinfo, n) })
        && !Varlena::is_toasted(call.datum(0));
    if !is_constant {
        return make(call, digest);
    }
    // SAFETY: fn_extra is this function's own, and null at first.
    let extra = unsafe { &mut (*flinfo).fn_extra };
    if extra.is_null() {
        *extra = nothing_kept();
        return make(call, digest);
    }
    let authority = Authority::now();
    let arguments = [0, 1, 2].map(|n| call.varlena(n).with_header());
    // SAFETY: what it points to otherwise was made below, in the context that it lives as long as.
    let kept = (*extra != nothing_kept()).then(|| unsafe { &mut *extra.cast::<Kept>() });
    if let Some(kept) = &kept
        && kept.authority == authority
        && kept.arguments() == arguments
    {
        return Ok(kept.digest);
    }
    let digest = make(call, digest)?;
    // SAFETY: fn_mcxt is live; the memory has room for what is written to it.
    unsafe {
        let context = (*flinfo).fn_mcxt;
        let copy = |bytes: &[u8]| {
            let memory = pg_sys::MemoryContextAlloc(context, bytes.len()).cast::<u8>();
            memory.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len());
            memory
        };
        if let Some(former) = kept {
            *extra = nothing_kept();
            former.arguments.iter().for_each(|&copy| pg_sys::pfree(copy.cast()));
            pg_sys::pfree(std::ptr::from_mut(former).cast());
        }
        let kept = pg_sys::MemoryContextAlloc(context, size_of::<Kept>()).cast::<Kept>();
        kept.write(Kept { authority, arguments: arguments.map(copy), digest });
        *extra = kept.cast();
    }
    Ok(digest)
}
