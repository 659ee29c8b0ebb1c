"""SQLAlchemy, on psycopg 3, psycopg2 and asyncpg, and Alembic."""

import asyncio
import warnings

from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import (BigInteger, Column, Computed, Identity, Index, Integer, LargeBinary, MetaData, Table,
                        Text, any_, bindparam, create_engine, func, insert, make_url, select, text)
from sqlalchemy.dialects.postgresql import ARRAY, insert as upsert
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.expression import ClauseElement, Executable

from behaviours import ROWS, ok, same
from sqlalchemy_types import EncryptedBytea, EncryptedText

METADATA = MetaData()
PERSON = Table(
    "person", METADATA,
    Column("id", BigInteger, Identity(), primary_key=True),
    Column("email", EncryptedText("user_pii")),
    Column("phone", EncryptedText("user_pii")),
    Column("photo", EncryptedBytea("user_pii")),
    Column("note", Text),
)
EMAIL_DIGEST = func.enc_digest(PERSON.c.email)
FOLDED = func.enc_digest(PERSON.c.email, text("'nfkc_casefold'"))
Index("person_email_digest", EMAIL_DIGEST, unique=True)
Index("person_email_folded", FOLDED)
Index("person_phone_hash", PERSON.c.phone, postgresql_using="hash")
Index("person_photo_hash", PERSON.c.photo, postgresql_using="hash")

# As a migration makes it.
MEMBER = Table(
    "member", METADATA,
    Column("login", EncryptedText("user_pii"), nullable=False),
    Column("visits", Integer, nullable=False, server_default="1"),
    Column("login_digest", LargeBinary, Computed("enc_digest(login, 'nfkc_casefold')", persisted=True),
           unique=True),
    Column("logins", ARRAY(EncryptedText("user_pii"))),
)


def main():
    seen = [
        on_others("postgresql+psycopg://"),
        on_others("postgresql+psycopg2://"),
        asyncio.run(on_asyncpg("postgresql+asyncpg://")),
    ]
    for behaviours in seen:
        same(behaviours, seen[0])
    for behaviour in seen[0]:
        ok(behaviour)
    with create_engine("postgresql+psycopg://").connect() as connection:
        migration(connection)
    ok("migration")


def on_others(url):
    with create_engine(url).connect() as connection:
        behaviours = try_all(connection)
    with create_engine(stranger(url)).connect() as connection:
        behaviours.append(denied(connection))
    return behaviours


async def on_asyncpg(url):
    async with create_async_engine(url).connect() as connection:
        behaviours = await connection.run_sync(try_all)
    async with create_async_engine(stranger(url)).connect() as connection:
        behaviours.append(await connection.run_sync(denied))
    return behaviours


def stranger(url):
    return make_url(url).set(username="stranger", password="stranger")


def try_all(connection):
    """In a transaction that is rolled back."""
    MEMBER.create(connection)
    return [insert_and_select(connection), *lookups(connection), *lists(connection), *upserts(connection)]


def insert_and_select(connection):
    connection.execute(insert(PERSON), [dict(zip(("id", "email", "photo"), row)) for row in ROWS])
    found = connection.execute(select(PERSON.c.id, PERSON.c.email, PERSON.c.photo)
                               .where(PERSON.c.id > 3000).order_by(PERSON.c.id))
    same([tuple(row) for row in found], ROWS)
    found = connection.execute(select(func.lower(PERSON.c.email)).where(PERSON.c.email.like("person7@%")))
    same(found.all(), [("person7@example.com",)])
    return "insert and select"


def lookups(connection):
    look_up(connection, "person_email_digest", PERSON.c.email == "person7@example.com")
    look_up(connection, "person_phone_hash", PERSON.c.phone == "+497")
    look_up(connection, "person_photo_hash", PERSON.c.photo == b"\0\0\0\7")
    yield "lookup"
    folded = func.enc_digest(bindparam("email", "PERSON7@Example.com", Text), text("'nfkc_casefold'"))
    look_up(connection, "person_email_folded", FOLDED == folded)
    yield "lookup without case"


def lists(connection):
    phones = bindparam("phones", ["+497", "+4901"], ARRAY(Text))
    look_up(connection, "person_phone_hash", PERSON.c.phone == any_(phones))
    yield "= ANY"
    look_up(connection, "person_phone_hash", PERSON.c.phone.in_(["+497", "+4901"]))
    look_up(connection, "person_photo_hash", PERSON.c.photo.in_([b"\0\0\0\7", b"none"]))
    yield "IN"


def look_up(connection, index, condition):
    """Finds the person 7, by the index."""
    query = select(PERSON.c.id).where(condition)
    same(connection.execute(query).all(), [(7,)])
    plan = connection.execute(Explain(query)).all()
    assert index in str(plan), (str(query), plan)


class Explain(Executable, ClauseElement):
    """A query's plan, with its parameters as they are sent."""

    inherit_cache = False

    def __init__(self, query):
        self.query = query


@compiles(Explain)
def explain(element, compiler, **kw):
    return "EXPLAIN (COSTS OFF) " + compiler.process(element.query, **kw)


def upserts(connection):
    statement = upsert(PERSON).values(email="person8@example.com", note="seen")
    statement = statement.on_conflict_do_update(
        index_elements=[EMAIL_DIGEST], set_={"note": statement.excluded.note}).returning(PERSON.c.id)
    same(connection.execute(statement).all(), [(8,)])
    yield "upsert on an expression"
    statement = upsert(MEMBER)
    statement = statement.on_conflict_do_update(
        index_elements=["login_digest"], set_={"visits": MEMBER.c.visits + 1}
    ).returning(MEMBER.c.login, MEMBER.c.visits)
    connection.execute(statement.values(login="Alice"))
    same(connection.execute(statement.values(login="ALICE")).all(), [("Alice", 2)])
    yield "upsert on a column"


def denied(connection):
    try:
        connection.execute(select(PERSON.c.email))
    except DBAPIError as error:
        same(error.orig.sqlstate if hasattr(error.orig, "sqlstate") else error.orig.pgcode, "KE020")
    else:
        raise AssertionError("nothing was refused")
    return "KE020"


def migration(connection):
    """Alembic finds no difference where there is none, and the change of a key's name."""
    METADATA.create_all(connection)
    # `account` is none of METADATA's.
    same([change for change in changes(connection, METADATA) if change[0] != "remove_table"], [])
    other = MetaData()
    Table("account", other, Column("login", EncryptedText("other"), nullable=False))
    columns = [change for change in changes(connection, other) if isinstance(change, list)]
    same([(change[0], change[3]) for change, in columns], [("modify_type", "login")])


def changes(connection, metadata):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return compare_metadata(MigrationContext.configure(connection), metadata)


main()
