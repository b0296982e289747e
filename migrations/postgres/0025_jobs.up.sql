-- Which scheduler leads. One row; each change of hands raises the epoch, and every write of a job's run is made under it.
CREATE TABLE scheduler_leader (
    single BOOLEAN PRIMARY KEY DEFAULT true,
    epoch BIGINT NOT NULL,
    -- The process, new at every start, and where it runs.
    holder UUID,
    host TEXT,
    since TIMESTAMPTZ,
    expires_at TIMESTAMPTZ NOT NULL,
    CONSTRAINT chk_scheduler_leader_single CHECK (single)
) WITH (fillfactor = 20, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500);
INSERT INTO scheduler_leader (epoch, expires_at) VALUES (0, '-infinity');

-- What is due when. The schedules themselves stand in the settings; here is what must outlive a process.
CREATE TABLE job_schedules (
    name TEXT PRIMARY KEY,
    -- The job that it runs.
    job TEXT NOT NULL,
    -- What its due times follow from. When it changes, the next one is looked for anew.
    definition TEXT NOT NULL,
    enabled BOOLEAN NOT NULL,
    -- The first due time that nobody has dealt with, and when its run begins (jitter). NULL: the reconciler looks for it.
    next_due_at TIMESTAMPTZ,
    next_begins_at TIMESTAMPTZ,
    paused_at TIMESTAMPTZ,
    paused_by TEXT,
    paused_why TEXT,
    -- What the job wants to find again: how far it has got.
    state JSONB,
    CONSTRAINT chk_job_schedules_next CHECK ((next_due_at IS NULL) = (next_begins_at IS NULL)),
    CONSTRAINT chk_job_schedules_paused CHECK ((paused_at IS NULL) = (paused_by IS NULL))
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.05);

CREATE INDEX idx_job_schedules_next ON job_schedules (next_begins_at) WHERE enabled AND paused_at IS NULL;
CREATE INDEX idx_job_schedules_unarmed ON job_schedules (name) WHERE enabled AND next_due_at IS NULL;

-- The ledger: one row a due time, written before anything is run.
CREATE TABLE job_runs (
    id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    schedule TEXT NOT NULL,
    job TEXT NOT NULL,
    due_at TIMESTAMPTZ NOT NULL,
    -- The last of the due times that share this row after a long outage.
    through TIMESTAMPTZ,
    met TEXT NOT NULL,
    state TEXT NOT NULL,
    -- Not before this: a retry's pause.
    begins_at TIMESTAMPTZ NOT NULL,
    attempt SMALLINT NOT NULL DEFAULT 0,
    -- Of the leader that wrote it last.
    epoch BIGINT NOT NULL,
    host TEXT,
    started_at TIMESTAMPTZ,
    ended_at TIMESTAMPTZ,
    detail TEXT,
    arguments JSONB,
    figures JSONB,
    log JSONB,
    asked_by TEXT,
    cancel_asked_at TIMESTAMPTZ,
    cancel_asked_by TEXT,
    CONSTRAINT uq_job_runs_due UNIQUE (schedule, due_at),
    CONSTRAINT chk_job_runs_met CHECK (met IN ('on_time', 'late', 'caught_up', 'missed', 'coalesced', 'overlapped',
        'outside_window', 'by_hand')),
    CONSTRAINT chk_job_runs_state CHECK (state IN ('waiting', 'running', 'completed', 'failed', 'timed_out', 'cancelled',
        'not_run')),
    CONSTRAINT chk_job_runs_ended CHECK ((state IN ('waiting', 'running')) = (ended_at IS NULL))
) WITH (autovacuum_vacuum_scale_factor = 0.02);

CREATE INDEX idx_job_runs_unfinished ON job_runs (schedule, due_at) WHERE state IN ('waiting', 'running');
CREATE INDEX idx_job_runs_ended ON job_runs (ended_at) WHERE ended_at IS NOT NULL;
CREATE INDEX idx_job_runs_job ON job_runs (job, id DESC);
