"""psycopg 3. A str goes out without a type, bytes as bytea, a list of str as an array without a type."""

import psycopg
from psycopg import sql
from psycopg.types import TypeInfo
from psycopg.types.string import ByteaBinaryLoader, ByteaLoader, TextBinaryLoader, TextLoader

from behaviours import FOLDED, PHOTO, ROWS, UPSERT_ON_COLUMN, UPSERT_ON_EXPRESSION, ok, same


def main():
    with psycopg.connect(autocommit=True) as connection:
        unregistered(connection)
        register(connection)
        insert_and_select(connection)
        lookups(connection)
        lists(connection)
        upserts(connection)
        prepared(connection)
        binary(connection)
        copy(connection)
    denied()


def register(connection):
    """Without it a value of encrypted_bytea arrives as the text \\x..., and both as bytes in binary."""
    loaders = {
        "encrypted_text": (TextLoader, TextBinaryLoader),
        "encrypted_bytea": (ByteaLoader, ByteaBinaryLoader),
    }
    for name, (text, binary) in loaders.items():
        info = TypeInfo.fetch(connection, name)
        info.register(connection)
        connection.adapters.register_loader(info.oid, text)
        connection.adapters.register_loader(info.oid, binary)


def unregistered(connection):
    row = connection.execute("SELECT email, photo FROM person WHERE id = 1").fetchone()
    same(row, ("person1@example.com", "\\x00000001"))
    cursor = connection.cursor(binary=True)
    row = cursor.execute("SELECT email, photo FROM person WHERE id = 1").fetchone()
    same(row, (b"person1@example.com", b"\0\0\0\1"))
    ok("unregistered types")


def insert_and_select(connection):
    connection.cursor().executemany(
        "INSERT INTO person (id, email, photo) VALUES (%s, %s, %s)", ROWS)
    found = connection.execute(
        "SELECT id, email, photo FROM person WHERE id > 3000 ORDER BY id").fetchall()
    same(found, ROWS)
    ok("insert and select")
    # With the types of the base types, as bytea and text, not unknown.
    connection.execute("INSERT INTO person (id, email, photo) VALUES (3004, %s::text, %s::bytea)",
                       ("typed@example.com", PHOTO))
    row = connection.execute("SELECT email::text, photo::bytea FROM person WHERE id = 3004").fetchone()
    same(row, ("typed@example.com", PHOTO))
    ok("types of the base types")


def lookups(connection):
    for placeholder in ("%s", "%s::text", "%s::varchar", "%b"):
        look_up(connection, "person_email_digest", f"email = {placeholder}", "person7@example.com")
        look_up(connection, "person_phone_hash", f"phone = {placeholder}", "+497")
    for placeholder in ("%s", "%b"):
        look_up(connection, "person_photo_hash", f"photo = {placeholder}", b"\0\0\0\7")
    ok("lookup")
    look_up(connection, "person_email_folded", FOLDED.format("%s"), "PERSON7@Example.com")
    ok("lookup without case")


def lists(connection):
    for placeholder in ("%s", "%s::text[]", "%s::varchar[]", "%b"):
        look_up(connection, "person_phone_hash", f"phone = ANY({placeholder})", ["+497", "+4901"])
    look_up(connection, "person_photo_hash", "photo = ANY(%s)", [b"\0\0\0\7", b"none"])
    ok("= ANY")
    look_up(connection, "person_phone_hash", "phone IN (%s, %s)", "+497", "+4901")
    # What an index on digests serves instead.
    look_up(connection, "person_email_digest",
            "enc_digest(email) IN (enc_digest(%s), enc_digest(%s))", "person7@example.com", "none")
    look_up(connection, "person_email_digest",
            "id IN (SELECT p.id FROM unnest(%s::text[]) AS wanted JOIN person p ON p.email = wanted)",
            ["person7@example.com", "none"])
    ok("IN")


def look_up(connection, index, condition, *parameters):
    """Finds the person 7, by the index."""
    query = f"SELECT id FROM person WHERE {condition}"
    plan = connection.execute("EXPLAIN (COSTS OFF) " + query, parameters).fetchall()
    assert index in str(plan), (condition, plan)
    found = connection.execute(query, parameters).fetchall()
    same(found, [(7,)])


def upserts(connection):
    upsert = UPSERT_ON_EXPRESSION.format("%s", "%s")
    same(connection.execute(upsert, ("person8@example.com", "seen")).fetchone(), (8,))
    ok("upsert on an expression")
    for login in ("Alice", "ALICE"):
        row = connection.execute(UPSERT_ON_COLUMN.format("%s"), (login,)).fetchone()
    same(row, ("Alice", 2))
    ok("upsert on a column")


def prepared(connection):
    """The server takes a generic plan from the sixth execution on."""
    for n in range(1, 12):
        row = connection.execute("SELECT id FROM person WHERE email = %s",
                                 (f"person{n}@example.com",), prepare=True).fetchone()
        same(row, (n,))
    statements = connection.execute(
        "SELECT generic_plans FROM pg_prepared_statements"
        " WHERE statement LIKE '%WHERE email = $1'").fetchall()
    assert len(statements) == 1 and statements[0][0] > 0, statements
    ok("prepared statement")


def binary(connection):
    cursor = connection.cursor(binary=True)
    cursor.execute("INSERT INTO person (id, email, photo) VALUES (3005, %b, %b)", ("binär", PHOTO))
    row = cursor.execute("SELECT email, photo, ARRAY[email] FROM person WHERE id = 3005").fetchone()
    same(row, ("binär", PHOTO, ["binär"]))
    ok("binary format")


def copy(connection):
    cursor = connection.cursor()
    for form, ids in (("text", (3010, 3011)), ("binary", (3012, 3013))):
        rows = [(ids[0], "copied " + form, PHOTO), (ids[1], None, None)]
        with cursor.copy(f"COPY person (id, email, photo) FROM STDIN (FORMAT {form})") as copy:
            if form == "binary":
                copy.set_types(["int8", "text", "bytea"])
            for row in rows:
                copy.write_row(row)
        query = sql.SQL("COPY (SELECT id, email, photo FROM person WHERE id = ANY({}) ORDER BY id)"
                        " TO STDOUT (FORMAT {})")
        with cursor.copy(query.format(list(ids), sql.SQL(form))) as copy:
            copy.set_types(["int8", "text", "bytea"])
            found = list(copy.rows())
        same(found, rows)
    ok("COPY")


def denied():
    with psycopg.connect(user="stranger", password="stranger") as connection:
        try:
            connection.execute("SELECT email FROM person")
        except psycopg.Error as error:
            same(error.sqlstate, "KE020")
            assert "user_pii" in error.diag.message_primary and error.diag.message_hint
        else:
            raise AssertionError("nothing was refused")
    ok("KE020")


main()
