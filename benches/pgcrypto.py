"""Encryption and decryption of 32 bytes, against pgcrypto: values a second, the scan of the table not
counted.

encrypt_iv    AES-256-CBC; nothing authenticates it. The initialization vector is beside the value, and what
              comes out are bytes, not text
pgp_sym       OpenPGP with its defaults, which derive a key for each value by some 100,000 bytes of hashing
pgp_sym_fast  the same without: for keys that aren't passphrases
"""

from cluster import EXTENSION, ONE_PROCESS, QUIET, Cluster
from measuring import Side

AES_KEY = "'\\x" + "0123456789abcdef" * 4 + "'"

DECRYPT_SEALED = "v::text"
ENCRYPT_SEALED = "v::encrypted_text('bench')"
# Row, table, expression, and as which part of the rows it has values, where each takes long.
DECRYPTIONS = (
    ("decrypt_iv", "as_encrypt_iv", f"decrypt_iv(v, {AES_KEY}, iv, 'aes')", 5),
    ("pgp_sym_decrypt", "as_pgp_sym", "pgp_sym_decrypt(v, 'password')", 500),
    ("pgp_sym_decrypt_fast", "as_pgp_sym_fast", "pgp_sym_decrypt(v, 'password')", 10),
)
ENCRYPTIONS = (
    ("encrypt_iv", f"encrypt_iv(bytes, {AES_KEY}, iv, 'aes')", 5),
    ("pgp_sym_encrypt", "pgp_sym_encrypt(v, 'password')", 500),
)


def measure(bench):
    with Cluster(*QUIET, *ONE_PROCESS) as cluster:
        make_tables(cluster, bench.rows)
        for row, table, expression, part in DECRYPTIONS:
            bench.measure(row, rate(cluster, DECRYPT_SEALED, "sealed", bench.rows),
                          rate(cluster, expression, table, bench.rows // part))
        for row, expression, part in ENCRYPTIONS:
            bench.measure(row, rate(cluster, ENCRYPT_SEALED, "source", bench.rows),
                          rate(cluster, expression, "source", bench.rows // part))


def make_tables(cluster, rows):
    cluster.psql(script=f"""
        {EXTENSION}
        CREATE EXTENSION pgcrypto;
        CREATE TABLE source AS
            SELECT md5(i::text) AS v, convert_to(md5(i::text), 'UTF8') AS bytes, gen_random_bytes(16) AS iv
              FROM generate_series(1, {rows}) AS i;
        CREATE TABLE sealed (v encrypted_text('bench'));
        INSERT INTO sealed SELECT v FROM source;
        CREATE TABLE as_encrypt_iv AS SELECT encrypt_iv(bytes, {AES_KEY}, iv, 'aes') AS v, iv FROM source;
        CREATE TABLE as_pgp_sym AS
            SELECT pgp_sym_encrypt(v, 'password') AS v FROM (SELECT v FROM source LIMIT {rows} / 500) AS few;
        CREATE TABLE as_pgp_sym_fast AS
            SELECT pgp_sym_encrypt(v, 'password', 's2k-mode=0') AS v
              FROM (SELECT v FROM source LIMIT {rows} / 10) AS few;
        VACUUM (FREEZE, ANALYZE);
        CHECKPOINT;
    """)


def rate(cluster, expression, table, values):
    """Values a second of an expression: by the time that a scan with it takes longer than one without."""
    source = f"(SELECT * FROM {table} LIMIT {values}) AS t"
    with_it = f"SELECT count({expression}) FROM {source}"
    without = f"SELECT count(pg_column_size(v)) FROM {source}"

    def run():
        return values / (cluster.milliseconds(with_it) - cluster.milliseconds(without)) * 1000

    return Side(f"{with_it}, less the time of {without}", run)
