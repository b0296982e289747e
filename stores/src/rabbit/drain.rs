//! Taking messages out of the dead-letter queue, and reading why they died: the workers' own notes, else the broker's.

use std::future::pending;
use std::time::Duration;

use chrono::{DateTime, Utc};
use futures_util::{FutureExt, StreamExt};
use lapin::Consumer;
use lapin::message::Delivery;
use lapin::options::{BasicAckOptions, BasicConsumeOptions};
use lapin::types::{AMQPValue, FieldTable};
use serde_json::{Map, Value, json};
use taskflow_core::dead_letter::Death;

use super::consumer_channel::ConsumerChannel;
use super::dead_letters::{ATTEMPT, DETAIL, DIED, LETTER, QUEUE, REASON, RETURNS, ROUTING_KEY};
use super::link::Link;
use super::publish::ACCEPTED;
use super::topology::DEAD_LETTERS;
use super::{STORE, failed, times};
use crate::{StoreError, crash};

/// Messages that one drain holds.
const PREFETCH: u16 = 200;
/// Bytes of messages that are stored together.
const BYTES_MAX: usize = 16 * 1024 * 1024;
/// How long the broker may take for a channel, a consumer, an acknowledgement.
const ANSWER: Duration = Duration::from_secs(10);
/// How often a quiet consumer looks whether its channel is still there: one that was made while its connection broke may
/// never be told.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Looks without a message before it subscribes anew. Whether it is deaf can't be asked: what the broker has sent to a
/// deaf consumer counts as delivered, not as waiting.
const QUIET_LOOKS: u32 = 15;
/// What tests call its subscriptions.
const NAME: &str = "dead-letters";
/// Characters of a word or a name from outside.
const WORD_MAX: usize = 256;
/// Characters of a detail from outside.
const DETAIL_MAX: usize = 1_024;

/// A consumer of the dead-letter queue. Several may be at work: the order of letters means nothing.
pub struct Drain {
    link: Link,
    channel: ConsumerChannel,
    consumer: Consumer,
    /// A test's fault: nothing that comes is heard.
    deaf: bool,
}

impl Drain {
    pub async fn open(link: &Link) -> Result<Self, StoreError> {
        let opened = tokio::time::timeout(ANSWER, async {
            let channel = ConsumerChannel::open(link, PREFETCH).await?;
            let options = BasicConsumeOptions::default();
            let consumer = channel.consume(DEAD_LETTERS, options, "drain the dead letters").await?;
            Ok(Self { link: link.clone(), channel, consumer, deaf: crash::deaf(NAME) })
        });
        opened.await.unwrap_or_else(|_| Err(unavailable("no answer in time")))
    }

    /// The next messages: at least one, and what has come beside it.
    ///
    /// # Errors
    /// When there will be none: the broker cancelled the consumer, or the channel is gone.
    pub async fn next(&mut self) -> Result<Drained, StoreError> {
        let mut deliveries = Vec::new();
        let mut bytes = 0;
        let mut next = Some(self.first().await?);
        while let Some(delivery) = next {
            match delivery {
                Some(Ok(delivery)) => {
                    bytes += delivery.data.len();
                    deliveries.push(delivery);
                }
                Some(Err(error)) => return Err(failed("drain the dead letters")(error)),
                None => return Err(unavailable("the broker ended the consumer")),
            }
            let full = deliveries.len() >= usize::from(PREFETCH) || bytes >= BYTES_MAX;
            next = if full { None } else { self.consumer.next().now_or_never() };
        }
        Ok(Drained(deliveries))
    }

    /// What the consumer gives next, however long that takes. A quiet one subscribes anew every
    /// [`QUIET_LOOKS`] seconds: nothing of the old one is in hand, and what it has not heard comes again.
    async fn first(&mut self) -> Result<Option<lapin::Result<Delivery>>, StoreError> {
        let mut looks = 0;
        loop {
            let next = async { if self.deaf { pending().await } else { self.consumer.next().await } };
            if let Ok(next) = tokio::time::timeout(LOOK_EVERY, next).await {
                return Ok(next);
            }
            if !self.channel.is_open() {
                return Err(unavailable("the channel is gone"));
            }
            looks += 1;
            if looks == QUIET_LOOKS {
                looks = 0;
                let fresh = Self::open(&self.link).await?;
                std::mem::replace(self, fresh).close().await;
            }
        }
    }

    /// Leaves: what was not acknowledged goes back to the queue.
    pub async fn close(self) {
        self.channel.close(ANSWER).await;
    }
}

fn unavailable(why: &str) -> StoreError {
    StoreError::unavailable(STORE, "drain the dead letters", why)
}

/// Messages from the dead-letter queue that are not acknowledged yet.
pub struct Drained(Vec<Delivery>);

impl Drained {
    /// What they tell. `now` stands in where nobody has noted the time of death.
    pub fn deaths(&self, now: DateTime<Utc>) -> Vec<Death> {
        self.0.iter().map(|delivery| death(delivery, now)).collect()
    }

    /// Acknowledges them: they are stored.
    pub async fn acknowledge(&self) -> Result<(), StoreError> {
        let Some(last) = self.0.last() else { return Ok(()) };
        let acked = last.acker.ack(BasicAckOptions { multiple: true });
        match tokio::time::timeout(ANSWER, acked).await {
            Ok(Ok(true)) => Ok(()),
            Ok(Ok(false)) => Err(unavailable("the channel of the messages is gone")),
            Ok(Err(error)) => Err(failed("acknowledge")(error)),
            Err(_) => Err(unavailable("no answer in time")),
        }
    }
}

fn death(delivery: &Delivery, now: DateTime<Utc>) -> Death {
    let headers = Headers(delivery.properties.headers().as_ref());
    let broker = headers.broker();
    let exchange = delivery.exchange.as_str();
    let (reason, detail) = match (headers.text(REASON), &broker) {
        (Some(reason), _) => (reason, headers.text(DETAIL).unwrap_or_default()),
        (None, Some(broker)) => {
            let detail = format!("the broker gave it up: {} after {} times", broker.reason, broker.count);
            (broker.reason.clone(), detail)
        }
        (None, None) if !exchange.is_empty() => {
            let detail = format!(
                "published to {exchange:?} with routing key {:?}, which is no slot (two hexadecimal digits, lower case)",
                delivery.routing_key.as_str()
            );
            ("unroutable".to_owned(), detail)
        }
        (None, None) => ("unknown".to_owned(), "somebody published it to the dead letters".to_owned()),
    };
    let (queue, routing_key) = match &broker {
        Some(broker) => (broker.queue.clone(), broker.routing_key.clone()),
        None => (String::new(), delivery.routing_key.to_string()),
    };
    let died_at = headers.number(DIED).and_then(times::of_micros);
    let died_at = died_at.or_else(|| broker.as_ref().and_then(|broker| broker.died_at));
    Death {
        letter: headers.text(LETTER).and_then(|letter| letter.parse().ok()),
        attempt: headers.number(ATTEMPT).and_then(|number| number.try_into().ok()),
        // A letter from the future would never have been there for long enough.
        died_at: died_at.map_or(now, |died_at| died_at.min(now)),
        reason: plain(&reason, WORD_MAX),
        detail: plain(&detail, DETAIL_MAX),
        exchange: plain(exchange, WORD_MAX),
        queue: plain(&headers.text(QUEUE).unwrap_or(queue), WORD_MAX),
        routing_key: plain(&headers.text(ROUTING_KEY).unwrap_or(routing_key), WORD_MAX),
        returns: headers.number(RETURNS).unwrap_or_default(),
        accepted_at: headers.number(ACCEPTED).and_then(times::of_micros).map(|at| at.min(now)),
        headers: headers.all(delivery),
        body: delivery.data.clone(),
    }
}

/// Text that Postgres can keep.
fn plain(text: &str, max: usize) -> String {
    text.replace('\0', "\u{fffd}").chars().take(max).collect()
}

/// What the broker notes of a message that it dead-letters.
struct Broker {
    reason: String,
    queue: String,
    routing_key: String,
    died_at: Option<DateTime<Utc>>,
    count: i64,
}

struct Headers<'d>(Option<&'d FieldTable>);

impl Headers<'_> {
    fn get(&self, name: &str) -> Option<&AMQPValue> {
        self.0?.inner().get(name)
    }

    fn text(&self, name: &str) -> Option<String> {
        self.get(name).and_then(text)
    }

    fn number(&self, name: &str) -> Option<i64> {
        self.get(name).and_then(number)
    }

    /// The newest entry of `x-death`.
    fn broker(&self) -> Option<Broker> {
        let AMQPValue::FieldArray(deaths) = self.get("x-death")? else { return None };
        let AMQPValue::FieldTable(newest) = deaths.as_slice().first()? else { return None };
        let newest = newest.inner();
        let routing_key = match newest.get("routing-keys") {
            Some(AMQPValue::FieldArray(keys)) => keys.as_slice().first().and_then(text),
            _ => None,
        };
        Some(Broker {
            reason: newest.get("reason").and_then(text).unwrap_or_else(|| "rejected".to_owned()),
            queue: newest.get("queue").and_then(text).unwrap_or_default(),
            routing_key: routing_key.unwrap_or_default(),
            died_at: newest.get("time").and_then(number).and_then(times::of_seconds),
            count: newest.get("count").and_then(number).unwrap_or(1),
        })
    }

    /// The publisher's headers and properties, for a person.
    fn all(&self, delivery: &Delivery) -> Map<String, Value> {
        let properties = &delivery.properties;
        let given = [
            ("content-type", properties.content_type()),
            ("content-encoding", properties.content_encoding()),
            ("message-id", properties.message_id()),
            ("correlation-id", properties.correlation_id()),
            ("app-id", properties.app_id()),
            ("type", properties.kind()),
        ];
        let properties = given.into_iter().filter_map(|(name, value)| {
            let value = value.as_ref()?;
            Some((name.to_owned(), json!(plain(value.as_str(), WORD_MAX))))
        });
        let ours = [REASON, DETAIL, QUEUE, ROUTING_KEY, RETURNS, DIED];
        let headers = self.0.into_iter().flat_map(|headers| headers.inner().iter());
        let headers = headers.filter(|(name, _)| !ours.contains(&name.as_str()));
        let headers = headers.map(|(name, value)| (plain(name.as_str(), WORD_MAX), shown(value)));
        properties.chain(headers).collect()
    }
}

fn text(value: &AMQPValue) -> Option<String> {
    match value {
        AMQPValue::LongString(text) => Some(String::from_utf8_lossy(text.as_bytes()).into_owned()),
        AMQPValue::ShortString(text) => Some(text.to_string()),
        _ => None,
    }
}

fn number(value: &AMQPValue) -> Option<i64> {
    match value {
        AMQPValue::ShortShortInt(number) => Some(i64::from(*number)),
        AMQPValue::ShortShortUInt(number) => Some(i64::from(*number)),
        AMQPValue::ShortInt(number) => Some(i64::from(*number)),
        AMQPValue::ShortUInt(number) => Some(i64::from(*number)),
        AMQPValue::LongInt(number) => Some(i64::from(*number)),
        AMQPValue::LongUInt(number) => Some(i64::from(*number)),
        AMQPValue::LongLongInt(number) => Some(*number),
        AMQPValue::Timestamp(seconds) => i64::try_from(*seconds).ok(),
        _ => None,
    }
}

fn shown(value: &AMQPValue) -> Value {
    if let Some(number) = number(value) {
        return json!(number);
    }
    match value {
        AMQPValue::Boolean(value) => json!(value),
        AMQPValue::Float(value) => json!(value),
        AMQPValue::Double(value) => json!(value),
        AMQPValue::Void => Value::Null,
        AMQPValue::FieldArray(items) => items.as_slice().iter().map(shown).collect(),
        AMQPValue::FieldTable(table) => {
            let fields = table.inner().iter();
            Value::Object(
                fields.map(|(name, value)| (plain(name.as_str(), WORD_MAX), shown(value))).collect(),
            )
        }
        other => match text(other) {
            Some(text) => json!(text.replace('\0', "\u{fffd}")),
            None => json!(plain(&format!("{other:?}"), DETAIL_MAX)),
        },
    }
}
