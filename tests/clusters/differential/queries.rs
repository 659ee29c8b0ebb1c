//! The queries, as templates.
//!
//! The same SQL runs on both sides. Holes are filled at random, equal holes equally:
//!
//! | hole | is |
//! | --- | --- |
//! | `{x}`, `{x2}` | an encrypted text column of `t` (of two keys) |
//! | `{y}` | one of `u` |
//! | `{bin}` | an encrypted bytea column of `t` |
//! | `{text}`, `{text2}`, … | a text, seldom null; `{bytes}` a byte string |
//! | `{texts}`, `{byte_strings}` | arrays of them |
//! | `{pattern}` | a pattern of LIKE |
//! | `{int}` | a number below 100 |
//! | `{eq}` | `=` or `<>` |
//! | `{op}` | `<`, `<=`, `>` or `>=` |
//! | `{collate}` | nothing, or COLLATE `"C"`, an ICU's or the C library's collation |
//! | `{dir}` | nothing, or ASC, DESC, NULLS FIRST, NULLS LAST |
//! | `{T}`, `{B}` | the column's type: `encrypted_text`, `encrypted_bytea`; or `text`, `bytea` |

use crate::execution::Sent;

/// A template, and how its answers are compared.
#[derive(Clone, Copy, Debug)]
pub struct Query {
    pub encrypted: &'static str,
    /// The same, except where a function of the extension stands for something else.
    pub plain: &'static str,
    pub order: Order,
    pub kind: Kind,
    /// The types that the values can be sent as.
    pub sent: &'static [Sent],
}

/// What the order of the rows says.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Order {
    /// Nothing: the rows are compared as a multiset.
    None,
    /// The query determines it.
    Total,
}

/// Whether the query changes anything.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kind {
    Select,
    /// It runs in a transaction that is rolled back, with a query for what it did in between.
    Change {
        then: &'static str,
    },
}

const fn rows(sql: &'static str) -> Query {
    Query { encrypted: sql, plain: sql, order: Order::None, kind: Kind::Select, sent: &Sent::ALL }
}

/// In an order that the query determines.
const fn list(sql: &'static str) -> Query {
    Query { order: Order::Total, ..rows(sql) }
}

const fn change(sql: &'static str, then: &'static str) -> Query {
    Query { kind: Kind::Change { then }, ..rows(sql) }
}

impl Query {
    /// On the plain side the query is this.
    const fn twin(self, plain: &'static str) -> Self {
        Self { plain, ..self }
    }

    /// The values can be sent as these types only, or it means something else, or nothing.
    const fn sent(self, sent: &'static [Sent]) -> Self {
        Self { sent, ..self }
    }
}

/// Where a value of type `name` has a collation that conflicts with the column's.
const NOT_NAME: &[Sent] =
    &[Sent::AsColumn, Sent::AsText, Sent::AsVarchar, Sent::AsBpchar, Sent::Untyped];
/// Where the server can't tell what an untyped one is.
const TYPED: &[Sent] =
    &[Sent::AsColumn, Sent::AsText, Sent::AsVarchar, Sent::AsBpchar, Sent::AsName];
/// Where plain SQL needs a type that all are of.
const TEXT: &[Sent] = &[Sent::AsColumn, Sent::AsText, Sent::Untyped];

/// The topic that needs a nondeterministic collation.
pub const NONDETERMINISTIC: &str = "collations";

pub const TOPICS: &[(&str, &[Query])] = &[
    ("lookups", LOOKUPS),
    ("lists", LISTS),
    ("digests", DIGESTS),
    ("ranges", RANGES),
    ("joins", JOINS),
    ("semi-joins", SEMI_JOINS),
    ("sorting", SORTING),
    ("grouping", GROUPING),
    ("windows", WINDOWS),
    ("text functions", TEXT_FUNCTIONS),
    (NONDETERMINISTIC, COLLATIONS),
    ("expressions", EXPRESSIONS),
    ("set operations", SET_OPERATIONS),
    ("subqueries", SUBQUERIES),
    ("arrays and rows", ARRAYS_AND_ROWS),
    ("bytea", BYTEA),
    ("partitions", PARTITIONS),
    ("changes", CHANGES),
];

const LOOKUPS: &[Query] = &[
    rows("SELECT t.id FROM t WHERE {x} = {text}"),
    rows("SELECT t.id, {x} FROM t WHERE {text} = {x}"),
    rows("SELECT t.id, t.a, t.b FROM t WHERE {x} {eq} {text}"),
    rows("SELECT t.id FROM t WHERE {x} = {text} AND t.n < {int}"),
    rows("SELECT t.id FROM t WHERE t.a = {text} OR t.b = {text2}"),
    rows("SELECT t.id FROM t WHERE t.a = {text} AND t.b <> {text2}"),
    rows("SELECT t.id FROM t WHERE NOT {x} = {text}"),
    rows("SELECT t.id FROM t WHERE {x} IS DISTINCT FROM {text}"),
    rows("SELECT t.id FROM t WHERE {x} IS NOT DISTINCT FROM {text}"),
    rows("SELECT t.id FROM t WHERE ({x} = {text}) IS NOT TRUE"),
    rows("SELECT t.id FROM t WHERE {x} IS NULL OR t.n = {int}"),
    rows("SELECT count(*), count({x}) FROM t WHERE {x} IS NOT NULL"),
    rows("SELECT t.id, t.w FROM t WHERE t.w = {text}"),
    rows("SELECT t.id FROM t WHERE t.w = (SELECT w FROM t s WHERE s.id = {int})"),
    rows("SELECT t.id FROM t WHERE {x} = t.p"),
    rows("SELECT t.id FROM t WHERE t.p {eq} {x}"),
    rows("SELECT t.id FROM t WHERE t.a {eq} t.b"),
    rows("SELECT t.id FROM t WHERE t.i = {text}").sent(NOT_NAME),
    rows("SELECT t.id FROM t WHERE t.i {eq} t.a"),
    rows("SELECT t.id FROM t WHERE t.a = {text} AND t.id % 2 = 0"),
    rows("SELECT t.id FROM t WHERE coalesce(t.a, t.b) = {text}"),
    rows("SELECT t.id FROM t WHERE (CASE WHEN t.n < 50 THEN t.a END) = {text}"),
    rows("SELECT t.id FROM t WHERE t.a = lower({text})"),
    rows("SELECT t.id FROM t WHERE t.a = {text} || '.com'").sent(TEXT),
    rows("SELECT t.id FROM t WHERE t.a = {text}::varchar(17)"),
    rows("SELECT t.id FROM t WHERE t.a = {text} AND t.a = {text2}"),
    rows("SELECT t.id FROM t WHERE t.a = {text} AND t.a = t.b"),
    rows("SELECT t.id FROM t WHERE t.a = t.b AND t.b = t.p"),
];

const LISTS: &[Query] = &[
    rows("SELECT t.id FROM t WHERE {x} IN ({text}, {text2}, {text3})"),
    rows(
        "SELECT t.id FROM t WHERE {x} IN ({text}, {text2}, {text3}, {text4}, {text5}, {text6},
        {text7}, {text8}, {text9}, {text10}, {text11}, {text12})",
    ),
    rows("SELECT t.id FROM t WHERE {x} NOT IN ({text}, {text2})"),
    rows(
        "SELECT t.id FROM t WHERE {x} NOT IN ({text}, {text2}, {text3}, {text4}, {text5}, {text6},
        {text7}, {text8}, {text9}, {text10}, {text11}, {text12})",
    ),
    rows("SELECT t.id FROM t WHERE {x} IN (t.p, {text})"),
    rows("SELECT t.id FROM t WHERE {x} IN (t.b, {text}, {text2})"),
    rows("SELECT t.id FROM t WHERE {x} = ANY ({texts})"),
    rows("SELECT t.id FROM t WHERE {x} <> ANY ({texts})"),
    rows("SELECT t.id FROM t WHERE {x} <> ALL ({texts})"),
    rows("SELECT t.id FROM t WHERE {x} = ALL ({texts})"),
    rows("SELECT t.id FROM t WHERE {x} {op} ANY ({texts})").sent(NOT_NAME),
    rows("SELECT t.id FROM t WHERE {x} = ANY (ARRAY[{text}, {text2}]::{T}[])"),
    rows("SELECT t.id FROM t WHERE {x} = ANY (ARRAY[{text}, {text2}]::text[])"),
    rows("SELECT t.id FROM t WHERE {x} = ANY (ARRAY[{text}, {text2}]::varchar[])"),
    rows("SELECT t.id FROM t WHERE {x} = ANY (ARRAY[{text}, {text2}]::name[])").sent(TYPED),
    rows("SELECT t.id FROM t WHERE {x} = ANY (ARRAY[t.b, {text}])").sent(TEXT),
    rows("SELECT t.id FROM t WHERE {x} = ANY ({texts}) AND t.n < {int}"),
    rows("SELECT t.id FROM t WHERE {x} = ANY ({texts}) OR {x2} = {text}"),
    rows(
        "SELECT u.id, v.id FROM u JOIN LATERAL unnest(ARRAY[u.a, u.c]) WITH ORDINALITY v(x, id)
          ON v.x = {text}",
    ),
    rows("SELECT t.id FROM t JOIN unnest({texts}::text[]) AS s(v) ON {x} = s.v"),
    rows("SELECT t.id FROM t JOIN (VALUES ({text}), ({text2}), ({text3})) AS s(v) ON {x} = s.v"),
    rows("SELECT t.id FROM t WHERE {x} IN (VALUES ({text}), ({text2}))"),
];

const DIGESTS: &[Query] = &[
    rows("SELECT t.id FROM t WHERE enc_digest({x}) = enc_digest({text})")
        .twin("SELECT t.id FROM t WHERE {x} = {text}"),
    rows("SELECT t.id FROM t WHERE enc_digest({x}) IN (enc_digest({text}), enc_digest({text2}))")
        .twin("SELECT t.id FROM t WHERE {x} IN ({text}, {text2})"),
    rows("SELECT t.id, u.id FROM t JOIN u ON enc_digest({x}) = enc_digest({y})")
        .twin("SELECT t.id, u.id FROM t JOIN u ON {x} = {y}"),
    rows("SELECT t.id, u.id FROM t JOIN u ON enc_digest({x}) = enc_digest(u.p)")
        .twin("SELECT t.id, u.id FROM t JOIN u ON {x} = u.p"),
    rows("SELECT count(DISTINCT enc_digest({x})) FROM t")
        .twin("SELECT count(DISTINCT {x}) FROM t"),
    rows("SELECT count(*), min(t.id) FROM t GROUP BY enc_digest({x})")
        .twin("SELECT count(*), min(t.id) FROM t GROUP BY {x}"),
    rows("SELECT t.id FROM t WHERE enc_digest(t.bin) = enc_digest({bytes}::bytea)")
        .twin("SELECT t.id FROM t WHERE t.bin = {bytes}"),
    rows("SELECT t.id FROM t WHERE enc_digest({x}, 'none', 'mail') = enc_digest({text}, 'none', 'mail')")
        .twin("SELECT t.id FROM t WHERE {x} = {text}"),
    // Another domain, another digest.
    rows("SELECT t.id FROM t WHERE enc_digest({x}) = enc_digest({text}, 'none', 'mail')")
        .twin("SELECT t.id FROM t WHERE {x} = {text} AND false"),
    // What is equal in lower case is equal under a case fold (not the other way round).
    rows("SELECT t.id, u.id FROM t JOIN u ON lower({x}) = lower({y})
           WHERE enc_digest({x}, 'nfkc_casefold') <> enc_digest({y}, 'nfkc_casefold')
             AND {x} ~ '^[ -~]*$' AND {y} ~ '^[ -~]*$'")
        .twin("SELECT t.id, u.id FROM t JOIN u ON {x} = {y} WHERE false"),
    rows("SELECT t.id FROM t WHERE enc_digest({x}, 'lower') = enc_digest({text}, 'lower')
             AND {x} ~ '^[ -~]*$'")
        .twin("SELECT t.id FROM t WHERE lower({x}) = lower({text}) AND {x} ~ '^[ -~]*$'")
        .sent(TEXT),
    rows("SELECT t.id FROM t WHERE enc_digest({x}, 'digits') = enc_digest({text}, 'digits')
             AND {x} ~ '^[ -~]*$'")
        .twin("SELECT t.id FROM t WHERE regexp_replace({x}, '[^0-9]', '', 'g')
                  = regexp_replace({text}, '[^0-9]', '', 'g') AND {x} ~ '^[ -~]*$'")
        .sent(TEXT),
];

const RANGES: &[Query] = &[
    rows("SELECT t.id FROM t WHERE {x} {op} {text}"),
    rows("SELECT t.id FROM t WHERE {text} {op} {x}"),
    rows("SELECT t.id FROM t WHERE {x} {op} {text} AND {x} {op2} {text2}"),
    rows("SELECT t.id FROM t WHERE {x} BETWEEN {text} AND {text2}"),
    rows("SELECT t.id FROM t WHERE {x} NOT BETWEEN {text} AND {text2}"),
    rows("SELECT t.id FROM t WHERE {x} BETWEEN SYMMETRIC {text} AND {text2}"),
    rows("SELECT t.id FROM t WHERE t.a {op} t.b"),
    rows("SELECT t.id FROM t WHERE {x} {op} t.p"),
    rows("SELECT t.id FROM t WHERE {x} {collate} {op} {text}").sent(NOT_NAME),
    rows("SELECT t.id FROM t WHERE t.i {op} {text}").sent(NOT_NAME),
    rows("SELECT t.id FROM t WHERE (t.a, t.b) {op} ({text}, {text2})").sent(TEXT),
    rows("SELECT t.id FROM t WHERE (t.a, t.id) {op} ({text}, {int})").sent(TEXT),
    rows("SELECT t.id, u.id FROM t, u WHERE (t.a, t.n) {op} (u.a, u.n) AND u.id < 10"),
    rows("SELECT count(*) FROM t, u WHERE {x} {op} {y}"),
];

const JOINS: &[Query] = &[
    rows("SELECT t.id, u.id FROM t JOIN u ON {x} = {y}"),
    rows("SELECT t.id, u.id FROM t JOIN u ON t.a = u.a"),
    rows("SELECT t.id, u.id FROM t JOIN u ON t.a = u.c"),
    rows("SELECT t.id, u.id FROM t JOIN u ON {x} = u.p"),
    rows("SELECT t.id, u.id FROM t JOIN u ON u.p = {x}"),
    rows("SELECT t.id, u.id FROM t JOIN u ON {x} = u.vc"),
    rows("SELECT t.id, u.id FROM t JOIN u ON {x} = u.nm"),
    rows("SELECT t.id, u.id FROM t JOIN u ON t.p = {y}"),
    rows("SELECT t.id, u.id FROM t LEFT JOIN u ON {x} = {y}"),
    rows("SELECT t.id, u.id FROM t RIGHT JOIN u ON {x} = {y}"),
    rows("SELECT t.id, u.id FROM t FULL JOIN u ON {x} = {y}"),
    rows("SELECT t.id, u.id FROM t FULL JOIN u ON {x} = u.p"),
    rows("SELECT t.id, u.id FROM t FULL JOIN u ON {x}::text = u.vc"),
    rows("SELECT a, t.id, u.id FROM t JOIN u USING (a)"),
    rows("SELECT a, t.id, u.id FROM t FULL JOIN u USING (a)"),
    rows("SELECT t.id, u.id FROM t JOIN u ON t.a = u.a AND t.n < u.n"),
    rows("SELECT t.id, u.id FROM t JOIN u ON t.a = u.a AND t.b = u.c"),
    rows("SELECT t.id, u.id FROM t JOIN u ON t.a = u.a AND t.n = u.n"),
    rows("SELECT t.id, u.id FROM t JOIN u ON {x} = {y} WHERE {y} = {text}"),
    rows("SELECT t.id, u.id FROM t JOIN u ON {x} = u.p WHERE u.p = {text}"),
    rows("SELECT t.id, u.id FROM t JOIN u ON {x} = u.p WHERE {x} = {text}"),
    rows("SELECT t.id, u.id FROM t JOIN u ON {x} = {y} AND {x} IN ({text}, {text2})"),
    rows("SELECT t.id, u.id FROM t LEFT JOIN u ON {x} = {y} AND u.n < {int} WHERE t.n < {int2}"),
    rows("SELECT t.id, s.id, u.id FROM t JOIN t s ON s.b = t.a JOIN u ON u.c = s.b"),
    rows("SELECT t.id, s.id, u.id FROM t JOIN u ON u.p = t.a JOIN u s ON s.a = u.p"),
    rows("SELECT count(*) FROM t JOIN t s ON s.a = t.a AND s.id < t.id"),
    rows("SELECT t.id, u.id FROM t JOIN u ON coalesce(t.a, t.b) = u.a"),
    rows("SELECT t.id, u.id FROM t JOIN u ON lower(t.a) = lower(u.a)"),
    rows("SELECT t.id, u.id FROM t JOIN u ON t.a IN (u.a, u.c)"),
    rows("SELECT t.id, u.id FROM t JOIN u ON t.a = u.a OR t.b = u.c"),
    rows("SELECT t.id, u.id FROM t JOIN u ON t.i = u.a"),
    rows("SELECT t.id, u.id FROM t, u WHERE {x} <> {y} AND u.id < 5 AND t.id < 50"),
    rows("SELECT t.id, u.id FROM u JOIN t ON {x} = {y} WHERE u.id = {int}"),
    rows("SELECT d.a, u.id FROM (SELECT DISTINCT a FROM t) d JOIN u ON u.a = d.a"),
    rows(
        "SELECT d.a, d.n, u.id FROM (SELECT a, count(*) AS n FROM t GROUP BY a) d JOIN u ON u.c = d.a",
    ),
];

const SEMI_JOINS: &[Query] = &[
    rows("SELECT t.id FROM t WHERE EXISTS (SELECT FROM u WHERE {y} = {x})"),
    rows("SELECT t.id FROM t WHERE NOT EXISTS (SELECT FROM u WHERE {y} = {x})"),
    rows("SELECT t.id FROM t WHERE EXISTS (SELECT FROM u WHERE u.p = {x})"),
    rows("SELECT t.id FROM t WHERE NOT EXISTS (SELECT FROM u WHERE u.vc = {x})"),
    rows("SELECT t.id FROM t WHERE {x} IN (SELECT {y} FROM u)"),
    rows("SELECT t.id FROM t WHERE {x} IN (SELECT u.p FROM u)"),
    rows("SELECT t.id FROM t WHERE {x} IN (SELECT u.vc FROM u WHERE u.n < {int})"),
    rows("SELECT t.id FROM t WHERE {x} IN (SELECT u.nm FROM u)"),
    rows("SELECT t.id FROM t WHERE t.p IN (SELECT {y} FROM u)"),
    rows("SELECT t.id FROM t WHERE {x} NOT IN (SELECT {y} FROM u WHERE {y} IS NOT NULL)"),
    rows("SELECT t.id FROM t WHERE {x} NOT IN (SELECT {y} FROM u)"),
    rows("SELECT t.id FROM t WHERE {x} NOT IN (SELECT u.p FROM u WHERE u.p IS NOT NULL)"),
    rows("SELECT t.id FROM t WHERE t.p NOT IN (SELECT {y} FROM u WHERE {y} IS NOT NULL)"),
    rows("SELECT t.id, {x} IN (SELECT {y} FROM u) AS known FROM t"),
    rows("SELECT t.id, {x} IN (SELECT u.p FROM u) AS known FROM t"),
    rows("SELECT t.id, t.p IN (SELECT {y} FROM u WHERE {y} IS NOT NULL) AS known FROM t"),
    rows("SELECT t.id FROM t WHERE {x} = ANY (SELECT {y} FROM u WHERE u.n > {int})"),
    rows("SELECT t.id FROM t WHERE {x} <> ALL (SELECT {y} FROM u WHERE u.n > {int})"),
    rows(
        "SELECT t.id FROM t WHERE {x} > ALL (SELECT {y} FROM u WHERE u.n > 50 AND {y} IS NOT NULL)",
    ),
    rows("SELECT t.id FROM t WHERE (t.a, t.b) IN (SELECT u.a, u.c FROM u)"),
    rows("SELECT t.id FROM t WHERE (t.a, t.n) IN (SELECT u.p, u.n FROM u)"),
    rows(
        "SELECT t.id FROM t WHERE (t.a, t.b) NOT IN (SELECT u.a, u.c FROM u
             WHERE u.a IS NOT NULL AND u.c IS NOT NULL)",
    ),
    rows("SELECT t.id FROM t WHERE {x} IN (SELECT {y} FROM u) AND {x2} NOT IN ({text}, {text2})"),
    rows("SELECT t.id FROM t WHERE {x} IN (SELECT {y} FROM u ORDER BY {y} LIMIT 10)"),
    rows("SELECT t.id FROM t LEFT JOIN u ON {y} = {x} WHERE u.id IS NULL"),
    rows("SELECT t.id FROM t WHERE (SELECT count(*) FROM u WHERE {y} = {x}) > 1"),
];

const SORTING: &[Query] = &[
    list("SELECT t.id, {x} AS x FROM t ORDER BY {x} {collate} {dir}, t.id"),
    list("SELECT {x} AS x FROM t ORDER BY {x} {collate} {dir}"),
    list("SELECT t.id FROM t ORDER BY t.a {collate} {dir}, t.b {collate2} {dir2}, t.id"),
    list("SELECT t.id FROM t ORDER BY t.i {dir}, t.id"),
    list("SELECT t.id FROM t ORDER BY t.n, {x} {collate} {dir}, t.id"),
    list("SELECT t.id FROM t WHERE {x} > {text} ORDER BY {x}, t.id LIMIT 10").sent(NOT_NAME),
    list("SELECT t.id FROM t ORDER BY {x} {collate} {dir}, t.id LIMIT 7 OFFSET {int}"),
    rows("SELECT {x} AS x FROM t ORDER BY {x} {collate} {dir} FETCH FIRST 9 ROWS WITH TIES"),
    list("SELECT t.id FROM t ORDER BY lower({x}) {collate}, t.id"),
    list("SELECT t.id FROM t ORDER BY coalesce(t.a, t.b) {collate} {dir}, t.id"),
    list("SELECT t.id FROM t ORDER BY {x} = {text}, {x} {collate}, t.id").sent(NOT_NAME),
    list("SELECT t.id, u.id FROM t JOIN u ON {x} = {y} ORDER BY {x} {collate} {dir}, t.id, u.id"),
    list("SELECT DISTINCT {x} AS x FROM t ORDER BY {x}"),
    list("SELECT DISTINCT ON ({x}) {x} AS x, t.id FROM t ORDER BY {x} {dir}, t.id DESC"),
    list(
        "SELECT DISTINCT ON (t.a, t.n) t.a, t.n, t.b FROM t ORDER BY t.a, t.n, t.b {collate}, t.id",
    ),
    list("SELECT t.id FROM t ORDER BY {x} USING <, t.id"),
    list("SELECT t.id FROM t ORDER BY {x} USING >, t.id"),
    list(
        "SELECT s.id FROM (SELECT id, a FROM t ORDER BY a {collate}, id LIMIT 40) s ORDER BY s.a {dir}, s.id",
    ),
    list("SELECT t.id FROM t ORDER BY t.p, {x}, t.id"),
];

const GROUPING: &[Query] = &[
    rows("SELECT {x} AS x, count(*) FROM t GROUP BY {x}"),
    rows("SELECT t.a, t.b, count(*), sum(t.n) FROM t GROUP BY t.a, t.b"),
    rows("SELECT t.n, {x} AS x, count(*) FROM t GROUP BY t.n, {x}"),
    rows("SELECT {x} AS x, count(*) FROM t GROUP BY {x} HAVING count(*) > 2"),
    rows("SELECT {x} AS x, count(*) FROM t GROUP BY {x} HAVING {x} = {text}"),
    rows("SELECT count(DISTINCT {x}) FROM t"),
    rows("SELECT count(DISTINCT t.a), count(DISTINCT t.b), count(DISTINCT t.bin) FROM t"),
    rows("SELECT t.n % 5 AS m, count(DISTINCT {x}) FROM t GROUP BY t.n % 5"),
    rows("SELECT count(DISTINCT (t.a, t.b)) FROM t"),
    rows("SELECT DISTINCT {x} AS x FROM t"),
    rows("SELECT DISTINCT t.a, t.b FROM t"),
    rows("SELECT DISTINCT t.a, t.p FROM t WHERE t.n < {int}"),
    rows("SELECT count(*) FROM (SELECT DISTINCT t.a, u.c FROM t, u WHERE u.id < 9) s"),
    rows("SELECT min({x}), max({x}) FROM t"),
    rows("SELECT t.n % 5 AS m, min({x}), max({x}) FROM t GROUP BY t.n % 5"),
    rows("SELECT min({x} {collate}), max({x} {collate}) FROM t WHERE t.n < {int}"),
    rows("SELECT string_agg({x}, ',' ORDER BY {x} {collate} {dir}) FROM t"),
    rows("SELECT string_agg(DISTINCT {x}, ',' ORDER BY {x}) FROM t"),
    rows(
        "SELECT t.n % 4 AS m, array_agg({x} ORDER BY {x} {collate} {dir}, t.id)::text AS l FROM t GROUP BY 1",
    ),
    rows("SELECT array_agg(DISTINCT {x})::text[] AS l FROM t"),
    rows("SELECT array_agg(DISTINCT {x} ORDER BY {x} DESC)::text AS l FROM t"),
    rows(
        "SELECT count(*) FILTER (WHERE {x} = {text}) AS f, count({x}) FILTER (WHERE t.n < {int}) AS c FROM t",
    ),
    rows("SELECT count(DISTINCT {x}) FILTER (WHERE {x} <> {text}) FROM t"),
    rows("SELECT t.a, t.b, count(*) FROM t GROUP BY GROUPING SETS ((t.a), (t.b), ())"),
    rows("SELECT t.a, t.n % 3 AS m, count(*), grouping(t.a) FROM t GROUP BY ROLLUP (t.a, 2)"),
    rows("SELECT t.a, t.n % 3 AS m, count(DISTINCT t.b) FROM t GROUP BY CUBE (t.a, 2)"),
    rows("SELECT mode() WITHIN GROUP (ORDER BY {x})::text AS m FROM t"),
    rows("SELECT percentile_disc(0.5) WITHIN GROUP (ORDER BY {x})::text AS m FROM t"),
    rows("SELECT rank({text}::{T}) WITHIN GROUP (ORDER BY {x}) FROM t"),
    rows("SELECT bool_or({x} = {text}), bool_and({x} <> {text2}) FROM t"),
    rows("SELECT json_agg({x} ORDER BY t.id)::text AS j FROM t"),
    rows("SELECT jsonb_object_agg({x}, t.n ORDER BY t.id)::text AS j FROM t WHERE {x} IS NOT NULL"),
    rows("SELECT lower({x}) AS l, count(*) FROM t GROUP BY lower({x})"),
    rows("SELECT coalesce(t.a, t.b) AS c, count(*) FROM t GROUP BY coalesce(t.a, t.b)"),
    rows(
        "SELECT {x} AS x, string_agg(u.p, '/' ORDER BY u.p, u.id) FROM t JOIN u ON u.a = {x} GROUP BY {x}",
    ),
];

const WINDOWS: &[Query] = &[
    rows("SELECT t.id, row_number() OVER (PARTITION BY {x} ORDER BY t.id) FROM t"),
    rows("SELECT t.id, count(*) OVER (PARTITION BY {x}) FROM t"),
    rows("SELECT t.id, count(*) OVER (PARTITION BY t.a, t.b) FROM t"),
    rows("SELECT t.id, rank() OVER (ORDER BY {x} {collate} {dir}) FROM t"),
    rows("SELECT t.id, dense_rank() OVER (PARTITION BY t.n % 3 ORDER BY {x} {collate} {dir}) FROM t"),
    rows("SELECT t.id, lag({x}) OVER (ORDER BY t.id) AS l, lead(t.b, 2, 'none') OVER (ORDER BY t.id) AS n FROM t"),
    rows("SELECT t.id, first_value(t.a) OVER (PARTITION BY t.b ORDER BY t.id) AS f FROM t"),
    rows("SELECT t.id, sum(t.n) OVER (ORDER BY {x} GROUPS BETWEEN 1 PRECEDING AND 1 FOLLOWING) FROM t"),
    rows("SELECT t.id, sum(t.n) OVER (ORDER BY {x} RANGE BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW) FROM t"),
    rows("SELECT t.id, ntile(7) OVER (ORDER BY {x}, t.id) FROM t"),
    rows("SELECT t.id, min({x}) OVER (PARTITION BY t.n % 7) AS m FROM t"),
    rows("SELECT s.x FROM (SELECT {x} AS x, row_number() OVER (PARTITION BY {x}) AS k FROM t) s WHERE s.k = 1"),
    rows("SELECT s.id FROM (SELECT t.id, {x} AS x, rank() OVER (PARTITION BY {x} ORDER BY t.n, t.id) AS k FROM t) s
           WHERE s.k <= 2 AND s.x = {text}"),
];

const TEXT_FUNCTIONS: &[Query] = &[
    rows("SELECT t.id FROM t WHERE {x} LIKE {pattern}").sent(NOT_NAME),
    rows("SELECT t.id FROM t WHERE {x} NOT LIKE {pattern}").sent(NOT_NAME),
    rows("SELECT t.id FROM t WHERE {x} ILIKE {pattern}").sent(NOT_NAME),
    rows("SELECT t.id FROM t WHERE {x} LIKE ANY (ARRAY['a%', '%b', {pattern}])").sent(TEXT),
    rows("SELECT t.id FROM t WHERE {text} LIKE {x}").sent(NOT_NAME),
    rows("SELECT t.id FROM t WHERE {x} LIKE 'alice@example.com'"),
    rows("SELECT t.id FROM t WHERE {x} ~ '^[a-z]+@'"),
    rows("SELECT t.id FROM t WHERE {x} ~* 'ALICE|^é' AND {x} !~ '[0-9]'"),
    rows("SELECT t.id FROM t WHERE {x} SIMILAR TO '%(alice|bob)%'"),
    rows("SELECT t.id FROM t WHERE starts_with({x}, {text})").sent(NOT_NAME),
    rows("SELECT t.id FROM t WHERE {x} ^@ {text}").sent(TEXT),
    rows("SELECT t.id FROM t WHERE lower({x}) = lower({text})"),
    rows("SELECT t.id, lower({x}) AS l, upper({x}) AS u, initcap({x}) AS i FROM t"),
    rows(
        "SELECT t.id, length({x}), char_length({x}) AS c, octet_length({x}), bit_length({x}) FROM t",
    ),
    rows("SELECT t.id, {x} || '!' AS l, '<' || {x} AS r FROM t"),
    rows("SELECT t.id, t.a || t.b AS ab, t.a || t.p AS ap, t.a || t.n AS an FROM t"),
    rows("SELECT t.id, {x} || {text} AS c FROM t").sent(TEXT),
    rows(
        "SELECT t.id, substr({x}, 2, 3) AS s, substring({x} FROM '@.*$') AS r, left({x}, 4) AS l, right({x}, 4) AS e FROM t",
    ),
    rows("SELECT t.id, position('@' IN {x}), strpos({x}, 'e'), split_part({x}, '@', 2) FROM t"),
    rows(
        "SELECT t.id, replace({x}, 'a', 'b') AS r, translate({x}, 'abc', 'xyz') AS t, overlay({x} PLACING 'zz' FROM 2) AS o FROM t",
    ),
    rows(
        "SELECT t.id, trim({x}) AS b, ltrim({x}, 'a') AS l, rtrim({x}) AS r, lpad({x}, 20, '.') AS p FROM t",
    ),
    rows(
        "SELECT t.id, md5({x}) AS m, reverse({x}) AS r, repeat({x}, 2) AS d, ascii({x}) FROM t WHERE t.id < 80",
    ),
    rows(
        "SELECT t.id, concat({x}, '/', t.n) AS c, concat_ws('/', t.a, t.b) AS w, format('%s-%I', {x}, 'q') AS f FROM t",
    ),
    rows("SELECT t.id, regexp_replace({x}, '[aeiou]', '_', 'g') AS r FROM t"),
    rows("SELECT t.id, normalize({x}) AS n, {x} IS NFC NORMALIZED AS f FROM t"),
    rows(
        "SELECT t.id, quote_literal({x}) AS q, quote_nullable({x}) AS n, to_json({x})::text AS j FROM t",
    ),
    rows("SELECT t.id, string_to_array({x}, '@') AS s FROM t"),
    rows(
        "SELECT t.id, {x}::text AS t, {x}::varchar AS v, {x}::varchar(3) AS w, {x}::char(5) AS c, {x}::name AS n FROM t",
    ),
    rows("SELECT t.id, convert_to({x}, 'UTF8') AS c, sha256(convert_to({x}, 'UTF8')) AS s FROM t"),
    rows("SELECT t.id FROM t WHERE {x} = upper({x})"),
    rows("SELECT t.id FROM t WHERE length({x}) > {int}"),
    rows(
        "SELECT t.id FROM t WHERE to_tsvector('simple', {x}) @@ to_tsquery('simple', 'alice | bob')",
    ),
];

/// By a nondeterministic collation, which takes upper and lower case for the same. Which of the equal
/// values a group shows isn't determined.
const COLLATIONS: &[Query] = &[
    rows("SELECT t.id FROM t WHERE {x} COLLATE caseless {eq} {text}").sent(NOT_NAME),
    rows("SELECT t.id FROM t WHERE {text} COLLATE caseless = {x}").sent(TEXT),
    rows("SELECT t.id FROM t WHERE {x} COLLATE caseless IN ({text}, {text2})").sent(NOT_NAME),
    rows("SELECT t.id FROM t WHERE {x} COLLATE caseless = ANY ({texts})").sent(TEXT),
    rows("SELECT t.id FROM t WHERE {x} COLLATE caseless {op} {text}").sent(NOT_NAME),
    rows("SELECT t.id, u.id FROM t JOIN u ON {x} COLLATE caseless = {y}"),
    rows("SELECT t.id, u.id FROM t JOIN u ON {x} COLLATE caseless = u.p"),
    rows("SELECT t.id FROM t WHERE {x} COLLATE caseless IN (SELECT {y} FROM u)"),
    rows("SELECT t.id FROM t WHERE NOT EXISTS (SELECT FROM u WHERE u.p COLLATE caseless = {x})"),
    rows("SELECT count(*), min(t.id) FROM t GROUP BY {x} COLLATE caseless"),
    rows("SELECT count(*) FROM (SELECT DISTINCT {x} COLLATE caseless FROM t) s"),
    rows("SELECT count(DISTINCT {x} COLLATE caseless) FROM t"),
    rows("SELECT t.id, rank() OVER (ORDER BY {x} COLLATE caseless) FROM t"),
    list("SELECT t.id FROM t ORDER BY {x} COLLATE caseless {dir}, t.id"),
    rows("SELECT t.id FROM t WHERE t.a COLLATE caseless {eq} t.b"),
];

const EXPRESSIONS: &[Query] = &[
    rows("SELECT t.id, coalesce({x}, 'none') AS c FROM t"),
    rows("SELECT t.id, coalesce(t.a, t.b, {text}) AS c FROM t").sent(TEXT),
    rows("SELECT t.id, coalesce({x}, t.p) AS c FROM t"),
    rows("SELECT t.id, nullif({x}, {text}) AS c FROM t").sent(TEXT),
    rows("SELECT t.id, nullif(t.a, t.b) AS c FROM t"),
    rows("SELECT t.id, greatest(t.a, t.b) AS g, least(t.a, t.b) AS l FROM t"),
    rows("SELECT t.id, greatest(t.a, t.p) AS g, least(t.a, {text}) AS l FROM t").sent(TEXT),
    rows("SELECT t.id, CASE {x} WHEN {text} THEN 1 WHEN {text2} THEN 2 ELSE 3 END AS c FROM t"),
    rows("SELECT t.id, CASE WHEN t.n % 2 = 0 THEN t.a ELSE t.b END AS c FROM t"),
    rows("SELECT t.id, CASE WHEN {x} = {text} THEN t.a WHEN {x} IS NULL THEN 'null' ELSE t.p END AS c FROM t"),
    rows("SELECT t.id, CASE WHEN t.n < 50 THEN {x} END = {text} AS c FROM t"),
    rows("SELECT t.id, {x} = {text} AS e, {x} <> {text} AS n, {x} IS NULL AS z FROM t"),
    rows("SELECT t.id, {x} {op} {text} AS o FROM t"),
    rows("SELECT t.id, (SELECT {x}) AS s, ({x})::{T} AS c FROM t"),
    rows("SELECT t.id, {text}::{T} AS c, {x} = {text}::{T} AS e FROM t").sent(TEXT),
    rows("SELECT {text}::{T} = {text2}::{T} AS e, {text}::{T} < {text2}::{T} AS l, {text}::{T} <> {text2} AS n")
        .sent(TEXT),
    rows("SELECT t.id, num_nulls(t.a, t.b, t.p) FROM t"),
    rows("SELECT t.id, jsonb_build_object('a', t.a, 'b', t.b)::text AS j FROM t"),
    rows("SELECT t.id, row_to_json(t)::text AS j FROM t WHERE t.id < 60"),
];

const SET_OPERATIONS: &[Query] = &[
    rows("SELECT t.a FROM t UNION SELECT u.a FROM u"),
    rows("SELECT t.a FROM t UNION ALL SELECT u.c FROM u"),
    rows("SELECT t.a FROM t UNION SELECT u.p FROM u"),
    rows("SELECT u.p FROM u UNION SELECT {x} FROM t"),
    rows("SELECT {x} FROM t UNION SELECT u.vc FROM u"),
    rows("SELECT t.a FROM t UNION SELECT 'literal'"),
    rows("SELECT t.a FROM t INTERSECT SELECT u.c FROM u"),
    rows("SELECT {x} FROM t INTERSECT ALL SELECT {y} FROM u"),
    rows("SELECT {x} FROM t INTERSECT SELECT u.p FROM u"),
    rows("SELECT {x} FROM t INTERSECT SELECT u.vc FROM u"),
    rows("SELECT {x} FROM t EXCEPT SELECT {y} FROM u"),
    rows("SELECT {x} FROM t EXCEPT ALL SELECT {y} FROM u"),
    rows("SELECT {x} FROM t EXCEPT SELECT u.p FROM u"),
    rows("SELECT u.p FROM u EXCEPT SELECT {x} FROM t"),
    rows("SELECT t.a, t.n FROM t UNION SELECT u.a, u.n FROM u"),
    rows("SELECT t.a, t.b FROM t INTERSECT SELECT t.b, t.a FROM t"),
    list("SELECT t.a AS v FROM t UNION SELECT u.a FROM u ORDER BY v"),
    rows("(SELECT {x} AS v FROM t UNION SELECT {y} FROM u) EXCEPT SELECT {text}").sent(TEXT),
    rows(
        "SELECT count(*) FROM (SELECT {x} FROM t UNION SELECT {y} FROM u UNION SELECT u.p FROM u) s",
    ),
];

const SUBQUERIES: &[Query] = &[
    rows("WITH s AS (SELECT id, {x} AS v FROM t) SELECT s.id FROM s WHERE s.v = {text}"),
    rows(
        "WITH s AS MATERIALIZED (SELECT id, {x} AS v FROM t) SELECT s.id, u.id FROM s JOIN u ON u.a = s.v",
    ),
    rows(
        "WITH s AS MATERIALIZED (SELECT {x} AS v, count(*) AS n FROM t GROUP BY 1)
          SELECT s.v, s.n FROM s WHERE s.v IN (SELECT v FROM s WHERE n > 2)",
    ),
    rows(
        "WITH RECURSIVE s(id, v) AS (
              SELECT id, a::{T} FROM t WHERE id = {int}
              UNION SELECT t.id, t.a FROM t JOIN s ON t.a = s.v)
          SELECT id, v FROM s",
    ),
    rows(
        "WITH RECURSIVE s(v, depth) AS (
              SELECT a::{T}, 0 FROM u WHERE id < 5
              UNION SELECT t.b, s.depth + 1 FROM t JOIN s ON t.a = s.v WHERE s.depth < 2)
          SELECT v, depth FROM s",
    ),
    rows("SELECT t.id, (SELECT min(u.id) FROM u WHERE {y} = {x}) AS m FROM t"),
    rows("SELECT t.id, (SELECT max(u.id) FROM u WHERE u.p = {x}) AS m FROM t"),
    rows("SELECT t.id, (SELECT u.a FROM u WHERE u.id = t.n) AS v FROM t"),
    rows(
        "SELECT t.id, s.id AS sid FROM t, LATERAL (SELECT u.id FROM u WHERE {y} = {x} ORDER BY u.id LIMIT 2) s",
    ),
    rows(
        "SELECT t.id, s.k FROM t LEFT JOIN LATERAL (SELECT count(*) AS k FROM u WHERE u.vc = {x}) s ON true",
    ),
    rows("SELECT t.id FROM t WHERE t.a = (SELECT u.a FROM u WHERE u.id = {int})"),
    rows("SELECT t.id FROM t WHERE t.a = (SELECT u.p FROM u WHERE u.id = {int})"),
    rows("SELECT t.id FROM t WHERE t.n > (SELECT avg(s.n) FROM t s WHERE s.a = t.a)"),
    rows("SELECT u.id FROM u WHERE u.a = ANY (ARRAY(SELECT t.a FROM t WHERE t.n < {int}))"),
    rows("SELECT u.id FROM u WHERE u.a = ANY (ARRAY(SELECT t.p FROM t WHERE t.n < {int}))"),
    rows(
        "SELECT s.id, u.id FROM (SELECT id, a FROM t OFFSET 0) s JOIN u ON u.a = s.a WHERE u.n < {int}",
    ),
    rows(
        "SELECT t.id FROM t WHERE EXISTS (SELECT FROM u WHERE u.a = t.a AND EXISTS (SELECT FROM t s WHERE s.b = u.c))",
    ),
];

const ARRAYS_AND_ROWS: &[Query] = &[
    rows("SELECT t.id FROM t WHERE {text} = ANY (t.tags)"),
    rows("SELECT t.id FROM t WHERE {x} = ANY (t.tags)"),
    rows("SELECT t.id FROM t WHERE t.p = ANY (t.tags)"),
    rows("SELECT t.id FROM t WHERE {text} <> ALL (t.tags)"),
    rows("SELECT t.id, s.tag FROM t, unnest(t.tags) AS s(tag)"),
    rows("SELECT s.tag, count(*) FROM t, unnest(t.tags) AS s(tag) GROUP BY s.tag"),
    rows("SELECT t.id, u.id FROM t, unnest(t.tags) AS s(tag) JOIN u ON u.a = s.tag"),
    rows("SELECT t.id, cardinality(t.tags), t.tags[1] AS first, t.tags::text AS all FROM t"),
    rows("SELECT t.id FROM t WHERE t.tags @> ARRAY[{text}]::{T}[]"),
    rows("SELECT t.id FROM t WHERE t.tags && {texts}::{T}[]"),
    rows("SELECT t.id FROM t WHERE t.tags = ARRAY[{text}, {text2}]::{T}[]"),
    rows("SELECT t.id FROM t WHERE t.tags[1] = {text}"),
    rows("SELECT t.tags::text AS l, count(*) FROM t GROUP BY t.tags"),
    rows("SELECT DISTINCT t.tags::text AS l FROM t"),
    rows("SELECT count(DISTINCT t.tags) FROM t"),
    list("SELECT t.id FROM t ORDER BY t.tags {dir}, t.id"),
    rows("SELECT t.id, array_position(t.tags, {text}::{T}) AS p FROM t").sent(TEXT),
    rows(
        "SELECT t.id, array_remove(t.tags, {x})::text AS r, array_append(t.tags, {x})::text AS a FROM t",
    ),
    rows("SELECT t.id, array_to_string(t.tags, '/', '-') AS s, t.tags::text[] AS c FROM t"),
    rows("SELECT t.id FROM t WHERE (t.a, t.b) = ({text}, {text2})"),
    rows("SELECT t.id FROM t WHERE (t.a, t.n) {eq} ({text}, {int})"),
    rows("SELECT t.id FROM t WHERE (t.a, t.b) IN (({text}, {text2}), ({text3}, {text4}))"),
    rows("SELECT t.id FROM t WHERE ROW(t.a, t.b) IS DISTINCT FROM ROW({text}, {text2})"),
    rows("SELECT t.id, s.id FROM t JOIN t s ON ROW(t.a, t.b) = ROW(s.b, s.a)"),
    rows("SELECT (t.a, t.b)::text AS r, count(*) FROM t GROUP BY (t.a, t.b)"),
    list("SELECT t.id FROM t ORDER BY (t.a, t.id)"),
    rows("SELECT count(DISTINCT (t.a, t.n)) FROM t"),
    rows(
        "SELECT u.id FROM u WHERE (u.a, u.c)::text = (SELECT (s.a, s.c)::text FROM u s WHERE s.id = {int})",
    ),
    rows("SELECT count(*) FROM r JOIN r s ON r = s"),
];

const BYTEA: &[Query] = &[
    rows("SELECT t.id FROM t WHERE {bin} = {bytes}"),
    rows("SELECT t.id, {bin} FROM t WHERE {bytes} {eq} {bin}"),
    rows("SELECT t.id FROM t WHERE {bin} IN ({bytes}, {bytes2}, {bytes3})"),
    rows("SELECT t.id FROM t WHERE {bin} NOT IN ({bytes}, {bytes2})"),
    rows("SELECT t.id FROM t WHERE {bin} = ANY ({byte_strings})"),
    rows("SELECT t.id FROM t WHERE {bin} <> ALL ({byte_strings})"),
    rows("SELECT t.id FROM t WHERE {bin} = ANY (ARRAY[{bytes}, {bytes2}]::bytea[])"),
    rows("SELECT t.id FROM t WHERE {bin} = ANY (ARRAY[{bytes}, {bytes2}]::{B}[])"),
    rows("SELECT t.id FROM t WHERE {bin} {op} {bytes}"),
    rows("SELECT t.id FROM t WHERE {bin} BETWEEN {bytes} AND {bytes2}"),
    rows("SELECT t.id FROM t WHERE {bin} IS NOT DISTINCT FROM {bytes}"),
    rows("SELECT t.id FROM t WHERE t.bin {eq} t.bin2"),
    rows("SELECT t.id, u.id FROM t JOIN u ON {bin} = u.bin"),
    rows("SELECT t.id, u.id FROM t FULL JOIN u ON {bin} = u.bin"),
    rows("SELECT t.id, u.id FROM t JOIN u ON {bin} = convert_to(u.p, 'UTF8')"),
    rows("SELECT t.id FROM t WHERE {bin} IN (SELECT u.bin FROM u)"),
    rows(
        "SELECT t.id FROM t WHERE {bin} NOT IN (SELECT convert_to(u.p, 'UTF8') FROM u WHERE u.p IS NOT NULL)",
    ),
    rows("SELECT t.id FROM t WHERE NOT EXISTS (SELECT FROM u WHERE u.bin = {bin})"),
    list("SELECT t.id, {bin} AS bin FROM t ORDER BY {bin} {dir}, t.id"),
    list("SELECT DISTINCT {bin} AS bin FROM t ORDER BY {bin}"),
    rows("SELECT DISTINCT t.bin, t.a FROM t"),
    rows("SELECT {bin} AS bin, count(*) FROM t GROUP BY {bin}"),
    rows("SELECT count(DISTINCT {bin}) FROM t WHERE t.n < {int}"),
    rows("SELECT t.id, rank() OVER (ORDER BY {bin}), count(*) OVER (PARTITION BY {bin}) FROM t"),
    rows("SELECT t.bin FROM t UNION SELECT u.bin FROM u"),
    rows("SELECT {bin} FROM t INTERSECT SELECT convert_to(u.p, 'UTF8') FROM u"),
    rows("SELECT {bin} FROM t EXCEPT ALL SELECT u.bin FROM u"),
    rows(
        "SELECT t.id, length({bin}), octet_length({bin}), substr({bin}, 2, 3) AS s, {bin} || '\\x00' AS c FROM t",
    ),
    rows("SELECT t.id, encode({bin}, 'base64') AS e, md5({bin}) AS m, sha256({bin}) AS s FROM t"),
    rows("SELECT t.id, position('\\x65'::bytea IN {bin}), btrim({bin}, '\\x00') AS b FROM t"),
    rows("SELECT t.id, coalesce(t.bin, t.bin2, '\\x') AS c, nullif(t.bin, {bytes}) AS n FROM t"),
    rows(
        "SELECT t.id, CASE {bin} WHEN {bytes} THEN 1 ELSE 2 END AS c, greatest(t.bin, t.bin2) AS g FROM t",
    ),
    rows("SELECT t.id FROM t WHERE {bin} LIKE '\\x616c696325'::bytea"),
    rows("SELECT array_agg({bin} ORDER BY {bin} {dir}, t.id)::text AS l FROM t"),
    rows("SELECT string_agg({bin}, '\\x2c' ORDER BY {bin}) FROM t"),
];

const PARTITIONS: &[Query] = &[
    rows("SELECT r.id FROM r WHERE r.a = {text}"),
    rows("SELECT r.id FROM r WHERE r.a = {text} AND r.region = 'eu'"),
    rows("SELECT r.id FROM r WHERE r.a IN ({text}, {text2}) AND r.region IN ('eu', 'asia')"),
    rows("SELECT r.id FROM r WHERE r.a = ANY ({texts})"),
    rows("SELECT r.id, u.id FROM r JOIN u ON u.a = r.a"),
    rows("SELECT r.id, u.id FROM r JOIN u ON u.p = r.a WHERE r.region <> 'us'"),
    rows("SELECT r.id, s.id FROM r JOIN r s ON r.region = s.region AND r.a = s.a"),
    rows("SELECT r.region, r.a, count(*) FROM r GROUP BY r.region, r.a"),
    rows("SELECT DISTINCT r.a FROM r"),
    list("SELECT r.id FROM r ORDER BY r.a {collate} {dir}, r.id"),
    rows("SELECT r.id FROM r WHERE r.a IN (SELECT u.c FROM u)"),
    rows("SELECT r.id FROM r WHERE r.a LIKE {pattern}").sent(NOT_NAME),
];

const ALL_OF_T: &str = "SELECT id, a, b, i, bin, tags::text AS tags, n FROM t";

const CHANGES: &[Query] = &[
    change("UPDATE t SET n = n + 1 WHERE {x} = {text} RETURNING id, n", ALL_OF_T),
    change("UPDATE t SET a = {text} WHERE t.b = {text2}", ALL_OF_T),
    change("UPDATE t SET a = t.b, b = t.a WHERE t.n < {int} RETURNING id, a, b", ALL_OF_T),
    change("UPDATE t SET a = u.c, b = u.p FROM u WHERE t.a = u.a AND u.id = {int}", ALL_OF_T),
    change("UPDATE t SET (a, n) = (SELECT max(u.p), count(*) FROM u WHERE u.a = t.a)", ALL_OF_T),
    change("UPDATE t SET a = lower(a), tags = array_append(tags, a), bin = {bytes} WHERE {x} {op} {text}", ALL_OF_T)
        .sent(NOT_NAME),
    change("DELETE FROM t WHERE {x} IN ({text}, {text2}) RETURNING id, a", ALL_OF_T),
    change("DELETE FROM t USING u WHERE {x} = {y} AND u.n < {int}", ALL_OF_T),
    change("DELETE FROM t WHERE {x} NOT IN (SELECT {y} FROM u WHERE {y} IS NOT NULL)", ALL_OF_T),
    change("INSERT INTO t (id, a, b, bin, tags) VALUES (1000, {text}, {text2}, {bytes}, {texts})
            RETURNING a, b, a = {text}, bin", ALL_OF_T),
    change("INSERT INTO t (id, a, b) SELECT 1000 + id, c, p FROM u WHERE n < {int} RETURNING id, a", ALL_OF_T),
    change("INSERT INTO t (id, a) VALUES (1, {text}), (1001, {text2})
            ON CONFLICT (id) DO UPDATE SET a = excluded.a, b = t.a WHERE t.a <> excluded.a", ALL_OF_T),
    change("MERGE INTO t USING u ON t.a = u.a AND u.id = {int}
            WHEN MATCHED AND t.b = {text} THEN DELETE
            WHEN MATCHED THEN UPDATE SET b = u.c
            WHEN NOT MATCHED THEN INSERT (id, a, b) VALUES (1000 + u.id, u.a, u.p)", ALL_OF_T),
    change("WITH d AS (DELETE FROM t WHERE t.a = {text} RETURNING id, a, b)
            INSERT INTO u (id, a, c) SELECT 1000 + id, a, b FROM d RETURNING a, c",
           "SELECT id, a, c FROM u UNION ALL SELECT id, a, b FROM t"),
];
