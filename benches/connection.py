"""What the first encrypted value of a new connection costs, while the key server, an OpenBao, is 20 ms
away."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from contextlib import contextmanager

from cluster import BUILD, QUIET, Cluster, milliseconds_in
from rows import ROWS

ROUND_TRIP = 0.020
TOKEN = "bench"

READ = "SELECT v FROM t"
# The session has planned and run a query before; what it meets for the first time are encrypted values.
SESSION = ("SELECT plain FROM t", r"\timing on", READ, READ)


def measure(bench):
    bao = BUILD / "openbao/bao"
    if not bao.exists():
        print(f"connection: there is no {bao}: scripts/prepare bench")
        return
    with openbao(bao) as port, Cluster(*QUIET, *settings(far_away(port))) as cluster:
        file = cluster.folder / "token"
        file.write_text(TOKEN)
        file.chmod(0o600)
        if os.geteuid() == 0:
            shutil.chown(file, "postgres", "postgres")
        cluster.psql(
            f"ALTER SYSTEM SET encryption_ext.vault_token_file = '{file}'", "SELECT pg_reload_conf()")
        cluster.psql(
            "CREATE EXTENSION encryption_ext", "SELECT enc_create_key('bench')",
            "CREATE TABLE t (plain text, v encrypted_text('bench'))",
            "INSERT INTO t VALUES ('x', 'x')")
        # Alone and not counted: what the first session of all does for the others.
        cluster.psql(*SESSION)
        for pair in range(ROWS["connection"].pairs):
            first, second = milliseconds_in(cluster.psql(*SESSION))
            bench.record("connection", pair, first, second)
    print(f"{pair + 1} connections")
    bench.commands["connection"] = (f"new session; {SESSION[0]}; {READ}", f"{READ}, again")


def settings(vault_port):
    return ("shared_preload_libraries = 'encryption_ext'", "encryption_ext.provider = 'vault'",
            f"encryption_ext.vault_address = 'http://127.0.0.1:{vault_port}'")


@contextmanager
def openbao(bao):
    """A server in memory, with a KV engine at secret/: its port."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as home:
        server = subprocess.Popen(
            [bao, "server", "-dev", "-dev-no-store-token", f"-dev-root-token-id={TOKEN}",
             f"-dev-listen-address=127.0.0.1:{port}"],
            env={"HOME": home}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            wait_until_it_serves(f"http://127.0.0.1:{port}/v1/secret/config")
            yield port
        finally:
            server.kill()
            server.wait()


def wait_until_it_serves(address):
    request = urllib.request.Request(address, headers={"X-Vault-Token": TOKEN})
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            urllib.request.urlopen(request, timeout=1).close()
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    sys.exit("OpenBao didn't start")


def far_away(port):
    """The port of a proxy in front of another: a connection, and what is sent back and forth, take the time
    of a round trip each."""
    listener = socket.create_server(("127.0.0.1", 0))

    def accept():
        while True:
            client, _ = listener.accept()
            threading.Thread(target=serve, args=(client,), daemon=True).start()

    def serve(client):
        time.sleep(ROUND_TRIP)
        server = socket.create_connection(("127.0.0.1", port))
        threading.Thread(target=pass_on, args=(client, server), daemon=True).start()
        pass_on(server, client)

    threading.Thread(target=accept, daemon=True).start()
    return listener.getsockname()[1]


def pass_on(source, target):
    try:
        while data := source.recv(1 << 16):
            time.sleep(ROUND_TRIP / 2)
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        pass  # One of them is gone, and had what it wanted.
