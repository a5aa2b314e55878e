-- The order of the queue: a rank that holds the builds of each project in order, and what projects may have of what there
-- is.

ALTER TABLE projects
    ADD COLUMN weight integer NOT NULL DEFAULT 100 CHECK (weight BETWEEN 1 AND 1000),
    ADD COLUMN concurrency_limit integer CHECK (concurrency_limit >= 0),
    ADD COLUMN starts_limit integer CHECK (starts_limit >= 1),
    ADD COLUMN queued_limit integer CHECK (queued_limit >= 0);
COMMENT ON COLUMN projects.weight IS 'Share of the installation while several projects wait, in proportion to the weights of the others.';
COMMENT ON COLUMN projects.concurrency_limit IS 'Builds that may be live at the same time. NULL: what the configuration says.';
COMMENT ON COLUMN projects.starts_limit IS 'Attempts that may be claimed within a minute. NULL: what the configuration says.';
COMMENT ON COLUMN projects.queued_limit IS 'Queued builds beyond which no more are accepted. NULL: what the configuration says.';

-- With a default, because replicas of an earlier version insert builds until they are replaced.
ALTER TABLE builds ADD COLUMN rank timestamptz NOT NULL DEFAULT now();
COMMENT ON COLUMN builds.rank IS
    'Place among the queued builds of its project: when it was accepted, less what its priority is worth. It never changes, so that nobody has to be sorted anew as time goes by.';
UPDATE builds SET rank = created_at - priority * interval '1 minute'
WHERE state IN ('queued', 'starting', 'running', 'cancelling');
COMMENT ON COLUMN builds.priority IS 'Copy of spec.priority.';

DROP INDEX builds_queue, builds_live;
-- The queue of each project, in the order in which it is served.
CREATE INDEX builds_queue ON builds (project, rank, id) WHERE state = 'queued';
-- Live builds, to count them by project and to find those without a worker.
CREATE INDEX builds_live ON builds (owner, id) INCLUDE (project) WHERE state IN ('starting', 'running', 'cancelling');

ALTER TABLE attempts
    ADD COLUMN project text,
    ADD COLUMN counted_at timestamptz,
    ADD CHECK ((project IS NULL) = (counted_at IS NULL));
COMMENT ON COLUMN attempts.project IS 'The build''s project, where its starts are counted.';
COMMENT ON COLUMN attempts.counted_at IS
    'When the attempt was claimed, by the database''s clock, where the starts of its project are limited.';
CREATE INDEX attempts_starts ON attempts (project, counted_at) WHERE counted_at IS NOT NULL;
