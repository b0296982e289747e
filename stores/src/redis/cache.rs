//! Cached entities, as the workers keep them fresh.
//!
//! A value carries its version and replaces only an older one, so a slow writer never puts back what a faster one
//! has replaced. A deleted task leaves a tombstone for as long as the cache would have held it, for the same reason.

use taskflow_core::cache_key;
use taskflow_core::{Task, User};

use super::Redis;
use crate::StoreError;

/// Sets each key unless what is there is newer. Versions are read where our JSON has them: at the start.
pub(super) const SET_IF_NEWER: &str = r#"
local set = 0
for i, key in ipairs(KEYS) do
  local value = ARGV[2 * i - 1]
  local now = redis.call('GET', key)
  local held = now and tonumber(string.match(now, '^{"version":(%d+)') or 0) or 0
  if tonumber(string.match(value, '^{"version":(%d+)')) >= held then
    redis.call('SET', key, value, 'EX', ARGV[2 * i])
    set = set + 1
  end
end
return set
"#;

/// Entities in one call of the script: it holds the server while it runs.
const CHUNK: usize = 100;

/// What a batch changed, as the caches see it.
#[derive(Debug, Default)]
pub struct Refresh {
    /// Keys and JSON values of entities that exist for the first time: nothing older can be there.
    pub new: Vec<Entry>,
    /// Keys and JSON values of changed entities.
    pub changed: Vec<Entry>,
}

/// A key with its value.
#[derive(Debug)]
pub struct Entry {
    pub key: String,
    pub value: String,
    pub ttl_s: u64,
}

impl Refresh {
    pub fn is_empty(&self) -> bool {
        self.new.is_empty() && self.changed.is_empty()
    }
}

/// A task as it is cached: what the API answers, or a tombstone.
pub fn task_entry(task: &Task) -> Entry {
    let value = if task.deleted_at.is_some() {
        format!(r#"{{"version":{},"deleted":true}}"#, task.version)
    } else {
        serde_json::to_string(task).unwrap_or_default()
    };
    Entry { key: cache_key::task(task.id), value, ttl_s: cache_key::TASK_TTL_S }
}

/// A user as it is cached: what the API answers, without the password hash.
pub fn user_entry(user: &User) -> Entry {
    let value = serde_json::to_string(&user.public()).unwrap_or_default();
    Entry { key: cache_key::profile(user.id), value, ttl_s: cache_key::PROFILE_TTL_S }
}

impl Redis {
    /// Brings the caches up to date with a batch, in one round trip (of a cluster: one to each master, side by side).
    pub async fn refresh(&self, refresh: &Refresh) -> Result<(), StoreError> {
        if refresh.is_empty() {
            return Ok(());
        }
        let mut connection = self.connection().await?;
        let mut pipeline = redis::pipe();
        for entry in &refresh.new {
            let set = pipeline.cmd("SET").arg(self.key(&entry.key)).arg(&entry.value);
            set.arg("NX").arg("EX").arg(entry.ttl_s).ignore();
        }
        let chunk = if self.is_cluster() { 1 } else { CHUNK };
        for chunk in refresh.changed.chunks(chunk) {
            // With its text: after a restart, or on a new master of a cluster, its digest would mean nothing.
            let call = pipeline.cmd("EVAL").arg(SET_IF_NEWER).arg(chunk.len());
            for entry in chunk {
                call.arg(self.key(&entry.key));
            }
            for entry in chunk {
                call.arg(&entry.value).arg(entry.ttl_s);
            }
            call.ignore();
        }
        pipeline.query_async::<()>(&mut connection).await.map_err(self.failed("refresh the caches"))
    }
}
