//! The event triggers: what would leak or break is refused when it is declared.
//!
//! They look at what the command left in the system catalogs and not at its text, so it doesn't
//! matter which command, default or inheritance made a thing; [`before`] has the exceptions.
//!
//! They run after every command that makes or alters a table or a type. Where nothing encrypted is
//! concerned that costs one query, for what the command reports, and a look at the columns of that.

mod altering;
mod analyze;
mod before;
mod columns;
mod contents;
pub(crate) mod default_text;
mod expressions;
mod queries;
mod stored;
mod system_catalogs;

use pgrx::pg_sys;

use crate::errors::Error;
use crate::fmgr::{Call, sql_function};
use crate::session;
pub(crate) use altering::{is_altering, refuse_substitute, register};
use contents::{Contents, Extension};
use queries::Reported;

sql_function! {
    /// `encryption.check_ddl() RETURNS event_trigger`, on `ddl_command_end`.
    fn encryption_check_ddl(call) {
        let event = event(call)?;
        default_text::end();
        let mut contents = Contents::new(Extension::find()?);
        check(event.tag, &mut contents)?;
        Ok(call.null())
    }
}

sql_function! {
    /// `encryption.prepare_ddl() RETURNS event_trigger`, on `ddl_command_start`.
    fn encryption_prepare_ddl(call) {
        let event = event(call)?;
        // SAFETY: PostgreSQL passes the command's parse tree.
        unsafe { before::prepare(event.parsetree) }?;
        Ok(call.null())
    }
}

/// The event that a call is for.
fn event(call: &Call) -> Result<pg_sys::EventTriggerData, Error> {
    // SAFETY: the context of the call, if any, is a node, and what its tag says.
    unsafe {
        let context = (*call.fcinfo()).context;
        if context.is_null() || (*context).type_ != pg_sys::NodeTag::T_EventTriggerData {
            return Err(Error::Internal {
                what: "an event trigger's function is called as another",
            });
        }
        Ok(*context.cast::<pg_sys::EventTriggerData>())
    }
}

/// What a command has made or changed, so far as encrypted values are concerned.
#[derive(Default)]
struct Change {
    /// Relations that have rows or attributes.
    relations: Vec<pg_sys::Oid>,
    /// Their row types, and other types.
    types: Vec<pg_sys::Oid>,
    /// Domains and ranges.
    named_types: Vec<pg_sys::Oid>,
    /// Indexes and statistics objects.
    objects: Vec<pg_sys::Oid>,
}

fn check(tag: pg_sys::CommandTag::Type, contents: &mut Contents) -> Result<(), Error> {
    use pg_sys::CommandTag as Tag;

    if matches!(tag, Tag::CMDTAG_DROP_TYPE | Tag::CMDTAG_DROP_DOMAIN) {
        return analyze::settle_marked(contents);
    }
    let reported = queries::reported()?;
    if reported.iter().any(|reported| {
        reported.object == contents.extension.oid && reported.catalog == pg_sys::ExtensionRelationId
    }) {
        if session::is_upgrading() {
            default_text::set_again(contents)?;
        }
        return analyze::settle_all(contents);
    }
    let change = Change::of(&reported, contents);
    let alters = matches!(
        tag,
        Tag::CMDTAG_ALTER_TABLE | Tag::CMDTAG_ALTER_FOREIGN_TABLE | Tag::CMDTAG_ALTER_TYPE
    );
    check_change(change, alters, contents)
}

fn check_change(change: Change, alters: bool, contents: &mut Contents) -> Result<(), Error> {
    let Change { relations, types, named_types, objects } = change;
    if relations.is_empty() && types.is_empty() && objects.is_empty() {
        return Ok(());
    }
    for type_oid in named_types {
        columns::check_type(type_oid, contents)?;
    }
    // First what the command names, and then what follows from it.
    for &relation in &relations {
        columns::check_relation(relation, contents)?;
    }
    let concerned = queries::concerned(types, relations.clone())?;
    if alters {
        concerned.relations.iter().try_for_each(|&relation| altering::check_relation(relation))?;
    }
    for &relation in concerned.relations.iter().filter(|relation| !relations.contains(relation)) {
        columns::check_relation(relation, contents)?;
    }
    for stored in queries::stored(concerned.relations, objects)? {
        stored::check(&stored, contents)?;
    }
    for type_oid in concerned.types {
        contents.holds(type_oid);
    }
    analyze::settle(contents);
    Ok(())
}

impl Change {
    fn of(reported: &[Reported], contents: &mut Contents) -> Self {
        let mut change = Self::default();
        for reported in reported {
            change.add(reported, contents);
        }
        change
    }

    fn add(&mut self, reported: &Reported, contents: &mut Contents) {
        let object = reported.object;
        match (reported.catalog, reported.relation) {
            (pg_sys::RelationRelationId, None) => self.add_relation(object, contents),
            (pg_sys::RelationRelationId | STATISTICS_OBJECTS, Some(table)) => {
                self.add_object_on(table, object, contents);
            }
            (pg_sys::TypeRelationId, Some(relation)) => self.add_relation(relation, contents),
            (pg_sys::TypeRelationId, None) => self.add_named_type(object, contents),
            _ => {}
        }
    }

    /// Adds an index or a statistics object.
    fn add_object_on(&mut self, table: pg_sys::Oid, object: pg_sys::Oid, contents: &mut Contents) {
        if row_type(table).is_some_and(|row_type| contents.holds(row_type)) {
            self.objects.push(object);
        }
    }

    fn add_named_type(&mut self, type_oid: pg_sys::Oid, contents: &mut Contents) {
        if self.add_type(type_oid, contents) {
            self.named_types.push(type_oid);
        }
    }

    fn add_relation(&mut self, relation: pg_sys::Oid, contents: &mut Contents) {
        if row_type(relation).is_some_and(|row_type| self.add_type(row_type, contents)) {
            self.relations.push(relation);
        }
    }

    /// Adds a type if it holds encrypted values, or did.
    fn add_type(&mut self, type_oid: pg_sys::Oid, contents: &mut Contents) -> bool {
        let concerned = contents.holds(type_oid) || contents.is_marked(type_oid);
        if concerned {
            self.types.push(type_oid);
        }
        concerned
    }
}

/// `StatisticExtRelationId` of `src/include/catalog/pg_statistic_ext.h`, which pgrx's bindings for
/// PostgreSQL 18 don't have.
const STATISTICS_OBJECTS: pg_sys::Oid = pg_sys::Oid::from_u32(3381);

/// The type of a relation's rows; none for an index or a sequence.
fn row_type(relation: pg_sys::Oid) -> Option<pg_sys::Oid> {
    let form = system_catalogs::relation(relation)?;
    (form.reltype != pg_sys::InvalidOid).then_some(form.reltype)
}

/// Refuses what was declared. While a dump is restored it is a warning, so that what was there comes
/// back.
fn refuse(error: Error) -> Result<(), Error> {
    if session::is_restoring() {
        pgrx::warning!("{}", error.message());
        return Ok(());
    }
    Err(error)
}
