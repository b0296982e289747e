//! The ledger as people read it.

use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::Value;
use sqlx::QueryBuilder;
use sqlx::types::Json;

use super::{PgPool, failed};
use crate::StoreError;

/// One row of the ledger.
#[derive(Debug, Clone, Serialize, sqlx::FromRow)]
pub struct Row {
    pub id: i64,
    pub schedule: String,
    pub job: String,
    #[sqlx(rename = "due_at")]
    pub dueat: DateTime<Utc>,
    /// The last of the due times that share this row.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub through: Option<DateTime<Utc>>,
    pub met: String,
    pub state: String,
    #[sqlx(rename = "begins_at")]
    pub beginsat: DateTime<Utc>,
    pub attempt: i16,
    pub epoch: i64,
    pub host: Option<String>,
    #[sqlx(rename = "started_at")]
    pub startedat: Option<DateTime<Utc>>,
    #[sqlx(rename = "ended_at")]
    pub endedat: Option<DateTime<Utc>>,
    pub detail: Option<String>,
    #[sqlx(json(nullable))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub arguments: Option<Value>,
    #[sqlx(json(nullable))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub figures: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log: Option<Json<Vec<String>>>,
    #[sqlx(rename = "asked_by")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub askedby: Option<String>,
    #[sqlx(rename = "cancel_asked_by")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cancelaskedby: Option<String>,
}

const COLUMNS: &str = "id, schedule, job, due_at, through, met, state, begins_at, attempt, epoch, host, started_at, \
                       ended_at, detail, arguments, figures, asked_by, cancel_asked_by";

/// Which rows.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    pub schedule: Option<String>,
    pub state: Option<String>,
    pub met: Option<String>,
    /// Only those before this one: where a list goes on.
    pub before: Option<i64>,
}

/// Rows, the newest first, without their logs.
pub async fn list(pool: &PgPool, filter: &Filter, limit: u32) -> Result<Vec<Row>, StoreError> {
    let mut query = QueryBuilder::new("/* list_job_runs */ SELECT ");
    query.push(COLUMNS).push(", NULL::jsonb AS log FROM job_runs WHERE true");
    for (column, value) in [("schedule", &filter.schedule), ("state", &filter.state), ("met", &filter.met)] {
        if let Some(value) = value {
            query.push(" AND ").push(column).push(" = ").push_bind(value.clone());
        }
    }
    if let Some(before) = filter.before {
        query.push(" AND id < ").push_bind(before);
    }
    query.push(" ORDER BY id DESC LIMIT ").push_bind(i64::from(limit));
    query.build_query_as().fetch_all(pool).await.map_err(failed("list the runs"))
}

/// One row with its log; `None` if there is none with this number.
pub async fn read(pool: &PgPool, id: i64) -> Result<Option<Row>, StoreError> {
    let mut query = QueryBuilder::new("/* read_job_run */ SELECT ");
    query.push(COLUMNS).push(", log FROM job_runs WHERE id = ").push_bind(id);
    query.build_query_as().fetch_optional(pool).await.map_err(failed("read a run"))
}

/// The newest completed row of a schedule, with its log.
pub async fn newest(pool: &PgPool, schedule: &str) -> Result<Option<Row>, StoreError> {
    let mut query = QueryBuilder::new("/* newest_job_run */ SELECT ");
    query.push(COLUMNS).push(", log FROM job_runs WHERE state = 'completed' AND schedule = ");
    query.push_bind(schedule).push(" ORDER BY due_at DESC LIMIT 1");
    query.build_query_as().fetch_optional(pool).await.map_err(failed("read the newest run"))
}

/// A figure of a job's newest run that has it, however it ended.
pub async fn newest_figure(pool: &PgPool, job: &str, figure: &str) -> Result<Option<Value>, StoreError> {
    let found: Option<Json<Value>> = sqlx::query_scalar(
        "/* newest_figure */
        SELECT r.figures -> $2 FROM job_schedules s
        JOIN LATERAL (SELECT due_at, figures FROM job_runs r
                      WHERE r.schedule = s.name AND r.ended_at IS NOT NULL AND r.figures ? $2
                      ORDER BY due_at DESC LIMIT 1) r ON true
        WHERE s.job = $1 ORDER BY r.due_at DESC LIMIT 1",
    )
    .bind(job)
    .bind(figure)
    .fetch_optional(pool)
    .await
    .map_err(failed("read a figure of a job"))?;
    Ok(found.map(|Json(value)| value))
}

/// When each schedule's newest completed run ended: what a new leader's metrics begin with.
pub async fn successes(pool: &PgPool) -> Result<Vec<(String, DateTime<Utc>)>, StoreError> {
    sqlx::query_as(
        "/* job_successes */
        SELECT s.name, r.ended_at FROM job_schedules s
        JOIN LATERAL (SELECT ended_at FROM job_runs r WHERE r.schedule = s.name AND r.state = 'completed'
                      ORDER BY r.due_at DESC LIMIT 1) r ON true
        WHERE s.enabled LIMIT 1000",
    )
    .fetch_all(pool)
    .await
    .map_err(failed("read when jobs succeeded"))
}
