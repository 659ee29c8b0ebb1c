-- pgbench's own TPC-B-like transaction, which also reads and writes a customer's name and writes the fillers.
\set aid random(1, 100000 * :scale)
\set bid random(1, 1 * :scale)
\set tid random(1, 10 * :scale)
\set delta random(-5000, 5000)
BEGIN;
UPDATE pgbench_accounts SET abalance = abalance + :delta, name = 'Customer ' || :aid::text,
    filler = repeat('changed by ' || :delta::text || ' ', 5) WHERE aid = :aid;
SELECT abalance, name FROM pgbench_accounts WHERE aid = :aid;
UPDATE pgbench_tellers SET tbalance = tbalance + :delta WHERE tid = :tid;
UPDATE pgbench_branches SET bbalance = bbalance + :delta WHERE bid = :bid;
INSERT INTO pgbench_history (tid, bid, aid, delta, mtime, filler)
    VALUES (:tid, :bid, :aid, :delta, CURRENT_TIMESTAMP, 'changed by ' || :delta::text);
END;
