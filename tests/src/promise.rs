//! The promise, checked from outside: nothing lost, nothing doubled, nothing out of order, all stores agree.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::json;
use taskflow_core::envelope;
use taskflow_stores::clock;
use taskflow_stores::postgres::PgPool;
use taskflow_stores::rabbit::publish::{Message, Publisher};
use taskflow_stores::rabbit::topology::SLOTS;
use tokio::task::JoinSet;
use tokio_util::task::AbortOnDropHandle;
use uuid::Uuid;

use crate::commands::{command, subject_in_slot};
use crate::{Site, wait};

/// What was accepted: the commands of each subject, in order.
#[derive(Debug, Default)]
pub struct Accepted {
    pub subjects: HashMap<Uuid, Vec<Uuid>>,
    /// Commands that the test has sent beside the stream, and that change nothing.
    pub others: usize,
}

impl Accepted {
    pub fn commands(&self) -> usize {
        self.subjects.values().map(Vec::len).sum()
    }

    /// What was accepted of two streams.
    #[must_use]
    pub fn and(mut self, other: Self) -> Self {
        self.subjects.extend(other.subjects);
        self.others += other.others;
        self
    }
}

/// A stream of dependent updates: every command names the version that its predecessor leaves behind, so that one
/// that is lost, doubled or out of order makes the rest fail.
///
/// It is never further ahead of the receipts than [`LEAD`]: on a slow machine what is sent would else be more than can
/// be applied in the time that a test has.
pub struct Stream {
    tasks: JoinSet<Result<(Uuid, Vec<Uuid>)>>,
    enough: Arc<AtomicBool>,
    /// Counts receipts until the end.
    _look: AbortOnDropHandle<()>,
}

/// Commands that a stream is ahead at most, as far as its own looks tell: more than all prefetches of a worker that
/// stands still hold, or nothing would be left for its successor.
const LEAD: usize = 4_000;
const LOOK_EVERY: Duration = Duration::from_millis(100);

impl Stream {
    /// Publishes to `subjects` subjects at once, until [`Stream::end`] and at least `least` commands each. A command
    /// whose confirm does not come is published again under the same id before the next one.
    pub fn start(site: &Site, subjects: usize, least: usize) -> Self {
        Self::start_over(site, SLOTS, subjects, least, Duration::ZERO)
    }

    /// The same, published to this exchange (that of our own intake, or the one for other systems), with a pause between
    /// two commands of a subject.
    pub fn start_over(
        site: &Site,
        exchange: &'static str,
        subjects: usize,
        least: usize,
        pause: Duration,
    ) -> Self {
        let enough = Arc::new(AtomicBool::new(false));
        let lead = Arc::new(Lead::default());
        let mut tasks = JoinSet::new();
        for number in 0..subjects {
            let subject = subject_in_slot((number * 37 % 256) as u8);
            let way = Way { publisher: site.publisher.clone(), exchange, pause };
            tasks.spawn(publish(way, subject, least, Arc::clone(&enough), Arc::clone(&lead)));
        }
        let look = tokio::spawn(look(site.postgres.clone(), lead));
        Self { tasks, enough, _look: AbortOnDropHandle::new(look) }
    }

    /// Ends the stream; returns what was accepted.
    pub async fn end(mut self) -> Result<Accepted> {
        self.enough.store(true, Ordering::SeqCst);
        let mut accepted = Accepted::default();
        while let Some(ended) = self.tasks.join_next().await {
            let (subject, ids) = ended??;
            accepted.subjects.insert(subject, ids);
        }
        Ok(accepted)
    }
}

/// How far a stream is ahead.
#[derive(Default)]
struct Lead {
    accepted: AtomicUsize,
    receipts: AtomicUsize,
}

impl Lead {
    fn is_long(&self) -> bool {
        self.accepted.load(Ordering::SeqCst) >= self.receipts.load(Ordering::SeqCst) + LEAD
    }
}

/// While Postgres does not answer, what it has said last counts.
async fn look(postgres: PgPool, lead: Arc<Lead>) {
    loop {
        let count = sqlx::query_scalar::<_, i64>("SELECT count(*) FROM receipts").fetch_one(&postgres).await;
        if let Ok(count) = count {
            lead.receipts.store(usize::try_from(count).unwrap_or_default(), Ordering::SeqCst);
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// How a stream is published.
struct Way {
    publisher: Publisher,
    exchange: &'static str,
    pause: Duration,
}

async fn publish(
    way: Way,
    subject: Uuid,
    least: usize,
    enough: Arc<AtomicBool>,
    lead: Arc<Lead>,
) -> Result<(Uuid, Vec<Uuid>)> {
    let mut ids = Vec::new();
    while ids.len() < least || !enough.load(Ordering::SeqCst) {
        if ids.len() >= least && lead.is_long() {
            tokio::time::sleep(LOOK_EVERY).await;
            continue;
        }
        let version = ids.len();
        let value = match version {
            0 => command("task.create", subject, json!({ "title": "version 1" })),
            _ => command(
                "task.update",
                subject,
                json!({
                    "title": format!("version {}", version + 1), "expectedversion": version,
                }),
            ),
        };
        let command = envelope::read(value)?;
        let mut tries = 0;
        let message =
            || Message { exchange: way.exchange.into(), ..Message::command(&command, clock::now(), None) };
        while let Err(error) = way.publisher.publish(message()).await {
            tries += 1;
            ensure!(tries < 600, "the broker does not take commands: {error}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        ids.push(command.id);
        lead.accepted.fetch_add(1, Ordering::SeqCst);
        tokio::time::sleep(way.pause).await;
    }
    Ok((subject, ids))
}

/// Waits until everything has settled, then checks every part of the promise.
pub async fn check(site: &Site, accepted: &Accepted) -> Result<()> {
    let expected = (accepted.commands() + accepted.others) as i64;
    wait::until("every command has its receipt", async || {
        let have = site.count("SELECT count(*) FROM receipts").await?;
        ensure!(have >= expected, "{have} receipts of {expected}");
        Ok(true)
    })
    .await?;
    wait::until("the outbox is empty", async || Ok(site.count("SELECT count(*) FROM outbox").await? == 0))
        .await?;

    let rows: Vec<(Uuid, String, Option<i32>, i16)> =
        sqlx::query_as("SELECT id, outcome::text, version, events FROM receipts")
            .fetch_all(&site.postgres)
            .await?;
    let receipts: HashMap<Uuid, (String, Option<i32>, i16)> =
        rows.into_iter().map(|(id, outcome, version, events)| (id, (outcome, version, events))).collect();
    ensure!(receipts.len() as i64 == expected, "{} receipts for {expected} commands", receipts.len());
    for (subject, ids) in &accepted.subjects {
        for (index, id) in ids.iter().enumerate() {
            let (outcome, version, _) = receipts.get(id).with_context(|| format!("{id} has no receipt"))?;
            ensure!(outcome == "applied", "command {index} of {subject} is {outcome}");
            ensure!(
                *version == Some(index as i32 + 1),
                "command {index} of {subject} left version {version:?}"
            );
        }
        let (title, version): (String, i32) =
            sqlx::query_as("SELECT title, version FROM tasks WHERE id = $1")
                .bind(subject)
                .fetch_one(&site.postgres)
                .await?;
        ensure!(
            version as usize == ids.len(),
            "{subject} has version {version} after {} commands",
            ids.len()
        );
        ensure!(title == format!("version {version}"), "{subject} is called {title:?}");
    }
    check_events(site, accepted).await?;
    check_caches(site, accepted).await
}

async fn check_events(site: &Site, accepted: &Accepted) -> Result<()> {
    let events = site.events().await?;
    ensure!(
        events.len() == accepted.commands(),
        "{} events for {} commands",
        events.len(),
        accepted.commands()
    );
    // A subject has had another partition before the number of partitions changed.
    let mut versions: HashMap<String, BTreeMap<String, Vec<i32>>> = HashMap::new();
    let mut commands = BTreeSet::new();
    for event in &events {
        let partition = event.get_document("run")?.get_str("p")?.to_owned();
        let of_subject = versions.entry(event.get_str("entityId")?.to_owned()).or_default();
        of_subject.entry(partition).or_default().push(event.get_i32("version")?);
        commands.insert(event.get_str("commandId")?.to_owned());
    }
    ensure!(commands.len() == events.len(), "a command has two events");
    for (subject, ids) in &accepted.subjects {
        let seen = versions.get(&subject.to_string()).context("a subject without events")?;
        ensure!(seen.values().all(|versions| versions.is_sorted()), "the events of {subject}: {seen:?}");
        let all: BTreeSet<i32> = seen.values().flatten().copied().collect();
        let expected: BTreeSet<i32> = (1..=ids.len() as i32).collect();
        ensure!(all == expected, "the events of {subject} have the versions {seen:?}");
    }
    Ok(())
}

/// What is cached is the newest state; it may have expired, but it may not be old.
async fn check_caches(site: &Site, accepted: &Accepted) -> Result<()> {
    for (subject, ids) in &accepted.subjects {
        if let Some(value) = site.cached(&format!("task:{subject}")).await? {
            let value: serde_json::Value = serde_json::from_str(&value)?;
            ensure!(
                value["version"] == ids.len(),
                "task:{subject} is cached with version {}",
                value["version"]
            );
        }
    }
    Ok(())
}
