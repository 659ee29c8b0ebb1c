//! CSV with plaintext in the place of ciphertext, column by column.
//!
//! Fields are found and not rewritten: what isn't decrypted stays byte for byte as it was. PostgreSQL
//! tells null from an empty text by whether there are quotes (documentation of COPY, "CSV Format"),
//! which readers of CSV don't tell. The tests compare the fields with those that the crate `csv` finds.

use std::ops::Range;

use crate::dump::transform;
use crate::error::Error;
use crate::input::{Input, Lines, split_end};
use crate::nested::Outcome;
use crate::output::Output;
use crate::values::Values;

/// What a file looks like.
#[derive(Clone, Copy, Debug)]
pub struct Form {
    /// What is between fields.
    pub delimiter: u8,
    /// Whether the first record has the names of the columns.
    pub has_header: bool,
}

/// Writes a file with the values of some columns opened.
pub fn decrypt(
    input: Input,
    output: &mut Output,
    values: &mut Values,
    columns: &[String],
    form: Form,
) -> Result<(), Error> {
    let mut lines = Lines::new(input);
    let mut record = Vec::new();
    let mut fields = Vec::new();
    let mut out = Vec::new();
    let mut line = 1;
    let mut chosen = match form.has_header {
        true => None,
        false => Some(choose(columns, &[])?),
    };
    while read_record(&mut lines, form.delimiter, &mut record, &mut fields)? {
        let Some(chosen) = &chosen else {
            let names: Vec<_> = fields.iter().map(|field| text(&record[field.clone()])).collect();
            chosen = Some(choose(columns, &names)?);
            output.write(&record)?;
            line = lines.number() + 1;
            continue;
        };
        out.clear();
        let mut at = 0;
        for (column, name) in chosen {
            let place = || format!("line {line}, column {name}");
            let Some(field) = fields.get(*column) else {
                // A blank line is no record.
                if split_end(&record).0.is_empty() {
                    break;
                }
                return Err(Error::new("the record has no such column").at(place()));
            };
            let plain = plaintext(values, &record[field.clone()], &place)?;
            out.extend_from_slice(&record[at..field.start]);
            match plain {
                Some(plain) => quote(&plain, form.delimiter, &mut out),
                None => out.extend_from_slice(&record[field.clone()]),
            }
            at = field.end;
        }
        out.extend_from_slice(&record[at..]);
        output.write(&out)?;
        line = lines.number() + 1;
    }
    Ok(())
}

/// The plaintext of a field; `None` if it stays as it is.
fn plaintext(
    values: &mut Values,
    field: &[u8],
    place: &dyn Fn() -> String,
) -> Result<Option<Vec<u8>>, Error> {
    let text = text(field);
    if text.is_empty() {
        return Ok(None);
    }
    let mut plain = Vec::new();
    match transform(values, &text, place, &mut plain)? {
        Outcome::Replaced => Ok(Some(plain)),
        Outcome::Unchanged if crate::nested::may_hold_armor(&text) => Ok(None),
        // What has no value in it can be an array without elements. Other text is a mistake.
        Outcome::Unchanged if matches!(text.first(), Some(b'{' | b'(' | b'[')) => Ok(None),
        // Fails, with what is wrong with it as armor.
        _ => Ok(values.open(&text, place, &mut plain)?.then_some(plain)),
    }
}

/// The places of the columns that were named, in order, with their names.
fn choose(columns: &[String], header: &[Vec<u8>]) -> Result<Vec<(usize, String)>, Error> {
    let mut chosen = Vec::new();
    for column in columns {
        let by_name = header.iter().position(|name| name == column.as_bytes());
        let number = column.parse::<usize>().ok().and_then(|number| number.checked_sub(1));
        let is_there = |at: &usize| header.is_empty() || *at < header.len();
        match by_name.or(number.filter(is_there)) {
            Some(at) => chosen.push((at, column.clone())),
            None if header.is_empty() => {
                return Err(Error::new(format!("\"{column}\" is not the number of a column"))
                    .with_hint(
                        "Without a header columns have no names: give their numbers, from 1.",
                    ));
            }
            None => {
                let names: Vec<_> = header.iter().map(|n| String::from_utf8_lossy(n)).collect();
                return Err(Error::new(format!("there is no column \"{column}\"")).with_hint(format!(
                    "The first line names these: {}. Is --delimiter right? Give --no-header if the first \
                     line is no header.",
                    names.join(", ")
                )));
            }
        }
    }
    chosen.sort();
    chosen.dedup_by_key(|(at, _)| *at);
    Ok(chosen)
}

/// Reads the next record, with its end, and where its fields are in it. `false` at the end.
fn read_record(
    lines: &mut Lines,
    delimiter: u8,
    record: &mut Vec<u8>,
    fields: &mut Vec<Range<usize>>,
) -> Result<bool, Error> {
    record.clear();
    fields.clear();
    let (mut start, mut at, mut is_quoted) = (0, 0, false);
    loop {
        let number = lines.number() + 1;
        match lines.next_line()? {
            Some(line) => record.extend_from_slice(line),
            None if record.is_empty() => return Ok(false),
            None => {
                return Err(Error::new("a quoted field has no end").at(format!("line {number}")));
            }
        }
        while at < record.len() {
            match record[at] {
                b'"' => is_quoted = !is_quoted,
                byte if byte == delimiter && !is_quoted => {
                    fields.push(start..at);
                    start = at + 1;
                }
                _ => {}
            }
            at += 1;
        }
        if !is_quoted {
            break;
        }
    }
    let end = split_end(record).0.len();
    if end > 0 {
        fields.push(start..end);
    }
    Ok(true)
}

/// The text of a field, without quotes.
fn text(field: &[u8]) -> Vec<u8> {
    let Some(inner) = field.strip_prefix(b"\"") else { return field.to_vec() };
    let inner = inner.strip_suffix(b"\"").unwrap_or(inner);
    let mut text = Vec::with_capacity(inner.len());
    let mut quote = false;
    for &byte in inner {
        quote = byte == b'"' && !quote;
        if !quote {
            text.push(byte);
        }
    }
    text
}

/// Writes a text as a field: in quotes where it needs them, and where it is empty, since without them it
/// would be null.
fn quote(text: &[u8], delimiter: u8, out: &mut Vec<u8>) {
    let needs_quotes = text.is_empty()
        || text == b"\\."
        || text.iter().any(|b| matches!(b, b'"' | b'\n' | b'\r') || *b == delimiter);
    if !needs_quotes {
        return out.extend_from_slice(text);
    }
    out.push(b'"');
    for &byte in text {
        if byte == b'"' {
            out.push(b'"');
        }
        out.push(byte);
    }
    out.push(b'"');
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The records of a file as texts, and all of it put together again.
    fn records(file: &[u8]) -> (Vec<Vec<Vec<u8>>>, Vec<u8>) {
        let mut lines = Lines::new(Input::of(file));
        let (mut record, mut fields) = (Vec::new(), Vec::new());
        let (mut records, mut joined) = (Vec::new(), Vec::new());
        while read_record(&mut lines, b',', &mut record, &mut fields).unwrap() {
            joined.extend_from_slice(&record);
            if !fields.is_empty() {
                records.push(fields.iter().map(|f| text(&record[f.clone()])).collect());
            }
        }
        (records, joined)
    }

    #[test]
    fn columns_are_chosen_by_name_or_number() {
        let header = ["id", "email", "3"].map(|name| name.as_bytes().to_vec());
        let choose = |columns: &[&str], header: &[Vec<u8>]| {
            let columns: Vec<_> = columns.iter().map(|c| (*c).to_owned()).collect();
            choose(&columns, header)
                .map(|chosen| chosen.into_iter().map(|(at, _)| at).collect::<Vec<_>>())
        };
        assert_eq!(choose(&["email", "1", "email"], &header).unwrap(), [0, 1]);
        assert_eq!(choose(&["3"], &header).unwrap(), [2]);
        assert_eq!(choose(&["7"], &[]).unwrap(), [6]);
        for (columns, header) in
            [(["mail"], &header[..]), (["4"], &header), (["0"], &header), (["email"], &[])]
        {
            assert!(choose(&columns, header).is_err(), "{columns:?}");
        }
    }

    #[test]
    fn null_and_empty_texts_are_told_apart() {
        let mut out = Vec::new();
        quote(b"", b',', &mut out);
        assert_eq!(out, b"\"\"");
        let (records, joined) = records(b"a,,\"\"\r\n\n\"x\ny\",\"q\"\"q\",z");
        assert_eq!(joined, b"a,,\"\"\r\n\n\"x\ny\",\"q\"\"q\",z");
        assert_eq!(
            records,
            [
                [b"a".to_vec(), Vec::new(), Vec::new()],
                [b"x\ny".to_vec(), b"q\"q".to_vec(), b"z".to_vec()]
            ]
        );
    }

    proptest! {
        /// Fields that are written here, the crate `csv` reads, and the other way round.
        #[test]
        fn fields_are_those_that_others_find(
            texts in prop::collection::vec(prop::collection::vec("[ab,\"\r\n\\.é]{0,6}", 2..4), 1..4),
        ) {
            let expected: Vec<Vec<Vec<u8>>> =
                texts.iter().map(|r| r.iter().map(|t| t.as_bytes().to_vec()).collect()).collect();
            let mut ours = Vec::new();
            let mut theirs = csv::WriterBuilder::new().flexible(true).from_writer(Vec::new());
            for record in &expected {
                for (at, text) in record.iter().enumerate() {
                    ours.extend_from_slice(if at > 0 { b"," } else { b"" });
                    quote(text, b',', &mut ours);
                }
                ours.push(b'\n');
                theirs.write_record(record).unwrap();
            }
            let theirs = theirs.into_inner().unwrap();
            for file in [&ours, &theirs] {
                let mut reader = csv::ReaderBuilder::new()
                    .has_headers(false)
                    .flexible(true)
                    .from_reader(file.as_slice());
                let read: Vec<Vec<Vec<u8>>> = reader
                    .byte_records()
                    .map(|record| record.unwrap().iter().map(<[u8]>::to_vec).collect())
                    .collect();
                prop_assert_eq!(&read, &expected);
                let (records, joined) = records(file);
                prop_assert_eq!(&records, &expected);
                prop_assert_eq!(&joined, file);
            }
        }
    }
}
