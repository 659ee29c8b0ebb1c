//! Plaintexts that are planted, and the search for them in what leaves a server.

use std::collections::HashSet;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::hex;

/// How many bytes of a plaintext are looked for, in each form.
const WINDOW: usize = 12;

/// Plaintexts that are found wherever they are: as they are, in base16 (both cases) and in base64.
pub struct Secrets {
    plaintexts: Vec<String>,
    windows: HashSet<[u8; WINDOW]>,
}

impl Secrets {
    /// So many plaintexts of 28 characters each. Another seed gives others.
    #[must_use]
    pub fn new(count: usize, seed: u64) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut plaintexts = Vec::new();
        for _ in 0..count {
            let begin: String = (0..16).map(|_| random.alphanumeric()).collect();
            plaintexts.push(format!("{begin}@example.com"));
        }
        let windows = plaintexts.iter().flat_map(|plaintext| windows_of(plaintext)).collect();
        Self { plaintexts, windows }
    }

    /// A plaintext, which may stand in an SQL literal or a line of COPY.
    ///
    /// # Panics
    ///
    /// If there are not so many.
    #[must_use]
    pub fn get(&self, n: usize) -> &str {
        &self.plaintexts[n]
    }

    /// How many of them occur in `bytes`, counted once for each place and form.
    #[must_use]
    pub fn count_in(&self, bytes: &[u8]) -> usize {
        let found = bytes.windows(WINDOW).filter(|window| self.windows.contains(*window));
        found.count()
    }

    /// Expects that none of them occurs.
    ///
    /// # Panics
    ///
    /// If one does, with what surrounds it.
    #[track_caller]
    pub fn expect_none_in(&self, what: &str, bytes: &[u8]) {
        let at = bytes.windows(WINDOW).position(|window| self.windows.contains(window));
        if let Some(at) = at {
            let around = &bytes[at.saturating_sub(200)..bytes.len().min(at + 100)];
            panic!("{what} has a plaintext: {}", String::from_utf8_lossy(around));
        }
    }
}

fn windows_of(plaintext: &str) -> [[u8; WINDOW]; 4] {
    let bytes = plaintext.as_bytes();
    let lower = hex(&bytes[..WINDOW / 2]);
    let upper = lower.to_uppercase();
    let base64 = STANDARD.encode(&bytes[..WINDOW / 4 * 3]);
    [bytes, lower.as_bytes(), upper.as_bytes(), base64.as_bytes()]
        .map(|form| form.first_chunk().copied().unwrap())
}
