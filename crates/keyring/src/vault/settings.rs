//! How to reach Vault and where in it the keys are.

use std::net::IpAddr;
use std::path::PathBuf;

use ureq::http::Uri;
use ureq::http::uri::Scheme;

use crate::call::RequestLimits;
use crate::provider::{ProviderError, ProviderErrorKind};

/// The settings as an administrator wrote them, before [`VaultSettings::parse`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VaultOptions {
    /// The server: `https://host[:port][/path]`, or `http://` with a loopback address.
    pub address: String,
    /// The namespace of Vault Enterprise or OpenBao, if the engine and the login are in one.
    pub namespace: Option<String>,
    /// Where the KV engine is mounted; slashes are allowed.
    pub mount: String,
    /// The folder of the keys in it; slashes are allowed, and empty means the top.
    pub path_prefix: String,
    /// The certificates (PEM) of the authorities that may sign the server's; the system's if there
    /// is none.
    pub ca_file: Option<PathBuf>,
    /// How to log in.
    pub auth: VaultAuth,
    /// How long requests may take.
    pub limits: RequestLimits,
}

impl VaultOptions {
    /// The mount unless set otherwise.
    pub const DEFAULT_MOUNT: &'static str = "secret";

    /// The path prefix unless set otherwise.
    pub const DEFAULT_PATH_PREFIX: &'static str = "keys";

    /// The mount of the AppRole login unless set otherwise.
    pub const DEFAULT_APPROLE_MOUNT: &'static str = "approle";
}

/// How to log in to Vault.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VaultAuth {
    /// By a token in a file, which something else (Vault Agent) renews and replaces.
    TokenFile(PathBuf),
    /// By a role id and a secret id, each in a file.
    AppRole {
        /// Where the login is mounted.
        mount: String,
        /// The file with the role id.
        role_id_file: PathBuf,
        /// The file with the secret id.
        secret_id_file: PathBuf,
    },
}

/// Settings that can be used.
#[derive(Clone, Debug)]
pub struct VaultSettings {
    pub(super) server: Server,
    pub(super) mount: String,
    pub(super) prefix: String,
}

/// What all engines of a server have in common.
#[derive(Clone, Debug)]
pub(super) struct Server {
    pub(super) address: Address,
    pub(super) namespace: Option<String>,
    pub(super) ca_file: Option<PathBuf>,
    pub(super) auth: VaultAuth,
    pub(super) limits: RequestLimits,
}

/// The server's address, without a slash at the end.
#[derive(Clone, Debug)]
pub(super) struct Address {
    pub(super) base: String,
    pub(super) is_https: bool,
}

impl VaultSettings {
    /// Takes settings as they were written.
    ///
    /// # Errors
    ///
    /// [`ProviderErrorKind::Configuration`], with the setting that is wrong and what it must be.
    /// No file is looked at yet.
    pub fn parse(options: VaultOptions) -> Result<Self, ProviderError> {
        let VaultOptions { address, namespace, mount, path_prefix, ca_file, mut auth, limits } =
            options;
        if limits.connect.is_zero() || limits.total.is_zero() {
            return Err(configuration("a time-out of the key provider is zero"));
        }
        match &mut auth {
            VaultAuth::TokenFile(path) => check_file(path, "token file")?,
            VaultAuth::AppRole { mount, role_id_file, secret_id_file } => {
                *mount = parse_path(mount, "AppRole mount")?;
                check_file(role_id_file, "role id file")?;
                check_file(secret_id_file, "secret id file")?;
            }
        }
        if let Some(path) = &ca_file {
            check_file(path, "CA file")?;
        }
        let prefix = match path_prefix.as_str() {
            "" => String::new(),
            prefix => parse_path(prefix, "path prefix")?,
        };
        Ok(Self {
            server: Server {
                address: parse_address(&address)?,
                namespace: namespace
                    .filter(|n| !n.is_empty())
                    .map(|n| parse_path(n.trim_end_matches('/'), "namespace"))
                    .transpose()?,
                ca_file,
                auth,
                limits,
            },
            mount: parse_path(&mount, "mount")?,
            prefix,
        })
    }
}

/// Takes a server's address. What is wrong with it is said without it: it may have a password in
/// it.
fn parse_address(text: &str) -> Result<Address, ProviderError> {
    if text.is_empty() {
        return Err(configuration("the Vault address is not set"));
    }
    let malformed = || configuration("the Vault address is not a URL").with_hint(ADDRESS_HINT);
    let uri: Uri = text.parse().map_err(|_| malformed())?;
    let (Some(scheme), Some(authority)) = (uri.scheme(), uri.authority()) else {
        return Err(malformed());
    };
    if authority.as_str().contains('@') {
        return Err(configuration("the Vault address has a user name in it")
            .with_hint("Remove everything before the \"@\". The login has settings of its own."));
    }
    if authority.host().is_empty() || authority.as_str().ends_with(':') {
        return Err(malformed());
    }
    if uri.query().is_some() || text.contains('#') {
        return Err(configuration("the Vault address has a query or a fragment in it")
            .with_hint(ADDRESS_HINT));
    }
    let is_https = *scheme == Scheme::HTTPS;
    if !is_https && *scheme != Scheme::HTTP {
        return Err(malformed());
    }
    if !is_https && !is_loopback(authority.host()) {
        return Err(configuration("the Vault address is not an https address")
            .with_hint("Keys and tokens would cross the network unencrypted. Use https://; plain http:// is for a loopback address only."));
    }
    let path = uri.path().trim_matches('/');
    let path = match path {
        "" => String::new(),
        path => format!("/{}", parse_path(path, "address's path")?),
    };
    let base = format!("{scheme}://{authority}{path}");
    Ok(Address { base, is_https })
}

const ADDRESS_HINT: &str = "It has the form https://host:port.";

/// Whether a URL's host is this machine by its very name.
pub(super) fn is_loopback(host: &str) -> bool {
    let address = host.trim_start_matches('[').trim_end_matches(']');
    host.eq_ignore_ascii_case("localhost")
        || address.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// Takes a path whose segments need no escaping in a URL and can't lead elsewhere.
fn parse_path(text: &str, what: &str) -> Result<String, ProviderError> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"_.-~".contains(&b);
    let segment = |s: &str| !s.is_empty() && s != "." && s != ".." && s.bytes().all(allowed);
    if !text.split('/').all(segment) {
        return Err(configuration(format!("the Vault {what} is malformed")).with_hint(
            "It has one or more names of the characters A-Z, a-z, 0-9, \"_\", \".\", \"-\" and \"~\", \
             with \"/\" between them and neither at the beginning nor at the end.",
        ));
    }
    Ok(text.to_owned())
}

fn check_file(path: &std::path::Path, what: &str) -> Result<(), ProviderError> {
    match path.is_absolute() {
        true => Ok(()),
        false if path.as_os_str().is_empty() => {
            Err(configuration(format!("the {what} of Vault is not set")))
        }
        false => Err(configuration(format!(
            "\"{}\" is not the absolute path of a {what}",
            path.display()
        ))),
    }
}

fn configuration(message: impl Into<String>) -> ProviderError {
    ProviderError::new(ProviderErrorKind::Configuration, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options() -> VaultOptions {
        VaultOptions {
            address: "https://vault.example:8200".to_owned(),
            namespace: None,
            mount: "secret".to_owned(),
            path_prefix: "keys".to_owned(),
            ca_file: None,
            auth: VaultAuth::TokenFile("/run/token".into()),
            limits: RequestLimits::default(),
        }
    }

    #[track_caller]
    fn refused(options: VaultOptions) -> ProviderError {
        let error = VaultSettings::parse(options).unwrap_err();
        assert_eq!(error.kind, ProviderErrorKind::Configuration);
        error
    }

    #[test]
    fn addresses_that_can_be_used_are_taken() {
        for (address, base) in [
            ("https://vault.example:8200", "https://vault.example:8200"),
            ("https://vault.example/", "https://vault.example"),
            ("HTTPS://vault.example/v/", "https://vault.example/v"),
            ("https://[2001:db8::1]:8200", "https://[2001:db8::1]:8200"),
            ("http://127.0.0.1:8200", "http://127.0.0.1:8200"),
            ("http://127.9.9.9", "http://127.9.9.9"),
            ("http://[::1]:8200/", "http://[::1]:8200"),
            ("http://localhost:8200", "http://localhost:8200"),
        ] {
            let settings =
                VaultSettings::parse(VaultOptions { address: address.to_owned(), ..options() });
            assert_eq!(settings.unwrap().server.address.base, base);
        }
    }

    #[test]
    fn other_addresses_are_refused_and_not_shown() {
        for address in [
            "",
            "vault.example",
            "vault.example:8200",
            "/v1",
            "ftp://vault.example",
            "https://",
            "https://vault.example:",
            "https://user:hunter2@vault.example",
            "https://vault.example?token=hunter2",
            "https://vault.example/#hunter2",
            "https://vault.example/../hunter2",
            "https://vault.example/a%2fb",
            "https://vault example",
            "http://vault.example:8200",
            "http://10.0.0.1",
            "http://127.0.0.1.example",
            "http://localhost.example",
            "unix:///run/vault.sock",
        ] {
            let error = refused(VaultOptions { address: address.to_owned(), ..options() });
            assert!(!format!("{error:?}").contains("hunter2"), "{error:?}");
        }
    }

    #[test]
    fn paths_stay_where_they_are() {
        for path in ["secret", "team/kv", "a.b_c-d~e"] {
            let settings = VaultSettings::parse(VaultOptions {
                mount: path.to_owned(),
                path_prefix: path.to_owned(),
                namespace: Some(path.to_owned()),
                ..options()
            });
            assert_eq!(settings.unwrap().mount, path);
        }
        for path in ["/a", "a/", "a//b", "..", "a/../b", ".", "a b", "a?b", "a%2eb", "ä", "a\r\nb"]
        {
            refused(VaultOptions { mount: path.to_owned(), ..options() });
            refused(VaultOptions { path_prefix: path.to_owned(), ..options() });
            if path != "a/" {
                refused(VaultOptions { namespace: Some(path.to_owned()), ..options() });
            }
        }
        refused(VaultOptions { mount: String::new(), ..options() });
        let top = VaultSettings::parse(VaultOptions { path_prefix: String::new(), ..options() });
        assert_eq!(top.unwrap().prefix, "");
    }

    #[test]
    fn files_and_limits_must_be_set() {
        refused(VaultOptions { auth: VaultAuth::TokenFile(PathBuf::new()), ..options() });
        refused(VaultOptions { auth: VaultAuth::TokenFile("token".into()), ..options() });
        refused(VaultOptions { ca_file: Some("ca.pem".into()), ..options() });
        let auth = VaultAuth::AppRole {
            mount: "approle".to_owned(),
            role_id_file: "/run/role".into(),
            secret_id_file: PathBuf::new(),
        };
        refused(VaultOptions { auth, ..options() });
        let zero = std::time::Duration::ZERO;
        let limits = RequestLimits { connect: zero, ..RequestLimits::default() };
        refused(VaultOptions { limits, ..options() });
    }
}
