//! The audit trail as the live stream fills its gaps from it: the newest events, as CloudEvents.

use std::time::Duration;

use chrono::{DateTime, Utc};
use futures_util::TryStreamExt;
use mongodb::Database;
use mongodb::bson::{Bson, Document, doc};
use mongodb::error::ErrorKind;
use serde_json::{Value, json};
use taskflow_core::stream::Filter;
use uuid::Uuid;

use super::events::COLLECTION;
use super::{failed, undone};
use crate::{Kind, StoreError};

/// Under which partition events stand that no command causes.
pub const SYSTEM: &str = "system";
/// How long the server may look.
const LOOK: Duration = Duration::from_secs(10);
/// `MaxTimeMSExpired`.
const TOO_LONG: i32 = 50;

/// An event of the trail.
#[derive(Debug, Clone)]
pub struct Kept {
    pub id: String,
    pub partition: String,
    pub number: i64,
    pub index: u32,
    /// As a CloudEvent, its time to the millisecond.
    pub json: Vec<u8>,
}

/// What is looked for.
#[derive(Debug, Clone)]
pub struct Wanted<'w> {
    /// Partitions, each with the batch before the first that is wanted, and the last.
    pub batches: &'w [(&'w str, i64, i64)],
    /// None of those batches was applied before.
    pub applied_since: Option<DateTime<Utc>>,
    /// Since when what no command causes is wanted.
    pub system_since: DateTime<Utc>,
    /// Whose events; none for everybody's.
    pub user: Option<Uuid>,
    pub filter: &'w Filter,
    /// Most events of each of both kinds.
    pub most: usize,
}

/// Reads events of the trail in the order of their times, one after the other. `false` if there are too many, too many to
/// look through, or `take` has enough.
pub async fn read(
    database: &Database,
    wanted: &Wanted<'_>,
    mut take: impl FnMut(Kept) -> bool,
) -> Result<bool, StoreError> {
    let since = |at: DateTime<Utc>| {
        // To the millisecond, as times are kept.
        doc! { "$gte": mongodb::bson::DateTime::from_millis(at.timestamp_millis()) }
    };
    if let Some(applied) = wanted.applied_since
        && !wanted.batches.is_empty()
    {
        let batches = wanted.batches.iter().map(|(partition, after, last)| {
            doc! { "run.p": *partition, "run.n": { "$gt": after, "$lte": last } }
        });
        let batches: Vec<Document> = batches.collect();
        let filter = vec![doc! { "createdAt": since(applied) }, doc! { "$or": batches }];
        if !look(database, filter, wanted, &mut take).await? {
            return Ok(false);
        }
    }
    // By the index of types, in which all of the system's stand together.
    let filter = vec![
        doc! { "type": { "$gte": "system.", "$lt": "system/" } },
        doc! { "createdAt": since(wanted.system_since) },
    ];
    look(database, filter, wanted, &mut take).await
}

async fn look(
    database: &Database,
    mut filter: Vec<Document>,
    wanted: &Wanted<'_>,
    take: &mut impl FnMut(Kept) -> bool,
) -> Result<bool, StoreError> {
    if let Some(user) = wanted.user {
        let user = user.to_string();
        filter.push(doc! { "$or": [
            { "actorId": &user },
            { "entityId": &user },
            { "payload.assigneeId": &user },
            { "payload.previous.assigneeId": &user },
        ] });
    }
    filter.extend(of_filter(wanted.filter));
    // What was undone by a restore did not happen.
    filter.push(doc! { undone::FIELD: { "$exists": false } });
    let most = wanted.most;
    let look = async {
        let events = database.collection::<Document>(COLLECTION);
        let found = events.find(doc! { "$and": filter }).sort(doc! { "createdAt": 1 });
        let mut found = found.limit(most as i64 + 1).max_time(LOOK).await?;
        let mut count = 0;
        while let Some(event) = found.try_next().await? {
            count += 1;
            let Some(event) = kept(event) else { return Ok(None) };
            if count > most || !take(event) {
                return Ok(Some(false));
            }
        }
        Ok(Some(true))
    };
    match look.await {
        Ok(Some(all)) => Ok(all),
        Ok(None) => {
            let why = "an event has not the form that it should";
            Err(StoreError::new("mongodb", "read what was missed", Kind::Bug, why))
        }
        Err(error) if is_too_long(&error) => Ok(false),
        Err(error) => Err(failed("read what was missed")(error)),
    }
}

fn is_too_long(error: &mongodb::error::Error) -> bool {
    matches!(error.kind.as_ref(), ErrorKind::Command(command) if command.code == TOO_LONG)
}

/// What [`Filter::takes`] says, for the server: what is not wanted is not sent.
fn of_filter(filter: &Filter) -> Vec<Document> {
    let mut all = Vec::new();
    if !filter.types.is_empty() {
        let types = filter.types.iter().map(|kind| match kind.strip_suffix('*') {
            // Types are ASCII: nothing that begins so is above.
            Some(beginning) => doc! { "type": { "$gte": beginning, "$lt": format!("{beginning}\u{ffff}") } },
            None => doc! { "type": kind },
        });
        all.push(doc! { "$or": types.collect::<Vec<_>>() });
    }
    let ids = [("entityId", filter.entity), ("actorId", filter.actor)];
    all.extend(ids.into_iter().filter_map(|(name, id)| Some(doc! { name: id?.to_string() })));
    all
}

fn kept(mut event: Document) -> Option<Kept> {
    let id = event.get_object_id("_id").ok()?.to_hex();
    let place = event.get_document("run").ok()?;
    let (partition, number, index) =
        (place.get_str("p").ok()?.to_owned(), place.get_i64("n").ok()?, place.get_i32("i").ok()? as u32);
    let time =
        DateTime::<Utc>::from_timestamp_millis(event.get_datetime("createdAt").ok()?.timestamp_millis())?;
    let text = |name: &str| event.get_str(name).ok().map(str::to_owned);
    let mut json = json!({
        "specversion": "1.0",
        "id": id,
        "source": "/taskflow",
        "type": text("type")?,
        "subject": text("entityId")?,
        "time": time,
        "actorid": text("actorId")?,
        "correlationid": text("correlationId"),
        "commandid": text("commandId"),
        "entitytype": text("entityType"),
    });
    if let Ok(version) = event.get_i32("version") {
        json["version"] = Value::from(version);
    }
    json["data"] = plain(event.remove("payload").unwrap_or(Bson::Null));
    Some(Kept { id, partition, number, index, json: serde_json::to_vec(&json).ok()? })
}

/// The JSON that an event's payload was made from: [`super::events`] writes nothing else.
fn plain(value: Bson) -> Value {
    match value {
        Bson::Boolean(value) => Value::from(value),
        Bson::Int32(value) => Value::from(value),
        Bson::Int64(value) => Value::from(value),
        Bson::Double(value) => Value::from(value),
        Bson::String(text) => Value::from(text),
        Bson::Array(items) => items.into_iter().map(plain).collect(),
        Bson::Document(fields) => {
            Value::Object(fields.into_iter().map(|(name, value)| (name, plain(value))).collect())
        }
        _ => Value::Null,
    }
}
