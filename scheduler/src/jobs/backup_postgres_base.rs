//! A base backup of Postgres, when the last one is old or the log behind it has a gap.

use std::sync::Arc;

use chrono::TimeDelta;
use futures_util::future::BoxFuture;
use taskflow_backup::postgres::base;
use taskflow_stores::clock;

use super::{Job, backups};
use crate::context::{Context, Failure};

pub(super) const JOB: Job = Job {
    name: "backup.postgres.base",
    about: "Copies Postgres's files when the last base backup is old, for restores to a point in time",
    cron: "0 20 22 * * *",
    timeout_s: 10 * 3_600,
    work,
    ..backups::DEFAULT
};

fn work(context: Arc<Context>) -> BoxFuture<'static, Result<(), Failure>> {
    Box::pin(async move {
        let Some(vault) = backups::vault(&context)? else { return Ok(()) };
        let settings = &context.stores.backups.settings;
        if !settings.wal {
            context.set(
                "skipped",
                "backup.wal is not set: without the log of writes a base backup is of no use",
            );
            return Ok(());
        }
        let days = TimeDelta::days(settings.base_every_days.into());
        let old = clock::now() - days + TimeDelta::hours(1);
        match base::newest_usable(&vault, &context.stores.postgres).await? {
            Some(newest) if newest.begun_at > old && !context.flag("now") => {
                context.set(
                    "skipped",
                    format!("{} is younger than {} days", newest.id, settings.base_every_days),
                );
                return Ok(());
            }
            Some(newest) => context.log(format!("the last one, {}, is old", newest.id)),
            None => context.log("there is none from which the log leads on without a gap"),
        }
        if context.dry_run() {
            return Ok(());
        }
        context.fence.holds().await?;
        let (url, pool) = (&context.stores.backups.postgres_url, &context.stores.postgres);
        let manifest = base::create(&vault, url, pool, &backups::progress(&context)).await?;
        backups::made(&context, &vault, &manifest).await
    })
}
