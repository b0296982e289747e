//! After Postgres has gone back in time: the other stores are brought to agree with it, and what differs is listed.
//!
//! Postgres says what is true. An event of a command that has no receipt, and whose batch is no link of the chain (a
//! receipt may have been removed for its age), tells of what has not happened: it is marked with the epoch of this restore
//! and kept apart, under an id of its own. So is an event of the system itself whose link
//! went back with its chain: Postgres does not know any more what it tells of, or is about to deliver it again. What is set
//! apart gets links of its own in the chain of the system's events, so that the seals vouch for it as for all else. Events
//! that should be there and are not (MongoDB went back further than Postgres) are listed; what of them still lies in the
//! outbox comes by itself. Epochs of leases and numbers of batches jump beyond everything that was ever used, and the
//! caches are emptied: they may be ahead of the data.
//!
//! Every step may be done again; a run that was broken off goes on in its own epoch.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, TimeDelta, Utc};
use serde::Serialize;
use serde_json::json;
use taskflow_core::event::EventId;
use taskflow_core::system_event;
use taskflow_stores::clock;
use taskflow_stores::mongo::retention::Subject;
use taskflow_stores::mongo::undone::{self, By, Told};
use taskflow_stores::mongo::{Database, apart, erasure, refill};
use taskflow_stores::postgres::audit_chain::{self, Addition};
use taskflow_stores::postgres::restore_epochs::{self as epochs, Outcome};
use taskflow_stores::postgres::{PgPool, audit_seals};
use taskflow_stores::redis::Redis;
use uuid::Uuid;

use crate::error::{Error, Result};
use crate::progress::Progress;

/// Commands were in a transaction for no longer than this before it was committed, and clocks differ by no more.
const MARGIN: TimeDelta = TimeDelta::minutes(10);
/// Events and receipts compared at a time.
const BATCH: usize = 1_000;
/// Commands that are listed by their ids.
const LISTED_MAX: usize = 10_000;

/// The difference between the stores, as it was.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Difference {
    pub epoch: i64,
    /// The newest receipt that Postgres has.
    pub point: Option<DateTime<Utc>>,
    /// Commands that had been applied and are not any more, the first ten thousand.
    pub undone: BTreeSet<Uuid>,
    pub undone_commands: u64,
    /// Events that were set apart: of those commands, and of the system itself.
    pub undone_events: u64,
    /// Commands whose events MongoDB lacks, the first ten thousand.
    pub missing: BTreeSet<Uuid>,
    pub missing_events: u64,
    /// Events whose data was to be erased, and was there again: MongoDB came from a backup of before the order.
    pub erased_again: u64,
    /// Keys removed from Redis; none of a cluster, which has to be emptied node by node.
    pub keys_removed: Option<u64>,
}

/// The stores of an installation in which nobody works.
pub struct Stores<'s> {
    pub postgres: &'s PgPool,
    pub mongo: &'s Database,
    pub redis: &'s Redis,
}

/// Nobody may work on what is replaced or made to agree.
pub(super) async fn must_rest(pool: &PgPool) -> Result<()> {
    let at_work = epochs::at_work(pool).await?;
    if at_work.is_empty() {
        return Ok(());
    }
    Err(Error::refused(format!(
        "somebody works on these stores ({}); stop every worker, API and scheduler first, or wait until their leases end",
        at_work.join(", ")
    )))
}

/// Brings the stores to agree.
pub async fn agree(stores: &Stores<'_>, author: &str, progress: &Progress) -> Result<Difference> {
    must_rest(stores.postgres).await?;
    if refill::mark(stores.mongo).await?.is_some() {
        return Err(Error::refused(
            "MongoDB is being restored, or its restore was broken off, and holds half of what there should be; let that end \
             first, or run it again",
        ));
    }
    // Before anybody is made to wait for it: that all stores are there.
    let newest = undone::newest(stores.mongo).await?;
    let restored = refill::restored(stores.mongo).await?;
    stores.redis.probe().await?;
    let epoch = epochs::begin(stores.postgres, author).await?;
    // Nobody begins to work from here on; somebody may have just before.
    must_rest(stores.postgres).await?;
    // Without a receipt nothing has ever happened; without an event nothing was ever told.
    let point = epoch.point.unwrap_or(DateTime::UNIX_EPOCH);
    // Somebody may have worked since MongoDB was restored: then what it lacks is older than what it has.
    let oldest = restored.unwrap_or(point).min(point);
    let since = newest.map_or(DateTime::UNIX_EPOCH, |newest| newest.min(oldest)) - MARGIN;
    let mut difference = Difference { epoch: epoch.epoch, point: epoch.point, ..Difference::default() };

    let (last_link, pending) = epochs::system_chain(stores.postgres).await?;
    // What was told late is told again.
    let told_since = pending.map_or(point - MARGIN, |pending| pending.min(point - MARGIN));
    progress.begin("compare events with receipts", 0);
    let seen = mark(stores, told_since, last_link, &mut difference, progress).await?;
    progress.begin("compare receipts with events", 0);
    missing(stores, since, &mut difference, progress).await?;
    progress.begin("erase what was to be erased", 0);
    difference.erased_again = erase_again(stores, progress).await?;
    epochs::jump(stores.postgres, &seen).await?;
    progress.begin("link what is set apart", 0);
    let apart = link(stores, told_since, progress).await?;
    taskflow_stores::crash::point("agreed");
    progress.begin("empty the caches", 0);
    difference.keys_removed = stores.redis.empty().await?;
    let count = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
    let outcome = Outcome {
        undone_commands: count(difference.undone_commands),
        undone_events: count(difference.undone_events),
        missing_events: count(difference.missing_events),
        keys_removed: count(difference.keys_removed.unwrap_or(0)),
    };
    let figures = json!({
        "undoneCommands": outcome.undone_commands, "undoneEvents": outcome.undone_events,
        "missingEvents": outcome.missing_events, "point": difference.point,
    });
    let event = system_event::restored(clock::new_id(), epoch.epoch, author, &figures, clock::now());
    epochs::end(stores.postgres, epoch.epoch, author, &outcome, &apart, &event).await?;
    // All is done; with the note left there, the next time more is compared than need be.
    if restored.is_some()
        && let Err(error) = refill::agreed(stores.mongo).await
    {
        tracing::warn!(%error, "MongoDB goes on to bear the note that it was restored.");
    }
    Ok(difference)
}

/// Marks the events of commands without a receipt, and those of the system without a link; returns the newest batch of
/// each partition that any event names.
async fn mark(
    stores: &Stores<'_>,
    since: DateTime<Utc>,
    last_link: i64,
    difference: &mut Difference,
    progress: &Progress,
) -> Result<BTreeMap<String, i64>> {
    let mut seen = BTreeMap::<String, i64>::new();
    let mut commands = BTreeSet::new();
    let (epoch, at) = (difference.epoch, clock::now());
    let mut telling = undone::read(stores.mongo, since).await?;
    while let Some(told) = telling.next(BATCH).await? {
        progress.check()?;
        let (mut asked, mut batches) = (Vec::with_capacity(told.len()), BTreeSet::new());
        for event in &told {
            if let By::Command { id, partition } = &event.by {
                let newest = seen.entry(partition.clone()).or_insert(event.batch);
                *newest = (*newest).max(event.batch);
                asked.push(*id);
                batches.insert((partition.as_str(), event.batch));
            }
        }
        let known = epochs::with_receipt(stores.postgres, &asked).await?;
        let batches: Vec<(&str, i64)> = batches.into_iter().collect();
        let committed = epochs::committed(stores.postgres, &batches).await?;
        let is_unknown = |event: &&Told| match &event.by {
            By::Command { id, partition } => {
                !known.contains(id) && !committed.contains(&(partition.clone(), event.batch))
            }
            By::System => event.batch > last_link,
        };
        let unknown = || told.iter().filter(is_unknown);
        let ids: Vec<[u8; 12]> =
            unknown().filter(|event| event.undone.is_none()).map(|event| event.id).collect();
        if !ids.is_empty() {
            undone::set_apart(stores.mongo, epoch, at, &ids).await?;
            taskflow_stores::crash::point("marked");
        }
        // Those of a run that was broken off too; those of an earlier restore were told of then.
        for event in unknown().filter(|event| event.undone.is_none_or(|theirs| theirs == epoch)) {
            if let By::Command { id, .. } = event.by {
                commands.insert(id);
            }
        }
    }
    difference.undone_events = undone::count(stores.mongo, since, epoch).await?;
    difference.undone_commands = commands.len() as u64;
    difference.undone = commands.into_iter().take(LISTED_MAX).collect();
    Ok(seen)
}

/// Carries out again what was ordered to be erased: a backup of before the order has brought it back.
async fn erase_again(stores: &Stores<'_>, progress: &Progress) -> Result<u64> {
    let mut again = 0;
    for (scope, subject, ordered_at) in audit_seals::orders(stores.postgres).await? {
        let whose = if scope == "entity" { Subject::Entity(subject) } else { Subject::Actor(subject) };
        loop {
            progress.check()?;
            let step = erasure::step(stores.mongo, whose, ordered_at, clock::now()).await?;
            again += step.erased + step.unsealed;
            if !step.more {
                break;
            }
        }
    }
    Ok(again)
}

/// Names in the marks of what is set apart the links that vouch for it from now on; they go into the chain of the system's
/// events when the epoch ends. What has its link from an earlier restore keeps it, unless that went back with Postgres.
async fn link(stores: &Stores<'_>, since: DateTime<Utc>, progress: &Progress) -> Result<Addition> {
    let (after, _) = epochs::system_chain(stores.postgres).await?;
    let mut addition = Addition { after, links: Vec::new() };
    let mut marks = apart::read(stores.mongo, since).await?;
    loop {
        progress.check()?;
        let mut group = marks.next(BATCH).await?;
        if group.is_empty() {
            return Ok(addition);
        }
        let named: BTreeSet<i64> = group.iter().filter_map(|event| event.link).collect();
        let named: Vec<(String, i64)> =
            named.into_iter().map(|number| (audit_chain::SYSTEM.to_owned(), number)).collect();
        let known = audit_chain::classes_of(stores.postgres, &named).await?;
        let is_known = |number| known.contains_key(&(audit_chain::SYSTEM.to_owned(), number));
        group.retain(|event| !event.link.is_some_and(is_known));
        if !group.is_empty() {
            let number = after + 1 + i64::try_from(addition.links.len()).unwrap_or(i64::MAX);
            addition.links.push(apart::name_link(stores.mongo, number, &group).await?);
        }
    }
}

/// Lists the commands whose events are not there.
async fn missing(
    stores: &Stores<'_>,
    since: DateTime<Utc>,
    difference: &mut Difference,
    progress: &Progress,
) -> Result<()> {
    let mut after = Uuid::nil();
    loop {
        progress.check()?;
        let expected = epochs::expected_events(stores.postgres, since, after, BATCH as i64).await?;
        let Some((last, ..)) = expected.last() else { return Ok(()) };
        after = *last;
        let ids = |(command, accepted, events): &(Uuid, DateTime<Utc>, i16)| -> Vec<[u8; 12]> {
            (0..events.unsigned_abs()).map(|place| EventId::new(*accepted, *command, place).0).collect()
        };
        let wanted: Vec<[u8; 12]> = expected.iter().flat_map(ids).collect();
        let there: BTreeSet<[u8; 12]> = undone::which(stores.mongo, &wanted).await?.into_iter().collect();
        for row in &expected {
            let lacking = ids(row).iter().filter(|id| !there.contains(*id)).count() as u64;
            difference.missing_events += lacking;
            if lacking > 0 && difference.missing.len() < LISTED_MAX {
                difference.missing.insert(row.0);
            }
        }
    }
}
