//! How many versions of a key a provider keeps, where it drops the oldest for those that are too many: what is
//! learned of it when the provider is asked, and that no version is made at the cost of one that is needed.

use keyring::configured::ProviderKind;
use keyring::provider::Retention;

use super::providers::usable;
use crate::catalog::{Key, Version};
use crate::errors::Error;
use crate::keys;
use crate::providers::Separate;
use crate::statistics;

/// Has a provider that is being asked about a key say it, too. A failure is left to those who need the answer.
pub(super) fn look(provider: &mut Separate, key: &Key) {
    if !provider.kind.drops_versions() {
        return;
    }
    if let Ok(Some(retention)) =
        provider.call(Some(&key.name), |provider| provider.retention(&key.name))
    {
        statistics::retention_seen(&provider.name, key.name.id(), &retention);
    }
}

/// That the provider can make another version of a key without one being dropped that is not destroyed.
///
/// # Errors
///
/// If one would be.
pub(super) fn refuse_loss(key: &Key, provider: &str, retention: &Retention) -> Result<(), Error> {
    let kind = kind_of(provider)?;
    match numbered(key, provider, kind).find(|(_, number)| retention.would_drop(*number)) {
        None => Ok(()),
        Some((version, _)) => Err(Error::KeyVersionNotKept {
            key: key.name.clone(),
            version: version.number,
            provider: provider.to_owned(),
            kept: Box::new(retention.clone()),
        }),
    }
}

/// Warns of versions that the provider has dropped and that are not destroyed.
pub(super) fn warn_of_dropped(
    key: &Key,
    provider: &str,
    retention: &Retention,
) -> Result<(), Error> {
    let kind = kind_of(provider)?;
    for (version, _) in numbered(key, provider, kind).filter(|(_, n)| *n < retention.oldest) {
        pgrx::warning!(
            "provider \"{provider}\" has dropped version {} of key \"{}\", which is not destroyed here",
            version.number,
            key.name
        );
    }
    Ok(())
}

/// The versions that came from a provider and are not destroyed, with the numbers that they have there.
fn numbered<'a>(
    key: &'a Key,
    provider: &'a str,
    kind: ProviderKind,
) -> impl Iterator<Item = (&'a Version, u32)> {
    let of_provider = move |version: &&Version| version.provider == provider;
    usable(key)
        .filter(of_provider)
        .filter_map(move |version| Some((version, kind.number_in(&version.reference, &key.name)?)))
}

/// The kind of a provider.
///
/// # Errors
///
/// If its settings are not here.
pub(super) fn kind_of(provider: &str) -> Result<ProviderKind, Error> {
    let failed = |error| Error::Provider { provider: provider.to_owned(), key: None, error };
    keys::with_providers(|providers| Ok(providers.configured(provider, failed)?.kind))
}
