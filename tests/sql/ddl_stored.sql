-- What would store encrypted values, or their order, elsewhere than in a table's rows is refused.
\set SHOW_CONTEXT never
CREATE TABLE stored (
    id    integer PRIMARY KEY,
    email encrypted_text('user_pii'),
    mails encrypted_text('user_pii')[],
    plain text,
    tags  text[]
);

-- Indexes: of what holds encrypted values, only a hash index.
CREATE INDEX stored_bad ON stored (mails);
\echo :LAST_ERROR_SQLSTATE
CREATE INDEX stored_bad ON stored USING gin (mails);
CREATE INDEX stored_bad ON stored (id, mails);
CREATE INDEX stored_bad ON stored ((mails || mails));
CREATE INDEX stored_bad ON stored USING gin ((mails[1:2]));
CREATE INDEX stored_bad ON stored ((stored));
CREATE UNIQUE INDEX stored_bad ON stored (mails);
ALTER TABLE stored ADD UNIQUE (mails);
ALTER TABLE stored ADD EXCLUDE (mails WITH =);
CREATE TABLE stored_bad (mails encrypted_text('user_pii')[] PRIMARY KEY);
CREATE TABLE stored_bad (mails encrypted_bytea('medical')[], UNIQUE (mails));
CREATE INDEX CONCURRENTLY stored_bad ON stored (mails);
CREATE INDEX CONCURRENTLY ON stored USING gin ((mails || mails));
-- INCLUDE columns are ciphertext in leaf pages, and compared by nothing.
CREATE INDEX stored_include ON stored (id) INCLUDE (email, mails);
CREATE INDEX CONCURRENTLY stored_include_2 ON stored (id) INCLUDE (email, mails);
-- Nothing was left behind, valid or not.
SELECT indexrelid::regclass, indisvalid FROM pg_index WHERE indrelid = 'stored'::regclass ORDER BY 1;
-- Other columns of the same table are none of ours.
CREATE INDEX stored_tags ON stored USING gin (tags);
CREATE INDEX stored_plain ON stored (plain, tags);

-- Expressions and conditions may compare for equality, and not for order.
CREATE INDEX stored_equal ON stored (id) WHERE email = 'a' AND email IS DISTINCT FROM 'b' AND email IN ('c', 'd');
CREATE INDEX stored_version ON stored (enc_key_version(email));
DROP INDEX stored_equal, stored_version;
CREATE INDEX stored_bad ON stored (id) WHERE email < 'm';
\echo :LAST_ERROR_SQLSTATE
CREATE INDEX stored_bad ON stored ((email >= 'm'));
CREATE INDEX CONCURRENTLY stored_bad ON stored (id) WHERE email > 'm';
CREATE INDEX stored_bad ON stored ((CASE WHEN email BETWEEN 'a' AND 'm' THEN 1 END));
CREATE INDEX stored_bad ON stored ((mails < '{m}'));
CREATE INDEX stored_bad ON stored ((email <= ANY (mails)));
CREATE INDEX stored_bad ON stored ((ROW(email, id) < ROW(email, 1)));
CREATE INDEX stored_bad ON stored ((GREATEST(email, 'm') = email));
CREATE INDEX stored_bad ON stored (encrypted_text_lt(email, 'm'));
CREATE INDEX stored_bad ON stored (encrypted_text_cmp(email, 'm'));
CREATE INDEX stored_bad ON stored (btarraycmp(mails, '{m}'));
CREATE INDEX stored_bad ON stored ((array_larger(mails, '{m}') = mails));
CREATE INDEX stored_bad ON stored (width_bucket(email, mails));
ALTER TABLE stored ADD COLUMN lesser boolean GENERATED ALWAYS AS (email < 'm') STORED;
\echo :LAST_ERROR_SQLSTATE
CREATE TABLE stored_bad (v encrypted_text('user_pii'), lesser boolean GENERATED ALWAYS AS (v < 'm') STORED);
ALTER TABLE stored ADD COLUMN copied text GENERATED ALWAYS AS (email) STORED;
CREATE TABLE stored_bad (v encrypted_text('user_pii'), copied text GENERATED ALWAYS AS (v) STORED);
ALTER TABLE stored ADD COLUMN same boolean GENERATED ALWAYS AS (email = 'm') STORED;
ALTER TABLE stored DROP COLUMN same;

-- Extended statistics.
CREATE STATISTICS stored_bad ON id, email FROM stored;
\echo :LAST_ERROR_SQLSTATE
CREATE STATISTICS stored_bad (ndistinct) ON id, mails FROM stored;
CREATE STATISTICS stored_bad ON (lower(email)) FROM stored;
CREATE STATISTICS stored_bad ON id, (mails[1] = 'x') FROM stored;
CREATE STATISTICS stored_plain ON id, plain, (length(plain)) FROM stored;
SELECT stxname FROM pg_statistic_ext ORDER BY 1;

-- A column that becomes encrypted, with what is on it already.
ALTER TABLE stored ALTER COLUMN plain TYPE encrypted_text('user_pii');
DROP INDEX stored_plain;
ALTER TABLE stored ALTER COLUMN plain TYPE encrypted_text('user_pii');
DROP STATISTICS stored_plain;
ALTER TABLE stored ALTER COLUMN plain TYPE encrypted_text('user_pii');
ALTER TABLE stored ALTER COLUMN tags TYPE encrypted_text('user_pii')[];
DROP INDEX stored_tags;
ALTER TABLE stored ALTER COLUMN tags TYPE encrypted_text('user_pii')[];
\d stored
DROP TABLE stored;

-- The same through a table that is inherited from, and through partitions.
CREATE TABLE parent (id integer, tags text[]);
CREATE TABLE child () INHERITS (parent);
CREATE INDEX child_tags ON child (tags);
ALTER TABLE parent ALTER COLUMN tags TYPE encrypted_text('user_pii')[];
DROP INDEX child_tags;
ALTER TABLE parent ALTER COLUMN tags TYPE encrypted_text('user_pii')[];
CREATE INDEX child_tags ON child (tags);
DROP TABLE parent CASCADE;

CREATE TABLE parted (v encrypted_text('user_pii')) PARTITION BY LIST (v);
\echo :LAST_ERROR_SQLSTATE
CREATE TABLE parted (v encrypted_text('user_pii')) PARTITION BY RANGE (v);
CREATE TABLE parted (id integer, v encrypted_text('user_pii')) PARTITION BY HASH (id, enc_key_version(v));
CREATE TABLE parted (v encrypted_text('user_pii')) PARTITION BY LIST ((v = 'a'));
CREATE TABLE parted (v encrypted_text('user_pii')[]) PARTITION BY LIST (v);
CREATE TABLE parted (id integer, tags text[], v encrypted_text('user_pii')) PARTITION BY LIST (id);
CREATE TABLE parted_1 PARTITION OF parted FOR VALUES IN (1);
CREATE TABLE parted_2 PARTITION OF parted FOR VALUES IN (2) PARTITION BY RANGE (v);
CREATE TABLE parted_2 PARTITION OF parted FOR VALUES IN (2) PARTITION BY RANGE (id);
CREATE INDEX parted_1_tags ON parted_1 USING gin (tags);
ALTER TABLE parted ALTER COLUMN tags TYPE encrypted_text('user_pii')[];
DROP INDEX parted_1_tags;
ALTER TABLE parted ALTER COLUMN tags TYPE encrypted_text('user_pii')[];
CREATE INDEX parted_tags ON parted (tags);
CREATE INDEX parted_tags ON ONLY parted (tags);
CREATE TABLE parted_3 (id integer, tags encrypted_text('user_pii')[], v encrypted_text);
CREATE TABLE parted_3 (id integer, tags encrypted_text('user_pii')[], v encrypted_text('user_pii'));
ALTER TABLE parted ATTACH PARTITION parted_3 FOR VALUES IN (3);
DROP TABLE parted;

-- Composite types, domains and ranges, at any depth; and those that are in use when they change.
CREATE TYPE person AS (name text, born date);
CREATE DOMAIN people AS person[];
CREATE TABLE holder (id integer, p person, ps people) PARTITION BY LIST (id);
CREATE TABLE holder_1 PARTITION OF holder FOR VALUES IN (1);
CREATE INDEX holder_1_p ON holder_1 (p);
ALTER TYPE person ADD ATTRIBUTE email encrypted_text('user_pii');
DROP INDEX holder_1_p;
CREATE INDEX holder_ps ON holder (ps);
ALTER TYPE person ADD ATTRIBUTE email encrypted_text('user_pii');
DROP INDEX holder_ps;
CREATE STATISTICS holder_statistics ON id, p FROM holder;
ALTER TYPE person ADD ATTRIBUTE email encrypted_text('user_pii');
DROP STATISTICS holder_statistics;
CREATE TABLE by_person (p person) PARTITION BY LIST (p);
ALTER TYPE person ADD ATTRIBUTE email encrypted_text('user_pii');
DROP TABLE by_person;
ALTER TYPE person ADD ATTRIBUTE email encrypted_text('user_pii');
CREATE INDEX holder_bad ON holder (ps);
CREATE INDEX holder_bad ON holder ((p < p));
ALTER TYPE person ADD ATTRIBUTE other encrypted_text;
CREATE DOMAIN address AS encrypted_text('user_pii');
CREATE TYPE addresses AS RANGE (subtype = address);
CREATE TABLE ranges (r addresses, v address, vs address[]);
CREATE INDEX ranges_bad ON ranges (r);
CREATE INDEX ranges_bad ON ranges USING gist (r);
CREATE INDEX ranges_bad ON ranges (isempty(r));
CREATE INDEX ranges_bad ON ranges USING gin (vs);
-- A table's row type as a column's type.
CREATE TABLE outer_table (t ranges);
CREATE INDEX outer_bad ON outer_table (t);
-- A view may have a column that names no key, a table of its rows may not.
CREATE VIEW keyless AS SELECT 'x'::encrypted_text AS v;
CREATE TABLE of_keyless (k keyless);
DROP VIEW keyless;

-- ANALYZE stores nothing of the values of whatever holds them.
SELECT typname, typtype FROM pg_type
 WHERE typanalyze = 'encrypted_typanalyze'::regproc ORDER BY typname COLLATE "C";
INSERT INTO holder SELECT 1, ROW('name', '2000-01-01', 'secret' || i % 3)::person,
                          ARRAY[ROW('name', '2000-01-01', 'secret' || i % 3)]::person[]
  FROM generate_series(1, 200) i;
INSERT INTO ranges SELECT addresses('a', 'b'), 'secret' || i % 3, ARRAY['secret' || i % 3] FROM generate_series(1, 200) i;
INSERT INTO outer_table SELECT ranges FROM ranges;
ANALYZE holder, ranges, outer_table;
SELECT starelid::regclass, staattnum, stainherit, stanullfrac, stawidth > 0 AS has_width,
       stakind1, stakind2, stakind3, stakind4, stakind5
  FROM pg_statistic
 WHERE starelid IN ('holder_1'::regclass, 'holder'::regclass, 'ranges'::regclass, 'outer_table'::regclass)
   AND (starelid NOT IN ('holder_1'::regclass, 'holder'::regclass) OR staattnum > 1)
 ORDER BY starelid::regclass::text, staattnum, stainherit;
-- PostgreSQL's own functions come back with the last encrypted attribute.
ALTER TYPE person DROP ATTRIBUTE email CASCADE;
DROP TABLE outer_table, ranges;
SELECT typname, typanalyze FROM pg_type
 WHERE typname IN ('person', '_person', 'people', '_people', 'holder', '_holder', 'holder_1', '_holder_1') ORDER BY typname COLLATE "C";
ALTER TYPE person ADD ATTRIBUTE address address;
SELECT typname, typanalyze FROM pg_type
 WHERE typname IN ('person', '_person', 'people', '_people', 'holder', '_holder', 'holder_1', '_holder_1') ORDER BY typname COLLATE "C";
SET client_min_messages = warning;
DROP DOMAIN address CASCADE;
RESET client_min_messages;
SELECT typname, typanalyze FROM pg_type
 WHERE typname IN ('person', '_person', 'people', '_people', 'holder', '_holder', 'holder_1', '_holder_1') ORDER BY typname COLLATE "C";
DROP TABLE holder;
DROP DOMAIN people;
DROP TYPE person;

-- A user without rights on anything has types of their own.
SET ROLE regress_nobody;
CREATE TEMP TABLE theirs (v encrypted_text('user_pii')[]);
CREATE INDEX theirs_bad ON theirs (v);
SELECT typanalyze FROM pg_type WHERE oid = 'theirs'::regtype;
ALTER TABLE theirs DROP COLUMN v;
SELECT typanalyze FROM pg_type WHERE oid = 'theirs'::regtype;
DROP TABLE theirs;
RESET ROLE;

-- While a dump is restored each is a warning.
SET check_function_bodies = off;
CREATE TABLE restored (id integer, v encrypted_text('user_pii'), vs encrypted_text('user_pii')[]);
CREATE INDEX restored_vs ON restored (vs);
CREATE INDEX CONCURRENTLY restored_vs_2 ON restored USING gin (vs);
CREATE INDEX restored_order ON restored (id) WHERE v < 'm';
CREATE STATISTICS restored_statistics ON id, v FROM restored;
CREATE TABLE restored_parent (id integer, v encrypted_text('user_pii')[]) PARTITION BY LIST (id);
CREATE INDEX restored_parent_v ON restored_parent (v);
CREATE TABLE restored_by_value (v encrypted_text('user_pii')) PARTITION BY LIST (v);
RESET check_function_bodies;
SELECT indexrelid::regclass, indisvalid FROM pg_index WHERE indrelid = 'restored'::regclass ORDER BY 1;
-- But nothing else gets it from there.
CREATE TABLE alike (LIKE restored INCLUDING INDEXES);
CREATE TABLE alike (LIKE restored INCLUDING STATISTICS);
CREATE TABLE alike (LIKE restored INCLUDING ALL);
CREATE TABLE alike PARTITION OF restored_parent FOR VALUES IN (1);
CREATE TABLE alike (id integer, v encrypted_text('user_pii')[]);
ALTER TABLE restored_parent ATTACH PARTITION alike FOR VALUES IN (1);
CREATE TABLE alike_2 (LIKE restored);
CREATE INDEX ON restored (id);
DROP TABLE restored, restored_parent, restored_by_value, alike, alike_2;
