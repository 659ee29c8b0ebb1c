//! TLS, for all providers that speak it: how the certificates of servers are checked, which one is shown to
//! them, and until when both are good.
//!
//! The checking is the library's: against the authorities in a CA file, or the system's if there is none.
//! Nothing switches it off. What a handshake has shown is only looked at when it is over.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::client::danger::ServerCertVerifier;
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{CertificateError, ClientConfig, ClientConnection, RootCertStore};
use rustls_platform_verifier::Verifier;
use x509_parser::certificate::X509CertificateParser;
use x509_parser::nom::Parser;

use crate::provider::{Certificates, ProviderError, ProviderErrorKind};
use crate::watched::{self, Stamp};

/// The files, in PEM, of a TLS client certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    /// The certificate, and those between it and the authority.
    pub(crate) certificate_file: PathBuf,
    /// Its private key.
    pub(crate) key_file: PathBuf,
}

/// The files that TLS is set up from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Files<'a> {
    /// The certificates (PEM) of the authorities that may sign the server's; the system's if there
    /// is none.
    pub(crate) ca_file: Option<&'a Path>,
    /// The certificate to show.
    pub(crate) identity: Option<&'a Identity>,
}

/// The states of the files that TLS was set up with.
pub(crate) type Stamps = [Option<Stamp>; 3];

impl Files<'_> {
    pub(crate) fn stamps(&self) -> Stamps {
        [
            self.ca_file,
            self.identity.map(|identity| identity.certificate_file.as_path()),
            self.identity.map(|identity| identity.key_file.as_path()),
        ]
        .map(|file| file.and_then(watched::stamp))
    }

    /// Reads the files.
    pub(crate) fn load(&self, seen: &Seen) -> Result<Loaded, ProviderError> {
        let verifier = match self.ca_file {
            None => None,
            Some(path) => {
                let mut roots = RootCertStore::empty();
                roots.add_parsable_certificates(read_certificates(path, "CA")?);
                let verifier =
                    WebPkiServerVerifier::builder_with_provider(Arc::new(roots), library())
                        .build()
                        .map_err(|_| {
                            let file = path.display();
                            unusable(&format!("CA file \"{file}\" has no usable certificates"))
                        })?;
                Some(verifier)
            }
        };
        let identity = match self.identity {
            None => None,
            Some(identity) => {
                let identity = identity.load()?;
                seen.note_client(&identity);
                Some(Arc::new(SingleCertAndKey::from(identity)))
            }
        };
        Ok(Loaded { verifier, identity })
    }
}

/// What the files have.
pub(crate) struct Loaded {
    verifier: Option<Arc<WebPkiServerVerifier>>,
    identity: Option<Arc<SingleCertAndKey>>,
}

impl Loaded {
    /// What a connection is made with. Sessions aren't resumed, so that each handshake shows the certificate
    /// that the server has now.
    ///
    /// # Errors
    ///
    /// If the system's authorities are needed and can't be had.
    pub(crate) fn config(&self) -> Result<ClientConfig, rustls::Error> {
        let verifier: Arc<dyn ServerCertVerifier> = match &self.verifier {
            Some(verifier) => Arc::clone(verifier) as _,
            None => Arc::new(Verifier::new(library())?),
        };
        let builder = ClientConfig::builder_with_provider(library())
            .with_safe_default_protocol_versions()?
            // Says how certificates are checked, not that they aren't.
            .dangerous()
            .with_custom_certificate_verifier(verifier);
        let mut config = match &self.identity {
            None => builder.with_no_client_auth(),
            Some(identity) => builder.with_client_cert_resolver(Arc::clone(identity) as _),
        };
        config.resumption = Resumption::disabled();
        Ok(config)
    }
}

/// The cryptography that TLS is made of.
fn library() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn unusable(what: &str) -> ProviderError {
    ProviderError::new(ProviderErrorKind::Configuration, what)
}

impl Identity {
    /// Reads the files. One that can't be used is a login that fails, and not a setting that is wrong:
    /// what replaces the files may be at it just now.
    fn load(&self) -> Result<CertifiedKey, ProviderError> {
        let failed = |error| ProviderError { kind: ProviderErrorKind::LoginFailed, ..error };
        let certificates =
            read_certificates(&self.certificate_file, "client certificate").map_err(failed)?;
        let (key, _) = watched::read(&self.key_file, "client key").map_err(failed)?;
        let key = PrivateKeyDer::from_pem_slice(&key)
            .map_err(|_| self.unusable_key("has no private key in PEM without a password"))?;
        let certificate = self.certificate_file.display();
        // This also looks whether they belong together.
        CertifiedKey::from_der(certificates, key, &library()).map_err(|error| match error {
            // One file may have been replaced a moment before the other.
            rustls::Error::InconsistentKeys(_) => self
                .unusable_key(&format!("is not that of the certificate in \"{certificate}\""))
                .transient(),
            _ => self.unusable_key(&format!("can't be used with \"{certificate}\"")),
        })
    }

    fn unusable_key(&self, what: &str) -> ProviderError {
        ProviderError::new(
            ProviderErrorKind::LoginFailed,
            format!("client key file \"{}\" {what}", self.key_file.display()),
        )
    }
}

fn read_certificates(
    path: &Path,
    what: &str,
) -> Result<Vec<CertificateDer<'static>>, ProviderError> {
    let (contents, _) = watched::read(path, what)?;
    CertificateDer::pem_slice_iter(&contents)
        .collect::<Result<Vec<_>, _>>()
        .ok()
        .filter(|certificates| !certificates.is_empty())
        .ok_or_else(|| {
            let file = path.display();
            unusable(&format!("{what} file \"{file}\" has no certificates in PEM"))
        })
}

/// What was seen of certificates, by the threads of calls too.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen(Arc<Mutex<Certificates>>);

impl Seen {
    pub(crate) fn certificates(&self) -> Certificates {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut Certificates)) {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn note_client(&self, key: &CertifiedKey) {
        let ends = key.end_entity_cert().ok().and_then(ends);
        self.change(|seen| seen.client_expires = ends);
    }

    /// Takes notice of the certificate that the server has shown in a handshake which is over.
    pub(crate) fn note_handshake(&self, connection: &ClientConnection) {
        let shown = connection.peer_certificates().and_then(|chain| chain.first());
        let ends = shown.and_then(ends);
        self.change(|seen| seen.server_expires = ends);
    }

    /// Takes notice of why a handshake failed, if it is that a certificate has ended.
    pub(crate) fn note_failure(&self, error: &io::Error) {
        if let Some(rustls::Error::InvalidCertificate(CertificateError::ExpiredContext {
            not_after,
            ..
        })) = error.get_ref().and_then(|error| error.downcast_ref())
        {
            let ended = UNIX_EPOCH.checked_add(Duration::from_secs(not_after.as_secs()));
            self.change(|seen| seen.server_expires = ended);
        }
    }
}

/// The last second of a certificate's validity (RFC 5280, section 4.1.2.5). `None` of what can't be read,
/// and has been accepted all the same.
fn ends(certificate: &CertificateDer<'_>) -> Option<SystemTime> {
    let mut parser = X509CertificateParser::new().with_deep_parse_extensions(false);
    let (_, parsed) = parser.parse(certificate).ok()?;
    let seconds = u64::try_from(parsed.validity().not_after.timestamp()).ok()?;
    UNIX_EPOCH.checked_add(Duration::from_secs(seconds))
}

/// The error of a handshake.
pub(crate) fn error(error: &rustls::Error, service: &str, address: &str) -> ProviderError {
    let unreachable = |message| ProviderError::new(ProviderErrorKind::Unreachable, message);
    match error {
        rustls::Error::InvalidCertificate(why) => unreachable(format!(
            "the certificate of {service} at \"{address}\" is not valid: {why}"
        ))
        .with_hint(
            "The CA file must have the certificate of the authority that signed the server's, and \
             the address the name that the server's is for.",
        ),
        // Other variants may quote what the peer sent.
        _ => unreachable(format!("could not make a TLS connection to {service} at \"{address}\""))
            .with_hint(
                "Check the address, whether the server speaks TLS 1.2 or 1.3 there, and whether it \
                 wants another client certificate.",
            ),
    }
}
