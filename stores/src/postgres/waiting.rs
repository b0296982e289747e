//! The table `waiting_commands`: commands that wait for their time, for another command, or behind one that waits.
//!
//! Only the holder of a partition's lease adds to its rows and takes from them, in the transactions of its batches. A
//! scheduled command may also be cancelled by an intake; the primary key of the receipts decides who was first.

mod seen;

use std::collections::{HashMap, HashSet};

use chrono::{DateTime, Utc};
use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Row};
use taskflow_core::command::Fingerprint;
use taskflow_core::wait::{Held, Waited, Why};
use uuid::Uuid;

pub use self::seen::{cancel, count, find, read_many};
use super::tasks::unknown_word;
use super::{PgPool, failed};
use crate::{Kind, StoreError};

/// Selects of the ids that a parameter names those of commands that wait, with what each asks for; the third column tells
/// them from receipts. One that nobody could read yet is known by its bytes: nothing is said of it.
macro_rules! waiting_ids {
    ($ids:literal) => {
        concat!(
            "SELECT id, fingerprint, true FROM waiting_commands WHERE id = ANY(",
            $ids,
            ") AND fingerprint <> substring(sha256(body) FROM 1 FOR 16)"
        )
    };
}
pub(super) use waiting_ids;

/// What is there under an id that a command brings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Earlier {
    /// Of what was asked for.
    pub fingerprint: Fingerprint,
    /// It has no receipt yet: it waits for its time, or for another command.
    pub waits: bool,
}

/// What is there under these ids.
pub async fn earlier(
    connection: &mut PgConnection,
    ids: &[Uuid],
) -> Result<HashMap<Uuid, Earlier>, StoreError> {
    let rows: Vec<(Uuid, Fingerprint, bool)> = sqlx::query_as(concat!(
        "/* earlier */ ",
        waiting_ids!("$1"),
        " UNION ALL SELECT id, fingerprint, false FROM receipts WHERE id = ANY($1)"
    ))
    .bind(ids)
    .fetch_all(connection)
    .await
    .map_err(failed("look up earlier commands"))?;
    let mut earlier = HashMap::with_capacity(rows.len());
    for (id, fingerprint, waits) in rows {
        // A receipt counts, whoever else waits under its id.
        earlier
            .entry(id)
            .and_modify(|known: &mut Earlier| {
                if !waits {
                    *known = Earlier { fingerprint, waits };
                }
            })
            .or_insert(Earlier { fingerprint, waits });
    }
    Ok(earlier)
}

/// A command that has waited, as its message came.
#[derive(Debug, Clone)]
pub struct Waiting {
    pub id: Uuid,
    pub subject: Uuid,
    pub waited: Waited,
    pub accepted_at: DateTime<Utc>,
    /// Of what the command asks for; of the message itself where it could not be read.
    pub fingerprint: Fingerprint,
    pub body: Vec<u8>,
    /// Once, before that was undone: its `expirytime` is no matter any more.
    pub applied_in_time: bool,
}

/// A command that begins to wait, or waits on.
pub struct Hold<'b> {
    pub id: Uuid,
    pub subject: Uuid,
    pub actor: Option<Uuid>,
    pub kind: Option<&'b str>,
    pub accepted_at: DateTime<Utc>,
    pub fingerprint: Fingerprint,
    pub body: &'b [u8],
    pub applied_in_time: bool,
    pub held: &'b Held,
}

/// Who waits under an id that was to begin to wait.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct Before {
    pub id: Uuid,
    pub fingerprint: Fingerprint,
    /// The message of one that nobody could read yet, and that is known by its bytes.
    pub unread: Option<Vec<u8>>,
}

/// The subjects of a partition of which commands are parked.
pub async fn lines(pool: &PgPool, partition: &str) -> Result<HashSet<Uuid>, StoreError> {
    let subjects: Vec<Uuid> = sqlx::query_scalar(
        "/* waiting_lines */ SELECT DISTINCT subject FROM waiting_commands WHERE partition = $1 AND state <> 'scheduled'",
    )
    .bind(partition)
    .fetch_all(pool)
    .await
    .map_err(failed("read who waits"))?;
    Ok(subjects.into_iter().collect())
}

/// When the next command of a partition is due.
pub async fn next_due(pool: &PgPool, partition: &str) -> Result<Option<DateTime<Utc>>, StoreError> {
    sqlx::query_scalar(
        "/* waiting_next */ SELECT min(due_at) FROM waiting_commands WHERE partition = $1 AND due_at IS NOT NULL",
    )
    .bind(partition)
    .fetch_one(pool)
    .await
    .map_err(failed("read what is due next"))
}

/// Of what is due, so many bytes of bodies are taken at once, or one that is larger.
const DUE_BYTES_MAX: i64 = 8 * 1024 * 1024;

/// What is due, each parked command with those behind it: at most `limit` (and 8 MiB) and, of each line, always its
/// beginning. In the order in which they are to be applied. Looks into indexes, never one at all that waits, nor at all
/// of a long line.
pub async fn due(
    pool: &PgPool,
    partition: &str,
    now: DateTime<Utc>,
    limit: usize,
) -> Result<Vec<Waiting>, StoreError> {
    sqlx::query(
        "/* waiting_due */
        WITH due AS (
            SELECT id, subject, state FROM waiting_commands
            WHERE partition = $1 AND due_at <= $2 ORDER BY due_at, place LIMIT $3
        )
        SELECT id, subject, state, attempts, since, accepted_at, body, fingerprint, applied_in_time FROM (
            SELECT *, coalesce(sum(octet_length(body)) OVER (
                ORDER BY late, moment, place ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING), 0) AS bytes_before
            FROM (
                SELECT *, state = 'scheduled' AS late, CASE WHEN state = 'scheduled' THEN due_at END AS moment FROM (
                    SELECT w.* FROM due JOIN waiting_commands w USING (id)
                    UNION ALL
                    SELECT w.* FROM (SELECT DISTINCT subject FROM due WHERE state <> 'scheduled') lines
                    CROSS JOIN LATERAL (
                        SELECT * FROM waiting_commands
                        WHERE partition = $1 AND subject = lines.subject AND state <> 'scheduled'
                              AND state = 'behind' AND due_at IS NULL
                        ORDER BY place LIMIT $3
                    ) w
                ) w
                ORDER BY late, moment, place LIMIT $3
            ) w
        ) w
        WHERE bytes_before < $4 ORDER BY late, moment, place",
    )
    .bind(partition)
    .bind(now)
    .bind(limit as i64)
    .bind(DUE_BYTES_MAX)
    .try_map(read)
    .fetch_all(pool)
    .await
    .map_err(failed("read what is due"))
}

#[expect(clippy::needless_pass_by_value, reason = "the form that try_map asks for")]
fn read(row: PgRow) -> Result<Waiting, sqlx::Error> {
    let state: &str = row.try_get(2)?;
    let attempts: i16 = row.try_get(3)?;
    Ok(Waiting {
        id: row.try_get(0)?,
        subject: row.try_get(1)?,
        waited: Waited {
            why: Why::from_word(state).ok_or_else(|| unknown_word("state", state))?,
            attempts: attempts as u16,
            since: row.try_get(4)?,
        },
        accepted_at: row.try_get(5)?,
        body: row.try_get(6)?,
        fingerprint: row.try_get(7)?,
        applied_in_time: row.try_get(8)?,
    })
}

/// Writes commands that begin to wait, in order. Returns the fingerprints of all, if some of them wait already: the same
/// command sent again, or another one under its id.
///
/// # Errors
/// [`crate::Kind::Conflict`] when one of them waited already and does so no more: somebody has cancelled it meanwhile.
pub async fn hold(
    connection: &mut PgConnection,
    partition: &str,
    holds: &[Hold<'_>],
) -> Result<Vec<Before>, StoreError> {
    if holds.is_empty() {
        return Ok(Vec::new());
    }
    fn column<'h, T>(holds: &'h [Hold<'h>], field: impl Fn(&'h Hold<'h>) -> T) -> Vec<T> {
        holds.iter().map(field).collect()
    }
    let ids = column(holds, |h| h.id);
    let written = sqlx::query(
        "/* hold_commands */
        INSERT INTO waiting_commands (id, subject, actor, type, state, code, detail, attempts, since, due_at, accepted_at,
                                      fingerprint, body, applied_in_time, partition)
        SELECT id, subject, actor, type, state, code, detail, attempts, since, due_at, accepted_at, fingerprint, body,
               applied_in_time, $15
        FROM UNNEST($1::uuid[], $2::uuid[], $3::uuid[], $4::text[], $5::text[], $6::text[], $7::text[], $8::smallint[],
                    $9::timestamptz[], $10::timestamptz[], $11::timestamptz[], $12::bytea[], $13::bytea[],
                    $14::boolean[])
            WITH ORDINALITY AS h (id, subject, actor, type, state, code, detail, attempts, since, due_at, accepted_at,
                                  fingerprint, body, applied_in_time, ordinal)
        ORDER BY ordinal
        ON CONFLICT (id) DO NOTHING",
    )
    .bind(&ids)
    .bind(column(holds, |h| h.subject))
    .bind(column(holds, |h| h.actor))
    .bind(column(holds, |h| h.kind))
    .bind(column(holds, |h| h.held.why.as_str()))
    .bind(column(holds, |h| h.held.code))
    .bind(column(holds, |h| h.held.detail.as_deref()))
    .bind(column(holds, |h| h.held.attempts as i16))
    .bind(column(holds, |h| h.held.since))
    .bind(column(holds, |h| h.held.due_at))
    .bind(column(holds, |h| h.accepted_at))
    .bind(column(holds, |h| h.fingerprint.as_slice()))
    .bind(column(holds, |h| h.body))
    .bind(column(holds, |h| h.applied_in_time))
    .bind(partition)
    .execute(&mut *connection)
    .await
    .map_err(failed("let commands wait"))?;
    if written.rows_affected() == holds.len() as u64 {
        return Ok(Vec::new());
    }
    // Rare: one of them waits already. What was written just now has the fingerprint that was given.
    let there: Vec<Before> = sqlx::query_as(
        "/* held_before */
        SELECT id, fingerprint, CASE WHEN fingerprint = substring(sha256(body) FROM 1 FOR 16) THEN body END AS unread
        FROM waiting_commands WHERE id = ANY($1)",
    )
    .bind(&ids)
    .fetch_all(connection)
    .await
    .map_err(failed("look up who waits"))?;
    if there.len() < holds.len() {
        return Err(cancelled("let commands wait"));
    }
    Ok(there)
}

/// A line would stay behind it that nobody calls: the batch is done anew.
fn cancelled(call: &'static str) -> StoreError {
    let detail = "a command that waited does so no more: it was cancelled meanwhile";
    StoreError::new(super::STORE, call, Kind::Conflict, detail)
}

/// Writes the new state of commands that have waited and wait on, and what they ask for: that may be read only now. Who
/// joins a line goes to its end.
///
/// # Errors
/// [`crate::Kind::Conflict`] when one of them does not wait any more: somebody has cancelled it meanwhile.
pub async fn hold_on(
    connection: &mut PgConnection,
    holds: &[(Uuid, Fingerprint, &Held)],
) -> Result<(), StoreError> {
    if holds.is_empty() {
        return Ok(());
    }
    fn column<'h, T>(holds: &[(Uuid, Fingerprint, &'h Held)], field: impl Fn(&'h Held) -> T) -> Vec<T> {
        holds.iter().map(|(.., held)| field(held)).collect()
    }
    let held = sqlx::query(
        // Places are drawn in the order of the batch before anything is joined: a join's rows come in any order.
        "/* hold_on */
        WITH h AS MATERIALIZED (
            SELECT o.*, nextval('waiting_commands_place_seq') AS place
            FROM (
                SELECT * FROM UNNEST($1::uuid[], $2::text[], $3::text[], $4::text[], $5::smallint[], $6::timestamptz[],
                                     $7::timestamptz[], $8::bytea[])
                    WITH ORDINALITY AS u (id, state, code, detail, attempts, since, due_at, fingerprint, ordinal)
                ORDER BY ordinal
            ) o
        )
        UPDATE waiting_commands w
        SET state = h.state, code = h.code, detail = h.detail, attempts = h.attempts, since = h.since, due_at = h.due_at,
            fingerprint = h.fingerprint,
            place = CASE WHEN w.state = 'scheduled' AND h.state <> 'scheduled' THEN h.place ELSE w.place END
        FROM h WHERE w.id = h.id",
    )
    .bind(holds.iter().map(|(id, ..)| *id).collect::<Vec<_>>())
    .bind(column(holds, |h| h.why.as_str()))
    .bind(column(holds, |h| h.code))
    .bind(column(holds, |h| h.detail.as_deref()))
    .bind(column(holds, |h| h.attempts as i16))
    .bind(column(holds, |h| h.since))
    .bind(column(holds, |h| h.due_at))
    .bind(holds.iter().map(|(_, fingerprint, _)| fingerprint.as_slice()).collect::<Vec<_>>())
    .execute(connection)
    .await
    .map_err(failed("let commands wait on"))?;
    if held.rows_affected() == holds.len() as u64 {
        return Ok(());
    }
    Err(cancelled("let commands wait on"))
}

/// Takes commands out that have ended, and makes whoever is first in a line now due at once. Returns those of the
/// `subjects` that still have a line.
pub async fn take(
    connection: &mut PgConnection,
    partition: &str,
    ended: &[Uuid],
    subjects: &[Uuid],
    now: DateTime<Utc>,
) -> Result<Vec<Uuid>, StoreError> {
    if !ended.is_empty() {
        sqlx::query("/* take_waiting */ DELETE FROM waiting_commands WHERE id = ANY($1)")
            .bind(ended)
            .execute(&mut *connection)
            .await
            .map_err(failed("take commands out that waited"))?;
    }
    sqlx::query_scalar(
        "/* first_in_line */
        WITH first AS (
            SELECT f.id, s.subject FROM (SELECT DISTINCT subject FROM UNNEST($2::uuid[]) AS u (subject)) s
            CROSS JOIN LATERAL (
                SELECT id FROM waiting_commands
                WHERE partition = $1 AND subject = s.subject AND state <> 'scheduled' ORDER BY place LIMIT 1
            ) f
        ), called AS (
            UPDATE waiting_commands w SET due_at = $3 FROM first f WHERE w.id = f.id AND w.due_at IS NULL
        )
        SELECT subject FROM first",
    )
    .bind(partition)
    .bind(subjects)
    .bind(now)
    .fetch_all(connection)
    .await
    .map_err(failed("call the first in line"))
}
