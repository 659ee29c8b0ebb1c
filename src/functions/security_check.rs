//! What `enc_security_check` finds that SQL can't see: the settings of providers, the files that they
//! name, and what the operating system may do with this process's memory.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use keyring::configured::{Configured, ProviderKind};
use keyring::secret;

use super::providers::providers_in_use;
use super::rows::{Row, return_rows};
use crate::errors::Error;
use crate::fmgr::sql_function;
use crate::varlena::text_datum;
use crate::{keys, settings, shared};

sql_function! {
    /// `encryption.server_findings() RETURNS SETOF record`: rows of `enc_security_check`.
    fn encryption_server_findings(call) {
        let mut findings = Vec::new();
        // Without a provider there is nothing to be found about one.
        for name in providers_in_use().unwrap_or_default() {
            let failed = |error| Error::Provider { provider: name.clone(), key: None, error };
            match keys::with_providers(|providers| providers.configured(&name, failed)) {
                Ok(configured) => check_provider(&name, &configured, &mut findings),
                Err(error) => findings.push(Finding::new(
                    "provider_settings",
                    Severity::Medium,
                    name.clone(),
                    error.message(),
                    error.hint().unwrap_or_default(),
                )),
            }
        }
        check_process(&mut findings);
        let rows = findings.iter().map(Finding::row).collect::<Result<Vec<_>, _>>()?;
        return_rows(call, &rows)
    }
}

#[derive(Clone, Copy)]
enum Severity {
    High,
    Medium,
    Low,
}

impl Severity {
    fn name(self) -> &'static str {
        match self {
            Self::High => "high",
            Self::Medium => "medium",
            Self::Low => "low",
        }
    }
}

struct Finding {
    check: &'static str,
    severity: Severity,
    object: String,
    finding: String,
    remedy: String,
}

impl Finding {
    fn new(
        check: &'static str,
        severity: Severity,
        object: impl Into<String>,
        finding: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        let (object, finding, remedy) = (object.into(), finding.into(), remedy.into());
        Self { check, severity, object, finding, remedy }
    }

    fn row(&self) -> Result<Row, Error> {
        let Self { check, severity, object, finding, remedy } = self;
        [check, severity.name(), object, finding, remedy]
            .iter()
            .map(|text| text_datum(text.as_bytes()).map(Some))
            .collect()
    }
}

fn check_provider(name: &str, configured: &Configured, findings: &mut Vec<Finding>) {
    if configured.kind == ProviderKind::File {
        findings.push(Finding::new(
            "file_provider",
            Severity::High,
            name,
            "keys come from a file on this server",
            "Configure a key server, and move the keys to it with enc_rotate_key(name) and CALL \
             enc_rotate_all(name).",
        ));
    }
    for (field, value) in &configured.settings {
        let object = || format!("{name}: {field}");
        if value.starts_with("http://") {
            // Those that aren't loopback addresses are refused.
            findings.push(Finding::new(
                "plain_http",
                Severity::Medium,
                object(),
                format!("keys and tokens pass {value} unencrypted"),
                "Use https://, unless an agent on this machine does so on its way out.",
            ));
        }
        let is_keyring = configured.kind == ProviderKind::File && field == "path";
        let is_public = matches!(field.as_str(), "ca_file" | "client_certificate_file");
        if is_keyring || (field.ends_with("_file") && !is_public) {
            check_file(&object(), Path::new(value), findings);
        }
        if is_keyring && is_within(Path::new(value), &settings::data_directory()) {
            findings.push(Finding::new(
                "keyring_in_data_directory",
                Severity::High,
                value,
                "base backups of the server hold the keys beside what they protect",
                "Move the file out of the data directory, and set encryption_ext.keyring_file.",
            ));
        }
    }
}

fn check_file(object: &str, path: &Path, findings: &mut Vec<Finding>) {
    // One that isn't there, or not readable, is a matter of enc_check_provider.
    let Ok(metadata) = fs::metadata(path) else { return };
    let mode = metadata.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        findings.push(Finding::new(
            "secret_file_permissions",
            Severity::High,
            object,
            format!("{} has mode {mode:04o}: others than its owner may use it", path.display()),
            format!("chmod 600 {}", path.display()),
        ));
    }
}

fn is_within(path: &Path, folder: &Path) -> bool {
    // Links count for what they lead to.
    let real = |path: &Path| fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    real(path).starts_with(real(folder))
}

fn check_process(findings: &mut Vec<Finding>) {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the pointer is to a struct that the call fills in.
    let is_known = unsafe { libc::getrlimit(libc::RLIMIT_CORE, &raw mut limit) } == 0;
    if is_known && limit.rlim_cur > 0 {
        findings.push(Finding::new(
            "core_dumps",
            Severity::Medium,
            "this session",
            "a crash may write the memory of the server to a file: plaintexts, though not keys",
            "Start the server with ulimit -c 0 (LimitCORE=0 in a systemd unit), or see to it that core \
             files are encrypted.",
        ));
    }
    let shared = shared::statistics().map_or(0, |statistics| statistics.unlocked_bytes);
    for (whose, unlocked) in
        [("this session", secret::statistics().unlocked_bytes), ("all sessions", shared)]
    {
        if unlocked == 0 {
            continue;
        }
        let has_swap =
            fs::read_to_string("/proc/swaps").is_ok_and(|swaps| swaps.lines().count() > 1);
        let (severity, where_to) = match has_swap {
            true => (Severity::High, "and this machine has swap space to write them to"),
            false => (Severity::Low, "though this machine has no swap space now"),
        };
        findings.push(Finding::new(
            "unlocked_memory",
            severity,
            whose,
            format!("{unlocked} bytes with keys could not be locked in memory, {where_to}"),
            "Raise the server's limit of locked memory: ulimit -l, LimitMEMLOCK in a systemd unit.",
        ));
    }
}
