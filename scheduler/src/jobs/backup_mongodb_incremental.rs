//! What has come into the audit trail since the last backup, every hour: that is its recovery point.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use taskflow_backup::Kind;
use taskflow_backup::mongo::dump;
use taskflow_stores::postgres::restore_epochs;

use super::{Job, backups};
use crate::context::{Context, Failure};

pub(super) const JOB: Job = Job {
    name: "backup.mongodb.incremental",
    about: "Reads the events that are new since the last backup of MongoDB",
    cron: "0 12 * * * *",
    work,
    ..backups::DEFAULT
};

fn work(context: Arc<Context>) -> BoxFuture<'static, Result<(), Failure>> {
    Box::pin(async move {
        let Some(vault) = backups::begin(&context).await? else { return Ok(()) };
        let (progress, trail) = (backups::progress(&context), &context.stores.mongo);
        let settled = dump::settled(&context.stores.postgres).await?;
        let whole = vault.newest(Kind::MongoDb).await?;
        let restored = restore_epochs::newest(&context.stores.postgres).await?;
        let missing = match whole {
            None => Some("there is no whole backup yet; this one is"),
            // What a restore has set apart is old, and would be in no later part.
            Some(whole) if restored.is_some_and(|at| at >= whole.begun_at) => {
                Some("there was a restore since the last whole backup; this one is whole")
            }
            Some(_) => None,
        };
        let manifest = if let Some(why) = missing {
            context.log(why);
            dump::create(&vault, trail, settled, &progress).await?
        } else {
            dump::create_incremental(&vault, trail, settled, &progress).await?
        };
        backups::made(&context, &vault, &manifest).await
    })
}
