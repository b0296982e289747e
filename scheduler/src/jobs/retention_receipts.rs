//! Removes receipts whose time is over, and the times of the batches that wrote them, a bounded number at a time.
//!
//! The space that they leave is taken by new ones once it is vacuumed. The block range index that finds the old ones
//! must then look at it anew, or it would take it for old for ever: which ranges that concerns is kept between runs.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::{DateTime, TimeDelta, Utc};
use futures_util::future::BoxFuture;
use serde_json::{Value, json};
use taskflow_stores::Kind;
use taskflow_stores::postgres::{job_schedules, leader, pruning};

use super::{Job, batches};
use crate::context::{Context, Failure, Step};

pub(super) const JOB: Job = Job {
    name: "retention.receipts",
    about: "Removes receipts whose time is over",
    cron: "0 17 * * * *",
    jitter_s: 60,
    timeout_s: 3_000,
    retries: 3,
    word: Some("retention"),
    work,
    ..Job::DEFAULT
};

/// Rows of one transaction.
const TOGETHER: i64 = 2_000;
/// Block ranges that are remembered between runs, and looked at anew in one transaction.
const RANGES_MAX: usize = 20_000;
const RANGES_TOGETHER: usize = 20;

/// The span of time that a first look is about, and the shortest and the longest one. What is on hold lies between what
/// goes, and each look reads all of its span: so the span fits what it finds.
const SPAN: TimeDelta = TimeDelta::minutes(10);
const SPAN_MIN: TimeDelta = TimeDelta::seconds(1);
const SPAN_MAX: TimeDelta = TimeDelta::days(1);
/// A look that took so long is not about a longer span the next time.
const SLOW: Duration = Duration::from_millis(300);

/// A dry run counts so far: beyond it would be a long statement.
const COUNT_MAX: i64 = 100_000;

fn work(context: Arc<Context>) -> BoxFuture<'static, Result<(), Failure>> {
    Box::pin(async move {
        let before = context.days_ago(context.retention.receipts_days)?;
        if context.dry_run() {
            context.set("before", before.to_rfc3339());
            let past = pruning::receipts_count(&context.stores.postgres, before, COUNT_MAX).await?;
            context.set("receipts_past", past);
            context.log(format!("the count ends at {COUNT_MAX}"));
            return Ok(());
        }
        let mut ranges = summarize(&context).await?;
        let step = receipts(&context, before, &mut ranges).await;
        // Also when it was stopped: what went has left its ranges.
        remember(&context, &ranges).await?;
        if step? == Step::Go {
            times_of_batches(&context, before).await?;
        }
        Ok(())
    })
}

/// Ranges whose old receipts are gone, and since when.
struct Ranges {
    numbers: BTreeSet<i64>,
    since: Option<DateTime<Utc>>,
}

/// Lets the index look at the ranges of earlier runs, once their dead rows are vacuumed. Returns what is left of them.
async fn summarize(context: &Context) -> Result<Ranges, Failure> {
    let looks = index_looks(context, &[]).await?;
    let state = job_schedules::state(&context.stores.postgres, &context.schedule).await?.unwrap_or_default();
    let numbers: Vec<i64> =
        state["ranges"].as_array().into_iter().flatten().filter_map(Value::as_i64).collect();
    let since: Option<DateTime<Utc>> = state["since"].as_str().and_then(|since| since.parse().ok());
    let vacuumed = pruning::receipts_vacuumed(&context.stores.postgres).await?;
    if !looks || numbers.is_empty() || vacuumed.is_none_or(|at| since.is_some_and(|since| at < since)) {
        return Ok(Ranges { numbers: numbers.into_iter().collect(), since });
    }
    let mut left = numbers.as_slice();
    while !left.is_empty() {
        let (some, others) = left.split_at(left.len().min(RANGES_TOGETHER));
        let started = Instant::now();
        if !index_looks(context, some).await? {
            break;
        }
        context.add("ranges_summarized", some.len() as u64);
        left = others;
        context.step(started.elapsed()).await?;
    }
    let numbers: BTreeSet<i64> = left.iter().copied().collect();
    let since = since.filter(|_| !numbers.is_empty());
    Ok(Ranges { numbers, since })
}

/// Lets the index look at ranges, or at what is new where none are named. `false`: this role may not do it, or somebody
/// else works on the table, a vacuum say, and it has time until the next run.
async fn index_looks(context: &Context, ranges: &[i64]) -> Result<bool, Failure> {
    let mut transaction = context.fence.begin().await?;
    match pruning::receipts_summarize(&mut transaction, ranges).await {
        Ok(None) => leader::commit(transaction).await?,
        // What is past goes all the same; the look for it only takes longer and longer.
        Ok(Some(words)) => {
            context.log(format!("the index of the receipts can't be looked at: {words}"));
            context.set("index_left", true);
            return Ok(false);
        }
        Err(error) if error.kind == Kind::Conflict => {
            context.log(format!("the index of the receipts is looked at by the next run: {error}"));
            return Ok(false);
        }
        Err(error) => return Err(error.into()),
    }
    Ok(true)
}

/// From a time back to the oldest, span after span: each is read once, also where much of it is on hold.
async fn receipts(context: &Context, before: DateTime<Utc>, ranges: &mut Ranges) -> Result<Step, Failure> {
    let (mut end, mut span) = (before, SPAN);
    loop {
        let started = Instant::now();
        let from = end - span;
        let mut transaction = context.fence.begin().await?;
        let gone = pruning::receipts(&mut transaction, from, end, TOGETHER).await?;
        leader::commit(transaction).await?;
        let took = started.elapsed();
        context.add("receipts_removed", gone.rows.unsigned_abs());
        if gone.rows > 0 {
            ranges.numbers.extend(gone.ranges);
            ranges.since = Some(context.now());
        }
        if gone.rows >= TOGETHER {
            // There may be more in it.
            span = (span / 2).max(SPAN_MIN);
        } else if gone.older {
            end = from;
            if gone.rows < TOGETHER / 2 && took < SLOW {
                span = (span * 2).min(SPAN_MAX);
            }
        } else {
            return Ok(Step::Go);
        }
        if context.step(took).await? == Step::Enough {
            return Ok(Step::Enough);
        }
    }
}

async fn remember(context: &Context, ranges: &Ranges) -> Result<(), Failure> {
    let numbers: Vec<i64> = ranges.numbers.iter().copied().take(RANGES_MAX).collect();
    let state = json!({ "ranges": numbers, "since": ranges.since });
    let mut transaction = context.fence.begin().await?;
    job_schedules::set_state(&mut transaction, &context.schedule, &state).await?;
    Ok(leader::commit(transaction).await?)
}

async fn times_of_batches(context: &Context, before: DateTime<Utc>) -> Result<(), Failure> {
    for partition in pruning::partitions(&context.stores.postgres).await? {
        let step = batches::remove(context, "batches_removed", TOGETHER, |connection| {
            let partition = partition.clone();
            Box::pin(async move { pruning::batches(connection, &partition, before, TOGETHER).await })
        });
        if step.await? == Step::Enough {
            break;
        }
    }
    Ok(())
}
