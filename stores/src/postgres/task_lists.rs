//! Pages of a user's tasks, and how many there are.
//!
//! Each statement tells the position that it has seen (`taskflow_core::window`): whoever keeps its answer knows how old
//! it is.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::Row;
use sqlx::postgres::PgRow;
use taskflow_core::Task;
use taskflow_core::state::TaskStatus;
use taskflow_core::window::Position;
use uuid::Uuid;

use super::{PgPool, failed, tasks};
use crate::{Kind, StoreError};

/// The position of the statement that it stands in.
pub(super) const POSITION: &str =
    "(SELECT coalesce(sum(batch), 0)::bigint AS position FROM partition_heads) AS head";

/// In which order a page has its tasks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// The newest first.
    Newest,
    /// As one works them off: open ones, the most urgent first, of these what is due first.
    Work,
}

/// Which page of whose tasks.
#[derive(Debug, Clone, Copy)]
pub struct Page {
    /// Whose: those that the user has created or is assigned to.
    pub user: Uuid,
    pub status: Option<TaskStatus>,
    pub order: Order,
    pub offset: i64,
    pub limit: i64,
}

/// An answer, and what the statement had seen that made it.
#[derive(Debug)]
pub struct At<T> {
    pub position: Position,
    pub found: T,
}

/// Reads a page.
pub async fn page(pool: &PgPool, page: Page) -> Result<At<Vec<Task>>, StoreError> {
    let order = match page.order {
        Order::Newest => "t.created_at DESC, t.id DESC",
        Order::Work => "t.priority DESC, t.due_date ASC NULLS LAST, t.id",
    };
    let open = if page.order == Order::Work { "AND status <> 'done'" } else { "" };
    let rows = sqlx::query(sqlx::AssertSqlSafe(format!(
        "/* task_list */
        SELECT {}, head.position
        FROM {POSITION} LEFT JOIN LATERAL (
            SELECT * FROM tasks t
            WHERE (creator_id = $1 OR assignee_id = $1) AND deleted_at IS NULL {open}
                AND ($2::text IS NULL OR status = $2::task_status)
            ORDER BY {order} OFFSET $3 LIMIT $4
        ) t ON true
        ORDER BY {order}",
        tasks::COLUMNS
    )))
    .bind(page.user)
    .bind(page.status.map(TaskStatus::as_str))
    .bind(page.offset)
    .bind(page.limit)
    .fetch_all(pool)
    .await
    .map_err(failed("list a user's tasks"))?;
    found(rows, "list a user's tasks")
}

/// Tasks with the position in the last column; a row without a task stands for none.
pub(super) fn found(rows: Vec<PgRow>, call: &'static str) -> Result<At<Vec<Task>>, StoreError> {
    let mut position = 0;
    let mut found = Vec::with_capacity(rows.len());
    for row in rows {
        position = row.try_get("position").map_err(failed(call))?;
        if row.try_get::<Option<Uuid>, _>(0).map_err(failed(call))?.is_some() {
            found.push(tasks::read(row).map_err(failed(call))?);
        }
    }
    Ok(At { position, found })
}

/// How many tasks a user has. The names are those that the specification stores.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Stats {
    pub total: i64,
    #[serde(rename = "byStatus")]
    pub by_status: ByStatus,
    /// Open ones whose due date has passed.
    pub overdue: i64,
    /// When the next open one is overdue: until then the numbers hold, whatever the clock says.
    #[serde(skip)]
    pub next_due: Option<DateTime<Utc>>,
}

/// Tasks of each status.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ByStatus {
    pub todo: i64,
    pub in_progress: i64,
    pub review: i64,
    pub done: i64,
}

/// Counts the tasks of the user of a row of `wanted`; `$2` is now.
const COUNTS: &str = "SELECT count(*), count(*) FILTER (WHERE status = 'todo'),
        count(*) FILTER (WHERE status = 'in_progress'), count(*) FILTER (WHERE status = 'review'),
        count(*) FILTER (WHERE status = 'done'),
        count(*) FILTER (WHERE due_date <= $2 AND status <> 'done'),
        min(due_date) FILTER (WHERE due_date > $2 AND status <> 'done')
    FROM tasks WHERE (creator_id = wanted.owner OR assignee_id = wanted.owner) AND deleted_at IS NULL";

/// Counts a user's tasks.
pub async fn stats(pool: &PgPool, user: Uuid, now: DateTime<Utc>) -> Result<At<Stats>, StoreError> {
    let At { position, found } = stats_of(pool, &[user], now).await?;
    let found = found.into_iter().next().map(|(_, stats)| stats);
    let missing = || StoreError::new("postgres", "count a user's tasks", Kind::Bug, "no row came");
    Ok(At { position, found: found.ok_or_else(missing)? })
}

/// Counts the tasks of each of some users, in one statement.
pub async fn stats_of(
    pool: &PgPool,
    users: &[Uuid],
    now: DateTime<Utc>,
) -> Result<At<Vec<(Uuid, Stats)>>, StoreError> {
    type Counts = (Uuid, i64, i64, i64, i64, i64, i64, Option<DateTime<Utc>>, Position);
    let rows: Vec<Counts> = sqlx::query_as(sqlx::AssertSqlSafe(format!(
        "/* task_stats */
        SELECT wanted.owner, counted.*, head.position
        FROM {POSITION}, UNNEST($1::uuid[]) AS wanted (owner), LATERAL ({COUNTS}) counted"
    )))
    .bind(users)
    .bind(now)
    .fetch_all(pool)
    .await
    .map_err(failed("count users' tasks"))?;
    let position = rows.first().map_or(0, |row| row.8);
    let stats = |(user, total, todo, in_progress, review, done, overdue, next_due, _): Counts| {
        let by_status = ByStatus { todo, in_progress, review, done };
        (user, Stats { total, by_status, overdue, next_due })
    };
    Ok(At { position, found: rows.into_iter().map(stats).collect() })
}

/// The newest tasks of each of some users, in one statement.
pub async fn newest_of(
    pool: &PgPool,
    users: &[Uuid],
    limit: i64,
) -> Result<At<HashMap<Uuid, Vec<Task>>>, StoreError> {
    let rows = sqlx::query(sqlx::AssertSqlSafe(format!(
        "/* newest_tasks */
        SELECT {}, wanted.owner, head.position
        FROM {POSITION}, UNNEST($1::uuid[]) AS wanted (owner) LEFT JOIN LATERAL (
            SELECT * FROM tasks t
            WHERE (creator_id = wanted.owner OR assignee_id = wanted.owner) AND deleted_at IS NULL
            ORDER BY t.created_at DESC, t.id DESC LIMIT $2
        ) t ON true
        ORDER BY wanted.owner, t.created_at DESC, t.id DESC",
        tasks::COLUMNS
    )))
    .bind(users)
    .bind(limit)
    .fetch_all(pool)
    .await
    .map_err(failed("list users' tasks"))?;
    let read = |row: &PgRow| Ok::<_, sqlx::Error>((row.try_get("owner")?, row.try_get("position")?));
    let mut found: HashMap<Uuid, Vec<Task>> = HashMap::new();
    let mut position = 0;
    for row in rows {
        let user: Uuid;
        (user, position) = read(&row).map_err(failed("list users' tasks"))?;
        let of_user = found.entry(user).or_default();
        if row.try_get::<Option<Uuid>, _>(0).map_err(failed("list users' tasks"))?.is_some() {
            of_user.push(tasks::read(row).map_err(failed("list users' tasks"))?);
        }
    }
    Ok(At { position, found })
}
