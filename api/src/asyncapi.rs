//! The AsyncAPI 3 document: what goes over AMQP. Commands come from `taskflow_core::schema`, names from the topology
//! that is declared.

use std::sync::LazyLock;

use serde_json::{Map, Value, json};
use taskflow_core::command::TYPES;
use taskflow_core::{envelope, event, schema};
use taskflow_stores::rabbit::topology::{COMMANDS, COMMANDS_LOW, EVENTS};

static DOCUMENT: LazyLock<String> = LazyLock::new(|| document().to_string());

/// The document's text.
pub(crate) fn text() -> &'static str {
    &DOCUMENT
}

fn document() -> Value {
    let mut messages: Map<String, Value> = TYPES.iter().filter_map(|kind| command(kind)).collect();
    messages.insert("event".to_owned(), event());
    json!({
        "asyncapi": "3.0.0",
        "info": {
            "title": "TaskFlow over AMQP",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Commands in, events out. AMQP 0-9-1; RabbitMQ 3.10 or later.",
            "license": { "name": "Apache-2.0" },
        },
        "defaultContentType": envelope::CONTENT_TYPE,
        "channels": {
            "commands": commands(COMMANDS, "Commands of normal priority"),
            "lowCommands": commands(COMMANDS_LOW, "Commands of low priority: imports, back-fills"),
            "events": {
                "address": "{eventtype}",
                "description": "Every event of the audit trail; bind a queue of your own by the types that you want. An event may come again: know it by its id",
                "parameters": { "eventtype": { "description": "The routing key: the event's type", "examples": event::TYPES } },
                "messages": { "event": { "$ref": "#/components/messages/event" } },
                "bindings": { "amqp": exchange(EVENTS, "topic") },
            },
        },
        "operations": {
            "takeCommand": {
                "action": "receive",
                "channel": { "$ref": "#/channels/commands" },
                "summary": "Publish a command persistent and mandatory, with confirms. It ends in exactly one receipt",
                "bindings": { "amqp": { "deliveryMode": 2, "mandatory": true, "bindingVersion": "0.3.0" } },
            },
            "takeLowCommand": {
                "action": "receive",
                "channel": { "$ref": "#/channels/lowCommands" },
                "summary": "The same for what has time",
                "bindings": { "amqp": { "deliveryMode": 2, "mandatory": true, "bindingVersion": "0.3.0" } },
            },
            "tellEvent": { "action": "send", "channel": { "$ref": "#/channels/events" }, "summary": "What a command has changed" },
        },
        "components": { "messages": messages },
    })
}

fn commands(name: &str, says: &str) -> Value {
    let messages: Map<String, Value> = TYPES
        .iter()
        .map(|kind| ((*kind).to_owned(), json!({ "$ref": format!("#/components/messages/{kind}") })))
        .collect();
    json!({
        "address": "{slot}",
        "description": says,
        "parameters": { "slot": {
            "description": "The routing key: the last two hexadecimal digits of the subject, lower case. Another key leads to the dead letters",
            "examples": ["00", "ff"],
        } },
        "messages": messages,
        "bindings": { "amqp": exchange(name, "direct") },
    })
}

fn exchange(name: &str, kind: &str) -> Value {
    let exchange = json!({ "name": name, "type": kind, "durable": true, "autoDelete": false });
    json!({ "is": "routingKey", "exchange": exchange, "bindingVersion": "0.3.0" })
}

fn command(kind: &str) -> Option<(String, Value)> {
    let payload = schema::command(kind, schema::MAJOR)?;
    let examples: Vec<Value> =
        payload["examples"].as_array()?.iter().map(|example| json!({ "payload": example })).collect();
    let message = json!({
        "name": kind,
        "title": payload["description"],
        "contentType": envelope::CONTENT_TYPE,
        "payload": payload,
        "examples": examples,
    });
    Some((kind.to_owned(), message))
}

fn event() -> Value {
    let (text, uuid) = (json!({ "type": "string" }), json!({ "type": "string", "format": "uuid" }));
    let payload = json!({
        "type": "object",
        "required": ["specversion", "id", "source", "type", "subject", "time", "actorid", "correlationid", "commandid", "entitytype", "data"],
        "properties": {
            "specversion": { "const": "1.0" },
            "id": text,
            "source": { "const": "/taskflow" },
            "type": text,
            "subject": uuid,
            "time": { "type": "string", "format": "date-time" },
            "actorid": uuid,
            "correlationid": uuid,
            "commandid": uuid,
            "entitytype": { "enum": ["task", "user", "system"] },
            "version": { "type": "integer", "description": "The entity's version after the change" },
            "traceparent": text,
            "data": { "type": "object", "description": "The new values, and under previous the old ones" },
        },
    });
    json!({
        "name": "event",
        "title": "A change, as a CloudEvent",
        "contentType": envelope::CONTENT_TYPE,
        "payload": payload,
        "examples": [{ "payload": {
            "specversion": "1.0", "id": "652f1d20a1b2c3d4e5f60718", "source": "/taskflow", "type": "task.created",
            "subject": "0189f7a0-6d3c-7e4b-9a51-3f0c2f4f7a11", "time": "2030-01-31T08:00:00.123456Z",
            "actorid": "01930000-0000-7000-8000-000000000001",
            "correlationid": "0189f7a0-6d3c-7e4b-9a51-3f0c2f4f7a10",
            "commandid": "0189f7a0-6d3c-7e4b-9a51-3f0c2f4f7a10", "entitytype": "task", "version": 1,
            "data": { "title": "Write the report" },
        } }],
    })
}
