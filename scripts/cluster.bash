# For scripts/demo: a PostgreSQL 15 cluster that lives in build/ as long as the script that sources
# this file. The caller's folder must be the project's.
#
#   start_cluster [SETTING=VALUE...]    makes and starts it; psql then finds it by itself
#   stop_cluster                        stops and removes it; also when the script ends or is ended
#
# $cluster is its folder, for the caller's files, too: the server may read and write there. Nobody
# else may, nor connect: it trusts whoever reaches its socket, so only its user and root can.

postgresql=build/postgresql/15
cluster=

start_cluster() {
    [[ -e $postgresql/share/postgresql/15/extension/encryption_ext.control ]] ||
        die "the extension isn't installed in $postgresql: start this by make"
    trap stop_cluster EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM
    trap 'exit 129' HUP

    postgresql=$(realpath "$postgresql")
    cluster=$(mktemp -d "$(realpath build)/cluster.XXXXXX")
    # Elsewhere, as a socket's path can't be longer than 107 bytes.
    socket_folder=$(mktemp -d /tmp/encryption_ext.XXXXXX)
    (( EUID != 0 )) || chown postgres: "$cluster" "$socket_folder"

    as_server initdb --pgdata="$cluster/data" --username=postgres --auth=trust \
        --encoding=UTF8 --locale=C.UTF-8 --no-sync >"$cluster/initdb.log" 2>&1 ||
        { cat "$cluster/initdb.log" >&2; die "initdb failed"; }
    printf '%s\n' "unix_socket_directories = '$socket_folder'" "listen_addresses = ''" \
        "lc_messages = 'C'" "timezone = 'UTC'" "fsync = off" "$@" \
        >>"$cluster/data/postgresql.conf"
    as_server pg_ctl start --wait --silent --pgdata="$cluster/data" --log="$cluster/log" ||
        { cat "$cluster/log" >&2; die "the server didn't start"; }

    # What was meant for another server would lead psql there, or change what it prints.
    unset "${!PG@}"
    export PGHOST=$socket_folder PGUSER=postgres PGDATABASE=postgres PGCLIENTENCODING=UTF8
}

stop_cluster() {
    [[ $cluster ]] || return 0
    trap '' INT TERM HUP
    if [[ -e $cluster/data/postmaster.pid ]]; then
        as_server pg_ctl stop --wait --silent --mode=immediate --pgdata="$cluster/data" || true
    fi
    rm -rf "$cluster" "$socket_folder"
    cluster=
}

# Runs a program of PostgreSQL's as the user that the server runs as: it refuses to run as root.
as_server() {
    local program=$postgresql/bin/$1
    shift
    if (( EUID == 0 )); then
        (cd / && setpriv --reuid=postgres --regid=postgres --init-groups "$program" "$@")
    else
        "$program" "$@"
    fi
}

# Without the user's ~/.psqlrc; the first error is the last statement.
psql() {
    "$postgresql/bin/psql" --no-psqlrc --quiet --set=ON_ERROR_STOP=1 "$@"
}

# ask SQL: prints the result alone, columns parted by "|".
ask() {
    psql --tuples-only --no-align --command="$1"
}

die() {
    echo "${0##*/}: $*" >&2
    exit 1
}
