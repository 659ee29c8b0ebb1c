//! Expressions that the catalogs keep: of what types they are, and what they do to encrypted values.

use std::ffi::{CString, c_void};

use pgrx::{PgList, pg_sys};

use super::contents::{Contents, is_range};
use super::queries;
use crate::errors::Error;
use crate::fmgr::run_callback;

/// An analyzed expression, or a list of such.
#[derive(Clone, Copy)]
pub(super) struct Expression(*mut pg_sys::Node);

impl Expression {
    /// The expression that a column of type `pg_node_tree` has.
    ///
    /// # Errors
    ///
    /// If it has a NUL byte.
    pub(super) fn parse(stored: &[u8]) -> Result<Self, Error> {
        let text = CString::new(stored).map_err(|_| Error::Internal {
            what: "an expression in the catalogs has a NUL byte",
        })?;
        // SAFETY: the text is NUL-terminated; PostgreSQL raises an error if it is no node tree. The
        // nodes are in memory that lives as long as the event trigger's call.
        Ok(Self(unsafe { pg_sys::stringToNode(text.as_ptr()) }.cast()))
    }

    /// # Safety
    ///
    /// `node` is an analyzed expression, a list of such, or null, and stays as long as the value made.
    pub(super) unsafe fn from_node(node: *mut pg_sys::Node) -> Self {
        Self(node)
    }

    /// The type of each expression of a list, or of the one.
    pub(super) fn types(self) -> Vec<pg_sys::Oid> {
        // SAFETY: of a list of nodes there are only expressions in it, by this type's promise.
        unsafe {
            match self.0 {
                node if node.is_null() => Vec::new(),
                node if (*node).type_ == pg_sys::NodeTag::T_List => {
                    elements(node.cast()).into_iter().map(|node| pg_sys::exprType(node)).collect()
                }
                node => vec![pg_sys::exprType(node)],
            }
        }
    }

    /// Whether it reads a column that holds encrypted values.
    pub(super) fn reads_encrypted(self, contents: &mut Contents) -> bool {
        self.uses(contents).columns
    }

    /// Whether it reads encrypted values and gives something else that isn't the same at all times:
    /// what decrypts is STABLE, so that it can't be stored.
    pub(super) fn stores_plaintext(self, contents: &mut Contents) -> bool {
        // SAFETY: an expression, by this type's promise.
        self.reads_encrypted(contents)
            && !self.types().into_iter().any(|type_oid| contents.holds(type_oid))
            && unsafe { pg_sys::contain_mutable_functions(self.0) }
    }

    /// Whether it says how encrypted values are ordered. (What a function of the user's own does
    /// inside isn't looked into.)
    ///
    /// # Errors
    ///
    /// If the catalogs can't be read.
    pub(super) fn orders_encrypted(self, contents: &mut Contents) -> Result<bool, Error> {
        let uses = self.uses(contents);
        if uses.order {
            return Ok(true);
        }
        if uses.operators.is_empty() && uses.functions.is_empty() {
            return Ok(false);
        }
        queries::order(uses.operators, uses.functions)
    }

    fn uses(self, contents: &mut Contents) -> Uses {
        let mut walk = Walk { contents, uses: Uses::default() };
        // SAFETY: the walker gets each node of the tree, and the pointer that it makes a Walk of again.
        unsafe { visit(self.0, (&raw mut walk).cast()) };
        walk.uses
    }
}

/// What an expression does with values that hold encrypted ones.
#[derive(Default)]
struct Uses {
    /// Whether it reads a column of them.
    columns: bool,
    /// Operators that it applies to them.
    operators: Vec<pg_sys::Oid>,
    /// Functions that it applies to them.
    functions: Vec<pg_sys::Oid>,
    /// Whether it orders them by a construct that is neither.
    order: bool,
}

struct Walk<'a> {
    contents: &'a mut Contents,
    uses: Uses,
}

/// Walks over a node and what is below it (`expression_tree_walker` of
/// `src/backend/nodes/nodeFuncs.c`).
unsafe extern "C-unwind" fn visit(node: *mut pg_sys::Node, walk: *mut c_void) -> bool {
    if node.is_null() {
        return false;
    }
    // SAFETY: `uses` passes the Walk, which nothing else refers to meanwhile, and PostgreSQL passes it
    // on; this frame and PostgreSQL's hold nothing with a destructor.
    unsafe {
        run_callback(|| {
            note(node, &mut *walk.cast::<Walk<'_>>());
            Ok(())
        });
        pg_sys::expression_tree_walker(node, Some(visit), walk)
    }
}

/// Notes what a node does, apart from those below it.
///
/// # Safety
///
/// `node` is a node of an analyzed expression.
unsafe fn note(node: *mut pg_sys::Node, walk: &mut Walk<'_>) {
    use pg_sys::NodeTag as Tag;

    // SAFETY: a node is what its tag says.
    unsafe {
        match (*node).type_ {
            Tag::T_Var => {
                walk.uses.columns |= walk.contents.holds((*node.cast::<pg_sys::Var>()).vartype)
            }
            Tag::T_OpExpr => {
                let operation = node.cast::<pg_sys::OpExpr>();
                note_operator(walk, (*operation).opno, (*operation).args);
            }
            Tag::T_ScalarArrayOpExpr => {
                let operation = node.cast::<pg_sys::ScalarArrayOpExpr>();
                note_operator(walk, (*operation).opno, (*operation).args);
            }
            Tag::T_FuncExpr => {
                let call = node.cast::<pg_sys::FuncExpr>();
                if any_holds(walk, (*call).args) {
                    walk.uses.functions.push((*call).funcid);
                }
            }
            Tag::T_RowCompareExpr => {
                let comparison = node.cast::<pg_sys::RowCompareExpr>();
                let holds =
                    any_holds(walk, (*comparison).largs) || any_holds(walk, (*comparison).rargs);
                walk.uses.order |= holds;
            }
            Tag::T_MinMaxExpr => {
                let choice = (*node.cast::<pg_sys::MinMaxExpr>()).minmaxtype;
                walk.uses.order |= walk.contents.holds(choice);
            }
            _ => {}
        }
    }
}

unsafe fn note_operator(walk: &mut Walk<'_>, operator: pg_sys::Oid, arguments: *mut pg_sys::List) {
    // SAFETY: the arguments of an operator are expressions.
    if unsafe { any_holds(walk, arguments) } {
        walk.uses.operators.push(operator);
    }
}

/// Whether one of a list of expressions gives values that hold encrypted ones. That a range was made
/// of such, or that one is compared, says how its bounds are ordered.
unsafe fn any_holds(walk: &mut Walk<'_>, expressions: *mut pg_sys::List) -> bool {
    let mut any = false;
    // SAFETY: by the caller's promise.
    for expression in unsafe { elements(expressions) } {
        // SAFETY: as above.
        let type_oid = unsafe { pg_sys::exprType(expression) };
        if walk.contents.holds(type_oid) {
            any = true;
            walk.uses.order |= is_range(type_oid);
        }
    }
    any
}

/// The elements of a list of nodes.
///
/// # Safety
///
/// `list` is null, or a list of what `T` is for.
pub(super) unsafe fn elements<T>(list: *mut pg_sys::List) -> Vec<*mut T> {
    // SAFETY: the caller's promise; the list is left as it is.
    unsafe { PgList::<T>::from_pg(list) }.iter_ptr().collect()
}
