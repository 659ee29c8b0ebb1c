//! What ANALYZE may store is known after a dump was restored and after `pg_upgrade`.

#![expect(clippy::unwrap_used, reason = "a test fails by a panic")]

use cluster_tests::{DATABASE, Session, builder, connect, start};
use harness::cluster::{Cluster, SUPERUSER, Shutdown};
use postgres::Client;

/// Types that hold encrypted values, in every way that there is, and tables with such columns.
const SCHEMA: &str = "
    SELECT enc_create_key('user_pii');
    CREATE TYPE person AS (name text, email encrypted_text('user_pii'));
    CREATE DOMAIN people AS person[];
    CREATE DOMAIN address AS encrypted_text('user_pii');
    CREATE TYPE addresses AS RANGE (subtype = address);
    CREATE TABLE inner_table (p person, ps people, a address, aa address[],
                              l encrypted_text('user_pii')[], r addresses);
    CREATE TABLE outer_table (t inner_table, ts inner_table[]);
    CREATE VIEW seen AS SELECT * FROM outer_table;
    CREATE TABLE plain (id integer, names text[]);
    INSERT INTO inner_table
    SELECT row('a', 'secret')::person, array[row('a', 'secret')::person], 'secret', '{secret}',
           '{secret}', addresses('a', 'b') FROM generate_series(1, 100);
    INSERT INTO outer_table SELECT t, array[t] FROM inner_table t;
    INSERT INTO plain SELECT i, '{a}' FROM generate_series(1, 100) i;";

/// The types that ANALYZE calls the extension's function for, by name.
fn types_with_typanalyze(session: &mut Client) -> Vec<Option<String>> {
    session.texts(
        "SELECT typname FROM pg_type WHERE typanalyze = 'encrypted_typanalyze'::regproc ORDER BY 1",
    )
}

/// Runs ANALYZE, which must store nothing of the values, but do so for other columns.
#[track_caller]
fn analyze(session: &mut Client) {
    session.run("ANALYZE inner_table, outer_table, plain");
    let statistics = |table: &str| {
        format!(
            "SELECT count(*) FILTER (WHERE stakind1 = 0) || ' without values, '
                    || count(*) FILTER (WHERE stakind1 <> 0) || ' with'
               FROM pg_statistic WHERE starelid = '{table}'::regclass"
        )
    };
    assert_eq!(session.text(&statistics("inner_table")), "6 without values, 0 with");
    assert_eq!(session.text(&statistics("outer_table")), "2 without values, 0 with");
    assert_eq!(session.text(&statistics("plain")), "0 without values, 2 with");
}

#[track_caller]
fn run(cluster: &Cluster, program: &str, arguments: &[&str]) {
    let output = cluster.command(program).args(arguments).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
}

#[test]
fn a_restored_dump_is_analyzed_without_values() {
    let Some(cluster) = start("a_restored_dump_is_analyzed_without_values") else { return };
    let mut original = connect(&cluster);
    original.run(SCHEMA);
    let types = types_with_typanalyze(&mut original);
    // The encrypted types, six of our own with the range's multirange and three relations' row types,
    // and an array type for each.
    assert_eq!(types.len(), 2 * (2 + 5 + 3), "{types:?}");
    // What has been refused since: it comes back, with a warning.
    original.run(
        "SET check_function_bodies = off;
         CREATE INDEX kept_index ON inner_table (l);
         CREATE STATISTICS kept_statistics ON (lower(a)), (length(a)) FROM inner_table;
         CREATE TABLE kept_table (a address) PARTITION BY LIST (a);",
    );
    run(&cluster, "pg_dump", &["--format=custom", "--file=db.dump"]);
    run(&cluster, "createdb", &["--template=template0", "restored"]);
    run(&cluster, "pg_restore", &["--exit-on-error", "--dbname=restored", "db.dump"]);

    let mut restored = cluster.connect(SUPERUSER, "restored");
    let expected: Vec<_> =
        types_with_typanalyze(&mut original).into_iter().filter(Option::is_some).collect();
    assert_eq!(types_with_typanalyze(&mut restored), expected);
    let kept = restored.text(
        "SELECT concat_ws(' ', to_regclass('kept_index'), to_regclass('kept_table'),
                          (SELECT stxname FROM pg_statistic_ext))",
    );
    assert_eq!(kept, "kept_index kept_table kept_statistics");
    restored.run("DROP INDEX kept_index; DROP STATISTICS kept_statistics");
    analyze(&mut restored);
}

#[test]
fn an_upgraded_cluster_is_analyzed_without_values_and_keys() {
    let test = "an_upgraded_cluster_is_analyzed_without_values_and_keys";
    let Some(mut old) = start(test) else { return };
    let mut session = connect(&old);
    session.run(SCHEMA);
    let types = types_with_typanalyze(&mut session);
    drop(session);
    old.stop(Shutdown::Fast);

    // To the same version, which goes the same way as to a later one; and to a server that has no key.
    let Some(builder) = builder(test) else { return };
    let mut new = builder.create();
    let bin = new.command("postgres").get_program().to_owned();
    let bin = std::path::Path::new(&bin).parent().unwrap();
    let output = new
        .command("pg_upgrade")
        .args(["--old-datadir", &old.data_directory().to_string_lossy()])
        .args(["--new-datadir", &new.data_directory().to_string_lossy()])
        .args(["--old-bindir", &bin.to_string_lossy(), "--username", SUPERUSER])
        .args(["--socketdir", &new.directory().to_string_lossy()])
        .env_remove("PGHOST")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));

    new.start();
    let mut session = new.connect(SUPERUSER, DATABASE);
    assert_eq!(types_with_typanalyze(&mut session), types);
    analyze(&mut session);
    // The event triggers are there as well.
    session.fails("CREATE TABLE bare (v encrypted_text)", "KE031");
    session.fails("CREATE INDEX CONCURRENTLY ON inner_table USING gin (l)", "KE034");
    assert_eq!(
        session.text("SELECT count(*) FROM pg_index WHERE indrelid = 'inner_table'::regclass"),
        "0"
    );
}
