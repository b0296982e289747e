//! Events: what changed, for the audit trail and for everyone downstream.

use std::borrow::Cow;
use std::fmt;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::command::Metadata;
pub use crate::retention::{Class, Retention};

/// The event types that commands cause.
pub const TYPES: [&str; 9] = [
    "task.created",
    "task.updated",
    "task.assigned",
    "task.deleted",
    "task.status_changed",
    "user.registered",
    "user.login",
    "user.logout",
    "user.profile_updated",
];

/// An event's `_id` in MongoDB: the second in which its command was accepted, then eight bytes of a hash of the
/// command's id and the event's place in it.
///
/// It follows from the command alone, so a second delivery is a duplicate key and not a second event; the time in
/// front keeps inserts together in the index.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EventId(pub [u8; 12]);

impl EventId {
    pub fn new(accepted_at: DateTime<Utc>, command: Uuid, ordinal: u16) -> Self {
        let mut hash = Sha256::new();
        hash.update(command.as_bytes());
        hash.update(ordinal.to_be_bytes());
        let mut id = [0; 12];
        // Seconds as an ObjectId counts them: 32 bits, until 2106.
        id[..4].copy_from_slice(&(accepted_at.timestamp() as u32).to_be_bytes());
        id[4..].copy_from_slice(&hash.finalize()[..8]);
        Self(id)
    }
}

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl Serialize for EventId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for EventId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let id = crate::hex::read(&text).and_then(|bytes| bytes.try_into().ok());
        id.map(Self).ok_or_else(|| serde::de::Error::custom("an event id has 24 hexadecimal digits"))
    }
}

/// What an event tells: a JSON object, kept as text. A batch's events wait in memory for the slowest store; the text
/// takes a fifth of the room of a parsed object, and goes as it is into the outbox and to the exchange.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Data(Box<RawValue>);

impl Data {
    /// The text of an object. A whole number that has more than 63 bits is told as MongoDB keeps it, as a float: so
    /// the text is the same when it is made from what is kept.
    pub fn new(object: &Value) -> Self {
        let text = |value: &Value| serde_json::value::to_raw_value(value);
        let text = if has_huge(object) { text(&without_huge(object.clone())) } else { text(object) };
        // Texts, numbers and times always have a JSON form; without one nothing is told.
        Self(text.unwrap_or_else(|_| RawValue::NULL.to_owned()))
    }

    /// The object's text.
    pub fn text(&self) -> &RawValue {
        &self.0
    }

    /// The object, parsed.
    pub fn object(&self) -> Map<String, Value> {
        serde_json::from_str(self.0.get()).unwrap_or_default()
    }
}

fn has_huge(value: &Value) -> bool {
    match value {
        Value::Number(number) => number.as_i64().is_none() && number.is_u64(),
        Value::Array(items) => items.iter().any(has_huge),
        Value::Object(fields) => fields.values().any(has_huge),
        _ => false,
    }
}

fn without_huge(value: Value) -> Value {
    match value {
        Value::Number(ref number) if has_huge(&value) => Value::from(number.as_f64()),
        Value::Array(items) => items.into_iter().map(without_huge).collect(),
        Value::Object(fields) => {
            Value::Object(fields.into_iter().map(|(name, value)| (name, without_huge(value))).collect())
        }
        other => other,
    }
}

impl PartialEq for Data {
    fn eq(&self, other: &Self) -> bool {
        self.0.get() == other.0.get()
    }
}

/// One change, as the audit trail keeps it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Event {
    pub id: EventId,
    /// One of [`TYPES`].
    #[serde(rename = "type")]
    pub kind: Cow<'static, str>,
    pub actor: Uuid,
    pub entity: Uuid,
    /// `task` or `user`.
    pub entity_type: Cow<'static, str>,
    /// The entity's version after the change.
    pub version: Option<i32>,
    /// The new values, and under `previous` the old ones.
    pub payload: Data,
    pub metadata: Metadata,
    /// When the command was issued.
    pub issued_at: DateTime<Utc>,
    pub correlation: Uuid,
    pub command: Uuid,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<String>,
    /// When the command was applied.
    pub created_at: DateTime<Utc>,
    pub expires_at: DateTime<Utc>,
}

/// An event as a CloudEvent for those downstream.
#[derive(Serialize)]
struct CloudEvent<'a> {
    specversion: &'static str,
    id: EventId,
    source: &'static str,
    #[serde(rename = "type")]
    kind: &'a str,
    subject: Uuid,
    time: DateTime<Utc>,
    actorid: Uuid,
    correlationid: Uuid,
    commandid: Uuid,
    entitytype: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    traceparent: Option<&'a str>,
    data: &'a Data,
}

impl Event {
    pub fn class(&self) -> Class {
        Class::of(&self.kind)
    }

    /// The event as the bytes of a CloudEvents message.
    pub fn to_cloud_event(&self) -> Vec<u8> {
        let event = CloudEvent {
            specversion: "1.0",
            id: self.id,
            source: "/taskflow",
            kind: &self.kind,
            subject: self.entity,
            time: self.created_at,
            actorid: self.actor,
            correlationid: self.correlation,
            commandid: self.command,
            entitytype: &self.entity_type,
            version: self.version,
            traceparent: self.traceparent.as_deref(),
            data: &self.payload,
        };
        // Texts, numbers and times always have a JSON form.
        serde_json::to_vec(&event).unwrap_or_default()
    }
}
