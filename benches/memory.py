"""The memory that a backend needs for the extension when its cache of ciphers is full.

Counted is what the backend has for itself alone. The code of the library is the same pages in all backends;
and shared memory, PostgreSQL's buffers above all, is left out."""

import sys
from base64 import urlsafe_b64decode

from cluster import EXTENSION, QUIET, Cluster
from measuring import Side

# Each session that writes has a salt, and so a cipher, of its own. The cache has some 1,000 places, of which
# each is for some salts only: of twice as many it keeps as many as it can.
WRITERS = 2000

PRIVATE = (r"awk '/^[0-9a-f]+-/ { private = $2 ~ /p$/ } private && /^Private_Dirty/ { kb += $2 } "
           r"END { print kb }'")


def measure(bench):
    with Cluster(*QUIET, "shared_preload_libraries = 'encryption_ext'") as cluster:
        make_tables(cluster)
        for row, preloaded in (("memory_preloaded", "encryption_ext"), ("memory", "")):
            cluster.restart_with(f"shared_preload_libraries = '{preloaded}'")
            # The first session reads more of the catalog than those that follow.
            cluster.psql("SELECT")
            bench.measure(row, backend(cluster, "sealed"), backend(cluster, "plain"))


def make_tables(cluster):
    cluster.psql(script=f"""
        {EXTENSION}
        CREATE TABLE sealed (v encrypted_text('bench'));
        CREATE TABLE plain (v text);
    """)
    script = cluster.folder / "write.sql"
    script.write_text("INSERT INTO sealed VALUES (md5(random()::text));\n")
    cluster.client(["pgbench", "--no-vacuum", "--connect", f"--transactions={WRITERS}", f"--file={script}"])
    cluster.psql("INSERT INTO plain SELECT v FROM sealed", "VACUUM (FREEZE, ANALYZE)")
    armored = cluster.psql(
        "LOAD 'encryption_ext'", "SET encryption_ext.output = 'armor'", "SELECT v FROM sealed")
    # Where the salt is: docs/format.md.
    salts = {urlsafe_b64decode(value.removeprefix("enc:1:") + "==")[10:22] for value in armored.split()}
    if len(salts) != WRITERS:
        sys.exit(f"memory: the values have {len(salts)} salts")


def backend(cluster, table):
    query = f"SELECT count(v::text) FROM {table}"
    script = f"""
        {query};
        SELECT pg_backend_pid() AS pid \\gset
        \\setenv PID :pid
        \\! {PRIVATE} /proc/$PID/smaps
    """

    def run():
        count, kilobytes = cluster.psql(script=script).split()
        assert int(count) == WRITERS
        return int(kilobytes) / 1024

    return Side(f"{query}; {PRIVATE} /proc/PID/smaps", run)
