//! One transaction: fence, claim, load, decide, write, commit. The number of its statements does not depend on the
//! number of its commands.

use std::collections::HashSet;
use std::time::Instant;

use chrono::{DateTime, Utc};
use taskflow_core::batch::{Needs, Rules};
use taskflow_core::metric;
use taskflow_core::{Folded, Item, batch};
use taskflow_stores::postgres::batch::{self as transaction, BatchTransaction, Claim, Record, Relayed};
use taskflow_stores::postgres::outbox::Payload;
use taskflow_stores::redis::cache::{self, Refresh};
use taskflow_stores::{StoreError, observe};
use uuid::Uuid;

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
    let postgres = &context.stores.postgres;
    let items = range.items;
    let ids: Vec<Uuid> = items.iter().map(|item| item.id).collect();
    let needs = batch::needs(items);
    let begin = transaction::begin(postgres, fence.partition, fence.epoch, relayed, &ids, &needs.roles);
    let Some((mut transaction, claim)) = timed("claim", begin).await? else { return Ok(None) };
    crash::point("fenced");
    let work = work(context, fence, (range, needs), claim, lines, source, now, &mut transaction);
    match work.await {
        Ok((folded, payload, settled)) => {
            let number = transaction.number;
            let refresh = refresh(&folded);
            timed("commit", transaction.commit()).await?;
            crash::point("committed");
            Ok(Some(Applied { number, folded, payload, refresh, settled }))
        }
        Err(error) => {
            // Whether this succeeds or not: without a commit nothing lasts.
            let _ = transaction.roll_back().await;
            Err(error)
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
    (range, needs): (Range<'_>, Needs),
    claim: Claim,
    lines: &HashSet<Uuid>,
    source: &impl Source,
    now: DateTime<Utc>,
    transaction: &mut BatchTransaction,
) -> Result<(Folded, Payload, Settled), StoreError> {
    let items = range.items;
    let number = transaction.number;
    let connection = transaction.connection();
    let state = timed("load", transaction::load(connection, &needs, claim.roles)).await?;
    crash::point("loaded");

    let start = Instant::now();
    let rules = Rules { now, retention: &context.retention, patience: &context.settings.patience };
    let mut folded = batch::fold(items, &claim.known, lines, state, rules);
    assert_eq!(folded.verdicts.len(), items.len(), "every command has its verdict");
    let payload = payload(&mut folded);
    observe_step("decide", start);

    let settled = timed("write", async {
        let record = Record {
            partition: fence.partition,
            number,
            commands: items.len(),
            applied_at: now,
            receipts: &folded.receipts,
            new_tasks: &folded.new_tasks,
            payload: &payload,
        };
        transaction::write(connection, &folded, record).await?;
        waiting::settle(connection, fence.partition, range, source, &mut folded, now).await
    })
    .await?;
    crash::point("written");
    Ok((folded, payload, settled))
}

fn payload(folded: &mut Folded) -> Payload {
    let events = std::mem::take(&mut folded.events);
    let tasks = folded.new_tasks.iter().chain(&folded.changed_tasks);
    let users = folded.new_users.iter().chain(&folded.changed_users);
    Payload {
        events,
        tasks: tasks.map(|task| task.id).collect(),
        users: users.map(|user| user.id).collect(),
        lists: folded.lists.iter().copied().collect(),
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
        generations: folded.lists.iter().map(|user| cache::generation(*user)).collect(),
    }
}

async fn timed<T>(
    step: &'static str,
    work: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, StoreError> {
    let start = Instant::now();
    let result = work.await;
    observe_step(step, start);
    result
}

pub(crate) fn observe_step(step: &'static str, start: Instant) {
    observe::histogram(&metric::BATCH_DURATION, &[("step", step)]).record(start.elapsed());
}
