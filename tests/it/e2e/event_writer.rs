//! Events of many batches in one insert: what is wrong with one of them is its own affair.

use std::sync::Arc;

use anyhow::ensure;
use futures_util::future::join_all;
use libtest_mimic::Trial;
use serde_json::json;
use taskflow_core::Event;
use taskflow_core::command::Metadata;
use taskflow_core::event::{Data, EventId, Retention};
use taskflow_stores::mongo::event_writer::EventWriter;
use taskflow_stores::mongo::events::{Run, collection};
use taskflow_stores::{Kind, clock};
use taskflow_tests::commands::{ADMIN, id};
use taskflow_tests::{Result, Site};

use crate::with_site;

pub(crate) fn tests() -> Vec<Trial> {
    vec![with_site("a document that the audit trail refuses harms no neighbour in its insert", neighbours)]
}

const BATCHES: usize = 12;
/// The batch that has something which the collection's validator refuses.
const REFUSED: usize = 5;

async fn neighbours(site: Arc<Site>) -> Result {
    let mut batches: Vec<Vec<Event>> = (0..BATCHES).map(|_| vec![event(), event()]).collect();
    batches[REFUSED][0].entity_type = "planet".into();
    // What is there already counts as inserted.
    let again = batches[0].clone();
    batches[BATCHES - 1] = again;
    let writer = EventWriter::start(collection(&site.mongo));
    let inserts = batches
        .iter()
        .enumerate()
        .map(|(number, events)| writer.insert(Run { partition: "00", number: number as i64 }, events, None));
    for (number, inserted) in join_all(inserts).await.into_iter().enumerate() {
        match (number, inserted) {
            (REFUSED, Err(error)) => {
                let text = error.to_string();
                ensure!(error.kind == Kind::Data && text.contains("1 of 2 were refused"), "{error:?}");
            }
            (REFUSED, Ok(())) => anyhow::bail!("the validator takes anything"),
            (_, inserted) => inserted?,
        }
    }
    let there = site.events().await?.len();
    let expected = 2 * (BATCHES - 1) - 1;
    ensure!(there == expected, "{there} events and not {expected}");
    Ok(())
}

fn event() -> Event {
    let (now, command) = (clock::now(), id());
    Event {
        id: EventId::new(now, command, 0),
        kind: "task.created".into(),
        actor: ADMIN,
        entity: id(),
        entity_type: "task".into(),
        version: Some(1),
        payload: Data::new(&json!({ "title": "x" })),
        metadata: Metadata::default(),
        issued_at: now,
        correlation: command,
        command,
        traceparent: None,
        created_at: now,
        expires_at: Retention::default().expires_at("task.created", now),
    }
}
