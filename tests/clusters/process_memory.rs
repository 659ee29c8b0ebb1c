//! What is in the memory of the server's processes.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;

use crate::find_all;

/// A part of a process's memory.
pub struct Mapping {
    /// Its first address.
    pub start: u64,
    /// The first address after it.
    pub end: u64,
    /// proc(5): two letters each, such as `dd` ("do not include area into core dump").
    pub flags: Vec<String>,
    readable: bool,
    name: String,
}

impl Mapping {
    /// Whether it has a flag.
    #[must_use]
    pub fn has(&self, flag: &str) -> bool {
        self.flags.iter().any(|each| each == flag)
    }
}

/// From `/proc/<pid>/smaps`.
///
/// # Errors
///
/// If it can't be read.
///
/// # Panics
///
/// If it is not as proc(5) says.
pub fn mappings(pid: i32) -> io::Result<Vec<Mapping>> {
    let smaps = fs::read_to_string(format!("/proc/{pid}/smaps"))?;
    let mut mappings: Vec<Mapping> = Vec::new();
    for line in smaps.lines() {
        if let Some(flags) = line.strip_prefix("VmFlags: ") {
            let flags = flags.split_whitespace().map(str::to_owned).collect();
            mappings.last_mut().unwrap().flags = flags;
            continue;
        }
        let mut words = line.split_whitespace();
        let range = words.next().and_then(|word| word.split_once('-'));
        let Some((start, end)) = range else { continue };
        let parse = |text| u64::from_str_radix(text, 16);
        let (Ok(start), Ok(end)) = (parse(start), parse(end)) else { continue };
        let readable = words.next().is_some_and(|modes| modes.starts_with('r'));
        let name = words.nth(3).unwrap_or_default().to_owned();
        mappings.push(Mapping { start, end, flags: Vec::new(), readable, name });
    }
    Ok(mappings)
}

/// Where in a process's memory which of the needles occurs, and whether that is memory that is left
/// out of core dumps.
///
/// # Errors
///
/// If it can't be read.
///
/// # Panics
///
/// If a part of it is larger than can be.
pub fn search(pid: i32, needles: &[Vec<u8>]) -> io::Result<Vec<(String, bool)>> {
    search_in(pid, needles, |_| true)
}

/// The same in some parts of its memory.
///
/// # Errors
///
/// If it can't be read.
///
/// # Panics
///
/// If a part of it is larger than can be.
pub fn search_in(
    pid: i32,
    needles: &[Vec<u8>],
    part: impl Fn(&Mapping) -> bool,
) -> io::Result<Vec<(String, bool)>> {
    let memory = File::open(format!("/proc/{pid}/mem"))?;
    let mut found = Vec::new();
    for mapping in mappings(pid)?.iter().filter(|mapping| mapping.readable && part(mapping)) {
        let mut bytes = vec![0; usize::try_from(mapping.end - mapping.start).unwrap()];
        // Some special mappings can't be read.
        if memory.read_exact_at(&mut bytes, mapping.start).is_err() {
            continue;
        }
        for at in find_all(&bytes, needles) {
            let which = needles.iter().position(|needle| bytes[at..].starts_with(needle));
            let address = mapping.start + at as u64;
            let place = format!("needle {} at {address:x} {}", which.unwrap(), mapping.name);
            found.push((place, mapping.has("dd")));
        }
    }
    Ok(found)
}
