"""Columns of short values: in, out, compared, sorted, joined, indexed."""

import sys

from cluster import EXTENSION, ONE_PROCESS, QUIET, Cluster
from measuring import Side, statement
from rows import ROWS

# Values that pgbench can make: numbers of 19 digits.
FIRST_NUMBER = 10 ** 18
# Seconds of pgbench for one side of a pair of look-ups.
LOOKUP_SECONDS = 3

IN_MEMORY = "SET work_mem = '1GB'"
# Also for small tables.
PARALLEL = ("SET max_parallel_workers_per_gather = 2", "SET min_parallel_table_scan_size = 0",
            "SET parallel_setup_cost = 0")

ORDER_BY = "SELECT v FROM {table} ORDER BY v OFFSET {rows}"
DISTINCT = "SELECT count(*) FROM (SELECT DISTINCT v FROM {table}) AS d"
JOIN = "SELECT count(*) FROM {table} JOIN other_{table} USING (v)"
JOIN_FEW = "SELECT count(*) FROM {table} JOIN few_{table} USING (v)"
COUNT = "SELECT count(*) FROM {table} WHERE v = 'nobody'"

# Row, statement, what is set before, and what its plan must have.
QUERIES = (
    ("copy_out", "COPY {table} (v) TO STDOUT", (), ""),
    ("select", "SELECT v FROM {table}", (), "Seq Scan"),
    ("count", COUNT, (), "Seq Scan"),
    ("count_parallel", COUNT, PARALLEL, "Parallel Seq Scan"),
    ("order_by", ORDER_BY, (IN_MEMORY,), "Sort"),
    ("order_by_4mb", ORDER_BY, (), "Sort"),
    ("distinct", DISTINCT, (IN_MEMORY,), "HashAggregate"),
    ("distinct_4mb", DISTINCT, (), ""),
    ("join", JOIN, (IN_MEMORY,), "Hash Join"),
    ("join_few", JOIN_FEW, (IN_MEMORY,), "Hash Join"),
    ("join_4mb", JOIN_FEW, (), "Hash Join"),
    ("join_parallel", JOIN_FEW, (*PARALLEL, IN_MEMORY), "Hash Join"),
)


def measure(bench):
    with Cluster(*QUIET, *ONE_PROCESS) as cluster:
        make_tables(cluster, bench.rows)
        bench.measure("copy_in", copy_in(cluster, "sealed"), copy_in(cluster, "plain"))
        check_contents(cluster)
        bench.measure("copy_in_wide", copy_in(cluster, "wide"), copy_in(cluster, "plain"))
        bench.measure("size_table", size(cluster, "copied_sealed"), size(cluster, "copied_plain"))
        cluster.psql("DROP TABLE copied_sealed, copied_plain, copied_wide")

        for row, sql, before, plan in QUERIES:
            sides = {
                table: statement(cluster, sql.format(table=table, rows=bench.rows), *before, plan=plan)
                for table in (("sealed", "plain", "wide") if f"{row}_wide" in ROWS else ("sealed", "plain"))}
            bench.measure(row, sides["sealed"], sides["plain"], wide=sides.get("wide"))

        measure_index(bench, cluster, "hash", sealed="USING hash (v)", plain="USING hash (v)")
        measure_index(bench, cluster, "digest", sealed="(enc_digest(v))", plain="(v)")


def make_tables(cluster, rows):
    """Values of 32 bytes, a tenth of them more than once; all of them again, and a tenth, to join with; and
    texts that are as long as the ciphertexts; numbers to be looked up."""
    cluster.psql(script=f"""
        {EXTENSION}
        CREATE TABLE plain AS
            SELECT i AS id, md5((i % ({rows} * 9 / 10))::text) AS v FROM generate_series(1, {rows}) AS i;
        CREATE TABLE sealed (id integer, v encrypted_text('bench'));
        INSERT INTO sealed SELECT id, v FROM plain;
        CREATE TABLE wide AS SELECT id, rpad(v, 82, v) AS v FROM plain;
        CREATE TABLE other_plain AS SELECT id, v FROM plain;
        CREATE TABLE other_sealed (id integer, v encrypted_text('bench'));
        INSERT INTO other_sealed SELECT id, v FROM plain;
        CREATE TABLE few_plain AS SELECT id, v FROM plain WHERE id % 10 = 0;
        CREATE TABLE few_sealed (id integer, v encrypted_text('bench'));
        INSERT INTO few_sealed SELECT id, v FROM few_plain;
        CREATE TABLE copied_plain (v text);
        CREATE TABLE copied_sealed (v encrypted_text('bench'));
        CREATE TABLE copied_wide (v text);
        CREATE TABLE number_plain AS
            SELECT i AS id, ({FIRST_NUMBER} + i)::text AS v FROM generate_series(0, {rows} - 1) AS i;
        CREATE TABLE number_sealed (id integer, v encrypted_text('bench'));
        INSERT INTO number_sealed SELECT id, v FROM number_plain;
        COPY plain (v) TO '{cluster.folder}/values.plain';
        COPY plain (v) TO '{cluster.folder}/values.sealed';
        COPY wide (v) TO '{cluster.folder}/values.wide';
        VACUUM (FREEZE, ANALYZE);
        CHECKPOINT;
    """)


def copy_in(cluster, table):
    return statement(cluster, f"COPY copied_{table} FROM '{cluster.folder}/values.{table}'",
                     f"TRUNCATE copied_{table}", "CHECKPOINT")


def check_contents(cluster):
    """What is measured must be what it says."""
    for sql in (
        "SELECT count(*) FROM plain FULL JOIN sealed USING (id) WHERE plain.v IS DISTINCT FROM sealed.v::text",
        "SELECT count(*) FROM (SELECT v FROM copied_plain EXCEPT ALL SELECT v::text FROM copied_sealed) AS t",
        "SELECT (SELECT count(*) FROM copied_plain) - (SELECT count(*) FROM copied_sealed)",
    ):
        if cluster.psql(sql) != "0":
            sys.exit(f"the tables differ: {sql}")


def measure_index(bench, cluster, kind, **definitions):
    sealed, plain = (
        statement(cluster, f"CREATE INDEX {table}_{kind} ON {table} {definition}",
                  f"DROP INDEX IF EXISTS {table}_{kind}")
        for table, definition in definitions.items())
    bench.measure(f"build_{kind}", sealed, plain)
    bench.measure(f"size_{kind}", size(cluster, f"sealed_{kind}"), size(cluster, f"plain_{kind}"))
    cluster.psql(f"DROP INDEX sealed_{kind}, plain_{kind}")
    for table, definition in definitions.items():
        cluster.psql(f"CREATE INDEX number_{table}_{kind} ON number_{table} {definition}")
    # An index on an expression has statistics of its own.
    cluster.psql("ANALYZE number_sealed, number_plain", "CHECKPOINT")
    sealed, plain = (lookup(bench, cluster, f"number_{table}") for table in definitions)
    bench.measure(f"lookup_{kind}", sealed, plain, control=plain)
    cluster.psql(f"DROP INDEX number_sealed_{kind}, number_plain_{kind}")


def lookup(bench, cluster, table):
    """One client that looks values up by a prepared statement whose parameter, of type text, is all that it sends."""
    if "Index Cond" not in cluster.psql(f"EXPLAIN SELECT id FROM {table} WHERE v = '{FIRST_NUMBER}'::text"):
        sys.exit(f"look-ups in {table} don't use the index")
    last = FIRST_NUMBER + bench.rows - 1
    script = f"\\set n random({FIRST_NUMBER}, {last})\nSELECT id FROM {table} WHERE v = :n::text;\n"
    file = cluster.folder / f"lookup_{table}.sql"
    file.write_text(script)
    return Side(f"pgbench --protocol=prepared --no-vacuum --time={LOOKUP_SECONDS} --file=FILE, of: {script}",
                lambda: cluster.pgbench(file, LOOKUP_SECONDS, "--protocol=prepared", "--no-vacuum"))


def size(cluster, relation):
    sql = f"SELECT pg_total_relation_size('{relation}')"
    return Side(sql, lambda: float(cluster.psql(sql)))
