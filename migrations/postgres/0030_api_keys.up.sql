-- What programs authenticate with. The key itself is nowhere: it has 256 random bits, so its SHA-256 is enough.
CREATE TABLE api_keys (
    id UUID PRIMARY KEY,
    name TEXT NOT NULL,
    digest BYTEA NOT NULL,
    scopes TEXT[] NOT NULL,
    -- The sources that it speaks for.
    source_prefix TEXT,
    created_at TIMESTAMPTZ NOT NULL,
    created_by UUID NOT NULL,
    expires_at TIMESTAMPTZ,
    -- To the minute, and some seconds late.
    last_used_at TIMESTAMPTZ,
    -- A revoked key stays: the audit trail names it.
    revoked_at TIMESTAMPTZ,
    CONSTRAINT chk_api_keys_name CHECK (char_length(name) BETWEEN 1 AND 100),
    CONSTRAINT chk_api_keys_digest CHECK (octet_length(digest) = 32),
    CONSTRAINT chk_api_keys_scopes
        CHECK (cardinality(scopes) > 0 AND scopes <@ ARRAY['commands:write', 'read', 'admin']),
    CONSTRAINT chk_api_keys_source_prefix
        CHECK (NOT 'commands:write' = ANY(scopes) OR coalesce(char_length(source_prefix), 0) BETWEEN 1 AND 255)
);
