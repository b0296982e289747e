//! The scheduler's promises: each due time has one row and at most one effect, whoever dies, stands still or is cut off.

mod asked;
mod blip;
mod clock;
mod leader;
mod many;
mod outage;
mod runs;
mod window;

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use serde_json::Value;
use taskflow_tests::{Cluster, Process, Site, wait};

pub(crate) fn tests() -> Vec<Trial> {
    let groups = [
        asked::tests(),
        blip::tests(),
        clock::tests(),
        leader::tests(),
        many::tests(),
        outage::tests(),
        runs::tests(),
        window::tests(),
    ];
    groups.into_iter().flatten().collect()
}

/// Makes the table that the probe writes into, and the settings of schedules that run it.
fn probes(cluster: &Cluster<'_>, schedules: &[(&str, &str)]) -> Result<()> {
    let section = |(name, more): &(&str, &str)| {
        format!("[scheduler.jobs.\"{name}\"]\njob = \"test.probe\"\nenabled = true\n{more}\n")
    };
    let others = OTHERS.map(|name| format!("[scheduler.jobs.\"{name}\"]\nenabled = false\n"));
    let sections: String = schedules.iter().map(section).chain(others).collect();
    cluster.write_settings(&sections)
}

/// What would only be in the way here.
const OTHERS: [&str; 21] = [
    "audit.seal",
    "audit.verify",
    "backup.drill",
    "backup.mongodb",
    "backup.mongodb.incremental",
    "backup.postgres",
    "backup.postgres.base",
    "backup.prune",
    "backup.redis",
    "cache.warm",
    "retention.events",
    "retention.holds",
    "retention.receipts",
    "retention.dead_letters",
    "retention.tasks",
    "retention.ledger",
    "retention.sockets",
    "maintenance.postgres",
    "maintenance.mongodb",
    "maintenance.redis",
    "report.stores",
];

async fn make_effects(site: &Site) -> Result<()> {
    site.sql(
        "CREATE TABLE probe_effects (id BIGINT GENERATED ALWAYS AS IDENTITY, schedule TEXT NOT NULL,
         due_at TIMESTAMPTZ NOT NULL, epoch BIGINT NOT NULL)",
    )
    .await
}

/// A scheduler whose lead runs out soon.
fn scheduler(cluster: &Cluster<'_>, more: &[(&str, &str)]) -> Result<Process> {
    let lease = [("TASKFLOW_SCHEDULER__LEASE_MS", "2000")];
    cluster.spawn("scheduler", &[lease.as_slice(), more].concat())
}

/// Runs `taskflow jobs`; its answer as JSON, whatever the exit code.
async fn jobs(cluster: &Cluster<'_>, args: &[&str]) -> Result<Value> {
    let args = [&["jobs"], args, &["--json"]].concat();
    let output = cluster.run(&args, &[]).await?;
    serde_json::from_slice(&output.stdout).with_context(|| {
        format!(
            "{args:?}: {}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        )
    })
}

async fn completed(site: &Site, schedule: &str) -> Result<i64> {
    site.count(&format!(
        "SELECT count(*) FROM job_runs WHERE schedule = '{schedule}' AND state = 'completed'"
    ))
    .await
}

async fn until_completed(site: &Site, schedule: &str, count: i64) -> Result<()> {
    wait::until("more runs are completed", async || Ok(completed(site, schedule).await? >= count)).await
}

/// Every second has exactly one row, and nothing has had an effect twice.
async fn each_second_once(site: &Site, schedule: &str) -> Result<()> {
    let rows = site
        .count(&format!(
            "SELECT count(*) - (extract(epoch FROM max(due_at) - min(due_at)) + 1)::bigint FROM job_runs
             WHERE schedule = '{schedule}' AND met <> 'by_hand'"
        ))
        .await?;
    ensure!(rows == 0, "{rows} rows too many or too few");
    let twice = "SELECT count(*) FROM (SELECT FROM probe_effects GROUP BY schedule, due_at HAVING count(*) > 1) AS twice";
    ensure!(site.count(twice).await? == 0, "an effect came twice");
    let unproven = "SELECT count(*) FROM job_runs r WHERE job = 'test.probe' AND state = 'completed'
                    AND NOT EXISTS (SELECT FROM probe_effects e WHERE (e.schedule, e.due_at) = (r.schedule, r.due_at))";
    ensure!(site.count(unproven).await? == 0, "a completed run has no effect");
    Ok(())
}

/// Holds a schedule back and waits until nothing of it is under way.
async fn come_to_rest(cluster: &Cluster<'_>, site: &Site, schedule: &str) -> Result<()> {
    jobs(cluster, &["pause", schedule, "--reason", "the test ends"]).await?;
    let unfinished = "SELECT count(*) FROM job_runs WHERE state IN ('waiting', 'running')";
    wait::until("nothing is under way", async || Ok(site.count(unfinished).await? == 0)).await
}
