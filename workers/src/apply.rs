//! One batch: claim, load, decide, write under the fence, commit. The number of its statements does not depend on the
//! number of its commands; a batch of nothing but new tasks has two.

use std::collections::{HashMap, HashSet};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use taskflow_core::audit::Hash;
use taskflow_core::batch::Rules;
use taskflow_core::command::{Fingerprint, digest};
use taskflow_core::metric;
use taskflow_core::{Folded, Item, batch};
use taskflow_stores::postgres::batch::{self as transaction, BatchTransaction, Claim, Record, Relayed};
use taskflow_stores::postgres::outbox::Payload;
use taskflow_stores::redis::cache::{self, Refresh};
use taskflow_stores::{Kind, StoreError, observe};
use uuid::Uuid;

use crate::answers::Answers;
use crate::bisect::Source;
use crate::waiting::{self, Settled};
use crate::{Context, crash};

/// A batch that has lasted.
pub(crate) struct Applied {
    pub number: i64,
    pub folded: Folded,
    /// For the sinks.
    pub payload: Payload,
    pub refresh: Refresh,
    pub settled: Settled,
}

/// Items of a batch that are applied in one transaction.
#[derive(Clone, Copy)]
pub(crate) struct Range<'i> {
    pub items: &'i [Item],
    /// The index of the first of them in the batch.
    pub first: usize,
}

/// The partition under whose lease a batch is applied.
#[derive(Clone, Copy)]
pub(crate) struct Fence<'p> {
    pub partition: &'p str,
    pub epoch: i64,
    /// How long its batches wait for Postgres.
    pub answers: &'p Answers,
}

/// Applies a batch; `None` if the partition's lease has gone to another worker: nothing was done then.
pub(crate) async fn apply(
    context: &Context,
    fence: Fence<'_>,
    range: Range<'_>,
    lines: &HashSet<Uuid>,
    relayed: &[Relayed],
    source: &impl Source,
    now: DateTime<Utc>,
) -> Result<Option<Applied>, StoreError> {
    let lease = Duration::from_millis(context.settings.lease_ms);
    let mut transaction = BatchTransaction::new(&context.stores.postgres, lease);
    let worked = work(context, fence, range, lines, relayed, source, now, &mut transaction);
    match fence.answers.wait("apply a batch", worked).await {
        Ok(Some(applied)) => {
            timed("commit", fence.answers.wait("commit a batch", transaction.commit())).await?;
            crash::point("committed");
            Ok(Some(applied))
        }
        // It ends where it is dropped: a connection that has not answered has no answer to that either.
        Err(error) if error.kind == Kind::Unavailable => Err(error),
        // Whether this succeeds or not: without a commit nothing lasts.
        other => {
            let _ = fence.answers.wait("roll a batch back", transaction.roll_back()).await;
            other
        }
    }
}

#[expect(
    clippy::too_many_arguments,
    reason = "the steps of one transaction, in a function of their own for its end"
)]
async fn work(
    context: &Context,
    fence: Fence<'_>,
    range: Range<'_>,
    lines: &HashSet<Uuid>,
    relayed: &[Relayed],
    source: &impl Source,
    now: DateTime<Utc>,
    transaction: &mut BatchTransaction,
) -> Result<Option<Applied>, StoreError> {
    let items = range.items;
    let ids: Vec<Uuid> = items.iter().map(|item| item.id).collect();
    let come: Vec<Uuid> = items.iter().filter(|item| item.waited.is_none()).map(|item| item.id).collect();
    let needs = batch::needs(items);
    let claim = timed("claim", transaction::claim(&context.stores.postgres, &ids, &come, &needs)).await?;
    crash::point("claimed");
    let Claim { mut known, waiting, roles, existing } = claim;
    read_at_last(&mut known, range, source);
    keep_places(&mut known, &waiting, items);
    let state = timed("load", transaction::load(transaction, &needs, roles, &existing)).await?;
    crash::point("loaded");

    let start = Instant::now();
    let rules = Rules { now, retention: &context.retention, patience: &context.settings.patience };
    let mut folded = batch::fold(items, &known, lines, state, rules);
    assert_eq!(folded.verdicts.len(), items.len(), "every command has its verdict");
    let payload = payload(&mut folded, context.settings.audit_chain);
    // Here, where it is timed, and not under the partition's fence.
    payload.leaves();
    observe_step("decide", start);

    let written = timed("write", async {
        let record = Record {
            partition: fence.partition,
            epoch: fence.epoch,
            commands: items.len(),
            applied_at: now,
            receipts: &folded.receipts,
            new_tasks: &folded.new_tasks,
            payload: &payload,
            relayed,
        };
        let waits = waiting::concerns(items, &folded);
        if waits {
            transaction.connection().await?;
        }
        let Some(number) = transaction::write(transaction, &folded, record).await? else { return Ok(None) };
        let settled = if waits {
            let connection = transaction.connection().await?;
            waiting::settle(connection, fence.partition, range, source, &mut folded, now).await?
        } else {
            Settled::default()
        };
        Ok(Some((number, settled)))
    });
    let Some((number, settled)) = written.await? else { return Ok(None) };
    crash::point("written");
    let refresh = refresh(&folded);
    Ok(Some(Applied { number, folded, payload, refresh, settled }))
}

fn payload(folded: &mut Folded, chained: bool) -> Payload {
    let events = std::mem::take(&mut folded.events);
    let tasks = folded.new_tasks.iter().chain(&folded.changed_tasks);
    let users = folded.new_users.iter().chain(&folded.changed_users);
    Payload {
        events,
        tasks: tasks.map(|task| task.id).collect(),
        users: users.map(|user| user.id).collect(),
        lists: folded.lists.iter().copied().collect(),
        seed: chained.then(|| Hash(rand::random())),
        leaves: OnceLock::new(),
    }
}

fn refresh(folded: &Folded) -> Refresh {
    let new_tasks = folded.new_tasks.iter().map(cache::task_entry);
    let new_users = folded.new_users.iter().map(cache::user_entry);
    let changed_tasks = folded.changed_tasks.iter().map(cache::task_entry);
    let changed_users = folded.changed_users.iter().map(cache::user_entry);
    Refresh {
        new: new_tasks.chain(new_users).collect(),
        changed: changed_tasks.chain(changed_users).collect(),
    }
}

/// A command that nobody could read when it got its receipt is known by its bytes: sent again to somebody who can, it is the
/// same.
fn read_at_last(known: &mut HashMap<Uuid, Fingerprint>, range: Range<'_>, source: &impl Source) {
    for (index, item) in range.items.iter().enumerate() {
        if let Some(first) = known.get_mut(&item.id)
            && *first != item.fingerprint
            && *first == digest(source.body(range.first + index))
        {
            *first = item.fingerprint;
        }
    }
}

/// Whoever waits was accepted first: another command under its id does not come before it by having no time to wait for. The
/// same command, sent again, waits as it does.
fn keep_places(known: &mut HashMap<Uuid, Fingerprint>, waiting: &HashMap<Uuid, Fingerprint>, items: &[Item]) {
    for item in items.iter().filter(|item| item.waited.is_none()) {
        if let Some(first) = waiting.get(&item.id).filter(|first| **first != item.fingerprint) {
            known.entry(item.id).or_insert(*first);
        }
    }
}

/// Times a step that is a call to Postgres.
async fn timed<T>(
    step: &'static str,
    work: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, StoreError> {
    let start = Instant::now();
    let result = work.await;
    observe_step(step, start);
    observe::store_took("postgres", step, start.elapsed());
    result
}

pub(crate) fn observe_step(step: &'static str, start: Instant) {
    observe::histogram(&metric::BATCH_DURATION, &[("step", step)]).record(start.elapsed());
}
