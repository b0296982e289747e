-- no-transaction
-- As the first name.
CREATE INDEX CONCURRENTLY IF NOT EXISTS idx_users_profile_last_name ON users ((profile ->> 'lastName'));
