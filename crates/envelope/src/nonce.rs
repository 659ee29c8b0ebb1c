//! Nonces, none of which is ever used twice with the same key.

#[cfg(test)]
mod tests;

use std::time::{Duration, Instant};

use crate::format::{NONCE_LEN, SALT_LEN};

const COUNTER_LEN: usize = NONCE_LEN - SALT_LEN;

/// A nonce of XAES-256-GCM: 12 bytes of salt, then 12 bytes of counter.
///
/// Only [`NonceSource::next`] makes new ones. One that was read from a value is for opening that
/// value. It is neither `Clone` nor `Copy`, so that it isn't used twice by accident.
#[derive(Debug, PartialEq, Eq, Hash)]
pub struct Nonce([u8; NONCE_LEN]);

impl Nonce {
    /// The first half, from which the cipher is derived.
    #[must_use]
    pub fn salt(&self) -> &[u8; SALT_LEN] {
        self.halves().0
    }

    /// The second half, which is the nonce of the derived AES-256-GCM cipher.
    #[must_use]
    pub fn counter(&self) -> &[u8; COUNTER_LEN] {
        self.halves().1
    }

    pub(crate) fn from_bytes(bytes: [u8; NONCE_LEN]) -> Self {
        Self(bytes)
    }

    pub(crate) fn as_bytes(&self) -> &[u8; NONCE_LEN] {
        &self.0
    }

    fn new(salt: [u8; SALT_LEN], counter: [u8; COUNTER_LEN]) -> Self {
        let mut bytes = [0; NONCE_LEN];
        bytes[..SALT_LEN].copy_from_slice(&salt);
        bytes[SALT_LEN..].copy_from_slice(&counter);
        Self(bytes)
    }

    fn halves(&self) -> (&[u8; SALT_LEN], &[u8; COUNTER_LEN]) {
        let (salt, rest) = self.0.split_first_chunk().expect("a nonce is longer than its salt");
        let counter = rest.try_into().expect("a salt and a counter make a nonce");
        (salt, counter)
    }
}

/// Where a process has the nonces of the values that it seals from.
///
/// A process draws a random salt and a random first counter from the operating system, then counts
/// up by one for each value: the RBG-based construction of SP 800-38D, section 8.2.2, under each key
/// derived from the salt. So there is no call of the random number generator for each value, and
/// the values of one process share derived ciphers.
///
/// Two nonces are equal only if two draws agree in all 96 bits of the salt and their counters
/// meet. A new salt is drawn
///
/// * in a process other than the one that drew the last (a fork inherits the state),
/// * after [`MAX_VALUES`](Self::MAX_VALUES) or [`MAX_BLOCKS`](Self::MAX_BLOCKS) under one salt,
/// * at the start of a transaction, when the salt is older than [`MAX_AGE`](Self::MAX_AGE).
///
/// One source serves all keys of a process; the limits count all of them together, which is more
/// than the standard asks for.
#[derive(Debug)]
pub struct NonceSource {
    fill_random: fn(&mut [u8]) -> Result<(), getrandom::Error>,
    sequence: Option<Sequence>,
    last_transaction_start: Option<Instant>,
}

impl NonceSource {
    /// The most values under one salt: what SP 800-38D, section 8.3, allows one key in all.
    pub const MAX_VALUES: u64 = 1 << 32;

    /// The most AES blocks under one salt, or 1 TiB of long values.
    ///
    /// A value costs one block for every 16 bytes of plaintext or part of them, and one for its
    /// tag. With this many, an attacker tells the cipher from an ideal one with a probability of
    /// about 2^-57 (the square of their number over 2^129).
    pub const MAX_BLOCKS: u64 = 1 << 36;

    /// How old a salt may be when a transaction starts.
    ///
    /// It bounds how long a process that runs twice, in a restored snapshot of its memory, goes on
    /// with nonces that it shares with its other self. It doesn't make such a snapshot safe.
    pub const MAX_AGE: Duration = Duration::from_secs(5 * 60);

    /// A source that has not drawn anything yet, so that it may be built before a fork.
    #[must_use]
    pub const fn new() -> Self {
        Self { fill_random: getrandom::fill, sequence: None, last_transaction_start: None }
    }

    /// A source with other randomness than the operating system's, which only tests may have.
    #[cfg(test)]
    fn with_random(fill_random: fn(&mut [u8]) -> Result<(), getrandom::Error>) -> Self {
        Self { fill_random, ..Self::new() }
    }

    /// The nonce for one value of `plaintext_len` bytes, sealed in the process `process_id`.
    ///
    /// `process_id` is the calling process's own, asked for or kept up to date after each fork.
    ///
    /// # Errors
    ///
    /// If a salt is due and the operating system has no random bytes to give.
    pub fn next(
        &mut self,
        process_id: u32,
        plaintext_len: usize,
    ) -> Result<Nonce, getrandom::Error> {
        let blocks = blocks(plaintext_len);
        let sequence = match self.sequence.take() {
            Some(sequence) if sequence.serves(process_id, blocks) => sequence,
            _ => Sequence::draw(self.fill_random, process_id, self.last_transaction_start)?,
        };
        Ok(self.sequence.insert(sequence).next(blocks))
    }

    /// Tells the source that a transaction starts at `now`: it drops a salt that is too old.
    ///
    /// The age counts from the start of the transaction in which the salt was drawn. A salt that
    /// was drawn before any transaction was told of is dropped too, its age being unknown.
    pub fn transaction_start(&mut self, now: Instant) {
        self.last_transaction_start = Some(now);
        self.sequence.take_if(|sequence| match sequence.drawn_after {
            Some(start) => now.duration_since(start) > Self::MAX_AGE,
            None => true,
        });
    }
}

impl Default for NonceSource {
    fn default() -> Self {
        Self::new()
    }
}

/// The nonces under one salt.
#[derive(Debug)]
struct Sequence {
    process_id: u32,
    salt: [u8; SALT_LEN],
    /// The counter of the next nonce; only its low 96 bits count.
    counter: u128,
    values: u64,
    blocks: u64,
    drawn_after: Option<Instant>,
}

impl Sequence {
    fn draw(
        fill_random: fn(&mut [u8]) -> Result<(), getrandom::Error>,
        process_id: u32,
        drawn_after: Option<Instant>,
    ) -> Result<Self, getrandom::Error> {
        let mut salt = [0; SALT_LEN];
        fill_random(&mut salt)?;
        let mut counter = [0; size_of::<u128>()];
        fill_random(&mut counter)?;
        let counter = u128::from_be_bytes(counter);
        Ok(Self { process_id, salt, counter, values: 0, blocks: 0, drawn_after })
    }

    fn serves(&self, process_id: u32, blocks: u64) -> bool {
        self.process_id == process_id
            && self.values < NonceSource::MAX_VALUES
            && self.blocks.saturating_add(blocks) <= NonceSource::MAX_BLOCKS
    }

    fn next(&mut self, blocks: u64) -> Nonce {
        let counter = self.counter.to_be_bytes();
        let counter = counter.last_chunk().expect("16 bytes end with 12");
        let nonce = Nonce::new(self.salt, *counter);
        self.counter = self.counter.wrapping_add(1);
        self.values += 1;
        self.blocks = self.blocks.saturating_add(blocks);
        nonce
    }
}

/// How many AES blocks a value takes: its plaintext's, and the one that masks the tag.
fn blocks(plaintext_len: usize) -> u64 {
    const BLOCK_LEN: usize = 16;
    plaintext_len.div_ceil(BLOCK_LEN) as u64 + 1
}
