//! Definitions without the extension: `encrypted_text('key')` becomes `text`, `encrypted_bytea('key')`
//! becomes `bytea`, comparisons are PostgreSQL's own, and what only the extension can do is left out.
//!
//! Types and operators are recognized by their schema, which pg_dump always writes.

use std::collections::HashSet;
use std::ops::Range;

use crate::script::Words;
use crate::sql::Kind;

/// The schema of the catalog.
const CATALOG: &[u8] = b"encryption";

/// Extensions that have no operator of the names that the encrypted types have: in one schema with these,
/// an operator is the encrypted types'.
const WITHOUT_COMPARISONS: &[&[u8]] = &[
    b"adminpack",
    b"amcheck",
    b"autoinc",
    b"btree_gin",
    b"btree_gist",
    b"dblink",
    b"file_fdw",
    b"fuzzystrmatch",
    b"insert_username",
    b"moddatetime",
    b"pageinspect",
    b"pg_buffercache",
    b"pg_freespacemap",
    b"pg_prewarm",
    b"pg_stat_statements",
    b"pg_trgm",
    b"pg_visibility",
    b"pg_walinspect",
    b"pgcrypto",
    b"pgrowlocks",
    b"pgstattuple",
    b"plpgsql",
    b"postgres_fdw",
    b"refint",
    b"sslinfo",
    b"tablefunc",
    b"tsm_system_rows",
    b"tsm_system_time",
    b"unaccent",
    b"uuid-ossp",
];

/// Rewrites definitions.
#[derive(Default)]
pub struct PlainSchema {
    /// The schema that the extension's types are in.
    schema: Option<Vec<u8>>,
    /// Schemas with operators of others, of which some may have the same names.
    shared: HashSet<Vec<u8>>,
    /// Names of indexes and triggers that were left out.
    left_out: HashSet<Vec<u8>>,
}

/// What becomes of a statement.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Rewriting {
    /// Whether it is left out.
    pub is_left_out: bool,
    /// What of it is replaced, and by what; in order.
    pub edits: Vec<(Range<usize>, Vec<u8>)>,
    /// What whoever restores the dump should know.
    pub note: Option<String>,
}

impl Rewriting {
    fn left_out(note: Option<String>) -> Self {
        Self { is_left_out: true, edits: Vec::new(), note }
    }
}

impl PlainSchema {
    /// Looks at a statement that is no row of data.
    pub fn rewrite(&mut self, words: &Words<'_>) -> Rewriting {
        self.learn(words);
        if is_of_extension(words) || self.is_about_left_out(words) {
            return Rewriting::left_out(None);
        }
        let used = self.functions_used(words);
        let types = self.types_used(words);
        let what = || String::from_utf8_lossy(&title(words)).into_owned();
        if words.are(0, &[b"create", b"cast"]) && !types.is_empty() {
            return Rewriting::left_out(Some(format!("left out: {}", what())));
        }
        if !used.is_empty() && is_dispensable(words) {
            let is_loss = words.is(0, b"create");
            self.left_out.extend(created_name(words));
            return Rewriting::left_out(is_loss.then(|| format!("left out: {}", what())));
        }
        let mut rewriting = Rewriting::default();
        rewriting.edits.extend(types);
        self.replace_operators(words, &mut rewriting);
        if words.is(0, b"create") && !used.is_empty() {
            let generated = generated_columns(words, &used);
            let is_all = used
                .iter()
                .all(|at| generated.iter().any(|g| g.contains(&words.tokens()[*at].range.start)));
            for range in generated {
                rewriting.edits.retain(|(edited, _)| !range.contains(&edited.start));
                rewriting.edits.push((range, Vec::new()));
                rewriting.note =
                    Some(format!("a column that was generated is left empty in: {}", what()));
            }
            if !is_all {
                rewriting.note = Some(format!(
                    "it uses a function of the extension, and will not load without it: {}",
                    what()
                ));
            }
        }
        if rewriting.note.is_none() && mentions_in_body(words) {
            rewriting.note =
                Some(format!("its body mentions the extension, and stays as it is: {}", what()));
        }
        rewriting.edits.sort_by_key(|(range, _)| range.start);
        rewriting
    }

    fn learn(&mut self, words: &Words<'_>) {
        if words.are(0, &[b"create", b"extension"]) {
            let at = if words.is(2, b"if") { 5 } else { 2 };
            let schema = (at + 1..words.len())
                .find(|i| words.is(*i, b"schema"))
                .and_then(|i| words.name(i + 1))
                .unwrap_or_else(|| b"public".to_vec());
            match words.name(at) {
                Some(name) if name == b"encryption_ext" => self.schema = Some(schema),
                Some(name) if !WITHOUT_COMPARISONS.contains(&name.as_slice()) => {
                    self.shared.insert(schema);
                }
                _ => {}
            }
        }
        if words.are(0, &[b"create", b"operator"])
            && let Some(schema) = words.name(2)
            && words.is(3, b".")
        {
            self.shared.insert(schema);
        }
    }

    /// The places of the encrypted types, with what takes their place.
    fn types_used(&mut self, words: &Words<'_>) -> Vec<(Range<usize>, Vec<u8>)> {
        let mut edits = Vec::new();
        for at in 2..words.len() {
            let base: &[u8] = match words.text(at) {
                b"encrypted_text" => b"text",
                b"encrypted_bytea" => b"bytea",
                _ => continue,
            };
            let Some(schema) = words.name(at - 2).filter(|_| words.is(at - 1, b".")) else {
                continue;
            };
            if self.schema.get_or_insert_with(|| schema.clone()) != &schema {
                continue;
            }
            let modifier = words.is(at + 1, b"(")
                && matches!(words.tokens().get(at + 2).map(|t| t.kind), Some(Kind::String(_)))
                && words.is(at + 3, b")");
            if words.is(at + 1, b"(") && !modifier {
                continue;
            }
            let last = if modifier { at + 3 } else { at };
            edits.push((span(words, at - 2, last), base.to_vec()));
        }
        edits
    }

    /// `OPERATOR(public.=)` is `OPERATOR(pg_catalog.=)` of the base types.
    fn replace_operators(&self, words: &Words<'_>, rewriting: &mut Rewriting) {
        let Some(schema) = &self.schema else { return };
        for at in 0..words.len() {
            let is_ours = words.are(at, &[b"operator", b"("])
                && words.name(at + 2).as_ref() == Some(schema)
                && words.is(at + 3, b".");
            if !is_ours {
                continue;
            }
            let end = (at + 4..words.len()).find(|i| words.is(*i, b")")).unwrap_or(at + 4);
            let operator: Vec<u8> = (at + 4..end).flat_map(|i| words.text(i).to_vec()).collect();
            if !matches!(operator.as_slice(), b"=" | b"<>" | b"<" | b"<=" | b">" | b">=" | b"||") {
                continue;
            }
            if self.shared.contains(schema) {
                rewriting.note = Some(format!(
                    "its operators may be another extension's, and stay as they are: {}",
                    String::from_utf8_lossy(&title(words))
                ));
                continue;
            }
            rewriting.edits.push((span(words, at + 2, at + 2), b"pg_catalog".to_vec()));
        }
    }

    /// The places of the extension's functions.
    fn functions_used(&self, words: &Words<'_>) -> Vec<usize> {
        let is_ours = |at: usize| {
            let Some(schema) = words.name(at).filter(|_| words.is(at + 1, b".")) else {
                return false;
            };
            // A name with a schema, and not the last part of one.
            let is_first = at == 0 || !words.is(at - 1, b".");
            is_first
                && (schema == CATALOG
                    || Some(&schema) == self.schema.as_ref()
                        && words.text(at + 2).starts_with(b"enc_")
                        && words.is(at + 3, b"("))
        };
        (0..words.len()).filter(|at| is_ours(*at)).collect()
    }

    /// Whether it alters or comments on what was left out.
    fn is_about_left_out(&self, words: &Words<'_>) -> bool {
        (words.is(0, b"alter") || words.is(0, b"comment"))
            && (1..words.len())
                .filter_map(|at| words.name(at))
                .any(|name| self.left_out.contains(&name))
    }
}

/// Whether the statement makes, describes or fills the extension itself.
fn is_of_extension(words: &Words<'_>) -> bool {
    let names = |at: usize| words.name(at).is_some_and(|name| name == b"encryption_ext");
    let of_catalog = |at: usize| {
        words.name(at).is_some_and(|schema| schema == CATALOG) && words.is(at + 1, b".")
    };
    (words.are(0, &[b"create", b"extension"]) && (names(2) || names(5)))
        || (words.are(0, &[b"comment", b"on", b"extension"]) && names(3))
        || (words.are(0, &[b"alter", b"extension"]) && names(2))
        || (words.are(0, &[b"insert", b"into"]) && of_catalog(2))
        || (words.is(0, b"copy") && of_catalog(1))
        // ALTER DATABASE … SET "encryption_ext.provider" TO …
        || (words.is(0, b"alter")
            && (2..words.len()).any(|at| words.is(at, b"set") && is_setting(words, at + 1)))
}

fn is_setting(words: &Words<'_>, at: usize) -> bool {
    words.name(at).is_some_and(|name| {
        name.starts_with(b"encryption_ext.")
            || (name == b"encryption_ext" && words.is(at + 1, b"."))
    })
}

/// Whether nothing but itself is lost when the statement is left out.
fn is_dispensable(words: &Words<'_>) -> bool {
    [&b"grant"[..], b"revoke", b"comment", b"alter", b"drop"].iter().any(|word| words.is(0, word))
        || words.are(0, &[b"create", b"index"])
        || words.are(0, &[b"create", b"unique", b"index"])
        || words.are(0, &[b"create", b"trigger"])
        || words.are(0, &[b"create", b"event", b"trigger"])
}

/// The name of the index or trigger that a statement makes.
fn created_name(words: &Words<'_>) -> Option<Vec<u8>> {
    let at = (1..words.len()).find(|at| words.is(*at, b"index") || words.is(*at, b"trigger"))?;
    words.is(0, b"create").then(|| words.name(at + 1)).flatten()
}

/// The places of `GENERATED ALWAYS AS (…) STORED [NOT NULL]` that use one of these functions.
fn generated_columns(words: &Words<'_>, used: &[usize]) -> Vec<Range<usize>> {
    let mut columns = Vec::new();
    for at in 0..words.len() {
        if !words.are(at, &[b"generated", b"always", b"as", b"("]) {
            continue;
        }
        let mut depth = 0_usize;
        let close = (at + 3..words.len()).find(|i| {
            depth = match words.text(*i) {
                b"(" => depth + 1,
                b")" => depth - 1,
                _ => depth,
            };
            depth == 0
        });
        let Some(close) = close.filter(|close| used.iter().any(|u| (at..*close).contains(u)))
        else {
            continue;
        };
        let mut last = close;
        if words.is(last + 1, b"stored") || words.is(last + 1, b"virtual") {
            last += 1;
        }
        if words.are(last + 1, &[b"not", b"null"]) {
            last += 2;
        }
        columns.push(span(words, at, last));
    }
    columns
}

fn mentions_in_body(words: &Words<'_>) -> bool {
    (0..words.len()).any(|at| {
        words.tokens()[at].kind == Kind::Dollar
            && [&b"encrypted_text"[..], b"encrypted_bytea", b"enc_"]
                .iter()
                .any(|name| memchr::memmem::find(words.text(at), name).is_some())
    })
}

fn span(words: &Words<'_>, first: usize, last: usize) -> Range<usize> {
    words.tokens()[first].range.start..words.tokens()[last].range.end
}

/// The beginning of a statement, in one line.
pub fn title(words: &Words<'_>) -> Vec<u8> {
    const LEN: usize = 100;
    let mut title = Vec::new();
    for at in 0..words.len() {
        let is_close = matches!(words.text(at), b"." | b"(" | b")" | b"," | b";")
            || at > 0 && matches!(words.text(at - 1), b"." | b"(");
        if !title.is_empty() && !is_close {
            title.push(b' ');
        }
        let text = words.text(at);
        if title.len() + text.len() > LEN {
            title.extend_from_slice("…".as_bytes());
            break;
        }
        title.extend(text.iter().map(|b| if b.is_ascii_control() { b' ' } else { *b }));
    }
    title
}

/// The names of keys that a statement's types have.
pub fn key_names(words: &Words<'_>) -> Vec<Vec<u8>> {
    let is_type = |at: &usize| matches!(words.text(*at), b"encrypted_text" | b"encrypted_bytea");
    (0..words.len())
        .filter(is_type)
        .filter(|at| words.is(at + 1, b"(") && words.is(at + 3, b")"))
        .filter_map(|at| words.string(at + 2))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A statement with its edits made.
    fn rewritten(schema: &mut PlainSchema, sql: &str) -> (Option<String>, Option<String>) {
        let rewriting = schema.rewrite(&Words::of(sql.as_bytes(), true));
        if rewriting.is_left_out {
            return (None, rewriting.note);
        }
        let mut out = sql.to_owned();
        for (range, text) in rewriting.edits.into_iter().rev() {
            out.replace_range(range, std::str::from_utf8(&text).unwrap());
        }
        (Some(out), rewriting.note)
    }

    fn with_extension() -> PlainSchema {
        let mut schema = PlainSchema::default();
        let create = "CREATE EXTENSION IF NOT EXISTS encryption_ext WITH SCHEMA public;";
        assert_eq!(rewritten(&mut schema, create), (None, None));
        schema
    }

    #[test]
    fn types_become_their_base_types() {
        let mut schema = with_extension();
        for (sql, plain) in [
            (
                "CREATE TABLE public.t (\n    v public.encrypted_text('k') DEFAULT 'x'::public.encrypted_text NOT NULL,\n    b public.encrypted_bytea('k')[],\n    w text);",
                "CREATE TABLE public.t (\n    v text DEFAULT 'x'::text NOT NULL,\n    b bytea[],\n    w text);",
            ),
            (
                "CREATE DOMAIN public.mail AS public.encrypted_text('k');",
                "CREATE DOMAIN public.mail AS text;",
            ),
            (
                "ALTER FUNCTION public.f(x public.encrypted_text) OWNER TO postgres;",
                "ALTER FUNCTION public.f(x text) OWNER TO postgres;",
            ),
            (
                "CREATE VIEW w AS SELECT t.v FROM public.t WHERE (t.v OPERATOR(public.=) 'x'::public.encrypted_text);",
                "CREATE VIEW w AS SELECT t.v FROM public.t WHERE (t.v OPERATOR(pg_catalog.=) 'x'::text);",
            ),
            (
                "SELECT 'public.encrypted_text', \"public\".encrypted_text;",
                "SELECT 'public.encrypted_text', text;",
            ),
            (
                "CREATE TABLE other.encrypted_text (encrypted_text text);",
                "CREATE TABLE other.encrypted_text (encrypted_text text);",
            ),
        ] {
            assert_eq!(rewritten(&mut schema, sql), (Some(plain.to_owned()), None));
        }
    }

    #[test]
    fn what_needs_the_extension_is_left_out() {
        let mut schema = with_extension();
        for sql in [
            "COMMENT ON EXTENSION encryption_ext IS 'x';",
            "INSERT INTO encryption.key VALUES (1);",
            "COPY encryption.key (key_id) FROM stdin;",
            "GRANT ALL ON FUNCTION public.enc_create_key(name text) TO admin;",
            "GRANT SELECT ON TABLE encryption.key TO PUBLIC;",
            "ALTER DATABASE d SET encryption_ext.provider TO 'file';",
            "ALTER DATABASE d SET \"encryption_ext.provider\" TO 'file';",
        ] {
            assert_eq!(rewritten(&mut schema, sql), (None, None), "{sql}");
        }
        let (sql, note) = rewritten(
            &mut schema,
            "CREATE UNIQUE INDEX i ON public.t USING btree (public.enc_digest(v));",
        );
        assert_eq!(sql, None);
        assert!(note.unwrap().starts_with("left out: CREATE UNIQUE INDEX i ON public.t"));
        for sql in
            ["ALTER INDEX public.p ATTACH PARTITION public.i;", "COMMENT ON INDEX public.i IS 'x';"]
        {
            assert_eq!(rewritten(&mut schema, sql), (None, None), "{sql}");
        }
        let index = "CREATE INDEX j ON public.t USING hash (v);";
        assert_eq!(rewritten(&mut schema, index), (Some(index.to_owned()), None));
        let (sql, note) = rewritten(
            &mut schema,
            "CREATE CAST (public.encrypted_text AS bytea) WITHOUT FUNCTION;",
        );
        assert!(sql.is_none() && note.is_some());
    }

    #[test]
    fn generated_digests_become_empty_columns() {
        let (sql, note) = rewritten(
            &mut with_extension(),
            "CREATE TABLE public.t (\n    v public.encrypted_text('k'),\n    d bytea GENERATED ALWAYS AS (public.enc_digest((v)::public.encrypted_text)) STORED NOT NULL,\n    n integer GENERATED ALWAYS AS ((1 + 1)) STORED\n);",
        );
        assert_eq!(
            sql.unwrap(),
            "CREATE TABLE public.t (\n    v text,\n    d bytea ,\n    n integer GENERATED ALWAYS AS ((1 + 1)) STORED\n);"
        );
        assert!(note.unwrap().contains("left empty"));
    }

    #[test]
    fn what_is_not_sure_is_told() {
        let mut schema = with_extension();
        for sql in [
            "CREATE VIEW w AS SELECT public.enc_key_version(v) FROM public.t;",
            "CREATE FUNCTION f() RETURNS text LANGUAGE sql AS $$select 'x'::encrypted_text$$;",
        ] {
            let (kept, note) = rewritten(&mut schema, sql);
            assert_eq!(kept.as_deref(), Some(sql));
            assert!(note.is_some());
        }
        let view = "CREATE VIEW w AS SELECT (c OPERATOR(public.=) d) FROM t;";
        for extension in ["pgcrypto", "\"uuid-ossp\"", "pg_trgm"] {
            let create = format!("CREATE EXTENSION IF NOT EXISTS {extension} WITH SCHEMA public;");
            assert_eq!(rewritten(&mut schema, &create), (Some(create.clone()), None));
        }
        assert_eq!(
            rewritten(&mut schema, view).0.unwrap(),
            view.replace("public.=", "pg_catalog.=")
        );
        rewritten(&mut schema, "CREATE EXTENSION IF NOT EXISTS citext WITH SCHEMA public;");
        let (kept, note) = rewritten(&mut schema, view);
        assert_eq!(kept.as_deref(), Some(view));
        assert!(note.unwrap().contains("operators"));
    }

    #[test]
    fn keys_are_named_by_types() {
        let words = Words::of(
            b"CREATE TABLE t (a public.encrypted_text('k1'), b encrypted_bytea('k2')[], c text)",
            true,
        );
        assert_eq!(key_names(&words), [b"k1".to_vec(), b"k2".to_vec()]);
    }
}
