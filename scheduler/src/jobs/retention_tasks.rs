//! Removes tasks whose deletion is long enough ago.

use std::sync::Arc;
use std::time::Instant;

use chrono::TimeDelta;
use futures_util::future::BoxFuture;
use taskflow_stores::clock;
use taskflow_stores::postgres::{leader, pruning};

use super::Job;
use crate::context::{Context, Failure, Step};

pub(super) const JOB: Job = Job {
    name: "retention.tasks",
    about: "Removes tasks that were deleted long enough ago",
    cron: "0 27 2 * * *",
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
        let before = clock::now() - TimeDelta::days(i64::from(context.retention.deleted_tasks_days));
        if context.dry_run() {
            let (past, held) = pruning::deleted_tasks_count(&context.stores.postgres, before).await?;
            context.set("tasks_past", past);
            context.set("tasks_held", held);
            return Ok(());
        }
        loop {
            let started = Instant::now();
            let mut transaction = context.fence.begin().await?;
            let gone = pruning::deleted_tasks(&mut transaction, before, TOGETHER).await?;
            leader::commit(transaction).await?;
            context.add("tasks_removed", gone);
            if gone < TOGETHER.unsigned_abs() || context.step(started.elapsed()).await? == Step::Enough {
                return Ok(());
            }
        }
    })
}
