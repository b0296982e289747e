DROP FUNCTION summarize_receipts(BIGINT[]);
