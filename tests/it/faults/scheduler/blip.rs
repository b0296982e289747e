//! Postgres that is away for less than a lease, and connections to it that have fallen silent: the leader goes on.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use libtest_mimic::Trial;
use taskflow_stores::postgres::begin;
use taskflow_tests::proxy::Wire;
use taskflow_tests::{Result, Site, wait};

use super::{completed, make_effects, probes, scheduler, until_completed};
use crate::{cluster, with_site};

const EACH: &str = "each second";

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        with_site("a run that has begun without its leader's knowledge holds nobody up", unknown),
        with_site("a scheduler whose connections to Postgres have fallen silent makes new ones", silent),
    ]
}

/// As a commit leaves it whose answer was lost: the row says that the run is at work, under the epoch of the leader, which
/// knows nothing of it.
async fn unknown(site: Arc<Site>) -> Result {
    make_effects(&site).await?;
    let cluster = cluster(&site)?;
    probes(&cluster, &[(EACH, "cron = \"* * * * * *\"\noverlap = \"skip\"")])?;
    let lasting = [("TASKFLOW_SCHEDULER__LEASE_MS", "20000")];
    let scheduler = cluster.spawn("scheduler", &lasting)?;
    until_completed(&site, EACH, 1).await?;
    let epoch = site.count("SELECT epoch FROM scheduler_leader").await?;
    site.sql(
        "INSERT INTO job_runs (schedule, job, due_at, met, state, begins_at, started_at, epoch, attempt, host)
         SELECT 'each second', 'test.probe', now() - interval '1 day', 'on_time', 'running', now(), now(), epoch, 1, 'here'
         FROM scheduler_leader",
    )
    .await?;
    let overlapped = "SELECT count(*) FROM job_runs WHERE schedule = 'each second' AND met = 'overlapped'";
    wait::until("it is in the way", async || Ok(site.count(overlapped).await? > 1)).await?;
    let before = completed(&site, EACH).await?;
    let gone = "SELECT count(*) FROM job_runs WHERE state = 'failed' AND detail LIKE 'whoever worked on it is gone%'";
    // It is the leader's own session sooner or later: others of its process wait for the table too.
    wait::until("the run has ended", async || {
        end_a_session(&site).await?;
        let seen = wait::until("the leader has looked", async || Ok(site.count(gone).await? == 1));
        Ok(tokio::time::timeout(Duration::from_secs(4), seen).await.is_ok())
    })
    .await?;
    until_completed(&site, EACH, before + 2).await?;
    let now = site.count("SELECT epoch FROM scheduler_leader").await?;
    ensure!(now == epoch, "another one leads: epoch {now} after {epoch}");
    scheduler.stop().await
}

/// Ends a session of the scheduler's that is at work: one that rests when it ends is replaced without a word.
async fn end_a_session(site: &Site) -> Result {
    let mut lock = begin(&site.postgres).await?;
    sqlx::query("LOCK TABLE job_runs").execute(&mut *lock).await?;
    let ended = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
                 WHERE datname = current_database() AND application_name = 'taskflow' AND wait_event_type = 'Lock'";
    wait::until("its session is ended", async || Ok(site.count(ended).await? > 0)).await?;
    Ok(lock.rollback().await?)
}

async fn silent(site: Arc<Site>) -> Result {
    make_effects(&site).await?;
    let cluster = cluster(&site)?;
    probes(&cluster, &[(EACH, "cron = \"* * * * * *\"")])?;
    let url = site.env.iter().find(|(name, _)| name == "TASKFLOW_POSTGRES__URL").context("no address")?;
    let (wire, through) = Wire::to_url(&url.1).await?;
    let scheduler = scheduler(&cluster, &[("TASKFLOW_POSTGRES__URL", through.as_str())])?;
    for _ in 0..2 {
        let before = completed(&site, EACH).await?;
        until_completed(&site, EACH, before + 1).await?;
        wire.forget();
        let before = completed(&site, EACH).await?;
        until_completed(&site, EACH, before + 2).await?;
    }
    scheduler.kill().await
}
