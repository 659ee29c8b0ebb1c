//! The audit: who used which key, in lines of JSON in the server log.
//!
//! `encryption_ext.audit` says how much: nothing, changes of keys and grants, denials as well, or what
//! statements read and wrote as well. A value costs one count. A line is written at the statement's end,
//! for each key and role: how many values, never which.
//!
//! A statement is what the client sent, with all that its functions execute. What is counted is kept with
//! the backend's keys (`keys.rs`), and written when the statement ends, the next one begins or the
//! transaction ends, whichever is first; by an error it ends, too. A parallel worker writes its own lines.
//! Then it is added to the statistics (`statistics/`), too, whatever is audited.

use std::rc::Rc;
use std::time::{Duration, Instant};

use envelope::{KeyId, KeyName, KeyVersion};
use jiff::Timestamp;
use pgrx::{PostgresGucEnum, pg_sys};
use rustc_hash::FxHashMap;
use serde::Serialize;

use crate::catalog::{Key, Privilege, invalidation};
use crate::fmgr::server_log;
use crate::{access, events, keys, pg, session, settings, statistics};

/// What every line of the audit begins with.
const PREFIX: &str = "encryption_ext audit: ";

/// `encryption_ext.audit`: each level has those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, PostgresGucEnum)]
pub(crate) enum Level {
    #[name = c"off"]
    Off,
    #[name = c"keys"]
    Keys,
    #[name = c"denied"]
    Denied,
    #[name = c"access"]
    Access,
}

/// Registers for the end of transactions. Called once, when the library is loaded.
pub(crate) fn register() {
    // SAFETY: the callback never unwinds and stays valid, as a library is never unloaded.
    unsafe { pg_sys::RegisterXactCallback(Some(transaction_event), std::ptr::null_mut()) };
}

unsafe extern "C-unwind" fn transaction_event(
    event: pg_sys::XactEvent::Type,
    _argument: *mut std::ffi::c_void,
) {
    use pg_sys::XactEvent as Event;

    if matches!(
        event,
        Event::XACT_EVENT_COMMIT
            | Event::XACT_EVENT_PARALLEL_COMMIT
            | Event::XACT_EVENT_ABORT
            | Event::XACT_EVENT_PARALLEL_ABORT
            | Event::XACT_EVENT_PREPARE
    ) {
        keys::with_usage(Usage::write);
    }
}

/// A statement of the client's begins: what was sent to the client after the end of the last one is
/// written.
pub(crate) fn statement_begins() {
    let statement = pg::statement_start();
    keys::with_usage(|usage| {
        if usage.statement != statement {
            usage.begin(statement);
        }
    });
}

/// It ends.
pub(crate) fn statement_ends() {
    keys::with_usage(Usage::write);
}

/// What values were used for.
#[derive(Clone, Copy)]
pub(crate) enum Purpose {
    /// To be seen, or put in order.
    Decrypted,
    /// To learn whether they are equal to others.
    Compared,
    Encrypted,
}

impl Purpose {
    /// What a value is decrypted for by someone who needs this privilege for it.
    pub(crate) fn of(privilege: Option<Privilege>) -> Self {
        match privilege {
            Some(Privilege::Compare) | None => Self::Compared,
            Some(_) => Self::Decrypted,
        }
    }
}

/// What the present statement has used.
pub(crate) struct Usage {
    statement: i64,
    /// What it has used, and what the one before it has: mostly the same.
    slots: Vec<Slot>,
    /// The one that was counted in last. Columns come in the same order row by row.
    last: usize,
    denials: Vec<Denial>,
    past_time: PastTime,
    names: Names,
    told: Told,
}

/// The versions that a statement uses past their time, since their provider is out of reach.
#[derive(Default)]
struct PastTime {
    statement: i64,
    versions: Vec<(KeyId, KeyVersion)>,
}

/// Values under one version of a key, used with the rights of one role.
struct Slot {
    key_id: KeyId,
    version: KeyVersion,
    user: pg_sys::Oid,
    /// By [`Purpose`].
    counts: [u64; 3],
    /// By which statistics name the version.
    id: Option<statistics::VersionId>,
    key: Rc<Key>,
    role: Rc<str>,
    query_id: Option<i64>,
}

impl Slot {
    /// Whether values under this version, used with the rights of this role, are counted here.
    #[inline]
    fn is_of(&self, version: KeyVersion, key: &Rc<Key>, user: pg_sys::Oid) -> bool {
        Rc::ptr_eq(&self.key, key) && (self.version, self.user) == (version, user)
    }

    /// Whether the present statement has counted anything here.
    fn is_used(&self) -> bool {
        self.counts != [0; 3]
    }
}

/// Attempts without the privilege that they need.
struct Denial {
    key: Rc<Key>,
    user: pg_sys::Oid,
    privilege: Privilege,
    attempts: u64,
    role: Rc<str>,
    query_id: Option<i64>,
}

impl Default for Usage {
    fn default() -> Self {
        Self {
            statement: i64::MIN,
            slots: Vec::new(),
            last: 0,
            denials: Vec::new(),
            past_time: PastTime::default(),
            names: Names::default(),
            told: Told::default(),
        }
    }
}

impl Usage {
    /// The statement that is counted for, by its start.
    pub(crate) fn statement(&self) -> i64 {
        self.statement
    }

    /// Counts for another statement from now on.
    #[inline(never)]
    pub(crate) fn begin(&mut self, statement: i64) {
        self.write();
        self.statement = statement;
    }

    /// Counts a value.
    #[inline]
    pub(crate) fn count(&mut self, version: KeyVersion, key: &Rc<Key>, purpose: Purpose) {
        let user = pg::current_user();
        if !self.slots.get(self.last).is_some_and(|slot| slot.is_of(version, key, user)) {
            self.last = self.find_or_add(version, key, user);
        }
        if !self.slots[self.last].is_used() {
            self.begin_slot(user);
        }
        self.slots[self.last].counts[purpose as usize] += 1;
    }

    /// Notes whose values the last slot is about to count.
    #[inline(never)]
    fn begin_slot(&mut self, user: pg_sys::Oid) {
        let slot = &mut self.slots[self.last];
        slot.role = self.names.role(user);
        slot.query_id = pg::query_id();
    }

    /// The number of a slot that is not the last one.
    #[inline(never)]
    fn find_or_add(&mut self, version: KeyVersion, key: &Rc<Key>, user: pg_sys::Oid) -> usize {
        let is_it = |slot: &Slot| slot.is_of(version, key, user);
        let (before, after) = self.slots.split_at(self.last.min(self.slots.len()));
        let next = after.iter().position(is_it).map(|n| before.len() + n);
        next.or_else(|| before.iter().position(is_it)).unwrap_or_else(|| {
            let key_id = key.name.id();
            self.slots.push(Slot {
                key_id,
                version,
                user,
                counts: [0; 3],
                id: key
                    .version(version)
                    .map(|found| statistics::VersionId::new(key_id, version, &found.check_value)),
                key: Rc::clone(key),
                role: Rc::default(),
                query_id: None,
            });
            self.slots.len() - 1
        })
    }

    /// Counts an attempt without a privilege, and tells the server log, but not of each.
    pub(crate) fn denied(&mut self, key: &Rc<Key>, privilege: Privilege, sqlstate: &str) {
        let user = pg::current_user();
        let role = self.names.role(user);
        let is_it = |denial: &&mut Denial| {
            denial.user == user && denial.privilege == privilege && denial.key.name == key.name
        };
        match self.denials.iter_mut().find(is_it) {
            Some(denial) => denial.attempts += 1,
            None => self.denials.push(Denial {
                key: Rc::clone(key),
                user,
                privilege,
                attempts: 1,
                role: Rc::clone(&role),
                query_id: pg::query_id(),
            }),
        }
        let Some(untold) = self.told.is_due(user, &key.name, privilege) else { return };
        let more = match untold {
            0 => String::new(),
            untold => format!(", and {untold} times since this was last said"),
        };
        let (name, privilege) = (&key.name, privilege.name());
        let denial = format!(
            "role \"{role}\" has no privilege \"{privilege}\" on key \"{name}\" (SQLSTATE {sqlstate}){more}"
        );
        events::tell(&events::Event::Denied { denial: &denial });
    }

    /// Takes notice that the present statement uses a version past its time.
    pub(crate) fn used_past_time(&mut self, key_id: KeyId, version: KeyVersion) {
        let statement = pg::statement_start();
        if self.past_time.statement != statement {
            self.past_time = PastTime { statement, versions: Vec::new() };
        }
        self.past_time.versions.push((key_id, version));
    }

    /// Writes what was counted, and counts anew.
    pub(crate) fn write(&mut self) {
        if !self.slots.iter().any(Slot::is_used) && self.denials.is_empty() {
            return;
        }
        self.slots.retain(Slot::is_used);
        self.last = 0;
        let denials = std::mem::take(&mut self.denials);
        self.add_to_statistics(&denials);
        let level = settings::audit();
        if level >= Level::Access {
            self.write_access();
        }
        self.slots.iter_mut().for_each(|slot| slot.counts = [0; 3]);
        if level >= Level::Denied {
            for denial in &denials {
                let Denial { key, privilege, attempts, role, query_id, .. } = denial;
                write(&Line {
                    role: Some(role),
                    query_id: *query_id,
                    key: Some(key.name.as_str()),
                    privilege: Some(privilege.name()),
                    attempts: Some(*attempts),
                    ..self.line("denied")
                });
            }
        }
    }

    fn add_to_statistics(&self, denials: &[Denial]) {
        let mut values = statistics::Values {
            denials: denials.iter().map(|denial| denial.attempts).sum(),
            ..Default::default()
        };
        for slot in &self.slots {
            let [decrypted, compared, encrypted] = slot.counts;
            if let Some(id) = slot.id {
                statistics::add_encryptions(id, encrypted);
            }
            // The database key protects literals and parameters on their way, and no column.
            if slot.key.is_database_key() {
                continue;
            }
            values.decrypted += decrypted;
            values.compared += compared;
            values.encrypted += encrypted;
            if self.is_past_time(slot) {
                values.served_past_expiry += decrypted + compared + encrypted;
            }
        }
        statistics::add(values);
    }

    fn is_past_time(&self, slot: &Slot) -> bool {
        self.past_time.statement == self.statement
            && self.past_time.versions.contains(&(slot.key_id, slot.version))
    }

    fn write_access(&self) {
        // The database key protects literals and parameters on their way, and no column.
        let slots = self.slots.iter().filter(|slot| !slot.key.is_database_key());
        let mut lines: Vec<(&Slot, Vec<u32>, [u64; 3])> = Vec::new();
        for slot in slots {
            let of_same = |line: &&mut (&Slot, _, _)| {
                (line.0.key_id, line.0.user) == (slot.key_id, slot.user)
            };
            match lines.iter_mut().find(of_same) {
                Some((_, versions, counts)) => {
                    versions.push(slot.version.get());
                    counts.iter_mut().zip(slot.counts).for_each(|(sum, count)| *sum += count);
                }
                None => lines.push((slot, vec![slot.version.get()], slot.counts)),
            }
        }
        for (slot, mut versions, [decrypted, compared, encrypted]) in lines {
            versions.sort_unstable();
            write(&Line {
                role: Some(&slot.role),
                query_id: slot.query_id,
                key: Some(slot.key.name.as_str()),
                versions: Some(versions),
                decrypted: Some(decrypted),
                compared: Some(compared),
                encrypted: Some(encrypted),
                ..self.line("access")
            });
        }
    }

    fn line(&self, event: &'static str) -> Line<'_> {
        Line::new(event, self.statement, &self.names)
    }
}

/// A change of keys or grants, as the lifecycle log has it.
pub(crate) struct Change {
    pub(crate) action: String,
    pub(crate) key: Option<KeyName>,
    pub(crate) old_version: Option<KeyVersion>,
    pub(crate) new_version: Option<KeyVersion>,
    pub(crate) detail: Option<String>,
    /// Who asked for it; it is made with the rights of the catalog's owner.
    pub(crate) caller: pg_sys::Oid,
}

/// The lines for a change, when it is committed and when it is prepared; `None` if changes aren't
/// audited.
pub(crate) fn lines_of_change(change: &Change) -> Option<[String; 2]> {
    if settings::audit() < Level::Keys {
        return None;
    }
    let mut names = Names::default();
    let role = names.role(change.caller);
    let line = |event| {
        text_of(&Line {
            role: Some(&role),
            query_id: pg::query_id(),
            key: change.key.as_ref().map(KeyName::as_str),
            action: Some(&change.action),
            old_version: change.old_version.map(KeyVersion::get),
            new_version: change.new_version.map(KeyVersion::get),
            detail: change.detail.as_deref(),
            ..Line::new(event, pg::statement_start(), &names)
        })
    };
    Some(["change", "prepared_change"].map(line))
}

/// A line of the audit. What doesn't concern its event is left out.
#[derive(Serialize)]
struct Line<'a> {
    /// When the statement began.
    time: String,
    event: &'static str,
    pid: i32,
    #[serde(skip_serializing_if = "Option::is_none")]
    leader_pid: Option<i32>,
    database: &'a str,
    session_role: &'a str,
    role: Option<&'a str>,
    application: String,
    client: Option<&'a str>,
    query_id: Option<i64>,
    key: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    action: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    old_version: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    new_version: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    privilege: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    attempts: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    versions: Option<Vec<u32>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    decrypted: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    compared: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    encrypted: Option<u64>,
}

impl<'a> Line<'a> {
    fn new(event: &'static str, statement: i64, names: &'a Names) -> Self {
        Self {
            time: time(statement),
            event,
            pid: session::process_id().cast_signed(),
            leader_pid: session::leader_process_id(),
            database: &names.database,
            session_role: &names.session_role,
            role: None,
            application: session::application_name(),
            client: names.client.as_deref(),
            query_id: None,
            key: None,
            action: None,
            old_version: None,
            new_version: None,
            detail: None,
            privilege: None,
            attempts: None,
            versions: None,
            decrypted: None,
            compared: None,
            encrypted: None,
        }
    }
}

fn write(line: &Line<'_>) {
    server_log(&text_of(line));
}

/// In ASCII, since a server log has texts in the encodings of all of its databases.
fn text_of(line: &Line<'_>) -> String {
    let json = serde_json::to_string(line).unwrap_or_default();
    let mut text = PREFIX.to_owned();
    for character in json.chars() {
        if character.is_ascii() {
            text.push(character);
            continue;
        }
        for unit in character.encode_utf16(&mut [0; 2]) {
            text.push_str(&format!("\\u{unit:04x}"));
        }
    }
    text
}

/// `TimestampTz` of `src/include/datatype/timestamp.h`, microseconds since 2000, as RFC 3339 has it.
fn time(microseconds: i64) -> String {
    const EPOCH: i64 = 946_684_800_000_000;
    let since_1970 = microseconds.saturating_add(EPOCH);
    Timestamp::from_microsecond(since_1970).map(|time| time.to_string()).unwrap_or_default()
}

/// Names for lines, which are looked up when something is counted first: when a line is written the
/// transaction may be at its end, and no catalog can be read.
#[derive(Default)]
struct Names {
    generation: u64,
    roles: FxHashMap<pg_sys::Oid, Rc<str>>,
    session_role: Rc<str>,
    database: String,
    client: Option<String>,
}

impl Names {
    /// The name of a role, and those of the session.
    fn role(&mut self, role: pg_sys::Oid) -> Rc<str> {
        if !session::may_wait() {
            return self.known(role);
        }
        let generation = invalidation::role_generation();
        if self.generation != generation {
            self.roles.clear();
            self.generation = generation;
        }
        if self.database.is_empty() {
            self.database = session::database_name();
            self.client = session::client_address();
        }
        self.session_role = self.look_up(pg::session_user());
        self.look_up(role)
    }

    fn look_up(&mut self, role: pg_sys::Oid) -> Rc<str> {
        let name = self.roles.entry(role).or_insert_with(|| access::role_name(role).into());
        Rc::clone(name)
    }

    fn known(&self, role: pg_sys::Oid) -> Rc<str> {
        self.roles.get(&role).map_or_else(|| role.to_u32().to_string().into(), Rc::clone)
    }
}

/// When the server log was last told of denials.
#[derive(Default)]
struct Told(Vec<(pg_sys::Oid, KeyName, Privilege, Instant, u64)>);

impl Told {
    const INTERVAL: Duration = Duration::from_secs(60);
    const MAX: usize = 100;

    /// How many denials it has not been told of, if it is time to tell it.
    fn is_due(&mut self, user: pg_sys::Oid, key: &KeyName, privilege: Privilege) -> Option<u64> {
        let now = Instant::now();
        let is_it = |told: &&mut (pg_sys::Oid, KeyName, Privilege, Instant, u64)| {
            told.0 == user && told.1 == *key && told.2 == privilege
        };
        if let Some((.., at, untold)) = self.0.iter_mut().find(is_it) {
            if now.saturating_duration_since(*at) < Self::INTERVAL {
                *untold += 1;
                return None;
            }
            *at = now;
            return Some(std::mem::take(untold));
        }
        if self.0.len() == Self::MAX {
            self.0.clear();
        }
        self.0.push((user, key.clone(), privilege, now, 0));
        Some(0)
    }
}
