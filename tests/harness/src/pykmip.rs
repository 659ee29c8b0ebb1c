//! PyKMIP, a KMIP server in Python, from the environment `build/python/pykmip`; and a server that
//! answers whatever a test wants.
//!
//! PyKMIP speaks TLS 1.2 alone, knows clients by the common name of their certificates, and lets each
//! see only the objects that it has registered itself, unless an object's operation policy says
//! otherwise.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, Issuer, KeyPair,
};
use rustls::pki_types::PrivatePkcs8KeyDer;
use tempfile::TempDir;

use crate::openbao::authority;
use crate::python::interpreter;
use crate::server::{free_port, wait_for};

/// The one suite that it has in common with rustls for a certificate with an elliptic-curve key, for
/// which its own defaults are too old.
const CIPHER_SUITE: &str = "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384";

/// The operation policies besides PyKMIP's own.
const POLICIES: &str = r#"{
    "unreadable": { "preset": { "SYMMETRIC_KEY": {
        "LOCATE": "ALLOW_ALL", "GET_ATTRIBUTES": "ALLOW_ALL", "GET": "DISALLOW_ALL"
    } } }
}"#;

const FOR_CLIENTS: &[ExtendedKeyUsagePurpose] = &[ExtendedKeyUsagePurpose::ClientAuth];

/// The files, in PEM, of a client's certificate.
pub struct ClientCertificate {
    /// The certificate.
    pub certificate_file: PathBuf,
    /// Its key.
    pub key_file: PathBuf,
}

/// A running server. It is killed when dropped.
pub struct PyKmip {
    python: PathBuf,
    process: Child,
    folder: TempDir,
    port: u16,
    issuer: Issuer<'static, KeyPair>,
}

impl PyKmip {
    /// Starts it on a free port of 127.0.0.1, with its data in a temporary folder. `None` if the
    /// environment could not be had.
    ///
    /// # Panics
    ///
    /// If the server does not start.
    #[must_use]
    pub fn start() -> Option<Self> {
        let python = interpreter("pykmip")?;
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let issuer = write_certificates(folder.path());
        let port = free_port();
        let process = spawn(&python, folder.path(), port);
        Some(Self { python, process, folder, port, issuer })
    }

    /// Its address: the host and the port.
    #[must_use]
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// The certificate of the authority that signed the server's, and signs those of clients.
    #[must_use]
    pub fn ca_file(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    /// A certificate for the client with this name.
    ///
    /// # Panics
    ///
    /// If the certificate can't be made.
    #[must_use]
    pub fn client(&self, name: &str) -> ClientCertificate {
        client_certificate(&self.issuer, &self.folder.path().join(name), name, FOR_CLIENTS)
    }

    /// A certificate for this client, of an authority that the server does not know by name.
    ///
    /// # Panics
    ///
    /// If the certificate can't be made.
    #[must_use]
    pub fn strange_client(&self, name: &str) -> ClientCertificate {
        let file = self.folder.path().join(format!("strange_{name}"));
        let mut params = CertificateParams::new(Vec::new()).expect("no names are valid names");
        params.distinguished_name.push(DnType::CommonName, "another authority");
        let key = KeyPair::generate().expect("the system has random bytes");
        let issuer = Issuer::new(params, key);
        client_certificate(&issuer, &file, name, FOR_CLIENTS)
    }

    /// A certificate with this name that does not say what it is for. OpenSSL takes it in a handshake,
    /// and PyKMIP refuses it then.
    ///
    /// # Panics
    ///
    /// If the certificate can't be made.
    #[must_use]
    pub fn client_without_purpose(&self, name: &str) -> ClientCertificate {
        let file = self.folder.path().join(format!("purposeless_{name}"));
        client_certificate(&self.issuer, &file, name, &[])
    }

    /// Runs a Python script as the client with this name. It has PyKMIP's client as `client`, open,
    /// its `enums` and its `objects`. What it prints is returned.
    ///
    /// # Panics
    ///
    /// If the script fails.
    pub fn script(&self, client: &str, script: &str) -> String {
        let ClientCertificate { certificate_file, key_file } = self.client(client);
        let port = self.port;
        let ca_file = self.ca_file();
        let program = format!(
            "from kmip.core import enums\n\
             from kmip.pie import objects\n\
             from kmip.pie.client import ProxyKmipClient\n\
             client = ProxyKmipClient(hostname='127.0.0.1', port={port}, cert={certificate_file:?}, \
             key={key_file:?}, ca={ca_file:?}, ssl_version='PROTOCOL_TLSv1_2')\n\
             client.open()\n\
             {script}\n"
        );
        let output = Command::new(&self.python)
            .arg("-c")
            .arg(program)
            .current_dir(self.folder.path())
            .env_clear()
            .env("HOME", self.folder.path())
            .output()
            .expect("Python can be run");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    /// Waits until the server knows the operation policies, which it looks for a second after its start.
    /// `unreadable` is one, under which an object can be found and not be read.
    ///
    /// # Panics
    ///
    /// If it does not.
    pub fn wait_for_policies(&self) {
        wait_for("the operation policy", || self.log().contains("Loading policy: unreadable"));
    }

    /// What the server has written.
    #[must_use]
    pub fn log(&self) -> String {
        log(self.folder.path())
    }

    /// Stops the process where it is: it accepts connections and answers nothing.
    pub fn pause(&self) {
        self.signal(Signal::SIGSTOP);
    }

    /// Lets the process go on.
    pub fn resume(&self) {
        self.signal(Signal::SIGCONT);
    }

    /// Kills the process.
    pub fn stop(&mut self) {
        self.signal(Signal::SIGKILL);
        // An error means that it has been waited for already.
        let _ = self.process.wait();
    }

    /// Starts the process again on the same port, with the same data.
    ///
    /// # Panics
    ///
    /// If the server does not start.
    pub fn restart(&mut self) {
        self.stop();
        self.process = spawn(&self.python, self.folder.path(), self.port);
    }

    /// To the process and those that it has started.
    fn signal(&self, signal: Signal) {
        let id = i32::try_from(self.process.id()).expect("a process id is an i32");
        // An error means that it has ended already.
        let _ = killpg(Pid::from_raw(id), signal);
    }
}

impl Drop for PyKmip {
    fn drop(&mut self) {
        self.stop();
    }
}

/// A client's certificate in `folder`, of an authority that nobody knows, although it has the name of
/// the one that servers trust.
///
/// # Panics
///
/// If the certificate can't be made.
#[must_use]
pub fn unknown_client(folder: &Path) -> ClientCertificate {
    client_certificate(&authority().0, &folder.join("client"), "client", FOR_CLIENTS)
}

/// The files are `<path>.pem` and `<path>.key`.
fn client_certificate(
    issuer: &Issuer<'static, KeyPair>,
    path: &Path,
    name: &str,
    purposes: &[ExtendedKeyUsagePurpose],
) -> ClientCertificate {
    let mut params = CertificateParams::new(Vec::new()).expect("no names are valid names");
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.extended_key_usages = purposes.to_vec();
    let key = KeyPair::generate().expect("the system has random bytes");
    let certificate = params.signed_by(&key, issuer).expect("a certificate can be signed");
    let (certificate_file, key_file) = (path.with_extension("pem"), path.with_extension("key"));
    fs::write(&certificate_file, certificate.pem()).expect("the folder can be written");
    fs::write(&key_file, key.serialize_pem()).expect("the folder can be written");
    ClientCertificate { certificate_file, key_file }
}

fn write_certificates(folder: &Path) -> Issuer<'static, KeyPair> {
    let (issuer, ca) = authority();
    let (certificate, key) = server_certificate(&issuer);
    fs::create_dir(folder.join("policies")).expect("the folder can be written");
    for (name, contents) in [
        ("ca.pem", ca.as_str()),
        ("server.pem", &certificate.pem()),
        ("server.key", &key.serialize_pem()),
        ("policies/policies.json", POLICIES),
    ] {
        fs::write(folder.join(name), contents).expect("the folder can be written");
    }
    issuer
}

fn server_certificate(issuer: &Issuer<'static, KeyPair>) -> (rcgen::Certificate, KeyPair) {
    let names = vec!["127.0.0.1".to_owned(), "localhost".to_owned()];
    let params = CertificateParams::new(names).expect("the names are valid");
    let key = KeyPair::generate().expect("the system has random bytes");
    (params.signed_by(&key, issuer).expect("a certificate can be signed"), key)
}

fn spawn(python: &Path, folder: &Path, port: u16) -> Child {
    let config = folder.join("server.conf");
    let path = folder.display();
    let settings = format!(
        "[server]\n\
         hostname=127.0.0.1\n\
         port={port}\n\
         certificate_path={path}/server.pem\n\
         key_path={path}/server.key\n\
         ca_path={path}/ca.pem\n\
         auth_suite=TLS1.2\n\
         policy_path={path}/policies\n\
         enable_tls_client_auth=True\n\
         tls_cipher_suites={CIPHER_SUITE}\n\
         logging_level=INFO\n\
         database_path={path}/database\n"
    );
    fs::write(&config, settings).expect("the folder can be written");
    let output = File::options()
        .create(true)
        .append(true)
        .open(folder.join("output"))
        .expect("the folder can be written");
    let errors = output.try_clone().expect("a file can be duplicated");
    let mut process = Command::new(python)
        .args(["-c", "from kmip.services.server.server import main; main()", "-f"])
        .arg(&config)
        .arg("-l")
        .arg(folder.join("log"))
        .current_dir(folder)
        .env_clear()
        .env("HOME", folder)
        .env("TMPDIR", folder)
        .stdin(Stdio::null())
        .stdout(Stdio::from(output))
        .stderr(Stdio::from(errors))
        // It starts others, which are to end with it.
        .process_group(0)
        .spawn()
        .expect("Python can be run");
    wait_for("PyKMIP", || {
        let ended = process.try_wait().expect("a child can be asked whether it runs");
        assert!(ended.is_none(), "{}", log(folder));
        TcpStream::connect(("127.0.0.1", port)).is_ok()
    });
    process
}

fn log(folder: &Path) -> String {
    ["output", "log"].map(|name| fs::read_to_string(folder.join(name)).unwrap_or_default()).concat()
}

/// What a [`FakeKmip`] does about a request.
pub enum Reply {
    /// It sends this, and waits for the next request.
    Send(Vec<u8>),
    /// It sends this, and closes the connection.
    Last(Vec<u8>),
    /// It sends a byte a second, for ever.
    Drip,
}

/// A server on a free port of 127.0.0.1 that speaks TLS, takes anything for a request, and answers
/// what a test says. It runs until the test's process ends.
pub struct FakeKmip {
    folder: TempDir,
    port: u16,
    connections: Arc<AtomicU64>,
}

impl FakeKmip {
    /// Starts it. `reply` gets each request, and a number that goes up from 0 in each connection.
    ///
    /// # Panics
    ///
    /// If it does not start.
    #[must_use]
    pub fn start(reply: impl Fn(&[u8], u64) -> Reply + Send + Sync + 'static) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let (issuer, ca) = authority();
        fs::write(folder.path().join("ca.pem"), ca).expect("the folder can be written");
        let (certificate, key) = server_certificate(&issuer);
        let config = rustls::ServerConfig::builder_with_provider(Arc::new(
            rustls::crypto::ring::default_provider(),
        ))
        .with_safe_default_protocol_versions()
        .expect("the provider has the default versions")
        .with_no_client_auth()
        .with_single_cert(
            vec![certificate.der().clone()],
            PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
        )
        .expect("the key is the certificate's");
        let (config, reply) = (Arc::new(config), Arc::new(reply));
        let listener = TcpListener::bind("127.0.0.1:0").expect("a loopback port is free");
        let port = listener.local_addr().expect("a bound socket has an address").port();
        let connections = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&connections);
        thread::spawn(move || {
            for client in listener.incoming() {
                let Ok(client) = client else { return };
                counted.fetch_add(1, Ordering::Relaxed);
                let (config, reply) = (Arc::clone(&config), Arc::clone(&reply));
                // A peer that is gone has had what it wanted.
                thread::spawn(move || serve(client, config, &*reply));
            }
        });
        Self { folder, port, connections }
    }

    /// Its address: the host and the port.
    #[must_use]
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// The certificate of the authority that signed its certificate.
    #[must_use]
    pub fn ca_file(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    /// How many connections there were.
    #[must_use]
    pub fn connections(&self) -> u64 {
        self.connections.load(Ordering::Relaxed)
    }
}

fn serve(
    client: TcpStream,
    config: Arc<rustls::ServerConfig>,
    reply: &dyn Fn(&[u8], u64) -> Reply,
) -> io::Result<()> {
    let session = rustls::ServerConnection::new(config).map_err(io::Error::other)?;
    let mut stream = rustls::StreamOwned::new(session, client);
    for number in 0.. {
        let mut header = [0; 8];
        stream.read_exact(&mut header)?;
        let [.., a, b, c, d] = header;
        let len = u32::from_be_bytes([a, b, c, d]);
        let mut request = header.to_vec();
        (&mut stream).take(len.into()).read_to_end(&mut request)?;
        match reply(&request, number) {
            Reply::Send(bytes) => stream.write_all(&bytes)?,
            Reply::Last(bytes) => {
                stream.write_all(&bytes)?;
                stream.conn.send_close_notify();
                return stream.flush();
            }
            Reply::Drip => loop {
                stream.write_all(&[0x42])?;
                stream.flush()?;
                thread::sleep(Duration::from_secs(1));
            },
        }
    }
    Ok(())
}
