//! Child processes that keep nothing of ours and end when they are told to.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Duration;

/// The first file descriptor after standard input, output and error.
const FIRST_OTHER: libc::c_int = 3;

/// Where the kernel can't mark all descriptors at once, so many are marked one by one.
const MAX_MARKED: libc::c_long = 1 << 16;

/// Has the child begin a session of its own, which has no terminal and one process group with the
/// child's id; inherit no file but standard input, output and error (PostgreSQL before version 16
/// leaves its files and sockets open across `exec`); and be killed when the thread that starts it
/// ends.
pub(crate) fn detach(command: &mut Command) {
    // SAFETY: `sysconf` reads no memory of ours.
    let open_max = unsafe { libc::sysconf(libc::_SC_OPEN_MAX) };
    let open_max = libc::c_int::try_from(open_max.clamp(0, MAX_MARKED)).unwrap_or(libc::c_int::MAX);
    // SAFETY: between fork and exec only async-signal-safe functions are called, none of which
    // touches memory.
    unsafe {
        command.pre_exec(move || {
            close_on_exec(open_max);
            #[cfg(target_os = "linux")]
            if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) < 0 {
                return Err(io::Error::last_os_error());
            }
            match libc::setsid() {
                -1 => Err(io::Error::last_os_error()),
                _ => Ok(()),
            }
        });
    }
}

/// Marks all descriptors from [`FIRST_OTHER`]. Async-signal-safe.
fn close_on_exec(open_max: libc::c_int) {
    #[cfg(target_os = "linux")]
    {
        // SAFETY: marks descriptors of this process, which is about to be another program. Linux
        // has it since version 5.11.
        let marked = unsafe {
            libc::syscall(
                libc::SYS_close_range,
                FIRST_OTHER,
                libc::c_uint::MAX,
                libc::CLOSE_RANGE_CLOEXEC,
            )
        };
        if marked == 0 {
            return;
        }
    }
    for descriptor in FIRST_OTHER..open_max {
        // SAFETY: fails for a descriptor that isn't open, and touches no memory.
        unsafe { libc::fcntl(descriptor, libc::F_SETFD, libc::FD_CLOEXEC) };
    }
}

/// Kills a child and all others in the group that it leads. The child must not have been waited
/// for: until then nobody else can have its id.
pub(crate) fn kill_group(leader: u32) {
    if let Ok(group @ 2..) = libc::pid_t::try_from(leader) {
        // SAFETY: sends a signal, and touches no memory. It fails if the group has no process any
        // more.
        unsafe { libc::kill(-group, libc::SIGKILL) };
    }
}

/// Whether a child has ended. It stays to be waited for.
///
/// # Errors
///
/// If it is no child of this process, or has been waited for.
pub(crate) fn has_ended(child: u32) -> io::Result<bool> {
    let mut info = MaybeUninit::<libc::siginfo_t>::zeroed();
    // SAFETY: `info` is writable and has the right size; all zeroes are a value of it. The system
    // leaves the process id in it at zero if the child runs.
    unsafe {
        let options = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
        match libc::waitid(libc::P_PID, child, info.as_mut_ptr(), options) {
            0 => Ok(info.assume_init().si_pid() != 0),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

/// Waits until one of two files can be read without waiting, its end included, but not for longer
/// than `timeout`. Says which can; a file that is `None` can't.
///
/// # Errors
///
/// If the operating system refuses.
pub(crate) fn wait_readable(
    files: [Option<BorrowedFd<'_>>; 2],
    timeout: Duration,
) -> io::Result<[bool; 2]> {
    // A negative descriptor is passed over.
    let mut polled = files.map(|file| libc::pollfd {
        fd: file.map_or(-1, |file| file.as_raw_fd()),
        events: libc::POLLIN,
        revents: 0,
    });
    let timeout = libc::c_int::try_from(timeout.as_millis()).unwrap_or(libc::c_int::MAX);
    // SAFETY: the array has two elements and lives until the call returns.
    if unsafe { libc::poll(polled.as_mut_ptr(), 2, timeout) } < 0 {
        let error = io::Error::last_os_error();
        return match error.kind() {
            io::ErrorKind::Interrupted => Ok([false; 2]),
            _ => Err(error),
        };
    }
    Ok(polled.map(|polled| polled.revents != 0))
}
