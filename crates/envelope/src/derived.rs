//! Keeps derived ciphers, which cost more to derive than a short value costs to open.

#[cfg(test)]
mod tests;

use std::fmt;
use std::ops::Deref;

use crate::cipher::ValueCipher;
use crate::format::SALT_LEN;
use crate::key::{KeyId, KeyVersion};

/// A bounded cache of derived ciphers by key, version and salt.
///
/// `P` is where the owner keeps a cipher, such as memory that is locked and wiped. The cache drops
/// what it no longer keeps, and knows nothing of its memory otherwise.
///
/// It is set-associative: key, version and salt choose a set of [`WAYS`](Self::WAYS) places, and the
/// least recently used of these makes room. Salts and key ids are random, so they need no hashing.
/// Someone who may store values of their own making can choose salts that meet in one set, and
/// thereby have that set's ciphers derived anew, but no others.
pub struct DerivedCiphers<P> {
    sets: Box<[Set<P>]>,
    last_used: usize,
}

impl<P: Deref<Target = ValueCipher>> DerivedCiphers<P> {
    /// How many ciphers a set holds.
    pub const WAYS: usize = WAYS;

    /// A cache of at most `capacity` ciphers, or of [`WAYS`](Self::WAYS) if that is more.
    ///
    /// The number of sets is a power of two: a capacity between is rounded down.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        let sets = (capacity / WAYS).checked_ilog2().map_or(1, |log2| 1 << log2);
        Self { sets: (0..sets).map(|_| Set::new()).collect(), last_used: 0 }
    }

    /// The cipher of this key, version and salt: the one that is kept, or else what `derive` gives,
    /// which is then kept.
    ///
    /// # Errors
    ///
    /// Those of `derive`, which leave the cache as it was.
    #[inline]
    pub fn get_or_derive<E>(
        &mut self,
        key_id: KeyId,
        key_version: KeyVersion,
        salt: &[u8; SALT_LEN],
        derive: impl FnOnce() -> Result<P, E>,
    ) -> Result<&P, E> {
        let label = Label { key_id, key_version, salt: *salt };
        // A scan mostly meets the values of one writer in a row.
        if !self.sets[self.last_used].newest_is(&label) {
            self.last_used = label.index(self.sets.len());
            self.sets[self.last_used].find_or_insert(label, derive)?;
        }
        Ok(self.sets[self.last_used].newest().expect("it was found or inserted"))
    }

    /// Drops the ciphers of one key version.
    pub fn forget(&mut self, key_id: KeyId, key_version: KeyVersion) {
        for set in &mut self.sets {
            set.retain(|label| (label.key_id, label.key_version) != (key_id, key_version));
        }
    }

    /// Drops all ciphers.
    pub fn clear(&mut self) {
        for set in &mut self.sets {
            set.retain(|_| false);
        }
    }

    /// How many ciphers it holds.
    #[must_use]
    pub fn len(&self) -> usize {
        self.sets.iter().map(Set::len).sum()
    }

    /// Whether it holds none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many ciphers it can hold.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.sets.len() * WAYS
    }
}

impl<P> fmt::Debug for DerivedCiphers<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DerivedCiphers(..)")
    }
}

const WAYS: usize = 4;

/// What a cipher is for.
#[derive(PartialEq, Eq)]
struct Label {
    key_id: KeyId,
    key_version: KeyVersion,
    salt: [u8; SALT_LEN],
}

impl Label {
    /// The set among `sets`, a power of two, that this label belongs into.
    ///
    /// The key takes part because a writer uses one salt for all its keys: without it, a row with
    /// five encrypted columns of five keys would fall into one set.
    fn index(&self, sets: usize) -> usize {
        let [a, b, c, d, ..] = self.salt;
        let salt = u32::from_be_bytes([a, b, c, d]);
        let mixed = salt ^ self.key_id.get() ^ self.key_version.get();
        mixed as usize & (sets - 1)
    }
}

/// The ciphers that share an index, from the most to the least recently used.
struct Set<P>([Option<(Label, P)>; WAYS]);

impl<P> Set<P> {
    fn new() -> Self {
        Self([const { None }; WAYS])
    }

    #[inline]
    fn newest_is(&self, label: &Label) -> bool {
        self.0[0].as_ref().is_some_and(|(newest, _)| newest == label)
    }

    #[inline]
    fn newest(&self) -> Option<&P> {
        self.0[0].as_ref().map(|(_, cipher)| cipher)
    }

    /// Makes the cipher of this label the newest one.
    #[inline(never)]
    fn find_or_insert<E>(
        &mut self,
        label: Label,
        derive: impl FnOnce() -> Result<P, E>,
    ) -> Result<(), E> {
        match self.position(&label) {
            Some(position) => self.0[..=position].rotate_right(1),
            None => {
                let cipher = derive()?;
                let place = self.0.iter().position(Option::is_none).unwrap_or(WAYS - 1);
                self.0[..=place].rotate_right(1);
                self.0[0] = Some((label, cipher));
            }
        }
        Ok(())
    }

    fn position(&self, label: &Label) -> Option<usize> {
        self.0.iter().position(|entry| entry.as_ref().is_some_and(|(found, _)| found == label))
    }

    fn retain(&mut self, keep: impl Fn(&Label) -> bool) {
        for entry in &mut self.0 {
            entry.take_if(|(label, _)| !keep(label));
        }
    }

    fn len(&self) -> usize {
        self.0.iter().flatten().count()
    }
}
