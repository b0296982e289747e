//! What became of the accepted commands, counted: lost, doubled, reordered, stuck. As strict as
//! [`crate::promise::check`], for a run that is to end with figures.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::time::Duration;

use anyhow::Result;
use futures_util::TryStreamExt;
use mongodb::bson::{Document, doc};
use taskflow_stores::mongo::events::COLLECTION;
use taskflow_stores::rabbit::topology::DEAD_LETTERS;
use tokio::time::Instant;
use uuid::Uuid;

use crate::Site;
use crate::promise::Accepted;

/// When nothing more has happened for so long, nothing will.
const STILL: Duration = Duration::from_secs(45);
/// Examples of each kind that are told.
const EXAMPLES: usize = 3;

/// Faults found. All four kinds must be empty.
#[derive(Debug, Default)]
pub struct Verdict {
    /// Accepted, and without a receipt or without its event.
    pub lost: Vec<String>,
    /// More than one effect, or an effect that nobody asked for.
    pub doubled: Vec<String>,
    /// Not applied where it stood in the order of acceptance.
    pub reordered: Vec<String>,
    /// Still on its way somewhere, or a cache that stays behind.
    pub stuck: Vec<String>,
    /// What became of the commands around the first that was not applied where it stood, one a line.
    pub around: Vec<String>,
}

impl Verdict {
    pub fn is_clean(&self) -> bool {
        [&self.lost, &self.doubled, &self.reordered, &self.stuck].iter().all(|kind| kind.is_empty())
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kinds = [
            ("lost", &self.lost),
            ("doubled", &self.doubled),
            ("reordered", &self.reordered),
            ("stuck", &self.stuck),
        ];
        for (name, found) in kinds {
            let examples = found.iter().take(EXAMPLES).cloned().collect::<Vec<_>>().join("; ");
            writeln!(f, "{} {name}: {examples}", found.len())?;
        }
        self.around.iter().try_for_each(|line| writeln!(f, "  {line}"))
    }
}

/// Waits until everything has settled, or nothing moves any more; then looks at all stores.
pub async fn examine(site: &Site, accepted: &Accepted) -> Result<Verdict> {
    settle(site, accepted.commands() as i64).await;
    let mut verdict = Verdict::default();
    leftovers(site, &mut verdict).await?;
    receipts(site, accepted, &mut verdict).await?;
    tasks(site, accepted, &mut verdict).await?;
    events(site, accepted, &mut verdict).await?;
    caches(site, accepted, &mut verdict).await?;
    if !verdict.reordered.is_empty() {
        verdict.around = around(site, accepted).await?;
    }
    Ok(verdict)
}

/// Where and when the commands were applied around the first of some subject that was not applied where it stood.
async fn around(site: &Site, accepted: &Accepted) -> Result<Vec<String>> {
    const BEFORE: usize = 20;
    const AFTER: usize = 5;
    let wrong: HashSet<Uuid> = sqlx::query_scalar("SELECT id FROM receipts WHERE outcome <> 'applied'")
        .fetch_all(&site.postgres)
        .await?
        .into_iter()
        .collect();
    let first = |ids: &[Uuid]| ids.iter().position(|id| wrong.contains(id));
    let Some((subject, ids, at)) =
        accepted.subjects.iter().find_map(|(subject, ids)| Some((subject, ids, first(ids)?)))
    else {
        return Ok(Vec::new());
    };
    let (from, to) = (at.saturating_sub(BEFORE), (at + AFTER).min(ids.len()));
    let mut lines = vec![format!("the commands {from} to {to} of {subject}:")];
    for (index, id) in ids.iter().enumerate().take(to).skip(from) {
        let line: Option<String> = sqlx::query_scalar(
            "SELECT concat_ws(' ', outcome, 'version', coalesce(version, 0), 'by', partition, batch, 'accepted', accepted_at,
                 'finished', finished_at) FROM receipts WHERE id = $1",
        )
        .bind(id)
        .fetch_optional(&site.postgres)
        .await?;
        lines.push(format!("{index}: {}", line.unwrap_or_else(|| "no receipt".to_owned())));
    }
    Ok(lines)
}

async fn settle(site: &Site, commands: i64) {
    let mut last = (0, i64::MAX);
    let mut moved = Instant::now();
    while moved.elapsed() < STILL {
        let receipts = site.count("SELECT count(*) FROM receipts").await;
        let outbox = site.count("SELECT count(*) FROM outbox").await;
        if let (Ok(receipts), Ok(outbox)) = (receipts, outbox) {
            if receipts >= commands && outbox == 0 {
                return;
            }
            if (receipts, outbox) != last {
                last = (receipts, outbox);
                moved = Instant::now();
            }
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn leftovers(site: &Site, verdict: &mut Verdict) -> Result<()> {
    let rows = site.count("SELECT count(*) FROM outbox").await?;
    if rows > 0 {
        verdict.stuck.push(format!("{rows} rows in the outbox"));
    }
    let partitions = site.partitions().await?;
    let queues = partitions.iter().map(|partition| partition.queue()).chain([DEAD_LETTERS.to_owned()]);
    for queue in queues {
        let ready = site.link.depth(&queue).await?.ready;
        if ready > 0 {
            verdict.stuck.push(format!("{ready} messages in {queue}"));
        }
    }
    let kept = site.count("SELECT count(*) FROM dead_letters WHERE state = 'kept'").await?;
    if kept > 0 {
        verdict.stuck.push(format!("{kept} dead letters"));
    }
    Ok(())
}

async fn receipts(site: &Site, accepted: &Accepted, verdict: &mut Verdict) -> Result<()> {
    let rows: Vec<(Uuid, String, Option<i32>, Option<String>)> =
        sqlx::query_as("SELECT id, outcome::text, version, detail FROM receipts")
            .fetch_all(&site.postgres)
            .await?;
    let mut receipts: HashMap<Uuid, _> =
        rows.into_iter().map(|(id, outcome, version, detail)| (id, (outcome, version, detail))).collect();
    for (subject, ids) in &accepted.subjects {
        for (index, id) in ids.iter().enumerate() {
            match receipts.remove(id) {
                None => verdict.lost.push(format!("command {index} of {subject} has no receipt")),
                Some((outcome, version, detail)) => {
                    if outcome != "applied" || version != Some(index as i32 + 1) {
                        let detail = detail.unwrap_or_default();
                        verdict.reordered.push(format!(
                            "command {index} of {subject} is {outcome}, version {version:?} {detail}"
                        ));
                    }
                }
            }
        }
    }
    for (id, (outcome, ..)) in receipts {
        verdict.doubled.push(format!("{id}, {outcome}, was never accepted"));
    }
    Ok(())
}

async fn tasks(site: &Site, accepted: &Accepted, verdict: &mut Verdict) -> Result<()> {
    let rows: Vec<(Uuid, String, i32)> =
        sqlx::query_as("SELECT id, title, version FROM tasks").fetch_all(&site.postgres).await?;
    let mut tasks: HashMap<Uuid, _> =
        rows.into_iter().map(|(id, title, version)| (id, (title, version))).collect();
    for (subject, ids) in &accepted.subjects {
        let count = ids.len() as i32;
        match tasks.remove(subject) {
            None => verdict.lost.push(format!("{subject} is not there")),
            Some((_, version)) if version > count => {
                verdict.doubled.push(format!("{subject} has version {version} after {count} commands"));
            }
            Some((_, version)) if version < count => {
                verdict.lost.push(format!("{subject} has version {version} after {count} commands"));
            }
            Some((title, _)) if title != format!("version {count}") => {
                verdict.reordered.push(format!("{subject} is called {title:?} after {count} commands"));
            }
            Some(_) => {}
        }
    }
    verdict.doubled.extend(tasks.into_keys().map(|task| format!("nobody made {task}")));
    Ok(())
}

async fn events(site: &Site, accepted: &Accepted, verdict: &mut Verdict) -> Result<()> {
    let wanted = doc! { "entityId": 1, "version": 1, "commandId": 1, "run": 1, "_id": 0 };
    let found = site.mongo.collection::<Document>(COLLECTION).find(doc! {}).projection(wanted).await?;
    let found: Vec<Document> = found.try_collect().await?;
    let mut by_command: HashMap<String, u32> = HashMap::with_capacity(found.len());
    // The audit trail's own order: the place in its partition's runs. A subject has had another partition before the
    // number of partitions changed.
    let mut by_subject: HashMap<(String, String), BTreeMap<(i64, i64), i32>> = HashMap::new();
    for event in &found {
        *by_command.entry(event.get_str("commandId")?.to_owned()).or_default() += 1;
        let run = event.get_document("run")?;
        let place = (number(run, "n"), number(run, "i"));
        let of = (event.get_str("entityId")?.to_owned(), run.get_str("p")?.to_owned());
        let versions = by_subject.entry(of).or_default();
        if versions.insert(place, event.get_i32("version")?).is_some() {
            verdict.doubled.push(format!("two events at one place: {event}"));
        }
    }
    for (subject, ids) in &accepted.subjects {
        for (index, id) in ids.iter().enumerate() {
            match by_command.remove(&id.to_string()) {
                Some(1) => {}
                None => verdict.lost.push(format!("command {index} of {subject} has no event")),
                Some(count) => verdict.doubled.push(format!("command {index} of {subject}: {count} events")),
            }
        }
    }
    for ((subject, partition), versions) in by_subject {
        let versions: Vec<i32> = versions.into_values().collect();
        if !versions.is_sorted() {
            let told = format!("the events of {subject} in {partition} have the versions {versions:?}");
            verdict.reordered.push(told);
        }
    }
    verdict.doubled.extend(by_command.into_keys().map(|id| format!("an event of {id}, never accepted")));
    Ok(())
}

fn number(run: &Document, key: &str) -> i64 {
    run.get_i64(key).or_else(|_| run.get_i32(key).map(i64::from)).unwrap_or_default()
}

/// What is cached is the newest state; it may have expired, but it may not be old.
async fn caches(site: &Site, accepted: &Accepted, verdict: &mut Verdict) -> Result<()> {
    let mut caches = site.caches().await?;
    for (subject, ids) in &accepted.subjects {
        let Some(value) = caches.get(&format!("task:{subject}")).await? else { continue };
        let value: serde_json::Value = serde_json::from_str(&value)?;
        if value["version"] != ids.len() {
            verdict.stuck.push(format!(
                "{subject} is cached with version {} after {} commands",
                value["version"],
                ids.len()
            ));
        }
    }
    Ok(())
}
