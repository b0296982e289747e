//! An API that dies when the broker has a command and the caller no answer.

use std::os::unix::process::ExitStatusExt;
use std::sync::Arc;

use anyhow::{Context, ensure};
use libtest_mimic::Trial;
use nix::sys::signal::Signal;
use serde_json::json;
use taskflow_tests::commands::{command, id, ndjson};
use taskflow_tests::{Result, Site};

use crate::{cluster, with_site};

pub(crate) fn tests() -> Vec<Trial> {
    vec![with_site(
        "an API that dies between the broker's confirm and its answer loses and doubles nothing",
        run,
    )]
}

async fn run(site: Arc<Site>) -> Result {
    let cluster = cluster(&site)?;
    let worker = cluster.worker()?;
    let (api, client) = cluster.api().await?;
    let token = client.admin().await?.token().context("no token")?;
    api.stop().await?;
    for media_type in ["application/json", "application/x-ndjson"] {
        let task = id();
        let create = command("task.create", task, json!({ "title": "told to nobody" }));
        let body = if media_type.ends_with("ndjson") {
            ndjson(std::slice::from_ref(&create))
        } else {
            create.to_string()
        };
        let (mut dying, client) = cluster.api_with(&[("TASKFLOW_CRASH_AT", "confirmed:1")]).await?;
        let sent = client.with(&token).send(media_type, body.clone()).await;
        ensure!(!matches!(sent, Ok((202, _))), "it has answered: {sent:?}");
        let ended = dying.ended().await?;
        ensure!(ended.signal() == Some(Signal::SIGKILL as i32), "it ended with {ended}");
        // The caller does not know, and sends it again.
        let (api, client) = cluster.api().await?;
        let receipt = client.with(&token).apply(&create).await?;
        ensure!(receipt["status"] == "applied", "{receipt}");
        let of_task =
            |table: &str| format!("SELECT count(*) FROM {table} WHERE id = '{task}' AND version = 1");
        ensure!(site.count(&of_task("tasks")).await? == 1, "the task is not as it was made");
        let receipts = format!("SELECT count(*) FROM receipts WHERE subject = '{task}'");
        ensure!(site.count(&receipts).await? == 1, "one command has several receipts");
        api.stop().await?;
    }
    worker.stop().await
}
