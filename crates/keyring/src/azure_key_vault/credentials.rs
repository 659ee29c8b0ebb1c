//! Access tokens of the Microsoft identity platform, and where they come from:
//!
//! | source | how a token is had |
//! | --- | --- |
//! | client secret | "Microsoft identity platform and the OAuth 2.0 client credentials flow", first case |
//! | workload identity | the same, third case: a token that Kubernetes or another identity provider issued |
//! | managed identity of App Service, Container Apps or Functions | "How to use managed identities for App Service and Azure Functions", REST protocol |
//! | managed identity of a virtual machine | "How to use managed identities for Azure resources on an Azure VM to acquire an access token" |
//!
//! The environment variables are those that Microsoft's own libraries read.

use std::path::PathBuf;

use ureq::http::Request as HttpRequest;
use ureq::http::Uri;
use zeroize::Zeroizing;

use super::AzureKeyVaultOptions;
use crate::address;
use crate::http::{self, Transport};
use crate::oauth::{self, AccessToken, TokenSource, login_failed};
use crate::options::{self, configuration};
use crate::provider::{ProviderError, ProviderErrorKind};
use crate::watched;

const DEFAULT_AUTHORITY: &str = "https://login.microsoftonline.com";

/// The Instance Metadata Service, the same on every virtual machine.
const MACHINE: &str = "http://169.254.169.254";

/// The federated token is a client's assertion (RFC 7523).
const ASSERTION_TYPE: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";

/// What gives out tokens, and what for.
pub(super) struct Source {
    way: Way,
    /// For which service: "https://vault.azure.net".
    resource: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Way {
    /// An application's secret, in a file.
    Secret { application: Application, file: PathBuf },
    /// A token of another identity provider that an application trusts, in a file that something
    /// else (Kubernetes) replaces before it expires.
    Federated { application: Application, file: PathBuf },
    /// The identity of an app, at the address and with the header's value from the environment.
    App { address: String, header: Zeroizing<String>, client_id: Option<String> },
    /// The identity of the virtual machine.
    Machine { address: String, client_id: Option<String> },
}

/// An application that is registered with a tenant.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Application {
    token_address: String,
    client_id: String,
}

impl Source {
    /// Takes the source from the settings, or else from the environment.
    pub(super) fn choose(
        options: &AzureKeyVaultOptions,
        resource: &'static str,
        environment: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, ProviderError> {
        let in_environment = |name| environment(name).filter(|value| !value.is_empty());
        let set_or = |setting: &String, name| {
            options::optional(setting.clone()).or_else(|| in_environment(name)).unwrap_or_default()
        };
        let secret_file =
            options::optional_file(options.client_secret_file.clone(), "client_secret_file")?;
        let token_file =
            options::optional_file(options.federated_token_file.clone(), "federated_token_file")?;
        if secret_file.is_some() && token_file.is_some() {
            return Err(configuration(
                "only one of settings \"client_secret_file\" and \"federated_token_file\" can be set",
            ));
        }
        let client_id = set_or(&options.client_id, "AZURE_CLIENT_ID");
        let application = || -> Result<Application, ProviderError> {
            let tenant_id = set_or(&options.tenant_id, "AZURE_TENANT_ID");
            let tenant_id = identifier(options::required(tenant_id, "tenant_id")?, "tenant_id")?;
            let authority = set_or(&options.authority, "AZURE_AUTHORITY_HOST");
            Ok(Application {
                token_address: format!(
                    "{}/{tenant_id}/oauth2/v2.0/token",
                    parse_authority(&authority)?
                ),
                client_id: identifier(
                    options::required(client_id.clone(), "client_id")?,
                    "client_id",
                )?,
            })
        };
        let token_file =
            token_file.or_else(|| in_environment("AZURE_FEDERATED_TOKEN_FILE").map(PathBuf::from));
        let way = match (secret_file, token_file) {
            (Some(file), _) => Way::Secret { application: application()?, file },
            (None, Some(file)) => Way::Federated { application: application()?, file },
            (None, None) => {
                let client_id = options::optional(client_id)
                    .map(|client_id| identifier(client_id, "client_id"))
                    .transpose()?;
                match (in_environment("IDENTITY_ENDPOINT"), in_environment("IDENTITY_HEADER")) {
                    (Some(address), Some(header)) => {
                        Way::App { address, header: Zeroizing::new(header), client_id }
                    }
                    _ => Way::Machine {
                        address: in_environment("AZURE_POD_IDENTITY_AUTHORITY_HOST")
                            .unwrap_or_else(|| MACHINE.to_owned()),
                        client_id,
                    },
                }
            }
        };
        Ok(Self { way, resource })
    }
}

impl TokenSource for Source {
    fn fetch(&self, transport: &Transport) -> Result<AccessToken, ProviderError> {
        match &self.way {
            Way::Secret { application, file } => {
                let (secret, _) = read_line(file, "client secret")?;
                let refusal = Refusal {
                    whose: "the identity platform refused the client secret",
                    hint: "Check the tenant id and the client id, and whether the secret is the \
                           right one (its value, not its id) and has not expired.",
                };
                let fields = [("client_secret", &**secret)];
                application.log_in(transport, self.resource, &fields, &refusal)
            }
            Way::Federated { application, file } => {
                let (token, _) = read_line(file, "federated token")?;
                let refusal = Refusal {
                    whose: "the identity platform refused the federated token",
                    hint: "Check the tenant id and the client id, and that the application has a \
                           federated credential with the token's issuer, subject and audience.",
                };
                let fields =
                    [("client_assertion_type", ASSERTION_TYPE), ("client_assertion", &**token)];
                application.log_in(transport, self.resource, &fields, &refusal)
            }
            Way::App { address, header, client_id } => {
                let uri = self.managed_identity_uri(address, "2019-08-01", client_id.as_deref());
                let uri = oauth::machine_endpoint(&uri, "the address in IDENTITY_ENDPOINT")?;
                ask_for_identity(transport, uri, "X-IDENTITY-HEADER", header)
            }
            Way::Machine { address, client_id } => {
                let address =
                    format!("{}/metadata/identity/oauth2/token", address.trim_end_matches('/'));
                let uri = self.managed_identity_uri(&address, "2018-02-01", client_id.as_deref());
                let what = "the address in AZURE_POD_IDENTITY_AUTHORITY_HOST";
                let uri = oauth::machine_endpoint(&uri, what)?;
                ask_for_identity(transport, uri, "Metadata", "true").map_err(|error| {
                    match &error.hint {
                        Some(_) => error,
                        None => error.with_hint(
                            "Outside of Azure, the settings must name a client secret or a federated \
                             token.",
                        ),
                    }
                })
            }
        }
    }

    fn describe(&self) -> String {
        match &self.way {
            Way::Secret { application, .. } => {
                format!("the client secret of application {}", application.client_id)
            }
            Way::Federated { application, .. } => {
                format!("the federated token, as application {},", application.client_id)
            }
            Way::App { .. } => "the managed identity of the app".to_owned(),
            Way::Machine { .. } => "the managed identity of the virtual machine".to_owned(),
        }
    }
}

impl Source {
    fn managed_identity_uri(
        &self,
        address: &str,
        api_version: &str,
        client_id: Option<&str>,
    ) -> String {
        let mut uri = format!("{address}?api-version={api_version}&resource=").into_bytes();
        oauth::percent_encode(self.resource, &mut uri);
        let mut uri = String::from_utf8(uri).unwrap_or_default();
        if let Some(client_id) = client_id {
            uri.push_str("&client_id=");
            uri.push_str(client_id);
        }
        uri
    }
}

impl Application {
    fn log_in(
        &self,
        transport: &Transport,
        resource: &str,
        credential: &[(&str, &str)],
        refusal: &Refusal,
    ) -> Result<AccessToken, ProviderError> {
        let uri = oauth::token_endpoint(&self.token_address, "the authority")?;
        let scope = format!("{resource}/.default");
        let mut fields = vec![
            ("grant_type", "client_credentials"),
            ("client_id", &self.client_id),
            ("scope", &scope),
        ];
        fields.extend_from_slice(credential);
        let response = transport.send(&oauth::form_request(&uri, &fields)?)?;
        oauth::read_token(&response, refusal.whose).map_err(|error| error.with_hint(refusal.hint))
    }
}

/// What is said when the identity platform answers, and gives no token.
struct Refusal {
    whose: &'static str,
    hint: &'static str,
}

/// Asks a managed identity's endpoint, which knows its callers by where they are.
fn ask_for_identity(
    transport: &Transport,
    uri: Uri,
    header: &'static str,
    value: &str,
) -> Result<AccessToken, ProviderError> {
    let request = HttpRequest::get(uri)
        .header(header, http::sensitive(value)?)
        .body(Zeroizing::default())
        .map_err(|_| login_failed("could not form a request for a managed identity's token"))?;
    let response = transport.send(&request).map_err(|error| {
        let message = format!("{error} (the managed identity's endpoint, for an access token)");
        ProviderError { message, ..error }
    })?;
    let whose = "there is no access token for a managed identity";
    oauth::read_token(&response, whose).map_err(|error| match response.status {
        // "Retry guidance": while the service is updated.
        404 | 410 => error.transient(),
        _ => error.with_hint(
            "Assign an identity to the machine; if it has several, set the client id of the one to \
             use.",
        ),
    })
}

/// What writes a file may just not have done so yet: it isn't a setting that is wrong.
fn read_line(
    path: &std::path::Path,
    what: &str,
) -> Result<(Zeroizing<String>, watched::Stamp), ProviderError> {
    watched::read_line(path, what)
        .map_err(|error| ProviderError { kind: ProviderErrorKind::LoginFailed, ..error })
}

/// The address of the identity platform, without a slash at the end. `AZURE_AUTHORITY_HOST` may
/// have no scheme.
fn parse_authority(text: &str) -> Result<String, ProviderError> {
    let text = match text {
        "" => DEFAULT_AUTHORITY.to_owned(),
        text if text.contains("://") => text.to_owned(),
        host => format!("https://{host}"),
    };
    address::parse(&text, "authority").map(|address| address.base)
}

/// The id of a tenant or an application, which goes into addresses as it is.
fn identifier(text: String, field: &str) -> Result<String, ProviderError> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b".-".contains(&byte);
    match text.len() <= 255 && text.bytes().all(allowed) && !text.starts_with('.') {
        true => Ok(text),
        false => Err(configuration(format!("setting \"{field}\" is malformed"))
            .with_hint("It is a GUID; a tenant may also be given by its domain.")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choose(options: &AzureKeyVaultOptions, environment: &[(&str, &str)]) -> Result<Way, String> {
        let find = |name: &str| {
            let found = environment.iter().find(|(key, _)| *key == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        let source = Source::choose(options, "https://vault.azure.net", find);
        source.map(|source| source.way).map_err(|error| error.message)
    }

    const WORKLOAD: [(&str, &str); 4] = [
        ("AZURE_TENANT_ID", "t"),
        ("AZURE_CLIENT_ID", "c"),
        ("AZURE_FEDERATED_TOKEN_FILE", "/token"),
        ("AZURE_AUTHORITY_HOST", "login.example/"),
    ];

    #[test]
    fn the_source_is_the_first_that_is_configured() {
        let application = |host: &str, tenant: &str, client: &str| Application {
            token_address: format!("https://{host}/{tenant}/oauth2/v2.0/token"),
            client_id: client.to_owned(),
        };
        let mut options = AzureKeyVaultOptions::default();
        let federated = Way::Federated {
            application: application("login.example", "t", "c"),
            file: "/token".into(),
        };
        assert_eq!(choose(&options, &WORKLOAD), Ok(federated));
        options.tenant_id = "contoso.com".to_owned();
        options.client_id = "me".to_owned();
        options.client_secret_file = "/secret".to_owned();
        options.authority = "https://login.microsoftonline.us/".to_owned();
        let us = application("login.microsoftonline.us", "contoso.com", "me");
        let secret = Way::Secret { application: us.clone(), file: "/secret".into() };
        assert_eq!(choose(&options, &WORKLOAD), Ok(secret));
        options.client_secret_file = String::new();
        options.federated_token_file = "/mine".to_owned();
        let federated = Way::Federated { application: us, file: "/mine".into() };
        assert_eq!(choose(&options, &WORKLOAD), Ok(federated));

        let options = AzureKeyVaultOptions::default();
        let machine = Way::Machine { address: MACHINE.to_owned(), client_id: None };
        assert_eq!(choose(&options, &[]), Ok(machine));
        let app = [("IDENTITY_ENDPOINT", "http://127.0.0.1/x"), ("IDENTITY_HEADER", "h")];
        assert_eq!(
            choose(&options, &app),
            Ok(Way::App {
                address: "http://127.0.0.1/x".to_owned(),
                header: Zeroizing::new("h".to_owned()),
                client_id: None
            })
        );
    }

    #[test]
    fn settings_that_do_not_fit_are_named() {
        let with = |change: fn(&mut AzureKeyVaultOptions)| {
            let mut options = AzureKeyVaultOptions {
                tenant_id: "t".to_owned(),
                client_id: "c".to_owned(),
                client_secret_file: "/secret".to_owned(),
                ..AzureKeyVaultOptions::default()
            };
            change(&mut options);
            choose(&options, &[]).unwrap_err()
        };
        for (message, field) in [
            (with(|options| options.tenant_id.clear()), "tenant_id"),
            (with(|options| options.tenant_id = "../x".to_owned()), "tenant_id"),
            (with(|options| options.client_id.clear()), "client_id"),
            (with(|options| options.client_id = "a&b".to_owned()), "client_id"),
            (
                with(|options| options.client_secret_file = "secret".to_owned()),
                "client_secret_file",
            ),
            (
                with(|options| options.federated_token_file = "/t".to_owned()),
                "federated_token_file",
            ),
            (with(|options| options.authority = "http://example".to_owned()), "authority"),
        ] {
            assert!(message.contains(&format!("\"{field}\"")), "{message}");
        }
    }
}
