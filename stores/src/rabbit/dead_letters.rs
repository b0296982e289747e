//! The dead letters: messages that nobody can apply, with their bytes untouched and the reason beside them.
//!
//! Any message can be buried, whatever its publisher has put beside the bytes: what the broker would act upon once
//! more (a user it checks, a time to live, addresses for copies) stays behind, or a message could block its partition
//! for good, vanish again, or come back.

use chrono::{DateTime, Utc};
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable};
use taskflow_core::dead_letter::Route;
use taskflow_core::{envelope, slot};
use uuid::Uuid;

use super::consume::Delivery;
use super::link::PUBLISHING_FRAME;
use super::publish::{ACCEPTED, Message, PERSISTENT, PublishError, Publisher};
use super::topology::{DEAD_LETTERS, Partition, SLOTS, SLOTS_LOW};
use crate::{StoreError, clock};

/// Headers of a dead letter: why it died, where, how often the broker had returned it, when (microseconds since 1970).
pub(super) const REASON: &str = "taskflow-reason";
pub(super) const DETAIL: &str = "taskflow-detail";
pub(super) const QUEUE: &str = "taskflow-queue";
pub(super) const ROUTING_KEY: &str = "taskflow-routing-key";
pub(super) const RETURNS: &str = "taskflow-returns";
pub(super) const DIED: &str = "taskflow-died";
/// Headers of a letter that is replayed, which it keeps when it dies again: which one, in which attempt.
pub(super) const LETTER: &str = "taskflow-letter";
pub(super) const ATTEMPT: &str = "taskflow-attempt";

/// Bytes of the reason's text.
const DETAIL_MAX: usize = 1_024;
/// Bytes of the publisher's own headers. All headers have to fit into one frame, with ours and the other properties of a
/// message (fifteen of at most 255 bytes): else the broker closes the connection.
const HEADERS_MAX: usize = PUBLISHING_FRAME as usize - DETAIL_MAX - 7 * 1_024;
/// The same on a connection whose frames are as large as the broker lets them be (128 KiB, if nobody has changed it).
const CARRIED_HEADERS_MAX: usize = 96 * 1_024;
/// Headers that the broker takes for addresses.
const COPIES: [&str; 2] = ["CC", "BCC"];

/// Puts a message into the dead letters. Returns when the broker has it for good.
pub async fn send(
    publisher: &Publisher,
    partition: Partition,
    delivery: &Delivery,
    reason: &str,
    detail: &str,
) -> Result<(), StoreError> {
    let mut headers = theirs(delivery.properties(), HEADERS_MAX);
    ours(&mut headers, partition, delivery.routing_key(), reason, detail);
    headers.insert(RETURNS.into(), AMQPValue::LongLongInt(delivery.returns()));
    publish(publisher, delivery.body().to_vec(), properties(delivery.properties(), headers)).await
}

/// Puts a command into the dead letters that was on the broker once and has waited in Postgres since.
pub async fn send_waited(
    publisher: &Publisher,
    partition: Partition,
    (id, subject): (Uuid, Uuid),
    body: &[u8],
    reason: &str,
    detail: &str,
) -> Result<(), StoreError> {
    let mut headers = FieldTable::default();
    ours(&mut headers, partition, slot::routing_key(slot::of(subject)), reason, detail);
    let properties = BasicProperties::default()
        .with_delivery_mode(PERSISTENT)
        .with_headers(headers)
        .with_content_type(envelope::CONTENT_TYPE.into())
        .with_message_id(id.to_string().into());
    publish(publisher, body.to_vec(), properties).await
}

fn ours(headers: &mut FieldTable, partition: Partition, routing_key: &str, reason: &str, detail: &str) {
    let text = |value: &str| AMQPValue::LongString(value.into());
    headers.insert(REASON.into(), text(reason));
    headers.insert(DETAIL.into(), text(&detail[..detail.floor_char_boundary(DETAIL_MAX)]));
    headers.insert(QUEUE.into(), text(&partition.queue()));
    headers.insert(ROUTING_KEY.into(), text(routing_key));
    headers.insert(DIED.into(), AMQPValue::LongLongInt(clock::now().timestamp_micros()));
}

/// A letter on its way back to the workers.
#[derive(Debug, Clone, Copy)]
pub struct Replay<'l> {
    pub letter: Uuid,
    pub attempt: i32,
    pub command: Option<Uuid>,
    /// When the command was accepted; else when it died first, so that every publication says the same.
    pub accepted_at: DateTime<Utc>,
    pub route: Route,
    pub body: &'l [u8],
}

impl Message {
    /// A dead letter that is published again, with the same bytes.
    pub fn replay(replay: Replay<'_>) -> Self {
        let mut headers = FieldTable::default();
        headers.insert(ACCEPTED.into(), AMQPValue::LongLongInt(replay.accepted_at.timestamp_micros()));
        headers.insert(LETTER.into(), AMQPValue::LongString(replay.letter.to_string().into()));
        headers.insert(ATTEMPT.into(), AMQPValue::LongInt(replay.attempt));
        let properties = BasicProperties::default()
            .with_content_type(envelope::CONTENT_TYPE.into())
            .with_delivery_mode(PERSISTENT)
            .with_message_id(replay.command.unwrap_or(replay.letter).to_string().into())
            .with_headers(headers);
        Self {
            exchange: if replay.route.low { SLOTS_LOW } else { SLOTS }.into(),
            routing_key: slot::routing_key(replay.route.slot).into(),
            body: replay.body.to_vec(),
            properties,
            mandatory: true,
            lane: replay.route.slot,
        }
    }
}

async fn publish(
    publisher: &Publisher,
    body: Vec<u8>,
    properties: BasicProperties,
) -> Result<(), StoreError> {
    let message = Message {
        exchange: "".into(),
        routing_key: DEAD_LETTERS.into(),
        body,
        properties,
        mandatory: true,
        lane: 0,
    };
    match publisher.publish(message).await {
        Ok(()) => Ok(()),
        Err(PublishError::Unavailable(error)) => Err(error),
        Err(error) => Err(StoreError::unavailable("rabbitmq", "send to the dead letters", error)),
    }
}

/// The publisher's own headers, those that fit.
fn theirs(properties: &BasicProperties, most: usize) -> FieldTable {
    let mut headers = FieldTable::default();
    let mut room = most;
    let mut dropped = 0;
    let given = properties.headers().as_ref().map(|headers| headers.inner().iter());
    for (name, value) in given.into_iter().flatten() {
        // The broker's own notes on earlier deaths would look like a cycle.
        if name.as_str().starts_with("x-") || COPIES.contains(&name.as_str()) {
            continue;
        }
        let size = 1 + name.as_str().len() + sent_bytes(value);
        if size > room {
            dropped += 1;
            continue;
        }
        room -= size;
        headers.insert(name.clone(), value.clone());
    }
    if dropped > 0 {
        headers.insert("taskflow-headers-dropped".into(), AMQPValue::LongInt(dropped));
    }
    headers
}

/// How much of a frame a value takes, with the byte that says what it is.
fn sent_bytes(value: &AMQPValue) -> usize {
    1 + match value {
        AMQPValue::Void => 0,
        AMQPValue::Boolean(_) | AMQPValue::ShortShortInt(_) | AMQPValue::ShortShortUInt(_) => 1,
        AMQPValue::ShortInt(_) | AMQPValue::ShortUInt(_) => 2,
        AMQPValue::LongInt(_) | AMQPValue::LongUInt(_) | AMQPValue::Float(_) => 4,
        AMQPValue::DecimalValue(_) => 5,
        AMQPValue::LongLongInt(_) | AMQPValue::Double(_) | AMQPValue::Timestamp(_) => 8,
        AMQPValue::ShortString(text) => 1 + text.as_str().len(),
        AMQPValue::LongString(text) => 4 + text.len(),
        AMQPValue::ByteArray(bytes) => 4 + bytes.len(),
        AMQPValue::FieldArray(values) => 4 + values.as_slice().iter().map(sent_bytes).sum::<usize>(),
        AMQPValue::FieldTable(table) => {
            let entries = table.inner().iter();
            4 + entries.map(|(name, value)| 1 + name.as_str().len() + sent_bytes(value)).sum::<usize>()
        }
    }
}

/// What goes along when a message is published once more by somebody else than its publisher.
pub(super) fn carried(given: &BasicProperties) -> BasicProperties {
    properties(given, theirs(given, CARRIED_HEADERS_MAX))
}

/// What tells about the message goes along; what tells the broker what to do does not.
fn properties(given: &BasicProperties, headers: FieldTable) -> BasicProperties {
    let mut properties = BasicProperties::default().with_delivery_mode(PERSISTENT).with_headers(headers);
    if let Some(value) = given.content_type().clone() {
        properties = properties.with_content_type(value);
    }
    if let Some(value) = given.content_encoding().clone() {
        properties = properties.with_content_encoding(value);
    }
    if let Some(value) = given.correlation_id().clone() {
        properties = properties.with_correlation_id(value);
    }
    if let Some(value) = given.message_id().clone() {
        properties = properties.with_message_id(value);
    }
    if let Some(value) = *given.timestamp() {
        properties = properties.with_timestamp(value);
    }
    if let Some(value) = given.kind().clone() {
        properties = properties.with_type(value);
    }
    if let Some(value) = given.app_id().clone() {
        properties = properties.with_app_id(value);
    }
    properties
}

#[cfg(test)]
mod tests {
    use lapin::types::{ByteArray, FieldArray, ShortString};

    use super::*;

    fn with(headers: FieldTable) -> BasicProperties {
        BasicProperties::default().with_headers(headers)
    }

    #[test]
    fn headers_are_counted_as_they_are_sent() {
        let text = |length: usize| AMQPValue::LongString("x".repeat(length).into());
        let mut inner = FieldTable::default();
        inner.insert("name".into(), AMQPValue::Boolean(true));
        let array = FieldArray::from(vec![AMQPValue::LongInt(7), text(10)]);
        assert_eq!(sent_bytes(&text(10)), 15);
        assert_eq!(sent_bytes(&AMQPValue::FieldTable(inner)), 5 + 5 + 2);
        assert_eq!(sent_bytes(&AMQPValue::FieldArray(array)), 5 + 5 + 15);
        assert_eq!(sent_bytes(&AMQPValue::ByteArray(ByteArray::from(&b"abc"[..]))), 8);
    }

    #[test]
    fn what_fits_into_a_frame_is_kept_and_told_of_what_does_not() {
        let mut headers = FieldTable::default();
        headers.insert("a-baggage".into(), AMQPValue::LongString("x".repeat(20_000).into()));
        headers.insert("b-token".into(), AMQPValue::LongString("x".repeat(20_000).into()));
        headers.insert("c-small".into(), AMQPValue::LongInt(1));
        let kept = theirs(&with(headers.clone()), HEADERS_MAX);
        let names: Vec<&str> = kept.inner().keys().map(ShortString::as_str).collect();
        assert_eq!(names, ["a-baggage", "c-small", "taskflow-headers-dropped"]);
        let carried = carried(&with(headers.clone()));
        assert_eq!(carried.headers().as_ref(), Some(&headers));
    }
}
