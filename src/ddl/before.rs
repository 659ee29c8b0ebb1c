//! What has to be done before a command runs, because afterwards it is too late.

use std::ffi::{CStr, c_char};

use pgrx::pg_sys;

use super::analyze;
use super::contents::{Contents, Extension};
use super::default_text;
use super::expressions::{Expression, elements};
use super::stored;
use super::system_catalogs::{columns, relation, relation_name};
use crate::errors::Error;
use crate::session;

/// # Errors
///
/// If the command must not run.
///
/// # Safety
///
/// `command` is the parse tree of a command with one of the tags that the event trigger is for.
pub(super) unsafe fn prepare(command: *mut pg_sys::Node) -> Result<(), Error> {
    // SAFETY: a node is what its tag says.
    unsafe {
        match (*command).type_ {
            pg_sys::NodeTag::T_IndexStmt => check_concurrent_index(command.cast()),
            pg_sys::NodeTag::T_DropStmt => prepare_drop(&*command.cast()),
            pg_sys::NodeTag::T_DropOwnedStmt => prepare_drop_owned(&*command.cast()),
            pg_sys::NodeTag::T_CreateDomainStmt | pg_sys::NodeTag::T_AlterDomainStmt => {
                default_text::begin(command);
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

/// `CREATE INDEX CONCURRENTLY` commits before it is done: an error at its end would leave the index,
/// not valid but with everything in it. So this one is refused by what the command says it will be,
/// after PostgreSQL's own analysis of its expressions.
unsafe fn check_concurrent_index(command: *mut pg_sys::IndexStmt) -> Result<(), Error> {
    // SAFETY: the caller's promise.
    if !unsafe { (*command).concurrent } || session::is_restoring() {
        return Ok(());
    }
    let lock = pg_sys::AccessShareLock as pg_sys::LOCKMODE;
    let missing_ok = pg_sys::RVROption::RVR_MISSING_OK;
    // SAFETY: the command names a table; the lock is kept, as the command itself is about to take a
    // stronger one.
    let table = unsafe {
        pg_sys::RangeVarGetRelidExtended(
            (*command).relation,
            lock,
            missing_ok,
            None,
            std::ptr::null_mut(),
        )
    };
    let mut contents = Contents::new(Extension::find()?);
    // Of no table, or of one without such columns: the command's own business.
    let Some(form) = relation(table) else { return Ok(()) };
    if !contents.holds(form.reltype) {
        return Ok(());
    }

    // SAFETY: the table is locked; a copy is what may be written to.
    let planned = unsafe {
        planned_index(table, analyze_index(table, pg_sys::copyObjectImpl(command.cast()).cast()))
    };
    let PlannedIndex { description, access_method, mut key, expressions } = planned;
    // An ordered index on an encrypted type itself is refused by its operator class, in time.
    key.retain(|&type_oid| !contents.is_encrypted(type_oid));
    stored::check_index(&description, &access_method, key, expressions, &mut contents)
}

/// The index that a command is to make.
struct PlannedIndex {
    /// What to call it in a message.
    description: String,
    access_method: String,
    /// The types of what is in its key.
    key: Vec<pg_sys::Oid>,
    /// Its expressions, and its condition.
    expressions: Vec<Expression>,
}

/// # Safety
///
/// `command` has been analyzed, for this table.
unsafe fn planned_index(table: pg_sys::Oid, command: *mut pg_sys::IndexStmt) -> PlannedIndex {
    // SAFETY: by the caller's promise; names are NUL-terminated.
    let text = |name: *const c_char| unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned();
    // SAFETY: by the caller's promise.
    unsafe {
        let mut planned = PlannedIndex {
            description: match (*command).idxname {
                name if name.is_null() => format!("index on \"{}\"", relation_name(table)),
                name => format!("index \"{}\"", text(name)),
            },
            access_method: text((*command).accessMethod),
            key: Vec::new(),
            expressions: vec![Expression::from_node((*command).whereClause)],
        };
        let columns = columns(table);
        for element in elements::<pg_sys::IndexElem>((*command).indexParams) {
            if (*element).name.is_null() {
                let expression = Expression::from_node((*element).expr);
                planned.key.extend(expression.types());
                planned.expressions.push(expression);
            } else {
                let name = text((*element).name);
                let column = columns.iter().find(|column| column.name == name);
                planned.key.extend(column.map(|column| column.type_oid));
            }
        }
        planned
    }
}

/// `transformIndexStmt` of `src/backend/parser/parse_utilcmd.c`, as `DefineIndex`'s caller calls it.
///
/// # Safety
///
/// `command` is a copy that this may write to, for a table that is locked.
unsafe fn analyze_index(
    table: pg_sys::Oid,
    command: *mut pg_sys::IndexStmt,
) -> *mut pg_sys::IndexStmt {
    // pgrx's bindings don't have it.
    unsafe extern "C-unwind" {
        fn transformIndexStmt(
            table: pg_sys::Oid,
            command: *mut pg_sys::IndexStmt,
            query: *const c_char,
        ) -> *mut pg_sys::IndexStmt;
    }
    // SAFETY: the caller's promise; the signature is the same in PostgreSQL 14 to 18. The guard
    // makes PostgreSQL's errors panics, as the bindings do.
    unsafe {
        let query = pg_sys::debug_query_string;
        pg_sys::ffi::pg_guard_ffi_boundary(|| transformIndexStmt(table, command, query))
    }
}

/// Before the extension is dropped by its name, or with its schema or an extension that it requires.
unsafe fn prepare_drop(command: &pg_sys::DropStmt) -> Result<(), Error> {
    let own = Extension::find()?;
    // SAFETY: DROP EXTENSION and DROP SCHEMA have lists of names.
    let mut names = unsafe { elements::<pg_sys::Node>(command.objects) }.into_iter();
    let drops = match command.removeType {
        pg_sys::ObjectType::OBJECT_EXTENSION => {
            // SAFETY: as above.
            names.any(|name| unsafe { Extension::goes_with(text_of(name)) })
        }
        pg_sys::ObjectType::OBJECT_SCHEMA => names.any(|name| {
            // SAFETY: as above; InvalidOid if there is no such schema.
            own.schema == unsafe { pg_sys::get_namespace_oid(text_of(name).as_ptr(), true) }
        }),
        _ => false,
    };
    if drops { analyze::unset_all(&own) } else { Ok(()) }
}

/// Before the extension is dropped as a possession of its owner.
unsafe fn prepare_drop_owned(command: &pg_sys::DropOwnedStmt) -> Result<(), Error> {
    let own = Extension::find()?;
    // SAFETY: DROP OWNED has a list of roles, of which one that is missing has InvalidOid here.
    let mut roles = unsafe { elements::<pg_sys::RoleSpec>(command.roles) }.into_iter();
    // SAFETY: as above.
    if roles.any(|role| unsafe { pg_sys::get_rolespec_oid(role, true) } == own.owner) {
        analyze::unset_all(&own)?;
    }
    Ok(())
}

/// # Safety
///
/// `node` is a String node of the parser's.
unsafe fn text_of<'a>(node: *mut pg_sys::Node) -> &'a CStr {
    // SAFETY: the caller's promise. (PostgreSQL 15 made Value one struct for each type.)
    unsafe {
        #[cfg(feature = "pg14")]
        let text = (*node.cast::<pg_sys::Value>()).val.str_;
        #[cfg(not(feature = "pg14"))]
        let text = (*node.cast::<pg_sys::String>()).sval;
        CStr::from_ptr(text)
    }
}
