//! Failed logins: who fails too often has to wait, and nobody else.

use std::sync::Arc;

use anyhow::ensure;
use libtest_mimic::Trial;
use serde_json::{Value, json};
use taskflow_tests::commands::{USER, USER_EMAIL, USER_PASSWORD};
use taskflow_tests::{Client, Result, Site, wait};

use super::{is, told};
use crate::{cluster, with_site};

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        with_site("access: failed logins are limited by account, and nobody can lock others out", by_account),
        with_site("access: failed logins are limited by address", by_address),
        with_site("access: who hangs up while the password is looked at has tried", hangs_up),
    ]
}

const PROXY: (&str, &str) = ("TASKFLOW_HTTP__LIMITS__TRUSTED_PROXIES", "[\"127.0.0.1\"]");

async fn log_in(client: &Client, from: &str, email: &str, password: &str) -> Result<(u16, Value, u64)> {
    let request = client.post("/v1/sessions").header("x-forwarded-for", from);
    let answer = request.json(&json!({ "email": email, "password": password })).send().await?;
    let after = answer.headers().get("retry-after").and_then(|value| value.to_str().ok()?.parse().ok());
    let (status, answer) = told(answer).await?;
    Ok((status, answer, after.unwrap_or_default()))
}

async fn by_account(site: Arc<Site>) -> Result {
    let cluster = cluster(&site)?;
    let worker = cluster.spawn("worker", &[("TASKFLOW_METRICS__LISTEN", "127.0.0.1:0")])?;
    let (_api, client) = cluster.api_with(&[PROXY]).await?;
    let home = "198.51.100.1";
    let (status, answer, _) = log_in(&client, home, USER_EMAIL, USER_PASSWORD).await?;
    ensure!(status == 201, "{status} {answer}");
    // An attacker from many addresses: ten tries, whether there is such an account or not.
    for email in [USER_EMAIL, "nobody@taskflow.test"] {
        for number in 0..10 {
            let from = format!("203.0.113.{number}");
            let (status, answer, _) = log_in(&client, &from, email, "a guess").await?;
            ensure!(status == 401, "{email}, try {number}: {status} {answer}");
        }
        // The right password is not looked at either.
        let (status, answer, after) = log_in(&client, "203.0.113.99", email, USER_PASSWORD).await?;
        ensure!(status == 429 && answer["code"] == "too_many_logins", "{email}: {status} {answer}");
        ensure!((1..=60).contains(&after), "{email}: retry after {after}");
    }
    // From where the user has logged in before, it still does.
    let (status, answer, _) = log_in(&client, home, USER_EMAIL, USER_PASSWORD).await?;
    ensure!(status == 201, "the user is locked out: {status} {answer}");
    // Until somebody guesses from there too.
    for _ in 0..10 {
        ensure!(log_in(&client, home, USER_EMAIL, "a guess").await?.0 == 401, "limited too early");
    }
    ensure!(log_in(&client, home, USER_EMAIL, USER_PASSWORD).await?.0 == 429, "not limited at home");
    // It is told: an event, without the email that was typed.
    wait::until("the failed logins are audited", async || {
        let events = site.events().await?;
        let mut told = events.iter().filter(|event| is(event, "type", "system.logins_failed"));
        let all = format!("{events:?}");
        ensure!(
            !all.contains("a guess") && !all.contains("nobody@taskflow.test"),
            "it tells too much: {all}"
        );
        Ok(told.any(|event| is(event, "entityId", &USER.to_string())))
    })
    .await?;
    worker.stop().await
}

async fn by_address(site: Arc<Site>) -> Result {
    let cluster = cluster(&site)?;
    let lock = ("TASKFLOW_HTTP__LIMITS__LOGIN_LOCK_S", "100");
    let most = ("TASKFLOW_HTTP__LIMITS__LOGIN_LOCK_MAX_S", "300");
    let few = ("TASKFLOW_HTTP__LIMITS__FAILED_LOGINS_PER_MINUTE", "3");
    let (_api, client) = cluster.api_with(&[PROXY, lock, most, few]).await?;
    let from = "198.51.100.7";
    let mut number = 0;
    let mut waits = Vec::new();
    for _ in 0..3 {
        for _ in 0..3 {
            number += 1;
            // Another account each time.
            let email = format!("somebody{number}@taskflow.test");
            let (status, answer, _) = log_in(&client, from, &email, "a guess").await?;
            ensure!(status == 401, "try {number}: {status} {answer}");
        }
        let (status, _, after) = log_in(&client, from, USER_EMAIL, USER_PASSWORD).await?;
        ensure!(status == 429, "{status}");
        waits.push(after);
        ensure!(
            log_in(&client, "198.51.100.8", "x@taskflow.test", "a guess").await?.0 == 401,
            "a neighbour waits"
        );
        // Time goes by.
        site.set_hash(&format!("login:failed:ip:{from}"), "locked", "0").await?;
    }
    ensure!(
        (1..=100).contains(&waits[0]) && (101..=200).contains(&waits[1]) && (201..=300).contains(&waits[2]),
        "{waits:?}"
    );
    Ok(())
}

async fn hangs_up(site: Arc<Site>) -> Result {
    let cluster = cluster(&site)?;
    let (_api, client) = cluster.api_with(&[PROXY]).await?;
    let redis = redis::Client::open(site.redis_url.as_str())?;
    let mut redis = redis.get_multiplexed_async_connection().await?;
    let pattern = format!("{}login:failed:*", site.redis_prefix);
    let mut failures = async || -> Result<usize> {
        let keys: Vec<String> = redis::cmd("KEYS").arg(&pattern).query_async(&mut redis).await?;
        Ok(keys.len())
    };
    ensure!(failures().await? == 0, "somebody has failed before");
    // bcrypt takes longer than this caller has. On a busy machine its login may not even have begun.
    let guess = json!({ "email": USER_EMAIL, "password": "a guess" });
    let patience = std::time::Duration::from_millis(100);
    wait::until("somebody who has hung up is counted", async || {
        let request = client.post("/v1/sessions").header("x-forwarded-for", "203.0.113.7").json(&guess);
        let hung_up = request.timeout(patience).send().await;
        ensure!(hung_up.is_err_and(|error| error.is_timeout()), "it was answered");
        Ok(failures().await? > 0)
    })
    .await
}
