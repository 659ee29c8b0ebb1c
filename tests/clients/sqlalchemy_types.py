"""The types for SQLAlchemy, to be copied into an application: see docs/clients.md."""

from sqlalchemy import cast
from sqlalchemy.dialects.postgresql import BYTEA, base
from sqlalchemy.types import String, UserDefinedType


class EncryptedText(UserDefinedType):
    """A column of str: EncryptedText("user_pii")."""

    cache_ok = True
    comparator_factory = String.Comparator

    def __init__(self, key):
        self.key = key

    def get_col_spec(self, **kw):
        return f"encrypted_text('{self.key}')"


class EncryptedBytea(UserDefinedType):
    """A column of bytes: EncryptedBytea("user_pii"). The casts let every driver know that they are."""

    cache_ok = True

    def __init__(self, key):
        self.key = key

    def get_col_spec(self, **kw):
        return f"encrypted_bytea('{self.key}')"

    def bind_expression(self, value):
        return cast(value, BYTEA)

    def column_expression(self, column):
        return cast(column, BYTEA)


# So that reflection, and with it Alembic's autogenerate, knows them. It hands on the quotes of the modifier.
base.ischema_names["encrypted_text"] = lambda key, **_: EncryptedText(key.strip("'"))
base.ischema_names["encrypted_bytea"] = lambda key, **_: EncryptedBytea(key.strip("'"))
