//! Publishers and subscribers over AMQP: the same service without HTTP.

use std::collections::HashSet;
use std::sync::Arc;

use anyhow::{Context, ensure};
use futures_util::StreamExt;
use lapin::BasicProperties;
use lapin::options::{BasicConsumeOptions, ExchangeDeleteOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use libtest_mimic::Trial;
use serde_json::{Value, json};
use taskflow_core::slot;
use taskflow_stores::rabbit::publish::Message;
use taskflow_stores::rabbit::topology::{COMMANDS, COMMANDS_LOW, EVENTS, SLOTS};
use taskflow_tests::commands::{command, id, subject_in_slot};
use taskflow_tests::{Result, Site, wait};
use uuid::Uuid;

use crate::{cluster, with_site};

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        with_site("commands published over AMQP are applied", applied),
        with_site("what is no command goes to the dead letters, untouched", dead_letters),
        with_site("a poisonous row is isolated, its neighbours apply", poisonous_row),
        with_site("events reach whoever has bound a queue", events),
        with_site("a queue that refuses events keeps nobody else from hearing them", refused_event),
        with_site("exchanges that somebody has deleted are declared again", exchanges_deleted),
    ]
}

async fn publish(site: &Site, exchange: &str, key: &str, body: Vec<u8>) -> Result {
    let message = Message {
        exchange: exchange.into(),
        routing_key: key.into(),
        body,
        properties: BasicProperties::default()
            .with_delivery_mode(2)
            .with_content_type("application/cloudevents+json".into()),
        mandatory: true,
        lane: 0,
    };
    Ok(site.publisher.publish(message).await?)
}

fn key(subject: Uuid) -> &'static str {
    slot::routing_key(slot::of(subject))
}

async fn applied(site: Arc<Site>) -> Result {
    let cluster = cluster(&site)?;
    let worker = cluster.worker()?;
    for (exchange, priority) in [(COMMANDS, "normal"), (COMMANDS_LOW, "low")] {
        let subject = id();
        let mut create = command("task.create", subject, json!({ "title": priority }));
        create["priority"] = json!(priority);
        publish(&site, exchange, key(subject), create.to_string().into_bytes()).await?;
    }
    wait::until("both are applied", async || Ok(site.count("SELECT count(*) FROM tasks").await? == 2))
        .await?;
    worker.stop().await
}

async fn dead_letters(site: Arc<Site>) -> Result {
    let cluster = cluster(&site)?;
    let worker = cluster.worker()?;
    let subject = subject_in_slot(0x10);
    let neighbour = command("task.create", subject_in_slot(0x10), json!({ "title": "a good neighbour" }));
    let mut invalid = command("task.create", subject, json!({ "title": "" }));
    let wrong_slot = command("task.create", subject, json!({ "title": "in the wrong queue" }));
    invalid["surprise"] = json!(1);
    let bodies: [(&str, Vec<u8>, &str); 4] = [
        ("10", b"\xff\xfe no text at all".to_vec(), "malformed"),
        ("10", br#"{"title": "\ud800"}"#.to_vec(), "malformed"),
        ("10", invalid.to_string().into_bytes(), "malformed"),
        ("14", wrong_slot.to_string().into_bytes(), "wrong_slot"),
    ];
    for (key, body, _) in &bodies {
        publish(&site, COMMANDS, key, body.clone()).await?;
    }
    publish(&site, COMMANDS, "10", neighbour.to_string().into_bytes()).await?;
    wait::until(
        "the neighbour is applied",
        async || Ok(site.count("SELECT count(*) FROM tasks").await? == 1),
    )
    .await?;
    let kept = "SELECT count(*) FROM dead_letters WHERE state = 'kept'";
    wait::until("four dead letters", async || Ok(site.count(kept).await? == 4)).await?;
    let letters: Vec<(String, Vec<u8>)> =
        sqlx::query_as("SELECT reason, body FROM dead_letters").fetch_all(&site.postgres).await?;
    for (_, body, reason) in bodies {
        ensure!(
            letters.iter().any(|(why, bytes)| why == reason && *bytes == body),
            "{reason} is missing: {letters:?}"
        );
    }
    // Those that have an id can be looked up.
    let dead = site.count("SELECT count(*) FROM receipts WHERE outcome = 'dead'").await?;
    ensure!(dead == 2, "{dead} receipts say dead");
    // No slot at all: the alternate exchange takes it.
    publish(&site, COMMANDS, "no slot", wrong_slot.to_string().into_bytes()).await?;
    let misrouted = "SELECT count(*) FROM dead_letters WHERE routing_key = 'no slot' OR copies > 0";
    wait::until("the misrouted one is there", async || Ok(site.count(misrouted).await? == 1)).await?;
    worker.stop().await
}

/// The table refuses a row that the decisions let through, as a bug of ours would.
async fn poisonous_row(site: Arc<Site>) -> Result {
    site.sql("ALTER TABLE tasks ADD CONSTRAINT no_poison CHECK (title <> 'poison')").await?;
    let cluster = cluster(&site)?;
    for number in 0..40 {
        let subject = subject_in_slot(0x20);
        let title = if number == 23 { "poison".to_owned() } else { format!("task {number}") };
        let create = command("task.create", subject, json!({ "title": title }));
        publish(&site, COMMANDS, "20", create.to_string().into_bytes()).await?;
    }
    let worker = cluster.worker()?;
    wait::until("all have receipts", async || Ok(site.count("SELECT count(*) FROM receipts").await? == 40))
        .await?;
    ensure!(site.count("SELECT count(*) FROM tasks").await? == 39, "a neighbour was harmed");
    let (code, detail): (String, String) =
        sqlx::query_as("SELECT code, detail FROM receipts WHERE outcome = 'dead'")
            .fetch_one(&site.postgres)
            .await?;
    ensure!(code == "failing" && detail.contains("no_poison"), "{code}: {detail}");
    let letters = "SELECT count(*) FROM dead_letters WHERE reason = 'failing'";
    wait::until("it is in the dead letters", async || Ok(site.count(letters).await? == 1)).await?;
    worker.stop().await
}

/// A queue that somebody has bound is full and refuses: nobody else hears less for it, and nothing stands still.
async fn refused_event(site: Arc<Site>) -> Result {
    let channel = site.link.channel().await?;
    let bind = async |full: bool| -> Result<lapin::Queue> {
        let mut arguments = FieldTable::default();
        if full {
            arguments.insert("x-max-length".into(), AMQPValue::LongInt(1));
            arguments.insert("x-overflow".into(), AMQPValue::LongString("reject-publish".into()));
        }
        let options = QueueDeclareOptions { exclusive: true, ..QueueDeclareOptions::default() };
        let queue = channel.queue_declare("".into(), options, arguments).await?;
        let (name, key) = (queue.name().clone(), "task.*".into());
        let options = QueueBindOptions::default();
        channel.queue_bind(name, EVENTS.into(), key, options, FieldTable::default()).await?;
        Ok(queue)
    };
    bind(true).await?;
    let other = bind(false).await?;
    let cluster = cluster(&site)?;
    let listen = taskflow_tests::free_address()?;
    let worker = cluster.spawn("worker", &[("TASKFLOW_METRICS__LISTEN", &listen)])?;
    let commands: Vec<Value> =
        (0..30).map(|_| command("task.create", id(), json!({ "title": "to be told" }))).collect();
    for command in &commands {
        let subject = command["subject"].as_str().unwrap_or_default().parse()?;
        publish(&site, COMMANDS, key(subject), command.to_string().into_bytes()).await?;
    }
    site.until_told(&commands).await?;
    let stamped = "SELECT count(*) FROM batches WHERE published_at IS NOT NULL";
    wait::until("the batches are told and tidied", async || {
        Ok(site.count("SELECT count(*) FROM outbox").await? == 0 && site.count(stamped).await? > 0)
    })
    .await?;
    let options = BasicConsumeOptions { no_ack: true, ..BasicConsumeOptions::default() };
    let mut heard = HashSet::new();
    let mut consumer =
        channel.basic_consume(other.name().clone(), "".into(), options, FieldTable::default()).await?;
    while heard.len() < commands.len() {
        let delivery = tokio::time::timeout(std::time::Duration::from_secs(60), consumer.next());
        let event: Value = serde_json::from_slice(&delivery.await?.context("an event")??.data)?;
        heard.insert(event["subject"].to_string());
    }
    let metrics = reqwest::get(format!("http://{listen}/metrics")).await?.text().await?;
    let refused = metrics.lines().find_map(|line| line.strip_prefix("taskflow_events_refused_total "));
    ensure!(
        refused.and_then(|count| count.parse::<f64>().ok()) > Some(0.0),
        "{refused:?} are counted as refused"
    );
    ensure!(worker.log().contains("refuses events"), "nobody is told");
    worker.stop().await
}

/// Somebody has deleted the exchanges: intake and events find them again.
async fn exchanges_deleted(site: Arc<Site>) -> Result {
    let cluster = cluster(&site)?;
    let worker = cluster.worker()?;
    let (_api, client) = cluster.api().await?;
    let admin = client.admin().await?;
    let create = command("task.create", id(), json!({ "title": "before" }));
    admin.apply(&create).await?;
    site.until_told(&[create]).await?;
    let channel = site.link.channel().await?;
    for exchange in [EVENTS, COMMANDS, SLOTS] {
        channel.exchange_delete(exchange.into(), ExchangeDeleteOptions::default()).await?;
    }
    let create = command("task.create", id(), json!({ "title": "after" }));
    wait::until("commands are accepted again", async || {
        let (status, answer) = admin.send("application/json", create.to_string()).await?;
        ensure!([202, 503].contains(&status), "{status} {answer}");
        Ok(status == 202)
    })
    .await?;
    site.until_told(&[create]).await?;
    wait::until("its event is told", async || Ok(site.count("SELECT count(*) FROM outbox").await? == 0))
        .await?;
    worker.stop().await
}

async fn events(site: Arc<Site>) -> Result {
    let channel = site.link.channel().await?;
    let options = QueueDeclareOptions { exclusive: true, ..QueueDeclareOptions::default() };
    let queue = channel.queue_declare("".into(), options, FieldTable::default()).await?;
    channel
        .queue_bind(
            queue.name().clone(),
            EVENTS.into(),
            "task.*".into(),
            QueueBindOptions::default(),
            FieldTable::default(),
        )
        .await?;
    let options = BasicConsumeOptions { no_ack: true, ..BasicConsumeOptions::default() };
    let mut consumer =
        channel.basic_consume(queue.name().clone(), "".into(), options, FieldTable::default()).await?;
    let cluster = cluster(&site)?;
    let worker = cluster.worker()?;
    let subject = id();
    let mut create = command("task.create", subject, json!({ "title": "to be told" }));
    let trace = "0af7651916cd43dd8448eb211c80319c";
    create["traceparent"] = json!(format!("00-{trace}-b7ad6b7169203331-01"));
    create["correlationid"] = json!(id());
    publish(&site, COMMANDS, key(subject), create.to_string().into_bytes()).await?;
    let delivery = tokio::time::timeout(std::time::Duration::from_secs(60), consumer.next())
        .await?
        .context("an event")??;
    let event: Value = serde_json::from_slice(&delivery.data)?;
    ensure!(delivery.routing_key.as_str() == "task.created" && event["type"] == "task.created", "{event}");
    ensure!(
        event["specversion"] == "1.0"
            && event["subject"] == json!(subject)
            && event["commandid"] == create["id"],
        "{event}"
    );
    ensure!(
        event["correlationid"] == create["correlationid"] && event["data"]["title"] == "to be told",
        "{event}"
    );
    ensure!(event["traceparent"].as_str().is_some_and(|parent| parent.contains(trace)), "{event}");
    worker.stop().await
}
