//! Removes old rows of the scheduler's own ledger, and what processes that are gone have left behind.

use std::sync::Arc;
use std::time::Instant;

use chrono::TimeDelta;
use futures_util::future::BoxFuture;
use taskflow_stores::clock;
use taskflow_stores::postgres::{job_runs, leader, pruning};

use super::Job;
use crate::context::{Context, Failure, Step};

pub(super) const JOB: Job = Job {
    name: "retention.ledger",
    about: "Removes old runs of jobs, stale leases, workers and suspects",
    cron: "0 47 3 * * *",
    jitter_s: 60,
    timeout_s: 3_000,
    retries: 3,
    word: Some("retention"),
    work,
    ..Job::DEFAULT
};

/// Rows of one transaction.
const TOGETHER: i64 = 500;

fn work(context: Arc<Context>) -> BoxFuture<'static, Result<(), Failure>> {
    Box::pin(async move {
        let before = clock::now() - TimeDelta::days(i64::from(context.retention.job_runs_days));
        if context.dry_run() {
            context.set("before", before.to_rfc3339());
            return Ok(());
        }
        let mut transaction = context.fence.begin().await?;
        let left = pruning::left_behind(&mut transaction).await?;
        leader::commit(transaction).await?;
        context.set("leases_removed", left.leases);
        context.set("workers_removed", left.workers);
        context.set("suspects_removed", left.suspects);
        loop {
            let started = Instant::now();
            let mut transaction = context.fence.begin().await?;
            let gone = job_runs::prune(&mut transaction, before, TOGETHER).await?;
            leader::commit(transaction).await?;
            context.add("runs_removed", gone);
            if gone < TOGETHER.unsigned_abs() || context.step(started.elapsed()).await? == Step::Enough {
                return Ok(());
            }
        }
    })
}
