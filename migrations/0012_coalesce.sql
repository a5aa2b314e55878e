-- Identical requests that share one build.

ALTER TABLE builds ADD COLUMN coalesce_hash bytea CHECK (length(coalesce_hash) = 32);
COMMENT ON COLUMN builds.coalesce_hash IS
    'SHA-256 of the project and of what was asked for, where identical requests are to share the build while it is in flight.';
-- Decides which of several identical requests is the first, whichever replica gets them. A build that is being stopped is
-- shared with nobody any more.
CREATE UNIQUE INDEX builds_coalesce ON builds (coalesce_hash)
    WHERE coalesce_hash IS NOT NULL AND state IN ('queued', 'starting', 'running');

ALTER TABLE idempotency_keys ADD COLUMN coalesced boolean NOT NULL DEFAULT false;
COMMENT ON COLUMN idempotency_keys.coalesced IS 'Whether the request got a build that was there already, made for an identical one.';
