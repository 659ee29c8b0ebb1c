-- The lifecycle log, the ledger of backups, what a server can open, and what was restored.
\set VERBOSITY terse
SET client_min_messages = error;
SELECT enc_create_key('life', reason => 'for the life of it');
RESET client_min_messages;
SELECT enc_rotate_key('life', reason => 'it was time');
SELECT enc_rotate_key('life', activate => false);
SELECT enc_activate_key_version('life', 3, 'it is everywhere');
SELECT enc_activate_key_version('life', 2, reason => 'it is not');
SELECT enc_disable_key_version('life', 3, reason => 'until it is');
SELECT enc_enable_key_version('life', 3, 'now');
SELECT enc_grant('life', 'regress_reader', 'decrypt', 'she reads');
SELECT enc_revoke('life', 'regress_reader', reason => 'no more');

-- What is rolled back is not in it, and leaves no gap.
BEGIN;
SELECT enc_disable_key_version('life', 1);
ROLLBACK;
BEGIN;
SAVEPOINT s;
SELECT enc_disable_key_version('life', 1);
ROLLBACK TO s;
SELECT enc_rewrap_key('life');
SELECT encryption.log_event('test', 'life', 1, 2, 3, 'reason', 'detail');
COMMIT;
SELECT action, old_version, new_version, row_count, reason, detail, role_name = session_role_name AS same,
       client_address IS NULL AS local, application_name, key_version IS NOT NULL AS sealed
  FROM encryption.key_event WHERE key_name = 'life' ORDER BY sequence;
SELECT min(sequence), max(sequence) = count(*) AS complete, count(DISTINCT chain) FROM encryption.key_event;
SELECT restored, entries > 12 AS entries, unsealed, ok, first_wrong, problem FROM enc_verify_log();

-- Who acts as another is named with the one who logged in.
GRANT EXECUTE ON FUNCTION enc_create_key TO regress_writer;
SET ROLE regress_writer;
SET client_min_messages = error;
SELECT enc_create_key('life_of_writer');
RESET client_min_messages;
TABLE encryption.key_event;
DELETE FROM encryption.key_event;
SELECT enc_verify_log();
SELECT enc_export_log();
SELECT encryption.log_event('create', 'life');
SELECT enc_record_backup('of a writer', 'infinity');
SELECT enc_forget_backup('of a writer');
SELECT enc_reconcile();
SELECT enc_export_keys();
SELECT enc_import_keys('{}');
RESET ROLE;
REVOKE EXECUTE ON FUNCTION enc_create_key FROM regress_writer;
SELECT role_name, session_role_name = current_user AS by_superuser FROM encryption.key_event WHERE key_name = 'life_of_writer';

-- As lines of JSON.
SELECT (line::jsonb) - '{chain,sequence,occurred_at,sealed_at,digest,key_version,session_role,role}'::text[] AS line
  FROM enc_export_log() AS line WHERE line LIKE '%"rotate"%' AND line::jsonb ->> 'key' = 'life';
SELECT count(*) = (SELECT count(*) FROM encryption.key_event) AS complete,
       bool_and(line::jsonb ? 'digest' AND line::jsonb ->> 'occurred_at' LIKE '____-__-__T__:__:__.______Z') AS formed
  FROM enc_export_log() AS line;
SELECT count(*) FROM enc_export_log(since => now() + interval '1 day');
SELECT count(*) FROM enc_export_log(until => now() - interval '1 day');

-- Every alteration shows, and where.
SELECT sequence AS third FROM encryption.key_event WHERE key_name = 'life' AND action = 'rotate' AND reason IS NOT NULL \gset
CREATE PROCEDURE tampered(change text) LANGUAGE plpgsql AS $$
DECLARE
    said record;
BEGIN
    EXECUTE change;
    SELECT * INTO said FROM enc_verify_log();
    RAISE NOTICE 'ok: %, at the one expected: %, %', said.ok,
        said.first_wrong = current_setting('regress.third')::bigint, said.problem;
    RAISE EXCEPTION SQLSTATE 'RB000';
EXCEPTION WHEN SQLSTATE 'RB000' THEN
    NULL;
END $$;
SELECT set_config('regress.third', :'third', false) = :'third' AS set;
CALL tampered('SELECT');
CALL tampered('UPDATE encryption.key_event SET reason = NULL WHERE sequence = ' || :third);
CALL tampered('UPDATE encryption.key_event SET occurred_at = occurred_at - interval ''1 microsecond'' WHERE sequence = ' || :third);
CALL tampered('UPDATE encryption.key_event SET occurred_at = ''infinity'' WHERE sequence = ' || :third);
CALL tampered('UPDATE encryption.key_event SET role_name = ''regress_reader'' WHERE sequence = ' || :third);
CALL tampered('UPDATE encryption.key_event SET key_version = 4711 WHERE sequence = ' || :third);
CALL tampered('UPDATE encryption.key_event SET digest = sha256(digest) WHERE sequence = ' || :third);
CALL tampered('UPDATE encryption.key_event SET digest = NULL WHERE sequence = ' || :third);
CALL tampered('UPDATE encryption.key_event SET digest = NULL, sealed_at = NULL, key_version = NULL WHERE sequence >= ' || :third);
CALL tampered('DELETE FROM encryption.key_event WHERE sequence = ' || :third);
CALL tampered('DELETE FROM encryption.key_event WHERE sequence >= ' || :third);
CALL tampered('DELETE FROM encryption.key_event WHERE sequence >= ' || :third || ';
    UPDATE encryption.event_chain SET entries = ' || :third || ' - 1, sealed = ' || :third || ' - 1');
CALL tampered('DELETE FROM encryption.key_event WHERE sequence >= ' || :third || ';
    UPDATE encryption.event_chain SET entries = ' || :third || ' - 1, sealed = 0');
CALL tampered('UPDATE encryption.event_chain SET digest = NULL');
CALL tampered('DELETE FROM encryption.event_chain');
CALL tampered('UPDATE encryption.key_event SET sequence = sequence + 1000 WHERE sequence >= ' || :third);
-- An entry that is added behind the library's back.
CALL tampered('INSERT INTO encryption.key_event (chain, sequence, action, role_name, session_role_name, application_name)
    SELECT chain, entries + 2, ''grant'', ''postgres'', ''postgres'', '''' FROM encryption.event_chain');
-- The next entry does not make up for it.
CALL tampered('DELETE FROM encryption.key_event WHERE sequence = ' || :third || ';
    SELECT enc_rotate_key(''life'')');
DROP PROCEDURE tampered;
SELECT ok FROM enc_verify_log();

-- Without the database key the entry waits for the next, and operations go on.
SET client_min_messages = error;
SELECT enc_disable_key_version('database', version, force => true) FROM enc_key_versions WHERE name = 'database' AND state = 'active';
SELECT enc_revoke('life', 'public', reason => 'it burns');
RESET client_min_messages;
SELECT enc_grant('life', 'public', 'compare');
SELECT unsealed, ok, problem FROM enc_verify_log();
CREATE TEMP TABLE dumped_chain AS SELECT * FROM encryption.event_chain;
CREATE TEMP TABLE dumped_event AS SELECT * FROM encryption.key_event;
SET client_min_messages = error;
SELECT enc_enable_key_version('database', max(version)) FROM enc_key_versions WHERE name = 'database' AND state = 'disabled';
SELECT enc_activate_key_version('database', max(version)) FROM enc_key_versions WHERE name = 'database';
RESET client_min_messages;
SELECT unsealed, ok, problem FROM enc_verify_log();
SELECT count(*) FROM encryption.key_event WHERE digest IS NULL;
-- A dump that was made before is restored elsewhere, and then one that was made now.
BEGIN;
CREATE TEMP TABLE chain_now ON COMMIT DROP AS SELECT * FROM encryption.event_chain;
CREATE TEMP TABLE event_now ON COMMIT DROP AS SELECT * FROM encryption.key_event;
DELETE FROM encryption.key_event;
DELETE FROM encryption.event_chain;
INSERT INTO encryption.event_chain SELECT * FROM dumped_chain;
INSERT INTO encryption.key_event SELECT * FROM dumped_event;
SELECT restored, unsealed, ok, problem FROM enc_verify_log();
SELECT enc_revoke('life', 'public');
INSERT INTO encryption.event_chain SELECT * FROM chain_now;
INSERT INTO encryption.key_event SELECT * FROM event_now;
INSERT INTO encryption.event_chain SELECT * FROM dumped_chain;
INSERT INTO encryption.key_event SELECT * FROM dumped_event;
SELECT restored, entries = (SELECT count(*) FROM event_now) AS all_entries, unsealed, ok, problem FROM enc_verify_log();
SELECT count(*) FROM (SELECT * FROM event_now EXCEPT SELECT * FROM encryption.key_event) d;
ROLLBACK;
DROP TABLE dumped_chain, dumped_event;

-- Backups, and what they need.
SELECT enc_record_backup('sunday', '2100-01-01', reason => 'full') > 3 AS versions;
SELECT enc_record_backup('monday', now() - interval '1 second') > 3 AS versions;
SELECT enc_record_backup('dump', '2099-01-01', with_wal => false) > 3 AS versions;
SELECT label, is_retained, with_wal, key_name, versions FROM enc_backups WHERE key_name = 'life';
SELECT version, encryption.retained_by_backup(key_id, version)
  FROM encryption.key, generate_series(1, 4) version WHERE name = 'life';
SELECT enc_forget_backup('sunday', 'shredded');
-- Made after the backup, which has no WAL: not needed.
SELECT version, encryption.retained_by_backup(key_id, version)
  FROM encryption.key, generate_series(1, 4) version WHERE name = 'life';
SELECT enc_forget_backup('sunday');
\echo :LAST_ERROR_SQLSTATE
-- Recorded again, it is retained for the longer time.
SELECT enc_record_backup('dump', '2098-01-01') > 3 AS versions;
SELECT DISTINCT label, retained_until, with_wal FROM enc_backups WHERE label = 'dump';
SELECT enc_record_backup('', 'infinity');
SELECT enc_record_backup(NULL, 'infinity');
SELECT enc_record_backup('x', NULL);
SELECT action, detail, reason FROM encryption.key_event WHERE action LIKE '%-backup' ORDER BY sequence;
SELECT enc_forget_backup('dump'), enc_forget_backup('monday');

-- What this server can open.
SELECT name, version, state, provider, ok, detail, milliseconds >= 0 AS timed FROM enc_check_key('life');
SELECT count(*) > 4 AS all_keys, bool_and(ok), bool_or(in_recovery) FROM enc_key_checks;
SELECT enc_check_key('no_such_key');
\echo :LAST_ERROR_SQLSTATE
SET ROLE regress_reader;
SELECT enc_check_key('life');
\echo :LAST_ERROR_SQLSTATE
SELECT count(*) FROM enc_key_checks;
RESET ROLE;
SET ROLE regress_writer;
SELECT name, version, ok FROM enc_key_checks;
RESET ROLE;

-- The catalog compared with the provider.
SELECT name, version, finding, detail FROM enc_reconcile('life');
BEGIN;
DELETE FROM encryption.key_version USING encryption.key WHERE key.key_id = key_version.key_id AND name = 'life' AND version > 1;
UPDATE encryption.key_version SET state = 'active' FROM encryption.key WHERE key.key_id = key_version.key_id AND name = 'life';
SELECT name, version, finding, detail FROM enc_reconcile('life');
SELECT name, version, finding, detail FROM enc_reconcile('life', adopt => true, reason => 'restored');
SELECT version, state FROM enc_key_versions WHERE name = 'life';
SELECT action, old_version, new_version, reason, detail FROM encryption.key_event
 WHERE key_name = 'life' AND action IN ('adopt', 'reconcile') ORDER BY sequence;
SELECT ok FROM enc_verify_log();
ROLLBACK;
BEGIN;
UPDATE encryption.key_version SET check_value = substr(sha256('other'), 1, 16)
  FROM encryption.key WHERE key.key_id = key_version.key_id AND name = 'life' AND version = 1;
SELECT name, version, finding, detail FROM enc_reconcile('life');
UPDATE encryption.key_version SET reference = 'life:99'
  FROM encryption.key WHERE key.key_id = key_version.key_id AND name = 'life' AND version = 1;
SELECT name, version, finding FROM enc_reconcile('life');
ROLLBACK;
-- A database that was restored from a dump says so once a session, until it was compared.
BEGIN;
UPDATE encryption.keyspace SET system_identifier = NULL;
COMMIT;
\c -
\set VERBOSITY terse
CREATE TABLE t (v encrypted_text('life'));
INSERT INTO t VALUES ('once'), ('a session');
SELECT * FROM t;
SELECT count(*) > 2 AS compared FROM enc_reconcile();
\c -
\set VERBOSITY terse
SELECT * FROM t;
SELECT system_identifier = (SELECT system_identifier FROM pg_control_system()) AS here, timeline,
       base_backup, reconciled_at IS NOT NULL AS reconciled FROM encryption.keyspace;
DROP TABLE t;

-- Keys as one document, and back.
SELECT enc_export_keys() AS document \gset
SELECT document ->> 'format' AS format, jsonb_array_length(document -> 'keys') > 3 AS keys,
       document #>> '{keyspace,id}' = (SELECT id::text FROM encryption.keyspace) AS keyspace
  FROM (SELECT :'document'::jsonb) d (document);
SELECT enc_import_keys(:'document');
BEGIN;
CREATE TEMP TABLE v ON COMMIT DROP AS SELECT * FROM encryption.key_version;
CREATE TEMP TABLE g ON COMMIT DROP AS SELECT * FROM encryption.key_grant;
DELETE FROM encryption.key_grant;
DELETE FROM encryption.key_version;
DELETE FROM encryption.key;
UPDATE encryption.keyspace SET id = gen_random_uuid();
SET LOCAL client_min_messages = error;
SELECT enc_import_keys(:'document', 'moved') = (SELECT count(*) FROM v) AS every_version;
SELECT count(*) FROM (SELECT * FROM encryption.key_version EXCEPT SELECT * FROM v) d;
SELECT count(*) FROM (SELECT * FROM encryption.key_grant EXCEPT SELECT * FROM g) d;
SELECT count(*) = (SELECT count(*) FROM g) AS every_grant FROM encryption.key_grant;
SELECT system_identifier IS NULL AS must_be_compared FROM encryption.keyspace;
ROLLBACK;
-- Roles that are not here.
BEGIN;
SELECT enc_import_keys(jsonb_set(jsonb_set(:'document', '{keys}', jsonb_build_array(jsonb_build_object(
    'name', 'imported', 'owner', 'regress_gone', 'created_at', now(),
    'versions', (SELECT jsonb_agg(v || '{"created_by": "regress_gone", "keyspace": "00000000-0000-0000-0000-000000000001"}')
                   FROM jsonb_array_elements(:'document'::jsonb #> '{keys,0,versions}') v),
    'grants', jsonb_build_array(
        jsonb_build_object('grantee', 'regress_gone', 'privilege', 'decrypt', 'granted_by', 'postgres', 'granted_at', now()),
        jsonb_build_object('grantee', NULL, 'privilege', 'compare', 'granted_by', 'postgres', 'granted_at', now()))))),
    '{keyspace,id}', '"00000000-0000-0000-0000-000000000001"'));
SELECT owner = current_user::regrole AS mine FROM enc_keys WHERE name = 'imported';
SELECT grantee, privilege FROM enc_key_grants WHERE name = 'imported';
ROLLBACK;
-- Another key under the same name is refused.
SELECT enc_import_keys(jsonb_set(:'document', '{keys,0,versions,0,check_value}', '"00000000000000000000000000000000"'));
\echo :LAST_ERROR_SQLSTATE
SELECT enc_import_keys('{"format": 2, "keys": []}');
\echo :LAST_ERROR_SQLSTATE
SELECT enc_import_keys(NULL);

-- The log of a dump of this database meets what is here, and what is not.
BEGIN;
CREATE TEMP TABLE e AS SELECT * FROM encryption.key_event;
CREATE TEMP TABLE c AS SELECT * FROM encryption.event_chain;
INSERT INTO encryption.event_chain SELECT * FROM c;
INSERT INTO encryption.key_event SELECT * FROM e ORDER BY sequence;
SAVEPOINT s;
UPDATE e SET reason = 'of old' WHERE sequence = 2;
INSERT INTO encryption.key_event SELECT * FROM e ORDER BY sequence;
\echo :LAST_ERROR_SQLSTATE
ROLLBACK TO s;
DELETE FROM encryption.key_event WHERE sequence > 5;
INSERT INTO encryption.key_event SELECT * FROM e ORDER BY sequence;
\echo :LAST_ERROR_SQLSTATE
ROLLBACK TO s;
ROLLBACK;
SELECT ok FROM enc_verify_log();
