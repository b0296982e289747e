-- Which partitions there are, and how far a change of their number is. One row; a fresh deployment takes the settings'.
CREATE TABLE partition_layout (
    one BOOLEAN PRIMARY KEY DEFAULT TRUE,
    -- Raised by every step of a change: a lease is given only to a worker that knows the newest.
    step BIGINT NOT NULL,
    phase TEXT NOT NULL,
    since TIMESTAMPTZ NOT NULL DEFAULT now(),
    -- Who asked for the last change.
    author TEXT,
    -- How many there are, and which of two sets of names their queues have.
    partitions INTEGER NOT NULL,
    alternate BOOLEAN NOT NULL,
    low_partitions INTEGER NOT NULL,
    low_alternate BOOLEAN NOT NULL,
    -- The same after the change.
    to_partitions INTEGER NOT NULL,
    to_alternate BOOLEAN NOT NULL,
    to_low_partitions INTEGER NOT NULL,
    to_low_alternate BOOLEAN NOT NULL,
    CONSTRAINT chk_partition_layout_one CHECK (one),
    CONSTRAINT chk_partition_layout_phase
        CHECK (phase IN ('settled', 'binding', 'draining', 'stopping', 'clearing')),
    CONSTRAINT chk_partition_layout_numbers
        CHECK (least(partitions, to_partitions, low_partitions, to_low_partitions) >= 1
               AND greatest(partitions, to_partitions, low_partitions, to_low_partitions) <= 256)
);

-- The step that a worker knows; NULL of a worker of a version that knows nothing of steps.
ALTER TABLE workers ADD COLUMN follows BIGINT;
