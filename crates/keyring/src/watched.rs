//! Small files that somebody else replaces: tokens, role ids, certificates.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use zeroize::Zeroizing;

use crate::provider::{ProviderError, ProviderErrorKind};

/// The largest such file: a bundle of certificates is the largest that makes sense.
const MAX_LEN: u64 = 1 << 20;

/// What tells one state of a file from another without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stamp {
    device: u64,
    inode: u64,
    len: u64,
    modified: (i64, i64),
}

impl Stamp {
    fn of(metadata: &fs::Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            len: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
        }
    }
}

/// The state that the file is in now; `None` if it can't be told.
pub(crate) fn stamp(path: &Path) -> Option<Stamp> {
    fs::metadata(path).ok().map(|m| Stamp::of(&m))
}

/// The whole of the file, which the messages call `what`, and its state.
pub(crate) fn read(path: &Path, what: &str) -> Result<(Zeroizing<Vec<u8>>, Stamp), ProviderError> {
    // Opening a named pipe must not wait for somebody to write to it.
    let mut file = File::options()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
        .map_err(|error| unusable(what, path, &error.to_string()))?;
    let metadata = file.metadata().map_err(|error| unusable(what, path, &error.to_string()))?;
    if !metadata.is_file() {
        return Err(unusable(what, path, "it is not a regular file"));
    }
    if metadata.len() > MAX_LEN {
        return Err(unusable(what, path, "it is larger than 1 MiB"));
    }
    let contents = read_at_most(&mut file, metadata.len(), MAX_LEN)
        .map_err(|error| unusable(what, path, &error.to_string()))?
        .ok_or_else(|| unusable(what, path, "it is larger than 1 MiB"))?;
    Ok((contents, Stamp::of(&metadata)))
}

/// The one line of text that the file has, without white space around it, and the file's state.
pub(crate) fn read_line(
    path: &Path,
    what: &str,
) -> Result<(Zeroizing<String>, Stamp), ProviderError> {
    let (contents, stamp) = read(path, what)?;
    let line = contents.trim_ascii();
    if line.is_empty() {
        return Err(unusable(what, path, "it is empty"));
    }
    if !line.iter().all(u8::is_ascii_graphic) {
        return Err(unusable(what, path, "it has more than one line or unprintable characters"));
    }
    let line = line.iter().copied().map(char::from).collect::<String>();
    Ok((Zeroizing::new(line), stamp))
}

/// Reads to the end, into memory that is wiped also where it was too small; `None` if there is
/// more than `limit`.
pub(crate) fn read_at_most(
    reader: &mut dyn Read,
    expected: u64,
    limit: u64,
) -> std::io::Result<Option<Zeroizing<Vec<u8>>>> {
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let expected = usize::try_from(expected).unwrap_or(limit).min(limit);
    // One byte more, to see the end without growing.
    let mut buffer = Zeroizing::new(vec![0; expected + 1]);
    let mut len = 0;
    loop {
        match reader.read(&mut buffer[len..]) {
            Ok(0) => break,
            Ok(read) => len += read,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        }
        if len > limit {
            return Ok(None);
        }
        if len == buffer.len() {
            let mut larger = Zeroizing::new(vec![0; (len * 4).max(1024).min(limit + 1)]);
            larger[..len].copy_from_slice(&buffer);
            buffer = larger;
        }
    }
    buffer.truncate(len);
    Ok(Some(buffer))
}

fn unusable(what: &str, path: &Path, why: &str) -> ProviderError {
    ProviderError::new(
        ProviderErrorKind::Configuration,
        format!("could not use {what} file \"{}\": {why}", path.display()),
    )
    .with_hint(format!(
        "The setting must name a {what} file that the server's operating-system user can read."
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reading_stops_at_the_limit() {
        let read = |len: usize, expected, limit| {
            read_at_most(&mut vec![7; len].as_slice(), expected, limit).unwrap()
        };
        assert_eq!(read(0, 0, 10).unwrap().len(), 0);
        assert_eq!(read(10, 0, 10).unwrap().len(), 10);
        assert_eq!(read(10, 10, 10).unwrap().len(), 10);
        assert!(read(11, 0, 10).is_none());
        assert!(read(11, 11, 10).is_none());
        assert_eq!(read(5000, 1, 100_000).unwrap().as_slice(), [7; 5000]);
    }
}
