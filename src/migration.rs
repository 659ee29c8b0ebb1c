//! What the migration of columns needs of this library: the trigger that keeps two columns in step,
//! and its errors. The rest of it is SQL, in `sql/`.

use std::cell::Cell;
use std::ffi::CStr;

use pgrx::pg_sys;

use crate::catalog::{self, Privilege, invalidation};
use crate::errors::Error;
use crate::fmgr::{Call, sql_function};
use crate::rights::RightsOf;
use crate::types::{
    EncryptedBytea, EncryptedText, EncryptedType, is_encrypted, key_of_modifier, parse,
    without_padding,
};
use crate::varlena::Varlena;
use crate::{access, keys};

sql_function! {
    /// `encryption.keep_in_step(leader, follower) RETURNS trigger`, before INSERT or UPDATE, for each
    /// row: the follower gets what the leader has. One of the two columns is encrypted.
    ///
    /// A row without a follower's value, as they were before the migration, gets it with any UPDATE.
    /// The leader follows in one case: an INSERT without a list of columns, which means the columns
    /// in the order that they had, brings the value in the follower's place. If it brings another
    /// one for the leader, or the leader's default does, it is refused: one of them would be lost.
    fn encryption_keep_in_step(call) {
        let event = Event::of(call)?;
        let leader = event.column(0)?;
        let follower = event.column(1)?;
        let new = event.new;
        let (led, following) = (event.value(new, &leader), event.value(new, &follower));
        let (source, target) = match event.old {
            None if led.is_none() && following.is_some() => (&follower, &leader),
            Some(old) if led.is_some() == following.is_some()
                && is_same(event.value(old, &leader), led)
                && is_same(event.value(old, &follower), following) =>
            {
                return Ok(pg_sys::Datum::from(new));
            }
            _ => (&leader, &follower),
        };
        // As for a foreign key, the table's owner vouches for it. Who writes the row needs no rights
        // on a key that they may not know of.
        let _rights = RightsOf::role(event.authority()?);
        let value = event.value(new, source).map(|value| convert(value, source, target)).transpose()?;
        if let (None, Some(led), Some(following)) = (event.old, led, following)
            && !agree(led, following, &leader, &follower)?
        {
            return Err(Error::MigrationTwoValues { subject: event.table() });
        }
        Ok(pg_sys::Datum::from(event.with_value(target, value)))
    }
}

/// What a row trigger is called with.
struct Event {
    data: *mut pg_sys::TriggerData,
    old: Option<pg_sys::HeapTuple>,
    new: pg_sys::HeapTuple,
}

/// One of the trigger's two columns.
struct Column {
    number: i32,
    kind: Kind,
    type_id: pg_sys::Oid,
    modifier: i32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Text,
    Varchar,
    Bpchar,
    Bytea,
    EncryptedText,
    EncryptedBytea,
}

impl Event {
    fn of(call: &Call) -> Result<Self, Error> {
        const EVENT: u32 = pg_sys::TRIGGER_EVENT_OPMASK;
        const WHEN: u32 = pg_sys::TRIGGER_EVENT_ROW | pg_sys::TRIGGER_EVENT_TIMINGMASK;
        const BEFORE_ROW: u32 = pg_sys::TRIGGER_EVENT_ROW | pg_sys::TRIGGER_EVENT_BEFORE;
        const MISUSED: Error = Error::Internal {
            what: "keep_in_step is not called as a trigger before a row's change",
        };
        // SAFETY: the context of the call, if any, is a node; of a trigger's, all is set that its
        // event has.
        unsafe {
            let data = (*call.fcinfo()).context.cast::<pg_sys::TriggerData>();
            if data.is_null() || (*data).type_ != pg_sys::NodeTag::T_TriggerData {
                return Err(MISUSED);
            }
            let event = (*data).tg_event;
            if event & WHEN != BEFORE_ROW || (*(*data).tg_trigger).tgnargs != 2 {
                return Err(MISUSED);
            }
            match event & EVENT {
                pg_sys::TRIGGER_EVENT_INSERT => {
                    Ok(Self { data, old: None, new: (*data).tg_trigtuple })
                }
                pg_sys::TRIGGER_EVENT_UPDATE => {
                    Ok(Self { data, old: Some((*data).tg_trigtuple), new: (*data).tg_newtuple })
                }
                _ => Err(MISUSED),
            }
        }
    }

    /// The column that the trigger's argument `n` names.
    fn column(&self, n: usize) -> Result<Column, Error> {
        let name = self.argument(n);
        // SAFETY: SPI_fnumber gives the number of an attribute of the description, or one that isn't
        // positive.
        unsafe {
            let description = self.description();
            let number = pg_sys::SPI_fnumber(description, name.as_ptr());
            if number <= 0 {
                return Err(Error::MigrationAltered {
                    subject: self.table(),
                    how: format!(
                        "the trigger of a migration finds no column \"{}\"",
                        name.to_string_lossy()
                    ),
                });
            }
            let attribute = &*attribute(description, number - 1);
            let mut modifier = attribute.atttypmod;
            let base = pg_sys::getBaseTypeAndTypmod(attribute.atttypid, &raw mut modifier);
            let kind = Kind::of(base).ok_or_else(|| Error::MigrationAltered {
                subject: self.table(),
                how: format!(
                    "column \"{}\" has a type that is not migrated",
                    name.to_string_lossy()
                ),
            })?;
            Ok(Column { number, kind, type_id: attribute.atttypid, modifier })
        }
    }

    fn value(&self, row: pg_sys::HeapTuple, column: &Column) -> Option<pg_sys::Datum> {
        let mut is_null = false;
        // SAFETY: the row is of the table that the description describes, and the column is one of
        // its attributes. A row from before ALTER TABLE ... ADD COLUMN has fewer.
        let value =
            unsafe { pg_sys::heap_getattr(row, column.number, self.description(), &mut is_null) };
        (!is_null).then_some(value)
    }

    /// The new row with this value in the column.
    fn with_value(&self, column: &Column, value: Option<pg_sys::Datum>) -> pg_sys::HeapTuple {
        let mut number = column.number;
        let mut is_null = value.is_none();
        let mut value = value.unwrap_or(pg_sys::Datum::from(0usize));
        // SAFETY: one column is replaced, by a value of its type or a null.
        unsafe {
            pg_sys::heap_modify_tuple_by_cols(
                self.new,
                self.description(),
                1,
                &raw mut number,
                &raw mut value,
                &raw mut is_null,
            )
        }
    }

    fn description(&self) -> pg_sys::TupleDesc {
        // SAFETY: the relation is open during the call.
        unsafe { (*(*self.data).tg_relation).rd_att }
    }

    /// The role that has the trigger convert values: the owner of the table whose migration it is. The
    /// privilege to make triggers on somebody's table is not one to have its owner decrypt for them.
    ///
    /// # Errors
    ///
    /// If the trigger belongs to no migration that is under way.
    fn authority(&self) -> Result<pg_sys::Oid, Error> {
        thread_local! {
            static LAST: Cell<Option<(Asked, pg_sys::Oid)>> = const { Cell::new(None) };
        }
        // SAFETY: trigger and relation are there during the call.
        let (trigger, relation) =
            unsafe { ((*(*self.data).tg_trigger).tgoid, (*(*self.data).tg_relation).rd_id) };
        // A migration that ends drops its trigger and one of the columns.
        let generation = invalidation::relation_generation();
        let asked = Asked { trigger, relation, generation };
        match LAST.get() {
            Some((last, authority)) if last == asked => Ok(authority),
            _ => {
                let authority = self.owner_of_migration(relation)?;
                LAST.set(Some((asked, authority)));
                Ok(authority)
            }
        }
    }

    fn owner_of_migration(&self, relation: pg_sys::Oid) -> Result<pg_sys::Oid, Error> {
        let (leader, follower) = (self.argument(0), self.argument(1));
        let owner = catalog::read_migrations()?
            .iter()
            .filter(|migration| migration.leader.as_c_str() == leader)
            .filter(|migration| migration.followers.iter().any(|name| name.as_c_str() == follower))
            .find(|migration| is_within(relation, migration.table))
            .and_then(|migration| access::owner_of_table(migration.table));
        owner.ok_or_else(|| Error::MigrationAltered {
            subject: self.table(),
            how: "its trigger belongs to no migration that is under way".to_owned(),
        })
    }

    /// The trigger's argument `n`, the name of a column.
    fn argument(&self, n: usize) -> &CStr {
        // SAFETY: `of` has seen two arguments, which are NUL-terminated and outlive the call.
        unsafe { CStr::from_ptr(*(*(*self.data).tg_trigger).tgargs.add(n)) }
    }

    fn table(&self) -> String {
        // SAFETY: the relation is open during the call; its name is NUL-terminated.
        let name =
            unsafe { CStr::from_ptr((*(*(*self.data).tg_relation).rd_rel).relname.data.as_ptr()) };
        format!("table \"{}\"", name.to_string_lossy())
    }
}

/// What [`Event::authority`] was asked last.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Asked {
    trigger: pg_sys::Oid,
    relation: pg_sys::Oid,
    generation: u64,
}

/// Whether a relation is a table, or one of its partitions or heirs.
fn is_within(relation: pg_sys::Oid, table: pg_sys::Oid) -> bool {
    if relation == table {
        return true;
    }
    // pgrx's bindings don't have it (src/backend/catalog/pg_inherits.c).
    unsafe extern "C-unwind" {
        fn find_all_inheritors(
            table: pg_sys::Oid,
            lock: pg_sys::LOCKMODE,
            parents: *mut *mut pg_sys::List,
        ) -> *mut pg_sys::List;
    }
    // SAFETY: reads pg_inherits; a table that is gone has none. The list is of this call's memory. The
    // signature is the same in PostgreSQL 14 to 18, and the guard makes its errors panics.
    unsafe {
        let lock = pg_sys::NoLock as pg_sys::LOCKMODE;
        let family = pg_sys::ffi::pg_guard_ffi_boundary(|| {
            find_all_inheritors(table, lock, std::ptr::null_mut())
        });
        pg_sys::list_member_oid(family, relation)
    }
}

/// `TupleDescAttr` of `src/include/access/tupdesc.h`.
///
/// # Safety
///
/// The description has an attribute at `index`, counted from 0.
unsafe fn attribute(
    description: pg_sys::TupleDesc,
    index: i32,
) -> *const pg_sys::FormData_pg_attribute {
    // SAFETY: the caller's promise.
    #[cfg(feature = "pg18")]
    unsafe {
        pg_sys::TupleDescAttr(description, index)
    }
    // SAFETY: the caller's promise.
    #[cfg(not(feature = "pg18"))]
    unsafe {
        (*description).attrs.as_ptr().add(usize::try_from(index).unwrap_or(0))
    }
}

impl Kind {
    fn of(base: pg_sys::Oid) -> Option<Self> {
        match base {
            pg_sys::TEXTOID => Some(Self::Text),
            pg_sys::VARCHAROID => Some(Self::Varchar),
            pg_sys::BPCHAROID => Some(Self::Bpchar),
            pg_sys::BYTEAOID => Some(Self::Bytea),
            _ if !is_encrypted(base) => None,
            // SAFETY: a look-up in a system cache. Of our types, those of texts have a collation.
            _ => match unsafe { pg_sys::get_typcollation(base) } {
                pg_sys::InvalidOid => Some(Self::EncryptedBytea),
                _ => Some(Self::EncryptedText),
            },
        }
    }
}

/// Whether two values of a variable-length type are the same bytes. One that was stored out of line
/// and not touched is the same pointer in both rows.
fn is_same(old: Option<pg_sys::Datum>, new: Option<pg_sys::Datum>) -> bool {
    let (old, new) = match (old, new) {
        (Some(old), Some(new)) => (old, new),
        (None, None) => return true,
        _ => return false,
    };
    if image(old) == image(new) {
        return true;
    }
    // SAFETY: the columns are of variable-length types.
    let [old_value, new_value] = unsafe { [Varlena::detoast(old), Varlena::detoast(new)] };
    let is_same = old_value.bytes() == new_value.bytes();
    old_value.free_if_copy(old);
    new_value.free_if_copy(new);
    is_same
}

/// The bytes of a variable-length value as they stand in the row.
fn image<'a>(value: pg_sys::Datum) -> &'a [u8] {
    let start = value.cast_mut_ptr::<pg_sys::varlena>();
    // SAFETY: the columns are of variable-length types, whose header tells their length; the rows
    // outlive the call.
    unsafe { std::slice::from_raw_parts(start.cast::<u8>(), pgrx::varlena::varsize_any(start)) }
}

/// Whether two values have the same plaintext.
fn agree(
    led: pg_sys::Datum,
    following: pg_sys::Datum,
    leader: &Column,
    follower: &Column,
) -> Result<bool, Error> {
    let (led, following) = match follower.kind {
        Kind::EncryptedText | Kind::EncryptedBytea => (led, convert(following, follower, leader)?),
        _ => (convert(led, leader, follower)?, following),
    };
    Ok(is_same(Some(led), Some(following)))
}

/// A column's value as the other column has it.
fn convert(value: pg_sys::Datum, source: &Column, target: &Column) -> Result<pg_sys::Datum, Error> {
    const MISUSED: Error =
        Error::Internal { what: "keep_in_step is called for columns that don't belong together" };
    // SAFETY: the columns are of variable-length types.
    let stored = unsafe { Varlena::detoast(value) };
    match (source.kind, target.kind) {
        (Kind::Text | Kind::Varchar | Kind::Bpchar, Kind::EncryptedText) => {
            let text = match source.kind {
                Kind::Bpchar => without_padding(stored.bytes()),
                _ => stored.bytes(),
            };
            Ok(EncryptedText::encrypt(target.key()?, text)?.datum())
        }
        (Kind::Bytea, Kind::EncryptedBytea) => {
            Ok(EncryptedBytea::encrypt(target.key()?, stored.bytes())?.datum())
        }
        (Kind::EncryptedText, Kind::Text | Kind::Varchar | Kind::Bpchar) => {
            let text = EncryptedText::decrypt(&parse(stored)?, Some(Privilege::Decrypt))?;
            target.checked(text.datum())
        }
        (Kind::EncryptedBytea, Kind::Bytea) => {
            let bytes = EncryptedBytea::decrypt(&parse(stored)?, Some(Privilege::Decrypt))?;
            target.checked(bytes.datum())
        }
        _ => Err(MISUSED),
    }
}

impl Column {
    /// The key of an encrypted column.
    fn key(&self) -> Result<envelope::KeyId, Error> {
        match self.modifier {
            ..0 => Err(Error::Internal { what: "an encrypted column names no key" }),
            modifier => Ok(key_of_modifier(modifier)?),
        }
    }

    /// A value of the base type as a value of the column's own: within its length, and as its domain
    /// demands.
    fn checked(&self, value: pg_sys::Datum) -> Result<pg_sys::Datum, Error> {
        let arguments = [
            Some(value),
            Some(pg_sys::Datum::from(self.modifier)),
            Some(pg_sys::Datum::from(false)),
        ];
        let coerce = match self.kind {
            Kind::Varchar if self.modifier >= 0 => Some(pg_sys::varchar as unsafe fn(_) -> _),
            Kind::Bpchar if self.modifier >= 0 => Some(pg_sys::bpchar as unsafe fn(_) -> _),
            _ => None,
        };
        let value = match coerce {
            None => value,
            Some(coerce) => {
                // SAFETY: both take a text, a type modifier and whether the cast is explicit, and
                // look at nothing else of the call.
                let coerced =
                    unsafe { pgrx::fcinfo::direct_function_call_as_datum(coerce, &arguments) };
                coerced.ok_or(Error::Internal { what: "a length coercion returned null" })?
            }
        };
        // SAFETY: the value is of the domain's base type; nothing is kept for a further check.
        unsafe {
            if pg_sys::getBaseType(self.type_id) != self.type_id {
                pg_sys::domain_check(
                    value,
                    false,
                    self.type_id,
                    std::ptr::null_mut(),
                    std::ptr::null_mut(),
                );
            }
        }
        Ok(value)
    }
}

sql_function! {
    /// `encryption.check_key_of_owner(table_id oid, key_name text) RETURNS void`
    fn encryption_check_key_of_owner(call) {
        let table = pg_sys::Oid::from(call.datum(0).value() as u32);
        let key = keys::named(&crate::functions::key_name(&call.text(1)?)?)?;
        let owner = access::owner_of_table(table).ok_or(Error::TableUnknown { table: table.to_u32() })?;
        for privilege in [Privilege::Encrypt, Privilege::Decrypt] {
            if !access::may(owner, &key, privilege) {
                return Err(Error::MigrationOwnerLacksKey {
                    owner: access::role_name(owner),
                    key: key.name.clone(),
                    privilege: privilege.name(),
                });
            }
        }
        Ok(pg_sys::Datum::from(0usize))
    }
}

sql_function! {
    /// `encryption.refuse_migration(why text, subject text, detail text) RETURNS void`
    fn encryption_refuse_migration(call) {
        let subject = call.text(1)?;
        let detail = call.text(2)?;
        Err(match call.text(0)?.as_str() {
            "unsuitable" => Error::MigrationUnsuitable { subject, why: detail },
            "dependents" => Error::MigrationBlocked { subject, dependents: detail },
            "no migration" => Error::MigrationMissing { subject, phase: detail },
            "phase" => Error::MigrationPhase { subject, phase: detail },
            "altered" => Error::MigrationAltered { subject, how: detail },
            "differs" => Error::MigrationDiffers { subject, row: detail },
            "locked" => Error::MigrationLocked { subject, tries: detail },
            "argument" => Error::MigrationArgument { argument: subject, expected: detail },
            "name taken" => Error::MigrationNameTaken { subject },
            "no column" => Error::MigrationColumnUnknown { subject },
            "not owner" => Error::NotTableOwner { table: subject },
            _ => Error::Internal { what: "an error of a migration without a name" },
        })
    }
}
