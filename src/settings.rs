//! Every setting (GUC), each with its documentation.
//!
//! What could redirect the extension to other keys or weaken it is for superusers. No setting
//! holds a secret: those are in files, and settings name the files.

use std::ffi::{CStr, CString};
use std::path::PathBuf;
use std::time::Duration;

use envelope::KeyName;
use keyring::configured::{Configured, ProviderKind};
use pgrx::guc::{GucContext, GucEnum, GucFlags, GucRegistry, GucSetting, PostgresGucEnum};
use pgrx::pg_sys;

use crate::audit::Level;
use crate::errors::Error;
use crate::session;

/// `GUC_ALLOW_IN_PARALLEL` of `src/include/utils/guc.h`, by number because older minor versions lack
/// it. A session may load the library in the middle of a parallel query. With this flag PostgreSQL
/// then takes the settings over from its configuration; without it, it drops them with a warning.
const ALLOW_IN_PARALLEL: GucFlags = GucFlags::from_bits_retain(if cfg!(feature = "pg14") {
    0x20_0000
} else if cfg!(feature = "pg15") {
    0x40_0000
} else {
    0x8000
});

type Text = GucSetting<Option<CString>>;
type Integer = GucSetting<i32>;

/// As what output and `send` show values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PostgresGucEnum)]
pub(crate) enum Form {
    /// As their plaintexts.
    #[name = c"plain"]
    Plain,
    /// As ciphertext in text form.
    #[name = c"armor"]
    Armor,
}

/// What input and `recv` take armor for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PostgresGucEnum)]
pub(crate) enum Input {
    /// For a mistake.
    #[name = c"plain"]
    Plain,
    /// For ciphertext.
    #[name = c"auto"]
    Auto,
}

/// What output and `send` do about a value that the current user may not decrypt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PostgresGucEnum)]
pub(crate) enum Denied {
    /// Fail.
    #[name = c"error"]
    Error,
    /// Show its ciphertext.
    #[name = c"armor"]
    Armor,
}

static OUTPUT: GucSetting<Form> = GucSetting::<Form>::new(Form::Plain);
static INPUT: GucSetting<Input> = GucSetting::<Input>::new(Input::Plain);
static ON_DENIED: GucSetting<Denied> = GucSetting::<Denied>::new(Denied::Error);
static AUDIT: GucSetting<Level> = GucSetting::<Level>::new(Level::Off);
static PROVIDER: Text = Text::new(Some(c""));
static DEFAULT_KEY: Text = Text::new(Some(c""));
static PROVIDER_FILE: Text = Text::new(Some(c""));
static PROVIDER_CONNECT_TIMEOUT: Integer = Integer::new(1000);
static PROVIDER_TIMEOUT: Integer = Integer::new(5000);
static CACHE_TTL: Integer = Integer::new(3600);
static CACHE_STALE_GRACE: Integer = Integer::new(4 * 3600);
static CACHE_CAPACITY: Integer = Integer::new(1000);
static SHARED_CACHE_SIZE: Integer = Integer::new(1000);
static WARM_UP: GucSetting<bool> = GucSetting::<bool>::new(true);

/// A setting of providers of one kind, or of two that reach the same server.
struct ProviderSetting {
    /// The setting's name.
    name: &'static CStr,
    short: &'static CStr,
    long: &'static CStr,
    kinds: &'static [ProviderKind],
    /// What the provider calls it.
    field: &'static str,
    /// Whether the empty text says something, rather than that nothing is set.
    may_be_empty: bool,
    value: Text,
}

impl ProviderSetting {
    const fn new(
        kinds: &'static [ProviderKind],
        field: &'static str,
        name: &'static CStr,
        short: &'static CStr,
        long: &'static CStr,
    ) -> Self {
        let value = Text::new(Some(c""));
        Self { name, short, long, kinds, field, may_be_empty: false, value }
    }

    const fn default(mut self, default: &'static CStr) -> Self {
        self.value = Text::new(Some(default));
        self
    }

    const fn or_empty(mut self) -> Self {
        self.may_be_empty = true;
        self
    }
}

static PROVIDER_SETTINGS: [ProviderSetting; 49] = {
    use ProviderKind::{
        AwsKms, AzureKeyVault, Command, File, GcpKms, Kmip, Pkcs11, Vault, VaultTransit,
    };
    const SERVER: &[ProviderKind] = &[Vault, VaultTransit];

    [
        ProviderSetting::new(
            &[File],
            "path",
            c"encryption_ext.keyring_file",
            c"The keyring file of provider \"file\".",
            c"Relative to the data directory. Made by the first enc_create_key, with mode 0600.",
        )
        .default(c"encryption_ext_keyring.json"),
        ProviderSetting::new(
            SERVER,
            "address",
            c"encryption_ext.vault_address",
            c"The address of the Vault or OpenBao server.",
            c"Such as https://vault.example.com:8200. Plain http is taken for loopback addresses only.",
        ),
        ProviderSetting::new(
            SERVER,
            "namespace",
            c"encryption_ext.vault_namespace",
            c"The Vault namespace of the secrets engine and of the login.",
            c"Empty: the root namespace.",
        ),
        ProviderSetting::new(
            SERVER,
            "ca_file",
            c"encryption_ext.vault_ca_file",
            c"The certificates, in PEM, that may have signed the Vault server's.",
            c"Empty: the operating system's.",
        ),
        ProviderSetting::new(
            SERVER,
            "client_certificate_file",
            c"encryption_ext.vault_client_certificate_file",
            c"The certificate, in PEM, to show to the Vault server.",
            c"For vault_auth = \"cert\", or for a server that asks every client for one.",
        ),
        ProviderSetting::new(
            SERVER,
            "client_key_file",
            c"encryption_ext.vault_client_key_file",
            c"The private key, in PEM, of the certificate for the Vault server.",
            c"Used with vault_client_certificate_file.",
        ),
        ProviderSetting::new(
            SERVER,
            "auth",
            c"encryption_ext.vault_auth",
            c"How to log in to Vault.",
            c"\"token\", \"approle\", \"kubernetes\", \"jwt\" or \"cert\".",
        )
        .default(c"token"),
        ProviderSetting::new(
            SERVER,
            "auth_mount",
            c"encryption_ext.vault_auth_mount",
            c"Where the login method is mounted.",
            c"Empty: at the name of the method.",
        ),
        ProviderSetting::new(
            SERVER,
            "token_file",
            c"encryption_ext.vault_token_file",
            c"The file that holds the Vault token.",
            c"Used with vault_auth = \"token\". Read again when it changes, so that Vault Agent can renew it.",
        ),
        ProviderSetting::new(
            SERVER,
            "role_id_file",
            c"encryption_ext.vault_role_id_file",
            c"The file that holds the AppRole role id.",
            c"Used with vault_auth = \"approle\".",
        ),
        ProviderSetting::new(
            SERVER,
            "secret_id_file",
            c"encryption_ext.vault_secret_id_file",
            c"The file that holds the AppRole secret id.",
            c"Used with vault_auth = \"approle\".",
        ),
        ProviderSetting::new(
            SERVER,
            "role",
            c"encryption_ext.vault_role",
            c"The role to log in to Vault as.",
            c"Used with vault_auth = \"kubernetes\", \"jwt\" or \"cert\".",
        ),
        ProviderSetting::new(
            SERVER,
            "jwt_file",
            c"encryption_ext.vault_jwt_file",
            c"The file that holds the token with which the platform vouches for this server.",
            c"Used with vault_auth = \"kubernetes\" or \"jwt\". Empty: the token of the Kubernetes service account.",
        ),
        ProviderSetting::new(
            &[Vault],
            "mount",
            c"encryption_ext.vault_mount",
            c"Where the KV version 2 secrets engine is mounted.",
            c"Keys are read from <mount>/data/<path prefix>/<key name>.",
        )
        .default(c"secret"),
        ProviderSetting::new(
            &[Vault],
            "path_prefix",
            c"encryption_ext.vault_path_prefix",
            c"The path below the mount that holds the keys.",
            c"Keys are read from <mount>/data/<path prefix>/<key name>. May be empty.",
        )
        .default(c"keys")
        .or_empty(),
        ProviderSetting::new(
            &[VaultTransit],
            "mount",
            c"encryption_ext.vault_transit_mount",
            c"Where the Transit secrets engine is mounted.",
            c"Used with provider \"vault_transit\".",
        )
        .default(c"transit"),
        ProviderSetting::new(
            &[VaultTransit],
            "key",
            c"encryption_ext.vault_transit_key",
            c"The key encryption key in the Transit engine.",
            c"Used with provider \"vault_transit\".",
        ),
        ProviderSetting::new(
            &[AwsKms],
            "key_id",
            c"encryption_ext.aws_kms_key_id",
            c"The key encryption key in AWS KMS.",
            c"A key id, an ARN, or an alias as in \"alias/postgresql\".",
        ),
        ProviderSetting::new(
            &[AwsKms],
            "region",
            c"encryption_ext.aws_kms_region",
            c"The AWS region of the key encryption key.",
            c"Empty: as in the environment or the profile.",
        ),
        ProviderSetting::new(
            &[AwsKms],
            "endpoint",
            c"encryption_ext.aws_kms_endpoint",
            c"The address of AWS KMS.",
            c"Empty: the public one of the region. For VPC and FIPS endpoints.",
        ),
        ProviderSetting::new(
            &[AwsKms],
            "ca_file",
            c"encryption_ext.aws_kms_ca_file",
            c"The certificates, in PEM, that may have signed that of the AWS endpoints.",
            c"Empty: the operating system's.",
        ),
        ProviderSetting::new(
            &[AwsKms],
            "profile",
            c"encryption_ext.aws_kms_profile",
            c"The profile in the AWS credentials file.",
            c"Empty: as in the environment, or \"default\".",
        ),
        ProviderSetting::new(
            &[AwsKms],
            "credentials_file",
            c"encryption_ext.aws_kms_credentials_file",
            c"The AWS credentials file.",
            c"Empty: where AWS looks for it. Environment, container and instance metadata are asked as well.",
        ),
        ProviderSetting::new(
            &[AwsKms],
            "role_arn",
            c"encryption_ext.aws_kms_role_arn",
            c"The AWS role to assume with a web identity token.",
            c"Used with aws_kms_web_identity_token_file. Empty: as in the environment.",
        ),
        ProviderSetting::new(
            &[AwsKms],
            "web_identity_token_file",
            c"encryption_ext.aws_kms_web_identity_token_file",
            c"The file that holds the web identity token.",
            c"Used with aws_kms_role_arn. Empty: as in the environment.",
        ),
        ProviderSetting::new(
            &[GcpKms],
            "key",
            c"encryption_ext.gcp_kms_key",
            c"The key encryption key in Google Cloud KMS.",
            c"As in projects/p/locations/l/keyRings/r/cryptoKeys/k.",
        ),
        ProviderSetting::new(
            &[GcpKms],
            "endpoint",
            c"encryption_ext.gcp_kms_endpoint",
            c"The address of Google Cloud KMS.",
            c"Empty: the public one.",
        ),
        ProviderSetting::new(
            &[GcpKms],
            "ca_file",
            c"encryption_ext.gcp_kms_ca_file",
            c"The certificates, in PEM, that may have signed that of the Google endpoints.",
            c"Empty: the operating system's.",
        ),
        ProviderSetting::new(
            &[GcpKms],
            "credentials_file",
            c"encryption_ext.gcp_kms_credentials_file",
            c"The file with the service account key or the workload identity configuration.",
            c"Empty: as in the environment, or the metadata server.",
        ),
        ProviderSetting::new(
            &[AzureKeyVault],
            "address",
            c"encryption_ext.azure_key_vault_address",
            c"The address of the Azure Key Vault or managed HSM.",
            c"As in https://name.vault.azure.net.",
        ),
        ProviderSetting::new(
            &[AzureKeyVault],
            "key",
            c"encryption_ext.azure_key_vault_key",
            c"The key encryption key in Azure Key Vault.",
            c"A name, or name/version. Without a version, the current one wraps.",
        ),
        ProviderSetting::new(
            &[AzureKeyVault],
            "algorithm",
            c"encryption_ext.azure_key_vault_algorithm",
            c"How Azure Key Vault wraps keys.",
            c"\"RSA-OAEP-256\" or \"A256KW\".",
        )
        .default(c"RSA-OAEP-256"),
        ProviderSetting::new(
            &[AzureKeyVault],
            "tenant_id",
            c"encryption_ext.azure_key_vault_tenant_id",
            c"The tenant to log in to.",
            c"Empty: as in the environment.",
        ),
        ProviderSetting::new(
            &[AzureKeyVault],
            "client_id",
            c"encryption_ext.azure_key_vault_client_id",
            c"The application or managed identity to log in as.",
            c"Empty: as in the environment, or the identity of the machine.",
        ),
        ProviderSetting::new(
            &[AzureKeyVault],
            "client_secret_file",
            c"encryption_ext.azure_key_vault_client_secret_file",
            c"The file that holds the client secret of the application.",
            c"Empty: log in by workload identity or managed identity.",
        ),
        ProviderSetting::new(
            &[AzureKeyVault],
            "federated_token_file",
            c"encryption_ext.azure_key_vault_federated_token_file",
            c"The file that holds the token of the workload identity.",
            c"Empty: as in the environment.",
        ),
        ProviderSetting::new(
            &[AzureKeyVault],
            "authority",
            c"encryption_ext.azure_key_vault_authority",
            c"The address of Microsoft Entra ID.",
            c"Empty: as in the environment, or the public one.",
        ),
        ProviderSetting::new(
            &[AzureKeyVault],
            "ca_file",
            c"encryption_ext.azure_key_vault_ca_file",
            c"The certificates, in PEM, that may have signed that of the Azure endpoints.",
            c"Empty: the operating system's.",
        ),
        ProviderSetting::new(
            &[Pkcs11],
            "module",
            c"encryption_ext.pkcs11_module",
            c"The PKCS#11 library of the hardware security module.",
            c"An absolute path. The library is loaded into the session's process.",
        ),
        ProviderSetting::new(
            &[Pkcs11],
            "token_label",
            c"encryption_ext.pkcs11_token_label",
            c"The label of the PKCS#11 token.",
            c"Used with provider \"pkcs11\".",
        ),
        ProviderSetting::new(
            &[Pkcs11],
            "pin_file",
            c"encryption_ext.pkcs11_pin_file",
            c"The file that holds the user PIN of the PKCS#11 token.",
            c"A PIN that was refused is not tried again until the file changes.",
        ),
        ProviderSetting::new(
            &[Pkcs11],
            "key_label",
            c"encryption_ext.pkcs11_key_label",
            c"The label of the key encryption key in the PKCS#11 token.",
            c"Used with provider \"pkcs11\".",
        ),
        ProviderSetting::new(
            &[Pkcs11],
            "mechanism",
            c"encryption_ext.pkcs11_mechanism",
            c"How the PKCS#11 token wraps keys.",
            c"\"aes-gcm\", \"aes-key-wrap\" or \"rsa-oaep\".",
        )
        .default(c"aes-gcm"),
        ProviderSetting::new(
            &[Kmip],
            "address",
            c"encryption_ext.kmip_address",
            c"The host and port of the KMIP server.",
            c"As in kmip.example.com:5696.",
        ),
        ProviderSetting::new(
            &[Kmip],
            "ca_file",
            c"encryption_ext.kmip_ca_file",
            c"The certificates, in PEM, that may have signed the KMIP server's.",
            c"Empty: the operating system's.",
        ),
        ProviderSetting::new(
            &[Kmip],
            "client_certificate_file",
            c"encryption_ext.kmip_client_certificate_file",
            c"The certificate, in PEM, to show to the KMIP server.",
            c"It is the login.",
        ),
        ProviderSetting::new(
            &[Kmip],
            "client_key_file",
            c"encryption_ext.kmip_client_key_file",
            c"The private key, in PEM, of the certificate for the KMIP server.",
            c"Used with kmip_client_certificate_file.",
        ),
        ProviderSetting::new(
            &[Kmip],
            "name_prefix",
            c"encryption_ext.kmip_name_prefix",
            c"What the names of keys in the KMIP server begin with.",
            c"Keys are named <prefix><key name>.<version>.",
        ),
        ProviderSetting::new(
            &[Command],
            "command",
            c"encryption_ext.command",
            c"The program that prints keys, with its arguments.",
            c"%n is the key's name and %v its version. It is run without a shell.",
        ),
    ]
};

/// Defines the settings. Called once, when the library is loaded.
///
/// # Errors
///
/// If the session has tried to set what only a superuser may.
pub(crate) fn define() -> Result<(), Error> {
    refuse_startup_options()?;
    define_choice(
        c"encryption_ext.output",
        c"Shows encrypted values as their plaintexts or as armor, which is ciphertext as text.",
        c"Logical decoding and pg_dump get armor whatever this says.",
        &OUTPUT,
    );
    define_choice(
        c"encryption_ext.input",
        c"Refuses armor in place of a plaintext, or takes it as ciphertext.",
        c"Taken from superusers and from roles that may decrypt. A dump that is restored needs no setting.",
        &INPUT,
    );
    define_choice(
        c"encryption_ext.on_denied",
        c"What a role that may not decrypt gets instead of a plaintext: an error, or armor.",
        c"For roles that make backups.",
        &ON_DENIED,
    );
    define_text(
        c"encryption_ext.provider",
        c"Where the versions of keys made from now on come from.",
        c"file, vault, vault_transit, aws_kms, gcp_kms, azure_key_vault, pkcs11, kmip, command, or a name in provider_file. Each version remembers its own provider. Empty: none, and no key can be made.",
        &PROVIDER,
        GucFlags::empty(),
    );
    define_text(
        c"encryption_ext.default_key",
        c"The key of encrypted columns that are declared without one.",
        c"Empty: such columns are refused.",
        &DEFAULT_KEY,
        GucFlags::empty(),
    );
    define_text(
        c"encryption_ext.provider_file",
        c"The JSON file of further providers, each under a name of its own.",
        c"Relative to the data directory. Empty: there are none. It belongs to this server, not to the database.",
        &PROVIDER_FILE,
        GucFlags::SUPERUSER_ONLY,
    );
    for setting in &PROVIDER_SETTINGS {
        let ProviderSetting { name, short, long, value, .. } = setting;
        define_text(name, short, long, value, GucFlags::SUPERUSER_ONLY);
    }
    define_integer(
        c"encryption_ext.provider_connect_timeout",
        c"How long a connection to a key server may take to be made.",
        c"",
        &PROVIDER_CONNECT_TIMEOUT,
        10..=60_000,
        GucFlags::UNIT_MS,
    );
    define_integer(
        c"encryption_ext.provider_timeout",
        c"How long a request to a key provider may take in all.",
        c"Connection, login and retries included.",
        &PROVIDER_TIMEOUT,
        10..=600_000,
        GucFlags::UNIT_MS,
    );
    define_integer(
        c"encryption_ext.cache_ttl",
        c"How long a session uses a key before it fetches it again.",
        c"A statement never loses a key that it has begun to use.",
        &CACHE_TTL,
        1..=7 * 24 * 3600,
        GucFlags::UNIT_S,
    );
    define_integer(
        c"encryption_ext.cache_stale_grace",
        c"How much longer a session uses a key while its provider is out of reach.",
        c"A provider that answers no ends the use of the key at the end of cache_ttl. 0: no longer.",
        &CACHE_STALE_GRACE,
        0..=7 * 24 * 3600,
        GucFlags::UNIT_S,
    );
    define_integer(
        c"encryption_ext.cache_capacity",
        c"How many key versions a session keeps in memory.",
        c"The least recently used goes first.",
        &CACHE_CAPACITY,
        1..=1_000_000,
        GucFlags::empty(),
    );
    GucRegistry::define_int_guc(
        c"encryption_ext.shared_cache_size",
        c"How many key versions the sessions of the server share.",
        c"With the library in shared_preload_libraries; the least recently used goes first. 0: none.",
        &SHARED_CACHE_SIZE,
        0,
        100_000,
        // Without the preload it says nothing, and there is no server start that it could wait for.
        if session::is_preloading() { GucContext::Postmaster } else { GucContext::Sighup },
        ALLOW_IN_PARALLEL,
    );
    GucRegistry::define_bool_guc(
        c"encryption_ext.warm_up",
        c"Fetches all versions that decrypt into the shared cache, and not only those that sessions use.",
        c"When the server starts, as a standby too, and again at half of each cache_ttl.",
        &WARM_UP,
        GucContext::Sighup,
        ALLOW_IN_PARALLEL,
    );
    GucRegistry::define_enum_guc(
        c"encryption_ext.audit",
        c"What the server log is told of the use of keys, as JSON.",
        c"\"keys\": changes of keys and grants. \"denied\": denials, too. \"access\": what statements decrypt and encrypt, too.",
        &AUDIT,
        GucContext::Suset,
        ALLOW_IN_PARALLEL,
    );
    reserve_prefix();
    Ok(())
}

/// The settings that anyone may change.
const FOR_EVERYBODY: [&str; 3] =
    ["encryption_ext.output", "encryption_ext.input", "encryption_ext.on_denied"];

/// Refuses settings in the options of a connection, if they are a superuser's. PostgreSQL keeps any
/// value until the library is loaded, and drops then what the role may not set: but together with what
/// the configuration has, which such an option has taken the place of, so that the default would be
/// left (`define_custom_variable` of `src/backend/utils/misc/guc.c`).
fn refuse_startup_options() -> Result<(), Error> {
    // SAFETY: the server's own array of settings, whose names are NUL-terminated.
    let settings = unsafe {
        #[cfg(any(feature = "pg14", feature = "pg15"))]
        let (settings, count) = (pg_sys::get_guc_variables(), pg_sys::GetNumConfigOptions());
        #[cfg(not(any(feature = "pg14", feature = "pg15")))]
        let (settings, count) = {
            let mut count = 0;
            (pg_sys::get_guc_variables(&raw mut count), count)
        };
        std::slice::from_raw_parts(settings, usize::try_from(count).unwrap_or(0))
    };
    for &setting in settings {
        // SAFETY: as above.
        let (setting, name) = unsafe { (&*setting, CStr::from_ptr((*setting).name)) };
        let name = name.to_string_lossy().to_ascii_lowercase();
        if name.starts_with("encryption_ext.")
            && setting.flags & pg_sys::GUC_CUSTOM_PLACEHOLDER as i32 != 0
            && setting.reset_source == pg_sys::GucSource::PGC_S_CLIENT
            && setting.reset_scontext == pg_sys::GucContext::PGC_BACKEND
            && !FOR_EVERYBODY.contains(&name.as_str())
        {
            return Err(Error::SettingInOptions { setting: name });
        }
    }
    Ok(())
}

/// A setting that anyone may change, since it gives nothing that they couldn't have anyway.
fn define_choice<T: GucEnum>(
    name: &'static CStr,
    short: &'static CStr,
    long: &'static CStr,
    setting: &'static GucSetting<T>,
) {
    GucRegistry::define_enum_guc(
        name,
        short,
        long,
        setting,
        GucContext::Userset,
        ALLOW_IN_PARALLEL,
    );
}

fn define_text(
    name: &'static CStr,
    short: &'static CStr,
    long: &'static CStr,
    setting: &'static Text,
    flags: GucFlags,
) {
    let flags = flags | ALLOW_IN_PARALLEL;
    GucRegistry::define_string_guc(name, short, long, setting, GucContext::Suset, flags);
}

fn define_integer(
    name: &'static CStr,
    short: &'static CStr,
    long: &'static CStr,
    setting: &'static Integer,
    range: std::ops::RangeInclusive<i32>,
    flags: GucFlags,
) {
    GucRegistry::define_int_guc(
        name,
        short,
        long,
        setting,
        *range.start(),
        *range.end(),
        GucContext::Suset,
        flags | ALLOW_IN_PARALLEL,
    );
}

/// From here on a misspelt setting of this extension is reported instead of silently kept.
fn reserve_prefix() {
    // SAFETY: the prefix is a NUL-terminated string; called from _PG_init.
    #[cfg(feature = "pg14")]
    unsafe {
        pg_sys::EmitWarningsOnPlaceholders(c"encryption_ext".as_ptr());
    }
    // SAFETY: as above.
    #[cfg(not(feature = "pg14"))]
    unsafe {
        pg_sys::MarkGUCPrefixReserved(c"encryption_ext".as_ptr());
    }
}

fn text(setting: &Text) -> String {
    setting.get().map(|text| text.to_string_lossy().into_owned()).unwrap_or_default()
}

fn optional(setting: &Text) -> Option<String> {
    Some(text(setting)).filter(|text| !text.is_empty())
}

fn milliseconds(setting: &Integer) -> Duration {
    Duration::from_millis(setting.get().unsigned_abs().into())
}

/// As what values are shown.
pub(crate) fn output() -> Form {
    OUTPUT.get()
}

/// What armor in input is taken for.
pub(crate) fn input() -> Input {
    INPUT.get()
}

/// What a role gets that may not decrypt.
pub(crate) fn on_denied() -> Denied {
    ON_DENIED.get()
}

/// The provider of new versions, or `None` if none is configured.
pub(crate) fn provider() -> Option<String> {
    optional(&PROVIDER)
}

/// The key of columns declared without one.
///
/// # Errors
///
/// If it is not a key's name.
pub(crate) fn default_key() -> Result<Option<KeyName>, Error> {
    optional(&DEFAULT_KEY)
        .map(|name| {
            KeyName::parse(&name).map_err(|why| Error::SettingInvalid {
                setting: "encryption_ext.default_key",
                why: format!("it is not a key name because {why}"),
            })
        })
        .transpose()
}

/// The file of further providers, if one is set.
pub(crate) fn provider_file() -> Option<PathBuf> {
    optional(&PROVIDER_FILE).map(|path| data_directory().join(path))
}

/// The one provider of a kind that the settings describe.
pub(crate) fn configured(kind: ProviderKind) -> Configured {
    let settings = PROVIDER_SETTINGS.iter().filter(|setting| setting.kinds.contains(&kind));
    let settings = settings
        .map(|setting| (setting.field.to_owned(), text(&setting.value), setting.may_be_empty))
        .filter(|(_, text, may_be_empty)| *may_be_empty || !text.is_empty())
        .map(|(field, text, _)| (field, text))
        .collect();
    Configured { kind, settings }
}

/// A path in the settings of a provider, which is relative to the data directory.
pub(crate) fn in_data_directory(path: &str) -> String {
    data_directory().join(path).to_string_lossy().into_owned()
}

/// The data directory.
pub(crate) fn data_directory() -> PathBuf {
    // SAFETY: DataDir is set before any library is loaded and never changes.
    let path = unsafe { CStr::from_ptr(pg_sys::DataDir) };
    PathBuf::from(path.to_string_lossy().into_owned())
}

/// Time limits of a request to a provider.
pub(crate) fn request_limits() -> keyring::call::RequestLimits {
    keyring::call::RequestLimits {
        connect: milliseconds(&PROVIDER_CONNECT_TIMEOUT),
        total: milliseconds(&PROVIDER_TIMEOUT),
    }
}

/// How much is audited.
pub(crate) fn audit() -> Level {
    AUDIT.get()
}

/// How long a fetched key may be used.
pub(crate) fn cache_ttl() -> Duration {
    Duration::from_secs(CACHE_TTL.get().unsigned_abs().into())
}

/// How long past that, while its provider is out of reach.
pub(crate) fn cache_stale_grace() -> Duration {
    Duration::from_secs(CACHE_STALE_GRACE.get().unsigned_abs().into())
}

/// How many key versions may be kept.
pub(crate) fn cache_capacity() -> usize {
    usize::try_from(CACHE_CAPACITY.get()).unwrap_or(1)
}

/// How many key versions sessions share, if the library is preloaded.
pub(crate) fn shared_cache_size() -> usize {
    usize::try_from(SHARED_CACHE_SIZE.get()).unwrap_or(0)
}

/// Whether versions are fetched that no session has used yet.
pub(crate) fn warms_up() -> bool {
    WARM_UP.get()
}
