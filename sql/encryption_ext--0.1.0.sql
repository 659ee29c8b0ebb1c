-- encryption_ext 0.1.0
--
-- The catalog of keys is in schema "encryption". Types, functions, operators and views go into the
-- schema that CREATE EXTENSION names.

\echo Use "CREATE EXTENSION encryption_ext" to load this file. \quit

----------------------------------------------------------------------------------------------------
-- Catalog: which keys and versions exist, and who may use them. It holds no usable secret. It is
-- changed by the functions below alone, and read by the library with system-table scans, or page by
-- page, which rely on the order and the types of the columns. (An upgrade that adds a column has to
-- write all rows of the table.)
----------------------------------------------------------------------------------------------------

CREATE SCHEMA encryption;

-- The server that this database is on, as far as it tells whether data were restored: its cluster,
-- its timeline, and the base backup that it was started from. No row on a standby.
CREATE FUNCTION encryption.this_server(
        OUT system_identifier bigint, OUT timeline integer, OUT base_backup text)
    RETURNS SETOF record ROWS 1
    LANGUAGE c STRICT AS 'MODULE_PATHNAME', 'encryption_this_server';

-- The random id of this database, part of every version's encryption context; and the server on which
-- its keys were last known to be those that the providers have: null since a dump was restored.
CREATE TABLE encryption.keyspace (
    singleton         boolean     NOT NULL DEFAULT true PRIMARY KEY CHECK (singleton),
    id                uuid        NOT NULL DEFAULT gen_random_uuid(),
    created_at        timestamptz NOT NULL DEFAULT now(),
    -- The version of the database key whose digests indexes and generated columns hold. Rotating
    -- the key leaves it, and with it every index, as it is; enc_rotate_digest() changes it.
    digest_version    integer     CHECK (digest_version > 0),
    system_identifier bigint,
    timeline          integer,
    base_backup       text,
    reconciled_at     timestamptz
);
COMMENT ON TABLE encryption.keyspace IS
    'the random id of this database, the version of the database key that digests are made with, and the server that it was last seen on';

INSERT INTO encryption.keyspace (system_identifier, timeline, base_backup)
SELECT system_identifier, timeline, base_backup FROM encryption.this_server();

-- A key's id is the first four bytes of SHA-256(name) with the top bit cleared. It is what a
-- column's type modifier and a value's header have.
CREATE TABLE encryption.key (
    key_id      integer     NOT NULL PRIMARY KEY,
    name        text        COLLATE "C" NOT NULL UNIQUE
                            CHECK (name ~ '^[a-z0-9][a-z0-9_.-]{0,62}$'),
    owner       regrole     NOT NULL,
    created_at  timestamptz NOT NULL DEFAULT now(),
    -- What roles with the privilege mask are shown of its values: null for the default.
    mask        text        CHECK (octet_length(mask) <= 1024),
    -- What it is for; the rules that it is under, such as gdpr; how often it is to be rotated.
    purpose     text        CHECK (octet_length(purpose) BETWEEN 1 AND 1024),
    labels      text[]      COLLATE "C" NOT NULL DEFAULT '{}'
                            CHECK (array_to_string(labels, ' ', '?')
                                   ~ '^([a-z0-9][a-z0-9_.:-]{0,62}( [a-z0-9][a-z0-9_.:-]{0,62}){0,31})?$'),
    -- From the shortest month on, it still ends later than it begins.
    rotation_period interval
                            CHECK (rotation_period <= '100 years'
                                   AND timestamp '2001-02-01' + rotation_period > '2001-02-01'),
    CONSTRAINT key_id_is_of_name CHECK (
        -- The name is ASCII without backslashes, so its bytes are the same in every encoding.
        key_id = ('x' || encode(substr(sha256(name::bytea), 1, 4), 'hex'))::bit(32)::integer
                 & 2147483647)
);
COMMENT ON TABLE encryption.key IS 'keys';

-- The tables that a dump carries have no foreign keys: pg_restore with several jobs fills an extension's tables in
-- any order. The functions that write them see to it that what they name is there.

-- A version's bytes come from its provider, by the reference, or by unwrapping what is stored here.
-- The check value tells whether what the provider returned is the right key.
CREATE TABLE encryption.key_version (
    key_id        integer     NOT NULL,
    version       integer     NOT NULL CHECK (version > 0),
    state         text        NOT NULL
                              CHECK (state IN ('pending', 'active', 'deprecated', 'disabled', 'destroyed')),
    provider      text        NOT NULL,
    reference     text        NOT NULL,
    wrapped       bytea,
    check_value   bytea       NOT NULL CHECK (octet_length(check_value) = 16),
    keyspace      uuid        NOT NULL,
    created_at    timestamptz NOT NULL DEFAULT now(),
    created_by    regrole     NOT NULL,
    activated_at  timestamptz,
    deprecated_at timestamptz,
    PRIMARY KEY (key_id, version)
);
COMMENT ON TABLE encryption.key_version IS 'versions of keys: state, and where their bytes come from';

CREATE UNIQUE INDEX key_version_one_active ON encryption.key_version (key_id) WHERE state = 'active';

-- Grantee 0 is PUBLIC.
CREATE TABLE encryption.key_grant (
    key_id      integer     NOT NULL,
    grantee     regrole     NOT NULL,
    privilege   text        NOT NULL CHECK (privilege IN ('encrypt', 'compare', 'mask', 'decrypt')),
    granted_by  regrole     NOT NULL,
    granted_at  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (key_id, grantee, privilege)
);
COMMENT ON TABLE encryption.key_grant IS 'who may do what with a key, apart from its owner';

-- Backups that may be restored, and the versions that were needed to read them when they were
-- recorded. What is archived after one of them (with_wal) may need any version that was made later.
CREATE TABLE encryption.backup (
    label          text        NOT NULL PRIMARY KEY CHECK (label <> ''),
    recorded_at    timestamptz NOT NULL DEFAULT now(),
    recorded_by    name        NOT NULL,
    retained_until timestamptz NOT NULL,
    with_wal       boolean     NOT NULL
);
COMMENT ON TABLE encryption.backup IS 'backups that may be restored';

CREATE TABLE encryption.backup_version (
    label   text    NOT NULL,
    key_id  integer NOT NULL,
    version integer NOT NULL,
    PRIMARY KEY (label, key_id, version)
);
COMMENT ON TABLE encryption.backup_version IS 'versions of keys that backups need';

-- The backup that needs a version for the longest time, null if none does any more.
CREATE FUNCTION encryption.retained_by_backup(key_id integer, version integer) RETURNS text
    LANGUAGE sql STABLE STRICT SET search_path = pg_catalog, pg_temp AS $$
    SELECT b.label
      FROM encryption.backup b
     WHERE b.retained_until > clock_timestamp()
       AND (EXISTS (SELECT FROM encryption.backup_version needed
                     WHERE needed.label = b.label AND needed.key_id = $1 AND needed.version = $2)
            OR b.with_wal AND $2 > coalesce((SELECT max(needed.version)
                                               FROM encryption.backup_version needed
                                              WHERE needed.label = b.label AND needed.key_id = $1), 0))
     ORDER BY b.retained_until DESC, b.label
     LIMIT 1
$$;

-- The chains of the lifecycle log: this database's own, and those of databases whose dumps were
-- restored here. entries counts those that were made. Up to sealed they carry digests, and digest is
-- that of the head, under version key_version of the database key.
CREATE TABLE encryption.event_chain (
    chain         uuid        NOT NULL DEFAULT gen_random_uuid() PRIMARY KEY,
    started_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    restored_at   timestamptz,
    entries       bigint      NOT NULL DEFAULT 0,
    sealed        bigint      NOT NULL DEFAULT 0,
    key_version   integer,
    digest        bytea       CHECK (octet_length(digest) = 32)
);
COMMENT ON TABLE encryption.event_chain IS 'heads of the lifecycle log';

CREATE UNIQUE INDEX event_chain_one_own ON encryption.event_chain ((true)) WHERE restored_at IS NULL;

-- Names instead of references: an entry outlives what it tells of. Its digest is over all columns
-- before it and the digest of the entry before it; an entry that was made while the database key
-- could not be had gets it with the next one.
CREATE TABLE encryption.key_event (
    chain             uuid        NOT NULL,
    sequence          bigint      NOT NULL CHECK (sequence > 0),
    occurred_at       timestamptz NOT NULL DEFAULT clock_timestamp(),
    action            text        NOT NULL,
    key_name          text,
    old_version       integer,
    new_version       integer,
    row_count         bigint,
    reason            text,
    detail            text,
    role_name         name        NOT NULL,
    session_role_name name        NOT NULL,
    client_address    text,
    application_name  text        NOT NULL,
    sealed_at         timestamptz,
    key_version       integer,
    digest            bytea,
    PRIMARY KEY (chain, sequence)
);
COMMENT ON TABLE encryption.key_event IS 'lifecycle log: what was done to keys, when, by whom and from where';

-- Work on a column that takes many transactions: re-encryption, and migration from and to plaintext.
-- It outlives crashes and cancels; the call that began it goes on where it was. Object ids say what
-- it works on, whatever is renamed meanwhile; names say what it worked on after that is gone. A dump
-- leaves jobs out, since object ids and blocks mean nothing elsewhere.
CREATE TABLE encryption.job (
    job_id        bigint      NOT NULL GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    kind          text        NOT NULL CHECK (kind IN ('rotate', 'encrypt', 'decrypt')),
    -- running: as far as anyone knows. paused: until a provider answers again. canceled: by
    -- enc_rotation_cancel. failed: by last_error. incomplete: walked, but with values left out that
    -- last_error tells of. completed: for good; the next call begins another job.
    state         text        NOT NULL DEFAULT 'running'
                              CHECK (state IN ('running', 'paused', 'canceled', 'failed', 'incomplete', 'completed')),
    table_id      oid         NOT NULL,
    column_number smallint    NOT NULL,
    table_name    text        NOT NULL,
    column_name   name        NOT NULL,
    key_name      text,
    from_version  integer,
    to_version    integer,
    options       jsonb       NOT NULL DEFAULT '{}',
    -- How often the table was begun to be walked, and what the finished steps came to.
    pass          integer     NOT NULL DEFAULT 0,
    rows_total    bigint,
    rows_done     bigint      NOT NULL DEFAULT 0,
    rows_damaged  bigint      NOT NULL DEFAULT 0,
    last_error    text,
    started_by    name        NOT NULL,
    started_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    changed_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    -- When the job was begun or gone on with last, and how many rows were done then.
    resumed_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    resumed_rows  bigint      NOT NULL DEFAULT 0,
    ended_at      timestamptz
);
COMMENT ON TABLE encryption.job IS 'work on columns that takes many transactions';

CREATE UNIQUE INDEX job_one_per_column ON encryption.job (table_id, column_number) WHERE state <> 'completed';

-- The parts of a job's present step. A session claims one by locking its row, for one transaction at
-- a time: so the claim of a session that is gone is gone with it, and what it committed is kept.
CREATE TABLE encryption.job_range (
    range_id      bigint      NOT NULL GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    job_id        bigint      NOT NULL REFERENCES encryption.job ON DELETE CASCADE,
    -- What is done with it: walk (change the rows of these blocks), verify (read them again), or check (see with one snapshot
    -- what is left in the whole table; its blocks are 0 to 1).
    step          text        NOT NULL CHECK (step IN ('walk', 'verify', 'check')),
    table_id      oid         NOT NULL,
    first_block   bigint      NOT NULL,
    next_block    bigint      NOT NULL,
    end_block     bigint      NOT NULL,
    rows_done     bigint      NOT NULL DEFAULT 0,
    rows_locked   bigint      NOT NULL DEFAULT 0,
    rows_damaged  bigint      NOT NULL DEFAULT 0,
    -- Who worked on it last.
    worker        integer,
    changed_at    timestamptz
);
COMMENT ON TABLE encryption.job_range IS 'parts of the present step of jobs, which sessions claim';

CREATE INDEX job_range_job_id ON encryption.job_range (job_id);

-- What enc_verify_version_unused found out. A dump leaves it out: it proves nothing of a copy.
CREATE TABLE encryption.version_proof (
    proof_id    bigint      NOT NULL GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    key_id      integer     NOT NULL,
    version     integer     NOT NULL,
    -- Every transaction that began before had ended when the database was looked through.
    horizon     timestamptz NOT NULL,
    is_unused   boolean     NOT NULL,
    findings    jsonb       NOT NULL,
    verified_by name        NOT NULL,
    verified_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    FOREIGN KEY (key_id, version) REFERENCES encryption.key_version ON DELETE CASCADE
);
COMMENT ON TABLE encryption.version_proof IS 'proofs that a version of a key is unused, and attempts at one';

-- Keys that are rotated when their rotation period is over. A dump carries them. What a dump brings waits
-- until somebody confirms it: a copy of the database must not rotate keys by itself.
CREATE TABLE encryption.rotation_schedule (
    key_id            integer     NOT NULL PRIMARY KEY,
    auto_reencrypt    boolean     NOT NULL,
    -- Whose rights it has: the current user of who scheduled it, and who had logged in.
    scheduled_by      regrole     NOT NULL,
    session_role      regrole     NOT NULL,
    scheduled_at      timestamptz NOT NULL DEFAULT clock_timestamp(),
    is_enabled        boolean     NOT NULL DEFAULT false,
    rotated_at        timestamptz,
    -- The version that values are to be encrypted again under, until none is left under another one; and
    -- when a worker was started for that.
    reencrypt_to      integer,
    worker_started_at timestamptz,
    last_error        text,
    last_error_at     timestamptz
);
COMMENT ON TABLE encryption.rotation_schedule IS 'keys that are rotated when their rotation period is over, and by whose order';

-- A dump of the database carries the catalog.
SELECT pg_extension_config_dump('encryption.keyspace', '');
SELECT pg_extension_config_dump('encryption.key', '');
SELECT pg_extension_config_dump('encryption.key_version', '');
SELECT pg_extension_config_dump('encryption.key_grant', '');
SELECT pg_extension_config_dump('encryption.rotation_schedule', '');
SELECT pg_extension_config_dump('encryption.backup', '');
SELECT pg_extension_config_dump('encryption.backup_version', '');
SELECT pg_extension_config_dump('encryption.event_chain', '');
SELECT pg_extension_config_dump('encryption.key_event', '');

-- Procedures that commit run with the rights of their caller, who calls functions in the schema. Its
-- tables are nobody's but their owner's.
GRANT USAGE ON SCHEMA encryption TO PUBLIC;

-- Every session learns of a change when it commits.
CREATE FUNCTION encryption.send_invalidation() RETURNS trigger
    LANGUAGE c AS 'MODULE_PATHNAME', 'encryption_send_invalidation';

CREATE TRIGGER send_invalidation AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON encryption.keyspace
    FOR EACH STATEMENT EXECUTE FUNCTION encryption.send_invalidation();
CREATE TRIGGER send_invalidation AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON encryption.key
    FOR EACH STATEMENT EXECUTE FUNCTION encryption.send_invalidation();
CREATE TRIGGER send_invalidation AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON encryption.key_version
    FOR EACH STATEMENT EXECUTE FUNCTION encryption.send_invalidation();
CREATE TRIGGER send_invalidation AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON encryption.key_grant
    FOR EACH STATEMENT EXECUTE FUNCTION encryption.send_invalidation();

ALTER TABLE encryption.keyspace    ENABLE ALWAYS TRIGGER send_invalidation;
ALTER TABLE encryption.key         ENABLE ALWAYS TRIGGER send_invalidation;
ALTER TABLE encryption.key_version ENABLE ALWAYS TRIGGER send_invalidation;
ALTER TABLE encryption.key_grant   ENABLE ALWAYS TRIGGER send_invalidation;

-- What a dump brings meets what is here: identical rows are skipped, conflicting ones are refused,
-- and nothing here is weakened. A destroyed version stays destroyed.
CREATE FUNCTION encryption.restore_keyspace() RETURNS trigger
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM encryption.keyspace) THEN
        new.system_identifier := NULL;
        RETURN new;
    END IF;
    -- The id that CREATE EXTENSION drew gives way while no version was made in it (restored ones
    -- carry the id that they were made in). Otherwise this database goes on with its own.
    IF NOT EXISTS (SELECT FROM encryption.key_version v JOIN encryption.keyspace k ON k.id = v.keyspace) THEN
        UPDATE encryption.keyspace
           SET id = new.id, created_at = new.created_at, digest_version = new.digest_version,
               system_identifier = NULL, timeline = NULL, base_backup = NULL, reconciled_at = NULL;
    END IF;
    RETURN NULL;
END $$;

CREATE FUNCTION encryption.restore_key() RETURNS trigger
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    present encryption.key;
BEGIN
    SELECT * INTO present FROM encryption.key WHERE key.key_id = new.key_id;
    IF NOT FOUND THEN
        RETURN new;
    END IF;
    IF present.name <> new.name THEN
        RAISE EXCEPTION USING ERRCODE = 'KE005',
            MESSAGE = format('key name "%s" has the same id as key "%s"', new.name, present.name),
            DETAIL = 'The 31-bit id that values carry is derived from the name alone.',
            HINT = 'Choose another name.';
    END IF;
    RETURN NULL;
END $$;

CREATE FUNCTION encryption.restore_key_version() RETURNS trigger
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    present encryption.key_version;
BEGIN
    SELECT * INTO present FROM encryption.key_version
     WHERE key_version.key_id = new.key_id AND key_version.version = new.version;
    IF FOUND THEN
        IF present.check_value = new.check_value AND present.keyspace = new.keyspace THEN
            RETURN NULL;
        END IF;
        RAISE EXCEPTION USING ERRCODE = 'KE016',
            MESSAGE = format('version %s of key "%s" is another key here', new.version,
                (SELECT name FROM encryption.key WHERE key.key_id = new.key_id)),
            DETAIL = 'The key check values differ: values of the other database cannot be decrypted here.',
            HINT = 'Restore into a database of its own.';
    END IF;
    -- This database's active version stays the active one.
    IF new.state = 'active' AND EXISTS (
        SELECT FROM encryption.key_version
         WHERE key_version.key_id = new.key_id AND key_version.state = 'active')
    THEN
        new.state := 'deprecated';
        new.deprecated_at := now();
    END IF;
    RETURN new;
END $$;

CREATE FUNCTION encryption.restore_key_grant() RETURNS trigger
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF EXISTS (
        SELECT FROM encryption.key_grant present
         WHERE present.key_id = new.key_id AND present.grantee::oid = new.grantee::oid
           AND present.privilege = new.privilege)
    THEN
        RETURN NULL;
    END IF;
    RETURN new;
END $$;

CREATE FUNCTION encryption.restore_rotation_schedule() RETURNS trigger
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF EXISTS (SELECT FROM encryption.rotation_schedule present WHERE present.key_id = new.key_id) THEN
        RETURN NULL;
    END IF;
    new.is_enabled := false;
    new.reencrypt_to := NULL;
    new.worker_started_at := NULL;
    new.last_error := NULL;
    new.last_error_at := NULL;
    RETURN new;
END $$;

CREATE FUNCTION encryption.restore_backup() RETURNS trigger
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    UPDATE encryption.backup b
       SET retained_until = greatest(b.retained_until, new.retained_until),
           with_wal = b.with_wal OR new.with_wal
     WHERE b.label = new.label;
    IF FOUND THEN
        RETURN NULL;
    END IF;
    RETURN new;
END $$;

CREATE FUNCTION encryption.restore_backup_version() RETURNS trigger
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF EXISTS (
        SELECT FROM encryption.backup_version present
         WHERE present.label = new.label AND present.key_id = new.key_id
           AND present.version = new.version)
    THEN
        RETURN NULL;
    END IF;
    RETURN new;
END $$;

-- The log of a dump stays a chain of its own. This database goes on with its own.
CREATE FUNCTION encryption.restore_event_chain() RETURNS trigger
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    present encryption.event_chain;
BEGIN
    SELECT * INTO present FROM encryption.event_chain WHERE event_chain.chain = new.chain;
    IF FOUND THEN
        -- A later dump of the same database continues what an earlier one brought.
        IF present.restored_at IS NOT NULL AND present.entries < new.entries THEN
            UPDATE encryption.event_chain
               SET entries = new.entries, sealed = new.sealed,
                   key_version = new.key_version, digest = new.digest
             WHERE event_chain.chain = new.chain;
        END IF;
        RETURN NULL;
    END IF;
    -- One that has no entries yet is begun by the library.
    IF new.entries > 0 THEN
        new.restored_at := coalesce(new.restored_at, clock_timestamp());
    END IF;
    RETURN new;
END $$;

CREATE FUNCTION encryption.restore_key_event() RETURNS trigger
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    present encryption.key_event;
    as_sealed_here encryption.key_event := new;
    is_own boolean := EXISTS (SELECT FROM encryption.event_chain
                               WHERE event_chain.chain = new.chain AND event_chain.restored_at IS NULL);
BEGIN
    SELECT * INTO present FROM encryption.key_event
     WHERE key_event.chain = new.chain AND key_event.sequence = new.sequence;
    IF NOT FOUND THEN
        -- What this database adds to its own chain has no digest yet.
        IF new.digest IS NULL OR NOT is_own THEN
            RETURN new;
        END IF;
    ELSE
        as_sealed_here.sealed_at := present.sealed_at;
        as_sealed_here.key_version := present.key_version;
        as_sealed_here.digest := present.digest;
        IF present IS NOT DISTINCT FROM new
           OR new.digest IS NULL AND present IS NOT DISTINCT FROM as_sealed_here
        THEN
            RETURN NULL;
        END IF;
        -- A later dump of the same database has the digest that an earlier one lacked.
        IF present.digest IS NULL AND present IS NOT DISTINCT FROM as_sealed_here AND NOT is_own THEN
            UPDATE encryption.key_event
               SET sealed_at = new.sealed_at, key_version = new.key_version, digest = new.digest
             WHERE key_event.chain = new.chain AND key_event.sequence = new.sequence;
            RETURN NULL;
        END IF;
    END IF;
    RAISE EXCEPTION USING ERRCODE = 'KE053',
        MESSAGE = format('entry %s of the lifecycle log is not the one that this database has', new.sequence),
        DETAIL = 'Dump and database have gone different ways since the chain began, or one was altered.',
        HINT = 'Restore the log into a database of its own, and see enc_verify_log() in both.';
END $$;

CREATE TRIGGER restore BEFORE INSERT ON encryption.keyspace
    FOR EACH ROW EXECUTE FUNCTION encryption.restore_keyspace();
CREATE TRIGGER restore BEFORE INSERT ON encryption.key
    FOR EACH ROW EXECUTE FUNCTION encryption.restore_key();
CREATE TRIGGER restore BEFORE INSERT ON encryption.key_version
    FOR EACH ROW EXECUTE FUNCTION encryption.restore_key_version();
CREATE TRIGGER restore BEFORE INSERT ON encryption.key_grant
    FOR EACH ROW EXECUTE FUNCTION encryption.restore_key_grant();
CREATE TRIGGER restore BEFORE INSERT ON encryption.rotation_schedule
    FOR EACH ROW EXECUTE FUNCTION encryption.restore_rotation_schedule();
CREATE TRIGGER restore BEFORE INSERT ON encryption.backup
    FOR EACH ROW EXECUTE FUNCTION encryption.restore_backup();
CREATE TRIGGER restore BEFORE INSERT ON encryption.backup_version
    FOR EACH ROW EXECUTE FUNCTION encryption.restore_backup_version();
CREATE TRIGGER restore BEFORE INSERT ON encryption.event_chain
    FOR EACH ROW EXECUTE FUNCTION encryption.restore_event_chain();
CREATE TRIGGER restore BEFORE INSERT ON encryption.key_event
    FOR EACH ROW EXECUTE FUNCTION encryption.restore_key_event();

ALTER TABLE encryption.keyspace       ENABLE ALWAYS TRIGGER restore;
ALTER TABLE encryption.key            ENABLE ALWAYS TRIGGER restore;
ALTER TABLE encryption.key_version    ENABLE ALWAYS TRIGGER restore;
ALTER TABLE encryption.key_grant      ENABLE ALWAYS TRIGGER restore;
ALTER TABLE encryption.rotation_schedule ENABLE ALWAYS TRIGGER restore;
ALTER TABLE encryption.backup         ENABLE ALWAYS TRIGGER restore;
ALTER TABLE encryption.backup_version ENABLE ALWAYS TRIGGER restore;
ALTER TABLE encryption.event_chain    ENABLE ALWAYS TRIGGER restore;
ALTER TABLE encryption.key_event      ENABLE ALWAYS TRIGGER restore;

-- A publication FOR ALL TABLES has these tables in it. What it sends of them is left out by the subscriber:
-- keys, grants, jobs and proofs are each database's own.
CREATE FUNCTION encryption.leave_out_replicated() RETURNS trigger
    LANGUAGE c AS 'MODULE_PATHNAME', 'encryption_leave_out_replicated';

CREATE TRIGGER leave_out_replicated BEFORE INSERT OR UPDATE OR DELETE ON encryption.keyspace
    FOR EACH ROW EXECUTE FUNCTION encryption.leave_out_replicated();
CREATE TRIGGER leave_out_replicated BEFORE INSERT OR UPDATE OR DELETE ON encryption.key
    FOR EACH ROW EXECUTE FUNCTION encryption.leave_out_replicated();
CREATE TRIGGER leave_out_replicated BEFORE INSERT OR UPDATE OR DELETE ON encryption.key_version
    FOR EACH ROW EXECUTE FUNCTION encryption.leave_out_replicated();
CREATE TRIGGER leave_out_replicated BEFORE INSERT OR UPDATE OR DELETE ON encryption.key_grant
    FOR EACH ROW EXECUTE FUNCTION encryption.leave_out_replicated();
CREATE TRIGGER leave_out_replicated BEFORE INSERT OR UPDATE OR DELETE ON encryption.rotation_schedule
    FOR EACH ROW EXECUTE FUNCTION encryption.leave_out_replicated();
CREATE TRIGGER leave_out_replicated BEFORE INSERT OR UPDATE OR DELETE ON encryption.backup
    FOR EACH ROW EXECUTE FUNCTION encryption.leave_out_replicated();
CREATE TRIGGER leave_out_replicated BEFORE INSERT OR UPDATE OR DELETE ON encryption.backup_version
    FOR EACH ROW EXECUTE FUNCTION encryption.leave_out_replicated();
CREATE TRIGGER leave_out_replicated BEFORE INSERT OR UPDATE OR DELETE ON encryption.event_chain
    FOR EACH ROW EXECUTE FUNCTION encryption.leave_out_replicated();
CREATE TRIGGER leave_out_replicated BEFORE INSERT OR UPDATE OR DELETE ON encryption.key_event
    FOR EACH ROW EXECUTE FUNCTION encryption.leave_out_replicated();
CREATE TRIGGER leave_out_replicated BEFORE INSERT OR UPDATE OR DELETE ON encryption.job
    FOR EACH ROW EXECUTE FUNCTION encryption.leave_out_replicated();
CREATE TRIGGER leave_out_replicated BEFORE INSERT OR UPDATE OR DELETE ON encryption.job_range
    FOR EACH ROW EXECUTE FUNCTION encryption.leave_out_replicated();
CREATE TRIGGER leave_out_replicated BEFORE INSERT OR UPDATE OR DELETE ON encryption.version_proof
    FOR EACH ROW EXECUTE FUNCTION encryption.leave_out_replicated();

ALTER TABLE encryption.keyspace       ENABLE REPLICA TRIGGER leave_out_replicated;
ALTER TABLE encryption.key            ENABLE REPLICA TRIGGER leave_out_replicated;
ALTER TABLE encryption.key_version    ENABLE REPLICA TRIGGER leave_out_replicated;
ALTER TABLE encryption.key_grant      ENABLE REPLICA TRIGGER leave_out_replicated;
ALTER TABLE encryption.rotation_schedule ENABLE REPLICA TRIGGER leave_out_replicated;
ALTER TABLE encryption.backup         ENABLE REPLICA TRIGGER leave_out_replicated;
ALTER TABLE encryption.backup_version ENABLE REPLICA TRIGGER leave_out_replicated;
ALTER TABLE encryption.event_chain    ENABLE REPLICA TRIGGER leave_out_replicated;
ALTER TABLE encryption.key_event      ENABLE REPLICA TRIGGER leave_out_replicated;
ALTER TABLE encryption.job            ENABLE REPLICA TRIGGER leave_out_replicated;
ALTER TABLE encryption.job_range      ENABLE REPLICA TRIGGER leave_out_replicated;
ALTER TABLE encryption.version_proof  ENABLE REPLICA TRIGGER leave_out_replicated;

----------------------------------------------------------------------------------------------------
-- Types
--
-- Input, output and casts are STABLE: they depend on settings, keys and grants. Were they VOLATILE,
-- PostgreSQL would evaluate a constant once a row and use no index; were they IMMUTABLE, it would
-- store plaintext in expression indexes and generated columns.
----------------------------------------------------------------------------------------------------

CREATE TYPE encrypted_text;
CREATE TYPE encrypted_bytea;

CREATE FUNCTION encrypted_typmod_in(cstring[]) RETURNS integer
    LANGUAGE c STABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME';
CREATE FUNCTION encrypted_typmod_out(integer) RETURNS cstring
    LANGUAGE c STABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME';
CREATE FUNCTION encrypted_text_typanalyze(internal) RETURNS boolean
    LANGUAGE c STABLE STRICT AS 'MODULE_PATHNAME';
CREATE FUNCTION encrypted_bytea_typanalyze(internal) RETURNS boolean
    LANGUAGE c STABLE STRICT AS 'MODULE_PATHNAME';
-- Of arrays and composites that have them inside.
CREATE FUNCTION encrypted_typanalyze(internal) RETURNS boolean
    LANGUAGE c STABLE STRICT AS 'MODULE_PATHNAME';

CREATE FUNCTION encrypted_text_in(cstring, oid, integer) RETURNS encrypted_text
    LANGUAGE c STABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME';
CREATE FUNCTION encrypted_text_out(encrypted_text) RETURNS cstring
    LANGUAGE c STABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME';
CREATE FUNCTION encrypted_text_recv(internal, oid, integer) RETURNS encrypted_text
    LANGUAGE c STABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME';
CREATE FUNCTION encrypted_text_send(encrypted_text) RETURNS bytea
    LANGUAGE c STABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME';

CREATE TYPE encrypted_text (
    INPUT = encrypted_text_in,
    OUTPUT = encrypted_text_out,
    RECEIVE = encrypted_text_recv,
    SEND = encrypted_text_send,
    TYPMOD_IN = encrypted_typmod_in,
    TYPMOD_OUT = encrypted_typmod_out,
    ANALYZE = encrypted_text_typanalyze,
    INTERNALLENGTH = VARIABLE,
    -- Ciphertext doesn't compress.
    STORAGE = external,
    CATEGORY = 'S',
    COLLATABLE = true
);
COMMENT ON TYPE encrypted_text IS 'text, encrypted under the key that the type modifier names';

CREATE FUNCTION encrypted_bytea_in(cstring, oid, integer) RETURNS encrypted_bytea
    LANGUAGE c STABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME';
CREATE FUNCTION encrypted_bytea_out(encrypted_bytea) RETURNS cstring
    LANGUAGE c STABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME';
CREATE FUNCTION encrypted_bytea_recv(internal, oid, integer) RETURNS encrypted_bytea
    LANGUAGE c STABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME';
CREATE FUNCTION encrypted_bytea_send(encrypted_bytea) RETURNS bytea
    LANGUAGE c STABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME';

CREATE TYPE encrypted_bytea (
    INPUT = encrypted_bytea_in,
    OUTPUT = encrypted_bytea_out,
    RECEIVE = encrypted_bytea_recv,
    SEND = encrypted_bytea_send,
    TYPMOD_IN = encrypted_typmod_in,
    TYPMOD_OUT = encrypted_typmod_out,
    ANALYZE = encrypted_bytea_typanalyze,
    INTERNALLENGTH = VARIABLE,
    STORAGE = external
);
COMMENT ON TYPE encrypted_bytea IS 'bytea, encrypted under the key that the type modifier names';

-- ANALYZE of an array looks into its elements unless the array type has its own function, which
-- CREATE TYPE can't say.
UPDATE pg_catalog.pg_type SET typanalyze = 'encrypted_typanalyze(internal)'::regprocedure
 WHERE oid IN ('encrypted_text[]'::regtype, 'encrypted_bytea[]'::regtype);

----------------------------------------------------------------------------------------------------
-- Casts. PostgreSQL gives the input function no type modifier for a literal or a parameter: what it
-- made is encrypted under the database key, and the length-coercion cast encrypts it again under
-- the column's.
----------------------------------------------------------------------------------------------------

CREATE FUNCTION encrypted_text(encrypted_text, integer, boolean) RETURNS encrypted_text
    LANGUAGE c STABLE STRICT PARALLEL SAFE COST 20 AS 'MODULE_PATHNAME', 'encrypted_text_coerce';
CREATE FUNCTION encrypted_text(text, integer, boolean) RETURNS encrypted_text
    LANGUAGE c STABLE STRICT PARALLEL SAFE COST 20 AS 'MODULE_PATHNAME', 'encrypted_text_from_text';
CREATE FUNCTION encrypted_text(varchar, integer, boolean) RETURNS encrypted_text
    LANGUAGE c STABLE STRICT PARALLEL SAFE COST 20 AS 'MODULE_PATHNAME', 'encrypted_text_from_text';
CREATE FUNCTION encrypted_text(bpchar, integer, boolean) RETURNS encrypted_text
    LANGUAGE c STABLE STRICT PARALLEL SAFE COST 20 AS 'MODULE_PATHNAME', 'encrypted_text_from_bpchar';
CREATE FUNCTION encrypted_text(name, integer, boolean) RETURNS encrypted_text
    LANGUAGE c STABLE STRICT PARALLEL SAFE COST 20 AS 'MODULE_PATHNAME', 'encrypted_text_from_name';

CREATE FUNCTION encrypted_text_to_text(encrypted_text) RETURNS text
    LANGUAGE c STABLE STRICT PARALLEL SAFE COST 20 AS 'MODULE_PATHNAME';
CREATE FUNCTION encrypted_text_to_varchar(encrypted_text) RETURNS varchar
    LANGUAGE c STABLE STRICT PARALLEL SAFE COST 20 AS 'MODULE_PATHNAME', 'encrypted_text_to_text';
CREATE FUNCTION encrypted_text_to_bpchar(encrypted_text) RETURNS bpchar
    LANGUAGE c STABLE STRICT PARALLEL SAFE COST 20 AS 'MODULE_PATHNAME';
CREATE FUNCTION encrypted_text_to_name(encrypted_text) RETURNS name
    LANGUAGE c STABLE STRICT PARALLEL SAFE COST 20 AS 'MODULE_PATHNAME';

CREATE CAST (encrypted_text AS encrypted_text)
    WITH FUNCTION encrypted_text(encrypted_text, integer, boolean) AS IMPLICIT;
CREATE CAST (text AS encrypted_text)
    WITH FUNCTION encrypted_text(text, integer, boolean) AS ASSIGNMENT;
CREATE CAST (varchar AS encrypted_text)
    WITH FUNCTION encrypted_text(varchar, integer, boolean) AS ASSIGNMENT;
CREATE CAST (bpchar AS encrypted_text)
    WITH FUNCTION encrypted_text(bpchar, integer, boolean) AS ASSIGNMENT;
CREATE CAST (name AS encrypted_text)
    WITH FUNCTION encrypted_text(name, integer, boolean) AS ASSIGNMENT;

-- Implicit, so that lower(email), email LIKE '...' and email || '...' mean what they do for text.
CREATE CAST (encrypted_text AS text)
    WITH FUNCTION encrypted_text_to_text(encrypted_text) AS IMPLICIT;
CREATE CAST (encrypted_text AS varchar)
    WITH FUNCTION encrypted_text_to_varchar(encrypted_text) AS IMPLICIT;
CREATE CAST (encrypted_text AS bpchar)
    WITH FUNCTION encrypted_text_to_bpchar(encrypted_text);
CREATE CAST (encrypted_text AS name)
    WITH FUNCTION encrypted_text_to_name(encrypted_text);

CREATE FUNCTION encrypted_bytea(encrypted_bytea, integer, boolean) RETURNS encrypted_bytea
    LANGUAGE c STABLE STRICT PARALLEL SAFE COST 20 AS 'MODULE_PATHNAME', 'encrypted_bytea_coerce';
CREATE FUNCTION encrypted_bytea(bytea, integer, boolean) RETURNS encrypted_bytea
    LANGUAGE c STABLE STRICT PARALLEL SAFE COST 20 AS 'MODULE_PATHNAME', 'encrypted_bytea_from_bytea';
CREATE FUNCTION encrypted_bytea_to_bytea(encrypted_bytea) RETURNS bytea
    LANGUAGE c STABLE STRICT PARALLEL SAFE COST 20 AS 'MODULE_PATHNAME';

CREATE CAST (encrypted_bytea AS encrypted_bytea)
    WITH FUNCTION encrypted_bytea(encrypted_bytea, integer, boolean) AS IMPLICIT;
CREATE CAST (bytea AS encrypted_bytea)
    WITH FUNCTION encrypted_bytea(bytea, integer, boolean) AS ASSIGNMENT;
CREATE CAST (encrypted_bytea AS bytea)
    WITH FUNCTION encrypted_bytea_to_bytea(encrypted_bytea) AS IMPLICIT;

----------------------------------------------------------------------------------------------------
-- Operators: what they mean on the plaintexts. IMMUTABLE, as for the base types: the plaintexts
-- don't change. Not LEAKPROOF. COST is in units of a comparison of short texts, as measured.
----------------------------------------------------------------------------------------------------

-- Tells the planner that column = value can be answered by an index on enc_digest(column).
CREATE FUNCTION encryption.equal_support(internal) RETURNS internal
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'encrypted_equal_support';

CREATE FUNCTION encrypted_text_eq(encrypted_text, encrypted_text) RETURNS boolean
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE COST 25
    SUPPORT encryption.equal_support
    AS 'MODULE_PATHNAME';
CREATE FUNCTION encrypted_text_ne(encrypted_text, encrypted_text) RETURNS boolean
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE COST 25 AS 'MODULE_PATHNAME';
CREATE FUNCTION encrypted_text_eq_text(encrypted_text, text) RETURNS boolean
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE COST 25
    SUPPORT encryption.equal_support
    AS 'MODULE_PATHNAME';
CREATE FUNCTION encrypted_text_ne_text(encrypted_text, text) RETURNS boolean
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE COST 25 AS 'MODULE_PATHNAME';
CREATE FUNCTION text_eq_encrypted_text(text, encrypted_text) RETURNS boolean
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE COST 25
    SUPPORT encryption.equal_support
    AS 'MODULE_PATHNAME';
CREATE FUNCTION text_ne_encrypted_text(text, encrypted_text) RETURNS boolean
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE COST 25 AS 'MODULE_PATHNAME';
CREATE FUNCTION encrypted_text_eq_name(encrypted_text, name) RETURNS boolean
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE COST 25
    SUPPORT encryption.equal_support
    AS 'MODULE_PATHNAME';
CREATE FUNCTION encrypted_text_ne_name(encrypted_text, name) RETURNS boolean
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE COST 25 AS 'MODULE_PATHNAME';
CREATE FUNCTION name_eq_encrypted_text(name, encrypted_text) RETURNS boolean
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE COST 25
    SUPPORT encryption.equal_support
    AS 'MODULE_PATHNAME';
CREATE FUNCTION name_ne_encrypted_text(name, encrypted_text) RETURNS boolean
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE COST 25 AS 'MODULE_PATHNAME';
CREATE FUNCTION encrypted_bytea_eq(encrypted_bytea, encrypted_bytea) RETURNS boolean
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE COST 25
    SUPPORT encryption.equal_support
    AS 'MODULE_PATHNAME';
CREATE FUNCTION encrypted_bytea_ne(encrypted_bytea, encrypted_bytea) RETURNS boolean
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE COST 25 AS 'MODULE_PATHNAME';
CREATE FUNCTION encrypted_bytea_eq_bytea(encrypted_bytea, bytea) RETURNS boolean
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE COST 25
    SUPPORT encryption.equal_support
    AS 'MODULE_PATHNAME';
CREATE FUNCTION encrypted_bytea_ne_bytea(encrypted_bytea, bytea) RETURNS boolean
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE COST 25 AS 'MODULE_PATHNAME';
CREATE FUNCTION bytea_eq_encrypted_bytea(bytea, encrypted_bytea) RETURNS boolean
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE COST 25
    SUPPORT encryption.equal_support
    AS 'MODULE_PATHNAME';
CREATE FUNCTION bytea_ne_encrypted_bytea(bytea, encrypted_bytea) RETURNS boolean
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE COST 25 AS 'MODULE_PATHNAME';

CREATE FUNCTION encrypted_text_lt(encrypted_text, encrypted_text) RETURNS boolean
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE COST 25 AS 'MODULE_PATHNAME';
CREATE FUNCTION encrypted_text_le(encrypted_text, encrypted_text) RETURNS boolean
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE COST 25 AS 'MODULE_PATHNAME';
CREATE FUNCTION encrypted_text_ge(encrypted_text, encrypted_text) RETURNS boolean
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE COST 25 AS 'MODULE_PATHNAME';
CREATE FUNCTION encrypted_text_gt(encrypted_text, encrypted_text) RETURNS boolean
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE COST 25 AS 'MODULE_PATHNAME';
CREATE FUNCTION encrypted_bytea_lt(encrypted_bytea, encrypted_bytea) RETURNS boolean
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE COST 25 AS 'MODULE_PATHNAME';
CREATE FUNCTION encrypted_bytea_le(encrypted_bytea, encrypted_bytea) RETURNS boolean
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE COST 25 AS 'MODULE_PATHNAME';
CREATE FUNCTION encrypted_bytea_ge(encrypted_bytea, encrypted_bytea) RETURNS boolean
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE COST 25 AS 'MODULE_PATHNAME';
CREATE FUNCTION encrypted_bytea_gt(encrypted_bytea, encrypted_bytea) RETURNS boolean
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE COST 25 AS 'MODULE_PATHNAME';

CREATE OPERATOR = (
    LEFTARG = encrypted_text, RIGHTARG = encrypted_text, FUNCTION = encrypted_text_eq,
    COMMUTATOR = =, NEGATOR = <>, RESTRICT = eqsel, JOIN = eqjoinsel, HASHES, MERGES);
CREATE OPERATOR <> (
    LEFTARG = encrypted_text, RIGHTARG = encrypted_text, FUNCTION = encrypted_text_ne,
    COMMUTATOR = <>, NEGATOR = =, RESTRICT = neqsel, JOIN = neqjoinsel);
CREATE OPERATOR = (
    LEFTARG = encrypted_text, RIGHTARG = text, FUNCTION = encrypted_text_eq_text,
    COMMUTATOR = =, NEGATOR = <>, RESTRICT = eqsel, JOIN = eqjoinsel, HASHES);
CREATE OPERATOR <> (
    LEFTARG = encrypted_text, RIGHTARG = text, FUNCTION = encrypted_text_ne_text,
    COMMUTATOR = <>, NEGATOR = =, RESTRICT = neqsel, JOIN = neqjoinsel);
CREATE OPERATOR = (
    LEFTARG = text, RIGHTARG = encrypted_text, FUNCTION = text_eq_encrypted_text,
    COMMUTATOR = =, NEGATOR = <>, RESTRICT = eqsel, JOIN = eqjoinsel, HASHES);
CREATE OPERATOR <> (
    LEFTARG = text, RIGHTARG = encrypted_text, FUNCTION = text_ne_encrypted_text,
    COMMUTATOR = <>, NEGATOR = =, RESTRICT = neqsel, JOIN = neqjoinsel);
CREATE OPERATOR = (
    LEFTARG = encrypted_text, RIGHTARG = name, FUNCTION = encrypted_text_eq_name,
    COMMUTATOR = =, NEGATOR = <>, RESTRICT = eqsel, JOIN = eqjoinsel, HASHES);
CREATE OPERATOR <> (
    LEFTARG = encrypted_text, RIGHTARG = name, FUNCTION = encrypted_text_ne_name,
    COMMUTATOR = <>, NEGATOR = =, RESTRICT = neqsel, JOIN = neqjoinsel);
CREATE OPERATOR = (
    LEFTARG = name, RIGHTARG = encrypted_text, FUNCTION = name_eq_encrypted_text,
    COMMUTATOR = =, NEGATOR = <>, RESTRICT = eqsel, JOIN = eqjoinsel, HASHES);
CREATE OPERATOR <> (
    LEFTARG = name, RIGHTARG = encrypted_text, FUNCTION = name_ne_encrypted_text,
    COMMUTATOR = <>, NEGATOR = =, RESTRICT = neqsel, JOIN = neqjoinsel);
CREATE OPERATOR = (
    LEFTARG = encrypted_bytea, RIGHTARG = encrypted_bytea, FUNCTION = encrypted_bytea_eq,
    COMMUTATOR = =, NEGATOR = <>, RESTRICT = eqsel, JOIN = eqjoinsel, HASHES, MERGES);
CREATE OPERATOR <> (
    LEFTARG = encrypted_bytea, RIGHTARG = encrypted_bytea, FUNCTION = encrypted_bytea_ne,
    COMMUTATOR = <>, NEGATOR = =, RESTRICT = neqsel, JOIN = neqjoinsel);
CREATE OPERATOR = (
    LEFTARG = encrypted_bytea, RIGHTARG = bytea, FUNCTION = encrypted_bytea_eq_bytea,
    COMMUTATOR = =, NEGATOR = <>, RESTRICT = eqsel, JOIN = eqjoinsel, HASHES);
CREATE OPERATOR <> (
    LEFTARG = encrypted_bytea, RIGHTARG = bytea, FUNCTION = encrypted_bytea_ne_bytea,
    COMMUTATOR = <>, NEGATOR = =, RESTRICT = neqsel, JOIN = neqjoinsel);
CREATE OPERATOR = (
    LEFTARG = bytea, RIGHTARG = encrypted_bytea, FUNCTION = bytea_eq_encrypted_bytea,
    COMMUTATOR = =, NEGATOR = <>, RESTRICT = eqsel, JOIN = eqjoinsel, HASHES);
CREATE OPERATOR <> (
    LEFTARG = bytea, RIGHTARG = encrypted_bytea, FUNCTION = bytea_ne_encrypted_bytea,
    COMMUTATOR = <>, NEGATOR = =, RESTRICT = neqsel, JOIN = neqjoinsel);

CREATE OPERATOR < (
    LEFTARG = encrypted_text, RIGHTARG = encrypted_text, FUNCTION = encrypted_text_lt,
    COMMUTATOR = >, NEGATOR = >=, RESTRICT = scalarltsel, JOIN = scalarltjoinsel);
CREATE OPERATOR <= (
    LEFTARG = encrypted_text, RIGHTARG = encrypted_text, FUNCTION = encrypted_text_le,
    COMMUTATOR = >=, NEGATOR = >, RESTRICT = scalarlesel, JOIN = scalarlejoinsel);
CREATE OPERATOR >= (
    LEFTARG = encrypted_text, RIGHTARG = encrypted_text, FUNCTION = encrypted_text_ge,
    COMMUTATOR = <=, NEGATOR = <, RESTRICT = scalargesel, JOIN = scalargejoinsel);
CREATE OPERATOR > (
    LEFTARG = encrypted_text, RIGHTARG = encrypted_text, FUNCTION = encrypted_text_gt,
    COMMUTATOR = <, NEGATOR = <=, RESTRICT = scalargtsel, JOIN = scalargtjoinsel);
CREATE OPERATOR < (
    LEFTARG = encrypted_bytea, RIGHTARG = encrypted_bytea, FUNCTION = encrypted_bytea_lt,
    COMMUTATOR = >, NEGATOR = >=, RESTRICT = scalarltsel, JOIN = scalarltjoinsel);
CREATE OPERATOR <= (
    LEFTARG = encrypted_bytea, RIGHTARG = encrypted_bytea, FUNCTION = encrypted_bytea_le,
    COMMUTATOR = >=, NEGATOR = >, RESTRICT = scalarlesel, JOIN = scalarlejoinsel);
CREATE OPERATOR >= (
    LEFTARG = encrypted_bytea, RIGHTARG = encrypted_bytea, FUNCTION = encrypted_bytea_ge,
    COMMUTATOR = <=, NEGATOR = <, RESTRICT = scalargesel, JOIN = scalargejoinsel);
CREATE OPERATOR > (
    LEFTARG = encrypted_bytea, RIGHTARG = encrypted_bytea, FUNCTION = encrypted_bytea_gt,
    COMMUTATOR = <, NEGATOR = <=, RESTRICT = scalargtsel, JOIN = scalargtjoinsel);

-- For ORDER BY, DISTINCT, GROUP BY and merge joins. An index with these classes is refused by
-- their options function, which PostgreSQL calls for every index build and for no sort: an ordered
-- index would reveal the order of the plaintexts. Only PostgreSQL itself calls these functions.
CREATE FUNCTION encrypted_text_cmp(encrypted_text, encrypted_text) RETURNS integer
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE COST 25 AS 'MODULE_PATHNAME';
CREATE FUNCTION encrypted_text_sortsupport(internal) RETURNS void
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME';
CREATE FUNCTION encrypted_text_btree_options(internal) RETURNS void
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME';
CREATE OPERATOR CLASS encrypted_text_btree_ops DEFAULT FOR TYPE encrypted_text USING btree AS
    OPERATOR 1 <, OPERATOR 2 <=, OPERATOR 3 =, OPERATOR 4 >=, OPERATOR 5 >,
    FUNCTION 1 encrypted_text_cmp(encrypted_text, encrypted_text),
    FUNCTION 2 encrypted_text_sortsupport(internal),
    FUNCTION 5 encrypted_text_btree_options(internal);

CREATE FUNCTION encrypted_bytea_cmp(encrypted_bytea, encrypted_bytea) RETURNS integer
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE COST 25 AS 'MODULE_PATHNAME';
CREATE FUNCTION encrypted_bytea_sortsupport(internal) RETURNS void
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME';
CREATE FUNCTION encrypted_bytea_btree_options(internal) RETURNS void
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME';
CREATE OPERATOR CLASS encrypted_bytea_btree_ops DEFAULT FOR TYPE encrypted_bytea USING btree AS
    OPERATOR 1 <, OPERATOR 2 <=, OPERATOR 3 =, OPERATOR 4 >=, OPERATOR 5 >,
    FUNCTION 1 encrypted_bytea_cmp(encrypted_bytea, encrypted_bytea),
    FUNCTION 2 encrypted_bytea_sortsupport(internal),
    FUNCTION 5 encrypted_bytea_btree_options(internal);

-- Comparisons of rows, (email, id) = ($1, $2), look for the meaning of their operators in btree
-- families alone, also those for equality. So equality with the base types is in families that no
-- operator class and no index has, because order among different types isn't to be had.
CREATE OPERATOR FAMILY encryption.row_equality USING btree;
ALTER OPERATOR FAMILY encryption.row_equality USING btree ADD
    OPERATOR 3 = (encrypted_text, text),
    OPERATOR 3 = (text, encrypted_text),
    OPERATOR 3 = (encrypted_text, name),
    OPERATOR 3 = (name, encrypted_text),
    OPERATOR 3 = (encrypted_bytea, bytea),
    OPERATOR 3 = (bytea, encrypted_bytea);

-- For hash indexes, which hold hashes of keyed digests, and for hash joins and hash tables. Values of
-- the base types have the hashes that encrypted values with the same plaintexts have.
CREATE FUNCTION encrypted_text_hash(encrypted_text) RETURNS integer
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE COST 35 AS 'MODULE_PATHNAME';
CREATE FUNCTION encrypted_text_hash_extended(encrypted_text, bigint) RETURNS bigint
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE COST 35 AS 'MODULE_PATHNAME';
CREATE FUNCTION encrypted_text_hash_text(text) RETURNS integer
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE COST 35 AS 'MODULE_PATHNAME';
CREATE FUNCTION encrypted_text_hash_text_extended(text, bigint) RETURNS bigint
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE COST 35 AS 'MODULE_PATHNAME';
CREATE FUNCTION encrypted_text_hash_name(name) RETURNS integer
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE COST 35 AS 'MODULE_PATHNAME';
CREATE FUNCTION encrypted_text_hash_name_extended(name, bigint) RETURNS bigint
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE COST 35 AS 'MODULE_PATHNAME';
CREATE FUNCTION encrypted_bytea_hash(encrypted_bytea) RETURNS integer
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE COST 35 AS 'MODULE_PATHNAME';
CREATE FUNCTION encrypted_bytea_hash_extended(encrypted_bytea, bigint) RETURNS bigint
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE COST 35 AS 'MODULE_PATHNAME';
CREATE FUNCTION encrypted_bytea_hash_bytea(bytea) RETURNS integer
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE COST 35 AS 'MODULE_PATHNAME';
CREATE FUNCTION encrypted_bytea_hash_bytea_extended(bytea, bigint) RETURNS bigint
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE COST 35 AS 'MODULE_PATHNAME';

-- Equality of base types among themselves, by the same rules: the families are complete with these.
-- They are in schema encryption so that they are never mistaken for PostgreSQL's own.
CREATE FUNCTION encryption.equal(text, text) RETURNS boolean
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'encrypted_text_base_eq_text_text';
CREATE FUNCTION encryption.equal(text, name) RETURNS boolean
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'encrypted_text_base_eq_text_name';
CREATE FUNCTION encryption.equal(name, text) RETURNS boolean
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'encrypted_text_base_eq_name_text';
CREATE FUNCTION encryption.equal(name, name) RETURNS boolean
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'encrypted_text_base_eq_name_name';
CREATE FUNCTION encryption.equal(bytea, bytea) RETURNS boolean
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'encrypted_bytea_base_eq';

CREATE OPERATOR encryption.= (
    LEFTARG = text, RIGHTARG = text, FUNCTION = encryption.equal,
    COMMUTATOR = OPERATOR(encryption.=), RESTRICT = eqsel, JOIN = eqjoinsel, HASHES);
CREATE OPERATOR encryption.= (
    LEFTARG = text, RIGHTARG = name, FUNCTION = encryption.equal,
    COMMUTATOR = OPERATOR(encryption.=), RESTRICT = eqsel, JOIN = eqjoinsel, HASHES);
CREATE OPERATOR encryption.= (
    LEFTARG = name, RIGHTARG = text, FUNCTION = encryption.equal,
    COMMUTATOR = OPERATOR(encryption.=), RESTRICT = eqsel, JOIN = eqjoinsel, HASHES);
CREATE OPERATOR encryption.= (
    LEFTARG = name, RIGHTARG = name, FUNCTION = encryption.equal,
    COMMUTATOR = OPERATOR(encryption.=), RESTRICT = eqsel, JOIN = eqjoinsel, HASHES);
CREATE OPERATOR encryption.= (
    LEFTARG = bytea, RIGHTARG = bytea, FUNCTION = encryption.equal,
    COMMUTATOR = OPERATOR(encryption.=), RESTRICT = eqsel, JOIN = eqjoinsel, HASHES);

CREATE OPERATOR FAMILY encrypted_text_hash_ops USING hash;
CREATE OPERATOR CLASS encrypted_text_hash_ops DEFAULT FOR TYPE encrypted_text USING hash
    FAMILY encrypted_text_hash_ops AS
    OPERATOR 1 =,
    FUNCTION 1 encrypted_text_hash(encrypted_text),
    FUNCTION 2 encrypted_text_hash_extended(encrypted_text, bigint);
ALTER OPERATOR FAMILY encrypted_text_hash_ops USING hash ADD
    OPERATOR 1 = (encrypted_text, text),
    OPERATOR 1 = (text, encrypted_text),
    OPERATOR 1 = (encrypted_text, name),
    OPERATOR 1 = (name, encrypted_text),
    OPERATOR 1 encryption.= (text, text),
    OPERATOR 1 encryption.= (text, name),
    OPERATOR 1 encryption.= (name, text),
    OPERATOR 1 encryption.= (name, name),
    FUNCTION 1 (text, text) encrypted_text_hash_text(text),
    FUNCTION 2 (text, text) encrypted_text_hash_text_extended(text, bigint),
    FUNCTION 1 (name, name) encrypted_text_hash_name(name),
    FUNCTION 2 (name, name) encrypted_text_hash_name_extended(name, bigint);

CREATE OPERATOR FAMILY encrypted_bytea_hash_ops USING hash;
CREATE OPERATOR CLASS encrypted_bytea_hash_ops DEFAULT FOR TYPE encrypted_bytea USING hash
    FAMILY encrypted_bytea_hash_ops AS
    OPERATOR 1 =,
    FUNCTION 1 encrypted_bytea_hash(encrypted_bytea),
    FUNCTION 2 encrypted_bytea_hash_extended(encrypted_bytea, bigint);
ALTER OPERATOR FAMILY encrypted_bytea_hash_ops USING hash ADD
    OPERATOR 1 = (encrypted_bytea, bytea),
    OPERATOR 1 = (bytea, encrypted_bytea),
    OPERATOR 1 encryption.= (bytea, bytea),
    FUNCTION 1 (bytea, bytea) encrypted_bytea_hash_bytea(bytea),
    FUNCTION 2 (bytea, bytea) encrypted_bytea_hash_bytea_extended(bytea, bigint);

-- PostgreSQL calls the functions behind the classes without asking; nobody else has a use for them.
REVOKE EXECUTE ON FUNCTION
    encrypted_text_cmp(encrypted_text, encrypted_text),
    encrypted_text_sortsupport(internal),
    encrypted_text_btree_options(internal),
    encrypted_bytea_cmp(encrypted_bytea, encrypted_bytea),
    encrypted_bytea_sortsupport(internal),
    encrypted_bytea_btree_options(internal),
    encrypted_text_hash(encrypted_text),
    encrypted_text_hash_extended(encrypted_text, bigint),
    encrypted_text_hash_text(text),
    encrypted_text_hash_text_extended(text, bigint),
    encrypted_text_hash_name(name),
    encrypted_text_hash_name_extended(name, bigint),
    encrypted_bytea_hash(encrypted_bytea),
    encrypted_bytea_hash_extended(encrypted_bytea, bigint),
    encrypted_bytea_hash_bytea(bytea),
    encrypted_bytea_hash_bytea_extended(bytea, bigint)
    FROM PUBLIC;

-- What the planner makes of column = value where there is an index on enc_digest(column): a condition
-- on the digests, and the equality again by these operators, which select all that is left.
CREATE FUNCTION encryption.recheck_selectivity(internal, oid, internal, integer) RETURNS double precision
    LANGUAGE c STABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'encryption_recheck_selectivity';
CREATE FUNCTION encryption.recheck_selectivity(internal, oid, internal, smallint, internal)
    RETURNS double precision
    LANGUAGE c STABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'encryption_recheck_selectivity';

CREATE FUNCTION encryption.equal(encrypted_text, encrypted_text) RETURNS boolean
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE COST 25 AS 'MODULE_PATHNAME', 'encrypted_text_eq';
CREATE FUNCTION encryption.unequal(encrypted_text, encrypted_text) RETURNS boolean
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE COST 25 AS 'MODULE_PATHNAME', 'encrypted_text_ne';
CREATE FUNCTION encryption.equal(encrypted_text, text) RETURNS boolean
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE COST 25 AS 'MODULE_PATHNAME', 'encrypted_text_eq_text';
CREATE FUNCTION encryption.unequal(encrypted_text, text) RETURNS boolean
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE COST 25 AS 'MODULE_PATHNAME', 'encrypted_text_ne_text';
CREATE FUNCTION encryption.equal(text, encrypted_text) RETURNS boolean
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE COST 25 AS 'MODULE_PATHNAME', 'text_eq_encrypted_text';
CREATE FUNCTION encryption.unequal(text, encrypted_text) RETURNS boolean
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE COST 25 AS 'MODULE_PATHNAME', 'text_ne_encrypted_text';
CREATE FUNCTION encryption.equal(encrypted_text, name) RETURNS boolean
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE COST 25 AS 'MODULE_PATHNAME', 'encrypted_text_eq_name';
CREATE FUNCTION encryption.unequal(encrypted_text, name) RETURNS boolean
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE COST 25 AS 'MODULE_PATHNAME', 'encrypted_text_ne_name';
CREATE FUNCTION encryption.equal(name, encrypted_text) RETURNS boolean
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE COST 25 AS 'MODULE_PATHNAME', 'name_eq_encrypted_text';
CREATE FUNCTION encryption.unequal(name, encrypted_text) RETURNS boolean
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE COST 25 AS 'MODULE_PATHNAME', 'name_ne_encrypted_text';
CREATE FUNCTION encryption.equal(encrypted_bytea, encrypted_bytea) RETURNS boolean
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE COST 25 AS 'MODULE_PATHNAME', 'encrypted_bytea_eq';
CREATE FUNCTION encryption.unequal(encrypted_bytea, encrypted_bytea) RETURNS boolean
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE COST 25 AS 'MODULE_PATHNAME', 'encrypted_bytea_ne';
CREATE FUNCTION encryption.equal(encrypted_bytea, bytea) RETURNS boolean
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE COST 25 AS 'MODULE_PATHNAME', 'encrypted_bytea_eq_bytea';
CREATE FUNCTION encryption.unequal(encrypted_bytea, bytea) RETURNS boolean
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE COST 25 AS 'MODULE_PATHNAME', 'encrypted_bytea_ne_bytea';
CREATE FUNCTION encryption.equal(bytea, encrypted_bytea) RETURNS boolean
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE COST 25 AS 'MODULE_PATHNAME', 'bytea_eq_encrypted_bytea';
CREATE FUNCTION encryption.unequal(bytea, encrypted_bytea) RETURNS boolean
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE COST 25 AS 'MODULE_PATHNAME', 'bytea_ne_encrypted_bytea';

CREATE OPERATOR encryption.= (
    LEFTARG = encrypted_text, RIGHTARG = encrypted_text, FUNCTION = encryption.equal,
    COMMUTATOR = OPERATOR(encryption.=), NEGATOR = OPERATOR(encryption.<>),
    RESTRICT = encryption.recheck_selectivity, JOIN = encryption.recheck_selectivity);
CREATE OPERATOR encryption.<> (
    LEFTARG = encrypted_text, RIGHTARG = encrypted_text, FUNCTION = encryption.unequal,
    COMMUTATOR = OPERATOR(encryption.<>), NEGATOR = OPERATOR(encryption.=),
    RESTRICT = neqsel, JOIN = neqjoinsel);
CREATE OPERATOR encryption.= (
    LEFTARG = encrypted_text, RIGHTARG = text, FUNCTION = encryption.equal,
    COMMUTATOR = OPERATOR(encryption.=), NEGATOR = OPERATOR(encryption.<>),
    RESTRICT = encryption.recheck_selectivity, JOIN = encryption.recheck_selectivity);
CREATE OPERATOR encryption.<> (
    LEFTARG = encrypted_text, RIGHTARG = text, FUNCTION = encryption.unequal,
    COMMUTATOR = OPERATOR(encryption.<>), NEGATOR = OPERATOR(encryption.=),
    RESTRICT = neqsel, JOIN = neqjoinsel);
CREATE OPERATOR encryption.= (
    LEFTARG = text, RIGHTARG = encrypted_text, FUNCTION = encryption.equal,
    COMMUTATOR = OPERATOR(encryption.=), NEGATOR = OPERATOR(encryption.<>),
    RESTRICT = encryption.recheck_selectivity, JOIN = encryption.recheck_selectivity);
CREATE OPERATOR encryption.<> (
    LEFTARG = text, RIGHTARG = encrypted_text, FUNCTION = encryption.unequal,
    COMMUTATOR = OPERATOR(encryption.<>), NEGATOR = OPERATOR(encryption.=),
    RESTRICT = neqsel, JOIN = neqjoinsel);
CREATE OPERATOR encryption.= (
    LEFTARG = encrypted_text, RIGHTARG = name, FUNCTION = encryption.equal,
    COMMUTATOR = OPERATOR(encryption.=), NEGATOR = OPERATOR(encryption.<>),
    RESTRICT = encryption.recheck_selectivity, JOIN = encryption.recheck_selectivity);
CREATE OPERATOR encryption.<> (
    LEFTARG = encrypted_text, RIGHTARG = name, FUNCTION = encryption.unequal,
    COMMUTATOR = OPERATOR(encryption.<>), NEGATOR = OPERATOR(encryption.=),
    RESTRICT = neqsel, JOIN = neqjoinsel);
CREATE OPERATOR encryption.= (
    LEFTARG = name, RIGHTARG = encrypted_text, FUNCTION = encryption.equal,
    COMMUTATOR = OPERATOR(encryption.=), NEGATOR = OPERATOR(encryption.<>),
    RESTRICT = encryption.recheck_selectivity, JOIN = encryption.recheck_selectivity);
CREATE OPERATOR encryption.<> (
    LEFTARG = name, RIGHTARG = encrypted_text, FUNCTION = encryption.unequal,
    COMMUTATOR = OPERATOR(encryption.<>), NEGATOR = OPERATOR(encryption.=),
    RESTRICT = neqsel, JOIN = neqjoinsel);
CREATE OPERATOR encryption.= (
    LEFTARG = encrypted_bytea, RIGHTARG = encrypted_bytea, FUNCTION = encryption.equal,
    COMMUTATOR = OPERATOR(encryption.=), NEGATOR = OPERATOR(encryption.<>),
    RESTRICT = encryption.recheck_selectivity, JOIN = encryption.recheck_selectivity);
CREATE OPERATOR encryption.<> (
    LEFTARG = encrypted_bytea, RIGHTARG = encrypted_bytea, FUNCTION = encryption.unequal,
    COMMUTATOR = OPERATOR(encryption.<>), NEGATOR = OPERATOR(encryption.=),
    RESTRICT = neqsel, JOIN = neqjoinsel);
CREATE OPERATOR encryption.= (
    LEFTARG = encrypted_bytea, RIGHTARG = bytea, FUNCTION = encryption.equal,
    COMMUTATOR = OPERATOR(encryption.=), NEGATOR = OPERATOR(encryption.<>),
    RESTRICT = encryption.recheck_selectivity, JOIN = encryption.recheck_selectivity);
CREATE OPERATOR encryption.<> (
    LEFTARG = encrypted_bytea, RIGHTARG = bytea, FUNCTION = encryption.unequal,
    COMMUTATOR = OPERATOR(encryption.<>), NEGATOR = OPERATOR(encryption.=),
    RESTRICT = neqsel, JOIN = neqjoinsel);
CREATE OPERATOR encryption.= (
    LEFTARG = bytea, RIGHTARG = encrypted_bytea, FUNCTION = encryption.equal,
    COMMUTATOR = OPERATOR(encryption.=), NEGATOR = OPERATOR(encryption.<>),
    RESTRICT = encryption.recheck_selectivity, JOIN = encryption.recheck_selectivity);
CREATE OPERATOR encryption.<> (
    LEFTARG = bytea, RIGHTARG = encrypted_bytea, FUNCTION = encryption.unequal,
    COMMUTATOR = OPERATOR(encryption.<>), NEGATOR = OPERATOR(encryption.=),
    RESTRICT = neqsel, JOIN = neqjoinsel);

----------------------------------------------------------------------------------------------------
-- Concatenation. For encrypted_text the implicit cast to text is enough. For encrypted_bytea and a
-- literal PostgreSQL would prefer its operator that turns anything into text.
----------------------------------------------------------------------------------------------------

CREATE FUNCTION encryption.concatenate(encrypted_bytea, encrypted_bytea) RETURNS bytea
    LANGUAGE sql STABLE STRICT PARALLEL SAFE
    RETURN encrypted_bytea_to_bytea($1) || encrypted_bytea_to_bytea($2);
CREATE FUNCTION encryption.concatenate(encrypted_bytea, bytea) RETURNS bytea
    LANGUAGE sql STABLE STRICT PARALLEL SAFE
    RETURN encrypted_bytea_to_bytea($1) || $2;
CREATE FUNCTION encryption.concatenate(bytea, encrypted_bytea) RETURNS bytea
    LANGUAGE sql STABLE STRICT PARALLEL SAFE
    RETURN $1 || encrypted_bytea_to_bytea($2);

CREATE OPERATOR || (
    LEFTARG = encrypted_bytea, RIGHTARG = encrypted_bytea, FUNCTION = encryption.concatenate);
CREATE OPERATOR || (
    LEFTARG = encrypted_bytea, RIGHTARG = bytea, FUNCTION = encryption.concatenate);
CREATE OPERATOR || (
    LEFTARG = bytea, RIGHTARG = encrypted_bytea, FUNCTION = encryption.concatenate);

----------------------------------------------------------------------------------------------------
-- Digests: equal plaintexts have equal ones, whichever keys their values are under. They can be in
-- unique indexes, in generated columns and, through these, in foreign keys.
----------------------------------------------------------------------------------------------------

CREATE FUNCTION enc_digest(value encrypted_text, normal_form text DEFAULT 'none', domain text DEFAULT '')
    RETURNS bytea
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE COST 35 AS 'MODULE_PATHNAME', 'encrypted_text_digest';
COMMENT ON FUNCTION enc_digest(encrypted_text, text, text) IS
    'keyed digest, 16 bytes: the same for equal plaintexts in the same normal form and domain';
CREATE FUNCTION enc_digest(value text, normal_form text DEFAULT 'none', domain text DEFAULT '')
    RETURNS bytea
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE COST 35 AS 'MODULE_PATHNAME', 'encrypted_text_digest_of_text';
COMMENT ON FUNCTION enc_digest(text, text, text) IS
    'keyed digest, 16 bytes: the same for equal plaintexts in the same normal form and domain';
CREATE FUNCTION enc_digest(value encrypted_bytea, normal_form text DEFAULT 'none', domain text DEFAULT '')
    RETURNS bytea
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE COST 35 AS 'MODULE_PATHNAME', 'encrypted_bytea_digest';
COMMENT ON FUNCTION enc_digest(encrypted_bytea, text, text) IS
    'keyed digest, 16 bytes: the same for equal plaintexts in the same normal form and domain';
CREATE FUNCTION enc_digest(value bytea, normal_form text DEFAULT 'none', domain text DEFAULT '')
    RETURNS bytea
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE COST 35 AS 'MODULE_PATHNAME', 'encrypted_bytea_digest_of_bytea';
COMMENT ON FUNCTION enc_digest(bytea, text, text) IS
    'keyed digest, 16 bytes: the same for equal plaintexts in the same normal form and domain';

-- The stored digests of everything: indexes whose keys, expressions or predicates look at encrypted
-- columns, stored generated columns that do, and materialized views that call enc_digest.
CREATE VIEW encryption.digest_holder AS
WITH RECURSIVE holder (type_id) AS (
    SELECT type.oid FROM pg_catalog.pg_type type
      JOIN pg_catalog.pg_depend ON classid = 'pg_catalog.pg_type'::pg_catalog.regclass AND objid = type.oid
       AND refclassid = 'pg_catalog.pg_extension'::pg_catalog.regclass AND deptype = 'e'
      JOIN pg_catalog.pg_extension ON refobjid = pg_extension.oid AND extname = 'encryption_ext'
     WHERE typname IN ('encrypted_text', 'encrypted_bytea')
  UNION
    -- Arrays, domains, composites and ranges of what is in here already.
    SELECT type.oid FROM holder
      JOIN pg_catalog.pg_type type ON type.typelem = holder.type_id AND type.typcategory = 'A'
        OR type.typbasetype = holder.type_id
        OR EXISTS (SELECT FROM pg_catalog.pg_attribute
                    WHERE attrelid = type.typrelid AND atttypid = holder.type_id AND NOT attisdropped)
        OR EXISTS (SELECT FROM pg_catalog.pg_range
                    WHERE rngsubtype = holder.type_id AND type.oid IN (rngtypid, rngmultitypid))
), encrypted AS (
    SELECT attrelid, attnum FROM pg_catalog.pg_attribute
      JOIN pg_catalog.pg_class ON pg_class.oid = attrelid AND relkind IN ('r', 'p', 'm')
     WHERE attnum > 0 AND NOT attisdropped AND atttypid IN (SELECT type_id FROM holder)
)
SELECT index.indrelid AS table_id, index.indexrelid AS index_id, NULL::smallint AS generated, NULL::smallint AS source
  FROM pg_catalog.pg_index index
  JOIN pg_catalog.pg_class ON pg_class.oid = index.indexrelid AND relkind = 'i'
 WHERE EXISTS (
    SELECT FROM encrypted
     WHERE attrelid = index.indrelid
       AND (attnum = ANY ((index.indkey::smallint[])[0:index.indnkeyatts - 1])
            OR (index.indexprs IS NOT NULL OR index.indpred IS NOT NULL)
               AND EXISTS (SELECT FROM pg_catalog.pg_depend
                            WHERE classid = 'pg_catalog.pg_class'::pg_catalog.regclass
                              AND objid = index.indexrelid
                              AND refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass
                              AND refobjid = attrelid AND refobjsubid = attnum)))
UNION
SELECT adrelid, NULL, adnum, encrypted.attnum
  FROM pg_catalog.pg_attrdef
  JOIN pg_catalog.pg_attribute column_ ON column_.attrelid = adrelid AND column_.attnum = adnum
   AND column_.attgenerated = 's'
  JOIN encrypted ON encrypted.attrelid = adrelid
 WHERE EXISTS (SELECT FROM pg_catalog.pg_depend
                WHERE refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass
                  AND refobjid = adrelid AND refobjsubid = encrypted.attnum
                  AND (classid = 'pg_catalog.pg_attrdef'::pg_catalog.regclass AND objid = pg_attrdef.oid
                       OR classid = 'pg_catalog.pg_class'::pg_catalog.regclass
                          AND objid = adrelid AND objsubid = adnum))
UNION
SELECT pg_class.oid, NULL, NULL, NULL
  FROM pg_catalog.pg_class
  JOIN pg_catalog.pg_rewrite ON ev_class = pg_class.oid
  JOIN pg_catalog.pg_depend ON classid = 'pg_catalog.pg_rewrite'::pg_catalog.regclass
   AND objid = pg_rewrite.oid AND refclassid = 'pg_catalog.pg_proc'::pg_catalog.regclass
  JOIN pg_catalog.pg_proc ON pg_proc.oid = refobjid AND proname = 'enc_digest'
 WHERE relkind = 'm';
COMMENT ON VIEW encryption.digest_holder IS
    'where digests are stored: indexes, generated columns, materialized views';

CREATE FUNCTION encryption.invalidate_plans(oid) RETURNS void
    LANGUAGE c STRICT AS 'MODULE_PATHNAME', 'encryption_invalidate_plans';
REVOKE EXECUTE ON FUNCTION encryption.invalidate_plans(oid) FROM PUBLIC;

-- Without just-in-time compilation: the planner expects far more types of types than there are, and
-- PostgreSQL would compile for seconds what runs for milliseconds.
CREATE FUNCTION enc_rotate_digest(reason text DEFAULT NULL) RETURNS integer
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET jit = off AS $$
DECLARE
    present integer;
    wanted  integer;
    held    record;
    role_of_triggers text := current_setting('session_replication_role');
BEGIN
    IF NOT (SELECT rolsuper FROM pg_roles WHERE rolname = current_user) THEN
        RAISE EXCEPTION USING ERRCODE = 'insufficient_privilege',
            MESSAGE = 'must be superuser to rotate digests',
            HINT = 'Every table that holds digests is locked and changed. Ask a superuser.';
    END IF;
    SELECT digest_version INTO present FROM encryption.keyspace FOR UPDATE;
    SELECT version INTO wanted
      FROM encryption.key_version JOIN encryption.key USING (key_id)
     WHERE key.name = 'database' AND state = 'active';
    IF wanted IS NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'KE010',
            MESSAGE = 'key "database" has no active version',
            HINT = 'Activate one with enc_activate_key_version(name, version).';
    END IF;
    IF present = wanted THEN
        RAISE NOTICE 'digests are made with version % of the database key already', wanted
            USING HINT = 'Rotate it first with SELECT enc_rotate_key(''database'').';
        RETURN present;
    END IF;

    -- All at once, in one order. (Materialized views can't be locked so: REFRESH and REINDEX do.)
    FOR held IN
        SELECT DISTINCT table_id FROM encryption.digest_holder JOIN pg_class ON pg_class.oid = table_id
         WHERE relkind <> 'm' ORDER BY 1
    LOOP
        IF (SELECT pg_is_other_temp_schema(relnamespace) FROM pg_class WHERE oid = held.table_id) THEN
            RAISE EXCEPTION USING ERRCODE = 'object_in_use',
                MESSAGE = format('temporary table %s of another session holds digests', held.table_id::regclass),
                HINT = 'Repeat this when that session has ended.';
        END IF;
        EXECUTE format('LOCK TABLE ONLY %s IN ACCESS EXCLUSIVE MODE', held.table_id::regclass);
    END LOOP;

    -- A foreign key between a digest that is computed and one that someone has written would break.
    FOR held IN
        SELECT con.conname, con.conrelid, con.confrelid
          FROM pg_constraint con, unnest(con.conkey, con.confkey) AS pair (referencing, referenced)
         WHERE con.contype = 'f'
           AND EXISTS (SELECT FROM encryption.digest_holder
                        WHERE table_id = con.conrelid AND generated = referencing)
               <> EXISTS (SELECT FROM encryption.digest_holder
                           WHERE table_id = con.confrelid AND generated = referenced)
    LOOP
        RAISE EXCEPTION USING ERRCODE = 'foreign_key_violation',
            MESSAGE = format('foreign key "%s" of %s ties a generated digest to a column that is not generated',
                held.conname, held.conrelid::regclass),
            HINT = 'Make both columns generated, or drop the foreign key, rotate, write the new digests and add it again.';
    END LOOP;

    UPDATE encryption.keyspace SET digest_version = wanted;
    -- Generated columns are computed again when the columns that they depend on are written. Triggers,
    -- those of foreign keys included, have nothing to do: no plaintext changes.
    PERFORM set_config('session_replication_role', 'replica', true);
    FOR held IN
        SELECT table_id, string_agg(format('%1$I = %1$I', attname), ', ') AS columns
          FROM (SELECT DISTINCT table_id, source FROM encryption.digest_holder WHERE generated IS NOT NULL) sources
          JOIN pg_class ON pg_class.oid = table_id AND relkind = 'r'
          JOIN pg_attribute ON attrelid = table_id AND attnum = source
         GROUP BY 1 ORDER BY 1
    LOOP
        EXECUTE format('UPDATE ONLY %s SET %s', held.table_id::regclass, held.columns);
    END LOOP;
    PERFORM set_config('session_replication_role', role_of_triggers, true);
    FOR held IN
        SELECT table_id FROM encryption.digest_holder JOIN pg_class ON pg_class.oid = table_id
         WHERE relkind = 'm' AND index_id IS NULL AND relispopulated ORDER BY 1
    LOOP
        EXECUTE format('REFRESH MATERIALIZED VIEW %s', held.table_id::regclass);
    END LOOP;
    FOR held IN SELECT index_id FROM encryption.digest_holder WHERE index_id IS NOT NULL ORDER BY 1 LOOP
        EXECUTE format('REINDEX INDEX %s', held.index_id::regclass);
    END LOOP;

    -- Plans that other sessions keep have digests of their constants in them.
    PERFORM encryption.invalidate_plans(table_id) FROM (SELECT DISTINCT table_id FROM encryption.digest_holder) tables;
    PERFORM encryption.log_event('rotate-digest', 'database', present, wanted, reason => reason);
    RETURN wanted;
END $$;
COMMENT ON FUNCTION enc_rotate_digest(text) IS
    'makes digests with the active version of the database key from now on: locks and rewrites all that holds digests; returns the version';
REVOKE EXECUTE ON FUNCTION enc_rotate_digest(text) FROM PUBLIC;

----------------------------------------------------------------------------------------------------
-- Keys. These functions check by themselves that the caller owns the key, and refuse nulls.
----------------------------------------------------------------------------------------------------

CREATE FUNCTION enc_create_key(
        name text, if_not_exists boolean DEFAULT false, reason text DEFAULT NULL, purpose text DEFAULT NULL,
        labels text[] DEFAULT NULL, rotation_period interval DEFAULT NULL, owner name DEFAULT NULL)
    RETURNS integer
    LANGUAGE c SET search_path = pg_catalog, pg_temp AS 'MODULE_PATHNAME';
COMMENT ON FUNCTION enc_create_key(text, boolean, text, text, text[], interval, name) IS
    'makes a key, or adopts the versions of it that the provider has; returns the active version';
-- There is no owner yet to check for: creating keys is for superusers and roles that were given it.
REVOKE EXECUTE ON FUNCTION enc_create_key(text, boolean, text, text, text[], interval, name) FROM PUBLIC;

CREATE FUNCTION enc_set_key_info(
        name text, purpose text DEFAULT NULL, labels text[] DEFAULT NULL, rotation_period interval DEFAULT NULL,
        owner name DEFAULT NULL, reason text DEFAULT NULL)
    RETURNS void
    LANGUAGE c SET search_path = pg_catalog, pg_temp AS 'MODULE_PATHNAME';
COMMENT ON FUNCTION enc_set_key_info(text, text, text[], interval, name, text) IS
    'sets what a key is for, its labels, how often it is to be rotated and who owns it; nulls leave what there is';

CREATE FUNCTION enc_rotate_key(name text, activate boolean DEFAULT true, reason text DEFAULT NULL) RETURNS integer
    LANGUAGE c SET search_path = pg_catalog, pg_temp AS 'MODULE_PATHNAME';
COMMENT ON FUNCTION enc_rotate_key(text, boolean, text) IS
    'makes or adopts a new version of a key and returns it; what is written from now on uses it, unless activate is false';

CREATE FUNCTION enc_activate_key_version(name text, version integer, reason text DEFAULT NULL) RETURNS void
    LANGUAGE c SET search_path = pg_catalog, pg_temp AS 'MODULE_PATHNAME';
COMMENT ON FUNCTION enc_activate_key_version(text, integer, text) IS
    'makes a pending or deprecated version the one that encrypts';

CREATE FUNCTION enc_disable_key_version(
        name text, version integer, force boolean DEFAULT false, reason text DEFAULT NULL)
    RETURNS void
    LANGUAGE c SET search_path = pg_catalog, pg_temp AS 'MODULE_PATHNAME';
COMMENT ON FUNCTION enc_disable_key_version(text, integer, boolean, text) IS
    'forbids a version to encrypt and to decrypt, until it is enabled';

CREATE FUNCTION enc_enable_key_version(name text, version integer, reason text DEFAULT NULL) RETURNS void
    LANGUAGE c SET search_path = pg_catalog, pg_temp AS 'MODULE_PATHNAME';
COMMENT ON FUNCTION enc_enable_key_version(text, integer, text) IS
    'lets a disabled version decrypt again';

CREATE FUNCTION enc_rewrap_key(name text, reason text DEFAULT NULL) RETURNS integer
    LANGUAGE c SET search_path = pg_catalog, pg_temp AS 'MODULE_PATHNAME';
COMMENT ON FUNCTION enc_rewrap_key(text, text) IS
    'has the provider wrap the versions of a key again, under its newest key encryption key; returns their number';

CREATE FUNCTION enc_grant(name text, grantee name, privileges text, reason text DEFAULT NULL) RETURNS void
    LANGUAGE c SET search_path = pg_catalog, pg_temp AS 'MODULE_PATHNAME';
COMMENT ON FUNCTION enc_grant(text, name, text, text) IS
    'gives a role (or public) privileges on a key: encrypt, compare, mask, decrypt';

CREATE FUNCTION enc_revoke(
        name text, grantee name, privileges text DEFAULT 'encrypt, compare, mask, decrypt', reason text DEFAULT NULL)
    RETURNS void
    LANGUAGE c SET search_path = pg_catalog, pg_temp AS 'MODULE_PATHNAME';
COMMENT ON FUNCTION enc_revoke(text, name, text, text) IS 'takes privileges on a key from a role (or public)';

CREATE FUNCTION enc_set_mask(name text, mask text, reason text DEFAULT NULL) RETURNS void
    LANGUAGE c SET search_path = pg_catalog, pg_temp AS 'MODULE_PATHNAME';
COMMENT ON FUNCTION enc_set_mask(text, text, text) IS
    'sets what roles with the privilege mask are shown of a key''s values: a text, or partial(n)';

CREATE FUNCTION enc_check_key(
        INOUT name text DEFAULT NULL,
        OUT version integer,
        OUT state text,
        OUT provider text,
        OUT ok boolean,
        OUT detail text,
        OUT hint text,
        OUT milliseconds double precision)
    RETURNS SETOF record
    LANGUAGE c SET search_path = pg_catalog, pg_temp AS 'MODULE_PATHNAME';
COMMENT ON FUNCTION enc_check_key(text) IS
    'whether this server can open each version of a key (of every key, if none is named), pending and disabled ones too';

CREATE FUNCTION enc_reconcile(
        INOUT name text DEFAULT NULL,
        adopt boolean DEFAULT false,
        reason text DEFAULT NULL,
        OUT version integer,
        OUT finding text,
        OUT detail text,
        OUT hint text)
    RETURNS SETOF record
    LANGUAGE c SET search_path = pg_catalog, pg_temp AS 'MODULE_PATHNAME';
COMMENT ON FUNCTION enc_reconcile(text, boolean, text) IS
    'after a restore: compares a key (every key, if none is named) with its provider, and adopts what is newer there if told so';
-- It sends requests with the server's login.
REVOKE EXECUTE ON FUNCTION enc_reconcile(text, boolean, text) FROM PUBLIC;

-- The catalog's rows of keys. There is no usable secret among them.
CREATE FUNCTION enc_export_keys() RETURNS jsonb
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT jsonb_build_object(
        'format', 1,
        'exported_at', now(),
        'keyspace', (SELECT jsonb_build_object(
                'id', id, 'created_at', created_at, 'digest_version', digest_version)
                       FROM encryption.keyspace),
        'keys', coalesce((
            SELECT jsonb_agg(jsonb_build_object(
                'name', key.name,
                'owner', pg_get_userbyid(key.owner),
                'created_at', key.created_at,
                'mask', key.mask,
                'purpose', key.purpose,
                'labels', to_jsonb(key.labels),
                'rotation_period', key.rotation_period,
                'versions', (
                    SELECT jsonb_agg(jsonb_build_object(
                        'version', v.version, 'state', v.state,
                        'provider', v.provider, 'reference', v.reference,
                        'wrapped', encode(v.wrapped, 'hex'), 'check_value', encode(v.check_value, 'hex'),
                        'keyspace', v.keyspace,
                        'created_at', v.created_at, 'created_by', pg_get_userbyid(v.created_by),
                        'activated_at', v.activated_at, 'deprecated_at', v.deprecated_at)
                        ORDER BY v.version)
                      FROM encryption.key_version v WHERE v.key_id = key.key_id),
                'grants', coalesce((
                    SELECT jsonb_agg(jsonb_build_object(
                        'grantee', CASE WHEN g.grantee::oid <> 0 THEN pg_get_userbyid(g.grantee) END,
                        'privilege', g.privilege,
                        'granted_by', pg_get_userbyid(g.granted_by), 'granted_at', g.granted_at)
                        ORDER BY g.grantee::oid, g.privilege)
                      FROM encryption.key_grant g WHERE g.key_id = key.key_id), '[]'))
                ORDER BY key.name)
              FROM encryption.key), '[]'))
$$;
COMMENT ON FUNCTION enc_export_keys() IS 'the keys, versions and grants of this database as one document, without secrets';
REVOKE EXECUTE ON FUNCTION enc_export_keys() FROM PUBLIC;

-- With the caller's rights on the catalog, and through the triggers that restored dumps meet.
CREATE FUNCTION enc_import_keys(document jsonb, reason text DEFAULT NULL) RETURNS integer
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    exported record;
    id integer;
    added integer;
    total integer := 0;
BEGIN
    IF document IS NULL OR document->>'format' IS DISTINCT FROM '1'
       OR jsonb_typeof(document->'keys') IS DISTINCT FROM 'array'
       OR document #>> '{keyspace,id}' IS NULL
    THEN
        RAISE EXCEPTION USING ERRCODE = 'KE052',
            MESSAGE = 'document is not an export of keys',
            HINT = 'Give what enc_export_keys() returned, unchanged.';
    END IF;
    LOCK TABLE encryption.key IN SHARE ROW EXCLUSIVE MODE;
    FOR exported IN
        SELECT * FROM jsonb_to_recordset(document->'keys')
            AS k (name text, owner text, created_at timestamptz, mask text, purpose text, labels text[],
                  rotation_period interval, versions jsonb, grants jsonb)
    LOOP
        id := ('x' || encode(substr(sha256(convert_to(exported.name, 'UTF8')), 1, 4), 'hex'))::bit(32)::integer
              & 2147483647;
        IF to_regrole(quote_ident(exported.owner)) IS NULL THEN
            RAISE NOTICE 'role "%" does not exist: key "%" belongs to you', exported.owner, exported.name;
        END IF;
        INSERT INTO encryption.key (key_id, name, owner, created_at, mask, purpose, labels, rotation_period)
        VALUES (id, exported.name,
                coalesce(to_regrole(quote_ident(exported.owner)), to_regrole(quote_ident(current_user))),
                exported.created_at, exported.mask, exported.purpose, coalesce(exported.labels, '{}'),
                exported.rotation_period);

        INSERT INTO encryption.key_version
            (key_id, version, state, provider, reference, wrapped, check_value, keyspace,
             created_at, created_by, activated_at, deprecated_at)
        SELECT id, v.version, v.state, v.provider, v.reference, decode(v.wrapped, 'hex'),
               decode(v.check_value, 'hex'), v.keyspace, v.created_at,
               coalesce(to_regrole(quote_ident(v.created_by)), to_regrole(quote_ident(current_user))),
               v.activated_at, v.deprecated_at
          FROM jsonb_to_recordset(exported.versions) AS v (
               version integer, state text, provider text, reference text, wrapped text,
               check_value text, keyspace uuid, created_at timestamptz, created_by text,
               activated_at timestamptz, deprecated_at timestamptz)
         ORDER BY v.version;
        GET DIAGNOSTICS added = ROW_COUNT;
        total := total + added;

        INSERT INTO encryption.key_grant (key_id, grantee, privilege, granted_by, granted_at)
        SELECT id, coalesce(to_regrole(quote_ident(g.grantee))::oid, 0), g.privilege,
               coalesce(to_regrole(quote_ident(g.granted_by)), to_regrole(quote_ident(current_user))),
               g.granted_at
          FROM jsonb_to_recordset(exported.grants)
               AS g (grantee text, privilege text, granted_by text, granted_at timestamptz)
         WHERE g.grantee IS NULL OR to_regrole(quote_ident(g.grantee)) IS NOT NULL;
        PERFORM FROM jsonb_to_recordset(exported.grants) AS g (grantee text)
          WHERE g.grantee IS NOT NULL AND to_regrole(quote_ident(g.grantee)) IS NULL;
        IF FOUND THEN
            RAISE WARNING 'grants on key "%" to roles that do not exist here were left out', exported.name;
        END IF;
    END LOOP;
    -- Last, as in a dump: it gives way or stays by what versions there are.
    INSERT INTO encryption.keyspace (id, created_at, digest_version)
    SELECT k.id, k.created_at, k.digest_version
      FROM jsonb_to_record(document->'keyspace') AS k (id uuid, created_at timestamptz, digest_version integer);
    PERFORM encryption.log_event('import-keys', row_count => total, reason => reason,
        detail => format('keyspace %s', document #>> '{keyspace,id}'));
    RETURN total;
END $$;
COMMENT ON FUNCTION enc_import_keys(jsonb, text) IS
    'brings in what enc_export_keys() returned in another database, as restoring a dump does; returns the number of versions that were added';
REVOKE EXECUTE ON FUNCTION enc_import_keys(jsonb, text) FROM PUBLIC;

CREATE FUNCTION enc_record_backup(
        label text, retained_until timestamptz, with_wal boolean DEFAULT true, reason text DEFAULT NULL)
    RETURNS integer
    LANGUAGE c SET search_path = pg_catalog, pg_temp AS 'MODULE_PATHNAME';
COMMENT ON FUNCTION enc_record_backup(text, timestamptz, boolean, text) IS
    'notes that a backup needs the versions that exist now, and how long; returns their number';
REVOKE EXECUTE ON FUNCTION enc_record_backup(text, timestamptz, boolean, text) FROM PUBLIC;

CREATE FUNCTION enc_forget_backup(label text, reason text DEFAULT NULL) RETURNS void
    LANGUAGE c SET search_path = pg_catalog, pg_temp AS 'MODULE_PATHNAME';
COMMENT ON FUNCTION enc_forget_backup(text, text) IS 'notes that a backup will not be restored any more';
REVOKE EXECUTE ON FUNCTION enc_forget_backup(text, text) FROM PUBLIC;

----------------------------------------------------------------------------------------------------
-- The lifecycle log
----------------------------------------------------------------------------------------------------

-- What is digested of a time, and of a text.
CREATE FUNCTION encryption.microseconds(timestamptz) RETURNS bigint
    LANGUAGE sql IMMUTABLE STRICT AS $$
    SELECT CASE WHEN pg_catalog.isfinite($1)
                THEN (EXTRACT(epoch FROM $1) OPERATOR(pg_catalog.*) 1000000)::pg_catalog.int8 END
$$;
CREATE FUNCTION encryption.in_utf8(text) RETURNS bytea
    LANGUAGE sql STABLE STRICT AS $$
    SELECT pg_catalog.convert_to($1, CASE pg_catalog.getdatabaseencoding()
               WHEN 'SQL_ASCII' THEN 'SQL_ASCII' WHEN 'MULE_INTERNAL' THEN 'MULE_INTERNAL' ELSE 'UTF8' END)
$$;

-- For procedures of the extension that are not in the library.
CREATE FUNCTION encryption.log_event(
        action text, key_name text DEFAULT NULL, old_version integer DEFAULT NULL,
        new_version integer DEFAULT NULL, row_count bigint DEFAULT NULL, reason text DEFAULT NULL,
        detail text DEFAULT NULL)
    RETURNS void
    LANGUAGE c SET search_path = pg_catalog, pg_temp AS 'MODULE_PATHNAME', 'encryption_log_event';
REVOKE EXECUTE ON FUNCTION encryption.log_event FROM PUBLIC;

CREATE FUNCTION enc_verify_log(
        OUT chain uuid, OUT restored boolean, OUT entries bigint, OUT unsealed bigint, OUT ok boolean,
        OUT first_wrong bigint, OUT problem text)
    RETURNS SETOF record
    LANGUAGE c SET search_path = pg_catalog, pg_temp AS 'MODULE_PATHNAME';
COMMENT ON FUNCTION enc_verify_log() IS
    'recomputes the digests of the lifecycle log, a row for each chain, and names the first entry that does not fit';
REVOKE EXECUTE ON FUNCTION enc_verify_log() FROM PUBLIC;

CREATE FUNCTION enc_export_log(since timestamptz DEFAULT '-infinity', until timestamptz DEFAULT 'infinity')
    RETURNS SETOF text
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET timezone = 'UTC' AS $$
    SELECT json_build_object(
               'chain', e.chain, 'sequence', e.sequence,
               'occurred_at', to_char(e.occurred_at, 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'),
               'action', e.action, 'key', e.key_name,
               'old_version', e.old_version, 'new_version', e.new_version, 'rows', e.row_count,
               'reason', e.reason, 'detail', e.detail,
               'role', e.role_name, 'session_role', e.session_role_name,
               'client_address', e.client_address, 'application_name', e.application_name,
               'sealed_at', to_char(e.sealed_at, 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'),
               'key_version', e.key_version, 'digest', encode(e.digest, 'hex'))::text
      FROM encryption.key_event e
      JOIN encryption.event_chain c ON c.chain = e.chain
     WHERE e.occurred_at >= since AND e.occurred_at < until
     ORDER BY c.restored_at NULLS LAST, c.chain, e.sequence
$$;
COMMENT ON FUNCTION enc_export_log(timestamptz, timestamptz) IS
    'the lifecycle log, or its entries of a time, as lines of JSON';
REVOKE EXECUTE ON FUNCTION enc_export_log(timestamptz, timestamptz) FROM PUBLIC;

----------------------------------------------------------------------------------------------------
-- Values
----------------------------------------------------------------------------------------------------

CREATE FUNCTION enc_rotate(value encrypted_text) RETURNS encrypted_text
    LANGUAGE c STABLE STRICT PARALLEL SAFE COST 40 AS 'MODULE_PATHNAME', 'encrypted_text_rotate';
COMMENT ON FUNCTION enc_rotate(encrypted_text) IS
    'the value under the active version of its key; itself if it already is';
CREATE FUNCTION enc_rotate(value encrypted_bytea) RETURNS encrypted_bytea
    LANGUAGE c STABLE STRICT PARALLEL SAFE COST 40 AS 'MODULE_PATHNAME', 'encrypted_bytea_rotate';
COMMENT ON FUNCTION enc_rotate(encrypted_bytea) IS
    'the value under the active version of its key; itself if it already is';

CREATE FUNCTION enc_key_version(value encrypted_text) RETURNS integer
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'encrypted_key_version';
COMMENT ON FUNCTION enc_key_version(encrypted_text) IS
    'the version of the key that a value is encrypted under; needs no key';
CREATE FUNCTION enc_key_version(value encrypted_bytea) RETURNS integer
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'encrypted_key_version';
COMMENT ON FUNCTION enc_key_version(encrypted_bytea) IS
    'the version of the key that a value is encrypted under; needs no key';

CREATE FUNCTION enc_key_name(value encrypted_text) RETURNS text
    LANGUAGE c STABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'encrypted_key_name';
COMMENT ON FUNCTION enc_key_name(encrypted_text) IS
    'the name of the key that a value is encrypted under, null if this database has none with its id';
CREATE FUNCTION enc_key_name(value encrypted_bytea) RETURNS text
    LANGUAGE c STABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'encrypted_key_name';
COMMENT ON FUNCTION enc_key_name(encrypted_bytea) IS
    'the name of the key that a value is encrypted under, null if this database has none with its id';

CREATE FUNCTION enc_try_decrypt(value encrypted_text) RETURNS text
    LANGUAGE c STABLE STRICT PARALLEL SAFE COST 40 AS 'MODULE_PATHNAME', 'encrypted_text_try_decrypt';
COMMENT ON FUNCTION enc_try_decrypt(encrypted_text) IS
    'the plaintext, or null if the value is damaged or its version is unknown or destroyed';
CREATE FUNCTION enc_try_decrypt(value encrypted_bytea) RETURNS bytea
    LANGUAGE c STABLE STRICT PARALLEL SAFE COST 40 AS 'MODULE_PATHNAME', 'encrypted_bytea_try_decrypt';
COMMENT ON FUNCTION enc_try_decrypt(encrypted_bytea) IS
    'the plaintext, or null if the value is damaged or its version is unknown or destroyed';

----------------------------------------------------------------------------------------------------
-- Views
----------------------------------------------------------------------------------------------------

CREATE VIEW enc_keys AS
SELECT key.name,
       CASE WHEN key.name = 'database' THEN 'literals, parameters and indexes' ELSE 'columns' END AS protects,
       active.version AS active_version,
       active.provider,
       coalesce(age(now(), active.activated_at), age(now(), active.created_at)) AS active_for,
       (SELECT count(*) FROM encryption.key_version v WHERE v.key_id = key.key_id) AS versions,
       (SELECT count(*) FROM encryption.key_version v
         WHERE v.key_id = key.key_id AND v.state IN ('active', 'deprecated')) AS readable_versions,
       key.owner,
       key.created_at,
       key.key_id,
       key.mask,
       key.purpose,
       key.labels,
       key.rotation_period
  FROM encryption.key
  LEFT JOIN encryption.key_version active ON active.key_id = key.key_id AND active.state = 'active';
COMMENT ON VIEW enc_keys IS 'keys, a row each';

CREATE VIEW enc_key_versions AS
SELECT key.name,
       v.version,
       v.state,
       v.provider,
       v.reference,
       v.wrapped IS NOT NULL AS is_wrapped,
       encode(v.check_value, 'hex') AS check_value,
       v.created_at,
       v.created_by,
       v.activated_at,
       v.deprecated_at
  FROM encryption.key_version v
  JOIN encryption.key ON key.key_id = v.key_id
 ORDER BY key.name, v.version;
COMMENT ON VIEW enc_key_versions IS 'versions of keys, a row each';

CREATE VIEW enc_key_grants AS
SELECT key.name,
       CASE WHEN g.grantee::oid = 0 THEN 'public' ELSE pg_get_userbyid(g.grantee) END AS grantee,
       g.privilege,
       g.granted_by,
       g.granted_at
  FROM encryption.key_grant g
  JOIN encryption.key ON key.key_id = g.key_id;
COMMENT ON VIEW enc_key_grants IS 'who may do what with a key, apart from its owner and superusers';

-- A statement that writes nothing: a standby answers it.
CREATE VIEW enc_key_checks AS
SELECT pg_is_in_recovery() AS in_recovery, name, version, state, provider, ok, detail, hint, milliseconds
  FROM enc_check_key();
COMMENT ON VIEW enc_key_checks IS
    'whether this server can open each version of the keys that the reader may check';

CREATE VIEW enc_backups AS
SELECT b.label,
       b.recorded_at,
       b.recorded_by,
       b.retained_until,
       b.retained_until > now() AS is_retained,
       b.with_wal,
       key.name AS key_name,
       array_agg(needed.version ORDER BY needed.version) AS versions
  FROM encryption.backup b
  LEFT JOIN encryption.backup_version needed ON needed.label = b.label
  LEFT JOIN encryption.key ON key.key_id = needed.key_id
 GROUP BY b.label, key.name
 ORDER BY b.recorded_at, b.label, key.name;
COMMENT ON VIEW enc_backups IS 'backups that were recorded, and the versions of each key that they need';

CREATE FUNCTION encryption.cache_statistics(
    OUT entries bigint, OUT capacity bigint, OUT hits bigint, OUT misses bigint,
    OUT expirations bigint, OUT evictions bigint, OUT locked_bytes bigint, OUT unlocked_bytes bigint)
    RETURNS SETOF record ROWS 1
    LANGUAGE c STRICT AS 'MODULE_PATHNAME', 'encryption_cache_statistics';
CREATE FUNCTION encryption.cached_keys(
    OUT key_name text, OUT key_version integer, OUT age_seconds double precision,
    OUT expires_in_seconds double precision, OUT hits bigint, OUT locked boolean)
    RETURNS SETOF record
    LANGUAGE c STRICT AS 'MODULE_PATHNAME', 'encryption_cached_keys';

CREATE FUNCTION encryption.shared_cache_statistics(
    OUT is_there boolean, OUT entries bigint, OUT capacity bigint, OUT hits bigint, OUT misses bigint,
    OUT fetches bigint, OUT waits bigint, OUT evictions bigint, OUT locked_bytes bigint,
    OUT unlocked_bytes bigint)
    RETURNS SETOF record ROWS 1
    LANGUAGE c STRICT AS 'MODULE_PATHNAME', 'encryption_shared_cache_statistics';

CREATE VIEW enc_stat_cache AS SELECT * FROM encryption.cache_statistics();
COMMENT ON VIEW enc_stat_cache IS 'this session''s cache of keys: what it holds, and how it did';

CREATE VIEW enc_stat_shared_cache AS SELECT * FROM encryption.shared_cache_statistics();
COMMENT ON VIEW enc_stat_shared_cache IS
    'the keys that the sessions of the server share, if they do: how many, and how it went';

CREATE VIEW enc_stat_cache_keys AS
SELECT key_name,
       key_version,
       make_interval(secs => age_seconds) AS age,
       make_interval(secs => expires_in_seconds) AS expires_in,
       hits,
       locked
  FROM encryption.cached_keys()
 ORDER BY key_name, key_version;
COMMENT ON VIEW enc_stat_cache_keys IS 'the key versions that this session holds';

-- What was counted since the server was started, or since this backend was if the library isn't preloaded:
-- scope says which. Nothing of it is read from a table or a provider, so it works on a standby, too.
CREATE FUNCTION encryption.value_statistics(
    OUT datid oid, OUT scope text, OUT encrypted bigint, OUT decrypted bigint, OUT compared bigint,
    OUT decrypt_failures bigint, OUT denials bigint, OUT served_past_expiry bigint,
    OUT decrypt_time_seconds double precision, OUT decrypt_time_bounds double precision[],
    OUT decrypt_time_counts bigint[], OUT stats_reset timestamptz)
    RETURNS SETOF record
    LANGUAGE c STRICT AS 'MODULE_PATHNAME', 'encryption_value_statistics';

CREATE VIEW enc_stat AS
SELECT counted.datid,
       database.datname,
       counted.scope,
       counted.encrypted,
       counted.decrypted,
       counted.compared,
       counted.decrypt_failures,
       counted.denials,
       counted.served_past_expiry,
       counted.decrypt_time_counts[cardinality(counted.decrypt_time_counts)] AS decrypt_time_samples,
       counted.decrypt_time_seconds,
       counted.stats_reset
  FROM encryption.value_statistics() counted
  LEFT JOIN pg_database database ON database.oid = counted.datid
 ORDER BY counted.datid;
COMMENT ON VIEW enc_stat IS 'values that were encrypted and decrypted, failures and denials, a row for each database';
GRANT SELECT ON enc_stat TO PUBLIC;

CREATE VIEW enc_stat_decrypt_time AS
SELECT counted.datid, database.datname, bucket.le, bucket.count
  FROM encryption.value_statistics() counted
  LEFT JOIN pg_database database ON database.oid = counted.datid
 CROSS JOIN LATERAL unnest(counted.decrypt_time_bounds, counted.decrypt_time_counts) AS bucket (le, count)
 ORDER BY counted.datid, bucket.le;
COMMENT ON VIEW enc_stat_decrypt_time IS
    'how long values took to decrypt, of which one in 1024 is timed: how many took no longer than le seconds';
GRANT SELECT ON enc_stat_decrypt_time TO PUBLIC;

CREATE FUNCTION enc_stat_reset() RETURNS void
    LANGUAGE c STRICT AS 'MODULE_PATHNAME';
COMMENT ON FUNCTION enc_stat_reset() IS
    'sets what enc_stat and enc_stat_provider have counted in this database to zero';
-- As pg_stat_reset().
REVOKE EXECUTE ON FUNCTION enc_stat_reset() FROM PUBLIC;

-- Requests to the providers that are in use in this database. Each number in request_counts is of requests that
-- took no longer than the number of seconds at the same place in request_bounds.
CREATE FUNCTION encryption.provider_statistics(
    OUT provider text, OUT scope text, OUT reachable boolean, OUT breaker text, OUT requests bigint,
    OUT errors bigint, OUT errors_unreachable bigint, OUT errors_timed_out bigint, OUT errors_throttled bigint,
    OUT errors_login bigint, OUT errors_denied bigint, OUT errors_not_found bigint, OUT errors_invalid bigint,
    OUT errors_other bigint, OUT request_seconds double precision, OUT request_bounds double precision[],
    OUT request_counts bigint[], OUT last_success timestamptz, OUT last_failure timestamptz,
    OUT token_expires timestamptz, OUT certificate_expires timestamptz, OUT client_certificate_expires timestamptz,
    OUT stats_reset timestamptz)
    RETURNS SETOF record
    LANGUAGE c STRICT AS 'MODULE_PATHNAME', 'encryption_provider_statistics';
-- It tells when the server can be without its keys.
REVOKE EXECUTE ON FUNCTION encryption.provider_statistics() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION encryption.provider_statistics() TO pg_monitor;

CREATE VIEW enc_stat_provider AS
SELECT provider, scope, reachable, breaker, requests, errors, errors_unreachable, errors_timed_out,
       errors_throttled, errors_login, errors_denied, errors_not_found, errors_invalid, errors_other,
       request_seconds, last_success, last_failure, token_expires, certificate_expires, client_certificate_expires,
       stats_reset
  FROM encryption.provider_statistics();
COMMENT ON VIEW enc_stat_provider IS
    'providers of keys: whether they can be reached, requests, errors, the end of logins and certificates';

CREATE VIEW enc_stat_provider_request_time AS
SELECT p.provider, bucket.le, bucket.count
  FROM encryption.provider_statistics() p
 CROSS JOIN LATERAL unnest(p.request_bounds, p.request_counts) AS bucket (le, count);
COMMENT ON VIEW enc_stat_provider_request_time IS
    'how long requests to providers took: how many took no longer than le seconds';
GRANT SELECT ON enc_stat_provider, enc_stat_provider_request_time TO pg_monitor;

-- What is known of versions of keys beside the catalog. scope says of whose copies of them: those that all
-- sessions share, or this session's alone. Encryptions are counted as in enc_stat, since the time that is told.
-- A provider that keeps provider_max_versions drops a version with so many newer ones.
CREATE FUNCTION encryption.key_states(
    OUT key_name text, OUT key_version integer, OUT scope text, OUT cached_until timestamptz,
    OUT usable_until timestamptz, OUT check_value_ok boolean, OUT encryptions bigint,
    OUT counted_since timestamptz, OUT provider_versions integer, OUT provider_max_versions integer,
    OUT newer_versions integer, OUT is_missing boolean)
    RETURNS SETOF record
    LANGUAGE c STRICT AS 'MODULE_PATHNAME', 'encryption_key_states';

-- What is known here of the providers that are in use, without asking one. Of a token in a file: when it ends,
-- when that was looked up, and how many seconds it was given in all.
CREATE FUNCTION encryption.provider_states(
    OUT provider text, OUT scope text, OUT kind text, OUT problem text, OUT hint text, OUT failures bigint,
    OUT is_open boolean, OUT login_failed boolean, OUT last_failure text, OUT last_failure_at timestamptz,
    OUT has_token_file boolean, OUT token_expires timestamptz, OUT token_looked_up timestamptz,
    OUT token_seconds double precision)
    RETURNS SETOF record
    LANGUAGE c STRICT AS 'MODULE_PATHNAME', 'encryption_provider_states';
-- It shows addresses and paths.
REVOKE EXECUTE ON FUNCTION encryption.provider_states() FROM PUBLIC;

-- Why the catalog of keys may be older than the keys, null if it isn't, or on a standby.
CREATE FUNCTION encryption.restored_from() RETURNS text
    LANGUAGE c STRICT AS 'MODULE_PATHNAME', 'encryption_restored_from';

CREATE VIEW enc_stat_key AS
SELECT key.name,
       active.version AS active_version,
       active.activated_at AS active_since,
       now() - active.activated_at AS age,
       key.rotation_period,
       active.activated_at + key.rotation_period AS rotation_due,
       coalesce(active.activated_at + key.rotation_period <= now(), false) AS is_overdue,
       states.pending AS pending_versions,
       states.active AS active_versions,
       states.deprecated AS deprecated_versions,
       states.disabled AS disabled_versions,
       states.destroyed AS destroyed_versions,
       known.scope,
       known.cached_until,
       known.usable_until,
       known.check_value_ok,
       known.encryptions,
       known.encryptions_since,
       known.provider_versions,
       known.provider_max_versions
  FROM encryption.key
  LEFT JOIN encryption.key_version active ON active.key_id = key.key_id AND active.state = 'active'
 CROSS JOIN LATERAL (
        SELECT count(*) FILTER (WHERE v.state = 'pending') AS pending,
               count(*) FILTER (WHERE v.state = 'active') AS active,
               count(*) FILTER (WHERE v.state = 'deprecated') AS deprecated,
               count(*) FILTER (WHERE v.state = 'disabled') AS disabled,
               count(*) FILTER (WHERE v.state = 'destroyed') AS destroyed
          FROM encryption.key_version v WHERE v.key_id = key.key_id) states
  LEFT JOIN (
        SELECT v.key_id,
               min(k.scope) AS scope,
               min(k.cached_until) AS cached_until,
               min(k.usable_until) AS usable_until,
               bool_and(k.check_value_ok) AS check_value_ok,
               min(k.encryptions) FILTER (WHERE v.state = 'active') AS encryptions,
               min(greatest(v.created_at, k.counted_since)) FILTER (WHERE v.state = 'active') AS encryptions_since,
               min(k.provider_versions) FILTER (WHERE v.state = 'active') AS provider_versions,
               min(k.provider_max_versions) FILTER (WHERE v.state = 'active') AS provider_max_versions
          FROM encryption.key_states() k
          JOIN encryption.key named ON named.name = k.key_name
          JOIN encryption.key_version v ON v.key_id = named.key_id AND v.version = k.key_version
                                       AND v.state IN ('active', 'deprecated')
         GROUP BY v.key_id) known ON known.key_id = key.key_id;
COMMENT ON VIEW enc_stat_key IS
    'keys: age of the active version, rotation, versions by state, what the cache and the provider have of them';
GRANT SELECT ON enc_stat_key TO PUBLIC;

CREATE FUNCTION enc_check_provider(
        INOUT provider text DEFAULT NULL,
        OUT what text,
        OUT ok boolean,
        OUT detail text,
        OUT hint text,
        OUT milliseconds double precision)
    RETURNS SETOF record
    LANGUAGE c SET search_path = pg_catalog, pg_temp AS 'MODULE_PATHNAME';
COMMENT ON FUNCTION enc_check_provider(text) IS
    'tries everything that a provider of keys is needed for (all that are in use, if none is named), and says what is wrong';
-- It shows addresses and paths, and sends requests with the server's login.
REVOKE EXECUTE ON FUNCTION enc_check_provider(text) FROM PUBLIC;

CREATE FUNCTION enc_flush_cache() RETURNS void
    LANGUAGE c STRICT AS 'MODULE_PATHNAME';
COMMENT ON FUNCTION enc_flush_cache() IS
    'makes this session forget every key; the next use asks the provider again';

GRANT SELECT ON enc_keys, enc_key_versions, enc_key_grants, enc_key_checks,
    enc_stat_cache, enc_stat_shared_cache, enc_stat_cache_keys TO PUBLIC;
GRANT SELECT ON enc_backups TO pg_monitor;

----------------------------------------------------------------------------------------------------
-- Jobs: how procedures that commit share and resume the walk through a table. The functions check
-- that the caller owns the job's table, and write with the rights of the catalog's owner.
----------------------------------------------------------------------------------------------------

CREATE FUNCTION encryption.begin_job(
        kind text, table_id oid, column_name name, key_name text, options jsonb,
        OUT job_id bigint, OUT is_new boolean)
    RETURNS SETOF record ROWS 1
    LANGUAGE c SET search_path = pg_catalog, pg_temp AS 'MODULE_PATHNAME', 'encryption_begin_job';
COMMENT ON FUNCTION encryption.begin_job(text, oid, name, text, jsonb) IS
    'begins a job, or joins or resumes the one that is not completed; at most one per column is';

CREATE FUNCTION encryption.plan_ranges(job_id bigint, step text, table_ids oid[]) RETURNS boolean
    LANGUAGE c SET search_path = pg_catalog, pg_temp AS 'MODULE_PATHNAME', 'encryption_plan_ranges';
COMMENT ON FUNCTION encryption.plan_ranges(bigint, text, oid[]) IS
    'begins the next step of a job, if every range of the present one is finished; whether it did';

CREATE FUNCTION encryption.claim_range(
        job_id bigint, preferred bigint,
        OUT job_state text, OUT job_pass integer, OUT range_id bigint, OUT step text, OUT table_id oid,
        OUT next_block bigint, OUT end_block bigint, OUT others_work boolean, OUT last_step text,
        OUT last_done bigint, OUT last_locked bigint)
    RETURNS SETOF record ROWS 1
    LANGUAGE c SET search_path = pg_catalog, pg_temp AS 'MODULE_PATHNAME', 'encryption_claim_range';
COMMENT ON FUNCTION encryption.claim_range(bigint, bigint) IS
    'claims an unfinished range of a job until the transaction ends; range_id is null if there is none to claim';

CREATE FUNCTION encryption.advance_range(
        range_id bigint, next_block bigint, rows_done bigint, rows_locked bigint, rows_damaged bigint)
    RETURNS void
    LANGUAGE c SET search_path = pg_catalog, pg_temp AS 'MODULE_PATHNAME', 'encryption_advance_range';
COMMENT ON FUNCTION encryption.advance_range(bigint, bigint, bigint, bigint, bigint) IS
    'notes how far a claimed range was worked through, and what that came to';

CREATE FUNCTION encryption.set_job_state(job_id bigint, state text, error text) RETURNS void
    LANGUAGE c SET search_path = pg_catalog, pg_temp AS 'MODULE_PATHNAME', 'encryption_set_job_state';
COMMENT ON FUNCTION encryption.set_job_state(bigint, text, text) IS
    'moves a job into a state; a null error leaves the last one';

----------------------------------------------------------------------------------------------------
-- Rotation of columns. Procedures run with the rights of their caller and commit, so they can't have
-- a search path of their own: each transaction sets it, by encryption.begin_batch.
----------------------------------------------------------------------------------------------------

CREATE FUNCTION encryption.is_outdated(encrypted_text) RETURNS boolean
    LANGUAGE c STABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'encryption_is_outdated';
CREATE FUNCTION encryption.is_outdated(encrypted_bytea) RETURNS boolean
    LANGUAGE c STABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'encryption_is_outdated';
-- The same of every encrypted value that an array, a domain or a composite holds.
CREATE FUNCTION encryption.holds_outdated("any") RETURNS boolean
    LANGUAGE c STABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'encryption_holds_outdated';
CREATE FUNCTION encryption.rotate_within(anyelement) RETURNS anyelement
    LANGUAGE c STABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'encryption_rotate_within';
CREATE FUNCTION encryption.damage("any") RETURNS text
    LANGUAGE c STABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'encryption_damage';
CREATE FUNCTION encryption.version_under(encrypted_text, integer) RETURNS integer
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'encryption_version_under';
CREATE FUNCTION encryption.version_under(encrypted_bytea, integer) RETURNS integer
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'encryption_version_under';
CREATE FUNCTION encryption.versions_within("any", integer) RETURNS integer[]
    LANGUAGE c STABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'encryption_versions_within';

-- The name of a column that can be rotated; an error that says why, if it can't.
CREATE FUNCTION encryption.rotatable_column(table_id oid, column_number smallint) RETURNS name
    LANGUAGE c STRICT AS 'MODULE_PATHNAME', 'encryption_rotatable_column';

-- How many bytes of WAL the furthest standby that is connected has yet to replay; null without one.
CREATE FUNCTION encryption.replica_lag() RETURNS bigint
    LANGUAGE c SET search_path = pg_catalog, pg_temp AS 'MODULE_PATHNAME', 'encryption_replica_lag';

-- Every column that holds encrypted values, and each key that they are under: by itself, or in
-- arrays, domains, composite types and ranges, however nested.
CREATE VIEW encryption.encrypted_column AS
WITH RECURSIVE holder (type_id, key_id) AS (
    -- A key_id of null: whatever the type modifier of the column, domain or attribute says.
    SELECT type.oid, NULL::integer
      FROM pg_type type
     WHERE type.oid IN ('@extschema@.encrypted_text'::regtype, '@extschema@.encrypted_bytea'::regtype)
  UNION
    SELECT outer_type.type_id, outer_type.key_id
      FROM holder
     CROSS JOIN LATERAL (
        SELECT type.oid, holder.key_id
          FROM pg_type type
         WHERE type.typelem = holder.type_id AND type.typcategory = 'A'
      UNION ALL
        SELECT type.oid, coalesce(holder.key_id, nullif(type.typtypmod, -1))
          FROM pg_type type
         WHERE type.typtype = 'd' AND type.typbasetype = holder.type_id
      UNION ALL
        SELECT class.reltype, coalesce(holder.key_id, nullif(attribute.atttypmod, -1))
          FROM pg_attribute attribute
          JOIN pg_class class ON class.oid = attribute.attrelid
         WHERE attribute.atttypid = holder.type_id AND attribute.attnum > 0
           AND NOT attribute.attisdropped AND class.reltype <> 0
      UNION ALL
        SELECT range.rngtypid, NULL FROM pg_range range WHERE range.rngsubtype = holder.type_id
      UNION ALL
        SELECT range.rngmultitypid, NULL FROM pg_range range WHERE range.rngsubtype = holder.type_id
     ) outer_type (type_id, key_id)
)
SELECT DISTINCT
       class.oid AS table_id,
       attribute.attnum AS column_number,
       format('%I.%I', namespace.nspname, class.relname) AS table_name,
       attribute.attname AS column_name,
       class.relkind AS kind,
       class.relowner::regrole AS owner,
       coalesce(holder.key_id, nullif(attribute.atttypmod, -1), database.key_id) AS key_id,
       attribute.atttypid AS type_id,
       -- Not the type itself, nor a domain over it.
       attribute.atttypid NOT IN ('@extschema@.encrypted_text'::regtype, '@extschema@.encrypted_bytea'::regtype)
           AS is_nested,
       attribute.attgenerated <> '' AS is_generated,
       class.relpersistence = 't' AND class.relnamespace <> pg_my_temp_schema() AS is_temporary_elsewhere,
       attribute.attinhcount > 0 AS is_inherited
  FROM holder
  JOIN pg_attribute attribute ON attribute.atttypid = holder.type_id
  JOIN pg_class class ON class.oid = attribute.attrelid AND class.relkind IN ('r', 'p', 'm', 'f')
  JOIN pg_namespace namespace ON namespace.oid = class.relnamespace
  LEFT JOIN encryption.key database ON database.name = 'database'
 WHERE attribute.attnum > 0 AND NOT attribute.attisdropped;
COMMENT ON VIEW encryption.encrypted_column IS 'columns that hold encrypted values, and each key that they may be under';
GRANT SELECT ON encryption.encrypted_column TO PUBLIC;

-- A table, its partitions and its inheritance children, as far as they store rows here.
CREATE FUNCTION encryption.tables_of(table_id oid) RETURNS SETOF oid
    LANGUAGE sql STABLE STRICT SET search_path = pg_catalog, pg_temp AS $$
WITH RECURSIVE family (id) AS (
    SELECT table_id
  UNION
    SELECT inherits.inhrelid FROM family JOIN pg_inherits inherits ON inherits.inhparent = family.id
)
SELECT class.oid FROM family JOIN pg_class class ON class.oid = family.id AND class.relkind = 'r' ORDER BY 1
$$;

-- The query that counts, with one snapshot, the rows of some tables that are outdated in a column.
CREATE FUNCTION encryption.count_outdated_query(table_ids oid[], condition text) RETURNS text
    LANGUAGE sql STABLE STRICT SET search_path = pg_catalog, pg_temp AS $$
SELECT coalesce(
    'SELECT count(*) FROM (' ||
    string_agg(format('SELECT FROM ONLY %s WHERE %s', id::regclass, condition), ' UNION ALL ') || ') outdated',
    'SELECT 0::bigint')
  FROM unnest(table_ids) id
$$;

-- The settings that each transaction of a procedure runs with.
CREATE FUNCTION encryption.begin_batch(lock_timeout interval, off_triggers boolean) RETURNS void
    LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
    -- Who may not see every row gets an error instead of a table with old values left.
    PERFORM set_config('row_security', 'off', true);
    PERFORM set_config('lock_timeout', (extract(epoch FROM lock_timeout) * 1000)::bigint::text, true);
    PERFORM set_config('enable_tidscan', 'on', true);
    IF off_triggers THEN
        PERFORM set_config('session_replication_role', 'replica', true);
    END IF;
END $$;

CREATE VIEW enc_stat_progress_rotate AS
SELECT job.job_id AS job,
       job.table_name,
       job.column_name,
       job.key_name,
       job.state,
       job.from_version,
       job.to_version,
       job.pass,
       ranges.step,
       done.rows AS rows_done,
       greatest(job.rows_total, done.rows) AS rows_total,
       coalesce(nullif(ranges.rows_damaged, 0), job.rows_damaged) AS rows_damaged,
       ranges.blocks_done,
       ranges.blocks_total,
       CASE WHEN job.state = 'completed' THEN 100
            ELSE round(100.0 * ranges.blocks_done / nullif(ranges.blocks_total, 0), 1) END AS percent,
       round(rate.rows_per_second) AS rows_per_second,
       CASE WHEN job.ended_at IS NULL
            THEN date_trunc('second', make_interval(secs => (greatest(job.rows_total, done.rows) - done.rows)
                                                            / nullif(rate.rows_per_second, 0))) END AS time_left,
       ranges.workers,
       job.last_error,
       job.started_by,
       job.started_at,
       job.ended_at
  FROM encryption.job
  LEFT JOIN LATERAL (
        SELECT max(r.step) AS step,
               sum(r.rows_done) FILTER (WHERE r.step = 'walk')::bigint AS rows_done,
               sum(r.rows_damaged)::bigint AS rows_damaged,
               sum(r.next_block - r.first_block)::bigint AS blocks_done,
               sum(r.end_block - r.first_block)::bigint AS blocks_total,
               max(r.changed_at) AS changed_at,
               count(DISTINCT r.worker) FILTER (
                   WHERE r.changed_at > clock_timestamp() - interval '1 minute'
                     AND r.worker IN (SELECT activity.pid FROM pg_stat_activity activity)) AS workers
          FROM encryption.job_range r WHERE r.job_id = job.job_id) ranges ON true
 CROSS JOIN LATERAL (SELECT job.rows_done + coalesce(ranges.rows_done, 0)) done (rows)
 -- Of the present call: the time that a job lay idle doesn't count.
 CROSS JOIN LATERAL (
        SELECT (done.rows - job.resumed_rows)
               / nullif(extract(epoch FROM coalesce(ranges.changed_at, job.changed_at) - job.resumed_at), 0)
       ) rate (rows_per_second)
 WHERE job.kind = 'rotate';
COMMENT ON VIEW enc_stat_progress_rotate IS 'rotations of columns: how far they are';
GRANT SELECT ON enc_stat_progress_rotate TO PUBLIC;

CREATE FUNCTION enc_rotation_cancel(job bigint) RETURNS void
    LANGUAGE plpgsql STRICT SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM encryption.set_job_state(job, 'canceled', NULL);
END $$;
COMMENT ON FUNCTION enc_rotation_cancel(bigint) IS
    'has the sessions that work on a rotation stop after their present batch; the same call goes on with it';

CREATE PROCEDURE enc_rotate_column(
    table_name      regclass,
    column_name     name,
    batch_size      integer  DEFAULT 10000,
    sleep           interval DEFAULT '0',
    max_rate        integer  DEFAULT NULL,
    max_replica_lag text     DEFAULT NULL,
    lock_timeout    interval DEFAULT '100 milliseconds',
    fire_triggers   boolean  DEFAULT false,
    skip_damaged    boolean  DEFAULT false,
    outage_timeout  interval DEFAULT '10 minutes',
    reason          text     DEFAULT NULL)
    LANGUAGE plpgsql AS $$
DECLARE
    number         smallint;    -- of the column, which may be renamed meanwhile
    present_name   name;
    this_job       bigint;
    off_triggers   boolean := false;
    tables         oid[];
    work           record;
    progress       record;
    -- The parts of the statements that change and count rows.
    is_nested      boolean;
    rotated        text;
    outdated       text;
    sound          text;        -- outdated, and can be decrypted
    place          text;
    -- The batch.
    preferred      bigint;
    batch_table    oid;         -- that batch_blocks is about
    batch_blocks   bigint;
    wanted_blocks  double precision;
    blocks_left    bigint;
    last_block     bigint;
    began          timestamptz;
    seconds        double precision;
    changed        bigint;
    held_back      bigint;
    damaged        bigint;
    outcome        text;
    bad            record;
    is_found       boolean;     -- whether table and column were there
    renamed        integer := 0;
    -- The error that a batch ended with.
    code           text;
    message        text;
    detail         text;
    hint           text;
    -- This call.
    session_began  timestamptz := clock_timestamp();
    session_rows   bigint := 0;
    told_at        timestamptz := clock_timestamp();
    outage_since   timestamptz;
    pause          double precision := 0;   -- seconds, before the next batch
    done_at_check  bigint := -1;
    fruitless      integer := 0;
    all_damaged    bigint := 0;
    -- Passes that change nothing while rows are left, before the job is given up as incomplete.
    FRUITLESS_MAX  CONSTANT integer := 30;
BEGIN
    IF table_name IS NULL OR column_name IS NULL OR batch_size IS NULL OR sleep IS NULL
        OR lock_timeout IS NULL OR fire_triggers IS NULL OR skip_damaged IS NULL OR outage_timeout IS NULL
    THEN
        RAISE EXCEPTION USING ERRCODE = '22004', MESSAGE = 'argument must not be null',
            HINT = 'Only max_rate and max_replica_lag, for no limit, and reason may be null.';
    END IF;
    IF batch_size < 1 OR sleep < '0' OR max_rate < 1 OR lock_timeout <= '0' OR outage_timeout < '0'
        OR pg_size_bytes(max_replica_lag) < 0
    THEN
        RAISE EXCEPTION USING ERRCODE = '22023', MESSAGE = 'argument out of range',
            HINT = 'batch_size, max_rate and lock_timeout must be greater than 0, and no other argument less.';
    END IF;
    -- Statements here each see what was committed before them, whatever the session's default is.
    COMMIT;
    SET TRANSACTION ISOLATION LEVEL READ COMMITTED;
    PERFORM encryption.begin_batch('0', false);

    SELECT attnum INTO number FROM pg_attribute
     WHERE attrelid = table_name AND attname = column_name AND attnum > 0 AND NOT attisdropped;
    IF number IS NOT NULL THEN
        present_name := encryption.rotatable_column(table_name, number);
    END IF;
    SELECT b.job_id INTO this_job
      FROM encryption.begin_job('rotate', table_name, column_name,
               (SELECT string_agg(DISTINCT key.name, ', ')
                  FROM encryption.encrypted_column c JOIN @extschema@.enc_keys key ON key.key_id = c.key_id
                 WHERE c.table_id = enc_rotate_column.table_name AND c.column_number = number),
               jsonb_build_object(
                   'batch_size', batch_size, 'sleep', sleep, 'max_rate', max_rate,
                   'max_replica_lag', max_replica_lag, 'lock_timeout', lock_timeout,
                   'fire_triggers', fire_triggers, 'skip_damaged', skip_damaged, 'reason', reason)) b;

    -- A user's trigger or rule sees no change of the value, only of its ciphertext.
    IF NOT fire_triggers AND EXISTS (
        SELECT FROM encryption.tables_of(table_name) id
         WHERE EXISTS (SELECT FROM pg_trigger t WHERE t.tgrelid = id AND NOT t.tgisinternal
                          AND t.tgenabled = 'O' AND t.tgtype & 16 <> 0)
            OR EXISTS (SELECT FROM pg_rewrite r WHERE r.ev_class = id AND r.ev_type = '2' AND r.ev_enabled = 'O'))
    THEN
        BEGIN
            PERFORM set_config('session_replication_role', 'replica', true);
            off_triggers := true;
        EXCEPTION WHEN insufficient_privilege THEN
            RAISE EXCEPTION USING ERRCODE = 'KE104',
                MESSAGE = format('triggers or rules of %s would fire for each row that is rotated', table_name),
                DETAIL = 'To leave them out needs the right to set session_replication_role.',
                HINT = 'Call it with fire_triggers => true, or as a superuser.';
        END;
    END IF;

    -- Each turn is a transaction of its own.
    <<turn>>
    LOOP
        COMMIT;
        SET TRANSACTION ISOLATION LEVEL READ COMMITTED;
        PERFORM encryption.begin_batch(lock_timeout, off_triggers);
        IF pause > 0 THEN
            PERFORM pg_sleep(pause);
            pause := 0;
            CONTINUE;
        END IF;
        IF max_replica_lag IS NOT NULL AND encryption.replica_lag() > pg_size_bytes(max_replica_lag) THEN
            pause := 0.2;
            CONTINUE;
        END IF;
        IF clock_timestamp() > told_at + interval '5 seconds' THEN
            told_at := clock_timestamp();
            SELECT * INTO progress FROM @extschema@.enc_stat_progress_rotate p WHERE p.job = this_job;
            RAISE NOTICE 'rotation of %.%, job %: % of % rows, % rows/s, % left',
                table_name, column_name, this_job, progress.rows_done, progress.rows_total,
                progress.rows_per_second, progress.time_left;
        END IF;

        SELECT * INTO work FROM encryption.claim_range(this_job, preferred);
        EXIT WHEN work.job_state NOT IN ('running', 'paused');
        IF work.range_id IS NULL THEN
            IF work.others_work THEN
                pause := 0.05;
                CONTINUE;
            END IF;
            BEGIN
                tables := ARRAY(SELECT encryption.tables_of(table_name));
                IF work.last_step = 'walk' OR tables = '{}' THEN
                    PERFORM encryption.plan_ranges(this_job, 'check', ARRAY[table_name::oid]);
                ELSE
                    PERFORM encryption.plan_ranges(this_job, 'walk', tables);
                END IF;
            EXCEPTION WHEN lock_not_available THEN
                pause := 0.1;
            END;
            CONTINUE;
        END IF;

        -- What is to be done, in the words of the table as it is now.
        changed := 0;
        held_back := 0;
        damaged := 0;
        outcome := 'done';
        began := clock_timestamp();
        BEGIN
            is_found := false;
            present_name := encryption.rotatable_column(table_name, number);
            is_found := true;
            IF work.range_id IS DISTINCT FROM preferred THEN
                preferred := work.range_id;
                -- A domain is looked into as arrays and composites are.
                SELECT atttypid NOT IN ('@extschema@.encrypted_text'::regtype, '@extschema@.encrypted_bytea'::regtype)
                  INTO STRICT is_nested FROM pg_attribute WHERE attrelid = table_name AND attnum = number;
            END IF;
            -- A table's first batch is small, as nobody knows yet how long it takes.
            IF work.table_id IS DISTINCT FROM batch_table THEN
                SELECT greatest(1, batch_size / 4 / greatest(1,
                           coalesce(nullif(reltuples, -1) / nullif(relpages, 0), 60)))::bigint
                  INTO batch_blocks FROM pg_class WHERE oid = work.table_id;
                batch_table := work.table_id;
            END IF;
            outdated := format(CASE WHEN is_nested THEN 'encryption.holds_outdated(%I)'
                                    ELSE 'encryption.is_outdated(%I)' END, present_name);
            rotated := format(CASE WHEN is_nested THEN 'encryption.rotate_within(%I)'
                                   ELSE '@extschema@.enc_rotate(%I)' END, present_name);
            -- What is outdated is looked at only where that can be.
            sound := format('CASE WHEN encryption.damage(%I) IS NULL THEN %s END', present_name, outdated);
            IF work.step = 'check' THEN
                tables := ARRAY(SELECT encryption.tables_of(table_name));
                IF all_damaged > 0 THEN
                    outdated := sound;
                END IF;
                EXECUTE encryption.count_outdated_query(tables, outdated) INTO held_back;
            ELSE
                -- Of what is left of the range parts of the same size, so that none is a small rest.
                blocks_left := work.end_block - work.next_block;
                last_block := work.next_block + ceil(blocks_left / ceil(blocks_left / (batch_blocks * 1.25)))::bigint;
                -- A partition that was dropped has nothing left to be done.
                IF NOT EXISTS (SELECT FROM pg_class WHERE oid = work.table_id) THEN
                    PERFORM encryption.advance_range(work.range_id, work.end_block, 0, 0, 0);
                    CONTINUE turn;
                END IF;
                place := format('ctid >= ''(%s,0)'' AND ctid < ''(%s,0)''', work.next_block, last_block);
                EXECUTE format('UPDATE ONLY %s SET %I = %s WHERE %s AND %s',
                    work.table_id::regclass, present_name, rotated, place, outdated);
                GET DIAGNOSTICS changed = ROW_COUNT;
            END IF;
        EXCEPTION
            WHEN lock_not_available OR deadlock_detected OR serialization_failure THEN
                outcome := 'locked';
            WHEN others THEN
                GET STACKED DIAGNOSTICS code = RETURNED_SQLSTATE, message = MESSAGE_TEXT,
                    detail = PG_EXCEPTION_DETAIL, hint = PG_EXCEPTION_HINT;
                outcome := 'error';
                -- A table or column that was renamed or dropped after it was looked up: it is found under its
                -- new name, or is said to be gone. (As a regclass, what was dropped is a number: 42601.)
                IF code IN ('42P01', '42703', '42601', 'P0002') AND is_found AND renamed < 5 THEN
                    renamed := renamed + 1;
                    pause := 0.05;
                    CONTINUE turn;
                END IF;
        END;

        -- What nobody holds, without waiting; what is held is come back to in the next pass.
        IF outcome = 'locked' AND work.step = 'walk' THEN
            BEGIN
                EXECUTE format(
                    'UPDATE ONLY %1$s SET %2$I = %3$s WHERE ctid = ANY (ARRAY('
                    'SELECT ctid FROM ONLY %1$s WHERE %4$s AND %5$s FOR NO KEY UPDATE SKIP LOCKED))',
                    work.table_id::regclass, present_name, rotated, place, outdated);
                GET DIAGNOSTICS changed = ROW_COUNT;
                EXECUTE format('SELECT count(*) FROM ONLY %s WHERE %s AND %s',
                    work.table_id::regclass, place, outdated) INTO held_back;
                outcome := 'done';
            EXCEPTION
                WHEN lock_not_available OR deadlock_detected OR serialization_failure THEN
                    outcome := 'locked';
                WHEN others THEN
                    GET STACKED DIAGNOSTICS code = RETURNED_SQLSTATE, message = MESSAGE_TEXT,
                        detail = PG_EXCEPTION_DETAIL, hint = PG_EXCEPTION_HINT;
                    outcome := 'error';
            END;
        END IF;

        -- A value that can't be decrypted: which, and what else there is to be rotated.
        IF outcome = 'error' AND (code BETWEEN 'KE040' AND 'KE049' OR code IN ('KE003', 'KE006', 'KE009')) THEN
            BEGIN
                IF work.step = 'check' THEN
                    EXECUTE encryption.count_outdated_query(tables, sound) INTO held_back;
                    outcome := 'done';
                ELSE
                    FOR bad IN EXECUTE format(
                        'SELECT ctid AS place, encryption.damage(%1$I) AS damage FROM ONLY %2$s'
                        ' WHERE %3$s AND encryption.damage(%1$I) IS NOT NULL',
                        present_name, work.table_id::regclass, place)
                    LOOP
                        damaged := damaged + 1;
                        message := format('row %s of %s, column "%s": %s', bad.place, work.table_id::regclass,
                                          present_name, bad.damage);
                        EXIT WHEN NOT skip_damaged;
                        RAISE WARNING USING MESSAGE = message;
                    END LOOP;
                    IF damaged > 0 AND skip_damaged THEN
                        EXECUTE format('UPDATE ONLY %s SET %I = %s WHERE %s AND %s',
                            work.table_id::regclass, present_name, rotated, place, sound);
                        GET DIAGNOSTICS changed = ROW_COUNT;
                        outcome := 'damaged';
                    ELSIF damaged > 0 THEN
                        hint := 'Restore the row from a backup, or call it with skip_damaged => true, which leaves it as it is.';
                    END IF;
                END IF;
            EXCEPTION
                WHEN lock_not_available OR deadlock_detected OR serialization_failure THEN
                    outcome := 'locked';
                WHEN others THEN
                    GET STACKED DIAGNOSTICS code = RETURNED_SQLSTATE, message = MESSAGE_TEXT,
                        detail = PG_EXCEPTION_DETAIL, hint = PG_EXCEPTION_HINT;
                    outcome := 'error';
            END;
        END IF;

        -- What follows waits for nobody but sessions that note their progress, too.
        PERFORM set_config('lock_timeout', '0', true);
        IF outcome = 'locked' THEN
            -- Somebody has locked the table.
            pause := 0.1;
            CONTINUE;
        END IF;

        IF outcome = 'error' THEN
            -- A provider that is out of reach may be back soon.
            IF code IN ('KE062', 'KE063', 'KE064', 'KE065', 'KE080') THEN
                outage_since := coalesce(outage_since, clock_timestamp());
                PERFORM encryption.set_job_state(this_job, 'paused', message);
                IF clock_timestamp() < outage_since + outage_timeout THEN
                    RAISE NOTICE 'rotation of %.% paused: %', table_name, column_name, message;
                    pause := least(1 + extract(epoch FROM clock_timestamp() - outage_since) / 4, 30);
                    CONTINUE;
                END IF;
            ELSE
                PERFORM encryption.set_job_state(this_job, 'failed', message);
            END IF;
            COMMIT;
            RAISE EXCEPTION USING ERRCODE = code, MESSAGE = message, DETAIL = coalesce(detail, ''),
                HINT = coalesce(nullif(hint, ''), 'Remove the cause and repeat the call: it goes on where it was.');
        END IF;
        outage_since := NULL;
        renamed := 0;
        IF work.job_state = 'paused' THEN
            PERFORM encryption.set_job_state(this_job, 'running', NULL);
        END IF;

        IF work.step = 'check' THEN
            PERFORM encryption.advance_range(work.range_id, 1, 0, held_back, 0);
            SELECT * INTO STRICT progress FROM @extschema@.enc_stat_progress_rotate p WHERE p.job = this_job;
            all_damaged := progress.rows_damaged;
            IF held_back = 0 THEN
                PERFORM encryption.set_job_state(this_job,
                    CASE WHEN all_damaged = 0 THEN 'completed' ELSE 'incomplete' END,
                    CASE WHEN all_damaged > 0 THEN progress.last_error END);
                EXIT;
            END IF;
            fruitless := CASE WHEN progress.rows_done = done_at_check THEN fruitless + 1 ELSE 0 END;
            done_at_check := progress.rows_done;
            IF fruitless > FRUITLESS_MAX THEN
                PERFORM encryption.set_job_state(this_job, 'incomplete', format(
                    '%s row(s) are locked by other sessions, or a trigger or rule keeps them from being changed',
                    held_back));
                EXIT;
            END IF;
            IF fruitless > 0 THEN
                pause := least(0.05 * 2 ^ fruitless, 2);
            END IF;
            CONTINUE;
        END IF;

        PERFORM encryption.advance_range(work.range_id, last_block, changed, held_back, damaged);
        IF damaged > 0 THEN
            all_damaged := all_damaged + damaged;
            PERFORM encryption.set_job_state(this_job, 'running', message);
        END IF;
        session_rows := session_rows + changed;

        -- Batches of the size that was asked for; and short ones, so that nobody who waits for a row
        -- waits for longer than deadlock_timeout (1 s).
        seconds := extract(epoch FROM clock_timestamp() - began);
        IF seconds > 0.4 THEN
            batch_blocks := greatest(batch_blocks / 2, 1);
        ELSE
            wanted_blocks := (last_block - work.next_block) * batch_size::double precision / greatest(changed, 1);
            IF wanted_blocks < batch_blocks OR seconds < 0.2 THEN
                batch_blocks := greatest(least(wanted_blocks, batch_blocks * 2, 4096), 1)::bigint;
            END IF;
        END IF;
        pause := greatest(extract(epoch FROM sleep),
                          session_rows::double precision / max_rate
                              - extract(epoch FROM clock_timestamp() - session_began));
    END LOOP;

    SELECT * INTO progress FROM @extschema@.enc_stat_progress_rotate p WHERE p.job = this_job;
    RAISE NOTICE 'rotation of %.%, job %, is %: % rows, % rows/s', table_name, column_name, this_job,
        progress.state, progress.rows_done, progress.rows_per_second;
    IF progress.state = 'incomplete' THEN
        RAISE WARNING USING MESSAGE = format('rotation of %s.%s is incomplete: %s', table_name, column_name, progress.last_error),
            HINT = 'Remove the cause and repeat the call.';
    END IF;
END $$;
COMMENT ON PROCEDURE enc_rotate_column(regclass, name, integer, interval, integer, text, interval, boolean, boolean, interval, text) IS
    'encrypts the values of a column again that are not under the active version of their key, in batches that commit';
-- Migration of columns between plaintext and encrypted, with the application running.
--
-- A second column is added, a trigger keeps the two in step, the rows that were there are filled in
-- and verified in batches that commit, and the columns exchange their names in one short moment. The
-- column with the name that applications use is the leader, the other one the follower: the trigger
-- writes what the leader has to the follower, before the exchange of names and after it. So the way
-- back is the same exchange again, until the column that was there first is dropped.
--
-- The functions below run with the rights of their caller, who owns the table, and each does what it
-- does in one transaction: a crash loses that one and nothing else. The procedures only commit.
----------------------------------------------------------------------------------------------------

CREATE TABLE encryption.migration (
    job_id         bigint      NOT NULL PRIMARY KEY REFERENCES encryption.job ON DELETE CASCADE,
    direction      text        NOT NULL CHECK (direction IN ('encrypt', 'decrypt')),
    -- backfilling: rows from before the migration are being filled in. verifying: each row is being
    -- decrypted and compared. verified: ready to exchange the names, or waiting for indexes.
    -- swapped: the names are exchanged, the source column is still there. finished: it is dropped.
    -- rolled back: the target column is. changing: what a transaction that alters the table sees
    -- itself; it is never committed.
    phase          text        NOT NULL DEFAULT 'changing'
                               CHECK (phase IN ('changing', 'backfilling', 'verifying', 'verified', 'swapped', 'finished', 'rolled back')),
    table_id       oid         NOT NULL,
    -- The name that applications use, what the new column is called before it has that name, and
    -- what the old one is called afterwards.
    column_name    name        NOT NULL,
    target_name    name        NOT NULL,
    source_name    name        NOT NULL,
    source_type    text        NOT NULL,
    target_type    text        NOT NULL,
    key_name       text        NOT NULL,
    -- What the last call accepted in so many words.
    accepted       text[]      NOT NULL,
    -- The table, or its partitions and heirs, whose rows are filled in and verified.
    members        oid[]       NOT NULL,
    -- Names that were given away at the swap: [{"kind", "oid", "name"}].
    renamed        jsonb       NOT NULL DEFAULT '[]',
    -- The files of the tables when a column was dropped: {"table's oid": file}. A table that still
    -- has the same one still has the old values in it.
    files          jsonb       NOT NULL DEFAULT '{}'
);
COMMENT ON TABLE encryption.migration IS 'migrations of columns: a row for each job that is one';

-- Owners of tables run their migrations, and see to nobody else's.
ALTER TABLE encryption.migration ENABLE ROW LEVEL SECURITY;
CREATE POLICY owner_of_table ON encryption.migration USING (
    pg_has_role((SELECT relowner FROM pg_class WHERE oid = table_id), 'USAGE'));
GRANT SELECT, INSERT, UPDATE ON encryption.migration TO PUBLIC;

-- Errors are worded in the library, all in one place.
CREATE FUNCTION encryption.refuse_migration(why text, subject text, detail text DEFAULT '') RETURNS void
    LANGUAGE c STRICT AS 'MODULE_PATHNAME', 'encryption_refuse_migration';
COMMENT ON FUNCTION encryption.refuse_migration(text, text, text) IS 'raises an error of a migration';

-- The rights on the key are those of the table's owner, as for a foreign key: whoever writes to the
-- table needs none until the names are exchanged.
CREATE FUNCTION encryption.keep_in_step() RETURNS trigger
    LANGUAGE c AS 'MODULE_PATHNAME', 'encryption_keep_in_step';
COMMENT ON FUNCTION encryption.keep_in_step() IS
    'row trigger of a migration: writes what the leading column has to the following one, encrypted or decrypted';

CREATE FUNCTION encryption.check_key_of_owner(table_id oid, key_name text) RETURNS void
    LANGUAGE c STRICT SET search_path = pg_catalog, pg_temp
    AS 'MODULE_PATHNAME', 'encryption_check_key_of_owner';
COMMENT ON FUNCTION encryption.check_key_of_owner(oid, text) IS
    'refuses a key that the owner of a table may not encrypt and decrypt with';

-- The table, its partitions and those that inherit from it, ancestors first.
CREATE FUNCTION encryption.descendants(table_id oid)
    RETURNS TABLE (member oid, relkind "char", depth integer)
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    WITH RECURSIVE tree (member, depth) AS (
        SELECT table_id, 0
      UNION
        SELECT inhrelid, tree.depth + 1 FROM tree JOIN pg_inherits ON inhparent = tree.member
    )
    SELECT tree.member, c.relkind, max(tree.depth)
      FROM tree JOIN pg_class c ON c.oid = tree.member
     GROUP BY 1, 2 ORDER BY 3, 1
$$;

-- A name of at most 63 bytes that ends with the suffix.
CREATE FUNCTION encryption.with_suffix(original name, suffix text) RETURNS name
    LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT (CASE WHEN octet_length(original || suffix) <= 63 THEN original || suffix
                 ELSE (SELECT left(original::text, n) FROM generate_series(63, 1, -1) n
                        WHERE octet_length(left(original::text, n)) + octet_length(suffix) <= 63 LIMIT 1) || suffix
            END)::name
$$;

CREATE FUNCTION encryption.base_type(type_id oid) RETURNS oid
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    WITH RECURSIVE step AS (
        SELECT oid, typtype, typbasetype FROM pg_type WHERE oid = type_id
      UNION ALL
        SELECT t.oid, t.typtype, t.typbasetype FROM step JOIN pg_type t ON t.oid = step.typbasetype
         WHERE step.typtype = 'd'
    )
    SELECT oid FROM step WHERE typtype <> 'd'
$$;

CREATE FUNCTION encryption.migration_subject(migration encryption.migration) RETURNS text
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT format('column "%s" of table "%s"', migration.column_name, migration.table_id::regclass)
$$;

-- What can't be migrated at all is refused here; what depends on the column is column_dependents'.
CREATE FUNCTION encryption.check_migration_subject(
        table_id oid, column_name name, direction text, key_name text, wanted_type text,
        OUT source_type text, OUT target_type text, OUT effective_key text)
    LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    subject  text := format('column "%s" of table "%s"', column_name, table_id::regclass);
    class    pg_class;
    attribute pg_attribute;
    base     oid;
    offender text;
BEGIN
    SELECT * INTO class FROM pg_class WHERE oid = table_id;
    offender := CASE class.relkind
        WHEN 'v' THEN 'a view stores nothing: migrate the columns of its tables'
        WHEN 'm' THEN 'a materialized view is made by its query: migrate the columns of its tables'
        WHEN 'f' THEN 'the rows of a foreign table are elsewhere: migrate them there'
        WHEN 'r' THEN NULL WHEN 'p' THEN NULL
        ELSE 'it is not a table' END;
    offender := coalesce(offender, CASE
        WHEN class.relnamespace IN ('pg_catalog'::regnamespace, 'encryption'::regnamespace)
            THEN 'the table belongs to the system or to this extension'
        WHEN class.relpersistence = 't' THEN
            'a temporary table is one session''s own: use ALTER TABLE ... ALTER COLUMN ... TYPE there'
        WHEN class.relispartition THEN format('the table is a partition: migrate the column of "%s"',
            (SELECT inhparent::regclass FROM pg_inherits WHERE inhrelid = table_id))
        WHEN class.reloftype <> 0 THEN 'the columns of the table are those of a composite type' END);
    IF offender IS NOT NULL THEN
        PERFORM encryption.refuse_migration('unsuitable', subject, offender);
    END IF;
    IF NOT pg_has_role(class.relowner, 'USAGE') THEN
        PERFORM encryption.refuse_migration('not owner', table_id::regclass::text);
    END IF;

    SELECT * INTO attribute FROM pg_attribute a
     WHERE a.attrelid = table_id AND a.attname = column_name AND a.attnum > 0 AND NOT a.attisdropped;
    IF NOT FOUND THEN
        PERFORM encryption.refuse_migration('no column', subject);
    END IF;
    base := encryption.base_type(attribute.atttypid);
    source_type := format_type(attribute.atttypid, attribute.atttypmod);
    IF direction = 'encrypt' THEN
        effective_key := key_name;
        target_type := CASE
            WHEN base IN ('text'::regtype, 'varchar'::regtype, 'bpchar'::regtype) THEN '@extschema@.encrypted_text'
            WHEN base = 'bytea'::regtype THEN '@extschema@.encrypted_bytea' END
            || format('(%L)', key_name);
        offender := CASE
            WHEN base IN ('@extschema@.encrypted_text'::regtype, '@extschema@.encrypted_bytea'::regtype)
                THEN 'it is encrypted already; enc_rotate_column encrypts it again'
            WHEN target_type IS NULL
                THEN format('its type is %s, and text, varchar, character and bytea can be encrypted', source_type) END;
    ELSE
        effective_key := (SELECT k.name FROM @extschema@.enc_keys k WHERE k.key_id = attribute.atttypmod);
        target_type := coalesce(wanted_type, CASE base
            WHEN '@extschema@.encrypted_text'::regtype THEN 'text'
            WHEN '@extschema@.encrypted_bytea'::regtype THEN 'bytea' END);
        offender := CASE
            WHEN base NOT IN ('@extschema@.encrypted_text'::regtype, '@extschema@.encrypted_bytea'::regtype)
                THEN format('its type is %s, which is not encrypted', source_type)
            WHEN base = '@extschema@.encrypted_bytea'::regtype AND target_type <> 'bytea'
              OR base = '@extschema@.encrypted_text'::regtype
                 AND target_type !~ '^(text|varchar|character varying)( *\([0-9]+\))?$'
                THEN format('a column of type %s can''t become %s', source_type, target_type) END;
    END IF;
    offender := coalesce(offender, CASE
        WHEN attribute.attgenerated <> '' THEN 'it is a generated column'
        WHEN attribute.attinhcount > 0 THEN format('it is inherited: migrate the column of "%s"',
            (SELECT inhparent::regclass FROM pg_inherits WHERE inhrelid = table_id ORDER BY inhseqno LIMIT 1))
        WHEN row_security_active(table_id) THEN
            'row-level security hides rows from the caller: use a role with BYPASSRLS, or ALTER TABLE ... NO FORCE ROW LEVEL SECURITY meanwhile'
        WHEN EXISTS (SELECT FROM encryption.descendants(table_id) d
                      JOIN pg_partitioned_table p ON p.partrelid = d.member
                      JOIN pg_attribute a ON a.attrelid = d.member AND a.attname = column_name
                     WHERE a.attnum = ANY (p.partattrs::int2[])
                        OR p.partexprs::text ~ format(':varattno %s ', a.attnum))
            THEN 'the table is partitioned by it' END);
    offender := coalesce(offender,
        (SELECT format('"%s" is a foreign table', d.member::regclass)
           FROM encryption.descendants(table_id) d WHERE d.relkind = 'f' LIMIT 1),
        -- Where a table has the column by two ways, dropping it in one leaves it there.
        (SELECT format('"%s" has it on its own account or from another table too', d.member::regclass)
           FROM encryption.descendants(table_id) d
           JOIN pg_class c ON c.oid = d.member
           JOIN pg_attribute a ON a.attrelid = d.member AND a.attname = column_name
          WHERE d.depth > 0 AND NOT c.relispartition
            AND (a.attislocal OR a.attinhcount > (
                SELECT count(*) FROM pg_inherits
                 WHERE inhrelid = d.member
                   AND inhparent IN (SELECT e.member FROM encryption.descendants(table_id) e)))
          LIMIT 1));
    IF offender IS NOT NULL THEN
        PERFORM encryption.refuse_migration('unsuitable', subject, offender);
    END IF;
END $$;
COMMENT ON FUNCTION encryption.check_migration_subject(oid, name, text, text, text) IS
    'refuses a column that can''t be migrated, and says which types it has before and after';

CREATE FUNCTION encryption.qualified_name(relation_id oid) RETURNS text
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT format('%I.%I', n.nspname, c.relname) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
     WHERE c.oid = relation_id
$$;

-- Definitions are read and made again with this search path: the operators of both types have their
-- plain names in it, so what is read of one column can be said of the other.
CREATE FUNCTION encryption.definition_path() RETURNS text
    LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT 'pg_catalog, @extschema@, pg_temp'
$$;

-- The index on the new column that does for equality what this one does on the old column, under
-- another name; null if there is none.
CREATE FUNCTION encryption.translate_index(
        index_id oid, from_name name, to_name name, direction text, new_name name)
    RETURNS text
    LANGUAGE plpgsql STABLE SET search_path = pg_catalog, @extschema@, pg_temp AS $$
DECLARE
    index     pg_index;
    class     pg_class;
    method    name;
    new_method text := 'btree';
    attribute pg_attribute;
    position  integer;
    term      text;
    terms     text[] := '{}';
    included  text[] := '{}';
    predicate text;
    -- Mentions of the column in expressions, and those of them that have a counterpart.
    mentions  integer;
    handled   integer := 0;
BEGIN
    SELECT * INTO index FROM pg_index i WHERE i.indexrelid = index_id;
    SELECT * INTO class FROM pg_class c WHERE c.oid = index_id;
    SELECT amname INTO method FROM pg_am WHERE oid = class.relam;
    SELECT * INTO attribute FROM pg_attribute a WHERE a.attrelid = index.indrelid AND a.attname = from_name;
    IF method NOT IN ('btree', 'hash') OR index.indisprimary OR index.indisexclusion OR NOT index.indimmediate
        OR NOT (SELECT coalesce(bool_and(collisdeterministic), true) FROM pg_collation
                 WHERE oid = attribute.attcollation)
    THEN
        RETURN NULL;
    END IF;
    mentions := (SELECT count(*) FROM regexp_matches(
        coalesce(index.indexprs::text, ''), format(':varattno %s ', attribute.attnum), 'g'));

    FOR position IN 1 .. index.indnatts LOOP
        IF index.indkey[position - 1] = attribute.attnum THEN
            -- An index holds digests, and never a value.
            IF position > index.indnkeyatts THEN
                RETURN NULL;
            ELSIF direction = 'decrypt' THEN
                term := quote_ident(to_name);
            ELSIF NOT (SELECT opcdefault FROM pg_opclass WHERE oid = index.indclass[position - 1]) THEN
                RETURN NULL;
            ELSIF index.indisunique OR index.indnatts > 1 THEN
                term := format('(@extschema@.enc_digest(%I))', to_name);
            ELSE
                new_method := 'hash';
                term := quote_ident(to_name);
            END IF;
        ELSIF position > index.indnkeyatts THEN
            included := included || quote_ident(
                (SELECT attname FROM pg_attribute
                  WHERE attrelid = index.indrelid AND attnum = index.indkey[position - 1]));
            CONTINUE;
        ELSIF index.indkey[position - 1] = 0
            AND pg_get_indexdef(index_id, position, true) ~ '^lower\(' AND direction = 'encrypt' AND mentions > 0
            AND pg_get_indexdef(index_id, position, true)
                IN (format('lower(%I)', from_name), format('lower(%I::text)', from_name))
        THEN
            handled := handled + 1;
            term := format('(@extschema@.enc_digest(%I, ''lower''))', to_name);
        ELSIF index.indkey[position - 1] = 0 AND direction = 'decrypt' AND mentions > 0
            AND pg_get_indexdef(index_id, position, true) ~ 'enc_digest\('
        THEN
            handled := handled + 1;
            term := CASE
                WHEN pg_get_indexdef(index_id, position, true) ~ format('enc_digest\(%I(, ''none''::text, ''''::text)?\)$', from_name)
                    THEN quote_ident(to_name)
                WHEN pg_get_indexdef(index_id, position, true) ~ format('enc_digest\(%I, ''lower''::text(, ''''::text)?\)$', from_name)
                    THEN format('lower(%I)', to_name) END;
            IF term IS NULL THEN
                RETURN NULL;
            END IF;
        ELSE
            term := pg_get_indexdef(index_id, position, false);
            IF index.indkey[position - 1] = 0 AND term !~ '^\(' THEN
                term := format('(%s)', term);
            END IF;
            term := term
                || coalesce((SELECT format(' COLLATE %I.%I', nspname, collname)
                               FROM pg_collation c JOIN pg_namespace n ON n.oid = collnamespace
                              WHERE c.oid = index.indcollation[position - 1] AND c.oid <> 100), '')
                || (SELECT CASE WHEN opcdefault THEN '' ELSE format(' %I.%I', nspname, opcname) END
                      FROM pg_opclass o JOIN pg_namespace n ON n.oid = opcnamespace
                     WHERE o.oid = index.indclass[position - 1]);
        END IF;
        IF method = 'btree' AND new_method = 'btree' THEN
            term := term || CASE index.indoption[position - 1]
                WHEN 1 THEN ' DESC NULLS LAST' WHEN 2 THEN ' NULLS FIRST' WHEN 3 THEN ' DESC' ELSE '' END;
        END IF;
        terms := terms || term;
    END LOOP;
    IF mentions > handled THEN
        RETURN NULL;
    END IF;

    predicate := pg_get_expr(index.indpred, index.indrelid);
    IF index.indpred::text ~ format(':varattno %s ', attribute.attnum) THEN
        IF predicate <> format('(%I IS NOT NULL)', from_name) THEN
            RETURN NULL;
        END IF;
        predicate := format('(%I IS NOT NULL)', to_name);
    END IF;

    RETURN format('CREATE %sINDEX %I ON %s USING %s (%s)',
            CASE WHEN index.indisunique THEN 'UNIQUE ' ELSE '' END,
            new_name, encryption.qualified_name(index.indrelid), new_method, array_to_string(terms, ', '))
        || CASE WHEN included <> '{}' THEN format(' INCLUDE (%s)', array_to_string(included, ', ')) ELSE '' END
        -- From version 15 on.
        || CASE WHEN (to_jsonb(index) ->> 'indnullsnotdistinct')::boolean THEN ' NULLS NOT DISTINCT' ELSE '' END
        || CASE WHEN class.reloptions IS NOT NULL AND method = new_method
                THEN format(' WITH (%s)', array_to_string(class.reloptions, ', ')) ELSE '' END
        || coalesce((SELECT format(' TABLESPACE %I', spcname) FROM pg_tablespace
                      WHERE oid = class.reltablespace), '')
        || coalesce(' WHERE ' || predicate, '');
END $$;

-- Everything that depends on a column of a table or of its descendants, what the exchange of names
-- does about it, and what that needs: null if it is done without a word, a word for the argument
-- "accept", or 'removal' if it is in the way until someone removes it. `statement` is what makes the
-- object again once the names are exchanged; for an index, what makes its counterpart.
CREATE FUNCTION encryption.column_dependents(
        table_id oid, from_name name, to_name name, direction text)
    RETURNS TABLE (kind text, class_id oid, object_id oid, object text, effect text, needs text,
                   statement text, member oid)
    LANGUAGE plpgsql STABLE SET search_path = pg_catalog, @extschema@, pg_temp AS $$
DECLARE
    depending  record;
    constr     pg_constraint;
    index_id   oid;
    suffix     text := CASE direction WHEN 'encrypt' THEN '_encrypted' ELSE '_plaintext' END;
BEGIN
    FOR depending IN
        SELECT DISTINCT d.member AS member, a.attnum, p.classid, p.objid, p.objsubid
          FROM encryption.descendants(table_id) d
          JOIN pg_attribute a ON a.attrelid = d.member AND a.attname = from_name
          JOIN pg_depend p ON p.refclassid = 'pg_class'::regclass
                          AND p.refobjid = d.member AND p.refobjsubid = a.attnum
         ORDER BY 1, 3, 4
    LOOP
        kind := NULL; effect := NULL; needs := NULL; statement := NULL; index_id := NULL;
        class_id := depending.classid;
        object_id := depending.objid;
        member := depending.member;
        object := pg_describe_object(depending.classid, depending.objid, depending.objsubid);
        CASE depending.classid
        WHEN 'pg_class'::regclass THEN
            IF (SELECT relkind IN ('i', 'I') FROM pg_class WHERE oid = depending.objid) THEN
                index_id := depending.objid;
            ELSE
                kind := 'sequence';
                effect := 'it is owned by the column, and would be dropped with it: ALTER SEQUENCE ... OWNED BY NONE';
                needs := 'removal';
            END IF;
        WHEN 'pg_constraint'::regclass THEN
            SELECT * INTO constr FROM pg_constraint WHERE oid = depending.objid;
            CASE constr.contype
            WHEN 'c' THEN
                -- Inherited ones come and go with their parent's.
                CONTINUE WHEN constr.coninhcount > 0;
                kind := 'check constraint';
                effect := 'is made for the new column too, and validated after the exchange of names';
                statement := format('ALTER TABLE %s ADD CONSTRAINT %I %s', constr.conrelid::regclass, constr.conname,
                    regexp_replace(pg_get_constraintdef(constr.oid), ' NOT VALID$', '') || ' NOT VALID');
            WHEN 'n' THEN
                CONTINUE;
            WHEN 'f' THEN
                CONTINUE WHEN constr.conparentid <> 0;
                kind := 'foreign key';
                effect := 'ciphertexts of equal values differ, so they can''t refer to each other: drop it, or refer to a generated column of digests';
                needs := 'removal';
            WHEN 'p', 'u', 'x' THEN
                index_id := constr.conindid;
                object_id := index_id;
                class_id := 'pg_class'::regclass;
            ELSE
                kind := 'constraint';
                effect := 'is of a kind that can''t be carried over';
                needs := 'removal';
            END CASE;
        WHEN 'pg_attrdef'::regclass THEN
            CONTINUE WHEN EXISTS (SELECT FROM pg_attrdef WHERE oid = depending.objid
                                     AND adrelid = depending.member AND adnum = depending.attnum);
            kind := 'generated column';
            effect := 'would go on being computed from the old column: drop it, or drop its expression';
            needs := 'removal';
        WHEN 'pg_rewrite'::regclass THEN
            SELECT c.oid, CASE WHEN c.relkind = 'v' AND r.rulename = '_RETURN' THEN 'view'
                               WHEN c.relkind = 'm' THEN 'materialized view' ELSE 'rule' END
              INTO object_id, kind
              FROM pg_rewrite r JOIN pg_class c ON c.oid = r.ev_class WHERE r.oid = depending.objid;
            IF kind = 'rule' THEN
                effect := 'would go on using the old column: drop it, and make it again afterwards';
                needs := 'removal';
            ELSE
                class_id := 'pg_class'::regclass;
                object := format('%s %s', kind, object_id::regclass);
                IF kind = 'view' THEN
                    effect := 'is made again, with its owner, privileges and comments';
                ELSE
                    effect := 'would go on using the old column, and keeps plaintext of its own: drop it, and make it again afterwards';
                    needs := 'removal';
                END IF;
            END IF;
        WHEN 'pg_trigger'::regclass THEN
            CONTINUE WHEN EXISTS (SELECT FROM pg_trigger t WHERE t.oid = depending.objid
                                     AND (t.tgisinternal OR t.tgparentid <> 0
                                          OR t.tgfoid = 'encryption.keep_in_step()'::regprocedure));
            kind := 'trigger';
            effect := 'names the column in its definition, and is made again';
            statement := pg_get_triggerdef(depending.objid);
        WHEN 'pg_policy'::regclass THEN
            kind := 'policy';
            effect := 'is altered to use the new column';
            SELECT format('ALTER POLICY %I ON %s', polname, polrelid::regclass)
                   || coalesce(' USING (' || pg_get_expr(polqual, polrelid) || ')', '')
                   || coalesce(' WITH CHECK (' || pg_get_expr(polwithcheck, polrelid) || ')', '')
              INTO statement FROM pg_policy WHERE oid = depending.objid;
        WHEN 'pg_proc'::regclass THEN
            kind := 'function';
            effect := 'has a body in standard SQL, and is made again';
            statement := pg_get_functiondef(depending.objid);
        WHEN 'pg_statistic_ext'::regclass THEN
            kind := 'statistics';
            effect := 'stays on the old column and is dropped with it: there are none of encrypted columns';
        WHEN 'pg_publication_rel'::regclass THEN
            kind := 'publication';
            effect := 'names the column in its column list or row filter, and would go on publishing the old one: take the table out of it';
            needs := 'removal';
        ELSE
            kind := 'other';
            effect := 'is of a kind that can''t be carried over';
            needs := 'removal';
        END CASE;

        IF index_id IS NOT NULL THEN
            -- Indexes of partitions come and go with that of the partitioned table.
            CONTINUE WHEN (SELECT relispartition FROM pg_class WHERE oid = index_id);
            kind := 'index';
            object := format('index %s', index_id::regclass);
            statement := encryption.translate_index(index_id, from_name, to_name, direction,
                encryption.with_suffix((SELECT relname FROM pg_class WHERE oid = index_id), suffix));
            SELECT CASE
                WHEN i.indisprimary THEN 'a primary key can''t be carried over: give the table another one'
                WHEN i.indisreplident THEN 'it is the replica identity: give the table another one'
                WHEN statement IS NULL AND i.indisexclusion THEN
                    'an exclusion constraint has no counterpart here: EXCLUDE USING hash (column WITH =) is one that can be added afterwards'
                WHEN statement IS NULL AND NOT i.indimmediate THEN
                    'a deferrable constraint has no counterpart: a unique index of digests checks at once'
                WHEN statement IS NULL THEN
                    'has no counterpart: an index on an encrypted column is one of digests, and serves equality of whole values alone'
                WHEN direction = 'decrypt' THEN 'gets a counterpart on the new column'
                WHEN i.indisunique THEN
                    'gets a counterpart of digests; ON CONFLICT must name enc_digest(column), and neither order nor LIKE is served any more'
                ELSE 'gets a counterpart for equality; neither order nor LIKE is served any more' END,
                CASE WHEN i.indisprimary OR i.indisreplident THEN 'removal'
                     WHEN statement IS NULL THEN 'drop_indexes' END
              INTO effect, needs
              FROM pg_index i WHERE i.indexrelid = index_id;
        END IF;
        RETURN NEXT;
    END LOOP;
END $$;
COMMENT ON FUNCTION encryption.column_dependents(oid, name, name, text) IS
    'everything that depends on a column, and what a migration does about it';

-- What tables' own code (CHECK constraints, index expressions) calls is found by the caller's search
-- path, as in any other statement.
CREATE FUNCTION encryption.execute_with_path(statement text, path text) RETURNS bigint
    LANGUAGE plpgsql AS $$
DECLARE
    affected bigint;
BEGIN
    PERFORM pg_catalog.set_config('search_path', path, true);
    EXECUTE statement;
    GET DIAGNOSTICS affected = ROW_COUNT;
    PERFORM pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
    RETURN affected;
END $$;

-- Begins with a character that sorts behind letters: PostgreSQL calls triggers in the order of their
-- names, and what others make of a row comes first.
CREATE FUNCTION encryption.migration_trigger_name(job_id bigint) RETURNS name
    LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT ('~encryption_ext_' || job_id)::name
$$;

CREATE FUNCTION encryption.make_migration_trigger(job_id bigint, table_id oid, leader name, follower name)
    RETURNS void
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    trigger_name name := encryption.migration_trigger_name(job_id);
    descendant   record;
BEGIN
    FOR descendant IN SELECT d.member, c.relispartition FROM encryption.descendants(table_id) d
                        JOIN pg_class c ON c.oid = d.member
    LOOP
        -- Partitions, also those of the future, have the trigger of the partitioned table; those
        -- that inherit have it only if they are given one.
        IF NOT descendant.relispartition THEN
            EXECUTE format('CREATE OR REPLACE TRIGGER %I BEFORE INSERT OR UPDATE ON %s FOR EACH ROW
                            EXECUTE FUNCTION encryption.keep_in_step(%L, %L)',
                           trigger_name, descendant.member::regclass, leader, follower);
        END IF;
        -- Also for what comes by logical replication.
        EXECUTE format('ALTER TABLE ONLY %s ENABLE ALWAYS TRIGGER %I',
                       descendant.member::regclass, trigger_name);
    END LOOP;
END $$;

CREATE FUNCTION encryption.drop_migration_trigger(job_id bigint, table_id oid) RETURNS void
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    descendant record;
BEGIN
    FOR descendant IN SELECT d.member FROM encryption.descendants(table_id) d
                        JOIN pg_class c ON c.oid = d.member WHERE NOT c.relispartition
    LOOP
        EXECUTE format('DROP TRIGGER IF EXISTS %I ON %s',
                       encryption.migration_trigger_name(job_id), descendant.member::regclass);
    END LOOP;
END $$;

-- The columns and triggers of a migration as they must be; raises an error otherwise.
CREATE FUNCTION encryption.check_migration_intact(migration encryption.migration) RETURNS void
    LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    is_swapped boolean := migration.phase = 'swapped';
    offender   text;
BEGIN
    SELECT string_agg(offence, '; ') INTO offender FROM (
        SELECT format('column "%s" of %s is missing or of another type', wanted.column_name, d.member::regclass)
          FROM encryption.descendants(migration.table_id) d,
               LATERAL (VALUES
                   (migration.column_name,
                    CASE WHEN is_swapped THEN migration.target_type ELSE migration.source_type END),
                   (CASE WHEN is_swapped THEN migration.source_name ELSE migration.target_name END,
                    CASE WHEN is_swapped THEN migration.source_type ELSE migration.target_type END)
               ) wanted (column_name, column_type)
         WHERE NOT EXISTS (
            SELECT FROM pg_attribute a
             WHERE a.attrelid = d.member AND a.attname = wanted.column_name AND NOT a.attisdropped
               AND format_type(a.atttypid, a.atttypmod) = wanted.column_type)
      UNION ALL
        SELECT format('the trigger of the migration on %s is missing or not always enabled', d.member::regclass)
          FROM encryption.descendants(migration.table_id) d
         WHERE NOT EXISTS (
            SELECT FROM pg_trigger t
             WHERE t.tgrelid = d.member AND t.tgenabled = 'A'
               AND t.tgfoid = 'encryption.keep_in_step()'::regprocedure
               AND t.tgname = encryption.migration_trigger_name(migration.job_id))
    ) found (offence);
    IF offender IS NOT NULL THEN
        PERFORM encryption.refuse_migration('altered',
            encryption.migration_subject(migration), offender);
    END IF;
END $$;

-- Refuses what the call has to accept in so many words, and what is in the way.
CREATE FUNCTION encryption.check_accepted(
        table_id oid, from_name name, to_name name, direction text, accepted text[])
    RETURNS void
    LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    offenders text;
BEGIN
    SELECT string_agg(format('%s: %s%s', d.object, d.effect,
               CASE WHEN d.needs = 'removal' THEN '' ELSE format(' (accept => %L)', d.needs) END), E'\n')
      INTO offenders
      FROM encryption.migration_effects(table_id, from_name, to_name, direction) d
     WHERE d.needs IS NOT NULL AND d.needs <> ALL (accepted);
    IF offenders IS NOT NULL THEN
        PERFORM encryption.refuse_migration('dependents', format('column "%s" of table "%s"', from_name, table_id::regclass), offenders);
    END IF;
END $$;

-- The dependents of a column, and what else about its table matters to a migration.
CREATE FUNCTION encryption.migration_effects(
        table_id oid, from_name name, to_name name, direction text)
    RETURNS TABLE (kind text, object text, effect text, needs text, statement text)
    LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN QUERY SELECT d.kind, d.object, d.effect, d.needs,
                        CASE WHEN d.kind = 'index' THEN d.statement END
                   FROM encryption.column_dependents(table_id, from_name, to_name, direction) d;

    -- Triggers see each row that is filled in, as an UPDATE of it.
    RETURN QUERY
    SELECT 'trigger', format('trigger %I on %s', t.tgname, t.tgrelid::regclass),
           CASE WHEN t.tgenabled IN ('A', 'R')
                THEN 'fires for each row that is filled in, since it is enabled ALWAYS or for replicas'
                WHEN encryption.may_silence_triggers() THEN 'does not fire for rows that are filled in'
                ELSE 'fires for each row that is filled in, unless the caller may set session_replication_role' END
           || ', and its function meets the column''s new type',
           CASE WHEN t.tgenabled IN ('A', 'R') OR NOT encryption.may_silence_triggers() THEN 'fire_triggers' END,
           NULL::text
      FROM encryption.descendants(table_id) d
      JOIN pg_trigger t ON t.tgrelid = d.member
     WHERE NOT t.tgisinternal AND t.tgparentid = 0 AND t.tgenabled <> 'D'
       AND t.tgfoid <> 'encryption.keep_in_step()'::regprocedure
       -- 16: UPDATE (src/include/catalog/pg_trigger.h). One for other columns alone doesn't fire.
       AND t.tgtype & 16 <> 0 AND t.tgattr::text = '';
    RETURN QUERY
    SELECT 'trigger', format('trigger %I on %s', t.tgname, t.tgrelid::regclass),
           'is called after the migration''s, whose name sorts before it: what it writes to the column would not be kept in step. Rename it',
           'removal', NULL::text
      FROM encryption.descendants(table_id) d
      JOIN pg_trigger t ON t.tgrelid = d.member
     -- 1: for each row, 2: before.
     WHERE NOT t.tgisinternal AND t.tgparentid = 0 AND t.tgtype & 3 = 3
       AND t.tgfoid <> 'encryption.keep_in_step()'::regprocedure
       AND t.tgname::text COLLATE "C" > '~encryption_ext';

    RETURN QUERY
    SELECT 'publication', format('publication %I', p.pubname),
           'subscribers need the new column before it is here, or their subscriptions stop', 'published', NULL::text
      FROM pg_publication p
     WHERE EXISTS (SELECT FROM encryption.descendants(table_id) d
                     JOIN pg_class c ON c.oid = d.member
                     JOIN pg_namespace n ON n.oid = c.relnamespace
                     JOIN pg_publication_tables t ON t.schemaname = n.nspname AND t.tablename = c.relname
                    WHERE t.pubname = p.pubname);

    RETURN QUERY
    SELECT 'replica identity', d.member::regclass::text,
           'is FULL: old rows are logged with both columns', NULL, NULL
      FROM encryption.descendants(table_id) d JOIN pg_class c ON c.oid = d.member
     WHERE c.relreplident = 'f';

    RETURN QUERY
    SELECT CASE WHEN a.attnotnull THEN 'not null' ELSE 'default' END, d.member::regclass::text,
           'is carried over', NULL, NULL
      FROM encryption.descendants(table_id) d
      JOIN pg_attribute a ON a.attrelid = d.member AND a.attname = from_name
     WHERE a.attnotnull AND d.depth = 0;
    RETURN QUERY
    SELECT 'default', pg_get_expr(f.adbin, f.adrelid), 'is carried over; its text stays readable in the system catalog', NULL, NULL
      FROM pg_attribute a JOIN pg_attrdef f ON f.adrelid = a.attrelid AND f.adnum = a.attnum
     WHERE a.attrelid = table_id AND a.attname = from_name;

    RETURN QUERY
    SELECT 'type', format_type(a.atttypid, a.atttypmod),
           CASE WHEN t.typtype = 'd' THEN 'the constraints of the domain are no longer checked once the column is dropped'
                ELSE format('the limit of %s characters is no longer checked once the column is dropped', a.atttypmod - 4) END,
           NULL, NULL
      FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
     WHERE a.attrelid = table_id AND a.attname = from_name AND direction = 'encrypt'
       AND (t.typtype = 'd' OR a.atttypmod > 4 AND a.atttypid IN ('varchar'::regtype, 'bpchar'::regtype));

    -- What is a matter of text and not of dependencies can only be pointed at.
    RETURN QUERY
    SELECT 'function', f.oid::regprocedure::text, 'mentions the column in its text: check it', NULL, NULL
      FROM pg_proc f JOIN pg_language l ON l.oid = f.prolang
     WHERE l.lanname NOT IN ('internal', 'c') AND f.pronamespace <> 'encryption'::regnamespace
       AND f.prosrc ~ format('\m%s\M', regexp_replace(from_name::text, '(\W)', '\\\1', 'g'))
       AND (f.prosrc ~ format('\m%s\M', regexp_replace((SELECT relname::text FROM pg_class WHERE oid = table_id), '(\W)', '\\\1', 'g'))
            OR f.prorettype = 'trigger'::regtype)
       AND NOT EXISTS (SELECT FROM pg_depend e WHERE e.classid = 'pg_proc'::regclass AND e.objid = f.oid AND e.deptype = 'e');
    RETURN QUERY
    SELECT 'statements', 'SELECT *, INSERT without a list of columns',
           'the new column is the last one; name the columns', NULL, NULL;
    RETURN QUERY
    SELECT 'statements', 'prepared statements that return the column',
           'fail once with "cached plan must not change result type" (0A000) after the exchange of names', NULL, NULL;
END $$;

CREATE FUNCTION encryption.may_silence_triggers() RETURNS boolean
    LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF (SELECT rolsuper FROM pg_roles WHERE rolname = current_user) THEN
        RETURN true;
    ELSIF current_setting('server_version_num')::integer >= 150000 THEN
        RETURN has_parameter_privilege('session_replication_role', 'SET');
    END IF;
    RETURN false;
END $$;

-- The first transaction: the new column, the trigger, the index counterparts that are built while
-- they are empty, and the ranges of rows that are to be filled in.
CREATE FUNCTION encryption.begin_migration(
        table_id oid, column_name name, direction text, options jsonb)
    RETURNS void
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    encrypted  name := encryption.with_suffix(column_name, '_encrypted');
    plaintext  name := encryption.with_suffix(column_name, '_plaintext');
    migration  encryption.migration;
    subject    record;
    descendant record;
    dependent  record;
    collating  text;
BEGIN
    PERFORM set_config('lock_timeout', options ->> 'lock_timeout', true);
    SELECT * INTO subject FROM encryption.check_migration_subject(
        table_id, column_name, direction, options ->> 'key', options ->> 'type');
    migration.target_name := CASE direction WHEN 'encrypt' THEN encrypted ELSE plaintext END;
    migration.source_name := CASE direction WHEN 'encrypt' THEN plaintext ELSE encrypted END;
    PERFORM encryption.check_key_of_owner(table_id, subject.effective_key);
    EXECUTE format('LOCK TABLE %s IN ACCESS EXCLUSIVE MODE', table_id::regclass);
    -- Another caller was faster.
    IF (encryption.find_migration(table_id, column_name)).phase NOT IN ('finished', 'rolled back') THEN
        RETURN;
    END IF;
    FOR descendant IN
        SELECT d.member, a.attname FROM encryption.descendants(table_id) d
          JOIN pg_attribute a ON a.attrelid = d.member AND NOT a.attisdropped
         WHERE a.attname IN (encrypted, plaintext) LIMIT 1
    LOOP
        PERFORM encryption.refuse_migration('name taken',
            format('column "%s" of table "%s"', descendant.attname, descendant.member::regclass));
    END LOOP;
    PERFORM encryption.check_accepted(table_id, column_name, migration.target_name, direction,
        ARRAY(SELECT jsonb_array_elements_text(options -> 'accepted')));

    SELECT CASE WHEN c.oid IS NULL THEN '' ELSE format(' COLLATE %I.%I', n.nspname, c.collname) END INTO collating
      FROM pg_attribute a
      LEFT JOIN pg_collation c ON c.oid = a.attcollation AND c.oid <> 100 AND subject.target_type !~ 'bytea'
      LEFT JOIN pg_namespace n ON n.oid = c.collnamespace
     WHERE a.attrelid = table_id AND a.attname = begin_migration.column_name;
    EXECUTE format('ALTER TABLE %s ADD COLUMN %I %s%s',
                   table_id::regclass, migration.target_name, subject.target_type, collating);

    SELECT j.job_id INTO migration.job_id
      FROM encryption.begin_job(direction, table_id, column_name, subject.effective_key, options - 'path') j;
    INSERT INTO encryption.migration (job_id, direction, table_id, column_name, target_name, source_name,
                                      source_type, target_type, key_name, accepted, members)
    SELECT migration.job_id, direction, table_id, column_name, migration.target_name, migration.source_name,
           subject.source_type, format_type(a.atttypid, a.atttypmod), subject.effective_key,
           ARRAY(SELECT jsonb_array_elements_text(options -> 'accepted')),
           ARRAY(SELECT d.member FROM encryption.descendants(table_id) d WHERE d.relkind = 'r')
      FROM pg_attribute a WHERE a.attrelid = table_id AND a.attname = migration.target_name
    RETURNING * INTO migration;
    PERFORM encryption.make_migration_trigger(migration.job_id, table_id, column_name, migration.target_name);

    -- A constraint that is validated later, under a weak lock, lets SET NOT NULL do without a scan.
    FOR descendant IN
        SELECT d.member FROM encryption.descendants(table_id) d
          JOIN pg_attribute a ON a.attrelid = d.member AND a.attname = begin_migration.column_name
         WHERE a.attnotnull ORDER BY d.depth, d.member
    LOOP
        IF NOT EXISTS (SELECT FROM pg_constraint c WHERE c.conrelid = descendant.member
                          AND c.conname = encryption.migration_trigger_name(migration.job_id)) THEN
            EXECUTE format('ALTER TABLE %s ADD CONSTRAINT %I CHECK (%I IS NOT NULL) NOT VALID',
                           descendant.member::regclass,
                           encryption.migration_trigger_name(migration.job_id), migration.target_name);
        END IF;
    END LOOP;

    IF encryption.builds_indexes_inline(table_id, options ->> 'indexes') THEN
        FOR dependent IN SELECT d.statement FROM encryption.column_dependents(
                             table_id, column_name, migration.target_name, direction) d
                          WHERE d.kind = 'index' AND d.statement IS NOT NULL
        LOOP
            PERFORM encryption.execute_with_path(dependent.statement, encryption.definition_path());
        END LOOP;
    END IF;
    -- The lock is held: what is in the tables now is all that comes without the new column.
    PERFORM encryption.plan_ranges(migration.job_id, 'walk', migration.members);
    UPDATE encryption.migration m SET phase = 'backfilling' WHERE m.job_id = migration.job_id;
END $$;

-- An index that is built on the empty column keeps writers out while the table is read once. That is
-- a matter of a second up to 256 MB.
CREATE FUNCTION encryption.builds_indexes_inline(table_id oid, choice text) RETURNS boolean
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT choice = 'inline' OR choice = 'auto' AND (
        SELECT sum(pg_relation_size(d.member)) <= 256 * 1024 * 1024 FROM encryption.descendants(table_id) d
         WHERE d.relkind = 'r')
$$;

-- One batch of a claimed range; returns the rows that were filled in, or compared.
CREATE FUNCTION encryption.migrate_range(
        migration encryption.migration, step text, range_id bigint, range_table oid, first_block bigint,
        end_block bigint, options jsonb)
    RETURNS bigint
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    rows_per_block double precision := (SELECT CASE WHEN relpages > 0 AND reltuples > 0 THEN reltuples / relpages ELSE 60 END
                                          FROM pg_class WHERE oid = range_table);
    next_block bigint := least(end_block, first_block
        + greatest(1, ceil((options ->> 'batch_size')::integer / rows_per_block))::bigint);
    here       text := format('ctid >= ''(%s,0)'' AND ctid < ''(%s,0)''', first_block, next_block);
    missing    text := format('%I IS NOT NULL AND %I IS NULL', migration.column_name, migration.target_name);
    found      record;
    affected   bigint := 0;
BEGIN
    IF NOT 'fire_triggers' = ANY (migration.accepted) AND encryption.may_silence_triggers() THEN
        PERFORM set_config('session_replication_role', 'replica', true);
    END IF;
    IF step = 'walk' THEN
        -- The trigger fills in what is missing. A batch that waits for a row's lock holds others, so
        -- it must give up before the deadlock timeout of whoever waits for those.
        BEGIN
            PERFORM set_config('lock_timeout', '100ms', true);
            affected := encryption.execute_with_path(format('UPDATE ONLY %s SET %I = %I WHERE %s AND %s',
                range_table::regclass, migration.target_name, migration.target_name, here, missing), options ->> 'path');
        EXCEPTION WHEN lock_not_available OR deadlock_detected THEN
            -- Rows that are locked now are left to the verification.
            affected := encryption.fill_unlocked(migration, range_table, here, missing, options);
        END;
    ELSE
        FOR attempt IN 1 .. 2 LOOP
            EXECUTE format(
                'SELECT count(%1$I) AS compared,
                        count(*) FILTER (WHERE %3$s) AS missing,
                        min(ctid) FILTER (WHERE %2$I IS NOT NULL AND (%1$I IS NULL OR NOT %4$s)) AS different
                   FROM ONLY %5$s WHERE %6$s',
                migration.column_name, migration.target_name, missing, encryption.equality(migration),
                range_table::regclass, here)
            INTO found;
            IF found.different IS NOT NULL THEN
                PERFORM encryption.refuse_migration('differs', format('column "%s" of table "%s"', migration.column_name, range_table::regclass),
                    found.different::text);
            END IF;
            EXIT WHEN found.missing = 0;
            PERFORM encryption.fill_unlocked(migration, range_table, here, missing, options);
        END LOOP;
        -- Somebody keeps rows locked that were there before the migration: come back later.
        IF found.missing > 0 THEN
            RAISE lock_not_available;
        END IF;
        affected := found.compared;
    END IF;
    PERFORM encryption.advance_range(range_id, next_block, affected, 0, 0);
    RETURN affected;
END $$;

CREATE FUNCTION encryption.fill_unlocked(
        migration encryption.migration, range_table oid, here text, missing text, options jsonb)
    RETURNS bigint
    LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
    SELECT encryption.execute_with_path(format(
        'UPDATE ONLY %1$s SET %2$I = %2$I
          WHERE ctid = ANY (ARRAY(SELECT ctid FROM ONLY %1$s WHERE %3$s AND %4$s FOR NO KEY UPDATE SKIP LOCKED))',
        range_table::regclass, (migration).target_name, here, missing), options ->> 'path')
$$;

-- Bytes are compared, whatever a collation says is equal.
CREATE FUNCTION encryption.equality(migration encryption.migration) RETURNS text
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT CASE WHEN format_type ~ 'encrypted_bytea'
                THEN format('%I::bytea = %I::bytea', migration.column_name, migration.target_name)
                ELSE format('%I::text COLLATE "C" = %I::text COLLATE "C"', migration.column_name, migration.target_name)
           END
      FROM (SELECT CASE migration.direction WHEN 'encrypt' THEN migration.target_type ELSE migration.source_type END) t (format_type)
$$;

-- The counterparts of indexes that are not there yet.
CREATE FUNCTION encryption.missing_indexes(migration encryption.migration)
    RETURNS TABLE (statement text, member oid)
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT d.statement, d.member
      FROM encryption.column_dependents(migration.table_id, migration.column_name, migration.target_name,
                                        migration.direction) d
     WHERE d.kind = 'index' AND d.statement IS NOT NULL
       AND NOT EXISTS (
        SELECT FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
         WHERE i.indrelid = d.member AND i.indisvalid AND i.indisready
           AND c.relname = encryption.with_suffix(
                (SELECT relname FROM pg_class WHERE oid = d.object_id),
                CASE migration.direction WHEN 'encrypt' THEN '_encrypted' ELSE '_plaintext' END))
$$;

-- The same index in statements that keep no writer waiting, for someone to run: CREATE INDEX
-- CONCURRENTLY can't be run by a procedure, and of a partitioned table builds one partition at a time.
CREATE FUNCTION encryption.concurrent_statements(statement text, table_id oid) RETURNS SETOF text
    LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    -- CREATE [UNIQUE] INDEX name ON table ...
    parts     text[] := regexp_match(statement, '^(CREATE (?:UNIQUE )?INDEX) (".*?"|[^ ]+) ON (.*?) (USING .*)$');
    schema    text := (SELECT quote_ident(nspname) FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace
                        WHERE c.oid = table_id);
    partition record;
    part_name name;
BEGIN
    IF (SELECT relkind FROM pg_class WHERE oid = table_id) <> 'p' THEN
        RETURN NEXT format('%s CONCURRENTLY %s ON %s %s', parts[1], parts[2], parts[3], parts[4]);
        RETURN;
    END IF;
    RETURN NEXT format('%s %s ON ONLY %s %s', parts[1], parts[2], parts[3], parts[4]);
    FOR partition IN SELECT d.member, c.relname, c.relkind,
                            (SELECT inhparent FROM pg_inherits WHERE inhrelid = d.member) AS parent
                       FROM encryption.descendants(table_id) d JOIN pg_class c ON c.oid = d.member WHERE d.depth > 0
    LOOP
        part_name := encryption.partition_index_name(parts[2], partition.member);
        RETURN NEXT format('%s %s %I ON %s%s %s', parts[1],
            CASE partition.relkind WHEN 'p' THEN '' ELSE 'CONCURRENTLY' END, part_name,
            CASE partition.relkind WHEN 'p' THEN 'ONLY ' ELSE '' END, partition.member::regclass, parts[4]);
    END LOOP;
    FOR partition IN SELECT d.member, i.inhparent AS parent
                       FROM encryption.descendants(table_id) d JOIN pg_inherits i ON i.inhrelid = d.member
                      WHERE d.depth > 0 ORDER BY d.depth DESC
    LOOP
        RETURN NEXT format('ALTER INDEX %s.%s ATTACH PARTITION %s.%I', schema,
            CASE WHEN partition.parent = table_id THEN parts[2]
                 ELSE quote_ident(encryption.partition_index_name(parts[2], partition.parent)) END,
            (SELECT quote_ident(nspname) FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace
              WHERE c.oid = partition.member),
            encryption.partition_index_name(parts[2], partition.member));
    END LOOP;
END $$;

CREATE FUNCTION encryption.partition_index_name(parent text, partition_id oid) RETURNS name
    LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT encryption.with_suffix(trim(both '"' from parent)::name, '_' || partition_id)
$$;

-- What makes a view again as it is: definition, options, owner, privileges, comments, triggers.
CREATE FUNCTION encryption.view_script(view_id oid) RETURNS text[]
    LANGUAGE sql STABLE SET search_path = pg_catalog, @extschema@, pg_temp AS $$
    SELECT ARRAY[format('CREATE OR REPLACE VIEW %s%s AS %s', encryption.qualified_name(view_id),
                        CASE WHEN c.reloptions IS NULL THEN ''
                             ELSE format(' WITH (%s)', array_to_string(c.reloptions, ', ')) END,
                        pg_get_viewdef(view_id)),
                 format('ALTER VIEW %s OWNER TO %I', encryption.qualified_name(view_id), pg_get_userbyid(c.relowner))]
        -- The owner's privileges go with CREATE, unless someone took them.
        || CASE WHEN c.relacl IS NULL THEN '{}'
                ELSE ARRAY[format('REVOKE ALL ON %s FROM %I', encryption.qualified_name(view_id), pg_get_userbyid(c.relowner))] END
        || ARRAY(SELECT format('GRANT %s ON %s TO %s%s', a.privilege_type, encryption.qualified_name(view_id),
                               CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(a.grantee)) END,
                               CASE WHEN a.is_grantable THEN ' WITH GRANT OPTION' ELSE '' END)
                   FROM aclexplode(c.relacl) a)
        || ARRAY(SELECT format('GRANT %s (%I) ON %s TO %s%s', a.privilege_type, t.attname, encryption.qualified_name(view_id),
                               CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(a.grantee)) END,
                               CASE WHEN a.is_grantable THEN ' WITH GRANT OPTION' ELSE '' END)
                   FROM pg_attribute t, aclexplode(t.attacl) a WHERE t.attrelid = view_id)
        || ARRAY(SELECT format('COMMENT ON VIEW %s IS %L', encryption.qualified_name(view_id), description)
                   FROM pg_description WHERE objoid = view_id AND classoid = 'pg_class'::regclass AND objsubid = 0)
        || ARRAY(SELECT format('COMMENT ON COLUMN %s.%I IS %L', encryption.qualified_name(view_id), t.attname, description)
                   FROM pg_description JOIN pg_attribute t ON t.attrelid = view_id AND t.attnum = objsubid
                  WHERE objoid = view_id AND classoid = 'pg_class'::regclass)
        || ARRAY(SELECT format('ALTER VIEW %s ALTER COLUMN %I SET DEFAULT %s', encryption.qualified_name(view_id), t.attname,
                               pg_get_expr(f.adbin, f.adrelid))
                   FROM pg_attrdef f JOIN pg_attribute t ON t.attrelid = f.adrelid AND t.attnum = f.adnum
                  WHERE f.adrelid = view_id)
        || ARRAY(SELECT pg_get_triggerdef(oid) FROM pg_trigger WHERE tgrelid = view_id AND NOT tgisinternal)
      FROM pg_class c WHERE c.oid = view_id
$$;

-- What a column is apart from its type, given to the one that gets its name: default, privileges,
-- comment, statistics, security labels. (The old one keeps its NOT NULL, so that the way back does.)
CREATE FUNCTION encryption.move_column_properties(table_id oid, from_name name, to_name name)
    RETURNS void
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    descendant record;
    acl        record;
    label      record;
    grantee    text;
    target     text;
    comment_   text;
    option     text;
BEGIN
    FOR descendant IN
        SELECT d.member, a.attnum, a.attacl, a.attoptions, to_jsonb(a) ->> 'attstattarget' AS statistics,
               pg_get_expr(f.adbin, f.adrelid) AS default_
          FROM encryption.descendants(table_id) d
          JOIN pg_attribute a ON a.attrelid = d.member AND a.attname = from_name
          LEFT JOIN pg_attrdef f ON f.adrelid = a.attrelid AND f.adnum = a.attnum
         ORDER BY d.depth, d.member
    LOOP
        target := format('ALTER TABLE ONLY %s ALTER COLUMN ', descendant.member::regclass);
        IF descendant.default_ IS NOT NULL THEN
            EXECUTE format('%s %I SET DEFAULT %s', target, to_name, descendant.default_);
            EXECUTE format('%s %I DROP DEFAULT', target, from_name);
        END IF;
        FOR acl IN SELECT a.grantee, a.privilege_type, a.is_grantable FROM aclexplode(descendant.attacl) a LOOP
            grantee := CASE acl.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(acl.grantee)) END;
            EXECUTE format('GRANT %s (%I) ON %s TO %s%s', acl.privilege_type, to_name, descendant.member::regclass,
                           grantee, CASE WHEN acl.is_grantable THEN ' WITH GRANT OPTION' ELSE '' END);
            EXECUTE format('REVOKE %s (%I) ON %s FROM %s CASCADE', acl.privilege_type, from_name,
                           descendant.member::regclass, grantee);
        END LOOP;
        comment_ := col_description(descendant.member, descendant.attnum);
        IF comment_ IS NOT NULL THEN
            EXECUTE format('COMMENT ON COLUMN %s.%I IS %L', descendant.member::regclass, to_name, comment_);
        END IF;
        IF descendant.statistics::integer >= 0 THEN
            EXECUTE format('%s %I SET STATISTICS %s', target, to_name, descendant.statistics);
        END IF;
        FOREACH option IN ARRAY coalesce(descendant.attoptions, '{}') LOOP
            IF option LIKE 'n\_distinct%' THEN
                EXECUTE format('%s %I SET (%s)', target, to_name, option);
            END IF;
        END LOOP;
        FOR label IN SELECT provider, l.label FROM pg_seclabel l
                      WHERE l.classoid = 'pg_class'::regclass AND l.objoid = descendant.member
                        AND l.objsubid = descendant.attnum
        LOOP
            EXECUTE format('SECURITY LABEL FOR %I ON COLUMN %s.%I IS %L', label.provider,
                           descendant.member::regclass, to_name, label.label);
        END LOOP;
    END LOOP;
END $$;

-- The short moment: the columns exchange their names, and all that named the column is made again
-- with the one that has its name now. `forward` is false on the way back.
CREATE FUNCTION encryption.exchange_names(migration encryption.migration, forward boolean)
    RETURNS void
    LANGUAGE plpgsql SET search_path = pg_catalog, @extschema@, pg_temp AS $$
DECLARE
    root        regclass := migration.table_id::regclass;
    column_name name := migration.column_name;
    -- What the column that gets the name is called before, and what the other one is afterwards.
    coming      name := CASE WHEN forward THEN migration.target_name ELSE migration.source_name END;
    going       name := CASE WHEN forward THEN migration.source_name ELSE migration.target_name END;
    suffix      text := CASE WHEN (migration.direction = 'encrypt') = forward THEN '_plaintext' ELSE '_encrypted' END;
    views       oid[];
    scripts     jsonb := '[]';
    again       text[] := '{}';
    given_away  jsonb := '[]';
    dependent   record;
    statement   text;
BEGIN
    -- Definitions are read while the names are what they are: as text they mean the new column.
    SELECT coalesce(array_agg(v.view_id ORDER BY v.depth), '{}') INTO views FROM (
        WITH RECURSIVE outer_view (view_id, depth) AS (
            SELECT d.object_id, 0
              FROM encryption.column_dependents(migration.table_id, column_name, coming, migration.direction) d
             WHERE d.kind = 'view'
          UNION
            SELECT r.ev_class, o.depth + 1
              FROM outer_view o
              JOIN pg_depend p ON p.refclassid = 'pg_class'::regclass AND p.refobjid = o.view_id
                              AND p.classid = 'pg_rewrite'::regclass
              JOIN pg_rewrite r ON r.oid = p.objid AND r.ev_class <> o.view_id
        )
        SELECT o.view_id, max(o.depth) AS depth FROM outer_view o GROUP BY 1) v;
    SELECT coalesce(jsonb_agg(to_jsonb(encryption.view_script(v.view_id)) ORDER BY v.n), '[]') INTO scripts
      FROM unnest(views) WITH ORDINALITY v (view_id, n);

    FOR dependent IN
        SELECT d.* FROM encryption.column_dependents(migration.table_id, column_name, coming, migration.direction) d
    LOOP
        CASE dependent.kind
        WHEN 'policy', 'function' THEN
            again := again || dependent.statement;
        WHEN 'trigger' THEN
            again := again || dependent.statement || (
                SELECT format('ALTER TABLE %s %s TRIGGER %I', t.tgrelid::regclass,
                              CASE t.tgenabled WHEN 'D' THEN 'DISABLE' WHEN 'A' THEN 'ENABLE ALWAYS'
                                               WHEN 'R' THEN 'ENABLE REPLICA' ELSE 'ENABLE' END, t.tgname)
                  FROM pg_trigger t WHERE t.oid = dependent.object_id);
            EXECUTE (SELECT format('DROP TRIGGER %I ON %s', t.tgname, t.tgrelid::regclass)
                       FROM pg_trigger t WHERE t.oid = dependent.object_id);
        WHEN 'check constraint' THEN
            IF forward AND dependent.object_id NOT IN (
                SELECT c.oid FROM pg_constraint c
                 WHERE c.conname = encryption.migration_trigger_name(migration.job_id)) THEN
                SELECT given_away || jsonb_build_object('kind', 'constraint', 'table', c.conrelid, 'oid', c.oid, 'name', c.conname),
                       format('ALTER TABLE %s RENAME CONSTRAINT %I TO %I', c.conrelid::regclass, c.conname,
                              encryption.with_suffix(c.conname, suffix))
                  INTO given_away, statement FROM pg_constraint c WHERE c.oid = dependent.object_id;
                EXECUTE statement;
                again := again || dependent.statement;
            END IF;
        WHEN 'index' THEN
            IF forward AND dependent.statement IS NOT NULL THEN
                SELECT given_away || jsonb_build_object('kind', 'index', 'oid', c.oid, 'name', c.relname),
                       format('ALTER INDEX %s RENAME TO %I', c.oid::regclass, encryption.with_suffix(c.relname, suffix))
                  INTO given_away, statement FROM pg_class c WHERE c.oid = dependent.object_id;
                EXECUTE statement;
                SELECT format('ALTER INDEX %I.%I RENAME TO %I', n.nspname,
                              encryption.with_suffix((given_away -> -1 ->> 'name')::name,
                                  CASE suffix WHEN '_plaintext' THEN '_encrypted' ELSE '_plaintext' END),
                              given_away -> -1 ->> 'name')
                  INTO statement
                  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = dependent.object_id;
                EXECUTE statement;
            END IF;
        ELSE NULL;
        END CASE;
    END LOOP;
    -- Sessions that have run a trigger's function have plans of it that expect the column's old type.
    -- Made anew, it is compiled anew everywhere.
    again := again || ARRAY(
        SELECT DISTINCT pg_get_functiondef(f.oid)
          FROM encryption.descendants(migration.table_id) d
          JOIN pg_trigger t ON t.tgrelid = d.member AND NOT t.tgisinternal
          JOIN pg_proc f ON f.oid = t.tgfoid
          JOIN pg_language l ON l.oid = f.prolang AND l.lanname = 'plpgsql'
         WHERE pg_has_role(f.proowner, 'USAGE')
           AND NOT EXISTS (SELECT FROM pg_depend e WHERE e.classid = 'pg_proc'::regclass
                              AND e.objid = f.oid AND e.deptype = 'e'));

    EXECUTE format('ALTER TABLE %s RENAME COLUMN %I TO %I', root, column_name, going);
    EXECUTE format('ALTER TABLE %s RENAME COLUMN %I TO %I', root, coming, column_name);
    PERFORM encryption.make_migration_trigger(migration.job_id, migration.table_id, column_name, going);
    IF forward THEN
        PERFORM encryption.set_not_null(migration);
    END IF;
    PERFORM encryption.move_column_properties(migration.table_id, going, column_name);

    FOREACH statement IN ARRAY again LOOP
        EXECUTE statement;
    END LOOP;
    PERFORM encryption.make_views_again(views, scripts);

    UPDATE encryption.migration m
       SET renamed = CASE WHEN forward THEN given_away ELSE m.renamed END
     WHERE m.job_id = migration.job_id;
END $$;

-- A view whose columns keep their types is replaced. Otherwise it and those over it are dropped and
-- made again.
CREATE FUNCTION encryption.make_views_again(views oid[], scripts jsonb) RETURNS void
    LANGUAGE plpgsql SET search_path = pg_catalog, @extschema@, pg_temp AS $$
DECLARE
    statement text;
BEGIN
    BEGIN
        FOR n IN 1 .. cardinality(views) LOOP
            EXECUTE scripts -> (n - 1) ->> 0;
        END LOOP;
        RETURN;
    EXCEPTION WHEN invalid_table_definition THEN
        NULL;
    END;
    FOR n IN REVERSE cardinality(views) .. 1 LOOP
        EXECUTE format('DROP VIEW %s', encryption.qualified_name(views[n]));
    END LOOP;
    FOR n IN 1 .. cardinality(views) LOOP
        FOR statement IN SELECT jsonb_array_elements_text(scripts -> (n - 1)) LOOP
            EXECUTE statement;
        END LOOP;
    END LOOP;
END $$;

CREATE FUNCTION encryption.set_not_null(migration encryption.migration) RETURNS void
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    descendant record;
    helper     name := encryption.migration_trigger_name(migration.job_id);
BEGIN
    FOR descendant IN
        SELECT d.member FROM encryption.descendants(migration.table_id) d
          JOIN pg_constraint c ON c.conrelid = d.member AND c.conname = helper AND c.coninhcount = 0
         ORDER BY d.depth, d.member
    LOOP
        EXECUTE format('ALTER TABLE %s ALTER COLUMN %I SET NOT NULL', descendant.member::regclass, migration.column_name);
        EXECUTE format('ALTER TABLE %s DROP CONSTRAINT %I', descendant.member::regclass, helper);
    END LOOP;
END $$;

-- The transaction of the swap, with the table locked. Returns the statements that build indexes
-- which are still missing, in which case nothing was done; an empty array if it is swapped.
CREATE FUNCTION encryption.swap_columns(migration encryption.migration, options jsonb) RETURNS text[]
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    newcomers  oid[];
    statements text[];
    descendant record;
BEGIN
    PERFORM set_config('lock_timeout', options ->> 'lock_timeout', true);
    EXECUTE format('LOCK TABLE %s IN ACCESS EXCLUSIVE MODE', migration.table_id::regclass);
    SELECT * INTO migration FROM encryption.migration m WHERE m.job_id = migration.job_id FOR UPDATE;
    IF migration.phase <> 'verified' THEN
        RETURN '{}';
    END IF;
    PERFORM encryption.check_migration_intact(migration);
    PERFORM encryption.check_accepted(migration.table_id, migration.column_name, migration.target_name,
                                      migration.direction, migration.accepted);
    -- Partitions that were attached meanwhile bring rows of their own.
    newcomers := ARRAY(SELECT d.member FROM encryption.descendants(migration.table_id) d
                        WHERE d.relkind = 'r' AND d.member <> ALL (migration.members));
    IF newcomers <> '{}' THEN
        UPDATE encryption.migration m SET phase = 'backfilling', members = migration.members || newcomers
         WHERE m.job_id = migration.job_id;
        PERFORM encryption.plan_ranges(migration.job_id, 'walk', newcomers);
        RETURN '{}';
    END IF;
    IF EXISTS (SELECT FROM encryption.missing_indexes(migration)) THEN
        IF NOT encryption.builds_indexes_inline(migration.table_id, options ->> 'indexes') THEN
            RETURN ARRAY(SELECT s FROM encryption.missing_indexes(migration) m,
                                       encryption.concurrent_statements(m.statement, m.member) s);
        END IF;
        FOR descendant IN SELECT m.statement FROM encryption.missing_indexes(migration) m LOOP
            PERFORM encryption.execute_with_path(descendant.statement, encryption.definition_path());
        END LOOP;
    END IF;
    UPDATE encryption.migration m SET phase = 'changing' WHERE m.job_id = migration.job_id;
    PERFORM encryption.exchange_names(migration, true);
    UPDATE encryption.migration m SET phase = 'swapped' WHERE m.job_id = migration.job_id;
    RETURN '{}';
END $$;

-- The constraints that the swap left to be validated under a weak lock.
CREATE FUNCTION encryption.unvalidated_constraints(migration encryption.migration)
    RETURNS TABLE (table_id oid, constraint_name name)
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT c.conrelid, c.conname
      FROM jsonb_to_recordset(migration.renamed) AS r (kind text, "table" oid, oid oid, name name)
      JOIN pg_constraint c ON c.conrelid = r."table" AND c.conname = r.name AND NOT c.convalidated
      -- One that wasn't valid before stays so.
      JOIN pg_constraint former ON former.oid = r.oid AND former.convalidated
     WHERE r.kind = 'constraint'
$$;

-- One transaction's work of an execution.
CREATE FUNCTION encryption.execute_step(
        migration encryption.migration, options jsonb, INOUT preferred bigint,
        OUT done boolean, OUT wait double precision)
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    claimed   record;
    indexes   text[];
    weak      record;
BEGIN
    done := false;
    wait := 0;
    CASE
    WHEN migration.phase IN ('backfilling', 'verifying') THEN
        SELECT * INTO claimed FROM encryption.claim_range(migration.job_id, preferred);
        IF claimed.range_id IS NOT NULL THEN
            preferred := claimed.range_id;
            PERFORM encryption.migrate_range(migration, claimed.step, claimed.range_id, claimed.table_id,
                                             claimed.next_block, claimed.end_block, options);
            wait := (options ->> 'pause')::double precision;
        ELSIF claimed.others_work THEN
            wait := 0.1;
        ELSIF claimed.last_step = 'walk' THEN
            IF encryption.plan_ranges(migration.job_id, 'verify', migration.members) THEN
                UPDATE encryption.migration m SET phase = 'verifying' WHERE m.job_id = migration.job_id;
                RAISE NOTICE '%: the rows are filled in, and are being verified', encryption.migration_subject(migration);
            END IF;
        ELSE
            UPDATE encryption.migration m SET phase = 'verified'
             WHERE m.job_id = migration.job_id AND m.phase = 'verifying';
            RAISE NOTICE '%: every row is verified', encryption.migration_subject(migration);
        END IF;
    WHEN migration.phase = 'verified' THEN
        FOR weak IN SELECT c.conrelid, c.conname
                      FROM encryption.descendants(migration.table_id) d
                      JOIN pg_constraint c ON c.conrelid = d.member
                       AND c.conname = encryption.migration_trigger_name(migration.job_id) AND NOT c.convalidated
                     ORDER BY d.depth LIMIT 1
        LOOP
            PERFORM set_config('lock_timeout', options ->> 'lock_timeout', true);
            EXECUTE format('ALTER TABLE %s VALIDATE CONSTRAINT %I', weak.conrelid::regclass, weak.conname);
            RETURN;
        END LOOP;
        indexes := encryption.swap_columns(migration, options);
        IF indexes <> '{}' THEN
            done := true;
            RAISE NOTICE '%: waiting for indexes', encryption.migration_subject(migration)
                USING HINT = E'Run these statements, then the same call again:\n' || array_to_string(indexes, E';\n') || ';';
        END IF;
    WHEN migration.phase = 'swapped' THEN
        FOR weak IN SELECT * FROM encryption.unvalidated_constraints(migration) LIMIT 1 LOOP
            PERFORM set_config('lock_timeout', options ->> 'lock_timeout', true);
            PERFORM encryption.execute_with_path(
                format('ALTER TABLE %s VALIDATE CONSTRAINT %I', weak.table_id::regclass, weak.constraint_name),
                options ->> 'path');
            RETURN;
        END LOOP;
        done := true;
        RAISE NOTICE '%: is % now; column "%" still has what it was made from', encryption.migration_subject(migration),
            migration.target_type, migration.source_name
            USING HINT = 'Action rollback goes back and keeps what is written meanwhile; action finish drops that column.';
    END CASE;
END $$;

CREATE FUNCTION encryption.find_migration(table_id oid, column_name name) RETURNS encryption.migration
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT m FROM encryption.migration m
     WHERE m.table_id = find_migration.table_id AND m.column_name = find_migration.column_name
     ORDER BY m.job_id DESC LIMIT 1
$$;

-- VACUUM FULL and pg_repack give a table another file.
CREATE FUNCTION encryption.files_of(table_id oid) RETURNS jsonb
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT coalesce(jsonb_object_agg(d.member, pg_relation_filenode(d.member)), '{}')
      FROM encryption.descendants(table_id) d WHERE d.relkind = 'r'
$$;

-- Back to where it was, before the swap or after it. What was written since is kept: the trigger
-- wrote it to both columns.
CREATE FUNCTION encryption.roll_back_migration(migration encryption.migration, options jsonb) RETURNS void
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    item       record;
    descendant record;
BEGIN
    PERFORM set_config('lock_timeout', options ->> 'lock_timeout', true);
    EXECUTE format('LOCK TABLE %s IN ACCESS EXCLUSIVE MODE', migration.table_id::regclass);
    SELECT * INTO migration FROM encryption.migration m WHERE m.job_id = migration.job_id FOR UPDATE;
    IF migration.phase = 'swapped' THEN
        PERFORM encryption.check_migration_intact(migration);
    END IF;
    UPDATE encryption.migration m SET phase = 'changing' WHERE m.job_id = migration.job_id;
    IF migration.phase = 'swapped' THEN
        PERFORM encryption.exchange_names(migration, false);
    END IF;
    PERFORM encryption.drop_migration_trigger(migration.job_id, migration.table_id);
    -- A column that someone dropped is no reason to stay here; another column of its name is.
    IF EXISTS (SELECT FROM pg_attribute a
                WHERE a.attrelid = migration.table_id AND a.attname = migration.target_name AND NOT a.attisdropped
                  AND format_type(a.atttypid, a.atttypmod) <> migration.target_type) THEN
        PERFORM encryption.refuse_migration('altered', encryption.migration_subject(migration),
            format('column "%s" has another type', migration.target_name));
    END IF;
    EXECUTE format('ALTER TABLE %s DROP COLUMN IF EXISTS %I', migration.table_id::regclass, migration.target_name);
    FOR item IN SELECT r.kind, r.name, c.relname, n.nspname, k.conname, k.conrelid
                  FROM jsonb_to_recordset(migration.renamed) AS r (kind text, oid oid, name name)
                  LEFT JOIN pg_class c ON r.kind = 'index' AND c.oid = r.oid
                  LEFT JOIN pg_namespace n ON n.oid = c.relnamespace
                  LEFT JOIN pg_constraint k ON r.kind = 'constraint' AND k.oid = r.oid
    LOOP
        IF item.relname IS NOT NULL THEN
            EXECUTE format('ALTER INDEX %I.%I RENAME TO %I', item.nspname, item.relname, item.name);
        ELSIF item.conname IS NOT NULL THEN
            EXECUTE format('ALTER TABLE %s RENAME CONSTRAINT %I TO %I', item.conrelid::regclass, item.conname, item.name);
        END IF;
    END LOOP;
    UPDATE encryption.migration m
       SET phase = 'rolled back', files = encryption.files_of(migration.table_id)
     WHERE m.job_id = migration.job_id;
    PERFORM encryption.set_job_state(migration.job_id, 'completed', NULL);
    RAISE NOTICE '%: is % again, with all that was written since', encryption.migration_subject(migration), migration.source_type;
END $$;

CREATE FUNCTION encryption.finish_migration(migration encryption.migration, options jsonb) RETURNS void
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM set_config('lock_timeout', options ->> 'lock_timeout', true);
    EXECUTE format('LOCK TABLE %s IN ACCESS EXCLUSIVE MODE', migration.table_id::regclass);
    SELECT * INTO migration FROM encryption.migration m WHERE m.job_id = migration.job_id FOR UPDATE;
    IF migration.phase <> 'swapped' THEN
        PERFORM encryption.refuse_migration('phase', encryption.migration_subject(migration),
            format('its migration is in phase "%s"', migration.phase));
    END IF;
    PERFORM encryption.check_migration_intact(migration);
    UPDATE encryption.migration m SET phase = 'changing' WHERE m.job_id = migration.job_id;
    PERFORM encryption.drop_migration_trigger(migration.job_id, migration.table_id);
    EXECUTE format('ALTER TABLE %s DROP COLUMN %I', migration.table_id::regclass, migration.source_name);
    UPDATE encryption.migration m
       SET phase = 'finished', files = encryption.files_of(migration.table_id)
     WHERE m.job_id = migration.job_id;
    PERFORM encryption.set_job_state(migration.job_id, 'completed', NULL);
    IF migration.direction = 'encrypt' THEN
        RAISE NOTICE '%: the plaintext column is dropped', encryption.migration_subject(migration)
            USING DETAIL = 'The old values are still in the table''s files, in WAL, and in backups and replicas that were made before.',
                  HINT = format('Run VACUUM FULL %s (or pg_repack), and retire what was made before that.', migration.table_id::regclass);
    ELSE
        RAISE NOTICE '%: the encrypted column is dropped', encryption.migration_subject(migration);
    END IF;
END $$;

-- One transaction's work of a call.
CREATE FUNCTION encryption.migration_act(
        table_id oid, column_name name, direction text, action text, options jsonb,
        INOUT preferred bigint, OUT done boolean, OUT wait double precision)
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    migration encryption.migration := encryption.find_migration(table_id, column_name);
    subject   text := format('column "%s" of table "%s"', column_name, table_id::regclass);
    is_live   boolean := coalesce(migration.phase NOT IN ('finished', 'rolled back'), false);
BEGIN
    done := true;
    wait := 0;
    IF NOT pg_has_role((SELECT relowner FROM pg_class WHERE oid = table_id), 'USAGE') THEN
        PERFORM encryption.refuse_migration('not owner', table_id::regclass::text);
    ELSIF is_live AND migration.direction <> direction AND action NOT IN ('plan', 'status') THEN
        PERFORM encryption.refuse_migration('phase', subject, 'it is being migrated in the other direction');
    ELSIF action IN ('rollback', 'finish') AND NOT is_live THEN
        PERFORM encryption.refuse_migration('no migration', subject, coalesce(migration.phase, 'never begun'));
    ELSIF action = 'finish' AND migration.phase <> 'swapped' OR action = 'dry_run' AND is_live THEN
        PERFORM encryption.refuse_migration('phase', subject, format('its migration is in phase "%s"', migration.phase));
    ELSIF action = 'execute' AND is_live AND options ->> 'key' <> migration.key_name THEN
        PERFORM encryption.refuse_migration('phase', subject, format('it is being migrated to key "%s"', migration.key_name));
    END IF;

    CASE action
    WHEN 'plan' THEN
        PERFORM encryption.tell_plan(table_id, column_name, direction, options);
    WHEN 'status' THEN
        PERFORM encryption.tell_status(table_id, column_name);
    WHEN 'dry_run' THEN
        PERFORM encryption.try_migration(table_id, column_name, direction, options);
    WHEN 'rollback' THEN
        PERFORM encryption.roll_back_migration(migration, options);
    WHEN 'finish' THEN
        PERFORM encryption.finish_migration(migration, options);
    WHEN 'execute' THEN
        IF NOT is_live THEN
            PERFORM encryption.begin_migration(table_id, column_name, direction, options);
            done := false;
            RETURN;
        END IF;
        -- The first step of a call.
        IF preferred IS NULL THEN
            PERFORM encryption.set_job_state(migration.job_id, 'running', NULL);
            UPDATE encryption.migration m
               SET accepted = ARRAY(SELECT DISTINCT word FROM unnest(m.accepted
                       || ARRAY(SELECT jsonb_array_elements_text(options -> 'accepted'))) word)
             WHERE m.job_id = migration.job_id
            RETURNING * INTO migration;
            preferred := 0;
        END IF;
        SELECT e.preferred, e.done, e.wait INTO preferred, done, wait
          FROM encryption.execute_step(migration, options, preferred) e;
    ELSE
        PERFORM encryption.refuse_migration('argument', 'action', 'plan, dry_run, execute, status, rollback or finish');
    END CASE;
END $$;

-- The same, with what becomes of an error: a lock that can't be had is tried for again, what else
-- stops an execution is noted with its job. `failure` is raised by the procedure, once that is
-- committed if `noted`.
CREATE FUNCTION encryption.migration_step(
        table_id oid, column_name name, direction text, action text, options jsonb,
        INOUT preferred bigint, INOUT tries integer,
        OUT done boolean, OUT wait double precision, OUT failed boolean, OUT noted boolean, OUT failure jsonb)
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    migration encryption.migration;
BEGIN
    failed := false;
    noted := false;
    IF tries >= (options ->> 'lock_tries')::integer THEN
        PERFORM encryption.refuse_migration('locked', format('column "%s" of table "%s"', column_name, table_id::regclass), tries::text);
    END IF;
    SELECT a.preferred, a.done, a.wait INTO preferred, done, wait
      FROM encryption.migration_act(table_id, column_name, direction, action, options, preferred) a;
    tries := 0;
EXCEPTION
    WHEN lock_not_available OR deadlock_detected THEN
        tries := tries + 1;
        done := false;
        -- Others get their turn in between, and two callers don't go on colliding.
        wait := least(0.1 * tries, 2) * (0.5 + random() / 2);
    WHEN OTHERS THEN
        DECLARE
            said    text;
            detail  text;
            hint    text;
            context text;
        BEGIN
            GET STACKED DIAGNOSTICS said = MESSAGE_TEXT, detail = PG_EXCEPTION_DETAIL, hint = PG_EXCEPTION_HINT,
                                    context = PG_EXCEPTION_CONTEXT;
            failed := true;
            done := true;
            -- An error of somebody else's tells by its context where it comes from.
            failure := jsonb_build_object('code', SQLSTATE, 'said', said, 'hint', hint,
                'detail', CASE WHEN detail = '' AND SQLSTATE !~ '^KE' THEN context ELSE detail END);
            migration := encryption.find_migration(table_id, column_name);
            IF action = 'execute' AND migration.phase NOT IN ('finished', 'rolled back')
                AND migration.direction = migration_step.direction
                AND EXISTS (SELECT FROM pg_class WHERE oid = table_id AND pg_has_role(relowner, 'USAGE'))
            THEN
                noted := true;
                PERFORM encryption.note_failure(migration.job_id, SQLSTATE, said);
            END IF;
        END;
END $$;

-- Notes why a job stopped. While a provider is out of reach it is paused: nothing is wrong with it.
CREATE FUNCTION encryption.note_failure(job_id bigint, code text, said text) RETURNS void
    LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
    SELECT encryption.set_job_state(job_id,
        CASE WHEN code IN ('KE062', 'KE063', 'KE064', 'KE065', 'KE066', 'KE080') THEN 'paused' ELSE 'failed' END,
        code || ': ' || said)
$$;

CREATE FUNCTION encryption.raise_failure(failure jsonb) RETURNS void
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    -- What isn't there can't be given as null.
    CASE
    WHEN failure ->> 'detail' = '' AND failure ->> 'hint' = '' THEN
        RAISE EXCEPTION USING ERRCODE = failure ->> 'code', MESSAGE = failure ->> 'said';
    WHEN failure ->> 'detail' = '' THEN
        RAISE EXCEPTION USING ERRCODE = failure ->> 'code', MESSAGE = failure ->> 'said', HINT = failure ->> 'hint';
    WHEN failure ->> 'hint' = '' THEN
        RAISE EXCEPTION USING ERRCODE = failure ->> 'code', MESSAGE = failure ->> 'said', DETAIL = failure ->> 'detail';
    ELSE
        RAISE EXCEPTION USING ERRCODE = failure ->> 'code', MESSAGE = failure ->> 'said',
            DETAIL = failure ->> 'detail', HINT = failure ->> 'hint';
    END CASE;
END $$;

-- Everything in one transaction, which is then rolled back.
CREATE FUNCTION encryption.try_migration(table_id oid, column_name name, direction text, options jsonb)
    RETURNS void
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    migration encryption.migration;
    preferred bigint := 0;
    is_done   boolean := false;
    began     timestamptz := clock_timestamp();
    took      interval;
BEGIN
    options := options || '{"indexes": "inline", "pause": 0}';
    BEGIN
        PERFORM encryption.begin_migration(table_id, column_name, direction, options);
        WHILE NOT is_done LOOP
            SET CONSTRAINTS ALL IMMEDIATE;
            migration := encryption.find_migration(table_id, column_name);
            SELECT e.preferred, e.done INTO preferred, is_done
              FROM encryption.execute_step(migration, options, preferred) e;
        END LOOP;
        migration := encryption.find_migration(table_id, column_name);
        PERFORM encryption.finish_migration(migration, options);
        RAISE SQLSTATE 'ZZDRY';
    EXCEPTION WHEN SQLSTATE 'ZZDRY' THEN
        took := clock_timestamp() - began;
    END;
    RAISE NOTICE 'column "%" of table "%": all of it went well, took %, and is rolled back',
        column_name, table_id::regclass, date_trunc('milliseconds', took);
END $$;

-- What a migration will do. Some rows are encrypted, decrypted, and updated in a temporary table, to
-- tell how long it will take.
CREATE FUNCTION encryption.plan_migration(table_id oid, column_name name, direction text, key_name text, wanted_type text)
    RETURNS TABLE (kind text, object text, effect text, needs text, statement text)
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    subject record;
    target  name := encryption.with_suffix(column_name, CASE direction WHEN 'encrypt' THEN '_encrypted' ELSE '_plaintext' END);
BEGIN
    SELECT * INTO subject FROM encryption.check_migration_subject(table_id, column_name, direction, key_name, wanted_type);
    PERFORM encryption.check_key_of_owner(table_id, subject.effective_key);
    RETURN QUERY SELECT s.* FROM encryption.sample_migration(table_id, column_name, subject.target_type, direction) s;
    RETURN QUERY SELECT e.kind, e.object, e.effect, e.needs, e.statement
                   FROM encryption.migration_effects(table_id, column_name, target, direction) e
                  WHERE e.kind <> 'index';
    RETURN QUERY
    SELECT d.kind, d.object,
           d.effect || CASE WHEN d.statement IS NULL THEN ''
                            WHEN encryption.builds_indexes_inline(table_id, 'auto')
                            THEN '; it is built on the new column while that is empty'
                            ELSE '; it is to be built by these statements when the rows are verified' END,
           d.needs,
           CASE WHEN d.statement IS NULL THEN NULL
                WHEN encryption.builds_indexes_inline(table_id, 'auto') THEN d.statement
                ELSE (SELECT string_agg(s, E';\n') FROM encryption.concurrent_statements(d.statement, d.member) s) END
      FROM encryption.column_dependents(table_id, column_name, target, direction) d
     WHERE d.kind = 'index';
    -- Whoever reads or writes the column needs the key once the names are exchanged.
    RETURN QUERY
    SELECT 'privilege', r.rolname::text,
           format('has %s on the column, and needs %s on the key', string_agg(DISTINCT p.privilege, ', '),
                  string_agg(DISTINCT p.key_privilege, ', ')),
           NULL, format('SELECT %s.enc_grant(%L, %L, %L)', '@extschema@', subject.effective_key, r.rolname,
                        string_agg(DISTINCT p.key_privilege, ', '))
      FROM pg_roles r,
           (VALUES ('SELECT', 'decrypt'), ('INSERT', 'encrypt'), ('UPDATE', 'encrypt')) p (privilege, key_privilege)
     WHERE direction = 'encrypt' AND NOT r.rolsuper AND r.rolname !~ '^pg_'
       AND has_column_privilege(r.oid, table_id, plan_migration.column_name, p.privilege)
       AND NOT EXISTS (SELECT FROM @extschema@.enc_keys k WHERE k.name = subject.effective_key
                          AND pg_has_role(r.oid, k.owner::oid, 'USAGE'))
       AND NOT EXISTS (SELECT FROM @extschema@.enc_key_grants g
                        WHERE g.name = subject.effective_key AND g.privilege = p.key_privilege
                          AND (g.grantee = 'public'
                               OR EXISTS (SELECT FROM pg_roles x WHERE x.rolname = g.grantee
                                             AND pg_has_role(r.oid, x.oid, 'USAGE'))))
     GROUP BY r.rolname;
END $$;

CREATE FUNCTION encryption.sample_migration(table_id oid, column_name name, target_type text, direction text)
    RETURNS TABLE (kind text, object text, effect text, needs text, statement text)
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    base      text := CASE WHEN target_type ~ 'bytea' THEN 'bytea' ELSE 'text' END;
    blocks    bigint := (SELECT sum(pg_relation_size(d.member)) / current_setting('block_size')::bigint
                           FROM encryption.descendants(table_id) d WHERE d.relkind = 'r');
    total     bigint := (SELECT sum(pg_total_relation_size(d.member)) FROM encryption.descendants(table_id) d WHERE d.relkind = 'r');
    -- Some 200 blocks.
    percent   double precision := least(100, 100.0 * 200 / greatest(blocks, 1));
    sampled   record;
    began     timestamptz;
    seconds   double precision := 0;
    row_count bigint;
    growth    double precision;
BEGIN
    began := clock_timestamp();
    EXECUTE format(
        'SELECT count(*) AS rows, count(s.value) AS present, coalesce(sum(pg_column_size(s.value)), 0) AS before,
                coalesce(sum(pg_column_size(s.value::%s)), 0) AS after,
                sum(octet_length(s.value::%s::%s)) AS again
           FROM (SELECT %I AS value FROM %s TABLESAMPLE SYSTEM (%s)) s',
        target_type, CASE direction WHEN 'encrypt' THEN target_type ELSE base END, base,
        column_name, table_id::regclass, percent) INTO sampled;
    seconds := extract(epoch FROM clock_timestamp() - began);
    BEGIN
        EXECUTE format('CREATE TEMPORARY TABLE encryption_sample ON COMMIT DROP AS SELECT * FROM %s TABLESAMPLE SYSTEM (%s)',
                       table_id::regclass, percent);
        began := clock_timestamp();
        EXECUTE format('UPDATE pg_temp.encryption_sample SET %I = %I', column_name, column_name);
        seconds := seconds + extract(epoch FROM clock_timestamp() - began);
        RAISE SQLSTATE 'ZZDRY';
    EXCEPTION WHEN SQLSTATE 'ZZDRY' OR read_only_sql_transaction OR insufficient_privilege THEN
        NULL;
    END;
    row_count := round(sampled.rows * 100 / percent);
    growth := (sampled.after - sampled.before) * 100 / percent;

    RETURN QUERY VALUES
        ('rows', row_count::text,
         format('%s of %s sampled rows have a value', sampled.present, sampled.rows), NULL::text, NULL::text),
        ('bytes', pg_size_pretty(total),
         format('%s afterwards without the old column and after VACUUM FULL, and at the worst %s until then',
                pg_size_pretty((total + growth)::bigint), pg_size_pretty((2 * total + sampled.after * 100 / percent)::bigint)),
         NULL, NULL),
        ('time', make_interval(secs => seconds / greatest(sampled.rows, 1) * row_count)::text,
         'by a sample that took ' || round((seconds * 1000)::numeric, 1) || ' ms: without the upkeep of indexes, WAL, pauses and locks',
         NULL, NULL);
END $$;

CREATE FUNCTION encryption.tell_plan(table_id oid, column_name name, direction text, options jsonb) RETURNS void
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    planned record;
BEGIN
    FOR planned IN SELECT * FROM encryption.plan_migration(table_id, column_name, direction, options ->> 'key', options ->> 'type') LOOP
        RAISE NOTICE '%: %: %', planned.kind, planned.object, concat_ws('. ', planned.effect,
            CASE WHEN planned.needs = 'removal' THEN 'This is in the way'
                 WHEN planned.needs IS NOT NULL THEN format('This needs accept => %L', planned.needs) END,
            planned.statement);
    END LOOP;
END $$;

CREATE FUNCTION encryption.tell_status(table_id oid, column_name name) RETURNS void
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    progress record;
BEGIN
    SELECT * INTO progress FROM @extschema@.enc_stat_progress_encrypt p
     WHERE p.table_id = tell_status.table_id AND p.column_name = tell_status.column_name
     ORDER BY p.job_id DESC LIMIT 1;
    IF NOT FOUND THEN
        PERFORM encryption.refuse_migration('no migration',
            format('column "%s" of table "%s"', column_name, table_id::regclass), 'never begun');
    END IF;
    RAISE NOTICE 'column "%" of table "%": %, job %; % of about % rows filled in, % verified; plaintext: %',
        column_name, table_id::regclass, progress.phase, progress.job_state, progress.rows_done, progress.rows_total,
        progress.rows_verified, concat_ws('; last error: ', progress.plaintext, progress.last_error);
END $$;

CREATE VIEW enc_stat_progress_encrypt AS
SELECT m.job_id,
       m.direction,
       m.table_id,
       coalesce(c.oid::regclass::text, j.table_name) AS table_name,
       m.column_name,
       m.key_name,
       m.phase,
       j.state AS job_state,
       j.rows_total,
       j.rows_done + coalesce(r.filled, 0) AS rows_done,
       coalesce(r.verified, 0) AS rows_verified,
       CASE WHEN m.phase IN ('backfilling', 'verifying') THEN r.blocks_done END AS blocks_done,
       CASE WHEN m.phase IN ('backfilling', 'verifying') THEN r.blocks_total END AS blocks_total,
       CASE WHEN m.phase IN ('backfilling', 'verifying') THEN r.step_rows / nullif(r.seconds, 0) END AS rows_per_second,
       CASE WHEN m.phase IN ('backfilling', 'verifying')
            THEN make_interval(secs => r.seconds * (r.blocks_total - r.blocks_done) / nullif(r.blocks_done, 0)) END AS time_left,
       CASE WHEN c.oid IS NULL THEN 'the table is dropped'
            WHEN m.phase IN ('backfilling', 'verifying', 'verified') OR m.phase = 'rolled back' AND m.direction = 'encrypt'
              OR m.phase = 'finished' AND m.direction = 'decrypt' OR m.phase = 'swapped' AND m.direction = 'decrypt'
            THEN format('readable in column "%s"', CASE WHEN m.direction = 'encrypt' OR m.phase IN ('swapped', 'finished')
                                                        THEN m.column_name ELSE m.target_name END)
            WHEN m.phase = 'swapped' THEN format('readable in column "%s"', m.source_name)
            WHEN EXISTS (SELECT FROM jsonb_each_text(m.files) f (member, file)
                          WHERE pg_relation_filenode(f.member::oid::regclass) = f.file::oid)
            THEN 'in no column; in the table''s files until VACUUM FULL, in older WAL, replicas and backups'
            ELSE 'in no column; in older WAL, replicas and backups' END AS plaintext,
       j.last_error,
       j.started_by,
       j.started_at,
       j.changed_at,
       j.ended_at
  FROM encryption.migration m
  JOIN encryption.job j ON j.job_id = m.job_id
  LEFT JOIN pg_class c ON c.oid = m.table_id
  LEFT JOIN LATERAL (
    SELECT sum(r.rows_done) FILTER (WHERE r.step = 'walk')::bigint AS filled,
           sum(r.rows_done) FILTER (WHERE r.step = 'verify')::bigint AS verified,
           sum(r.rows_done)::double precision AS step_rows,
           sum(r.next_block - r.first_block)::bigint AS blocks_done,
           sum(r.end_block - r.first_block)::bigint AS blocks_total,
           -- Of the present step, from the first range that was worked on.
           extract(epoch FROM max(r.changed_at) - min(r.changed_at))::double precision AS seconds
      FROM encryption.job_range r WHERE r.job_id = m.job_id) r ON true;
COMMENT ON VIEW enc_stat_progress_encrypt IS 'migrations of columns between plaintext and encrypted, a row each';
GRANT SELECT ON enc_stat_progress_encrypt TO PUBLIC;

CREATE FUNCTION encryption.migration_options(
        key text, target_type text, accept text, batch_size integer, pause interval, lock_timeout interval,
        lock_tries integer, indexes text, reason text, path text)
    RETURNS jsonb
    LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    accepted text[] := array_remove(string_to_array(regexp_replace(coalesce(accept, ''), '\s', '', 'g'), ','), '');
    wrong    text;
BEGIN
    wrong := CASE
        WHEN NOT accepted <@ ARRAY['drop_indexes', 'fire_triggers', 'published']
            THEN 'accept: words are drop_indexes, fire_triggers and published'
        WHEN coalesce(batch_size < 1, true) THEN 'batch_size: a positive number of rows'
        WHEN coalesce(pause < '0', true) THEN 'pause: an interval'
        WHEN coalesce(lock_timeout < '1 ms', true) THEN 'lock_timeout: an interval of a millisecond or more'
        WHEN coalesce(lock_tries < 1, true) THEN 'lock_tries: a positive number'
        WHEN coalesce(indexes NOT IN ('auto', 'inline', 'concurrently'), true) THEN 'indexes: auto, inline or concurrently' END;
    IF wrong IS NOT NULL THEN
        PERFORM encryption.refuse_migration('argument', split_part(wrong, ': ', 1), split_part(wrong, ': ', 2));
    END IF;
    RETURN jsonb_build_object('key', key, 'type', target_type, 'accepted', accepted, 'batch_size', batch_size,
        'pause', extract(epoch FROM pause), 'lock_timeout', ceil(extract(epoch FROM lock_timeout) * 1000)::bigint || 'ms',
        'lock_tries', lock_tries, 'indexes', indexes, 'reason', reason, 'path', path);
END $$;

-- Refuses to alter a table so that its migration can't go on, or its columns no longer keep in step.
CREATE FUNCTION encryption.check_migrations() RETURNS event_trigger
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    migration encryption.migration;
BEGIN
    FOR migration IN
        SELECT DISTINCT m.* FROM encryption.migration m, pg_event_trigger_ddl_commands() c
         WHERE m.phase NOT IN ('changing', 'finished', 'rolled back')
           AND c.classid = 'pg_class'::regclass AND (c.objid = m.table_id OR c.objid = ANY (m.members))
    LOOP
        PERFORM encryption.check_migration_intact(migration);
    END LOOP;
END $$;

CREATE EVENT TRIGGER encryption_ext_check_migrations ON ddl_command_end
    WHEN TAG IN ('ALTER TABLE')
    EXECUTE FUNCTION encryption.check_migrations();
ALTER EVENT TRIGGER encryption_ext_check_migrations ENABLE ALWAYS;

-- Only commits and waits: a procedure that commits can't have a search path of its own, so there are
-- no names here without a schema, and no operators.
CREATE PROCEDURE encryption.migrate_column(
        table_id oid, column_name name, direction text, action text, options jsonb)
    LANGUAGE plpgsql AS $$
DECLARE
    preferred bigint;
    tries     integer := 0;
    done      boolean;
    wait      double precision;
    failed    boolean;
    noted     boolean;
    failure   jsonb;
BEGIN
    LOOP
        SELECT s.preferred, s.tries, s.done, s.wait, s.failed, s.noted, s.failure
          INTO preferred, tries, done, wait, failed, noted, failure
          FROM encryption.migration_step(table_id, column_name, direction, action, options, preferred, tries) s;
        IF noted THEN
            COMMIT;
        END IF;
        IF failed THEN
            PERFORM encryption.raise_failure(failure);
        END IF;
        EXIT WHEN done;
        COMMIT;
        PERFORM pg_catalog.pg_sleep(wait);
    END LOOP;
END $$;

CREATE PROCEDURE enc_encrypt_column(
        relation regclass, column_name name, key text, action text DEFAULT 'plan',
        accept text DEFAULT '', batch_size integer DEFAULT 10000, pause interval DEFAULT '0',
        lock_timeout interval DEFAULT '2 s', lock_tries integer DEFAULT 100, indexes text DEFAULT 'auto',
        reason text DEFAULT NULL)
    LANGUAGE plpgsql AS $$
BEGIN
    CALL encryption.migrate_column(relation, column_name, 'encrypt', action, encryption.migration_options(
        key, NULL, accept, batch_size, pause, lock_timeout, lock_tries, indexes, reason,
        pg_catalog.current_setting('search_path')));
END $$;
COMMENT ON PROCEDURE enc_encrypt_column(regclass, name, text, text, text, integer, interval, interval, integer, text, text) IS
    'encrypts a column while the application runs: plan, dry_run, execute, status, rollback, finish';

CREATE PROCEDURE enc_decrypt_column(
        relation regclass, column_name name, action text DEFAULT 'plan', target_type text DEFAULT NULL,
        accept text DEFAULT '', batch_size integer DEFAULT 10000, pause interval DEFAULT '0',
        lock_timeout interval DEFAULT '2 s', lock_tries integer DEFAULT 100, indexes text DEFAULT 'auto',
        reason text DEFAULT NULL)
    LANGUAGE plpgsql AS $$
BEGIN
    CALL encryption.migrate_column(relation, column_name, 'decrypt', action, encryption.migration_options(
        NULL, target_type, accept, batch_size, pause, lock_timeout, lock_tries, indexes, reason,
        pg_catalog.current_setting('search_path')));
END $$;
COMMENT ON PROCEDURE enc_decrypt_column(regclass, name, text, text, text, integer, interval, interval, integer, text, text) IS
    'makes a plaintext column of an encrypted one while the application runs: plan, dry_run, execute, status, rollback, finish';

CREATE FUNCTION enc_encrypt_column_plan(relation regclass, column_name name, key text)
    RETURNS TABLE (kind text, object text, effect text, needs text, statement text)
    LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
    SELECT * FROM encryption.plan_migration(relation, column_name, 'encrypt', key, NULL)
$$;
COMMENT ON FUNCTION enc_encrypt_column_plan(regclass, name, text) IS
    'what enc_encrypt_column would do, and what is in its way';

CREATE FUNCTION enc_decrypt_column_plan(relation regclass, column_name name, target_type text DEFAULT NULL)
    RETURNS TABLE (kind text, object text, effect text, needs text, statement text)
    LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
    SELECT * FROM encryption.plan_migration(relation, column_name, 'decrypt', NULL, target_type)
$$;
COMMENT ON FUNCTION enc_decrypt_column_plan(regclass, name, text) IS
    'what enc_decrypt_column would do, and what is in its way';

CREATE PROCEDURE enc_rotate_all(
    name            text,
    batch_size      integer  DEFAULT 10000,
    sleep           interval DEFAULT '0',
    max_rate        integer  DEFAULT NULL,
    max_replica_lag text     DEFAULT NULL,
    lock_timeout    interval DEFAULT '100 milliseconds',
    fire_triggers   boolean  DEFAULT false,
    skip_damaged    boolean  DEFAULT false,
    outage_timeout  interval DEFAULT '10 minutes',
    refresh_materialized_views boolean DEFAULT false,
    reason          text     DEFAULT NULL)
    LANGUAGE plpgsql AS $$
DECLARE
    parts   encryption.encrypted_column[];
    part    encryption.encrypted_column;
    id      integer;
    changed bigint;
BEGIN
    COMMIT;
    PERFORM pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
    id := encryption.key_id(name);
    IF EXISTS (SELECT FROM @extschema@.enc_keys k WHERE k.key_id = id AND pg_has_role(k.owner::oid, 'USAGE')) THEN
        -- With them, the rows that are older than their column need not be written.
        changed := encryption.rotate_catalogs(name);
        IF changed > 0 THEN
            RAISE NOTICE 'rotated constants in % catalog row(s)', changed;
        END IF;
        COMMIT;
        PERFORM set_config('search_path', 'pg_catalog, pg_temp', true);
    END IF;
    -- A table's partitions and children are rotated with it; a generated column with what it is
    -- computed from.
    parts := ARRAY(
        SELECT c FROM encryption.encrypted_column c
         WHERE c.key_id = id AND NOT c.is_generated AND NOT (c.is_inherited AND c.kind IN ('r', 'p'))
         ORDER BY c.kind = 'm', c.table_name, c.column_number);
    FOREACH part IN ARRAY parts LOOP
        IF part.is_temporary_elsewhere THEN
            RAISE NOTICE 'temporary table % of another session is left out', part.table_name;
        ELSIF part.kind = 'f' THEN
            RAISE NOTICE 'foreign table % is left out: rotate it where it is', part.table_name;
        ELSIF part.kind <> 'm' THEN
            CALL @extschema@.enc_rotate_column(part.table_id, part.column_name, batch_size, sleep, max_rate,
                max_replica_lag, lock_timeout, fire_triggers, skip_damaged, outage_timeout, reason);
        ELSIF refresh_materialized_views THEN
            EXECUTE format('REFRESH MATERIALIZED VIEW %s', part.table_id::regclass);
            COMMIT;
            PERFORM set_config('search_path', 'pg_catalog, pg_temp', true);
        ELSE
            RAISE NOTICE 'materialized view % is left out: refresh it', part.table_name;
        END IF;
    END LOOP;
END $$;
COMMENT ON PROCEDURE enc_rotate_all(text, integer, interval, integer, text, interval, boolean, boolean, interval, boolean, text) IS
    'rotates every column of this database that is under a key, and the constants in its catalogs';

-- The id of a key, by its name; null for none.
CREATE FUNCTION encryption.key_id(name text) RETURNS integer
    LANGUAGE sql STABLE AS 'SELECT k.key_id FROM @extschema@.enc_keys k WHERE k.name = $1';

-- Constants in the system catalogs: see src/rotation/constants.rs.
CREATE FUNCTION encryption.constant_versions(pg_node_tree, integer) RETURNS integer[]
    LANGUAGE c STABLE STRICT AS 'MODULE_PATHNAME', 'encryption_constant_versions';
CREATE FUNCTION encryption.rotate_constants(pg_node_tree) RETURNS pg_node_tree
    LANGUAGE c STABLE STRICT AS 'MODULE_PATHNAME', 'encryption_rotate_constants';
CREATE FUNCTION encryption.missing_versions(anyarray, integer) RETURNS integer[]
    LANGUAGE c STABLE STRICT AS 'MODULE_PATHNAME', 'encryption_missing_versions';
CREATE FUNCTION encryption.rotate_missing(anyarray) RETURNS anyarray
    LANGUAGE c STABLE STRICT AS 'MODULE_PATHNAME', 'encryption_rotate_missing';
CREATE FUNCTION encryption.forget_relations() RETURNS void
    LANGUAGE c STRICT AS 'MODULE_PATHNAME', 'encryption_forget_relations';
REVOKE EXECUTE ON FUNCTION encryption.forget_relations() FROM PUBLIC;

-- Every column of a system catalog that may have constants, and how its object is found.
CREATE VIEW encryption.constant_place AS
SELECT catalog.relname AS catalog, tree.attname AS column_name,
       CASE WHEN own_id.attname IS NOT NULL THEN catalog.oid ELSE 'pg_class'::regclass END AS class_id,
       coalesce(own_id.attname, relation_id.attname) AS object_id
  FROM pg_class catalog
  JOIN pg_attribute tree ON tree.attrelid = catalog.oid AND tree.atttypid = 'pg_node_tree'::regtype
  LEFT JOIN pg_attribute own_id ON own_id.attrelid = catalog.oid AND own_id.attname = 'oid'
  -- Of those without an id of their own: pg_index and pg_partitioned_table.
  LEFT JOIN pg_attribute relation_id ON relation_id.attrelid = catalog.oid
                                    AND relation_id.attname IN ('indexrelid', 'partrelid')
 WHERE catalog.relnamespace = 'pg_catalog'::regnamespace AND catalog.relkind = 'r';
COMMENT ON VIEW encryption.constant_place IS 'columns of system catalogs that may have encrypted constants';
GRANT SELECT ON encryption.constant_place TO PUBLIC;

CREATE FUNCTION encryption.constants_under(key_id integer, OUT version integer, OUT object text)
    RETURNS SETOF record
    LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    place encryption.constant_place;
BEGIN
    FOR place IN SELECT * FROM encryption.constant_place LOOP
        RETURN QUERY EXECUTE format(
            'SELECT v, pg_describe_object(%s::oid, c.%I, 0) || %L FROM %I c, unnest(encryption.constant_versions(c.%I, $1)) v',
            place.class_id::oid, place.object_id, format(' (%s.%s)', place.catalog, place.column_name),
            place.catalog, place.column_name) USING key_id;
    END LOOP;
    RETURN QUERY
        SELECT v, pg_describe_object('pg_class'::regclass, a.attrelid, a.attnum) || ' (pg_attribute.attmissingval)'
          FROM pg_attribute a, unnest(encryption.missing_versions(a.attmissingval, constants_under.key_id)) v
         WHERE a.atthasmissing;
END $$;

-- What encryption.rotate_catalogs does with the rights of the catalog's owner, which must be a
-- superuser. Its caller has checked that the key's owner calls.
CREATE FUNCTION encryption.rotate_catalog_rows(key_id integer) RETURNS bigint
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    place   encryption.constant_place;
    changed bigint;
    total   bigint := 0;
BEGIN
    FOR place IN SELECT * FROM encryption.constant_place LOOP
        EXECUTE format(
            'UPDATE pg_catalog.%1$I SET %2$I = encryption.rotate_constants(%2$I)'
            ' WHERE encryption.constant_versions(%2$I, $1) <> ''{}'''
            ' AND encryption.rotate_constants(%2$I) IS NOT NULL', place.catalog, place.column_name) USING key_id;
        GET DIAGNOSTICS changed = ROW_COUNT;
        total := total + changed;
    END LOOP;
    UPDATE pg_catalog.pg_attribute SET attmissingval = encryption.rotate_missing(attmissingval)
     WHERE atthasmissing AND encryption.missing_versions(attmissingval, rotate_catalog_rows.key_id) <> '{}'
       AND encryption.rotate_missing(attmissingval) IS NOT NULL;
    GET DIAGNOSTICS changed = ROW_COUNT;
    total := total + changed;
    IF total > 0 THEN
        PERFORM encryption.forget_relations();
    END IF;
    RETURN total;
END $$;
REVOKE EXECUTE ON FUNCTION encryption.rotate_catalog_rows(integer) FROM PUBLIC;

CREATE FUNCTION encryption.rotate_catalogs(name text) RETURNS bigint
    LANGUAGE c SET search_path = pg_catalog, pg_temp AS 'MODULE_PATHNAME', 'encryption_rotate_catalogs';
COMMENT ON FUNCTION encryption.rotate_catalogs(text) IS
    'rotates the constants under a key in the system catalogs; returns in how many rows';

----------------------------------------------------------------------------------------------------
-- The use of versions, the proof that one is unused, and its end.
----------------------------------------------------------------------------------------------------

CREATE FUNCTION enc_key_usage(
        name text, exact boolean DEFAULT true, sample_blocks integer DEFAULT 1000,
        OUT object text, OUT version integer, OUT number_of_rows bigint, OUT margin bigint, OUT method text)
    RETURNS SETOF record
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET row_security = off AS $$
DECLARE
    part    encryption.encrypted_column;
    id      integer := encryption.key_id(name);
    blocks  double precision;
    share   double precision;
    versions text;
BEGIN
    IF id IS NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'KE003', MESSAGE = format('key "%s" does not exist', name),
            HINT = 'See the view enc_keys for those that exist.';
    END IF;
    FOR part IN SELECT * FROM encryption.encrypted_column c WHERE c.key_id = id AND c.kind <> 'p'
                 ORDER BY c.table_name, c.column_number
    LOOP
        object := format('%s.%I', part.table_name, part.column_name);
        version := NULL;
        number_of_rows := NULL;
        margin := NULL;
        IF part.kind = 'f' OR part.is_temporary_elsewhere THEN
            method := 'out of reach';
            RETURN NEXT;
            CONTINUE;
        END IF;
        versions := encryption.versions_query(part, id);
        IF exact THEN
            method := 'exact';
            margin := 0;
            FOR version, number_of_rows IN EXECUTE format(
                'SELECT needed_version, count(*) FROM ONLY %s t, %s WHERE needed_version IS NOT NULL GROUP BY 1 ORDER BY 1',
                part.table_id::regclass, versions)
            LOOP
                RETURN NEXT;
            END LOOP;
            CONTINUE;
        END IF;
        -- Each block is drawn with the same probability, so that is what a count is divided by (the
        -- Horvitz-Thompson estimator), and what varies is which blocks are drawn. The margin is that
        -- of 95 %.
        method := 'estimated';
        blocks := pg_relation_size(part.table_id) / current_setting('block_size')::integer;
        CONTINUE WHEN blocks = 0;
        share := least(1, sample_blocks / blocks);
        FOR version, number_of_rows, margin IN EXECUTE format(
            'WITH per_block AS (
                SELECT needed_version AS v, (t.ctid::text::point)[0] AS block, count(*)::float8 AS n
                  FROM ONLY %1$s t TABLESAMPLE SYSTEM (%2$s), %3$s
                 WHERE needed_version IS NOT NULL GROUP BY 1, 2)
             SELECT v, round(sum(n) / %4$s), ceil(1.96 * sqrt((1 - %4$s) * sum(n ^ 2)) / %4$s)
               FROM per_block GROUP BY v ORDER BY v',
            part.table_id::regclass, 100 * share, versions, share)
        LOOP
            RETURN NEXT;
        END LOOP;
    END LOOP;
    method := 'exact';
    margin := 0;
    number_of_rows := 1;
    FOR version, object IN SELECT c.version, c.object FROM encryption.constants_under(id) c LOOP
        RETURN NEXT;
    END LOOP;
END $$;
COMMENT ON FUNCTION enc_key_usage(text, boolean, integer) IS
    'rows per version for every column that a key is used in: counted, or estimated from a sample of blocks';

-- In FROM after a table t: its rows, with each version of a key that a column's value needs as
-- needed_version.
CREATE FUNCTION encryption.versions_query(part encryption.encrypted_column, key_id integer) RETURNS text
    LANGUAGE sql STABLE STRICT SET search_path = pg_catalog, pg_temp AS $$
SELECT CASE WHEN part.is_nested
            THEN format('unnest(encryption.versions_within(t.%I, %s)) needed (needed_version)', part.column_name, key_id)
            ELSE format('LATERAL (SELECT encryption.version_under(t.%I, %s)) needed (needed_version)', part.column_name, key_id) END
$$;

CREATE FUNCTION encryption.begin_proof(name text, version integer, OUT key_id integer, OUT horizon timestamptz)
    RETURNS SETOF record ROWS 1
    LANGUAGE c SET search_path = pg_catalog, pg_temp AS 'MODULE_PATHNAME', 'encryption_begin_proof';
CREATE FUNCTION encryption.record_proof(
        name text, version integer, horizon timestamptz, is_unused boolean, findings jsonb) RETURNS void
    LANGUAGE c SET search_path = pg_catalog, pg_temp AS 'MODULE_PATHNAME', 'encryption_record_proof';

-- What stored values still need a version, with one snapshot.
CREATE FUNCTION encryption.uses_of(key_id integer, version integer, OUT object text, OUT number_of_rows bigint)
    RETURNS SETOF record
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET row_security = off AS $$
DECLARE
    query text;
BEGIN
    -- Columns of other keys, too: what matters is what a value says, not what its column does.
    SELECT string_agg(
               format('SELECT %L, count(*) FROM ONLY %s t, %s WHERE needed_version = %s',
                   format('%s.%I', (c).table_name, (c).column_name), (c).table_id::regclass,
                   encryption.versions_query(c, uses_of.key_id), uses_of.version),
               ' UNION ALL ' ORDER BY (c).table_name, (c).column_number)
      INTO query
      FROM (SELECT DISTINCT ON (c.table_id, c.column_number) c
              FROM encryption.encrypted_column c
             WHERE c.kind IN ('r', 'm') AND NOT c.is_temporary_elsewhere) columns (c);
    IF query IS NOT NULL THEN
        RETURN QUERY EXECUTE 'SELECT * FROM (' || query || ') uses (object, number_of_rows) WHERE number_of_rows > 0';
    END IF;
    RETURN QUERY
        SELECT c.object, 1::bigint FROM encryption.constants_under(uses_of.key_id) c WHERE c.version = uses_of.version;
END $$;

CREATE FUNCTION enc_verify_version_unused(
        name text, version integer, wait interval DEFAULT '1 minute',
        OUT finding text, OUT object text, OUT number_of_rows bigint, OUT detail text)
    RETURNS SETOF record
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    begun     record;
    waited    timestamptz := clock_timestamp();
    earlier   text[];
    is_unused boolean := true;
    findings  jsonb := '[]';
    present   record;
BEGIN
    SELECT * INTO STRICT begun FROM encryption.begin_proof(name, version);

    -- Before the wait, as what is found here needs none; and because nobody who begins after a look
    -- that finds nothing can come by an old value to write it somewhere else.
    FOR object, number_of_rows IN SELECT * FROM encryption.uses_of(begun.key_id, version) LOOP
        is_unused := false;
        finding := 'used';
        findings := findings || jsonb_build_object('finding', finding, 'object', object, 'rows', number_of_rows);
        RETURN NEXT;
    END LOOP;

    IF is_unused THEN
        -- The transactions that may have begun before the horizon, or hold an old value, as CREATE INDEX
        -- CONCURRENTLY waits for them.
        earlier := ARRAY(
            SELECT l.virtualxid FROM pg_locks l JOIN pg_stat_activity a USING (pid)
             WHERE l.locktype = 'virtualxid' AND l.pid <> pg_backend_pid()
               AND a.backend_type IS DISTINCT FROM 'autovacuum worker'
               AND (a.datid IS NULL OR a.datid = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database())));
        LOOP
            earlier := ARRAY(
                SELECT l.virtualxid FROM pg_locks l
                 WHERE l.locktype = 'virtualxid' AND l.virtualxid = ANY (earlier) AND l.granted
                   AND l.virtualxid = l.virtualtransaction);
            EXIT WHEN earlier = '{}' OR clock_timestamp() > waited + wait;
            PERFORM pg_sleep(0.05);
        END LOOP;
        FOR present IN SELECT l.virtualxid, l.pid FROM pg_locks l
                        WHERE l.locktype = 'virtualxid' AND l.virtualxid = ANY (earlier)
                          AND l.virtualxid = l.virtualtransaction
        LOOP
            is_unused := false;
            finding := 'unproved';
            object := format('transaction of process %s', present.pid);
            number_of_rows := NULL;
            detail := 'It began before the proof and may still write values under the version. Wait for its end, and repeat.';
            findings := findings || jsonb_build_object('finding', finding, 'object', object);
            RETURN NEXT;
        END LOOP;

        detail := NULL;
        FOR object, number_of_rows IN SELECT * FROM encryption.uses_of(begun.key_id, version) LOOP
            is_unused := false;
            finding := 'used';
            findings := findings || jsonb_build_object('finding', finding, 'object', object, 'rows', number_of_rows);
            RETURN NEXT;
        END LOOP;
    END IF;

    number_of_rows := NULL;
    FOR finding, object, detail IN
        SELECT 'unproved', format('prepared transaction %L', p.gid),
               'What it has written is not seen before COMMIT PREPARED. End it, and repeat.'
          FROM pg_prepared_xacts p WHERE p.database = current_database()
      UNION ALL
        SELECT 'unproved', format('temporary table %s of another session', c.table_name),
               'Its rows can be read by that session alone. Wait for its end, and repeat.'
          FROM (SELECT DISTINCT e.table_name FROM encryption.encrypted_column e WHERE e.is_temporary_elsewhere) c
      UNION ALL
        SELECT 'not covered', format('foreign table %s', c.table_name), 'Its rows are elsewhere.'
          FROM (SELECT DISTINCT e.table_name FROM encryption.encrypted_column e WHERE e.kind = 'f') c
      UNION ALL
        SELECT 'not covered', format('replication slot %s', s.slot_name),
               'Changes that it has yet to deliver may have values under the version.'
          FROM pg_replication_slots s
      UNION ALL
        SELECT 'not covered', format('standby of process %s', r.pid), 'Its queries may still read older rows.'
          FROM pg_stat_replication r
      UNION ALL
        SELECT 'not covered', format('database %s', d.datname), 'Restored copies, and subscribers, have values of their own.'
          FROM pg_database d WHERE d.datallowconn AND NOT d.datistemplate AND d.datname <> current_database()
      UNION ALL
        SELECT 'not covered', 'backups', 'Those older than this proof may need the version.'
    LOOP
        is_unused := is_unused AND finding <> 'unproved';
        findings := findings || jsonb_build_object('finding', finding, 'object', object);
        RETURN NEXT;
    END LOOP;

    PERFORM encryption.record_proof(name, version, begun.horizon, is_unused, findings);
    finding := CASE WHEN is_unused THEN 'proved unused' ELSE 'not proved' END;
    object := format('version %s of key "%s"', version, name);
    detail := CASE WHEN is_unused THEN 'enc_destroy_key_version takes this as proof.' END;
    RETURN NEXT;
END $$;
COMMENT ON FUNCTION enc_verify_version_unused(text, integer, interval) IS
    'looks through everything in this database for values under a version, and records the proof if there are none';

CREATE FUNCTION enc_destroy_key_version(
        name text, version integer, accept_data_loss boolean DEFAULT false, grace_period interval DEFAULT '90 days',
        reason text DEFAULT NULL)
    RETURNS void
    LANGUAGE c SET search_path = pg_catalog, pg_temp AS 'MODULE_PATHNAME';
COMMENT ON FUNCTION enc_destroy_key_version(text, integer, boolean, interval, text) IS
    'ends a version for good: with a proof that it is unused, or accepting that values are lost';

CREATE FUNCTION encryption.start_workers(
        name text, workers integer, batch_size integer, max_rate integer, fire_triggers boolean, skip_damaged boolean)
    RETURNS integer
    LANGUAGE c SET search_path = pg_catalog, pg_temp AS 'MODULE_PATHNAME', 'encryption_start_workers';

CREATE PROCEDURE enc_emergency_rotate(
    name            text,
    workers         integer  DEFAULT 2,
    new_version     boolean  DEFAULT true,
    batch_size      integer  DEFAULT 10000,
    max_rate        integer  DEFAULT NULL,
    fire_triggers   boolean  DEFAULT false,
    skip_damaged    boolean  DEFAULT false,
    wait            interval DEFAULT '1 minute',
    reason          text     DEFAULT NULL)
    LANGUAGE plpgsql AS $$
DECLARE
    active   integer;
    old      integer;
    olds     integer[];
    started  integer;
    found    record;
    in_use   text := '';
BEGIN
    COMMIT;
    SET TRANSACTION ISOLATION LEVEL READ COMMITTED;
    PERFORM pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
    IF new_version THEN
        active := @extschema@.enc_rotate_key(name, reason => reason);
        RAISE NOTICE 'version % of key "%" is active: what is written from now on is under it', active, name;
        COMMIT;
    END IF;
    started := encryption.start_workers(name, workers, batch_size, max_rate, fire_triggers, skip_damaged);
    RAISE NOTICE '% background worker(s) take part', started;
    IF started < workers THEN
        RAISE WARNING USING MESSAGE = format('%s background worker(s) could not be started', workers - started),
            HINT = 'Raise max_worker_processes. This session works on without them.';
    END IF;
    COMMIT;
    CALL @extschema@.enc_rotate_all(name, batch_size => batch_size, max_rate => max_rate, fire_triggers => fire_triggers,
        skip_damaged => skip_damaged, refresh_materialized_views => true, reason => reason);

    COMMIT;
    SET TRANSACTION ISOLATION LEVEL READ COMMITTED;
    PERFORM set_config('search_path', 'pg_catalog, pg_temp', true);
    olds := ARRAY(SELECT v.version FROM @extschema@.enc_key_versions v
                   WHERE v.name = enc_emergency_rotate.name AND v.state = 'deprecated' ORDER BY 1);
    FOREACH old IN ARRAY olds LOOP
        FOR found IN SELECT * FROM @extschema@.enc_verify_version_unused(name, old, wait) LOOP
            IF found.finding IN ('used', 'unproved') THEN
                in_use := in_use || format(E'\n%s by %s %s', found.finding, found.object,
                                           coalesce('(' || found.number_of_rows || ' rows)', ''));
            ELSIF found.finding = 'proved unused' THEN
                BEGIN
                    PERFORM @extschema@.enc_disable_key_version(name, old, reason => reason);
                    RAISE NOTICE 'version % of key "%" is no longer used here, and disabled', old, name;
                EXCEPTION WHEN SQLSTATE 'KE018' THEN
                    RAISE WARNING USING MESSAGE = format(
                            'version %s of key "%s" encrypts nothing any more, but makes the digests in indexes', old, name),
                        HINT = 'Move the digests with enc_rotate_digest(), and disable it then.';
                END;
            END IF;
        END LOOP;
        COMMIT;
        SET TRANSACTION ISOLATION LEVEL READ COMMITTED;
        PERFORM set_config('search_path', 'pg_catalog, pg_temp', true);
    END LOOP;
    IF in_use <> '' THEN
        RAISE EXCEPTION USING ERRCODE = 'KE107',
            MESSAGE = format('old versions of key "%s" are still in use, and were not disabled', name),
            DETAIL = 'Versions ' || array_to_string(olds, ', ') || ':' || in_use,
            HINT = 'Remove the cause, and repeat the call with new_version => false.';
    END IF;
END $$;
COMMENT ON PROCEDURE enc_emergency_rotate(text, integer, boolean, integer, integer, boolean, boolean, interval, text) IS
    'rotates a key and everything under it, with background workers, and disables the old versions when nothing uses them';

----------------------------------------------------------------------------------------------------
-- Scheduled rotation: what is due is rotated by whoever calls enc_run_due_rotations(), by the rights of
-- the role that scheduled it. A key is due by what the catalog says of its active version, which its
-- rotation changes in the same transaction: so nothing happens twice, whoever calls at once, and
-- wherever a server stops.
----------------------------------------------------------------------------------------------------

CREATE FUNCTION enc_schedule_rotation(
        name text, period interval DEFAULT NULL, auto_reencrypt boolean DEFAULT false, reason text DEFAULT NULL)
    RETURNS timestamptz
    LANGUAGE c SET search_path = pg_catalog, pg_temp AS 'MODULE_PATHNAME';
COMMENT ON FUNCTION enc_schedule_rotation(text, interval, boolean, text) IS
    'has a key rotated whenever its rotation period is over; returns when it is';

CREATE FUNCTION enc_unschedule_rotation(name text, reason text DEFAULT NULL) RETURNS boolean
    LANGUAGE c SET search_path = pg_catalog, pg_temp AS 'MODULE_PATHNAME';
COMMENT ON FUNCTION enc_unschedule_rotation(text, text) IS
    'has a key no longer rotated by itself; whether it was';

CREATE FUNCTION encryption.rotate_if_due(key_id integer) RETURNS integer
    LANGUAGE c SET search_path = pg_catalog, pg_temp AS 'MODULE_PATHNAME', 'encryption_rotate_if_due';
CREATE FUNCTION encryption.note_rotation_error(key_id integer, error text) RETURNS void
    LANGUAGE c SET search_path = pg_catalog, pg_temp AS 'MODULE_PATHNAME', 'encryption_note_rotation_error';
CREATE FUNCTION encryption.start_reencryption(key_id integer) RETURNS boolean
    LANGUAGE c SET search_path = pg_catalog, pg_temp AS 'MODULE_PATHNAME', 'encryption_start_reencryption';
CREATE FUNCTION encryption.end_reencryption(name text, version integer) RETURNS void
    LANGUAGE c SET search_path = pg_catalog, pg_temp AS 'MODULE_PATHNAME', 'encryption_end_reencryption';
REVOKE EXECUTE ON FUNCTION encryption.rotate_if_due(integer), encryption.note_rotation_error(integer, text),
    encryption.start_reencryption(integer) FROM PUBLIC;

-- What is to be done. A worker that encrypts again holds an advisory lock of this class ("encs" in ASCII) on the
-- key's id, which is gone with it however it ends.
CREATE VIEW encryption.scheduled_work AS
SELECT s.key_id,
       active.activated_at + key.rotation_period AS due_at,
       coalesce(active.activated_at + key.rotation_period <= clock_timestamp(), false) AS is_due,
       s.reencrypt_to,
       s.reencrypt_to IS NOT NULL AS is_to_be_reencrypted,
       s.worker_started_at,
       EXISTS (SELECT FROM pg_locks l
                WHERE l.locktype = 'advisory' AND l.classid = 1701733235 AND l.objid = s.key_id::oid AND l.objsubid = 2
                  AND l.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database())
                  AND l.granted) AS is_being_reencrypted
  FROM encryption.rotation_schedule s
  JOIN encryption.key ON key.key_id = s.key_id
  LEFT JOIN encryption.key_version active ON active.key_id = s.key_id AND active.state = 'active'
 WHERE s.is_enabled;
COMMENT ON VIEW encryption.scheduled_work IS 'scheduled rotations that are enabled, and what is due of them';
GRANT SELECT ON encryption.scheduled_work TO PUBLIC;

CREATE VIEW enc_scheduled_rotations AS
SELECT key.name,
       key.rotation_period,
       active.activated_at + key.rotation_period AS rotation_due,
       s.auto_reencrypt,
       s.scheduled_by,
       s.session_role,
       s.scheduled_at,
       s.is_enabled,
       s.rotated_at,
       s.reencrypt_to,
       work.is_being_reencrypted,
       s.last_error,
       s.last_error_at
  FROM encryption.rotation_schedule s
  JOIN encryption.key ON key.key_id = s.key_id
  LEFT JOIN encryption.key_version active ON active.key_id = s.key_id AND active.state = 'active'
  LEFT JOIN encryption.scheduled_work work ON work.key_id = s.key_id;
COMMENT ON VIEW enc_scheduled_rotations IS 'keys that are rotated when their rotation period is over, and what came of it';
GRANT SELECT ON enc_scheduled_rotations TO pg_monitor;

CREATE PROCEDURE enc_run_due_rotations()
    LANGUAGE plpgsql AS $$
DECLARE
    work     record;
    error    text;
    failed   text := '';
    restored text;
BEGIN
    IF pg_catalog.pg_is_in_recovery() THEN
        RETURN;
    END IF;
    COMMIT;
    SET TRANSACTION ISOLATION LEVEL READ COMMITTED;
    PERFORM pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
    restored := encryption.restored_from();
    IF restored IS NOT NULL AND EXISTS (SELECT FROM encryption.scheduled_work) THEN
        RAISE WARNING USING
            MESSAGE = format('scheduled rotations wait, as the catalog of keys may be older than the keys: %s', restored),
            HINT = 'SELECT * FROM enc_reconcile() compares them.';
        RETURN;
    END IF;
    FOR work IN
        SELECT w.key_id, k.name FROM encryption.scheduled_work w JOIN @extschema@.enc_keys k ON k.key_id = w.key_id
         WHERE w.is_due ORDER BY w.due_at
    LOOP
        BEGIN
            PERFORM encryption.rotate_if_due(work.key_id);
        EXCEPTION WHEN OTHERS THEN
            GET STACKED DIAGNOSTICS error = MESSAGE_TEXT;
            PERFORM encryption.note_rotation_error(work.key_id, error);
            failed := failed || format(E'\nkey "%s": %s', work.name, error);
        END;
        COMMIT;
        SET TRANSACTION ISOLATION LEVEL READ COMMITTED;
        PERFORM set_config('search_path', 'pg_catalog, pg_temp', true);
    END LOOP;
    FOR work IN SELECT w.key_id FROM encryption.scheduled_work w
                 WHERE w.is_to_be_reencrypted AND NOT w.is_being_reencrypted LOOP
        PERFORM encryption.start_reencryption(work.key_id);
        COMMIT;
        SET TRANSACTION ISOLATION LEVEL READ COMMITTED;
        PERFORM set_config('search_path', 'pg_catalog, pg_temp', true);
    END LOOP;
    IF failed <> '' THEN
        RAISE EXCEPTION USING ERRCODE = 'KE143', MESSAGE = 'scheduled rotations failed',
            DETAIL = substr(failed, 2),
            HINT = 'Remove the cause, and the next call tries again. enc_scheduled_rotations has the last error of each.';
    END IF;
END $$;
COMMENT ON PROCEDURE enc_run_due_rotations() IS
    'rotates the keys whose scheduled rotation is due, once, whoever calls it; nothing on a standby';
REVOKE EXECUTE ON PROCEDURE enc_run_due_rotations() FROM PUBLIC;

-- What the worker that encrypts again calls, as the role that scheduled it.
CREATE PROCEDURE encryption.reencrypt_scheduled(name text)
    LANGUAGE plpgsql AS $$
DECLARE
    id      integer;
    wanted  integer;
BEGIN
    COMMIT;
    PERFORM pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
    id := encryption.key_id(name);
    -- Another worker may have been started in the same moment.
    IF NOT pg_try_advisory_lock(1701733235, id) THEN
        RETURN;
    END IF;
    SELECT w.reencrypt_to INTO wanted FROM encryption.scheduled_work w WHERE w.key_id = id;
    IF wanted IS NOT NULL THEN
        CALL @extschema@.enc_rotate_all(name, reason => 'scheduled rotation');
        PERFORM set_config('search_path', 'pg_catalog, pg_temp', true);
        PERFORM encryption.end_reencryption(name, wanted);
    END IF;
    PERFORM pg_advisory_unlock(1701733235, id);
END $$;

----------------------------------------------------------------------------------------------------
-- Verification: which values can't be opened.
----------------------------------------------------------------------------------------------------

CREATE FUNCTION encryption.unreadable("any") RETURNS text[]
    LANGUAGE c STABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'encryption_unreadable';
COMMENT ON FUNCTION encryption.unreadable("any") IS
    'for each encrypted value inside that cannot be opened, the SQLSTATE and the reason; null if there is none';
CREATE FUNCTION encryption.refuse_verification(relation text, column_name text) RETURNS void
    LANGUAGE c AS 'MODULE_PATHNAME', 'encryption_refuse_verification';

-- With the caller's rights: SELECT on the tables, decrypt on the keys. Rows are read in the order of
-- their ctid. Where the table itself is damaged (class XX) it goes on row by row.
CREATE FUNCTION enc_verify(
        INOUT table_name regclass,
        INOUT column_name name DEFAULT NULL,
        OUT ctid tid,
        OUT sqlstate text,
        OUT reason text)
    RETURNS SETOF record
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET synchronize_seqscans = off AS $$
DECLARE
    wanted record;
    is_any boolean := false;
    is_damaged boolean;
    is_range boolean;
    row_id tid;
    last_id tid;
    problems text[];
    problem text;
BEGIN
    FOR wanted IN
        SELECT DISTINCT c.table_id::regclass AS relation, c.column_number, c.column_name AS name
          FROM encryption.encrypted_column c
         WHERE (c.table_id IN (SELECT encryption.tables_of(enc_verify.table_name))
                OR (c.table_id = enc_verify.table_name AND c.kind = 'm'))
           AND NOT c.is_temporary_elsewhere
           AND (enc_verify.column_name IS NULL OR c.column_name = enc_verify.column_name)
         ORDER BY 1, 2
    LOOP
        is_any := true;
        is_damaged := false;
        is_range := false;
        last_id := '(0,0)';
        BEGIN
            FOR row_id, problems IN EXECUTE
                format('SELECT t.ctid, encryption.unreadable(t.%I) FROM ONLY %s t
                         WHERE encryption.unreadable(t.%1$I) IS NOT NULL', wanted.name, wanted.relation)
            LOOP
                FOREACH problem IN ARRAY problems LOOP
                    table_name := wanted.relation;
                    column_name := wanted.name;
                    ctid := row_id;
                    sqlstate := left(problem, 5);
                    reason := substr(problem, 7);
                    RETURN NEXT;
                END LOOP;
                last_id := row_id;
            END LOOP;
        EXCEPTION
            WHEN SQLSTATE 'KE103' THEN
                is_range := true;
            WHEN internal_error OR data_corrupted OR index_corrupted THEN
                is_damaged := true;
        END;
        IF is_range THEN
            table_name := wanted.relation;
            column_name := wanted.name;
            ctid := NULL;
            sqlstate := 'KE103';
            reason := 'ranges of encrypted values are not verified';
            RETURN NEXT;
        END IF;
        CONTINUE WHEN NOT is_damaged;
        FOR row_id IN EXECUTE format('SELECT t.ctid FROM ONLY %s t WHERE t.ctid > $1', wanted.relation)
            USING last_id
        LOOP
            BEGIN
                EXECUTE format('SELECT encryption.unreadable(t.%I) FROM ONLY %s t WHERE t.ctid = $1',
                               wanted.name, wanted.relation)
                   INTO problems USING row_id;
            EXCEPTION WHEN internal_error OR data_corrupted OR index_corrupted THEN
                problems := ARRAY[format('%s %s', sqlstate, sqlerrm)];
            END;
            FOREACH problem IN ARRAY coalesce(problems, '{}') LOOP
                table_name := wanted.relation;
                column_name := wanted.name;
                ctid := row_id;
                sqlstate := left(problem, 5);
                reason := substr(problem, 7);
                RETURN NEXT;
            END LOOP;
        END LOOP;
    END LOOP;
    IF NOT is_any THEN
        PERFORM encryption.refuse_verification(enc_verify.table_name::text, enc_verify.column_name);
    END IF;
END $$;
COMMENT ON FUNCTION enc_verify(regclass, name) IS
    'the values of a table, its partitions and children that cannot be opened, and why';

----------------------------------------------------------------------------------------------------
-- What could be safer. For superusers and members of pg_monitor, as far as these can see it. Without
-- just-in-time compilation, as the planner expects far more columns and privileges than there are.
----------------------------------------------------------------------------------------------------

CREATE FUNCTION encryption.server_findings(
        OUT check_name text, OUT severity text, OUT object text, OUT finding text, OUT remedy text)
    RETURNS SETOF record
    LANGUAGE c SET search_path = pg_catalog, pg_temp AS 'MODULE_PATHNAME', 'encryption_server_findings';
COMMENT ON FUNCTION encryption.server_findings() IS
    'findings about providers, their files and the memory of the server';
REVOKE EXECUTE ON FUNCTION encryption.server_findings() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION encryption.server_findings() TO pg_monitor;

-- Statements and values in logs.
CREATE FUNCTION encryption.log_findings(
        OUT check_name text, OUT severity text, OUT object text, OUT finding text, OUT remedy text)
    RETURNS SETOF record
    LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
WITH s AS (SELECT name, setting FROM pg_settings),
     has_parameters AS (SELECT setting <> '0' AS yes FROM s WHERE name = 'log_parameter_max_length')
SELECT 'log_statement', 'medium', s.name, format('statements (%s) are logged with their constants', s.setting),
       'Send values as parameters, set log_parameter_max_length = 0, or log_statement = ''none''.'
  FROM s WHERE s.name = 'log_statement' AND s.setting <> 'none'
UNION ALL
SELECT 'log_parameters', 'high', s.name,
       'the parameters of statements are logged, and with them values on their way into encrypted columns',
       'Set log_parameter_max_length = 0.'
  FROM s, has_parameters
 WHERE has_parameters.yes AND ((s.name = 'log_statement' AND s.setting <> 'none')
    OR (s.name IN ('log_min_duration_statement', 'log_min_duration_sample') AND s.setting <> '-1')
    OR (s.name = 'log_transaction_sample_rate' AND s.setting <> '0'))
UNION ALL
SELECT 'log_parameters', 'medium', s.name, 'parameters are logged with errors, if no encrypted value was used before',
       'Set log_parameter_max_length_on_error = 0.'
  FROM s WHERE s.name = 'log_parameter_max_length_on_error' AND s.setting <> '0'
UNION ALL
SELECT 'log_statement_of_error', 'low', s.name,
       'statements that fail are logged with their constants',
       'Send values as parameters, or set log_min_error_statement = ''panic''.'
  FROM s WHERE s.name = 'log_min_error_statement' AND s.setting NOT IN ('fatal', 'panic')
UNION ALL
SELECT 'log_error_verbosity', 'low', s.name,
       'messages are logged with all their details; those of statements that use encrypted values, without values',
       'Set log_error_verbosity to ''default'' or ''terse''.'
  FROM s WHERE s.name = 'log_error_verbosity' AND s.setting = 'verbose'
UNION ALL
SELECT 'log_trees', 'medium', s.name, 'parse trees and plans are logged, with constants in them',
       format('Set %s = off.', s.name)
  FROM s WHERE s.name IN ('debug_print_parse', 'debug_print_rewritten', 'debug_print_plan') AND s.setting = 'on'
UNION ALL
SELECT 'auto_explain', 'high', s.name, 'plans are logged, with constants and parameters in them, decrypted',
       'Set auto_explain.log_min_duration = -1.'
  FROM s WHERE s.name = 'auto_explain.log_min_duration' AND s.setting <> '-1'
UNION ALL
SELECT 'pg_stat_statements', 'low', s.name, 'the text of commands is kept with its constants (that of queries without)',
       'Send values as parameters, or set pg_stat_statements.track_utility = off.'
  FROM s WHERE s.name = 'pg_stat_statements.track_utility' AND s.setting = 'on'
$$;

-- Who may connect without TLS. pg_hba_file_rules is for superusers, and roles that were given it.
CREATE FUNCTION encryption.connection_findings(
        OUT check_name text, OUT severity text, OUT object text, OUT finding text, OUT remedy text)
    RETURNS SETOF record
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    is_remote boolean := EXISTS (
        SELECT FROM unnest(string_to_array(replace(current_setting('listen_addresses'), ' ', ''), ',')) address
         WHERE address NOT IN ('', 'localhost', '::1') AND address NOT LIKE '127.%');
    is_tls boolean := current_setting('ssl')::boolean;
    is_hba_visible boolean := has_function_privilege('pg_hba_file_rules()', 'EXECUTE')
                              AND has_table_privilege('pg_hba_file_rules', 'SELECT');
BEGIN
    IF is_hba_visible AND is_remote THEN
        RETURN QUERY
        SELECT CASE WHEN is_tls THEN 'tls_optional' ELSE 'tls_off' END, 'high',
               format('pg_hba.conf, line %s', line_number),
               CASE WHEN is_tls THEN 'clients may connect from other machines without TLS'
                    ELSE 'clients may connect from other machines, and TLS is off' END
                   || ': values are plaintext on the wire',
               CASE WHEN is_tls THEN 'Make the line hostssl.'
                    ELSE 'Set ssl = on, with a certificate, and make the line hostssl.' END
          FROM pg_hba_file_rules
         WHERE type IN ('host', 'hostnossl') AND auth_method <> 'reject' AND error IS NULL
           AND address NOT IN ('localhost', '::1', 'samehost') AND address NOT LIKE '127.%';
    ELSIF is_remote AND NOT is_tls THEN
        RETURN QUERY VALUES ('tls_off', 'high', 'ssl',
            'the server listens for other machines, and TLS is off: values are plaintext on the wire',
            'Set ssl = on, with a certificate, and use hostssl in pg_hba.conf.');
    END IF;
    RETURN QUERY
    SELECT 'superuser_without_tls',
           CASE WHEN a.client_addr <<= '127.0.0.0/8' OR a.client_addr = '::1' THEN 'low' ELSE 'high' END,
           format('session %s of %I from %s', a.pid, a.usename, a.client_addr),
           'a superuser is connected without TLS',
           'Use hostssl in pg_hba.conf for superusers.'
      FROM pg_stat_activity a JOIN pg_stat_ssl s USING (pid) JOIN pg_roles r ON r.rolname = a.usename
     WHERE r.rolsuper AND NOT s.ssl AND a.client_addr IS NOT NULL;
END $$;

-- Keys, who may use them, and who may read and write the catalog of them.
CREATE FUNCTION encryption.key_findings(
        OUT check_name text, OUT severity text, OUT object text, OUT finding text, OUT remedy text)
    RETURNS SETOF record
    LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
SELECT 'rotation_due', 'medium', format('version %s of key "%s"', v.version, v.name),
       format('it has been active since %s', v.activated_at::date),
       format('SELECT enc_rotate_key(%L); CALL enc_rotate_all(%1$L);', v.name)
  FROM @extschema@.enc_key_versions v
  JOIN @extschema@.enc_keys k ON k.name = v.name
 WHERE v.state = 'active' AND v.activated_at < now() - coalesce(k.rotation_period, '1 year')
UNION ALL
SELECT 'version_past_grace', 'low', format('version %s of key "%s"', version, name),
       format('it was replaced on %s, and can still decrypt', deprecated_at::date),
       format('CALL enc_rotate_all(%L); SELECT * FROM enc_verify_version_unused(%1$L, %2$s); SELECT enc_destroy_key_version(%1$L, %2$s);',
              name, version)
  FROM @extschema@.enc_key_versions
 WHERE state = 'deprecated' AND deprecated_at < now() - interval '90 days'
UNION ALL
SELECT 'grant_to_public', CASE privilege WHEN 'decrypt' THEN 'high' ELSE 'medium' END,
       format('key "%s"', name), format('every role has privilege "%s"', privilege),
       format('SELECT enc_revoke(%L, ''public'', %L);', name, privilege)
  FROM @extschema@.enc_key_grants WHERE grantee = 'public'
UNION ALL
SELECT 'catalog_readable', 'low', c.oid::regclass::text,
       format('%s may read the table of the key catalog', grantee.name),
       format('REVOKE SELECT ON %s FROM %s;', c.oid::regclass, grantee.name)
  FROM pg_class c
 CROSS JOIN LATERAL aclexplode(c.relacl) a
 CROSS JOIN LATERAL (SELECT CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE a.grantee::regrole::text END) grantee (name)
 WHERE c.relnamespace = 'encryption'::regnamespace AND c.relkind = 'r' AND a.privilege_type = 'SELECT'
   AND c.relname IN ('key', 'key_version', 'key_grant', 'keyspace', 'key_event', 'event_chain')
   AND a.grantee <> c.relowner
UNION ALL
SELECT 'catalog_readable', 'low', member.rolname::text,
       'a member of pg_read_all_data may read the key catalog, and the ciphertext of every table',
       format('REVOKE pg_read_all_data FROM %I;', member.rolname)
  FROM pg_roles member
 WHERE NOT member.rolsuper AND member.rolname <> 'pg_read_all_data'
   AND pg_has_role(member.oid, 'pg_read_all_data', 'MEMBER')
UNION ALL
SELECT 'catalog_writable', 'high', c.oid::regclass::text,
       format('%s has %s on the table of the key catalog', grantee.name, a.privilege_type),
       format('REVOKE %s ON %s FROM %s;', a.privilege_type, c.oid::regclass, grantee.name)
  FROM pg_class c
 CROSS JOIN LATERAL aclexplode(c.relacl) a
 CROSS JOIN LATERAL (SELECT CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE a.grantee::regrole::text END) grantee (name)
 WHERE c.relnamespace = 'encryption'::regnamespace AND c.relkind = 'r' AND a.privilege_type IN ('INSERT', 'UPDATE', 'DELETE', 'TRUNCATE', 'TRIGGER')
   AND c.relname IN ('key', 'key_version', 'key_grant', 'keyspace', 'key_event', 'event_chain')
   AND a.grantee <> c.relowner
UNION ALL
SELECT 'catalog_writable', 'high', member.rolname::text,
       'a member of pg_write_all_data may change keys and grants',
       format('REVOKE pg_write_all_data FROM %I;', member.rolname)
  FROM pg_roles member
 WHERE NOT member.rolsuper AND member.rolname <> 'pg_write_all_data'
   AND pg_has_role(member.oid, 'pg_write_all_data', 'MEMBER')
$$;

-- Columns that may hold personal data and aren't encrypted, by their names; and what is stored beside
-- encrypted columns and reveals something of them.
CREATE FUNCTION encryption.column_findings(
        OUT check_name text, OUT severity text, OUT object text, OUT finding text, OUT remedy text)
    RETURNS SETOF record
    LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
SELECT 'plaintext_column', 'medium', format('%s.%I', c.oid::regclass, a.attname),
       format('by its name it holds personal data, and it is of type %s', format_type(a.atttypid, NULL)),
       format('CALL enc_encrypt_column(%L, %L, ''key'', ''plan'');', c.oid::regclass, a.attname)
  FROM pg_class c
  JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
 WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition
   AND c.relnamespace NOT IN ('pg_catalog'::regnamespace, 'information_schema'::regnamespace, 'encryption'::regnamespace)
   AND c.relpersistence <> 't'
   AND coalesce((SELECT nullif(t.typbasetype, 0) FROM pg_type t WHERE t.oid = a.atttypid), a.atttypid) IN ('text'::regtype, 'varchar'::regtype, 'bpchar'::regtype, 'bytea'::regtype)
   AND lower(a.attname) ~ ('(^|_)(e_?mail|phone|mobile|telephone|fax|ssn|social_security|tax_id|passport|'
                        || 'iban|account_number|card_number|credit_card|cvv|cvc|birth|birthday|birthdate|dob|'
                        || 'first_name|firstname|last_name|lastname|surname|full_name|fullname|maiden_name|'
                        || 'street|address|postcode|zip|diagnosis|medical|salary|password|secret|token)'
                        || '(_?(no|nr|number|address|date|name|line|code|[0-9]+))*$')
UNION ALL
-- An index on digests, or a hash index, shows how often each value occurs: of few values that is enough to
-- tell which is which.
SELECT DISTINCT 'index_on_few_values', 'medium', i.indexrelid::regclass::text,
       format('it shows how often each of about %s values of column %I of %s occurs',
              number.estimated::bigint, s.attname, i.indrelid::regclass),
       'Drop the index, if the values can be told by their frequencies.'
  FROM pg_index i
  JOIN encryption.encrypted_column e ON e.table_id = i.indrelid
  JOIN pg_depend d ON d.classid = 'pg_class'::regclass AND d.objid = i.indexrelid
                  AND d.refclassid = 'pg_class'::regclass AND d.refobjid = i.indrelid AND d.refobjsubid = e.column_number
  JOIN pg_class c ON c.oid = i.indrelid
  JOIN pg_stats s ON s.schemaname = c.relnamespace::regnamespace::name AND s.tablename = c.relname
                 AND s.attname = e.column_name
 CROSS JOIN LATERAL (SELECT CASE WHEN s.n_distinct < 0 THEN -s.n_distinct * c.reltuples ELSE s.n_distinct END) number (estimated)
 WHERE number.estimated BETWEEN 1 AND 100 AND c.reltuples > 10 * number.estimated
UNION ALL
SELECT DISTINCT 'index_condition', 'medium', i.indexrelid::regclass::text,
       format('its condition shows which rows have some values of column %I of %s', e.column_name, i.indrelid::regclass),
       'Make the index without the condition.'
  FROM pg_index i
  JOIN encryption.encrypted_column e ON e.table_id = i.indrelid
  JOIN pg_depend d ON d.classid = 'pg_class'::regclass AND d.objid = i.indexrelid
                  AND d.refclassid = 'pg_class'::regclass AND d.refobjid = i.indrelid AND d.refobjsubid = e.column_number
 WHERE i.indpred IS NOT NULL
   AND i.indpred::text ~ format(':varattno %s ', e.column_number)
   AND i.indpred::text ~ ':opno'
UNION ALL
SELECT 'statistics_of_digests', 'low', format('%I.%I', s.schemaname, s.tablename),
       'statistics of the index keep the most common digests and how often they occur',
       format('ALTER INDEX %I.%I ALTER COLUMN %s SET STATISTICS 0; DELETE FROM pg_statistic WHERE starelid = %L::regclass;',
              s.schemaname, s.tablename, a.attnum, format('%I.%I', s.schemaname, s.tablename))
  FROM pg_stats s
  JOIN pg_class c ON c.relname = s.tablename AND c.relnamespace::regnamespace::name = s.schemaname AND c.relkind IN ('i', 'I')
  JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = s.attname
  JOIN pg_index i ON i.indexrelid = c.oid
 WHERE s.most_common_vals IS NOT NULL AND a.atttypid = 'bytea'::regtype
   AND i.indrelid IN (SELECT table_id FROM encryption.encrypted_column)
$$;

CREATE FUNCTION enc_security_check(
        OUT check_name text, OUT severity text, OUT object text, OUT finding text, OUT remedy text)
    RETURNS SETOF record
    LANGUAGE sql SET search_path = pg_catalog, pg_temp SET jit = off AS $$
SELECT * FROM (
    SELECT * FROM encryption.server_findings() UNION ALL
    SELECT * FROM encryption.log_findings() UNION ALL
    SELECT * FROM encryption.connection_findings() UNION ALL
    SELECT * FROM encryption.key_findings() UNION ALL
    SELECT * FROM encryption.column_findings()) findings
 ORDER BY array_position(ARRAY['high', 'medium', 'low'], severity), check_name, object
$$;
COMMENT ON FUNCTION enc_security_check() IS
    'what could be safer: settings, files, privileges, connections, indexes, columns that are not encrypted';
REVOKE EXECUTE ON FUNCTION enc_security_check(), encryption.log_findings(), encryption.connection_findings(),
    encryption.key_findings(), encryption.column_findings() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION enc_security_check(), encryption.log_findings(), encryption.connection_findings(),
    encryption.key_findings(), encryption.column_findings() TO pg_monitor;

----------------------------------------------------------------------------------------------------
-- Health: what stops statements on encrypted values now or will, and what is left undone. Nothing here
-- asks a provider. What only requests can show is known of those of all sessions of the server, if the
-- library is preloaded, or else of this session's: the texts say which.
----------------------------------------------------------------------------------------------------

-- Providers, and the logins at them. A provider that is out of reach stops statements only where they
-- need a version that is not here.
CREATE FUNCTION encryption.provider_health(
        OUT check_name text, OUT subject text, OUT status text, OUT detail text, OUT remedy text)
    RETURNS SETOF record
    LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
-- whose is what the texts say of whose knowledge it is.
WITH provider AS MATERIALIZED (
    SELECT *, CASE scope WHEN 'server' THEN 'server' ELSE 'session' END AS whose
      FROM encryption.provider_states()),
held AS MATERIALIZED (SELECT * FROM encryption.key_states() WHERE usable_until > clock_timestamp()),
missing AS (
    SELECT v.provider, count(*) AS versions
      FROM encryption.key_version v
      JOIN encryption.key USING (key_id)
     WHERE v.state IN ('active', 'deprecated')
       AND NOT EXISTS (SELECT FROM held WHERE held.key_name = key.name AND held.key_version = v.version)
     GROUP BY v.provider)
SELECT 'provider', p.provider,
       CASE WHEN p.problem IS NOT NULL OR p.is_open AND missing.versions > 0 THEN 'critical'
            WHEN p.failures > 0 THEN 'warning'
            ELSE 'ok' END,
       CASE WHEN p.problem IS NOT NULL THEN p.problem
            WHEN p.failures > 0
            THEN format('%s failure(s) in a row, the last at %s: %s%s', p.failures,
                        to_char(p.last_failure_at, 'YYYY-MM-DD HH24:MI:SS TZ'), p.last_failure,
                        CASE WHEN p.is_open AND missing.versions > 0
                             THEN format('; %s version(s) of keys are not held by this %s', missing.versions,
                                         p.whose) ELSE '' END)
            ELSE format('no failure since its last answer, as far as this %s knows',
                        p.whose) END,
       CASE WHEN p.problem IS NOT NULL THEN p.hint
            WHEN p.failures > 0 THEN format('SELECT * FROM enc_check_provider(%L);', p.provider) END
  FROM provider p
  LEFT JOIN missing ON missing.provider = p.provider
UNION ALL
SELECT 'provider', 'encryption_ext.provider', 'warning', 'no provider is set: keys can be neither made nor rotated',
       'Set encryption_ext.provider.'
 WHERE coalesce(current_setting('encryption_ext.provider', true), '') = ''
UNION ALL
SELECT 'login', p.provider,
       CASE WHEN p.login_failed THEN 'warning' ELSE 'ok' END,
       CASE WHEN p.login_failed
            THEN format('the last login failed, at %s: %s',
                        to_char(p.last_failure_at, 'YYYY-MM-DD HH24:MI:SS TZ'), p.last_failure)
            ELSE format('no login has failed since the last answer, as far as this %s knows',
                        p.whose) END,
       CASE WHEN p.login_failed
            THEN format('Renew the credentials, and SELECT * FROM enc_check_provider(%L);', p.provider) END
  FROM provider p
 WHERE p.kind NOT IN ('file', 'command')
UNION ALL
-- Tokens in files, which the extension doesn't renew. What renews them does so while a third of their time is left: what
-- has less than a quarter, and was looked up since, was not renewed.
SELECT 'token', t.provider,
       CASE WHEN t.ends_soon THEN 'warning' ELSE 'ok' END,
       CASE WHEN t.token_expires IS NULL
            THEN format('no end of it is known to this %s', t.whose)
            WHEN t.token_expires < clock_timestamp() AND NOT t.ends_soon
            THEN format('it has ended at %s, unless it was renewed; it was looked up last at %s',
                        to_char(t.token_expires, 'YYYY-MM-DD HH24:MI:SS TZ'),
                        to_char(t.token_looked_up, 'YYYY-MM-DD HH24:MI:SS TZ'))
            ELSE format('the token in the file %s at %s',
                        CASE WHEN t.token_expires < clock_timestamp() THEN 'ended' ELSE 'ends' END,
                        to_char(t.token_expires, 'YYYY-MM-DD HH24:MI:SS TZ')) END,
       CASE WHEN t.ends_soon
            THEN 'Put a new token into the token file, or see why what writes the file does not renew it.' END
  FROM (SELECT p.*,
               coalesce(p.token_looked_up > p.token_expires
                        - least(interval '7 days', make_interval(secs => p.token_seconds / 4)), false) AS ends_soon
          FROM provider p WHERE p.has_token_file) t
UNION ALL
-- The certificates of TLS that requests have used: when they end, the provider is out of reach.
SELECT c.check_name, c.provider,
       CASE WHEN c.expires < clock_timestamp() + interval '7 days' THEN 'warning' ELSE 'ok' END,
       CASE WHEN c.expires < clock_timestamp()
            THEN format('%s ended at %s', c.what, to_char(c.expires, 'YYYY-MM-DD HH24:MI:SS TZ'))
            WHEN c.expires IS NOT NULL
            THEN format('%s ends at %s', c.what, to_char(c.expires, 'YYYY-MM-DD HH24:MI:SS TZ'))
            ELSE format('none was used by this %s', CASE c.scope WHEN 'server' THEN 'server' ELSE 'session' END) END,
       CASE WHEN c.expires < clock_timestamp() + interval '7 days' THEN c.remedy END
  FROM (SELECT 'certificate' AS check_name, s.provider, s.scope, 'the certificate of its server' AS what,
               s.certificate_expires AS expires,
               format('Renew it at the server, and SELECT * FROM enc_check_provider(%L);', s.provider) AS remedy
          FROM encryption.provider_statistics() s
         UNION ALL
        SELECT 'client_certificate', s.provider, s.scope, 'the certificate that it is shown',
               s.client_certificate_expires,
               format('Replace the files of the client certificate and its key, and SELECT * FROM enc_check_provider(%L);', s.provider)
          FROM encryption.provider_statistics() s WHERE s.client_certificate_expires IS NOT NULL) c
  JOIN provider p ON p.provider = c.provider
 WHERE p.kind IN ('vault', 'vault_transit', 'aws_kms', 'gcp_kms', 'azure_key_vault', 'kmip')
$$;

-- Each key: that it can encrypt, that what its provider has is the right one, when it is to be rotated,
-- which versions wait for their end, and how long it can be used while its provider is out of reach.
CREATE FUNCTION encryption.key_health(
        OUT check_name text, OUT subject text, OUT status text, OUT detail text, OUT remedy text)
    RETURNS SETOF record
    LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
WITH stat AS MATERIALIZED (
    SELECT *, CASE scope WHEN 'server' THEN 'server' ELSE 'session' END AS whose
      FROM @extschema@.enc_stat_key),
known AS MATERIALIZED (
    SELECT *, CASE scope WHEN 'server' THEN 'server' ELSE 'session' END AS whose
      FROM encryption.key_states()),
failing AS MATERIALIZED (SELECT * FROM encryption.provider_states() WHERE failures > 0)
SELECT 'active_version', s.name,
       CASE WHEN s.active_version IS NULL THEN 'critical' ELSE 'ok' END,
       coalesce('version ' || s.active_version || ' encrypts', 'no version is active: nothing can be encrypted'),
       CASE WHEN s.active_version IS NULL THEN format('SELECT enc_activate_key_version(%L, version);', s.name) END
  FROM stat s
UNION ALL
SELECT 'check_value', s.name,
       CASE WHEN s.check_value_ok THEN 'ok' WHEN NOT s.check_value_ok THEN 'critical' ELSE 'ok' END,
       CASE WHEN s.check_value_ok
            THEN format('the provider has the right key, as far as this %s has fetched it',
                        s.whose)
            WHEN NOT s.check_value_ok
            THEN format('the provider has another key in place of version(s) %s',
                        (SELECT string_agg(k.key_version::text, ', ' ORDER BY k.key_version) FROM known k
                          WHERE k.key_name = s.name AND NOT k.check_value_ok))
            ELSE format('not fetched by this %s', s.whose) END,
       CASE WHEN NOT s.check_value_ok
            THEN format('See that nobody wrote over the key and that the provider is the right one: SELECT * FROM enc_check_key(%L);', s.name) END
  FROM stat s
UNION ALL
SELECT 'rotation', s.name,
       CASE WHEN s.is_overdue THEN 'warning' ELSE 'ok' END,
       CASE WHEN s.is_overdue THEN format('it was due at %s', to_char(s.rotation_due, 'YYYY-MM-DD HH24:MI:SS TZ'))
            WHEN s.rotation_due IS NOT NULL THEN format('it is due at %s', to_char(s.rotation_due, 'YYYY-MM-DD HH24:MI:SS TZ'))
            WHEN s.rotation_period IS NOT NULL THEN 'no version is active'
            ELSE 'no rotation period is set' END,
       CASE WHEN s.is_overdue THEN format('SELECT enc_rotate_key(%L); CALL enc_rotate_all(%1$L);', s.name) END
  FROM stat s
UNION ALL
-- The grace period that enc_destroy_key_version has unless it is given another.
SELECT 'grace', k.name,
       CASE WHEN ended.versions IS NULL THEN 'ok' ELSE 'warning' END,
       CASE WHEN ended.versions IS NULL THEN 'no version that was replaced is kept for longer than 90 days'
            ELSE format('version(s) %s were replaced more than 90 days ago, and can still decrypt',
                        array_to_string(ended.versions, ', ')) END,
       CASE WHEN ended.versions IS NOT NULL
            THEN format('CALL enc_rotate_all(%L); SELECT * FROM enc_verify_version_unused(%1$L, %2$s); SELECT enc_destroy_key_version(%1$L, %2$s);',
                        k.name, ended.versions[1]) END
  FROM encryption.key k
 CROSS JOIN LATERAL (
        SELECT array_agg(v.version ORDER BY v.version) AS versions
          FROM encryption.key_version v
         WHERE v.key_id = k.key_id AND v.state IN ('deprecated', 'disabled')
           AND v.deprecated_at < now() - interval '90 days') ended
UNION ALL
-- Versions that are not destroyed, at a provider that drops the oldest. A version that it has dropped stops the
-- reading of what is under it; spare is how many versions can be made until the first one is dropped.
SELECT 'retention', k.name,
       CASE WHEN kept.stops_reading THEN 'critical'
            WHEN kept.missing IS NOT NULL OR kept.spare <= 2 THEN 'warning'
            ELSE 'ok' END,
       CASE WHEN kept.missing IS NOT NULL
            THEN format('the provider does not have version(s) %s, which are not destroyed', kept.missing)
            WHEN kept.spare <= 2
            THEN format('the provider keeps %s versions: %s more can be made until it drops version %s, which is not destroyed',
                        kept.max_versions, greatest(kept.spare, 0), kept.oldest)
            WHEN kept.spare IS NOT NULL
            THEN format('%s more versions can be made until the provider drops version %s', kept.spare, kept.oldest)
            ELSE format('no limit is known to this %s', coalesce(kept.whose, 'session')) END,
       CASE WHEN kept.missing IS NOT NULL
            THEN format('Restore them at the provider from its backup, and SELECT * FROM enc_check_key(%L);', k.name)
            WHEN kept.spare <= 2
            THEN format('Have the provider keep more (bao kv metadata put -max-versions=1000, and the secret), and SELECT * FROM enc_check_key(%L); or destroy old versions: CALL enc_rotate_all(%1$L); SELECT * FROM enc_verify_version_unused(%1$L, %2$s); SELECT enc_destroy_key_version(%1$L, %2$s);',
                        k.name, kept.oldest) END
  FROM encryption.key k
 CROSS JOIN LATERAL (
        SELECT max(known.whose) AS whose,
               string_agg(v.version::text, ', ' ORDER BY v.version) FILTER (WHERE known.is_missing) AS missing,
               bool_or(known.is_missing AND v.state IN ('active', 'deprecated')) AS stops_reading,
               min(v.version) FILTER (WHERE known.newer_versions IS NOT NULL) AS oldest,
               max(known.provider_max_versions) AS max_versions,
               min(known.provider_max_versions - 1 - known.newer_versions) AS spare
          FROM encryption.key_version v
          JOIN known ON known.key_name = k.name AND known.key_version = v.version
         WHERE v.key_id = k.key_id AND v.state <> 'destroyed') kept
UNION ALL
SELECT 'cache', k.name,
       CASE WHEN held.provider IS NULL THEN 'ok'
            WHEN held.usable_until <= clock_timestamp() THEN 'critical'
            ELSE 'warning' END,
       CASE WHEN held.provider IS NULL
            THEN format('no provider of a version that this %s holds is failing',
                        coalesce((SELECT max(whose) FROM known), 'session'))
            ELSE format('provider "%s" has been failing; at this rate statements fail from %s', held.provider,
                        to_char(held.usable_until, 'YYYY-MM-DD HH24:MI:SS TZ')) END,
       CASE WHEN held.provider IS NOT NULL
            THEN format('Bring the provider back: SELECT * FROM enc_check_provider(%L); or gain time before that: raise encryption_ext.cache_stale_grace, and reload.',
                        held.provider) END
  FROM encryption.key k
  LEFT JOIN LATERAL (
        SELECT v.provider, known.usable_until
          FROM encryption.key_version v
          JOIN known ON known.key_name = k.name AND known.key_version = v.version
          JOIN failing ON failing.provider = v.provider
         WHERE v.key_id = k.key_id AND v.state IN ('active', 'deprecated') AND known.usable_until IS NOT NULL
         ORDER BY known.usable_until LIMIT 1) held ON true
$$;

-- Jobs that nobody goes on with, and the catalog as a whole.
CREATE FUNCTION encryption.work_health(
        OUT check_name text, OUT subject text, OUT status text, OUT detail text, OUT remedy text)
    RETURNS SETOF record
    LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
WITH job AS MATERIALIZED (
    SELECT j.job_id, j.kind, j.state, j.key_name, j.last_error, j.table_id, j.column_name,
           coalesce((SELECT c.oid::regclass::text FROM pg_class c WHERE c.oid = j.table_id), j.table_name) AS table_name,
           greatest(j.changed_at, ranges.changed_at) AS changed_at,
           CASE WHEN j.state IN ('failed', 'incomplete') THEN 'it ended: ' || coalesce(j.last_error, j.state)
                WHEN j.state = 'paused' THEN 'it waits for a provider: ' || coalesce(j.last_error, '')
                WHEN j.state = 'running' AND coalesce(ranges.are_left, j.kind = 'rotate')
                     AND greatest(j.changed_at, ranges.changed_at) < clock_timestamp() - interval '10 minutes'
                THEN format('no progress since %s',
                            to_char(greatest(j.changed_at, ranges.changed_at), 'YYYY-MM-DD HH24:MI:SS TZ')) END AS problem
      FROM encryption.job j
      LEFT JOIN LATERAL (
            SELECT max(r.changed_at) AS changed_at, bool_or(r.next_block < r.end_block) AS are_left
              FROM encryption.job_range r WHERE r.job_id = j.job_id) ranges ON true
     WHERE j.state NOT IN ('completed', 'canceled'))
SELECT 'job', format('job %s, column "%s" of %s', j.job_id, j.column_name, j.table_name),
       CASE WHEN j.problem IS NULL THEN 'ok' ELSE 'warning' END,
       coalesce(j.problem, format('%s; it went on at %s', j.state, to_char(j.changed_at, 'YYYY-MM-DD HH24:MI:SS TZ'))),
       CASE WHEN j.problem IS NULL THEN NULL
            WHEN j.kind = 'rotate' THEN format('CALL enc_rotate_column(%L, %L); goes on where it was.', j.table_name, j.column_name)
            ELSE format('Repeat the call of enc_%s_column for %s: it goes on where it was.', j.kind, j.table_name) END
  FROM job j
UNION ALL
SELECT 'job', 'all', 'ok', 'no job is unfinished', NULL WHERE NOT EXISTS (SELECT FROM job)
UNION ALL
SELECT 'catalog', 'restored', CASE WHEN why IS NULL THEN 'ok' ELSE 'warning' END,
       coalesce('the catalog of keys may be older than the keys: ' || why, 'the catalog is that of this server'),
       CASE WHEN why IS NOT NULL THEN 'SELECT * FROM enc_reconcile();' END
  FROM encryption.restored_from() why
UNION ALL
SELECT 'catalog', 'lifecycle log', CASE WHEN sum(entries - sealed) > 0 THEN 'warning' ELSE 'ok' END,
       CASE WHEN sum(entries - sealed) > 0
            THEN format('%s entries have no digest, since the key "database" could not be had', sum(entries - sealed))
            ELSE 'every entry has its digest' END,
       CASE WHEN sum(entries - sealed) > 0
            THEN 'Repair the provider of the key "database": the next entry seals these too.' END
  FROM encryption.event_chain WHERE restored_at IS NULL
$$;

-- Keys whose rotation is scheduled.
CREATE FUNCTION encryption.schedule_health(
        OUT check_name text, OUT subject text, OUT status text, OUT detail text, OUT remedy text)
    RETURNS SETOF record
    LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
WITH schedule AS MATERIALIZED (
    SELECT s.*,
           CASE WHEN NOT s.is_enabled THEN 'it came with a dump, and waits until somebody confirms it'
                WHEN NOT pg_has_role(s.scheduled_by::oid, k.owner::oid, 'USAGE')
                THEN format('role "%s", which scheduled it, is not an owner of the key', pg_get_userbyid(s.scheduled_by))
                WHEN s.last_error IS NOT NULL
                THEN format('it failed at %s: %s', to_char(s.last_error_at, 'YYYY-MM-DD HH24:MI:SS TZ'), s.last_error)
                WHEN s.rotation_period IS NULL THEN 'the key has no rotation period'
                WHEN s.rotation_due < clock_timestamp() - interval '1 hour'
                THEN format('it has been due since %s, and nobody calls enc_run_due_rotations()',
                            to_char(s.rotation_due, 'YYYY-MM-DD HH24:MI:SS TZ'))
                WHEN s.reencrypt_to IS NOT NULL AND NOT s.is_being_reencrypted
                     AND w.worker_started_at < clock_timestamp() - interval '1 minute'
                THEN format('the re-encryption under version %s has ended early', s.reencrypt_to) END AS problem
      FROM @extschema@.enc_scheduled_rotations s
      JOIN encryption.key k ON k.name = s.name
      LEFT JOIN encryption.scheduled_work w ON w.key_id = k.key_id)
SELECT 'schedule', s.name, CASE WHEN s.problem IS NULL THEN 'ok' ELSE 'warning' END,
       coalesce(s.problem,
                CASE WHEN s.is_being_reencrypted THEN format('values are being encrypted again under version %s', s.reencrypt_to)
                     ELSE format('it is due at %s', to_char(s.rotation_due, 'YYYY-MM-DD HH24:MI:SS TZ')) END),
       CASE WHEN s.problem IS NULL THEN NULL
            WHEN NOT s.is_enabled THEN format('SELECT enc_schedule_rotation(%L); or SELECT enc_unschedule_rotation(%1$L);', s.name)
            WHEN s.problem LIKE 'the re-encryption%' THEN format('See the server log and enc_stat_progress_rotate. CALL enc_rotate_all(%L); goes on.', s.name)
            WHEN s.problem LIKE '%nobody calls%' THEN 'Have CALL enc_run_due_rotations(); executed every minute, by pg_cron for example.'
            WHEN s.problem LIKE 'the key has no%' THEN format('SELECT enc_schedule_rotation(%L, period);', s.name)
            WHEN s.last_error IS NOT NULL AND s.problem LIKE 'it failed%' THEN 'Remove the cause: the next call of enc_run_due_rotations() tries again.'
            ELSE format('Have an owner of the key schedule it: SELECT enc_schedule_rotation(%L);', s.name) END
  FROM schedule s
UNION ALL
SELECT 'schedule', 'all', 'ok', 'no rotation is scheduled', NULL WHERE NOT EXISTS (SELECT FROM schedule)
$$;

CREATE FUNCTION enc_health(
        OUT check_name text, OUT subject text, OUT status text, OUT detail text, OUT remedy text)
    RETURNS SETOF record
    LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET jit = off AS $$
SELECT * FROM (
    SELECT * FROM encryption.provider_health() UNION ALL
    SELECT * FROM encryption.key_health() UNION ALL
    SELECT * FROM encryption.work_health() UNION ALL
    SELECT * FROM encryption.schedule_health()) checks
 ORDER BY array_position(ARRAY['critical', 'warning', 'ok'], status), check_name, subject
$$;
COMMENT ON FUNCTION enc_health() IS
    'whether keys and providers are as they should be, a row for each check: critical is what stops statements';

CREATE FUNCTION enc_ready() RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    failing text;
BEGIN
    SELECT string_agg(format('%s of %s: %s.', h.check_name, h.subject, h.detail), E'\n') INTO failing
      FROM @extschema@.enc_health() h WHERE h.status = 'critical';
    IF failing IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'KE141',
            MESSAGE = 'statements on encrypted values fail',
            DETAIL = failing,
            HINT = 'SELECT * FROM enc_health() has remedies.';
    END IF;
    RETURN true;
END $$;
COMMENT ON FUNCTION enc_ready() IS 'true, or an error if enc_health() has a critical row: for readiness probes';

REVOKE EXECUTE ON FUNCTION enc_health(), enc_ready(), encryption.provider_health(), encryption.key_health(),
    encryption.work_health(), encryption.schedule_health() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION enc_health(), enc_ready() TO pg_monitor;

----------------------------------------------------------------------------------------------------
-- Evidence: one report for an auditor, of keys as they are now and of what was done to them in a time.
----------------------------------------------------------------------------------------------------

-- The versions of a key, and what became of it in a time, as part of enc_evidence.
CREATE FUNCTION encryption.evidence_of_keys(since timestamptz, until timestamptz) RETURNS jsonb
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
SELECT coalesce(jsonb_agg(jsonb_build_object(
           'name', k.name,
           'protects', k.protects,
           'owner', pg_get_userbyid(k.owner),
           'purpose', k.purpose,
           'labels', to_jsonb(k.labels),
           'created_at', k.created_at,
           'active_version', s.active_version,
           'active_since', s.active_since,
           'age_days', round((extract(epoch FROM s.age) / 86400)::numeric, 1),
           'rotation_period', k.rotation_period::text,
           'rotation_due', s.rotation_due,
           'is_overdue', s.is_overdue,
           'schedule', (
               SELECT jsonb_build_object(
                          'is_enabled', r.is_enabled, 'auto_reencrypt', r.auto_reencrypt,
                          'scheduled_by', pg_get_userbyid(r.scheduled_by), 'scheduled_at', r.scheduled_at,
                          'rotated_at', r.rotated_at, 'last_error', r.last_error)
                 FROM @extschema@.enc_scheduled_rotations r WHERE r.name = k.name),
           'rotations', (
               SELECT coalesce(jsonb_agg(jsonb_build_object(
                          'at', e.occurred_at, 'action', e.action, 'old_version', e.old_version,
                          'new_version', e.new_version, 'by', e.role_name, 'reason', e.reason)
                          ORDER BY e.occurred_at, e.sequence), '[]')
                 FROM encryption.key_event e
                WHERE e.key_name = k.name AND e.action IN ('rotate', 'activate')
                  AND e.occurred_at >= since AND e.occurred_at < until),
           'versions', (
               SELECT coalesce(jsonb_agg(jsonb_build_object(
                          'version', v.version, 'state', v.state, 'provider', v.provider,
                          'created_at', v.created_at, 'created_by', pg_get_userbyid(v.created_by),
                          'activated_at', v.activated_at, 'deprecated_at', v.deprecated_at,
                          'age_days', round((extract(epoch FROM now() - v.created_at) / 86400)::numeric, 1),
                          'check_value', encode(v.check_value, 'hex'))
                          ORDER BY v.version), '[]')
                 FROM encryption.key_version v WHERE v.key_id = k.key_id),
           'proofs', (
               SELECT coalesce(jsonb_agg(jsonb_build_object(
                          'version', p.version, 'is_unused', p.is_unused, 'verified_at', p.verified_at,
                          'verified_by', p.verified_by, 'findings', p.findings)
                          ORDER BY p.verified_at), '[]')
                 FROM encryption.version_proof p
                WHERE p.key_id = k.key_id AND p.verified_at >= since AND p.verified_at < until),
           'grants', (
               SELECT coalesce(jsonb_agg(jsonb_build_object(
                          'grantee', g.grantee, 'privilege', g.privilege,
                          'granted_by', pg_get_userbyid(g.granted_by), 'granted_at', g.granted_at)
                          ORDER BY g.grantee, g.privilege), '[]')
                 FROM @extschema@.enc_key_grants g WHERE g.name = k.name))
           ORDER BY k.name), '[]')
  FROM @extschema@.enc_keys k
  JOIN @extschema@.enc_stat_key s ON s.name = k.name
$$;

-- The entries of the lifecycle log of a time, and whether the chains that they are in are whole.
CREATE FUNCTION encryption.evidence_of_log(since timestamptz, until timestamptz, verify boolean) RETURNS jsonb
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    chains jsonb;
BEGIN
    IF verify THEN
        SELECT coalesce(jsonb_agg(jsonb_build_object(
                   'chain', c.chain, 'restored', c.restored, 'entries', c.entries, 'unsealed', c.unsealed,
                   'ok', c.ok, 'first_wrong', c.first_wrong, 'problem', c.problem)), '[]')
          INTO chains FROM @extschema@.enc_verify_log() c;
    END IF;
    RETURN jsonb_build_object(
        'is_verified', verify,
        'chains', coalesce(chains, '[]'),
        'entries', (
            SELECT coalesce(jsonb_agg(jsonb_build_object(
                       'chain', e.chain, 'sequence', e.sequence, 'at', e.occurred_at, 'action', e.action,
                       'key', e.key_name, 'old_version', e.old_version, 'new_version', e.new_version,
                       'rows', e.row_count, 'reason', e.reason, 'detail', e.detail, 'role', e.role_name,
                       'session_role', e.session_role_name, 'client_address', e.client_address,
                       'application_name', e.application_name, 'digest', encode(e.digest, 'hex'))
                       ORDER BY c.restored_at NULLS LAST, e.chain, e.sequence), '[]')
              FROM encryption.key_event e
              LEFT JOIN encryption.event_chain c ON c.chain = e.chain
             WHERE e.occurred_at >= since AND e.occurred_at < until));
END $$;

CREATE FUNCTION enc_evidence("from" timestamptz, "to" timestamptz, verify_log boolean DEFAULT true) RETURNS jsonb
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp SET timezone = 'UTC' SET datestyle = 'ISO' SET intervalstyle = 'postgres' SET jit = off AS $$
BEGIN
    IF "from" IS NULL OR "to" IS NULL OR "from" >= "to" OR verify_log IS NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = 'the time of a report must begin before it ends',
            HINT = 'Give its begin, and its end, which is not part of it.';
    END IF;
    RETURN jsonb_build_object(
        'format', 1,
        'generated_at', now(),
        'generated_by', session_user,
        'from', "from",
        'to', "to",
        'database', current_database(),
        'system_identifier', (SELECT c.system_identifier::text FROM pg_control_system() c),
        'in_recovery', pg_is_in_recovery(),
        'server_version', current_setting('server_version'),
        'extension_version', (SELECT e.extversion FROM pg_extension e WHERE e.extname = 'encryption_ext'),
        'not_shown', to_jsonb(ARRAY[
            'Keys, versions, grants, columns and findings are those of the moment at which the report was made; rotations, proofs and the log are those of its time.',
            'It is about this database alone. Other databases, copies, exports and backups are not in it.',
            'Likely personal data is found by the names of columns of tables, and only in columns of text, varchar, char and bytea. Nothing was read. Columns with other names or types, json among them, may hold personal data too.',
            'Who read or wrote which values is in the audit (encryption_ext.audit) in the server log, not here.',
            'How the provider makes, keeps and destroys keys, and who administers it, is for the provider to show.',
            'Superusers pass every check on keys. The log shows what was altered by somebody without the key "database"; compare its digests with those in the server log, kept elsewhere, for the rest.',
            'That a version is unused is proved for this database, up to the moment of the proof; what a proof does not cover is in its findings.',
            'No validation of the cryptography, such as FIPS 140-3, is claimed.']),
        'keys', encryption.evidence_of_keys("from", "to"),
        'superusers', (SELECT coalesce(jsonb_agg(r.rolname ORDER BY r.rolname), '[]') FROM pg_roles r WHERE r.rolsuper),
        'encrypted_columns', (
            SELECT coalesce(jsonb_agg(jsonb_build_object(
                       'table', c.table_name, 'column', c.column_name, 'type', format_type(c.type_id, NULL),
                       'key', k.name, 'is_generated', c.is_generated)
                       ORDER BY c.table_name, c.column_number, k.name), '[]')
              FROM encryption.encrypted_column c
              LEFT JOIN encryption.key k ON k.key_id = c.key_id
             WHERE NOT c.is_temporary_elsewhere),
        'likely_personal_data', (
            SELECT coalesce(jsonb_agg(jsonb_build_object('column', f.object, 'finding', f.finding) ORDER BY f.object), '[]')
              FROM encryption.column_findings() f WHERE f.check_name = 'plaintext_column'),
        'findings', (
            SELECT coalesce(jsonb_agg(jsonb_build_object(
                       'check', f.check_name, 'severity', f.severity, 'object', f.object,
                       'finding', f.finding, 'remedy', f.remedy)), '[]')
              FROM @extschema@.enc_security_check() f WHERE f.check_name <> 'plaintext_column'),
        'log', encryption.evidence_of_log("from", "to", verify_log));
END $$;
COMMENT ON FUNCTION enc_evidence(timestamptz, timestamptz, boolean) IS
    'a report for an auditor: keys, rotations, proofs, grants, columns, findings, and the lifecycle log of a time';

-- A value in a cell of a table, so that nothing in it is taken for markup.
CREATE FUNCTION encryption.markdown_cell(value jsonb) RETURNS text
    LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
SELECT regexp_replace(
           regexp_replace(
               CASE jsonb_typeof(value)
                   WHEN 'null' THEN ''
                   WHEN 'array' THEN (SELECT coalesce(string_agg(e, ', '), '') FROM jsonb_array_elements_text(value) e)
                   WHEN 'boolean' THEN CASE value::text WHEN 'true' THEN 'yes' ELSE 'no' END
                   ELSE value #>> '{}' END,
               '[[:cntrl:]]+', ' ', 'g'),
           '([\\`*|<>&\[\]~])', '\\\1', 'g')
$$;

-- Rows as a table with these columns, whose headings are their names.
CREATE FUNCTION encryption.markdown_table(lines jsonb, columns text[]) RETURNS text
    LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
SELECT CASE WHEN lines IS NULL OR lines = '[]' THEN E'None.\n'
            ELSE format(E'| %s |\n|%s\n', replace(array_to_string(columns, ' | '), '_', ' '),
                        repeat(' --- |', cardinality(columns)))
                 || (SELECT string_agg(format(E'| %s |\n', (
                         SELECT string_agg(coalesce(encryption.markdown_cell(line -> name), ''), ' | ' ORDER BY n)
                           FROM unnest(columns) WITH ORDINALITY AS c (name, n))), '' ORDER BY number)
                       FROM jsonb_array_elements(lines) WITH ORDINALITY AS l (line, number)) END
$$;

CREATE FUNCTION enc_evidence_markdown("from" timestamptz, "to" timestamptz, verify_log boolean DEFAULT true) RETURNS text
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET jit = off AS $$
DECLARE
    report jsonb := @extschema@.enc_evidence("from", "to", verify_log);
    -- What keys have a list of, a row for each of its elements with the key's name.
    of_keys jsonb := (
        SELECT coalesce(jsonb_object_agg(part.name, part.lines), '{}')
          FROM (SELECT list.name, jsonb_agg(jsonb_build_object('key', k -> 'name') || line) AS lines
                  FROM jsonb_array_elements(report -> 'keys') k
                 CROSS JOIN unnest(ARRAY['versions', 'rotations', 'proofs', 'grants']) AS list (name)
                 CROSS JOIN LATERAL jsonb_array_elements(k -> list.name) line
                 GROUP BY list.name) part);
BEGIN
    RETURN format(E'# Encryption of database %s\n\n', encryption.markdown_cell(report -> 'database'))
        || encryption.markdown_table(jsonb_build_array(report),
               ARRAY['from', 'to', 'generated_at', 'generated_by', 'system_identifier', 'in_recovery', 'server_version', 'extension_version'])
        || E'\n## What this report does not show\n\n'
        || (SELECT string_agg(format(E'* %s\n', encryption.markdown_cell(line)), '')
              FROM jsonb_array_elements(report -> 'not_shown') line)
        || E'\n## Keys\n\n'
        || encryption.markdown_table(report -> 'keys',
               ARRAY['name', 'protects', 'owner', 'purpose', 'labels', 'active_version', 'active_since', 'age_days',
                     'rotation_period', 'rotation_due', 'is_overdue'])
        || E'\n## Versions\n\n'
        || encryption.markdown_table(of_keys -> 'versions',
               ARRAY['key', 'version', 'state', 'provider', 'created_at', 'created_by', 'activated_at', 'deprecated_at', 'age_days', 'check_value'])
        || E'\n## Rotations in this time\n\n'
        || encryption.markdown_table(of_keys -> 'rotations', ARRAY['key', 'at', 'action', 'old_version', 'new_version', 'by', 'reason'])
        || E'\n## Proofs that versions are unused\n\n'
        || encryption.markdown_table(of_keys -> 'proofs', ARRAY['key', 'version', 'is_unused', 'verified_at', 'verified_by', 'findings'])
        || E'\n## Who may use keys\n\n'
        || format(E'Owners of keys, members of their roles, and superusers (%s) may do everything with them.\n\n',
                  encryption.markdown_cell(report -> 'superusers'))
        || encryption.markdown_table(of_keys -> 'grants', ARRAY['key', 'grantee', 'privilege', 'granted_by', 'granted_at'])
        || E'\n## Encrypted columns\n\n'
        || encryption.markdown_table(report -> 'encrypted_columns', ARRAY['table', 'column', 'type', 'key', 'is_generated'])
        || E'\n## Likely personal data that is not encrypted\n\n'
        || encryption.markdown_table(report -> 'likely_personal_data', ARRAY['column', 'finding'])
        || E'\n## Findings of the security check\n\n'
        || encryption.markdown_table(report -> 'findings', ARRAY['check', 'severity', 'object', 'finding', 'remedy'])
        || E'\n## Lifecycle log\n\n'
        || CASE WHEN verify_log THEN encryption.markdown_table(report #> '{log,chains}',
                         ARRAY['chain', 'restored', 'entries', 'unsealed', 'ok', 'first_wrong', 'problem'])
                ELSE E'The chains were not verified.\n' END
        || E'\n'
        || encryption.markdown_table(report #> '{log,entries}',
               ARRAY['chain', 'sequence', 'at', 'action', 'key', 'old_version', 'new_version', 'rows', 'reason', 'detail',
                     'role', 'session_role', 'client_address', 'application_name']);
END $$;
COMMENT ON FUNCTION enc_evidence_markdown(timestamptz, timestamptz, boolean) IS 'what enc_evidence returns, as Markdown';

REVOKE EXECUTE ON FUNCTION enc_evidence(timestamptz, timestamptz, boolean),
    enc_evidence_markdown(timestamptz, timestamptz, boolean),
    encryption.evidence_of_keys(timestamptz, timestamptz),
    encryption.evidence_of_log(timestamptz, timestamptz, boolean) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION enc_evidence(timestamptz, timestamptz, boolean),
    enc_evidence_markdown(timestamptz, timestamptz, boolean) TO pg_monitor;

----------------------------------------------------------------------------------------------------
-- What must not be declared is refused when it is.
----------------------------------------------------------------------------------------------------

-- It looks up a few rows of the catalogs, by their indexes; the planner would expect more.
CREATE FUNCTION encryption.check_ddl() RETURNS event_trigger
    LANGUAGE c SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET jit = off
    AS 'MODULE_PATHNAME', 'encryption_check_ddl';
-- With the caller's search path, since it looks for the table of a CREATE INDEX as the command will.
CREATE FUNCTION encryption.prepare_ddl() RETURNS event_trigger
    LANGUAGE c AS 'MODULE_PATHNAME', 'encryption_prepare_ddl';

-- Every command that may make or change a table, a type, an index or a statistics object. ALTER
-- EXTENSION is what pg_upgrade runs last: see src/ddl/analyze.rs, and for DROP too.
CREATE EVENT TRIGGER encryption_ext_check_ddl ON ddl_command_end
    WHEN TAG IN ('CREATE TABLE', 'CREATE TABLE AS', 'SELECT INTO', 'ALTER TABLE',
                 'CREATE FOREIGN TABLE', 'ALTER FOREIGN TABLE', 'IMPORT FOREIGN SCHEMA',
                 'CREATE MATERIALIZED VIEW', 'ALTER MATERIALIZED VIEW', 'CREATE VIEW',
                 'CREATE TYPE', 'ALTER TYPE', 'CREATE DOMAIN', 'ALTER DOMAIN', 'CREATE SCHEMA',
                 'CREATE INDEX', 'CREATE STATISTICS', 'ALTER STATISTICS',
                 'DROP TYPE', 'DROP DOMAIN', 'ALTER EXTENSION')
    EXECUTE FUNCTION encryption.check_ddl();
ALTER EVENT TRIGGER encryption_ext_check_ddl ENABLE ALWAYS;

-- What can't wait for the command's end: CREATE INDEX CONCURRENTLY, the end of the extension, and the text
-- that PostgreSQL stores of a domain's default.
CREATE EVENT TRIGGER encryption_ext_prepare_ddl ON ddl_command_start
    WHEN TAG IN ('CREATE INDEX', 'CREATE DOMAIN', 'ALTER DOMAIN', 'DROP EXTENSION', 'DROP SCHEMA', 'DROP OWNED')
    EXECUTE FUNCTION encryption.prepare_ddl();
ALTER EVENT TRIGGER encryption_ext_prepare_ddl ENABLE ALWAYS;
