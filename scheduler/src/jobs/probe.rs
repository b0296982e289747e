//! What tests run: a job that does what its schedule's name, or its arguments, tell it to.
//!
//! Its effect is a row in the table `probe_effects`, which the tests make: one a time, under the fence.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use taskflow_stores::crash;
use taskflow_stores::postgres::{leader, probe};

use super::Job;
use crate::context::{Context, Failure, Step};

pub(super) const JOB: Job = Job {
    name: "test.probe",
    about: "What tests run",
    cron: "0 0 0 1 1 *",
    timeout_s: 60,
    enabled: false,
    work,
    ..Job::DEFAULT
};

/// The same, bound to the maintenance window.
pub(super) const HEAVY: Job =
    Job { name: "test.heavy", cron: "0 0 3 1 1 *", heavy: true, timeout_s: 3_600, ..JOB };

/// For how long a job that holds its thread does so: longer than a test's lead, and than it is given to stop.
const BLOCKS: Duration = Duration::from_secs(12);

fn work(context: Arc<Context>) -> BoxFuture<'static, Result<(), Failure>> {
    Box::pin(async move {
        let does = |word: &str| context.schedule.contains(word) || context.flag(word);
        context.log(format!("try {} begins", context.attempt));
        effect(&context).await?;
        crash::point("half_done");
        if does("hangs") {
            std::future::pending::<()>().await;
        }
        if does("blocks") {
            std::thread::sleep(BLOCKS);
        }
        assert!(!does("panics"), "a test wants this job to panic");
        if does("fails") {
            return Err(Failure::Again("a test wants this job to fail".into()));
        }
        if does("recovers") && context.attempt < 3 {
            return Err(Failure::Again("a test wants this try to fail".into()));
        }
        // Writes until it is stopped: what a leader that has lost the lead must not do.
        while does("writes") {
            effect(&context).await?;
            context.sleep(Duration::from_millis(20)).await?;
        }
        // Takes its time, and stops when it is told to.
        while does("lasts") && context.step(Duration::from_millis(10)).await? == Step::Go {}
        context.set("effects", 1);
        Ok(())
    })
}

async fn effect(context: &Context) -> Result<(), Failure> {
    let mut transaction = context.fence.begin().await?;
    probe::effect(&mut transaction, &context.schedule, context.due_at, context.fence.epoch()).await?;
    Ok(leader::commit(transaction).await?)
}
