//! Collecting a batch: all that has come, up to a size; more only if there is a stream of commands.

use std::time::Duration;

use taskflow_stores::StoreError;
use taskflow_stores::rabbit::consume::{Delivery, Subscription};
use tokio_util::sync::CancellationToken;

/// Bytes of messages in a batch, beyond which it takes no more: large commands are applied in smaller batches, so that
/// what a batch decodes, loads and writes stays bounded. The last one may go beyond it.
const BYTES_MAX: usize = 8 * 1024 * 1024;

/// When a batch is full, and when it waits for more.
pub(crate) struct Collector {
    max_batch: usize,
    linger: Duration,
    /// Whether the last batch was large: only then is it worth waiting for more.
    streaming: bool,
    /// A test's fault: nothing that comes is heard.
    deaf: bool,
}

/// What came of collecting.
pub(crate) enum Collected {
    /// At least one delivery.
    Batch(Vec<Delivery>),
    /// Nothing came for a while.
    Quiet,
    /// It is time to stop; nothing is held.
    Stopped,
}

impl Collector {
    pub(crate) fn new(max_batch: usize, linger: Duration, deaf: bool) -> Self {
        Self { max_batch, linger, streaming: false, deaf }
    }

    /// The next batch, of at most `limit`, or `Quiet` after `patience` without any.
    ///
    /// # Errors
    /// The subscription ended: the broker or the connection is gone.
    pub(crate) async fn collect(
        &mut self,
        subscription: &mut Subscription,
        patience: Duration,
        limit: Option<usize>,
        stop: &CancellationToken,
    ) -> Result<Collected, StoreError> {
        let most = limit.map_or(self.max_batch, |limit| limit.min(self.max_batch));
        let first = tokio::select! {
            biased;
            () = stop.cancelled() => return Ok(Collected::Stopped),
            first = subscription.next(), if !self.deaf => first?,
            () = tokio::time::sleep(patience) => {
                self.streaming = false;
                return Ok(Collected::Quiet);
            }
        };
        let mut batch = Growing::new(most, if self.streaming { most } else { 16 });
        batch.push(first);
        batch.take_ready(subscription)?;
        if self.streaming && !self.linger.is_zero() {
            let deadline = tokio::time::Instant::now() + self.linger;
            while !batch.is_full() {
                match tokio::time::timeout_at(deadline, subscription.next()).await {
                    Ok(delivery) => batch.push(delivery?),
                    Err(_) => break,
                }
                batch.take_ready(subscription)?;
            }
        }
        self.streaming = batch.deliveries.len() >= self.max_batch / 4;
        Ok(Collected::Batch(batch.deliveries))
    }
}

/// A batch that takes what comes, within its bounds.
struct Growing {
    deliveries: Vec<Delivery>,
    bytes: usize,
    most: usize,
}

impl Growing {
    fn new(most: usize, capacity: usize) -> Self {
        Self { deliveries: Vec::with_capacity(capacity), bytes: 0, most }
    }

    fn is_full(&self) -> bool {
        self.deliveries.len() >= self.most || self.bytes >= BYTES_MAX
    }

    fn push(&mut self, delivery: Delivery) {
        self.bytes += delivery.body().len();
        self.deliveries.push(delivery);
    }

    /// Takes what has come already.
    fn take_ready(&mut self, subscription: &mut Subscription) -> Result<(), StoreError> {
        while !self.is_full() {
            match subscription.try_next()? {
                Some(delivery) => self.push(delivery),
                None => break,
            }
        }
        Ok(())
    }
}
