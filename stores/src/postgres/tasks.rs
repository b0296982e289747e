//! The table `tasks`.

use chrono::{DateTime, Utc};
use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Row};
use taskflow_core::Task;
use taskflow_core::state::{TaskPriority, TaskStatus};
use uuid::Uuid;

use super::failed;
use crate::{Kind, StoreError};

pub(super) const COLUMNS: &str = "id, title, description, status::text, priority::text, assignee_id, creator_id, created_at, updated_at, completed_at, due_date, deleted_at, version";

/// Loads tasks, deleted ones included, and locks them until the transaction ends. `ids` must be sorted: locks are
/// taken in one order everywhere.
///
/// The lock is `FOR NO KEY UPDATE`: it excludes other writers but not rows that refer to these.
pub async fn load_for_update(connection: &mut PgConnection, ids: &[Uuid]) -> Result<Vec<Task>, StoreError> {
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    sqlx::query(sqlx::AssertSqlSafe(format!(
        "/* load_tasks */ SELECT {COLUMNS} FROM tasks WHERE id = ANY($1) ORDER BY id FOR NO KEY UPDATE"
    )))
    .bind(ids)
    .try_map(read)
    .fetch_all(connection)
    .await
    .map_err(failed("load tasks"))
}

/// Reads tasks as they are.
pub async fn read_many(connection: &mut PgConnection, ids: &[Uuid]) -> Result<Vec<Task>, StoreError> {
    sqlx::query(sqlx::AssertSqlSafe(format!(
        "/* read_tasks */ SELECT {COLUMNS} FROM tasks WHERE id = ANY($1) ORDER BY id"
    )))
    .bind(ids)
    .try_map(read)
    .fetch_all(connection)
    .await
    .map_err(failed("read tasks"))
}

#[expect(clippy::needless_pass_by_value, reason = "the form that try_map asks for")]
pub(super) fn read(row: PgRow) -> Result<Task, sqlx::Error> {
    let status: &str = row.try_get(3)?;
    let priority: &str = row.try_get(4)?;
    Ok(Task {
        id: row.try_get(0)?,
        title: row.try_get(1)?,
        description: row.try_get(2)?,
        status: TaskStatus::from_word(status).ok_or_else(|| unknown_word("status", status))?,
        priority: TaskPriority::from_word(priority).ok_or_else(|| unknown_word("priority", priority))?,
        assignee: row.try_get(5)?,
        creator: row.try_get(6)?,
        created_at: row.try_get(7)?,
        updated_at: row.try_get(8)?,
        completed_at: row.try_get(9)?,
        due_date: row.try_get(10)?,
        deleted_at: row.try_get(11)?,
        version: row.try_get(12)?,
    })
}

pub(super) fn unknown_word(column: &str, word: &str) -> sqlx::Error {
    sqlx::Error::ColumnDecode {
        index: column.into(),
        source: format!("{word:?} is unknown to this version of taskflow").into(),
    }
}

/// Inserts new tasks in one statement; a batch's are part of its record ([`super::batch::record`]).
pub(super) async fn insert(connection: &mut PgConnection, tasks: &[Task]) -> Result<(), StoreError> {
    let statement = sqlx::AssertSqlSafe(insert_statement("", 1));
    bind_new(sqlx::query(statement), tasks).execute(connection).await.map_err(failed("insert tasks"))?;
    Ok(())
}

/// The statement that inserts new tasks, once for each row of `given`; its parameters begin at number `first`
/// ([`bind_new`]).
pub(super) fn insert_statement(given: &str, first: usize) -> String {
    let types = [
        "uuid[]",
        "text[]",
        "text[]",
        "text[]::task_status[]",
        "text[]::task_priority[]",
        "uuid[]",
        "uuid[]",
        "timestamptz[]",
        "timestamptz[]",
        "timestamptz[]",
        "timestamptz[]",
        "timestamptz[]",
        "integer[]",
    ];
    let arrays: Vec<String> =
        types.iter().zip(first..).map(|(kind, number)| format!("${number}::{kind}")).collect();
    format!(
        "INSERT INTO tasks (id, title, description, status, priority, assignee_id, creator_id, created_at,
                            updated_at, completed_at, due_date, deleted_at, version)
        SELECT new.* FROM {given}UNNEST({}) AS new",
        arrays.join(", ")
    )
}

/// Binds new tasks to the parameters of [`insert_statement`].
pub(super) fn bind_new<'q>(query: Bound<'q>, tasks: &'q [Task]) -> Bound<'q> {
    let new = Columns::of(tasks);
    query
        .bind(new.id)
        .bind(new.title)
        .bind(new.description)
        .bind(new.status)
        .bind(new.priority)
        .bind(new.assignee)
        .bind(new.creator)
        .bind(new.created_at)
        .bind(new.updated_at)
        .bind(new.completed_at)
        .bind(new.due_date)
        .bind(new.deleted_at)
        .bind(new.version)
}

type Bound<'q> = sqlx::query::Query<'q, sqlx::Postgres, sqlx::postgres::PgArguments>;

/// Writes the final states of changed tasks in one statement. No task may occur twice.
pub async fn update(connection: &mut PgConnection, tasks: &[Task]) -> Result<(), StoreError> {
    if tasks.is_empty() {
        return Ok(());
    }
    let c = Columns::of(tasks);
    let done = sqlx::query(
        "/* update_tasks */
        UPDATE tasks t
        SET title = n.title, description = n.description, status = n.status::task_status,
            priority = n.priority::task_priority, assignee_id = n.assignee_id, updated_at = n.updated_at,
            completed_at = n.completed_at, due_date = n.due_date, deleted_at = n.deleted_at, version = n.version
        FROM UNNEST($1::uuid[], $2::text[], $3::text[], $4::text[], $5::text[], $6::uuid[], $7::timestamptz[],
                    $8::timestamptz[], $9::timestamptz[], $10::timestamptz[], $11::integer[])
            AS n (id, title, description, status, priority, assignee_id, updated_at, completed_at, due_date,
                  deleted_at, version)
        WHERE t.id = n.id",
    )
    .bind(c.id)
    .bind(c.title)
    .bind(c.description)
    .bind(c.status)
    .bind(c.priority)
    .bind(c.assignee)
    .bind(c.updated_at)
    .bind(c.completed_at)
    .bind(c.due_date)
    .bind(c.deleted_at)
    .bind(c.version)
    .execute(connection)
    .await
    .map_err(failed("update tasks"))?;
    all_there("update tasks", done.rows_affected(), tasks.len())
}

/// Rows that were locked can't be gone; if they are, the batch must not go on.
pub(super) fn all_there(call: &'static str, found: u64, expected: usize) -> Result<(), StoreError> {
    if found == expected as u64 {
        return Ok(());
    }
    Err(StoreError::new("postgres", call, Kind::Conflict, format!("{found} rows of {expected} were there")))
}

/// One array a column.
struct Columns<'t> {
    id: Vec<Uuid>,
    title: Vec<&'t str>,
    description: Vec<Option<&'t str>>,
    status: Vec<&'static str>,
    priority: Vec<&'static str>,
    assignee: Vec<Option<Uuid>>,
    creator: Vec<Uuid>,
    created_at: Vec<DateTime<Utc>>,
    updated_at: Vec<DateTime<Utc>>,
    completed_at: Vec<Option<DateTime<Utc>>>,
    due_date: Vec<Option<DateTime<Utc>>>,
    deleted_at: Vec<Option<DateTime<Utc>>>,
    version: Vec<i32>,
}

impl<'t> Columns<'t> {
    fn of(tasks: &'t [Task]) -> Self {
        fn column<'t, T>(tasks: &'t [Task], field: impl Fn(&'t Task) -> T) -> Vec<T> {
            tasks.iter().map(field).collect()
        }
        Self {
            id: column(tasks, |t| t.id),
            title: column(tasks, |t| t.title.as_str()),
            description: column(tasks, |t| t.description.as_deref()),
            status: column(tasks, |t| t.status.as_str()),
            priority: column(tasks, |t| t.priority.as_str()),
            assignee: column(tasks, |t| t.assignee),
            creator: column(tasks, |t| t.creator),
            created_at: column(tasks, |t| t.created_at),
            updated_at: column(tasks, |t| t.updated_at),
            completed_at: column(tasks, |t| t.completed_at),
            due_date: column(tasks, |t| t.due_date),
            deleted_at: column(tasks, |t| t.deleted_at),
            version: column(tasks, |t| t.version),
        }
    }
}
