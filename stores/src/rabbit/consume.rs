//! Consuming a partition queue: one channel a consumer, never shared.
//!
//! The order of a partition rests on this: a holder subscribes only when nobody else is subscribed, and leaves by
//! closing its channel, which returns what it holds to the head of the queue in order. With a second consumer waiting
//! the returned messages would come behind those that are sent to it.

use std::time::Duration;

use chrono::{DateTime, Utc};
use futures_util::{FutureExt, StreamExt};
use lapin::options::{BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, Consumer};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::link::Link;
use super::publish::ACCEPTED;
use super::topology::Partition;
use super::{STORE, failed};
use crate::StoreError;

/// How long leaving may take before the channel is left to its fate.
const LEAVE: Duration = Duration::from_secs(5);

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
            Some(AMQPValue::LongLongInt(micros)) => DateTime::from_timestamp_micros(*micros),
            _ => DateTime::from_timestamp(i64::try_from((*self.0.properties.timestamp())?).ok()?, 0),
        }
    }

    /// The intake that waits for the receipt.
    pub fn intake(&self) -> Option<Uuid> {
        self.0.properties.reply_to().as_ref()?.as_str().parse().ok()
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
        match self.0.acker.ack(BasicAckOptions { multiple: true }).await {
            Ok(true) => Ok(()),
            // The channel it came from is gone; the broker delivers it again.
            Ok(false) => Err(StoreError::unavailable(STORE, "acknowledge", "the channel of the messages is gone")),
            Err(error) => Err(failed("acknowledge")(error)),
        }
    }
}

/// A consumer of one partition.
pub struct Subscription {
    channel: Channel,
    consumer: Consumer,
}

impl Subscription {
    /// Subscribes as soon as nobody else is subscribed; `None` if `stop` comes first.
    pub async fn open(
        link: &Link,
        partition: Partition,
        prefetch: u16,
        stop: &CancellationToken,
    ) -> Result<Option<Self>, StoreError> {
        let queue = partition.queue();
        let mut pause = Duration::from_millis(10);
        let mut told = false;
        while link.depth(&queue).await?.consumers > 0 {
            if pause > Duration::from_millis(200) && !told {
                tracing::info!(queue, "Somebody else still consumes the partition; waiting for it to leave.");
                told = true;
            }
            tokio::select! {
                () = stop.cancelled() => return Ok(None),
                () = tokio::time::sleep(pause) => {}
            }
            pause = (pause * 2).min(Duration::from_millis(250));
        }
        let channel = link.channel().await?;
        let qos = channel.basic_qos(prefetch, BasicQosOptions::default());
        qos.await.map_err(failed("set the prefetch"))?;
        let options = BasicConsumeOptions::default();
        let consumer = channel.basic_consume(queue.as_str().into(), "".into(), options, FieldTable::default());
        let consumer = consumer.await.map_err(failed("consume"))?;
        Ok(Some(Self { channel, consumer }))
    }

    /// The next message.
    ///
    /// # Errors
    /// When there will be none: the broker cancelled the consumer, or the channel is gone.
    pub async fn next(&mut self) -> Result<Delivery, StoreError> {
        match self.consumer.next().await {
            Some(Ok(delivery)) => Ok(Delivery(delivery)),
            Some(Err(error)) => Err(failed("consume")(error)),
            None => Err(StoreError::unavailable(STORE, "consume", "the broker ended the consumer")),
        }
    }

    /// A message that is there already.
    pub fn try_next(&mut self) -> Result<Option<Delivery>, StoreError> {
        self.next().now_or_never().transpose()
    }

    /// Leaves: what is held goes back to the head of the queue, in order.
    pub async fn release(self) {
        let left = async {
            let options = BasicCancelOptions::default();
            let _ = self.channel.basic_cancel(self.consumer.tag(), options).await;
            let _ = self.channel.close(200, "bye".into()).await;
        };
        if tokio::time::timeout(LEAVE, left).await.is_err() {
            tracing::debug!("The broker did not say goodbye in time.");
        }
    }

    /// Leaves a channel that is broken already.
    pub fn abandon(self) {}
}
