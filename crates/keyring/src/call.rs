//! Calls over a network that can neither hang nor be kept from being cancelled.
//!
//! A call runs on a thread of its own, because nothing else bounds every wait in it: name
//! resolution has no deadline, and a blocked read does not see a cancel. The calling thread waits
//! for the answer, asks at least every 10 ms whether to give up, and gives up at the deadline
//! whatever the other thread does. A call that was given up finishes on its own, at its own
//! time-outs; what it returns is dropped, and wiped by its type.
//!
//! All signals are blocked in the thread, so that handlers that the process has (PostgreSQL's are
//! not written for threads) run where they always did.

use std::panic::{self, AssertUnwindSafe};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use backon::{BackoffBuilder, ExponentialBuilder};

use crate::provider::{Interrupt, ProviderError, ProviderErrorKind};
use crate::sys::{self, BlockedSignals};

/// How long a request to a provider may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestLimits {
    /// To connect, the TLS handshake included.
    pub connect: Duration,
    /// For everything that one call of a provider's method sends, logins and second tries included.
    pub total: Duration,
}

impl Default for RequestLimits {
    /// One second to connect, five seconds in total.
    fn default() -> Self {
        Self { connect: Duration::from_secs(1), total: Duration::from_secs(5) }
    }
}

/// How many calls that were given up may still be running. With more, a server that never answers
/// would cost a thread for every statement; a new call then fails at once instead.
const MAX_ABANDONED: usize = 4;

/// How long the caller waits before it asks again whether to give up.
const INTERVAL: Duration = Duration::from_millis(10);

/// How much of a thread's stack is overwritten when its call has ended, in bytes: more than TLS, HTTP
/// and JSON together use.
const WIPED_STACK: usize = 256 * 1024;

/// The pauses before something is tried again: 0.1, 0.2 and 0.4 seconds, each with up to as much
/// again.
const PAUSES: ExponentialBuilder = ExponentialBuilder::new()
    .with_min_delay(Duration::from_millis(100))
    .with_max_times(3)
    .with_jitter();

/// The calls that were given up and still run.
static ABANDONED: AtomicUsize = AtomicUsize::new(0);

/// The calls whose threads run, given up or not.
static RUNNING: AtomicUsize = AtomicUsize::new(0);

/// How many calls are running in this process, those that were given up included. A process that ends
/// by `exit` while one runs takes a library that the call is in (a PKCS#11 module) apart under it.
#[must_use]
pub fn running() -> usize {
    RUNNING.load(Ordering::Acquire)
}

/// Runs `work` on a thread of its own and waits for what it returns, at most until `deadline`.
///
/// # Errors
///
/// * [`ProviderErrorKind::TimedOut`] at the deadline.
/// * [`ProviderErrorKind::Interrupted`] when `interrupt` says so.
/// * [`ProviderErrorKind::Unreachable`] if the thread can't be started, if it panics, or if
///   several earlier calls that were given up still run.
pub fn call<T: Send + 'static>(
    deadline: Instant,
    interrupt: &dyn Interrupt,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, ProviderError> {
    if interrupt.pending() {
        return Err(interrupted());
    }
    if ABANDONED.load(Ordering::Acquire) >= MAX_ABANDONED {
        return Err(ProviderError::new(
            ProviderErrorKind::Unreachable,
            "earlier requests to the key provider have not ended yet",
        )
        .with_hint(
            "The server accepts connections without answering, or its name can't be resolved.",
        ));
    }
    let ticket = Arc::new(Ticket::default());
    let (sender, receiver) = mpsc::sync_channel(1);
    let ended = Ended::begin(Arc::clone(&ticket));
    start({
        move || {
            let _ended = ended;
            // Nothing that `work` has can be seen after a panic: it owns all of it.
            let answer = panic::catch_unwind(AssertUnwindSafe(work));
            // The C library keeps a thread's stack for the next one, and what was in it.
            wipe_stack();
            if let Ok(answer) = answer {
                // The receiver is gone when the call was given up. The answer is dropped then.
                let _ = sender.send(answer);
            }
        }
    })?;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match receiver.recv_timeout(left.min(INTERVAL)) {
            Ok(answer) => return Ok(answer),
            Err(RecvTimeoutError::Disconnected) => {
                return Err(ProviderError::new(
                    ProviderErrorKind::Unreachable,
                    "the request to the key provider ended without a result",
                ));
            }
            Err(RecvTimeoutError::Timeout) if interrupt.pending() => {
                ticket.abandon();
                return Err(interrupted());
            }
            Err(RecvTimeoutError::Timeout) if left.is_zero() => {
                ticket.abandon();
                return Err(ProviderError::new(
                    ProviderErrorKind::TimedOut,
                    "the key provider did not answer in time",
                ));
            }
            Err(RecvTimeoutError::Timeout) => {}
        }
    }
}

/// Runs `work` on a thread of its own, which nobody waits for: as a call that is given up at once. Nothing is
/// done if several of those still run.
pub(crate) fn in_background(work: impl FnOnce() + Send + 'static) {
    if ABANDONED.load(Ordering::Acquire) >= MAX_ABANDONED {
        return;
    }
    let ticket = Arc::new(Ticket::default());
    let ended = Ended::begin(Arc::clone(&ticket));
    let started = start(move || {
        let _ended = ended;
        // Nothing that `work` has can be seen after a panic: it owns all of it.
        let _ = panic::catch_unwind(AssertUnwindSafe(work));
        wipe_stack();
    });
    if started.is_ok() {
        ticket.abandon();
    }
}

/// Runs `once`, and again after a growing pause as long as it fails with an error that is transient and
/// the pause ends before `deadline`.
pub(crate) fn with_retries<T>(
    deadline: Instant,
    interrupt: &dyn Interrupt,
    mut once: impl FnMut() -> Result<T, ProviderError>,
) -> Result<T, ProviderError> {
    let mut pauses = PAUSES.build();
    loop {
        let result = once();
        let next = match &result {
            Err(error) if error.is_transient => pauses.next(),
            _ => None,
        };
        match next {
            Some(duration) if Instant::now() + duration < deadline => {
                pause(duration, deadline, interrupt)?;
            }
            _ => return result,
        }
    }
}

/// Waits for `duration`, but not past `deadline`.
///
/// # Errors
///
/// [`ProviderErrorKind::Interrupted`] when `interrupt` says so.
pub(crate) fn pause(
    duration: Duration,
    deadline: Instant,
    interrupt: &dyn Interrupt,
) -> Result<(), ProviderError> {
    let end = deadline.min(Instant::now() + duration);
    loop {
        if interrupt.pending() {
            return Err(interrupted());
        }
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        thread::sleep(left.min(INTERVAL));
    }
}

fn interrupted() -> ProviderError {
    ProviderError::new(
        ProviderErrorKind::Interrupted,
        "the request to the key provider was cancelled",
    )
}

/// Overwrites the part of this thread's stack that its calls have used.
pub(crate) fn wipe_stack() {
    sys::wipe_stack::<WIPED_STACK>();
}

/// Starts a thread in which all signals are blocked.
pub(crate) fn start(work: impl FnOnce() + Send + 'static) -> Result<(), ProviderError> {
    let started = BlockedSignals::new()
        .and_then(|_blocked| thread::Builder::new().name("key provider".to_owned()).spawn(work));
    started.map(drop).map_err(|error| {
        ProviderError::new(
            ProviderErrorKind::Unreachable,
            format!("could not start a thread for the request to the key provider: {error}"),
        )
    })
}

/// What the two threads of a call know of each other.
#[derive(Default)]
struct Ticket {
    /// The first of the two to leave sets it: the call has ended, or was given up.
    left: AtomicBool,
}

impl Ticket {
    /// The caller leaves. Counts the call if it still runs.
    fn abandon(&self) {
        ABANDONED.fetch_add(1, Ordering::AcqRel);
        if self.left.swap(true, Ordering::AcqRel) {
            ABANDONED.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

/// Held by a call while it runs.
struct Ended(Arc<Ticket>);

impl Ended {
    fn begin(ticket: Arc<Ticket>) -> Self {
        RUNNING.fetch_add(1, Ordering::AcqRel);
        Self(ticket)
    }
}

impl Drop for Ended {
    /// The call ends. If it had been given up, it no longer counts.
    fn drop(&mut self) {
        RUNNING.fetch_sub(1, Ordering::AcqRel);
        if self.0.left.swap(true, Ordering::AcqRel) {
            ABANDONED.fetch_sub(1, Ordering::AcqRel);
        }
    }
}
