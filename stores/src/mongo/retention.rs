//! Removing events of the audit trail whose time is over, and stamping others anew. Who may go is decided elsewhere.

use chrono::{DateTime, Utc};
use futures_util::TryStreamExt;
use mongodb::bson::oid::ObjectId;
use mongodb::bson::{self, Document, doc};
use mongodb::options::FindOptions;
use mongodb::{Collection, Database};
use taskflow_core::retention::{Holds, Kept, held_until};
use uuid::Uuid;

use super::fence::Until;
use super::updates::update;
use super::{events, failed};
use crate::{Kind, StoreError};

/// Documents that are counted at most: a report must not read an index of a hundred million entries.
pub const COUNT_MAX: u64 = 1_000_000;

/// An event, as far as its removal goes.
#[derive(Debug, Clone)]
pub struct Found {
    pub id: [u8; 12],
    pub kind: String,
    pub entity: Uuid,
    pub actor: Uuid,
    pub created_at: DateTime<Utc>,
    pub expires_at: DateTime<Utc>,
}

impl Found {
    pub fn kept(&self) -> Kept<'_> {
        Kept {
            kind: &self.kind,
            entity: self.entity,
            actor: self.actor,
            created_at: self.created_at,
            expires_at: self.expires_at,
        }
    }
}

/// Whose events a hold is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subject {
    Entity(Uuid),
    Actor(Uuid),
}

fn collection(database: &Database) -> Collection<Document> {
    database.collection(events::COLLECTION)
}

fn date(at: DateTime<Utc>) -> bson::DateTime {
    bson::DateTime::from_millis(at.timestamp_millis())
}

/// Events whose stamp says that their time is over, those that have waited longest first.
pub async fn expired(database: &Database, now: DateTime<Utc>, limit: i64) -> Result<Vec<Found>, StoreError> {
    find(database, doc! { "expiresAt": { "$lte": date(now) } }, doc! { "expiresAt": 1 }, limit).await
}

/// Events behind one, in the order of their ids: the oldest first.
pub async fn behind(database: &Database, id: Option<[u8; 12]>, limit: i64) -> Result<Vec<Found>, StoreError> {
    let filter = id.map_or_else(Document::new, |id| doc! { "_id": { "$gt": ObjectId::from_bytes(id) } });
    find(database, filter, doc! { "_id": 1 }, limit).await
}

/// From where on a subject's events are looked at, in the order in which they were made.
#[derive(Debug, Clone, Copy)]
pub enum From {
    Start,
    Time(DateTime<Utc>),
    /// Behind this event.
    Behind(DateTime<Utc>, [u8; 12]),
}

impl From {
    pub fn behind(event: &Found) -> Self {
        Self::Behind(event.created_at, event.id)
    }
}

/// Events of a subject that do not bear a mark, or one of an older hold.
pub async fn unmarked(
    database: &Database,
    subject: Subject,
    mark: DateTime<Utc>,
    from: From,
    limit: i64,
) -> Result<Vec<Found>, StoreError> {
    page(database, subject, doc! { "$lt": date(mark) }, from, limit).await
}

/// Events of a subject that bear a hold's mark.
pub async fn held(
    database: &Database,
    subject: Subject,
    from: From,
    limit: i64,
) -> Result<Vec<Found>, StoreError> {
    page(database, subject, doc! { "$gte": date(held_until()) }, from, limit).await
}

/// In the order of the indexes `{entityId|actorId, createdAt, _id}`: no event is read twice, however many there are.
async fn page(
    database: &Database,
    subject: Subject,
    expires: Document,
    from: From,
    limit: i64,
) -> Result<Vec<Found>, StoreError> {
    let mut filter = of(subject);
    filter.insert("expiresAt", expires);
    match from {
        From::Start => {}
        From::Time(at) => drop(filter.insert("createdAt", doc! { "$gte": date(at) })),
        From::Behind(at, id) => {
            let at = date(at);
            filter.insert("createdAt", doc! { "$gte": at });
            let later = doc! { "createdAt": { "$gt": at } };
            let same = doc! { "createdAt": at, "_id": { "$gt": ObjectId::from_bytes(id) } };
            filter.insert("$or", [later, same].to_vec());
        }
    }
    find(database, filter, doc! { "createdAt": 1, "_id": 1 }, limit).await
}

pub(super) fn of(subject: Subject) -> Document {
    match subject {
        Subject::Entity(id) => doc! { "entityId": id.to_string() },
        Subject::Actor(id) => doc! { "actorId": id.to_string() },
    }
}

async fn find(
    database: &Database,
    filter: Document,
    sort: Document,
    limit: i64,
) -> Result<Vec<Found>, StoreError> {
    let fields = doc! { "type": 1, "entityId": 1, "actorId": 1, "createdAt": 1, "expiresAt": 1 };
    let options = FindOptions::builder().projection(fields).limit(limit).sort(sort).build();
    let found = collection(database).find(filter).with_options(options).await;
    let documents = found.map_err(failed("find events"))?;
    let documents: Vec<Document> = documents.try_collect().await.map_err(failed("find events"))?;
    documents.iter().map(read).collect()
}

fn read(document: &Document) -> Result<Found, StoreError> {
    let read = || {
        let time = |name| {
            let date = document.get_datetime(name).ok()?;
            DateTime::from_timestamp_millis(date.timestamp_millis())
        };
        Some(Found {
            id: document.get_object_id("_id").ok()?.bytes(),
            kind: document.get_str("type").ok()?.to_owned(),
            entity: document.get_str("entityId").ok()?.parse().ok()?,
            actor: document.get_str("actorId").ok()?.parse().ok()?,
            created_at: time("createdAt")?,
            expires_at: time("expiresAt")?,
        })
    };
    let id = document.get("_id");
    read().ok_or_else(|| {
        let detail = format!("the event {id:?} lacks what each event has; it was not written by us");
        StoreError::new("mongodb", "read an event", Kind::Data, detail)
    })
}

/// Removes events, if their stamp still says that their time is over, and whoever wants it still leads. Returns how many
/// went.
pub async fn remove(
    database: &Database,
    ids: &[[u8; 12]],
    now: DateTime<Utc>,
    until: Until,
) -> Result<u64, StoreError> {
    const CALL: &str = "remove events";
    if ids.is_empty() {
        return Ok(0);
    }
    let ids: Vec<ObjectId> = ids.iter().map(|id| ObjectId::from_bytes(*id)).collect();
    let filter = until.bind(doc! { "_id": { "$in": ids }, "expiresAt": { "$lte": date(now) } });
    let removed = events::durable(database, events::COLLECTION).delete_many(filter).await;
    let removed = removed.map_err(failed(CALL))?.deleted_count;
    until.came_in_time(CALL)?;
    Ok(removed)
}

/// Stamps events anew, each unless it was stamped by somebody else since it was read: a hold that was put meanwhile has
/// the last word, also where an older one's mark was there already. Nothing is stamped by who does not lead any more.
pub async fn stamp(
    database: &Database,
    stamps: &[(&Found, DateTime<Utc>)],
    until: Until,
) -> Result<(), StoreError> {
    const CALL: &str = "stamp events";
    if stamps.is_empty() {
        return Ok(());
    }
    let updates = stamps.iter().map(|(event, at)| {
        let seen = doc! { "_id": ObjectId::from_bytes(event.id), "expiresAt": date(event.expires_at) };
        doc! { "q": until.bind(seen), "u": { "$set": { "expiresAt": date(*at) } } }
    });
    update(database, events::COLLECTION, updates.collect(), CALL).await?;
    until.came_in_time(CALL)
}

/// Events of one type, counted up to [`COUNT_MAX`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counted {
    pub all: u64,
    /// Those that were made before a time, whether they are on hold or not.
    pub past: u64,
    /// Those of them that are not on hold.
    pub free: u64,
}

/// Counts events of a type.
pub async fn count(
    database: &Database,
    kind: &str,
    before: DateTime<Utc>,
    holds: &Holds,
) -> Result<Counted, StoreError> {
    let count = async |filter: Document| {
        let counted = collection(database).count_documents(filter).limit(COUNT_MAX).await;
        counted.map_err(failed("count events"))
    };
    let old = doc! { "type": kind, "createdAt": { "$lte": date(before) } };
    let mut free = old.clone();
    for (field, held) in [("entityId", &holds.entities), ("actorId", &holds.actors)] {
        if !held.is_empty() {
            free.insert(field, doc! { "$nin": held.iter().map(ToString::to_string).collect::<Vec<_>>() });
        }
    }
    let (all, past) = (count(doc! { "type": kind }).await?, count(old.clone()).await?);
    let free = if free == old || past == 0 { past } else { count(free).await? };
    Ok(Counted { all, past, free })
}
