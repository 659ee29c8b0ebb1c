//! What PostgreSQL's own messages show of encrypted values in the server log, and what it doesn't keep
//! out of it.

#![expect(clippy::unwrap_used, reason = "a test fails by a panic")]

use std::fs;
use std::io::Write;

use cluster_tests::{Binary, DATABASE, Session, builder, connect, create_extension};
use harness::cluster::{Builder, Cluster};
use postgres::Client;
use postgres::error::DbError;

/// What all planted plaintexts begin with, and what those of plain columns begin with: the search must
/// find the latter.
const SECRET: &str = "nEEdle/7Q:";
const CONTROL: &str = "cOntrol/4X:";

/// Says as much as PostgreSQL can, in each of its formats; but not the statements, whose text is the
/// client's.
fn verbose(builder: Builder) -> Builder {
    builder
        .setting("logging_collector", "on")
        .setting("log_destination", "stderr,csvlog,jsonlog")
        .setting("log_error_verbosity", "verbose")
        .setting("log_min_messages", "debug2")
        .setting("log_min_error_statement", "panic")
        .setting("log_parameter_max_length_on_error", "-1")
}

/// The server's log in all of its formats.
fn logs(cluster: &Cluster) -> Vec<(String, String)> {
    // The collector writes on its own time, and in order.
    let marker = format!("mArker/{}", fastrand::u64(..));
    let _ = connect(cluster).simple_query(&format!("DO $$BEGIN RAISE WARNING '{marker}'; END$$"));
    let read = || -> Vec<(String, String)> {
        let files = fs::read_dir(cluster.data_directory().join("log")).unwrap();
        let files = files.map(|file| file.unwrap().path());
        let read = |file: std::path::PathBuf| {
            let extension = file.extension().unwrap().to_str().unwrap().to_owned();
            (extension, fs::read_to_string(file).unwrap())
        };
        files.map(read).collect()
    };
    for _ in 0..1000 {
        let logs = read();
        if logs.len() == 3 && logs.iter().all(|(_, log)| log.contains(&marker)) {
            return logs;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    read()
}

#[track_caller]
fn failed(session: &mut Client, sql: &str) -> DbError {
    let error = session.simple_query(sql).expect_err(sql);
    error.as_db_error().expect("the server raised it").clone()
}

#[track_caller]
fn copy_fails(session: &mut Client, sql: &str, lines: &str) -> DbError {
    let mut copy = session.copy_in(sql).unwrap();
    copy.write_all(lines.as_bytes()).unwrap();
    let error = copy.finish().expect_err(lines);
    error.as_db_error().unwrap().clone()
}

#[test]
fn messages_about_data_do_not_quote_encrypted_values() {
    let test = "messages_about_data_do_not_quote_encrypted_values";
    let Some(builder) = builder(test) else { return };
    let cluster = verbose(builder).setting("min_parallel_table_scan_size", "0").start();
    create_extension(&cluster, DATABASE);
    let mut session = connect(&cluster);
    session.run(
        "SELECT enc_create_key('k');
         CREATE DOMAIN address AS encrypted_text('k') CHECK (VALUE::text LIKE '%:%');
         CREATE TYPE pair AS (a encrypted_text('k'), b text);
         CREATE TABLE t (id integer PRIMARY KEY, v encrypted_text('k') CHECK (v::text NOT LIKE '%bad'),
                         d date, list encrypted_text('k')[], p pair, a address,
                         EXCLUDE USING hash (v WITH =) DEFERRABLE);
         CREATE TABLE plain (id integer PRIMARY KEY, v text UNIQUE, d date)",
    );
    let s = SECRET;
    session.run(&format!(
        "INSERT INTO t VALUES (1, '{s}one', NULL, ARRAY['{s}two'], ROW('{s}three', 'x'), '{s}four')"
    ));

    // The client is told, with its rights.
    let mut told = Vec::new();
    let mut fails =
        |session: &mut Client, sql: &str| told.push((sql.to_owned(), failed(session, sql)));
    fails(&mut session, &format!("INSERT INTO t (id, v) VALUES (2, '{s}one')"));
    fails(&mut session, &format!("INSERT INTO t (id, v) VALUES (3, '{s}bad')"));
    fails(&mut session, "UPDATE t SET id = NULL");
    fails(&mut session, "SELECT v::text::date FROM t");
    fails(&mut session, "SELECT list[1]::text::integer FROM t");
    fails(&mut session, "SELECT (p).a::text::json FROM t");
    fails(&mut session, "SELECT a::text::point FROM t");
    fails(
        &mut session,
        "DO $$BEGIN RAISE EXCEPTION 'bad: %', (SELECT v::text FROM t) USING ERRCODE = '22023'; END$$",
    );
    fails(&mut session, "DO $$BEGIN EXECUTE format('SELECT %s', (SELECT v::text FROM t)); END$$");
    fails(
        &mut session,
        "DO $$BEGIN EXECUTE format('SELECT %L::date', (SELECT v::text FROM t)); END$$",
    );
    fails(
        &mut session,
        "SET max_parallel_workers_per_gather = 2; SET parallel_setup_cost = 0; SET parallel_tuple_cost = 0;
         SELECT count(v::text::uuid) FROM t",
    );
    fails(
        &mut session,
        &format!(
            "BEGIN; SET CONSTRAINTS ALL DEFERRED; INSERT INTO t (id, v) VALUES (5, '{s}one');
             SELECT 1; COMMIT"
        ),
    );
    fails(
        &mut session,
        &format!(
            "BEGIN; SET CONSTRAINTS ALL DEFERRED; INSERT INTO t (id, v) VALUES (5, '{s}one');
             SET CONSTRAINTS ALL IMMEDIATE"
        ),
    );
    session.run("ROLLBACK");
    for lines in [
        format!("7\t{s}seven\textra\tof\tthe\tsame\tlong\tline\n"),
        format!("8\t{s}eight\tno date\t{{}}\t\\N\t{s}\n"),
        format!("9\t{s}nine\t2026-01-01\t{{}}\t\\N\t{s}\n10\t{s}ten\n"),
        format!("x{s}\t{s}eleven\t2026-01-01\t{{}}\t\\N\t{s}\n"),
        format!("11\t{s}bad\t2026-01-01\t{{}}\t\\N\t{s}\n"),
        format!(
            "12\tenc:1:AQEAAAABAAAAAQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA\t2026-01-01\t{{}}\t\\N\t{s}\n"
        ),
        format!("13\t{s}one\t2026-01-01\t{{}}\t\\N\t{s}\n"),
        format!("14\t{s}fourteen\t2026-01-01\t{{}}\t(\"{s}\n"),
    ] {
        told.push((lines.clone(), copy_fails(&mut session, "COPY t FROM STDIN", &lines)));
    }
    let value = Binary(format!("{s}one").into_bytes());
    let insert = session.prepare("INSERT INTO t (id, v) VALUES (20, $1)").unwrap();
    let error = session.execute(&insert, &[&value]).unwrap_err();
    told.push(("a parameter".to_owned(), error.as_db_error().unwrap().clone()));
    session.run(&format!(
        "DO $$BEGIN RAISE WARNING 'see detail' USING DETAIL = (SELECT v::text FROM t), ERRCODE = '01000'; END$$;
         DO $$BEGIN PERFORM '{s}x'::encrypted_text; RAISE DEBUG 'only its context'; END$$"
    ));
    for (sql, error) in &told {
        let texts = cluster_tests::texts_of(error);
        println!("{}: {texts}", sql.lines().next().unwrap());
    }
    let quoting = told.iter().filter(|(_, error)| cluster_tests::texts_of(error).contains(SECRET));
    assert!(quoting.count() >= 15, "the client is not told what PostgreSQL tells");

    // What is in plain columns is quoted as ever.
    session.run(&format!("INSERT INTO plain VALUES (1, '{CONTROL}one')"));
    failed(&mut session, &format!("INSERT INTO plain VALUES (2, '{CONTROL}one')"));
    failed(&mut session, "SELECT v::date FROM plain");
    copy_fails(
        &mut session,
        "COPY plain FROM STDIN",
        &format!("3\t{CONTROL}three\tno date\tand\n"),
    );

    let logs = logs(&cluster);
    assert_eq!(logs.len(), 3);
    for (format, log) in &logs {
        let lines = log.lines().filter(|line| line.contains(SECRET)).collect::<Vec<_>>();
        assert!(lines.is_empty(), "{format}: {lines:#?}");
        assert!(
            log.contains(&format!("{CONTROL}three")) && log.contains("already exists"),
            "{format}"
        );
        for expected in [
            "new row for relation \"t\" violates check constraint",
            "Not logged, since it may have the value",
            "COPY t, line 2",
            "COPY t, line 1, column d",
            "invalid input syntax for type %s",
            "PL/pgSQL function inline_code_block line 1 at EXECUTE",
            "message is not logged, since it may have the value",
        ] {
            let expected = match format.as_str() {
                "log" => expected.to_owned(),
                "csv" => expected.replace('"', "\"\""),
                _ => expected.replace('"', "\\\""),
            };
            assert!(log.contains(&expected), "{format} has no {expected}");
        }
        let is_error = |line: &&str| line.contains("violates check constraint");
        assert!(log.lines().find(is_error).unwrap().contains("ERROR"), "{format}");
    }
}

/// The text of a statement is what the client sent. What keeps values out of it is to send them as
/// parameters, and not to have parameters logged.
#[test]
fn statements_are_logged_as_they_come() {
    let test = "statements_are_logged_as_they_come";
    let Some(builder) = builder(test) else { return };
    let cluster = builder.setting("log_statement", "all").start();
    create_extension(&cluster, DATABASE);
    let mut session = connect(&cluster);
    session.run(
        "SELECT enc_create_key('k'); CREATE TABLE t (v encrypted_text('k'), n integer NOT NULL)",
    );
    let secret = |n: &str| format!("{SECRET}{n}");
    let has = |n: &str| cluster.log().contains(&secret(n));
    let insert = session.prepare("INSERT INTO t VALUES ($1, 1)").unwrap();
    let send = |session: &mut Client, n: &str| {
        session.execute(&insert, &[&Binary(secret(n).into_bytes())]).unwrap();
    };

    session.run(&format!("INSERT INTO t VALUES ('{}', 1)", secret("literal")));
    assert!(has("literal"));
    send(&mut session, "logged parameter");
    assert!(has("logged parameter"));
    session.run("SET log_parameter_max_length = 0");
    send(&mut session, "unlogged parameter");
    assert!(!has("unlogged parameter"));
    session.run("SET log_statement = none; SET log_min_duration_statement = 0");
    send(&mut session, "timed parameter");
    assert!(!has("timed parameter"));
    session.run("RESET log_min_duration_statement");

    // The statement of an error.
    session.fails(&format!("INSERT INTO t VALUES ('{}', NULL)", secret("failing")), "23502");
    assert!(has("failing"));
    session.run("SET log_min_error_statement = panic");
    session.fails(&format!("INSERT INTO t VALUES ('{}', NULL)", secret("failing unseen")), "23502");
    assert!(!has("failing unseen"));
    assert!(cluster.log().contains("null value in column \"n\" of relation \"t\""));
}

#[test]
fn extensions_show_constants_as_they_come() {
    let test = "extensions_show_constants_as_they_come";
    let Some(builder) = builder(test) else { return };
    let mut cluster = builder.create();
    cluster.configure("shared_preload_libraries", "pg_stat_statements, auto_explain");
    if let Err(why) = cluster.try_start() {
        return harness::skip(test, why.lines().next().unwrap_or_default());
    }
    create_extension(&cluster, DATABASE);
    let mut session = connect(&cluster);
    session.run(
        "CREATE EXTENSION pg_stat_statements; SELECT enc_create_key('k');
         CREATE TABLE t (v encrypted_text('k')); SET auto_explain.log_min_duration = 0",
    );
    session.run(&format!("SELECT FROM t WHERE v = '{SECRET}constant'"));
    session.run(&format!("ALTER TABLE t ALTER v SET DEFAULT '{SECRET}utility'"));
    let statement = session.prepare("SELECT FROM t WHERE v::text = $1").unwrap();
    session.execute(&statement, &[&format!("{SECRET}parameter")]).unwrap();
    session.run("SET auto_explain.log_min_duration = -1");
    // One replaces the constants of queries, but not those of commands.
    let seen = session.text("SELECT string_agg(query, ' ') FROM pg_stat_statements");
    assert!(seen.contains(&format!("{SECRET}utility")), "{seen}");
    assert!(!seen.contains(&format!("{SECRET}constant")), "{seen}");
    assert!(!seen.contains(&format!("{SECRET}parameter")), "{seen}");
    // The other shows plans, which are made for a parameter's value; constants go through the output
    // function.
    let log = cluster.log();
    assert!(log.contains(&format!("Filter: (v = '{SECRET}constant'::encrypted_text)")), "{log}");
    assert!(log.contains(&format!("Filter: ((v)::text = '{SECRET}parameter'::text)")), "{log}");
}

#[test]
fn denials_are_logged_but_not_each() {
    let test = "denials_are_logged_but_not_each";
    let Some(builder) = builder(test) else { return };
    let cluster = builder.start();
    create_extension(&cluster, DATABASE);
    let mut session = connect(&cluster);
    session.run(
        "SELECT enc_create_key('k'); CREATE TABLE t (v encrypted_text('k')); CREATE ROLE clerk LOGIN;
         GRANT SELECT ON t TO clerk",
    );
    session.run(&format!("INSERT INTO t VALUES ('{SECRET}')"));
    let mut clerk = cluster.connect("clerk", DATABASE);
    for _ in 0..20 {
        clerk.fails("SELECT v FROM t", "KE020");
    }
    clerk.fails("SELECT FROM t WHERE v = 'x'", "KE020");
    let log = cluster.log();
    let denials: Vec<_> = log.lines().filter(|line| line.contains("denied: ")).collect();
    let [decrypt, compare] = denials[..] else { panic!("{denials:#?}") };
    assert!(decrypt.ends_with(
        "LOG:  denied: role \"clerk\" has no privilege \"decrypt\" on key \"k\" (SQLSTATE KE020)"
    ));
    assert!(compare.contains("\"compare\""));
    assert!(!log.contains(SECRET) || log.matches(SECRET).count() == log.matches("INSERT").count());
}
