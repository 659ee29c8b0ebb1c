//! Values of all sizes and in all places, and bytes that are no value.

#![expect(clippy::panic, reason = "a test fails by a panic")]

use cluster_tests::{
    Binary, Session, bytea, connect, data_key, expect_error, header, hex, seal, start, texts_of,
};
use envelope::{OVERHEAD, PlaintextKind, armor};
use harness::cluster::Cluster;
use postgres::Client;

fn cluster(test: &str) -> Option<Cluster> {
    let cluster = start(test)?;
    connect(&cluster).run("SELECT enc_create_key('k'), enc_create_key('other')");
    Some(cluster)
}

#[test]
fn values_of_all_sizes_come_back() {
    let Some(cluster) = cluster("values_of_all_sizes_come_back") else { return };
    let mut session = connect(&cluster);
    session.run(
        "CREATE TABLE t (id integer, x encrypted_text('k'), b encrypted_bytea('k'), plain text);
         CREATE TABLE sizes AS SELECT * FROM unnest(ARRAY
             [0, 1, 2, 15, 16, 17, 76, 77, 126, 127, 1000, 1950, 2000, 2048, 8192, 100000, 1048576])
             AS size;
         INSERT INTO t SELECT size, repeat('é', size / 2) || repeat('e', size % 2),
                              decode(repeat('00ff', size / 2) || repeat('80', size % 2), 'hex'),
                              repeat('é', size / 2) || repeat('e', size % 2) FROM sizes",
    );
    let mut fresh = connect(&cluster);
    let good = "SELECT count(*) FROM t WHERE x = plain::encrypted_text('k')
                AND x::text = plain AND octet_length(x::text) = id
                AND b::bytea = decode(repeat('00ff', id / 2) || repeat('80', id % 2), 'hex')";
    assert_eq!(fresh.text(good), "17");
    let overhead = "SELECT string_agg(DISTINCT (octet_length(x::bytea) - id)::text, ' ') FROM t";
    assert_eq!(fresh.text(overhead), OVERHEAD.to_string());
    let overhead = "SELECT string_agg(DISTINCT (octet_length(b::encrypted_text::bytea) - id)::text, ' ') FROM t";
    assert_eq!(fresh.text(overhead), OVERHEAD.to_string());

    // Through both protocols, both ways.
    let insert = session.prepare("INSERT INTO t VALUES (-1, $1, $2, $3)").unwrap();
    for len in [0, 1, 2000, 1 << 20] {
        let text = "x".repeat(len);
        let bytes: Vec<u8> = (0..len).map(|n| (n * 7) as u8).collect();
        let parameters = (Binary(text.clone().into_bytes()), Binary(bytes.clone()));
        session.execute(&insert, &[&parameters.0, &parameters.1, &text]).unwrap();
        let row =
            fresh.query_one("SELECT x, b, x::text, b::bytea FROM t WHERE id = -1", &[]).unwrap();
        assert_eq!(row.get::<_, Binary>(0), parameters.0);
        assert_eq!(row.get::<_, Binary>(1), parameters.1);
        assert_eq!(row.get::<_, &str>(2), text);
        assert_eq!(row.get::<_, &[u8]>(3), bytes);
        assert_eq!(fresh.text("SELECT x FROM t WHERE id = -1"), text);
        assert_eq!(fresh.text("SELECT b FROM t WHERE id = -1"), format!("\\x{}", hex(&bytes)));
        session.run("DELETE FROM t WHERE id = -1");
        session
            .run(&format!("INSERT INTO t VALUES (-1, '{text}', '\\x{}', '{text}')", hex(&bytes)));
        assert_eq!(fresh.text("SELECT x FROM t WHERE id = -1"), text);
        assert_eq!(fresh.text("SELECT b FROM t WHERE id = -1"), format!("\\x{}", hex(&bytes)));
        session.run("DELETE FROM t WHERE id = -1");
    }

    // COPY in both formats.
    for format in ["text", "csv", "binary"] {
        let mut copied = Vec::new();
        let copy = format!("COPY (SELECT id, x, b, plain FROM t) TO STDOUT (FORMAT {format})");
        std::io::Read::read_to_end(&mut fresh.copy_out(&copy).unwrap(), &mut copied).unwrap();
        session.run("CREATE TEMP TABLE copied (LIKE t)");
        let mut writer =
            session.copy_in(&format!("COPY copied FROM STDIN (FORMAT {format})")).unwrap();
        std::io::Write::write_all(&mut writer, &copied).unwrap();
        assert_eq!(writer.finish().unwrap(), 17);
        let equal = "SELECT count(*) FROM t JOIN copied USING (id)
                     WHERE t.x = copied.x AND t.b = copied.b AND copied.x::text = copied.plain";
        assert_eq!(session.text(equal), "17", "{format}");
        session.run("DROP TABLE copied");
    }
}

#[test]
fn a_value_of_three_hundred_megabytes_comes_back() {
    let Some(cluster) = cluster("a_value_of_three_hundred_megabytes_comes_back") else { return };
    const LEN: usize = 300 << 20;
    let mut session = connect(&cluster);
    session.run(
        "CREATE UNLOGGED TABLE t (x encrypted_text('k'), b encrypted_bytea('k'));
         INSERT INTO t (x) SELECT repeat('0123456789abcdef', 300 * 65536)",
    );
    let (sent, read) = (
        session.text("SELECT md5(repeat('0123456789abcdef', 300 * 65536))"),
        session.text("SELECT md5(x) FROM t"),
    );
    assert_eq!(sent, read);
    // The value as a client gets it and gives it back, in text and in binary.
    let text = session.text("SELECT x FROM t");
    assert_eq!(text.len(), LEN);
    session.run("TRUNCATE t");
    session.execute("INSERT INTO t (x) VALUES ($1)", &[&Binary(text.into_bytes())]).unwrap();
    assert_eq!(session.text("SELECT md5(x) FROM t"), sent);
    let stored = "SELECT octet_length(x::bytea) FROM t";
    assert_eq!(session.text(stored), (LEN + OVERHEAD).to_string());

    session.run("UPDATE t SET b = convert_to(x, 'UTF8'), x = NULL");
    assert_eq!(session.text("SELECT md5(b) FROM t"), sent);
    let Binary(bytes) = session.query_one("SELECT b FROM t", &[]).unwrap().get(0);
    session.run("TRUNCATE t");
    session.execute("INSERT INTO t (b) VALUES ($1)", &[&Binary(bytes)]).unwrap();
    assert_eq!(session.text("SELECT md5(b) FROM t"), sent);
    drop(session);

    // A value that is too long is refused, and the session goes on.
    let mut session = connect(&cluster);
    session.run("CREATE TABLE long (b encrypted_bytea('k'))");
    let most = 0x3fff_ffff - 4 - OVERHEAD;
    session.fails(
        &format!("INSERT INTO long SELECT convert_to(repeat('x', {}), 'UTF8')", most + 1),
        "KE046",
    );
    assert_eq!(session.text("SELECT 'alive'::encrypted_text"), "alive");
}

#[test]
fn values_live_wherever_postgresql_puts_them() {
    let Some(cluster) = cluster("values_live_wherever_postgresql_puts_them") else { return };
    let mut session = connect(&cluster);
    session.run(
        "CREATE DOMAIN email AS encrypted_text('k') CHECK (VALUE LIKE '%@%');
         CREATE TYPE person AS (name encrypted_text('k'), photo encrypted_bytea('other'));
         CREATE TABLE t (id integer, list encrypted_text('k')[], grid encrypted_text('k')[][],
                         address email, addresses email[], who person, staff person[]);
         INSERT INTO t VALUES (1, '{a,\"b c\",NULL,\"\"}', ARRAY[['a','b'],['c','d']],
             'alice@example.com', '{a@x,b@x}', ROW('alice', '\\x00ff'),
             ARRAY[ROW('bob', '\\x01')::person, ROW('carol', NULL)::person]);
         INSERT INTO t (id, list) SELECT 2, array_agg(n::text) FROM generate_series(1, 1000) AS n",
    );
    let row =
        "SELECT concat_ws(' ', list, grid, address, addresses, who, staff) FROM t WHERE id = 1";
    assert_eq!(
        connect(&cluster).text(row),
        r#"{a,"b c",NULL,""} {{a,b},{c,d}} alice@example.com {a@x,b@x} (alice,"\\x00ff") {"(bob,\"\\\\x01\")","(carol,)"}"#
    );
    let keys = "SELECT enc_key_name(list[1]) || enc_key_name(grid[2][1]) || enc_key_name(address)
                || enc_key_name(addresses[2]) || enc_key_name((who).name)
                || enc_key_name((who).photo) || enc_key_name((staff[1]).photo) FROM t WHERE id = 1";
    assert_eq!(session.text(keys), "kkkkkotherother");
    assert_eq!(session.text("SELECT list[1000] FROM t WHERE id = 2"), "1000");
    assert_eq!(session.text("SELECT 'b c' = ANY (list) FROM t WHERE id = 1"), "t");
    session.fails("INSERT INTO t (address) VALUES ('nobody')", "23514");

    // A domain, an array or a composite type whose values have no key is none for a column.
    session.fails("CREATE DOMAIN keyless AS encrypted_text", "KE031");
    session.fails("CREATE TYPE keyless AS (v encrypted_text)", "KE031");
    session.fails("CREATE TABLE keyless (v encrypted_text[])", "KE031");
    session.fails("CREATE TABLE keyless AS SELECT 'x'::encrypted_text AS v", "KE031");
    session.fails("ALTER TABLE t ADD v encrypted_bytea", "KE031");

    // PL/pgSQL variables, temporary tables, partitions, UPDATE between keys, materialized views.
    session.run(
        "CREATE TABLE parts (id integer, v encrypted_text('k')) PARTITION BY RANGE (id);
         CREATE TABLE low PARTITION OF parts FOR VALUES FROM (0) TO (10);
         CREATE TABLE high PARTITION OF parts FOR VALUES FROM (10) TO (20);
         INSERT INTO parts SELECT n, n::text FROM generate_series(0, 19) AS n;
         UPDATE parts SET id = 19 - id, v = v || '!';
         CREATE TEMP TABLE moved (a encrypted_text('k'), b encrypted_text('other'), c text);
         INSERT INTO moved VALUES ('x', 'y', NULL);
         UPDATE moved SET a = b, b = a, c = a || b;
         CREATE MATERIALIZED VIEW seen AS SELECT v FROM parts WHERE id < 5;
         DO $$
         DECLARE
             plain text := 'plain';
             keyed encrypted_text('other') := 'keyed';
             loose encrypted_text := plain;
             rec record;
         BEGIN
             keyed := keyed || loose;
             INSERT INTO moved VALUES (keyed, loose, keyed);
             FOR rec IN SELECT v FROM parts LOOP
                 INSERT INTO moved VALUES (rec.v, rec.v, NULL);
             END LOOP;
             EXECUTE 'INSERT INTO moved VALUES ($1, $2, NULL)' USING keyed, plain;
         END $$",
    );
    assert_eq!(session.text("SELECT count(*) FROM high WHERE v LIKE '_!'"), "10");
    assert_eq!(session.text("SELECT count(*) FROM seen WHERE v::text ~ '^1[5-9]!$'"), "5");
    let moved = "SELECT a || b || c FROM moved WHERE c IS NOT NULL ORDER BY c::text COLLATE \"C\"";
    assert_eq!(
        session.texts(moved),
        ["keyedplainplainkeyedplain", "yxxy"].map(|text| Some(text.to_owned()))
    );
    let under = "SELECT string_agg(DISTINCT enc_key_name(a) || enc_key_name(b), ' ') FROM moved";
    assert_eq!(session.text(under), "kother");
    assert_eq!(session.text("SELECT count(*) FROM moved WHERE a = b"), "20");
}

/// A range type has no modifier of its own, so its values would all be under the database key.
#[test]
fn a_range_of_values_without_a_key_is_refused() {
    let Some(cluster) = cluster("a_range_of_values_without_a_key_is_refused") else { return };
    let mut session = connect(&cluster);
    let both = "CREATE TYPE span AS RANGE (subtype = encrypted_text); CREATE TABLE t (v span)";
    session.fails(both, "KE031");
}

/// The result of opening planted bytes in each way that there is: an error of the extension's, or
/// the plaintext.
fn open(session: &mut Client, stored: &[u8]) -> Vec<Result<String, String>> {
    let value = format!("{}::encrypted_text", bytea(stored));
    let statements = [
        format!("SELECT {value}"),
        format!("SELECT {value}::text"),
        format!("SELECT {value} = 'guess'::encrypted_text('k')"),
        format!("SELECT {value}::encrypted_text('other')::text"),
        format!("SELECT enc_rotate({value})::text"),
    ];
    let open = |sql: &String| match session.simple_query(sql) {
        Ok(_) => Ok(session.text(sql)),
        Err(error) => {
            let code = error.as_db_error().unwrap_or_else(|| panic!("{error:?}")).code();
            let code = code.code().to_owned();
            assert!(code.starts_with("KE"), "{error:?}");
            let error = expect_error(&error, &code);
            assert!(!texts_of(&error).contains("secret"), "{error:?}");
            Err(code)
        }
    };
    statements.iter().map(open).collect()
}

#[track_caller]
fn refused(session: &mut Client, stored: &[u8], sqlstates: &[&str]) {
    for outcome in open(session, stored) {
        match outcome {
            Ok(text) => panic!("{} opened as {text:?}", hex(stored)),
            Err(code) => assert!(sqlstates.contains(&code.as_str()), "{}: {code}", hex(stored)),
        }
    }
}

#[test]
fn what_was_altered_is_never_opened() {
    let Some(cluster) = cluster("what_was_altered_is_never_opened") else { return };
    let mut session = connect(&cluster);
    session.run("SELECT enc_rotate_key('k')");
    let good: Vec<u8> = session.value("SELECT 'a secret'::encrypted_text('k')::bytea");
    assert_eq!(header(&good).key_version.get(), 2);
    let opened = open(&mut session, &good);
    assert_eq!(opened[0].as_deref(), Ok("a secret"));
    assert_eq!(opened[2].as_deref(), Ok("f"));

    for at in 0..good.len() {
        // A bit for each place, and all of them.
        for mask in [1 << (at % 8), 0xff] {
            let mut altered = good.clone();
            altered[at] ^= mask;
            let expected: &[&str] = match at {
                0 => &["KE041"],
                // Another kind may be another type's.
                1 => &["KE042", "KE043", "KE045"],
                // Another key id, or one that can't be.
                2..6 => &["KE003", "KE044"],
                6..10 => &["KE006", "KE044", "KE045"],
                _ => &["KE045"],
            };
            refused(&mut session, &altered, expected);
        }
    }
    for len in 0..good.len() {
        let expected = if len < OVERHEAD { ["KE040"] } else { ["KE045"] };
        refused(&mut session, &good[..len], &expected);
    }
    refused(&mut session, &[good.as_slice(), b"\0"].concat(), &["KE045"]);
    assert_eq!(open(&mut session, &good)[0].as_deref(), Ok("a secret"));
}

#[test]
fn what_is_authentic_and_yet_no_value_is_told() {
    let Some(cluster) = cluster("what_is_authentic_and_yet_no_value_is_told") else { return };
    let mut session = connect(&cluster);
    let key = data_key(&cluster, "k", 1);
    let planted = |session: &mut Client, value: &[u8]| {
        session.text(&format!("SELECT {}::encrypted_text", bytea(value)))
    };
    let text = seal(key, "k", 1, PlaintextKind::Text, "größe".as_bytes());
    assert_eq!(planted(&mut session, &text), "größe");

    for invalid in [&b"secret \xff"[..], b"secret \0 NUL", b"secret \xed\xa0\x80", b"secret \xc3"] {
        for kind in [PlaintextKind::Text, PlaintextKind::TextInDatabaseEncoding] {
            let text = kind == PlaintextKind::Text || invalid.contains(&0);
            let expected = if text { "KE047" } else { "KE048" };
            refused(&mut session, &seal(key, "k", 1, kind, invalid), &[expected]);
        }
    }
    assert!(!cluster.log().contains("secret \\"), "an invalid text was logged");

    // Another type's value, either way.
    let bytes = seal(key, "k", 1, PlaintextKind::Bytea, b"secret");
    refused(&mut session, &bytes, &["KE043"]);
    let as_bytea =
        |value: &[u8]| format!("SELECT {}::encrypted_text::encrypted_bytea", bytea(value));
    session.fails(&as_bytea(&text), "KE043");
    assert_eq!(session.text(&as_bytea(&bytes)), "\\x736563726574");
    // A newer format, a flag, another kind.
    for (at, byte, sqlstate) in
        [(0, 2, "KE041"), (0, 0, "KE041"), (1, 0x81, "KE042"), (1, 0x41, "KE042"), (1, 4, "KE042")]
    {
        let mut newer = text.clone();
        newer[at] = byte;
        refused(&mut session, &newer, &[sqlstate]);
    }

    // A key that isn't here, a version that isn't, another key's bytes, another key's name.
    refused(
        &mut session,
        &seal([1; 32], "elsewhere", 1, PlaintextKind::Text, b"secret"),
        &["KE003"],
    );
    refused(&mut session, &seal(key, "k", 2, PlaintextKind::Text, b"secret"), &["KE006"]);
    refused(
        &mut session,
        &seal(key, "k", u32::MAX >> 1, PlaintextKind::Text, b"secret"),
        &["KE006"],
    );
    refused(&mut session, &seal([1; 32], "k", 1, PlaintextKind::Text, b"secret"), &["KE045"]);
    refused(&mut session, &seal(key, "other", 1, PlaintextKind::Text, b"secret"), &["KE045"]);
    let unknown = seal([1; 32], "elsewhere", 7, PlaintextKind::Text, b"secret");
    let asked =
        |what: &str| format!("SELECT {what}({}::encrypted_text) AS answer", bytea(&unknown));
    assert_eq!(session.text(&asked("enc_key_version")), "7");
    assert_eq!(session.texts(&asked("enc_key_name")), [None]);
    // The database key encrypts under a subkey and nothing under itself.
    let database = data_key(&cluster, "database", 1);
    refused(
        &mut session,
        &seal(database, "database", 1, PlaintextKind::Text, b"secret"),
        &["KE045"],
    );
    // And a pending version is not in use.
    session.run("SELECT enc_rotate_key('k', activate => false)");
    let pending = data_key(&cluster, "k", 2);
    refused(&mut session, &seal(pending, "k", 2, PlaintextKind::Text, b"secret"), &["KE007"]);
}

#[test]
fn bad_input_is_refused_and_not_shown() {
    let Some(cluster) = cluster("bad_input_is_refused_and_not_shown") else { return };
    let mut session = connect(&cluster);
    session.run("CREATE TABLE t (v encrypted_text('k'), b encrypted_bytea('k'))");
    let insert = session.prepare("INSERT INTO t (v) VALUES ($1)").unwrap();
    for garbage in
        [&b"secret \xff\xfe"[..], b"secret \xc3", b"secret \0", b"\xf5\x80\x80\x80 secret"]
    {
        let error = session.execute(&insert, &[&Binary(garbage.to_vec())]).unwrap_err();
        let error = expect_error(&error, "KE049");
        assert!(!texts_of(&error).contains("secret"), "{error:?}");
    }

    // Ciphertext as text, as a reader without the privilege gets it, in all ways in.
    let stored: Vec<u8> = session.value("SELECT 'a secret'::encrypted_text('k')::bytea");
    let armored = armor::encode(&stored);
    let armored_bytes = hex(armored.as_bytes());
    let error = session.execute(&insert, &[&Binary(armored.clone().into_bytes())]).unwrap_err();
    let _ = expect_error(&error, "KE033");
    let insert_bytes = session.prepare("INSERT INTO t (b) VALUES ($1)").unwrap();
    let error =
        session.execute(&insert_bytes, &[&Binary(armored.clone().into_bytes())]).unwrap_err();
    let _ = expect_error(&error, "KE033");
    for sql in [
        format!("INSERT INTO t (v) VALUES ('{armored}')"),
        format!("INSERT INTO t (v) VALUES (text '{armored}')"),
        format!("INSERT INTO t (v) VALUES (varchar '{armored}')"),
        format!("INSERT INTO t (b) VALUES ('{armored}')"),
        format!("INSERT INTO t (b) VALUES ('\\x{armored_bytes}')"),
        format!("UPDATE t SET v = '{armored}' WHERE false; SELECT v = '{armored}' FROM t"),
        format!("SELECT '{armored}'::encrypted_text"),
    ] {
        session.fails(&sql, "KE033");
    }
    let mut copy = session.copy_in("COPY t (v) FROM STDIN").unwrap();
    std::io::Write::write_all(&mut copy, format!("{armored}\n").as_bytes()).unwrap();
    let _ = expect_error(&copy.finish().unwrap_err(), "KE033");
    assert_eq!(session.text("SELECT count(*) FROM t"), "0");
    // What only begins like it is a text like any other.
    for text in ["enc:1:", "enc:1:AAAA", &armored[..armored.len() - 40], &format!("{armored} ")] {
        session.run(&format!("INSERT INTO t (v) VALUES ('{text}')"));
        assert_eq!(session.text("DELETE FROM t RETURNING v"), text);
    }
    session.fails("INSERT INTO t (b) VALUES ('\\xzz')", "22023");
}

#[test]
fn bad_names_and_modifiers_are_refused() {
    let Some(cluster) = cluster("bad_names_and_modifiers_are_refused") else { return };
    let mut session = connect(&cluster);
    let long = "x".repeat(64);
    for name in
        ["", "../k", "-k", "K", "k k", "k/1", "k%2f", "schlüssel", ".k", "_k", "k\n", &long[..]]
    {
        let error = session.fails(&format!("SELECT enc_create_key('{name}')"), "KE001");
        assert!(error.detail().is_some());
        session.fails(&format!("CREATE TABLE t (v encrypted_text('{name}'))"), "KE001");
        session.fails(&format!("SELECT 'x'::encrypted_bytea('{name}')"), "KE001");
        session.fails(&format!("SELECT enc_rotate_key('{name}')"), "KE001");
        session.fails(&format!("SELECT enc_grant('{name}', 'postgres', 'decrypt')"), "KE001");
    }
    for modifier in ["('k', 'other')", "('k', 1)"] {
        session.fails(&format!("CREATE TABLE t (v encrypted_text{modifier})"), "KE030");
    }
    for modifier in ["('#')", "('#x')", "('#-1')", "('#4294967295')"] {
        session.fails(&format!("CREATE TABLE t (v encrypted_text{modifier})"), "KE030");
    }
    session.fails("CREATE TABLE t (v encrypted_text('#12345'))", "KE003");
    session.fails("CREATE TABLE t (v encrypted_text('unknown'))", "KE003");
    session.fails("CREATE TABLE t (v encrypted_text(1))", "KE003");
    session.fails("SELECT enc_rotate_key('unknown')", "KE003");
    session.fails("SELECT enc_activate_key_version('k', 2)", "KE006");
    session.fails("SELECT enc_activate_key_version('k', 0)", "KE006");
    session.fails("SELECT enc_activate_key_version('k', -1)", "KE006");

    session.fails("SELECT enc_create_key('database')", "KE002");
    session.fails("CREATE TABLE t (v encrypted_text('database'))", "KE002");
    let database: i32 = session.value("SELECT key_id FROM enc_keys WHERE name = 'database'");
    session.fails(&format!("CREATE TABLE t (v encrypted_text('#{database}'))"), "KE002");

    // Two names with one id: the second is refused, in all ways, and the first isn't touched.
    session.run("SELECT enc_create_key('user_pii'); CREATE TABLE t (v encrypted_text('user_pii'))");
    session.run("INSERT INTO t VALUES ('x')");
    for sql in ["SELECT enc_create_key('kba8b256')", "SELECT enc_create_key('kba8b256', true)"] {
        let error = session.fails(sql, "KE005");
        assert!(error.message().contains("kba8b256") && error.message().contains("user_pii"));
    }
    session.fails("CREATE TABLE u (v encrypted_text('kba8b256'))", "KE003");
    session.fails("SELECT enc_rotate_key('kba8b256')", "KE003");
    assert_eq!(session.text("SELECT v FROM t"), "x");

    // A default key that isn't one.
    session.run("SET encryption_ext.default_key = 'unknown'");
    let error = session.simple_query("CREATE TABLE u (v encrypted_text)").unwrap_err();
    let _ = expect_error(&error, "KE003");
    session.run("SET encryption_ext.default_key = '../k'");
    session.fails("CREATE TABLE u (v encrypted_text)", "KE061");
    session.run("SET encryption_ext.default_key = 'other'");
    session.run("CREATE TABLE u (v encrypted_text, b encrypted_bytea[])");
    session.run("INSERT INTO u VALUES ('x', '{\"\\\\x00\"}')");
    assert_eq!(session.text("SELECT enc_key_name(v) || enc_key_name(b[1]) FROM u"), "otherother");
}
