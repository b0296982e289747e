//! The program on a Redis Cluster: sessions, announced receipts, caches, and what `doctor` says of it.

use libtest_mimic::Trial;
use serde_json::{Value, json};
use taskflow_core::cache_key;
use taskflow_tests::commands::{command, id};
use taskflow_tests::redis_cluster::RedisCluster;
use taskflow_tests::{Result, Site, wait};

use anyhow::ensure;

use crate::{cluster, shared_world, trial};

/// Enough that every master has some.
const TASKS: usize = 24;

pub(crate) fn tests() -> Vec<Trial> {
    vec![trial("everything works on a redis cluster", works)]
}

async fn works() -> Result {
    let redis = RedisCluster::start().await?;
    let site = Site::with_redis(shared_world().await?, &redis.url()).await?;
    let cluster = cluster(&site)?;
    let worker = cluster.worker()?;
    let (api, client) = cluster.api().await?;
    let admin = client.admin().await?;
    // A session lies on one node, and another one's is elsewhere.
    let user = client.user().await?;
    ensure!(user.delete("/v1/sessions/current").await?.status() == 204);
    ensure!(user.get("/v1/commands/00000000-0000-7000-8000-000000000000").await?.status() == 401);

    let tasks: Vec<_> = (0..TASKS).map(|_| id()).collect();
    for task in &tasks {
        let receipt = admin.apply(&command("task.create", *task, json!({ "title": "one" }))).await?;
        ensure!(receipt["status"] == "applied", "{receipt}");
    }
    // Many in one batch: one pipeline over all slots, with scripts in it.
    let updates: Vec<Value> = tasks
        .iter()
        .map(|task| command("task.update", *task, json!({ "title": "two", "expectedversion": 1 })))
        .collect();
    let (status, answer) =
        admin.send("application/cloudevents-batch+json", json!(updates).to_string()).await?;
    ensure!(status == 202 && answer["accepted"] == TASKS, "{status} {answer}");
    for task in &tasks {
        wait::until("the cache has the newest version", async || {
            let value = site.cached(&cache_key::task(*task)).await?.unwrap_or_default();
            Ok(serde_json::from_str::<Value>(&value)?["version"] == 2)
        })
        .await?;
    }
    let output = cluster.run(&["doctor"], &[]).await?;
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(output.status.success() && told.contains("a cluster of 3 masters, 6 nodes in all"), "{told}");
    worker.stop().await?;
    api.stop().await
}
