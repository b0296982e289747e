//! The snapshot of Redis, where it can be reached.

use std::sync::Arc;

use futures_util::future::BoxFuture;

use super::{Job, backups};
use crate::context::{Context, Failure};

pub(super) const JOB: Job = Job {
    name: "backup.redis",
    about: "Copies the snapshot of Redis into the place of the backups, where it can be reached",
    cron: "0 40 0 * * *",
    work,
    ..backups::DEFAULT
};

fn work(context: Arc<Context>) -> BoxFuture<'static, Result<(), Failure>> {
    Box::pin(async move {
        let Some(vault) = backups::begin(&context).await? else { return Ok(()) };
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
