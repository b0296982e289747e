//! The table `receipts`, and `batches` beside it: how each command ended and which stores have followed.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Row};
use taskflow_core::Receipt;
use taskflow_core::command::Fingerprint;
use taskflow_core::event::EventId;
use uuid::Uuid;

use super::{PgPool, failed};
use crate::StoreError;

/// The receipts that exist for these ids, as fingerprints of what was asked for.
pub async fn claimed(
    connection: &mut PgConnection,
    ids: &[Uuid],
) -> Result<HashMap<Uuid, Fingerprint>, StoreError> {
    let rows: Vec<(Uuid, Fingerprint)> =
        sqlx::query_as("/* claimed */ SELECT id, fingerprint FROM receipts WHERE id = ANY($1)")
            .bind(ids)
            .fetch_all(connection)
            .await
            .map_err(failed("look up receipts"))?;
    Ok(rows.into_iter().collect())
}

/// A receipt as callers see it (public contract, section 3).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct View {
    pub id: Uuid,
    #[serde(rename = "type")]
    pub kind: Option<String>,
    pub subject: Option<Uuid>,
    /// `applied`, `rejected`, `expired`, `cancelled`, `dead`; or `accepted` while it is on its way.
    pub status: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<i32>,
    pub events: Vec<EventId>,
    pub acceptedat: Option<DateTime<Utc>>,
    pub finishedat: Option<DateTime<Utc>>,
    /// When a scheduled or parked command is tried (again).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nextattemptat: Option<DateTime<Utc>>,
    /// When MongoDB had its events.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auditedat: Option<DateTime<Utc>>,
    /// When Redis had its entity.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cachedat: Option<DateTime<Utc>>,
    /// When the event exchange had its events.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub publishedat: Option<DateTime<Utc>>,
    pub attempts: u16,
    /// Who sent it, from which system; for the check of who may read it, not shown.
    #[serde(skip)]
    pub actor: Option<Uuid>,
    #[serde(skip)]
    pub source: Option<String>,
}

impl View {
    /// What is shown of a receipt that was written a moment ago.
    pub fn of(receipt: &Receipt) -> Self {
        Self {
            id: receipt.id,
            kind: receipt.kind.map(str::to_owned),
            subject: receipt.subject,
            status: receipt.outcome.as_str().to_owned(),
            code: receipt.code.map(str::to_owned),
            detail: receipt.detail.clone(),
            version: receipt.version,
            events: receipt.event_ids(),
            acceptedat: Some(receipt.accepted_at),
            finishedat: Some(receipt.finished_at),
            nextattemptat: None,
            auditedat: None,
            cachedat: None,
            publishedat: None,
            attempts: receipt.attempts,
            actor: receipt.actor,
            source: receipt.source.clone(),
        }
    }
}

/// The receipts of these ids; those that do not exist are missing.
pub async fn read_many(pool: &PgPool, ids: &[Uuid]) -> Result<Vec<View>, StoreError> {
    sqlx::query(
        "/* read_receipts */
        SELECT r.id, r.type, r.subject, r.actor, r.outcome::text, r.code, r.detail, r.version, r.events,
               r.accepted_at, r.finished_at, b.audited_at, b.cached_at, b.published_at, r.attempts, r.source
        FROM receipts r LEFT JOIN batches b ON b.partition = r.partition AND b.number = r.batch
        WHERE r.id = ANY($1)",
    )
    .bind(ids)
    .try_map(read)
    .fetch_all(pool)
    .await
    .map_err(failed("read receipts"))
}

/// How many receipts somebody's commands have. It reads the whole table: for small ones, such as a demonstration's.
pub async fn count_of(pool: &PgPool, actor: Uuid) -> Result<i64, StoreError> {
    sqlx::query_scalar("/* count_receipts */ SELECT count(*) FROM receipts WHERE actor = $1")
        .bind(actor)
        .fetch_one(pool)
        .await
        .map_err(failed("count receipts"))
}

#[expect(clippy::needless_pass_by_value, reason = "the form that try_map asks for")]
fn read(row: PgRow) -> Result<View, sqlx::Error> {
    let id: Uuid = row.try_get(0)?;
    let events: i16 = row.try_get(8)?;
    let accepted_at: DateTime<Utc> = row.try_get(9)?;
    Ok(View {
        id,
        kind: row.try_get(1)?,
        subject: row.try_get(2)?,
        actor: row.try_get(3)?,
        status: row.try_get(4)?,
        code: row.try_get(5)?,
        detail: row.try_get(6)?,
        version: row.try_get(7)?,
        events: (0..events as u16).map(|ordinal| EventId::new(accepted_at, id, ordinal)).collect(),
        acceptedat: Some(accepted_at),
        finishedat: row.try_get(10)?,
        nextattemptat: None,
        auditedat: row.try_get(11)?,
        cachedat: row.try_get(12)?,
        publishedat: row.try_get(13)?,
        attempts: row.try_get::<i16, _>(14)? as u16,
        source: row.try_get(15)?,
    })
}
