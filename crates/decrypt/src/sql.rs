//! SQL as pg_dump writes it and psql reads it: where a statement ends, and what its parts are. After
//! PostgreSQL's src/fe_utils/psqlscan.l.

use std::ops::Range;

use memchr::{memchr, memchr2};

/// What a part of a statement is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// White space or a comment.
    Space,
    /// A keyword or a name without quotes.
    Word,
    /// A name in double quotes.
    QuotedName,
    /// A string, with how it is escaped.
    String(Escapes),
    /// A string between dollar signs.
    Dollar,
    /// Anything else, a character at a time.
    Symbol,
}

/// What escapes a character of a string, apart from a quote by a quote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Escapes {
    /// Nothing: `'…'` where standard_conforming_strings is on.
    None,
    /// A backslash, as in C: `E'…'`, and `'…'` where standard_conforming_strings is off.
    Backslash,
    /// A backslash before a code point: `U&'…'`.
    Unicode,
}

/// A part of a statement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// What it is.
    pub kind: Kind,
    /// Where it is.
    pub range: Range<usize>,
}

/// Takes a statement apart. What has no end goes to the end of the statement.
pub fn tokens(sql: &[u8], standard_strings: bool) -> Vec<Token> {
    let mut tokens = Vec::new();
    let mut at = 0;
    while at < sql.len() {
        let (kind, end) = token(sql, at, standard_strings);
        tokens.push(Token { kind, range: at..end });
        at = end;
    }
    tokens
}

fn token(sql: &[u8], at: usize, standard_strings: bool) -> (Kind, usize) {
    let rest = &sql[at..];
    let plain = if standard_strings { Escapes::None } else { Escapes::Backslash };
    match rest {
        [b'\'', ..] => string(sql, at, 1, plain),
        [b'e' | b'E', b'\'', ..] => string(sql, at, 2, Escapes::Backslash),
        [b'b' | b'B' | b'x' | b'X' | b'n' | b'N', b'\'', ..] => string(sql, at, 2, plain),
        [b'u' | b'U', b'&', b'\'', ..] => string(sql, at, 3, Escapes::Unicode),
        [b'"', ..] => (Kind::QuotedName, after_quote(sql, at + 1, b'"')),
        [b'-', b'-', ..] => {
            (Kind::Space, memchr(b'\n', rest).map_or(sql.len(), |len| at + len + 1))
        }
        [b'/', b'*', ..] => (Kind::Space, after_comment(sql, at)),
        [b'$', ..] => match dollar_tag(rest) {
            Some(len) => {
                let (tag, body) = rest.split_at(len);
                let end = memchr::memmem::find(body, tag);
                (Kind::Dollar, end.map_or(sql.len(), |end| at + len + end + len))
            }
            None => (Kind::Symbol, at + 1),
        },
        [byte, ..] if byte.is_ascii_whitespace() || *byte == 0x0b => (Kind::Space, at + 1),
        [byte, ..] if is_word_start(*byte) => {
            (Kind::Word, at + rest.iter().take_while(|b| is_word(**b)).count())
        }
        // A number, so that its letters are no word: 1e5.
        [byte, ..] if byte.is_ascii_digit() => {
            let len = rest.iter().take_while(|b| b.is_ascii_alphanumeric() || **b == b'.').count();
            (Kind::Symbol, at + len)
        }
        _ => (Kind::Symbol, at + 1),
    }
}

fn string(sql: &[u8], at: usize, prefix: usize, escapes: Escapes) -> (Kind, usize) {
    let end = match escapes {
        Escapes::Backslash => after_backslash_quote(sql, at + prefix),
        Escapes::None | Escapes::Unicode => after_quote(sql, at + prefix, b'\''),
    };
    (Kind::String(escapes), end)
}

/// Where a string ends that begins before `at` and in which a quote is doubled.
fn after_quote(sql: &[u8], mut at: usize, quote: u8) -> usize {
    loop {
        match memchr(quote, &sql[at..]) {
            Some(len) if sql.get(at + len + 1) == Some(&quote) => at += len + 2,
            Some(len) => return at + len + 1,
            None => return sql.len(),
        }
    }
}

fn after_backslash_quote(sql: &[u8], mut at: usize) -> usize {
    loop {
        let Some(len) = memchr2(b'\'', b'\\', sql.get(at..).unwrap_or_default()) else {
            return sql.len();
        };
        at += len;
        match (sql[at], sql.get(at + 1)) {
            (b'\\', _) | (b'\'', Some(b'\'')) => at += 2,
            _ => return at + 1,
        }
    }
}

/// Where a comment ends, with the comments in it.
fn after_comment(sql: &[u8], mut at: usize) -> usize {
    let mut depth = 0;
    while at < sql.len() {
        match &sql[at..] {
            [b'/', b'*', ..] => {
                depth += 1;
                at += 2;
            }
            [b'*', b'/', ..] => {
                depth -= 1;
                at += 2;
                if depth == 0 {
                    return at;
                }
            }
            _ => at += 1,
        }
    }
    at
}

/// The length of the `$tag$` that the text begins with.
fn dollar_tag(text: &[u8]) -> Option<usize> {
    let len = text[1..].iter().take_while(|b| is_word(**b) && **b != b'$').count();
    let is_tag = text.get(1 + len) == Some(&b'$') && !text[1].is_ascii_digit();
    is_tag.then_some(len + 2)
}

fn is_word_start(byte: u8) -> bool {
    byte.is_ascii_alphabetic() || byte == b'_' || byte >= 0x80
}

fn is_word(byte: u8) -> bool {
    is_word_start(byte) || byte.is_ascii_digit() || byte == b'$'
}

/// The text of a string token, without its prefix, quotes and escapes. `None` for escapes that are not
/// taken: those for characters by their numbers.
pub fn string_text(token: &[u8], escapes: Escapes) -> Option<Vec<u8>> {
    let open = memchr(b'\'', token)?;
    let inner = token[open + 1..].strip_suffix(b"'")?;
    let mut text = Vec::with_capacity(inner.len());
    let mut at = 0;
    while at < inner.len() {
        match (escapes, inner[at]) {
            (_, b'\'') => {
                text.push(b'\'');
                at += 2;
            }
            (Escapes::Backslash, b'\\') => {
                text.push(match inner.get(at + 1)? {
                    b'b' => 0x08,
                    b'f' => 0x0c,
                    b'n' => b'\n',
                    b'r' => b'\r',
                    b't' => b'\t',
                    b'0'..=b'7' | b'x' | b'u' | b'U' => return None,
                    other => *other,
                });
                at += 2;
            }
            (Escapes::Unicode, b'\\') => {
                if inner.get(at + 1) != Some(&b'\\') {
                    return None;
                }
                text.push(b'\\');
                at += 2;
            }
            (_, byte) => {
                text.push(byte);
                at += 1;
            }
        }
    }
    Some(text)
}

/// Writes a text in the place of a string token: with its prefix, and escaped as it was.
pub fn write_string(text: &[u8], token: &[u8], escapes: Escapes, out: &mut Vec<u8>) {
    let prefix = memchr(b'\'', token).unwrap_or_default();
    out.extend_from_slice(&token[..prefix]);
    out.push(b'\'');
    for &byte in text {
        if byte == b'\'' || (byte == b'\\' && escapes != Escapes::None) {
            out.push(byte);
        }
        out.push(byte);
    }
    out.push(b'\'');
}

/// Finds where statements end, in a script that comes line by line.
#[derive(Debug, Default)]
pub struct StatementEnd {
    within: Within,
    parentheses: usize,
    /// The statement's first words, for CREATE FUNCTION.
    words: Vec<Vec<u8>>,
    /// How deep in BEGIN ATOMIC … END it is.
    begins: usize,
}

#[derive(Debug, Default, PartialEq, Eq)]
enum Within {
    #[default]
    Nothing,
    String(Escapes),
    QuotedName,
    Dollar(Vec<u8>),
    Comment(usize),
}

impl StatementEnd {
    /// Goes on with a line of the statement, from `at`. Where the statement ends in it, if it does.
    pub fn find(&mut self, line: &[u8], mut at: usize, standard_strings: bool) -> Option<usize> {
        while at < line.len() {
            at = match &mut self.within {
                Within::Nothing => {
                    if line[at] == b';' && self.parentheses == 0 && self.begins == 0 {
                        *self = Self::default();
                        return Some(at + 1);
                    }
                    self.begin(line, at, standard_strings)
                }
                Within::String(escapes) => {
                    let end = match escapes {
                        Escapes::Backslash => after_backslash_quote(line, at),
                        _ => after_quote(line, at, b'\''),
                    };
                    let is_over = ends(line, at, end, b'\'', *escapes == Escapes::Backslash);
                    self.leave_if(is_over, end)
                }
                Within::QuotedName => {
                    let end = after_quote(line, at, b'"');
                    self.leave_if(ends(line, at, end, b'"', false), end)
                }
                Within::Dollar(tag) => match memchr::memmem::find(&line[at..], tag) {
                    Some(len) => {
                        let end = at + len + tag.len();
                        self.leave_if(true, end)
                    }
                    None => line.len(),
                },
                Within::Comment(depth) => match &line[at..] {
                    [b'/', b'*', ..] => {
                        *depth += 1;
                        at + 2
                    }
                    [b'*', b'/', ..] => {
                        *depth -= 1;
                        let is_over = *depth == 0;
                        self.leave_if(is_over, at + 2)
                    }
                    _ => at + 1,
                },
            };
        }
        None
    }

    fn leave_if(&mut self, is_over: bool, at: usize) -> usize {
        if is_over {
            self.within = Within::Nothing;
        }
        at
    }

    /// Takes what begins at `at`, and gives where its inside or what follows it begins.
    fn begin(&mut self, line: &[u8], at: usize, standard_strings: bool) -> usize {
        let plain = if standard_strings { Escapes::None } else { Escapes::Backslash };
        let (within, len) = match &line[at..] {
            [b'\'', ..] => (Within::String(plain), 1),
            [b'e' | b'E', b'\'', ..] => (Within::String(Escapes::Backslash), 2),
            [b'u' | b'U', b'&', b'\'', ..] => (Within::String(Escapes::Unicode), 3),
            [b'b' | b'B' | b'x' | b'X' | b'n' | b'N', b'\'', ..] => (Within::String(plain), 2),
            [b'"', ..] => (Within::QuotedName, 1),
            [b'/', b'*', ..] => (Within::Comment(1), 2),
            rest @ [b'$', ..] => match dollar_tag(rest) {
                Some(len) => (Within::Dollar(rest[..len].to_vec()), len),
                None => (Within::Nothing, 1),
            },
            _ => {
                let (kind, end) = token(line, at, standard_strings);
                match (kind, line[at]) {
                    (Kind::Word, _) => self.word(&line[at..end]),
                    (Kind::Symbol, b'(') => self.parentheses += 1,
                    (Kind::Symbol, b')') => self.parentheses = self.parentheses.saturating_sub(1),
                    _ => {}
                }
                return end;
            }
        };
        self.within = within;
        at + len
    }

    /// The body of a function in SQL has semicolons: CREATE [OR REPLACE] FUNCTION … BEGIN ATOMIC …; END.
    fn word(&mut self, word: &[u8]) {
        if self.words.len() < 4 {
            self.words.push(word.to_ascii_lowercase());
        }
        let is_routine = matches!(
            self.words.iter().map(Vec::as_slice).collect::<Vec<_>>().as_slice(),
            [b"create", b"function" | b"procedure", ..]
                | [b"create", b"or", b"replace", b"function" | b"procedure"]
        );
        if !is_routine || self.parentheses > 0 {
            return;
        }
        if word.eq_ignore_ascii_case(b"begin")
            || (word.eq_ignore_ascii_case(b"case") && self.begins > 0)
        {
            self.begins += 1;
        } else if word.eq_ignore_ascii_case(b"end") {
            self.begins = self.begins.saturating_sub(1);
        }
    }
}

/// Whether a string that goes on at `at` ends at `end`, or only the line does.
fn ends(line: &[u8], at: usize, end: usize, quote: u8, backslash: bool) -> bool {
    if end < line.len() {
        return true;
    }
    // The line's last byte is the quote, and it is not one of a pair or escaped.
    match backslash {
        true => {
            let mut here = at;
            while here < line.len() {
                match (line[here], line.get(here + 1)) {
                    (b'\\', _) => here += 2,
                    (b, Some(next)) if b == quote && *next == quote => here += 2,
                    (b, _) if b == quote => return true,
                    _ => here += 1,
                }
            }
            false
        }
        false => line[at..].iter().filter(|b| **b == quote).count() % 2 == 1,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The statements of a script.
    fn statements(script: &str, standard_strings: bool) -> Vec<String> {
        let mut end = StatementEnd::default();
        let (mut statements, mut statement) = (Vec::new(), String::new());
        for line in script.split_inclusive('\n') {
            let mut at = 0;
            while let Some(found) = end.find(line.as_bytes(), at, standard_strings) {
                statement.push_str(&line[at..found]);
                statements.push(std::mem::take(&mut statement).trim().to_owned());
                at = found;
            }
            statement.push_str(&line[at..]);
        }
        assert_eq!(statement.trim(), "", "{script}");
        statements
    }

    #[test]
    fn statements_end_where_psql_ends_them() {
        for statement in [
            "SELECT 1;",
            "INSERT INTO t VALUES ('a;b', 'it''s', E'\\';', \"x;\"\"y\");",
            "INSERT INTO t VALUES ('two\nlines;\n', '\n''\n');",
            "INSERT INTO t VALUES (E'two\\\\\nlines\\';\n');",
            "SELECT $$a;b$$, $x$ $$ ; $x$, $1;",
            "SELECT 1 /* ; /* ; */ ; */;",
            "SELECT 1 -- ;\n;",
            "CREATE RULE r AS ON INSERT TO t DO (SELECT 1; SELECT 2);",
            "CREATE FUNCTION f() RETURNS int\n BEGIN ATOMIC\n SELECT CASE WHEN true THEN 1 END;\n SELECT 2;\nEND;",
            "CREATE OR REPLACE PROCEDURE p()\n BEGIN ATOMIC\n SELECT 1;\nEND;",
            "CREATE TABLE \"begin\" (a int);",
        ] {
            assert_eq!(
                statements(&format!("{statement}\nSELECT 2;\n"), true),
                [statement, "SELECT 2;"]
            );
        }
        let script = "SELECT 'a\\'; b'; SELECT 2;\n";
        assert_eq!(statements(script, false), ["SELECT 'a\\'; b';", "SELECT 2;"]);
        assert_eq!(statements("SELECT 'a\\'; SELECT 2;\n", true), ["SELECT 'a\\';", "SELECT 2;"]);
    }

    #[test]
    fn tokens_are_what_they_are() {
        let sql = b"CREATE x.\"a b\" E'\\'' 'it''s' $1 $a$ ' $a$ U&'\\0041' 1e5 -- c";
        let kinds: Vec<_> = tokens(sql, true)
            .into_iter()
            .filter(|token| token.kind != Kind::Space)
            .map(|token| (token.kind, std::str::from_utf8(&sql[token.range]).unwrap()))
            .collect();
        assert_eq!(
            kinds,
            [
                (Kind::Word, "CREATE"),
                (Kind::Word, "x"),
                (Kind::Symbol, "."),
                (Kind::QuotedName, "\"a b\""),
                (Kind::String(Escapes::Backslash), "E'\\''"),
                (Kind::String(Escapes::None), "'it''s'"),
                (Kind::Symbol, "$"),
                (Kind::Symbol, "1"),
                (Kind::Dollar, "$a$ ' $a$"),
                (Kind::String(Escapes::Unicode), "U&'\\0041'"),
                (Kind::Symbol, "1e5"),
            ]
        );
    }

    #[test]
    fn strings_are_read_and_written() {
        for (token, escapes, text) in [
            ("'it''s \\n'", Escapes::None, "it's \\n"),
            ("E'it''s \\\\ \\n \\''", Escapes::Backslash, "it's \\ \n '"),
            ("U&'a\\\\b'", Escapes::Unicode, "a\\b"),
        ] {
            let read = string_text(token.as_bytes(), escapes).unwrap();
            assert_eq!(read, text.as_bytes());
        }
        for (token, escapes) in [("E'\\101'", Escapes::Backslash), ("U&'\\0041'", Escapes::Unicode)]
        {
            assert_eq!(string_text(token.as_bytes(), escapes), None);
        }
    }

    proptest! {
        #[test]
        fn a_string_is_read_as_it_was_written(
            text in "[a'\\\\\n;$\"é]{0,12}",
            escapes in prop_oneof![
                Just(Escapes::None), Just(Escapes::Backslash), Just(Escapes::Unicode)
            ],
        ) {
            let prefix = match escapes {
                Escapes::None => "''",
                Escapes::Backslash => "E''",
                Escapes::Unicode => "U&''",
            };
            let mut written = Vec::new();
            write_string(text.as_bytes(), prefix.as_bytes(), escapes, &mut written);
            prop_assert_eq!(string_text(&written, escapes).unwrap(), text.as_bytes());
            let written = String::from_utf8(written).unwrap();
            let tokens = tokens(written.as_bytes(), true);
            prop_assert_eq!(tokens.len(), 1);
            prop_assert_eq!(tokens[0].kind, Kind::String(escapes));
            let script = format!("SELECT {written};\nSELECT 2;\n");
            prop_assert_eq!(
                statements(&script, true),
                [format!("SELECT {written};"), "SELECT 2;".to_owned()]
            );
        }
    }
}
