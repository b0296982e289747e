-- How each command ended. The primary key is what makes a command take effect once.
CREATE TABLE receipts (
    id UUID PRIMARY KEY,
    type TEXT,
    subject UUID,
    actor UUID,
    outcome command_outcome NOT NULL,
    code TEXT,
    detail TEXT,
    version INTEGER,
    -- How many events it caused; their ids follow from id and accepted_at.
    events SMALLINT NOT NULL,
    -- The batch that applied it: its row in batches tells when the other stores followed.
    partition TEXT NOT NULL,
    batch BIGINT NOT NULL,
    accepted_at TIMESTAMPTZ NOT NULL,
    finished_at TIMESTAMPTZ NOT NULL,
    -- The first 16 bytes of a SHA-256 of what the command asks for.
    fingerprint BYTEA NOT NULL,
    CONSTRAINT chk_receipts_fingerprint CHECK (octet_length(fingerprint) = 16)
);

-- Receipts are written in the order of time: a block range index finds the old ones and costs next to nothing.
CREATE INDEX idx_receipts_finished_at ON receipts USING brin (finished_at);

-- One row a batch: when it was applied, and when each other store had it.
CREATE TABLE batches (
    partition TEXT NOT NULL,
    number BIGINT NOT NULL,
    commands INTEGER NOT NULL,
    applied_at TIMESTAMPTZ NOT NULL,
    audited_at TIMESTAMPTZ,
    cached_at TIMESTAMPTZ,
    published_at TIMESTAMPTZ,
    PRIMARY KEY (partition, number)
) WITH (fillfactor = 80);

-- What a batch has to tell the other stores, until they all have it. Compressed by the writer, so Postgres does not try.
CREATE TABLE outbox (
    partition TEXT NOT NULL,
    number BIGINT NOT NULL,
    created_at TIMESTAMPTZ NOT NULL,
    payload BYTEA NOT NULL,
    PRIMARY KEY (partition, number)
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000);
ALTER TABLE outbox ALTER COLUMN payload SET STORAGE EXTERNAL;

-- The fence of each partition: a batch commits only under the epoch of the lease that it was begun with.
CREATE TABLE partition_heads (
    partition TEXT PRIMARY KEY,
    epoch BIGINT NOT NULL,
    -- The number of the newest batch.
    batch BIGINT NOT NULL
) WITH (fillfactor = 20, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500);

-- Apart from the heads, so that a renewal never waits for a batch.
CREATE TABLE partition_leases (
    partition TEXT PRIMARY KEY,
    holder UUID NOT NULL,
    expires_at TIMESTAMPTZ NOT NULL
) WITH (fillfactor = 20, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500);

-- The worker processes that are alive. An id is new at every start.
CREATE TABLE workers (
    id UUID PRIMARY KEY,
    name TEXT NOT NULL,
    started_at TIMESTAMPTZ NOT NULL,
    expires_at TIMESTAMPTZ NOT NULL
) WITH (fillfactor = 20, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500);
