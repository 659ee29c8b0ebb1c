//! The files in `monitoring/`: they agree with one another and with the documents, each query runs as it is
//! meant to be run, and in an exercise with Prometheus each step moves its metric and fires its alert.

#![expect(
    clippy::panic,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a test fails by a panic, and tells how long its steps took"
)]

mod dashboard;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use cluster_tests::key_server::{ONE, READ, Setup, TWO, WRITING};
use cluster_tests::replication::{catch_up, replace_by_base_backup};
use cluster_tests::{
    DATABASE, MAJOR, Session, builder, builder_on, connect, keyring_file, start_with,
};
use harness::cluster::{Cluster, SUPERUSER};
use harness::openbao::OpenBao;
use harness::prometheus::{PostgresExporter, Prometheus, program};
use postgres::Client;
use serde_json::{Value, json};
use tempfile::TempDir;

// The files

/// What `monitoring/generate` makes, in a folder of its own.
fn generate(options: &[&str]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let output =
        Command::new(root().join("monitoring/generate")).args(options).arg(folder.path()).output();
    let output = output.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    folder
}

/// What a YAML file has, by the library that reads it for the generator, too.
#[track_caller]
fn yaml(path: &Path) -> Value {
    parsed("import json, sys, yaml; json.dump(yaml.safe_load(open(sys.argv[1])), sys.stdout)", path)
}

/// A text in YAML, likewise.
#[track_caller]
fn yaml_text(text: &Value) -> Value {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), text.as_str().unwrap()).unwrap();
    yaml(file.path())
}

#[track_caller]
fn parsed(program: &str, path: &Path) -> Value {
    let output = Command::new("/usr/bin/python3").args(["-c", program]).arg(path).output().unwrap();
    assert!(output.status.success(), "{path:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn list(value: &Value) -> &Vec<Value> {
    value.as_array().unwrap_or_else(|| panic!("{value} is a list"))
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("{value} is a text"))
}

fn texts(value: &Value) -> Vec<String> {
    list(value).iter().map(|value| text(value).to_owned()).collect()
}

fn keys(value: &Value) -> BTreeSet<&str> {
    value
        .as_object()
        .unwrap_or_else(|| panic!("{value} has keys"))
        .keys()
        .map(String::as_str)
        .collect()
}

/// A metric: its type, and its labels in their order.
type Metrics = BTreeMap<String, (String, Vec<String>)>;

/// The list of metrics. A histogram is one.
fn listed() -> Metrics {
    let program =
        "import json, sys, tomllib; json.dump(tomllib.load(open(sys.argv[1], 'rb')), sys.stdout)";
    let file = parsed(program, &root().join("monitoring/metrics.toml"));
    let mut metrics = Metrics::new();
    for query in list(&file["query"]) {
        let columns = list(&query["columns"]);
        let of_type =
            |is_label: bool| columns.iter().filter(move |c| (c["type"] == "label") == is_label);
        let labels: Vec<_> = of_type(true).map(|c| text(&c["name"]).to_owned()).collect();
        for column in of_type(false) {
            let name = format!("{}_{}", text(&query["name"]), text(&column["name"]));
            metrics.insert(name, (text(&column["type"]).to_owned(), labels.clone()));
        }
    }
    assert!(metrics.len() > 50, "{metrics:#?}");
    metrics
}

/// The same with the three series of a histogram, as tools have them that know of none.
fn listed_as_series() -> Metrics {
    let mut series = Metrics::new();
    for (name, (kind, labels)) in listed() {
        if kind != "histogram" {
            series.insert(name, (kind, labels));
            continue;
        }
        let with_bound = [&labels[..], &["le".to_owned()]].concat();
        series.insert(format!("{name}_bucket"), ("counter".to_owned(), with_bound));
        for part in ["sum", "count"] {
            series.insert(format!("{name}_{part}"), ("counter".to_owned(), labels.clone()));
        }
    }
    series
}

/// What a file of user queries has, with the fields that postgres_exporter's `UserQuery` and
/// CloudNativePG's know.
fn of_user_queries(queries: &Value, known: &[&str]) -> Metrics {
    let mut metrics = Metrics::new();
    for (name, query) in queries.as_object().unwrap() {
        let unknown: Vec<_> = keys(query).into_iter().filter(|key| !known.contains(key)).collect();
        assert_eq!(unknown, [""; 0], "{name}");
        let columns = list(&query["metrics"]).iter().flat_map(|column| column.as_object().unwrap());
        let (labels, values): (Vec<_>, Vec<_>) = columns.partition(|(_, c)| c["usage"] == "LABEL");
        let labels: Vec<_> = labels.into_iter().map(|(name, _)| name.clone()).collect();
        for (column, described) in values {
            assert_eq!(keys(described), ["description", "usage"].into());
            let kind = text(&described["usage"]).to_lowercase();
            metrics.insert(format!("{name}_{column}"), (kind, labels.clone()));
        }
    }
    metrics
}

#[test]
fn the_files_of_all_exporters_agree() {
    let folder = generate(&[]);
    let file = |name: &str| yaml(&folder.path().join(name));

    let queries = file("postgres_exporter/queries.yaml");
    let of_exporter = of_user_queries(&queries, &["query", "metrics", "master"]);
    assert_eq!(of_exporter, listed());

    let config_map = file("cloudnative-pg/configmap.yaml");
    assert_eq!(keys(&config_map), ["apiVersion", "data", "kind", "metadata"].into());
    assert_eq!(config_map["kind"], "ConfigMap");
    let custom = yaml_text(&config_map["data"]["custom-queries"]);
    let known = ["query", "metrics", "predicate_query", "target_databases"];
    assert_eq!(of_user_queries(&custom, &known), listed());
    for (name, query) in custom.as_object().unwrap() {
        assert!(text(&query["predicate_query"]).contains("pg_extension"), "{name}");
        assert_eq!(query["query"], queries[name]["query"], "{name}");
        let is_of_server = queries[name]["master"] == true;
        assert_eq!(query["target_databases"].is_null(), is_of_server, "{name}");
    }

    // config/collector_config.go, metric_config.go and query_config.go of sql_exporter.
    let mut of_collectors = Metrics::new();
    for per in ["server", "database"] {
        let collector = file(&format!("sql_exporter/encryption_ext_{per}.collector.yml"));
        assert_eq!(keys(&collector), ["collector_name", "metrics", "queries"].into());
        let queries = list(&collector["queries"]);
        let named: BTreeSet<_> = queries.iter().map(|query| text(&query["query_name"])).collect();
        assert!(queries.iter().all(|query| keys(query) == ["query", "query_name"].into()));
        let mut used = BTreeSet::new();
        for metric in list(&collector["metrics"]) {
            let allowed = ["help", "key_labels", "metric_name", "query_ref", "type", "values"];
            assert!(keys(metric).is_subset(&allowed.into()), "{metric}");
            assert!(!text(&metric["help"]).is_empty() && list(&metric["values"]).len() == 1);
            used.insert(text(&metric["query_ref"]));
            let labels =
                if metric["key_labels"].is_null() { vec![] } else { texts(&metric["key_labels"]) };
            let described = (text(&metric["type"]).to_owned(), labels);
            of_collectors.insert(text(&metric["metric_name"]).to_owned(), described);
        }
        assert_eq!(used, named);
    }
    assert_eq!(of_collectors, listed_as_series());

    // internal/metrics/types.go of pgwatch. Labels are found in the queries.
    let pgwatch = file("pgwatch/metrics.yaml");
    let mut of_pgwatch = Metrics::new();
    for (name, metric) in pgwatch["metrics"].as_object().unwrap() {
        let allowed = ["description", "gauges", "is_instance_level", "sqls"];
        assert!(keys(metric).is_subset(&allowed.into()), "{metric}");
        let selected =
            text(&metric["sqls"]["14"]).lines().next().unwrap().strip_prefix("SELECT ").unwrap();
        let columns = selected.split(", ").map(|column| column.rsplit([' ', '.']).next().unwrap());
        let columns: Vec<_> = columns.collect();
        assert_eq!(columns[0], "epoch_ns");
        let labels = columns.iter().filter_map(|column| column.strip_prefix("tag_"));
        let labels: Vec<_> = labels.map(str::to_owned).collect();
        for column in columns[1..].iter().filter(|column| !column.starts_with("tag_")) {
            let is_gauge = metric["gauges"].as_array().is_some_and(|g| g.contains(&json!(column)));
            let kind = if is_gauge { "gauge" } else { "counter" };
            of_pgwatch.insert(format!("{name}_{column}"), (kind.to_owned(), labels.clone()));
        }
    }
    assert_eq!(of_pgwatch, listed_as_series());
    assert_eq!(keys(&pgwatch["presets"]["encryption_ext"]["metrics"]), keys(&pgwatch["metrics"]));

    // Rules for CloudNativePG are those for the others, with its prefix.
    let alerts = yaml(&root().join("monitoring/alerts.yaml"));
    assert_eq!(file("prometheus/rules.yaml"), alerts);
    let prefixed = file("cloudnative-pg/rules.yaml");
    for (rule, other) in rules(&alerts).iter().zip(rules(&prefixed)) {
        let names = metrics_in(text(&rule["expr"])).into_iter().map(|name| format!("cnpg_{name}"));
        assert_eq!(metrics_in(text(&other["expr"])), names.collect());
    }

    // Options.
    let folder = generate(&["--schema", "Keys", "--runbooks", "https://wiki.example.com/"]);
    let queries = fs::read_to_string(folder.path().join("postgres_exporter/queries.yaml")).unwrap();
    assert!(queries.contains("FROM \"Keys\".enc_stat s\n") && !queries.contains("extschema"));
    for rule in rules(&yaml(&folder.path().join("prometheus/rules.yaml"))) {
        let url = text(&rule["annotations"]["runbook_url"]);
        assert!(url.starts_with("https://wiki.example.com/docs/operations/"), "{url}");
    }
}

fn rules(file: &Value) -> Vec<Value> {
    let rules: Vec<_> =
        list(&file["groups"]).iter().flat_map(|g| list(&g["rules"]).clone()).collect();
    assert!(rules.len() > 10, "{file}");
    rules
}

/// The names of metrics in an expression.
fn metrics_in(expression: &str) -> BTreeSet<String> {
    let words = expression.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.filter(|word| word.contains("encryption_ext_")).map(str::to_owned).collect()
}

#[test]
fn each_alert_has_a_case_and_a_runbook() {
    let alerts = rules(&yaml(&root().join("monitoring/alerts.yaml")));
    let cases = yaml(&root().join("monitoring/alerts_test.yaml"));
    let checks: Vec<_> = list(&cases["tests"])
        .iter()
        .flat_map(|case| list(&case["alert_rule_test"]).clone())
        .collect();
    let known = listed_as_series();
    let mut sections = Vec::new();
    for alert in &alerts {
        let name = text(&alert["alert"]);
        let (fires, quiet): (Vec<_>, Vec<_>) = checks
            .iter()
            .filter(|check| check["alertname"] == alert["alert"])
            .partition(|check| !list(&check["exp_alerts"]).is_empty());
        assert!(
            !fires.is_empty() && !quiet.is_empty(),
            "{name} has a case in which it fires, and others"
        );

        assert!(["page", "ticket"].contains(&text(&alert["labels"]["severity"])), "{name}");
        assert_eq!(keys(&alert["annotations"]), ["description", "runbook_url", "summary"].into());
        assert!(text(&alert["annotations"]["description"]).contains("$labels.instance"), "{name}");
        let url = text(&alert["annotations"]["runbook_url"]);
        let (file, anchor) = url.split_once('#').unwrap();
        assert!(file.starts_with("docs/operations/"), "{url}");
        let document = fs::read_to_string(root().join(file)).unwrap();
        assert!(headings(&document).contains(&anchor.to_owned()), "{url} leads nowhere");
        assert_eq!(anchor, name.to_lowercase());
        sections.push(format!("{name}: {}", text(&alert["labels"]["severity"])));

        for metric in metrics_in(text(&alert["expr"])) {
            assert!(known.contains_key(&metric), "{name}: there is no metric {metric}");
        }
    }

    // The runbooks are of these alerts and no others, and in their table with the severity.
    let runbooks = read("docs/operations/alerts.md");
    let documented = rows_of(&runbooks, "alert").into_iter().map(|row| {
        let name = row[0].split(']').next().unwrap().trim_start_matches('[').to_owned();
        format!("{name}: {}", row[1])
    });
    assert_same(documented, sections);
    let described =
        headings(&runbooks).into_iter().filter(|h| h.starts_with("encryptionext")).count();
    assert_eq!(described, alerts.len());
}

#[test]
fn the_documents_have_the_metrics() {
    let rows = rows_of(&read("docs/operations/monitoring.md"), "metric");
    let documented = rows.into_iter().map(|row| format!("{} {} {{{}}}", row[0], row[1], row[2]));
    let metrics = listed().into_iter();
    assert_same(
        documented,
        metrics.map(|(name, (kind, labels))| format!("{name} {kind} {{{}}}", labels.join(", "))),
    );
}

/// The anchors of a document's headings, as GitHub makes them of plain words.
fn headings(document: &str) -> Vec<String> {
    let lines = document.lines().filter_map(|line| line.strip_prefix('#'));
    lines.map(|line| line.trim_start_matches('#').trim().to_lowercase().replace(' ', "-")).collect()
}

/// The rows of all tables whose first column has this name, without the marks of code.
fn rows_of(document: &str, first_column: &str) -> Vec<Vec<String>> {
    let mut rows = Vec::new();
    let mut is_in_table = false;
    for line in document.lines() {
        let Some(line) = line.strip_prefix("| ") else {
            is_in_table = false;
            continue;
        };
        let cells = line.trim_end_matches('|').split('|').map(|cell| cell.trim().replace('`', ""));
        let cells: Vec<_> = cells.collect();
        if is_in_table && !cells[0].starts_with("---") {
            rows.push(cells);
        } else if cells[0] == first_column {
            is_in_table = true;
        }
    }
    rows
}

#[track_caller]
fn assert_same(
    documented: impl IntoIterator<Item = String>,
    existing: impl IntoIterator<Item = String>,
) {
    let documented: BTreeSet<_> = documented.into_iter().collect();
    let existing: BTreeSet<_> = existing.into_iter().collect();
    let missing: Vec<_> = existing.difference(&documented).collect();
    let invented: Vec<_> = documented.difference(&existing).collect();
    assert!(
        missing.is_empty() && invented.is_empty(),
        "missing: {missing:#?}, invented: {invented:#?}"
    );
}

#[test]
fn promtool_accepts_the_alerts_and_their_cases() {
    let Some(promtool) = program("promtool") else {
        return harness::skip(
            "promtool_accepts_the_alerts_and_their_cases",
            "there is no promtool",
        );
    };
    let folder = generate(&[]);
    let run = |arguments: &[&str], file: PathBuf| {
        let output = Command::new(&promtool).args(arguments).arg(&file).output().unwrap();
        let said =
            String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && said.contains("SUCCESS"), "{file:?}: {said}");
    };
    for exporter in ["prometheus", "cloudnative-pg"] {
        run(&["check", "rules"], folder.path().join(exporter).join("rules.yaml"));
    }
    run(&["test", "rules"], root().join("monitoring/alerts_test.yaml"));
}

// The queries

/// The queries of all files, each with its file and name.
fn all_queries(folder: &Path) -> Vec<(String, String)> {
    let mut queries = Vec::new();
    let mut add = |file: &str, name: &str, sql: &Value| {
        queries.push((format!("{file}: {name}"), text(sql).to_owned()));
    };
    let file = |name: &str| yaml(&folder.join(name));
    for (name, query) in file("postgres_exporter/queries.yaml").as_object().unwrap() {
        add("postgres_exporter", name, &query["query"]);
    }
    let custom = yaml_text(&file("cloudnative-pg/configmap.yaml")["data"]["custom-queries"]);
    for (name, query) in custom.as_object().unwrap() {
        add("cloudnative-pg", name, &query["query"]);
    }
    for per in ["server", "database"] {
        let collector = file(&format!("sql_exporter/encryption_ext_{per}.collector.yml"));
        for query in list(&collector["queries"]) {
            add("sql_exporter", text(&query["query_name"]), &query["query"]);
        }
    }
    for (name, metric) in file("pgwatch/metrics.yaml")["metrics"].as_object().unwrap() {
        add("pgwatch", name, &metric["sqls"]["14"]);
    }
    queries
}

/// A metric that is a histogram, the view that it comes from, and what each is of.
struct Histogram {
    metric: &'static str,
    view: &'static str,
    of: &'static str,
}

const HISTOGRAMS: [Histogram; 2] = [
    Histogram {
        metric: "encryption_ext_provider_request_duration_seconds",
        view: "enc_stat_provider_request_time",
        of: "provider",
    },
    Histogram {
        metric: "encryption_ext_decrypt_duration_seconds",
        view: "enc_stat_decrypt_time",
        of: "datid",
    },
];

/// Each query gives rows, whose columns are texts and numbers, within moments; and sends no request.
fn run_queries(session: &mut Client, queries: &[(String, String)]) {
    // As CloudNativePG sets it.
    session.run("SET search_path = pg_catalog, public, pg_temp");
    let requests = "SELECT coalesce(sum(requests), 0)::bigint FROM enc_stat_provider";
    let before = session.value::<i64>(requests);
    for (name, sql) in queries {
        let began = Instant::now();
        let rows =
            session.query(sql.as_str(), &[]).unwrap_or_else(|error| panic!("{name}: {error:?}"));
        assert!(began.elapsed() < Duration::from_secs(1), "{name} took {:?}", began.elapsed());
        println!("{name}: {} row(s), {:?}", rows.len(), began.elapsed());
        if let Some(histogram) = HISTOGRAMS.iter().find(|histogram| {
            name.ends_with(&format!("{}_bucket", histogram.metric))
                || name.ends_with(&format!("pgwatch: {}", histogram.metric))
        }) {
            let bound = if name.contains("pgwatch") { "tag_le" } else { "le" };
            let buckets =
                rows.iter().map(|row| (row.get::<_, String>(bound), row.get::<_, i64>("bucket")));
            let all = format!(
                "SELECT CASE le WHEN 'Infinity' THEN '+Inf' ELSE le::text END, count
                   FROM {view} ORDER BY {of}, {view}.le",
                view = histogram.view,
                of = histogram.of
            );
            let all = session.query(&all, &[]).unwrap();
            let all = all.iter().map(|row| (row.get::<_, String>(0), row.get::<_, i64>(1)));
            assert_eq!(buckets.collect::<Vec<_>>(), all.collect::<Vec<_>>(), "{name}");
        }
        let may_be_empty = name.contains("shared_cache");
        assert!(!rows.is_empty() || may_be_empty, "{name} has no rows");
        for column in rows.iter().flat_map(|row| row.columns()) {
            let (column, kind) = (column.name(), column.type_().name());
            let is_number = ["int4", "int8", "float8"].contains(&kind);
            let is_bucket =
                column.contains("duration_seconds") && ["_float8", "_int8"].contains(&kind);
            assert!(is_number || kind == "text" || is_bucket, "{name}: {column} is of type {kind}");
        }
    }
    assert_eq!(session.value::<i64>(requests), before);
}

/// With a key, a table, a rotation that is scheduled, and a role for monitoring.
const SOME_WORK: &str = "
    SELECT enc_create_key('k', rotation_period => '1 year'), enc_schedule_rotation('k');
    CREATE TABLE t (id integer, v encrypted_text('k'));
    INSERT INTO t SELECT n, 's' || n FROM generate_series(1, 100) n;
    SELECT enc_rotate_key('k'); CALL enc_rotate_column('t', 'v');
    CREATE ROLE monitoring LOGIN IN ROLE pg_monitor";

#[test]
fn queries_run_on_a_primary_and_a_standby() {
    let Some(described) = builder("queries_run_on_a_primary_and_a_standby") else { return };
    let preloaded = described.setting("shared_preload_libraries", "encryption_ext");
    let primary = preloaded.setting("wal_keep_size", "64MB").start();
    let mut admin = connect(&primary);
    admin.run("CREATE EXTENSION encryption_ext");
    for statement in SOME_WORK.split_inclusive(';') {
        admin.run(statement);
    }
    let mut standby = Cluster::builder(MAJOR).port(5433).create();
    replace_by_base_backup(&standby, &primary, &["--write-recovery-conf"]);
    standby.configure("encryption_ext.keyring_file", keyring_file(&primary).to_str().unwrap());
    standby.start();
    catch_up(&mut admin, &mut connect(&standby));

    let folder = generate(&[]);
    let queries = all_queries(folder.path());
    assert!(queries.len() > 35, "{}", queries.len());
    for (cluster, in_recovery) in [(&primary, 0), (&standby, 1)] {
        let mut session = cluster.connect("monitoring", DATABASE);
        run_queries(&mut session, &queries);
        let of_database =
            queries.iter().find(|(name, _)| name == "postgres_exporter: encryption_ext_database");
        let row = session.query_one(of_database.unwrap().1.as_str(), &[]).unwrap();
        assert_eq!(row.get::<_, i32>("in_recovery"), in_recovery);
        assert_eq!(row.get::<_, i32>("library_preloaded"), 1);
    }
}

#[test]
fn queries_run_on_another_major_version() {
    queries_run_on("queries_run_on_another_major_version", 18);
}

#[test]
fn queries_run_on_the_oldest_major_version() {
    queries_run_on("queries_run_on_the_oldest_major_version", 14);
}

fn queries_run_on(test: &str, major: u16) {
    let Some(described) = builder_on(major, test) else { return };
    let preloaded = described.setting("shared_preload_libraries", "encryption_ext");
    let Some(cluster) = start_with(preloaded, test) else { return };
    let mut admin = connect(&cluster);
    for statement in SOME_WORK.split_inclusive(';') {
        admin.run(statement);
    }
    let folder = generate(&[]);
    run_queries(&mut cluster.connect("monitoring", DATABASE), &all_queries(folder.path()));

    // The extension in a schema of its own.
    admin.run("CREATE DATABASE other");
    let mut other = cluster.connect(SUPERUSER, "other");
    other.run("CREATE SCHEMA \"Keys\"; CREATE EXTENSION encryption_ext SCHEMA \"Keys\"; SELECT \"Keys\".enc_create_key('k')");
    other.run("GRANT USAGE ON SCHEMA \"Keys\" TO pg_monitor");
    let folder = generate(&["--schema", "Keys"]);
    let mut session = cluster.connect("monitoring", "other");
    for (name, sql) in all_queries(folder.path()) {
        session.query(sql.as_str(), &[]).unwrap_or_else(|error| panic!("{name}: {error:?}"));
    }
}

// The exercise

/// Alerts with all their times divided by sixty, so that minutes pass as seconds; nothing else is changed.
fn hastened(alerts: &Value) -> Value {
    let mut hastened = alerts.clone();
    for group in hastened["groups"].as_array_mut().unwrap() {
        for rule in group["rules"].as_array_mut().unwrap() {
            rule["expr"] = json!(hastened_text(text(&rule["expr"])));
            if !rule["for"].is_null() {
                rule["for"] = json!(hastened_text(text(&rule["for"])));
            }
        }
    }
    hastened
}

/// Divides durations, and the seconds of an hour and of a day.
fn hastened_text(text: &str) -> String {
    let mut hastened = String::new();
    for word in text.split_inclusive(|c: char| !c.is_ascii_alphanumeric() && c != '_') {
        let end = word.trim_end_matches(|c: char| !c.is_ascii_alphanumeric() && c != '_').len();
        let (word, rest) = word.split_at(end);
        let duration = word.split_at_checked(word.len().saturating_sub(1));
        let duration =
            duration.and_then(|(number, unit)| Some((number.parse::<u32>().ok()?, unit)));
        match (word, duration) {
            ("3600", _) => hastened += "60",
            ("86400", _) => hastened += "1440",
            (_, Some((number, "m"))) => hastened += &format!("{number}s"),
            (_, Some((number, "h"))) => hastened += &format!("{number}m"),
            (_, Some((number, "d"))) => hastened += &format!("{}m", 24 * number),
            (_, Some((_, "s" | "w" | "y"))) => panic!("{word} can't be divided"),
            _ => hastened += word,
        }
        hastened += rest;
    }
    hastened
}

#[test]
fn times_are_divided_and_nothing_else() {
    let rule = "increase(a_total{b=\"5m x\"}[10m]) > 5 * x[1d] offset 1h / 144 and y - time() < 2 * 3600 or 7 * 86400";
    let expected = "increase(a_total{b=\"5s x\"}[10s]) > 5 * x[24m] offset 1m / 144 and y - time() < 2 * 60 or 7 * 1440";
    assert_eq!(hastened_text(rule), expected);
}

/// Prometheus, which watches servers by postgres_exporter.
struct Watch {
    prometheus: Prometheus,
    exporters: Vec<PostgresExporter>,
    _files: TempDir,
}

impl Watch {
    fn start(clusters: &[&Cluster], options: &[&str]) -> Option<Self> {
        let files = generate(&[]);
        let queries = files.path().join("postgres_exporter/queries.yaml");
        let exporters = clusters.iter().map(|cluster| {
            PostgresExporter::start(&data_source(cluster, DATABASE), &queries, options)
        });
        let exporters = exporters.collect::<Option<Vec<_>>>()?;
        let targets: Vec<_> = exporters.iter().map(PostgresExporter::target).collect();
        let rules = hastened(&yaml(&files.path().join("prometheus/rules.yaml")));
        let prometheus = Prometheus::start(&targets, &rules)?;
        prometheus.wait_until(
            "the targets are scraped",
            &vec![1.0; clusters.len()],
            |prometheus| prometheus.query("up").into_iter().map(|(_, value)| value).collect(),
        );
        Some(Self { prometheus, exporters, _files: files })
    }

    /// Waits until a metric has this value. Its only series, or the one that its labels select.
    #[track_caller]
    fn expect(&self, metric: &str, value: f64) {
        let metric = format!("encryption_ext_{metric}");
        self.prometheus.wait_until(&metric, &vec![value], |prometheus| {
            prometheus.query(&metric).into_iter().map(|(_, value)| value).collect()
        });
    }

    #[track_caller]
    fn expect_firing(&self, alerts: &[&str]) {
        let alerts: Vec<_> = alerts.iter().map(|alert| format!("EncryptionExt{alert}")).collect();
        self.prometheus.wait_until("alerts fire", &alerts, Prometheus::firing);
    }

    /// One step: it is done, these alerts fire, it is undone, they end; and no other has fired meanwhile. (They are in
    /// the order of the alphabet.)
    #[track_caller]
    fn step(&self, name: &str, alerts: &[&str], mut done: impl FnMut(), mut undone: impl FnMut()) {
        let began = Instant::now();
        self.expect_firing(&[]);
        done();
        println!("{name}: done after {:?}", began.elapsed());
        self.expect_firing(alerts);
        println!("{name}: {alerts:?} after {:?}", began.elapsed());
        undone();
        self.expect_firing(&[]);
        println!("{name}: ended after {:?}", began.elapsed());
        self.expect_fired_since(began, alerts);
    }

    /// These alerts have fired since then, and no others.
    #[track_caller]
    fn expect_fired_since(&self, began: Instant, alerts: &[&str]) {
        let seconds = began.elapsed().as_secs().max(1);
        let fired = format!("present_over_time(ALERTS{{alertstate=\"firing\"}}[{seconds}s])");
        let fired = self.prometheus.query(&fired).into_iter();
        let fired: BTreeSet<_> = fired
            .map(|(labels, _)| text(&labels["alertname"])["EncryptionExt".len()..].to_owned())
            .collect();
        assert_eq!(fired, alerts.iter().map(|&alert| alert.to_owned()).collect());
    }
}

fn data_source(cluster: &Cluster, database: &str) -> String {
    let (folder, port) = (cluster.socket_directory().display(), cluster.port());
    format!("host={folder} port={port} user=monitoring dbname={database} sslmode=disable")
}

/// Sets settings for all sessions, from their next statement on.
fn set(session: &mut Client, settings: &[(&str, &str)]) {
    for (name, value) in settings {
        session.run(&format!("ALTER SYSTEM SET encryption_ext.{name} = '{value}'"));
    }
    session.run("SELECT pg_reload_conf()");
    for (name, value) in settings {
        let started = Instant::now();
        while session.text(&format!("SHOW encryption_ext.{name}")) != *value {
            assert!(started.elapsed() < Duration::from_secs(10), "{name} is not set");
            thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Makes a key, which takes a request to the provider, once that succeeds.
fn make_key_when_possible(session: &mut Client, name: &str) {
    let started = Instant::now();
    while session.simple_query(&format!("SELECT enc_create_key('{name}')")).is_err() {
        assert!(started.elapsed() < Duration::from_secs(30), "the provider isn't asked");
        thread::sleep(Duration::from_millis(200));
    }
}

/// A server with the library preloaded, keys in OpenBao, a row, and a role that monitors and one without rights.
fn setup_for_exercise(test: &str) -> Option<Setup> {
    if program("prometheus").is_none() {
        harness::skip(test, "there is no Prometheus");
        return None;
    }
    let mut setup = Setup::with_key(test, OpenBao::start_with_tls, WRITING)?;
    setup.cluster.configure("shared_preload_libraries", "encryption_ext");
    setup.cluster.configure("log_min_messages", "log");
    setup.cluster.configure("autovacuum", "off");
    setup.cluster.configure("wal_keep_size", "64MB");
    setup.cluster.restart();
    connect(&setup.cluster).run(
        "CREATE ROLE monitoring LOGIN IN ROLE pg_monitor;
         CREATE ROLE nobody LOGIN;
         GRANT SELECT ON t TO nobody",
    );
    Some(setup)
}

#[test]
fn an_exercise_with_prometheus() {
    let test = "an_exercise_with_prometheus";
    let Some(mut setup) = setup_for_exercise(test) else { return };
    let watch = Watch::start(&[&setup.cluster], &[]).unwrap();
    let mut session = setup.connect();
    let began = Instant::now();
    watch.expect("database_library_preloaded", 1.0);
    watch.expect("key_held_versions{key=\"k\"}", 1.0);
    watch.expect("values_encrypted_total", 0.0);

    // Load: each value is counted, once.
    session.run("INSERT INTO t (v) SELECT 's' || n FROM generate_series(1, 1000) n");
    watch.expect("values_encrypted_total", 1000.0);
    watch.expect("key_active_version_encryptions_total{key=\"k\"}", 1000.0);
    session.run("SELECT v::text FROM t");
    watch.expect("values_decrypted_total", 1001.0);
    assert_eq!(session.value::<i64>("SELECT count(*) FROM t WHERE v = 's5'"), 1);
    watch.expect("values_compared_total", 1001.0);
    watch.expect("decrypt_failures_total", 0.0);
    watch.expect("denials_total", 0.0);
    watch.expect("shared_cache_entries", 2.0);
    watch.expect("provider_reachable", 1.0);
    watch.expect("provider_breaker_state", 0.0);
    watch.expect_firing(&[]);

    // The provider is stopped: at first there are keys for hours, then for minutes.
    let unreachable = "provider_errors_total{class=\"unreachable\"}";
    let mut admin = setup.connect();
    let mut server = std::mem::replace(&mut setup.server, OpenBao::start().unwrap());
    watch.expect(unreachable, 0.0);
    let requests = || {
        let count = "SELECT requests FROM enc_stat_provider";
        connect(&setup.cluster).value::<i64>(count) as f64
    };
    let asked = requests();
    server.stop();
    for _ in 0..5 {
        admin.fails("SELECT enc_create_key('in_vain')", "KE062");
    }
    admin.fails("SELECT enc_create_key('in_vain')", "KE080");
    watch.expect(unreachable, 5.0);
    watch.expect("provider_request_duration_seconds_count", asked + 5.0);
    watch.expect("provider_reachable", 0.0);
    watch.expect("provider_breaker_state", 2.0);
    watch.expect_firing(&["BreakerOpen"]);
    assert_eq!(session.text(READ), "first");
    set(&mut admin, &[("cache_ttl", "40s"), ("cache_stale_grace", "1min")]);
    watch.expect_firing(&["BreakerOpen", "CacheEndsSoon"]);
    println!("stopped: {:?}", began.elapsed());

    // And started again.
    server.restart();
    make_key_when_possible(&mut admin, "made_later");
    watch.expect("provider_reachable", 1.0);
    watch.expect("provider_breaker_state", 0.0);
    set(&mut admin, &[("cache_ttl", "1h"), ("cache_stale_grace", "4h")]);
    watch.expect_firing(&[]);
    watch.expect_fired_since(began, &["BreakerOpen", "CacheEndsSoon"]);
    println!("started: {:?}", began.elapsed());
    let asked = requests();

    // The token is revoked: the login fails, and keys last.
    let logins = "provider_errors_total{class=\"login\"}";
    let token = fs::read_to_string(setup.file("token")).unwrap();
    watch.step(
        "token",
        &["LoginFails"],
        || {
            server.revoke(token.trim());
            drop(
                connect(&setup.cluster)
                    .simple_query("SELECT enc_create_key('in_vain')")
                    .unwrap_err(),
            );
            watch.expect(logins, 1.0);
            watch.expect("provider_request_duration_seconds_count", asked + 1.0);
            watch.expect("provider_reachable", 0.0);
        },
        || {
            setup.put_token(&server.token(&["keys"], "1h"));
            make_key_when_possible(&mut connect(&setup.cluster), "made_last");
            watch.expect("provider_reachable", 1.0);
            watch.expect(logins, 1.0);
        },
    );

    // A key is overdue; it is rotated, and all is encrypted again.
    watch.step(
        "rotation",
        &["RotationOverdue"],
        || {
            let mut admin = connect(&setup.cluster);
            admin.run(
                "SELECT enc_set_key_info('k', rotation_period => '1 day');
                 UPDATE encryption.key_version SET activated_at = activated_at - interval '2 days'
                  WHERE key_id = (SELECT key_id FROM encryption.key WHERE name = 'k')",
            );
            let due: f64 = admin.value(
                "SELECT extract(epoch FROM rotation_due)::float8 FROM enc_stat_key WHERE name = 'k'",
            );
            watch.expect("key_rotation_due_timestamp_seconds{key=\"k\"}", due);
        },
        || {
            let mut admin = connect(&setup.cluster);
            admin.run("SELECT enc_rotate_key('k')");
            watch.expect("key_active_version{key=\"k\"}", 2.0);
            watch.expect("key_readable_versions{key=\"k\"}", 2.0);
            admin.run("CALL enc_rotate_column('t', 'v')");
            watch.expect("jobs_completed{kind=\"rotate\"}", 1.0);
            watch.expect("key_active_version_encryptions_total{key=\"k\"}", 1001.0);
            watch.expect("values_encrypted_total", 2001.0);
        },
    );

    // A value is altered: reading it fails, and a rotation leaves it out.
    let damage = "UPDATE t SET v = set_byte(v::bytea, 40, 255 - get_byte(v::bytea, 40))::encrypted_text WHERE id = 7";
    watch.step(
        "damage",
        &["DecryptFailures"],
        || {
            session.run(damage);
            session.fails("SELECT v FROM t WHERE id = 7", "KE045");
            watch.expect("decrypt_failures_total", 1.0);
        },
        || (),
    );
    watch.step(
        "job",
        &["DecryptFailures", "JobFailed"],
        || {
            let mut admin = connect(&setup.cluster);
            admin.run("SELECT enc_rotate_key('k')");
            admin.fails("CALL enc_rotate_column('t', 'v')", "KE045");
            watch.expect("jobs_failed{kind=\"rotate\"}", 1.0);
        },
        || {
            let mut admin = connect(&setup.cluster);
            admin.run("CALL enc_rotate_column('t', 'v', skip_damaged => true)");
            watch.expect("jobs_failed{kind=\"rotate\"}", 0.0);
            watch.expect("jobs_incomplete{kind=\"rotate\"}", 1.0);
            watch.expect_firing(&["DecryptFailures", "JobFailed"]);
            admin.run("DELETE FROM t WHERE id = 7");
            admin.run("CALL enc_rotate_column('t', 'v')");
            watch.expect("jobs_incomplete{kind=\"rotate\"}", 0.0);
            watch.expect("jobs_completed{kind=\"rotate\"}", 2.0);
        },
    );

    // A role is denied, thirty times.
    watch.step(
        "denials",
        &["DenialsJump"],
        || {
            let mut nobody = setup.cluster.connect("nobody", DATABASE);
            for _ in 0..30 {
                nobody.fails(READ, "KE020");
            }
            watch.expect("denials_total", 30.0);
        },
        || (),
    );

    // Somebody puts another key in place of one.
    let replace = |server: &OpenBao, key: &str| {
        server.expect(None, "DELETE", "secret/metadata/keys/other", Value::Null);
        server.kv_put("keys/other", key);
    };
    server.kv_put("keys/other", ONE);
    connect(&setup.cluster).run(
        "SELECT enc_create_key('other'); CREATE TABLE o (v encrypted_text('other')); INSERT INTO o VALUES ('x')",
    );
    let read_other = || {
        let mut session = connect(&setup.cluster);
        session.run("SELECT enc_flush_cache()");
        session.simple_query("SELECT v FROM o").map(drop)
    };
    watch.expect("key_check_value_ok{key=\"other\"}", 1.0);
    watch.step(
        "another key",
        &["WrongKey"],
        || {
            replace(&server, TWO);
            read_other().unwrap_err();
            watch.expect("key_check_value_ok{key=\"other\"}", 0.0);
        },
        || {
            replace(&server, ONE);
            let started = Instant::now();
            // It is remembered for some seconds that there is none.
            while read_other().is_err() {
                assert!(started.elapsed() < Duration::from_secs(20), "the key isn't asked for");
                thread::sleep(Duration::from_millis(200));
            }
            watch.expect("key_check_value_ok{key=\"other\"}", 1.0);
        },
    );
    println!("the exercise took {:?}", began.elapsed());
    setup.server = server;
}

#[test]
fn a_standby_without_keys_is_seen() {
    let test = "a_standby_without_keys_is_seen";
    let Some(setup) = setup_for_exercise(test) else { return };
    let mut standby = Cluster::builder(MAJOR).port(5433).create();
    replace_by_base_backup(&standby, &setup.cluster, &["--write-recovery-conf"]);
    let token = standby.directory().join("token");
    standby.configure("encryption_ext.vault_token_file", token.to_str().unwrap());
    fs::write(&token, setup.server.token(&["keys"], "1h")).unwrap();
    standby.start();
    let watch = Watch::start(&[&setup.cluster, &standby], &[]).unwrap();
    let of_standby = format!("{{key=\"k\",instance=\"{}\"}}", watch.exporters[1].target());
    watch.expect(&format!("key_held_versions{of_standby}"), 1.0);
    watch.expect_firing(&[]);

    // Its login is taken away, so that it can't fetch the next version.
    setup.server.revoke(fs::read_to_string(&token).unwrap().trim());
    connect(&setup.cluster).run("SELECT enc_rotate_key('k')");
    watch.expect(&format!("key_readable_versions{of_standby}"), 2.0);
    drop(connect(&standby).simple_query("SELECT enc_flush_cache(); SELECT v FROM t").unwrap_err());
    watch.expect(&format!("key_held_versions{of_standby}"), 0.0);
    watch.prometheus.wait_until("the alert fires", &true, |prometheus| {
        let alert = "ALERTS{alertname=\"EncryptionExtStandbyWithoutKeys\",alertstate=\"firing\"}";
        let firing = prometheus.query(alert);
        let instance = json!(watch.exporters[1].target());
        assert!(firing.iter().all(|(labels, _)| labels["instance"] == instance), "{firing:?}");
        !firing.is_empty()
    });
    let firing = watch.prometheus.firing();
    assert!(firing.contains(&"EncryptionExtLoginFails".to_owned()), "{firing:?}");

    fs::write(&token, setup.server.token(&["keys"], "1h")).unwrap();
    let started = Instant::now();
    // (What a literal is made of: so that the key of the database is fetched, too.)
    let both = format!("{READ}; SELECT 'x'::encrypted_text");
    while connect(&standby).simple_query(&both).is_err() {
        assert!(started.elapsed() < Duration::from_secs(30), "the standby has no key");
        thread::sleep(Duration::from_millis(200));
    }
    watch.expect(&format!("key_held_versions{of_standby}"), 2.0);
    watch.expect_firing(&[]);
}

/// What promtool says of the metrics in an exporter's answer: nothing.
fn lint(metrics: &str) {
    let mut promtool = Command::new(program("promtool").unwrap())
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    promtool.stdin.take().unwrap().write_all(metrics.as_bytes()).unwrap();
    let output = promtool.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    let of_ours: Vec<_> = said.lines().filter(|line| line.starts_with("encryption_ext")).collect();
    assert_eq!(of_ours, [""; 0], "{said}");
}

/// What postgres_exporter shows when not every database has the extension.
#[test]
fn a_database_without_the_extension_breaks_no_scrape() {
    let test = "a_database_without_the_extension_breaks_no_scrape";
    let Some(described) = builder(test) else { return };
    if program("prometheus-postgres-exporter").is_none() {
        return harness::skip(test, "there is no postgres_exporter");
    }
    let cluster = described.setting("shared_preload_libraries", "encryption_ext").start();
    let mut admin = connect(&cluster);
    admin.run("CREATE ROLE monitoring LOGIN IN ROLE pg_monitor");
    admin.run("CREATE DATABASE one");
    admin.run("CREATE DATABASE two");
    for database in ["one", "two"] {
        let mut session = cluster.connect(SUPERUSER, database);
        session.run("CREATE EXTENSION encryption_ext; SELECT enc_create_key('k')");
        session.run("CREATE TABLE t (v encrypted_text('k')); INSERT INTO t VALUES ('x')");
    }
    let folder = generate(&[]);
    let queries = folder.path().join("postgres_exporter/queries.yaml");
    let start = |database: &str| {
        let options = ["--auto-discover-databases"];
        PostgresExporter::start(&data_source(&cluster, database), &queries, &options).unwrap()
    };
    let lines = |metrics: &str, metric: &str| -> Vec<String> {
        let prefix = format!("{metric}{{");
        let lines = metrics.lines().filter(|line| line.starts_with(&prefix));
        lines.map(str::to_owned).collect()
    };

    // From a database that has it: the server's metrics once, those of each database that has it.
    let metrics = start("one").metrics();
    lint(&metrics);
    let encrypted = lines(&metrics, "encryption_ext_values_encrypted_total");
    let of = |database: &str, lines: &[String]| {
        let label = format!("datname=\"{database}\"");
        lines.iter().filter(|line| line.contains(&label)).count()
    };
    assert_eq!((of("one", &encrypted), of("two", &encrypted)), (1, 1), "{encrypted:#?}");
    let keys = lines(&metrics, "encryption_ext_key_active_version");
    assert_eq!((of("one", &keys), of("two", &keys), keys.len()), (2, 2, 4), "{keys:#?}");
    assert!(metrics.contains("\npg_exporter_last_scrape_error 1"), "the other one is told of");
    assert!(metrics.contains("\npg_up{") || metrics.contains("\npg_up 1"));

    // From one that has not: those of the server are missing, the others are there.
    let metrics = start("postgres").metrics();
    assert_eq!(lines(&metrics, "encryption_ext_values_encrypted_total").len(), 0);
    let keys = lines(&metrics, "encryption_ext_key_active_version");
    assert_eq!((of("one", &keys), of("two", &keys), keys.len()), (2, 2, 4), "{keys:#?}");
}

// Helpers

#[track_caller]
fn read(document: &str) -> String {
    fs::read_to_string(root().join(document)).unwrap()
}

fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}
