//! Which scheduler leads: the table `scheduler_leader`.
//!
//! The leader writes under its epoch: [`Fence::begin`] opens a transaction that holds the row against a change of hands
//! until it ends. So who was stopped for longer than its lease can write nothing more. All times are the server's.

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::Serialize;
use uuid::Uuid;

use super::{PgPool, Transaction, begin, failed};
use crate::StoreError;

/// The longest that a fenced transaction may stand still, or one of its statements take, in milliseconds: a successor
/// waits for it.
const FENCED_MAX_MS: u32 = 4_000;
/// The longest lead that is not renewed, in milliseconds. One that would last longer was taken while the server's clock was
/// ahead, and counts no more.
pub const LEASE_MAX_MS: u64 = 60_000;

/// Takes the lead if nobody has it; the epoch, or `None`. Waits for what the last leader is just writing. Nobody leads on a
/// restored database with which the other stores do not agree yet.
pub async fn take(pool: &PgPool, holder: Uuid, host: &str, lease_ms: i64) -> Result<Option<i64>, StoreError> {
    sqlx::query_scalar(
        "/* take_lead */
        WITH free AS (
            SELECT single FROM scheduler_leader
            WHERE (expires_at <= clock_timestamp() OR holder = $1
                OR expires_at > clock_timestamp() + 2 * $4 * interval '1 millisecond')
                AND NOT EXISTS (SELECT FROM restore_epochs WHERE ended_at IS NULL) FOR UPDATE
        )
        UPDATE scheduler_leader l SET epoch = l.epoch + 1, holder = $1, host = $2, since = clock_timestamp(),
            expires_at = clock_timestamp() + $3 * interval '1 millisecond'
        FROM free WHERE l.single = free.single RETURNING l.epoch",
    )
    .bind(holder)
    .bind(host)
    .bind(lease_ms)
    .bind(LEASE_MAX_MS as i64)
    .fetch_optional(pool)
    .await
    .map_err(failed("take the scheduler's lead"))
}

/// Gives the lead back, so that a successor need not wait for its end.
pub async fn leave(pool: &PgPool, holder: Uuid, epoch: i64) -> Result<(), StoreError> {
    sqlx::query(
        "/* leave_lead */ UPDATE scheduler_leader SET expires_at = '-infinity' WHERE epoch = $1 AND holder = $2",
    )
    .bind(epoch)
    .bind(holder)
    .execute(pool)
    .await
    .map_err(failed("leave the scheduler's lead"))?;
    Ok(())
}

/// Who leads, as people see it.
#[derive(Debug, Clone, Serialize, sqlx::FromRow)]
pub struct Leader {
    pub epoch: i64,
    pub host: Option<String>,
    pub since: Option<DateTime<Utc>>,
    /// Whether its lease holds.
    pub leads: bool,
}

/// Who leads, or led last.
pub async fn read(pool: &PgPool) -> Result<Leader, StoreError> {
    sqlx::query_as(
        "/* read_leader */ SELECT epoch, host, since, expires_at > now() AS leads FROM scheduler_leader",
    )
    .fetch_one(pool)
    .await
    .map_err(failed("read who leads the schedulers"))
}

/// Why a fenced write was not made.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Fenced {
    /// Another scheduler leads by now.
    #[error("another scheduler leads by now")]
    Out,
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A transaction under the fence: [`commit`] it.
pub type Open = Transaction;

/// The right of one epoch to write.
#[derive(Debug, Clone)]
pub struct Fence {
    pool: PgPool,
    epoch: i64,
}

impl Fence {
    pub fn new(pool: PgPool, epoch: i64) -> Self {
        Self { pool, epoch }
    }

    pub fn epoch(&self) -> i64 {
        self.epoch
    }

    /// Begins a transaction that can only be committed while this epoch lasts. Its statements are short ones.
    pub async fn begin(&self) -> Result<Open, Fenced> {
        let mut transaction = begin(&self.pool).await.map_err(failed("begin under the leader's fence"))?;
        // KEY SHARE: the leader's own renewals go on beside it, a successor's FOR UPDATE waits.
        let held = sqlx::query(
            "/* fence_leader */
            SELECT set_config('statement_timeout', $2, true), set_config('idle_in_transaction_session_timeout', $2, true)
            FROM scheduler_leader WHERE epoch = $1 FOR KEY SHARE",
        )
        .bind(self.epoch)
        .bind(FENCED_MAX_MS.to_string())
        .fetch_optional(&mut *transaction)
        .await
        .map_err(failed("begin under the leader's fence"))?;
        if held.is_none() {
            return Err(Fenced::Out);
        }
        Ok(transaction)
    }

    /// How long this epoch lasts at least, unless the lead is given back: nobody else leads before. For writes elsewhere
    /// that bear their end.
    pub async fn lasts(&self) -> Result<Duration, Fenced> {
        let left_ms: Option<i64> = sqlx::query_scalar(
            "/* rest_of_lead */
            SELECT (EXTRACT(EPOCH FROM expires_at - clock_timestamp()) * 1000)::bigint FROM scheduler_leader
            WHERE epoch = $1 AND expires_at > clock_timestamp()
                AND expires_at <= clock_timestamp() + $2 * interval '1 millisecond'",
        )
        .bind(self.epoch)
        .bind(LEASE_MAX_MS as i64)
        .fetch_optional(&self.pool)
        .await
        .map_err(failed("look how long the lead lasts"))?;
        left_ms.map(|ms| Duration::from_millis(ms.unsigned_abs())).ok_or(Fenced::Out)
    }

    /// Whether this epoch still lasts. Only a look: what must not be done by two goes through [`Fence::begin`].
    pub async fn holds(&self) -> Result<(), Fenced> {
        let held: Option<i64> =
            sqlx::query_scalar("/* look_at_leader */ SELECT epoch FROM scheduler_leader WHERE epoch = $1")
                .bind(self.epoch)
                .fetch_optional(&self.pool)
                .await
                .map_err(failed("look who leads the schedulers"))?;
        held.map(|_| ()).ok_or(Fenced::Out)
    }
}

/// Commits a fenced transaction.
pub async fn commit(transaction: Open) -> Result<(), Fenced> {
    Ok(transaction.commit().await.map_err(failed("commit under the leader's fence"))?)
}
