//! What is filled in has bounds: by count, by bytes, and of what is wanted alone.

use std::sync::Arc;

use anyhow::ensure;
use libtest_mimic::Trial;
use serde_json::{Value, json};
use taskflow_tests::commands::{command, id};
use taskflow_tests::socket::Socket;
use taskflow_tests::{Client, Result, Site, wait};

use crate::{cluster, with_site};

const MISSED: usize = 12;

pub(super) fn tests() -> Vec<Trial> {
    vec![with_site(
        "stream: too much that was missed is told, and what is not wanted is not counted",
        bounded,
    )]
}

async fn bounded(site: Arc<Site>) -> Result {
    let cluster = cluster(&site)?;
    let worker = cluster.worker()?;
    let few = ("TASKFLOW_HTTP__STREAM__GAP_MAX", "10");
    // More than one of the events, and less than all of them.
    let small = ("TASKFLOW_HTTP__STREAM__GAP_BYTES", "100000");
    let (counting, by_count) = cluster.api_with(&[few]).await?;
    let (weighing, by_bytes) = cluster.api_with(&[small]).await?;
    let admin = by_count.admin().await?;
    let cursor = Socket::open(&admin, "").await?.cursor;
    let long = "x".repeat(19_000);
    let tasks: Vec<_> = (0..MISSED).map(|_| id()).collect();
    for task in &tasks {
        admin.apply(&command("task.create", *task, json!({ "title": "long", "description": long }))).await?;
    }
    // From the trail, where the store has to look for them.
    wait::until("the outbox is empty", async || Ok(site.count("SELECT count(*) FROM outbox").await? == 0))
        .await?;
    for api in [&by_count, &by_bytes] {
        let admin = api.admin().await?;
        let (code, reason) = Socket::resume(&admin, "", &cursor).await?.closed().await?;
        ensure!(code == 4003 && reason.contains("too much"), "{code} {reason}");
        let last = tasks[MISSED - 1];
        let one = missed(&admin, &format!("?entity={last}"), &cursor, 1).await?;
        ensure!(one[0]["subject"] == last.to_string(), "{one:?}");
        // Of these there are none but the login.
        let others = missed(&admin, "?type=user.*,task.deleted", &cursor, 1).await?;
        ensure!(others[0]["type"] == "user.login", "{others:?}");
    }
    for process in [counting, weighing, worker] {
        process.stop().await?;
    }
    Ok(())
}

async fn missed(client: &Client, query: &str, cursor: &str, count: usize) -> Result<Vec<Value>> {
    let mut socket = Socket::resume(client, query, cursor).await?;
    let mut events = Vec::new();
    while events.len() < count {
        events.push(socket.event().await?);
    }
    Ok(events)
}
