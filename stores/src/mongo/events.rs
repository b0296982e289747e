//! The collection `event_logs`.
//!
//! Events are only ever inserted. Their `_id` follows from their command, so inserting one again is a duplicate key,
//! and that is success.

use std::borrow::Borrow;
use std::collections::HashMap;

use futures_util::TryStreamExt;
use mongodb::bson::oid::ObjectId;
use mongodb::bson::raw::CStr;
use mongodb::bson::spec::BinarySubtype;
use mongodb::bson::{Binary, DateTime, Document, RawArrayBuf, RawBson, RawDocumentBuf, cstr, doc};
use mongodb::error::ErrorKind;
use mongodb::options::{Acknowledgment, CollectionOptions, WriteConcern};
use mongodb::{Collection, Database};
use serde_json::{Map, Value};
use taskflow_core::Event;
use taskflow_core::audit::leaves::{Leaf, Leaves};
use uuid::Uuid;

use super::{audit_leaves, failed, undone};
use crate::{Kind, StoreError};

/// The collection's name.
pub const COLLECTION: &str = "event_logs";
const DUPLICATE_KEY: i32 = 11_000;

/// Where an event stands among the batches of a partition: total order where times are equal.
#[derive(Debug, Clone, Copy)]
pub struct Run<'p> {
    pub partition: &'p str,
    pub number: i64,
}

/// Handles of the collection and of the one with the leaves of its events.
#[derive(Debug, Clone)]
pub struct Events {
    events: Collection<RawDocumentBuf>,
    leaves: Collection<RawDocumentBuf>,
}

/// What finds the events that were applied from a time on.
pub fn since(from: chrono::DateTime<chrono::Utc>) -> Document {
    doc! { "createdAt": { "$gte": DateTime::from_millis(from.timestamp_millis()) } }
}

/// The collections, with writes that are on the disks of a majority before they count.
pub fn collection(database: &Database) -> Events {
    Events { events: durable(database, COLLECTION), leaves: durable(database, audit_leaves::COLLECTION) }
}

pub(super) fn durable(database: &Database, name: &str) -> Collection<RawDocumentBuf> {
    let concern = WriteConcern::builder().w(Acknowledgment::Majority).journal(true).build();
    let options = CollectionOptions::builder().write_concern(concern).build();
    database.collection_with_options(name, options)
}

/// What is inserted of a batch: its events, and the list of their leaves.
pub(super) struct Documents {
    pub(super) events: Vec<RawDocumentBuf>,
    leaves: Option<RawDocumentBuf>,
}

impl Documents {
    pub(super) fn of(run: Run<'_>, events: &[Event], leaves: Option<&Leaves>) -> Result<Self, StoreError> {
        let leaf = |index: usize| leaves.and_then(|leaves| leaves.leaves.get(index));
        let documents =
            events.iter().enumerate().map(|(index, event)| document(run, index, event, leaf(index)));
        Ok(Self {
            events: documents.collect::<Result<_, _>>()?,
            leaves: leaves.and_then(|leaves| audit_leaves::of_batch(run, events, leaves)),
        })
    }

    pub(super) fn bytes(&self) -> usize {
        self.events.iter().chain(&self.leaves).map(|document| document.as_bytes().len()).sum()
    }
}

/// Inserts a batch's events and the list of their leaves; what is there already counts as inserted.
pub async fn insert(
    collection: &Events,
    run: Run<'_>,
    events: &[Event],
    leaves: Option<&Leaves>,
) -> Result<(), StoreError> {
    if events.is_empty() {
        return Ok(());
    }
    insert_all(collection, &[Documents::of(run, events, leaves)?]).await
}

/// The same for several batches at once.
pub(super) async fn insert_all(collection: &Events, batches: &[Documents]) -> Result<(), StoreError> {
    let events: Vec<&RawDocumentBuf> = batches.iter().flat_map(|batch| &batch.events).collect();
    let leaves: Vec<&RawDocumentBuf> = batches.iter().filter_map(|batch| batch.leaves.as_ref()).collect();
    let lists = async {
        if leaves.is_empty() {
            return Ok(());
        }
        insert_new(&collection.leaves, &leaves, "insert leaves").await
    };
    futures_util::try_join!(insert_new(&collection.events, &events, "insert events"), lists).map(drop)
}

/// Inserts what is not there yet.
pub(super) async fn insert_new(
    collection: &Collection<RawDocumentBuf>,
    documents: &[impl Borrow<RawDocumentBuf>],
    call: &'static str,
) -> Result<(), StoreError> {
    let count = documents.len();
    match collection.insert_many(documents.iter().map(Borrow::borrow)).ordered(false).await {
        Ok(_) => Ok(()),
        Err(error) => match error.kind.as_ref() {
            ErrorKind::InsertMany(failures) if failures.write_concern_error.is_none() => {
                let others: Vec<String> = failures
                    .write_errors
                    .iter()
                    .flatten()
                    .filter(|failure| failure.code != DUPLICATE_KEY)
                    .map(|failure| format!("{} (code {})", failure.message, failure.code))
                    .collect();
                match others.first() {
                    None => Ok(()),
                    Some(first) => Err(StoreError::new(
                        "mongodb",
                        call,
                        Kind::Data,
                        format!("{} of {count} were refused, the first: {first}", others.len()),
                    )),
                }
            }
            _ => Err(failed(call)(error)),
        },
    }
}

/// How many events each command has of those that share a correlation id; a command without events is missing. What was
/// undone by a restore did not happen.
pub async fn count_by_command(
    database: &Database,
    correlation: Uuid,
) -> Result<HashMap<String, u32>, StoreError> {
    let events = database.collection::<Document>(COLLECTION);
    let read = async {
        let filter = doc! { "correlationId": correlation.to_string(), undone::FIELD: { "$exists": false } };
        let events = events.find(filter).projection(doc! { "commandId": 1 }).await?;
        events.try_collect::<Vec<Document>>().await
    };
    let mut counts = HashMap::new();
    for event in read.await.map_err(failed("count events"))? {
        *counts.entry(event.get_str("commandId").unwrap_or_default().to_owned()).or_default() += 1;
    }
    Ok(counts)
}

fn document(
    run: Run<'_>,
    index: usize,
    event: &Event,
    leaf: Option<&Leaf>,
) -> Result<RawDocumentBuf, StoreError> {
    build(run, index, event, leaf)
        .map_err(|error| StoreError::new("mongodb", "encode an event", Kind::Data, error))
}

/// Straight to BSON's bytes: a map in between would cost more than all the rest of the relay.
fn build(
    run: Run<'_>,
    index: usize,
    event: &Event,
    leaf: Option<&Leaf>,
) -> Result<RawDocumentBuf, Box<dyn std::error::Error + Send + Sync>> {
    let mut metadata = RawDocumentBuf::new();
    for (name, value) in [
        (cstr!("userAgent"), &event.metadata.user_agent),
        (cstr!("ipAddress"), &event.metadata.ip_address),
        (cstr!("sessionId"), &event.metadata.session_id),
    ] {
        if let Some(value) = value {
            metadata.append(name, value.as_str());
        }
    }
    metadata.append(cstr!("timestamp"), DateTime::from_millis(event.issued_at.timestamp_millis()));
    let mut place = RawDocumentBuf::new();
    place.append(cstr!("p"), run.partition);
    place.append(cstr!("n"), run.number);
    place.append(cstr!("i"), index as i32);
    place.append(cstr!("class"), event.class().as_str());
    if let Some(leaf) = leaf {
        place.append(cstr!("leaf"), leaf.place as i32);
    }
    let mut text = [0; uuid::fmt::Hyphenated::LENGTH];
    let mut document = RawDocumentBuf::new();
    document.append(cstr!("_id"), ObjectId::from_bytes(event.id.0));
    document.append(cstr!("type"), &*event.kind);
    document.append(cstr!("actorId"), &*event.actor.hyphenated().encode_lower(&mut text));
    document.append(cstr!("entityId"), &*event.entity.hyphenated().encode_lower(&mut text));
    document.append(cstr!("entityType"), &*event.entity_type);
    if let Some(version) = event.version {
        document.append(cstr!("version"), version);
    }
    document.append(cstr!("payload"), object(&event.payload.object())?);
    document.append(cstr!("metadata"), metadata);
    document.append(cstr!("correlationId"), &*event.correlation.hyphenated().encode_lower(&mut text));
    document.append(cstr!("commandId"), &*event.command.hyphenated().encode_lower(&mut text));
    document.append(cstr!("run"), place);
    if let Some(leaf) = leaf {
        document.append(cstr!("salt"), binary(&leaf.salt));
    }
    document.append(cstr!("createdAt"), DateTime::from_millis(event.created_at.timestamp_millis()));
    document.append(cstr!("expiresAt"), DateTime::from_millis(event.expires_at.timestamp_millis()));
    Ok(document)
}

pub(super) fn binary(bytes: &[u8]) -> RawBson {
    RawBson::Binary(Binary { subtype: BinarySubtype::Generic, bytes: bytes.to_vec() })
}

fn object(map: &Map<String, Value>) -> Result<RawDocumentBuf, Box<dyn std::error::Error + Send + Sync>> {
    let mut document = RawDocumentBuf::new();
    for (key, value) in map {
        // NUL in a key is refused at the edge; this is the net below.
        let key: &CStr = key.as_str().try_into()?;
        document.append(key, value_of(value)?);
    }
    Ok(document)
}

fn value_of(value: &Value) -> Result<RawBson, Box<dyn std::error::Error + Send + Sync>> {
    Ok(match value {
        Value::Null => RawBson::Null,
        Value::Bool(value) => RawBson::Boolean(*value),
        Value::Number(number) => match (number.as_i64(), number.as_f64()) {
            (Some(whole), _) => RawBson::Int64(whole),
            (None, Some(float)) => RawBson::Double(float),
            _ => RawBson::String(number.to_string()),
        },
        Value::String(text) => RawBson::String(text.clone()),
        Value::Array(items) => {
            let mut array = RawArrayBuf::new();
            for item in items {
                array.push(value_of(item)?);
            }
            RawBson::Array(array)
        }
        Value::Object(map) => RawBson::Document(object(map)?),
    })
}
