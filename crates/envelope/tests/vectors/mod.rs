//! Reads test vectors: lines `field = value`, a blank line between one vector and the next, and
//! comments or section headings that begin with `#` or `[`. A lone word is a field without value.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test fails by panicking, in its helpers too"
)]
#![allow(dead_code, reason = "not every test needs every helper")]

use std::collections::HashMap;

pub struct Vector(HashMap<&'static str, &'static str>);

impl Vector {
    pub fn has(&self, field: &str) -> bool {
        self.0.contains_key(field)
    }

    pub fn text(&self, field: &str) -> &'static str {
        self.0.get(field).unwrap_or_else(|| panic!("the vector has no {field}"))
    }

    pub fn number(&self, field: &str) -> u32 {
        self.text(field).parse().unwrap()
    }

    pub fn bytes(&self, field: &str) -> Vec<u8> {
        base16ct::lower::decode_vec(self.text(field)).unwrap()
    }

    pub fn array<const N: usize>(&self, field: &str) -> [u8; N] {
        self.bytes(field).try_into().unwrap()
    }
}

pub fn read(file: &'static str) -> Vec<Vector> {
    let mut vectors = vec![];
    for paragraph in file.split("\n\n") {
        let fields: HashMap<_, _> = paragraph
            .lines()
            .filter(|line| !line.is_empty() && !line.starts_with(['#', '[']))
            .map(|line| line.split_once('=').unwrap_or((line, "")))
            .map(|(field, value)| (field.trim(), value.trim()))
            .collect();
        if !fields.is_empty() {
            vectors.push(Vector(fields));
        }
    }
    vectors
}
