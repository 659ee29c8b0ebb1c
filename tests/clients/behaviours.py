"""What the programs in Python share: how they say what they have seen, and what they write."""

UNICODE = "ünïcödé 🔑 日本@example.com"
PHOTO = bytes(range(256))

# id, email, photo
ROWS = [(3001, UNICODE, PHOTO), (3002, "", b""), (3003, None, None)]

UPSERT_ON_EXPRESSION = """
    INSERT INTO person (email, note) VALUES ({}, {})
    ON CONFLICT (enc_digest(email)) DO UPDATE SET note = excluded.note RETURNING id"""
UPSERT_ON_COLUMN = """
    INSERT INTO account (login) VALUES ({})
    ON CONFLICT (login_digest) DO UPDATE SET visits = account.visits + 1 RETURNING login, visits"""

FOLDED = "enc_digest(email, 'nfkc_casefold') = enc_digest({}, 'nfkc_casefold')"


def ok(behaviour):
    """tests/clusters/clients.rs compares these lines with the ones that it expects."""
    print("ok", behaviour)


def same(found, expected):
    assert found == expected, f"{found!r} is not {expected!r}"
