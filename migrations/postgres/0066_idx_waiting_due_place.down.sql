-- no-transaction
DROP INDEX CONCURRENTLY IF EXISTS idx_waiting_due_place;
