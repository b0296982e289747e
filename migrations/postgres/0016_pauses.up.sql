-- What operators hold back: everything, a partition, or a type of command. It lasts until somebody resumes it.
CREATE TABLE pauses (
    scope TEXT PRIMARY KEY,
    reason TEXT NOT NULL,
    author TEXT NOT NULL,
    since TIMESTAMPTZ NOT NULL DEFAULT now(),
    CONSTRAINT chk_pauses_scope CHECK (scope = 'all' OR scope LIKE 'partition:%' OR scope LIKE 'type:%'),
    CONSTRAINT chk_pauses_reason CHECK (char_length(reason) BETWEEN 1 AND 500),
    CONSTRAINT chk_pauses_author CHECK (char_length(author) BETWEEN 1 AND 200)
);

-- How far a partition has got: what was accepted before this is finished. It tells how old the oldest waiting command is.
ALTER TABLE partition_leases ADD COLUMN reached TIMESTAMPTZ;
