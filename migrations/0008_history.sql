-- History that doesn't grow for ever: the journal in partitions by time, its move to object storage, and what remains of
-- deleted builds.

-- The smallest build id of a moment: ids are UUIDs of version 7, which begin with milliseconds.
CREATE FUNCTION build_id_at(at timestamptz) RETURNS uuid LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS $$
    SELECT (lpad(to_hex((extract(epoch FROM at) * 1000)::bigint), 12, '0') || repeat('0', 20))::uuid
$$;

-- What there is becomes the first partition as it is. It reaches into the future, so that what is being written fits.
ALTER TABLE journal RENAME TO journal_first;
ALTER INDEX journal_pkey RENAME TO journal_first_pkey;
CREATE TABLE journal (
    LIKE journal_first INCLUDING CONSTRAINTS INCLUDING STORAGE INCLUDING COMMENTS,
    PRIMARY KEY (build_id, last_seq)
) PARTITION BY RANGE (build_id);
COMMENT ON TABLE journal IS
    'Everything that happened to a build, in order. A row holds the entries first_seq..last_seq, one JSON object a line. '
    'Partitioned by the time in the build''s id; rows of archived and deleted builds are gone.';
CREATE TABLE journal_default PARTITION OF journal DEFAULT;
COMMENT ON TABLE journal_default IS 'What no other partition takes: ids made by clocks that are off, and times long gone.';
DO $$
DECLARE
    high CONSTANT uuid := build_id_at(date_trunc('week', now(), 'UTC') + interval '7 days');
BEGIN
    WITH ahead AS (DELETE FROM journal_first WHERE build_id >= high RETURNING *)
    INSERT INTO journal_default SELECT * FROM ahead;
    EXECUTE format('ALTER TABLE journal ATTACH PARTITION journal_first FOR VALUES FROM (MINVALUE) TO (%L)', high);
END
$$;

CREATE FUNCTION add_journal_partition(name text, low timestamptz, high timestamptz) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    -- At once what is needed later, so that nobody waits for it who is waited for.
    LOCK TABLE journal_default IN ACCESS EXCLUSIVE MODE;
    EXECUTE format('CREATE TABLE %I (LIKE journal INCLUDING ALL)', name);
    EXECUTE format(
        'WITH early AS (DELETE FROM journal_default WHERE build_id >= %L AND build_id < %L RETURNING *)
         INSERT INTO %I SELECT * FROM early',
        build_id_at(low), build_id_at(high), name
    );
    EXECUTE format(
        'ALTER TABLE journal ATTACH PARTITION %I FOR VALUES FROM (%L) TO (%L)', name, build_id_at(low), build_id_at(high)
    );
END
$$;
COMMENT ON FUNCTION add_journal_partition IS 'Makes a partition; rows of its time that came early move into it.';

CREATE FUNCTION journal_partition_is_needed(name text) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    needed boolean;
BEGIN
    EXECUTE format('SELECT EXISTS (SELECT FROM %I j JOIN builds b ON b.id = j.build_id)', name) INTO needed;
    RETURN needed;
END
$$;
COMMENT ON FUNCTION journal_partition_is_needed IS 'Whether it holds entries of a build that is there.';

CREATE FUNCTION drop_journal_partition(name text) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    -- First without a lock that others would have to wait for.
    IF journal_partition_is_needed(name) THEN
        RETURN false;
    END IF;
    -- From the top, as every statement takes its locks.
    LOCK TABLE ONLY journal IN ACCESS EXCLUSIVE MODE;
    IF journal_partition_is_needed(name) THEN
        RETURN false;
    END IF;
    EXECUTE format('DROP TABLE %I', name);
    RETURN true;
END
$$;
COMMENT ON FUNCTION drop_journal_partition IS 'Drops a partition unless it is needed. Whether it was dropped.';

ALTER TABLE builds ADD COLUMN archived boolean NOT NULL DEFAULT false;
COMMENT ON COLUMN builds.archived IS 'Whether the journal is in the archive, and no longer here.';
-- What is to be deleted, and what is to be archived, oldest first.
CREATE INDEX builds_finished ON builds (finished_at) WHERE finished_at IS NOT NULL;
CREATE INDEX builds_unarchived ON builds (finished_at) WHERE finished_at IS NOT NULL AND NOT archived;
-- Builds are deleted with the keys they were asked for under; by hash, as build_terms_build is.
CREATE INDEX idempotency_keys_build ON idempotency_keys USING hash (build_id);

CREATE TABLE archives (
    build_id      uuid PRIMARY KEY REFERENCES builds (id) ON DELETE CASCADE,
    tries         integer NOT NULL CHECK (tries >= 1),
    claimed_until timestamptz,
    archived_at   timestamptz,
    bytes         bigint CHECK (bytes > 0),
    index_bytes   bigint CHECK (index_bytes > 0),
    sha256        bytea CHECK (length(sha256) = 32),
    CHECK ((archived_at IS NULL) = (claimed_until IS NOT NULL)),
    CHECK ((archived_at IS NULL) = (bytes IS NULL)),
    CHECK ((bytes IS NULL) = (index_bytes IS NULL)),
    CHECK ((bytes IS NULL) = (sha256 IS NULL))
);
COMMENT ON TABLE archives IS 'Journals that are in the archive, or on their way.';
COMMENT ON COLUMN archives.tries IS
    'Times that somebody set out to move the journal. Part of the object''s name, so that nobody writes over what another wrote.';
COMMENT ON COLUMN archives.claimed_until IS 'Until then whoever set out last has it to himself; null once it is there.';
COMMENT ON COLUMN archives.bytes IS 'Size of the object.';
COMMENT ON COLUMN archives.index_bytes IS 'Size of the index at its end.';
COMMENT ON COLUMN archives.sha256 IS 'Of the object.';

CREATE TABLE deleted_builds (
    id         uuid PRIMARY KEY,
    project    text NOT NULL,
    objects    integer CHECK (objects >= 1),
    deleted_at timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE deleted_builds IS 'Builds that were there once, so that whoever asks for them learns that they are gone.';
COMMENT ON COLUMN deleted_builds.objects IS
    'archives.tries of the build, as long as its objects may still be in the archive.';
CREATE INDEX deleted_builds_expiry ON deleted_builds (deleted_at);
CREATE INDEX deleted_builds_objects ON deleted_builds (deleted_at) WHERE objects IS NOT NULL;
