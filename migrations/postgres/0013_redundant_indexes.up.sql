-- Every index costs every insert. These five serve no query shape that another does not serve as well:
--   idx_tasks_status_priority  begins idx_tasks_status_priority_created
--   idx_tasks_assignee         begins idx_tasks_assignee_status
--   idx_tasks_creator          begins idx_tasks_creator_priority
--   idx_tasks_active           repeats the primary key
--   idx_tasks_deleted_at       indexes one constant (NULL)
-- `tests/bench/indexes` measures the gain.
DROP INDEX idx_tasks_status_priority;
DROP INDEX idx_tasks_assignee;
DROP INDEX idx_tasks_creator;
DROP INDEX idx_tasks_active;
DROP INDEX idx_tasks_deleted_at;
