//! Upkeep of Postgres: statistics and dead rows of each table, bloated indexes rebuilt one by one, and a report.

use std::sync::Arc;
use std::time::Instant;

use futures_util::future::BoxFuture;
use serde_json::{Value, json};
use taskflow_stores::Kind;
use taskflow_stores::postgres::statistics;
use taskflow_stores::postgres::upkeep::{self, Deed, Index, Table, Upkeep};

use super::Job;
use crate::context::{Context, Failure, Step};

pub(super) const JOB: Job = Job {
    name: "maintenance.postgres",
    about: "Analyzes and vacuums tables, rebuilds bloated indexes, reports",
    cron: "0 10 1 * * *",
    timeout_s: 4 * 3_600,
    retries: 2,
    heavy: true,
    word: Some("maintenance"),
    work,
    ..Job::DEFAULT
};

/// A table is vacuumed when so many of its rows are dead, and so large a share of them.
const DEAD_MIN: i64 = 1_000;
const DEAD_SHARE: f64 = 0.02;
/// An index is rebuilt when it is so large and so much of it is empty.
const INDEX_BYTES_MIN: i64 = 8 * 1024 * 1024;
const INDEX_BLOAT: f64 = 0.5;

fn work(context: Arc<Context>) -> BoxFuture<'static, Result<(), Failure>> {
    Box::pin(async move {
        let pool = &context.stores.postgres;
        let tables = upkeep::tables(pool).await?;
        let bloated: Vec<Index> = upkeep::indexes(pool, INDEX_BYTES_MIN).await?;
        let bloated: Vec<Index> = bloated.into_iter().filter(|index| index.bloat() > INDEX_BLOAT).collect();
        let report = statistics::report(pool).await?;
        context.set("report", report);
        let moment = statistics::moment(pool).await?;
        context.set("server", serde_json::to_value(moment).unwrap_or_default());
        context.set("tables", tables.iter().map(shown).collect::<Vec<_>>());
        if context.dry_run() {
            context.set(
                "would_vacuum",
                tables
                    .iter()
                    .filter(|table| needs_vacuum(table))
                    .map(|table| table.name.clone())
                    .collect::<Vec<_>>(),
            );
            context.set("would_rebuild", bloated.iter().map(|index| index.name.clone()).collect::<Vec<_>>());
            return Ok(());
        }
        keep_up(&context, &tables, &bloated).await
    })
}

fn needs_vacuum(table: &Table) -> bool {
    let all = (table.live_rows + table.dead_rows).max(1);
    table.dead_rows >= DEAD_MIN && table.dead_rows as f64 / all as f64 >= DEAD_SHARE
}

fn shown(table: &Table) -> Value {
    json!({ "table": table.name, "rows": table.live_rows, "dead_rows": table.dead_rows, "bytes": table.bytes })
}

async fn keep_up(context: &Context, tables: &[Table], bloated: &[Index]) -> Result<(), Failure> {
    if context.give_way().await? == Step::Enough {
        return Ok(());
    }
    let pool = &context.stores.postgres;
    let mut upkeep = Upkeep::open(pool).await?;
    for name in upkeep.drop_leftovers().await? {
        context.log(format!("dropped {name}, the leftover of a rebuild that was cut off"));
    }
    let mut deeds: Vec<Deed<'_>> = Vec::new();
    deeds.extend(tables.iter().filter(|table| needs_vacuum(table)).map(|table| Deed::Vacuum(&table.name)));
    deeds.extend(tables.iter().filter(|table| table.changed > 0).map(|table| Deed::Analyze(&table.name)));
    deeds.extend(bloated.iter().map(|index| Deed::Reindex(&index.name)));
    let mut rebuilds = Vec::new();
    for deed in deeds {
        let started = Instant::now();
        context.fence.holds().await?;
        let done = match upkeep.run(deed, context.halt()).await {
            Ok(Some(())) => true,
            Ok(None) => return context.halted().map(drop),
            // Somebody holds a lock on it, an autovacuum say: the others have their turn all the same.
            Err(error) if error.kind == Kind::Conflict => {
                context.log(format!("{deed:?} was passed over: {error}"));
                context.add("passed_over", 1);
                false
            }
            Err(error) => return Err(error.into()),
        };
        match deed {
            Deed::Vacuum(_) if done => context.add("vacuumed", 1),
            Deed::Analyze(_) if done => context.add("analyzed", 1),
            Deed::Reindex(name) => {
                if done {
                    rebuilds.push(rebuilt(context, bloated, name).await?);
                    context.set("rebuilds", rebuilds.clone());
                }
                for name in upkeep.drop_leftovers().await? {
                    context.log(format!("dropped {name}, what the rebuild left"));
                }
            }
            _ => {}
        }
        if context.step(started.elapsed()).await? == Step::Enough {
            return Ok(());
        }
    }
    Ok(())
}

/// Tells of an index that was rebuilt: its size and how much of it was empty, before and after.
async fn rebuilt(context: &Context, bloated: &[Index], name: &str) -> Result<Value, Failure> {
    let Some(before) = bloated.iter().find(|index| index.name == name) else { return Ok(Value::Null) };
    let indexes = upkeep::indexes(&context.stores.postgres, 0).await?;
    // Somebody may have dropped it meanwhile.
    let Some(after) = indexes.iter().find(|index| index.name == name) else { return Ok(Value::Null) };
    context.log(format!(
        "rebuilt {name}: {} bytes before ({:.0} % empty), {} after ({:.0} %)",
        before.bytes,
        before.bloat() * 100.0,
        after.bytes,
        after.bloat() * 100.0
    ));
    context.add("rebuilt", 1);
    context.add("bytes_freed", (before.bytes - after.bytes).max(0).unsigned_abs());
    Ok(json!({
        "index": name, "bytes_before": before.bytes, "empty_before": before.bloat(), "bytes_after": after.bytes,
        "empty_after": after.bloat(),
    }))
}
