DROP TABLE workers;
DROP TABLE partition_leases;
DROP TABLE partition_heads;
DROP TABLE outbox;
DROP TABLE batches;
DROP TABLE receipts;
