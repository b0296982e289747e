//! What has come into the audit trail since the last backup, every hour: that is its recovery point.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use taskflow_backup::mongo::dump;
use taskflow_backup::{Kind, Trouble};

use super::{Job, backups};
use crate::context::{Context, Failure};

pub(super) const JOB: Job = Job {
    name: "backup.mongodb.incremental",
    about: "Reads the events that are new since the last backup of MongoDB",
    cron: "0 12 * * * *",
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
        let (progress, trail) = (backups::progress(&context), &context.stores.mongo);
        let settled = dump::settled(&context.stores.postgres).await?;
        let manifest = match dump::create_incremental(&vault, trail, settled, &progress).await {
            // The first of all.
            Err(error)
                if error.trouble == Trouble::Missing && vault.newest(Kind::MongoDb).await?.is_none() =>
            {
                context.log("there is no whole backup yet; this one is");
                dump::create(&vault, trail, settled, &progress).await?
            }
            made => made?,
        };
        backups::made(&context, &vault, &manifest).await
    })
}
