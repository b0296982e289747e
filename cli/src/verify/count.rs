//! The count: what became of each accepted command, by its receipt, its task's row and its events.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use bson::{Document, doc};
use futures_util::TryStreamExt;
use serde::Serialize;
use taskflow_stores::mongo::events;
use taskflow_stores::postgres::receipts::{self, View};
use taskflow_stores::postgres::{layout, tasks, waiting};
use uuid::Uuid;

use super::Run;
use super::stream::{self, Sent};
use crate::connect::Stores;

/// What a run found.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Count {
    pub accepted: usize,
    pub applied: usize,
    /// Accepted, without a receipt, and nowhere any more; or applied without its event.
    pub lost: usize,
    /// With more than one event, or a row that was changed more often than there were commands.
    pub doubled: usize,
    /// Applied at another place than sent, or refused since one before it was missing.
    pub reordered: usize,
    /// Accepted, without a receipt, and still waiting although nothing moves.
    pub stuck: usize,
    /// The first of what is wrong.
    pub examples: Vec<String>,
}

/// Examples that are told.
const EXAMPLES: usize = 10;
const IDS_AT_ONCE: usize = 5_000;

impl Count {
    pub(crate) fn is_clean(&self) -> bool {
        self.lost + self.doubled + self.reordered + self.stuck == 0
    }

    fn example(&mut self, text: String) {
        if self.examples.len() < EXAMPLES {
            self.examples.push(text);
        }
    }
}

/// Waits until everything has ended, or nothing has for `patience`; then counts. Stores that are away are waited for.
pub(crate) async fn count(
    stores: &Stores,
    run: Run,
    sent: &HashMap<Uuid, Sent>,
    patience: Duration,
    tell: impl Fn(usize),
) -> Result<Count> {
    let found = settle(stores, sent, patience, tell).await;
    let mut count = Count { accepted: sent.values().map(|one| one.accepted.len()).sum(), ..Count::default() };
    let missing = sent.values().flat_map(|one| &one.accepted).filter(|id| !found.contains_key(id)).count();
    if missing > 0 {
        if anything_waits(stores).await? {
            count.stuck = missing;
        } else {
            count.lost = missing;
        }
        count.example(format!("{missing} commands have no receipt"));
    }
    for (subject, one) in sent {
        for (place, receipt) in
            one.accepted.iter().enumerate().filter_map(|(place, id)| Some((place, found.get(id)?)))
        {
            if receipt.status == "applied" && receipt.version == Some(place as i32 + 1) {
                count.applied += 1;
            } else {
                count.reordered += 1;
                let (id, version, status) = (receipt.id, receipt.version, &receipt.status);
                let code = receipt.code.as_deref().unwrap_or_default();
                count.example(format!(
                    "command {} of {subject} ({id}) is {status} {code}, version {version:?}",
                    place + 1
                ));
            }
        }
    }
    check_rows(stores, sent, &mut count).await?;
    check_events(stores, run, sent, &found, &mut count).await?;
    Ok(count)
}

/// Reads receipts until all are there and audited, or nothing has changed for `patience`.
async fn settle(
    stores: &Stores,
    sent: &HashMap<Uuid, Sent>,
    patience: Duration,
    tell: impl Fn(usize),
) -> HashMap<Uuid, View> {
    let mut found: HashMap<Uuid, View> = HashMap::new();
    let mut open: HashSet<Uuid> = sent.values().flat_map(|one| &one.accepted).copied().collect();
    let mut deadline = Instant::now() + patience;
    while !open.is_empty() && Instant::now() < deadline {
        let before = (open.len(), found.len());
        let ids: Vec<Uuid> = open.iter().copied().collect();
        for some in ids.chunks(IDS_AT_ONCE) {
            // A store that is away now may be back before the patience ends.
            for receipt in receipts::read_many(&stores.postgres, some).await.unwrap_or_default() {
                if receipt.events.is_empty() || receipt.auditedat.is_some() {
                    open.remove(&receipt.id);
                }
                found.insert(receipt.id, receipt);
            }
        }
        tell(found.len());
        if (open.len(), found.len()) != before {
            deadline = Instant::now() + patience;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    found
}

async fn anything_waits(stores: &Stores) -> Result<bool> {
    let (parked, scheduled) = waiting::count(&stores.postgres).await?;
    let course = layout::course(&stores.postgres, stores.rabbit.layout()).await?;
    for partition in course.declared() {
        if stores.consume.find(&partition.queue()).await?.is_some_and(|depth| depth.ready > 0) {
            return Ok(true);
        }
    }
    Ok(parked + scheduled > 0 || !course.is_settled())
}

async fn check_rows(stores: &Stores, sent: &HashMap<Uuid, Sent>, count: &mut Count) -> Result<()> {
    let subjects: Vec<Uuid> = sent.keys().copied().collect();
    for some in subjects.chunks(IDS_AT_ONCE) {
        let mut connection = stores.postgres.acquire().await.context("postgres")?;
        for task in tasks::read_many(&mut connection, some).await? {
            let most =
                sent.get(&task.id).map_or(0, |one| one.accepted.len() + usize::from(one.one_more)) as i32;
            if task.version > most {
                count.doubled += (task.version - most) as usize;
                count.example(format!("task {} has version {} after {most} commands", task.id, task.version));
            }
            if task.title != stream::title(task.version) {
                count.reordered += 1;
                count.example(format!(
                    "task {} has version {} and is called {:?}",
                    task.id, task.version, task.title
                ));
            }
        }
    }
    Ok(())
}

async fn check_events(
    stores: &Stores,
    run: Run,
    sent: &HashMap<Uuid, Sent>,
    found: &HashMap<Uuid, View>,
    count: &mut Count,
) -> Result<()> {
    let mut events: HashMap<String, usize> = HashMap::new();
    let collection = stores.mongo.collection::<Document>(events::COLLECTION);
    let cursor =
        collection.find(doc! { "correlationId": run.id.to_string() }).projection(doc! { "commandId": 1 });
    let mut cursor = cursor.await.context("mongodb")?;
    while let Some(event) = cursor.try_next().await.context("mongodb")? {
        *events.entry(event.get_str("commandId").unwrap_or_default().to_owned()).or_default() += 1;
    }
    for id in sent.values().flat_map(|one| &one.accepted) {
        let told = events.get(&id.to_string()).copied().unwrap_or(0);
        let applied = found.get(id).is_some_and(|receipt| receipt.status == "applied");
        if told > 1 {
            count.doubled += told - 1;
            count.example(format!("command {id} has {told} events"));
        } else if told == 0 && applied {
            count.lost += 1;
            count.example(format!("command {id} was applied, the audit trail does not know of it"));
        }
    }
    Ok(())
}
