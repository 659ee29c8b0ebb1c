-- What a restored dump meets in the catalog: skipped if it is there, refused if it conflicts.
BEGIN;
CREATE TEMP TABLE k AS SELECT * FROM encryption.key;
CREATE TEMP TABLE v AS SELECT * FROM encryption.key_version;
CREATE TEMP TABLE g AS SELECT * FROM encryption.key_grant;
CREATE TEMP TABLE c AS SELECT * FROM encryption.event_chain;
CREATE TEMP TABLE e AS SELECT * FROM encryption.key_event;
SELECT enc_record_backup('catalog', 'infinity') > 0 AS recorded;
CREATE TEMP TABLE b AS SELECT * FROM encryption.backup;
CREATE TEMP TABLE n AS SELECT * FROM encryption.backup_version;
CREATE TEMP TABLE s AS SELECT * FROM encryption.keyspace;
INSERT INTO encryption.keyspace SELECT * FROM s;
INSERT INTO encryption.key SELECT * FROM k;
INSERT INTO encryption.key_version SELECT * FROM v;
INSERT INTO encryption.key_grant SELECT * FROM g;
INSERT INTO encryption.event_chain SELECT * FROM c;
INSERT INTO encryption.key_event SELECT * FROM e;
INSERT INTO encryption.backup SELECT * FROM b;
INSERT INTO encryption.backup_version SELECT * FROM n;
-- Another database's keyspace doesn't replace that of versions that are here.
INSERT INTO encryption.keyspace (id) VALUES ('00000000-0000-0000-0000-000000000001');
SELECT (SELECT id FROM encryption.keyspace) = (SELECT id FROM s) AS kept;
-- A destroyed version stays destroyed.
UPDATE encryption.key_version SET state = 'destroyed' WHERE version = 1;
INSERT INTO encryption.key_version SELECT * FROM v;
SELECT DISTINCT state FROM encryption.key_version WHERE version = 1;
ROLLBACK;

-- Into an empty catalog everything comes back, the keyspace too.
BEGIN;
CREATE TEMP TABLE k ON COMMIT DROP AS SELECT * FROM encryption.key;
CREATE TEMP TABLE v ON COMMIT DROP AS SELECT * FROM encryption.key_version;
CREATE TEMP TABLE s ON COMMIT DROP AS SELECT * FROM encryption.keyspace;
DELETE FROM encryption.key_grant;
DELETE FROM encryption.key_version;
DELETE FROM encryption.key;
UPDATE encryption.keyspace SET id = gen_random_uuid();
INSERT INTO encryption.key SELECT * FROM k;
INSERT INTO encryption.key_version SELECT * FROM v;
INSERT INTO encryption.keyspace SELECT * FROM s; -- pg_dump's order
SELECT count(*) FROM (SELECT * FROM encryption.key_version EXCEPT SELECT * FROM v) d;
SELECT (SELECT id FROM encryption.keyspace) = (SELECT id FROM s) AS restored;
ROLLBACK;

-- Conflicts.
INSERT INTO encryption.key_version
SELECT v.key_id, version, state, provider, reference, wrapped, substr(sha256('other'), 1, 16), keyspace, v.created_at, created_by
  FROM encryption.key_version v JOIN encryption.key USING (key_id) WHERE name = 'medical' AND version = 1;
\echo :LAST_ERROR_SQLSTATE
INSERT INTO encryption.key (key_id, name, owner) SELECT key_id, 'kba8b256', owner FROM encryption.key WHERE name = 'user_pii';
\echo :LAST_ERROR_SQLSTATE
\set VERBOSITY terse
INSERT INTO encryption.key (key_id, name, owner) VALUES (1, 'not_its_id', current_role::regrole) RETURNING 'inserted';
\set VERBOSITY default
-- A newer active version of another database doesn't become the active one here.
BEGIN;
INSERT INTO encryption.key_version (key_id, version, state, provider, reference, check_value, keyspace, created_by)
SELECT key_id, 77, 'active', provider, reference, check_value, keyspace, created_by
  FROM encryption.key_version JOIN encryption.key USING (key_id) WHERE name = 'medical' AND version = 1;
SELECT version, state FROM enc_key_versions WHERE name = 'medical';
ROLLBACK;

-- Plain DML, as by a superuser in need, is seen at once too.
CREATE TABLE t (v encrypted_text('medical'));
INSERT INTO t VALUES ('x');
BEGIN;
UPDATE encryption.key_version SET state = 'disabled' FROM encryption.key WHERE key.key_id = key_version.key_id AND name = 'medical';
SELECT v FROM t;
ROLLBACK;
SELECT v FROM t;
-- A key check value that differs: another key came back.
BEGIN;
UPDATE encryption.key_version SET check_value = substr(sha256('other'), 1, 16)
  FROM encryption.key WHERE key.key_id = key_version.key_id AND name = 'medical';
SELECT enc_flush_cache();
SELECT v FROM t;
\echo :LAST_ERROR_SQLSTATE
ROLLBACK;
SELECT v FROM t;
DROP TABLE t;
-- Everything of the extension is the extension's.
SELECT count(*) FROM pg_proc p LEFT JOIN pg_depend d ON d.objid = p.oid AND d.deptype = 'e'
 WHERE p.probin LIKE '%encryption_ext%' AND d.objid IS NULL;
