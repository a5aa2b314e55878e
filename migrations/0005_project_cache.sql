ALTER TABLE projects ADD COLUMN cache jsonb;
COMMENT ON COLUMN projects.cache IS 'Cache of builds that say nothing about theirs: the JSON of a specification''s cache. NULL: none.';
