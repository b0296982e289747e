-- The chains of the audit trail (core/src/audit/link.rs): each batch that has events is a link. The head's digest stands
-- in the fence row, which the batch's own statement writes anyway. NULL: the partition has had no link yet.
ALTER TABLE partition_heads ADD COLUMN chain BYTEA;
CREATE TABLE audit_links (
    partition TEXT NOT NULL,
    number BIGINT NOT NULL,
    -- Class, count, times and Merkle root of the batch's events, as JSON.
    classes TEXT NOT NULL,
    hash BYTEA NOT NULL,
    PRIMARY KEY (partition, number),
    CONSTRAINT chk_audit_links_hash CHECK (octet_length(hash) = 32)
);

-- System events have a chain of their own; they join it before they are delivered. Its numbers begin above the places
-- under which events stand in the trail that were delivered before.
CREATE TABLE audit_system_head (
    single BOOLEAN PRIMARY KEY DEFAULT true,
    number BIGINT NOT NULL,
    chain BYTEA,
    CONSTRAINT chk_audit_system_head_single CHECK (single)
);
INSERT INTO audit_system_head (number) SELECT nextval(pg_get_serial_sequence('system_events', 'place'));
ALTER TABLE system_events
    -- 122 bits of chance: the digest of an event can't be tried out once the salt is forgotten.
    ADD COLUMN salt BYTEA NOT NULL DEFAULT uuid_send(gen_random_uuid()),
    ADD COLUMN link BIGINT;

-- The seals over the heads of all chains. They are kept for ever.
CREATE TABLE audit_seals (
    number BIGINT PRIMARY KEY,
    sealed_at TIMESTAMPTZ NOT NULL,
    -- What was signed, to the byte.
    seal TEXT NOT NULL,
    signature BYTEA NOT NULL,
    key BYTEA NOT NULL
);
CREATE INDEX idx_audit_seals_sealed_at ON audit_seals (sealed_at);

-- Whose data was ordered to be erased from the trail.
CREATE TABLE audit_erasures (
    id UUID PRIMARY KEY,
    scope TEXT NOT NULL,
    subject UUID NOT NULL,
    why TEXT NOT NULL,
    author TEXT NOT NULL,
    ordered_at TIMESTAMPTZ NOT NULL,
    finished_at TIMESTAMPTZ,
    events BIGINT NOT NULL DEFAULT 0,
    CONSTRAINT chk_audit_erasures_scope CHECK (scope IN ('entity', 'actor'))
);
CREATE INDEX idx_audit_erasures_subject ON audit_erasures (subject);

-- That Postgres was set back on purpose: the next seal says so, and may follow.
CREATE TABLE audit_restores (
    id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    said_at TIMESTAMPTZ NOT NULL DEFAULT now(),
    author TEXT NOT NULL,
    why TEXT NOT NULL,
    -- The seal that says so.
    seal BIGINT
);
