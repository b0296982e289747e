-- no-transaction
-- Open tasks in the order of work: an index scan without a sort.
CREATE INDEX CONCURRENTLY IF NOT EXISTS idx_tasks_status_priority_created ON tasks (status, priority DESC, created_at DESC) WHERE deleted_at IS NULL;
