//! Conditions that an index on digests can answer.
//!
//! A unique index on an encrypted column is one on `enc_digest(column)`. So that it also serves
//! `column = value`, however the value is given, the planner is told that this means
//! `enc_digest(column) = enc_digest(value) AND column = value`, wherever the table has such an index.

use envelope::KeyId;
use pgrx::{PgList, pg_sys};

use super::is_deterministic;
use crate::catalog::SCHEMA;
use crate::fmgr::sql_function;
use crate::types;
use crate::varlena::Varlena;

sql_function! {
    /// `encrypted_equal_support(internal) RETURNS internal`: the planner support function
    /// (`src/include/nodes/supportnodes.h`) of the `=` operators with an encrypted side.
    fn encrypted_equal_support(call) {
        let request = call.datum(0).cast_mut_ptr::<pg_sys::Node>();
        // SAFETY: the planner passes a request of the type that its tag says.
        let answer = unsafe {
            match (*request).type_ {
                pg_sys::NodeTag::T_SupportRequestSimplify => simplify(request.cast()),
                _ => None,
            }
        };
        Ok(pg_sys::Datum::from(answer.unwrap_or(std::ptr::null_mut())))
    }
}

/// The condition with digests, if a side of the equality is a column that has an index on them.
///
/// # Safety
///
/// `request` is the planner's.
unsafe fn simplify(request: *mut pg_sys::SupportRequestSimplify) -> Option<*mut pg_sys::Node> {
    // SAFETY: the caller's promise: the call is one of `=`, which has two arguments.
    unsafe {
        let (root, equality) = ((*request).root, (*request).fcall);
        if root.is_null() || !is_deterministic_for(equality) {
            return None;
        }
        let arguments = PgList::<pg_sys::Node>::from_pg((*equality).args);
        let sides = [arguments.get_ptr(0)?, arguments.get_ptr(1)?];
        // The combining operators of a subquery's expression have parameters that the planner looks
        // for in their places.
        if sides.iter().any(|&side| is_sublink_parameter(side)) {
            return None;
        }
        let digest = sides.iter().find_map(|&side| indexed_digest(root, side))?;
        let digests = [digest.of(sides[0])?, digest.of(sides[1])?];
        let recheck = recheck(equality, sides)?;
        let mut both = PgList::<pg_sys::Node>::new();
        both.push(
            pg_sys::make_opclause(
                pg_sys::Oid::from(pg_sys::ByteaEqualOperator),
                pg_sys::BOOLOID,
                false,
                digests[0].cast(),
                digests[1].cast(),
                pg_sys::InvalidOid,
                pg_sys::InvalidOid,
            )
            .cast(),
        );
        both.push(recheck);
        Some(pg_sys::makeBoolExpr(pg_sys::BoolExprType::AND_EXPR, both.into_pg(), -1).cast())
    }
}

/// Under a nondeterministic collation values are equal whose digests are not. `bytea` has none.
unsafe fn is_deterministic_for(equality: *mut pg_sys::FuncExpr) -> bool {
    // SAFETY: the caller's promise.
    let collation = unsafe { (*equality).inputcollid };
    // An unknown collation is an error, which the operator raises.
    collation == pg_sys::InvalidOid || is_deterministic(collation)
}

unsafe fn is_sublink_parameter(node: *mut pg_sys::Node) -> bool {
    // SAFETY: the caller passes a node.
    unsafe {
        let node = pg_sys::strip_implicit_coercions(node);
        (*node).type_ == pg_sys::NodeTag::T_Param
            && (*node.cast::<pg_sys::Param>()).paramkind == pg_sys::ParamKind::PARAM_SUBLINK
    }
}

/// How an index makes the digests that it holds: with what normal form, which is none, and domain.
struct IndexedDigest {
    schema: pg_sys::Oid,
    /// The arguments after the value, as in the index.
    others: [*mut pg_sys::Node; 2],
    collation: pg_sys::Oid,
}

/// The digest that an index of the column's table holds of the column, if `node` is one.
unsafe fn indexed_digest(
    root: *mut pg_sys::PlannerInfo,
    node: *mut pg_sys::Node,
) -> Option<IndexedDigest> {
    // SAFETY: `root` and `node` are the planner's; a Var of level 0 refers to the range table of the
    // query that is planned, whose tables are locked.
    unsafe {
        let column = as_column(node)?;
        if (*column).varlevelsup != 0 || (*column).varattno <= 0 {
            return None;
        }
        let table = pg_sys::rt_fetch((*column).varno as pg_sys::Index, (*(*root).parse).rtable);
        if (*table).rtekind != pg_sys::RTEKind::RTE_RELATION
            || !matches!((*table).relkind as u8, b'r' | b'p' | b'm')
        {
            return None;
        }
        let value_type = pg_sys::exprType(node);
        if !types::is_encrypted(value_type) {
            return None;
        }
        let schema = types::schema_of(value_type);
        let digest = digest_function(schema, value_type)?;
        let relation = pg_sys::relation_open((*table).relid, pg_sys::NoLock as pg_sys::LOCKMODE);
        let indexes = PgList::<pg_sys::Oid>::from_pg(pg_sys::RelationGetIndexList(relation));
        let found =
            indexes.iter_oid().find_map(|index| digest_in(index, (*column).varattno, digest));
        pg_sys::relation_close(relation, pg_sys::NoLock as pg_sys::LOCKMODE);
        found.map(|(others, collation)| IndexedDigest { schema, others, collation })
    }
}

/// The column that a node is, under nothing but changes of its name's type (domains).
unsafe fn as_column(node: *mut pg_sys::Node) -> Option<*mut pg_sys::Var> {
    // SAFETY: the caller passes a node.
    unsafe {
        let mut node = node;
        while (*node).type_ == pg_sys::NodeTag::T_RelabelType {
            node = (*node.cast::<pg_sys::RelabelType>()).arg.cast();
        }
        ((*node).type_ == pg_sys::NodeTag::T_Var).then_some(node.cast())
    }
}

/// The other arguments, and the collation, of a digest of a column that an index holds.
///
/// # Safety
///
/// The index's table is locked.
unsafe fn digest_in(
    index: pg_sys::Oid,
    column: pg_sys::AttrNumber,
    digest: pg_sys::Oid,
) -> Option<([*mut pg_sys::Node; 2], pg_sys::Oid)> {
    // SAFETY: the index of a locked table stays; its expressions are copies in the current context.
    unsafe {
        let index = pg_sys::index_open(index, pg_sys::AccessShareLock as pg_sys::LOCKMODE);
        let expressions = match (*(*index).rd_index).indisvalid {
            true => pg_sys::RelationGetIndexExpressions(index),
            false => std::ptr::null_mut(),
        };
        let expressions = PgList::<pg_sys::Node>::from_pg(expressions);
        let found = expressions.iter_ptr().find_map(|expression| {
            if (*expression).type_ != pg_sys::NodeTag::T_FuncExpr {
                return None;
            }
            let call = expression.cast::<pg_sys::FuncExpr>();
            let arguments = PgList::<pg_sys::Node>::from_pg((*call).args);
            if (*call).funcid != digest || arguments.len() != 3 {
                return None;
            }
            let value = as_column(arguments.get_ptr(0)?)?;
            let others = [arguments.get_ptr(1)?, arguments.get_ptr(2)?];
            let is_indexed = (*value).varattno == column
                && is_text_constant(others[0], Some(b"none"))
                && is_text_constant(others[1], None);
            is_indexed.then_some((others, (*call).inputcollid))
        });
        pg_sys::index_close(index, pg_sys::AccessShareLock as pg_sys::LOCKMODE);
        found
    }
}

/// Whether a node is a constant text, and which.
unsafe fn is_text_constant(node: *mut pg_sys::Node, text: Option<&[u8]>) -> bool {
    // SAFETY: the caller passes a node; a constant of type text has one.
    unsafe {
        if (*node).type_ != pg_sys::NodeTag::T_Const {
            return false;
        }
        let constant = node.cast::<pg_sys::Const>();
        !(*constant).constisnull
            && (*constant).consttype == pg_sys::TEXTOID
            && text.is_none_or(|text| Varlena::detoast((*constant).constvalue).bytes() == text)
    }
}

impl IndexedDigest {
    /// The same digest of another value: of the encrypted type, of its base type, or a name.
    unsafe fn of(&self, value: *mut pg_sys::Node) -> Option<*mut pg_sys::FuncExpr> {
        // SAFETY: the caller passes a node of the planner's, of which copies are made.
        unsafe {
            let mut value = pg_sys::copyObjectImpl(value.cast()).cast::<pg_sys::Node>();
            if pg_sys::exprType(value) == pg_sys::NAMEOID {
                value = function_call(
                    pg_sys::Oid::from(pg_sys::F_TEXT_NAME),
                    pg_sys::TEXTOID,
                    &[value],
                    self.collation,
                )
                .cast();
                (*value.cast::<pg_sys::FuncExpr>()).funccollid = self.collation;
            }
            let function = digest_function(self.schema, pg_sys::exprType(value))?;
            let others = self
                .others
                .map(|other| pg_sys::copyObjectImpl(other.cast()).cast::<pg_sys::Node>());
            let arguments = [value, others[0], others[1]];
            Some(function_call(function, pg_sys::BYTEAOID, &arguments, self.collation))
        }
    }
}

unsafe fn function_call(
    function: pg_sys::Oid,
    result: pg_sys::Oid,
    arguments: &[*mut pg_sys::Node],
    collation: pg_sys::Oid,
) -> *mut pg_sys::FuncExpr {
    let mut list = PgList::<pg_sys::Node>::new();
    arguments.iter().for_each(|&argument| list.push(argument));
    // SAFETY: the caller passes a function, its result's type and its arguments.
    unsafe {
        pg_sys::makeFuncExpr(
            function,
            result,
            list.into_pg(),
            pg_sys::InvalidOid,
            collation,
            pg_sys::CoercionForm::COERCE_EXPLICIT_CALL,
        )
    }
}

/// The equality again, by the operator of the same meaning that the planner is told nothing of: it
/// decides, and its selectivity is 1, since the digests have been counted.
unsafe fn recheck(
    equality: *mut pg_sys::FuncExpr,
    sides: [*mut pg_sys::Node; 2],
) -> Option<*mut pg_sys::Node> {
    // SAFETY: look-ups in system caches; `sides` are the arguments of `equality`.
    unsafe {
        let operator = pg_sys::GetSysCacheOid(
            pg_sys::SysCacheIdentifier::OPERNAMENSP as i32,
            pg_sys::Anum_pg_operator_oid as pg_sys::AttrNumber,
            pg_sys::Datum::from(c"=".as_ptr()),
            pg_sys::Datum::from(pg_sys::exprType(sides[0])),
            pg_sys::Datum::from(pg_sys::exprType(sides[1])),
            pg_sys::Datum::from(pg_sys::get_namespace_oid(SCHEMA.as_ptr(), true)),
        );
        if operator == pg_sys::InvalidOid {
            return None;
        }
        Some(
            pg_sys::make_opclause(
                operator,
                pg_sys::BOOLOID,
                false,
                sides[0].cast(),
                sides[1].cast(),
                pg_sys::InvalidOid,
                (*equality).inputcollid,
            )
            .cast(),
        )
    }
}

/// `enc_digest` of a type.
fn digest_function(schema: pg_sys::Oid, value_type: pg_sys::Oid) -> Option<pg_sys::Oid> {
    let arguments = [value_type, pg_sys::TEXTOID, pg_sys::TEXTOID];
    let function = types::function_named(c"enc_digest", &arguments, schema);
    (function != pg_sys::InvalidOid).then_some(function)
}

/// The keys of the columns whose digests an index holds, or that its expressions or its predicate
/// look at: what a scan of it tells of them.
///
/// # Safety
///
/// The index is locked.
pub(super) unsafe fn keys_of_index(index: pg_sys::Oid) -> Vec<KeyId> {
    // SAFETY: the caller's promise; what is opened is closed.
    unsafe {
        let relation = pg_sys::index_open(index, pg_sys::AccessShareLock as pg_sys::LOCKMODE);
        let form = (*relation).rd_index;
        let table = (*form).indrelid;
        let columns = (*form).indkey.values.as_slice((*form).indnkeyatts as usize);
        let mut keys: Vec<KeyId> = columns
            .iter()
            .filter(|&&column| column > 0)
            .filter_map(|&column| {
                let (mut type_id, mut modifier, mut collation) =
                    (pg_sys::InvalidOid, -1, pg_sys::InvalidOid);
                pg_sys::get_atttypetypmodcoll(
                    table,
                    column,
                    &raw mut type_id,
                    &raw mut modifier,
                    &raw mut collation,
                );
                types::key_of_type(type_id, modifier)
            })
            .collect();
        for expressions in [
            pg_sys::RelationGetIndexExpressions(relation),
            pg_sys::RelationGetIndexPredicate(relation),
        ] {
            let variables = pg_sys::pull_vars_of_level(expressions.cast(), 0);
            keys.extend(PgList::<pg_sys::Var>::from_pg(variables).iter_ptr().filter_map(
                |variable| types::key_of_type((*variable).vartype, (*variable).vartypmod),
            ));
        }
        pg_sys::index_close(relation, pg_sys::AccessShareLock as pg_sys::LOCKMODE);
        keys.sort_unstable();
        keys.dedup();
        keys
    }
}

sql_function! {
    /// `encryption.recheck_selectivity(internal, oid, internal, integer) RETURNS double precision`
    fn encryption_recheck_selectivity(_call) {
        Ok(pg_sys::Datum::from(1.0_f64.to_bits()))
    }
}
