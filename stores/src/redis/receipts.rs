//! Announcing receipts: an intake whose caller waits for one hears of it at once instead of asking Postgres.
//!
//! An announcement may get lost with Redis; who waits asks Postgres from time to time as well.

use futures_util::StreamExt;
use futures_util::stream::Stream;
use taskflow_core::cache_key;
use uuid::Uuid;

use super::Redis;
use crate::StoreError;

impl Redis {
    /// Announces receipts (a JSON array each) to the intakes that asked for them, in one round trip.
    pub async fn announce(&self, receipts: &[(Uuid, String)]) -> Result<(), StoreError> {
        if receipts.is_empty() {
            return Ok(());
        }
        let mut connection = self.connection().await?;
        let mut pipeline = redis::pipe();
        for (intake, json) in receipts {
            let channel = self.key(&cache_key::receipts_channel(*intake));
            pipeline.cmd("PUBLISH").arg(channel).arg(json).ignore();
        }
        pipeline.query_async::<()>(&mut connection).await.map_err(self.failed("announce receipts"))
    }

    /// The announcements for one intake. The stream ends when the connection does: subscribe again.
    pub async fn announcements(
        &self,
        intake: Uuid,
    ) -> Result<impl Stream<Item = Vec<u8>> + Send + use<>, StoreError> {
        let channel = self.key(&cache_key::receipts_channel(intake));
        let mut failure = StoreError::unavailable("redis", "listen for receipts", "no answer in time");
        // Whichever node of a cluster answers; another one the next time.
        let servers = self.keeper.servers();
        let first = rand::random_range(0..servers.len().max(1));
        for server in servers[first..].iter().chain(&servers[..first]) {
            let subscribed = tokio::time::timeout(self.response_timeout, async {
                let mut subscription = server.get_async_pubsub().await?;
                subscription.subscribe(&channel).await?;
                redis::RedisResult::Ok(subscription)
            });
            match subscribed.await {
                Ok(Ok(subscription)) => {
                    return Ok(subscription.into_on_message().map(|m| m.get_payload_bytes().to_vec()));
                }
                Ok(Err(error)) => failure = self.failed("listen for receipts")(error),
                Err(_) => {}
            }
        }
        Err(failure)
    }
}
