-- no-transaction
-- Retention goes by the later of two times.
CREATE INDEX CONCURRENTLY IF NOT EXISTS idx_dead_letters_settled ON dead_letters (GREATEST(last_died_at, decided_at));
