//! moto, a simulation of AWS. Its KMS has authenticated ciphertexts and encryption contexts, and
//! takes any signature and any state of a key.

use std::path::PathBuf;
use std::process::Command;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::aws::{self, Endpoint};
use crate::openbao::{agent_that_trusts, write_certificates};
use crate::python::PythonServer;

/// A running moto. It is killed when dropped.
pub struct Moto {
    server: PythonServer,
    endpoint: Endpoint,
    /// The certificates, with TLS.
    folder: Option<TempDir>,
}

impl Moto {
    /// Starts it on a free port of 127.0.0.1, by plain HTTP. `None` if it could not be had.
    ///
    /// # Panics
    ///
    /// If it does not start.
    #[must_use]
    pub fn start() -> Option<Self> {
        let server = PythonServer::start("moto", configure)?;
        let endpoint = Endpoint::new(server.address());
        Some(Self { server, endpoint, folder: None })
    }

    /// The same with HTTPS, under a certificate authority of its own (see [`Moto::ca_file`]).
    ///
    /// # Panics
    ///
    /// If it does not start.
    #[must_use]
    pub fn start_with_tls() -> Option<Self> {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        write_certificates(folder.path());
        let file = |name: &str| folder.path().join(name);
        let server = PythonServer::start("moto", |python, port| {
            configure(python, port);
            python.arg("-c").arg(file("server.pem")).arg("-k").arg(file("server.key"));
        })?;
        let address = server.address().replace("http:", "https:");
        let endpoint = Endpoint::with_agent(address, agent_that_trusts(&file("ca.pem")));
        Some(Self { server, endpoint, folder: Some(folder) })
    }

    /// Where all its services are.
    #[must_use]
    pub fn address(&self) -> String {
        self.endpoint.address().to_owned()
    }

    /// The certificate of the authority that signed the server's.
    ///
    /// # Panics
    ///
    /// If it was started without TLS.
    #[must_use]
    pub fn ca_file(&self) -> PathBuf {
        self.folder.as_ref().expect("it was started with TLS").path().join("ca.pem")
    }

    /// Makes a symmetric key in a region, which answers with its ARN.
    ///
    /// # Panics
    ///
    /// If it is refused.
    #[must_use]
    pub fn create_key(&self, region: &str, is_multi_region: bool) -> String {
        let key = json!({ "KeyUsage": "ENCRYPT_DECRYPT", "MultiRegion": is_multi_region });
        aws::create_key(&self.endpoint, region, &key)
    }

    /// An action of KMS in a region.
    ///
    /// # Panics
    ///
    /// If it is refused.
    pub fn kms(&self, region: &str, action: &str, body: &Value) -> Value {
        aws::kms(&self.endpoint, region, action, body)
    }

    /// The process.
    pub fn process(&mut self) -> &mut PythonServer {
        &mut self.server
    }
}

fn configure(python: &mut Command, port: u16) {
    python.args(["-m", "moto.server", "-H", "127.0.0.1", "-p", &port.to_string()]);
}
