//! Publishing with confirms, many on their way at once.
//!
//! A message counts only when the broker has confirmed it and did not return it. Messages of one lane go through one
//! channel, in the order of the calls ([`super::lane`]).

use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable, ShortString};
use taskflow_core::command::Priority;
use taskflow_core::{Command, Event, envelope, metric, slot, stream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use uuid::Uuid;

use super::lane::{self, Parcel};
use super::link::Link;
use super::topology::{EVENTS, SLOTS, SLOTS_LOW};
use super::{STORE, Settings};
use crate::share::{Share, Shares};
use crate::{StoreError, observe};

/// Channels of one publisher.
const LANES: usize = 4;
/// Messages of one publisher that are on their way: the client's own queues have no bound. A long one counts as several,
/// so that they take 64 MiB at most.
const IN_FLIGHT_MAX: usize = 8_192;
/// A source's share of them is never smaller, however many sources there are.
const SHARE_MIN: usize = 32;
/// What counts as one.
const IN_FLIGHT_BYTES: usize = 8 * 1024;
pub(super) const PERSISTENT: u8 = 2;
/// When a command was accepted, in microseconds since 1970.
pub const ACCEPTED: &str = "taskflow-accepted";
/// When a command that is published once more was applied the first time, in microseconds since 1970.
pub(super) const APPLIED: &str = "taskflow-applied";
/// Where an event stands, on its message: [`Place`](taskflow_core::stream::Place) as text.
pub(super) const PLACE: &str = "taskflow-place";

/// A message to be published. Always persistent.
pub struct Message {
    pub exchange: ShortString,
    pub routing_key: ShortString,
    pub body: Vec<u8>,
    pub properties: BasicProperties,
    /// Whether a message that no queue takes is an error.
    pub mandatory: bool,
    /// Messages of one lane keep their order.
    pub lane: u8,
}

impl Message {
    /// A command, as an intake publishes it. `intake` hears of the receipt.
    pub fn command(command: &Command, accepted_at: DateTime<Utc>, intake: Option<Uuid>) -> Self {
        let slot = slot::of(command.subject);
        let mut headers = FieldTable::default();
        headers.insert(ACCEPTED.into(), AMQPValue::LongLongInt(accepted_at.timestamp_micros()));
        let mut properties = BasicProperties::default()
            .with_content_type(envelope::CONTENT_TYPE.into())
            .with_delivery_mode(PERSISTENT)
            .with_message_id(command.id.to_string().into())
            .with_headers(headers);
        if let Some(intake) = intake {
            properties = properties.with_reply_to(intake.to_string().into());
        }
        Self {
            exchange: if command.priority == Priority::Low { SLOTS_LOW } else { SLOTS }.into(),
            routing_key: slot::routing_key(slot).into(),
            body: command.to_json(),
            properties,
            mandatory: true,
            lane: slot,
        }
    }

    /// A command that was applied before, and is undone: it does not expire a second time.
    pub fn again(command: &Command, accepted_at: DateTime<Utc>, applied_at: DateTime<Utc>) -> Self {
        let mut message = Self::command(command, accepted_at, None);
        let mut headers = message.properties.headers().clone().unwrap_or_default();
        headers.insert(APPLIED.into(), AMQPValue::LongLongInt(applied_at.timestamp_micros()));
        message.properties = message.properties.with_headers(headers);
        message
    }

    /// An event, for whoever has bound a queue. What no command causes has no place.
    pub fn event(event: &Event, place: Option<&stream::Place>) -> Self {
        let properties = BasicProperties::default()
            .with_content_type(envelope::CONTENT_TYPE.into())
            .with_delivery_mode(PERSISTENT)
            .with_message_id(event.id.to_string().into());
        let with_place = |place: &stream::Place| {
            let mut headers = FieldTable::default();
            headers.insert(PLACE.into(), AMQPValue::LongString(place.to_string().into()));
            properties.clone().with_headers(headers)
        };
        Self {
            exchange: EVENTS.into(),
            routing_key: (&*event.kind).into(),
            body: event.to_cloud_event(),
            properties: place.map_or_else(|| properties.clone(), with_place),
            mandatory: false,
            lane: slot::of(event.entity),
        }
    }
}

/// Why a message does not count as published.
#[derive(Debug, Clone, thiserror::Error)]
pub enum PublishError {
    #[error("rabbitmq: no queue takes the message")]
    Unroutable,
    #[error("rabbitmq: the queue is full or refused the message")]
    Refused,
    /// Somebody has deleted it; others on the same channel are told so with it. Whether the broker has the message is not
    /// known.
    #[error("rabbitmq: the exchange of a message is gone")]
    NoExchange,
    /// Whether the broker has the message is not known: publish it again under the same id.
    #[error(transparent)]
    Unavailable(#[from] StoreError),
}

impl From<PublishError> for StoreError {
    fn from(error: PublishError) -> Self {
        match error {
            PublishError::Unavailable(error) => error,
            other => Self::unavailable(STORE, "publish", other),
        }
    }
}

/// Publishes messages over one connection. Clones share it.
#[derive(Clone)]
pub struct Publisher(Arc<Inner>);

struct Inner {
    link: Link,
    lanes: [mpsc::UnboundedSender<Parcel>; LANES],
    in_flight: Arc<Semaphore>,
    shares: Shares,
    timeout: Duration,
    gauge: metrics::Gauge,
}

/// A message that is on its way. It arrives, or does not, whether or not anybody waits for its confirm.
pub struct Pending(oneshot::Receiver<Result<(), PublishError>>);

/// A place among the messages on their way.
pub(super) struct Place {
    _permit: OwnedSemaphorePermit,
    _share: Option<Share>,
    gauge: metrics::Gauge,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.gauge.decrement(1.0);
    }
}

impl Publisher {
    /// Starts the lanes; needs a runtime.
    pub fn new(link: Link, settings: &Settings) -> Self {
        let timeout = Duration::from_millis(settings.confirm_timeout_ms);
        Self(Arc::new(Inner {
            lanes: std::array::from_fn(|_| lane::start(link.clone(), timeout)),
            link,
            in_flight: Arc::new(Semaphore::new(IN_FLIGHT_MAX)),
            shares: Shares::new(IN_FLIGHT_MAX, SHARE_MIN),
            timeout,
            gauge: observe::gauge(&metric::PUBLISH_IN_FLIGHT, &[]),
        }))
    }

    /// Hands a message to its lane, behind those sent before. The confirm is awaited apart.
    ///
    /// # Errors
    /// At once when there is no connection, or the broker has blocked it.
    pub async fn send(&self, message: Message) -> Result<Pending, PublishError> {
        self.send_within(None, message).await
    }

    /// The same for one of many sources, which share the places on the way ([`crate::share`]).
    pub async fn send_of(&self, source: u64, message: Message) -> Result<Pending, PublishError> {
        self.probe()?;
        // The share comes first: who has to wait for it holds no place meanwhile.
        match tokio::time::timeout(self.0.timeout, self.0.shares.take(source, 1, 0)).await {
            Ok(share) => self.send_within(Some(share), message).await,
            Err(_) => {
                let why = "too many messages of one source wait for their confirms";
                Err(StoreError::unavailable(STORE, "publish", why).into())
            }
        }
    }

    async fn send_within(&self, share: Option<Share>, message: Message) -> Result<Pending, PublishError> {
        let inner = &*self.0;
        let unavailable = |why| PublishError::from(StoreError::unavailable(STORE, "publish", why));
        self.probe()?;
        let places = Arc::clone(&inner.in_flight);
        let count = message.body.len().div_ceil(IN_FLIGHT_BYTES).clamp(1, IN_FLIGHT_MAX) as u32;
        let permit = match Arc::clone(&places).try_acquire_many_owned(count) {
            Ok(permit) => permit,
            Err(_) => match tokio::time::timeout(inner.timeout, places.acquire_many_owned(count)).await {
                Ok(Ok(permit)) => permit,
                _ => return Err(unavailable("too many messages wait for their confirms")),
            },
        };
        inner.gauge.increment(1.0);
        let place = Place { _permit: permit, _share: share, gauge: inner.gauge.clone() };
        let (answer, pending) = oneshot::channel();
        let lane = &inner.lanes[usize::from(message.lane) % LANES];
        if lane.send(Parcel { message, answer, place }).is_err() {
            return Err(unavailable("the publisher has ended"));
        }
        Ok(Pending(pending))
    }

    /// Publishes a message and waits for its confirm.
    pub async fn publish(&self, message: Message) -> Result<(), PublishError> {
        self.send(message).await?.confirmed().await
    }

    /// Whether the broker takes messages now, as far as is known: its connection is there, and no alarm is on.
    pub fn takes(&self) -> bool {
        self.0.link.is_up() && !self.0.link.is_blocked()
    }

    /// Whether messages can be published now.
    pub fn probe(&self) -> Result<(), StoreError> {
        if self.0.link.is_blocked() {
            return Err(StoreError::unavailable(
                STORE,
                "probe",
                "the broker takes no messages (memory or disk alarm)",
            ));
        }
        if self.0.link.is_up() {
            return Ok(());
        }
        Err(StoreError::unavailable(STORE, "probe", "no connection to the broker"))
    }
}

impl Pending {
    /// Waits until the broker has the message for good. Comes to an end within the time for confirms.
    pub async fn confirmed(self) -> Result<(), PublishError> {
        let ended = |_| Err(StoreError::unavailable(STORE, "confirm", "the publisher has ended").into());
        self.0.await.unwrap_or_else(ended)
    }
}
