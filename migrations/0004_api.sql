-- What the API shows beyond a build itself: who retries whom, searching, what a build waits for, changes over all
-- builds of a project, and tickets for streams.

ALTER TABLE builds ADD COLUMN retry_of uuid REFERENCES builds (id) ON DELETE SET NULL;
COMMENT ON COLUMN builds.retry_of IS 'The build that a caller asked to be built again by this one.';
CREATE INDEX builds_retry_of ON builds (retry_of, id DESC) WHERE retry_of IS NOT NULL;

-- Lists, newest first. The bytes of an id sort like the id. The primary key doesn't have their order, so that no plan,
-- whatever the statistics, looks through all builds for those of a small project or a rare state.
DROP INDEX builds_project, builds_project_state;
CREATE INDEX builds_project ON builds (project, uuid_send(id) DESC);
CREATE INDEX builds_project_state ON builds (project, state, uuid_send(id) DESC);

ALTER TABLE attempts
    ADD COLUMN pending_kind text CHECK (pending_kind IN ('unscheduled', 'image_pull', 'starting')),
    ADD COLUMN pending_message text,
    ADD CHECK ((pending_kind IS NULL) = (pending_message IS NULL));
COMMENT ON COLUMN attempts.pending_kind IS 'What keeps the attempt from running, where the cluster has said so.';
COMMENT ON COLUMN attempts.pending_message IS 'The words of the scheduler or the kubelet.';

ALTER TABLE replicas ADD COLUMN not_ready text;
COMMENT ON COLUMN replicas.not_ready IS
    'Why the worker can''t launch anything at present, in words for an operator; null when it can.';

CREATE TABLE build_terms (
    project  text NOT NULL,
    term     text NOT NULL,
    build_id uuid NOT NULL REFERENCES builds (id) ON DELETE CASCADE,
    PRIMARY KEY (project, term, build_id)
);
COMMENT ON TABLE build_terms IS
    'What builds can be found by. In the order of the key, the builds of a term are read newest first without a sort.';
COMMENT ON COLUMN build_terms.term IS
    '`ref=REF`, `image=HOST/REPOSITORY`, `image=HOST/REPOSITORY:TAG`, `label=KEY` or `label=KEY=VALUE`.';
-- By hash, for removing a build: an index with an order would tempt the planner to read all builds in it.
CREATE INDEX build_terms_build ON build_terms USING hash (build_id);
INSERT INTO build_terms (project, term, build_id)
SELECT b.project, t.term, b.id
FROM builds b
CROSS JOIN LATERAL (
    SELECT 'ref=' || (b.spec #>> '{source,ref}')
    UNION
    SELECT unnest(ARRAY['image=' || image, 'image=' || regexp_replace(image, ':[^:/]*$', '')])
    FROM jsonb_array_elements_text(b.spec -> 'images') AS image
    UNION
    SELECT unnest(ARRAY['label=' || key, 'label=' || key || '=' || value])
    FROM jsonb_each_text(b.spec -> 'labels')
) AS t (term)
WHERE t.term IS NOT NULL;

CREATE TABLE build_changes (
    id       bigint GENERATED ALWAYS AS IDENTITY,
    seq      bigint UNIQUE,
    build_id uuid NOT NULL,
    project  text NOT NULL,
    state    text NOT NULL,
    attempt  integer,
    at       timestamptz NOT NULL
);
COMMENT ON TABLE build_changes IS
    'Every state that a build has entered, for readers that follow many builds. Rows of deleted builds are passed over.';
COMMENT ON COLUMN build_changes.id IS 'Order of insertion, which is not the order of commits.';
COMMENT ON COLUMN build_changes.seq IS
    'Reading order. Null until the row was committed and a reader has numbered it, under a lock that only one holds.';
CREATE INDEX build_changes_unnumbered ON build_changes (id) WHERE seq IS NULL;
CREATE INDEX build_changes_project ON build_changes (project, seq) WHERE seq IS NOT NULL;
CREATE SEQUENCE build_changes_seq OWNED BY build_changes.seq;

-- A trigger, so that no statement that changes a state can leave it out.
CREATE FUNCTION record_build_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO build_changes (build_id, project, state, attempt, at)
    VALUES (NEW.id, NEW.project, NEW.state, nullif(NEW.attempts, 0), CASE
        WHEN NEW.finished_at IS NOT NULL THEN NEW.finished_at
        WHEN NEW.state = 'running' THEN NEW.started_at
        WHEN TG_OP = 'INSERT' THEN NEW.created_at
        ELSE now()
    END);
    RETURN NULL;
END
$$;
CREATE TRIGGER build_created AFTER INSERT ON builds FOR EACH ROW EXECUTE FUNCTION record_build_change();
CREATE TRIGGER build_changed AFTER UPDATE OF state ON builds FOR EACH ROW
    WHEN (OLD.state <> NEW.state) EXECUTE FUNCTION record_build_change();

CREATE TABLE stream_tickets (
    hash       bytea PRIMARY KEY CHECK (length(hash) = 32),
    token_id   uuid NOT NULL REFERENCES tokens (id) ON DELETE CASCADE,
    build_id   uuid REFERENCES builds (id) ON DELETE CASCADE,
    project    text REFERENCES projects (name) ON DELETE CASCADE,
    expires_at timestamptz NOT NULL,
    CHECK (build_id IS NULL OR project IS NULL)
);
COMMENT ON TABLE stream_tickets IS
    'Leave to open the streams of one build, or of one project (of all with neither), for those who can''t send a header.';
COMMENT ON COLUMN stream_tickets.hash IS 'SHA-256 of the ticket.';
COMMENT ON COLUMN stream_tickets.token_id IS 'The token that the ticket was made with; the ticket goes with it.';
CREATE INDEX stream_tickets_expiry ON stream_tickets (expires_at);
CREATE INDEX stream_tickets_token ON stream_tickets (token_id);
