//! Redis is away: callers that are remembered go on, others come again later.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use libtest_mimic::Trial;
use serde_json::{Value, json};
use taskflow_tests::commands::{ADMIN, USER, command_of, id};
use taskflow_tests::{Client, Result, Site, World, wait};

use super::told;
use crate::{cluster, with_world};

pub(crate) fn tests() -> Vec<Trial> {
    vec![with_world(
        "access: who is logged in goes on while Redis is away, and nobody who has logged out",
        gone,
    )]
}

async fn read(client: &Client, path: &str) -> Result<(u16, Value)> {
    told(client.get(path).await?).await
}

async fn gone(world: &World) -> Result {
    let site = Site::new(world).await?;
    let cluster = cluster(&site)?;
    let worker = cluster.worker()?;
    let (_here, client) = cluster.api().await?;
    let (_there, elsewhere) = cluster.api().await?;
    let (user, admin) = (client.user().await?, client.admin().await?);
    let (leaves, left, unseen) = (client.user().await?, client.user().await?, client.user().await?);
    let task = id();
    let create = command_of(USER, "task.create", task, json!({ "title": "still there" }));
    let receipt = user.apply(&create).await?;
    ensure!(receipt["status"] == "applied", "{receipt}");
    let path = format!("/v1/tasks/{task}");
    for known in [&user, &leaves, &left] {
        let (status, answer) = read(known, &path).await?;
        ensure!(status == 200, "{status} {answer}");
    }
    ensure!(read(&admin, &format!("/v1/users/{ADMIN}")).await?.0 == 200, "the admin is not known");
    // Ended at one process, remembered at another.
    let left_there = elsewhere.with(&left.token().context("no token")?);
    ensure!(read(&left_there, &path).await?.0 == 200, "not logged in");
    ensure!(left.delete("/v1/sessions/current").await?.status() == 204, "not logged out");
    wait::until("it is closed elsewhere", async || Ok(read(&left_there, &path).await?.0 == 401)).await?;

    world.servers.lock().await.redis.kill().await;
    // Long enough for what is remembered to be old.
    let since = Instant::now();
    wait::until("what was looked up is old", async || {
        let answer = user.get(&path).await?;
        let cache = answer.headers().get("x-cache").cloned();
        let (status, answer) = told(answer).await?;
        ensure!(status == 200 && cache.is_some_and(|cache| cache == "miss"), "{status} {answer}");
        ensure!(answer["title"] == "still there", "{answer}");
        Ok(since.elapsed() >= Duration::from_secs(3))
    })
    .await?;
    let create = command_of(USER, "task.create", id(), json!({ "title": "meanwhile" }));
    let (status, answer) = user.send("application/json", create.to_string()).await?;
    ensure!(status == 202, "{status} {answer}");
    // Who is not known here has to wait.
    for unknown in [&unseen, &client.with("tfs_nonsense"), &left, &left_there] {
        let (status, answer) = read(unknown, &path).await?;
        ensure!(status == 503 && answer["code"] == "unavailable", "{status} {answer}");
    }
    // Who logs out is out, though Redis can't be told.
    let (status, answer) = told(leaves.delete("/v1/sessions/current").await?).await?;
    ensure!(status == 503, "{status} {answer}");
    ensure!(read(&leaves, &path).await?.0 == 503, "it goes on after it was to end");
    // Another role ends the sessions that are remembered, at whichever process.
    let there = elsewhere.with(&user.token().context("no token")?);
    ensure!(read(&there, &path).await?.0 == 503, "nobody was known there");
    let role = admin.request(reqwest::Method::PUT, &format!("/v1/admin/users/{USER}/role"));
    let (status, answer) = told(role.json(&json!({ "role": "admin" })).send().await?).await?;
    ensure!(status == 200 && answer["sessions"] == "ending", "{status} {answer}");
    ensure!(read(&user, &path).await?.0 == 503, "the old role counts");

    world.servers.lock().await.redis.restart().await?;
    wait::until("people log in again", async || Ok(client.user().await.is_ok())).await?;
    worker.stop().await
}
