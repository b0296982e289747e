//! Events that restores have set apart, and the links that vouch for them from then on: each mark names its link of the
//! chain of the system's events, and its place in it.

use std::collections::HashMap;

use chrono::{DateTime, TimeDelta, Utc};
use futures_util::TryStreamExt;
use mongodb::bson::oid::ObjectId;
use mongodb::bson::raw::RawDocument;
use mongodb::bson::{RawDocumentBuf, doc};
use mongodb::options::Hint;
use mongodb::{Cursor, Database};
use taskflow_core::audit::apart::{Apart, Group};
use taskflow_core::audit::link;

use super::events::{self, COLLECTION, Run, durable, insert_new};
use super::gap::SYSTEM;
use super::undone::FIELD;
use super::updates::update;
use super::{audit_leaves, audit_trail, failed};
use crate::StoreError;

/// Events of one link were made within this: when their time is over they may be gone together.
const SPAN: TimeDelta = TimeDelta::hours(1);

/// An event that bears a mark.
#[derive(Debug, Clone, Copy)]
pub struct Marked {
    pub apart: Apart,
    /// The link that its mark names.
    pub link: Option<i64>,
    expires_ms: i64,
}

/// Events that bear a mark, by the time when they were made.
pub struct Marks {
    events: Cursor<RawDocumentBuf>,
    /// Read already, and of the next group.
    held: Option<Marked>,
}

/// Begins to read the events with a mark that were made from a time on. Those that have not the form in which events are
/// written are left out: nothing can vouch for them.
pub async fn read(database: &Database, since: DateTime<Utc>) -> Result<Marks, StoreError> {
    let mut filter = events::since(since);
    filter.insert(FIELD, doc! { "$exists": true });
    let found = database
        .collection::<RawDocumentBuf>(COLLECTION)
        .find(filter)
        .sort(doc! { "createdAt": 1, "_id": 1 })
        .hint(Hint::Name("createdAt_id".to_owned()))
        .await;
    Ok(Marks { events: found.map_err(failed("read undone events"))?, held: None })
}

impl Marks {
    /// The next ones that may share a link, `most` at most; none at the end.
    pub async fn next(&mut self, most: usize) -> Result<Vec<Marked>, StoreError> {
        let mut group: Vec<Marked> = self.held.take().into_iter().collect();
        while group.len() < most {
            let Some(event) = self.events.try_next().await.map_err(failed("read undone events"))? else {
                break;
            };
            let Some(event) = marked(&event) else { continue };
            let begun_ms = group.first().map_or(event.apart.created_ms, |first| first.apart.created_ms);
            if event.apart.created_ms - begun_ms > SPAN.num_milliseconds() {
                self.held = Some(event);
                break;
            }
            group.push(event);
        }
        Ok(group)
    }
}

fn marked(event: &RawDocument) -> Option<Marked> {
    Some(Marked {
        apart: audit_trail::apart(event)?,
        link: event.get_document(FIELD).ok()?.get_i64("n").ok(),
        expires_ms: event.get_datetime("expiresAt").ok()?.timestamp_millis(),
    })
}

/// Writes into the marks of some events that they stand under a link, and beside them the list of their leaves. Returns
/// the link's text. It may be done again, under another number.
pub async fn name_link(database: &Database, number: i64, events: &[Marked]) -> Result<String, StoreError> {
    const CALL: &str = "link undone events";
    let apart: Vec<Apart> = events.iter().map(|event| event.apart).collect();
    let group = Group::of(&apart);
    let run = Run { partition: SYSTEM, number };
    let until_ms = events.iter().map(|event| event.expires_ms).max().unwrap_or_default();
    let lists: HashMap<_, _> = group.lists.into_iter().filter(|(_, list)| list.ids.len() > 1).collect();
    if let Some(list) = audit_leaves::document(run, &lists, until_ms) {
        insert_new(&durable(database, audit_leaves::COLLECTION), &[list], CALL).await?;
    }
    let updates = apart.iter().zip(&group.places).map(|(event, place)| {
        let leaf = i32::try_from(*place).unwrap_or(i32::MAX);
        let set = doc! { format!("{FIELD}.n"): number, format!("{FIELD}.leaf"): leaf };
        doc! { "q": { "_id": ObjectId::from_bytes(event.id.0) }, "u": { "$set": set } }
    });
    update(database, COLLECTION, updates.collect(), CALL).await?;
    Ok(link::text(&group.classes))
}
