"""psycopg2. It sends no parameters: it writes them into the statement as literals."""

import io

import psycopg2
from psycopg2 import extensions

from behaviours import FOLDED, PHOTO, ROWS, UPSERT_ON_COLUMN, UPSERT_ON_EXPRESSION, ok, same


def main():
    connection = psycopg2.connect("")
    connection.autocommit = True
    cursor = connection.cursor()
    unregistered(cursor)
    register(connection)
    insert_and_select(cursor)
    lookups(cursor)
    lists(cursor)
    upserts(cursor)
    copy(cursor)
    denied()


def unregistered(cursor):
    cursor.execute("SELECT email, photo, ARRAY[email] FROM person WHERE id = 1")
    same(cursor.fetchone(), ("person1@example.com", "\\x00000001", "{person1@example.com}"))
    ok("unregistered types")


def register(connection):
    cursor = connection.cursor()
    cursor.execute("""
        SELECT oid::integer, typarray::integer FROM pg_type
         WHERE oid IN ('encrypted_text'::regtype, 'encrypted_bytea'::regtype) ORDER BY typname DESC""")
    (text, text_array), (binary, binary_array) = cursor.fetchall()
    for oid, array, name, reader in ((text, text_array, "ENCRYPTED_TEXT", extensions.UNICODE),
                                     (binary, binary_array, "ENCRYPTED_BYTEA", psycopg2.BINARY)):
        one = extensions.new_type((oid,), name, reader)
        extensions.register_type(one, connection)
        extensions.register_type(
            extensions.new_array_type((array,), name + "_ARRAY", one), connection)


def insert_and_select(cursor):
    for row in ROWS:
        cursor.execute("INSERT INTO person (id, email, photo) VALUES (%s, %s, %s)", row)
    cursor.execute("SELECT id, email, photo FROM person WHERE id > 3000 ORDER BY id")
    # Bytes arrive as a memoryview.
    same([(id, email, photo if photo is None else bytes(photo)) for id, email, photo in cursor], ROWS)
    cursor.execute("SELECT ARRAY[email] FROM person WHERE id = 3001")
    same(cursor.fetchone(), ([ROWS[0][1]],))
    ok("insert and select")
    cursor.execute("INSERT INTO person (id, email, photo) VALUES (3004, %s::text, %s::bytea)",
                   ("typed@example.com", PHOTO))
    cursor.execute("SELECT email::text, photo::bytea FROM person WHERE id = 3004")
    email, photo = cursor.fetchone()
    same((email, bytes(photo)), ("typed@example.com", PHOTO))
    ok("types of the base types")


def lookups(cursor):
    for placeholder in ("%s", "%s::text", "%s::varchar"):
        look_up(cursor, "person_email_digest", f"email = {placeholder}", "person7@example.com")
        look_up(cursor, "person_phone_hash", f"phone = {placeholder}", "+497")
    look_up(cursor, "person_photo_hash", "photo = %s", b"\0\0\0\7")
    ok("lookup")
    look_up(cursor, "person_email_folded", FOLDED.format("%s"), "PERSON7@Example.com")
    ok("lookup without case")


def lists(cursor):
    for placeholder in ("%s", "%s::text[]", "%s::varchar[]"):
        look_up(cursor, "person_phone_hash", f"phone = ANY({placeholder})", ["+497", "+4901"])
    look_up(cursor, "person_photo_hash", "photo = ANY(%s)", [b"\0\0\0\7", b"none"])
    ok("= ANY")
    look_up(cursor, "person_phone_hash", "phone IN %s", ("+497", "+4901"))
    ok("IN")


def look_up(cursor, index, condition, parameter):
    """Finds the person 7, by the index."""
    query = f"SELECT id FROM person WHERE {condition}"
    cursor.execute("EXPLAIN (COSTS OFF) " + query, (parameter,))
    plan = cursor.fetchall()
    assert index in str(plan), (condition, plan)
    cursor.execute(query, (parameter,))
    same(cursor.fetchall(), [(7,)])


def upserts(cursor):
    cursor.execute(UPSERT_ON_EXPRESSION.format("%s", "%s"), ("person8@example.com", "seen"))
    same(cursor.fetchone(), (8,))
    ok("upsert on an expression")
    for login in ("Alice", "ALICE"):
        cursor.execute(UPSERT_ON_COLUMN.format("%s"), (login,))
    same(cursor.fetchone(), ("Alice", 2))
    ok("upsert on a column")


def copy(cursor):
    rows = "3010\tcopied\t\\\\x00ff\n3011\t\\N\t\\N\n"
    cursor.copy_expert("COPY person (id, email, photo) FROM STDIN", io.StringIO(rows))
    found = io.StringIO()
    cursor.copy_expert("COPY (SELECT id, email, photo FROM person WHERE id >= 3010 ORDER BY id) TO STDOUT",
                       found)
    same(found.getvalue(), rows)
    ok("COPY")


def denied():
    connection = psycopg2.connect("user=stranger password=stranger")
    try:
        connection.cursor().execute("SELECT email FROM person")
    except psycopg2.Error as error:
        same(error.pgcode, "KE020")
        assert "user_pii" in error.diag.message_primary and error.diag.message_hint
    else:
        raise AssertionError("nothing was refused")
    ok("KE020")


main()
