//! PostgreSQL's variable-length values (`src/include/varatt.h`), as byte slices.

use std::ffi::c_char;

use pgrx::{pg_sys, varlena};

use crate::errors::Error;
use crate::pg;

/// The length word before a value's bytes.
const HEADER_LEN: usize = pg_sys::VARHDRSZ;

/// `MaxAllocSize` of `src/include/utils/memutils.h`, in bytes: also the most that a varlena's length
/// word can say.
const MAX_ALLOC_SIZE: usize = 0x3fff_ffff;

/// A value of a variable-length type, neither compressed nor stored elsewhere. It lives in
/// PostgreSQL's memory and is freed with its memory context.
#[derive(Clone, Copy)]
pub(crate) struct Varlena(*mut pg_sys::varlena);

impl Varlena {
    /// The value that `datum` points to, fetched and decompressed if it is toasted.
    ///
    /// # Safety
    ///
    /// `datum` is a non-null value of a variable-length type and outlives what is returned.
    #[inline]
    pub(crate) unsafe fn detoast(datum: pg_sys::Datum) -> Self {
        match Self::is_toasted(datum) {
            false => Self(datum.cast_mut_ptr()),
            // SAFETY: the caller's promise.
            true => unsafe { Self::fetched(datum) },
        }
    }

    // Not inlined, and so are other rare steps of what is done for every value: the frame and the registers that
    // they need would be set up for each.

    /// # Safety
    ///
    /// As for [`Varlena::detoast`].
    #[inline(never)]
    unsafe fn fetched(datum: pg_sys::Datum) -> Self {
        // SAFETY: the caller's promise.
        Self(unsafe { pg_sys::pg_detoast_datum_packed(datum.cast_mut_ptr()) })
    }

    /// The value that `datum` points to, or no more than its first `len` bytes if it is toasted: of a
    /// value that is stored out of line only the chunks that hold them are fetched.
    ///
    /// # Safety
    ///
    /// As for [`Varlena::detoast`].
    pub(crate) unsafe fn detoast_prefix(datum: pg_sys::Datum, len: usize) -> Self {
        if !Self::is_toasted(datum) {
            return Self(datum.cast_mut_ptr());
        }
        let len = i32::try_from(len).unwrap_or(i32::MAX);
        // SAFETY: the caller's promise.
        Self(unsafe { pg_sys::pg_detoast_datum_slice(datum.cast_mut_ptr(), 0, len) })
    }

    /// The value whose length word is at `start`.
    ///
    /// # Safety
    ///
    /// A value of a variable-length type is there, neither compressed nor external, and stays there.
    pub(crate) unsafe fn at(start: *mut u8) -> Self {
        Self(start.cast())
    }

    /// Whether the value that `datum` points to is compressed, or stored elsewhere.
    #[inline]
    pub(crate) fn is_toasted(datum: pg_sys::Datum) -> bool {
        let value = datum.cast_mut_ptr::<pg_sys::varlena>();
        // SAFETY: callers pass non-null values of a variable-length type.
        unsafe { varlena::varatt_is_1b_e(value) || varlena::varatt_is_4b_c(value) }
    }

    /// The value with its length word.
    pub(crate) fn with_header<'a>(self) -> &'a [u8] {
        // SAFETY: as in `bytes`.
        unsafe { std::slice::from_raw_parts(self.0.cast::<u8>(), varlena::varsize_any(self.0)) }
    }

    /// The value's bytes.
    #[inline]
    pub(crate) fn bytes<'a>(self) -> &'a [u8] {
        // SAFETY: the value is neither compressed nor external, so its header tells its length;
        // it lives as long as the call or the memory context it was made in, which outlives
        // every use in this library.
        unsafe { varlena::varlena_to_byte_slice(self.0) }
    }

    /// The value as PostgreSQL passes it around.
    #[inline]
    pub(crate) fn datum(self) -> pg_sys::Datum {
        pg_sys::Datum::from(self.0)
    }

    /// Whether detoasting made a copy of the value that `original` points to.
    #[inline]
    pub(crate) fn is_copy_of(self, original: pg_sys::Datum) -> bool {
        self.0 != original.cast_mut_ptr()
    }

    /// The memory of a value that detoasting made, and where in it the value's bytes begin: without the length
    /// word for what becomes a varlena again, with it for a C string.
    ///
    /// # Safety
    ///
    /// Nothing refers to the value or its bytes any more.
    pub(crate) unsafe fn memory_for<'a>(self, shape: Shape) -> (&'a mut [u8], usize) {
        // SAFETY: a value that was detoasted has a length word of four bytes, which counts itself; the caller
        // promises that the reference is the only one.
        unsafe {
            debug_assert!(!varlena::varatt_is_1b(self.0));
            let all =
                std::slice::from_raw_parts_mut(self.0.cast::<u8>(), varlena::varsize_any(self.0));
            match shape {
                Shape::Varlena => (&mut all[HEADER_LEN..], 0),
                Shape::CString => (all, HEADER_LEN),
            }
        }
    }

    /// Frees the value before its memory context does.
    pub(crate) fn free(self) {
        // SAFETY: callers own the value, which is a palloc'd chunk.
        unsafe { pg::free(self.0.cast()) }
    }

    /// Frees the value if it is not the one that `original` points to, that is, if detoasting
    /// made a copy (`PG_FREE_IF_COPY`).
    #[inline]
    pub(crate) fn free_if_copy(self, original: pg_sys::Datum) {
        if self.is_copy_of(original) {
            self.free();
        }
    }
}

/// Memory in PostgreSQL's current context that becomes a result: a varlena or a C string.
///
/// It has no destructor: PostgreSQL frees it with its memory context, whatever happens.
pub(crate) struct Buffer {
    start: *mut u8,
    len: usize,
    shape: Shape,
}

/// What a [`Buffer`] becomes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    /// A length word of four bytes, then the bytes.
    Varlena,
    /// The bytes, then a NUL.
    CString,
}

impl Buffer {
    /// Room for `len` bytes in a value of the given shape.
    ///
    /// # Errors
    ///
    /// If a value that long would be longer than PostgreSQL can allocate (1 GB).
    pub(crate) fn new(shape: Shape, len: usize) -> Result<Self, Box<Error>> {
        let total = len.saturating_add(HEADER_LEN);
        if total > MAX_ALLOC_SIZE {
            return Err(Error::ValueTooLong.into());
        }
        let start = pg::allocate(total);
        match shape {
            // SAFETY: `start` has room for the length word; `total` is below 2^30.
            Shape::Varlena => unsafe { varlena::set_varsize_4b(start.cast(), total as i32) },
            // SAFETY: `start` has `len` + 4 bytes.
            Shape::CString => unsafe { start.add(len).write(0) },
        }
        Ok(Self { start, len, shape })
    }

    /// What was written to [`Varlena::memory_for`] of `stored`: `len` bytes, fewer than it had by one at least.
    pub(crate) fn in_place_of(stored: Varlena, shape: Shape, len: usize) -> Self {
        let start = stored.0.cast::<u8>();
        match shape {
            // SAFETY: the memory was that of a longer value.
            Shape::Varlena => unsafe {
                varlena::set_varsize_4b(stored.0, (len + HEADER_LEN) as i32);
            },
            // SAFETY: as above.
            Shape::CString => unsafe { start.add(len).write(0) },
        }
        Self { start, len, shape }
    }

    fn offset(&self) -> usize {
        match self.shape {
            Shape::Varlena => HEADER_LEN,
            Shape::CString => 0,
        }
    }

    /// The bytes, to be filled: whatever the allocator left there before that.
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: `new` allocated offset + len bytes at `start`, and nothing else refers to them.
        // The memory comes from a foreign allocator, so its bytes are arbitrary but not
        // undefined; all of them are overwritten before they are read.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(self.offset()), self.len) }
    }

    /// The bytes, after they were filled.
    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: as in `bytes_mut`.
        unsafe { std::slice::from_raw_parts(self.start.add(self.offset()), self.len) }
    }

    /// The result as PostgreSQL passes it around.
    pub(crate) fn datum(self) -> pg_sys::Datum {
        pg_sys::Datum::from(self.start)
    }

    /// The varlena, for a function that takes one while the buffer is kept.
    pub(crate) fn varlena(&self) -> Varlena {
        debug_assert!(self.shape == Shape::Varlena);
        Varlena(self.start.cast())
    }

    /// Frees the memory before its context does.
    pub(crate) fn free(self) {
        // SAFETY: `start` is a palloc'd chunk, and `self` was the only reference to it.
        unsafe { pg::free(self.start) }
    }

    /// A value of the given shape with these bytes.
    ///
    /// # Errors
    ///
    /// As for [`Buffer::new`].
    pub(crate) fn copy_of(shape: Shape, bytes: &[u8]) -> Result<Self, Box<Error>> {
        let mut buffer = Self::new(shape, bytes.len())?;
        buffer.bytes_mut().copy_from_slice(bytes);
        Ok(buffer)
    }
}

/// `text` with these bytes, which are valid in the server's encoding.
///
/// # Errors
///
/// If they are too many.
pub(crate) fn text_datum(bytes: &[u8]) -> Result<pg_sys::Datum, Error> {
    Ok(Buffer::copy_of(Shape::Varlena, bytes)?.datum())
}

/// A C string in PostgreSQL's current memory context. A NUL in `text` ends it.
pub(crate) fn palloc_cstring(text: &str) -> *const c_char {
    let bytes = text.split('\0').next().unwrap_or_default().as_bytes();
    // SAFETY: palloc returns len + 1 bytes, which are filled; the source doesn't overlap.
    unsafe {
        let start = pg_sys::palloc(bytes.len() + 1).cast::<u8>();
        start.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len());
        start.add(bytes.len()).write(0);
        start.cast_const().cast()
    }
}
