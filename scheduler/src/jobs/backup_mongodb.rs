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
    work,
    ..backups::DEFAULT
};

fn work(context: Arc<Context>) -> BoxFuture<'static, Result<(), Failure>> {
    Box::pin(async move {
        let Some(vault) = backups::begin(&context).await? else { return Ok(()) };
        let settled = dump::settled(&context.stores.postgres).await?;
        let manifest =
            dump::create(&vault, &context.stores.mongo, settled, &backups::progress(&context)).await?;
        backups::made(&context, &vault, &manifest).await
    })
}
