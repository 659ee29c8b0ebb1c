"""Transactions like TPC-B's on pgbench's tables, whose fillers, and a column of names that is added, are
encrypted; with fsync and WAL."""

from cluster import EXTENSION, ROOT, Cluster
from measuring import Side

SCRIPT = ROOT / "benches/tpcb_like.sql"
CLIENTS = 2
# Of one side of a pair. Short ones that take turns see the same of what the disk does.
SECONDS = 20


def measure(bench):
    scale = max(bench.rows // 100_000, 1)
    with Cluster("shared_buffers = 1GB", "max_wal_size = 16GB", "checkpoint_timeout = 1h") as cluster:
        sides = []
        for database, type in (("sealed", "encrypted_text('bench')"), ("plain", "text"), ("control", "text")):
            make_database(cluster, database, type, scale)
            sides.append(side(cluster, database, scale))
        cluster.psql("CHECKPOINT")
        bench.measure("tpcb", *sides)


def make_database(cluster, database, type, scale):
    cluster.psql(f"CREATE DATABASE {database}")
    cluster.psql(script=EXTENSION, database=database)
    cluster.client(["pgbench", "--initialize", "--init-steps=dtg", f"--scale={scale}", "--quiet", database])
    cluster.psql(
        "ALTER TABLE pgbench_accounts ADD name text",
        f"""ALTER TABLE pgbench_accounts
            ALTER filler TYPE {type} USING rpad(md5(aid::text), 84, md5(bid::text)),
            ALTER name TYPE {type} USING 'Customer ' || aid""",
        *(f"ALTER TABLE pgbench_{table} ALTER filler TYPE {type} USING rpad('', 84)"
          for table in ("tellers", "branches", "history")),
        database=database)
    cluster.client(["pgbench", "--initialize", "--init-steps=vp", database])


def side(cluster, database, scale):
    options = (f"--client={CLIENTS}", "--protocol=prepared", f"--define=scale={scale}")
    return Side(f"pgbench --file=benches/tpcb_like.sql --time={SECONDS} {' '.join(options)} {database}",
                lambda: cluster.pgbench(SCRIPT, SECONDS, *options, database=database))
