//! Scheduled jobs, as operators see them: on the command line and over HTTP.

use std::sync::Arc;

use anyhow::ensure;
use libtest_mimic::Trial;
use serde_json::{Value, json};
use taskflow_tests::{Result, Site, wait};

use crate::{cluster, with_site};

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        with_site("jobs are listed, run, shown, paused, resumed and cancelled", by_hand),
        with_site("a schedule that is wrong stops the start and says why", wrong),
    ]
}

async fn by_hand(site: Arc<Site>) -> Result {
    let cluster = cluster(&site)?;
    let run = async |args: &[&str]| -> Result<(Option<i32>, String)> {
        let output = cluster.run(args, &[]).await?;
        let text =
            format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        Ok((output.status.code(), text))
    };
    let (code, text) = run(&["jobs", "list"]).await?;
    ensure!(code == Some(0) && text.contains("no scheduler has ever led"), "{code:?} {text}");
    let scheduler = cluster.spawn("scheduler", &[])?;
    let known = "SELECT count(*) FROM job_schedules WHERE next_due_at IS NOT NULL";
    wait::until("the schedules are armed", async || Ok(site.count(known).await? > 0)).await?;
    let (code, text) = run(&["jobs", "list"]).await?;
    ensure!(
        code == Some(0) && text.contains("led by") && text.contains("retention.ledger"),
        "{code:?} {text}"
    );
    let (code, text) = run(&["jobs", "run", "retention.ledger"]).await?;
    ensure!(
        code == Some(0) && text.contains("state     completed") && text.contains("by_hand"),
        "{code:?} {text}"
    );
    let (code, text) = run(&["jobs", "show", "retention.ledger"]).await?;
    ensure!(code == Some(0) && text.contains("next due") && text.contains("runs_removed"), "{code:?} {text}");
    let (code, text) = run(&["jobs", "run", "retention.leger"]).await?;
    ensure!(code == Some(2) && text.contains("did you mean \"retention.ledger\"?"), "{code:?} {text}");
    let (code, text) = run(&["jobs", "cancel", "999999"]).await?;
    ensure!(code == Some(1) && text.contains("there is no run"), "{code:?} {text}");

    let (api, client) = cluster.api().await?;
    let (admin, user) = (client.admin().await?, client.user().await?);
    ensure!(user.get("/v1/admin/jobs").await?.status() == 403, "a user sees the jobs");
    let list: Value = admin.get("/v1/admin/jobs").await?.json().await?;
    ensure!(
        list["leader"]["leads"] == true && list["items"].as_array().is_some_and(|items| !items.is_empty()),
        "{list}"
    );
    let pause = |body: Value| admin.post("/v1/admin/jobs/retention.ledger/pause").json(&body).send();
    ensure!(pause(json!({})).await?.status() == 400, "a pause without a reason");
    let paused: Value = pause(json!({ "reason": "a look at it" })).await?.json().await?;
    ensure!(paused["pausedwhy"] == "a look at it", "{paused}");
    let (code, text) = run(&["jobs", "list"]).await?;
    ensure!(code == Some(0) && text.contains("paused"), "{code:?} {text}");
    ensure!(admin.delete("/v1/admin/jobs/retention.ledger/pause").await?.status() == 204, "can't be resumed");
    ensure!(admin.delete("/v1/admin/jobs/retention.ledger/pause").await?.status() == 409, "resumed twice");
    wait::until("it has its next due time again", async || {
        let shown: Value = admin.get("/v1/admin/jobs/retention.ledger").await?.json().await?;
        Ok(shown["schedule"]["nextdueat"].is_string())
    })
    .await?;
    let asked =
        admin.post("/v1/admin/jobs/retention.ledger/runs").json(&json!({ "dryrun": true })).send().await?;
    ensure!(asked.status() == 202, "{}", asked.status());
    let asked: Value = asked.json().await?;
    let path = asked["status_url"].as_str().unwrap_or_default().to_owned();
    wait::until("the run is over", async || {
        let row: Value = admin.get(&path).await?.json().await?;
        Ok(row["state"] == "completed" && row["arguments"]["dry_run"] == true)
    })
    .await?;
    ensure!(admin.delete(&path).await?.status() == 409, "what is over was cancelled");
    let rows: Value = admin
        .get("/v1/admin/jobs/runs?schedule=retention.ledger&met=by_hand&pagesize=1")
        .await?
        .json()
        .await?;
    ensure!(rows["items"].as_array().map(Vec::len) == Some(1) && rows["next"].is_string(), "{rows}");
    ensure!(
        admin.get("/v1/admin/jobs/runs?state=gone").await?.status() == 400,
        "an unknown state is a filter"
    );
    ensure!(admin.get("/v1/admin/jobs/nothing").await?.status() == 404, "a schedule that is not there");

    let nul = admin.get("/v1/admin/jobs/a%00b").await?;
    ensure!(nul.status() == 404, "{}", nul.status());
    let nul =
        admin.post("/v1/admin/jobs/retention.ledger/runs").json(&json!({ "arguments": { "a\0": true } }));
    let nul = nul.send().await?;
    ensure!(nul.status() == 400, "{}", nul.status());

    // The audit trail tells of it.
    let worker = cluster.worker()?;
    wait::until("the audit trail has the events", async || {
        let events = site.events().await?;
        let has =
            |kind: &str| events.iter().any(|event| event.get_str("type").is_ok_and(|found| found == kind));
        Ok(has("system.retention.started") && has("system.retention.completed"))
    })
    .await?;
    worker.stop().await?;
    api.stop().await?;
    scheduler.stop().await
}

async fn wrong(site: Arc<Site>) -> Result {
    let cluster = cluster(&site)?;
    for (toml, words) in [
        ("[scheduler.jobs.\"retention.evens\"]\n", ["retention.evens", "did you mean \"retention.events\"?"]),
        ("[scheduler.jobs.\"retention.events\"]\ncron = \"0 2 * * *\"\n", ["retention.events", "has six"]),
        ("[scheduler.jobs.\"retention.events\"]\ncrom = \"0 0 2 * * *\"\n", ["crom", "did you mean `cron`?"]),
        ("[scheduler]\ntime_zone = \"Berlin\"\n", ["scheduler.time_zone", "Europe/Berlin"]),
        ("[retention]\naudit_logs_days = 100\n", ["retention.audit_logs_days", "2555"]),
        ("[retention.classes]\n\"user.logon\" = \"audit_logs\"\n", ["user.logon", "user.login"]),
    ] {
        cluster.write_settings(toml)?;
        let output = cluster.run(&["scheduler"], &[]).await?;
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(
            output.status.code() == Some(2) && words.iter().all(|word| text.contains(word)),
            "{toml}: {text}"
        );
    }
    Ok(())
}
