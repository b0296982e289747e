//! Counting requests in fixed windows, by user and by address.
//!
//! Each counter is one script on one key, so it is atomic and works in a cluster; all of a request's counters travel
//! side by side, in the time of one round trip.

use std::time::Duration;

use futures_util::future::try_join_all;

use super::Redis;
use crate::StoreError;

/// A window ends when its first request said it would: counting never makes it longer.
const COUNT: &str = r"
local count = redis.call('INCRBY', KEYS[1], ARGV[2])
local left = redis.call('PTTL', KEYS[1])
if left < 0 then
  left = tonumber(ARGV[1])
  redis.call('PEXPIRE', KEYS[1], left)
end
return {count, left}
";

/// How often something has happened in the window that runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Count {
    /// What was counted now included.
    pub count: u64,
    /// Until the window ends.
    pub left: Duration,
}

impl Redis {
    /// Counts more for each key: a window's length, and how many.
    pub async fn count(&self, windows: &[(&str, Duration, u64)]) -> Result<Vec<Count>, StoreError> {
        let connection = self.connection().await?;
        let counted = windows.iter().map(|(key, window, more)| {
            let mut connection = connection.clone();
            async move {
                let (count, left_ms): (u64, u64) = redis::cmd("EVAL")
                    .arg(COUNT)
                    .arg(1)
                    .arg(self.key(key))
                    .arg(window.as_millis() as u64)
                    .arg(*more)
                    .query_async(&mut connection)
                    .await
                    .map_err(self.failed("count requests"))?;
                Ok::<_, StoreError>(Count { count, left: Duration::from_millis(left_ms) })
            }
        });
        try_join_all(counted).await
    }
}
