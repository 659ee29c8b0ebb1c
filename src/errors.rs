//! Every error of the extension: the one place that picks SQLSTATE, message, detail and hint.
//!
//! The SQLSTATEs are in class `KE`, which the SQL standard leaves to implementations (its first
//! character is in I–Z). `docs/reference.md` has them as a table, and a test compares the two.
//!
//! Messages follow PostgreSQL's style guide: the primary message is lower-case and has no full
//! stop, detail and hint are sentences, "could not" may succeed later, "cannot" never will. They
//! name keys, versions, providers and files, never a plaintext, a key's bytes, a token or an
//! answer's body.

use std::ffi::{c_char, c_int};

use envelope::{FormatError, KeyId, KeyName, KeyNameError, KeyVersion};
use keyring::provider::{ProviderError, ProviderErrorKind, Retention};

use crate::varlena::palloc_cstring;

/// What went wrong.
#[derive(Debug)]
pub(crate) enum Error {
    // Keys: names, versions, states.
    KeyNameInvalid { name: String, why: KeyNameError },
    KeyNameReserved { name: KeyName },
    KeyUnknown { key: String },
    KeyExists { name: KeyName },
    KeyIdCollision { name: KeyName, other: String },
    KeyVersionUnknown { key: String, version: i64 },
    KeyVersionPending { key: KeyName, version: KeyVersion },
    KeyVersionDisabled { key: KeyName, version: KeyVersion },
    KeyVersionDestroyed { key: KeyName, version: KeyVersion },
    KeyWithoutActiveVersion { key: KeyName },
    KeyVersionActive { key: KeyName, version: KeyVersion },
    KeyCheckValueWrong { key: KeyName, version: KeyVersion, provider: String },
    KeyVersionsExhausted { key: KeyName },
    KeyVersionNotKept { key: KeyName, version: KeyVersion, provider: String, kept: Box<Retention> },
    KeyChangedMeanwhile { key: KeyName },
    KeyUnavailableHere { key: String },
    DigestVersionUnset,
    DigestVersionInUse { version: KeyVersion },
    KeyInfoInvalid { why: &'static str, expected: &'static str },
    RotationPeriodMissing { key: KeyName },
    KeyVersionRetained { key: KeyName, version: KeyVersion, backup: String },
    BackupUnknown { label: String },

    // Who may.
    PermissionDenied { key: KeyName, privilege: &'static str },
    NotKeyOwner { key: KeyName },
    PrivilegeUnknown { privilege: String },
    ArgumentNull { number: usize },

    // Types.
    ModifierInvalid { why: &'static str },
    WithoutKey { object: String, type_name: String },
    OrderedIndexRefused { operator_class: &'static str },
    CollationUnknown,
    NormalFormUnknown { name: String },
    NormalFormUnavailable { name: &'static str },
    DigestDomainTooLong,
    ArmorRefused,
    ArmorNotPermitted { key_id: KeyId },
    SubstituteInDefinition { key: String },
    MaskWrittenBack { key: KeyName },
    MaskInvalid { why: &'static str },
    IndexRefused { index: String, access_method: String, type_name: String },
    StatisticsRefused { statistics: String, table: String },
    PartitionKeyRefused { table: String },
    OrderStored { object: String },
    PlaintextStored { object: String },

    // Values.
    ValueTruncated,
    ValueFormatUnsupported { format: u8 },
    ValueKindUnsupported { kind: u8 },
    ValueOfOtherType { expected: &'static str },
    ValueDamaged { what: FormatError },
    ValueNotAuthentic { key: KeyName, version: KeyVersion },
    ValueTooLong,
    TextInvalid,
    TextNotInEncoding { encoding: String },
    InputNotInEncoding { encoding: String },

    // Providers.
    Provider { provider: String, key: Option<KeyName>, error: ProviderError },
    ProviderNotConfigured,
    ProviderUnknown { name: String },
    SettingInvalid { setting: &'static str, why: String },
    SettingInOptions { setting: String },

    // Jobs.
    JobUnknown { job: i64 },
    JobOfOtherKind { job: i64, kind: String, table: String, column: String },
    NotTableOwner { table: String },
    TableUnknown { table: u32 },
    ColumnUnknown { table: String, column: String },
    ColumnDropped { table: String },
    NotRotatable { table: String, column: String, why: &'static str },
    RangeUnsupported,

    // Migrations of columns. A subject is "column \"c\" of table \"t\"".
    MigrationUnsuitable { subject: String, why: String },
    MigrationBlocked { subject: String, dependents: String },
    MigrationMissing { subject: String, phase: String },
    MigrationPhase { subject: String, phase: String },
    MigrationAltered { subject: String, how: String },
    MigrationDiffers { subject: String, row: String },
    MigrationLocked { subject: String, tries: String },
    MigrationArgument { argument: String, expected: String },
    MigrationOwnerLacksKey { owner: String, key: KeyName, privilege: &'static str },
    MigrationTwoValues { subject: String },
    MigrationNameTaken { subject: String },
    MigrationColumnUnknown { subject: String },

    // The end of versions.
    ProofNeedsOwnTransaction,
    KeyVersionMayBeUsed { key: KeyName, version: KeyVersion },
    KeyVersionUsedAgain { key: KeyName, version: KeyVersion, object: String },
    KeyVersionInGrace { key: KeyName, version: KeyVersion, until: String },

    // Verification.
    NothingToVerify { table: String, column: Option<String> },

    // The extension itself.
    CatalogDamaged { what: String },
    RandomUnavailable,
    Internal { what: &'static str },
}

/// What PostgreSQL is told about an error.
struct Description {
    sqlstate: &'static str,
    message: String,
    detail: Option<String>,
    hint: Option<String>,
}

impl Description {
    fn new(sqlstate: &'static str, message: impl Into<String>) -> Self {
        Self { sqlstate, message: message.into(), detail: None, hint: None }
    }

    fn detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = Some(detail.into());
        self
    }

    fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

/// An error whose texts are in PostgreSQL's memory, ready for `ereport`: plain data, so that
/// nothing is left undone when `longjmp` passes over it.
#[derive(Clone, Copy)]
pub(crate) struct Raised {
    pub(crate) sqlstate: c_int,
    pub(crate) message: *const c_char,
    pub(crate) detail: *const c_char,
    pub(crate) hint: *const c_char,
}

/// What is called for every value returns its errors in a box: a result then fits in two registers.
impl From<Box<Error>> for Error {
    fn from(error: Box<Error>) -> Self {
        *error
    }
}

impl Error {
    /// Moves the error's texts into PostgreSQL's memory.
    pub(crate) fn raised(self) -> Raised {
        let Description { sqlstate, message, detail, hint } = self.describe();
        let optional = |text: Option<String>| match text {
            Some(text) => palloc_cstring(&text),
            None => std::ptr::null(),
        };
        Raised {
            sqlstate: encode_sqlstate(sqlstate),
            message: palloc_cstring(&message),
            detail: optional(detail),
            hint: optional(hint),
        }
    }

    /// Its SQLSTATE.
    pub(crate) fn sqlstate(&self) -> &'static str {
        self.describe().sqlstate
    }

    /// The error as a `WARNING`'s text, where a statement goes on in spite of it.
    pub(crate) fn message(&self) -> String {
        self.describe().message
    }

    /// What to do about it.
    pub(crate) fn hint(&self) -> Option<String> {
        self.describe().hint
    }

    fn describe(&self) -> Description {
        match self {
            Self::KeyNameInvalid { .. }
            | Self::KeyNameReserved { .. }
            | Self::KeyUnknown { .. }
            | Self::KeyExists { .. }
            | Self::KeyIdCollision { .. }
            | Self::KeyVersionUnknown { .. }
            | Self::KeyVersionPending { .. }
            | Self::KeyVersionDisabled { .. }
            | Self::KeyVersionDestroyed { .. }
            | Self::KeyWithoutActiveVersion { .. }
            | Self::KeyVersionActive { .. }
            | Self::KeyCheckValueWrong { .. }
            | Self::KeyVersionsExhausted { .. }
            | Self::KeyVersionNotKept { .. }
            | Self::KeyChangedMeanwhile { .. }
            | Self::KeyUnavailableHere { .. }
            | Self::DigestVersionUnset
            | Self::DigestVersionInUse { .. }
            | Self::KeyInfoInvalid { .. }
            | Self::RotationPeriodMissing { .. } => self.describe_key(),
            Self::KeyVersionRetained { .. } | Self::BackupUnknown { .. } => self.describe_backup(),
            Self::PermissionDenied { .. }
            | Self::NotKeyOwner { .. }
            | Self::PrivilegeUnknown { .. }
            | Self::ArgumentNull { .. } => self.describe_permission(),
            Self::ModifierInvalid { .. }
            | Self::WithoutKey { .. }
            | Self::OrderedIndexRefused { .. }
            | Self::CollationUnknown
            | Self::NormalFormUnknown { .. }
            | Self::NormalFormUnavailable { .. }
            | Self::DigestDomainTooLong
            | Self::ArmorRefused
            | Self::ArmorNotPermitted { .. }
            | Self::SubstituteInDefinition { .. }
            | Self::MaskWrittenBack { .. }
            | Self::MaskInvalid { .. }
            | Self::IndexRefused { .. }
            | Self::StatisticsRefused { .. }
            | Self::PartitionKeyRefused { .. }
            | Self::OrderStored { .. }
            | Self::PlaintextStored { .. } => self.describe_type(),
            Self::ValueTruncated
            | Self::ValueFormatUnsupported { .. }
            | Self::ValueKindUnsupported { .. }
            | Self::ValueOfOtherType { .. }
            | Self::ValueDamaged { .. }
            | Self::ValueNotAuthentic { .. }
            | Self::ValueTooLong
            | Self::TextInvalid
            | Self::TextNotInEncoding { .. }
            | Self::InputNotInEncoding { .. } => self.describe_value(),
            Self::Provider { provider, key, error } => {
                describe_provider(provider, key.as_ref(), error)
            }
            Self::JobUnknown { .. }
            | Self::JobOfOtherKind { .. }
            | Self::NotTableOwner { .. }
            | Self::TableUnknown { .. }
            | Self::ColumnUnknown { .. }
            | Self::ColumnDropped { .. }
            | Self::NotRotatable { .. }
            | Self::RangeUnsupported => self.describe_job(),
            Self::MigrationUnsuitable { .. }
            | Self::MigrationBlocked { .. }
            | Self::MigrationMissing { .. }
            | Self::MigrationPhase { .. }
            | Self::MigrationAltered { .. }
            | Self::MigrationDiffers { .. }
            | Self::MigrationLocked { .. }
            | Self::MigrationArgument { .. }
            | Self::MigrationOwnerLacksKey { .. }
            | Self::MigrationTwoValues { .. }
            | Self::MigrationNameTaken { .. }
            | Self::MigrationColumnUnknown { .. } => self.describe_migration(),
            Self::ProofNeedsOwnTransaction
            | Self::KeyVersionMayBeUsed { .. }
            | Self::KeyVersionUsedAgain { .. }
            | Self::KeyVersionInGrace { .. } => self.describe_end_of_version(),
            Self::NothingToVerify { .. } => self.describe_verification(),
            Self::ProviderNotConfigured
            | Self::ProviderUnknown { .. }
            | Self::SettingInvalid { .. }
            | Self::SettingInOptions { .. }
            | Self::CatalogDamaged { .. }
            | Self::RandomUnavailable
            | Self::Internal { .. } => self.describe_server(),
        }
    }

    fn describe_key(&self) -> Description {
        match self {
            Self::KeyNameInvalid { name, why } => {
                Description::new("KE001", format!("invalid key name {name:?}"))
                    .detail(format!("It is not a key name because {why}."))
                    .hint(
                        "A key name has 1 to 63 characters of a-z, 0-9, \"_\", \".\" and \"-\", \
                         and begins with a letter or a digit.",
                    )
            }
            Self::KeyNameReserved { name } => {
                Description::new("KE002", format!("key name \"{name}\" is reserved")).hint(
                    "The database key is made together with the first key and protects no column. \
                     Choose another name.",
                )
            }
            Self::KeyUnknown { key } => {
                Description::new("KE003", format!("key \"{key}\" does not exist")).hint(
                    "Create it with SELECT enc_create_key(name), or see the view enc_keys for \
                     those that exist.",
                )
            }
            Self::KeyExists { name } => {
                Description::new("KE004", format!("key \"{name}\" already exists")).hint(
                    "Use enc_create_key(name, if_not_exists => true) to accept that, or \
                     enc_rotate_key(name) for a new version.",
                )
            }
            Self::KeyIdCollision { name, other } => Description::new(
                "KE005",
                format!("key name \"{name}\" has the same id as key \"{other}\""),
            )
            .detail("The 31-bit id that values carry is derived from the name alone.")
            .hint("Choose another name."),
            Self::KeyVersionUnknown { key, version } => Description::new(
                "KE006",
                format!("version {version} of key \"{key}\" does not exist"),
            )
            .hint(
                "See the view enc_key_versions. If the value came from another database, restore \
                 that database's keys first.",
            ),
            Self::KeyVersionPending { key, version } => Description::new(
                "KE007",
                format!("version {version} of key \"{key}\" is not yet active"),
            )
            .hint("Activate it with enc_activate_key_version(name, version)."),
            Self::KeyVersionDisabled { key, version } => {
                Description::new("KE008", format!("version {version} of key \"{key}\" is disabled"))
                    .hint("Enable it with enc_enable_key_version(name, version).")
            }
            Self::KeyVersionDestroyed { key, version } => Description::new(
                "KE009",
                format!("version {version} of key \"{key}\" is destroyed"),
            )
            .hint("Values under this version cannot be decrypted. Restore them from a backup."),
            Self::KeyWithoutActiveVersion { key } => {
                Description::new("KE010", format!("key \"{key}\" has no active version")).hint(
                    "Activate one with enc_activate_key_version(name, version) or make one with \
                     enc_rotate_key(name).",
                )
            }
            Self::KeyVersionActive { key, version } => Description::new(
                "KE011",
                format!("version {version} of key \"{key}\" is the active version"),
            )
            .detail("Without it no value can be encrypted under the key.")
            .hint(
                "Rotate the key first with enc_rotate_key(name), or give force => true to leave \
                 the key without an active version.",
            ),
            Self::KeyCheckValueWrong { key, version, provider } => Description::new(
                "KE012",
                format!(
                    "provider \"{provider}\" returned another key for version {version} of key \
                     \"{key}\" than the one it was made with"
                ),
            )
            .detail("The key check value in the catalog does not match.")
            .hint(
                "Check that address, mount and path prefix lead to this database's keys and that \
                 nobody wrote over the key. Nothing was encrypted or decrypted with it.",
            ),
            Self::KeyVersionsExhausted { key } => {
                Description::new("KE013", format!("key \"{key}\" cannot have another version"))
                    .hint("Create another key and move the columns to it.")
            }
            Self::KeyVersionNotKept { key, version, provider, kept } => {
                let Retention { max_versions, is_assumed, hint, .. } = &**kept;
                let may = if *is_assumed { "may keep" } else { "keeps" };
                Description::new(
                    "KE019",
                    format!(
                        "with another version of key \"{key}\", provider \"{provider}\" would drop \
                         version {version}, which is not destroyed"
                    ),
                )
                .detail(format!(
                    "The provider {may} the newest {max_versions} versions alone, and values that an \
                     older one has encrypted cannot be decrypted any more."
                ))
                .hint(format!(
                    "{hint} Or destroy version {version}, when no value needs it: CALL \
                     enc_rotate_all(name), then enc_verify_version_unused and enc_destroy_key_version."
                ))
            }
            Self::KeyChangedMeanwhile { key } => Description::new(
                "KE014",
                format!("key \"{key}\" was changed by another session meanwhile"),
            )
            .hint("See the view enc_key_versions and repeat the statement if it is still needed."),
            Self::KeyUnavailableHere { key } => Description::new(
                "KE015",
                format!("key \"{key}\" is not loaded, and cannot be fetched at this point"),
            )
            .detail(
                "PostgreSQL holds a buffer lock, decodes changes or is not in a transaction: \
                 nothing may wait for a provider.",
            )
            .hint("Use the key once in this session before, for example by reading a value."),
            Self::DigestVersionUnset => Description::new(
                "KE017",
                "there is no key yet to make digests with",
            )
            .hint(
                "Create a key with SELECT enc_create_key(name), or restore this database's keys.",
            ),
            Self::DigestVersionInUse { version } => Description::new(
                "KE018",
                format!("version {version} of key \"database\" is what digests are made with"),
            )
            .detail("Without it no index on digests can be searched or changed.")
            .hint("Move the digests to the active version first with SELECT enc_rotate_digest()."),
            Self::KeyInfoInvalid { why, expected } => {
                Description::new("KE140", *why).hint(*expected)
            }
            Self::RotationPeriodMissing { key } => Description::new(
                "KE142",
                format!("key \"{key}\" has no rotation period, or no active version"),
            )
            .hint("Give a period: SELECT enc_schedule_rotation(name, '90 days')."),
            _ => unreachable_description(),
        }
    }

    fn describe_backup(&self) -> Description {
        match self {
            Self::KeyVersionRetained { key, version, backup } => Description::new(
                "KE050",
                format!("version {version} of key \"{key}\" is needed by backup {backup:?}"),
            )
            .detail("Without it what the backup has under the version cannot be decrypted.")
            .hint(
                "See the view enc_backups. Wait until the backup's time is over, or, if it will not \
                 be restored any more, call enc_forget_backup(label).",
            ),
            Self::BackupUnknown { label } => {
                Description::new("KE051", format!("backup {label:?} was not recorded"))
                    .hint("See the view enc_backups for those that were.")
            }
            _ => unreachable_description(),
        }
    }

    fn describe_permission(&self) -> Description {
        match self {
            Self::PermissionDenied { key, privilege } => {
                Description::new("KE020", format!("permission denied for key \"{key}\""))
                    .detail(format!("The current user does not have privilege \"{privilege}\"."))
                    .hint(format!(
                        "Its owner grants it with SELECT enc_grant('{key}', role, '{privilege}')."
                    ))
            }
            Self::NotKeyOwner { key } => {
                Description::new("KE021", format!("must be owner of key \"{key}\""))
                    .hint("The view enc_keys shows the owner; its members and superusers pass.")
            }
            Self::PrivilegeUnknown { privilege } => {
                Description::new("KE022", format!("unrecognized key privilege {privilege:?}"))
                    .hint("The privileges are encrypt, compare, mask and decrypt.")
            }
            Self::ArgumentNull { number } => {
                // null_value_not_allowed
                Description::new("22004", format!("argument {number} must not be null"))
                    .hint("Nothing was changed.")
            }
            _ => unreachable_description(),
        }
    }

    fn describe_type(&self) -> Description {
        match self {
            Self::ModifierInvalid { why } => {
                Description::new("KE030", format!("invalid type modifier: {why}"))
                    .hint("Name one key, as in encrypted_text('user_pii').")
            }
            Self::WithoutKey { object, type_name } => {
                Description::new("KE031", format!("{object} names no key"))
                    .detail("Without one its values would be under the database key.")
                    .hint(format!(
                        "Declare it as {type_name}('key_name'), or set encryption_ext.default_key."
                    ))
            }
            Self::OrderedIndexRefused { operator_class } => Description::new(
                "KE032",
                format!("operator class \"{operator_class}\" is for sorting, not for indexes"),
            )
            .detail("An ordered index would reveal the order of the plaintexts.")
            .hint(
                "For equality use CREATE INDEX ... USING hash (column). For uniqueness use CREATE \
                 UNIQUE INDEX ... (enc_digest(column)), or EXCLUDE USING hash (column WITH =).",
            ),
            Self::CollationUnknown => {
                // indeterminate_collation
                Description::new("42P22", "could not determine which collation to use for hashing")
                    .hint("Use the COLLATE clause to set the collation explicitly.")
            }
            Self::NormalFormUnknown { name } => {
                // invalid_parameter_value
                Description::new("22023", format!("unrecognized normal form {name:?}"))
                    .hint("The normal forms are none, lower, nfkc_casefold and digits.")
            }
            Self::NormalFormUnavailable { name } => {
                // feature_not_supported
                Description::new("0A000", format!("normal form \"{name}\" is of Unicode text alone"))
                    .hint("Use the normal form \"none\".")
            }
            Self::DigestDomainTooLong => {
                Description::new("22023", "a digest's domain is longer than 255 bytes")
                    .hint("Name the table and the column, for example.")
            }
            Self::ArmorRefused => {
                Description::new("KE033", "ciphertext given where a plaintext is expected")
                    .detail("The value is well-formed armor (\"enc:1:...\"), as shown to roles that may not decrypt.")
                    .hint("Write the plaintext, or leave the column out of the statement.")
            }
            Self::ArmorNotPermitted { key_id } => {
                Description::new("KE033", "ciphertext given where a plaintext is expected")
                    .detail(format!("Ciphertext is taken from superusers and from roles with privilege \"decrypt\" on its key, which has the id {key_id}."))
                    .hint("Write the plaintext, or have the key's owner grant the privilege with enc_grant(name, role, 'decrypt').")
            }
            Self::SubstituteInDefinition { key } => Description::new(
                "KE038",
                format!("a definition cannot be changed by a role that is not shown the values of key \"{key}\""),
            )
            .detail("PostgreSQL writes constraints and expressions as text and reads them again: what the role is shown in place of a value would become part of them.")
            .hint("Let a role with privilege \"decrypt\" on the key change it."),
            Self::MaskWrittenBack { key } => Description::new(
                "KE039",
                "mask given where a plaintext is expected",
            )
            .detail(format!("The value is what the current user is shown of values under key \"{key}\"."))
            .hint("Leave the column out of the statement, or write the plaintext as a role with privilege \"decrypt\"."),
            Self::MaskInvalid { why } => {
                Description::new("KE110", format!("invalid mask: {why}"))
                    .hint("A mask is a text of up to 256 bytes that is always the same, or partial(n) with n from 1 to 64.")
            }
            Self::IndexRefused { index, access_method, type_name } => Description::new(
                "KE034",
                format!(
                    "{index} with access method \"{access_method}\" would hold \
                     encrypted values of type {type_name}"
                ),
            )
            .detail("It would have them as keys, which reveals their order or that they are equal.")
            .hint(
                "Make a hash index, with USING hash, or move what is to be searched for to a column \
                 of its own.",
            ),
            Self::StatisticsRefused { statistics, table } => Description::new(
                "KE035",
                format!(
                    "statistics object \"{statistics}\" would hold values of encrypted columns of \
                     \"{table}\""
                ),
            )
            .detail("ANALYZE would store their most common values.")
            .hint("Leave out the encrypted columns, and expressions of them."),
            Self::PartitionKeyRefused { table } => Description::new(
                "KE036",
                format!("table \"{table}\" cannot be partitioned by an encrypted column"),
            )
            .detail("Which partition a row is in would reveal something of the value.")
            .hint("Partition it by another column, such as its primary key or a date."),
            Self::OrderStored { object } => Description::new(
                "KE037",
                format!("{object} would hold how encrypted values are ordered"),
            )
            .detail("What it stores tells which of two values is the lesser.")
            .hint("Compare encrypted values with = and <> only in what is stored, and order them in queries."),
            // invalid_object_definition, as for an expression that PostgreSQL itself finds mutable.
            Self::PlaintextStored { object } => {
                Description::new("42P17", format!("{object} would hold decrypted values"))
                    .detail("What decrypts is not immutable.")
                    .hint("Decrypt in queries or in a view, or generate enc_digest(column).")
            }
            _ => unreachable_description(),
        }
    }

    fn describe_value(&self) -> Description {
        const RESTORE: &str = "The stored value is damaged or was written by something else than this extension. \
             Restore it from a backup.";
        match self {
            Self::ValueTruncated => {
                Description::new("KE040", "encrypted value is truncated").hint(RESTORE)
            }
            Self::ValueFormatUnsupported { format } => Description::new(
                "KE041",
                format!("encrypted value has format {format}, which this version does not read"),
            )
            .hint("A later version of encryption_ext wrote it. Upgrade this server's library."),
            Self::ValueKindUnsupported { kind } => Description::new(
                "KE042",
                format!("encrypted value has kind {kind:#04x}, which this version does not read"),
            )
            .hint("A later version of encryption_ext wrote it. Upgrade this server's library."),
            Self::ValueOfOtherType { expected } => {
                Description::new("KE043", format!("encrypted value is not of type {expected}"))
                    .hint("Decrypt it as the type that it was encrypted as, and cast the result.")
            }
            Self::ValueDamaged { what } => {
                Description::new("KE044", what.to_string()).hint(RESTORE)
            }
            Self::ValueNotAuthentic { key, version } => Description::new(
                "KE045",
                format!(
                    "encrypted value fails authentication under version {version} of key \"{key}\""
                ),
            )
            .detail("It was altered, truncated or relabelled after it was encrypted.")
            .hint(RESTORE),
            Self::ValueTooLong => {
                Description::new("KE046", "value is too long to be encrypted or decrypted")
                    .hint("A value and its 50 bytes of overhead must stay below 1 GB.")
            }
            Self::TextInvalid => Description::new("KE047", "decrypted value is not valid text")
                .detail("It decrypts and is authentic, but is not UTF-8 without NUL bytes.")
                .hint("Find out what encrypted it. The plaintext is not shown."),
            Self::TextNotInEncoding { encoding } => Description::new(
                "KE048",
                format!("decrypted value cannot be represented in encoding {encoding}"),
            )
            .hint("Read it in a database whose encoding is UTF8."),
            Self::InputNotInEncoding { encoding } => Description::new(
                "KE049",
                format!("value to encrypt is not valid in encoding {encoding}"),
            )
            .hint("Check the client's encoding (client_encoding). The value is not shown."),
            _ => unreachable_description(),
        }
    }

    fn describe_job(&self) -> Description {
        match self {
            Self::JobUnknown { job } => {
                Description::new("KE100", format!("job {job} does not exist"))
                    .hint("See the view enc_stat_progress_rotate.")
            }
            Self::JobOfOtherKind { job, kind, table, column } => Description::new(
                "KE101",
                format!("column \"{column}\" of {table} has an unfinished job of another kind"),
            )
            .detail(format!("Job {job} is of kind \"{kind}\"."))
            .hint("Finish that job, or undo it."),
            Self::NotTableOwner { table } => {
                // insufficient_privilege
                Description::new("42501", format!("must be owner of table {table}"))
                    .hint("Its owner, members of that role and superusers may.")
            }
            Self::TableUnknown { table } => {
                // undefined_table
                Description::new("42P01", format!("table with OID {table} does not exist"))
                    .hint("It was dropped.")
            }
            Self::ColumnUnknown { table, column } => {
                // undefined_column
                Description::new("42703", format!("column \"{column}\" of {table} does not exist"))
                    .hint("Give the column's name as it is in pg_attribute.")
            }
            Self::ColumnDropped { table } => {
                Description::new("42703", format!("the column of {table} was dropped"))
                    .hint("There is nothing left to do.")
            }
            Self::NotRotatable { table, column, why } => Description::new(
                "KE102",
                format!("column \"{column}\" of {table} cannot be rotated"),
            )
            .detail(format!("The reason is that {why}."))
            .hint("The columns that hold encrypted values are listed in the view encryption.encrypted_column."),
            Self::RangeUnsupported => {
                Description::new("KE103", "ranges of encrypted values are not rotated")
                    .hint("Keep the bounds in columns of their own.")
            }
            _ => unreachable_description(),
        }
    }

    fn describe_migration(&self) -> Description {
        match self {
            Self::MigrationUnsuitable { subject, why } => {
                Description::new("KE200", format!("cannot migrate {subject}"))
                    .detail(format!("It can't be done because {why}."))
                    .hint("See docs/reference.md for what enc_encrypt_column takes.")
            }
            Self::MigrationBlocked { subject, dependents } => {
                Description::new("KE201", format!("cannot migrate {subject} with what depends on it"))
                    .detail(dependents.clone())
                    .hint(
                        "Remove what is in the way, and accept by name what can be accepted. \
                         Action plan shows everything that depends on the column.",
                    )
            }
            Self::MigrationMissing { subject, phase } => {
                Description::new("KE202", format!("{subject} is not being migrated"))
                    .detail(format!("Its migration is {phase}."))
                    .hint("See the view enc_stat_progress_encrypt.")
            }
            Self::MigrationPhase { subject, phase } => {
                Description::new("KE203", format!("cannot do this with {subject} now"))
                    .detail(format!("It can't be done because {phase}."))
                    .hint("See the view enc_stat_progress_encrypt. Action execute goes on, action rollback goes back.")
            }
            Self::MigrationAltered { subject, how } => {
                Description::new("KE204", format!("{subject} was altered during its migration"))
                    .detail(format!("This was found: {how}."))
                    .hint("Undo the alteration, or use action rollback.")
            }
            Self::MigrationDiffers { subject, row } => Description::new(
                "KE205",
                format!("{subject} has a row in which plaintext and encrypted value differ"),
            )
            .detail(format!("Its ctid is {row}. Something wrote to the table without its triggers."))
            .hint(
                "Set the new column of that row to NULL by an UPDATE, which fills it in again, and \
                 repeat the call.",
            ),
            Self::MigrationLocked { subject, tries } => {
                Description::new("KE206", format!("could not lock {subject}"))
                    .detail(format!("It was tried {tries} times."))
                    .hint(
                        "Find the transaction that holds it in pg_locks, and repeat the call: it goes \
                         on where it was.",
                    )
            }
            Self::MigrationArgument { argument, expected } => {
                Description::new("KE207", format!("invalid argument \"{argument}\""))
                    .hint(format!("It takes {expected}."))
            }
            Self::MigrationOwnerLacksKey { owner, key, privilege } => Description::new(
                "KE208",
                format!("table owner \"{owner}\" does not have privilege \"{privilege}\" on key \"{key}\""),
            )
            .detail("During a migration the key is used with the rights of the table's owner.")
            .hint(format!(
                "The key's owner grants it with SELECT enc_grant('{key}', '{owner}', 'encrypt, decrypt')."
            )),
            Self::MigrationTwoValues { subject } => Description::new(
                "KE209",
                format!("new row for {subject} has two values for a column that is being migrated"),
            )
            .detail("The plaintext column and the encrypted one were given values that differ.")
            .hint("Name the columns in the INSERT, and leave out the one that the migration fills in."),
            Self::MigrationNameTaken { subject } => {
                // duplicate_column
                Description::new("42701", format!("{subject} already exists"))
                    .hint("A migration needs this name. Rename that column.")
            }
            Self::MigrationColumnUnknown { subject } => {
                // undefined_column
                Description::new("42703", format!("{subject} does not exist"))
                    .hint("Give the column's name as it is in pg_attribute.")
            }
            _ => unreachable_description(),
        }
    }

    fn describe_end_of_version(&self) -> Description {
        match self {
            Self::ProofNeedsOwnTransaction => {
                // active_sql_transaction
                Description::new(
                    "25001",
                    "proof that a key version is unused needs a transaction of its own",
                )
                .detail(
                    "It must see what others commit meanwhile, so it is not for transactions that are \
                     REPEATABLE READ or SERIALIZABLE, or have changed something.",
                )
                .hint("Commit first, and call it in a READ COMMITTED transaction.")
            }
            Self::KeyVersionMayBeUsed { key, version } => Description::new(
                "KE105",
                format!("version {version} of key \"{key}\" has not been proved to be unused"),
            )
            .detail("The proof must be newer than the moment at which the version stopped being active.")
            .hint(
                "Rotate with CALL enc_rotate_all(name), and prove it with SELECT * FROM \
                 enc_verify_version_unused(name, version); or accept that values are lost for good, \
                 with accept_data_loss => true.",
            ),
            Self::KeyVersionUsedAgain { key, version, object } => Description::new(
                "KE105",
                format!("version {version} of key \"{key}\" is used again since it was proved to be unused"),
            )
            .detail(format!("Values under it are in {object}: a restored dump, or a subscription, has brought them."))
            .hint(
                "Rotate with CALL enc_rotate_all(name), and prove it again with SELECT * FROM \
                 enc_verify_version_unused(name, version).",
            ),
            Self::KeyVersionInGrace { key, version, until } => Description::new(
                "KE106",
                format!("version {version} of key \"{key}\" is kept until {until}"),
            )
            .detail("The grace period is for backups, standbys and clients that still need the version.")
            .hint("Disable it meanwhile, or give a shorter grace_period."),
            _ => unreachable_description(),
        }
    }

    fn describe_verification(&self) -> Description {
        const COLUMNS: &str = "The columns that hold encrypted values are listed in the view encryption.encrypted_column.";
        match self {
            Self::NothingToVerify { table, column: Some(column) } => Description::new(
                "KE130",
                format!("table {table} stores no encrypted values in a column \"{column}\""),
            )
            .hint(COLUMNS),
            Self::NothingToVerify { table, column: None } => {
                Description::new("KE130", format!("table {table} stores no encrypted values"))
                    .hint(COLUMNS)
            }
            _ => unreachable_description(),
        }
    }

    fn describe_server(&self) -> Description {
        match self {
            Self::ProviderNotConfigured => {
                Description::new("KE060", "no key provider is configured")
                    .detail("encryption_ext.provider is not set.")
                    .hint(
                        "Set it with ALTER SYSTEM SET encryption_ext.provider = 'vault' (with its \
                         address), or 'file' for trying out, and SELECT pg_reload_conf().",
                    )
            }
            Self::ProviderUnknown { name } => {
                Description::new("KE061", format!("provider {name:?} is not configured here"))
                    .detail(
                        "It is neither one of those that the settings describe nor in the provider \
                         file (encryption_ext.provider_file).",
                    )
                    .hint(
                        "Add it to this server's provider file: each server has its own, with the \
                         addresses by which it reaches the same keys.",
                    )
            }
            Self::SettingInvalid { setting, why } => {
                Description::new("KE061", format!("invalid setting {setting}: {why}"))
                    .hint("See docs/reference.md for the settings.")
            }
            Self::SettingInOptions { setting } => Description::new(
                "KE111",
                format!(
                    "permission denied to set parameter \"{setting}\" in the connection's options"
                ),
            )
            .hint("Leave it out of the options: it is for superusers."),
            Self::CatalogDamaged { what } => {
                Description::new("KE090", format!("key catalog is damaged: {what}")).hint(
                    "Compare the tables of schema \"encryption\" with a backup. They are changed \
                     by the extension's functions only.",
                )
            }
            Self::RandomUnavailable => {
                Description::new("KE091", "operating system returned no random bytes").hint(
                    "Check that getrandom(2) is allowed for the server. Nothing was encrypted.",
                )
            }
            Self::Internal { what } => {
                Description::new("KE099", format!("unexpected state in encryption_ext: {what}"))
                    .hint("Please report this with the statement that led to it.")
            }
            _ => unreachable_description(),
        }
    }
}

/// The arms of `describe` hand each variant to the function that describes it; this is what the
/// others' last arm says, should that ever be wrong.
fn unreachable_description() -> Description {
    Description::new("KE099", "unexpected state in encryption_ext: error without a description")
}

fn describe_provider(provider: &str, key: Option<&KeyName>, error: &ProviderError) -> Description {
    let (sqlstate, hint) = match error.kind {
        ProviderErrorKind::Configuration => (
            "KE061",
            "Correct the provider's settings: those of encryption_ext.* for a provider of its type's \
             name, else those in the provider file. docs/providers.md lists them.",
        ),
        ProviderErrorKind::Unreachable => {
            ("KE062", "Check that the key server runs and that this server can reach it.")
        }
        ProviderErrorKind::TimedOut => (
            "KE063",
            "Check the key server's load and the network, or raise encryption_ext.provider_timeout.",
        ),
        ProviderErrorKind::Sealed => ("KE064", "Unseal the key server."),
        ProviderErrorKind::Throttled => ("KE065", "Raise the key server's rate limit."),
        ProviderErrorKind::LoginFailed => {
            ("KE066", "Check the role id, the secret id and the token file.")
        }
        ProviderErrorKind::Denied => ("KE067", "Check the policy of this server's login."),
        ProviderErrorKind::KeyMissing => ("KE068", "Have the key written at the provider."),
        ProviderErrorKind::VersionMissing => {
            ("KE069", "Restore the version at the provider; values under it need it.")
        }
        ProviderErrorKind::WriteDenied => ("KE070", "Have the key written at the provider."),
        ProviderErrorKind::AnswerInvalid => {
            ("KE071", "Check that the address is that of the key server and not of something else.")
        }
        ProviderErrorKind::WrappedKeyInvalid => (
            "KE079",
            "Restore the row of encryption.key_version from a backup, or have the key encryption \
             key restored that wrapped it.",
        ),
        ProviderErrorKind::NotAsked => ("KE080", "Repair the provider."),
        ProviderErrorKind::KeyLengthWrong => {
            ("KE072", "A key is 32 random bytes, in base64 where the provider keeps text.")
        }
        ProviderErrorKind::Conflict => ("KE073", "Repeat the statement."),
        ProviderErrorKind::KeyringMissing => (
            "KE074",
            "Restore the keyring file from a backup, or correct encryption_ext.keyring_file.",
        ),
        ProviderErrorKind::KeyringUnreadable => {
            ("KE075", "Let the operating system user that runs PostgreSQL read the file.")
        }
        ProviderErrorKind::KeyringMalformed => ("KE076", "Restore the keyring file from a backup."),
        ProviderErrorKind::KeyringInsecure => {
            ("KE077", "Make the file readable by its owner alone: chmod 600.")
        }
        ProviderErrorKind::KeyringUnwritable => {
            ("KE078", "Let the operating system user that runs PostgreSQL write in its folder.")
        }
        ProviderErrorKind::RandomUnavailable => {
            ("KE091", "Check that getrandom(2) is allowed for the server.")
        }
        ProviderErrorKind::Interrupted => ("57014", "Repeat the statement."),
    };
    let message = match key {
        Some(key) => format!("provider \"{provider}\", key \"{key}\": {}", error.message),
        None => format!("provider \"{provider}\": {}", error.message),
    };
    Description::new(sqlstate, message).hint(error.hint.as_deref().unwrap_or(hint))
}

impl From<FormatError> for Error {
    fn from(error: FormatError) -> Self {
        match error {
            FormatError::Truncated => Self::ValueTruncated,
            FormatError::UnsupportedFormat(format) => Self::ValueFormatUnsupported { format },
            FormatError::UnsupportedKind(kind) => Self::ValueKindUnsupported { kind },
            FormatError::InvalidKeyId | FormatError::InvalidKeyVersion => {
                Self::ValueDamaged { what: error }
            }
        }
    }
}

impl Error {
    /// Whether a provider refused to make a version because somebody else has just made one.
    pub(crate) fn is_conflict(&self) -> bool {
        matches!(self, Self::Provider { error, .. } if error.kind == ProviderErrorKind::Conflict)
    }

    /// Whether the user or a time limit ended what was waited for.
    pub(crate) fn is_interrupt(&self) -> bool {
        matches!(self, Self::Provider { error, .. } if error.kind == ProviderErrorKind::Interrupted)
    }

    /// Whether a provider is out of reach, rather than having said no.
    pub(crate) fn is_outage(&self) -> bool {
        matches!(self, Self::Provider { error, .. } if error.kind.is_outage())
    }

    /// Whether a key can't be had here, or not now: what it encrypted may be as it should be.
    pub(crate) fn is_of_unavailable_key(&self) -> bool {
        matches!(
            self,
            Self::KeyUnknown { .. }
                | Self::KeyVersionUnknown { .. }
                | Self::KeyVersionPending { .. }
                | Self::KeyVersionDisabled { .. }
                | Self::KeyVersionDestroyed { .. }
                | Self::KeyWithoutActiveVersion { .. }
                | Self::KeyCheckValueWrong { .. }
                | Self::KeyUnavailableHere { .. }
                | Self::Provider { .. }
                | Self::ProviderNotConfigured
                | Self::ProviderUnknown { .. }
                | Self::SettingInvalid { .. }
        )
    }

    /// Whether the fault is in a stored value, so that it would be there the next time too.
    pub(crate) fn is_of_value(&self) -> bool {
        matches!(
            self,
            Self::ValueTruncated
                | Self::ValueFormatUnsupported { .. }
                | Self::ValueKindUnsupported { .. }
                | Self::ValueOfOtherType { .. }
                | Self::ValueDamaged { .. }
                | Self::ValueNotAuthentic { .. }
                | Self::TextInvalid
                | Self::TextNotInEncoding { .. }
                | Self::KeyUnknown { .. }
                | Self::KeyVersionUnknown { .. }
                | Self::KeyVersionDestroyed { .. }
        )
    }

    /// Whether the fault is in the state of the version that a value is under, or in what its provider has
    /// in the version's place.
    pub(crate) fn is_of_version(&self) -> bool {
        matches!(
            self,
            Self::KeyVersionPending { .. }
                | Self::KeyVersionDisabled { .. }
                | Self::KeyCheckValueWrong { .. }
        )
    }

    /// A key that a value or a column names by id and the catalog doesn't have.
    pub(crate) fn unknown_id(id: KeyId) -> Self {
        Self::KeyUnknown { key: id.to_string() }
    }
}

/// The class of this extension's SQLSTATEs. Its messages quote no value.
pub(crate) const OWN_CLASS: &str = "KE";

/// Whether an SQLSTATE, as PostgreSQL encodes it, is of a class: its first two characters.
pub(crate) const fn is_of_class(sqlstate: c_int, class: &str) -> bool {
    sqlstate & 0xfff == encode_sqlstate(class)
}

/// `MAKE_SQLSTATE` of `src/include/utils/elog.h`: six bits a character.
pub(crate) const fn encode_sqlstate(sqlstate: &str) -> c_int {
    let bytes = sqlstate.as_bytes();
    let mut code = 0;
    let mut i = 0;
    while i < bytes.len() {
        code |= ((bytes[i].wrapping_sub(b'0') & 0x3f) as c_int) << (6 * i);
        i += 1;
    }
    code
}
