//! Sealing and opening, and everything that must not open.

mod common;

use common::{KEY, key, name, open, seal};
use envelope::{DataKey, Header, KeyCipher, KeyVersion, NonceSource, OpenError, PlaintextKind};
use envelope::{OVERHEAD, Sealed};

#[test]
fn what_was_sealed_opens() {
    let name = name("user_pii");
    for len in [0, 1, 15, 16, 17, 127, 128, 129, 1 << 20] {
        let plaintext: Vec<_> = (0..len).map(|i| i as u8).collect();
        let value = seal(PlaintextKind::Bytea, &name, &plaintext);
        assert_eq!(value.len(), len + OVERHEAD);
        assert_eq!(open(&key(), &name, &value), Ok(plaintext));
    }
}

#[test]
fn equal_plaintexts_give_unrelated_values() {
    let name = name("user_pii");
    let values = [0, 1].map(|_| seal(PlaintextKind::Text, &name, b"alice@example.com"));
    assert_ne!(values[0][10..22], values[1][10..22]);
    assert_ne!(values[0][34..], values[1][34..]);
}

#[test]
fn every_single_bit_counts() {
    let name = name("user_pii");
    for (kind, len) in [
        (PlaintextKind::Text, 0),
        (PlaintextKind::Text, 1),
        (PlaintextKind::Bytea, 16),
        (PlaintextKind::TextInDatabaseEncoding, 17),
        (PlaintextKind::Bytea, 300),
    ] {
        let value = seal(kind, &name, &vec![b'a'; len]);
        for bit in 0..value.len() * 8 {
            let mut altered = value.clone();
            altered[bit / 8] ^= 1 << (bit % 8);
            if Sealed::parse(&altered).is_ok() {
                assert_eq!(open(&key(), &name, &altered), Err(OpenError), "bit {bit}");
            } else {
                assert!(bit < 80, "bit {bit} is in what every parsed value may hold");
            }
        }
    }
}

#[test]
fn bytes_added_or_taken_away_are_refused() {
    let name = name("user_pii");
    let value = seal(PlaintextKind::Text, &name, b"alice@example.com");
    for len in OVERHEAD..value.len() {
        assert_eq!(open(&key(), &name, &value[..len]), Err(OpenError), "{len}");
    }
    let longer = [value.as_slice(), &[0]].concat();
    assert_eq!(open(&key(), &name, &longer), Err(OpenError));
    let mut without_first = value.clone();
    without_first.remove(34);
    assert_eq!(open(&key(), &name, &without_first), Err(OpenError));
}

#[test]
fn another_key_does_not_open() {
    let name = name("user_pii");
    let value = seal(PlaintextKind::Text, &name, b"alice@example.com");
    for bit in 0..KEY.len() * 8 {
        let mut other = KEY;
        other[bit / 8] ^= 1 << (bit % 8);
        let other = KeyCipher::new(&DataKey::new(other));
        assert_eq!(open(&other, &name, &value), Err(OpenError), "bit {bit}");
    }
}

#[test]
fn another_name_does_not_open_even_with_the_same_id() {
    let value = seal(PlaintextKind::Text, &name("user_pii"), b"alice@example.com");
    assert_eq!(name("user_pii").id(), name("kba8b256").id());
    for other in ["kba8b256", "user_pi", "user_pii2", "a"] {
        assert_eq!(open(&key(), &name(other), &value), Err(OpenError), "{other}");
    }
}

#[test]
fn a_value_can_not_be_relabelled() {
    let user_pii = name("user_pii");
    let value = seal(PlaintextKind::Text, &user_pii, b"alice@example.com");
    let relabelled = |range: std::ops::Range<usize>, with: &[u8]| {
        let mut value = value.clone();
        value[range].copy_from_slice(with);
        value
    };

    for kind in [2, 3] {
        let value = relabelled(1..2, &[kind]);
        assert_eq!(open(&key(), &user_pii, &value), Err(OpenError), "kind {kind}");
    }
    for version in [2, 3, 256, 1 << 24, i32::MAX] {
        let value = relabelled(6..10, &version.to_be_bytes());
        assert_eq!(open(&key(), &user_pii, &value), Err(OpenError), "version {version}");
    }
    let other = name("other");
    let value = relabelled(2..6, &other.id().get().to_be_bytes());
    assert_eq!(open(&key(), &other, &value), Err(OpenError));
    assert_eq!(open(&key(), &user_pii, &value), Err(OpenError));
}

#[test]
fn a_cipher_of_another_salt_does_not_open() {
    let name = name("user_pii");
    let value = seal(PlaintextKind::Text, &name, b"alice@example.com");
    let sealed = Sealed::parse(&value).unwrap();
    let mut salt = *sealed.salt();
    salt[11] ^= 1;
    let mut out = [0; 17];
    assert_eq!(key().derive(&salt).open(&sealed, &name, &mut out), Err(OpenError));
}

#[test]
fn a_failed_open_releases_nothing() {
    let name = name("user_pii");
    for len in [1, 16, 17, 1000] {
        let mut value = seal(PlaintextKind::Bytea, &name, &vec![b'a'; len]);
        *value.last_mut().unwrap() ^= 1;
        let sealed = Sealed::parse(&value).unwrap();
        let mut out = vec![0x5a; len];
        let cipher = key().derive(sealed.salt());
        assert_eq!(cipher.open(&sealed, &name, &mut out), Err(OpenError));
        assert_eq!(out, vec![0; len]);
    }
}

#[test]
fn a_value_opens_in_its_own_memory() {
    let name = name("user_pii");
    for (len, start) in [(0, 0), (0, 4), (1, 4), (16, 0), (33, 4), (100_000, 0), (100_000, 4)] {
        let plaintext: Vec<u8> = (0..len).map(|n| (n % 251) as u8).collect();
        let value = seal(PlaintextKind::Bytea, &name, &plaintext);
        let cipher = key().derive(Sealed::parse(&value).unwrap().salt());
        let mut memory = [&vec![0x5a; start], value.as_slice()].concat();
        assert_eq!(cipher.open_in_place(&name, &mut memory, start), Ok(()));
        assert_eq!(memory[..len], plaintext, "{len} bytes at {start}");

        let mut memory = [&vec![0x5a; start], value.as_slice()].concat();
        *memory.last_mut().unwrap() ^= 1;
        assert_eq!(cipher.open_in_place(&name, &mut memory, start), Err(OpenError));
        assert_eq!(memory, vec![0; start + value.len()], "{len} bytes at {start}");
    }
    let cipher = key().derive(&[0; 12]);
    for len in 0..OVERHEAD {
        let mut memory = vec![1; len];
        assert_eq!(cipher.open_in_place(&name, &mut memory, 0), Err(OpenError));
        assert_eq!(memory, vec![0; len]);
    }
}

#[test]
fn one_derived_cipher_serves_all_values_of_a_salt() {
    let name = name("user_pii");
    let mut nonces = NonceSource::new();
    let first = nonces.next(1, 4).unwrap();
    let cipher = key().derive(first.salt());
    for nonce in [first, nonces.next(1, 4).unwrap(), nonces.next(1, 4).unwrap()] {
        let kind = PlaintextKind::Text;
        let header =
            Header { kind, key_id: name.id(), key_version: KeyVersion::new(9).unwrap(), nonce };
        let mut value = [0xff; 54];
        cipher.seal(header, &name, b"abcd", &mut value).unwrap();
        assert_eq!(open(&key(), &name, &value), Ok(b"abcd".to_vec()));
    }
}

#[test]
#[should_panic(expected = "the value has its plaintext's length")]
fn seal_wants_room_for_exactly_one_value() {
    let name = name("user_pii");
    let nonce = NonceSource::new().next(1, 4).unwrap();
    let cipher = key().derive(nonce.salt());
    let header = Header {
        kind: PlaintextKind::Text,
        key_id: name.id(),
        key_version: KeyVersion::FIRST,
        nonce,
    };
    let _ = cipher.seal(header, &name, b"abcd", &mut [0; 55]);
}

#[test]
#[should_panic(expected = "the output has the plaintext's length")]
fn open_wants_room_for_exactly_the_plaintext() {
    let name = name("user_pii");
    let value = seal(PlaintextKind::Text, &name, b"abcd");
    let sealed = Sealed::parse(&value).unwrap();
    let cipher = key().derive(sealed.salt());
    let _ = cipher.open(&sealed, &name, &mut [0; 5]);
}

#[test]
fn debug_shows_no_secret() {
    let key = DataKey::new(KEY);
    let cipher = KeyCipher::new(&key);
    assert_eq!(format!("{key:?}"), "DataKey(..)");
    assert_eq!(format!("{cipher:?}"), "KeyCipher(..)");
    assert_eq!(format!("{:?}", cipher.derive(&[0; 12])), "ValueCipher(..)");
}
