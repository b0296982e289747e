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
            () = tokio::time::sleep(patience) => return Ok(Collected::Quiet),
        };
        let mut batch = Vec::with_capacity(if self.streaming { most } else { 16 });
        batch.push(first);
        Self::take_ready(most, subscription, &mut batch)?;
        if self.streaming && batch.len() < most && !self.linger.is_zero() {
            let deadline = tokio::time::Instant::now() + self.linger;
            while batch.len() < most {
                match tokio::time::timeout_at(deadline, subscription.next()).await {
                    Ok(delivery) => batch.push(delivery?),
                    Err(_) => break,
                }
                Self::take_ready(most, subscription, &mut batch)?;
            }
        }
        self.streaming = batch.len() >= self.max_batch / 4;
        Ok(Collected::Batch(batch))
    }

    fn take_ready(
        most: usize,
        subscription: &mut Subscription,
        batch: &mut Vec<Delivery>,
    ) -> Result<(), StoreError> {
        while batch.len() < most {
            match subscription.try_next()? {
                Some(delivery) => batch.push(delivery),
                None => break,
            }
        }
        Ok(())
    }
}
