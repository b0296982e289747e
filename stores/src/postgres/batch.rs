//! The transaction of a batch: the fence at its start, its record and the commit at its end.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use sqlx::{PgConnection, PgPool, Postgres, Transaction};
use taskflow_core::Receipt;
use taskflow_core::command::Fingerprint;
use uuid::Uuid;

use super::failed;
use super::outbox::{self, Payload};
use crate::StoreError;

/// A batch that all other stores have: its outbox row can go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Relayed {
    pub number: i64,
    pub audited_at: DateTime<Utc>,
    pub cached_at: DateTime<Utc>,
    pub published_at: DateTime<Utc>,
}

/// An open transaction under a partition's epoch.
pub struct BatchTransaction {
    transaction: Transaction<'static, Postgres>,
    /// This batch's number: one more than the last of its partition.
    pub number: i64,
}

/// The receipts that exist for a batch's ids, as fingerprints of what was asked for.
pub type Known = HashMap<Uuid, Fingerprint>;

/// Opens the transaction of a batch, if the partition still belongs to this epoch; `None` if it does not. The same
/// statement tells which of the batch's `ids` have receipts, and tidies away what was relayed since the last batch.
///
/// The head's row stays locked until the commit: batches of one partition commit in the order of their numbers, and a
/// new holder's first batch waits for the old one's last. The statement sees what was there when it began to wait; the
/// receipts' primary key finds the twins that it overlooks then.
pub async fn begin(
    pool: &PgPool,
    partition: &str,
    epoch: i64,
    relayed: &[Relayed],
    ids: &[Uuid],
) -> Result<Option<(BatchTransaction, Known)>, StoreError> {
    let mut transaction = pool.begin().await.map_err(failed("begin a batch"))?;
    let rows = fence(&mut transaction, partition, epoch, relayed, ids).await?;
    let Some((number, ..)) = rows.first() else { return Ok(None) };
    let transaction = BatchTransaction { transaction, number: *number };
    let known = rows.iter().filter_map(|(_, id, fingerprint)| Some(((*id)?, (*fingerprint)?))).collect();
    Ok(Some((transaction, known)))
}

/// Tidies away what was relayed, without a batch: for a partition that has become idle.
pub async fn tidy(pool: &PgPool, partition: &str, relayed: &[Relayed]) -> Result<(), StoreError> {
    let columns = Columns::of(relayed);
    sqlx::query(
        "/* tidy_relayed */
        WITH relayed AS (
            SELECT * FROM UNNEST($2::bigint[], $3::timestamptz[], $4::timestamptz[], $5::timestamptz[])
                AS r (number, audited_at, cached_at, published_at)
        ), gone AS (
            DELETE FROM outbox o USING relayed r WHERE o.partition = $1 AND o.number = r.number
        )
        UPDATE batches b
        SET audited_at = r.audited_at, cached_at = r.cached_at, published_at = r.published_at
        FROM relayed r WHERE b.partition = $1 AND b.number = r.number",
    )
    .bind(partition)
    .bind(columns.numbers)
    .bind(columns.audited_at)
    .bind(columns.cached_at)
    .bind(columns.published_at)
    .execute(pool)
    .await
    .map_err(failed("tidy the outbox"))?;
    Ok(())
}

type Claimed = (i64, Option<Uuid>, Option<Fingerprint>);

async fn fence(
    connection: &mut PgConnection,
    partition: &str,
    epoch: i64,
    relayed: &[Relayed],
    ids: &[Uuid],
) -> Result<Vec<Claimed>, StoreError> {
    let columns = Columns::of(relayed);
    sqlx::query_as(
        "/* fence_and_claim */
        WITH relayed AS (
            SELECT * FROM UNNEST($3::bigint[], $4::timestamptz[], $5::timestamptz[], $6::timestamptz[])
                AS r (number, audited_at, cached_at, published_at)
        ), gone AS (
            DELETE FROM outbox o USING relayed r WHERE o.partition = $1 AND o.number = r.number
        ), stamped AS (
            UPDATE batches b
            SET audited_at = r.audited_at, cached_at = r.cached_at, published_at = r.published_at
            FROM relayed r WHERE b.partition = $1 AND b.number = r.number
        ), head AS (
            UPDATE partition_heads SET batch = batch + 1 WHERE partition = $1 AND epoch = $2 RETURNING batch
        )
        SELECT head.batch, r.id, r.fingerprint FROM head LEFT JOIN receipts r ON r.id = ANY($7)",
    )
    .bind(partition)
    .bind(epoch)
    .bind(columns.numbers)
    .bind(columns.audited_at)
    .bind(columns.cached_at)
    .bind(columns.published_at)
    .bind(ids)
    .fetch_all(connection)
    .await
    .map_err(failed("fence a batch"))
}

/// What a batch leaves behind beside its entities.
#[derive(Clone, Copy)]
pub struct Record<'b> {
    pub partition: &'b str,
    pub number: i64,
    /// How many commands the batch had, duplicates included.
    pub commands: usize,
    pub applied_at: DateTime<Utc>,
    pub receipts: &'b [Receipt],
    /// For the other stores; an outbox row is written only if there is something to tell.
    pub payload: &'b Payload,
}

/// Writes the receipts of a batch, its entry in `batches` and its outbox row, in one statement.
///
/// # Errors
/// [`crate::Kind::Conflict`] when a twin of one of the commands has been applied meanwhile.
pub async fn record(connection: &mut PgConnection, record: Record<'_>) -> Result<(), StoreError> {
    let Record { receipts, .. } = record;
    fn column<'r, T>(receipts: &'r [Receipt], field: impl Fn(&'r Receipt) -> T) -> Vec<T> {
        receipts.iter().map(field).collect()
    }
    sqlx::query(
        "/* record_batch */
        WITH batch AS (
            INSERT INTO batches (partition, number, commands, applied_at) VALUES ($13, $14, $15, $16)
        ), told AS (
            INSERT INTO outbox (partition, number, created_at, payload)
            SELECT $13, $14, $16, $17 WHERE $17::bytea IS NOT NULL
        )
        INSERT INTO receipts (id, type, subject, actor, outcome, code, detail, version, events, accepted_at,
                              finished_at, fingerprint, partition, batch)
        SELECT r.*, $13, $14
        FROM UNNEST($1::uuid[], $2::text[], $3::uuid[], $4::uuid[], $5::text[]::command_outcome[], $6::text[],
                    $7::text[], $8::integer[], $9::smallint[], $10::timestamptz[], $11::timestamptz[],
                    $12::bytea[]) AS r",
    )
    .bind(column(receipts, |r| r.id))
    .bind(column(receipts, |r| r.kind))
    .bind(column(receipts, |r| r.subject))
    .bind(column(receipts, |r| r.actor))
    .bind(column(receipts, |r| r.outcome.as_str()))
    .bind(column(receipts, |r| r.code))
    .bind(column(receipts, |r| r.detail.as_deref()))
    .bind(column(receipts, |r| r.version))
    .bind(column(receipts, |r| r.events as i16))
    .bind(column(receipts, |r| r.accepted_at))
    .bind(column(receipts, |r| r.finished_at))
    .bind(column(receipts, |r| r.fingerprint.as_slice()))
    .bind(record.partition)
    .bind(record.number)
    .bind(record.commands as i32)
    .bind(record.applied_at)
    .bind(outbox::bytes(record.payload)?)
    .execute(connection)
    .await
    .map_err(failed("record a batch"))?;
    Ok(())
}

struct Columns {
    numbers: Vec<i64>,
    audited_at: Vec<DateTime<Utc>>,
    cached_at: Vec<DateTime<Utc>>,
    published_at: Vec<DateTime<Utc>>,
}

impl Columns {
    fn of(relayed: &[Relayed]) -> Self {
        Self {
            numbers: relayed.iter().map(|r| r.number).collect(),
            audited_at: relayed.iter().map(|r| r.audited_at).collect(),
            cached_at: relayed.iter().map(|r| r.cached_at).collect(),
            published_at: relayed.iter().map(|r| r.published_at).collect(),
        }
    }
}

impl BatchTransaction {
    /// The connection, for the statements of the other tables.
    pub fn connection(&mut self) -> &mut PgConnection {
        &mut self.transaction
    }

    /// Makes the batch last. If this fails it may have lasted all the same: the receipts tell.
    pub async fn commit(self) -> Result<(), StoreError> {
        self.transaction.commit().await.map_err(failed("commit a batch"))
    }

    pub async fn roll_back(self) -> Result<(), StoreError> {
        self.transaction.rollback().await.map_err(failed("roll a batch back"))
    }
}
