-- Kiln's tables. Time that decides between replicas is always the database's own.

CREATE TABLE projects (
    name       text PRIMARY KEY CHECK (name ~ '^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$'),
    created_at timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE projects IS 'Owners of builds and tokens.';
INSERT INTO projects (name) VALUES ('default');

CREATE TABLE tokens (
    id         uuid PRIMARY KEY,
    project    text NOT NULL REFERENCES projects (name) ON DELETE CASCADE,
    name       text NOT NULL,
    hash       bytea NOT NULL UNIQUE CHECK (length(hash) = 32),
    scopes     text[] NOT NULL CHECK (
        scopes <> '{}' AND scopes <@ ARRAY['builds:read', 'builds:write', 'project:admin', 'admin']
    ),
    created_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz
);
COMMENT ON TABLE tokens IS 'Bearer tokens. The token itself is shown once and never stored.';
COMMENT ON COLUMN tokens.hash IS 'SHA-256 of the whole token.';
CREATE INDEX tokens_project ON tokens (project, created_at);

CREATE TABLE replicas (
    id         uuid PRIMARY KEY,
    name       text NOT NULL,
    expires_at timestamptz NOT NULL
);
COMMENT ON TABLE replicas IS
    'Running workers. A worker that does not renew its row in time is deleted by any other, which frees its builds.';
COMMENT ON COLUMN replicas.name IS 'Host name and process id, for people.';

CREATE TABLE builds (
    id              uuid PRIMARY KEY,
    project         text NOT NULL REFERENCES projects (name),
    state           text NOT NULL CHECK (
        state IN ('queued', 'starting', 'running', 'cancelling', 'succeeded', 'failed', 'cancelled')
    ),
    spec            jsonb NOT NULL,
    priority        smallint NOT NULL,
    attempts        integer NOT NULL DEFAULT 0 CHECK (attempts >= 0),
    available_at    timestamptz,
    owner           uuid REFERENCES replicas (id) ON DELETE SET NULL,
    epoch           bigint NOT NULL DEFAULT 0,
    commit          text,
    digest          text,
    failure_code    text,
    failure_message text,
    created_at      timestamptz NOT NULL,
    started_at      timestamptz,
    finished_at     timestamptz,
    journal_head    bigint NOT NULL,
    CHECK ((state = 'queued') = (available_at IS NOT NULL)),
    CHECK ((state IN ('succeeded', 'failed', 'cancelled')) = (finished_at IS NOT NULL)),
    CHECK ((state = 'failed') = (failure_code IS NOT NULL)),
    CHECK ((failure_code IS NULL) = (failure_message IS NULL)),
    CHECK (state NOT IN ('running', 'succeeded') OR started_at IS NOT NULL),
    CHECK (state NOT IN ('queued', 'starting') OR started_at IS NULL),
    CHECK (state IN ('starting', 'running', 'cancelling') OR owner IS NULL)
) WITH (fillfactor = 80);
COMMENT ON TABLE builds IS 'Accepted requests and what became of them.';
COMMENT ON COLUMN builds.spec IS 'What was asked for, as the API shows it; holds no secret.';
COMMENT ON COLUMN builds.priority IS 'Copy of spec.priority, for the index of the queue.';
COMMENT ON COLUMN builds.attempts IS 'Attempts made, the one in hand included.';
COMMENT ON COLUMN builds.available_at IS 'Queued builds: not to be claimed before this.';
COMMENT ON COLUMN builds.owner IS 'The worker that has the build in hand; null for a live build whose worker died.';
COMMENT ON COLUMN builds.epoch IS
    'Grows with every change of owner. With the owner it is the fencing token that every write of a worker repeats.';
COMMENT ON COLUMN builds.journal_head IS
    'Last sequence number given out. Numbers are taken under this row''s lock, so commit order is reading order.';

-- The queue, in the order in which it is served.
CREATE INDEX builds_queue ON builds (priority DESC, id) WHERE state = 'queued';
-- Live builds, to count them and to find those without a worker.
CREATE INDEX builds_live ON builds (owner, id) WHERE state IN ('starting', 'running', 'cancelling');
-- What a worker has been asked to stop.
CREATE INDEX builds_cancelling ON builds (owner) WHERE state = 'cancelling';
-- Lists, newest first: ids of version 7 sort by time.
CREATE INDEX builds_project ON builds (project, id DESC);
CREATE INDEX builds_project_state ON builds (project, state, id DESC);

CREATE TABLE attempts (
    build_id        uuid NOT NULL REFERENCES builds (id) ON DELETE CASCADE,
    number          integer NOT NULL CHECK (number >= 1),
    state           text NOT NULL CHECK (
        state IN ('starting', 'running', 'cancelling', 'succeeded', 'failed', 'cancelled')
    ),
    pod             text NOT NULL,
    node            text,
    failure_code    text,
    failure_message text,
    resources       jsonb NOT NULL,
    log_cursor      jsonb NOT NULL DEFAULT '{}',
    created_at      timestamptz NOT NULL,
    started_at      timestamptz,
    finished_at     timestamptz,
    PRIMARY KEY (build_id, number),
    CHECK ((state IN ('succeeded', 'failed', 'cancelled')) = (finished_at IS NOT NULL)),
    CHECK ((state = 'failed') = (failure_code IS NOT NULL)),
    CHECK ((failure_code IS NULL) = (failure_message IS NULL))
) WITH (fillfactor = 70);
COMMENT ON TABLE attempts IS 'Tries at builds. Written only together with the row of the build, which carries the lease.';
COMMENT ON COLUMN attempts.pod IS 'Name of the pod, or of the folder with the local runner.';
COMMENT ON COLUMN attempts.log_cursor IS
    'How far the log of each step is in the journal. Replaced together with every append, so that an append is never done twice.';

CREATE TABLE journal (
    build_id  uuid NOT NULL,
    first_seq bigint NOT NULL CHECK (first_seq >= 1),
    last_seq  bigint NOT NULL CHECK (last_seq >= first_seq),
    codec     smallint NOT NULL CHECK (codec IN (0, 1)),
    body      bytea NOT NULL,
    PRIMARY KEY (build_id, last_seq)
);
COMMENT ON TABLE journal IS
    'Everything that happened to a build, in order. A row holds the entries first_seq..last_seq, one JSON object a line.';
COMMENT ON COLUMN journal.codec IS '0: plain, 1: zstd.';
ALTER TABLE journal ALTER COLUMN body SET STORAGE EXTERNAL;

CREATE TABLE idempotency_keys (
    project    text NOT NULL REFERENCES projects (name) ON DELETE CASCADE,
    key        text NOT NULL CHECK (length(key) BETWEEN 1 AND 255),
    body_hash  bytea NOT NULL CHECK (length(body_hash) = 32),
    build_id   uuid NOT NULL REFERENCES builds (id) ON DELETE CASCADE,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (project, key)
);
COMMENT ON TABLE idempotency_keys IS 'What a key was used for. The primary key decides between requests, whichever replica gets them.';
COMMENT ON COLUMN idempotency_keys.body_hash IS 'SHA-256 of the checked request: another request under the same key is refused.';
