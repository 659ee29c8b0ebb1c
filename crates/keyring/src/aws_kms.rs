//! Keys wrapped by AWS KMS, the Key Management Service of Amazon Web Services.
//!
//! It is an envelope provider. KMS makes the data encryption keys (`GenerateDataKey`) and opens them
//! (`Decrypt`), each bound to its version by an encryption context; the symmetric KMS key that wraps
//! them never leaves it.
//!
//! A reference is the end of the KMS key's ARN, from the account on: `123456789012:key/mrk-1234abcd`.
//! The partition and the region are those of the settings, so that a server in another region uses the
//! replica of a multi-Region key that its own region has.
//!
//! Requests and answers are those of the "AWS Key Management Service API Reference", by the protocol
//! AWS JSON 1.1, signed with Signature Version 4.

mod answer;
mod client;
mod credentials;
mod settings;

use std::time::Instant;

use envelope::{DataKey, KeyName};

use crate::call::RequestLimits;
use crate::options::configuration;
use crate::provider::{
    self, Certificates, Finding, FoundVersion, Interrupt, MadeVersion, Provider, ProviderError,
    ProviderErrorKind, WrappedKey,
};
use crate::version::VersionId;

use answer::{KeyState, Metadata};
use client::{Action, Client, Parameters};
pub use settings::AwsKmsOptions;
use settings::Settings;

/// The largest ciphertext that KMS gives or takes, in bytes.
const MAX_WRAPPED_LEN: usize = 6144;

/// A provider that has AWS KMS wrap keys.
pub struct AwsKmsProvider {
    client: Client,
    /// The key for new wrappings: its id or its ARN, or the name or the ARN of an alias.
    key_id: String,
    /// What the ARNs of keys in this partition and region begin with.
    arn_prefix: String,
}

impl AwsKmsProvider {
    /// A provider with these settings. Nothing is sent yet. The variables of the environment that the
    /// AWS SDKs know, too, are read now.
    ///
    /// # Errors
    ///
    /// [`ProviderErrorKind::Configuration`], with the setting that is wrong.
    pub fn new(
        options: &AwsKmsOptions,
        limits: RequestLimits,
        interrupt: Box<dyn Interrupt>,
    ) -> Result<Self, ProviderError> {
        let Settings { key_id, arn_prefix, connection } = Settings::parse(options)?;
        Ok(Self { client: Client::new(connection, limits, interrupt), key_id, arn_prefix })
    }

    /// Wraps `key` under the key that the settings name.
    fn wrap(
        &mut self,
        id: &VersionId<'_>,
        key: &DataKey,
        deadline: Instant,
    ) -> Result<WrappedKey, ProviderError> {
        let parameters = Parameters::of_version(&self.key_id, id).with_plaintext(key);
        let answer = self.client.call(Action::Encrypt, parameters, deadline)?;
        answer.wrapped_key().ok_or_else(|| self.client.invalid())
    }

    /// Unwraps a key under the key that `reference` says.
    fn unwrap(
        &mut self,
        id: &VersionId<'_>,
        reference: &str,
        wrapped: Option<&[u8]>,
        deadline: Instant,
    ) -> Result<DataKey, ProviderError> {
        let wrapped = wrapped
            .filter(|wrapped| matches!(wrapped.len(), 1..=MAX_WRAPPED_LEN))
            .ok_or_else(|| {
                ProviderError::new(
                    ProviderErrorKind::WrappedKeyInvalid,
                    "there is no wrapped key of a length that AWS KMS gives",
                )
            })?;
        let arn = format!("{}{}", self.arn_prefix, check_reference(reference)?);
        let parameters = Parameters::of_version(&arn, id).with_ciphertext(wrapped);
        let answer = self.client.call(Action::Decrypt, parameters, deadline)?;
        // KMS was asked for this key and no other.
        answer
            .plaintext()
            .filter(|_| answer.reference().as_deref() == Some(reference))
            .ok_or_else(|| self.client.invalid())
    }

    /// Looks at the key for new wrappings.
    fn check_key(&mut self, deadline: Instant) -> Result<Finding, ProviderError> {
        let parameters = Parameters::of_key(&self.key_id);
        let answer = match self.client.call(Action::DescribeKey, parameters, deadline) {
            Err(error) if error.kind == ProviderErrorKind::Denied => {
                return Ok(Finding::warning(
                    "key encryption key",
                    "the policies do not allow a look at it",
                    "Allow kms:DescribeKey on the key, for its state to be told here.",
                ));
            }
            answer => answer?,
        };
        answer.metadata().ok_or_else(|| self.client.invalid())?.finding()
    }

    /// Tries what only `rewrap` needs a permission for.
    fn check_rewrap(&mut self, probe: &VersionId<'_>) -> Result<Finding, ProviderError> {
        let key = provider::generate_key()?;
        match self.wrap(probe, &key, self.client.deadline()) {
            Err(error) if error.kind == ProviderErrorKind::Denied => Ok(Finding::warning(
                "wrapping again",
                "the policies do not allow it",
                "enc_rewrap_key needs kms:Encrypt on the key. Nothing else does.",
            )),
            wrapped => {
                wrapped?;
                Ok(Finding::good("wrapping again", "the policies allow it"))
            }
        }
    }
}

impl Provider for AwsKmsProvider {
    fn discover(
        &mut self,
        _name: &KeyName,
        _known: &[&str],
    ) -> Result<Vec<FoundVersion>, ProviderError> {
        Ok(Vec::new())
    }

    fn make(&mut self, id: &VersionId<'_>) -> Result<MadeVersion, ProviderError> {
        let deadline = self.client.deadline();
        let parameters = Parameters::of_version(&self.key_id, id).with_key_spec("AES_256");
        let answer = self.client.call(Action::GenerateDataKey, parameters, deadline)?;
        let made = answer.wrapped_key().zip(answer.plaintext());
        let (WrappedKey { reference, wrapped }, key) = made.ok_or_else(|| self.client.invalid())?;
        Ok(MadeVersion { reference, wrapped: Some(wrapped), key, number: None })
    }

    fn open(
        &mut self,
        id: &VersionId<'_>,
        reference: &str,
        wrapped: Option<&[u8]>,
    ) -> Result<DataKey, ProviderError> {
        self.unwrap(id, reference, wrapped, self.client.deadline())
    }

    fn rewrap(
        &mut self,
        id: &VersionId<'_>,
        reference: &str,
        wrapped: Option<&[u8]>,
    ) -> Result<Option<WrappedKey>, ProviderError> {
        let deadline = self.client.deadline();
        let key = self.unwrap(id, reference, wrapped, deadline)?;
        self.wrap(id, &key, deadline).map(Some)
    }

    fn check(&mut self, probe: &VersionId<'_>) -> Result<Vec<Finding>, ProviderError> {
        let key = self.check_key(self.client.deadline())?;
        let mut findings = self.client.login_findings();
        findings.push(key);
        findings.push(provider::check_round_trip(self, probe, true)?);
        findings.push(self.check_rewrap(probe)?);
        Ok(findings)
    }

    fn close_connections(&mut self) {
        self.client.close_connections();
    }

    fn certificates(&self) -> Certificates {
        self.client.certificates()
    }
}

impl Metadata {
    /// Whether the key can be used.
    fn finding(&self) -> Result<Finding, ProviderError> {
        let Self { arn, state, .. } = self;
        if !self.is_symmetric || !self.encrypts {
            return Err(configuration(format!("key \"{arn}\" of AWS KMS does not wrap keys"))
                .with_hint(client::KEY_HINT));
        }
        let kind = if self.is_multi_region { "multi-Region key" } else { "key" };
        match state {
            KeyState::Enabled if self.is_of_aws => Ok(Finding::warning(
                "key encryption key",
                format!("key \"{arn}\" is enabled, and is AWS's own"),
                "Its policy can't be changed. Use a key that you manage.",
            )),
            KeyState::Enabled => {
                Ok(Finding::good("key encryption key", format!("{kind} \"{arn}\" is enabled")))
            }
            KeyState::Changing => Ok(Finding::warning(
                "key encryption key",
                format!("{kind} \"{arn}\" is being made or updated"),
                "Try again in a minute.",
            )),
            KeyState::Disabled => Err(client::disabled(arn)),
        }
    }
}

/// The end of the ARN of a key (`arn:aws:kms:eu-central-1:123456789012:key/1234abcd`), from the
/// account on.
fn reference_of(arn: &str) -> Option<&str> {
    let mut parts = arn.splitn(5, ':');
    let is_arn = parts.next() == Some("arn") && parts.nth(1) == Some("kms");
    let reference = parts.nth(1).filter(|_| is_arn)?;
    is_reference(reference).then_some(reference)
}

fn is_reference(text: &str) -> bool {
    text.split_once(":key/").is_some_and(|(account, key)| {
        account.len() == 12
            && account.bytes().all(|b| b.is_ascii_digit())
            && matches!(key.len(), 1..=128)
            && key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
    })
}

fn check_reference(text: &str) -> Result<&str, ProviderError> {
    match is_reference(text) {
        true => Ok(text),
        false => Err(configuration(format!("{text:?} is not a reference to a key of AWS KMS"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reference_is_the_end_of_an_arn() {
        for (arn, reference) in [
            ("arn:aws:kms:eu-central-1:123456789012:key/1234-ab", Some("123456789012:key/1234-ab")),
            ("arn:aws-cn:kms:cn-north-1:123456789012:key/mrk-1", Some("123456789012:key/mrk-1")),
            ("arn:aws:kms:eu-central-1:123456789012:alias/a", None),
            ("arn:aws:s3:eu-central-1:123456789012:key/1234-ab", None),
            ("arn:aws:kms:eu-central-1:12345678901:key/1234-ab", None),
            ("arn:aws:kms:eu-central-1:123456789012:key/", None),
            ("arn:aws:kms:eu-central-1:123456789012:key/a/b", None),
            ("arn:aws:kms:eu-central-1:123456789012:key/a:b", None),
            ("arn:aws:kms:eu-central-1", None),
            ("1234-ab", None),
            ("", None),
        ] {
            assert_eq!(reference_of(arn), reference, "{arn}");
        }
        assert!(check_reference("123456789012:key/mrk-1").is_ok());
        let error = check_reference("12345678901a:key/mrk-1").unwrap_err();
        assert_eq!(error.kind, ProviderErrorKind::Configuration);
    }
}
