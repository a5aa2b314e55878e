-- Hooks: what forges and registries may send, what is built of it, and what came.

CREATE TABLE hooks (
    id         uuid PRIMARY KEY,
    project    text NOT NULL REFERENCES projects (name) ON DELETE CASCADE,
    name       text NOT NULL CHECK (length(name) BETWEEN 1 AND 100),
    forge      text NOT NULL CHECK (forge IN ('github', 'gitlab', 'gitea', 'gitee', 'bitbucket_cloud', 'bitbucket_server',
                                              'generic', 'registry')),
    rules      jsonb NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE hooks IS 'Addresses that forges and registries send to.';
COMMENT ON COLUMN hooks.forge IS 'Who sends: it decides how deliveries are signed and read.';
COMMENT ON COLUMN hooks.rules IS 'What is wanted, and the requests for builds with variables in them.';
CREATE INDEX hooks_project ON hooks (project, id);

CREATE TABLE hook_secrets (
    hook_id    uuid NOT NULL REFERENCES hooks (id) ON DELETE CASCADE,
    number     integer NOT NULL CHECK (number >= 1),
    key_id     text NOT NULL,
    nonce      bytea NOT NULL CHECK (length(nonce) = 12),
    sealed     bytea NOT NULL CHECK (length(sealed) >= 16),
    created_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz,
    PRIMARY KEY (hook_id, number)
);
COMMENT ON TABLE hook_secrets IS
    'What hooks and their senders share, encrypted: a signature can only be checked by whoever knows it.';
COMMENT ON COLUMN hook_secrets.number IS 'Counts a hook''s secrets; the greatest is the newest.';
COMMENT ON COLUMN hook_secrets.expires_at IS 'When one that was replaced stops being good; null for the newest.';
COMMENT ON COLUMN hook_secrets.sealed IS
    'AES-256-GCM with its tag. Hook and number are authenticated with it, so that no row can be passed off as another.';
CREATE INDEX hook_secrets_key ON hook_secrets (key_id);

CREATE TABLE hook_deliveries (
    id            uuid PRIMARY KEY,
    hook_id       uuid NOT NULL REFERENCES hooks (id) ON DELETE CASCADE,
    sent_id       text CHECK (length(sent_id) BETWEEN 1 AND 200),
    outcome       text NOT NULL CHECK (outcome IN ('refused', 'malformed', 'ignored', 'invalid', 'built', 'repeated', 'tried')),
    reason        text,
    events        jsonb NOT NULL DEFAULT '[]',
    builds        uuid[] NOT NULL DEFAULT '{}',
    redelivery_of uuid,
    received_at   timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE hook_deliveries IS 'What came to hooks, and what was decided.';
COMMENT ON COLUMN hook_deliveries.sent_id IS 'What the sender calls the delivery.';
COMMENT ON COLUMN hook_deliveries.events IS 'What the delivery said, without the rest of its payload; empty when it wasn''t read.';
COMMENT ON COLUMN hook_deliveries.builds IS 'The builds that it was answered with. They may have been deleted since.';
COMMENT ON COLUMN hook_deliveries.redelivery_of IS 'The delivery that a caller of the API wanted again by this one.';
CREATE INDEX hook_deliveries_hook ON hook_deliveries (hook_id, id DESC);
CREATE INDEX hook_deliveries_refused ON hook_deliveries (hook_id, received_at) WHERE outcome = 'refused';
CREATE INDEX hook_deliveries_expiry ON hook_deliveries (received_at);

CREATE TABLE hook_keys (
    hook_id     uuid NOT NULL REFERENCES hooks (id) ON DELETE CASCADE,
    key         bytea NOT NULL CHECK (length(key) = 32),
    delivery_id uuid NOT NULL REFERENCES hook_deliveries (id) ON DELETE CASCADE,
    builds      uuid[] NOT NULL DEFAULT '{}',
    PRIMARY KEY (hook_id, key)
);
COMMENT ON TABLE hook_keys IS
    'What builds were made of. The primary key decides between deliveries of the same, whichever replica gets them.';
COMMENT ON COLUMN hook_keys.key IS
    'SHA-256 of what the sender calls a delivery, or of an event: repository, ref, commit and kind.';
COMMENT ON COLUMN hook_keys.builds IS 'The builds that were made.';
CREATE INDEX hook_keys_delivery ON hook_keys USING hash (delivery_id);

ALTER TABLE builds ADD COLUMN origin jsonb;
COMMENT ON COLUMN builds.origin IS 'The event of a hook that the build was made for.';
