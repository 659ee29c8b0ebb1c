//! Ways in which a query reaches the server, and circumstances in which it is planned.

use bytes::BytesMut;
use cluster_tests::Binary;
use fastrand::Rng;
use postgres::error::SqlState;
use postgres::types::{IsNull, ToSql, Type, to_sql_checked};
use postgres::{Client, SimpleQueryMessage};

use crate::data::{array, bytes_literal, literal};
use crate::queries::{Kind, Order, Query};
use crate::side::Side;

/// What a query gives: its rows, or an SQLSTATE.
pub type Answer = Result<Vec<Vec<Option<Vec<u8>>>>, String>;

/// A value that a query is about.
#[derive(Clone, Debug)]
pub enum Value {
    Text(Option<String>),
    Bytes(Option<Vec<u8>>),
    Texts(Vec<Option<String>>),
    ByteStrings(Vec<Option<Vec<u8>>>),
}

/// The type that a value is sent as.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Sent {
    /// The column's own: `encrypted_text`, `encrypted_bytea`; in the plain twin `text`, `bytea`.
    AsColumn,
    AsText,
    AsVarchar,
    AsBpchar,
    AsName,
    /// Left to the server.
    Untyped,
}

/// How a query reaches the server.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Execution {
    /// With its values as literals, of these types.
    Literals(Sent),
    /// By PREPARE and EXECUTE.
    Prepared(Sent),
    /// By the extended protocol, values and results in binary form.
    Protocol(Sent),
    /// With untyped literals in a view.
    View,
    /// Through a cursor that scrolls.
    Cursor,
}

impl Sent {
    pub const ALL: [Self; 6] = [
        Self::AsColumn,
        Self::AsText,
        Self::AsVarchar,
        Self::AsBpchar,
        Self::AsName,
        Self::Untyped,
    ];

    /// The name of the type, for a value.
    fn of(self, side: Side, value: &Value) -> String {
        let element = match value {
            Value::Text(_) | Value::Texts(_) => match self {
                Self::AsColumn => side.text(),
                Self::AsText => "text",
                Self::AsVarchar => "varchar",
                Self::AsBpchar => "bpchar",
                Self::AsName => "name",
                Self::Untyped => return "unknown".to_owned(),
            },
            Value::Bytes(_) | Value::ByteStrings(_) => match self {
                Self::AsColumn => side.bytea(),
                Self::Untyped => return "unknown".to_owned(),
                _ => "bytea",
            },
        };
        match value {
            Value::Text(_) | Value::Bytes(_) => element.to_owned(),
            Value::Texts(_) | Value::ByteStrings(_) => format!("{element}[]"),
        }
    }
}

impl Value {
    fn literal(&self) -> String {
        match self {
            Self::Text(text) => literal(text.as_deref()),
            Self::Bytes(bytes) => bytes_literal(bytes.as_deref()),
            Self::Texts(texts) => literal(Some(&array(texts))),
            Self::ByteStrings(elements) => {
                let texts = elements.iter().map(|element| {
                    element.as_ref().map(|bytes| format!("\\x{}", cluster_tests::hex(bytes)))
                });
                literal(Some(&array(&texts.collect::<Vec<_>>())))
            }
        }
    }

    /// With texts cut to what a `name` holds. Input in text form cuts, in binary form it fails.
    fn cut(&self) -> Self {
        let cut = |text: &Option<String>| {
            text.as_ref().map(|text| text[..text.floor_char_boundary(63)].to_owned())
        };
        match self {
            Self::Text(text) => Self::Text(cut(text)),
            Self::Texts(texts) => Self::Texts(texts.iter().map(cut).collect()),
            Self::Bytes(_) | Self::ByteStrings(_) => self.clone(),
        }
    }

    fn typed_literal(&self, sent: Sent, side: Side) -> String {
        match sent {
            Sent::Untyped => self.literal(),
            // Bare, as people write it; the server reads it as `text[]`.
            Sent::AsText
                if let Self::Texts(texts) = self
                    && !texts.is_empty() =>
            {
                let texts = texts.iter().map(|text| literal(text.as_deref()));
                format!("ARRAY[{}]", texts.collect::<Vec<_>>().join(", "))
            }
            _ => format!("{}::{}", self.literal(), sent.of(side, self)),
        }
    }
}

impl Execution {
    /// One of those that a query allows.
    pub fn draw(query: &Query, has_values: bool, rng: &mut Rng) -> Self {
        let sent = query.sent[rng.usize(..query.sent.len())];
        let selects = query.kind == Kind::Select;
        match rng.u32(..16) {
            0..3 => Self::Literals(Sent::Untyped),
            3..5 => Self::Literals(sent),
            5..8 => Self::Protocol(sent),
            8 if selects => Self::View,
            9..11 if selects => Self::Cursor,
            _ if has_values => Self::Prepared(sent),
            _ => Self::Literals(Sent::Untyped),
        }
    }

    /// Has one of the sides answer a query: `sql` with `$1` and so on for its values.
    pub fn run(
        self,
        session: &mut Client,
        side: Side,
        settings: &str,
        query: &Query,
        sql: &str,
        values: &[Value],
    ) -> (String, Answer) {
        let begin = format!(
            "RESET ALL; SET search_path = {}, public; SET statement_timeout = '60s'; SET jit = off; \
             {settings}",
            side.schema()
        );
        let (begin, end) = match query.kind {
            Kind::Select => (begin, String::new()),
            Kind::Change { then } => (format!("{begin}BEGIN;\n"), format!(";\n{then};\nROLLBACK")),
        };
        if let Self::Protocol(sent) = self {
            let literals: Vec<_> = values.iter().map(Value::literal).collect();
            let shown = format!("{begin}-- $1, …: {}\n{sql}{end}", literals.join(", "));
            return (shown, by_protocol(session, side, &begin, sql, &end, sent, values));
        }
        let sql = match self {
            Self::Literals(sent) => with_literals(sql, values, sent, side),
            Self::Prepared(sent) => {
                let types: Vec<_> = values.iter().map(|value| sent.of(side, value)).collect();
                let literals: Vec<_> = values.iter().map(Value::literal).collect();
                format!(
                    "PREPARE q({}) AS {sql};\nEXECUTE q({});\nDEALLOCATE q",
                    types.join(", "),
                    literals.join(", ")
                )
            }
            Self::View => {
                let sql = with_literals(sql, values, Sent::Untyped, side);
                match column_names(session, &begin, &sql) {
                    Ok(names) => format!(
                        "CREATE TEMP VIEW v ({names}) AS {sql};\nSELECT * FROM v;\nDROP VIEW v"
                    ),
                    Err(error) => return (format!("{begin}{sql}"), Err(error)),
                }
            }
            Self::Cursor => {
                let sql = with_literals(sql, values, Sent::Untyped, side);
                let fetch = match query.order {
                    Order::Total => {
                        "FETCH 5 FROM c; FETCH BACKWARD 3 FROM c; FETCH ABSOLUTE 2 FROM c; \
                         FETCH ALL FROM c; FETCH RELATIVE -4 FROM c"
                    }
                    Order::None => "FETCH 5 FROM c; FETCH ALL FROM c",
                };
                format!("BEGIN;\nDECLARE c SCROLL CURSOR FOR {sql};\n{fetch};\nCOMMIT")
            }
            Self::Protocol(_) => unreachable!("returned above"),
        };
        let sql = format!("{begin}{sql}{end}");
        let answer = simple(session, &sql);
        if answer.is_err() {
            // What the query began and left, if it did.
            let _ = session.simple_query("ROLLBACK");
            let _ = session.simple_query("DEALLOCATE q");
        }
        (sql, answer)
    }
}

/// A query with its values as literals in place of `$1` and so on.
fn with_literals(sql: &str, values: &[Value], sent: Sent, side: Side) -> String {
    let mut sql = sql.to_owned();
    // From the last one on: `$1` is the beginning of `$10`.
    for (n, value) in values.iter().enumerate().rev() {
        sql = sql.replace(&format!("${}", n + 1), &value.typed_literal(sent, side));
    }
    sql
}

/// Names for a view's columns, those of the query not being unique.
fn column_names(session: &mut Client, begin: &str, sql: &str) -> Result<String, String> {
    simple(session, begin)?;
    let statement = session.prepare(sql).map_err(|error| sqlstate(&error))?;
    let names = (1..=statement.columns().len()).map(|n| format!("c{n}"));
    Ok(names.collect::<Vec<_>>().join(", "))
}

/// The rows of all statements of one message.
fn simple(session: &mut Client, sql: &str) -> Answer {
    let messages = session.simple_query(sql).map_err(|error| sqlstate(&error))?;
    let rows = messages.into_iter().filter_map(|message| match message {
        SimpleQueryMessage::Row(row) => {
            Some((0..row.len()).map(|n| row.get(n).map(|text| text.as_bytes().to_vec())).collect())
        }
        _ => None,
    });
    Ok(rows.collect())
}

fn by_protocol(
    session: &mut Client,
    side: Side,
    begin: &str,
    sql: &str,
    end: &str,
    sent: Sent,
    values: &[Value],
) -> Answer {
    simple(session, begin)?;
    let answer = (|| {
        let types: Vec<Type> = match sent {
            Sent::Untyped => Vec::new(),
            _ => values
                .iter()
                .map(|value| type_named(session, &sent.of(side, value)))
                .collect::<Result<_, _>>()?,
        };
        let statement = session.prepare_typed(sql, &types)?;
        let values: Vec<_> = values
            .iter()
            .map(|value| Parameter(if sent == Sent::AsName { value.cut() } else { value.clone() }))
            .collect();
        let values: Vec<&(dyn ToSql + Sync)> =
            values.iter().map(|value| value as &(dyn ToSql + Sync)).collect();
        let rows = session.query(&statement, &values)?;
        Ok(rows
            .iter()
            .map(|row| {
                let columns = (0..row.len()).map(|n| row.get::<_, Option<Binary>>(n));
                columns.map(|column| column.map(|Binary(bytes)| bytes)).collect()
            })
            .collect())
    })();
    let mut answer: Answer = answer.map_err(|error| sqlstate(&error));
    if !end.is_empty() {
        match &mut answer {
            Ok(rows) => rows.extend(simple(session, &format!("SELECT 1 WHERE false{end}"))?),
            Err(_) => drop(session.simple_query("ROLLBACK")),
        }
    }
    answer
}

fn type_named(session: &mut Client, name: &str) -> Result<Type, postgres::Error> {
    // As the client library knows it: the type of a column of no rows.
    let statement = session.prepare(&format!("SELECT NULL::{name}"))?;
    Ok(statement.columns()[0].type_().clone())
}

/// A value in binary form, which is the same for `text` and the types that are sent as it is.
#[derive(Debug)]
struct Parameter(Value);

impl ToSql for Parameter {
    fn to_sql(
        &self,
        type_: &Type,
        out: &mut BytesMut,
    ) -> Result<IsNull, Box<dyn std::error::Error + Sync + Send>> {
        fn binary<T: AsRef<[u8]>>(bytes: Option<&T>) -> Option<Binary> {
            bytes.map(|bytes| Binary(bytes.as_ref().to_vec()))
        }
        match &self.0 {
            Value::Text(text) => binary(text.as_ref()).to_sql(type_, out),
            Value::Bytes(bytes) => binary(bytes.as_ref()).to_sql(type_, out),
            Value::Texts(texts) => {
                let elements: Vec<_> = texts.iter().map(|text| binary(text.as_ref())).collect();
                elements.to_sql(type_, out)
            }
            Value::ByteStrings(elements) => {
                let elements: Vec<_> =
                    elements.iter().map(|element| binary(element.as_ref())).collect();
                elements.to_sql(type_, out)
            }
        }
    }

    fn accepts(_: &Type) -> bool {
        true
    }

    to_sql_checked!();
}

/// The SQLSTATE, with the message.
fn sqlstate(error: &postgres::Error) -> String {
    match error.as_db_error() {
        Some(error) => format!("{}: {}", error.code().code(), error.message()),
        None => format!("{}: {error:?}", SqlState::CONNECTION_FAILURE.code()),
    }
}

/// Settings that lead the planner elsewhere, as statements.
pub fn settings(major: u16, rng: &mut Rng) -> String {
    const METHODS: [&str; 14] = [
        "seqscan",
        "indexscan",
        "bitmapscan",
        "indexonlyscan",
        "hashjoin",
        "mergejoin",
        "nestloop",
        "hashagg",
        "sort",
        "incremental_sort",
        "memoize",
        "material",
        "parallel_hash",
        "parallel_append",
    ];
    let mut settings = Vec::new();
    for method in METHODS {
        if rng.u32(..4) == 0 {
            settings.push(format!("enable_{method} = off"));
        }
    }
    for method in ["partitionwise_join", "partitionwise_aggregate"] {
        if rng.bool() {
            settings.push(format!("enable_{method} = on"));
        }
    }
    settings.push(format!(
        "plan_cache_mode = {}",
        ["force_generic_plan", "force_custom_plan", "auto"][rng.usize(..3)]
    ));
    // Spills to disk.
    if rng.u32(..5) == 0 {
        settings.push("work_mem = '64kB'".to_owned());
    }
    if rng.u32(..4) == 0 {
        let zero = [
            "parallel_setup_cost",
            "parallel_tuple_cost",
            "min_parallel_table_scan_size",
            "min_parallel_index_scan_size",
        ];
        settings.extend(zero.map(|name| format!("{name} = 0")));
        settings.push("max_parallel_workers_per_gather = 2".to_owned());
        if rng.bool() {
            settings.push(format!(
                "{} = on",
                if major < 16 { "force_parallel_mode" } else { "debug_parallel_query" }
            ));
        }
    } else {
        settings.push("max_parallel_workers_per_gather = 0".to_owned());
    }
    settings.iter().map(|setting| format!("SET {setting}; ")).collect::<String>() + "\n"
}
