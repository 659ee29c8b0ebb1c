//! A program that is run once: bounded in time and output, and killed with all that it started.

use std::ffi::OsString;
use std::io::{self, PipeReader, Read};
use std::os::fd::AsFd;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use zeroize::Zeroizing;

use crate::call;
use crate::provider::{Interrupt, ProviderError};
use crate::sys::process as system;

/// The most that is taken from the standard output, in bytes.
pub(super) const MAX_OUTPUT_LEN: usize = 64 * 1024;

/// How much of the end of the standard error is kept, in bytes.
const MAX_COMPLAINT_LEN: usize = 4096;

/// The variables that the program gets of the server's environment. Others may have secrets in them,
/// or change what a program does.
const ENVIRONMENT: [&str; 3] = ["PATH", "HOME", "LANG"];

/// How long to wait for output before looking whether the program has ended.
const INTERVAL: Duration = Duration::from_millis(5);

/// How long to wait between looks when the output has ended already.
const ENDING: Duration = Duration::from_millis(1);

/// What a program left.
pub(super) struct Output {
    pub(super) status: ExitStatus,
    /// The whole standard output, at most [`MAX_OUTPUT_LEN`].
    pub(super) output: Zeroizing<Vec<u8>>,
    /// The end of the standard error, from the beginning of a word.
    pub(super) complaint: Zeroizing<Vec<u8>>,
}

/// Why a program left nothing.
pub(super) enum Failure {
    /// It could not be started.
    NotStarted(io::Error),
    /// It could not be watched.
    Lost(io::Error),
    /// It printed more than [`MAX_OUTPUT_LEN`].
    TooMuch,
    /// It ran until the deadline.
    TooLong,
}

/// Runs a program to its end, with nothing on its standard input, in `/`. At the deadline, and when
/// `interrupt` says so, it is killed.
pub(super) fn run(
    words: &[String],
    deadline: Instant,
    interrupt: &dyn Interrupt,
) -> Result<Result<Output, Failure>, ProviderError> {
    // Not in the thread, which may outlive the call: environments are not for threads.
    let environment = ENVIRONMENT.map(|name| Some((name, std::env::var_os(name)?)));
    let words = words.to_vec();
    let life = Arc::new(Life::default());
    let result = call::call(deadline, interrupt, {
        let life = Arc::clone(&life);
        move || run_here(&words, environment, deadline, &life)
    });
    if result.is_err() {
        // The thread may still watch the program, and sees it end.
        life.end();
    }
    result
}

fn run_here(
    words: &[String],
    environment: [Option<(&str, OsString)>; ENVIRONMENT.len()],
    deadline: Instant,
    life: &Life,
) -> Result<Output, Failure> {
    let (program, arguments) = words.split_first().ok_or_else(|| {
        Failure::NotStarted(io::Error::new(io::ErrorKind::InvalidInput, "there is no program"))
    })?;
    let (output, output_end) = io::pipe().map_err(Failure::NotStarted)?;
    let (complaint, complaint_end) = io::pipe().map_err(Failure::NotStarted)?;
    let mut command = Command::new(program);
    command
        .args(arguments)
        .current_dir("/")
        .env_clear()
        .envs(environment.into_iter().flatten())
        .stdin(Stdio::null())
        .stdout(output_end)
        .stderr(complaint_end);
    system::detach(&mut command);
    let child = command.spawn().map_err(Failure::NotStarted)?;
    // The ends that are the child's now; else the pipes would never end.
    drop(command);

    life.begin(child.id());
    let mut streams = Streams {
        output: Some(output),
        complaint: Some(complaint),
        printed: Zeroizing::new(Vec::with_capacity(MAX_OUTPUT_LEN + Streams::READ_LEN)),
        complained: Zeroizing::new(Vec::with_capacity(MAX_COMPLAINT_LEN + Streams::READ_LEN)),
        is_complaint_cut: false,
    };
    let watched = watch(&child, &mut streams, deadline);
    let status = life.reap(child);
    watched?;
    let complaint = streams.take_complaint();
    Ok(Output { status: status.map_err(Failure::Lost)?, output: streams.printed, complaint })
}

/// Reads what the program prints until it has ended.
fn watch(child: &Child, streams: &mut Streams, deadline: Instant) -> Result<(), Failure> {
    loop {
        streams.read(INTERVAL)?;
        if system::has_ended(child.id()).map_err(Failure::Lost)? {
            // What it has started and left behind may go on printing.
            system::kill_group(child.id());
            return streams.read_rest();
        }
        if Instant::now() >= deadline {
            return Err(Failure::TooLong);
        }
    }
}

/// The pipes of a program, and what came out of them.
struct Streams {
    output: Option<PipeReader>,
    complaint: Option<PipeReader>,
    printed: Zeroizing<Vec<u8>>,
    complained: Zeroizing<Vec<u8>>,
    is_complaint_cut: bool,
}

impl Streams {
    /// How much is read at a time, in bytes.
    const READ_LEN: usize = 4096;

    /// Reads once from each pipe that has something, and waits for at most `timeout` for the first.
    /// True if there was something.
    fn read(&mut self, timeout: Duration) -> Result<bool, Failure> {
        let pipes = [&self.output, &self.complaint].map(|pipe| pipe.as_ref().map(AsFd::as_fd));
        if pipes.iter().all(Option::is_none) {
            thread::sleep(timeout.min(ENDING));
            return Ok(false);
        }
        let [output, complaint] = system::wait_readable(pipes, timeout).map_err(Failure::Lost)?;
        if output {
            read_once(&mut self.output, &mut self.printed).map_err(Failure::Lost)?;
            if self.printed.len() > MAX_OUTPUT_LEN {
                return Err(Failure::TooMuch);
            }
        }
        if complaint {
            read_once(&mut self.complaint, &mut self.complained).map_err(Failure::Lost)?;
            let too_many = self.complained.len().saturating_sub(MAX_COMPLAINT_LEN);
            if too_many > 0 {
                self.is_complaint_cut = true;
                self.complained.drain(..too_many);
            }
        }
        Ok(output || complaint)
    }

    /// Reads what is in the pipes already. A process that got away from its group may go on writing,
    /// so there is an end to that.
    fn read_rest(&mut self) -> Result<(), Failure> {
        for _ in 0..MAX_OUTPUT_LEN.div_ceil(Self::READ_LEN) * 2 {
            if !self.read(Duration::ZERO)? {
                break;
            }
        }
        Ok(())
    }

    /// Where the beginning was dropped, what is left of a word may be part of a secret that doesn't
    /// look like one any more.
    fn take_complaint(&mut self) -> Zeroizing<Vec<u8>> {
        if self.is_complaint_cut {
            let end = self.complained.iter().position(u8::is_ascii_whitespace);
            let end = end.unwrap_or(self.complained.len());
            self.complained.drain(..end);
        }
        std::mem::take(&mut self.complained)
    }
}

/// Appends what one read gives. At the end the pipe is closed.
fn read_once(pipe: &mut Option<PipeReader>, to: &mut Vec<u8>) -> io::Result<()> {
    let Some(reader) = pipe else { return Ok(()) };
    let mut buffer = Zeroizing::new([0; Streams::READ_LEN]);
    match reader.read(&mut *buffer) {
        Ok(0) => *pipe = None,
        Ok(read) => to.extend_from_slice(&buffer[..read]),
        Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
        Err(error) => return Err(error),
    }
    Ok(())
}

/// What the thread that watches a program and the one that waits for it know of its life.
#[derive(Default)]
struct Life(Mutex<Stage>);

#[derive(Default)]
enum Stage {
    #[default]
    NotStarted,
    Running(u32),
    Over,
}

impl Life {
    /// The program runs. If nobody waits for it any more, it is killed.
    fn begin(&self, id: u32) {
        let mut stage = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match *stage {
            Stage::Over => system::kill_group(id),
            Stage::NotStarted | Stage::Running(_) => *stage = Stage::Running(id),
        }
    }

    /// Nobody waits for the program any more: kills it.
    fn end(&self) {
        let mut stage = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Stage::Running(id) = *stage {
            system::kill_group(id);
        }
        *stage = Stage::Over;
    }

    /// Kills the program if it still runs, and lets the system forget it.
    fn reap(&self, mut child: Child) -> io::Result<ExitStatus> {
        self.end();
        child.wait()
    }
}
