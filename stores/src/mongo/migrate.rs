//! The versions of the audit trail's schema, recorded in the collection `schema_versions`.
//!
//! A version is a file of database commands for each way. Each may be run again after it failed half-way: what is
//! there already, or gone already, is no error.

use futures_util::TryStreamExt;
use mongodb::Database;
use mongodb::bson::{Document, doc};
use serde::Deserialize;

use super::failed;
use crate::{Kind, StoreError};

const FILES: [(i64, &str); 5] = [
    (1, include_str!("../../../migrations/mongo/0001_event_logs.json")),
    (2, include_str!("../../../migrations/mongo/0002_redundant_indexes.json")),
    (3, include_str!("../../../migrations/mongo/0003_plain_type.json")),
    (4, include_str!("../../../migrations/mongo/0004_cursor_indexes.json")),
    (5, include_str!("../../../migrations/mongo/0005_audit_seals.json")),
];
const VERSIONS: &str = "schema_versions";
/// `NamespaceExists`, `NamespaceNotFound`, `IndexNotFound`.
const DONE_BEFORE: [i32; 3] = [48, 26, 27];

/// Commands are read straight into BSON documents, which keep the order of their fields: the first one is the verb.
#[derive(Deserialize)]
struct File {
    description: String,
    up: Vec<Document>,
    down: Vec<Document>,
}

/// One version of the schema.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Version {
    pub version: i64,
    pub description: String,
    pub applied: bool,
}

/// Every known version and whether the database has it.
pub async fn status(database: &Database) -> Result<Vec<Version>, StoreError> {
    let applied = applied(database).await?;
    FILES
        .iter()
        .map(|(version, text)| {
            Ok(Version {
                version: *version,
                description: read(text)?.description,
                applied: applied.contains(version),
            })
        })
        .collect()
}

/// Brings the schema up to `target` (`None`: the newest). Returns the versions that were applied.
pub async fn up(database: &Database, target: Option<i64>) -> Result<Vec<i64>, StoreError> {
    let applied = applied(database).await?;
    let mut done = Vec::new();
    for (version, text) in FILES {
        if applied.contains(&version) || target.is_some_and(|target| version > target) {
            continue;
        }
        let file = read(text)?;
        run(database, &file.up).await?;
        let record = doc! {
            "_id": version, "description": file.description,
            "appliedAt": mongodb::bson::DateTime::from_millis(crate::clock::now().timestamp_millis()),
        };
        let versions = database.collection::<Document>(VERSIONS);
        versions
            .replace_one(doc! { "_id": version }, record)
            .upsert(true)
            .await
            .map_err(failed("record a version"))?;
        done.push(version);
    }
    Ok(done)
}

/// Takes the schema down to `target` (0: nothing is left). Returns the versions that were reverted.
pub async fn down(database: &Database, target: i64) -> Result<Vec<i64>, StoreError> {
    let applied = applied(database).await?;
    let mut done = Vec::new();
    for (version, text) in FILES.into_iter().rev() {
        if version <= target || !applied.contains(&version) {
            continue;
        }
        run(database, &read(text)?.down).await?;
        database
            .collection::<Document>(VERSIONS)
            .delete_one(doc! { "_id": version })
            .await
            .map_err(failed("forget a version"))?;
        done.push(version);
    }
    Ok(done)
}

/// The newest version that the database has; `None` of an empty one.
pub async fn newest_applied(database: &Database) -> Result<Option<i64>, StoreError> {
    Ok(applied(database).await?.into_iter().max())
}

/// The newest version that this program knows.
pub fn newest() -> i64 {
    FILES.iter().map(|(version, _)| *version).max().unwrap_or(0)
}

async fn run(database: &Database, commands: &[Document]) -> Result<(), StoreError> {
    for command in commands {
        match database.run_command(command.clone()).await {
            Ok(_) => {}
            Err(error) => match error.kind.as_ref() {
                mongodb::error::ErrorKind::Command(command) if DONE_BEFORE.contains(&command.code) => {}
                _ => return Err(failed("migrate")(error)),
            },
        }
    }
    Ok(())
}

fn read(text: &str) -> Result<File, StoreError> {
    serde_json::from_str(text)
        .map_err(|error| StoreError::new("mongodb", "read a migration", Kind::Bug, error))
}

async fn applied(database: &Database) -> Result<Vec<i64>, StoreError> {
    let versions = database.collection::<Document>(VERSIONS);
    let cursor = versions.find(doc! {}).await.map_err(failed("read the schema's version"))?;
    let records: Vec<Document> = cursor.try_collect().await.map_err(failed("read the schema's version"))?;
    Ok(records.iter().filter_map(|record| record.get_i64("_id").ok()).collect())
}

/// The names of the indexes that the newest version leaves on the audit trail.
pub(super) fn index_names() -> Result<Vec<String>, StoreError> {
    let mut names: Vec<String> = Vec::new();
    for (_, text) in FILES {
        for command in read(text)?.up {
            let of_events =
                |verb: &str| command.get_str(verb).is_ok_and(|name| name == super::events::COLLECTION);
            if of_events("createIndexes") {
                let indexes = command.get_array("indexes").into_iter().flatten();
                let added = indexes.filter_map(|index| index.as_document()?.get_str("name").ok());
                names.extend(added.map(str::to_owned));
            }
            if of_events("dropIndexes")
                && let Ok(gone) = command.get_str("index")
            {
                names.retain(|name| name != gone);
            }
        }
    }
    Ok(names)
}
