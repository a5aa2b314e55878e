-- Secrets of projects, encrypted at rest.

CREATE TABLE secrets (
    project    text NOT NULL REFERENCES projects (name) ON DELETE CASCADE,
    name       text NOT NULL CHECK (name ~ '^[a-z0-9][a-z0-9._-]{0,62}$'),
    kind       text NOT NULL CHECK (kind IN ('git', 'registry', 'build')),
    form       text NOT NULL CHECK (form IN ('password', 'token', 'ssh_key', 'value')),
    registry   text,
    key_id     text NOT NULL,
    nonce      bytea NOT NULL CHECK (length(nonce) = 12),
    sealed     bytea NOT NULL CHECK (length(sealed) >= 16),
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (project, name),
    CHECK ((kind = 'registry') = (registry IS NOT NULL))
);
COMMENT ON TABLE secrets IS 'Named secrets. What they hold is never stored in the clear.';
COMMENT ON COLUMN secrets.form IS 'What the data consist of; known without decrypting them.';
COMMENT ON COLUMN secrets.registry IS 'Host of the registry that the credentials are for.';
COMMENT ON COLUMN secrets.key_id IS 'Fingerprint of the key that sealed the row; the key itself is in the configuration.';
COMMENT ON COLUMN secrets.sealed IS
    'AES-256-GCM of the data as JSON, with its tag. Project, name and kind are authenticated with it, so that no row can be passed off as another.';
-- What is still sealed by an older key.
CREATE INDEX secrets_key ON secrets (key_id);
