//! Queries mean on encrypted columns what they mean on plain ones.
//!
//! The same rows are in a schema `plain` and in a schema `encrypted` (`data.rs`). Queries made at
//! random from templates (`queries.rs`) run on both. The plain side is planned as PostgreSQL does by
//! default, without indexes; the encrypted one with indexes and planner settings drawn at random
//! (`execution.rs`), from literals, typed and untyped parameters, prepared statements, the binary
//! protocol, views and cursors. Answers must be the same, rows and their order where it is determined.
//!
//! A seed makes all of it, and is printed. `DIFFERENTIAL_SEED` brings a run back; `DIFFERENTIAL_ROUNDS`
//! makes it longer or shorter.

#![expect(clippy::panic, clippy::unwrap_used, reason = "a test fails by a panic")]

mod data;
mod execution;
mod indexes;
mod queries;
mod side;

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write;

use cluster_tests::{Session, connect, expect_error, start_on};
use fastrand::Rng;
use harness::cluster::Cluster;
use postgres::Client;

use data::Pool;
use execution::{Answer, Execution, Value};
use indexes::Indexes;
use queries::{NONDETERMINISTIC, Order, Query, TOPICS};
use side::{Side, fill};

/// How often each template is made into a query, unless `DIFFERENTIAL_ROUNDS` says.
const ROUNDS: usize = 8;

/// Rounds between two sets of indexes.
const ROUNDS_WITH_THE_SAME_INDEXES: usize = 2;

/// How many failures are shown, one for each template at most.
const SHOWN_FAILURES: usize = 12;

#[test]
fn queries_agree_on_postgresql_15() {
    compare_on(15, "queries_agree_on_postgresql_15");
}

#[test]
fn queries_agree_on_postgresql_18() {
    compare_on(18, "queries_agree_on_postgresql_18");
}

fn compare_on(major: u16, test: &str) {
    let Some(cluster) = start_on(major, test) else { return };
    let seed = number("DIFFERENTIAL_SEED").unwrap_or_else(|| fastrand::u64(..));
    let rounds = number("DIFFERENTIAL_ROUNDS").map_or(ROUNDS, |rounds| rounds as usize);
    eprintln!("PostgreSQL {major}: DIFFERENTIAL_SEED={seed} DIFFERENTIAL_ROUNDS={rounds}");

    let mut comparison = Comparison::begin(&cluster, major, test, seed);
    for round in 0..rounds {
        if round.is_multiple_of(ROUNDS_WITH_THE_SAME_INDEXES) {
            comparison.change_indexes();
        }
        for (topic, queries) in comparison.topics() {
            for query in *queries {
                comparison.compare(topic, query);
            }
        }
    }
    comparison.finish(rounds);
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|value| value.parse().expect("it is a number"))
}

struct Comparison {
    major: u16,
    rng: Rng,
    pool: Pool,
    plain: Client,
    encrypted: Client,
    indexes: Indexes,
    has_icu: bool,
    collations: [&'static str; 4],
    /// How many queries each topic had, and how many rows they gave.
    done: BTreeMap<&'static str, (usize, usize)>,
    /// By template.
    failures: HashMap<&'static str, String>,
    failed: usize,
}

impl Comparison {
    fn begin(cluster: &Cluster, major: u16, test: &str, seed: u64) -> Self {
        let mut rng = Rng::with_seed(seed);
        let pool = Pool::new(&mut rng);
        let mut plain = connect(cluster);
        let has_icu = make_collations(&mut plain);
        if !has_icu {
            harness::skip(test, "nondeterministic collations: this PostgreSQL has no ICU");
        }
        data::make(&mut plain, &pool, &mut rng);
        Self {
            major,
            rng,
            pool,
            plain,
            encrypted: connect(cluster),
            indexes: Indexes::default(),
            has_icu,
            collations: ["", "COLLATE \"C\"", "COLLATE icu", "COLLATE libc"],
            done: BTreeMap::new(),
            failures: HashMap::new(),
            failed: 0,
        }
    }

    fn topics(&self) -> impl Iterator<Item = &'static (&'static str, &'static [Query])> + use<> {
        let has_icu = self.has_icu;
        TOPICS.iter().filter(move |(topic, _)| has_icu || *topic != NONDETERMINISTIC)
    }

    fn change_indexes(&mut self) {
        self.indexes.change(&mut self.encrypted, &mut self.rng);
    }

    /// Makes a template into a query, and runs it on both sides.
    fn compare(&mut self, topic: &'static str, query: &'static Query) {
        let mut drawn = Drawn::default();
        let encrypted = self.fill(query.encrypted, Side::Encrypted, &mut drawn);
        let plain = self.fill(query.plain, Side::Plain, &mut drawn);
        let execution = Execution::draw(query, !drawn.values.is_empty(), &mut self.rng);
        let settings = execution::settings(self.major, &mut self.rng);

        let values = &drawn.values;
        let (plain_sql, expected) =
            execution.run(&mut self.plain, Side::Plain, "", query, &plain, values);
        let (sql, actual) = execution.run(
            &mut self.encrypted,
            Side::Encrypted,
            &settings,
            query,
            &encrypted,
            values,
        );

        let (queries, rows) = self.done.entry(topic).or_default();
        *queries += 1;
        *rows += expected.as_ref().map_or(0, Vec::len);
        if let Some(difference) = difference(expected, actual, query.order) {
            self.failed += 1;
            let (sql, plain_sql) = (shorten(&sql), shorten(&plain_sql));
            self.failures.entry(query.encrypted).or_insert_with(|| {
                format!("{topic}, {execution:?}: {difference}\n{sql}\nplain: {plain_sql}")
            });
        }
        assert!(!self.encrypted.is_closed(), "the server crashed: {sql}");
    }

    fn fill(&mut self, template: &str, side: Side, drawn: &mut Drawn) -> String {
        fill(template, |hole| {
            side.word(hole).unwrap_or_else(|| {
                if let Some(drawn) = drawn.holes.get(hole) {
                    return drawn.clone();
                }
                let filled = self.draw(hole, &mut drawn.values);
                drawn.holes.insert(hole.to_owned(), filled.clone());
                filled
            })
        })
    }

    fn draw(&mut self, hole: &str, values: &mut Vec<Value>) -> String {
        let Self { rng, pool, .. } = self;
        let pick = |rng: &mut Rng, words: &[&str]| words[rng.usize(..words.len())].to_owned();
        let seldom_null = |rng: &mut Rng| rng.u32(..25) > 0;
        let value = match hole.trim_end_matches(|c: char| c.is_ascii_digit()) {
            "x" => return pick(rng, &["t.a", "t.b"]),
            "y" => return pick(rng, &["u.a", "u.c"]),
            "bin" => return pick(rng, &["t.bin", "t.bin2"]),
            "eq" => return pick(rng, &["=", "<>"]),
            "op" => return pick(rng, &["<", "<=", ">", ">="]),
            "dir" => return pick(rng, &["", "ASC", "DESC", "NULLS FIRST", "DESC NULLS LAST"]),
            "collate" => return pick(rng, &self.collations),
            "int" => return rng.u32(..100).to_string(),
            "text" => Value::Text(seldom_null(rng).then(|| pool.text(rng))),
            "pattern" => Value::Text(Some(pool.pattern(rng))),
            "bytes" => Value::Bytes(seldom_null(rng).then(|| pool.byte_string(rng))),
            "texts" => {
                let len = rng.usize(..6);
                Value::Texts((0..len).map(|_| seldom_null(rng).then(|| pool.text(rng))).collect())
            }
            "byte_strings" => {
                let len = rng.usize(..6);
                Value::ByteStrings(
                    (0..len).map(|_| seldom_null(rng).then(|| pool.byte_string(rng))).collect(),
                )
            }
            _ => panic!("there is no hole {hole}"),
        };
        values.push(value);
        format!("${}", values.len())
    }

    fn finish(mut self, rounds: usize) {
        self.indexes.drop_all(&mut self.encrypted);
        let mut report = String::new();
        for (topic, (queries, rows)) in &self.done {
            writeln!(report, "{topic:<16} {queries:>6} queries, {rows:>8} rows").unwrap();
            assert!(*rows > 0, "no query of {topic} gave a row");
        }
        let queries: usize = self.done.values().map(|(queries, _)| queries).sum();
        eprintln!(
            "PostgreSQL {}: {queries} queries\n{report}{}",
            self.major,
            self.indexes.report()
        );

        assert!(
            self.failures.is_empty(),
            "{} of {queries} queries differ, of {} templates:\n\n{}",
            self.failed,
            self.failures.len(),
            self.failures.into_values().take(SHOWN_FAILURES).collect::<Vec<_>>().join("\n\n")
        );
        if rounds >= ROUNDS {
            assert!(queries >= 3000, "only {queries} queries ran");
            self.indexes.assert_used();
        }
    }
}

/// Makes the collations that queries name, and says whether there is an ICU for those that need it.
/// Without, `icu` is another's, and there is no nondeterministic one.
fn make_collations(session: &mut Client) -> bool {
    session.run("CREATE COLLATION libc (provider = libc, locale = 'C.UTF-8')");
    // Upper case first, which tells it from the others.
    let icu = session.batch_execute(
        "CREATE COLLATION icu (provider = icu, locale = 'en-u-kf-upper');
         CREATE COLLATION caseless (provider = icu, locale = 'und-u-ks-level2', deterministic = false)",
    );
    if let Err(error) = &icu {
        let _ = expect_error(error, "0A000");
        session.run("CREATE COLLATION icu (provider = builtin, locale = 'C.UTF-8')");
    }
    icu.is_ok()
}

/// What the holes of a query were filled with.
#[derive(Default)]
struct Drawn {
    holes: HashMap<String, String>,
    /// Of the parameters `$1`, `$2` and so on.
    values: Vec<Value>,
}

/// What is wrong, if anything is.
fn difference(expected: Answer, actual: Answer, order: Order) -> Option<String> {
    let mut expected = match expected {
        Ok(rows) => rows,
        Err(error) => return Some(format!("the plain query fails: {error}")),
    };
    let mut actual = match actual {
        Ok(rows) => rows,
        Err(error) => return Some(format!("fails: {error}")),
    };
    if expected == actual {
        return None;
    }
    let (expected_rows, actual_rows) = (expected.len(), actual.len());
    let first = expected.iter().zip(&actual).position(|(expected, actual)| expected != actual);
    let in_order = first.map_or_else(String::new, |n| {
        format!(", first in row {n}: {} instead of {}", show(&actual[n]), show(&expected[n]))
    });
    expected.sort();
    actual.sort();
    if expected == actual {
        return (order == Order::Total).then(|| format!("the order differs{in_order}"));
    }
    let missing = without(&expected, &actual);
    let surplus = without(&actual, &expected);
    Some(format!(
        "{actual_rows} rows instead of {expected_rows}; {} missing: {}; {} too many: {}",
        missing.len(),
        missing.first().map_or_else(String::new, |row| show(row)),
        surplus.len(),
        surplus.first().map_or_else(String::new, |row| show(row)),
    ))
}

/// The rows of a sorted list that another has fewer of.
fn without<'a, T: Ord>(rows: &'a [T], others: &[T]) -> Vec<&'a T> {
    let mut others = others.iter().peekable();
    rows.iter()
        .filter(|row| {
            while others.next_if(|other| other < row).is_some() {}
            others.next_if_eq(row).is_none()
        })
        .collect()
}

fn show(row: &[Option<Vec<u8>>]) -> String {
    let columns = row.iter().map(|column| match column {
        None => "NULL".to_owned(),
        Some(bytes) => format!("{:?}", shorten(&String::from_utf8_lossy(bytes))),
    });
    format!("({})", columns.collect::<Vec<_>>().join(", "))
}

/// Without the middle of what is very long.
fn shorten(text: &str) -> String {
    const LIMIT: usize = 3000;
    let count = text.chars().count();
    if count <= LIMIT {
        return text.to_owned();
    }
    let begin: String = text.chars().take(LIMIT / 2).collect();
    let end: String = text.chars().skip(count - LIMIT / 2).collect();
    format!("{begin} … {end}")
}
