//! Cached permissions of users.
//!
//! The value is the specification's plain array and carries no version, so a fence beside it does: whoever read the
//! user before its role changed can't put the old permissions back.

use taskflow_core::cache_key;
use uuid::Uuid;

use super::Redis;
use crate::StoreError;

/// Sets the value unless the fence is newer than what it was made from.
const SET_UNLESS_FENCED: &str = r"
if tonumber(redis.call('GET', KEYS[2]) or 0) > tonumber(ARGV[2]) then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[3])
return 1
";

/// Raises the fence and removes the value.
const FENCE: &str = r"
if tonumber(redis.call('GET', KEYS[2]) or 0) < tonumber(ARGV[1]) then
  redis.call('SET', KEYS[2], ARGV[1], 'EX', ARGV[2])
end
redis.call('UNLINK', KEYS[1])
";

impl Redis {
    /// The cached permissions of a user, as JSON.
    pub async fn permissions(&self, user: Uuid) -> Result<Option<String>, StoreError> {
        let mut connection = self.connection().await?;
        redis::cmd("GET")
            .arg(self.key(&cache_key::permissions(user)))
            .query_async(&mut connection)
            .await
            .map_err(self.failed("look up permissions"))
    }

    /// Caches permissions that were made from a version of the user, unless they are stale by now.
    pub async fn put_permissions(&self, user: Uuid, version: i32, json: &str) -> Result<(), StoreError> {
        let mut connection = self.connection().await?;
        let (value, fence) = self.permission_keys(user);
        redis::cmd("EVAL")
            .arg(SET_UNLESS_FENCED)
            .arg(2)
            .arg(value)
            .arg(fence)
            .arg(json)
            .arg(version)
            .arg(cache_key::PERMISSIONS_TTL_S)
            .query_async::<()>(&mut connection)
            .await
            .map_err(self.failed("cache permissions"))
    }

    /// Removes what was made from versions before this one, and keeps it from coming back.
    pub async fn fence_permissions(&self, user: Uuid, version: i32) -> Result<(), StoreError> {
        let mut connection = self.connection().await?;
        let (value, fence) = self.permission_keys(user);
        redis::cmd("EVAL")
            .arg(FENCE)
            .arg(2)
            .arg(value)
            .arg(fence)
            .arg(version)
            .arg(cache_key::FENCE_TTL_S)
            .query_async::<()>(&mut connection)
            .await
            .map_err(self.failed("fence permissions"))
    }

    /// The value and its fence. The braces make a cluster keep both in one place: a script needs both.
    fn permission_keys(&self, user: Uuid) -> (String, String) {
        let value = self.key(&cache_key::permissions(user));
        let fence = format!("{{{value}}}:fence");
        (value, fence)
    }
}
