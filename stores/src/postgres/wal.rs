//! The log of writes (WAL), as far as statements go: how far it has got, the slot that keeps it, who receives it.

use std::time::Duration;

use chrono::{DateTime, Utc};
use futures_util::TryFutureExt;
use sqlx::{Connection, PgConnection, PgExecutor};

use super::pool::connect_alone;
use super::silence::{self, ANSWER};
use super::{PgPool, failed};
use crate::StoreError;

/// One process receives the log at a time: who has this advisory lock.
const TURN: i64 = 0x7461_736b_7761_6c00;
/// Postgres's code for a privilege that is missing.
const MAY_NOT: &str = "42501";

/// Where a server's log has got to.
#[derive(Debug, Clone)]
pub struct Place {
    /// Everything before it is on the server's disk.
    pub lsn: String,
    /// By the server's clock.
    pub at: DateTime<Utc>,
    pub timeline: u32,
    pub segment_bytes: u64,
    /// The cluster's own number.
    pub system: String,
}

/// A slot that keeps the log.
#[derive(Debug, Clone)]
pub struct Slot {
    /// From here on it is kept; `None` while it keeps nothing.
    pub restart: Option<String>,
    /// The server has thrown away what it should have kept.
    pub lost: bool,
    /// Bytes that it keeps.
    pub behind: i64,
}

/// How far the log has got.
pub async fn place(pool: &PgPool) -> Result<Place, StoreError> {
    // First the clock: whatever was committed before it is on the disk.
    let (at, lsn, file, segment, system): (DateTime<Utc>, String, String, i64, String) = sqlx::query_as(
        "SELECT clock_timestamp(), pg_current_wal_flush_lsn()::text, pg_walfile_name(pg_current_wal_flush_lsn()),
                (SELECT setting::bigint FROM pg_settings WHERE name = 'wal_segment_size'),
                (SELECT system_identifier::text FROM pg_control_system())",
    )
    .fetch_one(pool)
    .await
    .map_err(failed("ask how far the log of writes has got"))?;
    let timeline = file.get(..8).and_then(|digits| u32::from_str_radix(digits, 16).ok()).unwrap_or(1);
    Ok(Place { lsn, at, timeline, segment_bytes: segment.unsigned_abs(), system })
}

/// The slot of this name, if there is one.
pub async fn slot(pool: &PgPool, name: &str) -> Result<Option<Slot>, StoreError> {
    let row: Option<(Option<String>, Option<String>, Option<i64>)> = sqlx::query_as(
        "SELECT restart_lsn::text, wal_status, (pg_current_wal_lsn() - restart_lsn)::bigint
         FROM pg_replication_slots WHERE slot_name = $1 AND slot_type = 'physical'",
    )
    .bind(name)
    .fetch_optional(pool)
    .await
    .map_err(failed("look at the replication slot"))?;
    Ok(row.map(|(restart, status, behind)| Slot {
        restart,
        lost: status.as_deref() == Some("lost"),
        behind: behind.unwrap_or(0),
    }))
}

/// Makes a slot that keeps the log from now on.
pub async fn create_slot(pool: &PgPool, name: &str) -> Result<(), StoreError> {
    sqlx::query("SELECT pg_create_physical_replication_slot($1, true)")
        .bind(name)
        .execute(pool)
        .await
        .map(|_| ())
        .map_err(failed(
            "make the replication slot (it takes a role with REPLICATION, and wal_level replica)",
        ))
}

/// Gives a slot up: the server may throw its log away.
pub async fn drop_slot(pool: &PgPool, name: &str) -> Result<(), StoreError> {
    sqlx::query("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = $1")
        .bind(name)
        .execute(pool)
        .await
        .map(|_| ())
        .map_err(failed("drop the replication slot"))
}

/// Lets the server throw away what lies before `lsn`; never backwards.
pub async fn advance_slot(pool: &PgPool, name: &str, lsn: &str) -> Result<(), StoreError> {
    sqlx::query(
        "SELECT pg_replication_slot_advance(slot_name, $2::pg_lsn) FROM pg_replication_slots
         WHERE slot_name = $1 AND restart_lsn < $2::pg_lsn",
    )
    .bind(name)
    .bind(lsn)
    .execute(pool)
    .await
    .map(|_| ())
    .map_err(failed("advance the replication slot"))
}

/// Whether the receiver that calls itself so has written everything before `lsn`.
pub async fn has_received(pool: &PgPool, application: &str, lsn: &str) -> Result<bool, StoreError> {
    sqlx::query_scalar(
        "SELECT coalesce(bool_or(write_lsn >= $2::pg_lsn), false) FROM pg_stat_replication WHERE application_name = $1",
    )
    .bind(application)
    .bind(lsn)
    .fetch_one(pool)
    .await
    .map_err(failed("ask how far the log was received"))
}

/// Notes the place in the log before something changes much, where the role may: a cluster can be restored to it by its
/// name, `taskflow_WHAT_TIME` (`taskflow restore --to-point`). Returns the name; `None` if the role may not.
pub async fn note_place(connection: impl PgExecutor<'_>, what: &str) -> Option<String> {
    let name = format!("taskflow_{what}_{}", crate::clock::now().format("%Y%m%d_%H%M%S"));
    match sqlx::query("SELECT pg_create_restore_point($1)").bind(&name).execute(connection).await {
        Ok(_) => {
            tracing::info!(name, "The place before this is noted in the log of writes.");
            Some(name)
        }
        Err(error) => {
            let refused = error.as_database_error().and_then(sqlx::error::DatabaseError::code);
            if refused.as_deref() == Some(MAY_NOT) {
                tracing::warn!(
                    "No restore point is noted, so no restore leads to just before this by a name. A superuser can allow it, in \
                     this database: GRANT EXECUTE ON FUNCTION pg_create_restore_point(text) TO the role of postgres.url"
                );
            } else {
                tracing::warn!(%error, "No restore point is noted, so no restore leads to just before this by a name.");
            }
            None
        }
    }
}

/// Whether the server still replays the log.
pub async fn in_recovery(pool: &PgPool) -> Result<bool, StoreError> {
    sqlx::query_scalar("SELECT pg_is_in_recovery()")
        .fetch_one(pool)
        .await
        .map_err(failed("ask whether it recovers"))
}

/// The transaction in which a command got its receipt; `None` if it has none.
pub async fn transaction_of(pool: &PgPool, command: uuid::Uuid) -> Result<Option<String>, StoreError> {
    sqlx::query_scalar("SELECT xmin::text FROM receipts WHERE id = $1")
        .bind(command)
        .fetch_optional(pool)
        .await
        .map_err(failed("look for a command's transaction"))
}

/// The turn to receive the log, as long as its connection lives.
pub struct Turn {
    connection: PgConnection,
}

impl Turn {
    /// Takes the turn, unless another process has it.
    pub async fn take(pool: &PgPool) -> Result<Option<Self>, StoreError> {
        let call = "take the turn to receive the log";
        let options = pool.connect_options().as_ref().clone().application_name("taskflow wal turn");
        let mut connection = connect_alone(&options).await.map_err(failed(call))?;
        let taken =
            sqlx::query_scalar("SELECT pg_try_advisory_lock($1)").bind(TURN).fetch_one(&mut connection);
        let got: bool = silence::within(ANSWER, call, taken.map_err(failed(call))).await?;
        if got {
            return Ok(Some(Self { connection }));
        }
        let _ = connection.close().await;
        Ok(None)
    }

    /// Whether it is still ours.
    pub async fn holds(&mut self) -> Result<(), StoreError> {
        let call = "keep the turn to receive the log";
        match tokio::time::timeout(Duration::from_secs(5), self.connection.ping()).await {
            Ok(pinged) => pinged.map_err(failed(call)),
            Err(_) => Err(StoreError::unavailable("postgres", call, "no answer within 5 s")),
        }
    }

    pub async fn give_back(self) {
        let _ = self.connection.close().await;
    }
}
