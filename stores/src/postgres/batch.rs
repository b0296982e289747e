//! The transaction of a batch: the fence at its start, the commit at its end.

use chrono::{DateTime, Utc};
use sqlx::{PgConnection, PgPool, Postgres, Transaction};

use super::failed;
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

/// Opens the transaction of a batch, if the partition still belongs to this epoch; `None` if it does not.
///
/// The row that is updated stays locked until the commit: batches of one partition commit in the order of their
/// numbers, and a new holder's first batch waits for the old one's last. The same statement tidies away what was
/// relayed since the last batch.
pub async fn begin(
    pool: &PgPool,
    partition: &str,
    epoch: i64,
    relayed: &[Relayed],
) -> Result<Option<BatchTransaction>, StoreError> {
    let mut transaction = pool.begin().await.map_err(failed("begin a batch"))?;
    let number = fence(&mut transaction, partition, epoch, relayed).await?;
    Ok(number.map(|number| BatchTransaction { transaction, number }))
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

async fn fence(
    connection: &mut PgConnection,
    partition: &str,
    epoch: i64,
    relayed: &[Relayed],
) -> Result<Option<i64>, StoreError> {
    if relayed.is_empty() {
        return sqlx::query_scalar(
            "/* fence */ UPDATE partition_heads SET batch = batch + 1 WHERE partition = $1 AND epoch = $2 RETURNING batch",
        )
        .bind(partition)
        .bind(epoch)
        .fetch_optional(connection)
        .await
        .map_err(failed("fence a batch"));
    }
    let columns = Columns::of(relayed);
    sqlx::query_scalar(
        "/* fence_and_tidy */
        WITH relayed AS (
            SELECT * FROM UNNEST($3::bigint[], $4::timestamptz[], $5::timestamptz[], $6::timestamptz[])
                AS r (number, audited_at, cached_at, published_at)
        ), gone AS (
            DELETE FROM outbox o USING relayed r WHERE o.partition = $1 AND o.number = r.number
        ), stamped AS (
            UPDATE batches b
            SET audited_at = r.audited_at, cached_at = r.cached_at, published_at = r.published_at
            FROM relayed r WHERE b.partition = $1 AND b.number = r.number
        )
        UPDATE partition_heads SET batch = batch + 1 WHERE partition = $1 AND epoch = $2 RETURNING batch",
    )
    .bind(partition)
    .bind(epoch)
    .bind(columns.numbers)
    .bind(columns.audited_at)
    .bind(columns.cached_at)
    .bind(columns.published_at)
    .fetch_optional(connection)
    .await
    .map_err(failed("fence a batch"))
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
