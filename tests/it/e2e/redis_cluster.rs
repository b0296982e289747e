//! The program on a Redis Cluster: sessions, announced receipts, caches, limits, sockets, jobs, and what `doctor` says
//! of it.

use anyhow::{Context, ensure};
use libtest_mimic::Trial;
use reqwest::Method;
use serde_json::{Value, json};
use taskflow_core::cache_key;
use taskflow_tests::commands::{USER, command, id};
use taskflow_tests::redis_cluster::RedisCluster;
use taskflow_tests::socket::{Next, Socket};
use taskflow_tests::{Client, Cluster, Result, Site, wait};

use crate::{cluster, shared_world, trial};

/// Enough that every master has some.
const TASKS: usize = 24;

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        trial("everything works on a redis cluster", works),
        trial("reads, limits, sockets and jobs work on a redis cluster", serves),
    ]
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

/// Requests of a user in a minute.
const QUOTA: u64 = 80;

async fn serves() -> Result {
    let redis = RedisCluster::start().await?;
    let site = Site::with_redis(shared_world().await?, &redis.url()).await?;
    let cluster = cluster(&site)?;
    let worker = cluster.worker()?;
    let scheduler = cluster.spawn("scheduler", &[])?;
    let (api, client) = cluster.api().await?;
    let (admin, user) = (client.admin().await?, client.user().await?);
    let mut socket = Socket::open(&user, "").await?;
    let task = id();
    let create = command("task.create", task, json!({ "title": "a rare word", "assigneeid": USER }));
    ensure!(admin.apply(&create).await?["status"] == "applied", "not applied");
    // The login may be told first.
    while socket.event().await?["subject"] != json!(task) {}

    let paths = [
        format!("/v1/tasks/{task}"),
        format!("/v1/users/{USER}"),
        format!("/v1/users/{USER}/tasks"),
        format!("/v1/users/{USER}/task-stats"),
        format!("/v1/users/{USER}/permissions"),
        "/v1/tasks/search?q=rare".to_owned(),
    ];
    for path in &paths {
        wait::until("it is cached", async || Ok(read(&user, path).await?.0 == "hit")).await?;
    }
    // No read after the receipt shows the state before it.
    for version in 1..=10 {
        let title = format!("a rare word, {version}");
        let update = command("task.update", task, json!({ "title": title, "expectedversion": version }));
        ensure!(admin.apply(&update).await?["status"] == "applied", "not applied");
        let (_, read_task) = read(&admin, &paths[0]).await?;
        let (_, list) = read(&admin, &paths[2]).await?;
        ensure!(read_task["title"] == json!(title), "{read_task}");
        ensure!(list["items"][0]["title"] == json!(title), "{list}");
    }
    let (_, changes) = read(&admin, &format!("/v1/tasks/{task}/changes")).await?;
    ensure!(changes["items"].as_array().map(Vec::len) == Some(12), "{changes}");

    for (job, word) in
        [("cache.warm", None), ("maintenance.redis", None), ("retention.sockets", Some("a cluster"))]
    {
        let run = run(&cluster, job).await?;
        ensure!(run["state"] == "completed", "{run}");
        let skipped = run["figures"]["skipped"].as_str();
        ensure!(word.is_none_or(|word| skipped.is_some_and(|why| why.contains(word))), "{run}");
    }
    scheduler.stop().await?;

    // Another role ends the session and the socket.
    let role = admin.request(Method::PUT, &format!("/v1/admin/users/{USER}/role"));
    ensure!(role.json(&json!({ "role": "admin" })).send().await?.status() == 200, "no other role");
    ensure!(user.get(&paths[0]).await?.status() == 401, "the session goes on");
    loop {
        // Events may come before it is closed.
        if let Next::Closed(code, _) = socket.next().await? {
            ensure!(code == 4001, "closed with {code}");
            break;
        }
    }
    api.stop().await?;

    let quota = QUOTA.to_string();
    let (api, client) =
        cluster.api_with(&[("TASKFLOW_HTTP__LIMITS__USER_REQUESTS_PER_MINUTE", &quota)]).await?;
    let user = client.user().await?;
    let asked = (0..=QUOTA).map(|_| user.get(&paths[1]));
    let answers = futures_util::future::try_join_all(asked).await?;
    let refused = answers.iter().find(|answer| answer.status() == 429).context("nothing was refused")?;
    ensure!(refused.headers().contains_key("retry-after"), "{refused:?}");
    worker.stop().await?;
    api.stop().await
}

/// An answer with where it came from.
async fn read(client: &Client, path: &str) -> Result<(String, Value)> {
    let response = client.get(path).await?;
    ensure!(response.status() == 200, "{path}: {}", response.status());
    let from = response.headers().get("x-cache").and_then(|value| value.to_str().ok()).unwrap_or_default();
    Ok((from.to_owned(), response.json().await?))
}

async fn run(cluster: &Cluster<'_>, job: &str) -> Result<Value> {
    let output = cluster.run(&["jobs", "run", job, "--json"], &[]).await?;
    let text = String::from_utf8_lossy(&output.stdout);
    serde_json::from_str(&text).with_context(|| format!("{text}{}", String::from_utf8_lossy(&output.stderr)))
}
