//! PostgreSQL clusters.
//!
//! ```no_run
//! # use harness::cluster::Cluster;
//! let cluster = Cluster::builder(15).setting("work_mem", "64kB").start();
//! let mut client = cluster.connect("postgres", "postgres");
//! client.batch_execute("CREATE EXTENSION encryption_ext").unwrap();
//! ```
//!
//! Each cluster has a temporary folder of its own, listens on a socket there and nowhere else, and
//! is stopped and removed when it is dropped, also by a test that panics. PostgreSQL refuses to run
//! as root; when root runs the tests, the servers run as the user `postgres`.
//!
//! The installations are those that `make test` prepares: `build/postgresql/MAJOR`, or the folder
//! that the environment variable `POSTGRESQL_MAJOR` names (`POSTGRESQL_15`), with `bin/` in it.

#![expect(clippy::panic, reason = "a test learns by a panic that its cluster failed it")]

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, User, geteuid};
use postgres::{Client, Config, NoTls};
use tempfile::TempDir;

/// The superuser of every cluster; any local user may connect as any role.
pub const SUPERUSER: &str = "postgres";

/// The user that the servers run as when root runs the tests.
const UNPRIVILEGED_USER: &str = "postgres";

/// How long a server may take to start, recovery included, or to stop.
const DEADLINE: Duration = Duration::from_secs(120);

/// How many of the log's last lines a failure shows.
const LOG_TAIL: usize = 60;

/// A PostgreSQL cluster of one test.
#[derive(Debug)]
pub struct Cluster {
    installation: Installation,
    /// Holds `data/`, the server's socket and its log; removed with the cluster.
    directory: TempDir,
    port: u16,
    postmaster: Option<Child>,
}

/// What a cluster shall be like.
#[derive(Debug)]
#[must_use = "a builder makes no cluster until it is started"]
pub struct Builder {
    major: u16,
    encoding: String,
    locale: String,
    initdb_options: Vec<String>,
    port: u16,
    settings: Vec<(String, String)>,
}

/// How a server is told to stop.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Shutdown {
    /// Waits until all clients have disconnected (SIGTERM).
    Smart,
    /// Ends the sessions, then writes a checkpoint (SIGINT).
    Fast,
    /// Without a checkpoint: the next start runs recovery (SIGQUIT).
    Immediate,
}

impl Builder {
    /// The encoding of the template databases, `UTF8` by default, and their locale, by default
    /// `C.UTF-8`. The locale `C` fits every encoding.
    pub fn encoding(mut self, encoding: &str, locale: &str) -> Self {
        encoding.clone_into(&mut self.encoding);
        locale.clone_into(&mut self.locale);
        self
    }

    /// A further option of `initdb`, such as `--data-checksums`.
    pub fn initdb_option(mut self, option: &str) -> Self {
        self.initdb_options.push(option.to_owned());
        self
    }

    /// The port in the name of the socket, 5432 by default, and of TCP if `listen_addresses` is
    /// set.
    pub fn port(mut self, port: u16) -> Self {
        self.port = port;
        self
    }

    /// The least severity that the log shows: `log_min_messages`, such as `debug5`.
    pub fn log_level(self, level: &str) -> Self {
        self.setting("log_min_messages", level)
    }

    /// A line of `postgresql.conf`; the last one of a name counts, also over this harness's own:
    /// `fsync = off` and `listen_addresses = ''`, for example.
    pub fn setting(mut self, name: &str, value: &str) -> Self {
        self.settings.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Makes the cluster and starts its server.
    ///
    /// # Panics
    ///
    /// If PostgreSQL of this major version isn't available, `initdb` fails or the server doesn't
    /// start.
    #[must_use]
    pub fn start(self) -> Cluster {
        let mut cluster = self.create();
        cluster.start();
        cluster
    }

    /// Makes the cluster and leaves its server stopped.
    ///
    /// # Panics
    ///
    /// If PostgreSQL of this major version isn't available or `initdb` fails.
    #[must_use]
    pub fn create(self) -> Cluster {
        let installation = Installation::find(self.major).unwrap_or_else(|why| panic!("{why}"));
        let cluster = Cluster {
            directory: installation.temporary_directory(),
            installation,
            port: self.port,
            postmaster: None,
        };
        cluster.initdb(&self.encoding, &self.locale, &self.initdb_options);
        for (name, value) in DEFAULT_SETTINGS {
            cluster.configure(name, value);
        }
        for (name, value) in &self.settings {
            cluster.configure(name, value);
        }
        cluster
    }
}

/// Settings of every cluster: quick, quiet, the same on every machine.
const DEFAULT_SETTINGS: [(&str, &str); 8] = [
    ("fsync", "off"),
    ("lc_messages", "C"),
    ("listen_addresses", ""),
    ("log_line_prefix", "%m [%p] %q%u@%d "),
    ("max_connections", "30"),
    ("max_wal_size", "256MB"),
    ("shared_buffers", "32MB"),
    ("timezone", "UTC"),
];

impl Cluster {
    /// Begins to describe a cluster of the given major version.
    pub fn builder(major: u16) -> Builder {
        Builder {
            major,
            encoding: "UTF8".to_owned(),
            locale: "C.UTF-8".to_owned(),
            initdb_options: Vec::new(),
            port: 5432,
            settings: Vec::new(),
        }
    }

    /// Whether clusters of this major version can be made here.
    #[must_use]
    pub fn is_available(major: u16) -> bool {
        Self::missing(major).is_none()
    }

    /// Why clusters of this major version can't be made here, for [`crate::skip`]; `None` if they
    /// can.
    #[must_use]
    pub fn missing(major: u16) -> Option<String> {
        Installation::find(major).err()
    }

    /// Starts the server and waits until it accepts connections.
    ///
    /// # Panics
    ///
    /// If it doesn't, with the end of its log.
    pub fn start(&mut self) {
        if let Err(why) = self.try_start() {
            panic!("{why}");
        }
    }

    /// Starts the server and waits until it accepts connections.
    ///
    /// # Errors
    ///
    /// What happened and the end of the log, if the server ends instead or takes too long.
    ///
    /// # Panics
    ///
    /// If it runs already.
    pub fn try_start(&mut self) -> Result<(), String> {
        assert!(self.postmaster.is_none(), "the server runs already");
        let mut postmaster = self.spawn_postmaster();
        let started = Instant::now();
        loop {
            if let Some(status) = postmaster.try_wait().expect("a child can be waited for") {
                return Err(self.with_log(&format!("the server ended as it started: {status}")));
            }
            if self.accepts_connections(postmaster.id()) {
                self.postmaster = Some(postmaster);
                return Ok(());
            }
            if started.elapsed() > DEADLINE {
                self.postmaster = Some(postmaster);
                self.crash();
                return Err(self.with_log("the server doesn't accept connections"));
            }
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Stops the server and waits until it has ended.
    ///
    /// # Panics
    ///
    /// If it doesn't run or doesn't end.
    pub fn stop(&mut self, how: Shutdown) {
        self.signal(how.signal());
        let mut postmaster = self.postmaster.take().expect("a server that was signalled runs");
        if wait_with_deadline(&mut postmaster).is_none() {
            self.postmaster = Some(postmaster);
            panic!("{}", self.with_log(&format!("the server doesn't stop ({how:?})")));
        }
    }

    /// Stops the server with a checkpoint and starts it again.
    ///
    /// # Panics
    ///
    /// As [`Cluster::stop`] and [`Cluster::start`] do.
    pub fn restart(&mut self) {
        self.stop(Shutdown::Fast);
        self.start();
    }

    /// Kills every process of the server at once, as a power failure does (the operating system
    /// still has what was written). [`Cluster::start`] then runs recovery.
    ///
    /// # Panics
    ///
    /// If it doesn't run.
    pub fn crash(&mut self) {
        let mut postmaster = self.postmaster.take().expect("only a running server can crash");
        let pid = Pid::from_raw(postmaster.id().cast_signed());
        // A stopped postmaster starts no further process between the listing and the killing.
        // The signals' results don't matter: a process may end by itself meanwhile.
        let _ = kill(pid, Signal::SIGSTOP);
        let children = children(pid);
        let _ = kill(pid, Signal::SIGKILL);
        for child in &children {
            let _ = kill(*child, Signal::SIGKILL);
        }
        postmaster.wait().expect("a child can be waited for");
        // A process that still holds the shared memory would keep the next server from starting.
        wait_until("the server's processes end", || !children.iter().any(|pid| is_alive(*pid)));
    }

    /// Makes the server read its configuration again. Sessions see it at their next statement.
    ///
    /// # Panics
    ///
    /// If it doesn't run.
    pub fn reload(&self) {
        self.signal(Signal::SIGHUP);
    }

    /// Sends a signal to the postmaster.
    ///
    /// # Panics
    ///
    /// If it doesn't run.
    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.postmaster_pid().cast_signed());
        kill(pid, signal).expect("a child that wasn't waited for can be signalled");
    }

    /// Process id of the postmaster.
    ///
    /// # Panics
    ///
    /// If it doesn't run.
    #[must_use]
    pub fn postmaster_pid(&self) -> u32 {
        self.postmaster.as_ref().expect("the server runs").id()
    }

    /// Appends a line to `postgresql.conf`, which counts from the next [`Cluster::reload`] or start
    /// on. What ALTER SYSTEM sets counts more.
    ///
    /// # Panics
    ///
    /// If the file can't be written.
    pub fn configure(&self, name: &str, value: &str) {
        let path = self.data_directory().join("postgresql.conf");
        let value = value.replace('\'', "''");
        OpenOptions::new()
            .append(true)
            .open(&path)
            .and_then(|mut file| writeln!(file, "{name} = '{value}'"))
            .unwrap_or_else(|error| panic!("could not write {}: {error}", path.display()));
    }

    /// Connects as a role to a database.
    ///
    /// # Panics
    ///
    /// If the connection fails, with the end of the server's log.
    #[must_use]
    pub fn connect(&self, user: &str, database: &str) -> Client {
        self.try_connect(user, database).unwrap_or_else(|error| {
            panic!("{}", self.with_log(&format!("could not connect as {user}: {error:?}")))
        })
    }

    /// Connects as a role to a database.
    ///
    /// # Errors
    ///
    /// Those of the `postgres` crate.
    pub fn try_connect(&self, user: &str, database: &str) -> Result<Client, postgres::Error> {
        self.config(user, database).connect(NoTls)
    }

    /// How to connect as a role to a database, for a test that adds options of its own.
    #[must_use]
    pub fn config(&self, user: &str, database: &str) -> Config {
        let mut config = Config::new();
        config.host_path(self.socket_directory()).port(self.port).user(user).dbname(database);
        config
    }

    /// Runs psql, without anybody's `~/.psqlrc`, with further arguments (`["-c", "SELECT 1"]`) and
    /// gives its status, standard output and standard error.
    ///
    /// # Panics
    ///
    /// If it can't be run.
    #[must_use]
    pub fn psql(&self, user: &str, database: &str, arguments: &[&str]) -> Output {
        self.command("psql")
            .args(["--no-psqlrc", "--username", user, "--dbname", database])
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .expect("psql is part of every installation")
    }

    /// One of the installation's programs (`pg_dump`, `pg_basebackup`), to be run as the server's
    /// user; its environment leads to this cluster's superuser. Files that it shall write belong
    /// under [`Cluster::directory`].
    #[must_use]
    pub fn command(&self, program: &str) -> Command {
        let mut command = self.installation.command(program);
        command
            .current_dir(self.directory())
            .env("HOME", self.directory())
            .env("PGHOST", self.socket_directory())
            .env("PGPORT", self.port.to_string())
            .env("PGUSER", SUPERUSER)
            .env("PGDATABASE", "postgres");
        command
    }

    /// Makes a database with the given encoding and the locale `C`, which fits every encoding.
    ///
    /// # Panics
    ///
    /// If it can't be made.
    pub fn createdb(&self, name: &str, encoding: &str) {
        let output = self
            .command("createdb")
            .args(["--template=template0", "--locale=C", "--encoding", encoding, name])
            .output()
            .expect("createdb is part of every installation");
        let message = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{}", self.with_log(&message));
    }

    /// Whether an extension is installed for this server.
    ///
    /// # Panics
    ///
    /// If the server doesn't run.
    #[must_use]
    pub fn has_extension(&self, name: &str) -> bool {
        let available = "SELECT FROM pg_available_extensions WHERE name = $1";
        let rows = self.connect(SUPERUSER, "postgres").query(available, &[&name]);
        !rows.expect("the view is PostgreSQL's own").is_empty()
    }

    /// The folder of the installation's programs.
    #[must_use]
    pub fn binaries(&self) -> &Path {
        &self.installation.binaries
    }

    /// The server's log since the cluster was made.
    ///
    /// # Panics
    ///
    /// If it can't be read.
    #[must_use]
    pub fn log(&self) -> String {
        match fs::read(self.log_file()) {
            Ok(log) => String::from_utf8_lossy(&log).into_owned(),
            Err(error) if error.kind() == ErrorKind::NotFound => String::new(),
            Err(error) => panic!("could not read {}: {error}", self.log_file().display()),
        }
    }

    /// The cluster's folder, which belongs to the server's user: a place for files that the server
    /// or its programs read and write.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// PGDATA.
    #[must_use]
    pub fn data_directory(&self) -> PathBuf {
        self.directory().join("data")
    }

    /// The folder of the server's socket.
    #[must_use]
    pub fn socket_directory(&self) -> &Path {
        self.directory()
    }

    /// The port in the name of the socket, and of TCP if the server listens there.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    fn log_file(&self) -> PathBuf {
        self.directory().join("server.log")
    }

    fn initdb(&self, encoding: &str, locale: &str, options: &[String]) {
        let output = self
            .command("initdb")
            .args(["--no-sync", "--auth=trust", "--username", SUPERUSER])
            .args(["--encoding", encoding, "--locale", locale])
            .args(options)
            .arg("--pgdata")
            .arg(self.data_directory())
            .output()
            .expect("initdb is part of every installation");
        let message = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "initdb failed: {message}");
    }

    fn spawn_postmaster(&self) -> Child {
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.log_file())
            .expect("the cluster's folder can be written");
        self.command("postgres")
            .arg("-D")
            .arg(self.data_directory())
            .arg("-k")
            .arg(self.socket_directory())
            .args(["-p", &self.port.to_string()])
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a file can be opened twice"))
            .stderr(log)
            .spawn()
            .expect("postgres is part of every installation")
    }

    /// Whether `postmaster.pid` says so: its first line has the process id (another one's file may
    /// be left from a crash), its eighth the state.
    fn accepts_connections(&self, pid: u32) -> bool {
        let file = fs::read_to_string(self.data_directory().join("postmaster.pid"));
        let file = file.unwrap_or_default();
        let mut lines = file.lines().map(str::trim);
        lines.next() == Some(&pid.to_string()) && matches!(lines.nth(6), Some("ready" | "standby"))
    }

    fn with_log(&self, message: &str) -> String {
        format!("{}\n{}", message.trim_end(), self.log_tail())
    }

    fn log_tail(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        let tail = &lines[lines.len().saturating_sub(LOG_TAIL)..];
        format!("The server's log ends with:\n{}", tail.join("\n"))
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("{}", self.log_tail());
        }
        // A server that is killed leaves its shared memory behind, of which a machine has no more than some thousand
        // pieces.
        if let Some(mut postmaster) = self.postmaster.take() {
            let _ = kill(Pid::from_raw(postmaster.id().cast_signed()), Signal::SIGQUIT);
            if wait_with_deadline(&mut postmaster).is_none() {
                self.postmaster = Some(postmaster);
                self.crash();
            }
        }
    }
}

impl Shutdown {
    fn signal(self) -> Signal {
        match self {
            Self::Smart => Signal::SIGTERM,
            Self::Fast => Signal::SIGINT,
            Self::Immediate => Signal::SIGQUIT,
        }
    }
}

/// Process id of the backend that serves this connection.
///
/// # Panics
///
/// If the connection is broken.
pub fn backend_pid(client: &mut Client) -> i32 {
    client.query_one("SELECT pg_backend_pid()", &[]).expect("the connection works").get(0)
}

/// The programs of one major version and the user that runs them.
#[derive(Debug)]
struct Installation {
    binaries: PathBuf,
    /// The user to become; `None` if the tests' own user will do.
    user: Option<User>,
}

impl Installation {
    /// Finds a usable installation, or says what is wrong with it.
    fn find(major: u16) -> Result<Self, String> {
        let installation = Self { binaries: directory(major).join("bin"), user: server_user()? };
        let postgres = installation.binaries.join("postgres");
        // Asks as the server's user, who may be kept out of the folder by its parents' modes.
        match installation.command("postgres").arg("--version").output() {
            Ok(output) if output.status.success() => Ok(installation),
            Ok(output) => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
            Err(error) => Err(format!(
                "PostgreSQL {major} isn't available: {} can't be run{}: {error}",
                postgres.display(),
                installation.user.map_or_else(String::new, |user| format!(" by {}", user.name))
            )),
        }
    }

    /// A program that runs as the server's user and doesn't see the settings of whoever runs the
    /// tests.
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.binaries.join(program));
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("PG") {
                command.env_remove(name);
            }
        }
        // Rust's backtraces would become part of the server's error messages.
        command.env("LC_ALL", "C").env_remove("RUST_BACKTRACE").current_dir("/");
        // Libraries that the server loads (postgres_fdw, libpqwalreceiver) need the installation's own libpq,
        // which some installations tell to their programs only.
        let libraries = self.binaries.with_file_name("lib");
        if libraries.join("libpq.so.5").exists() {
            command.env("LD_LIBRARY_PATH", libraries);
        }
        if let Some(user) = &self.user {
            // Takes root's supplementary groups away, too.
            command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
        }
        command
    }

    fn temporary_directory(&self) -> TempDir {
        let directory = tempfile::Builder::new()
            .prefix("postgresql-")
            .tempdir()
            .expect("a temporary folder can be made");
        if let Some(user) = &self.user {
            chown(directory.path(), Some(user.uid.as_raw()), Some(user.gid.as_raw()))
                .expect("root can give its folders away");
        }
        directory
    }
}

fn directory(major: u16) -> PathBuf {
    let directory = std::env::var_os(format!("POSTGRESQL_{major}")).map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../../build/postgresql/{major}")),
        PathBuf::from,
    );
    // `build` may be a link to a folder that the server's user can enter when the clone is not one.
    fs::canonicalize(&directory).unwrap_or(directory)
}

fn server_user() -> Result<Option<User>, String> {
    if !geteuid().is_root() {
        return Ok(None);
    }
    match User::from_name(UNPRIVILEGED_USER) {
        Ok(Some(user)) => Ok(Some(user)),
        Ok(None) => Err(format!("root can't run PostgreSQL, and no user {UNPRIVILEGED_USER}")),
        Err(error) => Err(format!("could not look up the user {UNPRIVILEGED_USER}: {error}")),
    }
}

fn wait_with_deadline(child: &mut Child) -> Option<std::process::ExitStatus> {
    let started = Instant::now();
    while started.elapsed() < DEADLINE {
        if let Some(status) = child.try_wait().expect("a child can be waited for") {
            return Some(status);
        }
        thread::sleep(Duration::from_millis(10));
    }
    None
}

fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < DEADLINE, "still waiting: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// The processes whose parent is `parent`.
fn children(parent: Pid) -> Vec<Pid> {
    let processes = fs::read_dir("/proc").expect("/proc is mounted");
    processes
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .map(Pid::from_raw)
        .filter(|pid| state_and_parent(*pid).is_some_and(|(_, its_parent)| its_parent == parent))
        .collect()
}

/// Whether the process still has its memory: a zombie has not.
fn is_alive(pid: Pid) -> bool {
    state_and_parent(pid).is_some_and(|(state, _)| state != "Z" && state != "X")
}

/// From proc(5): `pid (name) state ppid …`, where the name may contain anything.
fn state_and_parent(pid: Pid) -> Option<(String, Pid)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, after_name) = stat.rsplit_once(") ")?;
    let mut fields = after_name.split(' ');
    let state = fields.next()?.to_owned();
    let parent = fields.next()?.parse().ok()?;
    Some((state, Pid::from_raw(parent)))
}
