//! Reading the audit trail, the newest first, page by page.
//!
//! A page begins after the last event of the one before, known by its time and its id: events that come meanwhile move
//! nothing. Each shape of a query has an index (migration 4 makes them) that gives the order too, so a page costs what it
//! shows, however many events there are. The server finds it by itself: a hint made the development stand-in look through
//! everything (214 ms for the events of one task among 200,000, and 1.3 ms without).
//!
//! A query of several conditions is served by the index of one, and the others are looked at event by event. What they
//! seldom fit would be looked for through all that a busy actor ever did: so a page looks at [`LOOKED_AT`] events at
//! most, and goes on from there in the next one, whether it has found something or not.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use chrono::{DateTime, SecondsFormat, Utc};
use futures_util::TryStreamExt;
use mongodb::bson::oid::ObjectId;
use mongodb::bson::{self, Bson, Document, doc};
use mongodb::{Collection, Database};
use serde_json::value::to_raw_value;
use serde_json::{Map, Value};
use taskflow_core::change::{Change, KEPT};
use taskflow_core::event::EventId;
use uuid::Uuid;

use super::events::COLLECTION;
use super::failed;
use crate::StoreError;

/// After which the server gives a query up.
const TIME_MAX: Duration = Duration::from_secs(5);

/// Events that one page looks at, where an index does not tell which of them are wanted.
pub const LOOKED_AT: u64 = 10_000;

/// Which events. What is `None` makes no difference.
#[derive(Debug, Clone, Default)]
pub struct Query {
    pub entity: Option<Uuid>,
    pub actor: Option<Uuid>,
    pub kind: Option<String>,
    pub correlation: Option<Uuid>,
    /// Applied at this time or later.
    pub from: Option<DateTime<Utc>>,
    /// Applied before this time.
    pub to: Option<DateTime<Utc>>,
    /// After this event, in the order of the pages.
    pub after: Option<Cursor>,
}

/// The last event of a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cursor {
    /// `createdAt` in milliseconds: what MongoDB keeps.
    pub at_ms: i64,
    pub id: EventId,
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.at_ms, self.id)
    }
}

impl FromStr for Cursor {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = "a cursor is the next of the page before";
        let (at_ms, id) = text.split_once('-').ok_or(wrong)?;
        let id = ObjectId::parse_str(id).map_err(|_| wrong)?;
        Ok(Self { at_ms: at_ms.parse().map_err(|_| wrong)?, id: EventId(id.bytes()) })
    }
}

impl Query {
    /// The query's conditions, up to a border if there is one.
    pub fn filter(&self, border: Option<Cursor>) -> Document {
        let mut filter = Document::new();
        let mut equals = |name: &str, value: Option<String>| {
            if let Some(value) = value {
                filter.insert(name, value);
            }
        };
        equals("entityId", self.entity.map(|id| id.to_string()));
        equals("correlationId", self.correlation.map(|id| id.to_string()));
        equals("actorId", self.actor.map(|id| id.to_string()));
        equals("type", self.kind.clone());
        let mut time = Document::new();
        if let Some(from) = self.from {
            time.insert("$gte", date(ms_up(from)));
        }
        if let Some(to) = self.to {
            time.insert("$lt", date(ms_up(to)));
        }
        // Of a cursor and a border the first condition bounds the index, the second takes out the ties.
        let mut ties = Vec::new();
        if let Some(Cursor { at_ms, id }) = border {
            time.insert("$gte", date(at_ms));
            let later = doc! { "createdAt": { "$gt": date(at_ms) } };
            let before = doc! { "_id": { "$gte": ObjectId::from_bytes(id.0) } };
            ties.push(doc! { "$or": [later, before] });
        }
        if let Some(Cursor { at_ms, id }) = self.after {
            time.insert("$lte", date(at_ms));
            let earlier = doc! { "createdAt": { "$lt": date(at_ms) } };
            let behind = doc! { "_id": { "$lt": ObjectId::from_bytes(id.0) } };
            ties.push(doc! { "$or": [earlier, behind] });
        }
        if !ties.is_empty() {
            filter.insert("$and", ties);
        }
        if !time.is_empty() {
            filter.insert("createdAt", time);
        }
        filter
    }

    /// The same without what its index does not know, if there is such a thing.
    pub fn alone(&self) -> Option<Self> {
        let Self { from, to, after, .. } = *self;
        let bounds = Self { from, to, after, ..Self::default() };
        let one = match *self {
            Self { entity: entity @ Some(_), .. } => Self { entity, ..bounds },
            Self { correlation: correlation @ Some(_), .. } => Self { correlation, ..bounds },
            Self { actor: actor @ Some(_), .. } => Self { actor, ..bounds },
            _ => return None,
        };
        let conditions = |query: &Self| {
            let Self { entity, actor, kind, correlation, .. } = query;
            [entity.is_some(), actor.is_some(), kind.is_some(), correlation.is_some()]
        };
        (conditions(&one) != conditions(self)).then_some(one)
    }
}

/// The order of the pages.
pub fn order() -> Document {
    doc! { "createdAt": -1, "_id": -1 }
}

/// Times are kept to the millisecond, cut off: a bound between two of them means the later one.
fn ms_up(time: DateTime<Utc>) -> i64 {
    let cut = time.timestamp_millis();
    if time.timestamp_subsec_nanos().is_multiple_of(1_000_000) { cut } else { cut + 1 }
}

fn date(ms: i64) -> bson::DateTime {
    bson::DateTime::from_millis(ms)
}

/// Reads at most `limit` events, as they are stored, and where the next page begins if there is one. A page may have
/// fewer, or none, and still have a next one: where it has looked at [`LOOKED_AT`].
pub async fn page(
    database: &Database,
    query: &Query,
    limit: u32,
) -> Result<(Vec<Value>, Option<Cursor>), StoreError> {
    const CALL: &str = "read the audit trail";
    let collection: Collection<Document> = database.collection(COLLECTION);
    let border = border(&collection, query).await?;
    let found = collection
        .find(query.filter(border))
        .sort(order())
        .limit(i64::from(limit) + 1)
        .max_time(TIME_MAX)
        .await
        .map_err(failed(CALL))?;
    let mut documents: Vec<Document> = found.try_collect().await.map_err(failed(CALL))?;
    let more = documents.len() > limit as usize;
    documents.truncate(limit as usize);
    let next = if more { documents.last().and_then(cursor) } else { border };
    Ok((documents.into_iter().map(shown).collect(), next))
}

/// The last event that a page looks at, where it can't tell by its index which of them are wanted, and there are more.
async fn border(collection: &Collection<Document>, query: &Query) -> Result<Option<Cursor>, StoreError> {
    const CALL: &str = "bound a look into the audit trail";
    let Some(alone) = query.alone() else { return Ok(None) };
    let found = collection
        .find(alone.filter(None))
        .sort(order())
        // All of it is in the index: no event is read.
        .projection(doc! { "createdAt": 1, "_id": 1 })
        .skip(LOOKED_AT)
        .limit(1)
        .max_time(TIME_MAX)
        .await
        .map_err(failed(CALL))?;
    let found: Vec<Document> = found.try_collect().await.map_err(failed(CALL))?;
    Ok(found.first().and_then(cursor))
}

/// Events of one time that are read together: more than a batch has of one task.
const TIED_MAX: i64 = 2_000;

/// The newest changes of a task and what has the same time as the last of them, as far as the audit trail has them.
pub async fn changes(database: &Database, task: Uuid) -> Result<Vec<Change>, StoreError> {
    let query = Query { entity: Some(task), ..Query::default() };
    let found = read_changes(database, &query, KEPT as i64).await?;
    match found.last() {
        // Events of one batch have one time, and their order is that of their versions, which the index does not know.
        Some(last) if found.len() == KEPT => {
            let from = Some(last.createdat);
            read_changes(database, &Query { from, ..query }, TIED_MAX).await
        }
        _ => Ok(found),
    }
}

async fn read_changes(database: &Database, query: &Query, limit: i64) -> Result<Vec<Change>, StoreError> {
    const CALL: &str = "read a task's changes";
    let collection: Collection<Document> = database.collection(COLLECTION);
    let found = collection
        .find(query.filter(None))
        .sort(order())
        .limit(limit)
        .max_time(TIME_MAX)
        .await
        .map_err(failed(CALL))?;
    let documents: Vec<Document> = found.try_collect().await.map_err(failed(CALL))?;
    Ok(documents.into_iter().filter_map(change).collect())
}

fn change(event: Document) -> Option<Change> {
    if event.contains_key(super::undone::FIELD) {
        return None;
    }
    let at_ms = event.get_datetime("createdAt").ok()?.timestamp_millis();
    Some(Change {
        version: event.get_i32("version").ok()?,
        id: EventId(event.get_object_id("_id").ok()?.bytes()),
        kind: event.get_str("type").ok()?.to_owned(),
        actorid: event.get_str("actorId").ok()?.parse().ok()?,
        createdat: DateTime::from_timestamp_millis(at_ms)?,
        data: to_raw_value(&value(Bson::Document(event.get_document("payload").ok()?.clone()))).ok()?,
    })
}

fn cursor(event: &Document) -> Option<Cursor> {
    let id = event.get_object_id("_id").ok()?;
    let at_ms = event.get_datetime("createdAt").ok()?.timestamp_millis();
    Some(Cursor { at_ms, id: EventId(id.bytes()) })
}

/// An event as JSON, under the names that it is stored by, without what is only for its proof.
fn shown(mut event: Document) -> Value {
    let id = event.remove("_id");
    for name in ["salt", "digest"] {
        event.remove(name);
    }
    let mut fields = Map::new();
    fields.insert("id".to_owned(), id.map_or(Value::Null, value));
    fields.extend(event.into_iter().map(|(name, field)| (name, value(field))));
    Value::Object(fields)
}

fn value(bson: Bson) -> Value {
    match bson {
        Bson::ObjectId(id) => Value::String(id.to_hex()),
        Bson::DateTime(time) => {
            let time = DateTime::<Utc>::from_timestamp_millis(time.timestamp_millis());
            time.map_or(Value::Null, |time| Value::String(time.to_rfc3339_opts(SecondsFormat::Millis, true)))
        }
        Bson::Document(document) => {
            Value::Object(document.into_iter().map(|(name, field)| (name, value(field))).collect())
        }
        Bson::Array(items) => Value::Array(items.into_iter().map(value).collect()),
        Bson::Null => Value::Null,
        Bson::Boolean(value) => Value::Bool(value),
        Bson::Int32(number) => Value::from(number),
        Bson::Int64(number) => Value::from(number),
        Bson::Double(number) => Value::from(number),
        Bson::String(text) => Value::String(text),
        // None of ours.
        other => Value::String(other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_comes_back_and_nonsense_does_not() {
        let cursor = Cursor { at_ms: 1_900_000_000_123, id: EventId([7; 12]) };
        assert_eq!(cursor.to_string().parse(), Ok(cursor));
        for text in ["", "1", "x-070707070707070707070707", "1-07", "1-zz0707070707070707070707"] {
            assert!(text.parse::<Cursor>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_bound_between_two_milliseconds_is_the_later_one() {
        let time = |ns: u32| DateTime::from_timestamp(1, ns).expect("a time");
        assert_eq!(ms_up(time(2_000_000)), 1_002);
        assert_eq!(ms_up(time(2_000_001)), 1_003);
    }
}
