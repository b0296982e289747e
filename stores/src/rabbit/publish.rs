//! Publishing with confirms, many on their way at once.
//!
//! A message counts only when the broker has confirmed it and did not return it. Messages of one subject go through
//! one channel, in the order of the calls.

use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use chrono::{DateTime, Utc};
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{BasicProperties, Channel, Confirmation};
use taskflow_core::command::Priority;
use taskflow_core::{Command, Event, envelope, metric, slot};
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore};
use uuid::Uuid;

use super::link::Link;
use super::topology::{EVENTS, SLOTS, SLOTS_LOW};
use super::{STORE, Settings, failed};
use crate::{StoreError, observe};

/// Channels of one publisher.
const LANES: usize = 4;
/// Messages of one publisher that are on their way: the client's own queues have no bound.
const IN_FLIGHT_MAX: usize = 8_192;
const PERSISTENT: u8 = 2;
/// When a command was accepted, in microseconds since 1970.
pub const ACCEPTED: &str = "taskflow-accepted";

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

    /// An event, for whoever has bound a queue.
    pub fn event(event: &Event) -> Self {
        Self {
            exchange: EVENTS.into(),
            routing_key: event.kind.as_str().into(),
            body: event.to_cloud_event(),
            properties: BasicProperties::default()
                .with_content_type(envelope::CONTENT_TYPE.into())
                .with_delivery_mode(PERSISTENT)
                .with_message_id(event.id.to_string().into()),
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
    lanes: [Mutex<Option<Channel>>; LANES],
    in_flight: Arc<Semaphore>,
    timeout: Duration,
    gauge: metrics::Gauge,
}

type Confirm = Pin<Box<dyn Future<Output = lapin::Result<Confirmation>> + Send>>;

/// A message that is on its way.
pub struct Pending {
    confirm: Confirm,
    /// Known already at the first look.
    early: Option<lapin::Result<Confirmation>>,
    timeout: Duration,
    _place: Place,
}

/// A place among the messages on their way.
struct Place {
    _permit: OwnedSemaphorePermit,
    gauge: metrics::Gauge,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.gauge.decrement(1.0);
    }
}

impl Publisher {
    pub fn new(link: Link, settings: &Settings) -> Self {
        Self(Arc::new(Inner {
            link,
            lanes: Default::default(),
            in_flight: Arc::new(Semaphore::new(IN_FLIGHT_MAX)),
            timeout: Duration::from_millis(settings.confirm_timeout_ms),
            gauge: observe::gauge(&metric::PUBLISH_IN_FLIGHT, &[]),
        }))
    }

    /// Writes a message to its channel, behind those sent before. The confirm is awaited apart.
    ///
    /// # Errors
    /// At once when there is no connection, or the broker has blocked it.
    pub async fn send(&self, message: Message) -> Result<Pending, PublishError> {
        let inner = &*self.0;
        let unavailable = |why| PublishError::from(StoreError::unavailable(STORE, "publish", why));
        if inner.link.is_blocked() {
            return Err(unavailable("the broker takes no messages (memory or disk alarm)"));
        }
        if !inner.link.is_up() {
            return Err(unavailable("no connection to the broker"));
        }
        let place = Arc::clone(&inner.in_flight).acquire_owned();
        let permit = match tokio::time::timeout(inner.timeout, place).await {
            Ok(Ok(permit)) => permit,
            _ => return Err(unavailable("too many messages wait for their confirms")),
        };
        inner.gauge.increment(1.0);
        let place = Place { _permit: permit, gauge: inner.gauge.clone() };
        let mut lane = inner.lanes[usize::from(message.lane) % LANES].lock().await;
        let channel = match lane.take().filter(|channel| channel.status().connected()) {
            Some(channel) => channel,
            None => self.open().await?,
        };
        *lane = Some(channel.clone());
        let mut confirm: Confirm = Box::pin(async move {
            let options = BasicPublishOptions { mandatory: message.mandatory, ..BasicPublishOptions::default() };
            let Message { exchange, routing_key, body, properties, .. } = message;
            channel.basic_publish(exchange, routing_key, options, &body, properties).await?.await
        });
        // The first look puts the message into the connection's queue: its place is fixed, without waiting until it
        // is written.
        let early = match futures_util::poll!(&mut confirm) {
            Poll::Ready(result) => Some(result),
            Poll::Pending => None,
        };
        drop(lane);
        Ok(Pending { confirm, early, timeout: inner.timeout, _place: place })
    }

    /// Publishes a message and waits for its confirm.
    pub async fn publish(&self, message: Message) -> Result<(), PublishError> {
        self.send(message).await?.confirmed().await
    }

    /// Whether messages can be published now.
    pub async fn probe(&self) -> Result<(), StoreError> {
        if self.0.link.is_blocked() {
            return Err(StoreError::unavailable(STORE, "probe", "the broker takes no messages (memory or disk alarm)"));
        }
        if self.0.link.is_up() {
            return Ok(());
        }
        Err(StoreError::unavailable(STORE, "probe", "no connection to the broker"))
    }

    async fn open(&self) -> Result<Channel, StoreError> {
        let channel = self.0.link.channel().await?;
        let confirms = channel.confirm_select(ConfirmSelectOptions::default());
        confirms.await.map_err(failed("ask for confirms"))?;
        Ok(channel)
    }
}

impl Pending {
    /// Waits until the broker has the message for good.
    pub async fn confirmed(self) -> Result<(), PublishError> {
        let unknown = |why: String| PublishError::from(StoreError::unavailable(STORE, "confirm", why));
        let result = match self.early {
            Some(result) => result,
            None => match tokio::time::timeout(self.timeout, self.confirm).await {
                Ok(result) => result,
                Err(_) => return Err(unknown("no confirm in time".into())),
            },
        };
        match result {
            Ok(Confirmation::Ack(None)) => Ok(()),
            Ok(Confirmation::Ack(Some(_))) => Err(PublishError::Unroutable),
            Ok(Confirmation::Nack(_)) => Err(PublishError::Refused),
            Ok(Confirmation::NotRequested) => Err(unknown("the channel gives no confirms".into())),
            Err(error) => Err(failed("publish")(error).into()),
        }
    }
}
