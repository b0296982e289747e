//! Which statements take the server's time, where it counts them (`pg_stat_statements`).
//!
//! Each of our statements begins with its name, so what the server counts can be told by name: as many as the code has.

use serde_json::{Value, json};

use super::{PgPool, failed};
use crate::StoreError;

/// Rows of a report.
const ROWS: i64 = 20;
/// Characters of a statement in a report.
const STATEMENT_MAX: i32 = 300;
/// A statement that takes longer on average is slow.
const SLOW_MS: f64 = 1_000.0;
/// A name gets figures of its own once its statements have taken so long in all; the others share one. What has been
/// shown stays shown: sums only grow.
const NAMED_FROM_MS: f64 = 1_000.0;

/// What to do where statements are not counted.
pub const NOT_COUNTED: &str = "not counted: add pg_stat_statements to shared_preload_libraries, restart, and CREATE EXTENSION pg_stat_statements \
     in this database";

/// Figures of the statements of one name.
#[derive(Debug, Clone, PartialEq, sqlx::FromRow)]
pub struct Named {
    /// The name with which the statements begin; `other` for all that have none, or have taken little time.
    pub name: String,
    pub calls: i64,
    pub seconds: f64,
    /// How many of them are slow.
    pub slow: i64,
}

async fn are_counted(pool: &PgPool) -> Result<bool, StoreError> {
    sqlx::query_scalar(
        "/* counts_statements */
        SELECT EXISTS (SELECT FROM pg_extension WHERE extname = 'pg_stat_statements')
            AND current_setting('shared_preload_libraries') LIKE '%pg_stat_statements%'",
    )
    .fetch_one(pool)
    .await
    .map_err(failed("look whether statements are counted"))
}

/// The time of this database's statements by their names; `None` where they are not counted.
pub async fn by_name(pool: &PgPool) -> Result<Option<Vec<Named>>, StoreError> {
    if !are_counted(pool).await? {
        return Ok(None);
    }
    let named = sqlx::query_as(
        r"/* statements_by_name */
        WITH named AS (
            SELECT COALESCE(substring(query FROM '^\s*/\* ([a-z0-9_]{1,60}) \*/'), 'other') AS name,
                   sum(calls)::bigint AS calls, sum(total_exec_time) AS ms,
                   count(*) FILTER (WHERE mean_exec_time >= $1) AS slow
            FROM pg_stat_statements
            WHERE dbid = (SELECT oid FROM pg_database WHERE datname = current_database())
            GROUP BY 1
        )
        SELECT CASE WHEN ms >= $2 THEN name ELSE 'other' END AS name, sum(calls)::bigint AS calls,
               sum(ms) / 1000 AS seconds, sum(slow)::bigint AS slow
        FROM named GROUP BY 1 ORDER BY seconds DESC LIMIT 300",
    )
    .bind(SLOW_MS)
    .bind(NAMED_FROM_MS)
    .fetch_all(pool)
    .await
    .map_err(failed("measure the statements"))?;
    Ok(Some(named))
}

/// The statements that took most of the server's time, for a person; in words, what is missing, where none are counted.
pub async fn slowest(pool: &PgPool) -> Result<Value, StoreError> {
    if !are_counted(pool).await? {
        return Ok(NOT_COUNTED.into());
    }
    let rows: Vec<(String, i64, f64, f64, f64, i64)> = sqlx::query_as(
        "/* slow_statements */
        SELECT left(query, $2), calls, total_exec_time, mean_exec_time, max_exec_time, rows FROM pg_stat_statements
        WHERE dbid = (SELECT oid FROM pg_database WHERE datname = current_database())
        ORDER BY total_exec_time DESC LIMIT $1",
    )
    .bind(ROWS)
    .bind(STATEMENT_MAX)
    .fetch_all(pool)
    .await
    .map_err(failed("list slow statements"))?;
    let row = |(statement, calls, total_ms, mean_ms, max_ms, rows): (String, i64, f64, f64, f64, i64)| {
        json!({
            "statement": statement, "calls": calls, "total_ms": total_ms.round(), "mean_ms": mean_ms,
            "max_ms": max_ms, "rows": rows, "slow": mean_ms >= SLOW_MS,
        })
    };
    Ok(rows.into_iter().map(row).collect())
}
