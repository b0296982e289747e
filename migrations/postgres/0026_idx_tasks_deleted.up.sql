-- no-transaction
-- Finds the tasks whose time after their deletion is over; tasks that live cost nothing.
CREATE INDEX CONCURRENTLY IF NOT EXISTS idx_tasks_deleted ON tasks (deleted_at) WHERE deleted_at IS NOT NULL;
