"""The fields for Django, to be copied into an application: see docs/clients.md."""

from django.db import models


class EncryptedField(models.Field):
    """What the fields share: the key, which migrations know, too."""

    def __init__(self, *args, key, **kwargs):
        self.key = key
        super().__init__(*args, **kwargs)

    def deconstruct(self):
        name, path, args, kwargs = super().deconstruct()
        return name, path, args, kwargs | {"key": self.key}


class EncryptedTextField(EncryptedField, models.TextField):
    def db_type(self, connection):
        return f"encrypted_text('{self.key}')"


class EncryptedBinaryField(EncryptedField, models.BinaryField):
    def db_type(self, connection):
        return f"encrypted_bytea('{self.key}')"

    def select_format(self, compiler, sql, params):
        return f"{sql}::bytea", params


class Digest(models.Func):
    """enc_digest(column), for unique constraints and generated fields."""

    function = "enc_digest"
    output_field = models.BinaryField()


class Folded(Digest):
    """The same for all ways to write a text in upper and lower case."""

    template = "%(function)s(%(expressions)s, 'nfkc_casefold')"


@EncryptedTextField.register_lookup
class FoldedExact(models.lookups.Exact):
    """email__iexact, by an index on Folded("email")."""

    lookup_name = "iexact"

    def as_sql(self, compiler, connection):
        # Not process_lhs(), which makes this lookup's left side UPPER(email::text).
        left, left_params = compiler.compile(self.lhs)
        right, right_params = self.process_rhs(compiler, connection)
        folded = "enc_digest({}, 'nfkc_casefold') = enc_digest({}, 'nfkc_casefold')"
        return folded.format(left, right), [*left_params, *right_params]
