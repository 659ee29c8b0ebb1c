-- The life of a key.
SET client_min_messages = error;
SELECT enc_create_key('cycle');
RESET client_min_messages;
SELECT enc_create_key('cycle');
\echo :LAST_ERROR_SQLSTATE
SELECT enc_create_key('cycle', if_not_exists => true);
SELECT enc_create_key('kba8b256');
\echo :LAST_ERROR_SQLSTATE
SELECT enc_create_key('database');
\echo :LAST_ERROR_SQLSTATE
SELECT enc_create_key('../../etc/passwd');
\echo :LAST_ERROR_SQLSTATE
SELECT enc_create_key('-rf');
SELECT enc_create_key(repeat('k', 64));
SELECT enc_create_key(NULL);
\echo :LAST_ERROR_SQLSTATE
SELECT enc_revoke('cycle', NULL);
SELECT enc_rotate_key('no_such_key');
\echo :LAST_ERROR_SQLSTATE

CREATE TABLE t (id integer, v encrypted_text('cycle'));
INSERT INTO t VALUES (1, 'under version 1');
SELECT enc_rotate_key('cycle');
INSERT INTO t VALUES (2, 'under version 2');
SELECT id, v, enc_key_version(v) FROM t ORDER BY id;
UPDATE t SET v = enc_rotate(v) WHERE enc_key_version(v) < 2;
SELECT id, v, enc_key_version(v) FROM t ORDER BY id;
SELECT v::bytea AS before FROM t WHERE id = 1 \gset
SELECT enc_rotate(v)::bytea = :'before' AS untouched FROM t WHERE id = 1;

-- Staged: pending first, then active, and back.
SELECT enc_rotate_key('cycle', activate => false);
SELECT name, version, state, activated_at IS NOT NULL AS was_active FROM enc_key_versions WHERE name = 'cycle';
INSERT INTO t VALUES (3, 'still version 2');
SELECT enc_activate_key_version('cycle', 3);
INSERT INTO t VALUES (4, 'version 3');
SELECT enc_activate_key_version('cycle', 2);
INSERT INTO t VALUES (5, 'version 2 again');
SELECT id, v, enc_key_version(v) FROM t ORDER BY id;
SELECT version, state FROM enc_key_versions WHERE name = 'cycle';
SELECT enc_activate_key_version('cycle', 4);
\echo :LAST_ERROR_SQLSTATE
SELECT enc_activate_key_version('cycle', 0);

-- Disabled: neither encrypts nor decrypts, until it is enabled.
SELECT enc_disable_key_version('cycle', 2);
\echo :LAST_ERROR_SQLSTATE
SELECT enc_disable_key_version('cycle', 3);
SELECT v FROM t WHERE id = 4;
\echo :LAST_ERROR_SQLSTATE
SELECT enc_activate_key_version('cycle', 3);
SELECT enc_key_version(v) FROM t WHERE id = 4;
SELECT enc_enable_key_version('cycle', 3);
SELECT v FROM t WHERE id = 4;
SELECT enc_disable_key_version('cycle', 2, force => true);
INSERT INTO t VALUES (6, 'no version');
\echo :LAST_ERROR_SQLSTATE
SELECT enc_create_key('cycle', if_not_exists => true);
SELECT enc_enable_key_version('cycle', 2);
SELECT version, state FROM enc_key_versions WHERE name = 'cycle';
SELECT enc_activate_key_version('cycle', 2);
SELECT count(*) FROM t WHERE v IS NOT NULL AND length(v) > 0;

-- A pending version that is disabled and enabled is pending again.
SELECT enc_rotate_key('cycle', activate => false);
SELECT enc_disable_key_version('cycle', 4);
SELECT enc_enable_key_version('cycle', 4);
SELECT version, state FROM enc_key_versions WHERE name = 'cycle';
-- Values under a pending version can't be read.
SELECT set_byte(v::bytea, 9, 4)::encrypted_text::text FROM t WHERE id = 1;
\echo :LAST_ERROR_SQLSTATE

-- Undone with the transaction; what the provider made is adopted by the next rotation.
BEGIN;
SELECT enc_rotate_key('cycle');
INSERT INTO t VALUES (7, 'in the transaction');
SELECT enc_key_version(v) FROM t WHERE id = 7;
ROLLBACK;
INSERT INTO t VALUES (7, 'after it');
SELECT enc_key_version(v) FROM t WHERE id = 7;
SELECT enc_rotate_key('cycle');
SELECT version, reference FROM enc_key_versions WHERE name = 'cycle';
BEGIN;
SAVEPOINT s;
SELECT enc_disable_key_version('cycle', 5, force => true);
INSERT INTO t VALUES (8, 'refused');
ROLLBACK TO s;
INSERT INTO t VALUES (8, 'accepted');
COMMIT;

-- The database key can be rotated too; values of all its versions stay readable.
CREATE TABLE loose (note text, d encrypted_text('cycle') DEFAULT 'a default under the database key');
SELECT enc_rotate_key('database');
INSERT INTO loose VALUES ('x');
SELECT d, enc_key_version('y'::encrypted_text) FROM loose;

BEGIN READ ONLY;
SELECT enc_rotate_key('cycle');
ROLLBACK;

-- The log has it all.
SELECT action, key_name, old_version, new_version, detail, role_name = session_role_name AS by_session_user
  FROM encryption.key_event WHERE key_name = 'cycle' ORDER BY sequence;

-- This session's cache. No key bytes in it.
SELECT enc_flush_cache();
SELECT entries, capacity, locked_bytes + unlocked_bytes >= 0 AS memory FROM enc_stat_cache;
SELECT v FROM t WHERE id = 1;
SELECT key_name, key_version, expires_in > '59 min' AS fresh, hits FROM enc_stat_cache_keys;
SET encryption_ext.cache_capacity = 2;
SELECT count(v::text) FROM t;
-- A statement that needs more has them until it ends.
SELECT entries, capacity FROM enc_stat_cache;
SELECT count(v::text) FROM t WHERE id = (SELECT max(id) FROM t);
SELECT entries, capacity, evictions > 0 AS evicted FROM enc_stat_cache;
RESET encryption_ext.cache_capacity;

-- No provider, or one that there is not.
SET encryption_ext.provider = '';
SELECT enc_create_key('another');
\echo :LAST_ERROR_SQLSTATE
SELECT enc_rotate_key('cycle');
SET encryption_ext.provider = 'nonesuch';
SELECT enc_create_key('another');
\echo :LAST_ERROR_SQLSTATE
SET encryption_ext.provider = 'vault';
SELECT enc_create_key('another');
SET encryption_ext.vault_address = 'http://vault.example.com:8200';
SELECT enc_create_key('another');
SET encryption_ext.vault_address = 'https://vault.example.com:8200';
SELECT enc_create_key('another');
SET encryption_ext.vault_token_file = 'token';
SELECT enc_create_key('another');
SET encryption_ext.provider = 'pkcs11';
SELECT enc_create_key('another');
RESET encryption_ext.provider;

-- What a provider is needed for, tried.
SELECT provider, what, ok, detail, hint, milliseconds >= 0 AS timed FROM enc_check_provider('file')
 WHERE what NOT LIKE 'version %' AND what <> 'reading';
SELECT what, ok, detail, hint FROM enc_check_provider('file')
 WHERE what LIKE '%"cycle"' ORDER BY what;
SELECT bool_and(ok) FROM enc_check_provider();
SELECT what, ok, detail, hint FROM enc_check_provider('aws_kms');
SELECT provider, what, ok, detail FROM enc_check_provider('nonesuch');
SELECT enc_rewrap_key('cycle');
SELECT enc_rewrap_key(NULL);
RESET encryption_ext.vault_address;
RESET encryption_ext.vault_token_file;
SELECT v FROM t WHERE id = 1;

-- What this session has counted: values of columns, also those of a transaction that is rolled back.
SELECT enc_stat_reset();
SELECT v FROM t WHERE id = 1;
BEGIN;
UPDATE t SET v = 'counted' WHERE id = 1;
ROLLBACK;
SELECT count(*) FROM t WHERE v = 'counted' AND id = 1;
SELECT datname = current_database() AS this_database, scope, encrypted, decrypted, compared, decrypt_failures,
       denials, served_past_expiry, now() - stats_reset < '1 hour' AS is_new
  FROM enc_stat;
SELECT provider, scope, requests >= errors AND requests = (SELECT max(b.count)
           FROM enc_stat_provider_request_time b WHERE b.provider = p.provider) AS adds_up,
       errors = errors_unreachable + errors_timed_out + errors_throttled + errors_login + errors_denied
                + errors_not_found + errors_invalid + errors_other AS errors_add_up
  FROM enc_stat_provider p WHERE provider = 'file';
SET ROLE regress_nobody;
SELECT count(*) FROM enc_stat;
SELECT count(*) FROM enc_stat_decrypt_time;
SELECT count(*) FROM enc_stat_provider;
SELECT count(*) FROM enc_stat_provider_request_time;
SELECT enc_stat_reset();
RESET ROLE;

DROP TABLE t, loose;
