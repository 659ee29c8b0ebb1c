-- To and from the base type.
CREATE TABLE c (id integer, v encrypted_text('user_pii'), w encrypted_text('medical'), b encrypted_bytea('medical'));
INSERT INTO c VALUES (1, 'text'::text, 'varchar'::varchar(10), '\x01'::bytea);
INSERT INTO c VALUES (2, 'char'::char(10), 'name'::name, NULL), (3, 42, true, NULL);
SELECT id, v, w, b, enc_key_name(v), enc_key_name(w), enc_key_name(b), octet_length(v::text) FROM c ORDER BY id;

-- Implicit to text and varchar: functions and operators of text work.
SELECT lower(v), upper(v), length(v), v || '!', v LIKE 't%', v ~ 'e.t', substr(v, 2), reverse(v), md5(v)
  FROM c WHERE id = 1;
SELECT coalesce(v, 'none'), pg_typeof(coalesce(v, 'none')), pg_typeof(coalesce(v, 'none'::text)) FROM c WHERE id = 1;
SELECT pg_typeof(v::varchar), pg_typeof(v::char(2)), v::char(2), v::varchar(3), pg_typeof(v::name), v::name FROM c WHERE id = 1;
SELECT repeat('x', 100)::encrypted_text('user_pii')::name;
SELECT v::integer + 1 FROM c WHERE id = 3 AND v ~ '^\d+$';
SELECT b::bytea, length(b), encode(b, 'hex'), b || '\x02' FROM c WHERE id = 1;

-- From one key to another: encrypted again. Under the same key and version: as it is.
UPDATE c SET w = v WHERE id = 1;
SELECT v = w, enc_key_name(w) FROM c WHERE id = 1;
SELECT v::bytea AS before FROM c WHERE id = 1 \gset
UPDATE c SET v = v::encrypted_text('user_pii') WHERE id = 1;
SELECT v::bytea = :'before' AS same_ciphertext FROM c WHERE id = 1;
SELECT enc_key_name('x'::encrypted_text), enc_key_name('x'::encrypted_text('medical')),
       enc_key_name('x'::text::encrypted_text('medical'));
SELECT w = v, enc_key_name(w), enc_key_version(w) FROM (SELECT v, v::encrypted_text('medical') AS w FROM c WHERE id = 1) s;

-- Through PL/pgSQL, a view, a materialized view, CREATE TABLE AS, a DEFAULT and a function argument.
DO $$
DECLARE
    plain text;
    loose encrypted_text;
    bound encrypted_text('medical');
BEGIN
    SELECT v INTO plain FROM c WHERE id = 1;
    SELECT v INTO loose FROM c WHERE id = 1;
    bound := loose;
    RAISE NOTICE '% % % %', plain, loose, enc_key_name(loose), enc_key_name(bound);
    loose := 'literal';
    RAISE NOTICE '% %', loose, enc_key_name(loose);
END $$;
CREATE VIEW c_view AS SELECT id, v, upper(v) AS loud FROM c;
SELECT * FROM c_view ORDER BY id;
CREATE MATERIALIZED VIEW c_matview AS SELECT id, v FROM c;
SELECT id, v, enc_key_name(v) FROM c_matview ORDER BY id;
CREATE TABLE c_copy AS SELECT id, v FROM c;
\d c_copy
SELECT id, v FROM c_copy ORDER BY id;
ALTER TABLE c_copy ADD COLUMN d encrypted_text('medical') DEFAULT 'set later';
INSERT INTO c_copy (id) VALUES (9);
SELECT id, d, enc_key_name(d) FROM c_copy ORDER BY id;
ALTER TABLE c_copy ALTER COLUMN v TYPE encrypted_text('medical');
SELECT id, v, enc_key_name(v) FROM c_copy ORDER BY id;
ALTER TABLE c_copy ALTER COLUMN v TYPE text;
SELECT id, v FROM c_copy ORDER BY id;
ALTER TABLE c_copy ALTER COLUMN v TYPE encrypted_text('user_pii');
SELECT id, v, enc_key_name(v) FROM c_copy ORDER BY id;

-- What returns plaintext is not IMMUTABLE: PostgreSQL refuses to store it.
CREATE INDEX ON c (lower(v));
CREATE TABLE g (v encrypted_text('user_pii'), p text GENERATED ALWAYS AS (v::text) STORED);
SELECT proname, pg_get_function_arguments(oid) FROM pg_proc
 WHERE (prorettype IN ('text'::regtype, 'varchar'::regtype, 'bpchar'::regtype, 'name'::regtype, 'bytea'::regtype, 'cstring'::regtype)
        AND pg_get_function_arguments(oid) ~ 'encrypted_'
        OR prorettype IN ('encrypted_text'::regtype, 'encrypted_bytea'::regtype))
   AND provolatile <> 's' AND proname <> 'enc_digest';
-- No cast to or from another type is binary-coercible, but those that these tests made.
SELECT castsource::regtype, casttarget::regtype FROM pg_cast
 WHERE castmethod <> 'f'
   AND ('encrypted_text'::regtype IN (castsource, casttarget) OR 'encrypted_bytea'::regtype IN (castsource, casttarget))
 ORDER BY 1, 2;
DROP MATERIALIZED VIEW c_matview;
DROP VIEW c_view;
DROP TABLE c, c_copy;
