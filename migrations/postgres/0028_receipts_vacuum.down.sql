ALTER TABLE receipts RESET (autovacuum_vacuum_scale_factor, autovacuum_vacuum_threshold);
ALTER TABLE batches RESET (autovacuum_vacuum_scale_factor, autovacuum_vacuum_threshold);
