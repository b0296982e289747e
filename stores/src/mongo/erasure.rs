//! Erasing what events tell of a person. What stays is the digest that their leaves were made of, without the salt: it
//! tells nothing, and the trail can be verified as before.

use std::time::Duration;

use chrono::{DateTime, Utc};
use futures_util::TryStreamExt;
use mongodb::Database;
use mongodb::bson::oid::ObjectId;
use mongodb::bson::{self, Document, RawDocumentBuf, doc};
use taskflow_core::audit::trail::Seen;
use uuid::Uuid;

use super::audit_trail::{self, Shown};
use super::events::COLLECTION;
use super::retention::{Subject, of};
use super::{failed, updates};
use crate::StoreError;

/// Events of one step.
const TOGETHER: i64 = 200;
/// How long the server may look for them.
const LOOK: Duration = Duration::from_secs(30);

/// The type of the events that tell of orders.
const ORDER: &str = "system.data_erased";

/// An order, as its event tells of it.
#[derive(Debug, Clone)]
pub struct Order {
    /// `entity` or `actor`.
    pub scope: String,
    /// Its entity is the subject.
    pub seen: Seen,
}

/// The events that tell of orders to erase what is told of some subjects, whoever has made them.
pub async fn orders(database: &Database, subjects: &[Uuid]) -> Result<Vec<Order>, StoreError> {
    const CALL: &str = "look for orders to erase";
    let subjects: Vec<String> = subjects.iter().map(Uuid::to_string).collect();
    let events = database.collection::<RawDocumentBuf>(COLLECTION);
    let found = events.find(doc! { "entityId": { "$in": subjects }, "type": ORDER }).await;
    let found: Vec<RawDocumentBuf> =
        found.map_err(failed(CALL))?.try_collect().await.map_err(failed(CALL))?;
    let order = |event: &RawDocumentBuf| {
        let scope = event.get_document("payload").ok()?.get_str("scope").ok()?.to_owned();
        Some(Order { scope, seen: audit_trail::shown(event).seen })
    };
    Ok(found.iter().filter_map(order).collect())
}

/// What one step did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Erased {
    pub erased: u64,
    /// Events that are not what was sealed, or from before there were seals: emptied without a digest.
    pub unsealed: u64,
    /// Whether there may be more.
    pub more: bool,
}

/// Of a subject, the events that tell something. Those that tell of orders are none: what was erased is excused by them.
fn telling(subject: Subject) -> Document {
    let mut filter = of(subject);
    filter.insert("erasedAt", doc! { "$exists": false });
    filter.insert("type", doc! { "$ne": ORDER });
    filter
}

/// When the newest event of a subject was made that tells something.
pub async fn newest(database: &Database, subject: Subject) -> Result<Option<DateTime<Utc>>, StoreError> {
    const CALL: &str = "look for a subject's newest event";
    let events = database.collection::<Document>(COLLECTION);
    let found = events.find_one(telling(subject)).sort(doc! { "createdAt": -1 }).max_time(LOOK);
    let found = found.projection(doc! { "createdAt": 1 }).await.map_err(failed(CALL))?;
    let at = found.and_then(|event| Some(event.get_datetime("createdAt").ok()?.timestamp_millis()));
    Ok(at.and_then(DateTime::from_timestamp_millis))
}

/// Erases what the next events of a subject tell that were made until an order was given: it excuses no later ones.
pub async fn step(
    database: &Database,
    subject: Subject,
    ordered_at: DateTime<Utc>,
    now: DateTime<Utc>,
) -> Result<Erased, StoreError> {
    const CALL: &str = "erase events' data";
    let mut filter = telling(subject);
    filter.insert("createdAt", doc! { "$lte": bson::DateTime::from_millis(ordered_at.timestamp_millis()) });
    let events = database.collection::<RawDocumentBuf>(COLLECTION);
    let found = events.find(filter).limit(TOGETHER).max_time(LOOK).await;
    let found: Vec<RawDocumentBuf> =
        found.map_err(failed(CALL))?.try_collect().await.map_err(failed(CALL))?;
    let mut done = Erased { more: found.len() == TOGETHER as usize, ..Erased::default() };
    let mut emptied = Vec::with_capacity(found.len());
    for event in &found {
        let Ok(id) = event.get_object_id("_id") else { continue };
        let shown = audit_trail::shown(event);
        let digest = shown.data_digest.filter(|_| shown.seen.place.leaf.is_some());
        match digest {
            Some(_) => done.erased += 1,
            None => done.unsealed += 1,
        }
        emptied.push(update(id, &shown, digest.map(|digest| digest.0.to_vec()), now));
    }
    if emptied.is_empty() {
        return Ok(Erased { more: false, ..done });
    }
    updates::update(database, COLLECTION, emptied, CALL).await?;
    Ok(done)
}

fn update(id: ObjectId, shown: &Shown, digest: Option<Vec<u8>>, now: DateTime<Utc>) -> Document {
    let mut set = doc! { "payload": {}, "erasedAt": bson::DateTime::from_millis(now.timestamp_millis()) };
    let mut unset = doc! { "metadata.userAgent": "", "metadata.ipAddress": "", "metadata.sessionId": "" };
    if let Some(bytes) = digest {
        let subtype = bson::spec::BinarySubtype::Generic;
        set.insert("digest", bson::Binary { subtype, bytes });
    }
    if shown.data.is_some() {
        unset.insert("salt", "");
    }
    doc! { "q": { "_id": id }, "u": { "$set": set, "$unset": unset } }
}
