//! No copy of a key outlives its cipher: the memory of this process is searched for them.
//!
//! This is about setting ciphers up and dropping them. Sealing and opening may spill round keys to
//! the stack, see `cipher.rs`.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]
#![cfg(target_os = "linux")]

#[path = "../../../tests/harness/src/skip.rs"]
mod skip;

use std::fs::{self, File};
use std::hint::black_box;
use std::os::unix::fs::FileExt;
use std::sync::mpsc;
use std::thread;

use envelope::{DataKey, KeyCipher, ValueCipher};
use zeroize::{Zeroize, zeroize_stack};

/// The salt for which [`SECRETS`] has the derived key.
const SALT: [u8; 12] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11];

/// The key, with every bit inverted so that this copy of it is not found.
const INVERTED_KEY: [u8; 32] = [
    0x19, 0x31, 0xdf, 0x14, 0x52, 0x3b, 0xae, 0xb6, 0x3f, 0xb4, 0xf2, 0x84, 0x16, 0x39, 0x75, 0xeb,
    0x55, 0x80, 0xb6, 0x6f, 0x78, 0xbf, 0x31, 0x07, 0xe7, 0x2f, 0x9a, 0xb7, 0x1f, 0x24, 0x02, 0x7d,
];

/// What is searched for, also inverted; made with another implementation. An AES-256 key is found
/// in its schedule too, being the first two round keys.
const SECRETS: [(&str, u128); 7] = [
    ("key, first half", 0x1931df14523baeb63fb4f284163975eb),
    ("key, second half", 0x5580b66f78bf3107e72f9ab71f24027d),
    ("CMAC's L", 0xd82269cc407e47c850e411803d5e01a2),
    ("CMAC's K1", 0xb044d39880fc8f90a1c823007abc0345),
    ("derived key, first half", 0xaed2f3e3a16420b75d3e0f71bed461d7),
    ("derived key, second half", 0x892d92ddbb9232b8eee269c01eba359c),
    ("GHASH's H", 0x4ec82113ecb956f0147e125cf1c5bc7b),
];

/// What each cipher consists of. The others are needed only to set it up: CMAC's L, and GHASH's H,
/// which is kept in another form.
const OF_KEY_CIPHER: [&str; 3] = ["key, first half", "key, second half", "CMAC's K1"];
const OF_VALUE_CIPHER: [&str; 2] = ["derived key, first half", "derived key, second half"];

/// What their owner overwrites after putting them in their place.
const OWN_STACK: usize = 4096;

/// Everything that handles keys runs in a thread that then waits, so that its dead stack frames
/// are still there to be searched.
#[test]
fn ciphers_leave_nothing_in_memory() {
    if !aes::hardware_accelerated() {
        let why = "without AES instructions a key schedule is bit-sliced and can't be recognized";
        return skip::skip("ciphers_leave_nothing_in_memory", why);
    }
    let (done, wait_until_done) = mpsc::sync_channel(0);
    let (go_on, wait_to_go_on) = mpsc::sync_channel(0);
    let owner = thread::spawn(move || {
        let pause = || {
            done.send(()).unwrap();
            wait_to_go_on.recv().unwrap();
        };
        let key = deep_in_the_stack(key_cipher);
        pause();
        let value = deep_in_the_stack(|| value_cipher(&key));
        pause();
        drop(value);
        pause();
        drop(key);
        pause();
    });
    let search_next = || {
        wait_until_done.recv().unwrap();
        let found = found();
        go_on.send(()).unwrap();
        found
    };

    assert_eq!(search_next(), OF_KEY_CIPHER);
    assert_eq!(search_next(), [OF_KEY_CIPHER.as_slice(), &OF_VALUE_CIPHER].concat());
    assert_eq!(search_next(), OF_KEY_CIPHER);
    assert_eq!(search_next(), [""; 0]);
    owner.join().unwrap();
}

/// Calls `f` where its frames are out of the way of what the thread does afterwards.
#[inline(never)]
fn deep_in_the_stack<T>(f: impl FnOnce() -> T) -> T {
    black_box([0; 32_768]);
    let result = f();
    black_box([0; 32_768]);
    result
}

/// Puts a cipher in its place as its owner should: what the move leaves behind is overwritten.
fn key_cipher() -> Box<KeyCipher> {
    #[inline(never)]
    fn place() -> Box<KeyCipher> {
        let mut bytes = INVERTED_KEY.map(|byte| !byte);
        let key = DataKey::new(bytes);
        bytes.zeroize();
        Box::new(KeyCipher::new(&key))
    }
    let cipher = place();
    zeroize_stack::<OWN_STACK>();
    cipher
}

fn value_cipher(key: &KeyCipher) -> Box<ValueCipher> {
    #[inline(never)]
    fn place(key: &KeyCipher) -> Box<ValueCipher> {
        Box::new(key.derive(&SALT))
    }
    let cipher = place(key);
    zeroize_stack::<OWN_STACK>();
    cipher
}

/// The secrets of which this process's writable memory has a copy.
fn found() -> Vec<&'static str> {
    let memory = File::open("/proc/self/mem").unwrap();
    let mut found = [false; SECRETS.len()];
    for line in fs::read_to_string("/proc/self/maps").unwrap().lines() {
        let mut fields = line.split_whitespace();
        let (start, end) = fields.next().unwrap().split_once('-').unwrap();
        if fields.next().unwrap().starts_with("rw") {
            let [start, end] = [start, end].map(|at| u64::from_str_radix(at, 16).unwrap());
            search(&memory, start, end, &mut found);
        }
    }
    SECRETS.iter().zip(found).filter(|(_, found)| *found).map(|((what, _), _)| *what).collect()
}

fn search(memory: &File, start: u64, end: u64, found: &mut [bool; SECRETS.len()]) {
    const STEP: usize = 1 << 16;
    const OVERLAP: usize = 15;
    let mut buffer = [0; STEP + OVERLAP];
    for at in (start..end).step_by(STEP) {
        // Some mappings, the kernel's own, can't be read this way.
        let Ok(read) = memory.read_at(&mut buffer, at) else { continue };
        for window in buffer[..read].windows(16) {
            let inverted = !u128::from_be_bytes(window.try_into().unwrap());
            for ((_, secret), found) in SECRETS.iter().zip(found.iter_mut()) {
                *found |= inverted == *secret;
            }
        }
        buffer.zeroize();
    }
}
