-- The extension goes without a trace, and comes back.
DROP CAST (encrypted_text AS bytea);
DROP CAST (bytea AS encrypted_text);
DROP CAST (encrypted_bytea AS encrypted_text);
DROP CAST (encrypted_text AS encrypted_bytea);
DROP TABLE users;
-- A composite type that outlives its encrypted attribute is analyzed as any other.
CREATE TYPE survivor AS (name text, email encrypted_text('user_pii'));
CREATE DOMAIN survivors AS survivor[];
CREATE TABLE survived (id integer, v encrypted_text('user_pii'), s survivor, ss survivors);
INSERT INTO survived SELECT i, 'x', ROW('a', 'b')::survivor, ARRAY[ROW('a', 'b')::survivor] FROM generate_series(1, 10) i;
\set VERBOSITY terse
DROP EXTENSION encryption_ext;
\set VERBOSITY default
SELECT count(*) FROM pg_type WHERE typanalyze = 'encrypted_typanalyze'::regproc AND typname ~ 'surviv';
SET client_min_messages = warning;
DROP EXTENSION encryption_ext CASCADE;
RESET client_min_messages;
ANALYZE survived;
SELECT s, ss FROM survived WHERE id = 1;
DROP TABLE survived;
DROP DOMAIN survivors;
DROP TYPE survivor;
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
CREATE TYPE survivor AS (name text, email vault.encrypted_text('user_pii'));
SET client_min_messages = warning;
DROP SCHEMA vault CASCADE;
RESET client_min_messages;
SELECT typname, typanalyze FROM pg_type WHERE typname ~ 'survivor' ORDER BY typname COLLATE "C";
DROP TYPE survivor;
CREATE ROLE regress_owner SUPERUSER;
SET ROLE regress_owner;
CREATE EXTENSION encryption_ext;
RESET ROLE;
SET client_min_messages = error;
SELECT enc_create_key('user_pii');
CREATE TYPE survivor AS (name text, email encrypted_text('user_pii'));
DROP OWNED BY regress_owner CASCADE;
RESET client_min_messages;
SELECT typname, typanalyze FROM pg_type WHERE typname ~ 'survivor' ORDER BY typname COLLATE "C";
DROP TYPE survivor;
DROP ROLE regress_owner;
DROP ROLE regress_reader, regress_writer, regress_matcher, regress_nobody;
