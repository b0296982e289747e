-- A command of the journal that was applied in time, before that was undone, does not expire while it waits to be applied
-- again. Its message alone does not tell.
ALTER TABLE waiting_commands ADD COLUMN applied_in_time BOOLEAN NOT NULL DEFAULT false;
