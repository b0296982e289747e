ALTER TABLE workers DROP COLUMN follows;
DROP TABLE partition_layout;
