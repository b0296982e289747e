//! What the scheduler asks to make answers in advance: which are there, and whether the caches were emptied.

use taskflow_core::cache_key::FILLED;

use super::Redis;
use super::cache::{Entry, Refresh};
use crate::StoreError;

impl Redis {
    /// Whether the caches have lost everything since [`Self::set_filled`], or were never filled.
    pub async fn was_emptied(&self) -> Result<bool, StoreError> {
        let mut connection = self.connection().await?;
        let there: bool = redis::cmd("EXISTS")
            .arg(self.key(FILLED))
            .query_async(&mut connection)
            .await
            .map_err(self.failed("look whether the caches were emptied"))?;
        Ok(!there)
    }

    /// Remembers that the caches were filled.
    pub async fn set_filled(&self) -> Result<(), StoreError> {
        let mut connection = self.connection().await?;
        redis::cmd("SET")
            .arg(self.key(FILLED))
            .arg("1")
            .query_async::<()>(&mut connection)
            .await
            .map_err(self.failed("note that the caches were filled"))
    }

    /// Which of these keys are there, in one round trip.
    pub async fn are_there(&self, keys: &[String]) -> Result<Vec<bool>, StoreError> {
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        let mut connection = self.connection().await?;
        let mut pipeline = redis::pipe();
        for key in keys {
            pipeline.cmd("EXISTS").arg(self.key(key));
        }
        pipeline.query_async(&mut connection).await.map_err(self.failed("look which answers are cached"))
    }

    /// Puts values there, each unless what is there is newer, in one round trip.
    pub async fn fill(&self, entries: Vec<Entry>) -> Result<(), StoreError> {
        self.refresh(&Refresh { new: Vec::new(), changed: entries }).await
    }
}
