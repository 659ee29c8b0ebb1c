"""What is measured: the rows of the table that `make bench` prints, in its order."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    what: str
    against: str
    # What the median is to be: at most this, or at least. Rows without a goal tell more about those with one.
    at_most: float | None = None
    at_least: float | None = None
    # The unit of a single measurement.
    measured_in: str = "ms"
    # What a pair of measurements gives: how many times the other the one is, or else how much more, in
    # this unit.
    difference_in: str = ""
    # How many pairs there are by default.
    pairs: int = 5
    # Whether the two sides of the pairs are the same, so that the row shows what is mere noise.
    control: bool = False

    def compare(self, measured, baseline):
        return measured - baseline if self.difference_in else measured / baseline

    @property
    def goal(self):
        return self.at_most if self.at_most is not None else self.at_least

    @property
    def direction(self):
        return "≤" if self.at_most is not None else "≥" if self.at_least is not None else ""

    def is_met_by(self, value):
        return value <= self.at_most if self.at_most is not None else value >= self.at_least


TEXT = "`text`"
HASH, BTREE = "`text`, hash index", "`text`, btree index"
AGAIN = "itself, once more"

ROWS = {
    "copy_in": Row("COPY in, values of 32 bytes", TEXT, at_most=1.25),
    "copy_out": Row("COPY out to a client", TEXT, at_most=1.25),
    "select": Row("SELECT to a client", TEXT, at_most=1.25),
    "count": Row("`count(*) … WHERE v = constant`, sequential", TEXT, at_most=2.5),
    "lookup_hash": Row("look-up, hash index, prepared", HASH, at_most=1.05, pairs=8),
    "lookup_digest": Row("look-up, index on `enc_digest`, prepared", BTREE, at_most=1.05, pairs=8),
    "tpcb": Row("like TPC-B, names and fillers encrypted, 2 clients", TEXT, at_most=1.02, pairs=6),
    "order_by": Row("ORDER BY, in memory", TEXT, at_most=2),
    "distinct": Row("DISTINCT, in memory", TEXT, at_most=2),
    "join": Row("hash join, in memory", TEXT, at_most=2),
    "build_hash": Row("build of a hash index", HASH, at_most=1.5),
    "build_digest": Row("build of an index on `enc_digest`", BTREE, at_most=1.5),
    "large_insert": Row("insert of values of 1 MiB", "`bytea`, EXTERNAL", at_most=1.2),
    "large_read": Row("read of values of 1 MiB", "`bytea`, EXTERNAL", at_most=1.2),
    "rotate": Row("`enc_rotate_column`, rate", "`UPDATE t SET v = v`", at_least=0.9,
                  measured_in="rows/s", pairs=3),
    "decrypt_iv": Row("decryption of 32 bytes, rate", "pgcrypto's `decrypt_iv`", at_least=8,
                      measured_in="values/s"),
    "pgp_sym_decrypt": Row("decryption of 32 bytes, rate", "pgcrypto's `pgp_sym_decrypt`",
                           at_least=40, measured_in="values/s"),
    "connection": Row("first encrypted value of a new connection, key server 20 ms away",
                      "a connection that has the key", at_most=1, difference_in="ms", pairs=60),
    "memory": Row("a backend's memory, with 1,000 ciphers", "a backend that reads `text`", at_most=1,
                  measured_in="MiB", difference_in="MiB", pairs=3),

    # Noise
    "lookup_hash_control": Row("look-up in `text`, hash index", AGAIN, control=True),
    "lookup_digest_control": Row("look-up in `text`, btree index", AGAIN, control=True),
    "tpcb_control": Row("like TPC-B, on `text`", AGAIN, control=True),

    # More
    "order_by_4mb": Row("ORDER BY, work_mem 4 MB", TEXT, pairs=3),
    "distinct_4mb": Row("DISTINCT, work_mem 4 MB", TEXT, pairs=3),
    "copy_in_wide": Row("COPY in of `text` that is as long as the ciphertext", TEXT, pairs=3),
    "count_wide": Row("`count(*) … WHERE v = constant` of `text` that is as long as the ciphertext", TEXT),
    "tpcb_wide": Row("like TPC-B, on `text` that is as long as the ciphertext", TEXT),
    "join_few": Row("hash join with a tenth, in memory", TEXT, pairs=3),
    "join_4mb": Row("hash join with a tenth, work_mem 4 MB", TEXT, pairs=3),
    "count_parallel": Row("`count(*) … WHERE v = constant`, 2 workers", TEXT, pairs=3),
    "join_parallel": Row("hash join with a tenth, 2 workers", TEXT, pairs=3),
    "large_receive": Row("values of 1 MiB, received by a client", "`bytea`, EXTERNAL"),
    "rotate_2": Row("`enc_rotate_column` in 2 sessions, rate", "`UPDATE t SET v = v`",
                    measured_in="rows/s", pairs=1),
    "pgp_sym_decrypt_fast": Row("decryption of 32 bytes, rate",
                                "`pgp_sym_decrypt`, `s2k-mode=0`", measured_in="values/s", pairs=3),
    "encrypt_iv": Row("encryption of 32 bytes, rate", "pgcrypto's `encrypt_iv`",
                      measured_in="values/s", pairs=3),
    "pgp_sym_encrypt": Row("encryption of 32 bytes, rate", "pgcrypto's `pgp_sym_encrypt`",
                           measured_in="values/s", pairs=3),
    "memory_preloaded": Row("a backend's memory, the library preloaded", "a backend that reads `text`",
                            measured_in="MiB", difference_in="MiB", pairs=3),
    "size_table": Row("size of the table, values of 32 bytes", TEXT, measured_in="bytes", pairs=1),
    "size_hash": Row("size of a hash index", HASH, measured_in="bytes", pairs=1),
    "size_digest": Row("size of an index on `enc_digest`", BTREE, measured_in="bytes", pairs=1),
}
