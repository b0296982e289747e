//! The count: what became of each accepted command, by its receipt, its task's row and its events.

use std::collections::{HashMap, HashSet};
use std::fmt::Write;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use bson::doc;
use chrono::{DateTime, Utc};
use futures_util::TryStreamExt;
use serde::{Deserialize, Serialize};
use taskflow_core::Task;
use taskflow_core::command::Priority;
use taskflow_core::partition::{Course, Partition};
use taskflow_stores::mongo::events;
use taskflow_stores::postgres::receipts::{self, View};
use taskflow_stores::postgres::{layout, leases, tasks, waiting};
use uuid::Uuid;

use super::Run;
use super::stream::{self, Sent};
use crate::connect::Stores;

/// What a run found.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Count {
    pub accepted: usize,
    pub applied: usize,
    /// Accepted, and nowhere any more: no receipt although its partition has gone on; or applied, and without its effect
    /// on the row, or without its event although the audit trail has the batch.
    pub lost: usize,
    /// With more than one event, or a row that was changed more often than there were commands.
    pub doubled: usize,
    /// Applied at another place than sent, refused since one before it was missing, or told in another order.
    pub reordered: usize,
    /// Still on its way although nothing moves: in a queue, parked, with its event in the outbox; or a dead letter.
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

    /// For people: a line a figure, then what is wrong.
    pub(crate) fn table(&self) -> String {
        let figures = [
            ("accepted", self.accepted),
            ("applied", self.applied),
            ("lost", self.lost),
            ("doubled", self.doubled),
            ("reordered", self.reordered),
            ("stuck", self.stuck),
        ];
        let mut text = String::new();
        for (name, value) in figures {
            let _ = writeln!(text, "{name:<10} {value:>9}");
        }
        for example in &self.examples {
            text = text + "  " + example + "\n";
        }
        text
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
    check_receipts(stores, sent, &found, &mut count).await?;
    check_rows(stores, sent, &found, &mut count).await?;
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

async fn check_receipts(
    stores: &Stores,
    sent: &HashMap<Uuid, Sent>,
    found: &HashMap<Uuid, View>,
    count: &mut Count,
) -> Result<()> {
    let open: Vec<Uuid> = sent.values().flat_map(|one| missing(one, found)).collect();
    let waits = if open.is_empty() { Waits::default() } else { Waits::look(stores, &open).await? };
    for (subject, one) in sent {
        for id in missing(one, found) {
            match waits.why(id, *subject, one) {
                Some(why) => {
                    count.stuck += 1;
                    count.example(format!("command {id} of {subject} has no receipt: {why}"));
                }
                None => {
                    count.lost += 1;
                    count.example(format!(
                        "command {id} of {subject} has no receipt, and is nowhere any more"
                    ));
                }
            }
        }
        for (place, id) in one.accepted.iter().enumerate() {
            let Some(receipt) = found.get(id) else { continue };
            let (status, version) = (receipt.status.as_str(), receipt.version);
            match status {
                "applied" if version == Some(place as i32 + 1) => {
                    count.applied += 1;
                    continue;
                }
                "dead" => count.stuck += 1,
                _ => count.reordered += 1,
            }
            let code = receipt.code.as_deref().unwrap_or_default();
            count.example(format!(
                "command {} of {subject} ({id}) is {status} {code}, version {version:?}",
                place + 1
            ));
        }
    }
    Ok(())
}

fn missing(one: &Sent, found: &HashMap<Uuid, View>) -> impl Iterator<Item = Uuid> {
    one.accepted.iter().filter(|id| !found.contains_key(id)).copied()
}

/// Where a command without a receipt may still be.
#[derive(Default)]
struct Waits {
    /// The partitions, and those that they change to.
    course: Option<Course>,
    waiting: HashSet<Uuid>,
    /// Messages that are ready, by queue; the broker's words if it does not answer.
    queues: HashMap<String, u32>,
    broker: Option<String>,
    /// What was accepted before is finished, by partition that somebody works on.
    reached: HashMap<String, DateTime<Utc>>,
}

impl Waits {
    async fn look(stores: &Stores, missing: &[Uuid]) -> Result<Self> {
        let mut waits = Self::default();
        for some in missing.chunks(IDS_AT_ONCE) {
            waits
                .waiting
                .extend(waiting::read_many(&stores.postgres, some).await?.iter().map(|view| view.id));
        }
        waits.reached = leases::reached(&stores.postgres).await?.into_iter().collect();
        let course = layout::course(&stores.postgres, stores.rabbit.layout()).await?;
        for partition in course.declared() {
            match stores.consume.find(&partition.queue()).await {
                Ok(depth) => {
                    waits.queues.insert(partition.queue(), depth.map_or(0, |depth| depth.ready));
                }
                Err(error) => waits.broker = Some(error.to_string()),
            }
        }
        waits.course = Some(course);
        Ok(waits)
    }

    /// Why a command has not ended; `None` if nothing keeps it: then it is lost.
    fn why(&self, id: Uuid, subject: Uuid, one: &Sent) -> Option<String> {
        if self.waiting.contains(&id) {
            return Some("it is parked or scheduled".into());
        }
        if let Some(error) = &self.broker {
            return Some(format!("the broker may have it, and does not answer ({error})"));
        }
        let Some(course) = &self.course else { return Some("where it is was not looked at".into()) };
        let low = one.priority == Priority::Low;
        let either = [course.from, course.to].map(|layout| layout.of_subject(low, subject));
        either.into_iter().find_map(|partition| self.stands(partition, one))
    }

    /// Why a partition may not have come to a subject's commands.
    fn stands(&self, partition: Partition, one: &Sent) -> Option<String> {
        match self.queues.get(&partition.queue()) {
            Some(0) | None => {}
            Some(ready) => return Some(format!("{ready} messages wait in {}", partition.queue())),
        }
        match self.reached.get(&partition.to_string()) {
            None => Some(format!("nobody works on partition {partition}")),
            Some(at) if *at < one.newest_at => Some(format!("partition {partition} stands at {at}")),
            Some(_) => None,
        }
    }
}

async fn check_rows(
    stores: &Stores,
    sent: &HashMap<Uuid, Sent>,
    found: &HashMap<Uuid, View>,
    count: &mut Count,
) -> Result<()> {
    let subjects: Vec<Uuid> = sent.keys().copied().collect();
    let mut rows: HashMap<Uuid, Task> = HashMap::new();
    for some in subjects.chunks(IDS_AT_ONCE) {
        let mut connection = stores.postgres.acquire().await.context("postgres")?;
        rows.extend(tasks::read_many(&mut connection, some).await?.into_iter().map(|task| (task.id, task)));
    }
    for (subject, one) in sent {
        let is_applied = |id: &&Uuid| found.get(id).is_some_and(|receipt| receipt.status == "applied");
        let least = one.accepted.iter().filter(is_applied).count() as i32;
        let most = (one.accepted.len() + usize::from(one.one_more)) as i32;
        let Some(task) = rows.get(subject) else {
            if least > 0 {
                count.lost += least as usize;
                count.example(format!("task {subject} is not there after {least} commands"));
            }
            continue;
        };
        if task.version > most {
            count.doubled += (task.version - most) as usize;
            count.example(format!("task {subject} has version {} after {most} commands", task.version));
        } else if task.version < least {
            count.lost += (least - task.version) as usize;
            count.example(format!(
                "task {subject} has version {} after {least} applied commands",
                task.version
            ));
        }
        if task.title != stream::title(task.version) {
            count.reordered += 1;
            count.example(format!(
                "task {subject} has version {} and is called {:?}",
                task.version, task.title
            ));
        }
    }
    Ok(())
}

/// An event, as far as the count needs it.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Told {
    command_id: String,
    entity_id: String,
    version: Option<i32>,
    run: Place,
}

/// Where an event stands among the batches of its partition.
#[derive(Debug, Deserialize, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    p: String,
    n: i64,
    i: i32,
}

async fn check_events(
    stores: &Stores,
    run: Run,
    sent: &HashMap<Uuid, Sent>,
    found: &HashMap<Uuid, View>,
    count: &mut Count,
) -> Result<()> {
    let collection = stores.mongo.collection::<Told>(events::COLLECTION);
    let fields = doc! { "commandId": 1, "entityId": 1, "version": 1, "run": 1 };
    let all = collection.find(doc! { "correlationId": run.id.to_string() }).projection(fields);
    let mut all: Vec<Told> = all.await.context("mongodb")?.try_collect().await.context("mongodb")?;
    all.sort_by(|a, b| a.run.cmp(&b.run));
    let mut times: HashMap<&str, usize> = HashMap::new();
    let mut newest: HashMap<&str, &Told> = HashMap::new();
    for event in &all {
        *times.entry(&event.command_id).or_default() += 1;
        let before = newest.insert(&event.entity_id, event);
        // The numbers of two partitions can't be compared.
        if before.is_some_and(|before| before.run.p == event.run.p && before.version > event.version) {
            count.reordered += 1;
            count.example(format!(
                "the audit trail has version {:?} of {} too late",
                event.version, event.entity_id
            ));
        }
    }
    for id in sent.values().flat_map(|one| &one.accepted) {
        let told = times.get(id.to_string().as_str()).copied().unwrap_or(0);
        let applied = found.get(id).filter(|receipt| receipt.status == "applied");
        match (told, applied) {
            (0, Some(receipt)) if receipt.auditedat.is_some() => {
                count.lost += 1;
                count.example(format!("command {id} was applied, the audit trail does not know of it"));
            }
            (0, Some(_)) => {
                count.stuck += 1;
                count.example(format!("command {id} was applied, its event still waits in the outbox"));
            }
            (0 | 1, _) => {}
            (more, _) => {
                count.doubled += more - 1;
                count.example(format!("command {id} has {more} events"));
            }
        }
    }
    Ok(())
}
