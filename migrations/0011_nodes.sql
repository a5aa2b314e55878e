-- What attempts failed on, and what the next ones are given.

CREATE TABLE nodes (
    name           text PRIMARY KEY CHECK (length(name) BETWEEN 1 AND 253),
    failures       jsonb NOT NULL,
    last_failed_at timestamptz NOT NULL,
    avoided_until  timestamptz
);
COMMENT ON TABLE nodes IS
    'Nodes that have failed attempts lately. One row a node, so that those who record failures of one node take turns and none is miscounted.';
COMMENT ON COLUMN nodes.failures IS
    'The latest failures, oldest first: build, attempt, code, message, at. By the database''s clock, as all times here.';
COMMENT ON COLUMN nodes.last_failed_at IS 'When the latest failure was recorded. Rows are deleted some time after that.';
COMMENT ON COLUMN nodes.avoided_until IS 'Until when builds are sent elsewhere where they can be; null if the node was never that bad.';

ALTER TABLE builds ADD COLUMN next_resources jsonb;
COMMENT ON COLUMN builds.next_resources IS
    'What further attempts are given, where one ran out of memory; null for what spec.resources says.';

ALTER TABLE attempts ADD COLUMN failure_evidence jsonb;
COMMENT ON COLUMN attempts.failure_evidence IS 'What in the cluster shows the failure: where, and what it says.';
