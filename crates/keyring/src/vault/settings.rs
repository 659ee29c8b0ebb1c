//! How to reach Vault and where in it the keys are.

use serde::Deserialize;

use super::login::Auth;
use crate::address::{self, Address};
use crate::call::RequestLimits;
use crate::http::Server;
use crate::options::{self, configuration};
use crate::provider::ProviderError;
use crate::tls::Identity;

/// The settings of providers `vault` and `vault_transit`, as an administrator wrote them.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, default)]
pub struct VaultOptions {
    /// The server: `https://host[:port][/path]`, or `http://` with a loopback address.
    pub address: String,
    /// The namespace of Vault Enterprise or OpenBao, if the engine and the login are in one.
    pub namespace: String,
    /// Where the engine is mounted; slashes are allowed. [`VaultOptions::DEFAULT_KV_MOUNT`] or
    /// [`VaultOptions::DEFAULT_TRANSIT_MOUNT`] unless it is set.
    pub mount: String,
    /// The folder of the keys in the KV engine; slashes are allowed, and empty means the top.
    /// [`VaultOptions::DEFAULT_PATH_PREFIX`] unless it is set.
    pub path_prefix: Option<String>,
    /// The key encryption key in the Transit engine.
    pub key: String,
    /// The certificates (PEM) of the authorities that may sign the server's; the system's if there
    /// is none.
    pub ca_file: String,
    /// The certificate (PEM) to show to the server, for the login `cert` or because the server
    /// wants one.
    pub client_certificate_file: String,
    /// Its private key (PEM).
    pub client_key_file: String,
    /// How to log in: `token` (unless it is set), `approle`, `kubernetes`, `jwt` or `cert`.
    pub auth: String,
    /// Where the login is mounted; the name of the method unless it is set.
    pub auth_mount: String,
    /// For `token`: the file with the token, which something else (Vault Agent) renews and replaces.
    pub token_file: String,
    /// For `approle`: the file with the role id.
    pub role_id_file: String,
    /// For `approle`: the file with the secret id.
    pub secret_id_file: String,
    /// For `kubernetes`, `jwt` and `cert`: the role to log in as.
    pub role: String,
    /// For `kubernetes` and `jwt`: the file with the token that the platform issued.
    /// [`VaultOptions::DEFAULT_JWT_FILE`] unless it is set.
    pub jwt_file: String,
}

impl VaultOptions {
    /// The mount of the KV engine unless set otherwise.
    pub const DEFAULT_KV_MOUNT: &'static str = "secret";

    /// The mount of the Transit engine unless set otherwise.
    pub const DEFAULT_TRANSIT_MOUNT: &'static str = "transit";

    /// The path prefix in the KV engine unless set otherwise.
    pub const DEFAULT_PATH_PREFIX: &'static str = "keys";

    /// Where Kubernetes puts the token of a pod's service account.
    pub const DEFAULT_JWT_FILE: &'static str =
        "/var/run/secrets/kubernetes.io/serviceaccount/token";
}

/// What all engines of a server have in common.
#[derive(Clone, Debug)]
pub(crate) struct Vault {
    pub(super) address: Address,
    pub(super) namespace: Option<String>,
    pub(super) auth: Auth,
    pub(super) http: Server,
}

impl Vault {
    /// Takes what is common from the settings. No file is looked at yet.
    pub(crate) fn parse(
        options: &VaultOptions,
        limits: RequestLimits,
    ) -> Result<Self, ProviderError> {
        let address = options::required(options.address.clone(), "address")?;
        let address = address::parse(&address, "address")?;
        let namespace = options::optional(options.namespace.clone())
            .map(|namespace| address::parse_path(namespace.trim_end_matches('/'), "namespace"))
            .transpose()?;
        let ca_file = options::optional_file(options.ca_file.clone(), "ca_file")?;
        let identity = identity(options)?;
        let auth = Auth::parse(options, address.is_https && identity.is_some())?;
        let http = Server {
            service: "Vault",
            https_only: address.is_https,
            ca_file,
            identity,
            follows_redirects: true,
            authority: None,
            limits,
        };
        Ok(Self { address, namespace, auth, http })
    }
}

fn identity(options: &VaultOptions) -> Result<Option<Identity>, ProviderError> {
    let certificate = &options.client_certificate_file;
    let key = &options.client_key_file;
    match (certificate.is_empty(), key.is_empty()) {
        (true, true) => Ok(None),
        (false, false) => Ok(Some(Identity {
            certificate_file: options::required_file(
                certificate.clone(),
                "client_certificate_file",
            )?,
            key_file: options::required_file(key.clone(), "client_key_file")?,
        })),
        _ => Err(configuration(
            "settings \"client_certificate_file\" and \"client_key_file\" belong together",
        )),
    }
}

/// The mount of an engine.
pub(crate) fn mount(options: &VaultOptions, default: &str) -> Result<String, ProviderError> {
    match options.mount.as_str() {
        "" => Ok(default.to_owned()),
        mount => address::parse_path(mount, "mount"),
    }
}
