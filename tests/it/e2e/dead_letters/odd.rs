//! Letters that are not as they should be: headers that hold anything, a death that was taken for a copy, replays whose
//! letters wait.

use std::sync::Arc;

use anyhow::ensure;
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable};
use libtest_mimic::Trial;
use serde_json::{Value, json};
use taskflow_stores::rabbit::publish::Message;
use taskflow_stores::rabbit::topology::{COMMANDS, DEAD_LETTERS};
use taskflow_tests::commands::{command, id};
use taskflow_tests::letters::{self, forbid_poison, poison, publish};
use taskflow_tests::{Result, Site, wait};
use uuid::Uuid;

use super::asking::{get, only, post, until_letters};
use crate::{cluster, with_site};

pub(super) fn tests() -> Vec<Trial> {
    vec![
        with_site("times in headers that no store can keep hold up nobody", times),
        with_site("a letter whose command died unseen can be replayed again", unseen),
        with_site("a replay of many waits for what is parked", parked),
    ]
}

/// A command as another system may send it, with times of its own making.
async fn publish_with(site: &Site, key: &str, command: &Value, headers: &[(&str, i64)]) -> Result {
    let mut table = FieldTable::default();
    for (name, value) in headers {
        table.insert((*name).into(), AMQPValue::LongLongInt(*value));
    }
    let message = Message {
        exchange: COMMANDS.into(),
        routing_key: key.into(),
        body: command.to_string().into_bytes(),
        properties: BasicProperties::default().with_delivery_mode(2).with_headers(table),
        mandatory: true,
        lane: 0,
    };
    Ok(site.publisher.publish(message).await?)
}

/// Before the years that Postgres knows, and behind them.
const WRONG: [i64; 4] = [-6_000_000_000_000_000_000, i64::MIN, -1, i64::MAX];

async fn times(site: Arc<Site>) -> Result {
    let worker = cluster(&site)?.worker()?;
    let mut tasks = Vec::new();
    for wrong in WRONG {
        let task = id();
        let create = command("task.create", task, json!({ "title": "at any time" }));
        publish_with(&site, letters::key(task), &create, &[("taskflow-accepted", wrong)]).await?;
        tasks.push(task);
        let astray = command("task.create", id(), json!({ "title": "astray" }));
        let headers = [("taskflow-accepted", wrong), ("taskflow-died", wrong)];
        publish_with(&site, "no slot", &astray, &headers).await?;
    }
    until_letters(&site, "kept", WRONG.len() as i64).await?;
    for task in tasks {
        let there = format!("SELECT count(*) FROM tasks WHERE id = '{task}'");
        wait::until("its neighbours and it are applied", async || Ok(site.count(&there).await? == 1)).await?;
    }
    let odd = "SELECT count(*) FROM dead_letters
               WHERE last_died_at NOT BETWEEN now() - interval '1 hour' AND now() + interval '1 minute'";
    ensure!(site.count(odd).await? == 0, "a letter has died at a time that cannot be");
    worker.stop().await
}

/// The receipt says that it is dead, and the letter does not know: what told of it was taken for a copy.
async fn unseen(site: Arc<Site>) -> Result {
    let cluster = cluster(&site)?;
    forbid_poison(&site).await?;
    let worker = cluster.worker()?;
    let (_api, client) = cluster.api().await?;
    let admin = client.admin().await?;
    let task = id();
    publish(&site, &poison(task)).await?;
    until_letters(&site, "kept", 1).await?;
    wait::until("the queue is drained", async || Ok(site.link.depth(DEAD_LETTERS).await?.ready == 0)).await?;
    let path = format!("/{}", only(&admin).await?);
    site.sql("UPDATE dead_letters SET state = 'replayed', attempt = 2, decided_at = now()").await?;
    // What told of it may still come …
    let (status, answer) = post(&admin, &format!("{path}/replay"), &json!({})).await?;
    ensure!(status == 409 && answer["code"] == "not_kept", "{status} {answer}");
    // … but not for ever.
    site.sql("UPDATE receipts SET finished_at = finished_at - interval '2 minutes' WHERE outcome = 'dead'")
        .await?;
    site.sql("ALTER TABLE tasks DROP CONSTRAINT no_poison").await?;
    let (status, answer) = post(&admin, &format!("{path}/replay"), &json!({})).await?;
    ensure!(status == 202 && answer["attempt"] == 3, "{status} {answer}");
    let there = format!("SELECT count(*) FROM tasks WHERE id = '{task}'");
    wait::until("it is applied", async || Ok(site.count(&there).await? == 1)).await?;
    until_letters(&site, "replayed", 1).await?;
    // Now it lives.
    let (status, answer) = post(&admin, &format!("{path}/replay"), &json!({})).await?;
    ensure!(status == 409 && answer["code"] == "not_kept", "{status} {answer}");
    worker.stop().await
}

/// Of a type that nobody knows: each is parked before it dies again, and counts as neither living nor dead until then.
async fn parked(site: Arc<Site>) -> Result {
    let cluster = cluster(&site)?;
    let patience = |ms| ("TASKFLOW_WORKER__PATIENCE__UNKNOWN_TYPE_MS", ms);
    let worker = cluster.spawn("worker", &[patience("1")])?;
    let (_api, client) = cluster.api().await?;
    let admin = client.admin().await?;
    const LETTERS: i64 = 70;
    for _ in 0..LETTERS {
        let subject: Uuid = id();
        publish(&site, &command("task.paint", subject, json!({}))).await?;
    }
    until_letters(&site, "kept", LETTERS).await?;
    let dead = "SELECT count(*) FROM receipts WHERE outcome = 'dead'";
    wait::until("each has its receipt", async || Ok(site.count(dead).await? == LETTERS)).await?;
    worker.stop().await?;
    let worker = cluster.spawn("worker", &[patience("5000")])?;
    let order = json!({ "filter": { "reason": "unknown_type" }, "rate": 1000 });
    let (status, replay) = post(&admin, "/replays", &order).await?;
    ensure!(status == 202, "{status} {replay}");
    let path = format!("/replays/{}", replay["id"].as_str().unwrap_or_default());
    let mut last = Value::Null;
    wait::until("it has stopped by itself", async || {
        last = get(&admin, &path).await?;
        Ok(last["state"] != "running")
    })
    .await?;
    ensure!(last["state"] == "stopped" && last["taken"].as_i64() <= Some(50), "{last}");
    worker.stop().await
}
