//! Redis, as a reader sees it: a shelf that has the answer or not, at once. One that is slow or away costs a reader at
//! most its patience, and most readers nothing: for a while nobody looks there.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use taskflow_core::metric;
use taskflow_stores::redis::Redis;
use taskflow_stores::redis::cache::Entry;
use taskflow_stores::{StoreError, observe};
use uuid::Uuid;

/// How long nobody looks after it gave no answer.
const REST: Duration = Duration::from_secs(1);

pub(crate) struct Shelf {
    redis: Redis,
    /// How long a reader waits.
    patience: Duration,
    away_until: Mutex<Option<Instant>>,
}

/// What a look has found.
pub(crate) enum Held {
    Value(Vec<u8>),
    Nothing,
    Away,
}

impl Shelf {
    pub(crate) fn new(redis: Redis, patience: Duration) -> Self {
        Self { redis, patience, away_until: Mutex::default() }
    }

    pub(crate) async fn look(&self, key: &str) -> Held {
        let (redis, key) = (self.redis.clone(), key.to_owned());
        match self.within_patience(async move { redis.cached(&key).await }).await {
            Some(Some(value)) => Held::Value(value),
            Some(None) => Held::Nothing,
            None => Held::Away,
        }
    }

    pub(crate) async fn put(&self, entry: Entry) {
        let redis = self.redis.clone();
        // A server without room still has what it holds.
        let kept = async move { Ok(redis.keep(&entry).await.is_ok()) };
        let _ = self.within_patience(kept).await;
    }

    /// A user's permissions, as JSON; outer `None`: no answer.
    pub(crate) async fn permissions(&self, user: Uuid) -> Option<Option<String>> {
        let redis = self.redis.clone();
        self.within_patience(async move { redis.permissions(user).await }).await
    }

    pub(crate) async fn put_permissions(&self, user: Uuid, version: i32, json: String) {
        let redis = self.redis.clone();
        let kept = async move { Ok(redis.put_permissions(user, version, &json).await.is_ok()) };
        let _ = self.within_patience(kept).await;
    }

    /// The recent changes that are kept under a key; `None`: no answer.
    pub(crate) async fn recent(&self, key: &str) -> Option<Vec<String>> {
        let (redis, key) = (self.redis.clone(), key.to_owned());
        self.within_patience(async move { redis.recent(&key).await }).await
    }

    pub(crate) async fn put_recent(&self, key: String, changes: Vec<String>, ttl_s: u64) {
        let redis = self.redis.clone();
        let kept = async move { Ok(redis.keep_recent(&key, &changes, ttl_s).await.is_ok()) };
        let _ = self.within_patience(kept).await;
    }

    async fn within_patience<T: Send + 'static>(
        &self,
        call: impl Future<Output = Result<T, StoreError>> + Send + 'static,
    ) -> Option<T> {
        if self.rests() {
            return None;
        }
        let mut call = Box::pin(call);
        match tokio::time::timeout(self.patience, &mut call).await {
            Ok(Ok(value)) => Some(value),
            Ok(Err(error)) => {
                self.rest(&error.to_string());
                None
            }
            Err(_) => {
                self.rest("no answer in time");
                // It goes on to its own end, which is what finds a connection that is dead.
                tokio::spawn(call);
                None
            }
        }
    }

    fn rests(&self) -> bool {
        let until = *self.away_until.lock().unwrap_or_else(PoisonError::into_inner);
        until.is_some_and(|until| Instant::now() < until)
    }

    fn rest(&self, reason: &str) {
        let mut until = self.away_until.lock().unwrap_or_else(PoisonError::into_inner);
        if until.is_none_or(|until| until < Instant::now()) {
            tracing::warn!(
                reason,
                "The caches give no answer; for a moment everything is read from Postgres."
            );
        }
        *until = Some(Instant::now() + REST);
    }
}

/// Counts a look: hit; miss (nothing there); stale (older than what is true now); away.
pub(crate) fn count(cache: &'static str, result: &'static str) {
    observe::counter(&metric::CACHE_REQUESTS, &[("cache", cache), ("result", result)]).increment(1);
}
