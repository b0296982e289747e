//! Backups that no rule keeps are removed. The last good one stays, and whatever another needs.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use taskflow_backup::journal;
use taskflow_backup::postgres::base;
use taskflow_stores::clock;

use super::{Job, backups};
use crate::context::{Context, Failure};

pub(super) const JOB: Job = Job {
    name: "backup.prune",
    about: "Removes backups that the rules no longer keep",
    cron: "0 30 4 * * *",
    work,
    ..backups::DEFAULT
};

fn work(context: Arc<Context>) -> BoxFuture<'static, Result<(), Failure>> {
    Box::pin(async move {
        let Some(vault) = backups::vault(&context)? else { return Ok(()) };
        let plan = vault.plan(clock::now()).await?;
        context.set("kept", plan.values().filter(|verdict| verdict.keeps()).count());
        if context.dry_run() {
            let gone = plan.iter().filter(|(_, verdict)| !verdict.keeps());
            context.set("would_remove", gone.map(|(id, _)| id.clone()).collect::<Vec<_>>());
            return Ok(());
        }
        context.fence.holds().await?;
        let removed = vault.prune(&backups::progress(&context)).await?;
        context.set("removed", removed);
        context.set("journal_files_removed", journal::prune(&vault, clock::now()).await?);
        if context.stores.backups.settings.wal {
            context.set("log_files_removed", base::prune_log(&vault, &context.stores.postgres).await?);
        }
        Ok(())
    })
}
