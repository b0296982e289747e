//! The outbox: what a batch has to tell MongoDB, Redis and the event exchange. One row a batch, written in the
//! batch's own transaction, removed when all of them have it.

use std::sync::OnceLock;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use taskflow_core::Event;
use taskflow_core::audit::Hash;
use taskflow_core::audit::leaves::Leaves;
use uuid::Uuid;

use super::{PgPool, failed};
use crate::{Kind, StoreError};

/// What one batch tells the other stores.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Payload {
    pub events: Vec<Event>,
    /// Tasks whose cached value is out of date.
    pub tasks: Vec<Uuid>,
    /// Users whose cached profile is out of date.
    pub users: Vec<Uuid>,
    /// Users on whose tasks something changed. Workers of the release before look for it.
    #[serde(default)]
    pub lists: Vec<Uuid>,
    /// What the salts of the events' leaves follow from; `None` of a batch that joins no chain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seed: Option<Hash>,
    /// Made when they are first asked for.
    #[serde(skip)]
    pub leaves: OnceLock<Leaves>,
}

impl Payload {
    /// The leaves of the events in the trees of the audit trail.
    pub fn leaves(&self) -> Option<&Leaves> {
        let seed = self.seed?;
        Some(self.leaves.get_or_init(|| Leaves::of(&self.events, &seed.0)))
    }

    pub fn is_empty(&self) -> bool {
        self.events.is_empty() && self.tasks.is_empty() && self.users.is_empty()
    }
}

/// Fast, and events compress well: Postgres writes a tenth of the bytes.
const ZSTD_LEVEL: i32 = 1;
/// Bound for reading a row back: far above the largest batch.
const PAYLOAD_MAX: usize = 1 << 30;

/// A batch's outbox row; `None` if it has nothing to tell.
pub(super) fn bytes(payload: &Payload) -> Result<Option<Vec<u8>>, StoreError> {
    if payload.is_empty() { Ok(None) } else { encode(payload).map(Some) }
}

fn encode(payload: &Payload) -> Result<Vec<u8>, StoreError> {
    let broken = |error: String| StoreError::new("postgres", "encode the outbox", Kind::Data, error);
    let json = serde_json::to_vec(payload).map_err(|error| broken(error.to_string()))?;
    zstd::bulk::compress(&json, ZSTD_LEVEL).map_err(|error| broken(error.to_string()))
}

fn decode(bytes: &[u8]) -> Result<Payload, StoreError> {
    let broken = |error: String| StoreError::new("postgres", "decode the outbox", Kind::Bug, error);
    let capacity = zstd::zstd_safe::get_frame_content_size(bytes).ok().flatten().unwrap_or(1 << 26) as usize;
    let json = zstd::bulk::decompress(bytes, capacity.min(PAYLOAD_MAX))
        .map_err(|error| broken(error.to_string()))?;
    serde_json::from_slice(&json).map_err(|error| broken(error.to_string()))
}

/// Reads a partition's rows with numbers in `after < number < before`, in order, at most `limit`.
///
/// Reading by number is safe here, unlike with a sequence: the fence row gives the numbers, and its lock makes the
/// batches of a partition commit in their order.
pub async fn read(
    pool: &PgPool,
    partition: &str,
    after: i64,
    before: i64,
    limit: i64,
) -> Result<Vec<(i64, Payload)>, StoreError> {
    let rows: Vec<(i64, Vec<u8>)> = sqlx::query_as(
        "/* read_outbox */
        SELECT number, payload FROM outbox
        WHERE partition = $1 AND number > $2 AND number < $3 ORDER BY number LIMIT $4",
    )
    .bind(partition)
    .bind(after)
    .bind(before)
    .bind(limit)
    .fetch_all(pool)
    .await
    .map_err(failed("read the outbox"))?;
    rows.into_iter().map(|(number, bytes)| Ok((number, decode(&bytes)?))).collect()
}

/// How many rows wait, and how old the oldest is, in seconds.
pub async fn backlog(pool: &PgPool) -> Result<(i64, f64), StoreError> {
    sqlx::query_as(
        "/* outbox_backlog */
        SELECT count(*), coalesce(extract(epoch FROM now() - min(created_at)), 0)::float8 FROM outbox",
    )
    .fetch_one(pool)
    .await
    .map_err(failed("measure the outbox"))
}

/// When the oldest of what still waits for a store was written, system events included; `None` if nothing waits.
pub async fn oldest(pool: &PgPool) -> Result<Option<DateTime<Utc>>, StoreError> {
    sqlx::query_scalar(
        "/* outbox_oldest */
        SELECT least((SELECT min(created_at) FROM outbox), (SELECT min(created_at) FROM system_events))",
    )
    .fetch_one(pool)
    .await
    .map_err(failed("look into the outbox"))
}

/// Rows that are looked through for one entity's events.
const LOOKED_THROUGH: i64 = 50;

/// An entity's events that still wait here for a store; `None` if more waits than can be looked through.
pub async fn events_of(pool: &PgPool, entity: Uuid) -> Result<Option<Vec<Event>>, StoreError> {
    let rows: Vec<(Vec<u8>,)> =
        sqlx::query_as("/* outbox_events_of */ SELECT payload FROM outbox ORDER BY created_at DESC LIMIT $1")
            .bind(LOOKED_THROUGH)
            .fetch_all(pool)
            .await
            .map_err(failed("look into the outbox"))?;
    let all = (rows.len() as i64) < LOOKED_THROUGH;
    let mut found = Vec::new();
    for (payload,) in rows {
        found.extend(decode(&payload)?.events.into_iter().filter(|event| event.entity == entity));
    }
    Ok(all.then_some(found))
}

/// A time up to which every event has reached the audit trail: what is not known to be there was made later. By the
/// server's clock; `None` while nobody waits.
pub async fn audited_before(pool: &PgPool) -> Result<Option<chrono::DateTime<chrono::Utc>>, StoreError> {
    sqlx::query_scalar(
        "SELECT least(
             (SELECT min(o.created_at) FROM outbox o LEFT JOIN batches b USING (partition, number) WHERE b.audited_at IS NULL),
             (SELECT min(created_at) FROM system_events))",
    )
    .fetch_one(pool)
    .await
    .map_err(failed("ask how far the audit trail has got"))
}
