-- A day's receipts go every day: the space must be free again long before a fifth of the table is dead.
ALTER TABLE receipts SET (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 10000);
ALTER TABLE batches SET (autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_threshold = 1000);
