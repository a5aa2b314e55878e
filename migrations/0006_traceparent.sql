ALTER TABLE builds ADD COLUMN traceparent text CHECK (traceparent ~ '^00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$');
COMMENT ON COLUMN builds.traceparent IS
    'The span of the request that the build came by (W3C Trace Context), for its attempts'' spans. NULL: it wasn''t traced.';
