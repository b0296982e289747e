//! Removing what is not kept for ever, a bounded number of rows at a time: receipts, batches, deleted tasks, what
//! processes left behind. What is on hold stays.

use chrono::{DateTime, Utc};
use sqlx::PgConnection;

use super::{PgPool, explain, failed, lacks_privilege};
use crate::StoreError;

/// Blocks that one entry of the receipts' block range index stands for (Postgres's default).
const RANGE_BLOCKS: i64 = 128;

/// Receipts that went.
#[derive(Debug, Clone, Default, sqlx::FromRow)]
pub struct Gone {
    pub rows: i64,
    /// The block ranges that they were in.
    pub ranges: Vec<i64>,
    /// Whether there are receipts from before the span.
    pub older: bool,
}

/// What is not a hold on a receipt's subject or on who sent its command, nor a dead letter that still lies there.
const RECEIPT_NOT_KEPT: &str = "NOT EXISTS (SELECT FROM dead_letters d WHERE d.command_id = r.id)
    AND NOT EXISTS (SELECT FROM legal_holds h
        WHERE h.released_at IS NULL AND h.subject = r.subject AND h.scope = 'entity')
    AND NOT EXISTS (SELECT FROM legal_holds h
        WHERE h.released_at IS NULL AND h.subject = r.actor AND h.scope = 'actor')";

/// Removes receipts that ended in a span of time, its beginning included and its end not. Those of commands of
/// which a dead letter lies there stay: a replay of it, or of bytes that were sent again correctly meanwhile, must be known.
pub async fn receipts(
    connection: &mut PgConnection,
    from: DateTime<Utc>,
    before: DateTime<Utc>,
    limit: i64,
) -> Result<Gone, StoreError> {
    // They lie together, and the block range index knows where: the planner, which believes that old ones are everywhere,
    // goes by it since our connections forbid it to read the table ([`super::connect`]).
    let statement = format!(
        "/* prune_receipts */
        WITH old AS (
            SELECT r.ctid FROM receipts r WHERE finished_at < $1 AND finished_at >= $4 AND {RECEIPT_NOT_KEPT} LIMIT $2
        ), gone AS (
            DELETE FROM receipts r USING old WHERE r.ctid = old.ctid
            RETURNING (old.ctid::text::point)[0]::bigint / $3 AS range
        )
        SELECT count(*) AS rows, COALESCE(array_agg(DISTINCT range), '{{}}') AS ranges,
               EXISTS (SELECT FROM receipts WHERE finished_at < $4) AS older
        FROM gone"
    );
    sqlx::query_as(sqlx::AssertSqlSafe(statement))
        .bind(before)
        .bind(limit)
        .bind(RANGE_BLOCKS)
        .bind(from)
        .fetch_one(connection)
        .await
        .map_err(failed("remove old receipts"))
}

/// How many receipts [`receipts`] would remove, counted up to a number.
pub async fn receipts_count(pool: &PgPool, before: DateTime<Utc>, most: i64) -> Result<i64, StoreError> {
    let statement = format!(
        "/* count_receipts */
        SELECT count(*) FROM (SELECT FROM receipts r WHERE finished_at < $1 AND {RECEIPT_NOT_KEPT} LIMIT $2) AS past"
    );
    sqlx::query_scalar(sqlx::AssertSqlSafe(statement))
        .bind(before)
        .bind(most)
        .fetch_one(pool)
        .await
        .map_err(failed("count old receipts"))
}

/// When the receipts' dead rows were removed last, by whomever.
pub async fn receipts_vacuumed(pool: &PgPool) -> Result<Option<DateTime<Utc>>, StoreError> {
    sqlx::query_scalar(
        "/* receipts_vacuumed */
        SELECT GREATEST(last_vacuum, last_autovacuum) FROM pg_stat_user_tables WHERE relid = 'receipts'::regclass",
    )
    .fetch_one(pool)
    .await
    .map_err(failed("look when receipts were vacuumed"))
}

/// Lets the block range index look at these ranges anew. It only ever widens what it knows of a range, so without this
/// a range whose old rows are gone, and which new ones fill, would be searched for old ones for ever. That goes for ranges
/// that a vacuum has cut off at the table's end as well: the index remembers them until the table grows again.
///
/// Without ranges it looks at what was added since the last vacuum: until then every look for old receipts reads it.
///
/// `Some` has the server's words if this role may not do it: it costs time then, and no receipt stays for it.
pub async fn receipts_summarize(
    connection: &mut PgConnection,
    ranges: &[i64],
) -> Result<Option<String>, StoreError> {
    // It is the owner's, who alone may do this.
    let looked = sqlx::query("/* summarize_receipts */ SELECT summarize_receipts($1)").bind(ranges);
    match looked.execute(connection).await {
        Ok(_) => Ok(None),
        Err(error) if lacks_privilege(&error) => Ok(Some(explain(&error))),
        Err(error) => Err(failed("look at the receipts' index")(error)),
    }
}

/// The partitions that have batches.
pub async fn partitions(pool: &PgPool) -> Result<Vec<String>, StoreError> {
    sqlx::query_scalar("/* partitions_of_batches */ SELECT partition FROM partition_heads ORDER BY partition")
        .fetch_all(pool)
        .await
        .map_err(failed("list the partitions"))
}

/// Removes the times of batches that were applied before a time.
pub async fn batches(
    connection: &mut PgConnection,
    partition: &str,
    before: DateTime<Utc>,
    limit: i64,
) -> Result<u64, StoreError> {
    // The oldest first and only then the time: else a look that finds nothing would read them all.
    let gone = sqlx::query(
        "/* prune_batches */
        DELETE FROM batches b USING (
            SELECT number, applied_at FROM batches WHERE partition = $1 ORDER BY number LIMIT $3
        ) old
        WHERE b.partition = $1 AND b.number = old.number AND old.applied_at < $2",
    )
    .bind(partition)
    .bind(before)
    .bind(limit)
    .execute(connection)
    .await
    .map_err(failed("remove old batches"))?;
    Ok(gone.rows_affected())
}

/// What is not a hold on a task, on who made it, or on who was to do it.
const TASK_NOT_HELD: &str = "(NOT EXISTS (SELECT FROM legal_holds h
        WHERE h.released_at IS NULL AND h.subject = t.id AND h.scope = 'entity')
    AND NOT EXISTS (SELECT FROM legal_holds h
        WHERE h.released_at IS NULL AND h.subject IN (t.creator_id, t.assignee_id) AND h.scope = 'actor'))";

/// Removes tasks that were deleted before a time.
pub async fn deleted_tasks(
    connection: &mut PgConnection,
    before: DateTime<Utc>,
    limit: i64,
) -> Result<u64, StoreError> {
    let statement = format!(
        "/* prune_tasks */
        DELETE FROM tasks WHERE id IN (
            SELECT id FROM tasks t WHERE deleted_at < $1 AND {TASK_NOT_HELD}
            ORDER BY deleted_at LIMIT $2 FOR UPDATE SKIP LOCKED)"
    );
    let gone = sqlx::query(sqlx::AssertSqlSafe(statement))
        .bind(before)
        .bind(limit)
        .execute(connection)
        .await
        .map_err(failed("remove deleted tasks"))?;
    Ok(gone.rows_affected())
}

/// How many tasks that were deleted before a time could go, and how many of those are held.
pub async fn deleted_tasks_count(pool: &PgPool, before: DateTime<Utc>) -> Result<(i64, i64), StoreError> {
    let statement = format!(
        "/* count_deleted_tasks */
        SELECT count(*) FILTER (WHERE {TASK_NOT_HELD}), count(*) FILTER (WHERE NOT {TASK_NOT_HELD})
        FROM tasks t WHERE deleted_at < $1"
    );
    sqlx::query_as(sqlx::AssertSqlSafe(statement))
        .bind(before)
        .fetch_one(pool)
        .await
        .map_err(failed("count deleted tasks"))
}

/// What processes that are gone have left behind.
#[derive(Debug, Clone, Copy, sqlx::FromRow)]
pub struct Left {
    pub leases: i64,
    pub workers: i64,
    pub suspects: i64,
}

/// Removes leases and workers that ran out a day ago, and suspects that nobody has tried for a month: their message is
/// long gone.
pub async fn left_behind(connection: &mut PgConnection) -> Result<Left, StoreError> {
    sqlx::query_as(
        "/* prune_leases */
        WITH leases AS (
            DELETE FROM partition_leases WHERE expires_at < now() - interval '1 day' RETURNING 1
        ), gone AS (
            DELETE FROM workers WHERE expires_at < now() - interval '1 day' RETURNING 1
        ), suspects AS (
            DELETE FROM suspects WHERE last_tried_at < now() - interval '30 days' RETURNING 1
        )
        SELECT (SELECT count(*) FROM leases) AS leases, (SELECT count(*) FROM gone) AS workers,
               (SELECT count(*) FROM suspects) AS suspects",
    )
    .fetch_one(connection)
    .await
    .map_err(failed("remove stale leases"))
}

/// What [`left_behind`] would remove.
pub async fn left_behind_count(pool: &PgPool) -> Result<Left, StoreError> {
    sqlx::query_as(
        "/* count_stale_leases */
        SELECT (SELECT count(*) FROM partition_leases WHERE expires_at < now() - interval '1 day') AS leases,
               (SELECT count(*) FROM workers WHERE expires_at < now() - interval '1 day') AS workers,
               (SELECT count(*) FROM suspects WHERE last_tried_at < now() - interval '30 days') AS suspects",
    )
    .fetch_one(pool)
    .await
    .map_err(failed("count stale leases"))
}
