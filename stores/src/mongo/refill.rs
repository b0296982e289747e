//! What restores write into MongoDB: collections with their options, documents as they were, indexes last. Every step may
//! be done again.

use mongodb::Database;
use mongodb::bson::{Bson, Document, RawDocumentBuf, doc};
use mongodb::error::ErrorKind;

use super::dump::Collection;
use super::failed;
use crate::{Kind, StoreError};

const DUPLICATE_KEY: i32 = 11_000;
const NAMESPACE_EXISTS: i32 = 48;
/// Where a restore writes down what it is; gone when it is whole.
const MARK: &str = "taskflow_restore";
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

/// Writes the mark: until [`unmark`], what is here is not whole.
pub async fn set_mark(database: &Database, backups: &[String], done: &[String]) -> Result<(), StoreError> {
    let mark = doc! { "_id": "restore", "backups": backups.to_vec(), "done": done.to_vec() };
    database
        .collection::<Document>(MARK)
        .replace_one(doc! { "_id": "restore" }, mark)
        .upsert(true)
        .await
        .map_err(failed("write a restore's mark"))?;
    Ok(())
}

/// From here on, what was restored is whole.
pub async fn unmark(database: &Database) -> Result<(), StoreError> {
    database.collection::<Document>(MARK).drop().await.map_err(failed("remove a restore's mark"))
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

/// Puts a document in the place of one with its `_id`, or beside the others.
pub async fn replace(
    database: &Database,
    collection: &str,
    document: RawDocumentBuf,
) -> Result<(), StoreError> {
    let call = "replace a restored document";
    let document = Document::try_from(document.as_ref())
        .map_err(|error| StoreError::new("mongodb", call, Kind::Data, error))?;
    let id = document.get("_id").cloned().unwrap_or(Bson::Null);
    database
        .collection::<Document>(collection)
        .replace_one(doc! { "_id": id }, document)
        .upsert(true)
        .bypass_document_validation(true)
        .await
        .map_err(failed(call))?;
    Ok(())
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
