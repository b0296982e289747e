//! Logging in and out, and what is closed to whoever has not.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::ensure;
use futures_util::{StreamExt, stream};
use libtest_mimic::Trial;
use serde_json::{Value, json};
use taskflow_tests::commands::{ADMIN_EMAIL, USER, USER_EMAIL, USER_PASSWORD, command_of, id, ndjson};
use taskflow_tests::{Result, Site, wait};
use tokio::sync::watch;

use crate::{cluster, with_site};

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        with_site("a stream of commands ends with its session", stream_ends),
        with_site("sessions begin, hold and end", sessions),
        with_site("nothing is open", closed),
    ]
}

async fn sessions(site: Arc<Site>) -> Result {
    let cluster = cluster(&site)?;
    let worker = cluster.worker()?;
    let (_api, client) = cluster.api().await?;
    // Capitals in the address make no difference.
    let user = client.logged_in(&USER_EMAIL.to_uppercase(), USER_PASSWORD).await?;
    let receipt = user.apply(&command_of(USER, "task.create", id(), json!({ "title": "mine" }))).await?;
    ensure!(receipt["status"] == "applied", "{receipt}");
    let token = user.token().unwrap_or_default();
    // Redis holds no token, and the audit trail neither.
    let client_redis = redis::Client::open(site.redis_url.as_str())?;
    let mut connection = client_redis.get_multiplexed_async_connection().await?;
    let keys: Vec<String> = redis::cmd("KEYS")
        .arg(format!("{}session:*", site.redis_prefix))
        .query_async(&mut connection)
        .await?;
    ensure!(keys.len() == 1 && !keys[0].contains(&token), "{keys:?}");
    ensure!(user.delete("/v1/sessions/current").await?.status() == 204, "not logged out");
    ensure!(user.get("/v1/commands/x").await?.status() == 401, "the token is still good");
    wait::until("login and logout are audited", async || {
        let events = site.events().await?;
        let has = |kind| events.iter().any(|event| event.get_str("type").unwrap_or_default() == kind);
        ensure!(!format!("{events:?}").contains(&token), "a token is in the audit trail");
        Ok(has("user.login") && has("user.logout"))
    })
    .await?;
    worker.stop().await
}

async fn closed(site: Arc<Site>) -> Result {
    let cluster = cluster(&site)?;
    let (_api, client) = cluster.api().await?;
    for (email, password) in [(ADMIN_EMAIL, "wrong"), ("nobody@taskflow.test", "wrong")] {
        let answer =
            client.post("/v1/sessions").json(&json!({ "email": email, "password": password })).send().await?;
        ensure!(answer.status() == 401, "{email}: {}", answer.status());
        let answer: Value = answer.json().await?;
        ensure!(answer["detail"] == "there is no user with this email and password", "{answer}");
    }
    for body in [
        json!({}),
        json!({ "email": 1, "password": "x" }),
        json!({ "email": "a@b.c", "password": "x".repeat(72) }),
    ] {
        let answer = client.post("/v1/sessions").json(&body).send().await?;
        ensure!(answer.status() == 400, "{body}: {}", answer.status());
    }
    let (status, answer) = client.send("application/json", "{}").await?;
    ensure!(status == 401 && answer["code"] == "unauthorized", "{status} {answer}");
    ensure!(
        client.get("/v1/commands/0189f7a0-6d3c-7e4b-9a51-3f0c2f4f7a10").await?.status() == 401,
        "receipts are open"
    );
    ensure!(client.delete("/v1/sessions/current").await?.status() == 401, "logout is open");
    for path in ["/healthz", "/readyz", "/metrics"] {
        ensure!(client.get(path).await?.status() == 200, "{path}");
    }
    Ok(())
}

/// What was sent before counts; what comes after it is not taken.
async fn stream_ends(site: Arc<Site>) -> Result {
    const GROUP: usize = 500;
    let cluster = cluster(&site)?;
    let worker = cluster.worker()?;
    let (_api, client) = cluster.api().await?;
    let user = client.user().await?;
    let group = || {
        let create = |_| command_of(USER, "task.create", id(), json!({ "title": "one of many" }));
        ndjson(&(0..GROUP).map(create).collect::<Vec<_>>())
    };
    let (go, mut gone) = watch::channel(false);
    let (first, second) = (group(), group());
    let begun = Instant::now();
    let first = stream::once(async { std::io::Result::Ok(first) });
    let second = stream::once(async move {
        let _ = gone.wait_for(|gone| *gone).await;
        std::io::Result::Ok(second)
    });
    let sender = user.clone();
    let body = reqwest::Body::wrap_stream(first.chain(second));
    let sending = tokio::spawn(async move { sender.send("application/x-ndjson", body).await });
    let tasks = "SELECT count(*) FROM tasks";
    wait::until("the first group is applied", async || Ok(site.count(tasks).await? == GROUP as i64)).await?;
    ensure!(user.delete("/v1/sessions/current").await?.status() == 204, "not logged out");
    // What is known of a caller holds for a second.
    wait::until("that is long ago", async || Ok(begun.elapsed() > Duration::from_secs(2))).await?;
    go.send_replace(true);
    let (status, answer) = sending.await??;
    ensure!(status == 401 && answer["accepted"] == GROUP, "{status} {answer}");
    worker.stop().await?;
    ensure!(site.count(tasks).await? == GROUP as i64, "commands were taken after the session's end");
    Ok(())
}
