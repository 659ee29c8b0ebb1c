//! Keys that a program prints: for stores that no other provider reaches.
//!
//! The program is run once for each version that is needed, without a shell, with the name of the key
//! and the number of the version in its arguments. It says what it found
//!
//! | exit status | standard output | |
//! | --- | --- | --- |
//! | 0 | 32 bytes in base64 (RFC 4648) or as 64 digits of base16 | the key |
//! | 3 | | there is no such key, or no such version of it |
//! | other | | it doesn't know, which is an outage |
//!
//! It is a direct provider that makes no versions: whoever runs the store does. Its references are
//! `<name>:<version>`. A run that fails is not tried again: the program knows what is worth that.

mod process;
mod redact;

use std::io;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::time::Instant;

use envelope::{DataKey, KeyName, KeyVersion};
use serde::Deserialize;
use zeroize::Zeroizing;

use crate::call::RequestLimits;
use crate::options::{self, configuration};
use crate::provider::{
    self, Finding, FoundVersion, Interrupt, KeyTextError, MadeVersion, Provider, ProviderError,
    ProviderErrorKind, WrappedKey,
};
use crate::sys;
use crate::version::VersionId;

use process::{Failure, MAX_OUTPUT_LEN, Output};

/// The exit status that says that there is no such version.
const NOT_FOUND: i32 = 3;

/// A version that no store has.
const NO_VERSION: u32 = 0x7fff_ffff;

/// The settings as an administrator wrote them.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, default)]
pub struct CommandOptions {
    /// The program, by its absolute path, and its arguments, in which `%n` is the name of the key,
    /// `%v` the number of the version and `%%` a percent sign. It is split into words as a POSIX
    /// shell does, quotes and backslashes included; nothing else of a shell is there.
    pub command: String,
}

/// A provider that runs a program.
pub struct CommandProvider {
    words: Vec<String>,
    limits: RequestLimits,
    interrupt: Box<dyn Interrupt>,
}

impl CommandProvider {
    /// A provider with these settings. `limits.total` bounds each call of its methods. Nothing is
    /// run yet.
    ///
    /// # Errors
    ///
    /// [`ProviderErrorKind::Configuration`] if the command can't be used.
    pub fn new(
        options: &CommandOptions,
        limits: RequestLimits,
        interrupt: Box<dyn Interrupt>,
    ) -> Result<Self, ProviderError> {
        Ok(Self { words: parse(&options.command)?, limits, interrupt })
    }

    fn deadline(&self) -> Instant {
        Instant::now() + self.limits.total
    }

    fn program(&self) -> &str {
        self.words.first().map_or("", String::as_str)
    }

    /// Asks for a version; `None` if there is none.
    fn ask(
        &self,
        name: &KeyName,
        number: KeyVersion,
        deadline: Instant,
    ) -> Result<Option<DataKey>, ProviderError> {
        let words = expand(&self.words, name, number);
        let output = match process::run(&words, deadline, &*self.interrupt) {
            Err(error) if error.kind == ProviderErrorKind::TimedOut => Err(Failure::TooLong),
            result => result?,
        }
        .map_err(|failure| self.failed(failure, name, number))?;
        match output.status.code() {
            Some(0) => self.key(&output.output, name, number).map(Some),
            Some(NOT_FOUND) => Ok(None),
            _ => Err(self.ended(&output, name, number)),
        }
    }

    fn key(
        &self,
        output: &[u8],
        name: &KeyName,
        number: KeyVersion,
    ) -> Result<DataKey, ProviderError> {
        let error = |kind, what: &str| {
            self.error(kind, &format!("printed {what}"), name, number).with_hint(
                "On its standard output must be 32 bytes in base64 or as 64 digits of base16, and \
                 nothing else.",
            )
        };
        let invalid = |what| error(ProviderErrorKind::AnswerInvalid, what);
        let text = std::str::from_utf8(output).map_err(|_| invalid("what is not text"))?.trim();
        if text.is_empty() {
            return Err(invalid("nothing"));
        }
        if let Some(key) = key_from_base16(text) {
            return Ok(key);
        }
        provider::key_from_base64(text).map_err(|why| match why {
            KeyTextError::NotBase64 => invalid("what is neither base64 nor base16"),
            KeyTextError::Length { bytes } => error(
                ProviderErrorKind::KeyLengthWrong,
                &format!("a key of {bytes} bytes instead of 32"),
            ),
        })
    }

    fn failed(&self, failure: Failure, name: &KeyName, number: KeyVersion) -> ProviderError {
        let program = self.program();
        match failure {
            Failure::NotStarted(error) if is_unusable(&error) => {
                configuration(format!("could not run \"{program}\": {error}")).with_hint(
                    "The setting \"command\" must begin with the absolute path of a program that \
                     the server's operating-system user can execute.",
                )
            }
            Failure::NotStarted(error) => ProviderError::new(
                ProviderErrorKind::Unreachable,
                format!("could not run \"{program}\": {error}"),
            ),
            Failure::Lost(error) => ProviderError::new(
                ProviderErrorKind::Unreachable,
                format!("could not watch command \"{program}\": {error}"),
            ),
            Failure::TooMuch => self.error(
                ProviderErrorKind::AnswerInvalid,
                &format!("printed more than {} KiB", MAX_OUTPUT_LEN / 1024),
                name,
                number,
            ),
            Failure::TooLong => {
                self.error(ProviderErrorKind::TimedOut, "did not end in time", name, number)
            }
        }
    }

    /// The program has ended, and says neither that there is a key nor that there is none.
    fn ended(&self, output: &Output, name: &KeyName, number: KeyVersion) -> ProviderError {
        let how = match (output.status.code(), output.status.signal()) {
            (Some(code), _) => format!("failed with exit status {code}"),
            (None, Some(signal)) => format!("was ended by signal {signal}"),
            (None, None) => "failed".to_owned(),
        };
        let complaint = redact::redact(&output.complaint);
        let error = self.error(ProviderErrorKind::Unreachable, &how, name, number);
        let error = match complaint.is_empty() {
            true => error,
            false => ProviderError { message: format!("{}: {complaint}", error.message), ..error },
        };
        error.with_hint(format!(
            "Run it as the server's operating-system user to see more. If it means that there is no \
             such version, it must exit with status {NOT_FOUND}."
        ))
    }

    fn error(
        &self,
        kind: ProviderErrorKind,
        what: &str,
        name: &KeyName,
        number: KeyVersion,
    ) -> ProviderError {
        let program = self.program();
        ProviderError::new(
            kind,
            format!("command \"{program}\" {what} for version {number} of key \"{name}\""),
        )
    }
}

impl Provider for CommandProvider {
    /// Asks for one version after the other, until there is none.
    fn discover(
        &mut self,
        name: &KeyName,
        known: &[&str],
    ) -> Result<Vec<FoundVersion>, ProviderError> {
        let deadline = self.deadline();
        let newest_known = known
            .iter()
            .filter_map(|reference| parse_reference(reference).ok())
            .filter_map(|(of, number)| (of == *name).then_some(number))
            .max();
        let mut found: Vec<FoundVersion> = Vec::new();
        let mut next = Some(KeyVersion::FIRST);
        while let Some(number) = next {
            next = number.next();
            let reference = reference(name, number);
            if known.contains(&reference.as_str()) {
                continue;
            }
            match self.ask(name, number, deadline)? {
                Some(key) => {
                    if let Some(same) = found.iter().find(|v| v.key.expose() == key.expose()) {
                        return Err(self.same(name, same.number, number));
                    }
                    found.push(FoundVersion { number, reference, key });
                }
                None if newest_known.is_some_and(|newest| number < newest) => {}
                None => break,
            }
        }
        Ok(found)
    }

    /// Makes nothing: there is no way to say how.
    fn make(&mut self, id: &VersionId<'_>) -> Result<MadeVersion, ProviderError> {
        let name = id.name;
        let program = self.program();
        Err(ProviderError::new(
            ProviderErrorKind::WriteDenied,
            format!("command \"{program}\" has no new version of key \"{name}\""),
        )
        .with_hint(format!(
            "Make 32 random bytes (openssl rand -base64 32) where the command looks for the next \
             version of \"{name}\", and try again. The versions of a key have the numbers 1, 2, 3 \
             and so on."
        )))
    }

    fn open(
        &mut self,
        _id: &VersionId<'_>,
        reference: &str,
        _wrapped: Option<&[u8]>,
    ) -> Result<DataKey, ProviderError> {
        let (name, number) = parse_reference(reference)?;
        self.ask(&name, number, self.deadline())?.ok_or_else(|| {
            self.error(ProviderErrorKind::VersionMissing, "has no key", &name, number).with_hint(
                "Restore the version where the command looks for it. A new one would be another \
                 key.",
            )
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
        let deadline = self.deadline();
        let name = probe.name;
        let first = self.ask(name, KeyVersion::FIRST, deadline)?;
        let missing = KeyVersion::new(NO_VERSION).unwrap_or(KeyVersion::FIRST);
        if self.ask(name, missing, deadline)?.is_some() {
            return Err(self
                .error(ProviderErrorKind::AnswerInvalid, "printed a key", name, missing)
                .with_hint(format!(
                    "There is no such version. The command must exit with status {NOT_FOUND} then."
                )));
        }
        let mut findings = vec![match first {
            Some(_) => Finding::good("reading", format!("there is a version 1 of key \"{name}\"")),
            None => Finding::good("reading", format!("there is no key \"{name}\" yet")),
        }];
        findings.push(Finding::good("writing", "new versions are made where the command looks"));
        let program = self.program();
        // What can't be looked at was run nevertheless.
        if sys::others_may_write(Path::new(program)).unwrap_or(true) {
            findings.push(Finding::warning(
                "program",
                format!("\"{program}\" can be written by others"),
                "Whoever can write it runs what they like as the server's operating-system user. It \
                 should belong to root and have mode 0755.",
            ));
        }
        Ok(findings)
    }
}

impl CommandProvider {
    /// A command that doesn't look at the version would have endlessly many.
    fn same(&self, name: &KeyName, one: KeyVersion, other: KeyVersion) -> ProviderError {
        let what = format!("printed the key of version {one}");
        self.error(ProviderErrorKind::AnswerInvalid, &what, name, other).with_hint(format!(
            "Each version has a key of its own. Of versions that there are not, the command must \
             exit with status {NOT_FOUND}."
        ))
    }
}

/// Splits the setting into words, and checks them.
fn parse(command: &str) -> Result<Vec<String>, ProviderError> {
    let command = options::required(command.to_owned(), "command")?;
    let invalid = |why: &str| {
        configuration(format!("setting \"command\" {why}")).with_hint(
            "It has the form /absolute/path/of/program arguments, with %n and %v in them.",
        )
    };
    let words =
        shlex::split(&command).ok_or_else(|| invalid("has a quote or a backslash too many"))?;
    let Some((program, arguments)) = words.split_first() else {
        return Err(invalid("has no program"));
    };
    if !program.starts_with('/') || program.contains('%') {
        return Err(invalid("does not begin with the absolute path of a program"));
    }
    if command.contains('\0') {
        return Err(invalid("has a NUL in it"));
    }
    let mut has = (false, false);
    for argument in arguments {
        let mut rest = argument.as_str();
        while let Some((_, after)) = rest.split_once('%') {
            match after.bytes().next() {
                Some(b'n') => has.0 = true,
                Some(b'v') => has.1 = true,
                Some(b'%') => {}
                _ => return Err(invalid("has a percent sign that no n, v or % follows")),
            }
            rest = &after[1..];
        }
    }
    match has {
        (true, true) => Ok(words),
        // All keys, or all versions of one, would have the same bytes.
        (false, _) => Err(invalid("has no %n, the name of the key, in an argument")),
        (_, false) => Err(invalid("has no %v, the number of the version, in an argument")),
    }
}

/// The words for one version.
fn expand(words: &[String], name: &KeyName, number: KeyVersion) -> Vec<String> {
    let number = number.to_string();
    let expand_one = |word: &String| {
        let mut result = String::with_capacity(word.len() + name.as_str().len());
        let mut rest = word.as_str();
        while let Some((before, after)) = rest.split_once('%') {
            result.push_str(before);
            result.push_str(match after.as_bytes().first() {
                Some(b'n') => name.as_str(),
                Some(b'v') => &number,
                _ => "%",
            });
            rest = after.get(1..).unwrap_or_default();
        }
        result.push_str(rest);
        result
    };
    words.iter().map(expand_one).collect()
}

/// The key that `text` says in base16, in either case.
fn key_from_base16(text: &str) -> Option<DataKey> {
    let mut bytes = Zeroizing::new([0; DataKey::LEN]);
    if text.len() != 2 * bytes.len() {
        return None;
    }
    for (byte, digits) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        let [high, low] = [digits[0], digits[1]].map(|digit| char::from(digit).to_digit(16));
        *byte = u8::try_from(high? << 4 | low?).ok()?;
    }
    Some(DataKey::new(*bytes))
}

/// Whether a program can't be started because it isn't one, rather than for lack of something.
fn is_unusable(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ENOENT | libc::ENOTDIR | libc::EACCES | libc::EISDIR | libc::ELOOP)
    )
}

/// `<name>:<version>`.
fn reference(name: &KeyName, number: KeyVersion) -> String {
    format!("{name}:{number}")
}

fn parse_reference(reference: &str) -> Result<(KeyName, KeyVersion), ProviderError> {
    let parse = |(name, number): (&str, &str)| {
        let is_canonical = !number.starts_with('0') && number.bytes().all(|b| b.is_ascii_digit());
        let number = is_canonical.then(|| number.parse().ok())??;
        Some((KeyName::parse(name).ok()?, KeyVersion::new(number)?))
    };
    reference.split_once(':').and_then(parse).ok_or_else(|| {
        configuration(format!("\"{reference}\" is not a reference to a key that a command prints"))
    })
}
