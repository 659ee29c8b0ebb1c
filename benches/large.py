"""Values of 1 MiB that can't be compressed."""

from cluster import EXTENSION, ONE_PROCESS, QUIET, Cluster
from measuring import statement


def measure(bench):
    with Cluster(*QUIET, *ONE_PROCESS) as cluster:
        make_tables(cluster, values=max(bench.rows // 5000, 10))
        bench.measure("large_insert", insert(cluster, "sealed"), insert(cluster, "plain"))
        cluster.psql("VACUUM (FREEZE, ANALYZE)", "CHECKPOINT")
        for row, sql in (
            ("large_read", "COPY {table} TO '/dev/null' (FORMAT binary)"),
            ("large_receive", "COPY {table} TO STDOUT (FORMAT binary)"),
        ):
            bench.measure(row, *(statement(cluster, sql.format(table=table)) for table in ("sealed", "plain")))


def make_tables(cluster, values):
    cluster.psql(script=f"""
        {EXTENSION}
        CREATE EXTENSION pgcrypto;
        CREATE UNLOGGED TABLE source (v bytea);
        ALTER TABLE source ALTER v SET STORAGE EXTERNAL;
        INSERT INTO source
            SELECT (SELECT string_agg(gen_random_bytes(1024), '') FROM generate_series(1, 1024) WHERE i > 0)
              FROM generate_series(1, {values}) AS i;
        CREATE TABLE plain (v bytea);
        ALTER TABLE plain ALTER v SET STORAGE EXTERNAL;
        CREATE TABLE sealed (v encrypted_bytea('bench'));
    """)


def insert(cluster, table):
    return statement(cluster, f"INSERT INTO {table} SELECT v FROM source", f"TRUNCATE {table}", "CHECKPOINT")
