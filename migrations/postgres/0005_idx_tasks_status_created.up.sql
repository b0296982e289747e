-- no-transaction
-- Tasks of a status, newest first.
CREATE INDEX CONCURRENTLY IF NOT EXISTS idx_tasks_status_created ON tasks (status, created_at DESC);
