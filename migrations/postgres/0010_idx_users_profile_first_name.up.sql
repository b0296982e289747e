-- no-transaction
-- The comparison that people write (->> and =); a GIN index on -> does not serve it.
CREATE INDEX CONCURRENTLY IF NOT EXISTS idx_users_profile_first_name ON users ((profile ->> 'firstName'));
