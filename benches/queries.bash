# For benches/run: queries and indexes on encrypted columns, each against the same on text, the two
# interleaved in one run.

# Real-looking values of some 20 bytes, a tenth of them more than once.
make_query_tables() {
    psql --set=rows="$rows" --output=/dev/null <<'SQL'
        SET client_min_messages = error;
        CREATE EXTENSION encryption_ext;
        ALTER SYSTEM SET encryption_ext.provider = 'file';
        SELECT pg_reload_conf();
        SET encryption_ext.provider = 'file';
        SELECT enc_create_key('bench');

        CREATE TABLE plain AS
            SELECT i AS id, format('%s.%s@example.com', substr(md5((i % (:rows * 9 / 10))::text), 1, 6), i % (:rows * 9 / 10)) AS v
              FROM generate_series(1, :rows) AS i;
        CREATE TABLE sealed (id integer, v encrypted_text('bench'));
        INSERT INTO sealed SELECT id, v FROM plain;
        CREATE TABLE few_plain AS SELECT id, v FROM plain WHERE id % 10 = 0;
        CREATE TABLE few_sealed (id integer, v encrypted_text('bench'));
        INSERT INTO few_sealed SELECT id, v FROM few_plain;
        CREATE TABLE queries (number serial, operation text, form text, milliseconds float8);
        VACUUM (FREEZE, ANALYZE);
        CHECKPOINT;
SQL
    [[ $(ask "SELECT count(*) FROM plain JOIN sealed USING (id) WHERE plain.v <> sealed.v") == 0 ]] ||
        die "the tables differ"
}

measure_queries() {
    title "Queries in PostgreSQL: $rows values, $repeats repeats"
    start_cluster "shared_buffers = 1GB" "max_wal_size = 16GB" "checkpoint_timeout = 1h" \
        "autovacuum = off" "jit = off" "max_parallel_workers_per_gather = 0" \
        "max_parallel_maintenance_workers = 0" "maintenance_work_mem = 512MB"
    make_query_tables

    local repeat
    for (( repeat = 1; repeat <= repeats; repeat++ )); do
        echo "repeat $repeat of $repeats"
        psql --command="SET client_min_messages = warning" \
            --command="DROP INDEX IF EXISTS plain_hash, sealed_hash, plain_btree, sealed_digest"
        query_pair "count, v = constant" "SELECT count(*) FROM :t WHERE v = 'nobody'"
        query_pair "join with 1/10" "SELECT count(*) FROM :t JOIN few_:t USING (v)"
        query_pair "DISTINCT" "SELECT count(*) FROM (SELECT DISTINCT v FROM :t) AS d"
        query_pair "ORDER BY in memory" "SELECT v FROM :t ORDER BY v OFFSET $rows"
        query_pair "ORDER BY, work_mem 4MB" "SET work_mem = '4MB'; SELECT v FROM :t ORDER BY v OFFSET $rows"
        query_pair "build, hash index" "CREATE INDEX :t_hash ON :t USING hash (v)"
        query "build, btree or digest index" plain \
            "CREATE INDEX plain_btree ON plain (v)"
        query "build, btree or digest index" sealed \
            "CREATE INDEX sealed_digest ON sealed (enc_digest(v))"
        lookups
    done
    report_queries
    stop_cluster
}

# query_pair OPERATION SQL: for both tables, which :t names.
query_pair() {
    query "$1" plain "${2//:t/plain}"
    query "$1" sealed "${2//:t/sealed}"
}

# query OPERATION FORM SQL: the time of the last of the statements.
query() {
    local milliseconds before=()
    [[ $3 != *"; "* ]] || before=(--command="${3%; *}")
    milliseconds=$(psql --command='\o /dev/null' --command="SELECT 'warm'::encrypted_text('bench')::text" \
        --command="SET work_mem = '1GB'" --command="SET client_min_messages = warning" \
        --command='\timing on' "${before[@]}" --command="${3##*; }" |
        sed -n 's/^Time: \([0-9.]*\) ms.*/\1/p' | tail -n 1)
    record "$1" "$2" "$milliseconds"
}

record() {
    ask "INSERT INTO queries (operation, form, milliseconds) VALUES ('$1', '$2', $3)"
}

# One client that looks values up by prepared statements, with one kind of index at a time.
lookups() {
    # An index on an expression has statistics of its own.
    psql --command="ANALYZE plain, sealed"
    lookup "look-up, hash index" plain plain_hash plain_btree
    lookup "look-up, hash index" sealed sealed_hash sealed_digest
    lookup "look-up, btree or digest index" plain plain_btree plain_hash
    lookup "look-up, btree or digest index" sealed sealed_digest sealed_hash
}

# lookup OPERATION TABLE INDEX OTHER_INDEX: the time of one.
lookup() {
    ask "UPDATE pg_index SET indisvalid = (indexrelid = '$3'::regclass)
          WHERE indexrelid IN ('$3'::regclass, '$4'::regclass)"
    cat >"$cluster/lookup.sql" <<SQL
\\set i random(1, $rows * 9 / 10 - 1)
SELECT id FROM $2 WHERE v = format('%s.%s@example.com', substr(md5(:i::text), 1, 6), :i::int);
SQL
    local milliseconds
    milliseconds=$("$postgresql/bin/pgbench" --no-vacuum --protocol=prepared --time=5 \
        --file="$cluster/lookup.sql" 2>"$cluster/pgbench.log" |
        sed -n 's/^latency average = \([0-9.]*\) ms.*/\1/p')
    [[ $milliseconds ]] || { cat "$cluster/pgbench.log" >&2; die "pgbench failed"; }
    record "$1" "$2" "$milliseconds"
}

report_queries() {
    title "Milliseconds, and how many times those on text"
    psql <<'SQL'
        WITH form AS (
            SELECT operation, form, min(number) AS number,
                   percentile_cont(0.5) WITHIN GROUP (ORDER BY milliseconds) AS median
              FROM queries GROUP BY 1, 2)
        SELECT plain.operation, plain.median::numeric(9, 3) AS text, sealed.median::numeric(9, 3) AS encrypted,
               (sealed.median / plain.median)::numeric(9, 2) AS times_text
          FROM form AS plain JOIN form AS sealed USING (operation)
         WHERE plain.form = 'plain' AND sealed.form = 'sealed' ORDER BY plain.number;
SQL
    title "Bytes of indexes"
    ask "SELECT relname || ' ' || pg_relation_size(oid) FROM pg_class
          WHERE relname IN ('plain_hash', 'sealed_hash', 'plain_btree', 'sealed_digest') ORDER BY 1"
}
