//! Upkeep and statistics of MongoDB. What a server does not do is told apart from what goes wrong.

use std::time::Duration;

use mongodb::Database;
use mongodb::bson::{Bson, Document, doc};
use mongodb::error::ErrorKind;
use serde_json::{Value, json};

use super::{events, failed, kind};
use crate::StoreError;

/// How long the server has for its answer that it ends a command.
const KILL_MAX: Duration = Duration::from_secs(2);

/// What came of a command.
#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    Done(Document),
    /// The server can't or must not do this; its own words.
    Refused(String),
}

/// `CommandNotFound`, `CommandNotSupported`, `CommandNotSupportedOnView`, `NotImplemented`, `IllegalOperation`,
/// `Unauthorized`, `InvalidOptions`, `NoReplicationEnabled`, `BadValue`, `FailedToParse`, an unknown field, and the bare
/// "no".
const REFUSALS: [i32; 12] = [59, 115, 166, 238, 20, 13, 72, 76, 2, 9, 40_415, 0];

pub(super) async fn ask(
    database: &Database,
    call: &'static str,
    command: Document,
) -> Result<Answer, StoreError> {
    answered(call, database.run_command(command).await)
}

fn answered(call: &'static str, done: mongodb::error::Result<Document>) -> Result<Answer, StoreError> {
    match done {
        Ok(answer) => Ok(Answer::Done(answer)),
        Err(error) => match error.kind.as_ref() {
            ErrorKind::Command(command) if REFUSALS.contains(&command.code) => {
                Ok(Answer::Refused(format!("{} (code {})", command.message, command.code)))
            }
            ErrorKind::SessionsNotSupported => Ok(Answer::Refused(
                "it has no sessions, so a command that lasts could not be ended".to_owned(),
            )),
            _ => Err(StoreError::new("mongodb", call, kind(&error), &error)),
        },
    }
}

/// A command that lasts. When `stop` is done first, the server is told to end it, and the result is `None`; it ends by
/// itself after `longest`.
async fn ask_for_long(
    database: &Database,
    call: &'static str,
    mut command: Document,
    longest: Duration,
    stop: impl Future<Output = ()>,
) -> Result<Option<Answer>, StoreError> {
    command.insert("maxTimeMS", longest.as_millis() as i64);
    let mut session = database.client().start_session().await.map_err(failed(call))?;
    let id = session.id().clone();
    tokio::select! {
        done = database.run_command(command).session(&mut session) => return answered(call, done).map(Some),
        () = stop => {}
    }
    // It goes on in the server, whoever waits for it. A session of one's own can be ended without further privileges.
    let admin = database.client().database("admin");
    let kill = admin.run_command(doc! { "killSessions": [id] });
    match tokio::time::timeout(KILL_MAX, kill).await {
        Ok(Ok(_)) => {}
        Ok(Err(error)) => {
            tracing::warn!(call, %error, "MongoDB could not be told to end a command that lasts.");
        }
        Err(_) => tracing::warn!(call, "MongoDB does not answer that it ends a command that lasts."),
    }
    Ok(None)
}

/// Checks the collection and its indexes against each other. Reads all of it, beside those who write: otherwise it would
/// lock them out.
pub async fn validate(
    database: &Database,
    longest: Duration,
    stop: impl Future<Output = ()>,
) -> Result<Option<Answer>, StoreError> {
    let command = doc! { "validate": events::COLLECTION, "background": true };
    let answer = ask_for_long(database, "validate the audit trail", command, longest, stop).await?;
    Ok(answer.map(|answer| match answer {
        Answer::Refused(words) => Answer::Refused(format!(
            "{words}. It is asked to do it in the background; otherwise nobody could write meanwhile. Do it by hand: \
             db.{}.validate(), on a secondary or in a quiet hour",
            events::COLLECTION
        )),
        done @ Answer::Done(_) => done,
    }))
}

/// Gives the room of removed events back to the file system. A primary refuses it unless forced, and is not forced: it
/// is done on secondaries, one by one.
pub async fn compact(
    database: &Database,
    longest: Duration,
    stop: impl Future<Output = ()>,
) -> Result<Option<Answer>, StoreError> {
    let hello = database.run_command(doc! { "hello": 1 }).await.map_err(failed("ask for the replica set"))?;
    if hello.get_str("setName").is_ok() && hello.get_bool("isWritablePrimary").unwrap_or(false) {
        let words =
            "this is a primary: run compact on each secondary in turn, then step down and run it here";
        return Ok(Some(Answer::Refused(words.to_owned())));
    }
    let command = doc! { "compact": events::COLLECTION };
    ask_for_long(database, "compact the audit trail", command, longest, stop).await
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
    let whole = whole(database).await?;
    Ok(json!({
        "collection": figures(collection, &["count", "size", "storageSize", "totalIndexSize", "freeStorageSize", "nindexes"]),
        "database": figures(whole, &["objects", "dataSize", "storageSize", "indexSize", "fsUsedSize", "fsTotalSize"]),
    }))
}

/// Bytes that are free on the disk of the database's server, if it tells.
pub async fn room(database: &Database) -> Result<Option<u64>, StoreError> {
    let told = figures(whole(database).await?, &["fsTotalSize", "fsUsedSize"]);
    let bytes = |name: &str| told[name].as_f64().filter(|bytes| *bytes > 0.0);
    Ok(bytes("fsTotalSize").zip(bytes("fsUsedSize")).map(|(total, used)| (total - used).max(0.0) as u64))
}

/// Bytes that the database takes of it; none if the server does not tell.
pub async fn taken(database: &Database) -> Result<u64, StoreError> {
    let told = figures(whole(database).await?, &["storageSize", "indexSize"]);
    let bytes = |name: &str| told[name].as_f64().unwrap_or(0.0).max(0.0) as u64;
    Ok(bytes("storageSize") + bytes("indexSize"))
}

async fn whole(database: &Database) -> Result<Answer, StoreError> {
    ask(database, "measure the database", doc! { "dbStats": 1 }).await
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
