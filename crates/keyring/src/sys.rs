//! The system calls that the standard library does not have, each behind a safe function.
//!
//! `libc` rather than `rustix`: blocking signals has to be `pthread_sigmask` of the C library that
//! PostgreSQL is linked to, which rustix leaves out on purpose, and the rest is five calls.
#![allow(unsafe_code)]

pub(crate) mod process;

use std::ffi::CString;
use std::io;
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::ptr::{self, NonNull};

/// The size of a page of memory in bytes.
pub(crate) fn page_size() -> usize {
    // SAFETY: `sysconf` reads no memory of ours.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    usize::try_from(size).ok().filter(|s| s.is_power_of_two()).unwrap_or(4096)
}

/// The effective user of this process: the one who owns the files it makes.
pub(crate) fn effective_user() -> u32 {
    // SAFETY: `geteuid` takes nothing, touches no memory and cannot fail.
    unsafe { libc::geteuid() }
}

/// Whether this process may make files in a folder.
///
/// # Errors
///
/// Why it may not.
pub(crate) fn check_writable(folder: &Path) -> io::Result<()> {
    let folder = CString::new(folder.as_os_str().as_bytes())?;
    // SAFETY: the path ends with a NUL and lives until the call returns, which only reads it.
    match unsafe {
        libc::faccessat(libc::AT_FDCWD, folder.as_ptr(), libc::W_OK | libc::X_OK, libc::AT_EACCESS)
    } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Whether a file can be written by users other than root and this process's.
///
/// # Errors
///
/// If the file can't be looked at.
pub(crate) fn others_may_write(path: &Path) -> io::Result<bool> {
    let metadata = std::fs::metadata(path)?;
    let is_ours = metadata.uid() == 0 || metadata.uid() == effective_user();
    Ok(!is_ours || metadata.mode() & 0o022 != 0)
}

/// Pages of zeroes that belong to this value alone. They are not unmapped when it is dropped: see
/// [`Mapping::unmap`].
#[derive(Debug)]
pub(crate) struct Mapping {
    start: NonNull<u8>,
    len: usize,
    locked: bool,
}

// SAFETY: a mapping is an address range; nothing about it is bound to the thread that made it.
unsafe impl Send for Mapping {}

impl Mapping {
    /// Maps `len` bytes (a multiple of the page size) for secrets: locked into memory if the
    /// limit (`RLIMIT_MEMLOCK`) allows it, left out of core dumps, and zeroes in a forked child.
    ///
    /// # Errors
    ///
    /// If the operating system has no memory to map.
    pub(crate) fn for_secrets(len: usize) -> io::Result<Self> {
        let mapping = Self::map(len, libc::MAP_PRIVATE)?;
        advise(mapping.start, len, &[DONT_DUMP, WIPE_ON_FORK]);
        Ok(mapping)
    }

    /// Maps `len` bytes (a multiple of the page size) for secrets that this process shares with those
    /// that it will fork: locked into memory if the limit allows it, and left out of core dumps. The
    /// children inherit the latter, and the pages stay locked for as long as this process lives.
    ///
    /// # Errors
    ///
    /// If the operating system has no memory to map.
    pub(crate) fn for_shared_secrets(len: usize) -> io::Result<Self> {
        let mapping = Self::map(len, libc::MAP_SHARED)?;
        advise(mapping.start, len, &[DONT_DUMP]);
        Ok(mapping)
    }

    /// Maps pages, and locks them if the limit allows it.
    fn map(len: usize, visibility: libc::c_int) -> io::Result<Self> {
        // SAFETY: a new anonymous mapping at an address of the kernel's choosing; it replaces
        // nothing.
        let start = unsafe {
            libc::mmap(
                ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                visibility | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast::<u8>()).ok_or(io::ErrorKind::OutOfMemory)?;
        // SAFETY: the range was mapped above and is ours; `mlock` does not change its contents.
        let locked = unsafe { libc::mlock(start.as_ptr().cast(), len) } == 0;
        Ok(Self { start, len, locked })
    }

    /// The first byte.
    pub(crate) fn start(&self) -> NonNull<u8> {
        self.start
    }

    /// The length in bytes.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Whether the pages cannot be swapped out.
    pub(crate) fn is_locked(&self) -> bool {
        self.locked
    }

    /// Gives the pages back.
    ///
    /// # Safety
    ///
    /// Nothing may point into them any more.
    pub(crate) unsafe fn unmap(self) {
        // SAFETY: the range is a mapping that `for_secrets` made, and the caller promises that
        // nothing uses it. That the call fails would mean the range is not mapped: then there is
        // nothing to give back.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.len) };
    }
}

/// Leaves a range out of core dumps.
#[cfg(target_os = "linux")]
const DONT_DUMP: libc::c_int = libc::MADV_DONTDUMP;
/// Has the kernel wipe a range in a forked child.
#[cfg(target_os = "linux")]
const WIPE_ON_FORK: libc::c_int = libc::MADV_WIPEONFORK;
#[cfg(not(target_os = "linux"))]
const DONT_DUMP: libc::c_int = 0;
#[cfg(not(target_os = "linux"))]
const WIPE_ON_FORK: libc::c_int = 0;

/// Gives the kernel advice about a range. A kernel that knows neither (before Linux 4.14) leaves both
/// undone; a core dump is then protected by its file mode alone, and a child by the check of the process
/// id that every user of the memory makes.
#[cfg(target_os = "linux")]
fn advise(start: NonNull<u8>, len: usize, advice: &[libc::c_int]) {
    for advice in advice {
        // SAFETY: the range is an anonymous mapping of ours; neither advice changes what this process
        // reads in it.
        unsafe { libc::madvise(start.as_ptr().cast(), len, *advice) };
    }
}

#[cfg(not(target_os = "linux"))]
fn advise(_start: NonNull<u8>, _len: usize, _advice: &[libc::c_int]) {}

/// Overwrites `LEN` bytes of this thread's stack below what is in use, and gives their memory back to the
/// operating system: the C library keeps the stack of a thread that has ended for the next one. For threads whose
/// signals are blocked ([`BlockedSignals`]), and whose stacks have that much left.
#[inline(never)]
pub(crate) fn wipe_stack<const LEN: usize>() {
    zeroize::zeroize_stack::<LEN>();
    let page = page_size();
    let here = 0_u8;
    // A page is left to the frames of this function and of `madvise`, and one to the rounding.
    let end = (std::hint::black_box(&raw const here).addr() & !(page - 1)) - page;
    let len = LEN.saturating_sub(2 * page) & !(page - 1);
    // SAFETY: the stack grows downwards, and below this frame nothing is in use but by what is called here; no
    // signal handler runs. The range was written to a moment ago, so it belongs to the stack.
    unsafe { libc::madvise(ptr::without_provenance_mut(end - len), len, libc::MADV_DONTNEED) };
}

/// Blocks every signal in the calling thread until it is dropped. A thread that is started
/// meanwhile inherits the mask and keeps it.
pub(crate) struct BlockedSignals {
    before: libc::sigset_t,
}

impl BlockedSignals {
    /// Blocks them.
    ///
    /// # Errors
    ///
    /// If the operating system refuses.
    pub(crate) fn new() -> io::Result<Self> {
        let mut all = MaybeUninit::<libc::sigset_t>::uninit();
        let mut before = MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: `sigfillset` initializes the set it is given, which cannot fail for a valid
        // pointer; `pthread_sigmask` reads that set and initializes the other when it succeeds.
        unsafe {
            libc::sigfillset(all.as_mut_ptr());
            match libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), before.as_mut_ptr()) {
                0 => Ok(Self { before: before.assume_init() }),
                code => Err(io::Error::from_raw_os_error(code)),
            }
        }
    }
}

impl Drop for BlockedSignals {
    fn drop(&mut self) {
        // SAFETY: `before` is the mask that `pthread_sigmask` gave us. It fails only for an
        // unknown first argument.
        unsafe {
            libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.before, ptr::null_mut())
        };
    }
}
