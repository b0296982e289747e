ALTER TABLE partition_leases DROP COLUMN reached;
DROP TABLE pauses;
