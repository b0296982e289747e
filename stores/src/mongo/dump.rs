//! What backups read of MongoDB: collections with their options and indexes, and documents as they are, byte by byte.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use futures_util::TryStreamExt;
use mongodb::bson::raw::CStr;
use mongodb::bson::{Bson, Document, RawDocumentBuf, cstr, doc};
use mongodb::error::ErrorKind;
use mongodb::options::SessionOptions;
use mongodb::{ClientSession, Cursor, Database, SessionCursor};
use serde_json::Value;

use super::{audit_leaves, audit_seals, events, failed, refill};
use crate::{Kind, StoreError};

/// `SnapshotTooOld`, `SnapshotUnavailable`, `IllegalOperation`, `InvalidOptions`, `CommandNotSupported`, `NotImplemented`,
/// and the codes with which servers refuse an unknown read concern.
const NO_SNAPSHOT: [i32; 8] = [239, 246, 20, 72, 115, 238, 2, 9];
/// Documents are handed on in pieces of about this many bytes.
const PIECE: usize = 512 << 10;

/// When a document came into a collection that is only ever added to.
pub(super) const ADDED_AT: &CStr = cstr!("addedAt");

/// What finds the documents that have come into a collection from a time on; `None` of one whose documents are changed,
/// so that any of them may be new.
pub fn newer(collection: &str, since: DateTime<Utc>) -> Option<Document> {
    match collection {
        events::COLLECTION => Some(events::since(since)),
        audit_leaves::COLLECTION | audit_seals::COLLECTION => {
            let since = mongodb::bson::DateTime::from_millis(since.timestamp_millis());
            Some(doc! { ADDED_AT.as_str(): { "$gte": since } })
        }
        _ => None,
    }
}

/// A collection as `mongodump` describes it.
#[derive(Debug, Clone)]
pub struct Collection {
    pub name: String,
    pub options: Document,
    pub indexes: Vec<Document>,
    /// Hexadecimal digits, where the server tells.
    pub uuid: String,
}

impl Collection {
    /// The text of `NAME.metadata.json`: canonical Extended JSON.
    pub fn metadata(&self) -> Vec<u8> {
        let described = doc! {
            "options": self.options.clone(),
            "indexes": self.indexes.clone(),
            "uuid": &self.uuid,
            "collectionName": &self.name,
            "type": "collection",
        };
        Bson::Document(described).into_canonical_extjson().to_string().into_bytes()
    }

    /// Reads it again.
    ///
    /// # Errors
    /// What is wrong with the text.
    pub fn from_metadata(bytes: &[u8]) -> Result<Self, String> {
        let value: Value = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        let Bson::Document(described) = Bson::try_from(value).map_err(|error| error.to_string())? else {
            return Err("it is no object".to_owned());
        };
        let indexes = described.get_array("indexes").map_err(|error| error.to_string())?;
        Ok(Self {
            name: described.get_str("collectionName").map_err(|error| error.to_string())?.to_owned(),
            options: described.get_document("options").cloned().unwrap_or_default(),
            indexes: indexes.iter().filter_map(Bson::as_document).cloned().collect(),
            uuid: described.get_str("uuid").unwrap_or_default().to_owned(),
        })
    }
}

/// The database's collections; views and the server's own are left out.
pub async fn collections(database: &Database) -> Result<Vec<Collection>, StoreError> {
    let call = "list the collections";
    let answer = database.run_cursor_command(doc! { "listCollections": 1 }).await.map_err(failed(call))?;
    let described: Vec<Document> = answer.try_collect().await.map_err(failed(call))?;
    let mut found = Vec::new();
    for one in described {
        let name = one.get_str("name").unwrap_or_default().to_owned();
        if one.get_str("type").is_ok_and(|kind| kind != "collection")
            || name.starts_with("system.")
            || name == refill::MARK
            || name.is_empty()
        {
            continue;
        }
        let answer = database
            .run_cursor_command(doc! { "listIndexes": &name })
            .await
            .map_err(failed("list the indexes"))?;
        let indexes: Vec<Document> = answer.try_collect().await.map_err(failed("list the indexes"))?;
        // `ns` was a part of it up to version 4.2; the server refuses it today.
        let indexes = indexes.into_iter().map(|mut index| {
            index.remove("ns");
            index
        });
        let uuid = one.get_document("info").ok().and_then(|info| info.get_binary_generic("uuid").ok());
        found.push(Collection {
            name,
            options: one.get_document("options").cloned().unwrap_or_default(),
            indexes: indexes.collect(),
            uuid: uuid.map(|bytes| taskflow_core::hex::of(bytes)).unwrap_or_default(),
        });
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(found)
}

/// How documents are read: all from one moment, or one after the other.
pub struct Reading {
    session: Option<ClientSession>,
}

impl Reading {
    /// One moment where the server has it (a replica set, from version 5.0 on).
    pub async fn one_moment(database: &Database) -> Result<Option<Self>, StoreError> {
        if super::replica_set(database).await?.is_none() {
            return Ok(None);
        }
        let options = SessionOptions::builder().snapshot(true).build();
        match database.client().start_session().with_options(options).await {
            Ok(session) => Ok(Some(Self { session: Some(session) })),
            Err(error) if refuses(&error) => Ok(None),
            Err(error) => Err(failed("begin a backup's moment")(error)),
        }
    }

    /// One document after the other, while others are written.
    pub fn as_it_comes() -> Self {
        Self { session: None }
    }

    pub fn is_one_moment(&self) -> bool {
        self.session.is_some()
    }

    /// Begins to read documents in the order of their `_id`.
    pub async fn read(
        &mut self,
        database: &Database,
        collection: &str,
        filter: Document,
    ) -> Result<Documents<'_>, StoreError> {
        let collection = database.collection::<RawDocumentBuf>(collection);
        let find = collection.find(filter).sort(doc! { "_id": 1 }).batch_size(1_000);
        let call = "read documents for a backup";
        let cursor = match &mut self.session {
            None => Source::Plain(find.await.map_err(told(call))?),
            Some(session) => {
                let cursor = find.session(&mut *session).await.map_err(told(call))?;
                Source::Moment(cursor, session)
            }
        };
        Ok(Documents { cursor })
    }
}

/// Whether the server has no snapshot for us, now or at all.
fn refuses(error: &mongodb::error::Error) -> bool {
    matches!(error.kind.as_ref(), ErrorKind::Command(command) if NO_SNAPSHOT.contains(&command.code))
}

/// The detail of an error that means: without a snapshot it may work.
pub const WITHOUT_SNAPSHOT: &str = "the server gives no snapshot";

fn told(call: &'static str) -> impl Fn(mongodb::error::Error) -> StoreError {
    move |error| {
        if refuses(&error) {
            return StoreError::new("mongodb", call, Kind::Conflict, format!("{WITHOUT_SNAPSHOT}: {error}"));
        }
        failed(call)(error)
    }
}

enum Source<'r> {
    Plain(Cursor<RawDocumentBuf>),
    Moment(SessionCursor<RawDocumentBuf>, &'r mut ClientSession),
}

/// Documents on their way into a backup.
pub struct Documents<'r> {
    cursor: Source<'r>,
}

/// Some documents, one behind the other, as they lie in a `.bson` file.
#[derive(Debug, Default)]
pub struct Piece {
    pub bytes: Vec<u8>,
    /// Where each ends.
    pub ends: Vec<usize>,
}

impl Piece {
    /// The documents one by one.
    pub fn documents(&self) -> impl Iterator<Item = &[u8]> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        starts.zip(&self.ends).map(|(start, end)| &self.bytes[start..*end])
    }
}

impl Documents<'_> {
    /// The next documents; `None` at the end.
    pub async fn next(&mut self) -> Result<Option<Piece>, StoreError> {
        let call = "read documents for a backup";
        let mut piece = Piece::default();
        while piece.bytes.len() < PIECE {
            let document = match &mut self.cursor {
                Source::Plain(cursor) => {
                    if !cursor.advance().await.map_err(told(call))? {
                        break;
                    }
                    cursor.current()
                }
                Source::Moment(cursor, session) => {
                    if !cursor.advance(session).await.map_err(told(call))? {
                        break;
                    }
                    cursor.current()
                }
            };
            piece.bytes.extend_from_slice(document.as_bytes());
            piece.ends.push(piece.bytes.len());
        }
        Ok((!piece.ends.is_empty()).then_some(piece))
    }
}

/// How many documents each collection has.
pub async fn counts(database: &Database) -> Result<BTreeMap<String, u64>, StoreError> {
    let mut counts = BTreeMap::new();
    for collection in collections(database).await? {
        let counted = database.collection::<Document>(&collection.name).count_documents(doc! {}).await;
        counts.insert(collection.name, counted.map_err(failed("count documents"))?);
    }
    Ok(counts)
}
