//! What names a key.

use envelope::{DataKey, KeyId, KeyName, KeyNameError, KeyVersion};

#[test]
fn names() {
    let longest = "z".repeat(63);
    for name in ["a", "0", "user_pii", "eu.user-pii_2", &longest] {
        assert_eq!(KeyName::parse(name).unwrap().as_str(), name);
    }
}

#[test]
fn refused_names() {
    for (name, why) in [
        ("", KeyNameError::Empty),
        (&"z".repeat(64), KeyNameError::TooLong),
        ("-rf", KeyNameError::FirstCharacter),
        ("../etc", KeyNameError::FirstCharacter),
        ("_a", KeyNameError::FirstCharacter),
        ("User", KeyNameError::FirstCharacter),
        ("\u{e9}", KeyNameError::FirstCharacter),
        ("a/b", KeyNameError::Character),
        ("aB", KeyNameError::Character),
        ("a b", KeyNameError::Character),
        ("a\n", KeyNameError::Character),
        ("a\0", KeyNameError::Character),
        ("a\u{e9}", KeyNameError::Character),
    ] {
        assert_eq!(KeyName::parse(name), Err(why), "{name:?}");
    }
}

/// `printf user_pii | sha256sum` begins with f44a33c1.
#[test]
fn the_id_is_31_bits_of_the_name_s_sha_256() {
    assert_eq!(KeyName::parse("user_pii").unwrap().id().get(), 0x744a_33c1);
}

#[test]
fn two_names_may_have_one_id() {
    let ids = ["user_pii", "kba8b256"].map(|name| KeyName::parse(name).unwrap().id());
    assert_eq!(ids[0], ids[1]);
}

#[test]
fn ids_are_below_2_to_the_31() {
    assert_eq!(KeyId::new(0x7fff_ffff).map(KeyId::get), Some(0x7fff_ffff));
    assert_eq!(KeyId::new(0x8000_0000), None);
}

#[test]
fn versions_are_postgresql_s_positive_integers() {
    assert_eq!(KeyVersion::new(0), None);
    assert_eq!(KeyVersion::new(1), Some(KeyVersion::FIRST));
    let last = KeyVersion::new(0x7fff_ffff).unwrap();
    assert_eq!(KeyVersion::new(0x8000_0000), None);
    assert_eq!(KeyVersion::FIRST.next(), KeyVersion::new(2));
    assert_eq!(last.next(), None);
}

#[test]
fn generated_keys_differ() {
    let keys = [DataKey::generate().unwrap(), DataKey::generate().unwrap()];
    assert_ne!(keys[0].expose(), keys[1].expose());
}
