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
    created_at  timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE encryption.keyspace IS 'the random id of this database';

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
    -- How often the table was begun to be walked, and what the finished ranges came to.
    pass          integer     NOT NULL DEFAULT 0,
    rows_total    bigint,
    rows_done     bigint      NOT NULL DEFAULT 0,
    rows_damaged  bigint      NOT NULL DEFAULT 0,
    last_error    text,
    started_by    name        NOT NULL,
    started_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    changed_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
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
        UPDATE encryption.keyspace SET id = new.id, created_at = new.created_at;
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
    ANALYZE = encrypted_typanalyze,
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
    ANALYZE = encrypted_typanalyze,
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
-- don't change. Not LEAKPROOF.
----------------------------------------------------------------------------------------------------

CREATE FUNCTION encrypted_text_eq(encrypted_text, encrypted_text) RETURNS boolean
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME';
CREATE FUNCTION encrypted_text_ne(encrypted_text, encrypted_text) RETURNS boolean
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME';
CREATE FUNCTION encrypted_text_lt(encrypted_text, encrypted_text) RETURNS boolean
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME';
CREATE FUNCTION encrypted_text_le(encrypted_text, encrypted_text) RETURNS boolean
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME';
CREATE FUNCTION encrypted_text_ge(encrypted_text, encrypted_text) RETURNS boolean
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME';
CREATE FUNCTION encrypted_text_gt(encrypted_text, encrypted_text) RETURNS boolean
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME';
CREATE FUNCTION encrypted_text_cmp(encrypted_text, encrypted_text) RETURNS integer
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME';
CREATE FUNCTION encrypted_text_btree_options(internal) RETURNS void
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME';

CREATE FUNCTION encrypted_bytea_eq(encrypted_bytea, encrypted_bytea) RETURNS boolean
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME';
CREATE FUNCTION encrypted_bytea_ne(encrypted_bytea, encrypted_bytea) RETURNS boolean
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME';
CREATE FUNCTION encrypted_bytea_lt(encrypted_bytea, encrypted_bytea) RETURNS boolean
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME';
CREATE FUNCTION encrypted_bytea_le(encrypted_bytea, encrypted_bytea) RETURNS boolean
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME';
CREATE FUNCTION encrypted_bytea_ge(encrypted_bytea, encrypted_bytea) RETURNS boolean
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME';
CREATE FUNCTION encrypted_bytea_gt(encrypted_bytea, encrypted_bytea) RETURNS boolean
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME';
CREATE FUNCTION encrypted_bytea_cmp(encrypted_bytea, encrypted_bytea) RETURNS integer
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME';
CREATE FUNCTION encrypted_bytea_btree_options(internal) RETURNS void
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME';

CREATE OPERATOR = (
    LEFTARG = encrypted_text, RIGHTARG = encrypted_text, FUNCTION = encrypted_text_eq,
    COMMUTATOR = =, NEGATOR = <>, RESTRICT = eqsel, JOIN = eqjoinsel, MERGES);
CREATE OPERATOR <> (
    LEFTARG = encrypted_text, RIGHTARG = encrypted_text, FUNCTION = encrypted_text_ne,
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

CREATE OPERATOR = (
    LEFTARG = encrypted_bytea, RIGHTARG = encrypted_bytea, FUNCTION = encrypted_bytea_eq,
    COMMUTATOR = =, NEGATOR = <>, RESTRICT = eqsel, JOIN = eqjoinsel, MERGES);
CREATE OPERATOR <> (
    LEFTARG = encrypted_bytea, RIGHTARG = encrypted_bytea, FUNCTION = encrypted_bytea_ne,
    COMMUTATOR = <>, NEGATOR = =, RESTRICT = neqsel, JOIN = neqjoinsel);
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
-- index would reveal the order of the plaintexts.
CREATE OPERATOR CLASS encrypted_text_btree_ops DEFAULT FOR TYPE encrypted_text USING btree AS
    OPERATOR 1 <, OPERATOR 2 <=, OPERATOR 3 =, OPERATOR 4 >=, OPERATOR 5 >,
    FUNCTION 1 encrypted_text_cmp(encrypted_text, encrypted_text),
    FUNCTION 5 encrypted_text_btree_options(internal);
CREATE OPERATOR CLASS encrypted_bytea_btree_ops DEFAULT FOR TYPE encrypted_bytea USING btree AS
    OPERATOR 1 <, OPERATOR 2 <=, OPERATOR 3 =, OPERATOR 4 >=, OPERATOR 5 >,
    FUNCTION 1 encrypted_bytea_cmp(encrypted_bytea, encrypted_bytea),
    FUNCTION 5 encrypted_bytea_btree_options(internal);

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
