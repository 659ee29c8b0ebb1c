"""What pgbench, which writes to the same table, sees of rotation and migration. None of its transactions may
fail, and in the end each row must equal the one that a copy of the table has in plaintext."""

import sys
import time

from cluster import EXTENSION, Cluster

# How long what is compared with lasts, in seconds.
BEFORE = 20

SCRIPT = r"""
\set id random(1, :rows)
\set salt random(1, 1000000000)
BEGIN;
UPDATE copy SET v = 'changed ' || :salt WHERE id = :id;
UPDATE t SET v = 'changed ' || :salt, n = n + 1 WHERE id = :id;
COMMIT;
"""

ROTATE_KEY = "SELECT enc_rotate_key('bench')"
# What is done meanwhile; the last statement is the one that is measured.
PHASES = (
    ("nothing else", f"SELECT pg_sleep({BEFORE})"),
    ("UPDATE, as one statement", "UPDATE t SET v = v"),
    ("enc_rotate_column", ROTATE_KEY, "CALL enc_rotate_column('t', 'v')"),
    ("enc_rotate_column, max_rate", ROTATE_KEY,
     "CALL enc_rotate_column('t', 'v', batch_size => 1000, max_rate => {rows} / 40)"),
    ("enc_decrypt_column", "CALL enc_decrypt_column('t', 'v', 'execute', target_type => 'text')"),
    ("enc_decrypt_column, finish", "CALL enc_decrypt_column('t', 'v', 'finish')"),
    ("enc_encrypt_column", "CALL enc_encrypt_column('t', 'v', 'bench', 'execute')"),
    ("enc_encrypt_column, finish", "CALL enc_encrypt_column('t', 'v', 'bench', 'finish')"),
    ("nothing else, afterwards", f"SELECT pg_sleep({BEFORE})"),
)

REPORT = r"""
    \pset tuples_only off
    \pset format aligned
    WITH measured AS (
        SELECT p.number, p.what, p.ended - p.began AS seconds, t.microseconds / 1e3 AS ms
          FROM phase p LEFT JOIN transaction t
            ON t.epoch + t.epoch_microseconds / 1e6 BETWEEN p.began AND p.ended),
    summary AS (
        SELECT number, what, min(seconds) AS seconds, count(ms) AS transactions,
               percentile_cont(ARRAY[0.5, 0.95, 0.99, 1]) WITHIN GROUP (ORDER BY ms) AS ms
          FROM measured GROUP BY 1, 2)
    SELECT what, seconds::numeric(9, 1), transactions, ms[1]::numeric(9, 2) AS median,
           ms[2]::numeric(9, 2) AS p95, ms[3]::numeric(9, 2) AS p99, ms[4]::numeric(9, 1) AS slowest,
           (ms[1] / first_value(ms[1]) OVER (ORDER BY number))::numeric(9, 2) AS times_first
      FROM summary ORDER BY number;
"""


def measure(bench):
    with Cluster("shared_buffers = 1GB", "max_wal_size = 16GB", "checkpoint_timeout = 1h", "fsync = off",
                 "jit = off") as cluster:
        make_tables(cluster, bench.rows)
        pgbench = begin_pgbench(cluster, bench.rows)
        try:
            for what, *statements in PHASES:
                phase(cluster, what, *(sql.format(rows=bench.rows) for sql in statements))
                if pgbench.poll() is not None:
                    sys.exit(f"pgbench has failed: {pgbench.stderr.read()}")
        finally:
            pgbench.terminate()
            pgbench.communicate()
        check_contents(cluster, bench.rows)
        read_log(cluster)
        print("Milliseconds of a transaction of pgbench, 2 clients, that ended while something else was done")
        print(cluster.psql(script=REPORT))


def make_tables(cluster, rows):
    cluster.psql(script=f"""
        {EXTENSION}
        CREATE TABLE t (id integer PRIMARY KEY, n integer DEFAULT 0, v encrypted_text('bench'))
            WITH (fillfactor = 90);
        INSERT INTO t SELECT i, 0, md5(i::text) FROM generate_series(1, {rows}) AS i;
        CREATE TABLE copy (id integer PRIMARY KEY, v text) WITH (fillfactor = 90);
        INSERT INTO copy SELECT id, v FROM t;
        CREATE TABLE phase (number serial, what text, began float8, ended float8);
        CREATE TABLE transaction (client integer, number integer, microseconds bigint, script integer,
            epoch bigint, epoch_microseconds bigint);
        VACUUM (FREEZE, ANALYZE);
        CHECKPOINT;
    """)


def begin_pgbench(cluster, rows):
    """It ends when one of its transactions fails."""
    script = cluster.folder / "script.sql"
    script.write_text(SCRIPT)
    return cluster.begin(
        ["pgbench", "--no-vacuum", "--client=2", "--jobs=1", "--time=86400", "--log",
         f"--log-prefix={cluster.folder}/pgbench", f"--define=rows={rows}", f"--file={script}"])


def phase(cluster, what, *statements):
    print(what, flush=True)
    for statement in statements[:-1]:
        cluster.psql(statement)
    began = time.time()
    cluster.psql(statements[-1])
    cluster.psql(f"INSERT INTO phase (what, began, ended) VALUES ('{what}', {began}, {time.time()})")


def check_contents(cluster, rows):
    wrong = cluster.psql(
        "SELECT count(*) FROM t FULL JOIN copy USING (id) WHERE t.v::text IS DISTINCT FROM copy.v")
    if wrong != "0":
        sys.exit(f"{wrong} rows differ from their copies")
    if cluster.psql("SELECT count(*) FROM t") != str(rows):
        sys.exit("rows were lost")


def read_log(cluster):
    for log in cluster.folder.glob("pgbench.*"):
        # The last line may be cut.
        lines = log.read_text().splitlines(keepends=True)[:-1]
        command = ["psql", "--no-psqlrc", "--quiet", "--command=COPY transaction FROM STDIN (DELIMITER ' ')"]
        cluster.client(command, "".join(lines))
