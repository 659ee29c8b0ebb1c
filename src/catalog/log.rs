//! The lifecycle log: what was done to keys, as a chain of entries that carry keyed digests.
//!
//! An entry is written in the transaction of what it tells of, under the lock that makes those who
//! change keys wait for each other: so entries are chained in the order in which they are committed,
//! and one that is rolled back leaves no gap. It is then *sealed*: its digest is computed, over what
//! the table has, with the `log` subkey of the database key. Where that key can't be had, the
//! operation goes on (a revocation must not wait for a key server), the session and the server log
//! are warned, and the next entry seals this one too.
//!
//! `keyring::log` computes the digests. Each head is also written to the server log, at commit.

mod server_log;

use envelope::{KeyName, KeyVersion};
use keyring::log::{Digest, Entry};
use pgrx::Uuid;

use super::sql::SqlRow;
use super::write::{Writer, as_owner, number_of, role};
use crate::audit::{self, Change};
use crate::errors::Error;
use crate::events;
use crate::keys;

pub(crate) use server_log::register;

/// What is to be written to the log.
///
/// ```ignore
/// catalog.log(&Event::new("rotate").key(&name).versions(Some(old), Some(new)).reason(reason))?;
/// ```
pub(crate) struct Event<'a> {
    action: &'a str,
    key: Option<&'a KeyName>,
    old_version: Option<KeyVersion>,
    new_version: Option<KeyVersion>,
    row_count: Option<i64>,
    reason: Option<&'a str>,
    detail: Option<&'a str>,
}

impl<'a> Event<'a> {
    /// Something that was done: one word, or a few joined by hyphens, that docs/reference.md lists.
    pub(crate) fn new(action: &'a str) -> Self {
        Self {
            action,
            key: None,
            old_version: None,
            new_version: None,
            row_count: None,
            reason: None,
            detail: None,
        }
    }

    /// The key that it was done to.
    pub(crate) fn key(self, key: &'a KeyName) -> Self {
        Self { key: Some(key), ..self }
    }

    /// The version that was in use before or is put out of use, and the one that was made or is put
    /// in use.
    pub(crate) fn versions(self, old: Option<KeyVersion>, new: Option<KeyVersion>) -> Self {
        Self { old_version: old, new_version: new, ..self }
    }

    /// How many rows it has dealt with.
    pub(crate) fn rows(self, count: i64) -> Self {
        Self { row_count: Some(count), ..self }
    }

    /// Why, in the caller's words.
    pub(crate) fn reason(self, reason: Option<&'a str>) -> Self {
        Self { reason, ..self }
    }

    /// What else there is to say: no plaintext, and no key.
    pub(crate) fn detail(self, detail: &'a str) -> Self {
        Self { detail: Some(detail), ..self }
    }
}

/// Writes an entry to the log, with the rights of the tables' owner: for those who change nothing else
/// in the catalog. (A [`Writer`] has [`Writer::log`].)
///
/// # Errors
///
/// If the catalog can't be written.
pub(crate) fn log_event(event: &Event<'_>) -> Result<(), Error> {
    as_owner(|catalog| catalog.log(event))
}

impl Writer<'_, '_> {
    /// Writes an entry to the lifecycle log. Takes the lock of those who change keys.
    ///
    /// # Errors
    ///
    /// If the catalog can't be written. Not if the database key can't be had.
    pub(crate) fn log(&mut self, event: &Event<'_>) -> Result<(), Error> {
        self.lock()?;
        let (chain, sequence) = self.next_entry()?;
        let Event { action, key, old_version, new_version, row_count, reason, detail } = event;
        let number = |version: &Option<KeyVersion>| version.map(|version| version.get() as i32);
        let utf8 = |text: &Option<&str>| text.map(|text| text.as_bytes().to_vec());
        let caller = self.caller;
        self.run(
            "INSERT INTO encryption.key_event
                (chain, sequence, action, key_name, old_version, new_version, row_count,
                 reason, detail, role_name, session_role_name, client_address, application_name)
             VALUES ($1, $2, $3, $4, $5, $6, $7,
                 pg_catalog.convert_from($8, 'UTF8'), pg_catalog.convert_from($9, 'UTF8'),
                 pg_catalog.pg_get_userbyid($10::pg_catalog.oid), session_user,
                 pg_catalog.inet_client_addr()::pg_catalog.text,
                 pg_catalog.current_setting('application_name'))",
            &[
                chain.into(),
                sequence.into(),
                (*action).into(),
                key.map(KeyName::as_str).into(),
                number(old_version).into(),
                number(new_version).into(),
                (*row_count).into(),
                utf8(reason).into(),
                utf8(detail).into(),
                role(caller),
            ],
        )?;
        let digest = self.seal(chain)?;
        server_log::write_at_commit(server_log::line(chain, sequence, digest.as_ref(), event));
        let change = Change {
            action: (*action).to_owned(),
            key: key.cloned(),
            old_version: *old_version,
            new_version: *new_version,
            detail: detail.map(str::to_owned),
            caller,
        };
        if let Some([if_committed, if_prepared]) = audit::lines_of_change(&change) {
            server_log::write_at_commit(server_log::Line {
                is_entry: false,
                if_committed,
                if_prepared,
            });
        }
        Ok(())
    }

    /// This database's chain, and the number of its next entry.
    fn next_entry(&mut self) -> Result<(Uuid, i64), Error> {
        // Of a REPEATABLE READ transaction that can't see the last entry, PostgreSQL says that it
        // could not be serialized, as for any row that was changed meanwhile.
        const NEXT: &str = "UPDATE encryption.event_chain SET entries = entries + 1
             WHERE restored_at IS NULL RETURNING chain, entries";
        let next = |row: &SqlRow<'_>| Ok((row.required(1)?, row.required(2)?));
        if let Some(next) = self.update_returning(NEXT, &[], next)?.pop() {
            return Ok(next);
        }
        self.run("INSERT INTO encryption.event_chain DEFAULT VALUES ON CONFLICT DO NOTHING", &[])?;
        self.update_returning(NEXT, &[], next)?
            .pop()
            .ok_or(Error::Internal { what: "the lifecycle log has no chain" })
    }

    /// Gives those entries of a chain that have no digest theirs, and the chain its head. Returns the
    /// last entry's digest; none, with a warning, if the database key can't be had.
    fn seal(&mut self, chain: Uuid) -> Result<Option<Digest>, Error> {
        let version = match keys::with_log_key(None, |version, _| version) {
            Ok(version) => version,
            Err(error) => {
                events::tell(&events::Event::EntryUnsealed { error: &error.message() });
                return Ok(None);
            }
        };
        self.run(
            "UPDATE encryption.key_event e
                SET sealed_at = pg_catalog.clock_timestamp(), key_version = $2
               FROM encryption.event_chain c
              WHERE c.chain = $1 AND e.chain = c.chain AND e.sequence > c.sealed",
            &[chain.into(), number_of(version)],
        )?;
        let mut digest = self.last_digest(chain)?;
        let mut last = 0;
        let unsealed = "SELECT ".to_owned()
            + STORED
            + " FROM encryption.event_chain c JOIN encryption.key_event e ON e.chain = c.chain
               WHERE c.chain = $1 AND e.sequence > c.sealed ORDER BY e.sequence";
        for entry in self.select(&unsealed, &[chain.into()], Stored::read)? {
            let entry =
                entry.entry.ok_or(Error::Internal { what: "an entry that was just made" })?;
            digest =
                keys::with_log_key(Some(version), |_, key| Digest::of_entry(key, &entry, &digest))?;
            last = entry.sequence;
            self.run(
                "UPDATE encryption.key_event SET digest = $3 WHERE chain = $1 AND sequence = $2",
                &[chain.into(), last.into(), digest.as_bytes().to_vec().into()],
            )?;
        }
        let head = keys::with_log_key(Some(version), |version, key| {
            Digest::of_head(key, chain.as_bytes(), last, version, &digest)
        })?;
        self.run(
            "UPDATE encryption.event_chain SET sealed = $2, key_version = $3, digest = $4
              WHERE chain = $1",
            &[chain.into(), last.into(), number_of(version), head.as_bytes().to_vec().into()],
        )?;
        Ok(Some(digest))
    }

    /// The digest of the last entry that has one. Should it be gone, what follows it won't fit, which
    /// is for [`verify`] to say.
    fn last_digest(&mut self, chain: Uuid) -> Result<Digest, Error> {
        let digests = self.select(
            "SELECT e.digest FROM encryption.event_chain c
               JOIN encryption.key_event e ON e.chain = c.chain AND e.sequence = c.sealed
              WHERE c.chain = $1",
            &[chain.into()],
            |row| row.nullable::<Vec<u8>>(1),
        )?;
        let digest = digests.into_iter().flatten().next();
        Ok(digest.and_then(|bytes| Digest::from_stored(&bytes)).unwrap_or(Digest::NONE))
    }
}

/// The columns that [`Stored::read`] reads, of `encryption.key_event e`. Texts as bytes in UTF-8, which
/// stay what they are when a dump is restored in another encoding; those of a database that has none
/// as they are.
const STORED: &str = "e.sequence, e.digest,
    e.chain, e.key_version, encryption.microseconds(e.occurred_at), encryption.microseconds(e.sealed_at),
    encryption.in_utf8(e.action), encryption.in_utf8(e.key_name), e.old_version, e.new_version,
    e.row_count, encryption.in_utf8(e.reason), encryption.in_utf8(e.detail),
    encryption.in_utf8(e.role_name::pg_catalog.text),
    encryption.in_utf8(e.session_role_name::pg_catalog.text),
    encryption.in_utf8(e.client_address), encryption.in_utf8(e.application_name)";

/// An entry as the table has it.
struct Stored {
    sequence: i64,
    digest: Option<Vec<u8>>,
    /// `None` if it isn't sealed, or if somebody made of it what no entry can be.
    entry: Option<Entry>,
}

impl Stored {
    fn read(row: &SqlRow<'_>) -> Result<Self, Error> {
        Ok(Self {
            sequence: row.required(1)?,
            digest: row.nullable(2)?,
            entry: Self::read_entry(row)?,
        })
    }

    fn read_entry(row: &SqlRow<'_>) -> Result<Option<Entry>, Error> {
        let (Some(key_version), Some(occurred_at), Some(sealed_at)) =
            (row.nullable::<i32>(4)?, row.nullable(5)?, row.nullable(6)?)
        else {
            return Ok(None);
        };
        let Some(key_version) = u32::try_from(key_version).ok().and_then(KeyVersion::new) else {
            return Ok(None);
        };
        Ok(Some(Entry {
            chain: *row.required::<Uuid>(3)?.as_bytes(),
            sequence: row.required(1)?,
            key_version,
            occurred_at,
            sealed_at,
            action: row.required(7)?,
            key_name: row.nullable(8)?,
            old_version: row.nullable(9)?,
            new_version: row.nullable(10)?,
            row_count: row.nullable(11)?,
            reason: row.nullable(12)?,
            detail: row.nullable(13)?,
            role_name: row.required(14)?,
            session_role_name: row.required(15)?,
            client_address: row.nullable(16)?,
            application_name: row.required(17)?,
        }))
    }
}

/// What came of verifying a chain.
pub(crate) struct Verified {
    pub(crate) chain: Uuid,
    /// Whether it came here with a dump.
    pub(crate) is_restored: bool,
    /// How many entries the table has.
    pub(crate) entries: i64,
    /// How many of them have no digest yet.
    pub(crate) unsealed: i64,
    /// The first thing that doesn't fit.
    pub(crate) wrong: Option<Wrong>,
}

/// Something about a chain that doesn't fit.
pub(crate) struct Wrong {
    /// The entry that it is about.
    pub(crate) sequence: Option<i64>,
    /// What it is.
    pub(crate) problem: String,
}

impl Wrong {
    fn at(sequence: i64, problem: impl Into<String>) -> Self {
        Self { sequence: Some(sequence), problem: problem.into() }
    }
}

/// Recomputes every digest of the log. This database's own chain comes last.
///
/// # Errors
///
/// If the catalog can't be read. What is wrong with the log is part of the result.
pub(crate) fn verify() -> Result<Vec<Verified>, Error> {
    as_owner(|catalog| {
        // One statement, so that entries and heads are of one moment.
        let rows = "SELECT ".to_owned()
            + STORED
            + ", coalesce(c.chain, e.chain), c.chain IS NOT NULL, c.restored_at IS NOT NULL,
                 c.entries, c.sealed, c.key_version, c.digest, e.chain IS NOT NULL
               FROM encryption.event_chain c
               FULL JOIN encryption.key_event e ON e.chain = c.chain
              ORDER BY c.restored_at NULLS LAST, 18, e.sequence";
        let mut chains: Vec<Verifying> = Vec::new();
        for (head, stored) in catalog.select(&rows, &[], |row| {
            let stored = if row.required(25)? { Some(Stored::read(row)?) } else { None };
            Ok((ChainHead::read(row)?, stored))
        })? {
            if chains.last().is_none_or(|verifying| verifying.head.chain != head.chain) {
                chains.push(Verifying::new(head));
            }
            if let (Some(verifying), Some(stored)) = (chains.last_mut(), stored) {
                verifying.next(stored);
            }
        }
        Ok(chains.into_iter().map(Verifying::finish).collect())
    })
}

/// What the table of chains says about one.
struct ChainHead {
    chain: Uuid,
    /// Whether it is in that table at all.
    exists: bool,
    is_restored: bool,
    entries: Option<i64>,
    sealed: Option<i64>,
    key_version: Option<i32>,
    digest: Option<Vec<u8>>,
}

impl ChainHead {
    fn read(row: &SqlRow<'_>) -> Result<Self, Error> {
        Ok(Self {
            chain: row.required(18)?,
            exists: row.required(19)?,
            is_restored: row.required(20)?,
            entries: row.nullable(21)?,
            sealed: row.nullable(22)?,
            key_version: row.nullable(23)?,
            digest: row.nullable(24)?,
        })
    }
}

/// A chain that is being verified, entry by entry.
struct Verifying {
    head: ChainHead,
    entries: i64,
    unsealed: i64,
    previous: i64,
    digest: Digest,
    wrong: Option<Wrong>,
}

impl Verifying {
    fn new(head: ChainHead) -> Self {
        let wrong = (!head.exists).then(|| Wrong {
            sequence: None,
            problem: "the chain has entries and no head".to_owned(),
        });
        Self { head, entries: 0, unsealed: 0, previous: 0, digest: Digest::NONE, wrong }
    }

    fn next(&mut self, stored: Stored) {
        self.entries += 1;
        if self.wrong.is_some() {
            return;
        }
        let (sequence, expected) = (stored.sequence, self.previous + 1);
        self.previous = sequence;
        if sequence != expected {
            self.wrong = Some(Wrong::at(expected, "the entry is missing"));
        } else if Some(sequence) > self.head.sealed {
            // Nothing vouches for these yet.
            self.unsealed += 1;
            if stored.digest.is_some() {
                self.wrong =
                    Some(Wrong::at(sequence, "the entry has a digest and is beyond the head"));
            }
        } else {
            match check_entry(&stored, &self.digest) {
                Ok(digest) => self.digest = digest,
                Err(problem) => self.wrong = Some(Wrong::at(sequence, problem)),
            }
        }
    }

    fn finish(self) -> Verified {
        let Self { head, entries, unsealed, previous, digest, wrong } = self;
        let is_short = |count: Option<i64>| count.is_none_or(|count| previous < count);
        let wrong = wrong
            .or_else(|| {
                let missing = is_short(head.entries) || is_short(head.sealed);
                missing.then(|| Wrong::at(previous + 1, "the entry is missing"))
            })
            .or_else(|| {
                let problem = check_head(&head, &digest).err()?;
                Some(Wrong { sequence: None, problem })
            });
        Verified { chain: head.chain, is_restored: head.is_restored, entries, unsealed, wrong }
    }
}

/// The digest of a sealed entry, if it is the one that is stored; otherwise what is wrong.
fn check_entry(stored: &Stored, previous: &Digest) -> Result<Digest, String> {
    let digest = stored.digest.as_deref().and_then(Digest::from_stored);
    let (Some(entry), Some(digest)) = (&stored.entry, digest) else {
        return Err("the entry has no digest".to_owned());
    };
    let computed = keys::with_log_key(Some(entry.key_version), |_, key| {
        Digest::of_entry(key, entry, previous)
    });
    match computed {
        Ok(computed) if computed == digest => Ok(digest),
        Ok(_) => {
            Err("the entry, or the one before it, is not what it was when it was made".to_owned())
        }
        Err(error) => Err(format!("the entry cannot be verified: {}", error.message())),
    }
}

/// Whether the head is that of a chain whose last sealed entry has this digest; otherwise what is
/// wrong.
fn check_head(head: &ChainHead, last: &Digest) -> Result<(), String> {
    let Some(sealed) = head.sealed.filter(|sealed| *sealed > 0) else { return Ok(()) };
    let version = head.key_version.and_then(|version| u32::try_from(version).ok());
    let (Some(version), Some(digest)) = (version.and_then(KeyVersion::new), &head.digest) else {
        return Err("the head has no digest".to_owned());
    };
    let computed = keys::with_log_key(Some(version), |version, key| {
        Digest::of_head(key, head.chain.as_bytes(), sealed, version, last)
    });
    match computed {
        Ok(computed) if computed.as_bytes().as_slice() == digest => Ok(()),
        Ok(_) => {
            Err("the head is not that of the last entry: entries are missing at the end".to_owned())
        }
        Err(error) => Err(format!("the head cannot be verified: {}", error.message())),
    }
}
