//! Addresses of servers, as an administrator writes them.

use std::net::IpAddr;

use ureq::http::Uri;
use ureq::http::uri::Scheme;

use crate::provider::{ProviderError, ProviderErrorKind};

/// The address of a server: `https://host[:port][/path]`, or `http://` with a loopback address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Address {
    /// Without a slash at the end.
    pub(crate) base: String,
    pub(crate) is_https: bool,
}

/// Takes the address in the setting with the name `field`. What is wrong with it is said without it:
/// it may have a password in it.
pub(crate) fn parse(text: &str, field: &str) -> Result<Address, ProviderError> {
    if text.is_empty() {
        return Err(configuration(format!("setting \"{field}\" is empty")).with_hint(HINT));
    }
    let malformed = || configuration(format!("setting \"{field}\" is not a URL")).with_hint(HINT);
    let uri: Uri = text.parse().map_err(|_| malformed())?;
    let (Some(scheme), Some(authority)) = (uri.scheme(), uri.authority()) else {
        return Err(malformed());
    };
    if authority.as_str().contains('@') {
        return Err(configuration(format!("setting \"{field}\" has a user name in it"))
            .with_hint("Remove everything before the \"@\". The login has settings of its own."));
    }
    if authority.host().is_empty() || authority.as_str().ends_with(':') {
        return Err(malformed());
    }
    if uri.query().is_some() || text.contains('#') {
        return Err(configuration(format!("setting \"{field}\" has a query or a fragment in it"))
            .with_hint(HINT));
    }
    let is_https = *scheme == Scheme::HTTPS;
    if !is_https && *scheme != Scheme::HTTP {
        return Err(malformed());
    }
    if !is_https && !is_loopback(authority.host()) {
        return Err(configuration(format!("setting \"{field}\" is not an https address"))
            .with_hint(
                "Keys and tokens would cross the network unencrypted. Use https://; plain http:// \
                 is for a loopback address only.",
            ));
    }
    let path = match uri.path().trim_matches('/') {
        "" => String::new(),
        path => format!("/{}", parse_path(path, field)?),
    };
    Ok(Address { base: format!("{scheme}://{authority}{path}"), is_https })
}

const HINT: &str = "It has the form https://host:port.";

/// Whether a URL's host is this machine by its very name.
pub(crate) fn is_loopback(host: &str) -> bool {
    let address = host.trim_start_matches('[').trim_end_matches(']');
    host.eq_ignore_ascii_case("localhost")
        || address.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// Takes a path whose segments need no escaping in a URL and can't lead elsewhere.
pub(crate) fn parse_path(text: &str, field: &str) -> Result<String, ProviderError> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"_.-~".contains(&b);
    let segment = |s: &str| !s.is_empty() && s != "." && s != ".." && s.bytes().all(allowed);
    if !text.split('/').all(segment) {
        return Err(configuration(format!("setting \"{field}\" is malformed")).with_hint(
            "It has one or more names of the characters A-Z, a-z, 0-9, \"_\", \".\", \"-\" and \"~\", \
             with \"/\" between them and neither at the beginning nor at the end.",
        ));
    }
    Ok(text.to_owned())
}

fn configuration(message: impl Into<String>) -> ProviderError {
    ProviderError::new(ProviderErrorKind::Configuration, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_that_can_be_used_are_taken() {
        for (text, base) in [
            ("https://vault.example:8200", "https://vault.example:8200"),
            ("https://vault.example/", "https://vault.example"),
            ("HTTPS://vault.example/v/", "https://vault.example/v"),
            ("https://[2001:db8::1]:8200", "https://[2001:db8::1]:8200"),
            ("http://127.0.0.1:8200", "http://127.0.0.1:8200"),
            ("http://127.9.9.9", "http://127.9.9.9"),
            ("http://[::1]:8200/", "http://[::1]:8200"),
            ("http://localhost:8200", "http://localhost:8200"),
        ] {
            let address = parse(text, "address").unwrap();
            assert_eq!(address.base, base);
            assert_eq!(address.is_https, base.starts_with("https"));
        }
    }

    #[test]
    fn other_addresses_are_refused_and_not_shown() {
        for text in [
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
            let error = parse(text, "address").unwrap_err();
            assert_eq!(error.kind, ProviderErrorKind::Configuration);
            assert!(error.message.contains("\"address\""));
            assert!(!format!("{error:?}").contains("hunter2"), "{error:?}");
        }
    }

    #[test]
    fn paths_stay_where_they_are() {
        for path in ["secret", "team/kv", "a.b_c-d~e"] {
            assert_eq!(parse_path(path, "mount").unwrap(), path);
        }
        for path in
            ["", "/a", "a/", "a//b", "..", "a/../b", ".", "a b", "a?b", "a%2eb", "ä", "a\r\nb"]
        {
            assert!(parse_path(path, "mount").is_err(), "{path}");
        }
    }
}
