//! Upkeep of Redis: memory back to the system, the append-only file written anew. Keys are never removed: they go by
//! themselves.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;

use super::Job;
use crate::context::{Context, Failure, Step};
use crate::load::Beside;

pub(super) const JOB: Job = Job {
    name: "maintenance.redis",
    about: "Purges Redis's memory, rewrites its append-only file, reports",
    cron: "0 40 1 * * *",
    timeout_s: 3_600,
    retries: 2,
    heavy: true,
    beside: Beside::Redis,
    word: Some("maintenance"),
    work,
    ..Job::DEFAULT
};

/// Figures of `INFO` in the report.
const FIGURES: [&str; 12] = [
    "redis_version",
    "used_memory",
    "used_memory_rss",
    "mem_fragmentation_ratio",
    "maxmemory",
    "maxmemory_policy",
    "evicted_keys",
    "expired_keys",
    "keyspace_hits",
    "keyspace_misses",
    "aof_current_size",
    "rdb_last_bgsave_status",
];
const LOOK_EVERY: Duration = Duration::from_millis(500);

fn work(context: Arc<Context>) -> BoxFuture<'static, Result<(), Failure>> {
    Box::pin(async move {
        let redis = &context.stores.redis;
        let before = redis.info_all().await?;
        for name in FIGURES {
            if let Some(value) = before.get(name) {
                context.set(
                    name,
                    value.parse::<f64>().map_or_else(|_| value.as_str().into(), serde_json::Value::from),
                );
            }
        }
        if context.dry_run() {
            return Ok(());
        }
        if !redis.can_be_kept_up() {
            context.log("a cluster: purge the memory and rewrite the file on each node by itself");
            context.set("log_rewritten", "no: a cluster");
            return Ok(());
        }
        if context.give_way().await? == Step::Enough {
            return Ok(());
        }
        context.fence.holds().await?;
        redis.purge_memory().await?;
        if before.get("aof_enabled").map(String::as_str) != Some("1") {
            context.set("log_rewritten", "no: appendonly is off");
        } else if before.get("rdb_bgsave_in_progress").map(String::as_str) == Some("1") {
            context.set("log_rewritten", "no: a snapshot is being written; the next run does it");
        } else if context.give_way().await? == Step::Go {
            redis.rewrite_log().await?;
            let rewritten = tokio::select! {
                rewritten = rewritten(&context) => Some(rewritten?),
                () = context.halt() => None,
            };
            let Some(how) = rewritten else {
                context.halted()?;
                // Nothing takes the order back.
                context.set("log_rewritten", "not yet: Redis goes on by itself");
                return Ok(());
            };
            context.set("log_rewritten", how.as_str());
            if how != "ok" {
                return Err(Failure::Again(format!("the append-only file could not be rewritten: {how}")));
            }
        }
        let after = redis.info_all().await?;
        let rss = |info: &std::collections::BTreeMap<String, String>| {
            info.get("used_memory_rss").and_then(|bytes| bytes.parse::<i64>().ok()).unwrap_or(0)
        };
        context.set("bytes_freed", (rss(&before) - rss(&after)).max(0));
        Ok(())
    })
}

/// Until the append-only file is written anew; how that ended, in Redis's word.
async fn rewritten(context: &Context) -> Result<String, Failure> {
    loop {
        context.sleep(LOOK_EVERY).await?;
        let info = context.stores.redis.info_all().await?;
        let is = |name: &str, value: &str| info.get(name).map(String::as_str) == Some(value);
        if is("aof_rewrite_in_progress", "0") && is("aof_rewrite_scheduled", "0") {
            return Ok(info.get("aof_last_bgrewrite_status").cloned().unwrap_or_default());
        }
    }
}
