//! The documents say what the code does: their examples run, and `docs/reference.md` lists all that
//! there is, once. CONTRIBUTING.md explains how examples are marked.

#![expect(clippy::unwrap_used, reason = "tests panic")]

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use cluster_tests::{MAJOR, Session, connect, start};
use harness::cluster::{Cluster, SUPERUSER};
use harness::openbao::OpenBao;
use postgres::Client;

/// The info strings of blocks of SQL: those that run with keys from a file, with keys from Vault,
/// and those that can't run in a test.
const FILE: &str = "sql";
const VAULT: &str = "sql vault";
const NO_TEST: &str = "sql no-test";

// Examples

#[test]
fn examples_of_the_readme() {
    run_examples("examples_of_the_readme", "README.md", FILE);
}

#[test]
fn examples_of_the_readme_with_vault() {
    run_examples("examples_of_the_readme_with_vault", "README.md", VAULT);
}

#[test]
fn examples_of_the_reference() {
    run_examples("examples_of_the_reference", "docs/reference.md", FILE);
}

#[test]
fn examples_of_compliance() {
    run_examples("examples_of_compliance", "docs/compliance.md", FILE);
}

#[test]
fn examples_of_the_clients() {
    run_examples("examples_of_the_clients", "docs/clients.md", FILE);
}

#[test]
fn examples_of_the_providers() {
    run_examples("examples_of_the_providers", "docs/providers.md", FILE);
}

#[test]
fn examples_of_the_providers_with_vault() {
    run_examples("examples_of_the_providers_with_vault", "docs/providers.md", VAULT);
}

/// Each runbook in a cluster of its own.
#[test]
fn examples_of_the_operations() {
    let runbooks = fs::read_dir(root().join("docs/operations")).unwrap();
    let mut runbooks: Vec<_> = runbooks
        .map(|file| file.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.ends_with(".md"))
        .collect();
    runbooks.sort();
    assert!(!runbooks.is_empty(), "there are no runbooks");
    for runbook in runbooks {
        println!("docs/operations/{runbook}");
        run_examples("examples_of_the_operations", &format!("docs/operations/{runbook}"), FILE);
    }
}

/// Runs a document's blocks with this info string, in order, by psql and in a new cluster. Exactly
/// the statements that are marked so must fail.
#[track_caller]
fn run_examples(test: &str, document: &str, info: &str) {
    if let Some(why) = Cluster::missing(MAJOR) {
        return harness::skip(test, &why);
    }
    let script = script_of(&read(document), info);
    assert!(!script.trim().is_empty(), "{document} has no block marked \"{info}\"");

    let cluster = Cluster::builder(MAJOR).create();
    let script = stand_in_for_paths(&script, &cluster);
    if info != VAULT {
        return run_script(cluster, document, &script);
    }
    let Some(server) = OpenBao::start_with_tls() else {
        return harness::skip(test, "there is no bao to run");
    };
    let script = stand_in_for_vault(&script, &server, &cluster);
    run_script(cluster, document, &format!("CREATE EXTENSION encryption_ext; {script}"));
}

/// The blocks with this info string as a script whose lines have the document's numbers.
#[track_caller]
fn script_of(document: &str, info: &str) -> String {
    let mut script = String::new();
    let mut block = None;
    for line in document.lines() {
        match line.strip_prefix("```") {
            Some(_) if block.is_some() => block = None,
            Some(opened) => {
                let known = [FILE, VAULT, NO_TEST].contains(&opened) || !opened.starts_with("sql");
                assert!(known, "unknown info string {opened:?}");
                block = Some(opened);
            }
            None if block == Some(info) => script.push_str(line),
            None => (),
        }
        script.push('\n');
    }
    // A session that goes on may read the new configuration a moment later; a new one has it.
    script.replace("pg_reload_conf();", r"pg_reload_conf(); \connect \\")
}

/// Leads files of the documents' machine into the cluster's folder.
fn stand_in_for_paths(script: &str, cluster: &Cluster) -> String {
    let folder = format!("'{}/", cluster.directory().display());
    script.replace("'/etc/postgresql/", &folder).replace("'/var/lib/postgresql/", &folder)
}

/// Leads the documents' Vault to a server whose keys can be read, and writes the files for its login.
fn stand_in_for_vault(script: &str, server: &OpenBao, cluster: &Cluster) -> String {
    const KEY: &str = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=";
    for name in ["database", "orders", "user_pii"] {
        server.kv_put(&format!("keys/{name}"), KEY);
    }
    server.policy("keys", r#"path "secret/data/keys/*" { capabilities = ["read"] }"#);
    let (role_id, secret_id) = server.approle("postgresql", &["keys"], "1h");
    let files = [
        ("vault_role_id_file", role_id),
        ("vault_secret_id_file", secret_id),
        ("vault_token_file", server.token(&["keys"], "1h")),
        ("vault_ca_file", fs::read_to_string(server.ca_file()).unwrap()),
    ];
    for (setting, contents) in &files {
        for line in script.lines().filter(|line| line.contains(setting)) {
            let path = PathBuf::from(line.split('\'').nth(1).expect("a file's name is quoted"));
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, contents).unwrap();
        }
    }
    // The documents' server has a certificate that the operating system knows.
    let certificates = cluster.directory().join("ca.pem");
    fs::copy(server.ca_file(), &certificates).unwrap();
    cluster.configure("encryption_ext.vault_ca_file", certificates.to_str().unwrap());
    ["https://vault.example.com:8200", "https://vault.example:8200"]
        .iter()
        .fold(script.to_owned(), |script, address| script.replace(address, &server.address()))
}

#[track_caller]
fn run_script(mut cluster: Cluster, document: &str, script: &str) {
    let file = document.replace('/', "-");
    fs::write(cluster.directory().join(&file), script).unwrap();
    cluster.start();
    let output = cluster
        .command("psql")
        .args(["--no-psqlrc", "--quiet", "--set=VERBOSITY=verbose"])
        .arg(format!("--file={file}"))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).replace(&file, document);
    assert!(output.status.success(), "{said}");
    assert_eq!(failures(&said, document), expected_failures(script), "\n{said}");
}

/// The lines on which a statement must fail, with its SQLSTATE.
fn expected_failures(script: &str) -> BTreeMap<usize, String> {
    let marked = script.lines().enumerate().filter_map(|(n, line)| {
        let (_, sqlstate) = line.split_once("-- ERROR: ")?;
        Some((n + 1, sqlstate.trim_end().to_owned()))
    });
    marked.collect()
}

/// The lines on which psql reports that a statement failed, with its SQLSTATE; or that a command of
/// psql's own did, which has none.
fn failures(said: &str, document: &str) -> BTreeMap<usize, String> {
    let prefix = format!("psql:{document}:");
    let failed = said.lines().filter_map(|line| {
        let (number, message) = line.strip_prefix(&prefix)?.split_once(": ")?;
        let sqlstate = match message.split_once(":  ") {
            Some(("ERROR" | "FATAL" | "PANIC", message)) => message.split(':').next()?,
            _ if message.starts_with("error: ") => message,
            _ => return None,
        };
        Some((number.parse().ok()?, sqlstate.to_owned()))
    });
    failed.collect()
}

// The reference

#[test]
fn reference_lists_the_functions() {
    let Some(cluster) = start("reference_lists_the_functions") else { return };
    let reference = read("docs/reference.md");
    let documented = reference
        .lines()
        .flat_map(|line| line.split('`').skip(1).step_by(2))
        .filter(|code| code.contains(" RETURNS ") || code.starts_with("CALL "))
        .map(str::to_owned);
    let existing = rows(
        &mut connect(&cluster),
        "SELECT CASE prokind WHEN 'p' THEN 'CALL ' ELSE '' END
                || CASE nspname WHEN 'public' THEN '' ELSE nspname || '.' END || proname || '('
                || regexp_replace(pg_get_function_arguments(f.oid), '(^|, )IN ', '\\1', 'g') || ')'
                || CASE prokind WHEN 'p' THEN '' ELSE ' RETURNS ' || pg_get_function_result(f.oid) END
           FROM pg_proc f JOIN pg_namespace n ON n.oid = pronamespace
          WHERE f.oid IN (SELECT objid FROM member WHERE classid = 'pg_proc'::regclass)",
    );
    assert_same(documented, existing);
}

#[test]
fn reference_lists_views_and_tables_with_their_columns() {
    let Some(cluster) = start("reference_lists_views_and_tables_with_their_columns") else {
        return;
    };
    let tables = tables_of(&read("docs/reference.md"));
    let documented = tables.iter().filter(|table| table.header.starts_with(&words(["column"])));
    let documented = documented.flat_map(|table| {
        table.rows.iter().map(|row| format!("{}: {} {}", table.heading, row[0], row[1]))
    });
    let existing = rows(
        &mut connect(&cluster),
        "SELECT CASE relkind WHEN 'v' THEN 'View ' ELSE 'Table ' END
                || CASE nspname WHEN 'public' THEN '' ELSE nspname || '.' END || relname || ': '
                || attname || ' ' || format_type(atttypid, atttypmod)
           FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace
           JOIN pg_attribute ON attrelid = c.oid AND attnum > 0 AND NOT attisdropped
          WHERE c.oid IN (SELECT objid FROM member WHERE classid = 'pg_class'::regclass)
            AND relkind <> 'S'",
    );
    assert_same(documented, existing);
}

#[test]
fn reference_lists_types_casts_and_operators() {
    let Some(cluster) = start("reference_lists_types_casts_and_operators") else { return };
    let mut session = connect(&cluster);
    let tables = tables_of(&read("docs/reference.md"));

    let types = table(&tables, ["type", "base type", "storage", "collatable", "category"]);
    let documented = types.rows.iter().map(|row| [&row[..1], &row[2..]].concat().join(" "));
    let existing = rows(
        &mut session,
        "SELECT concat_ws(' ', typname, CASE typstorage WHEN 'e' THEN 'external' END,
                          CASE WHEN typcollation <> 0 THEN 'yes' ELSE 'no' END, typcategory)
           FROM pg_type
          WHERE oid IN (SELECT objid FROM member WHERE classid = 'pg_type'::regclass)",
    );
    assert_same(documented, existing);

    let casts = table(&tables, ["from", "to", "when"]);
    let documented = casts.rows.iter().map(|row| row[..3].join(" "));
    let existing = rows(
        &mut session,
        "SELECT concat_ws(' ', castsource::regtype, casttarget::regtype,
                    CASE castcontext WHEN 'i' THEN 'implicit' WHEN 'a' THEN 'assignment'
                                     ELSE 'explicit' END)
           FROM pg_cast
          WHERE oid IN (SELECT objid FROM member WHERE classid = 'pg_cast'::regclass)",
    );
    assert_same(documented, existing);

    let operators = table(&tables, ["left", "operators", "right", "needs"]);
    let documented = operators.rows.iter().flat_map(|row| {
        row[1].split_whitespace().map(|operator| format!("{} {operator} {}", row[0], row[2]))
    });
    // Those in schema encryption are the planner's.
    let existing = rows(
        &mut session,
        "SELECT concat_ws(' ', oprleft::regtype, oprname, oprright::regtype) FROM pg_operator
          WHERE oid IN (SELECT objid FROM member WHERE classid = 'pg_operator'::regclass)
            AND oprnamespace <> 'encryption'::regnamespace",
    );
    assert_same(documented, existing);
}

#[test]
fn reference_lists_the_settings() {
    let Some(cluster) = start("reference_lists_the_settings") else { return };
    let tables = tables_of(&read("docs/reference.md"));
    let settings = table(&tables, ["setting", "default", "unit", "range"]);
    let documented = settings.rows.iter().map(|row| row[..4].join("|"));
    let existing = rows(
        &mut connect(&cluster),
        "SELECT concat(name, '|', boot_val, '|', unit, '|',
                       min_val || '–' || max_val) FROM pg_settings WHERE name LIKE 'encryption\\_ext.%'",
    );
    assert_same(documented, existing);
}

#[test]
fn reference_lists_the_sqlstates() {
    let tables = tables_of(&read("docs/reference.md"));
    let documented = table(&tables, ["SQLSTATE"]).rows.iter().map(|row| row[0].clone());
    let mut sources = read("src/errors.rs");
    for file in fs::read_dir(root().join("sql")).unwrap() {
        sources += &fs::read_to_string(file.unwrap().path()).unwrap();
    }
    let mut raised: Vec<_> = sources
        .split(['"', '\''])
        // (A pattern, such as LIKE's 'KE04_', is none.)
        .filter(|text| text.len() == 5 && text.starts_with("KE") && !text.contains('_'))
        .map(str::to_owned)
        .collect();
    raised.sort();
    raised.dedup();
    assert_same(documented, raised);
}

/// `describe` in the source has for each event an SQLSTATE, a level and a line, in whichever order.
#[test]
fn log_events_lists_the_lines() {
    let source = read("src/events/mod.rs");
    let (_, describe) = source.split_once("fn describe(").unwrap();
    let (describe, _) = describe.split_once("fn subject(").unwrap();
    let describe = describe.replace("\\\"", "\0");
    let texts: Vec<_> = describe.split('"').skip(1).step_by(2).collect();
    let levels = describe.split("Level::").skip(1);
    let levels: Vec<_> =
        levels.map(|rest| if rest.starts_with("Log") { "LOG" } else { "WARNING" }).collect();
    let (pairs, rest) = texts.as_chunks::<2>();
    assert!(rest.is_empty() && pairs.len() == levels.len() && pairs.len() > 10, "{texts:?}");
    let written = pairs.iter().zip(&levels).map(|([one, other], level)| {
        let (sqlstate, line) = if one.starts_with("KE") { (one, other) } else { (other, one) };
        format!("{sqlstate} {level} {}", line.replace('\0', "\""))
    });
    let tables = tables_of(&read("docs/operations/log-events.md"));
    let documented = table(&tables, ["SQLSTATE", "level", "line"]).rows.iter();
    assert_same(documented.map(|row| row[..3].join(" ")), written);
}

#[test]
fn a_dump_is_restored_as_the_reference_says() {
    let Some(cluster) = start("a_dump_is_restored_as_the_reference_says") else { return };
    // Schema "a" comes before "encryption", and the default is a constant under the database key.
    connect(&cluster).run(
        "SELECT enc_create_key('k'), enc_rotate_key('k');
         CREATE SCHEMA a;
         CREATE TABLE a.t (id integer, v encrypted_text('k') DEFAULT 'absent');
         INSERT INTO a.t VALUES (1, 'present'), (2, DEFAULT);",
    );
    let run = |program: &str, arguments: &[&str]| {
        let output = cluster.command(program).args(arguments).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    run("pg_dump", &["--format=custom", "--file=db.dump"]);

    let reference = read("docs/reference.md");
    let commands = reference.lines().filter_map(|line| line.strip_prefix("    "));
    let commands: Vec<_> = commands.filter(|line| line.contains(" restored")).collect();
    assert_eq!(commands.len(), 2 + 4, "{commands:?}");
    for command in commands {
        let (program, arguments) = command.split_once(' ').unwrap();
        // The only quoted argument is the last.
        let (plain, quoted) = arguments.split_once(" '").unwrap_or((arguments, ""));
        let mut arguments: Vec<_> = plain.split(' ').collect();
        arguments.extend(quoted.strip_suffix('\''));
        run(program, &arguments);
    }
    let mut original = connect(&cluster);
    let mut restored = [
        cluster.connect(SUPERUSER, "restored"),
        cluster.connect(SUPERUSER, "restored_catalog_first"),
    ];
    for restored in &mut restored {
        let rows = restored.texts("SELECT concat(v, ' ', enc_key_name(v)) FROM a.t ORDER BY id");
        assert_eq!(rows, [Some("present k".to_owned()), Some("absent k".to_owned())]);
        for catalog in [
            "SELECT id, created_at, digest_version FROM encryption.keyspace",
            "TABLE encryption.key_version ORDER BY 1, 2",
        ] {
            let query = format!("SELECT c::text FROM ({catalog}) c");
            assert_eq!(restored.texts(&query), original.texts(&query));
        }
    }
    let [restored, _] = &mut restored;
    // On which server the keys were compared with the provider is not restored.
    const COMPARED: &str = "SELECT system_identifier IS NOT NULL FROM encryption.keyspace";
    assert_eq!((original.text(COMPARED), restored.text(COMPARED)), ("t".into(), "f".into()));
}

#[test]
fn the_readme_has_what_was_measured() {
    let tables = tables_of(&read("README.md"));
    let rows = &table(&tables, ["what", "against", "goal", "measured"]).rows;
    let documented = rows.iter().map(|row| row.join("|"));
    let results = read("benches/results/ratios.tsv").replace('`', "");
    let measured = results.lines().skip(1).filter_map(|line| {
        let cells: Vec<_> = line.split('\t').collect();
        let [_, what, against, direction, goal, unit, median, lowest, highest, _] = cells[..]
        else {
            panic!("{line}");
        };
        let unit = if unit.is_empty() { String::new() } else { format!(" {unit}") };
        let goal = match goal {
            "" if against == "itself, once more" => String::new(),
            "" => return None,
            goal => format!("{direction} {goal}{unit}"),
        };
        Some(format!("{what}|{against}|{goal}|{median}{unit}|{lowest} – {highest}"))
    });
    assert_same(documented, measured);
}

#[test]
fn links_lead_somewhere() {
    let mut broken = String::new();
    for document in documents() {
        let text = fs::read_to_string(&document).unwrap();
        for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if target.contains("://") {
                continue;
            }
            let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
            let path = match file {
                "" => document.clone(),
                file => document.parent().unwrap().join(file),
            };
            let found = fs::read_to_string(path).is_ok_and(|text| {
                anchor.is_empty() || headings(&text).any(|heading| slug(heading) == anchor)
            });
            if !found {
                writeln!(broken, "{}: {target}", document.display()).unwrap();
            }
        }
    }
    assert!(broken.is_empty(), "\n{broken}");
}

// The catalog

#[test]
fn what_users_see_has_comments() {
    let Some(cluster) = start("what_users_see_has_comments") else { return };
    // Functions that a type, a cast, an operator or an operator class is made of are not called.
    let seen = rows(
        &mut connect(&cluster),
        "SELECT concat(obj_description(objid, classid::regclass::name) IS NOT NULL, ' ',
                       pg_describe_object(classid, objid, 0))
           FROM member
          WHERE classid = 'pg_type'::regclass
             OR classid = 'pg_class'::regclass
                AND objid NOT IN (SELECT oid FROM pg_class WHERE relkind = 'S')
             OR classid = 'pg_proc'::regclass
                AND objid NOT IN (SELECT oid FROM pg_proc WHERE pronamespace = 'encryption'::regnamespace)
                AND objid NOT IN (SELECT castfunc FROM pg_cast)
                AND objid NOT IN (SELECT oprcode FROM pg_operator)
                AND objid NOT IN (SELECT amproc FROM pg_amproc)
                AND objid NOT IN (SELECT unnest(ARRAY[typinput, typoutput, typreceive, typsend,
                                                      typmodin, typmodout, typanalyze]::oid[])
                                    FROM pg_type)",
    );
    assert!(seen.len() >= 26, "{seen:?}");
    assert_same([], seen.into_iter().filter(|object| !object.starts_with("t ")));
}

#[test]
fn what_returns_plaintext_is_stable() {
    let Some(cluster) = start("what_returns_plaintext_is_stable") else { return };
    let mut session = connect(&cluster);
    const TAKING: &str = "
        SELECT format('%s %s', provolatile, f.oid::regprocedure) FROM pg_proc f
         WHERE f.oid IN (SELECT objid FROM member WHERE classid = 'pg_proc'::regclass)
           AND proargtypes::oid[] && ARRAY['encrypted_text'::regtype, 'encrypted_bytea'::regtype]::oid[]
           AND prorettype NOT IN ('boolean'::regtype, 'integer'::regtype, 'bigint'::regtype)
           AND proname <> 'enc_digest'";
    let taking = rows(&mut session, TAKING);
    assert!(taking.len() >= 13, "{taking:?}");
    assert_same([], taking.into_iter().filter(|function| !function.starts_with("s ")));
}

/// The first column of a query, which may name `member`: the objects that belong to the extension.
#[track_caller]
fn rows(session: &mut Client, query: &str) -> Vec<String> {
    // Settings are defined when the library is loaded.
    session.run("LOAD 'encryption_ext'");
    let query = format!(
        "WITH member AS (
            SELECT classid, objid FROM pg_depend
             WHERE deptype = 'e' AND refclassid = 'pg_extension'::regclass
               AND refobjid = (SELECT oid FROM pg_extension WHERE extname = 'encryption_ext'))
         {query}"
    );
    session.texts(&query).into_iter().map(Option::unwrap).collect()
}

/// What is in one and not in the other, or in one more often, fails.
#[track_caller]
fn assert_same(
    documented: impl IntoIterator<Item = String>,
    existing: impl IntoIterator<Item = String>,
) {
    let mut balance = BTreeMap::<String, i32>::new();
    for entry in documented {
        *balance.entry(entry).or_default() += 1;
    }
    for entry in existing {
        *balance.entry(entry).or_default() -= 1;
    }
    let mut difference = String::new();
    for (entry, count) in balance {
        match count {
            0 => (),
            ..0 => writeln!(difference, "missing: {entry}").unwrap(),
            1.. => writeln!(difference, "wrong, or there twice: {entry}").unwrap(),
        }
    }
    assert!(difference.is_empty(), "\n{difference}");
}

// Markdown

/// A table, and the heading that it is under. Without the marks of code.
struct Table {
    heading: String,
    header: Vec<String>,
    rows: Vec<Vec<String>>,
}

fn tables_of(document: &str) -> Vec<Table> {
    let mut tables: Vec<Table> = Vec::new();
    let mut heading = String::new();
    let mut inside = false;
    for line in document.lines() {
        let cells = line.strip_prefix('|').and_then(|line| line.trim_end().strip_suffix('|'));
        let Some(cells) = cells else {
            inside = false;
            if line.starts_with('#') {
                heading = line.trim_start_matches('#').trim().replace('`', "");
            }
            continue;
        };
        // A cell writes the character that parts the cells with a backslash.
        let cells = cells.replace("\\|", "\0");
        let cells = cells.split('|').map(|cell| cell.trim().replace('`', "").replace('\0', "|"));
        let cells: Vec<_> = cells.collect();
        match tables.last_mut() {
            Some(_) if cells.iter().all(|cell| cell == "---") => (),
            Some(table) if inside => {
                assert_eq!(cells.len(), table.header.len(), "{line}");
                table.rows.push(cells);
            }
            _ => tables.push(Table { heading: heading.clone(), header: cells, rows: Vec::new() }),
        }
        inside = true;
    }
    tables
}

/// The only table whose header begins with these words.
#[track_caller]
fn table<'a, const N: usize>(tables: &'a [Table], header: [&str; N]) -> &'a Table {
    let header = words(header);
    let found: Vec<_> = tables.iter().filter(|table| table.header.starts_with(&header)).collect();
    assert_eq!(found.len(), 1, "tables whose header begins with {header:?}");
    found[0]
}

fn headings(document: &str) -> impl Iterator<Item = &str> {
    document.lines().filter(|line| line.starts_with('#')).map(|line| line.trim_start_matches('#'))
}

/// The anchor that a heading has.
fn slug(heading: &str) -> String {
    let heading = heading.trim().to_lowercase().replace(' ', "-");
    heading.chars().filter(|c| c.is_alphanumeric() || ['-', '_'].contains(c)).collect()
}

/// The documents in the root, in docs/ and in docs/operations/.
fn documents() -> impl Iterator<Item = PathBuf> {
    let folders = [root().to_owned(), root().join("docs"), root().join("docs/operations")];
    let files = folders.into_iter().flat_map(|folder| fs::read_dir(folder).unwrap());
    files
        .map(|file| file.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "md"))
}

fn words<const N: usize>(words: [&str; N]) -> Vec<String> {
    words.map(str::to_owned).to_vec()
}

#[track_caller]
fn read(document: &str) -> String {
    fs::read_to_string(root().join(document)).unwrap()
}

fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}
