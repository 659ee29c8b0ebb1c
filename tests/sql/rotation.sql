-- Rotation of columns and constants, the use of versions, and their end. Notices have rates.
SET client_min_messages = error;
\set SHOW_CONTEXT never
SELECT enc_create_key('rotating');
CREATE TABLE letter (id integer, body encrypted_text('rotating'), tags encrypted_text('rotating')[]);
INSERT INTO letter SELECT i, 'letter ' || i, ARRAY['tag ' || i, NULL] FROM generate_series(1, 100) i;
ALTER TABLE letter ADD COLUMN kind encrypted_text('rotating') DEFAULT 'plain';
CREATE VIEW seventh AS SELECT * FROM letter WHERE body = 'letter 7'::encrypted_text('rotating');
SELECT object, version, number_of_rows FROM enc_key_usage('rotating') ORDER BY object;
SELECT enc_rotate_key('rotating');
CALL enc_rotate_column('letter', 'body', batch_size => 10, reason => 'the yearly one');
SELECT row_count, reason, regexp_replace(detail, '\d+', 'N') AS detail FROM encryption.key_event
 WHERE key_name = 'rotating' AND action = 'job' ORDER BY sequence;
SELECT object, version, number_of_rows FROM enc_key_usage('rotating') ORDER BY object;
CALL enc_rotate_all('rotating');
SELECT object, version, number_of_rows FROM enc_key_usage('rotating') ORDER BY object;
SELECT object, version, number_of_rows FROM enc_key_usage('rotating', exact => false) ORDER BY object;
SELECT table_name, column_name, key_name, state, from_version, to_version, pass, rows_done, rows_damaged
  FROM enc_stat_progress_rotate WHERE key_name = 'rotating' ORDER BY job;
SELECT count(*) FROM letter WHERE body = 'letter ' || id AND tags[1] = 'tag ' || id AND kind = 'plain';
SELECT id FROM seventh;

-- What is refused.
CALL enc_rotate_column('letter', 'id');
CALL enc_rotate_column('seventh', 'body');
CALL enc_rotate_column('letter', 'nothing');
CALL enc_rotate_column('letter', 'body', max_rate => 0);
CALL enc_rotate_column('letter', NULL);
SELECT enc_rotation_cancel(-1);
SELECT * FROM enc_key_usage('no_such_key');
SELECT min(job) AS job FROM enc_stat_progress_rotate WHERE key_name = 'rotating' \gset
SET ROLE regress_reader;
CALL enc_rotate_column('letter', 'body');
SELECT encryption.rotate_catalogs('rotating');
SELECT encryption.set_job_state(:job, 'completed', NULL);
UPDATE encryption.job SET state = 'completed';
RESET ROLE;

-- The end of a version.
SELECT enc_destroy_key_version('rotating', 1);
SELECT enc_destroy_key_version('rotating', 2);
SELECT * FROM enc_verify_version_unused('rotating', 2);
SELECT finding, object, number_of_rows FROM enc_verify_version_unused('rotating', 1) WHERE finding IN ('used', 'proved unused');
SELECT enc_destroy_key_version('rotating', 1, grace_period => '0');
SELECT version, state FROM enc_key_versions WHERE name = 'rotating';
SELECT id FROM seventh;
DROP TABLE letter CASCADE;
RESET client_min_messages;
