-- On whose tasks a batch has changed something: four bytes a user (core/src/cache_tag.rs). Readers learn from it which
-- cached lists, statistics and searches are out of date. NULL: written by a release that did not say; it may be anybody.
ALTER TABLE batches ADD COLUMN changed BYTEA;
ALTER TABLE batches ALTER COLUMN changed SET STORAGE EXTERNAL;
