-- Migration of columns, as one session sees it. What others write meanwhile is in tests/clusters.
\set SHOW_CONTEXT never
CREATE TABLE person (id integer PRIMARY KEY, email text NOT NULL DEFAULT 'none', login varchar(10), photo bytea);
INSERT INTO person SELECT n, 'person' || n || '@example.com', 'p' || n, sha256(n::text::bytea) FROM generate_series(1, 300) n;
CREATE UNIQUE INDEX person_email ON person (email);
CREATE INDEX person_like ON person (email text_pattern_ops);
CREATE INDEX person_lower ON person (lower(email)) WHERE email IS NOT NULL;
CREATE INDEX person_login ON person (login, id DESC);
CREATE VIEW person_view AS SELECT id, email FROM person;
CREATE FUNCTION columns_of(regclass) RETURNS SETOF text LANGUAGE sql AS $$
    SELECT format('%s %s%s', attname, format_type(atttypid, atttypmod), CASE WHEN attnotnull THEN ' not null' END)
      FROM pg_attribute WHERE attrelid = $1 AND attnum > 0 AND NOT attisdropped ORDER BY attnum $$;
CREATE FUNCTION indexes_of(regclass) RETURNS SETOF text LANGUAGE sql AS $$
    SELECT pg_get_indexdef(indexrelid) FROM pg_index WHERE indrelid = $1 ORDER BY indexrelid::regclass::text $$;

-- Who may make triggers on a table doesn't have its owner decrypt for them.
CREATE TABLE diary (id integer, page encrypted_text('user_pii'), note text);
INSERT INTO diary VALUES (1, 'secret', NULL);
GRANT SELECT, UPDATE, TRIGGER ON diary TO regress_nobody;
SET ROLE regress_nobody;
CREATE TRIGGER steal BEFORE UPDATE ON diary FOR EACH ROW EXECUTE FUNCTION encryption.keep_in_step('page', 'note');
UPDATE diary SET id = 2;
\echo :LAST_ERROR_SQLSTATE
SELECT id, note FROM diary;
INSERT INTO encryption.migration VALUES
    (0, 'decrypt', 'swapped', 'diary'::regclass, 'page', 'note', 'note', 'text', 'text', 'user_pii', '{}', '{}');
\echo :LAST_ERROR_SQLSTATE
RESET ROLE;
DROP TABLE diary;

-- The plan, without what depends on the machine.
SELECT kind, object, needs, statement FROM enc_encrypt_column_plan('person', 'email', 'user_pii')
 WHERE kind NOT IN ('rows', 'bytes', 'time', 'privilege') ORDER BY 1, 2;
SELECT kind, object, effect FROM enc_encrypt_column_plan('person', 'login', 'user_pii')
 WHERE kind IN ('type', 'index');

CALL enc_encrypt_column('person', 'email', 'user_pii', 'execute');
\echo :LAST_ERROR_SQLSTATE
SELECT columns_of('person');
CALL enc_encrypt_column('person', 'email', 'user_pii', 'execute', accept => 'drop_indexes', indexes => 'concurrently');
SELECT columns_of('person');
INSERT INTO person VALUES (301, 'while@example.com');
UPDATE person SET email = 'changed@example.com' WHERE id = 2;
-- The follower can't be written to.
UPDATE person SET email_encrypted = 'other' WHERE id = 3;
INSERT INTO person (id, email, email_encrypted) VALUES (302, 'a', 'b');
\echo :LAST_ERROR_SQLSTATE
SELECT id, email, email_encrypted FROM person WHERE id IN (2, 3, 301) ORDER BY id;
ALTER TABLE person RENAME COLUMN email TO mail;
\echo :LAST_ERROR_SQLSTATE
CALL enc_encrypt_column('person', 'email', 'user_pii', 'finish');
\echo :LAST_ERROR_SQLSTATE
CALL enc_encrypt_column('person', 'email', 'user_pii', 'execute', indexes => 'inline');
SELECT columns_of('person');
SELECT indexes_of('person');
SELECT phase, job_state, rows_verified, plaintext, last_error FROM enc_stat_progress_encrypt WHERE table_name = 'person';
INSERT INTO person (id, email) VALUES (303, 'person4@example.com');
\echo :LAST_ERROR_SQLSTATE
INSERT INTO person (id, email) VALUES (303, NULL);
\echo :LAST_ERROR_SQLSTATE
INSERT INTO person (id) VALUES (303);
UPDATE person SET email = 'after@example.com' WHERE id = 5;
SELECT id, email, email_plaintext FROM person WHERE id IN (2, 5, 303) ORDER BY id;
SELECT enc_key_name(email), count(*) FROM person_view GROUP BY 1;
CALL enc_encrypt_column('person', 'email', 'user_pii', 'rollback');
SELECT columns_of('person');
SELECT indexes_of('person');
SELECT id, email FROM person WHERE id IN (2, 5, 303) ORDER BY id;
CALL enc_encrypt_column('person', 'email', 'user_pii', 'execute', accept => 'drop_indexes');
CALL enc_encrypt_column('person', 'email', 'user_pii', 'finish');
SELECT columns_of('person');
SELECT indexes_of('person');
SELECT count(*), count(DISTINCT email) FROM person_view;

-- A length limit holds as long as the plaintext column is there.
CALL enc_encrypt_column('person', 'login', 'user_pii', 'execute');
UPDATE person SET login = repeat('x', 11) WHERE id = 1;
\echo :LAST_ERROR_SQLSTATE
CALL enc_encrypt_column('person', 'login', 'user_pii', 'rollback');
CALL enc_encrypt_column('person', 'photo', 'medical', 'execute', reason => 'HIPAA');
CALL enc_encrypt_column('person', 'photo', 'medical', 'finish');
SELECT count(*) FROM person WHERE photo = sha256(id::text::bytea);

SELECT reason, regexp_replace(detail, '\d+', 'N') AS detail FROM encryption.key_event
 WHERE key_name = 'medical' AND action = 'job' ORDER BY sequence;

-- The way back.
CALL enc_decrypt_column('person', 'email', 'execute', 'varchar(100)');
CALL enc_decrypt_column('person', 'email', 'finish');
CALL enc_decrypt_column('person', 'photo', 'execute');
CALL enc_decrypt_column('person', 'photo', 'rollback');
SELECT columns_of('person');
SELECT indexes_of('person');
SELECT direction, column_name, phase, job_state FROM enc_stat_progress_encrypt WHERE table_name = 'person' ORDER BY job_id;

DROP VIEW person_view;
DROP TABLE person;
DROP FUNCTION columns_of, indexes_of;
