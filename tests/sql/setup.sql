-- The extension, two keys, and roles with different privileges on them.
SET client_min_messages = error;
CREATE EXTENSION encryption_ext;
SELECT enc_create_key('user_pii'), enc_create_key('medical');
RESET client_min_messages;

CREATE ROLE regress_reader;
CREATE ROLE regress_writer;
CREATE ROLE regress_matcher;
CREATE ROLE regress_nobody;
SELECT enc_grant('user_pii', 'regress_reader', 'decrypt');
SELECT enc_grant('user_pii', 'regress_writer', 'encrypt');
SELECT enc_grant('user_pii', 'regress_matcher', 'compare');

-- For the tests alone: to look at ciphertext, and to plant it.
CREATE CAST (encrypted_text AS bytea) WITHOUT FUNCTION;
CREATE CAST (bytea AS encrypted_text) WITHOUT FUNCTION;
CREATE CAST (encrypted_bytea AS encrypted_text) WITHOUT FUNCTION;
CREATE CAST (encrypted_text AS encrypted_bytea) WITHOUT FUNCTION;

SELECT name, protects, active_version, provider, versions, readable_versions, key_id FROM enc_keys ORDER BY name;
SELECT name, version, state, provider, reference, is_wrapped, length(check_value) FROM enc_key_versions;
SELECT name, grantee, privilege FROM enc_key_grants ORDER BY 1, 2, 3;
