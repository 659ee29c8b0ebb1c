//! SoftHSM: a PKCS #11 module whose tokens are files.
//!
//! The module reads the environment variable `SOFTHSM2_CONF` when it is initialized, and a process may
//! not set its own variables while it has threads. So what uses tokens is a process of its own: a
//! PostgreSQL server that is started with [`SoftHsm::variable`], or a test that
//! [`in_own_process`] runs again.

use std::fs;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

/// The module, where Debian, Fedora and a build from source have it.
const MODULES: [&str; 4] = [
    "/usr/lib/softhsm/libsofthsm2.so",
    "/usr/lib64/pkcs11/libsofthsm2.so",
    "/usr/lib64/softhsm/libsofthsm2.so",
    "/usr/local/lib/softhsm/libsofthsm2.so",
];

/// The variable that names the configuration.
const CONFIGURATION: &str = "SOFTHSM2_CONF";

/// The variable that tells a test that it is the one in a process of its own.
const OWN_PROCESS: &str = "HARNESS_SOFTHSM_TEST";

/// A folder of tokens. It is removed when dropped.
pub struct SoftHsm {
    folder: PathBuf,
    module: PathBuf,
    /// Removes the folder.
    _owner: Option<TempDir>,
}

impl SoftHsm {
    /// The user PIN of the tokens that [`SoftHsm::make_token`] makes.
    pub const PIN: &'static str = "48151623";

    /// Their security officer's PIN.
    pub const SO_PIN: &'static str = "42108642";

    /// A folder without tokens. `None` if SoftHSM could not be had.
    ///
    /// # Panics
    ///
    /// If the folder can't be made.
    #[must_use]
    pub fn new() -> Option<Self> {
        let module = find_module()?;
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let tokens = folder.path().join("tokens");
        fs::create_dir(&tokens).expect("the folder can be written");
        let configuration = format!(
            "directories.tokendir = {}\nobjectstore.backend = file\nlog.level = ERROR\n",
            tokens.display()
        );
        fs::write(folder.path().join("softhsm2.conf"), configuration)
            .expect("the folder can be written");
        Some(Self { folder: folder.path().to_owned(), module, _owner: Some(folder) })
    }

    fn of_the_process_that_started_this() -> Self {
        let configuration = std::env::var_os(CONFIGURATION).map(PathBuf::from);
        let folder = configuration.as_deref().and_then(Path::parent).map(Path::to_owned);
        Self {
            folder: folder.expect("the variable was set with the other one"),
            module: find_module().expect("it was there when the other process looked"),
            _owner: None,
        }
    }

    /// The module, for the setting `pkcs11_module`.
    #[must_use]
    pub fn module(&self) -> &Path {
        &self.module
    }

    /// The folder that has the configuration, the folder of tokens, and room for files of tests.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The name and the value of the variable that a process must have to see the tokens.
    #[must_use]
    pub fn variable(&self) -> (&'static str, PathBuf) {
        (CONFIGURATION, self.folder.join("softhsm2.conf"))
    }

    /// Makes a token with the PINs of this type.
    ///
    /// # Panics
    ///
    /// If it can't be made.
    pub fn make_token(&self, label: &str) {
        self.util(&[
            "--init-token",
            "--free",
            "--label",
            label,
            "--so-pin",
            Self::SO_PIN,
            "--pin",
            Self::PIN,
        ]);
    }

    /// Deletes a token.
    ///
    /// # Panics
    ///
    /// If there is none.
    pub fn delete_token(&self, label: &str) {
        self.util(&["--delete-token", "--token", label]);
    }

    /// Puts 32 bytes into a token as an AES key that may do everything but leave it, with this id
    /// (in base16).
    ///
    /// # Panics
    ///
    /// If they can't be put there.
    pub fn import_aes_key(&self, token: &str, label: &str, id: &str, key: &[u8; 32]) {
        let file = self.folder.join("import");
        fs::write(&file, key).expect("the folder can be written");
        let path = file.to_str().expect("the path is text");
        self.util(&[
            "--import",
            path,
            "--aes",
            "--token",
            token,
            "--label",
            label,
            "--id",
            id,
            "--pin",
            Self::PIN,
        ]);
        fs::remove_file(file).expect("the file was written");
    }

    /// A file with the PIN, which its owner alone can read.
    ///
    /// # Panics
    ///
    /// If it can't be written.
    #[must_use]
    pub fn pin_file(&self) -> PathBuf {
        let file = self.folder.join("pin");
        write_privately(&file, Self::PIN);
        file
    }

    /// Gives the folder and all that is in it to a user, such as the one that a server runs as. To be
    /// called again after something was made in it.
    ///
    /// # Panics
    ///
    /// If this process may not.
    pub fn give_to(&self, user: u32, group: u32) {
        give(&self.folder, user, group);
    }

    fn util(&self, arguments: &[&str]) {
        let (name, value) = self.variable();
        let output = Command::new("softhsm2-util")
            .args(arguments)
            .env(name, value)
            .output()
            .expect("softhsm2-util can be run");
        assert!(output.status.success(), "softhsm2-util {arguments:?}: {output:?}");
    }
}

/// Runs a test's `body` in a process of its own, with an empty folder of tokens: the test program is
/// run again for the test with this name alone. The test is skipped where SoftHSM is missing.
///
/// # Panics
///
/// If `body` does.
pub fn in_own_process(test: &str, body: impl FnOnce(&SoftHsm)) {
    if std::env::var(OWN_PROCESS).is_ok_and(|own| own == test) {
        body(&SoftHsm::of_the_process_that_started_this());
        return;
    }
    let Some(softhsm) = SoftHsm::new() else {
        crate::skip(test, "there is no SoftHSM (Debian's softhsm2)");
        return;
    };
    let (name, value) = softhsm.variable();
    let program = std::env::current_exe().expect("a test knows its program");
    let output = Command::new(program)
        .args([test, "--exact", "--nocapture"])
        .env(OWN_PROCESS, test)
        .env(name, value)
        .output()
        .expect("the test program can be run again");
    let errors = String::from_utf8_lossy(&output.stderr);
    eprint!("{errors}");
    let text = String::from_utf8_lossy(&output.stdout);
    let ran = text.contains("1 passed") || text.contains("1 failed");
    assert!(output.status.success() && ran, "{test} in its own process: {}\n{text}", output.status);
}

/// The module, if its program is there, too.
fn find_module() -> Option<PathBuf> {
    Command::new("softhsm2-util").arg("--version").output().ok()?;
    MODULES.map(PathBuf::from).into_iter().find(|module| module.exists())
}

fn write_privately(file: &Path, contents: &str) {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;

    fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(file)
        .and_then(|mut file| writeln!(file, "{contents}"))
        .expect("the folder can be written");
}

fn give(path: &Path, user: u32, group: u32) {
    chown(path, Some(user), Some(group)).expect("this process may give files away");
    if path.is_dir() {
        for entry in fs::read_dir(path).expect("the folder can be read") {
            give(&entry.expect("the folder can be read").path(), user, group);
        }
    }
}
