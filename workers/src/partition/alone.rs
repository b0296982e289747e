//! Taking messages one by one where one of them may be what kills workers.

use taskflow_stores::StoreError;
use taskflow_stores::postgres::suspects;
use taskflow_stores::rabbit::consume::Delivery;
use tokio_util::sync::CancellationToken;

use super::{Left, Pipeline};
use crate::decode::Origin;
use crate::messages::Messages;
use crate::suspect::{self, Trial};

impl Pipeline<'_> {
    /// A batch, unless one of its messages may be what kills workers: then one by one.
    pub(super) async fn take(
        &mut self,
        deliveries: &[Delivery],
        stop: &CancellationToken,
    ) -> Result<Option<Left>, StoreError> {
        if !deliveries.iter().any(suspect::is_suspicious) {
            return self.batch(deliveries, stop).await;
        }
        let postgres = &self.context.stores.postgres;
        for delivery in deliveries {
            let alone = std::slice::from_ref(delivery);
            let left = match suspect::trial(postgres, &self.name, self.epoch, delivery).await? {
                Trial::None => self.batch(alone, stop).await?,
                Trial::Alone(digest) => {
                    let left = self.batch(alone, stop).await?;
                    if left.is_none() {
                        suspects::forget(postgres, digest).await?;
                    }
                    left
                }
                Trial::Condemned(digest) => {
                    let left = self.condemn(delivery, stop).await?;
                    suspects::forget(postgres, digest).await?;
                    left
                }
            };
            if left.is_some() {
                return Ok(left);
            }
        }
        Ok(None)
    }

    /// Buries a message that kills, unread.
    async fn condemn(
        &mut self,
        delivery: &Delivery,
        stop: &CancellationToken,
    ) -> Result<Option<Left>, StoreError> {
        let (item, reason, detail) = suspect::remains(delivery);
        tracing::error!(partition = self.name, command = ?delivery.message_id(), detail, "A message goes to the dead letters unread.");
        let origins = [Origin { delivery: 0, intake: delivery.intake() }];
        let deliveries = std::slice::from_ref(delivery);
        let messages =
            Messages { context: self.context, partition: self.partition, deliveries, origins: &origins };
        messages.send(0, reason, &detail).await?;
        let Some(item) = item else { return Ok(None) };
        let mut lines = std::mem::take(&mut self.room.lines);
        let left = self.apply(&mut [item], &mut lines, &messages, stop).await;
        self.room.lines = lines;
        left
    }
}
