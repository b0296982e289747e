//! Hearing every event as it is told: a queue of one process's own on the event exchange, for the live stream.
//!
//! The queue goes with the connection, and is bounded: whoever falls behind must not fill the broker. Since the broker
//! would drop the oldest messages without a word, the queue's length is looked at, and half of the bound ends the feed
//! before anything is dropped: who listens begins anew, and fills the gap from the audit trail.

use std::time::Duration;

use futures_util::{FutureExt, StreamExt};
use lapin::Consumer;
use lapin::message::Delivery;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use taskflow_core::stream::Place;
use tokio::time::{Interval, MissedTickBehavior, interval};

use super::consumer_channel::ConsumerChannel;
use super::link::Link;
use super::publish::PLACE;
use super::topology::EVENTS;
use super::{STORE, failed};
use crate::StoreError;

/// Messages in the queue before the broker drops the oldest.
const LENGTH_MAX: u32 = 200_000;
/// Milliseconds after which a queue goes that has no consumer.
const UNUSED_MS: i64 = 60_000;
/// How often the length is looked at. No exchange of ours tells half of the bound in that time.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Messages that one process holds.
const PREFETCH: u16 = 1_000;
/// How long the broker may take for a channel, a queue, an acknowledgement.
const ANSWER: Duration = Duration::from_secs(10);

/// Events as they come.
pub struct Feed {
    link: Link,
    channel: ConsumerChannel,
    consumer: Consumer,
    queue: String,
    look: Interval,
}

/// One event, as a CloudEvent, and where it stands; events that no command causes stand nowhere.
pub struct Told {
    pub place: Option<Place>,
    pub json: Vec<u8>,
}

impl Feed {
    /// Begins to listen: whatever is told from now on comes, until an error.
    pub async fn open(link: &Link) -> Result<Self, StoreError> {
        let opened = tokio::time::timeout(ANSWER, async {
            let channel = ConsumerChannel::open(link, PREFETCH).await?;
            let mut arguments = FieldTable::default();
            // Quorum queues can't be exclusive.
            arguments.insert("x-queue-type".into(), AMQPValue::LongString("classic".into()));
            arguments.insert("x-max-length".into(), AMQPValue::LongLongInt(i64::from(LENGTH_MAX)));
            // Where it is not listened to, since opening was given up half-way, it goes before its connection does.
            arguments.insert("x-expires".into(), AMQPValue::LongLongInt(UNUSED_MS));
            arguments.insert("x-overflow".into(), AMQPValue::LongString("drop-head".into()));
            let options =
                QueueDeclareOptions { exclusive: true, auto_delete: true, ..QueueDeclareOptions::default() };
            let declared = channel.queue_declare("".into(), options, arguments);
            let declared = declared.await.map_err(failed("declare a feed's queue"))?;
            let queue = declared.name().as_str().to_owned();
            let bound = channel.queue_bind(
                queue.as_str().into(),
                EVENTS.into(),
                "#".into(),
                QueueBindOptions::default(),
                FieldTable::default(),
            );
            bound.await.map_err(failed("bind a feed's queue"))?;
            let options = BasicConsumeOptions { exclusive: true, ..BasicConsumeOptions::default() };
            let consumer = channel.consume(&queue, options, "listen to the events").await?;
            let mut look = interval(LOOK_EVERY);
            look.set_missed_tick_behavior(MissedTickBehavior::Delay);
            Ok(Self { link: link.clone(), channel, consumer, queue, look })
        });
        opened.await.unwrap_or_else(|_| Err(unavailable("no answer in time")))
    }

    /// The next events: at least one, and what has come beside it.
    ///
    /// # Errors
    /// When something is missing from here on: the connection broke, or the queue grows faster than it is read.
    pub async fn next(&mut self) -> Result<Vec<Told>, StoreError> {
        let first = loop {
            tokio::select! {
                delivery = self.consumer.next() => break delivery,
                _ = self.look.tick() => self.check_length().await?,
            }
        };
        let mut deliveries: Vec<Delivery> = Vec::new();
        let mut next = Some(first);
        while let Some(delivery) = next {
            match delivery {
                Some(Ok(delivery)) => deliveries.push(delivery),
                Some(Err(error)) => return Err(failed("listen to the events")(error)),
                None => return Err(unavailable("the broker ended the consumer")),
            }
            let full = deliveries.len() >= usize::from(PREFETCH);
            next = if full { None } else { self.consumer.next().now_or_never() };
        }
        // Under a steady stream there is always a next one, so the length is looked at here too.
        if self.look.tick().now_or_never().is_some() {
            self.check_length().await?;
        }
        if let Some(last) = deliveries.last() {
            let acked = last.acker.ack(BasicAckOptions { multiple: true });
            match tokio::time::timeout(ANSWER, acked).await {
                Ok(Ok(true)) => {}
                Ok(Err(error)) => return Err(failed("acknowledge events")(error)),
                Ok(Ok(false)) | Err(_) => return Err(unavailable("the channel of the events is gone")),
            }
        }
        Ok(deliveries.into_iter().map(told).collect())
    }

    async fn check_length(&self) -> Result<(), StoreError> {
        let ready = self.link.depth(&self.queue).await?.ready;
        if ready > LENGTH_MAX / 2 {
            return Err(unavailable(&format!("{ready} events wait to be read: this process is too slow")));
        }
        Ok(())
    }

    /// Leaves; the queue goes.
    pub async fn close(self) {
        self.channel.close(ANSWER).await;
    }
}

fn told(delivery: Delivery) -> Told {
    let headers = delivery.properties.headers().as_ref();
    let place = headers.and_then(|headers| headers.inner().get(PLACE)).and_then(|place| match place {
        AMQPValue::LongString(text) => std::str::from_utf8(text.as_bytes()).ok()?.parse().ok(),
        _ => None,
    });
    Told { place, json: delivery.data }
}

fn unavailable(why: &str) -> StoreError {
    StoreError::unavailable(STORE, "listen to the events", why)
}
