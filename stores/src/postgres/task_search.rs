//! Full text over titles and descriptions: the tables `task_texts` (the index) and `search_pending` (what it lacks).
//!
//! A search reads both in one snapshot, so it finds what was committed a moment ago. The index follows aside, in bulk:
//! indexing with each insert would cost more than the insert itself.

use std::time::Duration;

use sqlx::Row;
use taskflow_core::Task;
use uuid::Uuid;

use super::task_lists::{At, POSITION, found};
use super::{PgPool, begin, failed, tasks};
use crate::StoreError;

/// Tasks that a search looks through without the index: some 40 µs each.
pub const PENDING_MAX: i64 = 20_000;
/// Matches that are ranked.
const RANKED_MAX: i64 = 1_000;
/// One indexer at a time: a later one must see what the one before has left.
const LOCK: i64 = 0x7466_7365_6172_6368;

/// What is looked for.
#[derive(Debug, Clone)]
pub struct Query {
    /// As people write it: words, "a phrase", or, -without. A word also finds what begins with it.
    pub text: String,
    /// Only tasks that this user has created or is assigned to.
    pub user: Option<Uuid>,
    pub offset: i64,
    pub limit: i64,
}

/// What came of a search.
#[derive(Debug)]
pub enum Searched {
    Found(At<Vec<Task>>),
    /// The index lacks too much.
    Behind,
    /// Words are only left out, or are one of two ways: all that there is would have to be looked through.
    Boundless,
}

/// The best matches first. The server gives a search up that takes longer than
/// `patience`.
pub async fn search(pool: &PgPool, query: &Query, patience: Duration) -> Result<Searched, StoreError> {
    const CALL: &str = "search tasks";
    let mut transaction = begin(pool).await.map_err(failed(CALL))?;
    sqlx::query("/* limit_search */ SELECT set_config('statement_timeout', $1, true)")
        .bind(patience.as_millis().to_string())
        .execute(&mut *transaction)
        .await
        .map_err(failed(CALL))?;
    let rows = sqlx::query(sqlx::AssertSqlSafe(format!(
        "/* search_tasks */
        WITH parsed AS MATERIALIZED (
            SELECT regexp_replace(websearch_to_tsquery('simple', $1)::text, $re$'((?:[^']|'')+)'$re$,
                $re$'\\1':*$re$, 'g')::tsquery AS query
        ), asked AS MATERIALIZED (
            SELECT query FROM parsed WHERE querytree(query) NOT IN ('', 'T')
        ), pending AS MATERIALIZED (
            SELECT DISTINCT task_id FROM (SELECT task_id FROM search_pending LIMIT $2 + 1) p
        ), matches AS (
            (SELECT t.id, ts_rank(x.document, asked.query) AS rank
            FROM asked JOIN task_texts x ON x.document @@ asked.query JOIN tasks t ON t.id = x.task_id
            WHERE t.deleted_at IS NULL AND ($3::uuid IS NULL OR t.creator_id = $3 OR t.assignee_id = $3)
                AND NOT EXISTS (SELECT FROM pending WHERE pending.task_id = t.id)
            LIMIT $4)
            UNION ALL
            (SELECT t.id, ts_rank(task_document(t.title, t.description), asked.query)
            FROM asked, pending JOIN tasks t ON t.id = pending.task_id
            WHERE t.deleted_at IS NULL AND ($3::uuid IS NULL OR t.creator_id = $3 OR t.assignee_id = $3)
                AND task_document(t.title, t.description) @@ asked.query
            LIMIT $4)
        )
        SELECT {}, head.position, (SELECT count(*) FROM pending) AS pending, 
            EXISTS (SELECT FROM asked) OR EXISTS (SELECT FROM parsed WHERE numnode(query) = 0) AS able
        FROM {POSITION} LEFT JOIN LATERAL (
            SELECT t.*, m.rank FROM matches m JOIN tasks t ON t.id = m.id
            ORDER BY m.rank DESC, t.created_at DESC, t.id DESC OFFSET $5 LIMIT $6
        ) t ON true
        ORDER BY t.rank DESC, t.created_at DESC, t.id DESC",
        tasks::COLUMNS
    )))
    .bind(&query.text)
    .bind(PENDING_MAX)
    .bind(query.user)
    .bind(RANKED_MAX)
    .bind(query.offset)
    .bind(query.limit)
    .fetch_all(&mut *transaction)
    .await
    .map_err(failed(CALL))?;
    transaction.rollback().await.map_err(failed(CALL))?;
    let pending: i64 = rows.first().map_or(Ok(0), |row| row.try_get("pending")).map_err(failed(CALL))?;
    let able = rows.first().map_or(Ok(true), |row| row.try_get("able")).map_err(failed(CALL))?;
    if !able {
        return Ok(Searched::Boundless);
    }
    if pending > PENDING_MAX {
        return Ok(Searched::Behind);
    }
    found(rows, CALL).map(Searched::Found)
}

/// Whether more than so many notes wait.
pub async fn lacks_more_than(pool: &PgPool, notes: i64) -> Result<bool, StoreError> {
    sqlx::query_scalar("/* search_pending */ SELECT EXISTS (SELECT FROM search_pending OFFSET $1)")
        .bind(notes)
        .fetch_one(pool)
        .await
        .map_err(failed("look how much the search index lacks"))
}

/// Brings the index up to date with at most `limit` notes. Returns how many it took; 0 also if somebody else is at it.
pub async fn index(pool: &PgPool, limit: i64) -> Result<u64, StoreError> {
    const CALL: &str = "index tasks";
    let mut transaction = begin(pool).await.map_err(failed(CALL))?;
    // By a statement of its own: the next one's snapshot must be younger than the last indexer's end.
    let mine: bool = sqlx::query_scalar("/* lock_search_index */ SELECT pg_try_advisory_xact_lock($1)")
        .bind(LOCK)
        .fetch_one(&mut *transaction)
        .await
        .map_err(failed(CALL))?;
    if !mine {
        transaction.rollback().await.map_err(failed(CALL))?;
        return Ok(0);
    }
    let taken: i64 = sqlx::query_scalar(
        "/* index_tasks */
        WITH taken AS (
            DELETE FROM search_pending WHERE ctid = ANY(ARRAY(SELECT ctid FROM search_pending LIMIT $1))
            RETURNING task_id
        ), gone AS (
            DELETE FROM task_texts x USING tasks t, (SELECT DISTINCT task_id FROM taken) n
            WHERE t.id = n.task_id AND x.task_id = t.id AND t.deleted_at IS NOT NULL
        ), indexed AS (
            INSERT INTO task_texts AS x (task_id, document)
            SELECT t.id, task_document(t.title, t.description)
            FROM tasks t WHERE t.id IN (SELECT task_id FROM taken) AND t.deleted_at IS NULL
            ON CONFLICT (task_id) DO UPDATE SET document = EXCLUDED.document
            WHERE x.document <> EXCLUDED.document
        )
        SELECT count(*) FROM taken",
    )
    .bind(limit)
    .fetch_one(&mut *transaction)
    .await
    .map_err(failed(CALL))?;
    transaction.commit().await.map_err(failed(CALL))?;
    Ok(taken as u64)
}
