//! Opens values, and counts them by key and version.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io::Write;

use envelope::{DerivedCiphers, KeyId, KeyVersion, PlaintextKind, Sealed, ValueCipher, armor};
use keyring::secret::Secret;

use crate::error::Error;
use crate::keys::{Keys, OpenKey};

/// How many derived ciphers are kept: one for each session that wrote, and each five minutes of it.
const DERIVED_CIPHERS: usize = 1024;

/// The encoding that text is to be written in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Encoding {
    /// UTF-8.
    #[default]
    Utf8,
    /// ISO 8859-1, whose characters are Unicode's first.
    Latin1,
    /// Whatever it is in: the values' own.
    AsIs,
    /// One that text can't be converted to here, unless it is ASCII.
    Other,
}

impl Encoding {
    /// The encoding with this name of PostgreSQL's.
    pub fn parse(name: &str) -> Self {
        match name.to_ascii_uppercase().replace(['-', '_'], "").as_str() {
            "UTF8" | "UNICODE" => Self::Utf8,
            "LATIN1" | "ISO88591" => Self::Latin1,
            "SQLASCII" => Self::AsIs,
            _ => Self::Other,
        }
    }
}

/// Opens values.
pub struct Values {
    keys: Keys,
    versions: HashMap<(KeyId, KeyVersion), VersionState>,
    ciphers: DerivedCiphers<Secret<ValueCipher>>,
    /// What `versions` had for the databases before.
    counts: Vec<Count>,
    /// What text is written in.
    pub encoding: Encoding,
    /// Whether values that can't be opened are left, and counted.
    keep_going: bool,
    failures: u64,
    /// Armor in places where no value can stand.
    stray: u64,
    messages: u64,
    /// How `bytea` is written.
    pub raw_bytes: bool,
}

struct VersionState {
    /// One key; or several that can't be told apart by the header of a value.
    keys: Result<Vec<OpenKey>, Error>,
    opened: u64,
    failed: u64,
}

/// How many values of a version there were.
#[derive(Debug)]
pub struct Count {
    /// The key's name, or its id where the name isn't known.
    pub key: String,
    /// The version.
    pub version: KeyVersion,
    /// How many were opened.
    pub opened: u64,
    /// How many could not be opened.
    pub failed: u64,
    /// Whether the key is known to be the one that the version was made with.
    pub is_checked: bool,
}

/// How many failures are told one by one.
const MESSAGES: u64 = 20;

impl Values {
    /// Opens values with these keys.
    pub fn new(keys: Keys, keep_going: bool) -> Self {
        Self {
            keys,
            versions: HashMap::new(),
            ciphers: DerivedCiphers::new(DERIVED_CIPHERS),
            counts: Vec::new(),
            encoding: Encoding::default(),
            keep_going,
            failures: 0,
            stray: 0,
            messages: 0,
            raw_bytes: false,
        }
    }

    /// The keys.
    pub fn keys(&mut self) -> &mut Keys {
        &mut self.keys
    }

    /// Forgets what was found out about keys: the catalog has changed, or is another one.
    pub fn keys_have_changed(&mut self) {
        self.count_versions();
        self.ciphers.clear();
    }

    /// Puts the plaintext of armor that stands at `place` at the end of `out`, in the text form of its
    /// type. `false` if it stays as it is, because it can't be opened and the work goes on.
    pub fn open(
        &mut self,
        armor: &[u8],
        place: &dyn Fn() -> String,
        out: &mut Vec<u8>,
    ) -> Result<bool, Error> {
        let start = out.len();
        match self.try_open(armor, out) {
            Ok(()) => Ok(true),
            Err(error) if self.keep_going => {
                out.truncate(start);
                self.failures += 1;
                self.tell(&error.at(place()))?;
                Ok(false)
            }
            Err(error) => Err(error.at(place())),
        }
    }

    /// Counts armor that stays because no value can stand at `place`.
    pub fn leave_stray(&mut self, place: &dyn Fn() -> String) {
        self.stray += 1;
        if self.stray == 1 {
            crate::say(format_args!(
                "note: {}: a text has \"enc:1:\" in it and is not a value; it stays as it is",
                place()
            ));
        }
    }

    /// How many values could not be opened.
    pub fn failures(&self) -> u64 {
        self.failures
    }

    /// How many texts had armor in places where no value can stand.
    pub fn stray(&self) -> u64 {
        self.stray
    }

    /// The values that there were, by key and version.
    pub fn counts(&mut self) -> &[Count] {
        self.count_versions();
        self.counts.sort_by(|a, b| (&a.key, a.version).cmp(&(&b.key, b.version)));
        &self.counts
    }

    fn tell(&mut self, error: &Error) -> Result<(), Error> {
        self.messages += 1;
        if self.messages <= MESSAGES {
            crate::say(format_args!("{error}"));
        }
        if self.messages == MESSAGES {
            crate::say(format_args!("note: further values that can't be opened are only counted"));
        }
        Ok(())
    }

    fn try_open(&mut self, armor: &[u8], out: &mut Vec<u8>) -> Result<(), Error> {
        let value = armor::decode(armor).map_err(|why| damaged(&why.to_string()))?;
        let sealed = Sealed::parse(&value).map_err(|why| damaged(&why.to_string()))?;
        let (id, number) = (sealed.key_id(), sealed.key_version());
        let version = match self.versions.entry((id, number)) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => entry.insert(VersionState {
                keys: self.keys.fetch(id, number),
                opened: 0,
                failed: 0,
            }),
        };
        // Until all of it has succeeded.
        version.failed += 1;
        let keys = version.keys.as_ref().map_err(Clone::clone)?;
        let start = out.len();
        out.resize(start + sealed.plaintext_len(), 0);
        let is_open = match keys.as_slice() {
            [key] => {
                let derive = || Ok::<_, Error>(Secret::new(key.cipher.derive(sealed.salt())));
                let cipher = self.ciphers.get_or_derive(id, number, sealed.salt(), derive)?;
                cipher.open(&sealed, &key.name, &mut out[start..]).is_ok()
            }
            keys => keys.iter().any(|key| {
                let cipher = Secret::new(key.cipher.derive(sealed.salt()));
                cipher.open(&sealed, &key.name, &mut out[start..]).is_ok()
            }),
        };
        if !is_open {
            return Err(not_authentic(number, keys));
        }
        write_text_form(sealed.kind(), self.encoding, self.raw_bytes, start, out)?;
        version.failed -= 1;
        version.opened += 1;
        Ok(())
    }

    fn count_versions(&mut self) {
        for ((id, version), state) in self.versions.drain() {
            let (key, is_checked) = match &state.keys {
                Ok(keys) => (names(keys), keys.iter().all(|key| key.is_checked)),
                Err(_) => (
                    self.keys
                        .catalog()
                        .name(id)
                        .map_or_else(|| id.to_string(), ToString::to_string),
                    false,
                ),
            };
            let same =
                self.counts.iter_mut().find(|count| count.key == key && count.version == version);
            match same {
                Some(count) => {
                    count.opened += state.opened;
                    count.failed += state.failed;
                    // Once the key is compared with its check value, it was the same before.
                    count.is_checked |= is_checked;
                }
                None => self.counts.push(Count {
                    key,
                    version,
                    opened: state.opened,
                    failed: state.failed,
                    is_checked,
                }),
            }
        }
    }
}

/// Turns the plaintext at the end of `out` into the text form of its type.
fn write_text_form(
    kind: PlaintextKind,
    encoding: Encoding,
    raw_bytes: bool,
    start: usize,
    out: &mut Vec<u8>,
) -> Result<(), Error> {
    let plaintext = &out[start..];
    match kind {
        PlaintextKind::Bytea if raw_bytes => {}
        PlaintextKind::Bytea => {
            const DIGITS: &[u8; 16] = b"0123456789abcdef";
            let len = plaintext.len();
            out.resize(start + 2 + 2 * len, 0);
            // From the end, so that no byte is overwritten before it is read.
            for at in (0..len).rev() {
                let byte = out[start + at];
                let place = start + 2 + 2 * at;
                out[place + 1] = DIGITS[usize::from(byte & 15)];
                out[place] = DIGITS[usize::from(byte >> 4)];
            }
            out[start..start + 2].copy_from_slice(b"\\x");
        }
        PlaintextKind::Text => {
            let text = std::str::from_utf8(plaintext)
                .map_err(|_| Error::new("its plaintext is not the UTF-8 that it says it is"))?;
            match encoding {
                Encoding::Utf8 | Encoding::AsIs => {}
                _ if text.is_ascii() => {}
                Encoding::Latin1 => {
                    let latin1: Option<Vec<u8>> =
                        text.chars().map(|c| u8::try_from(u32::from(c)).ok()).collect();
                    let latin1 = latin1.ok_or_else(not_in_encoding)?;
                    out.truncate(start);
                    out.extend_from_slice(&latin1);
                }
                Encoding::Other => return Err(not_in_encoding()),
            }
        }
        PlaintextKind::TextInDatabaseEncoding => {
            if encoding == Encoding::Utf8 && !plaintext.is_ascii() {
                return Err(Error::new(
                    "it was stored in the encoding of its database, from which there is no conversion to UTF-8",
                )
                .with_hint("Dump the database in its own encoding: without pg_dump's --encoding."));
            }
        }
    }
    Ok(())
}

fn not_in_encoding() -> Error {
    Error::new("its text can't be converted to the dump's encoding").with_hint(
        "Convert the dump to UTF-8 first (iconv -f ENCODING -t UTF-8), and change its line \
         SET client_encoding to 'UTF8'.",
    )
}

fn not_authentic(number: KeyVersion, keys: &[OpenKey]) -> Error {
    let hint = match keys.iter().all(|key| key.is_checked) {
        true => "The key is the right one: the value was altered or cut.",
        false => {
            "The value was altered or cut, or this is another database's key. Give --keys with what \
             enc_export_keys() returned to know which."
        }
    };
    Error::new(format!("it does not open with version {number} of key \"{}\"", names(keys)))
        .with_hint(hint)
}

/// The name of the key; the names, if it is one of several.
fn names(keys: &[OpenKey]) -> String {
    keys.iter().map(|key| key.name.as_str()).collect::<Vec<_>>().join("/")
}

fn damaged(why: &str) -> Error {
    Error::new(why)
        .with_hint("The text was altered or cut after it was written, or it is no encrypted value.")
}

/// Writes the counts as a table.
pub fn write_counts(counts: &[Count], out: &mut dyn Write) -> std::io::Result<()> {
    let width = counts.iter().map(|count| count.key.len()).max().unwrap_or(0).max(3);
    writeln!(
        out,
        "{:<width$}  {:>7}  {:>12}  {:>12}  check value",
        "key", "version", "opened", "failed"
    )?;
    for Count { key, version, opened, failed, is_checked } in counts {
        let check_value = if *is_checked { "verified" } else { "not known" };
        let version = version.get();
        writeln!(out, "{key:<width$}  {version:>7}  {opened:>12}  {failed:>12}  {check_value}")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text_form(kind: PlaintextKind, encoding: Encoding, plaintext: &[u8]) -> Option<Vec<u8>> {
        let mut out = [b"before", plaintext].concat();
        write_text_form(kind, encoding, false, 6, &mut out).ok()?;
        Some(out.split_off(6))
    }

    #[test]
    fn bytes_are_written_in_base16() {
        for encoding in [Encoding::Utf8, Encoding::Other] {
            let form = |bytes: &[u8]| text_form(PlaintextKind::Bytea, encoding, bytes).unwrap();
            assert_eq!(form(b""), b"\\x");
            assert_eq!(form(b"\x00\xff\x10abc"), b"\\x00ff10616263");
        }
    }

    #[test]
    fn text_is_converted_or_refused() {
        use PlaintextKind::{Text, TextInDatabaseEncoding};
        for (kind, encoding, plaintext, expected) in [
            (Text, Encoding::Utf8, &b"\xc3\xa9"[..], Some(&b"\xc3\xa9"[..])),
            (Text, Encoding::Latin1, b"\xc3\xa9", Some(b"\xe9")),
            (Text, Encoding::Latin1, "€".as_bytes(), None),
            (Text, Encoding::Other, b"abc", Some(b"abc")),
            (Text, Encoding::Other, b"\xc3\xa9", None),
            (Text, Encoding::Utf8, b"\xe9", None),
            (TextInDatabaseEncoding, Encoding::AsIs, b"\xe9", Some(b"\xe9")),
            (TextInDatabaseEncoding, Encoding::Other, b"\xe9", Some(b"\xe9")),
            (TextInDatabaseEncoding, Encoding::Utf8, b"\xe9", None),
            (TextInDatabaseEncoding, Encoding::Utf8, b"e", Some(b"e")),
        ] {
            let form = text_form(kind, encoding, plaintext);
            assert_eq!(form.as_deref(), expected, "{kind:?} {encoding:?} {plaintext:?}");
        }
        for (name, encoding) in [
            ("UTF8", Encoding::Utf8),
            ("utf-8", Encoding::Utf8),
            ("LATIN1", Encoding::Latin1),
            ("SQL_ASCII", Encoding::AsIs),
            ("LATIN9", Encoding::Other),
        ] {
            assert_eq!(Encoding::parse(name), encoding);
        }
    }
}
