//! The collection `audit_leaves`: for each batch the ids and the leaves of its events, class by class.
//!
//! Whether a list is true shows in its root, which the chain in Postgres has. It is needed only when a batch is not
//! whole: to name what is wrong with it, and to prove events that a hold has kept while their neighbours went. A class
//! with one event needs none: its link names it.

use std::collections::HashMap;

use chrono::{TimeDelta, Utc};
use futures_util::TryStreamExt;
use mongodb::Database;
use mongodb::bson::oid::ObjectId;
use mongodb::bson::raw::CStr;
use mongodb::bson::{Bson, DateTime, Document, RawDocumentBuf, cstr, doc};
use taskflow_core::Event;
use taskflow_core::audit::Hash;
use taskflow_core::audit::leaves::Leaves;
use taskflow_core::audit::trail::LeafList;
use taskflow_core::event::{Class, EventId};

use super::dump::ADDED_AT;
use super::events::{Run, binary};
use super::failed;
use crate::StoreError;

/// The collection's name.
pub const COLLECTION: &str = "audit_leaves";

fn key(partition: &str, number: i64) -> String {
    format!("{partition}/{number}")
}

/// The list of a batch; `None` if it needs none.
pub(super) fn of_batch(run: Run<'_>, events: &[Event], leaves: &Leaves) -> Option<RawDocumentBuf> {
    let classes = leaves.classes.iter().filter(|root| root.count > 1).map(|root| {
        let of_class = leaves.leaves.iter().zip(events).filter(|(leaf, _)| leaf.class == root.class);
        let (ids, leaves) = of_class.map(|(leaf, event)| (event.id, leaf.hash)).unzip();
        (root.class, LeafList { ids, leaves })
    });
    let until = events.iter().map(|event| event.expires_at.timestamp_millis()).max()?;
    document(run, &classes.collect(), until)
}

/// The list with these leaves, kept until a time in milliseconds since 1970; `None` if there are none.
pub(super) fn document(
    run: Run<'_>,
    lists: &HashMap<Class, LeafList>,
    until_ms: i64,
) -> Option<RawDocumentBuf> {
    let mut classes = RawDocumentBuf::new();
    for class in Class::ALL {
        let Some(list) = lists.get(&class) else { continue };
        let ids: Vec<u8> = list.ids.iter().flat_map(|id| id.0).collect();
        let hashes: Vec<u8> = list.leaves.iter().flat_map(|hash| hash.0).collect();
        let mut of_class = RawDocumentBuf::new();
        of_class.append(cstr!("ids"), binary(&ids));
        of_class.append(cstr!("leaves"), binary(&hashes));
        let name: &CStr = class.as_str().try_into().ok()?;
        classes.append(name, of_class);
    }
    if classes.is_empty() {
        return None;
    }
    let mut list = RawDocumentBuf::new();
    list.append(cstr!("_id"), key(run.partition, run.number));
    list.append(cstr!("classes"), classes);
    list.append(cstr!("until"), DateTime::from_millis(until_ms));
    list.append(ADDED_AT, DateTime::now());
    Some(list)
}

/// How long a list whose events are still there is left alone: a hold keeps them, or another policy.
const LATER: TimeDelta = TimeDelta::days(30);

/// What [`prune`] did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pruned {
    pub looked_at: u64,
    pub removed: u64,
}

/// Removes lists whose time is over and whose events are all gone; looks at most at `limit` of them.
pub async fn prune(
    database: &Database,
    now: chrono::DateTime<Utc>,
    limit: i64,
) -> Result<Pruned, StoreError> {
    const CALL: &str = "remove leaves";
    let date = |at: chrono::DateTime<Utc>| DateTime::from_millis(at.timestamp_millis());
    let lists = database.collection::<Document>(COLLECTION);
    let past =
        lists.find(doc! { "until": { "$lte": date(now) } }).sort(doc! { "until": 1 }).limit(limit).await;
    let past: Vec<Document> = past.map_err(failed(CALL))?.try_collect().await.map_err(failed(CALL))?;
    let mut pruned = Pruned { looked_at: past.len() as u64, ..Pruned::default() };
    let (mut gone, mut later) = (Vec::new(), Vec::new());
    for list in &past {
        let ids = classes(list).into_values().flat_map(|list| list.ids);
        let ids: Vec<ObjectId> = ids.map(|id| ObjectId::from_bytes(id.0)).collect();
        let events = database.collection::<Document>(super::events::COLLECTION);
        let there = events.find_one(doc! { "_id": { "$in": ids } }).projection(doc! { "_id": 1 }).await;
        let is_there = there.map_err(failed(CALL))?.is_some();
        let key = list.get("_id").cloned().unwrap_or(Bson::Null);
        if is_there { later.push(key) } else { gone.push(key) }
    }
    if !later.is_empty() {
        let set = doc! { "$set": { "until": date(now + LATER) } };
        lists.update_many(doc! { "_id": { "$in": later } }, set).await.map_err(failed(CALL))?;
    }
    if !gone.is_empty() {
        let removed = lists.delete_many(doc! { "_id": { "$in": gone } }).await.map_err(failed(CALL))?;
        pruned.removed = removed.deleted_count;
    }
    Ok(pruned)
}

/// The leaves of a batch, as far as there is a list that can be read.
pub async fn read(
    database: &Database,
    partition: &str,
    number: i64,
) -> Result<HashMap<Class, LeafList>, StoreError> {
    let lists = database.collection::<Document>(COLLECTION);
    let found = lists.find_one(doc! { "_id": key(partition, number) }).await;
    Ok(found.map_err(failed("read leaves"))?.as_ref().map(classes).unwrap_or_default())
}

fn classes(list: &Document) -> HashMap<Class, LeafList> {
    let class = |class: Class| {
        let of_class = list.get_document("classes").ok()?.get_document(class.as_str()).ok()?;
        let bytes = |name| match of_class.get(name) {
            Some(Bson::Binary(binary)) => Some(binary.bytes.as_slice()),
            _ => None,
        };
        let (ids, leaves) = (bytes("ids")?.as_chunks::<12>(), bytes("leaves")?.as_chunks::<32>());
        if !(ids.1.is_empty() && leaves.1.is_empty()) {
            return None;
        }
        let ids = ids.0.iter().map(|id| EventId(*id)).collect();
        Some((class, LeafList { ids, leaves: leaves.0.iter().map(|hash| Hash(*hash)).collect() }))
    };
    Class::ALL.into_iter().filter_map(class).collect()
}
