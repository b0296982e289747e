//! Removes what dead processes have left of their open sockets in Redis, a bounded number of keys at each run.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use serde_json::json;
use taskflow_stores::postgres::{job_schedules, leader};

use super::Job;
use crate::context::{Context, Failure, Step};
use crate::load::Beside;

pub(super) const JOB: Job = Job {
    name: "retention.sockets",
    about: "Removes entries of sockets whose process is gone",
    cron: "0 57 * * * *",
    jitter_s: 60,
    timeout_s: 1_800,
    retries: 3,
    beside: Beside::Redis,
    word: Some("retention"),
    work,
    ..Job::DEFAULT
};

/// Steps of one run, of some hundred keys each; the next run goes on behind them.
const STEPS_MAX: usize = 2_000;
/// What looks like an orphan must still do so after this: a socket is entered under two keys, one after the other.
const SECOND_LOOK: Duration = Duration::from_secs(2);

fn work(context: Arc<Context>) -> BoxFuture<'static, Result<(), Failure>> {
    Box::pin(async move {
        if !context.stores.redis.can_look_through() {
            context.set("skipped", "a cluster: entries go by their time to live");
            return Ok(());
        }
        let state =
            job_schedules::state(&context.stores.postgres, &context.schedule).await?.unwrap_or_default();
        let mut cursor = state["cursor"].as_u64().unwrap_or(0);
        for _ in 0..STEPS_MAX {
            let started = Instant::now();
            let found = context.stores.redis.find_orphans(cursor).await?;
            context.add("sets", found.sets as u64);
            let orphans: usize = found.orphans.values().map(Vec::len).sum();
            if context.dry_run() {
                context.add("orphans", orphans as u64);
            } else if orphans > 0 {
                context.sleep(SECOND_LOOK).await?;
                context.fence.holds().await?;
                let removed = context.stores.redis.remove_orphans(found.orphans).await?;
                context.add("orphans_removed", removed);
            }
            cursor = found.cursor;
            if cursor == 0 || context.step(started.elapsed()).await? == Step::Enough {
                break;
            }
        }
        context.set("whole", cursor == 0);
        if !context.dry_run() {
            let mut transaction = context.fence.begin().await?;
            job_schedules::set_state(&mut transaction, &context.schedule, &json!({ "cursor": cursor }))
                .await?;
            leader::commit(transaction).await?;
        }
        Ok(())
    })
}
