//! Servers that are Python programs, each in a virtual environment of its own that `make test`
//! prepares: `build/python/NAME`.

use std::fs::{self, File};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::server::{free_port, wait_for};

/// The Python of the environment `name`, or `None` if it could not be had.
#[must_use]
pub fn interpreter(name: &str) -> Option<PathBuf> {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    Some(workspace.join("build/python").join(name).join("bin/python")).filter(|path| path.exists())
}

/// A running server. It is killed when dropped.
pub struct PythonServer {
    process: Child,
    folder: TempDir,
    port: u16,
}

impl PythonServer {
    /// Starts the environment's program on a free port of 127.0.0.1, and waits until it accepts
    /// connections. `None` if the environment could not be had.
    ///
    /// `configure` gets the environment's Python, to which it adds the arguments, and the port. The
    /// process has no other environment variables than it adds, but for a home and a folder for
    /// temporary files, which are the same empty folder and the working directory.
    ///
    /// # Panics
    ///
    /// If the server does not start.
    pub fn start(name: &str, configure: impl FnOnce(&mut Command, u16)) -> Option<Self> {
        let python = interpreter(name)?;
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let log_path = folder.path().join("log");
        let log = File::create(&log_path).expect("the folder can be written");
        let errors = log.try_clone().expect("a file can be duplicated");
        let port = free_port();
        let mut command = Command::new(python);
        command
            .current_dir(folder.path())
            .env_clear()
            .env("HOME", folder.path())
            .env("TMPDIR", folder.path())
            .env("PYTHONUNBUFFERED", "1")
            .stdin(Stdio::null())
            .stdout(Stdio::from(log))
            .stderr(Stdio::from(errors));
        configure(&mut command, port);
        let process = command.spawn().expect("Python can be run");
        let mut server = Self { process, folder, port };
        wait_for(name, || {
            let ended = server.process.try_wait().expect("a child can be asked whether it runs");
            assert!(ended.is_none(), "{}", fs::read_to_string(&log_path).unwrap_or_default());
            TcpStream::connect(("127.0.0.1", port)).is_ok()
        });
        Some(server)
    }

    /// The port of 127.0.0.1 that it listens on.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Its address, by plain HTTP.
    #[must_use]
    pub fn address(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// What it has written to its standard output and error.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    /// Stops the process where it is: it accepts connections and answers nothing.
    ///
    /// # Panics
    ///
    /// If the server is not running.
    pub fn pause(&self) {
        kill(self.pid(), Signal::SIGSTOP).expect("the server runs");
    }

    /// Lets the process go on.
    ///
    /// # Panics
    ///
    /// If the server is not running.
    pub fn resume(&self) {
        kill(self.pid(), Signal::SIGCONT).expect("the server runs");
    }

    /// Kills the process.
    pub fn stop(&mut self) {
        // An error means that it has ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.process.id()).expect("a process id is an i32"))
    }
}

impl Drop for PythonServer {
    fn drop(&mut self) {
        self.stop();
    }
}
