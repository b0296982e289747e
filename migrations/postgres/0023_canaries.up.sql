-- The canaries: one row a partition, whatever is sent. It tells who watches over it, and the pair of commands that is on
-- its way, so that another process goes on with it.
CREATE TABLE canaries (
    partition TEXT PRIMARY KEY,
    holder UUID NOT NULL,
    held_until TIMESTAMPTZ NOT NULL,
    subject UUID,
    -- The subject's version before the pair.
    base INTEGER,
    -- The ids of the pair; none while nothing is on its way.
    first UUID,
    second UUID,
    -- When the newest pair was offered.
    sent_at TIMESTAMPTZ,
    -- Whether it was counted as stuck already.
    stuck BOOLEAN NOT NULL DEFAULT false,
    CONSTRAINT chk_canaries_pair CHECK (
        (first IS NULL) = (second IS NULL)
        AND (first IS NULL OR (subject IS NOT NULL AND base IS NOT NULL AND sent_at IS NOT NULL))
    )
) WITH (fillfactor = 20, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500);
