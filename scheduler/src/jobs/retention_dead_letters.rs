//! Removes dead letters whose time is over.

use std::sync::Arc;
use std::time::Instant;

use futures_util::future::BoxFuture;
use taskflow_stores::postgres::{dead_letters, leader};

use super::Job;
use crate::context::{Context, Failure, Step};

pub(super) const JOB: Job = Job {
    name: "retention.dead_letters",
    about: "Removes dead letters whose time is over",
    cron: "0 37 * * * *",
    jitter_s: 60,
    timeout_s: 3_000,
    retries: 3,
    word: Some("retention"),
    work,
    ..Job::DEFAULT
};

fn work(context: Arc<Context>) -> BoxFuture<'static, Result<(), Failure>> {
    Box::pin(async move {
        let before = context.days_ago(context.retention.dead_letters_days)?;
        if context.dry_run() {
            let (kept, all, held) = dead_letters::past(&context.stores.postgres, before).await?;
            context.set("letters_past", all);
            context.set("undecided_past", kept);
            context.set("letters_held", held);
            return Ok(());
        }
        loop {
            let started = Instant::now();
            let mut transaction = context.fence.begin().await?;
            let (kept, all) = dead_letters::prune(&mut transaction, before).await?;
            leader::commit(transaction).await?;
            context.add("letters_removed", all.unsigned_abs());
            if kept > 0 {
                context.add("undecided_removed", kept.unsigned_abs());
                context.log(format!(
                    "{kept} letters went that nobody has decided about: they are kept no longer"
                ));
            }
            if all == 0 || context.step(started.elapsed()).await? == Step::Enough {
                return Ok(());
            }
        }
    })
}
