DROP TYPE command_outcome;
DROP TYPE task_priority;
DROP TYPE task_status;
DROP TYPE user_role;
