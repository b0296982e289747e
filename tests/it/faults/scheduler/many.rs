//! Ten thousand schedules.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::{bail, ensure};
use libtest_mimic::Trial;
use nix::unistd::Pid;
use taskflow_tests::cluster::cpu_seconds;
use taskflow_tests::{Process, Result, Site, wait};

use super::{make_effects, probes};
use crate::{cluster, with_site};

pub(crate) fn tests() -> Vec<Trial> {
    vec![with_site(
        "ten thousand schedules cost less than a hundredth of a core, Postgres's part included",
        ten_thousand,
    )]
}

/// The most that they may cost, of a core, and how often it is looked at.
const MOST: f64 = 0.01;
const LOOKS: usize = 4;

/// Shares of a core.
struct Shares {
    scheduler: f64,
    /// Of the server processes that work for it. What the server does for all of them together (its log, its checkpoints)
    /// can't be told apart.
    postgres: f64,
}

/// What they cost is what a scheduler with them, and Postgres for it, takes more than without.
async fn ten_thousand(site: Arc<Site>) -> Result {
    make_effects(&site).await?;
    let cluster = cluster(&site)?;
    probes(&cluster, &[])?;
    // With the lease that people have: so many take a moment in a debug build beside other tests.
    let first = cluster.spawn("scheduler", &[])?;
    until_armed(&site, 0).await?;
    // The lesser of two: what it takes at its start is no measure.
    let (one, two) = (shares(&site, &first).await?, shares(&site, &first).await?);
    let without =
        Shares { scheduler: one.scheduler.min(two.scheduler), postgres: one.postgres.min(two.postgres) };
    first.stop().await?;
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
    let second = cluster.spawn("scheduler", &[])?;
    until_armed(&site, 10_000).await?;
    // What others do on the machine makes it look dearer, never cheaper: the least of a few looks counts.
    let mut told = String::new();
    for _ in 0..LOOKS {
        let with = shares(&site, &second).await?;
        told = format!(
            "a scheduler takes {:.2} % of a core without schedules and {:.2} % with ten thousand, Postgres for it {:.2} % \
             and {:.2} %",
            without.scheduler * 100.0,
            with.scheduler * 100.0,
            without.postgres * 100.0,
            with.postgres * 100.0
        );
        println!("{told}");
        if with.scheduler + with.postgres - without.scheduler - without.postgres < MOST {
            return second.stop().await;
        }
    }
    bail!("they cost too much: {told}")
}

/// Seconds of processor time of the server's processes that work for a scheduler of this site, by their numbers.
async fn postgres(site: &Site) -> Result<BTreeMap<i32, f64>> {
    let pids: Vec<i32> = sqlx::query_scalar(
        "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'taskflow'",
    )
    .fetch_all(&site.postgres)
    .await?;
    // One may end between the two looks.
    let used = |pid: i32| Some((pid, cpu_seconds(Pid::from_raw(pid)).ok()?));
    Ok(pids.into_iter().filter_map(used).collect())
}

async fn until_armed(site: &Site, schedules: i64) -> Result {
    let count = "SELECT count(*) FROM job_schedules WHERE next_due_at IS NOT NULL";
    let known = "SELECT count(*) FROM job_schedules WHERE name = 'test.probe'";
    wait::until("all are armed", async || {
        Ok(site.count(known).await? == 1 && site.count(count).await? == schedules)
    })
    .await
}

/// The shares that a scheduler and Postgres for it take over ten seconds.
async fn shares(site: &Site, scheduler: &Process) -> Result<Shares> {
    let now_ms = "SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint";
    let (from, used, server) = (site.count(now_ms).await?, scheduler.cpu_seconds()?, postgres(site).await?);
    ensure!(!server.is_empty(), "no process of the server works for the scheduler");
    wait::until("ten seconds have passed", async || Ok(site.count(now_ms).await? >= from + 10_000)).await?;
    let took_s = (site.count(now_ms).await? - from) as f64 / 1_000.0;
    let (used, now) = (scheduler.cpu_seconds()? - used, postgres(site).await?);
    let gone = server.keys().find(|pid| !now.contains_key(pid));
    ensure!(gone.is_none(), "a process of the server ended, and what it took is not known");
    let of_server: f64 = now.iter().map(|(pid, used)| used - server.get(pid).unwrap_or(&0.0)).sum();
    Ok(Shares { scheduler: used / took_s, postgres: of_server / took_s })
}
