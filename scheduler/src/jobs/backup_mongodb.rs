//! The whole audit trail, every day.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use taskflow_backup::mongo::dump;

use super::{Job, backups};
use crate::context::{Context, Failure};

pub(super) const JOB: Job = Job {
    name: "backup.mongodb",
    about: "Reads all of MongoDB into the place of the backups",
    cron: "0 50 0 * * *",
    jitter_s: 60,
    timeout_s: 6 * 3_600,
    retries: 4,
    word: Some("backup"),
    work,
    ..Job::DEFAULT
};

fn work(context: Arc<Context>) -> BoxFuture<'static, Result<(), Failure>> {
    Box::pin(async move {
        let Some(vault) = backups::vault(&context)? else { return Ok(()) };
        if context.dry_run() {
            return Ok(());
        }
        context.fence.holds().await?;
        let settled = dump::settled(&context.stores.postgres).await?;
        let manifest =
            dump::create(&vault, &context.stores.mongo, settled, &backups::progress(&context)).await?;
        backups::made(&context, &vault, &manifest).await
    })
}
