//! The count: what became of each accepted command, by its receipt, its task's row and its events.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write;
use std::time::Duration;

use anyhow::{Context, Result};
use bson::doc;
use futures_util::TryStreamExt;
use serde::{Deserialize, Serialize};
use taskflow_core::Task;
use taskflow_stores::StoreError;
use taskflow_stores::mongo::events;
use taskflow_stores::postgres::receipts::View;
use taskflow_stores::postgres::silence::{self, ANSWER};
use taskflow_stores::postgres::tasks;
use uuid::Uuid;

use super::Run;
use super::settle::{self, IDS_AT_ONCE, Settled, is_told, missing, persist};
use super::stream::{self, Streamed};
use super::waits::explain;
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
    /// Still on its way although nothing moves: in a queue, parked, with its event in the outbox; or a dead letter. Also
    /// what nobody can tell of, since a store does not answer.
    pub stuck: usize,
    /// Subjects whose commands the broker did not take, or whose sender died: not all was checked that should be.
    #[serde(rename = "givenup")]
    pub given_up: usize,
    /// Why the run's tasks could not be deleted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub left: Option<String>,
    /// The first of what is wrong.
    pub examples: Vec<String>,
}

/// Examples that are told.
const EXAMPLES: usize = 10;

impl Count {
    fn of(sent: &Streamed) -> Self {
        let mut count = Self { accepted: sent.accepted(), ..Self::default() };
        let mut reasons: BTreeMap<&str, usize> = BTreeMap::new();
        for why in sent.given_up() {
            count.given_up += 1;
            *reasons.entry(why).or_default() += 1;
        }
        for (why, subjects) in reasons {
            count.example(format!("{subjects} subjects were given up: {why}"));
        }
        if count.accepted == 0 {
            count.example("no command was accepted: nothing was checked".into());
        }
        count
    }

    /// Whether all that was to be checked was, and nothing is wrong.
    pub(crate) fn is_clean(&self) -> bool {
        let wrong = self.lost + self.doubled + self.reordered + self.stuck + self.given_up;
        self.accepted > 0 && wrong == 0 && self.left.is_none()
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
        if self.given_up > 0 {
            let _ = writeln!(text, "{:<10} {:>9}", "given up", self.given_up);
        }
        if let Some(why) = &self.left {
            let _ = writeln!(text, "  the run's tasks could not be deleted: {why}");
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
/// With `delete` the run's tasks are deleted before their rows and events are read ([`delete_tasks`]).
pub(crate) async fn count(
    stores: &Stores,
    run: Run,
    sent: &Streamed,
    patience: Duration,
    delete: bool,
    tell: impl Fn(usize),
) -> Count {
    let mut count = Count::of(sent);
    let Settled { mut found, unread } = settle::settle(stores, sent.ids(), patience, tell).await;
    check_receipts(stores, sent, &mut found, unread, &mut count).await;
    if delete {
        delete_tasks(stores, run, sent, &found, patience, &mut count).await;
    }
    let rows = persist(patience, async || read_rows(stores, sent).await).await;
    let told = persist(patience, async || read_events(stores, run).await).await;
    let mut unread = Vec::new();
    match rows {
        Ok(rows) => check_rows(&rows, sent, &found, &mut count),
        Err(error) => unread.push(error.to_string()),
    }
    match told {
        Ok(told) => check_events(told, sent, &found, &mut count),
        Err(error) => unread.push(format!("{error:#}")),
    }
    if !unread.is_empty() {
        // Whether these took effect as they should, nobody can tell.
        count.stuck += count.applied;
        let why = unread.join("; ");
        // In front: it must be told, however many others there are.
        count.examples.insert(0, format!("{} applied commands could not be checked: {why}", count.applied));
        count.examples.truncate(EXAMPLES);
    }
    count
}

/// Deletes the run's tasks. A deletion is the last that was sent of its subject: once it has ended, and its event is in
/// the audit trail, so has every earlier command that was sent once more, and what it did wrong shows.
async fn delete_tasks(
    stores: &Stores,
    run: Run,
    sent: &Streamed,
    found: &HashMap<Uuid, View>,
    patience: Duration,
    count: &mut Count,
) {
    let mut marks = match run.clean_up(stores, sent, patience).await {
        Ok(marks) => marks,
        Err(error) => {
            count.left = Some(error.to_string());
            return;
        }
    };
    // Behind a command that is stuck the deletion is too: that is told already.
    marks.retain(|(subject, _)| {
        sent.subjects.get(subject).is_some_and(|one| missing(one, found).next().is_none())
    });
    let ids = marks.iter().map(|(_, id)| *id);
    let ended = settle::settle(stores, ids, patience, |_| {}).await.found;
    for (subject, id) in marks {
        if ended.get(&id).is_none_or(|receipt| !is_told(receipt)) {
            count.stuck += 1;
            count.example(format!(
                "the deletion of task {subject} ({id}) has not come to its end: what was sent twice may be \
                 before it"
            ));
        }
    }
}

async fn check_receipts(
    stores: &Stores,
    sent: &Streamed,
    found: &mut HashMap<Uuid, View>,
    unread: Option<StoreError>,
    count: &mut Count,
) {
    let known = match unread {
        Some(error) => Err(error),
        None => explain(stores, sent, found).await,
    };
    let found: &HashMap<Uuid, View> = found;
    for (subject, one) in &sent.subjects {
        for id in missing(one, found) {
            let why = match &known {
                Ok(known) => known.get(&id).cloned(),
                Err(error) => Some(format!("what keeps it can't be told ({error})")),
            };
            match why {
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
}

async fn read_rows(stores: &Stores, sent: &Streamed) -> Result<HashMap<Uuid, Task>, StoreError> {
    let call = "read the run's tasks";
    let subjects: Vec<Uuid> = sent.subjects.keys().copied().collect();
    let mut rows: HashMap<Uuid, Task> = HashMap::new();
    for some in subjects.chunks(IDS_AT_ONCE) {
        let asked = async {
            let acquired = stores.postgres.acquire().await;
            let mut connection =
                acquired.map_err(|error| StoreError::unavailable("postgres", call, error))?;
            tasks::read_many(&mut connection, some).await
        };
        let tasks: Vec<Task> = silence::within(ANSWER, call, asked).await?;
        rows.extend(tasks.into_iter().map(|task| (task.id, task)));
    }
    Ok(rows)
}

fn check_rows(rows: &HashMap<Uuid, Task>, sent: &Streamed, found: &HashMap<Uuid, View>, count: &mut Count) {
    for (subject, one) in &sent.subjects {
        let is_applied = |id: &&Uuid| found.get(id).is_some_and(|receipt| receipt.status == "applied");
        let least = one.accepted.iter().filter(is_applied).count() as i32;
        let most = (one.accepted.len() + usize::from(one.given_up.is_some())) as i32;
        let Some(task) = rows.get(subject) else {
            if least > 0 {
                count.lost += least as usize;
                count.example(format!("task {subject} is not there after {least} commands"));
            }
            continue;
        };
        // The deletion at the end is a change as well, and none of the stream's.
        let version = task.version - i32::from(task.deleted_at.is_some());
        if version > most {
            count.doubled += (version - most) as usize;
            count.example(format!("task {subject} has version {version} after {most} commands"));
        } else if version < least {
            count.lost += (least - version) as usize;
            count.example(format!("task {subject} has version {version} after {least} applied commands"));
        }
        if task.title != stream::title(version) {
            count.reordered += 1;
            count.example(format!("task {subject} has version {version} and is called {:?}", task.title));
        }
    }
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

async fn read_events(stores: &Stores, run: Run) -> Result<Vec<Told>> {
    let collection = stores.mongo.collection::<Told>(events::COLLECTION);
    let fields = doc! { "commandId": 1, "entityId": 1, "version": 1, "run": 1 };
    let all = collection.find(doc! { "correlationId": run.id.to_string() }).projection(fields);
    all.await.context("mongodb")?.try_collect().await.context("mongodb")
}

fn check_events(mut all: Vec<Told>, sent: &Streamed, found: &HashMap<Uuid, View>, count: &mut Count) {
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
    for id in sent.ids() {
        let told = times.get(id.to_string().as_str()).copied().unwrap_or(0);
        let applied = found.get(&id).filter(|receipt| receipt.status == "applied");
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
}
