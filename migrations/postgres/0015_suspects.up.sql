-- Messages that were given back by workers that died, while each is tried alone: the one that kills is found by its tries.
CREATE TABLE suspects (
    -- The first 16 bytes of a SHA-256 of the message: to read it may be what kills.
    digest BYTEA PRIMARY KEY,
    partition TEXT NOT NULL,
    tries SMALLINT NOT NULL,
    -- Of the lease under which it was tried last. A pipeline that only waited for a store tries again under the same
    -- epoch: that is no new try.
    epoch BIGINT NOT NULL,
    last_tried_at TIMESTAMPTZ NOT NULL
);
