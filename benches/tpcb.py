"""Transactions like TPC-B's on pgbench's tables, whose fillers, and a column of names that is added, are
encrypted; with fsync and WAL."""

import sys

from cluster import EXTENSION, ROOT, Cluster
from measuring import Side

SCRIPT = ROOT / "benches/tpcb_like.sql"
CLIENTS = 2
# Of one side of a pair. Short ones that take turns see the same of what the disk does.
SECONDS = 15
# What a ciphertext has more than its plaintext, in bytes.
OVERHEAD = 50


def measure(bench):
    scale = max(bench.rows // 100_000, 1)
    with Cluster("shared_buffers = 1GB", "max_wal_size = 16GB", "checkpoint_timeout = 1h") as cluster:
        wide_script = cluster.folder / "tpcb_like_wide.sql"
        wide_script.write_text(widened(SCRIPT.read_text()))
        sides = []
        for database, type, more, script in (
            ("sealed", "encrypted_text('bench')", 0, SCRIPT),
            ("plain", "text", 0, SCRIPT),
            ("control", "text", 0, SCRIPT),
            ("wide", "text", OVERHEAD, wide_script),
        ):
            make_database(cluster, database, type, scale, more)
            sides.append(side(cluster, script, database, scale))
        cluster.psql("CHECKPOINT")
        bench.measure("tpcb", *sides)


def widened(script):
    """The same transaction, whose texts are as long as the ciphertexts."""
    more = "x" * OVERHEAD
    for value in ("'Customer '", "repeat('changed by '", "'changed by ' || :delta::text)"):
        if script.count(value) != 1:
            sys.exit(f"{SCRIPT} has not exactly one {value}")
        script = script.replace(value, f"'{more}' || {value}")
    return script


def make_database(cluster, database, type, scale, more):
    cluster.psql(f"CREATE DATABASE {database}")
    cluster.psql(script=EXTENSION, database=database)
    cluster.client(["pgbench", "--initialize", "--init-steps=dtg", f"--scale={scale}", "--quiet", database])
    cluster.psql(
        "ALTER TABLE pgbench_accounts ADD name text",
        f"""ALTER TABLE pgbench_accounts
            ALTER filler TYPE {type} USING rpad(md5(aid::text), 84 + {more}, md5(bid::text)),
            ALTER name TYPE {type} USING repeat('x', {more}) || 'Customer ' || aid""",
        *(f"ALTER TABLE pgbench_{table} ALTER filler TYPE {type} USING rpad('', 84 + {more})"
          for table in ("tellers", "branches", "history")),
        database=database)
    cluster.client(["pgbench", "--initialize", "--init-steps=vp", database])


def side(cluster, script, database, scale):
    options = (f"--client={CLIENTS}", "--protocol=prepared", f"--define=scale={scale}")
    return Side(f"pgbench --file=benches/{SCRIPT.name} --time={SECONDS} {' '.join(options)} {database}",
                lambda: cluster.pgbench(script, SECONDS, *options, database=database))
