//! The same command again: in one body, in many batches, from many connections, at the same time.

use std::sync::Arc;

use anyhow::ensure;
use libtest_mimic::Trial;
use serde_json::{Value, json};
use taskflow_core::{Command, envelope};
use taskflow_stores::clock;
use taskflow_stores::rabbit::publish::Message;
use taskflow_tests::commands::{command, id, ndjson};
use taskflow_tests::{Result, Site, wait};
use tokio::task::JoinSet;

use crate::{cluster, with_site};

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        with_site("one id in one body takes effect once", in_one_body),
        with_site("one id from many connections takes effect once", from_many_connections),
        with_site("an id with other content is refused, over AMQP as well", mismatch),
        with_site("a command that waits keeps its id", waits_first),
        with_site("who waits for a receipt is not given that of another command", anothers),
        with_site("twins on different partitions take effect once", twins),
    ]
}

async fn in_one_body(site: Arc<Site>) -> Result {
    let cluster = cluster(&site)?;
    let worker = cluster.worker()?;
    let (_api, client) = cluster.api().await?;
    let admin = client.admin().await?;
    let create = command("task.create", id(), json!({ "title": "once" }));
    let mut other = create.clone();
    other["data"]["title"] = json!("other content");
    let (status, answer) = admin
        .send("application/x-ndjson", ndjson(&[create.clone(), create.clone(), other, create.clone()]))
        .await?;
    ensure!(status == 202 && answer["accepted"] == 3, "{status} {answer}");
    ensure!(
        answer["refused"][0]["index"] == 2 && answer["refused"][0]["problem"]["status"] == 409,
        "{answer}"
    );
    let receipt = admin.apply(&create).await?;
    ensure!(receipt["status"] == "applied" && receipt["version"] == 1, "{receipt}");
    ensure!(site.count("SELECT count(*) FROM tasks").await? == 1, "not one task");
    worker.stop().await
}

async fn from_many_connections(site: Arc<Site>) -> Result {
    let cluster = cluster(&site)?;
    let (_api, client) = cluster.api().await?;
    let admin = client.admin().await?;
    let commands: Vec<Value> =
        (0..50).map(|n| command("task.create", id(), json!({ "title": format!("task {n}") }))).collect();
    let mut senders = JoinSet::new();
    for _ in 0..8 {
        let (admin, body) = (admin.clone(), ndjson(&commands));
        senders.spawn(async move { admin.send("application/x-ndjson", body).await });
    }
    // They wait on the broker eight-fold before the first worker comes.
    while let Some(sent) = senders.join_next().await {
        let (status, answer) = sent??;
        ensure!(status == 202 && answer["accepted"] == 50, "{status} {answer}");
    }
    let (one, two) = (cluster.worker()?, cluster.worker()?);
    wait::until("all are applied", async || Ok(site.count("SELECT count(*) FROM receipts").await? >= 51))
        .await?;
    wait::until("the queues are empty", async || {
        let partitions = site.partitions().await?;
        let queues: Vec<String> = partitions.iter().map(|partition| partition.queue()).collect();
        Ok(site.link.depths(&queues).await?.values().all(|depth| depth.ready == 0))
    })
    .await?;
    wait::until("the outbox is empty", async || Ok(site.count("SELECT count(*) FROM outbox").await? == 0))
        .await?;
    ensure!(site.count("SELECT count(*) FROM tasks").await? == 50, "not fifty tasks");
    let created = site
        .events()
        .await?
        .iter()
        .filter(|event| event.get_str("type").unwrap_or_default() == "task.created")
        .count();
    ensure!(created == 50, "{created} events for 50 tasks");
    one.stop().await?;
    two.stop().await
}

async fn mismatch(site: Arc<Site>) -> Result {
    let cluster = cluster(&site)?;
    let worker = cluster.worker()?;
    let (_api, client) = cluster.api().await?;
    let admin = client.admin().await?;
    let create = command("task.create", id(), json!({ "title": "first" }));
    admin.apply(&create).await?;
    let mut other = create.clone();
    other["data"]["title"] = json!("second");
    let (status, answer) = admin.send("application/json", other.to_string()).await?;
    ensure!(status == 409 && answer["code"] == "idempotency_mismatch", "{status} {answer}");
    publish(&site, &envelope::read(other)?).await?;
    let letters = "SELECT count(*) FROM dead_letters WHERE reason = 'idempotency_mismatch'";
    wait::until("it is in the dead letters", async || Ok(site.count(letters).await? == 1)).await?;
    // The same again is answered as the first time, and waiting gives the first receipt.
    let (status, answer) = admin.send("application/json", create.to_string()).await?;
    ensure!(status == 202 && answer["status"] == "accepted", "{status} {answer}");
    ensure!(admin.apply(&create).await?["version"] == 1, "another receipt");
    worker.stop().await
}

/// A command that waits for its time has no receipt yet; its id is its own all the same.
async fn waits_first(site: Arc<Site>) -> Result {
    let cluster = cluster(&site)?;
    let worker = cluster.worker()?;
    let (_api, client) = cluster.api().await?;
    let admin = client.admin().await?;
    let mut scheduled = command("task.create", id(), json!({ "title": "next year" }));
    scheduled["notbefore"] = json!(clock::now() + chrono::TimeDelta::hours(1));
    // The names of media types are read in whatever letters.
    let (status, answer) = admin.send("Application/JSON; charset=utf-8", scheduled.to_string()).await?;
    ensure!(status == 202, "{status} {answer}");
    let waiting = "SELECT count(*) FROM waiting_commands";
    wait::until("it waits", async || Ok(site.count(waiting).await? == 1)).await?;

    let mut other = scheduled.clone();
    other["data"]["title"] = json!("now");
    if let Some(other) = other.as_object_mut() {
        other.remove("notbefore");
    }
    let (status, answer) = admin.send("application/json", other.to_string()).await?;
    ensure!(status == 409 && answer["code"] == "idempotency_mismatch", "{status} {answer}");
    // An upstream system that asks nobody, with the same subject and with another one.
    publish(&site, &envelope::read(other.clone())?).await?;
    other["subject"] = json!(id());
    publish(&site, &envelope::read(other)?).await?;
    let letters = "SELECT count(*) FROM dead_letters WHERE reason = 'idempotency_mismatch'";
    wait::until("both are in the dead letters", async || Ok(site.count(letters).await? == 2)).await?;
    ensure!(site.count("SELECT count(*) FROM tasks").await? == 0, "another one came before it");
    ensure!(site.count(waiting).await? == 1, "it does not wait any more");
    // The same again is taken, and waits as it does.
    let answer = admin.post("/v1/commands").header("prefer", "Wait=1").json(&scheduled).send().await?;
    ensure!(answer.status() == 202, "{}", answer.status());
    let path = format!("/v1/commands/{}", scheduled["id"].as_str().unwrap_or_default());
    let shown: Value = admin.get(&path).await?.json().await?;
    ensure!(shown["status"] == "scheduled", "{shown}");
    // One that a worker of an older version could not read is known by its bytes, which differ each time it is sent.
    site.sql("UPDATE waiting_commands SET fingerprint = substring(sha256(body) FROM 1 FOR 16)").await?;
    let (status, answer) = admin.send("application/json", scheduled.to_string()).await?;
    ensure!(status == 202, "{status} {answer}");
    let mut behind = command("task.create", id(), json!({ "title": "behind it in its queue" }));
    behind["subject"] = scheduled["subject"].clone();
    ensure!(admin.apply(&behind).await?["status"] == "applied", "the queue stands still");
    ensure!(site.count(letters).await? == 2, "the same command is taken for another one");
    ensure!(admin.delete(&path).await?.status() == 200, "it can't be cancelled");
    worker.stop().await
}

async fn publish(site: &Site, command: &Command) -> Result {
    Ok(site.publisher.publish(Message::command(command, clock::now(), None)).await?)
}

/// The same id with normal and with low priority travels through two partitions that know nothing of each other.
/// Both were accepted before either had a receipt.
async fn anothers(site: Arc<Site>) -> Result {
    let cluster = cluster(&site)?;
    let (_api, client) = cluster.api().await?;
    let admin = client.admin().await?;
    let first = command("task.create", id(), json!({ "title": "first" }));
    let mut second = first.clone();
    second["data"]["title"] = json!("second");
    let waits = async |command: &Value| -> Result<(u16, Value)> {
        let answer = admin.post("/v1/commands").header("prefer", "wait=30").json(command).send().await?;
        Ok((answer.status().as_u16(), answer.json().await?))
    };
    let (status, answer) = admin.send("application/json", first.to_string()).await?;
    ensure!(status == 202, "{answer}");
    let worked = async {
        let queues: Vec<String> =
            site.partitions().await?.iter().map(|partition| partition.queue()).collect();
        // The login is a command too.
        wait::until("all of them wait with the broker", async || {
            Ok(site.link.depths(&queues).await?.values().map(|depth| depth.ready).sum::<u32>() == 4)
        })
        .await?;
        cluster.worker()
    };
    let (same, other, worker) = tokio::join!(waits(&first), waits(&second), worked);
    let ((same_status, same), (other_status, other), worker) = (same?, other?, worker?);
    ensure!(same_status == 200 && same["status"] == "applied", "{same_status} {same}");
    ensure!(other_status == 409 && other["code"] == "idempotency_mismatch", "{other_status} {other}");
    worker.stop().await
}

async fn twins(site: Arc<Site>) -> Result {
    let cluster = cluster(&site)?;
    let mut expected = 0;
    for _ in 0..40 {
        let subject = id();
        let normal = envelope::read(command("task.create", subject, json!({ "title": "twin" })))?;
        let mut low = envelope::read(command("task.create", subject, json!({ "title": "twin" })))?;
        low.priority = taskflow_core::command::Priority::Low;
        publish(&site, &normal).await?;
        publish(&site, &low).await?;
        expected += 2;
    }
    let worker = cluster.worker()?;
    wait::until("all have receipts", async || {
        Ok(site.count("SELECT count(*) FROM receipts").await? == expected)
    })
    .await?;
    ensure!(site.count("SELECT count(*) FROM tasks").await? == 40, "not forty tasks");
    let rejected = site.count("SELECT count(*) FROM receipts WHERE code = 'already_exists'").await?;
    ensure!(rejected == 40, "{rejected} of 40 second twins were rejected");
    worker.stop().await
}
