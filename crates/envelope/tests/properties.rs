//! What holds for all inputs.

mod common;

use common::{key, name, open, seal};
use envelope::{HEADER_LEN, Header, PlaintextKind, Sealed, armor};
use proptest::collection::vec;
use proptest::prelude::*;

fn kind() -> impl Strategy<Value = PlaintextKind> {
    prop_oneof![
        Just(PlaintextKind::Text),
        Just(PlaintextKind::Bytea),
        Just(PlaintextKind::TextInDatabaseEncoding),
    ]
}

proptest! {
    #[test]
    fn what_was_sealed_opens(
        kind in kind(),
        key_name in "[a-z0-9][a-z0-9_.-]{0,62}",
        plaintext in vec(any::<u8>(), 0..10_000),
    ) {
        let name = name(&key_name);
        let value = seal(kind, &name, &plaintext);
        prop_assert_eq!(Sealed::parse(&value).unwrap().kind(), kind);
        prop_assert_eq!(open(&key(), &name, &value), Ok(plaintext));
    }

    #[test]
    fn armor_keeps_every_byte(payload in vec(any::<u8>(), 0..10_000)) {
        let armor = armor::encode(&payload);
        prop_assert_eq!(armor::decode(armor.as_bytes()), Ok(payload));
    }

    /// No two texts are armor of the same bytes.
    #[test]
    fn armor_is_the_only_one(base64 in "[A-Za-z0-9_-]{0,40}") {
        let text = format!("enc:1:{base64}");
        if let Ok(payload) = armor::decode(text.as_bytes()) {
            prop_assert_eq!(armor::encode(&payload), text);
        }
    }

    #[test]
    fn any_bytes_can_be_parsed(bytes in vec(any::<u8>(), 0..200)) {
        parse(&bytes)?;
    }

    /// The same with a beginning that gets the bytes past the first checks.
    #[test]
    fn any_bytes_that_begin_like_a_value_can_be_parsed(
        kind in 0..5u8,
        key_id in 0..2u8,
        rest in vec(any::<u8>(), 0..200),
    ) {
        parse(&[&[1, kind, key_id << 7], rest.as_slice()].concat())?;
    }
}

/// Parses `bytes`, and if they are a value, puts it together again.
fn parse(bytes: &[u8]) -> Result<(), TestCaseError> {
    let header = Header::parse(bytes);
    let Ok(sealed) = Sealed::parse(bytes) else { return Ok(()) };
    let header = header.expect("what begins a value is a header");
    prop_assert_eq!(
        (sealed.kind(), sealed.key_id(), sealed.key_version(), sealed.salt()),
        (header.kind, header.key_id, header.key_version, header.nonce.salt())
    );
    let mut written = [0; HEADER_LEN];
    header.write(&mut written);
    prop_assert_eq!(&written, &bytes[..HEADER_LEN]);
    prop_assert_eq!(sealed.ciphertext(), &bytes[HEADER_LEN..bytes.len() - 16]);
    Ok(())
}
