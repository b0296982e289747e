-- no-transaction
-- Overdue tasks: an index predicate must be immutable, so the query brings the time.
CREATE INDEX CONCURRENTLY IF NOT EXISTS idx_tasks_overdue ON tasks (due_date) WHERE due_date IS NOT NULL AND status <> 'done' AND deleted_at IS NULL;
