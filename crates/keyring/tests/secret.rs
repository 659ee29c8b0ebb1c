//! Memory for secrets, as the kernel sees it.

#![expect(clippy::panic, clippy::unwrap_used, reason = "a test fails by a panic")]

use std::fs;
use std::sync::Mutex;

use keyring::secret::{self, Secret};

/// What the kernel says of the pages that an address lies in (`VmFlags` of `/proc/PID/smaps`).
fn flags_of<T>(value: &T) -> Vec<String> {
    let address = std::ptr::from_ref(value).addr();
    let smaps = fs::read_to_string("/proc/self/smaps").unwrap();
    let mut is_inside = false;
    for line in smaps.lines() {
        let range = line.split(' ').next().and_then(|range| range.split_once('-'));
        let bounds = range.and_then(|(start, end)| {
            Some((usize::from_str_radix(start, 16).ok()?, usize::from_str_radix(end, 16).ok()?))
        });
        if let Some((start, end)) = bounds {
            is_inside = (start..end).contains(&address);
        }
        if let (true, Some(flags)) = (is_inside, line.strip_prefix("VmFlags:")) {
            return flags.split_whitespace().map(str::to_owned).collect();
        }
    }
    panic!("{address:x} is not mapped");
}

/// The counts are those of the process, and the tests are threads of one.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

#[test]
fn pages_are_locked_left_out_of_dumps_and_wiped_on_fork() {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(|e| e.into_inner());
    let secret = Secret::new([0x5a_u8; 400]);
    let flags = flags_of(&*secret);
    let has = |flag: &str| flags.iter().any(|f| f == flag);
    assert!(has("dd"), "not left out of core dumps: {flags:?}");
    assert!(has("wf"), "not wiped on fork: {flags:?}");
    assert_eq!(has("lo"), Secret::is_locked(&secret), "{flags:?}");
    assert!(Secret::is_locked(&secret), "the limit on locked memory is below one page");
    let ordinary = Box::new([0_u8; 400]);
    assert!(!flags_of(&*ordinary).iter().any(|f| f == "dd"));
}

#[test]
fn a_forked_child_sees_zeroes_and_may_drop_what_it_sees() {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(|e| e.into_inner());
    let secret = Secret::new(Box::new([0x5a_u8; 64]));
    let bytes = Secret::new([0x5a_u8; 64]);
    assert!(secret::owned_by_this_process());
    // SAFETY: the child makes system calls, reads memory, makes a secret of its own (with the lock
    // of the arena free: no other test of this file runs) and leaves by `_exit`.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let is_wiped = bytes.iter().all(|b| *b == 0);
        let is_known = !secret::owned_by_this_process();
        let is_empty = secret::statistics().slots_in_use == 0;
        // The box is a null pointer here: its own drop would end the process.
        drop(secret);
        let own = Secret::new([7_u8; 64]);
        let is_usable = *own == [7; 64] && secret::statistics().slots_in_use == 1;
        drop(bytes);
        let is_separate = *own == [7; 64] && secret::statistics().slots_in_use == 1;
        drop(own);
        let is_good = is_wiped && is_known && is_empty && is_usable && is_separate;
        // SAFETY: it runs nothing of this process and does not return.
        unsafe { libc::_exit(i32::from(!is_good)) };
    }
    assert!(child > 0);
    let mut status = 0;
    // SAFETY: `status` is a valid place to write to.
    assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
    assert!(libc::WIFEXITED(status), "the child was ended by signal {}", libc::WTERMSIG(status));
    assert_eq!(libc::WEXITSTATUS(status), 0);
    assert_eq!(**secret, [0x5a; 64]);
}

#[test]
fn a_slot_is_wiped_when_its_value_is_dropped() {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(|e| e.into_inner());
    // A neighbour keeps the page mapped.
    let neighbour = Secret::new([0x11_u8; 400]);
    let secret = Secret::new([0x5a_u8; 400]);
    let slot: *const [u8; 400] = &raw const *secret;
    assert_eq!(slot.addr() / 4096, (&raw const *neighbour).addr() / 4096);
    drop(secret);
    // SAFETY: the page is mapped as long as the neighbour is there, and nobody has taken the slot.
    let left = unsafe { slot.read_volatile() };
    assert_eq!(left, [0; 400]);
    assert_eq!(*neighbour, [0x11; 400]);
}

#[test]
fn a_thousand_ciphers_take_less_than_a_mebibyte() {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(|e| e.into_inner());
    let before = secret::statistics();
    let mut secrets: Vec<_> = (0..1000_u32).map(|i| Secret::new([i; 100])).collect();
    let full = secret::statistics();
    let used = |s: secret::Statistics| s.locked_bytes + s.unlocked_bytes;
    let bytes = used(full) - used(before);
    assert!(bytes < 1 << 20, "{bytes} bytes");
    assert_eq!(full.slots_in_use - before.slots_in_use, 1000);
    for (i, secret) in (0..1000_u32).zip(&secrets) {
        assert_eq!(**secret, [i; 100]);
    }
    // Half of them go, and as many others take their places.
    let mut even = 0;
    secrets.retain(|_| {
        even += 1;
        even % 2 == 0
    });
    secrets.extend((0..500).map(|i| Secret::new([i; 100])));
    assert!(used(secret::statistics()) <= used(full));
    drop(secrets);
    assert_eq!(secret::statistics().slots_in_use, before.slots_in_use);
    assert!(used(secret::statistics()) <= used(before) + 4096);
}

#[test]
fn values_of_any_size_fit() {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(|e| e.into_inner());
    #[repr(align(64))]
    struct Aligned([u8; 3]);

    let empty = Secret::new(());
    let small = Secret::new(7_u8);
    let aligned = Secret::new(Aligned([1, 2, 3]));
    let page = Secret::new([3_u8; 4096]);
    let large = Secret::new([4_u8; 10_000]);
    let () = *empty;
    assert_eq!((*small, aligned.0), (7, [1, 2, 3]));
    assert_eq!((*page, *large), ([3; 4096], [4; 10_000]));
    assert_eq!((&raw const *aligned).addr() % 64, 0);
}

#[test]
fn the_value_is_dropped_once_and_not_shown() {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(|e| e.into_inner());
    let shared = std::rc::Rc::new(());
    let mut secret = Secret::new((std::rc::Rc::clone(&shared), 5));
    secret.1 += 1;
    assert_eq!((secret.1, std::rc::Rc::strong_count(&shared)), (6, 2));
    assert_eq!(format!("{secret:?}"), "Secret(..)");
    drop(secret);
    assert_eq!(std::rc::Rc::strong_count(&shared), 1);
}
