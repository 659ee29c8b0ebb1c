-- encryption_ext 0.1.0
--
-- The catalog of keys is in schema "encryption". Types, functions, operators and views go into the
-- schema that CREATE EXTENSION names.

\echo Use "CREATE EXTENSION encryption_ext" to load this file. \quit

----------------------------------------------------------------------------------------------------
-- Catalog: which keys and versions exist, and who may use them. It holds no usable secret. It is
-- changed by the functions below alone, and read by the library with system-table scans, which
-- rely on the order of the columns.
----------------------------------------------------------------------------------------------------

CREATE SCHEMA encryption;

-- The random id of this database, part of every version's encryption context.
CREATE TABLE encryption.keyspace (
    singleton   boolean     NOT NULL DEFAULT true PRIMARY KEY CHECK (singleton),
    id          uuid        NOT NULL DEFAULT gen_random_uuid(),
    created_at  timestamptz NOT NULL DEFAULT now(),
    -- The version of the database key whose digests indexes and generated columns hold. Rotating
    -- the key leaves it, and with it every index, as it is; enc_rotate_digest() changes it.
    digest_version integer  CHECK (digest_version > 0)
);
COMMENT ON TABLE encryption.keyspace IS
    'the random id of this database, and the version of the database key that digests are made with';

INSERT INTO encryption.keyspace DEFAULT VALUES;

-- A key's id is the first four bytes of SHA-256(name) with the top bit cleared. It is what a
-- column's type modifier and a value's header have.
CREATE TABLE encryption.key (
    key_id      integer     NOT NULL PRIMARY KEY,
    name        text        COLLATE "C" NOT NULL UNIQUE
                            CHECK (name ~ '^[a-z0-9][a-z0-9_.-]{0,62}$'),
    owner       regrole     NOT NULL,
    created_at  timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT key_id_is_of_name CHECK (
        -- The name is ASCII without backslashes, so its bytes are the same in every encoding.
        key_id = ('x' || encode(substr(sha256(name::bytea), 1, 4), 'hex'))::bit(32)::integer
                 & 2147483647)
);
COMMENT ON TABLE encryption.key IS 'keys';

-- A version's bytes come from its provider, by the reference, or by unwrapping what is stored here.
-- The check value tells whether what the provider returned is the right key.
CREATE TABLE encryption.key_version (
    key_id        integer     NOT NULL REFERENCES encryption.key,
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
    key_id      integer     NOT NULL REFERENCES encryption.key,
    grantee     regrole     NOT NULL,
    privilege   text        NOT NULL CHECK (privilege IN ('encrypt', 'compare', 'decrypt')),
    granted_by  regrole     NOT NULL,
    granted_at  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (key_id, grantee, privilege)
);
COMMENT ON TABLE encryption.key_grant IS 'who may do what with a key, apart from its owner';

-- Names instead of references: an entry outlives what it tells of.
CREATE TABLE encryption.key_event (
    event_id          uuid        NOT NULL DEFAULT gen_random_uuid() PRIMARY KEY,
    occurred_at       timestamptz NOT NULL DEFAULT clock_timestamp(),
    action            text        NOT NULL,
    key_name          text        NOT NULL,
    version           integer,
    detail            text,
    role_name         name        NOT NULL,
    session_role_name name        NOT NULL
);
COMMENT ON TABLE encryption.key_event IS 'lifecycle log: what was done to keys, when and by whom';

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
    -- What is done with it: walk (change the rows of these blocks), or check (see with one snapshot
    -- what is left in the whole table; its blocks are 0 to 1).
    step          text        NOT NULL CHECK (step IN ('walk', 'check')),
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

-- A dump of the database carries the catalog.
SELECT pg_extension_config_dump('encryption.keyspace', '');
SELECT pg_extension_config_dump('encryption.key', '');
SELECT pg_extension_config_dump('encryption.key_version', '');
SELECT pg_extension_config_dump('encryption.key_grant', '');
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
        RETURN new;
    END IF;
    -- The id that CREATE EXTENSION drew gives way while no version was made in it (restored ones
    -- carry the id that they were made in). Otherwise this database goes on with its own.
    IF NOT EXISTS (SELECT FROM encryption.key_version v JOIN encryption.keyspace k ON k.id = v.keyspace) THEN
        UPDATE encryption.keyspace
           SET id = new.id, created_at = new.created_at, digest_version = new.digest_version;
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

CREATE FUNCTION encryption.restore_key_event() RETURNS trigger
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF EXISTS (SELECT FROM encryption.key_event present WHERE present.event_id = new.event_id) THEN
        RETURN NULL;
    END IF;
    RETURN new;
END $$;

CREATE TRIGGER restore BEFORE INSERT ON encryption.keyspace
    FOR EACH ROW EXECUTE FUNCTION encryption.restore_keyspace();
CREATE TRIGGER restore BEFORE INSERT ON encryption.key
    FOR EACH ROW EXECUTE FUNCTION encryption.restore_key();
CREATE TRIGGER restore BEFORE INSERT ON encryption.key_version
    FOR EACH ROW EXECUTE FUNCTION encryption.restore_key_version();
CREATE TRIGGER restore BEFORE INSERT ON encryption.key_grant
    FOR EACH ROW EXECUTE FUNCTION encryption.restore_key_grant();
CREATE TRIGGER restore BEFORE INSERT ON encryption.key_event
    FOR EACH ROW EXECUTE FUNCTION encryption.restore_key_event();

ALTER TABLE encryption.keyspace    ENABLE ALWAYS TRIGGER restore;
ALTER TABLE encryption.key         ENABLE ALWAYS TRIGGER restore;
ALTER TABLE encryption.key_version ENABLE ALWAYS TRIGGER restore;
ALTER TABLE encryption.key_grant   ENABLE ALWAYS TRIGGER restore;
ALTER TABLE encryption.key_event   ENABLE ALWAYS TRIGGER restore;

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
    LANGUAGE c STABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'encrypted_text_coerce';
CREATE FUNCTION encrypted_text(text, integer, boolean) RETURNS encrypted_text
    LANGUAGE c STABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'encrypted_text_from_text';
CREATE FUNCTION encrypted_text(varchar, integer, boolean) RETURNS encrypted_text
    LANGUAGE c STABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'encrypted_text_from_text';
CREATE FUNCTION encrypted_text(bpchar, integer, boolean) RETURNS encrypted_text
    LANGUAGE c STABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'encrypted_text_from_bpchar';
CREATE FUNCTION encrypted_text(name, integer, boolean) RETURNS encrypted_text
    LANGUAGE c STABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'encrypted_text_from_name';

CREATE FUNCTION encrypted_text_to_text(encrypted_text) RETURNS text
    LANGUAGE c STABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME';
CREATE FUNCTION encrypted_text_to_varchar(encrypted_text) RETURNS varchar
    LANGUAGE c STABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'encrypted_text_to_text';
CREATE FUNCTION encrypted_text_to_bpchar(encrypted_text) RETURNS bpchar
    LANGUAGE c STABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME';
CREATE FUNCTION encrypted_text_to_name(encrypted_text) RETURNS name
    LANGUAGE c STABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME';

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
    LANGUAGE c STABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'encrypted_bytea_coerce';
CREATE FUNCTION encrypted_bytea(bytea, integer, boolean) RETURNS encrypted_bytea
    LANGUAGE c STABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'encrypted_bytea_from_bytea';
CREATE FUNCTION encrypted_bytea_to_bytea(encrypted_bytea) RETURNS bytea
    LANGUAGE c STABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME';

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

CREATE FUNCTION enc_rotate_digest() RETURNS integer
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
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

    INSERT INTO encryption.key_event (action, key_name, version, role_name, session_role_name)
    VALUES ('rotate digest', 'database', wanted, current_user, session_user);
    RETURN wanted;
END $$;
COMMENT ON FUNCTION enc_rotate_digest() IS
    'makes digests with the active version of the database key from now on: locks and rewrites all that holds digests; returns the version';
REVOKE EXECUTE ON FUNCTION enc_rotate_digest() FROM PUBLIC;

----------------------------------------------------------------------------------------------------
-- Keys. These functions check by themselves that the caller owns the key, and refuse nulls.
----------------------------------------------------------------------------------------------------

CREATE FUNCTION enc_create_key(name text, if_not_exists boolean DEFAULT false) RETURNS integer
    LANGUAGE c SET search_path = pg_catalog, pg_temp AS 'MODULE_PATHNAME';
COMMENT ON FUNCTION enc_create_key(text, boolean) IS
    'makes a key, or adopts the versions of it that the provider has; returns the active version';
-- There is no owner yet to check for: creating keys is for superusers and roles that were given it.
REVOKE EXECUTE ON FUNCTION enc_create_key(text, boolean) FROM PUBLIC;

CREATE FUNCTION enc_rotate_key(name text, activate boolean DEFAULT true) RETURNS integer
    LANGUAGE c SET search_path = pg_catalog, pg_temp AS 'MODULE_PATHNAME';
COMMENT ON FUNCTION enc_rotate_key(text, boolean) IS
    'makes or adopts a new version of a key and returns it; what is written from now on uses it, unless activate is false';

CREATE FUNCTION enc_activate_key_version(name text, version integer) RETURNS void
    LANGUAGE c SET search_path = pg_catalog, pg_temp AS 'MODULE_PATHNAME';
COMMENT ON FUNCTION enc_activate_key_version(text, integer) IS
    'makes a pending or deprecated version the one that encrypts';

CREATE FUNCTION enc_disable_key_version(name text, version integer, force boolean DEFAULT false) RETURNS void
    LANGUAGE c SET search_path = pg_catalog, pg_temp AS 'MODULE_PATHNAME';
COMMENT ON FUNCTION enc_disable_key_version(text, integer, boolean) IS
    'forbids a version to encrypt and to decrypt, until it is enabled';

CREATE FUNCTION enc_enable_key_version(name text, version integer) RETURNS void
    LANGUAGE c SET search_path = pg_catalog, pg_temp AS 'MODULE_PATHNAME';
COMMENT ON FUNCTION enc_enable_key_version(text, integer) IS
    'lets a disabled version decrypt again';

CREATE FUNCTION enc_rewrap_key(name text) RETURNS integer
    LANGUAGE c SET search_path = pg_catalog, pg_temp AS 'MODULE_PATHNAME';
COMMENT ON FUNCTION enc_rewrap_key(text) IS
    'has the provider wrap the versions of a key again, under its newest key encryption key; returns their number';

CREATE FUNCTION enc_grant(name text, grantee name, privileges text) RETURNS void
    LANGUAGE c SET search_path = pg_catalog, pg_temp AS 'MODULE_PATHNAME';
COMMENT ON FUNCTION enc_grant(text, name, text) IS
    'gives a role (or public) privileges on a key: encrypt, compare, decrypt';

CREATE FUNCTION enc_revoke(name text, grantee name, privileges text DEFAULT 'encrypt, compare, decrypt')
    RETURNS void
    LANGUAGE c SET search_path = pg_catalog, pg_temp AS 'MODULE_PATHNAME';
COMMENT ON FUNCTION enc_revoke(text, name, text) IS 'takes privileges on a key from a role (or public)';

----------------------------------------------------------------------------------------------------
-- Values
----------------------------------------------------------------------------------------------------

CREATE FUNCTION enc_rotate(value encrypted_text) RETURNS encrypted_text
    LANGUAGE c STABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'encrypted_text_rotate';
COMMENT ON FUNCTION enc_rotate(encrypted_text) IS
    'the value under the active version of its key; itself if it already is';
CREATE FUNCTION enc_rotate(value encrypted_bytea) RETURNS encrypted_bytea
    LANGUAGE c STABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'encrypted_bytea_rotate';
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
       key.key_id
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

CREATE VIEW enc_stat_cache AS SELECT * FROM encryption.cache_statistics();
COMMENT ON VIEW enc_stat_cache IS 'this session''s cache of keys: what it holds, and how it did';

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

GRANT SELECT ON enc_keys, enc_key_versions, enc_key_grants, enc_stat_cache, enc_stat_cache_keys TO PUBLIC;

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
    outage_timeout  interval DEFAULT '10 minutes')
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
    batch_blocks   bigint;
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
            HINT = 'Only max_rate and max_replica_lag may be null, for no limit.';
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
                   'fire_triggers', fire_triggers, 'skip_damaged', skip_damaged)) b;

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
        IF encryption.replica_lag() > pg_size_bytes(max_replica_lag) THEN
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
                -- A first batch is small, as nobody knows yet how long it takes.
                SELECT greatest(1, batch_size / 4 / greatest(1,
                           coalesce(nullif(reltuples, -1) / nullif(relpages, 0), 60)))::bigint
                  INTO batch_blocks FROM pg_class WHERE oid = work.table_id;
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
                last_block := least(work.next_block + batch_blocks, work.end_block);
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
                -- A table or column that was renamed after its name was looked up.
                IF code IN ('42P01', '42703') AND is_found AND renamed < 5 THEN
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
        IF changed > 2 * batch_size OR seconds > 0.4 THEN
            batch_blocks := greatest(batch_blocks / 2, 1);
        ELSIF changed < batch_size / 2 AND seconds < 0.2 THEN
            batch_blocks := least(batch_blocks * 2, 4096);
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
COMMENT ON PROCEDURE enc_rotate_column(regclass, name, integer, interval, integer, text, interval, boolean, boolean, interval) IS
    'encrypts the values of a column again that are not under the active version of their key, in batches that commit';

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
    refresh_materialized_views boolean DEFAULT false)
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
                max_replica_lag, lock_timeout, fire_triggers, skip_damaged, outage_timeout);
        ELSIF refresh_materialized_views THEN
            EXECUTE format('REFRESH MATERIALIZED VIEW %s', part.table_id::regclass);
            COMMIT;
            PERFORM set_config('search_path', 'pg_catalog, pg_temp', true);
        ELSE
            RAISE NOTICE 'materialized view % is left out: refresh it', part.table_name;
        END IF;
    END LOOP;
END $$;
COMMENT ON PROCEDURE enc_rotate_all(text, integer, interval, integer, text, interval, boolean, boolean, interval, boolean) IS
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
        name text, version integer, accept_data_loss boolean DEFAULT false, grace_period interval DEFAULT '90 days')
    RETURNS void
    LANGUAGE c SET search_path = pg_catalog, pg_temp AS 'MODULE_PATHNAME';
COMMENT ON FUNCTION enc_destroy_key_version(text, integer, boolean, interval) IS
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
    wait            interval DEFAULT '1 minute')
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
        active := @extschema@.enc_rotate_key(name);
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
        skip_damaged => skip_damaged, refresh_materialized_views => true);

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
                    PERFORM @extschema@.enc_disable_key_version(name, old);
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
COMMENT ON PROCEDURE enc_emergency_rotate(text, integer, boolean, integer, integer, boolean, boolean, interval) IS
    'rotates a key and everything under it, with background workers, and disables the old versions when nothing uses them';

----------------------------------------------------------------------------------------------------
-- What must not be declared is refused when it is.
----------------------------------------------------------------------------------------------------

CREATE FUNCTION encryption.check_ddl() RETURNS event_trigger
    LANGUAGE c SET search_path = pg_catalog, pg_temp AS 'MODULE_PATHNAME', 'encryption_check_ddl';

CREATE EVENT TRIGGER encryption_ext_check_ddl ON ddl_command_end
    WHEN TAG IN ('CREATE TABLE', 'CREATE TABLE AS', 'SELECT INTO', 'ALTER TABLE',
                 'CREATE FOREIGN TABLE', 'ALTER FOREIGN TABLE', 'IMPORT FOREIGN SCHEMA',
                 'CREATE MATERIALIZED VIEW', 'ALTER MATERIALIZED VIEW',
                 'CREATE TYPE', 'ALTER TYPE', 'CREATE DOMAIN', 'ALTER DOMAIN')
    EXECUTE FUNCTION encryption.check_ddl();
ALTER EVENT TRIGGER encryption_ext_check_ddl ENABLE ALWAYS;
