//! A drill: a backup that nobody has restored is a hope. Each part is tried, whatever came of the one before.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use futures_util::future::BoxFuture;
use taskflow_backup::drill::{Drill, Outcome};
use taskflow_backup::{Error, Progress, Result, Trouble};
use taskflow_core::metric;
use taskflow_stores::clock;
use taskflow_stores::mongo::Database;
use taskflow_stores::observe::gauge;
use taskflow_stores::postgres::restore_epochs;

use super::{Job, backups};
use crate::Stores;
use crate::audit::restored::{Checked, check};
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
        let look = |restored, through, begun_at| {
            seals(Arc::clone(&context), restored, through, begun_at, progress.clone())
        };
        let trail = tell(&context, "trail", drill.trail(look).await)?;
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

/// Stretches between two seals that are verified, the newest ones: more than a week has. `audit.verify` looks at the older
/// ones, by and by.
const STRETCHES: i64 = 15_000;

/// Holds a restored trail against the seals and links of the live Postgres; says what it has found.
async fn seals(
    context: Arc<Context>,
    restored: Database,
    through: Option<DateTime<Utc>>,
    begun_at: DateTime<Utc>,
    progress: Progress,
) -> Result<String> {
    // What a restore has undone since is still in it, and has no links any more.
    if restore_epochs::newest(&context.stores.postgres).await?.is_some_and(|ended| begun_at < ended) {
        return Ok("its seals are not verified: it is from before the last restore".to_owned());
    }
    let stores = Stores { mongo: restored, ..context.stores.clone() };
    let goes_on = || progress.check().is_ok();
    let checked = check(&stores, &context.audit, through, Some(STRETCHES), clock::now(), goes_on).await;
    progress.check()?;
    match checked.map_err(|error| Error::failed(format!("verify the audit trail's seals: {error}")))? {
        Checked::Not(why) => Ok(format!("its seals are not verified: {why}")),
        Checked::Through(seal, report) if report.found.is_empty() => {
            Ok(format!("as it was sealed, up to seal {seal}: {} events", report.counts.proved))
        }
        Checked::Through(_, report) => {
            let kinds: Vec<String> =
                report.found.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
            let first = report.findings.first().map(ToString::to_string).unwrap_or_default();
            Err(Error::damaged(format!(
                "the trail in it is not what was sealed: {} ({first}); docs/audit.md says what to do",
                kinds.join(", ")
            )))
        }
    }
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
