//! Taking messages of which one may be what kills workers: together as long as nobody has died of that, else one by one.

use taskflow_core::command::{Fingerprint, digest};
use taskflow_stores::StoreError;
use taskflow_stores::postgres::suspects;
use taskflow_stores::rabbit::consume::Delivery;
use tokio_util::sync::CancellationToken;

use super::{Left, Pipeline};
use crate::decode::Origin;
use crate::messages::Messages;
use crate::suspect::{self, Trial};

impl Pipeline<'_> {
    /// A batch; the messages in it that were with somebody who died are taken alone, those between them together.
    pub(super) async fn take(
        &mut self,
        deliveries: &[Delivery],
        stop: &CancellationToken,
    ) -> Result<Option<Left>, StoreError> {
        let suspicious = |delivery: &&Delivery| suspect::is_suspicious(delivery);
        let digests: Vec<Fingerprint> =
            deliveries.iter().filter(suspicious).map(|delivery| digest(delivery.body())).collect();
        if digests.is_empty() {
            return self.batch(deliveries, stop).await;
        }
        let postgres = &self.context.stores.postgres;
        let known = suspects::note_together(postgres, &digests, &self.name, self.epoch).await?;
        let is_alone = |delivery: &Delivery| {
            suspect::is_suspicious(delivery) && known.contains(&digest(delivery.body()))
        };
        let mut left = None;
        for some in deliveries.chunk_by(|one, next| !is_alone(one) && !is_alone(next)) {
            left = match some {
                [one] if is_alone(one) => self.alone(one, stop).await?,
                together => self.batch(together, stop).await?,
            };
            if left.is_some() {
                break;
            }
        }
        // Who was told to stop has died of nothing. Those that are tried alone are forgotten one by one.
        if !matches!(left, Some(Left::Fenced)) {
            let together: Vec<Fingerprint> =
                digests.into_iter().filter(|digest| !known.contains(digest)).collect();
            suspects::forget(postgres, &together).await?;
        }
        Ok(left)
    }

    /// One that was with somebody who died.
    async fn alone(
        &mut self,
        delivery: &Delivery,
        stop: &CancellationToken,
    ) -> Result<Option<Left>, StoreError> {
        let postgres = &self.context.stores.postgres;
        let (left, digest) =
            match suspect::try_alone(postgres, &self.name, self.epoch, delivery.body()).await? {
                Trial::Condemned(digest) => (self.condemn(delivery, stop).await?, digest),
                Trial::Alone(digest) => {
                    let left = self.batch(std::slice::from_ref(delivery), stop).await?;
                    if matches!(left, Some(Left::Fenced)) {
                        return Ok(left);
                    }
                    (left, digest)
                }
                Trial::None => return self.batch(std::slice::from_ref(delivery), stop).await,
            };
        suspects::forget(postgres, &[digest]).await?;
        Ok(left)
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
        self.hand_over().await;
        left
    }
}
