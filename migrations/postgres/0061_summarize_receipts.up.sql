-- Only its owner may let a block range index look at its ranges anew; the scheduler's role is not the owner, and does it
-- through this. `ranges` are numbers of ranges of 128 blocks; without any it is what was added since the last vacuum.
CREATE FUNCTION summarize_receipts(ranges BIGINT[]) RETURNS VOID
LANGUAGE plpgsql SECURITY DEFINER
-- Nobody's temporary tables or other schemas come before ours.
SET search_path = pg_catalog, public, pg_temp
AS $$
BEGIN
    IF cardinality(ranges) = 0 THEN
        PERFORM brin_summarize_new_values('idx_receipts_finished_at'::regclass);
    ELSE
        PERFORM brin_desummarize_range('idx_receipts_finished_at'::regclass, range * 128),
                brin_summarize_range('idx_receipts_finished_at'::regclass, range * 128)
        FROM UNNEST(ranges) AS r (range);
    END IF;
END
$$;

-- ops/roles/postgres.sql gives it to the scheduler's role.
REVOKE ALL ON FUNCTION summarize_receipts(BIGINT[]) FROM PUBLIC;
