//! A clock that all processes of the machine share, and that goes on while it sleeps: a key's time is not
//! prolonged by a virtual machine that was suspended.

use std::mem::MaybeUninit;
use std::time::{Duration, Instant};

/// A moment, in nanoseconds since the machine was started; never 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Moment(u64);

#[cfg(target_os = "linux")]
const CLOCK: libc::clockid_t = libc::CLOCK_BOOTTIME;
#[cfg(not(target_os = "linux"))]
const CLOCK: libc::clockid_t = libc::CLOCK_MONOTONIC;

impl Moment {
    /// Before every other.
    pub(crate) const NEVER: Self = Self(0);

    /// After every other.
    pub(crate) const END: Self = Self(u64::MAX);

    /// The present one.
    pub(crate) fn now() -> Self {
        let mut time = MaybeUninit::<libc::timespec>::zeroed();
        // SAFETY: the call writes a `timespec`, of which all zeroes are a value; it fails only for a clock
        // that isn't there.
        let time = unsafe {
            libc::clock_gettime(CLOCK, time.as_mut_ptr());
            time.assume_init()
        };
        let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
        let nanoseconds = u64::try_from(time.tv_nsec).unwrap_or(0);
        Self(seconds.saturating_mul(1_000_000_000).saturating_add(nanoseconds).max(1))
    }

    /// How long ago it was.
    pub(crate) fn age(self, now: Self) -> Duration {
        Duration::from_nanos(now.0.saturating_sub(self.0))
    }

    /// So much later.
    pub(crate) fn after(self, duration: Duration) -> Self {
        let nanoseconds = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        Self(self.0.saturating_add(nanoseconds))
    }

    /// So much earlier.
    pub(crate) fn before(self, duration: Duration) -> Self {
        let nanoseconds = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        Self(self.0.saturating_sub(nanoseconds))
    }

    /// How long it is until then.
    pub(crate) fn left(self, now: Self) -> Duration {
        now.age(self)
    }

    /// The same moment on the clock of this process; `None` if that clock began later, as it stands still
    /// while the machine sleeps.
    pub(crate) fn instant(self) -> Option<Instant> {
        Instant::now().checked_sub(self.age(Self::now()))
    }

    /// The moment on the clock that is shared.
    pub(crate) fn of(instant: Instant) -> Self {
        Self::now().before(Instant::now().saturating_duration_since(instant))
    }

    /// As a number, for memory that is shared.
    pub(crate) fn get(self) -> u64 {
        self.0
    }

    /// What [`Moment::get`] gave.
    pub(crate) fn from_number(number: u64) -> Self {
        Self(number)
    }
}
