-- What is said about keys, and what operators and auditors are shown. None of it calls a provider.
SET client_min_messages = warning;
SET timezone = 'UTC';
CREATE ROLE regress_owners;
CREATE ROLE regress_key_admin IN ROLE regress_owners;
CREATE ROLE regress_monitor IN ROLE pg_monitor;
GRANT EXECUTE ON FUNCTION enc_create_key TO regress_key_admin;

SET client_min_messages = error;
SELECT enc_create_key('health', purpose => 'records of patients', labels => '{pci,gdpr,pci}', rotation_period => '90 days');
SET client_min_messages = warning;
SELECT name, owner = current_user::regrole AS mine, purpose, labels, rotation_period FROM enc_keys WHERE name IN ('health', 'user_pii') ORDER BY name;
-- What is null stays, and what is empty goes.
SELECT enc_set_key_info('health');
SELECT enc_set_key_info('health', rotation_period => '1 year 2 mons 3 days 04:05:06', reason => 'policy 7');
SELECT purpose, labels, rotation_period FROM enc_keys WHERE name = 'health';
SELECT enc_set_key_info('health', purpose => '', labels => '{}', rotation_period => '0');
SELECT purpose, labels, rotation_period FROM enc_keys WHERE name = 'health';
SELECT enc_set_key_info('health', purpose => 'records', labels => '{gdpr}', rotation_period => '1 year');
SELECT action, detail, reason FROM encryption.key_event WHERE key_name = 'health' ORDER BY sequence;

SELECT enc_set_key_info('no_such_key', labels => '{a}');
SELECT enc_set_key_info(NULL, labels => '{a}');
SELECT enc_set_key_info('health', labels => '{Upper}');
SELECT enc_set_key_info('health', labels => '{a,NULL}');
SELECT enc_set_key_info('health', labels => '{"a b"}');
SELECT enc_set_key_info('health', labels => ARRAY(SELECT 'label' || n FROM generate_series(1, 33) n));
SELECT enc_set_key_info('health', rotation_period => '-1 second');
SELECT enc_set_key_info('health', rotation_period => '1 mon -1 day');
SELECT enc_set_key_info('health', rotation_period => '100 years 1 day');
SELECT enc_set_key_info('health', purpose => repeat('x', 1001));
SELECT enc_set_key_info('health', purpose => E'two\nlines');
SELECT enc_set_key_info('health', owner => 'regress_no_such_role');
-- The table says the same of what is written to it.
\set VERBOSITY terse
UPDATE encryption.key SET labels = '{Upper}' WHERE name = 'health';
UPDATE encryption.key SET labels = '{NULL}' WHERE name = 'health';
UPDATE encryption.key SET rotation_period = '-1 day' WHERE name = 'health';
UPDATE encryption.key SET rotation_period = '1 mon -28 days' WHERE name = 'health';
\set VERBOSITY default

-- An owner gives a key away to whom it may become.
SET ROLE regress_key_admin;
SELECT enc_set_key_info('health', purpose => 'mine');
SET client_min_messages = error;
SELECT enc_create_key('health.given', owner => 'regress_owners');
SET client_min_messages = warning;
\set VERBOSITY sqlstate
SELECT enc_set_key_info('health.given', owner => 'regress_monitor');
\set VERBOSITY default
SELECT enc_set_key_info('health.given', owner => 'regress_key_admin', reason => 'handover');
SELECT owner FROM enc_keys WHERE name = 'health.given';
RESET ROLE;
SET ROLE regress_owners;
SELECT enc_set_key_info('health.given', purpose => 'no longer mine');
RESET ROLE;

-- Exported, and brought in again.
SELECT k -> 'purpose' AS purpose, k -> 'labels' AS labels, k -> 'rotation_period' AS period
  FROM jsonb_array_elements(enc_export_keys() -> 'keys') k WHERE k ->> 'name' = 'health';
BEGIN;
CREATE TEMP TABLE exported ON COMMIT DROP AS SELECT enc_export_keys() AS document;
DELETE FROM encryption.key WHERE name = 'health';
SELECT enc_import_keys(document) FROM exported;
SELECT owner = current_user::regrole AS mine, purpose, labels, rotation_period FROM enc_keys WHERE name = 'health';
-- One that was made before there was anything to be said.
DELETE FROM encryption.key WHERE name = 'health';
SELECT enc_import_keys(jsonb_set(document, '{keys}', (
    SELECT jsonb_agg(k - 'purpose' - 'labels' - 'rotation_period') FROM jsonb_array_elements(document -> 'keys') k)))
  FROM exported;
SELECT purpose, labels, rotation_period FROM enc_keys WHERE name = 'health';
-- What is here stays.
UPDATE encryption.key SET purpose = 'here' WHERE name = 'health';
SELECT enc_import_keys(document) FROM exported;
SELECT purpose, labels FROM enc_keys WHERE name = 'health';
ROLLBACK;

-- Keys by age and state, and what the cache has.
SELECT enc_rotate_key('health'), enc_rotate_key('health', activate => false);
SELECT enc_disable_key_version('health', 1);
SELECT name, active_version, age < '1 hour' AS young, rotation_due - active_since = '1 year' AS due_in_a_year, is_overdue,
       pending_versions, active_versions, deprecated_versions, disabled_versions, destroyed_versions
  FROM enc_stat_key WHERE name = 'health';
SELECT enc_flush_cache();
SELECT scope, cached_until, usable_until, check_value_ok, encryptions FROM enc_stat_key WHERE name = 'health';
CREATE TABLE healthy (id integer, email text, note encrypted_text('health'), first_name varchar(20), remail text, payload jsonb);
INSERT INTO healthy (note) VALUES ('x');
SELECT scope, cached_until - now() BETWEEN '55 minutes' AND '1 hour' AS an_hour,
       usable_until - cached_until AS grace, check_value_ok, encryptions
  FROM enc_stat_key WHERE name = 'health';

-- Health: everything is as it should be.
SELECT check_name, subject, status, detail FROM enc_health()
 WHERE subject IN ('health', 'file', 'all', 'lifecycle log') AND check_name NOT IN ('rotation')
 ORDER BY check_name, subject;
SELECT DISTINCT status FROM enc_health() WHERE check_name <> 'job';
SELECT enc_ready();
-- Overdue, past its grace, restored, no digest: warnings, and statements go on.
BEGIN;
UPDATE encryption.key_version v SET activated_at = now() - interval '2 years', deprecated_at = now() - interval '91 days'
  FROM encryption.key WHERE key.key_id = v.key_id AND key.name = 'health' AND v.version IN (1, 2);
UPDATE encryption.key_version v SET deprecated_at = NULL
  FROM encryption.key WHERE key.key_id = v.key_id AND key.name = 'health' AND v.version = 2;
UPDATE encryption.keyspace SET system_identifier = NULL;
UPDATE encryption.event_chain SET entries = entries + 2 WHERE restored_at IS NULL;
SELECT check_name, subject, status, regexp_replace(detail, ' at .*', '') AS detail, remedy FROM enc_health()
 WHERE status <> 'ok' AND check_name <> 'job' ORDER BY check_name, subject;
SELECT enc_ready();
SELECT is_overdue FROM enc_stat_key WHERE name = 'health';
SELECT check_name, object FROM enc_security_check() WHERE check_name = 'rotation_due';
ROLLBACK;
-- A job that nobody goes on with, and one that failed; one that was canceled is nobody's fault.
BEGIN;
INSERT INTO encryption.job (kind, state, table_id, column_number, table_name, column_name, key_name, last_error, started_by, changed_at)
VALUES ('rotate', 'running', 'healthy'::regclass, 3, 'healthy', 'note', 'health', NULL, 'x', now() - interval '11 minutes'),
       ('rotate', 'failed', 'healthy'::regclass, 2, 'healthy', 'email', 'health', 'the disk is full', 'x', now()),
       ('encrypt', 'paused', 'healthy'::regclass, 4, 'healthy', 'first_name', 'health', 'no answer', 'x', now()),
       ('rotate', 'canceled', 'healthy'::regclass, 5, 'healthy', 'remail', 'health', NULL, 'x', now() - interval '1 year');
SELECT check_name, regexp_replace(subject, 'job \d+', 'job n') AS subject, status, regexp_replace(detail, 'since .*', 'since t') AS detail, remedy
  FROM enc_health() WHERE check_name = 'job' AND subject LIKE '%healthy' ORDER BY 2;
UPDATE encryption.job SET changed_at = clock_timestamp() WHERE table_id = 'healthy'::regclass AND state = 'running';
SELECT status FROM enc_health() WHERE check_name = 'job' AND subject LIKE '%"note" of %healthy';
ROLLBACK;
-- What stops statements.
BEGIN;
SELECT enc_disable_key_version('health', 2, force => true);
SELECT check_name, subject, status, detail, remedy FROM enc_health() WHERE status = 'critical';
\set SHOW_CONTEXT never
SELECT enc_ready();
ROLLBACK;
BEGIN;
UPDATE encryption.key_version v SET provider = 'not_here' FROM encryption.key WHERE key.key_id = v.key_id AND name = 'health' AND version = 2;
SELECT check_name, subject, status, detail FROM enc_health() WHERE status = 'critical';
SELECT enc_ready();
\echo :LAST_ERROR_SQLSTATE
ROLLBACK;
-- The provider has another key in place of one.
BEGIN;
UPDATE encryption.key_version v SET check_value = decode(repeat('00', 16), 'hex')
  FROM encryption.key WHERE key.key_id = v.key_id AND name = 'health' AND version = 2;
SAVEPOINT s;
SELECT note FROM healthy;
ROLLBACK TO s;
SELECT check_name, subject, status, detail FROM enc_health() WHERE status = 'critical';
SELECT check_value_ok FROM enc_stat_key WHERE name = 'health';
ROLLBACK;
SELECT note FROM healthy;
SELECT check_value_ok FROM enc_stat_key WHERE name = 'health';

-- The report for an auditor.
SELECT string_agg(key, ' ' ORDER BY key) FROM jsonb_object_keys(enc_evidence('-infinity', 'infinity')) key;
SELECT k - 'active_since' - 'created_at' - 'rotation_due' - 'age_days' - 'owner' - 'versions' - 'rotations' - 'grants' AS key,
       jsonb_path_query_array(k, '$.versions[*].state') AS states,
       jsonb_path_query_array(k, '$.rotations[*].new_version') AS rotations
  FROM jsonb_array_elements(enc_evidence('-infinity', 'infinity') -> 'keys') k WHERE k ->> 'name' = 'health';
SELECT c FROM jsonb_array_elements(enc_evidence('-infinity', 'infinity') -> 'encrypted_columns') c WHERE c ->> 'key' = 'health';
SELECT c FROM jsonb_array_elements(enc_evidence('-infinity', 'infinity') -> 'likely_personal_data') c WHERE c ->> 'column' LIKE '%healthy%';
SELECT c -> 'ok' AS ok, c -> 'problem' AS problem
  FROM jsonb_array_elements(enc_evidence('-infinity', 'infinity') #> '{log,chains}') c WHERE NOT (c -> 'restored')::boolean;
SELECT e ->> 'action' AS action, e ->> 'detail' AS detail
  FROM jsonb_array_elements(enc_evidence('-infinity', 'infinity') #> '{log,entries}') e WHERE e ->> 'key' = 'health.given';
-- Nothing of another time is in it.
SELECT report #> '{log,entries}' AS entries, report #> '{log,chains}' AS chains, report #> '{keys,0,rotations}' AS rotations
  FROM enc_evidence('2001-01-01', '2002-01-01', verify_log => false) report;
SELECT enc_evidence('2002-01-01', '2002-01-01');
SELECT enc_evidence(NULL, '2002-01-01');
SELECT string_agg(line, E'\n') FROM string_to_table(enc_evidence_markdown('-infinity', 'infinity'), E'\n') line WHERE line LIKE '#%';
SELECT line FROM string_to_table(enc_evidence_markdown('-infinity', 'infinity'), E'\n') line WHERE line LIKE '| health | %' AND line LIKE '%records%' LIMIT 1 \gset
SELECT :'line' LIKE '| health | columns | % | records | gdpr | 2 | %' AS has_the_key;
-- No text in it is taken for markup.
SELECT encryption.markdown_cell(to_jsonb(E'a|b\n# c <script> `d` [e](f) \\ *g*'::text)) AS escaped;

-- Who may.
SET ROLE regress_monitor;
SELECT count(*) > 5 AS checks FROM enc_health();
SELECT enc_ready();
SELECT name, active_version FROM enc_stat_key WHERE name = 'health';
SELECT enc_evidence('-infinity', 'infinity') ->> 'format' AS format;
SELECT length(enc_evidence_markdown('-infinity', 'infinity')) > 1000 AS markdown;
SELECT provider FROM encryption.provider_states();
SET ROLE regress_nobody;
SELECT name, active_version FROM enc_stat_key WHERE name = 'health';
SELECT count(*) FROM enc_health();
SELECT enc_ready();
SELECT enc_evidence('-infinity', 'infinity');
SELECT enc_evidence_markdown('-infinity', 'infinity');
RESET ROLE;

-- Scheduled rotation.
SELECT check_name, subject, status, detail FROM enc_health() WHERE check_name = 'schedule';
SELECT enc_set_key_info('health', rotation_period => '0');
SELECT enc_schedule_rotation('health');
SELECT enc_schedule_rotation('health', '0');
SELECT enc_schedule_rotation('health', '-1 day');
SELECT enc_schedule_rotation(NULL, '1 day');
SELECT enc_schedule_rotation('health', '1 day') - active_since AS due FROM enc_stat_key WHERE name = 'health';
SELECT name, rotation_period, auto_reencrypt, scheduled_by = current_user::regrole AS by_me, is_enabled, rotated_at, reencrypt_to, is_being_reencrypted, last_error
  FROM enc_scheduled_rotations;
-- It is not due yet; then it is, once.
CALL enc_run_due_rotations();
SELECT active_version FROM enc_keys WHERE name = 'health';
UPDATE encryption.key_version v SET activated_at = activated_at - interval '25 hours'
  FROM encryption.key WHERE key.key_id = v.key_id AND key.name = 'health' AND v.state = 'active';
SELECT status, regexp_replace(detail, 'since .* UTC', 'since t') AS detail, remedy FROM enc_health() WHERE check_name = 'schedule';
CALL enc_run_due_rotations();
CALL enc_run_due_rotations();
SELECT active_version FROM enc_keys WHERE name = 'health';
SELECT action, old_version, new_version, reason, detail FROM encryption.key_event
 WHERE key_name = 'health' AND action IN ('schedule-rotation', 'rotate') ORDER BY sequence;
SELECT rotated_at > now() - interval '1 minute' AS rotated, reencrypt_to FROM enc_scheduled_rotations;
-- In a transaction it can't commit.
BEGIN;
CALL enc_run_due_rotations();
ROLLBACK;
-- Scheduled by a role that loses its rights.
SET ROLE regress_key_admin;
SELECT enc_schedule_rotation('health', '1 second');
SELECT enc_schedule_rotation('health.given', '1 second') IS NOT NULL AS scheduled;
CALL enc_run_due_rotations();
SELECT encryption.rotate_if_due(1);
SELECT * FROM enc_scheduled_rotations;
RESET ROLE;
SELECT enc_set_key_info('health.given', owner => 'regress_monitor');
UPDATE encryption.key_version v SET activated_at = activated_at - interval '2 seconds'
  FROM encryption.key WHERE key.key_id = v.key_id AND key.name = 'health.given' AND v.state = 'active';
CALL enc_run_due_rotations();
SELECT name, last_error FROM enc_scheduled_rotations WHERE last_error IS NOT NULL;
SELECT subject, status, detail, remedy FROM enc_health() WHERE check_name = 'schedule' AND status <> 'ok';
SELECT active_version FROM enc_keys WHERE name = 'health.given';
SELECT enc_schedule_rotation('health.given') IS NOT NULL AS scheduled;
CALL enc_run_due_rotations();
SELECT active_version FROM enc_keys WHERE name = 'health.given';
SELECT name, last_error FROM enc_scheduled_rotations WHERE last_error IS NOT NULL;
-- What a dump brings waits.
BEGIN;
CREATE TEMP TABLE dumped ON COMMIT DROP AS SELECT * FROM encryption.rotation_schedule;
INSERT INTO encryption.rotation_schedule SELECT * FROM dumped;
DELETE FROM encryption.rotation_schedule;
INSERT INTO encryption.rotation_schedule SELECT * FROM dumped;
SELECT name, is_enabled FROM enc_scheduled_rotations ORDER BY name;
SELECT count(*) FROM encryption.scheduled_work;
SELECT subject, status, detail, remedy FROM enc_health() WHERE check_name = 'schedule' ORDER BY subject;
SELECT k ->> 'name' AS name, k -> 'schedule' -> 'is_enabled' AS is_enabled
  FROM jsonb_array_elements(enc_evidence('-infinity', 'infinity', verify_log => false) -> 'keys') k WHERE k -> 'schedule' <> 'null' ORDER BY 1;
ROLLBACK;
SELECT enc_unschedule_rotation('health.given'), enc_unschedule_rotation('health', reason => 'done'), enc_unschedule_rotation('health');

DROP TABLE healthy;
DELETE FROM encryption.key_version USING encryption.key WHERE key.key_id = key_version.key_id AND name LIKE 'health%';
DELETE FROM encryption.key WHERE name LIKE 'health%';
REVOKE EXECUTE ON FUNCTION enc_create_key FROM regress_key_admin;
DROP ROLE regress_key_admin, regress_owners, regress_monitor;
RESET client_min_messages;
RESET timezone;
