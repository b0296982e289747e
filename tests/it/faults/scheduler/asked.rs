//! What people ask of a scheduler takes effect: a schedule that is held back does not fire, a run at work is ended.

use std::sync::Arc;

use anyhow::ensure;
use libtest_mimic::Trial;
use serde_json::{Value, json};
use taskflow_tests::{Result, Site, wait};

use super::{completed, jobs, make_effects, probes, scheduler, until_completed};
use crate::{cluster, with_site};

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        with_site("a paused schedule does not fire, and goes on without what was due meanwhile", paused),
        with_site("a run at work is cancelled over HTTP, and says by whom", cancelled),
    ]
}

async fn paused(site: Arc<Site>) -> Result {
    make_effects(&site).await?;
    let cluster = cluster(&site)?;
    let each_second = "cron = \"* * * * * *\"\nmissed = \"each\"";
    probes(&cluster, &[("held back", each_second), ("others", each_second)])?;
    let scheduler = scheduler(&cluster, &[])?;
    until_completed(&site, "held back", 2).await?;
    jobs(&cluster, &["pause", "held back", "--reason", "a look at it"]).await?;
    let unfinished =
        "SELECT count(*) FROM job_runs WHERE schedule = 'held back' AND state IN ('waiting', 'running')";
    wait::until("nothing of it is under way", async || Ok(site.count(unfinished).await? == 0)).await?;
    let rows = "SELECT count(*) FROM job_runs WHERE schedule = 'held back'";
    let (before, others) = (site.count(rows).await?, completed(&site, "others").await?);
    until_completed(&site, "others", others + 4).await?;
    ensure!(site.count(rows).await? == before, "it has fired");
    // Another leader holds it back too.
    scheduler.stop().await?;
    let scheduler = super::scheduler(&cluster, &[])?;
    let others = completed(&site, "others").await?;
    until_completed(&site, "others", others + 2).await?;
    ensure!(site.count(rows).await? == before, "it has fired under another leader");
    site.sql("CREATE TABLE resumed AS SELECT now() AS at").await?;
    jobs(&cluster, &["resume", "held back"]).await?;
    let runs = completed(&site, "held back").await?;
    until_completed(&site, "held back", runs + 2).await?;
    let made_up = "SELECT count(*) FROM job_runs, resumed
        WHERE schedule = 'held back' AND due_at < at - interval '1 second' AND epoch > 1";
    ensure!(site.count(made_up).await? == 0, "what was due while it was held back was made up for");
    scheduler.stop().await
}

async fn cancelled(site: Arc<Site>) -> Result {
    make_effects(&site).await?;
    let cluster = cluster(&site)?;
    probes(&cluster, &[("lasts", "timeout_s = 3600")])?;
    let scheduler = scheduler(&cluster, &[])?;
    let known = "SELECT count(*) FROM job_schedules";
    wait::until("the schedules are there", async || Ok(site.count(known).await? > 0)).await?;
    let (api, client) = cluster.api().await?;
    let (admin, user) = (client.admin().await?, client.user().await?);
    let asked: Value = admin.post("/v1/admin/jobs/lasts/runs").json(&json!({})).send().await?.json().await?;
    let path = asked["status_url"].as_str().unwrap_or_default().to_owned();
    let run = async || -> Result<Value> { Ok(admin.get(&path).await?.json().await?) };
    wait::until("it is at work", async || Ok(run().await?["state"] == "running")).await?;
    ensure!(user.delete(&path).await?.status() == 403, "a user ends a run");
    let answer = admin.delete(&path).await?;
    ensure!(answer.status().is_success(), "{}", answer.status());
    wait::until("it is cancelled", async || Ok(run().await?["state"] == "cancelled")).await?;
    let run = run().await?;
    let by = run["detail"].as_str().and_then(|detail| detail.strip_prefix("cancelled by "));
    ensure!(by.is_some_and(|by| !by.is_empty()) && run["endedat"].is_string(), "{run}");
    api.stop().await?;
    scheduler.stop().await
}
