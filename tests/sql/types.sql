-- Input, output, type modifiers, storage.
CREATE TABLE users (
    id    integer PRIMARY KEY,
    email encrypted_text('user_pii'),
    photo encrypted_bytea('medical')
);
\d users

INSERT INTO users VALUES (1, 'alice@example.com', '\x0001ff'), (2, '', ''), (3, NULL, NULL);
INSERT INTO users (id, email) VALUES (4, 'grüße – 世界'), (5, E'tab\there, a \\ and a '' quote');
COPY users FROM stdin;
6	copied\tvalue	\\xdeadbeef
7	\N	\N
8		
\.
SELECT * FROM users ORDER BY id;
COPY (SELECT * FROM users ORDER BY id) TO stdout;

SELECT octet_length('🌍'::encrypted_text::text), '🌍'::encrypted_text('user_pii') = '🌍' AS same;

-- 50 bytes of overhead, each value another ciphertext, under the column's key and version.
SELECT octet_length(email::bytea) - octet_length(email::text) AS overhead, count(*)
  FROM users WHERE email IS NOT NULL GROUP BY 1;
SELECT octet_length(photo::encrypted_text::bytea) - octet_length(photo::bytea) AS overhead, count(*)
  FROM users WHERE photo IS NOT NULL GROUP BY 1;
SELECT enc_key_name(email), enc_key_version(email), enc_key_name(photo), enc_key_version(photo), count(*)
  FROM users GROUP BY 1, 2, 3, 4 ORDER BY 1, 3;
SELECT substr(email::bytea, 1, 10) AS header FROM users WHERE id = 1;
SELECT substr(photo::encrypted_text::bytea, 1, 10) AS header FROM users WHERE id = 1;

-- A thousand rows from one literal.
CREATE TABLE many (id integer, v encrypted_text('user_pii'));
INSERT INTO many SELECT i, 'the same plaintext' FROM generate_series(1, 1000) i;
SELECT count(DISTINCT v::bytea), count(DISTINCT v), min(v) FROM many;
-- And from a prepared statement whose plan is generic, before and after a rotation.
SET plan_cache_mode = force_generic_plan;
PREPARE insert_literal AS INSERT INTO many SELECT i, 'from a plan' FROM generate_series(1, 500) i;
TRUNCATE many;
EXECUTE insert_literal;
SELECT enc_rotate_key('user_pii');
EXECUTE insert_literal;
SELECT enc_key_version(v), count(DISTINCT v::bytea) FROM many GROUP BY 1 ORDER BY 1;
DEALLOCATE insert_literal;
RESET plan_cache_mode;
SELECT count(DISTINCT v::bytea), count(DISTINCT v) FROM many;
DROP TABLE many;

-- STORAGE EXTERNAL: a long value goes out of line uncompressed. Its header is read without the rest.
SELECT attname, attstorage FROM pg_attribute WHERE attrelid = 'users'::regclass AND attnum > 1 ORDER BY attnum;
INSERT INTO users VALUES (9, repeat('x', 100000), decode(repeat('ab', 100000), 'hex'));
SELECT length(email), md5(email), length(photo), md5(photo), enc_key_version(email), pg_column_size(email)
  FROM users WHERE id = 9;
SELECT md5(repeat('x', 100000)), md5(decode(repeat('ab', 100000), 'hex'));

-- The type modifier is a key's name, and nothing else.
CREATE TABLE bad (v encrypted_text('no_such_key'));
\echo :LAST_ERROR_SQLSTATE
CREATE TABLE bad (v encrypted_text('../etc'));
\echo :LAST_ERROR_SQLSTATE
CREATE TABLE bad (v encrypted_text('-leading'));
CREATE TABLE bad (v encrypted_text('User_PII'));
CREATE TABLE bad (v encrypted_text(''));
CREATE TABLE bad (v encrypted_text('user_pii', 'medical'));
\echo :LAST_ERROR_SQLSTATE
CREATE TABLE bad (v encrypted_text(10));
CREATE TABLE bad (v encrypted_text('database'));
\echo :LAST_ERROR_SQLSTATE
CREATE TABLE bad (v encrypted_text('#12'));
CREATE TABLE bad (v encrypted_text('#12x'));
CREATE TABLE bad (v encrypted_text('#2147483648'));
SELECT format_type('encrypted_text'::regtype, 1951019969), format_type('encrypted_text'::regtype, 12);
-- As an identifier, and by id.
CREATE TABLE good (a encrypted_text(user_pii), b encrypted_text('#1951019969')[]);
\d good
DROP TABLE good;

-- Armor is refused, not encrypted once more.
SELECT 'enc:1:' || translate(rtrim(encode(email::bytea, 'base64'), '='), E'+/\n', '-_') AS armor
  FROM users WHERE id = 1 \gset
INSERT INTO users (id, email) VALUES (10, :'armor');
\echo :LAST_ERROR_SQLSTATE
INSERT INTO users (id, photo) VALUES (10, :'armor');
INSERT INTO users (id, email) VALUES (10, :'armor'::text);
INSERT INTO users (id, email) VALUES (10, :'armor' || '!') RETURNING email = 'x';

-- Damaged and foreign values. Nothing of a plaintext is shown.
CREATE FUNCTION damage(bytea) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
    RETURN 'opened: ' || ($1::encrypted_text)::text;
EXCEPTION WHEN OTHERS THEN
    RETURN sqlstate || ' ' || sqlerrm;
END $$;
SELECT damage(substr(email::bytea, 1, n)) FROM users, unnest(ARRAY[0, 1, 33, 49]) n WHERE id = 1 ORDER BY n;
SELECT damage(substr(email::bytea, 1, n)) FROM users, unnest(ARRAY[50, 66]) n WHERE id = 1 ORDER BY n;
SELECT damage(set_byte(email::bytea, 0, 2)) FROM users WHERE id = 1;
SELECT damage(set_byte(email::bytea, 1, 9)) FROM users WHERE id = 1;
SELECT damage(set_byte(email::bytea, 1, 129)) FROM users WHERE id = 1;
SELECT damage(set_byte(email::bytea, 1, 2)) FROM users WHERE id = 1;
SELECT damage(set_byte(email::bytea, 1, 3)) FROM users WHERE id = 1;
SELECT damage(set_byte(email::bytea, 2, get_byte(email::bytea, 2) # 128)) FROM users WHERE id = 1;
SELECT damage(set_byte(email::bytea, 5, get_byte(email::bytea, 5) # 1)) FROM users WHERE id = 1;
SELECT damage(set_byte(email::bytea, 9, 0)) FROM users WHERE id = 1;
SELECT damage(set_byte(email::bytea, 9, 99)) FROM users WHERE id = 1;
SELECT damage(set_byte(email::bytea, 9, 2)) FROM users WHERE id = 1;
SELECT DISTINCT damage(set_byte(email::bytea, n, get_byte(email::bytea, n) # 1))
  FROM users, generate_series(10, 66) n WHERE id = 1;
SELECT damage(photo::encrypted_text::bytea) FROM users WHERE id = 1;
SELECT (email::encrypted_bytea)::bytea FROM users WHERE id = 1;
\echo :LAST_ERROR_SQLSTATE
SELECT enc_key_version('\x0101'::bytea::encrypted_text);
DROP FUNCTION damage;

-- Arrays, composite types, domains.
CREATE TABLE lists (id integer, emails encrypted_text('user_pii')[], photos encrypted_bytea('medical')[][]);
INSERT INTO lists VALUES (1, '{a@example.com,NULL,"b, c"}', ARRAY[['\x00'::bytea, '\xff']]);
INSERT INTO lists VALUES (2, ARRAY['x', 'y']::text[], NULL), (3, '{}', '{}');
SELECT * FROM lists ORDER BY id;
SELECT emails[1], enc_key_name(emails[1]), 'y' = ANY (emails) FROM lists ORDER BY id;
SELECT id, enc_key_name(e), count(DISTINCT e::bytea) FROM lists, unnest(emails) e WHERE e IS NOT NULL GROUP BY 1, 2 ORDER BY 1;
CREATE TYPE contact AS (name text, email encrypted_text('user_pii'));
CREATE TABLE contacts (c contact);
INSERT INTO contacts VALUES (ROW('Alice', 'alice@example.com')), ('(Bob,bob@example.com)');
SELECT c, (c).email, enc_key_name((c).email) FROM contacts ORDER BY 1;
CREATE DOMAIN email_address AS encrypted_text('user_pii') CHECK (VALUE LIKE '%@%');
CREATE TABLE mails (address email_address);
INSERT INTO mails VALUES ('carol@example.com');
INSERT INTO mails VALUES ('nonsense');
SELECT address, enc_key_name(address) FROM mails;
DROP TABLE lists, contacts, mails;
DROP DOMAIN email_address;
DROP TYPE contact;
