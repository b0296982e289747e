//! What the server tells of itself: connections, long transactions, sizes, indexes, slow statements.

use serde::Serialize;
use serde_json::{Value, json};
use sqlx::PgPool;

use super::failed;
use crate::StoreError;

/// Rows of each list of a report.
const ROWS: i64 = 20;
/// Characters of a statement in a report.
const STATEMENT_MAX: i32 = 300;

/// Figures of one moment, for the metrics.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, sqlx::FromRow)]
pub struct Moment {
    pub connections_active: i64,
    pub connections_idle: i64,
    pub connections_idle_in_transaction: i64,
    pub connections_max: i64,
    /// How long the oldest transaction has been open, in seconds.
    pub oldest_transaction_s: f64,
    /// Transactions since the oldest one that somebody still sees: what is younger can't be vacuumed.
    pub oldest_xmin_age: i64,
    /// Transactions since the oldest frozen one; the server stops before two thousand million.
    pub wraparound_age: i64,
    pub database_bytes: i64,
}

/// Looks at the server.
pub async fn moment(pool: &PgPool) -> Result<Moment, StoreError> {
    sqlx::query_as(
        "/* server_moment */
        SELECT count(*) FILTER (WHERE state = 'active') AS connections_active,
               count(*) FILTER (WHERE state = 'idle') AS connections_idle,
               count(*) FILTER (WHERE state LIKE 'idle in transaction%') AS connections_idle_in_transaction,
               current_setting('max_connections')::bigint AS connections_max,
               COALESCE(EXTRACT(EPOCH FROM clock_timestamp() - min(xact_start)
                   FILTER (WHERE pid <> pg_backend_pid())), 0)::double precision AS oldest_transaction_s,
               COALESCE(max(GREATEST(age(backend_xmin), age(backend_xid)))
                   FILTER (WHERE pid <> pg_backend_pid()), 0)::bigint AS oldest_xmin_age,
               (SELECT max(age(datfrozenxid)) FROM pg_database)::bigint AS wraparound_age,
               pg_database_size(current_database()) AS database_bytes
        FROM pg_stat_activity WHERE backend_type = 'client backend'",
    )
    .fetch_one(pool)
    .await
    .map_err(failed("look at the server"))
}

/// Size and dead rows of each of our tables, the largest first.
pub async fn table_sizes(pool: &PgPool) -> Result<Vec<(String, i64, i64)>, StoreError> {
    sqlx::query_as(
        "/* table_sizes */
        SELECT relname, pg_total_relation_size(relid), n_dead_tup FROM pg_stat_user_tables
        WHERE schemaname = 'public' ORDER BY 2 DESC LIMIT 100",
    )
    .fetch_all(pool)
    .await
    .map_err(failed("measure the tables"))
}

/// A report for a person: tables, indexes and their use, transactions that last, slow statements.
pub async fn report(pool: &PgPool) -> Result<Value, StoreError> {
    let indexes: Vec<(String, String, i64, i64)> = sqlx::query_as(
        "/* unused_indexes */
        SELECT s.relname, s.indexrelname, s.idx_scan, pg_relation_size(s.indexrelid) FROM pg_stat_user_indexes s
        JOIN pg_index i ON i.indexrelid = s.indexrelid
        WHERE s.schemaname = 'public' ORDER BY s.idx_scan, 4 DESC LIMIT 200",
    )
    .fetch_all(pool)
    .await
    .map_err(failed("look at the indexes"))?;
    let transactions: Vec<(i32, Option<String>, Option<String>, f64)> = sqlx::query_as(
        "/* long_transactions */
        SELECT pid, application_name, state, EXTRACT(EPOCH FROM clock_timestamp() - xact_start)::double precision
        FROM pg_stat_activity WHERE xact_start < clock_timestamp() - interval '1 minute' AND pid <> pg_backend_pid()
        ORDER BY xact_start LIMIT $1",
    )
    .bind(ROWS)
    .fetch_all(pool)
    .await
    .map_err(failed("look for long transactions"))?;
    let usage = |(table, index, scans, bytes): &(String, String, i64, i64)| json!({ "table": table, "index": index, "scans": scans, "bytes": bytes });
    let unused = indexes.iter().filter(|(.., scans, _)| *scans == 0).take(ROWS as usize);
    let used = indexes.iter().rev().filter(|(.., scans, _)| *scans > 0).take(ROWS as usize);
    Ok(json!({
        "unused_indexes": unused.map(usage).collect::<Vec<_>>(),
        "most_used_indexes": used.map(usage).collect::<Vec<_>>(),
        "long_transactions": transactions.iter().map(|(pid, who, state, seconds)| json!({
            "pid": pid, "application": who, "state": state, "seconds": seconds.round(),
        })).collect::<Vec<_>>(),
        "slow_statements": slow(pool).await?,
    }))
}

/// The statements that took most of the server's time, if it counts them.
async fn slow(pool: &PgPool) -> Result<Value, StoreError> {
    let counted: bool = sqlx::query_scalar(
        "/* counts_statements */
        SELECT EXISTS (SELECT FROM pg_extension WHERE extname = 'pg_stat_statements')
            AND current_setting('shared_preload_libraries') LIKE '%pg_stat_statements%'",
    )
    .fetch_one(pool)
    .await
    .map_err(failed("look whether statements are counted"))?;
    if !counted {
        return Ok(
            "not counted: add pg_stat_statements to shared_preload_libraries, restart, and CREATE EXTENSION \
                   pg_stat_statements in this database"
                .into(),
        );
    }
    let rows: Vec<(String, i64, f64, f64, i64)> = sqlx::query_as(
        "/* slow_statements */
        SELECT left(query, $2), calls, total_exec_time, mean_exec_time, rows FROM pg_stat_statements
        WHERE dbid = (SELECT oid FROM pg_database WHERE datname = current_database())
        ORDER BY total_exec_time DESC LIMIT $1",
    )
    .bind(ROWS)
    .bind(STATEMENT_MAX)
    .fetch_all(pool)
    .await
    .map_err(failed("list slow statements"))?;
    let row = |(statement, calls, total_ms, mean_ms, rows): (String, i64, f64, f64, i64)| {
        json!({
            "statement": statement, "calls": calls, "total_ms": total_ms.round(), "mean_ms": mean_ms, "rows": rows,
        })
    };
    Ok(rows.into_iter().map(row).collect())
}
