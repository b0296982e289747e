//! Every sensitive operation is an event of the audit trail, with who did it, and one of the metric that alerts stand on.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::{Context, ensure};
use libtest_mimic::Trial;
use reqwest::Method;
use serde_json::{Value, json};
use taskflow_core::system_event::SENSITIVE;
use taskflow_stores::rabbit::topology::COMMANDS;
use taskflow_tests::commands::{ADMIN, HASH, USER, USER_EMAIL, command, id};
use taskflow_tests::{Client, Result, Site, letters, wait};

use super::{new_key, told};
use crate::{cluster, with_site};

pub(crate) fn tests() -> Vec<Trial> {
    vec![with_site("access: every sensitive operation is audited, and counted for the alerts", all)]
}

async fn send(admin: &Client, method: Method, path: &str, body: Value) -> Result<Value> {
    let (status, answer) = told(admin.request(method, path).json(&body).send().await?).await?;
    ensure!((200..300).contains(&status), "{path}: {status} {answer}");
    Ok(answer)
}

/// What the metric says by now, by operation.
async fn counted(metrics: &Client) -> Result<BTreeMap<String, f64>> {
    let text = metrics.get("/metrics").await?.text().await?;
    let series = "taskflow_sensitive_operations_total{operation=\"";
    let lines = text.lines().filter_map(|line| line.strip_prefix(series)?.split_once("\"} "));
    lines.map(|(operation, count)| Ok((operation.to_owned(), count.parse()?))).collect()
}

async fn all(site: Arc<Site>) -> Result {
    let cluster = cluster(&site)?;
    // Before anybody works: a restore, and an erasure.
    for words in [
        &["restore", "--agree", "--as", "a test"][..],
        &["audit", "erase", "--actor", &USER.to_string(), "--why", "asked for", "--yes"],
    ] {
        let done = cluster.run(words, &[]).await?;
        // An erasure says with 1 that something is still on its way: what tells of it.
        let said = String::from_utf8_lossy(&done.stderr);
        ensure!(done.status.success() || said.contains("on their way"), "{words:?}: {said}");
    }
    let listen = taskflow_tests::free_address()?;
    let worker = cluster.spawn("worker", &[("TASKFLOW_METRICS__LISTEN", listen.as_str())])?;
    let metrics = Client::new(&format!("http://{listen}"))?;
    wait::until("the worker shows its metrics", async || Ok(metrics.get("/healthz").await?.status() == 200))
        .await?;
    // Each has its series before anything has happened: an alert sees the first one.
    let before = counted(&metrics).await?;
    for (_, operation) in SENSITIVE {
        ensure!(before.contains_key(operation), "{operation} has no series: {before:?}");
    }

    let (_api, client) = cluster.api().await?;
    let admin = client.admin().await?;
    let user = id();
    let body = json!({ "email": "watched@taskflow.test", "passwordhash": HASH });
    ensure!(admin.apply(&command("user.register", user, body)).await?["status"] == "applied", "no user");
    send(&admin, Method::PUT, &format!("/v1/admin/users/{user}/role"), json!({ "role": "admin" })).await?;
    let password = json!({ "password": "correct horse battery" });
    send(&admin, Method::PUT, &format!("/v1/admin/users/{user}/password"), password).await?;
    let (key, _) = new_key(&admin, &["read"], None).await?;
    ensure!(admin.delete(&format!("/v1/admin/api-keys/{key}")).await?.status() == 204, "not revoked");
    // Two letters: one is mended, one given up.
    let broken = || command("user.register", id(), json!({ "email": "no address", "passwordhash": HASH }));
    let (mut mended, given_up) = (broken(), broken());
    for letter in [&mended, &given_up] {
        let subject = letter["subject"].as_str().context("subject")?.parse()?;
        letters::publish_to(&site, COMMANDS, letters::key(subject), letter.to_string().into_bytes()).await?;
    }
    letters::until(&site, "kept", 2).await?;
    let of = async |command: &Value| -> Result<String> {
        let path = format!("/v1/admin/dead-letters?command={}", command["id"].as_str().unwrap_or_default());
        let page: Value = admin.get(&path).await?.json().await?;
        Ok(format!("/v1/admin/dead-letters/{}", page["items"][0]["id"].as_str().context("no letter")?))
    };
    let (edit, discard) = (of(&mended).await?, of(&given_up).await?);
    mended["data"]["email"] = json!("mended@taskflow.test");
    send(&admin, Method::POST, &format!("{edit}/edit"), json!({ "command": mended })).await?;
    send(&admin, Method::POST, &format!("{discard}/discard"), json!({ "why": "a test" })).await?;
    // More failed logins than a minute may have.
    for _ in 0..11 {
        let guess = json!({ "email": USER_EMAIL, "password": "a guess" });
        let status = client.post("/v1/sessions").json(&guess).send().await?.status();
        ensure!(status == 401 || status == 429, "{status}");
    }

    wait::until("each operation is audited and counted", async || {
        let (events, counts) = (site.events().await?, counted(&metrics).await?);
        for (kind, operation) in SENSITIVE {
            let told: Vec<_> = events
                .iter()
                .filter(|event| event.get_str("type").is_ok_and(|found| found == kind))
                .collect();
            let count = counts.get(operation).copied().unwrap_or_default();
            // A burst is one to the account and one from the address.
            ensure!(!told.is_empty(), "{kind} is not in the audit trail: {counts:?}");
            ensure!(
                (told.len() as f64 - count).abs() < 0.5,
                "{operation}: {count} for {} events",
                told.len()
            );
            ensure!(operation == "failed_logins" || told.len() == 1, "{} events of {kind}", told.len());
            // The admin did what an admin has to do.
            let by_system = ["system.restored", "system.data_erased", "system.logins_failed"].contains(&kind);
            for event in told {
                let actor = event.get_str("actorId")?;
                ensure!(by_system || actor == ADMIN.to_string(), "{kind} by {actor}");
            }
        }
        Ok(true)
    })
    .await?;
    worker.stop().await
}
