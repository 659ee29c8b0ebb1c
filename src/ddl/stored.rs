//! What of an encrypted column is stored elsewhere than in the table's rows: indexes, extended
//! statistics, partition bounds, generated columns. Each is refused where it would have values, or
//! their order.

use pgrx::pg_sys;

use super::contents::Contents;
use super::expressions::Expression;
use super::queries::{Stored, What};
use super::refuse;
use super::system_catalogs::{relation_name, type_or_array_name};
use crate::errors::Error;

/// The one access method whose indexes have digests and no values.
const DIGESTS_ONLY: &str = "hash";

/// # Errors
///
/// Why this must not be stored.
pub(super) fn check(stored: &Stored, contents: &mut Contents) -> Result<(), Error> {
    let expressions = stored.expressions.as_deref().map(Expression::parse).transpose()?;
    let condition = stored.condition.as_deref().map(Expression::parse).transpose()?;
    let table = || relation_name(stored.relation);
    match &stored.what {
        What::Index { index, access_method } => {
            let index = format!("index \"{}\"", relation_name(*index));
            let expression_types = expressions.map(Expression::types).unwrap_or_default();
            let key = stored.types.iter().copied().chain(expression_types);
            let expressions = expressions.into_iter().chain(condition);
            check_index(&index, access_method, key, expressions, contents)
        }
        What::Statistics { name } if of_encrypted(stored, expressions, contents) => {
            refuse(Error::StatisticsRefused { statistics: name.clone(), table: table() })
        }
        What::PartitionKey if of_encrypted(stored, expressions, contents) => {
            refuse(Error::PartitionKeyRefused { table: table() })
        }
        What::Statistics { .. } | What::PartitionKey => Ok(()),
        What::GeneratedColumn { name } => {
            let object = || format!("generated column \"{name}\" of \"{}\"", table());
            // PostgreSQL looks for this before it adds the cast to the column's type.
            if expressions.is_some_and(|expression| expression.stores_plaintext(contents)) {
                refuse(Error::PlaintextStored { object: object() })?;
            }
            refuse_order(object, expressions, contents)
        }
    }
}

/// An index, called this in messages, with these types in its key (not in INCLUDE, which no index compares or inner page has)
/// and these expressions.
///
/// # Errors
///
/// If it would have encrypted values in an order, or say how they are ordered.
pub(super) fn check_index(
    index: &str,
    access_method: &str,
    key: impl IntoIterator<Item = pg_sys::Oid>,
    expressions: impl IntoIterator<Item = Expression>,
    contents: &mut Contents,
) -> Result<(), Error> {
    if access_method != DIGESTS_ONLY
        && let Some(type_oid) = key.into_iter().find(|&type_oid| contents.holds(type_oid))
    {
        refuse(Error::IndexRefused {
            index: index.to_owned(),
            access_method: access_method.to_owned(),
            type_name: type_or_array_name(type_oid),
        })?;
    }
    refuse_order(|| index.to_owned(), expressions, contents)
}

fn refuse_order(
    object: impl Fn() -> String,
    expressions: impl IntoIterator<Item = Expression>,
    contents: &mut Contents,
) -> Result<(), Error> {
    for expression in expressions {
        if expression.orders_encrypted(contents)? {
            refuse(Error::OrderStored { object: object() })?;
        }
    }
    Ok(())
}

/// Whether it is of a column that holds encrypted values, or of an expression of one.
fn of_encrypted(stored: &Stored, expressions: Option<Expression>, contents: &mut Contents) -> bool {
    stored.types.iter().any(|&type_oid| contents.holds(type_oid))
        || expressions.is_some_and(|expressions| expressions.reads_encrypted(contents))
}
