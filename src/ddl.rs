//! The event trigger that refuses what would leak or break: so far, columns that name no key.
//!
//! It looks at what the command left in the system catalogs and not at its text, so it doesn't
//! matter which command, default or inheritance made a column.

use std::cell::RefCell;

use pgrx::pg_sys;
use pgrx::spi::{OwnedPreparedStatement, Spi};

use crate::errors::Error;
use crate::fmgr::sql_function;
use crate::{keys, session, settings};

/// The columns without a type modifier, of the relations and types that the command reports, whose
/// type is one of ours, an array or a range of it, or a domain over any of them; and such domains and
/// ranges. A domain's own modifier counts for the columns that have the domain's type; a range's
/// bounds can't have one. Views are left out: they store nothing.
///
/// It goes from the few columns that were reported to their types, by indexes, since it runs after
/// every command that makes or alters a table.
const WITHOUT_KEY: &str = r#"
WITH RECURSIVE reported AS (
    SELECT command.classid, command.objid
      FROM pg_catalog.pg_event_trigger_ddl_commands() command
), candidate (relation, attribute, named_type, type_id) AS (
    SELECT relation.oid, attribute.attnum, NULL::pg_catalog.oid, attribute.atttypid
      FROM reported
      JOIN pg_catalog.pg_class relation ON relation.oid = CASE reported.classid
               WHEN 'pg_catalog.pg_class'::pg_catalog.regclass THEN reported.objid
               WHEN 'pg_catalog.pg_type'::pg_catalog.regclass THEN
                   (SELECT typrelid FROM pg_catalog.pg_type WHERE oid = reported.objid) END
      JOIN pg_catalog.pg_attribute attribute ON attribute.attrelid = relation.oid
     WHERE relation.relkind IN ('r', 'p', 'f', 'm', 'c')
       AND attribute.attnum > 0 AND NOT attribute.attisdropped AND attribute.atttypmod = -1
  UNION ALL
    SELECT NULL, NULL, named.oid, named.oid
      FROM reported
      JOIN pg_catalog.pg_type named ON named.oid = reported.objid
     WHERE reported.classid = 'pg_catalog.pg_type'::pg_catalog.regclass
       AND named.typtype IN ('d', 'r')
), resolved AS (
    SELECT candidate.*, candidate.type_id AS inner_type_id FROM candidate
  UNION ALL
    SELECT resolved.relation, resolved.attribute, resolved.named_type, resolved.type_id,
           CASE WHEN type.typtype = 'd' THEN type.typbasetype
                WHEN type.typtype = 'r' THEN
                    (SELECT rngsubtype FROM pg_catalog.pg_range WHERE rngtypid = type.oid)
                WHEN type.typtype = 'm' THEN
                    (SELECT rngsubtype FROM pg_catalog.pg_range WHERE rngmultitypid = type.oid)
                ELSE type.typelem END
      FROM resolved
      JOIN pg_catalog.pg_type type ON type.oid = resolved.inner_type_id
     WHERE type.typtype = 'd' AND type.typtypmod = -1
        OR type.typtype IN ('r', 'm')
        OR type.typcategory = 'A' AND type.typelem <> 0
)
SELECT CASE WHEN resolved.named_type IS NULL
            THEN pg_catalog.format('column "%s" of "%s"', attribute.attname, relation.relname)
            ELSE pg_catalog.format('type "%s"', named.typname) END,
       encrypted.typname::text, attribute.attname::text,
       relation.oid::pg_catalog.regclass::text, pg_catalog.format_type(resolved.type_id, -1),
       relation.relkind IN ('r', 'p')
  FROM resolved
  JOIN pg_catalog.pg_type encrypted ON encrypted.oid = resolved.inner_type_id
   AND encrypted.typname IN ('encrypted_text', 'encrypted_bytea')
   AND encrypted.typnamespace = (SELECT extnamespace FROM pg_catalog.pg_extension
                                  WHERE extname = 'encryption_ext')
  LEFT JOIN pg_catalog.pg_class relation ON relation.oid = resolved.relation
  LEFT JOIN pg_catalog.pg_attribute attribute
    ON attribute.attrelid = resolved.relation AND attribute.attnum = resolved.attribute
  LEFT JOIN pg_catalog.pg_type named ON named.oid = resolved.named_type
 ORDER BY 1"#;

/// A column, or a type, that names no key.
struct WithoutKey {
    /// Which, for a message.
    object: String,
    /// The name of our type.
    type_name: String,
    /// The column, if its type can be changed.
    column: Option<Column>,
}

/// A table's column, in SQL.
struct Column {
    name: String,
    table: String,
    /// Its type without a modifier.
    column_type: String,
}

sql_function! {
    /// `encryption.check_ddl() RETURNS event_trigger`, on `ddl_command_end`.
    fn encryption_check_ddl(call) {
        // SAFETY: the context of the call, if any, is a node.
        let is_event_trigger = unsafe {
            let context = (*call.fcinfo()).context;
            !context.is_null() && (*context).type_ == pg_sys::NodeTag::T_EventTriggerData
        };
        if !is_event_trigger {
            return Err(Error::Internal { what: "check_ddl is not called as an event trigger" });
        }
        for object in find_without_key()? {
            give_key(object)?;
        }
        Ok(call.null())
    }
}

fn find_without_key() -> Result<Vec<WithoutKey>, Error> {
    thread_local! {
        // Planning it takes longer than running it, and some applications make temporary tables
        // all the time.
        static QUERY: RefCell<Option<OwnedPreparedStatement>> = const { RefCell::new(None) };
    }
    Spi::connect(|client| {
        let prepared = match QUERY.take() {
            Some(prepared) => prepared,
            None => client.prepare(WITHOUT_KEY, &[])?.keep(),
        };
        let mut found = Vec::new();
        for row in client.select(&prepared, None, &[])? {
            let text = |n| row.get::<String>(n).map(Option::unwrap_or_default);
            let is_table = row.get::<bool>(6)?.unwrap_or(false);
            let column = Column {
                name: pgrx::spi::quote_identifier(text(3)?),
                table: text(4)?,
                column_type: text(5)?,
            };
            found.push(WithoutKey {
                object: text(1)?,
                type_name: text(2)?,
                column: is_table.then_some(column),
            });
        }
        QUERY.set(Some(prepared));
        Ok::<_, pgrx::spi::SpiError>(found)
    })
    .map_err(|_| Error::Internal { what: "the system catalogs can't be read" })
}

/// The default key, if one is set and the column can take it; an error otherwise.
fn give_key(object: WithoutKey) -> Result<(), Error> {
    let WithoutKey { object, type_name, column } = object;
    if let Some(key) = settings::default_key()?
        && let Some(column) = column
    {
        keys::named(&key)?;
        return set_modifier(&column, key.as_str());
    }
    let error = Error::WithoutKey { object, type_name };
    if session::is_restoring() {
        pgrx::warning!("{}", error.message());
        return Ok(());
    }
    Err(error)
}

/// `ALTER COLUMN ... TYPE`: values that are there already, as after CREATE TABLE AS, are encrypted
/// again under the key.
fn set_modifier(column: &Column, key: &str) -> Result<(), Error> {
    let Column { name, table, column_type } = column;
    let (base, dimensions) = match column_type.strip_suffix("[]") {
        Some(base) => (base, "[]"),
        None => (column_type.as_str(), ""),
    };
    let key = pgrx::spi::quote_literal(key);
    Spi::run(&format!("ALTER TABLE {table} ALTER COLUMN {name} TYPE {base}({key}){dimensions}"))
        .map_err(|_| Error::Internal { what: "a column's type can't be changed" })
}
