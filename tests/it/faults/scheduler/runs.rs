//! Jobs that hang, panic, fail, take too long, get in each other's way.

use std::sync::Arc;

use anyhow::ensure;
use libtest_mimic::Trial;
use serde_json::Value;
use taskflow_tests::{Result, Site, wait};

use super::{completed, jobs, make_effects, probes, scheduler, until_completed};
use crate::{cluster, with_site};

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        with_site("a job that hangs, panics or fails harms no other", bad_jobs),
        with_site("a job that holds its thread harms no other", blocking),
        with_site("long runs leave a place for short ones", long_runs),
        with_site(
            "runs that would overlap are skipped, queued or replaced, as their schedule says",
            overlapping,
        ),
    ]
}

async fn bad_jobs(site: Arc<Site>) -> Result {
    make_effects(&site).await?;
    let cluster = cluster(&site)?;
    let retry = "retries = { most = 3, first_s = 1, longest_s = 1 }";
    probes(
        &cluster,
        &[
            ("hangs", "timeout_s = 1"),
            ("lasts", "timeout_s = 1"),
            ("panics", ""),
            ("fails", "retries = { most = 1, first_s = 1, longest_s = 1 }"),
            ("recovers", retry),
            ("fine", "cron = \"* * * * * *\""),
            ("cancelled lasts", ""),
        ],
    )?;
    let scheduler = scheduler(&cluster, &[("TASKFLOW_SCHEDULER__AT_ONCE", "8")])?;
    until_completed(&site, "fine", 1).await?;
    let ended = async |name: &str| -> Result<Value> { jobs(&cluster, &["run", name]).await };
    let (hung, lasted, panicked, failed, recovered) =
        tokio::try_join!(ended("hangs"), ended("lasts"), ended("panics"), ended("fails"), ended("recovers"))?;
    let is = |run: &Value, state: &str, tries: u64, word: &str| -> Result {
        let detail = run["detail"].as_str().unwrap_or_default();
        ensure!(run["state"] == state && run["attempt"] == tries && detail.contains(word), "{run}");
        Ok(())
    };
    is(&hung, "timed_out", 1, "was dropped")?;
    is(&lasted, "timed_out", 1, "not done after 1 s")?;
    is(&panicked, "failed", 1, "a test wants this job to panic")?;
    is(&failed, "failed", 2, "a test wants this job to fail")?;
    is(&recovered, "completed", 3, "")?;
    ensure!(
        recovered["figures"]["effects"] == 1
            && recovered["log"][0].as_str().is_some_and(|line| line.ends_with("try 3 begins")),
        "{recovered}"
    );
    ensure!(recovered["host"].is_string() && recovered["startedat"].is_string(), "{recovered}");
    let asked = jobs(&cluster, &["run", "cancelled lasts", "--no-wait"]).await?;
    let id = asked["run"].to_string();
    wait::until("it runs", async || Ok(jobs(&cluster, &["show", &id]).await?["state"] == "running")).await?;
    jobs(&cluster, &["cancel", &id, "--as", "ada"]).await?;
    wait::until("it is cancelled", async || {
        let run = jobs(&cluster, &["show", &id]).await?;
        Ok(run["state"] == "cancelled" && run["detail"] == "cancelled by ada")
    })
    .await?;
    let before = completed(&site, "fine").await?;
    until_completed(&site, "fine", before + 2).await?;
    scheduler.stop().await
}

async fn blocking(site: Arc<Site>) -> Result {
    make_effects(&site).await?;
    let cluster = cluster(&site)?;
    probes(
        &cluster,
        &[
            ("blocks", "timeout_s = 1"),
            ("fine", "cron = \"* * * * * *\"\noverlap = \"queue\"\nmissed = \"each\""),
        ],
    )?;
    let scheduler = scheduler(&cluster, &[])?;
    until_completed(&site, "fine", 1).await?;
    let blocked = jobs(&cluster, &["run", "blocks"]).await?;
    ensure!(blocked["state"] == "timed_out", "{blocked}");
    let before = completed(&site, "fine").await?;
    until_completed(&site, "fine", before + 3).await?;
    // Nobody had to take over.
    ensure!(site.count("SELECT epoch FROM scheduler_leader").await? == 1, "the lead was lost");
    super::come_to_rest(&cluster, &site, "fine").await?;
    super::each_second_once(&site, "fine").await?;
    scheduler.stop().await
}

async fn long_runs(site: Arc<Site>) -> Result {
    make_effects(&site).await?;
    let cluster = cluster(&site)?;
    let long = "timeout_s = 3600";
    let names = ["one lasts", "two lasts", "three lasts", "four lasts"];
    let schedules: Vec<(&str, &str)> =
        names.iter().map(|name| (*name, long)).chain([("fine", "cron = \"* * * * * *\"")]).collect();
    probes(&cluster, &schedules)?;
    let scheduler = scheduler(&cluster, &[("TASKFLOW_SCHEDULER__AT_ONCE", "3")])?;
    until_completed(&site, "fine", 1).await?;
    for name in names {
        jobs(&cluster, &["run", name, "--no-wait"]).await?;
    }
    let in_state = async |state: &str| {
        site.count(&format!(
            "SELECT count(*) FROM job_runs WHERE schedule LIKE '% lasts' AND state = '{state}'"
        ))
        .await
    };
    wait::until("as many run as may", async || Ok(in_state("running").await? == 2)).await?;
    let before = completed(&site, "fine").await?;
    until_completed(&site, "fine", before + 3).await?;
    ensure!(
        in_state("running").await? == 2 && in_state("waiting").await? == 2,
        "a long run took the last place"
    );
    // The others have their turn.
    let running =
        "SELECT id FROM job_runs WHERE schedule LIKE '% lasts' AND state = 'running' ORDER BY id LIMIT 1";
    let first = site.count(running).await?;
    jobs(&cluster, &["cancel", &first.to_string()]).await?;
    wait::until("the next one runs", async || {
        Ok(in_state("running").await? == 2 && in_state("waiting").await? == 1)
    })
    .await?;
    scheduler.stop().await
}

async fn overlapping(site: Arc<Site>) -> Result {
    make_effects(&site).await?;
    let cluster = cluster(&site)?;
    let each_second =
        |overlap: &str| format!("cron = \"* * * * * *\"\ntimeout_s = 600\noverlap = \"{overlap}\"");
    let (skip, queue, replace) = (each_second("skip"), each_second("queue"), each_second("cancel_previous"));
    probes(&cluster, &[("skip lasts", &skip), ("queue lasts", &queue), ("replace lasts", &replace)])?;
    let scheduler = scheduler(&cluster, &[("TASKFLOW_SCHEDULER__AT_ONCE", "8")])?;
    let count = async |schedule: &str, what: &str| -> Result<i64> {
        site.count(&format!("SELECT count(*) FROM job_runs WHERE schedule = '{schedule} lasts' AND {what}"))
            .await
    };
    wait::until("each has met the next due times", async || {
        Ok(count("skip", "met = 'overlapped'").await? >= 2
            && count("queue", "state = 'waiting'").await? >= 2
            && count("replace", "state = 'cancelled'").await? >= 2)
    })
    .await?;
    // The row of a due time waits for a moment before it is known that the one before it still runs.
    ensure!(count("skip", "state = 'running'").await? == 1, "skip: more than the first");
    ensure!(count("skip", "state = 'completed'").await? == 0, "skip: the first has ended");
    ensure!(
        count("queue", "state = 'running'").await? == 1 && count("queue", "met = 'overlapped'").await? == 0,
        "queue: not one by one"
    );
    ensure!(count("replace", "state = 'running'").await? <= 1, "replace: two at a time");
    scheduler.stop().await?;
    // What waits is taken up by the next one; what ran is not, since nobody knows how far it got.
    let next = super::scheduler(&cluster, &[])?;
    wait::until("the line moves on", async || {
        Ok(count("queue", "state = 'running' AND epoch >= 2").await? == 1)
    })
    .await?;
    next.stop().await
}
