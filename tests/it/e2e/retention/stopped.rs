//! A leader that stands still right before it writes to MongoDB: by the time it goes on, another one leads.

use std::sync::Arc;

use anyhow::{Context, ensure};
use libtest_mimic::Trial;
use nix::sys::signal::Signal;
use taskflow_stores::mongo::fence;
use taskflow_stores::mongo::retention as trail;
use taskflow_tests::commands::ADMIN;
use taskflow_tests::{Cluster, Process, Result, Site, wait};

use super::{age, by_hand, created, kept_days, made, mark_of, run, until_led};
use crate::{cluster, with_site};

pub(super) fn tests() -> Vec<Trial> {
    vec![
        with_site("a leader that sleeps beyond its lead before it removes events removes none", removes),
        with_site("a leader that sleeps beyond its lead before it stamps events stamps none", stamps),
        with_site("a write to MongoDB that bears an end does nothing after it", ends),
    ]
}

/// Settings under which a run is not tried again: what is under test would then be done by who may.
fn once(more: &str) -> String {
    let job = "[scheduler.jobs.\"retention.events\"]\n";
    by_hand(more).replace(job, &format!("{job}retries = {{ most = 0 }}\n"))
}

/// A scheduler whose lead runs out soon.
fn scheduler(cluster: &Cluster<'_>, more: &[(&str, &str)]) -> Result<Process> {
    cluster.spawn("scheduler", &[[("TASKFLOW_SCHEDULER__LEASE_MS", "2000")].as_slice(), more].concat())
}

/// A leader that was stopped at a point of a run that was asked for, and the one that leads since, with other settings.
async fn stopped_at(
    site: &Site,
    cluster: &Cluster<'_>,
    point: &str,
    args: &[&str],
    successors: &str,
) -> Result<(Process, Process)> {
    let sleeper = scheduler(cluster, &[("TASKFLOW_CRASH_AT", &format!("stop:{point}:1"))])?;
    until_led(site).await?;
    let asked = cluster.run(&[&["jobs", "run", "retention.events", "--no-wait"], args].concat(), &[]).await?;
    ensure!(asked.status.success(), "{}", String::from_utf8_lossy(&asked.stderr));
    let status = format!("/proc/{}/status", sleeper.pid()?);
    wait::until("it sleeps", async || Ok(std::fs::read_to_string(&status)?.contains("State:\tT"))).await?;
    cluster.write_settings(&once(successors))?;
    let successor = scheduler(cluster, &[])?;
    wait::until("another one leads", async || {
        Ok(site.count("SELECT epoch FROM scheduler_leader").await? == 2)
    })
    .await?;
    Ok((sleeper, successor))
}

/// Lets a leader of the past go on, and waits until it has given up what it was at.
async fn wake(sleeper: &Process) -> Result {
    sleeper.signal(Signal::SIGCONT)?;
    wait::until("its run has ended", async || Ok(sleeper.log().contains("end can't be written: another")))
        .await?;
    // It has tried, and was told.
    let log = sleeper.log();
    ensure!(log.contains("the scheduler's lead was over before MongoDB answered"), "{log}");
    Ok(())
}

async fn removes(site: Arc<Site>) -> Result {
    let cluster = cluster(&site)?;
    cluster.write_settings(&once(""))?;
    let (task, command) = created(ADMIN);
    made(&site, &cluster, &[command]).await?;
    age(&site, task, 200, 20).await?;
    let (sleeper, successor) = stopped_at(&site, &cluster, "removes", &[], "").await?;
    wake(&sleeper).await?;
    // Nobody has changed the event meanwhile: nothing but the end of the lead has kept it.
    ensure!(kept_days(&site, task).await?.is_some(), "it was removed by who does not lead");
    let done = run(&cluster, &["retention.events"]).await?;
    ensure!(done["figures"]["removed"] == 1, "the one that leads can't remove it either: {done}");
    sleeper.stop().await?;
    successor.stop().await
}

async fn stamps(site: Arc<Site>) -> Result {
    let cluster = cluster(&site)?;
    cluster.write_settings(&once(""))?;
    let (task, command) = created(ADMIN);
    made(&site, &cluster, &[command]).await?;
    // Right under the policy of the next leader, and to be stamped under the one of the first: 180 days.
    age(&site, task, 10, 10 - 400).await?;
    let longer = "[retention]\ntask_events_days = 400\n";
    let (sleeper, successor) = stopped_at(&site, &cluster, "stamps", &["--with", "restamp"], longer).await?;
    let done = run(&cluster, &["retention.events", "--with", "restamp"]).await?;
    ensure!(kept_days(&site, task).await? == Some(400), "{done}");
    wake(&sleeper).await?;
    // It would be 180 days, and nobody would look at it again before MongoDB's own reaper did.
    ensure!(kept_days(&site, task).await? == Some(400), "it was stamped by who does not lead");
    sleeper.stop().await?;
    successor.stop().await
}

async fn ends(site: Arc<Site>) -> Result {
    let cluster = cluster(&site)?;
    let (task, command) = created(ADMIN);
    made(&site, &cluster, &[command]).await?;
    age(&site, task, 200, 20).await?;
    let read = trail::behind(&site.mongo, None, 100).await?;
    let event = read.iter().find(|event| event.entity == task).context("no event")?;
    let (before, now) = (mark_of(&site, task).await?, taskflow_stores::clock::now());
    let over = fence::moment(&site.mongo).await?.lasts(std::time::Duration::ZERO);
    let removed = trail::remove(&site.mongo, &[event.id], now, over).await;
    let stamped = trail::stamp(&site.mongo, &[(event, now)], over).await;
    ensure!(removed.is_err() && stamped.is_err(), "it does not say that it came too late");
    ensure!(mark_of(&site, task).await? == before, "what came too late took effect");
    let lasts = fence::moment(&site.mongo).await?.lasts(std::time::Duration::from_secs(60));
    trail::stamp(&site.mongo, &[(event, event.created_at)], lasts).await?;
    ensure!(mark_of(&site, task).await? == event.created_at, "what came in time took no effect");
    ensure!(
        trail::remove(&site.mongo, &[event.id], now, lasts).await? == 1,
        "what came in time removed nothing"
    );
    Ok(())
}
