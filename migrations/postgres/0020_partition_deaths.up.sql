-- Holders of the lease that died in a row, as far as the commands that wait are concerned: after two of them what is
-- due is taken one by one, for one of them may be what kills.
ALTER TABLE partition_heads ADD COLUMN deaths SMALLINT NOT NULL DEFAULT 0;
