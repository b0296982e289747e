-- no-transaction
-- Of commands that are due at the same moment those that came first are taken first, and a million of them (all for
-- midnight, say) are not sorted for each batch. idx_waiting_due is what older programs ask for; this serves them too.
CREATE INDEX CONCURRENTLY IF NOT EXISTS idx_waiting_due_place ON waiting_commands (partition, due_at, place) WHERE due_at IS NOT NULL;
