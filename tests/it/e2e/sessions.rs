//! Logging in and out, and what is closed to whoever has not.

use std::sync::Arc;

use anyhow::ensure;
use libtest_mimic::Trial;
use serde_json::{Value, json};
use taskflow_tests::commands::{ADMIN_EMAIL, USER, USER_EMAIL, USER_PASSWORD, command_of, id};
use taskflow_tests::{Result, Site, wait};

use crate::{cluster, with_site};

pub(crate) fn tests() -> Vec<Trial> {
    vec![with_site("sessions begin, hold and end", sessions), with_site("nothing is open", closed)]
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
