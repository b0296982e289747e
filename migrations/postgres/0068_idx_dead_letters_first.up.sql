-- no-transaction
-- A replay of many goes by the order in which letters died.
CREATE INDEX CONCURRENTLY IF NOT EXISTS idx_dead_letters_first ON dead_letters (first_died_at, id) WHERE state = 'kept';
