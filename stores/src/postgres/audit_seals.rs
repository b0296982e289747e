//! The table `audit_seals`, and what is ordered about the trail: erasures, and that Postgres was set back on purpose.

use chrono::{DateTime, Utc};
use sqlx::PgConnection;
use taskflow_core::audit::copies::Newest;
use taskflow_core::audit::key::{PublicKey, Signature};
use taskflow_core::audit::seal::{Restored, Signed};
use uuid::Uuid;

use super::{PgPool, failed};
use crate::StoreError;

type Row = (i64, String, Vec<u8>, Vec<u8>);

/// A seal whose columns are none any more comes with a signature that fits nothing.
fn signed((number, seal, signature, key): Row) -> (i64, Signed) {
    let signature = Signature(signature.try_into().unwrap_or([0; 64]));
    (number, Signed { seal, signature, key: PublicKey(key.try_into().unwrap_or([0; 32])) })
}

/// The newest seal.
pub async fn newest(pool: &PgPool) -> Result<Option<(i64, Signed)>, StoreError> {
    let row: Option<Row> = sqlx::query_as(
        "/* newest_seal */ SELECT number, seal, signature, key FROM audit_seals ORDER BY number DESC LIMIT 1",
    )
    .fetch_optional(pool)
    .await
    .map_err(failed("read the newest seal"))?;
    Ok(row.map(signed))
}

/// Looks how far the seals go that can be believed.
pub async fn believed(pool: &PgPool, keys: &[PublicKey]) -> Result<Newest, StoreError> {
    let (mut newest, mut below) = (Newest::default(), i64::MAX);
    loop {
        let rows: Vec<Row> = sqlx::query_as(
            "/* believed_seals */ SELECT number, seal, signature, key FROM audit_seals
            WHERE number < $1 ORDER BY number DESC LIMIT 10",
        )
        .bind(below)
        .fetch_all(pool)
        .await
        .map_err(failed("read the newest seal"))?;
        let Some((last, ..)) = rows.last() else { return Ok(newest) };
        below = *last;
        for (number, signed) in rows.into_iter().map(signed) {
            if newest.take(number, &signed, keys) {
                return Ok(newest);
            }
        }
    }
}

/// The number of the newest seal, and when it was made.
pub async fn newest_at(pool: &PgPool) -> Result<Option<(i64, DateTime<Utc>)>, StoreError> {
    sqlx::query_as(
        "/* newest_seal_at */ SELECT number, sealed_at FROM audit_seals ORDER BY number DESC LIMIT 1",
    )
    .fetch_optional(pool)
    .await
    .map_err(failed("read the newest seal"))
}

/// Reads the seals with numbers from `first` to `last`.
pub async fn read(pool: &PgPool, first: i64, last: i64) -> Result<Vec<(i64, Signed)>, StoreError> {
    let rows: Vec<Row> = sqlx::query_as(
        "/* read_seals */ SELECT number, seal, signature, key FROM audit_seals
        WHERE number BETWEEN $1 AND $2 ORDER BY number",
    )
    .bind(first)
    .bind(last)
    .fetch_all(pool)
    .await
    .map_err(failed("read seals"))?;
    Ok(rows.into_iter().map(signed).collect())
}

/// The numbers of the last seal before a time, and of the first one at another time or after it; `None` where there is
/// none.
pub async fn around(
    pool: &PgPool,
    from: DateTime<Utc>,
    to: DateTime<Utc>,
) -> Result<(Option<i64>, Option<i64>), StoreError> {
    sqlx::query_as(
        "/* seals_around */ SELECT (SELECT number FROM audit_seals WHERE sealed_at < $1 ORDER BY sealed_at DESC LIMIT 1),
            (SELECT number FROM audit_seals WHERE sealed_at >= $2 ORDER BY sealed_at LIMIT 1)",
    )
    .bind(from)
    .bind(to)
    .fetch_one(pool)
    .await
    .map_err(failed("look for seals"))
}

/// Adds a seal, in the transaction of the one who may.
pub async fn insert(
    connection: &mut PgConnection,
    number: i64,
    at: DateTime<Utc>,
    signed: &Signed,
) -> Result<(), StoreError> {
    sqlx::query(
        "/* insert_seal */ INSERT INTO audit_seals (number, sealed_at, seal, signature, key)
        VALUES ($1, $2, $3, $4, $5)",
    )
    .bind(number)
    .bind(at)
    .bind(&signed.seal)
    .bind(signed.signature.0.as_slice())
    .bind(signed.key.0.as_slice())
    .execute(connection)
    .await
    .map_err(failed("insert a seal"))?;
    Ok(())
}

/// Says that Postgres was set back on purpose. Returns the statement's number.
pub async fn say_restored(connection: &mut PgConnection, author: &str, why: &str) -> Result<i64, StoreError> {
    sqlx::query_scalar(
        "/* say_restored */ INSERT INTO audit_restores (author, why) VALUES ($1, $2) RETURNING id",
    )
    .bind(author)
    .bind(why)
    .fetch_one(connection)
    .await
    .map_err(failed("say that Postgres was restored"))
}

/// The oldest such statement that no seal tells of yet.
pub async fn restored(pool: &PgPool) -> Result<Option<(i64, Restored)>, StoreError> {
    let row: Option<(i64, String, String)> = sqlx::query_as(
        "/* restored */ SELECT id, author, why FROM audit_restores WHERE seal IS NULL ORDER BY id LIMIT 1",
    )
    .fetch_optional(pool)
    .await
    .map_err(failed("look whether Postgres was restored"))?;
    Ok(row.map(|(id, by, why)| (id, Restored { by, why })))
}

/// The seals that tell of such statements.
pub async fn restored_seals(pool: &PgPool) -> Result<Vec<(i64, Signed)>, StoreError> {
    let rows: Vec<Row> = sqlx::query_as(
        "/* restored_seals */ SELECT s.number, s.seal, s.signature, s.key FROM audit_seals s
        JOIN audit_restores r ON r.seal = s.number ORDER BY s.number",
    )
    .fetch_all(pool)
    .await
    .map_err(failed("read seals of restores"))?;
    Ok(rows.into_iter().map(signed).collect())
}

/// Notes the seal that tells of a statement.
pub async fn told_restored(connection: &mut PgConnection, id: i64, seal: i64) -> Result<(), StoreError> {
    sqlx::query("/* told_restored */ UPDATE audit_restores SET seal = $2 WHERE id = $1")
        .bind(id)
        .bind(seal)
        .execute(connection)
        .await
        .map_err(failed("note the seal of a restore"))?;
    Ok(())
}

/// An order to erase what events tell of a subject.
#[derive(Debug, Clone, Copy)]
pub struct Erasure<'e> {
    pub id: Uuid,
    /// `entity` or `actor`.
    pub scope: &'e str,
    pub subject: Uuid,
    pub why: &'e str,
    pub author: &'e str,
    pub at: DateTime<Utc>,
}

/// Writes an order down, in the transaction of the event that tells of it.
pub async fn order_erasure(connection: &mut PgConnection, order: &Erasure<'_>) -> Result<(), StoreError> {
    sqlx::query(
        "/* order_erasure */ INSERT INTO audit_erasures (id, scope, subject, why, author, ordered_at)
        VALUES ($1, $2, $3, $4, $5, $6)",
    )
    .bind(order.id)
    .bind(order.scope)
    .bind(order.subject)
    .bind(order.why)
    .bind(order.author)
    .bind(order.at)
    .execute(connection)
    .await
    .map_err(failed("order an erasure"))?;
    Ok(())
}

/// Notes that an order was carried out.
pub async fn erased(pool: &PgPool, id: Uuid, events: u64, at: DateTime<Utc>) -> Result<(), StoreError> {
    sqlx::query(
        "/* erased */ UPDATE audit_erasures SET finished_at = $3, events = events + $2 WHERE id = $1",
    )
    .bind(id)
    .bind(events as i64)
    .bind(at)
    .execute(pool)
    .await
    .map_err(failed("note an erasure"))?;
    Ok(())
}

/// All orders: the newest of each scope and subject, and when it was given.
pub async fn orders(pool: &PgPool) -> Result<Vec<(String, Uuid, DateTime<Utc>)>, StoreError> {
    sqlx::query_as(
        "/* erasure_orders */ SELECT scope, subject, max(ordered_at) FROM audit_erasures GROUP BY scope, subject",
    )
    .fetch_all(pool)
    .await
    .map_err(failed("read erasures"))
}

/// Which of some subjects there is an order for whose event is not in the trail yet: its scope, its subject, and when the
/// newest was given.
pub async fn orders_on_their_way(
    pool: &PgPool,
    subjects: &[Uuid],
) -> Result<Vec<(String, Uuid, DateTime<Utc>)>, StoreError> {
    sqlx::query_as(
        "/* ordered_erasures */ SELECT e.scope, e.subject, max(e.ordered_at) FROM audit_erasures e
        JOIN system_events s ON s.id = e.id WHERE e.subject = ANY($1) GROUP BY e.scope, e.subject",
    )
    .bind(subjects)
    .fetch_all(pool)
    .await
    .map_err(failed("read erasures"))
}
