//! The dashboard in `monitoring/grafana`: it is as Grafana's types have it, its queries and the list of metrics
//! agree, and what each query shows of a server under load is what the load did.
//!
//! It was never rendered here: there is no Grafana in the tests.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::iter::Sum;
use std::ops::{Add, Mul, Sub};
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use cluster_tests::key_server::{READ, WRITING};
use cluster_tests::{DATABASE, Session};
use harness::cluster::{Cluster, SUPERUSER};
use harness::prometheus::Prometheus;
use harness::python::interpreter;
use serde_json::{Value, json};

use super::{
    Watch, generate, keys, list, listed, listed_as_series, metrics_in, root, set,
    setup_for_exercise, text,
};

const DASHBOARD: &str = "monitoring/grafana/encryption_ext.json";

/// Metrics that the dashboard doesn't show, and why.
const LEFT_OUT: [(&str, &str); 4] = [
    ("encryption_ext_stats_reset_timestamp_seconds", "rates and increases know of resets"),
    ("encryption_ext_key_cached_until_timestamp_seconds", "until when it is usable counts"),
    ("encryption_ext_key_provider_versions", "the spare ones are what it is for"),
    ("encryption_ext_key_provider_max_versions", "the spare ones are what it is for"),
];

// The file

fn read(path: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

fn dashboard() -> Value {
    read(&root().join(DASHBOARD))
}

/// All panels but the titles of rows.
fn panels(dashboard: &Value) -> Vec<&Value> {
    let panels = list(&dashboard["panels"]).iter().filter(|panel| panel["type"] != "row");
    let panels: Vec<_> = panels.collect();
    assert!(panels.len() > 25, "{}", panels.len());
    panels
}

/// A query of a panel or an annotation.
struct Query {
    /// The title of the panel, or the name of the annotation.
    of: String,
    /// Its reference among those of the panel.
    name: String,
    expression: String,
    /// How its series are called.
    legend: String,
}

fn queries(dashboard: &Value) -> Vec<Query> {
    let mut queries = Vec::new();
    for panel in panels(dashboard) {
        for target in list(&panel["targets"]) {
            let legend = match target["legendFormat"].as_str() {
                Some(legend) => legend.to_owned(),
                None => label_columns(panel).map(|label| format!("{{{{{label}}}}} ")).collect(),
            };
            queries.push(Query {
                of: text(&panel["title"]).to_owned(),
                name: text(&target["refId"]).to_owned(),
                expression: text(&target["expr"]).to_owned(),
                legend: legend.trim().to_owned(),
            });
        }
    }
    let annotations = list(&dashboard["annotations"]["list"]).iter();
    queries.extend(annotations.filter(|annotation| annotation["builtIn"] != 1).map(|annotation| {
        let [title, of] = ["titleFormat", "textFormat"].map(|field| text(&annotation[field]));
        let tags = text(&annotation["tagKeys"]).split(',').filter(|tag| !tag.is_empty());
        let tags: String = tags.map(|tag| format!(" {{{{{tag}}}}}")).collect();
        Query {
            of: text(&annotation["name"]).to_owned(),
            name: "annotation".to_owned(),
            expression: text(&annotation["expr"]).to_owned(),
            legend: format!("{title}: {of}{tags}"),
        }
    }));
    queries
}

/// The columns of a table that are labels, in their order.
fn label_columns(panel: &Value) -> impl Iterator<Item = &str> {
    let organize = &panel["transformations"][1]["options"];
    let mut columns: Vec<_> = organize["indexByName"].as_object().unwrap().iter().collect();
    columns.sort_by_key(|(_, index)| index.as_u64());
    columns.into_iter().map(|(name, _)| name.as_str()).filter(|name| !name.starts_with("Value #"))
}

#[test]
fn the_dashboard_is_of_grafanas_types() {
    let Some(python) = interpreter("grafana") else {
        return harness::skip(
            "the_dashboard_is_of_grafanas_types",
            "build/python/grafana is missing",
        );
    };
    let folder = generate(&["--runbooks", "https://wiki.example.com/"]);
    let copies = ["grafana/encryption_ext.json", "cloudnative-pg/dashboard.json"];
    let copies = copies.map(|name| folder.path().join(name));
    for file in copies.iter().chain([&root().join(DASHBOARD)]) {
        let mut check = Command::new(&python);
        let output = check.arg(root().join("tests/grafana/schema.py")).arg(file).output().unwrap();
        let faults =
            String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{file:?}: {faults}");
    }
}

#[test]
fn panels_are_described_and_have_their_place() {
    let dashboard = dashboard();
    let mut taken = BTreeSet::new();
    let mut ids = BTreeSet::new();
    for panel in list(&dashboard["panels"]) {
        let title = text(&panel["title"]);
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "{title} has the id of another");
        let [x, y, w, h] = ["x", "y", "w", "h"].map(|key| panel["gridPos"][key].as_u64().unwrap());
        assert!(w > 0 && h > 0 && x + w <= 24, "{title} is not on the grid");
        for place in (x..x + w).flat_map(|x| (y..y + h).map(move |y| (x, y))) {
            assert!(taken.insert(place), "{title} overlaps another at {place:?}");
        }
    }
    // Without gaps.
    let height = taken.iter().map(|(_, y)| y + 1).max().unwrap();
    assert_eq!(taken.len() as u64, 24 * height);

    let mut titles = BTreeSet::new();
    for panel in panels(&dashboard) {
        let title = text(&panel["title"]);
        assert!(titles.insert(title), "{title}: two panels have this title");
        assert!(text(&panel["description"]).len() > 80, "{title} is not described");
        assert!(!text(&panel["fieldConfig"]["defaults"]["unit"]).is_empty(), "{title}: no unit");
        let mut names = BTreeSet::new();
        for target in list(&panel["targets"]) {
            assert!(names.insert(text(&target["refId"])), "{title}: two queries of one name");
            assert_eq!(target["datasource"]["uid"], "${datasource}", "{title}");
            let instant = target["instant"] == true;
            let moment = ["stat", "table", "bargauge"].contains(&text(&panel["type"]));
            assert_eq!(instant, moment, "{title}");
        }
        assert_eq!(panel["datasource"]["uid"], "${datasource}", "{title}");

        // Columns and overrides are those of what there is.
        let mut shown: BTreeSet<_> =
            list(&panel["targets"]).iter().filter_map(|t| t["legendFormat"].as_str()).collect();
        if panel["type"] == "table" {
            let organize = &panel["transformations"][1]["options"];
            let values = names.iter().map(|name| format!("Value #{name}"));
            let columns: BTreeSet<_> =
                label_columns(panel).map(str::to_owned).chain(values).collect();
            let columns: BTreeSet<_> = columns.iter().map(String::as_str).collect();
            assert_eq!(keys(&organize["renameByName"]), columns, "{title}");
            assert_eq!(keys(&organize["indexByName"]), columns, "{title}");
            shown = organize["renameByName"].as_object().unwrap().values().map(text).collect();
            assert!(shown.contains(text(&panel["options"]["sortBy"][0]["displayName"])), "{title}");
        }
        for setting in list(&panel["fieldConfig"]["overrides"]) {
            let of = text(&setting["matcher"]["options"]);
            assert!(setting["matcher"]["id"] == "byName" && shown.contains(of), "{title}: {of}");
        }
    }
}

#[test]
fn the_dashboard_and_the_list_of_metrics_agree() {
    let dashboard = dashboard();
    let series = listed_as_series();
    let mut shown = BTreeSet::new();
    for query in queries(&dashboard) {
        let (of, expression) = (&query.of, &query.expression);
        let metrics = metrics_in(expression);
        assert!(!metrics.is_empty() || expression.contains("ALERTS{"), "{of}: {expression}");
        for metric in metrics {
            let Some((_, labels)) = series.get(&metric) else {
                panic!("{of}: there is no metric {metric}")
            };
            // Each selector has the variables.
            let selectors =
                expression.matches(&format!("{metric}{{instance=~\"$instance\"")).count();
            assert_eq!(selectors, expression.matches(&metric).count(), "{of}: {expression}");
            if labels.contains(&"datname".to_owned()) {
                let both = format!("{metric}{{instance=~\"$instance\", datname=~\"$datname\"}}");
                assert_eq!(expression.matches(&both).count(), selectors, "{of}: {expression}");
            }
            shown.insert(metric);
        }
    }
    let is_shown = |metric: &String| {
        ["", "_bucket", "_sum", "_count"]
            .iter()
            .any(|part| shown.contains(&format!("{metric}{part}")))
    };
    let left_out: BTreeSet<_> = listed().into_keys().filter(|metric| !is_shown(metric)).collect();
    assert_eq!(left_out, LEFT_OUT.iter().map(|(metric, _)| (*metric).to_owned()).collect());
}

#[test]
fn the_copies_of_the_dashboard_differ_in_names_and_links() {
    let original = dashboard();
    let links = |dashboard: &Value| -> Vec<_> {
        list(&dashboard["links"]).iter().map(|link| text(&link["url"]).to_owned()).collect()
    };
    for url in links(&original) {
        assert!(root().join(&url).exists(), "{url} leads nowhere");
    }
    // Without a place for the documents, there are no links.
    let folder = generate(&[]);
    let mut copy = read(&folder.path().join("grafana/encryption_ext.json"));
    assert_eq!(links(&copy), [""; 0]);
    copy["links"] = original["links"].clone();
    assert_eq!(copy, original);
    let folder = generate(&["--runbooks", "https://wiki.example.com/"]);
    let copy = read(&folder.path().join("grafana/encryption_ext.json"));
    let moved = links(&original).into_iter().map(|url| format!("https://wiki.example.com/{url}"));
    assert_eq!(links(&copy), moved.collect::<Vec<_>>());

    let prefixed = read(&folder.path().join("cloudnative-pg/dashboard.json"));
    assert_ne!(prefixed["uid"], copy["uid"]);
    assert_ne!(prefixed["title"], copy["title"]);
    for (query, other) in queries(&copy).iter().zip(queries(&prefixed)) {
        let names = metrics_in(&query.expression).into_iter();
        let names: BTreeSet<_> = names.map(|name| format!("cnpg_{name}")).collect();
        assert_eq!(metrics_in(&other.expression), names);
        assert_eq!(other.expression.replace("cnpg_", ""), query.expression);
    }
    let variables = |dashboard: &Value| dashboard["templating"].to_string();
    assert_ne!(variables(&prefixed), variables(&copy));
    assert_eq!(variables(&prefixed).replace("cnpg_", ""), variables(&copy));
}

// Numbers that are known up to what may have happened meanwhile, and to what Prometheus estimates

/// From the lowest to the highest that it can be.
#[derive(Clone, Copy, Debug)]
struct Range(f64, f64);

const UNKNOWN: Range = Range(f64::NAN, f64::NAN);

fn exactly(value: f64) -> Range {
    Range(value, value)
}

impl Range {
    fn contains(self, value: f64) -> bool {
        let slack = 1e-6 * value.abs().max(1e-3);
        (self.0.is_nan() && value.is_nan()) || (self.0 - slack..=self.1 + slack).contains(&value)
    }

    /// The quotient of two that Prometheus estimates each for itself.
    fn divided_by(self, divisor: Self) -> Self {
        Self(self.0 / divisor.1, self.1 / divisor.0)
    }
}

impl Add for Range {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self(self.0 + other.0, self.1 + other.1)
    }
}

impl Sum for Range {
    fn sum<I: Iterator<Item = Self>>(ranges: I) -> Self {
        ranges.fold(exactly(0.0), Add::add)
    }
}

impl Sub for Range {
    type Output = Self;
    fn sub(self, other: Self) -> Self {
        Self(self.0 - other.1, self.1 - other.0)
    }
}

impl Mul<f64> for Range {
    type Output = Self;
    fn mul(self, factor: f64) -> Self {
        Self(self.0 * factor, self.1 * factor)
    }
}

/// What `rate` and `increase` show over a window.
///
/// They take the first and the last sample in it, and stretch the difference to the window's whole length, as if
/// the counter had grown outside of the samples, too (`extrapolatedRate` in Prometheus' promql/functions.go); but not
/// to below zero, and not by more than a bit over the pause between samples at either end. So they show what was
/// counted, or up to `stretched` times that: with samples every half a second, and 20 seconds of load, 1.05 times.
struct Window {
    seconds: f64,
    stretched: f64,
}

impl Window {
    /// That which ends at a time. Its samples are those of one metric, since all come from the same scrapes.
    fn new(prometheus: &Prometheus, seconds: f64, end: f64) -> Self {
        let samples = prometheus.samples(
            &format!("encryption_ext_values_encrypted_total{{datname=\"{DATABASE}\"}}[{seconds}s]"),
            end,
        );
        let (first, last) = (samples[0][0].0, samples[0].last().unwrap().0);
        let stretched = seconds / (last - first);
        println!("{} samples in {seconds} s, stretched {stretched:.3} times", samples[0].len());
        assert!(stretched < 1.15, "samples are missing: {samples:?}");
        Self { seconds, stretched }
    }

    fn increase(&self, counted: Range) -> Range {
        Range(counted.0, counted.1 * self.stretched)
    }

    fn rate(&self, counted: Range) -> Range {
        self.increase(counted) * (1.0 / self.seconds)
    }

    /// A quantile of a histogram, of which it is known how many more there are at or below each bound: between the
    /// bounds of the bucket in which it is. Each bucket may be stretched more or less than the others.
    fn quantile(&self, quantile: f64, buckets: &[(f64, Range)]) -> Range {
        let rank = buckets.last().unwrap().1 * quantile;
        if rank.1 == 0.0 {
            return UNKNOWN;
        }
        let of = |is_reached: &dyn Fn(Range) -> bool| {
            buckets.iter().position(|(_, count)| is_reached(*count)).unwrap_or(buckets.len() - 1)
        };
        let lowest = of(&|count| count.1 * self.stretched >= rank.0);
        let highest = of(&|count| count.0 >= rank.1 * self.stretched);
        // Of what is beyond the last bound but infinity, it is this bound.
        let finite = buckets[buckets.len() - 2].0;
        let lower = if lowest == 0 { 0.0 } else { buckets[lowest - 1].0 };
        Range(lower, buckets[highest].0.min(finite))
    }
}

// What is known of the server, without Prometheus

/// The views of a database as JSON, times in seconds since 1970.
const VIEWS: &str = "
    SELECT jsonb_build_object(
        'stat', (SELECT jsonb_object_agg(s.datname, to_jsonb(s)) FROM enc_stat s),
        'decrypt_time', (SELECT jsonb_object_agg(t.datname, t.buckets)
                           FROM (SELECT datname, jsonb_agg(jsonb_build_array(le::text, count) ORDER BY le) AS buckets
                                   FROM enc_stat_decrypt_time GROUP BY datname) t),
        'cache', (SELECT to_jsonb(c) FROM enc_stat_shared_cache c),
        'provider', (SELECT to_jsonb(p) || jsonb_build_object(
                                'reachable', reachable::integer,
                                'breaker', array_position(ARRAY['closed', 'half-open', 'open'], breaker) - 1,
                                'last_success', extract(epoch FROM last_success)::float8,
                                'last_failure', extract(epoch FROM last_failure)::float8,
                                'token_expires', extract(epoch FROM token_expires)::float8,
                                'certificate_expires', extract(epoch FROM certificate_expires)::float8,
                                'client_certificate_expires', extract(epoch FROM client_certificate_expires)::float8)
                       FROM enc_stat_provider p),
        'request_time', (SELECT jsonb_agg(jsonb_build_array(le::text, count) ORDER BY le) FROM enc_stat_provider_request_time),
        'keys', (SELECT jsonb_object_agg(name, to_jsonb(k) || jsonb_build_object(
                            'active_since', extract(epoch FROM active_since)::float8,
                            'rotation_due', extract(epoch FROM rotation_due)::float8,
                            'usable_until', extract(epoch FROM usable_until)::float8,
                            'check_value_ok', check_value_ok::integer,
                            'readable', active_versions + deprecated_versions, 'held', s.held, 'spare', s.spare))
                   FROM enc_stat_key k
                   LEFT JOIN (SELECT key_name, count(*) FILTER (WHERE usable_until > now()) AS held,
                                     min(provider_max_versions - 1 - newer_versions) AS spare
                                FROM encryption.key_states() GROUP BY key_name) s ON s.key_name = k.name),
        'health', (SELECT jsonb_object_agg(h.check_name, h.counts)
                     FROM (SELECT check_name, jsonb_build_object('critical', count(*) FILTER (WHERE status = 'critical'),
                                                                 'warning', count(*) FILTER (WHERE status = 'warning')) AS counts
                             FROM enc_health() GROUP BY check_name) h))::text";

/// A second database with the extension.
const OTHER: &str = "other";
const DATABASES: [&str; 2] = [OTHER, DATABASE];

fn views(cluster: &Cluster) -> Value {
    let of = |database| {
        let views = cluster.connect(SUPERUSER, database).text(VIEWS);
        serde_json::from_str::<Value>(&views).unwrap()
    };
    json!({ OTHER: of(OTHER), DATABASE: of(DATABASE) })
}

/// The views before a load, and twice at its end: before the last scrape and after it, since workers go on meanwhile.
struct Seen {
    before: Value,
    end: [Value; 2],
}

impl Seen {
    /// A value at the end. (Pointers are those of JSON: `/postgres/stat/postgres/encrypted`.)
    fn value(&self, pointer: &str) -> Range {
        let [one, other] = self.end.each_ref().map(|views| number(views, pointer));
        Range(one.min(other), one.max(other))
    }

    /// What was counted.
    fn counted(&self, pointer: &str) -> Range {
        self.value(pointer) - exactly(number(&self.before, pointer))
    }

    /// The same of a count of `enc_stat`, by a database's name.
    fn stat(&self, database: &str, name: &str) -> Range {
        self.counted(&format!("/{DATABASE}/stat/{database}/{name}"))
    }

    fn cache(&self, name: &str) -> Range {
        self.counted(&format!("/{DATABASE}/cache/{name}"))
    }

    /// What was counted in a histogram, by bound.
    fn buckets(&self, pointer: &str) -> Vec<(f64, Range)> {
        let bounds = list(self.before.pointer(pointer).unwrap()).iter().enumerate();
        bounds
            .map(|(n, bucket)| {
                let bound = text(&bucket[0]).replace("Infinity", "inf").parse().unwrap();
                (bound, self.counted(&format!("{pointer}/{n}/1")))
            })
            .collect()
    }

    fn keys(&self) -> Vec<(&'static str, String)> {
        let of = |database: &'static str| {
            let keys = keys(&self.end[1][database]["keys"]).into_iter();
            keys.map(move |key| (database, key.to_owned())).collect::<Vec<_>>()
        };
        DATABASES.into_iter().flat_map(of).collect()
    }
}

/// A number, or NaN for null, as exporters show it.
fn number(views: &Value, pointer: &str) -> f64 {
    let value = views.pointer(pointer).unwrap_or_else(|| panic!("there is no {pointer}"));
    value.as_f64().unwrap_or(f64::NAN)
}

// What the dashboard shows

/// The variables' values, as Grafana puts them into queries.
struct Variables<'a> {
    instance: &'a str,
    datname: &'a str,
    /// Of the time range shown, and of `$__rate_interval`, which Grafana makes of that and the panel's width.
    seconds: f64,
}

/// What is chosen where "All" is: the variables' `allValue`.
const ALL: &str = ".*";

impl Variables<'_> {
    fn put_into(&self, expression: &str) -> String {
        let window = format!("{}ms", (self.seconds * 1000.0).round());
        let expression = expression
            .replace("$__rate_interval", &window)
            .replace("$__range", &window)
            .replace("$instance", self.instance)
            .replace("$datname", self.datname);
        assert!(!expression.contains('$'), "{expression}");
        expression
    }
}

/// The value of each series by its name, as a panel has them.
type Series<T> = BTreeMap<String, T>;

fn shown(prometheus: &Prometheus, query: &Query, variables: &Variables, time: f64) -> Series<f64> {
    let mut series = Series::new();
    for (labels, value) in prometheus.query_at(&variables.put_into(&query.expression), time) {
        let mut name = query.legend.clone();
        for (label, of_series) in labels.as_object().unwrap() {
            name = name.replace(&format!("{{{{{label}}}}}"), text(of_series));
        }
        if query.name == "annotation" {
            // Grafana shows those tags that there are.
            name = ["datname", "provider", "key"]
                .iter()
                .fold(name, |name, tag| name.replace(&format!(" {{{{{tag}}}}}"), ""));
        }
        let instance = labels["instance"].as_str().unwrap_or("no server");
        let name = name.replace(instance, "server").trim().to_owned();
        assert!(!name.contains("{{"), "{}: {name} of {labels}", query.of);
        assert!(
            series.insert(name.clone(), value).is_none(),
            "{}: {name} is there twice",
            query.of
        );
    }
    series
}

/// What is expected of queries, by panel and name.
#[derive(Default)]
struct Expected(BTreeMap<(String, String), Series<Range>>);

impl Expected {
    fn add<S: Into<String>>(
        &mut self,
        panel: &str,
        query: &str,
        series: impl IntoIterator<Item = (S, Range)>,
    ) {
        let series = series.into_iter().map(|(name, range)| (name.into(), range)).collect();
        let replaced = self.0.insert((panel.to_owned(), query.to_owned()), series);
        assert!(replaced.is_none(), "{panel}, {query}: expected twice");
    }

    /// Compares, and takes away what was compared.
    fn compare(&mut self, query: &Query, found: &Series<f64>) -> bool {
        let Some(expected) = self.0.remove(&(query.of.clone(), query.name.clone())) else {
            return false;
        };
        let place = format!("{}, {}", query.of, query.name);
        println!("{place}: {found:?}");
        assert!(found.keys().eq(expected.keys()), "{place}: {found:?} instead of {expected:?}");
        for (name, range) in expected {
            assert!(
                range.contains(found[&name]),
                "{place}: {name}: {} is not {range:?}",
                found[&name]
            );
        }
        true
    }
}

fn now() -> f64 {
    let milliseconds = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis();
    milliseconds as f64 / 1000.0
}

/// Runs all queries: those that are expected show that, and all follow the variables. Gives back the panels and names of
/// queries that nothing is expected of.
fn run_queries(watch: &Watch, mut expected: Expected, seconds: f64, time: f64) -> BTreeSet<String> {
    let prometheus = &watch.prometheus;
    let all = Variables { instance: ALL, datname: ALL, seconds };
    let instance = watch.exporters[0].target().replace('.', "\\\\.");
    let datname = format!("({OTHER}|{DATABASE})");
    let mut left = BTreeSet::new();
    for query in queries(&dashboard()) {
        let of_all = shown(prometheus, &query, &all, time);
        if !expected.compare(&query, &of_all) {
            left.insert(format!("{}, {}", query.of, query.name));
        }

        // As Grafana writes several values that are chosen: escaped, and in parentheses.
        let each = Variables { instance: &instance, datname: &datname, seconds };
        let of_each = shown(prometheus, &query, &each, time);
        assert_eq!(format!("{of_each:?}"), format!("{of_all:?}"), "{}: {}", query.of, query.name);
        for variables in
            [Variables { instance: "nobody", ..each }, Variables { datname: "nobody", ..each }]
        {
            if variables.datname == "nobody" && !query.expression.contains("$datname") {
                continue;
            }
            let mut of_nobody = shown(prometheus, &query, &variables, time);
            of_nobody.retain(|_, value| *value != 0.0);
            assert!(of_nobody.is_empty(), "{}: {of_nobody:?} of nobody", query.of);
        }
    }
    assert!(expected.0.is_empty(), "there are no such queries: {:?}", expected.0.keys());
    left
}

#[test]
fn what_the_dashboard_shows_is_what_the_load_did() {
    let test = "what_the_dashboard_shows_is_what_the_load_did";
    let Some(mut setup) = setup_for_exercise(test) else { return };
    let mut session = setup.connect();
    // A login that ends, and may see how many versions are kept.
    let config = r#"path "secret/config" { capabilities = ["read"] }"#;
    setup.server.policy("keys", &format!("{WRITING}\n{config}"));
    let (role_id, secret_id) = setup.server.approle("database", &["keys"], "1h");
    setup.is_secret(&secret_id);
    let [role_id, secret_id] = [("role-id", role_id), ("secret-id", secret_id)]
        .map(|(name, id)| setup.write(name, &id).to_str().unwrap().to_owned());
    set(
        &mut session,
        &[
            ("vault_role_id_file", &role_id),
            ("vault_secret_id_file", &secret_id),
            ("vault_auth", "approle"),
        ],
    );
    session.run(&format!("CREATE DATABASE {OTHER}"));
    let mut other = setup.cluster.connect(SUPERUSER, OTHER);
    other.run(
        "CREATE EXTENSION encryption_ext; SELECT enc_create_key('o');
         CREATE TABLE o (v encrypted_text('o')); INSERT INTO o VALUES ('x')",
    );
    session.run(
        "SELECT enc_set_key_info('k', rotation_period => '1 year'), enc_schedule_rotation('k');
         INSERT INTO t (v) SELECT 's' || n FROM generate_series(2, 1000) n",
    );
    let watch = Watch::start(&[&setup.cluster], &["--auto-discover-databases"]).unwrap();
    let server = watch.exporters[0].target();
    let other_encrypted = format!("values_encrypted_total{{datname=\"{OTHER}\"}}");
    watch.expect(&other_encrypted, 1.0);
    let counted = format!("count_over_time(encryption_ext_{other_encrypted}[1m]) >= bool 4");
    watch.prometheus.wait_until("there are samples", &Some(1.0), |prometheus| {
        prometheus.query(&counted).first().map(|(_, value)| *value)
    });

    // The load.
    let began = Instant::now();
    let before = views(&setup.cluster);
    session.run("INSERT INTO t (v) SELECT 'n' || n FROM generate_series(1, 1000) n; ANALYZE t");
    session.run("SELECT count(v::text) FROM t, generate_series(1, 20)");
    assert_eq!(session.value::<i64>("SELECT count(*) FROM t WHERE v = 's5'"), 1);
    other.run("INSERT INTO o SELECT 'x' || n FROM generate_series(1, 500) n");
    let mut nobody = setup.cluster.connect("nobody", DATABASE);
    for _ in 0..5 {
        nobody.fails(READ, "KE020");
    }
    watch.expect("key_active_version_encryptions_total{key=\"k\"}", 1999.0);

    // A rotation, which is looked at while it runs.
    session.run("SELECT enc_rotate_key('k')");
    let mut rotating = setup.connect();
    let rotation = thread::spawn(move || {
        rotating.run("CALL enc_rotate_column('t', 'v', batch_size => 20, max_rate => 400)");
    });
    let mut rows = || {
        session.value::<i64>("SELECT coalesce(max(rows_done), 0) FROM enc_stat_progress_rotate")
            as f64
    };
    while rows() < 100.0 {
        thread::sleep(Duration::from_millis(20));
    }
    let first = (now(), rows());
    thread::sleep(Duration::from_millis(2500));
    // What was done when the last scrape began, at the latest.
    let at_least = rows();
    thread::sleep(Duration::from_millis(1500));
    let last = (now(), rows());
    let planned: i64 = session.value("SELECT rows_total FROM enc_stat_progress_rotate");
    let running = while_it_runs(first, last, at_least, planned as f64);
    let of_jobs: BTreeSet<_> =
        running.0.keys().map(|(panel, query)| format!("{panel}, {query}")).collect();
    let left = run_queries(&watch, running, last.0 - first.0, last.0);
    rotation.join().unwrap();
    watch.expect(&format!("jobs_completed{{kind=\"rotate\",datname=\"{DATABASE}\"}}"), 1.0);

    // Keys whose time is soon over, and a provider that has gone.
    set(&mut session, &[("cache_ttl", "2s")]);
    session.run("SELECT enc_flush_cache()");
    assert_eq!(session.text(READ), "first");
    session.run("SELECT enc_check_key('k')");
    setup.server.stop();
    // Workers that fetch keys ahead fail as well.
    let code = |error: &postgres::Error| error.code().map(|code| code.code().to_owned());
    let mut make_key = || session.simple_query("SELECT enc_create_key('in_vain')").unwrap_err();
    while code(&make_key()).as_deref() != Some("KE080") {}
    thread::sleep(Duration::from_secs(2));
    session.run("SELECT count(v::text) FROM t");
    watch.expect_firing(&["BreakerOpen"]);

    // A value that is altered.
    session.run("UPDATE t SET v = set_byte(v::bytea, 40, 255 - get_byte(v::bytea, 40))::encrypted_text WHERE id = 7");
    session.fails("SELECT v FROM t WHERE id = 7", "KE045");
    watch.expect_firing(&["BreakerOpen", "DecryptFailures"]);

    // The end: between what the views have, there are two scrapes.
    let early = views(&setup.cluster);
    thread::sleep(Duration::from_millis(1500));
    let time = now();
    // (A second more, so that there are samples of before the load.)
    let seconds = began.elapsed().as_secs_f64().ceil() + 1.0;
    let seen = Seen { before, end: [early, views(&setup.cluster)] };
    let counts = ["encrypted", "decrypted", "compared", "denials", "decrypt_failures"];
    assert_eq!(
        counts.map(|name| seen.stat(DATABASE, name).0),
        // The new rows, and all of them by the rotation; what was read twenty times, by the rotation and alone;
        // by the look-up and by ANALYZE, which counts the distinct ones; …
        [3000.0, 20.0 * 2000.0 + 2000.0 + 2000.0 + 1.0, 4000.0, 5.0, 1.0]
    );
    assert_eq!(counts.map(|name| seen.stat(OTHER, name).0), [500.0, 0.0, 0.0, 0.0, 0.0]);
    let window = Window::new(&watch.prometheus, seconds, time);
    let expected = at_the_end(&seen, &window, time);
    let not_expected = run_queries(&watch, expected, seconds, time);
    // Each query was compared at one of the two times.
    let never: Vec<_> = not_expected.intersection(&left).collect();
    assert!(never.is_empty() && not_expected == of_jobs, "{never:?}");

    // The variables.
    let variables = dashboard()["templating"]["list"].clone();
    for (name, values) in [("instance", vec![server.as_str()]), ("datname", DATABASES.to_vec())] {
        let variable = list(&variables).iter().find(|variable| variable["name"] == name).unwrap();
        let query = text(&variable["query"]["query"]).replace("$instance", ALL);
        let arguments = query.strip_prefix("label_values(").unwrap().strip_suffix(')').unwrap();
        let (selector, label) = arguments.rsplit_once(", ").unwrap();
        assert_eq!(label, name);
        assert_eq!(watch.prometheus.label_values(selector, label), values);
    }
    println!("the load took {:?}", began.elapsed());
}

/// The panels of jobs while a rotation runs, of which it is known when it had done how many rows.
fn while_it_runs(first: (f64, f64), last: (f64, f64), at_least: f64, planned: f64) -> Expected {
    let mut expected = Expected::default();
    let done = Range(at_least, last.1);
    let all = |of_rotation: Range| {
        let of_kinds = DATABASES.into_iter().flat_map(move |database| {
            ["rotate", "encrypt", "decrypt"].map(|kind| {
                let is_it = database == DATABASE && kind == "rotate";
                let value = if is_it { of_rotation } else { exactly(0.0) };
                (format!("server {database} {kind}"), value)
            })
        });
        of_kinds.collect::<Vec<_>>()
    };
    expected.add("Jobs", "A", all(exactly(1.0)));
    for (query, _) in [("B", "paused"), ("C", "failed"), ("D", "incomplete"), ("E", "completed")] {
        expected.add("Jobs", query, all(exactly(0.0)));
    }
    expected.add("Jobs", "F", all(done));
    expected.add("Jobs", "G", all(exactly(planned)));
    let progress = Range((done.0 / planned).min(1.0), (done.1 / planned).min(1.0));
    expected.add("Progress", "A", [(format!("server {DATABASE} rotate"), progress)]);
    // A line through eight samples of what grows by steps.
    let pace = (last.1 - first.1) / (last.0 - first.0);
    expected.add("Rows per second", "A", all(Range(0.7 * pace, 1.3 * pace)));
    expected
}

/// All other panels at the end.
fn at_the_end(seen: &Seen, window: &Window, time: f64) -> Expected {
    let mut expected = Expected::default();
    overview(&mut expected, seen, window, time);
    operations(&mut expected, seen, window);
    latency(&mut expected, seen, window);
    keys_in_memory(&mut expected, seen, window, time);
    providers(&mut expected, seen, window, time);
    keys_of_all(&mut expected, seen, window, time);
    expected.add("Scheduled rotations", "A", [("in force", exactly(1.0))]);
    expected.add("Scheduled rotations", "B", [("to be confirmed", exactly(0.0))]);
    expected.add("Scheduled rotations", "C", [("failing", exactly(0.0))]);
    expected
}

fn overview(expected: &mut Expected, seen: &Seen, window: &Window, time: f64) {
    let findings = |kind: &'static str| {
        let of = move |database: &'static str| {
            let checks = keys(&seen.end[1][database]["health"]).into_iter();
            checks.map(move |check| {
                let found = seen.value(&format!("/{database}/health/{check}/{kind}"));
                (format!("server {database} {check}"), found)
            })
        };
        DATABASES.into_iter().flat_map(of)
    };
    let total = |kind, database: &str| -> Range {
        let prefix = format!("server {database}");
        findings(kind).filter(|(name, _)| name.starts_with(&prefix)).map(|(_, found)| found).sum()
    };
    for (panel, kind, query, of_server) in
        [("Critical findings", "critical", "A", "C"), ("Warnings", "warning", "B", "D")]
    {
        let name = if kind == "warning" { "warnings" } else { kind };
        expected.add(panel, "A", [(name, total(kind, ""))]);
        let of_each =
            DATABASES.map(|database| (format!("server {database}"), total(kind, database)));
        expected.add("Servers and databases", of_server, of_each);
        expected.add(
            "Findings of enc_health()",
            query,
            findings(kind).filter(|(_, found)| found.0 > 0.0),
        );
    }
    // The provider that has gone.
    assert!((total("warning", DATABASE) + total("critical", DATABASE)).0 > 0.0);
    let failures = window.increase(exactly(1.0));
    expected.add("Values that could not be opened", "A", [("failures", failures)]);
    let breaker = seen.value(&format!("/{DATABASE}/provider/breaker"));
    assert!(breaker.0 > 0.0, "{breaker:?}");
    expected.add("Providers left alone", "A", [("breaker", breaker)]);
    let usable = seen
        .keys()
        .into_iter()
        .map(|(database, key)| seen.value(&format!("/{database}/keys/{key}/usable_until")));
    let first = usable.reduce(|a, b| Range(a.0.min(b.0), a.1.min(b.1))).unwrap();
    expected.add("Next key ends in", "A", [("next key ends", first - exactly(time))]);
    let of_each =
        |value: f64| DATABASES.map(|database| (format!("server {database}"), exactly(value)));
    expected.add("Servers and databases", "A", of_each(0.0));
    expected.add("Servers and databases", "B", of_each(1.0));

    // Where the breaker is open, and where a value was altered.
    let mut alerts: Vec<_> = DATABASES
        .into_iter()
        .filter(|database| seen.value(&format!("/{database}/provider/breaker")).0 > 0.0)
        .map(|database| format!("EncryptionExtBreakerOpen: server page {database} vault"))
        .collect();
    alerts.push(format!("EncryptionExtDecryptFailures: server page {DATABASE}"));
    expected.add("Alerts that fire", "A", [("alerts", exactly(alerts.len() as f64))]);
    let alerts = alerts.into_iter().map(|alert| (alert, exactly(1.0)));
    expected.add("Alerts", "annotation", alerts);
    let activated = seen.keys().into_iter().map(|(database, key)| {
        let since = seen.value(&format!("/{database}/keys/{key}/active_since"));
        (format!("{key} has a new active version: server {database}"), since * 1000.0)
    });
    expected.add("New active versions", "annotation", activated);
}

fn operations(expected: &mut Expected, seen: &Seen, window: &Window) {
    let kinds = [("A", "encrypted"), ("B", "decrypted"), ("C", "compared")];
    for (query, kind) in kinds {
        let counted = DATABASES.into_iter().map(|database| seen.stat(database, kind)).sum();
        expected.add("Operations per second", query, [(kind, window.rate(counted))]);
    }
    let of = |database| kinds.into_iter().map(|(_, kind)| seen.stat(database, kind)).sum();
    let of_each =
        DATABASES.map(|database| (format!("server {database}"), window.rate(of(database))));
    expected.add("Operations per second, by database", "A", of_each);
    for (panel, query, name, legend) in [
        ("Denials and failures per second", "A", "denials", " denials"),
        ("Denials and failures per second", "B", "decrypt_failures", " failures"),
        ("Operations with keys past their time", "A", "served_past_expiry", ""),
    ] {
        let of_each = DATABASES.map(|database| {
            (format!("{database}{legend}"), window.rate(seen.stat(database, name)))
        });
        expected.add(panel, query, of_each);
    }
    // All rows were read after the key's time.
    assert!(seen.stat(DATABASE, "served_past_expiry").0 >= 2000.0);
}

fn latency(expected: &mut Expected, seen: &Seen, window: &Window) {
    let buckets = |database| seen.buckets(&format!("/{DATABASE}/decrypt_time/{database}"));
    let of_all = summed(&[buckets(DATABASE), buckets(OTHER)]);
    let panel = "Time to decrypt a value";
    for (query, legend, quantile) in [("A", "p50", 0.5), ("B", "p95", 0.95), ("C", "p99", 0.99)] {
        expected.add(panel, query, [(legend, window.quantile(quantile, &of_all))]);
    }
    // Of 48000 values, one in 1024 of those of each session.
    let timed = of_all.last().unwrap().1;
    assert!((40.0..=47.0).contains(&timed.0), "{timed:?}");
    let seconds = seen.stat(DATABASE, "decrypt_time_seconds");
    let mean = window.increase(seconds).divided_by(window.increase(timed));
    expected.add(panel, "D", [("mean", mean)]);
    let of_each = DATABASES
        .map(|database| (format!("server {database}"), window.quantile(0.95, &buckets(database))));
    expected.add("Time to decrypt a value, by database", "A", of_each);
}

/// Histograms with the same bounds.
fn summed(histograms: &[Vec<(f64, Range)>; 2]) -> Vec<(f64, Range)> {
    let both = histograms[0].iter().zip(&histograms[1]);
    both.map(|((bound, one), (_, other))| (*bound, *one + *other)).collect()
}

fn keys_in_memory(expected: &mut Expected, seen: &Seen, window: &Window, time: f64) {
    let now = |name: &str| seen.value(&format!("/{DATABASE}/cache/{name}"));
    for (panel, query, name, legend) in [
        ("Key versions that sessions share", "A", "entries", "entries"),
        ("Key versions that sessions share", "B", "capacity", "capacity"),
        ("Memory for secrets", "A", "locked_bytes", "locked"),
        ("Memory for secrets", "B", "unlocked_bytes", "unlocked"),
    ] {
        expected.add(panel, query, [(format!("server {legend}"), now(name))]);
    }
    let hits = window.increase(seen.cache("hits"));
    let misses = window.increase(seen.cache("misses"));
    let rate = Range(hits.0 / (hits.0 + misses.1), hits.1 / (hits.1 + misses.0));
    expected.add("Hit rate", "A", [("server", rate)]);
    let of_work = [("A", "misses"), ("B", "fetches"), ("C", "waits"), ("D", "evictions")];
    for (query, name) in of_work {
        let rate = window.rate(seen.cache(name));
        expected.add("Look-ups that cost", query, [(format!("server {name}"), rate)]);
    }
    let left = seen.keys().into_iter().map(|(database, key)| {
        let until = seen.value(&format!("/{database}/keys/{key}/usable_until"));
        (format!("server {database} {key}"), until - exactly(time))
    });
    expected.add("How long keys last without their provider", "A", left);
}

fn providers(expected: &mut Expected, seen: &Seen, window: &Window, time: f64) {
    let of_each = |value: &dyn Fn(&str) -> Range| {
        DATABASES.map(|database| (format!("server {database} vault"), value(database)))
    };
    let now = |name: &'static str| {
        of_each(&move |database| seen.value(&format!("/{database}/provider/{name}")))
    };
    let ago = |name| now(name).map(|(series, at)| (series, exactly(time) - at));
    let left = |name| now(name).map(|(series, at)| (series, at - exactly(time)));
    expected.add("Providers", "A", now("reachable"));
    expected.add("Providers", "B", now("breaker"));
    expected.add("Breakers", "A", now("breaker"));
    expected.add("Providers", "C", ago("last_success"));
    expected.add("Providers", "D", ago("last_failure"));
    let first_key = |database: &str| {
        let keys = seen.keys().into_iter().filter(|(of, _)| *of == database);
        let until =
            keys.map(|(_, key)| seen.value(&format!("/{database}/keys/{key}/usable_until")));
        until.reduce(|a, b| Range(a.0.min(b.0), a.1.min(b.1))).unwrap() - exactly(time)
    };
    expected.add("Providers", "E", of_each(&first_key));
    expected.add("Providers", "F", left("token_expires"));
    expected.add("Providers", "G", left("certificate_expires"));
    expected.add("Providers", "H", left("client_certificate_expires"));
    for end in ["token_expires", "certificate_expires"] {
        assert!(seen.value(&format!("/{DATABASE}/provider/{end}")).0 > time, "{end}");
    }

    let buckets = DATABASES.map(|database| seen.buckets(&format!("/{database}/request_time")));
    for (query, legend, quantile) in [("A", "p50", 0.5), ("B", "p95", 0.95), ("C", "p99", 0.99)] {
        let range = window.quantile(quantile, &summed(&buckets));
        expected.add("Request time", query, [(format!("server vault {legend}"), range)]);
    }
    let counted = |name: &str| -> Range {
        let of = |database| seen.counted(&format!("/{database}/provider/{name}"));
        DATABASES.into_iter().map(of).sum()
    };
    let requests = window.rate(counted("requests"));
    expected.add("Requests per second", "A", [("server vault", requests)]);
    let classes = [
        "unreachable",
        "timed_out",
        "throttled",
        "login",
        "denied",
        "not_found",
        "invalid",
        "other",
    ];
    let errors = classes.map(|class| {
        (format!("server vault {class}"), window.rate(counted(&format!("errors_{class}"))))
    });
    assert!(counted("errors_unreachable").0 >= 5.0);
    let errors = errors.into_iter().filter(|(_, rate)| rate.1 > 0.0);
    expected.add("Errors per second, by class", "A", errors);
}

fn keys_of_all(expected: &mut Expected, seen: &Seen, window: &Window, time: f64) {
    let of_each = |value: &dyn Fn(&str, &str) -> Range| {
        let keys = seen.keys().into_iter();
        keys.map(|(database, key)| (format!("server {database} {key}"), value(database, &key)))
            .collect::<Vec<_>>()
    };
    let now = |name: &'static str| {
        of_each(&move |database, key| seen.value(&format!("/{database}/keys/{key}/{name}")))
    };
    let with = |name, change: &dyn Fn(Range) -> Range| {
        now(name).into_iter().map(|(series, value)| (series, change(value))).collect::<Vec<_>>()
    };
    let age = |since| exactly(time) - since;
    expected.add("Keys", "B", with("active_since", &|since| age(since) * (1.0 / 86400.0)));
    let left = |due: Range| (due - exactly(time)) * (1.0 / 86400.0);
    expected.add("Keys", "C", with("rotation_due", &left));
    for (query, name) in [
        ("A", "active_version"),
        ("D", "readable"),
        ("F", "pending_versions"),
        ("G", "disabled_versions"),
        ("H", "destroyed_versions"),
        ("K", "encryptions"),
        ("L", "check_value_ok"),
    ] {
        expected.add("Keys", query, now(name));
    }
    expected.add("Keys", "E", now("held"));
    // OpenBao keeps ten, of which there are two.
    let spare = seen.value(&format!("/{DATABASE}/keys/k/spare"));
    assert!((spare.0, spare.1) == (8.0, 8.0), "{spare:?}");
    expected.add("Keys", "J", now("spare"));
    expected.add(
        "Keys by age",
        "A",
        now("active_since")
            .into_iter()
            .map(|(series, since)| (series.trim_start_matches("server ").to_owned(), age(since))),
    );
    // The counter of k has begun anew with its second version, after 1000 under the first.
    let is_rotated = |key: &str| key == "k";
    let encryptions = |database: &str, key: &str| {
        let pointer = format!("/{database}/keys/{key}/encryptions");
        let counted = match is_rotated(key) {
            true => seen.value(&pointer) + exactly(1000.0),
            false => seen.counted(&pointer),
        };
        window.rate(counted)
    };
    expected.add("Encryptions per second, by key", "A", of_each(&encryptions));
}
