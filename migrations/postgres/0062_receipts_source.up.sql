-- From which upstream system a command came: an API key that may not read everything reads the receipts of its sources.
-- NULL for what could not be read, and for receipts that were written before.
ALTER TABLE receipts ADD COLUMN source TEXT;
