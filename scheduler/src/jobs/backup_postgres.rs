//! A dump of Postgres, every day: one file that any later version of the server can read.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use taskflow_backup::postgres::dump;

use super::{Job, backups};
use crate::context::{Context, Failure};

pub(super) const JOB: Job = Job {
    name: "backup.postgres",
    about: "Dumps Postgres into the place of the backups",
    cron: "0 20 0 * * *",
    work,
    ..backups::DEFAULT
};

fn work(context: Arc<Context>) -> BoxFuture<'static, Result<(), Failure>> {
    Box::pin(async move {
        let Some(vault) = backups::begin(&context).await? else { return Ok(()) };
        let (url, pool) = (&context.stores.backups.postgres_url, &context.stores.postgres);
        let manifest = dump::create(&vault, url, pool, &backups::progress(&context)).await?;
        backups::made(&context, &vault, &manifest).await
    })
}
