-- Builds of one group: a newer one takes the place of older ones.

ALTER TABLE builds
    ADD COLUMN group_key text CHECK (length(group_key) BETWEEN 1 AND 200),
    ADD COLUMN group_seq bigint,
    ADD COLUMN superseded_by uuid REFERENCES builds (id) ON DELETE SET NULL,
    ADD CHECK ((group_key IS NULL) = (group_seq IS NULL));
COMMENT ON COLUMN builds.group_key IS 'What the builds have in common of which the newest counts. Copy of spec.group.key.';
COMMENT ON COLUMN builds.group_seq IS
    'Order of acceptance within the group, whatever the clocks of replicas say: given out under the group''s lock where builds supersede others.';
COMMENT ON COLUMN builds.superseded_by IS 'The newer build of the group for which this one was cancelled, or told to stop.';
CREATE SEQUENCE build_group_seq OWNED BY builds.group_seq;
-- What of a group isn't over.
CREATE INDEX builds_group ON builds (project, group_key, group_seq)
    WHERE group_key IS NOT NULL AND state IN ('queued', 'starting', 'running', 'cancelling');
-- For the reference of what is deleted.
CREATE INDEX builds_superseded_by ON builds USING hash (superseded_by) WHERE superseded_by IS NOT NULL;
