//! A plain dump with plaintext in place of ciphertext.

use envelope::KeyName;

use crate::catalog::{Catalog, Table};
use crate::copy;
use crate::error::Error;
use crate::input::{Input, Lines, split_end};
use crate::keys::Keys;
use crate::nested::{self, Outcome};
use crate::output::Output;
use crate::plain_schema::{self, PlainSchema};
use crate::script::{Part, Script, Target, Words, starts_with_word};
use crate::sql::{self, Kind};
use crate::values::{Encoding, Values};

/// How a dump of several databases begins, by pg_dumpall.
const CLUSTER_DUMP: &[u8] = b"PostgreSQL database cluster dump";

/// Reads the catalog of keys of each database from a dump, which is then read once more. It ends as
/// soon as it has it.
pub fn find_catalogs(input: Input, keys: &mut Keys) -> Result<(), Error> {
    let mut lines = Lines::new(input);
    refuse_archive(lines.peek()?)?;
    let is_single = memchr::memmem::find(lines.peek()?, CLUSTER_DUMP).is_none();
    let mut scan = CatalogScan::new(lines);
    while !(is_single && scan.reader.is_complete()) {
        match scan.step(keys.catalog())? {
            Step::Part => {}
            Step::Database => {
                keys.next_database();
                scan.reader = CatalogReader::default();
            }
            Step::End => break,
        }
    }
    keys.rewind();
    Ok(())
}

/// The catalog that a dump of the schema `encryption` has.
pub fn read_catalog(lines: Lines) -> Result<Catalog, Error> {
    let mut catalog = Catalog::default();
    let mut scan = CatalogScan::new(lines);
    while !matches!(scan.step(&mut catalog)?, Step::End) {}
    Ok(catalog)
}

/// Goes through a dump for its catalog.
struct CatalogScan {
    script: Script,
    target: Target,
    reader: CatalogReader,
}

enum Step {
    Part,
    Database,
    End,
}

impl CatalogScan {
    fn new(lines: Lines) -> Self {
        Self {
            script: Script::new(lines),
            target: Target::default(),
            reader: CatalogReader::default(),
        }
    }

    fn step(&mut self, catalog: &mut Catalog) -> Result<Step, Error> {
        let standard_strings = self.script.standard_strings();
        match self.script.next_part()? {
            None => return Ok(Step::End),
            Some(Part::Command(line)) if is_connect(line) => return Ok(Step::Database),
            Some(Part::Row(row)) if self.target.is_catalog() => {
                self.reader.row(&self.target, row, catalog)?;
            }
            Some(Part::RowsEnd(_)) => self.reader.rows_end(&self.target),
            Some(Part::Statement(sql)) => {
                self.reader.statement(sql, standard_strings, catalog)?;
                self.target = self.script.target().cloned().unwrap_or_default();
            }
            Some(_) => {}
        }
        Ok(Step::Part)
    }
}

/// Takes rows of the catalog from a dump.
#[derive(Default)]
struct CatalogReader {
    has_keys: bool,
    has_versions: bool,
    /// The tables that INSERTs go into, of which more may follow.
    inserted: Vec<Table>,
}

impl CatalogReader {
    /// Whether nothing more of the catalog follows in a dump of one database, in which all rows of a
    /// table are together.
    fn is_complete(&self) -> bool {
        self.has_keys && self.has_versions
    }

    fn row(&mut self, target: &Target, row: &[u8], catalog: &mut Catalog) -> Result<(), Error> {
        let Some(table) = Table::parse(&target.table) else { return Ok(()) };
        let values: Vec<_> = split_end(row)
            .0
            .split(|byte| *byte == b'\t')
            .map(|field| {
                (field != b"\\N").then(|| {
                    let mut text = Vec::new();
                    copy::unescape(field, &mut text);
                    text
                })
            })
            .collect();
        let columns = match target.columns.is_empty() {
            true => table.columns(values.len()),
            false => target.columns.clone(),
        };
        catalog.add_row(table, &columns, &values)
    }

    fn rows_end(&mut self, target: &Target) {
        if let Some(table) = Table::parse(&target.table).filter(|_| target.is_catalog()) {
            self.has(table);
        }
    }

    fn statement(
        &mut self,
        sql: &[u8],
        standard_strings: bool,
        catalog: &mut Catalog,
    ) -> Result<(), Error> {
        if !is_insert_into_catalog(sql) {
            for table in std::mem::take(&mut self.inserted) {
                self.has(table);
            }
            return Ok(());
        }
        let words = Words::of(sql.trim_ascii_start(), standard_strings);
        let Some((_, table, mut at)) = words.qualified_name(2) else { return Ok(()) };
        let Some(table) = Table::parse(&table) else { return Ok(()) };
        let mut named = Vec::new();
        if words.is(at, b"(") {
            while !words.is(at, b")") && at < words.len() {
                named.extend(words.name(at + 1));
                at += 2;
            }
        }
        let Some(values) = (at..words.len()).find(|at| words.is(*at, b"values")) else {
            return Ok(());
        };
        at = values + 1;
        while words.is(at, b"(") {
            let mut row = Vec::new();
            while !words.is(at, b")") && at < words.len() {
                at += 1;
                row.push(match words.string(at) {
                    Some(text) => Some(text),
                    None if words.is(at, b"null") => None,
                    None => Some(words.text(at).to_vec()),
                });
                at += 1;
            }
            let columns = match named.is_empty() {
                true => table.columns(row.len()),
                false => named.clone(),
            };
            catalog.add_row(table, &columns, &row)?;
            at += 2;
        }
        self.inserted.push(table);
        Ok(())
    }

    fn has(&mut self, table: Table) {
        match table {
            Table::Key => self.has_keys = true,
            Table::KeyVersion => self.has_versions = true,
        }
    }
}

/// Writes a dump with its values opened.
pub struct Decryption<'a> {
    values: &'a mut Values,
    output: Output,
    /// How definitions are rewritten, if they are.
    plain_schema: Option<PlainSchema>,
    /// Whether the catalog is taken from the dump as it comes.
    learns: bool,
    reader: CatalogReader,
    line: Vec<u8>,
}

impl<'a> Decryption<'a> {
    /// Writes to this output. With `learns`, the dump's catalog is used from where it comes on.
    pub fn new(
        values: &'a mut Values,
        output: Output,
        without_extension: bool,
        learns: bool,
    ) -> Self {
        Self {
            values,
            output,
            plain_schema: without_extension.then(PlainSchema::default),
            learns,
            reader: CatalogReader::default(),
            line: Vec::new(),
        }
    }

    /// Reads to the end.
    pub fn run(mut self, input: Input) -> Result<(), Error> {
        let mut lines = Lines::new(input);
        refuse_archive(lines.peek()?)?;
        let mut script = Script::new(lines);
        // Where the rows go that come now: what the script has, without its borrow.
        let mut target = Target::default();
        loop {
            let standard_strings = script.standard_strings();
            let line = script.line() + 1;
            let Some(part) = script.next_part()? else { break };
            match part {
                Part::Row(row) => self.row(row, &target, line)?,
                Part::RowsEnd(end) => {
                    if !self.leaves_out(&target) {
                        self.output.write(end)?;
                    }
                    if target.is_catalog() && self.learns {
                        self.values.keys_have_changed();
                    }
                }
                Part::Blank(text) => self.output.write(text)?,
                Part::Command(line) => {
                    if is_connect(line) {
                        self.values.keys_have_changed();
                        self.values.keys().next_database();
                        self.values.encoding = Encoding::default();
                        self.plain_schema =
                            self.plain_schema.as_ref().map(|_| PlainSchema::default());
                    }
                    self.output.write(line)?;
                }
                Part::Statement(_) => {
                    let sql = std::mem::take(&mut self.line);
                    self.line = self.statement(part.bytes(), sql, standard_strings, line)?;
                    target = script.target().cloned().unwrap_or_default();
                }
            }
        }
        self.output.finish()
    }

    fn leaves_out(&self, target: &Target) -> bool {
        self.plain_schema.is_some() && target.is_catalog()
    }

    fn row(&mut self, row: &[u8], target: &Target, line: u64) -> Result<(), Error> {
        if target.is_catalog() {
            if self.learns {
                self.reader.row(target, row, self.values.keys().catalog())?;
            }
            return match self.plain_schema {
                Some(_) => Ok(()),
                None => self.output.write(row),
            };
        }
        if !nested::may_hold_armor(row) {
            return self.output.write(row);
        }
        let (fields, end) = split_end(row);
        let mut out = std::mem::take(&mut self.line);
        let mut text = Vec::new();
        let mut plain = Vec::new();
        out.clear();
        for (at, field) in fields.split(|byte| *byte == b'\t').enumerate() {
            if at > 0 {
                out.push(b'\t');
            }
            if !nested::may_hold_armor(field) {
                out.extend_from_slice(field);
                continue;
            }
            let field_text = match memchr::memchr(b'\\', field) {
                None => field,
                Some(_) => {
                    text.clear();
                    copy::unescape(field, &mut text);
                    &text
                }
            };
            plain.clear();
            match transform(self.values, field_text, &|| target.place(line, at), &mut plain)? {
                Outcome::Replaced => copy::escape(&plain, &mut out),
                Outcome::Unchanged | Outcome::Stray => out.extend_from_slice(field),
            }
        }
        out.extend_from_slice(end);
        self.output.write(&out)?;
        self.line = out;
        Ok(())
    }

    /// Writes a statement. `out` is a buffer to use, which is given back.
    fn statement(
        &mut self,
        sql: &[u8],
        mut out: Vec<u8>,
        standard_strings: bool,
        line: u64,
    ) -> Result<Vec<u8>, Error> {
        let trimmed = sql.trim_ascii_start();
        let is_insert = starts_with_word(trimmed, b"insert");
        if is_insert_into_catalog(sql) && self.learns {
            self.reader.statement(sql, standard_strings, self.values.keys().catalog())?;
            self.values.keys_have_changed();
        }
        let has_armor = nested::may_hold_armor(sql);
        let rewrites = self.plain_schema.is_some() && (!is_insert || is_insert_into_catalog(sql));
        let names_keys = !is_insert && memchr::memmem::find(sql, b"encrypted_").is_some();
        if starts_with_word(trimmed, b"set") {
            self.take_encoding(&Words::of(trimmed, standard_strings));
        }
        if !has_armor && !rewrites && !names_keys {
            self.output.write(sql)?;
            return Ok(out);
        }
        let words = Words::of(sql, standard_strings);
        for name in plain_schema::key_names(&words) {
            if let Some(name) = std::str::from_utf8(&name).ok().and_then(|n| KeyName::parse(n).ok())
            {
                self.values.keys().add_name(name);
            }
        }
        let mut edits = Vec::new();
        if rewrites && let Some(schema) = &mut self.plain_schema {
            let rewriting = schema.rewrite(&words);
            if let Some(note) = rewriting.note {
                crate::say(format_args!("note: line {line}: {note}"));
            }
            if rewriting.is_left_out {
                let title = plain_schema::title(&words);
                self.output.write(b"-- left out by encryption_ext-decrypt: ")?;
                self.output.write(&title)?;
                self.output.write(b"\n")?;
                return Ok(out);
            }
            edits = rewriting.edits;
        }
        if has_armor {
            self.replace_strings(&words, line, &mut edits)?;
        }
        out.clear();
        let mut at = 0;
        for (range, text) in edits {
            out.extend_from_slice(&sql[at..range.start]);
            out.extend_from_slice(&text);
            at = range.end;
        }
        out.extend_from_slice(&sql[at..]);
        self.output.write(&out)?;
        Ok(out)
    }

    fn replace_strings(
        &mut self,
        words: &Words<'_>,
        line: u64,
        edits: &mut Vec<(std::ops::Range<usize>, Vec<u8>)>,
    ) -> Result<(), Error> {
        for (at, token) in words.tokens().iter().enumerate() {
            let written = words.text(at);
            if !nested::may_hold_armor(written) {
                continue;
            }
            let place = || {
                let before = &words.sql()[..token.range.start];
                let lines = memchr::memchr_iter(b'\n', before).count();
                let column = before.len() - memchr::memrchr(b'\n', before).map_or(0, |n| n + 1) + 1;
                format!("line {}, column {column}", line + u64::try_from(lines).unwrap_or_default())
            };
            let Kind::String(escapes) = token.kind else {
                self.values.leave_stray(&place);
                continue;
            };
            let Some(text) = sql::string_text(written, escapes) else {
                self.values.leave_stray(&place);
                continue;
            };
            let mut plain = Vec::new();
            if transform(self.values, &text, &place, &mut plain)? == Outcome::Replaced {
                let mut string = Vec::new();
                sql::write_string(&plain, written, escapes, &mut string);
                edits.push((token.range.clone(), string));
            }
        }
        edits.sort_by_key(|(range, _)| range.start);
        Ok(())
    }

    fn take_encoding(&mut self, words: &Words<'_>) {
        if words.is(1, b"client_encoding")
            && let Some(name) = words.string(3)
        {
            self.values.encoding = Encoding::parse(&String::from_utf8_lossy(&name));
        }
    }
}

/// Opens what is armor in a value's text form.
pub fn transform(
    values: &mut Values,
    text: &[u8],
    place: &dyn Fn() -> String,
    out: &mut Vec<u8>,
) -> Result<Outcome, Error> {
    let mut open = |armor: &[u8], out: &mut Vec<u8>| values.open(armor, place, out);
    let outcome = nested::transform(text, &mut open, out)?;
    if outcome == Outcome::Stray {
        values.leave_stray(place);
    }
    Ok(outcome)
}

fn is_insert_into_catalog(sql: &[u8]) -> bool {
    sql.trim_ascii_start().starts_with(b"INSERT INTO encryption.")
}

fn is_connect(command: &[u8]) -> bool {
    let command = command.trim_ascii_start();
    command.starts_with(b"\\connect") || command.starts_with(b"\\c ")
}

/// An archive of pg_dump's, which only pg_restore reads.
fn refuse_archive(beginning: &[u8]) -> Result<(), Error> {
    let is_tar = beginning.get(257..262) == Some(b"ustar");
    match beginning {
        [b'P', b'G', b'D', b'M', b'P', ..] => {}
        _ if is_tar => {}
        _ => return Ok(()),
    }
    Err(Error::new("it is an archive of pg_dump's, and not a plain dump").with_hint(
        "Make it a plain one, which needs no server: pg_restore -f plain.sql FILE. Then give plain.sql.",
    ))
}
