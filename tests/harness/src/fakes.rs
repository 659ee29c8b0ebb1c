//! Fakes of cloud services that have no emulator to speak of: Google Cloud KMS and Azure Key Vault,
//! each with the services that give out access tokens for it. They are programs in `tests/fakes`,
//! which tell what they do and how a test steers them. The services' official clients take them for
//! the services: see `tests/fakes.rs` of this package.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::{Value, json};
use tempfile::TempDir;
use ureq::{Agent, http};

use crate::openbao::{agent_that_trusts, write_certificates};
use crate::python::{self, PythonServer};
use crate::server::{free_port, wait_for};

/// The environment of `build/python` with what the fakes and the official clients need.
const ENVIRONMENT: &str = "fakes";

/// A service that there is a fake of.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Service {
    /// Google Cloud KMS.
    GcpKms,
    /// Azure Key Vault.
    AzureKeyVault,
}

impl Service {
    fn program(self) -> &'static str {
        match self {
            Self::GcpKms => "gcp_kms",
            Self::AzureKeyVault => "azure_key_vault",
        }
    }
}

/// A running fake. It is killed when dropped.
pub struct Fake {
    service: Service,
    server: PythonServer,
    folder: TempDir,
    https_port: u16,
    agent: Agent,
}

impl Fake {
    /// Starts it on free ports of 127.0.0.1. `None` if what it needs could not be had.
    ///
    /// # Panics
    ///
    /// If it does not start.
    #[must_use]
    pub fn start(service: Service) -> Option<Self> {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        write_certificates(folder.path());
        let https_port = free_port();
        let server = PythonServer::start(ENVIRONMENT, |python, port| {
            python
                .arg(programs().join(service.program()).with_extension("py"))
                .args(["--http-port", &port.to_string(), "--https-port", &https_port.to_string()])
                .arg("--certificate")
                .arg(folder.path().join("server.pem"))
                .arg("--key")
                .arg(folder.path().join("server.key"))
                // The programs' folder belongs to the sources.
                .env("PYTHONDONTWRITEBYTECODE", "1");
        })?;
        let agent = agent_that_trusts(&folder.path().join("ca.pem"));
        let fake = Self { service, server, folder, https_port, agent };
        wait_for("the fake", || fake.agent.get(fake.address()).call().is_ok());
        Some(fake)
    }

    /// Where the service is, by HTTPS.
    #[must_use]
    pub fn address(&self) -> String {
        format!("https://127.0.0.1:{}", self.https_port)
    }

    /// Where the machine's own services are, by plain HTTP, such as the metadata server.
    #[must_use]
    pub fn machine_address(&self) -> String {
        self.server.address()
    }

    /// The certificate of the authority that signed the service's.
    #[must_use]
    pub fn ca_file(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    /// Does what the fake's documentation says under the name of the control.
    ///
    /// # Panics
    ///
    /// If there is no such control.
    pub fn control(&self, name: &str, body: &Value) -> Value {
        let uri = format!("{}/_control/{name}", self.machine_address());
        let (status, answer) = self.send("POST", &uri, None, body);
        assert_eq!(status, 200, "{name}");
        answer
    }

    /// Sends a request to the service as somebody who may do everything.
    ///
    /// # Panics
    ///
    /// If it is refused.
    pub fn administer(&self, method: &str, path_and_query: &str, body: &Value) -> Value {
        let token = self.control("token", &json!({ "of": "administrator" }));
        let token = token["token"].as_str().expect("a token is text");
        let uri = format!("{}{path_and_query}", self.address());
        let (status, answer) = self.send(method, &uri, Some(token), body);
        assert_eq!(status, 200, "{method} {path_and_query}: {answer}");
        answer
    }

    /// Runs the tests that have the service's official client use the fake.
    ///
    /// # Panics
    ///
    /// If they can't be run.
    #[must_use]
    pub fn test_with_official_client(&self) -> Output {
        let python = python::interpreter(ENVIRONMENT).expect("the fake runs by it");
        Command::new(python)
            .arg(programs().join(format!("{}_test.py", self.service.program())))
            .args([self.https_port.to_string(), self.server.port().to_string()])
            .arg(self.ca_file())
            .current_dir(self.folder.path())
            .env_clear()
            .env("HOME", self.folder.path())
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .output()
            .expect("Python can be run")
    }

    /// The process.
    pub fn process(&mut self) -> &mut PythonServer {
        &mut self.server
    }

    fn send(&self, method: &str, uri: &str, token: Option<&str>, body: &Value) -> (u16, Value) {
        let mut request = http::Request::builder()
            .method(method)
            .uri(uri)
            .header("Content-Type", "application/json");
        if let Some(token) = token {
            request = request.header("Authorization", format!("Bearer {token}"));
        }
        let request = request.body(body.to_string()).expect("the request is well-formed");
        let mut response = self.agent.run(request).expect("the fake can be reached");
        let status = response.status().as_u16();
        let text = response.body_mut().read_to_string().expect("the answer is text");
        (status, serde_json::from_str(&text).unwrap_or(Value::Null))
    }
}

fn programs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fakes")
}
