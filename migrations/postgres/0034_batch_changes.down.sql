ALTER TABLE batches DROP COLUMN changed;
