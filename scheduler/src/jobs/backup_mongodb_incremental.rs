//! What has come into the audit trail since the last backup, twice an hour: of the trail at most an hour is to be lost,
//! also when one of them takes its time or fails.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use taskflow_backup::Trouble;
use taskflow_backup::mongo::dump;
use taskflow_stores::postgres::restore_epochs;

use super::{Job, backups};
use crate::context::{Context, Failure};

pub(super) const JOB: Job = Job {
    name: "backup.mongodb.incremental",
    about: "Reads the events that are new since the last backup of MongoDB",
    cron: "0 12,42 * * * *",
    work,
    ..backups::DEFAULT
};

fn work(context: Arc<Context>) -> BoxFuture<'static, Result<(), Failure>> {
    Box::pin(async move {
        let Some(vault) = backups::begin(&context).await? else { return Ok(()) };
        let (progress, trail) = (backups::progress(&context), &context.stores.mongo);
        let settled = dump::settled(&context.stores.postgres).await?;
        let restored = restore_epochs::newest(&context.stores.postgres).await?;
        let manifest = match dump::create_incremental(&vault, trail, settled, restored, &progress).await {
            Err(error) if error.trouble == Trouble::Missing => {
                context.log("there is none that it could go on from; this one is whole");
                dump::create(&vault, trail, settled, &progress).await?
            }
            made => made?,
        };
        backups::made(&context, &vault, &manifest).await
    })
}
