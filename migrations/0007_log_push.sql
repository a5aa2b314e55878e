-- Logs that attempts push, and how much of them is kept.

ALTER TABLE builds ADD COLUMN log_bytes bigint NOT NULL DEFAULT 0 CHECK (log_bytes >= 0);
COMMENT ON COLUMN builds.log_bytes IS
    'Bytes of log text in the journal, all attempts together. Grows with the append that brings them; what a build may have is measured by it.';
COMMENT ON COLUMN attempts.log_cursor IS
    'How far the log of each step is in the journal, whatever carries it, and what carried it. Replaced together with every append, so that an append is never done twice and two writers notice each other.';
