//! Events of what was undone, since Postgres has gone back in time: they are marked and kept apart, never removed. What
//! vouches for them from then on is in [`super::apart`].

use chrono::{DateTime, Utc};
use futures_util::TryStreamExt;
use mongodb::bson::oid::ObjectId;
use mongodb::bson::{Bson, Document, RawDocumentBuf, doc};
use mongodb::{Cursor, Database};
use uuid::Uuid;

use super::{events, failed};
use crate::{Kind, StoreError};

/// The field that an undone event bears.
pub const FIELD: &str = "undone";

/// As much of an event as the comparison takes.
#[derive(Debug, Clone)]
pub struct Told {
    pub id: [u8; 12],
    pub by: By,
    pub batch: i64,
    /// The epoch in which it was marked.
    pub undone: Option<i64>,
}

/// What has caused an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum By {
    Command {
        id: Uuid,
        partition: String,
    },
    /// Something that was done to the system; the batch is a link of its own chain.
    System,
}

/// Events from a time on.
pub struct Telling(Cursor<Document>);

/// Begins to read the events of commands that were applied from a time on.
pub async fn read(database: &Database, since: DateTime<Utc>) -> Result<Telling, StoreError> {
    let fields = doc! { "_id": 1, "commandId": 1, "run": 1, FIELD: 1 };
    let collection = database.collection::<Document>(events::COLLECTION);
    let found = collection.find(events::since(since)).projection(fields).await;
    found.map(Telling).map_err(failed("read the newest events"))
}

impl Telling {
    /// The next events, `most` at most; none at the end.
    pub async fn next(&mut self, most: usize) -> Result<Option<Vec<Told>>, StoreError> {
        let mut told = Vec::new();
        let mut seen = 0;
        while seen < most {
            let Some(event) = self.0.try_next().await.map_err(failed("read the newest events"))? else {
                break;
            };
            seen += 1;
            told.extend(read_one(&event));
        }
        Ok((seen > 0).then_some(told))
    }
}

fn read_one(event: &Document) -> Option<Told> {
    let run = event.get_document("run").ok()?;
    let partition = run.get_str("p").ok()?;
    let by = if partition == super::gap::SYSTEM {
        By::System
    } else {
        By::Command { id: event.get_str("commandId").ok()?.parse().ok()?, partition: partition.to_owned() }
    };
    Some(Told {
        id: event.get_object_id("_id").ok()?.bytes(),
        by,
        batch: run.get_i64("n").ok()?,
        undone: event.get_document(FIELD).ok().and_then(|mark| mark.get_i64("epoch").ok()),
    })
}

/// Sets events apart as undone in an epoch: each is kept under an id of its own, with the mark. Its first id must be free
/// again, since an event's id follows from its command, and the command may be applied once more.
pub async fn set_apart(
    database: &Database,
    epoch: i64,
    at: DateTime<Utc>,
    ids: &[[u8; 12]],
) -> Result<(), StoreError> {
    let call = "set undone events apart";
    let collection = database.collection::<Document>(events::COLLECTION);
    let filter = doc! { "_id": { "$in": ids.iter().map(|id| object_id(*id)).collect::<Vec<Bson>>() } };
    let found = collection.find(filter.clone()).await.map_err(failed(call))?;
    let found: Vec<Document> = found.try_collect().await.map_err(failed(call))?;
    let at = mongodb::bson::DateTime::from_millis(at.timestamp_millis());
    let mut copies = Vec::with_capacity(found.len());
    for mut event in found {
        let Ok(id) = event.get_object_id("_id") else { continue };
        event.insert("_id", object_id(apart(epoch, id.bytes())));
        event.insert(FIELD, doc! { "epoch": epoch, "at": at, "id": id.to_hex() });
        copies.push(
            RawDocumentBuf::try_from(event)
                .map_err(|error| StoreError::new("mongodb", call, Kind::Data, error))?,
        );
    }
    // First the copies: whoever dies in between does it again.
    super::refill::insert(database, events::COLLECTION, copies).await?;
    collection.delete_many(filter).await.map_err(failed(call))?;
    Ok(())
}

/// The id of an event that was undone: the same however often it is set apart in one epoch.
pub fn apart(epoch: i64, id: [u8; 12]) -> [u8; 12] {
    let digest =
        taskflow_core::command::digest(format!("undone {epoch} {}", taskflow_core::hex::of(&id)).as_bytes());
    let mut apart = id;
    // The time in front stays.
    apart[4..].copy_from_slice(&digest[..8]);
    apart
}

fn object_id(id: [u8; 12]) -> Bson {
    Bson::ObjectId(ObjectId::from_bytes(id))
}

/// How many events were set apart in an epoch.
pub async fn count(database: &Database, since: DateTime<Utc>, epoch: i64) -> Result<u64, StoreError> {
    let mut filter = events::since(since);
    filter.insert(format!("{FIELD}.epoch"), epoch);
    let counted = database.collection::<Document>(events::COLLECTION).count_documents(filter).await;
    counted.map_err(failed("count undone events"))
}

/// Which of these events are there.
pub async fn which(database: &Database, ids: &[[u8; 12]]) -> Result<Vec<[u8; 12]>, StoreError> {
    let call = "look for events";
    let ids: Vec<Bson> = ids.iter().map(|id| object_id(*id)).collect();
    let collection = database.collection::<Document>(events::COLLECTION);
    let found = collection.find(doc! { "_id": { "$in": ids } }).projection(doc! { "_id": 1 }).await;
    let found = found.map_err(failed(call))?;
    let found: Vec<Document> = found.try_collect().await.map_err(failed(call))?;
    Ok(found.iter().filter_map(|event| Some(event.get_object_id("_id").ok()?.bytes())).collect())
}

/// When the newest event was applied.
pub async fn newest(database: &Database) -> Result<Option<DateTime<Utc>>, StoreError> {
    let collection = database.collection::<Document>(events::COLLECTION);
    let newest = collection.find_one(doc! {}).sort(doc! { "createdAt": -1 });
    let found = newest.projection(doc! { "createdAt": 1 }).await;
    let found = found.map_err(failed("look for the newest event"))?;
    let at = found.and_then(|event| Some(event.get_datetime("createdAt").ok()?.timestamp_millis()));
    Ok(at.and_then(DateTime::from_timestamp_millis))
}
