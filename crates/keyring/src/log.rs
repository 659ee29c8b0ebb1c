//! The keyed digests that chain the entries of the lifecycle log.
//!
//! Each entry carries HMAC-SHA-256 (FIPS 198-1), under the database key's subkey
//! [`Subkey::Log`](crate::version::Subkey::Log), over itself and the digest of the entry before it.
//! The head, a further digest over the number and the digest of the last entry, is replaced with each
//! entry, so that entries that are missing at the end show too. Who hasn't got the key can put back
//! an older state of all of it, and nothing else.
//!
//! `docs/format.md` specifies what the digests are computed over.

use std::fmt;

use envelope::{DataKey, KeyVersion};
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

/// A digest of an entry, or of the head.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Digest([u8; Self::LEN]);

/// An entry as it is digested. Texts are UTF-8, or the database's bytes where its encoding can't be
/// converted; times are microseconds since 1970-01-01 00:00 UTC.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The id of the chain that the entry belongs to.
    pub chain: [u8; 16],
    /// Its number in the chain, from 1.
    pub sequence: i64,
    /// The version of the database key that its digest is under.
    pub key_version: KeyVersion,
    /// When it was made.
    pub occurred_at: i64,
    /// When its digest was.
    pub sealed_at: i64,
    /// What was done.
    pub action: Vec<u8>,
    /// To which key.
    pub key_name: Option<Vec<u8>>,
    /// The version that was in use before, or that was put out of use.
    pub old_version: Option<i32>,
    /// The version that was made or put in use.
    pub new_version: Option<i32>,
    /// How many rows a job has dealt with.
    pub row_count: Option<i64>,
    /// Why, in the words of who did it.
    pub reason: Option<Vec<u8>>,
    /// What else there is to say.
    pub detail: Option<Vec<u8>>,
    /// The current user.
    pub role_name: Vec<u8>,
    /// Who had logged in.
    pub session_role_name: Vec<u8>,
    /// Where the client was, unless it came by a local socket.
    pub client_address: Option<Vec<u8>>,
    /// What the client called itself.
    pub application_name: Vec<u8>,
}

impl Digest {
    /// Its length in bytes.
    pub const LEN: usize = 32;

    /// What stands for the digest of the entry before the first.
    pub const NONE: Self = Self([0; Self::LEN]);

    /// The digest of an entry that follows the one whose digest is `previous`.
    #[must_use]
    pub fn of_entry(log_key: &DataKey, entry: &Entry, previous: &Self) -> Self {
        // Without `..`: a field that is added is digested or named here.
        let Entry {
            chain,
            sequence,
            key_version,
            occurred_at,
            sealed_at,
            action,
            key_name,
            old_version,
            new_version,
            row_count,
            reason,
            detail,
            role_name,
            session_role_name,
            client_address,
            application_name,
        } = entry;
        let mut message = Message::new(log_key, b"encryption_ext:1:key event");
        message.bytes(chain);
        message.number(*sequence);
        message.bytes(&previous.0);
        message.bytes(&key_version.get().to_be_bytes());
        message.number(*occurred_at);
        message.number(*sealed_at);
        message.text(Some(action));
        message.text(key_name.as_deref());
        message.optional_number(old_version.map(i64::from));
        message.optional_number(new_version.map(i64::from));
        message.optional_number(*row_count);
        message.text(reason.as_deref());
        message.text(detail.as_deref());
        message.text(Some(role_name));
        message.text(Some(session_role_name));
        message.text(client_address.as_deref());
        message.text(Some(application_name));
        message.digest()
    }

    /// The digest of the head of a chain: the number of its last entry, and that one's digest.
    #[must_use]
    pub fn of_head(
        log_key: &DataKey,
        chain: &[u8; 16],
        sequence: i64,
        key_version: KeyVersion,
        last: &Self,
    ) -> Self {
        let mut message = Message::new(log_key, b"encryption_ext:1:key event head");
        message.bytes(chain);
        message.number(sequence);
        message.bytes(&last.0);
        message.bytes(&key_version.get().to_be_bytes());
        message.digest()
    }

    /// A digest that was stored; `None` if it doesn't have the length of one.
    #[must_use]
    pub fn from_stored(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    /// The digest, to be stored.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; Self::LEN] {
        &self.0
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Digest({self})")
    }
}

/// What is digested, field by field: each has a fixed length, or says its own.
struct Message(Hmac<Sha256>);

impl Message {
    /// The label has no 0x00 in it, so none is the beginning of another.
    fn new(log_key: &DataKey, label: &[u8]) -> Self {
        let code = <Hmac<Sha256> as KeyInit>::new_from_slice(log_key.expose())
            .expect("HMAC takes a key of any length");
        let mut message = Self(code);
        message.bytes(label);
        message.bytes(&[0]);
        message
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    fn number(&mut self, number: i64) {
        self.bytes(&number.to_be_bytes());
    }

    fn optional_number(&mut self, number: Option<i64>) {
        self.bytes(&[u8::from(number.is_some())]);
        if let Some(number) = number {
            self.number(number);
        }
    }

    fn text(&mut self, text: Option<&[u8]>) {
        self.optional_number(text.map(|text| i64::try_from(text.len()).unwrap_or(i64::MAX)));
        self.bytes(text.unwrap_or_default());
    }

    fn digest(self) -> Digest {
        Digest(self.0.finalize().into_bytes().into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log_key() -> DataKey {
        DataKey::new(std::array::from_fn(|i| u8::try_from(i).unwrap()))
    }

    fn entry() -> Entry {
        Entry {
            chain: std::array::from_fn(|i| 0xa0 + u8::try_from(i).unwrap()),
            sequence: 7,
            key_version: KeyVersion::FIRST,
            occurred_at: 1_767_225_600_000_001,
            sealed_at: 1_767_225_600_000_002,
            action: b"rotate".to_vec(),
            key_name: Some(b"user_pii".to_vec()),
            old_version: Some(1),
            new_version: Some(2),
            row_count: None,
            reason: Some("Schlüssel läuft ab".into()),
            detail: None,
            role_name: b"alice".to_vec(),
            session_role_name: b"app".to_vec(),
            client_address: Some(b"192.0.2.1/32".to_vec()),
            application_name: b"psql".to_vec(),
        }
    }

    /// Computed with Python's `hmac` and `struct` from docs/format.md.
    #[test]
    fn digests_are_known() {
        let first = Digest::of_entry(&log_key(), &entry(), &Digest::NONE);
        assert_eq!(
            first.to_string(),
            "f8b1f3fa861ee906a49cdd325c5e9388865cfba1cfcb2965a38ee4ecd1aef1cd"
        );
        let head =
            Digest::of_head(&log_key(), &entry().chain, 7, KeyVersion::FIRST, &first).to_string();
        assert_eq!(head, "814a3e91e059453ac9ffbbbd5724b84ddbf193ddfbbf6a42158752e69b24aeab");
    }

    #[test]
    fn every_field_counts() {
        let digest = |entry: &Entry| Digest::of_entry(&log_key(), entry, &Digest::NONE);
        let second = KeyVersion::FIRST.next().unwrap();
        let changes: [(&str, fn(&mut Entry)); 15] = [
            ("chain", |entry| entry.chain[15] ^= 1),
            ("sequence", |entry| entry.sequence += 1),
            ("occurred_at", |entry| entry.occurred_at += 1),
            ("sealed_at", |entry| entry.sealed_at += 1),
            ("action", |entry| entry.action = b"rotatf".to_vec()),
            ("key_name", |entry| entry.key_name = None),
            ("old_version", |entry| entry.old_version = None),
            ("new_version", |entry| entry.new_version = Some(3)),
            ("row_count", |entry| entry.row_count = Some(0)),
            ("reason", |entry| entry.reason = Some(Vec::new())),
            ("detail", |entry| entry.detail = Some(Vec::new())),
            ("role_name", |entry| entry.role_name = b"alicf".to_vec()),
            ("session_role_name", |entry| entry.session_role_name.clear()),
            ("client_address", |entry| entry.client_address = None),
            ("application_name", |entry| entry.application_name.push(b'2')),
        ];
        let original = digest(&entry());
        for (field, change) in changes {
            let mut changed = entry();
            change(&mut changed);
            assert_ne!(digest(&changed), original, "{field}");
        }
        assert_ne!(digest(&Entry { key_version: second, ..entry() }), original);
        // What moves from one field to the next.
        let mut moved = entry();
        moved.role_name = b"alic".to_vec();
        moved.session_role_name = b"eapp".to_vec();
        assert_ne!(digest(&moved), original);

        assert_ne!(Digest::of_entry(&log_key(), &entry(), &original), original);
        assert_ne!(Digest::of_entry(&DataKey::new([9; 32]), &entry(), &Digest::NONE), original);
    }

    #[test]
    fn a_stored_digest_has_its_length() {
        let digest = Digest::of_entry(&log_key(), &entry(), &Digest::NONE);
        assert_eq!(Digest::from_stored(digest.as_bytes()), Some(digest));
        assert_eq!(Digest::from_stored(&digest.as_bytes()[1..]), None);
    }
}
