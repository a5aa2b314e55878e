-- Builds of one group that run one after the other.

ALTER TABLE builds
    ADD COLUMN serialize boolean NOT NULL DEFAULT false,
    ADD CHECK (group_key IS NOT NULL OR NOT serialize);
COMMENT ON COLUMN builds.serialize IS
    'Whether the build waits until no other of its group is live, nor queued before it with the same wish. Copy of spec.group.serialize.';
-- Whatever claims do.
CREATE UNIQUE INDEX builds_serialized ON builds (project, group_key)
    WHERE serialize AND state IN ('starting', 'running', 'cancelling');

CREATE FUNCTION group_blocker(of builds) RETURNS uuid LANGUAGE sql STABLE COST 10 AS $$
    SELECT b.id FROM builds b
    WHERE of.serialize AND b.project = of.project AND b.group_key = of.group_key AND b.id <> of.id
      AND b.state IN ('queued', 'starting', 'running', 'cancelling')
      AND (b.state <> 'queued' OR (b.serialize AND b.group_seq < of.group_seq))
    ORDER BY b.state = 'queued', b.group_seq
    LIMIT 1
$$;
COMMENT ON FUNCTION group_blocker IS 'The build of its group that a build waits for: one that is live, or one that is to be the next.';
