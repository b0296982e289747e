//! From the subscription to its end: who may subscribe, and how what is held goes back.

use std::time::Instant;

use taskflow_stores::rabbit::consume::{self as rabbit, Opened, Subscription};
use taskflow_stores::{StoreError, observe};
use tokio_util::sync::CancellationToken;

use super::{Left, Pipeline};
use crate::pulse::Doing;

impl Pipeline<'_> {
    /// Subscribes while the lease is known to be ours. After an outage it may be somebody else's, who is about to subscribe
    /// as well: of two that do, the second one would get what the first gives back out of order.
    async fn subscribe(&self, prefetch: u16, leave: &CancellationToken) -> Result<Opened, StoreError> {
        let mut until = self.lease_until.clone();
        while *until.borrow_and_update() <= Instant::now() {
            self.pulse.is_at(Doing::Waiting("postgres"));
            tokio::select! {
                () = leave.cancelled() => return Ok(Opened::Stopped),
                renewed = until.changed() => if renewed.is_err() {
                    // The keeper of the leases is gone, and this pipeline with it.
                    std::future::pending::<()>().await;
                }
            }
        }
        self.pulse.is_at(Doing::Subscribing);
        let link = &self.context.stores.consume;
        let holds = || *self.lease_until.borrow() > Instant::now();
        Subscription::open_while(link, self.partition, prefetch, leave, holds).await
    }

    /// Subscribes, and applies batch after batch.
    pub(super) async fn consume(
        &mut self,
        leave: &CancellationToken,
        stop: &CancellationToken,
    ) -> Result<Left, StoreError> {
        let context = self.context;
        let prefetch = rabbit::prefetch(context.settings.max_batch);
        // Nobody else may be subscribed: a waiting consumer would get what we return out of order.
        let subscribed = self.subscribe(prefetch, leave).await?;
        let mut subscription = match subscribed {
            Opened::Subscribed(subscription) => subscription,
            Opened::Stopped => return Ok(Left::Stopped),
            Opened::Missing => {
                let queue = self.partition.queue();
                context.mender.missing(&queue);
                let detail = format!("the queue {queue} is gone; it is declared again");
                return Err(StoreError::unavailable("rabbitmq", "consume", detail));
            }
        };
        observe::store_up("rabbitmq", true);
        self.pulse.is_at(Doing::Listening);
        // The broker counts for all that it sends that they were given back, looked at or not.
        self.took |= subscription.met_some();
        let left = self.pipeline(&mut subscription, leave, stop).await;
        self.took |= matches!(subscription.try_next(), Ok(Some(_)));
        match &left {
            Ok(_) | Err(StoreError { store: "postgres" | "mongodb" | "redis", .. }) => {
                subscription.release().await;
            }
            // The channel itself is the trouble: it goes with its messages.
            Err(_) => subscription.abandon(),
        }
        left
    }
}
