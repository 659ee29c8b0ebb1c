use std::convert::Infallible;

use super::*;
use crate::cipher::KeyCipher;
use crate::key::{DataKey, KeyName};

type Ciphers = DerivedCiphers<Box<ValueCipher>>;

/// What the ciphers of a test are: their contents don't matter here, only how many are derived.
fn cipher() -> Box<ValueCipher> {
    Box::new(KeyCipher::new(&DataKey::new([7; 32])).derive(&[0; 12]))
}

/// Asks for a cipher and tells whether it had to be derived.
fn derives(ciphers: &mut Ciphers, key: &str, version: u32, salt: [u8; 12]) -> bool {
    let key_id = KeyName::parse(key).unwrap().id();
    let key_version = KeyVersion::new(version).unwrap();
    let mut derived = false;
    let derive = || {
        derived = true;
        Ok::<_, Infallible>(cipher())
    };
    ciphers.get_or_derive(key_id, key_version, &salt, derive).unwrap();
    derived
}

/// A salt that chooses the set with this number (of up to 2^32) for a given key.
fn salt(set: u32, n: u8) -> [u8; 12] {
    let mut salt = [n; 12];
    salt[..4].copy_from_slice(&set.to_be_bytes());
    salt
}

#[test]
fn a_cipher_is_derived_once() {
    let mut ciphers = Ciphers::new(64);
    assert!(derives(&mut ciphers, "k", 1, salt(0, 0)));
    assert!(!derives(&mut ciphers, "k", 1, salt(0, 0)));
    assert_eq!(ciphers.len(), 1);
}

#[test]
fn key_version_and_all_of_the_salt_tell_ciphers_apart() {
    let mut ciphers = Ciphers::new(4);
    assert!(derives(&mut ciphers, "k", 1, [0; 12]));
    assert!(derives(&mut ciphers, "l", 1, [0; 12]));
    assert!(derives(&mut ciphers, "k", 2, [0; 12]));
    let mut ciphers = Ciphers::new(64);
    assert!(derives(&mut ciphers, "k", 1, [0; 12]));
    for byte in 0..12 {
        let mut other = [0; 12];
        other[byte] = 1;
        assert!(derives(&mut ciphers, "k", 1, other), "byte {byte}");
    }
}

#[test]
fn the_returned_cipher_is_the_derived_one() {
    let mut ciphers = Ciphers::new(4);
    let key_id = KeyName::parse("k").unwrap().id();
    let derived = cipher();
    let address: *const ValueCipher = &*derived;
    let got = ciphers
        .get_or_derive(key_id, KeyVersion::FIRST, &[0; 12], || Ok::<_, Infallible>(derived))
        .unwrap();
    assert!(std::ptr::eq(&**got, address));
    let got = ciphers.get_or_derive(key_id, KeyVersion::FIRST, &[0; 12], || Err("not again"));
    assert!(std::ptr::eq(&**got.unwrap(), address));
}

#[test]
fn the_least_recently_used_of_a_set_makes_room() {
    let mut ciphers = Ciphers::new(4);
    for n in 0..4 {
        assert!(derives(&mut ciphers, "k", 1, salt(0, n)));
    }
    assert!(!derives(&mut ciphers, "k", 1, salt(0, 0)), "now 1 is the least recently used");
    assert!(derives(&mut ciphers, "k", 1, salt(0, 4)));
    for n in [0, 2, 3, 4] {
        assert!(!derives(&mut ciphers, "k", 1, salt(0, n)), "{n}");
    }
    assert!(derives(&mut ciphers, "k", 1, salt(0, 1)));
    assert_eq!(ciphers.len(), 4);
}

#[test]
fn a_set_that_thrashes_leaves_the_others_alone() {
    let mut ciphers = Ciphers::new(64);
    assert!(derives(&mut ciphers, "k", 1, salt(1, 0)));
    for n in 0..100 {
        assert!(derives(&mut ciphers, "k", 1, salt(0, n)));
    }
    assert!(!derives(&mut ciphers, "k", 1, salt(1, 0)));
    assert_eq!(ciphers.len(), 5);
}

#[test]
fn keys_that_share_a_salt_spread_over_the_sets() {
    let mut ciphers = Ciphers::new(1024);
    let keys: Vec<_> = (0..16).map(|n| format!("key{n}")).collect();
    for key in &keys {
        assert!(derives(&mut ciphers, key, 1, [9; 12]));
    }
    assert!(keys.iter().all(|key| !derives(&mut ciphers, key, 1, [9; 12])));
}

#[test]
fn a_failed_derivation_changes_nothing() {
    let mut ciphers = Ciphers::new(4);
    for n in 0..4 {
        derives(&mut ciphers, "k", 1, salt(0, n));
    }
    let key_id = KeyName::parse("k").unwrap().id();
    let failed = ciphers.get_or_derive(key_id, KeyVersion::FIRST, &salt(0, 9), || Err("denied"));
    assert_eq!(failed.err(), Some("denied"));
    assert!((0..4).all(|n| !derives(&mut ciphers, "k", 1, salt(0, n))));
}

#[test]
fn forget_drops_one_version() {
    let mut ciphers = Ciphers::new(64);
    for set in 0..8 {
        derives(&mut ciphers, "k", 1, salt(set, 0));
        derives(&mut ciphers, "k", 2, salt(set, 0));
    }
    ciphers.forget(KeyName::parse("k").unwrap().id(), KeyVersion::FIRST);
    assert_eq!(ciphers.len(), 8);
    assert!((0..8).all(|set| !derives(&mut ciphers, "k", 2, salt(set, 0))));
    assert!(derives(&mut ciphers, "k", 1, salt(0, 0)));
}

#[test]
fn a_forgotten_place_is_filled_before_another_is_emptied() {
    let mut ciphers = Ciphers::new(4);
    for version in 1..=4 {
        derives(&mut ciphers, "k", version, [0; 12]);
    }
    ciphers.forget(KeyName::parse("k").unwrap().id(), KeyVersion::new(3).unwrap());
    assert!(derives(&mut ciphers, "k", 5, [0; 12]));
    for version in [1, 2, 4, 5] {
        assert!(!derives(&mut ciphers, "k", version, [0; 12]), "{version}");
    }
}

#[test]
fn clear_drops_all() {
    let mut ciphers = Ciphers::new(64);
    derives(&mut ciphers, "k", 1, salt(0, 0));
    derives(&mut ciphers, "l", 2, salt(5, 0));
    ciphers.clear();
    assert!(ciphers.is_empty());
    assert!(derives(&mut ciphers, "k", 1, salt(0, 0)));
}

#[test]
fn capacity_is_never_exceeded() {
    for (asked, given) in [(0, 4), (1, 4), (4, 4), (7, 4), (8, 8), (1000, 512), (1024, 1024)] {
        assert_eq!(Ciphers::new(asked).capacity(), given, "{asked}");
    }
    let mut ciphers = Ciphers::new(8);
    for set in 0..100 {
        derives(&mut ciphers, "k", 1, salt(set, 0));
    }
    assert_eq!(ciphers.len(), 8);
}
