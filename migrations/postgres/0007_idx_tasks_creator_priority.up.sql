-- no-transaction
-- What a user has created, by priority.
CREATE INDEX CONCURRENTLY IF NOT EXISTS idx_tasks_creator_priority ON tasks (creator_id, priority);
