ALTER TABLE receipts DROP COLUMN attempts;
DROP TABLE waiting_commands;
