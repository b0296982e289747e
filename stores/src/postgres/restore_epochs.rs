//! The table `restore_epochs`: what Postgres is brought to when it has gone back in time.
//!
//! An epoch begins with the restore itself, in the database that was restored, and ends when the other stores agree with
//! it. In between nobody works on it: what a worker wrote would bear numbers that the other stores have already.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use chrono::{DateTime, Utc};
use taskflow_core::system_event::Occurrence;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::audit_chain::{self, Addition};
use super::silence::{self, ANSWER};
use super::{PgPool, audit_seals, failed, system_events};
use crate::vitals::Vitals;
use crate::{Kind, StoreError, seldom};

/// Between two looks whether a restore was brought to its end, and how long Postgres may take for one.
const LOOK: Duration = Duration::from_secs(1);
/// What is faulty in a process that waits for it.
pub const PART: &str = "restore";

/// A restore that is being brought to its end.
#[derive(Debug, Clone, sqlx::FromRow, serde::Deserialize)]
pub struct Epoch {
    pub epoch: i64,
    pub begun_at: DateTime<Utc>,
    pub point: Option<DateTime<Utc>>,
}

/// What came of it.
#[derive(Debug, Clone, Copy, Default)]
pub struct Outcome {
    pub undone_commands: i64,
    pub undone_events: i64,
    pub missing_events: i64,
    pub keys_removed: i64,
}

impl Epoch {
    /// What is wrong while it lasts, and the way out.
    pub fn fault(&self) -> String {
        let point = self.point.map_or_else(|| "no command".to_owned(), |point| point.to_rfc3339());
        format!(
            "Postgres or MongoDB was restored (epoch {}, the newest receipt is of {point}), and the stores may not agree: \
             run `taskflow restore --agree`; nothing is done before",
            self.epoch
        )
    }
}

/// Whether the schema has epochs.
pub async fn is_known(pool: &PgPool) -> Result<bool, StoreError> {
    sqlx::query_scalar("SELECT to_regclass('restore_epochs') IS NOT NULL")
        .fetch_one(pool)
        .await
        .map_err(failed("look for the table of restores"))
}

/// The restore that was not brought to its end, if there is one.
pub async fn open(pool: &PgPool) -> Result<Option<Epoch>, StoreError> {
    let call = "look for a restore that has no end";
    // Where there is no such table yet, the schema is another's, and others say so.
    if !is_known(pool).await? {
        return Ok(None);
    }
    sqlx::query_as(
        "SELECT epoch, begun_at, point FROM restore_epochs WHERE ended_at IS NULL ORDER BY epoch DESC LIMIT 1",
    )
    .fetch_optional(pool)
    .await
    .map_err(failed(call))
}

/// Waits while Postgres is a restored one with which the other stores do not agree yet.
pub async fn until_agreed(pool: &PgPool, vitals: &Vitals, stop: &CancellationToken) {
    let mut waits = false;
    while !stop.is_cancelled() {
        match silence::within(ANSWER, "look for a restore that has no end", open(pool)).await {
            Ok(Some(epoch)) => {
                if !waits {
                    let fault = epoch.fault();
                    tracing::error!("{fault}");
                    vitals.fault(PART, fault);
                }
                waits = true;
            }
            Err(error) => {
                if error.kind != Kind::Unavailable {
                    vitals.fault(PART, format!("whether Postgres was restored is not known: {error}"));
                }
                if seldom::worth_a_line(&error) {
                    tracing::warn!(%error, "Whether Postgres was restored is not known yet.");
                }
            }
            Ok(None) => {
                if waits {
                    tracing::info!("The restore was brought to its end.");
                }
                vitals.well(PART);
                return;
            }
        }
        tokio::select! {
            () = stop.cancelled() => {}
            () = tokio::time::sleep(LOOK) => {}
        }
    }
}

/// Begins an epoch; one that was broken off goes on.
pub async fn begin(pool: &PgPool, author: &str) -> Result<Epoch, StoreError> {
    let call = "begin a restore epoch";
    if let Some(open) = open(pool).await? {
        return Ok(open);
    }
    // The newest receipt is not looked for by an index: there is a block range index only.
    let mut transaction = super::begin(pool).await.map_err(failed(call))?;
    sqlx::query("SET LOCAL enable_seqscan = on").execute(&mut *transaction).await.map_err(failed(call))?;
    sqlx::query("SET LOCAL statement_timeout = 0").execute(&mut *transaction).await.map_err(failed(call))?;
    let epoch = sqlx::query_as(
        "INSERT INTO restore_epochs (begun_at, point, author)
         SELECT clock_timestamp(), (SELECT max(finished_at) FROM receipts), $1 RETURNING epoch, begun_at, point",
    )
    .bind(author)
    .fetch_one(&mut *transaction)
    .await
    .map_err(failed(call))?;
    transaction.commit().await.map_err(failed(call))?;
    Ok(epoch)
}

/// When the newest restore was brought to its end.
pub async fn newest(pool: &PgPool) -> Result<Option<DateTime<Utc>>, StoreError> {
    sqlx::query_scalar("SELECT max(ended_at) FROM restore_epochs")
        .fetch_one(pool)
        .await
        .map_err(failed("look for restores"))
}

/// Processes that work on this database now. A worker that leaves has said so before it gives its leases back.
pub async fn at_work(pool: &PgPool) -> Result<Vec<String>, StoreError> {
    sqlx::query_scalar(
        "SELECT 'worker ' || name FROM workers WHERE expires_at > clock_timestamp()
         UNION
         SELECT 'worker ' || coalesce(w.name, l.holder::text) FROM partition_leases l LEFT JOIN workers w ON w.id = l.holder
         WHERE l.expires_at > clock_timestamp()
         UNION ALL
         SELECT 'scheduler ' || coalesce(host, '?') FROM scheduler_leader WHERE expires_at > clock_timestamp()",
    )
    .fetch_all(pool)
    .await
    .map_err(failed("look who works"))
}

/// The newest link of the chain of the system's events, and when the oldest event was made that is not delivered yet.
pub async fn system_chain(pool: &PgPool) -> Result<(i64, Option<DateTime<Utc>>), StoreError> {
    sqlx::query_as(
        "SELECT h.number, (SELECT min((convert_from(s.event, 'UTF8')::jsonb ->> 'at')::timestamptz) FROM system_events s)
         FROM audit_system_head h",
    )
    .fetch_one(pool)
    .await
    .map_err(failed("read the head of the system's events"))
}

/// Moves what must never go back beyond anything that was ever used: epochs of leases, numbers of batches. `seen` has the
/// newest batch of each partition that any other store knows.
pub async fn jump(pool: &PgPool, seen: &BTreeMap<String, i64>) -> Result<(), StoreError> {
    let call = "move the epochs forward";
    let mut transaction = super::begin(pool).await.map_err(failed(call))?;
    let partitions: Vec<&str> = seen.keys().map(String::as_str).collect();
    let batches: Vec<i64> = seen.values().copied().collect();
    sqlx::query(
        "UPDATE partition_heads h SET epoch = h.epoch + 1000,
                batch = 1000 + greatest(h.batch, coalesce((
                    SELECT s.batch FROM UNNEST($1::text[], $2::bigint[]) AS s (partition, batch)
                    WHERE s.partition = h.partition), 0))",
    )
    .bind(&partitions)
    .bind(&batches)
    .execute(&mut *transaction)
    .await
    .map_err(failed(call))?;
    // A partition that came up after the point to which Postgres was restored.
    sqlx::query(
        "INSERT INTO partition_heads (partition, epoch, batch)
         SELECT s.partition, 1000, s.batch + 1000 FROM UNNEST($1::text[], $2::bigint[]) AS s (partition, batch)
         ON CONFLICT (partition) DO NOTHING",
    )
    .bind(&partitions)
    .bind(&batches)
    .execute(&mut *transaction)
    .await
    .map_err(failed(call))?;
    for statement in [
        // The system's own events: more than there can have been since the point.
        "UPDATE audit_system_head SET number = number + 1000000",
        "UPDATE scheduler_leader SET epoch = epoch + 1000, expires_at = '-infinity'",
        "DELETE FROM partition_leases",
        "DELETE FROM workers",
    ] {
        sqlx::query(statement).execute(&mut *transaction).await.map_err(failed(call))?;
    }
    transaction.commit().await.map_err(failed(call))
}

/// Those of these commands that have a receipt.
pub async fn with_receipt(pool: &PgPool, commands: &[Uuid]) -> Result<HashSet<Uuid>, StoreError> {
    let found: Vec<Uuid> = sqlx::query_scalar("SELECT id FROM receipts WHERE id = ANY($1)")
        .bind(commands)
        .fetch_all(pool)
        .await
        .map_err(failed("look for receipts"))?;
    Ok(found.into_iter().collect())
}

/// Those of these batches that were committed: they have a link in the audit trail's chain, which is never removed, or are
/// from before there were links.
pub async fn committed(pool: &PgPool, batches: &[(&str, i64)]) -> Result<HashSet<(String, i64)>, StoreError> {
    let (partitions, numbers): (Vec<&str>, Vec<i64>) = batches.iter().copied().unzip();
    let found: Vec<(String, i64)> = sqlx::query_as(
        "SELECT DISTINCT n.partition, n.number FROM UNNEST($1::text[], $2::bigint[]) AS n (partition, number)
         WHERE EXISTS (SELECT FROM audit_links l WHERE (l.partition, l.number) = (n.partition, n.number))
            OR n.number < (SELECT min(l.number) FROM audit_links l WHERE l.partition = n.partition)",
    )
    .bind(&partitions)
    .bind(&numbers)
    .fetch_all(pool)
    .await
    .map_err(failed("look for batches"))?;
    Ok(found.into_iter().collect())
}

/// Commands from a time on that have caused events, in the order of their ids behind `after`, with when they were accepted
/// and how many events they have (the events' ids follow from all that). What still
/// waits in the outbox is left out: it is on its way.
pub async fn expected_events(
    pool: &PgPool,
    since: DateTime<Utc>,
    after: Uuid,
    limit: i64,
) -> Result<Vec<(Uuid, DateTime<Utc>, i16)>, StoreError> {
    sqlx::query_as(
        "SELECT r.id, r.accepted_at, r.events FROM receipts r
         WHERE r.finished_at >= $1 AND r.events > 0 AND r.id > $2
           AND NOT EXISTS (SELECT FROM outbox o WHERE (o.partition, o.number) = (r.partition, r.batch))
         ORDER BY r.id LIMIT $3",
    )
    .bind(since)
    .bind(after)
    .bind(limit)
    .fetch_all(pool)
    .await
    .map_err(failed("list the events that must be there"))
}

/// Ends an epoch, with the links of the events that were set apart and the event that tells of it; the next seal of the
/// audit trail says that `author` has restored.
pub async fn end(
    pool: &PgPool,
    epoch: i64,
    author: &str,
    outcome: &Outcome,
    apart: &Addition,
    event: &Occurrence,
) -> Result<(), StoreError> {
    let call = "end a restore epoch";
    let mut transaction = super::begin(pool).await.map_err(failed(call))?;
    sqlx::query(
        "UPDATE restore_epochs SET ended_at = clock_timestamp(), undone_commands = $2, undone_events = $3,
                missing_events = $4, keys_removed = $5 WHERE epoch = $1",
    )
    .bind(epoch)
    .bind(outcome.undone_commands)
    .bind(outcome.undone_events)
    .bind(outcome.missing_events)
    .bind(outcome.keys_removed)
    .execute(&mut *transaction)
    .await
    .map_err(failed(call))?;
    if !apart.links.is_empty() {
        audit_chain::extend_system(&mut transaction, apart).await?;
    }
    system_events::insert(&mut transaction, std::slice::from_ref(event)).await?;
    audit_seals::say_restored(&mut transaction, author, &format!("restore epoch {epoch}")).await?;
    transaction.commit().await.map_err(failed(call))
}
