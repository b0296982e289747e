ALTER TABLE waiting_commands DROP COLUMN applied_in_time;
