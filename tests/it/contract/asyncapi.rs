//! The AsyncAPI document: its references lead somewhere, its exchanges are on the broker, and what comes over AMQP is as
//! it says.

use std::sync::Arc;

use anyhow::{Context, ensure};
use futures_util::StreamExt;
use lapin::ExchangeKind;
use lapin::options::{BasicConsumeOptions, ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use libtest_mimic::Trial;
use serde_json::{Value, json};
use taskflow_core::command::TYPES;
use taskflow_tests::commands::{USER, command, id};
use taskflow_tests::{Result, Site};

use super::openapi::references;
use crate::{cluster, with_site};

pub(crate) fn tests() -> Vec<Trial> {
    vec![with_site("asyncapi: exchanges and events are as the document says", document)]
}

async fn document(site: Arc<Site>) -> Result {
    let cluster = cluster(&site)?;
    let worker = cluster.worker()?;
    let (_api, client) = cluster.api().await?;
    let admin = client.admin().await?;
    let document: Value = client.get("/asyncapi.json").await?.json().await?;
    references(&document, &document)?;
    ensure!(document["asyncapi"] == "3.0.0", "{}", document["asyncapi"]);
    for (name, message) in document["components"]["messages"].as_object().context("messages")? {
        ensure!(jsonschema::meta::is_valid(&message["payload"]), "the payload of {name} is no schema");
        let validator = jsonschema::options().should_validate_formats(true).build(&message["payload"])?;
        let example = &message["examples"][0]["payload"];
        ensure!(validator.is_valid(example), "the example of {name}: {example}");
    }
    for kind in TYPES {
        ensure!(document["channels"]["commands"]["messages"][kind].is_object(), "{kind} is missing");
    }

    // Declared already, and of the kind that the document names: else the broker refuses.
    let channel = site.link.channel().await?;
    for channel_name in ["commands", "lowCommands", "events"] {
        let exchange = &document["channels"][channel_name]["bindings"]["amqp"]["exchange"];
        let name = exchange["name"].as_str().context("a name")?;
        let kind = match exchange["type"].as_str() {
            Some("topic") => ExchangeKind::Topic,
            _ => ExchangeKind::Direct,
        };
        let options = ExchangeDeclareOptions { passive: true, durable: true, ..Default::default() };
        channel.exchange_declare(name.into(), kind, options, FieldTable::default()).await?;
    }
    let events = document["channels"]["events"]["bindings"]["amqp"]["exchange"]["name"].as_str();
    let options = QueueDeclareOptions { exclusive: true, ..QueueDeclareOptions::default() };
    let queue = channel.queue_declare("".into(), options, FieldTable::default()).await?;
    let queue = queue.name().clone();
    let bind = QueueBindOptions::default();
    channel
        .queue_bind(queue.clone(), events.unwrap_or_default().into(), "#".into(), bind, FieldTable::default())
        .await?;
    let options = BasicConsumeOptions { no_ack: true, ..BasicConsumeOptions::default() };
    let mut consumer = channel.basic_consume(queue, "".into(), options, FieldTable::default()).await?;

    let task = id();
    admin.apply(&command("task.create", task, json!({ "title": "told", "assigneeid": USER }))).await?;
    admin.apply(&command("task.update", task, json!({ "title": "told again" }))).await?;
    admin.apply(&command("user.update_profile", USER, json!({ "profile": { "firstName": "Ada" } }))).await?;
    let schema = &document["components"]["messages"]["event"]["payload"];
    let validator = jsonschema::options().should_validate_formats(true).build(schema)?;
    for _ in 0..4 {
        let next = tokio::time::timeout(std::time::Duration::from_secs(60), consumer.next()).await?;
        let delivery = next.context("an event")??;
        let event: Value = serde_json::from_slice(&delivery.data)?;
        let faults: Vec<String> = validator.iter_errors(&event).map(|error| error.to_string()).collect();
        ensure!(faults.is_empty(), "{}\n{event}", faults.join("\n"));
        ensure!(event["type"] == delivery.routing_key.as_str(), "{event}");
    }
    worker.stop().await
}
