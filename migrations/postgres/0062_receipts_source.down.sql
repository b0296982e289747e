ALTER TABLE receipts DROP COLUMN source;
