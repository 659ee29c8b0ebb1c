-- Comparisons mean what they mean on the plaintexts.
CREATE TABLE words (id integer PRIMARY KEY, v encrypted_text('user_pii'), p text, b encrypted_bytea('medical'), q bytea);
INSERT INTO words
SELECT id, word, word, convert_to(word, 'UTF8'), convert_to(word, 'UTF8')
  FROM unnest(ARRAY['apple', 'Apple', 'äpfel', '', 'banana', 'apple', 'zebra', 'a b', 'ab']) WITH ORDINALITY u (word, id);
INSERT INTO words (id) VALUES (100);

-- Every operator, on every pair, against the base type's.
SELECT count(*) AS pairs,
       count(*) FILTER (WHERE (x.v = y.v) IS DISTINCT FROM (x.p = y.p)) AS eq,
       count(*) FILTER (WHERE (x.v <> y.v) IS DISTINCT FROM (x.p <> y.p)) AS ne,
       count(*) FILTER (WHERE (x.v < y.v) IS DISTINCT FROM (x.p < y.p)) AS lt,
       count(*) FILTER (WHERE (x.v <= y.v) IS DISTINCT FROM (x.p <= y.p)) AS le,
       count(*) FILTER (WHERE (x.v >= y.v) IS DISTINCT FROM (x.p >= y.p)) AS ge,
       count(*) FILTER (WHERE (x.v > y.v) IS DISTINCT FROM (x.p > y.p)) AS gt
  FROM words x, words y;
SELECT count(*) FILTER (WHERE (x.b = y.b) IS DISTINCT FROM (x.q = y.q)) AS eq,
       count(*) FILTER (WHERE (x.b <> y.b) IS DISTINCT FROM (x.q <> y.q)) AS ne,
       count(*) FILTER (WHERE (x.b < y.b) IS DISTINCT FROM (x.q < y.q)) AS lt,
       count(*) FILTER (WHERE (x.b <= y.b) IS DISTINCT FROM (x.q <= y.q)) AS le,
       count(*) FILTER (WHERE (x.b >= y.b) IS DISTINCT FROM (x.q >= y.q)) AS ge,
       count(*) FILTER (WHERE (x.b > y.b) IS DISTINCT FROM (x.q > y.q)) AS gt
  FROM words x, words y;

-- With a literal, a text parameter, a value of another key.
SELECT id FROM words WHERE v = 'apple' ORDER BY id;
SELECT id FROM words WHERE v <> 'apple' ORDER BY id;
PREPARE find(text) AS SELECT id FROM words WHERE v = $1 ORDER BY id;
EXECUTE find('apple');
PREPARE find_encrypted(encrypted_text) AS SELECT id FROM words WHERE v = $1 ORDER BY id;
EXECUTE find_encrypted('apple');
SELECT 'apple'::encrypted_text('medical') = 'apple'::encrypted_text('user_pii') AS across_keys;
SELECT id FROM words WHERE b = '\x6162' ORDER BY id;
SELECT id FROM words WHERE v IN ('ab', 'zebra') ORDER BY id;
SELECT id FROM words WHERE v = ANY (ARRAY['ab', 'zebra']) ORDER BY id;

-- Sorting, grouping, aggregates; by the collation asked for.
SELECT id, v FROM words ORDER BY v NULLS FIRST, id;
SELECT id, v FROM words ORDER BY v COLLATE "C" DESC, id;
SELECT v, count(*) FROM words GROUP BY v ORDER BY v;
SELECT count(DISTINCT v), count(DISTINCT b) FROM words;
SELECT DISTINCT v FROM words ORDER BY v;
SELECT x.id, y.id FROM words x JOIN words y USING (v) WHERE x.id < y.id;
SET enable_nestloop = off;
SELECT x.id, y.id FROM words x JOIN words y ON x.b = y.b WHERE x.id < y.id;
RESET enable_nestloop;
SELECT row_number() OVER (PARTITION BY v ORDER BY id), id FROM words WHERE v = 'apple' ORDER BY id;
SELECT min(v::text), max(v::text) FROM words;

-- An ordered index is refused, however it is asked for; nothing is left behind.
CREATE INDEX ON words (v);
\echo :LAST_ERROR_SQLSTATE
CREATE UNIQUE INDEX ON words (b);
CREATE INDEX CONCURRENTLY ON words (v);
CREATE INDEX ON words (v COLLATE "C" DESC);
CREATE INDEX ON words (v text_ops);
CREATE INDEX ON words USING hash (v);
CREATE TABLE unordered (v encrypted_text('user_pii') PRIMARY KEY);
CREATE TABLE unordered (v encrypted_text('user_pii') UNIQUE);
CREATE TABLE parted (id integer, v encrypted_text('user_pii')) PARTITION BY RANGE (id);
CREATE INDEX ON parted (v);
CREATE TABLE parted_1 PARTITION OF parted FOR VALUES FROM (0) TO (10);
CREATE INDEX ON parted (v);
CREATE INDEX ON ONLY parted (v);
SELECT indexrelid::regclass FROM pg_index WHERE indrelid IN ('words'::regclass, 'parted'::regclass, 'parted_1'::regclass) ORDER BY 1;
DROP TABLE parted;
SELECT opcname, amvalidate(oid) FROM pg_opclass WHERE opcname LIKE 'encrypted%' ORDER BY 1;

-- ANALYZE keeps no values, and needs no key.
ANALYZE words;
SELECT attname, null_frac, n_distinct, most_common_vals, histogram_bounds, correlation
  FROM pg_stats WHERE tablename = 'words' AND attname IN ('v', 'b') ORDER BY 1;
CREATE TABLE listed (l encrypted_text('user_pii')[]);
INSERT INTO listed SELECT ARRAY['a', 'b'] FROM generate_series(1, 10);
ANALYZE listed;
SELECT null_frac, n_distinct, most_common_vals, most_common_elems, histogram_bounds FROM pg_stats WHERE tablename = 'listed';
DROP TABLE listed;
DROP TABLE words;
