//! What the server tells of itself: connections, long transactions, sizes, indexes, slow statements.

use serde::Serialize;
use serde_json::{Value, json};

use super::{PgPool, failed, statements};
use crate::StoreError;

/// Rows of each list of a report.
const ROWS: i64 = 20;
/// A transaction that is open for longer lasts long, in seconds: none of the program's own may stand still for so long.
const LONG_S: f64 = 30.0;
/// Indexes that are told of; the schema has fewer.
const INDEXES_MAX: i64 = 200;
/// Which indexes nobody may drop for want of use: they hold a constraint up.
const NEEDED: &str = "(i.indisunique OR i.indisprimary OR i.indisexclusion)";

/// Figures of one moment, for the metrics.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, sqlx::FromRow)]
pub struct Moment {
    pub connections_active: i64,
    pub connections_idle: i64,
    pub connections_idle_in_transaction: i64,
    pub connections_max: i64,
    /// How long the oldest transaction has been open, in seconds.
    pub oldest_transaction_s: f64,
    /// Transactions that have been open for longer than half a minute.
    pub long_transactions: i64,
    /// Transactions since the oldest one that a session, a replication slot or a prepared transaction still holds: what is
    /// younger can't be vacuumed.
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
               count(*) FILTER (WHERE pid <> pg_backend_pid()
                   AND xact_start < clock_timestamp() - $1 * interval '1 second') AS long_transactions,
               GREATEST((SELECT max(GREATEST(age(backend_xmin), age(backend_xid))) FROM pg_stat_activity
                    WHERE pid <> pg_backend_pid()),
                   (SELECT max(GREATEST(age(xmin), age(catalog_xmin))) FROM pg_replication_slots),
                   (SELECT max(age(transaction)) FROM pg_prepared_xacts), 0)::bigint AS oldest_xmin_age,
               (SELECT max(age(datfrozenxid)) FROM pg_database)::bigint AS wraparound_age,
               pg_database_size(current_database()) AS database_bytes
        FROM pg_stat_activity WHERE backend_type = 'client backend'",
    )
    .bind(LONG_S)
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

/// An index and its use since the server's statistics began.
#[derive(Debug, Clone, PartialEq, Serialize, sqlx::FromRow)]
pub struct IndexUse {
    #[serde(rename = "table")]
    pub table_name: String,
    #[serde(rename = "index")]
    pub name: String,
    pub scans: i64,
    pub bytes: i64,
    /// Whether a constraint needs it, used or not.
    pub needed: bool,
}

impl IndexUse {
    /// It costs every write, and nothing has ever read it.
    pub fn is_unused(&self) -> bool {
        self.scans == 0 && !self.needed
    }
}

/// Our valid indexes, the least used first, the largest of those first.
pub async fn index_use(pool: &PgPool) -> Result<Vec<IndexUse>, StoreError> {
    let statement = format!(
        "/* index_use */
        SELECT s.relname AS table_name, s.indexrelname AS name, s.idx_scan AS scans,
               pg_relation_size(s.indexrelid) AS bytes, {NEEDED} AS needed
        FROM pg_stat_user_indexes s JOIN pg_index i ON i.indexrelid = s.indexrelid
        WHERE s.schemaname = 'public' AND i.indisvalid ORDER BY scans, bytes DESC LIMIT $1"
    );
    sqlx::query_as(sqlx::AssertSqlSafe(statement))
        .bind(INDEXES_MAX)
        .fetch_all(pool)
        .await
        .map_err(failed("look at the indexes"))
}

/// A report for a person: connections, indexes and their use, transactions that last, what holds the oldest xmin, slow
/// statements.
pub async fn report(pool: &PgPool) -> Result<Value, StoreError> {
    let connections: Vec<(Option<String>, Option<String>, i64)> = sqlx::query_as(
        "/* connections */
        SELECT application_name, state, count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'
        GROUP BY 1, 2 ORDER BY 3 DESC LIMIT $1",
    )
    .bind(ROWS)
    .fetch_all(pool)
    .await
    .map_err(failed("count the connections"))?;
    let indexes = index_use(pool).await?;
    let transactions: Vec<(i32, Option<String>, Option<String>, f64)> = sqlx::query_as(
        "/* long_transactions */
        SELECT pid, application_name, state, EXTRACT(EPOCH FROM clock_timestamp() - xact_start)::double precision
        FROM pg_stat_activity
        WHERE xact_start < clock_timestamp() - $2 * interval '1 second' AND pid <> pg_backend_pid()
        ORDER BY xact_start LIMIT $1",
    )
    .bind(ROWS)
    .bind(LONG_S)
    .fetch_all(pool)
    .await
    .map_err(failed("look for long transactions"))?;
    let unused: Vec<&IndexUse> =
        indexes.iter().filter(|index| index.is_unused()).take(ROWS as usize).collect();
    let used: Vec<&IndexUse> =
        indexes.iter().rev().filter(|index| index.scans > 0).take(ROWS as usize).collect();
    Ok(json!({
        "connections": connections.iter().map(|(who, state, count)| json!({
            "application": who, "state": state, "count": count,
        })).collect::<Vec<_>>(),
        "unused_indexes": unused,
        "most_used_indexes": used,
        "long_transactions": transactions.iter().map(|(pid, who, state, seconds)| json!({
            "pid": pid, "application": who, "state": state, "seconds": seconds.round(),
        })).collect::<Vec<_>>(),
        "oldest_xmin": oldest_xmin(pool).await?,
        "slow_statements": statements::slowest(pool).await?,
    }))
}

/// Who keeps dead rows from going: sessions, replication slots, prepared transactions, those that hold the oldest first.
async fn oldest_xmin(pool: &PgPool) -> Result<Vec<Value>, StoreError> {
    let holders: Vec<(String, String, i32)> = sqlx::query_as(
        "/* oldest_xmin */
        SELECT * FROM (
            SELECT 'session', concat_ws(' ', pid, application_name), GREATEST(age(backend_xmin), age(backend_xid)) AS age
            FROM pg_stat_activity WHERE pid <> pg_backend_pid()
            UNION ALL
            SELECT 'replication slot', slot_name, GREATEST(age(xmin), age(catalog_xmin)) FROM pg_replication_slots
            UNION ALL
            SELECT 'prepared transaction', gid, age(transaction) FROM pg_prepared_xacts
        ) AS holders (what, name, age)
        WHERE age IS NOT NULL ORDER BY age DESC LIMIT $1",
    )
    .bind(ROWS)
    .fetch_all(pool)
    .await
    .map_err(failed("look who holds the oldest xmin"))?;
    let shown = holders.iter().map(|(what, name, age)| json!({ "what": what, "name": name, "age": age }));
    Ok(shown.collect())
}
