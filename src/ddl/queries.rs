//! Questions to the catalogs that are asked in SQL, with `pg_catalog` as search path if nothing else is
//! said. (The function that they are asked in has the planner reach rows by indexes: it doesn't know that
//! the arrays have an element or two.)

use std::cell::RefCell;
use std::collections::HashMap;

use pgrx::datum::DatumWithOid;
use pgrx::pg_sys::{self, PgBuiltInOids};
use pgrx::spi::{OwnedPreparedStatement, Spi, SpiError, SpiHeapTupleData};

use crate::errors::Error;

/// What the command reports to have made or changed, with the table of an index or a statistics object,
/// and the relation of a composite type.
const REPORTED: &str = "
SELECT command.classid, command.objid,
       CASE command.classid
           WHEN 'pg_catalog.pg_class'::pg_catalog.regclass THEN
               (SELECT indrelid FROM pg_catalog.pg_index WHERE indexrelid = command.objid)
           WHEN 'pg_catalog.pg_type'::pg_catalog.regclass THEN
               (SELECT typrelid FROM pg_catalog.pg_type WHERE oid = command.objid)
           WHEN 'pg_catalog.pg_statistic_ext'::pg_catalog.regclass THEN
               (SELECT stxrelid FROM pg_catalog.pg_statistic_ext WHERE oid = command.objid)
       END
  FROM pg_catalog.pg_event_trigger_ddl_commands() command";

/// The types $1, those that contain them at any depth, and their relations where they are the row
/// types of some; the relations $2; and the relations that inherit from any of these, or are their
/// partitions.
///
/// What contains a type depends on it, which is how PostgreSQL itself looks for such
/// (find_composite_type_dependencies of src/backend/commands/tablecmds.c); but an array type is named
/// by its element type.
const CONCERNED: &str = "
WITH RECURSIVE container (type_id) AS (
    SELECT pg_catalog.unnest($1)
  UNION
    SELECT found.type_id
      FROM container
     CROSS JOIN LATERAL (
            SELECT type.typarray FROM pg_catalog.pg_type type
             WHERE type.oid = container.type_id
          UNION ALL
            SELECT depend.objid FROM pg_catalog.pg_depend depend
             WHERE depend.refclassid = 'pg_catalog.pg_type'::pg_catalog.regclass
               AND depend.refobjid = container.type_id
               AND depend.classid = 'pg_catalog.pg_type'::pg_catalog.regclass
          UNION ALL
            SELECT relation.reltype
              FROM pg_catalog.pg_depend depend
              JOIN pg_catalog.pg_class relation ON relation.oid = depend.objid
             WHERE depend.refclassid = 'pg_catalog.pg_type'::pg_catalog.regclass
               AND depend.refobjid = container.type_id
               AND depend.classid = 'pg_catalog.pg_class'::pg_catalog.regclass
               AND depend.objsubid > 0
           ) found (type_id)
     WHERE found.type_id <> 0
), concerned (relation_id) AS (
    SELECT relation_id FROM pg_catalog.unnest($2) relation_id
  UNION
    SELECT type.typrelid
      FROM container
      JOIN pg_catalog.pg_type type ON type.oid = container.type_id AND type.typrelid <> 0
  UNION
    SELECT inherits.inhrelid
      FROM concerned
      JOIN pg_catalog.pg_inherits inherits ON inherits.inhparent = concerned.relation_id
)
SELECT type_id, NULL::pg_catalog.oid FROM container
UNION ALL
SELECT NULL, relation_id FROM concerned";

/// What else than rows is stored of the relations $1, and the indexes and statistics objects $2: of
/// what, of which relation, the types of the columns in its key, a name (that of its access method if
/// it is an index), and expressions as the catalogs have them, first those whose values are stored,
/// then a condition. Text comes as bytes in the database's encoding.
const STORED: &str = "
SELECT 'index', index.indexrelid, index.indrelid,
       ARRAY (SELECT attribute.atttypid
                FROM pg_catalog.generate_series(0, index.indnkeyatts - 1) key_number
                JOIN pg_catalog.pg_attribute attribute
                  ON attribute.attrelid = index.indrelid AND attribute.attnum = index.indkey[key_number]),
       (SELECT pg_catalog.convert_to(method.amname::text, pg_catalog.getdatabaseencoding())
          FROM pg_catalog.pg_class relation
          JOIN pg_catalog.pg_am method ON method.oid = relation.relam
         WHERE relation.oid = index.indexrelid),
       pg_catalog.convert_to(index.indexprs::text, pg_catalog.getdatabaseencoding()),
       pg_catalog.convert_to(index.indpred::text, pg_catalog.getdatabaseencoding())
  FROM pg_catalog.pg_index index
 WHERE index.indrelid = ANY ($1) OR index.indexrelid = ANY ($2)
UNION ALL
SELECT 'statistics', statistics.oid, statistics.stxrelid,
       ARRAY (SELECT attribute.atttypid
                FROM pg_catalog.pg_attribute attribute
               WHERE attribute.attrelid = statistics.stxrelid
                 AND attribute.attnum = ANY (statistics.stxkeys)),
       pg_catalog.convert_to(statistics.stxname::text, pg_catalog.getdatabaseencoding()),
       pg_catalog.convert_to(statistics.stxexprs::text, pg_catalog.getdatabaseencoding()),
       NULL
  FROM pg_catalog.pg_statistic_ext statistics
 WHERE statistics.stxrelid = ANY ($1) OR statistics.oid = ANY ($2)
UNION ALL
SELECT 'partition key', partitioned.partrelid, partitioned.partrelid,
       ARRAY (SELECT attribute.atttypid
                FROM pg_catalog.pg_attribute attribute
               WHERE attribute.attrelid = partitioned.partrelid
                 AND attribute.attnum = ANY (partitioned.partattrs)),
       NULL,
       pg_catalog.convert_to(partitioned.partexprs::text, pg_catalog.getdatabaseencoding()),
       NULL
  FROM pg_catalog.pg_partitioned_table partitioned
 WHERE partitioned.partrelid = ANY ($1)
UNION ALL
SELECT 'generated column', attribute.attrelid, attribute.attrelid, '{}',
       pg_catalog.convert_to(attribute.attname::text, pg_catalog.getdatabaseencoding()),
       pg_catalog.convert_to(generated.adbin::text, pg_catalog.getdatabaseencoding()),
       NULL
  FROM pg_catalog.pg_attrdef generated
  JOIN pg_catalog.pg_attribute attribute
    ON attribute.attrelid = generated.adrelid AND attribute.attnum = generated.adnum
 WHERE generated.adrelid = ANY ($1) AND attribute.attgenerated = 's'
 ORDER BY 1, 2";

/// Whether one of the operators $1 or of the functions $2 says how two values are ordered: an
/// operator of a btree operator family other than its equality, the function of such, a support
/// function of btree, what an aggregate such as max is made of, or one of PostgreSQL's functions that
/// sorts or searches.
const ORDERS: &str = "
WITH used (function_id) AS (
    SELECT function_id FROM pg_catalog.unnest($2) function_id
  UNION
    SELECT operator.oprcode FROM pg_catalog.pg_operator operator WHERE operator.oid = ANY ($1)
)
SELECT EXISTS (
           SELECT FROM pg_catalog.pg_amop member
             JOIN pg_catalog.pg_operator operator ON operator.oid = member.amopopr
             JOIN pg_catalog.pg_am method ON method.oid = member.amopmethod AND method.amname = 'btree'
            WHERE member.amopstrategy <> 3 AND operator.oprcode IN (SELECT function_id FROM used))
    OR EXISTS (
           SELECT FROM pg_catalog.pg_amproc support
             JOIN pg_catalog.pg_opfamily family ON family.oid = support.amprocfamily
             JOIN pg_catalog.pg_am method ON method.oid = family.opfmethod AND method.amname = 'btree'
            WHERE support.amproc IN (SELECT function_id FROM used))
    OR EXISTS (
           SELECT FROM pg_catalog.pg_aggregate aggregate
            WHERE aggregate.aggsortop <> 0
              AND aggregate.aggtransfn IN (SELECT function_id FROM used))
    OR EXISTS (
           SELECT FROM pg_catalog.pg_proc function
            WHERE function.oid IN (SELECT function_id FROM used)
              AND function.pronamespace = 'pg_catalog'::pg_catalog.regnamespace
              AND function.proname IN ('width_bucket', 'array_sort'))";

/// The types that ANALYZE calls the function $1 for. Asked under any search path.
const WITH_TYPANALYZE: &str = "
SELECT oid FROM pg_catalog.pg_type WHERE typanalyze OPERATOR(pg_catalog.=) ANY ($1)";

/// The domains that have a default.
const DEFAULTS: &str = "
SELECT oid FROM pg_catalog.pg_type WHERE typtype = 'd' AND typdefaultbin IS NOT NULL";

/// The types that something may be inside of.
const CONTAINERS: &str = "
SELECT oid FROM pg_catalog.pg_type
 WHERE typtype IN ('c', 'd', 'r', 'm') OR typelem <> 0 AND typcategory = 'A'";

/// An object of a catalog.
pub(super) struct Reported {
    pub(super) catalog: pg_sys::Oid,
    pub(super) object: pg_sys::Oid,
    /// The table of an index or a statistics object, or the relation of a composite type.
    pub(super) relation: Option<pg_sys::Oid>,
}

/// What the command that the event trigger runs for has made or changed.
pub(super) fn reported() -> Result<Vec<Reported>, Error> {
    rows(REPORTED, &[], |row| {
        let relation = row.get(3)?.filter(|&relation| relation != pg_sys::InvalidOid);
        Ok(Reported { catalog: oid(row, 1)?, object: oid(row, 2)?, relation })
    })
}

/// Types and relations that a change concerns: see [`CONCERNED`].
pub(super) struct Concerned {
    pub(super) types: Vec<pg_sys::Oid>,
    pub(super) relations: Vec<pg_sys::Oid>,
}

/// What a change of these types and relations concerns, themselves included.
pub(super) fn concerned(
    types: Vec<pg_sys::Oid>,
    relations: Vec<pg_sys::Oid>,
) -> Result<Concerned, Error> {
    let found = rows(CONCERNED, &[types, relations], |row| {
        Ok((row.get::<pg_sys::Oid>(1)?, row.get::<pg_sys::Oid>(2)?))
    })?;
    Ok(Concerned {
        types: found.iter().filter_map(|found| found.0).collect(),
        relations: found.iter().filter_map(|found| found.1).collect(),
    })
}

/// Something that is stored and isn't a row.
pub(super) struct Stored {
    pub(super) what: What,
    pub(super) relation: pg_sys::Oid,
    /// Of the columns that it has in its key.
    pub(super) types: Vec<pg_sys::Oid>,
    /// Expressions whose values it has, as the catalog has them.
    pub(super) expressions: Option<Vec<u8>>,
    /// A condition that decides what it has.
    pub(super) condition: Option<Vec<u8>>,
}

/// What kind of thing it is.
pub(super) enum What {
    Index { index: pg_sys::Oid, access_method: String },
    Statistics { name: String },
    PartitionKey,
    GeneratedColumn { name: String },
}

/// What else than rows is stored of these relations, and these indexes and statistics objects.
pub(super) fn stored(
    relations: Vec<pg_sys::Oid>,
    objects: Vec<pg_sys::Oid>,
) -> Result<Vec<Stored>, Error> {
    rows(STORED, &[relations, objects], |row| {
        let name: Vec<u8> = row.get(5)?.unwrap_or_default();
        let name = String::from_utf8_lossy(&name).into_owned();
        let what = match row.get::<&str>(1)?.unwrap_or_default() {
            "index" => What::Index { index: oid(row, 2)?, access_method: name },
            "statistics" => What::Statistics { name },
            "partition key" => What::PartitionKey,
            _ => What::GeneratedColumn { name },
        };
        Ok(Stored {
            what,
            relation: oid(row, 3)?,
            types: row.get(4)?.unwrap_or_default(),
            expressions: row.get(6)?,
            condition: row.get(7)?,
        })
    })
}

/// Whether one of these operators or functions says how two values are ordered.
pub(super) fn order(
    operators: Vec<pg_sys::Oid>,
    functions: Vec<pg_sys::Oid>,
) -> Result<bool, Error> {
    let answer = rows(ORDERS, &[operators, functions], |row| row.get::<bool>(1))?;
    Ok(answer.contains(&Some(true)))
}

/// The types that ANALYZE calls a function for.
pub(super) fn types_with_typanalyze(function: pg_sys::Oid) -> Result<Vec<pg_sys::Oid>, Error> {
    rows(WITH_TYPANALYZE, &[vec![function]], |row| oid(row, 1))
}

/// The types that something may be inside of.
pub(super) fn container_types() -> Result<Vec<pg_sys::Oid>, Error> {
    rows(CONTAINERS, &[], |row| oid(row, 1))
}

/// The domains that have a default.
pub(super) fn domains_with_default() -> Result<Vec<pg_sys::Oid>, Error> {
    rows(DEFAULTS, &[], |row| oid(row, 1))
}

fn oid(row: &SpiHeapTupleData<'_>, column: usize) -> Result<pg_sys::Oid, SpiError> {
    Ok(row.get(column)?.unwrap_or(pg_sys::InvalidOid))
}

/// The rows of a query whose parameters are arrays of object ids.
fn rows<T>(
    sql: &'static str,
    arguments: &[Vec<pg_sys::Oid>],
    read: impl Fn(&SpiHeapTupleData<'_>) -> Result<T, SpiError>,
) -> Result<Vec<T>, Error> {
    thread_local! {
        // Planning takes longer than running, and some applications make temporary tables all the
        // time. A statement is out of here while it runs: it may run another trigger.
        static PREPARED: RefCell<HashMap<&'static str, OwnedPreparedStatement>> =
            RefCell::new(HashMap::new());
    }
    let arguments: Vec<DatumWithOid<'_>> =
        arguments.iter().map(|oids| DatumWithOid::from(oids.clone())).collect();
    Spi::connect(|client| {
        let prepared = match PREPARED.with_borrow_mut(|prepared| prepared.remove(sql)) {
            Some(prepared) => prepared,
            None => {
                let types = vec![PgBuiltInOids::OIDARRAYOID.oid(); arguments.len()];
                client.prepare(sql, &types)?.keep()
            }
        };
        let table = client.select(&prepared, None, &arguments)?;
        let found = table.map(|row| read(&row)).collect::<Result<Vec<T>, SpiError>>();
        PREPARED.with_borrow_mut(|statements| statements.insert(sql, prepared));
        found
    })
    .map_err(|_| Error::Internal { what: "the system catalogs can't be read" })
}
