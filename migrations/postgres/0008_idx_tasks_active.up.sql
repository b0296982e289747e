-- no-transaction
-- Live tasks (see 0013).
CREATE INDEX CONCURRENTLY IF NOT EXISTS idx_tasks_active ON tasks (id) WHERE deleted_at IS NULL;
