//! The table `system_events`: what happened without a command, until the audit trail and the event exchange have it.

use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::PgConnection;
use taskflow_core::audit::canonical::Salt;
use taskflow_core::audit::link;
use taskflow_core::system_event::Occurrence;
use uuid::Uuid;

use super::audit_chain::{SYSTEM, lock_system};
use super::silence;
use super::{PgPool, Transaction, begin, failed};
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

/// How long that may take: a restore ends with it, on a server that has just written a whole database.
const LONGEST: Duration = Duration::from_secs(60);

/// Writes something that happened and changed nothing here.
pub async fn record(pool: &PgPool, occurrence: &Occurrence) -> Result<(), StoreError> {
    let call = "write system events";
    let written = async {
        let mut connection = pool.acquire().await.map_err(failed(call))?;
        insert(&mut connection, std::slice::from_ref(occurrence)).await
    };
    silence::within(LONGEST, call, written).await
}

/// Makes a change and writes the event that tells of it, in one transaction.
pub async fn with_event<T>(
    pool: &PgPool,
    event: &Occurrence,
    change: impl AsyncFnOnce(&mut PgConnection) -> Result<T, StoreError>,
) -> Result<T, StoreError> {
    let mut transaction = begin(pool).await.map_err(failed("begin a change"))?;
    let changed = change(&mut transaction).await?;
    insert(&mut transaction, std::slice::from_ref(event)).await?;
    transaction.commit().await.map_err(failed("commit a change"))?;
    Ok(changed)
}

/// When the oldest of those happened that still wait to be delivered, by the clock of whoever noted it; `None` if none
/// waits.
pub async fn oldest(pool: &PgPool) -> Result<Option<DateTime<Utc>>, StoreError> {
    sqlx::query_scalar("/* oldest_system_event */ SELECT min(created_at) FROM system_events")
        .fetch_one(pool)
        .await
        .map_err(failed("look into system events"))
}

/// An event that waits to be delivered.
#[derive(Debug, Clone)]
pub struct Waiting {
    /// The number of its row.
    pub place: i64,
    pub occurrence: Occurrence,
    /// Of its leaf in the audit trail.
    pub salt: Salt,
    /// Its number in the chain of the system's events, under which it stands in the trail; `None` before it has joined.
    pub link: Option<i64>,
}

/// Events that one process delivers at the moment: nobody else takes them meanwhile.
pub struct Taken {
    transaction: Transaction,
    pub events: Vec<Waiting>,
}

/// Takes the oldest events that nobody else delivers, at most `limit`.
pub async fn take(pool: &PgPool, limit: i64) -> Result<Taken, StoreError> {
    type Row = (i64, Vec<u8>, Vec<u8>, Option<i64>);
    let mut transaction = begin(pool).await.map_err(failed("take system events"))?;
    let rows: Vec<Row> = sqlx::query_as(
        "/* take_system_events */
        SELECT place, event, salt, link FROM system_events ORDER BY place LIMIT $1 FOR UPDATE SKIP LOCKED",
    )
    .bind(limit)
    .fetch_all(&mut *transaction)
    .await
    .map_err(failed("take system events"))?;
    let broken = |detail: String| StoreError::new("postgres", "decode a system event", Kind::Bug, detail);
    let read = |(place, bytes, salt, link): Row| {
        let occurrence = serde_json::from_slice(&bytes).map_err(|error| broken(error.to_string()))?;
        let salt = salt.try_into().map_err(|_| broken("its salt has not 16 bytes".to_owned()))?;
        Ok(Waiting { place, occurrence, salt, link })
    };
    let events = rows.into_iter().map(read).collect::<Result<Vec<_>, StoreError>>()?;
    Ok(Taken { transaction, events })
}

impl Taken {
    /// Lets events join the chain of the system's events, each as a link of its own, given as the number of its row and
    /// the text of its link. They are delivered by whoever takes them next: an event is in the chain, for good, before
    /// it is in the trail.
    pub async fn join_chain(mut self, links: &[(i64, String)]) -> Result<(), StoreError> {
        const CALL: &str = "link system events";
        let (mut number, mut hash) = lock_system(&mut self.transaction).await?;
        let (mut numbers, mut hashes) = (Vec::with_capacity(links.len()), Vec::with_capacity(links.len()));
        for (_, classes) in links {
            number += 1;
            hash = link::hash(&hash, number, classes);
            numbers.push(number);
            hashes.push(hash.0.to_vec());
        }
        sqlx::query(
            "/* link_system_events */
            WITH new AS (
                SELECT * FROM UNNEST($1::bigint[], $2::bigint[], $3::text[], $4::bytea[])
                    AS n (place, number, classes, hash)
            ), marked AS (
                UPDATE system_events s SET link = n.number FROM new n WHERE s.place = n.place
            ), linked AS (
                INSERT INTO audit_links (partition, number, classes, hash)
                SELECT $5, number, classes, hash FROM new
            )
            UPDATE audit_system_head SET number = $6, chain = $7",
        )
        .bind(links.iter().map(|(place, _)| *place).collect::<Vec<_>>())
        .bind(numbers)
        .bind(links.iter().map(|(_, classes)| classes.as_str()).collect::<Vec<_>>())
        .bind(hashes)
        .bind(SYSTEM)
        .bind(number)
        .bind(hash.0.as_slice())
        .execute(&mut *self.transaction)
        .await
        .map_err(failed(CALL))?;
        self.transaction.commit().await.map_err(failed(CALL))
    }

    /// Removes them: the others have them.
    pub async fn delivered(mut self) -> Result<(), StoreError> {
        let ids: Vec<Uuid> = self.events.iter().map(|event| event.occurrence.id).collect();
        sqlx::query("/* remove_system_events */ DELETE FROM system_events WHERE id = ANY($1)")
            .bind(ids)
            .execute(&mut *self.transaction)
            .await
            .map_err(failed("remove system events"))?;
        self.transaction.commit().await.map_err(failed("remove system events"))
    }
}

/// Whether one that waits tells of somebody, other than that what is told of them is erased.
pub async fn tells_of(pool: &PgPool, subject: Uuid) -> Result<bool, StoreError> {
    sqlx::query_scalar(
        "/* system_events_of */ SELECT EXISTS (SELECT FROM system_events
            WHERE position($1 IN event) > 0 AND position('system.data_erased'::bytea IN event) = 0)",
    )
    .bind(subject.to_string().into_bytes())
    .fetch_one(pool)
    .await
    .map_err(failed("look into the system events"))
}

/// How many wait.
pub async fn count(pool: &PgPool) -> Result<i64, StoreError> {
    sqlx::query_scalar("/* count_system_events */ SELECT count(*) FROM system_events")
        .fetch_one(pool)
        .await
        .map_err(failed("count system events"))
}
