//! Prometheus, its exporter for PostgreSQL, and promtool, as `make test` unpacks them: `build/prometheus`.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;
use ureq::Agent;

use crate::openbao::agent;
use crate::server::{free_port, wait_for};

/// How often metrics are scraped and rules evaluated.
pub const INTERVAL: Duration = Duration::from_millis(500);

/// One of the programs, or `None` if it could not be had: `prometheus`, `prometheus-postgres-exporter`,
/// `promtool`.
#[must_use]
pub fn program(name: &str) -> Option<PathBuf> {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    Some(workspace.join("build/prometheus/usr/bin").join(name)).filter(|path| path.exists())
}

/// A running program that answers by HTTP. It is killed when dropped.
struct Server {
    name: &'static str,
    process: Child,
    folder: TempDir,
    port: u16,
    agent: Agent,
}

impl Server {
    /// Starts it on a free port of 127.0.0.1, and waits until a path answers. The arguments are made of
    /// the port and of a folder that goes with the server.
    fn start(
        name: &'static str,
        path: &str,
        configure: impl FnOnce(&mut Command, u16, &Path),
    ) -> Option<Self> {
        let mut command = Command::new(program(name)?);
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let log = File::create(folder.path().join("log")).expect("the folder can be written");
        let errors = log.try_clone().expect("a file can be duplicated");
        let port = free_port();
        command
            .current_dir(folder.path())
            .env_clear()
            .env("HOME", folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::from(log))
            .stderr(Stdio::from(errors));
        configure(&mut command, port, folder.path());
        let process = command.spawn().expect("the program can be run");
        let mut server = Self { name, process, folder, port, agent: agent(Default::default()) };
        wait_for(name, || {
            let ended = server.process.try_wait().expect("a child can be asked whether it runs");
            assert!(ended.is_none(), "{name} has ended: {}", server.log());
            server.get(path).is_some()
        });
        Some(server)
    }

    /// The body of what is at a path, if there is something.
    fn get(&self, path: &str) -> Option<String> {
        let mut response =
            self.agent.get(format!("http://127.0.0.1:{}{path}", self.port)).call().ok()?;
        let text = response.body_mut().read_to_string().ok()?;
        response.status().is_success().then_some(text)
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // An error means that it has ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
        if thread::panicking() {
            eprintln!("The log of {}:\n{}", self.name, self.log());
        }
    }
}

/// A running postgres_exporter with the queries of a file, and without its own.
pub struct PostgresExporter(Server);

impl PostgresExporter {
    /// Connects by a data source's name (`host=… user=… dbname=…`), and with further options. `None` if it could
    /// not be had.
    ///
    /// # Panics
    ///
    /// If it does not start.
    #[must_use]
    pub fn start(data_source: &str, queries: &Path, options: &[&str]) -> Option<Self> {
        let server = Server::start("prometheus-postgres-exporter", "/", |command, port, _| {
            command
                .env("DATA_SOURCE_NAME", data_source)
                .arg(format!("--web.listen-address=127.0.0.1:{port}"))
                .arg(format!("--extend.query-path={}", queries.display()))
                .args(["--disable-default-metrics", "--disable-settings-metrics"])
                .args(["--no-collector.database", "--no-collector.bgwriter"])
                .args(options);
        })?;
        Some(Self(server))
    }

    /// Where Prometheus finds it.
    #[must_use]
    pub fn target(&self) -> String {
        format!("127.0.0.1:{}", self.0.port)
    }

    /// What it shows, in Prometheus' text format.
    ///
    /// # Panics
    ///
    /// If it doesn't answer.
    #[must_use]
    pub fn metrics(&self) -> String {
        self.0.get("/metrics").expect("the exporter answers")
    }
}

/// A running Prometheus. Its data are in a temporary folder.
pub struct Prometheus(Server);

impl Prometheus {
    /// Starts it with targets to scrape and with rules, as their file has them, both every [`INTERVAL`]. `None` if
    /// it could not be had.
    ///
    /// # Panics
    ///
    /// If it does not start.
    #[must_use]
    pub fn start(targets: &[String], rules: &Value) -> Option<Self> {
        let interval = format!("{}ms", INTERVAL.as_millis());
        let server = Server::start("prometheus", "/-/ready", |command, port, folder| {
            let file = |name: &str, contents: &Value| {
                // Whatever is JSON is YAML, too.
                let path = folder.join(name);
                fs::write(&path, contents.to_string()).expect("the folder can be written");
                path
            };
            let rules = file("rules.yaml", rules);
            let config = file(
                "prometheus.yaml",
                &json!({
                    "global": {
                        "scrape_interval": interval,
                        "scrape_timeout": interval,
                        "evaluation_interval": interval,
                    },
                    "rule_files": [rules],
                    "scrape_configs": [{
                        "job_name": "postgresql",
                        "static_configs": [{ "targets": targets }],
                    }],
                }),
            );
            command
                .arg(format!("--config.file={}", config.display()))
                .arg(format!("--storage.tsdb.path={}", folder.join("data").display()))
                .arg(format!("--web.listen-address=127.0.0.1:{port}"));
        })?;
        Some(Self(server))
    }

    /// The values of an expression now, each with its labels.
    ///
    /// # Panics
    ///
    /// If Prometheus doesn't answer, or not to this.
    #[must_use]
    pub fn query(&self, expression: &str) -> Vec<(Value, f64)> {
        self.vector(&format!("query?query={}", percent_encoded(expression)))
    }

    /// The values of an expression at a time, in seconds since 1970.
    ///
    /// # Panics
    ///
    /// As [`Self::query`].
    #[must_use]
    pub fn query_at(&self, expression: &str, time: f64) -> Vec<(Value, f64)> {
        self.vector(&format!("query?time={time:.3}&query={}", percent_encoded(expression)))
    }

    /// The samples, as time and value, that a range vector has at a time: for each series.
    ///
    /// # Panics
    ///
    /// As [`Self::query`].
    #[must_use]
    pub fn samples(&self, range_vector: &str, time: f64) -> Vec<Vec<(f64, f64)>> {
        let data =
            self.data(&format!("query?time={time:.3}&query={}", percent_encoded(range_vector)));
        let results = data["result"].as_array().expect("a matrix has results").iter();
        let values =
            results.map(|series| series["values"].as_array().expect("a series has values"));
        values.map(|values| values.iter().map(sample).collect()).collect()
    }

    /// The values that a label has in a metric, as Grafana's `label_values` finds them.
    ///
    /// # Panics
    ///
    /// As [`Self::query`].
    #[must_use]
    pub fn label_values(&self, selector: &str, label: &str) -> Vec<String> {
        let data =
            self.data(&format!("label/{label}/values?match%5B%5D={}", percent_encoded(selector)));
        let values = data.as_array().expect("values are a list").iter();
        values.map(|value| value.as_str().expect("a label is a text").to_owned()).collect()
    }

    fn vector(&self, request: &str) -> Vec<(Value, f64)> {
        let data = self.data(request);
        let results = data["result"].as_array().expect("a vector has results").iter();
        results.map(|series| (series["metric"].clone(), sample(&series["value"]).1)).collect()
    }

    fn data(&self, request: &str) -> Value {
        let answer = self.0.get(&format!("/api/v1/{request}"));
        assert!(answer.is_some(), "Prometheus doesn't answer, or not to {request}");
        let answer = answer.unwrap_or_default();
        let answer: Value = serde_json::from_str(&answer).expect("Prometheus answers in JSON");
        answer["data"].clone()
    }

    /// The names of the alerts that fire, sorted and each once.
    ///
    /// # Panics
    ///
    /// If Prometheus doesn't answer.
    #[must_use]
    pub fn firing(&self) -> Vec<String> {
        let data = self.data("alerts");
        let alerts = data["alerts"].as_array().expect("alerts are a list").iter();
        let firing = alerts.filter(|alert| alert["state"] == "firing");
        let name = |alert: &Value| alert["labels"]["alertname"].as_str().map(str::to_owned);
        let mut names: Vec<_> = firing.filter_map(name).collect();
        names.sort();
        names.dedup();
        names
    }

    /// Waits until what is found by asking Prometheus is what is expected.
    ///
    /// # Panics
    ///
    /// If it takes too long, with what there is instead.
    #[track_caller]
    pub fn wait_until<T: std::fmt::Debug + PartialEq>(
        &self,
        what: &str,
        expected: &T,
        mut now: impl FnMut(&Self) -> T,
    ) {
        const DEADLINE: Duration = Duration::from_secs(45);
        let started = Instant::now();
        loop {
            let found = now(self);
            if found == *expected {
                return;
            }
            assert!(started.elapsed() < DEADLINE, "{what}: {found:?} instead of {expected:?}");
            thread::sleep(INTERVAL / 5);
        }
    }
}

/// A time and a value, which is a text.
fn sample(pair: &Value) -> (f64, f64) {
    let value = pair[1].as_str().and_then(|text| text.parse().ok());
    (pair[0].as_f64().expect("a time is a number"), value.expect("a value is a number"))
}

fn percent_encoded(text: &str) -> String {
    let encoded = text.bytes().map(|byte| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' => char::from(byte).to_string(),
        byte => format!("%{byte:02X}"),
    });
    encoded.collect()
}
