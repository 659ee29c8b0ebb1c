-- The extension goes without a trace, and comes back.
DROP CAST (encrypted_text AS bytea);
DROP CAST (bytea AS encrypted_text);
DROP CAST (encrypted_bytea AS encrypted_text);
DROP CAST (encrypted_text AS encrypted_bytea);
DROP TABLE users;
DROP EXTENSION encryption_ext;
SELECT nspname FROM pg_namespace WHERE nspname = 'encryption';
SELECT count(*) FROM pg_proc WHERE proname LIKE 'enc\_%' OR proname LIKE 'encrypted\_%';
-- In a schema of one's choice. The keyring file still has the keys: they are adopted.
CREATE SCHEMA vault;
CREATE EXTENSION encryption_ext SCHEMA vault;
SET client_min_messages = error;
SELECT vault.enc_create_key('user_pii');
SELECT name, version, state FROM vault.enc_key_versions WHERE name = 'user_pii';
RESET client_min_messages;
CREATE TABLE t (v vault.encrypted_text('user_pii'));
INSERT INTO t VALUES ('in another schema');
SELECT * FROM t WHERE v OPERATOR(vault.=) 'in another schema';
SELECT count(*) FROM t WHERE v::text = 'in another schema';
CREATE TABLE bare (v vault.encrypted_text);
DROP TABLE t;
DROP EXTENSION encryption_ext;
DROP SCHEMA vault;
DROP ROLE regress_reader, regress_writer, regress_matcher, regress_nobody;
