//! The program as it is run: what it writes, what it says, how it ends, what it leaves behind.

#![expect(clippy::unwrap_used, reason = "a test fails by a panic")]
#![allow(clippy::panic, reason = "a test fails by panicking, in its helpers too")]

/// Those of the value format.
#[path = "../../envelope/tests/vectors/mod.rs"]
mod vectors;

use std::fs::{self, Permissions};
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Command, Output, Stdio};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use envelope::armor;
use tempfile::TempDir;

const V1: &str = include_str!("../../envelope/tests/golden/v1.txt");

/// `alice@example.com`, the first of the golden values, under the first version of `user_pii`.
const ALICE: &str = "enc:1:AQF0SjPBAAAAAUBBQkNERUZHSElKS0xNTk9QUVJTVFVWVx-tL7CFswABWMtT4dsUi4Fd8RBfADpLelPe3Y1HottQxQ";

/// A folder with a keyring.
struct Golden {
    folder: TempDir,
    keyring: String,
}

impl Golden {
    /// With the first version of `user_pii` that [`ALICE`] is under.
    fn new() -> Self {
        let vectors = vectors::read(V1);
        Self::of(&vectors[0])
    }

    /// With the key of a golden value.
    fn of(vector: &vectors::Vector) -> Self {
        let folder = tempfile::tempdir().unwrap();
        // The database key itself, from which the reader derives the subkey.
        let field = if vector.has("database key") { "database key" } else { "key" };
        let key = STANDARD.encode(vector.bytes(field));
        let versions = serde_json::json!({ vector.text("version"): key });
        let keys = serde_json::json!({ vector.text("name"): versions });
        let keyring = serde_json::json!({ "encryption_ext_keyring": 1, "keys": keys }).to_string();
        let path = folder.path().join("keyring.json");
        fs::write(&path, keyring).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        let keyring = path.to_str().unwrap().to_owned();
        Self { folder, keyring }
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).to_str().unwrap().to_owned()
    }

    fn file(&self, name: &str, contents: &str) -> String {
        let path = self.path(name);
        fs::write(&path, contents).unwrap();
        path
    }

    fn start(&self, arguments: &[&str]) -> Child {
        Command::new(env!("CARGO_BIN_EXE_encryption_ext-decrypt"))
            .args(arguments)
            .args(["--keyring", &self.keyring])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    }

    fn run(&self, arguments: &[&str], input: &str) -> Output {
        let mut child = self.start(arguments);
        let mut stdin = child.stdin.take().unwrap();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                let _ = stdin.write_all(input.as_bytes());
            });
            child.wait_with_output().unwrap()
        })
    }

    /// What it writes, having succeeded.
    #[track_caller]
    fn reads(&self, arguments: &[&str], input: &str) -> Vec<u8> {
        let output = self.run(arguments, input);
        assert_eq!(output.status.code(), Some(0), "{}", said(&output));
        output.stdout
    }

    /// What it says, having failed.
    #[track_caller]
    fn fails(&self, arguments: &[&str], input: &str, status: i32) -> String {
        let output = self.run(arguments, input);
        assert_eq!(output.status.code(), Some(status), "{}", said(&output));
        said(&output)
    }
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn golden_values_are_read() {
    for vector in vectors::read(V1) {
        let armor = armor::encode(&vector.bytes("value"));
        // The name of another key with the same id is no obstacle.
        let arguments = ["values", "--raw", &armor, "--key", "kba8b256", "--key", "user_pii"];
        let plaintext = Golden::of(&vector).reads(&arguments, "");
        assert_eq!(plaintext, vector.bytes("plaintext"), "{}", vector.text("name"));
    }
}

#[test]
fn values_come_as_lines_or_arguments() {
    let golden = Golden::new();
    assert_eq!(
        golden.reads(&["values", ALICE, ALICE], ""),
        b"alice@example.com\nalice@example.com\n"
    );
    let input = format!("{ALICE}\n\n  {ALICE}\r\n{ALICE}");
    let expected = b"alice@example.com\n\nalice@example.com\nalice@example.com\n";
    assert_eq!(golden.reads(&["values"], &input), expected);
    assert_eq!(golden.reads(&["values", "-0"], ALICE), b"alice@example.com\0");
    let bytes = vectors::read(V1).into_iter().find(|v| v.text("kind") == "2").unwrap();
    let golden = Golden::of(&bytes);
    let hex = format!("\\x{}\n", bytes.text("plaintext"));
    let armor = armor::encode(&bytes.bytes("value"));
    assert_eq!(golden.reads(&["values"], &armor), hex.as_bytes());
}

#[test]
fn what_cannot_be_opened_ends_the_work_or_stays() {
    let golden = Golden::new();
    let altered = ALICE.replace("tL7C", "tL7D");
    let unknown =
        armor::encode(&[&[1, 1, 0x12, 0x34, 0x56, 0x78, 0, 0, 0, 1][..], &[0; 40]].concat());
    let missing = ALICE.replace("AAAAAU", "AAAACU");
    for (value, reason) in [
        (altered.as_str(), "does not open with version 1 of key \"user_pii\""),
        (&ALICE[..ALICE.len() - 2], "does not open"),
        (&ALICE[..38], "truncated"),
        ("enc:1:!", "base64url"),
        ("alice", "does not begin with \"enc:1:\""),
        (&unknown, "whose name is not known"),
        (&missing, "there is no version 9 of key \"user_pii\""),
    ] {
        let input = format!("{ALICE}\n{value}\n{ALICE}\n");
        let told = golden.fails(&["values"], &input, 1);
        assert!(
            told.contains(reason) && told.contains("line 2") && told.contains("hint: "),
            "{told}"
        );
        assert!(!told.contains("alice@"), "{told}");

        let output = golden.run(&["values", "--keep-going"], &input);
        assert_eq!(output.status.code(), Some(2));
        let expected = format!("alice@example.com\n{value}\nalice@example.com\n");
        assert_eq!(String::from_utf8(output.stdout).unwrap(), expected);

        let output = golden.run(&["values", "--check"], &input);
        assert_eq!(output.status.code(), Some(2));
        let table = String::from_utf8(output.stdout).unwrap();
        let row: Vec<_> = table
            .lines()
            .find(|l| l.starts_with("user_pii "))
            .unwrap()
            .split_whitespace()
            .collect();
        assert_eq!(row[..3], ["user_pii", "1", "2"], "{table}");
        assert!(!table.contains("alice"), "{table}");
    }
}

#[test]
fn other_bytes_of_a_csv_file_stay() {
    let golden = Golden::new();
    let file = format!(
        "id,e-mail,\"n, o\"\r\n1,{ALICE},\"\"\r\n2,,\"x\"\"\n{ALICE}\"\r\n\"3\",\"{ALICE}\",\r\n"
    );
    let expected = format!(
        "id,e-mail,\"n, o\"\r\n1,alice@example.com,\"\"\r\n2,,\"x\"\"\n{ALICE}\"\r\n\"3\",alice@example.com,\r\n"
    );
    for column in ["e-mail", "2"] {
        let plain = golden.reads(&["csv", "--column", column], &file);
        assert_eq!(String::from_utf8(plain).unwrap(), expected);
    }
    let tabs = format!("{ALICE}\t5\t{{{ALICE},NULL}}\n");
    let arguments = ["csv", "-c", "1", "-c", "3", "-d", "\\t", "--no-header"];
    assert_eq!(
        golden.reads(&arguments, &tabs),
        b"alice@example.com\t5\t{alice@example.com,NULL}\n"
    );

    let told = golden.fails(&["csv", "--column", "mail"], &file, 1);
    assert!(told.contains("there is no column \"mail\"") && told.contains("e-mail"), "{told}");
    let told = golden.fails(&["csv", "--column", "id"], &file, 1);
    assert!(told.contains("line 2, column id"), "{told}");
    let told = golden.fails(&["csv", "--column", "1"], "a\n1,\"", 1);
    assert!(told.contains("no end"), "{told}");
    golden.fails(&["csv"], &file, 1);
}

#[test]
fn a_dump_keeps_what_is_no_value() {
    let golden = Golden::new();
    let dump = format!(
        "SET client_encoding = 'UTF8';\nSET standard_conforming_strings = on;\n\
         -- {ALICE}\nCREATE TABLE public.t (v public.encrypted_text('user_pii') DEFAULT '{ALICE}'::public.encrypted_text);\n\
         COPY public.t (v, w) FROM stdin;\n{ALICE}\tsee {ALICE} there\\n\n\\N\t\\\\x\n\\.\n\
         INSERT INTO public.t VALUES ('{ALICE}', E'\\'s {ALICE}', '{{{ALICE}}}', 'it''s');\n"
    );
    let plain = dump
        .replace(&format!("'{ALICE}'"), "'alice@example.com'")
        .replace(&format!("\n{ALICE}\t"), "\nalice@example.com\t")
        .replace(&format!("{{{ALICE}}}"), "{alice@example.com}");
    let output = golden.run(&["dump"], &dump);
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    assert_eq!(String::from_utf8_lossy(&output.stdout), plain);
    assert!(said(&output).contains("2 texts"), "{}", said(&output));

    let damaged = dump.replace(&format!("{ALICE}', E"), &format!("{}', E", &ALICE[..60]));
    let told = golden.fails(&["dump"], &damaged, 1);
    assert!(told.contains("line 9, column 30"), "{told}");
    assert!(!told.contains("pipe"), "{told}");
    let told = golden.fails(&["dump"], &dump.replace("AAAAAU", "AAAACU"), 1);
    assert!(told.contains("comes through a pipe"), "{told}");
    let damaged = dump.replace(&format!("\n{ALICE}\t"), &format!("\n{}\t", &ALICE[..60]));
    let told = golden.fails(&["dump"], &damaged, 1);
    assert!(told.contains("line 6, table public.t, column v"), "{told}");

    for (input, reason) in [
        ("PGDMP\u{1}", "pg_restore -f"),
        ("COPY t (a) FROM stdin;\n1\n", "ends in the middle"),
        ("COPY t FROM stdin WITH (FORMAT csv);\n", "line 1: COPY has options"),
    ] {
        let told = golden.fails(&["dump"], input, 1);
        assert!(told.contains(reason), "{told}");
    }
}

#[test]
fn a_file_is_whole_or_not_there() {
    let golden = Golden::new();
    let output = golden.path("plain");
    let arguments = ["values", "--output", &output];
    golden.reads(&arguments, ALICE);
    assert_eq!(fs::read(&output).unwrap(), b"alice@example.com\n");
    assert_eq!(fs::metadata(&output).unwrap().permissions().mode() & 0o777, 0o600);

    let told = golden.fails(&arguments, ALICE, 1);
    assert!(told.contains("exists") && told.contains("--force"), "{told}");
    golden.fails(&["values", "--force", "--output", &output], "enc:1:x", 1);
    assert_eq!(fs::read(&output).unwrap(), b"alice@example.com\n");
    golden.reads(&["values", "--force", "--output", &output], "");
    assert_eq!(fs::read(&output).unwrap(), b"");
    golden.fails(&["values", "--output", &golden.path("no/folder")], ALICE, 1);

    // Interrupted while it waits for more.
    let interrupted = golden.path("interrupted");
    let mut child = golden.start(&["values", "--output", &interrupted]);
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(ALICE.as_bytes()).unwrap();
    let names = || fs::read_dir(golden.folder.path()).unwrap().count();
    while names() < 3 {
        std::thread::yield_now();
    }
    let kill = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(kill.success());
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert_eq!(names(), 2, "the unfinished file is gone");
}

#[test]
fn a_reader_that_leaves_is_no_error() {
    let golden = Golden::new();
    let input = format!("{ALICE}\n").repeat(200_000);
    let file = golden.file("values", &input);
    let mut child = golden.start(&["csv", &file, "--no-header", "--column", "1"]);
    let mut first = [0; 17];
    let mut stdout = child.stdout.take().unwrap();
    stdout.read_exact(&mut first).unwrap();
    drop(stdout);
    let output = child.wait_with_output().unwrap();
    assert_eq!((&first[..], output.status.code()), (&b"alice@example.com"[..], Some(141)));
    assert_eq!(said(&output), "");
}

#[test]
fn wrong_use_is_told() {
    let golden = Golden::new();
    golden.fails(&["nonsense"], "", 1);
    for (arguments, reason) in [
        (&["values", "--set", "valt_address=x"][..], "no setting \"valt_address\""),
        (&["values", "--set", "vault_address"], "NAME=VALUE"),
        (&["values", "--key", "A B"], "not the name of a key"),
        (&["values", "--keys", "/nowhere"], "could not open \"/nowhere\""),
        (&["dump", "/nowhere"], "could not open \"/nowhere\""),
        (&["dump", "/"], "is a folder"),
    ] {
        let told = golden.fails(arguments, "", 1);
        assert!(told.contains(reason), "{told}");
    }
    let empty = golden.file("empty.sql", "SELECT 1;\n");
    let told = golden.fails(&["values", "--keys", &empty], "", 1);
    assert!(told.contains("there are no keys in it"), "{told}");
    let program = env!("CARGO_BIN_EXE_encryption_ext-decrypt");
    for (argument, text) in
        [("--version", "encryption_ext-decrypt 0.1.0"), ("--help", "Exit status:")]
    {
        let output = Command::new(program).arg(argument).output().unwrap();
        assert!(output.status.success());
        assert!(String::from_utf8(output.stdout).unwrap().contains(text));
    }
    // Without any keys.
    let output =
        Command::new(program).args(["values", ALICE, "--key", "user_pii"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(said(&output).contains("--keyring FILE"), "{}", said(&output));
}
