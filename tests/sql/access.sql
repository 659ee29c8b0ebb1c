-- Who may do what with a key, apart from the rights on the table.
CREATE TABLE secrets (id integer, v encrypted_text('user_pii'), m encrypted_text('medical'));
INSERT INTO secrets VALUES (1, 'one', 'm one'), (2, 'two', 'm two');
GRANT ALL ON secrets TO PUBLIC;

SET ROLE regress_nobody;
SELECT id FROM secrets WHERE v IS NOT NULL ORDER BY id;
SELECT enc_key_name(v), enc_key_version(v) FROM secrets WHERE id = 1;
SELECT v FROM secrets;
\echo :LAST_ERROR_SQLSTATE
SELECT v::text FROM secrets;
SELECT v::varchar FROM secrets;
SELECT v::bpchar FROM secrets;
SELECT v::name FROM secrets;
SELECT lower(v) FROM secrets;
SELECT id FROM secrets WHERE v = 'one';
\echo :LAST_ERROR_SQLSTATE
SELECT id FROM secrets WHERE v < 'one';
SELECT id FROM secrets ORDER BY v;
SELECT DISTINCT v FROM secrets;
SELECT array_agg(v) FROM secrets;
SELECT secrets FROM secrets;
SELECT to_json(v) FROM secrets;
COPY secrets TO stdout;
INSERT INTO secrets VALUES (3, 'three');
UPDATE secrets SET v = 'x';
SELECT enc_rotate(v) IS NULL FROM secrets;
-- Copying ciphertext to a column of the same key tells nothing, and is allowed.
INSERT INTO secrets (id, v) SELECT 9, v FROM secrets WHERE id = 1;
-- Under another key it would.
UPDATE secrets SET m = v;
RESET ROLE;
DELETE FROM secrets WHERE id = 9;

SET ROLE regress_writer;
INSERT INTO secrets (id, v) VALUES (3, 'three');
SELECT v FROM secrets;
SELECT id FROM secrets WHERE v = 'one';
UPDATE secrets SET v = enc_rotate(v);
RESET ROLE;

SET ROLE regress_matcher;
SELECT id FROM secrets WHERE v = 'three';
SELECT id FROM secrets WHERE v <> 'three' ORDER BY id;
SELECT id FROM secrets WHERE v < 'three';
SELECT v FROM secrets;
INSERT INTO secrets (id, v) VALUES (4, 'four');
RESET ROLE;

SET ROLE regress_reader;
SELECT id, v FROM secrets ORDER BY v;
SELECT id FROM secrets WHERE v = 'two';
SELECT m FROM secrets;
INSERT INTO secrets (id, v) VALUES (4, 'four');
-- decrypt on the source is not encrypt on the target.
UPDATE secrets SET m = v;
RESET ROLE;

-- Membership, PUBLIC, and what is taken back.
GRANT regress_reader TO regress_nobody;
SET ROLE regress_nobody;
SELECT v FROM secrets WHERE id = 1;
RESET ROLE;
REVOKE regress_reader FROM regress_nobody;
SET ROLE regress_nobody;
SELECT v FROM secrets WHERE id = 1;
RESET ROLE;
SELECT enc_grant('user_pii', 'public', 'compare');
SET ROLE regress_nobody;
SELECT id FROM secrets WHERE v = 'one';
RESET ROLE;
SELECT enc_revoke('user_pii', 'public');
SET ROLE regress_nobody;
SELECT id FROM secrets WHERE v = 'one';
RESET ROLE;
SELECT enc_grant('user_pii', 'regress_nobody', 'encrypt, compare ,DECRYPT');
SELECT enc_revoke('user_pii', 'regress_nobody', 'decrypt');
SELECT privilege FROM enc_key_grants WHERE grantee = 'regress_nobody' ORDER BY 1;
SELECT enc_revoke('user_pii', 'regress_nobody');
SELECT enc_grant('user_pii', 'regress_nobody', 'everything');
\echo :LAST_ERROR_SQLSTATE
SELECT enc_grant('user_pii', 'no_such_role', 'decrypt');
SELECT enc_grant('no_such_key', 'regress_nobody', 'decrypt');

-- The grants of a role that was dropped go with the next change.
CREATE ROLE regress_passing;
SELECT enc_grant('user_pii', 'regress_passing', 'decrypt');
DROP ROLE regress_passing;
SELECT count(*) FROM enc_key_grants WHERE grantee LIKE 'unknown%';
SELECT enc_grant('user_pii', 'regress_nobody', 'compare');
SELECT enc_revoke('user_pii', 'regress_nobody');
SELECT count(*) FROM enc_key_grants WHERE grantee LIKE 'unknown%';

-- Keys belong to who made them.
SET ROLE regress_nobody;
SELECT enc_create_key('mine');
SELECT enc_rotate_key('user_pii');
\echo :LAST_ERROR_SQLSTATE
SELECT enc_disable_key_version('user_pii', 1);
SELECT enc_activate_key_version('user_pii', 1);
SELECT enc_grant('user_pii', 'regress_nobody', 'decrypt');
SELECT enc_revoke('user_pii', 'regress_reader');
RESET ROLE;
GRANT EXECUTE ON FUNCTION enc_create_key TO regress_nobody;
SET client_min_messages = error;
SET ROLE regress_nobody;
SELECT enc_create_key('mine');
SELECT 'x'::encrypted_text('mine');
SELECT enc_rotate_key('mine');
SELECT enc_grant('mine', 'regress_reader', 'decrypt');
SELECT enc_rotate_key('database');
-- The catalog is out of reach, the views are not.
SELECT * FROM encryption.key_version;
INSERT INTO encryption.key_grant VALUES (1, 'regress_nobody', 'decrypt', 'regress_nobody');
SELECT name, owner FROM enc_keys WHERE owner = 'regress_nobody'::regrole;
SELECT count(*) > 3 FROM enc_key_versions;
SELECT count(*) FROM enc_key_grants WHERE name = 'mine';
SELECT count(*) FROM enc_stat_cache;
SELECT count(*) >= 0 FROM enc_stat_cache_keys;
SET encryption_ext.provider = 'vault';
\set VERBOSITY sqlstate
SHOW encryption_ext.keyring_file;
\set VERBOSITY default
RESET ROLE;
RESET client_min_messages;

-- SECURITY DEFINER, and views: PostgreSQL's rules.
CREATE FUNCTION reveal(integer) RETURNS text LANGUAGE sql SECURITY DEFINER AS
    'SELECT v::text FROM secrets WHERE id = $1';
CREATE VIEW secrets_view AS SELECT id, v FROM secrets;
GRANT SELECT ON secrets_view TO PUBLIC;
SET ROLE regress_nobody;
SELECT reveal(1);
SELECT v FROM secrets_view;
RESET ROLE;

-- What was hashed with the rights of another is not compared with these.
CREATE FUNCTION hashed(integer) RETURNS boolean LANGUAGE sql SECURITY DEFINER AS
    'SELECT encrypted_text_hash(v) IS NOT NULL FROM secrets WHERE id = $1';
SELECT hashed(id), v = 'one' FROM secrets WHERE id = 1;
SET ROLE regress_nobody;
SELECT hashed(id), v = 'one' FROM secrets WHERE id = 1;
RESET ROLE;

-- A plan made for one role and run by another.
PREPARE peek AS SELECT v FROM secrets WHERE id = 1;
EXECUTE peek;
SET ROLE regress_nobody;
EXECUTE peek;
RESET ROLE;
DEALLOCATE peek;
REVOKE EXECUTE ON FUNCTION enc_create_key FROM regress_nobody;
DROP VIEW secrets_view;
DROP FUNCTION reveal, hashed;
DROP TABLE secrets;
