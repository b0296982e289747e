//! The table `job_runs`: the ledger of the scheduler, one row a due time, written before anything is run.
//!
//! The leader writes under its fence ([`super::leader`]); what people ask for is written beside it.

use std::collections::HashMap;

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::Value;
use sqlx::PgConnection;
use sqlx::types::Json;
use taskflow_core::job::{Met, QUEUE_MAX, State};

use super::{PgPool, failed};
use crate::StoreError;

/// A due time that is written down.
#[derive(Debug, Clone)]
pub struct New {
    pub schedule: String,
    pub job: &'static str,
    pub due_at: DateTime<Utc>,
    pub through: Option<DateTime<Utc>>,
    pub met: Met,
    pub begins_at: DateTime<Utc>,
    pub detail: Option<String>,
}

/// Writes due times down; one that is written already stays as it is. Returns the numbers of the new ones' rows, each with
/// its place in `new`.
pub async fn write(
    connection: &mut PgConnection,
    epoch: i64,
    new: &[New],
) -> Result<Vec<(usize, i64)>, StoreError> {
    let state = |new: &New| if new.met.runs() { State::Waiting } else { State::NotRun };
    let written: Vec<(i64, String, DateTime<Utc>)> = sqlx::query_as(
        "/* write_due_times */
        INSERT INTO job_runs (schedule, job, due_at, through, met, state, begins_at, detail, epoch, ended_at)
        SELECT schedule, job, due_at, through, met, state, begins_at, detail, $9,
               CASE WHEN state = 'waiting' THEN NULL ELSE now() END
        FROM UNNEST($1::text[], $2::text[], $3::timestamptz[], $4::timestamptz[], $5::text[], $6::text[],
                    $7::timestamptz[], $8::text[])
            WITH ORDINALITY AS n (schedule, job, due_at, through, met, state, begins_at, detail, place)
        ORDER BY place
        ON CONFLICT (schedule, due_at) DO NOTHING RETURNING id, schedule, due_at",
    )
    .bind(new.iter().map(|new| new.schedule.as_str()).collect::<Vec<_>>())
    .bind(new.iter().map(|new| new.job).collect::<Vec<_>>())
    .bind(new.iter().map(|new| new.due_at).collect::<Vec<_>>())
    .bind(new.iter().map(|new| new.through).collect::<Vec<_>>())
    .bind(new.iter().map(|new| new.met.as_str()).collect::<Vec<_>>())
    .bind(new.iter().map(|new| state(new).as_str()).collect::<Vec<_>>())
    .bind(new.iter().map(|new| new.begins_at).collect::<Vec<_>>())
    .bind(new.iter().map(|new| new.detail.as_deref()).collect::<Vec<_>>())
    .bind(epoch)
    .fetch_all(connection)
    .await
    .map_err(failed("write due times down"))?;
    let mut ids: HashMap<(&str, DateTime<Utc>), i64> =
        written.iter().map(|(id, schedule, due_at)| ((schedule.as_str(), *due_at), *id)).collect();
    let places = new.iter().enumerate();
    Ok(places
        .filter_map(|(place, new)| Some((place, ids.remove(&(new.schedule.as_str(), new.due_at))?)))
        .collect())
}

/// How many runs of each of these schedules wait or run.
pub async fn unfinished(
    connection: &mut PgConnection,
    schedules: &[&str],
) -> Result<HashMap<String, usize>, StoreError> {
    let rows: Vec<(String, i64)> = sqlx::query_as(
        "/* unfinished_runs */
        SELECT schedule, count(*) FROM job_runs
        WHERE state IN ('waiting', 'running') AND schedule = ANY($1) GROUP BY schedule",
    )
    .bind(schedules)
    .fetch_all(connection)
    .await
    .map_err(failed("count unfinished runs"))?;
    Ok(rows.into_iter().map(|(schedule, count)| (schedule, count as usize)).collect())
}

/// Asks for the end of all unfinished runs of these schedules but the `new` ones, which take their place.
pub async fn replace(
    connection: &mut PgConnection,
    schedules: &[&str],
    new: &[i64],
) -> Result<(), StoreError> {
    sqlx::query(
        "/* replace_runs */
        UPDATE job_runs SET cancel_asked_at = now(), cancel_asked_by = 'its schedule: the next run is due'
        WHERE state IN ('waiting', 'running') AND schedule = ANY($1) AND id <> ALL($2) AND cancel_asked_at IS NULL",
    )
    .bind(schedules)
    .bind(new)
    .execute(connection)
    .await
    .map_err(failed("cancel runs for newer ones"))?;
    Ok(())
}

/// A run that is to be worked on.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct Run {
    pub id: i64,
    pub schedule: String,
    pub job: String,
    pub due_at: DateTime<Utc>,
    pub met: String,
    /// 1 the first time.
    pub attempt: i16,
    pub arguments: Option<Json<Value>>,
    pub begins_at: DateTime<Utc>,
    pub cancel_asked_by: Option<String>,
}

/// A run that was ended since it would have begun outside the maintenance window.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct Outside {
    #[sqlx(flatten)]
    pub run: Run,
    pub detail: String,
}

/// Says that a run begins; `None` if it no longer waits.
pub async fn begin(
    connection: &mut PgConnection,
    epoch: i64,
    host: &str,
    id: i64,
) -> Result<Option<Run>, StoreError> {
    sqlx::query_as(
        "/* begin_run */
        UPDATE job_runs SET state = 'running', attempt = attempt + 1, epoch = $2, host = $3, started_at = now()
        WHERE id = $1 AND state = 'waiting' AND cancel_asked_at IS NULL
        RETURNING id, schedule, job, due_at, met, attempt, arguments, begins_at, cancel_asked_by",
    )
    .bind(id)
    .bind(epoch)
    .bind(host)
    .fetch_optional(connection)
    .await
    .map_err(failed("begin a run"))
}

/// What a run has to tell so far.
#[derive(Debug, Clone, Default)]
pub struct Told {
    pub figures: Value,
    pub log: Vec<String>,
}

/// How a try ended.
#[derive(Debug, Clone)]
pub struct End {
    pub state: State,
    /// How long it waits for its next try, if its state is that it waits.
    pub again_after: Option<TimeDelta>,
    /// `None` keeps what was said before: why an earlier try has failed.
    pub detail: Option<String>,
    /// What it told; `None` keeps what was written before.
    pub told: Option<Told>,
}

/// Says how a try ended; `false` if the run was not running any more.
pub async fn end(connection: &mut PgConnection, epoch: i64, id: i64, end: &End) -> Result<bool, StoreError> {
    let ended = sqlx::query(
        "/* end_run */
        UPDATE job_runs SET state = $3, ended_at = CASE WHEN $3 = 'waiting' THEN NULL ELSE now() END,
            begins_at = COALESCE(clock_timestamp() + $4 * interval '1 millisecond', begins_at), detail = COALESCE($5, detail), figures = COALESCE($6, figures), log = COALESCE($7, log),
            epoch = $2
        WHERE id = $1 AND state = 'running'",
    )
    .bind(id)
    .bind(epoch)
    .bind(end.state.as_str())
    .bind(end.again_after.map(|pause| pause.num_milliseconds()))
    .bind(&end.detail)
    .bind(end.told.as_ref().map(|told| Json(&told.figures)))
    .bind(end.told.as_ref().map(|told| Json(&told.log)))
    .execute(connection)
    .await
    .map_err(failed("end a run"))?;
    Ok(ended.rows_affected() > 0)
}

/// Ends those of these runs that would begin outside the maintenance window: they are of such jobs, and no person asked
/// for them. What has never begun was due in vain; what was to be tried again has failed. Returns them as they ended.
pub async fn end_outside_window(
    connection: &mut PgConnection,
    epoch: i64,
    ids: &[i64],
    jobs: &[&str],
    window: &str,
) -> Result<Vec<Outside>, StoreError> {
    sqlx::query_as(
        "/* end_runs_outside_window */
        UPDATE job_runs SET state = CASE WHEN attempt = 0 THEN 'not_run' ELSE 'failed' END,
            met = CASE WHEN attempt = 0 THEN 'outside_window' ELSE met END, ended_at = now(), epoch = $2,
            detail = concat_ws('; ', detail, $4)
        WHERE id = ANY($1) AND state = 'waiting' AND met <> 'by_hand' AND job = ANY($3)
        RETURNING id, schedule, job, due_at, met, attempt, arguments, begins_at, cancel_asked_by, detail",
    )
    .bind(ids)
    .bind(epoch)
    .bind(jobs)
    .bind(format!("it would begin outside the maintenance window, {window}"))
    .fetch_all(connection)
    .await
    .map_err(failed("end runs outside the maintenance window"))
}

/// Writes down what a run has told so far.
pub async fn tell(connection: &mut PgConnection, id: i64, told: &Told) -> Result<(), StoreError> {
    sqlx::query(
        "/* tell_run */ UPDATE job_runs SET figures = $2, log = $3 WHERE id = $1 AND state = 'running'",
    )
    .bind(id)
    .bind(Json(&told.figures))
    .bind(Json(&told.log))
    .execute(connection)
    .await
    .map_err(failed("write a run's log"))?;
    Ok(())
}

/// Ends runs that wait and are to be cancelled. Returns them.
pub async fn cancel_waiting(connection: &mut PgConnection, ids: &[i64]) -> Result<Vec<Run>, StoreError> {
    sqlx::query_as(
        "/* cancel_waiting_runs */
        UPDATE job_runs SET state = 'cancelled', ended_at = now(), detail = 'cancelled by ' || cancel_asked_by
        WHERE id = ANY($1) AND state = 'waiting' AND cancel_asked_at IS NOT NULL
        RETURNING id, schedule, job, due_at, met, attempt, arguments, begins_at, cancel_asked_by",
    )
    .bind(ids)
    .fetch_all(connection)
    .await
    .map_err(failed("cancel waiting runs"))
}

/// Runs that were begun and not ended, under this epoch or an earlier one. Which of them are at work the leader knows.
pub async fn orphans(connection: &mut PgConnection, epoch: i64) -> Result<Vec<Run>, StoreError> {
    sqlx::query_as(
        "/* orphaned_runs */
        SELECT id, schedule, job, due_at, met, attempt, arguments, begins_at, cancel_asked_by FROM job_runs
        WHERE state = 'running' AND epoch <= $1 ORDER BY id FOR UPDATE",
    )
    .bind(epoch)
    .fetch_all(connection)
    .await
    .map_err(failed("find the last leader's runs"))
}

/// Asks for a run by hand. `None` if as many as may wait do so already.
pub async fn ask(
    pool: &PgPool,
    schedule: &str,
    job: &str,
    arguments: &Value,
    by: &str,
) -> Result<Option<i64>, StoreError> {
    sqlx::query_scalar(
        "/* ask_for_run */
        INSERT INTO job_runs (schedule, job, due_at, met, state, begins_at, arguments, asked_by, epoch)
        SELECT $1, $2, clock_timestamp(), 'by_hand', 'waiting', clock_timestamp(), $3, $4, 0
        WHERE (SELECT count(*) FROM job_runs WHERE schedule = $1 AND state IN ('waiting', 'running')) < $5
        RETURNING id",
    )
    .bind(schedule)
    .bind(job)
    .bind(Json(arguments))
    .bind(by)
    .bind(QUEUE_MAX as i64)
    .fetch_optional(pool)
    .await
    .map_err(failed("ask for a run"))
}

/// Asks for a run of a schedule of its job's name, unless it is switched off or paused, or a run waits already.
pub async fn ask_unless_paused(pool: &PgPool, job: &str, by: &str) -> Result<Option<i64>, StoreError> {
    sqlx::query_scalar(
        "/* ask_unless_paused */
        INSERT INTO job_runs (schedule, job, due_at, met, state, begins_at, asked_by, epoch)
        SELECT name, job, clock_timestamp(), 'by_hand', 'waiting', clock_timestamp(), $2, 0 FROM job_schedules s
        WHERE name = $1 AND enabled AND paused_at IS NULL
            AND NOT EXISTS (SELECT FROM job_runs r WHERE r.schedule = s.name AND r.state = 'waiting')
        RETURNING id",
    )
    .bind(job)
    .bind(by)
    .fetch_optional(pool)
    .await
    .map_err(failed("ask for a run"))
}

/// Asks for the end of a run; `false` if it is over, or there is none with this number.
pub async fn ask_cancel(pool: &PgPool, id: i64, by: &str) -> Result<bool, StoreError> {
    let asked = sqlx::query(
        "/* ask_for_cancel */
        UPDATE job_runs SET cancel_asked_at = COALESCE(cancel_asked_at, now()), cancel_asked_by = COALESCE(cancel_asked_by, $2)
        WHERE id = $1 AND state IN ('waiting', 'running')",
    )
    .bind(id)
    .bind(by)
    .execute(pool)
    .await
    .map_err(failed("ask for a run's end"))?;
    Ok(asked.rows_affected() > 0)
}

/// What may go of the rows that ended before `$1`: the newest of each schedule stays, and so does its newest that was
/// completed.
const PAST: &str = "ended_at < $1
    AND EXISTS (SELECT FROM job_runs n WHERE n.schedule = r.schedule AND n.due_at > r.due_at
                AND (r.state <> 'completed' OR n.state = 'completed'))";

/// Removes rows that ended before a time, a bounded number of them, but none that is its schedule's newest. Returns how
/// many.
pub async fn prune(
    connection: &mut PgConnection,
    before: DateTime<Utc>,
    limit: i64,
) -> Result<u64, StoreError> {
    let statement = format!(
        "/* prune_job_runs */
        DELETE FROM job_runs WHERE id IN (SELECT id FROM job_runs r WHERE {PAST} ORDER BY ended_at LIMIT $2)"
    );
    let gone = sqlx::query(sqlx::AssertSqlSafe(statement))
        .bind(before)
        .bind(limit)
        .execute(connection)
        .await
        .map_err(failed("remove old runs"))?;
    Ok(gone.rows_affected())
}

/// How many rows [`prune`] would remove.
pub async fn prune_count(pool: &PgPool, before: DateTime<Utc>) -> Result<i64, StoreError> {
    let statement = format!("/* count_old_runs */ SELECT count(*) FROM job_runs r WHERE {PAST}");
    sqlx::query_scalar(sqlx::AssertSqlSafe(statement))
        .bind(before)
        .fetch_one(pool)
        .await
        .map_err(failed("count old runs"))
}
