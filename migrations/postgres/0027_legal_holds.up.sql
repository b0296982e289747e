-- What must not be removed while a matter lasts: everything about an entity, or everything that an actor did.
CREATE TABLE legal_holds (
    id UUID PRIMARY KEY,
    scope TEXT NOT NULL,
    subject UUID NOT NULL,
    why TEXT NOT NULL,
    author TEXT NOT NULL,
    since TIMESTAMPTZ NOT NULL,
    -- When the audit trail's events were marked last; NULL: not yet.
    applied_at TIMESTAMPTZ,
    released_at TIMESTAMPTZ,
    released_by TEXT,
    -- When the events had their own times again after the release.
    lifted_at TIMESTAMPTZ,
    CONSTRAINT chk_legal_holds_scope CHECK (scope IN ('entity', 'actor')),
    CONSTRAINT chk_legal_holds_why CHECK (char_length(why) BETWEEN 1 AND 1000),
    CONSTRAINT chk_legal_holds_released CHECK ((released_at IS NULL) = (released_by IS NULL))
);

-- One hold a subject at a time.
CREATE UNIQUE INDEX uq_legal_holds_standing ON legal_holds (scope, subject) WHERE released_at IS NULL;
CREATE INDEX idx_legal_holds_subject ON legal_holds (subject) WHERE released_at IS NULL;
CREATE INDEX idx_legal_holds_unlifted ON legal_holds (released_at) WHERE released_at IS NOT NULL AND lifted_at IS NULL;
