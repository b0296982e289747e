//! Two schedulers; the one that leads dies at each point of a run, or stands still for longer than its lead.

use std::os::unix::process::ExitStatusExt;
use std::sync::Arc;

use anyhow::ensure;
use libtest_mimic::Trial;
use nix::sys::signal::Signal;
use taskflow_tests::{Result, Site, wait};

use super::{
    come_to_rest, completed, each_second_once, jobs, make_effects, probes, scheduler, until_completed,
};
use crate::{cluster, with_site};

/// The boundaries, and which pass of each ends the process.
const POINTS: [(&str, u32); 6] =
    [("led", 1), ("fired", 3), ("begun", 3), ("half_done", 3), ("worked", 3), ("ended", 3)];

pub(crate) fn tests() -> Vec<Trial> {
    let dies = POINTS.into_iter().map(|(point, pass)| {
        let name =
            format!("a scheduler that dies when it has {point} leaves each due time one row and one effect");
        with_site(&name, async move |site| dies(site, point, pass).await)
    });
    let more = [
        with_site("a scheduler that sleeps longer than its lead can write nothing", sleeper),
        with_site("another scheduler leads within ten seconds of a death", async |site| {
            failover(site, Signal::SIGKILL).await
        }),
        with_site("another scheduler leads within ten seconds of a standstill", async |site| {
            failover(site, Signal::SIGSTOP).await
        }),
    ];
    dies.chain(more).collect()
}

async fn dies(site: Arc<Site>, point: &str, pass: u32) -> Result {
    make_effects(&site).await?;
    let cluster = cluster(&site)?;
    probes(&cluster, &[("each second", "cron = \"* * * * * *\"\noverlap = \"queue\"\nmissed = \"each\"")])?;
    let mut first = scheduler(&cluster, &[("TASKFLOW_CRASH_AT", &format!("{point}:{pass}"))])?;
    let led = "SELECT epoch FROM scheduler_leader";
    wait::until("it leads", async || Ok(site.count(led).await? >= 1)).await?;
    let second = scheduler(&cluster, &[])?;
    let status = first.ended().await?;
    ensure!(status.signal() == Some(9), "it ended with {status}:\n{}", first.log());
    wait::until("the other one leads", async || Ok(site.count(led).await? >= 2)).await?;
    let before = completed(&site, "each second").await?;
    until_completed(&site, "each second", before + 4).await?;
    come_to_rest(&cluster, &site, "each second").await?;
    each_second_once(&site, "each second").await?;
    let interrupted = site.count("SELECT count(*) FROM job_runs WHERE state = 'failed'").await?;
    let expected = i64::from(matches!(point, "begun" | "half_done" | "worked"));
    ensure!(interrupted == expected, "{interrupted} runs failed when it had {point}");
    second.stop().await
}

async fn sleeper(site: Arc<Site>) -> Result {
    make_effects(&site).await?;
    let cluster = cluster(&site)?;
    probes(&cluster, &[("writes", "")])?;
    let sleeper = scheduler(&cluster, &[])?;
    let known = "SELECT count(*) FROM job_schedules";
    wait::until("the schedules are there", async || Ok(site.count(known).await? > 0)).await?;
    jobs(&cluster, &["run", "writes", "--no-wait"]).await?;
    let effects = "SELECT count(*) FROM probe_effects";
    wait::until("it writes", async || Ok(site.count(effects).await? > 5)).await?;
    let successor = scheduler(&cluster, &[])?;
    sleeper.signal(Signal::SIGSTOP)?;
    wait::until("another one leads", async || {
        Ok(site.count("SELECT epoch FROM scheduler_leader").await? >= 2)
    })
    .await?;
    jobs(&cluster, &["run", "writes", "--no-wait"]).await?;
    let later = "SELECT count(*) FROM probe_effects WHERE epoch > 1";
    wait::until("the other one writes", async || Ok(site.count(later).await? > 5)).await?;
    let old = site.count("SELECT max(id) FROM probe_effects WHERE epoch = 1").await?;
    sleeper.signal(Signal::SIGCONT)?;
    wait::until("it knows that it does not lead any more", async || {
        Ok(sleeper.log().contains("The lead is lost"))
    })
    .await?;
    let now = site.count(later).await?;
    wait::until("time goes on", async || Ok(site.count(later).await? > now + 20)).await?;
    ensure!(
        site.count("SELECT max(id) FROM probe_effects WHERE epoch = 1").await? == old,
        "it wrote after it had lost the lead"
    );
    let first_of_new = site.count("SELECT min(id) FROM probe_effects WHERE epoch > 1").await?;
    ensure!(old < first_of_new, "both wrote at a time");
    let ended = "SELECT count(*) FROM job_runs WHERE state = 'failed' AND detail LIKE '%is gone%'";
    ensure!(site.count(ended).await? == 1, "its run was not ended by the successor");
    sleeper.stop().await?;
    successor.stop().await
}

async fn failover(site: Arc<Site>, end: Signal) -> Result {
    let cluster = cluster(&site)?;
    // The lead's own length, as everybody has it.
    let first = cluster.spawn("scheduler", &[])?;
    let looks = "SELECT count(*) FROM job_schedules WHERE next_due_at IS NOT NULL";
    wait::until("it leads", async || Ok(site.count(looks).await? > 0)).await?;
    let second = cluster.spawn("scheduler", &[])?;
    wait::until("the other one stands by", async || Ok(second.log().contains("The scheduler starts")))
        .await?;
    first.signal(end)?;
    // All times are Postgres's: from the last renewal of the one to the first moment of the other.
    let renewed = site
        .count("SELECT (extract(epoch FROM expires_at) * 1000)::bigint - 6000 FROM scheduler_leader")
        .await?;
    wait::until("the other one leads", async || {
        Ok(site.count("SELECT epoch FROM scheduler_leader").await? == 2)
    })
    .await?;
    let since = site.count("SELECT (extract(epoch FROM since) * 1000)::bigint FROM scheduler_leader").await?;
    ensure!(since - renewed < 10_000, "nobody led for {} ms", since - renewed);
    // One that is told to stop gives the lead back at once.
    let third = cluster.spawn("scheduler", &[])?;
    wait::until("a third one stands by", async || Ok(third.log().contains("The scheduler starts"))).await?;
    second.stop().await?;
    wait::until("the third one leads", async || {
        Ok(site.count("SELECT epoch FROM scheduler_leader").await? == 3)
    })
    .await?;
    third.stop().await
}
