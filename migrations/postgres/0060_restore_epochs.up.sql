-- Each time that this database was brought back to an earlier state, and what of the other stores had to be brought to
-- agree with it. An event of the audit trail that tells of a command which has no receipt any more bears the epoch's
-- number; it is never removed for that.
CREATE TABLE restore_epochs (
    epoch BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    begun_at TIMESTAMPTZ NOT NULL,
    -- The newest receipt that this database had then.
    point TIMESTAMPTZ,
    author TEXT NOT NULL,
    -- NULL: not all of it is done yet.
    ended_at TIMESTAMPTZ,
    undone_commands BIGINT,
    undone_events BIGINT,
    missing_events BIGINT,
    keys_removed BIGINT
);
