//! The table `dead_letter_replays`: replays of many letters, at a rate, that stop by themselves when their letters die
//! again. Any worker takes the next step of one; the row's lock and `next_at` keep the rate, also after a restart.

use std::collections::HashSet;

use chrono::{DateTime, TimeDelta, Utc};
use serde::Serialize;
use sqlx::types::Json;
use sqlx::{FromRow, PgConnection, Postgres, QueryBuilder, Row};
use taskflow_core::dead_letter::MISMATCH;
use taskflow_core::dead_letter::pace::{Fate, LOOKED_AT, Pace, judge};
use taskflow_core::envelope::COMMAND_MAX;
use uuid::Uuid;

use super::dead_letter_deeds::{By, Replay, begin_all, unsettled};
use super::dead_letters::{Filter, Letter, read_letter};
use super::{PgPool, begin, failed};
use crate::StoreError;

/// Letters a second, at most.
pub const RATE_MAX: f32 = 1_000.0;
/// The least: one in about a quarter of an hour.
pub const RATE_MIN: f32 = 0.001;
/// Time between two steps of a replay, if its rate allows.
const STEP: TimeDelta = TimeDelta::milliseconds(200);
/// Time between two looks at letters whose fate is not known yet.
const LOOK: TimeDelta = TimeDelta::milliseconds(500);
/// Letters of one step.
const STEP_MAX: usize = 200;

/// A replay of many as it is asked for.
#[derive(Debug, Clone, Copy)]
pub struct Order<'o> {
    pub id: Uuid,
    pub filter: &'o Filter,
    /// Letters a second.
    pub rate: f32,
    pub by: By<'o>,
}

/// A replay of many as it stands.
#[derive(Debug, Clone, Serialize, FromRow)]
pub struct View {
    pub id: Uuid,
    pub filter: Json<Filter>,
    /// Letters a second.
    pub rate: f32,
    pub author: Uuid,
    pub why: Option<String>,
    /// `running`, `done`, `stopped` (by itself) or `cancelled`.
    pub state: String,
    /// Why it stopped by itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stoppedsince: Option<String>,
    /// Letters that were replayed.
    pub taken: i64,
    /// Letters of these that died again.
    pub died: i64,
    /// Letters of these whose command has another end.
    pub lived: i64,
    pub createdat: DateTime<Utc>,
    pub finishedat: Option<DateTime<Utc>>,
}

/// Orders a replay. Letters that die after this are not among its own.
pub async fn create(pool: &PgPool, order: Order<'_>) -> Result<(), StoreError> {
    sqlx::query(
        "/* create_replay */
        INSERT INTO dead_letter_replays (id, filter, rate_per_s, author, why, created_at, next_at)
        VALUES ($1, $2, $3, $4, $5, $6, $6)",
    )
    .bind(order.id)
    .bind(Json(order.filter))
    .bind(order.rate)
    .bind(order.by.author)
    .bind(order.by.why)
    .bind(order.by.at)
    .execute(pool)
    .await
    .map_err(failed("order a replay"))?;
    Ok(())
}

/// How many letters a filter would replay now.
pub async fn count(pool: &PgPool, filter: &Filter) -> Result<i64, StoreError> {
    let mut query = QueryBuilder::new("/* count_replayable */ SELECT count(*) FROM dead_letters WHERE true");
    replayable(filter, &mut query);
    query.build_query_scalar().fetch_one(pool).await.map_err(failed("count dead letters"))
}

/// A command whose id belongs to another would only die again, and so would one that is too large; what names no subject
/// and came through no slot has nowhere to go: these have to be edited first.
fn replayable(filter: &Filter, query: &mut QueryBuilder<Postgres>) {
    Filter { state: None, ..filter.clone() }.push(query);
    // As a word of the statement: the indexes of those that are kept are for who says so.
    query.push(" AND state = 'kept'");
    query.push(" AND reason <> ").push_bind(MISMATCH);
    query.push(" AND (subject IS NOT NULL OR routing_key ~ '^[0-9a-f]{2}$')");
    query.push(" AND octet_length(coalesce(edited, body)) <= ").push_bind(COMMAND_MAX as i64);
}

/// Replays, the newest first.
pub async fn list(pool: &PgPool, limit: u32) -> Result<Vec<View>, StoreError> {
    views(pool, None, limit).await
}

/// One replay; `None` if there is none with this id.
pub async fn read(pool: &PgPool, id: Uuid) -> Result<Option<View>, StoreError> {
    Ok(views(pool, Some(id), 1).await?.pop())
}

async fn views(pool: &PgPool, id: Option<Uuid>, limit: u32) -> Result<Vec<View>, StoreError> {
    sqlx::query_as(
        "/* read_replays */
        WITH chosen AS (
            SELECT * FROM dead_letter_replays WHERE $1::uuid IS NULL OR id = $1 ORDER BY created_at DESC, id DESC LIMIT $2
        )
        SELECT p.id, p.filter, p.rate_per_s AS rate, p.author, p.why, p.state, p.stopped_since AS stoppedsince, p.taken,
               fates.died, fates.lived, p.created_at AS createdat, p.finished_at AS finishedat
        FROM chosen p, LATERAL (
            SELECT count(*) FILTER (WHERE d.state = 'kept') AS died,
                   count(*) FILTER (WHERE d.state = 'replayed' AND r.outcome <> 'dead') AS lived
            FROM dead_letters d LEFT JOIN receipts r ON r.id = d.command_id WHERE d.replay = p.id
        ) fates
        ORDER BY p.created_at DESC, p.id DESC",
    )
    .bind(id)
    .bind(i64::from(limit))
    .fetch_all(pool)
    .await
    .map_err(failed("read replays"))
}

/// Ends a replay that runs; `false` if it does not. What it has taken is published all the same.
pub async fn cancel(pool: &PgPool, id: Uuid, now: DateTime<Utc>) -> Result<bool, StoreError> {
    let ended = sqlx::query(
        "/* cancel_replay */
        UPDATE dead_letter_replays SET state = 'cancelled', finished_at = $2 WHERE id = $1 AND state = 'running'",
    )
    .bind(id)
    .bind(now)
    .execute(pool)
    .await
    .map_err(failed("cancel a replay"))?;
    Ok(ended.rows_affected() > 0)
}

/// What a step of a replay did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// No replay is due.
    Nothing,
    /// Letters were taken, or are waited for.
    Taken(usize),
    Done(Uuid),
    Stopped(Uuid, String),
}

/// A replay that is due.
#[derive(FromRow)]
struct Due {
    id: Uuid,
    filter: Json<Filter>,
    rate_per_s: f32,
    author: Uuid,
    why: Option<String>,
    taken: i64,
    created_at: DateTime<Utc>,
}

/// Takes the next step of a replay that is due, if there is one that nobody else works at.
pub async fn step(pool: &PgPool, now: DateTime<Utc>) -> Result<Step, StoreError> {
    let mut transaction = begin(pool).await.map_err(failed("work at a replay"))?;
    let due: Option<Due> = sqlx::query_as(
        "/* due_replay */
        SELECT id, filter, rate_per_s, author, why, taken, created_at FROM dead_letter_replays
        WHERE state = 'running' AND next_at <= $1 ORDER BY next_at LIMIT 1 FOR UPDATE SKIP LOCKED",
    )
    .bind(now)
    .fetch_optional(&mut *transaction)
    .await
    .map_err(failed("work at a replay"))?;
    let Some(due) = due else { return Ok(Step::Nothing) };
    let fates = fates(&mut transaction, due.id).await?;
    let step = match judge(&fates) {
        Pace::Stop(why) => {
            finish(&mut transaction, due.id, "stopped", Some(&why), now).await?;
            Step::Stopped(due.id, why)
        }
        Pace::Go(room) => proceed(&mut transaction, &due, room, fates.contains(&Fate::Open), now).await?,
    };
    transaction.commit().await.map_err(failed("work at a replay"))?;
    Ok(step)
}

async fn proceed(
    connection: &mut PgConnection,
    due: &Due,
    room: usize,
    open: bool,
    now: DateTime<Utc>,
) -> Result<Step, StoreError> {
    let wanted = (f64::from(due.rate_per_s) * STEP.as_seconds_f64()).floor().max(1.0) as usize;
    let found = next(connection, due, wanted.min(room).min(STEP_MAX)).await?;
    if found.is_empty() && !open && room > 0 {
        finish(connection, due.id, "done", None, now).await?;
        return Ok(Step::Done(due.id));
    }
    let unsettled = unsettled(connection, &found, now).await?;
    // Behind one that has to wait its subject's others do.
    let mut held: HashSet<Uuid> = HashSet::new();
    let mut may_begin = |letter: &Letter| {
        let waits =
            unsettled.contains(&letter.id) || letter.subject.is_some_and(|subject| held.contains(&subject));
        held.extend(letter.subject.filter(|_| waits));
        !waits
    };
    let letters: Vec<Letter> = found.into_iter().filter(|letter| may_begin(letter)).collect();
    let by = By { author: due.author, why: due.why.as_deref(), at: now };
    if !letters.is_empty() {
        begin_all(connection, &letters, by, Some(Replay { id: due.id, taken: due.taken })).await?;
    }
    let pause = if letters.is_empty() {
        LOOK
    } else {
        // An order may be from before there was a least rate.
        let rate = f64::from(due.rate_per_s).max(f64::from(RATE_MIN));
        TimeDelta::microseconds((letters.len() as f64 / rate * 1e6) as i64)
    };
    sqlx::query(
        "/* replay_goes_on */ UPDATE dead_letter_replays SET taken = taken + $2, next_at = $3 WHERE id = $1",
    )
    .bind(due.id)
    .bind(letters.len() as i64)
    .bind(now + pause)
    .execute(connection)
    .await
    .map_err(failed("work at a replay"))?;
    Ok(Step::Taken(letters.len()))
}

/// The letters that are to be replayed next, in the order in which they died first.
async fn next(connection: &mut PgConnection, due: &Due, limit: usize) -> Result<Vec<Letter>, StoreError> {
    let mut query = QueryBuilder::new("/* next_to_replay */ SELECT * FROM dead_letters WHERE true");
    replayable(&due.filter.0, &mut query);
    // What has died since it was ordered has died of this replay, or of something newer.
    query.push(" AND last_died_at <= ").push_bind(due.created_at);
    query.push(" AND replay IS DISTINCT FROM ").push_bind(due.id);
    query.push(" ORDER BY first_died_at, id LIMIT ").push_bind(limit as i64).push(" FOR UPDATE SKIP LOCKED");
    let letters = query.build().try_map(read_letter).fetch_all(connection).await;
    letters.map_err(failed("choose what to replay"))
}

/// What became of the letters that a replay took last, oldest first. One whose type nobody knows yet, or that stands in
/// a line, may still die; what waits for its time or for a user lives.
async fn fates(connection: &mut PgConnection, replay: Uuid) -> Result<Vec<Fate>, StoreError> {
    let rows = sqlx::query(
        "/* fates_of_replay */
        SELECT d.state = 'kept' OR coalesce(r.outcome = 'dead', false),
               d.state = 'kept' OR r.id IS NOT NULL OR coalesce(
                   w.state = 'scheduled' OR (w.state = 'parked' AND w.code IS DISTINCT FROM 'unknown_type'), false)
        FROM dead_letters d
        LEFT JOIN receipts r ON r.id = d.command_id LEFT JOIN waiting_commands w ON w.id = d.command_id
        WHERE d.replay = $1 ORDER BY d.replay_place DESC LIMIT $2",
    )
    .bind(replay)
    .bind(LOOKED_AT as i64)
    .fetch_all(connection)
    .await
    .map_err(failed("look after a replay"))?;
    let fate = |row: &sqlx::postgres::PgRow| -> Result<Fate, sqlx::Error> {
        Ok(match (row.try_get(0)?, row.try_get(1)?) {
            (true, _) => Fate::Died,
            (false, true) => Fate::Lived,
            (false, false) => Fate::Open,
        })
    };
    rows.iter().rev().map(fate).collect::<Result<_, _>>().map_err(failed("look after a replay"))
}

async fn finish(
    connection: &mut PgConnection,
    id: Uuid,
    state: &str,
    why: Option<&str>,
    now: DateTime<Utc>,
) -> Result<(), StoreError> {
    sqlx::query(
        "/* finish_replay */
        UPDATE dead_letter_replays SET state = $2, stopped_since = $3, finished_at = $4 WHERE id = $1",
    )
    .bind(id)
    .bind(state)
    .bind(why)
    .bind(now)
    .execute(connection)
    .await
    .map_err(failed("finish a replay"))?;
    Ok(())
}
