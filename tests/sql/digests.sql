-- enc_digest: equal plaintexts have equal digests, and nothing else does.
SELECT enc_create_key('digests');
CREATE TABLE people (
    id bigint PRIMARY KEY,
    email encrypted_text('digests'),
    photo encrypted_bytea('user_pii'),
    email_digest bytea GENERATED ALWAYS AS (enc_digest(email)) STORED);
INSERT INTO people
SELECT i, 'user' || i || '@example.com', decode(lpad(to_hex(i), 4, '0'), 'hex') FROM generate_series(1, 200) i;

SELECT octet_length(enc_digest(email)), octet_length(enc_digest(photo)), pg_typeof(enc_digest(email)) FROM people WHERE id = 1;
SELECT count(DISTINCT enc_digest(email)), count(DISTINCT enc_digest(photo)), count(DISTINCT email_digest) FROM people;
-- Under another key, another version, as a literal, as text: the same.
SELECT DISTINCT digest = enc_digest('user1@example.com') FROM (
    SELECT enc_digest('user1@example.com'::encrypted_text('user_pii'))
    UNION ALL SELECT enc_digest('user1@example.com'::encrypted_text)
    UNION ALL SELECT enc_digest('user1@example.com'::varchar)
    UNION ALL SELECT enc_digest(email) FROM people WHERE id = 1
    UNION ALL SELECT email_digest FROM people WHERE id = 1) AS d (digest);
-- text and bytea are kept apart.
SELECT enc_digest('a'::text) = enc_digest('a'::bytea) AS same;
SELECT enc_digest(NULL::text), enc_digest(NULL::encrypted_bytea), enc_digest('a'::text, NULL);
SELECT enc_digest(''::text) = enc_digest(''::encrypted_text) AS same;

-- Normal forms.
SELECT form, replace(value, U&'\00AD', '-') AS value, enc_digest(value, form) = enc_digest(other, form) AS same
  FROM (VALUES ('none', 'a', 'A'), ('lower', 'Alice@Example.COM', 'alice@example.com'), ('lower', 'ÄÖ', 'äö'),
               ('lower', 'Straße', 'STRASSE'), ('nfkc_casefold', 'Straße', 'STRASSE'),
               ('nfkc_casefold', E'e\u0301', U&'\00E9'), ('nfkc_casefold', U&'\FB01n', 'FIN'),
               ('nfkc_casefold', U&'soft\00ADhyphen', 'softhyphen'), ('nfkc_casefold', U&'\FF21\FF22', 'ab'),
               ('nfkc_casefold', 'abc', 'abd'), ('digits', '+1 (555) 123-4567', '1.555.123.4567'),
               ('digits', '12', '123')) AS t (form, value, other);
-- A form is part of what is digested: one is never mistaken for another.
SELECT count(DISTINCT enc_digest('123', form)) FROM unnest('{none,lower,nfkc_casefold,digits}'::text[]) AS form;
SELECT enc_digest('a', 'upper');
SELECT enc_digest('a'::bytea, 'lower');
-- A domain unlinks columns.
SELECT enc_digest('a', 'none', 'users.email') = enc_digest('a', 'none', 'orders.email') AS same,
       enc_digest('a', 'none', 'users.email') = enc_digest('a', domain => 'users.email') AS itself;
SELECT enc_digest('a', 'none', repeat('d', 255)) IS NOT NULL, enc_digest('a', 'none', repeat('d', 256));

-- Uniqueness, look-ups, upserts, foreign keys.
CREATE UNIQUE INDEX people_email ON people (enc_digest(email));
ALTER TABLE people ADD CONSTRAINT people_digest UNIQUE (email_digest);
ANALYZE people;
SET enable_seqscan = off;
EXPLAIN (COSTS OFF) SELECT id FROM people WHERE email = 'user7@example.com';
SELECT id FROM people WHERE email = 'user7@example.com';
PREPARE by_email (text) AS SELECT id FROM people WHERE email = $1;
SET plan_cache_mode = force_generic_plan;
EXPLAIN (COSTS OFF) EXECUTE by_email('user8@example.com');
EXECUTE by_email('user8@example.com');
EXECUTE by_email('nobody');
RESET plan_cache_mode;
RESET enable_seqscan;
\set VERBOSITY terse
INSERT INTO people VALUES (1000, 'user1@example.com');
\set VERBOSITY default
INSERT INTO people VALUES (1000, 'user1@example.com') ON CONFLICT (enc_digest(email)) DO UPDATE SET photo = '\xff' RETURNING id, photo;
INSERT INTO people VALUES (1000, 'user2@example.com') ON CONFLICT (email_digest) DO NOTHING RETURNING id;
CREATE TABLE orders (
    id bigint PRIMARY KEY,
    email encrypted_text('user_pii'),
    email_digest bytea GENERATED ALWAYS AS (enc_digest(email)) STORED REFERENCES people (email_digest));
INSERT INTO orders VALUES (1, 'user1@example.com'), (2, 'user2@example.com');
\set VERBOSITY terse
INSERT INTO orders VALUES (3, 'nobody');
DELETE FROM people WHERE id = 2;
\set VERBOSITY default

-- Privileges: nothing of an index tells whether a guess is right without compare.
CREATE ROLE digest_reader;
GRANT SELECT ON people TO digest_reader;
CREATE INDEX people_hash ON people USING hash (email);
CREATE INDEX people_partial ON people (id) WHERE email = 'user9@example.com';
SET enable_seqscan = off;
SET ROLE digest_reader;
SELECT id FROM people WHERE email = 'nobody';
SELECT id FROM people WHERE email = 'user7@example.com'::text;
SELECT id FROM people WHERE email IN ('nobody', 'nobody else');
SELECT id FROM people WHERE enc_digest(email) = enc_digest('nobody');
SELECT enc_digest(email) FROM people WHERE enc_digest(email) > '';
SELECT count(*) FROM people, (VALUES ('nobody')) AS guess (email) WHERE people.email = guess.email;
SELECT id FROM people WHERE id < 5 AND email = 'user9@example.com';
SET enable_hashagg = off;
SELECT count(*) FROM (SELECT email FROM people GROUP BY email) AS grouped;
RESET enable_hashagg;
-- What an index says nothing of is open.
SELECT count(*), count(email) FROM people WHERE id < 10;
SELECT encrypted_text_hash('x');
SELECT encrypted_text_cmp('x', 'y');
RESET ROLE;
SELECT enc_grant('digests', 'digest_reader', 'compare');
SET ROLE digest_reader;
SELECT id FROM people WHERE email = 'nobody';
SELECT id FROM people WHERE email = 'user7@example.com'::text;
SELECT id FROM people WHERE email IN ('user7@example.com', 'user8@example.com') ORDER BY id;
SELECT id FROM people WHERE enc_digest(email) = enc_digest('user7@example.com');
SELECT email FROM people WHERE id = 7;
SELECT id FROM people ORDER BY email LIMIT 1;
RESET ROLE;
-- A plan that was made before.
PREPARE planned AS SELECT id FROM people WHERE email = 'user7@example.com';
EXECUTE planned;
SELECT enc_revoke('digests', 'digest_reader');
SET ROLE digest_reader;
EXECUTE planned;
RESET ROLE;
RESET enable_seqscan;

-- Rotating the database key leaves the digests; enc_rotate_digest() moves them.
SELECT enc_rotate_digest();
SELECT enc_rotate_digest();
SELECT enc_digest('x') AS before \gset
SELECT enc_rotate_key('database');
SELECT enc_digest('x') = :'before' AS same;
SELECT enc_disable_key_version('database', 2);
PREPARE by_digest AS SELECT id FROM people WHERE email_digest = enc_digest('user7@example.com');
SET plan_cache_mode = force_generic_plan;
EXECUTE by_digest;
CREATE MATERIALIZED VIEW digested AS SELECT id, enc_digest(email) AS digest FROM people;
SET ROLE digest_reader;
SELECT enc_rotate_digest();
RESET ROLE;
SELECT enc_rotate_digest();
SELECT enc_digest('x') = :'before' AS same;
SHOW session_replication_role;
-- A plan that was kept has the digest of its constant.
EXECUTE by_digest;
RESET plan_cache_mode;
SET enable_seqscan = off;
SELECT id FROM people WHERE email = 'user7@example.com';
EXPLAIN (COSTS OFF) SELECT id FROM people WHERE email = 'user7@example.com';
DROP INDEX people_email;
EXPLAIN (COSTS OFF) SELECT id FROM people WHERE email = 'user7@example.com';
SELECT id FROM people WHERE email = 'user7@example.com';
RESET enable_seqscan;
SELECT count(*) FROM people WHERE email_digest <> enc_digest(email);
SELECT count(*) FROM orders JOIN people USING (email_digest) WHERE orders.email = people.email;
SELECT count(*) FROM digested JOIN people USING (id) WHERE digest = enc_digest(email);
SELECT enc_disable_key_version('database', 2);
SELECT enc_enable_key_version('database', 2);
-- A foreign key from a column that an application fills.
CREATE TABLE filled (email_digest bytea REFERENCES people (email_digest));
SELECT enc_rotate_key('database');
SELECT enc_rotate_digest();
DROP TABLE filled, orders, people CASCADE;
SELECT enc_rotate_digest();
DROP ROLE digest_reader;
