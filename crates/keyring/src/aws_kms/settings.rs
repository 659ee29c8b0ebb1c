//! Which key of AWS KMS, where, and by whose credentials.

use std::path::PathBuf;

use serde::Deserialize;

use super::credentials::{Environment, Source};
use crate::address::{self, Address};
use crate::options::{self, configuration};
use crate::provider::ProviderError;

/// The settings of a provider `aws_kms`, as an administrator wrote them.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, default)]
pub struct AwsKmsOptions {
    /// The symmetric key that wraps new data encryption keys: its id or its ARN, or the name
    /// (`alias/…`) or the ARN of an alias.
    pub key_id: String,
    /// The region; that of the ARN in `key_id` unless it is set, or else that of `AWS_REGION` or
    /// `AWS_DEFAULT_REGION` in the environment.
    pub region: String,
    /// The address of KMS, such as that of a VPC endpoint; the region's public one unless it is set.
    pub endpoint: String,
    /// The certificates (PEM) of the authorities that may sign the server's; the system's if there
    /// is none.
    pub ca_file: String,
    /// The profile that has the access key; `default` unless it is set.
    pub profile: String,
    /// The file that has the profile, in the form of the AWS CLI's `~/.aws/credentials` or
    /// `~/.aws/config`.
    pub credentials_file: String,
    /// The ARN of the role to assume with the token in `web_identity_token_file`.
    pub role_arn: String,
    /// A file with a token (OpenID Connect) that the role trusts.
    pub web_identity_token_file: String,
}

/// Settings that can be used.
#[derive(Debug)]
pub(super) struct Settings {
    pub(super) key_id: String,
    /// What the ARNs of keys in the partition and the region begin with.
    pub(super) arn_prefix: String,
    pub(super) connection: Connection,
}

/// How to reach KMS.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) region: String,
    pub(super) endpoint: Address,
    pub(super) ca_file: Option<PathBuf>,
    /// Where the credentials are; in one of the places that the AWS SDKs look at, unless it is set.
    pub(super) source: Option<Source>,
    /// The address of the Security Token Service, if it isn't the region's public one.
    pub(super) sts_endpoint: Option<Address>,
    pub(super) environment: Environment,
}

impl Settings {
    /// Takes the settings and the environment. No file is looked at yet.
    pub(super) fn parse(options: &AwsKmsOptions) -> Result<Self, ProviderError> {
        Self::parse_in(options, Environment::of_process())
    }

    fn parse_in(options: &AwsKmsOptions, environment: Environment) -> Result<Self, ProviderError> {
        let key_id = options::required(options.key_id.clone(), "key_id")?;
        check_key_id(&key_id)?;
        let region = region(options, &key_id, &environment)?;
        let (partition, dns_suffix) = partition(&region);
        let endpoint = match options.endpoint.as_str() {
            "" => Address { base: format!("https://kms.{region}.{dns_suffix}"), is_https: true },
            endpoint => address::parse(endpoint, "endpoint")?,
        };
        let sts_endpoint = environment
            .get("AWS_ENDPOINT_URL_STS")
            .map(|address| address::parse(address, "AWS_ENDPOINT_URL_STS"))
            .transpose()?;
        Ok(Self {
            arn_prefix: format!("arn:{partition}:kms:{region}:"),
            key_id,
            connection: Connection {
                region,
                endpoint,
                ca_file: options::optional_file(options.ca_file.clone(), "ca_file")?,
                source: source(options)?,
                sts_endpoint,
                environment,
            },
        })
    }
}

fn check_key_id(text: &str) -> Result<(), ProviderError> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b":/_-".contains(&b);
    match text.len() <= 2048 && text.bytes().all(allowed) {
        true => Ok(()),
        false => Err(configuration("setting \"key_id\" is malformed")
            .with_hint("It is a key's id or ARN, or the name (alias/...) or the ARN of an alias.")),
    }
}

fn region(
    options: &AwsKmsOptions,
    key_id: &str,
    environment: &Environment,
) -> Result<String, ProviderError> {
    let of_key = key_id.strip_prefix("arn:").and_then(|arn| arn.split(':').nth(2));
    let set = Some(options.region.as_str()).filter(|region| !region.is_empty());
    if set.is_some() && of_key.is_some() && set != of_key {
        return Err(configuration("setting \"key_id\" has the ARN of a key in another region")
            .with_hint("AWS KMS uses keys of its own region only. Correct one of the settings."));
    }
    let region = set
        .or(of_key)
        .or_else(|| environment.get("AWS_REGION"))
        .or_else(|| environment.get("AWS_DEFAULT_REGION"))
        .ok_or_else(|| {
            configuration("setting \"region\" is not set")
                .with_hint("Set it, or give \"key_id\" as an ARN, which has the region in it.")
        })?;
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    match matches!(region.len(), 3..=64) && region.bytes().all(allowed) {
        true => Ok(region.to_owned()),
        false => Err(configuration("setting \"region\" is malformed")
            .with_hint("It has a form such as eu-central-1.")),
    }
}

/// The partition of AWS that a region is in, and what its domain names end with.
fn partition(region: &str) -> (&'static str, &'static str) {
    const OTHERS: [(&str, &str, &str); 7] = [
        ("cn-", "aws-cn", "amazonaws.com.cn"),
        ("us-gov-", "aws-us-gov", "amazonaws.com"),
        ("eusc-", "aws-eusc", "amazonaws.eu"),
        ("us-iso-", "aws-iso", "c2s.ic.gov"),
        ("us-isob-", "aws-iso-b", "sc2s.sgov.gov"),
        ("eu-isoe-", "aws-iso-e", "cloud.adc-e.uk"),
        ("us-isof-", "aws-iso-f", "csp.hci.ic.gov"),
    ];
    let other = OTHERS.into_iter().find(|(prefix, ..)| region.starts_with(prefix));
    other.map_or(("aws", "amazonaws.com"), |(_, partition, suffix)| (partition, suffix))
}

fn source(options: &AwsKmsOptions) -> Result<Option<Source>, ProviderError> {
    let file = options::optional_file(options.credentials_file.clone(), "credentials_file")?;
    let profile = options::optional(options.profile.clone());
    let role_arn = options::optional(options.role_arn.clone());
    let token_file =
        options::optional_file(options.web_identity_token_file.clone(), "web_identity_token_file")?;
    match (file, profile, role_arn, token_file) {
        (None, None, None, None) => Ok(None),
        (None, None, Some(role_arn), Some(token_file)) => {
            Ok(Some(Source::WebIdentity { role_arn, token_file }))
        }
        (file, profile, None, None) => Ok(Some(Source::Profile { profile, file })),
        (None, None, ..) => Err(configuration(
            "settings \"role_arn\" and \"web_identity_token_file\" belong together",
        )),
        _ => Err(configuration(
            "settings \"profile\" and \"credentials_file\" don't go with \"role_arn\" and \
             \"web_identity_token_file\"",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::provider::ProviderErrorKind;

    fn options() -> AwsKmsOptions {
        AwsKmsOptions {
            key_id: "alias/postgresql".to_owned(),
            region: "eu-central-1".to_owned(),
            ..AwsKmsOptions::default()
        }
    }

    fn parse(
        options: &AwsKmsOptions,
        variables: &[(&str, &str)],
    ) -> Result<Settings, ProviderError> {
        Settings::parse_in(options, Environment::of(variables))
    }

    #[track_caller]
    fn refused(options: &AwsKmsOptions) -> String {
        let error = parse(options, &[]).unwrap_err();
        assert_eq!(error.kind, ProviderErrorKind::Configuration);
        error.message
    }

    #[test]
    fn the_region_says_where_kms_is() {
        for (region, prefix, endpoint) in [
            ("eu-central-1", "arn:aws:kms:", "https://kms.eu-central-1.amazonaws.com"),
            ("us-gov-west-1", "arn:aws-us-gov:kms:", "https://kms.us-gov-west-1.amazonaws.com"),
            ("cn-north-1", "arn:aws-cn:kms:", "https://kms.cn-north-1.amazonaws.com.cn"),
            ("eusc-de-east-1", "arn:aws-eusc:kms:", "https://kms.eusc-de-east-1.amazonaws.eu"),
            ("us-isob-east-1", "arn:aws-iso-b:kms:", "https://kms.us-isob-east-1.sc2s.sgov.gov"),
        ] {
            let settings =
                parse(&AwsKmsOptions { region: region.to_owned(), ..options() }, &[]).unwrap();
            assert_eq!(settings.arn_prefix, format!("{prefix}{region}:"));
            assert_eq!(settings.connection.endpoint.base, endpoint);
        }
    }

    #[test]
    fn the_region_is_found_in_several_places() {
        let region = |key_id: &str, region: &str, variables: &[(&str, &str)]| {
            let options =
                AwsKmsOptions { key_id: key_id.to_owned(), region: region.to_owned(), ..options() };
            parse(&options, variables).map(|settings| settings.connection.region).ok()
        };
        let arn = "arn:aws:kms:eu-west-3:123456789012:key/1234";
        let variables = [("AWS_REGION", "us-east-1"), ("AWS_DEFAULT_REGION", "us-east-2")];
        assert_eq!(region("1234", "eu-west-1", &variables).as_deref(), Some("eu-west-1"));
        assert_eq!(region(arn, "", &variables).as_deref(), Some("eu-west-3"));
        assert_eq!(region("1234", "", &variables).as_deref(), Some("us-east-1"));
        assert_eq!(region("1234", "", &variables[1..]).as_deref(), Some("us-east-2"));
        assert_eq!(region("1234", "", &[]), None);
        assert_eq!(region(arn, "eu-west-1", &[]), None);
        assert_eq!(region("1234", "eu-west-1.example.com/", &[]), None);
    }

    #[test]
    fn what_is_wrong_is_told() {
        let with = |change: &dyn Fn(&mut AwsKmsOptions)| {
            let mut options = options();
            change(&mut options);
            refused(&options)
        };
        assert!(with(&|o| o.key_id.clear()).contains("\"key_id\" is not set"));
        assert!(with(&|o| o.key_id = "alias/a b".to_owned()).contains("\"key_id\""));
        assert!(with(&|o| o.endpoint = "http://kms.example".to_owned()).contains("\"endpoint\""));
        assert!(with(&|o| o.ca_file = "ca.pem".to_owned()).contains("\"ca_file\""));
        assert!(with(&|o| o.credentials_file = "a".to_owned()).contains("\"credentials_file\""));
        assert!(with(&|o| o.role_arn = "arn:aws:iam::1:role/r".to_owned()).contains("together"));
        assert!(with(&|o| o.web_identity_token_file = "/t".to_owned()).contains("together"));
        let both = with(&|o| {
            o.role_arn = "arn:aws:iam::1:role/r".to_owned();
            o.web_identity_token_file = "/t".to_owned();
            o.profile = "p".to_owned();
        });
        assert!(both.contains("don't go with"));
    }
}
