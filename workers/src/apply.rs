//! One transaction: fence, claim, load, decide, write, commit. The number of its statements does not depend on the
//! number of its commands.

use std::time::Instant;

use chrono::{DateTime, Utc};
use taskflow_core::batch::Needs;
use taskflow_core::metric;
use taskflow_core::{Folded, Item, State, batch};
use taskflow_stores::postgres::batch::{self as transaction, BatchTransaction, Claim, Record, Relayed};
use taskflow_stores::postgres::outbox::Payload;
use taskflow_stores::postgres::{tasks, users};
use taskflow_stores::redis::cache::{self, Refresh};
use taskflow_stores::{StoreError, observe};
use uuid::Uuid;

use crate::{Context, crash};

/// A batch that has lasted.
pub(crate) struct Applied {
    pub number: i64,
    pub folded: Folded,
    /// For the sinks.
    pub payload: Payload,
    pub refresh: Refresh,
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
    items: &[Item],
    relayed: &[Relayed],
    now: DateTime<Utc>,
) -> Result<Option<Applied>, StoreError> {
    let postgres = &context.stores.postgres;
    let ids: Vec<Uuid> = items.iter().map(|item| item.id).collect();
    let needs = batch::needs(items);
    let begin = transaction::begin(postgres, fence.partition, fence.epoch, relayed, &ids, &needs.roles);
    let Some((mut transaction, claim)) = timed("claim", begin).await? else { return Ok(None) };
    crash::point("fenced");
    match work(context, fence, (items, needs), claim, now, &mut transaction).await {
        Ok((folded, payload)) => {
            let number = transaction.number;
            let refresh = refresh(&folded);
            timed("commit", transaction.commit()).await?;
            crash::point("committed");
            Ok(Some(Applied { number, folded, payload, refresh }))
        }
        Err(error) => {
            // Whether this succeeds or not: without a commit nothing lasts.
            let _ = transaction.roll_back().await;
            Err(error)
        }
    }
}

async fn work(
    context: &Context,
    fence: Fence<'_>,
    (items, needs): (&[Item], Needs),
    claim: Claim,
    now: DateTime<Utc>,
    transaction: &mut BatchTransaction,
) -> Result<(Folded, Payload), StoreError> {
    let number = transaction.number;
    let connection = transaction.connection();
    let state = timed("load", async {
        let loaded_users = users::load_for_update(connection, &needs.users).await?;
        let loaded_tasks = tasks::load_for_update(connection, &needs.tasks).await?;
        Ok(State {
            users: loaded_users.into_iter().map(|user| (user.id, user)).collect(),
            tasks: loaded_tasks.into_iter().map(|task| (task.id, task)).collect(),
            roles: claim.roles,
            emails: users::holders(connection, &needs.emails).await?,
        })
    })
    .await?;
    crash::point("loaded");

    let start = Instant::now();
    let mut folded = batch::fold(items, &claim.known, state, now, &context.retention);
    assert_eq!(folded.verdicts.len(), items.len(), "every command has its verdict");
    let payload = payload(&mut folded);
    observe_step("decide", start);

    timed("write", async {
        users::insert(connection, &folded.new_users).await?;
        users::update(connection, &folded.changed_users).await?;
        tasks::update(connection, &folded.changed_tasks).await?;
        let record = Record {
            partition: fence.partition,
            number,
            commands: items.len(),
            applied_at: now,
            receipts: &folded.receipts,
            new_tasks: &folded.new_tasks,
            payload: &payload,
        };
        transaction::record(connection, record).await
    })
    .await?;
    crash::point("written");
    Ok((folded, payload))
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
