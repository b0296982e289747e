//! Removes tasks whose deletion is long enough ago.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use taskflow_stores::postgres::pruning;

use super::{Job, batches};
use crate::context::{Context, Failure};

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
        let before = context.days_ago(context.retention.deleted_tasks_days)?;
        if context.dry_run() {
            let (past, held) = pruning::deleted_tasks_count(&context.stores.postgres, before).await?;
            context.set("tasks_past", past);
            context.set("tasks_held", held);
            return Ok(());
        }
        batches::remove(&context, "tasks_removed", TOGETHER, |connection| {
            Box::pin(pruning::deleted_tasks(connection, before, TOGETHER))
        })
        .await
        .map(drop)
    })
}
