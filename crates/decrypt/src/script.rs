//! A plain dump, part by part: statements, rows of COPY, and what is for psql alone.

use crate::error::Error;
use crate::input::{Lines, split_end};
use crate::sql::{self, Kind, StatementEnd, Token};

/// A part of a dump.
#[derive(Debug)]
pub enum Part<'a> {
    /// A blank line or a comment.
    Blank(&'a [u8]),
    /// A command of psql's: `\connect`, `\restrict`.
    Command(&'a [u8]),
    /// A statement, with its semicolon and what white space follows.
    Statement(&'a [u8]),
    /// A row of COPY's data.
    Row(&'a [u8]),
    /// The end of COPY's data.
    RowsEnd(&'a [u8]),
}

impl<'a> Part<'a> {
    /// How it is written.
    pub fn bytes(&self) -> &'a [u8] {
        match self {
            Self::Blank(text)
            | Self::Command(text)
            | Self::Statement(text)
            | Self::Row(text)
            | Self::RowsEnd(text) => text,
        }
    }
}

/// Where rows of COPY go.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Target {
    /// The schema; empty if it isn't said.
    pub schema: Vec<u8>,
    /// The table.
    pub table: Vec<u8>,
    /// The columns; empty if they aren't said.
    pub columns: Vec<Vec<u8>>,
}

impl Target {
    /// Whether it is in the extension's own schema.
    pub fn is_catalog(&self) -> bool {
        self.schema == b"encryption"
    }

    /// The place of a field, for messages.
    pub fn place(&self, line: u64, field: usize) -> String {
        let table = String::from_utf8_lossy(&self.table);
        let column = match self.columns.get(field) {
            Some(name) => format!("column {}", String::from_utf8_lossy(name)),
            None => format!("field {}", field + 1),
        };
        match self.schema.is_empty() {
            true => format!("line {line}, table {table}, {column}"),
            false => {
                let schema = String::from_utf8_lossy(&self.schema);
                format!("line {line}, table {schema}.{table}, {column}")
            }
        }
    }
}

/// Reads a dump.
pub struct Script {
    lines: Lines,
    statement: Vec<u8>,
    /// What follows a statement in its line.
    rest: Vec<u8>,
    end: StatementEnd,
    /// The line that the part begins in.
    line: u64,
    target: Option<Target>,
    standard_strings: bool,
}

impl Script {
    /// Reads the dump that these lines are.
    pub fn new(lines: Lines) -> Self {
        Self {
            lines,
            statement: Vec::new(),
            rest: Vec::new(),
            end: StatementEnd::default(),
            line: 0,
            target: None,
            standard_strings: true,
        }
    }

    /// The line that the last part began in.
    pub fn line(&self) -> u64 {
        self.line
    }

    /// Where the rows go that come now.
    pub fn target(&self) -> Option<&Target> {
        self.target.as_ref()
    }

    /// Whether a backslash in `'…'` is nothing special.
    pub fn standard_strings(&self) -> bool {
        self.standard_strings
    }

    /// The next part; `None` at the end.
    pub fn next_part(&mut self) -> Result<Option<Part<'_>>, Error> {
        match self.target {
            Some(_) => self.next_row().map(Some),
            None => self.next_statement(),
        }
    }

    fn next_row(&mut self) -> Result<Part<'_>, Error> {
        let line = self.lines.number() + 1;
        self.line = line;
        match self.lines.next_line()? {
            None => Err(incomplete("the data of a COPY", line)),
            Some(row) if split_end(row).0 == b"\\." => {
                self.target = None;
                Ok(Part::RowsEnd(row))
            }
            Some(row) => Ok(Part::Row(row)),
        }
    }

    fn next_statement(&mut self) -> Result<Option<Part<'_>>, Error> {
        self.statement.clear();
        loop {
            let from = self.statement.len();
            if self.rest.is_empty() {
                match self.lines.next_line()? {
                    Some(line) => self.statement.extend_from_slice(line),
                    None if from == 0 => return Ok(None),
                    None => return Err(incomplete("a statement", self.line)),
                }
            } else {
                self.statement.append(&mut self.rest);
            }
            if from == 0 {
                self.line = self.lines.number();
                match self.statement.trim_ascii() {
                    [] | [b'-', b'-', ..] => return Ok(Some(Part::Blank(&self.statement))),
                    [b'\\', ..] => return Ok(Some(Part::Command(&self.statement))),
                    _ => {}
                }
            }
            if let Some(end) = self.end.find(&self.statement, from, self.standard_strings) {
                if !self.statement[end..].trim_ascii().is_empty() {
                    self.rest = self.statement.split_off(end);
                }
                break;
            }
        }
        self.understand()?;
        Ok(Some(Part::Statement(&self.statement)))
    }

    /// Takes what a statement says of what follows.
    fn understand(&mut self) -> Result<(), Error> {
        let statement = self.statement.trim_ascii_start();
        if starts_with_word(statement, b"set") {
            let words = Words::of(statement, self.standard_strings);
            if words.is(1, b"standard_conforming_strings") {
                self.standard_strings = !words.is(words.len() - 2, b"off");
            }
        } else if starts_with_word(statement, b"copy") {
            let words = Words::of(statement, self.standard_strings);
            self.target =
                copy_target(&words).map_err(|error| error.at(format!("line {}", self.line)))?;
        }
        Ok(())
    }
}

/// Whether a statement begins with a word.
pub fn starts_with_word(statement: &[u8], word: &[u8]) -> bool {
    statement.len() > word.len()
        && statement[..word.len()].eq_ignore_ascii_case(word)
        && !statement[word.len()].is_ascii_alphanumeric()
}

/// The tokens of a statement without the space between.
pub struct Words<'a> {
    sql: &'a [u8],
    tokens: Vec<Token>,
}

impl<'a> Words<'a> {
    /// Takes a statement apart.
    pub fn of(sql: &'a [u8], standard_strings: bool) -> Self {
        let mut tokens = sql::tokens(sql, standard_strings);
        tokens.retain(|token| token.kind != Kind::Space);
        Self { sql, tokens }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// The statement.
    pub fn sql(&self) -> &'a [u8] {
        self.sql
    }

    /// The tokens.
    pub fn tokens(&self) -> &[Token] {
        &self.tokens
    }

    /// How a token is written.
    pub fn text(&self, at: usize) -> &'a [u8] {
        self.tokens.get(at).map_or(b"", |token| &self.sql[token.range.clone()])
    }

    /// Whether the token is this keyword or symbol.
    pub fn is(&self, at: usize, word: &[u8]) -> bool {
        self.tokens.get(at).is_some_and(|token| matches!(token.kind, Kind::Word | Kind::Symbol))
            && self.text(at).eq_ignore_ascii_case(word)
    }

    /// Whether the tokens from `at` on are these.
    pub fn are(&self, at: usize, words: &[&[u8]]) -> bool {
        words.iter().enumerate().all(|(i, word)| self.is(at + i, word))
    }

    /// The name that the token is.
    pub fn name(&self, at: usize) -> Option<Vec<u8>> {
        match self.tokens.get(at)?.kind {
            Kind::Word => Some(self.text(at).to_ascii_lowercase()),
            Kind::QuotedName => {
                let inner = self.text(at).strip_prefix(b"\"")?.strip_suffix(b"\"")?;
                let mut name = Vec::new();
                let mut quote = false;
                for &byte in inner {
                    quote = byte == b'"' && !quote;
                    if !quote {
                        name.push(byte);
                    }
                }
                Some(name)
            }
            _ => None,
        }
    }

    /// The text of the string that the token is.
    pub fn string(&self, at: usize) -> Option<Vec<u8>> {
        match self.tokens.get(at)?.kind {
            Kind::String(escapes) => sql::string_text(self.text(at), escapes),
            _ => None,
        }
    }

    /// A name with its schema, if it has one, and where it ends.
    pub fn qualified_name(&self, at: usize) -> Option<(Vec<u8>, Vec<u8>, usize)> {
        let first = self.name(at)?;
        match self.is(at + 1, b".") {
            true => Some((first, self.name(at + 2)?, at + 3)),
            false => Some((Vec::new(), first, at + 1)),
        }
    }
}

/// Where the rows of a COPY go that follow it; `None` if none follow.
fn copy_target(words: &Words<'_>) -> Result<Option<Target>, Error> {
    let Some((schema, table, mut at)) = words.qualified_name(1) else { return Ok(None) };
    let mut columns = Vec::new();
    if words.is(at, b"(") {
        while !words.is(at, b")") {
            let Some(name) = words.name(at + 1) else { return Ok(None) };
            columns.push(name);
            at += 2;
        }
        at += 1;
    }
    match (words.are(at, &[b"from", b"stdin"]), words.is(at + 2, b";")) {
        (false, _) => Ok(None),
        (true, true) => Ok(Some(Target { schema, table, columns })),
        (true, false) => Err(Error::new("COPY has options, which pg_dump doesn't write")
            .with_hint("Only dumps that pg_dump and pg_restore write are read.")),
    }
}

fn incomplete(what: &str, line: u64) -> Error {
    Error::new(format!("line {line}: the dump ends in the middle of {what}")).with_hint(
        "The dump is not complete: pg_dump failed, or the file was cut. Use another one.",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::input::Input;

    fn parts(script: &str) -> Result<Vec<(String, u64, String)>, Error> {
        let mut script = Script::new(Lines::new(Input::of(script.as_bytes())));
        let mut parts = Vec::new();
        while let Some(part) = script.next_part()? {
            let (kind, text) = match part {
                Part::Blank(text) => ("blank", text),
                Part::Command(text) => ("command", text),
                Part::Statement(text) => ("statement", text),
                Part::Row(text) => ("row", text),
                Part::RowsEnd(text) => ("end", text),
            };
            let text = String::from_utf8(text.to_vec()).unwrap();
            parts.push((kind.to_owned(), script.line(), text));
        }
        Ok(parts)
    }

    #[test]
    fn a_dump_has_parts() {
        let script = "--\n-- a; comment\n\n\\restrict x;y\nSELECT 1;  \nSELECT 2; SELECT\n '3;\n';\n\
                      COPY public.\"T\" (a, \"b c\") FROM stdin;\n1\t;'\n\\.x\n\\.\n-- e\n";
        let parts = parts(script).unwrap();
        assert_eq!(parts.iter().map(|(_, _, text)| text.as_str()).collect::<String>(), script);
        let kinds: Vec<_> = parts.iter().map(|(kind, line, _)| (kind.as_str(), *line)).collect();
        assert_eq!(
            kinds,
            [
                ("blank", 1),
                ("blank", 2),
                ("blank", 3),
                ("command", 4),
                ("statement", 5),
                ("statement", 6),
                ("statement", 6),
                ("statement", 9),
                ("row", 10),
                ("row", 11),
                ("end", 12),
                ("blank", 13),
            ]
        );
    }

    #[test]
    fn where_rows_go_is_known() {
        let target = |sql: &str| copy_target(&Words::of(sql.as_bytes(), true)).map_err(drop);
        let names =
            |names: &[&str]| names.iter().map(|n| n.as_bytes().to_vec()).collect::<Vec<_>>();
        assert_eq!(
            target("COPY public.\"T \"\"x\" (a, \"B\") FROM stdin;"),
            Ok(Some(Target {
                schema: b"public".to_vec(),
                table: b"T \"x".to_vec(),
                columns: names(&["a", "B"])
            }))
        );
        let found = target("COPY t FROM stdin;").unwrap().unwrap();
        assert_eq!(found.place(7, 1), "line 7, table t, field 2");
        assert_eq!(target("COPY t TO stdout;"), Ok(None));
        assert_eq!(target("COPY t FROM '/f';"), Ok(None));
        assert_eq!(target("COPY t FROM stdin WITH (FORMAT csv);"), Err(()));
    }

    #[test]
    fn what_is_cut_is_told() {
        for script in ["SELECT 1", "SELECT 'a;\n", "COPY t FROM stdin;\n1\n"] {
            assert!(parts(script).unwrap_err().to_string().contains("middle of"), "{script}");
        }
    }

    #[test]
    fn backslashes_are_as_the_dump_says() {
        let script = "SET standard_conforming_strings = off;\nSELECT 'a\\'; b';\n";
        assert_eq!(parts(script).unwrap().len(), 2);
        let script = "SET standard_conforming_strings = on;\nSELECT 'a\\'; SELECT 'b';\n";
        assert_eq!(parts(script).unwrap().len(), 3);
    }
}
