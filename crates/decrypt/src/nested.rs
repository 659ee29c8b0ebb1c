//! Values inside of other values' text form: elements of arrays, fields of composite types, bounds of
//! ranges and multiranges, at any depth.
//!
//! Armor has none of the characters that need quotes in these forms, a plaintext may have all of them.
//! So a text is taken apart where it holds armor, and put together again with the quotes that its new
//! parts need, level by level. What holds no armor is kept as it was written.

use memchr::memmem;

use crate::error::Error;

/// What ciphertext in text form begins with.
pub const ARMOR_PREFIX: &[u8] = b"enc:1:";

/// Puts the plaintext of some armor at the end of a buffer, in the text form of its type; or leaves the
/// buffer as it is and says `false`: the armor is to stay.
pub type Replace<'a> = dyn FnMut(&[u8], &mut Vec<u8>) -> Result<bool, Error> + 'a;

/// What became of a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It has other text now, which was put at the end of the buffer.
    Replaced,
    /// It stays. The buffer is as it was.
    Unchanged,
    /// It stays, and has armor in a place where no value can stand. The buffer is as it was.
    Stray,
}

/// Whether armor may be somewhere in the text.
pub fn may_hold_armor(text: &[u8]) -> bool {
    memmem::find(text, ARMOR_PREFIX).is_some()
}

/// Replaces armor in a value's text form.
pub fn transform(
    text: &[u8],
    replace: &mut Replace<'_>,
    out: &mut Vec<u8>,
) -> Result<Outcome, Error> {
    if text.starts_with(ARMOR_PREFIX) {
        return Ok(match replace(text, out)? {
            true => Outcome::Replaced,
            false => Outcome::Unchanged,
        });
    }
    if !may_hold_armor(text) {
        return Ok(Outcome::Unchanged);
    }
    // First whether it is such a form to its end, so that nothing is opened in what is none.
    let Some(form) = Form::of(text) else { return Ok(Outcome::Stray) };
    let start = out.len();
    let mut part = |text: &[u8], out: &mut Vec<u8>| transform(text, replace, out);
    let outcome = form.rewrite(text, &mut part, out)?.unwrap_or(Outcome::Stray);
    if outcome != Outcome::Replaced {
        out.truncate(start);
    }
    Ok(outcome)
}

/// What is done with an element, a field or a bound.
type Part<'a> = dyn FnMut(&[u8], &mut Vec<u8>) -> Result<Outcome, Error> + 'a;

/// The forms that have values in them.
#[derive(Clone, Copy)]
enum Form {
    Multirange,
    Array,
    RowOrRange,
}

impl Form {
    /// The form of a text.
    fn of(text: &[u8]) -> Option<Self> {
        let mut leave = |_: &[u8], _: &mut Vec<u8>| Ok(Outcome::Unchanged);
        let mut is =
            |form: Self| matches!(form.rewrite(text, &mut leave, &mut Vec::new()), Ok(Some(_)));
        [Self::Multirange, Self::Array, Self::RowOrRange].into_iter().find(|form| is(*form))
    }

    /// Writes the text with its parts replaced. `None`, after part of it was written, if it has
    /// another form.
    fn rewrite(
        self,
        text: &[u8],
        part: &mut Part<'_>,
        out: &mut Vec<u8>,
    ) -> Result<Option<Outcome>, Error> {
        match self {
            Self::Multirange => multirange(text, part, out),
            Self::Array => array(text, part, out),
            Self::RowOrRange => row(text, part, out),
        }
    }
}

/// The outcome of a whole of which one part has this outcome.
fn join(whole: Outcome, part: Outcome) -> Outcome {
    match (whole, part) {
        (Outcome::Replaced, _) | (_, Outcome::Replaced) => Outcome::Replaced,
        (Outcome::Stray, _) | (_, Outcome::Stray) => Outcome::Stray,
        _ => Outcome::Unchanged,
    }
}

/// PostgreSQL's array_out (src/backend/utils/adt/arrayfuncs.c), for the delimiter of all types but
/// `box`. `None` if the text is no array.
fn array(text: &[u8], part: &mut Part<'_>, out: &mut Vec<u8>) -> Result<Option<Outcome>, Error> {
    let mut outcome = Outcome::Unchanged;
    let mut at = 0;
    if text.first() == Some(&b'[') {
        let Some(equals) = memchr::memchr(b'=', text) else { return Ok(None) };
        let is_dimension = |b: &u8| b.is_ascii_digit() || b"[]:+-".contains(b);
        if !text[..equals].iter().all(is_dimension) {
            return Ok(None);
        }
        at = equals + 1;
        out.extend_from_slice(&text[..at]);
    }
    if text.get(at) != Some(&b'{') {
        return Ok(None);
    }
    let mut depth = 0_usize;
    let mut element = Vec::new();
    while at < text.len() {
        match text[at] {
            b'{' => depth += 1,
            b'}' => {
                depth = match depth.checked_sub(1) {
                    Some(0) if at + 1 != text.len() => return Ok(None),
                    Some(depth) => depth,
                    None => return Ok(None),
                };
            }
            b',' => {}
            _ => {
                element.clear();
                let Some(end) = array_element(text, at, &mut element) else { return Ok(None) };
                let raw = &text[at..end];
                let mut replaced = Vec::new();
                let element_outcome = part(&element, &mut replaced)?;
                match element_outcome {
                    Outcome::Replaced => quote_array_element(&replaced, out),
                    _ => out.extend_from_slice(raw),
                }
                outcome = join(outcome, element_outcome);
                at = end;
                continue;
            }
        }
        out.push(text[at]);
        at += 1;
    }
    Ok((depth == 0).then_some(outcome))
}

/// Reads the element that begins at `at`, and gives where it ends.
fn array_element(text: &[u8], mut at: usize, element: &mut Vec<u8>) -> Option<usize> {
    let mut is_quoted = false;
    loop {
        match *text.get(at)? {
            b'"' => is_quoted = !is_quoted,
            b'\\' => {
                at += 1;
                element.push(*text.get(at)?);
            }
            b'{' if !is_quoted => return None,
            b',' | b'}' if !is_quoted => return Some(at),
            byte => element.push(byte),
        }
        at += 1;
    }
}

fn quote_array_element(element: &[u8], out: &mut Vec<u8>) {
    let needs_quotes = element.is_empty()
        || element.eq_ignore_ascii_case(b"null")
        || element.iter().any(|b| is_space(*b) || b"\"\\{},".contains(b));
    if !needs_quotes {
        return out.extend_from_slice(element);
    }
    out.push(b'"');
    for &byte in element {
        if matches!(byte, b'"' | b'\\') {
            out.push(b'\\');
        }
        out.push(byte);
    }
    out.push(b'"');
}

/// PostgreSQL's record_out (src/backend/utils/adt/rowtypes.c) and range_out (rangetypes.c), which
/// quote alike. `None` if the text is neither.
fn row(text: &[u8], part: &mut Part<'_>, out: &mut Vec<u8>) -> Result<Option<Outcome>, Error> {
    let [open @ (b'(' | b'['), fields @ .., close @ (b')' | b']')] = text else { return Ok(None) };
    let is_range = (*open, *close) != (b'(', b')');
    let mut outcome = Outcome::Unchanged;
    let mut count = 0;
    let mut at = 0;
    let mut field = Vec::new();
    out.push(*open);
    loop {
        field.clear();
        let Some(end) = row_field(fields, at, &mut field) else { return Ok(None) };
        let mut replaced = Vec::new();
        let field_outcome = part(&field, &mut replaced)?;
        match field_outcome {
            Outcome::Replaced => quote_row_field(&replaced, out),
            _ => out.extend_from_slice(&fields[at..end]),
        }
        outcome = join(outcome, field_outcome);
        count += 1;
        if end == fields.len() {
            break;
        }
        out.push(b',');
        at = end + 1;
    }
    out.push(*close);
    Ok((!is_range || count == 2).then_some(outcome))
}

/// Reads the field that begins at `at`, and gives where it ends.
fn row_field(fields: &[u8], mut at: usize, field: &mut Vec<u8>) -> Option<usize> {
    let mut is_quoted = false;
    while at < fields.len() {
        match fields[at] {
            b'"' if is_quoted && fields.get(at + 1) == Some(&b'"') => {
                field.push(b'"');
                at += 1;
            }
            b'"' => is_quoted = !is_quoted,
            b'\\' => {
                at += 1;
                field.push(*fields.get(at)?);
            }
            b'(' | b')' if !is_quoted => return None,
            b',' if !is_quoted => return Some(at),
            byte => field.push(byte),
        }
        at += 1;
    }
    (!is_quoted).then_some(at)
}

fn quote_row_field(field: &[u8], out: &mut Vec<u8>) {
    let needs_quotes =
        field.is_empty() || field.iter().any(|b| is_space(*b) || b"\"\\()[],".contains(b));
    if !needs_quotes {
        return out.extend_from_slice(field);
    }
    out.push(b'"');
    for &byte in field {
        if matches!(byte, b'"' | b'\\') {
            out.push(byte);
        }
        out.push(byte);
    }
    out.push(b'"');
}

/// PostgreSQL's multirange_out (src/backend/utils/adt/multirangetypes.c): ranges without quotes of
/// their own, between braces. `None` if the text is none. (An array quotes an element with a comma.)
fn multirange(
    text: &[u8],
    part: &mut Part<'_>,
    out: &mut Vec<u8>,
) -> Result<Option<Outcome>, Error> {
    let [b'{', ranges @ .., b'}'] = text else { return Ok(None) };
    let mut outcome = Outcome::Unchanged;
    let mut at = 0;
    out.push(b'{');
    loop {
        let Some(end) = range_end(ranges, at) else { return Ok(None) };
        let range = &ranges[at..end];
        let Some(range_outcome) = row(range, part, out)? else { return Ok(None) };
        outcome = join(outcome, range_outcome);
        match ranges.get(end) {
            Some(b',') => out.push(b','),
            Some(_) => return Ok(None),
            None => break,
        }
        at = end + 1;
    }
    out.push(b'}');
    Ok(Some(outcome))
}

/// Where the range that begins at `at` ends, if it has two bounds.
fn range_end(ranges: &[u8], mut at: usize) -> Option<usize> {
    if !matches!(ranges.get(at)?, b'[' | b'(') {
        return None;
    }
    let (mut is_quoted, mut commas) = (false, 0);
    loop {
        at += 1;
        match *ranges.get(at)? {
            b'"' => is_quoted = !is_quoted,
            b'\\' => at += 1,
            b',' if !is_quoted => commas += 1,
            b')' | b']' if !is_quoted => return (commas == 1).then_some(at + 1),
            _ => {}
        }
    }
}

/// PostgreSQL's array_isspace, and isspace in the locale C.
fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r' | 0x0b | 0x0c)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Armor with a number for a plaintext.
    fn armor(n: usize) -> String {
        format!("enc:1:AQ{n}_-")
    }

    /// The text with each armor replaced by the plaintext of its number.
    fn replaced(text: &str, plaintexts: &[&str]) -> (Outcome, String) {
        let mut out = b"before".to_vec();
        let mut replace = |armor: &[u8], out: &mut Vec<u8>| {
            let armor = std::str::from_utf8(armor).unwrap();
            let n = armor.strip_prefix("enc:1:AQ").unwrap().strip_suffix("_-").unwrap();
            out.extend_from_slice(plaintexts[n.parse::<usize>().unwrap()].as_bytes());
            Ok(true)
        };
        let outcome = transform(text.as_bytes(), &mut replace, &mut out).unwrap();
        (outcome, String::from_utf8(out.split_off(6)).unwrap())
    }

    fn expect(text: &str, plaintexts: &[&str], expected: &str) {
        let (outcome, out) = replaced(text, plaintexts);
        assert_eq!((outcome, out.as_str()), (Outcome::Replaced, expected), "{text}");
    }

    #[test]
    fn a_value_by_itself() {
        expect(&armor(0), &["a, \"b\" \\ {c}"], "a, \"b\" \\ {c}");
        expect(&armor(0), &[""], "");
    }

    /// As PostgreSQL 15 prints `ARRAY[…]::text[]` and so on.
    #[test]
    fn arrays_are_quoted_as_postgresql_does() {
        let (a, b, c) = (armor(0), armor(1), armor(2));
        expect(&format!("{{{a},NULL,{b}}}"), &["x", "null"], "{x,NULL,\"null\"}");
        expect(&format!("{{{a},{b}}}"), &["", "a\"b\\c"], r#"{"","a\"b\\c"}"#);
        expect(
            &format!("{{{{{a},{b}}},{{{c},\"p q\"}}}}"),
            &["1,2", "{", "\t"],
            "{{\"1,2\",\"{\"},{\"\t\",\"p q\"}}",
        );
        expect(&format!("[0:1]={{{a},{b}}}"), &["x", "y z"], r#"[0:1]={x,"y z"}"#);
        expect(&format!("{{{a}}}"), &[r"\x0102"], r#"{"\\x0102"}"#);
    }

    /// As PostgreSQL 15 prints `ROW(…)`.
    #[test]
    fn composite_types_are_quoted_as_postgresql_does() {
        let (a, b) = (armor(0), armor(1));
        expect(&format!("({a},5,,\"p q\")"), &["x"], "(x,5,,\"p q\")");
        expect(&format!("({a},{b})"), &["", "a\"b\\c"], r#"("","a""b\\c")"#);
        expect(&format!("({a})"), &["(x)"], "(\"(x)\")");
        expect(&format!("({a})"), &[r"\x0102"], r#"("\\x0102")"#);
    }

    #[test]
    fn levels_are_quoted_one_by_one() {
        let (a, b) = (armor(0), armor(1));
        // An array of composites, one with a single field, which has no quotes as armor.
        expect(&format!("{{({a})}}"), &["p q"], r#"{"(\"p q\")"}"#);
        expect(&format!("{{\"({a},1)\",\"({b},2)\"}}"), &["x", "y"], r#"{"(x,1)","(y,2)"}"#);
        // A composite with an array, which has no quotes either as long as it has one element.
        expect(&format!("({{{a}}},1)"), &["x,y"], r#"("{""x,y""}",1)"#);
        expect(&format!("(\"{{{a},{b}}}\",1)"), &["x", "y"], r#"("{x,y}",1)"#);
        // A composite in a composite, and an array of those with arrays.
        expect(&format!("(\"({a},1)\",2)"), &["x\"y"], r#"("(""x""""y"",1)",2)"#);
        expect(
            &format!("{{\"(\\\"{{{a},{b}}}\\\",5)\"}}"),
            &["x y", "z"],
            r#"{"(\"{\"\"x y\"\",z}\",5)"}"#,
        );
    }

    #[test]
    fn ranges_and_multiranges() {
        let (a, b, c) = (armor(0), armor(1), armor(2));
        expect(&format!("[{a},{b})"), &["a", "b c"], "[a,\"b c\")");
        expect(&format!("(,{a}]"), &["]"], "(,\"]\"]");
        expect(&format!("{{[{a},{b}),[{c},)}}"), &["a", "b,", ""], "{[a,\"b,\"),[\"\",)}");
        expect(&format!("{{({a},{b})}}"), &["a", "b"], "{(a,b)}");
    }

    #[test]
    fn what_is_no_value_stays() {
        let a = armor(0);
        for text in [
            format!("see {a}"),
            format!("{{\"email\": \"{a}\"}} "),
            format!("({a}"),
            format!("{{{a}"),
            format!("{{{a}}}}}"),
            format!("{{{{{a}}}"),
            format!("(({a}))"),
            format!("[{a})"),
            format!("\"{a}\""),
            format!("[0:x]={{{a}}}"),
        ] {
            assert_eq!(replaced(&text, &["x"]), (Outcome::Stray, String::new()), "{text}");
        }
        for text in ["", "abc", "{1,2}", "enc:2:AQ"] {
            assert_eq!(replaced(text, &[]), (Outcome::Unchanged, String::new()));
        }
        let mut out = Vec::new();
        let leave = &mut |_: &[u8], _: &mut Vec<u8>| Ok(false);
        let text = format!("{{{a},(,{a})}}");
        assert_eq!(transform(text.as_bytes(), leave, &mut out).unwrap(), Outcome::Unchanged);
        assert_eq!(out, b"");
    }

    #[derive(Clone, Debug)]
    enum Nested {
        Value(String),
        Array(Vec<Nested>),
        Row(Vec<Nested>),
    }

    impl Nested {
        /// The text form, made from the leaves up.
        fn print(&self, leaf: &mut dyn FnMut(&str) -> String) -> String {
            let mut out = Vec::new();
            match self {
                Self::Value(value) => return leaf(value),
                Self::Array(elements) => {
                    out.push(b'{');
                    for (i, element) in elements.iter().enumerate() {
                        out.extend_from_slice(if i > 0 { b"," } else { b"" });
                        quote_array_element(element.print(leaf).as_bytes(), &mut out);
                    }
                    out.push(b'}');
                }
                Self::Row(fields) => {
                    out.push(b'(');
                    for (i, field) in fields.iter().enumerate() {
                        out.extend_from_slice(if i > 0 { b"," } else { b"" });
                        quote_row_field(field.print(leaf).as_bytes(), &mut out);
                    }
                    out.push(b')');
                }
            }
            String::from_utf8(out).unwrap()
        }
    }

    fn nested() -> impl Strategy<Value = Nested> {
        let leaf = "[a\"\\\\{}(),\\[\\] \t\né]{0,5}|null".prop_map(Nested::Value);
        leaf.prop_recursive(4, 12, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 1..4).prop_map(Nested::Array),
                prop::collection::vec(inner, 1..4).prop_map(Nested::Row),
            ]
        })
    }

    proptest! {
        /// The text with plaintexts in place of armor is what would have been printed of plaintexts.
        #[test]
        fn replacing_is_printing_plaintexts(nested in nested()) {
            let mut plaintexts = Vec::new();
            let with_armor = nested.print(&mut |value| {
                plaintexts.push(value.to_owned());
                armor(plaintexts.len() - 1)
            });
            // Elements of arrays in arrays are quoted here as PostgreSQL never does it; but read alike.
            let expected = nested.print(&mut |value| value.to_owned());
            let plaintexts: Vec<_> = plaintexts.iter().map(String::as_str).collect();
            prop_assert_eq!(replaced(&with_armor, &plaintexts), (Outcome::Replaced, expected));
        }

        #[test]
        fn no_text_makes_it_panic(text in "[a\"\\\\{}(),\\[\\]=0:]{0,12}(enc:1:)?[a\"\\\\{}(),\\[\\]=0:]{0,12}") {
            let mut out = Vec::new();
            let mut replace = |_: &[u8], out: &mut Vec<u8>| { out.push(b','); Ok(true) };
            transform(text.as_bytes(), &mut replace, &mut out).unwrap();
        }
    }
}
