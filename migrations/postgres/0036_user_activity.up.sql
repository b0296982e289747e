-- Who has read lately, and how much: whose answers are worth keeping warm. Lost without harm.
CREATE TABLE user_activity (
    user_id UUID PRIMARY KEY,
    -- Reads that fade by half every so often, as a logarithm to the base 2 (core/src/heat.rs): comparable at any time, so
    -- that an index has the order and nothing is ever made to fade.
    heat DOUBLE PRECISION NOT NULL
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_threshold = 1000);

CREATE INDEX idx_user_activity_heat ON user_activity (heat DESC, user_id);
