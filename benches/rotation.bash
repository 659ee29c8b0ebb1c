# For benches/run: rotation of a column with a hash index, against the plain UPDATE that writes the
# same rows.

# How many rows are rotated: a tenth, to see that the cost of a row stays the same, and all.
rotation_sizes() {
    echo $(( rows / 10 ))
    echo "$rows"
}

measure_rotation() {
    title "Rotation in PostgreSQL: $repeats repeats"
    # Not one process: the sessions share the work. What is written is the same in all.
    start_cluster "shared_buffers = 1GB" "max_wal_size = 16GB" "checkpoint_timeout = 1h" \
        "autovacuum = off" "jit = off"
    psql --output=/dev/null <<'SQL'
        SET client_min_messages = error;
        CREATE EXTENSION encryption_ext;
        ALTER SYSTEM SET encryption_ext.provider = 'file';
        SELECT pg_reload_conf();
        SET encryption_ext.provider = 'file';
        SELECT enc_create_key('bench');
        CREATE TABLE rotation (number serial, size integer, what text, seconds float8);
SQL
    local size repeat sessions
    for size in $(rotation_sizes); do
        for (( repeat = 1; repeat <= repeats; repeat++ )); do
            echo "$size rows, repeat $repeat of $repeats"
            rotation_run "$size" "UPDATE" 1 "UPDATE t SET v = v"
            for sessions in 1 2 4; do
                rotation_run "$size" "enc_rotate_column, $sessions session(s)" "$sessions" \
                    "CALL enc_rotate_column('t', 'v')"
            done
        done
    done
    report_rotation
    stop_cluster
}

# rotation_run SIZE WHAT SESSIONS SQL: the time that sessions take which begin SQL at once, each time
# on a new table, so that none profits from the room that another left.
rotation_run() {
    psql --output=/dev/null --set=size="$1" <<'SQL'
        SET client_min_messages = error;
        DROP TABLE IF EXISTS t;
        CREATE TABLE t (id integer PRIMARY KEY, v encrypted_text('bench'));
        INSERT INTO t SELECT i, md5(i::text) FROM generate_series(1, :size) AS i;
        CREATE INDEX ON t USING hash (v);
        VACUUM (FREEZE, ANALYZE) t;
        SELECT enc_rotate_key('bench');
        CHECKPOINT;
SQL
    local began ended session pids=()
    began=$EPOCHREALTIME
    for (( session = 1; session <= $3; session++ )); do
        PGOPTIONS="-c client_min_messages=warning" psql --output=/dev/null --command="$4" &
        pids+=($!)
    done
    for session in "${pids[@]}"; do
        wait "$session" || die "$2 failed"
    done
    ended=$EPOCHREALTIME
    local left
    left=$(ask "SELECT count(*) FROM t WHERE encryption.is_outdated(v)")
    [[ $2 == UPDATE || $left == 0 ]] || die "$left values were not rotated"
    ask "INSERT INTO rotation (size, what, seconds)
         VALUES ($1, '$2', ($(microseconds "$ended") - $(microseconds "$began")) / 1e6)"
}

microseconds() {
    echo "${1/[.,]/}"
}

report_rotation() {
    title "Rows a second, microseconds a row, and the rate as a share of UPDATE's"
    psql <<'SQL'
        WITH median AS (
            SELECT size, what, min(number) AS number,
                   percentile_cont(0.5) WITHIN GROUP (ORDER BY seconds) AS seconds
              FROM rotation GROUP BY 1, 2)
        SELECT m.size AS rows, m.what, round(m.size / m.seconds) AS rows_per_second,
               (m.seconds * 1e6 / m.size)::numeric(9, 2) AS microseconds_per_row,
               (plain.seconds / m.seconds)::numeric(9, 2) AS of_update
          FROM median m JOIN median plain ON plain.size = m.size AND plain.what = 'UPDATE'
         ORDER BY m.number;
SQL
}
