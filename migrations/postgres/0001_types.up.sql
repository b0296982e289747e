-- Types come before the tables that use them. The order of task_priority is the order of urgency: ORDER BY relies on it.
CREATE TYPE user_role AS ENUM ('user', 'admin');
CREATE TYPE task_status AS ENUM ('todo', 'in_progress', 'review', 'done');
CREATE TYPE task_priority AS ENUM ('low', 'medium', 'high', 'urgent');
CREATE TYPE command_outcome AS ENUM ('applied', 'rejected', 'expired', 'cancelled', 'dead');
