-- Archives that callers send, and the key that attempts' tokens are made with.

CREATE TABLE uploads (
    id           uuid PRIMARY KEY,
    project      text NOT NULL REFERENCES projects (name) ON DELETE CASCADE,
    sha256       text NOT NULL CHECK (sha256 ~ '^[0-9a-f]{64}$'),
    bytes        bigint NOT NULL CHECK (bytes > 0),
    keep_seconds bigint NOT NULL CHECK (keep_seconds > 0),
    created_at   timestamptz NOT NULL DEFAULT now(),
    expires_at   timestamptz NOT NULL
);
COMMENT ON TABLE uploads IS 'Archives to be built from. A row is there only with all of its chunks.';
COMMENT ON COLUMN uploads.sha256 IS 'Of the archive as it was sent, in hexadecimal digits.';
COMMENT ON COLUMN uploads.keep_seconds IS 'How long it is kept after it was sent or last asked to be built from.';
COMMENT ON COLUMN uploads.expires_at IS 'When it may be deleted, unless a build that is not over needs it.';
CREATE INDEX uploads_project ON uploads (project);
CREATE INDEX uploads_expiry ON uploads (expires_at);

CREATE TABLE upload_chunks (
    upload_id uuid NOT NULL REFERENCES uploads (id) ON DELETE CASCADE,
    number    integer NOT NULL CHECK (number >= 0),
    body      bytea NOT NULL,
    PRIMARY KEY (upload_id, number)
);
COMMENT ON TABLE upload_chunks IS 'What uploads hold, in pieces of the same size except for the last.';
COMMENT ON COLUMN upload_chunks.number IS 'Counts from 0.';
-- Mostly compressed already.
ALTER TABLE upload_chunks ALTER COLUMN body SET STORAGE EXTERNAL;

-- Uploads that builds still need.
CREATE INDEX builds_upload ON builds ((spec -> 'source' ->> 'id'))
    WHERE state IN ('queued', 'starting', 'running', 'cancelling') AND spec -> 'source' ->> 'type' = 'upload';

CREATE TABLE installation_keys (
    name       text PRIMARY KEY,
    key        bytea NOT NULL CHECK (length(key) = 32),
    created_at timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE installation_keys IS 'Keys that all replicas have to agree on; whichever starts first makes them.';
