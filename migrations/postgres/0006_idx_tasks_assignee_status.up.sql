-- no-transaction
-- A user's tasks by status.
CREATE INDEX CONCURRENTLY IF NOT EXISTS idx_tasks_assignee_status ON tasks (assignee_id, status);
