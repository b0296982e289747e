//! What callers see of commands that wait, and how they cancel one.

use chrono::{DateTime, Utc};
use sqlx::Row;
use sqlx::postgres::PgRow;
use taskflow_core::wait::Why;
use uuid::Uuid;

use crate::StoreError;
use crate::postgres::receipts::{self, View};
use crate::postgres::tasks::unknown_word;
use crate::postgres::{PgPool, failed};

/// A command's receipt, or what there is to see of it while it waits.
pub async fn find(pool: &PgPool, id: Uuid) -> Result<Option<View>, StoreError> {
    // In this order: it gets its receipt in the transaction in which it ends to wait.
    let waiting = read_many(pool, &[id]).await?.pop();
    Ok(receipts::read_many(pool, &[id]).await?.pop().or(waiting))
}

/// What callers see of commands that wait.
pub async fn read_many(pool: &PgPool, ids: &[Uuid]) -> Result<Vec<View>, StoreError> {
    sqlx::query(
        "/* read_waiting */
        SELECT id, type, subject, actor, state, code, detail, attempts, accepted_at, due_at, body
        FROM waiting_commands WHERE id = ANY($1)",
    )
    .bind(ids)
    .try_map(view)
    .fetch_all(pool)
    .await
    .map_err(failed("read who waits"))
}

/// What of a message tells from which upstream system it came.
#[derive(serde::Deserialize)]
struct Sent {
    source: String,
}

#[expect(clippy::needless_pass_by_value, reason = "the form that try_map asks for")]
fn view(row: PgRow) -> Result<View, sqlx::Error> {
    let state: &str = row.try_get(4)?;
    let attempts: i16 = row.try_get(7)?;
    let why = Why::from_word(state).ok_or_else(|| unknown_word("state", state))?;
    // To a caller, waiting behind a parked command is being parked.
    let (status, code) = match why {
        Why::Scheduled => ("scheduled", None),
        Why::Parked => ("parked", row.try_get(5)?),
        Why::Behind => ("parked", Some("behind".to_owned())),
    };
    Ok(View {
        id: row.try_get(0)?,
        kind: row.try_get(1)?,
        subject: row.try_get(2)?,
        actor: row.try_get(3)?,
        status: status.to_owned(),
        code,
        detail: row.try_get(6)?,
        version: None,
        events: Vec::new(),
        acceptedat: row.try_get(8)?,
        finishedat: None,
        nextattemptat: row.try_get(9)?,
        auditedat: None,
        cachedat: None,
        publishedat: None,
        attempts: attempts as u16,
        source: serde_json::from_slice::<Sent>(row.try_get(10)?).ok().map(|sent| sent.source),
    })
}

/// Cancels a scheduled command, which came from this source: it leaves the waiting room and gets its receipt, in one
/// transaction. `false` if it does not wait for its time (any more).
///
/// # Errors
/// [`crate::Kind::Conflict`] when a worker was faster: it has its receipt.
pub async fn cancel(
    pool: &PgPool,
    id: Uuid,
    source: Option<&str>,
    now: DateTime<Utc>,
) -> Result<bool, StoreError> {
    let done = sqlx::query(
        "/* cancel_scheduled */
        WITH gone AS (
            DELETE FROM waiting_commands WHERE id = $1 AND state = 'scheduled'
            RETURNING id, type, subject, actor, attempts, accepted_at, fingerprint, partition
        )
        INSERT INTO receipts (id, type, subject, actor, outcome, events, attempts, accepted_at, finished_at, fingerprint,
                              partition, batch, source)
        SELECT id, type, subject, actor, 'cancelled', 0, attempts, accepted_at, greatest(accepted_at, $2), fingerprint,
               partition, 0, $3
        FROM gone",
    )
    .bind(id)
    .bind(now)
    .bind(source)
    .execute(pool)
    .await
    .map_err(failed("cancel a command"))?;
    Ok(done.rows_affected() == 1)
}

/// How many commands are parked (those behind included), and about how many are scheduled: a million of them are not
/// counted one by one.
pub async fn count(pool: &PgPool) -> Result<(i64, i64), StoreError> {
    sqlx::query_as(
        "/* count_waiting */
        SELECT parked, greatest(0, reltuples::bigint - parked)
        FROM (SELECT count(*) AS parked FROM waiting_commands WHERE state <> 'scheduled') p, pg_class
        WHERE oid = 'waiting_commands'::regclass",
    )
    .fetch_one(pool)
    .await
    .map_err(failed("count who waits"))
}
