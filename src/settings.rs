//! Every setting (GUC), each with its documentation.
//!
//! What could redirect the extension to other keys or weaken it is for superusers. No setting
//! holds a secret: those are in files, and settings name the files.

use std::ffi::{CStr, CString};
use std::path::PathBuf;
use std::time::Duration;

use envelope::KeyName;
use pgrx::guc::{GucContext, GucFlags, GucRegistry, GucSetting};
use pgrx::pg_sys;

use crate::errors::Error;

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

static PROVIDER: Text = Text::new(Some(c""));
static DEFAULT_KEY: Text = Text::new(Some(c""));
static KEYRING_FILE: Text = Text::new(Some(c"encryption_ext_keyring.json"));
static VAULT_ADDRESS: Text = Text::new(Some(c""));
static VAULT_NAMESPACE: Text = Text::new(Some(c""));
static VAULT_MOUNT: Text = Text::new(Some(c"secret"));
static VAULT_PATH_PREFIX: Text = Text::new(Some(c"keys"));
static VAULT_CA_FILE: Text = Text::new(Some(c""));
static VAULT_AUTH: Text = Text::new(Some(c"token"));
static VAULT_TOKEN_FILE: Text = Text::new(Some(c""));
static VAULT_APPROLE_MOUNT: Text = Text::new(Some(c"approle"));
static VAULT_ROLE_ID_FILE: Text = Text::new(Some(c""));
static VAULT_SECRET_ID_FILE: Text = Text::new(Some(c""));
static PROVIDER_CONNECT_TIMEOUT: Integer = Integer::new(1000);
static PROVIDER_TIMEOUT: Integer = Integer::new(5000);
static CACHE_TTL: Integer = Integer::new(3600);
static CACHE_CAPACITY: Integer = Integer::new(1000);

/// Defines the settings. Called once, when the library is loaded.
pub(crate) fn define() {
    define_text(
        c"encryption_ext.provider",
        c"Where the versions of keys made from now on come from.",
        c"\"file\" or \"vault\". Each version remembers its own provider. Empty: none, and no key can be made.",
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
        c"encryption_ext.keyring_file",
        c"The keyring file of provider \"file\".",
        c"Relative to the data directory. Made by the first enc_create_key, with mode 0600.",
        &KEYRING_FILE,
        GucFlags::SUPERUSER_ONLY,
    );
    define_text(
        c"encryption_ext.vault_address",
        c"The address of the Vault or OpenBao server.",
        c"Such as https://vault.example.com:8200. Plain http is taken for loopback addresses only.",
        &VAULT_ADDRESS,
        GucFlags::SUPERUSER_ONLY,
    );
    define_text(
        c"encryption_ext.vault_namespace",
        c"The Vault namespace of the secrets engine and of the login.",
        c"Empty: the root namespace.",
        &VAULT_NAMESPACE,
        GucFlags::SUPERUSER_ONLY,
    );
    define_text(
        c"encryption_ext.vault_mount",
        c"Where the KV version 2 secrets engine is mounted.",
        c"Keys are read from <mount>/data/<path prefix>/<key name>.",
        &VAULT_MOUNT,
        GucFlags::SUPERUSER_ONLY,
    );
    define_text(
        c"encryption_ext.vault_path_prefix",
        c"The path below the mount that holds the keys.",
        c"Keys are read from <mount>/data/<path prefix>/<key name>. May be empty.",
        &VAULT_PATH_PREFIX,
        GucFlags::SUPERUSER_ONLY,
    );
    define_text(
        c"encryption_ext.vault_ca_file",
        c"The certificates, in PEM, that may have signed the Vault server's.",
        c"Empty: the operating system's.",
        &VAULT_CA_FILE,
        GucFlags::SUPERUSER_ONLY,
    );
    define_text(
        c"encryption_ext.vault_auth",
        c"How to log in to Vault.",
        c"\"token\" (with vault_token_file) or \"approle\" (with vault_role_id_file and vault_secret_id_file).",
        &VAULT_AUTH,
        GucFlags::SUPERUSER_ONLY,
    );
    define_text(
        c"encryption_ext.vault_token_file",
        c"The file that holds the Vault token.",
        c"Read again when it changes, so that Vault Agent can renew it.",
        &VAULT_TOKEN_FILE,
        GucFlags::SUPERUSER_ONLY,
    );
    define_text(
        c"encryption_ext.vault_approle_mount",
        c"Where the AppRole login method is mounted.",
        c"Used with vault_auth = \"approle\".",
        &VAULT_APPROLE_MOUNT,
        GucFlags::SUPERUSER_ONLY,
    );
    define_text(
        c"encryption_ext.vault_role_id_file",
        c"The file that holds the AppRole role id.",
        c"Used with vault_auth = \"approle\".",
        &VAULT_ROLE_ID_FILE,
        GucFlags::SUPERUSER_ONLY,
    );
    define_text(
        c"encryption_ext.vault_secret_id_file",
        c"The file that holds the AppRole secret id.",
        c"Used with vault_auth = \"approle\".",
        &VAULT_SECRET_ID_FILE,
        GucFlags::SUPERUSER_ONLY,
    );
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
        c"encryption_ext.cache_capacity",
        c"How many key versions a session keeps in memory.",
        c"The least recently used goes first.",
        &CACHE_CAPACITY,
        1..=1_000_000,
        GucFlags::empty(),
    );
    reserve_prefix();
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

/// The keyring file of provider "file".
pub(crate) fn keyring_file() -> PathBuf {
    data_directory().join(text(&KEYRING_FILE))
}

fn data_directory() -> PathBuf {
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

/// The settings of provider "vault".
///
/// # Errors
///
/// If one that is needed is missing or unknown; the provider checks their contents.
pub(crate) fn vault() -> Result<keyring::vault::VaultOptions, Error> {
    Ok(keyring::vault::VaultOptions {
        address: required(&VAULT_ADDRESS, "encryption_ext.vault_address")?,
        namespace: optional(&VAULT_NAMESPACE),
        mount: text(&VAULT_MOUNT),
        path_prefix: text(&VAULT_PATH_PREFIX),
        ca_file: optional(&VAULT_CA_FILE).map(PathBuf::from),
        auth: vault_auth()?,
        limits: request_limits(),
    })
}

fn vault_auth() -> Result<keyring::vault::VaultAuth, Error> {
    let method = text(&VAULT_AUTH);
    match method.as_str() {
        "token" => Ok(keyring::vault::VaultAuth::TokenFile(
            required(&VAULT_TOKEN_FILE, "encryption_ext.vault_token_file")?.into(),
        )),
        "approle" => Ok(keyring::vault::VaultAuth::AppRole {
            mount: text(&VAULT_APPROLE_MOUNT),
            role_id_file: required(&VAULT_ROLE_ID_FILE, "encryption_ext.vault_role_id_file")?
                .into(),
            secret_id_file: required(&VAULT_SECRET_ID_FILE, "encryption_ext.vault_secret_id_file")?
                .into(),
        }),
        _ => Err(Error::SettingInvalid {
            setting: "encryption_ext.vault_auth",
            why: format!("{method:?} is neither \"token\" nor \"approle\""),
        }),
    }
}

fn required(setting: &Text, name: &'static str) -> Result<String, Error> {
    optional(setting)
        .ok_or(Error::SettingInvalid { setting: name, why: "it is not set".to_owned() })
}

/// How long a fetched key may be used.
pub(crate) fn cache_ttl() -> Duration {
    Duration::from_secs(CACHE_TTL.get().unsigned_abs().into())
}

/// How many key versions may be kept.
pub(crate) fn cache_capacity() -> usize {
    usize::try_from(CACHE_CAPACITY.get()).unwrap_or(1)
}
