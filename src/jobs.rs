//! Jobs: work on a column that takes many transactions, as the procedures in `sql/` do it.
//!
//! A job is a row of `encryption.job`; the parts of its present step are rows of
//! `encryption.job_range`. A session claims a part by locking its row, for one transaction at a time:
//! what a session has committed is kept, and the claim of one that is gone is gone with it.
//!
//! Whoever owns the job's table may work on it; the tables are written with the rights of their owner.

use envelope::KeyName;
use pgrx::datum::DatumWithOid;
use pgrx::{IntoDatum, pg_sys};

use crate::access;
use crate::catalog::log::Event;
use crate::catalog::write::{Writer, as_owner, refuse_if_read_only};
use crate::errors::Error;
use crate::fmgr::{Call, sql_function};
use crate::functions::rows::{Row, return_rows};
use crate::varlena::text_datum;

/// A job of whose table the caller is an owner.
struct Job {
    id: i64,
    state: String,
    pass: i32,
}

impl Job {
    /// # Errors
    ///
    /// If there is none with this id, or the caller may not work on it.
    fn of_caller(id: i64, catalog: &mut Writer<'_, '_>) -> Result<Self, Error> {
        const JOB: &str = "
            SELECT job_id, table_id::bigint, table_name, state, pass FROM encryption.job
             WHERE job_id = $1";
        Self::find(JOB, id, catalog)?.ok_or(Error::JobUnknown { job: id })
    }

    /// # Errors
    ///
    /// If there is none that has this range, or the caller may not work on it.
    fn of_range(range: i64, catalog: &mut Writer<'_, '_>) -> Result<Self, Error> {
        // A join would take several times as long to plan, and each batch asks.
        const JOB: &str = "
            SELECT job_id, table_id::bigint, table_name, state, pass FROM encryption.job
             WHERE job_id = (SELECT job_id FROM encryption.job_range WHERE range_id = $1)";
        Self::find(JOB, range, catalog)?.ok_or(Error::JobUnknown { job: 0 })
    }

    fn find(sql: &str, id: i64, catalog: &mut Writer<'_, '_>) -> Result<Option<Self>, Error> {
        let caller = catalog.caller();
        let row = catalog.row(sql, &[id.into()], |row| {
            let job =
                Self { id: row.required(1)?, state: row.required(4)?, pass: row.required(5)? };
            Ok((job, row.required(2)?, row.required::<String>(3)?))
        })?;
        let Some((job, table_id, table)) = row else { return Ok(None) };
        check_owner(oid_of(table_id), &table, caller)?;
        Ok(Some(job))
    }
}

/// Whether `user` owns the table, as far as it exists: what is left of a job whose table is gone,
/// superusers may tidy up.
fn check_owner(table: pg_sys::Oid, name: &str, user: pg_sys::Oid) -> Result<(), Error> {
    let owns = access::is_table_owner(user, table);
    if owns { Ok(()) } else { Err(Error::NotTableOwner { table: name.to_owned() }) }
}

fn oid_of(number: i64) -> pg_sys::Oid {
    pg_sys::Oid::from(u32::try_from(number).unwrap_or(0))
}

sql_function! {
    /// `encryption.begin_job(kind text, table_id oid, column_name name, key_name text, options jsonb)
    /// RETURNS SETOF record`
    fn encryption_begin_job(call) {
        refuse_if_read_only(c"encryption.begin_job()");
        let kind = call.text(0)?;
        let table_id = call.oid(1);
        let column = call.name(2)?;
        let key_name = call.nullable(3).map(|_| call.text(3)).transpose()?;
        let options = jsonb(call, 4);
        let table = table_name(table_id)?;
        as_owner(|catalog| {
            check_owner(table_id, &table, catalog.caller())?;
            let number = column_number(catalog, table_id, &table, &column)?;
            let begun = begin(catalog, NewJob { kind: &kind, table_id, table: &table, number, column: &column, key_name: key_name.as_deref(), options })?;
            Ok(begun)
        })
        .and_then(|(job, is_new)| {
            return_rows(call, &[vec![job.into_datum(), is_new.into_datum()]])
        })
    }
}

/// What a job is begun with.
struct NewJob<'a> {
    kind: &'a str,
    table_id: pg_sys::Oid,
    table: &'a str,
    number: i16,
    column: &'a str,
    key_name: Option<&'a str>,
    options: DatumWithOid<'a>,
}

/// Inserts a job, or sets the one that the column has going again.
fn begin(catalog: &mut Writer<'_, '_>, job: NewJob<'_>) -> Result<(i64, bool), Error> {
    const INSERT: &str = "
        INSERT INTO encryption.job
            (kind, table_id, column_number, table_name, column_name, key_name, options, started_by)
        VALUES ($1, $2::oid, $3, $4, $5, $6, $7, pg_catalog.pg_get_userbyid($8::oid))
        ON CONFLICT (table_id, column_number) WHERE state <> 'completed' DO UPDATE
           SET state = CASE WHEN job.kind = excluded.kind THEN 'running' ELSE job.state END,
               options = CASE WHEN job.kind <> excluded.kind THEN job.options
                              -- Who joins it, as workers do, need not say again why it was begun.
                              ELSE excluded.options || pg_catalog.jsonb_build_object('reason',
                                  coalesce(excluded.options ->> 'reason', job.options ->> 'reason')) END,
               ended_at = CASE WHEN job.kind = excluded.kind THEN NULL ELSE job.ended_at END
        RETURNING job_id, xmax = 0, kind";
    // Whoever joins others that work on it doesn't begin anew.
    const RESUME: &str = "
        UPDATE encryption.job
           SET resumed_at = pg_catalog.clock_timestamp(), last_error = NULL,
               resumed_rows = rows_done + coalesce(
                   (SELECT pg_catalog.sum(rows_done) FROM encryption.job_range r
                     WHERE r.job_id = job.job_id AND step = 'walk'), 0)
         WHERE job_id = $1 AND NOT EXISTS (
               SELECT FROM encryption.job_range r
                WHERE r.job_id = job.job_id AND r.worker <> pg_catalog.pg_backend_pid()
                  AND r.changed_at > pg_catalog.clock_timestamp() - interval '10 seconds'
                  AND r.worker IN (SELECT pid FROM pg_catalog.pg_stat_activity))";
    let NewJob { kind, table_id, table, number, column, key_name, options } = job;
    let caller = i64::from(catalog.caller().to_u32());
    let arguments = [
        kind.into(),
        i64::from(table_id.to_u32()).into(),
        number.into(),
        table.into(),
        column.into(),
        key_name.into(),
        options,
        caller.into(),
    ];
    const UNEXPECTED: Error = Error::Internal { what: "a job was neither begun nor found" };
    let row = catalog.row(INSERT, &arguments, |row| {
        Ok((row.required::<i64>(1)?, row.required(2)?, row.required::<String>(3)?))
    })?;
    let (id, is_new, other) = row.ok_or(UNEXPECTED)?;
    if other != kind {
        return Err(Error::JobOfOtherKind {
            job: id,
            kind: other,
            table: table.to_owned(),
            column: column.to_owned(),
        });
    }
    catalog.run(RESUME, &[id.into()])?;
    if is_new {
        log(catalog, id, "began")?;
    }
    Ok((id, is_new))
}

/// Notes in the lifecycle log what became of a job.
fn log(catalog: &mut Writer<'_, '_>, job: i64, what: &str) -> Result<(), Error> {
    const JOB: &str = "
        SELECT key_name, pg_catalog.format('job %s, %s %s.%s: %s', job_id, kind, table_name,
                   pg_catalog.quote_ident(column_name), $2), rows_done, options ->> 'reason'
          FROM encryption.job WHERE job_id = $1";
    let row = catalog.row(JOB, &[job.into(), what.into()], |row| {
        let names = row.nullable::<String>(1)?.unwrap_or_default();
        Ok((names, row.required::<String>(2)?, row.required(3)?, row.nullable::<String>(4)?))
    })?;
    let Some((names, detail, rows, reason)) = row else { return Ok(()) };
    // A composite type may hold values under several keys.
    for name in names.split(", ") {
        if let Ok(name) = KeyName::parse(name) {
            let event = Event::new("job").key(&name).rows(rows).detail(&detail);
            catalog.log(&event.reason(reason.as_deref()))?;
        }
    }
    Ok(())
}

fn column_number(
    catalog: &mut Writer<'_, '_>,
    table_id: pg_sys::Oid,
    table: &str,
    column: &str,
) -> Result<i16, Error> {
    const COLUMN: &str = "
        SELECT attnum FROM pg_catalog.pg_attribute
         WHERE attrelid = $1::oid AND attname = $2 AND attnum > 0 AND NOT attisdropped";
    catalog
        .value(COLUMN, &[i64::from(table_id.to_u32()).into(), column.into()])?
        .ok_or_else(|| Error::ColumnUnknown { table: table.to_owned(), column: column.to_owned() })
}

/// A table's name with its schema, in SQL.
pub(crate) fn table_name(table: pg_sys::Oid) -> Result<String, Error> {
    // SAFETY: look-ups in system caches; a null pointer says that there is none.
    unsafe {
        let name = pg_sys::get_rel_name(table);
        let schema = pg_sys::get_namespace_name(pg_sys::get_rel_namespace(table));
        if name.is_null() || schema.is_null() {
            return Err(Error::TableUnknown { table: table.to_u32() });
        }
        let name = pg_sys::quote_qualified_identifier(schema, name);
        crate::types::encoding::utf8_string(std::ffi::CStr::from_ptr(name).to_bytes())
    }
}

sql_function! {
    /// `encryption.plan_ranges(job_id bigint, step text, table_ids oid[]) RETURNS boolean`
    fn encryption_plan_ranges(call) {
        refuse_if_read_only(c"encryption.plan_ranges()");
        call.refuse_nulls()?;
        let step = call.text(1)?;
        let tables = array_of_oids(call, 2);
        let planned = as_owner(|catalog| {
            let job = Job::of_caller(call.int8(0), catalog)?;
            plan(catalog, &job, &step, tables)
        })?;
        Ok(pg_sys::Datum::from(planned))
    }
}

fn plan(
    catalog: &mut Writer<'_, '_>,
    job: &Job,
    step: &str,
    tables: DatumWithOid<'_>,
) -> Result<bool, Error> {
    // Of several sessions that find nothing left to claim, one plans.
    const LOCK: &str = "SELECT state FROM encryption.job WHERE job_id = $1 FOR UPDATE";
    const UNFINISHED: &str =
        "SELECT 1 FROM encryption.job_range WHERE job_id = $1 AND next_block < end_block LIMIT 1";
    // Up to 64 pieces a table, each of 2 MB at the least, so that several sessions find work.
    const INSERT: &str = "
        INSERT INTO encryption.job_range (job_id, step, table_id, first_block, next_block, end_block)
        SELECT $1, $2, t.table_id, first_block, first_block,
               CASE $2 WHEN 'check' THEN 1 ELSE least(first_block + piece, blocks) END
          FROM pg_catalog.unnest($3) WITH ORDINALITY t (table_id, n),
               LATERAL (SELECT greatest(pg_catalog.pg_relation_size(t.table_id)
                               / pg_catalog.current_setting('block_size')::bigint, 1) AS blocks) size,
               LATERAL (SELECT CASE $2 WHEN 'check' THEN blocks
                                       ELSE greatest(256, (blocks + 63) / 64) END AS piece) pieces,
               LATERAL pg_catalog.generate_series(0, blocks - 1, piece) first_block
         ORDER BY t.n, first_block";
    // The version that the values are to have may have changed since the last pass.
    const NEXT_PASS: &str = "
        UPDATE encryption.job
           SET pass = pass + 1,
               to_version = (SELECT version FROM encryption.key_version v JOIN encryption.key k USING (key_id)
                              WHERE k.name = job.key_name AND v.state = 'active'),
               from_version = (SELECT version FROM encryption.key_version v JOIN encryption.key k USING (key_id)
                                WHERE k.name = job.key_name AND v.deprecated_at IS NOT NULL
                                ORDER BY v.deprecated_at DESC LIMIT 1)
         WHERE job_id = $1";
    const ESTIMATE: &str = "
        UPDATE encryption.job
           SET rows_total = (SELECT pg_catalog.sum(reltuples) FILTER (WHERE reltuples >= 0)::bigint
                               FROM pg_catalog.pg_class WHERE oid = ANY ($2))
         WHERE job_id = $1 AND rows_total IS NULL";

    let state: Option<String> = catalog.value(LOCK, &[job.id.into()])?;
    let is_unfinished = catalog.row(UNFINISHED, &[job.id.into()], |_| Ok(()))?.is_some();
    if state.as_deref() == Some("completed") || is_unfinished {
        return Ok(false);
    }
    fold(catalog, job.id)?;
    if step == "walk" {
        catalog.run(NEXT_PASS, &[job.id.into()])?;
    }
    catalog.run(ESTIMATE, &[job.id.into(), copy(&tables)])?;
    catalog.run(INSERT, &[job.id.into(), step.into(), tables])?;
    Ok(true)
}

/// Adds what the ranges of the present step came to, and deletes them.
fn fold(catalog: &mut Writer<'_, '_>, job: i64) -> Result<(), Error> {
    // A check has found how many rows are left: after it, the total is no estimate. Damaged values
    // are met again in each pass.
    const FOLD: &str = "
        WITH finished AS (DELETE FROM encryption.job_range WHERE job_id = $1 RETURNING *),
             sums AS (
                SELECT pg_catalog.sum(rows_done) FILTER (WHERE step = 'walk') AS rows_done,
                       pg_catalog.sum(rows_locked) FILTER (WHERE step = 'check') AS rows_left,
                       pg_catalog.sum(rows_damaged) FILTER (WHERE step = 'walk') AS rows_damaged
                  FROM finished)
        UPDATE encryption.job
           SET rows_done = job.rows_done + coalesce(sums.rows_done, 0),
               rows_total = coalesce(job.rows_done + sums.rows_left, rows_total),
               rows_damaged = coalesce(sums.rows_damaged, job.rows_damaged),
               changed_at = pg_catalog.clock_timestamp()
          FROM sums
         WHERE job_id = $1";
    catalog.run(FOLD, &[job.into()])?;
    Ok(())
}

fn copy<'a>(argument: &DatumWithOid<'a>) -> DatumWithOid<'a> {
    // SAFETY: the same value with the same type.
    unsafe { DatumWithOid::new_from_datum(argument.datum(), argument.oid()) }
}

sql_function! {
    /// `encryption.claim_range(job_id bigint, preferred bigint) RETURNS SETOF record`
    fn encryption_claim_range(call) {
        refuse_if_read_only(c"encryption.claim_range()");
        let preferred = call.nullable(1).map(|_| call.int8(1));
        let claim = as_owner(|catalog| {
            let job = Job::of_caller(call.int8(0), catalog)?;
            claim(catalog, job, preferred)
        })?;
        return_rows(call, &[claim.row()?])
    }
}

/// What a session gets to do: a range, or what the finished ranges of the step came to. It has no
/// datums, as those that are made while SPI is connected go with the connection.
struct Claim {
    state: String,
    pass: i32,
    range: Option<ClaimedRange>,
    step: Option<Step>,
}

struct ClaimedRange {
    id: i64,
    step: String,
    table: pg_sys::Oid,
    next_block: i64,
    end_block: i64,
}

struct Step {
    is_unfinished: bool,
    name: Option<String>,
    rows_done: Option<i64>,
    rows_locked: Option<i64>,
}

/// Claims a range that no other session has locked, the preferred one first, so that each session stays
/// in its part of the table.
fn claim(catalog: &mut Writer<'_, '_>, job: Job, preferred: Option<i64>) -> Result<Claim, Error> {
    const CLAIM: &str = "
        SELECT range_id, step, table_id::bigint, next_block, end_block
          FROM encryption.job_range
         WHERE job_id = $1 AND next_block < end_block
         ORDER BY range_id IS DISTINCT FROM $2, range_id
         LIMIT 1 FOR UPDATE SKIP LOCKED";
    const STEP: &str = "
        SELECT coalesce(pg_catalog.bool_or(next_block < end_block), false), pg_catalog.max(step),
               pg_catalog.sum(rows_done)::bigint, pg_catalog.sum(rows_locked)::bigint
          FROM encryption.job_range WHERE job_id = $1";

    let range = catalog.row(CLAIM, &[job.id.into(), preferred.into()], |row| {
        Ok(ClaimedRange {
            id: row.required(1)?,
            step: row.required(2)?,
            table: oid_of(row.required(3)?),
            next_block: row.required(4)?,
            end_block: row.required(5)?,
        })
    })?;
    let step = match range {
        Some(_) => None,
        None => catalog.row(STEP, &[job.id.into()], |row| {
            Ok(Step {
                is_unfinished: row.required(1)?,
                name: row.nullable(2)?,
                rows_done: row.nullable(3)?,
                rows_locked: row.nullable(4)?,
            })
        })?,
    };
    Ok(Claim { state: job.state, pass: job.pass, range, step })
}

impl Claim {
    /// The row that `encryption.claim_range` returns.
    fn row(self) -> Result<Row, Error> {
        let text = |text: String| text_datum(text.as_bytes());
        let mut row = vec![Some(text(self.state)?), self.pass.into_datum()];
        match self.range {
            Some(range) => row.extend([
                range.id.into_datum(),
                Some(text(range.step)?),
                range.table.into_datum(),
                range.next_block.into_datum(),
                range.end_block.into_datum(),
            ]),
            None => row.extend([None; 5]),
        }
        match self.step {
            Some(step) => row.extend([
                step.is_unfinished.into_datum(),
                step.name.map(text).transpose()?,
                step.rows_done.into_datum(),
                step.rows_locked.into_datum(),
            ]),
            None => row.extend([None; 4]),
        }
        Ok(row)
    }
}

sql_function! {
    /// `encryption.advance_range(range_id bigint, next_block bigint, rows_done bigint,
    /// rows_locked bigint, rows_damaged bigint) RETURNS void`
    fn encryption_advance_range(call) {
        const ADVANCE: &str = "
            UPDATE encryption.job_range
               SET next_block = least($2, end_block), rows_done = rows_done + $3,
                   rows_locked = rows_locked + $4, rows_damaged = rows_damaged + $5,
                   worker = pg_catalog.pg_backend_pid(), changed_at = pg_catalog.clock_timestamp()
             WHERE range_id = $1";
        refuse_if_read_only(c"encryption.advance_range()");
        call.refuse_nulls()?;
        let range = call.int8(0);
        as_owner(|catalog| {
            Job::of_range(range, catalog)?;
            let amounts = (1..5).map(|n| call.int8(n).into());
            let arguments: Vec<_> = std::iter::once(range.into()).chain(amounts).collect();
            catalog.run(ADVANCE, &arguments)
        })?;
        Ok(pg_sys::Datum::from(0usize))
    }
}

sql_function! {
    /// `encryption.set_job_state(job_id bigint, state text, error text) RETURNS void`
    fn encryption_set_job_state(call) {
        const SET: &str = "
            UPDATE encryption.job
               SET state = $2, last_error = coalesce($3, last_error),
                   changed_at = pg_catalog.clock_timestamp(),
                   ended_at = CASE WHEN $2 IN ('completed', 'incomplete', 'failed', 'canceled')
                                   THEN pg_catalog.clock_timestamp() END
             WHERE job_id = $1 AND state <> 'completed'
               -- Who notes that work goes on doesn't take back that it is to stop.
               AND NOT (state IN ('canceled', 'failed') AND $2 IN ('running', 'paused'))";
        refuse_if_read_only(c"encryption.set_job_state()");
        let state = call.text(1)?;
        let error = call.nullable(2).map(|_| call.text(2)).transpose()?;
        as_owner(|catalog| {
            let job = Job::of_caller(call.int8(0), catalog)?;
            if matches!(state.as_str(), "completed" | "incomplete") {
                fold(catalog, job.id)?;
            }
            catalog.run(SET, &[job.id.into(), state.as_str().into(), error.as_deref().into()])?;
            match state.as_str() {
                "running" | "paused" => Ok(()),
                ended => log(catalog, job.id, ended),
            }
        })?;
        Ok(pg_sys::Datum::from(0usize))
    }
}

/// Argument `n`, a `jsonb`, to be handed on.
pub(crate) fn jsonb(call: &Call, n: usize) -> DatumWithOid<'static> {
    // SAFETY: SQL declares the argument jsonb, and it outlives the call.
    unsafe { argument_of_type(call.nullable(n), pg_sys::JSONBOID) }
}

/// Argument `n`, an `oid[]`, to be handed on.
fn array_of_oids(call: &Call, n: usize) -> DatumWithOid<'static> {
    // SAFETY: SQL declares the argument oid[], and it outlives the call.
    unsafe { argument_of_type(call.nullable(n), pg_sys::OIDARRAYOID) }
}

/// # Safety
///
/// `datum` is of the type, and outlives what is returned.
unsafe fn argument_of_type(
    datum: Option<pg_sys::Datum>,
    type_id: pg_sys::Oid,
) -> DatumWithOid<'static> {
    match datum {
        // SAFETY: the caller's promise.
        Some(datum) => unsafe { DatumWithOid::new(datum, type_id) },
        None => DatumWithOid::null_oid(type_id),
    }
}
