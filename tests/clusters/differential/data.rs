//! The data: the same rows in the tables of schema `plain` and in those of schema `encrypted`, whose
//! columns are of the types `text` and `bytea` here, `encrypted_text` and `encrypted_bytea` there.

use std::io::{Read, Write};

use cluster_tests::{Session, hex};
use fastrand::Rng;
use postgres::Client;

use crate::side::Side;

/// Rows of the larger table, and of each other one.
const ROWS: usize = 160;
const FEWER_ROWS: usize = 70;

/// Plaintexts that rows and queries draw from: so that they meet.
pub struct Pool {
    texts: Vec<String>,
    byte_strings: Vec<Vec<u8>>,
}

impl Pool {
    pub fn new(rng: &mut Rng) -> Self {
        let mut texts: Vec<String> = TEXTS.iter().map(|text| (*text).to_owned()).collect();
        // Longer than `name` can be, than a page, than what is kept out of TOAST; different in the
        // last character alone.
        for len in [62, 63, 64, 127, 2000, 9000] {
            let prefix: String = (0..len).map(|_| rng.alphabetic()).collect();
            texts.extend(["", "a", "b"].map(|end| prefix.clone() + end));
        }
        texts.push("𝒳é".repeat(3000));
        for _ in 0..30 {
            let len = rng.usize(1..20);
            texts.push((0..len).map(|_| ALPHABET[rng.usize(..ALPHABET.len())]).collect());
        }

        let mut byte_strings: Vec<Vec<u8>> =
            texts.iter().take(30).map(|text| text.clone().into_bytes()).collect();
        byte_strings.extend([vec![0], vec![0, 0], vec![255], vec![255, 0], vec![0x80; 16]]);
        let long: Vec<u8> = (0..9000).map(|_| rng.u8(..)).collect();
        byte_strings.push([&long[..], &[1]].concat());
        byte_strings.push([&long[..], &[2]].concat());
        byte_strings.push(long);
        Self { texts, byte_strings }
    }

    /// A text, now and then one that is in no row.
    pub fn text(&self, rng: &mut Rng) -> String {
        let text = &self.texts[skewed(rng, self.texts.len())];
        match rng.u32(..20) {
            0 => format!("{text}x"),
            1 => text.chars().skip(1).collect(),
            2 => text.to_uppercase(),
            _ => text.clone(),
        }
    }

    /// A byte string, now and then one that is in no row.
    pub fn byte_string(&self, rng: &mut Rng) -> Vec<u8> {
        let mut bytes = self.byte_strings[skewed(rng, self.byte_strings.len())].clone();
        if rng.u32(..10) == 0 {
            bytes.push(0);
        }
        bytes
    }

    /// A pattern of LIKE.
    pub fn pattern(&self, rng: &mut Rng) -> String {
        let text = self.text(rng);
        let part: String = text.chars().take(4).collect();
        match rng.u32(..5) {
            0 => format!("{part}%"),
            1 => format!("%{part}"),
            2 => format!("%{part}%"),
            3 => "%_@_%".to_owned(),
            _ => part,
        }
    }

    fn row_text(&self, rng: &mut Rng) -> Option<&str> {
        (rng.u32(..12) > 0).then(|| self.texts[skewed(rng, self.texts.len())].as_str())
    }

    fn row_bytes(&self, rng: &mut Rng) -> Option<&[u8]> {
        (rng.u32(..12) > 0)
            .then(|| self.byte_strings[skewed(rng, self.byte_strings.len())].as_slice())
    }
}

/// The first ones of a list are drawn more often: duplicates, and values that many rows have.
fn skewed(rng: &mut Rng, len: usize) -> usize {
    let limit = rng.usize(1..=len);
    rng.usize(..limit)
}

const ALPHABET: [char; 16] =
    ['a', 'b', 'B', 'z', ' ', '0', '9', '-', '@', '.', 'é', '\u{301}', 'ß', 'Ж', '中', '😀'];

const TEXTS: [&str; 56] = [
    "alice@example.com",
    "",
    "bob@example.com",
    "Alice@Example.com",
    "ALICE@EXAMPLE.COM",
    " ",
    "a",
    "b",
    "alice@example.co",
    "alice@example.com ",
    "alice@example.com  ",
    " alice@example.com",
    "O'Hara",
    "o'hara",
    "back\\slash",
    "50%",
    "under_score",
    "{\"braces\", and, commas}",
    "NULL",
    "line\nfeed",
    "tab\tulator",
    "é",
    "e\u{301}",
    "É",
    "E\u{301}",
    "straße",
    "STRASSE",
    "strasse",
    "ﬃ",
    "ffi",
    "Å",
    "\u{212b}",
    "A\u{30a}",
    "İstanbul",
    "istanbul",
    "ıstanbul",
    "ISTANBUL",
    "Ω",
    "\u{2126}",
    "😀",
    "😀😀",
    "👩\u{200d}👩\u{200d}👧",
    "𝒳",
    "\u{10ffff}",
    "\u{ffff}",
    "\u{e000}",
    "日本語",
    "Ελληνικός",
    "ΕΛΛΗΝΙΚΌΣ",
    "10",
    "9",
    "+49 30 901820",
    "0049-30-901820",
    "(030) 90 18 20",
    "enc:1:",
    "\\x00",
];

/// Makes both schemas with the same rows.
///
/// The rows of `encrypted` come in by all ways in, and under several versions of the keys.
pub fn make(session: &mut Client, pool: &Pool, rng: &mut Rng) {
    session.run("SELECT enc_create_key('k1'), enc_create_key('k2')");
    for side in Side::BOTH {
        session.run(&side.words(&format!("CREATE SCHEMA {{side}}; {TABLES}")));
    }
    for id in 1..=ROWS {
        // Unique, with some nulls.
        let unique = (rng.u32(..10) > 0).then(|| format!("{id}-{}", pool.text(rng)));
        let tags: Vec<_> = (0..rng.usize(..4)).map(|_| pool.row_text(rng)).collect();
        let row = [
            id.to_string(),
            literal(pool.row_text(rng)),
            literal(pool.row_text(rng)),
            literal(pool.row_text(rng)),
            literal(unique.as_deref()),
            bytes_literal(pool.row_bytes(rng)),
            bytes_literal(pool.row_bytes(rng)),
            literal(Some(&array(&tags))),
            literal(pool.row_text(rng)),
            rng.u32(..100).to_string(),
        ];
        insert(session, "t", id, &row);
    }
    for id in 1..=FEWER_ROWS {
        let name = pool.row_text(rng).map(|text| text.chars().take(15).collect::<String>());
        let row = [
            id.to_string(),
            literal(pool.row_text(rng)),
            literal(pool.row_text(rng)),
            bytes_literal(pool.row_bytes(rng)),
            literal(pool.row_text(rng)),
            literal(pool.row_text(rng)),
            literal(name.as_deref()),
            rng.u32(..100).to_string(),
        ];
        insert(session, "u", id, &row);
        let region = ["eu", "us", "asia"][rng.usize(..3)];
        let row = [id.to_string(), literal(Some(region)), literal(pool.row_text(rng))];
        insert(session, "r", id, &row);
        if id == FEWER_ROWS / 3 {
            session.run("SELECT enc_rotate_key('k1'), enc_rotate_key('k2')");
        }
    }
    for table in ["t", "u", "r"] {
        copy(session, table);
    }
    session.run(
        "SELECT enc_rotate_key('k1');
         UPDATE encrypted.t SET a = enc_rotate(a), bin = enc_rotate(bin) WHERE id % 7 = 0;
         UPDATE encrypted.u SET a = enc_rotate(a) WHERE id % 5 = 0;
         UPDATE encrypted.r SET a = enc_rotate(a) WHERE id % 3 = 0;
         ANALYZE plain.t, plain.u, plain.r",
    );
    let versions = "SELECT count(DISTINCT enc_key_version(a)) FROM encrypted.u";
    assert_eq!(session.text(versions), "3", "rows are of several versions of a key");
}

/// `{side}` is the schema, `{T}` and `{B}` are the types, with `('k1')` for a key.
const TABLES: &str = "
    CREATE TABLE {side}.t (
        id   integer PRIMARY KEY,
        a    {T('k1')},
        b    {T('k2')},
        i    {T('k1')} COLLATE icu,
        w    {T('k2')},
        bin  {B('k1')},
        bin2 {B('k2')},
        tags {T('k1')}[],
        p    text,
        n    integer);
    CREATE TABLE {side}.u (
        id   integer PRIMARY KEY,
        a    {T('k1')},
        c    {T('k2')},
        bin  {B('k2')},
        p    text,
        vc   varchar(20000),
        nm   name,
        n    integer);
    CREATE TABLE {side}.r (id integer, region text, a {T('k1')}) PARTITION BY LIST (region);
    CREATE TABLE {side}.r_eu PARTITION OF {side}.r FOR VALUES IN ('eu');
    CREATE TABLE {side}.r_us PARTITION OF {side}.r FOR VALUES IN ('us');
    CREATE TABLE {side}.r_other PARTITION OF {side}.r DEFAULT;";

/// Inserts a row of literals into the plain table, and every third into the encrypted one, too.
fn insert(session: &mut Client, table: &str, id: usize, row: &[String]) {
    let row = row.join(", ");
    session.run(&format!("INSERT INTO plain.{table} VALUES ({row})"));
    if id.is_multiple_of(3) {
        session.run(&format!("INSERT INTO encrypted.{table} VALUES ({row})"));
    }
}

/// Brings the other rows of the plain table into the encrypted one: by casts, and by COPY.
fn copy(session: &mut Client, table: &str) {
    session.run(&format!(
        "INSERT INTO encrypted.{table} SELECT * FROM plain.{table} WHERE id % 3 = 1"
    ));
    let mut rows = Vec::new();
    session
        .copy_out(&format!("COPY (SELECT * FROM plain.{table} WHERE id % 3 = 2) TO STDOUT"))
        .unwrap()
        .read_to_end(&mut rows)
        .unwrap();
    let mut copy = session.copy_in(&format!("COPY encrypted.{table} FROM STDIN")).unwrap();
    copy.write_all(&rows).unwrap();
    copy.finish().unwrap();
    let count = |schema| format!("SELECT count(*) FROM {schema}.{table}");
    assert_eq!(session.text(&count("encrypted")), session.text(&count("plain")));
}

/// A literal of no type.
pub fn literal(text: Option<&str>) -> String {
    text.map_or_else(|| "NULL".to_owned(), |text| format!("'{}'", text.replace('\'', "''")))
}

/// A byte string as a literal of no type.
pub fn bytes_literal(bytes: Option<&[u8]>) -> String {
    bytes.map_or_else(|| "NULL".to_owned(), |bytes| format!("'\\x{}'", hex(bytes)))
}

/// The text form of an array.
pub fn array<T: AsRef<str>>(elements: &[Option<T>]) -> String {
    let elements = elements.iter().map(|element| match element {
        None => "NULL".to_owned(),
        Some(text) => {
            format!("\"{}\"", text.as_ref().replace('\\', "\\\\").replace('"', "\\\""))
        }
    });
    format!("{{{}}}", elements.collect::<Vec<_>>().join(","))
}
