//! The messages of a batch, as the broker delivered them.

use taskflow_core::metric;
use taskflow_stores::rabbit::consume::Delivery;
use taskflow_stores::rabbit::dead_letters;
use taskflow_stores::rabbit::topology::Partition;
use taskflow_stores::{StoreError, observe};
use uuid::Uuid;

use crate::Context;
use crate::bisect::Source;
use crate::decode::Origin;

/// The messages of a batch, as the broker delivered them.
pub(crate) struct Messages<'b> {
    pub context: &'b Context,
    pub partition: Partition,
    pub deliveries: &'b [Delivery],
    pub origins: &'b [Origin],
}

impl Messages<'_> {
    /// Sends one to the dead letters.
    pub(crate) async fn send(
        &self,
        delivery: usize,
        reason: &'static str,
        detail: &str,
    ) -> Result<(), StoreError> {
        let delivery = &self.deliveries[delivery];
        dead_letters::send(&self.context.stores.publisher, self.partition, delivery, reason, detail).await?;
        observe::counter(&metric::DEAD_LETTERED, &[("reason", reason)]).increment(1);
        Ok(())
    }
}

impl Source for Messages<'_> {
    fn body(&self, index: usize) -> &[u8] {
        self.deliveries[self.origins[index].delivery].body()
    }

    fn intake(&self, index: usize) -> Option<Uuid> {
        self.origins[index].intake
    }

    async fn bury(&self, index: usize, reason: &'static str, detail: &str) -> Result<(), StoreError> {
        self.send(self.origins[index].delivery, reason, detail).await
    }
}
