//! A drill: a backup that nobody has restored is a hope. Each part is tried, whatever came of the one before.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use taskflow_backup::drill::{Drill, Outcome};
use taskflow_backup::{Result, Trouble};
use taskflow_core::metric;
use taskflow_stores::observe::gauge;

use super::{Job, backups};
use crate::context::{Context, Failure};

pub(super) const JOB: Job = Job {
    name: "backup.drill",
    about: "Restores the newest backups on scratch servers and holds them against the live stores",
    cron: "0 0 5 1 * *",
    timeout_s: 12 * 3_600,
    // It is long, and what fails says why: a person looks first.
    retries: 0,
    word: Some("recovery_drill"),
    work,
    ..backups::DEFAULT
};

fn work(context: Arc<Context>) -> BoxFuture<'static, std::result::Result<(), Failure>> {
    Box::pin(async move {
        let Some(vault) = backups::begin(&context).await? else { return Ok(()) };
        let (identities, progress) = (vault.identities()?, backups::progress(&context));
        let drill = Drill {
            vault: &vault,
            identities: &identities,
            postgres: &context.stores.postgres,
            folder: vault.settings.work_dir().join("drill"),
            progress: &progress,
        };
        let cluster = tell(&context, "cluster", drill.cluster().await)?;
        let dump = tell(&context, "dump", drill.dump().await)?;
        let trail = tell(&context, "trail", drill.trail().await)?;
        let parts = [cluster, dump, trail];
        // A drill that has restored nothing has proven nothing.
        if parts.iter().all(|part| matches!(part, Told::LeftOut)) {
            return Err(Failure::Final("there is nothing to restore: no backup was found".to_owned()));
        }
        let failed: Vec<String> = parts.into_iter().filter_map(Told::failed).collect();
        if failed.is_empty() {
            return Ok(());
        }
        Err(Failure::Final(format!("backups can't be restored: {}", failed.join("; "))))
    })
}

/// How a part ended.
enum Told {
    Passed,
    LeftOut,
    Failed(String),
}

impl Told {
    fn failed(self) -> Option<String> {
        match self {
            Self::Failed(why) => Some(why),
            Self::Passed | Self::LeftOut => None,
        }
    }
}

/// Writes down how a part ended; what failed is returned in words.
fn tell(
    context: &Context,
    part: &str,
    tried: Result<Result<Outcome, String>>,
) -> std::result::Result<Told, Failure> {
    match tried {
        Ok(Ok(outcome)) => {
            gauge(&metric::DRILL_DURATION, &[("store", outcome.store)]).set(outcome.took_s);
            context.log(format!(
                "{part}: {} in {:.1} s: {}",
                outcome.backups.join(", "),
                outcome.took_s,
                outcome.detail
            ));
            context.set(part, serde_json::json!(outcome));
            Ok(Told::Passed)
        }
        Ok(Err(why)) => {
            context.log(format!("{part}: left out: {why}"));
            context.set(part, format!("left out: {why}"));
            Ok(Told::LeftOut)
        }
        Err(error) if error.trouble == Trouble::Stopped => Err(Failure::Stopped),
        Err(error) => {
            context.log(format!("{part}: {error}"));
            context.set(part, format!("failed: {error}"));
            Ok(Told::Failed(format!("{part}: {error}")))
        }
    }
}
