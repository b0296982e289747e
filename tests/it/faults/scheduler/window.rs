//! The maintenance window holds for whatever begins late, and for whatever does not end.

use std::sync::Arc;

use anyhow::ensure;
use chrono::{TimeDelta, Timelike};
use libtest_mimic::Trial;
use taskflow_tests::{Cluster, Result, Site, wait};

use super::{OTHERS, jobs, make_effects, scheduler};
use crate::{cluster, with_site};

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        with_site("a retry that falls outside the maintenance window does not run", begun_late),
        with_site("a run that passes its window's end stops, also while it gives way", passed),
    ]
}

/// Runs of heavy jobs, in a window that begins an hour ago and ends so many minutes from now.
fn heavy(cluster: &Cluster<'_>, schedules: &[(&str, &str)], minutes: i64) -> Result<()> {
    let now = taskflow_stores::clock::now();
    let at = |minutes: i64| (now + TimeDelta::minutes(minutes)).format("%H:%M");
    let section = |(name, more): &(&str, &str)| {
        format!("[scheduler.jobs.\"{name}\"]\njob = \"test.heavy\"\nenabled = true\n{more}\n")
    };
    let others = OTHERS.map(|name| format!("[scheduler.jobs.\"{name}\"]\nenabled = false\n"));
    let window = format!("[scheduler]\nmaintenance_window = \"{}-{}\"\n", at(-60), at(minutes));
    let sections: String = schedules.iter().map(section).chain(others).collect();
    cluster.write_settings(&(window + &sections))
}

async fn begun_late(site: Arc<Site>) -> Result {
    make_effects(&site).await?;
    let cluster = cluster(&site)?;
    let retry = "cron = \"* * * * * *\"\nretries = { most = 3, first_s = 3600, longest_s = 3600 }";
    let schedules = [("fails", retry), ("lasts", retry), ("fine", "cron = \"0 0 0 1 1 *\"")];
    heavy(&cluster, &schedules, 120)?;
    let first = scheduler(&cluster, &[])?;
    let tried =
        "SELECT count(*) FROM job_runs WHERE schedule = 'fails' AND attempt = 1 AND state = 'waiting'";
    wait::until("a try has failed", async || Ok(site.count(tried).await? == 1)).await?;
    let runs = "SELECT count(*) FROM job_runs WHERE schedule = 'lasts' AND state = 'running'";
    wait::until("another one is at work", async || Ok(site.count(runs).await? == 1)).await?;
    // What is at work waits for its next try too, since the process ends.
    first.stop().await?;
    let effects = site.count("SELECT count(*) FROM probe_effects").await?;

    heavy(&cluster, &schedules, -30)?;
    site.sql(
        "UPDATE job_runs SET begins_at = now() WHERE state = 'waiting';
         INSERT INTO job_runs (schedule, job, due_at, met, state, begins_at, epoch)
         VALUES ('fine', 'test.heavy', now(), 'on_time', 'waiting', now(), 1)",
    )
    .await?;
    let second = scheduler(&cluster, &[])?;
    let ended =
        "SELECT count(*) FROM job_runs WHERE state = 'failed' AND attempt = 1 AND met IN ('on_time', 'late')
                 AND detail LIKE 'try 1 failed: %; it would begin outside the maintenance window, %'";
    wait::until("what was tried has failed", async || Ok(site.count(ended).await? == 2)).await?;
    let in_vain = "SELECT count(*) FROM job_runs WHERE schedule = 'fine' AND state = 'not_run' AND met = 'outside_window'
                   AND attempt = 0";
    wait::until("what has never begun was due in vain", async || Ok(site.count(in_vain).await? == 1)).await?;
    ensure!(site.count("SELECT count(*) FROM probe_effects").await? == effects, "one ran outside its window");
    // A person who asks for it gets it.
    let by_hand = jobs(&cluster, &["run", "fine"]).await?;
    ensure!(by_hand["state"] == "completed" && by_hand["figures"]["unfinished"].is_null(), "{by_hand}");
    second.stop().await
}

async fn passed(site: Arc<Site>) -> Result {
    make_effects(&site).await?;
    let cluster = cluster(&site)?;
    // The window ends with a minute, the next one that leaves time for the begin.
    let minutes = if taskflow_stores::clock::now().second() < 35 { 1 } else { 2 };
    heavy(
        &cluster,
        &[("lasts", "cron = \"* * * * * *\""), ("asked lasts", "cron = \"0 0 0 1 1 *\"")],
        minutes,
    )?;
    let scheduler = scheduler(&cluster, &[])?;
    let runs = |schedule: &str| {
        format!("SELECT count(*) FROM job_runs WHERE schedule = '{schedule}' AND state = 'running'")
    };
    wait::until("it runs", async || Ok(site.count(&runs("lasts")).await? == 1)).await?;
    jobs(&cluster, &["run", "asked lasts", "--no-wait"]).await?;
    wait::until("the one that was asked for runs too", async || {
        Ok(site.count(&runs("asked lasts")).await? == 1)
    })
    .await?;
    // A partition that is far behind, and stays so: it gives way for as long as it may.
    site.sql("INSERT INTO partition_leases (partition, holder, expires_at, reached) VALUES ('00', gen_random_uuid(), now() + interval '1 hour', now() - interval '1 minute');
              INSERT INTO partition_heads VALUES ('00', 1, 0)")
        .await?;
    let stopped = "SELECT count(*) FROM job_runs WHERE schedule = 'lasts' AND state = 'completed'
                   AND (figures ->> 'unfinished')::boolean AND (figures ->> 'yielded_s')::int > 0";
    wait::until("it stops at its window's end", async || Ok(site.count(stopped).await? == 1)).await?;
    ensure!(site.count(&runs("asked lasts")).await? == 1, "a run by hand is bound to the window");
    scheduler.stop().await
}
