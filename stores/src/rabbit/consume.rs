//! Consuming a partition queue in the order in which the broker took the messages, whoever dies.
//!
//! A quorum queue keeps what is given back in a line of its own, behind which everything else waits. Found out on
//! RabbitMQ 3.10, each with a test (`tests/it/faults/broker/order.rs`):
//!
//! * A consumer gets that line first, whole, if its prefetch is as large as the line; what it gives back is then
//!   again in order. With a smaller prefetch the part it held goes *behind* the rest. So no consumer of a partition
//!   may have a smaller prefetch than the one before it: [`PREFETCH`] is the floor.
//! * A waiting consumer is sent messages before the others are back. So nobody subscribes while somebody is.
//! * `basic.cancel` makes the broker send back at once what was on its way to the consumer, before what the consumer
//!   holds. So a consumer is never cancelled: its channel is closed, also where it is merely dropped.

use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use futures_util::{FutureExt, StreamExt};
use lapin::Consumer;
use lapin::options::{BasicAckOptions, BasicConsumeOptions};
use lapin::types::AMQPValue;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::consumer_channel::ConsumerChannel;
use super::link::{Depth, Link};
use super::publish::{ACCEPTED, APPLIED};
use super::topology::Partition;
use super::{STORE, failed, times};
use crate::StoreError;
use crate::seldom::Seldom;

/// How long leaving may take before the channel is left to its fate.
const LEAVE: Duration = Duration::from_secs(5);
/// How long the broker may take to make a consumer.
const SUBSCRIBE: Duration = Duration::from_secs(10);
/// How long an acknowledgement may take to be written.
const ACKNOWLEDGE: Duration = Duration::from_secs(10);
/// How often a quiet consumer looks whether its channel is still there.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// The least that a consumer holds. Never make it smaller: see above.
pub const PREFETCH: u16 = 500;

/// What a consumer of a partition holds whose batches have so many commands. Whoever else consumes one, if only to look
/// into it, holds as much: neither less than those before it nor more than those after it. Beyond the floor, a batch is
/// held while the one before it is applied.
pub fn prefetch(max_batch: usize) -> u16 {
    if max_batch <= usize::from(PREFETCH) {
        return PREFETCH;
    }
    u16::try_from(max_batch.saturating_mul(2)).unwrap_or(u16::MAX)
}

/// The broker asks a queue's leader for a quarter of a second; after that, and where there is none, it says "no messages, no
/// consumers" by itself. An answer that came sooner than this was not waited for in vain.
const PROMPT: Duration = Duration::from_millis(200);
/// A queue is free when "no consumers" was said so often in a row: by prompt answers, of which each counts for three …
const FREE: u32 = 6;
/// … twice, since the queue may have had no leader; where the broker is far away, oftener.
const CERTAIN: u32 = 3;

/// Looks at a queue, more than once where nobody seems to be there; `None` if there is none.
pub(super) async fn look(link: &Link, queue: &str) -> Result<Option<Depth>, StoreError> {
    let (mut said, mut ready) = (0, 0);
    loop {
        let asked = Instant::now();
        let Some(depth) = link.find(queue).await? else { return Ok(None) };
        ready = depth.ready.max(ready);
        said += if asked.elapsed() < PROMPT { CERTAIN } else { 1 };
        if depth.consumers > 0 || said >= FREE {
            return Ok(Some(Depth { ready, ..depth }));
        }
    }
}

static SOMEBODY_ELSE: Seldom = Seldom::new();

/// A message that a consumer holds.
pub struct Delivery(lapin::message::Delivery);

impl Delivery {
    pub fn body(&self) -> &[u8] {
        &self.0.data
    }

    pub fn routing_key(&self) -> &str {
        self.0.routing_key.as_str()
    }

    /// Whether it may have been delivered before.
    pub fn redelivered(&self) -> bool {
        self.0.redelivered
    }

    /// When an intake took it: our own header, else the message's own time (to the second).
    pub fn accepted_at(&self) -> Option<DateTime<Utc>> {
        match self.header(ACCEPTED) {
            Some(AMQPValue::LongLongInt(micros)) => times::of_micros(*micros),
            _ => times::of_seconds(i64::try_from((*self.0.properties.timestamp())?).ok()?),
        }
    }

    /// When it was applied the first time, if it is published once more since that was undone.
    pub fn applied_at(&self) -> Option<DateTime<Utc>> {
        match self.header(APPLIED) {
            Some(AMQPValue::LongLongInt(micros)) => times::of_micros(*micros),
            _ => None,
        }
    }

    /// The intake that waits for the receipt.
    pub fn intake(&self) -> Option<Uuid> {
        self.0.properties.reply_to().as_ref()?.as_str().parse().ok()
    }

    /// The id that its publisher gave beside the bytes.
    pub fn message_id(&self) -> Option<Uuid> {
        self.0.properties.message_id().as_ref()?.as_str().parse().ok()
    }

    /// How often the broker has returned it before.
    pub fn returns(&self) -> i64 {
        match self.header("x-delivery-count") {
            Some(AMQPValue::LongLongInt(count)) => *count,
            Some(AMQPValue::LongInt(count)) => i64::from(*count),
            Some(AMQPValue::LongUInt(count)) => i64::from(*count),
            _ => 0,
        }
    }

    pub(crate) fn properties(&self) -> &lapin::BasicProperties {
        &self.0.properties
    }

    fn header(&self, name: &str) -> Option<&AMQPValue> {
        self.0.properties.headers().as_ref()?.inner().get(name)
    }

    /// Acknowledges this message and all before it on its channel.
    pub async fn ack_through(&self) -> Result<(), StoreError> {
        // On a connection that breaks just now the client library may never answer (seen in the tests).
        let acked = self.0.acker.ack(BasicAckOptions { multiple: true });
        let Ok(acked) = tokio::time::timeout(ACKNOWLEDGE, acked).await else {
            return Err(StoreError::unavailable(STORE, "acknowledge", "no answer in time"));
        };
        match acked {
            Ok(true) => Ok(()),
            // The channel it came from is gone; the broker delivers it again.
            Ok(false) => {
                Err(StoreError::unavailable(STORE, "acknowledge", "the channel of the messages is gone"))
            }
            Err(error) => Err(failed("acknowledge")(error)),
        }
    }
}

/// What came of subscribing.
#[expect(clippy::large_enum_variant, reason = "taken apart as soon as it is made")]
pub enum Opened {
    Subscribed(Subscription),
    /// It was time to stop before.
    Stopped,
    /// There is no such queue.
    Missing,
}

impl Opened {
    /// The subscription, if there is one.
    pub fn subscription(self) -> Option<Subscription> {
        match self {
            Self::Subscribed(subscription) => Some(subscription),
            Self::Stopped | Self::Missing => None,
        }
    }
}

/// A consumer of one partition.
pub struct Subscription {
    channel: ConsumerChannel,
    consumer: Consumer,
    /// Whether messages were there when it began.
    met_some: bool,
}

impl Subscription {
    /// Subscribes as soon as nobody else is subscribed, unless `stop` comes first. A prefetch below [`PREFETCH`]
    /// is raised to it; one above must not be lowered again while messages may have been given back.
    pub async fn open(
        link: &Link,
        partition: Partition,
        prefetch: u16,
        stop: &CancellationToken,
    ) -> Result<Opened, StoreError> {
        Self::open_while(link, partition, prefetch, stop, || true).await
    }

    /// The same; `Stopped` also if it turns out that the caller `may` not subscribe any more.
    pub async fn open_while(
        link: &Link,
        partition: Partition,
        prefetch: u16,
        stop: &CancellationToken,
        may: impl Fn() -> bool,
    ) -> Result<Opened, StoreError> {
        let queue = partition.queue();
        let mut pause = Duration::from_millis(10);
        let mut told = false;
        loop {
            match look(link, &queue).await? {
                None => return Ok(Opened::Missing),
                Some(_) if stop.is_cancelled() || !may() => return Ok(Opened::Stopped),
                Some(Depth { consumers: 0, ready }) => {
                    let subscribed = tokio::time::timeout(SUBSCRIBE, async {
                        let channel = ConsumerChannel::open(link, prefetch.max(PREFETCH)).await?;
                        let consumer =
                            channel.consume(&queue, BasicConsumeOptions::default(), "consume").await?;
                        Ok(Opened::Subscribed(Self { channel, consumer, met_some: ready > 0 }))
                    });
                    let late = |_| Err(StoreError::unavailable(STORE, "consume", "no answer in time"));
                    return subscribed.await.unwrap_or_else(late);
                }
                Some(_) => {}
            }
            if pause > Duration::from_millis(200) && !told && SOMEBODY_ELSE.due().is_some() {
                tracing::info!(queue, "Somebody else still consumes the partition; waiting for it to leave.");
                told = true;
            }
            tokio::select! {
                () = stop.cancelled() => return Ok(Opened::Stopped),
                () = tokio::time::sleep(pause) => {}
            }
            pause = (pause * 2).min(Duration::from_millis(250));
        }
    }

    /// The next message.
    ///
    /// # Errors
    /// When there will be none: the broker cancelled the consumer, or the channel is gone.
    pub async fn next(&mut self) -> Result<Delivery, StoreError> {
        loop {
            // A consumer that was made while its connection broke may never be told (seen in the soak).
            match tokio::time::timeout(LOOK_EVERY, self.consumer.next()).await {
                Ok(next) => return read(next),
                Err(_) => self.must_be_open()?,
            }
        }
    }

    /// To ask where nothing comes: nobody may have said that nothing will.
    ///
    /// # Errors
    /// The channel is gone.
    pub fn must_be_open(&self) -> Result<(), StoreError> {
        if self.channel.is_open() {
            return Ok(());
        }
        Err(StoreError::unavailable(STORE, "consume", "the channel is gone"))
    }

    /// A message that is there already.
    pub fn try_next(&mut self) -> Result<Option<Delivery>, StoreError> {
        self.consumer.next().now_or_never().map(read).transpose()
    }

    /// Whether messages were there when it began: they are sent at once, looked at or not.
    pub fn met_some(&self) -> bool {
        self.met_some
    }

    /// Leaves: what is held goes back to the head of the queue, in order. The broker may need a few milliseconds more
    /// until the queue has no consumer; whoever opens the next subscription waits for that.
    pub async fn release(self) {
        if !self.channel.close(LEAVE).await {
            tracing::debug!("The broker did not say goodbye in time.");
        }
    }

    /// Leaves a channel that is broken already.
    pub fn abandon(self) {}
}

fn read(next: Option<lapin::Result<lapin::message::Delivery>>) -> Result<Delivery, StoreError> {
    match next {
        Some(Ok(delivery)) => Ok(Delivery(delivery)),
        Some(Err(error)) => Err(failed("consume")(error)),
        None => Err(StoreError::unavailable(STORE, "consume", "the broker ended the consumer")),
    }
}
