//! Every character of every server encoding survives, and a value means the same text in databases
//! of different encodings.

#![expect(
    clippy::panic,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a test fails by a panic, and prints what it counted"
)]

use std::fs;
use std::thread;

use cluster_tests::{DATABASE, RAW_CASTS, Session, bytea, connect, hex, start, texts_of};
use harness::cluster::{Cluster, SUPERUSER};

/// The encodings that a database can have (`src/include/mb/pg_wchar.h`, up to
/// `PG_ENCODING_BE_LAST`).
const ENCODINGS: [&str; 35] = [
    "SQL_ASCII",
    "EUC_JP",
    "EUC_CN",
    "EUC_KR",
    "EUC_TW",
    "EUC_JIS_2004",
    "UTF8",
    "MULE_INTERNAL",
    "LATIN1",
    "LATIN2",
    "LATIN3",
    "LATIN4",
    "LATIN5",
    "LATIN6",
    "LATIN7",
    "LATIN8",
    "LATIN9",
    "LATIN10",
    "WIN1256",
    "WIN1258",
    "WIN866",
    "WIN874",
    "KOI8R",
    "WIN1251",
    "WIN1252",
    "ISO_8859_5",
    "ISO_8859_6",
    "ISO_8859_7",
    "ISO_8859_8",
    "WIN1250",
    "WIN1253",
    "WIN1254",
    "WIN1255",
    "WIN1257",
    "KOI8U",
];

/// Byte sequences that may be characters of an encoding; the server knows which ones are.
fn candidates(encoding: &str) -> Vec<Vec<u8>> {
    let mut candidates: Vec<Vec<u8>> = (1..=255).map(|byte| vec![byte]).collect();
    let mut products = |prefix: &[u8], firsts: &[u8], step: usize| {
        for &first in firsts {
            for second in (0xa0..=0xff_u8).step_by(step) {
                candidates.push([prefix, &[first, second]].concat());
            }
        }
    };
    let high: Vec<u8> = (0xa0..=0xff).collect();
    match encoding {
        "EUC_CN" | "EUC_KR" => products(&[], &high, 1),
        "EUC_JP" | "EUC_JIS_2004" => {
            products(&[], &[0x8e], 1);
            products(&[], &high, 1);
            products(&[0x8f], &high, 1);
        }
        "EUC_TW" => {
            products(&[], &high, 1);
            for plane in 0xa1..=0xb0 {
                products(&[0x8e, plane], &high, 5);
            }
        }
        "MULE_INTERNAL" => {
            products(&[], &(0x81..=0x8d).collect::<Vec<_>>(), 1);
            for charset in 0x90..=0x99 {
                products(&[charset], &high, 5);
            }
            products(&[0x9a], &high, 5);
        }
        "UTF8" => {
            let points = (0x80..0x3000).chain((0x3000..0x11_0000).step_by(61));
            let characters = points.filter_map(char::from_u32);
            candidates.extend(characters.map(|character| character.to_string().into_bytes()));
        }
        // Whatever there is has one byte.
        _ => {}
    }
    candidates
}

/// Stores each candidate that is a character beside itself in plain text, all of them in one value
/// as well, and says how many there are, how many are wrong, and how many are in UTF-8 inside. It
/// leaves the values that are, and their texts in UTF-8, in a file for other databases.
const SCRIPT: &str = "
    CREATE TABLE t (plain text, sealed encrypted_text('k'), from_input encrypted_text('k'));
    CREATE FUNCTION fill() RETURNS void LANGUAGE plpgsql AS $$
    DECLARE
        bytes bytea;
        character text;
        key integer := (SELECT key_id FROM enc_keys WHERE name = 'k');
    BEGIN
        FOR bytes IN SELECT candidate FROM candidates LOOP
            BEGIN
                character := convert_from(bytes, getdatabaseencoding());
            EXCEPTION WHEN character_not_in_repertoire OR untranslatable_character THEN
                CONTINUE;
            END;
            INSERT INTO t
            VALUES (character, character, encrypted_text_in(textout(character), 0, key));
        END LOOP;
        SELECT string_agg(plain, '') INTO character FROM t;
        character := repeat(character, 1 + 300000 / octet_length(character));
        INSERT INTO t VALUES (character, character, encrypted_text_in(textout(character), 0, key));
    END $$;
    SELECT fill();
    SELECT count(*),
           count(*) FILTER (WHERE NOT (sealed::text = plain AND sealed = plain::encrypted_text('k')
               AND from_input = sealed AND textin(encrypted_text_out(sealed)) = plain
               AND encrypted_text_send(sealed) = textsend(plain)
               AND octet_length(sealed::text) = octet_length(plain))),
           count(*) FILTER (WHERE get_byte(sealed::bytea, 1) = 1)
      FROM t;";

#[test]
fn every_character_of_every_encoding_survives() {
    let Some(cluster) = start("every_character_of_every_encoding_survives") else { return };
    connect(&cluster).run("SELECT enc_create_key('k')");
    let (first, second) = ENCODINGS.split_at(ENCODINGS.len() / 2);
    thread::scope(|scope| {
        for encodings in [first, second] {
            let cluster = &cluster;
            scope.spawn(move || encodings.iter().for_each(|encoding| check(cluster, encoding)));
        }
    });
}

fn check(cluster: &Cluster, encoding: &str) {
    let database = encoding.to_lowercase();
    cluster.createdb(&database, encoding);
    let moved = cluster.directory().join(format!("{database}.copy"));
    let candidates = candidates(encoding);
    let lines: String =
        candidates.iter().map(|candidate| format!("\\\\x{}\n", hex(candidate))).collect();
    // What is inside as UTF-8 has a text in UTF-8 of the same meaning.
    let utf8 = match encoding {
        "SQL_ASCII" | "MULE_INTERNAL" => "convert_to(plain, getdatabaseencoding())",
        _ => "convert_to(plain, 'UTF8')",
    };
    let script = format!(
        "SET client_min_messages = error;
         CREATE EXTENSION encryption_ext; {RAW_CASTS}
         SELECT enc_create_key('k') \\g /dev/null
         CREATE TABLE candidates (candidate bytea);
         COPY candidates FROM STDIN;\n{lines}\\.\n{SCRIPT}
         COPY (SELECT sealed::bytea, {utf8} FROM t WHERE get_byte(sealed::bytea, 1) = 1)
         TO '{}';",
        moved.display()
    );
    let file = cluster.directory().join(format!("{database}.sql"));
    fs::write(&file, script).unwrap();
    let arguments = ["-qAt", "-F", " ", "-v", "ON_ERROR_STOP=1", "-f", file.to_str().unwrap()];
    // psql and not a driver, which would have the server convert everything to UTF-8.
    let output = cluster.psql(SUPERUSER, &database, &arguments);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{encoding}: {errors}");
    let output = String::from_utf8_lossy(&output.stdout);
    let counts: Vec<usize> = output
        .lines()
        .filter_map(|line| line.split(' ').map(|count| count.parse().ok()).collect())
        .find(|counts: &Vec<usize>| counts.len() == 3)
        .unwrap_or_else(|| panic!("{encoding}: {output} {errors}"));
    println!("{encoding}: characters, wrong, in UTF-8 inside: {counts:?}");

    assert_eq!(counts[1], 0, "{encoding}");
    let (least, in_utf8) = match encoding {
        "SQL_ASCII" => (256, 127),
        "MULE_INTERNAL" => (2000, 127),
        "UTF8" => (20_000, counts[0]),
        "EUC_JP" | "EUC_JIS_2004" | "EUC_TW" => (10_000, 5000),
        "EUC_CN" | "EUC_KR" => (8000, 6000),
        _ => (170, 128),
    };
    assert!(counts[0] >= least, "{encoding}: only {} characters", counts[0]);
    assert!(counts[2] >= in_utf8, "{encoding}: only {} in UTF-8", counts[2]);

    // In a database in UTF8 with the same key they are the same texts.
    let mut session = connect(cluster);
    session.run(&format!(
        "CREATE TABLE from_{database} (sealed bytea, utf8 bytea);
         COPY from_{database} FROM '{}'",
        moved.display()
    ));
    let equal = format!(
        "SELECT count(*) FILTER (WHERE convert_to(sealed::encrypted_text::text, 'UTF8') = utf8)
         FROM from_{database}"
    );
    assert_eq!(session.value::<i64>(&equal), i64::try_from(counts[2]).unwrap(), "{encoding}");
}

#[test]
fn a_character_that_an_encoding_has_not_is_refused_and_not_shown() {
    let test = "a_character_that_an_encoding_has_not_is_refused_and_not_shown";
    let Some(cluster) = start(test) else { return };
    connect(&cluster).run("SELECT enc_create_key('k')");
    cluster.createdb("latin1", "LATIN1");
    cluster_tests::create_extension(&cluster, "latin1");
    let mut latin1 = cluster.connect(SUPERUSER, "latin1");
    latin1.run("SELECT enc_create_key('k')");

    let mut utf8 = cluster.connect(SUPERUSER, DATABASE);
    let mut seal = |text: &str| -> Vec<u8> {
        utf8.value(&format!("SELECT '{text}'::encrypted_text('k')::bytea"))
    };
    let moved = |text: &[u8]| format!("SELECT {}::encrypted_text", bytea(text));
    for text in ["", "plain", "größe, naïve, ÿ"] {
        let sealed = seal(text);
        assert_eq!(latin1.text(&moved(&sealed)), text);
        assert_eq!(latin1.text(&format!("{}::text", moved(&sealed))), text);
        assert_eq!(latin1.text(&format!("{} = '{text}'::encrypted_text", moved(&sealed))), "t");
    }
    for text in ["€", "secret € sign", "日本", "größe\u{301}"] {
        let sealed = moved(&seal(text));
        for sql in
            [sealed.clone(), format!("{sealed}::text"), format!("{sealed} = 'x'::encrypted_text")]
        {
            let error = latin1.fails(&sql, "KE048");
            let texts = texts_of(&error);
            assert!(texts.contains("LATIN1") && texts.is_ascii(), "{texts}");
            assert!(!texts.contains("secret") && !texts.contains("0x"), "{texts}");
        }
        // Re-encrypting is the same as reading.
        latin1.fails(&format!("{sealed}::encrypted_text('k')::text"), "KE048");
    }
    assert!(!cluster.log().contains("secret € sign") && !cluster.log().contains("日本"));

    // A text that UTF-8 has no conversion of is one for databases of its encoding.
    cluster.createdb("ascii", "SQL_ASCII");
    cluster_tests::create_extension(&cluster, "ascii");
    let mut ascii = cluster.connect(SUPERUSER, "ascii");
    ascii.run("SELECT enc_create_key('k')");
    let sealed: Vec<u8> =
        ascii.value("SELECT convert_from('\\xfffe', 'SQL_ASCII')::encrypted_text('k')::bytea");
    assert_eq!(
        ascii.text(&format!(
            "SELECT convert_to({}::encrypted_text::text, 'SQL_ASCII')",
            bytea(&sealed)
        )),
        "\\xfffe"
    );
    utf8.fails(&moved(&sealed), "KE048");
    let _ = latin1.text(&format!("SELECT length({}::encrypted_text)", bytea(&sealed)));
}
