-- A replay of many letters, worked off by the workers at its own rate.
CREATE TABLE dead_letter_replays (
    id UUID PRIMARY KEY,
    filter JSONB NOT NULL,
    rate_per_s REAL NOT NULL,
    author UUID NOT NULL,
    why TEXT,
    state TEXT NOT NULL DEFAULT 'running',
    -- Why it stopped by itself.
    stopped_since TEXT,
    -- Letters that it has taken so far.
    taken BIGINT NOT NULL DEFAULT 0,
    created_at TIMESTAMPTZ NOT NULL,
    -- When the next letters are due.
    next_at TIMESTAMPTZ NOT NULL,
    finished_at TIMESTAMPTZ,
    CONSTRAINT chk_dead_letter_replays_state CHECK (state IN ('running', 'done', 'stopped', 'cancelled')),
    CONSTRAINT chk_dead_letter_replays_rate CHECK (rate_per_s > 0)
);

CREATE INDEX idx_dead_letter_replays_created ON dead_letter_replays (created_at DESC, id DESC);
CREATE INDEX idx_dead_letter_replays_running ON dead_letter_replays (next_at) WHERE state = 'running';

-- Messages that nobody could apply, until the retention's end. The bytes are never changed; what a person puts in their
-- place stands beside them.
CREATE TABLE dead_letters (
    id UUID PRIMARY KEY,
    -- SHA-256 of the bytes: the same bytes are the same letter.
    key BYTEA NOT NULL,
    -- What could be read of the bytes.
    command_id UUID,
    type TEXT,
    source TEXT,
    subject UUID,
    actor UUID,
    trace_id TEXT,
    -- Why it died last; the pattern is what errors of its kind have in common.
    reason TEXT NOT NULL,
    detail TEXT NOT NULL,
    pattern TEXT NOT NULL,
    fingerprint TEXT NOT NULL,
    -- Where it came from.
    exchange TEXT NOT NULL,
    queue TEXT NOT NULL,
    routing_key TEXT NOT NULL,
    headers JSONB NOT NULL,
    body BYTEA NOT NULL,
    -- What is published in a replay instead of the body, once a person has edited it.
    edited BYTEA,
    edited_key BYTEA,
    accepted_at TIMESTAMPTZ,
    state TEXT NOT NULL,
    -- The number of the newest attempt, and those that died.
    attempt INTEGER NOT NULL,
    attempts JSONB NOT NULL,
    -- How often an attempt was told of again.
    copies BIGINT NOT NULL,
    first_died_at TIMESTAMPTZ NOT NULL,
    last_died_at TIMESTAMPTZ NOT NULL,
    -- The last decision of a person.
    decided_at TIMESTAMPTZ,
    decided_by UUID,
    decided_why TEXT,
    -- The replay of many that took it last, and its place in it.
    replay UUID REFERENCES dead_letter_replays (id) ON DELETE SET NULL,
    replay_place BIGINT,
    CONSTRAINT uq_dead_letters_key UNIQUE (key),
    CONSTRAINT chk_dead_letters_state CHECK (state IN ('kept', 'replaying', 'replayed', 'discarded')),
    CONSTRAINT chk_dead_letters_key CHECK (octet_length(key) = 32),
    CONSTRAINT chk_dead_letters_edited CHECK ((edited IS NULL) = (edited_key IS NULL))
);

CREATE INDEX idx_dead_letters_died ON dead_letters (last_died_at DESC, id DESC);
CREATE INDEX idx_dead_letters_kept ON dead_letters (fingerprint, first_died_at, id) WHERE state = 'kept';
CREATE INDEX idx_dead_letters_replaying ON dead_letters (decided_at, id) WHERE state = 'replaying';
CREATE INDEX idx_dead_letters_command ON dead_letters (command_id) WHERE command_id IS NOT NULL;
CREATE INDEX idx_dead_letters_edited ON dead_letters (edited_key) WHERE edited_key IS NOT NULL;
CREATE INDEX idx_dead_letters_replay ON dead_letters (replay, replay_place) WHERE replay IS NOT NULL;
