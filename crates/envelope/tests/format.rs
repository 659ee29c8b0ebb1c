//! The layout of values.

mod common;

use common::{name, seal};
use envelope::{
    FormatError, HEADER_LEN, Header, KeyVersion, NONCE_LEN, OVERHEAD, PlaintextKind, SALT_LEN,
    Sealed, TAG_LEN,
};

fn value() -> Vec<u8> {
    seal(PlaintextKind::Text, &name("user_pii"), b"alice@example.com")
}

#[test]
fn lengths() {
    assert_eq!((SALT_LEN, NONCE_LEN, HEADER_LEN, TAG_LEN, OVERHEAD), (12, 24, 34, 16, 50));
    assert_eq!(value().len(), 17 + 50);
}

#[test]
fn header_fields() {
    let value = value();
    assert_eq!(value[..10], *b"\x01\x01\x74\x4a\x33\xc1\x00\x00\x00\x01");
    let header = Header::parse(&value[..HEADER_LEN]).unwrap();
    assert_eq!(header.kind, PlaintextKind::Text);
    assert_eq!(header.key_id, name("user_pii").id());
    assert_eq!(header.key_version, KeyVersion::FIRST);
    assert_eq!(header.nonce.salt(), &value[10..22]);
    assert_eq!(header.nonce.counter(), &value[22..34]);
}

#[test]
fn a_written_header_reads_the_same() {
    for kind in [PlaintextKind::Text, PlaintextKind::Bytea, PlaintextKind::TextInDatabaseEncoding] {
        let value = seal(kind, &name("k"), b"");
        let header = Header::parse(&value).unwrap();
        let mut written = [0; HEADER_LEN];
        header.write(&mut written);
        assert_eq!(written, value[..HEADER_LEN]);
        assert_eq!(Header::parse(&written), Ok(header));
    }
}

#[test]
fn a_value_falls_into_header_ciphertext_and_tag() {
    let value = value();
    let sealed = Sealed::parse(&value).unwrap();
    let header = Header::parse(&value).unwrap();
    assert_eq!(
        (sealed.kind(), sealed.key_id(), sealed.key_version(), sealed.salt()),
        (header.kind, header.key_id, header.key_version, header.nonce.salt())
    );
    assert_eq!(sealed.ciphertext(), &value[34..51]);
    assert_eq!(sealed.plaintext_len(), 17);
}

#[test]
fn every_truncation_is_refused() {
    let value = seal(PlaintextKind::Text, &name("k"), b"");
    assert_eq!(value.len(), OVERHEAD);
    for len in 0..OVERHEAD {
        assert_eq!(Sealed::parse(&value[..len]).err(), Some(FormatError::Truncated), "{len}");
    }
    for len in 0..HEADER_LEN {
        assert_eq!(Header::parse(&value[..len]), Err(FormatError::Truncated), "{len}");
    }
}

#[test]
fn every_other_format_is_refused() {
    let mut value = value();
    for format in (0..=u8::MAX).filter(|format| *format != 1) {
        value[0] = format;
        let error = FormatError::UnsupportedFormat(format);
        assert_eq!(Sealed::parse(&value).err(), Some(error));
        assert_eq!(Header::parse(&value), Err(error));
        assert_eq!(Header::parse(&[format]), Err(error), "whatever follows");
    }
}

#[test]
fn every_other_kind_and_every_flag_is_refused() {
    let mut value = value();
    for byte in 0..=u8::MAX {
        value[1] = byte;
        let expected = match byte {
            1 => Ok(PlaintextKind::Text),
            2 => Ok(PlaintextKind::Bytea),
            3 => Ok(PlaintextKind::TextInDatabaseEncoding),
            _ => Err(FormatError::UnsupportedKind(byte)),
        };
        assert_eq!(Header::parse(&value).map(|header| header.kind), expected);
    }
}

#[test]
fn a_key_id_of_32_bits_is_refused() {
    let mut value = value();
    value[2] |= 0x80;
    assert_eq!(Sealed::parse(&value).err(), Some(FormatError::InvalidKeyId));
}

#[test]
fn a_key_version_that_is_no_positive_integer_is_refused() {
    let mut value = value();
    for version in [0, 0x8000_0000, u32::MAX] {
        value[6..10].copy_from_slice(&version.to_be_bytes());
        assert_eq!(Sealed::parse(&value).err(), Some(FormatError::InvalidKeyVersion));
    }
}

#[test]
fn messages() {
    for (error, message) in [
        (FormatError::Truncated, "encrypted value is truncated"),
        (FormatError::UnsupportedFormat(2), "encrypted value has unsupported format 2"),
        (
            FormatError::UnsupportedKind(0x81),
            "encrypted value has unsupported plaintext kind or flags 0x81",
        ),
        (FormatError::InvalidKeyId, "encrypted value has an invalid key id"),
        (FormatError::InvalidKeyVersion, "encrypted value has an invalid key version"),
    ] {
        assert_eq!(error.to_string(), message);
    }
}
