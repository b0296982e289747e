-- Events that no command causes, until the audit trail and the event exchange have them: an outbox apart from the
-- partitions'. Written in the transaction of what they tell of.
CREATE TABLE system_events (
    id UUID PRIMARY KEY,
    created_at TIMESTAMPTZ NOT NULL,
    place BIGINT GENERATED ALWAYS AS IDENTITY,
    -- JSON as bytes: Postgres never looks into it.
    event BYTEA NOT NULL
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);

CREATE INDEX idx_system_events_place ON system_events (place);
