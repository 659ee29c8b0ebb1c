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

-- A dump of the database carries the catalog.
SELECT pg_extension_config_dump('encryption.keyspace', '');
SELECT pg_extension_config_dump('encryption.key', '');
SELECT pg_extension_config_dump('encryption.key_version', '');
SELECT pg_extension_config_dump('encryption.key_grant', '');
SELECT pg_extension_config_dump('encryption.key_event', '');

REVOKE ALL ON SCHEMA encryption FROM PUBLIC;

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
CREATE FUNCTION enc_rotate_digest() RETURNS integer
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
