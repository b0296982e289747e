//! Ten thousand schedules.

use std::sync::Arc;

use anyhow::ensure;
use libtest_mimic::Trial;
use taskflow_tests::{Process, Result, Site, wait};

use super::{make_effects, probes, scheduler};
use crate::{cluster, with_site};

pub(crate) fn tests() -> Vec<Trial> {
    vec![with_site("ten thousand schedules cost next to nothing", ten_thousand)]
}

/// What they cost is what a scheduler with them takes more than one without.
async fn ten_thousand(site: Arc<Site>) -> Result {
    make_effects(&site).await?;
    let cluster = cluster(&site)?;
    probes(&cluster, &[])?;
    let without = share(&site, &scheduler(&cluster, &[])?, 0).await?;
    // Once a day each, one about every nine seconds.
    let schedules: Vec<(String, String)> = (0..10_000)
        .map(|number| {
            let second = number * 8 % 86_400;
            let cron = format!("cron = \"{} {} {} * * *\"", second % 60, second / 60 % 60, second / 3600);
            (format!("p{number}"), cron)
        })
        .collect();
    let schedules: Vec<(&str, &str)> =
        schedules.iter().map(|(name, cron)| (name.as_str(), cron.as_str())).collect();
    probes(&cluster, &schedules)?;
    let with = share(&site, &scheduler(&cluster, &[])?, 10_000).await?;
    println!(
        "a scheduler takes {:.2} % of a core without schedules, {:.2} % with ten thousand",
        without * 100.0,
        with * 100.0
    );
    ensure!(with - without < 0.01, "{with} of a core with them, {without} without");
    Ok(())
}

/// The share of a core that a scheduler takes over ten seconds, once so many schedules are armed.
async fn share(site: &Site, scheduler: &Process, armed: i64) -> Result<f64> {
    let count = "SELECT count(*) FROM job_schedules WHERE next_due_at IS NOT NULL";
    let known = "SELECT count(*) FROM job_schedules WHERE name = 'test.probe'";
    wait::until("all are armed", async || {
        Ok(site.count(known).await? == 1 && site.count(count).await? == armed)
    })
    .await?;
    let renewed = "SELECT (extract(epoch FROM expires_at) * 1000)::bigint FROM scheduler_leader";
    let (from, used) = (site.count(renewed).await?, scheduler.cpu_seconds()?);
    wait::until("ten seconds have passed", async || Ok(site.count(renewed).await? >= from + 10_000)).await?;
    let took_ms = site.count(renewed).await? - from;
    Ok((scheduler.cpu_seconds()? - used) / (took_ms as f64 / 1_000.0))
}
