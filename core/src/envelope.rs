//! The envelope of a command: a CloudEvents 1.0 event in JSON ⇄ [`Command`].
//!
//! Reading never panics, whatever the bytes, and names every fault by its JSON pointer.

use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::{Map, Value};
use uuid::Uuid;

use crate::batch::Unknown;
use crate::command::{Body, Command, Metadata, Priority, TYPES};
use crate::fault::{Fault, Faults, Object};

/// The media type of one command.
pub const CONTENT_TYPE: &str = "application/cloudevents+json";
/// Largest command, in bytes of JSON. RabbitMQ 4 takes messages of up to 16 MiB; a command is far smaller.
pub const COMMAND_MAX: usize = 1024 * 1024;
/// Bytes of a type that a newer version may know.
const TYPE_MAX: usize = 64;
/// Characters of `source`.
pub const SOURCE_MAX: usize = 512;

/// Why bytes are no command.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{}", self.summary())]
pub struct Malformed {
    /// The command's id, where it could be read: its receipt says what happened.
    pub id: Option<Uuid>,
    /// At least one.
    pub faults: Vec<Fault>,
    /// Set if nothing is wrong but that this version does not know the type.
    pub unknown: Option<Unknown>,
}

impl Malformed {
    fn whole(detail: impl Into<String>) -> Self {
        Self { id: None, faults: vec![Fault::new("", detail)], unknown: None }
    }

    /// The faults in one line: it is kept with a receipt or a dead letter, so of many only the first are told.
    pub fn summary(&self) -> String {
        const TOLD: usize = 10;
        let line = |fault: &Fault| match fault.pointer.as_str() {
            "" => fault.detail.clone(),
            pointer => format!("{pointer}: {}", fault.detail),
        };
        let mut told = self.faults.iter().take(TOLD).map(line).collect::<Vec<_>>().join("; ");
        if self.faults.len() > TOLD {
            told.push_str("; and more");
        }
        told
    }
}

/// Reads a command from the bytes of a message or a request body.
pub fn parse(bytes: &[u8]) -> Result<Command, Malformed> {
    if bytes.len() > COMMAND_MAX {
        return Err(Malformed::whole(format!(
            "a command has at most {COMMAND_MAX} bytes, not {}",
            bytes.len()
        )));
    }
    match serde_json::from_slice(bytes) {
        Ok(value) => read(value),
        Err(error) => Err(Malformed::whole(format!("not valid JSON: {error}"))),
    }
}

/// Reads a command from a JSON value.
pub fn read(value: Value) -> Result<Command, Malformed> {
    let Value::Object(fields) = value else {
        return Err(Malformed::whole("a command is a JSON object (CloudEvents 1.0)"));
    };
    let mut faults = Faults::default();
    let kind =
        fields.get("type").and_then(Value::as_str).filter(|kind| kind.len() <= TYPE_MAX).map(str::to_owned);
    let (head, command) = read_fields(fields, &mut faults);
    match command {
        Some(command) if faults.0.is_empty() => Ok(command),
        _ => {
            if faults.0.is_empty() {
                faults.add("", "not a command");
            }
            let only_the_type = faults.0.len() == 1 && faults.0[0].pointer == "/type";
            let unknown = kind.zip(head.subject).filter(|_| only_the_type && head.id.is_some());
            let unknown = unknown.map(|(kind, subject)| Unknown { kind, subject, actor: head.actor });
            Err(Malformed { id: head.id, faults: faults.0, unknown })
        }
    }
}

/// What is told of a command even if it can't be read whole.
struct Head {
    id: Option<Uuid>,
    subject: Option<Uuid>,
    actor: Option<Uuid>,
}

fn read_fields(fields: Map<String, Value>, faults: &mut Faults) -> (Head, Option<Command>) {
    let mut event = Object::new(fields, "", faults);
    event.required("specversion", |event, name| event.word(name, &[("1.0", ())]));
    let id = event.required("id", Object::uuid);
    let source = event.required("source", read_source);
    let kind = event.required("type", |event, name| event.word(name, &TYPES.map(|kind| (kind, kind))));
    let subject = event.required("subject", Object::uuid);
    let actor = event.required("actorid", Object::uuid);
    let correlation = event.uuid("correlationid").or(id);
    let issued_at = event.time("time");
    event.word("datacontenttype", &[("application/json", ())]);
    if let Some(schema) = event.text("dataschema", 0, 256) {
        let expected = kind.map(|kind| format!("taskflow:/schemas/{kind}/1"));
        if expected.as_ref().is_some_and(|expected| *expected != schema) {
            event.fault("dataschema", format!("must be {}", expected.unwrap_or_default()));
        }
    }
    let priority =
        event.word("priority", &[("normal", Priority::Normal), ("low", Priority::Low)]).unwrap_or_default();
    let not_before = event.time("notbefore");
    let expires_at = event.time("expirytime");
    let traceparent = event.text("traceparent", 1, 128);
    if traceparent.as_deref().is_some_and(|text| !is_traceparent(text)) {
        event.fault("traceparent", "must be a W3C trace context: 00-<32 hex>-<16 hex>-<2 hex>");
    }
    // Belongs to traceparent; carried by no store of ours.
    event.text("tracestate", 0, 512);
    let metadata = Metadata {
        user_agent: event.text("useragent", 0, 512),
        ip_address: event.text("ipaddress", 0, 64),
        session_id: event.text("sessionid", 0, 128),
    };
    let data = event.required("data", |event, name| match event.value(name) {
        Some(Value::Object(data)) => Some(data),
        _ => {
            event.fault(name, "must be an object");
            None
        }
    });
    event.finish();
    let body = kind.zip(data).and_then(|(kind, data)| Body::read(kind, data, faults));
    let command = || {
        Some(Command {
            id: id?,
            source: source?,
            subject: subject?,
            actor: actor?,
            correlation: correlation?,
            issued_at,
            priority,
            not_before,
            expires_at,
            traceparent,
            metadata,
            body: body?,
        })
    };
    (Head { id, subject, actor }, command())
}

fn read_source(event: &mut Object<'_>, name: &'static str) -> Option<String> {
    let source = event.text(name, 1, SOURCE_MAX)?;
    if source.chars().any(|c| c.is_whitespace() || c.is_control()) {
        event.fault(name, "must be a URI reference without blanks, such as /crm/eu");
        return None;
    }
    Some(source)
}

/// The id of a `traceparent`'s trace, as every line of the log names it; empty if it is none.
pub fn trace_id(traceparent: &str) -> &str {
    traceparent.get(3..35).unwrap_or_default()
}

/// Whether a text has the form of a W3C `traceparent` header.
pub fn is_traceparent(text: &str) -> bool {
    let parts: Vec<&str> = text.split('-').collect();
    let hex = |part: &str, digits: usize| {
        part.len() == digits && part.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
    };
    parts.len() == 4
        && hex(parts[0], 2)
        && parts[0] != "ff"
        && hex(parts[1], 32)
        && parts[1].bytes().any(|b| b != b'0')
        && hex(parts[2], 16)
        && parts[2].bytes().any(|b| b != b'0')
        && hex(parts[3], 2)
}

#[derive(Serialize)]
struct Envelope<'a> {
    specversion: &'static str,
    id: Uuid,
    source: &'a str,
    #[serde(rename = "type")]
    kind: &'static str,
    subject: Uuid,
    #[serde(skip_serializing_if = "Option::is_none")]
    time: Option<DateTime<Utc>>,
    actorid: Uuid,
    correlationid: Uuid,
    #[serde(skip_serializing_if = "is_normal")]
    priority: Priority,
    #[serde(skip_serializing_if = "Option::is_none")]
    notbefore: Option<DateTime<Utc>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expirytime: Option<DateTime<Utc>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    traceparent: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    useragent: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ipaddress: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sessionid: Option<&'a str>,
    data: &'a Body,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the form that serde asks for")]
fn is_normal(priority: &Priority) -> bool {
    *priority == Priority::Normal
}

impl Command {
    /// The command as the bytes of a message.
    pub fn to_json(&self) -> Vec<u8> {
        let envelope = Envelope {
            specversion: "1.0",
            id: self.id,
            source: &self.source,
            kind: self.kind(),
            subject: self.subject,
            time: self.issued_at,
            actorid: self.actor,
            correlationid: self.correlation,
            priority: self.priority,
            notbefore: self.not_before,
            expirytime: self.expires_at,
            traceparent: self.traceparent.as_deref(),
            useragent: self.metadata.user_agent.as_deref(),
            ipaddress: self.metadata.ip_address.as_deref(),
            sessionid: self.metadata.session_id.as_deref(),
            data: &self.body,
        };
        // Texts, numbers and times always have a JSON form.
        serde_json::to_vec(&envelope).unwrap_or_default()
    }
}
