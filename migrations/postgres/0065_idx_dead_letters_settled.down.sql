-- no-transaction
DROP INDEX CONCURRENTLY IF EXISTS idx_dead_letters_settled;
