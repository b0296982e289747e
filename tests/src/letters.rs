//! Dead letters for tests: commands that die, and waiting for what becomes of them.

use anyhow::{Result, ensure};
use lapin::BasicProperties;
use serde_json::{Value, json};
use taskflow_core::{envelope, slot};
use taskflow_stores::rabbit::publish::Message;
use taskflow_stores::rabbit::topology::COMMANDS;
use uuid::Uuid;

use crate::commands::command;
use crate::{Site, wait};

/// A title that a table refuses once [`forbid_poison`] was called.
pub const POISON: &str = "poison";

/// Makes the table refuse what the decisions let through, as a bug of ours would. Drop the constraint `no_poison` to
/// mend it.
pub async fn forbid_poison(site: &Site) -> Result<()> {
    site.sql("ALTER TABLE tasks ADD CONSTRAINT no_poison CHECK (title <> 'poison') NOT VALID").await
}

/// A command that dies of it.
pub fn poison(task: Uuid) -> Value {
    command("task.create", task, json!({ "title": POISON }))
}

/// The routing key of a subject.
pub fn key(subject: Uuid) -> &'static str {
    slot::routing_key(slot::of(subject))
}

/// Publishes a command into its slot, byte for byte.
pub async fn publish(site: &Site, command: &Value) -> Result<()> {
    let subject: Uuid = serde_json::from_value(command["subject"].clone())?;
    publish_to(site, COMMANDS, key(subject), command.to_string().into_bytes()).await
}

/// Publishes bytes, as another system would.
pub async fn publish_to(site: &Site, exchange: &str, key: &str, body: Vec<u8>) -> Result<()> {
    let message = Message {
        exchange: exchange.into(),
        routing_key: key.into(),
        body,
        properties: BasicProperties::default()
            .with_delivery_mode(2)
            .with_content_type(envelope::CONTENT_TYPE.into()),
        mandatory: true,
        lane: 0,
    };
    Ok(site.publisher.publish(message).await?)
}

/// Waits until so many letters are in a state, and those with an id of their own have their receipts.
pub async fn until(site: &Site, state: &str, count: i64) -> Result<()> {
    wait::until("the dead letters are there", async || {
        let have =
            site.count(&format!("SELECT count(*) FROM dead_letters WHERE state = '{state}'")).await?;
        ensure!(have == count, "{have} letters are {state}, not {count}");
        let early = "SELECT count(*) FROM dead_letters d WHERE state = 'kept' AND reason IN ('failing', 'malformed')
                     AND command_id IS NOT NULL AND NOT EXISTS (SELECT FROM receipts r WHERE r.id = d.command_id)";
        Ok(site.count(early).await? == 0)
    })
    .await
}

/// Bytes as the API shows them.
pub fn base64(bytes: &[u8]) -> String {
    taskflow_core::dead_letter::shown::base64(bytes)
}
