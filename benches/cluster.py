"""A throw-away PostgreSQL 15 cluster in build/, and the programs that are run on it."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUILD = (ROOT / "build").resolve()
POSTGRESQL = BUILD / "postgresql/15"

# What undisturbed measurements need: no checkpoint, no other process, the disk out of the way.
QUIET = (
    "shared_buffers = 1GB",
    "max_wal_size = 16GB",
    "checkpoint_timeout = 1h",
    "autovacuum = off",
    "fsync = off",
    "jit = off",
)
# And all work in one process, as the two sides of a pair might not be shared out alike.
ONE_PROCESS = (
    "max_parallel_workers_per_gather = 0",
    "max_parallel_maintenance_workers = 0",
    "maintenance_work_mem = 512MB",
)

EXTENSION = """
    SET client_min_messages = error;
    CREATE EXTENSION encryption_ext;
    ALTER SYSTEM SET encryption_ext.provider = 'file';
    SELECT pg_reload_conf();
    SET encryption_ext.provider = 'file';
    SELECT enc_create_key('bench');
"""
# Has a session use the key, so that what comes next doesn't fetch it.
WARM = "SELECT 'warm'::encrypted_text('bench')::text"


class Cluster:
    """Runs as long as the block of its `with`. Nobody but its user and root may connect."""

    def __init__(self, *settings):
        self.settings = settings

    def __enter__(self):
        if not (POSTGRESQL / "share/postgresql/15/extension/encryption_ext.control").exists():
            sys.exit(f"the extension isn't installed in {POSTGRESQL}: start this by make")
        self.folder = Path(tempfile.mkdtemp(prefix="cluster.", dir=BUILD))
        # Elsewhere, as a socket's path can't be longer than 107 bytes.
        self.socket_folder = tempfile.mkdtemp(prefix="encryption_ext.")
        if os.geteuid() == 0:
            shutil.chown(self.folder, "postgres", "postgres")
            shutil.chown(self.socket_folder, "postgres", "postgres")
        # What was meant for another server would lead psql there, or change what it prints.
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith("PG")} | {
            "PGHOST": self.socket_folder,
            "PGUSER": "postgres",
            "PGDATABASE": "postgres",
            "PGCLIENTENCODING": "UTF8",
            "LC_ALL": "C",
            "PGOPTIONS": "-c client_min_messages=warning",
        }
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_):
        self.stop()

    def start(self):
        self.as_server("initdb", "--username=postgres", "--auth=trust", "--encoding=UTF8",
                       "--locale=C.UTF-8", "--no-sync")
        self.configure(f"unix_socket_directories = '{self.socket_folder}'", "listen_addresses = ''",
                       "lc_messages = 'C'", "timezone = 'UTC'", *self.settings)
        self.as_server("pg_ctl", "start", "--wait", "--silent", f"--log={self.folder}/log")

    def configure(self, *settings):
        with open(self.folder / "data/postgresql.conf", "a") as configuration:
            configuration.writelines(f"{setting}\n" for setting in settings)

    def restart_with(self, *settings):
        self.configure(*settings)
        self.as_server("pg_ctl", "restart", "--wait", "--silent", f"--log={self.folder}/log")

    def stop(self):
        if (self.folder / "data/postmaster.pid").exists():
            self.as_server("pg_ctl", "stop", "--wait", "--silent", "--mode=immediate")
        shutil.rmtree(self.folder)
        shutil.rmtree(self.socket_folder)

    def as_server(self, program, *arguments):
        """Runs a program as the user that the server runs as: it refuses to run as root."""
        user = {"user": "postgres", "group": "postgres", "extra_groups": []} if os.geteuid() == 0 else {}
        # The server would keep the pipe open.
        with open(self.folder / f"{program}.output", "w+") as output:
            command = [POSTGRESQL / "bin" / program, f"--pgdata={self.folder}/data", *arguments]
            status = subprocess.run(command, cwd="/", stdout=output, stderr=output, **user).returncode
            if status:
                output.seek(0)
                log = self.folder / "log"
                sys.exit(f"{program} failed: {output.read()}{log.read_text() if log.exists() else ''}")

    def psql(self, *commands, database="postgres", script=None):
        """What psql prints for these commands, or else for a script. The first error is fatal."""
        arguments = ["psql", "--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=1", "--tuples-only", "--no-align"]
        arguments += [f"--dbname={database}", *(f"--command={command}" for command in commands)]
        return self.client(arguments, script)

    def client(self, arguments, input=None):
        """The output of one of PostgreSQL's clients, which must succeed."""
        process = self.begin(arguments, stdin=subprocess.PIPE)
        output, errors = process.communicate(input)
        if process.returncode:
            sys.exit(f"{arguments[0]} failed: {errors}")
        return output.rstrip("\n")

    def begin(self, arguments, **options):
        """Starts one of PostgreSQL's clients."""
        return subprocess.Popen([POSTGRESQL / "bin" / arguments[0], *arguments[1:]], env=self.environment,
                                cwd=self.folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                **options)

    def milliseconds(self, sql, *before):
        """The time that psql measures of a statement, whose rows it receives and throws away, in a new
        session that has used the key and has run the statements `before`."""
        output = self.psql(r"\o /dev/null", WARM, *before, r"\timing on", sql)
        return milliseconds_in(output)[-1]

    def pgbench(self, script, seconds, *options, database="postgres"):
        """Milliseconds for each transaction, of all clients together."""
        output = self.client(["pgbench", f"--file={script}", f"--time={seconds}", *options, database])
        return 1000 / float(re.search(r"^tps = ([0-9.]+)", output, re.MULTILINE)[1])


def milliseconds_in(output):
    """The times in the output of psql with `\\timing on`."""
    return [float(time) for time in re.findall(r"^Time: ([0-9.]+) ms", output, re.MULTILINE)]
