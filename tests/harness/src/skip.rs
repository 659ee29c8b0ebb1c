//! Tests that can't run here say so.

use std::fs::OpenOptions;
use std::io::Write;

/// Records that the calling test was skipped, and why: on standard error, and as a line of the
/// file that `SKIPPED_TESTS` names, from which `make test` prints and counts them.
///
/// # Panics
///
/// If `SKIPPED_TESTS` names a file that can't be written: a skip that nobody sees is worse.
pub fn skip(test: &str, why: &str) {
    eprintln!("skipped: {test}: {why}");
    if let Some(path) = std::env::var_os("SKIPPED_TESTS") {
        let mut file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(path)
            .expect("the file named by SKIPPED_TESTS can be written");
        writeln!(file, "{test}: {why}").expect("the file named by SKIPPED_TESTS can be written");
    }
}
