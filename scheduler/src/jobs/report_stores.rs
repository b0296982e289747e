//! What the stores tell of themselves, as metrics: every minute, with statements that cost next to nothing.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use taskflow_core::metric;
use taskflow_stores::mongo::upkeep::{self, Answer};
use taskflow_stores::postgres::{statements, statistics};

use super::Job;
use crate::context::{Context, Failure};
use crate::{led, recovery};

pub(super) const JOB: Job = Job {
    name: "report.stores",
    about: "Measures connections, transactions, sizes and memory of the stores for the metrics",
    cron: "20 * * * * *",
    timeout_s: 50,
    missed: taskflow_core::job::Missed::Skip,
    work,
    ..Job::DEFAULT
};

fn work(context: Arc<Context>) -> BoxFuture<'static, Result<(), Failure>> {
    Box::pin(async move {
        // One store that is away must not hide the others.
        let (postgres, mongodb, redis, backups) = tokio::join!(
            postgres(&context),
            mongodb(&context),
            redis(&context),
            recovery::report(&context.stores.backups, &context.stores.postgres),
        );
        postgres.and(mongodb).and(redis).and(backups.map_err(Failure::from))
    })
}

async fn postgres(context: &Context) -> Result<(), Failure> {
    let moment = statistics::moment(&context.stores.postgres).await?;
    for (state, count) in [
        ("active", moment.connections_active),
        ("idle", moment.connections_idle),
        ("idle_in_transaction", moment.connections_idle_in_transaction),
        ("max", moment.connections_max),
    ] {
        led::show(&metric::POSTGRES_CONNECTIONS, &[("state", state)], count as f64);
    }
    led::show(&metric::POSTGRES_OLDEST_TRANSACTION, &[], moment.oldest_transaction_s);
    led::show(&metric::POSTGRES_LONG_TRANSACTIONS, &[], moment.long_transactions as f64);
    led::show(&metric::POSTGRES_XMIN_AGE, &[], moment.oldest_xmin_age as f64);
    led::show(&metric::POSTGRES_WRAPAROUND_AGE, &[], moment.wraparound_age as f64);
    for (table, bytes, dead) in statistics::table_sizes(&context.stores.postgres).await? {
        led::show(&metric::POSTGRES_TABLE_BYTES, &[("table", table.as_str())], bytes as f64);
        led::show(&metric::POSTGRES_DEAD_ROWS, &[("table", table.as_str())], dead as f64);
    }
    indexes(context).await?;
    slow_statements(context).await?;
    context.set("postgres", serde_json::to_value(moment).unwrap_or_default());
    Ok(())
}

async fn indexes(context: &Context) -> Result<(), Failure> {
    let indexes = statistics::index_use(&context.stores.postgres).await?;
    for index in &indexes {
        led::show(&metric::POSTGRES_INDEX_SCANS, &[("index", index.name.as_str())], index.scans as f64);
    }
    let unused = || indexes.iter().filter(|index| index.is_unused());
    let (count, bytes) = (unused().count(), unused().map(|index| index.bytes).sum::<i64>());
    led::show(&metric::POSTGRES_UNUSED_INDEXES, &[("figure", "count")], count as f64);
    led::show(&metric::POSTGRES_UNUSED_INDEXES, &[("figure", "bytes")], bytes as f64);
    context.set("unused_indexes", count);
    Ok(())
}

async fn slow_statements(context: &Context) -> Result<(), Failure> {
    let Some(named) = statements::by_name(&context.stores.postgres).await? else {
        context.set("slow_statements", statements::NOT_COUNTED);
        return Ok(());
    };
    for one in &named {
        let label = [("statement", one.name.as_str())];
        led::show(&metric::POSTGRES_STATEMENT_SECONDS, &label, one.seconds);
        led::show(&metric::POSTGRES_STATEMENT_CALLS, &label, one.calls as f64);
    }
    let slow: i64 = named.iter().map(|one| one.slow).sum();
    led::show(&metric::POSTGRES_SLOW_STATEMENTS, &[], slow as f64);
    context.set("slow_statements", slow);
    Ok(())
}

async fn mongodb(context: &Context) -> Result<(), Failure> {
    let statistics = upkeep::statistics(&context.stores.mongo).await?;
    for (figure, name) in [("count", "events"), ("storageSize", "bytes"), ("totalIndexSize", "index_bytes")] {
        if let Some(value) = statistics["collection"][figure].as_f64() {
            led::show(&metric::MONGODB_TRAIL, &[("figure", name)], value);
        }
    }
    context.set("mongodb", statistics);
    if let Answer::Done(status) = upkeep::replication(&context.stores.mongo).await? {
        let members = upkeep::members(&status);
        let behind =
            members.as_array().into_iter().flatten().filter_map(|member| member["behind_s"].as_f64());
        led::show(&metric::MONGODB_BEHIND, &[], behind.fold(0.0, f64::max));
        context.set("members", members);
    }
    Ok(())
}

async fn redis(context: &Context) -> Result<(), Failure> {
    let info = context.stores.redis.info_all().await?;
    for (figure, name) in [
        ("used_memory", "memory_bytes"),
        ("maxmemory", "memory_max_bytes"),
        ("mem_fragmentation_ratio", "fragmentation"),
        ("connected_clients", "clients"),
        ("evicted_keys", "evicted_keys"),
        ("keyspace_hits", "hits"),
        ("keyspace_misses", "misses"),
    ] {
        if let Some(value) = info.get(figure).and_then(|value| value.parse::<f64>().ok()) {
            led::show(&metric::REDIS_INFO, &[("figure", name)], value);
            context.set(&format!("redis_{name}"), value);
        }
    }
    Ok(())
}
