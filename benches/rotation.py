"""Rotation of a column with a hash index, against the plain UPDATE that writes the same rows."""

import sys
import time

from cluster import EXTENSION, QUIET, Cluster
from measuring import Side

UPDATE = "UPDATE t SET v = v"
ROTATE = "CALL enc_rotate_column('t', 'v')"


def measure(bench):
    with Cluster(*QUIET) as cluster:
        cluster.psql(script=EXTENSION)
        update = side(cluster, bench.rows, UPDATE)
        bench.measure("rotate", side(cluster, bench.rows, ROTATE), update)
        bench.measure("rotate_2", side(cluster, bench.rows, ROTATE, sessions=2), update)


def side(cluster, rows, sql, sessions=1):
    """Rows a second that sessions write which begin `sql` at once."""

    def run():
        make_table(cluster, rows)
        began = time.perf_counter()
        processes = [cluster.begin(["psql", "--no-psqlrc", f"--command={sql}"]) for _ in range(sessions)]
        for process in processes:
            _, errors = process.communicate()
            if process.returncode:
                sys.exit(f"{sql} failed: {errors}")
        seconds = time.perf_counter() - began
        left = cluster.psql("SELECT count(*) FROM t WHERE encryption.is_outdated(v)")
        if left != ("0" if sql == ROTATE else str(rows)):
            sys.exit(f"{sql} has left {left} values that are outdated")
        return rows / seconds

    return Side(sql + (f" in {sessions} sessions" if sessions > 1 else ""), run)


def make_table(cluster, rows):
    """Each time a new table, so that none profits from the room that another left."""
    cluster.psql(script=f"""
        DROP TABLE IF EXISTS t;
        CREATE TABLE t (id integer PRIMARY KEY, v encrypted_text('bench'));
        INSERT INTO t SELECT i, md5(i::text) FROM generate_series(1, {rows}) AS i;
        CREATE INDEX ON t USING hash (v);
        VACUUM (FREEZE, ANALYZE) t;
        SELECT enc_rotate_key('bench');
        CHECKPOINT;
    """)
