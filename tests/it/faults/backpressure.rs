//! Intake when the workers are behind.

use std::sync::Arc;

use anyhow::ensure;
use libtest_mimic::Trial;
use serde_json::{Value, json};
use taskflow_tests::commands::{command, ndjson, subject_in_slot};
use taskflow_tests::{Result, Site, wait};

use crate::{cluster, with_site};

pub(crate) fn tests() -> Vec<Trial> {
    vec![with_site("intake says 429 while the backlog is too old, and when to come back", too_old)]
}

async fn too_old(site: Arc<Site>) -> Result {
    let cluster = cluster(&site)?;
    let (_api, client) = cluster.api_with(&[("TASKFLOW_HTTP__BACKLOG_AGE_MAX_S", "2")]).await?;
    let admin = client.admin().await?;
    let send = async || -> Result<(u16, Option<u64>, Value)> {
        let value = command("task.create", subject_in_slot(0), json!({ "title": "x" }));
        let answer = admin.post("/v1/commands").json(&value).send().await?;
        let after = answer.headers().get("retry-after").and_then(|value| value.to_str().ok()?.parse().ok());
        Ok((answer.status().as_u16(), after, answer.json().await?))
    };
    let mut taken = 0;
    let mut refused = (0, None, Value::Null);
    // Nobody works; the first ones wait, and grow older.
    wait::until("intake refuses", async || {
        refused = send().await?;
        taken += i64::from(refused.0 == 202);
        Ok(refused.0 == 429)
    })
    .await?;
    let (_, after, problem) = refused;
    ensure!(taken > 0 && problem["code"] == "backlog", "{taken} were taken; {problem}");
    ensure!(after.is_some_and(|seconds| (2..=60).contains(&seconds)), "retry after {after:?}");
    // Another partition is not to blame (the login waits in partition 01).
    let other = command("task.create", subject_in_slot(2), json!({ "title": "x" }));
    let (status, answer) = admin.send("application/json", other.to_string()).await?;
    ensure!(status == 202, "{status} {answer}");
    // A stream ends behind a command that was not taken: what comes later might build on it.
    let behind = (0..1_500).map(|_| command("task.create", subject_in_slot(2), json!({ "title": "x" })));
    let first = command("task.create", subject_in_slot(0), json!({ "title": "x" }));
    let lines: Vec<Value> = std::iter::once(first).chain(behind).collect();
    let (status, answer) = admin.send("application/x-ndjson", ndjson(&lines)).await?;
    let accepted = answer["accepted"].as_i64().unwrap_or(i64::MAX);
    ensure!(status == 429 && answer["code"] == "backlog" && accepted < 500, "{status} {answer}");
    let worker = cluster.worker()?;
    wait::until("intake takes commands again", async || Ok(send().await?.0 == 202)).await?;
    // What was refused left nothing behind, what was taken is applied.
    let applied = "SELECT count(*) FROM tasks";
    wait::until("all are applied", async || Ok(site.count(applied).await? == taken + 2 + accepted)).await?;
    worker.stop().await
}
