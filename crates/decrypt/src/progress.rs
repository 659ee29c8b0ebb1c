//! How far the work is: a bar on a terminal, lines elsewhere.

use std::time::{Duration, Instant};

use indicatif::{HumanBytes, HumanDuration, ProgressBar, ProgressDrawTarget, ProgressStyle};

/// How often a line is written where there is no terminal.
const LINES_EVERY: Duration = Duration::from_secs(10);

/// What was read so far.
pub struct Progress {
    bar: ProgressBar,
    total: Option<u64>,
    read: u64,
    started: Instant,
    /// When the next line is due; `None` if there are none.
    next_line: Option<Instant>,
}

impl Progress {
    /// Of `total` bytes, if it is known how many. Shown on a terminal, and elsewhere if it is `wanted`.
    pub fn new(total: Option<u64>, wanted: bool) -> Self {
        let bar = ProgressBar::with_draw_target(total, ProgressDrawTarget::stderr_with_hz(4));
        let template = match total {
            Some(_) => "{bytes} of {total_bytes} ({percent} %), {bytes_per_sec}, {eta} left",
            None => "{bytes}, {bytes_per_sec}",
        };
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        let started = Instant::now();
        let next_line = (wanted && bar.is_hidden()).then(|| started + LINES_EVERY);
        Self { bar, total, read: 0, started, next_line }
    }

    /// So many bytes more were read.
    pub fn advance(&mut self, len: usize) {
        let len = u64::try_from(len).unwrap_or_default();
        self.read += len;
        self.bar.inc(len);
        if len == 0 {
            self.bar.finish_and_clear();
        }
        if self.next_line.is_some_and(|due| Instant::now() >= due || len == 0) {
            self.next_line = (len > 0).then(|| Instant::now() + LINES_EVERY);
            crate::say(format_args!("{}", self.line()));
        }
    }

    fn line(&self) -> String {
        let elapsed = self.started.elapsed().as_millis().max(1);
        let rate = u128::from(self.read) * 1000 / elapsed;
        let rate = u64::try_from(rate).unwrap_or(u64::MAX).max(1);
        let read = HumanBytes(self.read);
        match self.total {
            Some(total) => {
                let left = Duration::from_secs(total.saturating_sub(self.read) / rate);
                let (total, rate) = (HumanBytes(total), HumanBytes(rate));
                format!("progress: {read} of {total}, {rate}/s, {} left", HumanDuration(left))
            }
            None => format!("progress: {read}, {}/s", HumanBytes(rate)),
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
