//! microburst, a proxy that makes a simulation of AWS fail as AWS does: its errors have the form
//! that AWS's own models of its services say.

use serde_json::{Value, json};

use crate::aws::{self, Endpoint};
use crate::python::PythonServer;

/// A running proxy. It is killed when dropped.
pub struct Microburst {
    server: PythonServer,
    endpoint: Endpoint,
}

impl Microburst {
    /// Starts it on a free port of 127.0.0.1, by plain HTTP, in front of `upstream`, which it
    /// forwards everything to until it is told otherwise. `None` if it could not be had.
    ///
    /// # Panics
    ///
    /// If it does not start.
    #[must_use]
    pub fn start(upstream: &str) -> Option<Self> {
        let server = PythonServer::start("microburst", |python, port| {
            let port = port.to_string();
            python.args(["-m", "microburst", "--upstream", upstream, "--port", &port]);
        })?;
        let endpoint = Endpoint::new(server.address());
        // The first request has it load the models, for which it takes seconds.
        aws::kms(&endpoint, "us-east-1", "ListKeys", &json!({}));
        Some(Self { server, endpoint })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> String {
        self.server.address()
    }

    /// Makes it fail by this rule alone from now on; its documentation has the form.
    ///
    /// # Panics
    ///
    /// If it does not take the rule.
    pub fn fail(&self, rule: &Value) {
        self.endpoint.send("DELETE", "/_microburst/fired", &Value::Null);
        self.endpoint.send("POST", "/_microburst/rules", &json!([rule]));
    }

    /// How often the rule was applied.
    ///
    /// # Panics
    ///
    /// If it does not tell.
    #[must_use]
    pub fn failures(&self) -> usize {
        let fired = self.endpoint.send("GET", "/_microburst/fired", &Value::Null);
        let fired: Value = serde_json::from_str(&fired).expect("what was fired is JSON");
        fired.as_array().expect("what was fired is a list").len()
    }
}
