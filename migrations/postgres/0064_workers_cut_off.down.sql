ALTER TABLE workers DROP COLUMN back_since, DROP COLUMN cut_off_since;
