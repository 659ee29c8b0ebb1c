-- Columns that name no key are refused, wherever they come from.
CREATE TABLE bare (v encrypted_text);
\echo :LAST_ERROR_SQLSTATE
CREATE TABLE bare (v encrypted_bytea[]);
CREATE TABLE bare (id integer);
ALTER TABLE bare ADD COLUMN v encrypted_text;
ALTER TABLE bare ADD COLUMN v encrypted_text('user_pii');
ALTER TABLE bare ALTER COLUMN v TYPE encrypted_text;
CREATE TABLE bare_copy AS SELECT 'x'::encrypted_text AS v;
SELECT 'x'::encrypted_text AS v INTO bare_copy;
CREATE MATERIALIZED VIEW bare_matview AS SELECT enc_rotate(v) AS v FROM bare;
CREATE TYPE bare_type AS (v encrypted_text);
CREATE DOMAIN bare_domain AS encrypted_text;
CREATE DOMAIN bare_domain AS encrypted_text[];
CREATE SCHEMA bare_schema CREATE TABLE bare (v encrypted_text);
CREATE TYPE bare_range AS RANGE (subtype = encrypted_text);
CREATE DOMAIN bare_domain AS encrypted_text('user_pii');
CREATE TABLE of_domain (v bare_domain);
CREATE TABLE partitioned (id integer, v encrypted_bytea) PARTITION BY LIST (id);
CREATE FOREIGN DATA WRAPPER nowhere;
CREATE SERVER nowhere FOREIGN DATA WRAPPER nowhere;
CREATE FOREIGN TABLE bare_foreign (v encrypted_text) SERVER nowhere;
CREATE TEMP TABLE bare_temp (v encrypted_text);
SELECT relname FROM pg_class WHERE relname LIKE 'bare%' AND relkind <> 'c' ORDER BY 1;
-- A view stores nothing.
CREATE VIEW bare_view AS SELECT enc_rotate(v) AS v FROM bare;
DROP FOREIGN DATA WRAPPER nowhere CASCADE;

-- LIKE and inheritance take the modifier along.
CREATE TABLE alike (LIKE bare INCLUDING ALL);
CREATE TABLE heir () INHERITS (bare);
SELECT attrelid::regclass, format_type(atttypid, atttypmod) FROM pg_attribute
 WHERE attname = 'v' AND attrelid IN ('bare'::regclass, 'alike'::regclass, 'heir'::regclass) ORDER BY 1;

-- With a default key they get it.
SET encryption_ext.default_key = 'no_such_key';
CREATE TABLE defaulted (v encrypted_text);
SET encryption_ext.default_key = '../x';
CREATE TABLE defaulted (v encrypted_text);
\echo :LAST_ERROR_SQLSTATE
SET encryption_ext.default_key = 'medical';
CREATE TABLE defaulted (id integer PRIMARY KEY, "Odd ""name" encrypted_text, w encrypted_bytea[], x encrypted_text('user_pii'));
ALTER TABLE defaulted ADD COLUMN y encrypted_text;
\d defaulted
INSERT INTO defaulted VALUES (1, 'a', '{}', 'b', 'c');
SELECT enc_key_name("Odd ""name"), enc_key_name(x), enc_key_name(y) FROM defaulted;
CREATE TABLE defaulted_copy AS SELECT 'made by a query'::encrypted_text AS v;
SELECT v, enc_key_name(v) FROM defaulted_copy;
CREATE TYPE defaulted_type AS (v encrypted_text);
RESET encryption_ext.default_key;

-- While a dump is restored it is a warning: what was there comes back.
SET check_function_bodies = off;
CREATE TABLE restored (v encrypted_text);
CREATE TABLE before_its_key (v encrypted_text('key_of_another_database'));
RESET check_function_bodies;
\d before_its_key
INSERT INTO before_its_key VALUES ('x');
\echo :LAST_ERROR_SQLSTATE
DROP TABLE bare, alike, heir, of_domain, defaulted, defaulted_copy, restored, before_its_key CASCADE;
DROP DOMAIN bare_domain;
