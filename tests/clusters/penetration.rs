//! What somebody would try who may not decrypt. Other tests have the rest of it:
//!
//! | what is tried | test |
//! | --- | --- |
//! | pg_dump under another name, by a superuser and by a backup role | `edges`, `access` |
//! | `check_function_bodies = off` with armor, by an ordinary role | `edges`, `access` |
//! | settings changed before a SECURITY DEFINER function is called | `edges` |
//! | ALTER TABLE while masked | `masks` |
//! | key names with `../` and a leading `-`, two names with one id | `values` |
//! | an entry in Vault that was written over | `vault`: `what_is_not_the_key_is_told` |

use std::io::{Read, Write};
use std::thread;
use std::time::{Duration, Instant};

use cluster_tests::{
    DATABASE, Session, builder, connect, contains, create_extension, expect_error, start, texts_of,
};
use envelope::armor;
use harness::cluster::Cluster;
use postgres::Client;

const SETUP: &str = "
    SELECT enc_create_key('k'), enc_create_key('mine');
    CREATE ROLE mallory LOGIN;
    CREATE ROLE reader LOGIN;
    GRANT mallory TO reader;
    SELECT enc_grant('k', 'reader', 'encrypt, decrypt'),
           enc_grant('mine', 'mallory', 'encrypt, decrypt');
    GRANT CREATE ON SCHEMA public TO mallory;
    CREATE TABLE t (id integer PRIMARY KEY CHECK (id > 0), v encrypted_text('k'), b encrypted_bytea('k'));
    INSERT INTO t VALUES (1, 'the secret', '\\x7365637265747332'), (2, 'another secret', NULL);
    GRANT SELECT, INSERT, UPDATE, DELETE ON t TO mallory, reader;";

fn cluster(test: &str) -> Option<Cluster> {
    let cluster = start(test)?;
    connect(&cluster).run(SETUP);
    Some(cluster)
}

#[test]
fn a_value_does_not_become_readable_in_a_place_under_another_key() {
    let Some(cluster) = cluster("a_value_does_not_become_readable_in_a_place_under_another_key")
    else {
        return;
    };
    let stored: Vec<u8> = connect(&cluster).value("SELECT v::bytea FROM t WHERE id = 1");
    let armored = armor::encode(&stored);
    let mut mallory = cluster.connect("mallory", DATABASE);
    mallory.run(
        "CREATE TABLE own (v encrypted_text('mine'), l encrypted_text('mine')[], any_of encrypted_text('k'));
         INSERT INTO own (v) VALUES ('own');
         CREATE TYPE pair AS (v encrypted_text('mine'));
         CREATE DOMAIN own_text AS encrypted_text('mine');
         CREATE TABLE plain (v text, c varchar, b bytea, j jsonb);
         CREATE FUNCTION to_own(encrypted_text) RETURNS encrypted_text LANGUAGE plpgsql
             AS $$ DECLARE own encrypted_text('mine') := $1; BEGIN RETURN own; END $$;
         CREATE FUNCTION shown(anyelement) RETURNS text LANGUAGE plpgsql
             AS $$ BEGIN RETURN $1; END $$;
         CREATE FUNCTION assigned(encrypted_text) RETURNS text LANGUAGE plpgsql
             AS $$ DECLARE plain text := $1; BEGIN RETURN plain; END $$;",
    );
    for sql in [
        "INSERT INTO own (v) SELECT v FROM t",
        "INSERT INTO own (l) SELECT array_agg(v) FROM t",
        "UPDATE own SET v = t.v FROM t",
        "SELECT v::encrypted_text('mine') FROM t",
        "SELECT ARRAY[v]::encrypted_text('mine')[] FROM t",
        "SELECT row(v)::pair FROM t",
        "SELECT v::own_text FROM t",
        "SELECT to_own(v) FROM t",
        "SELECT assigned(v) FROM t",
        "SELECT shown(v) FROM t",
        "SELECT shown(t) FROM t",
        "INSERT INTO plain (v) SELECT v FROM t",
        "INSERT INTO plain (c) SELECT v FROM t",
        "INSERT INTO plain (b) SELECT b FROM t",
        "INSERT INTO plain (j) SELECT to_jsonb(t) FROM t",
        "CREATE TABLE copied AS SELECT v::text FROM t",
        "SELECT string_agg(v, ',') FROM t",
        "SELECT min(v) FROM t",
        "SELECT coalesce(v, ''::text) FROM t",
        "SELECT CASE WHEN v = 'the secret' THEN 1 END FROM t",
        "SELECT v IN ('the secret') FROM t",
        "SELECT v IS DISTINCT FROM 'the secret' FROM t",
        "SELECT (v, id) = ('the secret', 1) FROM t",
        "SELECT nullif(v, 'the secret') FROM t",
        "SELECT greatest(v, 'x') FROM t",
        "SELECT t.id FROM t JOIN (VALUES ('the secret'::text)) x (v) USING (v)",
        "SELECT v FROM t UNION SELECT 'the secret'",
        "SELECT DISTINCT v FROM t",
        "SELECT lead(id) OVER (ORDER BY v) FROM t",
        "SELECT mode() WITHIN GROUP (ORDER BY v) FROM t",
        "SELECT format('%s', v) FROM t",
        "SELECT quote_literal(v) FROM t",
        "SELECT xmlforest(v) FROM t",
        "SELECT encode(b, 'escape') FROM t",
        "SELECT b || '' FROM t",
        "SELECT substring(b FROM 1 FOR 1) FROM t",
        "SELECT enc_digest(v) = enc_digest('the secret'::text) FROM t",
        "SELECT enc_rotate(v)::text FROM t",
        "SELECT encryption.damage(v)::text || v FROM t",
        "DO $$ BEGIN RAISE NOTICE '%', (SELECT v FROM t WHERE id = 1); END $$",
        "DO $$ BEGIN RAISE EXCEPTION '%', (SELECT v FROM t WHERE id = 1); END $$",
        "DELETE FROM t RETURNING v",
        "UPDATE t SET id = -1 WHERE id = 1",
        "INSERT INTO t (id, v) SELECT 1, v FROM t WHERE id = 1 ON CONFLICT (id) DO UPDATE SET id = -1",
    ] {
        let error = mallory.fails(sql, "KE020");
        assert!(!texts_of(&error).contains("secret"), "{error:?}");
    }
    for options in ["", "(FORMAT binary)"] {
        let mut copied = Vec::new();
        let mut copy = mallory.copy_out(&format!("COPY t TO STDOUT {options}")).expect("it begins");
        let error = copy.read_to_end(&mut copied).expect_err("it ends with the first row");
        assert!(format!("{error:?}").contains("permission denied for key"), "{error:?}");
        assert!(!contains(&copied, b"secret"));
    }
    // What is copied stays what it is, whoever owns the copy.
    mallory.run("INSERT INTO own (any_of) SELECT v FROM t");
    mallory.fails("SELECT any_of FROM own WHERE v IS NULL", "KE020");
    // As text, in whatever place that has another key, and in a place that has the same.
    for settings in ["SET encryption_ext.input = auto", "SET check_function_bodies = off"] {
        mallory.run(settings);
        for sql in [
            format!("INSERT INTO own (v) VALUES ('{armored}')"),
            format!("INSERT INTO own (any_of) VALUES ('{armored}')"),
            format!("INSERT INTO own (l) VALUES ('{{{armored}}}')"),
            format!("SELECT jsonb_populate_record(NULL::own, '{{\"v\": \"{armored}\"}}')"),
            format!("SELECT '({armored})'::pair"),
            format!("SELECT '{armored}'::own_text"),
            format!("SELECT '{armored}'::encrypted_text::text"),
            format!("SELECT '{armored}'::encrypted_bytea::bytea"),
            format!("ALTER TABLE own ADD c encrypted_text('mine') DEFAULT '{armored}'"),
        ] {
            mallory.fails(&sql, "KE033");
        }
    }
}

#[test]
fn a_plan_and_a_cursor_of_another_role_s_give_nothing() {
    let Some(cluster) = cluster("a_plan_and_a_cursor_of_another_role_s_give_nothing") else {
        return;
    };
    connect(&cluster).run(
        "CREATE INDEX ON t USING hash (v);
         CREATE FUNCTION peek() RETURNS text LANGUAGE plpgsql AS $$
             BEGIN RETURN (SELECT v FROM t WHERE id = 1); END $$;
         CREATE FUNCTION guess(text) RETURNS bigint LANGUAGE plpgsql AS $$
             BEGIN RETURN (SELECT count(*) FROM t WHERE v = $1); END $$;",
    );
    let mut session = cluster.connect("reader", DATABASE);
    session.run("SET plan_cache_mode = force_generic_plan; SET enable_seqscan = off");
    session.run("PREPARE prepared AS SELECT v FROM t WHERE id = 1");
    session.run("PREPARE found (text) AS SELECT id FROM t WHERE v = $1");
    session.run("PREPARE constant AS SELECT id FROM t WHERE v = 'the secret'");
    const STATEMENTS: [&str; 5] = [
        "EXECUTE prepared",
        "EXECUTE found ('the secret')",
        "EXECUTE constant",
        "SELECT peek()",
        "SELECT guess('the secret')",
    ];
    for sql in STATEMENTS {
        session.run(sql);
    }
    session.run("SET ROLE mallory");
    for sql in STATEMENTS {
        session.fails(sql, "KE020");
    }
    session.run("RESET ROLE");
    for sql in STATEMENTS {
        session.run(sql);
    }
    // A cursor gives each row to who fetches it.
    session.run("BEGIN; DECLARE cursor CURSOR FOR SELECT v FROM t ORDER BY id");
    assert_eq!(session.text("FETCH cursor"), "the secret");
    session.run("SET LOCAL ROLE mallory");
    session.fails("FETCH cursor", "KE020");
    session.run("ROLLBACK");
    // SET SESSION AUTHORIZATION, and a privilege that comes by membership and goes.
    let mut superuser = connect(&cluster);
    superuser.run("PREPARE prepared AS SELECT v FROM t WHERE id = 1; EXECUTE prepared");
    superuser.run("SET SESSION AUTHORIZATION mallory");
    superuser.fails("EXECUTE prepared", "KE020");
    superuser
        .run("RESET SESSION AUTHORIZATION; REVOKE mallory FROM reader; GRANT reader TO mallory");
    let mut mallory = cluster.connect("mallory", DATABASE);
    mallory.run("PREPARE prepared AS SELECT v FROM t WHERE id = 1; BEGIN");
    assert_eq!(mallory.text("EXECUTE prepared"), "the secret");
    superuser.run("REVOKE reader FROM mallory");
    mallory.fails("EXECUTE prepared", "KE020");
}

#[test]
fn functions_of_operator_classes_are_not_called_directly() {
    let Some(cluster) = cluster("functions_of_operator_classes_are_not_called_directly") else {
        return;
    };
    let mut session = connect(&cluster);
    let functions = session.texts(
        "SELECT DISTINCT format('SELECT %s(%s) FROM t', p.proname,
                    (SELECT string_agg(CASE type::regtype::text WHEN 'encrypted_text' THEN 'v' WHEN 'encrypted_bytea' THEN 'b' ELSE format('%L::%s', 1, type::regtype) END, ', ')
                       FROM unnest(p.proargtypes::oid[]) type))
           FROM pg_amproc f JOIN pg_opfamily o ON o.oid = f.amprocfamily
           JOIN pg_proc p ON p.oid = f.amproc
          WHERE o.opfname LIKE 'encrypted\\_%' AND NOT p.proname LIKE '%options' AND NOT p.proname LIKE '%sortsupport'",
    );
    assert!(functions.len() >= 12, "{functions:?}");
    let mut mallory = cluster.connect("mallory", DATABASE);
    for sql in functions.into_iter().flatten() {
        mallory.fails(&sql, "42501");
    }
}

#[test]
fn a_message_of_copy_shows_what_its_sender_sent_and_nothing_that_is_stored() {
    let test = "a_message_of_copy_shows_what_its_sender_sent_and_nothing_that_is_stored";
    let Some(cluster) = cluster(test) else { return };
    let mut session = connect(&cluster);
    session.run(
        "SELECT enc_grant('k', 'mallory', 'encrypt, compare');
         CREATE TABLE one (id integer, v encrypted_text('k'), CHECK (id > 0), EXCLUDE USING hash (v WITH =));
         CREATE UNIQUE INDEX ON t (enc_digest(v));
         INSERT INTO one VALUES (1, 'the secret');
         GRANT SELECT, INSERT ON one TO mallory;",
    );
    let mut mallory = cluster.connect("mallory", DATABASE);
    for (table, row, sqlstate) in [
        ("one", "-1\tguess", "KE020"),
        ("one", "2\tthe secret", "KE020"),
        // An index on digests shows a digest.
        ("t (id, v)", "9\tthe secret", "23505"),
        ("t (id, v)", "1\tguess", "23505"),
        ("t (id, v)", "x\tguess", "22P02"),
        ("t (id, v)", "9", "22P04"),
        ("t (id, b)", "9\t\\\\xzz", "22023"),
    ] {
        let mut copy = mallory.copy_in(&format!("COPY {table} FROM STDIN")).expect("it begins");
        copy.write_all(format!("{row}\n").as_bytes()).expect("it is sent");
        let error = expect_error(&copy.finish().expect_err("it is refused"), sqlstate);
        let shown = texts_of(&error).replace(row, "");
        assert!(!shown.contains("secret"), "{error:?}");
    }
    // Who sees masks gets the violation, with a mask in it.
    session.run("SELECT enc_grant('k', 'mallory', 'mask')");
    let error = mallory.fails("INSERT INTO one VALUES (2, 'the secret')", "23P01");
    let detail = error.detail().unwrap_or_default();
    assert!(detail.contains("****") && !detail.contains("secret"), "{detail}");
    let error = mallory.fails("INSERT INTO one VALUES (-1, 'guess')", "23514");
    assert_eq!(error.detail(), Some("Failing row contains (-1, ****)."));
}

#[test]
fn a_key_of_the_same_name_in_another_database_is_another_matter() {
    let Some(cluster) = cluster("a_key_of_the_same_name_in_another_database_is_another_matter")
    else {
        return;
    };
    let stored: Vec<u8> = connect(&cluster).value("SELECT v::bytea FROM t WHERE id = 1");
    let armored = armor::encode(&stored);
    cluster.createdb("second", "UTF8");
    let mut mallory = cluster.connect("mallory", "second");
    mallory.fails("CREATE EXTENSION encryption_ext", "42501");
    create_extension(&cluster, "second");
    // Who is nobody there can't have the provider's keys adopted.
    mallory.fails("SELECT enc_create_key('k')", "42501");
    mallory.fails("SELECT enc_import_keys('{}')", "42501");
    // A privilege there isn't one here, nor the other way round.
    let mut second = cluster.connect("postgres", "second");
    second.run("SELECT enc_create_key('k'), enc_grant('k', 'mallory', 'encrypt, decrypt')");
    cluster.connect("mallory", DATABASE).fails("SELECT v FROM t", "KE020");
    second.run("CREATE ROLE stranger LOGIN");
    let mut stranger = cluster.connect("stranger", "second");
    stranger.fails("SELECT 'x'::encrypted_text('k')", "KE020");
    // But both are the same entry of one provider, as docs/access.md warns.
    mallory.run("SET encryption_ext.input = auto");
    assert_eq!(mallory.text(&format!("SELECT '{armored}'::encrypted_text")), "the secret");
    // With a place of its own, they aren't.
    cluster.createdb("third", "UTF8");
    let mut third = cluster.connect("postgres", "third");
    third.run("LOAD 'encryption_ext'; ALTER DATABASE third SET encryption_ext.keyring_file = 'third.json'");
    let mut third = cluster.connect("postgres", "third");
    third.run("CREATE EXTENSION encryption_ext; SELECT enc_create_key('k')");
    third.run("SET encryption_ext.input = auto");
    third.fails(&format!("SELECT '{armored}'::encrypted_text"), "KE045");
}

#[test]
fn a_poisoned_value_stops_no_maintenance() {
    let test = "a_poisoned_value_stops_no_maintenance";
    let Some(builder) = builder(test) else { return };
    let cluster = builder
        .setting("autovacuum_naptime", "1s")
        .setting("autovacuum_vacuum_threshold", "10")
        .setting("autovacuum_vacuum_insert_threshold", "10")
        .setting("autovacuum_analyze_threshold", "10")
        .start();
    create_extension(&cluster, DATABASE);
    let mut session = connect(&cluster);
    session.run(SETUP);
    session.run(
        "CREATE INDEX ON t USING hash (v);
         INSERT INTO t SELECT n, 'value ' || n FROM generate_series(3, 500) n;
         CREATE TABLE poisoned (LIKE t INCLUDING ALL);
         ALTER TABLE poisoned SET (autovacuum_enabled = off);
         INSERT INTO poisoned SELECT * FROM t;",
    );
    // Altered in place, as in a file; of another version; of a key that nobody has; no value at all.
    session.run(&format!("DROP INDEX poisoned_v_idx; {POISON}"));
    session.fails("SELECT v FROM poisoned", "KE045");
    for maintenance in [
        "VACUUM poisoned",
        "ANALYZE poisoned",
        "VACUUM (FREEZE, ANALYZE) poisoned",
        "VACUUM FULL poisoned",
        "CLUSTER poisoned USING poisoned_pkey",
    ] {
        session.run(maintenance);
    }
    session.run("DELETE FROM poisoned WHERE id % 2 = 0");
    session.run("VACUUM poisoned");
    // And by itself.
    session.run(
        "ALTER TABLE poisoned RESET (autovacuum_enabled);
         UPDATE poisoned SET id = id + 1000; DELETE FROM poisoned WHERE id % 3 = 0",
    );
    let started = Instant::now();
    let done = "SELECT last_autovacuum IS NOT NULL AND last_autoanalyze IS NOT NULL
                  FROM pg_stat_user_tables WHERE relname = 'poisoned'";
    while session.text(done) != "t" {
        assert!(started.elapsed() < Duration::from_secs(60), "autovacuum doesn't come");
        thread::sleep(Duration::from_millis(100));
    }
    assert!(
        !cluster.log().contains("automatic vacuum of table \"postgres.public.poisoned\": ERROR")
    );
}

/// Without its modifier the column takes what is written to it as it is.
const POISON: &str = "
    UPDATE pg_attribute SET atttypmod = -1 WHERE attrelid = 'poisoned'::regclass AND attname = 'v';
    UPDATE poisoned SET v = overlay(v::bytea PLACING '\\x0000000000' FROM 40)::encrypted_text WHERE id = 1;
    UPDATE poisoned SET v = overlay(v::bytea PLACING '\\x00000063' FROM 7)::encrypted_text WHERE id = 3;
    UPDATE poisoned SET v = overlay(v::bytea PLACING '\\x00000063' FROM 3)::encrypted_text WHERE id = 5;
    UPDATE poisoned SET v = '\\x00'::bytea::encrypted_text WHERE id = 7;
    UPDATE pg_attribute SET atttypmod = (SELECT key_id FROM enc_keys WHERE name = 'k')
     WHERE attrelid = 'poisoned'::regclass AND attname = 'v'";

/// Which settings anyone may change, and that they alone are such; that none can hold a secret.
#[test]
fn settings_redirect_nothing_and_hold_no_secret() {
    /// What gives nothing that one couldn't have anyway.
    const FOR_EVERYBODY: [&str; 3] =
        ["encryption_ext.input", "encryption_ext.on_denied", "encryption_ext.output"];
    /// What everybody may see.
    const SEEN: [&str; 10] = [
        "encryption_ext.audit",
        "encryption_ext.cache_capacity",
        "encryption_ext.cache_stale_grace",
        "encryption_ext.cache_ttl",
        "encryption_ext.default_key",
        "encryption_ext.provider",
        "encryption_ext.provider_connect_timeout",
        "encryption_ext.provider_timeout",
        "encryption_ext.shared_cache_size",
        "encryption_ext.warm_up",
    ];
    let Some(cluster) = cluster("settings_redirect_nothing_and_hold_no_secret") else { return };
    let mut session = connect(&cluster);
    session.run("LOAD 'encryption_ext'");
    let settings = session.texts(
        "SELECT concat_ws(' ', name, context, vartype) FROM pg_settings WHERE name LIKE 'encryption\\_ext.%'",
    );
    assert!(settings.len() > 50);
    let mut mallory = cluster.connect("mallory", DATABASE);
    mallory.run("SELECT enc_key_name(v) FROM t");
    for setting in settings.iter().flatten() {
        let words: Vec<_> = setting.split(' ').collect();
        let [name, context, kind] = words[..] else { panic!("{setting}") };
        let for_everybody = FOR_EVERYBODY.contains(&name);
        let expected = match name {
            _ if for_everybody => "user",
            // (Where the library is preloaded, the former is fixed when the server starts.)
            "encryption_ext.shared_cache_size" | "encryption_ext.warm_up" => "sighup",
            _ => "superuser",
        };
        assert_eq!(context, expected, "{name}");
        let value = if kind == "string" {
            "'x'".to_owned()
        } else {
            session.text(&format!(
                "SELECT quote_literal(setting) FROM pg_settings WHERE name = '{name}'"
            ))
        };
        if for_everybody {
            mallory.run(&format!("SET {name} = {value}"));
        } else {
            let refused = if context == "superuser" { "42501" } else { "55P02" };
            mallory.fails(&format!("SET {name} = {value}"), refused);
            mallory.fails(&format!("ALTER ROLE mallory SET {name} = {value}"), refused);
        }
        // What names a secret names its file.
        let is_secret =
            ["secret", "token", "pin", "password", "passphrase", "credential", "private"]
                .iter()
                .any(|word| name.split(['.', '_']).any(|part| part.trim_end_matches('s') == *word));
        // (A token's label is printed on it.)
        assert!(!is_secret || name.ends_with("_file") || name.ends_with("_label"), "{name}");
        if for_everybody || SEEN.contains(&name) {
            mallory.run(&format!("SHOW {name}"));
        } else {
            mallory.fails(&format!("SHOW {name}"), "42501");
        }
    }
    // Nor before the library is there to say so: what was set then is dropped when it comes.
    let mut early = cluster.connect("mallory", DATABASE);
    early.run(
        "SET encryption_ext.keyring_file = '/tmp/planted'; SET encryption_ext.provider = 'command'",
    );
    early.run("SELECT enc_key_name(v) FROM t");
    assert_eq!(early.text("SHOW encryption_ext.provider"), "file");
    early.fails("SHOW encryption_ext.keyring_file", "42501");
    early.fails("ALTER ROLE mallory SET encryption_ext.provider = 'command'", "42501");
    let mut early = cluster.connect("mallory", DATABASE);
    early.fails("ALTER ROLE mallory SET encryption_ext.provider = 'command'", "42501");
    let mut config = cluster.config("mallory", DATABASE);
    let mut by_option: Client = config
        .options("-c encryption_ext.provider=command -c encryption_ext.command=/bin/echo")
        .connect(postgres::NoTls)
        .expect("PostgreSQL keeps what it doesn't know yet");
    by_option.fails("SELECT enc_key_name(v) FROM t", "KE111");
    by_option.fails("SELECT enc_key_name(v) FROM t", "KE111");
    for name in ["ENCRYPTION_EXT.cache_ttl", "encryption-ext.vault_ca_file"] {
        let mut by_option =
            config.options(&format!("-c {name}=1")).connect(postgres::NoTls).expect(name);
        by_option.fails("SELECT enc_key_name(v) FROM t", "KE111");
    }
    let mut by_option: Client = config
        .options("-c encryption_ext.output=armor")
        .connect(postgres::NoTls)
        .expect("it is for everybody");
    assert!(by_option.text("SELECT v FROM t WHERE id = 1").starts_with("enc:1:"));
    let mut superuser: Client = cluster
        .config("postgres", DATABASE)
        .options("-c encryption_ext.cache_ttl=60")
        .connect(postgres::NoTls)
        .expect("a superuser may");
    superuser.run("SELECT v FROM t");
    assert_eq!(superuser.text("SHOW encryption_ext.cache_ttl"), "1min");
}
