"""Django, on psycopg 3."""

import os

import django
from django.conf import settings
from django.contrib.postgres.indexes import HashIndex
from django.core.exceptions import ValidationError
from django.db import DatabaseError, connection, models

from behaviours import ROWS, ok, same
from django_fields import Digest, EncryptedBinaryField, EncryptedTextField, Folded

settings.configure(
    DATABASES={"default": {
        "ENGINE": "django.db.backends.postgresql",
        "HOST": os.environ["PGHOST"], "PORT": os.environ["PGPORT"], "NAME": os.environ["PGDATABASE"],
        "USER": os.environ["PGUSER"], "PASSWORD": os.environ["PGPASSWORD"],
        # Parameters, which Django otherwise writes into the statement as literals.
        "OPTIONS": {"server_side_binding": True},
    }},
    DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
)
django.setup()

class Person(models.Model):
    email = EncryptedTextField(key="user_pii", null=True)
    phone = EncryptedTextField(key="user_pii", null=True)
    photo = EncryptedBinaryField(key="user_pii", null=True)
    note = models.TextField(null=True)

    class Meta:
        app_label = "clients"
        db_table = "person"


class Member(models.Model):
    """As a migration makes it."""

    login = EncryptedTextField(key="user_pii")
    visits = models.IntegerField(default=1)
    login_digest = models.GeneratedField(
        expression=Folded("login"), output_field=models.BinaryField(), db_persist=True)
    phone = EncryptedTextField(key="user_pii", null=True)

    class Meta:
        app_label = "clients"
        indexes = [HashIndex(fields=["phone"], name="member_phone")]
        constraints = [
            models.UniqueConstraint(fields=["login_digest"], name="member_login"),
            models.UniqueConstraint(Digest("phone"), name="member_phone_digest"),
        ]


class Ordered(models.Model):
    """What must not be declared: db_index and unique mean an ordered index."""

    login = EncryptedTextField(key="user_pii", db_index=True)

    class Meta:
        app_label = "clients"


def main():
    insert_and_select()
    lookups()
    lists()
    connect_anew(OPTIONS={})
    lookups()
    lists()
    ok("lookup")
    ok("lookup without case")
    ok("IN")
    migration()
    upserts()
    validation()
    denied()


def insert_and_select():
    Person.objects.bulk_create(Person(id=id, email=email, photo=photo) for id, email, photo in ROWS)
    found = Person.objects.filter(id__gt=3000).order_by("id")
    same([(p.id, p.email, None if p.photo is None else bytes(p.photo)) for p in found], ROWS)
    person = Person.objects.get(id=3001)
    person.email = "Changed@example.com"
    person.save()
    same(Person.objects.get(email__startswith="Changed").id, 3001)
    ok("insert and select")


def lookups():
    look_up("person_email_digest", email="person7@example.com")
    look_up("person_phone_hash", phone="+497")
    look_up("person_photo_hash", photo=b"\0\0\0\7")
    look_up("person_email_folded", email__iexact="PERSON7@Example.com")


def lists():
    look_up("person_phone_hash", phone__in=["+497", "+4901"])


def look_up(index, **condition):
    """Finds the person 7, by the index."""
    query = Person.objects.filter(**condition)
    plan = query.explain(costs=False)
    assert index in plan, (condition, plan)
    same([person.id for person in query], [7])


def migration():
    with connection.schema_editor() as editor:
        editor.create_model(Member)
    try:
        # Without a transaction, which the schema editor would leave open.
        with connection.schema_editor(atomic=False) as editor:
            editor.create_model(Ordered)
    except DatabaseError as error:
        same(error.__cause__.sqlstate, "KE032")
    else:
        raise AssertionError("an ordered index was made")
    ok("migration")


def upserts():
    for login in ("Alice", "ALICE"):
        Member.objects.bulk_create(
            [Member(login=login, visits=2)], update_conflicts=True, unique_fields=["login_digest"],
            update_fields=["visits"])
    same(list(Member.objects.values_list("login", "visits")), [("Alice", 2)])
    ok("upsert on a column")


def validation():
    """Constraints on digests are found to be violated before anything is stored."""
    Member.objects.update(phone="+491")
    Member(login="Bob", phone="+492").full_clean()
    for member in (Member(login="aLICE", phone="+492"), Member(login="Bob", phone="+491")):
        try:
            member.full_clean()
        except ValidationError:
            pass
        else:
            raise AssertionError("a duplicate is valid")
    ok("validation")


def denied():
    connect_anew(USER="stranger", PASSWORD="stranger")
    try:
        Person.objects.get(id=1)
    except DatabaseError as error:
        same(error.__cause__.sqlstate, "KE020")
    else:
        raise AssertionError("nothing was refused")
    ok("KE020")


def connect_anew(**settings):
    connection.close()
    connection.settings_dict |= settings


main()
