//! Values of format 1 that every later version must read, and the specification that goes with them.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test fails by panicking, in its helpers too"
)]

/// Not the harness's package, which brings PostgreSQL's and Vault's clients with it.
#[path = "../../../tests/harness/src/skip.rs"]
mod skip;
mod vectors;

use std::process::Command;

use envelope::{DataKey, Header, KeyCipher, KeyName, KeyVersion, PlaintextKind, Sealed, armor};
use vectors::Vector;

const V1: &str = include_str!("golden/v1.txt");
const FORMAT_MD: &str = include_str!("../../../docs/format.md");
const READ_VALUE_PY: &str = include_str!("../../../docs/read_value.py");
const READ_VALUE_PATH: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/read_value.py");

fn v1() -> Vec<Vector> {
    let vectors = vectors::read(V1);
    assert_eq!(vectors.len(), 9);
    vectors
}

fn name(v: &Vector) -> KeyName {
    KeyName::parse(v.text("name")).unwrap()
}

fn key(v: &Vector) -> KeyCipher {
    KeyCipher::new(&DataKey::new(v.array("key")))
}

#[test]
fn golden_values_open() {
    for v in v1() {
        let value = v.bytes("value");
        let sealed = Sealed::parse(&value).unwrap();
        let kind = match v.text("kind") {
            "1" => PlaintextKind::Text,
            "2" => PlaintextKind::Bytea,
            "3" => PlaintextKind::TextInDatabaseEncoding,
            other => panic!("no such kind: {other}"),
        };
        assert_eq!(sealed.kind(), kind);
        assert_eq!(sealed.key_id(), name(&v).id());
        assert_eq!(Some(sealed.key_version()), KeyVersion::new(v.number("version")));

        let mut plaintext = vec![0; sealed.plaintext_len()];
        let cipher = key(&v).derive(sealed.salt());
        cipher.open(&sealed, &name(&v), &mut plaintext).unwrap();
        assert_eq!(plaintext, v.bytes("plaintext"), "{}", v.text("name"));
    }
}

#[test]
fn golden_values_are_what_seal_makes() {
    for v in v1() {
        let (golden, plaintext) = (v.bytes("value"), v.bytes("plaintext"));
        let header = Header::parse(&golden).unwrap();
        let mut value = vec![0; golden.len()];
        let cipher = key(&v).derive(header.nonce.salt());
        cipher.seal(header, &name(&v), &plaintext, &mut value).unwrap();
        assert_eq!(value, golden, "{}", v.text("name"));
    }
}

#[test]
fn the_example_in_format_md_is_the_first_golden_value() {
    let v = &v1()[0];
    let value = v.bytes("value");
    for shown in [v.text("key"), &armor::encode(&value), "user_pii", "alice@example.com"] {
        assert!(FORMAT_MD.contains(shown), "docs/format.md shows {shown}");
    }
    // Its table shows the value field by field.
    let mut shown = FORMAT_MD;
    for field in [0..1, 1..2, 2..6, 6..10, 10..34, 34..51, 51..67] {
        let row = format!("| `{}` |", base16ct::lower::encode_string(&value[field]));
        let at = shown.find(&row).unwrap_or_else(|| panic!("docs/format.md has the row {row}"));
        shown = &shown[at..];
    }
}

#[test]
fn the_reader_in_format_md_is_read_value_py() {
    let (_docstring, code) = READ_VALUE_PY.split_once("\"\"\"\nimport").unwrap();
    assert!(FORMAT_MD.contains(code.trim()), "docs/format.md shows docs/read_value.py");
}

/// The independent reader, by which the documentation shows that the key is all one needs.
#[test]
fn read_value_py_reads_golden_values() {
    let cryptography = Command::new("python3").args(["-c", "import cryptography"]).output();
    if !cryptography.is_ok_and(|python| python.status.success()) {
        let why = "python3 with the package cryptography can't be had";
        return skip::skip("read_value_py_reads_golden_values", why);
    }
    for v in v1() {
        // Readers are given the database key itself, and derive its subkey.
        let key = if v.has("database key") { v.text("database key") } else { v.text("key") };
        let armor = armor::encode(&v.bytes("value"));
        let read = read_value_py(key, v.text("name"), &armor).expect("it reads the value");
        assert_eq!(read, v.bytes("plaintext"), "{}", v.text("name"));

        let wrong_key = "ff".repeat(32);
        assert_eq!(read_value_py(&wrong_key, v.text("name"), &armor), None);
    }
}

fn read_value_py(key: &str, name: &str, armor: &str) -> Option<Vec<u8>> {
    let output =
        Command::new("python3").args([READ_VALUE_PATH, key, name, armor]).output().unwrap();
    output.status.success().then_some(output.stdout)
}
