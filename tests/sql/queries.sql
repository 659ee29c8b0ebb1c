-- What people write against a text column works on an encrypted one, and means the same; and which
-- index serves it. Each feature once, with the plan where that is the point.
CREATE TABLE accounts (
    id      integer PRIMARY KEY,
    email   encrypted_text('user_pii'),
    name    encrypted_text('medical'),
    token   encrypted_bytea('medical'),
    country text
);
INSERT INTO accounts
SELECT n, 'user' || n || '@example.com', 'Name ' || n % 10, sha256(n::text::bytea), CASE n % 3 WHEN 0 THEN 'fr' ELSE 'de' END
  FROM generate_series(1, 1000) AS n;
CREATE TABLE mailings (id integer PRIMARY KEY, recipient text, sender encrypted_text('medical'));
INSERT INTO mailings
SELECT n, 'user' || n * 7 || '@example.com', 'user' || n * 11 || '@example.com' FROM generate_series(1, 200) AS n;
ANALYZE accounts, mailings;

-- The plan of a query. A digest depends on the database's key, and is another one in each run.
CREATE FUNCTION plan(query text) RETURNS SETOF text LANGUAGE plpgsql AS $$
DECLARE
    line text;
BEGIN
    FOR line IN EXECUTE 'EXPLAIN (COSTS OFF) ' || query LOOP
        RETURN NEXT regexp_replace(line, '\\x[0-9a-f]{32}', '\x(a digest)', 'g');
    END LOOP;
END $$;

-- All operator classes are complete: for each type and each index method what PostgreSQL asks for.
SELECT am.amname, c.opcname, c.opcdefault, amvalidate(c.oid)
  FROM pg_opclass c JOIN pg_am am ON am.oid = c.opcmethod
 WHERE c.opcname LIKE 'encrypted%' ORDER BY 1, 2;

----------------------------------------------------------------------------------------------------
-- A hash index: 32 bits of a keyed digest a row.
----------------------------------------------------------------------------------------------------
CREATE INDEX accounts_email_hash ON accounts USING hash (email);
CREATE INDEX accounts_token_hash ON accounts USING hash (token);

-- By a literal, and by constants and parameters of any type that a driver sends. (A name brings its
-- own collation along, which isn't the index's, as with a plain column of text.)
EXPLAIN (COSTS OFF) SELECT id FROM accounts WHERE email = 'user42@example.com';
SELECT id FROM accounts WHERE email = 'user42@example.com';
EXPLAIN (COSTS OFF) SELECT id FROM accounts WHERE 'user42@example.com' = email;
EXPLAIN (COSTS OFF) SELECT id FROM accounts WHERE email = 'user42@example.com'::text;
EXPLAIN (COSTS OFF) SELECT id FROM accounts WHERE email = 'user42@example.com'::varchar;
EXPLAIN (COSTS OFF) SELECT id FROM accounts WHERE email = 'user42@example.com'::name;
SELECT id FROM accounts WHERE email = 'user42@example.com'::text;
SELECT id FROM accounts WHERE email = 'user42@example.com'::varchar;
SELECT id FROM accounts WHERE email = 'user42@example.com'::name;
SELECT id FROM accounts WHERE email = 'user42@example.com'::char(25);

SET plan_cache_mode = force_generic_plan;
PREPARE by_text(text) AS SELECT id FROM accounts WHERE email = $1;
PREPARE by_varchar(varchar) AS SELECT id FROM accounts WHERE email = $1;
PREPARE by_name(name) AS SELECT id FROM accounts WHERE email = $1;
PREPARE by_char(char(25)) AS SELECT id FROM accounts WHERE email = $1;
PREPARE by_encrypted(encrypted_text) AS SELECT id FROM accounts WHERE email = $1;
PREPARE by_untyped AS SELECT id FROM accounts WHERE email = $1;
EXPLAIN (COSTS OFF) EXECUTE by_text('user42@example.com');
EXPLAIN (COSTS OFF) EXECUTE by_varchar('user42@example.com');
EXPLAIN (COSTS OFF) EXECUTE by_name('user42@example.com');
EXPLAIN (COSTS OFF) EXECUTE by_char('user42@example.com');
EXPLAIN (COSTS OFF) EXECUTE by_encrypted('user42@example.com');
EXPLAIN (COSTS OFF) EXECUTE by_untyped('user42@example.com');
EXECUTE by_text('user42@example.com');
EXECUTE by_varchar('user42@example.com');
EXECUTE by_name('user42@example.com');
EXECUTE by_char('user42@example.com');
EXECUTE by_encrypted('user42@example.com');
EXECUTE by_untyped('user42@example.com');
EXECUTE by_text(NULL);

-- By lists and arrays of any type.
EXPLAIN (COSTS OFF) SELECT id FROM accounts WHERE email IN ('user42@example.com', 'user7@example.com');
SELECT id FROM accounts WHERE email IN ('user42@example.com', 'user7@example.com', NULL) ORDER BY id;
PREPARE by_encrypteds(encrypted_text[]) AS SELECT id FROM accounts WHERE email = ANY ($1) ORDER BY id;
PREPARE by_texts(text[]) AS SELECT id FROM accounts WHERE email = ANY ($1) ORDER BY id;
PREPARE by_varchars(varchar[]) AS SELECT id FROM accounts WHERE email = ANY ($1) ORDER BY id;
PREPARE by_names(name[]) AS SELECT id FROM accounts WHERE email = ANY ($1) ORDER BY id;
EXPLAIN (COSTS OFF) EXECUTE by_encrypteds('{user42@example.com,user7@example.com}');
EXPLAIN (COSTS OFF) EXECUTE by_texts('{user42@example.com,user7@example.com}');
EXPLAIN (COSTS OFF) EXECUTE by_varchars('{user42@example.com,user7@example.com}');
EXPLAIN (COSTS OFF) EXECUTE by_names('{user42@example.com,user7@example.com}');
EXECUTE by_encrypteds('{user42@example.com,user7@example.com}');
EXECUTE by_texts('{user42@example.com,user7@example.com}');
EXECUTE by_varchars('{user42@example.com,user7@example.com}');
EXECUTE by_names('{user42@example.com,user7@example.com}');
RESET plan_cache_mode;

-- Rows.
SELECT id FROM accounts WHERE (email, name) = ('user42@example.com', 'Name 2'::text);
SELECT count(*) FROM accounts WHERE (email, id) IN (SELECT recipient, id * 7 FROM mailings);
SELECT count(*) FROM accounts WHERE (name, email) > ('Name 8', 'user9'::text);

-- bytea.
EXPLAIN (COSTS OFF) SELECT id FROM accounts WHERE token = sha256('42'::bytea);
SELECT id FROM accounts WHERE token = sha256('42'::bytea);
SELECT id FROM accounts WHERE token = ANY (ARRAY[sha256('42'::bytea), sha256('7'::bytea)]) ORDER BY id;
SELECT pg_typeof(token || '\x00'), length(token || '\x00'), length('\x00' || token), length(token || token),
       length(token || '\x00'::bytea) FROM accounts WHERE id = 42;

-- Joins, with the values of another key and with plain text, by the index or by hashing.
SET enable_hashjoin = off; SET enable_mergejoin = off; SET enable_memoize = off;
EXPLAIN (COSTS OFF) SELECT count(*) FROM mailings m JOIN accounts a ON a.email = m.sender WHERE m.id < 3;
EXPLAIN (COSTS OFF) SELECT count(*) FROM mailings m JOIN accounts a ON a.email = m.recipient WHERE m.id < 3;
SELECT m.id, a.id FROM mailings m JOIN accounts a ON a.email = m.sender WHERE m.id < 3 ORDER BY 1;
SELECT m.id, a.id FROM mailings m JOIN accounts a ON a.email = m.recipient WHERE m.id < 3 ORDER BY 1;
RESET enable_hashjoin; RESET enable_mergejoin; RESET enable_memoize;
EXPLAIN (COSTS OFF) SELECT count(*) FROM mailings m JOIN accounts a ON a.email = m.sender;
EXPLAIN (COSTS OFF) SELECT count(*) FROM mailings m JOIN accounts a ON a.email = m.recipient;
SELECT count(*) FROM mailings m JOIN accounts a ON a.email = m.sender;
SELECT count(*) FROM mailings m JOIN accounts a ON a.email = m.recipient;

-- Semi- and anti-joins.
SELECT line LIKE '%hashed SubPlan%' AS is_hashed
  FROM plan('SELECT id FROM accounts WHERE email NOT IN (SELECT recipient FROM mailings)') AS line
 WHERE line LIKE '%SubPlan%' LIMIT 1;
SELECT count(*) FROM accounts WHERE email IN (SELECT recipient FROM mailings);
SELECT count(*) FROM accounts WHERE email NOT IN (SELECT recipient FROM mailings);
SELECT count(*) FROM accounts a WHERE EXISTS (SELECT FROM mailings m WHERE m.sender = a.email);
SELECT count(*) FROM mailings m WHERE NOT EXISTS (SELECT FROM accounts a WHERE a.email = m.recipient);

-- Memoize keeps what it found by a keyed digest.
SET enable_hashjoin = off; SET enable_mergejoin = off; SET enable_material = off;
EXPLAIN (COSTS OFF) SELECT count(*), count(a.id) FROM accounts s LEFT JOIN accounts a ON a.email = s.name;
SELECT count(*), count(a.id) FROM accounts s LEFT JOIN accounts a ON a.email = s.name;
RESET enable_hashjoin; RESET enable_mergejoin; RESET enable_material;

-- Grouping and sorting need no index.
EXPLAIN (COSTS OFF) SELECT name, count(*) FROM accounts GROUP BY name;
SELECT name, count(*) FROM accounts GROUP BY name ORDER BY name DESC LIMIT 2;
SELECT count(DISTINCT name), count(DISTINCT email), min(name), max(name) FROM accounts;
SELECT id, rank() OVER (PARTITION BY name ORDER BY email COLLATE "C" DESC) FROM accounts ORDER BY id LIMIT 3;
DROP INDEX accounts_email_hash, accounts_token_hash;

----------------------------------------------------------------------------------------------------
-- An index on enc_digest(): unique, if it is to be. The same condition, email = …, finds it.
----------------------------------------------------------------------------------------------------
SELECT pg_typeof(enc_digest(email)), length(enc_digest(email)),
       enc_digest(email) = enc_digest('user1@example.com') AS same,
       enc_digest(email) = enc_digest('user1@example.com'::encrypted_text('medical')) AS same_under_other_key,
       enc_digest(email) = enc_digest(email, 'none', 'another domain') AS same_in_other_domain,
       enc_digest(email, 'lower') = enc_digest('USER1@Example.com', 'lower') AS same_in_lower_case,
       enc_digest(token) = enc_digest(sha256('1'::bytea)) AS same_bytes
  FROM accounts WHERE id = 1;
SELECT enc_digest('x', 'upper');
SELECT enc_digest(NULL::encrypted_text) IS NULL AS of_null;

CREATE UNIQUE INDEX accounts_email_digest ON accounts (enc_digest(email));
ANALYZE accounts;
SELECT plan($$SELECT id FROM accounts WHERE email = 'user42@example.com'$$);
SELECT plan($$SELECT id FROM accounts WHERE 'user42@example.com'::text = email AND country = 'fr'$$);
SELECT plan($$SELECT id FROM accounts WHERE enc_digest(email) = enc_digest('user42@example.com')$$);
SELECT id FROM accounts WHERE email = 'user42@example.com';
SELECT id FROM accounts WHERE 'user42@example.com'::text = email AND country = 'fr';
SELECT id FROM accounts WHERE enc_digest(email) = enc_digest('user42@example.com');

SET plan_cache_mode = force_generic_plan;
SELECT plan('EXECUTE by_text(''user42@example.com'')');
SELECT plan('EXECUTE by_varchar(''user42@example.com'')');
SELECT plan('EXECUTE by_name(''user42@example.com'')');
SELECT plan('EXECUTE by_encrypted(''user42@example.com'')');
EXECUTE by_text('user42@example.com');
EXECUTE by_varchar('user42@example.com');
EXECUTE by_name('user42@example.com');
EXECUTE by_char('user42@example.com');
EXECUTE by_encrypted('user42@example.com');
EXECUTE by_untyped('user42@example.com');
EXECUTE by_text(NULL);
RESET plan_cache_mode;

-- The inner side of a nested loop.
SET enable_hashjoin = off; SET enable_mergejoin = off; SET enable_memoize = off;
SELECT plan('SELECT count(*) FROM mailings m JOIN accounts a ON a.email = m.sender WHERE m.id < 3');
SELECT plan('SELECT count(*) FROM mailings m JOIN accounts a ON a.email = m.recipient WHERE m.id < 3');
SELECT m.id, a.id FROM mailings m JOIN accounts a ON a.email = m.sender WHERE m.id < 3 ORDER BY 1;
SELECT m.id, a.id FROM mailings m JOIN accounts a ON a.email = m.recipient WHERE m.id < 3 ORDER BY 1;
RESET enable_hashjoin; RESET enable_mergejoin; RESET enable_memoize;
-- It doesn't keep large joins from being hashed.
SELECT plan('SELECT count(*) FROM mailings m JOIN accounts a ON a.email = m.recipient');

-- It is unique. (What is violated would be said with the digest, another one in each run.)
\set VERBOSITY terse
INSERT INTO accounts (id, email) VALUES (2000, 'user42@example.com');
\echo :LAST_ERROR_SQLSTATE
INSERT INTO accounts (id, email) VALUES (2000, NULL), (2001, NULL);
INSERT INTO accounts (id, email, country) VALUES (2002, 'user42@example.com', 'it')
    ON CONFLICT (enc_digest(email)) DO UPDATE SET country = excluded.country, name = excluded.email
    RETURNING id, email, name, country;
INSERT INTO accounts (id, email) VALUES (2002, 'user42@example.com') ON CONFLICT (enc_digest(email)) DO NOTHING;
DELETE FROM accounts WHERE id >= 2000;
-- Rotating the key changes ciphertexts, and no index.
UPDATE accounts SET email = enc_rotate(email) WHERE id = 42;
SELECT id FROM accounts WHERE email = 'user42@example.com';

-- CLUSTER and REINDEX.
CLUSTER accounts USING accounts_email_digest;
REINDEX TABLE accounts;
REINDEX INDEX CONCURRENTLY accounts_email_digest;
SELECT id FROM accounts WHERE email = 'user42@example.com';
SELECT indexrelid::regclass, indisvalid, indisclustered FROM pg_index WHERE indrelid = 'accounts'::regclass ORDER BY 1::text;
DROP INDEX accounts_email_digest;

-- Whatever their case, or their form.
CREATE UNIQUE INDEX accounts_email_lower ON accounts (enc_digest(email, 'lower'));
SELECT plan($$SELECT id FROM accounts WHERE enc_digest(email, 'lower') = enc_digest('USER42@EXAMPLE.COM', 'lower')$$);
SELECT id FROM accounts WHERE enc_digest(email, 'lower') = enc_digest('USER42@EXAMPLE.COM', 'lower');
INSERT INTO accounts (id, email) VALUES (2000, 'User42@Example.com');
-- It is no index for email = ….
SELECT plan($$SELECT id FROM accounts WHERE email = 'user42@example.com'$$);
DROP INDEX accounts_email_lower;
SELECT form, enc_digest(a, form) = enc_digest(b, form) AS same
  FROM (VALUES ('none', 'é', e'e\u0301'), ('nfkc_casefold', 'é', e'E\u0301'), ('nfkc_casefold', 'Straße', 'STRASSE'),
               ('nfkc_casefold', 'ﬃ', 'ffi'), ('lower', 'Ab', 'aB'), ('digits', '+49 (30) 90-18', '49/309018'),
               ('digits', '030/9018', '30 9018')) AS v (form, a, b);

-- Partial and expression indexes.
CREATE INDEX accounts_email_fr ON accounts USING hash (email) WHERE country = 'fr';
CREATE INDEX accounts_contact ON accounts USING hash (coalesce(email, name));
CREATE INDEX accounts_digest_fr ON accounts (enc_digest(name)) WHERE country = 'fr';
EXPLAIN (COSTS OFF) SELECT id FROM accounts WHERE email = 'user42@example.com' AND country = 'fr';
EXPLAIN (COSTS OFF) SELECT id FROM accounts WHERE coalesce(email, name) = 'user42@example.com';
SET enable_seqscan = off;
SELECT plan($$SELECT id FROM accounts WHERE name = 'Name 3' AND country = 'fr'$$);
RESET enable_seqscan;
SELECT id FROM accounts WHERE email = 'user42@example.com' AND country = 'fr';
SELECT id FROM accounts WHERE coalesce(email, name) = 'user42@example.com';
SELECT count(*) FROM accounts WHERE name = 'Name 3' AND country = 'fr';
-- An expression that is plaintext makes no index.
CREATE INDEX ON accounts (lower(email));
CREATE INDEX ON accounts USING hash ((email::text));
DROP INDEX accounts_email_fr, accounts_contact, accounts_digest_fr;

----------------------------------------------------------------------------------------------------
-- Constraints
----------------------------------------------------------------------------------------------------
-- A generated column holds the digest: a target of ON CONFLICT and of foreign keys.
CREATE TABLE members (
    email    encrypted_text('user_pii'),
    email_id bytea GENERATED ALWAYS AS (enc_digest(email)) STORED UNIQUE,
    visits   integer NOT NULL DEFAULT 1
);
INSERT INTO members VALUES ('ann@example.com'), ('bob@example.com');
INSERT INTO members VALUES ('ann@example.com');
INSERT INTO members VALUES ('ann@example.com') ON CONFLICT (email_id) DO UPDATE SET visits = members.visits + 1;
SELECT email, visits, email_id = enc_digest(email) AS same FROM members ORDER BY email;
CREATE TABLE visits (
    email    encrypted_text('medical'),
    email_id bytea GENERATED ALWAYS AS (enc_digest(email)) STORED REFERENCES members (email_id)
);
INSERT INTO visits VALUES ('bob@example.com');
INSERT INTO visits VALUES ('eve@example.com');
\echo :LAST_ERROR_SQLSTATE
DELETE FROM members WHERE email = 'bob@example.com';
DELETE FROM members WHERE email = 'ann@example.com' RETURNING email;
\set VERBOSITY default
-- A generated column can't hold plaintext.
CREATE TABLE leaking (email encrypted_text('user_pii'), plain text GENERATED ALWAYS AS (lower(email)) STORED);

-- From an encrypted column to a text column that is a key.
CREATE TABLE countries (code text PRIMARY KEY);
INSERT INTO countries VALUES ('de'), ('fr');
CREATE TABLE citizens (country encrypted_text('user_pii') REFERENCES countries ON UPDATE CASCADE ON DELETE CASCADE);
INSERT INTO citizens VALUES ('de'), ('fr'), ('fr'), (NULL);
INSERT INTO citizens VALUES ('it');
\echo :LAST_ERROR_SQLSTATE
UPDATE countries SET code = 'FR' WHERE code = 'fr';
DELETE FROM countries WHERE code = 'de';
SELECT country, enc_key_name(country), count(*) FROM citizens GROUP BY 1, 2 ORDER BY 1;
ALTER TABLE citizens DROP CONSTRAINT citizens_country_fkey;
INSERT INTO citizens VALUES ('xx');
ALTER TABLE citizens ADD FOREIGN KEY (country) REFERENCES countries;
DELETE FROM citizens WHERE country = 'xx';
ALTER TABLE citizens ADD FOREIGN KEY (country) REFERENCES countries;

-- No two rows with the same value, by a hash index.
CREATE TABLE tickets (seat encrypted_text('user_pii'), EXCLUDE USING hash (seat WITH =));
INSERT INTO tickets VALUES ('12A'), ('12B'), (NULL), (NULL);
INSERT INTO tickets VALUES ('12A');
\echo :LAST_ERROR_SQLSTATE
INSERT INTO tickets VALUES ('12A') ON CONFLICT DO NOTHING;
UPDATE tickets SET seat = '12B' WHERE seat = '12A';
SELECT count(*), count(DISTINCT seat) FROM tickets;

-- Checks.
ALTER TABLE tickets ADD CHECK (seat <> '13A'), ADD CHECK (seat LIKE '1%');
INSERT INTO tickets VALUES ('13A');
INSERT INTO tickets VALUES ('23A');
DROP TABLE visits, members, citizens, countries, tickets;

----------------------------------------------------------------------------------------------------
-- Partitions: by another column.
----------------------------------------------------------------------------------------------------
CREATE TABLE orders (id integer, region text, customer encrypted_text('user_pii')) PARTITION BY LIST (region);
CREATE TABLE orders_eu PARTITION OF orders FOR VALUES IN ('eu');
CREATE TABLE orders_us PARTITION OF orders FOR VALUES IN ('us');
INSERT INTO orders SELECT n, CASE n % 2 WHEN 0 THEN 'eu' ELSE 'us' END, 'user' || n FROM generate_series(1, 1000) n;
CREATE INDEX orders_hash ON orders USING hash (customer);
EXPLAIN (COSTS OFF) SELECT id FROM orders WHERE customer = 'user8';
EXPLAIN (COSTS OFF) SELECT id FROM orders WHERE customer = 'user8' AND region = 'eu';
SELECT id, region FROM orders WHERE customer IN ('user8', 'user9') ORDER BY id;
DROP INDEX orders_hash;
CREATE UNIQUE INDEX orders_digest ON orders (region, enc_digest(customer));
CREATE TABLE orders_asia PARTITION OF orders FOR VALUES IN ('asia');
INSERT INTO orders VALUES (2000, 'asia', 'user8');
ANALYZE orders;
SELECT plan($$SELECT id FROM orders WHERE customer = 'user8' AND region = 'eu'$$);
SELECT id, region FROM orders WHERE customer = 'user8' ORDER BY id;
\set VERBOSITY terse
UPDATE orders SET region = 'asia' WHERE customer = 'user8' AND region = 'eu';
\set VERBOSITY default
DROP TABLE orders;

----------------------------------------------------------------------------------------------------
-- Views, materialized views
----------------------------------------------------------------------------------------------------
CREATE UNIQUE INDEX accounts_email_digest ON accounts (enc_digest(email));
CREATE VIEW french AS SELECT id, email, name FROM accounts WHERE country = 'fr' AND name <> 'Name 0';
SELECT plan($$SELECT id FROM french WHERE email = 'user45@example.com'$$);
SELECT id, email FROM french WHERE email = 'user45@example.com';
SELECT pg_get_viewdef('french') LIKE '%name <> ''Name 0''::encrypted_text%' AS is_readable;
UPDATE french SET name = 'Renamed' WHERE email = 'user45@example.com';
CREATE MATERIALIZED VIEW names AS SELECT name, count(*) AS n FROM accounts GROUP BY name;
CREATE UNIQUE INDEX ON names (enc_digest(name));
SELECT plan($$SELECT n FROM names WHERE name = 'Renamed'$$);
SELECT n FROM names WHERE name = 'Renamed';
UPDATE accounts SET name = 'Renamed' WHERE id IN (43, 44);
REFRESH MATERIALIZED VIEW names;
SELECT n FROM names WHERE name = 'Renamed';
-- CONCURRENTLY wants a unique index on columns: one on an expression doesn't do.
REFRESH MATERIALIZED VIEW CONCURRENTLY names;
CREATE MATERIALIZED VIEW names_by_digest AS
SELECT enc_digest(name) AS name_id, name, count(*) AS n FROM accounts GROUP BY name;
CREATE UNIQUE INDEX ON names_by_digest (name_id);
UPDATE accounts SET name = 'Renamed' WHERE id IN (46, 47);
REFRESH MATERIALIZED VIEW CONCURRENTLY names_by_digest;
SELECT n FROM names_by_digest WHERE name = 'Renamed';
DROP MATERIALIZED VIEW names, names_by_digest;
DROP VIEW french;

----------------------------------------------------------------------------------------------------
-- PL/pgSQL variables, arrays, composites, domains
----------------------------------------------------------------------------------------------------
CREATE DOMAIN address AS encrypted_text('user_pii') CHECK (value LIKE '%@%');
CREATE TYPE contact AS (email encrypted_text('user_pii'), phone encrypted_text('medical'));
CREATE TABLE people (id integer, address address, contact contact, aliases encrypted_text('user_pii')[]);
INSERT INTO people VALUES (1, 'ann@example.com', ('ann@example.com', '030 9018'), '{annie,anna}'),
                          (2, 'bob@example.com', ('bob@example.com', NULL), '{}');
INSERT INTO people VALUES (3, 'no address');
CREATE INDEX people_address ON people USING hash (address);
CREATE INDEX people_digest ON people (enc_digest(address));
CREATE INDEX people_contact ON people USING hash (((contact).email));
SET enable_seqscan = off;
EXPLAIN (COSTS OFF) SELECT id FROM people WHERE (contact).email = 'ann@example.com';
SELECT plan($$SELECT id FROM people WHERE address = 'ann@example.com'$$);
RESET enable_seqscan;
SELECT id FROM people WHERE (contact).email = 'ann@example.com';
SELECT id FROM people WHERE address = 'ann@example.com';
SELECT id, contact, aliases[1] FROM people WHERE 'anna' = ANY (aliases);
SELECT id FROM people WHERE contact = ('ann@example.com', '030 9018')::contact;
SELECT id FROM people WHERE aliases @> '{anna}' AND aliases <> '{anna}';
DO $$
DECLARE
    wanted encrypted_text := 'user42@example.com';
    under_key encrypted_text('user_pii') := 'user43@example.com';
    plain text := 'user44@example.com';
    found accounts;
    ids integer[];
BEGIN
    SELECT * INTO found FROM accounts WHERE email = wanted;
    RAISE NOTICE 'by a variable: % %', found.id, found.email;
    SELECT * INTO found FROM accounts WHERE email = under_key;
    RAISE NOTICE 'by a variable of the key: % %', found.id, enc_key_name(under_key);
    SELECT * INTO found FROM accounts WHERE email = plain;
    RAISE NOTICE 'by text: %', found.id;
    EXECUTE 'SELECT id FROM accounts WHERE email = $1' INTO found.id USING wanted;
    RAISE NOTICE 'by EXECUTE: %', found.id;
    ids := ARRAY(SELECT id FROM accounts WHERE email IN (wanted, under_key) ORDER BY id);
    RAISE NOTICE 'by a list: %, equal: %', ids, wanted = 'user42@example.com';
END $$;
DROP TABLE people;
DROP TYPE contact;
DROP DOMAIN address;

----------------------------------------------------------------------------------------------------
-- Statistics have no values, of the column or of what is computed from it.
----------------------------------------------------------------------------------------------------
CREATE INDEX accounts_name_hash ON accounts USING hash (name);
ANALYZE accounts;
SELECT tablename, attname, null_frac, n_distinct, most_common_vals IS NULL AS no_values,
       histogram_bounds IS NULL AS no_histogram, most_common_elems IS NULL AS no_elements
  FROM pg_stats WHERE tablename IN ('accounts', 'accounts_name_hash') AND attname IN ('email', 'name', 'token')
 ORDER BY 1, 2;
DROP INDEX accounts_name_hash;

----------------------------------------------------------------------------------------------------
-- Roles: who may compare may look up and join, and sees nothing. A row-level policy on the column.
----------------------------------------------------------------------------------------------------
GRANT SELECT ON accounts, mailings TO regress_matcher, regress_reader, regress_nobody;
CREATE INDEX accounts_email_hash ON accounts USING hash (email);
SET ROLE regress_matcher;
SELECT id FROM accounts WHERE email = 'user42@example.com';
SELECT count(*) FROM accounts a JOIN mailings m ON m.recipient = a.email;
SELECT count(*), count(DISTINCT enc_digest(email)) FROM accounts WHERE id < 10;
SELECT email FROM accounts WHERE id = 1;
SELECT id FROM accounts WHERE email < 'user10' LIMIT 1;
SELECT count(*) FROM (SELECT email FROM accounts ORDER BY email) s;
SET ROLE regress_nobody;
-- A look-up through an index needs the right to compare, also if it finds nothing.
SELECT id FROM accounts WHERE email = 'user42@example.com';
SELECT id FROM accounts WHERE email = 'nobody@example.com';
SELECT enc_digest(email) FROM accounts WHERE id = 1;
SELECT count(*) FROM accounts a JOIN mailings m ON m.recipient = a.email;
-- Values that belong to no column need none.
SELECT 'a'::encrypted_text = 'a' AS equal, length(enc_digest('a'));
RESET ROLE;
DROP INDEX accounts_email_hash;

ALTER TABLE accounts ENABLE ROW LEVEL SECURITY;
CREATE POLICY own_row ON accounts FOR SELECT USING (email = current_setting('my.email'));
SET ROLE regress_reader;
SET my.email = 'user42@example.com';
SELECT plan('SELECT id, email FROM accounts');
SELECT id, email FROM accounts;
SELECT id FROM accounts WHERE email = 'user43@example.com';
SET my.email = '';
SELECT count(*) FROM accounts;
RESET my.email;
RESET ROLE;
DROP POLICY own_row ON accounts;
CREATE POLICY own_row ON accounts FOR SELECT USING (email = 'user42@example.com');
SELECT pg_get_expr(polqual, polrelid) FROM pg_policy WHERE polname = 'own_row';
SET ROLE regress_reader;
SELECT id, email FROM accounts;
RESET ROLE;

DROP TABLE accounts, mailings;
DROP FUNCTION plan(text);
DEALLOCATE ALL;
