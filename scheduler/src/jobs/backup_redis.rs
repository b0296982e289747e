//! The snapshot of Redis, where it can be reached.

use std::sync::Arc;

use futures_util::future::BoxFuture;

use super::{Job, backups};
use crate::context::{Context, Failure};

pub(super) const JOB: Job = Job {
    name: "backup.redis",
    about: "Copies the snapshot of Redis into the place of the backups, where it can be reached",
    cron: "0 40 0 * * *",
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
        match taskflow_backup::redis::create(&vault, &context.stores.redis, &backups::progress(&context))
            .await?
        {
            Ok(manifest) => backups::made(&context, &vault, &manifest).await,
            Err(why) => {
                context.set("skipped", why);
                Ok(())
            }
        }
    })
}
