\set SHOW_CONTEXT never
-- Parallel plans: each worker finds keys and settings by itself, also when it or its leader loads the
-- library in the middle of the query.
CREATE TABLE many (id integer, v encrypted_text('user_pii'), p text);
INSERT INTO many SELECT i, p, p FROM generate_series(1, 20000) i, md5(i::text) p;
ANALYZE many;
ALTER DATABASE regression SET parallel_setup_cost = 0;
ALTER DATABASE regression SET parallel_tuple_cost = 0;
ALTER DATABASE regression SET min_parallel_table_scan_size = 0;
ALTER DATABASE regression SET max_parallel_workers_per_gather = 4;
\c -
EXPLAIN (COSTS OFF) SELECT count(*) FROM many WHERE v::text = p;
SELECT count(*) FROM many WHERE v::text = p;
\c -
SELECT v FROM many WHERE p = md5('77');
SHOW encryption_ext.provider;
\c -
SELECT count(*) FROM many x JOIN many y USING (v) WHERE x.id < 100;
\c -
SET ROLE regress_nobody;
SELECT count(*) FROM many WHERE v = 'x';
RESET ROLE;
GRANT SELECT ON many TO regress_nobody;
SET ROLE regress_nobody;
SELECT count(*) FROM many WHERE v = 'x';
RESET ROLE;
ALTER DATABASE regression RESET ALL;
DROP TABLE many;
