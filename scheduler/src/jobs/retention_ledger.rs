//! Removes old rows of the scheduler's own ledger, what processes that are gone have left behind, and the notes of who
//! has read long ago.

use std::sync::Arc;

use chrono::TimeDelta;
use futures_util::future::BoxFuture;
use taskflow_core::heat;
use taskflow_stores::postgres::{job_runs, leader, pruning, user_activity};

use super::{Job, batches};
use crate::context::{Context, Failure};

pub(super) const JOB: Job = Job {
    name: "retention.ledger",
    about: "Removes old runs of jobs, stale leases, workers and suspects, and the notes of who read long ago",
    cron: "0 47 3 * * *",
    jitter_s: 60,
    timeout_s: 3_000,
    retries: 3,
    word: Some("retention"),
    work,
    ..Job::DEFAULT
};

/// Who has not read for so long is forgotten.
const FORGET_AFTER: TimeDelta = TimeDelta::days(30);
/// Rows of one transaction.
const TOGETHER: i64 = 500;

fn work(context: Arc<Context>) -> BoxFuture<'static, Result<(), Failure>> {
    Box::pin(async move {
        let before = context.days_ago(context.retention.job_runs_days)?;
        let cold = heat::of(1, context.now() - FORGET_AFTER);
        if context.dry_run() {
            let postgres = &context.stores.postgres;
            let left = pruning::left_behind_count(postgres).await?;
            context.set("before", before.to_rfc3339());
            context.set("leases_past", left.leases);
            context.set("workers_past", left.workers);
            context.set("suspects_past", left.suspects);
            context.set("readers_cold", user_activity::forgettable(postgres, cold).await?);
            context.set("runs_past", job_runs::prune_count(postgres, before).await?);
            return Ok(());
        }
        let mut transaction = context.fence.begin().await?;
        let left = pruning::left_behind(&mut transaction).await?;
        leader::commit(transaction).await?;
        context.set("leases_removed", left.leases);
        context.set("workers_removed", left.workers);
        context.set("suspects_removed", left.suspects);
        batches::remove(&context, "readers_forgotten", TOGETHER, |connection| {
            Box::pin(user_activity::forget(connection, cold, TOGETHER))
        })
        .await?;
        batches::remove(&context, "runs_removed", TOGETHER, |connection| {
            Box::pin(job_runs::prune(connection, before, TOGETHER))
        })
        .await
        .map(drop)
    })
}
