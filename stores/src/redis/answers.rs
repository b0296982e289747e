//! Cached answers, one key at a time: what readers look up, and what they put there when it was missing.

use redis::AsyncCommands;

use taskflow_core::change::KEPT;

use super::Redis;
use super::cache::{Entry, SET_IF_NEWER};
use crate::StoreError;

/// Puts a list in the place of one that is not newer. Its first item is the newest.
const REPLACE_LIST: &str = r#"
local first = redis.call('LINDEX', KEYS[1], 0)
local held = first and tonumber(string.match(first, '^{"version":(%d+)') or 0) or 0
if tonumber(string.match(ARGV[2], '^{"version":(%d+)')) < held then return 0 end
redis.call('DEL', KEYS[1])
for i = 2, #ARGV do redis.call('RPUSH', KEYS[1], ARGV[i]) end
redis.call('EXPIRE', KEYS[1], ARGV[1])
return 1
"#;

impl Redis {
    /// What is cached under a key.
    pub async fn cached(&self, key: &str) -> Result<Option<Vec<u8>>, StoreError> {
        let mut connection = self.connection().await?;
        connection.get(self.key(key)).await.map_err(self.failed("look into a cache"))
    }

    /// Puts a value there, unless what is there is newer: a slow reader never puts back what a faster one, or
    /// a writer, has replaced.
    pub async fn keep(&self, entry: &Entry) -> Result<(), StoreError> {
        let mut connection = self.connection().await?;
        let mut call = redis::cmd("EVAL");
        call.arg(SET_IF_NEWER).arg(1).arg(self.key(&entry.key)).arg(&entry.value).arg(entry.ttl_s);
        call.query_async::<()>(&mut connection).await.map_err(self.failed("keep an answer"))
    }

    /// The recent changes that are kept under a key, the newest first.
    pub async fn recent(&self, key: &str) -> Result<Vec<String>, StoreError> {
        let mut connection = self.connection().await?;
        let most = KEPT as isize - 1;
        connection.lrange(self.key(key), 0, most).await.map_err(self.failed("look at recent changes"))
    }

    /// Keeps recent changes, the newest first, unless newer ones are there.
    pub async fn keep_recent(&self, key: &str, changes: &[String], ttl_s: u64) -> Result<(), StoreError> {
        if changes.is_empty() {
            return Ok(());
        }
        let mut connection = self.connection().await?;
        let mut call = redis::cmd("EVAL");
        call.arg(REPLACE_LIST).arg(1).arg(self.key(key)).arg(ttl_s).arg(changes);
        call.query_async::<()>(&mut connection).await.map_err(self.failed("keep recent changes"))
    }
}
