//! Upkeep and statistics of MongoDB. What a server does not do is told apart from what goes wrong.

use mongodb::Database;
use mongodb::bson::{Bson, Document, doc};
use mongodb::error::ErrorKind;
use serde_json::{Value, json};

use super::{events, failed, kind};
use crate::StoreError;

/// What came of a command.
#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    Done(Document),
    /// The server can't or must not do this; its own words.
    Refused(String),
}

/// `CommandNotFound`, `CommandNotSupported`, `CommandNotSupportedOnView`, `NotImplemented`, `IllegalOperation`,
/// `Unauthorized`, `InvalidOptions`, `NoReplicationEnabled`, `BadValue`, and the bare "no".
const REFUSALS: [i32; 10] = [59, 115, 166, 238, 20, 13, 72, 76, 2, 0];

async fn ask(database: &Database, call: &'static str, command: Document) -> Result<Answer, StoreError> {
    match database.run_command(command).await {
        Ok(answer) => Ok(Answer::Done(answer)),
        Err(error) => match error.kind.as_ref() {
            ErrorKind::Command(command) if REFUSALS.contains(&command.code) => {
                Ok(Answer::Refused(format!("{} (code {})", command.message, command.code)))
            }
            _ => Err(StoreError::new("mongodb", call, kind(&error), &error)),
        },
    }
}

/// Checks the collection and its indexes against each other. Reads all of it: for quiet hours.
pub async fn validate(database: &Database) -> Result<Answer, StoreError> {
    ask(database, "validate the audit trail", doc! { "validate": events::COLLECTION }).await
}

/// Gives the room of removed events back to the file system. A primary refuses it unless forced, and is not forced: it
/// is done on secondaries, one by one.
pub async fn compact(database: &Database) -> Result<Answer, StoreError> {
    let hello = database.run_command(doc! { "hello": 1 }).await.map_err(failed("ask for the replica set"))?;
    if hello.get_str("setName").is_ok() && hello.get_bool("isWritablePrimary").unwrap_or(false) {
        let words =
            "this is a primary: run compact on each secondary in turn, then step down and run it here";
        return Ok(Answer::Refused(words.to_owned()));
    }
    ask(database, "compact the audit trail", doc! { "compact": events::COLLECTION }).await
}

/// The names of the collection's indexes.
pub async fn index_names(database: &Database) -> Result<Vec<String>, StoreError> {
    let names = database.collection::<Document>(events::COLLECTION).list_index_names().await;
    names.map_err(failed("list the indexes of the audit trail"))
}

/// Index builds that are under way, if the server tells.
pub async fn index_builds(database: &Database) -> Result<Answer, StoreError> {
    let command = doc! { "currentOp": 1, "active": true, "command.createIndexes": { "$exists": true } };
    ask(&database.client().database("admin"), "look for index builds", command).await
}

/// Figures of the collection and the database.
pub async fn statistics(database: &Database) -> Result<Value, StoreError> {
    let collection =
        ask(database, "measure the audit trail", doc! { "collStats": events::COLLECTION }).await?;
    let whole = ask(database, "measure the database", doc! { "dbStats": 1 }).await?;
    Ok(json!({
        "collection": figures(collection, &["count", "size", "storageSize", "totalIndexSize", "freeStorageSize", "nindexes"]),
        "database": figures(whole, &["objects", "dataSize", "storageSize", "indexSize", "fsUsedSize", "fsTotalSize"]),
    }))
}

/// Where the members of the replica set stand.
pub async fn replication(database: &Database) -> Result<Answer, StoreError> {
    ask(&database.client().database("admin"), "look at the replica set", doc! { "replSetGetStatus": 1 }).await
}

/// The members' names, states and how far each is behind the primary, in seconds.
pub fn members(status: &Document) -> Value {
    let members: Vec<&Document> =
        status.get_array("members").into_iter().flatten().filter_map(Bson::as_document).collect();
    let optime = |member: &Document| member.get_datetime("optimeDate").ok().map(|at| at.timestamp_millis());
    let newest = members.iter().filter_map(|member| optime(member)).max();
    let shown = members.iter().map(|member| {
        let behind = newest.zip(optime(member)).map(|(newest, own)| (newest - own) as f64 / 1_000.0);
        json!({
            "name": member.get_str("name").ok(),
            "state": member.get_str("stateStr").ok(),
            "behind_s": behind,
        })
    });
    shown.collect()
}

fn figures(answer: Answer, names: &[&str]) -> Value {
    match answer {
        Answer::Refused(words) => Value::String(words),
        Answer::Done(document) => {
            let number = |value: &Bson| match value {
                Bson::Int32(number) => Some(f64::from(*number)),
                Bson::Int64(number) => Some(*number as f64),
                Bson::Double(number) => Some(*number),
                _ => None,
            };
            let found = names
                .iter()
                .filter_map(|name| Some(((*name).to_owned(), json!(number(document.get(*name)?)?))));
            Value::Object(found.collect())
        }
    }
}

/// What the migrations want to be there: the indexes that the newest schema has.
pub async fn missing_indexes(database: &Database) -> Result<Vec<String>, StoreError> {
    let there = index_names(database).await?;
    let wanted = super::migrate::index_names()?;
    Ok(wanted.into_iter().filter(|name| !there.contains(name)).collect())
}
