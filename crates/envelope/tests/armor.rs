//! Values as text.

mod common;

use common::{name, seal};
use envelope::armor::{decode, encode, looks_like_armor};
use envelope::{ArmorError, PlaintextKind};

#[test]
fn known_answers() {
    for (payload, armor) in [
        (b"".as_slice(), "enc:1:"),
        (b"f", "enc:1:Zg"),
        (b"fo", "enc:1:Zm8"),
        (b"foo", "enc:1:Zm9v"),
        (b"\xfb\xff\xbf", "enc:1:-_-_"),
    ] {
        assert_eq!(encode(payload), armor);
        assert_eq!(decode(armor.as_bytes()).as_deref(), Ok(payload));
    }
}

#[test]
fn refused() {
    for (armor, error) in [
        ("", ArmorError::Prefix),
        ("enc:1", ArmorError::Prefix),
        ("enc:2:Zm9v", ArmorError::Prefix),
        ("ENC:1:Zm9v", ArmorError::Prefix),
        (" enc:1:Zm9v", ArmorError::Prefix),
        ("enc:1:Zg==", ArmorError::Base64),
        ("enc:1:Z", ArmorError::Base64),
        ("enc:1:Zh", ArmorError::Base64),
        ("enc:1:Zm9", ArmorError::Base64),
        ("enc:1:Zm9v\n", ArmorError::Base64),
        ("enc:1: Zm9v", ArmorError::Base64),
        ("enc:1:+/+/", ArmorError::Base64),
        ("enc:1:Zm9\u{e9}", ArmorError::Base64),
        ("enc:1:Zm\09", ArmorError::Base64),
    ] {
        assert_eq!(decode(armor.as_bytes()), Err(error), "{armor:?}");
    }
}

#[test]
fn armor_of_a_value_is_recognized() {
    for plaintext in [b"".as_slice(), b"a", b"alice@example.com"] {
        let value = seal(PlaintextKind::Text, &name("user_pii"), plaintext);
        assert!(looks_like_armor(encode(&value).as_bytes()));
        assert_eq!(decode(encode(&value).as_bytes()), Ok(value));
    }
}

#[test]
fn other_text_is_not_taken_for_armor() {
    let value = seal(PlaintextKind::Text, &name("user_pii"), b"");
    let armor = encode(&value);
    let of_other_format = encode(&[[2].as_slice(), &value[1..]].concat());
    for text in [
        "",
        "alice@example.com",
        "enc:1:",
        "enc:1:Zm9v",
        "enc:1:hello, world",
        &armor[..armor.len() - 2],
        &armor[1..],
        &format!("{armor}\n"),
        &of_other_format,
    ] {
        assert!(!looks_like_armor(text.as_bytes()), "{text:?}");
    }
}
