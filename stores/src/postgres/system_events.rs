//! The table `system_events`: what happened without a command, until the audit trail and the event exchange have it.

use sqlx::{PgConnection, PgPool, Postgres, Transaction};
use taskflow_core::system_event::Occurrence;
use uuid::Uuid;

use super::failed;
use crate::{Kind, StoreError};

/// Writes what happened, in the transaction of the change itself.
pub async fn insert(connection: &mut PgConnection, occurrences: &[Occurrence]) -> Result<(), StoreError> {
    if occurrences.is_empty() {
        return Ok(());
    }
    let broken = |error| StoreError::new("postgres", "encode a system event", Kind::Data, error);
    let events = occurrences.iter().map(|one| serde_json::to_vec(one).map_err(broken));
    sqlx::query(
        "/* insert_system_events */
        INSERT INTO system_events (id, created_at, event)
        SELECT id, at, event FROM UNNEST($1::uuid[], $2::timestamptz[], $3::bytea[])
            WITH ORDINALITY AS o (id, at, event, ordinal) ORDER BY ordinal",
    )
    .bind(occurrences.iter().map(|one| one.id).collect::<Vec<_>>())
    .bind(occurrences.iter().map(|one| one.at).collect::<Vec<_>>())
    .bind(events.collect::<Result<Vec<_>, _>>()?)
    .execute(connection)
    .await
    .map_err(failed("write system events"))?;
    Ok(())
}

/// Writes something that happened and changed nothing here.
pub async fn record(pool: &PgPool, occurrence: &Occurrence) -> Result<(), StoreError> {
    let mut connection = pool.acquire().await.map_err(failed("write system events"))?;
    insert(&mut connection, std::slice::from_ref(occurrence)).await
}

/// Events that one process delivers at the moment: nobody else takes them meanwhile.
pub struct Taken {
    transaction: Transaction<'static, Postgres>,
    /// Each with the number of its row.
    pub events: Vec<(i64, Occurrence)>,
}

/// Takes the oldest events that nobody else delivers, at most `limit`.
pub async fn take(pool: &PgPool, limit: i64) -> Result<Taken, StoreError> {
    let mut transaction = pool.begin().await.map_err(failed("take system events"))?;
    let rows: Vec<(i64, Vec<u8>)> = sqlx::query_as(
        "/* take_system_events */
        SELECT place, event FROM system_events ORDER BY place LIMIT $1 FOR UPDATE SKIP LOCKED",
    )
    .bind(limit)
    .fetch_all(&mut *transaction)
    .await
    .map_err(failed("take system events"))?;
    let broken = |error| StoreError::new("postgres", "decode a system event", Kind::Bug, error);
    let read = |(place, bytes): (i64, Vec<u8>)| {
        let occurrence = serde_json::from_slice(&bytes).map_err(broken)?;
        Ok((place, occurrence))
    };
    let events = rows.into_iter().map(read).collect::<Result<Vec<_>, StoreError>>()?;
    Ok(Taken { transaction, events })
}

impl Taken {
    /// Removes them: the others have them.
    pub async fn delivered(mut self) -> Result<(), StoreError> {
        let ids: Vec<Uuid> = self.events.iter().map(|(_, event)| event.id).collect();
        sqlx::query("/* remove_system_events */ DELETE FROM system_events WHERE id = ANY($1)")
            .bind(ids)
            .execute(&mut *self.transaction)
            .await
            .map_err(failed("remove system events"))?;
        self.transaction.commit().await.map_err(failed("remove system events"))
    }
}

/// How many wait.
pub async fn count(pool: &PgPool) -> Result<i64, StoreError> {
    sqlx::query_scalar("/* count_system_events */ SELECT count(*) FROM system_events")
        .fetch_one(pool)
        .await
        .map_err(failed("count system events"))
}
