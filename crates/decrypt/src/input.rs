//! The input: a file or standard input, line by line, with a look at how far it is.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use memchr::{memchr, memrchr};

use crate::error::Error;
use crate::progress::Progress;

/// How much is read at once.
const BLOCK: usize = 1 << 20;

/// An input whose bytes are counted.
pub struct Input {
    source: Box<dyn Read>,
    what: String,
    progress: Progress,
}

impl Input {
    /// Opens a file, or standard input if there is none or it is `-`.
    pub fn open(path: Option<&Path>, progress: bool) -> Result<Self, Error> {
        let Some(path) = path.filter(|path| *path != Path::new("-")) else {
            return Ok(Self {
                source: Box::new(io::stdin()),
                what: "standard input".to_owned(),
                progress: Progress::new(None, progress),
            });
        };
        let file = File::open(path).map_err(|error| Error::opening(path, &error))?;
        let metadata = file.metadata().map_err(|error| Error::opening(path, &error))?;
        if metadata.is_dir() {
            return Err(Error::new(format!("\"{}\" is a folder", path.display())).with_hint(
                "A dump in directory format becomes a plain one with pg_restore -f plain.sql FOLDER.",
            ));
        }
        let len = metadata.is_file().then_some(metadata.len());
        Ok(Self {
            source: Box::new(file),
            what: format!("\"{}\"", path.display()),
            progress: Progress::new(len, progress),
        })
    }

    /// What messages call it.
    pub fn what(&self) -> &str {
        &self.what
    }

    /// Bytes that are in memory already.
    #[cfg(test)]
    pub fn of(bytes: &[u8]) -> Self {
        Self {
            source: Box::new(io::Cursor::new(bytes.to_vec())),
            what: "a test".to_owned(),
            progress: Progress::new(None, false),
        }
    }
}

impl Read for Input {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let len = self.source.read(buffer)?;
        self.progress.advance(len);
        Ok(len)
    }
}

/// The lines of an input, each with its end. A line is as long as it is: memory holds one, and what
/// was read ahead.
pub struct Lines {
    input: Input,
    buffer: Vec<u8>,
    /// What of the buffer was read from the input, and not given away.
    start: usize,
    end: usize,
    /// How many lines were given.
    number: u64,
    is_at_end: bool,
}

impl Lines {
    /// The lines of an input.
    pub fn new(input: Input) -> Self {
        Self { input, buffer: vec![0; BLOCK], start: 0, end: 0, number: 0, is_at_end: false }
    }

    /// The number of the line that was given last, from 1.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// The next line; `None` at the end of the input.
    pub fn next_line(&mut self) -> Result<Option<&[u8]>, Error> {
        let mut searched = self.start;
        loop {
            if let Some(len) = memchr(b'\n', &self.buffer[searched..self.end]) {
                return Ok(Some(self.take(searched + len + 1)));
            }
            if self.is_at_end {
                return Ok(match self.start == self.end {
                    true => None,
                    false => Some(self.take(self.end)),
                });
            }
            let before = self.end - self.start;
            self.fill()?;
            searched = self.start + before;
        }
    }

    /// The first bytes of the input, before any line was taken.
    pub fn peek(&mut self) -> Result<&[u8], Error> {
        while self.start == self.end && !self.is_at_end {
            self.fill()?;
        }
        Ok(&self.buffer[self.start..self.end])
    }

    fn take(&mut self, end: usize) -> &[u8] {
        self.number += 1;
        let start = std::mem::replace(&mut self.start, end);
        &self.buffer[start..end]
    }

    fn fill(&mut self) -> Result<(), Error> {
        if self.start > 0 {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        if self.end == self.buffer.len() {
            self.buffer.resize(self.buffer.len() * 2, 0);
        }
        let len = loop {
            match self.input.read(&mut self.buffer[self.end..]) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => {
                    break result.map_err(|error| Error::reading(self.input.what(), &error))?;
                }
            }
        };
        self.end += len;
        self.is_at_end = len == 0;
        Ok(())
    }
}

/// A line without its end, and its end.
pub fn split_end(line: &[u8]) -> (&[u8], &[u8]) {
    let mut len = line.len();
    if line.last() == Some(&b'\n') {
        len -= 1;
        if memrchr(b'\r', &line[..len]) == len.checked_sub(1) && len > 0 {
            len -= 1;
        }
    }
    line.split_at(len)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_whole_whatever_their_length() {
        let long = "x".repeat(3 * BLOCK + 17);
        for text in ["", "\n", "a\nb\n", "a\r\n\nb", &format!("a\n{long}\nb\n"), &long] {
            let mut lines = Lines::new(Input::of(text.as_bytes()));
            let mut joined = Vec::new();
            let mut count = 0;
            while let Some(line) = lines.next_line().unwrap() {
                assert_eq!(memchr(b'\n', line).unwrap_or(line.len() - 1), line.len() - 1);
                joined.extend_from_slice(line);
                count += 1;
            }
            assert_eq!(lines.number(), count);
            assert_eq!(joined, text.as_bytes());
        }
    }

    #[test]
    fn line_ends_are_of_both_kinds() {
        for (line, text, end) in [
            ("a\n", "a", "\n"),
            ("a\r\n", "a", "\r\n"),
            ("\n", "", "\n"),
            ("a\r", "a\r", ""),
            ("", "", ""),
        ] {
            assert_eq!(split_end(line.as_bytes()), (text.as_bytes(), end.as_bytes()));
        }
    }
}
