-- no-transaction
DROP INDEX CONCURRENTLY IF EXISTS idx_users_profile_first_name;
