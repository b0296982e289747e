//! Collecting a batch: all that has come, up to a size; more only if there is a stream of commands.

use std::time::Duration;

use taskflow_stores::StoreError;
use taskflow_stores::rabbit::consume::{Delivery, Subscription};
use tokio_util::sync::CancellationToken;

/// When a batch is full, and when it waits for more.
pub(crate) struct Collector {
    max_batch: usize,
    linger: Duration,
    /// Whether the last batch was large: only then is it worth waiting for more.
    streaming: bool,
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
    pub(crate) fn new(max_batch: usize, linger: Duration) -> Self {
        Self { max_batch, linger, streaming: false }
    }

    /// The next batch, or `Quiet` after `patience` without any.
    ///
    /// # Errors
    /// The subscription ended: the broker or the connection is gone.
    pub(crate) async fn collect(
        &mut self,
        subscription: &mut Subscription,
        patience: Duration,
        stop: &CancellationToken,
    ) -> Result<Collected, StoreError> {
        let first = tokio::select! {
            biased;
            () = stop.cancelled() => return Ok(Collected::Stopped),
            first = subscription.next() => first?,
            () = tokio::time::sleep(patience) => return Ok(Collected::Quiet),
        };
        let mut batch = Vec::with_capacity(if self.streaming { self.max_batch } else { 16 });
        batch.push(first);
        self.take_ready(subscription, &mut batch)?;
        if self.streaming && batch.len() < self.max_batch && !self.linger.is_zero() {
            let deadline = tokio::time::Instant::now() + self.linger;
            while batch.len() < self.max_batch {
                match tokio::time::timeout_at(deadline, subscription.next()).await {
                    Ok(delivery) => batch.push(delivery?),
                    Err(_) => break,
                }
                self.take_ready(subscription, &mut batch)?;
            }
        }
        self.streaming = batch.len() >= self.max_batch / 4;
        Ok(Collected::Batch(batch))
    }

    fn take_ready(
        &self,
        subscription: &mut Subscription,
        batch: &mut Vec<Delivery>,
    ) -> Result<(), StoreError> {
        while batch.len() < self.max_batch {
            match subscription.try_next()? {
                Some(delivery) => batch.push(delivery),
                None => break,
            }
        }
        Ok(())
    }
}
