//! What restores write into MongoDB: collections with their options, documents as they were, indexes last. Every step may
//! be done again.

use chrono::{DateTime, Utc};
use futures_util::TryStreamExt;
use mongodb::Database;
use mongodb::bson::{self, Bson, Document, RawDocumentBuf, doc};
use mongodb::error::ErrorKind;

use super::dump::Collection;
use super::failed;
use crate::{Kind, StoreError};

const DUPLICATE_KEY: i32 = 11_000;
const NAMESPACE_EXISTS: i32 = 48;
/// Where a restore writes down what it is. When it is whole, up to when everything is there; nothing once Postgres and
/// this database agree. It is in no backup.
pub(super) const MARK: &str = "taskflow_restore";
/// What is left of a restore that is whole.
const RESTORED: &str = "restored";
/// Options that a server tells of and does not take.
const OWN_OPTIONS: [&str; 2] = ["uuid", "autoIndexId"];

/// The same server, another database.
pub fn other_database(database: &Database, name: &str) -> Database {
    database.client().database(name)
}

/// Names of the collections that are there.
pub async fn names(database: &Database) -> Result<Vec<String>, StoreError> {
    let names = database.list_collection_names().await.map_err(failed("list the collections"))?;
    Ok(names.into_iter().filter(|name| !name.starts_with("system.")).collect())
}

/// The restore that was not ended here: the backups it is of, and the files that are done.
pub async fn mark(database: &Database) -> Result<Option<(Vec<String>, Vec<String>)>, StoreError> {
    let mark = database.collection::<Document>(MARK).find_one(doc! { "_id": "restore" }).await;
    let texts = |mark: &Document, field: &str| {
        let values = mark.get_array(field).into_iter().flatten();
        values.filter_map(|value| value.as_str().map(str::to_owned)).collect()
    };
    let mark = mark.map_err(failed("read a restore's mark"))?;
    Ok(mark.map(|mark| (texts(&mark, "backups"), texts(&mark, "done"))))
}

/// Writes the mark: until [`unmark`], what is here is not whole. A restore that begins (nothing is `done`) forgets what
/// another one has noted.
pub async fn set_mark(database: &Database, backups: &[String], done: &[String]) -> Result<(), StoreError> {
    let call = "write a restore's mark";
    let marks = database.collection::<Document>(MARK);
    let mark = doc! { "_id": "restore", "backups": backups.to_vec(), "done": done.to_vec() };
    marks.replace_one(doc! { "_id": "restore" }, mark).upsert(true).await.map_err(failed(call))?;
    if done.is_empty() {
        marks.delete_many(doc! { "_id": { "$ne": "restore" } }).await.map_err(failed(call))?;
    }
    Ok(())
}

/// Of one file of a chain of backups: which of its documents earlier files had already.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Repeated {
    /// So many documents of the file were looked at.
    pub looked_at: u64,
    /// How many of them are repeated, and their checksum, in hexadecimal digits.
    pub count: u64,
    pub sum: String,
}

/// What was noted of a file, if anything.
pub async fn repeated(database: &Database, file: &str) -> Result<Option<Repeated>, StoreError> {
    let marks = database.collection::<Document>(MARK);
    let noted = marks.find_one(doc! { "_id": file }).await.map_err(failed("read a restore's mark"))?;
    let number = |noted: &Document, field| noted.get_i64(field).map_or(0, i64::unsigned_abs);
    Ok(noted.map(|noted| Repeated {
        looked_at: number(&noted, "lookedAt"),
        count: number(&noted, "count"),
        sum: noted.get_str("sum").unwrap_or_default().to_owned(),
    }))
}

/// Notes it, before the documents that were looked at are inserted: afterwards nobody could tell them from others.
pub async fn note_repeated(database: &Database, file: &str, noted: &Repeated) -> Result<(), StoreError> {
    let whole = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
    let entry = doc! {
        "_id": file, "lookedAt": whole(noted.looked_at), "count": whole(noted.count), "sum": &noted.sum,
    };
    let marks = database.collection::<Document>(MARK);
    let written = marks.replace_one(doc! { "_id": file }, entry).upsert(true).await;
    written.map(|_| ()).map_err(failed("write a restore's mark"))
}

/// Which of these documents the collection has already, by their `_id`: their places in the list.
pub async fn there(
    database: &Database,
    collection: &str,
    documents: &[RawDocumentBuf],
) -> Result<Vec<usize>, StoreError> {
    let call = "look for documents that are there already";
    let id = |document: &RawDocumentBuf| -> Result<Bson, StoreError> {
        let id = document.get("_id").ok().flatten().and_then(|id| Bson::try_from(id).ok());
        id.ok_or_else(|| StoreError::new("mongodb", call, Kind::Data, "a document without an _id"))
    };
    let ids: Vec<Bson> = documents.iter().map(id).collect::<Result<_, _>>()?;
    let found = database
        .collection::<Document>(collection)
        .find(doc! { "_id": { "$in": ids.clone() } })
        .projection(doc! { "_id": 1 })
        .batch_size(10_000)
        .await
        .map_err(failed(call))?;
    let found: Vec<Document> = found.try_collect().await.map_err(failed(call))?;
    let found: std::collections::HashSet<String> =
        found.iter().filter_map(|one| one.get("_id")).map(ToString::to_string).collect();
    Ok((0..ids.len()).filter(|place| found.contains(&ids[*place].to_string())).collect())
}

/// From here on, what was restored is whole: everything up to a time, and what came since is in no backup of the chain.
pub async fn unmark(database: &Database, from: Option<DateTime<Utc>>) -> Result<(), StoreError> {
    let call = "remove a restore's mark";
    let marks = database.collection::<Document>(MARK);
    let Some(from) = from else { return marks.drop().await.map_err(failed(call)) };
    let note = doc! { "_id": RESTORED, "from": bson::DateTime::from_millis(from.timestamp_millis()) };
    marks.replace_one(doc! { "_id": RESTORED }, note).upsert(true).await.map_err(failed(call))?;
    marks.delete_many(doc! { "_id": { "$ne": RESTORED } }).await.map_err(failed(call))?;
    Ok(())
}

/// Of a restore with which Postgres was not brought to agree: up to when everything is there.
pub async fn restored(database: &Database) -> Result<Option<DateTime<Utc>>, StoreError> {
    let note = database.collection::<Document>(MARK).find_one(doc! { "_id": RESTORED }).await;
    let note = note.map_err(failed("read a restore's mark"))?;
    let from = note.and_then(|note| Some(note.get_datetime("from").ok()?.timestamp_millis()));
    Ok(from.and_then(DateTime::from_timestamp_millis))
}

/// Postgres and this database agree.
pub async fn agreed(database: &Database) -> Result<(), StoreError> {
    let marks = database.collection::<Document>(MARK);
    let removed = marks.delete_one(doc! { "_id": RESTORED }).await;
    removed.map(drop).map_err(failed("remove a restore's mark"))
}

/// Makes an empty collection with its options; one that is there stays.
pub async fn create(database: &Database, collection: &Collection) -> Result<(), StoreError> {
    let mut command = doc! { "create": &collection.name };
    for (name, value) in &collection.options {
        if !OWN_OPTIONS.contains(&name.as_str()) {
            command.insert(name, value.clone());
        }
    }
    match database.run_command(command).await {
        Ok(_) => Ok(()),
        Err(error) => match error.kind.as_ref() {
            ErrorKind::Command(command) if command.code == NAMESPACE_EXISTS => Ok(()),
            _ => Err(failed("make a collection")(error)),
        },
    }
}

/// Makes a collection's indexes, but for the one that every collection has.
pub async fn make_indexes(database: &Database, collection: &Collection) -> Result<(), StoreError> {
    let indexes: Vec<Bson> = collection
        .indexes
        .iter()
        .filter(|index| !index.get_str("name").is_ok_and(|name| name == "_id_"))
        .map(|index| Bson::Document(index.clone()))
        .collect();
    if indexes.is_empty() {
        return Ok(());
    }
    let command = doc! { "createIndexes": &collection.name, "indexes": indexes };
    database.run_command(command).await.map(|_| ()).map_err(failed("make the indexes of a collection"))
}

/// Inserts documents; those that are there already count as done. Returns how many are new. Their validity was checked
/// when they were made, perhaps by an older rule.
pub async fn insert(
    database: &Database,
    collection: &str,
    documents: Vec<RawDocumentBuf>,
) -> Result<u64, StoreError> {
    let count = documents.len() as u64;
    if count == 0 {
        return Ok(0);
    }
    let call = "insert restored documents";
    let target = database.collection::<RawDocumentBuf>(collection);
    match target.insert_many(documents).ordered(false).bypass_document_validation(true).await {
        Ok(_) => Ok(count),
        Err(error) => match error.kind.as_ref() {
            ErrorKind::InsertMany(failures) if failures.write_concern_error.is_none() => {
                let (same, others): (Vec<_>, Vec<_>) =
                    failures.write_errors.iter().flatten().partition(|failure| failure.code == DUPLICATE_KEY);
                match others.first() {
                    None => Ok(count - same.len() as u64),
                    Some(first) => Err(StoreError::new(
                        "mongodb",
                        call,
                        Kind::Data,
                        format!("{collection}: {} (code {})", first.message, first.code),
                    )),
                }
            }
            _ => Err(failed(call)(error)),
        },
    }
}

/// Removes a whole database.
pub async fn drop_database(database: &Database) -> Result<(), StoreError> {
    database.drop().await.map_err(failed("remove a database"))
}

/// Removes every collection but the mark.
pub async fn empty(database: &Database) -> Result<(), StoreError> {
    for name in names(database).await?.iter().filter(|name| *name != MARK) {
        database.collection::<Document>(name).drop().await.map_err(failed("remove a collection"))?;
    }
    Ok(())
}
