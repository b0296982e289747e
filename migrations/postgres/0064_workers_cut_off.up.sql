-- A worker that reaches Postgres but not the broker renews its leases and consumes nothing. It says so, and the others
-- take its partitions. NULL, as older programs leave it: it reaches the broker.
ALTER TABLE workers ADD COLUMN cut_off_since TIMESTAMPTZ, ADD COLUMN back_since TIMESTAMPTZ;
