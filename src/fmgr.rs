//! How SQL functions of this library are declared, called, and fail.
//!
//! PostgreSQL's version-1 calling convention (`src/include/fmgr.h`) is used directly, without
//! argument conversion: a type's input and output functions need the type modifier, the collation
//! and undetoasted arguments as they come, and are called once a value.
//!
//! A function's body returns `Result<Datum, Error>`. Only when the body has returned, and with it
//! every Rust value that has a destructor is gone, does [`run`] raise the error with `ereport`,
//! which leaves by `longjmp`.

use std::ffi::{CStr, CString, c_char, c_int};

use pgrx::pg_sys;

use crate::errors::{Error, Raised};
use crate::varlena::Varlena;

/// Declares an SQL function that PostgreSQL finds in the library by its name: the function itself
/// and the `pg_finfo_` record that says which calling convention it uses.
macro_rules! sql_function {
    ($(#[$attribute:meta])* fn $name:ident($call:ident) $body:block) => {
        $(#[$attribute])*
        fn $name($call: &mut $crate::fmgr::Call) -> Result<pgrx::pg_sys::Datum, $crate::errors::Error>
            $body

        const _: () = {
            #[unsafe(export_name = concat!("pg_finfo_", stringify!($name)))]
            extern "C" fn finfo() -> *const pgrx::pg_sys::Pg_finfo_record {
                static RECORD: pgrx::pg_sys::Pg_finfo_record =
                    pgrx::pg_sys::Pg_finfo_record { api_version: 1 };
                &raw const RECORD
            }

            #[unsafe(export_name = stringify!($name))]
            unsafe extern "C-unwind" fn function(
                fcinfo: pgrx::pg_sys::FunctionCallInfo,
            ) -> pgrx::pg_sys::Datum {
                // SAFETY: PostgreSQL calls this function with a valid fcinfo, from a frame
                // that holds no Rust value.
                unsafe { $crate::fmgr::run(fcinfo, $name) }
            }
        };
    };
}
pub(crate) use sql_function;

/// Calls `body` and returns its datum to PostgreSQL, or raises its error.
///
/// # Safety
///
/// `fcinfo` is the one PostgreSQL passed, and no Rust value with a destructor is alive in the
/// frames between PostgreSQL and this one.
#[inline]
pub(crate) unsafe fn run(
    fcinfo: pg_sys::FunctionCallInfo,
    body: impl FnOnce(&mut Call) -> Result<pg_sys::Datum, Error>,
) -> pg_sys::Datum {
    // SAFETY: by this function's own contract; the closure's result is plain data.
    let outcome = unsafe {
        pg_sys::submodules::panic::pgrx_extern_c_guard(|| {
            body(&mut Call { fcinfo }).map_err(|error| error.raised())
        })
    };
    match outcome {
        Ok(datum) => datum,
        Err(raised) => ereport(raised),
    }
}

/// Calls `body` from a callback of PostgreSQL's that isn't an SQL function, and raises its error.
///
/// # Safety
///
/// As for [`run`]: PostgreSQL called, and no Rust value with a destructor is alive in between.
pub(crate) unsafe fn run_callback<T: Copy>(body: impl FnOnce() -> Result<T, Error>) -> T {
    // SAFETY: by this function's own contract; the closure's result is plain data.
    let outcome = unsafe {
        pg_sys::submodules::panic::pgrx_extern_c_guard(|| body().map_err(|error| error.raised()))
    };
    match outcome {
        Ok(value) => value,
        Err(raised) => ereport(raised),
    }
}

/// `ereport(ERROR, …)` with an SQLSTATE of this extension's own, which pgrx's enumeration of
/// PostgreSQL's error codes can't name.
fn ereport(error: Raised) -> ! {
    use elog::{AS_IS, errcode, errdetail_internal, errfinish, errhint, errmsg_internal, errstart};

    let Raised { sqlstate, message, detail, hint } = error;
    // SAFETY: the strings are NUL-terminated and live in PostgreSQL's memory; this frame holds
    // nothing with a destructor when errfinish leaves it by longjmp.
    unsafe {
        errstart(pg_sys::PGERROR as c_int, std::ptr::null());
        errcode(sqlstate);
        errmsg_internal(AS_IS, message);
        if !detail.is_null() {
            errdetail_internal(AS_IS, detail);
        }
        if !hint.is_null() {
            errhint(AS_IS, hint);
        }
        errfinish(c"encryption_ext".as_ptr(), 0, std::ptr::null());
    }
    unreachable!("errfinish does not return from an ERROR")
}

/// `ereport(LOG, …)` to the server log alone, without the statement and the context, which may have
/// plaintext in them.
pub(crate) fn server_log(line: &str) {
    report(pg_sys::LOG_SERVER_ONLY, 0, line);
}

/// `ereport(level, …)` of a level below ERROR, with an SQLSTATE as PostgreSQL encodes it, without the
/// statement and the context.
pub(crate) fn report(level: u32, sqlstate: c_int, line: &str) {
    use elog::{AS_IS, errcode, errfinish, errhidecontext, errhidestmt, errmsg_internal, errstart};

    let line = CString::new(line.replace('\0', " ")).unwrap_or_default();
    // SAFETY: the string is NUL-terminated and outlives the call. A message of this level is written and
    // returns; errfinish would end the statement here if it was canceled, but for the interrupts that
    // are held.
    unsafe {
        if errstart(level as c_int, std::ptr::null()) {
            pg_sys::InterruptHoldoffCount += 1;
            errcode(sqlstate);
            errmsg_internal(AS_IS, line.as_ptr());
            errhidestmt(true);
            errhidecontext(true);
            errfinish(c"encryption_ext".as_ptr(), 0, std::ptr::null());
            pg_sys::InterruptHoldoffCount -= 1;
        }
    }
}

/// The texts of a message: NUL-terminated, or null but for the first.
pub(crate) struct LogMessage {
    pub(crate) sqlstate: c_int,
    pub(crate) text: *const c_char,
    pub(crate) detail: *const c_char,
    pub(crate) hint: *const c_char,
    pub(crate) context: *const c_char,
}

/// Writes a message to the server log alone, as it is, while another one is being reported; unless the log
/// takes none of this level.
///
/// # Safety
///
/// The texts are valid. An error passes over the caller's frame.
pub(crate) unsafe fn raw_server_log(message: &LogMessage) {
    use elog::{
        AS_IS, errcode, errcontext_msg, errdetail_internal, errfinish, errhint, errmsg_internal,
        errstart,
    };

    // SAFETY: the caller's promise; a message of this level is written and returns.
    unsafe {
        if !errstart(pg_sys::LOG_SERVER_ONLY as c_int, std::ptr::null()) {
            return;
        }
        errcode(message.sqlstate);
        errmsg_internal(AS_IS, message.text);
        if !message.detail.is_null() {
            errdetail_internal(AS_IS, message.detail);
        }
        if !message.hint.is_null() {
            errhint(AS_IS, message.hint);
        }
        if !message.context.is_null() {
            errcontext_msg(AS_IS, message.context);
        }
        errfinish(c"encryption_ext".as_ptr(), 0, std::ptr::null());
    }
}

/// The functions behind `ereport` (`src/include/utils/elog.h`), which pgrx leaves out of its bindings on
/// purpose.
mod elog {
    use super::{c_char, c_int};

    /// The format of a text that is none.
    pub(super) const AS_IS: *const c_char = c"%s".as_ptr();

    unsafe extern "C-unwind" {
        pub(super) fn errstart(level: c_int, domain: *const c_char) -> bool;
        pub(super) fn errcode(sqlstate: c_int) -> c_int;
        pub(super) fn errmsg_internal(format: *const c_char, ...) -> c_int;
        pub(super) fn errdetail_internal(format: *const c_char, ...) -> c_int;
        pub(super) fn errhint(format: *const c_char, ...) -> c_int;
        pub(super) fn errcontext_msg(format: *const c_char, ...) -> c_int;
        pub(super) fn errhidecontext(hide: bool) -> c_int;
        pub(super) fn errhidestmt(hide: bool) -> c_int;
        pub(super) fn errfinish(file: *const c_char, line: c_int, function: *const c_char);
    }
}

/// One call of an SQL function: its arguments and what else PostgreSQL passes with them.
pub(crate) struct Call {
    fcinfo: pg_sys::FunctionCallInfo,
}

impl Call {
    /// The raw call, for what the methods here don't cover.
    pub(crate) fn fcinfo(&self) -> pg_sys::FunctionCallInfo {
        self.fcinfo
    }

    /// The number of arguments that the caller passed.
    pub(crate) fn argument_count(&self) -> usize {
        // SAFETY: fcinfo is valid for the duration of the call.
        usize::try_from(unsafe { (*self.fcinfo).nargs }).unwrap_or(0)
    }

    /// Argument `n`, counted from 0, or `None` if it is null.
    #[inline]
    pub(crate) fn nullable(&self, n: usize) -> Option<pg_sys::Datum> {
        debug_assert!(n < self.argument_count());
        // SAFETY: SQL declares at least n + 1 arguments, and fcinfo is valid during the call.
        let argument = unsafe { (*self.fcinfo).args.as_ptr().add(n).read() };
        (!argument.isnull).then_some(argument.value)
    }

    /// Refuses a call of a function that changes something with a null among its arguments: if it
    /// were STRICT, it would silently do nothing.
    ///
    /// # Errors
    ///
    /// If an argument is null.
    pub(crate) fn refuse_nulls(&self) -> Result<(), Error> {
        self.refuse_nulls_in_first(self.argument_count())
    }

    /// The same for the first `count` arguments: those that follow may be null.
    ///
    /// # Errors
    ///
    /// If one of them is null.
    pub(crate) fn refuse_nulls_in_first(&self, count: usize) -> Result<(), Error> {
        match (0..count).find(|&n| self.nullable(n).is_none()) {
            Some(n) => Err(Error::ArgumentNull { number: n + 1 }),
            None => Ok(()),
        }
    }

    /// Argument `n` of a function that takes no nulls (it is STRICT, or has refused them).
    #[inline]
    pub(crate) fn datum(&self, n: usize) -> pg_sys::Datum {
        self.nullable(n).unwrap_or(pg_sys::Datum::from(0usize))
    }

    /// Argument `n`, an `integer`, of a function that takes no nulls.
    pub(crate) fn int4(&self, n: usize) -> i32 {
        self.datum(n).value() as i32
    }

    /// Argument `n`, a `smallint`, of a function that takes no nulls.
    pub(crate) fn int2(&self, n: usize) -> i16 {
        self.datum(n).value() as i16
    }

    /// Argument `n`, a `bigint`, of a function that takes no nulls.
    pub(crate) fn int8(&self, n: usize) -> i64 {
        self.datum(n).value() as i64
    }

    /// Argument `n`, an `oid`, of a function that takes no nulls.
    pub(crate) fn oid(&self, n: usize) -> pg_sys::Oid {
        pg_sys::Oid::from(self.datum(n).value() as u32)
    }

    /// Argument `n`, a `boolean`, of a function that takes no nulls.
    pub(crate) fn boolean(&self, n: usize) -> bool {
        self.datum(n).value() & 0xff != 0
    }

    /// Argument `n`, a `cstring`, of a function that takes no nulls.
    pub(crate) fn cstring(&self, n: usize) -> &CStr {
        let pointer = self.datum(n).cast_mut_ptr::<c_char>();
        // SAFETY: SQL declares the argument cstring, so it points to a NUL-terminated string
        // that outlives the call.
        unsafe { CStr::from_ptr(pointer) }
    }

    /// Argument `n`, of a variable-length type, of a function that takes no nulls: detoasted if need be.
    #[inline]
    pub(crate) fn varlena(&self, n: usize) -> Varlena {
        // SAFETY: SQL declares the argument with a varlena type.
        unsafe { Varlena::detoast(self.datum(n)) }
    }

    /// Argument `n`, a `text` or `name` given as `text`, of a function that takes no nulls.
    ///
    /// # Errors
    ///
    /// If it has characters that UTF-8 hasn't.
    pub(crate) fn text(&self, n: usize) -> Result<String, Error> {
        crate::types::encoding::utf8_string(self.varlena(n).bytes())
    }

    /// Argument `n`, a `text`, or `None` if it is null.
    ///
    /// # Errors
    ///
    /// If it has characters that UTF-8 hasn't.
    pub(crate) fn optional_text(&self, n: usize) -> Result<Option<String>, Error> {
        self.nullable(n).map(|_| self.text(n)).transpose()
    }

    /// Argument `n`, a `name`, of a function that takes no nulls.
    ///
    /// # Errors
    ///
    /// If it has characters that UTF-8 hasn't.
    pub(crate) fn name(&self, n: usize) -> Result<String, Error> {
        // A name is NUL-padded, so up to its first NUL it is a C string.
        crate::types::encoding::utf8_string(self.cstring(n).to_bytes())
    }

    /// The collation that applies to the call.
    #[inline]
    pub(crate) fn collation(&self) -> pg_sys::Oid {
        // SAFETY: fcinfo is valid for the duration of the call.
        unsafe { (*self.fcinfo).fncollation }
    }

    /// A null result.
    pub(crate) fn null(&mut self) -> pg_sys::Datum {
        // SAFETY: fcinfo is valid for the duration of the call.
        unsafe { (*self.fcinfo).isnull = true };
        pg_sys::Datum::from(0usize)
    }
}

/// Calls a built-in function with one argument under a collation, as `DirectFunctionCall1Coll` does.
///
/// # Safety
///
/// As for [`call2`].
pub(crate) unsafe fn call1(
    function: unsafe fn(pg_sys::FunctionCallInfo) -> pg_sys::Datum,
    collation: pg_sys::Oid,
    argument: pg_sys::Datum,
) -> pg_sys::Datum {
    // SAFETY: the caller's promise.
    unsafe { call(function, collation, [argument]) }
}

/// Calls a built-in function with two arguments under a collation, as `DirectFunctionCall2Coll`
/// does.
///
/// # Safety
///
/// `function` takes as many arguments as are given, of the types the datums have, looks at no
/// `flinfo`, and doesn't return null.
pub(crate) unsafe fn call2(
    function: unsafe fn(pg_sys::FunctionCallInfo) -> pg_sys::Datum,
    collation: pg_sys::Oid,
    arguments: [pg_sys::Datum; 2],
) -> pg_sys::Datum {
    // SAFETY: the caller's promise.
    unsafe { call(function, collation, arguments) }
}

unsafe fn call<const N: usize>(
    function: unsafe fn(pg_sys::FunctionCallInfo) -> pg_sys::Datum,
    collation: pg_sys::Oid,
    arguments: [pg_sys::Datum; N],
) -> pg_sys::Datum {
    #[repr(C)]
    struct Frame<const N: usize> {
        base: pg_sys::FunctionCallInfoBaseData,
        arguments: [pg_sys::NullableDatum; N],
    }
    let mut frame = Frame {
        base: pg_sys::FunctionCallInfoBaseData {
            fncollation: collation,
            nargs: N as i16,
            ..Default::default()
        },
        arguments: arguments.map(|value| pg_sys::NullableDatum { value, isnull: false }),
    };
    // SAFETY: the arguments follow the base data, where FunctionCallInfoBaseData's flexible array
    // member begins (NullableDatum and the base have the same alignment); the rest is the
    // caller's promise.
    unsafe { function((&raw mut frame).cast()) }
}
