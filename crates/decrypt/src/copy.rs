//! COPY's text format: fields between tabs, rows in lines (PostgreSQL's documentation of COPY, "Text
//! Format"; src/backend/commands/copyto.c, CopyAttributeOutText; copyfromparse.c, CopyReadAttributesText).

/// The text of a field without COPY's backslashes.
pub fn unescape(field: &[u8], out: &mut Vec<u8>) {
    let mut rest = field;
    while let Some(at) = memchr::memchr(b'\\', rest) {
        out.extend_from_slice(&rest[..at]);
        rest = &rest[at + 1..];
        rest = unescape_one(rest, out);
    }
    out.extend_from_slice(rest);
}

/// Reads what follows a backslash, and gives what follows that.
fn unescape_one<'a>(rest: &'a [u8], out: &mut Vec<u8>) -> &'a [u8] {
    let Some((&byte, after)) = rest.split_first() else {
        out.push(b'\\');
        return rest;
    };
    let digits = |text: &[u8], most: usize, is_digit: fn(&u8) -> bool| {
        text.iter().take(most).take_while(|b| is_digit(b)).count()
    };
    let number = |digits: &[u8], radix: u32| {
        let value = digits.iter().fold(0, |value, digit| {
            value * radix + char::from(*digit).to_digit(radix).unwrap_or_default()
        });
        u8::try_from(value & 0xff).unwrap_or_default()
    };
    let plain = match byte {
        b'b' => 0x08,
        b'f' => 0x0c,
        b'n' => b'\n',
        b'r' => b'\r',
        b't' => b'\t',
        b'v' => 0x0b,
        b'0'..=b'7' => {
            let len = digits(rest, 3, |b| matches!(b, b'0'..=b'7'));
            out.push(number(&rest[..len], 8));
            return &rest[len..];
        }
        b'x' => match digits(after, 2, u8::is_ascii_hexdigit) {
            0 => b'x',
            len => {
                out.push(number(&after[..len], 16));
                return &after[len..];
            }
        },
        other => other,
    };
    out.push(plain);
    after
}

/// Writes a text as a field, as PostgreSQL does.
pub fn escape(text: &[u8], out: &mut Vec<u8>) {
    for &byte in text {
        let letter = match byte {
            0x08 => b'b',
            0x0c => b'f',
            b'\n' => b'n',
            b'\r' => b'r',
            b'\t' => b't',
            0x0b => b'v',
            b'\\' => b'\\',
            other => {
                out.push(other);
                continue;
            }
        };
        out.extend_from_slice(&[b'\\', letter]);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn unescaped(field: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        unescape(field, &mut out);
        out
    }

    fn escaped(text: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        escape(text, &mut out);
        out
    }

    #[test]
    fn fields_are_escaped_as_postgresql_does() {
        assert_eq!(escaped(b"a\tb\nc\rd\\e\x08\x0b\x0c'\""), br#"a\tb\nc\rd\\e\b\v\f'""#);
        assert_eq!(escaped(br"\x0102"), br"\\x0102");
        assert_eq!(escaped("é".as_bytes()), "é".as_bytes());
    }

    #[test]
    fn fields_are_read_as_postgresql_does() {
        for (field, text) in [
            (&br"\101\7\1234\x41\x4\xg\q\."[..], &b"A\x07S4A\x04xgq."[..]),
            (br"\\x01", br"\x01"),
            (br"\377", b"\xff"),
            (br"\", br"\"),
        ] {
            assert_eq!(unescaped(field), text, "{}", field.escape_ascii());
        }
    }

    proptest! {
        #[test]
        fn a_field_is_read_as_it_was_written(text: Vec<u8>) {
            let field = escaped(&text);
            prop_assert!(!field.iter().any(|b| b"\t\n\r".contains(b)));
            prop_assert_eq!(unescaped(&field), text);
        }
    }
}
