//! Keys in a key manager that speaks the Key Management Interoperability Protocol: the operations
//! Register, Locate, Get and Get Attributes of OASIS, "Key Management Interoperability Protocol
//! Specification Version 1.2", over mutual TLS.
//!
//! A version of a key is a Symmetric Key object of 256 bits for AES in the format Raw. Its attribute
//! Name is `<name prefix><key name>.<version>`, such as `postgresql/user_pii.1`. (After the last full
//! stop is the version, so no two versions have the same name.) It is a direct provider.
//!
//! Its references are `<key name>?version=<number>`: they lead to an object by its name, and not by its
//! Unique Identifier, although that takes a Locate more. A server chooses the identifiers, and a server
//! into which objects are imported from another, or from a backup of another, may choose other ones
//! (section 3.1); the name goes along. The prefix is not in it: it belongs to the settings, and two
//! servers may have the same keys under different prefixes. A server need not keep names unique; two
//! objects with the same name are an error, since nothing says which is the key.
//!
//! Servers leave out of a Locate what the client may not see. So an object that belongs to another
//! client looks the same as one that does not exist.

mod client;
mod message;
mod ttlv;

use envelope::{DataKey, KeyName, KeyVersion};
use rustls::pki_types::ServerName;
use serde::Deserialize;
use ureq::http::uri::Authority;

use crate::call::RequestLimits;
use crate::options::{self, configuration};
use crate::provider::{
    self, Certificates, Finding, FoundVersion, Interrupt, MadeVersion, Provider, ProviderError,
    ProviderErrorKind, WrappedKey,
};
use crate::tls::Identity;
use crate::version::VersionId;

use client::{Client, Refusal, SERVICE, Server, Session};
use message::{Object, Operation, ResultReason, State};

/// The longest name prefix, in bytes.
const MAX_PREFIX_LEN: usize = 128;

/// What an object must be.
const KEY_HINT: &str = "It must be a symmetric key of 256 bits for AES, which the server hands over \
                        unwrapped in the format Raw.";

/// The settings as an administrator wrote them.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, default)]
pub struct KmipOptions {
    /// `host[:port]`.
    pub address: String,
    /// The certificates (PEM) of the authorities that may sign the server's; the system's if it is
    /// empty.
    pub ca_file: String,
    /// The client certificate (PEM) to log in with, and those between it and the authority.
    pub client_certificate_file: String,
    /// Its private key (PEM).
    pub client_key_file: String,
    /// What the names of the objects begin with. May be empty.
    pub name_prefix: String,
}

impl KmipOptions {
    /// The port that is assigned to KMIP, which an address without a port means.
    pub const DEFAULT_PORT: u16 = 5696;

    fn server(&self, limits: RequestLimits) -> Result<Server, ProviderError> {
        let (host, port) = parse_address(&self.address)?;
        let name = ServerName::try_from(host.clone())
            .map_err(|_| configuration("setting \"address\" has no host name or IP address"))?;
        Ok(Server {
            host,
            port,
            name,
            ca_file: options::optional_file(self.ca_file.clone(), "ca_file")?,
            identity: Identity {
                certificate_file: options::required_file(
                    self.client_certificate_file.clone(),
                    "client_certificate_file",
                )?,
                key_file: options::required_file(self.client_key_file.clone(), "client_key_file")?,
            },
            limits,
        })
    }
}

/// Takes `host`, `host:port`, or an IPv6 address in brackets with or without a port.
fn parse_address(text: &str) -> Result<(String, u16), ProviderError> {
    let text = options::required(text.to_owned(), "address")?;
    let parse = || {
        let authority: Authority = text.parse().ok()?;
        let host = authority.host();
        let port = match text.strip_prefix(host)? {
            "" => KmipOptions::DEFAULT_PORT,
            port => parse_port(port.strip_prefix(':')?)?,
        };
        let host = host.trim_start_matches('[').trim_end_matches(']');
        (!host.is_empty()).then(|| (host.to_owned(), port))
    };
    parse().ok_or_else(|| {
        configuration("setting \"address\" is malformed").with_hint("It has the form host:port.")
    })
}

fn parse_port(text: &str) -> Option<u16> {
    let port: u16 = text.parse().ok().filter(|port| *port != 0)?;
    // No sign, no zero before it.
    (port.to_string() == text).then_some(port)
}

/// A provider that keeps keys in a KMIP server.
pub struct KmipProvider {
    client: Client,
    names: Names,
    /// The newest version that the last `discover` saw, for the `make` that follows it.
    discovered: Option<(KeyName, u32)>,
}

impl KmipProvider {
    /// A provider with these settings. Nothing is sent yet, and no file is looked at.
    ///
    /// # Errors
    ///
    /// [`ProviderErrorKind::Configuration`], with the setting that is wrong and what it must be.
    pub fn new(
        options: &KmipOptions,
        limits: RequestLimits,
        interrupt: Box<dyn Interrupt>,
    ) -> Result<Self, ProviderError> {
        let prefix = options.name_prefix.clone();
        if prefix.len() > MAX_PREFIX_LEN || !prefix.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(configuration("setting \"name_prefix\" is malformed").with_hint(format!(
                "It has at most {MAX_PREFIX_LEN} printable ASCII characters other than space."
            )));
        }
        let client = Client::new(options.server(limits)?, interrupt);
        Ok(Self { client, names: Names { prefix }, discovered: None })
    }
}

/// How objects are named.
#[derive(Clone)]
struct Names {
    prefix: String,
}

impl Names {
    fn of(&self, name: &KeyName, number: u32) -> String {
        format!("{}{name}.{number}", self.prefix)
    }
}

impl Provider for KmipProvider {
    fn discover(
        &mut self,
        name: &KeyName,
        known: &[&str],
    ) -> Result<Vec<FoundVersion>, ProviderError> {
        self.discovered = None;
        let known: Vec<u32> = known
            .iter()
            .filter_map(|reference| parse_reference(reference).ok())
            .filter_map(|(known, number)| (known == *name).then_some(number.get()))
            .collect();
        let (names, key_name) = (self.names.clone(), name.clone());
        let (found, newest) = self.client.call(self.client.deadline(), move |session| {
            discover(session, &names, &key_name, &known)
        })?;
        self.discovered = Some((name.clone(), newest));
        Ok(found)
    }

    fn make(&mut self, id: &VersionId<'_>) -> Result<MadeVersion, ProviderError> {
        let deadline = self.client.deadline();
        let newest = match self.discovered.take() {
            Some((name, newest)) if name == *id.name => newest,
            _ => {
                let (names, name) = (self.names.clone(), id.name.clone());
                self.client.call(deadline, move |session| newest_version(session, &names, &name))?
            }
        };
        // If it is tried twice, it is with the same name: the first may have been done.
        let number = next(newest)?;
        let object_name = self.names.of(id.name, number.get());
        let key = provider::generate_key()?;
        let copy = DataKey::new(*key.expose());
        self.client.call(deadline, move |session| register(session, &object_name, &copy))?;
        Ok(MadeVersion {
            reference: reference(id.name, number),
            wrapped: None,
            key,
            number: Some(number),
        })
    }

    fn open(
        &mut self,
        _id: &VersionId<'_>,
        reference: &str,
        _wrapped: Option<&[u8]>,
    ) -> Result<DataKey, ProviderError> {
        let (name, number) = parse_reference(reference)?;
        let names = self.names.clone();
        self.client.call(self.client.deadline(), move |session| {
            let object_name = names.of(&name, number.get());
            match locate(session, &object_name)? {
                None => Err(missing(session, &names, &name, number)?),
                Some(unique_identifier) => read(session, &object_name, &unique_identifier),
            }
        })
    }

    fn rewrap(
        &mut self,
        _id: &VersionId<'_>,
        _reference: &str,
        _wrapped: Option<&[u8]>,
    ) -> Result<Option<WrappedKey>, ProviderError> {
        Ok(None)
    }

    fn check(&mut self, probe: &VersionId<'_>) -> Result<Vec<Finding>, ProviderError> {
        let object_name = self.names.of(probe.name, KeyVersion::FIRST.get());
        self.client.call(self.client.deadline(), move |session| check(session, &object_name))
    }

    fn close_connections(&mut self) {
        self.client.close_connections();
    }

    fn certificates(&self) -> Certificates {
        self.client.certificates()
    }
}

/// The versions that are not among the known ones and can be read, and the number of the newest.
///
/// Names can only be asked for one by one. So it is the first number that has no object that ends the
/// search, past those that the database knows.
fn discover(
    session: &mut Session,
    names: &Names,
    name: &KeyName,
    known: &[u32],
) -> Result<(Vec<FoundVersion>, u32), ProviderError> {
    let newest_known = known.iter().copied().max().unwrap_or(0);
    let (mut found, mut newest) = (Vec::new(), 0);
    loop {
        let number = next(newest)?;
        if !known.contains(&number.get()) {
            let object_name = names.of(name, number.get());
            match locate(session, &object_name)? {
                None if number.get() > newest_known => return Ok((found, newest)),
                // Destroyed, and the ones after it are in use.
                None => {}
                Some(unique_identifier) => {
                    match state(session, &object_name, &unique_identifier)? {
                        State::Usable => found.push(FoundVersion {
                            number,
                            reference: reference(name, number),
                            key: get(session, &object_name, &unique_identifier)?,
                        }),
                        State::Deactivated | State::Compromised | State::Destroyed => {}
                    }
                }
            }
        }
        newest = number.get();
    }
}

/// The number of the newest version, or 0.
fn newest_version(
    session: &mut Session,
    names: &Names,
    name: &KeyName,
) -> Result<u32, ProviderError> {
    let mut newest = 0;
    while locate(session, &names.of(name, next(newest)?.get()))?.is_some() {
        newest += 1;
    }
    Ok(newest)
}

fn next(number: u32) -> Result<KeyVersion, ProviderError> {
    number.checked_add(1).and_then(KeyVersion::new).ok_or_else(|| {
        ProviderError::new(ProviderErrorKind::AnswerInvalid, "there is no number for a new version")
    })
}

/// Registers a key under a name that no object has.
///
/// The protocol has no way to say "unless there is one". So the name is looked up before, and again
/// after: of two who register at the same time, at least one sees both. What it registered is not
/// destroyed then, since somebody may have found it in between and taken it into use.
fn register(session: &mut Session, name: &str, key: &DataKey) -> Result<(), ProviderError> {
    let conflict = |hint: String| {
        ProviderError::new(
            ProviderErrorKind::Conflict,
            format!("somebody else has registered \"{name}\" in {SERVICE} meanwhile"),
        )
        .with_hint(hint)
    };
    let run_again = || conflict("Run the command again: it will find that version.".to_owned());
    if locate(session, name)?.is_some() {
        return Err(run_again());
    }
    let made = session.ask(Operation::Register, &message::register(name, key), |payload| {
        payload.unique_identifier()
    });
    let unique_identifier = made.map_err(|refusal| match refusal {
        Refusal::Reason(
            reason @ (ResultReason::PERMISSION_DENIED | ResultReason::OPERATION_NOT_SUPPORTED),
        ) => ProviderError {
            kind: ProviderErrorKind::WriteDenied,
            ..refused(Operation::Register, name, reason)
        }
        .with_hint(format!(
            "An administrator of the key manager must register the key, for it to be adopted: a \
             symmetric key of 256 bits for AES with the name \"{name}\"."
        )),
        Refusal::Reason(ResultReason::OBJECT_ALREADY_EXISTS) => run_again(),
        Refusal::Reason(reason) => refused(Operation::Register, name, reason),
        Refusal::Failed(error) => error,
    })?;
    match located(session, name)?.len() {
        0 | 1 => Ok(()),
        _ => Err(conflict(format!(
            "An administrator of the key manager must keep one of the objects with the name. The one \
             with the unique identifier {unique_identifier:?} was registered by this command, which \
             has not taken it into use. Then run the command again."
        ))),
    }
}

/// The unique identifier of the object with this name, if there is one.
fn locate(session: &mut Session, name: &str) -> Result<Option<String>, ProviderError> {
    let mut unique_identifiers = located(session, name)?;
    match unique_identifiers.len() {
        0 | 1 => Ok(unique_identifiers.pop()),
        _ => Err(session
            .server()
            .invalid(&format!("has more than one object with the name \"{name}\""))
            .with_hint(
                "Nothing says which of them is the key. An administrator of the key manager must \
                 take the name from those that are not.",
            )),
    }
}

/// The unique identifiers of the objects with this name: all, or the first two.
fn located(session: &mut Session, name: &str) -> Result<Vec<String>, ProviderError> {
    let operation = Operation::Locate;
    let answer =
        session.ask(operation, &message::locate(name), |payload| payload.unique_identifiers());
    match answer {
        Ok(unique_identifiers) => Ok(unique_identifiers),
        // What some servers say instead of an empty list.
        Err(Refusal::Reason(ResultReason::ITEM_NOT_FOUND)) => Ok(Vec::new()),
        Err(Refusal::Reason(reason)) => Err(refused(operation, name, reason)),
        Err(Refusal::Failed(error)) => Err(error),
    }
}

/// The key of an object that may be used.
fn read(
    session: &mut Session,
    name: &str,
    unique_identifier: &str,
) -> Result<DataKey, ProviderError> {
    match state(session, name, unique_identifier)? {
        State::Usable => get(session, name, unique_identifier),
        State::Deactivated => Err(not_to_be_used(name, "deactivated")),
        State::Compromised => Err(not_to_be_used(name, "marked as compromised")),
        State::Destroyed => Err(destroyed(name)),
    }
}

fn state(
    session: &mut Session,
    name: &str,
    unique_identifier: &str,
) -> Result<State, ProviderError> {
    let operation = Operation::GetAttributes;
    session
        .ask(operation, &message::get_state(unique_identifier), |payload| {
            payload.state(unique_identifier)
        })
        .map_err(|refusal| match refusal {
            Refusal::Reason(reason) => refused(operation, name, reason),
            Refusal::Failed(error) => error,
        })
}

fn get(
    session: &mut Session,
    name: &str,
    unique_identifier: &str,
) -> Result<DataKey, ProviderError> {
    let operation = Operation::Get;
    let object = session
        .ask(operation, &message::get(unique_identifier), |payload| {
            payload.object(unique_identifier)
        })
        .map_err(|refusal| match refusal {
            Refusal::Reason(reason) => refused(operation, name, reason),
            Refusal::Failed(error) => error,
        })?;
    let not_a_key = |kind, what: &str| {
        ProviderError::new(kind, format!("\"{name}\" in {SERVICE} {what}")).with_hint(KEY_HINT)
    };
    match object {
        Object::Key(key) => Ok(key),
        Object::KeyLength(bytes) => Err(not_a_key(
            ProviderErrorKind::KeyLengthWrong,
            &format!("has a key of {bytes} bytes instead of 32"),
        )),
        Object::Other(what) => Err(not_a_key(ProviderErrorKind::AnswerInvalid, what)),
    }
}

/// Why there is nothing to open: the version is gone, or all of the key. That is told from the
/// version's neighbours, because nothing lists the versions.
fn missing(
    session: &mut Session,
    names: &Names,
    name: &KeyName,
    number: KeyVersion,
) -> Result<ProviderError, ProviderError> {
    let number = number.get();
    let mut has_others = false;
    for other in [1, number - 1, number.saturating_add(1)] {
        if other != 0 && other != number && !has_others {
            has_others = !located(session, &names.of(name, other))?.is_empty();
        }
    }
    let object_name = names.of(name, number);
    let kind = match has_others {
        true => ProviderErrorKind::VersionMissing,
        false => ProviderErrorKind::KeyMissing,
    };
    Ok(ProviderError::new(kind, format!("there is no \"{object_name}\" in {SERVICE}")).with_hint(
        "It was destroyed or renamed, belongs to another client than that of the certificate, or the \
         settings name another key manager or prefix. A new one would be another key.",
    ))
}

fn destroyed(name: &str) -> ProviderError {
    ProviderError::new(
        ProviderErrorKind::VersionMissing,
        format!("\"{name}\" in {SERVICE} is destroyed"),
    )
    .with_hint("Restore it from a backup of the key manager. A new one would be another key.")
}

fn not_to_be_used(name: &str, what: &str) -> ProviderError {
    ProviderError::new(ProviderErrorKind::Denied, format!("\"{name}\" in {SERVICE} is {what}"))
        .with_hint(
            "No object becomes active again. If the key is to be used still, an administrator of the \
             key manager must register the same key anew, and give it the name.",
        )
}

/// What a refusal means that has no meaning of its own where it happened.
fn refused(operation: Operation, name: &str, reason: ResultReason) -> ProviderError {
    let what = operation.name();
    match reason {
        ResultReason::ITEM_NOT_FOUND | ResultReason::KEY_VALUE_NOT_PRESENT => destroyed(name),
        ResultReason::AUTHENTICATION_NOT_SUCCESSFUL => ProviderError::new(
            ProviderErrorKind::LoginFailed,
            format!("{SERVICE} does not accept the client certificate as a login"),
        )
        .with_hint(
            "The server must know the client by its certificate. Most want a common name, and the \
             extended key usage clientAuth.",
        ),
        ResultReason::PERMISSION_DENIED => ProviderError::new(
            ProviderErrorKind::Denied,
            format!("{SERVICE} does not allow {what} for \"{name}\""),
        )
        .with_hint(
            "The client of the certificate needs the operations Locate, Get and Get Attributes for \
             the objects.",
        ),
        ResultReason::OBJECT_ARCHIVED => ProviderError::new(
            ProviderErrorKind::Denied,
            format!("\"{name}\" in {SERVICE} is archived"),
        )
        .with_hint("An administrator of the key manager must recover it."),
        ResultReason::SENSITIVE | ResultReason::NOT_EXTRACTABLE => ProviderError::new(
            ProviderErrorKind::Denied,
            format!("\"{name}\" in {SERVICE} is not to leave it"),
        )
        .with_hint("Its attribute Extractable must be true, and Sensitive false."),
        ResultReason::KEY_FORMAT_TYPE_NOT_SUPPORTED => ProviderError::new(
            ProviderErrorKind::AnswerInvalid,
            format!("{SERVICE} does not hand over \"{name}\" in the format Raw"),
        )
        .with_hint(KEY_HINT),
        ResultReason::OPERATION_NOT_SUPPORTED => ProviderError::new(
            ProviderErrorKind::AnswerInvalid,
            format!("{SERVICE} does not support the operation {what}"),
        ),
        // Anything that went wrong in the server.
        ResultReason::GENERAL_FAILURE => ProviderError::new(
            ProviderErrorKind::Unreachable,
            format!("{SERVICE} failed to do {what}"),
        ),
        ResultReason(reason) => ProviderError::new(
            ProviderErrorKind::AnswerInvalid,
            format!("{SERVICE} refused {what} for \"{name}\" (result reason {reason:#04x})"),
        ),
    }
}

/// Tries what can be tried without leaving anything behind. Many servers answer a Query to anybody, so
/// it is the Locate that shows that the login is good.
fn check(session: &mut Session, name: &str) -> Result<Vec<Finding>, ProviderError> {
    let operations = session.ask(Operation::Query, &message::query(), |payload| {
        let reading = [Operation::Locate, Operation::Get, Operation::GetAttributes];
        Ok((payload.has(&reading)?, payload.has(&[Operation::Register])?))
    });
    let unique_identifier = locate(session, name)?;
    let mut findings = vec![Finding::good("login", format!("{SERVICE} accepts the certificate"))];
    findings.push(match unique_identifier {
        None => Finding::good("reading", format!("Locate is allowed, and finds no \"{name}\" yet")),
        Some(unique_identifier) => {
            read(session, name, &unique_identifier)?;
            Finding::good("reading", format!("\"{name}\" has a key"))
        }
    });
    let not_tried = "not tried: a key would be left behind";
    match operations {
        Ok((has_reading, has_writing)) => {
            if !has_reading {
                findings.push(Finding::warning(
                    "operations",
                    format!("{SERVICE} does not list Locate, Get and Get Attributes"),
                    "Without them, no key can be read.",
                ));
            }
            findings.push(match has_writing {
                true => Finding::good("writing", not_tried),
                false => Finding::good(
                    "writing",
                    "the server does not list Register: an administrator registers keys",
                ),
            });
        }
        Err(Refusal::Failed(error)) => return Err(error),
        Err(Refusal::Reason(_)) => findings.push(Finding::good("writing", not_tried)),
    }
    Ok(findings)
}

/// `<name>?version=<number>`.
fn reference(name: &KeyName, number: KeyVersion) -> String {
    format!("{name}?version={number}")
}

fn parse_reference(text: &str) -> Result<(KeyName, KeyVersion), ProviderError> {
    let parse = || {
        let (name, number) = text.split_once("?version=")?;
        let (name, number) = (KeyName::parse(name).ok()?, KeyVersion::new(number.parse().ok()?)?);
        (reference(&name, number) == text).then_some((name, number))
    };
    parse().ok_or_else(|| configuration(format!("\"{text}\" is not a reference to a key in KMIP")))
}
