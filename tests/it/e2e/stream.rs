//! A long stream of JSON lines.

use std::sync::Arc;

use anyhow::ensure;
use libtest_mimic::Trial;
use serde_json::{Value, json};
use taskflow_tests::commands::{command, id, ndjson};
use taskflow_tests::{Result, Site, wait};

use crate::{cluster, with_site};

const LINES: usize = 50_000;

pub(crate) fn tests() -> Vec<Trial> {
    vec![with_site("fifty thousand lines in one request", fifty_thousand)]
}

async fn fifty_thousand(site: Arc<Site>) -> Result {
    let cluster = cluster(&site)?;
    let (_api, client) = cluster.api().await?;
    let admin = client.admin().await?;
    let commands: Vec<Value> =
        (0..LINES).map(|n| command("task.create", id(), json!({ "title": format!("line {n}") }))).collect();
    let mut body = ndjson(&commands);
    body.push_str("not a command\n");
    let (status, answer) = admin.send("application/x-ndjson", body).await?;
    ensure!(status == 202 && answer["accepted"] == LINES, "{status} {answer}");
    ensure!(answer["refused"][0]["index"] == LINES, "{answer}");
    let worker = cluster.worker()?;
    wait::until("all lines are applied and audited", async || {
        let tasks = site.count("SELECT count(*) FROM tasks").await?;
        Ok(tasks == LINES as i64 && site.count("SELECT count(*) FROM outbox").await? == 0)
    })
    .await?;
    let events = site.mongo.collection::<mongodb::bson::Document>("event_logs");
    let count = events.count_documents(mongodb::bson::doc! { "type": "task.created" }).await?;
    ensure!(count == LINES as u64, "{count} events");
    worker.stop().await
}
