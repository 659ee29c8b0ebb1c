//! Whether the database may have been restored since its keys were last compared with their providers:
//! then the catalog may be older than the keys.
//!
//! What tells is stored beside the keyspace: the cluster's system identifier, its timeline, and the
//! base backup that it was started from. A new timeline alone says nothing: a standby that is promoted
//! begins one too, with all that it was sent, and a failover must not have every session warned. What
//! counts is whether recovery ended before the end of what it had, which the timeline's history file
//! tells. A base backup that is started without an archive begins no timeline; the `backup_label.old`
//! that recovery leaves behind shows it.

use std::fs;
use std::path::PathBuf;

use pgrx::{IntoDatum, pg_sys};

use crate::catalog::{self, Server};
use crate::errors::Error;
use crate::fmgr::sql_function;
use crate::functions::rows::return_rows;
use crate::settings;
use crate::varlena::text_datum;

/// Why the catalog may be older than the keys, if it may. A standby can't tell, and follows.
///
/// # Errors
///
/// If the catalog can't be read.
pub(crate) fn why() -> Result<Option<String>, Error> {
    let Some(here) = this_server() else { return Ok(None) };
    let known = catalog::read_server()?;
    Ok(difference(known.as_ref(), &here, |timeline| {
        fs::read_to_string(in_data_directory(&format!("pg_wal/{timeline:08X}.history"))).ok()
    }))
}

/// The server that this is; `None` on a standby.
pub(crate) fn this_server() -> Option<Server> {
    // SAFETY: reads shared memory, which is attached in every process that runs SQL.
    if unsafe { pg_sys::RecoveryInProgress() } {
        return None;
    }
    // SAFETY: as before; recovery is over.
    let (system_identifier, timeline) =
        unsafe { (pg_sys::GetSystemIdentifier().cast_signed(), insertion_timeline()) };
    let label = fs::read_to_string(in_data_directory("backup_label.old")).unwrap_or_default();
    Some(Server { system_identifier, timeline, base_backup: base_backup(&label, timeline) })
}

#[cfg(not(feature = "pg14"))]
unsafe fn insertion_timeline() -> i32 {
    // SAFETY: the caller has seen that recovery is over.
    unsafe { pg_sys::GetWALInsertionTimeLine() }.cast_signed()
}

#[cfg(feature = "pg14")]
unsafe fn insertion_timeline() -> i32 {
    // SAFETY: RecoveryInProgress(), which the caller has called, has set it (xlog.c).
    unsafe { pg_sys::ThisTimeLineID }.cast_signed()
}

fn in_data_directory(file: &str) -> PathBuf {
    PathBuf::from(settings::in_data_directory(file))
}

/// The base backup that the server was started from without leaving the backup's timeline: where the
/// backup starts, and when. One that was followed by recovery to another timeline is the past of that.
fn base_backup(label: &str, timeline: i32) -> Option<String> {
    let field = |name: &str| label.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let started_on = field("START TIMELINE:")?.parse::<i32>().ok()?;
    let backup =
        [field("START WAL LOCATION:")?, field("START TIME:")?, field("LABEL:")?].join(", ");
    (started_on == timeline).then_some(backup)
}

/// What has happened between the server that is known and this one, if the catalog may have become
/// older by it. `history` reads a timeline's history file.
fn difference(
    known: Option<&Server>,
    here: &Server,
    history: impl Fn(i32) -> Option<String>,
) -> Option<String> {
    let Some(known) = known else {
        return Some("it was restored from a dump".to_owned());
    };
    if known.system_identifier != here.system_identifier {
        return Some("it comes from another cluster".to_owned());
    }
    if known.timeline != here.timeline {
        let Some(history) = history(here.timeline) else {
            return Some(format!("timeline {} has no history file", here.timeline));
        };
        if let Some(why) = early_end(&history, known.timeline) {
            return Some(why);
        }
    }
    match &here.base_backup {
        Some(backup) if known.base_backup.as_ref() != Some(backup) => {
            Some(format!("the server was started from a base backup ({backup})"))
        }
        _ => None,
    }
}

/// What a history file says about recovery that ended, on this timeline or a later one, before the end
/// of the WAL. Its lines are `timeline TAB end TAB reason` (`src/backend/access/transam/timeline.c`).
fn early_end(history: &str, since: i32) -> Option<String> {
    let mut is_descendant = false;
    for line in history.lines() {
        let mut fields = line.splitn(3, '\t');
        let Some(timeline) = fields.next().and_then(|field| field.trim().parse::<i32>().ok())
        else {
            continue;
        };
        is_descendant |= timeline == since;
        let reason = fields.nth(1).unwrap_or_default().trim();
        if timeline >= since && reason != "no recovery target specified" {
            return Some(format!(
                "timeline {timeline} was recovered to a point in time ({reason})"
            ));
        }
    }
    (!is_descendant).then(|| format!("its timeline does not descend from timeline {since}"))
}

sql_function! {
    /// `encryption.this_server() RETURNS SETOF record`
    fn encryption_this_server(call) {
        let row = |server: Server| -> Result<_, Error> {
            let Server { system_identifier, timeline, base_backup } = server;
            let base_backup = base_backup.map(|backup| text_datum(backup.as_bytes())).transpose()?;
            Ok(vec![system_identifier.into_datum(), timeline.into_datum(), base_backup])
        };
        let rows = this_server().map(row).transpose()?;
        return_rows(call, rows.as_slice())
    }
}

sql_function! {
    /// `encryption.restored_from() RETURNS text`
    fn encryption_restored_from(call) {
        match why()? {
            Some(why) => text_datum(why.as_bytes()),
            None => Ok(call.null()),
        }
    }
}
