//! Upkeep of the server itself: analyze, vacuum, reindex. None of it can be done in a transaction, so it has connections
//! of its own, without the time-outs of the others.

use std::time::Duration;

use futures_util::TryFutureExt;
use sqlx::PgConnection;

use super::pool::connect_alone;
use super::silence::{self, ANSWER};
use super::{PgPool, failed};
use crate::StoreError;

/// A table, as far as its upkeep goes.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct Table {
    pub name: String,
    pub dead_rows: i64,
    pub live_rows: i64,
    pub bytes: i64,
    /// Rows that changed since its statistics were made.
    pub changed: i64,
}

/// The application's tables, the largest first.
pub async fn tables(pool: &PgPool) -> Result<Vec<Table>, StoreError> {
    sqlx::query_as(
        "/* upkeep_tables */
        SELECT relname AS name, n_dead_tup AS dead_rows, n_live_tup AS live_rows, pg_total_relation_size(relid) AS bytes,
               n_mod_since_analyze AS changed
        FROM pg_stat_user_tables WHERE schemaname = 'public' ORDER BY bytes DESC LIMIT 1000",
    )
    .fetch_all(pool)
    .await
    .map_err(failed("list the tables"))
}

/// A B-tree index and how much of it is empty.
#[derive(Debug, Clone, PartialEq, sqlx::FromRow)]
pub struct Index {
    pub name: String,
    pub table_name: String,
    pub bytes: i64,
    /// What its entries would need, freshly built; an estimate from the statistics.
    pub needed_bytes: i64,
}

impl Index {
    /// The share of it that is empty.
    pub fn bloat(&self) -> f64 {
        if self.bytes <= 0 { 0.0 } else { (1.0 - self.needed_bytes as f64 / self.bytes as f64).max(0.0) }
    }
}

/// The valid B-tree indexes of at least so many bytes. An entry takes its columns' average width, eight bytes of header
/// and four of pointer, in pages that are nine tenths full. Deduplication makes real ones smaller, so this errs on the
/// side of leaving an index alone.
pub async fn indexes(pool: &PgPool, bytes_min: i64) -> Result<Vec<Index>, StoreError> {
    sqlx::query_as(
        "/* upkeep_indexes */
        SELECT c.relname AS name, t.relname AS table_name, pg_relation_size(c.oid) AS bytes,
               (GREATEST(c.reltuples, 0) * (12 + COALESCE(w.width, 16)) / 0.9)::bigint
                   + 2 * current_setting('block_size')::bigint AS needed_bytes
        FROM pg_index i
        JOIN pg_class c ON c.oid = i.indexrelid
        JOIN pg_class t ON t.oid = i.indrelid
        JOIN pg_namespace n ON n.oid = c.relnamespace
        JOIN pg_am a ON a.oid = c.relam
        LEFT JOIN LATERAL (
            SELECT sum(((s.avg_width + 7) / 8) * 8) AS width FROM pg_attribute k
            JOIN pg_stats s ON s.schemaname = n.nspname AND (
                (s.tablename = t.relname AND s.attname = k.attname) OR s.tablename = c.relname AND s.attname = k.attname)
            WHERE k.attrelid = c.oid
        ) w ON true
        WHERE n.nspname = 'public' AND a.amname = 'btree' AND i.indisvalid AND i.indisready
            AND pg_relation_size(c.oid) >= $1
        ORDER BY bytes DESC LIMIT 1000",
    )
    .bind(bytes_min)
    .fetch_all(pool)
    .await
    .map_err(failed("list the indexes"))
}

/// A piece of upkeep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deed<'d> {
    /// New statistics of a table for the planner.
    Analyze(&'d str),
    /// A table's dead rows make room for new ones.
    Vacuum(&'d str),
    /// Builds an index anew beside the old one.
    Reindex(&'d str),
}

/// A connection for upkeep.
pub struct Upkeep {
    pool: PgPool,
    connection: PgConnection,
    pid: i32,
}

impl Upkeep {
    pub async fn open(pool: &PgPool) -> Result<Self, StoreError> {
        let call = "open a connection for upkeep";
        // Apart from the pool's: it keeps settings that nobody else wants.
        let mut connection = connect_alone(pool.connect_options().as_ref()).await.map_err(failed(call))?;
        let set = sqlx::query_as(
            "/* upkeep_settings */ SELECT pg_backend_pid(), set_config('statement_timeout', '0', false),
                set_config('lock_timeout', '60s', false)",
        )
        .fetch_one(&mut connection);
        let (pid, _, _): (i32, String, String) =
            silence::within(ANSWER, call, set.map_err(failed(call))).await?;
        Ok(Self { pool: pool.clone(), connection, pid })
    }

    /// Does a piece of upkeep. When `stop` is done first, the server is told to cancel it, and the result is `None`.
    pub async fn run(
        &mut self,
        deed: Deed<'_>,
        stop: impl Future<Output = ()>,
    ) -> Result<Option<()>, StoreError> {
        let (call, statement) = match deed {
            Deed::Analyze(table) => {
                ("analyze a table", format!("/* analyze */ ANALYZE public.{}", quoted(table)))
            }
            Deed::Vacuum(table) => {
                ("vacuum a table", format!("/* vacuum */ VACUUM (SKIP_LOCKED) public.{}", quoted(table)))
            }
            Deed::Reindex(index) => (
                "rebuild an index",
                format!("/* reindex */ REINDEX INDEX CONCURRENTLY public.{}", quoted(index)),
            ),
        };
        let done = sqlx::query(sqlx::AssertSqlSafe(statement)).execute(&mut self.connection);
        tokio::select! {
            done = done => {
                done.map_err(failed(call))?;
                return Ok(Some(()));
            }
            () = stop => {}
        }
        // The statement goes on in the server for as long as this end of the connection is there.
        let cancel = sqlx::query("/* cancel_upkeep */ SELECT pg_cancel_backend($1)")
            .bind(self.pid)
            .execute(&self.pool);
        match tokio::time::timeout(Duration::from_secs(3), cancel).await {
            Ok(done) => done.map(|_| None).map_err(failed("cancel upkeep")),
            Err(_) => Ok(None),
        }
    }

    /// Drops what rebuilds that were cut off have left: an invalid index costs every write and serves no query.
    pub async fn drop_leftovers(&mut self) -> Result<Vec<String>, StoreError> {
        let left: Vec<String> = sqlx::query_scalar(
            r"/* upkeep_leftovers */
            SELECT c.relname FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
            JOIN pg_namespace n ON n.oid = c.relnamespace
            WHERE NOT i.indisvalid AND n.nspname = 'public' AND c.relname ~ '_cc(new|old)\d*$'",
        )
        .fetch_all(&mut self.connection)
        .await
        .map_err(failed("find leftovers of rebuilds"))?;
        for name in &left {
            let statement =
                format!("/* drop_leftover */ DROP INDEX CONCURRENTLY IF EXISTS public.{}", quoted(name));
            sqlx::query(sqlx::AssertSqlSafe(statement))
                .execute(&mut self.connection)
                .await
                .map_err(failed("drop a leftover of a rebuild"))?;
        }
        Ok(left)
    }
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}
