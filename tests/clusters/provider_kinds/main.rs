//! The kinds of providers, each in a database: keys are made, rotated and wrapped again, and then the
//! provider hangs, refuses, and goes away.
//!
//! What is more about Vault is in `vault`, `outages` and `faults`, and `file` is in `keyring_file`. What a
//! provider does without a database is in `crates/keyring/tests`.

#![expect(clippy::unwrap_used, reason = "a test fails by a panic")]

mod servers;
mod story;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use cluster_tests::Session;
use harness::cluster::backend_pid;
use harness::softhsm::in_own_process;

use servers::Token;
use story::{READ, Story, tell};

#[test]
fn vault() {
    tell("vault", "there is no bao to run", servers::vault);
}

#[test]
fn vault_transit() {
    tell("vault_transit", "there is no bao to run", servers::vault_transit);
}

#[test]
fn aws_kms() {
    tell("aws_kms", "MiniStack could not be had", servers::aws_kms);
}

#[test]
fn google_cloud_kms() {
    tell("google_cloud_kms", "build/python/fakes is missing", servers::google_cloud_kms);
}

#[test]
fn azure_key_vault() {
    tell("azure_key_vault", "build/python/fakes is missing", servers::azure_key_vault);
}

#[test]
fn kmip() {
    tell("kmip", "there is no PyKMIP to run", servers::kmip);
}

#[test]
fn command() {
    tell("command", "", servers::command);
}

#[test]
fn pkcs11() {
    in_own_process("pkcs11", |softhsm| {
        tell("pkcs11", "", |folder| Some(Token::set_up(softhsm, softhsm.module(), folder)));
    });
}

/// A module that hangs, as one does whose appliance is out of reach, holds nobody up; and a session that
/// ends while a thread of it is in the module's code takes no other along, although the C library then
/// takes the module apart under the thread.
#[test]
fn a_session_ends_while_a_module_hangs() {
    let test = "a_session_ends_while_a_module_hangs";
    in_own_process(test, |softhsm| {
        let mut hanging = PathBuf::new();
        let story = Story::begin(test, "there is no C compiler", |folder| {
            hanging = folder.join("hanging");
            let module = compile_hanging_module(softhsm.module(), &hanging, folder)?;
            Some(Token::set_up(softhsm, &module, folder))
        });
        let Some(mut story) = story else { return };
        story.keys_are_made_and_rotated();
        let mut witness = story.connect();
        assert_eq!(witness.text(READ), "1first 2second");

        fs::write(&hanging, "").unwrap();
        let mut pids = Vec::new();
        for end in [End::Disconnect, End::Terminate, End::TerminateWaiting] {
            let mut session = story.connect();
            pids.push(backend_pid(&mut session));
            match end {
                End::Disconnect => {
                    story.fails(&mut session, "KE063");
                    drop(session);
                }
                End::Terminate => {
                    story.fails(&mut session, "KE063");
                    witness.run(&format!("SELECT pg_terminate_backend({})", pids[1]));
                }
                End::TerminateWaiting => story.a_session_is_terminated(),
            }
        }
        let ended = Instant::now();
        for pid in pids {
            let runs = format!("SELECT count(*) FROM pg_stat_activity WHERE pid = {pid}");
            while witness.text(&runs) != "0" {
                assert!(ended.elapsed() < Duration::from_secs(10), "{pid} does not end");
                thread::sleep(Duration::from_millis(10));
            }
        }
        // Its process goes on, with its keys: the server has not restarted.
        assert_eq!(witness.text(READ), "1first 2second");
        assert!(!story.cluster.log().contains("was terminated by signal"));
        fs::remove_file(&hanging).unwrap();
        assert_eq!(story.connect().text(READ), "1first 2second");
    });
}

/// How a session ends that has called a module which hangs.
enum End {
    /// Its client leaves, when the call was given up.
    Disconnect,
    /// By the administrator, when the call was given up.
    Terminate,
    /// By the administrator, while the session waits for the call.
    TerminateWaiting,
}

/// A PKCS #11 module that hands all calls on to another one, and whose C_GetSlotList, the first call of
/// each session, does not return while the file `hanging` is there. `None` if there is no compiler.
fn compile_hanging_module(module: &Path, hanging: &Path, folder: &Path) -> Option<PathBuf> {
    let source =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("clusters/provider_kinds/hanging_module.c");
    let compiled = folder.join("hanging_module.so");
    let output = Command::new("cc")
        .args(["-shared", "-fPIC", "-Wall", "-Werror", "-o"])
        .arg(&compiled)
        .arg(format!("-DMODULE=\"{}\"", module.display()))
        .arg(format!("-DHANGING=\"{}\"", hanging.display()))
        .arg(source)
        .arg("-ldl")
        .output()
        .ok()?;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Some(compiled)
}
