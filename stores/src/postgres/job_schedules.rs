//! The table `job_schedules`: the next due time of each schedule, what operators pause, how far a job has got.

use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::Value;
use sqlx::PgConnection;
use sqlx::types::Json;
use uuid::Uuid;

use super::{PgPool, failed};
use crate::StoreError;

/// Characters of the reason of a pause.
pub const REASON_MAX: usize = 500;
/// Schedules and runs that one look brings.
const TOGETHER: i64 = 200;

/// What a leader sees at one look.
#[derive(Debug, Default)]
pub struct Look {
    /// The server's time.
    pub now: DateTime<Utc>,
    /// Schedules whose next due time has come, with it.
    pub due: Vec<(String, DateTime<Utc>)>,
    /// Schedules without a next due time.
    pub unarmed: Vec<String>,
    /// Runs that may begin, one a schedule, with its name.
    pub ready: Vec<(String, i64)>,
    /// Unfinished runs that somebody wants cancelled.
    pub cancel: Vec<i64>,
    /// When the next schedule is due.
    pub next: Option<DateTime<Utc>>,
}

impl Look {
    /// Whether there may be more than one look brings.
    pub fn is_full(&self) -> bool {
        let most = TOGETHER as usize;
        self.due.len() >= most || self.unarmed.len() >= most
    }
}

/// What was seen, and of it a schedule's name, a run's number, a time.
type Seen = (String, Option<String>, Option<i64>, Option<DateTime<Utc>>);

/// Renews the lead and looks what there is to do, in one statement, whose cost does not depend on the number of
/// schedules; `None` if another one leads by now.
pub async fn look(
    pool: &PgPool,
    holder: Uuid,
    epoch: i64,
    lease_ms: i64,
) -> Result<Option<Look>, StoreError> {
    let rows: Vec<Seen> = sqlx::query_as(
        "/* scheduler_look */
        WITH me AS (
            UPDATE scheduler_leader SET expires_at = now() + $3 * interval '1 millisecond'
            WHERE epoch = $1 AND holder = $2 RETURNING epoch
        )
        SELECT 'now', NULL::text, NULL::bigint, now() FROM me
        UNION ALL (SELECT 'due', name, NULL, next_due_at FROM job_schedules
            WHERE enabled AND paused_at IS NULL AND next_begins_at <= now() ORDER BY next_begins_at LIMIT $4)
        UNION ALL (SELECT 'next', NULL, NULL, next_begins_at FROM job_schedules
            WHERE enabled AND paused_at IS NULL AND next_begins_at > now() ORDER BY next_begins_at LIMIT 1)
        UNION ALL (SELECT 'unarmed', name, NULL, NULL FROM job_schedules
            WHERE enabled AND next_due_at IS NULL ORDER BY name LIMIT $4)
        UNION ALL (SELECT 'cancel', NULL, id, NULL FROM job_runs
            WHERE state IN ('waiting', 'running') AND cancel_asked_at IS NOT NULL LIMIT $4)
        UNION ALL (SELECT 'ready', schedule, id, NULL FROM (
                SELECT DISTINCT ON (schedule) schedule, id, state, begins_at, due_at FROM job_runs
                WHERE state IN ('waiting', 'running')
                ORDER BY schedule, state = 'running' DESC, due_at, id
            ) AS first WHERE state = 'waiting' AND begins_at <= now() ORDER BY due_at LIMIT $4)",
    )
    .bind(epoch)
    .bind(holder)
    .bind(lease_ms)
    .bind(TOGETHER)
    .fetch_all(pool)
    .await
    .map_err(failed("look what is due"))?;
    let (mut look, mut leads) = (Look::default(), false);
    for (what, name, id, at) in rows {
        match (what.as_str(), name, id, at) {
            ("now", _, _, Some(now)) => (look.now, leads) = (now, true),
            ("due", Some(name), _, Some(at)) => look.due.push((name, at)),
            ("next", _, _, at) => look.next = at,
            ("unarmed", Some(name), ..) => look.unarmed.push(name),
            ("cancel", _, Some(id), _) => look.cancel.push(id),
            ("ready", Some(name), Some(id), _) => look.ready.push((name, id)),
            _ => {}
        }
    }
    Ok(leads.then_some(look))
}

/// The server's time.
pub async fn now(connection: &mut PgConnection) -> Result<DateTime<Utc>, StoreError> {
    sqlx::query_scalar("/* server_time */ SELECT clock_timestamp()")
        .fetch_one(connection)
        .await
        .map_err(failed("read the server's time"))
}

/// A schedule as the settings have it.
#[derive(Debug, Clone)]
pub struct Wanted {
    pub name: String,
    pub job: String,
    pub definition: String,
    pub enabled: bool,
}

/// Brings the table in line with the settings: adds, changes, and switches off what they no longer name. A changed
/// schedule loses its next due time, so that it is looked for anew. Returns the names of those that changed.
pub async fn settle(connection: &mut PgConnection, wanted: &[Wanted]) -> Result<Vec<String>, StoreError> {
    let column = |read: fn(&Wanted) -> &str| wanted.iter().map(read).collect::<Vec<_>>();
    sqlx::query_scalar(
        "/* settle_schedules */
        WITH wanted AS (
            SELECT * FROM UNNEST($1::text[], $2::text[], $3::text[], $4::boolean[]) AS w (name, job, definition, enabled)
        ), gone AS (
            UPDATE job_schedules s SET enabled = false, next_due_at = NULL, next_begins_at = NULL
            WHERE s.enabled AND NOT EXISTS (SELECT FROM wanted w WHERE w.name = s.name)
        )
        INSERT INTO job_schedules AS s (name, job, definition, enabled) SELECT name, job, definition, enabled FROM wanted
        ON CONFLICT (name) DO UPDATE SET job = excluded.job, definition = excluded.definition,
            enabled = excluded.enabled, next_due_at = NULL, next_begins_at = NULL
        WHERE (s.job, s.definition, s.enabled) IS DISTINCT FROM (excluded.job, excluded.definition, excluded.enabled)
        RETURNING s.name",
    )
    .bind(column(|one| &one.name))
    .bind(column(|one| &one.job))
    .bind(column(|one| &one.definition))
    .bind(wanted.iter().map(|one| one.enabled).collect::<Vec<_>>())
    .fetch_all(connection)
    .await
    .map_err(failed("settle the schedules"))
}

/// Every armed schedule and its next due time.
pub async fn armed(connection: &mut PgConnection) -> Result<Vec<(String, DateTime<Utc>)>, StoreError> {
    sqlx::query_as(
        "/* armed_schedules */ SELECT name, next_due_at FROM job_schedules WHERE enabled AND next_due_at IS NOT NULL",
    )
    .fetch_all(connection)
    .await
    .map_err(failed("read the armed schedules"))
}

/// A schedule's next due time.
#[derive(Debug, Clone)]
pub struct Arm {
    pub name: String,
    /// What it was when it was looked at; a schedule that changed meanwhile is left alone.
    pub before: Option<DateTime<Utc>>,
    pub due_at: DateTime<Utc>,
    pub begins_at: DateTime<Utc>,
}

/// Sets next due times.
pub async fn arm(connection: &mut PgConnection, arms: &[Arm]) -> Result<(), StoreError> {
    sqlx::query(
        "/* arm_schedules */
        UPDATE job_schedules s SET next_due_at = a.due_at, next_begins_at = a.begins_at
        FROM UNNEST($1::text[], $2::timestamptz[], $3::timestamptz[], $4::timestamptz[])
            AS a (name, before, due_at, begins_at)
        WHERE s.name = a.name AND s.next_due_at IS NOT DISTINCT FROM a.before",
    )
    .bind(arms.iter().map(|arm| arm.name.as_str()).collect::<Vec<_>>())
    .bind(arms.iter().map(|arm| arm.before).collect::<Vec<_>>())
    .bind(arms.iter().map(|arm| arm.due_at).collect::<Vec<_>>())
    .bind(arms.iter().map(|arm| arm.begins_at).collect::<Vec<_>>())
    .execute(connection)
    .await
    .map_err(failed("arm schedules"))?;
    Ok(())
}

/// A schedule, as people see it.
#[derive(Debug, Clone, Serialize, sqlx::FromRow)]
pub struct Listed {
    pub name: String,
    pub job: String,
    /// The expression and its time zone.
    pub definition: String,
    pub enabled: bool,
    #[sqlx(rename = "next_due_at")]
    pub nextdueat: Option<DateTime<Utc>>,
    #[sqlx(rename = "next_begins_at")]
    pub nextbeginsat: Option<DateTime<Utc>>,
    #[sqlx(rename = "paused_at")]
    pub pausedat: Option<DateTime<Utc>>,
    #[sqlx(rename = "paused_by")]
    pub pausedby: Option<String>,
    #[sqlx(rename = "paused_why")]
    pub pausedwhy: Option<String>,
    /// Of its newest run, or due time without one.
    pub lastid: Option<i64>,
    pub lastdueat: Option<DateTime<Utc>>,
    pub lastmet: Option<String>,
    pub laststate: Option<String>,
    pub lastdetail: Option<String>,
}

/// All schedules, or one, with the newest row of each in the ledger.
pub async fn list(pool: &PgPool, name: Option<&str>) -> Result<Vec<Listed>, StoreError> {
    sqlx::query_as(
        "/* list_schedules */
        SELECT s.name, s.job, s.definition, s.enabled, s.next_due_at, s.next_begins_at, s.paused_at, s.paused_by,
               s.paused_why, r.id AS lastid, r.due_at AS lastdueat, r.met AS lastmet, r.state AS laststate,
               r.detail AS lastdetail
        FROM job_schedules s
        LEFT JOIN LATERAL (SELECT id, due_at, met, state, detail FROM job_runs r WHERE r.schedule = s.name
                           ORDER BY r.due_at DESC LIMIT 1) r ON true
        WHERE $1::text IS NULL OR s.name = $1 ORDER BY s.name",
    )
    .bind(name)
    .fetch_all(pool)
    .await
    .map_err(failed("list the schedules"))
}

/// Holds a schedule back until it is resumed; `false` if there is no such schedule.
pub async fn pause(pool: &PgPool, name: &str, by: &str, why: &str) -> Result<bool, StoreError> {
    let paused = sqlx::query(
        "/* pause_schedule */
        UPDATE job_schedules SET paused_at = COALESCE(paused_at, now()), paused_by = $2, paused_why = $3 WHERE name = $1",
    )
    .bind(name)
    .bind(by)
    .bind(why)
    .execute(pool)
    .await
    .map_err(failed("pause a schedule"))?;
    Ok(paused.rows_affected() > 0)
}

/// Lets a paused schedule go on with the next due time after now: what was due meanwhile was not wanted. `false` if it
/// is not paused.
pub async fn resume(pool: &PgPool, name: &str) -> Result<bool, StoreError> {
    let resumed = sqlx::query(
        "/* resume_schedule */
        UPDATE job_schedules SET paused_at = NULL, paused_by = NULL, paused_why = NULL, next_due_at = NULL,
            next_begins_at = NULL
        WHERE name = $1 AND paused_at IS NOT NULL",
    )
    .bind(name)
    .execute(pool)
    .await
    .map_err(failed("resume a schedule"))?;
    Ok(resumed.rows_affected() > 0)
}

/// What a schedule's job has left for its next run.
pub async fn state(pool: &PgPool, name: &str) -> Result<Option<Value>, StoreError> {
    let state: Option<Option<Json<Value>>> =
        sqlx::query_scalar("/* read_job_state */ SELECT state FROM job_schedules WHERE name = $1")
            .bind(name)
            .fetch_optional(pool)
            .await
            .map_err(failed("read a job's state"))?;
    Ok(state.flatten().map(|Json(state)| state))
}

/// Leaves something for the next run.
pub async fn set_state(connection: &mut PgConnection, name: &str, state: &Value) -> Result<(), StoreError> {
    sqlx::query("/* write_job_state */ UPDATE job_schedules SET state = $2 WHERE name = $1")
        .bind(name)
        .bind(Json(state))
        .execute(connection)
        .await
        .map_err(failed("write a job's state"))?;
    Ok(())
}
