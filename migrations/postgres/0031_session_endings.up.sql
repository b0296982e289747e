-- Users whose sessions must end and whose cached rights are stale, since their role or password changed. Written in
-- the transaction of the change, removed when Redis has done it: a Redis that is away ends them later, not never.
CREATE TABLE session_endings (
    user_id UUID PRIMARY KEY REFERENCES users (id) ON DELETE CASCADE,
    -- The user's version after the change: sessions of an older one end.
    version INTEGER NOT NULL
);
