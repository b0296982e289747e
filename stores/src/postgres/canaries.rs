//! The table `canaries`: who watches over the canary of a partition, and which pair of commands is on its way.

use chrono::{DateTime, Utc};
use taskflow_core::canary::Pair;
use uuid::Uuid;

use super::{PgPool, failed};
use crate::StoreError;

/// What a holder finds.
#[derive(Debug, Clone, Default)]
pub struct Held {
    /// The pair that is on its way.
    pub pair: Option<Pair>,
    /// When the newest pair was offered.
    pub sent_at: Option<DateTime<Utc>>,
    /// Whether the pair was counted as stuck.
    pub stuck: bool,
}

#[derive(sqlx::FromRow)]
struct Row {
    subject: Option<Uuid>,
    base: Option<i32>,
    first: Option<Uuid>,
    second: Option<Uuid>,
    sent_at: Option<DateTime<Utc>>,
    stuck: bool,
}

/// Takes, or keeps, the watch over a partition's canary for so long; `None` if somebody else has it.
pub async fn hold(
    pool: &PgPool,
    partition: &str,
    holder: Uuid,
    hold_ms: i64,
) -> Result<Option<Held>, StoreError> {
    let row: Option<Row> = sqlx::query_as(
        "/* hold_canary */
        INSERT INTO canaries AS c (partition, holder, held_until)
        VALUES ($1, $2, now() + $3 * interval '1 millisecond')
        ON CONFLICT (partition) DO UPDATE SET holder = excluded.holder, held_until = excluded.held_until
        WHERE c.holder = excluded.holder OR c.held_until < now()
        RETURNING subject, base, first, second, sent_at, stuck",
    )
    .bind(partition)
    .bind(holder)
    .bind(hold_ms)
    .fetch_optional(pool)
    .await
    .map_err(failed("hold a canary"))?;
    Ok(row.map(|row| {
        let pair = match (row.subject, row.base, row.first, row.second) {
            (Some(subject), Some(base), Some(first), Some(second)) => {
                Some(Pair { subject, base, ids: [first, second] })
            }
            _ => None,
        };
        Held { pair, sent_at: row.sent_at, stuck: row.stuck }
    }))
}

/// Writes down the pair that is about to be offered; `false` if somebody else has the watch by now.
pub async fn note_sent(
    pool: &PgPool,
    partition: &str,
    holder: Uuid,
    pair: &Pair,
    at: DateTime<Utc>,
) -> Result<bool, StoreError> {
    let noted = sqlx::query(
        "/* canary_sent */
        UPDATE canaries SET subject = $3, base = $4, first = $5, second = $6, sent_at = $7, stuck = false
        WHERE partition = $1 AND holder = $2",
    )
    .bind(partition)
    .bind(holder)
    .bind(pair.subject)
    .bind(pair.base)
    .bind(pair.ids[0])
    .bind(pair.ids[1])
    .bind(at)
    .execute(pool)
    .await
    .map_err(failed("note a canary"))?;
    Ok(noted.rows_affected() == 1)
}

/// Notes that the pair was counted as stuck.
pub async fn note_stuck(pool: &PgPool, partition: &str, holder: Uuid) -> Result<(), StoreError> {
    sqlx::query("/* canary_stuck */ UPDATE canaries SET stuck = true WHERE partition = $1 AND holder = $2")
        .bind(partition)
        .bind(holder)
        .execute(pool)
        .await
        .map_err(failed("note a stuck canary"))?;
    Ok(())
}

/// Notes that the pair has come to its end; `false` if somebody else has the watch by now, and will judge it.
pub async fn note_ended(
    pool: &PgPool,
    partition: &str,
    holder: Uuid,
    pair: &Pair,
) -> Result<bool, StoreError> {
    let noted = sqlx::query(
        "/* canary_ended */
        UPDATE canaries SET first = NULL, second = NULL WHERE partition = $1 AND holder = $2 AND first = $3",
    )
    .bind(partition)
    .bind(holder)
    .bind(pair.ids[0])
    .execute(pool)
    .await
    .map_err(failed("note a canary's end"))?;
    Ok(noted.rows_affected() == 1)
}
