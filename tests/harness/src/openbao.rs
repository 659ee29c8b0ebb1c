//! OpenBao servers (the Vault API).

use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    PKCS_ECDSA_P256_SHA256, SigningKey, date_time_ymd,
};
use serde_json::{Value, json};
use tempfile::TempDir;
use ureq::tls::{PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::{Agent, http};

use crate::server::{free_port, wait_for};

/// A running server, initialized and unsealed, with a KV engine of version 2 at `secret/`. It is
/// killed when dropped.
pub struct OpenBao {
    binary: PathBuf,
    folder: TempDir,
    port: u16,
    cluster_port: u16,
    tls: bool,
    /// What signs its certificates. Only with TLS.
    issuer: Option<Issuer<'static, KeyPair>>,
    agent: Agent,
    process: Option<Child>,
    root_token: String,
    unseal_key: String,
}

impl OpenBao {
    /// Starts a server on a free port of 127.0.0.1 that speaks plain HTTP and keeps its data in
    /// memory, which is the quickest to start. `None` if there is no `bao` to run: it is looked for
    /// in `OPENBAO_BIN`, in the workspace's `build/openbao/` and on the `PATH`.
    ///
    /// # Panics
    ///
    /// If the server does not start.
    #[must_use]
    pub fn start() -> Option<Self> {
        Some(Self::launch(binary()?, false))
    }

    /// The same with HTTPS, under a certificate authority of its own (see [`OpenBao::ca_file`]), and
    /// with its data in a temporary folder, so that it can be restarted.
    ///
    /// # Panics
    ///
    /// If the server does not start.
    #[must_use]
    pub fn start_with_tls() -> Option<Self> {
        Some(Self::launch(binary()?, true))
    }

    fn launch(binary: PathBuf, tls: bool) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        fs::create_dir(folder.path().join("data")).expect("a temporary folder can be written");
        let (issuer, agent) = match tls {
            true => {
                let issuer = write_certificates(folder.path());
                (Some(issuer), agent_that_trusts(&folder.path().join("ca.pem")))
            }
            false => (None, agent(TlsConfig::default())),
        };
        let (root_token, unseal_key) = (String::new(), String::new());
        let mut server = Self {
            binary,
            folder,
            port: free_port(),
            cluster_port: free_port(),
            tls,
            issuer,
            agent,
            process: None,
            root_token,
            unseal_key,
        };
        server.spawn();
        let (status, answer) = server.request(
            "POST",
            "sys/init",
            json!({ "secret_shares": 1, "secret_threshold": 1 }),
        );
        assert_eq!(status, 200, "{answer}");
        let text = |value: &Value| value.as_str().expect("init answers with text").to_owned();
        server.root_token = text(&answer["root_token"]);
        server.unseal_key = text(&answer["keys"][0]);
        server.unseal();
        server.mount_kv("secret", None);
        server
    }

    /// The address for `VAULT_ADDR`.
    #[must_use]
    pub fn address(&self) -> String {
        let scheme = if self.tls { "https" } else { "http" };
        format!("{scheme}://127.0.0.1:{}", self.port)
    }

    /// The certificate of the authority that signed the server's. Only with TLS.
    #[must_use]
    pub fn ca_file(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    /// Has the server show another certificate soon, which ends at this time. (One that has ended is not
    /// accepted by the other functions here either.)
    ///
    /// # Panics
    ///
    /// If the server was started without TLS.
    pub fn replace_certificate(&self, ends: SystemTime) {
        let issuer = self.issuer.as_ref().expect("a server with TLS has certificates");
        write_server_certificate(self.folder.path(), issuer, Some(ends));
        // It reads its certificate again (OpenBao, "TCP listener configuration", tls_cert_file).
        kill(self.pid(), Signal::SIGHUP).expect("the server runs");
    }

    /// The port of 127.0.0.1 that it listens on.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The token that may do everything.
    #[must_use]
    pub fn root_token(&self) -> &str {
        &self.root_token
    }

    /// Sends a request with the root token to `/v1/<path>`. The answer's status, and its body as
    /// JSON (`null` if it is not).
    ///
    /// # Panics
    ///
    /// If the server can't be reached.
    pub fn request(&self, method: &str, path: &str, body: Value) -> (u16, Value) {
        self.request_in(None, method, path, body)
    }

    /// The same in a namespace.
    ///
    /// # Panics
    ///
    /// If the server can't be reached.
    pub fn request_in(
        &self,
        namespace: Option<&str>,
        method: &str,
        path: &str,
        body: Value,
    ) -> (u16, Value) {
        self.try_request(namespace, method, path, body).expect("the server can be reached")
    }

    fn try_request(
        &self,
        namespace: Option<&str>,
        method: &str,
        path: &str,
        body: Value,
    ) -> Result<(u16, Value), ureq::Error> {
        let mut request = http::Request::builder()
            .method(method)
            .uri(format!("{}/v1/{path}", self.address()))
            .header("X-Vault-Token", &self.root_token);
        if let Some(namespace) = namespace {
            request = request.header("X-Vault-Namespace", namespace);
        }
        let mut response = match body {
            Value::Null => self.agent.run(request.body(())?)?,
            body => self.agent.run(request.body(body.to_string())?)?,
        };
        let status = response.status().as_u16();
        let text = response.body_mut().read_to_string()?;
        Ok((status, serde_json::from_str(&text).unwrap_or(Value::Null)))
    }

    /// Sends a request with the root token, as [`OpenBao::request_in`] does, and gives the body of the
    /// answer.
    ///
    /// # Panics
    ///
    /// If the server can't be reached or refuses.
    pub fn expect(&self, namespace: Option<&str>, method: &str, path: &str, body: Value) -> Value {
        let (status, answer) = self.request_in(namespace, method, path, body);
        assert!(matches!(status, 200 | 204), "{method} {path}: status {status}: {answer}");
        answer
    }

    /// Mounts a KV engine of version 2, and waits until it can be used.
    ///
    /// # Panics
    ///
    /// If the server refuses.
    pub fn mount_kv(&self, mount: &str, namespace: Option<&str>) {
        let engine = json!({ "type": "kv", "options": { "version": "2" } });
        self.expect(namespace, "POST", &format!("sys/mounts/{mount}"), engine);
        // The engine is set up in the background and answers 400 until then.
        wait_for("the KV engine", || {
            self.request_in(namespace, "GET", &format!("{mount}/config"), Value::Null).0 == 200
        });
    }

    /// Mounts a Transit engine.
    ///
    /// # Panics
    ///
    /// If the server refuses.
    pub fn mount_transit(&self, mount: &str, namespace: Option<&str>) {
        self.expect(
            namespace,
            "POST",
            &format!("sys/mounts/{mount}"),
            json!({ "type": "transit" }),
        );
    }

    /// Makes a key of the Transit engine at `transit/`, with these settings (`{}` for a key of type
    /// aes256-gcm96 that is not derived).
    ///
    /// # Panics
    ///
    /// If the server refuses.
    pub fn transit_key(&self, name: &str, settings: Value) {
        self.expect(None, "POST", &format!("transit/keys/{name}"), settings);
    }

    /// Writes a version of the secret `secret/<path>` with the field `key`, and tells its number.
    ///
    /// # Panics
    ///
    /// If the server refuses.
    pub fn kv_put(&self, path: &str, key: &str) -> u32 {
        self.kv_put_in(None, path, json!({ "key": key }))
    }

    /// Writes a version of the secret `secret/<path>` with any fields in a namespace, and tells its
    /// number.
    ///
    /// # Panics
    ///
    /// If the server refuses.
    pub fn kv_put_in(&self, namespace: Option<&str>, path: &str, fields: Value) -> u32 {
        let path = format!("secret/data/{path}");
        let answer = self.expect(namespace, "POST", &path, json!({ "data": fields }));
        let version = answer["data"]["version"].as_u64().and_then(|v| u32::try_from(v).ok());
        version.expect("a write answers with the version")
    }

    /// Makes a policy from its text.
    ///
    /// # Panics
    ///
    /// If the server refuses.
    pub fn policy(&self, name: &str, text: &str) {
        self.expect(None, "POST", &format!("sys/policies/acl/{name}"), json!({ "policy": text }));
    }

    /// Makes a token with these policies that lives for `ttl` (such as `"1h"`).
    ///
    /// # Panics
    ///
    /// If the server refuses.
    #[must_use]
    pub fn token(&self, policies: &[&str], ttl: &str) -> String {
        self.token_with(None, json!({ "policies": policies, "ttl": ttl, "renewable": false }))
    }

    /// Makes a token by the parameters of `auth/token/create`, in a namespace.
    ///
    /// # Panics
    ///
    /// If the server refuses.
    #[must_use]
    pub fn token_with(&self, namespace: Option<&str>, parameters: Value) -> String {
        let answer = self.expect(namespace, "POST", "auth/token/create", parameters);
        answer["auth"]["client_token"].as_str().expect("a token is text").to_owned()
    }

    /// The tokens that a login at `mount` has given and that still live, as
    /// `auth/token/lookup-accessor` describes them, in the order in which they were given. (Batch
    /// tokens are not kept by the server, and not among them.)
    ///
    /// # Panics
    ///
    /// If the server refuses.
    #[must_use]
    pub fn tokens_of(&self, mount: &str) -> Vec<Value> {
        let accessors = self.expect(None, "LIST", "auth/token/accessors", Value::Null);
        let accessors = accessors["data"]["keys"].as_array().expect("accessors are listed");
        let path = format!("auth/{mount}/login");
        let mut tokens: Vec<_> = accessors
            .iter()
            .map(|accessor| {
                let body = json!({ "accessor": accessor });
                // One that has ended since it was listed is not found.
                self.request("POST", "auth/token/lookup-accessor", body).1["data"].take()
            })
            .filter(|token| token["path"] == path)
            .collect();
        tokens.sort_by_key(|token| token["creation_time"].as_u64());
        tokens
    }

    /// Revokes a token.
    ///
    /// # Panics
    ///
    /// If the server refuses.
    pub fn revoke(&self, token: &str) {
        self.expect(None, "POST", "auth/token/revoke", json!({ "token": token }));
    }

    /// Makes a role of the login `approle/` whose tokens have these policies and live for
    /// `token_ttl`: its role id and a secret id.
    ///
    /// # Panics
    ///
    /// If the server refuses.
    #[must_use]
    pub fn approle(&self, role: &str, policies: &[&str], token_ttl: &str) -> (String, String) {
        let settings = json!({ "token_policies": policies, "token_ttl": token_ttl });
        self.approle_with(None, role, settings)
    }

    /// The same by all the parameters of a role, in a namespace.
    ///
    /// # Panics
    ///
    /// If the server refuses.
    #[must_use]
    pub fn approle_with(
        &self,
        namespace: Option<&str>,
        role: &str,
        settings: Value,
    ) -> (String, String) {
        self.enable_auth("approle", "approle", namespace);
        let role = format!("auth/approle/role/{role}");
        self.expect(namespace, "POST", &role, settings);
        let role_id = self.expect(namespace, "GET", &format!("{role}/role-id"), Value::Null);
        let secret_id = self.expect(namespace, "POST", &format!("{role}/secret-id"), json!({}));
        let text = |value: &Value| value.as_str().expect("an id is text").to_owned();
        (text(&role_id["data"]["role_id"]), text(&secret_id["data"]["secret_id"]))
    }

    /// Mounts a login of a kind (`approle`, `jwt`, …) at `mount`, unless there is one.
    ///
    /// # Panics
    ///
    /// If the server refuses.
    pub fn enable_auth(&self, kind: &str, mount: &str, namespace: Option<&str>) {
        let mounts = self.expect(namespace, "GET", "sys/auth", Value::Null);
        if mounts["data"][format!("{mount}/")].is_null() {
            let body = json!({ "type": kind });
            self.expect(namespace, "POST", &format!("sys/auth/{mount}"), body);
        }
    }

    /// Seals the server.
    ///
    /// # Panics
    ///
    /// If the server refuses.
    pub fn seal(&self) {
        self.expect(None, "PUT", "sys/seal", Value::Null);
    }

    /// Unseals the server and waits until it serves.
    ///
    /// # Panics
    ///
    /// If the server refuses.
    pub fn unseal(&self) {
        self.expect(None, "PUT", "sys/unseal", json!({ "key": self.unseal_key }));
        wait_for("the unsealed server", || self.request("GET", "sys/health", Value::Null).0 == 200);
    }

    /// Stops the process where it is: it accepts connections and answers nothing.
    ///
    /// # Panics
    ///
    /// If the server is not running.
    pub fn pause(&self) {
        kill(self.pid(), Signal::SIGSTOP).expect("the server runs");
        // The signal stops one thread after the other.
        wait_for("the stop", || {
            let tasks = fs::read_dir(format!("/proc/{}/task", self.pid()));
            tasks.expect("the server runs").all(|task| {
                let stat = task.and_then(|task| fs::read_to_string(task.path().join("stat")));
                // The state comes after the command's name, which is in parentheses.
                stat.is_ok_and(|stat| stat.rsplit(')').next().is_some_and(|s| s.starts_with(" T")))
            })
        });
    }

    /// Lets the process go on.
    ///
    /// # Panics
    ///
    /// If the server is not running.
    pub fn resume(&self) {
        kill(self.pid(), Signal::SIGCONT).expect("the server runs");
    }

    /// Kills the process. Its data stay for [`OpenBao::restart`].
    pub fn stop(&mut self) {
        if let Some(mut process) = self.process.take() {
            // An error means that it has ended already.
            let _ = process.kill();
            let _ = process.wait();
        }
    }

    /// Starts the process again on the same port, with the same data, and unseals it.
    ///
    /// # Panics
    ///
    /// If it does not start, or keeps its data in memory.
    pub fn restart(&mut self) {
        assert!(self.tls, "a server that was started without TLS keeps its data in memory");
        self.stop();
        self.spawn();
        self.unseal();
    }

    fn spawn(&mut self) {
        let folder = self.folder.path();
        let config = folder.join("config.json");
        fs::write(&config, self.config().to_string()).expect("the folder can be written");
        let log = File::create(folder.join("log")).expect("the folder can be written");
        let errors = log.try_clone().expect("a file can be duplicated");
        let mut process = Command::new(&self.binary)
            .args(["server", "-config"])
            .arg(&config)
            .env_clear()
            .env("HOME", folder)
            .stdin(Stdio::null())
            .stdout(Stdio::from(log))
            .stderr(Stdio::from(errors))
            .spawn()
            .expect("bao can be run");
        wait_for("the server", || {
            let ended = process.try_wait().expect("a child can be asked whether it runs");
            let log = folder.join("log");
            assert!(ended.is_none(), "{}", fs::read_to_string(log).unwrap_or_default());
            self.try_request(None, "GET", "sys/seal-status", Value::Null)
                .is_ok_and(|(status, _)| status == 200)
        });
        self.process = Some(process);
    }

    fn config(&self) -> Value {
        let folder = self.folder.path();
        let storage = match self.tls {
            true => json!({ "raft": {
                "path": folder.join("data"),
                "node_id": "only",
                "performance_multiplier": 1,
            } }),
            false => json!({ "inmem": {} }),
        };
        let mut listener = json!({
            "address": format!("127.0.0.1:{}", self.port),
            "cluster_address": format!("127.0.0.1:{}", self.cluster_port),
        });
        match self.tls {
            true => {
                listener["tls_cert_file"] = json!(folder.join("server.pem"));
                listener["tls_key_file"] = json!(folder.join("server.key"));
            }
            false => listener["tls_disable"] = json!(true),
        }
        json!({
            "api_addr": self.address(),
            "cluster_addr": format!("https://127.0.0.1:{}", self.cluster_port),
            "storage": storage,
            "listener": { "tcp": listener },
        })
    }

    fn pid(&self) -> Pid {
        let id = self.process.as_ref().expect("the server was started").id();
        Pid::from_raw(i32::try_from(id).expect("a process id is an i32"))
    }
}

impl Drop for OpenBao {
    fn drop(&mut self) {
        self.stop();
    }
}

fn binary() -> Option<PathBuf> {
    if let Some(path) = env::var_os("OPENBAO_BIN") {
        return Some(path.into());
    }
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let path = env::var_os("PATH").unwrap_or_default();
    let folders = env::split_paths(&path).collect::<Vec<_>>();
    [workspace.join("build/openbao")]
        .iter()
        .chain(&folders)
        .map(|folder| folder.join("bao"))
        .find(|path| path.is_file())
}

/// The certificate (PEM) of a new certificate authority that has signed nothing: one that a server's
/// certificate must fail against.
///
/// # Panics
///
/// If the system has no random bytes.
#[must_use]
pub fn unrelated_authority() -> String {
    authority().1
}

/// A certificate authority that signs client certificates.
pub struct ClientAuthority {
    issuer: Issuer<'static, KeyPair>,
    certificate: String,
}

impl ClientAuthority {
    /// A new one.
    ///
    /// # Panics
    ///
    /// If the system has no random bytes.
    #[must_use]
    pub fn new() -> Self {
        let (issuer, certificate) = authority();
        Self { issuer, certificate }
    }

    /// Its certificate (PEM).
    #[must_use]
    pub fn certificate(&self) -> &str {
        &self.certificate
    }

    /// Signs a client certificate with this common name: it and its private key, both in PEM.
    ///
    /// # Panics
    ///
    /// If the system has no random bytes.
    #[must_use]
    pub fn sign(&self, common_name: &str) -> (String, String) {
        let mut params = CertificateParams::new(Vec::new()).expect("no names are valid names");
        params.distinguished_name.push(DnType::CommonName, common_name);
        params.extended_key_usages.push(ExtendedKeyUsagePurpose::ClientAuth);
        let key = KeyPair::generate().expect("the system has random bytes");
        let certificate = params.signed_by(&key, &self.issuer).expect("it can be signed");
        (certificate.pem(), key.serialize_pem())
    }
}

impl Default for ClientAuthority {
    fn default() -> Self {
        Self::new()
    }
}

/// An issuer of JSON Web Tokens (RFC 7519), signed with ECDSA on P-256 (ES256 of RFC 7518).
pub struct JwtIssuer(KeyPair);

impl JwtIssuer {
    /// One with a new key.
    ///
    /// # Panics
    ///
    /// If the system has no random bytes.
    #[must_use]
    pub fn new() -> Self {
        Self(KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).expect("the system has random bytes"))
    }

    /// The key to verify its tokens with (PEM).
    #[must_use]
    pub fn public_key(&self) -> String {
        self.0.public_key_pem()
    }

    /// Signs a token with these claims.
    ///
    /// # Panics
    ///
    /// If it can't be signed.
    #[must_use]
    pub fn sign(&self, claims: &Value) -> String {
        let encode = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        let header = json!({ "alg": "ES256", "typ": "JWT" }).to_string();
        let text =
            format!("{}.{}", encode(header.as_bytes()), encode(claims.to_string().as_bytes()));
        let signature = self.0.sign(text.as_bytes()).expect("a text can be signed");
        format!("{text}.{}", encode(&fixed_length(&signature)))
    }
}

/// The two numbers of an ECDSA signature (ASN.1: a sequence of two integers) with 32 bytes each, as
/// section 3.4 of RFC 7518 wants them.
fn fixed_length(signature: &[u8]) -> Vec<u8> {
    let mut rest = &signature[2..];
    let mut fixed = Vec::new();
    for _ in 0..2 {
        let len = usize::from(rest[1]);
        // Without the zero that keeps the number from being negative.
        let number = rest[2..2 + len].iter().copied().skip_while(|byte| *byte == 0);
        let number: Vec<_> = number.collect();
        fixed.resize(fixed.len() + 32 - number.len(), 0);
        fixed.extend(number);
        rest = &rest[2 + len..];
    }
    fixed
}

impl Default for JwtIssuer {
    fn default() -> Self {
        Self::new()
    }
}

pub(crate) fn authority() -> (Issuer<'static, KeyPair>, String) {
    let mut params = CertificateParams::new(Vec::new()).expect("no names are valid names");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, "test authority");
    let key = KeyPair::generate().expect("the system has random bytes");
    let certificate = params.self_signed(&key).expect("a certificate can be signed").pem();
    (Issuer::new(params, key), certificate)
}

/// The authority's certificate, and a server's that it has signed.
pub(crate) fn write_certificates(folder: &Path) -> Issuer<'static, KeyPair> {
    let (issuer, ca) = authority();
    fs::write(folder.join("ca.pem"), ca).expect("the folder can be written");
    write_server_certificate(folder, &issuer, None);
    issuer
}

fn write_server_certificate(
    folder: &Path,
    issuer: &Issuer<'static, KeyPair>,
    ends: Option<SystemTime>,
) {
    let names = vec!["127.0.0.1".to_owned(), "localhost".to_owned()];
    let mut params = CertificateParams::new(names).expect("the names are valid");
    if let Some(ends) = ends {
        let since_1970 = ends.duration_since(UNIX_EPOCH).expect("it ends after 1970");
        params.not_after = date_time_ymd(1970, 1, 1) + since_1970;
    }
    let key = KeyPair::generate().expect("the system has random bytes");
    let certificate = params.signed_by(&key, issuer).expect("a certificate can be signed");
    let files = [("server.pem", certificate.pem()), ("server.key", key.serialize_pem())];
    for (name, contents) in files {
        fs::write(folder.join(name), contents).expect("the folder can be written");
    }
}

pub(crate) fn agent_that_trusts(ca_file: &Path) -> Agent {
    let pem = fs::read(ca_file).expect("the certificate was written");
    let certificates = parse_pem(&pem).filter_map(|item| match item {
        Ok(PemItem::Certificate(certificate)) => Some(certificate),
        _ => None,
    });
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = TlsConfig::builder()
        .root_certs(RootCerts::from(certificates))
        .unversioned_rustls_crypto_provider(provider);
    agent(tls.build())
}

pub(crate) fn agent(tls: TlsConfig) -> Agent {
    Agent::config_builder()
        .tls_config(tls)
        .proxy(None)
        .http_status_as_error(false)
        .allow_non_standard_methods(true)
        .timeout_global(Some(Duration::from_secs(20)))
        // A connection must not outlive a server that is stopped.
        .max_idle_connections(0)
        .build()
        .into()
}
