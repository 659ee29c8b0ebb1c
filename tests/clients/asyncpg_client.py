"""asyncpg. It asks the server for each parameter's type, and sends what its codec of that type makes."""

import asyncio

import asyncpg

from behaviours import FOLDED, PHOTO, ROWS, UPSERT_ON_COLUMN, UPSERT_ON_EXPRESSION, ok, same


async def main():
    connection = await asyncpg.connect()
    await unregistered(connection)
    await register(connection)
    await insert_and_select(connection)
    await lookups(connection)
    await lists(connection)
    await upserts(connection)
    await prepared(connection)
    await copy(connection)
    await connection.close()
    await denied()


async def unregistered(connection):
    """It falls back on text for types that it doesn't know, and refuses bytes for them."""
    row = await connection.fetchrow("SELECT email, photo FROM person WHERE email = $1",
                                    "person1@example.com")
    same(tuple(row), ("person1@example.com", "\\x00000001"))
    try:
        await connection.fetch("SELECT id FROM person WHERE photo = $1", b"\0\0\0\7")
    except asyncpg.DataError:
        pass
    else:
        raise AssertionError("bytes are taken without a codec")
    row = await connection.fetchrow("SELECT photo::bytea FROM person WHERE photo = $1::bytea",
                                    b"\0\0\0\7")
    same(tuple(row), (b"\0\0\0\7",))
    ok("unregistered types")


async def register(connection):
    await connection.set_builtin_type_codec("encrypted_text", codec_name="text")
    await connection.set_builtin_type_codec("encrypted_bytea", codec_name="bytea")


async def insert_and_select(connection):
    await connection.executemany("INSERT INTO person (id, email, photo) VALUES ($1, $2, $3)", ROWS)
    found = await connection.fetch("SELECT id, email, photo FROM person WHERE id > 3000 ORDER BY id")
    same([tuple(row) for row in found], ROWS)
    ok("insert and select")
    await connection.execute(
        "INSERT INTO person (id, email, photo) VALUES (3004, $1::text, $2::bytea)",
        "typed@example.com", PHOTO)
    row = await connection.fetchrow("SELECT email::text, photo::bytea FROM person WHERE id = 3004")
    same(tuple(row), ("typed@example.com", PHOTO))
    ok("types of the base types")
    # The codecs are those of the binary format, in arrays, too.
    row = await connection.fetchrow("SELECT ARRAY[email], ARRAY[photo] FROM person WHERE id = 3001")
    same(tuple(row), ([ROWS[0][1]], [PHOTO]))
    ok("binary format")


async def lookups(connection):
    for placeholder in ("$1", "$1::text", "$1::varchar"):
        await look_up(connection, "person_email_digest", f"email = {placeholder}",
                      "person7@example.com")
        await look_up(connection, "person_phone_hash", f"phone = {placeholder}", "+497")
    for placeholder in ("$1", "$1::bytea"):
        await look_up(connection, "person_photo_hash", f"photo = {placeholder}", b"\0\0\0\7")
    ok("lookup")
    await look_up(connection, "person_email_folded", FOLDED.format("$1"), "PERSON7@Example.com")
    ok("lookup without case")


async def lists(connection):
    for placeholder in ("$1", "$1::text[]", "$1::varchar[]"):
        await look_up(connection, "person_phone_hash", f"phone = ANY({placeholder})",
                      ["+497", "+4901"])
    await look_up(connection, "person_photo_hash", "photo = ANY($1)", [b"\0\0\0\7", b"none"])
    ok("= ANY")
    await look_up(connection, "person_phone_hash", "phone IN ($1, $2)", "+497", "+4901")
    ok("IN")


async def look_up(connection, index, condition, *parameters):
    """Finds the person 7, by the index."""
    query = f"SELECT id FROM person WHERE {condition}"
    plan = await connection.fetch("EXPLAIN (COSTS OFF) " + query, *parameters)
    assert index in str(plan), (condition, plan)
    same([row["id"] for row in await connection.fetch(query, *parameters)], [7])


async def upserts(connection):
    row = await connection.fetchrow(UPSERT_ON_EXPRESSION.format("$1", "$2"),
                                    "person8@example.com", "seen")
    same(tuple(row), (8,))
    ok("upsert on an expression")
    for login in ("Alice", "ALICE"):
        row = await connection.fetchrow(UPSERT_ON_COLUMN.format("$1"), login)
    same(tuple(row), ("Alice", 2))
    ok("upsert on a column")


async def prepared(connection):
    """The server takes a generic plan from the sixth execution on."""
    statement = await connection.prepare("SELECT id FROM person WHERE email = $1")
    for n in range(1, 12):
        same(await statement.fetchval(f"person{n}@example.com"), n)
    generic = await connection.fetchval(
        "SELECT generic_plans FROM pg_prepared_statements WHERE name = $1", statement.get_name())
    assert generic > 0
    ok("prepared statement")


async def copy(connection):
    """Records go out in binary."""
    rows = [(3010, "copied", PHOTO), (3011, None, None)]
    await connection.copy_records_to_table(
        "person", records=rows, columns=["id", "email", "photo"])
    found = await connection.fetch("SELECT id, email, photo FROM person WHERE id >= 3010 ORDER BY id")
    same([tuple(row) for row in found], rows)
    parts = []

    async def collect(data):
        parts.append(data)

    await connection.copy_from_query(
        "SELECT email, photo FROM person WHERE id = 3010", output=collect)
    same(b"".join(parts), b"copied\t\\\\x" + PHOTO.hex().encode() + b"\n")
    ok("COPY")


async def denied():
    connection = await asyncpg.connect(user="stranger", password="stranger")
    try:
        await connection.fetch("SELECT email FROM person")
    except asyncpg.PostgresError as error:
        same(error.sqlstate, "KE020")
        assert "user_pii" in error.message and error.hint
    else:
        raise AssertionError("nothing was refused")
    finally:
        await connection.close()
    ok("KE020")


asyncio.run(main())
