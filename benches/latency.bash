# For benches/run: what pgbench, which writes to the same table, sees of rotation and migration. None of
# its transactions may fail, and in the end each row must equal the one that a copy of the table has in
# plaintext.

# How long what is compared with lasts, in seconds.
latency_before=20

measure_latency() {
    title "Latency of pgbench's transactions, 2 clients, while $rows rows are rotated and migrated"
    start_cluster "shared_buffers = 1GB" "max_wal_size = 16GB" "checkpoint_timeout = 1h" "jit = off"
    make_latency_tables

    begin_pgbench
    phase "nothing else" "SELECT pg_sleep($latency_before)"
    phase "UPDATE, as one statement" "UPDATE t SET v = v"
    ask "SELECT enc_rotate_key('bench')" >"$cluster/output"
    phase "enc_rotate_column" "CALL enc_rotate_column('t', 'v')"
    ask "SELECT enc_rotate_key('bench')" >"$cluster/output"
    phase "enc_rotate_column, max_rate" \
        "CALL enc_rotate_column('t', 'v', batch_size => 1000, max_rate => $((rows / 40)))"
    phase "enc_decrypt_column" "CALL enc_decrypt_column('t', 'v', 'execute', target_type => 'text')"
    phase "enc_decrypt_column, finish" "CALL enc_decrypt_column('t', 'v', 'finish')"
    phase "enc_encrypt_column" "CALL enc_encrypt_column('t', 'v', 'bench', 'execute')"
    phase "enc_encrypt_column, finish" "CALL enc_encrypt_column('t', 'v', 'bench', 'finish')"
    phase "nothing else, afterwards" "SELECT pg_sleep($latency_before)"
    end_pgbench

    local wrong
    wrong=$(ask "SELECT count(*) FROM t FULL JOIN copy USING (id) WHERE t.v::text IS DISTINCT FROM copy.v")
    [[ $wrong == 0 ]] || die "$wrong rows differ from their copies"
    [[ $(ask "SELECT count(*) FROM t") == "$rows" ]] || die "rows were lost"
    report_latency
    stop_cluster
}

make_latency_tables() {
    psql --set=rows="$rows" --output=/dev/null <<'SQL'
        SET client_min_messages = error;
        CREATE EXTENSION encryption_ext;
        ALTER SYSTEM SET encryption_ext.provider = 'file';
        SELECT pg_reload_conf();
        SET encryption_ext.provider = 'file';
        SELECT enc_create_key('bench');
        CREATE TABLE t (id integer PRIMARY KEY, n integer DEFAULT 0, v encrypted_text('bench')) WITH (fillfactor = 90);
        INSERT INTO t SELECT i, 0, md5(i::text) FROM generate_series(1, :rows) AS i;
        CREATE TABLE copy (id integer PRIMARY KEY, v text) WITH (fillfactor = 90);
        INSERT INTO copy SELECT id, v FROM t;
        CREATE TABLE phase (number serial, what text, began float8, ended float8);
        CREATE TABLE transaction (client integer, number integer, microseconds bigint, script integer, epoch bigint,
            epoch_microseconds bigint);
        VACUUM (FREEZE, ANALYZE);
        CHECKPOINT;
SQL
}

# Runs until end_pgbench.
begin_pgbench() {
    cat >"$cluster/script.sql" <<'SQL'
\set id random(1, :rows)
\set salt random(1, 1000000000)
BEGIN;
UPDATE copy SET v = 'changed ' || :salt WHERE id = :id;
UPDATE t SET v = 'changed ' || :salt, n = n + 1 WHERE id = :id;
COMMIT;
SQL
    "$postgresql/bin/pgbench" --no-vacuum --client=2 --jobs=1 --time=86400 --log --log-prefix="$cluster/pgbench" \
        --define=rows="$rows" --file="$cluster/script.sql" >"$cluster/output" 2>"$cluster/errors" &
    pgbench=$!
}

# Pgbench ends when a transaction fails.
end_pgbench() {
    kill -0 "$pgbench" 2>/dev/null || { cat "$cluster/errors" >&2; die "pgbench has failed"; }
    kill "$pgbench"
    wait "$pgbench" || true
    # The last line may be cut.
    sed '$d' "$cluster"/pgbench.* | psql --command="COPY transaction FROM STDIN (DELIMITER ' ')"
}

# phase WHAT SQL
phase() {
    echo "$1"
    local began=$EPOCHREALTIME
    PGOPTIONS="-c client_min_messages=warning" psql --output=/dev/null --command="$2"
    ask "INSERT INTO phase (what, began, ended)
         VALUES ('$1', $(microseconds "$began") / 1e6, $(microseconds "$EPOCHREALTIME") / 1e6)"
    kill -0 "$pgbench" 2>/dev/null || { cat "$cluster/errors" >&2; die "pgbench has failed"; }
}

report_latency() {
    title "Milliseconds of a transaction that ended meanwhile, and its median as a multiple of the first row's"
    psql <<'SQL'
        WITH measured AS (
            SELECT p.number, p.what, p.ended - p.began AS seconds, t.microseconds / 1e3 AS ms
              FROM phase p LEFT JOIN transaction t
                ON t.epoch + t.epoch_microseconds / 1e6 BETWEEN p.began AND p.ended),
        summary AS (
            SELECT number, what, min(seconds) AS seconds, count(ms) AS transactions,
                   percentile_cont(ARRAY[0.5, 0.95, 0.99, 1]) WITHIN GROUP (ORDER BY ms) AS ms
              FROM measured GROUP BY 1, 2)
        SELECT what, seconds::numeric(9, 1), transactions, ms[1]::numeric(9, 2) AS median,
               ms[2]::numeric(9, 2) AS p95, ms[3]::numeric(9, 2) AS p99, ms[4]::numeric(9, 1) AS slowest,
               (ms[1] / first_value(ms[1]) OVER (ORDER BY number))::numeric(9, 2) AS times_first
          FROM summary ORDER BY number;
SQL
}
