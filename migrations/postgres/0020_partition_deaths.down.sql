ALTER TABLE partition_heads DROP COLUMN deaths;
